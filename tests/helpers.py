"""What several test files use: tiny trainings, refusals, comparisons, processes, networks written out slowly.

Use:
    from helpers import equal, find, refused, train
    train('sngan', tmp_path / 'run', '--steps', 2)                         # in this process, about a second
    find('sngan', tmp_path / 'find', '--steps', 1, '--rounds', 1)          # the ticket: tmp_path / 'find.pt'
    refused(capsys, lambda: train('sngan', tmp_path, '--steps', 0), '--steps 0')

Test files import this file, and never each other.
"""
import importlib
import os
import pickle
import socket
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import files
import find_ticket
import metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ---- tiny trainings

COMMON = ['--batch', '8', '--metrics', 'none', '--log-every', '2', '--device', 'cpu', '--precision', 'fp32']
TINY = {
    'sngan': ['--data', 'emoji-faces', '--frac', '20', '--res', '16', '--ch-g', '8', '--ch-d', '8',
              '--g-batch', '8', '--d-steps', '2', '--preset', 'paper', *COMMON],
    'biggan': ['--data', 'emoji', '--frac', '60', '--ch-g', '8', '--ch-d', '8', '--d-steps', '1', *COMMON],
    'stylegan2': ['--data', 'emoji-faces', '--frac', '20', '--res', '16', '--ch-g', '256', '--ch-d', '256',
                  '--ch-max', '16', *COMMON],
}
METHOD = ['--aug', 'diffaug', '--advaug', 'gd']
SCORE = ['--metrics', 'fid', '--features', 'effnet', '--eval-samples', '12', '--eval-repeats', '1',
         '--cache', 'none']


def without(flags, *names):
    """The flags but for these and the value behind each."""
    kept = [*flags]
    for name in names:
        del kept[kept.index(name):kept.index(name) + 2]
    return kept


def script(model):
    """The module train_MODEL.py."""
    return importlib.import_module(f'train_{model}')


def parsed(model, *flags):
    """The flags of a tiny training."""
    return script(model).get_args([*TINY[model], *map(str, flags)])


def train(model, out, *flags):
    """Train tiny networks in this process; returns G, D."""
    return script(model).main(parsed(model, '--out', out, *flags))


def find(model, out, *flags):
    """Find a ticket of tiny networks in this process, in the directory `out`; returns its path, OUT.pt."""
    own = [model, *TINY[model], '--out', out, '--ticket', f'{out}.pt', *flags]
    find_ticket.main(find_ticket.get_args([str(word) for word in own]))
    return f'{out}.pt'


class Killed(BaseException):
    """What a kill at some point of a program looks like from inside: no handler of ours catches it."""


def killed_at(call, function):
    """A function that does as `function` does, and whose call number `call` raises Killed."""
    calls = []

    def wrapper(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)
    return wrapper


# ---- refusals

def refused(capsys, call, *words):
    """A call exits 2 with one sentence on stderr that has these words; argparse puts the usage before it."""
    capsys.readouterr()
    code = None
    try:
        call()
    except SystemExit as e:
        code = e.code
    error = capsys.readouterr().err
    assert code == 2, f'exit code {code}, {error!r}'
    assert error.count('\n') == 1 or error.startswith('usage: '), error
    for word in words:
        assert word in error, f'{word!r} is not in {error!r}'


def all_refused(capsys, get_args, table):
    """Each command line of a table [(flags, words of the sentence)] is refused; names all that are not."""
    failures = []
    for flags, words in table:
        flags = [str(flag) for flag in flags]
        words = [words] if isinstance(words, str) else words
        try:
            refused(capsys, lambda flags=flags: get_args(flags), *words)
        except AssertionError as e:
            failures.append(f"{' '.join(flags)}: {e}")
    assert not failures, '\n'.join(failures)


# ---- comparisons

