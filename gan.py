"""The method: Algorithm 2's losses of D and G, for any two networks that can be cut.

Use:
    import contextlib, torch, gan, loop, train_sngan
    args = train_sngan.get_args('--data emoji-faces --ch-g 8 --ch-d 8 --advaug gd'.split())
    G, D = train_sngan.build(args)
    x, z, sums = torch.rand(4, 3, 32, 32) * 2 - 1, torch.randn(4, G.z_dim), loop.Sums('cpu', *gan.SUMS)
    gan.d_loss(D, x, G(z), args, sums).backward()                      # Eq. 6
    gan.g_loss(G, D, z, args, sums, contextlib.nullcontext)            # Eq. 4, with its backward passes

T augments images, f_D and f_G are losses of logits, and G = G2 o G1, D = D2 o D1 are cut at a stage:

    L_D     = mean f_D(-D(T(x))) + mean f_D(D(T(G(z))))
    L_D^adv = mean f_D(-D2(D1(T(x)) + d)) + mean f_D(D2(D1(T(G(z))) + d'))                    Eq. 5
              d lowers D, d' raises D
    D:  min  L_D + lambda_2 L_D^adv  [+ R_1 + R_LC]                                           Eq. 6

    L_G     = mean f_G(-D(T(G(z))))
    L_G^adv = mean f_G(-D(T(G2(G1(z) + d))))                                                  Eq. 3
              d raises the loss of G
    G:  min  L_G + lambda_1 L_G^adv  [+ L1 of network slimming]                               Eq. 4

PGD finds d in the ball |d|_inf <= epsilon (advaug.py).  The paper prints `min` in Eq. 5 and `max` in Eq. 6, as
if f_D were a gain.  f_D is a loss, so both are exchanged here.  The released code raises D with every d;
--adv-sign released does the same.
"""
import functools

import torch

import advaug
import augment
import losses

SUMS = ('L_D', 'D_real', 'D_fake', 'L_D_adv', 'D_shift', 'R_LC', 'R_1',    # what the log gets of D's loss,
        'L_G', 'L_G_adv', 'R_pl', 'L1')                                    # and of G's


def draw(args, x, ada=None):
    """T for images like x [N, 3, H, W]: DiffAugment, ADA with the p of its controller, or the identity."""
    policy = None
    if args.aug in ('diffaug', 'ada'):
        policy = args.aug_policy
    return augment.draw(policy, x, ada.p if ada else None)


def perturb(h, objective, args):
    """h + d of a feature h [N, ...]: d by PGD up objective(h), or Gaussian noise (baseline of Table 6)."""
    if args.adv_noise:
        return advaug.noise(h, args.adv_noise)
    return advaug.pgd(h, objective, args.adv_pgd, args.adv_step, args.adv_eps)


def perturbed_logits(h, D2, sign, args):
    """D2(h + d) [N], where d climbs sign * D2: the sign [N] is 1 where d raises D, -1 where d lowers D."""
    def objective(h):                          # not the hinge loss, whose gradient is 0 where D is right by far
        return sign * D2(h)
    return D2(perturb(h, objective, args))


