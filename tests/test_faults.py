"""What a training does when numbers, files, disks, terminals or a second process fail it.

tests/faults.py is the campaign, by hand; `test_a_part_of_the_campaign_holds` runs a part of it.
"""
import functools
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import helpers
from helpers import (ROOT, SCORE, TINY, Killed, equal, parsed, process, refused, same_checkpoints, same_runs,
                     same_tickets, wait_for)

import cli
import files
import loop
import runs
import train_sngan
import trainer

train = functools.partial(helpers.train, 'sngan')
find = functools.partial(helpers.find, 'sngan')
DIVERGING = ['--steps', 40, '--d-steps', 1, '--res', 32, '--lr-g', '1e6', '--lr-d', '1e6']
OFTEN = ['--save-every', 1, '--log-every', 1]


def flip(path, seed=0):
    """Flip one bit in the middle of the largest tensor of a .pt file, which its checksum covers."""
    with open(path, 'rb') as f:
        data = bytearray(f.read())
    weight = max((value for value in files.load(path)['G'].values()), key=torch.numel)
    place = data.find(weight.numpy().tobytes())
    assert place > 0
    data[place + int(np.random.default_rng(seed).integers(weight.nbytes))] ^= 4
    with open(path, 'wb') as f:
        f.write(data)


def not_finite(folder):
    """The .pt files below a folder that hold NaN or infinity."""
    found = []
    for path in folder.rglob('*.pt'):
        if files.first_not_finite(torch.load(path, weights_only=True)):
            found.append(path.name)
    return found


def ended(call):
    """The exit code with which a call ends this process."""
    with pytest.raises(SystemExit) as e:
        call()
    return e.value.code


# ---- numbers that are not finite

@pytest.mark.parametrize('flags', [
    pytest.param([], marks=pytest.mark.slow), pytest.param([*SCORE, '--eval-every', 20], marks=pytest.mark.slow), OFTEN])
def test_a_training_that_diverges_is_never_saved_scored_or_shown_as_good(tmp_path, capsys, flags):
    """Weights of 10^17 have finite gradients and infinite BN statistics."""
    def call():
        return train(tmp_path / 'run', *DIVERGING, *flags)
    assert ended(call) == 3
    said = capsys.readouterr().out
    assert 'is not finite' in said and '--lr-g 1000000.0' in said
    assert not not_finite(tmp_path) and not os.path.exists(tmp_path / 'run/best.pt')
    if flags == OFTEN:
        assert '--init-from' in said and files.load(tmp_path / 'run/last.pt')['step'] > 0

    assert ended(call) == 3                                    # and says so before it begins
    said = capsys.readouterr().out
    assert 'this run ended at step' in said and said.index('this run ended') < said.rindex('error: step')


def test_images_that_are_not_finite_are_neither_shown_nor_scored(tmp_path, monkeypatch, capsys):
    """Finite weights, such as of a network in bf16, can make them."""
    def settled(self, batches):
        return lambda z, *y: torch.full((len(z), 3, 16, 16), float('nan'))
    monkeypatch.setattr(trainer.Observer, 'settled', settled)
    assert ended(lambda: train(tmp_path, '--steps', 1, *SCORE)) == 3
    assert 'an image of the averaged generator is not finite' in capsys.readouterr().out
    assert os.listdir(tmp_path / 'samples') == []

    monkeypatch.setattr(trainer.Observer, 'draw_grid', lambda self: None)
    monkeypatch.setattr(trainer.Observer, 'notes', lambda self: {})
    assert ended(lambda: train(tmp_path, '--steps', 1, *SCORE)) == 3
    assert not os.path.exists(tmp_path / 'metrics.jsonl') and not os.path.exists(tmp_path / 'best.pt')


@pytest.mark.slow
def test_a_ticket_of_networks_that_diverged_is_not_made(tmp_path):
    assert ended(lambda: find(tmp_path / 'find', '--rounds', 1, *DIVERGING)) == 3
    assert [path.name for path in tmp_path.rglob('ticket*.pt')] == ['ticket0.pt']


