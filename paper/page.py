"""The page of one table, figure or control: ours beside the published numbers, and what is missing.

Use:
    python paper/experiments.py fig7 > rows.txt
    python paper/page.py fig7 --rows rows.txt --out page
Reads the run directories that the rows name, the masks of tickets, and leak.json of paper/leak.py in --out,
nothing else.  The tables are those of report.py, which says what a score and its ± are.

A published number stands beside ours only where data, features, samples, reference and schedule are the same.
Everywhere else it is grey, and what differs is named.
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import argparse
import collections
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))     # the repository

import cli                                                     # noqa: E402
import webpage                                                 # noqa: E402
from paper import comparisons, experiments, figures, published  # noqa: E402
from paper.rows import add_points, by_family, expected_rows    # noqa: E402
from report import all_runs, picture_lines, tables, write_page  # noqa: E402
from runs import CAN_DRAW, protocol_words, sample_grid         # noqa: E402

WITH_GRIDS = 'fig5', 'fig6', 'fewshot', 'table5', 'transfer', 'leak', 'diffaug'     # pages that show samples


def get_args(argv=None):
    """The flags; exits 2 where --rows is no file."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('name', choices=experiments.EXPERIMENTS, metavar='NAME',
                   help=', '.join(experiments.EXPERIMENTS))
    p.add_argument('--rows', metavar='FILE', required=True,
                   help='the lines that paper/experiments.py printed: the runs that should be there')
    p.add_argument('--out', help='the folder of the page (default: runs/report/NAME)')
    args = p.parse_args(argv)
    if not os.path.isfile(args.rows):
        cli.refuse(f'--rows {args.rows}: no such file; make it with '
                   f'python paper/experiments.py {args.name} > {args.rows}')
    if args.out is None:
        args.out = f'runs/report/{args.name}'
    cli.check_output('--out', args.out, folder=True)
    return args


def table_lines(rows):
    """Markdown lines of the tables of each family, and what is compared below them."""
    lines = []
    for family, part in by_family(rows).items():
        lines += [f'## {family}', '']
        lines += tables(part, [('published', published.published_cell, published.NOTE)])
        lines += comparisons.equal_compute_lines(part, family)
        lines += comparisons.shift_lines(part)
    return lines


def figure_lines(args, rows, runs, records):
    """Markdown lines of the figures; runs: those that the figures show, records: what figures need beside."""
    score = runs[0]['scores'][-1]['score'] if runs else 'score'
    protocol = ''
    if runs:
        protocol = (f' {protocol_words(runs)}. Error bars: the spread over sets of z of one training, or of '
                    "several seeds Student's 95 % interval over trainings.")
    if any(row['published'] for row in rows):
        protocol += ' Diamonds: published, grey where something differs.'

    lines = []
    draw = figures.FIGURES.get(args.name, figures.draw_rows)
    for name, figure, caption in draw(rows, score, records):
        caption = caption.removesuffix('.') + '.' + protocol
        lines += picture_lines(args.out, f'{args.name}{name}.png', figure, caption)
    return lines


def grid_lines(args, rows):
    """Markdown lines of the samples of each family."""
    lines = []
    for family, part in by_family(rows).items():
        image, caption = sample_grid(all_runs(part))
        if image:
            name = f'{args.name}-grids-{os.path.basename(family)}.png'
            lines += picture_lines(args.out, name, image, caption)
    return lines


def lack_notes(rows):
    """What is missing or wrong, with the rows that it is said of."""
    names = collections.defaultdict(list)
    for row in rows:
        for lack in row['lacks']:
            names[row['family'], lack].append(row['name'])
    return [f"{lack}, in {family}: {', '.join(rows_of_it)}" for (family, lack), rows_of_it in names.items()]


def experiment_page(args):
    """The lines of the page, those of its tables, and the runs in them."""
    with open(args.rows, errors='replace') as f:
        rows = expected_rows(args.name, f)
    os.makedirs(args.out, exist_ok=True)
    runs, notes = add_points(rows)

    whole = sum(not row['lacks'] for row in rows)
    count = f'{whole} of {len(rows)} rows are whole'
    count += ', the others are named below.' if whole < len(rows) else '.'
    about = experiments.EXPERIMENTS[args.name].__doc__
    lines = [f'# {args.name}', '', about, '', count, '', *table_lines(rows)]

    # What only some experiments have, and records for their figures.
    records = {}
    if args.name == 'controls':
        lines += comparisons.other_mask_lines(rows)
    if args.name == 'mask-quality':
        tickets = comparisons.trained_tickets(rows)
        names, matrices = comparisons.overlap_matrices(tickets)
        records['overlaps'] = names, matrices
        for name, path in tickets.items():
            if name not in names:
                notes.append(f'no mask of {name} to compare: {path}')
    if args.name == 'leak':
        leaks, records['leak'] = comparisons.leak_lines(rows, f'{args.out}/leak.json')
        lines += leaks

    page = list(lines)
    if CAN_DRAW:
        page += figure_lines(args, rows, runs, records)
    else:
        notes.append('no figures: matplotlib is not installed')
    if args.name in WITH_GRIDS:
        page += grid_lines(args, rows)
    notes += lack_notes(rows)
    if notes:
        page += ['Notes:', '', *(f'- {note}' for note in notes)]
    return page, lines, all_runs(rows)


def main(args):
    """Write report.md with its pictures, and index.html; returns the path of report.md."""
    page, lines, runs = experiment_page(args)
    path = write_page(args.out, page, lines)
    print(webpage.write(args.out, args.name, runs, page[1:]))
    return path


if __name__ == '__main__':
    cli.script(main, get_args)
