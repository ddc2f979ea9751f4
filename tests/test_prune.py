"""prune.py: Algorithm 1's arithmetic to one weight, what is ranked, what is refused; the ways it is compared with."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prune
from models import sngan


def test_sparsity_after_k_rounds_is_the_papers_to_one_weight():
    torch.manual_seed(0)
    for net, total in ((sngan.Generator(32, 32), None), (sngan.Discriminator(24), None)):
        masks = prune.ones(net)
        alive = total = sum(m.numel() for m in masks.values())
        for k in range(1, 10):
            old, masks = masks, prune.magnitude(net, masks, .2)
            alive -= int(.2 * alive)
            assert sum(int(m.sum()) for m in masks.values()) == alive
            assert abs(prune.sparsity(masks) - (1 - .8 ** k)) < k / total          # 20, 36, 48.8, 59.04, 67.232 ...
            assert all((masks[n] <= old[n]).all() for n in masks)                  # nothing comes back


def test_the_smallest_surviving_weights_of_the_whole_network_go():
    torch.manual_seed(0)
    net = sngan.Generator(32, 16)
    weights = dict(net.named_parameters())
    old = prune.magnitude(net, prune.ones(net), .3)
    new = prune.magnitude(net, old, .2)
    gone = torch.cat([weights[n].detach().abs()[old[n] & ~new[n]] for n in old])
    kept = torch.cat([weights[n].detach().abs()[new[n]] for n in old])
    assert gone.max() <= kept.min()


def test_only_convolutions_are_pruned_unless_all_is_asked_for():
    G, D = sngan.Generator(32, 8), sngan.Discriminator(8)
    assert len(prune.prunable(G)) == 10 and 'l1.weight' not in prune.prunable(G)
    assert len(prune.prunable(D)) == 10 and all(n.endswith('original') for n in prune.prunable(D))
    assert 'l1.weight' in prune.prunable(G, 'all') and 'l5.parametrizations.weight.original' in prune.prunable(D, 'all')
    assert set(prune.prunable(D, 'all')) <= set(dict(D.named_parameters()))


def test_ties_are_cut_to_the_exact_count():
    net = torch.nn.Conv2d(10, 10, 1)
    torch.nn.init.constant_(net.weight, .5)
    masks = prune.magnitude(torch.nn.Sequential(net), {'0.weight': torch.ones(10, 10, 1, 1, dtype=torch.bool)}, .37)
    assert int(masks['0.weight'].sum()) == 63


def test_a_tensor_that_would_become_empty_is_named():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 50, 3))
    torch.nn.init.constant_(net[0].weight, 1e-9)
    with pytest.raises(ValueError, match='0.weight'):
        prune.magnitude(net, prune.ones(net), .2)


def test_apply_zeroes_what_is_pruned_and_keeps_the_rest_bit_for_bit():
    torch.manual_seed(0)
    net = sngan.Discriminator(8)
    masks, before = prune.magnitude(net, prune.ones(net), .5), copy.deepcopy(net.state_dict())
    prune.apply_(net, masks)
    for name, value in net.state_dict().items():
        keep = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[keep], before[name][keep]) and not value[~keep].any()


def test_a_state_dict_serves_as_well_as_a_network():
    net = sngan.Generator(32, 8)
    a, b = (prune.magnitude(x, prune.ones(net), .2) for x in (net, net.state_dict()))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_no_masks_are_dense():
    assert prune.sparsity({}) == 0


def test_mismatch_names_the_layer_and_both_shapes():
    net, other = sngan.Generator(32, 8), sngan.Generator(32, 16)
    sentence = prune.mismatch(net, other.state_dict(), {})
    assert 'l1.weight' in sentence and '(128, 128)' in sentence and '(256, 128)' in sentence
    assert prune.mismatch(net, net.state_dict(), prune.ones(net)) is None
    assert 'nothing' in prune.mismatch(net, net.state_dict(), {'nothing': torch.ones(1)})


# ---- what it is compared with

def small():
    torch.manual_seed(0)
    return sngan.Generator(32, 16)


def bits(*values):
    return {'w': torch.tensor(values, dtype=torch.bool)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_what_survives_some_rounds_is_counted_as_the_rounds_do():
    assert [prune.alive_after(1001, .2, k) for k in range(5)] == [1001, 801, 641, 513, 411]
    net, masks = small(), prune.ones(small())
    for k in range(5):
        assert prune.alive(masks) == prune.alive_after(prune.alive(prune.ones(net)), .4, k)
        masks = prune.magnitude(net, masks, .4)


@pytest.mark.parametrize('rho', [.1, .2, .4])
def test_pruning_at_once_leaves_exactly_what_rounds_leave(rho):
    net, dense = small(), prune.ones(small())
    for k in (1, 2, 5):
        keep = prune.alive_after(prune.alive(dense), rho, k)
        assert prune.alive(prune.magnitude(net, dense, keep=keep)) == keep
        assert prune.alive(prune.random(dense, keep, np.random.default_rng(0))) == keep
    assert same(prune.magnitude(net, dense, keep=prune.alive_after(prune.alive(dense), rho, 1)),
                prune.magnitude(net, dense, rho))


def test_of_one_weighting_rounds_and_at_once_are_the_same():
    """Without training in between the surviving order does not change."""
    net, masks = small(), prune.ones(small())
    keep = prune.alive_after(prune.alive(masks), .2, 4)
    for _ in range(4):
        masks = prune.magnitude(net, masks, .2)
    assert same(masks, prune.magnitude(net, prune.ones(net), keep=keep))


def test_weights_are_ranked_as_they_act():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.Conv2d(3, 2, 1))
    for layer, value in zip(net, (1., 2.)):
        layer.weight.data = value + torch.arange(6.).view_as(layer.weight) / 100
    left = lambda **how: [int(m.sum()) for m in prune.magnitude(net, prune.ones(net), keep=7, **how).values()]
    assert left() == left(gains={}) == [1, 6] and left(gains={'0.weight': 3.}) == [6, 1]
    assert left(gains={'0.weight': 10., '1.weight': 5.04}) == [4, 3]        # 10, 10.1 ... and 10.08, 10.13 ...


def test_random_masks_are_uniform_nested_and_the_same_everywhere():
    dense = prune.ones(sngan.Generator(32, 32))
    draw = lambda keep, seed=0: prune.random(dense, keep, np.random.default_rng(seed))
    n = prune.alive(dense)
    half, fifth = draw(n // 2), draw(n // 5)
    assert same(half, draw(n // 2)) and not same(half, draw(n // 2, 1))
    assert all((fifth[m] <= half[m]).all() for m in dense)
    for m in half.values():                                     # half of every tensor, and of half of it
        for part in (m, m[:len(m) // 2], m.flatten(1)[:, ::2]):
            assert abs(part.double().mean() - .5) < 4 * .5 / part.numel() ** .5
    assert abs(prune.overlap(half, draw(n // 2, 1)) - 1 / 3) < .01                  # 1/4 in both, 3/4 in either
    tiny = prune.random(bits(*[1] * 8), 4, np.random.default_rng(7))                # numpy's stream, on any machine
    assert tiny['w'].tolist() == (np.random.default_rng(7).random(8).argsort().argsort() >= 4).tolist()
    with pytest.raises(ValueError, match='would lose all'):
        draw(5)


def test_random_within_layers_keeps_every_tensors_sparsity_and_no_place():
    masks = prune.magnitude(small(), prune.ones(small()), .8)
    shuffled = [prune.random_layers(masks, np.random.default_rng(s)) for s in (0, 0, 1)]
    assert same(shuffled[0], shuffled[1]) and not same(shuffled[0], shuffled[2])
    row = prune.random_layers({'w': torch.arange(400).view(20, 20) < 20}, np.random.default_rng(0))['w']
    assert row.any(1).sum() > 5 and row.any(0).sum() > 5        # of one row of weights, all over the tensor
    for name, m in masks.items():
        assert shuffled[0][name].shape == m.shape and int(shuffled[0][name].sum()) == int(m.sum())
    assert prune.overlap(shuffled[0], shuffled[2]) < .5 * prune.overlap(masks, masks) == .5


def test_distances_of_masks_by_hand():
    a, b = bits(1, 1, 0, 0, 1), bits(1, 0, 1, 0, 1)
    assert prune.hamming(a, b) == .4 and prune.overlap(a, b) == .5
    assert prune.hamming(a, a) == 0 and prune.overlap(a, a) == 1
    assert prune.hamming({}, {}) == 0 and prune.overlap({}, {}) == 1
    assert prune.channels({'w': torch.tensor([[[1, 0]], [[0, 0]], [[0, 0]], [[1, 1]]], dtype=torch.bool)}) == .5
    assert prune.channels({}) == 0 == prune.channels(prune.ones(small()))


def test_the_drift_is_of_the_newest_mask_from_the_four_before_it():
    far, near, here = bits(*[0] * 9, 1), bits(*[1] * 9, 0), bits(*[1] * 10)
    assert prune.drift([]) == prune.drift([here] * 4) == 1. and prune.drift([here] * 5) == 0
    assert prune.drift([far, near, here, here, here, here]) == .1                  # far has left
    assert prune.drift([near, here, here, here, far]) == 1. and prune.drift([far, here, here, here, here]) == .9


def test_slimming_takes_the_channels_of_the_smallest_scales_and_stops_next_to_the_count():
    G = small()
    for i, name in enumerate(G.slimmable()):
        G.get_parameter(name).data = torch.linspace(.1, 1., 16) * (-1) ** i + .001 * i
    dense = prune.ones(G)
    scales = sorted((abs(g), n, c) for n in G.slimmable() for c, g in enumerate(G.get_parameter(n).tolist()))
    counts = []                                                 # of every number of channels, by brute force
    for cut in range(len(scales)):
        masks = {n: m.clone() for n, m in dense.items()}
        for _, name, c in scales[:cut]:
            front, behind = G.slimmable()[name]
            masks[behind][:, c] = False
            if front:
                masks[front][c] = False
        counts.append((prune.alive(masks), masks))
    for goal in (prune.alive(dense), 14000, 12345, 9000, 5000):
        left, masks = min(counts, key=lambda c: abs(c[0] - goal))
        new = prune.slim(G, dense, G.slimmable(), goal)
        assert prune.alive(new) == left and same(new, masks) and abs(left - goal) < 16 * 9 * 2
    removed = scales[:next(i for i, (left, _) in enumerate(counts) if left == prune.alive(new))]
    filters = sum('n2' in name for _, name, _ in removed)
    assert prune.channels(new) == filters / (9 * 16 + 3) and filters > 20 and prune.sparsity(dense) == 0
    G.n5.weight.data = torch.linspace(1e-3, 2e-3, 16)           # these alone would go: the largest stays
    last = prune.slim(G, dense, G.slimmable(), 9000)['c5.weight']
    assert last.any(0).any(-1).any(-1).nonzero().flatten().tolist() == [15]
    assert all(m.any() for m in prune.slim(G, dense, G.slimmable(), 0).values())


def test_a_slimmed_generator_is_the_one_without_those_channels():
    """In training mode, on random scales, shifts and biases, against blocks with smaller tensors."""
    G = small().double()
    for p in G.parameters():
        p.data += .3 * torch.randn_like(p)
    masks = prune.slim(G, prune.ones(G), G.slimmable(), 8000)
    z = torch.randn(8, 128, dtype=torch.float64)
    prune.apply_(G, masks)
    up = lambda x: F.interpolate(x, scale_factor=2.)

    def normed(x, n, keep):
        return F.relu(F.batch_norm(x, None, None, n.weight[keep], n.bias[keep], True, eps=n.eps))
    x, sizes = G.to_feature(z), []
    for name in ('block2', 'block3', 'block4'):
        b = G.get_submodule(name)
        enter, inside = (masks[f'{name}.{c}.weight'].any(0).any(-1).any(-1) for c in ('c1', 'c2'))
        w1, w2 = b.c1.weight[inside][:, enter], b.c2.weight[:, inside]
        assert w1.all() and w2.all()                            # nothing is left of what could be taken away
        sizes += [len(w1), w1.shape[1]]
        h = F.conv2d(up(normed(x[:, enter], b.n1, enter)), w1, b.c1.bias[inside], padding=1)
        x = F.conv2d(normed(h, b.n2, inside), w2, b.c2.bias, padding=1) + up(b.sc(x))
    last = masks['c5.weight'].any(0).any(-1).any(-1)
    x = torch.tanh(F.conv2d(normed(x[:, last], G.n5, last), G.c5.weight[:, last], G.c5.bias, padding=1))
    assert all(0 < n < 16 for n in sizes) and last.sum() < 16
    assert torch.allclose(G(z), x, atol=1e-10)


@pytest.mark.parametrize('optimiser', [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_held_weight_stays_zero_in_any_loop_and_the_others_learn(optimiser):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(8, 1, 3)))
    masks = prune.magnitude(net, prune.ones(net), .5)
    hooks = prune.hold_(net, masks)
    weights = dict(net.named_parameters())
    before = {name: weights[name].detach().clone() for name in masks}
    how = {'momentum': .9} if optimiser is torch.optim.SGD else {}
    steps = optimiser(net.parameters(), lr=.1, weight_decay=.01, **how)

    def train():
        for _ in range(3):
            steps.zero_grad()
            net(torch.randn(2, 3, 8, 8)).square().mean().backward()
            steps.step()
    train()
    for name, mask in masks.items():
        assert (weights[name][~mask] == 0).all() and (weights[name][mask] != before[name][mask]).any()

    for hook in hooks:
        hook.remove()
    train()
    assert all((weights[name][~mask] != 0).any() for name, mask in masks.items())
