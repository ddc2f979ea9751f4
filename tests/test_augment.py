"""augment.py: DiffAugment's distributions as published, its transforms against loops, its gradients."""
import argparse
import itertools

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
    a, b = (augment.draw('color,cutout', x, torch.Generator().manual_seed(3))(x) for _ in range(2))
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
