"""Images out of a run directory or a checkpoint: grids, one PNG each, interpolations, mixed styles, nearest neighbours.

Use:
    python generate.py runs/sngan-emoji-1.0-1234abcd                       # seeds 0-63 of last.pt as grid.png
    python generate.py runs/x/best.pt --seeds 0-9,42 --columns 5 --out ten.png
    python generate.py runs/x --seeds 0-9999 --each samples/               # a folder that metrics.py can read
    python generate.py runs/biggan-x --classes 3,5,7-9 --seeds 0-9         # a row per class, a column per seed
    python generate.py runs/biggan-x --classes bag,dress --each samples/   # by name; a sub-folder per class
    python generate.py runs/x --interpolate 1,5,9 --frames 60 --out loop.gif           # or loop.mp4, or strip.png
    python generate.py runs/x --nearest                        # samples beside their nearest images of the training
    python generate.py runs/stylegan2-x --psi .7 --noise none  # truncated
    python generate.py runs/stylegan2-x --mix 0-3 10-15 --mix-layers 4-7   # rows 0-3 in the styles of columns 10-15

x = E(z, y),  z ~ N(0, 1) from the seed, E the averaged generator with BN statistics settled on its own samples.
StyleGAN2:  x = E(w),  w = w_avg + psi (f(z, y) - w_avg)  for every layer, with the stored noise.
A loop keeps the class.  In the w of StyleGAN2 it is a closed Catmull-Rom spline; in the z of SNGAN and BigGAN it is
great-circle arcs (Shoemake 1985), which keep the norm of N(0, 1) and halt at each seed.  Of two seeds at an angle a:
    z = (sin((1 - u) a) z_0 + sin(u a) z_1) / sin(a),   u = (1 - cos(pi t)) / 2,   0 <= t < 1
"""
import argparse
import json
import math
import os
import shutil
import subprocess

import torch
import torch.nn.functional as F
from PIL import Image

import flat
import loop
import metrics
from data import images
from models import biggan, sngan, stylegan2, transfer

NETWORKS = {'sngan': lambda a: sngan.Generator(a['res'], a['ch_g']),
            'biggan': lambda a: biggan.Generator(a['res'], a['classes'], a['ch_g'], a['narrow']),
            'stylegan2': lambda a: stylegan2.Generator(
                a['res'], a.get('ch_g', 16384), a.get('ch_max', 512), a.get('mapping', 8), a.get('classes') or 0,
                a.get('z_dim', 512), a.get('w_dim', 512))}
ACTS = {'seeds': ('grid', 'each', 'nearest'), 'columns': ('grid', 'interpolate'), 'frames': ('interpolate',),
        'mix_layers': ('mix',), 'features': ('nearest',), 'out': ('grid', 'interpolate', 'mix', 'nearest')}
STYLED = 'psi', 'truncation_cutoff', 'noise', 'mix'           # flags of StyleGAN2 alone
FPS, ROWS = 20, 16                                            # of a film, of a sheet of neighbours


