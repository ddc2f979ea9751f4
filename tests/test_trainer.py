"""gan.py and trainer.py: updates against a plain loop, Eqs. 3-6 in closed form, flags, classes, widths."""
import contextlib
import copy
import io
import itertools
import os
import shutil
import weakref
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from helpers import METHOD, SCORE, SLOW, all_refused, equal, flop, parsed, refused, script, train
from torch.nn.utils import parametrize

import files
import find_ticket
import gan
import loop
import losses
import prune
import trainer
from flat import Flat, micro_batches
from models import sngan


def sums_of_gan():
    return loop.Sums('cpu', *gan.SUMS)


def context_of(args):
    return lambda: loop.autocast(args, torch.device('cpu'))


# ---- the updates of both networks against a plain loop

class PlainLoop:
    """The released layers and the hinge loss written out, one Adam per tensor, gradients times masks.

    share: one power iteration of the spectral norm per update, as with reals and fakes in one pass."""

    def __init__(self, model, args, G, D, masks, share):
        self.slow_G, self.slow_D = SLOW[model]
        self.G = prune.apply_(copy.deepcopy(G), masks['G'])
        self.D = prune.apply_(copy.deepcopy(D), masks['D'])
        self.adam_G = torch.optim.Adam(self.G.parameters(), args.lr_g, args.betas, args.adam_eps)
        self.adam_D = torch.optim.Adam(self.D.parameters(), args.lr_d, args.betas, args.adam_eps)
        self.masks, self.share = masks, share

    def once(self):
        return parametrize.cached() if self.share else contextlib.nullcontext()

    def step(self, net, adam, loss, masks):
        net.zero_grad()
        loss.backward()
        for name, p in net.named_parameters():
            p.grad *= masks.get(name, 1)
        adam.step()

    def d_step(self, x, z, y, y_fake):
        with self.once():
            fake = self.slow_G(self.G, z, *y_fake).detach()
            if self.share:
                labels = [torch.cat((y[0], y_fake[0]))] if y else []
                real, fake = self.slow_D(self.D, torch.cat((x, fake)), *labels).chunk(2)
            else:
                real, fake = self.slow_D(self.D, x, *y), self.slow_D(self.D, fake, *y_fake)
            self.step(self.D, self.adam_D, F.relu(1 - real).mean() + F.relu(1 + fake).mean(), self.masks['D'])

    def g_step(self, z, y_fake):
        with self.once():
            logits = self.slow_D(self.D, self.slow_G(self.G, z, *y_fake), *y_fake)
            self.step(self.G, self.adam_G, -logits.mean(), self.masks['G'])


def both_loops(model, flags, rho, dtype, iterations, d_steps):
    """Our G and D as flat networks, and the plain loop, after iterations on the same draws."""
    args = parsed(model, *flags)
    G, D = (net.to(dtype) for net in script(model).build(args))
    if model == 'biggan':                                      # gamma, 0 at first, would hide the attention
        G.attention.gamma.data.fill_(.5)
        D.attention.gamma.data.fill_(.5)
    masks = {'G': {}, 'D': {}}
    if rho:
        masks = {'G': prune.magnitude(G, prune.ones(G), rho), 'D': prune.magnitude(D, prune.ones(D), rho)}
    share = args.d_pass == 'joint'
    plain = PlainLoop(model, args, G, D, masks, share)
    adam = args.betas, args.adam_eps
    G = Flat(G.to(memory_format=torch.channels_last), args.lr_g, *adam, masks=masks['G'], share_sn=share)
    D = Flat(D.to(memory_format=torch.channels_last), args.lr_d, *adam, masks=masks['D'], share_sn=share)

    def d_loss(part):
        return gan.d_loss(D.net, x[part], G.net(z[part], *y_fake), args, sums_of_gan(), *y, *y_fake)

    def g_loss(part):
        return gan.g_loss(G.net, D.net, z[part], args, sums_of_gan(), context_of(args), *y_fake)

    rng = torch.Generator().manual_seed(0)
    y, y_fake = [], []
    for _ in range(iterations):
        for k in range(d_steps + 1):
            z = torch.randn(8, G.net.z_dim, generator=rng).to(dtype)
            if model == 'biggan':
                y, y_fake = [torch.randint(9, (8,), generator=rng)], [torch.randint(9, (8,), generator=rng)]
            if k < d_steps:
                x = (torch.rand(8, 3, args.res, args.res, generator=rng) * 2 - 1).to(dtype)
                D.update(d_loss)
                plain.d_step(x, z, y, y_fake)
        G.update(g_loss)
        plain.g_step(z, y_fake)
    return G.net, D.net, plain


@pytest.mark.parametrize('model, d_pass, rho, more', [
    ('sngan', 'separate', 0, []), ('sngan', 'joint', .5, []), ('biggan', 'joint', .5, []),
    pytest.param('biggan', 'separate', 0, ['--relu-shortcut'], marks=pytest.mark.slow)])
def test_updates_equal_a_plain_loop(model, d_pass, rho, more):
    """D's two passes as released, or joined; in float64, where nothing but the algorithm can differ."""
    G, D, plain = both_loops(model, ['--d-pass', d_pass, *more], rho, torch.float64, iterations=5, d_steps=2)
    for ours, theirs in ((G, plain.G), (D, plain.D)):
        for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            statistics = 'running' in key or 'tracked' in key
            if model == 'sngan' or not statistics:             # BigGAN's slow BN keeps none
                assert (a - b).abs().max() < 1e-8, key


