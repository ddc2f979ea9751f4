"""paper/: pages of whole, partial and broken sets of runs, their numbers, rivals, seeds, figures."""
import csv
import glob
import os
import re
import zlib

import numpy as np
import pytest
import scipy.stats
from PIL import Image

import files
import prune
import runs
import train_stylegan2
from made_runs import (PLACE, here, lines_of, make_all, make_run, read_jsonl,      # noqa: F401
                       table_of, unrendered, write_json, write_jsonl)
from paper import comparisons, experiments, figures, page, published
from paper.rows import add_points, expected_rows

pytestmark = pytest.mark.usefixtures('here')
NAMES = list(experiments.EXPERIMENTS)
KINDS = [*figures.FIGURES, 'table6', 'fig5']                   # pages that differ in more than their rows
KINDS.remove('transfer')
KINDS.remove('fewshot')


def page_of(name, lines):
    """The page of an experiment from these lines."""
    with open('rows.txt', 'w') as f:
        f.write('\n'.join(lines) + '\n')
    path = page.main(page.get_args([name, '--rows', 'rows.txt', '--out', f'page/{name}']))
    with open(path) as f:
        return f.read()


def tables_of(name, lines):
    """The tables alone, which need no figures."""
    return '\n'.join(page.table_lines(expected_rows(name, lines)))


@pytest.mark.parametrize('name', NAMES)
def test_every_page_builds_from_nothing_and_says_so(name, unrendered):
    lines = lines_of(name, scale='smoke')
    text = page_of(name, lines)
    outs = {runs.flag_value(line.split(), '--out') for line in lines if ' train_' in line}
    assert re.search(r'^0 of \d+ rows are whole', text, re.M) and '.png' not in text
    assert experiments.EXPERIMENTS[name].__doc__ in text
    for out in outs:                                           # every training that was asked for
        assert f"| {out.split('/')[-1]} | missing |" in text


def spoil(paths):
    """Break whole runs, each in another way; {path: what the report should say}."""
    said = {}
    for i, path in enumerate(paths):
        with open(f'{path}/log.jsonl') as f:
            log = f.readlines()
        if i % 7 == 0:                                         # killed while it wrote
            with open(f'{path}/log.jsonl', 'w') as f:
                f.writelines([*log[:2], log[2][:20]])
            said[path] = 'unfinished at step'
        elif i % 7 == 1:
            os.remove(f'{path}/metrics.jsonl')
            said[path] = 'no score'
        elif i % 7 == 2:
            os.remove(f'{path}/last.pt')
            said[path] = 'failed: no last.pt'
        elif i % 7 == 3:
            with open(f'{path}/args.json', 'w') as f:
                f.write('{"args": {"da')
            said[path] = 'args.json is torn'
        elif i % 7 == 4:                                       # torn in the middle, mended by what follows
            with open(f'{path}/log.jsonl', 'w') as f:
                f.writelines([log[0], log[1][:30] + '\n', '\x00\x00\n', *log[2:]])
            for file in ('subset.json', 'reals.png', 'samples/000000.png'):
                with open(f'{path}/{file}', 'w') as f:
                    f.write('{')
        elif i % 7 == 5:                                       # its last score was cut
            with open(f'{path}/metrics.jsonl') as f:
                first, last = f.readlines()
            with open(f'{path}/metrics.jsonl', 'w') as f:
                f.write(first + last[:40])
            said[path] = 'scored at step'
    return said


@pytest.mark.parametrize('name', KINDS)
def test_every_page_builds_from_a_partial_and_broken_set(name, unrendered):
    lines = lines_of(name, scale='smoke')
    make_all(lines, lambda path: zlib.crc32(path.encode()) % 4 > 0)
    paths = sorted(os.path.dirname(p) for p in glob.glob('runs/**/log.jsonl', recursive=True))
    spoil(paths)
    for i, path in enumerate(sorted(glob.glob('runs/**/*.pt', recursive=True))):
        if os.path.getsize(path) and i % 2:                    # tickets
            with open(path, 'r+b') as f:
                f.truncate(100)
    os.makedirs(f'page/{name}')
    with open(f'page/{name}/leak.json', 'w') as f:
        f.write('[{"label": "held-')
    whole, rows = map(int, re.search(r'^(\d+) of (\d+) rows are whole', page_of(name, lines), re.M).groups())
    assert whole < rows


