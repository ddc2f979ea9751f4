"""Runs -> a page: tables by protocol with their cost, figures, sample grids; ours beside the published numbers.

Use:
    python report.py runs                              # everything below runs/: runs/report/report.md and its PNGs
    python experiments.py fig7 > rows.txt
    python report.py fig7 --rows rows.txt --out page   # what fig7 asks for, as the paper's figure, missing rows too
Reads args.json, subset.json, log.jsonl, metrics.jsonl and samples/ of the runs, the masks of tickets, and leak.json of
leak.py in --out, nothing else.  Whatever is missing, cut off or torn is named.

Scores are the mean over sets of z of one checkpoint, +- their standard deviation.  With several seeds they are means
over trainings, with Student's 95 % interval apart from that spread; a difference from the dense row is taken seed by
seed, and `=` lies within its interval (of one seed: within the sum of the two spreads).  `best` was chosen on one half
of the reference and is reported on the other.  A published number stands beside ours only where data, features,
samples, reference and schedule match; else it is grey, with what differs.

At equal compute a ticket of k rounds has cost k + 1 trainings: its rival is the best of k + 1 dense ones, chosen on one
half of the reference and reported on the other.
"""
import argparse
import collections
import contextlib
import glob
import importlib
import json
import math
import os
import re
import sys

import numpy as np
from PIL import Image
from scipy.special import stdtrit

import experiments
import loop
import prune
from results import (FURTHER, before, collect, finding, findings, masks, origin, phrase, pick, protocol, published,
                     read, read_json, records, theirs, trainings, unlike, value)

EXTRA = {'is': ('IS', 'is', 1, 2), 'kid': ('KID x 1000', 'kid', 1000, 2),             # name, entry, scale, digits
         **{word: (word, 'prdc', 1, 3) for word in ('precision', 'recall', 'density', 'coverage')},
         'copy': ('copies', 'copy', 1, 3), 'copy_train': ('copies of training images', 'copy', 1, 3)}
ROW = re.compile(r'(dense|ticket|oneshot|random-layers|random|init|slimming|small|early)(\d*)-(.+)')
FIRST = 'plain', 'noise', 'advaug', 'advaug-g', 'margin'       # of the ways to train, in tables
GRIDS = 'fig5', 'fig6', 'fewshot', 'table5', 'transfer', 'leak', 'diffaug'


