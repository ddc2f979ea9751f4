"""What two ranks do: they follow one process and each other, resume, prune, and score together.

All of it runs in one pair of processes, because a process takes seconds to import torch."""
import json
import os
import subprocess

import numpy as np
import pytest
import torch
from helpers import (METHOD, SCORE, TINY, equal, pruned_weights_are_zero, ranks, records, same_checkpoints,
                     train)

import cli
import files
import flat
import loop
from models import sngan

LAZY = ['--r1', 1, '--r1-every', 2, '--pl', 2, '--pl-every', 3]
ADA = ['--aug', 'ada', '--ada-kimg', .2, '--ada-interval', 2]
RT = [*ADA, '--seed', 1, '--ada-target', -.9, '--lecam', '--lecam-start', 3]
PATHS = [*LAZY, *ADA, '--save-every', 2]
ONCE = ['--sync-bn', '--mirror', '--d-steps', 1, '--steps', 2, '--log-every', 1]
FIND = ['--steps', 2, '--rounds', 2, *SCORE]
BIRD = ['--method', 'early-bird', '--eb-every', 1, '--eb-threshold', 1]

# name -> commands (script, model of the tiny flags, further flags, directory)
JOBS = {
    'networks': [('networks', None, [], 'networks')],
    'once': [('train_sngan', 'sngan', ONCE, 'once-sngan'), ('train_biggan', 'biggan', ONCE, 'once-biggan')],
    'ada': [('train_sngan', 'sngan', [*RT, '--steps', 5], 'ada-cut'),
            ('train_sngan', 'sngan', [*RT, '--steps', 9], 'ada-cut'),
            ('train_sngan', 'sngan', [*RT, '--steps', 9], 'ada-whole')],
    'paths': [('train_stylegan2', 'stylegan2', [*PATHS, '--steps', 5], 'paths-cut'),
              ('train_stylegan2', 'stylegan2', [*PATHS, '--steps', 8], 'paths-cut'),
              ('train_stylegan2', 'stylegan2', [*PATHS, '--steps', 8], 'paths-whole')],
    'find': [('find_ticket', 'sngan', [*FIND, '--advaug', 'gd'], 'find-sngan'),
             ('find_ticket', 'biggan', [*FIND, '--sync-bn', '--batch-gpu', 2, *METHOD], 'find-biggan')],
    'bird': [('find_ticket', 'sngan', [*BIRD, '--steps', 2, '--rounds', 2], 'bird')],
}
WORKER = '''
import importlib, json, sys
import torch
torch.set_num_threads(1)
import loop, test_ranks
settling = loop.settling
loop.settling = lambda dim, device, batches=64, classes=0: settling(dim, device, min(batches, 2), classes)
with open(sys.argv[1]) as f:
    jobs = json.load(f)
for script, words, out in jobs:
    if script == 'networks':
        test_ranks.three_updates(out)
    else:
        module = importlib.import_module(script)
        module.main(module.get_args(words))
    print('done', out, flush=True)
'''


