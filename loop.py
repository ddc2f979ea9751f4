"""The mechanics of training: flat networks, the iteration counter with exact resume, checkpoints and the log.

Use:
    import argparse, torch, loop
    args = loop.add_flags(argparse.ArgumentParser()).parse_args(['--steps', '3', '--out', 'run', '--restart'])
    device = loop.launch(args)
    G = loop.Flat(torch.nn.Linear(2, 1), lr=.1)                  # one vector of weights, one of gradients, fused Adam
    run, sums = loop.Run('toy', args), loop.Sums(device, 'loss')
    run.restore(dict(G=G), sums)                                 # the same command resumes
    for step in run.iterations(dict(G=G), sums):                 # seeds, saves; stops on SIGTERM
        G.update(lambda part: sums.add(loss=(G.net(torch.randn(8, 2)) ** 2).mean()))
        run.log(dict(G=G), sums)                                 # every --log-every steps
    run.save(dict(G=G), sums, done=True)

All-reduce over ranks, ticket mask, NaN guard, Adam and EMA are one call each on the flat vectors.  The randomness of
step t is a function of (seed, stream, t) alone, so nothing but step, weights and moments needs saving:
    theta_t = Adam(theta_{t-1}, mask * mean over ranks of the gradient),    ema_t = beta ema_{t-1} + (1 - beta) theta_t
"""
import argparse
import contextlib
import copy
import functools
import hashlib
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.utils import parametrize

START = time.time()                          # --max-hours counts from here
STOP = []                                    # signals received; read once per step, so that all ranks stop at one
FREE = {'out', 'restart', 'steps', 'max_hours', 'save_every', 'sample_every', 'eval_every', 'log_every', 'metrics',
        'batch_gpu', 'eval_batch', 'device', 'check_data', 'strict', 'root', 'weights', 'cache',     # may differ;
        'data', 'mask', 'init_from', 'small_dense', 'protocol'}                  # of these the content is compared


def add_flags(parser):
    """The flags of every training script that this file reads; returns the parser."""
    a = parser.add_argument
    a('--out', help='run directory (default: runs/MODEL-DATA-FRAC-HASH of the flags that change the result)')
    a('--restart', action='store_true', help='empty the run directory instead of resuming')
    a('--mask', metavar='TICKET', help='ticket.pt of find_ticket.py: start from its initial weights under its masks')
    a('--init-from', metavar='CKPT', help='take the weights (nothing else) from this checkpoint')
    a('--steps', type=int, default=50000, help='generator updates')
    a('--batch', type=int, default=64, help='real images per D update, all ranks together')
    a('--batch-gpu', type=int, help='micro-batch of one rank; gradients are accumulated (default: batch / ranks)')
    a('--d-steps', type=int, default=5, help='D updates per G update')
    a('--lr-g', type=float, default=2e-4, help='learning rate of G')
    a('--lr-d', type=float, default=2e-4, help='learning rate of D')
    a('--betas', type=float, nargs=2, default=[0., .9], metavar='B', help="Adam's decays of the two moments")
    a('--adam-eps', type=float, default=1e-8, help="Adam's epsilon")
    a('--ema', type=float, default=.999, help='decay of the averaged generator, per G update')
    a('--ema-start', type=int, default=0, help='steps up to which the average is G itself')
    a('--sync-bn', action='store_true', help="G's batch statistics over all ranks, not per rank (micro-batches: each)")
    a('--save-every', type=int, help='steps between checkpoints (default: after a minute, then every ten minutes)')
    a('--sample-every', type=int, help='steps between grids (default: after a minute, then at doubling intervals)')
    a('--eval-every', type=int, help='steps between scores (default: at the end)')
    a('--eval-samples', type=int, default=10000, help='generated images per score')
    a('--eval-repeats', type=int, default=3, help="sets of z per score (the paper's +- is over three)")
    a('--log-every', type=int, default=50, help='steps between lines of log.jsonl')
    a('--max-hours', type=float, help='save and exit with code 75 after this time')
    a('--seed', type=int, default=0, help='initial weights, z, batches and augmentation')
    a('--device', choices=['auto', 'cuda', 'cpu'], default='auto', help='where to train')
    a('--precision', choices=['auto', 'fp32', 'bf16'], default='auto', help='auto: bf16 where the hardware has it')
    a('--graph', action=argparse.BooleanOptionalAction, default=False, help='CUDA graphs around zero, loss, backward')
    a('--deterministic', action='store_true', help='deterministic kernels on CUDA, for exact resume there')
    return parser


