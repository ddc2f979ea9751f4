"""Every leaf file, alone or with the file it serves in an empty folder, runs the example of its docstring."""
import ast
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LEAVES = ['augment.py', 'advaug.py', 'losses.py', 'flat.py', 'files.py', 'cli.py', 'loop.py', 'metrics.py', 'prune.py',
          'models/sngan.py', 'models/biggan.py', 'models/stylegan2.py', 'models/transfer.py',
          'models/convert_nvidia.py', 'data/images.py']
IN_COMMAND = {'metrics.py': {'data'}}                           # what its command imports
COMPANIONS = {'models/transfer.py': ['models/stylegan2.py'], 'loop.py': ['cli.py', 'files.py'],
              'cli.py': ['files.py']}    # {file: what it serves and travels with}


def example(source):
    """The indented block under 'Use:' of a module docstring."""
    lines = ast.get_docstring(ast.parse(source), clean=False).split('\n')
    start = lines.index('Use:') + 1
    end = next(i for i in range(start, len(lines)) if not lines[i].strip())
    return textwrap.dedent('\n'.join(lines[start:end]))


@pytest.mark.slow
@pytest.mark.parametrize('leaf', LEAVES)
def test_a_leaf_alone_runs_its_docstring(leaf, tmp_path):
    for path in (leaf, *COMPANIONS.get(leaf, [])):
        shutil.copy(os.path.join(ROOT, path), tmp_path)
    with open(tmp_path / os.path.basename(leaf)) as f:
        source = f.read()
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    command, env = [sys.executable, '-c', example(source)], {**env, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Written from the docstrings alone, by somebody who has copied the leaves beside a loop of their own.
DCGAN = '''
import torch, advaug, augment, images, losses, metrics, prune
from torch.nn import BatchNorm2d, Conv2d, ConvTranspose2d, Flatten, LeakyReLU, Linear, ReLU, Sequential, Tanh
photos = images.load('photos', res=32).images
D = Sequential(Conv2d(3, 8, 4, 4), LeakyReLU(.2), Conv2d(8, 16, 4, 4), LeakyReLU(.2), Flatten(), Linear(64, 1))
G = Sequential(ConvTranspose2d(9, 16, 8), BatchNorm2d(16), ReLU(), ConvTranspose2d(16, 3, 4, 4), Tanh())
masks = {net: prune.magnitude(net, prune.ones(net), rho=.2) for net in (G, D)}
held = [prune.hold_(net, masks[net]) for net in (G, D)]
adam_G, adam_D = [torch.optim.Adam(net.parameters(), 1e-3, (0., .9)) for net in (G, D)]
(f_D, f_G), lecam, ada = losses.LOSSES['hinge'], losses.LeCam(start=0), augment.Controller(images=8, kimg=.1)
for step in range(1, 9):
    x, fake = images.batch(photos, torch.randint(len(photos), (8,))), G(torch.randn(8, 9, 1, 1)).detach()
    T = augment.draw('bgc', x, ada.p)
    on_real, on_fake = D(T(x)), D(T(fake))                                      # [8, 1]
    ada.add(real=on_real, fake=on_fake)
    adam_D.zero_grad()
    (losses.d_loss(on_real, on_fake, f_D) + lecam(on_real, on_fake)).backward()
    adam_D.step(), lecam.step(step), ada.adjust(step)
    adam_G.zero_grad()
    h = G[:3](torch.randn(8, 9, 1, 1))
    advaug.backward(h, lambda h: losses.g_loss(D(augment.DiffAugment(G[3:](h), 'color')), f_G))
    adam_G.step()
print('KID', metrics.kid(D[:5](fake), D[:5](x)))
'''
CHECK = '''
for net in (G, D):
    weights = dict(net.named_parameters())
    assert all((weights[name] == 0).equal(~mask) for name, mask in masks[net].items())
assert ada.r != 0 and (ada.p > 0 or ada.r < .6)
'''


@pytest.mark.slow
def test_a_gan_of_somebody_else_takes_every_leaf(tmp_path):
    for leaf in ('advaug.py', 'augment.py', 'losses.py', 'metrics.py', 'prune.py', 'data/images.py'):
        shutil.copy(os.path.join(ROOT, leaf), tmp_path)
    (tmp_path / 'photos').mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f'photos/{i}.png')
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', DCGAN + CHECK], cwd=tmp_path, capture_output=True, text=True,
                          env={**env, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert 'nan' not in done.stdout


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_leaf_imports_no_sibling(leaf):
    own = {'models', 'data', 'tests'}
    for d, _, files in os.walk(ROOT):
        own |= {f[:-3] for f in files if f.endswith('.py') and '.venv' not in d}
    with open(os.path.join(ROOT, leaf)) as f:
        tree = ast.parse(f.read())
    companions = {path.removesuffix('.py') for path in COMPANIONS.get(leaf, []) if '/' not in path}
    assert not imported(tree.body) & own - companions
    assert not imported(ast.walk(tree)) & own - companions - IN_COMMAND.get(leaf, set())


def imported(nodes):
    """The first words of the modules that these nodes of a syntax tree import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.split('.')[0] for name in names}
