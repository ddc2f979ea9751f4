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

Every parameter of the network is a view of the vector w, and every gradient is a view of the vector g.  The mean over
ranks, the ticket's mask, the guard against NaN, Adam and the moving average are therefore one call each:

    g     <- m * (mean over ranks of grad L)          m in {0, 1}: the mask of the ticket
    w     <- Adam(w, g)                               a weight that starts at 0 with m = 0 stays exactly 0
    ema   <- beta ema + (1 - beta) w

torch's DistributedDataParallel is not used, because it synchronises only what passes through forward(), and AdvAug goes
through net.split(x, cut).
"""
import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn.utils import parametrize

ALIGN = 64  # numbers: every tensor of the vector starts at a 256-byte boundary
BatchNorm = torch.nn.modules.batchnorm._BatchNorm


def world():
    """(rank, number of ranks), as torchrun says."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def micro_batches(n, micro=None):
    """Slices of n images in micro-batches of `micro` images; one slice without `micro`."""
    micro = micro or n
    return [slice(start, start + micro) for start in range(0, n, micro)]


def bn_buffers(net):
    """[(module, 'running_mean' or 'running_var')] of every batch norm that keeps statistics."""
    found = []
    for module in net.modules():
        if isinstance(module, BatchNorm) and module.running_mean is not None:
            found += [(module, 'running_mean'), (module, 'running_var')]
    return found


