"""generate.py on tiny random networks of the three kinds: what an image depends on, loops, mixed styles, sheets."""
import copy
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import files
import generate
import loop
import metrics
import prune
from data import images
from models import biggan, sngan, stylegan2, transfer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHAPES = {'sngan': dict(ch_g=8), 'biggan': dict(ch_g=8, classes=3, narrow=False),
          'stylegan2': dict(ch_g=512, ch_max=16, mapping=2, z_dim=16, w_dim=16),
          'conditional': dict(ch_g=512, ch_max=16, mapping=2, z_dim=16, w_dim=16, classes=3)}


def network(kind):
    """A random network whose classes, BN statistics, noise and average w show in its images."""
    with loop.seeded(0):
        a = SHAPES[kind]
        if kind == 'sngan':
            net = sngan.Generator(32, 8)
        elif kind == 'biggan':
            net = biggan.Generator(32, 3, 8)
        else:
            net = stylegan2.Generator(32, 512, 16, 2, a.get('classes', 0), 16, 16)
            net.mapping.w_avg.copy_(torch.randn(16))
        for name, p in net.named_parameters():
            if 'noise_strength' in name or 'torgb.weight' in name:
                p.data.fill_(.5) if p.ndim == 0 else p.data.mul_(.1)               # away from black and white
        return net.eval()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """{kind: run directory} with a best.pt, which needs no settling."""
    root = tmp_path_factory.mktemp('runs')
    for kind, shape in SHAPES.items():
        (root / kind).mkdir()
        model = 'stylegan2' if kind == 'conditional' else kind
        args = dict(res=32, data='emoji-faces', frac=.1, data_seed=3, subset='first', crop='centre', **shape)
        torch.save({'model': model, 'args': args, 'step': 1, 'score': {}, 'E': network(kind).state_dict()},
                   root / kind / 'best.pt')
        if 'classes' in shape:
            (root / kind / 'subset.json').write_text(json.dumps({'classes': ['bag', 'coat', 'dress']}))
    return {kind: str(root / kind) for kind in SHAPES}


def make(run, *flags):
    return generate.main(generate.get_args([run, '--which', 'best', '--device', 'cpu', *map(str, flags)]))


def refused(capsys, call, *words):
    with pytest.raises(SystemExit) as e:
        call()
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count('\n') == 1 and all(w in error for w in words), error