def refuse(sentence):
    """Exit code 2 with one sentence that names the flag, the value and the fix."""
    if world()[0] == 0:
        print(f'error: {sentence}', file=sys.stderr, flush=True)
    raise SystemExit(2)


def flag(args, name):
    """'--batch-gpu 3': a flag and its value, as the user typed them."""
    return f"--{name.replace('_', '-')} {getattr(args, name)}"


def check(args):
    """Refuse what can be refused before data or models are touched."""
    rank, ranks = world()
    for name in ('steps', 'batch', 'd_steps', 'log_every', 'eval_repeats', 'save_every', 'sample_every', 'eval_every',
                 'batch_gpu', 'g_batch', 'ch_g', 'ch_d'):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            refuse(f'{flag(args, name)} is not positive: use 1 or more')
    for name in ('lr_g', 'lr_d', 'max_hours'):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < float('inf'):
            refuse(f'{flag(args, name)} is not a positive number')
    for name in ('batch', 'g_batch') if 'g_batch' in args else ('batch',):
        share = getattr(args, name) // ranks
        if getattr(args, name) % ranks:
            refuse(f'{flag(args, name)} does not divide over {ranks} ranks: use a multiple of {ranks}')
        if args.batch_gpu and share % args.batch_gpu:
            refuse(f'{flag(args, "batch_gpu")} does not divide the {share} images of a rank ({flag(args, name)}): '
                   'use a divisor of it')
    for name, decay in (('ema', args.ema or 0), *(('betas', b) for b in args.betas)):
        if not 0 <= decay < 1:
            refuse(f'--{name} {decay} is not a decay: use 0 <= {name} < 1')
    if args.ema_start < 0 or args.adam_eps < 0:
        refuse(f'{flag(args, "ema_start")} {flag(args, "adam_eps")}: use values from 0 on')
    if args.graph and (getattr(args, 'aug', None) == 'ada' or getattr(args, 'lecam', None)):
        refuse('--graph: a CUDA graph would repeat one draw of --aug ada and one anchor of --lecam, leave it out')
    if args.graph and args.sync_bn:
        refuse('--graph --sync-bn: batch statistics of all ranks are not recorded in a CUDA graph, leave one out')
    if args.device == 'cuda' and not torch.cuda.is_available():
        refuse('--device cuda: torch sees no CUDA device here; use --device cpu')
    if args.graph and (args.device == 'cpu' or not torch.cuda.is_available()):
        refuse('--graph records CUDA graphs and there is no CUDA device in use: use --no-graph')
    if args.eval_samples < 10:
        refuse(f'{flag(args, "eval_samples")} is too few for a score: use 10 or more')
    if args.out and os.path.isfile(args.out):
        refuse(f'--out {args.out} is a file: name a directory')


def world():
    """rank, number of ranks, as torchrun says."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def has_bf16(device):
    """True where bf16 has units of its own (tensor cores, AMX, AVX512-bf16): from hardware flags, never by timing."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not os.path.exists('/proc/cpuinfo'):
        return False
    with open('/proc/cpuinfo') as f:
        flags = f.read()
    return 'amx_bf16' in flags or 'avx512_bf16' in flags


def launch(args):
    """Process group, signals, precision and determinism; sets args.precision; returns the device."""
    rank, ranks = world()
    cuda = args.device == 'cuda' or (args.device == 'auto' and torch.cuda.is_available())
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0))) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    if ranks > 1 and not dist.is_initialized():
        dist.init_process_group('cpu:gloo,cuda:nccl' if cuda else 'gloo')
    if args.precision == 'auto':
        args.precision = 'bf16' if has_bf16(device) else 'fp32'
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = 'tf32', 'ieee'
    torch.backends.cudnn.benchmark = not args.deterministic
    torch.use_deterministic_algorithms(args.deterministic)
    if args.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return device


@contextlib.contextmanager
def listening():
    """SIGINT and SIGTERM are noted in STOP, to be obeyed between two steps; a second one ends the process at once."""
    old = {}

    def note(number, frame):
        STOP.append(number)
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        old[number] = signal.signal(number, note)
    try:
        yield
    finally:
        STOP.clear()
        for number, handler in old.items():
            signal.signal(number, handler)


def autocast(args, device):
    """The context of --precision; its cast cache is off, because a CUDA graph must not remember casts."""
    return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == 'bf16', cache_enabled=False)


def barrier():
    """Wait for the other ranks."""
    if world()[1] > 1:
        dist.barrier()


