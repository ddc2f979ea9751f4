"""Differentiable augmentation of images: DiffAugment (Zhao et al. 2020) and the pipe of ADA (Karras et al. 2020).

Use:
    import torch, augment
    x = torch.rand(8, 3, 32, 32) * 2 - 1                            # images in [-1, 1]
    T = augment.draw('color,translation,cutout', x)                 # random parameters, drawn once, one set per image
    y = T(x)                                                        # a plain differentiable function of x
    y = augment.draw('bgc', x, p=.6)(x)                             # ADA: every transform with probability p
    ada = augment.Controller(images=64)                             # p follows how much D overfits
    ada.add(real=torch.randn(8)), ada.adjust(step=4)                # logits on augmented reals; then ada.p

DiffAugment (p is None), applied from left to right, always, without clipping; computed in fp32; 0 is mid-grey:

    color        brightness x + U(-0.5, 0.5);  saturation (x - m) U(0, 2) + m, m the pixel's mean over channels;
                 contrast (x - m) U(0.5, 1.5) + m, m the image's mean after that
    translation  by whole pixels, uniform on {-s ... s} per axis, s = int(size / 8 + 0.5); vacated pixels are 0
    cutout       a square of c = int(size / 2 + 0.5) zeroed around a uniform centre, cut at the frame

ADA, always in this order; each transform of each image passes its own gate of probability p, else is the identity:

    blit    flip of x with probability 1/2; turn by -90 i degrees, i of 0 ... 3; shift by round(size U(-1/8, 1/8))
    geom    scale s = 2^(0.2 N); rotation U(-pi, pi); stretch (s, 1/s), s = 2^(0.2 N); rotation again; shift by size N/8
            (rotations: gates of 1 - sqrt(1 - p), so that either is open with probability p)
    color   brightness + 0.2 N; contrast c = 2^(0.5 N), about 0; luma flip I - 2 v v' with probability 1/2;
            hue: turn by U(-pi, pi) about v; saturation v v' + s (I - v v'), s = 2^N;  v = (1, 1, 1) / sqrt 3
    filter  gains 2^N of four octave bands, a gate each, normalised to keep the power of natural images
    noise   + s N per value, s = 0.1 |N|
    cutout  a square of half the size zeroed around U(0, 1)^2, cut at the frame

blit and geom are one affine map: reflect, up x2 by sym6, sample bilinearly, down x2; color is one 3x4 matrix, or for
1 channel what it does to grey.  policy: some of these, or bg, bgc (the paper's), bgcf, bgcfn, bgcfnc.  For images from
16 to 1024 px a side; filter needs more than 21 px.  TF32 rounds only where torch's setting for matmul allows it.
"""
import functools

import numpy as np
import torch


def add_flags(parser, experiments=None):
    """The flags of image augmentation; returns the parser."""
    a = parser.add_argument
    a('--aug', choices=['none', 'diffaug', 'ada'], default='none', help='augmentation of every image that D sees')
    a('--aug-policy', help=f"parts of DiffAugment (default: all), or of ADA (default: bgc), such as {', '.join(PIPES)}")
    a('--aug-on', choices=['both', 'real', 'd'], default='both',
      help="both: as it should be; real: reals alone, which leaks; d: D's updates alone, which unbalances")
    a('--ada-p', type=float, help='fixed probability (default: it follows --ada-heuristic from 0 on)')
    a('--ada-heuristic', choices=['rt', 'rv'], default='rt',
      help="rt: the mean sign of D on training images; rv: D's gap between training and held-out images")
    a('--ada-target', type=float, help='where p stays (default: rt 0.6 or the preset\'s, rv 0.5)')
    a('--ada-kimg', type=float, default=500, help='thousands of reals in which p may rise by 1')
    a('--ada-interval', type=int, default=4, help='steps between adjustments of p')
    a('--ada-pmax', type=float, default=.8, help='bound of p: beyond 0.8 augmentations leak into the samples')
    return parser


