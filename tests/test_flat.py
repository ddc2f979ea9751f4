"""flat.py: the flat network against per-parameter training, masks, frozen tensors, NaN, moments, parts.

What two ranks do is in test_ranks.py."""
import contextlib
import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

import flat as flat_module
import files
import prune
from flat import Flat, micro_batches
from models import sngan


def small_net(seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3)
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def loss_of(net, step):
    """The mean square of the output on images that depend on the step."""
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step))
    return net(x.to(memory_format=torch.channels_last)).square().mean()


def advance(flat, steps, first=1):
    """Updates number first, first + 1, ..."""
    for step in range(first, first + steps):
        flat.now = step
        flat.update(lambda part, step=step: loss_of(flat.net, step))
    return flat


def test_flat_equals_per_parameter_adam_bit_for_bit():
    plain, flat = small_net(), advance(Flat(small_net(), 1e-2, (.5, .9)), 5)
    adam = torch.optim.Adam(plain.parameters(), 1e-2, (.5, .9), fused=True)
    for step in range(1, 6):
        adam.zero_grad()
        loss_of(plain, step).backward()
        adam.step()
    for (name, a), b in zip(plain.state_dict().items(), flat.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_views_keep_shapes_strides_and_alignment():
    plain, flat = small_net(), Flat(small_net(), 1e-2)
    for a, b in zip(plain.parameters(), flat.net.parameters(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride() == b.grad.stride()
        assert b.untyped_storage().data_ptr() == flat.w.untyped_storage().data_ptr()
        assert b.storage_offset() % 64 == 0
    assert not any(p.requires_grad for p in flat.net.parameters())


def test_masked_weights_are_exactly_zero_whatever_happens():
    masks = prune.magnitude(small_net(), prune.ones(small_net()), .5)
    flat, average = Flat(small_net(), 1e-1, (.9, .999), masks=masks), Flat(small_net(), masks=masks)
    for step in range(1, 5):
        advance(flat, 1, step)
        average.track(flat, .9)
    for which in (flat, average):
        parameters = dict(which.net.named_parameters())
        for name, keep in masks.items():
            assert not parameters[name][~keep].any() and parameters[name][keep].all(), name
    moments = flat.moments()
    for name, keep in masks.items():
        assert not moments['m'][name][~keep].any() and not moments['v'][name][~keep].any(), name


def test_frozen_tensors_stand_still_until_they_are_released_and_pruned_weights_stay_zero():
    masks = prune.magnitude(small_net(), prune.ones(small_net()), .5)
    flat = Flat(small_net(), 1e-1, masks=masks)
    flat.freeze(['3.weight', '1.bias'])
    before = copy.deepcopy(flat.net.state_dict())
    after = advance(flat, 2).net.state_dict()
    assert {name for name in flat.layout if torch.equal(before[name], after[name])} == {'3.weight', '1.bias'}
    flat.freeze(())
    after = copy.deepcopy(flat.net.state_dict())
    advance(flat, 1)
    assert not any(torch.equal(after[name], flat.net.state_dict()[name]) for name in flat.layout)
    assert not any(flat.net.get_parameter(name)[~keep].any() for name, keep in masks.items())


def test_the_average_follows_its_formula_and_takes_bn_statistics_along():
    flat, average = Flat(small_net(), 1e-1), Flat(small_net())
    start = copy.deepcopy(average.net.state_dict())
    advance(flat, 1)
    average.track(flat, .75)
    for name, value in average.net.state_dict().items():
        new = flat.net.state_dict()[name]
        expected = .75 * start[name] + .25 * new if value.is_floating_point() else new
        assert torch.allclose(value, expected, atol=1e-7), name


def test_micro_batches_sum_to_the_big_batch_and_share_w_over_sigma():
    torch.manual_seed(0)
    D = sngan.Discriminator(8).to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 16, 16)
    whole, parted = Flat(copy.deepcopy(D), 1e-3), Flat(copy.deepcopy(D), 1e-3)
    for flat, micro in ((whole, None), (parted, 2)):
        flat.now = 1
        flat.update(lambda part, flat=flat: F.relu(1 - flat.net(x[part])).mean(), micro_batches(8, micro))
    assert torch.allclose(whole.g, parted.g, atol=1e-6 * whole.g.abs().max())
    for a, b in zip(whole.net.buffers(), parted.net.buffers(), strict=True):
        assert torch.equal(a, b)                               # one power iteration each


def test_an_update_that_is_not_finite_is_named_and_holds_back_all_later_ones():
    flat = advance(Flat(small_net(), 1e-1), 1)
    good = flat.w.detach().clone()
    flat.now = 2
    flat.update(lambda part: loss_of(flat.net, 2) + (flat.net[3].weight * float('nan')).sum())
    advance(flat, 1, 3)
    assert torch.equal(good, flat.w) and flat.first_bad() == (2, '3.weight')
    other = Flat(small_net(), 1e-1)
    other.now = 7
    other.update(lambda part: loss_of(other.net, 0) + torch.tensor(float('inf')))
    assert other.first_bad() == (7, 'the loss')


def test_moments_travel_by_parameter_name():
    a, b = advance(Flat(small_net(), 1e-2, (.5, .9)), 3), Flat(small_net(1), 1e-2, (.5, .9))
    b.net.load_state_dict(a.net.state_dict())
    b.load_moments(files.to_cpu(a.moments()))
    assert set(a.moments()['v']) == set(dict(a.net.named_parameters()))
    assert torch.equal(advance(a, 1, 9).w, advance(b, 1, 9).w)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_graphs_replay_the_eager_updates():
    results = []
    for graph in (False, True):
        flat = Flat(small_net().cuda(), 1e-2, graph=graph)
        x = torch.randn(4, 3, 9, 9, device='cuda')

        def loss(part, flat=flat, x=x):
            return flat.net(x).square().mean()
        for step in range(8):
            flat.now = step + 1
            x.copy_(torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step)))
            flat.update(loss)
        results.append(flat.w.detach().clone())
    assert torch.allclose(*results, rtol=1e-3, atol=1e-5)