def d_loss(D, real, fake, args, sums, y=None, y_fake=None, ada=None, lecam=None, r1=0.):
    """The loss of D, a scalar: Eq. 6 and the regularisers that are on.

    real, fake: images [N, 3, H, W] in [-1, 1].  y, y_fake: classes [N] of a conditional D.
    sums: loop.Sums, for the log.  ada: augment.Controller.  lecam: losses.LeCam.  r1: the weight of R_1."""
    n = len(real)
    f_D, _ = losses.LOSSES[args.loss]
    if args.margin != 1:
        f_D = functools.partial(losses.hinge, margin=args.margin)

    if args.aug == 'apa':                                              # D is told that some fakes are real
        real, y = augment.pseudo(real, fake, ada.p, y, y_fake)

    # T(x) and T(G(z)), with one draw of T.  --aug-on real leaves G(z) as it is, so that G learns T, too.
    real = real.detach().requires_grad_(r1 > 0)                        # R_1 is a gradient by x, before T
    if args.aug_on == 'real':
        T = draw(args, real, ada)
        images = torch.cat((T(real), fake))                            # [2N, 3, H, W]
    else:
        images = torch.cat((real, fake))
        T = draw(args, images, ada)
        images = T(images)                                             # [2N, 3, H, W]

    # D of reals and fakes in one pass, or in two as released (--d-pass separate).
    inputs = [images] if y is None else [images, torch.cat((y, y_fake))]
    passes = [inputs]
    if args.d_pass == 'separate':
        # Detached, because T made one tensor of both: R_1 would run back through D of the fakes, too.
        passes = [[part[:n] for part in inputs],
                  [part[n:].detach() for part in inputs]]
    cuts = [D.split(*part, cut=args.adv_cut_d) for part in passes]     # (h, D2) of each pass, h = D1(T(.))
    logits = torch.cat([D2(h) for h, D2 in cuts])                      # [2N]
    on_real, on_fake = logits[:n], logits[n:]

    loss = losses.d_loss(on_real, on_fake, f_D)                        # L_D
    sums.add(L_D=loss, D_real=on_real, D_fake=on_fake)
    if ada:
        ada.add(real=on_real, fake=on_fake)
    if r1:
        R_1 = losses.r1(on_real, real)
        sums.add(R_1=R_1)
        loss = loss + r1 * R_1
    if lecam:
        R_LC = lecam(on_real, on_fake)
        sums.add(R_LC=R_LC)
        loss = loss + R_LC

    if 'd' in args.advaug:
        # Eq. 5: d lowers D on reals and raises D on fakes.  Released: d raises D on both.
        signs = torch.ones(2 * n, device=images.device)                # [2N]
        signs[:n] = -1 if args.adv_sign == 'adversary' else 1
        signs = signs.chunk(len(cuts))
        moved = torch.cat([perturbed_logits(h, D2, sign, args) for (h, D2), sign in zip(cuts, signs)])
        adversarial = losses.d_loss(moved[:n], moved[n:], f_D)         # L_D^adv
        sums.add(L_D_adv=adversarial, D_shift=(moved - logits).abs())
        loss = loss + args.adv_lambda_d * adversarial                  # Eq. 6
    return loss


def g_loss(G, D, z, args, sums, context, *y, ada=None):
    """The loss of G, a scalar: Eq. 4, and the L1 of --slim.

    z: latents [N, z_dim].  y: the classes [N] of conditional networks.  context() -> the context of autocast.
    With PGD this has backpropagated L_G and L_G^adv when it returns, and only the L1 still has a graph."""
    _, f_G = losses.LOSSES[args.loss]
    cut = args.adv_cut_g if 'g' in args.advaug else 0
    with context():
        h, G2 = G.split(z, *y, cut=cut)                                # h = G1(z)
    T = losses.identity
    if args.aug_on == 'both':
        T = draw(args, z.new_empty(len(z), 3, args.res, args.res), ada)

    def fool(h):                                                       # L_G as a function of the feature h
        with context():
            logits = D(T(G2(h)), *y)                                   # [N]
            return losses.g_loss(logits, f_G)

    if 'g' not in args.advaug:
        loss = fool(h)
        sums.add(L_G=loss)
    else:
        if args.adv_noise:
            clean = fool(h)
            adversarial = fool(advaug.noise(h, args.adv_noise))
        else:
            # Eq. 3: d raises the loss of G.  Released: d lowers it.  The gradients of Eq. 4 meet in backward.
            step = args.adv_step if args.adv_sign == 'adversary' else -args.adv_step
            clean, adversarial = advaug.backward(h, fool, args.adv_pgd, step, args.adv_eps, args.adv_lambda_g)
        sums.add(L_G=clean, L_G_adv=adversarial)
        loss = clean + args.adv_lambda_g * adversarial                 # Eq. 4

    if args.slim:                                                      # network slimming, Liu et al. 2017
        L1 = args.slim * sum(G.get_parameter(name).abs().sum() for name in G.slimmable())
        sums.add(L1=L1)
        loss = loss + L1
    return loss