def test_a_run_that_comes_further_than_it_did_forgets_its_failure(tmp_path, capsys):
    train(tmp_path, '--steps', 1)
    loop.Checkpoints(tmp_path).note_failure(2, 'the gradient of w in D is not finite')
    train(tmp_path, '--steps', 3)
    assert 'ended at step 2 before, because the gradient of w' in capsys.readouterr().out
    train(tmp_path, '--steps', 4)
    assert 'before, because' not in capsys.readouterr().out


# ---- damaged files

def test_a_damaged_checkpoint_is_replaced_by_the_one_before_and_the_result_is_the_same(tmp_path, capsys):
    train(tmp_path / 'whole', *OFTEN, '--steps', 4)
    train(tmp_path / 'cut', *OFTEN, '--steps', 3)
    flip(tmp_path / 'cut/last.pt')
    train(tmp_path / 'cut', *OFTEN, '--steps', 3)
    said = capsys.readouterr().out
    sound = [files.load(tmp_path / f'cut/{name}.pt')['step'] for name in ('last', 'last-1')]
    assert sound == [3, 2]                                     # the damaged one is not kept
    train(tmp_path / 'cut', *OFTEN, '--steps', 4)
    assert 'last.pt is damaged' in said and 'last-1.pt' in said and 'resumed at step 2' in said
    same_runs(tmp_path / 'cut', tmp_path / 'whole')
    assert [files.load(tmp_path / f'cut/{name}.pt')['step'] for name in ('last', 'last-1')] == [4, 3]

    flip(tmp_path / 'cut/last.pt')
    flip(tmp_path / 'cut/last-1.pt')
    refused(capsys, lambda: train(tmp_path / 'cut', *OFTEN, '--steps', 5), 'damaged', 'no older checkpoint')


def test_a_checkpoint_that_lacks_a_part_is_damaged(tmp_path):
    train(tmp_path, '--aug', 'ada', '--steps', 2)
    job = trainer.Training('sngan', parsed('sngan', '--aug', 'ada', '--steps', 3, '--out', tmp_path), train_sngan.build)
    good = files.load(tmp_path / 'last.pt')

    def take_over(saved):
        torch.save(saved, tmp_path / 'x.pt')
        return loop.take_over(tmp_path / 'x.pt', job.nets, job.sums, job.stateful)

    def without(part, name):
        return {key: value for key, value in part.items() if key != name}
    opt, state = good['opt'], good['state']
    bad = [without(good, name) for name in ('G', 'E', 'opt', 'state', 'step', 'done')]
    bad += [{**good, 'state': without(state, name)} for name in ('sums', 'ada', 'ranks')]
    bad += [{**good, 'state': {**state, 'sums': torch.ones(1)}}, {**good, 'state': {**state, 'ada': [1]}},
            {**good, 'E': {}}, {**good, 'G': without(good['G'], 'l1.weight')}, {**good, 'opt': {'G': {}, 'D': {}}},
            {**good, 'opt': {**opt, 'D': {**opt['D'], 'm': {}}}}, {**good, 'opt': {**opt, 'G': -3}}]
    for saved in bad:
        with pytest.raises(files.Damaged, match='x.pt is damaged'):
            take_over(saved)
    assert take_over(good) == (2, True, 1)


