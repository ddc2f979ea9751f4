"""The losses of GAN training as functions of D's logits (sec. 3.1 of the paper), and the regularisers of D and G.

Use:
    import torch, losses
    f_D, f_G = losses.LOSSES['hinge']
    real, fake = torch.randn(8), torch.randn(8)           # D(x) and D(G(z)) [N]
    L_D = losses.d_loss(real, fake, f_D)
    L_G = losses.g_loss(fake, f_G)
    lecam = losses.LeCam(weight=.3, start=0, decay=.9)    # beside L_D, at every step of D
    L_D = L_D + lecam(real, fake)
    lecam.step()
    x = torch.rand(8, 3, 4, 4).requires_grad_(True)
    L_D = L_D + 10 * losses.r1(x.flatten(1).sum(1), x)    # logits of x

    L_D = E f_D(-D(x)) + E f_D(D(G(z))),      L_G = E f_G(-D(G(z)))
    hinge (Lim & Ye 2017):        f_D(t) = max(0, 1 + t),     f_G(t) = t
    logistic (Goodfellow 2014):   f_D(t) = log(1 + e^t),      f_G(t) = log(1 + e^t)    (the non-saturating form)

Both players minimise.  The paper says that D maximises L_D: a slip of the sign, since its f_D is a loss.

LeCam (Tseng et al. 2021), with a_R and a_F moving averages of D on real and generated images, constants here:
    R_LC = E (D(x) - a_F)^2 + E (D(G(z)) - a_R)^2,    released: E max(0, D(x) - a_F)^2 + E max(0, a_R - D(G(z)))^2
StyleGAN2's (Mescheder et al. 2018; Karras et al. 2020), y ~ N(0, 1) / sqrt(H W), a a moving average of |J' y|:
    R_1 = 1/2 E |grad_x D(x)|^2,                      R_pl = E (|J' y| - a)^2,  J' y = grad_w sum(G(w) y)
"""
import torch
import torch.nn.functional as F


def hinge(t, margin=1.):
    """max(0, margin + t)."""
    return F.relu(margin + t)


def identity(t):
    """t: G's side of the hinge loss."""
    return t


LOSSES = {'hinge': (hinge, identity), 'logistic': (F.softplus, F.softplus)}


def d_loss(real, fake, f_D):
    """L_D from logits on real [N] and generated [M] images."""
    return f_D(-real).mean() + f_D(fake).mean()


def g_loss(fake, f_G):
    """L_G from logits on generated images [N]."""
    return f_G(-fake).mean()


def full(x):
    """bf16 as fp32, other precisions as they are."""
    return x.float() if x.dtype == torch.bfloat16 else x


def r1(logits, x):
    """R_1 of logits [N] as a function of images x [N, C, H, W], which require a gradient; D may augment them."""
    gradient, = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return full(gradient).square().sum((1, 2, 3)).mean() / 2


LECAM = {'hinge': .3, 'logistic': 3e-7}                        # published weights: BigGAN; StyleGAN2 at 256 px


def add_flags(parser, experiments=None):
    """The flags of the losses; returns the parser."""
    a = parser.add_argument
    a('--loss', choices=LOSSES, default='hinge', help='f_D and f_G')
    a('--margin', type=float, default=1., help="of D's hinge loss max(0, margin + t)")
    a('--lecam', type=float, nargs='?', const=-1., metavar='WEIGHT',
      help=f"LeCam's regulariser of D (default weight: {', '.join(f'{w:g} with {k}' for k, w in LECAM.items())})")
    a('--lecam-decay', type=float, default=.9, help='of the moving averages, per D update')
    a('--lecam-start', type=int, default=1000, help='G updates before it acts')
    a('--lecam-form', choices=['paper', 'released'], default='paper', help='released: the one-sided squares')
    return parser


def contradiction(args, default):
    """One sentence on flags that contradict each other or do nothing, or None; completes --lecam without a weight."""
    for name in ('lecam_decay', 'lecam_start', 'lecam_form'):
        if args.lecam is None and getattr(args, name) != default(name):
            return f"--{name.replace('_', '-')} {getattr(args, name)} does nothing without --lecam: add it"
    if args.margin != 1 and args.loss != 'hinge':
        return f'--margin {args.margin:g} is of the hinge loss: leave it out with --loss {args.loss}'
    if args.lecam == -1:
        args.lecam = LECAM[args.loss]
    if args.lecam is not None and not 0 < args.lecam < float('inf'):
        return f'--lecam {args.lecam:g} is not a positive weight: leave it out for none'
    if not 0 <= args.lecam_decay < 1 or args.lecam_start < 0:
        return f'--lecam-decay {args.lecam_decay} --lecam-start {args.lecam_start}: use 0 <= decay < 1, steps from 0 on'


class LeCam:
    """R_LC times its weight, and its anchors [2], the moving averages of D on real and on generated images.

    Called with logits of a micro-batch, any number of times, then step() moves the anchors by what was seen. A penalty
    uses the anchors of the step before (the released code moves them first): so micro-batches and ranks share them."""

    def __init__(self, weight=.3, start=1000, decay=.9, form='paper', device='cpu'):
        self.weight, self.start, self.decay, self.form = weight, start, decay, form
        self.anchors, self.seen, self.calls = torch.zeros(2, device=device), torch.zeros(2, device=device), 0
        self.active = False

    def __call__(self, real, fake):
        """The penalty, 0 up to the start, of logits [N] and [M]."""
        with torch.no_grad():
            self.seen += torch.stack((real.mean(), fake.mean()))
        self.calls += 1
        if not self.active:
            return 0. * real.sum()
        a_R, a_F = self.anchors.unbind()
        gaps = (real - a_F, fake - a_R) if self.form == 'paper' else (F.relu(real - a_F), F.relu(a_R - fake))
        return self.weight * sum((gap ** 2).mean() for gap in gaps)

    def step(self, step=1, average=lambda x: x):
        """Move the anchors to what was seen in this update of D, in step `step` of G; average(x): over ranks.

        Up to the start they are what was seen last."""
        self.anchors.lerp_(average(self.seen / self.calls), 1 - self.decay if self.active else 1.)
        self.seen.zero_()
        self.calls, self.active = 0, step > self.start

    def state(self):
        return {'anchors': self.anchors, 'active': self.active}

    def load(self, state):
        self.anchors.copy_(state['anchors'])
        self.active = state['active']


class PathLength:
    """R_pl times its weight, and its moving average of the length, a.

    As in the original, a moves before it is used and carries its small share of the gradient."""

    def __init__(self, weight=2., decay=.01, device='cpu'):
        self.weight, self.decay, self.mean = weight, decay, torch.zeros((), device=device)

    def __call__(self, G2, w):
        """The penalty; images G2(w) [N, C, H, W] of styles w [N, layers, dim]."""
        x = G2(w)
        y = torch.randn_like(x) / (x.shape[2] * x.shape[3]) ** .5
        gradient, = torch.autograd.grad((x * y).sum(), w, create_graph=True)
        length = full(gradient).square().sum(2).mean(1).sqrt()                   # [N]
        a = self.mean.lerp(length.mean(), self.decay)
        with torch.no_grad():
            self.mean.copy_(a)
        return self.weight * (length - a).square().mean()

    def step(self, average):
        """After an update of G; average(x): over ranks."""
        self.mean.copy_(average(self.mean))

    def state(self):
        return {'mean': self.mean}

    def load(self, state):
        self.mean.copy_(state['mean'])
