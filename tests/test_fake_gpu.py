"""What a GPU would meet, on a CPU: no GPU computes here, only the shapes, types and places of tensors are followed.

Two kinds of tensors without numbers stand in for those of a GPU:
    meta    whole trainings, with backward passes and Adam.  Reading a number, or a tensor on the CPU where
            one of the device must be, raises.  autocast does not know this device.
    fake    torch's FakeTensor on 'cuda', with CUDA's own rules of autocast; forward passes only
`Watch` sees every operation: it finds copies that make the host wait for the device, and counts the bytes."""
import argparse
import functools
import importlib
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers import METHOD, TINY, find, without
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import files
import flat
import gan
import generate
import loop
import metrics
import trainer
from models import biggan, sngan, stylegan2
from paper import leak

GIB = 2 ** 30
META = torch.device('meta')


# ---- what is watched

class Watch(TorchDispatchMode):
    """Refuses what makes the host wait, and counts the bytes of the tensors of the device that are alive.

    A copy from the CPU may go on while the device computes if it comes from pinned memory and is not waited
    for.  Any other operation on tensors of both places hides such a copy."""

    def __init__(self, waits=True):
        super().__init__()
        self.waits = waits                            # whether waiting is refused
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.waits:
            refuse_waiting(f, args, kwargs)
        result = f(*args, **kwargs)
        known = storages((args, kwargs))
        for storage in storages(result):
            if storage not in known:
                self.count(storage)
        return result

    def count(self, storage):
        """Count a storage as long as it lives."""
        n = storage.nbytes()
        self.bytes += n
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self.forget, n)

    def forget(self, n):
        self.bytes -= n


def storages(tree):
    """The storages of the tensors of the device in a tree of arguments or results; views share theirs."""
    tensors = [t for t in tree_leaves(tree) if torch.is_tensor(t)]
    return {t.untyped_storage() for t in tensors if t.device.type != 'cpu'}


PINNED = set()                                        # storages of tensors that pin_memory has returned


def pin_memory(tensor):
    """Tensor.pin_memory where there is no GPU: the tensor itself, and it is remembered."""
    PINNED.add(tensor.untyped_storage())
    return tensor


def refuse_waiting(f, args, kwargs):
    """Fail at an operation that makes the host wait for the device."""
    tensors = [t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)]
    on_host = [t for t in tensors if t.device.type == 'cpu']
    on_device = [t for t in tensors if t.device.type != 'cpu']
    name = f.overloadpacket.__name__
    if name == '_to_copy':
        crosses = on_host and torch.device(kwargs.get('device') or 'cpu').type != 'cpu'
    else:
        crosses = on_device and any(t.dim() for t in on_host)
    if not crosses:
        return
    asynchronous = kwargs.get('non_blocking') or (name == 'copy_' and args[2:] == (True,))
    pinned = all(t.untyped_storage() in PINNED for t in on_host)
    assert asynchronous and pinned, f'{f} of {[list(t.shape) for t in on_host]} waits for the device'


# ---- trainings on the meta device

