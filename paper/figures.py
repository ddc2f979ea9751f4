"""The figures of paper/page.py: Figures 1, 2, 4, 7 and 8 of the paper, controls, and all scores as dots.

Use:
    from paper import figures, rows
    found = rows.expected_rows('fig7', open('rows.txt'))
    rows.add_points(found)
    for name, figure, caption in figures.FIGURES['fig7'](found, 'FID', {}):
        figure.savefig(f'fig7{name}.png')

A row is a dict as paper/rows.py describes it.  A row without a point is not drawn.
"""
import math
import os

import numpy as np

from paper.rows import by_family
from report import all_runs
from runs import COLOURS, curves, line_style, marker, new_figure

HATCHES = ['', '//', '..', 'xx', '\\\\', '++']
WAY_LABELS = {
    'advaug': '+ AdvAug',
    'diffaug': '+ DiffAug',
    'ada': '+ ADA',
    'diffaug-advaug': '+ DiffAug + AdvAug',
    'real': '+ DiffAug on reals only',
    'd': "+ DiffAug in D's updates only",
    'noise': '+ noise'}


# ---- rows

def select(rows, *starts, way=None):
    """The rows with one of these starts, and of this way if one is given."""
    found = [row for row in rows if row['start'] in starts]
    if way is not None:
        found = [row for row in found if row['way'] == way]
    return found


def first_row(rows, **wanted):
    """The first row whose entries are as wanted, else None."""
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            return row
    return None


def has_point(row):
    """Whether there is a row, and it has a final score."""
    return bool(row and row['point'])


def first_scored(rows, way):
    """The first row of this way that has a final score, else None."""
    return next((row for row in rows if row['way'] == way and row['point']), None)


def last_trained_round(rows):
    """The last round whose ticket has a training of its own, beside those of its finding."""
    return max((row['round'] for row in select(rows, 'ticket') if row['mask']), default=0)


def percent(row):
    """'48.8 %'."""
    return f"{100 * row['pruned']:.4g} %"


def share_label(family):
    """'10 %' or '500 images', from the name of a directory MODEL-DATA-SHARE."""
    try:
        frac = float(family.rsplit('-', 1)[-1])
    except ValueError:
        return family
    return f'{100 * frac:.0f} %' if frac <= 1 else f'{frac:.0f} images'


def family_tag(family, rows):
    """The end of a figure's name: the family where there are several, else ''."""
    return f'-{os.path.basename(family)}' if len(by_family(rows)) > 1 else ''


# ---- kinds of panels

def plot_lines(ax, groups):
    """Scores with intervals over x: groups {label: [(x, row)]}. Returns whether anything was drawn."""
    drawn = False
    for i, (label, pairs) in enumerate(groups.items()):
        points = sorted((x, *row['point']) for x, row in pairs if has_point(row))
        if points:
            x, y, half = zip(*points)
            ax.errorbar(x, y, half, label=label, marker=marker(i), markersize=5, capsize=3, **line_style(i))
            drawn = True
    ax.grid(alpha=.25)
    return drawn


def plot_level(ax, row, label, i):
    """A horizontal line at the score of a row, in the i-th style."""
    if row:
        ax.axhline(row['point'][0], label=label, linewidth=1.1, zorder=3, **line_style(i))


def plot_bars(ax, ticks, groups, boxed=True):
    """Grouped bars: groups {label: [row or None per tick]}; the best of a tick in a black box where boxed.

    Returns whether anything was drawn."""
    width = .8 / len(groups)
    drawn = False
    for j in range(len(ticks)):
        column = [rows[j] for rows in groups.values()]
        best = best_of(column) if boxed else None
        for i, row in enumerate(column):
            x = j + (i - (len(groups) - 1) / 2) * width
            if has_point(row):
                plot_bar(ax, x, .92 * width, row, i, boxed=row is best)
                drawn = True
            write_missing(ax, x, row)

    # Bars of no height for the legend, without a box.
    for i, label in enumerate(groups):
        ax.bar(0, 0, color=COLOURS[i % 8], hatch=HATCHES[i % 6], edgecolor='white', label=label)
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(xlim=(-.5, len(ticks) - .5), ylim=(0, None))
    ax.grid(axis='y', alpha=.25)
    return drawn