@contextlib.contextmanager
def seeded(seed):
    """torch's randomness begins at this seed inside, and goes on as before after it."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        yield


def most(numbers):
    """The largest over ranks of each of some integers."""
    x = torch.tensor(numbers)
    if world()[1] > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x.tolist()


def mean(x):
    """The mean of a tensor over ranks."""
    if world()[1] > 1:
        dist.all_reduce(x)
        x /= world()[1]
    return x


def same(value):
    """Whether a value is equal on all ranks."""
    values = [value] * world()[1]
    if world()[1] > 1:
        dist.all_gather_object(values, value)
    return len(set(values)) == 1


def rng(seed, stream, *step):
    """The numpy generator of one stream at one step: the same numbers on every rank, device and after every resume."""
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], 'little')
    return np.random.default_rng(np.random.SeedSequence([seed, key, len(step), *step]))


def order(n, start, count, seed):
    """Indices [count] into n images at positions start, start + 1, ... of an endless row of per-epoch permutations."""
    return np.array([epoch(n, p // n, seed)[p % n] for p in range(start, start + count)])


@functools.lru_cache(maxsize=4)
def epoch(n, number, seed):
    """The permutation of one epoch."""
    return rng(seed, 'epoch', number).permutation(n)


def mine(x):
    """This rank's slice of something drawn for the whole batch."""
    rank, ranks = world()
    share = len(x) // ranks
    return x[rank * share:(rank + 1) * share]


def latents(seeds, dim, device):
    """z ~ N(0, 1) [n, dim], one row per seed: the same on every machine; samples and generate.py show these."""
    return torch.from_numpy(np.stack([rng(s, 'z').standard_normal(dim, 'float32') for s in seeds])).to(device)


def shown(classes):
    """The up to ten classes that a grid shows, from first to last."""
    return np.linspace(0, classes - 1, min(classes, 10)).round().astype(int)                       # [rows]


def panel(classes=0):
    """Seeds of z and classes of a grid: 0-63 and None, or row by row seeds 0-7 of each class that is shown."""
    if not classes:
        return range(64), None
    rows = shown(classes)
    return [*range(8)] * len(rows), torch.from_numpy(np.repeat(rows, 8))


def gaussian(rng, n, dim):
    """This rank's rows of z ~ N(0, 1) [n, dim], drawn for the whole batch."""
    return torch.from_numpy(mine(rng.standard_normal((n, dim), 'float32')))


def parts(n, micro):
    """Slices of n images in micro-batches."""
    micro = micro or n
    return [slice(i, i + micro) for i in range(0, n, micro)]


