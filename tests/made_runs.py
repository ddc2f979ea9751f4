"""Run directories as trainings leave them, made up in milliseconds: for the tests of report.py and paper/."""
import json
import os
import random
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import runs
from paper import experiments

FLAGS = dict(
    data='x', frac=1., res=32, seed=0, data_seed=0, subset='random', preset='demo',
    steps=8, batch=16, d_steps=1, g_batch=16, ch_g=32, ch_d=32, lr_g=1e-3, lr_d=1e-3,
    loss='hinge', margin=1., lecam=None, slim=None,
    mask=None, init_from=None, transfer=None, reinit=None, small_dense=None,
    aug='none', aug_on='both', ada_p=None,
    advaug='none', adv_noise=None, adv_step=.01, adv_pgd=1, adv_eps=None, adv_sign='adversary',
    adv_lambda_g=1., adv_lambda_d=1., adv_cut_g=1, adv_cut_d=-1)
PROTOCOL = dict(
    features='efficientnet-lite0 1280', weights='57934424', quantise='uint8', resize='bicubic 96', n_gen=500,
    n_ref={'choose': 50, 'report': 50, 'all': 100}, ref='x-test', frac=1., repeats=3, seed=0,
    sparsity={'G': 0., 'D': 0.}, generator='EMA 0.99')
PLACE = 'runs/demo-8/sngan-fashion-mnist-0.1'                  # of most small rows


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made, and not drawn."""
    from matplotlib.figure import Figure
    monkeypatch.setattr(Figure, 'tight_layout', lambda self: None)
    monkeypatch.setattr(Figure, 'savefig', lambda self, path, **_: open(path, 'wb').close())


def lines_of(*names, scale='demo', seeds=(0,)):
    """The lines that paper/experiments.py prints, with 8 updates a training."""
    args = experiments.get_args([*names, '--scale', scale, '--seeds', *map(str, seeds), '--steps', '8'])
    return [' '.join(map(str, row)) for row in experiments.all_rows(args)]


def write_json(path, value):
    """As files.write_json, but not synced to the disk."""
    with open(path, 'w') as f:
        json.dump(value, f)


def read_jsonl(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def write_jsonl(path, records):
    with open(path, 'w') as f:
        f.writelines(json.dumps(r) + '\n' for r in records)


def make_run(path, pruned=0., value=None, seconds=(4., 8.), model='sngan', name='FD-effnet', protocol=None,
             grids=False, **flags):
    """A whole training: two scores, the last of them `value`, and four log lines.

    seconds: the times of the last two lines; after less than two a resumed process has written them."""
    os.makedirs(f'{path}/samples', exist_ok=True)
    flags = {**FLAGS, **flags}
    steps = flags['steps']
    value = value or random.Random(path).uniform(50, 150)
    write_json(f'{path}/args.json', {'command': 'python', 'identity': {'model': model}, 'args': flags,
                                     'versions': {'device': 'cpu', 'ranks': 1}})
    images = flags['frac'] if flags['frac'] > 1 else 6000 * flags['frac']
    write_json(f'{path}/subset.json', {'index': list(range(int(images)))})

    lines = []
    for i, time in enumerate((1., 2., *seconds), 1):
        lines.append({
            'step': steps * i // 4, 'kimg': steps * i / 4 * .016, 'time': time,
            'start': i > 2 and seconds[0] < 2, 'acc_train': .5 + i / 10, 'acc_held': .5, 'acc_gen': .6,
            'sparsity_G': pruned, 'sparsity_D': pruned})
        if 'd' in flags['advaug']:
            lines[-1]['D_shift'] = .05
        if flags['aug'] == 'ada':
            lines[-1] |= {'ada_p': .3, 'ada_r': .5}
    write_jsonl(f'{path}/log.jsonl', lines)

    protocol = {**PROTOCOL, 'seed': flags['seed'], 'frac': flags['frac'], **(protocol or {}),
                'sparsity': {'G': pruned, 'D': pruned}}
    write_jsonl(f'{path}/metrics.jsonl', [{
        'step': step, 'score': name, 'all': v, 'all_std': 2., 'choose': v + .5, 'choose_std': 2.,
        'report': v - .5, 'report_std': 2.5, 'protocol': protocol}
        for step, v in ((steps // 2, value + 10.), (steps, value))])
    open(f'{path}/last.pt', 'w').close()
    if grids:
        for file in ('reals.png', 'samples/000000.png'):
            Image.new('RGB', (256, 256), (90, 90, 200)).save(f'{path}/{file}')


def flags_of(words):
    """The flags of a command that are among FLAGS, as its training would record them."""
    found = {}
    for word, value in zip(words, [*words[1:], '--']):
        key = word.removeprefix('--').replace('-', '_')
        if word.startswith('--') and key in FLAGS:
            value = '1' if value.startswith('--') else value
            kind = type(FLAGS[key]) if FLAGS[key] is not None else str
            found[key] = float(value) if key in ('adv_noise', 'ada_p', 'lecam') else kind(value)
    return found


def make_ticket(path, k, seed=''):
    """A ticket of one random mask, as dense as after k rounds."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    keep = torch.from_numpy(rng.random((8, 4, 3, 3)) < .8 ** k)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    torch.save({'model': 'sngan', 'mask': {n: {'c.weight': keep} for n in 'GD'}}, path)


def make_all(lines, wanted=lambda path: True, **other):
    """The directories that the commands in these lines would leave, as far as they are wanted."""
    for line in dict.fromkeys(line.split(' ', 2)[2] for line in lines):
        script, *words = line.split()
        out = runs.flag_value(words, '--out')
        if script == 'find_ticket':
            make_finding(out, words, wanted, **other)
        elif wanted(out):
            flags = flags_of(words)
            k = (runs.ticket_origin(flags['mask'], {})[1] or 2) if 'mask' in flags else 0
            in_name = ''.join(filter(str.isdigit, out.split('/')[-1].split('-')[0]))
            pruned = 1 - .8 ** int(in_name or k)
            make_run(out, pruned, model=script.removeprefix('train_'), **{**flags, **other})


def make_finding(out, words, wanted, **other):
    """The directory of a find_ticket command, its rounds and its tickets."""
    finding = runs.parse_finding(words)
    rho = float(runs.flag_value(words, '--rho', .2))
    if wanted(out):
        os.makedirs(out, exist_ok=True)
        command = ' '.join(['python', 'find_ticket.py', *words])
        write_json(f'{out}/args.json', {'command': command, 'identity': {}})
    for i in range(runs.training_count(finding['method'], finding['rounds'])):
        if wanted(f'{out}/round{i}'):
            flags = {**flags_of(words), 'mask': f'{out}/ticket{i}.pt', **other}
            make_run(f'{out}/round{i}', 1 - (1 - rho) ** i, model=words[0], **flags)
    for i in {1, 2, 3, finding['rounds']}:
        if wanted(f'{out}/ticket{i}.pt'):
            make_ticket(f'{out}/ticket{i}.pt', i, out)


def table_of(text, start='| run |'):
    """{first cell: {title: cell}} of the tables of a page; under '' what the first cell has in brackets."""
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
