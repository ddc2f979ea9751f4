"""My runs as one page: tables by protocol with what each run cost, curves over training, grids of samples.

Use:
    python report.py                                   # everything below runs/: runs/report/report.md
    python report.py runs/faces --out page             # everything below another folder: page/report.md
    python report.py --watch                           # while trainings run: index.html anew every minute
Reads the run directories (runs.py) and the masks of tickets, nothing else.  index.html, beside report.md, is the
same runs in a browser (webpage.py).

A score is the mean over several sets of z of one checkpoint, ± their standard deviation.  `best` was chosen
on one half of the reference and is reported on the other half.  A row of several seeds has the means over its
trainings, and Student's 95 % interval over the trainings in a column of its own.  A difference from the dense
row is taken seed by seed.  `=` marks a difference within its interval, or for one seed within the sum of the
two spreads.

A row is what stands in one line of a table: one run, or the runs of several seeds.  It is a dict:
    name       the first cell
    runs       the runs, as runs.py describes them
    lacks      what is missing or wrong, in words; empty for a whole row
    is_dense   whether others are compared with it
    findings   {directory or ticket: finding} of the tickets that its runs may start from
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import argparse
import collections
import os
import re
import time
from functools import partial

import numpy as np
from PIL import Image
from scipy.special import stdtrit

import cli
import files
import prune
import webpage
from runs import (CAN_DRAW, FURTHER, collect, collect_begun, collect_findings, curves, damage, protocol_key,
                  protocol_words, read_run, run_label, sample_grid, tell_apart, ticket_masks, trainings_before)

# Further scores of a record: title, entry in the protocol, factor, digits.
FURTHER_COLUMNS = {
    'is': ('IS', 'is', 1, 2),
    'kid': ('KID x 1000', 'kid', 1000, 2),
    'precision': ('precision', 'prdc', 1, 3),
    'recall': ('recall', 'prdc', 1, 3),
    'density': ('density', 'prdc', 1, 3),
    'coverage': ('coverage', 'prdc', 1, 3),
    'copy': ('copies', 'copy', 1, 3),
    'copy_train': ('copies of training images', 'copy', 1, 3)}
SHIFT_NOTE = ("c: mean |logit shift| by AdvAug on D over the second half of training; at D's last layer it "
              'is the same for all images (of a class).')


def get_args(argv=None):
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', nargs='?', default='runs', metavar='RUNS', help='folder below which the runs lie')
    p.add_argument('--out', help='folder of the page (default: RUNS/report)')
    p.add_argument('--watch', action='store_true', help='write index.html anew every minute, until Ctrl-C')
    args = p.parse_args(argv)
    if not args.runs:                                          # the empty name would mean every folder
        cli.refuse("RUNS '' is empty: name the folder of the runs")
    if args.out is None:
        args.out = os.path.join(args.runs, 'report')
    cli.check_output('--out', args.out, folder=True)
    return args


# ---- rows

def rows_of_runs(runs, findings):
    """A row for each run."""
    dense = re.compile(r'dense(, seed \d+)?')
    return [{
        'name': run['label'],
        'runs': [run],
        'lacks': [run['state']] if run['state'] else [],
        'is_dense': bool(dense.fullmatch(run_label(run['flags'], run['sparsity']))),
        'findings': findings} for run in runs]


def all_runs(rows):
    """The runs of all rows."""
    runs = []
    for row in rows:
        runs += row['runs']
    return runs


def last_scores(row):
    """[(run, its last score)] of the runs that are scored at the latest step by the first run's protocol."""
    scored = [(run, run['scores'][-1]) for run in row['runs'] if run['scores']]
    latest = max((score['step'] for _, score in scored), default=0)
    comparable = []
    for run, score in scored:
        if score['step'] == latest and protocol_key(run) == protocol_key(scored[0][0]):
            comparable.append((run, score))
    return comparable


def all_last_scores(rows):
    """The last scores of all rows."""
    pairs = []
    for row in rows:
        pairs += last_scores(row)
    return pairs


def first_flags(row):
    """The flags of the first scored run of a row: the others differ in the seed alone."""
    return last_scores(row)[0][0]['flags']


def mean_and_spread(scores, key):
    """The means over records of a score and of its spread over sets of z."""
    return np.mean([s[key] for s in scores]), np.mean([s[f'{key}_std'] for s in scores])


def interval(values):
    """Half of Student's 95 % interval of a mean, None of one value."""
    n = len(values)
    if n < 2:
        return None
    return float(stdtrit(n - 1, .975) * np.std(values, ddof=1) / n ** .5)