class Flat:
    """A network whose parameters are views of one vector w, and their gradients views of another, g.

    net: on its device and in its memory format already (a later .to() or deepcopy would drop the views).
    mask: {parameter name: bool tensor}; masked weights are zeroed here and stay exactly 0 (zero gradient and moments).
    The gradient vector's tail holds the BN statistics, which ride in the same all-reduce.  Parameters require a
    gradient only inside this network's own update, so a D step builds no graph through G and needs no detach."""

    def __init__(self, net, lr=None, betas=(0., .9), eps=1e-8, mask=None, graph=False, share_sn=True):
        self.net, self.mask, self.masked, self.graph, self.share_sn = net, None, mask or {}, graph, share_sn
        self.graphs, self.calls, self.now = {}, {}, 0
        self.layout = {}                                                           # name -> (shape, stride, offset)
        size = 0
        for name, p in net.named_parameters():
            self.layout[name] = (p.shape, p.stride(), size)
            size += -(-p.numel() // 64) * 64                                       # every tensor at a 256-byte boundary
        norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        stats = [(m, name) for m in norms for name in ('running_mean', 'running_var') if getattr(m, name) is not None]
        like = {'device': next(net.parameters()).device, 'dtype': next(net.parameters()).dtype}
        self.w = torch.nn.Parameter(torch.zeros(size, **like), requires_grad=False)
        bucket = torch.zeros(size + 1 + sum(getattr(m, name).numel() for m, name in stats), **like)
        self.bucket, self.g, self.loss, self.tail = bucket, bucket[:size], bucket[size], bucket[size + 1:]
        self.bad_at = torch.zeros((), dtype=torch.int64, device=like['device'])     # the first non-finite step
        for name, p in net.named_parameters():
            view = self.view(self.w.data, name)
            view.copy_(p.data)
            p.data, p.grad = view, self.view(self.g, name)
            p.requires_grad_(False)
        at = 0
        for m, name in stats:
            old = getattr(m, name)
            m._buffers[name] = self.tail[at:at + old.numel()].copy_(old).data      # .data: its own version counter
            at += old.numel()
        ours = {id(m._buffers[name]) for m, name in stats}
        self.others = [b for b in net.buffers() if id(b) not in ours]              # spectral u, v: never averaged
        self.freeze(())
        if self.masked:
            self.w.data.mul_(self.mask)
        self.adam = None
        if lr is not None:
            self.w.grad = self.g
            self.adam = torch.optim.Adam([self.w], lr, betas, eps, fused=True)

    def freeze(self, names):
        """From now on these parameters stay as they are, and no others but the pruned weights."""
        self.mask = torch.ones_like(self.g) if self.masked or names else None
        for name, keep in self.masked.items():
            self.view(self.mask, name).copy_(keep)
        for name in names:
            self.view(self.mask, name).zero_()

    def view(self, flat, name):
        """The tensor called name inside a vector laid out like w."""
        return flat.as_strided(*self.layout[name][:2], self.layout[name][2] + flat.storage_offset())

    def update(self, f, parts=(slice(None),)):
        """One Adam step on the mean over the micro-batches of f(part) -> loss.

        An f whose value carries no graph has run its own backward. W / sigma(W) is computed once per update and shared
        by all passes (unless share_sn is False)."""
        with self.training(), parametrize.cached() if self.share_sn else contextlib.nullcontext():
            self.replay(f, parts) if self.graph else self.backward(f, parts)
        if world()[1] > 1:
            dist.all_reduce(self.bucket)
            self.bucket /= world()[1]
        if self.mask is not None:
            self.g *= self.mask
        self.bad_at += ~torch.isfinite(self.g.sum() + self.loss) * (self.bad_at == 0) * self.now
        self.adam.found_inf = (self.bad_at > 0).float()                            # once set, no later step is taken
        self.adam.grad_scale = None
        self.adam.step()

    def backward(self, f, parts):
        self.g *= 0                                 # not zero_(): NaN stays NaN, to name the guilty tensor later
        self.loss.zero_()
        for part in parts:
            loss = f(part)
            if loss.requires_grad:
                loss.backward(retain_graph=len(parts) > 1)                         # the graph of W / sigma(W) is shared
            self.loss += loss.detach()
            del loss                                                               # frees the rest of the graph
        if len(parts) > 1:
            self.g /= len(parts)

    def replay(self, f, parts):
        """backward(f, parts) as a CUDA graph: three real updates on a side stream, then record once and replay."""
        self.calls[f] = self.calls.get(f, 0) + 1
        if self.calls[f] <= 3:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.backward(f, parts)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if f not in self.graphs:
            self.graphs[f] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[f]):
                self.backward(f, parts)
        self.graphs[f].replay()

    @contextlib.contextmanager
    def training(self):
        parameters = list(self.net.parameters())
        for p in parameters:
            p.requires_grad_(True)
        yield
        for p in parameters:
            p.requires_grad_(False)

    def track(self, other, beta):
        """self = beta * self + (1 - beta) * other, for weights and BN statistics; other buffers are copied."""
        self.w.lerp_(other.w, 1 - beta)
        self.tail.lerp_(other.tail, 1 - beta)
        torch._foreach_copy_(self.others, other.others)

    def guilty(self):
        """(step, tensor name) of the first non-finite gradient, or None. Waits for the device."""
        step = int(self.bad_at)
        if step:
            return step, next((n for n in self.layout if not torch.isfinite(self.view(self.g, n)).all()), 'the loss')

    def moments(self):
        """Adam's state by parameter name: {step, m: {name: tensor}, v: {name: tensor}}."""
        s = self.adam.state.get(self.w, {})
        pick = lambda key: {n: self.view(s[key], n) for n in self.layout} if s else {}
        return {'step': int(s['step']) if s else 0, 'm': pick('exp_avg'), 'v': pick('exp_avg_sq')}

    def load_moments(self, saved):
        if not saved['step']:
            return
        state = {'step': torch.tensor(float(saved['step']), device=self.w.device),
                 'exp_avg': torch.zeros_like(self.w.data), 'exp_avg_sq': torch.zeros_like(self.w.data)}
        for key, short in (('exp_avg', 'm'), ('exp_avg_sq', 'v')):
            for name, value in saved[short].items():
                self.view(state[key], name).copy_(value)
        self.adam.state[self.w] = state


