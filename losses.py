"""The losses of GAN training as functions of D's logits (section 3.1 of the paper), and regularisers.

Use:
    import torch, losses
    f_D, f_G = losses.LOSSES['hinge']
    real, fake = torch.randn(8), torch.randn(8)           # D(x) and D(G(z)), [N]
    L_D = losses.d_loss(real, fake, f_D)
    L_G = losses.g_loss(fake, f_G)
    lecam = losses.LeCam(weight=.3, start=0, decay=.9)
    L_D = L_D + lecam(real, fake)                         # in every update of D
    lecam.step()                                          # at the end of this update
    x = torch.rand(8, 3, 4, 4).requires_grad_(True)
    L_D = L_D + 10 * losses.r1(x.flatten(1).sum(1), x)    # logits [N], and the images that they belong to

Both players minimise.  The paper says that D maximises L_D: a slip of the sign, since its f_D is a loss.

    L_D = E f_D(-D(x)) + E f_D(D(G(z))),      L_G = E f_G(-D(G(z)))
    hinge (Lim & Ye 2017):                    f_D(t) = max(0, 1 + t),     f_G(t) = t
    non-saturating (Goodfellow et al. 2014):  f_D(t) = log(1 + e^t),      f_G(t) = log(1 + e^t)

LeCam (Tseng et al. 2021).  a_R and a_F are moving averages of D on real and on generated images.  They carry
no gradient.

    R_LC = E (D(x) - a_F)^2 + E (D(G(z)) - a_R)^2                         as published
    R_LC = E max(0, D(x) - a_F)^2 + E max(0, a_R - D(G(z)))^2             as released

R1 (Mescheder et al. 2018) and path length (StyleGAN2; Karras et al. 2020).  y has the shape of an image, and
values N(0, 1) / sqrt(H W).  a is a moving average of |J' y|.

    R_1 = 1/2 E |grad_x D(x)|^2
    R_pl = E (|J' y| - a)^2,    J' y = grad_w sum(G(w) y)
"""
import torch
import torch.nn.functional as F


def identity(t):
    """t: f_G of the hinge loss, and the average over a single rank."""
    return t


def hinge(t, margin=1.):
    """max(0, margin + t)."""
    return F.relu(margin + t)


LOSSES = {                                                     # --loss: (f_D, f_G)
    'hinge': (hinge, identity),
    'logistic': (F.softplus, F.softplus),
}
LECAM = {                                                      # --loss: the published weight of R_LC
    'hinge': .3,                                               # BigGAN
    'logistic': 3e-7,                                          # StyleGAN2 at 256 px
}


# ---- flags

# What each number may be.  The intervals are checked where the flags are parsed (cli.check_ranges).
RANGES = {
    'margin': '[0, inf)',
    'lecam': '(0, inf)',
    'lecam_decay': '[0, 1)',
    'lecam_start': '[0, 1e12]'}


def add_flags(group, experiments=None):
    """Add the flags of losses: the everyday ones to `group`, others to `experiments` (default: `group`)."""
    experiments = experiments or group
    published = ', '.join(f'{weight:g} with {loss}' for loss, weight in LECAM.items())
    experiments.add_argument('--loss', choices=LOSSES, default='hinge', help='loss of D and G')
    experiments.add_argument('--margin', type=float, default=1.,
                             help="margin of D's hinge loss max(0, margin + t)")
    group.add_argument('--lecam', type=float, nargs='?', const=True, metavar='WEIGHT',
                       help=f"use LeCam's regulariser of D, with this weight (default weight: {published})")
    experiments.add_argument('--lecam-decay', type=float, default=.9,
                             help="decay of LeCam's moving averages per update of D")
    experiments.add_argument('--lecam-start', type=int, default=1000,
                             help='number of updates of G before LeCam acts')
    experiments.add_argument('--lecam-form', choices=['paper', 'released'], default='paper',
                             help="released: the one-sided squares of LeCam's released code")
    return group


def contradiction(args, default):
    """One sentence on flags that contradict each other or do nothing; None if there are none.

    default(name) is the default of a flag.  --lecam without a weight gets the published one here."""
    if args.lecam is None:
        for name in ('lecam_decay', 'lecam_start', 'lecam_form'):
            value = getattr(args, name)
            if value != default(name):
                return f"--{name.replace('_', '-')} {value} does nothing without --lecam: add it"

    if args.margin != 1 and args.loss != 'hinge':
        return f'--margin {args.margin:g} is of the hinge loss: leave it out with --loss {args.loss}'

    if args.lecam is True:                                     # no weight was given
        args.lecam = LECAM[args.loss]


