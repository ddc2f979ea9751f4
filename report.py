"""runs/ -> report.md: one table of all runs by their protocol, curves, and the sample grids side by side.

Use:
    python report.py runs                              # writes runs/report/report.md and its PNGs
    python report.py runs/demo --out page
Reads args.json, log.jsonl, metrics.jsonl and samples/ of every run below the folder, nothing else.

Scores are the mean over sets of z of one checkpoint, +- their standard deviation; a difference from the dense row has
the sum of the two spreads, and `=` if it lies within it.  `best` was chosen on one half of the reference and is
reported on the other.  A published number stands beside ours only where data, features, samples, reference and schedule
match; else it is grey, with what differs.
"""
import argparse
import collections
import csv
import glob
import importlib
import json
import os
import sys

import numpy as np
from PIL import Image, ImageDraw

import loop

COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7',         # Okabe and Ito, for all eyes
           '#E69F00', '#56B4E9', '#000000', '#999999']
SMOOTH = 9                                                     # log lines in the running mean of D's accuracies
STYLES = ['-', '--', ':', '-.']
FURTHER = 'is', 'kid', 'prdc', 'copy'                           # each with its own entry in the protocol
EXTRA = {'is': ('IS', 'is', 1, 2), 'kid': ('KID x 1000', 'kid', 1000, 2),             # name, entry, scale, digits
         **{word: (word, 'prdc', 1, 3) for word in ('precision', 'recall', 'density', 'coverage')},
         'copy': ('copies', 'copy', 1, 3), 'copy_train': ('copies of training images', 'copy', 1, 3)}
PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'docs', 'paper.csv')          # published numbers
USUAL = dict(steps=50000, batch=64, d_steps=5, g_batch=64, lr_g=2e-4, lr_d=2e-4, betas=[0., .9], adam_eps=1e-8,
             ema=.999, ema_start=0, mirror=False, res=32, loss='hinge', subset='random', adv_step=.01, adv_pgd=1,
             adv_eps=None, adv_lambda_g=1., adv_lambda_d=1., adv_cut_g=1, adv_cut_d=-1, adv_sign='adversary',
             narrow=False, aug_on='both', lecam=None)    # of a published run, but for its preset
WIDTHS = {'sngan': (256, 128), 32: (96, 96), 64: (80, 80), 128: (96, 96)}


