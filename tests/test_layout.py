"""The layout: who may import whom, names that mean one thing, functions and classes that fit a screen.

A module is named by its path, models/sngan.  A file of the layout that is not there is not checked."""
import ast
import collections
import os

import pytest
from helpers import ROOT

LEAVES = {'advaug', 'augment', 'losses', 'prune', 'metrics', 'models', 'data'}     # and all files of folders
SCRIPT = {'gan', 'trainer', 'flat', 'loop', 'cli', 'files', *LEAVES}

# module or folder -> what its files may import
ARROWS = {
    'train_sngan': SCRIPT, 'train_biggan': SCRIPT, 'train_stylegan2': SCRIPT,
    'find_ticket': {'trainer', 'loop', 'cli', 'files', 'metrics', 'prune'},    # and train_MODEL at run time
    'trainer': {'gan', 'flat', 'loop', 'cli', 'files', *LEAVES},
    'gan': {'advaug', 'augment', 'losses'},
    'loop': {'cli', 'files'}, 'cli': {'files'}, 'files': set(), 'flat': set(),
    'advaug': set(), 'augment': set(), 'losses': set(), 'prune': set(),
    'metrics': {'data/images'},                                         # in its command alone, for --ref RUN
    'models': set(), 'models/transfer': {'models/stylegan2'}, 'data': set(), 'data/make_emoji': {'data/images'},
    'generate': {'flat', 'loop', 'cli', 'files', *LEAVES},
    'runs': {'files', *LEAVES},
    'report': {'runs', 'webpage', 'cli', 'files', *LEAVES},
    'webpage': {'runs', 'files'},
}
COMMON_NAMES = {'forward', 'backward', 'split', 'stages', 'state', 'load', 'main', 'get_args', 'build',
                'add_flags', 'RANGES'}


def source_files():
    """{module: path} of all sources, without the tests."""
    found = {}
    for folder in ('', 'models', 'data', 'paper'):
        here = os.path.join(ROOT, folder)
        for file in sorted(os.listdir(here)) if os.path.isdir(here) else []:
            if file.endswith('.py') and file != '__init__.py':
                found[os.path.join(folder, file.removesuffix('.py'))] = os.path.join(here, file)
    return found


def tree_of(path):
    with open(path) as f:
        return ast.parse(f.read())


FILES = source_files()
STRAY = {module for module in FILES if not os.path.dirname(module) and module not in ARROWS}
MODULES = {module: tree_of(path) for module, path in FILES.items() if module not in STRAY}


def imports(tree, folder=''):
    """The modules of ours that a file in a folder imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = '.'.join(part for part in (folder if node.level else '', node.module) if part)
            names |= {origin} | {f'{origin}.{alias.name}' for alias in node.names}
    paths = {name.replace('.', '/') for name in names}
    return paths & {*MODULES}


IMPORTS = {module: imports(tree, os.path.dirname(module)) for module, tree in MODULES.items()}


def test_every_module_of_the_top_level_has_its_place_in_the_layout():
    assert not STRAY


def test_every_import_follows_the_arrows():
    for module, found in IMPORTS.items():
        allowed = ARROWS.get(module, ARROWS.get(os.path.dirname(module)))
        if allowed is None:
            continue                                           # the reproduction imports anything
        beyond = {name for name in found if name not in allowed and os.path.dirname(name) not in allowed}
        assert not beyond, f'{module} imports {sorted(beyond)}'


def test_no_imports_form_a_cycle():
    def visit(module, way):
        assert module not in way, ' -> '.join([*way[way.index(module):], module])
        for name in sorted(IMPORTS[module]):
            visit(name, [*way, module])
    for module in MODULES:
        visit(module, [])


def test_test_files_import_helpers_and_never_each_other():
    here = os.path.join(ROOT, 'tests')
    for file in sorted(os.listdir(here)):
        if file.endswith('.py'):
            for node in ast.walk(tree_of(os.path.join(here, file))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert not [name for name in names if name and name.startswith('test_')], file


# ---- names and sizes

def definitions(body, where):
    """(name, place) of what a module defines: functions, classes, variables, and those of its classes."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, where
        if isinstance(node, ast.ClassDef):
            yield from definitions(node.body, f'{where}:{node.name}')
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from ((name.id, where) for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, (ast.If, ast.Try)):
            yield from definitions(node.body, where)


def test_no_name_is_defined_in_more_than_three_places():
    places = collections.defaultdict(set)
    for module, tree in MODULES.items():
        for name, where in definitions(tree.body, module):
            places[name].add(where)
    often = {name: sorted(where) for name, where in places.items() if len(where) > 3}
    assert not {name for name in often if name not in COMMON_NAMES and not name.startswith('__')}, often


@pytest.mark.parametrize('module', MODULES)
def test_classes_and_functions_fit_a_screen(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            assert len(methods) <= 13, f'{node.name} has {len(methods)} methods'
        elif isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (105 if node.name == 'main' else 60), f'{node.name} has {lines} lines'
