"""paper/experiments.py and run_all.sh: rows are commands that scripts take, with their files; endings."""
import argparse
import importlib
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

import find_ticket
from paper import experiments

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = re.compile(r'--(?:mask|like|small-dense|init-from) (\S+)')


def rows(*argv):
    return experiments.all_rows(experiments.get_args(argv))


@pytest.mark.parametrize('scale', experiments.SCALES)
def test_every_row_is_one_command_whose_files_come_from_an_earlier_stage(scale):
    made, place = {}, {}
    for stage, name, command in rows('all', '--scale', scale, '--seeds', '0', '1'):
        out = re.search(r'--out (\S+)', command)[1]
        assert place.setdefault(out, command) == command, 'two trainings in one directory'
        for path in FILES.findall(command):
            if path != 'ffhq.pt':                              # the user's own
                assert any(path.startswith(o) and s < stage for o, s in made.items()), (path, command)
        made[out] = min(stage, made.get(out, stage))
        if ticket := re.search(r'--ticket (\S+)', command):
            made[ticket[1]] = stage
        rounds = re.search(r'--rounds (\d+)', command)
        if 'find_ticket' in command:
            assert int(rounds[1]) >= 1 if rounds else '--like' in command, command
    for path in {p for _, _, c in rows('all', '--scale', scale) for p in FILES.findall(c)}:
        k, finding = re.search(r'ticket(\d+)\.pt', path), place.get(os.path.dirname(path), '')
        if k:                                                  # no later a round than is found
            assert int(k[1]) <= int(re.search(r'--rounds (\d+)', finding)[1]), (path, finding)


@pytest.mark.parametrize('scale, models', [('demo', ''), ('paper', 'biggan imagenet')])
def test_every_script_takes_its_rows(scale, models, monkeypatch):
    """Tickets and checkpoints are not there: the flags that name them are left out, with what needs them."""
    monkeypatch.setattr(argparse.ArgumentParser, 'exit', lambda self, status, message: pytest.fail(message))
    seen = set()
    for _, _, command in rows('all', '--scale', scale):
        command = FILES.sub('', command)
        command = re.sub(r' --transfer \S+| --mine-steps \d+| --reinit|--method random-layers', '', command)
        command = re.sub(r'--(out|ticket) \S+', '', command)
        command = re.sub(r'--data (100-shot|AnimalFace)\S+', '--data 100-shot-panda', command)
        kind = re.sub(r' [\d.]+', ' 0', command)               # a script takes one number as another
        if kind in seen or any(word in command for word in models.split()):
            continue
        seen.add(kind)
        script, *flags = command.split()
        args = (find_ticket if script == 'find_ticket' else importlib.import_module(script)).get_args(flags)
        assert args
    assert len(seen) > 20


def test_a_shared_training_is_one_command_and_a_shared_finding_has_the_most_rounds():
    both = [c for _, _, c in rows('fig2', 'fig7')]
    found = {c for c in both if 'find_ticket' in c and c.endswith('sngan-fashion-mnist-0.1/find')}
    assert len(found) == 1 and '--rounds 8 ' in found.pop()
    table, leak = ({c for _, n, c in rows('table6', 'leak') if n == name} for name in ('table6', 'leak'))
    assert table & leak and table - leak


def test_a_seed_fixes_weights_subset_and_place():
    first, second = ([c for _, _, c in rows('table6', '--seeds', s)] for s in '01')
    again = [c.replace('-s1/', '/').replace(' --seed 1 --data-seed 1', '') for c in second]
    assert again == first != second


@pytest.mark.parametrize('steps, kinds', [('1', ['static']), ('600', ['static', 'set', 'rigl'])])
def test_the_sparse_rivals_of_a_ticket_are_as_sparse_as_it_and_leave_out_moves_that_never_come(steps, kinds):
    found = [c.split() for _, _, c in rows('controls', '--scale', 'demo', '--steps', steps) if '--dst' in c]
    assert [line[line.index('--dst') + 1] for line in found] == kinds
    for script, *flags in found:
        args = importlib.import_module(script).get_args(flags)         # exits 2 on moves that never come
        assert args.density == pytest.approx(.8 ** 8, abs=1e-4)


def steps_of(name, folder):
    """{the last part of --out: steps} of the trainings of an experiment, as published, below one folder."""
    found = {}
    for _, _, command in rows(name, '--scale', 'paper'):
        place, training = re.search(r'--out runs/paper/(\S+)/(\S+)', command).groups()
        if place == folder:
            found[training] = int(re.search(r'--steps (\d+)', command)[1])
    return found