def test_updates_equal_a_plain_loop_in_fp32():
    """Adam with beta_1 = 0 makes a step of +-lr out of a gradient that is rounding noise.

    Biases in front of a BN have no other, and of the weights a handful in a million does."""
    G, D, plain = both_loops('sngan', ['--d-pass', 'separate'], .5, torch.float32, iterations=4, d_steps=5)
    for ours, theirs, cancelled in ((G, plain.G, ('.c1.bias', '.c2.bias', '.sc.bias')), (D, plain.D, ())):
        gaps = []
        for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if not key.endswith(cancelled):
                gaps.append((a - b).abs().flatten())
        gaps = torch.cat(gaps)
        assert (gaps > 1e-4).float().mean() < 1e-3 and gaps.mean() < 1e-5
    slow_G, slow_D = SLOW['sngan']
    z = torch.randn(16, 128)
    x, y = G(z), slow_G(plain.G, z)
    assert (x - y).abs().mean() < 1e-4 and (D(x) - slow_D(plain.D, y)).abs().mean() < 1e-3


# ---- the equations

def double_networks(args, model='sngan'):
    """G, D in float64 whose spectral norms stand still, so that passes can be compared."""
    G, D = (net.double() for net in script(model).build(args))
    y = [torch.zeros(1).long()] if model == 'biggan' else []
    for _ in range(20):
        D(torch.zeros(1, 3, args.res, args.res, dtype=torch.float64), *y)
    return G, D.eval()


@pytest.mark.parametrize('d_pass', ['joint', 'separate'])
@pytest.mark.parametrize('sign', ['adversary', 'released'])
def test_eqs_5_and_6_at_the_linear_last_layer_of_D_shift_logits_by_the_norm_of_its_weight(sign, d_pass):
    """delta = +- step sign(w) moves a logit by +- step |w|_1: reals down, fakes up; as released both up."""
    args = parsed('sngan', '--advaug', 'd', '--adv-sign', sign, '--adv-step', '.05', '--adv-lambda-d', '3',
                  '--d-pass', d_pass)
    G, D = double_networks(args)
    D.l5.parametrizations.weight.original.data *= 3            # no logit next to the hinge
    real, fake = torch.rand(2, 8, 3, 16, 16, dtype=torch.float64) * 2 - 1
    shift = .05 * D.l5.weight.abs().sum()
    moved_real = D(real) + (shift if sign == 'released' else -shift)
    expected = F.relu(1 - moved_real).mean() + F.relu(1 + D(fake) + shift).mean()
    clean = F.relu(1 - D(real)).mean() + F.relu(1 + D(fake)).mean()
    sums = sums_of_gan()
    loss = gan.d_loss(D, real, fake, args, sums)
    means = sums.means()
    assert torch.allclose(loss, clean + 3 * expected, rtol=1e-9)                   # lambda_2
    assert means['L_D'] == pytest.approx(clean.item(), rel=1e-5)
    assert means['L_D_adv'] == pytest.approx(expected.item(), rel=1e-5)
    assert means['D_shift'] == pytest.approx(shift.item(), rel=1e-5)


@pytest.mark.parametrize('sign', ['adversary', 'released'])
def test_eqs_3_and_4_move_the_feature_of_G_by_the_sign_of_its_gradient_and_add_both_losses(sign):
    """delta is a constant for backpropagation: the gradient is that of L(h) + lambda_1 L(h + delta)."""
    args = parsed('sngan', '--advaug', 'g', '--adv-sign', sign, '--adv-step', '.05', '--adv-lambda-g', '3',
                  '--loss', 'logistic')
    G, D = double_networks(args)
    z = torch.randn(8, 128, dtype=torch.float64)

    def fool(h):
        return F.softplus(-D(G2(h))).mean()
    h, G2 = G.split(z, cut=1)
    direction = torch.autograd.grad(fool(h), h, retain_graph=True)[0].sign()
    delta = .05 * direction if sign == 'adversary' else -.05 * direction
    clean, adversarial = fool(h), fool(h + delta)
    expected = torch.autograd.grad(clean + 3 * adversarial, [*G.parameters()])
    assert (adversarial > clean) == (sign == 'adversary')      # the adversary raises the player's own loss

    sums = sums_of_gan()
    loss = gan.g_loss(G, D, z, args, sums, context_of(args))
    assert loss.item() == pytest.approx((clean + 3 * adversarial).item(), rel=1e-9)
    assert sums.means() == pytest.approx({'L_G': clean.item(), 'L_G_adv': adversarial.item()}, rel=1e-5)
    for (name, p), gradient in zip(G.named_parameters(), expected):
        assert torch.allclose(p.grad, gradient, atol=1e-12), name


def test_noise_stands_in_for_PGD_on_the_same_features_with_the_same_weights():
    args = parsed('sngan', '--advaug', 'gd', '--adv-noise', .01, '--adv-lambda-g', 3, '--adv-lambda-d', 5)
    G, D = double_networks(args)
    real, fake = torch.rand(2, 8, 3, 16, 16, dtype=torch.float64) * 2 - 1
    z, sums = torch.randn(8, 128, dtype=torch.float64), sums_of_gan()
    d_loss, g_loss = gan.d_loss(D, real, fake, args, sums), gan.g_loss(G, D, z, args, sums, context_of(args))
    means = sums.means()
    assert d_loss.item() == pytest.approx(means['L_D'] + 5 * means['L_D_adv'], rel=1e-5)
    assert g_loss.item() == pytest.approx(means['L_G'] + 3 * means['L_G_adv'], rel=1e-5)
    sigma = .01 * D.l5.weight.norm().item()                    # logits move by N(0, sigma^2)
    assert .4 * sigma < means['D_shift'] < 1.2 * sigma and means['L_G_adv'] != means['L_G']


