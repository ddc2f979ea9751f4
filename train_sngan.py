"""Algorithm 2 on SNGAN: train a ticket (or the dense network) with DiffAugment on images and AdvAug on features.

Use:
    python train_sngan.py --data cifar10 --frac 0.1                                   # the dense baseline
    python train_sngan.py --data cifar10 --frac 0.1 --mask ticket.pt --aug diffaug --advaug gd
    torchrun --nproc_per_node 8 train_sngan.py --data photos/ --mask ticket.pt        # eight GPUs, BN per GPU
The same command resumes.

    D:  min  L_D(T(x), T(G(z)))  + lambda_2 L_D(D2(D1(.) + delta))          five times, then
    G:  min  L_G(D(T(G(z))))     + lambda_1 L_G(D(T(G2(G1(z) + delta))))    once,  then E <- ema E + (1 - ema) G
"""
import torch

import flat
import gan
import loop
import trainer
from data import images
from models import sngan

PRESETS = {                                   # flag defaults, chosen by --data unless --preset is given
    'paper': {},                                      # the flag defaults are the paper's CIFAR-10 values
    'demo': dict(ch_g=32, ch_d=32, steps=1000, d_steps=1, batch=16, g_batch=16, lr_g=1e-3, lr_d=1e-3, ema=.99,
                 eval_samples=500, log_every=25, ada_kimg=.5, lecam_start=100),  # two minutes on two CPU cores
}


def get_args(argv=None):
    """The flags of this script; exits 2 on flags that contradict each other."""
    p = trainer.parser(__doc__)
    _, experiments = trainer.add_flags(p, PRESETS)
    experiments['training'].add_argument('--g-batch', type=int, default=64,
                                         help='images per G update (paper: 64, released code: 128)')

    given = p.parse_known_args(argv)[0]                        # as typed, before any preset
    preset = 'demo' if given.data in ('emoji', 'emoji-faces') else 'paper'
    args = trainer.parse(p, argv, PRESETS, preset)
    if given.res and (given.res % 8 or given.res < 8):
        loop.refuse(f'--res {args.res} is not a multiple of 8: SNGAN makes 32, 48, 64 ... pixels')
    return trainer.adopt(args, given, 'sngan', build, ch_g=256, ch_d=128, res=32)


def build(args):
    """G, D with theta_0 and phi_0 of --seed, on the CPU, in torch's default memory format."""
    with loop.seeded(args.seed):
        return sngan.Generator(args.res, args.ch_g), sngan.Discriminator(args.ch_d)


def main(args):
    """Train, evaluate, save; returns the trained networks G, D."""
    job = trainer.Training('sngan', args, build)
    if job.over:
        return job.trained
    run, G, D, E, device = job.run, job.G, job.D, job.E, job.device

    # This rank's batch: filled in place, because a CUDA graph reads these tensors.
    n, m = args.batch // run.ranks, args.g_batch // run.ranks
    x = torch.empty(n, 3, args.res, args.res, device=device).to(memory_format=torch.channels_last)
    z = torch.empty(n, job.z_dim, device=device)
    z_g = torch.empty(m, job.z_dim, device=device)

    def context():
        return loop.autocast(args, device)

    def d_step(part):                                                              # Eq. 5, Eq. 6
        with context():
            fake = G.net(z[part])
            return gan.d_loss(D.net, x[part], fake, args, job.sums, ada=job.ada, lecam=job.lecam)

    def g_step(part):                                                              # Eq. 3, Eq. 4
        return gan.g_loss(G.net, D.net, z_g[part], args, job.sums, context, ada=job.ada)

    reals = job.reals()
    for step in run.iterations(job.nets, job.sums, job.state):
        # Algorithm 2: train the discriminator
        for k in range(args.d_steps):
            rng = loop.rng(args.seed, 'D', step, k)
            flip = rng.random(args.batch) < .5 * args.mirror
            real, _ = next(reals)
            x.copy_(images.batch(real, flip=loop.of_this_rank(flip)))
            z.copy_(loop.gaussian(rng, args.batch, job.z_dim))
            D.update(d_step, flat.micro_batches(n, args.batch_gpu))
            job.after_d_update()

        # Algorithm 2: train the generator
        rng = loop.rng(args.seed, 'G', step)
        z_g.copy_(loop.gaussian(rng, args.g_batch, job.z_dim))
        G.update(g_step, flat.micro_batches(m, args.batch_gpu))

        E.track(G, args.ema if step > args.ema_start else 0)
        job.after_step()                                       # p of ADA
        job.observe()                                          # log, grid, score
    return job.finish()


if __name__ == '__main__':
    main(get_args())
