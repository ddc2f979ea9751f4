"""The run: the step counter with exact resume, random streams, the log and the checkpoints.

Use:
    import argparse, torch, loop
    args = loop.add_flags(argparse.ArgumentParser()).parse_args('--steps 3 --out run --restart'.split())
    device = loop.launch(args)                                         # ranks, precision, determinism
    run, sums = loop.Run('toy', args), loop.Sums(device, 'loss')
    run.restore({}, sums)                                              # the same command resumes
    for step in run.iterations({}, sums):                              # counts, seeds, saves, obeys SIGTERM
        sums.add(loss=torch.rand(()))
        run.log({}, sums)                                              # a line every --log-every steps
    run.save({}, sums, done=True)

The randomness of step t is a function of (seed, stream, t) alone:

    rng(seed, stream, t) = numpy's generator of SeedSequence([seed, stream, t])

A checkpoint therefore holds the step, the weights and Adam's moments, and no state of a random generator.  A
run that was killed and resumed equals the uninterrupted one bit for bit on the CPU.  The networks that a run
saves, {name: network}, are of flat.py, or of another class with `net`, `masks`, `adam`, `moments`,
`load_moments` and `first_bad`.
"""
import argparse
import contextlib
import copy
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

import cli
import files

START = time.time()                           # --max-hours counts from here

# Flags that scale the updates or the losses: what to lower where numbers overflow
SCALES = ('lr_g', 'lr_d', 'slim', 'lecam', 'r1', 'pl', 'adv_step', 'adv_lambda_g', 'adv_lambda_d')

# Flags that may change when a run is resumed, because they do not change what the next step computes.
MAY_CHANGE = {
    'out', 'restart', 'steps', 'max_hours',
    'save_every', 'sample_every', 'log_every', 'eval_every',
    'metrics', 'weights', 'eval_batch', 'cache',
    'root', 'strict', 'check_data', 'tensorboard',
    'device', 'batch_gpu'}

# Flags that name files.  What the files hold is compared (by a hash or a fingerprint), the spelling is not.
COMPARED_BY_CONTENT = {'data', 'mask', 'init_from', 'small_dense', 'protocol'}

# What each number may be, see check_ranges.  Seeds have 63 bits, and no count comes near 1e12.
RANGES = {
    'steps': '[1, 1e12]',
    'max_hours': '(0, inf)',
    'seed': '[0, 1e18]',
    'save_every': '[1, 1e12]',
    'sample_every': '[1, 1e12]',
    'log_every': '[1, 1e12]'}

# {flag: default} of flags that are younger than the first edition.  Such a flag counts only where it differs
# from its default, so that older runs resume and keep their directory's name.
YOUNGER_FLAGS = {'dst': None, 'density': None, 'dst_every': 500}


def add_flags(group, experiments=None):
    """Add the flags of a run: everyday ones to `group`, the others to `experiments` (default: `group`)."""
    experiments = experiments or group
    a = group.add_argument
    a('--out', help='run directory (default: runs/MODEL-DATA-FRAC-HASH, a hash of the flags that matter)')
    a('--restart', action='store_true', help='empty the run directory instead of resuming the run in it')
    a('--steps', type=int, default=50000, help='G updates')
    a('--max-hours', type=float, help='save and exit with code 75 after this time; the same command resumes')
    a('--seed', type=int, default=0, help='seed of the initial weights, z, batches and augmentation')
    a('--device', choices=['auto', 'cuda', 'cpu'], default='auto', help='where to train')
    a = experiments.add_argument
    a('--save-every', type=int,
      help='steps between checkpoints (default: after a minute, then every ten minutes)')
    a('--sample-every', type=int,
      help='steps between grids of samples (default: after a minute, then at doubling intervals)')
    a('--log-every', type=int, default=50, help='steps between lines of log.jsonl')
    a('--tensorboard', action='store_true',
      help='the log, the scores and the grids for TensorBoard, too: tensorboard --logdir runs')
    a('--precision', choices=['auto', 'fp32', 'bf16'], default='auto',
      help='number format inside the networks; auto: bf16 where the hardware has it, else fp32')
    a('--graph', action=argparse.BooleanOptionalAction, default=False,
      help='record the passes of each update as a CUDA graph, which spares the CPU')
    a('--deterministic', action='store_true',
      help='CUDA kernels that repeat their results bit for bit, so that a resumed run is exact')
    return group


