"""StyleGAN2, the style-based GAN of Karras et al. 2020, with the layers of its ADA release.

Use:
    import torch
    from stylegan2 import Generator, Discriminator  # models.stylegan2 inside the repository
    G, D = Generator(32, 4096), Discriminator(32, 4096)             # small; the defaults are those of 256 px
    z = torch.randn(8, G.z_dim)
    ws, G2 = G.split(z, cut=1)                      # the w of every layer [8, 8, 512], and G2(ws) == G(z)
    score = D(G2(ws))                               # images, about [-1, 1] [8, 3, 32, 32] -> logits [8]
    G.eval().noise = 'const'                        # the stored noise instead of a fresh one
    x = G.synthesis(G.styles(z, psi=.7))            # truncated: w_avg + .7 (w - w_avg)

A mapping network turns z into w.  Each convolution of G has weights W_oik and, for every sample, a style
s = A w + b.  The sample is convolved with weights W'' of its own:
    W'_oik  = s_i W_oik                               modulation, Karras et al. 2020, Eq. 1
    W''_oik = W'_oik / sqrt(sum_ik W'_oik^2 + 1e-8)   demodulation, Eq. 3
With d_o = 1 / sqrt(...), this is d conv(s x, W): one convolution for the whole batch.

Every stored weight has unit variance, and is scaled at run time (equalised learning rate: effective_gain).
Activations are sqrt(2) lrelu(x) with slope 0.2.  Resampling is by the filter [1, 3, 3, 1] in each direction.
G sums the images of all resolutions, and D is residual.  Below, Karras et al. 2018 and 2019 are the papers of
the progressive GAN and of StyleGAN.

`h, rest = net.split(x, y, cut)` cuts a network behind its first `cut` stages: h is the feature there, and
rest(h) runs the other stages.  At cut 0, h is the input and rest the whole network.  At the last cut, h is
the output and rest returns h as it is.  A negative cut counts from the end: -1 is in front of the last stage.
AdvAug cuts G at 1 and D at -1, and the path length is a gradient by the h of G's cut 1.  At 256 px:
    cut   G behind             h                      cut   D behind             h
    0     (z)                  [N, 512]               0     (images)             [N, 3, 256, 256]
    1     mapping: w per layer [N, 14, 512]           1     fromrgb of b256      [N, 64, 256, 256]
    2     b4: const, conv1     [N, 512, 4, 4]         2     b256                 [N, 128, 128, 128]
    3     b8                   [N, 512, 8, 8]         3     b128                 [N, 256, 64, 64]
    4     b16                  [N, 512, 16, 16]       4     b64                  [N, 512, 32, 32]
    5     b32                  [N, 512, 32, 32]       5     b32                  [N, 512, 16, 16]
    6     b64                  [N, 256, 64, 64]       6     b16                  [N, 512, 8, 8]
    7     b128                 [N, 128, 128, 128]     7     b8                   [N, 512, 4, 4]
    8     b256                 [N, 64, 256, 256]      8     b4: deviation, conv  [N, 512, 4, 4]
    9     torgb of b256        [N, 3, 256, 256]       9     b4: fc               [N, 512]
                                                      10    head                 [N]

Parameters are named as in the release, so that its weights load (models/convert_nvidia.py).  The release
clamps activations at 256 and normalises weights and styles once more for fp16.  Both are left out here,
because this file runs in fp32 and bf16.
"""
import contextlib
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-8                                                     # under every root
SLOPE = .2                                                     # of the leaky ReLU
GAIN = math.sqrt(2)                                            # behind the leaky ReLU
TAPS = [[1, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]  # of the low-pass filter, times 16


def channels_by_resolution(res, ch_base, ch_max):
    """{r: min(ch_base // r, ch_max)} for r = 4, 8, ..., res, but at least one channel.

    Raises ValueError for a res that is no power of two from 8 on."""
    if res < 8 or res & (res - 1):
        raise ValueError(f'res {res} is not a power of two from 8 on')
    channels = {}
    for i in range(2, res.bit_length()):
        channels[2 ** i] = max(min(ch_base >> i, ch_max), 1)
    return channels


def full_precision(x):
    """bf16 as fp32, other precisions as they are."""
    if x.dtype == torch.bfloat16:
        return x.float()
    return x


def no_autocast(x):
    """The context of what stays in fp32 under autocast, on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def as_it_is(x):
    """The context in which autocast leaves x in its precision; it costs nothing where that is so anyway."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.get_autocast_dtype(device):
        return contextlib.nullcontext()
    return no_autocast(x)


def normalise(x):
    """x [N, C] with mean square 1 in every row (Karras et al. 2018, section 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt()


# ---- convolution with derivatives of every order

class Trilinear(torch.autograd.Function):
    """Given two of input, weight and output gradient, the gradient of <conv(x, w), g> by the third.

    The missing one of x, w, g is None.  Without g the result is the convolution, without x the transposed
    convolution, without w the gradient of the weight.  The derivatives of each are again these three, in
    every order.  In torch's own second derivative, the gradient of the weight becomes a convolution with
    kernels as large as the image, and a loop over groups.  The stride must fit: H + 2 pad - k is a multiple
    of it, so that the size of each of x, w, g follows from the other two.

    The result without g has the bias [O] added, if it is not None."""

    @staticmethod
    def forward(ctx, stride, pad, groups, x, w, g, bias):
        ctx.geometry = stride, pad, groups
        ctx.save_for_backward(x, w, g)
        with as_it_is(w if x is None else x):
            if g is None:
                return F.conv2d(x, w, bias, stride, pad, 1, groups)
            if x is None:
                return transposed(g, w, stride, pad, groups)
            k = x.shape[2] + 2 * pad - stride * (g.shape[2] - 1)
            if k > 1 and x.shape[1] >= 64 and lacks_avx512(x):
                x = x.contiguous()                             # twice as fast as channels_last
            shape = g.shape[1], x.shape[1] // groups, k, k
            return torch.nn.grad.conv2d_weight(x, shape, g, stride, pad, 1, groups)

    @staticmethod
    def backward(ctx, d):
        x, w, g = ctx.saved_tensors

        # ctx.next_functions has a node for each tensor among x, w, g and the bias, in this order.
        nodes = iter(ctx.next_functions)
        needs_x = x is not None and is_executed(next(nodes)[0])
        needs_w = w is not None and is_executed(next(nodes)[0])
        needs_g = g is not None and is_executed(next(nodes)[0])
        needs_bias = ctx.needs_input_grad[-1] and is_executed(next(nodes)[0])

        # The output is the gradient by the missing one, so that d takes its place in the form.
        x, w, g = [d if t is None else t for t in (x, w, g)]
        grad_x = grad_w = grad_g = grad_bias = None
        if needs_x:
            grad_x = Trilinear.apply(*ctx.geometry, None, w, g, None)
        if needs_w:
            grad_w = Trilinear.apply(*ctx.geometry, x, None, g, None)
        if needs_g:
            grad_g = Trilinear.apply(*ctx.geometry, x, w, None, None)
        if needs_bias:
            grad_bias = d.sum((0, 2, 3))
        return None, None, None, grad_x, grad_w, grad_g, grad_bias


def transposed(g, w, stride, pad, groups):
    """Transposed convolution of g [N, O, H, W] with w [O, I / groups, k, k]: [N, I, H', W'].

    It is the gradient of a convolution by its input.  For this, oneDNN has a kernel in bf16 that is twice as
    fast for many channels, and slow for weights that are not in channels_last."""
    if stride > 1 and g.shape[1] >= 128 and g.dtype == torch.bfloat16 and g.device.type == 'cpu':
        size = [stride * (side - 1) + w.shape[2] - 2 * pad for side in g.shape[2:]]
        shape = len(g), w.shape[1] * groups, *size
        w = w.contiguous(memory_format=torch.channels_last)
        return torch.nn.grad.conv2d_input(shape, w, g, stride, pad, 1, groups)
    return F.conv_transpose2d(g, w, None, stride, pad, 0, groups)


def lacks_avx512(x):
    """Whether x is on a CPU without AVX512."""
    return x.device.type == 'cpu' and 'AVX512' not in torch.backends.cpu.get_cpu_capability()


def is_executed(node):
    """Whether this backward pass goes on to a node of the graph.

    The first pass of R1 and of the path length does not go on to weights: no gradient of them is computed."""
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:                                       # a leaf that autograd.grad asks for
        return True


def autocast_precision(*tensors):
    """The tensors in the precision of autocast, or as they are without it."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) for t in tensors]


def conv(x, w, stride=1, pad=0, groups=1, bias=None):
    """Convolution of x [N, I, H, W] with w [O, I / groups, k, k], plus bias [O]: [N, O, H', W']."""
    x, w = autocast_precision(x, w)
    if bias is not None:
        bias = bias.to(x.dtype)
    return Trilinear.apply(stride, pad, groups, x, w, None, bias)


def conv_transpose(x, w, stride=1, pad=0, groups=1):
    """Transposed convolution of x [N, I, H, W] with w [I, O / groups, k, k]: [N, O, H', W']."""
    w, x = autocast_precision(w, x)
    w = w.contiguous(memory_format=torch.channels_last)        # a view with I and O exchanged is slow
    return Trilinear.apply(stride, pad, groups, None, w, x, None)


# ---- the low-pass filter

class LowPass(torch.autograd.Function):
    """x [N, C, H, W], as large, doubled or halved, with the filter [1, 3, 3, 1] / 4 in both directions.

    up 2: a zero behind every pixel, in front of the filter.  down 2: every second pixel, behind the filter.
    pad: the zeros around, 2 with up 2, 1 with down 2, else 1 or 2.  The filter sums to 4, so that up 2 keeps
    the mean.  The filter is symmetric, so that the derivative is again this filter, in every order: up and
    down change places, and 3 - pad zeros are around."""

    @staticmethod
    def forward(ctx, x, up, down, pad):
        ctx.transposed = down, up, 3 - pad
        with as_it_is(x):
            if up == 2:
                return low_pass_double(x)
            if x.device.type == 'cpu':
                return low_pass_convolve(x, down, pad)
            return low_pass_pool(x, down, pad)

    @staticmethod
    def backward(ctx, d):
        return LowPass.apply(d, *ctx.transposed), None, None, None


def low_pass_double(x):
    """The filter with up 2: bilinear interpolation, with zeros instead of copies beyond the border.

    A transposed convolution of single channels takes 30 to 100 times as long on a CPU in bf16."""
    x = F.interpolate(x, scale_factor=2., mode='bilinear')
    x[:, :, ::x.shape[2] - 1].mul_(.75)                        # the first row and the last one
    x[:, :, :, ::x.shape[3] - 1].mul_(.75)
    return x


def low_pass_convolve(x, down, pad):
    """The filter as a convolution of single channels, on a CPU the fastest form at every size."""
    taps = x.new_tensor(TAPS).div_(16)
    taps = taps.expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, taps, None, down, pad, 1, x.shape[1])