def test_AdvAug_at_the_last_layer_of_a_conditional_D_shifts_the_logit_of_each_class_by_its_constant():
    """The head is linear: delta = -+ step sign(w + e(y)), so that logits move by step |w + e(y)|_1."""
    args = parsed('biggan', '--advaug', 'd')
    _, D = double_networks(args, 'biggan')
    x, y = torch.rand(9, 3, 32, 32, dtype=torch.float64) * 2 - 1, torch.arange(9)
    h, D2 = D.split(x, y, args.adv_cut_d)
    moved = D2(gan.perturb(h, lambda h: D2(h), args)) - D2(h)
    closed = .01 * (D.linear.weight + D.embed.weight).abs().sum(1)
    assert (moved - closed).abs().max() < 1e-3 * closed.max()                      # the head is fp32


def test_reals_alone_both_or_D_alone_are_augmented_as_asked(monkeypatch):
    """A T that adds 1 shows where it was: in D's step on reals and fakes, and in G's step."""
    monkeypatch.setattr(gan.augment, 'draw', lambda policy, x, p=None: lambda x: x + 1 if policy else x)

    class Spy(torch.nn.Module):
        def split(self, x, cut=0):
            self.seen = x.detach().mean((1, 2, 3))
            return x.mean((1, 2, 3)), lambda h: h

        def forward(self, x):
            return self.split(x)[0]
    G = Namespace(split=lambda z, cut: (z, lambda h: torch.zeros(4, 3, 8, 8) + h.mean()))
    for on, d_sees, g_sees in (('both', [1., 1.], 1.), ('real', [1., 0.], 0.), ('d', [1., 1.], 0.)):
        args, D = parsed('sngan', '--aug', 'diffaug', '--aug-on', on), Spy()
        gan.d_loss(D, torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8), args, sums_of_gan())
        assert D.seen[[0, -1]].tolist() == d_sees
        gan.g_loss(G, D, torch.zeros(4, 8), args, sums_of_gan(), contextlib.nullcontext)
        assert D.seen[0] == g_sees


def test_D_tells_ADA_and_LeCam_its_logits_and_reals_and_fakes_meet_one_draw_of_T(monkeypatch):
    draws, told = [], {}

    def draw(policy, x, p=None):
        draws.append((policy, len(x), p))
        return lambda x: x
    monkeypatch.setattr(gan.augment, 'draw', draw)
    args = parsed('sngan', '--aug', 'ada', '--lecam')
    _, D = double_networks(args)
    real, fake = torch.rand(2, 8, 3, 16, 16, dtype=torch.float64) * 2 - 1
    loss = gan.d_loss(D, real, fake, args, sums_of_gan(), ada=Namespace(p=.3, add=told.update),
                      lecam=lambda on_real, on_fake: 7 * (on_real - 2 * on_fake).mean())
    assert torch.equal(told['real'], D(real)) and torch.equal(told['fake'], D(fake)) and len(told) == 2
    hinge = F.relu(1 - D(real)).mean() + F.relu(1 + D(fake)).mean()
    assert torch.allclose(loss, hinge + 7 * (D(real) - 2 * D(fake)).mean())
    assert draws == [('bgc', 16, .3)]


def test_R_1_beside_the_loss_is_the_gradient_of_D_on_images_before_T():
    args = parsed('stylegan2', '--aug', 'diffaug', '--loss', 'logistic')
    G, D = (net.double() for net in script('stylegan2').build(args))
    real, fake = torch.rand(2, 4, 3, 16, 16, dtype=torch.float64)

    def loss(r1):
        torch.manual_seed(0)
        return gan.d_loss(D, real, fake, args, sums_of_gan(), r1=r1)
    penalty = (loss(10.) - loss(0.)).item() / 10
    torch.manual_seed(0)
    T = gan.draw(args, torch.cat((real, fake)), None)
    x = real.clone().requires_grad_(True)
    g, = torch.autograd.grad(D(T(torch.cat((x, fake)))[:4]).sum(), x)
    slow = g.square().sum().item() / 4 / 2
    assert slow > 0 and abs(penalty / slow - 1) < 1e-6         # T computes in fp32


def test_R_1_beside_the_loss_costs_three_passes_of_D_on_the_reals_and_none_on_the_fakes():
    """The gradient by the images, and its backward pass by the weights and by the gradient behind it."""
    args = parsed('stylegan2', '--aug', 'diffaug', '--loss', 'logistic')
    _, D = script('stylegan2').build(args)
    real, fake = torch.rand(2, 4, 3, 16, 16)
    with_R_1 = flop(lambda: gan.d_loss(D, real, fake, args, sums_of_gan(), r1=1.).backward())
    without = flop(lambda: gan.d_loss(D, real, fake, args, sums_of_gan()).backward())
    assert 1.4 < with_R_1 / without < 1.6, (with_R_1, without)         # 9 passes instead of 6


