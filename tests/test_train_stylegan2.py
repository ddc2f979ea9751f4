"""train_stylegan2.py end to end, tiny: recipes, a plain loop of the four phases, resume, tickets, transfer.

What two ranks do is in test_ranks.py."""
import copy
import functools
import json
import math
import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (TINY, all_refused, equal, find, parsed, pruned_weights_are_zero, records, refused,
                     same_checkpoints, same_runs, train)
from PIL import Image

import files
import find_ticket
import flat
import loop
import losses
import prune
import train_stylegan2
import trainer
from data import images
from models import stylegan2, transfer

LAZY = ['--r1-every', 2, '--pl', 2, '--pl-every', 3, '--r1', 1]

args = functools.partial(parsed, 'stylegan2')
train = functools.partial(train, 'stylegan2')
find = functools.partial(find, 'stylegan2')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A checkpoint to start from."""
    out = tmp_path_factory.mktemp('source') / 'run'
    train(out, '--steps', 2)
    return f'{out}/last.pt'


def job_of(out, *flags, prepare=lambda G, D: {}, lazy=None):
    """A training that has not begun."""
    return trainer.Training('stylegan2', args('--out', out, *flags), train_stylegan2.build, prepare, lazy)


# ---- recipes

FEWSHOT_SIZE = 30034338, 28864129            # parameters of G and of D at 256 px
RECIPES = [
    ('--data 100-shot-obama', FEWSHOT_SIZE, dict(
        preset='fewshot', res=256, batch=16, steps=18750, lr_g=2e-3, r1=10., r1_every=1, pl=0., mixing=.9,
        mirror=True, aug='diffaug', ema_kimg=10., loss='logistic', eval_samples=5000)),
    ('--data animalface-dog', FEWSHOT_SIZE, dict(preset='animalface', steps=31250)),
    ('--data cifar10 --frac 0.1', (19947539, 20720641), dict(
        preset='cifar', res=32, batch=64, r1=.01, pl=0., mixing=0., arch='orig', group=32, ema_kimg=500.)),
    ('--data cifar100 --cond', (20261395, 23135744), dict(classes=100)),
    ('--data ffhq --frac 1000', (24767458, 24001089), dict(
        preset='large', batch=32, r1=1., r1_every=16, pl=2.)),
    ('--data 100-shot-panda --preset paper', FEWSHOT_SIZE, dict(
        batch=5, lr_g=2e-4, lr_d=2e-4, steps=100000, r1=10.)),
]


@pytest.mark.parametrize('flags, counts, values', RECIPES)
def test_each_data_set_has_its_published_recipe_and_network(flags, counts, values):
    a = train_stylegan2.get_args(flags.split())
    assert {name: getattr(a, name) for name in values} == values
    nets = trainer.without_weights(train_stylegan2.build, a)
    assert tuple(sum(p.numel() for p in net.parameters()) for net in nets) == counts


def test_the_recipe_of_any_folder_follows_its_resolution():
    for res, batch, r1, ema in ((32, 32, .0064, 10), (64, 32, .0256, 10), (128, 32, .1024, 10),
                                (256, 16, .8192, 5), (512, 8, 6.5536, 2.5)):
        auto = train_stylegan2.auto(res)
        assert (auto['batch'], round(auto['r1'], 4), auto['ema_kimg']) == (batch, r1, ema)


def test_a_folder_alone_is_a_sensible_run(tmp_path, capsys, monkeypatch):
    rng, photos = np.random.default_rng(0), tmp_path / 'photos'
    photos.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(photos / f'{i}.png')
    a = train_stylegan2.get_args(['--data', str(photos)])
    assert (a.preset, a.res, a.aug, a.batch) == ('laptop', 32, 'diffaug', 8)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    a = train_stylegan2.get_args(['--data', str(photos)])
    assert (a.preset, a.res, a.aug, a.batch) == ('fewshot', 32, 'diffaug', 16)
    assert train_stylegan2.get_args(['--data', str(photos), '--device', 'cpu']).preset == 'laptop'
    monkeypatch.undo()
    small = '--steps 1 --ch-max 8 --batch 2 --metrics none'.split()
    flags = ['--data', str(photos), '--out', str(tmp_path / 'run'), *small]
    train_stylegan2.main(train_stylegan2.get_args(flags))
    said = capsys.readouterr().out
    assert 'because there is no GPU' in said and '--res 32' in said and '12 of 12 training images' in said
    assert {'reals.png', 'samples', 'log.jsonl', 'last.pt'} <= set(os.listdir(tmp_path / 'run'))

    def many(data, root):
        return {'train': (range(train_stylegan2.FEW + 1), None)}, None, None
    monkeypatch.setattr(images, 'source', many)
    for data, preset in ((str(photos), 'auto'), ('ffhq_mine', 'auto'), ('ffhq', 'large')):
        assert train_stylegan2.preset(data, '', gpu=True) == preset
    assert train_stylegan2.preset(str(photos), '', gpu=False) == 'laptop'


def test_a_converted_set_has_its_preset_by_its_number_of_images(tmp_path, monkeypatch):
    for n, preset in ((5000, 'fewshot'), (5001, 'auto')):
        split = {'n': n, 'labels': '', 'digest': '', 'skipped': []}
        about = {'res': 64, 'classes': ['a'], 'splits': {'train': split}}
        (tmp_path / 'set.json').write_text(json.dumps(about))
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        a = train_stylegan2.get_args(['--data', str(tmp_path)])
        assert (a.preset, a.res) == (preset, 64)


def test_settings_by_resolution_are_those_of_the_ticket(tmp_path):
    path = find(tmp_path / 'find', '--res', 64, '--ch-max', 8, '--frac', 12, '--batch', 2,
                '--method', 'random', '--rounds', 1, '--steps', 1)
    for flag in ('--mask', '--small-dense'):
        a = train_stylegan2.get_args(['--data', 'emoji-faces', '--preset', 'auto', flag, path])
        assert (a.res, a.batch, round(a.r1, 4), a.steps) == (64, 32, .0256, 781250)


def test_adam_is_slowed_where_a_regulariser_has_steps_of_its_own(tmp_path):
    lazy = {'G': train_stylegan2.lazy_factor(4), 'D': train_stylegan2.lazy_factor(16)}
    job = job_of(tmp_path / 'a', '--lr-g', .0025, '--lr-d', .0025, lazy=lazy)
    (G,), (D,) = job.G.adam.param_groups, job.D.adam.param_groups
    assert np.allclose((G['lr'], D['lr']), (.002, .00235294)), (G['lr'], D['lr'])
    assert np.allclose((*G['betas'], *D['betas']), (0, .991992, 0, .990585), atol=1e-6)
    assert train_stylegan2.lazy_factor(1) == 1                 # beside the loss: no step of its own


def test_the_average_has_its_half_life():
    for kimg, rampup, batch, seen, beta in ((10, [], 32, 10 ** 7, .997784), (500, [], 64, 0, .999911),
                                            (10, [], 8, 0, .999446), (10, ['--ema-rampup', .05], 32, 0, 0.),
                                            (10, ['--ema-rampup', .05], 32, 64000, .5 ** (32 / 3200))):
        a = args('--batch', batch, '--ema-kimg', kimg, *rampup, '--ema-start', 0)
        assert abs(train_stylegan2.decay(a, seen // batch + 1) - beta) < 1e-6
    a = args('--ema', .9, '--ema-start', 3)
    assert [train_stylegan2.decay(a, step) for step in (1, 3, 4, 99)] == [0, 0, .9, .9]


# ---- the loop

class PlainLoop:
    """The original's Gmain, Greg, Dmain, Dreg as a plain loop: one Adam per tensor, no flat vectors."""

    def __init__(self, args, dtype):
        self.args, self.dtype = args, dtype
        self.G, self.D = train_stylegan2.build(args)
        self.E = copy.deepcopy(self.G)
        self.adam_G = self.adam_of(self.G, args.lr_g, args.pl_every)
        self.adam_D = self.adam_of(self.D, args.lr_d, args.r1_every)
        self.x = images.load(args.data, args.root, args.frac, res=args.res).images
        self.length = torch.zeros(())

    def adam_of(self, net, lr, every):
        c = every / (every + 1)
        return torch.optim.Adam(net.parameters(), lr * c, (0., .99 ** c), 1e-8)

    def update(self, net, adam, loss):
        for p in [*self.G.parameters(), *self.D.parameters()]:
            p.grad, p.requires_grad = torch.zeros_like(p), False
        for p in net.parameters():
            p.requires_grad = True
        loss().backward()                                      # no gradient (biases): 0, as in TensorFlow
        adam.step()

    def latents(self, rng):
        z = rng.standard_normal((self.args.batch, self.G.z_dim), 'float32')
        return torch.from_numpy(z).to(self.dtype)

    def path_length(self, z):
        w, G2 = self.G.split(z[:self.args.batch // 2], cut=1)
        image = G2(w)
        y = torch.randn_like(image) / self.args.res
        g, = torch.autograd.grad((image * y).sum(), w, create_graph=True)
        lengths = g.square().sum(2).mean(1).sqrt()
        mean = self.length + .01 * (lengths.mean() - self.length)
        self.length = mean.detach()
        return self.args.pl_every * self.args.pl * ((lengths - mean) ** 2).mean()

    def r1(self, real):
        inputs = real.clone().requires_grad_(True)
        g, = torch.autograd.grad(self.D(inputs).sum(), inputs, create_graph=True)
        return self.args.r1_every * self.args.r1 / 2 * g.square().sum((1, 2, 3)).mean()

    def step(self, step):
        a, G, D = self.args, self.G, self.D
        torch.manual_seed(int(loop.rng(a.seed, 'device', step, 0).integers(2 ** 62)))
        z = self.latents(loop.rng(a.seed, 'G', step))
        self.update(G, self.adam_G, lambda: F.softplus(-D(G(z))).mean())
        if (step - 1) % a.pl_every == 0:
            z_pl = self.latents(loop.rng(a.seed, 'pl', step))
            self.update(G, self.adam_G, lambda: self.path_length(z_pl))

        rng = loop.rng(a.seed, 'D', step, 0)
        rng.random(a.batch)                                    # flips
        z_d = self.latents(rng)
        rows = loop.order(len(self.x), (step - 1) * a.batch, a.batch, a.seed)
        real = images.batch(self.x[rows]).to(self.dtype)

        def d_main():
            return F.softplus(D(G(z_d).detach())).mean() + F.softplus(-D(real)).mean()
        self.update(D, self.adam_D, d_main)
        if (step - 1) % a.r1_every == 0:
            self.update(D, self.adam_D, lambda: self.r1(real))
        for e, g in zip(self.E.parameters(), G.parameters()):
            e.data.lerp_(g.data, 1 - train_stylegan2.decay(a, step))


def test_seven_steps_equal_a_plain_loop_of_the_four_phases(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.Observer, 'notes', lambda self: {})
    flags = [*LAZY, '--aug', 'none', '--steps', 7, '--mixing', .9, '--log-every', 100, '--ema-kimg', .1,
             '--ema-start', 0]
    torch.set_default_dtype(torch.float64)
    try:
        train(tmp_path / 'a', *flags)
        plain = PlainLoop(args(*flags), torch.float64)
        for step in range(1, 8):
            plain.step(step)
    finally:
        torch.set_default_dtype(torch.float32)
    saved = files.load(tmp_path / 'a/last.pt')
    for name, net in (('G', plain.G), ('D', plain.D), ('E', plain.E)):
        for key, value in net.named_parameters():
            gap = (saved[name][key] - value).abs().max().item()
            assert gap < 1e-10, (name, key, gap)
    assert abs(saved['state']['pl']['mean'] - plain.length) < 1e-10 and plain.length > 0


def test_path_length_of_every_step_is_added_to_the_loss(tmp_path, monkeypatch):
    seen, update = [], flat.Flat.update

    def spy(self, f, parts, keep=False):
        seen.append(f.__name__)
        update(self, f, parts, keep)
    monkeypatch.setattr(flat.Flat, 'update', spy)
    for advaug in ('none', 'g'):
        flags = ['--pl', 2, '--pl-every', 1, '--r1-every', 1, '--steps', 2, '--advaug', advaug]
        G, _ = train(tmp_path / advaug, *flags)
        assert records(tmp_path / advaug / 'log.jsonl')[-1]['R_pl'] > 0
        assert files.load(tmp_path / advaug / 'last.pt')['state']['pl']['mean'] > 0
        assert set(seen) == {'g_step', 'd_step'} and all(p.isfinite().all() for p in G.parameters())


def test_D_is_watched_on_whole_groups_and_the_miner_is_of_the_seed(source, tmp_path):
    job = job_of(tmp_path / 'groups')
    assert len(job.data.holdout) == 17 and len(job.observer.seen['held'][0]) == 16
    miners = []
    for i, seed in enumerate((0, 0, 1)):
        job = job_of(tmp_path / str(i), '--seed', seed, '--init-from', source, '--transfer', 'minegan',
                     prepare=lambda G, D: transfer.prepare_('minegan', G, D))
        miners.append(job.G.net.miner[0].weight.detach())
    assert torch.equal(miners[0], miners[1]) and not torch.equal(miners[0], miners[2])


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


# ---- resume, precision, memory

EVERYTHING = [*LAZY, '--aug', 'ada', '--ada-kimg', .1, '--advaug', 'gd', '--lecam', '--lecam-start', 1,
              '--mirror']


def all_finite(path):
    """Whether every number of a log is finite."""
    return all(math.isfinite(value) for record in records(path) for value in record.values())


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    """ADA's controller, LeCam's anchors and the mean of the path length."""
    flags = [*EVERYTHING, '--log-every', 3]
    train(tmp_path / 'whole', *flags, '--steps', 6)
    for steps in (3, 6):                                       # 3: between two adjustments of p
        train(tmp_path / 'cut', *flags, '--steps', steps)
    same_runs(tmp_path / 'whole', tmp_path / 'cut')
    assert all_finite(tmp_path / 'whole/log.jsonl')
    state = files.load(tmp_path / 'whole/last.pt')['state']
    assert state['pl']['mean'] > 0 and state['lecam']['anchors'].all() and state['ada']['r']


@pytest.mark.parametrize('flags', [
    '--batch 1', '--batch 5 --batch-gpu 5', '--batch-gpu 4', '--precision bf16', '--cond --data emoji',
    '--aug diffaug --mirror --loss hinge --adv-cut-g 2 --adv-cut-d 1'])
def test_odd_batches_bf16_classes_and_cuts_train_to_finite_numbers(tmp_path, flags):
    G, _ = train(tmp_path / 'a', *LAZY, '--advaug', 'gd', '--steps', 2, *flags.split())
    assert all(p.isfinite().all() for p in G.parameters()) and all_finite(tmp_path / 'a/log.jsonl')


@pytest.mark.slow
def test_the_micro_batch_is_halved_until_it_fits_and_nothing_else_changes(tmp_path, monkeypatch, capsys):
    """What the trial moves is put back: ADA's sums and p, LeCam's anchors, the path length, BN and noise."""
    flags = [*EVERYTHING, '--steps', 3, '--mixing', 0]
    train(tmp_path / 'asked', *flags, '--batch-gpu', 2)
    backward = flat.Flat.backward

    def small(self, f, parts):
        if parts[0].stop - parts[0].start > 2:
            raise torch.OutOfMemoryError
        return backward(self, f, parts)
    monkeypatch.setattr(flat.Flat, 'backward', small)
    monkeypatch.setattr(trainer, 'memory_is_short', lambda job: True)
    train(tmp_path / 'found', *flags)
    assert '--batch-gpu 2' in capsys.readouterr().out
    a, b = (files.load(tmp_path / name / 'last.pt') for name in ('asked', 'found'))
    assert b['args']['batch_gpu'] == 2
    for key in ('G', 'D', 'E', 'opt', 'state'):
        assert equal(a[key], b[key]), key


# ---- tickets

@pytest.mark.slow
def test_tickets_are_found_with_effective_weights_and_stay_pruned(tmp_path):
    path = find(tmp_path / 'find', '--rounds', 2, '--steps', 2)
    ticket, dense = files.load(path), files.load(tmp_path / 'find/ticket0.pt')
    for name, masks in ticket['mask'].items():
        assert prune.alive(masks) == prune.alive_after(prune.alive(dense['mask'][name]), .2, 2)
        assert all(ticket['init'][name][key].dim() == 4 for key in masks)
    train(tmp_path / 'ticket', *LAZY, '--mask', path, '--steps', 2, '--advaug', 'gd')
    pruned_weights_are_zero(files.load(tmp_path / 'ticket/last.pt'), ticket['mask'])

    # ranked by raw times gain: shared thresholds in effective weights
    trained = files.load(tmp_path / 'find/round0/last.pt')['G']
    first = files.load(tmp_path / 'find/ticket1.pt')['mask']['G']
    gain = stylegan2.effective_gain(train_stylegan2.build(args())[0])
    weights = {key: trained[key].abs() * gain[key] for key in first}
    gone = torch.cat([weights[key][~keep] for key, keep in first.items()])
    left = torch.cat([weights[key][keep] for key, keep in first.items()])
    assert gone.max() <= left.min()


def test_pretrained_weights_can_be_theta_0(tmp_path, source):
    ticket = files.load(find(tmp_path / 'find', '--rounds', 1, '--steps', 1, '--init-from', source))
    weights = files.load(source)
    assert all(equal(ticket['init'][name], weights[name]) for name in 'GD')


# ---- transfer

def changed(before, after):
    """{G, D: names of the tensors} that a training moved or added."""
    names = {}
    for name in 'GD':
        old, new = before[name], after[name]
        names[name] = {key for key in new if key not in old or not torch.equal(new[key], old[key])}
    return names


MINER = {f'miner.{i}.{part}' for i in (0, 2) for part in ('weight', 'bias')}
FIRST = {'b16.fromrgb.weight', 'b16.fromrgb.bias'}
BLOCK = {'b16.skip.weight', 'b16.conv0.weight', 'b16.conv0.bias', 'b16.conv1.weight', 'b16.conv1.bias'}


@pytest.mark.slow
@pytest.mark.parametrize('mode', transfer.MODES)
def test_each_transfer_trains_what_it_should_and_nothing_else(tmp_path, source, mode):
    more = {'minegan': ['--mine-steps', 2], 'freezed': ['--freeze-layers', 1]}.get(mode, [])
    flags = [*LAZY, '--init-from', source, '--transfer', mode, *more]
    train(tmp_path / 'a', *flags, '--steps', 2)
    before = files.load(source)
    moved = changed(before, files.load(tmp_path / 'a/last.pt'))
    G, D = ({key for key, _ in net.named_parameters()} for net in train_stylegan2.build(args()))
    affine = {key for key in G if '.affine.' in key or re.search(r'(conv\d|torgb)\.bias', key)}
    expected = {'finetune': G, 'freezed': G, 'minegan': MINER, 'scaleshift': affine}
    assert moved['G'] - {'mapping.w_avg'} == expected[mode]
    assert moved['D'] == D - (FIRST if mode == 'freezed' else set())

    if mode == 'minegan':                                      # stage two, begun and continued by a resume
        for steps in (3, 4):
            train(tmp_path / 'a', *flags, '--steps', steps)
        train(tmp_path / 'b', *flags, '--steps', 4)
        same_checkpoints(tmp_path / 'a', tmp_path / 'b')
        assert G <= changed(before, files.load(tmp_path / 'a/last.pt'))['G']
    if mode == 'freezed':
        train(tmp_path / 'c', *flags, '--freeze-layers', 4, '--steps', 1)
        assert set(D) - changed(before, files.load(tmp_path / 'c/last.pt'))['D'] == FIRST | BLOCK


def test_freezed_counts_layers_as_published():
    with torch.device('meta'):
        D = stylegan2.Discriminator(256)
    sizes = {name: p.numel() for name, p in D.named_parameters()}
    for count, trained in ((0, 24001089), (4, 23881857), (10, 21505025), (13, 16523265), (19, 6559745)):
        assert sum(sizes.values()) - sum(sizes[name] for name in transfer.freezed(D, count)) == trained
    assert transfer.freezed(D) == transfer.freezed(D, 13)


def test_scale_and_shift_of_the_published_network_trains_its_affines_and_biases():
    with torch.device('meta'):
        G = stylegan2.Generator(256)
    frozen, sizes = transfer.scaleshift(G), {name: p.numel() for name, p in G.named_parameters()}
    affine = sum(size for name, size in sizes.items() if '.affine.' in name)
    biases = sum(size for name, size in sizes.items()
                 if name.startswith('synthesis') and name.endswith('.bias') and 'affine' not in name)
    assert sum(sizes.values()) - sum(sizes[name] for name in frozen) == affine + biases
    assert affine == 3801088 + sum(size for name, size in sizes.items() if name.endswith('affine.bias'))


# ---- refusals

def test_flags_and_transfers_that_cannot_be_are_refused_in_a_sentence(capsys, source, tmp_path):
    mine = ['--init-from', source, '--transfer', 'minegan']
    freeze = ['--init-from', source, '--transfer', 'freezed']
    all_refused(capsys, lambda flags: args(*flags), [
        (['--d-pass', 'joint'], ['--d-pass', 'minibatch']),
        (['--mine-steps', 3], ['--mine-steps 3', 'minegan']),
        (['--transfer', 'freezed'], ['--transfer freezed', '--init-from']),
        (['--cond'], ['--cond', 'one class']), (['--ema', .99, '--ema-kimg', 3], ['--ema 0.99', 'ema-kimg']),
        (['--r1', -1], '--r1 -1'), (['--mixing', 2], '--mixing 2'), (['--pl-every', 0], '--pl-every 0'),
        (['--res', 24], ['--res 24', 'power of two']),
        (['--freeze-layers', 3], ['--freeze-layers 3', 'freezed']), (['--lecam-decay', .5], '--lecam'),
        ([*freeze], ['freezed', 'nothing at 16 px']), ([*mine, '--mine-steps', -1], '--mine-steps -1'),
        ([*freeze, '--freeze-layers', 9], ['freeze-layers 9', '7 layers']),
        ([*freeze, '--freeze-layers', -1], 'freeze-layers -1'),
        ([*mine, '--mask', 'x.pt'], 'no part of a ticket')])
    words = [str(word) for word in ('stylegan2', *TINY['stylegan2'], *mine)]
    refused(capsys, lambda: find_ticket.get_args(words), 'minegan', 'no part of a ticket')
    narrow = ['--init-from', source, '--ch-g', 128, '--steps', 1]
    refused(capsys, lambda: train(tmp_path / 'x', *narrow), 'does not fit G')


def test_a_checkpoint_brings_its_shape(source, tmp_path):
    a = train_stylegan2.get_args(['--data', 'emoji-faces', '--init-from', source, '--preset', 'demo'])
    assert (a.res, a.ch_g, a.ch_max) == (16, 256, 16)
    saved = files.load(source)                                  # as NVIDIA's have it: the whole batch
    saved['args']['group'] = None
    torch.save(saved, tmp_path / 'whole.pt')
    a = args('--init-from', tmp_path / 'whole.pt')
    assert a.group is None and train_stylegan2.build(a)[1].b4.group is None