def test_what_is_wrong_with_a_run_stands_in_its_row_and_in_the_notes(unrendered):
    lines = lines_of('table6')
    make_all(lines)
    paths = sorted(glob.glob('runs/*/*-0.1/*')) + sorted(glob.glob('runs/*/*-1/*'))
    said = spoil(paths)
    text = page_of('table6', lines)
    assert len(paths) == 10 and len(said) == 8 and '2 of 10 rows are whole' in text
    notes = text[text.index('Notes:'):]
    for path in paths:
        family, name = os.path.split(path)
        part = text.partition(f'## {family}\n')[2].partition('\n## ')[0]
        assert said.get(path, '') in table_of(part)[name]['']
        assert path not in said or said[path] in notes and name in notes
    assert f'unfinished at step 4 of 8, in {os.path.dirname(paths[0])}: {os.path.basename(paths[0])}' in notes


def test_figures_and_samples_are_drawn_and_carry_the_protocol():
    lines = lines_of('fig5')
    assert '.png' not in page_of('fig5', lines)                # none of its runs is there
    make_all(lines, grids=True)
    text = page_of('fig5', lines)
    assert '5 of 5 rows are whole.' in text and '![fig5-grids-stylegan2-emoji-faces-1.png]' in text
    caption = text[text.index('![fig5.png]'):]
    assert '500 generated images, 3 sets of z, against x-test' in caption and 'share of data 1.0' in caption
    assert Image.open('page/fig5/fig5.png').size[0] > 400


# ---- numbers

def test_the_numbers_of_a_table_are_those_of_the_files():
    lines = lines_of('fig7')
    make_all(lines)
    make_run(f'{PLACE}/oneshot3-plain', .488, 77., mask=f'{PLACE}/oneshot3.pt', frac=.1)
    found = table_of(tables_of('fig7', lines))
    assert len(found) == 33
    for name, path in (('dense-plain', 'find/round0'), ('ticket5-plain', 'find/round5'),
                       ('rho0.4/round2',) * 2, ('ticket8-advaug',) * 2, ('oneshot3-plain',) * 2):
        row, scores = found[name], read_jsonl(f'{PLACE}/{path}/metrics.jsonl')
        last, best = scores[-1], min(scores, key=lambda s: s['choose'])
        pruned = read_jsonl(f'{PLACE}/{path}/log.jsonl')[-1]['sparsity_G']
        assert row['last FD-effnet'] == f"{last['all']:.1f} ± {last['all_std']:.1f}" and row['steps'] == '8'
        words = f"{best['report']:.1f} ± {best['report_std']:.1f} ({best['step']})"
        assert row['best on that half (step)'] == words
        assert row['last on the reported half'] == f"{last['report']:.1f} ± {last['report_std']:.1f}"
        assert row['pruned'] == f'{pruned:.2%}' and row[''] == ''
        dense = read_jsonl(f'{PLACE}/find/round0/metrics.jsonl')[-1]
        if name != 'dense-plain':
            assert row['to dense'].removeprefix('= ') == f"{last['all'] - dense['all']:+.1f} ± 4.0"
    assert found['oneshot3-plain']['last FD-effnet'] == '77.0 ± 2.0'
    assert found['dense-plain']['to dense'] == ''


