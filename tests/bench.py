"""Speed by hand: seconds per D and G step, or of metrics.py, and ratios, measured in turn within one run.

Use:
    python tests/bench.py                        # SNGAN at the paper's size: G 256, D 128, batch 64
    python tests/bench.py --model biggan         # BigGAN at 32 px: 96 channels, batch 64
    python tests/bench.py --model stylegan2 --batch 4 --peer DIR   # at 256 px; DIR: stylegan2-ada-pytorch
    python tests/bench.py --ch-g 64 --ch-d 64 --batch 32 --repeats 10
    python tests/bench.py --metrics              # beside pytorch-fid and torch-fidelity, if pip has installed them
    python tests/bench.py --augment --peer DIR   # ADA; DIR: as above, or of DiffAugment_pytorch.py

    ours      gan.py's losses on flat networks, channels_last, in fp32 and (where it has units) bf16
    plain     the released layers written out (upsample, then convolve; convolve, then pool), two D passes, one Adam per
              tensor: as released, fp32 in the contiguous format; and given our precision and memory format
Each figure is the median; the order is shuffled, so that a drift of the machine meets all of them.
"""
import argparse
import contextlib
import functools
import os
import random
import statistics
import sys
import tempfile
import time

import conftest                                                 # noqa: F401  (puts the repository on the path)
import numpy as np
import scipy.linalg
import torch
import test_biggan
import test_models
from test_metrics import drawn_state

import augment
import gan
import loop
import losses
import metrics
import train_biggan
import train_sngan
import train_stylegan2

RECIPES = {'sngan': train_sngan, 'biggan': train_biggan, 'stylegan2': train_stylegan2}
PRESET = {'sngan': 'paper', 'biggan': 'cifar10', 'stylegan2': 'large'}


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', choices=RECIPES, default='sngan', help='whose steps')
    p.add_argument('--ch-g', type=int, help='channels of G (default: the published ones)')
    p.add_argument('--ch-d', type=int, help='channels of D')
    p.add_argument('--batch', type=int, default=64, help='images of a D and of a G step')
    p.add_argument('--repeats', type=int, default=3, help='timings of each step')
    p.add_argument('--metrics', action='store_true', help='time metrics.py instead')
    p.add_argument('--augment', action='store_true', help='time augment.py instead, forward and backward')
    p.add_argument('--peer', nargs='+', default=[], metavar='DIR', help='folders of the originals, timed beside ours')
    p.add_argument('--threads', type=int, default=os.cpu_count(), help='threads')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cuda or cpu')
    return p.parse_args(argv)


def settings(args, *extra):
    """The flags of train_MODEL.py at these widths and this batch."""
    sizes = {'--ch-g': args.ch_g, '--ch-d': args.ch_d, '--batch': args.batch}
    sizes |= {'--g-batch': args.batch} if args.model == 'sngan' else {}
    pairs = [str(x) for pair in sizes.items() if pair[1] for x in pair]
    return RECIPES[args.model].get_args(['--data', 'emoji', '--preset', PRESET[args.model], *pairs, *extra])


def inputs(args, G, memory_format):
    """Images x, latents z, and the classes [y] of a conditional model."""
    res = G.res
    x = (torch.rand(args.batch, 3, res, res, device=args.device) * 2 - 1).to(memory_format=memory_format)
    y = [torch.arange(args.batch, device=args.device) % G.classes] if args.model == 'biggan' else []
    return x, torch.randn(args.batch, G.z_dim, device=args.device), y


def ours(args, precision, extra=()):
    """D step and G step of train_MODEL.py."""
    flags = settings(args, '--precision', precision, *extra)
    device = torch.device(args.device)
    G, D = (loop.Flat(net.to(device, memory_format=torch.channels_last), 2e-4)
            for net in RECIPES[args.model].build(flags))
    sums = loop.Sums(device, *gan.SUMS)
    x, z, y = inputs(args, G.net, torch.channels_last)

    def context():
        return loop.autocast(flags, device)

    def d_step(part):
        with context():
            return gan.d_loss(D.net, x, G.net(z, *y), flags, sums, *y, *y)
    return (lambda: D.update(d_step),
            lambda: G.update(lambda part: gan.g_loss(G.net, D.net, z, flags, sums, context, *y)))