def get_args(argv=None):
    """The flags; exits 2 on what is not there, and on flags that would do nothing together."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('source', help='run directory or checkpoint')
    a('--which', choices=['last', 'best'], default='last', help='checkpoint of a run directory')
    a('--seeds', help='such as 0-63 or 1,5,9-12 (default: 0-63, of a conditional model 0-7)')
    a('--classes', help='of a conditional model, every seed in each: such as 0-9, or names (default: up to ten)')
    a('--columns', type=int, help='images per row (default: 8, of a conditional model, or a strip, one row per seed)')
    a('--out', help='the picture (default: grid.png, loop.gif, mix.png or nearest.png)')
    a('--each', metavar='DIR', help='write one PNG per seed there instead of a grid')
    a('--psi', type=float, help='StyleGAN2: truncation, 1 for none, 0 for the mean image (default: 1)')
    a('--truncation-cutoff', type=int, metavar='N', help='truncate the first N layers only (default: all)')
    a('--noise', choices=['const', 'random', 'none'],
      help='StyleGAN2: noise of the layers, stored, fresh from each seed, or none (default: const)')
    a('--mix', nargs=2, metavar=('ROWS', 'COLS'), help='StyleGAN2: sheet of the seeds ROWS in styles of the seeds COLS')
    a('--mix-layers', metavar='LAYERS', help='layers whose styles come from COLS, 0 the coarsest (default: 4-7)')
    a('--interpolate', metavar='SEEDS', help='closed loop through these: a film (.gif, .mp4), or a strip (.png)')
    a('--frames', type=int, help='images of the whole loop (default: 20 per seed, in a strip 8)')
    a('--nearest', nargs='?', const='', metavar='FOLDER|RUN',
      help='samples beside the nearest images of their training, or of a folder, data set or run')
    a('--features', choices=['auto', 'inception', 'effnet'], help='in which --nearest is near, as in metrics.py')
    a('--device', choices=['cuda', 'cpu'], default='cuda' if torch.cuda.is_available() else 'cpu',
      help='where to compute')
    args = p.parse_args(argv)
    if os.path.isdir(args.source):
        args.source = os.path.join(args.source, f'{args.which}.pt')
    if not os.path.isfile(args.source):
        loop.refuse(f'{args.source}: no such checkpoint; name a run directory or one of its last.pt, best.pt')
    return check(args)


def check(args):
    """args with its mode and numbers instead of texts; exits 2 on flags that contradict each other or do nothing."""
    modes = [mode for mode in ('each', 'mix', 'interpolate', 'nearest') if getattr(args, mode) is not None] or ['grid']
    if len(modes) > 1:
        loop.refuse(f'--{modes[0]} and --{modes[1]} make different pictures: give one of them')
    args.mode = modes[0]
    args.film = args.mode == 'interpolate' and not (args.out or '').lower().endswith('.png')
    for name, acts in ACTS.items():
        if getattr(args, name) is not None and (args.mode not in acts or name == 'columns' and args.film):
            words = ', '.join(mode if mode == 'grid' else f'--{mode}' for mode in acts)
            loop.refuse(f'{loop.flag(args, name)} does nothing here{" in a film" * args.film}: it is for {words}')
    for name in ('columns', 'frames', 'truncation_cutoff'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            loop.refuse(f'{loop.flag(args, name)} is not positive: use 1 or more')
    if args.truncation_cutoff and args.psi in (None, 1):
        loop.refuse(f'{loop.flag(args, "truncation_cutoff")} does nothing without truncation: add --psi .7')
    if args.noise == 'random' and args.mode in ('mix', 'interpolate'):
        loop.refuse(f'--noise random would differ between the images of --{args.mode}: use const or none')
    args.out = args.out or ('loop.gif' if args.film else f'{args.mode}.png')
    ending = os.path.splitext(args.out)[1].lower()
    if args.film != (ending in ('.gif', '.mp4')) or not args.film and ending != '.png':
        loop.refuse(f'--out {args.out}: a film is a .gif or .mp4 of --interpolate, all else is a .png')
    if ending == '.mp4' and not shutil.which('ffmpeg'):
        loop.refuse(f'--out {args.out} needs ffmpeg, which is not on the PATH: install it, or name the film .gif')
    if not os.path.isdir(os.path.dirname(args.out) or '.'):
        loop.refuse(f'--out {args.out}: its folder is not there, make it first')
    for name in ('seeds', 'interpolate', 'mix_layers'):
        if getattr(args, name) is not None:
            setattr(args, name, numbers(f"--{name.replace('_', '-')}", getattr(args, name)))
    args.mix = args.mix and [numbers('--mix', seeds) for seeds in args.mix]
    if args.interpolate and len(args.interpolate) < 2:
        loop.refuse('--interpolate: one seed makes no loop, name two or more')
    return args


def numbers(flag, text, names=()):
    """'0-3,7' -> [0, 1, 2, 3, 7], and a name as its place among names; exits 2 on anything else."""
    found = []
    for item in text.split(','):
        low, _, high = item.partition('-')
        if low.isdigit() and (high or low).isdigit() and int(low) <= int(high or low):
            found += range(int(low), int(high or low) + 1)
        elif item in names:
            found.append(names.index(item))
        else:
            loop.refuse(f'{flag} {text}: {item!r} is neither a number nor a range such as 0-63'
                        + (f', nor one of {", ".join(names[:20])}' if names else ''))
    return found


def chosen(args, saved):
    """{class: name} asked for, names from the run's subset.json; {} of an unconditional net."""
    count = saved['args'].get('classes') or 0
    if not count and args.classes:
        loop.refuse(f'--classes {args.classes}: {args.source} is unconditional, leave it out')
    path, names = os.path.join(os.path.dirname(args.source), 'subset.json'), []
    if count and os.path.exists(path):
        with open(path) as f:
            names = json.load(f)['classes']
    rows = numbers('--classes', args.classes, names) if args.classes else loop.shown(count).tolist() if count else []
    if rows and max(rows) >= count:
        loop.refuse(f'--classes {args.classes}: {args.source} has the classes 0-{count - 1}')
    return {c: names[c] if names else str(c) for c in rows}


