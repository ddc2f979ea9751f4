"""AdvAug: adversarial augmentation of the features inside G and D (Eqs. 3-6 and Algorithm 2 of the paper).

Use:
    import torch, advaug
    G1, G2 = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)         # a network G = G2 o G1
    h = G1(torch.randn(16, 4))                                    # the feature at the cut, [N, ...]
    loss = lambda h: -G2(h).mean()                                # a player's loss as a function of h
    total = loss(h) + loss(advaug.pgd(h, loss, steps=1, step_size=.01))
    clean, adv = advaug.backward(h, loss, steps=1, step_size=.01)  # gradients of total, in fewer passes

Each player minimises

    L + lambda L_adv                                                   Eq. 4 for G, Eq. 6 for D
    L_adv = max over |delta|_inf <= eps of L(h + delta)                Eq. 3 for G, Eq. 5 for D

and projected gradient descent (PGD; Madry et al. 2018) approximates the maximum, from delta = 0:

    delta <- clip(delta + step_size * sign(grad L(h + delta)), -eps, eps)

delta is a constant for backpropagation, but the gradient of L_adv still trains the layers that made h.  The
paper prints Eqs. 5 and 6 with min and max exchanged, as if L_D were a gain.  In its released code, PGD always
raises D's logit, which helps G, and helps D on real images.
"""
import torch


# What each number may be.  The intervals are checked where the flags are parsed (cli.check_ranges).
RANGES = {
    'adv_step': '(0, inf)',
    'adv_pgd': '[1, 1000]',
    'adv_eps': '(0, inf)',
    'adv_lambda_g': '[0, inf)',
    'adv_lambda_d': '[0, inf)',
    'adv_cut_g': '[-100, 100]',
    'adv_cut_d': '[-100, 100]',
    'adv_noise': '(0, inf)'}


def add_flags(group, experiments=None):
    """Add the flags of AdvAug: the everyday ones to `group`, others to `experiments` (default: `group`)."""
    experiments = experiments or group
    group.add_argument('--advaug', choices=['none', 'g', 'd', 'gd'], default='none',
                       help='adversarial feature augmentation in G, in D or in both')
    group.add_argument('--adv-step', type=float, default=.01,
                       help='step size of PGD (paper: 0.01 on CIFAR, 0.001 on ImageNet)')
    experiments.add_argument('--adv-pgd', type=int, default=1, help='number of PGD steps')
    experiments.add_argument('--adv-eps', type=float,
                             help='largest change of a feature (default: steps x step size, never exceeded)')
    experiments.add_argument('--adv-lambda-g', type=float, default=1.,
                             help="weight of G's adversarial loss (lambda_1 of the paper)")
    experiments.add_argument('--adv-lambda-d', type=float, default=1.,
                             help="weight of D's adversarial loss (lambda_2 of the paper)")
    experiments.add_argument('--adv-cut-g', type=int, default=1,
                             help='stages of G before the changed feature (1: after the first layer)')
    experiments.add_argument('--adv-cut-d', type=int, default=-1,
                             help='stages of D before the changed feature (-1: all but the last layer)')
    experiments.add_argument('--adv-sign', choices=['adversary', 'released'], default='adversary',
                             help="PGD raises the player's own loss (adversary), or D's logit (released)")
    experiments.add_argument('--adv-noise', type=float,
                             help='Gaussian noise of this standard deviation, instead of PGD (paper: 0.01)')
    return group


def contradiction(args, default):
    """One sentence on flags that contradict each other or do nothing; None if there are none.

    default(name) is the default of a flag."""
    for name in vars(args):
        if not name.startswith('adv_') or getattr(args, name) == default(name):
            continue
        flag = f"--{name.replace('_', '-')} {getattr(args, name)}"
        player = name[-1] if name.endswith(('_g', '_d')) else ''           # '': the flag is of both players

        if args.advaug == 'none' or player not in args.advaug:
            wanted = player or 'gd'
            return (f'{flag} does nothing with --advaug {args.advaug}: '
                    f'add --advaug {wanted}, or leave it out')
        if args.adv_noise is not None and name in ('adv_step', 'adv_pgd', 'adv_eps', 'adv_sign'):
            return f'{flag} belongs to PGD, --adv-noise {args.adv_noise} replaces it: leave one out'


def direction(h, objective):
    """Sign of the gradient of the objective at h [N, ...].  The gradients of parameters stay as they are."""
    h = h.detach().requires_grad_()
    gradient, = torch.autograd.grad(objective(h).sum(), h)
    return gradient.sign()


def project(delta, steps, step_size, eps):
    """delta, clipped to |delta|_inf <= eps.  None stands for steps * step_size, which PGD never exceeds."""
    if eps is None:
        eps = abs(steps * step_size)
    return delta.clamp(-eps, eps)


def pgd(h, objective, steps=1, step_size=.01, eps=None):
    """h + delta, where delta comes from `steps` signed gradient steps up the objective.

    h: the feature [N, ...].  objective(h): a scalar or one value per sample.
    step_size: in units of h; a negative one descends.  eps: largest |delta|; None for steps * step_size.
    The gradient flows through h, not through delta.  The parameters keep their gradients as they are."""
    delta = torch.zeros_like(h)
    for _ in range(steps):
        # PGD step
        delta = delta + step_size * direction(h + delta, objective)
        delta = project(delta, steps, step_size, eps)

    # Eq. 3 (G) and Eq. 5 (D): where L_adv is taken
    return h + delta


def backward(h, loss, steps=1, step_size=.01, eps=None, weight=1.):
    """Backpropagate loss(h) + weight * loss(pgd(h, loss, ...)) into everything; return both losses, detached.

    h: the feature [N, ...], with the graph of the layers that made it.  loss(h): a scalar.
    steps, step_size, eps: of `pgd`.  weight: lambda.

    The gradient of the clean loss is also the first PGD direction.  PGD with one step therefore costs two
    passes through `loss`, and one through the layers that made h.  The graphs are retained, because passes
    and micro-batches share parts of them (the embedding of labels, W / sigma(W))."""
    # L, the clean loss
    x = h.detach().requires_grad_()                            # a leaf: backpropagation stops here for now
    clean = loss(x)
    clean.backward(retain_graph=True)
    clean = clean.detach()

    # First PGD step, from delta = 0
    delta = project(step_size * x.grad.sign(), steps, step_size, eps)

    # Further PGD steps
    for _ in range(steps - 1):
        delta = delta + step_size * direction(x + delta, loss)
        delta = project(delta, steps, step_size, eps)

    # Eq. 3: L_adv, the loss at h + delta
    moved = (x.detach() + delta).requires_grad_()
    adv = loss(moved)
    (weight * adv).backward(retain_graph=True)

    # Eq. 4: the gradients of L and of lambda L_adv are added at the cut, and go into the layers that made h
    if h.requires_grad:
        h.backward(x.grad + moved.grad, retain_graph=True)
    return clean, adv.detach()


def noise(h, std=.01):
    """h + N(0, std^2) [N, ...], the baseline of Table 6.

    The gradient flows through h; the released code cuts it."""
    return h + std * torch.randn_like(h)