def best_of(rows):
    """The row with the lowest score, None of one row."""
    there = [row for row in rows if has_point(row)]
    return min(there, key=lambda row: row['point'][0]) if len(there) > 1 else None


def plot_bar(ax, x, width, row, i, boxed):
    """The score of a row as a bar in the i-th style."""
    score, half = row['point']
    ax.bar(x, score, width, yerr=half, capsize=2, color=COLOURS[i % 8], hatch=HATCHES[i % 6], zorder=2,
           edgecolor='black' if boxed else 'white', linewidth=1.8 if boxed else 0)
    for fid, differs in row['published']:
        plot_published(ax, x, fid, differs)


def plot_published(ax, x, y, differs):
    """A published score as a hollow diamond: black where everything is the same as ours, else grey."""
    colour = '#999999' if differs else 'black'
    ax.plot(x, y, 'd', markersize=7, fillstyle='none', color=colour, zorder=5, clip_on=False)


def write_missing(ax, at, row, vertical=True):
    """The word 'missing' or 'unfinished' where a row has no final score."""
    if not row or row['point']:
        return
    word = ' missing' if 'missing' in ''.join(row['lacks']) else ' unfinished'
    font = {'fontsize': 7, 'color': 'dimgrey'}
    if vertical:
        on_axis = ax.get_xaxis_transform()                     # x of the data, y of the panel
        ax.text(at, 0, word, rotation=90, ha='center', va='bottom', transform=on_axis, **font)
    else:
        on_axis = ax.get_yaxis_transform()
        ax.text(0, at, word, va='center', transform=on_axis, **font)


def plot_dots(ax, names, rows):
    """Scores with their intervals, one line for each name: rows {name: row}."""
    for i, name in enumerate(names):
        row = rows.get(name)
        if has_point(row):
            score, half = row['point']
            sparse = row['pruned'] > 0
            ax.errorbar(score, i, xerr=half, marker='s' if sparse else 'o', capsize=3, markersize=5,
                        color=COLOURS[sparse])
            for fid, differs in row['published']:
                plot_published(ax, fid, i, differs)
        write_missing(ax, i, row, vertical=False)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - .5, -.5)
    ax.grid(alpha=.25)


def plot_radar(ax, spokes, groups):
    """Scores as distances from the origin: groups {label: {spoke: row}}."""
    angles = [2 * math.pi * i / len(spokes) for i in range(len(spokes))]
    for i, (label, rows) in enumerate(groups.items()):
        points = []
        for spoke in spokes:
            row = rows.get(spoke)
            points.append(row['point'] if has_point(row) else (np.nan, np.nan))    # the line has a gap
        r, half = np.array([*points, points[0]]).T             # closed
        if np.isfinite(r).any():
            ax.errorbar([*angles, angles[0]], r, half, label=label, marker=marker(i), markersize=5, capsize=3,
                        **line_style(i))
        for angle, spoke in zip(angles, spokes):
            for fid, differs in rows[spoke]['published'] if spoke in rows else []:
                plot_published(ax, angle, fid, differs)

    ax.set_theta_offset(math.pi / 2)                           # the first spoke stands upright
    ax.set_theta_direction(-1)
    ax.set_xticks(angles, spokes)
    ax.set_rlim(0)
    ax.set_rlabel_position(180 / len(spokes))
    ax.tick_params(axis='x', pad=8)
    ax.grid(alpha=.4)


def plot_matrix(ax, matrix, rows, columns, form, by_column=False):
    """A matrix with its numbers, coloured from 0 to 1, or from the lowest to the highest of each column."""
    matrix = np.array(matrix, float)
    shade = matrix
    if by_column:
        low = np.nanmin(matrix, 0, keepdims=True)
        high = np.nanmax(matrix, 0, keepdims=True)
        shade = (matrix - low) / np.where(high > low, high - low, 1)

    ax.imshow(shade, cmap='cividis', aspect='auto', vmin=0, vmax=1)
    for i, j in np.ndindex(*matrix.shape):
        there = np.isfinite(matrix[i, j])
        text = form.format(matrix[i, j]) if there else 'missing'
        dark = there and shade[i, j] < .55
        ax.text(j, i, text, ha='center', va='center', fontsize=9, color='white' if dark else 'black')
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


# ---- the figures: each is f(rows, name of the score, records) -> [(end of the file name, figure, caption)]

