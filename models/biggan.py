"""BigGAN: the class-conditional residual GAN of Brock et al. 2019, in the variant that the paper trains.

Use:
    import torch
    from biggan import Generator, Discriminator     # models.biggan inside the repository
    G, D = Generator(), Discriminator()             # 32 px, 10 classes, 9,416,196 and 2,415,170 parameters
    z, y = torch.randn(8, G.z_dim), torch.arange(8)
    h, G2 = G.split(z, y, 1)                        # h = G1(z, y) [8, 384, 4, 4], and G2(h) == G(z, y)
    score = D(G2(h), y)                             # images in [-1, 1] [8, 3, 32, 32] -> logits [8]

z is cut into chunks of 20 numbers.  The first chunk makes the 4x4 feature.  Each other chunk z_i enters one
block of G, in the condition c_i of the block, beside the embedding e(y) of the class, which all blocks share:
    c_i = [e(y), z_i],   BN(x, c) = (1 + W_g c) (x - mean) / std + W_b c
D is a projection discriminator (Miyato and Koyama 2018), phi(x) being the feature before its last layer:
    D(x, y) = <w + e_D(y), phi(x)> + b
Every matrix W but e is divided by its largest singular value (Miyato et al. 2018, Eq. 8 and Algorithm 1):
    W_bar = W / sigma(W),   sigma(W) = u^T W v   after one power iteration   v ~ W^T u,   u ~ W v
A power iteration runs in every forward pass in training mode.  All passes share one inside
    with torch.nn.utils.parametrize.cached():

`h, rest = net.split(x, y, cut)` cuts a network behind its first `cut` stages: h is the feature there, and
rest(h) runs the other stages.  At cut 0, h is the input and rest the whole network.  At the last cut, h is
the output and rest returns h as it is.  A negative cut counts from the end: -1 is in front of the last stage.
AdvAug cuts G at 1 and D at -1.  At 32 px:
    cut   G behind            h                     cut   D behind            h
    0     (z)                 [N, 80]               0     (images)            [N, 3, 32, 32]
    1     to_feature          [N, 384, 4, 4]        1     blocks[0]           [N, 192, 16, 16]
    2     blocks[0]           [N, 384, 8, 8]        2     attention           [N, 192, 16, 16]
    3     blocks[1]           [N, 384, 16, 16]      3     blocks[1]           [N, 192, 8, 8]
    4     attention           [N, 384, 16, 16]      4     blocks[2]           [N, 192, 8, 8]
    5     blocks[2]           [N, 384, 32, 32]      5     blocks[3]           [N, 192, 8, 8]
    6     to_image            [N, 3, 32, 32]        6     pool                [N, 192]
                                                    7     head                [N]
At 64 px G has one block more in front of its attention, and D one block more behind its own; at 128 px two.

The layers are those of the authors' released BigGAN.  Two pairs of its layers are computed as one convolution
each, with 4/9 of the multiplications and the same result.  A nearest x2 upsampling and a 3x3 convolution are
a transposed 4x4 convolution of stride 2.  A 3x3 convolution and a 2x2 mean are a 4x4 convolution of stride 2.
The 1x1 convolutions of shortcuts run at the lower one of two resolutions: they commute with the resampling.
"""
from collections import namedtuple
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

# As released: numbers of z per block, size of the class embedding, eps of batch normalisation.
CHUNK = 20
SHARED = 128
EPS = 1e-4