def check_run_flags(args):
    """Refuse what can be refused before data or models are touched."""
    check_device(args)
    if args.graph and not may_use_gpu(args):
        cli.refuse('--graph records CUDA graphs and there is no CUDA device in use: use --no-graph')
    if args.tensorboard and importlib.util.find_spec('tensorboard') is None:
        cli.refuse('--tensorboard needs a package that is not here: pip install tensorboard')
    cli.check_output('--out', args.out, folder=True)


def check_device(args):
    """Refuse a device that is not there."""
    if args.device == 'cuda' and not torch.cuda.is_available():
        cli.refuse('--device cuda: torch sees no CUDA device here; use --device cpu')


def may_use_gpu(args):
    """Whether a training with these flags runs on a GPU: by the hardware, never by timing."""
    return args.device != 'cpu' and torch.cuda.is_available()


# ---- the process: ranks, device, precision, signals

def has_bf16(device):
    """Whether the hardware has units for bf16 (tensor cores, AMX, AVX512-bf16): by flags, not by timing."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not os.path.exists('/proc/cpuinfo'):
        return False
    with open('/proc/cpuinfo') as f:
        flags = f.read()
    return 'amx_bf16' in flags or 'avx512_bf16' in flags


def most_memory(args):
    """The bytes of memory that a training can have, where that is known; 2^40 on a GPU, which none has."""
    gpu = may_use_gpu(args)
    if gpu or 'SC_PHYS_PAGES' not in getattr(os, 'sysconf_names', ()):
        return 2 ** 40
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def check_gpus():
    """Exit 2 where torchrun has started more processes on this machine than it has GPUs."""
    here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    gpus = torch.cuda.device_count()
    if here > gpus:
        cli.refuse(f'{here} ranks are on this machine, torch sees {gpus} GPUs: '
                   f'use torchrun --nproc_per_node {gpus}, '
               'or --device cpu')


def launch(args):
    """Start the process group, choose precision and determinism; sets args.precision; returns the device."""
    device, backend = torch.device('cpu'), 'gloo'
    if args.device == 'cuda' or (args.device == 'auto' and torch.cuda.is_available()):
        check_gpus()
        device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
        backend = 'cpu:gloo,cuda:nccl'
        torch.cuda.set_device(device)
    ranks = cli.world()[1]
    if ranks > 1 and not dist.is_initialized():
        dist.init_process_group(backend)

    if args.precision == 'auto':
        args.precision = 'bf16' if has_bf16(device) else 'fp32'
    torch.backends.cudnn.conv.fp32_precision = 'tf32'                  # for training convolutions only
    torch.backends.cuda.matmul.fp32_precision = 'ieee'

    torch.backends.cudnn.benchmark = not args.deterministic
    torch.use_deterministic_algorithms(args.deterministic)
    if args.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return device


def autocast(args, device):
    """The context of --precision.  Its cast cache is off, because a CUDA graph must not remember casts."""
    bf16 = args.precision == 'bf16'
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


@contextlib.contextmanager
def listening():
    """SIGINT, SIGTERM and SIGHUP are noted in cli.STOP and obeyed between two steps; one more kills.

    A signal that the process was started to ignore, as by nohup, stays ignored."""
    def note(number, frame):
        cli.STOP.append(number)
        signal.signal(number, signal.SIG_DFL)
        if cli.world()[0] == 0:
            with contextlib.suppress(OSError):        # not print, which a handler may interrupt
                os.write(1, b'\nstopping after this step; the same once more ends at once, without saving\n')

    old = {}
    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
        number = getattr(signal, name, None)          # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:
            old[number] = signal.signal(number, note)
    try:
        yield
    finally:
        cli.STOP.clear()
        for number, handler in old.items():
            signal.signal(number, handler)


def barrier():
    """Wait for the other ranks."""
    if cli.world()[1] > 1:
        dist.barrier()


def largest_over_ranks(numbers):
    """The largest value over ranks of each integer in a list."""
    x = torch.tensor(numbers)
    if cli.world()[1] > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x.tolist()


def mean_over_ranks(x):
    """The mean of a tensor over ranks, in place."""
    if cli.world()[1] > 1:
        dist.all_reduce(x)
        x /= cli.world()[1]
    return x


def equal_on_ranks(value):
    """Whether a value is equal on all ranks."""
    values = [value] * cli.world()[1]
    if cli.world()[1] > 1:
        dist.all_gather_object(values, value)
    return len(set(values)) == 1


# ---- random streams: functions of (seed, stream, step), equal on all ranks and machines, and after a resume

def rng(seed, stream, *step):
    """The numpy generator of one stream at one step."""
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], 'little')
    return np.random.default_rng(np.random.SeedSequence([seed, key, len(step), *step]))


@contextlib.contextmanager
def seeded(seed):
    """Inside, torch's randomness begins at this seed; afterwards it goes on as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def order(n, start, count, seed):
    """Indices [count] into n images at the positions start, start + 1, ... of an endless row of epochs."""
    epochs, places = np.divmod(np.arange(start, start + count), n)         # [count] each
    indices = []
    for epoch in range(epochs[0], epochs[-1] + 1):
        of_epoch = places[epochs == epoch]
        indices.append(epoch_permutation(n, epoch, seed)[of_epoch])
    return np.concatenate(indices)


