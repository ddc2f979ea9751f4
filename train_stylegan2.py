"""Algorithm 2 on StyleGAN2: train a ticket (or the dense network) with DiffAugment or ADA, and AdvAug.

Use:
    python train_stylegan2.py --data photos/                           # alone: it chooses, and says what
    python train_stylegan2.py --data 100-shot-obama --mask ticket.pt --advaug gd
    torchrun --nproc_per_node 8 train_stylegan2.py --data cifar10 --frac 0.1 --aug ada
    python train_stylegan2.py --data photos/ --init-from ffhq.pt --transfer freezed   # from trained weights
The same command resumes.

    G:  min  L_G(D(T(G(z))))          + lambda_1 L_G^adv     Eqs. 3, 4   and, every --pl-every steps,  R_pl
    D:  min  L_D(D(T(x)), D(T(G(z)))) + lambda_2 L_D^adv     Eqs. 5, 6   and, every --r1-every steps,  R_1
    E <- beta E + (1 - beta) G     E: the averaged generator;  beta = 1/2 ^ (batch / half-life)

w = G1(z) are the styles of all layers (cut 1).  A regulariser of every k-th step has an Adam step of its own,
k times as strong, and Adam is slowed to match: lr c, beta^c, c = k / (k + 1).  A regulariser of every step
(k = 1) is a term of the loss.
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import argparse

import torch

import cli
import flat
import gan
import loop
import losses
import trainer
from data import images
from models import stylegan2, transfer

# The official code's networks, loss and Adam, with which every preset begins; adv_step is the paper's.
OFFICIAL = dict(
    arch='resnet', mapping=8, ch_g=32768, ch_d=32768, group=4,
    loss='logistic', d_pass='separate', d_steps=1,
    betas=[0., .99], adam_eps=1e-8,
    ema=None, ema_rampup=None,
    mixing=.9,
    adv_step=.01)

# DiffAugment's recipe for 100 images: 300 kimg
FEWSHOT = {
    **OFFICIAL,
    'batch': 16, 'steps': 18750,
    'lr_g': 2e-3, 'lr_d': 2e-3,
    'r1': 10., 'r1_every': 1,
    'pl': 0., 'pl_every': 1,
    'ema_kimg': 10., 'ema_start': 625,
    'mirror': True, 'aug': 'diffaug',
    'eval_samples': 5000}

# ADA's settings for any folder, which `auto` completes by resolution
AUTO = {
    **OFFICIAL,
    'mapping': 2,
    'batch': 32,
    'lr_g': 2.5e-3, 'lr_d': 2.5e-3,
    'r1': 1., 'r1_every': 16,
    'pl': 2., 'pl_every': 4,
    'ema_kimg': 10., 'ema_rampup': .05,
    'mirror': True, 'aug': 'ada'}

# Flag defaults, chosen by --data unless --preset is given; SAYS has where they come from.
PRESETS = {
    'fewshot': FEWSHOT,
    'animalface': {**FEWSHOT, 'steps': 31250},        # 500 kimg
    'paper': {
        **FEWSHOT,
        'batch': 5, 'group': 5, 'steps': 100000,
        'lr_g': 2e-4, 'lr_d': 2e-4},

    'cifar': {                                        # 100,000 kimg
        **AUTO,
        'res': 32, 'arch': 'orig', 'group': 32,
        'batch': 64, 'steps': 1562500,
        'r1': .01, 'pl': 0.,
        'ema_kimg': 500.,
        'mixing': 0., 'mirror': False, 'aug': 'none'},

    'large': {                                        # 25,000 kimg
        **OFFICIAL,
        'res': 256, 'ch_g': 16384, 'ch_d': 16384,
        'batch': 32, 'steps': 781250,
        'lr_g': 2e-3, 'lr_d': 2e-3,
        'r1': 1., 'r1_every': 16,
        'pl': 2., 'pl_every': 4,
        'ema_kimg': 10.,
        'mirror': True, 'aug': 'diffaug'},

    'auto': AUTO,

    # For an own folder without a GPU: an evening on two CPU cores, 200 kimg
    'laptop': {
        **FEWSHOT,
        'ch_g': 2048, 'ch_d': 2048, 'ch_max': 128, 'mapping': 2,
        'batch': 8, 'steps': 25000,
        'r1': 1., 'r1_every': 8,
        'ema_kimg': 5., 'ema_start': 0,
        'eval_samples': 1000},

    'demo': {
        **FEWSHOT,
        'res': 64, 'ch_g': 1024, 'ch_d': 1024, 'ch_max': 64, 'mapping': 2,
        'batch': 8, 'steps': 1000,
        'r1': 1., 'r1_every': 8,
        'ema_kimg': 1., 'ema_start': 0,
        'mirror': False,
        'ada_kimg': .5, 'lecam_start': 100,
        'eval_samples': 500, 'log_every': 25},
}
SAYS = {
    'fewshot': "DiffAugment's recipe for 100 images",
    'animalface': "DiffAugment's recipe for AnimalFace",
    'paper': "the ticket paper's batch, learning rates and steps, otherwise DiffAugment's few-shot recipe on "
             'the official network (the paper used a port with other layers, hinge loss and no minibatch '
             'statistic)',
    'cifar': "ADA's CIFAR-10",
    'large': "DiffAugment's FFHQ and LSUN",
    'auto': "ADA's settings by resolution",
    'laptop': 'small, because there is no GPU; a GPU would make 256 px, with --preset fewshot or auto',
    'demo': 'small, to try things on a laptop',
}
STARTS = {                                            # presets by the first letters of a data set's name
    '100-shot': 'fewshot',
    'animalface': 'animalface',
    'cifar': 'cifar',
    'ffhq': 'large',
    'lsun': 'large',
    'emoji': 'demo',
    'fashion-mnist': 'demo',
}
LAPTOP_RES = 64                                       # pixels that two CPU cores train in an evening
FEW = 5000                                            # images of a folder up to which the recipe is few-shot
RANGES = {                                            # see cli.check_ranges
    'r1': '[0, inf)',
    'ch_max': '[1, 1e5]',
    'mapping': '[1, 100]',
    'group': '[1, 65536]',
    'freeze_layers': '[0, 100]',
    'mine_steps': '[1, 1e12]',
    'mixing': '[0, 1]',
    'ema_kimg': '[0, inf)',
    'ema_rampup': '[0, inf)',
    'r1_every': '[1, 1e12]',
    'pl': '[0, inf)',
    'pl_every': '[1, 1e12]'}
gains = stylegan2.effective_gain                      # find_ticket.py ranks weights times these factors


def get_args(argv=None):
    """The flags of this script; exits 2 on flags that contradict each other."""
    p = trainer.parser(__doc__)
    everyday, experiments = trainer.add_flags(p, PRESETS)
    add_own_flags(everyday, experiments)

    given = trainer.as_typed(p, argv, RANGES)         # before any preset
    name = given.preset or preset(given.data, given.root, loop.may_use_gpu(given))
    recipe = PRESETS[name]
    if 'res' not in recipe:
        res = resolution(given, LAPTOP_RES if name == 'laptop' else 256)
        recipe = {**recipe, 'res': res}
        if name == 'auto':
            recipe |= auto(res)
    args = trainer.parse(p, argv, {**PRESETS, name: recipe}, name)
    check_flags(args, given)
    check_transfer(args)

    classes = count_classes(args)
    args.classes = classes
    trainer.adopt(args, given, 'stylegan2', build,
                  res=256, classes=0,
                  ch_g=None, ch_d=None, ch_max=512,
                  mapping=None, group=None, arch=None)
    if args.transfer == 'freezed':
        check_frozen_layers(args)
    if args.classes != classes:
        origin = f'{trainer.origin_flag(args)} has {args.classes or "no"} classes'
        if not classes:
            cli.refuse(f'--no-cond: {origin}: add --cond, or start from another file')
        cli.refuse(f'--cond: {origin}, --data {args.data} has {classes}: start from another file, or '
                   'use other data')
    return args


def add_own_flags(everyday, experiments):
    """The flags that only StyleGAN2 has."""
    a = everyday['networks'].add_argument
    a('--cond', action=argparse.BooleanOptionalAction, default=False,
      help='give G and D the classes of the data, which are the sub-folders of a folder')
    a('--transfer', choices=transfer.MODES,
      help='with --init-from: what is trained, see models/transfer.py (default: finetune, everything)')
    a = everyday['regularisers'].add_argument
    a('--r1', type=float, help="weight of R_1, D's squared gradient on real images (default: the preset's)")

    a = experiments['networks'].add_argument
    a('--ch-max', type=int,
      help='most channels of a layer; a layer of R x R pixels has --ch-g / R or --ch-d / R (default: 512)')
    a('--mapping', type=int, help="layers of the mapping network of G (default: the preset's)")
    a('--group', type=int,
      help="images in a group of D's minibatch standard deviation, at most (default: the preset's)")
    a('--arch', choices=['resnet', 'orig'], help="D with or without shortcuts (default: the preset's)")
    a('--freeze-layers', type=int,
      help="--transfer freezed: layers of D, from the image on, that are not trained (default: FreezeD's)")
    a('--mine-steps', type=int,
      help='--transfer minegan: steps in which only the miner and D are trained (default: 1000)')
    a = experiments['training'].add_argument
    a('--mixing', type=float,
      help="share of images whose layers take their styles from two z (default: the preset's)")
    a('--ema-kimg', type=float,
      help="half-life of the averaged generator in thousands of images (default: the preset's)")
    a('--ema-rampup', type=float,
      help='the half-life is at most this share of the images seen so far (default: without such a bound)')
    a = experiments['regularisers'].add_argument
    a('--r1-every', type=int,
      help="steps between updates with R_1; 1: a term of every loss (default: the preset's)")
    a('--pl', type=float, help="weight of R_pl, path length regularisation of G (default: the preset's)")
    a('--pl-every', type=int,
      help="steps between updates with R_pl; 1: a term of every loss (default: the preset's)")


def preset(data, root, gpu):
    """The preset of a data set; for an own folder by its number of images, and by whether there is a GPU."""
    if images.spelt(data) in images.NAMES or images.unsorted(data):
        for start, name in STARTS.items():
            if data.lower().startswith(start):
                return name
        return 'auto'
    if not gpu:
        return 'laptop'
    converted = images.set_info(data)
    if converted:
        n = converted['splits']['train']['n']
    else:
        splits = images.source(data, root)[0]
        n = len(splits['train'][0])
    return 'fewshot' if n <= FEW else 'auto'


def resolution(given, most):
    """The resolution of --res, else of the ticket or checkpoint, else of the data (photos: up to `most`)."""
    if given.res:
        return given.res
    suggested = images.suggest_res(given.data, given.root, most=most)
    for name in ('mask', 'small_dense', 'init_from'):
        path = getattr(given, name)
        if path:
            saved = loop.read(path, cli.flag(given, name), 'args')
            return saved['args'].get('res') or suggested
    return suggested


def auto(res):
    """ADA's settings for any data set, by resolution, at the batch of one GPU."""
    batch = max(min(4096 // res, 32), 4)
    base = 16384 if res < 512 else 32768
    settings = {
        **AUTO,
        'ch_g': base, 'ch_d': base, 'group': min(batch, 4),
        'batch': batch, 'steps': 25000000 // batch,
        'r1': .0002 * res ** 2 / batch,
        'ema_kimg': batch * 10 / 32}
    if res >= 1024:
        settings |= {'lr_g': 2e-3, 'lr_d': 2e-3}
    return settings


def flags(args, *names):
    """'--r1 10.0 --pl 2.0': several flags with their values."""
    return ' '.join(cli.flag(args, name) for name in names)


def check_flags(args, given):
    """Exit 2 on a pass of D that cannot be, and on a decay that is given twice."""
    if args.d_pass == 'joint':
        cli.refuse('--d-pass joint: the minibatch standard deviation must not see reals and fakes together')
    if args.ema is not None and (given.ema_kimg or given.ema_rampup):
        cli.refuse(f'{flags(args, "ema")} fixes the decay that --ema-kimg gives: leave one out')


def check_transfer(args):
    """Complete --transfer; exit 2 where its flags do not fit together."""
    if args.transfer and not args.init_from:
        cli.refuse(f'{flags(args, "transfer")} needs the weights to start from: add --init-from')
    if args.init_from and not args.transfer:
        args.transfer = 'finetune'
    for name, mode in (('freeze_layers', 'freezed'), ('mine_steps', 'minegan')):
        if getattr(args, name) is not None and args.transfer != mode:
            cli.refuse(f'{flags(args, name)} does nothing without --transfer {mode}')
    if args.transfer != 'minegan':
        return
    if args.mine_steps is None:
        args.mine_steps = 1000
    if args.mask:
        cli.refuse('--transfer minegan --mask: the miner is no part of a ticket, leave one out')


def check_frozen_layers(args):
    """Exit 2 where --transfer freezed freezes no layer, or one that D does not have."""
    _, D = trainer.without_weights(build, args)
    try:
        frozen = transfer.freezed(D, args.freeze_layers)
    except ValueError as e:
        cli.refuse(f'--{e}')
    if not frozen:
        cli.refuse(f'--transfer freezed freezes nothing at {args.res} px: '
                   'use finetune, or give --freeze-layers')


def count_classes(args):
    """The number of classes of the data with --cond, else 0; exits 2 where there is one."""
    if not args.cond:
        return 0
    classes = len(images.names(args.data, args.root, args.res))
    if classes < 2:
        cli.refuse(f'--cond: --data {args.data} has one class, leave it out')
    return classes


def build(args):
    """G, D with theta_0 and phi_0 of --seed, on the CPU, in torch's default memory format."""
    with loop.seeded(args.seed):
        G = stylegan2.Generator(args.res, args.ch_g, args.ch_max, args.mapping, args.classes)
        D = stylegan2.Discriminator(args.res, args.ch_d, args.ch_max, args.classes, args.group, args.arch)
    G.mixing = args.mixing
    return G, D


def choice(args):
    """What was chosen and how to change it, in a sentence."""
    kimg = args.steps * args.batch * args.d_steps / 1000
    return (f'--preset {args.preset}: {SAYS[args.preset]}; '
            f'--res {args.res}, --aug {args.aug}, --batch {args.batch}, '
            f'--steps {args.steps} ({kimg:g} kimg); change what you like')


def decay(args, step):
    """The decay beta of the averaged generator at a step: of --ema, or of a half-life in images."""
    if step <= args.ema_start:
        return 0.
    if args.ema is not None:
        return args.ema
    half_life = 1000 * args.ema_kimg                                   # images
    if args.ema_rampup:
        seen = args.batch * (step - 1)                                 # images
        half_life = min(half_life, seen * args.ema_rampup)
    return .5 ** (args.batch / max(half_life, 1e-8))


def lazy_factor(every):
    """c = k / (k + 1) of a regulariser with an Adam step of its own every k steps; 1 of one in the loss."""
    return every / (every + 1) if every > 1 else 1.


def take(tensors, part):
    """The rows `part` of each tensor in a list."""
    return [tensor[part] for tensor in tensors]


def r1_loss(job, real, y):
    """R_1 of images [N, 3, H, W] with classes y, [[N]] or [], times its weight and --r1-every."""
    args = job.args
    real = real.detach().requires_grad_(True)
    T = gan.draw(args, real, job.ada)
    logits = job.D.net(T(real), *y)                                    # [N]
    if job.ada:
        job.ada.add(real=logits)
    R_1 = losses.r1(logits, real)
    job.sums.add(R_1=R_1)
    return args.r1_every * args.r1 * R_1


def pl_loss(job, z, y):
    """R_pl of latents [N, z_dim] with classes y, [[N]] or [], times its weight and --pl-every."""
    w, G2 = job.G.net.split(z, *y, cut=1)                              # w [N, layers, dim]
    R_pl = job.pl(G2, w)
    job.sums.add(R_pl=R_pl)
    return job.args.pl_every * R_pl


def main(args):
    """Train, evaluate, save; returns the trained networks G, D."""
    def prepare(G, D):
        return transfer.prepare_(args.transfer, G, D, args.freeze_layers)

    lazy = {'G': lazy_factor(args.pl_every), 'D': lazy_factor(args.r1_every)}
    job = trainer.Training('stylegan2', args, build, prepare, lazy, gains)
    if job.over:
        return job.trained
    run, G, D, E = job.run, job.G, job.D, job.E
    run.say(choice(args))

    # This rank's batches: filled in place, because a CUDA graph reads these tensors.
    n = args.batch // run.ranks
    x = torch.zeros(n, 3, args.res, args.res, device=job.device)
    x = x.to(memory_format=torch.channels_last)
    z = torch.zeros(n, job.z_dim, device=job.device)
    y, y_fake = [], []                                # empty lists, or one tensor [n] each with --cond
    if args.classes:
        y = [torch.zeros(n, device=job.device, dtype=torch.int64)]
        y_fake = [torch.zeros(n, device=job.device, dtype=torch.int64)]

    def draw_latents(rng):
        loop.fill(z, loop.gaussian(rng, args.batch, job.z_dim))
        for classes in y_fake:
            loop.fill(classes, trainer.balanced(rng, args.batch, args.classes))

    def context():
        return loop.autocast(args, job.device)

    # A regulariser has an Adam step of its own every few steps, or is a term of the loss.
    r1_apart = bool(args.r1) and args.r1_every > 1
    pl_apart = bool(args.pl) and args.pl_every > 1

    def d_step(part):                                                  # Eq. 5 and Eq. 6
        with context():
            fake = G.net(z[part], *take(y_fake, part))                 # [n, 3, H, W]
            r1 = 0 if r1_apart else args.r1
            return gan.d_loss(D.net, x[part], fake, args, job.sums,
                              *take(y + y_fake, part), ada=job.ada, lecam=job.lecam, r1=r1)

    def g_step(part):                                                  # Eq. 3 and Eq. 4
        loss = gan.g_loss(G.net, D.net, z[part], args, job.sums, context, *take(y_fake, part), ada=job.ada)
        if args.pl and not pl_apart:
            loss = loss + pl_step(part)
        return loss

    def r1_step(part):
        with context():
            return r1_loss(job, x[part], take(y, part))

    def pl_step(part):
        half = slice(part.start, (part.start + part.stop + 1) // 2)    # as in the official code
        with context():
            return pl_loss(job, z[half], take(y_fake, half))

    phases = [(G, g_step, n), (D, d_step, n)]
    if pl_apart:
        phases.append((G, pl_step, n))
    if r1_apart:
        phases.append((D, r1_step, n))
    reals = job.reals()                               # the images take their memory, and the updates the rest
    parts = flat.micro_batches(n, trainer.fit_memory(job, phases))
    say_group(args, run, parts[0].stop)
    job.begin()

    mining = args.transfer == 'minegan'
    for step in run.iterations(job.nets, job.sums, job.state):
        if mining and step > args.mine_steps:
            G.freeze(())                                               # MineGAN, stage 2: train all of G
            mining = False

        # Algorithm 2: train the generator (first, as in the official code)
        rng = loop.rng(args.seed, 'G', step)
        draw_latents(rng)
        G.update(g_step, parts, keep=job.moves())
        if args.pl and (step - 1) % args.pl_every == 0:
            if pl_apart:
                draw_latents(loop.rng(args.seed, 'pl', step))
                G.update(pl_step, parts)
            job.pl.step(loop.mean_over_ranks)

        # Algorithm 2: train the discriminator
        for k in range(args.d_steps):
            rng = loop.rng(args.seed, 'D', step, k)
            flip = trainer.flips(rng, args, job.device)
            real, labels = next(reals)
            x.copy_(images.batch(real, flip=flip))
            for classes in y:
                classes.copy_(labels)
            draw_latents(rng)
            D.update(d_step, parts)
            job.after_d_update()                                       # LeCam's anchors
        if r1_apart and (step - 1) % args.r1_every == 0:
            D.update(r1_step, parts)

        E.track(G, decay(args, step))
        job.after_step()                                               # p of ADA, masks of --dst
        job.observe()                                                  # log, grid, score
    return job.finish()


def say_group(args, run, micro):
    """Say so where a micro-batch is too small for the groups of D's minibatch standard deviation."""
    group = stylegan2.group_size(micro, args.group)
    if args.group and group < args.group:
        run.say(f"groups of {group} in D's minibatch standard deviation, not of --group {args.group}: "
                f'{micro} images are taken at a time')


if __name__ == '__main__':
    cli.script(main, get_args)