def test_a_run_costs_the_time_of_all_its_processes_and_of_all_its_ticket_took():
    lines = lines_of('controls')
    make_all(lines)
    make_run(f'{PLACE}/find/round1', .2, seconds=(3., 5.), mask=f'{PLACE}/find/ticket1.pt')

    # Cut after 2 seconds and resumed for 3: another process, which counts from 0.
    make_run(f'{PLACE}/random3-plain', .488, seconds=(1.5, 3.), mask=f'{PLACE}/random3.pt')
    found = table_of(tables_of('controls', lines))
    seconds = {name: row['CPU seconds (with finding)'] for name, row in found.items()}
    images = {name: row['1,000 images seen (with finding)'] for name, row in found.items()}
    for name, cell in (
            ('dense-plain', '8 (8)'), ('ticket1-plain', '5 (13)'), ('ticket2-plain', '8 (21)'),
            ('ticket3-reinit', '8 (29)'), ('random3-plain', '5 (5)'), ('init3-plain', '8 (8)'),
            ('oneshot8-plain', '8 (16)'), ('early-plain', '8 (16)'),
            ('random-layers3-plain', '8 (29)'),                # as the ticket that it is like
            ('small8-plain', '8 (8)')):                        # has only the ticket's number of weights
        assert seconds[name] == cell, name
    assert images['ticket3-plain'] == '0.1 (0.5)' and found['ticket3-plain']['pruned'] == '48.80%'
    os.remove(f'{PLACE}/find/round2/log.jsonl')
    found = table_of(tables_of('controls', lines))
    assert found['ticket3-reinit']['CPU seconds (with finding)'] == '8 (≥ 21)'
    assert found['ticket2-plain'][''].startswith('unfinished at step 0')


def test_the_rival_at_equal_compute_is_picked_by_the_choosing_half():
    lines = lines_of('table4')
    make_all(lines)
    for seed, (choose, told) in {1: (50., 300.), 2: (40., 200.), 3: (60., 100.), 4: (1., 1.)}.items():
        path = f'{PLACE}/dense-seed{seed}'
        make_run(path, 0., 90., seed=seed, frac=.1)
        scores = read_jsonl(f'{path}/metrics.jsonl')
        write_jsonl(f'{path}/metrics.jsonl', [scores[0], {**scores[1], 'choose': choose, 'report': told}])
    found = table_of(tables_of('table4', lines), '| ticket | trainings |')
    assert found['ticket1-plain']['best dense'] == '300.0 ± 2.5 (seed 1)'      # of seeds 0 and 1
    assert found['ticket3-plain']['best dense'] == '200.0 ± 2.5 (seed 2)'      # of 0 to 3; 3 has the lowest
    assert found['ticket3-plain']['trainings'] == '4' and '4 of 4 dense' in str(found['ticket3-plain'])
    os.remove(f'{PLACE}/dense-seed2/metrics.jsonl')
    os.remove(f'{PLACE}/dense-seed4/metrics.jsonl')
    found = table_of(tables_of('table4', lines), '| ticket | trainings |')
    assert '3 of 4 dense trainings there' in str(found['ticket3-plain'])
    assert found['ticket3-plain']['best dense'] == '300.0 ± 2.5 (seed 1)'


def test_seeds_are_paired_and_their_interval_stands_apart_from_the_spread_over_z():
    lines = lines_of('table6', seeds=(0, 1, 2))
    make_all(lines)
    values = {0: 100., 1: 140., 2: 90.}
    for seed, v in values.items():
        folder = PLACE + f'-s{seed}' * (seed > 0)
        make_run(f'{folder}/dense-plain', 0., v, seed=seed, frac=.1)
        make_run(f'{folder}/dense-advaug', 0., v - 5., seed=seed, frac=.1, advaug='gd')
        make_run(f'{folder}/dense-noise', 0., v - 5. * seed, seed=seed, frac=.1, advaug='gd', adv_noise=.01)
    os.remove(f'{PLACE}-s2/dense-noise/metrics.jsonl')
    text = tables_of('table6', lines)
    found = table_of(text[text.index(f'## {PLACE}\n'):])
    scores = list(values.values())
    low, high = scipy.stats.t.interval(.95, 2, np.mean(scores), scipy.stats.sem(scores))
    assert found['dense-plain']['last FD-effnet'] == '110.0 ± 2.0'
    assert found['dense-plain']['over seeds'] == f'± {(high - low) / 2:.1f} (3 seeds)'
    assert found['dense-advaug']['to dense'] == '-5.0 ± 0.0 (3 seeds)'             # -5 in each
    noise = found['dense-noise']
    assert noise[''] == 'no score (seed 2)' and noise['over seeds'].endswith('(2 seeds)')
    assert noise['to dense'] == f'= -2.5 ± {12.706 * 2.5:.1f} (2 seeds)'
    assert text.count('| dense-plain |') == 2                  # a row for three seeds, in each family


