"""The evidence of RESULTS.md: the trainings of results/PLAN.md, and the tables and figures of results/.

Use:
    python paper/evidence.py cells                              # the commands, in the order of the plan
    python paper/evidence.py run --jobs 2                       # trains what results/ does not have yet
    python paper/evidence.py page                               # RESULTS.md and docs/evidence-*.png

A cell is one command below runs/evidence.  When it has ended, the args.json, metrics.jsonl and log.jsonl of
its trainings (every tenth line) are copied below results/, so that the page needs nothing else.  A cell that
results/ has in full is not trained again; one that was cut resumes.

The rows of a seed share the initial weights, the images and z.  For a row with scores r_s and its base, b_s:
    d_s = 100 (r_s - b_s) / b_s      in percent, per seed
    mean(d) +- t_{.975, n - 1} sd(d) / sqrt(n)      Student's interval over trainings
"""
import argparse
import concurrent.futures
import itertools
import os
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
from runs import CAN_DRAW, line_style, new_figure              # noqa: E402

PLACE = 'fashion200'                                           # below runs/evidence and results
STEPS = 5000
SETTING = ('--data fashion-mnist --frac 200 --preset paper --ch-g 32 --ch-d 32 --batch 32 --g-batch 32 '
           f'--d-steps 1 --lr-g 5e-4 --lr-d 5e-4 --steps {STEPS} --eval-every 1000 --eval-samples 2000 '
           '--eval-repeats 1 --metrics fid,kid,prdc,copy --features effnet --device cpu')
ROUNDS = 5
SEEDS = range(5)
DENSE_SEEDS = range(5, 12)                                     # dense trainings alone, for the best of k
STOPPED = 75, 129, 130, 143                                    # exit codes of trainings that resume

# {row: (the directory of its training in a seed's folder, the base that it is compared with)}
ROWS = {
    'dense': ('find/round0', None),
    'ticket 36.00 %': ('find/round2', 'dense'),
    'ticket 67.23 %': ('ticket5', 'dense'),
    'dense + DiffAug': ('diffaug', 'dense'),
    'dense + ADA': ('ada', 'dense'),
    'dense + AdvAug': ('advaug', 'dense'),
    'dense + DiffAug + AdvAug': ('diffaug-advaug', 'dense + DiffAug'),
    'ticket 36.00 % + DiffAug + AdvAug': ('ticket2-diffaug-advaug', 'dense + DiffAug')}

