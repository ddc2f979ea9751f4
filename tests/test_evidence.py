"""paper/evidence.py: the cells of the plan, what is trained again, intervals, the best of k, and the pages."""
import itertools
import os
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

import cli
import files
import find_ticket
import train_sngan
import train_stylegan2
from paper import evidence

DENSE, TICKET = evidence.row_named('fashion200', 'dense'), evidence.row_named('fashion200', 'ticket 67.23 %')


def write(root, row, seed, last, choose=0., report=0., step=None):
    """The scores of a training in results/, of which the last one is `last`."""
    folder = f'{root}/results/{evidence.folder_of(row, seed)}'
    os.makedirs(folder, exist_ok=True)
    step = step or evidence.PLACES[row.place].steps
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
        assert evidence.interval(a - b, further=1)[1] == pytest.approx(half * (n + 1) ** .5)
    assert np.isnan(evidence.interval([3.])[1])
    said = [evidence.verdict(*pair) for pair in ((-2., 1.), (2., 1.), (1., 2.), (1., float('nan')))]
    assert said == ['lower', 'higher', 'indistinguishable', 'too few seeds']


def test_differences_are_paired_by_seed_and_in_percent_of_the_base(root):
    for seed, dense, ticket in ((0, 100., 90.), (1, 200., 210.), (3, 300., 300.)):
        write(root, DENSE, seed, dense)
        write(root, TICKET, seed, ticket)
    write(root, TICKET, 2, 50.)                                # its base is missing
    write(root, DENSE, 4, 1., step=1000)                       # not finished
    assert evidence.differences(TICKET) == pytest.approx([-10., 5., 0.])
    assert list(evidence.final(DENSE)) == [0, 1, 3] and evidence.differences(DENSE) == []


def test_the_best_of_k_is_the_mean_over_all_choices_of_k_by_the_choosing_half(root):
    pairs = [(3., 30.), (1., 50.), (2., 20.), (4., 10.)]
    for row, seed, (choose, report) in zip((DENSE, DENSE, evidence.DENSE, evidence.DENSE), (0, 1, 6, 7), pairs):
        write(root, row, seed, 0., choose, report)
    for k in (1, 2, 3):
        chosen = [min(some, key=lambda pair: pair[0])[1] for some in itertools.combinations(pairs, k)]
        assert evidence.expected_best(k) == (pytest.approx(sum(chosen) / len(chosen)), 4)
    assert evidence.expected_best(5) is None


def test_cells_run_once_and_after_the_findings_that_they_need():
    for _, rows, seeds in evidence.PLAN:
        for seed in seeds:
            made = set()
            for cell in evidence.cells_of(rows, seed):
                assert cell.name not in made
                for _, word in itertools.pairwise(cell.command.split()):
                    if word.endswith('.pt') and '/ticket' in word and f'--ticket {word}' not in cell.command:
                        assert os.path.dirname(word)[len('runs/evidence/'):] in made, cell.command
                made.add(cell.name)


