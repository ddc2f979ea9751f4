"""models/biggan.py: sizes, splits, equality with the same layers written out slowly, what labels and z reach, masks."""
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_attention, slow_biggan_D, slow_biggan_G
from torch.nn.utils import parametrize

import advaug
import flat
import loop
import prune
from models import biggan

SHAPES = [(32, False), (64, False), (64, True), (128, False)]


def small(res=32, narrow=False, ch=8, relu_shortcut=False, seed=0):
    """G, D, z, y, images: weights that no symmetry hides (attention on, biases and BN away from 0 and 1)."""
    torch.manual_seed(seed)
    G = biggan.Generator(res, 5, ch, narrow)
    D = biggan.Discriminator(res, 5, ch, narrow, relu_shortcut)
    with torch.no_grad():
        for net in (G, D):
            net.attention.gamma.fill_(.7)
            for name, p in net.named_parameters():
                if p.dim() == 1:
                    p += .1 * torch.randn_like(p)
                elif p.dim() > 1:
                    p *= torch.rand(len(p), *[1] * (p.dim() - 1)) + .5             # sigma is not 1 any more
    return G, D, torch.randn(4, G.z_dim), torch.tensor([0, 3, 4, 3]), torch.rand(4, 3, res, res) * 2 - 1


def freeze(net):
    """Training mode, BN on its batch, but no more power iterations."""
    for m in net.modules():
        if isinstance(m, biggan.SpectralNorm):
            m.eval()


@pytest.mark.parametrize('shape, totals, convs', [
    ((32, 10), (9416196, 2415170), (8599680, 2411136)),                            # CIFAR-10
    ((32, 100), (9427716, 2432450), (8599680, 2411136)),                           # CIFAR-100
    ((64, 200), (49067844, 60131042), (46852320, 59864000)),                       # Tiny-ImageNet, as released
    ((64, 200, None, True), (17335204, 30796722), (15810160, 30532000)),           # today's StudioGAN
    ((128, 1000), (70433988, 87982370), (67592736, 86432832))])                    # ImageNet
def test_parameter_totals_and_their_prunable_part_are_those_of_the_release(shape, totals, convs):
    with torch.device('meta'):
        nets = biggan.Generator(*shape), biggan.Discriminator(*shape)
    assert tuple(sum(p.numel() for p in net.parameters()) for net in nets) == totals
    sizes = [{name: p.numel() for name, p in net.named_parameters()} for net in nets]
    assert tuple(sum(s[name] for name in prune.prunable(net)) for s, net in zip(sizes, nets)) == convs


@pytest.mark.parametrize('res, narrow, mode', [(32, False, 'eval'), *((*shape, 'train') for shape in SHAPES)])
@torch.no_grad()
def test_every_cut_of_G_and_D_continues_to_the_same_output(res, narrow, mode):
    G, D, z, y, images = small(res, narrow)
    for net, x in ((G, z[:2]), (D, images[:2])):
        getattr(net, mode)()
        with parametrize.cached():                              # one power iteration for all the passes
            whole = net(x, y[:2])
            assert whole.shape == ((2, 3, res, res) if net is G else (2,)) and net.cuts == len(net.stages(x, y[:2]))
            for cut in [*range(net.cuts + 1), -1]:
                h, rest = net.split(x, y[:2], cut)
                assert torch.equal(rest(h), whole), cut


def test_the_default_cuts_are_the_first_layer_of_G_and_the_feature_before_the_last_of_D():
    G, D, z, y, x = small()
    assert torch.allclose(G.eval().split(z, y, 1)[0], G.l1(z[:, :20]).view(4, 32, 4, 4))
    h, last = D.eval().split(x, y, -1)
    closed = ((D.linear.weight + D.embed.weight[y]) * h).sum(1) + D.linear.bias     # <w + e(y), h> + b
    assert h.shape == (4, 16) and torch.allclose(last(h), closed, atol=1e-6)


