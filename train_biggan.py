"""Algorithm 2 on BigGAN: train a class-conditional ticket (or the dense network) with DiffAugment and AdvAug.

Use:
    python train_biggan.py --data cifar100 --frac 0.1                  # the dense baseline
    torchrun train_biggan.py --data cifar100 --frac 0.1 --mask ticket.pt         # one GPU, and all its flags
    torchrun --nproc_per_node 8 train_biggan.py --data tiny-imagenet --mask ticket.pt --advaug gd
    python train_biggan.py --data photos/                              # sub-folders are classes
The same command resumes.

    D:  min  L_D(D(T(x), y), D(T(G(z, y')), y')) + lambda_2 L_D^adv     Eqs. 5, 6   --d-steps times, then
    G:  min  L_G(D(T(G(z, y')), y'))             + lambda_1 L_G^adv     Eqs. 3, 4   once, then
    E <- ema E + (1 - ema) G     E: the averaged generator, which is G itself up to --ema-start

The classes y' of generated images are balanced in every batch.
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import argparse
import os

import torch

import cli
import flat
import gan
import loop
import trainer
from data import images
from models import biggan

# The values are those of the released code.  The paper (section 4) prints 4e-4 for G and 1e-4 for D on
# Tiny-ImageNet, which are swapped, and 2e-4 and 5e-4 on ImageNet, where 5e-4 stands for 5e-5, too.
CIFAR = dict(
    res=32,
    batch=64, d_steps=5, steps=100000,
    lr_g=2e-4, lr_d=2e-4, betas=[.5, .999], adam_eps=1e-6,
    ema=.9999, ema_start=1000,
    mirror=True,
    ada_rt_target=.2, ada_kimg=1000,
    adv_step=.01)                                     # the paper's, section 4
IMAGENET = {
    **CIFAR,
    'batch': 256,
    'betas': [0., .999],
    'ema_start': 20000,
    'ada_rt_target': .1, 'ada_kimg': 500,
    'adv_step': .001}                                 # the paper's, section 4

# Flag defaults, chosen by --data unless --preset is given
PRESETS = {
    'cifar10': CIFAR,
    'cifar100': CIFAR,
    'tiny-imagenet': {**IMAGENET, 'res': 64, 'd_steps': 1, 'lr_g': 1e-4, 'lr_d': 4e-4},
    'imagenet': {**IMAGENET, 'res': 128, 'd_steps': 2, 'lr_g': 5e-5, 'lr_d': 2e-4},

    # Our own: 15 minutes on two CPU cores
    'demo': {
        **CIFAR,
        'ch_g': 16, 'ch_d': 16,
        'batch': 32, 'd_steps': 2, 'steps': 1000,
        'lr_g': 4e-4, 'lr_d': 4e-4,
        'ema': .99, 'ema_start': 0,
        'mirror': False,
        'ada_kimg': 3, 'lecam_start': 100,
        'eval_samples': 500, 'log_every': 25},
}
PROTOCOL = {                                          # --protocol of the scores that are published
    'cifar10': 'cifar',
    'cifar100': 'cifar',
    'tiny-imagenet': 'tiny-imagenet',
    'imagenet': 'imagenet',
}
SPLITS = {'train', 'val', 'valid', 'validation', 'test'}               # names of folders that are no classes


def get_args(argv=None):
    """The flags of this script; exits 2 on flags that contradict each other."""
    p = trainer.parser(__doc__)
    _, experiments = trainer.add_flags(p, PRESETS)
    a = experiments['networks'].add_argument
    a('--narrow', action=argparse.BooleanOptionalAction,
      help="the narrower 64 px networks of a later StudioGAN (default: the released code's)")
    a('--relu-shortcut', action=argparse.BooleanOptionalAction,
      help="D's shortcuts get ReLU(x), as in the released code (default: x)")

    given = trainer.as_typed(p, argv)                 # before any preset
    for name in ('ch_g', 'ch_d'):
        channels = getattr(given, name)
        if channels and channels < 8:
            cli.refuse(f'{cli.flag(given, name)} is below 8, and attention takes an eighth of it')

    # The preset follows the data set, and for other images the resolution, which a ticket brings along.
    res = given.res
    if not res and (given.mask or given.small_dense):
        res = trainer.read_ticket(given)['args']['res']
    name = given.preset or preset(given.data, res)
    p.set_defaults(protocol=PROTOCOL.get(given.data) if name == given.data else None)
    args = trainer.parse(p, argv, PRESETS, name)

    names = class_names(args, res or args.res)
    args.classes = len(names)
    trainer.adopt(args, given, 'biggan', build,
                  res=32, classes=None,
                  ch_g=None, ch_d=None,
                  narrow=False, relu_shortcut=False)
    if args.classes != len(names):
        cli.refuse(f'{trainer.origin_flag(args)} has {args.classes} classes, --data {args.data} has '
                   f'{len(names)}: start from a ticket or a run on this data set')
    return args


def class_names(args, res):
    """The names of the classes of --data; exits 2 where the folders are not classes."""
    names = images.names(args.data, args.root, res)
    if len(names) < 2:
        cli.refuse(f'--data {args.data} has one class: take SNGAN, which has none (find_ticket.py sngan, '
                   'train_sngan.py), or sub-folders as classes')
    has = f'--data {args.data} has the classes {", ".join(names[:5])}'
    if '.' in names:
        cli.refuse(f"{has}: images ('.') lie beside its class folders, put them into one")
    if {*names} <= SPLITS:
        cli.refuse(f'{has}: give --data {os.path.join(args.data, "train")}')
    return names


def preset(data, res):
    """The preset of a data set or, for others, of a resolution."""
    if data in PRESETS:
        return data
    if data in ('emoji', 'fashion-mnist'):
        return 'demo'
    by_resolution = {64: 'tiny-imagenet', 128: 'imagenet'}
    return by_resolution.get(res, 'cifar10')


def build(args):
    """G, D with theta_0 and phi_0 of --seed, on the CPU, in torch's default memory format."""
    with loop.seeded(args.seed):
        G = biggan.Generator(args.res, args.classes, args.ch_g, args.narrow)
        D = biggan.Discriminator(args.res, args.classes, args.ch_d, args.narrow, args.relu_shortcut)
    return G, D


