"""Images out of a run or a checkpoint: grids, files, loops, mixed styles, neighbours, and the network itself.

Use:
    python generate.py runs/sngan-emoji-1.0-1234abcd                # seeds 0-63 of last.pt: grid.png in there
    python generate.py runs/x/best.pt --seeds 0-9,42 --columns 5 --out ten.png
    python generate.py runs/x --seeds 0-9999 --each samples/        # a folder that metrics.py can read
    python generate.py runs/biggan-x --classes 3,5,7-9 --seeds 0-9  # a row per class, a column per seed
    python generate.py runs/biggan-x --classes bag,dress --each samples/            # a sub-folder per class
    python generate.py runs/x --interpolate 1,5,9 --frames 60 --out loop.gif        # or x.mp4, or strip.png
    python generate.py runs/x --nearest                             # beside the nearest training images
    python generate.py runs/stylegan2-x --psi .7 --noise none       # truncated
    python generate.py runs/stylegan2-x --mix 0-3 10-15 --mix-layers 4-7            # 0-3 in styles of 10-15
    python generate.py runs/x --export g.pt2                        # a network that runs without these files
    python generate.py runs/x --history --out x.mp4                 # a film of the grids in samples/

An image is x = E(z, y). z ~ N(0, 1) is drawn from the seed, y is the class, and E is the averaged generator,
whose BN statistics are settled on its own samples. In StyleGAN2 it is x = E(w) with the stored noise and
    w = w_avg + psi (f(z, y) - w_avg)   for every layer                 Karras et al. 2019, appendix B

A loop keeps the class. In the w of StyleGAN2 it is a closed Catmull-Rom spline. In the z of SNGAN and BigGAN
it is made of great-circle arcs (Shoemake 1985), which keep the norm of N(0, 1) and halt at each seed. Between
two seeds at an angle a it is
    z = (sin((1 - u) a) z_0 + sin(u a) z_1) / sin(a),   u = (1 - cos(pi t)) / 2,   0 <= t < 1
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import argparse
import io
import json
import math
import os
import pathlib
import shutil
import subprocess

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch.nn.utils import parametrize

import cli
import files
import loop
import metrics
import prune
from data import images
from models import biggan, sngan, stylegan2, transfer

# The flags that ask for something else than a grid.
MODES = ('each', 'mix', 'interpolate', 'nearest', 'export', 'history')

# Flags that act on some of these only.
PICTURES = ['grid', '--each', '--interpolate', '--mix', '--nearest']
ACTS_ON = {
    'seeds': ['grid', '--each', '--nearest'],
    'columns': ['grid', '--interpolate'],
    'frames': ['--interpolate'],
    'mix_layers': ['--mix'],
    'features': ['--nearest'],
    'out': ['grid', '--interpolate', '--mix', '--nearest', '--history'],
    'which': [*PICTURES, '--export'],
    'device': [*PICTURES, '--export'],
    'noise': [*PICTURES, '--export'],
    'classes': PICTURES,
    'psi': PICTURES,
    'truncation_cutoff': PICTURES,
}
# The names of pictures without --out, and the checkpoints that lie alone in a run directory.
NAMES = {'grid': 'grid.png', 'mix': 'mix.png', 'nearest': 'nearest.png',
         'interpolate': 'loop.gif', 'history': 'history.gif'}
OF_A_RUN = ('last.pt', 'last-1.pt', 'best.pt')

STYLEGAN2_FLAGS = ('psi', 'truncation_cutoff', 'noise', 'mix')

# What each number may be, see cli.check_ranges
RANGES = {
    'columns': '[1, 10000]',
    'frames': '[1, 1e6]',
    'truncation_cutoff': '[1, 100]',
    'psi': '[-100, 100]'}
MOST_NUMBERS = 10 ** 6                        # in a list such as 0-63
MOST_DIGITS = 18                              # of one of them, because a seed has 63 bits

FRAMES_PER_SECOND = 20
LONGEST_HISTORY = 10                          # seconds, of a film of 20 to 200 grids
WIDEST_HISTORY = 1024                         # px
SHEET_ROWS = 16


# ---- flags

def get_args(argv=None):
    """The flags. Exits 2 on what is not there, and on flags that contradict each other or do nothing."""
    p = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=metrics.HelpFormatter)

    a = p.add_argument_group('network').add_argument
    a('source', help='run directory or checkpoint')
    a('--which', choices=['last', 'best'], help='checkpoint of a run directory (default: last)')
    a('--device', choices=['cuda', 'cpu'], help='where to compute (default: cuda, if there is one)')

    a = p.add_argument_group('what to draw').add_argument
    a('--seeds', help='such as 0-63 or 1,5,9-12 (default: 0-63, for a conditional model 0-7)')
    a('--classes', help='numbers such as 0-9, or names, each with every seed (default: up to ten)')
    a('--interpolate', metavar='SEEDS',
      help='a closed loop through these seeds: a film (.gif, .mp4) or a strip (.png)')
    a('--frames', type=int, help='images of the whole loop (default: 20 per seed, in a strip 8)')
    a('--nearest', nargs='?', const='', metavar='FOLDER|RUN',
      help='samples beside the nearest images of their training, or of a folder, data set or run')
    a('--features', metavar='NAME|FILE',
      help='network whose features decide what is near, as in metrics.py (default: auto)')

    a = p.add_argument_group('StyleGAN2').add_argument
    a('--psi', type=float, help='truncation: 1 for none, 0 for the mean image (default: 1)')
    a('--truncation-cutoff', type=int, metavar='N', help='truncate the first N layers only (default: all)')
    a('--noise', choices=['const', 'random', 'none'],
      help='noise of the layers: stored, fresh from each seed, or none (default: const)')
    a('--mix', nargs=2, metavar=('ROWS', 'COLS'),
      help='sheet of the seeds ROWS in the styles of the seeds COLS')
    a('--mix-layers', metavar='LAYERS', help='layers with the styles of COLS, 0 the coarsest (default: 4-7)')

    a = p.add_argument_group('where to').add_argument
    a('--out', help='the picture (default: grid.png, loop.gif, mix.png, nearest.png or history.gif, '
                    'beside the checkpoint)')
    a('--each', metavar='DIR', help='a folder for one PNG per seed, instead of a grid')
    a('--columns', type=int, help='images per row (default: 8, or all seeds of a class, or all of a loop)')
    a('--history', action='store_true', default=None,
      help='a film (.gif, .mp4) of the grids that the training drew, in the samples/ of a run directory')
    a('--export', metavar='FILE.pt2',
      help='the generator as a file of torch.export, instead of pictures: z, classes and psi are its inputs')

    args = p.parse_args(argv)
    cli.check_ranges(args, RANGES)
    loop.check_device(args)
    check_flags(args)
    if args.mode == 'history':
        set_out(args, args.source)
        return args

    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if os.path.isdir(args.source):
        args.source = os.path.join(args.source, f'{args.which or "last"}.pt')
    if not os.path.isfile(args.source):
        cli.refuse(f'{args.source}: no such checkpoint; name a run directory or one of its last.pt, best.pt')
    set_out(args, os.path.dirname(args.source))
    read_numbers(args)
    metrics.check_features(args.features or 'auto')
    return args


def check_flags(args):
    """Sets args.mode and args.film. Exits 2 on flags that contradict each other or do nothing."""
    asked = [f'--{mode}' for mode in MODES if getattr(args, mode) is not None] or ['grid']
    if len(asked) > 1:
        cli.refuse(f'{asked[0]} and {asked[1]} make different pictures: give one of them')
    args.mode = asked[0].removeprefix('--')
    strip = args.out and args.out.lower().endswith('.png')
    args.film = args.mode == 'history' or (args.mode == 'interpolate' and not strip)

    for name, kinds in ACTS_ON.items():
        idle = asked[0] not in kinds or (name == 'columns' and args.film)
        if idle and getattr(args, name) is not None:
            where = 'here in a film' if args.film else 'here'
            cli.refuse(f'{cli.flag(args, name)} does nothing {where}: it is for {", ".join(kinds)}')
    if args.truncation_cutoff and args.psi in (None, 1):
        cli.refuse(f'{cli.flag(args, "truncation_cutoff")} does nothing without truncation: add --psi .7')
    if args.noise == 'random' and args.mode in ('mix', 'interpolate'):
        cli.refuse(f'--noise random would differ between the images of --{args.mode}: use const or none')
    if args.noise == 'random' and args.mode == 'export':
        cli.refuse('--noise random has no seed in an exported network: use const or none')
    if args.mode == 'export' and not args.export.endswith('.pt2'):
        cli.refuse(f'--export {args.export}: name the file .pt2')

    ending = os.path.splitext(args.out or '')[1].lower()
    endings = ('.gif', '.mp4') if args.film else ('.png',)
    if args.out is not None and ending not in endings:
        cli.refuse(f'--out {args.out}: films (--interpolate, --history) are .gif or .mp4, all else is .png')
    if ending == '.mp4' and not shutil.which('ffmpeg'):
        cli.refuse(f'--out {args.out} needs ffmpeg, which is not on the PATH: '
                   'install it, or name the film .gif')
    for name in ('out', 'export'):
        folder = os.path.dirname(getattr(args, name) or '')
        if folder and not os.path.isdir(folder):
            cli.refuse(f'{cli.flag(args, name)}: its folder is not there, make it first')
    cli.check_output('--each', args.each, folder=True)
    cli.check_output('--export', args.export)
    cli.check_output('--out', args.out)


def set_out(args, folder):
    """Sets args.out, where it was not given, to a picture in `folder`, the one of the checkpoint.

    A checkpoint that is not in a run directory may lie beside those of other runs, so its name comes first.
    """
    if args.out is not None or args.mode not in NAMES:
        return
    name = NAMES[args.mode]
    checkpoint = os.path.basename(args.source)
    if args.mode != 'history' and checkpoint not in OF_A_RUN:
        name = f'{os.path.splitext(checkpoint)[0]}-{name}'
    args.out = os.path.join(folder, name)
    if os.path.isdir(folder):
        cli.check_output('--out', args.out)


def read_numbers(args):
    """Turns the texts of seeds and layers in args into lists of numbers. Exits 2 on anything else."""
    for name in ('seeds', 'interpolate', 'mix_layers'):
        text = getattr(args, name)
        if text is not None:
            flag = '--' + name.replace('_', '-')
            setattr(args, name, parse_numbers(flag, text))
    if args.mix:
        args.mix = [parse_numbers('--mix', text) for text in args.mix]
        if len(args.mix[0]) * len(args.mix[1]) > MOST_NUMBERS:
            cli.refuse(f'--mix: {len(args.mix[0])} times {len(args.mix[1])} images are too many: '
                       f'name at most {MOST_NUMBERS:,}')
    if args.interpolate and len(args.interpolate) < 2:
        cli.refuse('--interpolate: one seed makes no loop, name two or more')


def parse_numbers(flag, text, names=()):
    """'0-3,7' -> [0, 1, 2, 3, 7], and a name -> its place among names. Exits 2 on anything else."""
    found = []
    for item in text.split(','):
        low, _, high = item.partition('-')
        high = high or low
        digits = low.isdecimal() and high.isdecimal()
        if digits and max(len(low), len(high)) > MOST_DIGITS:
            cli.refuse(f'{flag} {text}: use numbers of at most {MOST_DIGITS} digits')
        if digits and int(low) <= int(high):
            if int(high) - int(low) + len(found) >= MOST_NUMBERS:
                cli.refuse(f'{flag} {text} are too many: name at most {MOST_NUMBERS:,}')
            found += range(int(low), int(high) + 1)
        elif item in names:
            found.append(names.index(item))
        else:
            known = f', nor one of {", ".join(names[:20])}' if names else ''
            cli.refuse(f'{flag} {text}: {item!r} is neither a number nor a range such as 0-63{known}')
    return found


def class_names(args, saved):
    """The names of all classes, by the run's subset.json, else numbers; [] for an unconditional network."""
    count = saved['args'].get('classes') or 0
    path = os.path.join(os.path.dirname(args.source), 'subset.json')
    if not count or not os.path.exists(path):
        return [str(c) for c in range(count)]
    names = files.read_json(path, classes=list)['classes']
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise files.Damaged(f'{path} is damaged (it does not name {count} classes)')
    return names