def test_the_shift_of_advaug_and_the_rows_beside_it_are_named():
    lines = lines_of('fig8')
    make_all(lines)
    path = f'{PLACE}/ticket3-advaug/log.jsonl'
    log = read_jsonl(path)
    write_jsonl(path, [{**line, 'D_shift': shift} for line, shift in zip(log, (9., 9., .06, .07))])
    text = tables_of('fig8', lines)
    assert table_of(text)['ticket3-advaug']['c'] == '0.0650' and table_of(text)['ticket3-plain']['c'] == '–'
    assert 'ticket3-advaug: AdvAug at D\'s last layer shifts the logits by c = 0.0650' in text
    assert 'Beside it: ticket3-advaug-g, ticket3-margin-1.045.' in text
    names = [*table_of(text)]
    at = names.index('ticket3-advaug')
    assert names[at + 1:at + 3] == ['ticket3-advaug-g', 'ticket3-margin-1.045']


def test_overlaps_are_those_of_the_masks_and_an_early_bird_says_what_it_saved(unrendered):
    lines = lines_of('controls')
    make_all(lines)
    make_run(f'{PLACE}/early/round0', 0., steps=2, frac=.1)
    text = page_of('controls', lines)
    found = table_of(text, '| mask |')
    a, b = (files.load(f'{PLACE}/{name}/ticket8.pt')['mask']['G'] for name in ('random8', 'find'))
    row = found[f'{PLACE}/random8']
    assert row['overlap'] == f'{prune.overlap(a, b):.2%}' and row['differ'] == f'{prune.hamming(a, b):.2%}'
    p, q = (prune.alive(m) / 288 for m in (a, b))
    assert row['by chance'] == f'{p * q / (p + q - p * q):.2%}'
    assert ('stopped at step 2 of 8: its ticket took 0.25 trainings, that of iterative pruning 3; 91.7% saved'
            in text)


def test_overlaps_of_tickets_are_a_symmetric_matrix():
    named = comparisons.trained_tickets(expected_rows('mask-quality', lines_of('mask-quality')))
    assert [*named] == ['0.1/find/ticket3', '0.2/find/ticket3', '1/find/ticket3', '0.1/find-diffaug/ticket3']
    make_all(lines_of('mask-quality'))
    names, matrices = comparisons.overlap_matrices(named)
    matrix = np.array(matrices['G'])
    assert names == [*named] and matrix.min() < .5
    assert (np.diag(matrix) == 1).all() and (matrix == matrix.T).all()


def test_leaked_shares_stand_by_the_rows_that_they_are_of(unrendered):
    lines = lines_of('leak')
    make_all(lines)
    rows = [{'label': 'held-out images', 'turned': .1, 'mirrored': .2, 'n': 500},
            {'label': 'mixed', 'turned': .7, 'mirrored': .5, 'n': 500}]
    rows += [{'label': 'x', 'p': p, 'path': f'{PLACE}/dense-{way}', 'turned': t, 'mirrored': .25, 'n': 400}
             for way, p, t in (('plain', None, .12), ('ada-0.5', .5, .3), ('ada-1.0', 1., .6),
                               ('diffaug', None, .2))]
    os.makedirs('page/leak')
    write_json('page/leak/leak.json', rows)
    found = table_of(page_of('leak', lines), '| images |')
    assert found['dense-ada-1.0'] == {'': '', 'turned': '60.0%', 'mirrored': '25.0%', 'of': '400'}
    _, told = comparisons.leak_lines(expected_rows('leak', lines), 'page/leak/leak.json')
    (_, fig, caption), = figures.draw_leak([], '', {'leak': told})
    x, y = fig.axes[0].containers[0].lines[0].get_data()
    assert list(x) == [0., .5, 1.] and list(y) == [.12, .3, .6] and '400 of each' in caption
    assert {line.get_ydata()[0] for line in fig.axes[0].lines if line.get_linestyle() == ':'} == {.1, .2}


