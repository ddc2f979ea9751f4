"""The evidence of RESULTS.md: the trainings of results/PLAN.md, and the tables and figures of results/.

Use:
    python paper/evidence.py cells                              # the commands, in the order of the plan
    python paper/evidence.py run --jobs 2 --questions 1 2       # trains what results/ does not have yet
    python paper/evidence.py page                               # RESULTS.md and docs/evidence-*.png
    python paper/evidence.py compare runs/faces                 # the demo's rows, and what seeds alone do

A cell is one command below runs/evidence.  When it has ended, the args.json, metrics.jsonl and log.jsonl of
its trainings (every tenth line) are copied below results/, so that the page needs nothing else.  A cell that
results/ has in full is not trained again; one that was cut resumes.

The rows of a seed share the initial weights, the images and z.  For a row with scores r_s and its base, b_s:
    d_s = 100 (r_s - b_s) / b_s      in percent, per seed
    mean(d) +- t_{.975, n - 1} sd(d) / sqrt(n)          Student's interval over trainings
    mean(d) +- t_{.975, n - 1} sd(d) sqrt(1 + 1 / n)    what one further pair of trainings may show
"""
import argparse
import concurrent.futures
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import files                                                   # noqa: E402
import generate                                                # noqa: E402
import metrics                                                 # noqa: E402
from data import images                                        # noqa: E402
from runs import CAN_DRAW, line_style, new_figure              # noqa: E402

STOPPED = 75, 129, 130, 143                                    # exit codes of trainings that resume
CLASSIFIER = 'results/classifier.pt2'                          # written by tests/validate.py --save

# ---- the plan as data

SCORED = '--eval-repeats 1 --metrics fid,kid,prdc,copy --features effnet --device cpu'
FASHION = ('--data fashion-mnist --preset paper --ch-g 32 --ch-d 32 --batch 32 --g-batch 32 --d-steps 1 '
           f'--lr-g 5e-4 --lr-d 5e-4 --steps 5000 --eval-every 1000 --eval-samples 2000 {SCORED}')


class Place(NamedTuple):
    """A setting that rows share: a folder below runs/evidence and results, and the flags of its trainings."""
    model: str
    steps: int
    flags: str


PLACES = {
    'faces': Place('sngan', 1000, f'--data emoji-faces --steps 1000 --eval-every 500 {SCORED}'),
    'fashion200': Place('sngan', 5000, f'--frac 200 {FASHION}'),
    'faces64': Place('stylegan2', 12500, '--data emoji-faces --preset laptop --aug none --steps 12500 '
                     f'--eval-every 2500 --eval-samples 1000 {SCORED}'),
    'fashion6000': Place('sngan', 5000, f'--frac 6000 {FASHION}')}

# {place/finding: its flags}.  {seed} is the folder of the seed.
FINDINGS = {
    'faces/find': '--rounds 2',
    'fashion200/find': '--rounds 5',
    'fashion200/oneshot': '--rounds 5 --method oneshot',
    'fashion200/layers': '--rounds 5 --method random-layers --like {seed}/find/ticket5.pt',
    'fashion200/all': '--rounds 5 --prunable all',
    'fashion200/found600': '--rounds 5 --frac 600',
    'fashion200/found6000': '--rounds 5 --frac 6000',
    'faces64/find': '--rounds 3',
    'fashion6000/find': '--rounds 5'}


class Row(NamedTuple):
    """A line of a table: one training for each seed.

    training: its directory in the folder of the seed: FINDING/roundK, or that of a training with these flags.
    base: the row of the same place that it is compared with.
    """
    question: str
    place: str
    name: str
    training: str
    flags: str = ''
    base: str = 'dense'


def mask(k, finding='find'):
    """The flag of the ticket of round k."""
    return f'--mask {{seed}}/{finding}/ticket{k}.pt'


