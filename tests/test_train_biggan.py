"""train_biggan.py end to end, tiny: presets, classes, twenty updates against a plain loop, tickets, ranks, refusals."""
import copy
import functools
import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_biggan import slow_D, slow_G
from test_scripts import equal, process, same_when_killed_in_round_1

import find_ticket
import gan
import generate
import loop
import losses
import prune
import report
import train_biggan
import train_sngan
from data import images

TINY = ['--data', 'emoji', '--frac', '60', '--ch-g', '8', '--ch-d', '8', '--batch', '8', '--d-steps', '1', '--metrics',
        'none', '--log-every', '2', '--device', 'cpu', '--precision', 'fp32']
METHOD = ['--aug', 'diffaug', '--advaug', 'gd']


def train(out, *flags):
    return train_biggan.main(train_biggan.get_args([*TINY, '--out', str(out), *flags]))


def find(out, *flags):
    return find_ticket.main(find_ticket.get_args(['biggan', *TINY, '--out', str(out), '--ticket', f'{out}.pt', *flags]))


def refused(capsys, call, *words):
    with pytest.raises(SystemExit) as e:
        call()
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count('\n') == 1 and all(w in error for w in words), error


@pytest.fixture(scope='module')
def ticket(tmp_path_factory):
    out = tmp_path_factory.mktemp('find') / 'find'
    find(out, '--rounds', '2', '--steps', '2')
    return f'{out}.pt'


# ---- flags

@pytest.mark.parametrize('flags, values', [
    (['--data', 'cifar10'], dict(preset='cifar10', classes=10, res=32, batch=64, d_steps=5, steps=100000, lr_g=2e-4,
                                 lr_d=2e-4, betas=[.5, .999], adam_eps=1e-6, ema=.9999, ema_start=1000, mirror=True,
                                 ch_g=96, ch_d=96, adv_step=.01, protocol='cifar', eval_samples=10000, ref='test')),
    (['--data', 'cifar100'], dict(preset='cifar100', classes=100, res=32, batch=64, is_bias=True, is_splits=1)),
    (['--data', 'cifar10', '--lr-g', '1e-3', '--no-mirror', '--ref', 'train', '--betas', '0', '.9'],
     dict(lr_g=1e-3, lr_d=2e-4, mirror=False, ref='train', betas=[0., .9])),
    (['--data', 'fashion-mnist'], dict(preset='demo', classes=10, ch_g=16, protocol=None)),
    (['--data', 'cifar10', '--aug', 'ada'], dict(ada_target=.2, ada_kimg=1000, aug_policy='bgc')),
    (['--data', 'cifar10', '--aug', 'ada', '--ada-heuristic', 'rv'], dict(ada_target=.5)),
    (['--data', 'cifar10', '--aug', 'ada', '--ada-heuristic', 'rv', '--ada-target', '.2'], dict(ada_target=.2)),
    (['--data', 'fashion-mnist', '--preset', 'tiny-imagenet', '--narrow'], dict(
        preset='tiny-imagenet', res=64, batch=256, d_steps=1, lr_g=1e-4, lr_d=4e-4, betas=[0., .999], ema_start=20000,
        adv_step=.001, ch_g=80, narrow=True)),
    (['--data', 'fashion-mnist', '--preset', 'imagenet'], dict(
        res=128, batch=256, d_steps=2, lr_g=5e-5, lr_d=2e-4, ema_start=20000, adv_step=.001, ch_d=96)),
])
def test_a_preset_holds_the_values_of_the_released_code(flags, values):
    args = vars(train_biggan.get_args(flags))
    assert {k: args[k] for k in values} == values


def test_the_preset_of_a_folder_follows_its_resolution_or_that_of_its_ticket(tmp_path, ticket):
    for c in 'ab':
        os.makedirs(tmp_path / c)
        Image.new('RGB', (20, 20)).save(tmp_path / c / '1.png')
    for flags, name in ([], 'cifar10'), (['--res', '64'], 'tiny-imagenet'), (['--res', '128'], 'imagenet'):
        args = train_biggan.get_args(['--data', str(tmp_path), *flags])
        assert (args.preset, args.res, args.classes) == (name, train_biggan.PRESETS[name]['res'], 2)
    saved = loop.load(ticket)
    args = train_biggan.get_args(['--data', str(tmp_path), '--res', '64', '--ch-g', '8', '--ch-d', '8'])
    G, D = train_biggan.build(args)
    of = {'args': vars(args), 'init': {'G': G.state_dict(), 'D': D.state_dict()}, 'mask': {'G': {}, 'D': {}}}
    torch.save({**saved, **of}, tmp_path / 't.pt')
    args = train_biggan.get_args(['--data', str(tmp_path), '--mask', str(tmp_path / 't.pt')])
    assert (args.preset, args.res, args.batch, args.ch_g) == ('tiny-imagenet', 64, 256, 8)


