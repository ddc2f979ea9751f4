"""losses.py: analytic values, and that each player's loss falls in the direction it should."""
import math

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
