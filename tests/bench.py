"""Speed by hand: seconds per D and G step of SNGAN, and their ratios, measured in turn within one run.

Use:
    python tests/bench.py                        # G 256, D 128, batch 64: the paper's size
    python tests/bench.py --ch-g 64 --ch-d 64 --batch 32 --repeats 10

    ours      train_sngan.py's losses on flat networks, channels_last, in fp32 and (where it has units) bf16
    plain     the released layers written out (upsample, then convolve; convolve, then pool), two D passes, one Adam per
              tensor: as released, fp32 in the contiguous format; and given our precision and memory format
Each figure is the median; the order is shuffled, so that a drift of the machine meets all of them.
"""
import argparse
import random
import statistics
import time

import conftest                                                 # noqa: F401  (puts the repository on the path)
import torch
from test_models import slow_D, slow_G

import loop
import train_sngan


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--ch-g', type=int, default=256, help='channels of G')
    p.add_argument('--ch-d', type=int, default=128, help='channels of D')
    p.add_argument('--batch', type=int, default=64, help='images of a D and of a G step')
    p.add_argument('--repeats', type=int, default=3, help='timings of each step')
    p.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cuda or cpu')
    return p.parse_args(argv)


def settings(args, *extra):
    """The flags of train_sngan.py at these widths and this batch."""
    sizes = {'--ch-g': args.ch_g, '--ch-d': args.ch_d, '--batch': args.batch, '--g-batch': args.batch}
    pairs = [str(x) for pair in sizes.items() for x in pair]
    return train_sngan.get_args(['--data', 'emoji', '--preset', 'paper', *pairs, *extra])


def ours(args, precision, extra=()):
    """D step and G step of train_sngan.py."""
    flags = settings(args, '--precision', precision, *extra)
    device = torch.device(args.device)
    G, D = (loop.Flat(net.to(device, memory_format=torch.channels_last), 2e-4) for net in train_sngan.build(flags))
    sums = loop.Sums(device, 'L_D', 'D_real', 'D_fake', 'L_D_adv', 'L_G', 'L_G_adv')
    x = (torch.rand(args.batch, 3, 32, 32, device=device) * 2 - 1).to(memory_format=torch.channels_last)
    z = torch.randn(args.batch, 128, device=device)

    def context():
        return loop.autocast(flags, device)

    def d_step(part):
        with context():
            return train_sngan.d_loss(D.net, x[part], G.net(z[part]), flags, sums)
    return (lambda: D.update(d_step),
            lambda: G.update(lambda part: train_sngan.g_loss(G.net, D.net, z[part], flags, sums, context)))


def plain(args, precision, memory_format):
    """The same two steps as a plain loop over the released layers."""
    flags = settings(args)
    G, D = (net.to(args.device, memory_format=memory_format) for net in train_sngan.build(flags))
    adam_G, adam_D = (torch.optim.Adam(net.parameters(), 2e-4, (0., .9)) for net in (G, D))
    x = (torch.rand(args.batch, 3, 32, 32, device=args.device) * 2 - 1).to(memory_format=memory_format)
    z = torch.randn(args.batch, 128, device=args.device)

    def step(adam, loss):
        def run():
            adam.zero_grad()
            with torch.autocast(args.device, torch.bfloat16, enabled=precision == 'bf16'):
                value = loss()
            value.backward()
            adam.step()
        return run

    def d_loss():
        return torch.relu(1 - slow_D(D, x)).mean() + torch.relu(1 + slow_D(D, slow_G(G, z).detach())).mean()
    return step(adam_D, d_loss), step(adam_G, lambda: -slow_D(D, slow_G(G, z)).mean())


def seconds(f, device):
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    f()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(args):
    """Print a table of medians and ratios to the plain loop as released."""
    torch.set_num_threads(args.threads)
    precisions = ['fp32', 'bf16'] if loop.has_bf16(torch.device(args.device)) else ['fp32']
    steps = {('plain, as released', 'fp32'): plain(args, 'fp32', torch.contiguous_format)}
    for p in precisions:
        steps['plain, channels_last', p] = plain(args, p, torch.channels_last)
        steps['ours', p] = ours(args, p)
    steps['ours, AdvAug gd', precisions[-1]] = ours(args, precisions[-1], ('--advaug', 'gd'))
    times = {(key, i): [] for key in steps for i in (0, 1)}
    for repeat in range(args.repeats + 1):
        for key, i in random.sample(list(times), len(times)):
            t = seconds(steps[key][i], args.device)
            if repeat:                                           # the first round warms up
                times[key, i].append(t)
    base = [statistics.median(times[('plain, as released', 'fp32'), i]) for i in (0, 1)]
    print(f'G {args.ch_g}, D {args.ch_d}, batch {args.batch}, {args.threads} threads, {args.device}, '
          f'torch {torch.__version__}')
    for key in steps:
        d, g = (statistics.median(times[key, i]) for i in (0, 1))
        whole, faster = 5 * d + g, (5 * base[0] + base[1]) / (5 * d + g)
        print(f'{key[0]:22} {key[1]}  D step {d:7.3f} s ({base[0] / d:4.2f}x)   G step {g:7.3f} s '
              f'({base[1] / g:4.2f}x)   5 D + 1 G {whole:7.2f} s ({faster:4.2f}x)')


if __name__ == '__main__':
    main(get_args())