@pytest.mark.parametrize('model', ['sngan', 'biggan'])
def test_AdvAug_costs_a_second_pass_of_G_and_only_the_head_of_D(model):
    costs = []
    for advaug in ('none', 'gd'):
        args = parsed(model, '--advaug', advaug)
        G, D = (Flat(net, 1e-3) for net in script(model).build(args))
        x, z = torch.rand(4, 3, args.res, args.res), torch.randn(4, G.net.z_dim)
        y = [torch.arange(4)] if model == 'biggan' else []

        def d_loss(part, args=args, G=G, D=D, x=x, z=z, y=y):
            return gan.d_loss(D.net, x, G.net(z, *y), args, sums_of_gan(), *y, *y)

        def g_loss(part, args=args, G=G, D=D, z=z, y=y):
            return gan.g_loss(G.net, D.net, z, args, sums_of_gan(), context_of(args), *y)
        costs.append((flop(lambda D=D, f=d_loss: D.update(f)), flop(lambda G=G, f=g_loss: G.update(f))))
    (plain_d, plain_g), (advaug_d, advaug_g) = costs
    assert advaug_d / plain_d < 1.03 and advaug_g / plain_g < 2.01, costs


@pytest.mark.parametrize('flags', [[], ['--advaug', 'gd'], ['--advaug', 'g', '--adv-noise', '.01']])
def test_slim_adds_its_pull_to_the_gradient_of_the_scales_and_of_nothing_else(flags):
    z = torch.randn(8, 128, dtype=torch.float64)

    def gradients(*more):
        args = parsed('sngan', *flags, *more)
        G, D = script('sngan').build(args)
        G.block2.n1.weight.data[0] = -1.
        G, D, sums = Flat(G.double(), 1.), Flat(D.double(), 1.), sums_of_gan()

        def loss(part):
            return gan.g_loss(G.net, D.net, z[part], args, sums, context_of(args))
        torch.manual_seed(0)
        with G.requiring_grad():
            G.backward(loss, micro_batches(8, 4))
        return G, sums.means()
    (plain, _), (slim, means) = gradients(), gradients('--slim', '.5')
    for name in plain.layout:
        pull = .5 * plain.net.get_parameter(name).sign() if name in plain.net.slimmable() else 0.
        assert torch.allclose(slim.view(slim.g, name), plain.view(plain.g, name) + pull, atol=1e-10), name
    total = sum(slim.net.get_parameter(name).abs().sum().item() for name in slim.net.slimmable())
    assert means['L1'] == pytest.approx(.5 * total) and len(slim.net.slimmable()) == 7


def test_micro_batches_of_D_with_classes_and_AdvAug_equal_the_big_batch():
    args = parsed('biggan', '--advaug', 'd')
    _, D = script('biggan').build(args)
    x, fake, y = torch.rand(8, 3, 32, 32) * 2 - 1, torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8)
    gradients = []
    for micro in (8, 2):
        flat = Flat(copy.deepcopy(D), 1e-3)
        flat.update(lambda p, flat=flat: gan.d_loss(flat.net, x[p], fake[p], args, sums_of_gan(), y[p], y[p]),
                    micro_batches(8, micro))
        gradients.append(flat.g.clone())
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


# ---- flags

SNGAN_REFUSES = [
    (['--lr', '1'], '--lr'), (['--step', '3'], '--step'), (['--batch-gpu', '3'], ['--batch-gpu 3', '8']),
    (['--steps', '0'], '--steps 0'), (['--advaug', 'gd', '--adv-pgd', '0'], '--adv-pgd 0'),
    (['--aug-policy', 'cutout'], '--aug diffaug'), (['--graph'], '--graph'), (['--ema', '1.5'], '--ema 1.5'),
    (['--betas', '.5', '1'], '--betas 1.0'), (['--res', '36'], '--res 36'),
    (['--mask', 'none.pt'], '--mask none.pt'), (['--adv-step', '.1'], '--advaug'),
    (['--g-batch', '6', '--batch-gpu', '4'], '--g-batch 6'), (['--lr-g', '-1'], '--lr-g -1'),
    (['--ch-g', '0'], '--ch-g 0'), (['--eval-samples', '1'], '--eval-samples 1'),
    (['--frac', 'inf'], '--frac inf'), (['--init-from', 'none.pt'], '--init-from none.pt'),
    (['--advaug', 'gd', '--adv-cut-g', '9'], '--adv-cut-g 9'), (['--slim', '0'], '--slim 0'),
    (['--reinit'], '--mask TICKET'), (['--max-hours', '0'], '--max-hours 0'),
    (['--save-every', '0'], '--save-every 0'), (['--ema-start', '-1'], '--ema-start -1'),
    (['--lecam-decay', '.5'], '--lecam'), (['--device', 'tpu'], '--device'),
]


def test_flags_that_cannot_be_are_refused_before_anything_is_built(capsys, monkeypatch):
    monkeypatch.setattr(trainer.images, 'load', None)
    all_refused(capsys, lambda flags: parsed('sngan', *flags), SNGAN_REFUSES)


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '3')
    refused(capsys, lambda: parsed('sngan'), '--batch 8 does not divide over 3 ranks')


def test_augmentation_that_cannot_be_is_refused(tmp_path, capsys):
    def call(flags):
        train('sngan', tmp_path, '--steps', '1', '--aug', 'ada', *flags)
    all_refused(capsys, call, [
        (['--ada-heuristic', 'rv', '--frac', '1.0', '--data', 'emoji'], 'rv needs held-out'),
        (['--aug-policy', 'bgcf', '--res', '16'], '21 px'), (['--res', '8'], '16 px')])