@pytest.mark.parametrize('res, narrow, relu_shortcut', [(*shape, False) for shape in SHAPES] + [(32, False, True)])
def test_G_and_D_equal_the_released_layers_with_their_gradients(res, narrow, relu_shortcut):
    """In float64, where ReLU and max-pooling do not fall on another side by rounding."""
    G, D, z, y, _ = small(res, narrow, relu_shortcut=relu_shortcut)
    G, D, z, y = G.double(), D.double(), z[:2].double(), y[:2]
    freeze(G), freeze(D)
    results = []
    for g, d in ((G, D), (lambda *a: slow_biggan_G(G, *a), lambda *a: slow_biggan_D(D, *a))):
        G.zero_grad(), D.zero_grad()
        x = g(z, y)
        score = d(x, y)
        (score * torch.tensor([-1., 1])).sum().backward()
        named = {n: p.grad.clone() for net in (G, D) for n, p in net.named_parameters(f'{type(net).__name__}')}
        results.append({'images': x.detach(), 'logits': score.detach(), **named})
    for name, slow in results[1].items():
        assert (results[0][name] - slow).abs().max() <= 1e-9 * max(slow.abs().max(), 1), name


def test_the_relu_of_a_block_reaches_its_shortcut_only_if_asked_for():
    x = torch.randn(2, 16, 8, 8)
    for relu_shortcut, seen in ((False, x), (True, F.relu(x))):
        D = small(relu_shortcut=relu_shortcut)[1]
        D.blocks[3].c2 = torch.nn.Identity()                    # leaves ReLU(c1(ReLU(x))) + shortcut
        assert torch.allclose(D.eval().blocks[3](x) - F.relu(D.blocks[3].c1(F.relu(x))), seen, atol=1e-6)


def test_attention_equals_the_einsum_and_starts_as_the_identity():
    torch.manual_seed(0)
    a = biggan.Attention(40).eval()                             # an eighth of it is no multiple of 8
    x = torch.randn(3, 40, 6, 10).requires_grad_()
    assert torch.equal(a(x), x)
    a.gamma.data.fill_(1)
    fast, slow = a(x), slow_attention(a, x)
    assert (fast - slow).abs().max() <= 1e-5 * slow.abs().max()
    d = [torch.autograd.grad((out * x.detach().cos()).sum(), x)[0] for out in (fast, slow)]
    assert (d[0] - d[1]).abs().max() <= 1e-5 * d[1].abs().max()


def test_every_weight_but_the_shared_embedding_has_spectral_norm_one():
    kinds = torch.nn.Conv2d, torch.nn.Linear, torch.nn.Embedding
    for net, plain in zip(small()[:2], (['shared'], [])):
        layers = {name: m for name, m in net.named_modules() if isinstance(m, kinds)}
        assert plain == [name for name, m in layers.items() if not parametrize.is_parametrized(m)]
        for name in set(layers) - {'shared'}:
            for _ in range(150):                                # power iterations
                weight = layers[name].weight.detach()
            assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(1, abs=.01), name


@pytest.mark.parametrize('scale', [1, 1e-7])
def test_spectral_norm_follows_the_released_order_and_eps(scale):
    torch.manual_seed(0)
    norm, w = biggan.SpectralNorm(torch.zeros(6, 3, 3, 3)), scale * torch.randn(6, 3, 3, 3)
    u, m = norm.u.clone(), w.flatten(1)
    v = F.normalize(m.t() @ u, dim=0, eps=1e-6)                 # v first, then u
    u = F.normalize(m @ v, dim=0, eps=1e-6)
    assert torch.allclose(norm(w), w / (u @ m @ v)) and torch.allclose(norm.u, u) and torch.allclose(norm.v, v)
    norm.eval()(w)
    assert torch.allclose(norm.u, u)                            # no iteration in eval mode