def equal(a, b):
    """Whether nested dicts and lists of tensors and values are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def records(path):
    """The records of a .jsonl file without what depends on the clock and the machine."""
    clock = 'start', 'time', 'images_per_s', 'peak_mb'
    found = files.read_jsonl(path)
    for record in found:
        for key in clock:
            record.pop(key, None)
    return found


def same_checkpoints(a, b):
    """The last checkpoints of two runs are equal, bit for bit."""
    x, y = (files.load(f'{out}/last.pt') for out in (a, b))
    for key in ('step', 'done', 'G', 'D', 'E', 'masks', 'opt', 'state'):
        assert equal(x[key], y[key]), key


def same_runs(a, b):
    """Two runs are equal, bit for bit, and so are their logs and scores."""
    same_checkpoints(a, b)
    for name in ('log.jsonl', 'metrics.jsonl'):
        assert records(f'{a}/{name}') == records(f'{b}/{name}'), name


def same_tickets(a, b):
    """Two tickets are equal, bit for bit."""
    x, y = files.load(a), files.load(b)
    for key in ('mask', 'init', 'data', 'round', 'sparsity'):
        assert equal(x[key], y[key]), key


def pruned_weights_are_zero(saved, masks):
    """Under the masks {G, D} of a ticket, the weights of a checkpoint are 0 where pruned, and only there."""
    for name in 'GDE':
        for key, keep in masks.get(name, masks['G']).items():
            assert not saved[name][key][~keep].any(), (name, key)
            assert saved[name][key][keep].any(), (name, key)


# ---- operations

class Flop(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products.

    torch's FlopCounterMode does not allow autograd.grad by a leaf, which PGD asks for."""

    count = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        formula = flop_registry.get(f.overloadpacket)
        if formula:
            self.count += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flop(call):
    """The floating-point operations of a call."""
    with Flop() as counter:
        call()
    return counter.count


# ---- files

def write_cifar(name, root, monkeypatch):
    """CIFAR as its archive unpacks, 3 images a file; returns torchvision's class, which then checks no sums."""
    import torchvision
    kind = {'cifar10': torchvision.datasets.CIFAR10, 'cifar100': torchvision.datasets.CIFAR100}[name]
    os.makedirs(root / kind.base_folder)
    key = 'labels' if name == 'cifar10' else 'fine_labels'
    for file, _ in kind.train_list + kind.test_list:
        x = np.arange(3 * 3072).reshape(3, 3072).astype(np.uint8)
        with open(root / kind.base_folder / file, 'wb') as f:
            pickle.dump({'data': x, key: [0, 1, 2]}, f)
    with open(root / kind.base_folder / kind.meta['filename'], 'wb') as f:
        pickle.dump({kind.meta['key']: ['a', 'b', 'c']}, f)
    monkeypatch.setattr(kind, '_check_integrity', lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *args: True)
    return kind


# ---- processes

