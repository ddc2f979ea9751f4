"""The figures of report.py, from rows of scores: the paper's Figures 1, 2, 4, 7, 8, and those of tables and controls.

Use:
    import figures
    figures.FIGURES['fig7'](rows, 'FID', {})           # [(name, figure, caption), ...]
    figures.curves(runs)                               # scores, D's accuracies and ADA's p over training

A row is {family, name, start: dense, ticket or another mask, k: its round, way: how it is trained, mask: of its own
command, lacks, pruned: share of pruned weights, n: training images, point: (mean, half of its interval) or None, paper:
[(FID, grey)], runs}.  What has no point is not drawn.
"""
import glob
import math
import os

import matplotlib
matplotlib.use('Agg')

import numpy as np                                             # noqa: E402
from matplotlib import pyplot as plt                           # noqa: E402
from PIL import Image, ImageDraw                               # noqa: E402

COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7',         # Okabe and Ito, for all eyes
           '#E69F00', '#56B4E9', '#000000', '#999999']
STYLES = ['-', '--', ':', '-.']
MARKERS = 'osD^vXP'
HATCHES = ['', '//', '..', 'xx', '\\\\', '++']
SMOOTH = 9                                                     # log lines in the running mean of D's accuracies
WORDS = {'advaug': '+ AdvAug', 'diffaug': '+ DiffAug', 'ada': '+ ADA', 'diffaug-advaug': '+ DiffAug + AdvAug',
         'real': '+ DiffAug on reals only', 'd': "+ DiffAug in D's updates only", 'noise': '+ noise'}
plt.rcParams.update({'font.size': 9, 'axes.titlesize': 9, 'axes.spines.top': False, 'axes.spines.right': False,
                     'axes.axisbelow': True, 'hatch.linewidth': .6, 'figure.max_open_warning': 0})


