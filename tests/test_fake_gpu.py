"""What a GPU would meet, on a CPU: no GPU computes here, only the shapes, types and places of tensors are followed.

Two kinds of tensors without numbers stand in for those of a GPU:
    meta    whole trainings, with backward passes and Adam.  Reading a number, or a tensor on the CPU where
            one of the device must be, raises.  autocast does not know this device.
    fake    torch's FakeTensor on 'cuda', with CUDA's own rules of autocast; forward passes only
`Watch` sees every operation: it finds copies that make the host wait for the device, and counts the bytes."""
import argparse
import contextlib
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

import flat
import gan
import generate
import loop
import metrics
import train_biggan
import train_stylegan2
import trainer
from data import images
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
        self.live = weakref.WeakKeyDictionary()       # {storage: bytes}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.waits:
            refuse_waiting(f, args, kwargs)
        result = f(*args, **kwargs)
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.device.type != 'cpu':
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        """Count a storage as long as it lives."""
        if storage in self.live:
            return
        n = storage.nbytes()
        self.live[storage] = n
        weakref.finalize(storage, self.forget, n)
        self.bytes += n
        self.peak = max(self.peak, self.bytes)

    def forget(self, n):
        self.bytes -= n


PINNED = set()                                        # addresses of tensors that pin_memory has returned


def pin_memory(tensor):
    """Tensor.pin_memory where there is no GPU: the tensor itself, and it is remembered."""
    PINNED.add(tensor.data_ptr())
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
    pinned = all(t.data_ptr() in PINNED for t in on_host)
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
    """Nothing is observed or saved: that reads numbers, as it may."""
    nothing = lambda *args, **kwargs: None            # noqa: E731
    monkeypatch.setattr(trainer.Observer, 'observe', nothing)
    monkeypatch.setattr(trainer.Observer, 'draw_grid', nothing)
    monkeypatch.setattr(loop.Run, 'save', nothing)


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


REGULARISED = ['--preset', 'large', '--res', '16', '--pl-every', '2', '--r1-every', '2']
TRAININGS = [
    ('sngan', METHOD),
    ('sngan', ['--aug', 'ada', '--ada-p', '.5', '--lecam', '.1', '--mirror', '--batch-gpu', '4']),
    ('biggan', [*METHOD, '--mirror']),
    ('biggan', ['--aug', 'ada', '--ada-p', '.5', '--d-pass', 'separate', '--adv-noise', '.01', '--advaug', 'gd']),
    ('stylegan2', METHOD),
    ('stylegan2', [*REGULARISED, '--aug', 'ada', '--ada-p', '.5', '--cond', '--data', 'emoji', '--frac', '60']),
]


@pytest.mark.parametrize('model, flags', TRAININGS, ids=lambda x: x if isinstance(x, str) else ' '.join(x[:4]))
def test_no_step_waits_for_the_device_or_mixes_it_with_the_cpu(
        tmp_path, meta, unobserved, watched, monkeypatch, model, flags):
    tiny = TINY[model]
    for name in ('--data', '--frac', '--res'):
        if name in flags and name in tiny:
            tiny = without(tiny, name)
    script = importlib.import_module(f'train_{model}')
    args = script.get_args([*tiny, *flags, '--steps', '1', '--out', str(tmp_path / 'run')])
    G, D = script.main(args)
    assert watched == [1] and G.cuts and next(D.parameters()).device == META