# ---- cells

def steps_cell(row):
    """The step of the last score."""
    return str(last_scores(row)[0][1]['step'])


def score_cell(row, key):
    """'964.2 ± 5.1'."""
    mean, spread = mean_and_spread([score for _, score in last_scores(row)], key)
    return f'{mean:.1f} ± {spread:.1f}'


def seeds_cell(row):
    """'± 3.1 (3 seeds)', '1 training'."""
    values = [score['all'] for _, score in last_scores(row)]
    if len(values) == 1:
        return '1 training'
    return f'± {interval(values):.1f} ({len(values)} seeds)'


def change_cell(row, dense):
    """'-12.3 ± 1.5': the difference from the dense runs of the same seeds that were scored at the same step.

    '= +0.3 ± 1.5' lies within the interval over seeds, for one seed: within the sum of the two spreads."""
    if row['is_dense']:
        return ''
    # {(seed, step): score}: of dense runs that are alike the first counts.
    olds = {}
    for run in dense:
        if run['scores']:
            score = run['scores'][-1]
            olds.setdefault((run['seed'], score['step']), score)

    pairs = []
    for run, new in last_scores(row):
        old = olds.get((run['seed'], new['step']))
        if old:
            pairs.append((new, old))
    if not pairs:
        return ''

    differences = [new['all'] - old['all'] for new, old in pairs]
    difference, spread = np.mean(differences), interval(differences)
    if spread is None:                                         # of one seed
        new, old = pairs[0]
        spread = new['all_std'] + old['all_std']
    text = f'{difference:+.1f} ± {spread:.1f}'
    if abs(difference) <= spread:
        text = f'= {text}'
    if len(pairs) > 1:
        text += f' ({len(pairs)} seeds)'
    return text


def best_cell(row):
    """'950.1 ± 4.0 (150)': checkpoints that one half of the reference chose, on the other; their steps."""
    chosen = [min(run['scores'], key=lambda s: s['choose']) for run, _ in last_scores(row)]
    mean, spread = mean_and_spread(chosen, 'report')
    steps = ', '.join(str(score['step']) for score in chosen)
    return f'{mean:.1f} ± {spread:.1f} ({steps})'


def further_cell(row, key, protocols):
    """One further score, scaled as papers print it; '–' where its protocol is not the one above the table."""
    _, metric, factor, digits = FURTHER_COLUMNS[key]
    scores = []
    for _, score in last_scores(row):
        if key in score and score['protocol'].get(metric) == protocols[metric]:
            scores.append(score)
    if not scores:
        return '–'
    mean, spread = mean_and_spread(scores, key)
    return f'{mean * factor:.{digits}f} ± {spread * factor:.{digits}f}'


def shares_text(shares):
    """'48.80%' of G and D, or 'G 48.80%, D 0.00%'."""
    texts = {net: f'{share:.2%}' for net, share in shares.items()}
    if texts['G'] == texts['D']:
        return texts['G']
    return f"G {texts['G']}, D {texts['D']}"


def pruned_cell(row):
    """The shares of pruned weights."""
    run, _ = last_scores(row)[0]
    return shares_text(run['sparsity'])


def channels_cell(row):
    """The shares of channels that the ticket prunes wholly."""
    masks = ticket_masks(first_flags(row).get('mask') or '')
    if not masks:
        return '–'
    return shares_text({net: prune.channels(masks[net]) for net in 'GD'})


def cost_cell(row, key, scale, digits):
    """'4.8 (19.2)': what one training took, on average over seeds, and with all trainings before it.

    '≥' says that the records of one of these are not there."""
    own, total = [], []                                        # a value for each seed
    whole = True
    for run, _ in last_scores(row):
        before = [path and read_run(path) for path in trainings_before(run['flags'], row['findings'])]
        own.append(run[key])
        total.append(run[key] + sum(r[key] for r in before if r))
        whole &= all(r and r['log'] for r in before)
    bound = '' if whole else '≥ '
    return f'{np.mean(own) / scale:,.{digits}f} ({bound}{np.mean(total) / scale:,.{digits}f})'


