"""BigGAN: the class-conditional residual GAN of Brock et al. 2019, in the variant that the paper trains.

Use:
    import torch
    from biggan import Generator, Discriminator     # models.biggan inside the repository
    G, D = Generator(), Discriminator()             # 32 px, 10 classes, 9,416,196 and 2,415,170 parameters
    z, y = torch.randn(8, G.z_dim), torch.arange(8)
    h, G2 = G.split(z, y, 1)                        # h = G1(z) [8, 384, 4, 4] and G2, so that G2(h) == G(z, y)
    score = D(G2(h), y)                             # images in [-1, 1] [8, 3, 32, 32] -> logits [8]

z is cut into chunks of 20: the first makes the 4x4 feature, the others enter one block each, in its condition c, beside
the class embedding e, which the blocks share.  D is a projection discriminator (Miyato and Koyama 2018):
    c_i = [e(y), z_i],   BN(x, c) = (1 + W_g c) (x - mean) / std + W_b c,   D(x, y) = <w + e_D(y), phi(x)> + b
Every matrix but e is spectrally normalised:  W / sigma(W),  sigma(W) = u^T W v  after one power iteration  v ~ W^T u,
u ~ W v  for every training-mode forward, or for every `with torch.nn.utils.parametrize.cached():` around several.

The layers are those of the authors' released BigGAN.  Two of its steps are written as one convolution each, which is
the same function: nearest x2 then 3x3 is a transposed 4x4 of stride 2, and 3x3 then 2x2 mean is a 4x4 of stride 2 (both
with 4/9 of the multiplications); 1x1 shortcuts run at the lower of two resolutions, where they commute with resampling.
"""
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

