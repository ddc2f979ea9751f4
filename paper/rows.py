"""The rows that an experiment asks for, with the runs that are there.

Use:
    from paper import rows
    with open('rows.txt') as f:                        # what paper/experiments.py printed
        for row in rows.expected_rows('fig7', f):
            print(row['family'], row['name'], row['lacks'])

A row is a dict as report.py describes it, with these entries beside:
    family     the directory MODEL-DATA-SHARE of seed 0
    start      what is trained: dense, ticket, or another mask (random, oneshot, small, ...)
    round      the round of the ticket, 0 for a dense network
    way        how it is trained: a key of experiments.WAYS
    mask       the ticket in the command of its first seed, None where the finding is the training
    paths      the directories in which its runs may lie
add_points adds what the figures need:
    point      (mean score, half of its interval), None without a final score
    published  [(FID, whether something differs)]
    pruned     the share of pruned weights
    n_images   the number of training images, None where it is not known
"""
import collections
import json
import os
import re

import numpy as np

from paper import published
from report import interval, last_scores
from runs import flag_value, parse_finding, pick_run, read_json

# Names of directories: dense-advaug, ticket3-plain, oneshot8-plain.
NAME = re.compile(r'(dense|ticket|oneshot|random-layers|random|init|slimming|small|early)(\d*)-(.+)')
FIRST_WAYS = 'plain', 'noise', 'advaug', 'advaug-g', 'margin'  # in tables


# ---- what an experiment asks for

def expected_rows(name, lines):
    """The rows of an experiment, in the order of the tables; lines: 'STAGE NAME SCRIPT FLAGS'."""
    commands = []
    for line in lines:
        words = line.split()
        if words[1:2] == [name] and '--out' in words[:-1]:     # not of another experiment, and not torn
            commands.append(words[2:])

    places, masks, findings = places_of(commands)
    rows = []
    for (family, row_name), by_seed in places.items():
        row = named_row(family, row_name)
        row['findings'] = findings
        row['mask'] = masks.get((family, row_name))
        find_runs(row, by_seed)
        rows.append(row)
    return ordered(rows)


def places_of(commands):
    """Where the trainings of commands, [script, *flags] each, may lie: places, masks, findings.

    places: {(family, name): {seed: [directories]}};  masks: {(family, name): --mask of the first seed}."""
    places = collections.defaultdict(lambda: collections.defaultdict(list))
    masks, findings = {}, {}
    for script, *words in commands:
        out = os.path.normpath(flag_value(words, '--out'))
        folder, name = os.path.split(out)
        family, seed = re.fullmatch(r'(.*?)(?:-s(\d+))?', folder).groups()
        seed = int(seed or 0)

        if script != 'find_ticket':
            places[family, name][seed].insert(0, out)          # before what a finding has trained
            masks.setdefault((family, name), flag_value(words, '--mask'))
            continue

        finding = parse_finding(words)
        findings[out] = finding
        findings[finding['ticket']] = finding
        if finding['method'] == 'imp':
            for k in range(finding['rounds']):
                places[family, name_of_round(name, k)][seed].append(f'{out}/round{k}')
    return places, masks, findings


def name_of_round(finding, k):
    """The row that round k of a finding stands in: it trains ticket k plainly."""
    if finding != 'find':
        return f'{finding}/round{k}'
    return f'ticket{k}-plain' if k else 'dense-plain'


def named_row(family, name):
    """A row without runs, from its name: 'ticket3-advaug', 'rho0.4/round2'."""
    match = NAME.fullmatch(name)
    if match:
        start, k, way = match.groups()
    else:
        start, _, k = name.partition('/round')                 # of another finding than `find`
        way = 'plain'
    return {
        'family': family, 'name': name, 'start': start, 'round': int(k or 0), 'way': way,
        'is_dense': name in ('dense-plain', 'dense-twice'), 'runs': [], 'lacks': [], 'paths': []}


def find_runs(row, by_seed):
    """Read the runs of a row from {seed: [directories]}, and say what is missing or wrong."""
    for seed, directories in by_seed.items():
        row['paths'] += directories
        run = pick_run(directories)
        if run:
            label = f"{row['name']}, seed {seed}" if seed else row['name']
            row['runs'].append({**run, 'label': label})
            lack = run['state']
        elif any(os.path.exists(f'{path}/args.json') for path in directories):
            lack = 'args.json is torn'
        else:
            lack = 'missing'

        if lack and len(by_seed) > 1:
            lack += f' (seed {seed})'
        if lack:
            row['lacks'].append(lack)


def ordered(rows):
    """Dense rows first, then tickets, then other masks; by round; in each round by the way to train."""
    def way(row):
        return 'margin' if row['way'].startswith('margin') else row['way']
    starts = list(dict.fromkeys(['dense', 'ticket', *(row['start'] for row in rows)]))
    ways = list(dict.fromkeys([*FIRST_WAYS, *map(way, rows)]))
    return sorted(rows, key=lambda row: (starts.index(row['start']), row['round'], ways.index(way(row))))


def by_family(rows):
    """{family: its rows}."""
    families = collections.defaultdict(list)
    for row in rows:
        families[row['family']].append(row)
    return dict(families)


# ---- what the figures need

def final_scores(row):
    """The last scores of a row that are of the end of its trainings."""
    return [(run, score) for run, score in last_scores(row) if score['step'] >= run['flags']['steps']]


def figure_protocol(run):
    """What must be equal for two scores to stand in one figure, as text."""
    score = run['scores'][-1]
    facts = {key: score['protocol'].get(key) for key in ('features', 'resize', 'n_gen')}
    return json.dumps({**facts, 'score': score['score']}, sort_keys=True)


def add_points(rows):
    """Give every row what figures need. Returns the runs in the figures, and notes on what they leave out."""
    protocols = collections.Counter()
    for row in rows:
        protocols.update(figure_protocol(run) for run, _ in last_scores(row))
    usual = protocols.most_common(1)[0][0] if protocols else None

    runs, notes = [], []
    for row in rows:
        pairs = final_scores(row)
        if pairs and figure_protocol(pairs[0][0]) != usual:
            notes.append(f"not in the figures, scored by another protocol: {row['family']}/{row['name']}")
            pairs = []
        runs += [run for run, _ in pairs]

        scores = [score for _, score in pairs]
        row['point'] = point_of(scores) if scores else None
        row['published'] = published.published_points(row) if scores else []
        row['pruned'] = max(row['runs'][0]['sparsity'].values()) if row['runs'] else 0.
        row['n_images'] = training_images(row['runs'][0]) if row['runs'] else None
    return runs, notes


def point_of(scores):
    """(mean, half of its interval): over trainings, of one training the spread over its sets of z."""
    values = [score['all'] for score in scores]
    half = interval(values)
    if half is None:
        half = np.mean([score['all_std'] for score in scores])
    return float(np.mean(values)), float(half)


def training_images(run):
    """How many training images a run had, None without a whole subset.json."""
    subset = read_json(f"{run['path']}/subset.json")
    return len(subset['index']) if subset else None