# ---- figures

def drawn(ax):
    """{label: [(x, y)]} of the error bars in a panel."""
    points = {c.get_label(): list(zip(*c.lines[0].get_data())) for c in ax.containers}
    return {label: pairs for label, pairs in points.items() if pairs}


def rows_with_points(name, **other):
    lines = lines_of(name)
    make_all(lines, **other)
    rows = expected_rows(name, lines)
    add_points(rows)
    return rows, {row['name']: row['point'][0] for row in rows if row['point']}


def test_figure_7_has_rounds_ways_and_methods_over_the_remaining_weights():
    rows, value = rows_with_points('fig7')
    (_, fig, _), = figures.draw_fig7(rows, 'FID', {})
    left, middle, right = map(drawn, fig.axes)
    names = [*(f'ticket{k}-plain' for k in range(8, 0, -1)), 'dense-plain']
    assert [y for _, y in left['rho 20 %']] == [value[name] for name in names]
    assert np.allclose([x for x, _ in left['rho 40 %']], [36., 60., 100.], atol=.01)
    assert len(left['rho 10 %']) == 6
    assert [y for _, y in middle['on D']] == [value[f'{n}-advaug-d'] for n in ('ticket8', 'ticket3', 'dense')]
    assert right['slimming'][0][1] == value['slimming8-plain']
    assert right['slimming'][-1] == (100., value['dense-plain'])
    assert set(right) == {'iterative (IMP)', 'random', 'one-shot (OMP)', 'slimming'}


def test_figure_8_starts_from_the_ticket_without_advaug():
    rows, value = rows_with_points('fig8')
    (_, fig, _), = figures.draw_fig8(rows, 'FID', {})
    for ax, ways in zip(fig.axes, (
            ['step-0.001', 'advaug', 'step-0.05', 'step-0.1'],
            ['advaug', 'pgd-3', 'pgd-5', 'pgd-7'],
            ['lambda-0.25', 'lambda-0.5', 'advaug', 'lambda-2'],
            ['cut-d1', 'cut-d2', 'cut-d3', 'cut-d4', 'advaug'],
            ['advaug', 'cut-g2', 'cut-g3', 'cut-g4'])):
        assert [y for _, y in drawn(ax)['ticket']] == [value[f'ticket3-{way}'] for way in ('plain', *ways)]
        level = {line.get_label(): line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2}
        assert level['AdvAug on G only'] == value['ticket3-advaug-g']
        assert level['no AdvAug, margin 1.045'] == value['ticket3-margin-1.045']


def test_figures_show_intervals_over_seeds_or_the_spread_over_z():
    lines = lines_of('table6', seeds=(0, 1))
    make_all(lines, lambda path: '-s1' not in path or 'noise' not in path)
    rows = expected_rows('table6', lines)
    add_points(rows)
    for row in rows:
        values = [r['scores'][-1]['all'] for r in row['runs']]
        half = 2. if len(values) == 1 else abs(values[0] - values[1]) / 2 * 12.706
        assert row['point'] == pytest.approx((np.mean(values), half), rel=1e-4)
    assert sorted({len(row['runs']) for row in rows}) == [1, 2]