def contradiction(args, default):
    """One sentence on flags that contradict each other or do nothing, or None; completes what has no default."""
    def flag(name):
        return f"--{name.replace('_', '-')} {getattr(args, name)}"
    changed = [k for k in vars(args) if k.startswith(('ada_', 'aug_')) and getattr(args, k) != default(k)]
    for name in changed:
        if args.aug == 'none' or name.startswith('ada_') and args.aug != 'ada':
            return f"{flag(name)} does nothing with --aug {args.aug}: " \
                   f"add --aug {'ada' if name.startswith('ada_') else 'diffaug or --aug ada'}, or leave it out"
        if args.ada_p is not None and name in ('ada_heuristic', 'ada_target', 'ada_kimg', 'ada_interval', 'ada_pmax'):
            return f'{flag(name)} steers p, which --ada-p {args.ada_p} fixes: leave one out'
    if args.aug != 'none' and args.aug_policy is None:
        args.aug_policy = ','.join(PARTS) if args.aug == 'diffaug' else 'bgc'
    if args.ada_target is None:                                # a preset may bring its own for rt
        args.ada_target = .5 if args.ada_heuristic == 'rv' else getattr(args, 'ada_rt_target', .6)
    if not 0 <= (args.ada_p or 0) <= 1 or not 0 < args.ada_pmax <= 1:
        return f'{flag("ada_p")} {flag("ada_pmax")}: use probabilities'
    if not -1 < args.ada_target < 1 or not 0 < args.ada_kimg < float('inf') or args.ada_interval < 1:
        return (f'{flag("ada_target")} {flag("ada_kimg")} {flag("ada_interval")}: use a target between -1 and 1, and '
                'positive numbers')
    try:
        if args.aug != 'none':
            check(args.aug_policy, args.aug == 'ada')
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

GROUPS = ('blit', 'geom', 'color', 'filter', 'noise', 'cutout')
PIPES = {'bgcfnc'[:n]: ','.join(GROUPS[:n]) for n in range(2, 7)}                  # bg, bgc, bgcf, bgcfn, bgcfnc


def check(policy, ada=False):
    """The names of a policy string, an ADA pipe spelt out; raises ValueError on an unknown one."""
    known, of = (GROUPS, f'ADA: {",".join(PIPES)} or') if ada else (PARTS, 'DiffAugment: use')
    names = (PIPES.get(policy, policy) if ada else policy).split(',')
    for name in names:
        if name not in known:
            raise ValueError(f'{name!r} is not a part of {of} some of {",".join(known)}')
    return names


def draw(policy, x, p=None, generator=None):
    """T with its random parameters drawn for images of x's shape [N, C, H, W] and device; T(x) -> fp32 [N, C, H, W].

    policy: comma-separated names, or None / '' for the identity.
    p: None for DiffAugment, else the probability of ADA's transforms, a float; 1 and above open every gate.
    generator: of x's device, for ADA of the CPU, where its parameters are drawn; default: torch's global one."""
    if p is not None and policy:
        if x.shape[1] not in (1, 3) or min(x.shape[2:]) < 16:
            raise ValueError(f'ADA needs images of 1 or 3 channels and at least 16 px, not {list(x.shape[1:])}')
        if 'filter' in check(policy, ada=True) and min(x.shape[2:]) < 22:
            raise ValueError(f"ADA's filter needs images of more than 21 px, not {list(x.shape[2:])}: leave it out")
        return ada(parameters(policy, len(x), p, generator), x, generator)
    parts = [PARTS[name](x, generator) for name in check(policy)] if policy else []

    def T(x):
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            for part in parts:
                x = part(x)
        return x
    return T


# ADA on the host, in numpy's float64: parameters [N, numbers] and the matrices they make.