# {row: its effect on FID in the paper, in percent, and where}
PAPER = {
    'ticket 36.00 %': (-15.4, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'ticket 67.23 %': (-15.4, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'dense + DiffAug': (-29.8, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'dense + AdvAug': (-6.7, 'SNGAN, CIFAR-10 10 %, Table 6'),
    'dense + DiffAug + AdvAug': (-6.8, 'BigGAN, CIFAR-100 10 %, Table 3'),
    'ticket 36.00 % + DiffAug + AdvAug': (-12.9, 'BigGAN, CIFAR-100 10 %, Table 3')}


class Cell(NamedTuple):
    """One command; trainings: the directories that it trains in, below runs/evidence/PLACE."""
    name: str
    command: str
    trainings: list


# ---- the plan as commands

def cells_of(seed):
    """The cells of one seed, in the order in which they can run."""
    folder = f's{seed}'
    out = f'runs/evidence/{PLACE}/{folder}'
    flags = f'{SETTING} --seed {seed} --data-seed {seed}'

    def trained(name, extra):
        command = f'train_sngan.py {flags} {extra} --out {out}/{name}'
        return Cell(f'{folder}/{name}', command, [f'{folder}/{name}'])

    if seed not in SEEDS:
        return [trained('find/round0', '')]
    rounds = [f'{folder}/find/round{k}' for k in range(ROUNDS)]
    find = (f'find_ticket.py sngan {flags} --rounds {ROUNDS} --out {out}/find --ticket {out}/ticket.pt')
    masks = [f'--mask {out}/find/ticket{k}.pt' for k in range(ROUNDS + 1)]
    return [
        trained('diffaug', '--aug diffaug'),
        Cell(f'{folder}/find', find, rounds),
        trained('ticket5', masks[5]),
        trained('ticket2-diffaug-advaug', f'{masks[2]} --aug diffaug --advaug gd'),
        trained('diffaug-advaug', '--aug diffaug --advaug gd'),
        trained('ada', '--aug ada --ada-kimg 25'),
        trained('advaug', '--advaug gd')]


def is_collected(training):
    """Whether results/ has the last score of a training."""
    scores = files.read_jsonl(f'{ROOT}/results/{PLACE}/{training}/metrics.jsonl')
    return any(score['step'] == STEPS for score in scores)


def is_done(cell, later):
    """Whether a cell need not run: results/ has it, and no later cell of its seed lacks its tickets."""
    if not all(map(is_collected, cell.trainings)):
        return False
    for other in later:
        mask = other.command.partition('--mask ')[2].split(' ')[0]
        if mask.startswith(f'runs/evidence/{PLACE}/{cell.name}/') and not os.path.exists(f'{ROOT}/{mask}'):
            if not all(map(is_collected, other.trainings)):
                return False
    return True


def run_seed(seed):
    """Train the cells of a seed that are not done, and collect each."""
    cells = cells_of(seed)
    for i, cell in enumerate(cells):
        if is_done(cell, cells[i + 1:]):
            continue
        script, *flags = shlex.split(cell.command)
        print(f'begins: {cell.name}', flush=True)
        with open(os.devnull, 'w') as nowhere:
            done = subprocess.run([sys.executable, script, *flags], cwd=ROOT, stdout=nowhere,
                                  env={**os.environ, 'OMP_NUM_THREADS': '1'})
        for training in cell.trainings:
            collect(training)
        print(f'ended with code {done.returncode}: {cell.name}', flush=True)
        if done.returncode:
            if done.returncode not in STOPPED:
                reached = steps_of(cell.trainings[-1])
                record = {'step': reached, 'cell': cell.name, 'code': done.returncode}
                files.append_jsonl(f'{ROOT}/results/failed.jsonl', record)
            return


def steps_of(training):
    """The step of the last log line of a training, 0 for none."""
    log = files.read_jsonl(f'{ROOT}/runs/evidence/{PLACE}/{training}/log.jsonl')
    return log[-1]['step'] if log else 0


def collect(training):
    """Copy what results/ keeps of a training: flags, scores, and every tenth line of the log."""
    source = f'{ROOT}/runs/evidence/{PLACE}/{training}'
    if not os.path.exists(f'{source}/metrics.jsonl'):
        return
    kept = f'{ROOT}/results/{PLACE}/{training}'
    os.makedirs(kept, exist_ok=True)
    for name in ('args.json', 'metrics.jsonl'):
        shutil.copyfile(f'{source}/{name}', f'{kept}/{name}')
    log = files.read_jsonl(f'{source}/log.jsonl')
    files.write_jsonl(f'{kept}/log.jsonl', log[9::10])


# ---- from results/ to numbers

def scores_of(training):
    """The records of metrics.jsonl of a training that results/ has in full, else []."""
    if not is_collected(training):
        return []
    return files.read_jsonl(f'{ROOT}/results/{PLACE}/{training}/metrics.jsonl')


def final(row, key='all'):
    """{seed: the last score of a row}."""
    found = {}
    for seed in SEEDS:
        scores = scores_of(f's{seed}/{ROWS[row][0]}')
        if scores and key in scores[-1]:
            found[seed] = scores[-1][key]
    return found


def interval(values):
    """(mean, half the width of Student's 95 % interval); the half is NaN for fewer than two values."""
    values = np.array(values, float)
    n = len(values)
    half = float('nan')
    if n > 1:
        half = student.ppf(.975, n - 1) * values.std(ddof=1) / n ** .5
    return values.mean(), half


def differences(row, base, key='all'):
    """The differences d_s of a row from its base in percent, one for each seed that has both."""
    rows, bases = final(row, key), final(base, key)
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

    Returns the mean over all choices of k, and the number of trainings; None where there are too few."""
    last = []
    for seed in [*SEEDS, *DENSE_SEEDS]:
        scores = scores_of(f's{seed}/find/round0')
        if scores:
            last.append((scores[-1]['choose'], scores[-1]['report']))
    if len(last) < k:
        return None
    best = [min(chosen)[1] for chosen in itertools.combinations(last, k)]
    return float(np.mean(best)), len(last)


# ---- the page

def table():
    """Markdown lines: each row's score, its difference from its base, and the paper's."""
    lines = ['| row | trainings | FD-effnet at the end | KID | recall | copies | against | difference, % | '
             'verdict | in the paper, % |', '|' + '---|' * 10]
    for row, (_, base) in ROWS.items():
        found = list(final(row).values())
        if not found:
            continue
        mean, half = interval(found)
        others = []
        for key in ('kid', 'recall', 'copy'):
            values = list(final(row, key).values())
            others.append(f'{np.mean(values):.3g}' if values else '–')
        cells = [row, len(found), f'{mean:.0f} ± {half:.0f}', *others]
        if base and differences(row, base):
            d, width = interval(differences(row, base))
            effect, where = PAPER.get(row, (None, ''))
            cells += [base, f'{d:+.1f} ± {width:.1f}', verdict(d, width),
                      '–' if effect is None else f'{effect:+.1f} ({where})']
        else:
            cells += ['', '', '', '']
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return lines


def equal_compute():
    """Markdown lines: a ticket beside the best of as many dense trainings as it took."""
    lines = []
    for row, k in (('ticket 36.00 %', 3), ('ticket 67.23 %', 6)):
        best = expected_best(k)
        reports = list(final(row, 'report').values())
        if best and reports:
            mean, half = interval(reports)
            lines.append(f'- {row}: {mean:.0f} ± {half:.0f} on the reporting half; the best of {k} dense '
                         f'trainings, which cost as much: {best[0]:.0f} (mean over all choices of {k} out of '
                         f'{best[1]}).')
    return lines


def draw(folder):
    """Write evidence-scores.png and evidence-differences.png; returns the markdown lines that show them."""
    fig, ax = new_figure(7, 4)
    for i, (row, (name, _)) in enumerate(ROWS.items()):
        runs = [scores_of(f's{seed}/{name}') for seed in SEEDS]
        runs = [scores for scores in runs if scores]
        if not runs:
            continue
        steps = [score['step'] for score in runs[0]]
        values = np.array([[score['all'] for score in scores] for scores in runs])   # [seeds, evaluations]
        bands = np.array([interval(column) for column in values.T])                  # [evaluations, 2]
        ax.plot(steps, bands[:, 0], label=row, **line_style(i))
        ax.fill_between(steps, bands[:, 0] - bands[:, 1], bands[:, 0] + bands[:, 1], alpha=.15,
                        color=line_style(i)['color'])
    ax.set(xlabel='G updates', ylabel='FD-effnet', yscale='log')
    ax.legend(fontsize=7, frameon=False)
    fig.savefig(f'{folder}/evidence-scores.png', dpi=150, bbox_inches='tight')

    fig, ax = new_figure(7, 3.6)
    shown = [row for row, (_, base) in ROWS.items() if base and len(differences(row, base)) > 1]
    for y, row in enumerate(reversed(shown)):
        d = differences(row, ROWS[row][1])
        mean, half = interval(d)
        ax.errorbar(mean, y, xerr=half, fmt='o', color='black', capsize=3,
                    label='' if y else 'here, 95 % over seeds')
        ax.plot(d, [y] * len(d), '|', color='grey', markersize=9)
        if row in PAPER:
            ax.plot(PAPER[row][0], y, 'D', color='#D55E00',
                    label='' if y else 'the paper, another model and data')
    ax.axvline(0, color='grey', linewidth=.8)
    names = [f'{row}\nagainst {ROWS[row][1]}' for row in reversed(shown)]
    ax.set_yticks(range(len(shown)), names, fontsize=7)
    ax.set_xlabel('difference in %, lower is better')
    ax.legend(fontsize=7, frameon=False)
    fig.savefig(f'{folder}/evidence-differences.png', dpi=150, bbox_inches='tight')
    return ['![Scores over training](docs/evidence-scores.png)', '',
            '![Paired differences](docs/evidence-differences.png)']


def page():
    """Renew the part of RESULTS.md between its two marks, and the figures."""
    lines = [*table(), '', *equal_compute(), '']
    if CAN_DRAW:
        lines += draw(f'{ROOT}/docs')
    failed = files.read_jsonl(f'{ROOT}/results/failed.jsonl')
    lines += ['', f'Trainings that failed: {len(failed)}.']

    with open(f'{ROOT}/RESULTS.md') as f:
        before, _, rest = f.read().partition('<!-- evidence -->')
    after = rest.partition('<!-- end -->')[2]
    middle = '\n'.join(lines)
    with open(f'{ROOT}/RESULTS.md', 'w') as f:
        f.write(f'{before}<!-- evidence -->\n{middle}\n<!-- end -->{after}')


def get_args(argv=None):
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['cells', 'run', 'page'], help='print the commands, train, or draw')
    p.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings at a time, of one thread each')
    return p.parse_args(argv)


def main(args):
    """Do one of the three."""
    seeds = [*SEEDS, *DENSE_SEEDS]
    if args.what == 'cells':
        for seed in seeds:
            for cell in cells_of(seed):
                print(cell.command)
    elif args.what == 'run':
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run_seed, seeds))
    else:
        page()


if __name__ == '__main__':
    main(get_args())