def logit_shift(row):
    """c: the mean |logit shift| by AdvAug on D, over the second half of the log; None without one."""
    shifts = []                                                # a value for each seed
    for run in row['runs']:
        logged = [line['D_shift'] for line in run['log'] if 'D_shift' in line]
        if logged:
            shifts.append(np.mean(logged[len(logged) // 2:]))
    return float(np.mean(shifts)) if shifts else None


def shift_cell(row):
    """'0.0650'."""
    c = logit_shift(row)
    return f'{c:.4f}' if c else '–'


# ---- tables

def markdown_table(titles, body):
    """The lines of a table: titles [T], body [R][T] of texts; an empty line at the end."""
    lines = [f"| {' | '.join(titles)} |", '|---' * len(titles) + '|']
    lines += [f"| {' | '.join(cells)} |" for cells in body]
    return [*lines, '']


def tables(rows, further=()):
    """Markdown lines: one table per protocol, the protocol above it. The first has the rows without a score.

    further: more columns (title, cell(row) -> text, note); each appears where a row has another cell than
    '–', and its note stands below the table."""
    # {protocol: its rows}, the protocols in the order of the rows.
    keys = [table_key(row) for row in rows]
    protocols = [key for key in dict.fromkeys(keys) if key]
    if rows and not protocols:
        return markdown_table(['run', ''], [[row['name'], '; '.join(row['lacks'])] for row in rows])

    lines = []
    for protocol in protocols:
        here = [protocol, None] if protocol == protocols[0] else [protocol]
        lines += one_table([row for row, key in zip(rows, keys) if key in here], further)
    return lines


def table_key(row):
    """The protocol of a row's last score, None without one: a table has the rows of one protocol."""
    scores = last_scores(row)
    return protocol_key(scores[0][0]) if scores else None


def one_table(rows, further):
    """Markdown lines of the table of rows that are scored by one protocol, or not at all."""
    scored = [row for row in rows if last_scores(row)]
    pairs = all_last_scores(scored)

    # The columns, and a note for some of them.
    protocols = further_protocols([score for _, score in pairs])
    columns = table_columns(scored, protocols)
    notes = {'c': SHIFT_NOTE}
    for title, cell, note in further:
        if any(cell(row) != '–' for row in scored):
            columns[title] = cell
            notes = {title: note, **notes}

    # The rows.
    body = []
    for row in rows:
        if last_scores(row):
            cells = [cell(row) for cell in columns.values()]
        else:
            cells = ['–'] * len(columns)
        body.append([name_with_lacks(row), *cells])

    # The protocol above, the notes below.
    head = protocol_words([run for run, _ in pairs])
    for metric, words in protocols.items():
        head += f'; {metric}: {words}'
    lines = [f'{head}.', '', *markdown_table(['run', *columns], body), spread_note(scored), '']
    for title, note in notes.items():
        if title in columns:
            lines += [note, '']
    return lines


def name_with_lacks(row):
    """'dense-noise (no score)'."""
    return f"{row['name']} ({'; '.join(row['lacks'])})" if row['lacks'] else row['name']


def table_columns(rows, protocols):
    """{title: cell(row) -> text} of a table of scored rows; protocols: those of the further scores."""
    runs = all_runs(rows)
    scores = [score for _, score in all_last_scores(rows)]
    dense = all_runs([row for row in rows if row['is_dense']])
    methods = [finding['method'] for finding in rows[0]['findings'].values()]

    # The scores.
    columns = {'steps': steps_cell, f"last {scores[0]['score']}": partial(score_cell, key='all')}
    if any(len(last_scores(row)) > 1 for row in rows):
        columns['over seeds'] = seeds_cell
    columns['to dense'] = partial(change_cell, dense=dense)
    columns['last on the reported half'] = partial(score_cell, key='report')
    columns['best on that half (step)'] = best_cell
    # The networks.
    columns['pruned'] = pruned_cell
    if 'slimming' in methods or any(run['flags'].get('slim') for run in runs):
        columns['channels gone'] = channels_cell
    if any(logit_shift(row) for row in rows):
        columns['c'] = shift_cell

    # The cost, of a run alone and in brackets with all trainings before it.
    devices = ' / '.join(dict.fromkeys(run['device'] for run in runs if run['device']))
    columns['1,000 images seen (with finding)'] = partial(cost_cell, key='images', scale=1000, digits=1)
    columns[f'{devices} seconds (with finding)'] = partial(cost_cell, key='seconds', scale=1, digits=0)
    for key, (title, *_) in FURTHER_COLUMNS.items():
        if any(key in score for score in scores):
            columns[title] = partial(further_cell, key=key, protocols=protocols)
    return columns


def further_protocols(scores):
    """{metric: how it was computed} of IS, KID and the like, as the first record that has it says."""
    protocols = {}
    for metric in FURTHER:
        for score in scores:
            if metric in score['protocol']:
                protocols.setdefault(metric, score['protocol'][metric])
    return protocols


def spread_note(rows):
    """What ± and = mean in a table of these rows."""
    if any(len(last_scores(row)) > 1 for row in rows):
        subject = '± is the spread over sets of z'
        bound = '95 % interval over seeds'
    else:
        subject = 'One training a row: ± is the spread over its sets of z'
        bound = 'sum of two spreads'
    return (f"{subject} (of IS over splits, of KID over subsets), not over trainings; '=' is a difference "
            f'within the {bound}.')


# ---- the page

def picture_lines(out, name, picture, caption):
    """Save an image or a figure into the folder of a page; the markdown lines that show it."""
    def save(tmp):
        if isinstance(picture, Image.Image):
            picture.save(tmp, 'PNG')
        else:
            picture.tight_layout()
            picture.savefig(tmp, dpi=120, format='png', bbox_inches='tight')
    files.write(f'{out}/{name}', save)
    return [f'![{name}]({name})', '', caption, '']


def write_page(out, page, lines):
    """Write the page to report.md and print its `lines` that a terminal can show; returns its path."""
    path = f'{out}/report.md'

    def save(tmp):
        with open(tmp, 'w') as f:
            f.write('\n'.join(page).rstrip() + '\n')
    files.write(path, save)
    print('\n'.join(lines))
    print(path)
    return path


def runs_by_kind(runs):
    """{(model, data set, share, resolution): runs}."""
    kinds = collections.defaultdict(list)
    for run in runs:
        flags = run['flags']
        data = os.path.basename(flags['data'].rstrip('/'))
        kinds[run['model'], data, flags['frac'], flags['res']].append(run)
    return kinds


def kind_lines(runs, out, heading, tag):
    """Markdown lines of the samples and curves of one kind of runs; tag: the end of the pictures' names."""
    lines = [heading, ''] if heading else []
    image, caption = sample_grid(runs)
    if image:
        lines += picture_lines(out, f'grids{tag}.png', image, caption)
    for name, figure, caption in curves(runs):
        lines += picture_lines(out, name.replace('.png', f'{tag}.png'), figure, caption)
    return lines


def folder_page(args):
    """The lines of the page of everything below a folder, and those of its tables. Exits 2 without a run."""
    runs = collect(args.runs)
    damaged = damage(args.runs)
    if not runs:
        nothing = (f'{args.runs}: no run with a log line below it; train something first, or name another '
                   'folder')
        cli.refuse('; '.join([*damaged, nothing]))
    os.makedirs(args.out, exist_ok=True)

    kinds = runs_by_kind(runs)
    for group in kinds.values():
        tell_apart(group)

    # The tables, which are printed, too.
    scored = [run for run in runs if run['scores']]
    lines = tables(rows_of_runs(scored, collect_findings(args.runs)))
    unscored = [run['path'] for run in runs if not run['scores']]
    if unscored:
        lines += [f"No scores yet: {', '.join(unscored)}.", '']
    if damaged:
        lines += ['Damaged, and left out:', '', *(f'- {sentence}' for sentence in damaged), '']

    # Below them samples and curves.
    page = ['# Runs', '', *lines]
    if not CAN_DRAW:
        page += ['No curves: matplotlib is not installed.', '']
    for kind, group in kinds.items():
        if len(kinds) == 1:
            page += kind_lines(group, args.out, '', '')
        else:
            model, data, frac, res = kind
            heading = f'## {model} on {data}, share {frac}, {res} px'
            page += kind_lines(group, args.out, heading, f'-{model}-{data}-{frac}-{res}')
    page += markdown_table(['run', 'directory'], [[run['label'], run['path']] for run in runs])
    return page, lines


def write_index(args):
    """Write index.html: every run below the folder, also those without a log line, and the damaged files."""
    title = os.path.basename(os.path.abspath(args.runs))
    notes = [f'Damaged, and left out: {sentence}' for sentence in damage(args.runs)]
    return webpage.write(args.out, title, collect_begun(args.runs), notes, args.watch)


def main(args):
    """Write report.md with its pictures, and index.html; returns the path of report.md."""
    page, lines = folder_page(args)
    path = write_page(args.out, page, lines)
    print(write_index(args), flush=True)
    while args.watch:
        time.sleep(60)
        write_index(args)
    return path


if __name__ == '__main__':
    cli.script(main, get_args)