def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def process(*words, **env):
    """python WORDS as a process of its own, with one thread and both outputs in one pipe."""
    path = [ROOT, f'{ROOT}/tests', os.environ.get('PYTHONPATH', '')]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(path), **env}
    return subprocess.Popen([sys.executable, *map(str, words)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def ranks(count, *words):
    """The processes of `count` ranks, as torchrun would start them."""
    shared = {'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    return [process(*words, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


def wait_for(path, process, seconds=60):
    """Wait until a process has written a file."""
    end = time.time() + seconds
    while not os.path.exists(path):
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(.002)


# ---- networks written out slowly

def double(x):
    """Images [N, C, H, W] at twice the size, by nearest neighbours."""
    return F.interpolate(x, scale_factor=2., mode='nearest')


def slow_sngan_G(G, z):
    """The released generator, step by step: upsample, then convolve."""
    h = G.l1(z).view(len(z), G.ch, G.bottom, G.bottom)
    for b in (G.block2, G.block3, G.block4):
        h = b.c2(F.relu(b.n2(b.c1(double(F.relu(b.n1(h))))))) + b.sc(double(h))
    return torch.tanh(G.c5(F.relu(G.n5(h))))


def slow_sngan_D(D, x):
    """The released discriminator: block 1 pools its shortcut before the 1x1, block 2 after it; sums."""
    b = D.block1
    h = F.avg_pool2d(b.c2(F.relu(b.c1(x))), 2) + b.sc(F.avg_pool2d(x, 2))
    b = D.block2
    h = F.avg_pool2d(b.c2(F.relu(b.c1(F.relu(h)))), 2) + F.avg_pool2d(b.sc(h), 2)
    for b in (D.block3, D.block4):
        h = b.c2(F.relu(b.c1(F.relu(h)))) + h
    return F.relu(h).sum((2, 3)) @ D.l5.weight[0]


def slow_attention(a, x):
    """Self-attention as the sum over positions that it is."""
    n, c, height, width = x.shape
    theta = a.theta(x).reshape(n, c // 8, -1)
    phi = F.max_pool2d(a.phi(x), 2).flatten(2)
    g = F.max_pool2d(a.g(x), 2).flatten(2)
    share = torch.einsum('ncq,nck->nqk', theta, phi).softmax(2)            # queries q, keys k: no 1 / sqrt(c)
    mixed = torch.einsum('nqk,nck->ncq', share, g)
    return x + a.gamma * a.o(mixed.reshape(n, c // 2, height, width))


def slow_norm(m, x, c):
    """Conditional BN from batch moments: eps 1e-4, gain 1 + W_g c, bias W_b c."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    gain = (c @ m.gain.weight.t())[:, :, None, None]
    bias = (c @ m.bias.weight.t())[:, :, None, None]
    return (x - mean) / (var + 1e-4).sqrt() * (1 + gain) + bias


def slow_biggan_G(G, z, y):
    """The released generator, step by step: upsample, then convolve; attention at half the resolution."""
    h = G.l1(z[:, :20]).view(len(z), -1, 4, 4)
    for i, b in enumerate(G.blocks):
        if h.shape[2] == G.res // 2:
            h = slow_attention(G.attention, h)
        c = torch.cat((G.shared.weight[y], z[:, 20 * (i + 1):20 * (i + 2)]), 1)
        r = b.c1(double(F.relu(slow_norm(b.n1, h, c))))
        h = b.c2(F.relu(slow_norm(b.n2, r, c))) + b.sc(double(h))
    return torch.tanh(G.rgb(F.relu(G.norm(h))))


def slow_biggan_D(D, x, y):
    """The released discriminator: block 1 pools its shortcut before the 1x1, the others after it; sums."""
    b = D.blocks[0]
    h = F.avg_pool2d(b.c2(F.relu(b.c1(x))), 2) + b.sc(F.avg_pool2d(x, 2))
    h = slow_attention(D.attention, h)
    for b in D.blocks[1:]:
        shortcut = F.relu(h) if b.relu_shortcut else h
        h = b.c2(F.relu(b.c1(F.relu(h)))) + b.sc(shortcut)
        if b.down:
            h = F.avg_pool2d(h, 2)
    h = F.relu(h).sum((2, 3))
    return (h @ D.linear.weight.t())[:, 0] + D.linear.bias + (D.embed.weight[y] * h).sum(1)


SLOW = {'sngan': (slow_sngan_G, slow_sngan_D), 'biggan': (slow_biggan_G, slow_biggan_D)}       # model -> G, D


def drawn_state():
    """Weights of the FID Inception drawn by numpy, by sorted keys, for us and for the other tools."""
    r, made = np.random.RandomState(0), {}
    shapes = {key: tuple(value.shape) for key, value in metrics.inception_graph().state_dict().items()}
    for key in sorted(key for key in shapes if not key.endswith('num_batches_tracked')):
        shape = shapes[key]
        if len(shape) > 1:
            x = r.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5     # activations neither die nor grow
        elif key.endswith(('running_var', 'bn.weight')):
            x = r.uniform(0.8, 1.2, shape)
        else:
            x = r.normal(size=shape) * 0.1
        made[key] = torch.from_numpy(x.astype(np.float32))
    return made

EPS = b'''%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
(touched) (w) file closefile showpage
%%EOF
'''


# Files that must neither run, nor block, nor fill the memory, and what is said of each: hostile_file makes them.
HOSTILE = {'eps.png': 'cannot identify', 'eps.jpg': 'cannot identify', 'pipe.png': 'not a regular file',
           'endless.png': 'not a regular file', 'sparse.png': '3,072 MB are too many',
           'bomb.png': '13000 x 13000 pixels are too many'}


def hostile_file(folder, name):
    """Make one of HOSTILE in a folder."""
    path = f'{folder}/{name}'
    if name.startswith('eps'):
        with open(path, 'wb') as f:
            f.write(EPS)
    elif name == 'pipe.png':
        os.mkfifo(path)
    elif name == 'endless.png':
        os.symlink('/dev/zero', path)
    elif name == 'sparse.png':
        with open(path, 'wb') as f:
            f.truncate(3 * 2 ** 30)
    else:
        Image.new('1', (13000, 13000)).save(path)


def photos(folder, n=10):
    """A folder of n good images of 64 px."""
    os.makedirs(folder)
    for i in range(n):
        x = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(x).save(f'{folder}/{i}.jpg')
    return folder


def fake_ghostscript(folder, monkeypatch):
    """A program `gs` that leaves a mark, first on PATH; returns the path of the mark."""
    os.makedirs(folder)
    mark = f'{folder}/was-here'
    with open(f'{folder}/gs', 'w') as f:
        f.write(f'#!/bin/sh\ntouch {mark}\n')
    os.chmod(f'{folder}/gs', 0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    return mark
