"""Speed by hand: seconds per D and G step, or of metrics.py, and ratios, measured in turn within one run.

Use:
    python tests/bench.py                        # SNGAN at the paper's size: G 256, D 128, batch 64
    python tests/bench.py --model biggan         # BigGAN at 32 px: 96 channels, batch 64
    python tests/bench.py --model stylegan2 --batch 4 --peer DIR   # at 256 px; DIR: stylegan2-ada-pytorch
    python -O tests/bench.py --model stylegan2 --preset demo --batch 8 --threads 1 --peer DIR  # narrow, 64 px
                                                 # -O: without assertions, which keep the original from bf16
    python tests/bench.py --ch-g 64 --ch-d 64 --batch 32 --repeats 10
    python tests/bench.py --metrics              # beside pytorch-fid and torch-fidelity, if installed
    python tests/bench.py --augment --peer DIR   # ADA; DIR: as above, or of DiffAugment_pytorch.py
    python tests/bench.py --scripts demo --threads 1           # images/s and peak memory of each train_*.py
    python tests/bench.py --cost docs/cost.json --threads 1    # over steps, by batch, by pixels; a plot
    python tests/bench.py --json FILE            # the figures of a table, too

    ours      gan.py's losses on flat networks, channels_last, in fp32 and (where it has units) bf16
    plain     the released layers written out (upsample, then convolve; convolve, then pool), two D passes,
              one Adam per tensor: as released, in fp32 and contiguous; and given our precision and format
Each figure is the median.  The order is shuffled, so that a drift of the machine meets all of them.  With one
thread on a CPU, the seconds are those of the process: its neighbours do not count.  images/s are real images
that D sees, over whole iterations.  The share is that of the machine's peak, a large 3x3 convolution that is
timed in the same run.
"""
import argparse
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time

import conftest                                                # noqa: F401  (puts the repository on the path)
import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from helpers import ROOT, SLOW, drawn_state, flop

import augment
import flat
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
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('--model', choices=RECIPES, default='sngan', help='whose steps')
    a('--preset', help="of train_MODEL.py (default: the published size)")
    a('--ch-g', type=int, help='channels of G (default: the published ones)')
    a('--ch-d', type=int, help='channels of D')
    a('--batch', type=int, default=64, help='images of a D and of a G step')
    a('--repeats', type=int, default=3, help='timings of each step')
    a('--metrics', action='store_true', help='time metrics.py instead')
    a('--augment', action='store_true', help='time augment.py instead, forward and backward')
    a('--scripts', choices=['demo', 'paper'], help='time whole trainings of these settings instead')
    a('--cost', metavar='FILE',
      help='measure what this .json lacks of the cost of long and of large trainings, and draw it')
    a('--steps', type=int, default=10, help='steps of each training of --scripts, from 3 on')
    a('--json', metavar='FILE', help='write the figures of the table there, too')
    a('--peer', nargs='+', default=[], metavar='DIR', help='folders of the originals, timed beside ours')
    a('--threads', type=int, default=os.cpu_count(), help='threads')
    a('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cuda or cpu')
    return p.parse_args(argv)


# ---- timing