@pytest.fixture
def meta(monkeypatch):
    """Trainings go to the meta device."""
    def launch(args):
        args.precision = 'fp32' if args.precision == 'auto' else args.precision
        return META

    def on_cpu(function):
        """A function of a device type that takes 'meta' for 'cpu'."""
        def wrapper(device, *args, **kwargs):
            return function('cpu' if device == 'meta' else device, *args, **kwargs)
        return wrapper

    optimizer = importlib.import_module('torch.optim.optimizer')       # torch.optim hides its name
    monkeypatch.setattr(optimizer, '_get_fused_kernels_supported_devices', lambda: ['meta'])
    monkeypatch.setattr(loop, 'launch', launch)
    monkeypatch.setattr(torch, 'autocast', on_cpu(torch.autocast))
    for name in ('is_autocast_enabled', 'get_autocast_dtype'):
        monkeypatch.setattr(torch, name, on_cpu(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, 'pin_memory', pin_memory)
    PINNED.clear()


@pytest.fixture
def unobserved(monkeypatch):
    """Nothing is observed, saved or moved to other masks: that reads numbers, as it may."""
    nothing = lambda *args, **kwargs: None            # noqa: E731
    monkeypatch.setattr(trainer.Observer, 'observe', nothing)
    monkeypatch.setattr(trainer.Observer, 'draw_grid', nothing)
    monkeypatch.setattr(loop.Run, 'save', nothing)
    monkeypatch.setattr(trainer.Sparse, 'move', nothing)


@pytest.fixture
def watched(monkeypatch):
    """The steps of a training are watched; returns their numbers, as they come."""
    iterations = loop.Run.iterations
    steps = []

    def watched(run, *args, **kwargs):
        for step in iterations(run, *args, **kwargs):
            with Watch():
                yield step
            steps.append(step)
    monkeypatch.setattr(loop.Run, 'iterations', watched)
    return steps


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
ADA = ['--aug', 'ada', '--ada-p', '.5']
RIGL = ['--dst', 'rigl', '--density', '.3', '--dst-every', '1', '--steps', '2']
REGULARISED = ['--preset', 'large', '--res', '16', '--pl-every', '2', '--r1-every', '2']
TRAININGS = [
    ('sngan', METHOD),
    ('biggan', [*METHOD, '--mirror']),
    ('stylegan2', METHOD),
    slow('sngan', [*RIGL, '--aug', 'apa', '--ada-p', '.5']),
    slow('sngan', [*ADA, '--lecam', '.1', '--mirror', '--batch-gpu', '4']),
    slow('biggan', [*ADA, '--d-pass', 'separate', '--adv-noise', '.01', '--advaug', 'gd']),
    slow('stylegan2', [*REGULARISED, *ADA, '--cond', '--data', 'emoji', '--frac', '60']),
]


@pytest.mark.parametrize('model, flags', TRAININGS, ids=lambda x: x if isinstance(x, str) else ' '.join(x[:4]))
def test_no_step_waits_for_the_device_or_mixes_it_with_the_cpu(
        tmp_path, meta, unobserved, watched, monkeypatch, model, flags):
    tiny = TINY[model]
    for name in ('--data', '--frac', '--res'):
        if name in flags and name in tiny:
            tiny = without(tiny, name)
    script = importlib.import_module(f'train_{model}')
    args = script.get_args([*tiny, '--steps', '1', *flags, '--out', str(tmp_path / 'run')])
    G, D = script.main(args)
    assert watched == [*range(1, args.steps + 1)] and G.cuts and next(D.parameters()).device == META


# ---- the memory of log lines, grids and updates

@pytest.fixture
def numbers(monkeypatch):
    """Numbers of the device are 1 or 0, where reading them is right: in a log line, a grid, a ticket or a score."""
    def read(name, value):
        original = getattr(torch.Tensor, name)

        def wrapper(tensor, *args):
            return value(tensor) if tensor.device.type == 'meta' else original(tensor, *args)
        monkeypatch.setattr(torch.Tensor, name, wrapper)

    def zeros(tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    for name in ('item', '__float__'):
        read(name, lambda tensor: 1.)
    read('__bool__', lambda tensor: True)
    read('cpu', zeros)
    read('tolist', lambda tensor: zeros(tensor).tolist())


def images_of(args):
    """A data set of 128 black images."""
    x = torch.zeros(128, 3, args.res, args.res, dtype=torch.uint8)
    y = torch.arange(128) % (args.classes or 1)
    return argparse.Namespace(
        images=x, labels=y, holdout=None, holdout_labels=None, ref=x, ref_name='black',
        name='black', classes=['black'] * (args.classes or 1), total=128, fingerprint='', index=[], report=[])


def peaks(monkeypatch, tmp_path, model, *flags):
    """GiB in fp32 of {update, log, grid} of a training; no step of it is made."""
    script = importlib.import_module(f'train_{model}')
    found = {}

    def measured(name, owner, function):
        call = getattr(owner, function)

        def wrapper(*args):
            with Watch(waits=False) as watch:
                result = call(*args)
            found[name] = watch.peak / GIB
            return result
        monkeypatch.setattr(owner, function, wrapper)

    measured('update', trainer, 'largest_that_fits')
    measured('log', trainer.Observer, 'notes')
    measured('grid', trainer.Observer, 'draw_grid')
    build = script.build
    monkeypatch.setattr(script, 'build', lambda args: trainer.without_weights(build, args))
    monkeypatch.setattr(trainer, 'load_data', images_of)
    monkeypatch.setattr(trainer, 'memory_is_short', lambda job: True)
    monkeypatch.setattr(flat.Flat, 'update', lambda *args, **flags: None)
    monkeypatch.setattr(flat.Flat, 'first_bad', lambda *args: None)
    monkeypatch.setattr(loop.Run, 'save', lambda *args, **kwargs: None)
    script.main(script.get_args([*flags, '--steps', '1', '--metrics', 'none', '--out', str(tmp_path / 'run')]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize('model, flags, update, observer', [
    ('stylegan2', '--data emoji-faces --preset auto --res 256', 6, 1.2),       # batch 16; without slices 8.8
    ('stylegan2', '--data emoji-faces --preset auto --res 512', 12, 2.4),      # batch 8; without slices 32.4
    ('biggan', '--data emoji --preset imagenet --res 128', 44, 5.5),           # batch 256
])
def test_a_log_line_and_a_grid_take_less_than_an_update(
        tmp_path, monkeypatch, meta, numbers, model, flags, update, observer):
    """update, observer: bounds in GiB.  An update in bf16 takes half as much, log lines and grids are fp32."""
    found = peaks(monkeypatch, tmp_path, model, *flags.split())
    assert found['update'] < update and max(found['log'], found['grid']) < observer, found
    assert max(found['log'], found['grid']) < found['update'] / 2, found


# ---- forward passes on fake CUDA tensors

class FakeCuda(FakeTensorMode):
    """FakeTensorMode that does not look for a GPU."""

    def __setattr__(self, name, value):
        super().__setattr__(name, True if name == 'avoid_device_init' else value)

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def cuda(monkeypatch):
    """Tensors on 'cuda' are fake, autocast acts as CUDA's does, and convolutions are cuDNN's."""
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args: True)
    monkeypatch.setattr(torch._C, '_select_conv_backend', lambda *args, **kwargs: torch._C._ConvBackend.Cudnn)
    monkeypatch.setattr(torch.Tensor, 'pin_memory', pin_memory)
    return torch.device('cuda')


def in_channels_last(*nets):
    """Module.to would exchange tensors, which fake ones forbid."""
    for net in nets:
        for p in net.parameters():
            if p.dim() == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)


class Features(TorchDispatchMode):
    """Fails where a feature of many channels and pixels is not bf16 and channels_last: it costs twice as much."""

    seen = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        result = f(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) else result
        if f.overloadpacket.__name__ in ('convolution', 'add', 'relu', 'native_batch_norm', 'avg_pool2d'):
            if first.dim() == 4 and first.shape[1] > 3 and first.shape[2] > 4:
                self.seen += 1
                assert first.dtype == torch.bfloat16, f'{f} {list(first.shape)} is {first.dtype}'
                assert first.is_contiguous(memory_format=torch.channels_last), f'{f} {list(first.shape)}'
        return result


class Heads(TorchFunctionMode):
    """Fails where CUDA's fused kernels of attention do not take the number of channels."""

    seen = 0

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if f is F.scaled_dot_product_attention:
            self.seen += 1
            for tensor in args[:3]:
                assert tensor.shape[-1] % 8 == 0 and tensor.dtype == torch.bfloat16, list(tensor.shape)
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize('model, flags', [
    ('sngan', ['--data', 'emoji-faces', '--preset', 'paper', '--aug', 'diffaug']),
    ('biggan', ['--data', 'emoji', '--preset', 'imagenet', '--res', '128'])])
def test_features_are_bf16_and_channels_last_and_attention_takes_the_fused_kernels(cuda, model, flags):
    script = importlib.import_module(f'train_{model}')
    args = script.get_args(['--precision', 'bf16', '--metrics', 'none', *flags])

    def context():
        return loop.autocast(args, cuda)
    with FakeCuda(), Features() as features, Heads() as heads, torch.device('cuda'):
        G, D = script.build(args)
        in_channels_last(G, D)
        z = torch.zeros(4, G.z_dim)
        x = torch.zeros(4, 3, args.res, args.res).contiguous(memory_format=torch.channels_last)
        y = [torch.zeros(4, dtype=torch.int64)] if model == 'biggan' else []
        sums = loop.Sums(cuda, *gan.SUMS)
        with Watch(), context():
            fake = G(z, *y)
            loss_D = gan.d_loss(D, x, fake, args, sums, *y, *y)
        with Watch():
            loss_G = gan.g_loss(G, D, z, args, sums, context, *y)
    assert loss_D.dtype == loss_G.dtype == torch.float32 and fake.shape == x.shape
    assert features.seen > 50 and heads.seen == (4 if y else 0)


# ---- what is around the training

def test_a_ticket_is_found_from_networks_on_the_device(tmp_path, meta, numbers, unobserved):
    for method in ('imp', 'slimming'):
        path = find('sngan', tmp_path / method, '--steps', 1, '--rounds', 1, '--method', method, '--prune', 'g')
        masks = files.load(path)['mask']
        assert all(mask.device.type == 'cpu' for mask in masks['G'].values()) and masks['G']


def test_settling_reads_no_number_of_the_device(meta):
    with META:
        G = sngan.Generator(16, 8)
    settled = loop.settle(G, loop.settling(G.z_dim, META, batches=2))
    assert not settled.training and settled.n5.running_mean.device == META


@pytest.mark.filterwarnings('ignore:.*copying from a non-meta parameter')
def test_features_and_their_statistics_stay_on_the_device(meta, numbers):
    extractor = metrics.extractor('effnet', device='meta')
    x = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    stats = metrics.stats(lambda a, b: x[a:b].to(META), 8, extractor, keep=('features',))
    assert stats.mu.device == stats.sigma.device == stats.features.device == META
    metrics.distance(stats, stats)


def test_the_leak_meter_trains_and_measures_on_the_device(meta, numbers, monkeypatch):
    x = torch.zeros(70, 3, 16, 16, dtype=torch.uint8)
    with Watch():
        leak.apply_maps(torch.zeros(4, 3, 16, 16, device=META), torch.zeros(4, dtype=torch.int64, device=META))
    C = leak.train_classifier(x, 1, 'meta')
    assert next(C.parameters()).device == META and leak.found_shares(C, x)['n'] == 70


@pytest.mark.filterwarnings('ignore:Accessing the data pointer of FakeTensor')       # of deepcopy
def test_samples_are_drawn_on_the_device_and_end_on_the_cpu(cuda):
    fake = FakeCuda()
    with fake, torch.device('cuda'):
        nets = [(sngan.Generator(16, 8), None),
                (biggan.Generator(32, 10, 8), 3),
                (stylegan2.Generator(16, 256, 16), None)]
    with fake:
        for net, y in nets:
            batches = loop.settling(net.z_dim, cuda, batches=1, classes=getattr(net, 'classes', 0))
            settled = loop.settle(net, batches)
            x = generate.sample(settled, range(3), y)
            assert x.shape == (3, 3, net.res, net.res) and x.device.type == 'cpu'