def test_every_pass_iterates_once_and_several_inside_cached_share_one():
    _, D, _, y, x = small()
    u = D.embed.parametrizations.weight[0].u
    with parametrize.cached():
        D(x, y)
        first = u.clone()
        D(x, y)
        assert torch.equal(u, first)
    (D.eval()(x, y) + D.train()(x, y)).sum().backward()         # the second pass moves what the first has saved
    assert not torch.equal(u, first) and D.embed.parametrizations.weight.original.grad.any()


def test_initial_weights_are_orthogonal_biases_zero_and_the_seed_decides():
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append((biggan.Generator(32, 5, 8), biggan.Discriminator(32, 5, 8)))
    for a, b, other in zip(*nets):
        same = [torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values())]
        assert all(same) and not all(torch.equal(p, q) for p, q in zip(a.parameters(), other.parameters()))
        for name, p in a.named_parameters():
            if p.dim() > 1:
                m = p.detach().flatten(1)
                m = m if len(m) <= m.shape[1] else m.t()
                assert torch.allclose(m @ m.t(), torch.eye(len(m)), atol=1e-5), name
            else:
                assert torch.equal(p, torch.full_like(p, name == 'norm.weight')), name
        for m in a.eval().modules():                            # sigma is 1 from the start, in eval mode too
            if parametrize.is_parametrized(m):
                assert torch.allclose(m.weight, m.parametrizations.weight.original, atol=1e-5)


@torch.no_grad()
def test_labels_change_images_and_logits_by_the_projection():
    G, D, z, y, x = small()
    G.eval(), D.eval()
    other = torch.tensor([1, 3, 4, 2])
    moved = [(a - b).abs().flatten(1).amax(1) > 1e-6 for a, b in ((G(z, y), G(z, other)), (D(x, y)[:, None],
                                                                                           D(x, other)[:, None]))]
    assert all(m.tolist() == [True, False, False, True] for m in moved)
    h, _ = D.split(x, y, -1)
    shift = ((D.embed.weight[other] - D.embed.weight[y]) * h).sum(1)
    assert torch.allclose(D(x, other) - D(x, y), shift, atol=1e-5)


@pytest.mark.parametrize('res', [32, 64, 128])
@torch.no_grad()
def test_every_chunk_of_z_reaches_its_own_block_and_no_earlier_one(res):
    G, _, z, y, _ = small(res)
    G, z, y = G.eval(), z[:1], y[:1]
    names = [type(getattr(stage, 'func', stage)).__name__ for stage in G.stages(z, y)]
    enters = [0, *(i for i, name in enumerate(names) if name == 'BlockG')]          # the stage each chunk goes into
    assert len(enters) == G.z_dim // 20
    for chunk, stage in enumerate(enters):
        moved = z.clone()
        moved[:, 20 * chunk:20 * (chunk + 1)] += 1
        a, b = z, moved
        for i, (f, g) in enumerate(zip(G.stages(z, y), G.stages(moved, y))):
            a, b = f(a), g(b)
            assert torch.equal(a, b) == (i < stage), (chunk, i)


def test_the_fast_adversarial_backward_shares_the_conditions_of_both_passes():
    G, D, z, y, _ = small()
    freeze(G), D.eval().requires_grad_(False)
    gradients = []
    for fast in (True, False):
        G.zero_grad()
        with parametrize.cached():
            h, G2 = G.split(z, y, 1)

            def fool(h, G2=G2):
                return -D(G2(h), y).mean()
            if fast:
                advaug.backward(h, fool, 2, .05)
            else:
                (fool(h) + fool(advaug.pgd(h, fool, 2, .05))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in G.parameters()]))
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[1].abs().max()