def draw_fig1(rows, score, records):
    """Scores over sparsities, a spoke each."""
    figures = []
    for family, part in by_family(rows).items():
        part = select(part, 'dense', 'ticket')
        if not any(row['point'] for row in part):
            continue

        # Findings train many rounds plainly: only those that are trained in other ways, too, have a spoke.
        rounds = sorted({row['round'] for row in part if row['way'] != 'plain'})
        if len(rounds) < 3:
            continue
        spokes = {k: round_label(part, k) for k in rounds}

        # {label of a way: {spoke: row}}
        groups = {}
        for way, label in {'plain': 'tickets (0 %: dense)', **WAY_LABELS}.items():
            of_way = [row for row in part if row['way'] == way]
            if of_way:
                groups[label] = {spokes[row['round']]: row for row in of_way if row['round'] in spokes}

        fig, ax = new_figure(5.6, 5.6, subplot_kw={'projection': 'polar'})
        plot_radar(ax, list(spokes.values()), groups)
        ax.legend(loc='upper center', bbox_to_anchor=(.5, -.06), ncols=3, frameon=False)
        figures.append((family_tag(family, rows), fig, f'{score} as the distance from the origin (smaller is '
                        'better) over the share of pruned weights'))
    return figures


def round_label(rows, k):
    """'48.8 %': the pruned weights of round k, 'round 3' where no run says so."""
    known = [row for row in rows if row['round'] == k and row['runs']]
    return percent(known[0]) if known else f'round {k}'


def draw_curves(rows, score, records):
    """The curves of each family over training."""
    figures = []
    for family, part in by_family(rows).items():
        for name, fig, caption in curves(all_runs(part)):
            name = '-' + name.removesuffix('.png') + family_tag(family, rows)
            figures.append((name, fig, f'`{family}`: {caption}'))
    return figures


def draw_fig2(rows, score, records):
    """The curves of the dense networks and of the last tickets."""
    rounds = 0, last_trained_round(rows)
    return draw_curves([row for row in rows if row['round'] in rounds], score, records)