def now(device):
    """Seconds on a clock, when the device has ended what was started.

    With one thread on a CPU they are those of this process, so that its neighbours do not count."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def seconds(call, device):
    """Seconds of one call."""
    start = now(device)
    call()
    return now(device) - start


def in_turn(calls, repeats, device):
    """{name: median seconds} of {name: call}, in shuffled order, after a round that warms up."""
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name in random.sample(list(calls), len(calls)):
            t = seconds(calls[name], device)
            if repeat:
                times[name].append(t)
    return {name: statistics.median(t) for name, t in times.items()}


def convolution_peak(precision, device):
    """FLOP a second of a large 3x3 convolution, forwards."""
    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    x = torch.randn(32, 256, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def call():
        F.conv2d(x, w, padding=1)
    with torch.no_grad():
        return flop(call) / in_turn({'': call}, 5, device)['']


def machine(args):
    """What was measured on."""
    name = platform.processor() or platform.machine()
    if args.device == 'cuda':
        name = torch.cuda.get_device_name()
    elif os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as f:
            name = next((line.split(':')[1].strip() for line in f if line.startswith('model name')), name)
    return {'device': name, 'threads': args.threads, 'torch': torch.__version__}


# ---- the steps of SNGAN and BigGAN

def settings(args, *more):
    """The flags of train_MODEL.py at these widths and this batch."""
    sizes = {'--ch-g': args.ch_g, '--ch-d': args.ch_d, '--batch': args.batch}
    if args.model == 'sngan':
        sizes['--g-batch'] = args.batch
    words = ['--data', 'emoji', '--preset', args.preset or PRESET[args.model]]
    for flag, size in sizes.items():
        if size:
            words += [flag, str(size)]
    return RECIPES[args.model].get_args([*words, *more])


def inputs(args, G, memory_format):
    """Images x, latents z, and the classes [y] of a conditional model."""
    x = torch.rand(args.batch, 3, G.res, G.res, device=args.device) * 2 - 1
    y = []
    if args.model == 'biggan':
        y = [torch.arange(args.batch, device=args.device) % G.classes]
    return x.to(memory_format=memory_format), torch.randn(args.batch, G.z_dim, device=args.device), y


def ours(args, precision, *more):
    """The D step and the G step of train_MODEL.py, two calls."""
    flags = settings(args, '--precision', precision, *more)
    device = torch.device(args.device)
    G, D = (net.to(device, memory_format=torch.channels_last) for net in RECIPES[args.model].build(flags))
    G, D = (flat.Flat(net, 2e-4, graph=flags.graph) for net in (G, D))
    sums = loop.Sums(device, *gan.SUMS)
    x, z, y = inputs(args, G.net, torch.channels_last)

    def context():
        return loop.autocast(flags, device)

    def d_step(part):
        with context():
            return gan.d_loss(D.net, x, G.net(z, *y), flags, sums, *y, *y)

    def g_step(part):
        return gan.g_loss(G.net, D.net, z, flags, sums, context, *y)
    updates = functools.partial(D.update, d_step), functools.partial(G.update, g_step)
    if flags.graph:
        for _ in range(flat.WARM_UP + 1):                      # the last of them records
            for update in updates:
                update()
    return updates


def plain(args, precision, memory_format):
    """The same two steps as a plain loop over the released layers."""
    flags = settings(args)
    G, D = (net.to(args.device, memory_format=memory_format) for net in RECIPES[args.model].build(flags))
    adam_G = torch.optim.Adam(G.parameters(), 2e-4, (0., .9))
    adam_D = torch.optim.Adam(D.parameters(), 2e-4, (0., .9))
    x, z, y = inputs(args, G, memory_format)
    slow_G, slow_D = SLOW[args.model]

    def step(adam, loss):
        adam.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == 'bf16'):
            value = loss()
        value.backward()
        adam.step()

    def d_loss():
        with torch.set_grad_enabled(args.model == 'sngan'):    # released: BigGAN freezes G, SNGAN detaches it
            fake = slow_G(G, z, *y).detach()
        return F.relu(1 - slow_D(D, x, *y)).mean() + F.relu(1 + slow_D(D, fake, *y)).mean()

    def g_loss():
        return -slow_D(D, slow_G(G, z, *y), *y).mean()
    return functools.partial(step, adam_D, d_loss), functools.partial(step, adam_G, g_loss)


def training_steps(args):
    """Print and return a table of medians, and of ratios to the plain loop as released."""
    precisions = ['fp32']
    if loop.has_bf16(torch.device(args.device)):
        precisions.append('bf16')
    steps = {('plain, as released', 'fp32'): plain(args, 'fp32', torch.contiguous_format)}
    for precision in precisions:
        steps['plain, channels_last', precision] = plain(args, precision, torch.channels_last)
        steps['ours', precision] = ours(args, precision)
    if args.device == 'cuda':
        steps['ours, CUDA graphs', precisions[-1]] = ours(args, precisions[-1], '--graph')
    for players in ('d', 'gd'):
        steps[f'ours, AdvAug {players}', precisions[-1]] = ours(args, precisions[-1], '--advaug', players)

    calls = {}
    for key, (d_step, g_step) in steps.items():
        calls |= {(key, 'D'): d_step, (key, 'G'): g_step}
    times = in_turn(calls, args.repeats, args.device)

    peaks = {precision: convolution_peak(precision, args.device) for precision in precisions}
    flags = settings(args)
    print(f'{args.model}, G {flags.ch_g}, D {flags.ch_d}, batch {args.batch}, {args.threads} threads, '
          f'{args.device}, torch {torch.__version__}, '
          + ', '.join(f'peak {peak / 1e9:.0f} GFLOP/s in {name}' for name, peak in peaks.items()))
    base_d, base_g = times[next(iter(steps)), 'D'], times[next(iter(steps)), 'G']
    base = flags.d_steps * base_d + base_g
    rows = []
    for key, (d_step, g_step) in steps.items():
        d, g = times[key, 'D'], times[key, 'G']
        whole = flags.d_steps * d + g
        rate = flags.d_steps * args.batch / whole
        counted = steps['ours', key[1]] if 'graphs' in key[0] else (d_step, g_step)
        work = flags.d_steps * flop(counted[0]) + flop(counted[1])
        share = work / whole / peaks[key[1]]
        print(f'{key[0]:22} {key[1]}  D step {d:7.3f} s ({base_d / d:4.2f}x)   G step {g:7.3f} s '
              f'({base_g / g:4.2f}x)   {flags.d_steps} D + 1 G {whole:7.2f} s ({base / whole:4.2f}x)   '
              f'{rate:.4g} images/s   {share:.0%} of the peak')
        rows.append({'name': key[0], 'precision': key[1],
                     'D': d, 'G': g, 'images_per_s': rate, 'share': share})
    return {'peaks': peaks, 'rows': rows}


# ---- the four steps of StyleGAN2

class Called(torch.nn.Module):
    """An original network without classes."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x, None)


