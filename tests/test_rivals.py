"""The rivals of a ticket: sparse training from random masks (--dst), and pseudo reals (--aug apa)."""
import os

import numpy as np
import pytest
import torch

import augment
import files
import flat
import gan
import generate
import prune
import runs
import trainer
from helpers import TINY, equal, find, parsed, ranks, refused, train
from models import sngan, stylegan2


def convolutions():
    """Four convolutions of very different sizes."""
    torch.manual_seed(0)
    shapes = ((4, 3, 1), (16, 4, 3), (32, 16, 3), (1, 32, 3))
    return torch.nn.Sequential(*[torch.nn.Conv2d(c_in, c_out, k) for c_out, c_in, k in shapes])


# ---- masks

@pytest.mark.parametrize('density', [.05, .3277, .7, .95])
def test_erk_shares_the_weights_as_its_formula_says_and_to_one_weight(density):
    masks = prune.ones(convolutions())
    counts = prune.erk(masks, density)
    total = prune.total(masks)
    assert sum(counts.values()) == int(density * total) and list(counts) == list(masks)

    # The slow way: search the scale c whose shares, cut at 1, fill the goal.
    low, high = 0., 1e6
    for _ in range(200):
        c = (low + high) / 2
        filled = sum(min(c * sum(mask.shape), mask.numel()) for mask in masks.values())
        low, high = (c, high) if filled < density * total else (low, c)
    for name, mask in masks.items():
        assert abs(counts[name] - min(c * sum(mask.shape), mask.numel())) <= 2, name


def test_a_density_without_a_weight_for_each_tensor_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match='leaves 1 weights to 4 tensors'):
        prune.erk(prune.ones(convolutions()), 1 / 5000)
    flags = ['--steps', 1, '--dst', 'static', '--density', '1e-5']
    refused(capsys, lambda: train('sngan', tmp_path / 'r', *flags), '--density', 'leaves')
    assert not os.path.exists(tmp_path / 'r/last.pt')


