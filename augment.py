"""Differentiable augmentation of images: DiffAugment (Zhao et al. 2020) and ADA (Karras et al. 2020).

Use:
    import torch, augment
    x = torch.rand(8, 3, 32, 32) * 2 - 1                      # images in [-1, 1]
    T = augment.draw('color,translation,cutout', x)           # DiffAugment; its random numbers are drawn here
    y = T(x)                                                  # T is a plain differentiable function
    y = augment.DiffAugment(x, 'color,translation,cutout')    # both in one line, as in the original
    y = augment.draw('bgc', x, p=.6)(x)                       # ADA: every transform with probability p
    ada = augment.Controller(images=64)                       # its p follows how much D overfits
    ada.add(real=torch.randn(8))                              # D's logits on augmented real images
    ada.adjust(step=4)                                        # moves ada.p
    real, _ = augment.pseudo(x, torch.zeros_like(x), p=.3)    # APA: some reals are generated images

U(a, b) is a uniform random number and N a standard normal one; each image has its own.  Value 0 is mid-grey.

DiffAugment applies its parts from left to right, to every image, without clipping:

    color        brightness x + U(-0.5, 0.5)
                 saturation (x - m) U(0, 2) + m, where m is the mean of the pixel over channels
                 contrast (x - m) U(0.5, 1.5) + m, where m is the mean of the image after that
    translation  by whole pixels, uniform on {-s ... s}, s = int(size / 8 + 0.5); vacated pixels are 0
    cutout       a square with sides of int(size / 2 + 0.5) around a uniform centre is 0; the frame cuts it

ADA applies its transforms in this order.  Each acts on an image with probability p, and else is the identity:

    blit    flip of x with probability 1/2
            turn by -90 i degrees, i of 0 ... 3
            shift by round(size U(-1/8, 1/8))
    geom    scale s = 2^(0.2 N)
            rotation by U(-pi, pi), with probability 1 - sqrt(1 - p)
            stretch (s, 1/s), s = 2^(0.2 N)
            rotation again: one of both acts with probability p
            shift by size N/8
    color   brightness + 0.2 N
            contrast c = 2^(0.5 N), about 0
            luma flip I - 2 v v' with probability 1/2, v = (1, 1, 1) / sqrt 3
            hue: turn by U(-pi, pi) about v
            saturation v v' + s (I - v v'), s = 2^N
    filter  gains 2^N of four octave bands, each with probability p; the power of natural images is kept
    noise   + s N per value, s = 0.1 |N|
    cutout  a square of half the size around U(0, 1)^2 is 0; the frame cuts it

A policy of ADA lists some of these, or is bg, bgc (ADA's default), bgcf, bgcfn or bgcfnc.  All of blit and
geom is one affine map, resampled as in appendix B of Karras et al.: reflect, upsample x2 with the wavelet
sym6, look up bilinearly, downsample x2.  All of color is one 3x4 matrix; for 1 channel, what it does to
grey.  Images have 16 to 1024 px a side, and at least 22 for filter.  TF32 rounds products only where torch's
setting for matmul allows it.

APA (Jiang et al. 2021) augments no image.  With probability p a real image of D's batch is replaced by a
generated one, which D is told is real; p follows r_t as in ADA.
"""
import functools

import numpy as np
import torch

# ---- flags

ADAPTIVE = ('ada', 'apa')                                      # values of --aug whose p a Controller moves
STEERING = ('ada_heuristic', 'ada_target', 'ada_kimg', 'ada_interval', 'ada_pmax')     # how p moves

# What each number may be.  The intervals are checked where the flags are parsed (cli.check_ranges).
RANGES = {
    'ada_p': '[0, 1]',
    'ada_target': '(-1, 1)',
    'ada_kimg': '(0, inf)',
    'ada_interval': '[1, 1e12]',
    'ada_pmax': '(0, 1]'}