# group, numbers per image, their source, what becomes of them, and the value of a closed gate
TRANSFORMS = {'flip': ('blit', 1, torch.rand, lambda u: np.floor(2 * u), 0),
              'turn': ('blit', 1, torch.rand, lambda u: np.floor(4 * u), 0),
              'shift': ('blit', 2, torch.rand, lambda u: (2 * u - 1) / 8, 0),
              'scale': ('geom', 1, torch.randn, lambda z: 2 ** (.2 * z), 1),
              'rotation': ('geom', 1, torch.rand, lambda u: (2 * u - 1) * np.pi, 0),
              'stretch': ('geom', 1, torch.randn, lambda z: 2 ** (.2 * z), 1),
              'rotation2': ('geom', 1, torch.rand, lambda u: (2 * u - 1) * np.pi, 0),
              'drift': ('geom', 2, torch.randn, lambda z: z / 8, 0),
              'brightness': ('color', 1, torch.randn, lambda z: .2 * z, 0),
              'contrast': ('color', 1, torch.randn, lambda z: 2 ** (.5 * z), 1),
              'luma': ('color', 1, torch.rand, lambda u: np.floor(2 * u), 0),
              'hue': ('color', 1, torch.rand, lambda u: (2 * u - 1) * np.pi, 0),
              'saturation': ('color', 1, torch.randn, lambda z: 2 ** z, 1),
              'bands': ('filter', 4, torch.randn, lambda z: 2 ** z, 1),
              'noise': ('noise', 1, torch.randn, lambda z: .1 * abs(z), 0),
              'centre': ('cutout', 2, torch.rand, lambda u: u, -1)}                # -1: a square off the image


def parameters(policy, n, p, generator=None):
    """{transform: [n, numbers]} of ADA; the identity's values behind closed gates and outside of the policy."""
    names, P = check(policy, ada=True), {}
    for name, (group, k, source, value, identity) in TRANSFORMS.items():
        P[name] = np.full((n, k), float(identity))
        if group in names:
            z = source(n, k, dtype=torch.float64, generator=generator).numpy()
            u = torch.rand(n, k if name == 'bands' else 1, dtype=torch.float64, generator=generator).numpy()
            odds = 1 - np.sqrt(1 - min(p, 1)) if name in ('rotation', 'rotation2') else p
            P[name] = np.where(u < odds, value(z), P[name])
    return P


def affine(*entries):
    """[N, 3, 3]: two rows of entries, scalars or [N], above (0, 0, 1)."""
    m = np.stack(np.broadcast_arrays(*entries, 0., 0., 1.), -1)
    return m.reshape(*m.shape[:-1], 3, 3)


def geometry(P, H, W):
    """Inverse maps [N, 3, 3] from output to input pixels, (x, y, 1) about the centre."""
    def rotate(t):
        return affine(np.cos(t), -np.sin(t), 0, np.sin(t), np.cos(t), 0)
    flip, turn, s, r, a, q = (P[k][:, 0] for k in ('flip', 'turn', 'scale', 'rotation', 'stretch', 'rotation2'))
    (tx, ty), (dx, dy) = P['shift'].T, P['drift'].T
    inverses = (affine(1 - 2 * flip, 0, 0, 0, 1, 0), np.rint(rotate(turn * np.pi / 2)),       # without rounding
                affine(1, 0, -np.rint(tx * W), 0, 1, -np.rint(ty * H)), affine(1 / s, 0, 0, 0, 1 / s, 0), rotate(-r),
                affine(1 / a, 0, 0, 0, a, 0), rotate(-q), affine(1, 0, -dx * W, 0, 1, -dy * H))
    return functools.reduce(np.matmul, inverses)


def colors(P, channels):
    """Colour matrices M [N, C, C + 1]: rgb' = M (rgb, 1)."""
    b, c, luma, t, s = (P[k][:, :, None] for k in ('brightness', 'contrast', 'luma', 'hue', 'saturation'))
    eye, vv = np.eye(3), np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)            # v x
    M = c * (eye - 2 * luma * vv)                                                  # [N, 3, 3]
    if channels == 3:                                                              # where: exact if the gate is closed
        M = np.where(t == 0, eye, vv + np.cos(t) * (eye - vv) + np.sin(t) * cross) @ M
        M = np.where(s == 1, eye, vv + s * (eye - vv)) @ M
    M = np.concatenate((M, b * M.sum(2, keepdims=True)), 2)                        # brightness comes first
    return M if channels == 3 else np.stack((M[..., :3].sum((1, 2)), M[..., 3].sum(1)), 1)[:, None] / 3


def gains(bands):
    """Gains of the four bands [N, 4]: each band's change is undone in power, by its share of it in natural images."""
    g = 1
    for k in range(4):
        t = np.where(np.arange(4) == k, bands, 1)
        g = g * t / np.sqrt((t ** 2 * (10, 1, 1, 1)).sum(1, keepdims=True) / 13)
    return g