def test_random_masks_follow_the_seed_and_their_counts():
    masks = prune.ones(convolutions())
    a, b, c = (prune.sparse(masks, .3, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert equal(a, b) and not equal(a, c)
    for net in (a, c):
        assert {name: int(mask.sum()) for name, mask in net.items()} == prune.erk(masks, .3)


def test_what_goes_and_what_comes_back_as_a_slow_loop_says():
    net = convolutions()
    masks = prune.sparse(prune.ones(net), .4, np.random.default_rng(0))
    gains = {'1.weight': 10.}
    scores = {name: torch.rand(mask.shape) for name, mask in masks.items()}

    left = prune.drop(net, masks, 500, gains)
    ranked, kept_largest = [], set()
    for name, mask in masks.items():
        w = net.get_parameter(name).detach() * gains.get(name, 1.)
        alive = [(abs(float(w[at])), name, at) for at in map(tuple, mask.nonzero().tolist())]
        kept_largest.add(max(alive)[1:])
        ranked += alive
    expected = {name: mask.clone() for name, mask in masks.items()}
    for _, name, at in [item for item in sorted(ranked) if item[1:] not in kept_largest][:500]:
        expected[name][at] = False
    assert equal(left, expected)

    grown = prune.grow(left, scores, 500)
    dead = [(float(scores[name][at]), name, at) for name in left for at in map(tuple, (~left[name]).nonzero().tolist())]
    for _, name, at in sorted(dead)[-500:]:
        expected[name][at] = True
    assert equal(grown, expected) and prune.alive(grown) == prune.alive(masks)


def test_the_largest_weight_of_a_tensor_stays_whatever_its_size():
    net = convolutions()
    with torch.no_grad():
        net[0].weight *= 1e-9
    left = prune.drop(net, prune.ones(net), prune.total(prune.ones(net)) - 4)
    assert {name: int(mask.sum()) for name, mask in left.items()} == {name: 1 for name in left}


# ---- flat vectors

def test_weights_that_go_and_come_back_start_at_zero_without_a_past():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.Flatten(), torch.nn.LazyLinear(1))
    x = torch.randn(8, 1, 3, 3)
    net(x)
    first = torch.zeros(4, 1, 3, 3, dtype=torch.bool)
    first[:2] = True
    other = ~first
    G = flat.Flat(net, lr=.1, betas=(.9, .9), masks={'0.weight': first})
    for _ in range(3):
        G.update(lambda part: net(x[part]).square().mean())
    head = net[2].weight.clone()
    G.remask({'0.weight': other})
    moments = G.moments()
    assert not net[0].weight.any() and not moments['m']['0.weight'].any() and not moments['v']['0.weight'].any()
    assert torch.equal(net[2].weight, head) and moments['m']['2.weight'].any()

    G.update(lambda part: net(x[part]).square().mean(), keep=True)
    assert net[0].weight[other].all() and not net[0].weight[first].any()
    dense = G.view(G.dense_g, '0.weight')
    assert torch.equal(dense[other], G.view(G.g, '0.weight')[other]) and dense[first].any()


# ---- trainings

def saved(path):
    return files.load(path / 'last.pt')


def dst(tmp_path, name, kind, *flags, steps=6):
    train('sngan', tmp_path / name, '--steps', steps, '--dst', kind, '--density', '.3', '--seed', '3', *flags)
    return saved(tmp_path / name)


@pytest.mark.parametrize('kind', ['static', 'set', 'rigl'])
def test_a_sparse_training_keeps_its_density_and_its_zeros(tmp_path, kind, monkeypatch):
    moved, lefts = [], []
    move, drop = trainer.Sparse.move, prune.drop

    def dropped(*args):
        lefts.append(drop(*args))
        return lefts[-1]

    def watched(self, step):
        before = {name: mask.clone() for name, mask in self.G.masks.items()}
        w = self.G.w.clone()
        move(self, step)
        moved.append((step, prune.hamming(before, self.G.masks)))
        at_once = 0
        for name, mask in self.G.masks.items():                # what comes back starts at 0, also at once
            back = mask & ~lefts[-1][name]
            assert not self.G.net.get_parameter(name)[back].any()
            at_once += int((back & before[name]).sum())
        assert at_once and (self.G.w != w).any()
    monkeypatch.setattr(trainer.Sparse, 'move', watched)
    monkeypatch.setattr(prune, 'drop', dropped)

    flags = [] if kind == 'static' else ['--dst-every', '2']
    run = dst(tmp_path, 'a', kind, *flags)
    masks, start = run['masks']['G'], prune.sparse(prune.ones(sngan.Generator(16, 8)), .3, loop_rng())
    assert prune.alive(masks) == int(.3 * prune.total(masks)) and run['masks']['D'] == {}
    if kind == 'static':
        assert equal(masks, start) and not moved
    else:
        assert [step for step, _ in moved] == [2, 4] and min(share for _, share in moved) > 0
        assert not equal(masks, start)
    for weights in (run['G'], run['E'], run['opt']['G']['m'], run['opt']['G']['v']):
        for name, mask in masks.items():
            assert not weights[name][~mask].any(), name
            assert weights is not run['G'] or weights[name][mask].any()


def loop_rng():
    return trainer.loop.rng(3, 'dst')


def test_the_line_of_settings_must_say_how_sparse_a_rival_is():
    args = parsed('sngan', '--dst', 'rigl', '--density', '.3', '--dst-every', '2', '--steps', '70')
    assert '--dst rigl --density 0.3;' in trainer.settings('sngan', args, torch.device('cpu'))


@pytest.mark.slow
@pytest.mark.parametrize('model, flags', [('biggan', []), ('stylegan2', ['--pl', '2', '--pl-every', '2'])])
def test_all_networks_are_sparse_and_stylegan2_ranks_weights_as_they_act(tmp_path, model, flags, monkeypatch):
    gains = []
    drop = prune.drop

    def watched(net, masks, count, factors):
        gains.append(factors)
        return drop(net, masks, count, factors)
    monkeypatch.setattr(prune, 'drop', watched)

    flags = [*flags, '--dst', 'rigl', '--density', '.3', '--dst-every', '2']
    G, _ = train(model, tmp_path / 'a', '--steps', 5, *flags)
    run = saved(tmp_path / 'a')
    masks = run['masks']['G']
    assert set(masks) == set(prune.prunable(G)) and prune.alive(masks) == int(.3 * prune.total(masks))
    for weights in (run['G'], run['E'], run['opt']['G']['m'], run['opt']['G']['v']):
        assert not any(weights[name][~mask].any() for name, mask in masks.items())
    assert gains == 2 * [stylegan2.effective_gain(G) if model == 'stylegan2' else {}]


def test_rigl_grows_where_the_gradient_is_largest_and_set_at_random(tmp_path, monkeypatch):
    def scores(self, step):
        found = original(self, step)
        for name, score in found.items():
            gradient = self.G.view(self.G.dense_g, name).abs()
            dead = ~self.G.masks[name]
            assert torch.equal(score, gradient) == (self.args.dst == 'rigl')
            assert gradient[dead].any() or not dead.any()
        seen.append(step)
        return found
    seen, original = [], trainer.Sparse.scores
    monkeypatch.setattr(trainer.Sparse, 'scores', scores)
    for kind in ('rigl', 'set'):
        dst(tmp_path, kind, kind, '--dst-every', '2', steps=3)
    assert seen == [2, 2]


def test_the_share_that_moves_falls_by_a_cosine(monkeypatch):
    args = parsed('sngan', '--dst', 'set', '--density', '.5', '--steps', '1000', '--dst-every', '100')
    counts = []
    monkeypatch.setattr(prune, 'drop', lambda net, masks, count, gains: counts.append(count) or masks)
    monkeypatch.setattr(prune, 'grow', lambda masks, scores, count: masks)
    G = flat.Flat(sngan.Generator(16, 8), masks=prune.sparse(prune.ones(sngan.Generator(16, 8)), .5, loop_rng()))
    sparse = trainer.Sparse(args, G, G, {})
    due = [step for step in range(1, 1001) if sparse.due(step)]
    for step in due:
        sparse.move(step)
    n = prune.alive(G.masks)
    assert due == [*range(100, 1000, 100)] and counts == sorted(counts, reverse=True)
    assert counts[4] == int(n * (.5 + .005) / 2)               # half way
    assert counts[0] == int(n * (.005 + .495 * (1 + np.cos(.1 * np.pi)) / 2))


@pytest.mark.parametrize('flags', [['--dst', 'rigl', '--density', '.3', '--dst-every', '2'],
                                   ['--aug', 'apa', '--ada-kimg', '.05']], ids=['rigl', 'apa'])
def test_rivals_resume_bit_for_bit(tmp_path, flags):
    train('sngan', tmp_path / 'whole', '--steps', 7, *flags)
    # --steps is the length of RigL's cosine, so the cut comes from outside
    with pytest.raises(SystemExit) as e, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Training, 'after_step', stop_at_step_5(trainer.Training.after_step))
        train('sngan', tmp_path / 'cut', '--steps', 7, *flags)
    assert e.value.code == 143 and saved(tmp_path / 'cut')['step'] == 5
    train('sngan', tmp_path / 'cut', '--steps', 7, *flags)
    a, b = saved(tmp_path / 'whole'), saved(tmp_path / 'cut')
    for key in ('G', 'D', 'E', 'masks', 'opt', 'state'):
        assert equal(a[key], b[key]), key