def plain(args, precision, memory_format):
    """The same two steps as a plain loop over the released layers."""
    flags = settings(args)
    G, D = (net.to(args.device, memory_format=memory_format) for net in RECIPES[args.model].build(flags))
    adam_G, adam_D = (torch.optim.Adam(net.parameters(), 2e-4, (0., .9)) for net in (G, D))
    x, z, y = inputs(args, G, memory_format)
    slow = {'sngan': test_models, 'biggan': test_biggan}[args.model]

    def step(adam, loss):
        def run():
            adam.zero_grad()
            with torch.autocast(args.device, torch.bfloat16, enabled=precision == 'bf16'):
                value = loss()
            value.backward()
            adam.step()
        return run

    def d_loss():
        with torch.set_grad_enabled(args.model == 'sngan'):     # the released BigGAN freezes G, the SNGAN detaches it
            fake = slow.slow_G(G, z, *y).detach()
        return torch.relu(1 - slow.slow_D(D, x, *y)).mean() + torch.relu(1 + slow.slow_D(D, fake, *y)).mean()
    return step(adam_D, d_loss), step(adam_G, lambda: -slow.slow_D(D, slow.slow_G(G, z, *y), *y).mean())


def seconds(f, device):
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    f()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(calls, repeats, device):
    """{name: median seconds} of {name: call}, in shuffled order, after a round that warms up."""
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name in random.sample(list(calls), len(calls)):
            t = seconds(calls[name], device)
            if repeat:
                times[name].append(t)
    return {name: statistics.median(t) for name, t in times.items()}


def peers(path, device):
    """Features by the published tools, where they are installed: pip install --no-deps pytorch-fid torch-fidelity."""
    calls = {}
    with contextlib.suppress(ImportError):
        from pytorch_fid import inception
        inception.load_state_dict_from_url = lambda *a, **k: torch.load(path)
        net = inception.InceptionV3([3]).eval().to(device)
        calls['pytorch-fid'] = lambda x, net=net: net(x.float() / 255)
    with contextlib.suppress(ImportError):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Extractor
        tf1 = Extractor('inception-v3-compat', ['2048'], feature_extractor_weights_path=path).eval().to(device)
        calls['torch-fidelity'] = lambda x: tf1(x)
    return calls


@torch.no_grad()
def scores(args):
    """Print features a second, and the Frechet distance by scipy's root and by ours, full rank and few references."""
    with tempfile.NamedTemporaryFile(suffix='.pth') as file:
        torch.save(drawn_state(), file.name)
        calls = peers(file.name, args.device)
        for mode in metrics.RESIZE:
            calls[f'ours, resize {mode}'] = metrics.Inception(file.name, args.device, mode, check=False)
    x = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8, device=args.device)
    times = in_turn({name: functools.partial(call, x) for name, call in calls.items()}, args.repeats, args.device)
    for name, t in times.items():
        ratios = ''.join(f', {times[peer] / t:.2f}x {peer}' for peer in times if not peer.startswith('ours'))
        print(f'Inception, {args.batch} images of 32 px, {name}: {args.batch / t:.2f} images/s{ratios}', flush=True)

    r = np.random.RandomState(0)
    f = (np.abs(r.normal(size=(n, 2048)) @ r.normal(size=(2048, 2048)) / 45) for n in (3000, 3000, 500, 100))
    full, gen, few, least = (metrics.complete(len(a), a.mean(0), a.T.cov(), a) for a in map(torch.from_numpy, f))
    known = full._replace(root=metrics.factor(full.sigma))
    times = in_turn({'scipy.linalg.sqrtm': lambda: scipy.linalg.sqrtm((full.sigma @ gen.sigma).numpy()),
                     'ours': lambda: metrics.distance(full, gen), 'ours, root of the reference at hand':
                     lambda: metrics.distance(known, gen), 'ours, 500 references': lambda: metrics.distance(few, gen),
                     'ours, 100 references': lambda: metrics.distance(least, gen)},
                    args.repeats, 'cpu')
    for name, t in times.items():
        print(f"Frechet distance of 2048 features, {name}: {t:.3f} s, {times['scipy.linalg.sqrtm'] / t:.1f}x scipy's")