def draw_fig4(rows, score, records):
    """Bars of dense networks and tickets, by share of the data."""
    families = by_family(rows)
    trained = select(rows, 'dense', 'ticket')
    if not trained:
        return []
    ways = list(dict.fromkeys((row['start'], row['way']) for row in trained))

    # A tick for each share, a group for each start and way.
    ticks = []
    groups = {f"{start} {WAY_LABELS.get(way, '' if way == 'plain' else way)}": [] for start, way in ways}
    for family, part in families.items():
        k = last_trained_round(part)
        tick = share_label(family)
        of_ticket = [row for row in select(part, 'ticket') if row['round'] == k and row['runs']]
        if of_ticket:
            tick += f'\nticket: {percent(of_ticket[0])}'
        ticks.append(tick)

        # Of the tickets the last one alone.
        part = [row for row in part if row['round'] in (0, k)]
        for (start, way), group in zip(ways, groups.values()):
            group.append(first_row(part, start=start, way=way))

    fig, ax = new_figure(max(4.5, 1.5 + .5 * len(ways) * len(families)), 3.8)
    if not plot_bars(ax, ticks, groups):
        return []
    ax.set(xlabel='share of the training images', ylabel=score)
    wide = min(4, len(ways))                                   # entries in a line of the legend
    above = 1.17 + .09 * ((len(ways) - 1) // 4)
    ax.legend(fontsize=8, loc='upper center', bbox_to_anchor=(.5, above), ncols=wide, frameon=False)
    return [('', fig, f'{score} of dense networks and tickets by share of the data; the best of each in a '
             'black box')]


def over_remaining(rows):
    """[(remaining weights in %, row)]."""
    return [(100 * (1 - row['pruned']), row) for row in rows]


def draw_fig7(rows, score, records):
    """Scores over the remaining weights: shares pruned in a round, AdvAug, ways to prune."""
    dense = select(rows, 'dense', way='plain')
    imp = select(rows, 'dense', 'ticket', way='plain')
    rho = {
        'rho 10 %': over_remaining(select(rows, 'rho0.1')),
        'rho 20 %': over_remaining(imp),
        'rho 40 %': over_remaining(select(rows, 'rho0.4'))}

    advaug = {}
    for way, label in (('plain', 'no AdvAug'), ('advaug-g', 'AdvAug on G'), ('advaug-d', 'on D'),
                       ('advaug', 'on G and D')):
        advaug[label] = over_remaining(select(rows, 'dense', 'ticket', way=way))

    pruning = {}
    for start, label in (('ticket', 'iterative (IMP)'), ('random', 'random'), ('oneshot', 'one-shot (OMP)'),
                         ('slimming', 'slimming')):
        # Every method starts from the dense network.
        if first_scored(select(rows, start), 'plain'):
            pruning[label] = over_remaining(dense + select(rows, start, way='plain'))

    fig, axes = new_figure(13, 4, 1, 3)
    panels = {'share pruned in a round': rho, 'AdvAug on G, D or both': advaug, 'ways to prune': pruning}
    drawn = False
    for ax, (title, groups) in zip(axes, panels.items()):
        drawn |= plot_lines(ax, groups)
        ax.set(title=title, xlabel='remaining weights, %', ylabel=score)
        ax.invert_xaxis()
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    if not drawn:
        return []
    return [('', fig, f'{score} over the remaining weights: of rounds with another rho (left), with AdvAug '
             '(middle), of masks by other methods (right; slimming prunes G alone)')]


# Figure 8: title of the panel, start of the ways, and the value of plain AdvAug.
FIG8_PANELS = [
    ('step size', 'step-', '0.01'),
    ('PGD steps', 'pgd-', '1'),
    ('weight of the AdvAug losses', 'lambda-', '1'),
    ('location in D: after stage', 'cut-d', '5'),
    ('location in G: after stage', 'cut-g', '1')]


def draw_fig8(rows, score, records):
    """Scores of a ticket over strength and place of AdvAug, a panel each; the remaining rows in the sixth."""
    tickets = [row for row in select(rows, 'ticket') if row['round'] == last_trained_round(rows)]
    margins = [row for row in tickets if row['way'].startswith('margin') and row['point']]
    fig, axes = new_figure(13, 7.2, 2, 3, sharey=True)
    drawn = False
    for ax, (title, prefix, usual) in zip(axes.flat, FIG8_PANELS):
        points = {row['way'].removeprefix(prefix): row for row in tickets if row['way'].startswith(prefix)}
        points['0'] = first_row(tickets, way='plain')
        points[usual] = first_row(tickets, way='advaug')

        # The values stand beside each other, at equal distances.
        values = sorted(points, key=float)
        drawn |= plot_lines(ax, {'ticket': [(i, points[value]) for i, value in enumerate(values)]})
        for i, value in enumerate(values):
            write_missing(ax, i, points[value])

        # What the panels are compared with.
        plot_level(ax, first_scored(tickets, 'advaug-g'), 'AdvAug on G only', 1)
        if margins:
            plot_level(ax, margins[0], f"no AdvAug, {margins[0]['way'].replace('-', ' ')}", 2)
        if prefix.startswith('cut'):                           # 0 is no place
            values[0] = 'none'
        ax.set_xticks(range(len(values)), values)
        ax.set(title=title, xlim=(-.4, len(values) - .6))
    for ax in axes[:, 0]:
        ax.set_ylabel(score)

    plot_other_ways(axes[1, 2], tickets)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=3, loc='lower center', bbox_to_anchor=(.5, 1), frameon=False)
    if not drawn:
        return []
    return [('', fig, f'{score} of a ticket over strength and place of AdvAug, each with the rest as usual '
             '(step 0.01, PGD-1, weight 1, before the last layer of D and after the first of G); 0 and none: '
             'without AdvAug; locations by --adv-cut-d and --adv-cut-g')]


def plot_other_ways(ax, tickets):
    """The ways that no panel of Figure 8 varies, as points beside each other."""
    rows = [row for row in tickets if not row['way'].startswith(('step', 'pgd', 'lambda', 'cut'))]
    plot_lines(ax, {'': list(enumerate(rows))})
    for i, row in enumerate(rows):
        write_missing(ax, i, row)
    if ax.lines:
        ax.lines[0].set_linestyle('none')                      # ways have no order
    ax.set_xticks(range(len(rows)), [row['way'] for row in rows], rotation=25, ha='right')
    ax.set(title='other rows', xlim=(-.5, len(rows) - .5))


