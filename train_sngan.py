"""Algorithm 2 on SNGAN: train a ticket (or a dense network) with DiffAugment on images, AdvAug on features.

Use:
    python train_sngan.py --data cifar10 --frac 0.1                    # the dense baseline
    python train_sngan.py --data cifar10 --frac 0.1 --mask ticket.pt --aug diffaug --advaug gd
    torchrun --nproc_per_node 8 train_sngan.py --data photos/ --mask ticket.pt   # eight GPUs, BN per GPU
The same command resumes.

    D:  min  L_D(D(T(x)), D(T(G(z)))) + lambda_2 L_D^adv     Eqs. 5, 6   --d-steps times, then
    G:  min  L_G(D(T(G(z))))          + lambda_1 L_G^adv     Eqs. 3, 4   once, then
    E <- ema E + (1 - ema) G     E: the averaged generator, which is G itself up to --ema-start
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while torch is imported says nothing

import torch

import cli
import flat
import gan
import loop
import trainer
from data import images
from models import sngan

# Flag defaults, chosen by --data unless --preset is given
PRESETS = {
    # The paper's CIFAR-10 values (section 4) are the defaults of the flags themselves.
    'paper': {},

    # Our own: two minutes on two CPU cores
    'demo': dict(
        ch_g=32, ch_d=32,
        batch=16, g_batch=16,
        d_steps=1, steps=1000,
        lr_g=1e-3, lr_d=1e-3,
        ema=.99,
        ada_kimg=.5, lecam_start=100,
        eval_samples=500, log_every=25),
}
RANGES = {'g_batch': '[1, 65536]'}                     # see cli.check_ranges


def get_args(argv=None):
    """The flags of this script; exits 2 on flags that contradict each other."""
    p = trainer.parser(__doc__)
    _, experiments = trainer.add_flags(p, PRESETS)
    a = experiments['training'].add_argument
    a('--g-batch', type=int, default=64, help='generated images per G update (paper: 64, released code: 128)')

    given = trainer.as_typed(p, argv, RANGES)         # before any preset
    name = given.preset or preset(given.data)
    args = trainer.parse(p, argv, PRESETS, name)
    if given.res and (given.res % 8 or given.res < 8):
        cli.refuse(f'--res {args.res} is not a multiple of 8: use one, such as 32, 48 or 64')
    return trainer.adopt(args, given, 'sngan', build, ch_g=256, ch_d=128, res=32)


def preset(data):
    """The preset of a data set."""
    return 'demo' if data in ('emoji', 'emoji-faces') else 'paper'


def build(args):
    """G, D with theta_0 and phi_0 of --seed, on the CPU, in torch's default memory format."""
    with loop.seeded(args.seed):
        G = sngan.Generator(args.res, args.ch_g)
        D = sngan.Discriminator(args.ch_d)
    return G, D


def main(args):
    """Train, evaluate, save; returns the trained networks G, D."""
    job = trainer.Training('sngan', args, build)
    if job.over:
        return job.trained
    run, G, D, E = job.run, job.G, job.D, job.E

    # This rank's batches: filled in place, because a CUDA graph reads these tensors.
    n = args.batch // run.ranks
    m = args.g_batch // run.ranks
    x = torch.zeros(n, 3, args.res, args.res, device=job.device)
    x = x.to(memory_format=torch.channels_last)
    z = torch.zeros(n, job.z_dim, device=job.device)
    z_g = torch.zeros(m, job.z_dim, device=job.device)

    def context():
        return loop.autocast(args, job.device)

    def d_step(part):                                                  # Eq. 5 and Eq. 6
        with context():
            fake = G.net(z[part])                                      # [n, 3, H, W]
            return gan.d_loss(D.net, x[part], fake, args, job.sums, ada=job.ada, lecam=job.lecam)

    def g_step(part):                                                  # Eq. 3 and Eq. 4
        return gan.g_loss(G.net, D.net, z_g[part], args, job.sums, context, ada=job.ada)

    reals = job.reals()                               # the images take their memory, and the updates the rest
    micro = trainer.fit_memory(job, [(D, d_step, n), (G, g_step, m)])
    parts = flat.micro_batches(n, micro)
    parts_g = flat.micro_batches(m, micro)
    job.begin()
    for step in run.iterations(job.nets, job.sums, job.state):
        # Algorithm 2: train the discriminator
        for k in range(args.d_steps):
            rng = loop.rng(args.seed, 'D', step, k)
            flip = trainer.flips(rng, args, job.device)
            real, _ = next(reals)
            x.copy_(images.batch(real, flip=flip))
            loop.fill(z, loop.gaussian(rng, args.batch, job.z_dim))
            D.update(d_step, parts)
            job.after_d_update()                                       # LeCam's anchors

        # Algorithm 2: train the generator
        rng = loop.rng(args.seed, 'G', step)
        loop.fill(z_g, loop.gaussian(rng, args.g_batch, job.z_dim))
        G.update(g_step, parts_g, keep=job.moves())

        E.track(G, args.ema if step > args.ema_start else 0)
        job.after_step()                                               # p of ADA, masks of --dst
        job.observe()                                                  # log, grid, score
    return job.finish()


if __name__ == '__main__':
    cli.script(main, get_args)