@functools.lru_cache(maxsize=4)
def epoch_permutation(n, epoch, seed):
    """The order [n] of the images in one epoch."""
    return rng(seed, 'epoch', epoch).permutation(n)


def of_this_rank(x):
    """This rank's slice of what was drawn for the whole batch."""
    rank, ranks = cli.world()
    share = len(x) // ranks
    return x[rank * share:(rank + 1) * share]


def gaussian(rng, n, dim):
    """This rank's rows of z ~ N(0, 1) [n, dim], which are drawn for the whole batch."""
    return torch.from_numpy(of_this_rank(rng.standard_normal((n, dim), 'float32')))


def to_device(x, device):
    """A tensor or array of the CPU as a tensor on the device.

    The host does not wait for the copy: it prepares the next step while the device computes this one."""
    x = torch.as_tensor(x)
    if device.type == 'cpu':
        return x
    return x.pin_memory().to(device, non_blocking=True)


def fill(tensor, x):
    """Copy x of the CPU into a tensor of the device, in place, without waiting."""
    tensor.copy_(to_device(x, tensor.device))


def latents(seeds, dim, device):
    """z ~ N(0, 1) [n, dim], one row per seed, the same on every machine: what grids and generate.py show."""
    rows = [rng(seed, 'z').standard_normal(dim, 'float32') for seed in seeds]
    return torch.from_numpy(np.stack(rows)).to(device)


def shown(classes):
    """The up to ten classes [rows] that a grid shows, from the first to the last."""
    return np.linspace(0, classes - 1, min(classes, 10)).round().astype(int)


def panel(classes=0):
    """(seeds of z, classes) of a grid: 0-63 and None, or 0-7 for each class that is shown, row by row."""
    if not classes:
        return range(64), None
    rows = shown(classes)
    seeds = [*range(8)] * len(rows)
    return seeds, torch.from_numpy(np.repeat(rows, 8))


def settle(net, batches):
    """A copy of net in eval mode, whose BN statistics are the cumulative average over the batches.

    batches: the arguments of forward, one tuple per batch.  A net without batch norm is only copied, because
    its other buffers (StyleGAN2's average w) must not move."""
    net = copy.deepcopy(net)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return net.eval()

    net.train()
    for norm in norms:
        norm.reset_running_stats()
    with torch.no_grad():
        for k, batch in enumerate(batches, 1):
            # A cumulative average.  torch's own (momentum None) would wait for the device at every norm.
            for norm in norms:
                norm.momentum = 1 / k
            net(*batch)
    return net.eval()


def settling(dim, device, batches=64, classes=0):
    """Batches (z,) or (z, y) for `settle`, 64 latents each, of seeds from 10^9 on, which no sample uses.

    Classes are balanced; where there are more classes than latents, they are taken at even distances."""
    total = 64 * batches
    for start in range(0, total, 64):
        first_seed = 10 ** 9 + start
        z = latents(range(first_seed, first_seed + 64), dim, device)   # [64, dim]
        k = torch.arange(start, start + 64, device=device)             # [64]
        if not classes:
            yield (z,)
        elif classes > total:
            yield z, k * classes // total
        else:
            yield z, k % classes