def low_pass_pool(x, down, pad):
    """The filter as three means of 2 x 2 pixels, because (1 + z)^3 = 1 + 3 z + 3 z^2 + z^3.

    For GPUs, where convolutions of single channels in channels_last are known to be slow; it is not timed."""
    x = F.avg_pool2d(x, 2, stride=1, padding=1)
    x = F.avg_pool2d(x, 2, stride=1, padding=pad - 1)
    return F.avg_pool2d(x, 2, stride=down, divisor_override=1)  # the sum, 4 times the mean


def low_pass(x, up=1, down=1, pad=1):
    """LowPass in the precision of autocast."""
    x, = autocast_precision(x)
    return LowPass.apply(x, up, down, pad)


# ---- mapping network

class Linear(nn.Module):
    """x (gain W)^T + lr b, with gain = lr / sqrt(n_in).  act: sqrt(2) lrelu of it."""

    def __init__(self, n_in, n_out, act=False, lr=1., bias=0.):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr)
        self.bias = nn.Parameter(torch.full((n_out,), bias))
        self.act = act
        self.lr = lr
        self.gain = lr / math.sqrt(n_in)

    def forward(self, x):                                      # [N, n_in] -> [N, n_out]
        scale = GAIN if self.act else 1.
        bias = self.bias
        if self.lr * scale != 1:
            bias = bias * (self.lr * scale)
        x = x * (self.gain * scale)                            # fewer numbers than the weights
        x = F.linear(x, self.weight, bias)
        if self.act:
            return F.leaky_relu(x, SLOPE, inplace=True)
        return x


