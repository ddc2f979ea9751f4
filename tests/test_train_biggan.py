"""train_biggan.py end to end, tiny: presets, classes, scores by class, tickets, resume, refusals.

Its updates against a plain loop are in test_trainer.py, what two ranks do is in test_ranks.py."""
import functools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers import (METHOD, SCORE, TINY, all_refused, equal, find, parsed, pruned_weights_are_zero, refused,
                     same_runs, script, train, without)
from PIL import Image

import files
import gan
import generate
import prune
import report
import train_biggan
import train_sngan
import train_stylegan2
from data import images

train = functools.partial(train, 'biggan')


@pytest.fixture(scope='module')
def ticket(tmp_path_factory):
    """A ticket of two rounds: PATH/find.pt, found in PATH/find."""
    return find('biggan', tmp_path_factory.mktemp('find') / 'find', '--rounds', 2, '--steps', 2)


def class_folders(path, names='ab', count=1):
    for name in names:
        os.makedirs(path / name)
        for i in range(count):
            Image.new('RGB', (20, 20), (40 * i, 0, 0)).save(path / name / f'{i}.png')
    return str(path)


# ---- flags

PUBLISHED = [
    ('--data cifar10', dict(
        preset='cifar10', classes=10, res=32, batch=64, d_steps=5, steps=100000, lr_g=2e-4, lr_d=2e-4,
        betas=[.5, .999], adam_eps=1e-6, ema=.9999, ema_start=1000, mirror=True, ch_g=96, ch_d=96,
        adv_step=.01, protocol='cifar', eval_samples=10000, ref='test')),
    ('--data cifar100', dict(preset='cifar100', classes=100, res=32, batch=64, is_bias=True, is_splits=1)),
    ('--data cifar10 --lr-g 1e-3 --no-mirror --ref train --betas 0 .9', dict(
        lr_g=1e-3, lr_d=2e-4, mirror=False, ref='train', betas=[0., .9])),
    ('--data fashion-mnist', dict(preset='demo', classes=10, ch_g=16, protocol=None)),
    ('--data cifar10 --aug ada', dict(ada_target=.2, ada_kimg=1000, aug_policy='bgc')),
    ('--data cifar10 --aug ada --ada-heuristic rv', dict(ada_target=.5)),
    ('--data cifar10 --aug ada --ada-heuristic rv --ada-target .2', dict(ada_target=.2)),
    ('--data fashion-mnist --preset tiny-imagenet --narrow', dict(
        preset='tiny-imagenet', res=64, batch=256, d_steps=1, lr_g=1e-4, lr_d=4e-4, betas=[0., .999],
        ema_start=20000, adv_step=.001, ch_g=80, narrow=True)),
    ('--data fashion-mnist --preset imagenet', dict(
        res=128, batch=256, d_steps=2, lr_g=5e-5, lr_d=2e-4, ema_start=20000, adv_step=.001, ch_d=96)),
]


@pytest.mark.parametrize('flags, values', PUBLISHED)
def test_a_preset_holds_the_values_of_the_released_code(flags, values):
    args = vars(train_biggan.get_args(flags.split()))
    assert {name: args[name] for name in values} == values


def test_the_preset_of_a_folder_follows_its_resolution_or_that_of_its_ticket(tmp_path, ticket):
    folder = class_folders(tmp_path / 'two')
    for flags, name in (([], 'cifar10'), (['--res', '64'], 'tiny-imagenet'), (['--res', '128'], 'imagenet')):
        args = train_biggan.get_args(['--data', folder, *flags])
        assert (args.preset, args.res, args.classes) == (name, train_biggan.PRESETS[name]['res'], 2)
    args = train_biggan.get_args(['--data', folder, '--res', '64', '--ch-g', '8', '--ch-d', '8'])
    init = {name: net.state_dict() for name, net in zip('GD', train_biggan.build(args))}
    other = {'args': vars(args), 'init': init, 'mask': {'G': {}, 'D': {}}}
    torch.save({**files.load(ticket), **other}, tmp_path / 't.pt')
    args = train_biggan.get_args(['--data', folder, '--mask', str(tmp_path / 't.pt')])
    assert (args.preset, args.res, args.batch, args.ch_g) == ('tiny-imagenet', 64, 256, 8)