# ch: the default width.  G, D: channels of the features, in units of ch.  halvings: blocks of D that halve.
Size = namedtuple('Size', 'ch G D halvings')
SIZES = {                                                      # by (res, narrow)
    (32, False): Size(96, (4, 4, 4, 4), (2, 2, 2, 2), 2),
    (64, False): Size(80, (16, 16, 8, 4, 2), (2, 4, 8, 16, 16), 4),        # as released, and in the paper
    (64, True): Size(80, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 4),           # StudioGAN since November 2020
    (128, False): Size(96, (16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
}


def network_size(res, ch, narrow):
    """The Size of a network with G and D in channels; ch None is the default.

    Raises ValueError for a size that was not released, and for a ch too small for the attention."""
    if (res, narrow) not in SIZES:
        raise ValueError(f'res {res}, narrow {narrow}: use 32, 64 or 128, and narrow at 64 only')
    size = SIZES[res, narrow]
    if ch is None:
        ch = size.ch
    if ch < 8:
        raise ValueError(f'ch {ch} is below 8, and attention takes an eighth of it')

    channels_g = [ch * width for width in size.G]
    channels_d = [ch * width for width in size.D]
    return Size(ch, channels_g, channels_d, size.halvings)


# ---- spectral normalisation

class SpectralNorm(nn.Module):
    """Parametrization W -> W / sigma(W) in fp32, with one power iteration a call in training mode.

    W is [out, in, k, k] or [out, in].  The buffers are the singular vectors u [out] and v [in k k]."""

    def __init__(self, weight, eps=1e-6):
        super().__init__()
        matrix = weight.detach().flatten(1)                    # [out, in k k]
        u = torch.randn(matrix.shape[0], device=matrix.device)
        v = torch.randn(matrix.shape[1], device=matrix.device)
        self.eps = eps
        self.register_buffer('u', F.normalize(u, dim=0, eps=eps))
        self.register_buffer('v', F.normalize(v, dim=0, eps=eps))

    def forward(self, weight):
        # Without autocast: u and v would lose their direction in bf16.
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)                         # [out, in k k]

            # Clones, because the buffers change before the graph of an earlier pass runs backward.
            u = self.u.clone()
            v = self.v.clone()

            # Algorithm 1, step 1: v before u, as released.
            if self.training:
                with torch.no_grad():
                    v = F.normalize(matrix.t().mv(u), dim=0, eps=self.eps)
                    u = F.normalize(matrix.mv(v), dim=0, eps=self.eps)
                    self.u.copy_(u)
                    self.v.copy_(v)

            # Algorithm 1, step 2: the gradient flows through W, not through u and v.
            sigma = u.dot(matrix.mv(v))
            return weight / sigma


def normalised(layer):
    """The layer, in place, with its weight under spectral normalisation."""
    norm = SpectralNorm(layer.weight)
    return parametrize.register_parametrization(layer, 'weight', norm, unsafe=True)


def stored_weight(layer):
    """The parameter behind the weight of a layer: W, not W / sigma(W)."""
    if parametrize.is_parametrized(layer):
        return layer.parametrizations.weight.original
    return layer.weight


# ---- layers

def sn_conv(c_in, c_out, k, bias=True):
    """A k x k convolution under spectral normalisation that keeps the resolution."""
    return normalised(nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=bias))


def box_filtered(kernel):
    """A kernel [O, I, 3, 3] convolved with a 2x2 box of ones: [O, I, 4, 4]."""
    k = F.pad(kernel, (1, 1, 1, 1))                            # [O, I, 5, 5]
    total = k[..., 1:, 1:] + k[..., :-1, 1:]
    total = total + k[..., 1:, :-1]
    return total + k[..., :-1, :-1]