class Mapping(nn.Module):
    """z [N, z_dim], classes y [N] -> w [N, w_dim], fp32.  With z_dim 0 it maps the class alone.

    average: with a buffer w_avg, the moving average of w and the centre of truncation."""

    def __init__(self, z_dim, w_dim, classes, layers, average):
        super().__init__()
        self.classes = classes
        self.layers = layers
        n_in = z_dim
        if classes:
            self.embed = Linear(classes, w_dim)
            n_in += w_dim
        for i in range(layers):
            setattr(self, f'fc{i}', Linear(n_in, w_dim, act=True, lr=.01))
            n_in = w_dim
        if average:
            self.register_buffer('w_avg', torch.zeros(w_dim))

    def forward(self, z=None, y=None):
        weight = self.fc0.weight
        with no_autocast(weight):
            parts = []
            if z is not None:
                z = z.to(weight.dtype)
                parts.append(normalise(z))                     # [N, z_dim]
            if self.classes:
                onehot = F.one_hot(y, self.classes)            # [N, classes]
                onehot = onehot.to(weight.dtype)
                parts.append(normalise(self.embed(onehot)))    # [N, w_dim]

            w = torch.cat(parts, 1)
            for i in range(self.layers):
                layer = getattr(self, f'fc{i}')
                w = layer(w)
            return w                                           # [N, w_dim]