def main(args):
    """Train, evaluate, save; returns the trained networks G, D."""
    job = trainer.Training('biggan', args, build)
    if job.over:
        return job.trained
    run, G, D, E = job.run, job.G, job.D, job.E

    # This rank's batches: filled in place, because a CUDA graph reads these tensors.
    n = args.batch // run.ranks
    x = torch.zeros(n, 3, args.res, args.res, device=job.device)
    x = x.to(memory_format=torch.channels_last)
    z = torch.zeros(n, job.z_dim, device=job.device)
    y = torch.zeros(n, device=job.device, dtype=torch.int64)
    y_fake = torch.zeros(n, device=job.device, dtype=torch.int64)

    def draw_latents(rng):
        loop.fill(z, loop.gaussian(rng, args.batch, job.z_dim))
        loop.fill(y_fake, trainer.balanced(rng, args.batch, args.classes))

    def context():
        return loop.autocast(args, job.device)

    def d_step(part):                                                  # Eq. 5 and Eq. 6
        with context():
            fake = G.net(z[part], y_fake[part])                        # [n, 3, H, W]
            return gan.d_loss(D.net, x[part], fake, args, job.sums,
                              y[part], y_fake[part], ada=job.ada, lecam=job.lecam)

    def g_step(part):                                                  # Eq. 3 and Eq. 4
        return gan.g_loss(G.net, D.net, z[part], args, job.sums, context, y_fake[part], ada=job.ada)

    reals = job.reals()                               # the images take their memory, and the updates the rest
    parts = flat.micro_batches(n, trainer.fit_memory(job, [(D, d_step, n), (G, g_step, n)]))
    job.begin()
    for step in run.iterations(job.nets, job.sums, job.state):
        # Algorithm 2: train the discriminator
        for k in range(args.d_steps):
            rng = loop.rng(args.seed, 'D', step, k)
            flip = trainer.flips(rng, args, job.device)
            real, labels = next(reals)
            x.copy_(images.batch(real, flip=flip))
            y.copy_(labels)
            draw_latents(rng)
            D.update(d_step, parts)
            job.after_d_update()                                       # LeCam's anchors

        # Algorithm 2: train the generator
        rng = loop.rng(args.seed, 'G', step)
        draw_latents(rng)
        G.update(g_step, parts, keep=job.moves())

        E.track(G, args.ema if step > args.ema_start else 0)
        job.after_step()                                               # p of ADA, masks of --dst
        job.observe()                                                  # log, grid, score
    return job.finish()


if __name__ == '__main__':
    cli.script(main, get_args)
