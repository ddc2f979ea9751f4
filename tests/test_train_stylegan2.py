"""train_stylegan2.py end to end, tiny: recipes, a plain loop of the four phases, tickets, transfer, ranks."""
import copy
import json
import math
import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_scripts import equal, process, records, same_runs, wait_for

import find_ticket
import gan
import loop
import losses
import train_stylegan2
from data import images
from models import stylegan2, transfer

TINY = ['--data', 'emoji-faces', '--frac', '20', '--res', '16', '--ch-g', '256', '--ch-d', '256', '--ch-max', '16',
        '--batch', '8', '--metrics', 'none', '--log-every', '2', '--device', 'cpu', '--precision', 'fp32']
LAZY = ['--r1-every', '2', '--pl', '2', '--pl-every', '3', '--r1', '1']


def args(*flags):
    return train_stylegan2.get_args([*TINY, *flags])


def train(out, *flags):
    return train_stylegan2.main(args('--out', str(out), *flags))


def find(out, *flags):
    own = ['stylegan2', *TINY, '--out', str(out), '--ticket', f'{out}.pt']
    return find_ticket.main(find_ticket.get_args([*own, *flags]))


def refused(capsys, call, *words):
    with pytest.raises(SystemExit) as e:
        call()
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count('\n') == 1 and all(w in error for w in words), error


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A checkpoint to start from."""
    out = tmp_path_factory.mktemp('source') / 'run'
    train(out, '--steps', '2')
    return f'{out}/last.pt'


# ---- recipes

@pytest.mark.parametrize('flags, values, counts', [
    (['--data', '100-shot-obama'], dict(preset='fewshot', res=256, batch=16, steps=18750, lr_g=2e-3, r1=10., r1_every=1,
                                        pl=0., mixing=.9, mirror=True, aug='diffaug', ema_kimg=10., loss='logistic',
                                        eval_samples=5000), (30034338, 28864129)),
    (['--data', 'animalface-dog'], dict(preset='animalface', steps=31250), (30034338, 28864129)),
    (['--data', 'cifar10', '--frac', '0.1'], dict(preset='cifar', res=32, batch=64, r1=.01, pl=0., mixing=0.,
                                                  arch='orig', group=32, ema_kimg=500.), (19947539, 20720641)),
    (['--data', 'cifar100', '--cond'], dict(classes=100), (20261395, 23135744)),
    (['--data', 'ffhq', '--frac', '1000'], dict(preset='large', batch=32, r1=1., r1_every=16, pl=2.),
     (24767458, 24001089)),
    (['--data', '100-shot-panda', '--preset', 'paper'], dict(batch=5, lr_g=2e-4, lr_d=2e-4, steps=100000, r1=10.),
     (30034338, 28864129))])
def test_each_data_set_has_its_published_recipe_and_network(flags, values, counts):
    a = train_stylegan2.get_args(flags)
    assert {k: getattr(a, k) for k in values} == values
    with torch.device('meta'):
        assert tuple(sum(p.numel() for p in net.parameters()) for net in train_stylegan2.build(a)) == counts


@pytest.mark.parametrize('res, batch, r1, ema', [(32, 32, .0064, 10), (64, 32, .0256, 10), (128, 32, .1024, 10),
                                                 (256, 16, .8192, 5), (512, 8, 6.5536, 2.5)])
def test_the_recipe_of_any_folder_follows_its_resolution(res, batch, r1, ema):
    auto = train_stylegan2.auto(res)
    assert (auto['batch'], round(auto['r1'], 4), auto['ema_kimg']) == (batch, r1, ema)


def test_a_folder_alone_is_a_sensible_run(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / f'{i}.png')
    a = train_stylegan2.get_args(['--data', str(tmp_path)])
    assert (a.preset, a.res, a.aug, a.batch) == ('fewshot', 32, 'diffaug', 16)
    small = ['--steps', '1', '--ch-max', '8', '--batch', '2', '--metrics', 'none', '--out', str(tmp_path / '../run')]
    train_stylegan2.main(train_stylegan2.get_args(['--data', str(tmp_path), *small]))
    said = capsys.readouterr().out
    assert "DiffAugment's recipe" in said and '--res 32' in said and '12 of 12 training images' in said
    assert {'reals.png', 'samples', 'log.jsonl', 'last.pt'} <= set(os.listdir(tmp_path / '../run'))
    many = (lambda data, root: ({'train': (range(train_stylegan2.FEW + 1), None)}, None, None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, 'source', many)
        assert train_stylegan2.preset(str(tmp_path), '') == 'auto'
        assert train_stylegan2.preset('ffhq_mine', '') == 'auto' and train_stylegan2.preset('ffhq', '') == 'large'


@pytest.mark.parametrize('n, preset', [(5000, 'fewshot'), (5001, 'auto')])
def test_a_converted_set_has_its_preset_by_its_number_of_images(tmp_path, n, preset):
    (tmp_path / 'set.json').write_text(json.dumps({'res': 64, 'splits': {'train': {'n': n}}}))
    a = train_stylegan2.get_args(['--data', str(tmp_path)])
    assert (a.preset, a.res) == (preset, 64)


@pytest.mark.parametrize('file', ['--mask', '--small-dense'])
def test_settings_by_resolution_are_those_of_the_ticket(tmp_path, file):
    own = ['--res', '64', '--ch-max', '8', '--data', 'emoji-faces', '--frac', '12', '--batch', '2', '--metrics', 'none']
    way = ['--method', 'random', '--rounds', '1', '--steps', '1']
    out = ['--out', str(tmp_path / 'find'), '--ticket', str(tmp_path / 'find.pt')]
    find_ticket.main(find_ticket.get_args(['stylegan2', *own, *way, *out]))
    a = train_stylegan2.get_args(['--data', 'emoji-faces', '--preset', 'auto', file, str(tmp_path / 'find.pt')])
    assert (a.res, a.batch, round(a.r1, 4), a.steps) == (64, 32, .0256, 781250)


def test_adam_is_slowed_where_a_regulariser_has_steps_of_its_own(tmp_path):
    a = args('--out', str(tmp_path / 'a'), '--lr-g', '.0025', '--lr-d', '.0025', '--r1-every', '16', '--pl-every', '4')
    job = gan.Training('stylegan2', a, train_stylegan2.build, lazy={
        'G': train_stylegan2.slowed(a.pl, a.pl_every), 'D': train_stylegan2.slowed(a.r1, a.r1_every)})
    (G,), (D,) = job.G.adam.param_groups, job.D.adam.param_groups
    assert np.allclose((G['lr'], D['lr']), (.002, .00235294)), (G['lr'], D['lr'])
    assert np.allclose((*G['betas'], *D['betas']), (0, .991992, 0, .990585), atol=1e-6)


@pytest.mark.parametrize('kimg, rampup, batch, seen, beta', [
    (10, None, 32, 10 ** 7, .997784), (500, None, 64, 0, .999911), (10, None, 8, 0, .999446), (10, .05, 32, 0, 0.),
    (10, .05, 32, 64000, .5 ** (32 / 3200))])
def test_the_average_has_its_half_life(kimg, rampup, batch, seen, beta):
    a = args('--batch', str(batch), '--ema-kimg', str(kimg), *(['--ema-rampup', str(rampup)] if rampup else []),
             '--ema-start', '0')
    assert abs(train_stylegan2.decay(a, seen // batch + 1) - beta) < 1e-6


# ---- the loop

def plain(a, steps):
    """The original's Gmain, Greg, Dmain, Dreg as a plain loop: one Adam per tensor, no flat vectors, no closures."""
    G, D = train_stylegan2.build(a)
    E = copy.deepcopy(G)
    c = {G: a.pl_every / (a.pl_every + 1), D: a.r1_every / (a.r1_every + 1)}
    adam = {net: torch.optim.Adam(net.parameters(), lr * c[net], (0., .99 ** c[net]), 1e-8)
            for net, lr in ((G, a.lr_g), (D, a.lr_d))}
    x = images.load(a.data, a.root, a.frac, res=a.res).images
    length = torch.zeros(())

    def update(net, loss):
        for p in [*G.parameters(), *D.parameters()]:
            p.grad, p.requires_grad = torch.zeros_like(p), any(p is q for q in net.parameters())
        loss().backward()                                      # what has no gradient (biases) has 0, as in TensorFlow
        adam[net].step()

    def latent(word, *at):
        r = loop.rng(a.seed, word, *at)
        if word == 'D':
            r.random(a.batch)
        return torch.from_numpy(r.standard_normal((a.batch, G.z_dim), 'float32')).to(length.dtype)

    def path_length():
        nonlocal length
        w, G2 = G.split(latent('pl', step)[:a.batch // 2], cut=1)
        image = G2(w)
        g, = torch.autograd.grad((image * torch.randn_like(image)).sum() / a.res, w, create_graph=True)
        lengths = g.square().sum(2).mean(1).sqrt()
        mean = length + .01 * (lengths.mean() - length)
        length = mean.detach()
        return a.pl_every * a.pl * ((lengths - mean) ** 2).mean()

    def r1():
        inputs = real.clone().requires_grad_(True)
        g, = torch.autograd.grad(D(inputs).sum(), inputs, create_graph=True)
        return a.r1_every * a.r1 / 2 * g.square().sum((1, 2, 3)).mean()

    for step in range(1, steps + 1):
        torch.manual_seed(int(loop.rng(a.seed, 'device', step, 0).integers(2 ** 62)))
        update(G, lambda: F.softplus(-D(G(latent('G', step)))).mean())
        if (step - 1) % a.pl_every == 0:
            update(G, path_length)
        real = images.batch(x[loop.order(len(x), (step - 1) * a.batch, a.batch, a.seed)]).to(length.dtype)
        fakes = latent('D', step, 0)
        update(D, lambda: F.softplus(D(G(fakes).detach())).mean() + F.softplus(-D(real)).mean())
        if (step - 1) % a.r1_every == 0:
            update(D, r1)
        for e, g in zip(E.parameters(), G.parameters()):
            e.data.lerp_(g.data, 1 - train_stylegan2.decay(a, step))
    return {'G': G, 'D': D, 'E': E}, length


def test_twenty_steps_equal_a_plain_loop_of_the_four_phases(tmp_path, monkeypatch):
    monkeypatch.setattr(gan.Training, 'notes', lambda self: {})
    flags = [*LAZY, '--aug', 'none', '--steps', '20', '--mixing', '.9', '--log-every', '100', '--ema-kimg', '.1']
    torch.set_default_dtype(torch.float64)
    try:
        train(tmp_path / 'a', *flags)
        expected, length = plain(args(*flags), 20)
    finally:
        torch.set_default_dtype(torch.float32)
    saved = loop.load(f'{tmp_path}/a/last.pt')
    for name, net in expected.items():
        for key, value in net.named_parameters():
            gap = (saved[name][key] - value).abs().max().item()
            assert gap < 1e-9, (name, key, gap)
    assert abs(saved['state']['pl']['mean'] - length) < 1e-9 and length > 0


def test_path_length_of_every_step_is_added_to_the_loss(tmp_path, monkeypatch):
    seen, update = [], loop.Flat.update
    monkeypatch.setattr(loop.Flat, 'update', lambda self, f, parts: seen.append(f.__name__) or update(self, f, parts))
    for advaug in ('none', 'g'):
        flags = ['--pl', '2', '--pl-every', '1', '--r1-every', '1', '--steps', '2', '--advaug', advaug]
        G, _ = train(tmp_path / advaug, *flags)
        lines = records(f'{tmp_path}/{advaug}/log.jsonl')
        assert lines[-1]['R_pl'] > 0 and loop.load(f'{tmp_path}/{advaug}/last.pt')['state']['pl']['mean'] > 0
        assert set(seen) == {'g_step', 'd_step'} and all(p.isfinite().all() for p in G.parameters())


def test_D_is_watched_on_whole_groups_and_the_miner_is_of_the_seed(source):
    job = gan.Training('stylegan2', args(), train_stylegan2.build)
    assert len(job.data.holdout) == 17 and len(job.seen['held'][0]) == 16
    miners = []
    for seed in '001':
        a = args('--seed', seed, '--init-from', source, '--transfer', 'minegan')
        job = gan.Training('stylegan2', a, train_stylegan2.build, lambda G, D: transfer.prepare_('minegan', G, D))
        miners.append(job.G.net.miner[0].weight.detach())
    assert torch.equal(miners[0], miners[1]) and not torch.equal(miners[0], miners[2])


def test_R_1_beside_the_loss_is_the_gradient_of_D_on_images_before_T():
    a = args('--aug', 'diffaug', '--loss', 'logistic')
    G, D = (net.double() for net in train_stylegan2.build(a))
    real, fake = torch.rand(2, 4, 3, 16, 16, dtype=torch.float64)
    sums = loop.Sums(torch.device('cpu'), *gan.SUMS)

    def loss(r1):
        torch.manual_seed(0)
        return gan.d_loss(D, real, fake, a, sums, r1=r1)
    penalty = (loss(10.) - loss(0.)).item() / 10
    torch.manual_seed(0)
    T = gan.draw(a, torch.cat((real, fake)), None)
    x = real.clone().requires_grad_(True)
    g, = torch.autograd.grad(D(T(torch.cat((x, fake)))[:4]).sum(), x)
    slow = g.square().sum().item() / 4 / 2
    assert slow > 0 and abs(penalty / slow - 1) < 1e-6         # T computes in fp32


def test_path_length_of_a_linear_generator_is_that_of_its_columns():
    pl, W = losses.PathLength(3., .25), torch.randn(2 * 6, 3 * 16)
    w = torch.randn(500, 2, 6, requires_grad=True)
    torch.manual_seed(0)
    value = pl(lambda w: (w.flatten(1) @ W).view(-1, 3, 4, 4), w)
    torch.manual_seed(0)
    y = torch.randn(500, 3, 4, 4).flatten(1) / 4
    lengths = (y @ W.T).view(500, 2, 6).square().sum(2).mean(1).sqrt()
    assert torch.allclose(pl.mean, lengths.mean() / 4)
    assert torch.allclose(value, 3 * (lengths - pl.mean).square().mean())


# ---- endings, ranks, precision

METHODS = [[*LAZY, '--aug', 'ada', '--ada-kimg', '.1', '--advaug', 'gd', '--lecam', '--lecam-start', '1'],
           '--aug diffaug --advaug gd --mirror --loss hinge --adv-cut-g 2 --adv-cut-d 1'.split()]


@pytest.mark.parametrize('flags', METHODS)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, flags):
    train(tmp_path / 'whole', *flags, '--steps', '7')
    train(tmp_path / 'cut', *flags, '--steps', '4')
    train(tmp_path / 'cut', *flags, '--steps', '7')
    same_runs(tmp_path / 'whole', tmp_path / 'cut')
    assert all(math.isfinite(v) for line in records(f'{tmp_path}/whole/log.jsonl') for v in line.values())


def test_a_killed_run_on_two_ranks_goes_on_bit_for_bit_with_equal_path_lengths(tmp_path):
    flags = [*TINY, *LAZY, '--steps', '8', '--aug', 'ada', '--ada-kimg', '.1', '--save-every', '2']
    for p in process('train_stylegan2.py', *flags, '--out', tmp_path / 'whole', ranks=2):
        assert p.wait() == 0, p.communicate()[0]
    first = process('train_stylegan2.py', *flags, '--out', tmp_path / 'cut', ranks=2)
    wait_for(tmp_path / 'cut/last.pt', first[0])
    for p in first:
        p.kill(), p.wait()
    for p in process('train_stylegan2.py', *flags, '--out', tmp_path / 'cut', ranks=2):
        assert p.wait() == 0, p.communicate()[0]
    a, b = (loop.load(f'{tmp_path}/{name}/last.pt') for name in ('whole', 'cut'))
    assert all(equal(a[k], b[k]) for k in ('G', 'D', 'E', 'opt', 'state')) and a['state']['pl']['mean'] > 0


@pytest.mark.parametrize('flags', [['--batch', '1'], ['--batch', '5', '--batch-gpu', '5'], ['--batch-gpu', '4'],
                                   ['--precision', 'bf16'], ['--cond', '--data', 'emoji']])
def test_odd_batches_bf16_and_classes_train_to_finite_numbers(tmp_path, flags):
    G, _ = train(tmp_path / 'a', *LAZY, '--advaug', 'gd', '--steps', '3', *flags)
    assert all(p.isfinite().all() for p in G.parameters())
    assert all(math.isfinite(v) for line in records(f'{tmp_path}/a/log.jsonl') for v in line.values())


def test_the_micro_batch_is_halved_until_it_fits_and_nothing_else_changes(tmp_path, monkeypatch, capsys):
    flags = [*LAZY, '--steps', '3', '--mixing', '0']
    train(tmp_path / 'asked', *flags, '--batch-gpu', '2')
    backward = loop.Flat.backward

    def small(self, f, parts):
        if parts[0].stop - parts[0].start > 2:
            raise torch.OutOfMemoryError
        return backward(self, f, parts)
    monkeypatch.setattr(loop.Flat, 'backward', small)
    monkeypatch.setattr(gan.Training, 'tries', lambda self: True)
    train(tmp_path / 'found', *flags)
    assert '--batch-gpu 2' in capsys.readouterr().out
    a, b = (loop.load(f'{tmp_path}/{name}/last.pt') for name in ('asked', 'found'))
    assert b['args']['batch_gpu'] == 2 and all(equal(a[k], b[k]) for k in ('G', 'D', 'E', 'state'))


# ---- tickets

def test_tickets_are_found_with_effective_weights_and_stay_pruned(tmp_path):
    find(tmp_path / 'find', '--rounds', '2', '--steps', '2')
    ticket = loop.load(f'{tmp_path}/find.pt')
    for name, masks in ticket['mask'].items():
        total = sum(m.numel() for m in masks.values())
        alive = total
        for _ in range(2):
            alive -= int(.2 * alive)
        assert sum(int(m.sum()) for m in masks.values()) == alive and total > 0
        assert all(ticket['init'][name][key].dim() == 4 for key in masks)
    train(tmp_path / 'ticket', *LAZY, '--mask', f'{tmp_path}/find.pt', '--steps', '3', '--advaug', 'gd')
    saved = loop.load(f'{tmp_path}/ticket/last.pt')
    for name, net in (('G', 'G'), ('D', 'D'), ('G', 'E')):
        for key, keep in ticket['mask'][name].items():
            assert not saved[net][key][~keep].any() and saved[net][key][keep].any()
    # the ranking is by raw times gain: shared thresholds in effective weights
    round0 = loop.load(f'{tmp_path}/find/round0/last.pt')
    first = loop.load(f'{tmp_path}/find/ticket1.pt')['mask']['G']
    gain = stylegan2.effective_gain(train_stylegan2.build(args())[0])
    weights = {k: round0['G'][k].abs() * gain[k] for k in first}
    assert max(weights[k][~first[k]].max() for k in first if (~first[k]).any()) <= min(
        weights[k][first[k]].min() for k in first)


def test_pretrained_weights_can_be_theta_0(tmp_path, source):
    find(tmp_path / 'find', '--rounds', '1', '--steps', '1', '--init-from', source)
    ticket, weights = loop.load(f'{tmp_path}/find.pt'), loop.load(source)
    assert all(equal(ticket['init'][name], weights[name]) for name in 'GD')


# ---- transfer

@pytest.mark.parametrize('mode', transfer.MODES)
def test_each_transfer_trains_what_it_should_and_nothing_else(tmp_path, source, mode):
    extra = {'minegan': ['--mine-steps', '2'], 'freezed': ['--freeze-layers', '1']}.get(mode, [])
    flags = [*LAZY, '--init-from', source, '--transfer', mode, *extra]
    train(tmp_path / 'a', *flags, '--steps', '2')
    before, after = loop.load(source), loop.load(f'{tmp_path}/a/last.pt')
    moved = {name: {k for k, v in after[name].items() if k not in before[name] or not torch.equal(v, before[name][k])}
             for name in 'GD'}
    G, D = train_stylegan2.build(args())
    names = {'G': {n for n, _ in G.named_parameters()}, 'D': {n for n, _ in D.named_parameters()}}
    expected = {'finetune': names['G'], 'freezed': names['G'], 'minegan': {f'miner.{i}.{p}' for i in (0, 2)
                                                                         for p in ('weight', 'bias')},
                'scaleshift': {n for n in names['G'] if '.affine.' in n or re.search(r'(conv\d|torgb)\.bias', n)}}[mode]
    kept = {'b16.fromrgb.weight', 'b16.fromrgb.bias'} if mode == 'freezed' else set()
    assert moved['G'] - {'mapping.w_avg'} == expected and moved['D'] == names['D'] - kept
    train(tmp_path / 'a', *flags, '--steps', '4')
    later = loop.load(f'{tmp_path}/a/last.pt')
    if mode == 'minegan':                                      # the second stage, begun and continued in resumed runs
        assert all(not torch.equal(later['G'][k], before['G'][k]) for k in names['G'])
        train(tmp_path / 'a', *flags, '--steps', '5')
        train(tmp_path / 'b', *flags, '--steps', '5')
        assert equal(*(loop.load(f'{tmp_path}/{name}/last.pt')['G'] for name in 'ab'))
    if mode == 'freezed':
        train(tmp_path / 'c', *flags, '--freeze-layers', '4', '--steps', '1')
        kept = {k for k, v in loop.load(f'{tmp_path}/c/last.pt')['D'].items() if torch.equal(v, before['D'][k])}
        assert kept == {'b16.fromrgb.weight', 'b16.fromrgb.bias', 'b16.skip.weight',
                        *(f'b16.conv{i}.{p}' for i in (0, 1) for p in ('weight', 'bias'))}


def test_freezed_counts_layers_as_published():
    with torch.device('meta'):
        D = stylegan2.Discriminator(256)
    sizes = {n: p.numel() for n, p in D.named_parameters()}
    for count, trained in ((0, 24001089), (4, 23881857), (10, 21505025), (13, 16523265), (19, 6559745)):
        assert sum(sizes.values()) - sum(sizes[n] for n in transfer.freezed(D, count)) == trained
    assert transfer.freezed(D) == transfer.freezed(D, 13)


def test_scale_and_shift_of_the_published_network_trains_its_affines_and_biases():
    with torch.device('meta'):
        G = stylegan2.Generator(256)
    frozen, sizes = transfer.scaleshift(G), {n: p.numel() for n, p in G.named_parameters()}
    biases = sum(v for n, v in sizes.items() if n.startswith('synthesis') and n.endswith('.bias') and 'affine' not in n)
    affine = sum(v for n, v in sizes.items() if '.affine.' in n)
    assert sum(sizes.values()) - sum(sizes[n] for n in frozen) == affine + biases
    assert affine == 3801088 + sum(v for n, v in sizes.items() if n.endswith('affine.bias'))


# ---- refusals

@pytest.mark.parametrize('flags, words', [
    (['--d-pass', 'joint'], ['--d-pass', 'minibatch']), (['--mine-steps', '3'], ['--mine-steps 3', 'minegan']),
    (['--transfer', 'freezed'], ['--transfer freezed', '--init-from']), (['--cond'], ['--cond', 'one class']),
    (['--ema', '.99', '--ema-kimg', '3'], ['--ema 0.99', 'ema-kimg']), (['--r1', '-1'], ['--r1 -1']),
    (['--res', '24'], ['--res 24', 'power of two']),
    (['--freeze-layers', '3'], ['--freeze-layers 3', 'freezed']), (['--lecam-decay', '.5'], ['--lecam'])])
def test_flags_that_cannot_be_are_refused_in_a_sentence(capsys, flags, words):
    refused(capsys, lambda: args(*flags), *words)


@pytest.mark.parametrize('flags, words', [
    (['--transfer', 'freezed'], ['freezed', 'nothing at 16 px']), (['--mine-steps', '-1'], ['--mine-steps -1']),
    (['--transfer', 'freezed', '--freeze-layers', '9'], ['freeze-layers 9', '7 layers']),
    (['--transfer', 'freezed', '--freeze-layers', '-1'], ['freeze-layers -1'])])
def test_transfers_that_cannot_be_are_refused_in_a_sentence(capsys, source, flags, words):
    refused(capsys, lambda: args('--init-from', source, '--transfer', 'minegan', *flags), *words)


def test_no_ticket_is_found_through_a_miner(capsys, source):
    flags = ['stylegan2', *TINY, '--init-from', source, '--transfer', 'minegan']
    refused(capsys, lambda: find_ticket.get_args(flags), 'minegan', 'no part of a ticket')


def test_a_checkpoint_brings_its_shape_and_another_is_refused(capsys, source, tmp_path):
    a = train_stylegan2.get_args(['--data', 'emoji-faces', '--init-from', source, '--preset', 'demo'])
    assert (a.res, a.ch_g, a.ch_max) == (16, 256, 16)
    saved = loop.load(source)                                  # as NVIDIA's have it: the whole batch
    saved['args']['group'] = None
    torch.save(saved, tmp_path / 'whole.pt')
    a = args('--init-from', str(tmp_path / 'whole.pt'))
    assert a.group is None and train_stylegan2.build(a)[1].b4.group is None
    narrow = ['--init-from', source, '--ch-g', '128', '--steps', '1']
    refused(capsys, lambda: train(tmp_path / 'x', *narrow), 'does not fit G')