def test_weights_of_another_model_or_of_other_classes_are_refused(tmp_path, capsys):
    two = class_folders(tmp_path / 'two', count=3)
    saved = {}
    for model in TINY:
        nets = dict(zip('GD', script(model).build(parsed(model))))
        weights = {name: net.state_dict() for name, net in nets.items()}
        file = tmp_path / f'{model}.pt'
        torch.save({'model': model, 'args': vars(parsed(model)), **weights}, file)
        saved[model] = ['--init-from', file]
        torch.save({'model': model, 'args': vars(parsed(model)), 'init': weights, 'mask': {'G': {}, 'D': {}},
                    'data': None}, tmp_path / f'{model}-ticket.pt')
    for model in TINY:
        all_refused(capsys, lambda flags, model=model: parsed(model, *flags), [
            (saved[other], [f'--init-from {tmp_path}/{other}.pt is of {other}', f'train_{other}.py'])
            for other in TINY if other != model])

    of_two = [*without(TINY['biggan'], '--data', '--frac'), '--data', two]
    all_refused(capsys, lambda flags: train_biggan.get_args([*of_two, *flags]), [
        (saved['biggan'], [f'--init-from {tmp_path}/biggan.pt has 9 classes', 'has 2'])])
    cond = ['--cond', '--data', two]
    dense = ['--small-dense', tmp_path / 'stylegan2-ticket.pt']
    flags = without(TINY['stylegan2'], '--data', '--frac', '--ch-g', '--ch-d')
    all_refused(capsys, lambda more: train_stylegan2.get_args([*flags, *more]), [
        ([*cond, *saved['stylegan2']], ['--cond: --init-from', 'has no classes', 'has 2']),
        ([*cond, *dense], ['--cond: --small-dense', 'has no classes', 'has 2'])])


def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, ticket, capsys):
    two = class_folders(tmp_path / 'two', count=3)
    shutil.copytree(two, tmp_path / 'split/train')
    split = str(shutil.copytree(two, tmp_path / 'split/val').parent)
    stray = shutil.copytree(two, tmp_path / 'stray')
    shutil.copy(stray / 'a/0.png', stray / '0.png')
    tiny = TINY['biggan']
    all_refused(capsys, train_biggan.get_args, [
        (['--data', f'{two}/a'], ['one class', 'train_sngan.py']),
        (['--data', 'emoji-faces'], ['one class', 'train_sngan.py']),
        (['--data', split], ['train, val', 'split/train']), (['--data', stray], "('.') lie beside"),
        ([*tiny, '--res', '48'], '--res 48'), ([*tiny, '--narrow', '--res', '32'], '--res 32, narrow True'),
        ([*tiny, '--narrow'], '--res 32, narrow True'), ([*tiny, '--ch-d', '4'], ['--ch-d 4', 'below 8']),
        ([*tiny, '--mask', ticket, '--relu-shortcut'], ['--relu-shortcut', ticket]),
        ([*without(tiny, '--data', '--frac'), '--data', two, '--mask', ticket], ['9 classes', 'has 2']),
        ([*tiny, '--mask', ticket, '--ch-g', '16'], 'does not fit G'),
        ([*tiny, '--advaug', 'd', '--adv-cut-d', '8'], ['--adv-cut-d 8', '7 stages']),
        ([*tiny, '--g-batch', '8'], '--g-batch')])
    refused(capsys, lambda: train_sngan.get_args([*TINY['sngan'], '--mask', ticket]), 'train_biggan.py')
    few = ['--data', two, '--subset', 'first', '--frac', 2]
    refused(capsys, lambda: train(tmp_path / 'o', *few), '1 of 2 classes')


# ---- classes

def test_every_image_meets_D_with_its_own_class(tmp_path, monkeypatch, settled_on_two_batches):
    seen, plain = [], gan.d_loss

    def spy(D, real, fake, args, sums, y, y_fake, **more):
        seen.append((real.clone(), y.clone(), y_fake.clone()))
        return plain(D, real, fake, args, sums, y, y_fake, **more)
    monkeypatch.setattr(gan, 'd_loss', spy)
    train(tmp_path, '--steps', 9, '--no-mirror')
    data = images.load('emoji', frac=60, plain=True)
    class_of = {x.numpy().tobytes(): y for x, y in zip(data.images, data.labels.tolist())}
    for x, y, y_fake in seen:
        x = ((x + 1) * 127.5).round().byte()
        assert [class_of[image.contiguous().numpy().tobytes()] for image in x] == y.tolist()
        assert len(set(y_fake.tolist())) == 8
    rows = torch.cat([x for x, _, _ in seen])[:60].flatten(1).unique(dim=0)
    assert len(rows) == len(data.images.flatten(1).unique(dim=0))          # an epoch shows every image