# ADA on the device.  Along a line, resampling and filtering are matrices: built once per size, gathered per image.

SYM6 = np.array([.015404109327027373, .0034907120842174702, -.11799011114819057, -.048311742585633, .4910559419267466,
                 .787641141030194, .3379294217276218, -.07263752278646252, -.021060292512300564, .04472490177066578,
                 .0017677118642428036, -.007800708325034148])
SYM6 /= SYM6.sum()
BOXES = 1, 1.5, 2, 3                                                               # sides, over the image's
BUDGET = 2 ** 27                                                                   # numbers in a temporary, at most


class Warp(torch.autograd.Function):
    """Bilinear sampling [N, C, h, w] -> [N, C, H, W], zero outside; given a shape, its adjoint. Linear in the image, so
    each is the other's derivative, to any order: on CUDA, the backward of grid_sample has none of its own."""

    @staticmethod
    def forward(ctx, x, grid, shape=None):
        ctx.save_for_backward(grid)
        ctx.shape = None if shape else x.shape
        if not shape:
            return torch.nn.functional.grid_sample(x, grid, align_corners=False)
        like = x.new_zeros(()).expand(shape)
        return torch.ops.aten.grid_sampler_2d_backward(x, like, grid, 0, 0, False, (True, False))[0]

    @staticmethod
    def backward(ctx, g):
        return Warp.apply(g, ctx.saved_tensors[0], ctx.shape), None, None


def put(a, like):
    """A numpy array on like's device, numbers in its dtype, without waiting for the device."""
    a = torch.as_tensor(a, dtype=like.dtype if a.dtype.kind == 'f' else None)
    return a.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else a.to(like.device)


def constant(build):
    """build(size) as a tensor like another one, made once."""
    @functools.lru_cache(maxsize=32)
    def cached(size, dtype, device):
        with torch.inference_mode(False):
            return torch.tensor(build(size), dtype=dtype, device=device)
    return lambda size, like: cached(int(size), like.dtype, like.device)


def mirror(i, size):
    """The pixel of a line that index i, -size < i < 2 size - 1, of the line padded by reflection shows."""
    return size - 1 - abs(size - 1 - abs(i))


@constant
def up_matrix(size):
    """[6 size, size]: pad by size - 1 on either side, up x2; two rows of zeros before and after."""
    c, k = np.mgrid[1 - size:2 * size - 1, :12]
    row, F = 2 * (c + size - 1) + k - 5, np.zeros((6 * size, size))                # pixel c adds 2 h_k to 2 c + k - 5
    inside = (row >= 0) & (row < len(F) - 4)
    np.add.at(F, (row[inside] + 2, mirror(c, size)[inside]), 2 * SYM6[k[inside]])
    return F


@constant
def down_matrix(size):
    """[size, 2 size + 10]: the same filter, time-reversed, at every second place."""
    i, k = np.mgrid[:size, :12]
    D = np.zeros((size, 2 * size + 10))
    D[i, 2 * i + k] = SYM6[k]
    return D