def tiles(path, size=32):
    """The images of a grid [rows, columns, 3, size, size]."""
    x = np.array(Image.open(path))
    return torch.from_numpy(x.reshape(x.shape[0] // size, size, x.shape[1] // size, size, 3).transpose(0, 2, 4, 1, 3))


def near(a, b):
    """Equal but for round-off: a rare value by one grey level."""
    d = (a.int() - b.int()).abs()
    return d.max() <= 1 and d.float().mean() < 1e-3


# ---- samples

@pytest.mark.parametrize('kind', SHAPES)
@torch.no_grad()
def test_a_sample_must_be_the_network_at_the_latent_of_its_seed(kind, runs):
    net, y = network(kind), [2, 0, 1] if 'classes' in SHAPES[kind] else None
    net.noise = 'const'
    z = loop.latents([4, 0, 9], net.z_dim, 'cpu')
    x = metrics.to_uint8(net(z) if y is None else net(z, torch.tensor(y)))
    loaded = generate.load(os.path.join(runs[kind], 'best.pt'), 'cpu')
    assert near(generate.sample(loaded, [4, 0, 9], y), x) and x.float().std() > 5
    assert not near(generate.sample(loaded, [4, 1, 9], y), x)
    if y:
        assert not near(generate.sample(loaded, [4, 0, 9], 0), x)
        assert near(generate.sample(loaded, [4], 2), x[:1])


@pytest.mark.parametrize('kind', SHAPES)
def test_an_image_must_depend_on_its_seed_alone(kind):
    net, y = network(kind), 1 if 'classes' in SHAPES[kind] else None
    modes = ['const', 'none', 'random'] if generate.has_styles(net) else ['']
    made = []
    for net.noise in modes:
        before = torch.get_rng_state()
        x = generate.sample(net, range(9), y)
        assert x.dtype == torch.uint8 and x.shape == (9, 3, 32, 32) and torch.equal(torch.get_rng_state(), before)
        assert near(generate.sample(net, range(9), y, batch=4), x) and near(generate.sample(net, [7], y), x[7:8])
        made.append(x)
    if len(modes) == 3:
        assert not any(near(a, b) for a, b in ((made[0], made[1]), (made[0], made[2]), (made[1], made[2])))


def test_sample_must_refuse_what_would_give_other_images():
    for kind, kwargs in (('sngan', dict(y=0)), ('biggan', {}), ('conditional', {}), ('sngan', dict(psi=.5))):
        with pytest.raises(ValueError):
            generate.sample(network(kind), [0], **kwargs)
    with pytest.raises(ValueError):
        generate.sample(network('stylegan2').train(), [0])


def test_a_last_checkpoint_must_be_settled_only_where_there_is_batch_norm(tmp_path, runs, monkeypatch):
    batches = []
    monkeypatch.setattr(loop, 'settling', lambda dim, device, classes=0: (
        batches.append(1) or (torch.randn(4, dim),) for _ in range(2)))
    for kind, settled in (('sngan', 2), ('stylegan2', 0)):
        saved = files.load(os.path.join(runs[kind], 'best.pt'))
        del saved['score']
        torch.save(saved, tmp_path / 'last.pt')
        batches.clear()
        state = generate.load(str(tmp_path / 'last.pt'), 'cpu').state_dict()
        moved = {name for name in state if not torch.equal(state[name], saved['E'][name])}
        assert len(batches) == settled and all('running' in name or 'num_batches' in name for name in moved)
        assert bool(moved) == bool(settled)


@torch.no_grad()
def test_a_checkpoint_with_a_miner_is_sampled_through_it(runs, tmp_path):
    path = os.path.join(runs['stylegan2'], 'best.pt')
    saved, plain = files.load(path), generate.load(path, 'cpu')
    mined = network('stylegan2')
    transfer.mine_(mined)
    torch.save({**saved, 'E': mined.state_dict()}, tmp_path / 'best.pt')
    net, z = generate.load(str(tmp_path / 'best.pt'), 'cpu'), torch.randn(4, plain.z_dim)
    through = mined.synthesis(mined.mapping(mined.miner(z))[:, None].repeat(1, mined.num_ws, 1), 'const')
    without = mined.synthesis(mined.mapping(z)[:, None].repeat(1, mined.num_ws, 1), 'const')
    assert torch.allclose(net(z), through, atol=1e-5) and not torch.allclose(net(z), without, atol=1e-2)


# ---- noise and truncation

def test_the_flag_must_set_the_noise(runs, tmp_path):
    net = network('stylegan2')
    for net.noise in ('none', 'random'):
        x = make(runs['stylegan2'], '--seeds', '0-2', '--noise', net.noise, '--out', tmp_path / 'g.png')
        assert near(x, generate.sample(net, range(3)))


@torch.no_grad()
def test_truncation_must_move_w_towards_its_average(runs, tmp_path):
    net = network('stylegan2')
    net.noise, centre = 'const', net.mapping.w_avg
    whole, half, front = (generate.points(net, [1, 2], None, *t) for t in ((1., None), (.5, None), (.5, 3)))
    assert torch.allclose(half, centre + .5 * (whole - centre), atol=1e-5)
    assert torch.equal(front[:, :3], half[:, :3]) and torch.equal(front[:, 3:], whole[:, 3:])
    mean = make(runs['stylegan2'], '--psi', 0, '--seeds', '0-2', '--out', tmp_path / 'g.png')
    assert near(mean, generate.render(net, centre.expand(3, net.num_ws, -1)))
    cut = make(runs['stylegan2'], '--psi', .5, '--truncation-cutoff', 3, '--seeds', '1,2', '--out', tmp_path / 'g.png')
    assert near(cut, generate.render(net, front)) and not near(cut, generate.render(net, half))


# ---- pictures

@pytest.mark.parametrize('kind, shape', [('sngan', (8, 8)), ('stylegan2', (8, 8)), ('biggan', (3, 8))])
def test_a_grid_must_hold_the_samples_in_order(kind, shape, runs, tmp_path):
    make(runs[kind], '--out', tmp_path / 'g.png')
    net, seeds, y = network(kind), [*range(64)], None
    if kind == 'biggan':
        seeds, y = [*range(8)] * 3, torch.arange(3).repeat_interleave(8)
    net.noise, made = 'const', tiles(tmp_path / 'g.png')
    assert made.shape[:2] == shape and near(made.flatten(0, 1), generate.sample(net, seeds, y))


def test_each_must_write_every_seed_by_name_and_class(runs, tmp_path):
    assert make(runs['sngan'], '--seeds', '3-70', '--each', tmp_path / 'a') is None       # more than one batch
    names = sorted(os.listdir(tmp_path / 'a'))
    assert names == [f'{s:06d}.png' for s in range(3, 71)]
    assert near(tiles(tmp_path / 'a' / '000070.png')[0], generate.sample(network('sngan'), [70]))
    make(runs['biggan'], '--seeds', '5-38', '--classes', 'dress,0', '--each', tmp_path / 'b')              # 68 images
    assert sorted(os.listdir(tmp_path / 'b')) == ['0000-bag', '0002-dress']
    for name, c, seed in (('0002-dress', 2, 6), ('0000-bag', 0, 38)):
        assert near(tiles(tmp_path / 'b' / name / f'{seed:06d}.png')[0], generate.sample(network('biggan'), [seed], c))


def test_a_mixed_sheet_must_show_sources_and_take_the_layers_of_its_columns(runs, tmp_path):
    net = network('stylegan2')
    net.noise = 'const'
    make(runs['stylegan2'], '--mix', '0,1', '7,1,8', '--mix-layers', '2-4', '--out', tmp_path / 'm.png')
    sheet = tiles(tmp_path / 'm.png')                                              # [3, 4, 3, 32, 32]
    assert sheet.shape[:2] == (3, 4) and (sheet[0, 0] == 255).all()
    assert near(sheet[0, 1:], generate.sample(net, [7, 1, 8])) and near(sheet[1:, 0], generate.sample(net, [0, 1]))
    assert near(sheet[2, 2], sheet[2, 0])                                          # 1 with styles of 1
    ws = generate.points(net, [0, 8]).detach()
    ws[0, 2:5] = ws[1, 2:5]
    with torch.no_grad():
        assert near(sheet[1, 3], generate.render(net, ws[:1])[0]) and not near(sheet[1, 3], sheet[1, 0])
    make(runs['stylegan2'], '--mix', '0,1', '7,1,8', '--mix-layers', '0-7', '--psi', '.5', '--out', tmp_path / 'm.png')
    sheet = tiles(tmp_path / 'm.png')
    assert near(sheet[1, 1:], sheet[0, 1:]) and near(sheet[0, 1:], generate.sample(net, [7, 1, 8], psi=.5))


# ---- loops

def test_the_spline_must_be_closed_smooth_and_through_its_points():
    p, t = torch.randn(5, 2, 3).double(), torch.linspace(0, 5, 41).double()[:-1]
    slope = (torch.roll(p, -1, 0) - torch.roll(p, 1, 0)) / 2                       # Catmull and Rom 1974
    for time, ours in zip(t.tolist(), generate.spline(p, t)):                      # the basis of Hermite
        i, u = int(time), time % 1
        j = (i + 1) % 5
        points = (2 * u ** 3 - 3 * u ** 2 + 1) * p[i] + (3 * u ** 2 - 2 * u ** 3) * p[j]
        slopes = (u ** 3 - 2 * u ** 2 + u) * slope[i] + (u ** 3 - u ** 2) * slope[j]
        assert torch.allclose(ours, points + slopes, atol=1e-12)
    assert torch.equal(generate.spline(p, torch.arange(5).double()), p)
    assert torch.allclose(generate.spline(p, torch.tensor([4.999999]).double())[0], p[0], atol=1e-5, rtol=0)


def test_arcs_must_keep_the_norm_and_turn_evenly_around_the_middle():
    p = torch.nn.functional.normalize(torch.randn(3, 8).double(), dim=1) * 2
    t = torch.linspace(0, 3, 61).double()[:-1]
    x = generate.arcs(p, t)
    assert torch.allclose(x.norm(dim=1), torch.full((60,), 2.).double()) and torch.allclose(x[::20], p)
    assert torch.allclose(x[10], (p[0] + p[1]) / (p[0] + p[1]).norm() * 2)         # t 1/2: half of the angle
    steps = (torch.roll(x, -1, 0) - x).norm(dim=1)
    assert steps[[0, 19, 20, 59]].max() < steps[10] / 5                            # at rest in the seeds, the last too
    equal = generate.arcs(p[:1].repeat(2, 1), t[:30])
    assert torch.allclose(equal, p[:1].expand(30, -1))


@pytest.mark.parametrize('kind', ['sngan', 'stylegan2', 'biggan'])
def test_a_loop_must_pass_its_seeds_and_come_back(kind, runs, tmp_path):
    net, y = network(kind), [0, 2] if kind == 'biggan' else [None]
    net.noise = 'const'
    flags = ['--interpolate', '1,5,9', *(['--classes', 'bag,dress'] if kind == 'biggan' else [])]
    x = make(runs[kind], *flags, '--frames', 30, '--out', tmp_path / 'l.gif')
    assert x.shape == (len(y), 30, 3, 32, 32)
    for c, images_of_c in zip(y, x):
        assert near(images_of_c[::10], generate.sample(net, [1, 5, 9], c))
        steps = (images_of_c.roll(-1, 0).int() - images_of_c.int()).abs().float().mean((1, 2, 3))
        assert 0 < steps.max() < (images_of_c[10].int() - images_of_c[0].int()).abs().float().mean() / 2
    film = Image.open(tmp_path / 'l.gif')
    assert film.size == (32 * len(y), 32) and film.info['loop'] == 0 and film.info['duration'] == 50
    assert film.n_frames > 25                                  # equal neighbours, at rest in a seed, become one
    first = torch.from_numpy(np.asarray(film.convert('RGB')).copy()).permute(2, 0, 1)
    assert (first.int() - torch.cat([*x[:, 0]], 2).int()).abs().float().mean() < 8                # 256 colours
    make(runs[kind], *flags, '--out', tmp_path / 's.png')
    strip = tiles(tmp_path / 's.png')                                              # a row per class and seed
    assert strip.shape[:2] == (3 * len(y), 8) and near(strip[:3, 0], generate.sample(net, [1, 5, 9], y[0]))
    make(runs[kind], *flags, '--frames', 4, '--columns', 2, '--out', tmp_path / 's.png')
    assert tiles(tmp_path / 's.png').shape[:2] == (2 * len(y), 2)


def test_a_film_must_reach_ffmpeg_whole_or_be_refused(runs, tmp_path, monkeypatch, capsys):
    program, out = tmp_path / 'bin' / 'ffmpeg', tmp_path / 'l.mp4'
    program.parent.mkdir()
    call = lambda: make(runs['sngan'], '--interpolate', '0,1', '--frames', 5, '--out', out)

    def pretend(script):
        program.write_text(f'#!/bin/sh\n{script}\n')
        program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent))
    refused(capsys, call, 'ffmpeg', '.gif')
    monkeypatch.setenv('PATH', f'{program.parent}:/bin:/usr/bin')
    pretend('echo no such codec >&2; exit 1')
    refused(capsys, call, 'no such codec', '.gif')
    assert os.listdir(tmp_path) == ['bin']
    pretend('echo "$*" | grep -q -- "-s 32x32 -r 20 -i -" && for last; do :; done && cat > "$last"')
    assert call()[0].permute(0, 2, 3, 1).contiguous().numpy().tobytes() == out.read_bytes()