def test_a_training_must_print_its_steps_which_diffaugment_alone_does_not_change(tmp_path, capsys):
    for flags in ([], ['--aug', 'diffaug']):
        args = parsed('sngan', '--steps', '70', *flags)
        line = trainer.settings('sngan', args, torch.device('cpu'))
        seen = 70 * args.batch * args.d_steps
        assert f': 70 steps, in which D sees {seen:,} real images, ' in line
        assert f'--aug {args.aug}' in line

    train('sngan', tmp_path / 'run', '--steps', '1')
    assert f'python generate.py {tmp_path}/run, which draws {tmp_path}/run/grid.png' in capsys.readouterr().out


def test_check_data_draws_what_d_sees_of_the_users_own_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn = []
    draw = trainer.augment.draw

    def watched(policy, x, p=None):
        drawn.append((policy, p))
        return draw(policy, x, p)
    monkeypatch.setattr(trainer.augment, 'draw', watched)

    def sheet(*flags):
        """What --check-data draws, [4 rows, 8 images, 16, 16, 3], and its calls of augment.draw on images."""
        drawn.clear()
        assert train('sngan', 'run', '--check-data', *flags) is None
        x = np.array(Image.open('run/augmented.png')).reshape(4, 16, 8, 16, 3)
        return x.transpose(0, 2, 1, 3, 4), drawn[-3:]

    kept, calls = sheet('--aug', 'ada', '--ada-p', '0')
    args = parsed('sngan')
    data = trainer.load_data(args)
    rows = trainer.fixed_rows(len(data.images), 8)
    assert (kept == data.images[rows].permute(0, 2, 3, 1).numpy()).all() and calls == [('bgc', 0.)] * 3

    cut, calls = sheet('--aug', 'ada', '--ada-p', '1', '--aug-policy', 'cutout')
    changed = (cut != kept).any((2, 3, 4))
    assert not changed[0].any() and changed[1:].all()
    _, calls = sheet('--aug', 'ada')
    assert calls == [('bgc', .2), ('bgc', .5), ('bgc', .8)] and 'p = 0.2, 0.5, 0.8' in capsys.readouterr().out
    x, calls = sheet('--aug', 'diffaug')
    assert calls == [('color,translation,cutout', None)] * 3 and (x[1:] != x[:1]).any((2, 3, 4)).all()

    assert os.listdir('run') == ['augmented.png']
    shutil.rmtree('run')
    capsys.readouterr()
    train('sngan', 'run', '--check-data')
    assert not os.listdir(tmp_path)                            # no run, and without --aug no sheet
    assert 'makes images of 16 px' in capsys.readouterr().out
    script('sngan').main(parsed('sngan', '--check-data', '--aug', 'ada'))
    assert os.listdir(tmp_path) == ['augmented.png']           # without --out: here


