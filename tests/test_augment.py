"""augment.py: distributions as published, transforms against slow versions and the original, gradients."""
import argparse
import contextlib
import itertools

import numpy as np
import pytest
import torch

import augment

N = 100_000


def uniform(x, low, high, spread=4):
    """Whether x looks uniform on [low, high]: range, mean and variance within `spread` standard errors."""
    width, n = high - low, x.numel()
    assert low <= x.min() and x.max() <= high
    assert abs(x.mean() - (low + high) / 2) < spread * width / (12 * n) ** .5
    assert abs(x.var() - width ** 2 / 12) < spread * width ** 2 / 12 * (.8 * 2 / n) ** .5


def test_color_draws_brightness_saturation_and_contrast_from_their_ranges():
    torch.manual_seed(0)
    x = torch.empty(N, 3, 1, 2)
    # two pixels with channels +-a: the transform is affine, so three probes give its three parameters
    T = augment.draw('color', x)

    def probe(a, b):
        return torch.tensor([[a, b], [0., 0.], [-a, -b]]).view(1, 3, 1, 2).expand(N, 3, 1, 2)
    brightness = T(probe(0, 0)).mean((1, 2, 3))
    uniform(brightness, -.5, .5)
    y = T(probe(1., 1.))
    both = (y[:, 0] - y[:, 1])[:, 0, 0]                          # saturation x contrast
    grey = T(torch.tensor([1., -1.]).expand(N, 3, 1, 2))
    contrast = (grey[:, 0, 0, 0] - grey[:, 0, 0, 1]) / 2
    uniform(contrast, .5, 1.5)
    uniform(both / contrast, 0, 2)