def test_the_history_of_a_run_must_be_its_grids_in_order_with_the_last_one_held(tmp_path, capsys):
    samples = tmp_path / 'run' / 'samples'
    samples.mkdir(parents=True)
    for step, grey in ((0, 20), (50, 90), (1000000, 230), (300, 160)):
        images.save_grid(samples / f'{step:06d}.png', torch.full((8, 3, 8, 8), grey, dtype=torch.uint8))
    (samples / 'notes.txt').write_text('')
    run = lambda *flags: generate.main(generate.get_args([str(tmp_path / 'run'), '--history', *map(str, flags)]))
    x = run('--out', tmp_path / 'h.gif')                       # without any checkpoint
    assert x[:4, 0, -1, -1].tolist() == [20, 90, 160, 230] and len({tuple(v) for v in x[3:].flatten(1).tolist()}) == 1
    film = Image.open(tmp_path / 'h.gif')
    durations = []
    for film_frame in range(film.n_frames):
        film.seek(film_frame)
        durations.append(film.info['duration'])
    assert film.n_frames == 4 and durations == [500, 500, 500, 2500] and film.size == (64, 8 + 14)

    refused(capsys, lambda: run('--which', 'best'), '--which best does nothing here')
    refused(capsys, lambda: run('--out', 'x.png'), '--out x.png')
    (samples / '000400.png').write_bytes((samples / '000300.png').read_bytes()[:60])
    with pytest.raises(files.Damaged, match='000400.png is damaged'):
        run('--out', tmp_path / 'h.gif')
    refused(capsys, lambda: generate.main(generate.get_args([str(tmp_path), '--history'])), 'no samples/*.png')