def style(i):
    return dict(color=COLOURS[i % len(COLOURS)], linestyle=STYLES[(i + i // len(COLOURS)) % len(STYLES)])


def of(rows, start=None, way=None):
    """The rows of these starts (a word or several) and way."""
    starts = (start,) if isinstance(start, str) else start
    return [r for r in rows if (start is None or r['start'] in starts) and way in (None, r['way'])]


def one(rows, *ways):
    """The first row of these ways that has a score, else None."""
    return next((r for way in ways for r in rows if r['way'] == way and r['point']), None)


def asked(rows):
    """The last round whose ticket an experiment trains, beside what its finding has scored."""
    return max((r['k'] for r in of(rows, 'ticket') if r['mask']), default=0)


def families(rows):
    """{directory: its rows}."""
    return {f: [r for r in rows if r['family'] == f] for f in dict.fromkeys(r['family'] for r in rows)}


def share(family):
    """'10 %' or '500 images', from the name of a directory MODEL-DATA-SHARE."""
    try:
        frac = float(family.rsplit('-', 1)[-1])
    except ValueError:
        return family
    return f'{frac:.0%}'.replace('%', ' %') if frac <= 1 else f'{frac:.0f} images'


def percent(row):
    return f"{100 * row['pruned']:.4g} %"


# ---- kinds of figures

def lines(ax, groups):
    """Scores with their intervals over x: groups {label: [(x, row)]}; returns whether there was anything to draw."""
    drawn = False
    for i, (label, pairs) in enumerate(groups.items()):
        points = sorted((x, *r['point']) for x, r in pairs if r and r['point'])
        if points:
            x, y, half = zip(*points)
            ax.errorbar(x, y, half, label=label, marker=MARKERS[i % 7], markersize=5, capsize=3, **style(i))
            drawn = True
    ax.grid(alpha=.25)
    return drawn


def level(ax, row, label, i):
    """A horizontal line at a row's score."""
    if row:
        ax.axhline(row['point'][0], label=label, linewidth=1.1, zorder=3, **style(i))


def bars(ax, ticks, groups, boxed=True):
    """Grouped bars: groups {label: [row or None per tick]}; the best of a tick in a black box where boxed."""
    width, drawn = .8 / len(groups), False
    for j in range(len(ticks)):
        there = [(rows[j]['point'][0], i) for i, rows in enumerate(groups.values()) if rows[j] and rows[j]['point']]
        for i, (label, rows) in enumerate(groups.items()):
            x, r = j + (i - (len(groups) - 1) / 2) * width, rows[j]
            if r and r['point']:
                best = boxed and len(there) > 1 and min(there)[1] == i
                ax.bar(x, r['point'][0], .92 * width, yerr=r['point'][1], capsize=2, color=COLOURS[i % 8], zorder=2,
                       hatch=HATCHES[i % 6], edgecolor='black' if best else 'white', linewidth=1.8 if best else 0)
                theirs(ax, [x] * len(r['paper']), [fid for fid, _ in r['paper']], r['paper'])
                drawn = True
            lacking(ax, x, r)
    for i, label in enumerate(groups):
        ax.bar(0, 0, color=COLOURS[i % 8], hatch=HATCHES[i % 6], edgecolor='white', label=label)
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(xlim=(-.5, len(ticks) - .5), ylim=(0, None))
    ax.grid(axis='y', alpha=.25)
    return drawn


def theirs(ax, x, y, paper):
    """Published scores as hollow diamonds: black where all is the same, else grey."""
    for x, y, (_, grey) in zip(x, y, paper):
        colour = '#999999' if grey else 'black'
        ax.plot(x, y, 'd', markersize=7, fillstyle='none', color=colour, zorder=5, clip_on=False)


def lacking(ax, at, row, vertical=True):
    """The word 'missing' or 'unfinished' where a row has no score."""
    if row and not row['point']:
        word = ' missing' if 'missing' in ''.join(row['lacks']) else ' unfinished'
        kind = dict(fontsize=7, color='dimgrey')
        if vertical:
            ax.text(at, 0, word, rotation=90, ha='center', va='bottom', transform=ax.get_xaxis_transform(), **kind)
        else:
            ax.text(0, at, word, va='center', transform=ax.get_yaxis_transform(), **kind)


def dots(ax, names, rows):
    """Scores with their intervals, a line a name: rows {name: row}."""
    for i, name in enumerate(names):
        r = rows.get(name)
        if r and r['point']:
            sparse = r['pruned'] > 0
            ax.errorbar(r['point'][0], i, xerr=r['point'][1], marker='os'[sparse], capsize=3, markersize=5,
                        color=COLOURS[sparse])
            theirs(ax, [fid for fid, _ in r['paper']], [i] * len(r['paper']), r['paper'])
        lacking(ax, i, r, vertical=False)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - .5, -.5)
    ax.grid(alpha=.25)


def radar(ax, spokes, groups):
    """Scores as distances from the origin: groups {label: {spoke: row}}, published ones as hollow diamonds."""
    angles = [2 * math.pi * i / len(spokes) for i in range(len(spokes))]
    for i, (label, rows) in enumerate(groups.items()):
        there = [rows[s]['point'] if rows.get(s) and rows[s]['point'] else (np.nan, np.nan) for s in spokes]
        r, half = np.array([*there, there[0]]).T               # nan: the line has a gap
        if np.isfinite(r).any():
            ax.errorbar([*angles, angles[0]], r, half, label=label, marker=MARKERS[i], markersize=5, capsize=3,
                        **style(i))
        for angle, paper in zip(angles, (rows[s]['paper'] if rows.get(s) else [] for s in spokes)):
            theirs(ax, [angle] * len(paper), [fid for fid, _ in paper], paper)
    ax.set_theta_offset(math.pi / 2)
    ax.set_theta_direction(-1)
    ax.set_xticks(angles, spokes)
    ax.set_rlim(0)
    ax.set_rlabel_position(180 / len(spokes))
    ax.tick_params(axis='x', pad=8)
    ax.grid(alpha=.4)


def heat(ax, matrix, rows, columns, form, scale=None):
    """A matrix with its numbers; colours by column where scale is 'column'."""
    matrix = np.array(matrix, float)
    shade = matrix.copy()
    if scale == 'column':
        low, high = np.nanmin(shade, 0, keepdims=True), np.nanmax(shade, 0, keepdims=True)
        shade = (shade - low) / np.where(high > low, high - low, 1)
    ax.imshow(shade, cmap='cividis', aspect='auto', vmin=0, vmax=1)
    for i, j in np.ndindex(*matrix.shape):
        there = np.isfinite(matrix[i, j])
        ax.text(j, i, form.format(matrix[i, j]) if there else 'missing', ha='center', va='center', fontsize=9,
                color='white' if there and shade[i, j] < .55 else 'black')
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


# ---- one function per figure: f(rows, name of the score, extra) -> [(name, figure, caption)]

def empty(fig):
    plt.close(fig)
    return []


def fig1(rows, score, extra):
    out = []
    for family, part in families(rows).items():
        part = of(part, ('dense', 'ticket'))
        ks = sorted({r['k'] for r in part if r['way'] != 'plain'})
        spokes = {k: next((percent(r) for r in part if r['k'] == k and r['runs']), f'round {k}') for k in ks}
        groups = {label: {spokes[r['k']]: r for r in part if r['way'] == way and r['k'] in spokes}
                  for way, label in {'plain': 'tickets (0 %: dense)', **WORDS}.items() if of(part, way=way)}
        if len(spokes) < 3 or not any(r['point'] for r in part):
            continue
        fig, ax = plt.subplots(figsize=(5.6, 5.6), subplot_kw={'projection': 'polar'})
        radar(ax, [*spokes.values()], groups)
        ax.legend(loc='upper center', bbox_to_anchor=(.5, -.06), ncols=3, frameon=False)
        out.append((tag(family, rows), fig, f'{score} as the distance from the origin (smaller is better) over the '
                    'share of pruned weights'))
    return out


def tag(family, rows):
    """'' or the name of the family, where there are several."""
    return '' if len(families(rows)) == 1 else '-' + os.path.basename(family)


def fig4(rows, score, extra):
    parts = families(rows)
    ticks, groups = [], {}
    ways = list(dict.fromkeys((r['start'], r['way']) for r in of(rows, ('dense', 'ticket'))))
    for family, part in parts.items():
        top = asked(part)
        pruned = next((f'\nticket: {percent(r)}' for r in of(part, 'ticket') if r['k'] == top and r['runs']), '')
        ticks.append(share(family) + pruned)
        for start, way in ways:
            row = next((r for r in of(part, start, way) if r['k'] in (0, top)), None)
            groups.setdefault(f"{start} {WORDS.get(way, '' if way == 'plain' else way)}", []).append(row)
    fig, ax = plt.subplots(figsize=(max(4.5, 1.5 + .5 * len(ways) * len(parts)), 3.8))
    if not groups or not bars(ax, ticks, groups):
        return empty(fig)
    ax.set(xlabel='share of the training images', ylabel=score)
    ax.legend(fontsize=8, loc='upper center', bbox_to_anchor=(.5, 1.17 + .09 * ((len(ways) - 1) // 4)),
              ncols=min(4, len(ways)), frameon=False)
    return [('', fig, f'{score} of dense networks and tickets by share of the data; the best of each in a black box')]


def fig7(rows, score, extra):
    fig, axes = plt.subplots(1, 3, figsize=(13, 4))
    x = lambda rows: [(100 * (1 - r['pruned']), r) for r in rows]
    plain, rest = of(rows, ('dense', 'ticket'), 'plain'), of(rows, 'dense', 'plain')
    drawn = lines(axes[0], {'rho 10 %': x(of(rows, 'rho0.1')), 'rho 20 %': x(plain), 'rho 40 %': x(of(rows, 'rho0.4'))})
    drawn |= lines(axes[1], {label: x(of(rows, ('dense', 'ticket'), way)) for label, way in (
        ('no AdvAug', 'plain'), ('AdvAug on G', 'advaug-g'), ('on D', 'advaug-d'), ('on G and D', 'advaug'))})
    drawn |= lines(axes[2], {label: x(rest + of(rows, start, 'plain')) for label, start in (
        ('iterative (IMP)', 'ticket'), ('random', 'random'), ('one-shot (OMP)', 'oneshot'), ('slimming', 'slimming'))
        if one(of(rows, start), 'plain')})
    for ax, title in zip(axes, ('share pruned in a round', 'AdvAug on G, D or both', 'ways to prune')):
        ax.set(title=title, xlabel='remaining weights, %', ylabel=score)
        ax.invert_xaxis()
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    return [('', fig, f'{score} over the remaining weights: of rounds with another rho (left), with AdvAug (middle), '
             'of masks by other methods (right; slimming prunes G alone)')] if drawn else empty(fig)


def fig8(rows, score, extra):
    tickets = [r for r in of(rows, 'ticket') if r['k'] == asked(rows)]
    fig, axes = plt.subplots(2, 3, figsize=(13, 7.2), sharey=True)
    find = lambda way: next((r for r in tickets if r['way'] == way), None)
    zero, usual, drawn = find('plain'), find('advaug'), False
    for ax, title, way, default in ((axes[0, 0], 'step size', 'step-', '0.01'), (axes[0, 1], 'PGD steps', 'pgd-', '1'),
                                    (axes[0, 2], 'weight of the AdvAug losses', 'lambda-', '1'),
                                    (axes[1, 0], 'location in D: after stage', 'cut-d', '5'),
                                    (axes[1, 1], 'location in G: after stage', 'cut-g', '1')):
        points = {r['way'].removeprefix(way): r for r in tickets if r['way'].startswith(way)}
        points = sorted({**points, '0': zero, default: usual}.items(), key=lambda point: float(point[0]))
        drawn |= lines(ax, {'ticket': [(i, r) for i, (_, r) in enumerate(points)]})
        for i, (_, r) in enumerate(points):
            lacking(ax, i, r)
        ax.set_xticks(range(len(points)), ['none' if way.startswith('cut') and x == '0' else x for x, _ in points])
        level(ax, one(tickets, 'advaug-g'), 'AdvAug on G only', 1)
        margin = next((r for r in tickets if r['way'].startswith('margin') and r['point']), None)
        level(ax, margin, f"no AdvAug, {margin['way'].replace('-', ' ')}" if margin else '', 2)
        ax.set(title=title, xlim=(-.4, len(points) - .6))
        if ax in axes[:, 0]:
            ax.set_ylabel(score)
    ways = [r['way'] for r in tickets if not r['way'].startswith(('step', 'pgd', 'lambda', 'cut'))]
    last = axes[1, 2]
    lines(last, {'': [(i, find(way)) for i, way in enumerate(ways)]})
    for i, way in enumerate(ways):
        lacking(last, i, find(way))
    last.lines and last.lines[0].set_linestyle('none')
    last.set_xticks(range(len(ways)), ways, rotation=25, ha='right')
    last.set(title='other rows', xlim=(-.5, len(ways) - .5))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc='lower center', bbox_to_anchor=(.5, 1),
               frameon=False)
    return [('', fig, f'{score} of a ticket over strength and place of AdvAug, each with the rest as usual (step 0.01, '
             'PGD-1, weight 1, before the last layer of D and after the first of G); 0 and none: without AdvAug; '
             'locations by --adv-cut-d and --adv-cut-g')] if drawn else empty(fig)


def controls(rows, score, extra):
    names = {'ticket-plain': 'IMP', 'early-plain': 'early-bird', 'oneshot-plain': 'one-shot', 'random-plain': 'random',
             'random-layers-plain': 'random by layers', 'init-plain': 'by initial weights',
             'ticket-reinit': 'IMP, other weights', 'small-plain': 'narrow dense'}
    kind = lambda r: f"{r['start']}-{r['way']}"
    ks = sorted({r['k'] for r in rows if kind(r) == 'oneshot-plain'})
    find = lambda name, k: next((r for r in rows if kind(r) == name and (r['k'] or ks[0]) == k), None)
    pruned = {k: next((f'{percent(r)} pruned' for r in of(rows, ('ticket', 'oneshot')) if r['k'] == k and r['runs']),
                      f'pruned {k} rounds') for k in ks}
    fig, ax = plt.subplots(figsize=(10, 4.2))
    groups = {pruned[k]: [find(name, k) for name in names] for k in ks}
    level(ax, one(of(rows, 'dense'), 'plain'), 'dense', 6)
    if not ks or not bars(ax, [*names.values()], groups, boxed=False):
        return empty(fig)
    ax.set_ylabel(score)
    ax.tick_params(axis='x', labelsize=8)
    ax.legend(fontsize=8, ncols=3, loc='upper center', bbox_to_anchor=(.5, 1.12), frameon=False)
    return [('', fig, f'{score} of tickets, of other masks, of other weights under the same masks, and of narrow dense '
             'networks with as many weights')]


def mask_quality(rows, score, extra):
    parts, out = families(rows), []
    trained = [f for f, part in parts.items() if any('of-' in r['way'] for r in part)]
    kinds = list(dict.fromkeys(r['way'] for r in rows if r['way'].startswith('of-')))
    said = [share('-' + way[3:-6]) if way[3:-6] != 'diffaug' else f'{share(trained[0])}, DiffAug' for way in kinds]
    value = lambda r: r['point'][0] if r and r['point'] else np.nan
    matrix = [[value(one(parts[f], way)) for f in trained] for way in kinds]
    matrix += [[value(one(of(parts[f], 'dense'), 'plain')) for f in trained]]
    if np.isfinite(matrix).any():
        fig, ax = plt.subplots(figsize=(2.6 + 1.3 * len(trained), 1.2 + .5 * len(matrix)))
        heat(ax, matrix, [*said, 'dense'], [share(f) for f in trained], '{:.1f}', 'column')
        ax.set(xlabel='trained on', ylabel='ticket found on')
        out = [('', fig, f'{score} of tickets by what they were found on and what they were trained on; dark is good, '
                'in each column')]
    return out + overlap(rows, score, extra)


def overlap(rows, score, extra):
    names, matrices = extra.get('overlaps') or ([], {})
    if len(names) < 2:
        return []
    size = 1.1 + .55 * len(names)
    fig, axes = plt.subplots(1, 2, figsize=(2 * size + 2.6, size + .9), sharey=True)
    for ax, (net, matrix) in zip(axes, matrices.items()):
        heat(ax, matrix, names, names, '{:.2f}')
        ax.set_title(net)
        plt.setp(ax.get_xticklabels(), rotation=40, ha='right')
    return [('-overlap', fig, 'Overlap of the masks: weights that survive in both as a share of those in either')]


def ada_sizes(rows, score, extra):
    fig, ax = plt.subplots(figsize=(5.5, 4))
    ways = dict.fromkeys(r['way'] for r in of(rows, 'dense'))
    if not lines(ax, {WORDS.get(way, way): [(r['n'], r) for r in of(rows, 'dense', way) if r['n']] for way in ways}):
        return empty(fig)
    ax.set(xlabel='training images', ylabel=score, xscale='log')
    ax.set_xticks(*[sorted({r['n'] for r in rows if r['n'] and r['point']})] * 2)
    ax.minorticks_off()
    ax.legend()
    return [('', fig, f'{score} over the number of training images, dense networks'), *training(rows, score, extra)]


def training(rows, score, extra):
    """The curves of each family."""
    out = []
    for family, part in families(rows).items():
        runs = [run for r in part for run in r['runs']]
        out += [('-' + name.removesuffix('.png') + tag(family, rows), fig, f'`{family}`: {caption}')
                for name, fig, caption in curves(runs)]
    return out


def fig2(rows, score, extra):
    return training([r for r in rows if r['k'] in (0, asked(rows))], score, extra)


def leak(rows, score, extra):
    found = [r for r in extra.get('leak', []) if {'label', 'turned', 'mirrored', 'n'} <= r.keys()]
    if len(found) < 3:
        return []
    half = lambda r, key: 1.96 * math.sqrt(r[key] * (1 - r[key]) / r['n'])
    point = lambda r, key: {'point': (r[key], half(r, key))}
    at = {r['label']: r for r in found[2:]}
    ps = sorted((r['p'], r) for r in found[2:] if r.get('p') is not None)
    ps = [(0., at['dense-plain'])] * ('dense-plain' in at) + ps
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.9), sharey=True, width_ratios=[1, 1.3])
    lines(axes[0], {'turned': [(p, point(r, 'turned')) for p, r in ps],
                    'mirrored': [(p, point(r, 'mirrored')) for p, r in ps]})
    rest = [r['label'] for r in found[2:] if r.get('p') is None]
    groups = {key: [{**point(at[label], key), 'paper': []} for label in rest] for key in ('turned', 'mirrored')}
    rest and bars(axes[1], rest, groups, boxed=False)
    for i, key in enumerate(('turned', 'mirrored')):
        for ax in axes:
            ax.axhline(found[0][key], color=COLOURS[i], linestyle=':', label=f"{key}, {found[0]['label']}")
    axes[0].set(xlabel="ADA's fixed p (0: no augmentation)", ylabel='share of the images', ylim=(0, None))
    axes[0].legend(fontsize=8)
    axes[1].tick_params(axis='x', labelsize=8)
    return [('', fig, f"Samples ({found[2]['n']} of each run) that leak.py's classifier calls turned or mirrored, with "
             'binomial 95 % intervals; dotted: its false alarms on real images')]


def table(rows, score, extra):
    """Dots: a panel a family, a line a row."""
    parts = families(rows)
    names = list(dict.fromkeys(r['name'] for r in rows))
    if not any(r['point'] for r in rows):
        return []
    wide = min(3, len(parts))
    tall = -(-len(parts) // wide)
    fig, axes = plt.subplots(tall, wide, figsize=(2 + 3.2 * wide, (.8 + .24 * len(names)) * tall), squeeze=False,
                             sharey=True)
    for ax in axes.flat[len(parts):]:
        ax.set_visible(False)
    for ax, (family, part) in zip(axes.flat, parts.items()):
        dots(ax, names, {r['name']: r for r in part})
        ax.set(title=os.path.basename(family), xlabel=score)
    return [('', fig, f'{score} of every row: circles dense, squares sparse')]


def diffaug(rows, score, extra):
    return fig4(rows, score, extra) + training(rows, score, extra)


def table4(rows, score, extra):
    return table(rows, score, extra) + training(rows, score, extra)


FIGURES = {'fig1': fig1, 'fig2': fig2, 'fig4': fig4, 'fig7': fig7, 'fig8': fig8, 'controls': controls, 'leak': leak,
           'mask-quality': mask_quality, 'ada-sizes': ada_sizes, 'table4': table4,
           'fewshot': table4, 'transfer': table4, 'diffaug': diffaug}       # of other experiments: table


# ---- over training, and samples

def curves(runs):
    """[(name, figure, caption)]: scores, D's accuracies on training, held-out and generated images, and ADA's p."""
    out, runs = [], [r for r in runs if r['log']]
    for key, title in (('all', None), ('is', 'Inception Score'), ('copy', 'share of copies')):
        scored = [r for r in runs if sum(key in s for s in r['scores']) > 1]
        if not scored:
            continue
        fig, ax = plt.subplots(figsize=(7, 4))
        for i, r in enumerate(runs):
            if r in scored:
                steps, values, spread = zip(*((s['step'], s[key], s[f'{key}_std']) for s in r['scores'] if key in s))
                ax.errorbar(steps, values, spread, label=r['label'], marker=MARKERS[i % 7], markersize=4, capsize=3,
                            **style(i))
        score, name = title or scored[0]['scores'][0]['score'], {'all': 'score'}.get(key, key)
        values = [s[key] for r in scored for s in r['scores'] if key in s]
        ax.set(xlabel='G updates', ylabel=score, yscale='log' if max(values) > 10 * min(values) > 0 else 'linear')
        ax.grid(alpha=.25)
        legend(fig, ax)
        out.append((f'{name}.png', fig, f'{score} over training; ± over sets of z; protocol as in the table.'))
    if not runs:
        return out
    columns = [('acc_train', 'training images'), ('acc_held', 'held-out images'), ('acc_gen', 'generated images')]
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for ax, (key, title) in zip(axes, columns):
        for i, r in enumerate(runs):
            at = np.array([(line['step'], line[key]) for line in r['log'] if line.get(key) is not None])
            if len(at):                                        # a hinge D moves up and down as a whole: average it out
                n = min(SMOOTH, -(-len(at) // 3))
                window = np.full(n, 1 / n)
                steps, values = (np.convolve(column, window, 'valid') for column in at.T)
                ax.plot(steps, values, label=r['label'], linewidth=1.2, **style(i),
                        marker=MARKERS[i % 7] if len(steps) < 3 else None)
        ax.set(title=title, xlabel='G updates', ylim=(-.03, 1.03))
        ax.grid(alpha=.25)
    axes[0].set_ylabel("D's accuracy")
    legend(fig, axes[0])
    out.append(('accuracy.png', fig, "D's accuracy on up to 128 images each, in eval mode, not augmented (the paper's "
                f'Figure 2); running mean over up to {SMOOTH} log lines.'))
    adaptive = [r for r in runs if any('ada_p' in line for line in r['log'])]
    if adaptive:
        fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
        for i, r in enumerate(runs):
            for ax, key in zip(axes, ('ada_p', 'ada_r')):
                points = [(line['step'], line[key]) for line in r['log'] if line.get(key) is not None]
                points and ax.plot(*zip(*points), label=r['label'], **style(i))
        axes[0].set(title="ADA's p", xlabel='G updates', ylim=(-.02, 1.02))
        axes[1].set(title='r, which p follows', xlabel='G updates')
        legend(fig, axes[0])
        out.append(('ada.png', fig, "ADA's p over training, and D's overfitting r that it follows."))
    return out


def legend(fig, ax):
    """To the right of the panels, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        fig.legend(handles, labels, fontsize=8, loc='center left', bbox_to_anchor=(1, .5), frameon=False)


def grids(runs):
    """An image of reals and the last samples of every run, uncurated, and its caption; (None, '') without samples."""
    panels = [('training images', f"{runs[0]['path']}/reals.png")] if runs else []
    panels += [(r['label'], g[-1]) for r in runs if (g := sorted(glob.glob(f"{glob.escape(r['path'])}/samples/*.png")))]
    sheets, classes = [], bool(runs) and runs[0]['flags'].get('classes')
    for text, path in panels:
        try:
            with Image.open(path) as im:
                im = im.convert('RGB')
        except OSError:                                        # not there, or torn
            continue
        im = im if classes else im.crop((0, 0, im.width, min(im.height, im.width // 2)))          # 4 of 8 rows
        sheet = Image.new('RGB', (im.width, im.height + 14), 'white')
        ImageDraw.Draw(sheet).text((2, 1), text, fill='black')
        sheet.paste(im, (0, 14))
        sheets.append(np.asarray(sheet))
    if not sheets:
        return None, ''
    columns = 3
    h, w = max(s.shape[0] for s in sheets), max(s.shape[1] for s in sheets)
    page = np.full((-(-len(sheets) // columns) * (h + 6), columns * (w + 6), 3), 255, np.uint8)
    for i, s in enumerate(sheets):
        y, x = i // columns * (h + 6), i % columns * (w + 6)
        page[y:y + s.shape[0], x:x + s.shape[1]] = s
    what = 'seeds 0-7 (columns) of its classes (rows)' if classes else 'seeds 0-31'
    return Image.fromarray(page), f'Training images, and {what} of every run at its last grid, uncurated.'
