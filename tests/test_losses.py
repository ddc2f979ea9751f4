"""losses.py: analytic values, and that each player's loss falls in the direction it should."""
import argparse
import math

import pytest
import torch

import losses


def test_hinge_values():
    f_D, f_G = losses.LOSSES['hinge']
    real, fake = torch.tensor([2., 0., -1.]), torch.tensor([-3., 0.5])
    assert losses.d_loss(real, fake, f_D).item() == (0 + 1 + 2) / 3 + (0 + 1.5) / 2
    assert losses.g_loss(fake, f_G).item() == 1.25


def test_logistic_values():
    f_D, f_G = losses.LOSSES['logistic']
    real, fake = torch.tensor([0.3]), torch.tensor([-0.7])
    softplus = lambda t: math.log1p(math.exp(t))
    assert abs(losses.d_loss(real, fake, f_D).item() - softplus(-.3) - softplus(-.7)) < 1e-6
    assert abs(losses.g_loss(fake, f_G).item() - softplus(.7)) < 1e-6


def test_D_wants_reals_up_and_fakes_down_and_G_wants_fakes_up():
    for f_D, f_G in losses.LOSSES.values():
        real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        losses.d_loss(real, fake, f_D).backward()
        assert (real.grad < 0).all() and (fake.grad > 0).all()
        fake.grad = None
        losses.g_loss(fake, f_G).backward()
        assert (fake.grad < 0).all()


@pytest.mark.parametrize('form', ['paper', 'released'])
def test_lecam_equals_its_formula_and_its_anchors_follow_their_average(form):
    rng = torch.Generator().manual_seed(0)
    lecam, anchors = losses.LeCam(.3, start=2, decay=.9, form=form), None
    for i, step in enumerate((1, 1, 2, 2, 3, 3, 4)):             # two updates of D for each of G
        real, fake = torch.randn(8, generator=rng) + 1, torch.randn(8, generator=rng) - 1
        value = lecam(real, fake)
        if i < 5:                                                # up to the start: none, and anchors without memory
            assert value == 0
        else:
            a_R, a_F = anchors
            gaps = real - a_F, fake - a_R
            if form == 'released':
                gaps = gaps[0].clamp(min=0), (a_R - fake).clamp(min=0)
            assert torch.isclose(value, .3 * (gaps[0].square().mean() + gaps[1].square().mean()))
        seen = torch.stack((real.mean(), fake.mean()))
        anchors = .9 * anchors + .1 * seen if i >= 5 else seen
        lecam.step(step)
        assert torch.allclose(lecam.anchors, anchors)


def test_lecam_shares_its_anchors_between_micro_batches_and_pulls_D_back():
    real, fake = (torch.randn(8, generator=torch.Generator().manual_seed(i)) * 3 for i in range(2))
    whole, parts = losses.LeCam(1., 0), losses.LeCam(1., 0)
    for _ in range(2):
        a = whole(real, fake)
        b = sum(parts(real[i:i + 2], fake[i:i + 2]) for i in range(0, 8, 2)) / 4
        whole.step(), parts.step()
    assert torch.isclose(a, b) and torch.allclose(whole.anchors, parts.anchors)
    x = real.clone().requires_grad_()
    whole(x, fake).backward()
    assert torch.allclose(x.grad, 2 * (real - whole.anchors[1]) / 8)               # towards the fakes' average
    again = losses.LeCam(1., 0)
    again.load(whole.state())
    assert torch.equal(again(real, fake), whole(real, fake))


@pytest.mark.parametrize('flags, word', [
    (['--lecam-decay', '.5'], '--lecam-decay 0.5'), (['--lecam-form', 'released'], '--lecam-form released'),
    (['--margin', '.5', '--loss', 'logistic'], '--margin 0.5')])
def test_flags_of_losses_that_do_nothing_are_named(flags, word):
    p = losses.add_flags(argparse.ArgumentParser())
    assert word in losses.contradiction(p.parse_args(flags), p.get_default)


def test_lecam_without_a_weight_takes_the_published_one_of_the_loss():
    p = losses.add_flags(argparse.ArgumentParser())
    for loss, weight in (('hinge', .3), ('logistic', 3e-7)):
        args = p.parse_args(['--loss', loss, '--lecam', '1'])
        assert losses.contradiction(args, p.get_default) is None and args.lecam == 1
        args = p.parse_args(['--loss', loss, '--lecam'])
        assert losses.contradiction(args, p.get_default) is None and args.lecam == weight


def test_everyday_flags_go_to_the_first_group_and_all_others_to_the_second():
    p = argparse.ArgumentParser()
    everyday, experiments = p.add_argument_group('everyday'), p.add_argument_group('experiments')
    assert losses.add_flags(everyday, experiments) is everyday
    assert [a.option_strings[0] for a in everyday._group_actions] == ['--lecam']
    alone = losses.add_flags(argparse.ArgumentParser())
    assert vars(p.parse_args([])) == vars(alone.parse_args([])) and p.format_help()