def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, ticket, capsys):
    for c in 'ab':
        os.makedirs(tmp_path / 'two' / c)
        Image.new('RGB', (20, 20)).save(tmp_path / 'two' / c / '1.png')
    two, call = str(tmp_path / 'two'), train_biggan.get_args
    refused(capsys, lambda: call(['--data', f'{two}/a']), 'one class', 'train_sngan.py')
    shutil.copytree(two, tmp_path / 'split' / 'train'), shutil.copytree(two, tmp_path / 'split' / 'val')
    refused(capsys, lambda: call(['--data', str(tmp_path / 'split')]), 'train, val', 'split/train')
    shutil.copy(f'{two}/a/1.png', tmp_path / 'split' / 'train' / 'stray.png')
    refused(capsys, lambda: call(['--data', str(tmp_path / 'split' / 'train')]), "('.') lie beside")
    refused(capsys, lambda: call(['--data', 'emoji-faces']), 'one class', 'train_sngan.py')
    refused(capsys, lambda: call([*TINY, '--res', '48']), '--res 48')
    refused(capsys, lambda: call([*TINY, '--narrow', '--res', '32']), '--res 32, narrow True')
    refused(capsys, lambda: call([*TINY, '--narrow']), '--res 32, narrow True')
    refused(capsys, lambda: call([*TINY, '--mask', ticket, '--relu-shortcut']), '--relu-shortcut', ticket)
    refused(capsys, lambda: call([*TINY, '--ch-d', '4']), '--ch-d 4', 'below 8')
    refused(capsys, lambda: call(['--data', two, '--mask', ticket]), '9 classes', 'has 2')
    refused(capsys, lambda: call([*TINY, '--mask', ticket, '--ch-g', '16']), 'does not fit G')
    refused(capsys, lambda: call([*TINY, '--advaug', 'd', '--adv-cut-d', '8']), '--adv-cut-d 8', '7 stages')
    refused(capsys, lambda: call([*TINY, '--betas', '.5', '1']), '--betas 1.0')
    refused(capsys, lambda: train_sngan.get_args([*TINY, '--mask', ticket]), 'train_biggan.py')
    for i in range(2):
        Image.new('RGB', (20, 20)).save(tmp_path / 'two' / 'a' / f'{i + 2}.png')
    refused(capsys, lambda: train(tmp_path / 'o', '--data', two, '--subset', 'first', '--frac', '2'), '1 of 2 classes')


# ---- classes

def test_generated_classes_are_balanced_over_the_whole_batch_and_shared_by_the_ranks(monkeypatch):
    y = gan.balanced(np.random.default_rng(0), 64, 10)
    assert sorted(y.bincount().tolist()) == [6] * 6 + [7] * 4
    halves = []
    for rank in range(2):
        monkeypatch.setenv('RANK', str(rank)), monkeypatch.setenv('WORLD_SIZE', '2')
        halves.append(gan.balanced(np.random.default_rng(0), 64, 10))
    assert torch.equal(torch.cat(halves), y)
    assert gan.balanced(np.random.default_rng(0), 8, 1000).unique().shape == (4,)      # this rank's half, all different


def test_scores_see_the_classes_in_the_shares_of_the_training_images():
    labels = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    y = gan.proportional(labels, 1000, 0)
    assert y.bincount().tolist() == [100, 300, 600] and not torch.equal(y, y.sort().values)
    assert not torch.equal(y, gan.proportional(labels, 1000, 1)) and torch.equal(y, gan.proportional(labels, 1000, 0))
    assert gan.proportional(labels, 7, 0).bincount().tolist() == [1, 2, 4]


def test_every_image_meets_D_with_its_own_class(tmp_path, monkeypatch):
    seen = []
    plain = gan.d_loss

    def spy(D, real, fake, args, sums, y, y_fake):
        seen.append((real.clone(), y.clone(), y_fake.clone()))
        return plain(D, real, fake, args, sums, y, y_fake)
    monkeypatch.setattr(gan, 'd_loss', spy)
    train(tmp_path, '--steps', '9', '--no-mirror')
    data = images.load('emoji', frac=60, plain=True)
    at = {x.numpy().tobytes(): c for x, c in zip(data.images, data.labels.tolist())}
    for x, y, y_fake in seen:
        x = ((x + 1) * 127.5).round().byte()
        assert [at[i.contiguous().numpy().tobytes()] for i in x] == y.tolist() and len(set(y_fake.tolist())) == 8
    rows = torch.cat([x for x, _, _ in seen])[:60].flatten(1).unique(dim=0)
    assert len(rows) == len(data.images.flatten(1).unique(dim=0))                  # an epoch shows every image