# Controls: start and way of a row, label.
CONTROLS = {
    ('ticket', 'plain'): 'IMP',
    ('early', 'plain'): 'early-bird',
    ('oneshot', 'plain'): 'one-shot',
    ('random', 'plain'): 'random',
    ('random-layers', 'plain'): 'random by layers',
    ('init', 'plain'): 'by initial weights',
    ('ticket', 'reinit'): 'IMP, other weights',
    ('small', 'plain'): 'narrow dense'}


def draw_controls(rows, score, records):
    """Bars of tickets, other masks and other weights at the sparsities of the other masks."""
    rounds = sorted({row['round'] for row in select(rows, 'oneshot', way='plain')})
    groups = {}
    for k in rounds:
        same = [row for row in select(rows, 'ticket', 'oneshot') if row['round'] == k and row['runs']]
        label = f'{percent(same[0])} pruned' if same else f'pruned {k} rounds'

        # The early-bird ticket has no round in its name: it stands with the first.
        here = [row for row in rows if (row['round'] or rounds[0]) == k]
        groups[label] = [first_row(here, start=start, way=way) for start, way in CONTROLS]

    fig, ax = new_figure(10, 4.2)
    plot_level(ax, first_scored(select(rows, 'dense'), 'plain'), 'dense', 6)
    if not groups or not plot_bars(ax, list(CONTROLS.values()), groups, boxed=False):
        return []
    ax.set_ylabel(score)
    ax.tick_params(axis='x', labelsize=8)
    ax.legend(fontsize=8, ncols=3, loc='upper center', bbox_to_anchor=(.5, 1.12), frameon=False)
    return [('', fig, f'{score} of tickets, of other masks, of other weights under the same masks, and of '
             'narrow dense networks with as many weights')]


def draw_mask_quality(rows, score, records):
    """Scores by what a ticket was found on and what it was trained on, and the overlaps of the tickets."""
    families = by_family(rows)
    ways = list(dict.fromkeys(row['way'] for row in rows if row['way'].startswith('of-')))
    trained = [f for f, part in families.items() if any(row['way'] in ways for row in part)]

    # A line for each ticket, a column for each share that it is trained on.
    matrix, labels = [], []
    for way in ways:
        source = way.removeprefix('of-').removesuffix('-plain')
        if source == 'diffaug':
            labels.append(f'{share_label(trained[0])}, DiffAug')
        else:
            labels.append(share_label(f'-{source}'))
        matrix.append([score_or_nan(first_scored(families[f], way)) for f in trained])
    labels.append('dense')
    matrix.append([score_or_nan(first_scored(select(families[f], 'dense'), 'plain')) for f in trained])

    figures = []
    if np.isfinite(matrix).any():
        fig, ax = new_figure(2.6 + 1.3 * len(trained), 1.2 + .5 * len(matrix))
        plot_matrix(ax, matrix, labels, [share_label(f) for f in trained], '{:.1f}', by_column=True)
        ax.set(xlabel='trained on', ylabel='ticket found on')
        figures.append(('', fig, f'{score} of tickets by what they were found on and what they were trained '
                        'on; dark is good, in each column'))
    return figures + draw_overlaps(records)


def score_or_nan(row):
    """The score of a row, nan without a row."""
    return row['point'][0] if row else np.nan


def draw_overlaps(records):
    """The overlaps of tickets, of G and of D."""
    names, matrices = records.get('overlaps') or ([], {})
    if len(names) < 2:
        return []
    size = 1.1 + .55 * len(names)
    fig, axes = new_figure(2 * size + 2.6, size + .9, 1, 2, sharey=True)
    for ax, (net, matrix) in zip(axes, matrices.items()):
        plot_matrix(ax, matrix, names, names, '{:.2f}')
        ax.set_title(net)
        for label in ax.get_xticklabels():
            label.set(rotation=40, ha='right')
    caption = 'Overlap of the masks: weights that survive in both as a share of those in either'
    return [('-overlap', fig, caption)]


