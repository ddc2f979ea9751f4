"""What a page says below its tables: rivals at equal compute, what AdvAug amounts to, masks, leaks.

Use:
    from paper import comparisons, rows
    found = rows.expected_rows('table4', open('rows.txt'))
    print('\\n'.join(comparisons.shift_lines(found)))

At equal compute a ticket of k rounds has cost k + 1 trainings.  Its rival is the best of k + 1 dense
trainings, chosen on one half of the reference and reported on the other half.

Of two masks a and b with the densities p and q:
    overlap    |a and b| / |a or b|
    by chance  p q / (p + q - p q)
"""
import glob
import os
import re

import prune
from paper.rows import final_scores
from report import last_scores, logit_shift, markdown_table, name_with_lacks, score_cell, shares_text
from runs import pick_run, protocol_key, read_json, read_run, ticket_masks, ticket_origin


# ---- at equal compute

def dense_rivals(family):
    """The scored plain dense trainings of a family on the images of its first seed, by seed."""
    others = sorted(glob.glob(f'{glob.escape(family)}/dense-seed*'))
    runs = [pick_run([f'{family}/dense-plain', f'{family}/find/round0'])]
    runs += [read_run(path) for path in others]
    return sorted((run for run in runs if run and run['scores']), key=lambda run: run['seed'])


def half_text(score):
    """A score on the half of the reference that did not choose."""
    return f"{score['report']:.1f} ± {score['report_std']:.1f}"


def equal_compute_lines(rows, family):
    """Markdown lines: plainly trained tickets beside the best of as many dense trainings as they cost."""
    dense = dense_rivals(family)
    body = []
    for row in rows:
        # A ticket that was trained plainly on the images of seed 0, which the dense networks saw.
        scores = final_scores(row)
        if row['start'] != 'ticket' or row['way'] != 'plain' or not scores:
            continue
        run, score = scores[0]
        if run['seed']:
            continue

        # As many dense trainings of the same protocol and length as it has cost, or as there are.
        count = row['round'] + 1
        alike = []
        for other in dense:
            if protocol_key(other) == protocol_key(run) and other['scores'][-1]['step'] == score['step']:
                alike.append(other)
        alike = alike[:count]

        # The best of them by the half of the reference that chooses.
        best = min(alike, key=lambda other: other['scores'][-1]['choose'], default=None)
        rival = f"{half_text(best['scores'][-1])} (seed {best['seed']})" if best else '–'
        body.append([row['name'], str(count), half_text(score), rival,
                     f'{len(alike)} of {count} dense trainings there'])
    if not body:
        return []
    about = ('At equal compute: a ticket of k rounds beside the best of k + 1 dense trainings, chosen on one '
             'half of the reference; both scores are of the last checkpoint, on the other half.')
    return [about, '', *markdown_table(['ticket', 'trainings', 'its score', 'best dense', ''], body)]


# ---- AdvAug at D's last layer

def shift_lines(rows):
    """Sentences on what AdvAug at D's last layer amounts to, beside the rows that show it."""
    sentences = []
    for row in rows:
        c = logit_shift(row)
        if c is None or not row['way'].endswith('advaug'):
            continue
        beside = []
        for other in rows:
            same_network = (other['start'], other['round']) == (row['start'], row['round'])
            if same_network and other['way'].startswith(('advaug-g', 'margin')):
                beside.append(name_with_lacks(other))
        names = ', '.join(beside) or 'no row here, see table6 and fig8'
        sentences.append(f"{row['name']}: AdvAug at D's last layer shifts the logits by c = {c:.4f}, like "
                         f'another margin of the loss. Beside it: {names}.')
    return ['\n\n'.join(sentences), ''] if sentences else []


# ---- masks

def trained_tickets(rows):
    """{name: path} of the tickets that an experiment trains, by round."""
    by_round = []
    for row in rows:
        finding, k = ticket_origin(row['mask'], row['findings'])
        if finding:
            path = f"{finding['out']}/ticket{k}"
            several = finding['method'] == 'imp'               # tickets of one finding
            by_round.append((k, path if several else finding['out'], f'{path}.pt'))

    # Names without what they have in common, up to a / or -.
    common = os.path.commonprefix([name for _, name, _ in by_round])
    common = re.match('.*[/-]|', common).group()
    by_round.sort(key=lambda item: item[0])
    return {name.removeprefix(common): path for _, name, path in by_round}


