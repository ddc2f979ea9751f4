"""Do the samples show the augmentations? The share of generated images that a classifier calls rotated or mirrored.

Use:
    python leak.py runs/demo/sngan-fashion-mnist-0.1 --out page      # every run below; page/leak.json, for report.py
    python leak.py runs/a runs/b

A small network learns on the training images x, all upright, which of the eight maps t of the square was applied:
    min  E cross-entropy(C(t(x)), t),   t = (quarter turns 0..3, mirrored 0 or 1)
A generator leaks as far as C finds more turned ones among G(z) than among held-out images, its false alarms.  Images
that look the same mirrored cannot tell: read `mirrored` beside the held-out row, and nothing where training mirrors.
"""
import argparse
import os

import torch
import torch.nn.functional as F
from torch import nn

import augment
import gan
import generate
import loop
from data import images
from results import collect


def get_args(argv=None):
    """The flags; exits 2 where no run lies below the folders."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('runs', nargs='+', help='run directories, or folders of them; all on the same images')
    a('--out', default='.', help='folder of leak.json')
    a('--samples', type=int, default=1000, help='generated images of each run')
    a('--steps', type=int, default=600, help='training steps of the classifier, 64 images each')
    args = p.parse_args(argv)
    args.runs = [r for path in args.runs for r in collect(path) if os.path.exists(f"{r['path']}/last.pt")]
    if not args.runs:
        loop.refuse('no run with a last.pt below the folders: train something first, or name others')
    sets = {(r['flags']['data'], r['flags']['res'], r['flags']['data_seed'], r['flags']['frac']) for r in args.runs}
    if len(sets) > 1:
        loop.refuse(f'the runs are on different images ({sorted(map(str, sets))}): name those of one set')
    return args


def turned(x, t):
    """x [N, C, S, S] under the maps t [N] in 0..7: mirrored if t >= 4, then t % 4 quarter turns."""
    x = torch.where((t >= 4)[:, None, None, None], x.flip(3), x)
    every = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])                    # [4, N, C, S, S]
    return every[t % 4, torch.arange(len(x))]


def network(channels=3, width=32):
    """C: images [N, 3, S, S] -> logits of the eight maps [N, 8]."""
    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
    return nn.Sequential(block(channels, width), block(width, 2 * width), block(2 * width, 4 * width),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(.3), nn.Linear(16 * width, 8))


def train(x, steps):
    """C on uint8 training images x [N, 3, S, S]; DiffAugment's colour and translation make it less sure of details."""
    with loop.seeded(0):
        C = network().train()
        adam = torch.optim.AdamW(C.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, steps)
        for step in range(steps):
            t = torch.randint(8, (64,))
            batch = turned(images.batch(x[torch.randint(len(x), (64,))]), t)
            loss = F.cross_entropy(C(augment.draw('color,translation', batch)(batch)), t)
            adam.zero_grad(), loss.backward(), adam.step(), schedule.step()
    return C.eval()


@torch.no_grad()
def shares(C, x):
    """{turned, mirrored}: shares of uint8 images x [N, 3, S, S] that C calls so."""
    t = torch.cat([C(images.batch(part)).argmax(1) for part in x.split(256)])
    return {'turned': (t % 4 > 0).float().mean().item(), 'mirrored': (t >= 4).float().mean().item(), 'n': len(x)}


def main(args):
    """Train C, measure held-out images and every run, write leak.json; returns its rows."""
    flags = argparse.Namespace(**args.runs[0]['flags'])
    data = gan.load(flags)
    C = train(data.images, args.steps)
    real = data.holdout if data.holdout is not None else data.images
    real = real[torch.from_numpy(gan.some(len(real), args.samples))]
    which = 'held-out images' if data.holdout is not None else 'training images'
    mixed = turned(real, torch.arange(len(real)) % 8)
    rows = [{'label': which, **shares(C, real)},
            {'label': f'{which}, turned and mirrored at random', **shares(C, mixed)}]
    for r in args.runs:
        net = generate.load(f"{r['path']}/last.pt", 'cpu')
        classes = getattr(net, 'classes', 0)
        y = torch.arange(args.samples) % classes if classes else None
        x = generate.sample(net, range(args.samples), y)
        rows.append({'label': r['label'], 'p': r['flags'].get('ada_p') if r['flags']['aug'] == 'ada' else None,
                     'path': r['path'], **shares(C, x)})
    os.makedirs(args.out, exist_ok=True)
    loop.write_json(f'{args.out}/leak.json', rows)
    for row in rows:
        print(f"{row['turned']:6.1%} turned  {row['mirrored']:6.1%} mirrored  {row['label']}")
    return rows


if __name__ == '__main__':
    main(get_args())