def shown_in_tensorboard(out):
    """{tag: [(step, value)]} of the numbers that TensorBoard shows of a run, and its grids [(step, PNG)]."""
    package = 'tensorboard.backend.event_processing.event_accumulator'
    events = pytest.importorskip(package).EventAccumulator(f'{out}/tensorboard', {'images': 0, 'scalars': 0})
    events.Reload()
    numbers = {}
    for tag in events.Tags()['scalars']:
        numbers[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return numbers, [(event.step, event.encoded_image_string) for event in events.Images('samples')]


def test_tensorboard_shows_the_log_the_scores_and_the_grids_also_after_a_resume(tmp_path):
    board = pytest.importorskip('torch.utils.tensorboard')
    out = tmp_path / 'run'
    flags = ['--tensorboard', *SCORE]
    train('sngan', out, '--steps', 2, *flags)
    with board.SummaryWriter(f'{out}/tensorboard') as late:    # as of a process that was killed at step 3
        late.add_scalar('loss_g', 99., 3)
    train('sngan', out, '--steps', 4, *flags)

    numbers, grids = shown_in_tensorboard(out)
    log = files.read_jsonl(out / 'log.jsonl')
    assert {'acc_gen', 'images_per_s', 'peak_mb'} < numbers.keys() and 'step' not in numbers
    for tag in numbers:
        if '/' not in tag:
            right = [(line['step'], line[tag]) for line in log if tag in line]
            assert [step for step, _ in numbers[tag]] == [step for step, _ in right]
            assert np.allclose([value for _, value in numbers[tag]], [value for _, value in right])
    scores = files.read_jsonl(out / 'metrics.jsonl')
    report = [(record['step'], pytest.approx(record['report'])) for record in scores]
    assert numbers['FD-effnet/report'] == report and len(scores) == 2

    assert [step for step, _ in grids] == [0, 2, 4]
    drawn = np.array(Image.open(io.BytesIO(grids[-1][1])))
    assert (drawn == np.array(Image.open(out / 'samples/000004.png'))).all()

    train('sngan', out, '--steps', 1, '--restart', *flags[:1])
    assert [step for step, _ in shown_in_tensorboard(out)[1]] == [0, 1]


def test_tensorboard_that_is_not_installed_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(loop.importlib.util, 'find_spec', lambda name: None)
    refused(capsys, lambda: parsed('sngan', '--tensorboard'), '--tensorboard', 'pip install tensorboard')


def test_help_has_every_default_and_a_protocol_sets_its_flags_only_as_defaults(capsys):
    for recipe in (script('sngan'), script('biggan'), script('stylegan2'), find_ticket):
        with pytest.raises(SystemExit) as e:
            recipe.get_args(['--help'])
        text = capsys.readouterr().out
        assert e.value.code == 0 and '(default: ' in text and '%(' not in text and 'Use:' in text
    args = parsed('sngan', '--protocol', 'sngan-released')
    assert (args.eval_samples, args.ref, args.resize) == (50000, 'all', 'tf1')
    assert (args.is_splits, args.is_bias) == (10, False)
    args = parsed('sngan', '--protocol', 'cifar', '--eval-samples', '500', '--no-is-bias', '--ref', 'all')
    assert (args.eval_samples, args.ref, args.is_splits, args.is_bias) == (500, 'all', 1, False)
    args = script('sngan').get_args(['--data', 'emoji-faces', '--protocol', 'fewshot'])    # over a preset
    assert (args.preset, args.eval_samples, args.ref) == ('demo', 5000, 'train')


# ---- classes and rows

def test_generated_classes_are_balanced_over_the_whole_batch_and_shared_by_the_ranks(monkeypatch):
    y = trainer.balanced(np.random.default_rng(0), 64, 10)
    assert sorted(y.bincount().tolist()) == [6] * 6 + [7] * 4
    halves = []
    for rank in range(2):
        monkeypatch.setenv('RANK', str(rank))
        monkeypatch.setenv('WORLD_SIZE', '2')
        halves.append(trainer.balanced(np.random.default_rng(0), 64, 10))
    assert torch.equal(torch.cat(halves), y)
    assert len(trainer.balanced(np.random.default_rng(0), 8, 1000).unique()) == 4          # all different


def test_scores_see_the_classes_in_the_shares_of_the_training_images():
    labels = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    y = trainer.proportional(labels, 1000, 0)
    assert y.bincount().tolist() == [100, 300, 600] and not torch.equal(y, y.sort().values)
    assert torch.equal(y, trainer.proportional(labels, 1000, 0))
    assert not torch.equal(y, trainer.proportional(labels, 1000, 1))
    assert trainer.proportional(labels, 7, 0).bincount().tolist() == [1, 2, 4]


def test_reals_are_shown_by_class_and_a_small_class_repeats():
    labels = np.array([0] * 3 + [1] * 50)
    assert len(trainer.grid_rows(labels, 0)) == 53 and len(set(trainer.grid_rows(labels, 0))) == 53
    rows = trainer.grid_rows(labels, 2)
    assert labels[rows].tolist() == [0] * 8 + [1] * 8
    assert set(rows[:8]) == {0, 1, 2} and len(set(rows[8:])) == 8


def test_accuracies_count_the_right_side_and_leave_D_as_it_was():
    D = sngan.Discriminator(8)
    before = copy.deepcopy(D.state_dict())
    values = trainer.accuracies(D, train=[(torch.randn(5, 3, 16, 16),)], gen=[(torch.randn(5, 3, 16, 16),)])
    assert set(values) == {'D_train', 'acc_train', 'D_gen', 'acc_gen'} and D.training
    assert all(torch.equal(v, before[k]) for k, v in D.state_dict().items())
    judge = torch.nn.Sequential(torch.nn.Flatten(0))
    seen = {'train': [(torch.tensor([1., -1.]),), (torch.tensor([2.]),)],
            'gen': [(torch.tensor([-1., -2., 3., 4.]),)]}
    expected = {'D_train': 2 / 3, 'acc_train': 2 / 3, 'D_gen': 1., 'acc_gen': .5}
    assert trainer.accuracies(judge, **seen) == pytest.approx(expected)


def test_the_best_generator_is_that_of_the_lowest_choosing_half_and_keeps_its_record(tmp_path):
    run = Namespace(model='sngan', rank=0, args=Namespace(seed=0), path=lambda name: f'{tmp_path}/{name}')
    run.say, run.board = print, None
    net, best = torch.nn.Linear(1, 1, bias=False), []
    for run.step, choose in ((1, 5.), (2, 3.), (3, 4.), (4, 2.), (5, 9.)):
        net.weight.data.fill_(run.step)
        scores = [{'FID': {'choose': choose + d, 'report': 7., 'all': 8.}, 'is': (d, 0.)} for d in (-1., 1.)]
        trainer.record_scores(run, scores, 'FID', {'n': 2}, net, {'G': {}, 'D': {}})
        saved = files.load(tmp_path / 'best.pt')
        assert saved['E']['weight'].item() == saved['step'] == saved['score']['step']
        best.append(saved['step'])
    assert best == [1, 2, 2, 4, 4]
    record = files.read_jsonl(tmp_path / 'metrics.jsonl')[1]
    means = {'choose': 3., 'report': 7., 'all': 8., 'is': 0.}
    spreads = {'choose_std': 1., 'report_std': 0., 'all_std': 0., 'is_std': 0.}
    assert record == {'step': 2, 'score': 'FID', **means, **spreads, 'protocol': {'n': 2}}


# ---- widths

def test_a_width_of_eight_is_preferred_where_it_comes_near():
    def nearest(ch, top):
        return trainer.nearest_width(lambda ch: ch ** 2, ch ** 2, top)
    for ch, width in ((64, 64), (63, 63), (60, 60), (62.2, 62), (256, 256), (201, 200), (203, 204), (1, 1)):
        assert nearest(ch, 256) == width
    assert nearest(12, 12) == 12 and nearest(2.6, 3) == 3


@pytest.mark.parametrize('model, rho, flags', [
    ('sngan', .67, '--data emoji-faces --preset paper --ch-g 96 --ch-d 96'),
    ('sngan', .2, '--data emoji-faces --preset demo --ch-g 64 --ch-d 48 --res 48'),
    pytest.param('biggan', .67, '--data emoji --preset demo --ch-g 96 --ch-d 96', marks=pytest.mark.slow)])
def test_a_small_dense_network_has_the_weights_of_the_ticket_within_two_percent(
        tmp_path, model, rho, flags, capsys):
    recipe, flags = script(model), flags.split()
    old = recipe.get_args(flags)
    nets = dict(zip('GD', trainer.without_weights(recipe.build, old)))
    masks, goals = {}, {}
    for name, net in nets.items():
        masks[name] = {key: torch.rand(mask.shape) > rho for key, mask in prune.ones(net).items()}
        pruned = sum(int((~mask).sum()) for mask in masks[name].values())
        goals[name] = sum(p.numel() for p in net.parameters()) - pruned
    ticket = {'model': model, 'args': vars(old), 'init': {'G': {}, 'D': {}}, 'mask': masks, 'data': None}
    torch.save(ticket, tmp_path / 't.pt')
    args = recipe.get_args([*flags[:4], '--small-dense', str(tmp_path / 't.pt')])
    said = capsys.readouterr().out
    assert args.res == old.res
    for name, net in zip('GD', trainer.without_weights(recipe.build, args)):
        size = sum(p.numel() for p in net.parameters())
        assert abs(size / goals[name] - 1) < .02 and net.ch < nets[name].ch
        assert f'{name} has {goals[name]:,} weights in the ticket and {size:,}' in said


# ---- every kind of training runs and moves both networks

KINDS = {
    'sngan': ['', ' '.join(METHOD), '--advaug gd --adv-noise .01', '--advaug g --adv-pgd 3 --adv-cut-g 3',
              '--advaug d --adv-cut-d 2', '--batch-gpu 4 --advaug gd'],
    'biggan': ['', ' '.join(METHOD), '--advaug gd --adv-noise .01', '--batch-gpu 4 --advaug g --adv-pgd 2',
               '--advaug gd --adv-cut-g 3 --adv-cut-d 2 --d-pass separate'],
}


@pytest.mark.parametrize('model', ['sngan', pytest.param('biggan', marks=pytest.mark.slow)])
def test_every_kind_of_training_runs_and_moves_both_networks(tmp_path, model, settled_on_two_batches):
    """Of BigGAN what lies behind the attention's gamma, which is 0 at first, does not move."""
    kinds = [(flags, loss) for flags in KINDS[model][:2] for loss in losses.LOSSES]
    kinds += zip(KINDS[model][2:], itertools.cycle(losses.LOSSES))
    before = script(model).build(parsed(model))
    for i, (flags, loss) in enumerate(kinds):
        after = train(model, tmp_path / str(i), '--steps', 2, '--loss', loss, *flags.split())
        for old, new in zip(before, after):
            new = new.state_dict()
            assert all(torch.isfinite(value).all() for value in new.values()), (flags, loss)
            weights = {key: value for key, value in old.state_dict().items() if value.dim() > 1}
            still = {key for key, value in weights.items() if torch.equal(new[key], value)}
            assert all('attention' in key for key in still), (flags, loss, still)


@pytest.mark.parametrize('model', ['sngan', pytest.param('biggan', marks=pytest.mark.slow)])
def test_the_average_is_G_itself_up_to_its_start_and_follows_its_decay_from_then_on(
        tmp_path, model, settled_on_two_batches):
    saved = []
    for steps in (2, 3):
        train(model, tmp_path, '--steps', steps, '--ema-start', 2, '--ema', .75)
        saved.append(files.load(tmp_path / 'last.pt'))
    assert equal(saved[0]['E'], saved[0]['G'])
    for key, before in saved[0]['G'].items():
        if before.is_floating_point() and not key.endswith(('.u', '.v')):
            expected = .75 * before + .25 * saved[1]['G'][key]
            assert torch.allclose(saved[1]['E'][key], expected, atol=1e-6), key


# ---- starts

def test_files_bring_weights_and_masks_each_on_its_own(tmp_path):
    """--init-from gives weights and --mask masks; --reinit draws other weights for a ticket's masks."""
    recipe = script('sngan')
    G, D = recipe.build(parsed('sngan', '--seed', 5))
    masks = {'G': prune.magnitude(G, prune.ones(G), .2), 'D': prune.magnitude(D, prune.ones(D), .2)}
    weights = {'G': G.state_dict(), 'D': D.state_dict()}
    flags = vars(parsed('sngan'))
    ticket = {'model': 'sngan', 'args': flags, 'data': None, 'mask': masks, 'init': weights}
    torch.save(ticket, tmp_path / 't.pt')
    other_G, other_D = recipe.build(parsed('sngan', '--seed', 6))
    torch.save({'args': flags, 'G': other_G.state_dict(), 'D': other_D.state_dict()}, tmp_path / 'c.pt')

    def start(*flags):
        args = parsed('sngan', *[tmp_path / flag if str(flag).endswith('.pt') else flag for flag in flags])
        G, D, masks, hashes = trainer.initial_networks(args, recipe.build)
        return dict(G.state_dict()), masks, set(hashes)
    none = {'G': {}, 'D': {}}
    assert equal(start('--mask', 't.pt'), (dict(G.state_dict()), masks, {'mask_hash'}))
    assert equal(start('--init-from', 'c.pt')[0], dict(other_G.state_dict()))
    assert start('--init-from', 'c.pt')[1:] == (none, {'init_hash'})
    weights, own, hashes = start('--mask', 't.pt', '--init-from', 'c.pt')
    assert equal(weights, dict(other_G.state_dict())) and equal(own, masks)
    assert hashes == {'mask_hash', 'init_hash'}

    drawn, other, again = (start('--mask', 't.pt', '--reinit', '--seed', seed) for seed in (0, 1, 0))
    assert equal(drawn, again) and equal(drawn[1], masks) and equal(other[1], masks)
    for a, b in ((drawn[0], other[0]), (drawn[0], dict(G.state_dict())), (other[0], start('--seed', 1)[0])):
        assert not any(torch.equal(a[key], b[key]) for key in prune.prunable(G))


# ---- on a GPU

def test_deterministic_ADA_is_refused_where_there_is_a_GPU(capsys, monkeypatch):
    flags = ['--deterministic', '--aug', 'ada', '--device', 'auto']
    parsed('sngan', *flags)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    parsed('sngan', *flags, '--device', 'cpu')
    refused(capsys, lambda: parsed('sngan', *flags), '--deterministic --aug ada', '--device cpu')


def test_a_trial_is_over_before_the_next_begins_and_the_ranks_meet_before_it(monkeypatch):
    """The features of a pass that fails are gone, and NCCL has its memory."""
    events, features = [], []
    net = Flat(torch.nn.Linear(4, 1), 1e-3)

    def empty_cache():
        assert not any(ref() is not None for ref in features)
        events.append('emptied')

    def f(part):
        events.append(part.stop - part.start)
        feature = torch.zeros(8)
        features.append(weakref.ref(feature))
        if part.stop - part.start > 3:
            raise torch.OutOfMemoryError
        return net.net(torch.zeros(1, 4)).sum()
    job = Namespace(
        args=Namespace(batch_gpu=None, group=2), device=torch.device('cpu'), nets={'G': net}, stateful={},
        sums=sums_of_gan(), G=net, D=net, ada=None, lecam=None, run=Namespace(say=events.append))
    monkeypatch.setattr(trainer, 'memory_is_short', lambda job: True)
    monkeypatch.setattr(loop, 'mean_over_ranks', lambda x: events.append('all-reduce'))
    monkeypatch.setattr(torch.cuda, 'empty_cache', empty_cache)
    assert trainer.fit_memory(job, [(net, f, 12), (net, f, 24)]) == 3
    assert events[:6] == ['all-reduce', 12, 'emptied', 12, 'emptied', 6] and events[6:8] == ['emptied', 3]
    assert events[-2] == 'emptied'                             # room for what does not ask torch
    assert job.chunk == 2 and job.args.batch_gpu == 3 and '--batch-gpu 3' in events[-1]


@pytest.mark.parametrize('model', ['sngan', 'biggan'])
def test_the_micro_batch_is_found_before_the_first_grid_and_trains_as_if_it_were_asked_for(
        tmp_path, monkeypatch, settled_on_two_batches, model):
    flags = [*METHOD, '--steps', 2]
    train(model, tmp_path / 'asked', *flags, '--batch-gpu', 2)
    events, backward, draw_grid = [], Flat.backward, trainer.Observer.draw_grid

    def small(self, f, parts):
        events.append(parts[0].stop - parts[0].start)
        if events[-1] > 2:
            raise torch.OutOfMemoryError
        return backward(self, f, parts)

    def grid(self):
        events.append(f'grid of {self.job.chunk} at a time')
        return draw_grid(self)
    monkeypatch.setattr(Flat, 'backward', small)
    monkeypatch.setattr(trainer.Observer, 'draw_grid', grid)
    monkeypatch.setattr(trainer, 'memory_is_short', lambda job: True)
    train(model, tmp_path / 'found', *flags)
    assert events[:5] == [8, 4, 2, 2, 'grid of 2 at a time']
    a, b = (files.load(tmp_path / name / 'last.pt') for name in ('asked', 'found'))
    assert b['args']['batch_gpu'] == 2
    for key in ('G', 'D', 'E', 'opt', 'state'):
        assert equal(a[key], b[key]), key


def test_observers_take_a_chunk_at_a_time_and_see_the_same(tmp_path):
    """Without noise and batch statistics, the slices of a log line and of a grid are those of the whole."""
    G, D = script('sngan').build(parsed('sngan'))
    job = Namespace(chunk=None, device=torch.device('cpu'), classes_of=lambda y, part: [])
    observer = object.__new__(trainer.Observer)
    observer.job = job
    x = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    z = torch.randn(10, G.z_dim)
    G.eval()
    found, sizes = [], []
    for chunk in (None, 4):
        job.chunk = chunk
        reals = [batch for batch, in observer.reals(x, None)]
        sizes.append([len(batch) for batch in reals])
        with torch.no_grad():
            found.append((torch.cat(reals), observer.generated(G, z, None).float()))
    assert sizes == [[10], [4, 4, 2]]
    assert torch.equal(found[0][0], found[1][0]) and (found[0][1] - found[1][1]).abs().max() <= 1


def test_flips_are_drawn_without_mirror_too_so_that_z_stays_the_same():
    for mirror in (False, True):
        rng = loop.rng(0, 'D', 1)
        flip = trainer.flips(rng, Namespace(batch=8, mirror=mirror), torch.device('cpu'))
        expected = loop.rng(0, 'D', 1)
        u = expected.random(8)
        assert rng.random() == expected.random()
        assert flip is None if not mirror else flip.tolist() == (u < .5).tolist()
