"""SNGAN, the unconditional residual GAN of Miyato et al. 2018, as the paper trains it.

Use:
    import torch
    from sngan import Generator, Discriminator      # models.sngan inside the repository
    G, D = Generator(), Discriminator()             # 32 px, 4,276,739 and 1,053,824 parameters
    h, G2 = G.split(torch.randn(8, 128), 1)         # the feature h = G1(z) [8, 256, 4, 4], and G2(h) == G(z)
    score = D(G2(h))                                # images in [-1, 1] [8, 3, 32, 32] -> logits [8]

Every weight W of D is divided by its largest singular value (Miyato et al. 2018, Eq. 8 and Algorithm 1):
    W_bar = W / sigma(W),   sigma(W) = u^T W v   after one power iteration   v ~ W^T u,   u ~ W v
A power iteration runs in every forward pass in training mode.  All passes share one inside
    with torch.nn.utils.parametrize.cached():

`h, rest = net.split(x, cut)` cuts a network behind its first `cut` stages: h is the feature there, and
rest(h) runs the other stages.  At cut 0, h is the input and rest the whole network.  At the last cut, h is
the output and rest returns h as it is.  A negative cut counts from the end: -1 is in front of the last stage.
AdvAug cuts G at 1 and D at -1.  At 32 px:
    cut   G behind            h                     cut   D behind            h
    0     (z)                 [N, 128]              0     (images)            [N, 3, 32, 32]
    1     to_feature          [N, 256, 4, 4]        1     block1              [N, 128, 16, 16]
    2     block2              [N, 256, 8, 8]        2     block2              [N, 128, 8, 8]
    3     block3              [N, 256, 16, 16]      3     block3              [N, 128, 8, 8]
    4     block4              [N, 256, 32, 32]      4     block4              [N, 128, 8, 8]
    5     to_image            [N, 3, 32, 32]        5     pool                [N, 128]
                                                    6     head                [N]

The layers are those of the authors' released SNGAN.  Two pairs of its layers are computed as one convolution
each, with 4/9 of the multiplications and the same result.  A nearest x2 upsampling and a 3x3 convolution are
a transposed 4x4 convolution of stride 2.  A 3x3 convolution and a 2x2 mean are a 4x4 convolution of stride 2.
The 1x1 convolutions of shortcuts run at the lower one of two resolutions: they commute with the resampling.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize


# ---- spectral normalisation

class SpectralNorm(nn.Module):
    """Parametrization W -> W / sigma(W) in fp32, with one power iteration a call in training mode.

    W is [out, in, k, k] or [out, in].  The buffers are the singular vectors u [out] and v [in k k]."""

    def __init__(self, weight, eps=1e-12):
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


class BlockG(nn.Module):
    """Residual block of G at twice the resolution: BN, ReLU, up, 3x3, BN, ReLU, 3x3; shortcut: up, 1x1."""

    def __init__(self, ch):
        super().__init__()
        self.n1 = nn.BatchNorm2d(ch)
        self.c1 = nn.Conv2d(ch, ch, 3, padding=1)
        self.n2 = nn.BatchNorm2d(ch)
        self.c2 = nn.Conv2d(ch, ch, 3, padding=1)
        self.sc = nn.Conv2d(ch, ch, 1)

    def forward(self, x):                                      # [N, C, H, W]
        h = self.n1(x)
        h = F.relu(h)
        h = up_conv(h, self.c1)                                # [N, C, 2H, 2W]
        h = self.n2(h)
        h = F.relu(h)
        h = self.c2(h)

        return AddDoubled.apply(h, self.sc(x))


class BlockD(nn.Module):
    """Residual block of D: ReLU, 3x3, ReLU, 3x3 and a shortcut.

    first: without the ReLU in front, because the input is the images.  down: both paths end at half the
    resolution, and the shortcut has a 1x1 convolution; otherwise the shortcut is the input."""

    def __init__(self, c_in, ch, first=False, down=False):
        super().__init__()
        self.first = first
        self.down = down
        self.c1 = normalised(nn.Conv2d(c_in, ch, 3, padding=1))
        self.c2 = normalised(nn.Conv2d(ch, ch, 3, padding=1))
        self.sc = normalised(nn.Conv2d(c_in, ch, 1)) if down else nn.Identity()

    def forward(self, x):                                      # [N, c_in, H, W]
        if self.first and x.device.type != 'cpu':              # images that were augmented lie in planes
            x = x.contiguous(memory_format=torch.channels_last)
        h = x if self.first else F.relu(x)
        h = self.c1(h)                                         # [N, C, H, W]
        h = F.relu(h)
        if not self.down:
            return self.c2(h) + x

        h = conv_down(h, self.c2)                              # [N, C, H/2, W/2]
        x = F.avg_pool2d(x, 2)                                 # [N, c_in, H/2, W/2]
        return h + self.sc(x)


# ---- networks

class Cut(nn.Module):
    """A network as a list of stages, which can be cut between any two of them."""

    def split(self, x, cut=0):
        """Return h, the feature of x behind stages[:cut], and rest, the function that runs the others on h.

        rest(h) == self(x) at every cut.  h is fp32 under autocast: AdvAug's steps would drown in bf16."""
        stages = self.stages()
        h = x
        for stage in stages[:cut]:
            h = stage(h)

        def rest(h):
            for stage in stages[cut:]:
                h = stage(h)
            return h

        return full_precision(h), rest

    def forward(self, x):
        h, rest = self.split(x)
        return rest(h)