def test_a_refused_command_leaves_the_run_as_it_was(tmp_path, capsys):
    """Fewer steps than the checkpoint has, another seed, and a checkpoint that cannot be read."""
    train(tmp_path / 'run', '--steps', 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*.*') if path.is_file()}
    refused(capsys, lambda: train(tmp_path / 'run', '--steps', 1), '--steps 1', 'step 2')
    refused(capsys, lambda: train(tmp_path / 'run', '--steps', 3, '--seed', 1), '--seed')
    flip(tmp_path / 'run/last.pt')
    refused(capsys, lambda: train(tmp_path / 'run', '--steps', 3), 'last.pt is damaged')
    for name in ('args.json', 'log.jsonl'):
        path = tmp_path / 'run' / name
        assert path.read_bytes() == before[path], name


@pytest.mark.slow
def test_damaged_texts_of_a_run_are_refused_by_name_and_named_by_the_report(tmp_path, capsys):
    train(tmp_path / 'run', '--steps', 2, *OFTEN)
    files.append_jsonl(tmp_path / 'run/metrics.jsonl', {'step': 1, 'score': 'FD'})
    assert runs.damage(tmp_path) == []
    for name in ('args.json', 'log.jsonl', 'metrics.jsonl', 'subset.json'):
        path = tmp_path / 'run' / name
        good = path.read_bytes()
        for bad in (good[:9] + b'\n' + good, b'\xff\xfe' + good, b'[3]\n', b'{}\n'):
            path.write_bytes(bad)
            sentence, = runs.damage(tmp_path)
            assert sentence.startswith(f'{path} is damaged')
            if name != 'subset.json':                          # that one is written anew
                with pytest.raises(files.Damaged, match=name):
                    train(tmp_path / 'run', '--steps', 3)
        path.write_bytes(good)
    args = tmp_path / 'run/args.json'
    for bad in ('3', '"x"', 'null', '[]', '{"command": 3}', '{"identity": {}, "command": null}', '[' * 100000):
        (tmp_path / 'find/args.json').parent.mkdir(exist_ok=True)
        (tmp_path / 'find/args.json').write_text(bad)
        assert len(runs.damage(tmp_path)) == (bad[0] != '{' or 'identity' not in bad)
        assert runs.collect_findings(tmp_path) == {}
    args.unlink()
    refused(capsys, lambda: train(tmp_path / 'run', '--steps', 3), 'without its args.json')


def test_a_script_ends_in_a_sentence_where_a_file_is_damaged(tmp_path, capsys, monkeypatch):
    def main(args):
        raise args
    for error, code, words in (
            (files.Damaged('x.json is damaged (empty)'), 2, 'error: x.json is damaged (empty)\n'),
            (files.NotFinite('G/w'), 3, 'error: G/w is not finite'), (KeyboardInterrupt(), 130, 'Ctrl-C'),
            (OSError(28, 'No space left on device', 'run/x'), 1, 'the disk refuses run/x: No space left'),
            (SystemExit(7), 7, ''), (BrokenPipeError(), 141, '')):
        assert ended(lambda error=error: cli.script(main, lambda: error)) == code
        assert words in capsys.readouterr().err


# ---- kills

@pytest.mark.slow
def test_a_kill_between_two_files_costs_neither(tmp_path, monkeypatch):
    """Between best.pt and its line in metrics.jsonl, and between ticket0.pt and what follows."""
    flags = ['--steps', 2, *SCORE]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        def killed(path, record):
            if 'metrics' in path:
                raise Killed
        patch.setattr(files, 'append_jsonl', killed)
        train(tmp_path / 'cut', *flags)
    for name in ('cut', 'whole'):
        train(tmp_path / name, *flags)
    best = [files.load(tmp_path / name / 'best.pt') for name in ('cut', 'whole')]
    assert equal(best[0]['E'], best[1]['E']) and best[0]['score'] == best[1]['score']
    assert len(files.read_jsonl(tmp_path / 'cut/metrics.jsonl')) == 1

    flags = ['--steps', 1, '--rounds', 1]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        def killed_before(*args):
            raise Killed
        patch.setattr(trainer.Observer, 'observe', killed_before)
        find(tmp_path / 'found', *flags)
    for name in ('found', 'fresh'):
        find(tmp_path / name, *flags)
        same_tickets(tmp_path / f'{name}/ticket0.pt', tmp_path / 'found/ticket0.pt')
    assert files.load(tmp_path / 'found/ticket0.pt')['data'] is None


# ---- two processes

@pytest.mark.slow
def test_a_directory_that_another_process_holds_is_refused_by_name_and_left_alone(tmp_path, capsys):
    train(tmp_path / 'run', '--steps', 1)
    find(tmp_path / 'find', '--steps', 1, '--rounds', 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*.*') if path.is_file()}
    holder = 'import files, sys, time; [files.hold(x) for x in sys.argv[2:]]; open(sys.argv[1], "w"); time.sleep(99)'
    p = process('-c', holder, tmp_path / 'ready', tmp_path / 'run', tmp_path / 'find/round0')
    wait_for(tmp_path / 'ready', p)
    owner = f'process {p.pid} on '
    try:
        for flags in (['--steps', 2], ['--seed', 1], ['--restart']):
            refused(capsys, lambda flags=flags: train(tmp_path / 'run', *flags), f'{tmp_path}/run', owner)
            refused(capsys, lambda flags=flags: find(tmp_path / 'find', '--rounds', 2, *flags), 'round0', owner)
    finally:
        p.kill()
        p.communicate()
    for path, content in before.items():
        if path.name != '.lock':
            assert path.read_bytes() == content, path
    train(tmp_path / 'run', '--steps', 2)


# ---- signals, pipes and disks, in real processes

TRAINING = ['train_sngan.py', *TINY['sngan'], '--steps', '300', *OFTEN, '--out', 'run']


def shell(where, line, *words):
    """The ended `bash -c line` in a folder, where "$@" is a python script with its flags."""
    script = [sys.executable, f'{ROOT}/{words[0]}', *map(str, words[1:])]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(['bash', '-c', line, 'sh', *script], cwd=where, env=env, capture_output=True, text=True)


def goes_on(out):
    """Whether a run was saved, is resumable, and leaves nothing half-way; returns its step."""
    saved = files.load(out / 'last.pt')
    assert not saved['done'] and not [*out.rglob('*.tmp')]
    return saved['step']


@pytest.mark.slow
def test_a_lost_terminal_saves_and_stops(tmp_path):
    p = process(f'{ROOT}/train_sngan.py', *TRAINING[1:-1], tmp_path / 'run')
    wait_for(tmp_path / 'run/last.pt', p)
    p.send_signal(signal.SIGHUP)
    text = p.communicate(timeout=60)[0]
    assert p.returncode == 129 and 'resume with' in text and 'Traceback' not in text
    assert goes_on(tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('sink', ['| head -3', '>/dev/full'])
def test_an_output_that_nobody_reads_saves_and_stops_without_a_traceback(tmp_path, sink):
    done = shell(tmp_path, f'"$@" {sink}; exit ${{PIPESTATUS[0]}}', *TRAINING)
    assert done.stderr == '' and done.returncode == 141
    assert goes_on(tmp_path / 'run') < 300


@pytest.mark.slow
def test_a_training_without_any_output_trains(tmp_path):
    done = shell(tmp_path, '"$@" >&-', *TRAINING, '--steps', 2)
    assert (done.stderr, done.returncode) == ('', 0) and files.load(tmp_path / 'run/last.pt')['done']


@pytest.mark.slow
def test_ctrl_c_before_the_training_begins_says_nothing_long(tmp_path):
    for wait in (.1, 1.):
        p = process(f'{ROOT}/train_sngan.py', *TRAINING[1:-1], tmp_path / 'run')
        time.sleep(wait)
        p.send_signal(signal.SIGINT)
        text = p.communicate(timeout=60)[0]
        assert p.returncode in (130, -signal.SIGINT) and 'Traceback' not in text


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_that_says_what_is_safe_and_with_room_the_run_goes_on(tmp_path):
    """The shell allows no file of more than 200 kB; a checkpoint is larger, and so is its log after a while."""
    done = shell(tmp_path, 'ulimit -f 200; "$@"', *TRAINING, '--steps', 2, '--ch-g', 32)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    for word in ('error: the disk refuses run/last.pt', 'too large', 'at step 1', 'same command', 'train_sngan.py'):
        assert word in done.stderr, done.stderr
    assert not [*tmp_path.rglob('*.tmp')]

    for name in ('run', 'whole'):
        train(tmp_path / name, '--steps', 2, '--ch-g', 32, *OFTEN)
    same_checkpoints(tmp_path / 'run', tmp_path / 'whole')


def test_a_run_directory_that_goes_away_is_said_at_once(tmp_path, monkeypatch, capsys):
    def take_away(*args):
        os.rename(tmp_path / 'run', tmp_path / 'elsewhere')
    monkeypatch.setattr(trainer.Training, 'after_step', take_away)
    args = parsed('sngan', '--out', tmp_path / 'run', '--steps', 9, *OFTEN)
    assert ended(lambda: cli.script(train_sngan.main, lambda: args)) == 1
    error = capsys.readouterr().err
    assert f'the disk refuses {tmp_path}/run/log.jsonl' in error and 'at step 1' in error


# ---- the campaign

@pytest.mark.slow
def test_a_part_of_the_campaign_holds():
    words = shlex.split(f'{sys.executable} {ROOT}/tests/faults.py --quick --kind finite')
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
