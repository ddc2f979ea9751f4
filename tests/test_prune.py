"""prune.py: Algorithm 1's arithmetic to one weight, what is ranked, and what is refused."""
import copy

import pytest
import torch

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