class Sums:
    """Running means of named scalars in one device tensor, which is read once per log line."""

    def __init__(self, device, *names):
        self.row = {name: i for i, name in enumerate(names)}
        self.total = torch.zeros(len(names), 2, device=device)         # [names, (sum, count)]

    def add(self, **values):
        """Add scalars, or the means of tensors; returns the first one, so that a loss can be passed on."""
        for name, value in values.items():
            mean = value.detach().float().mean()
            row = self.row[name]
            self.total[row] += torch.stack((mean, torch.ones_like(mean)))
        return next(iter(values.values()))

    def means(self):
        """{name: mean over steps and ranks} of what was added since the last call."""
        total = self.total.double()
        if cli.world()[1] > 1:
            dist.all_reduce(total)
        self.total.zero_()

        means = {}
        for name, (value, count) in zip(self.row, total.tolist()):
            if count:
                means[name] = value / count
        return means


# ---- files

KINDS = {'init': 'a ticket', 'D': 'a last.pt', 'E': 'a best.pt'}       # a key that tells what a file is


def read(path, word, *keys):
    """files.load; a file that is damaged, none of ours or lacks a key is refused (exit 2).

    The sentence opens with `word`, such as the flag that named the file."""
    if not os.path.isfile(path):
        cli.refuse(f'{word}: no such file')
    try:
        saved = files.load(path)
    except files.Damaged as e:
        cli.refuse(f'{word}: {e}')

    missing = [key for key in keys if not isinstance(saved, dict) or key not in saved]
    if missing:
        kind = kind_of_file(saved, 'something else')
        wanted = kind_of_file(keys, 'another')
        cli.refuse(f'{word} is {kind} (it has no {missing[0]!r}): give {wanted}')
    return saved


def kind_of_file(keys, unknown):
    """What a file with these keys is, or the word for what is not known."""
    for key, kind in KINDS.items():
        if isinstance(keys, (dict, tuple)) and key in keys:
            return kind
    return unknown


# ---- what a run directory says about the run

def versions(device):
    """What args.json records beside the flags: versions, device, threads, ranks, git revision."""
    name = 'cpu'
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    revision = None
    if shutil.which('git'):
        here = os.path.dirname(os.path.abspath(__file__))
        done = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=here, capture_output=True, text=True)
        revision = done.stdout.strip() or None
    return {'python': sys.version.split()[0],
            'torch': torch.__version__,
            'numpy': np.__version__,
            'device': name,
            'threads': torch.get_num_threads(),
            'ranks': cli.world()[1],
            'git': revision}


def run_identity(args, **facts):
    """What must be equal when a run resumes: flags that change the result, and `facts` (hashes, model)."""
    kept = {}
    for name, value in vars(args).items():
        if name in MAY_CHANGE or name in COMPARED_BY_CONTENT:
            continue
        if name in YOUNGER_FLAGS and value == YOUNGER_FLAGS[name]:
            continue
        kept[name] = value
    return {**kept, **facts}


def compare(out, new):
    """Refuse a directory whose args.json has another identity, and name each flag with its two values."""
    if not os.path.exists(f'{out}/args.json'):
        cli.refuse(f'--out {out} holds a run without its args.json, so that its settings are not known: '
               'give --restart or another --out')
    old = files.read_json(f'{out}/args.json', identity=dict)['identity']
    new = json.loads(json.dumps(new))                 # tuples become lists, as in the file

    changed = []
    for name in sorted({*old, *new}):
        before = old.get(name, YOUNGER_FLAGS.get(name))
        now = new.get(name, YOUNGER_FLAGS.get(name))
        if before != now:
            changed.append(f"--{name.replace('_', '-')} was {before!r}, is {now!r}")
    if changed:
        cli.refuse(f"--out {out} holds a run with other settings ({'; '.join(changed)}): "
               'give --restart or another --out')