# ---- layers of G

class Layer(nn.Module):
    """Modulated 3x3 convolution, then noise, bias and sqrt(2) lrelu.  up: the resolution is doubled.

    fused: each sample is convolved with weights of its own, in one grouped convolution.  Otherwise one
    convolution serves all samples, whose features are scaled in front of it and behind.  None: fused for one
    sample in eval mode."""

    def __init__(self, c_in, c_out, w_dim, res, up=False, fused=None):
        super().__init__()
        self.up = up
        self.fused = fused
        self.gain = 1 / math.sqrt(9 * c_in)                    # for effective_gain: demodulation cancels it
        self.affine = Linear(w_dim, c_in, bias=1.)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer('noise_const', torch.randn(res, res))

    def style(self, w):
        """The style s [N, I] and the demodulation sqrt(2) d [N, O] of w [N, w_dim], fp32."""
        with no_autocast(w):
            s = self.affine(w)
            s_square = s.square()
            w_square = self.weight.square().sum((2, 3))        # [O, I]
            d = (s_square @ w_square.t() + EPS).rsqrt()        # Eq. 3
            return s, GAIN * d

    def conv(self, x, weight, groups=1):
        """The convolution of x [N, I, H, W] with weight [O, I / groups, 3, 3].

        up: zeros between the pixels, true convolution, and the low-pass filter."""
        if not self.up:
            return conv(x, weight, 1, 1, groups)
        weight = weight.unflatten(0, (groups, -1))             # [groups, O / groups, I / groups, 3, 3]
        weight = weight.transpose(1, 2).flatten(0, 1)          # [I, O / groups, 3, 3]
        x = conv_transpose(x, weight, 2, 0, groups)            # [N, O, 2H + 1, 2W + 1]
        return low_pass(x, pad=1)                              # [N, O, 2H, 2W]

    def conv_fused(self, x, s, d):
        """The convolution of every sample of x with its own d W s: the samples are groups of channels."""
        n = len(x)
        weight = self.weight * s[:, None, :, None, None]       # Eq. 1: [N, O, I, 3, 3]
        weight = weight * d[:, :, None, None, None]            # Eq. 3
        x = x.flatten(0, 1)[None]                              # [1, N I, H, W]
        x = self.conv(x, weight.flatten(0, 1), groups=n)       # [1, N O, H', W']
        x = x.unflatten(1, d.shape)[0]                         # [N, O, H', W']
        return x.permute(0, 2, 3, 1).flatten(1, 2)             # [N, H' W', O]

    def conv_scaled(self, x, s, d):
        """The same as d conv(s x, W)."""
        x = x * s.to(x.dtype)[..., None, None]
        x = self.conv(x, self.weight)                          # [N, O, H', W']
        x = x.permute(0, 2, 3, 1).flatten(1, 2)                # [N, H' W', O]
        return x * d.to(x.dtype)[:, None]

    def add_noise(self, x, noise):
        """x [N, H' W', O] plus sqrt(2) times the bias and the noise [N or 1, 1, H', W'] or None, in place."""
        strength = self.noise_strength.expand_as(self.bias)
        terms = torch.stack((self.bias, strength)) * GAIN      # [2, O]
        terms = terms.to(x.dtype)
        if noise is None:
            return x.add_(terms[0])
        noise = noise.flatten(1).expand(x.shape[0], -1)        # [N, H' W']
        noise = noise.to(x.dtype)

        # Two sums: on a GPU, for few pixels, and where x is not channels_last.
        if x.device.type != 'cpu' or noise.shape[1] < 2048 or not x.is_contiguous():
            x += terms[0]
            return x.addcmul_(noise[..., None], terms[1])

        # One matrix product takes half the time of two sums, in bf16 below 32 channels a tenth.
        factors = torch.stack((torch.ones_like(noise), noise), 2)              # [N, H' W', 2]
        return x.baddbmm_(factors, terms.expand(x.shape[0], -1, -1))

    def forward(self, x, w, noise):                            # [N, I, H, W], [N, w_dim], [N or 1, 1, H', W']
        s, d = self.style(w)
        fused = self.fused
        if fused is None:
            fused = len(x) == 1 and not self.training
        if fused:
            features = self.conv_fused(x, s, d)                # [N, H' W', O]
        else:
            features = self.conv_scaled(x, s, d)

        # d holds the factor sqrt(2) of the activation already.  The noise and the bias get it in add_noise.
        features = self.add_noise(features, noise)
        features = F.leaky_relu(features, SLOPE, inplace=True)
        size = [side * (2 if self.up else 1) for side in x.shape[2:]]
        return features.unflatten(1, size).permute(0, 3, 1, 2)  # [N, O, H', W']


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation, and bias, in fp32.

    The result is added to the image of half the resolution, if there is one."""

    def __init__(self, c_in, colors, w_dim):
        super().__init__()
        self.gain = 1 / math.sqrt(c_in)
        self.affine = Linear(w_dim, c_in, bias=1.)
        self.weight = nn.Parameter(torch.randn(colors, c_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(colors))

    def forward(self, x, w, image=None):                       # [N, C, H, W], [N, w_dim], [N, c, H/2, W/2]
        with no_autocast(x):
            weight = self.weight.flatten(1)                    # [colors, C]
            style = self.affine(w) * self.gain                 # [N, C]
            weight = weight * style[:, None]                   # Eq. 1: [N, colors, C]
            pixels = full_precision(x).permute(0, 2, 3, 1)     # [N, H, W, C]
            rgb = torch.baddbmm(self.bias, pixels.flatten(1, 2), weight.mT)    # [N, H W, colors]
            rgb = rgb.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)            # [N, colors, H, W]
            if image is None:
                return rgb
            return rgb + low_pass(image, up=2, pad=2)


class BlockG(nn.Module):
    """The layers of G at one resolution: conv0, which doubles it, conv1 and torgb.

    At 4 px, where c_in is None, a learned constant takes the place of conv0.  Synthesis runs the layers."""

    def __init__(self, c_in, ch, w_dim, res, colors):
        super().__init__()
        if c_in is None:
            self.const = nn.Parameter(torch.randn(ch, res, res))
        else:
            self.conv0 = Layer(c_in, ch, w_dim, res, up=True)
        self.conv1 = Layer(ch, ch, w_dim, res)
        self.torgb = ToRGB(ch, colors, w_dim)


# ---- generator

class Synthesis(nn.Module):
    """ws [N, num_ws, w_dim] -> images [N, colors, res, res].

    noise, which every layer adds: 'random' (fresh in every pass), 'const' (the stored one) or 'none'.  Raises
    ValueError for any other."""

    def __init__(self, channels, w_dim, colors):
        super().__init__()
        self.noise = 'random'
        for res, ch in channels.items():
            c_in = channels.get(res // 2)
            setattr(self, f'b{res}', BlockG(c_in, ch, w_dim, res, colors))

    def draw_noise(self, n, mode):
        """The noise of every layer for n samples, in the order of the layers: [n or 1, 1, r, r] or None."""
        if mode not in ('random', 'const', 'none'):
            raise ValueError(f'noise {mode!r}: use random, const or none')
        noise = []
        for layer in self.modules():
            if not isinstance(layer, Layer):
                continue
            const = layer.noise_const                          # [r, r]
            if mode == 'none':
                noise.append(None)
            elif mode == 'const':
                noise.append(const[None, None])
            else:
                noise.append(torch.randn(n, 1, *const.shape, dtype=const.dtype, device=const.device))
        return noise

    def stages(self, noise):
        """The stages behind the mapping: functions (x, ws, image) -> (x, ws, image), image being that so far.

        The first takes (ws, None, None), and the last returns (image, None, None)."""
        blocks = list(self.children())                         # at 4, 8, ..., res px

        def first(ws, *_):
            bottom = blocks[0]
            x = bottom.const.expand(ws.shape[0], -1, -1, -1)               # [N, C, 4, 4]
            ws = ws.unbind(1)
            return bottom.conv1(x, ws[0], noise[0]), ws, None

        def middle(i, x, ws, image):
            # A torgb shares its w with the layer that follows it.
            image = blocks[i - 1].torgb(x, ws[2 * i - 1], image)
            x = blocks[i].conv0(x, ws[2 * i - 1], noise[2 * i - 1])
            x = blocks[i].conv1(x, ws[2 * i], noise[2 * i])
            return x, ws, image

        def last(x, ws, image):
            return blocks[-1].torgb(x, ws[-1], image), None, None

        middles = [partial(middle, i) for i in range(1, len(blocks))]
        return [first, *middles, last]

    def forward(self, ws, noise=None):
        """The images of ws.  noise None is the network's own, self.noise.

        torch.export takes len() for a constant, and shape[0] for a size that varies."""
        mode = self.noise if noise is None else noise
        state = ws, None, None
        for stage in self.stages(self.draw_noise(ws.shape[0], mode)):
            state = stage(*state)
        return state[0]


class Generator(nn.Module):
    """z ~ N(0, 1) [N, z_dim], classes y [N] if it has any -> images [N, colors, res, res], about [-1, 1].

    At r px the features have min(ch_base // r, ch_max) channels.  mapping: layers of the mapping network.
    The attributes `noise`, see Synthesis, and `mixing` may be set.  mixing is the probability, in training
    mode and for each sample, that all layers from a random one on take the w of a second z.  Raises
    ValueError for a res that is no power of two from 8 on."""

    def __init__(self, res=256, ch_base=16384, ch_max=512, mapping=8, classes=0, z_dim=512, w_dim=512,
                 colors=3):
        super().__init__()
        channels = channels_by_resolution(res, ch_base, ch_max)
        self.res = res
        self.ch = ch_base
        self.classes = classes
        self.z_dim = z_dim
        self.w_dim = w_dim
        self.num_ws = 2 * len(channels)
        self.cuts = len(channels) + 2
        self.mixing = 0.
        self.w_avg_beta = .995

        self.miner = nn.Identity()                             # of MineGAN, see transfer.py
        self.mapping = Mapping(z_dim, w_dim, classes, mapping, average=True)
        self.synthesis = Synthesis(channels, w_dim, colors)

    @property
    def noise(self):
        return self.synthesis.noise

    @noise.setter
    def noise(self, mode):
        self.synthesis.noise = mode

    def styles(self, z, y=None, psi=1., cutoff=None):
        """The w of every layer [N, num_ws, w_dim], truncated: w_avg + psi (w - w_avg).

        Karras et al. 2019, appendix B.  cutoff: the number of layers that are truncated, by default all."""
        w = self.mapping(self.miner(z), y)                     # [N, w_dim]
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if psi != 1:
            ws[:, :cutoff] = self.mapping.w_avg.lerp(ws[:, :cutoff], psi)
        return ws

    def draw_mixing(self, z):
        """A second z, and the layers [N, num_ws, 1] that keep the w of the first one; None without mixing.

        Karras et al. 2019, section 3.1."""
        if not self.training or not self.mixing:
            return None
        n = len(z)
        other = torch.randn_like(z)
        start = torch.randint(1, self.num_ws, (n, 1, 1), device=z.device)
        mixed = torch.rand(n, 1, 1, device=z.device) < self.mixing
        start = start.where(mixed, self.num_ws)                # the first layer with the second w
        layers = torch.arange(self.num_ws, device=z.device)[:, None]
        return other, layers < start

    def split(self, z, y=None, cut=0):
        """Return h, the feature of z behind stages[:cut], and rest, the function that runs the others on h.

        rest(h) == self(z, y) at every cut.  rest holds y, ws, the noise and the image so far.  h is fp32
        under autocast.  The second z and the noise are drawn here, at every cut.  In training mode, w_avg
        moves once."""
        mixing = self.draw_mixing(z)
        noise = self.synthesis.draw_noise(len(z), self.noise)
        moves_average = self.training

        def to_styles(z, *_):
            nonlocal moves_average
            w = self.mapping(self.miner(z), y)                 # [N, w_dim]
            if moves_average:
                # Once in the first pass, also where `rest` starts with this stage and runs several times.
                self.mapping.w_avg.lerp_(w.detach().mean(0), 1 - self.w_avg_beta)
                moves_average = False

            ws = w[:, None].repeat(1, self.num_ws, 1)          # [N, num_ws, w_dim]
            if mixing is not None:
                other, keep = mixing
                w = self.mapping(self.miner(other), y)
                ws = ws.where(keep, w[:, None])
            return ws, None, None

        stages = [to_styles, *self.synthesis.stages(noise)]
        h, *side = z, None, None                               # side: ws and the image so far
        for stage in stages[:cut]:
            h, *side = stage(h, *side)

        def rest(h):
            carried = side
            for stage in stages[cut:]:
                h, *carried = stage(h, *carried)
            return h

        return full_precision(h), rest

    def forward(self, z, y=None):
        h, rest = self.split(z, y)
        return rest(h)


# ---- discriminator

class Conv(nn.Module):
    """k x k convolution with bias and sqrt(2) lrelu, all of it times scale.

    act False: without bias and lrelu.  down: the low-pass filter in front, and half the resolution."""

    def __init__(self, c_in, c_out, k, down=False, act=True, scale=1.):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, k, k))
        self.bias = nn.Parameter(torch.zeros(c_out)) if act else None
        self.down = down
        self.act = act
        self.gain = 1 / math.sqrt(c_in * k * k)
        self.scale = scale

    def forward(self, x):                                      # [N, I, H, W] -> [N, O, H', W']
        scale = self.scale * (GAIN if self.act else 1.)
        bias = self.bias * scale if self.act else None
        if self.down:
            scale = scale / 4                                  # the sum of the filter
        weight = self.weight * (self.gain * scale)

        k = weight.shape[2]
        if not self.down:
            x = conv(x, weight, pad=k // 2, bias=bias)
        elif k == 1:
            x = low_pass(x, down=2)                            # [N, I, H/2, W/2]
            x = conv(x, weight, bias=bias)
        else:
            x = low_pass(x, pad=2)                             # [N, I, H + 1, W + 1]
            x = conv(x, weight, stride=2, bias=bias)
        if self.act:
            return F.leaky_relu(x, SLOPE, inplace=True)
        return x


class BlockD(nn.Module):
    """The layers of D at one resolution: two convolutions, of which the second halves it, and a 1x1 shortcut.

    c_image: channels of the images that the first block reads with fromrgb, 0 for the others."""

    def __init__(self, c_image, ch, c_out, arch):
        super().__init__()
        residual = arch == 'resnet'
        scale = math.sqrt(.5) if residual else 1.              # keeps the variance of the sum
        self.fromrgb = Conv(c_image, ch, 1) if c_image else None
        self.conv0 = Conv(ch, ch, 3)
        self.conv1 = Conv(ch, c_out, 3, down=True, scale=scale)
        self.skip = Conv(ch, c_out, 1, down=True, act=False, scale=scale) if residual else None

    def forward(self, x):                                      # [N, C, H, W] -> [N, O, H/2, W/2]
        h = self.conv0(x)
        h = self.conv1(h)
        if self.skip is None:
            return h
        x = self.skip(x)
        return x.add_(h)


def group_size(n, most):
    """The largest divisor of n up to `most`; for `most` None, n."""
    size = min(most or n, n)
    while n % size:
        size -= 1
    return size


def append_deviation(x, group):
    """x [N, C, H, W] with one channel more: the deviation over groups of samples, averaged over C, H, W.

    Karras et al. 2018, section 3.  group: the most samples of a group, None for all; the largest divisor of N
    up to it is taken.  Group j has the samples j, j + N / group, ..."""
    size = group_size(len(x), group)
    groups = x.unflatten(0, (size, -1))                        # [size, N / size, C, H, W]
    deviation = groups - groups.mean(0)                        # groups.var takes 10 times as long on a CPU
    std = (deviation.square().mean(0) + EPS).sqrt()            # [N / size, C, H, W]
    std = std.mean((1, 2, 3)).repeat(size)                     # [N]
    std = std[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat((x, std), 1)                              # [N, C + 1, H, W]


class Epilogue(nn.Module):
    """The 4x4 end of D in fp32: deviation over the minibatch, a convolution and two linear layers."""

    def __init__(self, ch, n_out, group):
        super().__init__()
        self.group = group
        self.conv = Conv(ch + 1, ch, 3)
        self.fc = Linear(16 * ch, ch, act=True)
        self.out = Linear(ch, n_out)

    def convolve(self, x):                                     # [N, C, 4, 4] -> [N, C, 4, 4]
        with no_autocast(x):
            x = full_precision(x)
            x = append_deviation(x, self.group)                # [N, C + 1, 4, 4]
            return self.conv(x)

    def flatten(self, x):                                      # [N, C, 4, 4] -> [N, C]
        with no_autocast(x):
            return self.fc(x.flatten(1))


class Discriminator(nn.Module):
    """Images [N, colors, res, res], classes y [N] if it has any -> logits [N], fp32.

    With classes, the logit is <out, mapping(y)> / sqrt(C).  At r px the features have min(ch_base // r,
    ch_max) channels.  group: see append_deviation.  arch: resnet, or orig, which has no shortcuts.  Raises
    ValueError for any other arch, and for a res that is no power of two from 8 on."""

    def __init__(self, res=256, ch_base=16384, ch_max=512, classes=0, group=4, arch='resnet', colors=3):
        super().__init__()
        channels = channels_by_resolution(res, ch_base, ch_max)
        if arch not in ('resnet', 'orig'):
            raise ValueError(f'arch {arch!r}: use resnet or orig')
        self.res = res
        self.ch = ch_base
        self.classes = classes
        self.cuts = len(channels) + 3

        self.resolutions = sorted(channels, reverse=True)[:-1]  # res, ..., 8
        for r in self.resolutions:
            c_image = colors if r == res else 0
            setattr(self, f'b{r}', BlockD(c_image, channels[r], channels[r // 2], arch))
        ch = channels[4]
        self.b4 = Epilogue(ch, ch if classes else 1, group)
        if classes:
            self.mapping = Mapping(0, ch, classes, 8, average=False)

    def head(self, h, y):                                      # [N, C], [N] -> [N]
        with no_autocast(h):
            h = full_precision(h)
            out = self.b4.out(h)                               # [N, C], without classes [N, 1]
            if self.classes:
                out = out * self.mapping(y=y) / math.sqrt(out.shape[1])
            return out.sum(1)

    def split(self, x, y=None, cut=0):
        """Return h, the feature of x behind stages[:cut], and rest, the function that runs the others on h.

        rest(h) == self(x, y) at every cut.  h is fp32 under autocast."""
        blocks = [getattr(self, f'b{r}') for r in self.resolutions]
        head = partial(self.head, y=y)
        stages = [blocks[0].fromrgb, *blocks, self.b4.convolve, self.b4.flatten, head]
        h = x
        for stage in stages[:cut]:
            h = stage(h)

        def rest(h):
            for stage in stages[cut:]:
                h = stage(h)
            return h

        return full_precision(h), rest

    def forward(self, x, y=None):
        h, rest = self.split(x, y)
        return rest(h)


def effective_gain(net):
    """{name of a weight: its factor at run time} for every convolution and linear layer.

    For the demodulated convolutions of G the factor is 1 / sqrt(fan_in), as in the original release.
    Demodulation cancels the factor, so that Layer leaves it out."""
    return {f'{name}.weight': module.gain for name, module in net.named_modules() if hasattr(module, 'gain')}
