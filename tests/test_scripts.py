"""The scripts end to end, tiny: resume, endings, tickets, ranks, refusals; and twenty updates against a plain loop."""
import argparse
import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_models import slow_D, slow_G

import find_ticket
import gan
import generate
import loop
import losses
import prune
import report
import train_sngan

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ['--data', 'emoji-faces', '--frac', '20', '--ch-g', '8', '--ch-d', '8', '--batch', '8', '--g-batch', '8',
        '--metrics', 'none', '--log-every', '2', '--device', 'cpu', '--precision', 'fp32', '--d-steps', '2',
        '--preset', 'paper']
METHOD = ['--aug', 'diffaug', '--advaug', 'gd']


def train(out, *flags):
    return train_sngan.main(train_sngan.get_args([*TINY, '--out', str(out), *flags]))


def find(out, *flags):
    return find_ticket.main(find_ticket.get_args(['sngan', *TINY, '--out', str(out), '--ticket', f'{out}.pt', *flags]))


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def process(script, *flags, ranks=1):
    """A script as a process of its own (or one per rank), one thread each."""
    env, port = {**os.environ, 'OMP_NUM_THREADS': '1'}, free_port()
    extra = [{'RANK': str(r), 'WORLD_SIZE': str(ranks), 'LOCAL_RANK': str(r),
              'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)} for r in range(ranks)] if ranks > 1 else [{}]
    command = [sys.executable, f'{ROOT}/{script}', *map(str, flags)]
    start = [subprocess.Popen(command, env={**env, **e}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
             for e in extra]
    return start[0] if ranks == 1 else start


def wait_for(path, process, seconds=60):
    end = time.time() + seconds
    while not os.path.exists(path):
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(.002)


@pytest.fixture(scope='module')
def ticket(tmp_path_factory):
    out = tmp_path_factory.mktemp('find') / 'find'
    find(out, '--rounds', '2', '--steps', '2')
    return f'{out}.pt'


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def records(path):
    """Log lines without what depends on the clock and the machine."""
    clock = 'start', 'time', 'images_per_s', 'peak_mb'
    return [{k: v for k, v in r.items() if k not in clock} for r in loop.lines(path)]


def same_runs(a, b):
    x, y = (loop.load(f'{d}/last.pt') for d in (a, b))
    for key in ('step', 'done', 'G', 'D', 'E', 'masks', 'opt', 'state'):
        assert equal(x[key], y[key]), key
    for name in ('log.jsonl', 'metrics.jsonl'):
        assert records(f'{a}/{name}') == records(f'{b}/{name}'), name


def same_when_killed_in_round_1(tmp_path, find, *flags):
    """A ticket finding that is killed in its second round and called again equals one that was not, bit for bit."""
    p = process('find_ticket.py', *flags, '--out', tmp_path / 'cut', '--ticket', tmp_path / 'cut.pt')
    wait_for(tmp_path / 'cut' / 'round1' / 'last.pt', p, 180)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not os.path.exists(tmp_path / 'cut.pt') and not loop.load(tmp_path / 'cut' / 'round1' / 'last.pt')['done']
    for name in ('cut', 'whole'):
        find(tmp_path / name, *flags[1:])
    a, b = (loop.load(tmp_path / f'{n}.pt') for n in ('cut', 'whole'))
    assert equal(a['mask'], b['mask']) and equal(a['init'], b['init'])
    same_runs(tmp_path / 'cut' / 'round1', tmp_path / 'whole' / 'round1')


# ---- the loop against a plain one

def twenty(dtype, d_pass, rho, iterations=20, d_steps=2):
    """Our Flat networks and losses, and slow layers with one Adam per tensor and a plain hinge, on the same draws."""
    args = train_sngan.get_args([*TINY, '--d-pass', d_pass])
    G, D = (net.to(dtype) for net in train_sngan.build(args))
    masks = {n: prune.magnitude(net, prune.ones(net), rho) if rho else {} for n, net in (('G', G), ('D', D))}
    pG, pD = prune.apply_(copy.deepcopy(G), masks['G']), prune.apply_(copy.deepcopy(D), masks['D'])
    G, D = (loop.Flat(net.to(memory_format=torch.channels_last), 2e-4, mask=m, share_sn=d_pass == 'joint')
            for net, m in ((G, masks['G']), (D, masks['D'])))
    adam = {id(net): torch.optim.Adam(net.parameters(), 2e-4, (0., .9)) for net in (pG, pD)}
    sums = loop.Sums('cpu', *gan.SUMS)
    context = lambda: loop.autocast(args, torch.device('cpu'))

    def step(net, loss, mask):
        net.zero_grad()
        loss.backward()
        for name, p in net.named_parameters():
            p.grad *= mask.get(name, torch.ones(1))
        adam[id(net)].step()
    for i in range(iterations):
        rng = torch.Generator().manual_seed(i)
        latent = lambda rng=rng: torch.randn(16, 128, generator=rng).to(dtype)
        for _ in range(d_steps):
            x, z = (torch.rand(16, 3, 32, 32, generator=rng) * 2 - 1).to(dtype), latent()
            D.update(lambda part, x=x, z=z: gan.d_loss(D.net, x[part], G.net(z[part]), args, sums))
            fake = slow_G(pG, z).detach()
            if d_pass == 'joint':
                real, fake = slow_D(pD, torch.cat((x, fake))).chunk(2)
            else:
                real, fake = slow_D(pD, x), slow_D(pD, fake)
            step(pD, torch.relu(1 - real).mean() + torch.relu(1 + fake).mean(), masks['D'])
        z = latent()
        G.update(lambda part, z=z: gan.g_loss(G.net, D.net, z[part], args, sums, context))
        step(pG, -slow_D(pD, slow_G(pG, z)).mean(), masks['G'])
    return {'G': (G.net, pG), 'D': (D.net, pD)}, latent()


@pytest.mark.parametrize('d_pass', ['separate', 'joint'])
@pytest.mark.parametrize('rho', [0, .5])
def test_twenty_iterations_equal_a_plain_loop(d_pass, rho):
    """D's two passes as released, or joined; in float64, where nothing but the algorithm can differ."""
    for name, (fast, slow) in twenty(torch.float64, d_pass, rho)[0].items():
        for (key, a), b in zip(fast.state_dict().items(), slow.state_dict().values(), strict=True):
            assert (a - b).abs().max() < 1e-7, (name, key)


def test_twenty_updates_equal_a_plain_loop_in_fp32():
    """Adam with beta_1 = 0 makes a step of +-lr out of a gradient that is rounding noise.

    Biases in front of a BN have no other, and of the weights a handful in a million does."""
    nets, z = twenty(torch.float32, 'separate', .5, iterations=4, d_steps=5)
    for name, (fast, slow) in nets.items():
        cancelled = ('.c1.bias', '.c2.bias', '.sc.bias') if name == 'G' else ()
        difference = torch.cat([(a - b).abs().flatten()
                                for (key, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True)
                                if not key.endswith(cancelled)])
        assert (difference > 1e-4).float().mean() < 1e-3 and difference.mean() < 1e-5, name
    (G, pG), (D, pD) = nets['G'], nets['D']
    x, y = G(z), slow_G(pG, z)
    assert (x - y).abs().mean() < 1e-4 and (D(x) - slow_D(pD, y)).abs().mean() < 1e-3


def test_the_adversary_raises_each_players_own_loss_and_the_released_one_only_climbs_D():
    torch.manual_seed(0)
    for sign, d_up, g_up in (('adversary', True, True), ('released', None, False)):
        args = train_sngan.get_args([*TINY, '--advaug', 'gd', '--adv-sign', sign, '--adv-step', '.05'])
        G, D = train_sngan.build(args)
        for _ in range(20):
            D(torch.zeros(1, 3, 32, 32))                        # settle u, v, so that passes can be compared
        D.eval()
        sums = loop.Sums('cpu', *gan.SUMS)
        context = lambda args=args: loop.autocast(args, torch.device('cpu'))
        x = torch.rand(8, 3, 32, 32) * 2 - 1
        gan.d_loss(D, x, G(torch.randn(8, 128)), args, sums)
        gan.g_loss(G, D, torch.randn(8, 128), args, sums, context)
        m = sums.means()
        assert d_up is None or (m['L_D_adv'] > m['L_D']) == d_up
        assert (m['L_G_adv'] > m['L_G']) == g_up


@pytest.mark.parametrize('loss', losses.LOSSES)
@pytest.mark.parametrize('flags', [
    [], METHOD, ['--advaug', 'gd', '--adv-noise', '.01'], ['--advaug', 'g', '--adv-pgd', '3', '--adv-cut-g', '3'],
    ['--advaug', 'd', '--adv-cut-d', '2'], ['--batch-gpu', '4', '--advaug', 'gd']])
def test_every_kind_of_training_runs_and_moves_both_networks(tmp_path, flags, loss):
    args = train_sngan.get_args([*TINY, '--loss', loss])
    before = {n: net.state_dict() for n, net in zip('GD', train_sngan.build(args))}
    G, D = train(tmp_path, '--steps', '2', '--loss', loss, *flags)
    for name, net in (('G', G), ('D', D)):
        assert all(torch.isfinite(v).all() for v in net.state_dict().values())
        assert sum((net.state_dict()[k] - v).abs().sum() > 0 for k, v in before[name].items() if v.dim() == 4) == 10


# ---- resume

def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, ticket):
    flags = [*TINY, '--mask', ticket, *METHOD, '--steps', '30', '--save-every', '3',
             '--metrics', 'fid', '--features', 'effnet', '--eval-every', '10', '--eval-samples', '20',
             '--eval-repeats', '2']
    first = process('train_sngan.py', *flags, '--out', tmp_path / 'cut')
    wait_for(tmp_path / 'cut' / 'metrics.jsonl', first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not loop.load(tmp_path / 'cut' / 'last.pt')['done']
    for name in ('log.jsonl', 'metrics.jsonl'):                 # a line newer than the checkpoint, and a torn one
        with open(tmp_path / 'cut' / name, 'a') as f:
            f.write('{"step": 30, "score": "FD-effnet", "choose": 0}\n{"step": 3')
    for name in ('cut', 'cut', 'whole'):                        # the third call of a finished run changes nothing
        train_sngan.main(train_sngan.get_args([*flags, '--out', str(tmp_path / name)]))
    same_runs(tmp_path / 'cut', tmp_path / 'whole')
    a, b = (loop.load(tmp_path / n / 'best.pt') for n in ('cut', 'whole'))
    scores = loop.lines(tmp_path / 'cut' / 'metrics.jsonl')
    assert [s['step'] for s in scores] == [10, 20, 30] and a['score'] == min(scores, key=lambda s: s['choose'])
    assert equal(a['E'], b['E']) and a['score'] == b['score']


@pytest.mark.parametrize('flags', [['--ada-heuristic', 'rt', '--lecam'], ['--ada-heuristic', 'rv', '--advaug', 'gd']])
@pytest.mark.parametrize('ranks', [1, 2])
def test_what_adapts_to_D_survives_a_stop_bit_for_bit(tmp_path, flags, ranks):
    common = [*TINY, '--aug', 'ada', '--ada-kimg', '.2', '--ada-interval', '2', *flags, '--save-every', '50']
    common += ['--lecam-start', '3'] if '--lecam' in flags else []
    for name, stops in (('cut', ('5', '9')), ('whole', ('9',))):
        for steps in stops:                                      # 5: between two adjustments of p
            runs = process('train_sngan.py', *common, '--steps', steps, '--out', tmp_path / name, ranks=ranks)
            for p in runs if ranks > 1 else [runs]:
                text = p.communicate(timeout=120)[0]
                assert p.returncode == 0, text
    x, y = (loop.load(tmp_path / name / 'last.pt') for name in ('cut', 'whole'))
    assert all(equal(x[k], y[k]) for k in ('G', 'D', 'E', 'opt', 'state'))
    ada = x['state']['ada']
    assert 0 <= ada['p'] <= .8 and ada['r'] and (ada['p'] or 'rv' in flags)
    assert ('lecam' in x['state']) == ('--lecam' in flags)
    log = loop.lines(tmp_path / 'whole' / 'log.jsonl')
    assert log[-1]['ada_p'] == pytest.approx(ada['p'], rel=1e-5) and 'ada_r' in log[-1]


def test_reals_alone_both_or_D_alone_are_augmented_as_asked(monkeypatch):
    """A T that adds 1 shows where it was: in D's step on reals and fakes, and in G's step."""
    monkeypatch.setattr(gan.augment, 'draw', lambda policy, x, p=None: lambda x: x + 1 if policy else x)

    class Spy(torch.nn.Module):
        def split(self, x, cut=0):
            self.seen = x.detach().mean((1, 2, 3))
            return x.mean((1, 2, 3)), lambda h: h

        def forward(self, x):
            return self.split(x)[0]
    G = Namespace(split=lambda z, cut: (z, lambda h: torch.zeros(4, 3, 8, 8) + h.mean()))
    for on, d_sees, g_sees in (('both', [1., 1.], 1.), ('real', [1., 0.], 0.), ('d', [1., 1.], 0.)):
        args = train_sngan.get_args([*TINY, '--aug', 'diffaug', '--aug-on', on])
        D, sums = Spy(), loop.Sums('cpu', *gan.SUMS)
        gan.d_loss(D, torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8), args, sums)
        assert D.seen[[0, -1]].tolist() == d_sees
        gan.g_loss(G, D, torch.zeros(4, 8), args, sums, contextlib.nullcontext)
        assert D.seen[0] == g_sees


def test_augmentation_that_cannot_be_is_refused(tmp_path, capsys):
    for flags, word in ((['--ada-heuristic', 'rv', '--frac', '1.0', '--data', 'emoji'], 'rv needs held-out'),
                        (['--aug-policy', 'bgcf', '--res', '16'], '21 px'), (['--res', '8'], '16 px')):
        with pytest.raises(SystemExit) as e:
            train(tmp_path, '--steps', '1', '--aug', 'ada', *flags)
        assert e.value.code == 2 and word in capsys.readouterr().err


def test_steps_can_be_added_to_a_finished_run(tmp_path):
    for steps in ('3', '6'):
        train(tmp_path / 'a', '--steps', steps)
    train(tmp_path / 'b', '--steps', '6')
    x, y = (loop.load(tmp_path / n / 'last.pt') for n in 'ab')
    assert x['done'] and equal(x['G'], y['G']) and equal(x['opt'], y['opt'])


def test_observers_change_nothing(tmp_path):
    train(tmp_path / 'a', '--steps', '4')
    often = [x for what in ('log', 'sample', 'save', 'eval') for x in (f'--{what}-every', '1')]
    train(tmp_path / 'b', '--steps', '4', *often, '--metrics', 'fid', '--eval-samples', '10', '--eval-repeats', '1')
    x, y = (loop.load(tmp_path / n / 'last.pt') for n in 'ab')
    assert all(equal(x[k], y[k]) for k in ('G', 'D', 'E', 'opt'))
    assert len(os.listdir(tmp_path / 'b' / 'samples')) == 5      # steps 0 to 4


@pytest.mark.parametrize('flags, words', [
    (['--lr-g', '1e-3'], '--lr-g was 0.0002, is 0.001'), (['--frac', '30'], '--frac was 20, is 30'),
    (['--advaug', 'd'], "--advaug was 'none', is 'd'"), (['--mask', 'T'], '--mask-hash was None')])
def test_changed_flags_are_refused_by_name(tmp_path, flags, words, ticket, capsys):
    train(tmp_path, '--steps', '1')
    before = loop.load(tmp_path / 'last.pt')
    with pytest.raises(SystemExit) as e:
        train(tmp_path, '--steps', '2', *[ticket if f == 'T' else f for f in flags])
    error = capsys.readouterr().err
    assert e.value.code == 2 and words in error and '--restart' in error
    assert equal(before, loop.load(tmp_path / 'last.pt'))
    train(tmp_path, '--steps', '1', '--restart', *[ticket if f == 'T' else f for f in flags])


def test_the_same_images_under_another_name_resume_and_others_do_not(tmp_path, capsys):
    for name, shade in (('a', 0), ('b', 100)):
        os.makedirs(tmp_path / name / 'photos')
        for i in range(10):
            Image.new('RGB', (20, 20), (shade + i, 0, 0)).save(tmp_path / name / 'photos' / f'{i}.png')
    flags = [*TINY[4:], '--steps', '1', '--out', str(tmp_path / 'run')]

    def call(name):
        train_sngan.main(train_sngan.get_args(['--data', str(tmp_path / name / 'photos'), *flags]))
    call('a')
    os.rename(tmp_path / 'a', tmp_path / 'c')
    call('c')
    with pytest.raises(SystemExit):
        call('b')
    assert '--data-fingerprint' in capsys.readouterr().err


# ---- endings

def test_sigterm_saves_exits_143_and_never_counts_as_finished(tmp_path):
    out = tmp_path / 'find'
    flags = ['sngan', *TINY, '--steps', '200000', '--save-every', '1', '--rounds', '1', '--restart',
             '--out', out, '--ticket', tmp_path / 't.pt']
    p = process('find_ticket.py', *flags)
    wait_for(out / 'round0' / 'last.pt', p)
    p.send_signal(signal.SIGTERM)
    text = p.communicate(timeout=60)[0]
    line = next(line for line in text.splitlines() if 'resume with: python ' in line)
    assert p.returncode == 143 and 'find_ticket.py sngan' in line and '--restart' not in line and str(out) in line
    saved = loop.load(out / 'round0' / 'last.pt')
    assert not saved['done'] and 1 <= saved['step'] < 200000
    assert not os.path.exists(out / 'ticket1.pt') and not os.path.exists(tmp_path / 't.pt')
    assert not [f for d, _, files in os.walk(tmp_path) for f in files if f.endswith('.tmp')]


def test_time_over_exits_75_and_the_same_command_goes_on(tmp_path):
    with pytest.raises(SystemExit) as e:
        train(tmp_path, '--steps', '3', '--max-hours', '1e-9')
    assert e.value.code == 75 and not loop.load(tmp_path / 'last.pt')['done']
    train(tmp_path, '--steps', '3')
    assert loop.load(tmp_path / 'last.pt')['done']


def test_a_loss_that_is_not_finite_exits_3_with_step_and_tensor_and_keeps_the_last_good_checkpoint(
        tmp_path, capsys, monkeypatch):
    plain, calls = gan.d_loss, []

    def poisoned(D, *rest):                                     # two D updates a step: the sixth belongs to step 3
        calls.append(1)
        return plain(D, *rest) + (float('nan') * D.block2.c1.bias.sum() if len(calls) == 6 else 0)
    monkeypatch.setattr(gan, 'd_loss', poisoned)
    with pytest.raises(SystemExit) as e:
        train(tmp_path, '--steps', '50', '--save-every', '2', '--log-every', '50')
    text = capsys.readouterr().out
    assert e.value.code == 3 and 'error: step 3: the gradient of block2.c1.bias in D is not finite' in text
    saved = loop.load(tmp_path / 'last.pt')
    assert saved['step'] == 2 and not saved['done'] and len(calls) == 8        # found at the save, which did not happen
    monkeypatch.undo()
    train(tmp_path, '--steps', '4')
    train(tmp_path / 'b', '--steps', '4')
    assert equal(loop.load(tmp_path / 'last.pt')['G'], loop.load(tmp_path / 'b' / 'last.pt')['G'])


def test_the_first_checkpoint_comes_after_a_minute_and_the_next_after_ten(tmp_path, monkeypatch):
    now = [1000.]
    monkeypatch.setattr(loop.time, 'time', lambda: now[0])
    run = loop.Run('toy', loop.add_flags(argparse.ArgumentParser()).parse_args(['--out', str(tmp_path)]))
    due = []
    for second in range(0, 1400, 10):
        now[0] = 1000. + second
        run.agree()
        if run.timed['save']:
            due.append(second)
            run.last_save = now[0]
    assert due == [70, 680, 1290]


def test_a_finished_run_can_be_scored_later_and_a_failed_evaluation_costs_no_step(tmp_path, monkeypatch):
    short = ['--steps', '2', '--eval-samples', '10', '--eval-repeats', '1']
    score = [*short, '--metrics', 'fid']
    train(tmp_path, *short)
    evaluate = gan.metrics.evaluate
    monkeypatch.setattr(gan.metrics, 'evaluate', lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, *score)
    monkeypatch.setattr(gan.metrics, 'evaluate', evaluate)
    monkeypatch.setattr(gan, 'd_loss', None)            # no step is trained again
    for _ in range(2):
        train(tmp_path, *score)
    assert [s['step'] for s in loop.lines(tmp_path / 'metrics.jsonl')] == [2]


def test_every_score_is_recorded_with_its_protocol_and_stands_in_the_report(tmp_path):
    flags = ['--steps', '2', '--eval-samples', '12', '--eval-repeats', '2', '--eval-batch', '5', '--features', 'effnet',
             '--metrics', 'fid,kid,prdc,copy', '--cache', str(tmp_path / 'cache')]
    train(tmp_path / 'faces', *flags)
    record, = loop.lines(tmp_path / 'faces' / 'metrics.jsonl')
    for key in ('all', 'choose', 'report', 'kid', 'precision', 'recall', 'density', 'coverage', 'copy'):
        assert np.isfinite(record[key]) and record[f'{key}_std'] >= 0
    assert 'copy_train' not in record and record['protocol']['n_ref'] == {'choose': 10, 'report': 10, 'all': 20}
    assert not {'kid_choose', 'precision_report'} & record.keys()   # the halves are for the distance alone
    assert {'kid', 'prdc', 'copy'} < record['protocol'].keys() and len(os.listdir(tmp_path / 'cache')) == 2
    train(tmp_path / 'held', *flags, '--ref', 'test', '--seed', '1')
    record, = loop.lines(tmp_path / 'held' / 'metrics.jsonl')       # copies are sought among the training images
    assert record['protocol']['n_ref'] == {'choose': 8, 'report': 9, 'all': 17, 'train': 20} and 'copy_train' in record
    report.main(report.get_args([str(tmp_path)]))
    page = (tmp_path / 'report' / 'report.md').read_text()
    assert '| KID x 1000 | precision | recall | density | coverage | copies |' in page and 'cubic kernel' in page
    train(tmp_path / 'plain', *flags[:-2], '--metrics', 'fid', '--seed', '2', '--cache', str(tmp_path / 'cache'))
    report.main(report.get_args([str(tmp_path)]))                   # the same distance: a row of the same table
    page = (tmp_path / 'report' / 'report.md').read_text()
    assert page.count('| KID x 1000 |') == 2 and '| – | – | – | – | – | – |' in page
    with pytest.raises(SystemExit) as e:
        train(tmp_path / 'no', *flags, '--metrics', 'kid')
    assert e.value.code == 2


def test_a_protocol_sets_its_flags_and_only_as_defaults():
    args = train_sngan.get_args([*TINY, '--protocol', 'sngan-released'])
    assert (args.eval_samples, args.ref, args.resize, args.is_splits, args.is_bias) == (50000, 'all', 'tf1', 10, False)
    args = train_sngan.get_args([*TINY, '--protocol', 'cifar', '--eval-samples', '500', '--no-is-bias', '--ref', 'all'])
    assert (args.eval_samples, args.ref, args.is_splits, args.is_bias) == (500, 'all', 1, False)
    args = train_sngan.get_args(['--data', 'emoji-faces', '--protocol', 'fewshot'])     # stronger than a preset
    assert (args.preset, args.eval_samples, args.ref) == ('demo', 5000, 'train')


def test_a_run_that_never_saved_does_not_stand_in_the_way(tmp_path, monkeypatch):
    with monkeypatch.context() as m, pytest.raises(TypeError):
        m.setattr(gan, 'd_loss', None)
        train(tmp_path, '--steps', '1', '--lr-g', '1e-3')
    train(tmp_path, '--steps', '1')


def test_restart_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    train(tmp_path / 'r', '--steps', '1')
    find(tmp_path / 'f', '--steps', '1', '--rounds', '1')
    os.makedirs(tmp_path / 'f' / 'roundtrip')
    mine = [tmp_path / 'r' / 'samples' / 'holiday.png', tmp_path / 'r' / 'notes.txt',
            tmp_path / 'f' / 'ticket_concert.pt', tmp_path / 'f' / 'roundtrip' / 'x.png', tmp_path / 'new' / 'last.pt']
    os.makedirs(tmp_path / 'new')
    for path in mine:
        path.write_text('mine')
    train(tmp_path / 'r', '--steps', '1', '--restart', '--seed', '1')
    find(tmp_path / 'f', '--steps', '1', '--rounds', '1', '--restart', '--seed', '1')
    loop.Run.clear(argparse.Namespace(out=tmp_path / 'new', path=lambda n: f'{tmp_path}/new/{n}'))
    assert all(path.read_text() == 'mine' for path in mine)
    assert loop.load(tmp_path / 'f.pt')['args']['seed'] == 1


# ---- tickets

def test_a_ticket_is_complete_and_rewound_bit_for_bit(tmp_path, ticket):
    t, dense = loop.load(ticket), loop.load(ticket.replace('find.pt', 'find/ticket0.pt'))
    args = train_sngan.get_args(TINY)
    for name, net in zip('GD', train_sngan.build(args)):
        assert equal(t['init'][name], dict(net.state_dict())) and equal(t['init'][name], dense['init'][name])
        assert abs(t['sparsity'][name] - .36) < 2 / sum(m.numel() for m in t['mask'][name].values())
        assert prune.sparsity(dense['mask'][name]) == 0
    trained = loop.load(ticket.replace('find.pt', 'find/round1/last.pt'))
    first = loop.load(ticket.replace('find.pt', 'find/ticket1.pt'))
    for name in 'GD':                                           # ranked: the round's last weights, not their average
        again = prune.magnitude(trained[name], first['mask'][name], .2)
        assert equal(again, t['mask'][name])
    flags = TINY[:4] + TINY[8:]
    G, D = train_sngan.main(train_sngan.get_args([*flags, '--mask', ticket, '--steps', '1', '--out', str(tmp_path)]))
    assert (G.ch, D.ch) == (8, 8)                               # widths come from the ticket


@pytest.mark.parametrize('flags', [
    [], METHOD, [*METHOD, '--precision', 'bf16'], ['--batch-gpu', '4', '--lr-g', '1e-2', '--lr-d', '1e-2']])
def test_pruned_weights_stay_exactly_zero_in_G_D_and_the_average(tmp_path, ticket, flags):
    train(tmp_path, '--mask', ticket, '--steps', '4', *flags)
    saved, t = loop.load(tmp_path / 'last.pt'), loop.load(ticket)
    for name in 'GDE':
        for n, keep in t['mask'].get(name, t['mask']['G']).items():
            assert not saved[name][n][~keep].any() and saved[name][n][keep].any(), (name, n)
    assert equal(saved['masks'], t['mask'])


def test_ticket_finding_resumes_in_the_middle_of_a_round(tmp_path):
    same_when_killed_in_round_1(tmp_path, find, 'sngan', *TINY, '--rounds', '2', '--steps', '20', '--save-every', '3',
                                '--advaug', 'gd')


def test_pruning_one_network_leaves_the_other_dense_and_late_rewinding_rewinds_late(tmp_path):
    find(tmp_path / 'a', '--rounds', '1', '--steps', '3', '--prune', 'g', '--rewind', '2')
    t = loop.load(tmp_path / 'a.pt')
    assert t['mask']['D'] == {} and abs(t['sparsity']['G'] - .2) < .001 and t['rewind'] == 2
    train(tmp_path / 'two', '--steps', '2')
    early = loop.load(tmp_path / 'two' / 'last.pt')
    assert equal(t['init']['G'], early['G']) and equal(t['init']['D'], early['D'])


def test_other_settings_for_the_same_tickets_are_refused(tmp_path, capsys):
    find(tmp_path / 'a', '--rounds', '1', '--steps', '1')
    for flags, word in ((['--steps', '2'], '--steps was 1, is 2'),
                        (['--steps', '1', '--rho', '.4'], '--rho was 0.2, is 0.4')):
        with pytest.raises(SystemExit) as e:
            find(tmp_path / 'a', '--rounds', '1', *flags)
        assert e.value.code == 2 and word in capsys.readouterr().err
    find(tmp_path / 'a', '--rounds', '2', '--steps', '1')       # one more round goes on from the first


def test_a_ticket_found_on_other_images_is_said_so(tmp_path, ticket, capsys):
    train(tmp_path, '--mask', ticket, '--steps', '1', '--data-seed', '1')
    assert 'was found on other images' in capsys.readouterr().out


def test_weights_can_come_from_a_checkpoint_and_the_mask_from_a_ticket(tmp_path, ticket):
    G, _ = train(tmp_path / 'a', '--steps', '1')
    start = {k: v.clone() for k, v in G.state_dict().items()}
    args = train_sngan.get_args([*TINY, '--mask', ticket, '--init-from', str(tmp_path / 'a' / 'last.pt')])
    G, D, masks, facts = gan.start(args, train_sngan.build)
    assert equal(dict(G.state_dict()), start) and equal(masks, loop.load(ticket)['mask'])
    assert set(facts) == {'mask_hash', 'init_hash'}


def test_rewinding_goes_to_the_given_weights_when_finding_starts_from_a_checkpoint(tmp_path, capsys):
    train(tmp_path / 'a', '--steps', '1')
    start = loop.load(tmp_path / 'a' / 'last.pt')
    flags = ['--rounds', '2', '--steps', '1', '--init-from', str(tmp_path / 'a' / 'last.pt')]
    find(tmp_path / 'f', *flags)
    assert equal(loop.load(tmp_path / 'f.pt')['init']['G'], start['G'])
    find(tmp_path / 'late', *flags[:3], '3', *flags[4:], '--rewind', '2')
    late = loop.load(tmp_path / 'late' / 'ticket0.pt')['init']['G']
    first = json.load(open(tmp_path / 'late' / 'round1' / 'args.json'))['args']
    assert not equal(late, start['G']) and first['init_from'] is None
    train(tmp_path / 'b', '--steps', '1', '--seed', '1')
    with pytest.raises(SystemExit):
        find(tmp_path / 'f', *flags[:5], str(tmp_path / 'b' / 'last.pt'))
    assert '--init-hash' in capsys.readouterr().err


def test_a_ticket_brings_its_resolution(tmp_path):
    find(tmp_path / 'f', '--rounds', '1', '--steps', '1', '--res', '48')
    G, _ = train(tmp_path / 'r', '--steps', '1', '--mask', f'{tmp_path}/f.pt')
    assert G.res == 48


def test_files_that_are_something_else_are_refused_by_what_they_are(tmp_path, ticket, capsys):
    train(tmp_path, '--steps', '1', '--metrics', 'fid', '--eval-samples', '10', '--eval-repeats', '1')
    (tmp_path / 'text.pt').write_text('hello')
    for flag, file, word in (('--mask', 'last.pt', 'is a last.pt'), ('--mask', 'text.pt', 'not a file of torch.save'),
                             ('--init-from', 'best.pt', 'is a best.pt'), ('--init-from', ticket, 'is a ticket')):
        with pytest.raises(SystemExit) as e:
            train_sngan.get_args([*TINY, flag, str(tmp_path / file)])
        assert e.value.code == 2 and word in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        generate.main(generate.get_args([ticket]))
    assert e.value.code == 2 and 'is a ticket' in capsys.readouterr().err


def test_two_ranks_train_prune_and_score_together(tmp_path):
    flags = ['sngan', *TINY, '--steps', '2', '--rounds', '2', '--advaug', 'gd',
             '--metrics', 'fid', '--features', 'effnet', '--eval-samples', '16', '--eval-repeats', '1',
             '--out', tmp_path / 'f', '--ticket', tmp_path / 't.pt']
    ranks = process('find_ticket.py', *flags, ranks=2)
    texts = [p.communicate(timeout=180)[0] for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], texts
    t, saved = loop.load(tmp_path / 't.pt'), loop.load(tmp_path / 'f' / 'round1' / 'last.pt')
    assert abs(t['sparsity']['G'] - .36) < .001 and saved['done'] and saved['state']['ranks'] == 2
    assert len(loop.lines(tmp_path / 'f' / 'round1' / 'metrics.jsonl')) == 1
    masks = loop.load(tmp_path / 'f' / 'ticket1.pt')['mask']
    for name in 'GDE':
        assert all(not saved[name][n][~keep].any() for n, keep in masks.get(name, masks['G']).items()), name


# ---- refusals

@pytest.mark.parametrize('flags, words', [
    (['--lr', '1'], ['--lr']), (['--step', '3'], ['--step']), (['--batch-gpu', '3'], ['--batch-gpu 3', '8']),
    (['--steps', '0'], ['--steps 0']), (['--advaug', 'gd', '--adv-pgd', '0'], ['--adv-pgd 0']),
    (['--aug-policy', 'cutout'], ['--aug diffaug']), (['--graph'], ['--graph']), (['--ema', '1.5'], ['--ema 1.5']),
    (['--res', '36'], ['--res 36']), (['--mask', 'none.pt'], ['--mask none.pt']), (['--adv-step', '.1'], ['--advaug']),
    (['--g-batch', '6', '--batch-gpu', '4'], ['--g-batch 6']), (['--lr-g', '-1'], ['--lr-g -1']),
    (['--ch-g', '0'], ['--ch-g 0']), (['--eval-samples', '1'], ['--eval-samples 1']),
    (['--frac', 'inf'], ['--frac inf']),
    (['--init-from', 'none.pt'], ['--init-from none.pt']), (['--advaug', 'gd', '--adv-cut-g', '9'], ['--adv-cut-g 9'])])
def test_flags_that_cannot_be_are_refused_before_anything_is_built(flags, words, capsys, monkeypatch):
    monkeypatch.setattr(gan.images, 'load', None)
    with pytest.raises(SystemExit) as e:
        train_sngan.get_args([*TINY, *flags])
    error = capsys.readouterr().err
    assert e.value.code == 2
    for word in words:
        assert word in error


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '3')
    with pytest.raises(SystemExit) as e:
        train_sngan.get_args(TINY)
    assert e.value.code == 2 and '--batch 8 does not divide over 3 ranks' in capsys.readouterr().err


def test_a_ticket_of_another_width_or_model_is_refused_with_layer_and_shapes(ticket, tmp_path, capsys):
    for flags, words in ((['--ch-g', '16'], ['l1.weight', '(128, 128)', '(256, 128)']),
                         (['--res', '48'], ['l1.weight'])):
        with pytest.raises(SystemExit) as e:
            train_sngan.get_args([*TINY, '--mask', ticket, *flags])
        error = capsys.readouterr().err
        assert e.value.code == 2 and all(w in error for w in words)
    torch.save({**loop.load(ticket), 'model': 'biggan'}, tmp_path / 'b.pt')
    with pytest.raises(SystemExit) as e:
        train_sngan.get_args([*TINY, '--mask', str(tmp_path / 'b.pt')])
    assert e.value.code == 2 and 'train_biggan.py' in capsys.readouterr().err


def test_too_few_images_to_score_and_an_out_inside_the_data_are_refused(tmp_path, capsys):
    for i in range(3):
        Image.new('RGB', (20, 20)).save(tmp_path / f'{i}.png')
    flags = ['--data', str(tmp_path), '--metrics', 'fid', *TINY[4:12], '--steps', '1', '--device', 'cpu']
    for extra, word in (([], '3 reference images'), (['--out', str(tmp_path / 'run')], 'lies in --data')):
        with pytest.raises(SystemExit) as e:
            train_sngan.main(train_sngan.get_args([*flags, *extra]))
        assert e.value.code == 2 and word in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ['0.png', '1.png', '2.png']


def test_ticket_finding_can_check_the_data(tmp_path, capsys):
    find(tmp_path / 'f', '--check-data')
    assert '20 of 100 training images' in capsys.readouterr().out and not os.path.exists(tmp_path / 'f')


@pytest.mark.parametrize('flags', [['--rounds', '0'], ['--rho', '1'], ['--rewind', '60000'], ['--mask', 'x']])
def test_ticket_finding_refuses_what_finds_nothing(flags, capsys):
    with pytest.raises(SystemExit) as e:
        find_ticket.get_args(['sngan', *TINY, *flags])
    assert e.value.code == 2 and flags[0] in capsys.readouterr().err


# ---- pictures and pages

def test_a_folder_is_checked_and_trained_on_and_shown(tmp_path, capsys):
    os.makedirs(tmp_path / 'photos')
    for i in range(5):
        Image.new('RGB', (50, 30), (i * 50, 0, 99)).save(tmp_path / 'photos' / f'{i}.jpg')
    flags = ['--data', str(tmp_path / 'photos'), *TINY[4:], '--out', str(tmp_path / 'run'), '--steps', '2']
    assert train_sngan.main(train_sngan.get_args([*flags, '--check-data'])) is None
    assert '5 images read' in capsys.readouterr().out and not os.path.exists(tmp_path / 'run')
    train_sngan.main(train_sngan.get_args([*flags, '--mirror']))           # five images, batch eight
    assert Image.open(tmp_path / 'run' / 'reals.png').size == (256, 32)
    x = generate.main(generate.get_args([str(tmp_path / 'run'), '--seeds', '0-3,7', '--columns', '5',
                                         '--out', str(tmp_path / 'g.png')]))
    generate.main(generate.get_args([str(tmp_path / 'run' / 'last.pt'), '--seeds', '7', '--each', str(tmp_path / 'e')]))
    one = np.asarray(Image.open(tmp_path / 'e' / '000007.png')).transpose(2, 0, 1).astype(int)
    assert x.shape == (5, 3, 32, 32) and Image.open(tmp_path / 'g.png').size == (160, 32)
    assert abs(one - x[4].numpy()).max() <= 1                  # round-off of another batch


def test_the_report_says_what_was_measured(tmp_path, ticket):
    score = ['--metrics', 'fid', '--features', 'effnet', '--eval-samples', '16', '--eval-repeats', '2',
             '--eval-every', '2', '--steps', '4']
    train(tmp_path / 'dense', *score)
    train(tmp_path / 'ticket', *score, '--mask', ticket, *METHOD)
    page = open(report.main(report.get_args([str(tmp_path)]))).read()
    assert '| dense | 4 |' in page and 'ticket 35.9' in page and '+ DiffAug + AdvAug' in page
    assert 'FD-effnet' in page and '16 generated' in page and 'emoji-faces-train' in page and 'FID' not in page
    for name in ('grids.png', 'accuracy.png', 'score.png'):
        assert Image.open(tmp_path / 'report' / name).size[0] > 100
    scores = [json.loads(line) for line in open(tmp_path / 'dense' / 'metrics.jsonl')]
    assert f"{scores[-1]['all']:.1f} ± {scores[-1]['all_std']:.1f}" in page
    with pytest.raises(SystemExit):
        report.main(report.get_args([str(tmp_path / 'report')]))