def check_steps(args, step, out):
    """Refuse --steps that lie behind the step of the checkpoint in a run directory."""
    if step > args.steps:
        cli.refuse(f'{cli.flag(args, "steps")}: the checkpoint in {out} is at step {step} already, '
               f'give --steps {step} or more, --restart, or another --out')


def clear_run(out):
    """Remove what a run writes, and nothing else that lies in its directory."""
    if not os.path.exists(f'{out}/args.json'):
        return
    names = ['subset.json', 'log.jsonl', 'metrics.jsonl', 'failed.json', 'reals.png',
             'last.pt', 'last-1.pt', 'best.pt', 'args.json']
    if os.path.isdir(f'{out}/samples'):
        for name in os.listdir(f'{out}/samples'):
            if name.removesuffix('.png').isdigit():
                names.append(f'samples/{name}')
    if os.path.isdir(f'{out}/tensorboard'):
        for name in os.listdir(f'{out}/tensorboard'):
            if name.startswith('events.out.tfevents.'):
                names.append(f'tensorboard/{name}')
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.remove(f'{out}/{name}')


def peak_memory(device):
    """The peak memory so far in MB: allocated on the GPU, or resident in this process."""
    if device.type == 'cuda':
        return round(torch.cuda.max_memory_allocated(device) / 2 ** 20)
    if os.name == 'nt':
        return 0
    import resource                                   # not on Windows
    unit = 2 ** 20 if sys.platform == 'darwin' else 2 ** 10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def open_board(args, out, step):
    """What --tensorboard writes with, in out/tensorboard; None without it, and on ranks other than 0.

    TensorBoard leaves out what a process before this one has written there behind this step."""
    if cli.world()[0] or not args.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter          # a package that is needed here alone
    return SummaryWriter(f'{out}/tensorboard', purge_step=step + 1)


def show_numbers(run, record, prefix=''):
    """Write the numbers of a record for TensorBoard, with --tensorboard."""
    if not run.board:
        return
    for name, value in record.items():
        if name != 'step' and isinstance(value, (int, float)):
            run.board.add_scalar(prefix + name, value, run.step)
    run.board.flush()


def claim(out):
    """Hold a run directory; exit 2 where another process writes there."""
    try:
        files.hold(out)
    except files.Taken as owner:
        cli.refuse(f'--out {out} is in use by {owner}: wait until that has ended, or name another --out')


class Checkpoints:
    """What a run directory keeps of a training: last.pt, last-1.pt before it, and failed.json.

    step: the step of last.pt; None where there is no sound one."""

    def __init__(self, out):
        self.out = out
        self.step = None

    def __str__(self):
        """As the end of a sentence: which checkpoint is good."""
        if self.step is None:
            return 'there is no checkpoint yet'
        return f'{self.out}/last.pt is the last good checkpoint, of step {self.step}'

    def there(self):
        """The paths of last.pt and of last-1.pt, as far as they exist."""
        found = [f'{self.out}/last.pt', f'{self.out}/last-1.pt']
        return [path for path in found if os.path.exists(path)]

    def restore(self, nets, sums, parts):
        """`take_over` of the newest checkpoint that is not damaged; None where there is no checkpoint.

        Says what is damaged.  Exits 2 where every checkpoint is."""
        found = self.there()
        for path in found:
            try:
                result = take_over(path, nets, sums, parts)
            except files.Damaged as e:
                if path == found[-1]:
                    cli.refuse(f'{e}, and {self.out} has no older checkpoint: '
                               'give --restart or another --out')
                cli.say(f'{e}: the run goes on from the checkpoint before, {found[-1]}')
                continue
            if path.endswith('last.pt'):
                self.step = result[0]
            return result

    def save(self, checkpoint):
        """Write last.pt; the one before becomes last-1.pt, unless it is damaged or of the same step.

        Raises files.NotFinite, and leaves both as they are, where a tensor is not finite."""
        older = None
        if self.step not in (None, checkpoint['step']):
            older = f'{self.out}/last-1.pt'
        files.save(f'{self.out}/last.pt', checkpoint, older)
        self.step = checkpoint['step']

        before = self.failure()
        if before and before['step'] <= self.step:    # the run has come further than before
            os.remove(f'{self.out}/failed.json')

    def note_failure(self, step, what):
        """Remember that the run has ended at this step, with the reason."""
        files.write_json(f'{self.out}/failed.json', {'step': step, 'what': what})

    def failure(self):
        """{step, what} of `note_failure`; None where the run has not failed."""
        file = f'{self.out}/failed.json'
        if os.path.exists(file):
            return files.read_json(file, step=int, what=str)