CHUNK, SHARED, EPS = 20, 128, 1e-4               # z per block, class embedding, BN's eps: as released
SHAPES = {                                       # (res, narrow): default ch; widths / ch of G and of D; halvings in D
    (32, False): (96, (4, 4, 4, 4), (2, 2, 2, 2), 2),
    (64, False): (80, (16, 16, 8, 4, 2), (2, 4, 8, 16, 16), 4),          # as released and trained by the paper
    (64, True): (80, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 4),             # StudioGAN since November 2020
    (128, False): (96, (16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
}


def shape(res, ch, narrow):
    """ch or its default, the widths of G and of D, and the halvings in D."""
    if (res, narrow) not in SHAPES:
        raise ValueError(f'res {res}, narrow {narrow}: use 32, 64 or 128, and narrow at 64 only')
    default, g, d, halvings = SHAPES[res, narrow]
    ch = default if ch is None else ch
    if ch < 8:
        raise ValueError(f'ch {ch} is below 8, and attention takes an eighth of it')
    return ch, [ch * m for m in g], [ch * m for m in d], halvings


class SpectralNorm(nn.Module):
    """Parametrization W -> W / sigma(W); buffers u [out], v [in k k]. One power iteration in training mode, fp32."""

    def __init__(self, weight, eps=1e-6):
        super().__init__()
        w = weight.detach().flatten(1)                                             # [out, in k k]
        self.eps = eps
        self.register_buffer('u', F.normalize(torch.randn(w.shape[0], device=w.device), dim=0, eps=eps))
        self.register_buffer('v', F.normalize(torch.randn(w.shape[1], device=w.device), dim=0, eps=eps))

    def forward(self, weight):
        with torch.autocast(weight.device.type, enabled=False):                    # bf16 would lose u and v
            w = weight.flatten(1)
            u, v = self.u.clone(), self.v.clone()     # clones: the buffers change before an earlier graph runs backward
            if self.training:
                with torch.no_grad():
                    v = F.normalize(w.t().mv(u), dim=0, eps=self.eps)
                    u = F.normalize(w.mv(v), dim=0, eps=self.eps)
                    self.u.copy_(u), self.v.copy_(v)
            return weight / u.dot(w.mv(v))


def normalised(layer):
    """The layer with its weight under spectral normalisation."""
    return parametrize.register_parametrization(layer, 'weight', SpectralNorm(layer.weight), unsafe=True)


def sn_conv(c_in, c_out, k, bias=True):
    return normalised(nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=bias))


def smear(w):
    """Kernels [o, i, 3, 3] convolved with a 2x2 box of ones [o, i, 4, 4]."""
    k = F.pad(w, (1, 1, 1, 1))
    return k[..., 1:, 1:] + k[..., :-1, 1:] + k[..., 1:, :-1] + k[..., :-1, :-1]


def up_conv(x, conv):
    """3x3 convolution of the nearest x2 upsampling of x, computed at the low resolution."""
    return F.conv_transpose2d(x, smear(conv.weight.flip(2, 3)).transpose(0, 1), conv.bias, stride=2, padding=1)


def conv_down(x, conv):
    """2x2 mean of the 3x3 convolution of x, computed at the low resolution."""
    return F.conv2d(x, smear(conv.weight) / 4, conv.bias, stride=2, padding=1)


def full(x):
    """bf16 as fp32, other precisions as they are."""
    return x.float() if x.dtype == torch.bfloat16 else x


class ConditionalNorm(nn.Module):
    """Batch normalisation whose gain and bias are linear in each sample's condition c [N, c_dim]."""

    def __init__(self, c_dim, ch):
        super().__init__()
        self.norm = nn.BatchNorm2d(ch, eps=EPS, affine=False)
        self.gain = normalised(nn.Linear(c_dim, ch, bias=False))
        self.bias = normalised(nn.Linear(c_dim, ch, bias=False))

    def forward(self, x, c):
        gain, bias = (layer(c)[..., None, None] for layer in (self.gain, self.bias))       # [N, C, 1, 1]
        return torch.addcmul(bias, self.norm(x), 1 + gain)


class Attention(nn.Module):
    """x + gamma o(attention of theta(x) to phi(x) with values g(x)), phi and g max-pooled; gamma starts at 0.

    Scores are not divided by a root. CUDA's fused kernels have no second derivative: for a gradient penalty there, say
    torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)."""

    def __init__(self, ch):
        super().__init__()
        self.theta, self.phi = sn_conv(ch, ch // 8, 1, bias=False), sn_conv(ch, ch // 8, 1, bias=False)
        self.g, self.o = sn_conv(ch, ch // 2, 1, bias=False), sn_conv(ch // 2, ch, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x):                                                          # [N, C, H, W]
        features = self.theta(x), F.max_pool2d(self.phi(x), 2), F.max_pool2d(self.g(x), 2)
        q, k, v = (h.flatten(2).transpose(1, 2)[:, None] for h in features)        # [N, 1, HW or HW/4, C/8 or C/2]
        h = F.scaled_dot_product_attention(q, k, v, scale=1.)                      # [N, 1, HW, C/2]
        return x + self.gamma * self.o(h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class BlockG(nn.Module):
    """Pre-activation residual block, x2: BN ReLU up conv BN ReLU conv + up 1x1, both BN under the condition c."""

    def __init__(self, c_in, ch, c_dim):
        super().__init__()
        self.n1, self.c1 = ConditionalNorm(c_dim, c_in), sn_conv(c_in, ch, 3)
        self.n2, self.c2 = ConditionalNorm(c_dim, ch), sn_conv(ch, ch, 3)
        self.sc = sn_conv(c_in, ch, 1)

    def forward(self, x, c):                                                       # [N, c_in, H, W] -> [N, C, 2H, 2W]
        h = self.c2(F.relu(self.n2(up_conv(F.relu(self.n1(x, c)), self.c1), c)))
        return h + F.interpolate(self.sc(x), scale_factor=2., mode='nearest')


class BlockD(nn.Module):
    """Residual block of D, optionally /2; the first one has no ReLU in front. relu_shortcut: x + .. is ReLU(x) + .."""

    def __init__(self, c_in, ch, first=False, down=False, relu_shortcut=False):
        super().__init__()
        self.first, self.down, self.relu_shortcut = first, down, relu_shortcut
        self.c1, self.c2 = sn_conv(c_in, ch, 3), sn_conv(ch, ch, 3)
        self.sc = sn_conv(c_in, ch, 1) if down or c_in != ch else nn.Identity()

    def forward(self, x):                                                          # [N, c_in, H, W] -> [N, C, H', W']
        h = x if self.first else F.relu(x)
        x = h if self.relu_shortcut else x
        h = F.relu(self.c1(h))
        if self.down:
            return conv_down(h, self.c2) + self.sc(F.avg_pool2d(x, 2))
        return self.c2(h) + self.sc(x)


class Cut(nn.Module):
    """A network as a list of stages, with a feature and its continuation at every cut between them."""

    def split(self, x, y, cut=0):
        """h, rest with rest(h) == self(x, y): h the feature after stages[:cut] (slice semantics), fp32 under autocast.

        y: classes [N], int64. rest holds y and, in G, the chunks of z that enter the blocks, whatever becomes of h."""
        stages = self.stages(x, y)
        h = x
        for stage in stages[:cut]:
            h = stage(h)

        def rest(h):
            for stage in stages[cut:]:
                h = stage(h)
            return h
        return full(h), rest

    def forward(self, x, y):
        h, rest = self.split(x, y)
        return rest(h)


class Generator(Cut):
    """z ~ N(0, 1) [N, z_dim], classes y [N] -> images in [-1, 1] [N, 3, res, res]; z_dim is 80, 100, 120 by res.

    Stages at 32 px, ch 96: 0 l1 [N, 384, 4, 4] | 1 block [N, 384, 8, 8] | 2 block [N, 384, 16, 16] | 3 attention |
    4 block [N, 384, 32, 32] | 5 BN ReLU conv tanh.  64 px has one block more in front of the attention, 128 px two."""

    def __init__(self, res=32, classes=10, ch=None, narrow=False):
        super().__init__()
        self.ch, widths, _, _ = shape(res, ch, narrow)
        self.res, self.classes = res, classes
        self.z_dim, self.cuts = CHUNK * len(widths), len(widths) + 2
        self.shared = nn.Embedding(classes, SHARED)
        self.l1 = normalised(nn.Linear(CHUNK, widths[0] * 16))
        self.blocks = nn.ModuleList(BlockG(a, b, SHARED + CHUNK) for a, b in zip(widths, widths[1:]))
        self.attention = Attention(widths[-2])
        self.norm, self.rgb = nn.BatchNorm2d(widths[-1], eps=EPS), sn_conv(widths[-1], 3, 3)
        initialise(self)

    def first(self, z):
        return self.l1(z[:, :CHUNK]).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)

    def image(self, h):
        return torch.tanh(full(self.rgb(F.relu(self.norm(h)))))                  # fp32: bf16 has 1/128 grey levels

    def stages(self, z, y):
        e, (_, *chunks) = self.shared(y), z.split(CHUNK, 1)
        *front, last = (partial(block, c=torch.cat((e, chunk), 1))                 # c [N, 148]
                        for block, chunk in zip(self.blocks, chunks, strict=True))
        return [self.first, *front, self.attention, last, self.image]


class Discriminator(Cut):
    """Images in [-1, 1] [N, 3, res, res], classes y [N] -> logits [N], fp32.

    Stages at 32 px, ch 96: 0 block [N, 192, 16, 16] | 1 attention | 2 block [N, 192, 8, 8] | 3 block | 4 block |
    5 ReLU, sum [N, 192] | 6 linear + projection.  64 px has one block more, 128 px two.

    relu_shortcut: the released code's ReLU works in place, so that the shortcuts of all blocks but the first see it."""

    def __init__(self, res=32, classes=10, ch=None, narrow=False, relu_shortcut=False):
        super().__init__()
        self.ch, _, widths, halvings = shape(res, ch, narrow)
        self.res, self.classes, self.cuts = res, classes, len(widths) + 3
        self.blocks = nn.ModuleList(BlockD(a, b, i == 0, i < halvings, relu_shortcut)
                                    for i, (a, b) in enumerate(zip([3, *widths], widths)))
        self.attention = Attention(widths[0])
        self.linear = normalised(nn.Linear(widths[-1], 1))
        self.embed = normalised(nn.Embedding(classes, widths[-1]))
        initialise(self)

    def pool(self, h):
        return full(F.relu(h)).sum((2, 3))                                      # a sum, not a mean, as released

    def head(self, h, y):
        with torch.autocast(h.device.type, enabled=False):                         # AdvAug moves h by 0.01: fp32
            return self.linear(h).flatten() + (self.embed(y) * h).sum(1)

    def stages(self, x, y):
        first, *blocks = self.blocks
        return [first, self.attention, *blocks, self.pool, partial(self.head, y=y)]


def initialise(net):
    """The released initialisation: every weight orthogonal, biases 0."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            weight = module.parametrizations.weight.original if parametrize.is_parametrized(module) else module.weight
            nn.init.orthogonal_(weight)
            if weight.device.type != 'meta':
                module.weight                                  # a first power iteration, for eval mode before training
            if getattr(module, 'bias', None) is not None:
                nn.init.zeros_(module.bias)
