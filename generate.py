"""Images out of a run directory or a checkpoint: a grid of seeds, or one PNG per seed.

Use:
    python generate.py runs/sngan-emoji-1.0-1234abcd                       # seeds 0-63 of last.pt as grid.png
    python generate.py runs/x/best.pt --seeds 0-9,42 --columns 5 --out ten.png
    python generate.py runs/x --seeds 0-9999 --each samples/               # a folder that metrics.py can read

x = E(z),  z ~ N(0, 1) from the seed, E the averaged generator with BN statistics settled on its own z.
"""
import argparse
import os

import torch

import loop
from data import images
from metrics import to_uint8
from models import sngan

NETWORKS = {'sngan': lambda args: sngan.Generator(args['res'], args['ch_g'])}


def get_args(argv=None):
    """The flags; exits 2 on what is not there."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('source', help='run directory or checkpoint')
    a('--which', choices=['last', 'best'], default='last', help='checkpoint of a run directory')
    a('--seeds', default='0-63', help='such as 0-63 or 1,5,9-12')
    a('--columns', type=int, default=8, help='images per row of the grid')
    a('--out', default='grid.png', help='the grid')
    a('--each', metavar='DIR', help='write one PNG per seed there instead of a grid')
    a('--device', choices=['cuda', 'cpu'], default='cuda' if torch.cuda.is_available() else 'cpu',
      help='where to compute')
    args = p.parse_args(argv)
    if os.path.isdir(args.source):
        args.source = os.path.join(args.source, f'{args.which}.pt')
    if not os.path.isfile(args.source):
        loop.refuse(f'{args.source}: no such checkpoint; name a run directory or one of its last.pt, best.pt')
    if args.columns < 1:
        loop.refuse(f'--columns {args.columns} is not positive: use 1 or more')
    args.seeds = seeds(args.seeds)
    return args


def seeds(text):
    """'0-3,7' -> [0, 1, 2, 3, 7]; exits 2 on anything else."""
    numbers = []
    for item in text.split(','):
        low, _, high = item.partition('-')
        if not low.isdigit() or not (high or low).isdigit() or int(high or low) < int(low):
            loop.refuse(f'--seeds {text}: {item!r} is neither a number nor a range such as 0-63')
        numbers += range(int(low), int(high or low) + 1)
    return numbers


def load(path, device):
    """The averaged generator of a checkpoint, in eval mode; last.pt's BN statistics are settled first."""
    saved = loop.read(path, path, 'model', 'args', 'E')
    net = NETWORKS[saved['model']](saved['args'])
    net.load_state_dict(saved['E'])
    net = net.to(device, memory_format=torch.channels_last).eval()
    if 'score' in saved:                                       # best.pt was saved settled
        return net
    return loop.settle(net, ((z,) for z in loop.settling(net.z_dim, device)))


@torch.no_grad()
def main(args):
    """Write the grid or the single images; returns them, uint8 [N, 3, H, W]."""
    net = load(args.source, args.device)
    parts = [args.seeds[i:i + 64] for i in range(0, len(args.seeds), 64)]
    x = torch.cat([to_uint8(net(loop.latents(part, net.z_dim, args.device))).cpu() for part in parts])
    if args.each:
        os.makedirs(args.each, exist_ok=True)
        for seed, image in zip(args.seeds, x):
            images.save_grid(os.path.join(args.each, f'{seed:06d}.png'), image[None], 1)
        print(f'{len(x)} images in {args.each}')
    else:
        images.save_grid(args.out, x, args.columns)
        print(f'{args.out}: seeds {args.seeds[0]}-{args.seeds[-1]} of {args.source}, {args.columns} a row')
    return x


if __name__ == '__main__':
    main(get_args())
