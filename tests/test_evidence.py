"""paper/evidence.py: the cells of the plan, what is trained again, intervals, the best of k, and the page."""
import itertools
import os

import numpy as np
import pytest
from scipy.stats import ttest_rel

import cli
import files
import train_sngan
from paper import evidence


def write(root, training, last, choose=0., report=0., step=evidence.STEPS):
    """The scores of a training in results/, of which the last one is `last`."""
    folder = f'{root}/results/{evidence.PLACE}/{training}'
    os.makedirs(folder)
    for at, score in ((step // 2, last + 1), (step, last)):
        record = {'step': at, 'all': score, 'choose': choose, 'report': report, 'kid': 1., 'recall': .5, 'copy': 0.}
        files.append_jsonl(f'{folder}/metrics.jsonl', record)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, 'ROOT', str(tmp_path))
    return tmp_path


def test_the_interval_is_that_of_students_paired_test():
    rng = np.random.default_rng(0)
    for n in (2, 5, 8):
        a, b = rng.random(n), rng.random(n)
        mean, half = evidence.interval(a - b)
        expected = ttest_rel(a, b).confidence_interval(.95)
        assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))
    assert np.isnan(evidence.interval([3.])[1])
    said = [evidence.verdict(*pair) for pair in ((-2., 1.), (2., 1.), (1., 2.), (1., float('nan')))]
    assert said == ['lower', 'higher', 'indistinguishable', 'too few seeds']


def test_differences_are_paired_by_seed_and_in_percent_of_the_base(root):
    for seed, dense, ticket in ((0, 100., 90.), (1, 200., 210.), (3, 300., 300.)):
        write(root, f's{seed}/find/round0', dense)
        write(root, f's{seed}/ticket5', ticket)
    write(root, 's2/ticket5', 50.)                             # its base is missing
    write(root, 's4/find/round0', 1., step=1000)               # not finished
    assert evidence.differences('ticket 67.23 %', 'dense') == pytest.approx([-10., 5., 0.])
    assert list(evidence.final('dense')) == [0, 1, 3]


def test_the_best_of_k_is_the_mean_over_all_choices_of_k_by_the_choosing_half(root):
    pairs = [(3., 30.), (1., 50.), (2., 20.), (4., 10.)]
    for seed, (choose, report) in zip((0, 1, 6, 7), pairs):
        write(root, f's{seed}/find/round0', 0., choose, report)
    for k in (1, 2, 3):
        chosen = [min(some, key=lambda pair: pair[0])[1] for some in itertools.combinations(pairs, k)]
        assert evidence.expected_best(k) == (pytest.approx(sum(chosen) / len(chosen)), 4)
    assert evidence.expected_best(5) is None


def test_a_finding_is_done_when_its_scores_are_there_and_nobody_needs_its_tickets(root):
    cells = evidence.cells_of(0)
    number = next(i for i, cell in enumerate(cells) if cell.name == 's0/find')
    find, later = cells[number], cells[number + 1:]
    assert not evidence.is_done(find, later)
    for training in find.trainings:
        write(root, training, 1.)
    assert not evidence.is_done(find, later)                   # its tickets went with another machine
    for cell in later:
        for training in cell.trainings:
            write(root, training, 1.)
    assert evidence.is_done(find, later)


def test_every_command_of_the_plan_is_one_and_trains_what_its_row_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, 'check_output', lambda *args, **how: None)
    cells = [cell for seed in (0, 7) for cell in evidence.cells_of(seed)]
    trainings = {training for cell in cells for training in cell.trainings}
    assert {f's0/{place}' for place, _ in evidence.ROWS.values()} <= trainings and 's7/find/round0' in trainings
    for cell in cells:
        script, *words = cell.command.split()
        if script == 'train_sngan.py' and '--mask' not in words:
            args = train_sngan.get_args(words)
            assert (args.steps, args.ch_g, args.frac) == (evidence.STEPS, 32, 200)
            assert args.seed == args.data_seed == int(cell.name[1])
            expected = {'diffaug': ('diffaug', 'none'), 'diffaug-advaug': ('diffaug', 'gd'), 'ada': ('ada', 'none'),
                        'advaug': ('none', 'gd'), 'find/round0': ('none', 'none')}
            assert (args.aug, args.advaug) == expected[cell.name[3:]]


def test_the_page_replaces_its_own_part_alone_and_counts_failures(root):
    os.makedirs(root / 'docs')
    (root / 'RESULTS.md').write_text('# Results\n\n<!-- evidence -->\nold\n<!-- end -->\n\nbelow\n')
    for seed in range(3):
        write(root, f's{seed}/find/round0', 100. + seed)
        write(root, f's{seed}/diffaug', 80. + 2 * seed)
    files.append_jsonl(root / 'results/failed.jsonl', {'step': 7, 'cell': 's0/ada', 'code': 3})
    evidence.page()
    text = (root / 'RESULTS.md').read_text()
    assert text.startswith('# Results') and text.endswith('<!-- end -->\n\nbelow\n') and 'old' not in text
    line = next(line for line in text.split('\n') if line.startswith('| dense + DiffAug |'))
    assert '| 3 | 82 ± 5 |' in line and '| lower | -29.8' in line and 'failed: 1.' in text
    assert os.path.exists(root / 'docs/evidence-differences.png')


def test_a_cell_that_fails_is_recorded_and_one_that_is_stopped_is_not(root, monkeypatch):
    for code, recorded in ((130, 0), (3, 1)):
        monkeypatch.setattr(evidence, 'cells_of', lambda seed, code=code: [
            evidence.Cell('s0/x', f'-c "raise SystemExit({code})"', ['s0/x'])])
        (root / 'results').mkdir(exist_ok=True)
        evidence.run_seed(0)
        assert len(files.read_jsonl(root / 'results/failed.jsonl')) == recorded