# ---- the losses of both players

def d_loss(real, fake, f_D):
    """L_D from D's logits on real [N] and on generated [M] images."""
    return f_D(-real).mean() + f_D(fake).mean()


def g_loss(fake, f_G):
    """L_G from D's logits on generated images [N]."""
    return f_G(-fake).mean()


# ---- regularisers

def at_least_fp32(x):
    """x in fp32; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def r1(logits, x):
    """R_1 of logits [N] as a function of images x [N, C, H, W].

    x must require a gradient.  Augmentation between x and D is part of the function."""
    gradient, = torch.autograd.grad(logits.sum(), x, create_graph=True)
    gradient = at_least_fp32(gradient)                                             # [N, C, H, W]
    squared_norm = gradient.square().sum((1, 2, 3))                                # [N]
    return squared_norm.mean() / 2


class LeCam:
    """R_LC times its weight, with its anchors a_R and a_F.

    In an update of D, call the object once per micro-batch, then call step().  The penalty uses the anchors
    of the update before, so that all micro-batches and all ranks use the same ones.  The released code moves
    them first.

    start: number of updates of G before R_LC acts.  decay: of the anchors, per update of D.
    form: 'paper' or 'released'."""

    def __init__(self, weight=.3, start=1000, decay=.9, form='paper', device='cpu'):
        self.weight, self.start = weight, start
        self.decay, self.form = decay, form
        self.anchors = torch.zeros(2, device=device)           # a_R, a_F
        self.seen = torch.zeros(2, device=device)              # sums of D's means on both kinds of images
        self.calls = 0                                         # number of summands in `seen`
        self.active = False

    def __call__(self, real, fake):
        """The penalty of D's logits on real [N] and on generated [M] images; 0 before the start."""
        with torch.no_grad():
            self.seen += torch.stack((real.mean(), fake.mean()))
        self.calls += 1
        if not self.active:
            return 0. * real.sum()

        a_R, a_F = self.anchors.unbind()
        if self.form == 'paper':
            real_gap = real - a_F                                                  # [N]
            fake_gap = fake - a_R                                                  # [M]
        else:
            real_gap = F.relu(real - a_F)
            fake_gap = F.relu(a_R - fake)
        return self.weight * ((real_gap ** 2).mean() + (fake_gap ** 2).mean())

    def step(self, step=1, average=identity):
        """Move the anchors, at the end of an update of D in step `step` of G.

        Before the start, the anchors are the latest means, without memory.
        average(x): the mean of x over ranks."""
        pace = 1 - self.decay if self.active else 1.           # 1: without memory
        self.anchors.lerp_(average(self.seen / self.calls), pace)
        self.active = step > self.start
        self.seen.zero_()
        self.calls = 0

    def state(self):
        return {'anchors': self.anchors, 'active': self.active}

    def load(self, state):
        self.anchors.copy_(state['anchors'])
        self.active = state['active']


class PathLength:
    """R_pl times its weight, with the moving average a of the length.

    As in StyleGAN2's code, a is updated before the penalty is taken, and a is not detached: the share that
    the current lengths have in a carries a gradient.

    decay: the share of the current mean length in a."""

    def __init__(self, weight=2., decay=.01, device='cpu'):
        self.weight, self.decay = weight, decay
        self.mean = torch.zeros((), device=device)             # a

    def __call__(self, G2, w):
        """The penalty of images G2(w) [N, C, H, W] as a function of their styles w [N, layers, dim].

        w must require a gradient."""
        x = G2(w)
        y = torch.randn_like(x) / (x.shape[2] * x.shape[3]) ** .5
        gradient, = torch.autograd.grad((x * y).sum(), w, create_graph=True)       # J' y, [N, layers, dim]
        gradient = at_least_fp32(gradient)
        length = gradient.square().sum(2).mean(1).sqrt()                           # [N]

        a = self.mean.lerp(length.mean(), self.decay)
        with torch.no_grad():
            self.mean.copy_(a)
        return self.weight * (length - a).square().mean()

    def step(self, average):
        """At the end of an update of G.  average(x): the mean of x over ranks."""
        self.mean.copy_(average(self.mean))

    def state(self):
        return {'mean': self.mean}

    def load(self, state):
        self.mean.copy_(state['mean'])
