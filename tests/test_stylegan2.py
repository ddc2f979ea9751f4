"""models/stylegan2.py: sizes, splits, equality with the same layers written out slowly, moving averages, second order.

The slow versions read nothing but the state dict, so the two agree on names, orientations and run-time factors too."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from models import stylegan2 as sg

FIR = torch.outer(*[torch.tensor([1., 3, 3, 1], dtype=torch.float64) / 8] * 2)


def small(res=16, classes=0, seed=0, D=(), **G):
    """G, D, z, y, images in float64: narrow, with biases, noise and w_avg that no symmetry hides."""
    torch.manual_seed(seed)
    sizes = dict(res=res, ch_base=48, ch_max=6, classes=classes)                   # 6 channels, 3 at 16 px
    nets = sg.Generator(**sizes, **{**dict(mapping=3, z_dim=5, w_dim=7), **G}), sg.Discriminator(**sizes, **dict(D))
    with torch.no_grad():
        for net in nets:
            for name, t in net.state_dict().items():
                if name.endswith(('bias', 'noise_strength', 'w_avg')):
                    t += .3 * torch.randn_like(t)
    y = torch.tensor([0, 2, 1, 2]) if classes else None
    z, x = torch.randn(4, 5).double(), torch.randn(4, G.get('colors', 3), res, res).double()
    return *(net.double() for net in nets), z, y, x


def close(a, b, tolerance=1e-10):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * max(b.abs().max(), 1), float((a - b).abs().max())


# ---- the same layers, slowly -----------------------------------------------------------------------------------------

def resample(x, kernel, up=1, pads=(0, 0), down=1):
    """Zeros after each pixel, zeros around, true convolution with [O, I, k, k], every down-th pixel."""
    n, c, height, width = x.shape
    size, k = height * up + sum(pads), kernel.shape[2]
    wide = x.new_zeros(n, c, size, width * up + sum(pads))
    wide[:, :, pads[0]:pads[0] + height * up:up, pads[0]:pads[0] + width * up:up] = x
    out = sum(torch.einsum('nchw,oc->nohw', wide[:, :, k - 1 - a:size - a, k - 1 - b:wide.shape[3] - b],
                           kernel[:, :, a, b]) for a in range(k) for b in range(k))
    return out[:, :, ::down, ::down]


def fir(channels):
    return torch.eye(channels, dtype=torch.float64)[:, :, None, None] * FIR


def up_image(x):
    return resample(x, 4 * fir(x.shape[1]), up=2, pads=(2, 1))


def up_conv(x, weight):
    return resample(resample(x, weight, up=2, pads=(2, 1)), 4 * fir(len(weight)), pads=(1, 1))


def same_conv(x, weight):                                                          # correlation, as everywhere in torch
    return resample(x, weight.flip(2, 3), pads=(weight.shape[2] // 2,) * 2)


def down_conv(x, weight):
    if weight.shape[2] == 1:
        return resample(resample(x, fir(x.shape[1]), pads=(1, 1), down=2), weight)
    return resample(resample(x, fir(x.shape[1]), pads=(2, 2)), weight.flip(2, 3), down=2)


def lrelu(x):
    return torch.where(x > 0, x, .2 * x) * math.sqrt(2)


def unit(x):
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def dense(p, name, x, lr=1.):
    return x @ (p[f'{name}.weight'] * lr / math.sqrt(x.shape[1])).t() + p[f'{name}.bias'] * lr


def slow_mapping(p, z=None, y=None):
    parts = [] if z is None else [unit(z)]
    if y is not None:
        onehot = torch.eye(p['mapping.embed.weight'].shape[1], dtype=torch.float64)[y]
        parts.append(unit(dense(p, 'mapping.embed', onehot)))
    w, i = torch.cat(parts, 1), 0
    while f'mapping.fc{i}.weight' in p:
        w, i = lrelu(dense(p, f'mapping.fc{i}', w, .01)), i + 1
    return w


def slow_layer(p, name, x, w, noise=0., up=False):
    """Every sample with weights of its own: scaled by its style, then of unit norm per filter."""
    styles, out = dense(p, f'{name}.affine', w), []
    for image, style in zip(x, styles):
        weight = p[f'{name}.weight'] * style[:, None, None]
        weight = torch.stack([each / (each.square().sum() + 1e-8).sqrt() for each in weight])
        out.append((up_conv if up else same_conv)(image[None], weight))
    return lrelu(torch.cat(out) + p[f'{name}.noise_strength'] * noise + p[f'{name}.bias'][:, None, None])


def slow_rgb(p, name, x, w, image=None):
    weight = p[f'{name}.weight'][:, :, 0, 0] / math.sqrt(x.shape[1])
    rgb = torch.stack([torch.einsum('chw,oc->ohw', each, weight * style)
                       for each, style in zip(x, dense(p, f'{name}.affine', w))]) + p[f'{name}.bias'][:, None, None]
    return rgb if image is None else rgb + up_image(image)


def slow_synthesis(p, ws, noise):
    """noise: what each layer gets, in their order. A ToRGB shares its w with the layer that follows it."""
    const = p['synthesis.b4.const'].expand(len(ws), -1, -1, -1)
    x = slow_layer(p, 'synthesis.b4.conv1', const, ws[:, 0], noise[0])
    image, r = slow_rgb(p, 'synthesis.b4.torgb', x, ws[:, 1]), 8
    while f'synthesis.b{r}.conv0.weight' in p:
        i = 2 * int(math.log2(r)) - 5
        x = slow_layer(p, f'synthesis.b{r}.conv0', x, ws[:, i], noise[i], up=True)
        x = slow_layer(p, f'synthesis.b{r}.conv1', x, ws[:, i + 1], noise[i + 1])
        image, r = slow_rgb(p, f'synthesis.b{r}.torgb', x, ws[:, i + 2], image), 2 * r
    return image


def slow_G(p, z, y, noise):
    return slow_synthesis(p, slow_mapping(p, z, y)[:, None].expand(-1, len(noise) + 1, -1), noise)


def slow_deviation(x, group):
    """Samples j, j + N / g, ... are a group; g is the largest divisor of N up to `group`."""
    n = len(x)
    g = max(g for g in range(1, min(group, n) + 1) if n % g == 0)
    extra = torch.empty(n, 1, *x.shape[2:], dtype=x.dtype)
    for j in range(n // g):
        members = [x[i] for i in range(j, n, n // g)]
        mean = sum(members) / g
        std = (sum((m - mean) ** 2 for m in members) / g + 1e-8).sqrt().mean()
        for i in range(j, n, n // g):
            extra[i] = std
    return torch.cat((x, extra), 1)


def conv(p, name, f, x):
    return f(x, p[f'{name}.weight'] / math.sqrt(p[f'{name}.weight'][0].numel()))


def slow_D(p, x, y=None, group=4):
    def biased(name, f, x):
        return lrelu(conv(p, name, f, x) + p[f'{name}.bias'][:, None, None])
    r = x.shape[2]
    x = biased(f'b{r}.fromrgb', same_conv, x)
    while r > 4:
        h = biased(f'b{r}.conv1', down_conv, biased(f'b{r}.conv0', same_conv, x))
        residual = f'b{r}.skip.weight' in p
        x, r = (h + conv(p, f'b{r}.skip', down_conv, x)) * math.sqrt(.5) if residual else h, r // 2
    h = lrelu(dense(p, 'b4.fc', biased('b4.conv', same_conv, slow_deviation(x, group)).flatten(1)))
    out = dense(p, 'b4.out', h)
    if y is None:
        return out[:, 0]
    return torch.stack([(o * c).sum() / math.sqrt(len(c)) for o, c in zip(out, slow_mapping(p, y=y))])


# ---- sizes and names -------------------------------------------------------------------------------------------------

WIDE = 32768


@pytest.mark.parametrize('res, base, mapping, classes, arch, G_total, D_total, num_ws', [
    (256, 16384, 8, 0, 'resnet', 24767458, 24001089, 14),                          # paper256
    (32, 16384, 2, 0, 'resnet', 19947539, 21507073, 8),                            # auto
    (64, 16384, 2, 0, 'resnet', 22243608, 23407361, 10),
    (128, 16384, 2, 0, 'resnet', 22949277, 23882369, 12),
    (256, 16384, 2, 0, 'resnet', 23191522, 24001089, 14),
    (512, WIDE, 2, 0, 'resnet', 28700647, 28982849, 16),
    (512, WIDE, 8, 0, 'resnet', 30276583, 28982849, 16),                           # paper512
    (1024, WIDE, 8, 0, 'resnet', 30370060, 29012513, 18),                          # paper1024
    (32, WIDE, 2, 0, 'orig', 19947539, 20720641, 8),                               # cifar
    (32, WIDE, 2, 10, 'orig', 20215315, 23089664, 8),
    (32, WIDE, 2, 100, 'orig', 20261395, 23135744, 8),
    (256, WIDE, 2, 0, 'resnet', 28458402, 28864129, 14),                           # low-shot of DiffAugment
    (256, WIDE, 8, 0, 'resnet', 30034338, 28864129, 14),                           # few-shot of DiffAugment
    (32, 4096, 8, 0, 'resnet', 13506963, 13918849, 8)])                            # CIFAR of DiffAugment
def test_parameter_totals_are_those_of_the_releases(res, base, mapping, classes, arch, G_total, D_total, num_ws):
    with torch.device('meta'):
        G = sg.Generator(res, base, mapping=mapping, classes=classes)
        D = sg.Discriminator(res, base, classes=classes, arch=arch)
    assert tuple(sum(p.numel() for p in net.parameters()) for net in (G, D)) == (G_total, D_total)
    of_mapping = {(8, 0): 2101248, (2, 0): 525312, (2, 10): 793088, (2, 100): 839168}[mapping, classes]
    assert sum(p.numel() for p in G.mapping.parameters()) == of_mapping and G.num_ws == num_ws


def test_the_defaults_are_those_of_256_px():
    with torch.device('meta'):
        nets = sg.Generator(), sg.Discriminator()
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [24767458, 24001089]


def test_parameter_composition_is_that_of_the_release():
    with torch.device('meta'):
        G, D = sg.Generator(), sg.Discriminator()
    sizes = {name: p.numel() for name, p in G.named_parameters() if name.endswith('weight')}
    assert sum(n for name, n in sizes.items() if 'affine' in name) == 3801088
    assert sum(n for name, n in sizes.items() if 'mapping' in name) == 2097152
    assert sum(n for name, n in sizes.items() if name.endswith('torgb.weight')) == 7488
    assert sum(n for name, n in sizes.items() if name.endswith(('conv0.weight', 'conv1.weight'))) == 18837504
    assert sum(p.numel() for p in D.parameters() if p.dim() == 4) == 19800768


def test_the_state_dict_has_the_names_of_the_release_and_no_others():
    G, D, *_ = small(8, classes=3, mapping=2)
    pair = ['weight', 'bias']
    mapping = [f'mapping.{m}.{t}' for m in ('embed', 'fc0', 'fc1') for t in pair]
    layers = [f'synthesis.{m}.{t}' for m in ('b4.conv1', 'b8.conv0', 'b8.conv1')
              for t in (*pair, 'affine.weight', 'affine.bias', 'noise_strength', 'noise_const')]
    images = [f'synthesis.b{r}.torgb.{t}' for r in (4, 8) for t in (*pair, 'affine.weight', 'affine.bias')]
    assert sorted(G.state_dict()) == sorted([*mapping, 'mapping.w_avg', 'synthesis.b4.const', *layers, *images])
    convs = [f'{m}.{t}' for m in ('b8.fromrgb', 'b8.conv0', 'b8.conv1', 'b4.conv', 'b4.fc', 'b4.out') for t in pair]
    mapping = [f'mapping.{m}.{t}' for m in ('embed', *(f'fc{i}' for i in range(8))) for t in pair]
    assert sorted(D.state_dict()) == sorted([*convs, 'b8.skip.weight', *mapping])


def test_a_state_dict_without_classes_or_shortcuts_has_no_names_for_them():
    G, D, *_ = small(8, D=dict(arch='orig'))
    assert not any(word in name for name in [*G.state_dict(), *D.state_dict()] for word in ('embed', 'skip'))
    assert not any('mapping' in name for name in D.state_dict())


@pytest.mark.parametrize('res', [0, 4, 24, 48, 100, -8])
def test_a_resolution_that_is_no_power_of_two_from_8_on_is_refused(res):
    for net in (sg.Generator, sg.Discriminator):
        with pytest.raises(ValueError, match=f'^res {res} '):
            net(res)


def test_an_unknown_arch_or_noise_is_refused():
    with pytest.raises(ValueError, match='^arch'):
        sg.Discriminator(8, 8, arch='skip')
    G, _, z, *_ = small(8)
    G.noise = 'uniform'
    with pytest.raises(ValueError, match='^noise'):
        G(z)


# ---- the layers one by one -------------------------------------------------------------------------------------------

def test_the_doubled_image_equals_the_slow_one_and_bilinear_interpolation_inside_but_not_at_the_border():
    G, _, _, _, x = small()
    rgb, w = G.synthesis.b8.torgb, torch.randn(4, 7).double()
    h = torch.randn(4, 6, 32, 32).double()
    up = rgb(h, w, x) - rgb(h, w)
    close(up, up_image(x))
    bilinear = F.interpolate(x, scale_factor=2., mode='bilinear', align_corners=False)
    close(up[:, :, 1:-1, 1:-1], bilinear[:, :, 1:-1, 1:-1])
    for edge in ((slice(None), 0), (slice(None), -1), (0,), (-1,)):
        assert torch.allclose(up[(..., *edge)][..., 1:-1], .75 * bilinear[(..., *edge)][..., 1:-1])  # zeros outside


@pytest.mark.parametrize('up, down, pad', [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 2)])
@pytest.mark.parametrize('form', ['low_pass_convolve', 'low_pass_pool'])
@pytest.mark.parametrize('height, width', [(4, 6), (2, 4)])
def test_every_form_of_the_low_pass_filter_equals_its_definition_with_two_derivatives(
        form, up, down, pad, height, width, monkeypatch):
    monkeypatch.setattr(sg, 'low_pass_convolve', getattr(sg, form))     # a CPU takes the form of a GPU
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    pads = (2, 1) if up == 2 else (pad, pad)
    close(sg.low_pass(x, up, down, pad), resample(x, 4 * fir(3), up, pads, down), 1e-14)
    assert gradcheck(lambda x: sg.low_pass(x, up, down, pad), x)
    assert gradgradcheck(lambda x: sg.low_pass(x, up, down, pad).square(), x)


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('side', [8, 64])                       # two sums, and one product for many pixels
def test_a_layer_adds_noise_and_bias_of_any_number_of_pixels_with_their_gradients(side, n):
    torch.manual_seed(0)
    layer = sg.Layer(4, 5, 7, side).double()
    noise = torch.randn(n, 1, side, side).double()
    x = torch.randn(3, side ** 2, 5).double()
    weight = torch.randn(3, side ** 2, 5).double()
    terms = layer.bias, layer.noise_strength
    with torch.no_grad():
        for term in terms:
            term += .3 * torch.randn_like(term)

    slow = x + math.sqrt(2) * (layer.noise_strength * noise.flatten(1)[..., None] + layer.bias)
    fast = layer.add_noise(x.clone(), noise)
    close(fast, slow)
    grads = [torch.autograd.grad((y * weight).sum(), terms) for y in (fast, slow)]
    for a, b in zip(*grads):
        close(a, b)


@pytest.mark.parametrize('k, height, width', [(3, 8, 8), (3, 4, 10), (1, 8, 8), (1, 4, 10)])
def test_a_convolution_of_D_halves_as_defined_up_to_the_border(k, height, width):
    torch.manual_seed(0)
    layer = sg.Conv(3, 5, k, down=True, act=False).double()
    x = torch.randn(2, 3, height, width).double()
    close(layer(x), down_conv(x, layer.weight / math.sqrt(3 * k * k)))
    assert layer(x).shape == (2, 5, height // 2, width // 2)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('name, up', [('b4.conv1', False), ('b8.conv0', True), ('b16.conv0', True)])
def test_modulated_convolution_equals_its_definition(name, up, fused):
    G, *_ = small()
    layer = G.synthesis.get_submodule(name)
    layer.fused = fused
    for shape in ((8, 8), (4, 6)):
        x, w = torch.randn(3, 6, *shape).double(), torch.randn(3, 7).double()
        noise = torch.randn(3, 1, *(s * (1 + up) for s in shape)).double()
        close(layer(x, w, noise), slow_layer(G.state_dict(), f'synthesis.{name}', x, w, noise, up))


@pytest.mark.parametrize('up', [False, True])
def test_both_forms_of_a_modulated_convolution_agree_in_fp32_with_their_gradients(up):
    torch.manual_seed(0)
    layer = sg.Layer(32, 24, 16, 8, up)
    x, w, results = torch.randn(4, 32, 8, 8, requires_grad=True), torch.randn(4, 16, requires_grad=True), []
    for layer.fused in (False, True):
        y = layer(x, w, None)
        results.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(),
                                                (x, w, layer.weight, layer.affine.weight))))
    for a, b in zip(*results):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_one_sample_in_eval_mode_equals_the_same_sample_in_a_batch():
    G, _, z, *_ = small()
    G.eval().noise = 'const'
    close(G(z[:1]), G(z)[:1])


def test_a_demodulated_layer_forgets_the_size_of_its_style_and_toRGB_does_not():
    G, *_ = small()
    x, w = torch.randn(2, 6, 8, 8).double(), torch.randn(2, 7).double()
    conv1, rgb = G.synthesis.b8.conv1, G.synthesis.b8.torgb
    with torch.no_grad():
        rgb.bias.zero_()
        before = conv1(x, w, None), rgb(x, w)
        for layer in (conv1, rgb):
            layer.affine.weight *= 3
            layer.affine.bias *= 3
        close(conv1(x, w, None), before[0], 1e-6)                                  # up to the 1e-8 under the root
        close(rgb(x, w), 3 * before[1])


def test_new_layers_keep_the_second_moment_of_N_0_1_but_for_their_slope():
    torch.manual_seed(0)
    layer = sg.Layer(64, 32, 16, 32)
    layer.weight.data *= 7
    y = layer(torch.randn(4, 64, 32, 32), torch.randn(4, 16), None)[:, :, 1:-1, 1:-1]
    assert abs(y.square().mean((1, 2, 3)) / 1.04 - 1).max() < .05                  # E[2 lrelu(n)^2] = 1 + .2^2
    w = sg.Mapping(512, 512, 0, 1, average=True)(torch.randn(64, 512))
    h = sg.Conv(64, 32, 3)(torch.randn(4, 64, 32, 32))[:, :, 1:-1, 1:-1]
    assert w.square().mean().item() == pytest.approx(1.04, abs=.05) == h.square().mean().item()


def test_the_deviation_of_two_lone_samples_marks_every_second_sample():
    x = torch.zeros(8, 1, 4, 4)
    x[0], x[2] = 1., 3.
    out = sg.append_deviation(x, 4)[:, 1]                       # groups 0 2 4 6 and 1 3 5 7
    values = torch.tensor([1., 3, 0, 0]).std(correction=0).item(), 1e-4
    assert torch.allclose(out, torch.tensor(values).repeat(4)[:, None, None].expand(8, 4, 4))


@pytest.mark.parametrize('n, group', [(8, 4), (8, 8), (8, 32), (6, 4), (5, 4), (1, 4), (4, 1), (9, 8)])
def test_deviation_equals_the_loop_over_groups(n, group):
    torch.manual_seed(0)
    x = torch.randn(n, 3, 4, 4).double()
    close(sg.append_deviation(x, group), slow_deviation(x, group), 1e-14)
    close(sg.append_deviation(x, None), slow_deviation(x, n), 1e-14)
    if n in (1, 5):
        assert torch.allclose(sg.append_deviation(x, group)[:, 3], torch.tensor(1e-4).double())


@pytest.mark.parametrize('classes', [0, 3])
def test_mapping_equals_its_definition(classes):
    G, D, z, y, _ = small(classes=classes)
    close(G.mapping(5 * z, y), slow_mapping(G.state_dict(), 5 * z, y))
    close(G.mapping(5 * z, y), G.mapping(z, y), 1e-6)                              # the size of z is lost
    if classes:
        close(D.mapping(y=y), slow_mapping(D.state_dict(), y=y))
        assert not torch.allclose(G.mapping(z, y), G.mapping(z, y.flip(0)), atol=1e-3)


# ---- the networks ----------------------------------------------------------------------------------------------------

def outputs_and_gradients(nets, f):
    """images, logits and the gradient of every parameter of a random weighting of the logits."""
    for net in nets:
        net.zero_grad()
    x, score = f()
    (score * torch.tensor([1., -2, .5, 3]).double()[:len(score)]).sum().backward()
    grads = {f'{i} {name}': p.grad for i, net in enumerate(nets) for name, p in net.named_parameters()}
    return {'images': x.detach(), 'logits': score.detach(), **{k: g.clone() for k, g in grads.items()}}


@pytest.mark.parametrize('classes, D', [(0, {}), (3, {}), (0, dict(arch='orig', group=3)), (3, dict(group=2))])
def test_G_and_D_equal_the_slow_networks_with_their_gradients(classes, D):
    G, D, z, y, _ = small(classes=classes, D=(kw := D))
    G.noise = 'const'
    p, q = (dict(net.named_parameters()) | dict(net.named_buffers()) for net in (G, D))
    noise = [p[f'synthesis.{m}.noise_const'] for m in ('b4.conv1', 'b8.conv0', 'b8.conv1', 'b16.conv0', 'b16.conv1')]

    def fast():
        return (x := G(z, y)), D(x, y)

    def slow():
        return (x := slow_G(p, z, y, noise)), slow_D(q, x, y, kw.get('group', 4))
    a, b = (outputs_and_gradients((G, D), f) for f in (fast, slow))
    for name in b:
        close(a[name], b[name])
    assert all(g.abs().max() > 0 for g in b.values())                              # nothing is out of reach


def test_synthesis_gives_every_layer_its_own_w():
    G, *_ = small(32, colors=2)
    ws, p = torch.randn(3, 8, 7).double(), G.state_dict()
    noise = [p[name] for name in p if name.endswith('noise_const')]
    close(G.synthesis(ws, 'const'), slow_synthesis(p, ws, noise))


@pytest.mark.parametrize('classes, noise, mode', [(0, 'random', 'train'), (3, 'random', 'train'), (3, 'const', 'eval'),
                                                  (0, 'none', 'train')])
@torch.no_grad()
def test_every_cut_of_G_and_D_continues_to_the_same_output(classes, noise, mode):
    G, D, z, y, x = small(classes=classes)
    G.mixing, G.noise = .9, noise
    assert (G.cuts, D.cuts) == (5, 6)                                              # 16 px: 3 resolutions
    for net, *inputs in ((G, z, y), (D, x, y)):
        getattr(net, mode)()
        torch.manual_seed(1)
        whole = net(*inputs)
        assert whole.shape == ((4, 3, 16, 16) if net is G else (4,))
        for cut in range(-net.cuts, net.cuts + 1):
            torch.manual_seed(1)
            h, rest = net.split(*inputs, cut)
            assert torch.equal(rest(h), whole) and torch.equal(rest(h), whole), cut


@torch.no_grad()
def test_the_features_at_the_cuts_are_the_documented_ones():
    G, D, z, y, x = small(classes=3)
    shapes = [(4, 5), (4, 6, 7), (4, 6, 4, 4), (4, 6, 8, 8), (4, 3, 16, 16), (4, 3, 16, 16)]
    assert [tuple(G.split(z, y, cut)[0].shape) for cut in range(6)] == shapes
    shapes = [(4, 3, 16, 16), (4, 3, 16, 16), (4, 6, 8, 8), (4, 6, 4, 4), (4, 6, 4, 4), (4, 6), (4,)]
    assert [tuple(D.split(x, y, cut)[0].shape) for cut in range(7)] == shapes
    close(D.split(x, y, 1)[0], lrelu(same_conv(x, D.b16.fromrgb.weight / math.sqrt(3)) +
                                     D.b16.fromrgb.bias[:, None, None]))
    close(G.split(z, y, 1)[0], G.mapping(z, y)[:, None].expand(-1, 6, -1))


def test_the_gradient_of_the_whole_flows_through_a_cut():
    G, _, z, *_ = small()
    G.noise = 'const'
    weight, results = torch.randn(4, 3, 16, 16).double(), []
    for cut in (0, 1, 3):
        h, rest = G.split(z, cut=cut)
        results.append(torch.autograd.grad((rest(h) * weight).sum(), list(G.parameters())))
    for grads in results[1:]:
        for a, b in zip(grads, results[0]):
            close(a, b)


@pytest.mark.parametrize('classes', [0, 3])
@torch.no_grad()
def test_the_logit_is_linear_in_the_feature_before_the_last_layer(classes):
    D, y, x = [small(classes=classes)[i] for i in (1, 3, 4)]
    h, last = D.split(x, y, -1)
    c = slow_mapping(D.state_dict(), y=y) / math.sqrt(6) if classes else torch.ones(4, 1).double()
    slope, offset = c @ D.b4.out.weight / math.sqrt(6), c @ D.b4.out.bias           # c W / sqrt(n_in), c b
    close(last(h), (slope * h).sum(1) + offset)
    close(last(3 * h), 3 * last(h) - 2 * offset)


@torch.no_grad()
def test_noise_is_fresh_stored_or_none():
    G, _, z, *_ = small()
    p, sides, results = G.state_dict(), (4, 8, 8, 16, 16), {}
    for G.noise in ('none', 'const', 'random'):
        torch.manual_seed(3)
        results[G.noise] = G(z)
        drawn = torch.rand(())
        torch.manual_seed(3)
        noise = [torch.randn(4, 1, r, r, dtype=torch.float64) for r in sides]      # in the order of the layers
        if G.noise != 'random':
            torch.manual_seed(3)
            noise = [p[name] * (G.noise == 'const') for name in p if name.endswith('noise_const')]
        close(results[G.noise], slow_G(p, z, None, noise))
        assert torch.rand(()) == drawn                                             # draws that much, and no more
    assert len({round(x.std().item(), 9) for x in results.values()}) == 3
    assert not torch.allclose(G(z), G(z))


def test_a_new_generator_ignores_its_noise():
    torch.manual_seed(0)
    G = sg.Generator(8, 32, z_dim=5, w_dim=7)
    assert all(m.noise_strength == 0 for m in G.modules() if isinstance(m, sg.Layer))
    z = torch.randn(2, 5)
    assert torch.equal(G(z), G(z))


@pytest.mark.parametrize('net', ['G', 'D'])
@pytest.mark.parametrize('classes', [0, 3])
@torch.no_grad()
def test_bf16_keeps_the_feature_the_images_and_the_logits_in_fp32(classes, net):
    G, D, z, y, x = (t.float() if t is not None and i != 3 else t for i, t in enumerate(small(classes=classes)))
    net, x = (G, z) if net == 'G' else (D, x)
    G.noise = 'const'
    exact = net(x, y)
    with torch.autocast('cpu', torch.bfloat16):
        for cut in range(net.cuts + 1):
            h, rest = net.split(x, y, cut)
            assert h.dtype == rest(h).dtype == torch.float32, cut
            assert 0 < (rest(h) - exact).abs().max() < .03 * exact.abs().max(), cut
        if net is G:
            w = G.split(x, y, 1)[0]
            assert torch.equal(w[:, 0], G.mapping.float()(x, y))
    if net is G:
        close(w, net.split(x, y, 1)[0], 1e-6)                                      # mapping is not in bf16


def test_channels_last_changes_nothing_but_rounding():
    G, D, z, y, _ = small(classes=3)
    G.noise = 'const'
    results = [outputs_and_gradients((G, D), lambda: ((x := G(z, y)), D(x, y)))]
    G, D = (net.to(memory_format=torch.channels_last) for net in (G, D))
    results.append(outputs_and_gradients(
        (G, D), lambda: ((x := G(z, y)), D(x.contiguous(memory_format=torch.channels_last), y))))
    for name in results[0]:
        close(results[1][name], results[0][name])


# ---- w: truncation, its average, mixing ------------------------------------------------------------------------------

@torch.no_grad()
def test_truncation_moves_the_first_layers_towards_the_average():
    G, _, z, y, _ = small(classes=3)
    w, average = G.mapping(z, y)[:, None], G.mapping.w_avg
    close(G.styles(z, y), w.expand(-1, 6, -1))
    close(G.styles(z, y, psi=.7), (average + .7 * (w - average)).expand(-1, 6, -1))
    some = G.styles(z, y, psi=.7, cutoff=2)
    close(some[:, :2], (average + .7 * (w - average)).expand(-1, 2, -1))
    close(some[:, 2:], w.expand(-1, 4, -1))
    G.noise = 'const'
    images = G.synthesis(G.styles(z, y, psi=0), 'const')
    close(images, G.synthesis(average.expand(4, 6, -1), 'const'))                  # one image for all seeds
    close(images, images[:1].expand(4, -1, -1, -1))


@torch.no_grad()
def test_the_average_of_w_moves_once_per_split_in_training_mode_and_never_else():
    G, _, z, y, _ = small(classes=3)
    G.mixing, average = 1., G.mapping.w_avg.clone()
    for net in (G.eval(), G.train()):
        ws = G.styles(z, y, psi=.5)
        G.synthesis(ws)
        assert torch.equal(G.mapping.w_avg, average)
        if not net.training:
            G(z, y)
    G.eval()(z, y)
    assert torch.equal(G.mapping.w_avg, average)
    G.train()
    mean = G.mapping(z, y).mean(0)                              # of the first z: mixing's second one does not count
    for cut in (0, 1, 3, -1):
        h, rest = G.split(z, y, cut)
        rest(h), rest(h)
        average = average + .005 * (mean - average)
        close(G.mapping.w_avg, average, 1e-12)
    G.w_avg_beta = .9
    G(z, y)
    close(G.mapping.w_avg, average + .1 * (mean - average), 1e-12)


@torch.no_grad()
def test_mixing_takes_a_second_w_of_the_same_class_from_a_random_layer_on_per_sample():
    G, _, z, y, _ = small(classes=3)
    G.mixing, z, y, seen = .3, z.repeat(1000, 1), y.repeat(1000), []
    G.mapping.register_forward_hook(lambda m, inputs, w: seen.append((inputs, w)))
    h = G.split(z, y, 1)[0]
    (_, first), ((other, label), second) = seen
    assert torch.equal(label, y) and not torch.allclose(other, z)
    assert torch.cov(torch.stack((other.flatten(), z.flatten())))[0].sub(torch.tensor([1., 0])).abs().max() < .05
    keeps = (h == first[:, None]).all(2)                        # [N, 6]: the first w
    assert torch.equal(h, torch.where(keeps[..., None], first[:, None], second[:, None]))
    assert keeps[:, 0].all() and (keeps[:, 1:] <= keeps[:, :-1]).all()             # the first w below, the second above
    lengths = torch.bincount(keeps.sum(1), minlength=7)
    assert lengths[6] / 4000 == pytest.approx(.7, abs=.03)
    assert lengths[0] == 0 and (lengths[1:6] / 240 - 1).abs().max() < .3           # uniform over the 5 places
    G.eval()
    assert (G.split(z, y, 1)[0] == first[:, None]).all()
    G.train().mixing = 0.
    assert (G.split(z, y, 1)[0] == first[:, None]).all()


# ---- second order ----------------------------------------------------------------------------------------------------

def tiny(**D):
    """G, D of two channels at 8 px and of one colour; training mode."""
    torch.manual_seed(1)
    G = sg.Generator(8, 16, ch_max=2, mapping=1, z_dim=2, w_dim=2, colors=1)
    D = sg.Discriminator(8, 16, ch_max=2, colors=1, **D)
    with torch.no_grad():
        for name, p in [*G.named_parameters(), *D.named_parameters()]:
            if name.endswith(('bias', 'noise_strength')):
                p += .3 * torch.randn_like(p)
    return G.double(), D.double()


def gradients_have_gradients(net, x, *args):
    """Of a random weighting of the output, with respect to x and every parameter, along random directions."""
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in net.named_parameters()))
    weight = torch.randn_like(net(x, *args))

    def f(x, *p):
        return (functional_call(net, dict(zip(names, p)), (x, *args)) * weight).sum()
    return gradgradcheck(lambda x: f(x, *values), x, fast_mode=True) and gradgradcheck(f, (x, *values), fast_mode=True)


@pytest.mark.parametrize('kw', [{}, dict(arch='orig', classes=2)])
def test_D_differentiates_twice_with_respect_to_images_and_weights_as_R_1_needs(kw):
    D = tiny(**kw)[1]
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert gradients_have_gradients(D, x, *([torch.tensor([0, 1])] if 'classes' in kw else []))


@pytest.mark.parametrize('fused', [False, True])
def test_synthesis_differentiates_twice_with_respect_to_w_and_weights_as_path_length_needs(fused):
    G = tiny()[0]
    for layer in G.modules():
        if isinstance(layer, sg.Layer):
            layer.fused = fused
    ws = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert gradients_have_gradients(G.synthesis, ws, 'const')


@pytest.mark.parametrize('stride, pad, groups, k, size', [
    (1, 1, 1, 3, 5), (2, 0, 1, 3, 7), (1, 1, 2, 3, 5), (2, 1, 4, 4, 6)])
def test_the_trilinear_form_has_the_derivatives_of_torch_up_to_the_third(stride, pad, groups, k, size):
    torch.manual_seed(0)
    x = torch.randn(2, 4, size, size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 4 // groups, k, k, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(sg.conv(x, w, stride, pad, groups), requires_grad=True)
    values = [[(sg.conv(x, w, stride, pad, groups), sg.conv_transpose(g, w, stride, pad, groups))],
              [(F.conv2d(x, w, None, stride, pad, 1, groups), F.conv_transpose2d(g, w, None, stride, pad, 0, groups))]]
    for f in values:
        for _ in range(3):
            f.append(torch.autograd.grad(sum(v.pow(3).sum() for v in f[-1]), (x, w, g), create_graph=True))
    for a, b in zip(*values):
        for u, v in zip(a, b):
            close(u, v, 1e-9)


@pytest.mark.parametrize('channels', [127, 128])                # a form of its own from 128 on
def test_a_transposed_convolution_in_bf16_is_that_of_torch_in_fp32(channels):
    torch.manual_seed(0)
    g = torch.randn(2, channels, 4, 5).bfloat16()
    w = torch.randn(channels, 3, 3, 3).bfloat16()
    for pad in (0, 1):
        exact = F.conv_transpose2d(g.float(), w.float(), None, 2, pad)
        close(sg.conv_transpose(g, w, 2, pad).float(), exact, 1 / 200)


def test_the_gradient_of_a_penalty_spends_nothing_on_weights(monkeypatch):
    G, D, z, _, x = small()
    calls, real = [], torch.nn.grad.conv2d_weight
    monkeypatch.setattr(torch.nn.grad, 'conv2d_weight', lambda *a: calls.append(1) or real(*a))
    x.requires_grad_()
    penalty = losses.r1(D(x), x)
    h, rest = G.split(z, cut=1)
    torch.autograd.grad(rest(h).sum(), h, create_graph=True)
    assert not calls
    penalty.backward()
    assert calls and D.b16.conv0.weight.grad.abs().sum() > 0


class Operations(TorchDispatchMode):
    """Notes the groups and weights of convolutions, and the layouts that meet in the derivative of an activation.

    D flattens its features of 4 x 4 pixels, so that their layouts may differ."""

    def __init__(self):
        super().__init__()
        self.groups, self.transposed_groups, self.weights, self.layouts = [], [], [], []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op == torch.ops.aten.convolution.default:
            transposed, groups = args[6], args[8]
            (self.transposed_groups if transposed else self.groups).append(groups)
            if groups == 1:
                self.weights.append(args[1])
        if op == torch.ops.aten.convolution_backward.default and args[10][0]:
            self.transposed_groups.append(args[9])              # the gradient of the input is a transposed one
        if op == torch.ops.aten.leaky_relu_backward.default and args[1].numel() > 4 * 64 * 4 * 4:
            self.layouts.append((args[0].stride(), args[1].stride()))
        return op(*args, **kwargs or {})


def test_no_step_transposes_a_convolution_of_single_channels_or_mixes_layouts():
    torch.manual_seed(0)
    G, D = sg.Generator(16, 256, z_dim=5, w_dim=7), sg.Discriminator(16, 256)
    G, D = (net.to(memory_format=torch.channels_last) for net in (G, D))
    z = torch.randn(4, 5)
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    with Operations() as operations:
        with torch.autocast('cpu', torch.bfloat16):
            score = D(G(z)).sum() + losses.r1(D(x), x)
            ws, G2 = G.split(z, cut=1)
            slope, = torch.autograd.grad(G2(ws).sum(), ws, create_graph=True)
        (score + slope.square().mean()).backward()

    assert max(operations.groups) == 32                        # the filter is a convolution of single channels
    assert operations.transposed_groups and set(operations.transposed_groups) == {1}
    for weight in operations.weights:
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert len(operations.layouts) > 20
    for of_gradient, of_output in operations.layouts:
        assert of_gradient == of_output


@pytest.mark.parametrize('res, colors, n', [(16, 3, 4), (8, 1, 1), (8, 1, 5), (16, 1, 1)])
def test_pruned_filters_and_odd_shapes_have_finite_penalties_with_finite_gradients(res, colors, n):
    torch.manual_seed(0)
    G, D = sg.Generator(res, 64, z_dim=5, w_dim=7, colors=colors), sg.Discriminator(res, 64, colors=colors)
    with torch.no_grad():
        for p in (p for net in (G, D) for p in net.parameters() if p.dim() == 4 and len(p) > colors):
            p[0] = 0                                            # a filter without a weight
    x = torch.randn(n, colors, res, res, requires_grad=True)
    penalty = losses.r1(D(x), x)
    ws, G2 = G.split(torch.randn(n, 5), cut=1)
    images = G2(ws)
    slope, = torch.autograd.grad((images * torch.randn_like(images)).sum() / res, ws, create_graph=True)
    length = slope.square().sum(2).mean(1).sqrt()
    for net, value in ((D, penalty), (G, length.square().mean())):
        value.backward()
        assert images.isfinite().all() and value.isfinite() and value > 0
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
        assert sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None) > 0


@torch.no_grad()
def test_a_pruned_filter_gives_its_bias_and_nothing_else():
    G, *_ = small()
    layer = G.synthesis.b8.conv1
    layer.weight[2] = 0
    x, w = torch.randn(2, 6, 8, 8).double(), torch.randn(2, 7).double()
    for layer.fused in (False, True):
        close(layer(x, w, None)[:, 2], lrelu(layer.bias[2]).expand(2, 8, 8))


# ---- gains -----------------------------------------------------------------------------------------------------------

def test_every_weight_has_its_gain_and_effective_weights_are_of_he_scale():
    torch.manual_seed(0)
    for net in (sg.Generator(16, 512, ch_max=64, mapping=2, classes=50, z_dim=64, w_dim=64),
                sg.Discriminator(16, 512, ch_max=64, classes=50)):
        weights = {name: p for name, p in net.named_parameters() if name.endswith('weight')}
        gains = sg.effective_gain(net)
        assert set(gains) == set(weights) == {name for name, p in net.named_parameters() if p.dim() in (2, 4)}
        for name, p in weights.items():
            lr = .01 if name.startswith('mapping.fc') else 1.
            assert gains[name] == pytest.approx(lr / math.sqrt(p[0].numel())), name
            if p.numel() > 2000:                                # the raw standard deviation is 1, or 100 in mapping
                assert (p * gains[name] * math.sqrt(p[0].numel())).std().item() == pytest.approx(1, abs=.1), name


@torch.no_grad()
def test_raw_weight_times_gain_is_what_a_layer_multiplies_with():
    G, D, z, y, x = small(classes=3)
    for net, inputs in ((G, (z, y)), (D, (x, y))):
        seen, gains = {}, sg.effective_gain(net)
        for p in net.parameters():
            if p.dim() == 1:
                p.zero_()
        for name, m in net.named_modules():
            if f'{name}.weight' in gains and not isinstance(m, (sg.Layer, sg.ToRGB)):
                m.register_forward_hook(
                    lambda m, inputs, out, name=name: seen.update({name: (m, *inputs, out.clone())}))
        net(*inputs)
        for name, (m, h, out) in seen.items():
            weight = m.weight * gains[f'{name}.weight']
            if weight.dim() == 4:
                expected = (down_conv if name.endswith(('conv1', 'skip')) else same_conv)(h, weight)
                scale = math.sqrt(.5) if name.endswith(('conv1', 'skip')) else 1.
            else:
                expected, scale = h @ weight.t(), 1.
            linear = name.endswith(('affine', 'embed', 'skip', 'out'))
            close(out, scale * (expected if linear else lrelu(expected)))
        assert len(seen) == (4 + 8 if net is G else 1 + 2 * 3 + 3 + 9)
    rgb, w, h = G.synthesis.b8.torgb, torch.randn(4, 7).double(), torch.randn(4, 6, 8, 8).double()
    weight = rgb.weight * sg.effective_gain(G)['synthesis.b8.torgb.weight'] * rgb.affine(w)[:, None, :, None, None]
    close(rgb(h, w), torch.cat([same_conv(h[i:i + 1], weight[i]) for i in range(4)]))


@torch.no_grad()
def test_demodulation_cancels_the_gain_of_a_layer():
    G, *_ = small()
    layer, name = G.synthesis.b8.conv0, 'synthesis.b8.conv0.weight'
    x, w = torch.randn(2, 6, 4, 4).double(), torch.randn(2, 7).double()
    before = layer(x, w, None)
    layer.weight *= sg.effective_gain(G)[name]
    close(layer(x, w, None), before, 1e-5)                      # up to the 1e-8 under the root
