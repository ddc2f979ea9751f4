"""advaug.py: PGD climbs in its ball, leaves nothing behind; the closed form at D's last layer; the fast backward."""
import argparse

import pytest
import torch
from torch.nn.utils import parametrize

import advaug
import augment
import losses
from models import sngan


def networks(seed=0, ch=8):
    torch.manual_seed(seed)
    G, D = sngan.Generator(32, ch), sngan.Discriminator(ch)
    return G, D, torch.randn(4, 128)


@pytest.mark.parametrize('cut', range(1, 5))
def test_pgd_raises_its_objective_under_one_draw_of_T(cut):
    G, D, z = networks()
    G.eval(), D.eval()
    h, G2 = G.split(z, cut)
    T = augment.draw('color,translation,cutout', torch.empty(4, 3, 32, 32))
    score = lambda h: -D(T(G2(h)))
    values = [score(advaug.pgd(h, score, steps, .01)).mean().item() for steps in (0, 1, 3)]
    assert values[0] < values[1] < values[2]
    assert score(advaug.pgd(h, score, 1, -.01)).mean().item() < values[0]          # a negative step descends


def test_pgd_stays_inside_eps_and_leaves_no_gradient():
    G, D, z = networks()
    h, G2 = G.split(z, 1)
    for steps, eps, bound in ((1, None, .01), (5, .02, .02), (3, None, .03)):
        moved = advaug.pgd(h, lambda h: -D(G2(h)), steps, .01, eps)
        assert 0 < (moved - h).abs().max() <= bound + 1e-6
    assert all(p.grad is None for net in (G, D) for p in net.parameters())


def test_delta_is_a_constant_and_the_gradient_passes_through_h():
    h = torch.randn(3, 2, requires_grad=True)
    advaug.pgd(h, lambda h: (h ** 3).sum(), 2, .1).sum().backward()
    assert torch.equal(h.grad, torch.ones_like(h))


def test_at_the_last_layer_of_D_delta_and_shift_have_their_closed_form():
    _, D, _ = networks(ch=64)
    for _ in range(20):                                        # power iterations, so that logits are of order 1
        D(torch.zeros(1, 3, 8, 8))
    D.eval()
    w = D.l5.weight[0].detach()
    for bf16, tolerance in ((False, 1e-6), (True, .01)):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            h, D2 = D.split(.1 * torch.randn(6, 3, 32, 32), -1)
            for step in (.01, .001):
                moved = advaug.pgd(h, D2, 1, step)
                shift = step * w.abs().sum()                                       # c = gamma |w|_1
                assert (moved - (h + step * w.sign())).abs().max() <= 1e-6 * h.abs().max()
                rounding = 1e-6 * D2(h).abs().max().item()                         # of the difference of two logits
                assert torch.allclose(D2(moved) - D2(h), shift.expand(6), rtol=tolerance, atol=rounding), (bf16, step)


@pytest.mark.parametrize('steps', [1, 3])
@pytest.mark.parametrize('loss', ['hinge', 'logistic'])
@pytest.mark.parametrize('cut', [1, 3, -1])
def test_backward_gives_the_gradients_of_the_plain_form(steps, loss, cut):
    G, D, z = networks()
    D.requires_grad_(False)
    T = augment.draw('color,translation,cutout', torch.empty(4, 3, 32, 32))
    f_G = losses.LOSSES[loss][1]
    gradients = []
    for fast in (True, False):
        G.zero_grad()
        with parametrize.cached():
            h, G2 = G.split(z, cut)
            fool = lambda h, G2=G2: losses.g_loss(D.eval()(T(G2(h))), f_G)
            if fast:
                advaug.backward(h, fool, steps, .05, weight=.7)
            else:
                (fool(h) + .7 * fool(advaug.pgd(h, fool, steps, .05))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in G.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6 * gradients[1].abs().max())


def test_backward_shares_what_both_passes_use():
    """Labels or W / sigma(W) hang on one graph that both passes run through."""
    w, z = torch.randn(3, 3, requires_grad=True), torch.randn(5, 3)
    side, h = torch.tanh(w), z @ w
    loss = lambda h: ((h @ side) ** 2).mean()
    advaug.backward(h, loss, 1, .1)
    fast, w.grad = w.grad, None
    side, h = torch.tanh(w), z @ w
    (loss(h) + loss(advaug.pgd(h, loss, 1, .1))).backward()
    assert torch.allclose(fast, w.grad, rtol=1e-5)


def test_noise_has_the_asked_spread_and_keeps_the_gradient():
    torch.manual_seed(0)
    h = torch.zeros(20000, requires_grad=True)
    y = advaug.noise(h, .01)
    assert abs(y.std().item() - .01) < 3e-4 and abs(y.mean().item()) < 3e-4
    y.sum().backward()
    assert (h.grad == 1).all()


@pytest.mark.parametrize('flags, word', [
    (['--adv-step', '.1'], '--advaug'), (['--advaug', 'g', '--adv-cut-d', '2'], '--adv-cut-d'),
    (['--advaug', 'd', '--adv-noise', '.01', '--adv-pgd', '3'], '--adv-noise')])
def test_flags_that_would_do_nothing_are_named(flags, word):
    p = advaug.add_flags(argparse.ArgumentParser())
    assert word in advaug.contradiction(p.parse_args(flags), p.get_default)
    assert advaug.contradiction(p.parse_args(['--advaug', 'gd', '--adv-step', '.02']), p.get_default) is None


def test_everyday_flags_go_to_the_first_group_and_all_others_to_the_second():
    p = argparse.ArgumentParser()
    everyday, experiments = p.add_argument_group('everyday'), p.add_argument_group('experiments')
    assert advaug.add_flags(everyday, experiments) is everyday
    assert [a.option_strings[0] for a in everyday._group_actions] == ['--advaug', '--adv-step']
    alone = advaug.add_flags(argparse.ArgumentParser())
    assert vars(p.parse_args([])) == vars(alone.parse_args([])) and p.format_help()