def chosen_classes(args, names):
    """{class: name} as --classes asks for; {} for an unconditional network."""
    if not names:
        if args.classes is not None:
            cli.refuse(f'--classes {args.classes}: {args.source} is unconditional, leave it out')
        return {}
    chosen = loop.shown(len(names)).tolist()
    if args.classes is not None:
        chosen = parse_numbers('--classes', args.classes, names)
    if max(chosen) >= len(names):
        cli.refuse(f'--classes {args.classes}: {args.source} has the classes 0-{len(names) - 1}')
    return {c: names[c] for c in chosen}


# ---- the network

def load(path, device):
    """The averaged generator of a checkpoint, in eval mode. The BN statistics of a last.pt are settled."""
    saved = loop.read(path, path, 'model', 'args', 'E')
    return restore_network(saved, device)


def restore_network(saved, device):
    """The generator of `load`, given what the file holds."""
    net = build_generator(saved['model'], saved['args'])
    if any(key.startswith('miner.') for key in saved['E']):
        transfer.mine_(net)
    net.load_state_dict(saved['E'])
    net = net.to(device, memory_format=torch.channels_last).eval()
    if has_styles(net):
        net.noise = 'const'
    if 'score' in saved:                                       # a best.pt, which was saved settled
        return net
    batches = loop.settling(net.z_dim, device, classes=getattr(net, 'classes', 0))
    return loop.settle(net, batches)


