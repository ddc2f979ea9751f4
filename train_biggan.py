"""Algorithm 2 on BigGAN: train a class-conditional ticket (or the dense network) with DiffAugment and AdvAug.

Use:
    python train_biggan.py --data cifar100 --frac 0.1                                  # the dense baseline
    torchrun train_biggan.py --data cifar100 --frac 0.1 --mask ticket.pt               # one GPU, and all its flags
    torchrun --nproc_per_node 8 train_biggan.py --data tiny-imagenet --mask ticket.pt --aug diffaug --advaug gd
    python train_biggan.py --data photos/                                              # sub-folders are classes
The same command resumes.

    D:  min  L_D(T(x), T(G(z, y')) | y, y')  + lambda_2 L_D(D2(D1(.) + delta))          --d-steps times, then
    G:  min  L_G(D(T(G(z, y')), y'))         + lambda_1 L_G(D(T(G2(G1(z) + delta))))    once,
    E <- ema E + (1 - ema) G,  or G itself up to --ema-start

The classes y' of generated images are balanced in every batch.
"""
import argparse
import os

import torch

import gan
import loop
from data import images
from models import biggan

CIFAR = dict(steps=100000, batch=64, d_steps=5, lr_g=2e-4, lr_d=2e-4, betas=[.5, .999], adam_eps=1e-6, ema=.9999,
             ema_start=1000, adv_step=.01, mirror=True, res=32, ada_rt_target=.2, ada_kimg=1000)
PRESETS = {                                                   # flag defaults, chosen by --data unless --preset is given
    'cifar10': CIFAR,                                         # the released code's values: the paper swaps G's and D's
    'cifar100': CIFAR,                                        # learning rates of the next two
    'tiny-imagenet': {**CIFAR, 'batch': 256, 'd_steps': 1, 'lr_g': 1e-4, 'lr_d': 4e-4, 'betas': [0., .999],
                      'ema_start': 20000, 'adv_step': .001, 'res': 64, 'ada_rt_target': .1, 'ada_kimg': 500},
    'imagenet': {**CIFAR, 'batch': 256, 'd_steps': 2, 'lr_g': 5e-5, 'lr_d': 2e-4, 'betas': [0., .999],
                 'ema_start': 20000, 'adv_step': .001, 'res': 128, 'ada_rt_target': .1, 'ada_kimg': 500},
    'demo': {**CIFAR, 'ch_g': 16, 'ch_d': 16, 'steps': 1000, 'batch': 32, 'd_steps': 2, 'lr_g': 4e-4, 'lr_d': 4e-4,
             'ema': .99, 'ema_start': 0, 'mirror': False, 'eval_samples': 500, 'log_every': 25,         # 15 minutes
             'ada_kimg': 3, 'lecam_start': 100},
}
PROTOCOL = {'cifar10': 'cifar', 'cifar100': 'cifar', 'tiny-imagenet': 'tiny-imagenet', 'imagenet': 'imagenet'}


def get_args(argv=None):
    """The flags of this script; exits 2 on what contradicts itself."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    gan.add_flags(p, PRESETS)
    a = p.add_argument
    a('--narrow', action=argparse.BooleanOptionalAction, help="StudioGAN's later widths at 64 px (default: released)")
    a('--relu-shortcut', action=argparse.BooleanOptionalAction,
      help="D's shortcuts see ReLU(x), as released (default: x)")
    given = p.parse_known_args(argv)[0]
    for name in ('ch_g', 'ch_d'):
        if (getattr(given, name) or 8) < 8:
            loop.refuse(f'{loop.flag(given, name)} is below 8, and attention takes an eighth of it')
    res = given.res or (gan.read_ticket(given)['args']['res'] if given.mask or given.small_dense else None)
    name = given.preset or preset(given.data, res)
    p.set_defaults(protocol=PROTOCOL.get(given.data) if name == given.data else None)
    args = gan.parse(p, argv, PRESETS, name)
    names = images.names(args.data, args.root, res or args.res)
    if len(names) < 2:
        loop.refuse(f'--data {args.data} has one class: take SNGAN, which has none (find_ticket.py sngan, '
                    'train_sngan.py), or sub-folders as classes')
    if {*names} <= {'train', 'val', 'valid', 'validation', 'test'} or '.' in names:
        loop.refuse(f'--data {args.data} has the classes {", ".join(names[:5])}: '
                    + ("images ('.') lie beside its class folders, put them into one" if '.' in names
                       else f'give --data {os.path.join(args.data, "train")}'))
    args.classes = len(names)
    gan.adopt(args, given, 'biggan', build, res=32, classes=None, ch_g=None, ch_d=None, narrow=False,
              relu_shortcut=False)
    if args.classes != len(names):
        loop.refuse(f'{gan.ticket_flag(args)} has {args.classes} classes, --data {args.data} has {len(names)}: '
                    'find a ticket on this data set')
    return args


def preset(data, res):
    """The preset of a data set or, for others, of a resolution."""
    if data in PRESETS:
        return data
    if data in ('emoji', 'fashion-mnist'):
        return 'demo'
    return {64: 'tiny-imagenet', 128: 'imagenet'}.get(res, 'cifar10')


def build(args):
    """theta_0 and phi_0 of --seed, on the CPU, in torch's default format."""
    with loop.seeded(args.seed):
        return (biggan.Generator(args.res, args.classes, args.ch_g, args.narrow),
                biggan.Discriminator(args.res, args.classes, args.ch_d, args.narrow, args.relu_shortcut))


def main(args):
    """Train, evaluate, save; returns the trained networks G, D."""
    job = gan.Training('biggan', args, build)
    if job.over:
        return job.trained
    run, G, D, device = job.run, job.G, job.D, job.device
    n = args.batch // run.ranks
    x = torch.empty(n, 3, args.res, args.res, device=device).to(memory_format=torch.channels_last)
    z, y, y_fake = (torch.empty(n, *shape, device=device, dtype=kind)
                    for shape, kind in (((job.z_dim,), torch.float32), ((), torch.int64), ((), torch.int64)))
    context, adaptive = lambda: loop.autocast(args, device), job.adaptive()

    def latent(rng):                                                               # in place: a CUDA graph reads them
        z.copy_(loop.gaussian(rng, args.batch, job.z_dim))
        y_fake.copy_(gan.balanced(rng, args.batch, args.classes))

    def d_step(part):
        with context():
            fake = G.net(z[part], y_fake[part])
            return gan.d_loss(D.net, x[part], fake, args, job.sums, y[part], y_fake[part], **adaptive)

    def g_step(part):
        return gan.g_loss(G.net, D.net, z[part], args, job.sums, context, y_fake[part], ada=job.ada)

    reals = job.reals()
    for step in run.iterations(job.nets, job.sums, job.extra):
        for k in range(args.d_steps):
            rng = loop.rng(args.seed, 'D', step, k)
            flip = rng.random(args.batch) < .5 * args.mirror
            real, labels = next(reals)
            x.copy_(images.batch(real, flip=loop.mine(flip))), y.copy_(labels)
            latent(rng)
            D.update(d_step, loop.parts(n, args.batch_gpu))
            job.anchor()
        latent(loop.rng(args.seed, 'G', step))
        G.update(g_step, loop.parts(n, args.batch_gpu))
        job.E.track(G, args.ema if step > args.ema_start else 0)
        job.adapt()
        job.observe()
    return job.finish()


if __name__ == '__main__':
    main(get_args())