def get_args(argv=None):
    """The flags; exits 2 when there is nothing to report."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', nargs='?', default='runs', help='folder below which the runs lie')
    p.add_argument('--out', help='folder of the report (default: RUNS/report)')
    p.add_argument('--hours', action='store_true',
                   help='RUNS holds timed runs MODEL-DATA: read "NAME SCRIPT FLAGS" lines, print hours by NAME')
    args = p.parse_args(argv)
    args.out = args.out or os.path.join(args.runs, 'report')
    return args


def collect(folder):
    """Every run below a folder: {path, flags, log, scores, label, sparsity}, dense ones first."""
    runs = []
    for path in sorted(glob.glob(f'{glob.escape(folder)}/**/args.json', recursive=True)):
        directory = os.path.dirname(path)
        log, scores = loop.lines(f'{directory}/log.jsonl'), loop.lines(f'{directory}/metrics.jsonl')
        if not log:
            continue
        scores = [s for s in scores if 'all' in s and s['score'] == scores[-1]['score']]
        with open(path) as f:
            saved = json.load(f)
        flags = saved['args']
        sparsity = {n: round(log[-1].get(f'sparsity_{n}', 0.), 4) for n in 'GD'}
        runs.append({'path': directory, 'flags': flags, 'log': log, 'scores': scores, 'sparsity': sparsity,
                     'model': saved['identity']['model'], 'label': label(flags, sparsity),
                     'finished': log[-1]['step'] >= flags['steps']})
    def row(r):                                                # dense first, then by sparsity, plain before augmented
        f, pruned = r['flags'], max(r['sparsity'].values())
        return f['data'], pruned, f['aug'] != 'none', f['advaug'] != 'none', f['seed'], f['steps']
    return sorted(runs, key=row)


def label(flags, sparsity):
    """What a run trained: 'ticket 36.00 % + DiffAug + AdvAug'."""
    pruned = max(sparsity.values())
    words = [f'ticket {pruned:.2%}' if pruned else 'dense']
    if flags['aug'] != 'none':
        fixed = f" p {flags['ada_p']:g}" if flags.get('ada_p') is not None else ''
        on = {'real': ' on reals only', 'd': " in D's updates only"}.get(flags.get('aug_on'), '')
        words.append({'diffaug': 'DiffAug', 'ada': 'ADA'}[flags['aug']] + fixed + on)
    words += ['R_LC'] if flags.get('lecam') else []
    if flags['advaug'] != 'none':
        kind = 'noise' if flags['adv_noise'] else 'AdvAug'
        words.append(kind if flags['advaug'] == 'gd' else f"{kind} {flags['advaug'].upper()}")
    return ' + '.join(words) + (f", seed {flags['seed']}" if flags['seed'] else '')


def protocol(run):
    """What must be equal for two scores to be compared: model, size and the recorded protocol without the sparsity."""
    if not run['scores']:
        return None
    p = {k: v for k, v in run['scores'][-1]['protocol'].items() if k not in ('sparsity', 'seed', *FURTHER)}
    n_ref = {k: v for k, v in p['n_ref'].items() if k != 'train'}   # where copies are sought
    return json.dumps({**p, 'n_ref': n_ref, 'model': run['model'], 'res': run['flags']['res']}, sort_keys=True)


def change(run, dense):
    """'-12.3 ± 1.5' against the dense row that is as long, '= +0.3 ± 1.5' within that sum of the spreads."""
    new = run['scores'][-1]
    old = next((d['scores'][-1] for d in dense if d is not run and d['scores'][-1]['step'] == new['step']), None)
    if old is None or any(d is run for d in dense):
        return ''
    difference, spread = new['all'] - old['all'], new['all_std'] + old['all_std']
    return '= ' * (abs(difference) <= spread) + f'{difference:+.1f} ± {spread:.1f}'


def published(run):
    """The line of docs/paper.csv that a run repeats, or None."""
    f = run['flags']
    adv = {None: f['advaug'], .01: 'noise'}.get(f['adv_noise']) if f['advaug'] in ('none', 'gd') else None
    pruned = 100 * max(run['sparsity'].values())
    if not os.path.exists(PAPER):                              # report.py was copied without it
        return None
    with open(PAPER) as file:
        for line in csv.DictReader(file):
            same = (run['model'], f['data'], f['aug'], adv) == (*map(line.get, ('model', 'data', 'aug', 'advaug')),)
            near = any(abs(pruned - float(s)) < .1 for s in line['sparsity'].split('|'))
            if same and near and f['frac'] == float(line['frac']):
                return line


def unlike(run, line):
    """What keeps a published number from standing beside that of a run: words, none if all is the same."""
    f, score = run['flags'], run['scores'][-1]
    p, data = score['protocol'], f['data']
    presets = importlib.import_module(f"train_{run['model']}").PRESETS
    usual = {**USUAL, **presets.get(data, {})}
    usual['steps'] *= 2 if f['aug'] == 'diffaug' and run['model'] == 'biggan' else 1
    usual['ch_g'], usual['ch_d'] = WIDTHS.get(run['model']) or WIDTHS[usual['res']]
    same = {'features': score['score'] == 'FID' and p['resize'] == 'half-pixel bilinear 299',
            'samples': p['n_gen'] == (50000 if data == 'imagenet' else 10000), 'reference': p['ref'] == f'{data}-test',
            'schedule': score['step'] == usual['steps'] and 'DiffAugment' not in line['table'],      # TPUs, batch 2,048
            'settings': all(f[k] == v for k, v in usual.items() if k in f and k != 'steps')}
    return [word for word, equal in same.items() if not equal]


def theirs(run):
    """The published score of a run as a cell: '22.37 ± 0.1 (Table 3)', or in grey with what differs."""
    line = published(run)
    if not line:
        return '–'
    words, spread = unlike(run, line), f" ± {line['fid_std']}" if line['fid_std'] else ''
    text = f"FID {line['fid']}{spread}" + (f", IS {line['is']}" if line['is'] else '') + f" ({line['table']})"
    return f'<span style="color:gray">{text}; other {", ".join(words)}</span>' if words else text


def cell(score, key, further):
    """One further score, scaled as papers print it; '–' without one of the protocol above the table."""
    metric, scale, digits = EXTRA[key][1:]
    if key not in score or score['protocol'].get(metric) != further[metric]:
        return '–'
    return f"{score[key] * scale:.{digits}f} ± {score[f'{key}_std'] * scale:.{digits}f}"


def table(runs):
    """Markdown lines: one table per protocol, the protocol above it, unfinished runs named."""
    out = []
    for key in dict.fromkeys(protocol(r) for r in runs if r['scores']):
        rows = [r for r in runs if protocol(r) == key]
        dense = [r for r in rows if r['label'] == 'dense']
        paper = any(published(r) for r in rows)
        name, p = rows[0]['scores'][-1]['score'], json.loads(key)
        n = p['n_ref']
        extra = [key for key in EXTRA if any(key in r['scores'][-1] for r in rows)]
        last = [r['scores'][-1]['protocol'] for r in rows]
        further = {key: next(q[key] for q in last if key in q) for key in FURTHER if any(key in q for q in last)}
        out += [f"**{name}** of {p['model']} at {p['res']} px, lower is better: "
                f"{p['n_gen']} generated images, {p['repeats']} sets of z, "
                f"against {p['ref']} (last: all {n['all']}, best: chosen on {n['choose']}, "
                f"reported on the other {n['report']}); {p['features']}, resize {p['resize']}, "
                f"weights {p['weights'][:8]}; {p['quantise']}; {p['generator']}; share of data {p['frac']}"
                + (f"; classes {p['classes']}" if 'classes' in p else '')
                + ''.join(f'; {key}: {text}' for key, text in further.items()) + '.', '',
                f'| run | steps | last {name} | to dense | last on the reported half | best on that half (step) |'
                + ''.join(f' {EXTRA[key][0]} |' for key in extra) + ' published |' * paper,
                '|---|---|---|---|---|---|' + '---|' * (len(extra) + paper)]
        for r in rows:
            last, best = r['scores'][-1], min(r['scores'], key=lambda s: s['choose'])
            unfinished = '' if r['finished'] else ' (unfinished)'
            out.append(f"| {r['label']}{unfinished} | {last['step']} | {last['all']:.1f} ± {last['all_std']:.1f} "
                       f"| {change(r, dense)} | {last['report']:.1f} ± {last['report_std']:.1f} "
                       f"| {best['report']:.1f} ± {best['report_std']:.1f} ({best['step']}) |"
                       + ''.join(f' {cell(last, key, further)} |' for key in extra)
                       + f' {theirs(r)} |' * paper)
        out += ['', "One training a row: ± is the spread over its sets of z (of IS over splits, of KID over subsets), "
                "not over trainings; '=' is a difference within the sum of two spreads.", '']
        out += ['Published: FID of the 2015 Inception, 10,000 images (ImageNet: 50,000) against the validation split, '
                'of a checkpoint chosen by its score; grey where ours differs in what is named.', ''] if paper else []
    missing = [r['path'] for r in runs if not r['scores']]
    return out + ([f"No scores yet: {', '.join(missing)}.", ''] if missing else [])


def curves(runs, out, tag):
    """scoreTAG.png, accuracyTAG.png: the score, D's accuracy on training, held-out and generated images over steps."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    def style(i):
        return dict(color=COLOURS[i % len(COLOURS)], linestyle=STYLES[i % len(STYLES)])
    figures = []
    scored = [r for r in runs if len(r['scores']) > 1]
    if scored:
        fig, ax = plt.subplots(figsize=(7, 4))
        for i, r in enumerate(scored):
            steps, values, spread = ([s[key] for s in r['scores']] for key in ('step', 'all', 'all_std'))
            ax.errorbar(steps, values, spread, label=r['label'], marker='o', capsize=3, **style(i))
        score = scored[0]['scores'][0]['score']
        ax.set(xlabel='G updates', ylabel=score, yscale='log')
        ax.legend(fontsize=8)
        figures.append((f'score{tag}.png', fig, f'{score} over training; protocol as in the table.'))
    columns = [('acc_train', 'training images'), ('acc_held', 'held-out images'), ('acc_gen', 'generated images')]
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for ax, (key, title) in zip(axes, columns):
        for i, r in enumerate(runs):
            at = np.array([(line['step'], line[key]) for line in r['log'] if key in line])
            if len(at):                                        # a hinge D moves up and down as a whole: average it out
                window = np.full(min(SMOOTH, len(at)), 1 / min(SMOOTH, len(at)))
                steps, values = (np.convolve(column, window, 'valid') for column in at.T)
                ax.plot(steps, values, label=r['label'], linewidth=1.2, **style(i))
        ax.set(title=title, xlabel='G updates', ylim=(-.03, 1.03))
    axes[0].set_ylabel("D's accuracy")
    axes[0].legend(fontsize=7)
    figures.append((f'accuracy{tag}.png', fig,
                    "D's accuracy on up to 128 images each, in eval mode, not augmented (the paper's Figure 2); "
                    f'running mean over {SMOOTH} log lines.'))
    adaptive = [r for r in runs if any('ada_p' in line for line in r['log'])]
    if adaptive:
        fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
        for i, r in enumerate(adaptive):
            for ax, key in zip(axes, ('ada_p', 'ada_r')):
                ax.plot(*zip(*((line['step'], line[key]) for line in r['log'])), label=r['label'], **style(i))
        axes[0].set(title="ADA's p", xlabel='G updates', ylim=(-.02, 1.02))
        axes[1].set(title='r, which p follows', xlabel='G updates')
        axes[0].legend(fontsize=7)
        figures.append((f'ada{tag}.png', fig, "ADA's p over training, and D's overfitting r that it follows."))
    for name, fig, _ in figures:
        fig.tight_layout()
        loop.write(f'{out}/{name}', lambda tmp, fig=fig: fig.savefig(tmp, dpi=120, format='png'))
        plt.close(fig)
    return [(name, caption) for name, _, caption in figures]