# ---- a network to take away

FAR_AWAY = """
import json, sys, torch
extra = {'metadata.json': ''}
program = torch.export.load('g.pt2', extra_files=extra)
G = program.module()
made = [G(*inputs) for inputs in torch.load('inputs.pt')]
ours = [name for name in ('generate', 'loop', 'models', 'data') if name in sys.modules]
zeros = sum(int((w == 0).sum()) for w in program.state_dict.values() if w.ndim == 4)
torch.save((made, json.loads(extra['metadata.json']), zeros, ours, sys.path), 'made.pt')
"""


@pytest.mark.parametrize('kind', [
    'sngan', pytest.param('biggan', marks=pytest.mark.slow), pytest.param('conditional', marks=pytest.mark.slow)])
@torch.no_grad()
def test_an_exported_generator_makes_the_same_images_without_this_repository(kind, runs, tmp_path, capsys):
    saved = files.load(os.path.join(runs[kind], 'best.pt'))
    net = network(kind)
    dense = prune.ones(net)
    masks = prune.random(dense, int(.64 * prune.total(dense)), np.random.default_rng(0))
    prune.apply_(net, masks)
    (tmp_path / 'run').mkdir()
    torch.save({**saved, 'E': net.state_dict(), 'masks': {'G': masks, 'D': {}}}, tmp_path / 'run' / 'best.pt')
    away = tmp_path / 'away'
    away.mkdir()
    make(str(tmp_path / 'run'), '--export', away / 'g.pt2')
    assert '36.0% pruned' in capsys.readouterr().out and os.listdir(away) == ['g.pt2']
    with zipfile.ZipFile(away / 'g.pt2') as archive:           # nor a path of the machine that made it
        assert not any(ROOT.encode() in archive.read(name) for name in archive.namelist())

    # Another process, in a folder with nothing but the file: batches of 1 and 5, and another psi each
    inputs, right = [], []
    net.noise = 'const'
    for n, psi in ((1, 1.), (5, .6)):
        z = torch.randn(n, net.z_dim)
        y = [torch.arange(n) % 3] if 'classes' in SHAPES[kind] else []
        if generate.has_styles(net):
            inputs.append([z, *y, torch.tensor(psi)])
            right.append(net.synthesis(net.styles(z, *y, psi=psi)))
        else:
            inputs.append([z, *y])
            right.append(net(z, *y))
    torch.save(inputs, away / 'inputs.pt')
    subprocess.run([sys.executable, '-I', '-c', FAR_AWAY], cwd=away, check=True)
    made, about, zeros, ours, places = torch.load(away / 'made.pt')
    assert not ours and ROOT not in places
    for a, b in zip(made, right):
        assert a.std() > .05 and torch.allclose(a, b, atol=1e-5) and not a.requires_grad

    assert zeros >= prune.total(masks) - prune.alive(masks) > 0
    assert about['sparsity'] == pytest.approx(.36, abs=.001) and about['res'] == 32
    assert len(about['inputs']) == len(inputs[0])
    assert len(about['classes']) == SHAPES[kind].get('classes', 0)


