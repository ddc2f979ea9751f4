"""Around the method: the flags, the networks, the data, the state and the observers of a training.

Use (train_sngan.py shows all of it):
    p = trainer.parser(__doc__)
    everyday, experiments = trainer.add_flags(p, PRESETS)
    given = trainer.as_typed(p, argv)                                  # before any preset
    args = trainer.parse(p, argv, PRESETS, 'paper')
    job = trainer.Training('sngan', args, build)                       # data, G, D, E; resumed
    for step in job.run.iterations(job.nets, job.sums, job.state): ...
    return job.finish()

gan.py has the losses, loop.py the step counter and the checkpoints, flat.py the updates.
"""
import argparse
import bisect
import copy
import functools
import itertools
import json
import math
import os

import numpy as np
import torch

import advaug
import augment
import cli
import files
import flat
import gan
import loop
import losses
import metrics
import prune
from data import images

GROUPS = ('data', 'networks', 'training', 'image augmentation',
          'AdvAug', 'regularisers', 'scores', 'run')
SLIM = 1e-4                                   # the weight of Liu et al. 2017; the paper gives none
MOVED = .5, .005                              # share of the weights that --dst moves, first and last
AUGMENTED = 'augmented.png'                   # of --check-data, see draw_augmented
AUGMENTED_P = [.2, .5, .8]
TOO_FEW_IMAGES = 6                            # fewer have no two halves with a covariance

# What each number may be, see cli.check_ranges.  Those of --seed and --steps are in loop.py, and so on.
RANGES = {
    'ch_g': '[1, 1e6]',
    'ch_d': '[1, 1e6]',
    'density': '(0, 1)',
    'dst_every': '[1, 1e12]',
    'batch': '[1, 65536]',
    'batch_gpu': '[1, 65536]',
    'lr_g': '(0, inf)',
    'lr_d': '(0, inf)',
    'd_steps': '[1, 1e6]',
    'betas': '[0, 1)',
    'adam_eps': '[0, inf)',
    'ema': '[0, 1)',
    'ema_start': '[0, 1e12]',
    'slim': '(0, inf)',
    'eval_every': '[1, 1e12]',
    'eval_samples': '[10, 1e7]',
    'eval_repeats': '[1, 1000]'}


# ---- flags

def parser(description):
    """An argument parser for a script with this docstring."""
    return argparse.ArgumentParser(
        description=description,
        usage='%(prog)s --data NAME|FOLDER|ZIP [flags]',
        epilog='A preset replaces some of the defaults above.  All values of a run are in its args.json.',
        allow_abbrev=False,
        formatter_class=metrics.HelpFormatter)


def add_flags(p, presets):
    """Add the flags of every training script; returns two dicts {title of GROUPS: argument group}.

    The first dict has the groups of everyday flags, the second those of flags for experiments.  A script adds
    its own flags to these groups."""
    first, rest = {}, {}
    for title in GROUPS:
        first[title] = p.add_argument_group(title)
    for title in GROUPS:
        rest[title] = p.add_argument_group(f'for experiments: {title}')

    images.add_flags(first['data'], rest['data'])
    add_network_flags(first['networks'], rest['networks'], presets)
    add_training_flags(first['training'], rest['training'])
    augment.add_flags(first['image augmentation'], rest['image augmentation'])
    advaug.add_flags(first['AdvAug'], rest['AdvAug'])
    losses.add_flags(first['regularisers'], rest['regularisers'])
    metrics.add_flags(first['scores'], rest['scores'])
    add_score_flags(first['scores'], rest['scores'])
    loop.add_flags(first['run'], rest['run'])
    return first, rest


def add_network_flags(group, experiments, presets):
    """The flags that say which networks are trained."""
    a = group.add_argument
    a('--preset', choices=presets, help='recipe: defaults of many flags at once (default: chosen by --data)')
    a('--mask', metavar='TICKET',
      help='ticket.pt of find_ticket.py: start from its initial weights, and keep its pruned weights at 0')
    a('--init-from', metavar='CKPT', help='last.pt of a run: start from its weights, and take nothing else')
    a = experiments.add_argument
    a('--ch-g', type=int, help="channels of G (default: the ticket's, else the published ones)")
    a('--ch-d', type=int, help="channels of D (default: the ticket's, else the published ones)")
    a('--small-dense', metavar='TICKET',
      help='dense networks, so narrow that they have as many weights as this ticket has left')
    a('--reinit', action='store_true', default=None,
      help="with --mask: fresh random weights under the ticket's masks")
    a('--dst', choices=['static', 'set', 'rigl'],
      help='instead of a ticket, train G under random masks of --density: static: they stay; set, rigl: the '
           'smallest weights go, and random ones (set) or those of largest gradient (rigl) come back')
    a('--density', type=float, metavar='SHARE', help="with --dst: share of G's convolution weights that live")
    a('--dst-every', type=int, default=500, metavar='N',
      help='with --dst set or rigl: steps between two moves')


def add_training_flags(group, experiments):
    """The flags of batches, Adam and the average of G."""
    a = group.add_argument
    a('--batch', type=int, default=64, help='real images per D update, all ranks together')
    a('--batch-gpu', type=int,
      help='images that a rank takes at a time; gradients are added up (default: on a GPU what fits, else all)')
    a('--lr-g', type=float, default=2e-4, help='learning rate of G')
    a('--lr-d', type=float, default=2e-4, help='learning rate of D')
    a = experiments.add_argument
    a('--d-steps', type=int, default=5, help='D updates per G update')
    a('--betas', type=float, nargs=2, default=[0., .9], metavar='B', help="Adam's decays of the two moments")
    a('--adam-eps', type=float, default=1e-8, help="Adam's epsilon")
    a('--ema', type=float, default=.999, help='decay of the averaged generator, per G update')
    a('--ema-start', type=int, default=0, help='steps during which the averaged generator is a copy of G')
    a('--sync-bn', action='store_true',
      help="G's batch norms see the images of all ranks together (of one micro-batch at a time)")
    a('--d-pass', choices=['joint', 'separate'], default='joint',
      help='joint: reals and fakes pass D together; separate: one after the other, as released')
    a('--slim', type=float, nargs='?', const=SLIM, metavar='WEIGHT',
      help=f"network slimming: L1 of G's batch-norm scales (default weight: {SLIM:g})")