def build_generator(model, a):
    """A generator of the kind `model` with the flags a, a dict. Flags that an old run lacks have defaults."""
    if model == 'sngan':
        return sngan.Generator(a['res'], a['ch_g'])
    if model == 'biggan':
        return biggan.Generator(a['res'], a['classes'], a['ch_g'], a['narrow'])
    assert model == 'stylegan2'
    return stylegan2.Generator(
        a['res'],
        a.get('ch_g', 16384),
        a.get('ch_max', 512),
        a.get('mapping', 8),
        a.get('classes') or 0,
        a.get('z_dim', 512),
        a.get('w_dim', 512))


def has_styles(net):
    """Whether a network is a StyleGAN2, whose images are those of ws, not of z."""
    return hasattr(net, 'styles')


def device_of(net):
    """The device of a network."""
    return next(net.parameters()).device


# ---- samples

def expand_classes(net, y, n):
    """Classes [n] on the device of a network, given a number, a list or a tensor; None stays None."""
    if y is None:
        return None
    return torch.as_tensor(y, device=device_of(net)).expand(n)


def points(net, seeds, y=None, psi=1., cutoff=None):
    """Where the images of seeds lie: ws [N, num_ws, w_dim] of a StyleGAN2, z [N, z_dim] of another network.

    y: see expand_classes. psi, cutoff: truncation, see `sample`.
    """
    z = loop.latents(seeds, net.z_dim, device_of(net))
    if has_styles(net):
        return net.styles(z, expand_classes(net, y, len(z)), psi, cutoff)
    return z