def load(path, device):
    """The averaged generator of a checkpoint, in eval mode; last.pt's BN statistics are settled first."""
    return network(loop.read(path, path, 'model', 'args', 'E'), device)


def network(saved, device):
    """The generator of `load` out of what the file holds."""
    net = NETWORKS[saved['model']](saved['args'])
    if any(key.startswith('miner.') for key in saved['E']):
        transfer.mine_(net)
    net.load_state_dict(saved['E'])
    net = net.to(device, memory_format=torch.channels_last).eval()
    if styled(net):
        net.noise = 'const'
    if 'score' in saved:                                       # best.pt was saved settled
        return net
    return loop.settle(net, loop.settling(net.z_dim, device, classes=getattr(net, 'classes', 0)))


def styled(net):
    """Whether it is a StyleGAN2, whose images are those of ws, not of z."""
    return hasattr(net, 'styles')


def given(net, y, n):
    """Classes [N] on the net's device out of a number, a list or a tensor; None of an unconditional net."""
    return None if y is None else torch.as_tensor(y, device=next(net.parameters()).device).expand(n)


def points(net, seeds, y=None, psi=1., cutoff=None):
    """Where the images of seeds lie: ws [N, num_ws, w_dim] of a StyleGAN2, z [N, z_dim] of others. y: see `given`."""
    z = loop.latents(seeds, net.z_dim, next(net.parameters()).device)
    return net.styles(z, given(net, y, len(z)), psi, cutoff) if styled(net) else z


def render(net, h, y=None, batch=64):
    """uint8 images [N, 3, H, W] on the CPU of points h [N, ...]. y: see `given`."""
    inputs = (h,) if y is None or styled(net) else (h, given(net, y, len(h)))
    draw = (lambda ws: net.synthesis(ws, net.noise)) if styled(net) else net
    return torch.cat([metrics.to_uint8(draw(*part)).cpu() for part in zip(*(i.split(batch) for i in inputs))])


@torch.no_grad()
def sample(net, seeds, y=None, device=None, batch=64, psi=1., cutoff=None):
    """uint8 images [N, 3, H, W] on the CPU of seeds [N] and, of a conditional net, classes y [N] or one class for all.

    An image depends on its seed, class and net only; with another `batch`, round-off moves a rare value by one grey
    level. device: where the net is moved first. psi, cutoff: truncation of a StyleGAN2; with net.noise 'random' its
    noise is drawn from the seed, too, at the cost of a pass per image. Raises ValueError for a net in training mode,
    whose statistics would move, for y missing or superfluous, and for truncation of another net."""
    net = net if device is None else net.to(device)
    if net.training or bool(getattr(net, 'classes', 0)) == (y is None):
        raise ValueError('a net in eval mode is needed, and y for a conditional net, but for no other')
    if (psi, cutoff) != (1, None) and not styled(net):
        raise ValueError(f'psi {psi}, cutoff {cutoff}: only a StyleGAN2 has truncation')
    x, y = [], y if y is None else given(net, y, len(seeds))
    for rows in flat.micro_batches(len(seeds), 1 if getattr(net, 'noise', '') == 'random' else batch):
        own = y if y is None else y[rows]
        with loop.seeded(int(seeds[rows][0])):                 # for the noise
            x.append(render(net, points(net, seeds[rows], own, psi, cutoff), own, batch))
    return torch.cat(x)


def spline(p, t):
    """The closed Catmull-Rom spline through points p [K, ...], p[i] at time i, at the times t [F] in [0, K)."""
    i, u = t.long(), t.frac().view(-1, *[1] * (p.ndim - 1))
    a, b, c, d = (p[(i + k) % len(p)] for k in (-1, 0, 1, 2))                      # [F, ...]
    return b + u / 2 * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))