def draw_ada_sizes(rows, score, records):
    """Scores of dense networks over the number of training images."""
    def data_set(row):
        """The family without its share."""
        return os.path.basename(row['family']).rsplit('-', 1)[0]

    several = len({data_set(row) for row in rows}) > 1
    groups = {}
    for row in select(rows, 'dense'):
        label = WAY_LABELS.get(row['way'], row['way'])
        if several:
            label += f', {data_set(row)}'
        points = groups.setdefault(label, [])
        if row['n_images']:
            points.append((row['n_images'], row))

    fig, ax = new_figure(5.5, 4)
    if not plot_lines(ax, groups):
        return []
    ax.set(xlabel='training images', ylabel=score, xscale='log')
    ticks = sorted({row['n_images'] for row in rows if row['n_images'] and row['point']})
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    ax.legend()
    figure = '', fig, f'{score} over the number of training images, dense networks'
    return [figure, *draw_curves(rows, score, records)]


def draw_leak(rows, score, records):
    """The shares of turned and mirrored samples: over ADA's fixed p (left), of the other runs (right)."""
    keys = 'turned', 'mirrored'
    shares = [r for r in records.get('leak', []) if {'label', 'n', *keys} <= r.keys()]
    if len(shares) < 3:
        return []
    false_alarms, _, *samples = shares                         # the second is of real images that were turned
    fixed = sorted((r['p'], r) for r in samples if r.get('p') is not None)
    others = [r for r in samples if r.get('p') is None]
    dense = [(0., r) for r in samples if r['label'] == 'dense-plain']

    fig, axes = new_figure(11, 3.9, 1, 2, sharey=True, width_ratios=[1, 1.3])
    plot_lines(axes[0], {key: [(p, share_row(r, key)) for p, r in dense[-1:] + fixed] for key in keys})
    if others:
        bars = {key: [share_row(r, key) for r in others] for key in keys}
        plot_bars(axes[1], [r['label'] for r in others], bars, boxed=False)
    for i, key in enumerate(keys):
        label = f"{key}, {false_alarms['label']}"
        for ax in axes:
            ax.axhline(false_alarms[key], color=COLOURS[i], linestyle=':', label=label)

    axes[0].set(xlabel="ADA's fixed p (0: no augmentation)", ylabel='share of the images', ylim=(0, None))
    axes[0].legend(fontsize=8)
    axes[1].tick_params(axis='x', labelsize=8)
    return [('', fig, f"Samples ({samples[0]['n']} of each run) that leak.py's classifier calls turned or "
             'mirrored, with binomial 95 % intervals; dotted: its false alarms on real images')]


def share_row(record, key):
    """A share with its binomial 95 % interval, as plot_lines and plot_bars take it."""
    share = record[key]
    half = 1.96 * math.sqrt(share * (1 - share) / record['n'])
    return {'point': (share, half), 'published': []}


def draw_rows(rows, score, records):
    """Every score as a dot: a panel for each family, a line for each row."""
    if not any(row['point'] for row in rows):
        return []
    families = by_family(rows)
    names = list(dict.fromkeys(row['name'] for row in rows))
    wide = min(3, len(families))
    tall = -(-len(families) // wide)                           # rounded up
    height = (.8 + .24 * len(names)) * tall
    fig, axes = new_figure(2 + 3.2 * wide, height, tall, wide, squeeze=False, sharey=True)
    for ax in axes.flat[len(families):]:
        ax.set_visible(False)
    for ax, (family, part) in zip(axes.flat, families.items()):
        plot_dots(ax, names, {row['name']: row for row in part})
        ax.set(title=os.path.basename(family), xlabel=score)
    return [('', fig, f'{score} of every row: circles dense, squares sparse')]


def draw_diffaug(rows, score, records):
    """Bars by share of the data, and curves."""
    return draw_fig4(rows, score, records) + draw_curves(rows, score, records)


def draw_rows_and_curves(rows, score, records):
    """Dots and curves."""
    return draw_rows(rows, score, records) + draw_curves(rows, score, records)


FIGURES = {                                                    # every other experiment: draw_rows
    'fig1': draw_fig1,
    'fig2': draw_fig2,
    'fig4': draw_fig4,
    'fig7': draw_fig7,
    'fig8': draw_fig8,
    'controls': draw_controls,
    'mask-quality': draw_mask_quality,
    'ada-sizes': draw_ada_sizes,
    'ffhq': draw_ada_sizes,
    'leak': draw_leak,
    'diffaug': draw_diffaug,
    'table4': draw_rows_and_curves,
    'fewshot': draw_rows_and_curves,
    'transfer': draw_rows_and_curves}