def add_flags(group, experiments=None):
    """Add the flags of augmentation, the everyday ones to `group`, the others to `experiments`.

    experiments defaults to `group`."""
    experiments = experiments or group
    group.add_argument('--aug', choices=['none', 'diffaug', 'ada', 'apa'], default='none',
                       help='augmentation of every image that D sees; apa: with a probability p that follows '
                            'D as in ada, a real image is replaced by a generated one')
    experiments.add_argument('--aug-policy',
                             help='parts of DiffAugment (default: all), or of ADA (default: bgc), such as '
                                  + ', '.join(PIPES))
    experiments.add_argument('--aug-on', choices=['both', 'real', 'd'], default='both',
                             help='both: real and generated images, as published; real: real images alone, '
                                  'which leaks; d: in updates of D alone, which unbalances')
    experiments.add_argument('--ada-p', type=float,
                             help='fixed probability of ADA (default: it follows --ada-heuristic, from 0 on)')
    experiments.add_argument('--ada-heuristic', choices=['rt', 'rv'], default='rt',
                             help='measure of overfitting: rt: the mean sign of D on training images; rv: '
                                  'the gap of D between training and held-out images, as a share of that '
                                  'between training and generated images')
    group.add_argument('--ada-target', type=float,
                       help='measure of overfitting at which p stays (default: 0.5 for rv; for rt that of '
                            'the preset, or 0.6)')
    experiments.add_argument('--ada-kimg', type=float, default=500,
                             help='thousands of real images in which p may rise by 1')
    experiments.add_argument('--ada-interval', type=int, default=4,
                             help='steps between two adjustments of p')
    experiments.add_argument('--ada-pmax', type=float, default=.8,
                             help='upper bound of p: beyond 0.8, augmentations leak into the samples')
    return group


def contradiction(args, default):
    """One sentence on flags that contradict each other or do nothing; None if there are none.

    default(name) is the default of a flag.  --aug-policy and --ada-target get theirs here."""
    def flag(name):
        return f"--{name.replace('_', '-')} {getattr(args, name)}"

    # Flags that do nothing
    for name, value in vars(args).items():
        if not name.startswith(('aug_', 'ada_')) or value == default(name):
            continue
        if name.startswith('aug_') and args.aug in ('none', 'apa'):
            return (f'{flag(name)} does nothing with --aug {args.aug}: '
                    'add --aug diffaug or --aug ada, or leave it out')
        if name.startswith('ada_') and args.aug not in ADAPTIVE:
            return (f'{flag(name)} does nothing with --aug {args.aug}: '
                    'add --aug ada or --aug apa, or leave it out')
        if name in STEERING and args.ada_p is not None:
            return f'{flag(name)} steers p, which --ada-p {args.ada_p} fixes: leave one out'

    # Defaults that depend on other flags
    if args.aug_policy is None and args.aug == 'diffaug':
        args.aug_policy = ','.join(PARTS)
    if args.aug_policy is None and args.aug == 'ada':
        args.aug_policy = 'bgc'
    if args.ada_target is None and args.ada_heuristic == 'rv':
        args.ada_target = .5
    if args.ada_target is None:
        args.ada_target = getattr(args, 'ada_rt_target', .6)               # a preset may bring its own for rt

    # Parts that do not exist
    if args.aug in ('diffaug', 'ada'):
        try:
            policy_names(args.aug_policy, ada=args.aug == 'ada')
        except ValueError as e:
            return f'--aug-policy {args.aug_policy}: {e}'