def take_over(path, nets, sums, parts):
    """Load networks, moments, sums and parts of a checkpoint; returns its step, `done` and number of ranks.

    Raises files.Damaged where something is missing or of another form."""
    saved = files.load(path)
    try:
        for name, net in nets.items():
            net.net.load_state_dict(saved[name])
            if net.adam:
                net.load_moments(saved['opt'][name])
        state = saved['state']
        for name, part in parts.items():
            part.load(state[name])
        if state['sums'].shape != sums.total.shape:
            raise ValueError('the sums have another shape')
        sums.total.copy_(state['sums'])
        return saved['step'], saved['done'] is True, state['ranks']
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise files.Damaged(f'{path} is damaged ({type(e).__name__}: {files.reason(e)})') from e


def way_out(args, checkpoints):
    """What to do about numbers that are not finite, as an imperative."""
    names = []
    for name in SCALES:
        unused = name.startswith('adv') and args.advaug == 'none'
        if not unused and getattr(args, name, None):
            names.append(cli.flag(args, name))
    start = 'give --restart'
    if checkpoints.step is not None:
        start = f'start from the checkpoint with --init-from {checkpoints.out}/last.pt and another --out'
    return f'lower one of {", ".join(names) or "the learning rates"}, and {start}'


class Run:
    """A run directory (args.json, log.jsonl, metrics.jsonl, samples/, last.pt, best.pt) and the step counter.

    model: the name of the script's model.  images: real images that D sees per step, for the log.
    facts: hashes that must be the same when the run is resumed (data, mask, ...).

    A directory is refused (exit 2) while another process writes there, and where it holds a checkpoint of
    other flags or facts; see MAY_CHANGE.  last-1.pt is the checkpoint before last.pt, for when that is
    damaged."""

    def __init__(self, model, args, images=1, **facts):
        self.model = model
        self.args = args
        self.images = images
        self.rank, self.ranks = cli.world()
        self.device = torch.device('cpu')
        if may_use_gpu(args):
            self.device = torch.device('cuda')
        self.step = 0
        self.board = None                             # of --tensorboard, see open_board
        self.done = False                             # whether last.pt says that nothing is left to do

        # The clock: when something was last done, and what falls due at this step
        self.start = self.last_save = self.last_log = time.time()
        self.next_sample = 60.                        # seconds from the start to the next grid
        self.idle = 0.                                # seconds since the last log line that were not training
        self.steps_logged = 0                         # the step of the last log line
        self.timed = {}                               # {what: whether it falls due by the clock}
        self.moving_line = False                      # whether the terminal shows a line without an end

        # The directory, named after what changes the result
        same = run_identity(args, **facts, model=model)
        data = os.path.basename(str(getattr(args, 'data', 'data')).rstrip('/'))
        frac = getattr(args, 'frac', 1)
        self.out = args.out or f'runs/{model}-{data}-{frac}-{files.digest(same)[:8]}'
        if self.rank == 0:
            claim(self.out)
            if args.restart:
                clear_run(self.out)
        barrier()
        cli.CURRENT[:] = [self]
        self.checkpoints = Checkpoints(self.out)
        if self.checkpoints.there():
            compare(self.out, same)
        barrier()
        self.identity = same
        if self.rank == 0:
            os.makedirs(self.path('samples'), exist_ok=True)
        self.say(f'{self.out}: all settings are in args.json')

    def path(self, name):
        """The path of a file of this run."""
        return f'{self.out}/{name}'

    def say(self, line, moving=False):
        """Print on rank 0.  On a terminal, a moving line takes the place of the moving line before it."""
        moving = moving and self.rank == 0 and bool(sys.stdout) and sys.stdout.isatty()
        if moving:
            width = shutil.get_terminal_size().columns - 1
            cli.say(f'\r\033[K{line[:width]}', end='')
        else:
            cli.say('\n' * self.moving_line + line)                        # below a moving line
        self.moving_line = moving

    def restore(self, nets, sums, parts=None):
        """A run resumes here: step, networks, moments and sums of last.pt, and the states of `parts`.

        nets: {name: Flat}.  parts: {name: object with `load`}.  Where last.pt is damaged, last-1.pt takes its
        place.  Lines of log.jsonl and metrics.jsonl that are torn or newer than the checkpoint go."""
        found = self.checkpoints.restore(nets, sums, parts or {})
        if found:
            self.step, done, ranks = found
            check_steps(self.args, self.step, self.out)
            self.done = done and self.step >= self.args.steps
            line = f'resumed at step {self.step}: weights, EMA, moments, position in the data'
            if ranks != self.ranks:
                line += f'; not bit for bit: {ranks} ranks before, {self.ranks} now'
            self.say(line)

        # Nothing was refused: from here on the directory is that of these settings.
        if self.rank == 0:
            files.write_json(self.path('args.json'), {
                'command': cli.command(), 'identity': self.identity,
                'args': vars(self.args), 'versions': versions(self.device)})
        barrier()
        for name in ('log.jsonl', 'metrics.jsonl'):
            file = self.path(name)
            if self.rank == 0 and os.path.exists(file):
                kept = [record for record in files.read_jsonl(file) if record['step'] <= self.step]
                files.write_jsonl(file, kept)
        barrier()
        self.board = open_board(self.args, self.out, self.step)

        before = self.checkpoints.failure()
        if before:
            self.say(f"this run ended at step {before['step']} before, because {before['what']}, and will "
                     f'do so again: {way_out(self.args, self.checkpoints)}')

    # ---- what falls due

    def agree(self):
        """Read the clock and the signals, so that all ranks agree; sets what falls due by the clock (`due`).

        Returns the number of a signal, or 0, and whether --max-hours are over."""
        now = time.time()
        limit = 3600 * (self.args.max_hours or float('inf'))           # seconds
        save_after = 60 if self.last_save == self.start else 600       # a first checkpoint comes soon
        wishes = [max(cli.STOP, default=0),
                  now - START > limit,
                  now - self.start > self.next_sample,
                  now - self.last_save > save_after,
                  now - self.last_log > 60]

        # What one rank wishes, all ranks do.
        number, over, sample, save, log = largest_over_ranks([int(wish) for wish in wishes])
        if sample:
            self.next_sample = 2 * (now - self.start)
        self.timed = {'sample': sample, 'save': save, 'log': log}
        return number, over

    def due(self, what):
        """Whether the 'log' line, the 'sample' grid, the 'eval'uation or the 'save' falls on this step.

        All of them fall on the last step.  Before, each follows its flag, such as --save-every, or the clock
        where that flag is not given.  The log line follows both."""
        every = getattr(self.args, f'{what}_every', None)
        if self.step in (0, self.args.steps):
            return self.step > 0
        on_count = bool(every) and self.step % every == 0
        by_clock = bool(self.timed.get(what))
        if what == 'log':
            return on_count or by_clock
        return on_count if every else by_clock

    @contextlib.contextmanager
    def observing(self):
        """Time inside is not training time."""
        start = time.time()
        yield
        self.idle += time.time() - start

    # ---- the loop

    def iterations(self, nets, sums, extra=dict):
        """Yield the numbers of the G updates still to do, from 1; seeds torch at each, and saves when due.

        nets: {name: Flat}.  extra() -> {name: tensor or value}, for the checkpoint's state (see `restore`).
        Exits 130 / 143 on SIGINT / SIGTERM, and 75 after --max-hours, saved and resumable."""
        self.last_log = time.time()
        self.steps_logged = self.step
        self.idle = 0.
        with listening():
            while self.step < self.args.steps:
                number, over = self.agree()
                if number or over:
                    self.save(nets, sums, extra)
                    self.leave(number)

                self.step += 1
                for net in nets.values():
                    net.now = self.step

                # Augmentation, noise and mixing depend on the rank; batches and z do not (`rng`).
                seed = rng(self.args.seed, 'device', self.step, self.rank).integers(2 ** 62)
                torch.manual_seed(int(seed))
                yield self.step

                if self.due('save'):
                    self.save(nets, sums, extra)

    def leave(self, number=0):
        """Say how to go on, and exit with the code of the signal `number`, or with 75; last.pt was saved."""
        barrier()                                     # torchrun ends the other ranks when one has left
        self.say(f'stopped at step {self.step} and saved; resume with: {cli.command()}')
        raise SystemExit(128 + number if number else 75)

    def guard(self, nets):
        """Exit 3 at the first gradient that was not finite; nothing was updated or saved since."""
        found = []
        for name, net in sorted(nets.items()):
            bad = net.first_bad()
            if bad:
                found.append((*bad, name))
        if found:
            step, tensor, name = min(found, key=lambda bad: bad[0])    # in a tie D, the first by name
            self.fail(f'the gradient of {tensor} in {name} is not finite', step)

    def fail(self, what, step=None):
        """Exit 3, because of numbers that are not finite: say since when, and what to change."""
        step = step or self.step
        if self.rank == 0:
            self.checkpoints.note_failure(step, what)
        self.say(f'error: step {step}: {what}; {self.checkpoints}.  '
                 f'The same command would end in the same way: {way_out(self.args, self.checkpoints)}')
        raise SystemExit(3)

    def log(self, nets, sums, notes=dict):
        """If due, a line of log.jsonl and of the terminal.

        It has the means since the last line, notes() -> {name: number}, images a second, memory, and the ETA.
        Exits 3 on a gradient that was not finite."""
        if not (self.due('log') or self.step == 1):
            return
        self.guard(nets)
        now = time.time()
        seconds = now - self.last_log - self.idle
        rate = (self.step - self.steps_logged) / max(seconds, 1e-9)    # steps a second
        with self.observing():
            values = {**sums.means(), **notes()}
            values = {name: float(f'{value:.6g}') for name, value in values.items()}

        images_per_s = round(rate * self.images, 1)
        peak_mb = peak_memory(self.device)
        if self.rank == 0:
            files.append_jsonl(self.path('log.jsonl'), {
                'step': self.step, 'kimg': self.step * self.images / 1000,
                **values,
                'images_per_s': images_per_s, 'peak_mb': peak_mb,
                'start': round(self.start, 1), 'time': round(now - self.start, 1)})
            show_numbers(self, {**values, 'images_per_s': images_per_s, 'peak_mb': peak_mb})
        self.last_log = now
        self.steps_logged = self.step
        self.idle = time.time() - now

        left = int((self.args.steps - self.step) / rate)               # seconds
        line = f'step {self.step}/{self.args.steps}'
        line += f'  ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}'
        line += f'  {images_per_s} img/s  {peak_mb} MB  '
        line += '  '.join(f'{name} {value:.3g}' for name, value in values.items())
        self.say(line, moving=True)

    def save(self, nets, sums, extra=dict, done=False):
        """Write last.pt: everything that the next step depends on.

        done: the script says that nothing is left to do.  The checkpoint before becomes last-1.pt.
        Exits 3 on a gradient that was not finite, and where a weight, a buffer, a moment or a sum is not."""
        self.guard(nets)
        total = sums.total.clone()
        if self.ranks > 1:
            dist.all_reduce(total)
        self.last_save = time.time()
        if self.rank:
            return

        with self.observing():
            checkpoint = {'model': self.model, 'args': vars(self.args), 'step': self.step, 'done': done}
            means = files.to_cpu(total / self.ranks)
            checkpoint['state'] = {**files.to_cpu(extra()), 'sums': means, 'ranks': self.ranks}
            for name, net in nets.items():
                checkpoint[name] = files.to_cpu(net.net.state_dict())

            # Masks and Adam's moments, of the networks that are trained
            trained = {name: net for name, net in nets.items() if net.adam}
            checkpoint['masks'] = {name: files.to_cpu(net.masks) for name, net in trained.items()}
            checkpoint['opt'] = {name: files.to_cpu(net.moments()) for name, net in trained.items()}

            try:
                self.checkpoints.save(checkpoint)
            except files.NotFinite as e:
                self.fail(f'{e} is not finite')