# ---- neighbours

class Colours:
    """Features that are the images at 4 x 4 px: as metrics.extractor returns, in no time."""
    name, score, dim, classes, device, protocol = 'colours', 'FD', 48, 0, 'cpu', {'features': 'colours'}

    def __call__(self, x):
        return metrics.resize(x, 4, 'clean').flatten(1), None


def test_a_copy_must_be_found_beside_its_training_image(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, 'extractor', lambda features, device, res: Colours())
    (tmp_path / 'photos').mkdir()
    train = generate.sample(network('sngan'), range(20, 60))
    train[7], train[3] = generate.sample(network('sngan'), [101, 102])
    for i, x in enumerate(train):
        images.save_grid(tmp_path / 'photos' / f'{i:02d}.png', x[None], 1)
    make(runs['sngan'], '--nearest', tmp_path / 'photos', '--seeds', '100-103', '--out', tmp_path / 'n.png')
    assert '4 samples' in (said := capsys.readouterr().out) and '40 images of photos' in said
    sheet = np.asarray(Image.open(tmp_path / 'n.png'))
    tile = lambda row, x: sheet[20 + row * 110:116 + row * 110, x:x + 96].astype(int)
    same = [abs(tile(row, 0) - tile(row, 120)).max() <= 3 for row in range(4)]     # sample and its nearest
    assert same == [False, True, True, False] and '50.0%' in said
    assert all(abs(tile(row, 576) - tile(row, 696)).max() <= 3 for row in range(2))               # the closest ones