def stop_at_step_5(after_step):
    def wrapped(self):
        after_step(self)
        if self.run.step == 5:
            trainer.cli.STOP.append(15)
    return wrapped


def test_other_files_show_the_sparsity(tmp_path):
    dst(tmp_path, 'a', 'set', '--dst-every', '1', steps=2)
    log = files.read_jsonl(tmp_path / 'a/log.jsonl')[-1]
    assert log['sparsity_G'] == pytest.approx(.7, abs=1e-3) and log['sparsity_D'] == 0
    assert runs.read_run(str(tmp_path / 'a'))['label'].startswith('SET 70.0')
    net = generate.load(str(tmp_path / 'a/last.pt'), 'cpu')
    zeros = sum(int((net.get_parameter(name) == 0).sum()) for name in prune.prunable(net))
    assert zeros == prune.total(prune.ones(net)) - int(.3 * prune.total(prune.ones(net)))


def test_flags_that_do_nothing_or_contradict_are_refused(tmp_path, capsys):
    def call(*flags):
        return lambda: train('sngan', tmp_path / 'r', '--steps', 9, *flags)
    refused(capsys, call('--density', '.3'), '--density 0.3 does nothing without --dst')
    refused(capsys, call('--dst-every', '9'), '--dst-every 9 does nothing without --dst')
    refused(capsys, call('--dst', 'rigl'), 'give --density')
    refused(capsys, call('--dst', 'static', '--density', '.3', '--dst-every', '9'), 'does nothing with --dst static')
    refused(capsys, call('--dst', 'set', '--density', '.3', '--mask', 't.pt'), 'leave out --mask t.pt')
    refused(capsys, call('--dst', 'set', '--density', '1'), '--density 1')
    refused(capsys, call('--dst', 'set', '--density', '.3'), 'no weight in 9 steps', 'after 500')
    refused(capsys, call('--dst', 'rigl', '--density', '.3', '--dst-every', '9'), 'no weight', 'after 9')
    refused(capsys, call('--aug', 'apa', '--aug-on', 'd'), 'does nothing with --aug apa')
    refused(capsys, call('--aug', 'apa', '--aug-policy', 'bgc'), 'does nothing with --aug apa')
    refused(capsys, call('--graph', '--aug', 'apa'), '--graph')
    refused(capsys, lambda: find('sngan', tmp_path / 'f', '--steps', 1, '--dst', 'static', '--density', '.3'),
            'masks of its own')