def test_the_guard_holds_without_a_step_number():
    flat = Flat(small_net(), 1e-1)
    good = flat.w.detach().clone()
    flat.update(lambda part: loss_of(flat.net, 0) * float('nan'))
    assert torch.equal(good, flat.w) and flat.first_bad() is not None


def test_an_update_that_fails_leaves_no_parameter_that_requires_a_gradient():
    flat = Flat(small_net(), 1e-1)

    def out_of_memory(part):
        raise torch.OutOfMemoryError
    with pytest.raises(torch.OutOfMemoryError):
        flat.update(out_of_memory)
    assert not any(p.requires_grad for p in flat.net.parameters())


class Graph:
    """A CUDA graph that replays what was called while it was recorded."""

    def pool(self):
        return self.memory

    def replay(self):
        self.replays = getattr(self, 'replays', 0) + 1


@pytest.fixture
def recordings(monkeypatch):
    """CUDA graphs without a GPU; returns the words with which each was recorded."""
    recorded = []

    @contextlib.contextmanager
    def graph(graph, pool=None, stream=None, capture_error_mode='global'):
        graph.memory = pool or len(recorded) + 1
        recorded.append((graph.memory, stream, capture_error_mode))
        yield

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', Graph)
    monkeypatch.setattr(torch.cuda, 'graph', graph)
    monkeypatch.setattr(torch.cuda, 'Stream', Stream)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, 'current_stream', Stream)
    flat_module.side_stream.cache_clear()
    yield recorded
    flat_module.side_stream.cache_clear()


def test_graphs_share_a_stream_and_a_pool_and_pinning_may_go_on(recordings):
    a, b = Flat(small_net(), 1e-2, graph=True), Flat(small_net(), 1e-2, graph=True)

    def loss_a(part):
        return loss_of(a.net, 0)

    def loss_b(part):
        return loss_of(b.net, 0)
    for _ in range(6):
        a.update(loss_a)
        b.update(loss_b)
    assert len(recordings) == 2 and len(set(recordings)) == 1
    assert recordings[0][2] == 'thread_local' and a.graphs[loss_a].replays == 3


def test_a_graph_and_its_network_go_without_a_collection(recordings):
    """Their memory is needed by the next training of find_ticket.py."""
    def training():
        flat = Flat(small_net(), 1e-2, graph=True)

        def loss(part):
            return loss_of(flat.net, 0)
        for _ in range(5):
            flat.update(loss)
        return weakref.ref(flat), weakref.ref(flat.graphs[loss])
    gc.disable()
    try:
        assert [ref() for ref in training()] == [None, None]
    finally:
        gc.enable()
