"""Every leaf file, alone or with the file it serves in an empty folder, runs the example of its docstring."""
import ast
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

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
