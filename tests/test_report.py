"""report.py on made-up run directories: pages of whole, partial and broken sets, their numbers, rivals and seeds."""
import glob
import json
import os
import random
import re
import zlib

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

import experiments
import figures
import loop
import prune
import report
import results

FLAGS = dict(data='x', frac=1., res=32, seed=0, data_seed=0, steps=8, batch=16, d_steps=1, g_batch=16, aug='none',
             ada_p=None, aug_on='both', lecam=None, advaug='none', adv_noise=None, adv_step=.01, adv_pgd=1,
             adv_eps=None, adv_lambda_g=1., adv_lambda_d=1., adv_cut_g=1, adv_cut_d=-1, adv_sign='adversary',
             margin=1., mask=None, init_from=None, transfer=None, reinit=None, small_dense=None, slim=None,
             loss='hinge', preset='demo', ch_g=32, ch_d=32, lr_g=1e-3, lr_d=1e-3, subset='random')
PROTOCOL = dict(features='efficientnet-lite0 1280', weights='57934424', quantise='uint8', resize='bicubic 96',
                n_gen=500, n_ref={'choose': 50, 'report': 50, 'all': 100}, ref='x-test', frac=1., repeats=3, seed=0,
                sparsity={'G': 0., 'D': 0.}, generator='EMA 0.99')


def rows_of(*names, scale='demo', seeds=(0,)):
    """The lines that experiments.py prints."""
    args = experiments.get_args([*names, '--scale', scale, '--seeds', *map(str, seeds), '--steps', '8'])
    return [' '.join(map(str, line)) for line in experiments.rows(args)]


def jsonl(path, records):
    with open(path, 'w') as f:
        f.writelines(json.dumps(r) + '\n' for r in records)