class Flat:
    """A network whose parameters are views of one vector w, and their gradients views of another vector, g.

    net: already on its device and in its memory format, because a later .to() or deepcopy would drop the views.
    lr, betas, eps: of Adam; without lr the network is not trained (the averaged generator).
    masks: {parameter name: bool tensor}, True for weights that are alive; they are zeroed here and stay exactly 0.
    graph: record the backward pass as a CUDA graph.
    share_sn: compute W / sigma(W) of spectral normalisation once per update, for all passes of that update.

    A parameter requires a gradient only inside an update of its own network.  A step of D therefore builds no graph
    through G, and needs no detach.  The caller sets `now`, the number of the step, for the guard against NaN."""

    def __init__(self, net, lr=None, betas=(0., .9), eps=1e-8, masks=None, graph=False, share_sn=True):
        self.net, self.masks = net, masks or {}
        self.graph, self.share_sn = graph, share_sn
        self.graphs, self.calls = {}, {}
        self.now = 0

        # Where each tensor lies in the vector: name -> (shape, stride, offset)
        self.layout, size = {}, 0
        for name, p in net.named_parameters():
            self.layout[name] = (p.shape, p.stride(), size)
            size += -(-p.numel() // ALIGN) * ALIGN

        # One bucket [gradients, loss, BN statistics] is what the ranks average.
        statistics = bn_buffers(net)
        like = next(net.parameters())
        length = size + 1 + sum(getattr(module, name).numel() for module, name in statistics)
        self.w = torch.nn.Parameter(torch.zeros(size, dtype=like.dtype, device=like.device), requires_grad=False)
        self.bucket = torch.zeros(length, dtype=like.dtype, device=like.device)
        self.g, self.loss, self.bn_stats = self.bucket[:size], self.bucket[size], self.bucket[size + 1:]
        self.bad_step = torch.zeros((), dtype=torch.int64, device=like.device)  # first step that was not finite

        self.make_views(statistics)
        self.freeze(())
        if self.masks:
            self.w.data.mul_(self.gradient_mask)                                   # theta_0 * m
        self.adam = None
        if lr is not None:
            self.w.grad = self.g
            self.adam = torch.optim.Adam([self.w], lr, betas, eps, fused=True)

    def make_views(self, statistics):
        """Move the parameters and the BN statistics into the vectors, and leave views in their places."""
        for name, p in self.net.named_parameters():
            view = self.view(self.w.data, name)
            view.copy_(p.data)
            p.data, p.grad = view, self.view(self.g, name)
            p.requires_grad_(False)

        start = 0
        for module, name in statistics:
            old = getattr(module, name)
            view = self.bn_stats[start:start + old.numel()].copy_(old)
            module._buffers[name] = view.data         # .data: each buffer needs a version counter of its own
            start += old.numel()

        averaged = {id(module._buffers[name]) for module, name in statistics}
        self.other_buffers = [b for b in self.net.buffers() if id(b) not in averaged]  # u, v of sigma: not averaged

    def view(self, vector, name):
        """The tensor of the parameter `name` inside a vector that is laid out like w."""
        shape, stride, offset = self.layout[name]
        return vector.as_strided(shape, stride, offset + vector.storage_offset())

    def freeze(self, names):
        """From now on the parameters `names` and the pruned weights do not move, and all others do."""
        self.gradient_mask = None
        if not self.masks and not names:
            return
        self.gradient_mask = torch.ones_like(self.g)
        for name, alive in self.masks.items():
            self.view(self.gradient_mask, name).copy_(alive)
        for name in names:
            self.view(self.gradient_mask, name).zero_()

    # ---- one update

    def update(self, f, parts=(slice(None),)):
        """One step of Adam on the mean of f(part) -> loss over the micro-batches `parts`.

        A loss without a graph says that f has run its own backward pass (advaug.backward)."""
        shared = parametrize.cached() if self.share_sn else contextlib.nullcontext()
        with self.requiring_grad(), shared:
            if self.graph:
                self.replay(f, parts)
            else:
                self.backward(f, parts)

        ranks = world()[1]
        if ranks > 1:
            dist.all_reduce(self.bucket)
            self.bucket /= ranks

        # Masks act here: a pruned weight has a zero gradient and zero moments, so Adam leaves it at 0.
        if self.gradient_mask is not None:
            self.g *= self.gradient_mask

        # The first step that is not finite is remembered on the device, and no update is made from then on.
        bad = ~torch.isfinite(self.g.sum() + self.loss)
        self.bad_step += bad * (self.bad_step == 0) * self.now
        self.adam.found_inf = (self.bad_step > 0).float()
        self.adam.grad_scale = None
        self.adam.step()

    def backward(self, f, parts):
        """Fill g with the mean gradient over the micro-batches, and `loss` with the sum of their losses."""
        self.g *= 0                                   # not zero_(): a NaN stays, and names its tensor later
        self.loss.zero_()
        for part in parts:
            loss = f(part)
            if loss.requires_grad:
                loss.backward(retain_graph=len(parts) > 1)     # micro-batches share the graph of W / sigma(W)
            self.loss += loss.detach()
            del loss                                  # frees the rest of the graph before the next part
        if len(parts) > 1:
            self.g /= len(parts)

    def replay(self, f, parts):
        """`backward` as a CUDA graph: three plain calls on a side stream, then one recording, which is replayed."""
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
    def requiring_grad(self):
        """The parameters require gradients inside."""
        parameters = list(self.net.parameters())
        for p in parameters:
            p.requires_grad_(True)
        yield
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
        m = {name: self.view(state['exp_avg'], name) for name in self.layout}
        v = {name: self.view(state['exp_avg_sq'], name) for name in self.layout}
        return {'step': int(state['step']), 'm': m, 'v': v}

    def load_moments(self, saved):
        """Take over what `moments` returned."""
        if not saved['step']:
            return
        m, v = torch.zeros_like(self.w.data), torch.zeros_like(self.w.data)
        for vector, tensors in ((m, saved['m']), (v, saved['v'])):
            for name, value in tensors.items():
                self.view(vector, name).copy_(value)
        step = torch.tensor(float(saved['step']), device=self.w.device)
        self.adam.state[self.w] = {'step': step, 'exp_avg': m, 'exp_avg_sq': v}


# ---- batch statistics over all ranks.  torch's SyncBatchNorm needs CUDA; this one also runs on the CPU, with gloo.

class SyncNorm(torch.nn.BatchNorm2d):
    """Batch normalisation [N, C, H, W] whose statistics in training are those of all ranks together."""

    def forward(self, x):
        ranks = world()[1]
        if not self.training or ranks == 1:
            return super().forward(x)

        mean = AverageOverRanks.apply(x.mean((0, 2, 3), dtype=self.running_mean.dtype))  # [C], fp32 under autocast
        centred = x - mean[:, None, None]                                          # [N, C, H, W]
        var = AverageOverRanks.apply(centred.square().mean((0, 2, 3)))             # [C]

        with torch.no_grad():
            n = x.numel() / x.shape[1] * ranks
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)

        scale = (var + self.eps).rsqrt()[:, None, None]                            # [C, 1, 1]
        if not self.affine:
            return (centred * scale).to(x.dtype)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return (centred * (scale * weight) + bias).to(x.dtype)


class AverageOverRanks(torch.autograd.Function):
    """The mean of a tensor over ranks.

    The gradient is averaged, too: each rank's loss depends on the mean, and the mean of the losses is what is trained."""

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