def up_conv(x, conv):
    """The 3x3 convolution of the nearest x2 upsampling of x: [N, I, H, W] -> [N, O, 2H, 2W].

    It is computed at the low resolution: the taps that fall on copies of one pixel are added."""
    kernel = box_filtered(conv.weight.flip(2, 3))              # [O, I, 4, 4]
    kernel = kernel.transpose(0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def conv_down(x, conv):
    """The 2x2 mean of the 3x3 convolution of x: [N, I, H, W] -> [N, O, H/2, W/2].

    It is computed at the low resolution: the mean of four shifted 3x3 kernels is one 4x4 kernel."""
    kernel = box_filtered(conv.weight) / 4                     # [O, I, 4, 4]
    return F.conv2d(x, kernel, conv.bias, stride=2, padding=1)


class AddDoubled(torch.autograd.Function):
    """h [N, C, 2H, 2W] + the nearest x2 upsampling of x [N, C, H, W], which is never stored.

    CUDA's autocast would compute the upsampling, and from there all features of G, in fp32."""

    @staticmethod
    def forward(ctx, h, x):
        H, W = x.shape[2:]
        blocks = h.unflatten(3, (W, 2)).unflatten(2, (H, 2))   # [N, C, H, 2, W, 2]
        total = blocks + x[:, :, :, None, :, None]
        return total.flatten(4, 5).flatten(2, 3)               # [N, C, 2H, 2W]

    @staticmethod
    def backward(ctx, gradient):
        return gradient, F.avg_pool2d(gradient, 2, divisor_override=1)     # the sum of each block


def full_precision(x):
    """bf16 as fp32, other precisions as they are."""
    if x.dtype == torch.bfloat16:
        return x.float()
    return x


class ConditionalNorm(nn.Module):
    """Batch normalisation with gain 1 + W_g c and bias W_b c, c [N, c_dim] being the conditions of the
    samples."""

    def __init__(self, c_dim, ch):
        super().__init__()
        self.norm = nn.BatchNorm2d(ch, eps=EPS, affine=False)
        self.gain = normalised(nn.Linear(c_dim, ch, bias=False))
        self.bias = normalised(nn.Linear(c_dim, ch, bias=False))

    def forward(self, x, c):                                   # [N, C, H, W], [N, c_dim]
        gain = self.gain(c)[..., None, None]                   # [N, C, 1, 1]
        bias = self.bias(c)[..., None, None]
        x = self.norm(x)
        return torch.addcmul(bias, x, 1 + gain)


def positions_first(x):
    """A feature [N, C, H, W] as one head of attention over its positions, [N, 1, HW, C]."""
    return x.flatten(2).transpose(1, 2)[:, None]


def padded(x):
    """x [..., C] with zeros behind its channels, up to a multiple of 8."""
    missing = -x.shape[-1] % 8
    return F.pad(x, (0, missing)) if missing else x


class Attention(nn.Module):
    """Self-attention of positions (Zhang et al. 2019, Eq. 1 to 3), at first the identity, as gamma is 0:

        y = x + gamma o(softmax(theta(x)^T phi(x)) g(x))

    phi and g are max-pooled, and scores are not divided by a root, as released.  The fused kernels of CUDA
    have no second derivative.  A gradient penalty on CUDA needs the plain ones, inside
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):"""

    def __init__(self, ch):
        super().__init__()
        self.theta = sn_conv(ch, ch // 8, 1, bias=False)
        self.phi = sn_conv(ch, ch // 8, 1, bias=False)
        self.g = sn_conv(ch, ch // 2, 1, bias=False)
        self.o = sn_conv(ch // 2, ch, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x):                                      # [N, C, H, W]
        theta = self.theta(x)                                  # [N, C/8, H, W]
        phi = F.max_pool2d(self.phi(x), 2)                     # [N, C/8, H/2, W/2]
        g = F.max_pool2d(self.g(x), 2)                         # [N, C/2, H/2, W/2]

        query = positions_first(theta)                         # [N, 1, HW, C/8]
        key = positions_first(phi)                             # [N, 1, HW/4, C/8]
        value = positions_first(g)                             # [N, 1, HW/4, C/2]
        if x.device.type != 'cpu':
            # CUDA's fused kernels take multiples of 8 channels.  Channels of zeros change no score.
            query, key, value = padded(query), padded(key), padded(value)
        h = F.scaled_dot_product_attention(query, key, value, scale=1.)

        h = h[:, 0, :, :g.shape[1]].transpose(1, 2)            # [N, C/2, HW]
        h = h.unflatten(2, x.shape[2:])                        # [N, C/2, H, W]
        return x + self.gamma * self.o(h)


class BlockG(nn.Module):
    """Residual block of G at twice the resolution: BN, ReLU, up, 3x3, BN, ReLU, 3x3; shortcut: up, 1x1.

    Both BN are under the condition c of the block."""

    def __init__(self, c_in, ch, c_dim):
        super().__init__()
        self.n1 = ConditionalNorm(c_dim, c_in)
        self.c1 = sn_conv(c_in, ch, 3)
        self.n2 = ConditionalNorm(c_dim, ch)
        self.c2 = sn_conv(ch, ch, 3)
        self.sc = sn_conv(c_in, ch, 1)

    def forward(self, x, c):                                   # [N, c_in, H, W], [N, c_dim]
        h = self.n1(x, c)
        h = F.relu(h)
        h = up_conv(h, self.c1)                                # [N, C, 2H, 2W]
        h = self.n2(h, c)
        h = F.relu(h)
        h = self.c2(h)

        return AddDoubled.apply(h, self.sc(x))


class BlockD(nn.Module):
    """Residual block of D: ReLU, 3x3, ReLU, 3x3 and a shortcut.

    first: without the ReLU in front, because the input is the images.  down: both paths end at half the
    resolution.  relu_shortcut: the shortcut, too, starts from ReLU(x).  The shortcut has a 1x1 convolution
    where the shape of the feature changes."""

    def __init__(self, c_in, ch, first=False, down=False, relu_shortcut=False):
        super().__init__()
        self.first = first
        self.down = down
        self.relu_shortcut = relu_shortcut
        self.c1 = sn_conv(c_in, ch, 3)
        self.c2 = sn_conv(ch, ch, 3)
        self.sc = sn_conv(c_in, ch, 1) if down or c_in != ch else nn.Identity()

    def forward(self, x):                                      # [N, c_in, H, W]
        if self.first and x.device.type != 'cpu':              # images that were augmented lie in planes
            x = x.contiguous(memory_format=torch.channels_last)
        h = x if self.first else F.relu(x)
        if self.relu_shortcut:
            x = h
        h = self.c1(h)                                         # [N, C, H, W]
        h = F.relu(h)
        if not self.down:
            return self.c2(h) + self.sc(x)

        h = conv_down(h, self.c2)                              # [N, C, H/2, W/2]
        x = F.avg_pool2d(x, 2)                                 # [N, c_in, H/2, W/2]
        return h + self.sc(x)


# ---- networks

class Cut(nn.Module):
    """A network as a list of stages, which can be cut between any two of them."""

    def split(self, x, y, cut=0):
        """Return h, the feature of x behind stages[:cut], and rest, the function that runs the others on h.

        y: the classes [N], int64.  rest(h) == self(x, y) at every cut.  rest holds y and, in G, the chunks of
        z that enter the blocks.  h is fp32 under autocast, because AdvAug's steps would drown in bf16."""
        stages = self.stages(x, y)
        h = x
        for stage in stages[:cut]:
            h = stage(h)

        def rest(h):
            for stage in stages[cut:]:
                h = stage(h)
            return h

        return full_precision(h), rest

    def forward(self, x, y):
        h, rest = self.split(x, y)
        return rest(h)


class Generator(Cut):
    """z ~ N(0, 1) [N, z_dim], classes y [N] -> images in [-1, 1] [N, 3, res, res], fp32.

    z_dim is 80 at 32 px, 100 at 64 px, 120 at 128 px.  Raises ValueError for any other res, and for a z_dim
    of another res."""

    def __init__(self, res=32, classes=10, ch=None, narrow=False):
        super().__init__()
        size = network_size(res, ch, narrow)
        channels = size.G
        self.ch = size.ch
        self.res = res
        self.classes = classes
        self.z_dim = CHUNK * len(channels)
        self.cuts = len(channels) + 2

        self.shared = nn.Embedding(classes, SHARED)
        self.l1 = normalised(nn.Linear(CHUNK, channels[0] * 16))
        self.blocks = nn.ModuleList()
        for c_in, c_out in zip(channels, channels[1:]):
            self.blocks.append(BlockG(c_in, c_out, SHARED + CHUNK))
        self.attention = Attention(channels[-2])
        self.norm = nn.BatchNorm2d(channels[-1], eps=EPS)
        self.rgb = sn_conv(channels[-1], 3, 3)
        initialise(self)

    def stages(self, z, y):
        e = self.shared(y)                                     # [N, 128]
        _, *chunks = z.split(CHUNK, 1)                         # [N, 20] each

        blocks = []
        for block, chunk in zip(self.blocks, chunks, strict=True):
            c = torch.cat((e, chunk), 1)                       # [N, 148]
            blocks.append(partial(block, c=c))

        *front, last = blocks
        return [self.to_feature, *front, self.attention, last, self.to_image]

    def to_feature(self, z):                                   # [N, z_dim]
        h = self.l1(z[:, :CHUNK])
        h = h.unflatten(1, (-1, 4, 4))                         # [N, C, 4, 4]
        return h.contiguous(memory_format=torch.channels_last)

    def to_image(self, h):                                     # [N, C, res, res]
        h = self.norm(h)
        h = F.relu(h)
        h = self.rgb(h)                                        # [N, 3, res, res]
        h = full_precision(h)                                  # bf16 resolves half a grey level only
        return torch.tanh(h)


class Discriminator(Cut):
    """Images in [-1, 1] [N, 3, res, res], classes y [N] -> logits [N], fp32.

    relu_shortcut: the ReLU in front of a block works in place in the released code, so that the shortcuts of
    all blocks but the first see its output.  Raises ValueError for a res other than 32, 64, 128."""

    def __init__(self, res=32, classes=10, ch=None, narrow=False, relu_shortcut=False):
        super().__init__()
        size = network_size(res, ch, narrow)
        channels = size.D
        self.ch = size.ch
        self.res = res
        self.classes = classes
        self.cuts = len(channels) + 3

        self.blocks = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip([3, *channels], channels)):
            first = i == 0
            down = i < size.halvings
            self.blocks.append(BlockD(c_in, c_out, first, down, relu_shortcut))
        self.attention = Attention(channels[0])
        self.linear = normalised(nn.Linear(channels[-1], 1))
        self.embed = normalised(nn.Embedding(classes, channels[-1]))
        initialise(self)

    def stages(self, x, y):
        first, *blocks = self.blocks
        return [first, self.attention, *blocks, self.pool, partial(self.head, y=y)]

    def pool(self, h):                                         # [N, C, 4, 4], at 32 px [N, C, 8, 8]
        h = F.relu(h)
        h = full_precision(h)
        return h.sum((2, 3))                                   # [N, C]: a sum, not a mean, as released

    def head(self, h, y):                                      # [N, C], [N]
        # Without autocast: AdvAug moves h by 0.01, which bf16 would round away.
        with torch.autocast(h.device.type, enabled=False):
            score = self.linear(h).flatten()                   # [N]: <w, h> + b
            projection = (self.embed(y) * h).sum(1)            # [N]: <e_D(y), h>
            return score + projection


def initialise(net):
    """The released initialisation: every weight orthogonal, biases 0."""
    for module in net.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            continue
        weight = stored_weight(module)
        nn.init.orthogonal_(weight)
        # Reading a normalised weight runs a first power iteration: eval mode works from the start.
        if weight.device.type != 'meta':
            module.weight
        if getattr(module, 'bias', None) is not None:
            nn.init.zeros_(module.bias)