def at_least_fp32(x):
    """x in fp32; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def identity(x):
    """x."""
    return x


# ---- DiffAugment: a part draws its numbers for images like x [N, C, H, W], and returns a function of images

def uniform(x, generator):
    """U(0, 1) for each image, [N, 1, 1, 1]."""
    shape = len(x), 1, 1, 1
    return torch.rand(shape, device=x.device, generator=generator)


def integers(low, high, x, generator):
    """A uniform integer of low ... high for each image, [N, 1]."""
    shape = len(x), 1
    return torch.randint(low, high + 1, shape, device=x.device, generator=generator)


def color(x, generator):
    """Brightness, saturation and contrast."""
    brightness = uniform(x, generator) - .5                    # [N, 1, 1, 1]
    saturation = uniform(x, generator) * 2
    contrast = uniform(x, generator) + .5

    def apply(x):
        x = x + brightness

        mean = x.mean(1, keepdim=True)                         # [N, 1, H, W]
        x = (x - mean) * saturation + mean

        mean = x.mean((1, 2, 3), keepdim=True)                 # [N, 1, 1, 1]
        return (x - mean) * contrast + mean
    return apply


def translation(x, generator):
    """Shift by whole pixels with zero padding.

    The shift is two products with 0/1 matrices: exact, and as fast backwards as forwards."""
    def shift_matrix(size):
        most = int(size / 8 + .5)
        place = torch.arange(size, device=x.device)
        source = place + integers(-most, most, x, generator)   # [N, size]: where pixel i comes from
        matrix = source[:, :, None] == place                   # [N, size, size]
        return matrix[:, None]                                 # [N, 1, size, size]

    rows = shift_matrix(x.shape[2])
    columns = shift_matrix(x.shape[3]).transpose(2, 3)

    def apply(x):
        return rows.to(x.dtype) @ x @ columns.to(x.dtype)
    return apply


def cutout(x, generator):
    """Zero a square of half the size.

    As in the original, centres run from 0 to size if the square has an even side, else to size - 1."""
    def inside(size):
        side = int(size / 2 + .5)
        centre = integers(0, size - side % 2, x, generator)    # [N, 1]
        first = centre - side // 2                             # may lie outside of the image
        place = torch.arange(size, device=x.device)
        return (place >= first) & (place < first + side)       # [N, size]

    rows = inside(x.shape[2])[:, None, :, None]
    columns = inside(x.shape[3])[:, None, None]
    keep = ~(rows & columns)                                   # [N, 1, H, W]

    def apply(x):
        return x * keep
    return apply


PARTS = {'color': color, 'translation': translation, 'cutout': cutout}
GROUPS = ('blit', 'geom', 'color', 'filter', 'noise', 'cutout')            # of ADA
PIPES = {
    'bg': 'blit,geom',
    'bgc': 'blit,geom,color',
    'bgcf': 'blit,geom,color,filter',
    'bgcfn': 'blit,geom,color,filter,noise',
    'bgcfnc': 'blit,geom,color,filter,noise,cutout',
}


# ---- T

def policy_names(policy, ada=False):
    """The names in a policy string, a pipe of ADA spelt out.  Raises ValueError for an unknown name."""
    known, method = PARTS, 'DiffAugment: use'
    if ada:
        known, method = GROUPS, f'ADA: {",".join(PIPES)} or'
        policy = PIPES.get(policy, policy)

    names = policy.split(',')
    for name in names:
        if name not in known:
            raise ValueError(f'{name!r} is not a part of {method} some of {",".join(known)}')
    return names


def draw(policy, x, p=None, generator=None):
    """T with its random numbers drawn: a function of images [N, C, H, W] of x's shape and device.

    T(x) is differentiable, of the shape of x, and in fp32 (float64 for float64 images).  T raises ValueError
    for a batch of another size.
    policy: comma-separated names, or None / '' for the identity.
    p: None for DiffAugment, else the probability of ADA's transforms; 1 and above open every gate.
    generator: of x's device, for ADA of the CPU, where its parameters are drawn; None for torch's global one.
    Raises ValueError for an unknown name, and for images that ADA cannot take."""
    if policy and p is not None:
        check_shape(policy, *x.shape[1:])
        P = parameters(policy, len(x), p, generator)
        return ada(P, x, generator)

    parts = []
    if policy:
        for name in policy_names(policy):
            part = PARTS[name](x, generator)
            parts.append(part)
    shape = x.shape

    def T(x):
        if parts:
            check_batch(x, shape)
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_fp32(x)
            for part in parts:
                x = part(x)
        return x
    return T


def DiffAugment(x, policy='color,translation,cutout'):
    """Images x [N, C, H, W], augmented by random numbers that are new in every call: the original's one line.

    Where the clean and the adversarial pass must see one T (AdvAug), T = draw(policy, x) is needed.
    Raises ValueError for an unknown name."""
    T = draw(policy, x)
    return T(x)


def check_batch(x, shape):
    """Raise ValueError where the number or the size of images x is not that which T was drawn for."""
    if x.dim() != 4 or x.shape[0] != shape[0] or x.shape[2:] != shape[2:]:
        raise ValueError(f'T was drawn for images {list(shape)}, not for {list(x.shape)}: draw another T, '
                         'because each image has random numbers of its own')


def check_shape(policy, C, H, W):
    """Raise ValueError where a policy of ADA cannot take images [N, C, H, W]."""
    smallest = min(H, W)
    if C not in (1, 3) or smallest < 16:
        raise ValueError(f'ADA needs images of 1 or 3 channels and at least 16 px, not {[C, H, W]}')
    if 'filter' in policy_names(policy, ada=True) and smallest < 22:
        raise ValueError(f"ADA's filter needs images of more than 21 px, not {[H, W]}: leave it out")


# ---- ADA on the host, in numpy's float64: parameters [N, numbers], and the matrices that they make

# What becomes of a uniform number u on [0, 1) or of a normal number z

def coin(u):
    return np.floor(2 * u)                                     # 0 or 1


def quarters(u):
    return np.floor(4 * u)                                     # 0, 1, 2 or 3


def eighth(u):
    return (2 * u - 1) / 8                                     # U(-1/8, 1/8)


def angle(u):
    return (2 * u - 1) * np.pi                                 # U(-pi, pi)


def normal(std):
    return lambda z: std * z


def half_normal(std):
    return lambda z: std * abs(z)


def log2_normal(std):
    return lambda z: 2 ** (std * z)


# transform: (group, numbers per image, what is drawn, what becomes of it, value behind a closed gate)
TRANSFORMS = {
    'flip': ('blit', 1, torch.rand, coin, 0),
    'turn': ('blit', 1, torch.rand, quarters, 0),
    'shift': ('blit', 2, torch.rand, eighth, 0),
    'scale': ('geom', 1, torch.randn, log2_normal(.2), 1),
    'rotation': ('geom', 1, torch.rand, angle, 0),
    'stretch': ('geom', 1, torch.randn, log2_normal(.2), 1),
    'rotation2': ('geom', 1, torch.rand, angle, 0),
    'drift': ('geom', 2, torch.randn, normal(1 / 8), 0),
    'brightness': ('color', 1, torch.randn, normal(.2), 0),
    'contrast': ('color', 1, torch.randn, log2_normal(.5), 1),
    'luma': ('color', 1, torch.rand, coin, 0),
    'hue': ('color', 1, torch.rand, angle, 0),
    'saturation': ('color', 1, torch.randn, log2_normal(1), 1),
    'bands': ('filter', 4, torch.randn, log2_normal(1), 1),
    'noise': ('noise', 1, torch.randn, half_normal(.1), 0),
    'centre': ('cutout', 2, torch.rand, identity, -1),         # -1: the square lies off the image
}


def parameters(policy, n, p, generator=None):
    """{transform: [n, numbers]} of ADA for n images.

    A transform outside of the policy, or with a closed gate for an image, has the value of the identity.
    generator: of the CPU."""
    groups = policy_names(policy, ada=True)
    how = {'dtype': torch.float64, 'generator': generator}
    P = {}
    for name, transform in TRANSFORMS.items():
        group, numbers, source, value, closed = transform
        P[name] = np.full((n, numbers), float(closed))
        if group not in groups:
            continue

        drawn = source(n, numbers, **how).numpy()
        gates = numbers if name == 'bands' else 1              # each band has a gate of its own
        u = torch.rand(n, gates, **how).numpy()
        odds = p
        if name in ('rotation', 'rotation2'):
            odds = 1 - np.sqrt(1 - min(p, 1))                  # one of the two acts with probability p
        P[name] = np.where(u < odds, value(drawn), closed)
    return P


def affine(xx, xy, x, yx, yy, y):
    """Matrices [N, 3, 3] with the rows (xx, xy, x), (yx, yy, y), (0, 0, 1); entries are numbers or [N]."""
    entries = np.broadcast_arrays(xx, xy, x, yx, yy, y, 0., 0., 1.)
    flat = np.stack(entries, -1)                               # [N, 9]
    return flat.reshape(*flat.shape[:-1], 3, 3)


def scaling(x, y):
    return affine(x, 0, 0, 0, y, 0)


def rotation(radians):
    cos, sin = np.cos(radians), np.sin(radians)
    return affine(cos, -sin, 0, sin, cos, 0)


def moving(x, y):
    return affine(1, 0, x, 0, 1, y)


def geometry(P, H, W):
    """The maps G [N, 3, 3] from the output's to the input's pixels, which are (x, y, 1) about the centre.

    G = T_1^-1 T_2^-1 ...: the inverses of the transforms in order (appendix B of Karras et al. 2020)."""
    shift_x, shift_y = P['shift'].T                            # [N] each, in sizes of the image
    drift_x, drift_y = P['drift'].T
    value = {name: numbers[:, 0] for name, numbers in P.items()}           # [N] each

    G = scaling(1 - 2 * value['flip'], 1)
    G = G @ np.rint(rotation(value['turn'] * np.pi / 2))       # rint: cosines are exactly 0, 1 or -1
    G = G @ moving(-np.rint(shift_x * W), -np.rint(shift_y * H))
    G = G @ scaling(1 / value['scale'], 1 / value['scale'])
    G = G @ rotation(-value['rotation'])
    G = G @ scaling(1 / value['stretch'], value['stretch'])
    G = G @ rotation(-value['rotation2'])
    G = G @ moving(-drift_x * W, -drift_y * H)
    return G


def colors(P, channels):
    """Colour matrices M [N, C, C + 1]: the new colour is M (old colour, 1)."""
    value = {name: numbers[:, :1, None] for name, numbers in P.items()}    # [N, 1, 1] each
    hue, saturation = value['hue'], value['saturation']
    eye = np.eye(3)
    vv = np.full((3, 3), 1 / 3)                                # v v', the projection on the axis of greys
    across = eye - vv
    cross = np.array([[0, -1, 1],
                      [1, 0, -1],
                      [-1, 1, 0]]) / np.sqrt(3)                # the vector product with v

    M = value['contrast'] * (eye - 2 * value['luma'] * vv)     # [N, 3, 3]
    if channels == 3:
        turn = vv + np.cos(hue) * across + np.sin(hue) * cross             # Rodrigues' formula
        M = np.where(hue == 0, eye, turn) @ M                  # where: exactly the identity at a closed gate
        M = np.where(saturation == 1, eye, vv + saturation * across) @ M

    offset = value['brightness'] * M.sum(2, keepdims=True)     # brightness acts before all others
    M = np.concatenate((M, offset), 2)                         # [N, 3, 4]
    if channels == 3:
        return M

    # Grey in, mean over the three colours out
    factor = M[..., :3].sum((1, 2))                            # [N]
    offset = M[..., 3].sum(1)
    return np.stack((factor, offset), 1)[:, None] / 3          # [N, 1, 2]


def band_gains(bands):
    """Gains of the four bands [N, 4] from their random factors [N, 4].

    Each factor is followed by a division that restores the power of an image.  In natural images, the bands
    share the power as 10 : 1 : 1 : 1 (appendix B of Karras et al. 2020)."""
    gains = 1
    for k in range(4):
        factors = np.where(np.arange(4) == k, bands, 1)        # [N, 4]: of band k alone
        power = (factors ** 2 * (10, 1, 1, 1)).sum(1, keepdims=True) / 13
        gains = gains * factors / np.sqrt(power)
    return gains


# ---- ADA on the device: along a line, resampling and filtering are matrices, which are built once per size

SYM6 = np.array([
    .015404109327027373, .0034907120842174702, -.11799011114819057, -.048311742585633,
    .4910559419267466, .787641141030194, .3379294217276218, -.07263752278646252,
    -.021060292512300564, .04472490177066578, .0017677118642428036, -.007800708325034148])
SYM6 /= SYM6.sum()
BOXES = 1, 1.5, 2, 3                                           # sides of the boxes in `boxes`, in images
BUDGET = 2 ** 27                                               # most numbers in a temporary tensor
FIXED, STRAIGHT, SWAPPED, TURNED = range(4)                    # kinds of affine maps, see `resample`


class Warp(torch.autograd.Function):
    """Bilinear sampling [N, C, h, w] -> [N, C, H, W] at a grid, zero outside; given a shape, its adjoint.

    Both are linear in the image, so each is the derivative of the other, to any order.  On CUDA, the backward
    pass of grid_sample has no derivative of its own."""

    @staticmethod
    def forward(ctx, x, grid, shape=None):
        ctx.save_for_backward(grid)
        if shape is None:
            ctx.shape = x.shape
            return torch.nn.functional.grid_sample(x, grid, align_corners=False)

        ctx.shape = None
        like = x.new_zeros(()).expand(shape)
        how = 0, 0, False                                      # bilinear, zero outside, align_corners
        adjoint, _ = torch.ops.aten.grid_sampler_2d_backward(x, like, grid, *how, (True, False))
        return adjoint

    @staticmethod
    def backward(ctx, gradient):
        grid, = ctx.saved_tensors
        return Warp.apply(gradient, grid, ctx.shape), None, None


def to_device(array, like):
    """A numpy array as a tensor on like's device, floats in like's dtype, without waiting for the device."""
    dtype = like.dtype if array.dtype.kind == 'f' else None
    tensor = torch.as_tensor(array, dtype=dtype)
    if like.device.type == 'cpu':
        return tensor
    return tensor.pin_memory().to(like.device, non_blocking=True)


def built_once(build):
    """A decorator: build(size), an array, becomes a function of (size, like), a tensor that is made once."""
    @functools.lru_cache(maxsize=32)
    def tensor(size, dtype, device):
        with torch.inference_mode(False):                      # else training could not use it
            like = torch.empty(0, dtype=dtype, device=device)
            return to_device(build(size), like)

    def cached(size, like):
        return tensor(int(size), like.dtype, like.device)
    return cached


def mirror(i, size):
    """The pixel at index i of a line that is padded by reflection, -size < i < 2 size - 1."""
    return size - 1 - abs(size - 1 - abs(i))


@built_once
def up_matrix(size):
    """[6 size, size]: pad a line by reflection, size - 1 pixels on either side, and upsample it x2.

    Two rows of zeros stand in front and behind."""
    pixel, tap = np.mgrid[1 - size:2 * size - 1, :12]          # of the padded line, and of the filter
    row = 2 * (pixel + size - 1) + tap - 5
    inside = (row >= 0) & (row < 6 * size - 4)

    matrix = np.zeros((6 * size, size))
    place = row[inside] + 2, mirror(pixel, size)[inside]
    np.add.at(matrix, place, 2 * SYM6[tap[inside]])            # 2: every other sample is 0
    return matrix


@built_once
def down_matrix(size):
    """[size, 2 size + 10]: the same filter, time-reversed, at every second place."""
    row, tap = np.mgrid[:size, :12]
    matrix = np.zeros((size, 2 * size + 10))
    matrix[row, 2 * row + tap] = SYM6[tap]
    return matrix


@built_once
def band_matrices(size):
    """[4, size, size]: octave bands of a line padded by reflection, lowest first; their sum is the identity.

    The bands are L(z) L(z^2) L(z^4), L(z) L(z^2) H(z^4), L(z) H(z^2) and H(z), where L and H are the
    half-band filters made of the wavelet sym2 (appendix B of Karras et al. 2020)."""
    def spread(taps, d):
        """f(z^d): zeros between the taps of f(z)."""
        spaced = np.kron(taps, np.eye(1, d)[0])
        return spaced[:6 * d + 1] / 32

    low, filters = np.ones(1), []
    for d in (1, 2, 4):
        high = spread([1, 0, -9, 16, -9, 0, 1], d)
        filters.insert(0, np.convolve(low, high))
        low = np.convolve(low, spread([-1, 0, 9, 16, 9, 0, -1], d))
    filters.insert(0, low)

    matrices = np.zeros((4, size, size))
    for matrix, taps in zip(matrices, filters):
        row, tap = np.mgrid[:size, :len(taps)]
        column = mirror(row + tap - len(taps) // 2, size)
        np.add.at(matrix, (row, column), taps[tap])
    return matrices


def sandwich(left, right, transpose=False):
    """The function x -> left x right' of images [N, C, H, W], or of their transposes.

    left, right: [N, *, *]."""
    left = left[:, None]                                       # [N, 1, *, *]
    right = right[:, None].mT

    def apply(x):
        x = x.mT if transpose else x
        return left @ x @ right
    return apply


def by_kind(kind, build, numbers, like):
    """A function of images [N, C, H, W] that treats the images of each kind together.

    kind: [N]; images of kind 0 stay as they are.
    build(i, k): the function of the images i, which are of kind k.
    numbers: size of build's largest temporary tensor, per image."""
    if not kind.any():
        return identity
    most = max(1, BUDGET // numbers)                           # images at a time
    order = np.argsort(kind, kind='stable')                    # [N]
    changes = np.flatnonzero(np.diff(kind[order])) + 1

    steps, sizes = [], []
    for same in np.split(order, changes):
        k = kind[same[0]]
        for start in range(0, len(same), most):
            i = same[start:start + most]
            steps.append(build(i, k) if k else identity)
            sizes.append(len(i))
    there = to_device(order, like)
    back = to_device(np.argsort(order), like)

    def apply(x):
        parts = x.index_select(0, there).split(sizes)
        done = [step(part) for step, part in zip(steps, parts)]
        return torch.cat(done).index_select(0, back)
    return apply


def resample(G, C, H, W, like):
    """A function of images [N, C, H, W] that looks up every pixel where the maps G [N, 3, 3] point to.

    The image upsampled x2 consists of "fine" samples; pixel i of a line is fine sample 2i.  The "canvas" is
    looked up among them, and downsampled in the end.  It has 2 size + 10 samples a side; sample u is at fine
    L (u - size - 4) + t.

    Where a map does not mix the axes (turns by multiples of 90 degrees), all steps along an axis are one
    matrix.  Else, an image is upsampled only where it is looked at, in a box of one of a few sizes, so that
    shapes repeat."""
    size = np.array((W, H))                                    # pairs are (x, y)
    L = G[:, :2, :2]                                           # [N, 2, 2]
    t = 2 * G[:, :2, 2] + size - 1                             # [N, 2]

    # The range of fine samples that the canvas looks at, within the padded line
    low, end = 2 - 2 * size, 4 * size - 2
    middle = t + L.sum(2) / 2                                  # [N, 2], of the canvas's centre
    reach = abs(L) @ (size + 4.5) + 1
    first = np.clip(middle - reach, low, end)
    last = np.clip(middle + reach, low, end)
    side = np.ceil(last) - np.floor(first) + 1
    box = np.searchsorted(BOXES, (side / (2 * size)).max(1))   # [N], index of the smallest box for it

    diagonal = np.eye(2, dtype=bool)
    straight = L[:, diagonal].any(1)                           # [N], whether x depends on x, or y on y
    swapped = L[:, ~diagonal].any(1)                           # [N], whether x depends on y, or y on x
    changed = (G != np.eye(3)).any((1, 2))                     # [N]
    kind = np.where(changed, STRAIGHT, FIXED)
    kind = np.where(swapped, SWAPPED, kind)
    kind = np.where(swapped & straight, TURNED + box, kind)

    def along(i, a, b):
        """Matrices from the input's lines along axis a to the output's along axis b."""
        return line_matrices(L[i, a, b], t[i, a], size[a], size[b], like)

    def build(i, k):
        if k == STRAIGHT:
            return sandwich(along(i, 1, 1), along(i, 0, 0))
        if k == SWAPPED:
            return sandwich(along(i, 0, 1), along(i, 1, 0), transpose=True)

        side = 2 * np.ceil(BOXES[k - TURNED] * size)           # [2]
        side = np.minimum(side, end - low)
        start = np.minimum(np.floor(first[i]), end - side)     # [n, 2]
        return boxes(L[i], t[i] - start, start - low + 2, side, size, like)
    return by_kind(kind, build, 36 * C * H * W, like)


def line_matrices(L, t, size, n, like):
    """[N, n, size]: all steps of `resample` from lines of `size` pixels to lines of n pixels.

    L, t: [N]; sample u of the canvas is at fine L (u - n - 4) + t."""
    u = np.arange(2 * n + 10)
    row = L[:, None] * (u - n - 4) + t[:, None] + 2 * size     # [N, 2n + 10], of up_matrix
    below = np.floor(row)
    index = np.clip(below, 0, 6 * size - 2).astype(np.int64)
    index = to_device(index, like)
    share = to_device(row - below, like)[..., None]

    up = up_matrix(size, like)
    canvas = torch.lerp(up[index], up[index + 1], share)       # [N, 2n + 10, size]
    return down_matrix(n, like) @ canvas


def boxes(L, t, row, side, size, like):
    """A function of images [N, C, H, W] that upsamples, warps and downsamples a box of each.

    L: [N, 2, 2].  t: [N, 2], from the start of the box.  row: [N, 2], of up_matrix, at the start of the box.
    side: [2], of the box, in fine samples.  size: (W, H)."""
    def up(axis):
        rows = row[:, [axis]] + np.arange(side[axis])          # [N, side]
        rows = to_device(rows.astype(np.int64), like)
        matrix = up_matrix(size[axis], like)
        return matrix[rows]                                    # [N, side, size]

    W, H = size.tolist()
    upsample = sandwich(up(1), up(0))
    down, right = down_matrix(H, like), down_matrix(W, like)

    # grid_sample has fine sample i of `side` at (2 i + 1) / side - 1
    maps = np.concatenate((2 * L, 2 * t[..., None] + 1), 2)    # [N, 2, 3]
    maps = maps / side[:, None] - np.array((0, 0, 1))
    maps = to_device(maps, like)[:, :, None, None]             # [N, 2, 1, 1, 3]

    # Elementwise, because a product of matrices may be rounded to TF32
    on_u, on_v, offset = maps.unbind(-1)                       # [N, 2, 1, 1] each
    u = torch.arange(-W - 4, W + 6, device=like.device)
    v = torch.arange(-H - 4, H + 6, device=like.device)
    grid = on_u * u + on_v * v[:, None] + offset               # [N, 2, 2H + 10, 2W + 10]
    grid = grid.movedim(1, -1).contiguous()                    # [N, 2H + 10, 2W + 10, 2]

    def apply(x):
        canvas = Warp.apply(upsample(x), grid)                 # [N, C, 2H + 10, 2W + 10]
        return down @ (canvas @ right.mT)
    return apply


def color_step(P, C, like):
    """A function of images [N, C, H, W] that multiplies colours with their matrices."""
    M = to_device(colors(P, C), like)                          # [N, C, C + 1]
    matrix, offset = M[..., :C], M[..., C:]

    def apply(x):
        return torch.baddbmm(offset, matrix, x.flatten(2)).view(x.shape)
    return apply


def filter_step(P, H, W, like):
    """A function of images [N, C, H, W] that changes the gains of their octave bands."""
    gains = band_gains(P['bands'])                             # [N, 4]

    def build(i, k):
        weights = to_device(gains[i], like)                    # [n, 4]
        rows = torch.tensordot(weights, band_matrices(H, like), 1)         # [n, H, H]
        columns = torch.tensordot(weights, band_matrices(W, like), 1)      # [n, W, W]
        return sandwich(rows, columns)

    changed = (gains != 1).any(1)                              # [N]
    return by_kind(changed, build, 3 * H * W, like)


def noise_step(P, x, generator, like):
    """A function of images [N, C, H, W] that adds noise, which is drawn here."""
    if x.device.type != 'cpu':
        generator = None                                       # the given one is of the CPU
    z = torch.randn(x.shape, device=x.device, generator=generator)
    std = to_device(P['noise'], like)[..., None, None]         # [N, 1, 1, 1]
    noise = std * z                                            # [N, C, H, W]

    def apply(x):
        return x + noise
    return apply


def cutout_step(P, H, W, like):
    """A function of images [N, C, H, W] that zeroes a square."""
    def inside(size, centre):
        place = (np.arange(size) + .5) / size                  # of pixel centres, in sizes of the image
        return to_device(abs(place - centre) < .25, like)      # [N, size]

    x, y = np.split(P['centre'], 2, 1)                         # [N, 1] each
    rows = inside(H, y)[:, None, :, None]
    columns = inside(W, x)[:, None, None]
    keep = ~(rows & columns)                                   # [N, 1, H, W]

    def apply(x):
        return x * keep
    return apply


def ada(P, x, generator=None):
    """T of ADA with parameters P = {transform: [N, numbers]}: a function of images [N, C, H, W] like x.

    generator: of the noise, where x is on the CPU."""
    shape = x.shape
    C, H, W = shape[1:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    like = torch.empty(0, dtype=dtype, device=x.device)        # says the dtype and the device of all tensors

    acting = set()                                             # groups with an open gate
    for name, transform in TRANSFORMS.items():
        group, closed = transform[0], transform[-1]
        if (P[name] != closed).any():
            acting.add(group)

    steps = []
    with torch.autocast(x.device.type, enabled=False):
        if 'blit' in acting or 'geom' in acting:
            G = geometry(P, H, W)
            steps.append(resample(G, C, H, W, like))
        if 'color' in acting:
            steps.append(color_step(P, C, like))
        if 'filter' in acting:
            steps.append(filter_step(P, H, W, like))
        if 'noise' in acting:
            steps.append(noise_step(P, x, generator, like))
        if 'cutout' in acting:
            steps.append(cutout_step(P, H, W, like))

    def T(x):
        check_batch(x, shape)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype)
            for step in steps:
                x = step(x)
        return x
    return T


# ---- ADA's probability

def pseudo(real, fake, p, y=None, y_fake=None):
    """APA: each image of real [N, C, H, W] gives way with probability p to the one of fake in its place.

    Returns the images and their classes [N], those of y or of y_fake; None without classes.  No gradient flows
    into fake."""
    gone = torch.rand(len(real), device=real.device) < p               # [N]
    x = torch.where(gone[:, None, None, None], fake.detach().to(real.dtype), real)
    if y is not None:
        y = torch.where(gone, y_fake, y)
    return x, y


class Controller:
    """p of ADA and APA, which follows how much D overfits.  `p` is a float in [0, pmax], the same on all ranks.

    Every `interval` steps of G, p moves by interval * images / (1000 kimg), up where r is above its target,
    down where it is below.  All images are augmented.

        r_t = E sign D(x)                                      x: training images
        r_v = (E D(x) - E D(held)) / (E D(x) - E D(G(z)))      held: held-out images

    images: number of real images that D sees per step of G.
    heuristic: 'rt' or 'rv', which r is used.  target: its target.  p: a fixed probability."""

    def __init__(self, images, heuristic='rt', target=.6, kimg=500, interval=4, pmax=.8,
                 p=None, device='cpu'):
        self.heuristic, self.target = heuristic, target
        self.interval, self.pmax = interval, pmax
        self.rate = interval * images / (1000 * kimg)          # of p, per adjustment
        self.fixed = p is not None
        self.p = p or 0.
        self.r = 0.
        self.rows = {'sign': 0, 'real': 1, 'fake': 2, 'held': 3}
        self.sums = torch.zeros(4, 2, dtype=torch.float64, device=device)      # [4, (sum, count)]
        self.fresh = torch.zeros_like(self.sums)               # of this step, on this rank

    @torch.no_grad()
    def add(self, **logits):
        """Take note of D's logits on augmented images: real, fake or held, [N], [N, 1] or of any shape."""
        if 'real' in logits:
            logits['sign'] = logits['real'].sign()
        for name, x in logits.items():
            row = self.rows[name]
            x = x.flatten()
            count = torch.full_like(x[0], len(x))
            self.fresh[row] += torch.stack((x.sum(), count))

    def adjust(self, step, average=identity):
        """At the end of each step: p moves if the step is a multiple of the interval.

        average(x): the mean of x over ranks."""
        self.sums += average(self.fresh)
        self.fresh.zero_()
        if step % self.interval:
            return

        total, count = self.sums.unbind(1)                     # [4] each
        means = total / count.clamp(min=1)
        sign, real, fake, held = means.tolist()                # waits for the device
        self.sums.zero_()
        if self.heuristic == 'rt':
            self.r = sign
        else:
            self.r = (real - held) / max(real - fake, 1e-8)

        # p of ADA changes here
        if not self.fixed:
            way = (self.r > self.target) - (self.r < self.target)          # 1, 0 or -1
            p = self.p + self.rate * way
            self.p = min(max(p, 0.), self.pmax)

    def state(self):
        return {'p': self.p, 'r': self.r, 'sums': self.sums}

    def load(self, state):
        self.p = state['p']
        self.r = state['r']
        self.sums.copy_(state['sums'])