def grids(runs, out, tag):
    """gridsTAG.png: reals and the last samples of every run, uncurated: seeds 0-31, or 0-7 of each class shown."""
    panels = [('training images', f"{runs[0]['path']}/reals.png")]
    panels += [(r['label'], g[-1]) for r in runs if (g := sorted(glob.glob(f"{glob.escape(r['path'])}/samples/*.png")))]
    sheets, classes = [], runs[0]['flags'].get('classes')
    for text, path in panels:
        with Image.open(path) as im:
            im = im.convert('RGB')
        im = im if classes else im.crop((0, 0, im.width, min(im.height, im.width // 2)))          # 4 of 8 rows
        sheet = Image.new('RGB', (im.width, im.height + 14), 'white')
        ImageDraw.Draw(sheet).text((2, 1), text, fill='black')
        sheet.paste(im, (0, 14))
        sheets.append(np.asarray(sheet))
    columns = 3
    h, w = max(s.shape[0] for s in sheets), max(s.shape[1] for s in sheets)
    page = np.full((-(-len(sheets) // columns) * (h + 6), columns * (w + 6), 3), 255, np.uint8)
    for i, s in enumerate(sheets):
        y, x = i // columns * (h + 6), i % columns * (w + 6)
        page[y:y + s.shape[0], x:x + s.shape[1]] = s
    loop.write(f'{out}/grids{tag}.png', lambda tmp: Image.fromarray(page).save(tmp, 'PNG'))
    what = 'seeds 0-7 (columns) of its classes (rows)' if classes else 'seeds 0-31'
    return [(f'grids{tag}.png', f'Training images, and {what} of every run at its last grid, uncurated.')]


def hours(timed, commands):
    """One line per name: trainings, and hours of its commands at the speed of the timed run of that model and data.

    AdvAug on G repeats two thirds of a G step, which takes as long as two D steps."""
    cost = collections.defaultdict(lambda: [0, 0.])
    for command in commands:
        name, script, *rest = command.split()
        model = rest[0] if script == 'find_ticket' else script.removeprefix('train_')

        def value(flag, default, rest=rest):
            return rest[rest.index(flag) + 1] if flag in rest else default
        path = f"{timed}/{model}-{value('--data', None)}"
        with open(f'{path}/args.json') as f:
            flags = json.load(f)['args']
        preset = importlib.import_module(f'train_{model}').PRESETS[flags['preset']]
        seconds = preset.get('batch', 64) * flags['d_steps'] / loop.lines(f'{path}/log.jsonl')[-1]['images_per_s']
        rounds = int(value('--rounds', 1))
        factor = 1 + 1.34 / (flags['d_steps'] + 2) if value('--advaug', 'none') in ('g', 'gd') else 1.
        cost[name][0] += rounds
        cost[name][1] += rounds * int(value('--steps', None)) * seconds * factor / 3600
    return [f'{name}: {n} trainings, about {h:,.1f} hours' for name, (n, h) in cost.items()]


def main(args):
    """Write report.md and its figures; returns the path of the page."""
    if args.hours:
        return print('\n'.join(hours(args.runs, sys.stdin)))
    runs = collect(args.runs)
    if not runs:
        loop.refuse(f'{args.runs}: no run with a log line below it; train something first, or name another folder')
    os.makedirs(args.out, exist_ok=True)
    page = ['# Runs', '', *table(runs)]
    kinds = collections.defaultdict(list)
    for r in runs:
        f = r['flags']
        kinds[r['model'], os.path.basename(f['data'].rstrip('/')), f['frac'], f['res']].append(r)
    for kind, group in kinds.items():
        tag = '' if len(kinds) == 1 else '-{}-{}-{}-{}'.format(*kind)
        page += ['## {} on {}, share {}, {} px'.format(*kind), ''] if tag else []
        try:
            figures = curves(group, args.out, tag)
        except ImportError:
            figures, page = [], [*page, 'No curves: matplotlib is not installed.', '']
        for name, caption in [*grids(group, args.out, tag), *figures]:
            page += [f'![{caption}]({name})', '', caption, '']
    page += ['| run | directory |', '|---|---|', *(f"| {r['label']} | {r['path']} |" for r in runs)]

    def save(tmp):
        with open(tmp, 'w') as f:
            f.write('\n'.join(page) + '\n')
    loop.write(f'{args.out}/report.md', save)
    print('\n'.join(table(runs)))
    print(f'{args.out}/report.md')
    return f'{args.out}/report.md'


if __name__ == '__main__':
    main(get_args())
