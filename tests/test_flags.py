"""The flags of all scripts: each number has its range, and places that cannot be written are refused."""
import argparse
import os

import numpy as np
import pytest
import torch
from helpers import TINY, all_refused, parsed, refused, script

import cli
import find_ticket
import generate
import loop
import losses
import report
import trainer
from paper import experiments, leak, page

MODELS = 'sngan', 'biggan', 'stylegan2'
SCRIPTS = {                                  # script: its get_args, and words that it needs
    **{f'train_{model}': (script(model).get_args, TINY[model]) for model in MODELS},
    'find_ticket': (find_ticket.get_args, ['sngan', *TINY['sngan'], '--rounds', '1']),
    'generate': (generate.get_args, ['run']),
    'report': (report.get_args, ['runs']),
    'leak': (leak.get_args, ['runs']),
    'page': (page.get_args, ['fig7', '--rows', 'rows.txt']),
    'experiments': (experiments.get_args, ['table4'])}


# ---- numbers

class Caught(Exception):
    """Brings the parser of a script to the test."""


def caught(parser, *args):
    raise Caught(parser)


def numbers_of(get_args, words, monkeypatch):
    """The flags of a script that take numbers, as argparse holds them."""
    with monkeypatch.context() as patch, pytest.raises(Caught) as e:
        patch.setattr(argparse.ArgumentParser, 'parse_known_args', caught)
        get_args(words)
    parser, = e.value.args
    return [action for action in parser._actions if action.option_strings and action.type is not None]


@pytest.mark.parametrize('name', SCRIPTS)
def test_every_number_of_every_script_has_a_range_without_nan_and_infinity(name, monkeypatch, capsys):
    get_args, words = SCRIPTS[name]
    table = []
    for action in numbers_of(get_args, words, monkeypatch):
        flag = action.option_strings[-1]
        values = ['-1000000000000', f'{10 ** 30}']
        if action.type is float:
            values = ['nan', 'inf', '1e400', '-1e400']
        for value in values:
            given = [flag, value, value] if action.nargs == 2 else [f'{flag}={value}']
            table.append(([*words, *given], flag))
    all_refused(capsys, get_args, table)
    assert len(table) > {'report': -1, 'page': -1}.get(name, 3)


def test_ranges_hold_the_values_of_every_preset():
    tables = [trainer.RANGES, loop.RANGES, losses.RANGES, trainer.images.RANGES, trainer.augment.RANGES,
              trainer.advaug.RANGES, trainer.metrics.RANGES]
    for model in MODELS:
        recipe = script(model)
        ranges = {}
        for table in [*tables, getattr(recipe, 'RANGES', {})]:
            ranges.update(table)
        for preset, settings in recipe.PRESETS.items():
            for name in settings.keys() & ranges.keys():
                value = settings[name]
                for number in value if isinstance(value, list) else [value]:
                    assert number is None or cli.lies_within(number, ranges[name]), (model, preset, name)


def test_an_interval_has_the_ends_that_it_says():
    for interval, inside, outside in (
            ('[0, 1)', [0, 0., .999], [-1e-9, 1, 1.5]),
            ('(0, inf)', [1e-300, 10 ** 400], [0, float('inf'), -1]),
            ('[1, 1e12]', [1, 10 ** 12], [0, 10 ** 12 + 1]),
            ('(-inf, inf)', [-1e300, 0], [float('-inf')])):
        assert all(cli.lies_within(number, interval) for number in inside), interval
        assert not any(cli.lies_within(number, interval) for number in [*outside, float('nan')]), interval


# Flags that say nothing, beside those of a tiny training, and words of the sentence
NONSENSE = [
    ('--lecam -1', '--lecam -1.0 is out of range: use a number in (0, inf)'),
    ('--mask=', "--mask '' is empty"), ('--init-from=', "--init-from '' is empty"),
    ('--margin -1', '--margin -1.0'), ('--margin nan', '--margin nan'),
    ('--lecam 0', '--lecam 0.0'), ('--lecam 1 --lecam-decay 1', '--lecam-decay 1.0'),
    ('--seed -1', '--seed -1'), ('--data-seed -1', '--data-seed -1'), ('--adam-eps nan', '--adam-eps nan'),
    ('--betas .5 nan', '--betas nan'), ('--holdout 0', '--holdout 0'),
    ('--lecam --lecam-start -1', '--lecam-start -1'),
    ('--advaug gd --adv-pgd 1000000000', '--adv-pgd 1000000000'), ('--advaug gd --adv-pgd 0', '--adv-pgd 0'),
    ('--advaug gd --adv-lambda-d -1', '--adv-lambda-d -1.0'),
    ('--advaug gd --adv-eps inf', '--adv-eps inf'), ('--advaug gd --adv-eps -1', '--adv-eps -1.0'),
    ('--advaug gd --adv-step 0', '--adv-step 0.0'), ('--advaug gd --adv-noise nan', '--adv-noise nan'),
    ('--aug ada --ada-p 2', '--ada-p 2.0'), ('--aug ada --ada-pmax 0', '--ada-pmax 0'),
    ('--aug ada --ada-target 1', '--ada-target 1.0'), ('--aug ada --ada-kimg 0', '--ada-kimg 0'),
    ('--aug ada --ada-interval 0', '--ada-interval 0'),
    ('--metrics 3-1', "--metrics 3-1: there is no '3-1'"),
    ('--is-splits 0', '--is-splits 0'), ('--res 1000000', '--res 1000000'), ('--g-batch 0', '--g-batch 0'),
    ('--ch-g 10000000', '--ch-g 10000000'), ('--ch-g 900000', ['--ch-g 900000', 'GB']),
    ('--res 4096 --ch-g 4096', ['--res 4096', 'GB'])]