SAY_MASKS = """
import sys, files, train_sngan, trainer
move = trainer.Sparse.move
def watched(self, step):
    move(self, step)
    print('masks', step, files.digest(self.G.masks), files.digest(self.G.net.state_dict()), file=sys.stderr)
trainer.Sparse.move = watched
train_sngan.main(train_sngan.get_args(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['set', 'rigl'])
def test_two_ranks_keep_equal_masks(tmp_path, kind):
    flags = ['--steps', '6', '--dst', kind, '--density', '.3', '--dst-every', '2', '--out', tmp_path / 'two']
    said = []
    for process in ranks(2, '-c', SAY_MASKS, *TINY['sngan'], *flags):
        text = process.communicate()[0]
        assert process.returncode == 0, text
        said.append([line for line in text.splitlines() if line.startswith('masks ')])
    assert said[0] == said[1] and len({line.split()[2] for line in said[0]}) == 2


# ---- APA

def test_pseudo_reals_are_fakes_in_their_places_with_their_classes():
    torch.manual_seed(0)
    real, fake = torch.zeros(4000, 1, 2, 2), torch.ones(4000, 1, 2, 2, requires_grad=True)
    y, y_fake = torch.zeros(4000, dtype=torch.long), torch.ones(4000, dtype=torch.long)
    for p in (0., .3, 1.):
        x, classes = augment.pseudo(real, fake, p, y, y_fake)
        assert not x.requires_grad and x.mean() == pytest.approx(p, abs=.03)
        assert torch.equal(x[:, 0, 0, 0].long(), classes) and torch.equal(x.amin((1, 2, 3)), x.amax((1, 2, 3)))
    assert augment.pseudo(real, fake, .5)[1] is None


def test_with_p_of_one_apa_trains_d_on_fakes_alone():
    args = parsed('sngan', '--aug', 'apa', '--ada-p', '1')
    torch.manual_seed(0)
    D = sngan.Discriminator(8)
    real, fake = torch.rand(2, 6, 3, 32, 32)
    ada = trainer.stateful_parts(args, 'cpu')['ada']

    def loss(real, aug, ada=None):
        args.aug = aug
        return gan.d_loss(D.eval(), real, fake, args, trainer.loop.Sums('cpu', *gan.SUMS), ada=ada)
    assert torch.equal(loss(real, 'apa', ada), loss(fake, 'none'))
    ada.p = 0.
    assert torch.equal(loss(real, 'apa', ada), loss(real, 'none'))


def test_p_of_apa_follows_a_scripted_d(tmp_path, monkeypatch):
    """D is sure of all reals at first, and then of none: p rises by 4 * batch / (1000 kimg), and falls again."""
    ps = []
    adjust = augment.Controller.adjust

    def scripted(self, step, average):
        self.fresh[self.rows['sign']] = torch.tensor([8. if step <= 8 else -8., 8.])
        adjust(self, step, average)
        ps.append(self.p)
    monkeypatch.setattr(augment.Controller, 'adjust', scripted)
    train('sngan', tmp_path / 'a', '--steps', 16, '--aug', 'apa', '--ada-kimg', '.5', '--ada-target', '.6')
    up = 4 * 16 / 500                                          # two D updates of 8 images a step
    assert ps[3::4] == pytest.approx([up, 2 * up, up, 0.])
