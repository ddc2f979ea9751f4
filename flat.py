"""A network as one vector of weights and one vector of gradients.

Use:
    import copy, torch, flat
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    masks = {'0.weight': torch.rand(8, 3, 3, 3) > .2}                      # True: the weight is alive
    E = flat.Flat(copy.deepcopy(net), masks=masks)                         # the average of G
    G = flat.Flat(net, lr=1e-3, masks=masks)
    x = torch.randn(8, 3, 9, 9)
    G.update(lambda part: G.net(x[part]).square().mean(), flat.micro_batches(8, 4))
    E.track(G, beta=.999)

Every parameter of the network is a view of the vector w, and every gradient is a view of the vector g.  The
mean over ranks, the ticket's mask, the guard against NaN, Adam and the average are therefore one call each:

    g     <- m * (mean over ranks of grad L)          m in {0, 1}: the mask of the ticket
    w     <- Adam(w, g)                               a weight that starts at 0 with m = 0 stays exactly 0
    ema   <- beta ema + (1 - beta) w

torch's DistributedDataParallel is not used, because it synchronises only what passes through forward(), and
AdvAug goes through net.split(x, cut).
"""
import contextlib
import functools
import os
import weakref

import torch
import torch.distributed as dist
from torch.nn.utils import parametrize

ALIGN = 64                            # numbers: every tensor of a vector starts at a 256-byte boundary
WARM_UP = 3                           # plain calls before a CUDA graph is recorded
BatchNorm = torch.nn.modules.batchnorm._BatchNorm
RECORDED = weakref.WeakSet()          # the CUDA graphs that are alive; they share one pool of memory