def test_samples_and_reals_have_a_row_per_class_and_generate_makes_the_same(tmp_path, capsys, monkeypatch):
    train(tmp_path / 'run', '--steps', '2')
    reals, grid = (np.asarray(Image.open(tmp_path / 'run' / name)) for name in ('reals.png', 'samples/000002.png'))
    assert grid.shape == (9 * 32, 8 * 32, 3) and reals.shape[1] == 256
    monkeypatch.setattr(generate.loop, 'settling', functools.partial(loop.settling, batches=2))    # 64 take a minute
    x = generate.main(generate.get_args([str(tmp_path / 'run'), '--out', str(tmp_path / 'g.png')]))
    assert x.shape == (72, 3, 32, 32) and Image.open(tmp_path / 'g.png').size == (256, 288)
    each = ['--classes', '2,Flags', '--seeds', '0-2', '--each', str(tmp_path / 'each')]
    generate.main(generate.get_args([str(tmp_path / 'run'), *each]))
    names = json.load(open(tmp_path / 'run' / 'subset.json'))['classes']
    flags = names.index('Flags')
    assert sorted(os.listdir(tmp_path / 'each')) == [f'{c:04d}-{names[c]}' for c in (2, flags)]
    for c, seed in ((2, 1), (flags, 2)):
        one = np.asarray(Image.open(tmp_path / 'each' / f'{c:04d}-{names[c]}' / f'{seed:06d}.png')).astype(int)
        assert abs(one.transpose(2, 0, 1) - x[c * 8 + seed].numpy()).max() <= 1    # round-off of another batch
    call = lambda *a: generate.main(generate.get_args([str(tmp_path / 'run'), *a]))
    refused(capsys, lambda: call('--classes', '9'), '--classes 9', '0-8')
    refused(capsys, lambda: call('--classes', 'Cars'), 'Cars', 'Flags')
    shown = x.view(9, 8, 3, 32, 32).float()
    assert (shown[0] - shown[1]).abs().mean() > 0                                 # the class reaches the image


def test_a_conditional_score_is_recorded_with_its_protocol_and_stands_in_the_report(tmp_path, ticket):
    score = ['--metrics', 'fid,copy', '--features', 'effnet', '--eval-samples', '20', '--eval-repeats', '2',
             '--steps', '2', '--eval-every', '1', '--cache', 'none']
    train(tmp_path / 'dense', *score)
    train(tmp_path / 'ticket', *score, *METHOD, '--mask', ticket)
    record = loop.lines(tmp_path / 'dense' / 'metrics.jsonl')[-1]
    assert record['protocol']['classes'] == 'as often as in the training images' and np.isfinite(record['all'])
    log = loop.lines(tmp_path / 'dense' / 'log.jsonl')[-1]
    assert 0 <= log['acc_held'] <= 1 and {'D_train', 'D_held', 'D_gen', 'L_G'} < log.keys()
    page = open(report.main(report.get_args([str(tmp_path)]))).read()
    assert '| dense | 2 |' in page and 'ticket 36.0' in page


def test_a_converted_imagenet_trains_scores_and_brings_its_protocol(tmp_path):
    rng = np.random.default_rng(0)
    for split, wnid, i in ((s, w, i) for s in ('train', 'val') for w in ('n01', 'n02', 'n03') for i in range(6)):
        os.makedirs(tmp_path / 'raw' / split / wnid, exist_ok=True)
        x = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
        x.save(tmp_path / 'raw' / split / wnid / f'{i}.JPEG')
    images.convert('imagenet', str(tmp_path / 'raw'), 32)
    flags = ['--data', 'imagenet', '--root', str(tmp_path / 'raw'), '--res', '32', *TINY[4:], '--frac', '.5',
             '--steps', '2', '--metrics', 'fid,copy', '--features', 'effnet', '--eval-samples', '12', '--cache', 'none',
             '--eval-repeats', '1', '--out', str(tmp_path / 'run')]
    args = train_biggan.get_args(flags)
    assert (args.preset, args.protocol, args.classes, args.ref, args.adv_step) == (
        'imagenet', 'imagenet', 3, 'test', .001)
    train_biggan.main(args)
    record, = loop.lines(tmp_path / 'run' / 'metrics.jsonl')
    assert record['protocol']['ref'] == 'imagenet-test' and record['protocol']['n_ref']['all'] == 18
    subset = json.load(open(tmp_path / 'run' / 'subset.json'))
    assert subset['classes'] == ['n01', 'n02', 'n03'] and len(subset['index']) == 9
    train_biggan.main(train_biggan.get_args([*flags, '--steps', '3']))                # goes on from the second


