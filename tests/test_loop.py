"""loop.py: the flat network against per-parameter training, masks, the NaN guard, the order of the data, settled BN."""
import argparse
import copy
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import loop
import prune
from models import sngan

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def net(seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3)
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def loss_of(net, step):
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step)).to(memory_format=torch.channels_last)
    return (net(x) ** 2).mean()


def test_flat_equals_per_parameter_adam_bit_for_bit():
    plain, flat = net(), loop.Flat(net(), 1e-2, (.5, .9))
    adam = torch.optim.Adam(plain.parameters(), 1e-2, (.5, .9), fused=True)
    for step in range(5):
        adam.zero_grad()
        loss_of(plain, step).backward()
        adam.step()
        flat.now = step + 1
        flat.update(lambda part, step=step: loss_of(flat.net, step))
    for (name, a), b in zip(plain.state_dict().items(), flat.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_views_keep_shapes_strides_and_alignment():
    plain, flat = net(), loop.Flat(net(), 1e-2)
    for a, b in zip(plain.parameters(), flat.net.parameters(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride() == b.grad.stride()
        assert b.storage_offset() % 64 == 0 and b.untyped_storage().data_ptr() == flat.w.untyped_storage().data_ptr()
    assert not any(p.requires_grad for p in flat.net.parameters())


def test_masked_weights_are_exactly_zero_whatever_happens():
    masks = prune.magnitude(net(), prune.ones(net()), .5)
    flat, ema = loop.Flat(net(), 1e-1, (.9, .999), mask=masks), loop.Flat(net(), mask=masks)
    for step in range(4):
        flat.now = step + 1
        flat.update(lambda part, step=step: loss_of(flat.net, step))
        ema.track(flat, .9)
    for which in (flat, ema):
        parameters = dict(which.net.named_parameters())
        for name, keep in masks.items():
            assert not parameters[name][~keep].any() and parameters[name][keep].all(), name
    assert all(not m[~masks[n]].any() for n, m in flat.moments()['m'].items() if n in masks)


def test_the_average_follows_its_formula_and_takes_bn_statistics_along():
    flat, ema = loop.Flat(net(), 1e-1), loop.Flat(net())
    start = {k: v.clone() for k, v in ema.net.state_dict().items()}
    flat.now = 1
    flat.update(lambda part: loss_of(flat.net, 0))
    ema.track(flat, .75)
    for name, value in ema.net.state_dict().items():
        new = flat.net.state_dict()[name]
        expected = .75 * start[name] + .25 * new if value.is_floating_point() else new
        assert torch.allclose(value, expected, atol=1e-7), name


def test_micro_batches_sum_to_the_big_batch_and_share_w_over_sigma():
    torch.manual_seed(0)
    D = sngan.Discriminator(8).to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 32, 32)
    whole, parted = loop.Flat(copy.deepcopy(D), 1e-3), loop.Flat(copy.deepcopy(D), 1e-3)
    for flat, micro in ((whole, None), (parted, 2)):
        flat.now = 1
        flat.update(lambda part, flat=flat: F.relu(1 - flat.net(x[part])).mean(), loop.parts(8, micro))
    assert torch.allclose(whole.g, parted.g, atol=1e-6 * whole.g.abs().max())
    for a, b in zip(whole.net.buffers(), parted.net.buffers(), strict=True):
        assert torch.equal(a, b)                               # one power iteration each


def test_an_update_that_is_not_finite_is_named_and_holds_back_all_later_ones():
    flat = loop.Flat(net(), 1e-1)
    flat.now = 1
    flat.update(lambda part: loss_of(flat.net, 0))
    good = flat.w.detach().clone()
    flat.now = 2
    flat.update(lambda part: loss_of(flat.net, 1) + (flat.net[3].weight * float('nan')).sum())
    flat.now = 3
    flat.update(lambda part: loss_of(flat.net, 2))
    assert torch.equal(good, flat.w) and flat.guilty() == (2, '3.weight')
    other = loop.Flat(net(), 1e-1)
    other.now = 7
    other.update(lambda part: loss_of(other.net, 0) + torch.tensor(float('inf')))
    assert other.guilty() == (7, 'the loss')


def test_moments_travel_by_parameter_name():
    a = loop.Flat(net(), 1e-2, (.5, .9))
    for step in range(3):
        a.update(lambda part, step=step: loss_of(a.net, step))
    b = loop.Flat(net(1), 1e-2, (.5, .9))
    b.net.load_state_dict(a.net.state_dict())
    b.load_moments(loop.to_cpu(a.moments()))
    assert set(a.moments()['v']) == set(dict(a.net.named_parameters()))
    for flat in (a, b):
        flat.update(lambda part, flat=flat: loss_of(flat.net, 9))
    assert torch.equal(a.w, b.w)


def test_every_image_is_seen_once_an_epoch_even_when_the_set_is_smaller_than_the_batch():
    for n, batch in ((10, 4), (10, 64), (7, 7)):
        row = [i for start in range(0, 10 * n * batch, batch) for i in loop.order(n, start, batch, seed=3)]
        for e in range(len(row) // n):
            assert sorted(row[e * n:(e + 1) * n]) == list(range(n))
    assert list(loop.order(10, 25, 5, 0)) == list(loop.order(10, 20, 10, 0))[5:]       # position alone decides


def test_streams_and_steps_do_not_meet():
    streams = [(s, name, *step) for s in (0, 1) for name in ('D', 'G') for step in ((), (1,), (1, 0), (2,))]
    draws = {tuple(loop.rng(*stream).integers(2 ** 62, size=2)) for stream in streams}
    assert len(draws) == 16
    assert loop.rng(0, 'D', 5).random() == loop.rng(0, 'D', 5).random()


def test_latents_belong_to_their_seed():
    assert torch.equal(loop.latents([3, 5], 8, 'cpu')[1], loop.latents(range(5, 6), 8, 'cpu')[0])


def test_settled_statistics_are_the_mean_over_the_batches_and_the_network_is_left_alone():
    original = net()
    before = copy.deepcopy(original.state_dict())
    batches = [(torch.randn(16, 3, 9, 9),) for _ in range(5)]
    settled = loop.settle(original, batches)
    hidden = [original[0](b[0]) for b in batches]
    means = torch.stack([h.mean((0, 2, 3)) for h in hidden])                       # [5, 8]
    variances = torch.stack([h.transpose(0, 1).flatten(1).var(1) for h in hidden])
    assert torch.allclose(settled[1].running_mean, means.mean(0), atol=1e-6)
    assert torch.allclose(settled[1].running_var, variances.mean(0), rtol=1e-5)
    assert not settled.training and all(torch.equal(v, before[k]) for k, v in original.state_dict().items())


def test_sums_are_means_since_the_last_reading():
    sums = loop.Sums('cpu', 'a', 'b')
    assert sums.add(a=torch.tensor([1., 3.])).tolist() == [1., 3.]
    sums.add(a=torch.tensor(4.))
    assert sums.means() == {'a': 3.} and sums.means() == {}


def test_accuracies_count_the_right_side_and_leave_D_as_it_was():
    D = sngan.Discriminator(8)
    before = copy.deepcopy(D.state_dict())
    values = loop.accuracies(D, train=(torch.randn(5, 3, 32, 32),), gen=(torch.randn(5, 3, 32, 32),))
    assert set(values) == {'D_train', 'acc_train', 'D_gen', 'acc_gen'} and D.training
    assert all(torch.equal(v, before[k]) for k, v in D.state_dict().items())
    judge = torch.nn.Sequential(torch.nn.Flatten(0))
    assert loop.accuracies(judge, train=(torch.tensor([1., -1., 2.]),), gen=(torch.tensor([-1., -2., 3., 4.]),)) == {
        'D_train': pytest.approx(2 / 3), 'acc_train': pytest.approx(2 / 3), 'D_gen': 1., 'acc_gen': .5}


def test_a_grid_has_a_row_per_class_and_settling_sees_every_class_alike():
    seeds, y = loop.panel(0)
    assert [*seeds] == [*range(64)] and y is None
    seeds, y = loop.panel(3)
    assert seeds == [*range(8)] * 3 and y.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert loop.shown(1000)[[0, -1]].tolist() == [0, 999] and len(set(loop.shown(1000))) == 10
    z, y = (torch.cat(part) for part in zip(*loop.settling(4, 'cpu', 5, classes=10)))
    assert z.shape == (320, 4) and y.bincount().tolist() == [32] * 10
    assert torch.equal(z, torch.cat([z for z, in loop.settling(4, 'cpu', 5)]))
    y = torch.cat([y for _, y in loop.settling(4, 'cpu', 2, classes=1000)])
    assert y[0] == 0 and y[-1] == 992 and set(y.diff().tolist()) <= {7, 8}        # few z, all classes alike


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'x.json'
    loop.write_json(path, {'a': 1})

    def broken(tmp):
        with open(tmp, 'w') as f:
            f.write('half')
        raise OSError('disk full')
    with pytest.raises(OSError):
        loop.write(path, broken)
    assert path.read_text() == '{\n "a": 1\n}'


def test_digest_sees_every_number_and_name():
    x = {'a': torch.arange(4.), 'b': {'c': 1}}
    y = {'a': torch.arange(4.), 'b': {'c': 2}}
    z = {'a': torch.arange(4.) + torch.tensor([0, 0, 0, 1e-6]), 'b': {'c': 1}}
    assert loop.digest(x) == loop.digest(copy.deepcopy(x)) and len({loop.digest(v) for v in (x, y, z)}) == 3


TWO = '''
import sys, torch, torch.distributed as dist
sys.path.insert(0, {root!r})
import argparse, loop
from models import sngan
torch.set_num_threads(1)
args = loop.add_flags(argparse.ArgumentParser()).parse_args(['--device', 'cpu'])
loop.launch(args)
rank, ranks = loop.world()
torch.manual_seed(0)
D = loop.Flat(sngan.Discriminator(8).to(memory_format=torch.channels_last), 1e-3)
G = loop.Flat(sngan.Generator(32, 8).to(memory_format=torch.channels_last), 1e-3)
S = sngan.Generator(32, 8).double()
loop.sync_bn_(S)
S = loop.Flat(S.to(memory_format=torch.channels_last), 1e-3)
for step in range(3):
    D.now = G.now = step + 1
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    z = torch.randn(8, 128, generator=torch.Generator().manual_seed(step))
    D.update(lambda part: torch.relu(1 - D.net(loop.mine(x))).mean())
    G.update(lambda part: -D.net(G.net(loop.mine(z))).mean())
    S.now = step + 1
    S.update(lambda part: (S.net(loop.mine(z.double())) ** 3 + S.net(loop.mine(z.double())) ** 2).mean())
nets = {{'D': D, 'G': G, 'S': S}}
torch.save({{name: net.net.state_dict() for name, net in nets.items()}}, f'{out}/{{ranks}}-{{rank}}.pt')
'''


def test_two_ranks_follow_one_process_and_each_other(tmp_path):
    """D has no batch statistic: two halves equal the whole.

    G's BN statistics ride in the all-reduce: bit-identical ranks.  Synchronised, they too equal those of the whole."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    code = TWO.format(root=ROOT, out=tmp_path)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}

    def start(rank, ranks):
        place = {'RANK': str(rank), 'WORLD_SIZE': str(ranks)}
        return subprocess.Popen([sys.executable, '-c', code], env={**env, **place})
    for processes in ([start(0, 1)], [start(0, 2), start(1, 2)]):
        assert [p.wait(120) for p in processes] == [0] * len(processes)
    one, first, second = (loop.load(tmp_path / name) for name in ('1-0.pt', '2-0.pt', '2-1.pt'))
    for name in 'DGS':
        assert all(torch.equal(first[name][k], second[name][k]) for k in first[name])
    assert max((one['S'][k] - first['S'][k]).abs().max() for k in one['S'] if 'tracked' not in k) < 1e-9
    assert max((one['G'][k] - first['G'][k]).abs().max() for k in one['G'] if k.endswith('running_var')) > 1e-3
    assert all((one['D'][k] - first['D'][k]).abs().max() < 1e-6 for k in one['D'] if 'v' not in k.rsplit('.', 1)[1])


def test_presets_of_precision_come_from_hardware_flags(monkeypatch):
    args = loop.add_flags(argparse.ArgumentParser()).parse_args(['--device', 'cpu'])
    monkeypatch.setattr(loop, 'has_bf16', lambda device: True)
    loop.launch(args)
    assert args.precision == 'bf16'
    args.precision = 'fp32'
    loop.launch(args)
    assert args.precision == 'fp32'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_graphs_replay_the_eager_updates():
    results = []
    for graph in (False, True):
        flat = loop.Flat(net().cuda(), 1e-2, graph=graph)
        x = torch.randn(4, 3, 9, 9, device='cuda')
        f = lambda part, flat=flat, x=x: (flat.net(x) ** 2).mean()
        for step in range(8):
            flat.now = step + 1
            x.copy_(torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step)))
            flat.update(f)
        results.append(flat.w.detach().clone())
    assert torch.allclose(*results, rtol=1e-3, atol=1e-5)
