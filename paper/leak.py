"""Do the samples show the augmentations? How many generated images a classifier calls turned or mirrored.

Use:
    python paper/leak.py runs/a runs/b                                     # leak.json of two runs
    python paper/leak.py runs/demo/sngan-fashion-mnist-0.1 --out page      # of every run below, for page.py

A small network C learns which of the eight maps t of the square was applied to the training images x, all of
which are upright:
    min  E cross-entropy(C(t(x)), t),   t = (quarter turns 0..3, mirrored 0 or 1)
A generator leaks as far as C calls more of its samples turned than of the held-out images, its false alarms.
Images that look the same when mirrored cannot tell: read `mirrored` beside the row of the held-out images.  A
training with --mirror mirrors rightly.
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import argparse
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))     # the repository

import augment                                                 # noqa: E402
import cli                                                     # noqa: E402
import files                                                   # noqa: E402
import generate                                                # noqa: E402
import loop                                                    # noqa: E402
import trainer                                                 # noqa: E402
from data import images                                        # noqa: E402
from runs import collect                                       # noqa: E402

MAPS = 8                                                       # four quarter turns, mirrored or not
BATCH = 64                                                     # of the classifier's training
RANGES = {'samples': '[1, 1e6]', 'steps': '[1, 1e6]'}          # see cli.check_ranges


def get_args(argv=None):
    """The flags, with the runs below the folders. Exits 2 without a run, or with several data sets."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('runs', nargs='+', help='run directories, or folders of them; all on the same images')
    p.add_argument('--out', default='.', help='folder of leak.json')
    p.add_argument('--samples', type=int, default=1000, help='generated images of each run')
    p.add_argument('--steps', type=int, default=600, help='training steps of the classifier, 64 images each')
    p.add_argument('--device', choices=['cuda', 'cpu'], default='cuda' if torch.cuda.is_available() else 'cpu',
                   help='where to compute')
    args = p.parse_args(argv)
    cli.check_ranges(args, RANGES)
    cli.check_output('--out', args.out, folder=True)

    found = []
    for folder in args.runs:
        if not folder:                                         # the empty name would mean every folder
            cli.refuse("RUNS '' is empty: name the folder of the runs")
        found += [run for run in collect(folder) if os.path.exists(f"{run['path']}/last.pt")]
    if not found:
        cli.refuse('no run with a last.pt below the folders: train something first, or name others')

    sets = {tuple(run['flags'][key] for key in ('data', 'res', 'data_seed', 'frac')) for run in found}
    if len(sets) > 1:
        cli.refuse(f'the runs are on different images ({sorted(map(str, sets))}): name those of one set')
    args.runs = found
    return args


def apply_maps(x, t):
    """Images x [N, C, S, S] under the maps t [N] in 0..7: mirrored if t >= 4, then t % 4 quarter turns."""
    mirror = (t >= 4)[:, None, None, None]
    x = torch.where(mirror, x.flip(3), x)
    turned = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])                   # [4, N, C, S, S]
    return turned[t % 4, torch.arange(len(x), device=x.device)]


def classifier(channels=3, width=32):
    """C: images [N, 3, S, S] -> logits of the eight maps [N, 8]."""
    def block(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, 2, 1), nn.BatchNorm2d(c_out), nn.ReLU())
    return nn.Sequential(
        block(channels, width), block(width, 2 * width), block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(.3), nn.Linear(16 * width, MAPS))


def train_classifier(x, steps, device='cpu'):
    """C, trained on uint8 images x [N, 3, S, S] of the CPU."""
    device = torch.device(device)
    with loop.seeded(0):
        C = classifier().to(device).train()
        adam = torch.optim.AdamW(C.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, steps)
        for step in range(steps):
            t = loop.to_device(torch.randint(MAPS, (BATCH,)), device)
            real = loop.to_device(x[torch.randint(len(x), (BATCH,))], device)
            batch = apply_maps(images.batch(real), t)

            # Colour and translation of DiffAugment make C less sure of details that a generator gets wrong.
            T = augment.draw('color,translation', batch)
            loss = F.cross_entropy(C(T(batch)), t)

            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return C.eval()


@torch.no_grad()
def found_shares(C, x):
    """{turned, mirrored: shares of uint8 images x [N, 3, S, S] that C calls so, n: their number}."""
    device = next(C.parameters()).device
    t = torch.cat([C(images.batch(part.to(device))).argmax(1) for part in x.split(256)])
    turned = (t % 4 > 0).float().mean().item()
    mirrored = (t >= 4).float().mean().item()
    return {'turned': turned, 'mirrored': mirrored, 'n': len(x)}


def samples_of(run, count, device='cpu'):
    """uint8 images of seeds 0 to count - 1; of a conditional run the classes take turns."""
    net = generate.load(f"{run['path']}/last.pt", device)
    classes = getattr(net, 'classes', 0)
    y = torch.arange(count) % classes if classes else None
    return generate.sample(net, range(count), y)


def main(args):
    """Train C, measure held-out images and every run, write leak.json; returns its records."""
    data = trainer.load_data(argparse.Namespace(**args.runs[0]['flags']))
    C = train_classifier(data.images, args.steps, args.device)

    # False alarms and hits on real images.
    real, which = data.holdout, 'held-out images'
    if real is None:
        real, which = data.images, 'training images'
    real = real[torch.from_numpy(trainer.fixed_rows(len(real), args.samples))]
    mixed = apply_maps(real, torch.arange(len(real)) % MAPS)
    records = [{'label': which, **found_shares(C, real)},
               {'label': f'{which}, turned and mirrored at random', **found_shares(C, mixed)}]

    for run in args.runs:
        p = run['flags'].get('ada_p') if run['flags']['aug'] == 'ada' else None
        shares = found_shares(C, samples_of(run, args.samples, args.device))
        records.append({'label': run['label'], 'p': p, 'path': run['path'], **shares})

    os.makedirs(args.out, exist_ok=True)
    files.write_json(f'{args.out}/leak.json', records)
    for record in records:
        print(f"{record['turned']:6.1%} turned  {record['mirrored']:6.1%} mirrored  {record['label']}")
    return records


if __name__ == '__main__':
    cli.script(main, get_args)