def test_the_radar_has_the_published_scores_in_grey_unless_nothing_differs():
    rows, value = rows_with_points('fig1')
    (_, fig, _), = figures.draw_fig1(rows, 'FID', {})
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ['0 %', '36 %', '48.8 %']
    assert drawn(fig.axes[0])['tickets (0 %: dense)'][1][1] == value['ticket2-plain']

    # Ticket 1 has no spoke: no training starts from it but its round of the finding.
    of_rows = {'dense-plain': [(36.58, True)], 'ticket1-plain': [(12., False)]}
    for row in rows:
        row['published'] = of_rows.get(row['name'], [])
    (_, fig, _), = figures.draw_fig1(rows, 'FID', {})
    diamonds = [line for line in fig.axes[0].lines if line.get_marker() == 'd']
    assert [(line.get_ydata()[0], line.get_color()) for line in diamonds] == [(36.58, '#999999')]


def test_two_data_sets_must_not_share_a_line_over_the_number_of_images():
    lines = [line for line in lines_of('ffhq', scale='paper') if '--frac 1000 ' in line or '--frac 5000 ' in line]
    make_all(lines, name='FID')
    rows = expected_rows('ffhq', lines)
    add_points(rows)
    figure = figures.draw_ada_sizes(rows, 'FID', {})[0][1]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(labels) == 6 and sum('lsun-cat' in label for label in labels) == 3, labels


# ---- published numbers

@pytest.mark.parametrize('change, cell', [
    ({}, 'FID 23.80 (Table 3)'), ({'frac': .2}, 'FID 17.43 (Table 3)'),
    ({'sparsity': 86.58}, 'FID 23.80 (Table 3)'), ({'sparsity': 36.}, '–'), ({'data': 'fashion-mnist'}, '–'),
    ({'frac': 5000}, '–'),
    ({'advaug': 'g'}, '–'), ({'advaug': 'gd', 'adv_noise': .01}, '–'), ({'model': 'sngan'}, '–'),
    ({'score': 'FD-effnet'}, 'other features'), ({'resize': 'TF1 bilinear 299'}, 'other features'),
    ({'n_gen': 500}, 'other samples'), ({'ref': 'cifar100-train'}, 'other reference'),
    ({'step': 100000}, 'other schedule<'), ({'n_gen': 50, 'step': 1}, 'other samples, schedule'),
    ({'batch': 128}, 'other settings'), ({'ch_g': 16}, 'other settings'), ({'res': 64}, 'other settings'),
    ({'lr_g': 1e-3}, 'other settings'), ({'subset': 'first'}, 'other settings'),
    ({'loss': 'logistic'}, 'other settings'), ({'advaug': 'gd', 'adv_step': .1}, 'other settings'),
    ({'aug': 'none', 'step': 100000}, 'FID 30.96 (Table 3)'), ({'aug': 'none'}, 'other schedule'),
    ({'data': 'imagenet', 'n_gen': 50000, 'ref': 'imagenet-test', 'batch': 256, 'd_steps': 2, 'frac': .25,
      'sparsity': 36., 'aug': 'none', 'step': 100000, 'advaug': 'gd', 'res': 128, 'adv_step': .001,
      'lr_g': 5e-5}, 'FID 23.14 ± 0.07, IS 52.98 (Table 2)'),
    ({'data': 'imagenet', 'n_gen': 50000, 'ref': 'imagenet-test', 'batch': 256, 'd_steps': 2, 'frac': .25,
      'res': 128, 'adv_step': .001, 'lr_g': 5e-5, 'sparsity': 0.}, 'IS 74.2 (DiffAugment); other schedule<')])
def test_a_published_number_stands_beside_ours_only_where_nothing_differs(change, cell):
    values = dict(model='biggan', data='cifar100', frac=.1, subset='random', aug='diffaug', advaug='none',
                  adv_noise=None, adv_step=.01, d_steps=5, batch=64, res=32, ch_g=96, ch_d=96, lr_g=2e-4,
                  loss='hinge', sparsity=67.23, score='FID', resize='half-pixel bilinear 299', n_gen=10000,
                  ref='cifar100-test', step=200000) | change
    flags = {k: v for k, v in values.items() if k not in ('model', 'score', 'resize', 'n_gen', 'ref', 'step')}
    protocol = {k: values[k] for k in ('resize', 'n_gen', 'ref')}
    run = {'model': values['model'], 'flags': flags, 'sparsity': {'G': values['sparsity'] / 100, 'D': 0.},
           'scores': [{'step': values['step'], 'score': values['score'], 'protocol': protocol}]}
    text = published.run_cell(run)
    assert cell in text and ('gray' in text) == ('other' in cell)