STYLE_NONSENSE = [
    ('--ch-max 0', '--ch-max 0'), ('--group 0', '--group 0'), ('--mapping 0', '--mapping 0'),
    ('--mapping -1', '--mapping -1'), ('--r1 nan', '--r1 nan'), ('--pl inf', '--pl inf'),
    ('--ema-kimg 1 --ema-rampup inf', '--ema-rampup inf'), ('--ema-kimg nan', '--ema-kimg nan')]


@pytest.mark.parametrize('model, table', [('sngan', NONSENSE), ('stylegan2', STYLE_NONSENSE)])
def test_numbers_without_meaning_and_networks_without_room_are_refused(model, table, capsys):
    all_refused(capsys, lambda flags: parsed(model, *flags), [(line.split(), words) for line, words in table])


def short_on_a_gpu(args):
    raise torch.OutOfMemoryError


def test_what_the_memory_cannot_hold_ends_a_script_in_a_sentence_and_other_mistakes_show(capsys):
    for main in (lambda args: torch.empty(10 ** 15), lambda args: np.empty(10 ** 15), lambda args: [0] * 10 ** 15,
                 short_on_a_gpu):
        refused(capsys, lambda main=main: cli.script(main, lambda: None), 'memory', '--batch-gpu', '--seeds')
    with pytest.raises(RuntimeError, match='size of tensor a'):
        cli.script(lambda args: torch.ones(2) + torch.ones(3), lambda: None)


# ---- places

PLACES = [                                   # script, flag, whether it names a folder
    *((f'train_{model}', '--out', True) for model in MODELS),
    ('find_ticket', '--out', True), ('find_ticket', '--ticket', False),
    ('generate', '--each', True), ('generate', '--out', False),
    ('report', '--out', True), ('leak', '--out', True), ('page', '--out', True)]
UNUSABLE = ['', 'file/x', 'pipe', 'pipe/x', '/dev/null/x', '/proc/none/x',
            'file/../x', 'n' * 300, 'x/' + 'n' * 300, 'x/' * 2000, 'a\nb', 'a\0b', '\udcff']


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a file, a folder and a pipe, and what the scripts read."""
    monkeypatch.chdir(tmp_path)
    for name in ('file', 'rows.txt', 'run'):
        (tmp_path / name).write_text('x')
    (tmp_path / 'folder').mkdir()
    os.mkfifo('pipe')
    return tmp_path


@pytest.mark.parametrize('name, flag, folder', PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_made(name, flag, folder, place, capsys):
    get_args, words = SCRIPTS[name]
    before = sorted(os.listdir())
    paths = [*UNUSABLE, 'file' if folder else 'folder']
    if name == 'generate' and flag == '--out':                 # a picture, whose folder must be there
        paths = ['folder/' * 2 + 'x.png', 'file/x.png', '/proc/x.png', 'n' * 300 + '.png', '\udcff.png', '']
        os.mkdir('folder.png')
        before = sorted(os.listdir())
        paths.append('folder.png')
    all_refused(capsys, get_args, [([*words, f'{flag}={path}'], flag) for path in paths])
    assert sorted(os.listdir()) == before and not os.listdir('folder')


def test_a_place_on_a_disk_that_is_read_only_is_refused_and_others_are_not(place, monkeypatch, capsys):
    for path, folder in (('new', True), ('new/deep/x', True), ('folder', True), (None, True),
                         ('new/x.pt', False), ('file', False), ('ein Ordner \u3000\xe4', True)):
        cli.check_output('--out', path, folder)
    assert os.listdir('folder') == [] and not os.path.exists('new')

    def read_only(dir):
        raise OSError(30, 'Read-only file system')
    monkeypatch.setattr(cli.tempfile, 'TemporaryFile', read_only)
    words = '--out new cannot be written to disk (Read-only file system): name another directory'
    all_refused(capsys, lambda flags: cli.check_output('--out', 'new', True), [([], words)])


def test_a_ticket_in_the_place_of_a_file_of_the_finding_is_refused(place, capsys):
    get_args, words = SCRIPTS['find_ticket']
    all_refused(capsys, get_args, [
        ([*words, '--out', 'a/b', '--ticket', ticket], f'--ticket {ticket}')
        for ticket in ('a', 'a/b', './a/b', 'a/b/ticket0.pt', 'a/b/args.json', 'missing/', '.')])
    for ticket in ('a/b.pt', 'a/b/t.pt', 'a/b/ticket1.pt'):
        assert get_args([*words, '--out', 'a/b', '--ticket', ticket]).ticket == ticket


def test_the_empty_name_is_no_folder_of_runs(capsys):
    all_refused(capsys, report.get_args, [([''], "RUNS ''")])
    all_refused(capsys, leak.get_args, [(['runs', ''], "RUNS ''")])


def test_a_device_that_is_not_there_is_refused(place, monkeypatch, capsys):
    monkeypatch.setattr(loop.torch.cuda, 'is_available', lambda: False)
    for name in ('train_sngan', 'find_ticket', 'generate'):
        get_args, words = SCRIPTS[name]
        all_refused(capsys, get_args, [([*words, '--device', 'cuda'], '--device cuda')])