def test_the_training_images_must_be_those_of_the_run(runs, tmp_path, monkeypatch, capsys):
    args = lambda *flags: generate.get_args([runs['sngan'], '--which', 'best', '--nearest', *flags])
    saved = files.load(os.path.join(runs['sngan'], 'best.pt'))
    cut = generate.load_training_set(args(), saved)
    assert torch.equal(cut.images, images.load('emoji-faces', frac=.1, seed=3, subset='first', res=32).images)
    (tmp_path / 'args.json').write_text(json.dumps({'args': {**saved['args'], 'frac': 5, 'subset': 'random'}}))
    other = generate.load_training_set(args(str(tmp_path)), saved)
    assert torch.equal(other.images, images.load('emoji-faces', frac=5, seed=3, res=32).images)
    assert len(generate.load_training_set(args('emoji-faces'), saved).images) == 100
    for data in ({'data': 'gone/photos'}, {'data': None}):
        gone = {'args': saved['args'] | data}
        refused(capsys, lambda: generate.load_training_set(args(), gone), '--nearest FOLDER')


# ---- refusals

@pytest.mark.parametrize('argv, words', [
    (['nowhere'], 'nowhere'), (['RUN', '--seeds', '3-1'], '--seeds 3-1'), (['RUN', '--columns', '0'], '--columns 0'),
    (['RUN', '--seeds', ''], '--seeds'), (['RUN', '--each', 'x', '--mix', '1', '2'], '--each and --mix'),
    (['RUN', '--frames', '9'], '--frames 9'), (['RUN', '--mix-layers', '1'], '--mix-layers 1'),
    (['RUN', '--features', 'effnet'], '--features effnet'), (['RUN', '--each', 'x', '--columns', '4'], '--columns 4'),
    (['RUN', '--interpolate', '1,2', '--columns', '4'], '--columns 4'), (['RUN', '--interpolate', '1'], 'two or more'),
    (['RUN', '--interpolate', '1,2', '--seeds', '1'], '--seeds 1'), (['RUN', '--each', 'x', '--out', 'y'], '--out y'),
    (['RUN', '--interpolate', '1,2', '--out', 'x.avi'], 'x.avi'), (['RUN', '--out', 'loop.gif'], 'loop.gif'),
    (['RUN', '--out', 'nowhere/x.png'], 'nowhere/x.png'), (['RUN', '--truncation-cutoff', '2'], '--psi'),
    (['RUN', '--noise', 'random', '--mix', '1', '2'], '--noise random'), (['RUN', '--mix', 'a', '2'], '--mix a'),
    (['RUN', '--mix', '0-9999', '0-9999'], 'too many'), (['RUN', '--psi', 'nan'], '--psi nan'), (['RUN', '--psi', 'inf'], '--psi inf'),
    (['RUN', '--export', 'g.pt'], '--export g.pt: name the file .pt2'), (['RUN', '--export', 'no/g.pt2'], '--export no/g.pt2'),
    (['RUN', '--export', 'g.pt2', '--psi', '.5'], '--psi 0.5'), (['RUN', '--export', 'g.pt2', '--out', 'x.png'], '--out x.png'),
    (['RUN', '--export', 'g.pt2', '--classes', '0'], '--classes 0'), (['RUN', '--export', 'g.pt2', '--noise', 'random'], 'no seed'),
    (['RUN', '--columns', '1' + '0' * 30], '--columns 1'), (['RUN', '--seeds', '0-999999999999'], 'too many'),
    (['RUN', '--seeds', '0-999999,5'], 'too many'), (['RUN', '--seeds', '9' * 5000], 'at most 18 digits'),
    (['RUN', '--seeds', '1' + '0' * 30], 'at most 18 digits'), (['RUN', '--seeds', '\xb2'], '--seeds \xb2')])