def add_score_flags(group, experiments):
    """The flags that say when and how often the run is scored."""
    group.add_argument('--eval-every', type=int, help='steps between scores (default: at the end)')
    a = experiments.add_argument
    a('--eval-samples', type=int, default=10000, help='generated images per score')
    a('--eval-repeats', type=int, default=3, help='sets of z per score, whose spread is its +- (paper: 3)')


def as_typed(p, argv, ranges=None):
    """The flags as typed, before any preset.  Exits 2 on numbers out of range and on empty words.

    ranges: those of the script's own flags."""
    given, _ = p.parse_known_args(argv)
    for name, value in vars(given).items():
        if value == '':                               # such as of a variable of the shell that is not set
            cli.refuse(f"--{name.replace('_', '-')} '' is empty: give a value, or leave it out")
    cli.check_ranges(given, RANGES, images.RANGES, augment.RANGES, advaug.RANGES, losses.RANGES,
                     metrics.RANGES, loop.RANGES, ranges or {})
    return given


def parse(p, argv, presets, preset):
    """The flags, with the defaults of --preset (else of `preset`) and of --protocol.

    Exits 2 on flags that contradict each other."""
    typed, _ = p.parse_known_args(argv)
    preset = typed.preset or preset
    p.set_defaults(preset=preset, **presets[preset])
    metrics.protocol_defaults(p, argv)
    args = p.parse_args(argv)
    args.frac = images.share(args.frac)

    loop.check_run_flags(args)
    check_training_flags(args)
    for leaf in (augment, advaug, losses):
        sentence = leaf.contradiction(args, p.get_default)
        if sentence:
            cli.refuse(sentence)
    if args.reinit and (args.init_from or not args.mask):
        cli.refuse('--reinit draws other weights for the masks of a ticket: '
                   'give --mask TICKET and no --init-from')
    check_sparse_flags(args, p.get_default)
    return args


def check_sparse_flags(args, default):
    """Refuse flags of --dst that contradict each other or do nothing."""
    for name in ('density', 'dst_every'):
        if not args.dst and getattr(args, name) != default(name):
            cli.refuse(f'{cli.flag(args, name)} does nothing without --dst: add --dst rigl, or leave it out')
    if not args.dst:
        return
    if args.density is None:
        cli.refuse(f'--dst {args.dst} needs the share of weights that live: give --density 0.3277 for 67.23 %')
    if args.dst == 'static' and args.dst_every != default('dst_every'):
        cli.refuse(f'{cli.flag(args, "dst_every")} does nothing with --dst static: leave it out')
    for name in ('mask', 'small_dense', 'transfer'):
        if getattr(args, name, None):
            cli.refuse(f'--dst {args.dst} makes masks of its own: leave out {cli.flag(args, name)}')
    if args.dst != 'static' and args.dst_every >= args.steps:
        cli.refuse(f'--dst {args.dst} moves no weight in {args.steps} steps, because its first move comes '
                   f'after {args.dst_every}: give a smaller --dst-every, or --dst static')


def check_training_flags(args):
    """Refuse batches that do not divide, scores that do not exist, and what a CUDA graph cannot record."""
    # A batch is divided over the ranks, and the share of a rank over its micro-batches.
    ranks = cli.world()[1]
    for name in ('batch', 'g_batch'):
        if name not in args:                          # --g-batch is SNGAN's alone
            continue
        share, rest = divmod(getattr(args, name), ranks)
        if rest:
            cli.refuse(f'{cli.flag(args, name)} does not divide over {ranks} ranks: '
                       f'use a multiple of {ranks}')
        if args.batch_gpu and share % args.batch_gpu:
            cli.refuse(f'{cli.flag(args, "batch_gpu")} does not divide the {share} images of a rank '
                       f'({cli.flag(args, name)}): use a divisor of it')

    metrics.metric_names(args)                        # exits 2
    if args.graph and (args.aug in augment.ADAPTIVE or args.lecam):
        cli.refuse('--graph: a CUDA graph would repeat one draw of --aug ada, one p of --aug apa and one anchor '
                   'of --lecam, leave it out')
    if args.deterministic and args.aug == 'ada' and loop.may_use_gpu(args):
        cli.refuse("--deterministic --aug ada: the backward pass of ADA's turns adds in any order on a GPU, "
                   'leave one out, or give --device cpu')
    if args.graph and args.sync_bn:
        cli.refuse('--graph --sync-bn: batch statistics of all ranks are not recorded in a CUDA graph, '
                   'leave one out')


# ---- networks: their shapes, and where their weights come from

def origin_flag(args):
    """'--mask ticket.pt': the flag of the file whose shapes are taken over."""
    for name in ('mask', 'small_dense', 'init_from'):
        if getattr(args, name):
            return cli.flag(args, name)


def read_ticket(args):
    """The ticket of --mask or of --small-dense; exits 2 where it is none."""
    path = args.mask or args.small_dense
    return loop.read(path, origin_flag(args), 'model', 'args', 'init', 'mask', 'data')


def adopt(args, given, model, build, **defaults):
    """Complete the flags that shape the networks; returns args.

    given: the flags as typed, before any preset.  build(args) -> G, D.  defaults: {flag: its last default}.
    A flag is as typed, else as in the ticket or in --init-from, else as in the preset, else the last default.
    Exits 2 where networks of this shape fit neither the ticket nor a cut."""
    if args.small_dense:
        for name in ('mask', 'ch_g', 'ch_d'):
            if getattr(given, name):
                cli.refuse(f'--small-dense {args.small_dense} finds the widths of dense networks: leave out '
                           f'{cli.flag(given, name)}')

    # The origin is the file whose shapes are taken over: a ticket, else a checkpoint.
    ticket = origin = None
    if args.mask or args.small_dense:
        ticket = origin = read_ticket(args)
    elif args.init_from:
        origin = loop.read(args.init_from, f'--init-from {args.init_from}', 'G', 'D', 'args')
    if origin and origin.get('model', model) != model:
        cli.refuse(f"{origin_flag(args)} is of {origin['model']}, not of {model}: "
                   f"use train_{origin['model']}.py, or another file")
    for name, default in defaults.items():
        setattr(args, name, shape_flag(args, given, name, default, origin, ticket))

    # The networks are built without weights to see whether they fit.
    try:
        if args.small_dense:
            args.ch_g, args.ch_d = narrow_widths(args, ticket['mask'], build)
        G, D = without_weights(build, args)
    except ValueError as e:
        cli.refuse(f'--{e}')
    check_networks(args, model, {'G': G, 'D': D}, ticket)
    args.ch_g, args.ch_d = G.ch, D.ch
    check_memory(args, G, D)
    return args


