"""models/sngan.py: sizes, splits, and equality with the same layers written out slowly."""
import pytest
import torch
import torch.nn.functional as F
from helpers import slow_sngan_D, slow_sngan_G
from torch.nn.utils import parametrize

from models import sngan


def small(seed=0, ch=8):
    torch.manual_seed(seed)
    return sngan.Generator(32, ch), sngan.Discriminator(ch)


def close(a, b, tolerance=1e-5):
    assert (a - b).abs().max() <= tolerance * b.abs().max(), float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize('res, total', [(32, 4276739), (48, 4937219), (64, 5861891)])
def test_parameter_totals_of_G_are_those_of_the_release(res, total):
    with torch.device('meta'):
        assert sum(p.numel() for p in sngan.Generator(res).parameters()) == total


def test_parameter_total_of_D_is_that_of_the_release_and_its_pruned_part_too():
    with torch.device('meta'):
        G, D = sngan.Generator(), sngan.Discriminator()
    assert sum(p.numel() for p in D.parameters()) == 1053824

    def convs(net):
        return sum(p.numel() for p in net.parameters() if p.dim() == 4)
    assert (convs(G), convs(D)) == (3742464, 1052416)


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_every_cut_of_G_and_D_continues_to_the_same_output(mode):
    for net, x in zip(small(), (torch.randn(3, 128), torch.randn(3, 3, 32, 32))):
        getattr(net, mode)()
        with parametrize.cached():                              # one power iteration for all the passes
            whole = net(x)
            for cut in range(-len(net.stages()), len(net.stages()) + 1):
                h, rest = net.split(x, cut)
                assert torch.equal(rest(h), whole), cut


@pytest.mark.parametrize('res', [32, 48])
def test_G_and_D_equal_the_released_layers_with_their_gradients(res):
    torch.manual_seed(0)
    G, D = sngan.Generator(res, 8), sngan.Discriminator(8).eval()
    z = torch.randn(4, 128)
    for fast, slow in ((lambda: G(z), lambda: slow_sngan_G(G, z)), (lambda: D(G(z)), lambda: slow_sngan_D(D, slow_sngan_G(G, z)))):
        results = []
        for f in (fast, slow):
            G.zero_grad(), D.zero_grad()
            y = f()
            (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
            named = [*G.named_parameters(), *D.named_parameters()]
            results.append((y.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}))
        close(results[0][0], results[1][0])
        scale = max(g.abs().max() for g in results[1][1].values())         # biases before a BN get rounding noise only
        for name, g in results[1][1].items():
            assert (results[0][1][name] - g).abs().max() < 1e-5 * scale, name


def test_spectral_norm_follows_the_released_order_and_converges_to_the_largest_singular_value():
    torch.manual_seed(0)
    norm, w = sngan.SpectralNorm(torch.zeros(6, 3, 3, 3)), torch.randn(6, 3, 3, 3)
    u, v, m = norm.u.clone(), norm.v.clone(), w.flatten(1)
    out = norm(w)
    v = F.normalize(m.t() @ u, dim=0)                           # v first, then u, as released
    u = F.normalize(m @ v, dim=0)
    assert torch.allclose(out, w / (u @ m @ v)) and torch.allclose(norm.u, u) and torch.allclose(norm.v, v)
    for _ in range(300):
        norm(w)
    assert torch.linalg.matrix_norm(norm(w).flatten(1), 2) == pytest.approx(1, abs=1e-4)
    before = norm.u.clone()
    norm.eval()(w)
    assert torch.equal(before, norm.u)                          # no iteration in eval mode


def test_the_head_of_D_has_unit_norm():
    _, D = small()
    assert D.l5.weight.norm().item() == pytest.approx(1, abs=1e-6)


def test_one_power_iteration_serves_all_passes_inside_cached():
    _, D = small()
    x = torch.randn(2, 3, 32, 32)
    u = D.block2.c1.parametrizations.weight[0].u
    with parametrize.cached():
        D(x)
        first = u.clone()
        D(x)
        assert torch.equal(u, first)
    D(x)
    assert not torch.equal(u, first)


def test_bf16_keeps_the_feature_the_head_and_the_images_in_fp32():
    G, D = small()
    with torch.autocast('cpu', torch.bfloat16):
        for net, x in ((G, torch.randn(2, 128)), (D, torch.randn(2, 3, 32, 32))):
            for cut in range(len(net.stages()) + 1):
                h, rest = net.split(x, cut)
                assert h.dtype == rest(h).dtype == torch.float32, cut


def test_a_resolution_that_three_doublings_do_not_reach_is_refused():
    with pytest.raises(ValueError, match='multiple of 8'):
        sngan.Generator(36)