@pytest.mark.parametrize('size, s', [(32, 4), (64, 8), (256, 32), (48, 6)])
def test_translation_is_uniform_over_whole_pixels_up_to_an_eighth(size, s):
    torch.manual_seed(0)
    n = 4000 if size < 100 else 1000
    x = torch.zeros(1, 1, size, size)
    x[..., size // 2, size // 2] = 1
    T = [augment.draw('translation', x.expand(500, 1, size, size)) for _ in range(n // 500)]
    y = torch.cat([t(x.expand(500, 1, size, size)) for t in T])[:, 0]
    assert (y.sum((1, 2)) == 1).all()
    for axis in (1, 2):
        shift = y.sum(axis).argmax(1) - size // 2
        counts = torch.bincount(shift + s, minlength=2 * s + 1)
        expected = n / (2 * s + 1)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert len(counts) == 2 * s + 1 and chi_square < 2 * s + 6 * (4 * s) ** .5
    rows, columns = (y.sum(a).argmax(1).float() for a in (2, 1))
    assert abs(torch.corrcoef(torch.stack((rows, columns)))[0, 1]) < 4 / n ** .5


def test_translation_equals_a_loop_with_zero_padding():
    torch.manual_seed(0)
    x = torch.randn(6, 3, 16, 16)
    marked = torch.ones(6, 1, 16, 16)
    T = augment.draw('translation', x)
    y, kept = T(x), T(marked)
    for i in range(6):
        found = False
        for dy, dx in itertools.product(range(-2, 3), repeat=2):
            slow = torch.zeros(3, 16, 16)
            for r, c in itertools.product(range(16), repeat=2):
                if 0 <= r + dy < 16 and 0 <= c + dx < 16:
                    slow[:, r, c] = x[i, :, r + dy, c + dx]
            found |= torch.equal(slow, y[i])
        assert found
        assert (y[i][(kept[i] == 0).expand(3, 16, 16)] == 0).all()


@pytest.mark.parametrize('size', [32, 31, 30, 256])
def test_cutout_zeroes_a_square_with_the_published_positions(size):
    torch.manual_seed(0)
    n, c = 3000, int(size / 2 + .5)
    x = torch.ones(n, 1, size, size, dtype=torch.float32) if size < 100 else torch.ones(600, 1, size, size)
    y = augment.draw('cutout', x)(x)[:, 0]
    assert ((y == 0) | (y == 1)).all()
    gone = y == 0
    values = size + 1 if c % 2 == 0 else size                    # of the offset, from 0
    side = [min(o - c // 2 + c, size) - max(o - c // 2, 0) for o in range(values)]
    for axis in (1, 2):
        line = gone.any(axis)                                    # [n, size]: rows or columns touched
        first, length = line.float().argmax(1), line.sum(1)
        assert min(side) <= length.min() and length.max() == c
        if size < 100:                                           # both ends of the range are met
            assert length[first == 0].min() == side[0] and length[first + length == size].min() == side[-1]
        assert torch.equal(line.sum(1), (line * torch.arange(size)).amax(1) - first + 1)      # one run without holes
    area = gone.float().mean().item()
    expected = (sum(side) / values / size) ** 2                  # independent axes; about 19 %
    assert abs(area - expected) < .01 and (size != 32 or abs(expected - .19) < .005)


def test_gradients_through_the_whole_policy():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    T = augment.draw('color,translation,cutout', x)
    assert torch.autograd.gradcheck(T, x)
    assert torch.autograd.gradgradcheck(T, x)


def test_T_is_a_function_drawn_once_and_the_policy_runs_from_left_to_right():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    T = augment.draw('color,translation,cutout', x)
    assert torch.equal(T(x), T(x)) and not torch.equal(T(x), augment.draw('color,translation,cutout', x)(x))
    color_last = augment.draw('cutout,color', torch.zeros(4, 3, 32, 32))(torch.zeros(4, 3, 32, 32))
    color_first = augment.draw('color,cutout', torch.zeros(4, 3, 32, 32))(torch.zeros(4, 3, 32, 32))
    assert (color_first == 0).any() and not (color_last == 0).any()


def test_a_generator_makes_the_draw_repeatable_and_leaves_the_global_one_alone():
    x, state = torch.randn(4, 3, 16, 16), torch.get_rng_state()
    a, b = (augment.draw('color,cutout', x, generator=torch.Generator().manual_seed(3))(x) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(state, torch.get_rng_state())


def test_no_policy_is_the_identity_and_bf16_comes_back_as_fp32():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(augment.draw(None, x)(x), x)
    with torch.autocast('cpu', torch.bfloat16):
        y = augment.draw('translation', x)(x)
    assert y.dtype == torch.float32 and set(y.unique().tolist()) <= {*x.unique().tolist(), 0.}     # no rounding


def test_an_unknown_part_and_a_policy_without_diffaug_are_named():
    with pytest.raises(ValueError, match='colour'):
        augment.draw('colour', torch.zeros(1, 3, 8, 8))
    p = augment.add_flags(argparse.ArgumentParser())
    assert '--aug diffaug' in augment.contradiction(p.parse_args(['--aug-policy', 'cutout']), p.get_default)
    assert 'blur' in augment.contradiction(p.parse_args(['--aug', 'diffaug', '--aug-policy', 'blur']), p.get_default)


# ADA. Slow versions are written from the definition; one image [C, H, W] in float64 each.

IDENTITY = {name: t[4] for name, t in augment.TRANSFORMS.items()}


def given(n=1, **values):
    """Parameters of ADA with these values and no other transform."""
    P = augment.parameters('blit', n, 0.)
    return {**P, **{k: np.broadcast_to(np.array(v, float), (n, P[k].shape[1])) for k, v in values.items()}}


def some(n, seed=0, policy='bgcfnc', p=1.):
    return augment.parameters(policy, n, p, torch.Generator().manual_seed(seed))


def picture(n, c, h, w):
    """[n, c, h, w] in [-1, 1] by formula, without symmetry."""
    i, j = torch.arange(h, dtype=torch.float64)[:, None], torch.arange(w, dtype=torch.float64)
    k = torch.arange(n * c, dtype=torch.float64).view(n, c, 1, 1)
    x = .8 * torch.sin(.31 * i + .17 * (1 + k) * j + k) * torch.cos(.23 * j - .11 * i + k)
    return (x + .2 * (i - j) / h).float()


def along(f, x, axis):
    return np.apply_along_axis(f, axis, x)


def slow_map(P, W, H):
    """Output to input pixels about the centre: the transforms one after the other, forwards, then inverted."""
    def scale(a, b):
        return np.diag([a, b, 1.])

    def turn(t):
        return np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1.]])

    def move(v):
        return np.array([[1, 0, v[0]], [0, 1, v[1]], [0, 0, 1.]])
    v = {k: P[k][0] if P[k].shape[1] > 1 else P[k][0, 0] for k in P}
    T = np.eye(3)
    for step in (scale(1 - 2 * v['flip'], 1), turn(-np.pi / 2 * v['turn']), move(np.round(v['shift'] * (W, H))),
                 scale(v['scale'], v['scale']), turn(v['rotation']), scale(v['stretch'], 1 / v['stretch']),
                 turn(v['rotation2']), move(v['drift'] * (W, H))):
        T = step @ T
    return np.linalg.inv(T)


def slow_resample(x, G):
    """Reflect by size - 1, up x2 with sym6, look up bilinearly, down x2; G about the centre."""
    C, H, W = x.shape
    h = augment.SYM6
    x = np.pad(x, ((0, 0), (H - 1, H - 1), (W - 1, W - 1)), 'reflect')

    def up(line):
        zeros = np.zeros(2 * len(line))
        zeros[::2] = line
        return np.convolve(zeros, 2 * h)[5:5 + len(zeros)]
    x = along(up, along(up, x, 1), 2)

    def translate(a):
        return np.array([[1, 0, a], [0, 1, a], [0, 0, 1.]])
    double = np.diag([2., 2., 1.])
    G = translate(-.5) @ double @ G @ np.linalg.inv(double) @ translate(.5)
    v, u = np.mgrid[:2 * (H + 6), :2 * (W + 6)]
    sx, sy, _ = np.einsum('ab,byx->ayx', G, np.stack((u + .5 - (W + 6), v + .5 - (H + 6), np.ones(u.shape))))
    sx, sy = sx + x.shape[2] / 2 - .5, sy + x.shape[1] / 2 - .5
    y = np.zeros((C, *u.shape))
    for dx, dy in itertools.product((0, 1), (0, 1)):
        i, j = np.floor(sy).astype(int) + dy, np.floor(sx).astype(int) + dx
        ok = (i >= 0) & (i < x.shape[1]) & (j >= 0) & (j < x.shape[2])
        weight = (1 - abs(sx - j)) * (1 - abs(sy - i)) * ok
        y += weight * x[:, np.where(ok, i, 0), np.where(ok, j, 0)]

    def down(line):
        return np.array([h @ line[2 * i + 1:2 * i + 13] for i in range(len(line) // 2 - 6)])
    return along(down, along(down, y, 1), 2)


@pytest.mark.parametrize('values', [
    dict(flip=1), dict(turn=1), dict(turn=2), dict(turn=3), dict(shift=(.1, -.07)), dict(scale=.8), dict(rotation=.7),
    dict(stretch=1.3), dict(rotation2=-2), dict(drift=(.21, -.13)), dict(scale=.2), dict(scale=4), dict(drift=(3, .1)),
    dict(drift=(3, .1), rotation=1), dict(flip=1, turn=1, shift=(.1, .05), scale=1.2, stretch=.9, drift=(.05, .02)),
    dict(flip=1, turn=3, shift=(-.1, .05), scale=.9, rotation=2, stretch=1.2, rotation2=1, drift=(-.1, .2))], ids=str)
def test_geometry_equals_the_definition(values):
    for H, W in ((16, 16), (18, 29)):
        x, P = picture(1, 3, H, W).double(), given(**values)
        slow = slow_resample(x[0].numpy(), slow_map(P, W, H))
        np.testing.assert_allclose(augment.ada(P, x)(x)[0].numpy(), slow, atol=1e-11)
        assert (augment.ada(P, x.float())(x.float())[0] - torch.from_numpy(slow)).abs().max() < 2e-5


def test_geometry_of_a_batch_equals_that_of_its_images_in_any_chunks(monkeypatch):
    x, P = torch.randn(24, 3, 20, 24, dtype=torch.float64), some(24, policy='bg', p=.5)
    y = augment.ada(P, x)(x)
    for i in range(24):
        slow = slow_resample(x[i].numpy(), slow_map({k: v[i:i + 1] for k, v in P.items()}, 24, 20))
        np.testing.assert_allclose(y[i].numpy(), slow, atol=1e-11)
    monkeypatch.setattr(augment, 'BUDGET', 3 * 36 * 3 * 20 * 24)
    torch.testing.assert_close(augment.ada(P, x)(x), y)


def slow_color(x, P, i):
    """[C, H, W]: brightness, contrast, luma flip, hue, saturation, one after the other."""
    b, c, luma, t, s = (P[k][i, 0] for k in ('brightness', 'contrast', 'luma', 'hue', 'saturation'))
    v = np.ones(3) / np.sqrt(3)
    y = np.broadcast_to((x + b) * c, (3, *x.shape[1:])).copy()
    for at in itertools.product(range(x.shape[1]), range(x.shape[2])):
        p = y[:, at[0], at[1]]
        p = p - 2 * luma * v * (v @ p)
        if len(x) == 3:
            p = p * np.cos(t) + np.cross(v, p) * np.sin(t) + v * (v @ p) * (1 - np.cos(t))
            grey = v * (v @ p)
            p = grey + s * (p - grey)
        y[:, at[0], at[1]] = p
    return y if len(x) == 3 else y.mean(0, keepdims=True)


@pytest.mark.parametrize('channels', [1, 3])
def test_color_equals_its_steps(channels):
    x = torch.randn(12, channels, 16, 16, dtype=torch.float64)
    alone = dict(brightness=.3, contrast=1.7, luma=1, hue=1., saturation=.3)
    for P in [*(given(12, **{k: v}) for k, v in alone.items()), some(12, policy='color')]:
        y = augment.ada(P, x)(x)
        for i in range(12):
            np.testing.assert_allclose(y[i].numpy(), slow_color(x[i].numpy(), P, i), atol=1e-12)


def test_filter_equals_a_convolution_with_43_taps_and_its_bank_adds_up():
    low, high = np.array([-1, 0, 9, 16, 9, 0, -1]) / 32, np.array([1, 0, -9, 16, -9, 0, 1]) / 32

    def stretched(f, d):
        y = np.zeros(6 * d + 1)
        y[::d] = f
        return y
    L = [stretched(low, d) for d in (1, 2, 4)]
    bank = [np.convolve(np.convolve(L[0], L[1]), f) for f in (L[2], stretched(high, 4))]
    bank += [np.convolve(L[0], stretched(high, 2)), high]
    bank = np.stack([np.pad(b, (43 - len(b)) // 2) for b in bank])                 # [4, 43]
    ours = augment.band_matrices(64, torch.empty(0, dtype=torch.float64))[:, 32, 11:54].numpy()
    assert (ours == bank).all() and (bank.sum(0) == np.eye(43)[21]).all()
    assert bank.sum(1).tolist() == [1, 0, 0, 0] and bank[:, 21].tolist() == [.125, .125, .25, .5]
    x, P = torch.randn(6, 3, 22, 30, dtype=torch.float64), some(6, policy='filter', p=.6)
    y = augment.ada(P, x)(x)
    for i in range(6):
        g = np.ones(4)
        for k in range(4):
            t = np.ones(4)
            t[k] = P['bands'][i, k]
            g *= t / np.sqrt((np.array([10, 1, 1, 1]) / 13 * t ** 2).sum())
        slow = np.pad(x[i].numpy(), ((0, 0), (21, 21), (21, 21)), 'reflect')
        for axis in (1, 2):
            slow = along(lambda line: np.convolve(line, g @ bank, 'valid'), slow, axis)
        np.testing.assert_allclose(y[i].numpy(), slow, atol=1e-12)


def test_cutout_equals_a_loop_and_noise_has_its_sigma():
    x, P = torch.ones(20, 3, 16, 21), some(20, policy='cutout', p=.8)
    y = augment.ada(P, x)(x)
    for n, i, j in itertools.product(range(20), range(16), range(21)):
        cx, cy = P['centre'][n]
        gone = P['centre'][n, 0] >= 0 and abs((j + .5) / 21 - cx) < .25 and abs((i + .5) / 16 - cy) < .25
        assert (y[n, :, i, j] == (0 if gone else 1)).all()
    torch.manual_seed(0)
    x, P = torch.zeros(16, 3, 64, 64), some(16, policy='noise', p=.6)
    T = augment.ada(P, x)
    sigma = torch.from_numpy(P['noise'])[:, 0]
    np.testing.assert_allclose(T(x).std((1, 2, 3)), sigma, rtol=4 / (2 * 12288) ** .5)
    assert torch.equal(T(x), T(x + 0)) and 0 < (sigma == 0).sum() < 12
    assert abs(torch.corrcoef(T(x)[sigma > 0].flatten(1)[:2])[0, 1]) < .05


def test_every_parameter_has_its_distribution():
    p, n = .4, N
    P = some(n, 1, 'bgcfnc', p)
    assert set(P) == set(augment.TRANSFORMS)

    def share(condition, odds):
        assert abs(condition.mean() - odds) < 4.5 * (odds * (1 - odds) / len(condition)) ** .5

    def normal(x, sigma):
        assert abs(x.mean()) < 4.5 * sigma / len(x) ** .5 and abs(x.std() / sigma - 1) < 4.5 / (2 * len(x)) ** .5
        share(abs(x) < sigma, .6827)

    def open(name, k=0):
        return P[name][P[name][:, k] != IDENTITY[name], k]
    share(P['flip'] == 1, p / 2)
    share(P['luma'] == 1, p / 2)
    for i in (1, 2, 3):
        share(P['turn'] == i, p / 4)
    odds = 1 - (1 - p) ** .5
    either = (P['rotation'] != 0) | (P['rotation2'] != 0)
    share(either, p)
    angles = (('rotation', odds, np.pi), ('rotation2', odds, np.pi), ('hue', p, np.pi))
    for name, gate, half in (*angles, ('shift', p, .125)):
        share(P[name] != 0, gate)
        for k in range(P[name].shape[1]):
            uniform(torch.from_numpy(open(name, k)), -half, half)
    for name, sigma in (('scale', .2), ('stretch', .2), ('contrast', .5), ('saturation', 1)):
        share(P[name] != 1, p)
        normal(np.log2(open(name)), sigma)
    for k in range(4):
        share(P['bands'][:, k] != 1, p)
        normal(np.log2(open('bands', k)), 1)
    for name, sigma in (('drift', .125), ('brightness', .2)):
        share(P[name] != 0, p)
        for k in range(P[name].shape[1]):
            normal(open(name, k), sigma)
    share(P['noise'] != 0, p)
    normal(open('noise') * np.sign(np.random.default_rng(0).random(len(open('noise'))) - .5), .1)
    assert P['noise'].min() == 0
    share(P['centre'][:, 0] >= 0, p)
    for k in (0, 1):
        uniform(torch.from_numpy(open('centre', k)), 0, 1)
    for name in ('shift', 'drift', 'centre'):                    # one gate for two independent numbers
        assert ((P[name] == IDENTITY[name]).all(1) == (P[name] == IDENTITY[name]).any(1)).all()
        both = P[name][P[name][:, 0] != IDENTITY[name]]
        assert abs(np.corrcoef(both.T)[0, 1]) < 4.5 / len(both) ** .5
    gates = np.concatenate([P[k] != IDENTITY[k] for k in P if k not in ('shift', 'drift', 'centre')], 1).T
    assert abs(np.corrcoef(gates) - np.eye(len(gates))).max() < 4.5 / n ** .5      # all gates are independent


def test_p_0_is_the_identity_and_p_above_1_is_1():
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    for policy in ('blit', 'geom', 'bgcfnc', 'color', 'filter', 'noise', 'cutout'):
        assert torch.equal(augment.draw(policy, x, p=0.)(x), x)
    L, t = np.ones(4), np.full(4, 31.)                           # the matrices of both paths, at the identity
    A = augment.line_matrices(L, t, 32, 32, x)
    assert (A - torch.eye(32)).abs().max() < 1e-6 and (augment.sandwich(A, A)(x) - x).abs().max() < 1e-5
    P = given(4, rotation=1e-9)
    assert (augment.ada(P, x)(x) - x).abs().max() < 1e-5
    one, more = some(500), some(500, p=7.5)
    assert all((one[k] == more[k]).all() for k in one)
    assert all((one[k] != IDENTITY[k]).all() for k in one if k not in ('flip', 'turn', 'luma'))


def test_ada_is_twice_differentiable():
    torch.manual_seed(0)
    D = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, stride=4), torch.nn.Softplus(), torch.nn.Conv2d(2, 1, 3)).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    P = {**some(2, 5, 'bgc'), 'rotation': np.array([[.5], [0]]), 'rotation2': np.zeros((2, 1))}    # both paths
    T = augment.ada(P, x)
    assert torch.autograd.gradcheck(lambda x: D(T(x)), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: D(T(x)), x, fast_mode=True)
    grid = torch.rand(1, 5, 4, 2, dtype=torch.float64) * 2.4 - 1.2
    small = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: augment.Warp.apply(x, grid) ** 3, small)
    x = torch.randn(2, 3, 22, 22, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(augment.draw('filter,noise,cutout', x, p=1.), x, fast_mode=True)


@pytest.mark.parametrize('policy, p', [('bgcfnc', .9), ('color,translation,cutout', None)])
def test_R1_through_the_augmentation_reaches_D(policy, p):
    torch.manual_seed(0)
    D = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.Softplus(), torch.nn.Conv2d(8, 1, 4))
    x = torch.randn(8, 3, 32, 32, requires_grad=True)
    g, = torch.autograd.grad(D(augment.draw(policy, x, p)(x)).sum(), x, create_graph=True)
    (g ** 2).sum().backward()
    for w in D.parameters():
        if w.ndim > 1:
            assert w.grad.isfinite().all() and w.grad.abs().max() > 0


def test_ada_is_a_function_drawn_once_repeatable_and_fp32():
    x, state = torch.randn(8, 3, 32, 32), torch.get_rng_state()
    a, b = (augment.draw('bgcfnc', x, .8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a(x), a(x)) and torch.equal(a(x), b(x)) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(a(x), augment.draw('bgcfnc', x, .8)(x))
    P = some(8, policy='bgcf')
    with torch.autocast('cpu', torch.bfloat16):
        y = augment.ada(P, x)(x)
    assert torch.equal(y, augment.ada(P, x)(x))
    assert augment.ada(P, x.bfloat16())(x.bfloat16()).dtype == torch.float32


def test_nothing_is_read_back_from_the_device_and_boxes_have_few_sizes(monkeypatch):
    x = torch.empty(16, 3, 32, 32, device='meta', requires_grad=True)              # reading a value of it raises
    with monkeypatch.context() as m:
        m.setattr(torch, 'autocast', lambda *a, **k: contextlib.nullcontext())     # it does not know this device
        m.setattr(torch.Tensor, 'pin_memory', lambda x: x)                         # without a GPU it raises
        y = augment.draw('bgcfnc', x, p=.8)(x)
    g, = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert y.is_meta and y.shape == g.shape == x.shape
    seen, sample = set(), torch.nn.functional.grid_sample

    def spy(x, grid, **k):
        seen.add((*x.shape[1:], *grid.shape[1:]))
        return sample(x, grid, **k)
    monkeypatch.setattr(torch.nn.functional, 'grid_sample', spy)
    for _ in range(100):
        augment.draw('bg', torch.zeros(16, 3, 32, 32), p=1.)(torch.zeros(16, 3, 32, 32))
    assert 2 <= len(seen) <= 4


def test_unknown_parts_and_sizes_without_meaning_are_named():
    assert augment.policy_names('bgc', ada=True) == ['blit', 'geom', 'color']
    assert [len(augment.policy_names('bgcfnc'[:n], ada=True)) for n in range(2, 7)] == [2, 3, 4, 5, 6]
    for policy, channels, size, word in (('translation', 3, 32, 'translation'), ('bgx', 3, 32, 'bgx'),
                                         ('bgc', 3, 15, '15'), ('bgcf', 3, 21, '21'), ('bgc', 2, 32, '2, 32')):
        with pytest.raises(ValueError, match=word):
            augment.draw(policy, torch.zeros(1, channels, size, size), p=.5)
    with pytest.raises(ValueError, match='bgc'):
        augment.draw('bgc', torch.zeros(1, 3, 32, 32))


# Outputs of NVlabs/stylegan2-ada-pytorch (commit d72cc7d), run beside ours on CPU with its pure PyTorch operators, of
# picture(2, 3, 32, 32) at debug_percentile q: [0, 0, 8, ::10], [1, 2, ::10, 21], mean and mean absolute value.
# There p is 1, a normal is erfinv(2 q - 1), the second rotation is 0, and the first counts the other way round.
ORIGINAL = [
    ('blit', .2, (-.13865, .05235, -.36393, .54143, .32978, -.56599, .00222, .08077, -.00014, .33241)),
    ('blit', .5, (-.33186, .53629, .36101, .04900, -.72522, .25370, .49628, -.89558, .00074, .33218)),
    ('blit', .8, (-.38859, .73985, -.36694, -.60508, -.38042, -.53996, .04635, .24326, -.00003, .33226)),
    ('geom', .2, (-.32439, .68776, -.46493, .53044, -.45821, -.78321, -.57864, -.21607, -.01584, .32936)),
    ('geom', .8, (-.16041, -.00288, .61840, .06749, .48539, -.00890, -.68480, .06703, -.01489, .32567)),
    ('color', .2, (-.18059, -.33003, -.10069, .23809, -.33157, .38869, -.46429, -.25954, -.09584, .22783)),
    ('color', .5, (.45629, .12374, -.22047, .10163, -.02910, -.20573, .37209, -.09533, -.00123, .33977)),
    ('color', .8, (-.40109, .46420, .20733, -1.30942, .52327, -1.42989, .64788, .40399, -.14780, .57773)),
    ('filter', .2, (.31997, -.10225, .16548, .53405, -.73755, .45252, .14064, -.57774, .00109, .29272)),
    ('filter', .8, (.31468, -.10056, .16275, .52523, -.72536, .44505, .13832, -.56820, .00107, .28788)),
    ('cutout', .2, (.00000, .00000, .18782, .60614, -.83711, .51361, .15963, -.65573, .00258, .26984)),
    ('cutout', .8, (.36316, -.11605, .18782, .60614, -.83711, .51361, .00000, .00000, .00093, .26898)),
    ('blit,geom,color,filter,cutout', .2, (.00000, .00000, -.32042, -.05214, -.16103, -.05730, .02576, -.15977,
      -.08838, .16886)),
    ('blit,geom,color,filter,cutout', .5, (-.47432, .00000, .00000, .60190, -.18780, .00000, .00000, -.13115,
      -.00405, .25320)),
    ('blit,geom,color,filter,cutout', .8, (.72627, .40191, .89414, .30675, -.28853, -.81729, .00000, .00000, -.05597,
      .37998)),
]


@pytest.mark.parametrize('policy, q, expected', ORIGINAL)
def test_ada_gives_the_values_of_the_original(policy, q, expected):
    z, values = (torch.special.erfinv(torch.tensor(2 * q - 1, dtype=torch.float64)).item(), {})
    for name, (group, _, source, value, _) in augment.TRANSFORMS.items():
        if group in policy.split(',') and name not in ('rotation2', 'noise'):
            values[name] = value(np.float64(q if source is torch.rand else z)) * (-1 if name == 'rotation' else 1)
    x = picture(2, 3, 32, 32)
    y = augment.ada(given(2, **values), x)(x)
    ours = [*y[0, 0, 8, ::10], *y[1, 2, ::10, 21], y.mean(), y.abs().mean()]
    np.testing.assert_allclose(ours, expected, atol=2.5e-5)


# Means over 10,000 draws of the original (same commit), all parts, of statistics(its outputs of picture(1, 3, 32, 32)).
MOMENTS = {
    .3: [-.0017, -.0292, .0159, -.0053, -.0022, -.0122, .0452, .0093, .0019, -.0169, .0245, -.0004, .2065, .2124,
         .2088, .2076, .2238, .2218, .2250, .2173, .2154, .2162, .2251, .2240, .0311, .0349, .0398, .0331, .0416,
         .0530],
    .6: [-.0049, -.0069, -.0039, -.0027, .0020, -.0013, .0059, .0044, -.0024, -.0027, .0014, -.0012, .2510, .2556,
         .2549, .2546, .2647, .2631, .2663, .2637, .2592, .2616, .2645, .2652, .0497, .0538, .0579, .0516, .0558,
         .0609],
    .9: [-.0030, -.0022, -.0008, .0008, .0006, -.0008, -.0013, -.0015, -.0004, -.0009, -.0003, -.0012, .2937, .2964,
         .2948, .2946, .2983, .2992, .3015, .2986, .2993, .3004, .2997, .2974, .0744, .0760, .0775, .0749, .0762,
         .0772],
}


def statistics(y):
    """[n, 30]: means and mean squares of 2 x 2 blocks per channel; mean squared differences of neighbours."""
    y = y.clamp(-2, 2)
    blocks = y.unflatten(3, (2, -1)).unflatten(2, (2, -1))                         # [n, 3, 2, 16, 2, 16]
    parts = (blocks.mean((3, 5)), (blocks ** 2).mean((3, 5)),
             (y.diff(dim=2) ** 2).mean((2, 3)), (y.diff(dim=3) ** 2).mean((2, 3)))
    return torch.cat([s.flatten(1) for s in parts], 1).double()


@pytest.mark.parametrize('p', MOMENTS)
def test_ada_has_the_moments_of_the_original(p):
    torch.manual_seed(1)
    x, n = picture(1, 3, 32, 32).expand(100, 3, 32, 32), 4000
    s = torch.cat([statistics(augment.draw('bgcfnc', x, p)(x)) for _ in range(n // 100)])
    z = (s.mean(0) - torch.tensor(MOMENTS[p])) / (s.std(0) * (1 / n + 1e-4) ** .5)
    assert z.abs().max() < 4.5 and (z ** 2).mean() < 3           # 12 blocks hang together: no chi-square of 30


# ---- the controller

def test_p_follows_a_scripted_r_exactly_and_never_leaves_its_range():
    """10^4 adjustments: p = clip(p + step sign(r_t - target), 0, pmax)."""
    rng = np.random.default_rng(0)
    ada = augment.Controller(64, target=.6, kimg=10, interval=4, pmax=.8)
    p, step = 0., 4 * 64 / 10_000
    for i in range(10_000):
        share = rng.uniform(.6, 1.) if i // 100 % 2 else rng.uniform(.5, .9)       # of positive logits: r = 2 share - 1
        positive = int(round(100 * share))
        for k in range(4):
            ada.add(real=torch.cat((torch.ones(positive), -torch.ones(100 - positive))), fake=torch.zeros(3))
            ada.adjust(4 * i + k + 1)
        r = (2 * positive - 100) / 100
        p = min(max(p + step * np.sign(round(r - .6, 9)), 0), .8)
        assert abs(ada.p - p) < 1e-9 and 0 <= ada.p <= .8 and abs(ada.r - r) < 1e-12
    assert ada.p != 0


def test_r_v_is_the_gap_to_held_out_images_over_the_gap_to_generated_ones():
    ada = augment.Controller(64, 'rv', target=.5, kimg=1, interval=1)
    for held, r in ((2., 0.), (0., .5), (-1., .75)):
        before = ada.p
        ada.add(real=torch.tensor([1., 3.]), fake=torch.tensor([-2., -2.])), ada.add(held=torch.tensor([held]))
        ada.adjust(1)
        assert ada.r == r and np.sign(ada.p - before) == (np.sign(r - .5) if before or r > .5 else 0)


def test_a_fixed_p_stays_and_a_restored_controller_goes_on_as_if_never_stopped():
    fixed = augment.Controller(64, p=.3, interval=1)
    fixed.add(real=torch.ones(4)), fixed.adjust(1)
    assert fixed.p == .3 and fixed.r == 1
    a, b = (augment.Controller(64, kimg=1, interval=4) for _ in range(2))
    for step in range(1, 12):
        if step == 7:                                            # between two adjustments
            c = augment.Controller(64, kimg=1, interval=4)
            c.load({k: v.clone() if torch.is_tensor(v) else v for k, v in b.state().items()})
            b = c
        for ada in (a, b):
            ada.add(real=torch.full((3,), float(step % 3)), fake=-torch.ones(3)), ada.adjust(step)
    assert a.p == b.p > 0 and a.r == b.r and torch.equal(a.sums, b.sums)


@pytest.mark.parametrize('flags, word', [
    (['--ada-target', '.5'], '--ada-target 0.5'), (['--aug', 'diffaug', '--ada-p', '.5'], '--ada-p 0.5'),
    (['--aug', 'ada', '--ada-p', '.5', '--ada-kimg', '3'], '--ada-kimg 3.0'), (['--aug-on', 'd'], '--aug-on d'),
    (['--aug', 'ada', '--aug-policy', 'translation'], "'translation'"),
    (['--aug', 'diffaug', '--aug-policy', 'bgc'], "'bgc'"), (['--aug-policy', 'cutout'], '--aug-policy cutout')])
def test_flags_of_augmentation_that_do_nothing_or_cannot_be_are_named(flags, word):
    p = augment.add_flags(argparse.ArgumentParser())
    assert word in augment.contradiction(p.parse_args(flags), p.get_default)


@pytest.mark.parametrize('flags, policy, target', [
    (['--aug', 'diffaug'], 'color,translation,cutout', .6), (['--aug', 'ada'], 'bgc', .6), ([], None, .6),
    (['--aug', 'ada', '--ada-heuristic', 'rv', '--aug-policy', 'blit,noise'], 'blit,noise', .5),
    (['--aug', 'ada', '--ada-heuristic', 'rv', '--ada-target', '.3'], 'bgc', .3)])
def test_what_is_left_open_is_completed_as_published(flags, policy, target):
    p = augment.add_flags(argparse.ArgumentParser())
    args = p.parse_args(flags)
    assert augment.contradiction(args, p.get_default) is None and (args.aug_policy, args.ada_target) == (policy, target)


def test_everyday_flags_go_to_the_first_group_and_all_others_to_the_second():
    p = argparse.ArgumentParser()
    everyday, experiments = p.add_argument_group('everyday'), p.add_argument_group('experiments')
    assert augment.add_flags(everyday, experiments) is everyday
    assert [a.option_strings[0] for a in everyday._group_actions] == ['--aug', '--ada-target']
    alone = augment.add_flags(argparse.ArgumentParser())
    assert vars(p.parse_args([])) == vars(alone.parse_args([])) and p.format_help()


# ---- what loops of other people ask for

def test_diffaugment_in_one_line_is_a_draw_and_its_t():
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(0)
    y = augment.DiffAugment(x, 'color,translation')
    torch.manual_seed(0)
    assert torch.equal(y, augment.draw('color,translation', x)(x))
    torch.manual_seed(0)
    z = augment.DiffAugment(x)
    torch.manual_seed(0)
    assert torch.equal(z, augment.draw('color,translation,cutout', x)(x)) and not torch.equal(z, augment.DiffAugment(x))


@pytest.mark.parametrize('policy, p', [('color,translation,cutout', None), ('bgc', .8), ('bgc', 0.)])
def test_t_refuses_a_batch_that_it_was_not_drawn_for(policy, p):
    T = augment.draw(policy, torch.zeros(4, 3, 16, 16), p)
    assert T(torch.ones(4, 3, 16, 16)).shape == (4, 3, 16, 16)
    for shape in ((1, 3, 16, 16), (8, 3, 16, 16), (4, 3, 32, 32), (3, 16, 16)):
        with pytest.raises(ValueError, match=r'T was drawn for images \[4, 3, 16, 16\], not for .*: draw another T'):
            T(torch.ones(shape))


def test_the_controller_takes_logits_of_any_shape():
    logits = torch.randn(8)
    found = []
    for shape in ((8,), (8, 1), (2, 1, 2, 2)):
        ada = augment.Controller(8, 'rv', interval=1)
        ada.add(real=logits.view(shape), fake=-logits.view(shape), held=2 * logits.view(shape))
        ada.adjust(1)
        found.append(ada.r)
    assert found[0] != 0 and found == [found[0]] * 3