def test_diffaugment_must_double_the_updates_of_the_papers_own_tables():
    bigs = steps_of('table3', 'biggan-cifar100-0.1')
    styles = steps_of('table4', 'stylegan2-cifar100-0.1')
    for steps, once in ((bigs, 100000), (styles, 250000)):
        for training, count in steps.items():
            longer = training == 'dense-twice' or 'diffaug' in training and not training.endswith('once')
            assert count == once * (2 if longer else 1), training
        assert {'dense-twice', 'dense-diffaug-once'} < set(steps)      # the rows at equal updates
    # DiffAugment's own recipe is as long without DiffAugment.
    assert set(steps_of('fewshot', 'stylegan2-100-shot-panda-1').values()) == {18750}
    for name, folder in (('stylegan2', 'stylegan2-cifar10-diffaugment-0.2'), ('ffhq', 'stylegan2-ffhq-5000')):
        assert set(steps_of(name, folder).values()) == {781250}


def test_few_images_must_be_trained_by_the_papers_recipe_beside_diffaugments():
    once = {'find': 100000, 'ticket3-plain': 100000,
            'dense-diffaug-advaug': 200000, 'ticket3-diffaug-advaug': 200000}
    for data in experiments.SHOTS:
        assert steps_of('table5', f'stylegan2-{data}-paper-1') == once
        assert once.keys() < steps_of('table5', f'stylegan2-{data}-1').keys()
    commands = [command for _, _, command in rows('table5', '--scale', 'paper') if '-paper-1/' in command]
    args = [importlib.import_module('train_stylegan2').get_args(command.split()[1:])
            for command in commands if command.startswith('train') and '--mask' not in command]
    assert {(a.batch, a.lr_g, a.lr_d, a.preset) for a in args} == {(5, 2e-4, 2e-4, 'paper')}


def test_published_sets_and_shares_must_be_trained_by_the_published_recipe():
    asked = {(re.search(r'--data (\S+) --frac (\S+)', c).groups()) for _, _, c in rows('ffhq', '--scale', 'paper')}
    assert {frac for data, frac in asked if data == 'ffhq'} == {'1000', '5000', '10000', '30000', '1'}
    assert {frac for data, frac in asked if data == 'lsun-cat'} == {'1000', '5000', '10000', '30000'}
    for _, _, command in rows('stylegan2', '--scale', 'paper'):
        whole = '--frac 1 ' in command and '--aug diffaug' in command
        assert whole == ('--aug-policy color,cutout' in command), command


def trainings(command):
    """How many networks are trained by one command."""
    if not command.startswith('find_ticket'):
        return 1
    method = re.search(r'--method (\S+)', command)
    if method:
        return 0 if method[1] in find_ticket.WITHOUT_TRAINING else 1
    return int(re.search(r'--rounds (\d+)', command)[1])


def count_trainings(*names):
    return sum(trainings(command) for command in {c for _, _, c in rows(*names, '--scale', 'paper')})


def test_the_trainings_that_results_counts_must_be_those_of_the_commands():
    with open(f'{ROOT}/RESULTS.md') as f:
        text = f.read()
    lines = re.findall(r'`SCALE=paper GPUS=8 bash run_all.sh ([\w ]+)` \| (\d+) \|', text)
    assert len(lines) > 10
    every = []
    for names, count in lines:
        every += names.split()
        assert count_trainings(*names.split()) == int(count), names
    together, beside = map(int, re.search(r'together are (\d+) trainings .* (\d+) trainings\)', text).groups())
    assert (count_trainings(*every), count_trainings('all')) == (together, beside)


# ---- run_all.sh on scripts that only say that they ran