def test_a_finding_is_made_again_when_a_row_needs_its_tickets_and_only_then(root):
    rows = [DENSE, TICKET]
    done = {evidence.folder_of(DENSE, 0)}
    names = [cell.name for cell in evidence.cells_of(rows, 0, done.__contains__)]
    assert names == ['fashion200/s0/find', 'fashion200/s0/ticket5']    # its tickets went with another machine
    done.add('runs/evidence/fashion200/s0/find/ticket5.pt')
    assert [cell.name for cell in evidence.cells_of(rows, 0, done.__contains__)] == names[1:]
    done.add(evidence.folder_of(TICKET, 0))
    assert evidence.cells_of(rows, 0, done.__contains__) == []

    assert not evidence.is_there(evidence.folder_of(DENSE, 0))
    write(root, DENSE, 0, 1.)
    assert evidence.is_there(evidence.folder_of(DENSE, 0)) and not evidence.is_there('runs/a/ticket1.pt')
    layers = evidence.row_named('fashion200', 'random in each layer')
    assert [cell.name for cell in evidence.cells_of([layers], 1)] == [
        'fashion200/s1/find', 'fashion200/s1/layers', 'fashion200/s1/layers5']


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """Parses a cell's command as its script does; tickets are not read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, 'check_output', lambda *args, **how: None)

    def parse(cell):
        script, *words = cell.command.split()
        if '--like' in words:                                  # the other method asks for no ticket
            words[words.index('random-layers')] = 'random'
        for flag in ('--mask', '--small-dense', '--like'):
            if flag in words:
                at = words.index(flag)
                del words[at:at + 2]
        words = [word for word in words if word != '--reinit']
        if script == 'find_ticket.py':
            return find_ticket.get_args(words).flags
        return {'train_sngan.py': train_sngan, 'train_stylegan2.py': train_stylegan2}[script].get_args(words)
    return parse


@pytest.mark.slow
def test_every_command_of_the_plan_is_one_and_trains_what_its_row_says(parsed):
    rows = [*evidence.ROWS, evidence.DENSE]
    cells = {cell.name: cell for cell in evidence.cells_of(rows, 1)}
    for row in rows:
        folder = evidence.folder_of(row, 1)
        cell = cells[folder if folder in cells else os.path.dirname(folder)]
        assert folder in cell.trainings
        args = parsed(cell)
        assert (args.steps, args.seed, args.data_seed) == (evidence.PLACES[row.place].steps, 1, 1)
        if row.place.startswith('fashion'):
            assert (args.ch_g, args.frac) == (32, int(row.place[7:]))
        if folder == cell.name and row.question in '0236':
            assert (args.aug == 'diffaug') == ('DiffAug' in row.name) and (args.aug == 'ada') == ('ADA' in row.name)
            assert (args.advaug == 'gd') == ('AdvAug' in row.name), row
        assert ('--mask' in cell.command) == (folder == cell.name and 'ticket' in cell.command.split(' --out')[0]
                                              and '--small-dense' not in cell.command)


def test_the_rows_of_question_0_are_those_of_the_demo(parsed):
    """A row of the demo is compared with results/, so it must be the same training."""
    with open(f'{os.path.dirname(os.path.dirname(evidence.__file__))}/run_all.sh') as f:
        demo = f.read()
    args = parsed(evidence.training_cell(evidence.row_named('faces', 'ticket 36.00 %'), 0))
    assert f'steps=${{STEPS:-{args.steps}}}' in demo and args.data == 'emoji-faces'
    for row in evidence.ROWS:
        if row.question == '0' and row.flags:
            own = row.flags.split(' ', 2)[2:]
            assert ' '.join([f'--out $out/{row.training}', *own]) in demo, row


def test_the_page_replaces_its_own_part_alone_and_counts_failures(root):
    os.makedirs(root / 'docs')
    (root / 'RESULTS.md').write_text('# Results\n\n<!-- evidence -->\nold\n<!-- end -->\n\nbelow\n')
    diffaug = evidence.row_named('fashion200', 'dense + DiffAug')
    for seed in range(3):
        write(root, DENSE, seed, 100. + seed)
        write(root, diffaug, seed, 80. + 2 * seed)
        for row, score in ((DENSE, 4.), (diffaug, 3.)):
            files.append_jsonl(f'{root}/results/{evidence.folder_of(row, seed)}/second.jsonl', {'step': 5000, 'all': score})
    files.append_jsonl(root / 'results/failed.jsonl', {'step': 7, 'cell': 's0/ada', 'code': 3})
    evidence.page()
    text = (root / 'RESULTS.md').read_text()
    assert text.startswith('# Results') and text.endswith('<!-- end -->\n\nbelow\n') and 'old' not in text
    line = next(line for line in text.split('\n') if line.startswith('| dense + DiffAug |'))
    assert '| 3 | 82 ± 5 | 3.00 |' in line and '| -25.0 ± 0.0 | lower | -29.8' in line and 'failed: 1.' in text
    assert os.path.exists(root / 'docs/evidence-differences.png')


def test_a_cell_that_fails_is_recorded_and_one_that_is_stopped_stops_all(root, monkeypatch):
    (root / 'results').mkdir()
    for code, recorded, tried in ((130, 0, 1), (3, 2, 2)):
        begun = []

        def cells_of(rows, seed, is_done, code=code, begun=begun):
            begun.append(seed)
            return [evidence.Cell(f's{seed}/x', f'-c "raise SystemExit({code})"', [f's{seed}/x'])]
        monkeypatch.setattr(evidence, 'cells_of', cells_of)
        monkeypatch.setattr(evidence, 'PLAN', [('4', [], range(2))])
        assert evidence.run(1, '4') == (code if code == 130 else 1)
        assert len(files.read_jsonl(root / 'results/failed.jsonl')) == recorded


def test_the_second_score_is_the_distance_on_the_committed_classifier(monkeypatch):
    class Head(torch.nn.Module):
        def forward(self, x):
            return x.float().mean((2, 3))                      # [N, 3]

    torch.manual_seed(0)
    fake, real = torch.randint(0, 256, (2, 40, 3, 32, 32), dtype=torch.uint8).unbind()
    monkeypatch.setattr(evidence.metrics, 'extractor', lambda path, res: Own())
    monkeypatch.setattr(evidence.images, 'read_fashion', lambda root, res: (None, Of(real)))
    monkeypatch.setattr(evidence.generate, 'load', lambda path, device: None)
    monkeypatch.setattr(evidence.generate, 'sample', lambda G, seeds: fake[seeds[0]:seeds[-1] + 1])

    class Of:
        def __init__(self, x):
            self.images = x

    class Own:
        name, score, dim, classes, device, protocol = 'own', 'FD-own', 3, 0, 'cpu', {}

        def __call__(self, x):
            return Head()(x), None

    found = evidence.second_score('last.pt', count=40)
    x, y = (Head()(images).double() for images in (fake, real))
    expected = evidence.metrics.frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert found['all'] == pytest.approx(float(expected), rel=1e-4)


def test_a_demo_is_compared_with_what_seeds_do(root, capsys):
    rows = [row for row in evidence.ROWS if row.question == '0']
    for seed in range(5):
        write(root, rows[0], seed, 100.)
        write(root, rows[1], seed, 90. + seed % 2)             # always lower
        write(root, rows[2], seed, 80. + 10 * seed)            # either way
    for row in rows[:3]:
        shutil.copytree(root / 'results' / evidence.folder_of(row, 0), root / 'demo' / row.training)
    evidence.compare(root / 'demo')
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('ticket 36.00 % < dense: -10 % here') and said[1].startswith(rows[2].name + ' = dense')
    assert len(said) == 2
    shutil.rmtree(root / 'demo' / rows[1].training)
    evidence.compare(root / 'demo')
    assert capsys.readouterr().out.splitlines()[-1].startswith('no row differs')