def render(net, h, y=None, batch=64):
    """uint8 images [N, 3, H, W] on the CPU of points h [N, ...]. y: see expand_classes."""
    y = expand_classes(net, y, len(h))
    x = []
    for start in range(0, len(h), batch):
        rows = slice(start, start + batch)
        if has_styles(net):
            made = net.synthesis(h[rows], net.noise)
        elif y is None:
            made = net(h[rows])
        else:
            made = net(h[rows], y[rows])
        x.append(metrics.to_uint8(made).cpu())
    return torch.cat(x)


@torch.no_grad()
def sample(net, seeds, y=None, device=None, batch=64, psi=1., cutoff=None):
    """uint8 images [N, 3, H, W] on the CPU of seeds [N] and, for a conditional network, of classes y.

    y: classes [N], or one class for all. device: where the network is moved first. psi and cutoff: strength
    and number of layers of the truncation of a StyleGAN2.
    An image depends on its seed, its class and the network only. With another `batch`, round-off moves a rare
    value by one grey level. With net.noise 'random', the noise is drawn from the seed, too, at the cost of a
    pass per image.
    Raises ValueError for a network in training mode, whose statistics would move, for a y that is missing or
    not needed, and for truncation of another network than StyleGAN2.
    """
    if device is not None:
        net = net.to(device)
    conditional = bool(getattr(net, 'classes', 0))
    if net.training or conditional == (y is None):
        raise ValueError('a net in eval mode is needed, and y for a conditional net, but for no other')
    if (psi, cutoff) != (1, None) and not has_styles(net):
        raise ValueError(f'psi {psi}, cutoff {cutoff}: only a StyleGAN2 has truncation')

    y = expand_classes(net, y, len(seeds))
    step = batch
    if getattr(net, 'noise', '') == 'random':
        step = 1
    x = []
    for start in range(0, len(seeds), step):
        rows = slice(start, start + step)
        classes = y if y is None else y[rows]
        with loop.seeded(int(seeds[start])):                   # for the noise
            h = points(net, seeds[rows], classes, psi, cutoff)
            x.append(render(net, h, classes, batch))
    return torch.cat(x)