def shape_flag(args, given, name, default, origin, ticket):
    """The value of one flag that shapes the networks, see `adopt`.

    origin: the ticket or checkpoint whose shapes are taken over, or None."""
    typed = getattr(given, name, None)
    if origin is None:
        own = getattr(args, name)                     # of the preset
    elif name in origin['args']:
        own = default = origin['args'][name]          # None counts: a group of None is the whole batch
    else:
        own = None                                    # the file is older than the flag

    # A switch that differs is refused here, because it need not change the shape of a tensor.
    if ticket and isinstance(typed, bool) and typed != own:
        switch = ('' if typed else 'no-') + name.replace('_', '-')
        cli.refuse(f'--{switch}: the network of {origin_flag(args)} is another, leave it out')
    for value in (typed, own):
        if value is not None:
            return value
    return default


def check_networks(args, model, nets, ticket):
    """Exit 2 where the networks {G, D} fit neither --slim, nor the cuts, nor the ticket."""
    if args.slim and not hasattr(nets['G'], 'slimmable'):
        cli.refuse(f'{cli.flag(args, "slim")}: network slimming needs batch norms with scales of their '
                   f"own, which G of {model} does not have (BigGAN's depend on the class): take sngan")
    for name, net in nets.items():
        cut = f'adv_cut_{name.lower()}'
        if abs(getattr(args, cut)) > net.cuts:
            cli.refuse(f'{cli.flag(args, cut)} is not one of its {net.cuts} stages: '
                       f'use -{net.cuts} to {net.cuts}')
        if args.mask:
            sentence = prune.mismatch(net, ticket['init'][name], ticket['mask'][name])
            if sentence:
                cli.refuse(f'--mask {args.mask} does not fit {name}: {sentence}; '
                           'leave out --ch-g, --ch-d and --res, the ticket has its own')