class Sums:
    """Running means of named scalars in one device tensor, read once per log line."""

    def __init__(self, device, *names):
        self.at = {name: i for i, name in enumerate(names)}
        self.total = torch.zeros(len(names), 2, device=device)                     # sum, count

    def add(self, **values):
        """Add scalars (or their means); returns the first one, so that a loss can be passed on."""
        for name, value in values.items():
            v = value.detach().float().mean()
            self.total[self.at[name]] += torch.stack((v, torch.ones_like(v)))
        return next(iter(values.values()))

    def means(self):
        """{name: mean over steps and ranks} of what was added since the last call."""
        total = self.total.double()
        if world()[1] > 1:
            dist.all_reduce(total)
        self.total.zero_()
        return {name: s / n for (s, n), name in zip(total.tolist(), self.at) if n}


@torch.no_grad()
def accuracies(D, **images):
    """{D_train, acc_train, ...}: mean logit and share judged rightly (gen: as fake, others: as real), in eval mode.

    Each of the images is a tuple of what D takes: x, or x and classes."""
    D.eval()
    values = {}
    for name, inputs in images.items():
        logits = D(*inputs)
        right = (logits > 0) != (name == 'gen')
        values |= {f'D_{name}': logits.mean().item(), f'acc_{name}': right.float().mean().item()}
    D.train()
    return values


def settle(net, batches):
    """A copy of net in eval mode whose BN statistics are the cumulative average over forward(*batch) of all batches.

    A net without BN is only copied: its other buffers (StyleGAN2's average w) are not to move."""
    net = copy.deepcopy(net)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return net.eval()
    net.train()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None                                                          # cumulative, not exponential
    with torch.no_grad():
        for batch in batches:
            net(*batch)
    return net.eval()


def settling(dim, device, batches=64, classes=0):
    """What settle passes to a generator: (z [64, dim],) of seeds that no sample has, or (z, y), classes balanced."""
    for i in range(0, 64 * batches, 64):
        z, k = latents(range(10 ** 9 + i, 10 ** 9 + i + 64), dim, device), torch.arange(i, i + 64, device=device)
        if classes:                                            # more of them than z: at even distances
            yield z, k * classes // (64 * batches) if classes > 64 * batches else k % classes
        else:
            yield z,


