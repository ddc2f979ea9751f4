"""The losses of GAN training as functions of D's logits (sec. 3.1 of the paper).

Use:
    import torch, losses
    f_D, f_G = losses.LOSSES['hinge']
    real, fake = torch.randn(8), torch.randn(8)           # D(x) and D(G(z)) [N]
    L_D = losses.d_loss(real, fake, f_D)
    L_G = losses.g_loss(fake, f_G)

    L_D = E f_D(-D(x)) + E f_D(D(G(z))),      L_G = E f_G(-D(G(z)))
    hinge (Lim & Ye 2017):        f_D(t) = max(0, 1 + t),     f_G(t) = t
    logistic (Goodfellow 2014):   f_D(t) = log(1 + e^t),      f_G(t) = log(1 + e^t)    (the non-saturating form)

Both players minimise.  The paper says that D maximises L_D: a slip of the sign, since its f_D is a loss.
"""
import torch.nn.functional as F


def hinge(t):
    """max(0, 1 + t)."""
    return F.relu(1 + t)


def identity(t):
    """t: G's side of the hinge loss."""
    return t


LOSSES = {'hinge': (hinge, identity), 'logistic': (F.softplus, F.softplus)}


def d_loss(real, fake, f_D):
    """L_D from logits on real [N] and generated [M] images."""
    return f_D(-real).mean() + f_D(fake).mean()


def g_loss(fake, f_G):
    """L_G from logits on generated images [N]."""
    return f_G(-fake).mean()
