"""The commands of README.md, in order, tiny: they run on small sets made here, and their flags are as printed.

Two updates each: every training gets --steps 2 and a preset of narrow networks behind what the README prints.
"""
import glob
import importlib
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torchvision
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = {'sngan': '--preset demo --ch-g 8 --ch-d 8 --g-batch 8', 'biggan': '--preset demo --ch-g 8 --ch-d 8',
         'stylegan2': '--preset demo --ch-g 256 --ch-d 256 --ch-max 8 --res 32'}
TRAINING = '--steps 2 --batch 8 --d-steps 1 --metrics none --device cpu --precision fp32'


def readme(*headings):
    """The commands of the bash blocks under these headings, without comments."""
    with open(f'{ROOT}/README.md') as f:
        parts = re.split(r'^## ', f.read(), flags=re.M)
    found = []
    for part in parts:
        if part.split('\n')[0] in headings:
            for block in re.findall(r'```bash\n(.*?)```', part, re.S):
                found += [re.sub(r'\s+#.*', '', line) for line in block.splitlines() if line.strip()]
    assert found, f'README.md has no commands under {headings}'
    return found


def small_photos(folder, n=12):
    """A folder of JPEGs of random blocks."""
    os.makedirs(folder)
    rng = np.random.default_rng(0)
    for i in range(n):
        x = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(x).resize((64, 64), Image.NEAREST).save(f'{folder}/{i}.jpg')


def small_cifar(root, name, classes, monkeypatch):
    """CIFAR in its on-disk format, ten training images a class and one test image a class."""
    kind = {'cifar10': torchvision.datasets.CIFAR10, 'cifar100': torchvision.datasets.CIFAR100}[name]
    os.makedirs(root / kind.base_folder)
    rng = np.random.default_rng(0)
    key = 'labels' if name == 'cifar10' else 'fine_labels'
    each = 10 // len(kind.train_list)
    for files, per_class in ((kind.train_list, each), (kind.test_list, 1)):
        for file, _ in files:
            labels = [*range(classes)] * per_class
            x = rng.integers(0, 256, (len(labels), 3072), np.uint8)
            with open(root / kind.base_folder / file, 'wb') as f:
                pickle.dump({'data': x, key: labels}, f)
    with open(root / kind.base_folder / kind.meta['filename'], 'wb') as f:
        pickle.dump({kind.meta['key']: [f'class {c}' for c in range(classes)]}, f)
    monkeypatch.setattr(kind, '_check_integrity', lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *a: True)


def run(line):
    """One command of the README in this process, small, in the current directory."""
    words = shlex.split(line)
    script = next(i for i, word in enumerate(words) if word.endswith('.py'))       # behind python or torchrun ...
    name, flags = words[script][:-3].replace('/', '.'), words[script + 1:]
    flags = [newest_run(word) if 'HASH' in word else word for word in flags]

    module = importlib.import_module(name)
    if name == 'find_ticket':
        flags += f'{TRAINING} {SMALL[flags[0]]} --rounds 1'.split()
    elif name.startswith('train_'):
        flags += f'{TRAINING} {SMALL[name.removeprefix("train_")]}'.split()
    if 'freezed' in flags:
        flags += ['--freeze-layers', '2']
    return module.main(module.get_args(flags))


def newest_run(pattern):
    """The run directory that the README calls runs/MODEL-DATA-FRAC-HASH."""
    found = glob.glob(pattern.replace('HASH', '*'))
    assert found, f'no run {pattern}'
    return max(found, key=os.path.getmtime)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_my_own_folder(here):
    small_photos('photos')
    lines = [line for line in readme('My own folder (StyleGAN2)') if 'convert_nvidia' not in line]
    run('python train_stylegan2.py --data photos/')            # the first screen's command
    shutil.copy(newest_run('runs/stylegan2-photos-1.0-HASH') + '/last.pt', 'ffhq.pt')
    for line in lines:
        run(line)
    made = glob.glob('**/*', recursive=True)
    assert 'photos.pt' in made and 'runs/report/report.md' in made
    for name in ('grid.png', 'loop.gif'):
        assert name not in made and glob.glob(f'runs/stylegan2-photos-1.0-*/{name}')


def test_a_ticket_on_sngan(here, monkeypatch):
    small_cifar(here / 'datasets', 'cifar10', 10, monkeypatch)
    for line in readme('A ticket on SNGAN'):
        run(line)
    assert len(glob.glob('runs/sngan-cifar10-0.1-*/last.pt')) == 2 and os.path.exists('ticket.pt')


@pytest.mark.slow
def test_biggan_on_eight_gpus(here, monkeypatch):
    small_cifar(here / 'datasets', 'cifar100', 100, monkeypatch)
    for line in readme('BigGAN on eight GPUs'):
        run(line)
    assert glob.glob('runs/biggan-cifar100-0.1-*/last.pt')
    assert glob.glob('runs/biggan-cifar100-0.1-*/grid.png')


@pytest.mark.slow
def test_one_table_of_the_paper_as_commands():
    def printed(line):
        return subprocess.run(['bash', '-c', line], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    for line in readme('One table of the paper'):
        if '--dry-run' in line:
            dry = re.split(r'\||>|;', line)[0]
            rows = printed(dry).splitlines()
            assert len(rows) > 50 and all('.py' in row for row in rows), dry
        else:
            name, dry = line.split()[-1], line.replace('run_all.sh', 'run_all.sh --dry-run')
            assert printed(dry).strip(), name


@pytest.mark.slow
def test_the_demo(tmp_path):
    """`bash run_all.sh` in a copy of the tree, two updates a training: tickets, five trainings, table and grids."""
    tree = tmp_path / 'tree'
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.git', '.venv', 'runs', 'datasets', '__pycache__'))
    done = subprocess.run(['bash', 'run_all.sh'], cwd=tree, capture_output=True, text=True,
                          env={**os.environ, 'SCALE': 'smoke', 'STEPS': '2', 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout + done.stderr
    made = os.listdir(tree / 'runs/faces-smoke/report')
    assert 'report.md' in made and 'grids.png' in made