@pytest.fixture(scope='module')
def two_ranks(request, tmp_path_factory):
    """The directory that two ranks filled with the jobs of the tests that were chosen, and what they said."""
    root = tmp_path_factory.mktemp('ranks')
    names = {mark.args[0] for item in request.session.items for mark in item.iter_markers('job')}
    jobs = []
    for name in (name for name in JOBS if name in names):
        for script, model, flags, out in JOBS[name]:
            place = ['--out', root / out]
            if script == 'find_ticket':
                place = [model, *place, '--ticket', root / f'{out}.pt']
            words = [*place, *TINY[model], *flags] if model else []
            jobs.append((script, [str(word) for word in words], str(root / out)))
    (root / 'jobs.json').write_text(json.dumps(jobs))
    processes = ranks(2, '-c', WORKER, root / 'jobs.json')
    try:
        texts = [p.communicate(timeout=600)[0] for p in processes]
    except subprocess.TimeoutExpired:
        for p in processes:
            p.kill()
        texts = [p.communicate()[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], '\n'.join(text[-3000:] for text in texts)
    return root, texts


def three_updates(out):
    """Three updates of D, of G, and of a G in float64 with synchronised norms, on slices of batches."""
    loop.launch(loop.add_flags(loop.argparse.ArgumentParser()).parse_args(['--device', 'cpu']))
    torch.manual_seed(0)
    D = flat.Flat(sngan.Discriminator(8).to(memory_format=torch.channels_last), 1e-3)
    G = flat.Flat(sngan.Generator(16, 8).to(memory_format=torch.channels_last), 1e-3)
    S = sngan.Generator(16, 8).double()
    flat.sync_bn_(S)
    S = flat.Flat(S.to(memory_format=torch.channels_last), 1e-3)
    rng = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        x, z = torch.randn(8, 3, 16, 16, generator=rng), torch.randn(8, 128, generator=rng)
        x, z, z64 = (loop.of_this_rank(batch) for batch in (x, z, z.double()))
        D.now = G.now = S.now = step
        D.update(lambda part, x=x: torch.relu(1 - D.net(x)).mean())
        G.update(lambda part, z=z: -D.net(G.net(z)).mean())
        S.update(lambda part, z=z64: (S.net(z) ** 3 + S.net(z) ** 2).mean())
    os.makedirs(out, exist_ok=True)
    nets = {'D': D, 'G': G, 'S': S}
    torch.save({name: net.net.state_dict() for name, net in nets.items()}, f'{out}/{cli.world()[0]}.pt')


@pytest.mark.job('networks')
def test_updates_of_two_ranks_are_those_of_one_process_and_of_each_other(two_ranks, tmp_path):
    """D has no batch statistic: two halves equal the whole.

    G's BN statistics ride in the all-reduce: bit-identical ranks.  Synchronised, they equal the whole's."""
    three_updates(tmp_path)
    one = files.load(tmp_path / '0.pt')
    first, second = (files.load(two_ranks[0] / f'networks/{rank}.pt') for rank in (0, 1))
    for name in 'DGS':
        assert equal(first[name], second[name]), name

    def gap(name, *words):
        """The largest difference from one process, over tensors with one of these words in their name."""
        chosen = [key for key in one[name] if any(word in key for word in words)]
        return max((one[name][key] - first[name][key]).abs().max().item() for key in chosen)
    assert gap('S', 'weight', 'bias', 'running') < 1e-9
    assert gap('G', 'running_var') > 1e-3
    assert gap('D', 'original', '.u', 'bias') < 1e-6


@pytest.mark.job('once')
@pytest.mark.parametrize('model', ['sngan', 'biggan'])
def test_a_training_of_two_ranks_with_synchronised_norms_follows_one_process(two_ranks, tmp_path, model):
    """Images, flips, z and classes are drawn for the whole batch and sliced by rank."""
    train(model, tmp_path, *ONCE)
    two = records(two_ranks[0] / f'once-{model}/log.jsonl')
    for ours, one in zip(two, records(tmp_path / 'log.jsonl'), strict=True):
        for key in ('L_D', 'D_real', 'D_fake', 'L_G'):
            assert ours[key] == pytest.approx(one[key], rel=1e-4), (one['step'], key)


@pytest.mark.slow
@pytest.mark.job('ada')
def test_adas_p_and_lecams_anchors_survive_a_stop_bit_for_bit(two_ranks):
    root, _ = two_ranks
    same_checkpoints(root / 'ada-cut', root / 'ada-whole')
    state = files.load(root / 'ada-whole/last.pt')['state']
    assert state['ranks'] == 2 and state['lecam']['anchors'].all()
    assert state['ada']['p'] > 0 and state['ada']['sums'].any()


@pytest.mark.slow
@pytest.mark.job('paths')
def test_the_mean_path_length_survives_a_stop_bit_for_bit(two_ranks):
    root, _ = two_ranks
    same_checkpoints(root / 'paths-cut', root / 'paths-whole')
    assert files.load(root / 'paths-whole/last.pt')['state']['pl']['mean'] > 0


@pytest.mark.slow
@pytest.mark.job('find')
@pytest.mark.parametrize('model', ['sngan', 'biggan'])
def test_two_ranks_find_one_ticket_and_score_together(two_ranks, model):
    """find_ticket.py asserts that the ranks' masks are equal, bit for bit, whenever it writes a ticket."""
    out = two_ranks[0] / f'find-{model}'
    ticket, saved = files.load(f'{out}.pt'), files.load(out / 'round1/last.pt')
    assert abs(ticket['sparsity']['G'] - .36) < .001 and saved['done'] and saved['state']['ranks'] == 2
    score, = files.read_jsonl(out / 'round1/metrics.jsonl')
    assert np.isfinite(score['all']) and score['protocol']['n_gen'] == 12
    pruned_weights_are_zero(saved, files.load(out / 'ticket1.pt')['mask'])


@pytest.mark.slow
@pytest.mark.job('bird')
def test_two_ranks_find_the_same_early_bird(two_ranks):
    root, texts = two_ranks
    assert files.load(root / 'bird.pt')['round'] == 2 and files.load(root / 'bird/masks.pt')['step'] == 2
    assert sum('of a training saved' in text for text in texts) == 1