def make_run(path, pruned=0., value=None, seconds=(4., 8.), model='sngan', name='FD-effnet', protocol=None, grids=False,
             **flags):
    """A whole training: two scores, four log lines; `seconds` are the times of the last two."""
    os.makedirs(f'{path}/samples', exist_ok=True)
    flags, rng = {**FLAGS, **flags}, random.Random(f'{path}')
    value, steps = value or rng.uniform(50, 150), flags['steps']
    loop.write_json(f'{path}/args.json', {'command': 'python', 'identity': {'model': model}, 'args': flags,
                                          'versions': {'device': 'cpu', 'ranks': 1}})
    loop.write_json(f'{path}/subset.json', {'index': [*range(int(flags['frac'] * (1 if flags['frac'] > 1 else 6000)))]})
    extra = {'D_shift': .05} if 'd' in flags['advaug'] else {}
    extra |= {'ada_p': .3, 'ada_r': .5} if flags['aug'] == 'ada' else {}
    jsonl(f'{path}/log.jsonl', [{
        'step': steps * i // 4, 'kimg': steps * i / 4 * .016, 'acc_train': .5 + i / 10, 'acc_held': .5, 'acc_gen': .6,
        'sparsity_G': pruned, 'sparsity_D': pruned, 'time': t,
        'start': i > 2 and seconds[0] < 2, **extra} for i, t in enumerate((1., 2., *seconds), 1)])
    jsonl(f'{path}/metrics.jsonl', [{
        'step': step, 'score': name, 'all': v, 'all_std': 2., 'choose': v + .5, 'choose_std': 2., 'report': v - .5,
        'report_std': 2.5, 'protocol': {**PROTOCOL, 'seed': flags['seed'], 'frac': flags['frac'], **(protocol or {}),
                                        'sparsity': {'G': pruned, 'D': pruned}}}
        for step, v in ((steps // 2, value + 10.), (steps, value))])
    open(f'{path}/last.pt', 'w').close()
    if grids:
        for file in ('reals.png', 'samples/000000.png'):
            Image.new('RGB', (256, 256), (90, 90, 200)).save(f'{path}/{file}')


def flags_of(words):
    """The flags of a command that are among FLAGS, as the training would record them."""
    found = {}
    for word, value in zip(words, [*words[1:], '--']):
        key = word.removeprefix('--').replace('-', '_')
        if word.startswith('--') and key in FLAGS:
            value = '1' if value.startswith('--') else value
            kind = type(FLAGS[key]) if FLAGS[key] is not None else str
            found[key] = float(value) if key in ('adv_noise', 'ada_p', 'lecam') else kind(value)
    return found


def make_ticket(path, k, seed=''):
    keep = torch.from_numpy(np.random.default_rng(zlib.crc32(seed.encode())).random((8, 4, 3, 3)) < .8 ** k)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    torch.save({'model': 'sngan', 'mask': {n: {'c.weight': keep} for n in 'GD'}}, path)


def make(lines, wanted=lambda path: True, **other):
    """The directories that these lines would leave, those that are wanted."""
    for line in dict.fromkeys(line.split(' ', 2)[2] for line in lines):
        script, *words = line.split()
        out, flags = results.value(words, '--out'), flags_of(words)
        if script != 'find_ticket':
            k = (results.origin(flags.get('mask'), {})[1] or 2) if 'mask' in flags else 0
            if wanted(out):
                make_run(out, 1 - .8 ** int(''.join(filter(str.isdigit, out.split('/')[-1].split('-')[0])) or k),
                         model=script[6:], **flags, **other)
            continue
        f = results.finding(words)
        if wanted(out):
            os.makedirs(out, exist_ok=True)
            loop.write_json(f'{out}/args.json', {'command': f'python find_ticket.py {" ".join(words)}', 'identity': {}})
        for i in range(results.trainings(f['method'], f['rounds'])):
            if wanted(f'{out}/round{i}'):
                mask = f'{out}/ticket{i}.pt'
                rho = float(results.value(words, '--rho', .2))
                make_run(f'{out}/round{i}', 1 - (1 - rho) ** i, model=words[0], **{**flags, 'mask': mask}, **other)
        for i in {1, 2, 3, f['rounds']}:
            if wanted(f'{out}/ticket{i}.pt'):
                make_ticket(f'{out}/ticket{i}.pt', i, out)


def page(name, tmp_path, lines, *flags):
    """The page of an experiment from these lines."""
    (tmp_path / 'rows.txt').write_text('\n'.join(lines) + '\n')
    path = report.main(report.get_args([name, '--rows', 'rows.txt', '--out', f'page/{name}', *flags]))
    with open(path) as f:
        return f.read()


def table_of(text, start='| run |'):
    """{first cell: {title: cell}} of the tables of a page, and the rows' words in brackets under ''."""
    found, titles = {}, None
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip('|').split('|')]
        if line.startswith(start):
            titles = cells
        elif not line.startswith('|'):
            titles = None
        elif titles and not line.startswith('|---'):
            name, _, said = cells[0].partition(' (')
            found[name] = {'': said.removesuffix(')'), **dict(zip(titles[1:], cells[1:]))}
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made, and not drawn."""
    from matplotlib.figure import Figure
    monkeypatch.setattr(Figure, 'tight_layout', lambda self: None)
    monkeypatch.setattr(Figure, 'savefig', lambda self, path, **_: open(path, 'wb').close())


NAMES = list(experiments.EXPERIMENTS)


@pytest.mark.parametrize('name', NAMES)
def test_every_page_builds_from_nothing_and_says_so(name, here, unrendered):
    lines = rows_of(name, scale='smoke')
    text = page(name, here, lines)
    outs = {results.value(line.split(), '--out') for line in lines if ' train_' in line}
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
        elif i % 7 == 4:                                       # torn in the middle, and mended by what follows
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


@pytest.mark.parametrize('name', NAMES)
def test_every_page_builds_from_a_partial_and_broken_set(name, here, unrendered):
    lines = rows_of(name, scale='smoke')
    make(lines, lambda path: zlib.crc32(path.encode()) % 4 > 0)
    paths = sorted(os.path.dirname(p) for p in glob.glob('runs/**/log.jsonl', recursive=True))
    spoil(paths)
    for i, path in enumerate(sorted(glob.glob('runs/**/*.pt', recursive=True))):
        if os.path.getsize(path) and i % 2:                    # tickets
            with open(path, 'r+b') as f:
                f.truncate(100)
    os.makedirs(f'page/{name}')
    with open(f'page/{name}/leak.json', 'w') as f:
        f.write('[{"label": "held-')
    whole, rows = map(int, re.search(r'^(\d+) of (\d+) rows are whole', page(name, here, lines), re.M).groups())
    assert whole < rows


def test_what_is_wrong_with_a_run_stands_in_its_row_and_in_the_notes(here, unrendered):
    lines = rows_of('table6')
    make(lines)
    paths = sorted(glob.glob('runs/*/*-0.1/*')) + sorted(glob.glob('runs/*/*-1/*'))
    said = spoil(paths)
    text = page('table6', here, lines)
    assert len(paths) == 10 and len(said) == 8 and '2 of 10 rows are whole' in text
    notes = text[text.index('Notes:'):]
    for path in paths:
        family, name = os.path.split(path)
        part = text[text.index(f'## {family}\n'):]
        assert said.get(path, '') in table_of(part[:part.index('\n## ')] if '\n## ' in part else part)[name]['']
        assert path not in said or f'{said[path]}' in notes and name in notes
    assert f'unfinished at step 4 of 8, in {os.path.dirname(paths[0])}: {os.path.basename(paths[0])}' in notes


def test_figures_are_drawn_and_carry_the_protocol(here):
    lines = rows_of('fig7')
    make(lines)
    text = page('fig7', here, lines)
    assert Image.open('page/fig7/fig7.png').size[0] > 1000
    caption = text[text.index('![fig7.png]'):]
    assert '500 generated images, 3 sets of z, against x-test' in caption and 'share of data 0.1' in caption
    assert '33 of 33 rows are whole.' in text
    lines = rows_of('fig5')                                    # none of its runs is there
    assert '.png' not in page('fig5', here, lines)
    make(lines, grids=True)
    assert '![fig5-grids-stylegan2-emoji-faces-1.png]' in page('fig5', here, lines)


# ---- numbers

def test_the_numbers_of_a_table_are_those_of_the_files(here, unrendered):
    lines = rows_of('fig7')
    make(lines)
    place = 'runs/demo-8/sngan-fashion-mnist-0.1'
    make_run(f'{place}/oneshot3-plain', .488, 77., mask=f'{place}/oneshot3.pt', frac=.1)
    found = table_of(page('fig7', here, lines))
    assert len(found) == 33
    for name, path in (('dense-plain', 'find/round0'), ('ticket5-plain', 'find/round5'), ('rho0.4/round2',) * 2,
                       ('ticket8-advaug',) * 2, ('oneshot3-plain',) * 2):
        row, scores = found[name], [json.loads(line) for line in open(f'{place}/{path}/metrics.jsonl')]
        last, best = scores[-1], min(scores, key=lambda s: s['choose'])
        pruned = json.loads(open(f'{place}/{path}/log.jsonl').readlines()[-1])['sparsity_G']
        assert row['last FD-effnet'] == f"{last['all']:.1f} ± {last['all_std']:.1f}" and row['steps'] == '8'
        assert row['best on that half (step)'] == f"{best['report']:.1f} ± {best['report_std']:.1f} ({best['step']})"
        assert row['last on the reported half'] == f"{last['report']:.1f} ± {last['report_std']:.1f}"
        assert row['pruned'] == f'{pruned:.2%}' and row[''] == ''
        dense = json.loads(open(f'{place}/find/round0/metrics.jsonl').readlines()[-1])
        if name != 'dense-plain':
            assert row['to dense'].removeprefix('= ') == f"{last['all'] - dense['all']:+.1f} ± 4.0"
    assert found['oneshot3-plain']['last FD-effnet'] == '77.0 ± 2.0' and found['dense-plain']['to dense'] == ''


def test_a_run_costs_the_time_of_all_its_processes_and_of_all_its_ticket_took(here, unrendered):
    lines = rows_of('controls')
    make(lines)
    place = 'runs/demo-8/sngan-fashion-mnist-0.1'
    make_run(f'{place}/find/round1', .2, seconds=(3., 5.), mask=f'{place}/find/ticket1.pt')
    make_run(f'{place}/random3-plain', .488, seconds=(1.5, 3.), mask=f'{place}/random3.pt')        # cut after 2 seconds
    found = table_of(page('controls', here, lines))
    seconds = {name: row['CPU seconds (with finding)'] for name, row in found.items()}
    images = {name: row['1,000 images seen (with finding)'] for name, row in found.items()}
    assert seconds['dense-plain'] == '8 (8)' and seconds['ticket1-plain'] == '5 (13)'
    assert seconds['ticket3-reinit'] == '8 (29)' and seconds['ticket2-plain'] == '8 (21)'
    assert seconds['random3-plain'] == '5 (5)' and seconds['init3-plain'] == '8 (8)'               # 2 + 3; no training
    assert seconds['oneshot8-plain'] == seconds['early-plain'] == '8 (16)'
    assert seconds['random-layers3-plain'] == '8 (29)'                              # as the ticket that it is like
    assert seconds['small8-plain'] == '8 (8)'                                       # has only its number of weights
    assert images['ticket3-plain'] == '0.1 (0.5)' and found['ticket3-plain']['pruned'] == '48.80%'
    os.remove(f'{place}/find/round2/log.jsonl')
    found = table_of(page('controls', here, lines))
    assert found['ticket3-reinit']['CPU seconds (with finding)'] == '8 (≥ 21)'
    assert found['ticket2-plain'][''].startswith('unfinished at step 0')


def test_the_rival_at_equal_compute_is_picked_by_the_choosing_half(here, unrendered):
    lines = rows_of('table4')
    make(lines)
    place = 'runs/demo-8/sngan-fashion-mnist-0.1'
    for seed, (choose, told) in {1: (50., 300.), 2: (40., 200.), 3: (60., 100.), 4: (1., 1.)}.items():
        path = f'{place}/dense-seed{seed}'
        make_run(path, 0., 90., seed=seed, frac=.1)
        scores = [json.loads(line) for line in open(f'{path}/metrics.jsonl')]
        jsonl(f'{path}/metrics.jsonl', [scores[0], {**scores[1], 'choose': choose, 'report': told}])
    found = table_of(page('table4', here, lines), '| ticket | trainings |')
    assert found['ticket1-plain']['best dense'] == '300.0 ± 2.5 (seed 1)'           # seeds 0 and 1
    assert found['ticket3-plain']['best dense'] == '200.0 ± 2.5 (seed 2)'           # 0 to 3; the lowest score is of 3
    assert found['ticket3-plain']['trainings'] == '4' and '4 of 4 dense' in str(found['ticket3-plain'])
    os.remove(f'{place}/dense-seed2/metrics.jsonl')
    os.remove(f'{place}/dense-seed4/metrics.jsonl')
    found = table_of(page('table4', here, lines), '| ticket | trainings |')
    assert '3 of 4 dense trainings there' in str(found['ticket3-plain'])
    assert found['ticket3-plain']['best dense'] == '300.0 ± 2.5 (seed 1)'


def test_seeds_are_paired_and_their_interval_stands_apart_from_the_spread_over_z(here, unrendered):
    lines = rows_of('table6', seeds=(0, 1, 2))
    make(lines)
    place, values = 'runs/demo-8/sngan-fashion-mnist-0.1', {0: 100., 1: 140., 2: 90.}
    for seed, v in values.items():
        folder = place + f'-s{seed}' * (seed > 0)
        make_run(f'{folder}/dense-plain', 0., v, seed=seed, frac=.1)
        make_run(f'{folder}/dense-advaug', 0., v - 5., seed=seed, frac=.1, advaug='gd')
        make_run(f'{folder}/dense-noise', 0., v - 5. * seed, seed=seed, frac=.1, advaug='gd', adv_noise=.01)
    os.remove(f'{place}-s2/dense-noise/metrics.jsonl')
    text = page('table6', here, lines)
    found = table_of(text[text.index(f'## {place}\n'):])
    low, high = scipy.stats.t.interval(.95, 2, np.mean([*values.values()]), scipy.stats.sem([*values.values()]))
    assert found['dense-plain']['last FD-effnet'] == '110.0 ± 2.0'
    assert found['dense-plain']['over seeds'] == f'± {(high - low) / 2:.1f} (3 seeds)'
    assert found['dense-advaug']['to dense'] == '-5.0 ± 0.0 (3 seeds)'              # one by one: 0 in each
    assert found['dense-noise'][''] == 'no score (seed 2)' and found['dense-noise']['over seeds'].endswith('(2 seeds)')
    assert found['dense-noise']['to dense'] == f'= -2.5 ± {12.706 * 2.5:.1f} (2 seeds)'
    assert text.count('| dense-plain |') == 2                                       # a row for three seeds


def test_differences_within_the_spread_are_equal():
    def run(v, std, step=4, seed=0):
        return {'seed': seed, 'flags': {'res': 32}, 'model': 'x', 'scores': [
            {'step': step, 'all': v, 'all_std': std, 'protocol': {'n_ref': {}}}]}

    def change(*runs):
        return report.change({'dense': False, 'runs': runs}, dense)
    dense = [run(11., 1., 8), run(10., 1.), run(20., 1., 4, 1)]
    assert change(run(11.9, 1.)) == '= +1.9 ± 2.0' and change(run(12.1, .5)) == '+2.1 ± 1.5'
    assert change(run(12., .5, 8)) == '= +1.0 ± 1.5' and change(run(12., .5, 9)) == ''
    assert change(run(12., .5, 4, 2)) == '' and report.change({'dense': True, 'runs': dense}, dense) == ''
    assert change(run(12., .5), run(23., .5, 4, 1)) == '= +2.5 ± 6.4 (2 seeds)'


def test_the_shift_of_advaug_and_the_rows_beside_it_are_named(here, unrendered):
    lines = rows_of('fig8')
    make(lines)
    path = 'runs/demo-8/sngan-fashion-mnist-0.1/ticket3-advaug/log.jsonl'
    log = [json.loads(line) for line in open(path)]
    jsonl(path, [{**line, 'D_shift': shift} for line, shift in zip(log, (9., 9., .06, .07))])
    text = page('fig8', here, lines)
    assert table_of(text)['ticket3-advaug']['c'] == '0.0650' and table_of(text)['ticket3-plain']['c'] == '–'
    assert 'ticket3-advaug: AdvAug at D\'s last layer shifts the logits by c = 0.0650' in text
    assert 'Beside it: ticket3-advaug-g, ticket3-margin-1.045.' in text
    names = [*table_of(text)]
    at = names.index('ticket3-advaug')
    assert names[at + 1:at + 3] == ['ticket3-advaug-g', 'ticket3-margin-1.045']


def test_overlaps_are_those_of_the_masks_and_an_early_bird_says_what_it_saved(here, unrendered):
    lines = rows_of('controls')
    make(lines)
    place = 'runs/demo-8/sngan-fashion-mnist-0.1'
    make_run(f'{place}/early/round0', 0., steps=2, frac=.1)
    text = page('controls', here, lines)
    found = table_of(text, '| mask |')
    a, b = (loop.load(f'{place}/{name}/ticket8.pt')['mask']['G'] for name in ('random8', 'find'))
    row = found[f'{place}/random8']
    assert row['overlap'] == f'{prune.overlap(a, b):.2%}' and row['differ'] == f'{prune.hamming(a, b):.2%}'
    p, q = (prune.alive(m) / 288 for m in (a, b))
    assert row['by chance'] == f'{p * q / (p + q - p * q):.2%}'
    assert 'stopped at step 2 of 8: its ticket took 0.25 trainings, that of iterative pruning 3; 91.7% saved' in text
    named = report.tickets(report.expected('mask-quality', rows_of('mask-quality')))
    assert [*named] == ['0.1/find/ticket3', '0.2/find/ticket3', '1/find/ticket3', '0.1/find-diffaug/ticket3']
    make(rows_of('mask-quality'))
    names, matrices = report.overlaps(named)
    matrix = np.array(matrices['G'])
    assert names == [*named] and (np.diag(matrix) == 1).all() and (matrix == matrix.T).all() and matrix.min() < .5


def test_leaked_shares_stand_by_the_rows_that_they_are_of(here, unrendered):
    lines = rows_of('leak')
    make(lines)
    place = 'runs/demo-8/sngan-fashion-mnist-0.1'
    rows = [{'label': 'held-out images', 'turned': .1, 'mirrored': .2, 'n': 500},
            {'label': 'mixed', 'turned': .7, 'mirrored': .5, 'n': 500}]
    rows += [{'label': 'x', 'p': p, 'path': f'{place}/dense-{way}', 'turned': t, 'mirrored': .25, 'n': 400}
             for way, p, t in (('plain', None, .12), ('ada-0.5', .5, .3), ('ada-1.0', 1., .6), ('diffaug', None, .2))]
    os.makedirs('page/leak')
    loop.write_json('page/leak/leak.json', rows)
    found = table_of(page('leak', here, lines), '| images |')
    assert found['dense-ada-1.0'] == {'': '', 'turned': '60.0%', 'mirrored': '25.0%', 'of': '400'}
    _, told = report.leaked(report.expected('leak', lines), 'page/leak/leak.json')
    (_, fig, caption), = figures.leak([], '', {'leak': told})
    x, y = fig.axes[0].containers[0].lines[0].get_data()
    assert list(x) == [0., .5, 1.] and list(y) == [.12, .3, .6] and '400 of each' in caption
    assert {line.get_ydata()[0] for line in fig.axes[0].lines if line.get_linestyle() == ':'} == {.1, .2}


# ---- figures

def drawn(ax):
    """{label: [(x, y)]} of the error bars in a panel."""
    return {c.get_label(): list(zip(*c.lines[0].get_data())) for c in ax.containers if len(c.lines[0].get_xdata())}


def rows_with_points(name, **other):
    lines = rows_of(name)
    make(lines, **other)
    rows = report.expected(name, lines)
    report.prepare(rows)
    return rows, {row['name']: row['point'][0] for row in rows if row['point']}


def test_figure_7_has_rounds_ways_and_methods_over_the_remaining_weights(here):
    rows, value = rows_with_points('fig7')
    (_, fig, _), = figures.fig7(rows, 'FID', {})
    left, middle, right = map(drawn, fig.axes)
    names = [*(f'ticket{k}-plain' for k in range(8, 0, -1)), 'dense-plain']
    assert [y for _, y in left['rho 20 %']] == [value[name] for name in names]
    assert np.allclose([x for x, _ in left['rho 40 %']], [36., 60., 100.], atol=.01) and len(left['rho 10 %']) == 6
    assert [y for _, y in middle['on D']] == [value[f'{n}-advaug-d'] for n in ('ticket8', 'ticket3', 'dense')]
    assert right['slimming'][0][1] == value['slimming8-plain'] and right['slimming'][-1] == (100., value['dense-plain'])
    assert set(right) == {'iterative (IMP)', 'random', 'one-shot (OMP)', 'slimming'}


def test_figure_8_starts_from_the_ticket_without_advaug(here):
    rows, value = rows_with_points('fig8')
    (_, fig, _), = figures.fig8(rows, 'FID', {})
    for ax, ways in zip(fig.axes, (
            ['step-0.001', 'advaug', 'step-0.05', 'step-0.1'], ['advaug', 'pgd-3', 'pgd-5', 'pgd-7'],
            ['lambda-0.25', 'lambda-0.5', 'advaug', 'lambda-2'],
            [*(f'cut-d{k}' for k in range(1, 5)), 'advaug'], ['advaug', *(f'cut-g{k}' for k in range(2, 5))])):
        assert [y for _, y in drawn(ax)['ticket']] == [value[f'ticket3-{way}'] for way in ('plain', *ways)]
        level = {line.get_label(): line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2}
        assert level['AdvAug on G only'] == value['ticket3-advaug-g']
        assert level['no AdvAug, margin 1.045'] == value['ticket3-margin-1.045']


def test_figures_show_intervals_over_seeds_or_the_spread_over_z(here):
    lines = rows_of('table6', seeds=(0, 1))
    make(lines, lambda path: '-s1' not in path or 'noise' not in path)
    rows = report.expected('table6', lines)
    report.prepare(rows)
    for row in rows:
        values = [r['scores'][-1]['all'] for r in row['runs']]
        half = 2. if len(values) == 1 else abs(values[0] - values[1]) / 2 * 12.706
        assert row['point'] == pytest.approx((np.mean(values), half), rel=1e-4)
    assert sorted({len(row['runs']) for row in rows}) == [1, 2]


def test_the_radar_has_the_published_scores_in_grey_unless_nothing_differs(here):
    rows, value = rows_with_points('fig1')
    (_, fig, _), = figures.fig1(rows, 'FID', {})
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ['0 %', '36 %', '48.8 %']
    assert drawn(fig.axes[0])['tickets (0 %: dense)'][1][1] == value['ticket2-plain']
    for row in rows:                                           # the spokes are those of the tickets that are trained
        row['paper'] = {'dense-plain': [(36.58, True)], 'ticket1-plain': [(12., False)]}.get(row['name'], [])
    (_, fig, _), = figures.fig1(rows, 'FID', {})
    diamonds = [line for line in fig.axes[0].lines if line.get_marker() == 'd']
    assert [(line.get_ydata()[0], line.get_color()) for line in diamonds] == [(36.58, '#999999')]


# ---- published numbers

@pytest.mark.parametrize('change, cell', [
    ({}, 'FID 23.80 (Table 3)'), ({'frac': .2}, 'FID 17.43 (Table 3)'), ({'sparsity': 86.58}, 'FID 23.80 (Table 3)'),
    ({'sparsity': 36.}, '–'), ({'data': 'fashion-mnist'}, '–'), ({'frac': 5000}, '–'),
    ({'advaug': 'g'}, '–'), ({'advaug': 'gd', 'adv_noise': .01}, '–'), ({'model': 'sngan'}, '–'),
    ({'score': 'FD-effnet'}, 'other features'), ({'resize': 'TF1 bilinear 299'}, 'other features'),
    ({'n_gen': 500}, 'other samples'), ({'ref': 'cifar100-train'}, 'other reference'),
    ({'step': 100000}, 'other schedule<'), ({'n_gen': 50, 'step': 1}, 'other samples, schedule'),
    ({'batch': 128}, 'other settings'), ({'ch_g': 16}, 'other settings'), ({'res': 64}, 'other settings'),
    ({'lr_g': 1e-3}, 'other settings'), ({'subset': 'first'}, 'other settings'),
    ({'loss': 'logistic'}, 'other settings'), ({'advaug': 'gd', 'adv_step': .1}, 'other settings'),
    ({'aug': 'none', 'step': 100000}, 'FID 30.96 (Table 3)'), ({'aug': 'none'}, 'other schedule'),
    ({'data': 'imagenet', 'n_gen': 50000, 'ref': 'imagenet-test', 'batch': 256, 'd_steps': 2, 'frac': .25,
      'sparsity': 36., 'aug': 'none', 'step': 100000, 'advaug': 'gd', 'res': 128, 'adv_step': .001, 'lr_g': 5e-5},
     'FID 23.14 ± 0.07, IS 52.98 (Table 2)'),
    ({'data': 'imagenet', 'n_gen': 50000, 'ref': 'imagenet-test', 'batch': 256, 'd_steps': 2, 'frac': .25,
      'res': 128, 'adv_step': .001, 'lr_g': 5e-5, 'sparsity': 0.}, 'IS 74.2 (DiffAugment); other schedule<')])
def test_a_published_number_stands_beside_ours_only_where_nothing_differs(change, cell):
    values = dict(model='biggan', data='cifar100', frac=.1, aug='diffaug', advaug='none', adv_noise=None, d_steps=5,
                  batch=64, sparsity=67.23, score='FID', resize='half-pixel bilinear 299', n_gen=10000,
                  ref='cifar100-test', step=200000, res=32, ch_g=96, ch_d=96, lr_g=2e-4, subset='random', loss='hinge',
                  adv_step=.01) | change
    flags = {k: v for k, v in values.items() if k not in ('model', 'score', 'resize', 'n_gen', 'ref', 'step')}
    protocol = {k: values[k] for k in ('resize', 'n_gen', 'ref')}
    run = {'model': values['model'], 'flags': flags, 'sparsity': {'G': values['sparsity'] / 100, 'D': 0.},
           'scores': [{'step': values['step'], 'score': values['score'], 'protocol': protocol}]}
    text = results.theirs(run)
    assert cell in text and ('gray' in text) == ('other' in cell)


@pytest.mark.parametrize('change, cell', [
    ({'data': 'cifar100', 'frac': .1}, 'FID 12.20 ± 0.03 (Table 4); other settings'),
    ({'data': 'cifar100', 'frac': .1, 'lecam': .3}, 'FID 12.48 ± 0.04 (Table 4); other settings'),
    ({'data': 'cifar100', 'frac': .1, 'advaug': 'gd'}, 'FID 12.11 ± 0.05 (Table 4); other settings'),
    ({'data': 'cifar100', 'frac': .1, 'reinit': 1}, '–'),
    ({'aug': 'none', 'sparsity': 0.}, 'FID 89.18 (Table 5); other settings</span>; FID 80.20 (DiffAugment)'),
    ({'aug': 'diffaug', 'sparsity': 0.}, 'FID 46.87 (DiffAugment)'), ({'margin': 1.1}, '–'),
    ({'aug': 'none', 'sparsity': 0., 'init_from': 'x.pt', 'transfer': 'freezed'}, 'FID 41.87 (Table 5); other'),
    ({'aug': 'diffaug', 'sparsity': 0., 'batch': 5}, 'other settings'), ({'aug': 'none', 'init_from': 'x.pt'}, '–'),
    ({'aug': 'diffaug', 'sparsity': 0., 'ref': '100-shot-obama-test'}, 'other reference'), ({'small_dense': 'x'}, '–')])
def test_stylegan2_repeats_diffaugments_recipe_and_not_the_papers(change, cell):
    import train_stylegan2
    values = dict(data='100-shot-obama', frac=1., aug='ada', advaug='none', sparsity=48.8, n_gen=10000, adv_noise=None,
                  ref='cifar100-test') | change
    if 'shot' in values['data']:
        values = values | {'n_gen': 5000, 'ref': '100-shot-obama-train'} | change
    flags = {**train_stylegan2.FEWSHOT, 'preset': 'fewshot'}
    flags |= {k: v for k, v in values.items() if k not in ('sparsity', 'n_gen', 'ref')}
    protocol = {'resize': 'half-pixel bilinear 299', 'n_gen': values['n_gen'], 'ref': values['ref']}
    run = {'model': 'stylegan2', 'flags': flags, 'sparsity': {'G': values['sparsity'] / 100, 'D': 0.},
           'scores': [{'step': 18750, 'score': 'FID', 'protocol': protocol}]}
    assert cell in results.theirs(run) and ('gray' in results.theirs(run)) == ('other' in cell)


def test_published_numbers_stand_beside_tickets_of_iterative_pruning_alone(here, unrendered):
    lines = rows_of('controls', scale='paper')
    make(lines, name='FID', protocol={'resize': 'half-pixel bilinear 299', 'n_gen': 10000, 'ref': 'cifar10-test'})
    place = 'runs/paper/sngan-cifar10-0.1'
    for name, mask in (('ticket8-plain', 'find/ticket8.pt'), ('oneshot8-plain', 'oneshot8.pt')):
        make_run(f'{place}/{name}', 0., 50., data='cifar10', frac=.1, name='FID', mask=f'{place}/{mask}')
    found = table_of(page('controls', here, lines))
    assert 'Table 6' in found['dense-plain']['published'] and 'Table 6' in found['ticket8-plain']['published']
    assert found['oneshot8-plain']['published'] == found['small3-plain']['published'] == '–'
    like = results.finding('find_ticket sngan --method random-layers --like x/ticket3.pt --out y'.split())
    assert like['rounds'] == 3


# ---- everything below a folder, and hours

def test_everything_below_a_folder_is_one_page_with_its_costs(here, unrendered):
    lines = rows_of('fig2')
    make(lines, grids=True)
    make_run('runs/demo-8/unscored', 0., 1.)
    os.remove('runs/demo-8/unscored/metrics.jsonl')
    with open(report.main(report.get_args(['runs']))) as f:
        text = f.read()
    assert 'No scores yet: runs/demo-8/unscored.' in text and text.count('| run | steps |') == 2
    ticket = [line for line in text.splitlines() if line.startswith('| ticket 48.80% |')]
    assert len(ticket) == 2 * 2 and ticket[0].endswith('| 0.1 (0.5) | 8 (32) |')      # and its directory, twice
    files = os.listdir('runs/report')
    assert {'grids-sngan-fashion-mnist-0.1-32.png', 'score-sngan-fashion-mnist-1.0-32.png'} <= {*files}


@pytest.mark.parametrize('name', ['fig7', 'controls', 'mask-quality', 'leak', 'table6'])
def test_a_file_without_rows_or_with_a_torn_one_makes_a_page(name, here):
    assert '0 of 0 rows are whole' in page(name, here, ['', f'3 {name}', f'3 {name} train_sngan --data x --out'])


def test_names_without_rows_are_refused_in_a_sentence(here, capsys):
    for argv, words in ((['fig7'], 'fig7 needs its rows'), (['runs', '--rows', 'x'], 'runs with --rows is not an'),
                        (['fig7', '--rows', 'x'], '--rows x: no such file'), (['nothing'], 'no run with a log line')):
        with pytest.raises(SystemExit) as e:
            report.main(report.get_args(argv))
        assert e.value.code == 2 and words in capsys.readouterr().err


def test_hours_are_those_of_the_timed_runs(tmp_path):
    for model, preset, speed, d_steps in (('biggan', 'cifar10', 64., 5), ('sngan', 'demo', 16., 1)):
        os.makedirs(tmp_path / f'{model}-x')
        loop.write_json(tmp_path / f'{model}-x' / 'args.json', {'args': {'preset': preset, 'd_steps': d_steps}})
        (tmp_path / f'{model}-x' / 'log.jsonl').write_text(json.dumps({'step': 2, 'images_per_s': speed}) + '\n')
    find = 'find_ticket biggan --data x --steps 720'                                  # 5 s an iteration: an hour
    lines = report.hours(tmp_path, [
        f'1 a {find} --rounds 3', '3 a train_biggan --data x --steps 720', '3 b train_sngan --data x --steps 3600',
        f'1 b {find} --rounds 3', '3 b train_sngan --data x --steps 3600', f'1 c {find} --rounds 8 --method oneshot',
        f'1 c {find} --rounds 8 --method random', f'1 c {find} --rounds 8 --method init', f'1 d {find}',
        f'2 c {find} --method random-layers --like t.pt', f'1 c {find} --rounds 3 --method early-bird'])
    more = ['3 e train_sngan --data unknown --steps 5', '3 e train_sngan --data x --steps 5']
    assert report.hours(tmp_path, more) == ['e: 2 trainings, no estimate']
    assert lines == ['a: 4 trainings, about 4.0 hours of one process', 'b: 1 trainings, about 1.0 hours of one process',
                     'c: 2 trainings, about 2.0 hours of one process', 'd: 5 trainings, about 5.0 hours of one process']