def test_samples_and_reals_have_a_row_per_class_and_generate_makes_the_same(
        tmp_path, capsys, settled_on_two_batches):
    train(tmp_path / 'run', '--steps', 2)
    assert Image.open(tmp_path / 'run/samples/000002.png').size == (8 * 32, 9 * 32)
    assert Image.open(tmp_path / 'run/reals.png').size[0] == 8 * 32

    def make(*words):
        return generate.main(generate.get_args([str(tmp_path / 'run'), *map(str, words)]))
    x = make('--out', tmp_path / 'g.png')
    assert x.shape == (72, 3, 32, 32) and Image.open(tmp_path / 'g.png').size == (256, 288)
    make('--classes', '2,Flags', '--seeds', '0-2', '--each', tmp_path / 'each')
    with open(tmp_path / 'run/subset.json') as f:
        names = json.load(f)['classes']
    flags = names.index('Flags')
    assert sorted(os.listdir(tmp_path / 'each')) == [f'{c:04d}-{names[c]}' for c in (2, flags)]
    for c, seed in ((2, 1), (flags, 2)):
        one = np.asarray(Image.open(tmp_path / f'each/{c:04d}-{names[c]}/{seed:06d}.png'))
        gap = one.transpose(2, 0, 1).astype(int) - x[c * 8 + seed].numpy()
        assert abs(gap).max() <= 1                             # round-off of another batch
    all_refused(capsys, lambda words: make(*words), [
        (['--classes', '9'], ['--classes 9', '0-8']), (['--classes', 'Cars'], ['Cars', 'Flags'])])
    shown = x.view(9, 8, 3, 32, 32).float()
    assert (shown[0] - shown[1]).abs().mean() > 0              # the class reaches the image


@pytest.mark.slow
def test_a_conditional_score_is_recorded_with_its_protocol_and_stands_in_the_report(
        tmp_path, ticket, settled_on_two_batches):
    score = [*SCORE, '--metrics', 'fid,copy', '--steps', 2, '--eval-every', 1]
    train(tmp_path / 'dense', *score)
    train(tmp_path / 'ticket', *score, *METHOD, '--mask', ticket)
    record = files.read_jsonl(tmp_path / 'dense/metrics.jsonl')[-1]
    assert record['protocol']['classes'] == 'as often as in the training images'
    assert np.isfinite(record['all'])
    line = files.read_jsonl(tmp_path / 'dense/log.jsonl')[-1]
    assert 0 <= line['acc_held'] <= 1 and {'D_train', 'D_held', 'D_gen', 'L_G'} < line.keys()
    with open(report.main(report.get_args([str(tmp_path)]))) as f:
        page = f.read()
    assert '| dense | 2 |' in page and 'ticket 36.0' in page


def test_a_converted_imagenet_trains_scores_and_brings_its_protocol(tmp_path, settled_on_two_batches):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for wnid in ('n01', 'n02', 'n03'):
            os.makedirs(tmp_path / 'raw' / split / wnid)
            for i in range(6):
                x = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
                x.save(tmp_path / 'raw' / split / wnid / f'{i}.JPEG')
    images.convert('imagenet', str(tmp_path / 'raw'), 32)
    args = parsed('biggan', '--data', 'imagenet', '--root', tmp_path / 'raw', '--res', 32, '--frac', .5,
                  '--steps', 2, *SCORE, '--metrics', 'fid,copy', '--out', tmp_path / 'run')
    assert (args.preset, args.protocol, args.classes) == ('imagenet', 'imagenet', 3)
    assert (args.ref, args.adv_step) == ('test', .001)
    train_biggan.main(args)
    record, = files.read_jsonl(tmp_path / 'run/metrics.jsonl')
    assert record['protocol']['ref'] == 'imagenet-test' and record['protocol']['n_ref']['all'] == 18
    with open(tmp_path / 'run/subset.json') as f:
        subset = json.load(f)
    assert subset['classes'] == ['n01', 'n02', 'n03'] and len(subset['index']) == 9


# ---- tickets and resume

def test_a_ticket_is_complete_exactly_sparse_and_rewound_bit_for_bit(
        tmp_path, ticket, settled_on_two_batches):
    t, dense = files.load(ticket), files.load(ticket.replace('find.pt', 'find/ticket0.pt'))
    for name, net in zip('GD', train_biggan.build(parsed('biggan'))):
        assert prune.alive(t['mask'][name]) == prune.alive_after(prune.alive(dense['mask'][name]), .2, 2)
        assert equal(t['init'][name], dict(net.state_dict())) and equal(t['init'][name], dense['init'][name])
    train(tmp_path, '--mask', ticket, '--steps', 2, *METHOD)
    saved = files.load(tmp_path / 'last.pt')
    pruned_weights_are_zero(saved, t['mask'])
    assert saved['args']['classes'] == 9
    assert saved['G']['shared.weight'].any() and saved['E']['shared.weight'].any()


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, settled_on_two_batches):
    flags = [*METHOD, '--mirror', '--d-steps', 2, '--ema-start', 1]
    train(tmp_path / 'cut', *flags, '--steps', 2)
    train(tmp_path / 'cut', *flags, '--steps', 4)
    train(tmp_path / 'whole', *flags, '--steps', 4)
    same_runs(tmp_path / 'cut', tmp_path / 'whole')
