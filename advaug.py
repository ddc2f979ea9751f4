"""AdvAug: adversarial augmentation of the features inside G and D (the paper's Eqs. 3-6, Algorithm 2).

Use:
    import torch, advaug
    G1, G2 = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
    h = G1(torch.randn(16, 4))                                        # the feature at the cut [N, ...]
    loss = lambda h: -G2(h).mean()                                    # a player's loss as a function of the feature
    plain = loss(h) + loss(advaug.pgd(h, loss, steps=1, step_size=.01))
    clean, adv = advaug.backward(h, loss, steps=1, step_size=.01)     # the same gradients in two passes, not three

    L + lambda L_adv,   L_adv = L(h + delta),   delta = argmax over |delta|_inf <= eps of the objective, by PGD:
    delta <- clip(delta + step sign(grad objective(h + delta)), -eps, eps),  starting from 0

delta is a constant for backpropagation; the adversarial branch still trains what made h.  A negative step descends.
The released code climbs D's logit everywhere, which helps G and D's reals; here each player's own loss rises (Fig. 3).
"""
import torch


def add_flags(parser, experiments=None):
    """AdvAug's flags; returns the parser."""
    a = parser.add_argument
    a('--advaug', choices=['none', 'g', 'd', 'gd'], default='none',
      help='adversarial feature augmentation in G, D or both')
    a('--adv-step', type=float, default=.01, help='PGD step size (paper: 0.01 on CIFAR, 0.001 on ImageNet)')
    a('--adv-pgd', type=int, default=1, help='PGD steps')
    a('--adv-eps', type=float, help='radius of the ball (default: steps x step size, never active, as released)')
    a('--adv-lambda-g', type=float, default=1., help="weight of G's adversarial loss (the paper's lambda_1)")
    a('--adv-lambda-d', type=float, default=1., help="weight of D's adversarial loss (lambda_2)")
    a('--adv-cut-g', type=int, default=1, help="stage of G after which its feature is taken (1: after the first layer)")
    a('--adv-cut-d', type=int, default=-1, help="stage of D, likewise (-1: before the last layer)")
    a('--adv-sign', choices=['adversary', 'released'], default='adversary', help="released: always climb D's logit")
    a('--adv-noise', type=float, help='instead of PGD, Gaussian noise of this standard deviation (Table 6: 0.01)')
    return parser


def contradiction(args, default):
    """One sentence on flags that contradict each other or do nothing, or None; default(name) -> a flag's default."""
    changed = [k for k in vars(args) if k.startswith('adv_') and getattr(args, k) != default(k)]
    flag = {k: f"--{k.replace('_', '-')} {getattr(args, k)}" for k in changed}
    for k in changed:
        player = k[-1] if k[-2:] in ('_g', '_d') else ''
        if args.advaug == 'none' or player not in args.advaug:
            return f'{flag[k]} does nothing with --advaug {args.advaug}: add --advaug {player or "gd"}, or leave it out'
        if args.adv_noise is not None and k in ('adv_step', 'adv_pgd', 'adv_eps', 'adv_sign'):
            return f'{flag[k]} belongs to PGD, --adv-noise {args.adv_noise} replaces it: leave one out'
    if args.advaug != 'none' and args.adv_noise is None and (args.adv_pgd < 1 or args.adv_step <= 0):
        return (f'--advaug {args.advaug} with --adv-pgd {args.adv_pgd} --adv-step {args.adv_step} moves nothing: '
                'use positive values, or --advaug none')
    if args.adv_noise is not None and args.adv_noise <= 0 or args.adv_eps is not None and args.adv_eps <= 0:
        return f'--adv-noise {args.adv_noise} --adv-eps {args.adv_eps}: use positive values, or leave them out'


def project(delta, steps, step_size, eps):
    eps = abs(steps * step_size) if eps is None else eps
    return delta.clamp(-eps, eps)


def climb(h, objective):
    """Sign of the objective's gradient at h; parameters keep their gradients as they are."""
    x = h.detach().requires_grad_()
    return torch.autograd.grad(objective(x).sum(), x)[0].sign()


def pgd(h, objective, steps=1, step_size=.01, eps=None):
    """h + delta [N, ...], with delta after `steps` signed steps up the objective (a scalar or one value per sample).

    eps: radius of the ball; None for steps * step_size. Gradients flow through h, not through delta."""
    delta = torch.zeros_like(h)
    for _ in range(steps):
        delta = project(delta + step_size * climb(h + delta, objective), steps, step_size, eps)
    return h + delta


def backward(h, loss, steps=1, step_size=.01, eps=None, weight=1.):
    """Backpropagate loss(h) + weight * loss(pgd(h, loss, ...)) into everything; returns both losses, detached.

    The clean pass holds the first PGD direction, so PGD-1 costs two passes through loss and one through what made h."""
    x = h.detach().requires_grad_()
    clean = loss(x)
    clean.backward(retain_graph=True)                      # what both passes share (labels, W / sigma(W)) is used twice
    clean = clean.detach()
    delta = project(step_size * x.grad.sign(), steps, step_size, eps)
    for _ in range(steps - 1):
        delta = project(delta + step_size * climb(x + delta, loss), steps, step_size, eps)
    moved = (x.detach() + delta).requires_grad_()
    adv = loss(moved)
    (weight * adv).backward(retain_graph=True)
    if h.requires_grad:
        h.backward(x.grad + moved.grad, retain_graph=True)         # micro-batches share W / sigma(W) in front too
    return clean, adv.detach()


def noise(h, std=.01):
    """h + N(0, std^2) [N, ...]: the baseline of Table 6, with its gradients intact (the released one cuts them)."""
    return h + std * torch.randn_like(h)
