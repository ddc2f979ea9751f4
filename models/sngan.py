"""SNGAN: the unconditional residual GAN with spectral normalisation of Miyato et al. 2018, as the paper trains it.

Use:
    import torch
    from sngan import Generator, Discriminator      # models.sngan inside the repository
    G, D = Generator(), Discriminator()             # 32 px, 4,276,739 and 1,053,824 parameters
    h, G2 = G.split(torch.randn(8, 128), 1)         # h = G1(z) [8, 256, 4, 4] and G2, so that G2(h) == G(z)
    score = D(G2(h))                                # images in [-1, 1] [8, 3, 32, 32] -> logits [8]

Spectral normalisation:  W_bar = W / sigma(W),  sigma(W) = u^T W v  after one power iteration  v ~ W^T u,  u ~ W v
for every training-mode forward, or for every `with torch.nn.utils.parametrize.cached():` around several of them.

The layers are those of the authors' released SNGAN.  Two of its steps are written as one convolution each, which is
the same function: nearest x2 then 3x3 is a transposed 4x4 of stride 2, and 3x3 then 2x2 mean is a 4x4 of stride 2 (both
with 4/9 of the multiplications); 1x1 shortcuts run at the lower of two resolutions, where they commute with resampling.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize


class SpectralNorm(nn.Module):
    """Parametrization W -> W / sigma(W); buffers u [out], v [in k k]. One power iteration in training mode, fp32."""

    def __init__(self, weight, eps=1e-12):
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


class BlockG(nn.Module):
    """Pre-activation residual block, x2: BN ReLU up conv BN ReLU conv + up 1x1."""

    def __init__(self, ch):
        super().__init__()
        self.n1, self.c1 = nn.BatchNorm2d(ch), nn.Conv2d(ch, ch, 3, padding=1)
        self.n2, self.c2 = nn.BatchNorm2d(ch), nn.Conv2d(ch, ch, 3, padding=1)
        self.sc = nn.Conv2d(ch, ch, 1)

    def forward(self, x):                                                          # [N, C, H, W] -> [N, C, 2H, 2W]
        h = self.c2(F.relu(self.n2(up_conv(F.relu(self.n1(x)), self.c1))))
        return h + F.interpolate(self.sc(x), scale_factor=2., mode='nearest')


class BlockD(nn.Module):
    """Residual block of D, optionally /2; the first one has no ReLU in front."""

    def __init__(self, c_in, ch, first=False, down=False):
        super().__init__()
        self.first, self.down = first, down
        self.c1 = normalised(nn.Conv2d(c_in, ch, 3, padding=1))
        self.c2 = normalised(nn.Conv2d(ch, ch, 3, padding=1))
        self.sc = normalised(nn.Conv2d(c_in, ch, 1)) if down else nn.Identity()

    def forward(self, x):                                                          # [N, c_in, H, W] -> [N, C, H', W']
        h = F.relu(self.c1(x if self.first else F.relu(x)))
        if self.down:
            return conv_down(h, self.c2) + self.sc(F.avg_pool2d(x, 2))
        return self.c2(h) + x


class Cut(nn.Module):
    """A network as a list of stages, with a feature and its continuation at every cut between them."""

    def split(self, x, cut=0):
        """h, rest with rest(h) == self(x): h the feature after stages[:cut] (slice semantics), fp32 under autocast."""
        stages = self.stages()
        h = x
        for stage in stages[:cut]:
            h = stage(h)

        def rest(h):
            for stage in stages[cut:]:
                h = stage(h)
            return h
        return full(h), rest

    def forward(self, x):
        h, rest = self.split(x)
        return rest(h)


class Generator(Cut):
    """z ~ N(0, 1) [N, z_dim] -> images in [-1, 1] [N, 3, res, res]; res is a multiple of 8.

    Stages: 0 l1 [N, ch, res/8, res/8] | 1 block2 | 2 block3 | 3 block4 [N, ch, res, res] | 4 BN ReLU conv tanh."""

    cuts = 5

    def __init__(self, res=32, ch=256, z_dim=128):
        super().__init__()
        if res % 8:
            raise ValueError(f'res {res} is not a multiple of 8')
        self.res, self.ch, self.z_dim, self.bottom = res, ch, z_dim, res // 8
        self.l1 = nn.Linear(z_dim, ch * self.bottom ** 2)
        self.block2, self.block3, self.block4 = BlockG(ch), BlockG(ch), BlockG(ch)
        self.n5, self.c5 = nn.BatchNorm2d(ch), nn.Conv2d(ch, 3, 3, padding=1)
        initialise(self)

    def first(self, z):
        return self.l1(z).view(-1, self.ch, self.bottom, self.bottom).contiguous(memory_format=torch.channels_last)

    def image(self, h):
        return torch.tanh(full(self.c5(F.relu(self.n5(h)))))                     # fp32: bf16 has 1/128 grey levels

    def stages(self):
        return [self.first, self.block2, self.block3, self.block4, self.image]

    def slimmable(self):
        """The channels that network slimming may remove: {batch-norm scale: (convolution in front, or None where the
        shortcut uses its output too; convolution behind)}, by parameter name."""
        pairs = {}
        for b in ('block2', 'block3', 'block4'):
            pairs[f'{b}.n1.weight'] = None, f'{b}.c1.weight'
            pairs[f'{b}.n2.weight'] = f'{b}.c1.weight', f'{b}.c2.weight'
        return {**pairs, 'n5.weight': (None, 'c5.weight')}


class Discriminator(Cut):
    """Images in [-1, 1] [N, 3, H, W] -> logits [N], fp32.

    Stages: 0 block1 [N, ch, H/2, W/2] | 1 block2 [N, ch, H/4, W/4] | 2 block3 | 3 block4 | 4 ReLU, sum [N, ch] |
    5 linear."""

    cuts = 6

    def __init__(self, ch=128):
        super().__init__()
        self.ch = ch
        self.block1, self.block2 = BlockD(3, ch, first=True, down=True), BlockD(ch, ch, down=True)
        self.block3, self.block4 = BlockD(ch, ch), BlockD(ch, ch)
        self.l5 = normalised(nn.Linear(ch, 1, bias=False))
        initialise(self)

    def pool(self, h):
        return full(F.relu(h)).sum((2, 3))                                      # a sum, not a mean, as released

    def head(self, h):
        with torch.autocast(h.device.type, enabled=False):                         # AdvAug moves h by 0.01: fp32
            return self.l5(full(h)).flatten()

    def stages(self):
        return [self.block1, self.block2, self.block3, self.block4, self.pool, self.head]


def initialise(net):
    """The released initialisation: convolutions xavier_uniform, BN gains N(1, 0.02); the rest is torch's default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.parametrizations.weight.original if parametrize.is_parametrized(module) else module.weight
            nn.init.xavier_uniform_(weight)
            if weight.device.type != 'meta':
                module.weight                                  # a first power iteration, for eval mode before training
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1., .02)