@constant
def band_matrices(size):
    """[4, size, size]: octave bands of a line padded by reflection, lowest first; they add up to the identity."""
    def spread(f, d):
        return np.kron(f, np.eye(1, d)[0])[:6 * d + 1] / 32                        # f(z^d)
    B, taps, rest = np.zeros((4, size, size)), [], np.ones(1)
    for d in (1, 2, 4):
        taps.insert(0, np.convolve(rest, spread([1, 0, -9, 16, -9, 0, 1], d)))
        rest = np.convolve(rest, spread([-1, 0, 9, 16, 9, 0, -1], d))
    for band, f in zip(B, [rest, *taps]):
        i, k = np.mgrid[:size, :len(f)]
        np.add.at(band, (i, mirror(i + k - len(f) // 2, size)), f[k])
    return B


def sandwich(left, right, transpose=False):
    """x -> left x right' on images [N, C, H, W] or their transpose; matrices [N, *, *]."""
    left, right = left[:, None], right[:, None].mT
    return lambda x: left @ (x.mT if transpose else x) @ right


def by_kind(kind, build, numbers, like):
    """x -> build(i, k)(x[i]) for the images i of each kind k > 0, BUDGET / numbers at a time; 0 stays as is."""
    order, most = np.argsort(kind, kind='stable'), max(1, BUDGET // numbers)
    groups = [i[j:j + most] for i in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1)
              for j in range(0, len(i), most)]
    steps = [build(i, kind[i[0]]) if kind[i[0]] else lambda x: x for i in groups]
    there, back, sizes = put(order, like), put(np.argsort(order), like), [len(i) for i in groups]

    def apply(x):
        parts = x.index_select(0, there).split(sizes)
        return torch.cat([step(part) for step, part in zip(steps, parts)]).index_select(0, back)
    return apply if kind.any() else lambda x: x


def resample(G, C, H, W, like):
    """x -> x under inverse maps G [N, 3, 3]. Pixel i of a line is sample 2i of the line up x2, "fine"; sample u of the
    canvas that is filtered in the end, 2 size + 10 a side, looks at fine L (u - size - 4) + t.

    Turned by multiples of 90 degrees, the axes are separate, and all steps along one are one matrix; else images are
    upsampled where they are looked at, in boxes of a few sizes, so that shapes repeat."""
    size = np.array((W, H))
    L, t = G[:, :2, :2], 2 * G[:, :2, 2] + size - 1
    low, end = 2 - 2 * size, 4 * size - 2                                          # of the padded line, fine
    middle, reach = t + L.sum(2) / 2, abs(L) @ (size + 4.5) + 1
    first, last = np.clip(middle - reach, low, end), np.clip(middle + reach, low, end)
    box = np.searchsorted(BOXES, ((np.ceil(last) - np.floor(first) + 1) / (2 * size)).max(1))
    off, on = L[:, [0, 1], [1, 0]].any(1), L[:, [0, 1], [0, 1]].any(1)             # the diagonals
    kind = np.where(off, np.where(on, 3 + box, 2), (G != np.eye(3)).any((1, 2)))

    def build(i, k):
        if k == 1:
            return sandwich(*(lines(L[i, a, a], t[i, a], size[a], size[a], like) for a in (1, 0)))
        if k == 2:
            return sandwich(*(lines(L[i, a, 1 - a], t[i, a], size[a], size[1 - a], like) for a in (0, 1)), True)
        side = np.minimum(2 * np.ceil(BOXES[k - 3] * size), end - low)
        start = np.minimum(np.floor(first[i]), end - side)                         # [n, 2]
        return boxes(L[i], t[i] - start, start - low + 2, side, size, like)
    return by_kind(kind, build, 36 * C * H * W, like)


def lines(coef, t, size, n, like):
    """[N, n, size]: all steps from lines of `size` to n, canvas sample u at fine coef (u - n - 4) + t; coef, t: [N]."""
    f = coef[:, None] * (np.arange(2 * n + 10) - n - 4) + t[:, None] + 2 * size    # [N, 2n + 10], row of up_matrix
    whole = np.floor(f)
    row, F = put(np.clip(whole, 0, 6 * size - 2).astype(np.int64), like), up_matrix(size, like)
    return down_matrix(n, like) @ torch.lerp(F[row], F[row + 1], put(f - whole, like)[..., None])


def boxes(L, t, row, side, size, like):
    """x -> down(warp(up(x))), up giving the rows of up_matrix from `row` [N, 2] on; t: in the box."""
    up = sandwich(*(up_matrix(size[a], like)[put((row[:, [a]] + np.arange(side[a])).astype(np.int64), like)]
                    for a in (1, 0)))
    right, down = (down_matrix(s, like) for s in size)
    # grid_sample has fine i of n at (2 i + 1) / n - 1; elementwise, for a product of matrices may be rounded to TF32
    m = np.concatenate((2 * L, 2 * t[..., None] + 1), 2) / side[:, None] - np.array((0, 0, 1))
    a, b, c = put(m, like)[:, :, None, None].unbind(-1)                            # [N, 2, 1, 1] each
    u, v = (torch.arange(-n - 4, n + 6, device=like.device) for n in size.tolist())
    grid = (a * u + b * v[:, None] + c).movedim(1, -1).contiguous()                # [N, 2H + 10, 2W + 10, 2]
    return lambda x: down @ (Warp.apply(up(x), grid) @ right.mT)


def ada(P, x, generator=None):
    """T of ADA with parameters P = {transform: [N, numbers]}; generator: of the noise, used if x is on the CPU."""
    C, H, W = x.shape[1:]
    like = torch.empty(0, dtype=x.dtype if x.dtype == torch.float64 else torch.float32, device=x.device)
    groups = {group for name, (group, *_, identity) in TRANSFORMS.items() if (P[name] != identity).any()}
    steps = []
    with torch.autocast(x.device.type, enabled=False):
        if groups & {'blit', 'geom'}:
            steps.append(resample(geometry(P, H, W), C, H, W, like))
        if 'color' in groups:
            M = put(colors(P, C), like)
            steps.append(lambda x: torch.baddbmm(M[..., C:], M[..., :C], x.flatten(2)).view(x.shape))
        if 'filter' in groups:
            g = gains(P['bands'])
            steps.append(by_kind((g != 1).any(1), lambda i, _: sandwich(
                *(torch.tensordot(put(g[i], like), band_matrices(s, like), 1) for s in (H, W))), 3 * H * W, like))
        if 'noise' in groups:
            z = torch.randn(x.shape, device=x.device, generator=generator if x.device.type == 'cpu' else None)
            noise = put(P['noise'], like)[..., None, None] * z                     # [N, C, H, W]
            steps.append(lambda x: x + noise)
        if 'cutout' in groups:
            columns, rows = (put(abs((np.arange(n) + .5) / n - P['centre'][:, [k]]) < .25, like)
                             for k, n in enumerate((W, H)))
            keep = ~(rows[:, None, :, None] & columns[:, None, None])              # [N, 1, H, W]
            steps.append(lambda x: x * keep)

    def T(x):
        with torch.autocast(x.device.type, enabled=False):
            return functools.reduce(lambda x, step: step(x), steps, x.to(like.dtype))
    return T


class Controller:
    """ADA's p, which follows how much D overfits; `p` is a float in [0, pmax], the same on all ranks.

    Every `interval` steps of G, p moves by interval * images / (1000 kimg) up if r is above its target, else down:
    r_t = E sign D(x) on augmented training images;  r_v = (E D(x) - E D(held)) / (E D(x) - E D(G(z))).
    images: reals that D sees per step of G.  p given: fixed."""

    def __init__(self, images, heuristic='rt', target=.6, kimg=500, interval=4, pmax=.8, p=None, device='cpu'):
        self.heuristic, self.target, self.interval, self.pmax = heuristic, target, interval, pmax
        self.rate, self.fixed, self.p, self.r = interval * images / (1000 * kimg), p is not None, p or 0., 0.
        self.at = {name: i for i, name in enumerate(('sign', 'real', 'fake', 'held'))}
        self.sums, self.fresh = torch.zeros(2, 4, 2, device=device).double()       # [4, 2]: sum, count

    @torch.no_grad()
    def add(self, **logits):
        """real, fake or held [N]: D on augmented images."""
        if 'real' in logits:
            logits['sign'] = logits['real'].sign()
        for name, x in logits.items():
            self.fresh[self.at[name]] += torch.stack((x.sum(), torch.full_like(x[0], len(x))))

    def adjust(self, step, average=lambda x: x):
        """At the end of each step; moves p if it is a multiple of the interval. average(x): over ranks."""
        self.sums += average(self.fresh)
        self.fresh.zero_()
        if step % self.interval:
            return
        sign, real, fake, held = (self.sums[:, 0] / self.sums[:, 1].clamp(min=1)).tolist()      # waits for the device
        self.sums.zero_()
        self.r = sign if self.heuristic == 'rt' else (real - held) / max(real - fake, 1e-8)
        if not self.fixed:
            move = (self.r > self.target) - (self.r < self.target)
            self.p = min(max(self.p + self.rate * move, 0.), self.pmax)

    def state(self):
        return {'p': self.p, 'r': self.r, 'sums': self.sums}

    def load(self, state):
        self.p, self.r = state['p'], state['r']
        self.sums.copy_(state['sums'])