def test_contradictions_must_be_refused_in_one_sentence(argv, words, tmp_path, capsys):
    torch.save({}, tmp_path / 'last.pt')
    refused(capsys, lambda: generate.get_args([str(tmp_path) if a == 'RUN' else a for a in argv]), words)
    refused(capsys, lambda: generate.main(generate.get_args([str(tmp_path)])), 'last.pt')


@pytest.mark.parametrize('kind, flags, words', [
    ('sngan', ['--psi', '.7'], ['--psi', 'sngan']), ('biggan', ['--noise', 'none'], ['--noise', 'biggan']),
    ('sngan', ['--mix', '1', '2'], ['--mix']), ('sngan', ['--classes', '0'], ['--classes 0', 'unconditional']),
    ('sngan', ['--classes', ''], ['--classes ', 'unconditional']), ('biggan', ['--classes', ''], ['--classes ']),
    ('biggan', ['--classes', '3'], ['--classes 3', '0-2']), ('conditional', ['--classes', 'hat'], ['hat', 'coat']),
    ('conditional', ['--mix', '1', '2', '--classes', '0,1'], ['--classes 0,1', '--mix']),
    ('stylegan2', ['--mix', '1', '2', '--mix-layers', '7,8'], ['--mix-layers', '0-7']),
    ('stylegan2', ['--psi', '.5', '--truncation-cutoff', '9'], ['--truncation-cutoff 9', '8']),
    ('sngan', ['--nearest', '--seeds', '1'], ['--nearest', '1 seeds'])])
def test_flags_that_do_nothing_for_a_network_must_be_refused(kind, flags, words, runs, tmp_path, capsys):
    refused(capsys, lambda: make(runs[kind], *flags, '--out', tmp_path / 'x.png'), *words)
    assert not os.listdir(tmp_path)


def test_a_picture_must_lie_beside_its_network_and_never_over_that_of_another(runs, tmp_path, monkeypatch, capsys):
    here = tmp_path / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ('a', 'b'):                                    # two checkpoints of other places in one folder
        shutil.copy(os.path.join(runs['sngan'], 'best.pt'), tmp_path / f'{name}.pt')
    run = tmp_path / 'run'
    (run / 'samples').mkdir(parents=True)
    shutil.copy(tmp_path / 'a.pt', run / 'best.pt')
    Image.new('RGB', (8, 8)).save(run / 'samples' / '000001.png')

    few = ['--seeds', '0-1']
    make('../a.pt', *few)
    make('../b.pt', *few)
    make('../run', *few)
    make('../run/best.pt', '--interpolate', '1,2', '--frames', '2')
    generate.main(generate.get_args(['../run', '--history']))
    assert not os.listdir(here)
    assert {'a-grid.png', 'b-grid.png'} < {*os.listdir(tmp_path)}
    assert {*os.listdir(run)} == {'best.pt', 'samples', 'grid.png', 'loop.gif', 'history.gif'}
    assert '../run/grid.png: seeds 0-1 of ../run/best.pt' in capsys.readouterr().out

    make('../run', *few, '--out', 'named.png')                 # the flag alone says another place
    assert os.listdir(here) == ['named.png']
    os.rename(run / 'grid.png', run / 'kept')
    (run / 'grid.png').mkdir()
    refused(capsys, lambda: make('../run', *few), '--out ../run/grid.png', 'name another file')


def test_the_script_must_need_a_checkpoint_alone(runs, tmp_path, monkeypatch, capsys):
    torch.save(copy.deepcopy(files.load(os.path.join(runs['conditional'], 'best.pt'))), tmp_path / 'alone.pt')
    script, flags = f'{ROOT}/generate.py', ['--classes', '2,0', '--seeds', '0-2', '--device', 'cpu']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [script, 'alone.pt', *flags])
    runpy.run_path(script, run_name='__main__')
    assert capsys.readouterr().out.startswith('alone-grid.png: seeds 0-2 of alone.pt, 3 a row')
    net = network('conditional')
    net.noise = 'const'
    assert near(tiles(tmp_path / 'alone-grid.png')[0], generate.sample(net, range(3), 2))