def get_args(argv=None):
    """The flags; exits 2 when there is nothing to report."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('runs', nargs='?', default='runs', metavar='RUNS', help='folder below which the runs lie; with --rows: the '
      "name of one of experiments.py's experiments")
    a('--rows', metavar='FILE', help='what experiments.py printed: the runs that should be there')
    a('--out', help='folder of the report (default: RUNS/report, with --rows: runs/report/NAME)')
    a('--hours', action='store_true',
      help="RUNS holds timed runs MODEL-DATA: read experiments.py's lines, print hours by experiment")
    args = p.parse_args(argv)
    if args.rows and args.runs not in experiments.EXPERIMENTS:
        loop.refuse(f'{args.runs} with --rows is not an experiment: choose from {", ".join(experiments.EXPERIMENTS)}')
    if args.rows and not os.path.isfile(args.rows):
        loop.refuse(f'--rows {args.rows}: no such file; make it with python experiments.py {args.runs} > {args.rows}')
    if args.runs in experiments.EXPERIMENTS and not (args.rows or os.path.isdir(args.runs)):
        loop.refuse(f'{args.runs} needs its rows: python experiments.py {args.runs} > rows.txt, then --rows rows.txt')
    args.out = args.out or (f'runs/report/{args.runs}' if args.rows else os.path.join(args.runs, 'report'))
    return args


# ---- rows: what stands in one line of a table, one run or those of several seeds

def single(runs, found):
    """The rows of runs one by one."""
    dense = re.compile(r'dense(, seed \d+)?')
    return [{'name': r['label'], 'runs': [r], 'lacks': [r['state']] if r['state'] else [], 'found': found,
             'dense': bool(dense.fullmatch(r['label']))} for r in runs]


def expected(name, lines):
    """The rows that an experiment asks for, with the runs that there are.

    A row is {family: directory of seed 0, name, start: what is trained, k: its round, way: how, dense: whether others
    are compared with it, mask: the first seed's ticket, paths, runs, lacks: what is missing or wrong, found}."""
    commands = [words[2:] for words in map(str.split, lines) if words[1:2] == [name] and '--out' in words[:-1]]
    found, tickets = {}, {}
    seeds = collections.defaultdict(lambda: collections.defaultdict(list))         # [family, row][seed]: directories
    for script, *words in commands:
        out = os.path.normpath(value(words, '--out'))
        folder, last = os.path.split(out)
        family, seed = re.fullmatch(r'(.*?)(?:-s(\d+))?', folder).groups()
        if script != 'find_ticket':
            seeds[family, last][int(seed or 0)].insert(0, out)
            tickets.setdefault((family, last), value(words, '--mask'))
            continue
        f = finding(words)
        found[out] = found[f['ticket']] = f
        for k in range(f['rounds'] if f['method'] == 'imp' else 0):                # round k trains ticket k plainly
            plain = f'ticket{k}-plain' if k else 'dense-plain'
            seeds[family, plain if last == 'find' else f'{last}/round{k}'][int(seed or 0)].append(f'{out}/round{k}')
    rows = []
    for (family, last), paths in seeds.items():
        start, k, way = ROW.fullmatch(last).groups() if ROW.fullmatch(last) else (last.split('/')[0], '', 'plain')
        k = re.search(r'/round(\d+)', last)[1] if '/round' in last else k
        row = {'family': family, 'name': last, 'start': start, 'k': int(k or 0), 'way': way, 'runs': [], 'lacks': [],
               'dense': last in ('dense-plain', 'dense-twice'), 'found': found, 'mask': tickets.get((family, last)),
               'paths': [p for ps in paths.values() for p in ps]}
        for seed, candidates in paths.items():
            run = pick(candidates)
            row['runs'] += [{**run, 'label': last + f', seed {seed}' * bool(seed)}] if run else []
            torn = any(os.path.exists(f'{path}/args.json') for path in candidates)
            why = run['state'] if run else 'args.json is torn' if torn else 'missing'
            row['lacks'] += [why + f' (seed {seed})' * (len(paths) > 1)] if why else []
        rows.append(row)
    way = lambda r: 'margin' if r['way'].startswith('margin') else r['way']
    starts = list(dict.fromkeys(['dense', 'ticket', *(r['start'] for r in rows)]))
    ways = list(dict.fromkeys([*FIRST, *map(way, rows)]))
    return sorted(rows, key=lambda r: (starts.index(r['start']), r['k'], ways.index(way(r))))


def last(row):
    """[(run, its last score)] of a row's seeds, of those scored at the latest step and by one protocol."""
    scored = [(r, r['scores'][-1]) for r in row['runs'] if r['scores']]
    step = max((s['step'] for _, s in scored), default=0)
    return [(r, s) for r, s in scored if s['step'] == step and protocol(r) == protocol(scored[0][0])]


def final(row):
    """`last` of what has been scored at its end."""
    return [(r, s) for r, s in last(row) if s['step'] >= r['flags']['steps']]


def interval(values):
    """Half of Student's 95 % interval of a mean, None of one value."""
    n = len(values)
    return float(stdtrit(n - 1, .975) * np.std(values, ddof=1) / n ** .5) if n > 1 else None


# ---- tables

def change(row, dense):
    """'-12.3 ± 1.5' against the dense runs of the same seeds that are as long, '= +0.3 ± 1.5' within the interval over
    seeds, or of one seed within the sum of the spreads over sets of z."""
    olds = {(r['seed'], r['scores'][-1]['step']): r['scores'][-1] for r in reversed(dense) if r['scores']}
    pairs = [(s, olds[r['seed'], s['step']]) for r, s in last(row) if (r['seed'], s['step']) in olds]
    if row['dense'] or not pairs:
        return ''
    differences = [new['all'] - old['all'] for new, old in pairs]
    difference, spread = np.mean(differences), interval(differences)
    if spread is None:
        spread = pairs[0][0]['all_std'] + pairs[0][1]['all_std']
    return '= ' * bool(abs(difference) <= spread) + f'{difference:+.1f} ± {spread:.1f}' + \
        f' ({len(pairs)} seeds)' * (len(pairs) > 1)


def over_seeds(row):
    """'± 3.1 (3 seeds)', '1 training'."""
    values = [s['all'] for _, s in last(row)]
    return '1 training' if len(values) == 1 else f'± {interval(values):.1f} ({len(values)} seeds)'


def mean(row, key, digits=1):
    """'964.2 ± 5.1': means over seeds of a score and of its spread over sets of z."""
    value, spread = (np.mean([s[k] for _, s in last(row)]) for k in (key, f'{key}_std'))
    return f'{value:.{digits}f} ± {spread:.{digits}f}'


def best(row):
    """'950.1 ± 4.0 (150)': of the checkpoints chosen on one half, on the other, and their steps."""
    chosen = [min(r['scores'], key=lambda s: s['choose']) for r, _ in last(row)]
    value, spread = (np.mean([s[k] for s in chosen]) for k in ('report', 'report_std'))
    return f"{value:.1f} ± {spread:.1f} ({', '.join(str(s['step']) for s in chosen)})"


def cell(row, key, further):
    """One further score, scaled as papers print it; '–' without one of the protocol above the table."""
    metric, scale, digits = EXTRA[key][1:]
    scores = [s for _, s in last(row) if key in s and s['protocol'].get(metric) == further[metric]]
    if not scores:
        return '–'
    value, spread = (np.mean([s[k] for s in scores]) * scale for k in (key, f'{key}_std'))
    return f'{value:.{digits}f} ± {spread:.{digits}f}'


def both(values):
    """'48.80 %' of G and D, or 'G 48.80 %, D 0.00 %'."""
    words = {name: f'{v:.2%}' for name, v in values.items()}
    return words['G'] if len({*words.values()}) == 1 else ', '.join(f'{n} {w}' for n, w in words.items())


def gone(row):
    """The share of wholly pruned channels of a row's ticket."""
    m = masks(last(row)[0][0]['flags'].get('mask') or '')
    return both({name: prune.channels(m[name]) for name in 'GD'}) if m else '–'


def cost(row, key, scale, digits):
    """'4.8 (19.2)': what one training took, on average over seeds, and with all that its ticket took; '≥' where a part
    of that is not there."""
    own, total, whole = [], [], True
    for r, _ in last(row):
        parts = [path and read(path) for path in before(r['flags'], row['found'])]
        own.append(r[key])
        total.append(r[key] + sum(p[key] for p in parts if p))
        whole &= all(p and p['log'] for p in parts)
    return f"{np.mean(own) / scale:,.{digits}f} ({'' if whole else '≥ '}{np.mean(total) / scale:,.{digits}f})"


def shift(row):
    """c: the mean |logit shift| by AdvAug on D, over the second half of the training; None without one."""
    logs = [[line['D_shift'] for line in r['log'] if 'D_shift' in line] for r in row['runs']]
    logs = [np.mean(x[len(x) // 2:]) for x in logs if x]
    return float(np.mean(logs)) if logs else None


def iterative(row):
    """Whether a row is of what the paper publishes: dense, or of iterative pruning from random weights."""
    f, _ = origin(last(row)[0][0]['flags'].get('mask'), row['found'])
    return not f or f['method'] == 'imp' and not f['init_from']


def columns(rows):
    """The columns {title: f(row) -> cell} of a table of rows by one protocol, further protocols."""
    scored = [s for row in rows for _, s in last(row)]
    name, protocols = scored[0]['score'], [s['protocol'] for s in scored]
    further = {key: next(p[key] for p in protocols if key in p) for key in FURTHER if any(key in p for p in protocols)}
    runs = [r for row in rows for r in row['runs']]
    device = ' / '.join(dict.fromkeys(r['device'] for r in runs if r['device']))
    out = {'steps': lambda r: last(r)[0][1]['step'], f'last {name}': lambda r: mean(r, 'all')}
    if any(len(last(row)) > 1 for row in rows):
        out['over seeds'] = over_seeds
    dense = [r for row in rows if row['dense'] for r in row['runs']]
    out |= {'to dense': lambda r: change(r, dense), 'last on the reported half': lambda r: mean(r, 'report'),
            'best on that half (step)': best, 'pruned': lambda r: both(last(r)[0][0]['sparsity'])}
    if any(r['flags'].get('slim') for r in runs) or any(f['method'] == 'slimming' for f in rows[0]['found'].values()):
        out['channels gone'] = gone
    if any(shift(row) for row in rows):
        out['c'] = lambda r: f'{shift(r):.4f}' if shift(r) else '–'
    out |= {'1,000 images seen (with finding)': lambda r: cost(r, 'images', 1000, 1),
            f'{device} seconds (with finding)': lambda r: cost(r, 'seconds', 1, 0)}
    keys = [key for key in EXTRA if any(key in s for s in scored)]
    out |= {EXTRA[key][0]: lambda r, key=key: cell(r, key, further) for key in keys}
    if any(published(r) and iterative(row) for row in rows for r, _ in last(row)):
        out['published'] = lambda r: theirs(last(r)[0][0]) if iterative(r) else '–'
    return out, further


def tables(rows):
    """Markdown lines: one table per protocol, the protocol above it; rows without a score stand in the first."""
    out, keys = [], list(dict.fromkeys(protocol(last(row)[0][0]) for row in rows if last(row)))
    for i, key in enumerate(keys):
        part = [row for row in rows if (not i if not last(row) else protocol(last(row)[0][0]) == key)]
        titles, further = columns([row for row in part if last(row)])
        head = phrase([r for row in part for r, _ in last(row)])
        out += [head + ''.join(f'; {key}: {text}' for key, text in further.items()) + '.', '',
                f'| run | {" | ".join(titles)} |', '|---' * (len(titles) + 1) + '|']
        for row in part:
            lacks = f" ({'; '.join(row['lacks'])})" if row['lacks'] else ''
            cells = [str(f(row)) for f in titles.values()] if last(row) else ['–'] * len(titles)
            out.append(f"| {row['name']}{lacks} | {' | '.join(cells)} |")
        several = any(len(last(row)) > 1 for row in part)
        out += ['', ('± is the spread over sets of z' if several else
                     'One training a row: ± is the spread over its sets of z') + ' (of IS over splits, of KID over '
                "subsets), not over trainings; '=' is a difference within the "
                + ('95 % interval over seeds' if several else 'sum of two spreads') + '.', '']
        out += ['Published: FID of the 2015 Inception, 10,000 images (ImageNet: 50,000, few-shot: 5,000) against the '
                'validation split (few-shot: training images), of a checkpoint chosen by its score; grey where ours '
                'differs in what is named.', ''] if 'published' in titles else []
        out += ["c: mean |logit shift| by AdvAug on D over the second half of training; at D's last layer it is the "
                'same for all images (of a class).', ''] if 'c' in titles else []
    if rows and not keys:
        out = ['| run | |', '|---|---|', *(f"| {row['name']} | {'; '.join(row['lacks'])} |" for row in rows), '']
    return out


def dense_runs(family):
    """The plain dense trainings of a family on the images of its first seed, by seed."""
    more = sorted(glob.glob(f'{glob.escape(family)}/dense-seed*'))
    runs = [pick([f'{family}/dense-plain', f'{family}/find/round0']), *map(read, more)]
    return sorted((r for r in runs if r and r['scores']), key=lambda r: r['seed'])


def rival(dense, n):
    """The best of the first n dense runs by the half that chooses, and how many of them there are."""
    return min(dense[:n], key=lambda r: r['scores'][-1]['choose'], default=None), len(dense[:n])


def at_equal_compute(rows, family):
    """Markdown lines: tickets beside the best of as many dense trainings as they have cost."""
    dense, lines = dense_runs(family), []
    for row in rows:
        if (row['start'], row['way']) != ('ticket', 'plain') or not final(row):
            continue
        run, score = final(row)[0]
        if run['seed']:                                        # the dense ones saw other images
            continue
        alike = [r for r in dense if (protocol(r), r['scores'][-1]['step']) == (protocol(run), score['step'])]
        other, n = rival(alike, row['k'] + 1)
        s = other and other['scores'][-1]
        text = f"{s['report']:.1f} ± {s['report_std']:.1f} (seed {other['seed']})" if other else '–'
        its = f"{score['report']:.1f} ± {score['report_std']:.1f}"
        lines.append(f"| {row['name']} | {row['k'] + 1} | {its} | {text} | "
                     f"{n} of {row['k'] + 1} dense trainings there |")
    return lines and ['At equal compute: a ticket of k rounds beside the best of k + 1 dense trainings, chosen on one '
                      'half of the reference; both scores are of the last checkpoint, on the other half.', '',
                      '| ticket | trainings | its score | best dense | |', '|---|---|---|---|---|', *lines, '']


def about_shift(rows):
    """Sentences on what AdvAug at D's last layer amounts to, beside the rows that show it."""
    lines = []
    for row in rows:
        c = shift(row)
        if c is None or not row['way'].endswith('advaug'):
            continue
        beside = [r['name'] + (f" ({'; '.join(r['lacks'])})" if r['lacks'] else '') for r in rows
                  if (r['start'], r['k']) == (row['start'], row['k']) and r['way'].startswith(('advaug-g', 'margin'))]
        lines.append(f"{row['name']}: AdvAug at D's last layer shifts the logits by c = {c:.4f}, like another margin "
                     f"of the loss. Beside it: {', '.join(beside) or 'no row here, see table6 and fig8'}.")
    return ['\n\n'.join(lines), ''] if lines else []


def overlaps(named):
    """{name: ticket} -> names, {G, D: matrix} of the weights that survive in both as a share of those in either."""
    found = {name: m for name, path in named.items() if (m := masks(path))}
    shapes = {name: {(n, key, x.shape) for n in 'GD' for key, x in m[n].items()} for name, m in found.items()}
    found = {name: m for name, m in found.items() if shapes[name] == next(iter(shapes.values()))}
    pairs = lambda n: [[prune.overlap(a[n], b[n]) for b in found.values()] for a in found.values()]
    return list(found), {n: pairs(n) for n in 'GD'}


def tickets(rows):
    """{name: path} of the tickets that an experiment trains, those of the same round together."""
    made = [origin(row['mask'], row['found']) for row in rows]
    paths = {f['out'] + f'/ticket{k}' * (f['method'] == 'imp'): (k, f"{f['out']}/ticket{k}.pt") for f, k in made if f}
    same = re.match('.*[/-]|', os.path.commonprefix([*paths])).group()
    return {path.removeprefix(same): file for path, (_, file) in sorted(paths.items(), key=lambda item: item[1][0])}


def chance(a, b):
    """The overlap that independent masks of these densities have."""
    p, q = 1 - prune.sparsity(a), 1 - prune.sparsity(b)
    return p * q / (p + q - p * q)


def against_imp(rows):
    """Markdown lines: how far other masks overlap with IMP's of the same rounds, and what an early-bird saves."""
    out, said, made = [], [], {f['out']: f for row in rows[:1] for f in row['found'].values() if f['method'] != 'imp'}
    for path, made in made.items():
        k = made['rounds']
        a, b = (masks(f'{folder}/ticket{k}.pt') for folder in (path, f'{os.path.dirname(path)}/find'))
        cells = [both({n: f(a[n], b[n]) for n in 'GD'}) if a and b else '–'
                 for f in (prune.overlap, chance, prune.hamming)]
        lacks = ['missing'] * (not a) + [f'find/ticket{k}.pt missing'] * (not b)
        out.append(f"| {path}{f' ({lacks[0]})' if lacks else ''} | {' | '.join(cells)} |")
        run = read(f'{path}/round0') if made['method'] == 'early-bird' and a else None
        if run and run['log']:
            step, steps = run['log'][-1]['step'], made['steps'] or run['flags']['steps']
            scores = [f"{row['name']}: {mean(row, 'all')}" for row in rows
                      if row['name'] in ('early-plain', f'ticket{k}-plain') and last(row)]
            said += [f'{path} stopped at step {step} of {steps}: its ticket took {step / steps:.2f} trainings, that of '
                     f"iterative pruning {k}; {1 - step / steps / k:.1%} saved. {'; '.join(scores)}.", '']
    return out and ['Masks beside those of iterative pruning after as many rounds, find/ticketK.pt: the weights that '
                    'survive in both as a share of those in either, what independent masks would have, and the share '
                    'of weights in which they differ.', '', '| mask | overlap | by chance | differ |',
                    '|---|---|---|---|', *out, '', *said]


def leaked(rows, path):
    """Markdown lines of leak.json, and its records with their rows' names."""
    found = read_json(path)
    if not isinstance(found, list):
        return [f'No {path}: python leak.py makes it.', ''], []
    names = {os.path.normpath(p): row['name'] for row in rows for p in row['paths']}
    found = [{**r, 'label': names.get(os.path.normpath(r.get('path') or ''), r['label'])} for r in found]
    lines = [f"| {r['label']} | {r['turned']:.1%} | {r['mirrored']:.1%} | {r['n']} |" for r in found]
    return [f'Samples that a classifier calls turned or mirrored ({path}); the first rows are its false alarms and its '
            'hits.', '', '| images | turned | mirrored | of |', '|---|---|---|---|', *lines, ''], found


def trained(script, words):
    """How many trainings a command is."""
    rounds = int(value(words, '--rounds', 5))
    return trainings(value(words, '--method', 'imp'), rounds) if script == 'find_ticket' else 1


def hours(timed, commands):
    """One line per name: trainings, and hours of one process at the speed of the timed run of that model and data.

    commands: lines 'STAGE NAME SCRIPT FLAGS'; of equal ones the first counts. AdvAug on G repeats two thirds of a G
    step, which takes as long as two D steps."""
    cost, seen = collections.defaultdict(lambda: [0, 0.]), set()
    for command in commands:
        name, script, *rest = command.split()[command.split()[0].isdigit():]
        if (script, *rest) in seen:
            continue
        seen.add((script, *rest))
        model = rest[0] if script == 'find_ticket' else script.removeprefix('train_')
        path = f"{timed}/{model}-{value(rest, '--data')}"
        flags, log = read_json(f'{path}/args.json'), records(f'{path}/log.jsonl')
        cost[name][0] += trained(script, rest)
        if not flags or not log:                               # the timed run failed
            cost[name][1] = math.nan
            continue
        flags = flags['args']
        preset = importlib.import_module(f'train_{model}').PRESETS[flags['preset']]
        seconds = preset.get('batch', 64) * flags['d_steps'] / log[-1]['images_per_s']
        factor = 1 + 1.34 / (flags['d_steps'] + 2) if value(rest, '--advaug', 'none') in ('g', 'gd') else 1.
        cost[name][1] += trained(script, rest) * int(value(rest, '--steps')) * seconds * factor / 3600
    words = lambda h: 'no estimate' if math.isnan(h) else f'about {h:,.1f} hours of one process'
    return [f'{name}: {n} trainings, {words(h)}' for name, (n, h) in cost.items()]


# ---- pages

def picture(page, out, name, image, caption):
    """Save a figure or an image and add it to the page."""
    def save(tmp):
        if isinstance(image, Image.Image):
            image.save(tmp, 'PNG')
        else:
            image.savefig(tmp, dpi=120, format='png', bbox_inches='tight')
    if hasattr(image, 'tight_layout'):
        image.tight_layout()
    loop.write(f'{out}/{name}', save)
    page += [f'![{name}]({name})', '', caption, '']


def plots():
    """The module of figures, None without matplotlib."""
    with contextlib.suppress(ImportError):
        import figures
        return figures


def folder(args):
    """The page of everything below a folder: its lines, and those of its tables."""
    runs = collect(args.runs)
    if not runs:
        loop.refuse(f'{args.runs}: no run with a log line below it; train something first, or name another folder')
    os.makedirs(args.out, exist_ok=True)
    lines = tables(single([r for r in runs if r['scores']], findings(args.runs)))
    missing = [r['path'] for r in runs if not r['scores']]
    lines += [f"No scores yet: {', '.join(missing)}.", ''] if missing else []
    page, kinds, figures = ['# Runs', '', *lines], collections.defaultdict(list), plots()
    for r in runs:
        f = r['flags']
        kinds[r['model'], os.path.basename(f['data'].rstrip('/')), f['frac'], f['res']].append(r)
    page += [] if figures else ['No figures: matplotlib is not installed.', '']
    for kind, group in kinds.items() if figures else ():
        tag = '' if len(kinds) == 1 else '-{}-{}-{}-{}'.format(*kind)
        page += ['## {} on {}, share {}, {} px'.format(*kind), ''] if tag else []
        image, caption = figures.grids(group)
        for name, image, caption in [('grids.png', image, caption)] * bool(image) + figures.curves(group):
            picture(page, args.out, name.replace('.png', f'{tag}.png'), image, caption)
        figures.plt.close('all')
    page += ['| run | directory |', '|---|---|', *(f"| {r['label']} | {r['path']} |" for r in runs)]
    return page, lines


def prepare(rows):
    """Give every row what figures need; returns the runs in them, the name of their score, and notes on what they
    leave out."""
    kind = lambda r: json.dumps({k: r['scores'][-1]['protocol'].get(k) for k in ('features', 'resize', 'n_gen')}
                                | {'score': r['scores'][-1]['score']}, sort_keys=True)
    kinds = collections.Counter(kind(r) for row in rows for r, _ in last(row)).most_common()
    drawn, notes = [], []
    for row in rows:
        pairs = final(row)
        if pairs and kind(pairs[0][0]) != kinds[0][0]:
            notes.append(f"not in the figures, scored by another protocol: {row['family']}/{row['name']}")
            pairs = []
        values, half = [s['all'] for _, s in pairs], interval([s['all'] for _, s in pairs])
        half = np.mean([s['all_std'] for _, s in pairs]) if pairs and half is None else half
        paper = [(float(line['fid']), bool(unlike(r, line))) for r, s in pairs[:1] if s['score'] == 'FID'
                 for line in published(r) if iterative(row)]
        first = row['runs'][0] if row['runs'] else None
        subset = first and read_json(f"{first['path']}/subset.json")
        row |= {'point': (float(np.mean(values)), float(half)) if pairs else None, 'paper': paper,
                'pruned': max(first['sparsity'].values()) if first else 0.,
                'n': len(subset['index']) if subset else None}
        drawn += [r for r, _ in pairs]
    return drawn, drawn[0]['scores'][-1]['score'] if drawn else 'score', notes


def experiment(args):
    """The page of one experiment: its lines, and those of its tables."""
    with open(args.rows) as f:
        rows = expected(args.runs, f)
    os.makedirs(args.out, exist_ok=True)
    runs, score, notes = prepare(rows)
    whole = sum(not row['lacks'] for row in rows)
    text = f'{whole} of {len(rows)} rows are whole' + (', the others are named below.' if whole < len(rows) else '.')
    lines = [f"# {args.runs}", '', experiments.EXPERIMENTS[args.runs].__doc__ or '', '', text, '']
    for family in dict.fromkeys(row['family'] for row in rows):
        part = [row for row in rows if row['family'] == family]
        lines += [f'## {family}', '', *tables(part), *at_equal_compute(part, family), *about_shift(part)]
    lines += against_imp(rows) if args.runs == 'controls' else []
    extra = {}
    if args.runs == 'mask-quality':
        named = tickets(rows)
        extra['overlaps'] = names, _ = overlaps(named)
        notes += [f'no mask of {name} to compare: {path}' for name, path in named.items() if name not in names]
    if args.runs == 'leak':
        told, extra['leak'] = leaked(rows, f'{args.out}/leak.json')
        lines += told
    page, figures = list(lines), plots()
    if figures:
        protocol = f' {phrase(runs)}. Error bars: the spread over sets of z of one training, or of several seeds ' \
                   "Student's 95 % interval over trainings." if runs else ''
        protocol += ' Diamonds: published, grey where something differs.' * any(row['paper'] for row in rows)
        for name, figure, caption in figures.FIGURES.get(args.runs, figures.table)(rows, score, extra):
            picture(page, args.out, f'{args.runs}{name}.png', figure, caption.removesuffix('.') + '.' + protocol)
        for family in dict.fromkeys(row['family'] for row in rows) if args.runs in GRIDS else ():
            image, caption = figures.grids([r for row in rows if row['family'] == family for r in row['runs']])
            if image:
                picture(page, args.out, f'{args.runs}-grids-{os.path.basename(family)}.png', image, caption)
        figures.plt.close('all')
    else:
        notes.append('no figures: matplotlib is not installed')
    lacks = collections.defaultdict(list)
    for row in rows:
        for why in row['lacks']:
            lacks[row['family'], why].append(row['name'])
    notes += [f"{why}, in {family}: {', '.join(names)}" for (family, why), names in lacks.items()]
    page += ['Notes:', '', *(f'- {note}' for note in notes), ''] if notes else []
    return page, lines


def main(args):
    """Write report.md and its figures; returns the path of the page."""
    if args.hours:
        return print('\n'.join(hours(args.runs, sys.stdin)))
    page, lines = experiment(args) if args.rows else folder(args)

    def save(tmp):
        with open(tmp, 'w') as f:
            f.write('\n'.join(page) + '\n')
    loop.write(f'{args.out}/report.md', save)
    print('\n'.join(lines))
    print(f'{args.out}/report.md')
    return f'{args.out}/report.md'


if __name__ == '__main__':
    main(get_args())