WHOLE = '--aug diffaug --advaug gd'                            # Algorithm 2, on a ticket
ROWS = [
    Row('0', 'faces', 'dense', 'find/round0', base=''),
    Row('0', 'faces', 'ticket 36.00 %', 'ticket', mask(2)),
    Row('0', 'faces', 'ticket 36.00 % + AdvAug', 'ticket-advaug', f'{mask(2)} --advaug gd'),
    Row('0', 'faces', 'ticket 36.00 % + DiffAug', 'ticket-diffaug', f'{mask(2)} --aug diffaug'),
    Row('0', 'faces', 'ticket 36.00 % + DiffAug + AdvAug', 'ticket-diffaug-advaug', f'{mask(2)} {WHOLE}'),

    Row('1', 'fashion200', 'dense', 'find/round0', base=''),
    Row('1', 'fashion200', 'ticket 36.00 %', 'find/round2'),
    Row('1', 'fashion200', 'ticket 67.23 %', 'ticket5', mask(5)),
    Row('2', 'fashion200', 'dense + DiffAug', 'diffaug', '--aug diffaug'),
    Row('2', 'fashion200', 'dense + ADA', 'ada', '--aug ada --ada-kimg 25'),
    Row('2', 'fashion200', 'dense + AdvAug', 'advaug', '--advaug gd'),
    Row('2', 'fashion200', 'dense + DiffAug + AdvAug', 'diffaug-advaug', WHOLE, 'dense + DiffAug'),
    Row('2', 'fashion200', 'ticket 36.00 % + DiffAug + AdvAug', 'ticket2-diffaug-advaug',
        f'{mask(2)} {WHOLE}', 'dense + DiffAug'),

    Row('3', 'faces64', 'dense', 'find/round0', base=''),
    Row('3', 'faces64', 'dense + DiffAug', 'diffaug', '--aug diffaug'),
    Row('3', 'faces64', 'ticket 48.80 % + DiffAug + AdvAug', 'ticket3-diffaug-advaug', f'{mask(3)} {WHOLE}',
        'dense + DiffAug'),

    Row('4', 'fashion200', 'one-shot', 'oneshot5', mask(5, 'oneshot'), 'ticket 67.23 %'),
    Row('4', 'fashion200', 'random in each layer', 'layers5', mask(5, 'layers'), 'ticket 67.23 %'),
    Row('4', 'fashion200', 'fresh weights', 'reinit5', f'{mask(5)} --reinit', 'ticket 67.23 %'),
    Row('4', 'fashion200', 'small and dense', 'small5', '--small-dense {seed}/find/ticket5.pt',
        'ticket 67.23 %'),
    Row('4', 'fashion200', 'RigL', 'rigl', '--dst rigl --density 0.3277 --dst-every 50', 'ticket 67.23 %'),

    Row('5', 'fashion200', 'AdvAug in G and D', 'ticket5-advaug', f'{mask(5)} --advaug gd', 'ticket 67.23 %'),
    Row('5', 'fashion200', 'AdvAug in G', 'ticket5-g', f'{mask(5)} --advaug g', 'ticket 67.23 %'),
    Row('5', 'fashion200', 'AdvAug in D', 'ticket5-d', f'{mask(5)} --advaug d', 'ticket 67.23 %'),
    Row('5', 'fashion200', 'the released direction', 'ticket5-released',
        f'{mask(5)} --advaug gd --adv-sign released', 'ticket 67.23 %'),
    Row('5', 'fashion200', 'margin 1.045, no AdvAug', 'ticket5-margin', f'{mask(5)} --margin 1.045',
        'ticket 67.23 %'),
    Row('5', 'fashion200', 'Gaussian noise', 'ticket5-noise', f'{mask(5)} --advaug gd --adv-noise 0.01',
        'ticket 67.23 %'),

    Row('6', 'fashion6000', 'dense', 'find/round0', base=''),
    Row('6', 'fashion6000', 'ticket 36.00 %', 'find/round2'),
    Row('6', 'fashion6000', 'ticket 67.23 %', 'ticket5', mask(5)),
    Row('6', 'fashion6000', 'dense + DiffAug', 'diffaug', '--aug diffaug'),
    Row('6', 'fashion6000', 'ticket 36.00 % + DiffAug + AdvAug', 'ticket2-diffaug-advaug',
        f'{mask(2)} {WHOLE}', 'dense + DiffAug'),

    Row('7', 'fashion200', 'masks of all weights', 'all5', mask(5, 'all'), 'ticket 67.23 %'),
    Row('7', 'fashion200', 'found on 600 images', 'found600-5', mask(5, 'found600'), 'ticket 67.23 %'),
    Row('7', 'fashion200', 'found on 6,000 images', 'found6000-5', mask(5, 'found6000'), 'ticket 67.23 %')]