def mask_shapes(masks):
    """{(network, parameter name, shape)} of the masks of a ticket."""
    return {(net, name, mask.shape) for net in 'GD' for name, mask in masks[net].items()}


def overlap_matrices(tickets):
    """{name: ticket file} -> names [N], {G, D: overlaps [N][N]}.

    Leaves out tickets that cannot be read, or whose shapes are not those of the first ticket."""
    found, shapes = {}, None
    for name, path in tickets.items():
        masks = ticket_masks(path)
        if not masks:
            continue
        shapes = shapes or mask_shapes(masks)                  # those of the first
        if mask_shapes(masks) == shapes:
            found[name] = masks

    matrices = {}
    for net in 'GD':
        masks = [of_both[net] for of_both in found.values()]
        matrices[net] = [[prune.overlap(a, b) for b in masks] for a in masks]
    return list(found), matrices


def chance_overlap(a, b):
    """The overlap that independent masks of these densities have."""
    p = 1 - prune.sparsity(a)
    q = 1 - prune.sparsity(b)
    return p * q / (p + q - p * q)


def other_mask_lines(rows):
    """Markdown lines: how far other masks overlap with those of iterative pruning after as many rounds, and
    what an early-bird ticket saves."""
    if not rows:
        return []
    by_path = {finding['out']: finding for finding in rows[0]['findings'].values()}
    body, sentences = [], []
    for path, finding in by_path.items():
        if finding['method'] == 'imp':
            continue
        k = finding['rounds']
        masks = ticket_masks(f'{path}/ticket{k}.pt')
        imp_masks = ticket_masks(f'{os.path.dirname(path)}/find/ticket{k}.pt')

        cells = []
        for measure in (prune.overlap, chance_overlap, prune.hamming):
            if masks and imp_masks:
                cells.append(shares_text({net: measure(masks[net], imp_masks[net]) for net in 'GD'}))
            else:
                cells.append('–')
        # The first of what is missing is named.
        name = path
        if not masks:
            name += ' (missing)'
        elif not imp_masks:
            name += f' (find/ticket{k}.pt missing)'
        body.append([name, *cells])

        if finding['method'] == 'early-bird' and masks:
            sentences += saving_lines(rows, finding)
    if not body:
        return []
    about = ('Masks beside those of iterative pruning after as many rounds, find/ticketK.pt: the weights '
             'that survive in both as a share of those in either, what independent masks would have, and the '
             'share of weights in which they differ.')
    return [about, '', *markdown_table(['mask', 'overlap', 'by chance', 'differ'], body), *sentences]


def saving_lines(rows, finding):
    """A sentence on the trainings that an early-bird ticket saves, with its score beside its rival's."""
    run = read_run(f"{finding['out']}/round0")
    if not run or not run['log']:
        return []
    k = finding['rounds']
    step = run['log'][-1]['step']
    steps = finding['steps'] or run['flags']['steps']
    share = step / steps                                       # of one training
    scores = []
    for row in rows:
        if row['name'] in ('early-plain', f'ticket{k}-plain') and last_scores(row):
            scores.append(f"{row['name']}: {score_cell(row, 'all')}")
    return [f"{finding['out']} stopped at step {step} of {steps}: its ticket took {share:.2f} trainings, "
            f"that of iterative pruning {k}; {1 - share / k:.1%} saved. {'; '.join(scores)}.", '']


# ---- leaks

def leak_lines(rows, path):
    """Markdown lines of leak.json, and its records with the names of their rows as labels."""
    records = read_json(path)
    if not isinstance(records, list):
        return [f'No {path}: python paper/leak.py makes it.', ''], []

    names = {}
    for row in rows:
        for directory in row['paths']:
            names[os.path.normpath(directory)] = row['name']
    records = [{**r, 'label': names.get(os.path.normpath(r.get('path') or ''), r['label'])} for r in records]

    body = [[r['label'], f"{r['turned']:.1%}", f"{r['mirrored']:.1%}", str(r['n'])] for r in records]
    about = (f'Samples that a classifier calls turned or mirrored ({path}); the first rows are its false '
             'alarms and its hits.')
    return [about, '', *markdown_table(['images', 'turned', 'mirrored', 'of'], body)], records
