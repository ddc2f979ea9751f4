"""Differentiable augmentation of images: DiffAugment (Zhao et al. 2020).

Use:
    import torch, augment
    x = torch.rand(8, 3, 32, 32) * 2 - 1                            # images in [-1, 1]
    T = augment.draw('color,translation,cutout', x)                 # random parameters, drawn once, one set per image
    y = T(x)                                                        # a plain differentiable function of x

    color        brightness x + U(-0.5, 0.5);  saturation (x - m) U(0, 2) + m, m the pixel's mean over channels;
                 contrast (x - m) U(0.5, 1.5) + m, m the image's mean after that
    translation  by whole pixels, uniform on {-s ... s} per axis, s = int(size / 8 + 0.5); vacated pixels are 0
    cutout       a square of c = int(size / 2 + 0.5) zeroed around a uniform centre, cut at the frame

Applied from left to right, always, without clipping.  Computed in fp32; 0 is mid-grey.
"""
import torch


def add_flags(parser):
    """The flags of image augmentation; returns the parser."""
    a = parser.add_argument
    a('--aug', choices=['none', 'diffaug'], default='none', help="augmentation of every image that D sees")
    a('--aug-policy', default='color,translation,cutout', help='parts of DiffAugment, applied from left to right')
    return parser


def contradiction(args, default):
    """One sentence on flags that contradict each other or do nothing, or None; default(name) -> a flag's default."""
    if args.aug == 'none' and args.aug_policy != default('aug_policy'):
        return f'--aug-policy {args.aug_policy} does nothing without --aug diffaug: add it'
    try:
        check(args.aug_policy)
    except ValueError as e:
        return f'--aug-policy {args.aug_policy}: {e}'


def rand(n, x, generator):
    return torch.rand(n, 1, 1, 1, device=x.device, generator=generator)


def color(x, g):
    """Brightness, saturation, contrast of images like x [N, C, H, W]."""
    brightness, saturation, contrast = rand(len(x), x, g) - .5, rand(len(x), x, g) * 2, rand(len(x), x, g) + .5

    def apply(x):
        x = x + brightness
        m = x.mean(1, keepdim=True)
        x = (x - m) * saturation + m
        m = x.mean((1, 2, 3), keepdim=True)
        return (x - m) * contrast + m
    return apply


def integers(n, low, high, x, g):
    """Uniform integers [n, 1] in low ... high."""
    return torch.randint(low, high + 1, (n, 1), device=x.device, generator=g)


def translation(x, g):
    """Shift by whole pixels with zero padding, as two products with 0/1 matrices: exact, and its gradient as fast."""
    def shift(size):
        s, at = int(size / 8 + .5), torch.arange(size, device=x.device)
        source = at + integers(len(x), -s, s, x, g)                                # [N, size]: where row i comes from
        return (source[:, :, None] == at)[:, None]                                 # [N, 1, size, size]
    rows, columns = shift(x.shape[2]), shift(x.shape[3]).transpose(2, 3)
    return lambda x: rows.to(x.dtype) @ x @ columns.to(x.dtype)


def cutout(x, g):
    """Zero a square of half the size; centres run from 0 to size (even c) or size - 1 (odd c), as in the original."""
    def inside(size):
        c, at = int(size / 2 + .5), torch.arange(size, device=x.device)
        first = integers(len(x), 0, size - c % 2, x, g) - c // 2                   # [N, 1], may lie outside
        return (at >= first) & (at < first + c)                                    # [N, size]
    keep = ~(inside(x.shape[2])[:, None, :, None] & inside(x.shape[3])[:, None, None, :])     # [N, 1, H, W]
    return lambda x: x * keep


PARTS = {'color': color, 'translation': translation, 'cutout': cutout}


def check(policy):
    """The names of a policy string; raises ValueError on an unknown one."""
    names = policy.split(',')
    for name in names:
        if name not in PARTS:
            raise ValueError(f'{name!r} is not a part of DiffAugment: use some of {",".join(PARTS)}')
    return names


def draw(policy, x, generator=None):
    """T with its random parameters drawn for images of x's shape [N, C, H, W] and device; T(x) -> fp32 [N, C, H, W].

    policy: comma-separated names, or None / '' for the identity.
    generator: of x's device; default: torch's global one."""
    parts = [PARTS[name](x, generator) for name in check(policy)] if policy else []

    def T(x):
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            for part in parts:
                x = part(x)
        return x
    return T