def check_memory(args, G, D):
    """Exit 2 where the memory cannot hold the networks with their moments, and the images of a batch."""
    parameters = sum(p.numel() for net in (G, D) for p in net.parameters())
    values = 4 * parameters                           # weights, gradients, Adam's two moments
    values += 3 * args.res ** 2 * (args.batch // cli.world()[1])
    needed, most = 4 * values, loop.most_memory(args)                  # bytes
    if needed > most:
        sizes = ' '.join(cli.flag(args, name) for name in ('ch_g', 'ch_d', 'res', 'batch'))
        cli.refuse(f'{sizes} need more than {needed / 1e9:,.0f} GB, there are {most / 1e9:,.0f}: lower them')


def with_flags(args, **other):
    """A copy of the flags, in which some are others."""
    return argparse.Namespace(**{**vars(args), **other})


def without_weights(build, args, **other):
    """G, D of these flags with shapes and no weights; other: flags that differ."""
    with torch.device('meta'):
        return build(with_flags(args, **other))


def narrow_widths(args, masks, build):
    """ch_g, ch_d of dense networks with as many parameters as those of args have under the masks {G, D}."""
    found = []
    for i, name in enumerate('GD'):
        width_flag = f'ch_{name.lower()}'
        size = functools.cache(functools.partial(parameters_at_width, args, build, i, width_flag))
        ch = getattr(args, width_flag)
        n_pruned = sum(int((~mask).sum()) for mask in masks[name].values())
        goal = size(ch) - n_pruned
        width = nearest_width(size, goal, ch)
        found.append(width)
        if cli.world()[0] == 0:
            print(f'--small-dense {args.small_dense}: {name} has {goal:,} weights in the ticket and '
                  f'{size(width):,} with --{width_flag.replace("_", "-")} {width} ({ch} in the ticket)')
    return found


def parameters_at_width(args, build, i, width_flag, ch):
    """The number of parameters of G (i = 0) or D (i = 1) with `ch` channels; 0 where none is so narrow."""
    try:
        net = without_weights(build, args, **{width_flag: ch})[i]
    except ValueError:
        return 0
    return sum(p.numel() for p in net.parameters())


def nearest_width(size, goal, top):
    """The width up to `top` whose size(width) is closest to `goal`; size grows with the width.

    A multiple of 8 is taken if one is within 1 % of the goal, because it is fast, else one of 4, 2 or 1."""
    def distance(ch):
        return abs(size(ch) - goal)

    enough = 1 + bisect.bisect_left(range(1, top), goal, key=size)     # the first that is large enough
    for step in (8, 4, 2, 1):
        above = -(-enough // step) * step                              # rounded up
        below = max(above - step, step)
        ch = min((below, above), key=distance)
        if distance(ch) <= .01 * goal:
            break
    return ch


def initial_networks(args, build):
    """G, D with theta_0 and phi_0, the masks {G, D}, and {name: hash} of the files that they come from.

    The weights are of --seed, or of the ticket of --mask, or of the checkpoint of --init-from."""
    seed = args.seed
    if args.reinit:
        seed = int(loop.rng(args.seed, 'reinit').integers(2 ** 31))
    G, D = build(with_flags(args, seed=seed))
    masks = {'G': {}, 'D': {}}
    hashes = {}
    if args.dst:
        try:
            masks['G'] = prune.sparse(prune.ones(G), args.density, loop.rng(args.seed, 'dst'))
        except ValueError as e:
            cli.refuse(f'{cli.flag(args, "density")}: {e}')

    if args.mask:
        ticket = read_ticket(args)
        masks = ticket['mask']                        # flat.py applies them, in every update
        if not args.reinit:
            G.load_state_dict(ticket['init']['G'])
            D.load_state_dict(ticket['init']['D'])
        hashes['mask_hash'] = files.digest({'init': ticket['init'], 'mask': masks})

    if args.init_from:
        weights = loop.read(args.init_from, f'--init-from {args.init_from}', 'G', 'D')
        for name, net in (('G', G), ('D', D)):
            sentence = prune.mismatch(net, weights[name], {}, 'checkpoint')
            if sentence:
                cli.refuse(f'--init-from {args.init_from} does not fit {name}: {sentence}')
            net.load_state_dict(weights[name])
        hashes['init_hash'] = files.digest({'G': weights['G'], 'D': weights['D']})
    return G, D, masks, hashes


# ---- data

def load_data(args):
    """The data set of the flags (images.load); --check-data prints its report and draws augmented.png.

    Exits 2 on data that cannot be used."""
    check_policy(args)
    conditional = bool(getattr(args, 'classes', None))
    data = images.load(args.data, args.root,
                       args.frac, args.data_seed, args.subset, args.holdout, args.ref,
                       args.res, args.crop, args.strict,
                       plain=conditional, verify=args.check_data)
    if conditional:
        check_classes(args, data)
    if args.check_data:
        line = f'resolution: a training with these flags makes images of {args.res} px; --res sets another'
        data.report.append(line)
        if cli.world()[0] == 0:
            print('\n'.join(data.report))
            if args.aug_policy:
                draw_augmented(args, data)
    elif args.out and os.path.isdir(args.data) and lies_in(args.out, args.data):
        cli.refuse(f'--out {args.out} lies in --data {args.data}: its grids would be trained on, '
                   'name another place')
    return data


def check_policy(args):
    """Exit 2 where ADA cannot take images of this size."""
    if args.aug != 'ada':
        return
    try:
        augment.draw(args.aug_policy, torch.empty(1, 3, args.res, args.res), 0.)
    except ValueError as e:
        cli.refuse(f'--res {args.res} --aug-policy {args.aug_policy}: {e}')


def draw_augmented(args, data):
    """Write augmented.png: up to eight training images, and below them three times what D sees of them.

    The file lies in the folder of --out, or here.
    ADA acts with probability p: 0.2, 0.5 and 0.8, or --ada-p.  DiffAugment always acts."""
    strengths = [None] * 3
    how = 'in three draws'
    if args.aug == 'ada':
        strengths = AUGMENTED_P if args.ada_p is None else [args.ada_p] * 3
        how = f'with p = {", ".join(map(str, strengths))}'

    rows = fixed_rows(len(data.images), 8)
    x = images.batch(data.images[rows])               # [8, 3, H, W]
    sheet = [metrics.to_uint8(x)]
    with loop.seeded(args.seed):
        for p in strengths:
            T = augment.draw(args.aug_policy, x, p)
            sheet.append(metrics.to_uint8(T(x)))
    path = AUGMENTED
    if args.out:
        os.makedirs(args.out, exist_ok=True)
        path = os.path.join(args.out, AUGMENTED)
    images.save_grid(path, torch.cat(sheet), len(rows))
    cli.say(f'{path}: {len(rows)} training images, and below them what D sees of them: '
            f'--aug {args.aug} --aug-policy {args.aug_policy}, {how}')


def check_classes(args, data):
    """Exit 2 where a class has no training image; add the number of images per class to the report."""
    counts = data.labels.bincount(minlength=len(data.classes)).tolist()
    named_counts = list(zip(data.classes, counts))
    empty = [name for name, count in named_counts if not count]
    if empty:
        cli.refuse(f'--data {args.data} --frac {args.frac} --subset {args.subset}: nothing to train on in '
                   f"{len(empty)} of {len(data.classes)} classes ({', '.join(empty[:5])}), be it "
                   'unreadable, held out or not in the share; change these, '
                   'or take SNGAN, which has no classes')

    words = [f'{c} {name} ({count})' for c, (name, count) in enumerate(named_counts)]
    line = 'classes: ' + ', '.join(words[:20])
    if len(words) > 20:
        line += ' ...'
    data.report.append(line)


def lies_in(path, folder):
    """Whether a path is a folder, or lies below it."""
    path = os.path.realpath(path)
    folder = os.path.realpath(folder)
    return os.path.commonpath((path, folder)) == folder


def fixed_rows(n, count):
    """Up to `count` of n rows, in a random order that is always the same."""
    return loop.rng(0, 'some').permutation(n)[:count]


def grid_rows(labels, classes):
    """Rows of the training images that reals.png shows, like a grid of samples: 64, or 8 of each class shown.

    A class of fewer than eight images repeats them."""
    if not classes:
        return fixed_rows(len(labels), 64)
    rows = fixed_rows(len(labels), len(labels))
    shown = []
    for c in loop.shown(classes):
        of_class = rows[labels[rows] == c]
        shown.append(np.resize(of_class, 8))
    return np.concatenate(shown)


def proportional(labels, n, seed):
    """Classes [n] in the proportions of the labels [N], in an order of the seed."""
    counts = np.bincount(labels)
    places = (np.arange(n) + .5) / n * len(labels)    # n places at even distances among the sorted labels
    y = np.searchsorted(np.cumsum(counts), places, side='right')
    return torch.from_numpy(loop.rng(0, 'classes', seed).permutation(y))


def flips(rng, args, device):
    """Which images [n] of this rank are mirrored, of --batch images; None without --mirror."""
    u = rng.random(args.batch)                        # drawn in any case: the z behind it stay the same
    if not args.mirror:
        return None
    return loop.to_device(loop.of_this_rank(u < .5), device)


def balanced(rng, n, classes):
    """This rank's classes [n / ranks] out of n, of which each class has as many as another, or one fewer."""
    y = rng.permutation(classes)[np.arange(n) % classes]
    return torch.from_numpy(loop.of_this_rank(y))


# ---- the state of a training

class Training:
    """The data, the networks G, D and the average E on the device, and what has a state beside them.

    build(args) -> G, D of the seed.
    prepare(G, D) -> {G, D: names of parameters that stay as they are}, for transfer.
    lazy: {G, D: c}, where a regulariser has an Adam step of its own every k steps: c = k / (k + 1) scales the
    learning rate and the exponents of the betas (Karras et al. 2020, appendix B).
    gains(G) -> {name: factor of a tensor's weights in the forward pass}, for --dst.

    After construction the training continues where last.pt ends.  `over` says that nothing is left to do, and
    `trained` is the result then.  Exits 2 on what the flags and the data do not allow."""

    def __init__(self, model, args, build, prepare=None, lazy=None, gains=None):
        self.args = args
        self.device = loop.launch(args)
        self.data = load_data(args)
        self.over, self.trained = args.check_data, None
        if self.over:
            return

        extractor, names = scores_on(args, self.data, self.device)     # exits 2 before a network is built
        G, D, self.masks, hashes = initial_networks(args, build)
        frozen = {}
        if prepare:
            with loop.seeded(args.seed):              # MineGAN's miner is drawn
                frozen = prepare(G, D)
        self.classes, self.z_dim = getattr(G, 'classes', 0), G.z_dim

        reals_per_step = args.batch * args.d_steps
        self.run = loop.Run(model, args, reals_per_step, data_fingerprint=self.data.fingerprint, **hashes)
        self.describe_data()
        self.flatten(G, D, frozen, lazy or {})
        self.sums = loop.Sums(self.device, *gan.SUMS)
        self.stateful = stateful_parts(args, self.device)
        self.ada = self.stateful.get('ada')
        self.lecam = self.stateful.get('lecam')
        self.pl = self.stateful.get('pl')
        self.sparse = None
        if args.dst:
            self.sparse = Sparse(args, self.G, self.E, gains(self.G.net) if gains else {})
            self.stateful['sparse'] = self.sparse

        # A run resumes here (loop.Run.restore): networks, moments and step, ADA's p, LeCam's anchors and the
        # mean of the path length.  The position in the data follows from the step (`reals`).
        self.run.restore(self.nets, self.sums, self.stateful)
        self.trained = self.G.net, self.D.net
        self.over = self.run.done and (has_score(self.run) or not extractor)
        if self.over:
            self.run.say(f'{self.run.out}: finished at step {self.run.step}')
            files.free(self.run.out)
            return

        self.held = None                              # batches of held-out images, for ADA's r_v
        if self.ada and args.ada_heuristic == 'rv':
            self.held = self.batches(self.data.holdout, self.data.holdout_labels, self.run.step)
        self.observer = Observer(self, extractor, names)
        self.chunk = None                             # images that observers take at a time; None: all

    def flatten(self, G, D, frozen, lazy):
        """G, D and the average E as flat networks on the device, with Adam for G and D."""
        args = self.args
        E = copy.deepcopy(G)
        if args.sync_bn:
            flat.sync_bn_(G)
        for net in (G, D, E):
            net.to(device=self.device, memory_format=torch.channels_last)

        # Karras et al. 2020, appendix B: Adam of a lazily regularised network
        c_g, c_d = lazy.get('G', 1.), lazy.get('D', 1.)
        betas_g = [beta ** c_g for beta in args.betas]
        betas_d = [beta ** c_d for beta in args.betas]

        adam = {'eps': args.adam_eps, 'graph': args.graph}
        share_sn = args.d_pass == 'joint'             # released: a power iteration for each pass of D
        self.G = flat.Flat(G, args.lr_g * c_g, betas_g, masks=self.masks['G'], **adam)
        self.D = flat.Flat(D, args.lr_d * c_d, betas_d, masks=self.masks['D'], share_sn=share_sn, **adam)
        self.E = flat.Flat(E, masks=self.masks['G'])
        self.nets = {'G': self.G, 'D': self.D, 'E': self.E}
        for name, names in frozen.items():
            self.nets[name].freeze(names)

    def describe_data(self):
        """Write reals.png and subset.json; print the settings that matter first, the report of the data, and
        whether the ticket is of other images."""
        run, args, data = self.run, self.args, self.data
        run.say(settings(run.model, args, self.device))
        for line in data.report:
            run.say(line)
        if args.mask:
            found_on = read_ticket(args)['data']
            if found_on not in (None, data.fingerprint):
                run.say(f'--mask {args.mask} was found on other images ({found_on}) than these '
                        f'({data.fingerprint}): the paper finds and trains a ticket on the same ones')
        if run.rank:
            return
        rows = grid_rows(data.labels.numpy(), self.classes)
        images.save_grid(run.path('reals.png'), data.images[rows])
        files.write_json(run.path('subset.json'), {
            'data': data.name, 'of': data.total, 'classes': data.classes,
            'fingerprint': data.fingerprint, 'index': data.index})

    def state(self):
        """{name: state} of ADA's controller, LeCam's anchors and the path-length mean, for checkpoints."""
        return {name: part.state() for name, part in self.stateful.items()}

    def classes_of(self, y, part=slice(None)):
        """What G and D take beside their input: [classes] of a part of the rows, or []."""
        return [y[part].to(self.device)] if self.classes else []

    def reals(self):
        """An iterator over uint8 images [n, 3, H, W] and classes [n] of this rank, from where the run is."""
        first_batch = self.run.step * self.args.d_steps
        return self.batches(self.data.images, self.data.labels, first_batch)

    def batches(self, x, labels, start):
        """As `reals`, of any images, from the batch number `start` on.  Without classes they are None.

        Images that fit on the device go there now, before the micro-batch is fitted to the memory."""
        size, seed = self.args.batch, self.args.seed

        def indices():
            for k in itertools.count(start):
                whole = loop.order(len(labels), k * size, size, seed)  # [batch]
                yield loop.of_this_rank(whole)                         # [n]

        # Two equal streams of indices: one is read ahead for the images, the other picks the classes.
        ahead, here = itertools.tee(indices())
        feed = images.feed(x, ahead, self.device)

        def pairs():
            for index, batch in zip(here, feed):
                y = loop.to_device(labels[index], self.device) if self.classes else None
                yield batch, y
        return pairs()

    def begin(self):
        """The grid before the first step, and an evaluation that was cut off."""
        if self.run.step == 0:
            self.observer.draw_grid()
        self.observer.score_if_due()
        self.run.say(f'training begins; a line follows after the first step, then every {self.args.log_every} '
                     'steps or each minute')

    def after_d_update(self):
        """Move LeCam's anchors."""
        if self.lecam:
            self.lecam.step(self.run.step, loop.mean_over_ranks)

    @torch.no_grad()
    def after_step(self):
        """What changes after the updates of a step: the masks of --dst, and p (augment.Controller.adjust)."""
        if self.moves():
            self.sparse.move(self.run.step)
        if not self.ada:
            return
        if self.held:                                 # r_v needs D on held-out images, too
            held, y = next(self.held)                                  # uint8 [n, 3, H, W], [n]
            D = self.D.net.eval()                     # no power iteration
            for part in flat.micro_batches(len(held), self.chunk):
                x = images.batch(held[part])
                T = gan.draw(self.args, x, self.ada)
                self.ada.add(held=D(T(x), *self.classes_of(y, part)))
            D.train()
        self.ada.adjust(self.run.step, loop.mean_over_ranks)

    def moves(self):
        """Whether the masks of --dst move at the end of this step."""
        return bool(self.sparse) and self.sparse.due(self.run.step)

    def observe(self):
        """The log line, the grid and the score, where they fall due."""
        self.observer.observe()

    def finish(self):
        """Save the last checkpoint, free the directory, and say what to do next; returns G and D."""
        self.run.save(self.nets, self.sums, self.state, done=True)
        files.free(self.run.out)
        out = self.run.out
        self.run.say(f'{out}: finished at step {self.run.step}.  Next: python generate.py {out}, which draws '
                     f'{out}/grid.png, or python report.py {os.path.dirname(out) or "."}')
        return self.trained


def settings(model, args, device):
    """The settings of a training that people ask for first, as one line."""
    images_seen = args.steps * args.batch * args.d_steps
    methods = [f'--aug {args.aug}', f'--advaug {args.advaug}']
    for name in ('lecam', 'mask', 'dst', 'density', 'init_from', 'small_dense'):
        if getattr(args, name):
            methods.append(cli.flag(args, name))
    where = 'the CPU' if device.type == 'cpu' else str(device)
    return (f'{model} at {args.res} px, --preset {args.preset}: {args.steps} steps, in which D sees '
            f'{images_seen:,} real images, {args.batch} a batch; {" ".join(methods)}; '
            f'{args.precision} on {where}, seed {args.seed}')


def stateful_parts(args, device):
    """{'ada', 'lecam', 'pl': object} of those that the flags ask for; a checkpoint must hold their states."""
    parts = {}
    if args.aug in augment.ADAPTIVE:
        parts['ada'] = augment.Controller(
            args.batch * args.d_steps,
            args.ada_heuristic, args.ada_target,
            args.ada_kimg, args.ada_interval, args.ada_pmax, args.ada_p,
            device)
    if args.lecam:
        parts['lecam'] = losses.LeCam(args.lecam, args.lecam_start, args.lecam_decay, args.lecam_form, device)
    if getattr(args, 'pl', 0):
        parts['pl'] = losses.PathLength(args.pl, device=device)
    return parts


class Sparse:
    """Masks of G that move during one training (--dst): SET (Mocanu et al. 2018), RigL (Evci et al. 2020).

    Every --dst-every steps t of T, the int(f(t) alive) smallest g_i |w_i| of the whole network go, with
        f(t) = .005 + (.5 - .005) (1 + cos(pi t / T)) / 2
    and as many pruned weights come back: random ones (set), or those of largest |gradient| / g_i (rigl).
    g_i: see `prune.magnitude`.  D is dense.  The average of G loses the weights that go, too."""

    def __init__(self, args, G, E, gains):
        self.args, self.G, self.E, self.gains = args, G, E, gains

    def due(self, step):
        """Whether masks move at the end of this step."""
        return self.args.dst != 'static' and step % self.args.dst_every == 0 and step < self.args.steps

    def move(self, step):
        """Drop weights, and grow as many."""
        first, last = MOVED
        share = last + (first - last) * (1 + math.cos(math.pi * step / self.args.steps)) / 2
        count = int(share * prune.alive(self.G.masks))
        left = prune.drop(self.G.net, self.G.masks, count, self.gains)
        grown = prune.grow(left, self.scores(step), count)
        assert loop.equal_on_ranks(files.digest(grown)), 'the ranks moved different weights'
        self.G.remask(left)                           # also a weight that comes back at once starts at 0
        self.G.remask(grown)
        self.E.remask(grown)

    def scores(self, step):
        """{name: tensor}: the pruned weights of largest score come back."""
        rng = loop.rng(self.args.seed, 'dst', step)
        scores = {}
        for name, mask in self.G.masks.items():
            if self.args.dst == 'set':
                scores[name] = torch.from_numpy(rng.random(tuple(mask.shape)))
            else:
                gradient = self.G.view(self.G.dense_g, name).cpu()
                scores[name] = gradient.abs() / self.gains.get(name, 1.)
        return scores

    def state(self):
        return self.G.masks

    def load(self, state):
        if {name: mask.shape for name, mask in state.items()} != {
                name: mask.shape for name, mask in self.G.masks.items()}:
            raise ValueError('the masks have other shapes')
        self.G.remask(state)
        self.E.remask(state)


def scores_on(args, data, device):
    """The network behind the scores and their names, (None, []) for none.

    Exits 2 where the scores or ADA cannot be had on these data."""
    extractor, names = metrics.from_args(args, device)
    if args.metrics == 'auto' and extractor and data.ref is data.images:
        names = [*names, 'copy']                      # a reference of training images rewards copying
    if args.metrics == 'auto' and extractor:
        names = metrics.kid_where_few(names, args.eval_samples, len(data.ref), extractor)
    check_with_data(args, data, extractor, names)
    return extractor, names


def check_with_data(args, data, extractor, names):
    """Exit 2 where the scores `names` or ADA cannot be had on these data."""
    if extractor and min(len(data.ref), len(data.images)) < TOO_FEW_IMAGES:
        cli.refuse(f'--metrics: {len(data.images)} training and {len(data.ref)} reference images are '
                   'too few for scores, give --metrics none')
    if extractor and 'fid' not in names:
        cli.refuse(f'--metrics {args.metrics}: the best checkpoint is chosen by fid, add it')
    if 'is' in names and args.eval_samples < args.is_splits:
        cli.refuse(f'--eval-samples {args.eval_samples} do not make --is-splits {args.is_splits}: use more')
    if args.aug in augment.ADAPTIVE and args.ada_heuristic == 'rv' and data.holdout is None:
        cli.refuse('--ada-heuristic rv needs held-out images, and there are none: give --holdout, or rt')


# ---- memory

def memory_is_short(job):
    """Whether the micro-batch must be tried out: on a GPU, without --batch-gpu."""
    return job.device.type == 'cuda'


def fit_memory(job, phases):
    """The micro-batch of the updates: --batch-gpu, else on a GPU the largest that fits in.

    phases: (Flat, f, n) of every kind of update on n images.  All of them run once without a step of Adam, so
    that the peak comes now: beside Adam's moments, and with all of ADA's transforms.  What they changed is put
    back.  On a GPU the observers take no more images at a time than an update does."""
    args = job.args
    largest = max(n for _, _, n in phases)
    micro = args.batch_gpu or largest
    if not memory_is_short(job):
        return micro
    if args.batch_gpu:
        job.chunk = whole_groups(args, micro)
        return micro

    # The first all-reduce makes NCCL take its memory, before the trial finds out how much is left.
    loop.mean_over_ranks(torch.zeros(1, device=job.device))

    # What the trial may change: sums, buffers (BN, u and v of sigma), states of ADA, LeCam and path length
    tensors = [job.sums.total]
    for net in job.nets.values():
        tensors += net.net.buffers()
    for part in job.stateful.values():
        tensors += [value for value in vars(part).values() if torch.is_tensor(value)]
    before = [(tensor, tensor.clone()) for tensor in tensors]
    if job.ada:
        p = job.ada.p
        job.ada.p = 1.

    # As much memory as Adam's moments take, where there are none yet
    moments = []
    for net in (job.G, job.D):
        if not net.adam.state:
            moments += [torch.empty_like(net.w), torch.empty_like(net.w)]
    micro = largest_that_fits(phases)
    micro = -loop.largest_over_ranks([-micro])[0]     # the smallest over ranks
    del moments

    for tensor, old in before:
        tensor.copy_(old)
    for net, _, _ in phases:
        net.g.zero_()
        net.loss.zero_()
    if job.ada:
        job.ada.p = p
    if job.lecam:
        job.lecam.calls = 0

    torch.cuda.empty_cache()                          # what NCCL and cuDNN ask for lies outside of torch's share
    job.chunk = whole_groups(args, micro)
    if micro < largest:
        args.batch_gpu = micro
        job.run.say(f'memory: --batch-gpu {micro}, gradients of {largest // micro} micro-batches are added up')
    return micro


def whole_groups(args, micro):
    """The largest number up to `micro` of images in whole groups of D's minibatch standard deviation."""
    group = getattr(args, 'group', None) or 1
    return micro // group * group or micro


def largest_that_fits(phases):
    """The largest micro-batch with which every phase (Flat, f, n) runs: the whole of it, or a divisor of all n.

    Raises OutOfMemoryError where there is no memory for one image."""
    sizes = [n for _, _, n in phases]
    common = math.gcd(*sizes)
    micro = max(sizes)
    while not all_fit(phases, micro):
        micro = max(m for m in range(1, common + 1) if common % m == 0 and 2 * m <= micro)
        torch.cuda.empty_cache()
    return micro


def all_fit(phases, micro):
    """Whether there is memory for every phase.

    The error must be gone before the next trial: its traceback holds all features of the pass that failed."""
    try:
        for net, f, n in phases:
            with net.requiring_grad():
                net.backward(f, flat.micro_batches(n, micro))
        return True
    except torch.OutOfMemoryError:
        if micro == 1:
            raise
        return False


# ---- observers: they use no_grad, eval mode and generators of their own, so their frequency changes nothing

class Observer:
    """The log line, the grids of samples and the scores of a training.

    job: Training.  extractor, names: the network behind the scores, and the scores (metrics.from_args).
    Without an extractor there are no scores."""

    def __init__(self, job, extractor, names):
        self.job, self.extractor, self.names = job, extractor, names
        data = job.data
        self.seen = {'train': self.watched(data.images, data.labels)}
        if data.holdout is not None:
            self.seen['held'] = self.watched(data.holdout, data.holdout_labels)
        self.refs = {}
        if extractor:
            job.run.say(f'features of {len(data.ref):,} reference images, for the scores')
            self.refs = self.references()

    def watched(self, x, labels):
        """Up to 128 of the uint8 images x with their classes: what D is watched on."""
        rows = fixed_rows(len(x), 128)
        rows = rows[:whole_groups(self.job.args, len(rows))]
        return x[rows], labels[rows]

    def reals(self, x, y):
        """Yield the arguments of D for images that are watched, a chunk at a time."""
        for part in flat.micro_batches(len(x), self.job.chunk):
            real = images.batch(x[part].to(self.job.device))           # [n, 3, H, W]
            yield real, *self.job.classes_of(y, part)

    def samples(self, net, z, y):
        """Yield the arguments of D for the images of a generator, a chunk at a time."""
        for part in flat.micro_batches(len(z), self.job.chunk):
            classes = self.job.classes_of(y, part)
            yield net(z[part], *classes), *classes

    def settled(self, batches):
        """A copy of the averaged generator E whose BN statistics are of its own samples."""
        job = self.job
        return loop.settle(job.E.net, loop.settling(job.z_dim, job.device, batches, job.classes))

    def observe(self):
        """The log line, the grid and the score, where they fall due."""
        job = self.job
        job.run.log(job.nets, job.sums, self.notes)
        if job.run.due('sample'):
            self.draw_grid()
        self.score_if_due()

    def notes(self):
        """For a log line: D on training, held-out and generated images, the sparsities, and ADA's p and r."""
        job = self.job
        z = loop.latents(range(64), job.z_dim, job.device)             # [64, z_dim]
        y = proportional(job.data.labels, 64, 0)
        batches = {name: self.reals(*watched) for name, watched in self.seen.items()}
        with loop.seeded(job.args.seed):
            batches['gen'] = self.samples(self.settled(1), z, y)
            notes = accuracies(job.D.net, **batches)
        for name in 'GD':
            notes[f'sparsity_{name}'] = prune.sparsity(job.masks[name])
        if job.ada:
            notes |= {'ada_p': job.ada.p, 'ada_r': job.ada.r}
        return notes

    def generated(self, net, z, y):
        """Images uint8 [N, 3, H, W] of a generator, to be shown or scored.  Exits 3 where one is not finite."""
        made = []
        for x, *_ in self.samples(net, z, y):
            if not torch.isfinite(x).all():
                self.job.run.fail('an image of the averaged generator is not finite')
            made.append(metrics.to_uint8(x))
        return torch.cat(made)

    @torch.no_grad()
    def draw_grid(self):
        """Write samples/STEP.png, uncurated: seeds 0-63, or seeds 0-7 of each of up to ten classes."""
        job = self.job
        if job.run.rank:
            return
        with job.run.observing():
            seeds, y = loop.panel(job.classes)
            z = loop.latents(seeds, job.z_dim, job.device)             # [N, z_dim]
            net = self.settled(8)
            if hasattr(net, 'noise'):                                  # StyleGAN2's
                net.noise = 'const'
            x = self.generated(net, z, y)                              # [N, 3, H, W]
            images.save_grid(job.run.path(f'samples/{job.run.step:06d}.png'), x)
            if job.run.board:
                job.run.board.add_images('samples', x, job.run.step)
                job.run.board.flush()

    def references(self):
        """The statistics of the reference and of its halves: one chooses the best checkpoint, one reports it.

        Copies are sought among the training images."""
        args, data = self.job.args, self.job.data
        rows = loop.rng(0, 'halves').permutation(len(data.ref))
        half = len(rows) // 2
        halves = {'choose': rows[:half], 'report': rows[half:]}
        keep = bool({'kid', 'prdc', 'copy'} & {*self.names})           # scores of single features
        how = {'batch': args.eval_batch, 'keep': keep, 'cache': args.cache, 'mirrored': 'copy' in self.names}
        few = metrics.few_images(len(data.ref), self.extractor)
        if few:
            self.job.run.say(few)

        refs = metrics.references(data.ref, self.extractor, halves, **how)
        for name in halves:
            refs[name] = refs[name]._replace(features=None)
        if 'copy' in self.names and data.ref is not data.images:
            refs['train'] = metrics.reference(data.images, self.extractor, **how)
        return refs

    def score_if_due(self):
        """Evaluate where a score falls due and is not there yet.  What fails from here on costs no step."""
        job = self.job
        if not self.extractor or not job.run.due('eval') or has_score(job.run):
            return
        job.run.save(job.nets, job.sums, job.state)
        with job.run.observing():
            self.evaluate()

    @torch.no_grad()
    def evaluate(self):
        """Score --eval-samples images, over --eval-repeats sets of z, into metrics.jsonl."""
        job, args = self.job, self.job.args
        net = self.settled(64)
        job.run.say(f'scoring {args.eval_repeats} x {args.eval_samples:,} samples')

        def sampler(repeat):
            """batch(a, b) -> the uint8 images a ... b - 1 of a set of z."""
            y = proportional(job.data.labels, args.eval_samples, repeat)
            first_seed = repeat * 10 ** 6

            def batch(a, b):
                stop_on_signal(job.run)
                z = loop.latents(range(first_seed + a, first_seed + b), job.z_dim, job.device)
                return self.generated(net, z, y[a:b])
            return batch

        scores = []
        with loop.seeded(args.seed):                                   # StyleGAN2's noise
            for repeat in range(args.eval_repeats):
                scores.append(metrics.evaluate(
                    sampler(repeat), args.eval_samples,
                    self.extractor, self.refs, self.names,
                    args.eval_batch, splits=args.is_splits))
        protocol = {**scores[0]['protocol'], **self.protocol()}
        record_scores(job.run, scores, self.extractor.score, protocol, net, job.masks)

    def protocol(self):
        """What metrics.evaluate does not know of how a score is measured."""
        job, args = self.job, self.job.args
        generator = f'EMA {args.ema}'
        if args.ema is None:
            generator = f'EMA {args.ema_kimg:g} kimg'
        if job.G.bn_stats.numel():
            generator += ', BN settled on 64 x 64 z'

        sparsity = {name: round(prune.sparsity(mask), 4) for name, mask in job.masks.items()}
        protocol = {'ref': job.data.ref_name, 'frac': args.frac,
                    'repeats': args.eval_repeats, 'seed': args.seed,
                    'sparsity': sparsity, 'generator': generator}
        if job.classes:
            protocol['classes'] = 'as often as in the training images'
        return protocol


@torch.no_grad()
def accuracies(D, **seen):
    """{D_train, acc_train, ...}: the mean logit, and the share judged rightly (gen as fake, others as real).

    seen: {name: batches of the arguments of D}, (x,) or (x, y).  D is in eval mode meanwhile."""
    D.eval()
    values = {}
    for name, batches in seen.items():
        logits = torch.cat([D(*inputs) for inputs in batches])         # [N]
        right = (logits > 0) != (name == 'gen')                        # [N]
        values[f'D_{name}'] = logits.mean().item()
        values[f'acc_{name}'] = right.float().mean().item()
    D.train()
    return values


def has_score(run):
    """Whether metrics.jsonl has a line for the step of a run."""
    records = files.read_jsonl(run.path('metrics.jsonl'))
    return any(record['step'] == run.step for record in records)


def stop_on_signal(run):
    """Leave an evaluation, which follows a save.  Several ranks finish the evaluation, to stay together."""
    if cli.STOP and run.ranks == 1:
        run.leave(max(cli.STOP))


def columns(scores):
    """Yield the key, the part of the reference and the values of each score, over the sets of z.

    scores: one dict of metrics.evaluate per set of z.  The part is 'all' where the score has no reference."""
    for key, value in scores[0].items():
        if key == 'protocol':
            continue
        if isinstance(value, dict):
            for part in value:
                yield key, part, np.array([score[key][part] for score in scores])
        else:
            yield key, 'all', np.array([score[key] for score in scores])


def record_scores(run, scores, name, protocol, net, masks):
    """Append the mean and the spread over sets of z to metrics.jsonl; keep the best generator in best.pt.

    scores: one dict of metrics.evaluate per set of z.  name: of the score, such as FID.
    The best is chosen by `choose`, one half of the reference, and reported on the other half."""
    record = {'step': run.step, 'score': name}
    words = []
    for key, part, values in columns(scores):
        if values.ndim > 1:                           # [sets of z, (mean, spread)], as of IS
            mean, std = values.mean(0)
        else:                                         # [sets of z]
            mean, std = values.mean(), values.std()
        column = key if part == 'all' else f'{key}_{part}'
        if key == name:
            column = part
        record[column] = float(mean)
        record[f'{column}_std'] = float(std)
        words.append(f'{key} {mean:.5g} +- {std:.2g} ({part})')
    record['protocol'] = protocol

    run.say(f"step {run.step}: {'  '.join(words)}  {json.dumps(protocol)}")
    if run.rank:
        return

    # best.pt comes first: a run that is killed between the two files repeats this evaluation.
    earlier = []
    for old in files.read_jsonl(run.path('metrics.jsonl')):
        if old['score'] == name and 'choose' in old:
            earlier.append(old['choose'])
    if 'choose' in record and record['choose'] < min(earlier, default=float('inf')):
        files.save(run.path('best.pt'), {
            'model': run.model, 'args': vars(run.args), 'step': run.step, 'score': record,
            'E': files.to_cpu(net.state_dict()), 'masks': files.to_cpu(masks)})
    files.append_jsonl(run.path('metrics.jsonl'), record)
    loop.show_numbers(run, record, f'{name}/')