def arcs(p, t):
    """Great-circle arcs from point to point of p [K, dim], p[i] at time i, at the times t [F] in [0, K)."""
    i, u = t.long(), (1 - (math.pi * t.frac()).cos()[:, None]) / 2                 # no jump of the speed at a point
    a, b = p[i], p[(i + 1) % len(p)]                                               # [F, dim]
    angle = F.cosine_similarity(a, b).clamp(-1, 1).acos().clamp(min=1e-3)[:, None]              # of equal ones, too
    return (((1 - u) * angle).sin() * a + (u * angle).sin() * b) / angle.sin()


def asked(args, classes):
    """Seeds [N] and classes [N], or None, of all images: class by class, each of the same seeds."""
    seeds = args.seeds or list(range(8 if classes else 64))
    return seeds * (len(classes) or 1), [c for c in classes for _ in seeds] or None


def grid(args, net, classes):
    """A grid of the seeds, in rows of classes."""
    seeds, y = asked(args, classes)
    columns = args.columns or (len(seeds) // len(classes) if classes else 8)
    x = sample(net, seeds, y, **args.truncation)
    images.save_grid(args.out, x, columns)
    print(f'{args.out}: seeds {seeds[0]}-{seeds[-1]} of {args.source}, {columns} a row'
          + (f'; classes from top to bottom: {", ".join(classes.values())}' if classes else ''))
    return x


def each(args, net, classes):
    """One PNG per seed, in a sub-folder per class; written as they are made, however many."""
    seeds, y = asked(args, classes)
    folders = {c: os.path.join(args.each, f'{c:04d}-{name}'.replace(os.sep, '_')) for c, name in classes.items()}
    for folder in folders.values() or [args.each]:
        os.makedirs(folder, exist_ok=True)
    for rows in flat.micro_batches(len(seeds), 64):
        own = y and y[rows]
        x = sample(net, seeds[rows], own, **args.truncation)
        for seed, c, image in zip(seeds[rows], own or [None] * len(x), x):
            images.save_grid(os.path.join(folders.get(c, args.each), f'{seed:06d}.png'), image[None], 1)
    print(f'{len(seeds)} images in {args.each}')


def mix(args, net, classes):
    """The column seeds above, the row seeds to the left, and between them the rows with --mix-layers of the columns."""
    if args.classes and len(classes) > 1:
        loop.refuse(f'--classes {args.classes}: --mix shows one class, name one')
    layers = args.mix_layers or ([4, 5, 6, 7] if net.num_ws > 7 else [*range(net.num_ws // 2, net.num_ws)])
    if max(layers) >= net.num_ws:
        loop.refuse(f'--mix-layers {layers[0]}-{layers[-1]}: {args.source} has the layers 0-{net.num_ws - 1}')
    rows, columns = (points(net, seeds, next(iter(classes), None), **args.truncation) for seeds in args.mix)
    mixed = rows[:, None].repeat(1, len(columns), 1, 1)                            # [R, C, num_ws, w_dim]
    mixed[:, :, layers] = columns[None, :, layers]
    left, top = render(net, rows), render(net, columns)
    inside = render(net, mixed.flatten(0, 1)).unflatten(0, mixed.shape[:2])        # [R, C, 3, H, W]
    top = torch.cat((torch.full_like(top[:1], 255), top))                          # [C + 1, 3, H, W], a white corner
    x = torch.cat((top[None], torch.cat((left[:, None], inside), 1))).flatten(0, 1)
    images.save_grid(args.out, x, len(top))
    print(f'{args.out}: {len(left)} seeds with layers {layers[0]}-{layers[-1]} of {len(columns)} others, {args.source}')
    return x


def interpolate(args, net, classes):
    """A loop through the seeds as a film, its classes side by side, or as a strip, a row per seed and class."""
    k = len(args.interpolate)
    frames = args.frames or k * (20 if args.film else 8)
    t = torch.arange(frames, device=next(net.parameters()).device) * k / frames                    # in [0, k)
    move, x = spline if styled(net) else arcs, []
    for c in classes or [None]:
        x.append(render(net, move(points(net, args.interpolate, c, **args.truncation), t), c))
    x = torch.stack(x)                                                             # [classes or 1, frames, 3, H, W]
    if args.film:
        film(args.out, torch.cat([*x], 3))
    else:
        images.save_grid(args.out, x.flatten(0, 1), args.columns or (frames if frames % k else frames // k))
    print(f'{args.out}: {frames} images around the seeds {", ".join(map(str, args.interpolate))} of {args.source}'
          + (f'; classes: {", ".join(classes.values())}' if classes else ''))
    return x


def film(path, x):
    """Writes images x uint8 [N, 3, H, W] as an endless GIF or, by the program ffmpeg, as MP4."""
    n, _, h, w = x.shape
    x = x.permute(0, 2, 3, 1).contiguous().numpy()

    def gif(tmp):
        first, *rest = map(Image.fromarray, x)
        first.save(tmp, 'GIF', save_all=True, append_images=rest, duration=1000 // FPS, loop=0)

    def mp4(tmp):
        source = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{w}x{h}', '-r', str(FPS), '-i', '-']
        even = ['-vf', 'pad=ceil(iw/2)*2:ceil(ih/2)*2', '-pix_fmt', 'yuv420p']     # what every player can show
        done = subprocess.run(['ffmpeg', '-v', 'error', '-y', *source, *even, '-f', 'mp4', tmp], input=x.tobytes(),
                              capture_output=True)
        if done.returncode:
            loop.refuse(f'--out {path}: ffmpeg failed ({done.stderr.decode().strip()[-200:]}), name the film .gif')
    loop.write(path, gif if path.lower().endswith('.gif') else mp4)


def training(args, saved):
    """The data set to look for neighbours in: of the samples' own run, of another RUN, or a folder or a name."""
    a, path = dict(saved['args']), os.path.join(args.nearest, 'args.json')
    if args.nearest and os.path.exists(path):
        with open(path) as f:
            a = json.load(f)['args']
    elif args.nearest:
        a |= {'data': args.nearest, 'frac': 1., 'holdout': None, 'ref': 'auto', 'classes': 0}
    data = a.get('data') or ''
    if data not in images.NAMES and not os.path.exists(data):
        loop.refuse(f'--nearest: the training images {data} are not here, name their folder: --nearest FOLDER')
    cuts = {k: a[k] for k in ('root', 'frac', 'subset', 'holdout', 'ref', 'res', 'crop') if k in a}
    return images.load(data, seed=a.get('data_seed', 0), plain=bool(a.get('classes')), **cuts)


def nearest(args, net, classes, data):
    """A sheet of samples beside their nearest images of the data set, in feature space."""
    seeds, y = asked(args, classes)
    if min(len(seeds), len(data.images)) < 2:
        loop.refuse(f'--nearest compares two or more: here are {len(seeds)} seeds and {len(data.images)} images')
    extractor = metrics.extractor(args.features or 'auto', device=args.device)
    x = sample(net, seeds, y, **args.truncation)
    made = metrics.stats(lambda a, b: x[a:b], len(x), extractor, keep=('features',)).features
    real = metrics.reference(data.images, extractor, keep=True, cache='auto').features
    near, index = metrics.nearest(made, real, min(4, len(real)))
    radius, shown = metrics.copy_radius(real), [metrics.Images('', len(s), s.__getitem__, '') for s in (x, data.images)]
    names = [f'seed {seed}' + (f', {classes[c]}' if y else '') for seed, c in zip(seeds, y or seeds)]
    metrics.sheet(args.out, *shown, near, index, radius, ROWS, names=names)
    print(f'{args.out}: {len(x)} samples of {args.source} beside their nearest of {len(real)} images of {data.name}, '
          f'{(near[:, 0] <= radius).double().mean():.1%} as near as copies; {extractor.protocol["features"]}')
    return x


@torch.no_grad()
def main(args):
    """Makes the picture that the flags ask for; returns its images, uint8 (None with --each)."""
    saved = loop.read(args.source, args.source, 'model', 'args', 'E')
    for name in STYLED:
        if getattr(args, name) is not None and saved['model'] != 'stylegan2':
            loop.refuse(f'--{name.replace("_", "-")} is for StyleGAN2, {args.source} is of {saved["model"]}')
    classes, data = chosen(args, saved), [training(args, saved)] if args.mode == 'nearest' else []
    net = network(saved, args.device)
    args.truncation = {'psi': 1. if args.psi is None else args.psi, 'cutoff': args.truncation_cutoff}
    if args.truncation_cutoff and args.truncation_cutoff > net.num_ws:
        loop.refuse(f'{loop.flag(args, "truncation_cutoff")}: {args.source} has {net.num_ws} layers')
    if args.noise:
        net.noise = args.noise
    makers = {'grid': grid, 'each': each, 'mix': mix, 'interpolate': interpolate, 'nearest': nearest}
    return makers[args.mode](args, net, classes, *data)


if __name__ == '__main__':
    main(get_args())