# Runs by DiffAugment's recipes
FACES = {**train_stylegan2.PRESETS['large'], 'preset': 'large', 'data': 'ffhq', 'aug': 'diffaug', 'step': 781250,
         'sparsity': 0., 'n_gen': 50000, 'ref': 'ffhq-all'}
CIFAR = {**FACES, 'data': 'cifar10', 'res': 32, 'ch_g': 4096, 'ch_d': 4096, 'r1': .1, 'ema_kimg': 1000.,
         'aug_policy': 'color,translation,cutout', 'n_gen': 10000, 'ref': 'cifar10-test'}


@pytest.mark.parametrize('change, cell', [
    ({'data': 'cifar100', 'frac': .1}, 'FID 12.20 ± 0.03 (Table 4); other settings'),
    ({'data': 'cifar100', 'frac': .1, 'lecam': .3}, 'FID 12.48 ± 0.04 (Table 4); other settings'),
    ({'data': 'cifar100', 'frac': .1, 'advaug': 'gd'}, 'FID 12.11 ± 0.05 (Table 4); other settings'),
    ({'data': 'cifar100', 'frac': .1, 'reinit': 1}, '–'),
    ({'aug': 'none', 'sparsity': 0.}, 'FID 89.18 (Table 5); other settings</span>; FID 80.20 (DiffAugment)'),
    ({'aug': 'diffaug', 'sparsity': 0.}, 'FID 46.87 (DiffAugment)'), ({'margin': 1.1}, '–'),
    ({'aug': 'none', 'sparsity': 0., 'init_from': 'x.pt', 'transfer': 'freezed'},
     'FID 41.87 (Table 5); other'),
    ({'aug': 'diffaug', 'sparsity': 0., 'batch': 5}, 'other settings'),
    ({'aug': 'none', 'init_from': 'x.pt'}, '–'),
    ({'aug': 'diffaug', 'sparsity': 0., 'ref': '100-shot-obama-test'}, 'other reference'),
    ({'small_dense': 'x'}, '–'),
    ({'preset': 'paper', 'batch': 5, 'lr_g': 2e-4, 'lr_d': 2e-4, 'step': 100000, 'aug': 'none', 'sparsity': 0.},
     'FID 80.20 (DiffAugment); other schedule, settings<'),
    ({'preset': 'paper', 'batch': 5, 'lr_g': 2e-4, 'lr_d': 2e-4, 'step': 200000, 'aug': 'diffaug',
      'advaug': 'gd'}, 'FID 52.86 (Table 5); other settings<'),
    ({'preset': 'paper', 'batch': 5, 'lr_g': 2e-4, 'lr_d': 2e-4, 'step': 100000, 'aug': 'diffaug',
      'advaug': 'gd'}, 'FID 52.86 (Table 5); other schedule, settings<'),
    ({**CIFAR, 'frac': .2, 'aug': 'diffaug'}, 'FID 12.15, IS 9.21 (DiffAugment)'),
    ({**CIFAR, 'aug': 'none'}, 'FID 11.07, IS 9.18 (DiffAugment)'),
    ({**CIFAR, 'aug': 'diffaug', 'aug_policy': 'color,cutout'}, 'FID 9.89, IS 9.40 (DiffAugment)'),
    ({**CIFAR, 'aug': 'diffaug'}, 'FID 9.89, IS 9.40 (DiffAugment); other settings<'),
    ({**CIFAR, 'aug': 'none', 'step': 250000}, '(DiffAugment); other schedule<'),
    ({**CIFAR, 'aug': 'none', 'r1': .01}, '(DiffAugment); other settings<'),
    ({**FACES, 'frac': 1000}, 'FID 25.66 (DiffAugment)'), ({**FACES, 'frac': 1.}, 'FID 4.24 (DiffAugment)'),
    ({**FACES, 'frac': 1000, 'n_gen': 10000}, '(DiffAugment); other samples<'),
    ({**FACES, 'frac': 1000, 'ref': 'ffhq-train'}, '(DiffAugment); other reference<'),
    ({**FACES, 'frac': 1000, 'aug': 'ada'}, '–'), ({**FACES, 'data': 'lsun-cat', 'frac': 1000}, '–')])