def four(G, D, x, z, w_of, synthesis):
    """{step: loss} of StyleGAN2's Gmain, Greg, Dmain, Dreg on networks of either make, without arguments."""
    def path_length():
        w = w_of(z[:max(len(z) // 2, 1)])
        image = synthesis(w)
        g, = torch.autograd.grad((image * torch.randn_like(image)).sum(), w, create_graph=True)
        return g.square().sum(2).mean(1).sqrt().var(correction=0)

    def r1():
        real = x.detach().requires_grad_(True)
        return losses.r1(D(real), real)

    def d_main():
        with torch.no_grad():
            fake = G(z)
        return losses.d_loss(D(x), D(fake), losses.LOSSES['logistic'][0])
    return {'Gmain': (G, lambda: torch.nn.functional.softplus(-D(G(z))).mean()), 'Greg': (G, path_length),
            'Dmain': (D, d_main), 'Dreg': (D, r1)}


def stylegan2(args):
    """Print seconds of the four steps, ours in each precision and (with --peer) of the original's plain PyTorch."""
    flags = settings(args)
    x, z, _ = inputs(args, train_stylegan2.build(flags)[0], torch.channels_last)
    calls = {}

    def add(name, G, D, of, synthesis, context=contextlib.nullcontext):
        for step, (net, loss) in four(G, D, x, z, of, synthesis).items():
            def run(net=net, loss=loss):
                for p in [*G.parameters(), *D.parameters()]:
                    p.requires_grad_(False)
                for p in net.parameters():
                    p.requires_grad_(True)
                with context():
                    value = loss()
                torch.autograd.grad(value, [p for p in net.parameters()], allow_unused=True)
            calls[step, name] = run
    for precision in ('fp32', 'bf16') if loop.has_bf16(torch.device(args.device)) else ('fp32',):
        G, D = (net.to(args.device, memory_format=torch.channels_last) for net in train_stylegan2.build(flags))
        flags.precision = precision
        add(f'ours {precision}', G, D, lambda z, G=G: G.split(z, cut=1)[0], G.synthesis,
            lambda p=precision: torch.autocast(args.device, torch.bfloat16, enabled=p == 'bf16'))
    if args.peer:
        sys.path += args.peer
        from torch_utils.ops import bias_act, upfirdn2d
        from training import networks
        upfirdn2d._init = bias_act._init = lambda: False       # never tries to compile
        kind = dict(c_dim=0, img_resolution=flags.res, img_channels=3)
        size = dict(channel_base=flags.ch_g, channel_max=512, num_fp16_res=0, conv_clamp=None)
        G = networks.Generator(z_dim=512, w_dim=512, mapping_kwargs=dict(num_layers=flags.mapping),
                               synthesis_kwargs=size, **kind).to(args.device)
        D = networks.Discriminator(**kind, **size, epilogue_kwargs=dict(mbstd_group_size=flags.group)).to(args.device)
        add('original', Called(G), Called(D), lambda z: G.mapping(z, None), G.synthesis)
    times = in_turn(calls, args.repeats, args.device)
    print(f'StyleGAN2, {flags.res} px, {flags.ch_g} / resolution channels, batch {args.batch}, {args.threads} threads')
    for step in ('Gmain', 'Greg', 'Dmain', 'Dreg'):
        base = times.get((step, 'original'), times[step, 'ours fp32'])
        words = [f'{name} {t:.2f} s ({base / t:.2f}x)' for (s, name), t in times.items() if s == step]
        print(f"{step}: {', '.join(words)}", flush=True)


class Called(torch.nn.Module):
    """An original network without classes."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x, None)


def original(args):
    """{policy: T(x, p)} of the originals below --peer, in plain PyTorch."""
    sys.path += args.peer
    calls, has = {}, lambda name: any(os.path.exists(os.path.join(path, name)) for path in args.peer)
    if has('torch_utils'):
        from torch_utils.ops import upfirdn2d
        from training.augment import AugmentPipe
        upfirdn2d._init = lambda: False                        # never tries to compile
        bgc = dict.fromkeys('xflip rotate90 xint scale rotate aniso xfrac brightness contrast lumaflip hue saturation'
                            .split(), 1)
        pipe = AugmentPipe(**bgc).to(args.device)
        calls['bgc'] = lambda x, p: pipe.p.copy_(torch.as_tensor(p)) is not None and pipe(x)
    if has('DiffAugment_pytorch.py'):
        from DiffAugment_pytorch import DiffAugment
        calls['color,translation,cutout'] = lambda x, p: DiffAugment(x, 'color,translation,cutout')
    return calls


def augmentation(args):
    """Print seconds of T's parameters, T and its backward, ours and (with --peer) the original's."""
    theirs = original(args)
    for shape in ((64, 3, 32, 32), (16, 3, 256, 256)):
        x, g = torch.randn(2, *shape, device=args.device)
        x.requires_grad_(True)
        for policy, p in (('bgc', .1), ('bgc', .6), ('color,translation,cutout', None)):
            calls = {'ours': lambda x, p, policy=policy: augment.draw(policy, x, p)(x)}
            calls |= {'original': theirs[policy]} if policy in theirs else {}
            times = in_turn({name: lambda f=f, p=p: torch.autograd.grad(f(x, p), x, g) for name, f in calls.items()},
                            args.repeats, args.device)
            ratio = f", original {times['original']:.4f} s ({times['original'] / times['ours']:.2f}x)" \
                if 'original' in times else ''
            print(f"{policy}{'' if p is None else f' at p {p}'}, {list(shape)}, {args.threads} threads: "
                  f"{times['ours']:.4f} s{ratio}", flush=True)


def main(args):
    """Print a table of medians and ratios to the plain loop as released."""
    torch.set_num_threads(args.threads)
    if args.model == 'stylegan2':
        return stylegan2(args)
    if args.metrics or args.augment:
        return scores(args) if args.metrics else augmentation(args)
    precisions = ['fp32', 'bf16'] if loop.has_bf16(torch.device(args.device)) else ['fp32']
    d_steps = settings(args).d_steps
    steps = {('plain, as released', 'fp32'): plain(args, 'fp32', torch.contiguous_format)}
    for p in precisions:
        steps['plain, channels_last', p] = plain(args, p, torch.channels_last)
        steps['ours', p] = ours(args, p)
    for players in ('d', 'gd'):
        steps[f'ours, AdvAug {players}', precisions[-1]] = ours(args, precisions[-1], ('--advaug', players))
    calls = {(key, i): steps[key][i] for key in steps for i in (0, 1)}
    times = in_turn(calls, args.repeats, args.device)
    base = [times[('plain, as released', 'fp32'), i] for i in (0, 1)]
    flags = settings(args)
    print(f'{args.model}, G {flags.ch_g}, D {flags.ch_d}, batch {args.batch}, {args.threads} threads, {args.device}, '
          f'torch {torch.__version__}')
    for key in steps:
        d, g = (times[key, i] for i in (0, 1))
        whole, faster = d_steps * d + g, (d_steps * base[0] + base[1]) / (d_steps * d + g)
        print(f'{key[0]:22} {key[1]}  D step {d:7.3f} s ({base[0] / d:4.2f}x)   G step {g:7.3f} s '
              f'({base[1] / g:4.2f}x)   {d_steps} D + 1 G {whole:7.2f} s ({faster:4.2f}x)')


if __name__ == '__main__':
    main(get_args())
