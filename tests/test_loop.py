"""loop.py: the order of the data, random streams, settled BN, sums, files, what a resume compares, when.

Whole runs that stop, resume and end are in test_scripts.py."""
import argparse
import copy
import itertools

import numpy as np
import torch
from helpers import all_refused, refused

import files
import loop


def flags(*words):
    return loop.add_flags(argparse.ArgumentParser()).parse_args([str(word) for word in words])


# ---- random streams

def test_every_image_is_seen_once_an_epoch_even_when_the_set_is_smaller_than_the_batch():
    for n, batch in ((10, 4), (10, 64), (7, 7)):
        starts = range(0, 10 * n * batch, batch)
        row = np.concatenate([loop.order(n, start, batch, seed=3) for start in starts])
        for epoch in row[:len(row) // n * n].reshape(-1, n):
            assert sorted(epoch) == list(range(n))
    assert list(loop.order(10, 25, 5, 0)) == list(loop.order(10, 20, 10, 0))[5:]           # by position alone


def test_streams_and_steps_do_not_meet():
    streams = itertools.product((0, 1), ('D', 'G'), ((), (1,), (1, 0), (2,)))
    draws = {tuple(loop.rng(seed, name, *step).integers(2 ** 62, size=2)) for seed, name, step in streams}
    assert len(draws) == 16
    assert loop.rng(0, 'D', 5).random() == loop.rng(0, 'D', 5).random()


def test_latents_belong_to_their_seed():
    assert torch.equal(loop.latents([3, 5], 8, 'cpu')[1], loop.latents(range(5, 6), 8, 'cpu')[0])


def test_what_is_drawn_for_the_whole_batch_is_sliced_by_rank(monkeypatch):
    whole = loop.gaussian(loop.rng(0, 'D', 1), 8, 5)
    slices = []
    for rank in range(4):
        monkeypatch.setenv('RANK', str(rank))
        monkeypatch.setenv('WORLD_SIZE', '4')
        slices.append(loop.gaussian(loop.rng(0, 'D', 1), 8, 5))
    assert torch.equal(torch.cat(slices), whole) and len(slices[0]) == 2


# ---- observers

def test_settled_statistics_are_the_mean_over_the_batches_and_the_network_is_left_alone():
    torch.manual_seed(0)
    original = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    before = copy.deepcopy(original.state_dict())
    batches = [(torch.randn(16, 3, 9, 9),) for _ in range(5)]
    settled = loop.settle(original, batches)
    hidden = [original[0](b[0]) for b in batches]
    means = torch.stack([h.mean((0, 2, 3)) for h in hidden])                       # [5, 8]
    variances = torch.stack([h.transpose(0, 1).flatten(1).var(1) for h in hidden])
    assert torch.allclose(settled[1].running_mean, means.mean(0), atol=1e-6)
    assert torch.allclose(settled[1].running_var, variances.mean(0), rtol=1e-5)
    assert not settled.training and all(torch.equal(v, before[k]) for k, v in original.state_dict().items())


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


def test_sums_are_means_since_the_last_reading():
    sums = loop.Sums('cpu', 'a', 'b')
    assert sums.add(a=torch.tensor([1., 3.])).tolist() == [1., 3.]
    sums.add(a=torch.tensor(4.))
    assert sums.means() == {'a': 3.} and sums.means() == {}


# ---- files

def test_digest_sees_every_number_and_name():
    x = {'a': torch.arange(4.), 'b': {'c': 1}}
    y = {'a': torch.arange(4.), 'b': {'c': 2}}
    z = {'a': torch.arange(4.) + torch.tensor([0, 0, 0, 1e-6]), 'b': {'c': 1}}
    assert files.digest(x) == files.digest(copy.deepcopy(x)) and len({files.digest(v) for v in (x, y, z)}) == 3


def test_a_file_of_another_kind_is_refused_by_what_it_is(tmp_path, capsys):
    pair = {'G': {}, 'D': {}}
    files = {'last': pair, 'best': {'E': {}}, 'ticket': {'init': pair, 'mask': pair}, 'list': [1],
             'code': {'init': pair, 'mask': np.float64(1)}}
    for name, saved in files.items():
        torch.save(saved, tmp_path / f'{name}.pt')
    (tmp_path / 'text.pt').write_text('hello')

    def read(words):
        return loop.read(tmp_path / words[0], '--mask', 'init', 'mask')
    all_refused(capsys, read, [
        (['last.pt'], ['is a last.pt', 'give a ticket']), (['best.pt'], ['is a best.pt', 'give a ticket']),
        (['list.pt'], 'something else'), (['text.pt'], 'not a file of torch.save'),
        (['code.pt'], 'more than tensors'), (['none.pt'], 'no such file')])
    assert read(['ticket.pt']) == files['ticket']


# ---- what a resume compares

def test_what_changes_the_result_is_compared_and_names_the_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = loop.run_identity(flags(), data_fingerprint='x')
    assert plain == loop.run_identity(flags('--steps', 9, '--out', 'y', '--save-every', 2), data_fingerprint='x')
    other_seed = loop.run_identity(flags('--seed', 1), data_fingerprint='x')
    other_data = loop.run_identity(flags(), data_fingerprint='y')
    assert len({files.digest(identity) for identity in (plain, other_seed, other_data)}) == 3
    same = {'seed': 0, 'betas': (0., .9), 'data_fingerprint': 'x'}
    files.write_json('args.json', {'identity': same})
    loop.compare('.', same)
    changed = {'seed': 1, 'betas': (0., .5), 'data_fingerprint': 'y'}
    refused(capsys, lambda: loop.compare('.', changed), '--seed was 0, is 1', "fingerprint was 'x', is 'y'",
            '--betas was [0.0, 0.9], is [0.0, 0.5]', '--restart')


# ---- what falls due

def test_the_first_checkpoint_comes_after_a_minute_and_the_next_after_ten(tmp_path, monkeypatch):
    now = [1000.]
    monkeypatch.setattr(loop.time, 'time', lambda: now[0])
    run = loop.Run('toy', flags('--out', tmp_path))
    due = []
    for second in range(0, 1400, 10):
        now[0] = 1000. + second
        run.agree()
        if run.timed['save']:
            due.append(second)
            run.last_save = now[0]
    assert due == [70, 680, 1290]


def test_precision_follows_the_hardware_unless_it_is_given(monkeypatch):
    args = flags('--device', 'cpu')
    monkeypatch.setattr(loop, 'has_bf16', lambda device: True)
    loop.launch(args)
    assert args.precision == 'bf16'
    args.precision = 'fp32'
    loop.launch(args)
    assert args.precision == 'fp32'


def test_the_order_is_that_of_the_epochs_position_by_position():
    for n, start, count in ((7, 0, 5), (7, 5, 30), (3, 100, 64), (1000, 990, 64), (1, 0, 4)):
        slow = []
        for position in range(start, start + count):
            epoch, place = divmod(position, n)
            slow.append(loop.epoch_permutation(n, epoch, 3)[place])
        assert loop.order(n, start, count, 3).tolist() == slow


def test_more_ranks_than_GPUs_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '8')
    args = argparse.Namespace(device='cuda', precision='fp32', deterministic=False)
    refused(capsys, lambda: loop.launch(args), '8 ranks', '2 GPUs', '--nproc_per_node 2')