# ---- loops

def spline(p, t):
    """The closed Catmull-Rom spline through points p [K, ...] at times t [F] in [0, K); p[i] is at time i."""
    i = t.long()
    u = t.frac().view(-1, *[1] * (p.ndim - 1))                 # [F, 1, ...]
    a, b, c, d = (p[(i + k) % len(p)] for k in (-1, 0, 1, 2))  # [F, ...] each
    # From b to c as a polynomial in u, by Horner's rule.
    cubic = 3 * (b - c) + d - a
    square = 2 * a - 5 * b + 4 * c - d
    return b + u / 2 * (c - a + u * (square + u * cubic))


def arcs(p, t):
    """Great-circle arcs from point to point of p [K, dim] at the times t [F] in [0, K); p[i] is at time i."""
    i = t.long()
    # The speed is 0 at every point, so it has no jump there.
    u = (1 - (math.pi * t.frac()).cos()[:, None]) / 2          # [F, 1]
    a = p[i]                                                   # [F, dim]
    b = p[(i + 1) % len(p)]
    angle = F.cosine_similarity(a, b).clamp(-1, 1).acos()[:, None]
    angle = angle.clamp(min=1e-3)                              # two seeds that are equal give no 0 / 0
    from_a = ((1 - u) * angle).sin() * a
    from_b = (u * angle).sin() * b
    return (from_a + from_b) / angle.sin()


# ---- pictures

def seeds_and_classes(args, classes):
    """Seeds [N] and classes [N] (or None) of all images: class by class, each with the same seeds."""
    if not classes:
        return args.seeds or list(range(64)), None
    seeds = args.seeds or list(range(8))
    y = []
    for c in classes:
        y += [c] * len(seeds)
    return seeds * len(classes), y


def class_note(words, classes):
    """The end of a sentence that lists the classes, if there are any."""
    if not classes:
        return ''
    return f'; {words}: {", ".join(classes.values())}'


def draw_grid(args, net, classes):
    """A grid of the seeds, in rows of classes."""
    seeds, y = seeds_and_classes(args, classes)
    columns = args.columns or 8
    if classes and not args.columns:
        columns = len(seeds) // len(classes)

    x = sample(net, seeds, y, **args.truncation)
    images.save_grid(args.out, x, columns)
    note = class_note('classes from top to bottom', classes)
    print(f'{args.out}: seeds {seeds[0]}-{seeds[-1]} of {args.source}, {columns} a row{note}')
    return x


def write_each(args, net, classes):
    """One PNG per seed, in a sub-folder per class, written as they are made, however many they are."""
    seeds, y = seeds_and_classes(args, classes)
    folders = {None: args.each}
    for c, name in classes.items():
        folders[c] = os.path.join(args.each, f'{c:04d}-{name}'.replace(os.sep, '_'))
    for folder in folders.values():
        os.makedirs(folder, exist_ok=True)

    for start in range(0, len(seeds), 64):
        rows = slice(start, start + 64)
        own = y[rows] if y else None
        x = sample(net, seeds[rows], own, **args.truncation)
        for i, image in enumerate(x, start):
            folder = folders[y[i] if y else None]
            images.save_grid(os.path.join(folder, f'{seeds[i]:06d}.png'), image[None], 1)
    print(f'{len(seeds)} images in {args.each}')