def test_stylegan2_repeats_diffaugments_recipe_and_not_the_papers(change, cell):
    values = dict(data='100-shot-obama', frac=1., aug='ada', advaug='none', adv_noise=None, sparsity=48.8,
                  n_gen=10000, ref='cifar100-test') | change
    if 'shot' in values['data']:
        values = values | {'n_gen': 5000, 'ref': '100-shot-obama-train'} | change
    flags = {**train_stylegan2.FEWSHOT, 'preset': 'fewshot'}
    flags |= {k: v for k, v in values.items() if k not in ('sparsity', 'n_gen', 'ref', 'step')}
    protocol = {'resize': 'half-pixel bilinear 299', 'n_gen': values['n_gen'], 'ref': values['ref']}
    run = {'model': 'stylegan2', 'flags': flags, 'sparsity': {'G': values['sparsity'] / 100, 'D': 0.},
           'scores': [{'step': values.get('step', 18750), 'score': 'FID', 'protocol': protocol}]}
    assert cell in published.run_cell(run) and ('gray' in published.run_cell(run)) == ('other' in cell)


def test_every_published_number_must_say_where_it_stands():
    with open(published.CSV) as f:
        lines = list(csv.DictReader(f))
    for line in lines:
        mine = 'arXiv:2103.00397'
        if line['table'] == 'DiffAugment':
            mine = f"github.com/mit-han-lab/data-efficient-gans (DiffAugment-{line['model']}|)\\S*README"
        assert re.match(mine, line['source']), line
        assert float(line['fid']) > 0
    keys = [tuple(value for name, value in line.items() if name not in ('fid', 'fid_std', 'is', 'is_std'))
            for line in lines]
    assert len(keys) == len(set(keys))


def test_published_numbers_stand_beside_tickets_of_iterative_pruning_alone():
    lines = lines_of('controls', scale='paper')
    protocol = {'resize': 'half-pixel bilinear 299', 'n_gen': 10000, 'ref': 'cifar10-test'}
    make_all(lines, name='FID', protocol=protocol)
    place = 'runs/paper/sngan-cifar10-0.1'
    for name, mask in (('ticket8-plain', 'find/ticket8.pt'), ('oneshot8-plain', 'oneshot8.pt')):
        make_run(f'{place}/{name}', 0., 50., data='cifar10', frac=.1, name='FID', mask=f'{place}/{mask}')
    found = table_of(tables_of('controls', lines))
    assert 'Table 6' in found['dense-plain']['published'] and 'Table 6' in found['ticket8-plain']['published']
    assert found['oneshot8-plain']['published'] == found['small3-plain']['published'] == '–'


@pytest.mark.parametrize('name', ['fig7', 'controls', 'mask-quality', 'leak', 'table6'])
def test_a_file_without_rows_or_with_a_torn_one_makes_a_page(name):
    assert '0 of 0 rows are whole' in page_of(name, ['', f'3 {name}', f'3 {name} train_sngan --data x --out'])


def test_pages_of_unknown_names_and_without_rows_are_refused(capsys):
    for argv, words in ((['fig7', '--rows', 'x'], '--rows x: no such file; make it with python paper/exp'),
                        (['runs', '--rows', 'x'], "invalid choice: 'runs'"), (['fig7'], 'required: --rows')):
        with pytest.raises(SystemExit) as e:
            page.get_args(argv)
        assert e.value.code == 2 and words in capsys.readouterr().err
