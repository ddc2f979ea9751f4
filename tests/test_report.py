"""runs.py and report.py: what lies in run directories, and the page of everything below a folder."""
import glob
import os
import re

import numpy as np
import pytest

import report
import runs
from made_runs import here, lines_of, make_all, make_run, read_jsonl, unrendered, write_jsonl  # noqa: F401

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def page_of(*argv):
    """The page of a folder."""
    with open(report.main(report.get_args(list(argv)))) as f:
        return f.read()


def test_everything_below_a_folder_is_one_page_with_its_costs(here, unrendered):
    make_all(lines_of('fig2'), grids=True)
    make_run('runs/demo-8/unscored', 0., 1.)
    os.remove('runs/demo-8/unscored/metrics.jsonl')
    text = page_of('runs')
    assert 'No scores yet: runs/demo-8/unscored.' in text and text.count('| run | steps |') == 2
    ticket = [line for line in text.splitlines() if line.startswith('| ticket 48.80% |')]
    assert len(ticket) == 2 * 2                                # of both shares, and their directories
    assert ticket[0].endswith('| 0.1 (0.5) | 8 (32) |')
    files = os.listdir('runs/report')
    assert {'grids-sngan-fashion-mnist-0.1-32.png', 'score-sngan-fashion-mnist-1.0-32.png'} <= {*files}


def test_a_page_without_matplotlib_has_its_tables_and_samples_and_says_so(here, monkeypatch):
    monkeypatch.setattr(runs, 'CAN_DRAW', False)
    monkeypatch.setattr(report, 'CAN_DRAW', False)
    make_run('runs/a', 0., 70., grids=True)
    text = page_of()
    assert 'No curves: matplotlib is not installed.' in text and '70.0 ± 2.0' in text
    assert glob.glob('runs/report/*.png') == ['runs/report/grids.png']


def test_a_folder_without_runs_is_refused_in_a_sentence(here, capsys):
    with pytest.raises(SystemExit) as e:
        page_of('nothing')
    assert e.value.code == 2 and 'nothing: no run with a log line' in capsys.readouterr().err


def test_a_published_number_is_not_on_the_page_of_my_runs(here, unrendered):
    make_run('runs/a', 0., 70., name='FID', model='biggan', data='cifar100', frac=.1)
    assert 'published' not in page_of().lower()


def test_runs_with_one_label_are_told_apart_by_their_directories(here, unrendered):
    make_run('runs/faces/find/round0', 0., 70.)
    make_run('runs/faces/dense', 0., 60.)
    make_run('runs/faces/ticket', .36, 50.)
    text = page_of()
    names = re.findall(r'^\| ([^|]+) \| [0-9]', text, re.M)
    assert sorted(names) == ['dense, in dense', 'dense, in find/round0', 'ticket 36.00%']
    change = [line for line in text.splitlines() if line.startswith('| ticket 36.00% | 8 |')]
    assert '| -10.0 ± 4.0 |' in change[0]                      # the rows are those of the dense network


# ---- cells

def test_differences_within_the_spread_are_equal():
    def run(v, std, step=4, seed=0):
        return {'seed': seed, 'flags': {'res': 32}, 'model': 'x', 'scores': [
            {'step': step, 'all': v, 'all_std': std, 'protocol': {'n_ref': {}}}]}

    def change(*runs):
        return report.change_cell({'is_dense': False, 'runs': runs}, dense)
    dense = [run(11., 1., 8), run(10., 1.), run(20., 1., 4, 1)]
    assert change(run(11.9, 1.)) == '= +1.9 ± 2.0' and change(run(12.1, .5)) == '+2.1 ± 1.5'
    assert change(run(12., .5, 8)) == '= +1.0 ± 1.5' and change(run(12., .5, 9)) == ''
    assert change(run(12., .5, 4, 2)) == ''
    assert report.change_cell({'is_dense': True, 'runs': dense}, dense) == ''
    assert change(run(12., .5), run(23., .5, 4, 1)) == '= +2.5 ± 6.4 (2 seeds)'


def test_a_label_says_what_was_trained_and_how():
    def label(pruned=0., **flags):
        base = {'aug': 'none', 'advaug': 'none', 'adv_noise': None, 'seed': 0}
        return runs.run_label({**base, **flags}, {'G': pruned, 'D': 0.})
    for text, made in (
            ('dense, seed 2', label(seed=2)),
            ('ticket 36.00% + DiffAug on reals only', label(.36, aug='diffaug', aug_on='real')),
            ('dense + DiffAug + AdvAug', label(aug='diffaug', aug_on='both', advaug='gd')),
            ('dense + ADA p 0.5 + R_LC + AdvAug G', label(aug='ada', ada_p=.5, lecam=.3, advaug='g')),
            ('ticket 20.00% + other weights + noise', label(.2, reinit=1, advaug='gd', adv_noise=.01)),
            ('dense + narrow + margin 1.09', label(small_dense='x', margin=1.09)),
            ('dense + freezed', label(transfer='freezed'))):
        assert made == text