def draw_mix(args, net, classes):
    """A sheet: the column seeds above, the row seeds to the left, and the mixed images between them.

    A mixed image is that of its row with the styles of its column in --mix-layers.
    Source: Karras et al. 2019, section 3.1.
    """
    if args.classes and len(classes) > 1:
        cli.refuse(f'--classes {args.classes}: --mix shows one class, name one')
    layers = args.mix_layers or [4, 5, 6, 7]
    if not args.mix_layers and net.num_ws <= 7:
        layers = list(range(net.num_ws // 2, net.num_ws))      # of a small network, the finer half
    if max(layers) >= net.num_ws:
        cli.refuse(f'--mix-layers {layers[0]}-{layers[-1]}: {args.source} has the layers 0-{net.num_ws - 1}')

    y = next(iter(classes), None)
    rows = points(net, args.mix[0], y, **args.truncation)      # [R, num_ws, w_dim]
    columns = points(net, args.mix[1], y, **args.truncation)   # [C, num_ws, w_dim]
    mixed = rows[:, None].repeat(1, len(columns), 1, 1)        # [R, C, num_ws, w_dim]
    mixed[:, :, layers] = columns[None, :, layers]

    left = render(net, rows)                                   # [R, 3, H, W]
    top = render(net, columns)                                 # [C, 3, H, W]
    inside = render(net, mixed.flatten(0, 1))                  # [R C, 3, H, W]
    inside = inside.unflatten(0, mixed.shape[:2])              # [R, C, 3, H, W]
    white = torch.full_like(top[:1], 255)                      # the corner
    first = torch.cat((white, top))[None]                      # [1, C + 1, 3, H, W]
    others = torch.cat((left[:, None], inside), 1)             # [R, C + 1, 3, H, W]
    x = torch.cat((first, others)).flatten(0, 1)
    images.save_grid(args.out, x, len(top) + 1)
    what = f'layers {layers[0]}-{layers[-1]} of {len(top)} others'
    print(f'{args.out}: {len(left)} seeds with {what}, {args.source}')
    return x


def draw_loop(args, net, classes):
    """A loop through the seeds: a film, its classes side by side, or a strip, a row per class and seed."""
    seeds = args.interpolate
    k = len(seeds)
    per_seed = 20 if args.film else 8
    frames = args.frames or k * per_seed
    t = torch.arange(frames, device=device_of(net)) * k / frames               # [frames] in [0, k)
    move = spline if has_styles(net) else arcs

    x = []
    for c in classes or [None]:
        h = points(net, seeds, c, **args.truncation)           # [k, ...]
        x.append(render(net, move(h, t), c))
    x = torch.stack(x)                                         # [classes or 1, frames, 3, H, W]

    if args.film:
        write_film(args.out, torch.cat([*x], 3))
    else:
        columns = frames if frames % k else frames // k        # from one seed to the next, if they divide
        images.save_grid(args.out, x.flatten(0, 1), args.columns or columns)
    around = ', '.join(map(str, seeds))
    note = class_note('classes', classes)
    print(f'{args.out}: {frames} images around the seeds {around} of {args.source}{note}')
    return x


def draw_history(args):
    """A film of samples/*.png, each below its step: two a second, or of ten seconds, at most 20 a second."""
    folder = os.path.join(args.source, 'samples')
    steps = []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        step, ending = os.path.splitext(name)
        if step.isdecimal() and ending == '.png':
            steps.append(step)
    if not steps:
        cli.refuse(f'--history: {args.source} has no samples/*.png, name the directory of a run')

    frames = []
    for step in sorted(steps, key=int):
        path = os.path.join(folder, f'{step}.png')
        try:
            with Image.open(path, formats=['PNG']) as image:
                grid = image.convert('RGB')
        except OSError as e:
            raise files.Damaged(f'{path} is damaged ({files.reason(e)})') from e
        grid.thumbnail((WIDEST_HISTORY, WIDEST_HISTORY))
        frame = Image.new('RGB', (grid.width, grid.height + 14), 'white')
        ImageDraw.Draw(frame).text((2, 1), f'step {int(step)}', 'black')
        frame.paste(grid, (0, 14))
        frames.append(np.asarray(frame))

    rate = min(max(2, len(frames) // LONGEST_HISTORY), FRAMES_PER_SECOND)
    frames += [frames[-1]] * 2 * rate                          # the last one stays for two seconds
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    write_film(args.out, x, rate)
    print(f'{args.out}: {len(steps)} grids of {args.source}, {rate} a second')
    return x


def write_film(path, x, rate=FRAMES_PER_SECOND):
    """Writes images x, uint8 [N, 3, H, W], as an endless GIF or, by the program ffmpeg, as MP4."""
    n, _, h, w = x.shape
    x = x.permute(0, 2, 3, 1).contiguous().numpy()             # [N, H, W, 3]

    def gif(tmp):
        first, *rest = map(Image.fromarray, x)
        duration = 1000 // rate                                # of an image, in ms
        first.save(tmp, 'GIF', save_all=True, append_images=rest, duration=duration, loop=0)

    def mp4(tmp):
        source = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{w}x{h}']
        source += ['-r', str(rate), '-i', '-']
        # Even sizes and yuv420p are what every player can show.
        even = ['-vf', 'pad=ceil(iw/2)*2:ceil(ih/2)*2', '-pix_fmt', 'yuv420p']
        command = ['ffmpeg', '-v', 'error', '-y', *source, *even, '-f', 'mp4', tmp]
        done = subprocess.run(command, input=x.tobytes(), capture_output=True)
        if done.returncode:
            why = done.stderr.decode().strip()[-200:]
            cli.refuse(f'--out {path}: ffmpeg failed ({why}), name the film .gif')

    files.write(path, gif if path.lower().endswith('.gif') else mp4)


def load_training_set(args, saved):
    """The data set to look for neighbours in: of this run, of another RUN, or of a folder or a name."""
    a = dict(saved['args'])
    path = os.path.join(args.nearest, 'args.json')
    if args.nearest and os.path.exists(path):
        a = files.read_json(path, args=dict)['args']
    elif args.nearest:
        a |= {'data': args.nearest, 'frac': 1., 'holdout': None, 'ref': 'auto', 'classes': 0}

    data = a.get('data') or ''
    if data not in images.NAMES and not os.path.isdir(data) and not os.path.isfile(data):
        cli.refuse(f'--nearest: the training images {data} are not here, name their folder: '
                   '--nearest FOLDER')
    cuts = {key: a[key] for key in ('root', 'frac', 'subset', 'holdout', 'ref', 'res', 'crop') if key in a}
    return images.load(data, seed=a.get('data_seed', 0), plain=bool(a.get('classes')), **cuts)


def draw_nearest(args, net, classes, data):
    """A sheet of samples beside their nearest images of the data set, in feature space."""
    seeds, y = seeds_and_classes(args, classes)
    if min(len(seeds), len(data.images)) < 2:
        cli.refuse(f'--nearest compares two or more: here are {len(seeds)} seeds and '
                   f'{len(data.images)} images')
    extractor = metrics.extractor(args.features or 'auto', device=args.device, res=data.images.shape[2])
    x = sample(net, seeds, y, **args.truncation)

    made = metrics.stats(lambda start, end: x[start:end], len(x), extractor, keep=('features',))
    real = metrics.reference(data.images, extractor, keep=True, cache='auto', mirrored=True)
    near, index, radius = metrics.neighbours_of(made.features, real, extractor, min(4, real.n))  # [N, 4]

    names = [f'seed {seed}' for seed in seeds]
    if y:
        names = [f'{name}, {classes[c]}' for name, c in zip(names, y)]
    gen = metrics.Images('', len(x), x.__getitem__, '')
    ref = metrics.Images('', real.n, data.images.__getitem__, '')
    metrics.draw_sheet(args.out, gen, ref, near, index, radius, SHEET_ROWS, names=names)
    copies = (near[:, 0] <= radius).double().mean()
    print(f'{args.out}: {len(x)} samples of {args.source} beside their nearest of {real.n} images of '
          f'{data.name}, {copies:.1%} as near as copies; {extractor.protocol["features"]}')
    return x


# ---- a network to take away

class Truncated(torch.nn.Module):
    """A StyleGAN2 as a function of z [N, z_dim], classes y [N] if it has any, and psi, a scalar tensor."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z, *rest):
        *y, psi = rest
        ws = self.net.styles(z, *y)                            # [N, num_ws, w_dim]
        ws = self.net.mapping.w_avg.lerp(ws, psi)              # as `styles` does for a number
        return self.net.synthesis(ws)


def export(args, net, saved, names):
    """Write the network as a file of torch.export, for batches of any size, with metadata.json inside it.

    names: of its classes. The file holds the weights and calls of torch alone. A weight under spectral
    normalisation is stored as W / sigma(W).
    """
    net = net.requires_grad_(False).to('cpu', memory_format=torch.contiguous_format)       # as files hold it
    for module in net.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, 'weight')
        if isinstance(module, stylegan2.Layer):
            module.fused = False                               # the default depends on the size of the batch

    # The inputs: every size is fixed but that of the batch.
    inputs = {'z': torch.zeros(2, net.z_dim)}
    if names:
        inputs['y'] = torch.zeros(2, dtype=torch.int64)
    batch = torch.export.Dim('batch', min=1)
    shapes = torch.export.ShapesCollection()
    for x in inputs.values():
        shapes[x] = {0: batch}

    sparsity = prune.sparsity(saved.get('masks', {}).get('G'))
    about = {'model': saved['model'], 'step': saved['step'], 'sparsity': sparsity,
             'z_dim': net.z_dim, 'classes': names, 'res': net.res, 'range': [-1, 1]}
    if has_styles(net):
        about['noise'] = net.noise
        inputs['psi'] = torch.tensor(1.)
        net = Truncated(net)
    about['inputs'] = [*inputs]

    program = torch.export.export(net, (*inputs.values(),), dynamic_shapes=shapes)
    for module in program.graph_module.modules():              # also the graphs inside the graph
        for node in getattr(module, 'graph', torch.fx.Graph()).nodes:
            node.meta.pop('stack_trace', None)                 # paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={'metadata.json': json.dumps(about, indent=1)})
    files.write(args.export, lambda tmp: pathlib.Path(tmp).write_bytes(buffer.getvalue()))
    print(f'{args.export}: the generator of {args.source} as a function of {", ".join(inputs)}, '
          f'{sparsity:.1%} pruned; torch.export.load({args.export!r}).module() runs it')


@torch.no_grad()
def main(args):
    """Makes what the flags ask for. Returns the images of a picture, uint8 (None with --each, --export)."""
    if args.mode == 'history':
        return draw_history(args)
    saved = loop.read(args.source, args.source, 'model', 'args', 'E')
    for name in STYLEGAN2_FLAGS:
        if getattr(args, name) is not None and saved['model'] != 'stylegan2':
            flag = f'--{name.replace("_", "-")}'
            cli.refuse(f'{flag} is for StyleGAN2, {args.source} is of {saved["model"]}')
    names = class_names(args, saved)
    classes = chosen_classes(args, names)
    data = load_training_set(args, saved) if args.mode == 'nearest' else None

    net = restore_network(saved, args.device)
    psi = 1. if args.psi is None else args.psi
    args.truncation = {'psi': psi, 'cutoff': args.truncation_cutoff}
    if args.truncation_cutoff and args.truncation_cutoff > net.num_ws:
        cli.refuse(f'{cli.flag(args, "truncation_cutoff")}: {args.source} has {net.num_ws} layers')
    if args.noise:
        net.noise = args.noise

    if args.mode == 'nearest':
        return draw_nearest(args, net, classes, data)
    if args.mode == 'export':
        return export(args, net, saved, names)
    draw = {'grid': draw_grid, 'each': write_each, 'mix': draw_mix, 'interpolate': draw_loop}
    return draw[args.mode](args, net, classes)


if __name__ == '__main__':
    cli.script(main, get_args)
