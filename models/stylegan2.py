"""StyleGAN2: the style-based GAN of Karras et al. 2020, with the layers of its ADA release (Karras et al. 2020b).

Use:
    import torch
    from stylegan2 import Generator, Discriminator  # models.stylegan2 inside the repository
    G, D = Generator(32, 4096), Discriminator(32, 4096)             # small; the defaults are those of 256 px
    z = torch.randn(8, G.z_dim)
    h, G2 = G.split(z, cut=1)                       # h = w of every layer [8, 8, 512] and G2, so that G2(h) == G(z)
    score = D(G2(h))                                # images, about [-1, 1] [8, 3, 32, 32] -> logits [8]
    G.eval().noise = 'const'                        # the stored noise instead of a fresh one
    x = G.synthesis(G.styles(z, psi=.7))            # truncated: w_avg + .7 (w - w_avg)

Mapping z -> w -> style s = A w per layer.  A convolution of G sees weights scaled by s, then demodulated:
    W'_noikk = W_oikk s_ni,   y = conv(x, W' d),   d_no = (sum_ikk W'^2 + 1e-8)^(-1/2)
which is d conv(x s, W), one convolution for the whole batch.  Every stored weight has unit variance and is scaled at
run time (equalised learning rate: effective_gain).  Activations are sqrt(2) lrelu(x), slope .2.  Resampling is by the
FIR [1, 3, 3, 1] in each direction.  G sums the images of all resolutions; D is residual.

Parameters are named as in the release, so that its weights load (models/convert_nvidia.py).  Its clamp of activations
at 256 and its normalisation of weights and styles belong to fp16 and are left out: this file runs in fp32 and bf16.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

EPS, SLOPE, GAIN = 1e-8, .2, math.sqrt(2)            # of every normalisation; of the leaky ReLU


def widths(res, ch_base, ch_max):
    """{r: channels at r px} for r = 4, 8, ..., res."""
    if res < 8 or res & (res - 1):
        raise ValueError(f'res {res} is not a power of two from 8 on')
    return {2 ** i: max(min(ch_base >> i, ch_max), 1) for i in range(2, res.bit_length())}


def full(x):
    """bf16 as fp32, other precisions as they are."""
    return x.float() if x.dtype == torch.bfloat16 else x


def island(x):
    """The context of what stays in fp32 under autocast."""
    return torch.autocast(x.device.type, enabled=False)


def normalise(x):
    """x [N, C] with mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt()


def activate(x, bias):
    """lrelu(x + bias [C]), in place; sqrt(2) is in both already, as lrelu(a x) = a lrelu(x) for a > 0."""
    x += bias.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
    return F.leaky_relu(x, SLOPE, inplace=True)