# ---- findings

def test_a_run_counts_the_trainings_of_its_ticket_of_its_like_and_of_its_start(here):
    make_run('w', 0., 1.)
    find = 'find_ticket sngan --rounds 3 --out f --ticket f.pt'
    like = ('find_ticket sngan --method random-layers --like f/ticket2.pt --out l --ticket l.pt '
            '--init-from w/last.pt')
    findings = {}
    for command in (find, like):
        finding = runs.parse_finding(command.split())
        findings |= {finding['out']: finding, finding['ticket']: finding}
    assert findings['l']['rounds'] == 2 and findings['f']['rounds'] == 3
    for mask, origin, before in (
            (None, (None, 0), []),
            ('f/ticket0.pt', (findings['f'], 0), []),
            ('f/ticket2.pt', (findings['f'], 2), ['f/round0', 'f/round1']),
            ('f.pt', (findings['f'], 3), ['f/round0', 'f/round1', 'f/round2']),
            ('x/ticket0.pt', (None, 0), []),
            ('x/ticket2.pt', (None, None), [None]),
            ('l.pt', (findings['l'], 2), ['f/round0', 'f/round1', 'w'])):
        assert runs.ticket_origin(mask, findings) == origin
        assert runs.trainings_before({'mask': mask}, findings) == before
    os.makedirs('f/early')                                     # of --rewind
    assert runs.trainings_before({'mask': 'f/ticket1.pt'}, findings) == ['f/early', 'f/round0']
    assert runs.trainings_before({'init_from': 'gone/last.pt'}, findings) == [None]


# ---- curves

def test_curves_are_those_of_the_records(here):
    make_run('runs/a', 0., 70., aug='ada')
    records = [{**r, 'copy': .1, 'copy_std': .01} for r in read_jsonl('runs/a/metrics.jsonl')]
    write_jsonl('runs/a/metrics.jsonl', records)
    make_run('runs/b', .2, 60.)
    found = {name: figure for name, figure, _ in runs.curves(runs.collect('runs'))}
    assert list(found) == ['score.png', 'copy.png', 'accuracy.png', 'ada.png']

    scores = {c.get_label(): c.lines[0].get_data() for c in found['score.png'].axes[0].containers}
    assert {label: (list(x), list(y)) for label, (x, y) in scores.items()} == {
        'dense + ADA': ([4, 8], [80., 70.]), 'ticket 20.00%': ([4, 8], [70., 60.])}
    held = found['accuracy.png'].axes[1].lines[0].get_data()   # means over two of four lines
    assert np.allclose(held, [[3., 5., 7.], [.5, .5, .5]])
    (steps, p), = [line.get_data() for line in found['ada.png'].axes[0].lines]
    assert list(steps) == [2, 4, 6, 8] and list(p) == [.3] * 4


def test_the_figure_of_accuracies_has_no_panel_without_a_curve(here):
    make_run('runs/a')
    log = read_jsonl('runs/a/log.jsonl')
    for record in log:
        del record['acc_held']                                 # of a folder without held-out images
    write_jsonl('runs/a/log.jsonl', log)

    def panels():
        _, figure, _ = runs.accuracy_curves(runs.collect('runs'))
        assert all(ax.lines for ax in figure.axes)
        return [ax.get_title() for ax in figure.axes]
    assert panels() == ['training images', 'generated images']
    make_run('runs/b')
    assert panels() == ['training images', 'held-out images', 'generated images']


# ---- who imports whom

def test_the_page_of_my_runs_needs_no_paper_and_nothing_imports_it():
    def imported(path):
        with open(path) as f:
            return set(re.findall(r'^(?:from|import) (\w+)', f.read(), re.M))
    top = glob.glob(f'{ROOT}/*.py') + glob.glob(f'{ROOT}/data/*.py') + glob.glob(f'{ROOT}/models/*.py')
    own = {os.path.basename(path).removesuffix('.py') for path in top} | {'data', 'models'}
    assert not [path for path in top if 'paper' in imported(path)]
    assert imported(f'{ROOT}/report.py') & own == {'cli', 'files', 'prune', 'runs', 'webpage'}
    assert imported(f'{ROOT}/runs.py') & own == {'files'}