class SyncNorm(torch.nn.BatchNorm2d):
    """Batch normalisation [N, C, H, W] whose statistics in training are those of all ranks together, on any backend."""

    def forward(self, x):
        if not self.training or world()[1] == 1:
            return super().forward(x)
        mean = average(x.mean((0, 2, 3), dtype=self.running_mean.dtype))            # [C], fp32 under autocast
        centred = x - mean[:, None, None]
        var = average(centred.square().mean((0, 2, 3)))                            # [C]
        with torch.no_grad():
            n = x.numel() / x.shape[1] * world()[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        scale = (var + self.eps).rsqrt()[:, None, None]
        if self.affine:
            return (centred * (scale * self.weight[:, None, None]) + self.bias[:, None, None]).to(x.dtype)
        return (centred * scale).to(x.dtype)


class Average(torch.autograd.Function):
    """The mean over ranks; backwards too, since what each rank made of it enters the mean of the losses."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x / world()[1]

    @staticmethod
    def backward(ctx, g):
        return Average.forward(ctx, g)


average = Average.apply


def sync_bn_(net):
    """Make the batch norms of a network SyncNorms, in place."""
    for m in net.modules():
        if type(m) is torch.nn.BatchNorm2d:
            m.__class__ = SyncNorm


def to_cpu(x):
    """A copy of nested dicts of tensors with storages of their own, so that a file holds nothing else."""
    if isinstance(x, dict):
        return {k: to_cpu(v) for k, v in x.items()}
    return x.detach().cpu().clone(memory_format=torch.contiguous_format) if torch.is_tensor(x) else x


def write(path, save):
    """Write a file beside its place and rename it: save(tmp) either completes or leaves the old file."""
    try:
        save(f'{path}.tmp')
        os.replace(f'{path}.tmp', path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(f'{path}.tmp')


def write_json(path, value):
    def save(tmp):
        with open(tmp, 'w') as f:
            json.dump(value, f, indent=1)
    write(path, save)


def lines(path):
    """The records of a .jsonl file without a torn last one, [] if there is no file."""
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f if line.endswith('\n')]


def digest(x):
    """Hash of nested dicts of tensors, numbers and strings."""
    h = hashlib.sha256()

    def feed(x):
        if isinstance(x, dict):
            for k in sorted(x):
                h.update(str(k).encode()), feed(x[k])
        elif torch.is_tensor(x):
            h.update(x.detach().cpu().contiguous().numpy().tobytes())
        else:
            h.update(repr(x).encode())
    feed(x)
    return h.hexdigest()[:16]


def load(path):
    """A checkpoint or ticket: tensors and plain values only, nothing in it is executed."""
    return torch.load(path, map_location='cpu', weights_only=True)


def read(path, word, *keys):
    """load(path), refused in a sentence that opens with `word` unless it is a file of ours that holds these keys."""
    if not os.path.isfile(path):
        refuse(f'{word}: no such file')
    if not zipfile.is_zipfile(path):
        refuse(f'{word} is not a file of torch.save, or not a whole one')
    try:
        saved = load(path)
    except (pickle.UnpicklingError, RuntimeError) as e:
        refuse(f'{word} holds more than tensors and plain values: {str(e).splitlines()[0]}')
    missing = [k for k in keys if not isinstance(saved, dict) or k not in saved]
    if missing:
        kinds = {'init': 'a ticket', 'D': 'a last.pt', 'E': 'a best.pt'}
        kind = next((kinds[k] for k in kinds if k in saved), 'something else')
        wanted = next((kinds[k] for k in kinds if k in keys), 'another')
        refuse(f'{word} is {kind} (it has no {missing[0]!r}): give {wanted}')
    return saved


def command():
    """What resumes this run, as a line for the shell."""
    launcher = f'torchrun --nproc_per_node {world()[1]}' if world()[1] > 1 else 'python'
    return f"{launcher} {shlex.join(a for a in sys.argv if a != '--restart')}"


def versions(device):
    """What args.json records beside the flags."""
    revision = None
    if shutil.which('git'):
        here = os.path.dirname(os.path.abspath(__file__))
        revision = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=here, capture_output=True, text=True).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'
    return {'python': sys.version.split()[0], 'torch': torch.__version__, 'numpy': np.__version__, 'device': name,
            'threads': torch.get_num_threads(), 'ranks': world()[1], 'git': revision or None}


def compare(out, identity):
    """Refuse a directory whose args.json has another identity, naming each flag with its old and new value."""
    if not os.path.exists(f'{out}/args.json'):
        return
    with open(f'{out}/args.json') as f:
        old = json.load(f)['identity']
    new = json.loads(json.dumps(identity))
    changed = [f"--{k.replace('_', '-')} was {old.get(k)!r}, is {new.get(k)!r}"
               for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if changed:
        refuse(f"--out {out} holds a run with other settings ({'; '.join(changed)}): give --restart or another --out")


class Run:
    """A run directory: args.json, log.jsonl, metrics.jsonl, samples/, last.pt, best.pt; and the iteration counter.

    model: name of the script's model. facts: hashes that must be the same when the run is resumed (data, mask, ...).
    A run that has a checkpoint and other flags or facts is refused (exit 2) unless only FREE flags changed."""

    def __init__(self, model, args, **facts):
        self.model, self.args = model, args
        self.device = torch.device('cuda' if args.device != 'cpu' and torch.cuda.is_available() else 'cpu')
        identity = {**{k: v for k, v in vars(args).items() if k not in FREE}, **facts, 'model': model}
        tag = os.path.basename(str(getattr(args, 'data', 'data')).rstrip('/'))
        self.out = args.out or f"runs/{model}-{tag}-{getattr(args, 'frac', 1)}-{digest(identity)[:8]}"
        self.rank, self.ranks = world()
        self.step, self.done, self.timed, self.live = 0, False, {}, False
        self.start = self.last_save = self.last_log = time.time()
        self.next_sample, self.idle, self.steps_logged, self.signal, self.over = 60., 0., 0, 0, False
        if args.restart and self.rank == 0:
            self.clear()
        barrier()
        if os.path.exists(self.path('last.pt')):
            compare(self.out, identity)
        barrier()
        if self.rank == 0:
            os.makedirs(self.path('samples'), exist_ok=True)
            write_json(self.path('args.json'), {'command': command(), 'identity': identity, 'args': vars(args),
                                                'versions': versions(self.device)})
        self.say(f'{self.out}: {json.dumps(vars(args))}')

    def path(self, name):
        return f'{self.out}/{name}'

    def say(self, line):
        """Print on rank 0, below the moving line of a terminal."""
        if self.rank == 0:
            print('\n' * self.live + line, flush=True)
        self.live = False

    def clear(self):
        """Remove what a run writes, and nothing else that lies in its directory."""
        if not os.path.exists(self.path('args.json')):
            return
        names = ['subset.json', 'log.jsonl', 'metrics.jsonl', 'reals.png', 'last.pt', 'best.pt', 'args.json']
        grids = os.listdir(self.path('samples')) if os.path.isdir(self.path('samples')) else []
        for name in names + [f'samples/{n}' for n in grids if n.removesuffix('.png').isdigit()]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.path(name))

    def restore(self, nets, sums):
        """Networks, moments, sums, step from last.pt; cuts both .jsonl back to it. Returns the saved extra state."""
        saved = load(self.path('last.pt')) if os.path.exists(self.path('last.pt')) else None
        self.step = saved['step'] if saved else 0
        self.cut_back()
        if saved is None:
            return {}
        for name, net in nets.items():
            net.net.load_state_dict(saved[name])
            if net.adam:
                net.load_moments(saved['opt'][name])
        sums.total.copy_(saved['state']['sums'])
        ranks, self.done = saved['state']['ranks'], saved['done'] and self.step >= self.args.steps
        self.say(f'resumed at step {self.step}: weights, EMA, moments, position in the data' +
                 ('' if ranks == self.ranks else f'; not bit for bit: {ranks} ranks before, {self.ranks} now'))
        return saved['state']

    def cut_back(self):
        """Drop the lines of log.jsonl and metrics.jsonl that are torn or newer than the checkpoint."""
        barrier()
        for name in ('log.jsonl', 'metrics.jsonl'):
            if self.rank == 0 and os.path.exists(self.path(name)):
                kept = [r for r in lines(self.path(name)) if r['step'] <= self.step]

                def save(tmp, kept=kept):
                    with open(tmp, 'w') as f:
                        f.writelines(json.dumps(r) + '\n' for r in kept)
                write(self.path(name), save)
        barrier()

    def scored(self):
        """Whether metrics.jsonl has a line for this step."""
        return any(r['step'] == self.step for r in lines(self.path('metrics.jsonl')))

    def append(self, name, record):
        if self.rank == 0:
            with open(self.path(name), 'a') as f:
                f.write(json.dumps(record) + '\n')

    def agree(self):
        """What falls due now, the same on every rank: a signal's number, time over, a timed sample grid or save."""
        t, never_saved = time.time(), self.last_save == self.start
        wish = [max(STOP, default=0), bool(self.args.max_hours) and t - START > 3600 * self.args.max_hours,
                t - self.start > self.next_sample, t - self.last_save > (60 if never_saved else 600),
                t - self.last_log > 60]
        self.signal, self.over, sample, save, log = most([int(w) for w in wish])
        if sample:
            self.next_sample = 2 * (t - self.start)
        self.timed = {'sample': sample, 'save': save, 'log': log}

    def due(self, what):
        """Whether the log line, sample grid, evaluation or checkpoint falls on this step."""
        every = getattr(self.args, f'{what}_every', None)
        if self.step in (0, self.args.steps):
            return self.step > 0
        if every and what != 'log':
            return self.step % every == 0
        return bool(self.timed.get(what)) or what == 'log' and self.step % every == 0

    @contextlib.contextmanager
    def observing(self):
        """Time inside is not training time."""
        start = time.time()
        yield
        self.idle += time.time() - start

    def iterations(self, nets, sums, extra=lambda: {}):
        """Yield the numbers of the G updates still to do, from 1; seeds each, and saves when due.

        nets: {name: Flat}; extra() -> {name: tensor or value} rides in the checkpoint's state (see restore).
        Exits 130 / 143 on SIGINT / SIGTERM and 75 after --max-hours, saved and resumable."""
        self.last_log, self.idle, self.steps_logged = time.time(), 0., self.step
        with listening():
            while self.step < self.args.steps:
                self.agree()
                if self.signal or self.over:
                    self.save(nets, sums, extra)
                    self.leave()
                self.step += 1
                for net in nets.values():
                    net.now = self.step
                torch.manual_seed(int(rng(self.args.seed, 'device', self.step, self.rank).integers(2 ** 62)))
                yield self.step
                if self.due('save'):
                    self.save(nets, sums, extra)

    def leave(self):
        """Say how to go on and exit with the code of the reason; last.pt has been saved."""
        barrier()                                              # torchrun ends the other ranks when one has left
        self.say(f'stopped at step {self.step} and saved; resume with: {command()}')
        raise SystemExit(128 + self.signal if self.signal else 75)

    def interrupt(self):
        """Leave from inside an evaluation, which follows a save; several ranks finish it first, to stay together."""
        if STOP and self.ranks == 1:
            self.signal = max(STOP)
            self.leave()

    def guard(self, nets):
        """Exit 3 at the first non-finite gradient; nothing was updated or saved since."""
        found = [(*guilty, name) for name, net in sorted(nets.items()) if (guilty := net.guilty())]
        if found:
            step, tensor, name = min(found, key=lambda f: f[0])                    # in a tie D, which is updated first
            good = f"{self.path('last.pt')} is the last good checkpoint" if os.path.exists(self.path('last.pt')) \
                else 'there is no checkpoint yet'
            self.say(f'error: step {step}: the gradient of {tensor} in {name} is not finite; {good}')
            raise SystemExit(3)

    def log(self, nets, sums, notes=dict):
        """If due, a line of log.jsonl and of the terminal: means since the last line, notes(), images/s, memory, ETA.

        Exits 3 on a non-finite gradient."""
        if not (self.due('log') or self.step == 1):
            return
        self.guard(nets)
        a, now = self.args, time.time()
        rate = (self.step - self.steps_logged) / max(now - self.last_log - self.idle, 1e-9)           # steps a second
        with self.observing():
            values = {k: float(f'{v:.6g}') for k, v in {**sums.means(), **notes()}.items()}
        speed = {'images_per_s': round(rate * a.batch * a.d_steps, 1), 'peak_mb': peak_memory(self.device)}
        self.append('log.jsonl', {'step': self.step, 'kimg': self.step * a.batch * a.d_steps / 1000, **values, **speed,
                                  'start': round(self.start, 1), 'time': round(now - self.start, 1)})
        self.last_log, self.steps_logged, self.idle = now, self.step, time.time() - now
        left = int((a.steps - self.step) / rate)
        line = f"step {self.step}/{a.steps}  ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        line += f"  {speed['images_per_s']} img/s  {speed['peak_mb']} MB  "
        line += '  '.join(f'{k} {v:.3g}' for k, v in values.items())
        if sys.stdout.isatty() and self.rank == 0:             # one line that moves, cut to the width of the terminal
            print(f'\r\033[K{line[:shutil.get_terminal_size().columns - 1]}', end='', flush=True)
            self.live = True
        else:
            self.say(line)

    def save(self, nets, sums, extra=lambda: {}, done=False):
        """last.pt: everything the next step depends on, and `done`, set by the script when nothing is left to do."""
        self.guard(nets)
        total = sums.total.clone()
        if self.ranks > 1:
            dist.all_reduce(total)
        self.last_save = time.time()
        if self.rank:
            return
        with self.observing():
            state = {**to_cpu(extra()), 'sums': to_cpu(total / self.ranks), 'ranks': self.ranks}
            checkpoint = {'model': self.model, 'args': vars(self.args), 'step': self.step, 'done': done, 'state': state,
                          **{name: to_cpu(net.net.state_dict()) for name, net in nets.items()},
                          'masks': {name: to_cpu(net.masked) for name, net in nets.items() if net.adam},
                          'opt': {name: to_cpu(net.moments()) for name, net in nets.items() if net.adam}}
            write(self.path('last.pt'), lambda tmp: torch.save(checkpoint, tmp))

    def score(self, scores, name, protocol, net, masks):
        """Record repeated evaluations (metrics.evaluate) in metrics.jsonl: mean and spread over sets of z.

        The best by `choose` (one half of the reference) is kept in best.pt, to be reported on the other half."""
        record = {'step': self.step, 'score': name}
        words = []
        for key in [k for k in scores[0] if k != 'protocol']:
            several = isinstance(scores[0][key], dict)             # one value per reference
            for part in scores[0][key] if several else ['all']:
                values = np.array([s[key][part] if several else s[key] for s in scores])       # [sets of z] or [.., 2]
                column = part if key == name else key if part == 'all' else f'{key}_{part}'
                mean, std = values.mean(0) if values.ndim > 1 else (values.mean(), values.std())
                record[column], record[f'{column}_std'] = float(mean), float(std)
                words.append(f'{key} {mean:.5g} +- {std:.2g} ({part})')
        record['protocol'] = protocol
        earlier = [r['choose'] for r in lines(self.path('metrics.jsonl')) if r['score'] == name and 'choose' in r]
        barrier()
        self.append('metrics.jsonl', record)
        self.say(f"step {self.step}: {'  '.join(words)}  {json.dumps(protocol)}")
        if self.rank == 0 and 'choose' in record and record['choose'] < min(earlier, default=float('inf')):
            best = {'model': self.model, 'args': vars(self.args), 'step': self.step, 'score': record,
                    'E': to_cpu(net.state_dict()), 'masks': to_cpu(masks)}
            write(self.path('best.pt'), lambda tmp: torch.save(best, tmp))


def peak_memory(device):
    """Peak memory so far, MB: allocated on the GPU, or resident in this process."""
    if device.type == 'cuda':
        return round(torch.cuda.max_memory_allocated(device) / 2 ** 20)
    if os.name == 'nt':
        return 0
    import resource                                            # not on Windows
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == 'darwin' else 10))