def world():
    """(rank, number of ranks), as torchrun says."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def micro_batches(n, micro=None):
    """Slices that cut n images into micro-batches of `micro` images; one slice without `micro`."""
    micro = min(micro or n, n)
    return [slice(start, start + micro) for start in range(0, n, micro)]


@functools.cache
def side_stream(device):
    """The stream of this device on which CUDA graphs are warmed up and recorded.

    Memory belongs to the stream that asked for it, so that every further stream would need as much."""
    return torch.cuda.Stream(device)


def bn_buffers(net):
    """[(module, 'running_mean' or 'running_var')] of every batch norm that keeps statistics."""
    found = []
    for module in net.modules():
        if isinstance(module, BatchNorm) and module.running_mean is not None:
            found += [(module, 'running_mean'), (module, 'running_var')]
    return found


class Flat:
    """A network whose parameters are views of one vector w, and their gradients views of another vector, g.

    net: already on its device and in its memory format, because a later .to() or deepcopy drops the views.
    lr, betas, eps: of Adam; without lr the network is not trained (the averaged generator).
    masks: {parameter name: bool tensor}, True where a weight is alive.  The other weights stay exactly 0.
    graph: record the backward pass as a CUDA graph.
    share_sn: compute W / sigma(W) of spectral normalisation once per update, for all passes of that update.

    A parameter requires a gradient only inside an update of its own network.  A step of D therefore builds no
    graph through G, and needs no detach.  The caller sets `now` to the number of the step, which `first_bad`
    reports; it counts from 1."""

    def __init__(self, net, lr=None, betas=(0., .9), eps=1e-8, masks=None, graph=False, share_sn=True):
        self.net = net
        self.masks = masks or {}
        self.graph = graph
        self.share_sn = share_sn
        self.calls = weakref.WeakKeyDictionary()      # of `replay`: weak, because f holds this network, too
        self.graphs = weakref.WeakKeyDictionary()
        self.dense_g = None                           # see `update`
        self.now = 1

        # Where each tensor lies in the vectors w and g: {name: (shape, stride, offset)}
        self.layout = {}
        size = 0
        for name, p in net.named_parameters():
            self.layout[name] = (p.shape, p.stride(), size)
            blocks = -(-p.numel() // ALIGN)           # rounded up
            size += blocks * ALIGN

        # The ranks average one bucket: [gradients, loss, BN statistics].
        statistics = bn_buffers(net)
        n_stats = sum(getattr(module, name).numel() for module, name in statistics)
        first = next(net.parameters())
        like = {'dtype': first.dtype, 'device': first.device}
        self.w = torch.nn.Parameter(torch.zeros(size, **like), requires_grad=False)
        self.bucket = torch.zeros(size + 1 + n_stats, **like)
        self.g = self.bucket[:size]
        self.loss = self.bucket[size]
        self.bn_stats = self.bucket[size + 1:]
        self.bad_step = torch.zeros((), dtype=torch.int64, device=first.device)    # see `first_bad`

        self.make_views(statistics)
        self.freeze(())                               # makes the mask of the gradient
        if self.masks:
            self.w.data.mul_(self.gradient_mask)      # theta_0 * m
        self.adam = None
        if lr is not None:
            self.w.grad = self.g
            self.adam = torch.optim.Adam([self.w], lr, betas, eps, fused=True)

    def make_views(self, statistics):
        """Move the parameters and the BN statistics into the vectors, and leave views in their places."""
        for name, p in self.net.named_parameters():
            view = self.view(self.w.data, name)
            view.copy_(p.data)
            p.data = view
            p.grad = self.view(self.g, name)
            p.requires_grad_(False)

        start = 0
        for module, name in statistics:
            old = getattr(module, name)
            stop = start + old.numel()
            view = self.bn_stats[start:stop].copy_(old)
            module._buffers[name] = view.data         # .data: each buffer needs a version counter of its own
            start = stop

        # The vectors u and v of spectral normalisation are not averaged over ranks.
        averaged = {id(module._buffers[name]) for module, name in statistics}
        self.other_buffers = [b for b in self.net.buffers() if id(b) not in averaged]

    def view(self, vector, name):
        """The tensor of the parameter `name` inside a vector that is laid out like w."""
        shape, stride, offset = self.layout[name]
        return vector.as_strided(shape, stride, offset + vector.storage_offset())

    def freeze(self, names):
        """From now on the parameters `names` and the pruned weights stay as they are, and all others move."""
        self.gradient_mask = None
        if not self.masks and not names:
            return
        self.gradient_mask = torch.ones_like(self.g)
        for name, alive in self.masks.items():
            self.view(self.gradient_mask, name).copy_(alive)
        for name in names:
            self.view(self.gradient_mask, name).zero_()

    def remask(self, masks):
        """From now on these weights are alive, {name: bool tensor}.  The others are 0, and their moments, too.

        A weight that comes back starts at 0, and Adam knows nothing of its past.  Ends what `freeze` held."""
        self.masks.update(masks)
        self.freeze(())
        state = self.adam.state.get(self.w, {}) if self.adam else {}
        for vector in (self.w.data, state.get('exp_avg'), state.get('exp_avg_sq')):
            if vector is not None:
                vector.mul_(self.gradient_mask)

    # ---- one update

    def update(self, f, parts=(slice(None),), keep=False):
        """One step of Adam on the mean of f(part) -> loss over the micro-batches `parts`.

        A loss without a graph says that f has run its own backward pass (advaug.backward).
        keep: leave the gradient of all weights, also of the pruned ones, in `dense_g`."""
        with self.requiring_grad():
            if self.graph:
                self.replay(f, parts)
            else:
                self.backward(f, parts)

        ranks = world()[1]
        if ranks > 1:
            dist.all_reduce(self.bucket)
            self.bucket /= ranks

        if keep:
            self.dense_g = self.g.clone()

        # Masks act here: a pruned weight has a zero gradient and zero moments, so Adam leaves it at 0.
        if self.gradient_mask is not None:
            self.g *= self.gradient_mask

        # The guard against NaN: the device remembers the first step that is not finite, and Adam makes no
        # update from then on.  Nothing waits for the device here.
        bad = ~torch.isfinite(self.g.sum() + self.loss)
        is_first = self.bad_step == 0
        self.bad_step += bad * is_first * self.now
        self.adam.found_inf = (self.bad_step > 0).float()
        self.adam.grad_scale = None
        self.adam.step()

    def backward(self, f, parts):
        """Fill g with the mean gradient over the micro-batches, and `loss` with the sum of their losses."""
        self.g *= 0                                   # not zero_(): a NaN stays, and `first_bad` finds it
        self.loss.zero_()
        for part in parts:
            loss = f(part)
            if loss.requires_grad:
                several = len(parts) > 1              # micro-batches share the graph of W / sigma(W)
                loss.backward(retain_graph=several)
            self.loss += loss.detach()
            del loss                                  # frees the rest of the graph before the next part
        if len(parts) > 1:
            self.g /= len(parts)

    def replay(self, f, parts):
        """`backward` as a CUDA graph: a few plain calls on a side stream, then a recording to be replayed.

        The recording reads the tensors that f reads, so the caller fills these in place.  It goes when f goes."""
        self.calls[f] = self.calls.get(f, 0) + 1
        stream = side_stream(self.w.device)
        if self.calls[f] <= WARM_UP:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.backward(f, parts)
            torch.cuda.current_stream().wait_stream(stream)
            return

        if f not in self.graphs:
            # One pool: no graph leaves anything in it that is read after its end.  Thread-local: the thread
            # that reads images ahead may pin memory meanwhile.
            graph = torch.cuda.CUDAGraph()
            pool = next((other.pool() for other in RECORDED), None)
            with torch.cuda.graph(graph, pool, stream, capture_error_mode='thread_local'):
                self.backward(f, parts)
            self.graphs[f] = graph
            RECORDED.add(graph)
        self.graphs[f].replay()

    @contextlib.contextmanager
    def requiring_grad(self):
        """Inside, the parameters require gradients, and W / sigma(W) is computed once (share_sn)."""
        shared = parametrize.cached() if self.share_sn else contextlib.nullcontext()
        parameters = list(self.net.parameters())
        for p in parameters:
            p.requires_grad_(True)
        try:
            with shared:
                yield
        finally:
            for p in parameters:
                p.requires_grad_(False)

    def track(self, other, beta):
        """self <- beta self + (1 - beta) other, for weights and BN statistics; other buffers are copied."""
        self.w.lerp_(other.w, 1 - beta)
        self.bn_stats.lerp_(other.bn_stats, 1 - beta)
        torch._foreach_copy_(self.other_buffers, other.other_buffers)

    def first_bad(self):
        """(step, tensor name) of the first gradient that was not finite, or None.  Waits for the device."""
        step = int(self.bad_step)
        if not step:
            return None
        for name in self.layout:
            if not torch.isfinite(self.view(self.g, name)).all():
                return step, name
        return step, 'the loss'

    # ---- Adam's state in checkpoints: by parameter name, so that no file depends on the layout

    def moments(self):
        """{step, m: {name: tensor}, v: {name: tensor}}."""
        state = self.adam.state.get(self.w)
        if not state:
            return {'step': 0, 'm': {}, 'v': {}}
        m, v = {}, {}
        for name in self.layout:
            m[name] = self.view(state['exp_avg'], name)
            v[name] = self.view(state['exp_avg_sq'], name)
        return {'step': int(state['step']), 'm': m, 'v': v}

    def load_moments(self, saved):
        """Take over what `moments` returned.  Raises KeyError where it lacks a parameter."""
        if not saved['step']:
            return
        m = torch.zeros_like(self.w.data)
        v = torch.zeros_like(self.w.data)
        for name in self.layout:
            self.view(m, name).copy_(saved['m'][name])
            self.view(v, name).copy_(saved['v'][name])
        step = torch.tensor(float(saved['step']), device=self.w.device)
        self.adam.state[self.w] = {'step': step, 'exp_avg': m, 'exp_avg_sq': v}


# ---- batch statistics over all ranks.  torch's SyncBatchNorm needs CUDA; this one runs on the CPU, too.

class SyncNorm(torch.nn.BatchNorm2d):
    """Batch normalisation [N, C, H, W] whose statistics in training are those of all ranks together."""

    def forward(self, x):
        ranks = world()[1]
        if not self.training or ranks == 1:
            return super().forward(x)

        own = x.mean((0, 2, 3), dtype=self.running_mean.dtype)           # [C], fp32 under autocast
        mean = AverageOverRanks.apply(own)
        centred = x - mean[:, None, None]                                # [N, C, H, W]
        own = centred.square().mean((0, 2, 3))                           # [C]
        var = AverageOverRanks.apply(own)

        with torch.no_grad():
            n = x.numel() / x.shape[1] * ranks                           # numbers per channel
            unbiased = var * n / (n - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)

        scale = (var + self.eps).rsqrt()[:, None, None]                  # [C, 1, 1]
        if not self.affine:
            return (centred * scale).to(x.dtype)
        weight = self.weight[:, None, None]
        bias = self.bias[:, None, None]
        return (centred * (scale * weight) + bias).to(x.dtype)


class AverageOverRanks(torch.autograd.Function):
    """The mean of a tensor over ranks.

    The gradient is averaged, too, because what is trained is the mean of the ranks' losses, and each of these
    depends on the mean."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total / world()[1]

    @staticmethod
    def backward(ctx, gradient):
        return AverageOverRanks.forward(ctx, gradient)


def sync_bn_(net):
    """Turn every BatchNorm2d of a network into a SyncNorm, in place."""
    for module in net.modules():
        if type(module) is torch.nn.BatchNorm2d:
            module.__class__ = SyncNorm