class Generator(Cut):
    """z ~ N(0, 1) [N, z_dim] -> images in [-1, 1] [N, 3, res, res], fp32.

    Raises ValueError if three doublings do not reach `res`, that is, if it is no multiple of 8."""

    cuts = 5

    def __init__(self, res=32, ch=256, z_dim=128):
        super().__init__()
        if res % 8:
            raise ValueError(f'res {res} is not a multiple of 8')
        self.res = res
        self.ch = ch
        self.z_dim = z_dim
        self.bottom = res // 8                                 # side of the first feature

        self.l1 = nn.Linear(z_dim, ch * self.bottom ** 2)
        self.block2 = BlockG(ch)
        self.block3 = BlockG(ch)
        self.block4 = BlockG(ch)
        self.n5 = nn.BatchNorm2d(ch)
        self.c5 = nn.Conv2d(ch, 3, 3, padding=1)
        initialise(self)

    def stages(self):
        return [self.to_feature, self.block2, self.block3, self.block4, self.to_image]

    def to_feature(self, z):                                   # [N, z_dim]
        h = self.l1(z)
        h = h.view(-1, self.ch, self.bottom, self.bottom)      # [N, C, res/8, res/8]
        return h.contiguous(memory_format=torch.channels_last)

    def to_image(self, h):                                     # [N, C, res, res]
        h = self.n5(h)
        h = F.relu(h)
        h = self.c5(h)                                         # [N, 3, res, res]
        h = full_precision(h)                                  # bf16 resolves half a grey level only
        return torch.tanh(h)

    def slimmable(self):
        """The channels that network slimming may remove, by the names of parameters.

        {scale of a batch norm: (convolution in front, convolution behind)}.  The convolution in front is None
        where a shortcut uses its output, too, so that its filters must stay."""
        pairs = {}
        for block in ('block2', 'block3', 'block4'):
            pairs[f'{block}.n1.weight'] = None, f'{block}.c1.weight'
            pairs[f'{block}.n2.weight'] = f'{block}.c1.weight', f'{block}.c2.weight'
        pairs['n5.weight'] = None, 'c5.weight'
        return pairs


class Discriminator(Cut):
    """Images in [-1, 1] [N, 3, H, W] -> logits [N], fp32."""

    cuts = 6

    def __init__(self, ch=128):
        super().__init__()
        self.ch = ch
        self.block1 = BlockD(3, ch, first=True, down=True)
        self.block2 = BlockD(ch, ch, down=True)
        self.block3 = BlockD(ch, ch)
        self.block4 = BlockD(ch, ch)
        self.l5 = normalised(nn.Linear(ch, 1, bias=False))
        initialise(self)

    def stages(self):
        return [self.block1, self.block2, self.block3, self.block4, self.pool, self.head]

    def pool(self, h):                                         # [N, C, H/4, W/4]
        h = F.relu(h)
        h = full_precision(h)
        return h.sum((2, 3))                                   # [N, C]: a sum, not a mean, as released

    def head(self, h):                                         # [N, C]
        # Without autocast: AdvAug moves h by 0.01, which bf16 would round away.
        with torch.autocast(h.device.type, enabled=False):
            h = full_precision(h)
            return self.l5(h).flatten()                        # [N]


def initialise(net):
    """The released initialisation: convolutions xavier_uniform, gains of BN N(1, 0.02), the rest torch's."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = stored_weight(module)
            nn.init.xavier_uniform_(weight)
            # Reading a normalised weight runs a first power iteration: eval mode works from the start.
            if weight.device.type != 'meta':
                module.weight
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1., .02)
