"""report.py on made-up run directories: pages of whole, partial and broken sets, their numbers, rivals, seeds."""
import json
import os
import random
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import experiments
import loop
import report
import results

FLAGS = dict(data='x', frac=1., res=32, seed=0, data_seed=0, steps=8, batch=16, d_steps=1, g_batch=16, aug='none',
             ada_p=None, aug_on='both', lecam=None, advaug='none', adv_noise=None, adv_step=.01, adv_pgd=1, adv_eps=None,
             adv_lambda_g=1., adv_lambda_d=1., adv_cut_g=1, adv_cut_d=-1, adv_sign='adversary', margin=1., mask=None,
             init_from=None, transfer=None, reinit=None, small_dense=None, slim=None, loss='hinge', preset='demo', ch_g=32,
             ch_d=32, lr_g=1e-3, lr_d=1e-3, subset='random')
PROTOCOL = dict(features='efficientnet-lite0 1280', weights='57934424', quantise='uint8', resize='bicubic 96', n_gen=500,
                n_ref={'choose': 50, 'report': 50, 'all': 100}, ref='x-test', frac=1., repeats=3, seed=0,
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
        'sparsity_G': pruned, 'sparsity_D': pruned, 'time': t, **extra} for i, t in enumerate((1., 2., *seconds), 1)])
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
            found[name] = {'': said.rstrip(')'), **dict(zip(titles[1:], cells[1:]))}
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
            said[path] = 'missing'
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
def test_every_page_builds_from_a_partial_and_broken_set_and_names_what_is_wrong(name, here, unrendered):
    lines = rows_of(name, scale='smoke')
    make(lines, lambda path: zlib.crc32(path.encode()) % 4 > 0)
    paths = sorted(os.path.dirname(p) for p in glob.glob('runs/**/log.jsonl', recursive=True))
    said = spoil(paths)
    for i, path in enumerate(sorted(glob.glob('runs/**/*.pt', recursive=True))):
        if os.path.getsize(path) and i % 2:                    # tickets
            with open(path, 'r+b') as f:
                f.truncate(100)
    os.makedirs(f'page/{name}', exist_ok=True)
    with open(f'page/{name}/leak.json', 'w') as f:
        f.write('[{"label": "held-')
    text = page(name, here, lines)
    asked = {line.split(' ', 3)[3] for line in lines}
    for path, words in said.items():
        if any(path.split('/')[-1] == results.value(a.split(), '--out').split('/')[-1] and 'train' not in a for a in asked):
            assert words in text
    found = table_of(text)
    for path, words in said.items():
        family, base = os.path.split(path)
        if base in found and sum(os.path.basename(p) == base for p in paths) == 1:
            assert words in (found[base][''] or found[base].get('', '') or str(found[base]))


def test_figures_are_drawn_and_carry_the_protocol(here):
    lines = rows_of('fig7')
    make(lines, grids=True)
    text = page('fig7', here, lines)
    assert Image.open('page/fig7/fig7.png').size[0] > 1000
    caption = text[text.index('![fig7.png]'):]
    assert '500 generated images, 3 sets of z, against x-test' in caption and 'share of data 0.1' in caption
    assert '33 of 33 rows are whole.' in text
    grids = page('leak', here, rows_of('leak'))                # none of its runs is there
    assert '.png' not in grids
    make(rows_of('leak'), grids=True)
    assert '![leak-grids-sngan-fashion-mnist-0.1.png]' in page('leak', here, rows_of('leak'))