FAKE = """import os, sys
out = sys.argv[sys.argv.index('--out') + 1]
print('threads', os.environ.get('OMP_NUM_THREADS'))
with open('ran', 'a') as f:
    print(os.path.basename(out), file=f)
sys.exit(int(os.environ.get('END_' + os.path.basename(out).replace('-', '_').replace('.', '_'), 0)))
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / 'paper').mkdir()
    for name in ('run_all.sh', 'paper/experiments.py'):
        shutil.copy(f'{ROOT}/{name}', tmp_path / name)
    for name in ('train_sngan', 'find_ticket', 'paper/leak'):
        (tmp_path / f'{name}.py').write_text(FAKE)
    (tmp_path / 'paper' / 'page.py').write_text("import sys\nprint('page of', sys.argv[1:])\n")
    python = tmp_path / 'python'                               # says that the packages are there, quickly
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nexec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    return tmp_path


def run_all(place, *names, **env):
    env = {**os.environ, 'PYTHON': str(place / 'python'), **env}
    done = subprocess.run(['bash', 'run_all.sh', *names], cwd=place, env=env, capture_output=True, text=True)
    return done, (place / 'ran').read_text().split() if (place / 'ran').exists() else []


@pytest.mark.parametrize('jobs', ['1', '3'])
def test_a_failed_row_is_named_and_stops_no_other(place, jobs):
    done, ran = run_all(place, 'table6', JOBS=jobs, END_dense_noise='3')
    assert done.returncode == 1 and done.stdout.count('failed: ') == 2, done.stdout
    ways = ['plain', 'noise', 'advaug', 'advaug-g', 'margin-1.045']
    assert sorted(ran) == sorted(f'dense-{way}' for way in 2 * ways)
    assert "page of ['table6', '--rows'" in done.stdout


@pytest.mark.parametrize('jobs', ['1', '2'])
def test_what_is_stopped_stops_everything_with_its_code(place, jobs):
    done, ran = run_all(place, 'table6', JOBS=jobs, END_dense_noise='75')
    assert done.returncode == 75 and len(ran) < 6 and "page of ['table6'" not in done.stdout


def test_trainings_side_by_side_take_one_thread_each_and_name_their_lines(place, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')
    (place / 'report.py').write_text('')
    (place / 'paper/evidence.py').write_text('import sys\nprint("evidence", *sys.argv[1:])')
    done, ran = run_all(place, JOBS='3')
    assert done.returncode == 0 and ran[0] == 'find' and len(ran) == 5, done.stdout + done.stderr
    assert 'evidence compare runs/faces\n' in done.stdout
    assert done.stdout.count('3 trainings at a time, threads of each: 1;') == 1
    for name in ran:
        assert f'runs/faces/{name}: threads 1\n' in done.stdout
    alone, _ = run_all(place, JOBS='1')
    assert alone.stdout.count('\nthreads None\n') == 5 and 'at a time' not in alone.stdout


def test_findings_come_before_what_needs_them_and_the_dry_run_prints_each_command_once(place):
    done, ran = run_all(place, 'controls', 'fig2', JOBS='4')
    assert done.returncode == 0, done.stdout + done.stderr
    found = [i for i, name in enumerate(ran) if name in ('find', 'oneshot3', 'random8', 'init3', 'early')]
    like = [i for i, name in enumerate(ran) if re.fullmatch(r'random-layers\d', name)]
    assert max(found) < min(like)
    dry, _ = run_all(place, '--dry-run', 'controls', 'fig2')
    lines = dry.stdout.splitlines()
    assert len(lines) == len(set(lines)) == len(ran)
    assert all(re.match(r'\S+ (train_sngan|find_ticket)\.py (sngan )?--data', line) for line in lines)
    stages = [run_all(place, '--dry-run', 'controls', 'fig2', STAGE=s)[0].stdout.splitlines() for s in '1234']
    assert sum(stages, []) == lines and all(stages[:3])


def test_the_leak_meter_sees_the_runs_of_the_first_seed(place):
    done, ran = run_all(place, 'leak', SEEDS='0 1')
    assert done.returncode == 0 and len(ran) == 2 * 7 + 1 and ran[-1] == 'leak'
    command = next(line for line in done.stdout.splitlines() if 'paper/leak.py' in line)
    assert command.count('runs/demo/sngan-fashion-mnist-0.1/dense-') == 7 and '-s1/' not in command
    assert command.endswith('--out runs/demo/report/leak')


def test_unknown_names_and_scales_are_refused(place):
    for env, names in (({}, ['table9']), ({'SCALE': 'huge'}, ['table1']), ({}, ['demo', 'table1'])):
        done, ran = run_all(place, *names, **env)
        assert done.returncode == 2 and not ran and done.stderr.strip()


def test_variables_that_mean_nothing_are_refused_by_name(place):
    for setting in ('STEPS=0', 'STEPS=-1', 'STEPS=abc', 'STEPS=08', 'STEPS=1 2', 'GPUS=0', 'GPUS=abc',
                    'JOBS=0', 'JOBS=-1', 'SCALE=abc', 'STAGE=5',
                    'SEEDS=-1', 'SEEDS=abc', 'SEEDS=0 *', 'SEEDS=0-2'):
        name, value = setting.split('=')
        for words in (['demo'], ['--dry-run', 'table4']):
            done, ran = run_all(place, *words, **{name: value})
            assert done.returncode == 2 and not ran and not done.stdout, setting
            assert done.stderr.startswith(f'error: {setting}: use '), done.stderr
    done, _ = run_all(place, '--dry-run', 'table6', SEEDS=' 0  1 ', STEPS='', GPUS='2', JOBS='3')
    assert done.returncode == 0 and '--nproc_per_node 2' in done.stdout and '--seed 1' in done.stdout


def test_quick_tests_are_those_that_are_not_marked_slow(place):
    (place / 'tests').mkdir()
    (place / 'pytest.ini').write_text('[pytest]\nmarkers = slow\n')
    (place / 'tests' / 'test_both.py').write_text("""import pytest
@pytest.mark.slow
def test_slow():
    assert False
def test_quick():
    pass
""")
    (place / 'tests' / 'test_all_slow.py').write_text("""import pytest
@pytest.mark.slow
def test_slow():
    pass
""")
    for words, code, said in (
            ([], 1, '1 failed, 1 passed'), (['quick'], 0, '1 passed, 1 deselected'),
            (['quick', 'tests/test_both.py'], 0, '1 passed, 1 deselected')):
        done, _ = run_all(place, 'test', *words)
        assert (done.returncode != 0) == code and said in done.stdout, (words, done.stdout + done.stderr)