def four_losses(G, D, x, z, styles_of, synthesis):
    """{step: (network, loss())} of Gmain, Greg, Dmain, Dreg, on networks of either make."""
    def g_main():
        return F.softplus(-D(G(z))).mean()

    def path_length():
        w = styles_of(z[:max(len(z) // 2, 1)])
        image = synthesis(w)
        g, = torch.autograd.grad((image * torch.randn_like(image)).sum(), w, create_graph=True)
        return g.square().sum(2).mean(1).sqrt().var(correction=0)

    def d_main():
        with torch.no_grad():
            fake = G(z)
        return losses.d_loss(D(x), D(fake), losses.LOSSES['logistic'][0])

    def r1():
        real = x.detach().requires_grad_(True)
        return losses.r1(D(real), real)
    return {'Gmain': (G, g_main), 'Greg': (G, path_length), 'Dmain': (D, d_main), 'Dreg': (D, r1)}


def gradient(net, loss, networks, context):
    """The gradient of a loss by one of two networks, while the other requires none."""
    for other in networks:
        other.requires_grad_(other is net)
    with context():
        value = loss()
    torch.autograd.grad(value, list(net.parameters()), allow_unused=True)


@contextlib.contextmanager
def imports_of(paths):
    """Inside, modules come from the folders of a peer, also those with names of ours (metrics, generate)."""
    theirs = {os.path.splitext(name)[0] for path in paths for name in os.listdir(path)}
    ours = {}
    for name, module in list(sys.modules.items()):
        place = getattr(module, '__file__', None) or ''
        if name.split('.')[0] in theirs and place.startswith(ROOT):
            ours[name] = sys.modules.pop(name)
    sys.path[:0] = paths
    try:
        yield
    finally:
        del sys.path[:len(paths)]
        sys.modules.update(ours)


def original_networks(args, flags):
    """G, D of stylegan2-ada-pytorch, in plain PyTorch."""
    with imports_of(args.peer):
        from torch_utils.ops import bias_act, upfirdn2d
        from training import networks
    upfirdn2d._init = bias_act._init = lambda: False           # never tries to compile
    kind = {'c_dim': 0, 'img_resolution': flags.res, 'img_channels': 3}
    size = {'channel_base': flags.ch_g, 'channel_max': flags.ch_max, 'num_fp16_res': 0, 'conv_clamp': None}
    G = networks.Generator(z_dim=512, w_dim=512, mapping_kwargs={'num_layers': flags.mapping},
                           synthesis_kwargs=size, **kind)
    D = networks.Discriminator(**kind, **size, epilogue_kwargs={'mbstd_group_size': flags.group})
    return G.to(args.device), D.to(args.device)


def stylegan2_steps(args):
    """Print and return seconds of the four steps: ours in each precision and, with --peer, the original's."""
    flags = settings(args)
    x, z, _ = inputs(args, train_stylegan2.build(flags)[0], torch.channels_last)
    calls = {}

    def add(name, G, D, styles_of, synthesis, context):
        for step, (net, loss) in four_losses(G, D, x, z, styles_of, synthesis).items():
            calls[step, name] = functools.partial(gradient, net, loss, (G, D), context)

    precisions = ('fp32', 'bf16') if loop.has_bf16(torch.device(args.device)) else ('fp32',)
    for precision in precisions:
        nets = train_stylegan2.build(flags)
        G, D = (net.to(args.device, memory_format=torch.channels_last) for net in nets)
        context = functools.partial(torch.autocast, args.device, torch.bfloat16, enabled=precision == 'bf16')
        add(f'ours {precision}', G, D, lambda z, G=G: G.split(z, cut=1)[0], G.synthesis, context)
    if args.peer:
        G, D = original_networks(args, flags)
        styles_of = functools.partial(G.mapping, c=None)
        add('original', Called(G), Called(D), styles_of, G.synthesis, contextlib.nullcontext)
        G, D = (net.to(memory_format=torch.channels_last) for net in original_networks(args, flags))
        styles_of = functools.partial(G.mapping, c=None)
        if __debug__:                                          # its assertions want fp32 between its blocks
            precision, context = 'fp32', contextlib.nullcontext
        add(f'original {precision} channels_last', Called(G), Called(D), styles_of, G.synthesis, context)

    times = in_turn(calls, args.repeats, args.device)
    print(f'StyleGAN2, {flags.res} px, {flags.ch_g} / resolution channels up to {flags.ch_max}, '
          f'batch {args.batch}, {args.threads} threads')
    names = list(dict.fromkeys(name for _, name in times))
    base = 'original' if args.peer else 'ours fp32'
    figures = {}
    for name in names:
        words = []
        for step in ('Gmain', 'Greg', 'Dmain', 'Dreg'):
            t = times[step, name]
            words.append(f'{step} {t:.3f} s ({times[step, base] / t:.2f}x)')
        whole = times['Gmain', name] + times['Dmain', name]    # an iteration
        if flags.pl:
            whole += times['Greg', name] / flags.pl_every
        if flags.r1:
            whole += times['Dreg', name] / flags.r1_every
        print(f"{name:26} {'   '.join(words)}   {args.batch / whole:.4g} images/s", flush=True)
        figures[name] = {step: times[step, name] for step in ('Gmain', 'Greg', 'Dmain', 'Dreg')}
        figures[name]['images_per_s'] = args.batch / whole
    return figures


# ---- scores

def published_extractors(path, device):
    """Features by the published tools that are there: pip install --no-deps pytorch-fid torch-fidelity."""
    calls = {}
    with contextlib.suppress(ImportError):
        from pytorch_fid import inception
        inception.load_state_dict_from_url = lambda *args, **kwargs: torch.load(path)
        net = inception.InceptionV3([3]).eval().to(device)
        calls['pytorch-fid'] = lambda x: net(x.float() / 255)
    with contextlib.suppress(ImportError):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        tf1 = FeatureExtractorInceptionV3('inception-v3-compat', ['2048'],
                                          feature_extractor_weights_path=path)
        calls['torch-fidelity'] = tf1.eval().to(device)
    return calls


@torch.no_grad()
def scores(args):
    """Print features a second, and seconds of the Frechet distance."""
    with tempfile.NamedTemporaryFile(suffix='.pth') as file:
        torch.save(drawn_state(), file.name)
        calls = published_extractors(file.name, args.device)
        for mode in metrics.RESIZE:
            calls[f'ours, resize {mode}'] = metrics.Inception(file.name, args.device, mode, check=False)
    x = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8, device=args.device)
    calls = {name: functools.partial(call, x) for name, call in calls.items()}
    times = in_turn(calls, args.repeats, args.device)
    peers = [name for name in times if not name.startswith('ours')]
    for name, t in times.items():
        ratios = ''.join(f', {times[peer] / t:.2f}x {peer}' for peer in peers)
        speed = f'{args.batch / t:.2f} images/s{ratios}'
        print(f'Inception, {args.batch} images of 32 px, {name}: {speed}', flush=True)
    return {'features': times, 'distances': frechet_distances(args)}


def frechet_distances(args):
    """Print seconds of the Frechet distance by scipy's root and by ours, for many and for few images."""
    r, sets = np.random.RandomState(0), []
    for n in (3000, 3000, 500, 100):
        f = np.abs(r.normal(size=(n, 2048)) @ r.normal(size=(2048, 2048)) / 45)
        f = torch.from_numpy(f)
        sets.append(metrics.make_stats(n, f.mean(0), f.T.cov(), f))
    full, gen, few, least = sets
    known = full._replace(root=metrics.factor(full.sigma))

    calls = {'scipy.linalg.sqrtm': lambda: scipy.linalg.sqrtm((full.sigma @ gen.sigma).numpy()),
             'ours': functools.partial(metrics.distance, full, gen),
             'ours, root of the reference at hand': functools.partial(metrics.distance, known, gen),
             'ours, 500 references': functools.partial(metrics.distance, few, gen),
             'ours, 100 references': functools.partial(metrics.distance, least, gen)}
    times = in_turn(calls, args.repeats, 'cpu')
    for name, t in times.items():
        ratio = times['scipy.linalg.sqrtm'] / t
        print(f"Frechet distance of 2048 features, {name}: {t:.3f} s, {ratio:.1f}x scipy's")
    return times


# ---- augmentation

def original_augmentations(args):
    """{policy: T(x, p)} of the originals below --peer, in plain PyTorch."""
    calls = {}

    def has(name):
        return any(os.path.exists(os.path.join(path, name)) for path in args.peer)
    if has('torch_utils'):
        with imports_of(args.peer):
            from torch_utils.ops import upfirdn2d
            from training.augment import AugmentPipe
        upfirdn2d._init = lambda: False                        # never tries to compile
        kinds = 'xflip rotate90 xint scale rotate aniso xfrac brightness contrast lumaflip hue saturation'
        pipe = AugmentPipe(**dict.fromkeys(kinds.split(), 1)).to(args.device)

        def bgc(x, p):
            pipe.p.copy_(torch.as_tensor(p))
            return pipe(x)
        calls['bgc'] = bgc
    if has('DiffAugment_pytorch.py'):
        with imports_of(args.peer):
            from DiffAugment_pytorch import DiffAugment
        calls['color,translation,cutout'] = lambda x, p: DiffAugment(x, 'color,translation,cutout')
    return calls


def augmentation(args):
    """Print seconds of T's parameters, T and its backward pass: ours and, with --peer, the original's."""
    originals = original_augmentations(args)
    figures = {}
    for shape in ((64, 3, 32, 32), (16, 3, 256, 256)):
        x, g = torch.randn(2, *shape, device=args.device)
        x.requires_grad_(True)
        for policy, p in (('bgc', .1), ('bgc', .6), ('color,translation,cutout', None)):
            transforms = {'ours': lambda x, p, policy=policy: augment.draw(policy, x, p)(x)}
            if policy in originals:
                transforms['original'] = originals[policy]

            def run(name, transforms=transforms, x=x, g=g, p=p):
                torch.autograd.grad(transforms[name](x, p), x, g)
            calls = {name: functools.partial(run, name) for name in transforms}
            times = in_turn(calls, args.repeats, args.device)
            at, ratio = '', ''
            if p is not None:
                at = f' at p {p}'
            if 'original' in times:
                ratio = f", original {times['original']:.4f} s ({times['original'] / times['ours']:.2f}x)"
            what = f'{policy}{at}, {list(shape)}, {args.threads} threads'
            figures[what] = times
            print(f"{what}: {times['ours']:.4f} s{ratio}", flush=True)
    return figures


# ---- whole trainings

def resident(device):
    """The memory in MB that this process holds now: on the GPU, or resident."""
    if device.type == 'cuda':
        return round(torch.cuda.memory_allocated(device) / 2 ** 20)
    try:
        with open('/proc/self/statm') as f:
            pages = int(f.read().split()[1])
    except OSError:                                            # no Linux: the peak
        return loop.peak_memory(device)
    return round(pages * os.sysconf('SC_PAGE_SIZE') / 2 ** 20)


def follow(model, words, every, threads):
    """A training by train_MODEL.py in this process: {images_per_s, mb: of each `every` steps, peak_mb}.

    images_per_s counts the real images that D sees, from the first step on without the start."""
    torch.set_num_threads(threads)
    recipe = RECIPES[model]
    iterations = loop.Run.iterations
    times, memory, peak = [], [], [0]

    def watched(run, *args, **kwargs):
        times.append(now(run.device))
        for step in iterations(run, *args, **kwargs):
            yield step
            if step % every == 0:
                times.append(now(run.device))
                memory.append(resident(run.device))
                peak[0] = loop.peak_memory(run.device)
    loop.Run.iterations = watched
    with tempfile.TemporaryDirectory() as out:
        flags = recipe.get_args([*words, '--metrics', 'none', '--out', os.path.join(out, 'run')])
        recipe.main(flags)
    loop.Run.iterations = iterations

    images = every * flags.batch * flags.d_steps
    rates = [round(images / t, 1) for t in np.diff(times)]
    return {'flags': ' '.join(words), 'every': every, 'precision': flags.precision,
            'images_per_s': rates, 'mb': memory, 'peak_mb': peak[0]}


def apart(function, *args):
    """function(*args) in a process of its own, whose peak of memory is its own, too."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


SETTINGS = {                                                   # of --scripts: the flags of train_MODEL.py
    'demo': {'sngan': '--data emoji-faces --preset demo', 'biggan': '--data emoji --preset demo',
             'stylegan2': '--data emoji-faces --preset demo'},
    'paper': {'sngan': '--data emoji-faces --preset paper', 'biggan': '--data emoji --preset cifar10',
              'stylegan2': '--data emoji-faces --preset paper --res 256'},
}


def whole_trainings(args):
    """Print and return images/s and peak memory of each script, by its demo's or the paper's settings."""
    figures = {}
    for model, flags in SETTINGS[args.scripts].items():
        steps = str(args.steps)                                # the first and the last one draw and log
        words = [*flags.split(), '--device', args.device,
                 '--steps', steps, '--log-every', steps, '--sample-every', steps]
        found = apart(follow, model, words, 1, args.threads)
        rate = statistics.median(found['images_per_s'][1:-1])
        figures[model] = found
        print(f"train_{model}.py {flags}, {found['precision']}, {args.threads} threads: {rate:.4g} images/s, "
              f"{found['peak_mb']} MB", flush=True)
    return figures


# ---- the cost of long and of large trainings, on small networks

LONG = {                                                       # 3,000 steps, a mark each 100
    'sngan': '--data emoji-faces --preset demo --res 16 --ch-g 16 --ch-d 16 --batch 4 --g-batch 4',
    'biggan': '--data emoji --preset demo --ch-g 8 --ch-d 8 --batch 4 --d-steps 1',
    'stylegan2': '--data emoji-faces --preset demo --res 16 --ch-g 256 --ch-d 256 --ch-max 16 --batch 4'}
BATCHES, SIDES = (4, 8, 16, 32, 64), (16, 32, 64, 128)         # the sides at batch 4
EQUAL = ['--ch-g', '4096', '--ch-d', '4096', '--ch-max', '16']  # StyleGAN2: 16 channels at every resolution
COLOURS = {'sngan': 'C0', 'biggan': 'C1', 'stylegan2': 'C2'}


def iteration(args, model, batch, *more):
    """Seconds of a D step and a G step of the demo's network."""
    own = argparse.Namespace(**{**vars(args), 'model': model, 'batch': batch, 'preset': 'demo'})
    precision = 'bf16' if loop.has_bf16(torch.device(args.device)) else 'fp32'
    d_step, g_step = ours(own, precision, *more)
    times = in_turn({'D': d_step, 'G': g_step}, args.repeats, args.device)
    return times['D'] + times['G']


def cost(args):
    """Measure what --cost FILE lacks, and draw all of it beside the file."""
    figures = {'machine': machine(args)}
    if os.path.exists(args.cost):
        with open(args.cost) as f:
            figures = json.load(f)
    long = figures.setdefault('steps', {})
    for model, flags in LONG.items():
        if model not in long:
            words = [*flags.split(), '--device', args.device, '--steps', '3000', '--sample-every', '3000',
                     '--log-every', '100', '--save-every', '100']
            long[model] = apart(follow, model, words, 100, args.threads)
            write_json(args.cost, figures)
    for model in RECIPES:
        more = EQUAL if model == 'stylegan2' else []
        batches = figures.setdefault('batch', {}).setdefault(model, {})
        for batch in BATCHES:
            if str(batch) not in batches:
                batches[str(batch)] = iteration(args, model, batch, *more)
        if model == 'biggan':                                  # another network at each resolution
            continue
        sides = figures.setdefault('pixels', {}).setdefault(model, {})
        for side in SIDES:
            if str(side) not in sides:
                sides[str(side)] = iteration(args, model, 4, '--res', str(side), *more)
        write_json(args.cost, figures)
    draw_cost(figures, os.path.splitext(args.cost)[0] + '.png')


def draw_cost(figures, path):
    """Four panels: images/s and memory over steps; seconds by batch and by pixels, with straight lines."""
    from matplotlib.figure import Figure
    figure = Figure((12, 3), layout='constrained')
    panels = figure.subplots(1, 4)
    over_steps = (('images_per_s', 'images/s over steps'), ('mb', 'resident MB over steps'))
    for panel, (key, title) in zip(panels, over_steps):
        for model, found in figures['steps'].items():
            last = found['every'] * len(found[key])
            panel.plot(range(found['every'], last + 1, found['every']), found[key], COLOURS[model])
        panel.set_title(title)
        panel.set_ylim(0, 1.1 * max(max(found[key]) for found in figures['steps'].values()))

    by_size = (('batch', 1, 'by batch'), ('pixels', 2, 'by pixels'))   # of pixels, the side is known
    for panel, (key, power, title) in zip(panels[2:], by_size):
        for model, measured in figures[key].items():
            x = np.array([float(size) ** power for size in measured])
            y = np.array(list(measured.values()))
            panel.plot(x, y, 'o', color=COLOURS[model], label=model)
            if len(x) > 1:
                panel.plot(x, np.polyval(np.polyfit(x, y, 1), x), COLOURS[model], linewidth=1)
        panel.set_title(f's per D and G step, {title}')
        panel.set_ylim(0)
    panels[2].legend()
    figure.savefig(path, dpi=100)


def write_json(path, figures):
    """Write figures as JSON."""
    with open(path, 'w') as f:
        json.dump(figures, f, indent=1)
        f.write('\n')


def main(args):
    """Print what the flags ask for."""
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True                      # as in a training, see loop.launch
    if args.cost:
        cost(args)
        return
    if args.scripts:
        figures = whole_trainings(args)
    elif args.metrics:
        figures = scores(args)
    elif args.augment:
        figures = augmentation(args)
    elif args.model == 'stylegan2':
        figures = stylegan2_steps(args)
    else:
        figures = training_steps(args)
    if args.json:
        write_json(args.json, {'machine': machine(args), **figures})


if __name__ == '__main__':
    main(get_args())