# ---- the loop against a plain one

@pytest.mark.parametrize('d_pass, relu_shortcut, rho', [('separate', True, 0), ('joint', False, .5)])
def test_twenty_iterations_equal_a_plain_loop(d_pass, relu_shortcut, rho):
    """The released layers and losses, one Adam per tensor, same classes; in float64, where nothing else can differ."""
    args = train_biggan.get_args([*TINY, '--d-pass', d_pass, *(['--relu-shortcut'] if relu_shortcut else [])])
    G, D = (net.double() for net in train_biggan.build(args))
    with torch.no_grad():
        G.attention.gamma.fill_(.5), D.attention.gamma.fill_(.5)
    masks = {n: prune.magnitude(net, prune.ones(net), rho) if rho else {} for n, net in (('G', G), ('D', D))}
    pG, pD = prune.apply_(copy.deepcopy(G), masks['G']), prune.apply_(copy.deepcopy(D), masks['D'])
    share = d_pass == 'joint'
    G, D = (loop.Flat(net.to(memory_format=torch.channels_last), 2e-4, (.5, .999), 1e-6, mask=m, share_sn=share)
            for net, m in ((G, masks['G']), (D, masks['D'])))
    adam = {id(net): torch.optim.Adam(net.parameters(), 2e-4, (.5, .999), 1e-6) for net in (pG, pD)}
    sums = loop.Sums('cpu', *gan.SUMS)
    context = lambda: loop.autocast(args, torch.device('cpu'))

    def step(net, loss, mask):
        net.zero_grad()
        loss.backward()
        for name, p in net.named_parameters():
            p.grad *= mask.get(name, 1)
        adam[id(net)].step()
    for i in range(20):
        rng = torch.Generator().manual_seed(i)
        x = (torch.rand(8, 3, 32, 32, generator=rng) * 2 - 1).double()
        z, y, y_fake = torch.randn(8, 80, generator=rng).double(), *torch.randint(9, (2, 8), generator=rng)
        D.update(lambda part, x=x, z=z, y=y, y_fake=y_fake: gan.d_loss(
            D.net, x, G.net(z, y_fake), args, sums, y, y_fake))
        with torch.nn.utils.parametrize.cached() if share else torch.enable_grad():
            fake = slow_G(pG, z, y_fake).detach()
            if share:
                real, fake = slow_D(pD, torch.cat((x, fake)), torch.cat((y, y_fake))).chunk(2)
            else:
                real, fake = slow_D(pD, x, y), slow_D(pD, fake, y_fake)
            step(pD, F.relu(1 - real).mean() + F.relu(1 + fake).mean(), masks['D'])
        G.update(lambda part, z=z, y=y_fake: gan.g_loss(G.net, D.net, z, args, sums, context, y))
        with torch.nn.utils.parametrize.cached() if share else torch.enable_grad():
            step(pG, -slow_D(pD, slow_G(pG, z, y_fake), y_fake).mean(), masks['G'])
    for name, fast, slow in (('G', G.net, pG), ('D', D.net, pD)):
        for (key, a), b in zip(fast.state_dict().items(), slow.state_dict().values(), strict=True):
            if 'running' not in key and 'tracked' not in key:                      # the slow BN keeps none
                assert (a - b).abs().max() < 1e-7, (name, key)


@pytest.mark.parametrize('loss', losses.LOSSES)
@pytest.mark.parametrize('flags', [[], METHOD, ['--advaug', 'gd', '--adv-noise', '.01'],
                                   ['--advaug', 'gd', '--adv-cut-g', '3', '--adv-cut-d', '2', '--d-pass', 'separate'],
                                   ['--batch-gpu', '4', '--advaug', 'g', '--adv-pgd', '2']])
def test_every_kind_of_training_runs_and_moves_both_networks(tmp_path, flags, loss):
    before = {n: net.state_dict() for n, net in zip('GD', train_biggan.build(train_biggan.get_args(TINY)))}
    G, D = train(tmp_path, '--steps', '2', '--loss', loss, *flags)
    for name, net in (('G', G), ('D', D)):
        after = net.state_dict()
        assert all(torch.isfinite(v).all() for v in after.values())
        moved = [k for k, v in before[name].items() if v.dim() > 1 and not torch.equal(after[k], v)]
        still = {k for k, v in before[name].items() if v.dim() > 1} - {*moved}
        assert all('attention' in k for k in still), still                         # behind gamma = 0 at first