# Question 1c takes dense trainings alone, of seeds that no other row has.
DENSE = Row('1', 'fashion200', 'dense, further seeds', 'dense', base='')

# What runs, in this order, one seed after another: (questions, rows, seeds).
PLAN = [
    ('0', [row for row in ROWS if row.question == '0'], range(5)),
    ('12', [row for row in ROWS if row.question in '12'], range(5)),
    ('1', [DENSE], range(5, 12)),
    ('3', [row for row in ROWS if row.question == '3'], range(1)),
    ('4', [row for row in ROWS if row.question == '4'], range(3)),
    ('5', [row for row in ROWS if row.question == '5'], range(3)),
    ('6', [row for row in ROWS if row.question == '6'], range(3)),
    ('7', [row for row in ROWS if row.question == '7'], range(3))]

# {row of questions 1 and 2: its effect on FID in the paper, in percent, and where}
PAPER = {
    'ticket 36.00 %': (-15.4, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'ticket 67.23 %': (-15.4, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'dense + DiffAug': (-29.8, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'dense + AdvAug': (-6.7, 'SNGAN, CIFAR-10 10 %, Table 6'),
    'dense + DiffAug + AdvAug': (-6.8, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'ticket 36.00 % + DiffAug + AdvAug': (-12.9, 'BigGAN, CIFAR-100 10 %, Table 3')}


# ---- from the plan to commands

class Cell(NamedTuple):
    """One command; trainings: the directories that it trains in, below runs/evidence."""
    name: str
    command: str
    trainings: list


def folder_of(row, seed):
    """The folder of a training, below runs/evidence and below results."""
    return f'{row.place}/s{seed}/{row.training}'


def flags_of(place, seed, flags, out):
    """All flags of a command."""
    folder = f'runs/evidence/{place}/s{seed}'
    own = flags.format(seed=folder)
    return f'{PLACES[place].flags} --seed {seed} --data-seed {seed} {own} --out {folder}/{out}'


def finding_cell(place, name, seed):
    """The cell of a finding."""
    flags = FINDINGS[f'{place}/{name}']
    count = int(re.search(r'--rounds (\d+)', flags).group(1))
    if '--method oneshot' in flags:
        count = 1
    if '--method random-layers' in flags:
        count = 0
    folder = f'{place}/s{seed}/{name}'
    ticket = f'--ticket runs/evidence/{folder}/ticket.pt'
    command = f'find_ticket.py {PLACES[place].model} {flags_of(place, seed, flags, name)} {ticket}'
    return Cell(folder, command, [f'{folder}/round{k}' for k in range(count)])


def training_cell(row, seed):
    """The cell of a row that is no round of a finding."""
    command = f'train_{PLACES[row.place].model}.py {flags_of(row.place, seed, row.flags, row.training)}'
    folder = folder_of(row, seed)
    return Cell(folder, command, [folder])


def findings_of(place, flags, seed, is_done):
    """The findings whose tickets the flags name, as far as these tickets are not there."""
    names = []
    for name, ticket in re.findall(r'{seed}/(\w+)/(ticket\d\.pt)', flags):
        if not is_done(f'runs/evidence/{place}/s{seed}/{name}/{ticket}'):
            names.append(name)
    return names


def cells_of(rows, seed, is_done=lambda path: False):
    """The cells of one seed, in the order in which they can run.

    is_done(path) says whether a training or a ticket is there and need not be made; by default none is.
    """
    cells = {}

    def add_finding(place, name):
        for other in findings_of(place, FINDINGS[f'{place}/{name}'], seed, is_done):
            add_finding(place, other)
        cell = finding_cell(place, name, seed)
        cells.setdefault(cell.name, cell)

    for row in rows:
        if is_done(folder_of(row, seed)):
            continue
        finding, is_round, _ = row.training.partition('/')
        if is_round:
            add_finding(row.place, finding)
            continue
        for name in findings_of(row.place, row.flags, seed, is_done):
            add_finding(row.place, name)
        cell = training_cell(row, seed)
        cells[cell.name] = cell
    return list(cells.values())


def is_there(path):
    """Whether results/ has the last score of a training, or whether a ticket is on this machine."""
    if path.endswith('.pt'):
        return os.path.exists(f'{ROOT}/{path}')
    steps = PLACES[path.split('/')[0]].steps
    scores = files.read_jsonl(f'{ROOT}/results/{path}/metrics.jsonl')
    return any(score['step'] == steps for score in scores)


# ---- training

def run(jobs, questions):
    """Train the cells of some questions that results/ does not have, `jobs` seeds side by side.

    Returns the exit code: that of a cell that was cut, else 1 if one failed, else 0.
    """
    codes = []

    def run_seed(rows, seed):
        for cell in cells_of(rows, seed, is_there):
            if any(code in STOPPED for code in codes):
                return
            codes.append(train(cell))
            if codes[-1]:
                return

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for asked, rows, seeds in PLAN:
            if set(asked) & set(questions):
                for seed in seeds:
                    pool.submit(run_seed, rows, seed)
    cut = [code for code in codes if code in STOPPED]
    return cut[0] if cut else int(any(codes))


def train(cell):
    """Run the command of a cell, and keep what results/ keeps of its trainings.  Returns its exit code."""
    script, *flags = shlex.split(cell.command)
    print(f'begins: {cell.name}', flush=True)
    with open(os.devnull, 'w') as nowhere:
        done = subprocess.run([sys.executable, script, *flags], cwd=ROOT, stdout=nowhere,
                              env={**os.environ, 'OMP_NUM_THREADS': '1'})
    for training in cell.trainings:
        collect(training)
    print(f'ended with code {done.returncode}: {cell.name}', flush=True)

    if done.returncode and done.returncode not in STOPPED:
        reached = 0
        if cell.trainings:
            reached = steps_of(cell.trainings[-1])
        record = {'step': reached, 'cell': cell.name, 'code': done.returncode}
        files.append_jsonl(f'{ROOT}/results/failed.jsonl', record)
    return done.returncode


def steps_of(training):
    """The step of the last log line of a training, 0 for none."""
    log = files.read_jsonl(f'{ROOT}/runs/evidence/{training}/log.jsonl')
    return log[-1]['step'] if log else 0


def collect(training):
    """Copy what results/ keeps of a training: flags, scores, and every tenth line of the log."""
    source = f'{ROOT}/runs/evidence/{training}'
    if not os.path.exists(f'{source}/metrics.jsonl'):
        return
    kept = f'{ROOT}/results/{training}'
    os.makedirs(kept, exist_ok=True)
    for name in ('args.json', 'metrics.jsonl'):
        shutil.copyfile(f'{source}/{name}', f'{kept}/{name}')
    log = files.read_jsonl(f'{source}/log.jsonl')
    files.write_jsonl(f'{kept}/log.jsonl', log[9::10])
    if training.startswith('fashion') and is_there(training):
        second = second_score(f'{source}/last.pt')
        files.write_jsonl(f'{kept}/second.jsonl', [second])


def second_score(checkpoint, count=2000):
    """The score of `count` samples on a classifier of Fashion-MNIST, against its test images."""
    net = metrics.extractor(f'{ROOT}/{CLASSIFIER}', res=32)
    test = images.read_fashion('datasets', 32)[1]
    G = generate.load(checkpoint, 'cpu')

    def sample(a, b):
        return generate.sample(G, range(a, b))                 # uint8 [b - a, 3, 32, 32]
    found = metrics.evaluate(sample, count, net, {'all': metrics.reference(test.images, net)})
    return {'step': PLACES['fashion200'].steps, 'all': found[net.score]['all'], 'protocol': found['protocol']}


# ---- from results/ to numbers

def scores_of(row, seed, name='metrics'):
    """The records of the scores of a training that results/ has in full, else []."""
    training = folder_of(row, seed)
    if not is_there(training):
        return []
    return files.read_jsonl(f'{ROOT}/results/{training}/{name}.jsonl')


def final(row, key='all', name='metrics'):
    """{seed: the last score of a row}."""
    found = {}
    for seed in range(8):
        scores = scores_of(row, seed, name)
        if scores and key in scores[-1]:
            found[seed] = scores[-1][key]
    return found


def interval(values, further=0):
    """(mean, half the width of Student's 95 % interval); the half is NaN for fewer than two values.

    With further = 1, the interval in which one further value lies, not the mean.
    """
    values = np.array(values, float)
    n = len(values)
    half = float('nan')
    if n > 1:
        half = student.ppf(.975, n - 1) * values.std(ddof=1) * (further + 1 / n) ** .5
    return values.mean(), half


def base_of(row):
    """The row that a row is compared with, None for none."""
    for other in ROWS:
        if other.place == row.place and other.name == row.base:
            return other
    return None


def differences(row, name='metrics'):
    """The differences d_s of a row from its base in percent, one for each seed that has both."""
    base = base_of(row)
    if base is None:
        return []
    rows, bases = final(row, 'all', name), final(base, 'all', name)
    return [100 * (rows[seed] - bases[seed]) / bases[seed] for seed in rows if seed in bases]


def verdict(mean, half):
    """What an interval says of a fall of the score."""
    if np.isnan(half):
        return 'too few seeds'
    if mean + half < 0:
        return 'lower'
    if mean - half > 0:
        return 'higher'
    return 'indistinguishable'


def expected_best(k):
    """The best of k dense trainings: one half of the reference chooses, the score is on the other half.

    Returns the mean over all choices of k, and the number of trainings; None where there are too few.
    """
    last = []
    for row in (row_named('fashion200', 'dense'), DENSE):
        for seed in range(12):
            scores = scores_of(row, seed)
            if scores:
                last.append((scores[-1]['choose'], scores[-1]['report']))
    if len(last) < k:
        return None
    best = [min(chosen)[1] for chosen in itertools.combinations(last, k)]
    return float(np.mean(best)), len(last)


def row_named(place, name):
    """The row of a place that has this name."""
    return next(row for row in ROWS if (row.place, row.name) == (place, name))


# ---- the page

QUESTIONS = {
    '0': 'The rows of the demo: 100 emoji faces, 1,000 updates',
    '1': 'Tickets alone: 200 images of Fashion-MNIST, 5,000 updates',
    '2': 'Augmentation, and the whole of the paper',
    '3': 'StyleGAN2 on 100 emoji faces at 64 px, 100 kimg',
    '4': 'The structure of the mask, or its sparsity, at 67.23 %',
    '5': 'The parts of AdvAug, on the ticket of 67.23 %',
    '6': 'A second regime: 6,000 images',
    '7': 'Which weights, and tickets of how many images'}


def table(question):
    """Markdown lines: each row's score, its difference, the paper's; [] without a training."""
    lines = []
    for row in ROWS:
        found = list(final(row).values())
        if row.question != question or not found:
            continue
        mean, half = interval(found)
        cells = [row.name, len(found), f'{mean:.0f} ± {half:.0f}']
        second = list(final(row, 'all', 'second').values())
        cells.append(f'{np.mean(second):.2f}' if second else '–')
        for key in ('kid', 'recall', 'copy'):
            values = list(final(row, key).values())
            cells.append(f'{np.mean(values):.3g}' if values else '–')
        lines.append('| ' + ' | '.join(map(str, cells + comparison(row))) + ' |')
    if not lines:
        return []
    head = ('| row | trainings | FD-effnet at the end | FD-classifier | KID | recall | copies | against | '
            'difference, % | the same on FD-classifier | verdict | in the paper, % |')
    return [f'### {QUESTIONS[question]}', '', head, '|' + '---|' * 12, *lines, '']


def comparison(row):
    """The cells of a row that compare it with its base: base, both differences, verdict, the paper's."""
    d = differences(row)
    if not d:
        return [''] * 5
    mean, half = interval(d)
    cells = [row.base, f'{mean:+.1f} ± {half:.1f}']
    second = differences(row, 'second')
    cells.append('{:+.1f} ± {:.1f}'.format(*interval(second)) if second else '–')
    effect, where = PAPER.get(row.name, (None, ''))
    if effect is None or row.question not in '12':
        return [*cells, verdict(mean, half), '–']
    return [*cells, verdict(mean, half), f'{effect:+.1f} ({where})']


def equal_compute():
    """Markdown lines: a ticket beside the best of as many dense trainings as it took."""
    lines = []
    for name, k in (('ticket 36.00 %', 3), ('ticket 67.23 %', 6)):
        best = expected_best(k)
        reports = list(final(row_named('fashion200', name), 'report').values())
        if best and reports:
            mean, half = interval(reports)
            lines.append(f'- {name}: {mean:.0f} ± {half:.0f} on the reporting half; the best of {k} dense '
                         f'trainings, which cost as much: {best[0]:.0f} (mean over all choices of {k} out of '
                         f'{best[1]}).')
    return lines


def draw_scores(path):
    """Write the curves of questions 1 and 2: the mean over seeds, and Student's interval as a band."""
    fig, ax = new_figure(7, 4)
    rows = [row for row in ROWS if row.question in '12']
    for i, row in enumerate(rows):
        runs = [scores_of(row, seed) for seed in range(8)]
        runs = [scores for scores in runs if scores]
        if not runs:
            continue
        steps = [score['step'] for score in runs[0]]
        values = np.array([[score['all'] for score in scores] for scores in runs])   # [seeds, evaluations]
        bands = np.array([interval(column) for column in values.T])                  # [evaluations, 2]
        ax.plot(steps, bands[:, 0], label=row.name, **line_style(i))
        ax.fill_between(steps, bands[:, 0] - bands[:, 1], bands[:, 0] + bands[:, 1], alpha=.15,
                        color=line_style(i)['color'])
    ax.set(xlabel='G updates', ylabel='FD-effnet', yscale='log')
    ax.legend(fontsize=7, frameon=False)
    fig.savefig(path, dpi=150, bbox_inches='tight')


def draw_differences(path):
    """Write the paired differences of all rows, with the paper's beside those of questions 1 and 2."""
    rows = [row for row in ROWS if len(differences(row)) > 1][::-1]
    fig, ax = new_figure(7, 1.2 + .3 * len(rows))
    for y, row in enumerate(rows):
        d = differences(row)
        mean, half = interval(d)
        ax.errorbar(mean, y, xerr=half, fmt='o', color='black', capsize=3)
        ax.plot(d, [y] * len(d), '|', color='grey', markersize=9)
        if row.question in '12' and row.name in PAPER:
            ax.plot(PAPER[row.name][0], y, 'D', color='#D55E00')
    ax.plot([], [], 'o', color='black', label='mean over seeds, 95 %')
    ax.plot([], [], '|', color='grey', label='one seed')
    if any(row.question in '12' for row in rows):
        ax.plot([], [], 'D', color='#D55E00', label='the paper, another model and data')
    ax.axvline(0, color='grey', linewidth=.8)
    ax.set_yticks(range(len(rows)), [f'{row.place}: {row.name}\nagainst {row.base}' for row in rows], fontsize=7)
    ax.set_xlabel('difference in %, lower is better')
    ax.legend(fontsize=7, frameon=False)
    fig.savefig(path, dpi=150, bbox_inches='tight')


def page():
    """Renew the part of RESULTS.md between its two marks, and the figures."""
    lines = []
    for question in QUESTIONS:
        lines += table(question)
        if question == '1':
            lines += [*equal_compute(), '']
    if CAN_DRAW and any(final(row) for row in ROWS if row.question in '12'):
        draw_scores(f'{ROOT}/docs/evidence-scores.png')
        lines += ['![Scores over training](docs/evidence-scores.png)', '']
    if CAN_DRAW and any(len(differences(row)) > 1 for row in ROWS):
        draw_differences(f'{ROOT}/docs/evidence-differences.png')
        lines += ['![Paired differences](docs/evidence-differences.png)', '']
    failed = files.read_jsonl(f'{ROOT}/results/failed.jsonl')
    lines.append(f'Trainings that failed: {len(failed)}.')

    with open(f'{ROOT}/RESULTS.md') as f:
        before, _, rest = f.read().partition('<!-- evidence -->')
    after = rest.partition('<!-- end -->')[2]
    middle = '\n'.join(lines)
    with open(f'{ROOT}/RESULTS.md', 'w') as f:
        f.write(f'{before}<!-- evidence -->\n{middle}\n<!-- end -->{after}')


# ---- the demo

def compare(out):
    """Print the rows of a demo beside what further seeds do: '=' where seeds alone explain a difference."""
    rows = [row for row in ROWS if row.question == '0']
    last = {}
    for row in rows:
        scores = files.read_jsonl(f'{out}/{row.training}/metrics.jsonl')
        if scores:
            last[row.name] = scores[-1]['all']
    signs = []
    for row in rows[1:]:
        known = differences(row)
        if row.name not in last or 'dense' not in last or len(known) < 2:
            continue
        mean, half = interval(known, further=1)
        d = 100 * (last[row.name] - last['dense']) / last['dense']
        signs.append('=')
        if abs(mean) > half:
            signs[-1] = '<' if mean < 0 else '>'
        print(f'{row.name} {signs[-1]} dense: {d:+.0f} % here; another seed: {mean:+.0f} ± {half:.0f} %')
    if signs and set(signs) == {'='}:
        print('no row differs from the dense one by more than seeds do: see RESULTS.md')


def get_args(argv=None):
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['cells', 'run', 'page', 'compare'],
                   help='print the commands, train, draw, or compare a demo')
    p.add_argument('demo', nargs='?', help='compare: the folder of the demo')
    p.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time, of one thread each')
    p.add_argument('--questions', nargs='+', choices=list(QUESTIONS), default=list(QUESTIONS),
                   help='cells, run: of these questions (default: all)')
    return p.parse_args(argv)


def main(args):
    """Do one of the four."""
    if args.what == 'cells':
        for asked, rows, seeds in PLAN:
            if set(asked) & set(args.questions):
                for seed in seeds:
                    for cell in cells_of(rows, seed):
                        print(cell.command)
    elif args.what == 'run':
        sys.exit(run(args.jobs, args.questions))
    elif args.what == 'page':
        page()
    else:
        compare(args.demo)


if __name__ == '__main__':
    main(get_args())