class Trilinear(torch.autograd.Function):
    """The form <conv(x, w), g> derived by the one of x, w, g that is None: convolution, weight gradient, or transpose.

    Closed under differentiation: whatever the order, only these three run.  torch's own second derivative turns the
    weight gradient into a convolution with kernels as large as the image, and loops over groups.  The stride must
    fit: H + 2 pad - k a multiple of it, so that the three sizes determine each other."""

    @staticmethod
    def forward(ctx, stride, pad, groups, *t):
        ctx.how, (x, w, g) = (stride, pad, groups), t
        ctx.save_for_backward(*t)
        with island(x if w is None else w):
            if g is None:
                return F.conv2d(x, w, None, stride, pad, 1, groups)
            if x is None:
                return F.conv_transpose2d(g, w, None, stride, pad, 0, groups)
            if x.device.type == 'cpu':                      # oneDNN: channels_last takes 2 to 4 times as long
                x, g = x.contiguous(), g.contiguous()
            k = x.shape[2] + 2 * pad - stride * (g.shape[2] - 1)
            return torch.nn.grad.conv2d_weight(x, (g.shape[1], x.shape[1] // groups, k, k), g, stride, pad, 1, groups)

    @staticmethod
    def backward(ctx, d):
        t = ctx.saved_tensors
        nodes = iter(ctx.next_functions)
        wanted = [v is not None and needed(next(nodes)[0]) for v in t]
        t = [d if v is None else v for v in t]
        return None, None, None, *(Trilinear.apply(*ctx.how, *(None if i == j else v for j, v in enumerate(t)))
                                   if wanted[i] else None for i in range(3))


def needed(node):
    """Whether this backward pass goes on to a node of the graph: R1 and path length skip the gradients of weights."""
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:                                    # a leaf that autograd.grad asks for
        return True


def trilinear(x, w, g, stride=1, pad=0, groups=1):
    """The form <conv(x, w), g> derived by the one that is None; under autocast in its precision."""
    device = (g if x is None else x).device.type
    if torch.is_autocast_enabled(device):
        x, w, g = (v if v is None else v.to(torch.get_autocast_dtype(device)) for v in (x, w, g))
    return Trilinear.apply(stride, pad, groups, x, w, g)


def conv(x, w, stride=1, pad=0, groups=1):
    """[N, I, H, W], [O, I / groups, k, k] -> [N, O, H', W']."""
    return trilinear(x, w, None, stride, pad, groups)


def conv_transpose(x, w, stride=1, pad=0, groups=1):
    """[N, I, H, W], [I, O / groups, k, k] -> [N, O, H', W']."""
    return trilinear(None, w, x, stride, pad, groups)


class Fir(nn.Module):
    """The low-pass [1, 3, 3, 1] / 8 in both directions, on every channel; a constant outside the state dict."""

    def __init__(self):
        super().__init__()
        f = torch.tensor([1., 3., 3., 1.]) / 8
        self.register_buffer('f', f.outer(f), persistent=False)

    def taps(self, x):
        return self.f.to(x.dtype).expand(x.shape[1], 1, 4, 4)

    def forward(self, x, pad, stride=1, gain=1.):
        return conv(x, gain * self.taps(x), stride, pad, x.shape[1])

    def up(self, x):                                                               # [N, C, H, W] -> [N, C, 2H, 2W]
        return conv_transpose(x, 4 * self.taps(x), 2, 1, x.shape[1])


class Linear(nn.Module):
    """x (gain W)^T + lr b with gain = lr / sqrt(n_in); act: then sqrt(2) lrelu."""

    def __init__(self, n_in, n_out, act=False, lr=1., bias=0.):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr)
        self.bias = nn.Parameter(torch.full((n_out,), bias))
        self.act, self.lr, self.gain = act, lr, lr / math.sqrt(n_in)

    def forward(self, x):                                                          # [N, n_in] -> [N, n_out]
        a = GAIN if self.act else 1.
        weight, bias = self.weight * (self.gain * a), self.bias * (self.lr * a)
        return activate(F.linear(x, weight), bias) if self.act else F.linear(x, weight, bias)


class Mapping(nn.Module):
    """z [N, z_dim], classes y [N] -> w [N, w_dim], fp32; with z_dim 0 it maps the class alone.

    w_avg: moving average of w, the centre of truncation (of G's)."""

    def __init__(self, z_dim, w_dim, classes, layers, average):
        super().__init__()
        self.classes, self.layers = classes, layers
        if classes:
            self.embed = Linear(classes, w_dim)
        for i in range(layers):
            setattr(self, f'fc{i}', Linear(w_dim if i else z_dim + bool(classes) * w_dim, w_dim, act=True, lr=.01))
        if average:
            self.register_buffer('w_avg', torch.zeros(w_dim))

    def forward(self, z=None, y=None):
        like = self.fc0.weight
        with island(like):
            parts = [] if z is None else [normalise(z.to(like.dtype))]
            if self.classes:
                parts.append(normalise(self.embed(F.one_hot(y, self.classes).to(like.dtype))))
            w = torch.cat(parts, 1)
            for i in range(self.layers):
                w = getattr(self, f'fc{i}')(w)
        return w


class Layer(nn.Module):
    """Modulated 3x3 convolution, optionally x2; noise; bias; sqrt(2) lrelu.

    fused: every sample with weights of its own, in a grouped convolution (None: in eval mode, for one sample)."""

    def __init__(self, c_in, c_out, w_dim, res, up=False, fused=None):
        super().__init__()
        self.up, self.fused, self.gain = up, fused, 1 / math.sqrt(9 * c_in)        # demodulation cancels this gain
        self.affine = Linear(w_dim, c_in, bias=1.)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer('noise_const', torch.randn(res, res))
        if up:
            self.fir = Fir()

    def style(self, w):
        """s [N, I] and sqrt(2) d [N, O], fp32."""
        with island(w):
            s = self.affine(w)
            return s, GAIN * (s.square() @ self.weight.square().sum((2, 3)).t() + EPS).rsqrt()

    def conv(self, x, weight, groups=1):
        """x [N, I, H, W], weight [O, I / groups, 3, 3]; x2: zeros between the pixels, true convolution, FIR."""
        if not self.up:
            return conv(x, weight, 1, 1, groups)
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)              # [I, O / groups, 3, 3]
        return self.fir(conv_transpose(x, weight, 2, 0, groups), 1, gain=4.)

    def forward(self, x, w, noise):                          # [N, I, H, W], [N, w_dim], [N or 1, 1, H, W] or None
        s, d = self.style(w)
        if self.fused or (self.fused is None and len(x) == 1 and not self.training):
            weight = self.weight * s[:, None, :, None, None] * d[:, :, None, None, None]            # [N, O, I, 3, 3]
            x = self.conv(x.flatten(0, 1)[None], weight.flatten(0, 1), len(x)).unflatten(1, d.shape)[0]
        else:
            x = self.conv(x * s.to(x.dtype)[..., None, None], self.weight)
            x = x * d.to(x.dtype)[..., None, None]
        if noise is not None:
            x += (noise * (self.noise_strength * GAIN)).to(x.dtype)
        return activate(x, self.bias * GAIN)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation, and bias; fp32, added to the image of half the resolution."""

    def __init__(self, c_in, colors, w_dim):
        super().__init__()
        self.gain = 1 / math.sqrt(c_in)
        self.affine = Linear(w_dim, c_in, bias=1.)
        self.weight = nn.Parameter(torch.randn(colors, c_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(colors))
        self.fir = Fir()

    def forward(self, x, w, image=None):                                           # [N, C, H, W] -> [N, colors, H, W]
        with island(x):
            weight = self.weight.flatten(1) * (self.affine(w) * self.gain)[:, None]                 # [N, colors, C]
            rgb = torch.einsum('nchw,noc->nohw', full(x), weight) + self.bias[:, None, None]
            return rgb if image is None else rgb + self.fir.up(image)


class BlockG(nn.Module):
    """One resolution of G: two layers, the first of them x2, and the image; at 4 px a constant and one layer."""

    def __init__(self, c_in, ch, w_dim, res, colors):
        super().__init__()
        if c_in is None:
            self.const = nn.Parameter(torch.randn(ch, res, res))
        else:
            self.conv0 = Layer(c_in, ch, w_dim, res, up=True)
        self.conv1 = Layer(ch, ch, w_dim, res)
        self.torgb = ToRGB(ch, colors, w_dim)


class Synthesis(nn.Module):
    """ws [N, num_ws, w_dim] -> images [N, colors, res, res].

    noise: 'random' (fresh), 'const' (the stored one) or 'none'. A ToRGB takes the w of the next layer up."""

    def __init__(self, channels, w_dim, colors):
        super().__init__()
        for r, ch in channels.items():
            setattr(self, f'b{r}', BlockG(channels.get(r // 2), ch, w_dim, r, colors))

    def noises(self, n, mode):
        """What every layer adds, in their order: [n or 1, 1, r, r] or None."""
        if mode not in ('random', 'const', 'none'):
            raise ValueError(f'noise {mode!r}: use random, const or none')
        stored = [m.noise_const for m in self.modules() if isinstance(m, Layer)]
        return [None if mode == 'none' else c[None, None] if mode == 'const'
                else torch.randn(n, 1, *c.shape, dtype=c.dtype, device=c.device) for c in stored]

    def stages(self, noise):
        """Functions of (x, ws, image), the first of (ws, None, None), the last to (image, None, None)."""
        blocks = list(self.children())

        def first(ws, *_):
            x = blocks[0].const.expand(len(ws), -1, -1, -1)
            return blocks[0].conv1(x, ws[:, 0], noise[0]), ws, None

        def middle(x, ws, image, i):
            image = blocks[i - 1].torgb(x, ws[:, 2 * i - 1], image)
            x = blocks[i].conv0(x, ws[:, 2 * i - 1], noise[2 * i - 1])
            return blocks[i].conv1(x, ws[:, 2 * i], noise[2 * i]), ws, image

        def last(x, ws, image):
            return blocks[-1].torgb(x, ws[:, -1], image), None, None
        return [first, *(partial(middle, i=i) for i in range(1, len(blocks))), last]

    def forward(self, ws, noise='random'):
        state = ws, None, None
        for stage in self.stages(self.noises(len(ws), noise)):
            state = stage(*state)
        return state[0]


class Generator(nn.Module):
    """z ~ N(0, 1) [N, z_dim], classes y [N] if it has any -> images [N, colors, res, res], about [-1, 1].

    Stages at 256 px: 0 mapping, w per layer [N, 14, w_dim] | 1 const, conv [N, 512, 4, 4] | 2 block [N, 512, 8, 8] |
    ... | 7 block [N, 64, 256, 256] | 8 last ToRGB.  The image so far, w and the noise ride in the continuation.

    At r px it has min(ch_base // r, ch_max) channels. noise: of Synthesis. mixing: probability, in training mode and
    per sample, that the layers from a random one on take the w of a second z. ValueError for another res."""

    def __init__(self, res=256, ch_base=16384, ch_max=512, mapping=8, classes=0, z_dim=512, w_dim=512, colors=3):
        super().__init__()
        channels = widths(res, ch_base, ch_max)
        self.res, self.ch, self.classes, self.z_dim, self.w_dim = res, ch_base, classes, z_dim, w_dim
        self.num_ws, self.cuts = 2 * len(channels), len(channels) + 2
        self.mixing, self.noise, self.w_avg_beta = 0., 'random', .995
        self.miner = nn.Identity()                                                 # MineGAN's, see transfer.py
        self.mapping = Mapping(z_dim, w_dim, classes, mapping, average=True)
        self.synthesis = Synthesis(channels, w_dim, colors)

    def styles(self, z, y=None, psi=1., cutoff=None):
        """w per layer [N, num_ws, w_dim], the first `cutoff` (None: all) truncated: w_avg + psi (w - w_avg)."""
        w = self.mapping(self.miner(z), y)[:, None].repeat(1, self.num_ws, 1)
        if psi != 1:
            w[:, :cutoff] = self.mapping.w_avg.lerp(w[:, :cutoff], psi)
        return w

    def crossover(self, z):
        """A second z and the layers [N, num_ws, 1] that keep the first one; None without mixing."""
        if not (self.training and self.mixing):
            return None
        n, other = len(z), torch.randn_like(z)
        at = torch.randint(1, self.num_ws, (n, 1, 1), device=z.device)
        at = at.where(torch.rand(n, 1, 1, device=z.device) < self.mixing, self.num_ws)
        return other, torch.arange(self.num_ws, device=z.device)[:, None] < at

    def split(self, z, y=None, cut=0):
        """h, rest with rest(h) == self(z, y): h the feature after stages[:cut] (slice semantics), fp32 under autocast.

        Draws the second z and the noise, whatever the cut; moves w_avg once, in training mode."""
        mixed, noise = self.crossover(z), self.synthesis.noises(len(z), self.noise)
        track = iter([self.training])

        def broadcast(z, *_):
            w = self.mapping(self.miner(z), y)
            if next(track, False):
                self.mapping.w_avg.lerp_(w.detach().mean(0), 1 - self.w_avg_beta)
            w = w[:, None].repeat(1, self.num_ws, 1)                               # [N, num_ws, w_dim]
            if mixed:
                other, keep = mixed
                w = w.where(keep, self.mapping(self.miner(other), y)[:, None])
            return w, None, None
        stages = [broadcast, *self.synthesis.stages(noise)]
        h, *side = z, None, None
        for stage in stages[:cut]:
            h, *side = stage(h, *side)

        def rest(h, side=side):
            for stage in stages[cut:]:
                h, *side = stage(h, *side)
            return h
        return full(h), rest

    def forward(self, z, y=None):
        h, rest = self.split(z, y)
        return rest(h)


class Conv(nn.Module):
    """Convolution k x k with bias, optionally FIR and /2; act: then sqrt(2) lrelu; all of it times scale."""

    def __init__(self, c_in, c_out, k, down=False, act=True, scale=1.):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, k, k))
        self.bias = nn.Parameter(torch.zeros(c_out)) if act else None
        self.down, self.act, self.gain, self.scale = down, act, 1 / math.sqrt(c_in * k * k), scale
        if down:
            self.fir = Fir()

    def forward(self, x):                                                          # [N, I, H, W] -> [N, O, H', W']
        a, k = self.scale * (GAIN if self.act else 1.), self.weight.shape[2]
        weight = self.weight * (self.gain * a)
        if not self.down:
            x = conv(x, weight, pad=k // 2)
        elif k == 1:
            x = conv(self.fir(x, 1, stride=2), weight)
        else:
            x = conv(self.fir(x, 2), weight, stride=2)
        return activate(x, self.bias * a) if self.act else x


class BlockD(nn.Module):
    """One resolution of D: two convolutions, the second /2, and a 1x1 shortcut; the first block reads the image."""

    def __init__(self, c_in, ch, c_out, arch):
        super().__init__()
        self.fromrgb = Conv(c_in, ch, 1) if c_in else None
        scale = math.sqrt(.5) if arch == 'resnet' else 1.
        self.conv0, self.conv1 = Conv(ch, ch, 3), Conv(ch, c_out, 3, down=True, scale=scale)
        self.skip = Conv(ch, c_out, 1, down=True, act=False, scale=scale) if arch == 'resnet' else None

    def forward(self, x):                                                          # [N, C, H, W] -> [N, O, H/2, W/2]
        h = self.conv1(self.conv0(x))
        return self.skip(x).add_(h) if self.skip else h


def group_size(n, most):
    """The largest divisor of n up to `most` (None: n)."""
    return next(g for g in range(min(most or n, n), 0, -1) if n % g == 0)


def deviation(x, group):
    """x [N, C, H, W] with one channel more: the standard deviation over groups of samples, averaged over C, H, W.

    group: at most so many samples (None: all), the largest divisor of N; group j has samples j, j + N / group, ..."""
    n = group_size(len(x), group)
    std = (x.unflatten(0, (n, -1)).var(0, correction=0) + EPS).sqrt()              # [N / group, C, H, W]
    std = std.mean((1, 2, 3)).repeat(n)[:, None, None, None]                       # [N, 1, 1, 1]
    return torch.cat((x, std.expand(-1, 1, *x.shape[2:])), 1)


class Epilogue(nn.Module):
    """The 4x4 end of D: standard deviation over the minibatch, a convolution and two linear layers; fp32."""

    def __init__(self, ch, n_out, group):
        super().__init__()
        self.group = group
        self.conv, self.fc, self.out = Conv(ch + 1, ch, 3), Linear(16 * ch, ch, act=True), Linear(ch, n_out)

    def features(self, x):                                                         # [N, C, 4, 4] -> same
        with island(x):
            return self.conv(deviation(full(x), self.group))

    def flat(self, x):                                                             # [N, C, 4, 4] -> [N, C]
        with island(x):
            return self.fc(x.flatten(1))


class Discriminator(nn.Module):
    """Images [N, colors, res, res], classes y [N] if it has any -> logits [N], fp32.

    Stages at 256 px: 0 fromRGB [N, 64, 256, 256] | 1 block [N, 128, 128, 128] | ... | 6 block [N, 512, 4, 4] |
    7 minibatch deviation, conv | 8 linear [N, 512] | 9 linear, and with classes <out, mapping(y)> / sqrt(512).

    arch: resnet, or orig without shortcuts. group: of `deviation`. ValueError for another res or arch."""

    def __init__(self, res=256, ch_base=16384, ch_max=512, classes=0, group=4, arch='resnet', colors=3):
        super().__init__()
        channels = widths(res, ch_base, ch_max)
        if arch not in ('resnet', 'orig'):
            raise ValueError(f'arch {arch!r}: use resnet or orig')
        self.res, self.ch, self.classes = res, ch_base, classes
        self.resolutions, self.cuts = sorted(channels)[:0:-1], len(channels) + 3
        for r in self.resolutions:
            setattr(self, f'b{r}', BlockD(colors if r == res else 0, channels[r], channels[r // 2], arch))
        self.b4 = Epilogue(channels[4], channels[4] if classes else 1, group)
        if classes:
            self.mapping = Mapping(0, channels[4], classes, 8, average=False)

    def head(self, h, y):
        with island(h):
            out = self.b4.out(full(h))
            if self.classes:
                out = out * self.mapping(y=y) / math.sqrt(out.shape[1])
            return out.sum(1)

    def split(self, x, y=None, cut=0):
        """h, rest with rest(h) == self(x, y): h the feature after stages[:cut] (slice semantics), in fp32."""
        blocks = [getattr(self, f'b{r}') for r in self.resolutions]
        stages = [blocks[0].fromrgb, *blocks, self.b4.features, self.b4.flat, partial(self.head, y=y)]
        h = x
        for stage in stages[:cut]:
            h = stage(h)

        def rest(h):
            for stage in stages[cut:]:
                h = stage(h)
            return h
        return full(h), rest

    def forward(self, x, y=None):
        h, rest = self.split(x, y)
        return rest(h)


def effective_gain(net):
    """{parameter name: run-time factor} of every convolution and linear layer: weight * factor is what acts.

    For G's demodulated convolutions it is 1 / sqrt(fan_in), which the original has and its demodulation cancels."""
    return {f'{name}.weight': m.gain for name, m in net.named_modules() if hasattr(m, 'gain')}