def test_micro_batches_of_D_with_classes_and_AdvAug_equal_the_big_batch():
    args = train_biggan.get_args([*TINY, '--advaug', 'd'])
    G, D = train_biggan.build(args)
    sums = loop.Sums('cpu', *gan.SUMS)
    x, fake, y = torch.rand(8, 3, 32, 32) * 2 - 1, torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8)
    gradients = []
    for micro in (8, 2):
        flat = loop.Flat(copy.deepcopy(D), 1e-3)
        flat.update(lambda p, flat=flat: gan.d_loss(flat.net, x[p], fake[p], args, sums, y[p], y[p]),
                    loop.parts(8, micro))
        gradients.append(flat.g.clone())
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


def test_AdvAug_at_the_last_layer_of_D_shifts_the_logit_of_each_class_by_its_constant():
    """The head is linear: delta = -+ step sign(w + e(y)), so that logits move by step |w + e(y)|_1."""
    args = train_biggan.get_args([*TINY, '--advaug', 'd'])
    _, D = train_biggan.build(args)
    D.eval()
    x, y = torch.rand(9, 3, 32, 32) * 2 - 1, torch.arange(9)
    h, D2 = D.split(x, y, args.adv_cut_d)
    moved = D2(gan.perturb(h, lambda h: D2(h), args)) - D2(h)
    closed = .01 * (D.linear.weight + D.embed.weight).abs().sum(1)
    assert (moved - closed).abs().max() < 1e-3 * closed.max()                      # fp32 near logits of 40


def test_the_average_is_G_itself_up_to_its_start(tmp_path):
    for steps, same in (('3', True), ('4', False)):
        G, _ = train(tmp_path / steps, '--steps', steps, '--ema-start', '3', '--ema', '.9')
        E = loop.load(tmp_path / steps / 'last.pt')['E']
        assert equal(E, dict(G.state_dict())) == same


# ---- tickets

def test_a_ticket_is_complete_exactly_sparse_and_rewound_bit_for_bit(tmp_path, ticket):
    t, dense = loop.load(ticket), loop.load(ticket.replace('find.pt', 'find/ticket0.pt'))
    args = train_biggan.get_args(TINY)
    for name, net in zip('GD', train_biggan.build(args)):
        alive, total = (sum(int(x.sum()) if kind == 'alive' else x.numel() for x in t['mask'][name].values())
                        for kind in ('alive', 'total'))
        one = total - int(.2 * total)
        assert alive == one - int(.2 * one)
        assert equal(t['init'][name], dict(net.state_dict())) and equal(t['init'][name], dense['init'][name])
    train(tmp_path, '--data', 'emoji', '--mask', ticket, '--steps', '3', *METHOD)
    saved = loop.load(tmp_path / 'last.pt')
    for name in 'GDE':
        for n, keep in t['mask'].get(name, t['mask']['G']).items():
            assert not saved[name][n][~keep].any() and saved[name][n][keep].any(), (name, n)
    assert saved['args']['classes'] == 9 and not any(saved[n]['shared.weight'].eq(0).all() for n in 'GE')


def test_ticket_finding_resumes_in_the_middle_of_a_round_bit_for_bit(tmp_path):
    flags = ['--rounds', '2', '--steps', '12', '--save-every', '3', *METHOD, '--ema-start', '2']
    same_when_killed_in_round_1(tmp_path, find, 'biggan', *TINY, *flags)


@pytest.mark.parametrize('flags', [[], ['--sync-bn', '--batch-gpu', '2', *METHOD]])
def test_two_ranks_find_the_same_ticket_and_score_together(tmp_path, flags):
    """find_ticket.py asserts that the ranks' masks are equal, bit for bit, whenever it writes a ticket."""
    common = ['biggan', *TINY, '--steps', '2', '--rounds', '2', '--metrics', 'fid', '--features', 'effnet',
              '--eval-samples', '16', '--eval-repeats', '1', '--out', tmp_path / 'f', '--ticket', tmp_path / 't.pt']
    ranks = process('find_ticket.py', *common, *flags, ranks=2)
    texts = [p.communicate(timeout=300)[0] for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], texts
    t, saved = loop.load(tmp_path / 't.pt'), loop.load(tmp_path / 'f' / 'round1' / 'last.pt')
    assert abs(t['sparsity']['G'] - .36) < .001 and saved['done'] and saved['state']['ranks'] == 2
    assert len(loop.lines(tmp_path / 'f' / 'round1' / 'metrics.jsonl')) == 1