def test_masked_weights_stay_exactly_zero_through_updates_of_both_networks():
    G, D, z, y, x = small()
    masks = {net: prune.magnitude(net, prune.ones(net), .6) for net in (G, D)}
    E = flat.Flat(copy.deepcopy(G).to(memory_format=torch.channels_last), masks=masks[G])
    G, D = (flat.Flat(net.to(memory_format=torch.channels_last), 1e-2, (.5, .999), 1e-6, masks[net]) for net in (G, D))
    before = {net: net.w.data.clone() for net in (G, D, E)}
    for step in range(3):
        G.now = D.now = step + 1
        D.update(lambda part: (F.relu(1 - D.net(x[part], y[part])) + F.relu(1 + D.net(G.net(z[part], y[part]), y[part]))
                               ).mean(), flat.micro_batches(4, 2))
        G.update(lambda part: -D.net(G.net(z, y), y).mean())
        E.track(G, .9)
    for net in (G, D, E):
        assert net.first_bad() is None and not torch.equal(net.w.data, before[net])
        parameters = dict(net.net.named_parameters())
        assert all(not parameters[name][~keep].any() for name, keep in net.masks.items())
        assert prune.sparsity(net.masks) == pytest.approx(.6, abs=1e-3)
    assert 'shared.weight' in G.layout and G.net.blocks[0].n1.norm.running_var.data_ptr() >= G.bucket.data_ptr()
    settled = loop.settle(E.net, [(z, y)] * 3)
    assert settled(z, y).std() > 0 and not settled.training


def test_micro_batches_of_D_under_one_spectral_norm_equal_the_big_batch():
    _, D, _, y, x = small()
    gradients = []
    for micro in (4, 1):
        whole = flat.Flat(copy.deepcopy(D), 1e-3)
        whole.update(lambda part: F.relu(1 - whole.net(x[part], y[part])).mean(), flat.micro_batches(4, micro))
        gradients.append(whole.g.clone())
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


def test_bf16_keeps_the_feature_the_head_and_the_images_in_fp32_and_little_changes():
    G, D, z, y, x = small()
    G.eval(), D.eval()
    for net, x in ((G, z), (D, x)):
        exact = net(x, y)
        with torch.autocast('cpu', torch.bfloat16):
            for cut in range(net.cuts + 1):
                h, rest = net.split(x, y, cut)
                assert h.dtype == rest(h).dtype == torch.float32, cut
            assert (net(x, y) - exact).abs().max() < .1 * exact.abs().max()
    with torch.autocast('cpu', torch.bfloat16):
        h, last = D.split(x, y, -1)
        logits = last(h)
    assert torch.equal(last(h), logits)                         # AdvAug's small steps are not rounded away


def test_a_gradient_penalty_on_D_has_its_second_derivative():
    _, D, _, y, x = small()
    D, x = D.double().eval(), x.double().requires_grad_()

    def penalty():
        return torch.autograd.grad(D(x, y).sum(), x, create_graph=True)[0].square().sum()
    names, parameters = zip(*D.named_parameters())
    slopes = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    for name, p, slope in zip(names, parameters, slopes):
        if slope is None:
            assert name == 'linear.bias'
            continue
        direction = torch.randn_like(p)
        values = []
        for step in (1e-6, -2e-6):
            p.data += step * direction
            values.append(penalty().item())
        p.data += 1e-6 * direction
        assert (values[0] - values[1]) / 2e-6 == pytest.approx((slope * direction).sum().item(), rel=1e-3, abs=1e-4)


def test_a_copy_a_state_dict_and_channels_last_give_the_same_network():
    G, D, z, y, x = small()
    for net, x in ((G.eval(), z), (D.eval(), x)):
        twin = type(net)(32, 5, 8)
        twin.load_state_dict(net.state_dict())
        assert torch.equal(twin.eval()(x, y), net(x, y)) and torch.equal(copy.deepcopy(net)(x, y), net(x, y))
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        assert torch.allclose(last(x, y), net(x, y), atol=1e-5)


def test_sizes_without_a_released_network_are_refused():
    for wrong in (dict(res=48), dict(res=32, narrow=True), dict(ch=4)):
        with pytest.raises(ValueError, match='use 32, 64 or 128|below 8'):
            biggan.Generator(**wrong)
    G, _, z, y, _ = small()
    with pytest.raises(ValueError):
        G(torch.randn(4, 100), y)                               # the z of 64 px
