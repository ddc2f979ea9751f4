"""Images out of a run directory or a checkpoint: a grid of seeds (and classes), or one PNG each.

Use:
    python generate.py runs/sngan-emoji-1.0-1234abcd                       # seeds 0-63 of last.pt as grid.png
    python generate.py runs/x/best.pt --seeds 0-9,42 --columns 5 --out ten.png
    python generate.py runs/x --seeds 0-9999 --each samples/               # a folder that metrics.py can read
    python generate.py runs/biggan-x --classes 3,5,7-9 --seeds 0-9         # a row per class, a column per seed
    python generate.py runs/biggan-x --classes bag,dress --each samples/   # by name; a sub-folder per class

x = E(z, y),  z ~ N(0, 1) from the seed, E the averaged generator with BN statistics settled on its own samples.
"""
import argparse
import json
import os

import torch

import loop
from data import images
from metrics import to_uint8
from models import biggan, sngan

NETWORKS = {'sngan': lambda a: sngan.Generator(a['res'], a['ch_g']),
            'biggan': lambda a: biggan.Generator(a['res'], a['classes'], a['ch_g'], a['narrow'])}


def get_args(argv=None):
    """The flags; exits 2 on what is not there."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('source', help='run directory or checkpoint')
    a('--which', choices=['last', 'best'], default='last', help='checkpoint of a run directory')
    a('--seeds', help='such as 0-63 or 1,5,9-12 (default: 0-63, of a conditional model 0-7)')
    a('--classes', help='of a conditional model, every seed in each: such as 0-9, or names (default: up to ten)')
    a('--columns', type=int, help='images per row of the grid (default: 8, of a conditional model one per seed)')
    a('--out', default='grid.png', help='the grid')
    a('--each', metavar='DIR', help='write one PNG per seed there instead of a grid')
    a('--device', choices=['cuda', 'cpu'], default='cuda' if torch.cuda.is_available() else 'cpu',
      help='where to compute')
    args = p.parse_args(argv)
    if os.path.isdir(args.source):
        args.source = os.path.join(args.source, f'{args.which}.pt')
    if not os.path.isfile(args.source):
        loop.refuse(f'{args.source}: no such checkpoint; name a run directory or one of its last.pt, best.pt')
    if args.columns is not None and args.columns < 1:
        loop.refuse(f'--columns {args.columns} is not positive: use 1 or more')
    args.seeds = args.seeds and numbers('--seeds', args.seeds)
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


def load(path, device):
    """The averaged generator of a checkpoint, in eval mode; last.pt's BN statistics are settled first."""
    saved = loop.read(path, path, 'model', 'args', 'E')
    net = NETWORKS[saved['model']](saved['args'])
    net.load_state_dict(saved['E'])
    net = net.to(device, memory_format=torch.channels_last).eval()
    if 'score' in saved:                                       # best.pt was saved settled
        return net
    return loop.settle(net, loop.settling(net.z_dim, device, classes=getattr(net, 'classes', 0)))


def chosen(args, net):
    """{class: name} asked for, names from the run's subset.json; {} of an unconditional net."""
    count = getattr(net, 'classes', 0)
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


@torch.no_grad()
def main(args):
    """Write the grid or the single images; returns them, uint8 [N, 3, H, W], class by class."""
    net = load(args.source, args.device)
    rows = chosen(args, net)
    seeds = args.seeds or list(range(8 if rows else 64))
    y = torch.tensor([*rows] or [0], device=args.device).repeat_interleave(len(seeds))             # [N]
    z = torch.cat([loop.latents(seeds, net.z_dim, args.device)] * (len(rows) or 1))                # [N, z_dim]
    inputs = (z, y) if rows else (z,)
    x = torch.cat([to_uint8(net(*part)).cpu() for part in zip(*(i.split(64) for i in inputs))])
    if args.each:
        for seed, c, image in zip(seeds * (len(rows) or 1), y.tolist(), x):
            folder = os.path.join(args.each, f'{c:04d}-{rows[c]}'.replace(os.sep, '_')) if rows else args.each
            os.makedirs(folder, exist_ok=True)
            images.save_grid(os.path.join(folder, f'{seed:06d}.png'), image[None], 1)
        print(f'{len(x)} images in {args.each}')
    else:
        columns = args.columns or (len(seeds) if rows else 8)
        images.save_grid(args.out, x, columns)
        print(f'{args.out}: seeds {seeds[0]}-{seeds[-1]} of {args.source}, {columns} a row'
              + (f'; classes from top to bottom: {", ".join(rows.values())}' if rows else ''))
    return x


if __name__ == '__main__':
    main(get_args())
