"""find_ticket.py's methods end to end, tiny: exact counts, rewinding, resume, early-bird, slimming; and what starts
from a ticket otherwise: other weights, a narrow dense network."""
import copy
import json
import os
import shutil
import signal

import pytest
import test_scripts
import torch
from test_scripts import equal, process, same_runs, wait_for

import find_ticket
import gan
import loop
import prune
import train_biggan
import train_sngan

TINY = [*test_scripts.TINY, '--res', '16']
SLIM = ['--method', 'slimming', '--prune', 'g', '--slim', '.1']
BIRD = ['--method', 'early-bird', '--steps', '7', '--eb-every', '1', '--eb-threshold', '1']


def train(out, *flags):
    return train_sngan.main(train_sngan.get_args([*TINY, '--out', str(out), *flags]))


def find(out, *flags):
    return find_ticket.main(find_ticket.get_args(['sngan', *TINY, '--out', str(out), '--ticket', f'{out}.pt', *flags]))


def refused(capsys, call, *words):
    with pytest.raises(SystemExit) as e:
        call()
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count('\n') == 1 and all(w in error for w in words), error


def theta_0(*flags):
    nets = train_sngan.build(train_sngan.get_args([*TINY, *flags]))
    return {name: dict(net.state_dict()) for name, net in zip('GD', nets)}


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """Tickets of two rounds by all methods: {method: directory}."""
    out = tmp_path_factory.mktemp('find')
    common = ['--rounds', '2', '--steps', '2']
    for method in ('imp', 'oneshot', 'random', 'init'):
        find(out / method, *common, '--method', method)
    find(out / 'slimming', *common, *SLIM)
    find(out / 'random-layers', '--steps', '2', '--method', 'random-layers', '--like', str(out / 'imp.pt'))
    find(out / 'early-bird', '--rounds', '2', *BIRD)
    return {name[:-3]: out / name[:-3] for name in os.listdir(out) if name.endswith('.pt')}


def tickets(found, method):
    """{k: ticket} of what a method found."""
    return {k: loop.load(found[method] / f'ticket{k}.pt') for k in range(4)
            if os.path.exists(found[method] / f'ticket{k}.pt')}


@pytest.mark.parametrize('method, levels, data', [
    ('imp', {0, 1, 2}, True), ('oneshot', {0, 1, 2}, True), ('random', {0, 1, 2}, False), ('init', {0, 1, 2}, False),
    ('random-layers', {0, 2}, False), ('early-bird', {0, 2}, True)])
def test_every_method_leaves_exactly_as_many_weights_as_the_rounds_and_rewinds(found, method, levels, data):
    imp, own = tickets(found, 'imp'), tickets(found, method)
    assert own.keys() == levels and equal(own[2], loop.load(f'{found[method]}.pt'))
    for k in levels:
        assert equal(own[k]['init'], theta_0()) and own[k]['method'] == method and own[k]['round'] == k
        for name in 'GD':
            assert prune.alive(own[k]['mask'][name]) == prune.alive(imp[k]['mask'][name])
            assert own[k]['sparsity'][name] == imp[k]['sparsity'][name]
            same = method == 'imp' or k == 0 or (method, k) == ('oneshot', 1)       # the first round is one training
            assert equal(own[k]['mask'][name], imp[k]['mask'][name]) == same
    assert own[2]['data'] == (imp[2]['data'] if data else None) and imp[2]['data'] and own[0]['data'] is None
    assert os.path.exists(found[method] / 'round0') == data


def test_the_methods_prune_what_they_say(found):
    imp, oneshot, start, random = (tickets(found, m) for m in ('imp', 'oneshot', 'init', 'random'))
    trained, theta = loop.load(found['oneshot'] / 'round0' / 'last.pt'), theta_0()
    for name in 'GD':
        dense = oneshot[0]['mask'][name]
        keep = prune.alive_after(prune.alive(dense), .2, 2)
        assert equal(oneshot[2]['mask'][name], prune.magnitude(trained[name], dense, keep=keep))
        assert equal(start[2]['mask'][name], prune.magnitude(theta[name], dense, keep=keep))
        assert all((random[2]['mask'][name][n] <= random[1]['mask'][name][n]).all() for n in dense)
        chance = keep / prune.alive(dense)
        assert abs(prune.overlap(random[2]['mask'][name], imp[2]['mask'][name]) - chance / (2 - chance)) < .02
    layers = tickets(found, 'random-layers')[2]['mask']
    for name in 'GD':
        for n, m in imp[2]['mask'][name].items():
            assert int(layers[name][n].sum()) == int(m.sum())


def test_random_masks_depend_on_the_seed_alone(tmp_path, found):
    flags = ['--rounds', '2', '--method', 'random']
    find(tmp_path / 'a', *flags, '--steps', '3', '--lr-g', '1e-3')
    find(tmp_path / 'b', *flags, '--seed', '1')
    first, a, b = (loop.load(f)['mask'] for f in (f"{found['random']}.pt", tmp_path / 'a.pt', tmp_path / 'b.pt'))
    assert equal(first, a) and not equal(first, b)


def test_a_ticket_of_any_method_trains_and_keeps_its_zeros(tmp_path, found):
    for method in ('slimming', 'random-layers'):
        G, _ = train(tmp_path / method, '--mask', f'{found[method]}.pt', '--steps', '2', '--advaug', 'gd')
        for name, keep in loop.load(f'{found[method]}.pt')['mask']['G'].items():
            assert not G.get_parameter(name)[~keep].any() and G.get_parameter(name)[keep].all()


# ---- slimming

def test_slimming_prunes_whole_channels_of_G_next_to_the_count_of_the_rounds(found, capsys):
    own = tickets(found, 'slimming')
    dense = prune.alive(own[0]['mask']['G'])
    scales = loop.load(found['slimming'] / 'round0' / 'last.pt')['G']
    norms = train_sngan.build(train_sngan.get_args(TINY))[0].slimmable()
    for k in (1, 2):
        masks = own[k]['mask']['G']
        assert own[k]['mask']['D'] == {} and equal(own[k]['init'], theta_0())
        assert abs(prune.alive(masks) - prune.alive_after(dense, .2, k)) <= 2 * 8 * 9 / 2           # half a channel
        gone = {(n, c) for n, (front, behind) in norms.items() for c in range(8) if not masks[behind][:, c].any()}
        alone = {(n, c) for n, (front, _) in norms.items() for c in range(8) if front and not masks[front][c].any()}
        assert alone == {(n, c) for n, c in gone if norms[n][0]} and alone
        left = {(n, c) for n in norms for c in range(8)} - gone
        assert max(scales[n][c].abs() for n, c in gone) < min(scales[n][c].abs() for n, c in left)
        rest = sum(m.numel() for m in masks.values()) - prune.alive(masks)
        for n, c in gone:
            front, behind = norms[n]
            masks[behind][:, c] = True
        for n, c in alone:
            masks[norms[n][0]][c] = True
        assert all(m.all() for m in masks.values()) and rest > 0                   # nothing else was pruned
    assert loop.load(found['slimming'] / 'round0' / 'last.pt')['args']['slim'] == .1


@pytest.mark.parametrize('flags', [[], ['--advaug', 'gd'], ['--advaug', 'g', '--adv-noise', '.01']])
def test_slim_adds_its_pull_to_the_gradient_of_the_scales_and_of_nothing_else(flags):
    def gradients(*more):
        args = train_sngan.get_args([*TINY, *flags, *more])
        G, D = train_sngan.build(args)
        G.block2.n1.weight.data[0] = -1.
        G, D = loop.Flat(G.double(), 1.), loop.Flat(D.double(), 1.)
        sums = loop.Sums('cpu', *gan.SUMS)
        context, z = lambda: loop.autocast(args, torch.device('cpu')), torch.randn(8, 128, dtype=torch.float64,
                                                                                  generator=torch.Generator())
        torch.manual_seed(0)
        with G.training():
            G.backward(lambda part: gan.g_loss(G.net, D.net, z[part], args, sums, context), loop.parts(8, 4))
        return G, sums.means()
    (plain, _), (slim, means) = gradients(), gradients('--slim', '.5')
    for name in plain.layout:
        pull = .5 * plain.net.get_parameter(name).sign() if name in plain.net.slimmable() else 0.
        assert torch.allclose(slim.view(slim.g, name), plain.view(plain.g, name) + pull, atol=1e-10), name
    total = sum(p.abs().sum() for n, p in slim.net.named_parameters() if n in slim.net.slimmable())
    assert means['L1'] == pytest.approx(.5 * float(total)) and len(slim.net.slimmable()) == 7


# ---- early-bird

def test_early_bird_stops_when_five_masks_agree_and_not_before(tmp_path, monkeypatch, capsys):
    """Scripted trainings: D's weights settle at once, G's only after the third stretch."""
    nets = dict(zip('GD', train_sngan.build(train_sngan.get_args(TINY))))
    calls = []

    def scripted(args, ticket, name, steps, metrics):
        calls.append(steps)
        G = copy.deepcopy(nets['G'])
        if len(calls) <= 3:
            torch.manual_seed(len(calls))
            for p in G.parameters():
                p.data = torch.randn_like(p)
        return {'G': G, 'D': nets['D']}
    monkeypatch.setattr(find_ticket, 'train', scripted)
    flags = ['--method', 'early-bird', '--rounds', '3', '--steps', '1000', '--eb-every', '30']
    find(tmp_path / 'a', *flags)
    assert calls == [30 * i for i in range(1, 9)]               # 3 that move, then the first of 5 alike
    assert 'step 240 of 1000, 76.0% of a training saved' in capsys.readouterr().out
    t = loop.load(tmp_path / 'a.pt')
    assert t['round'] == 3 and equal(t['mask']['D'], loop.load(tmp_path / 'a' / 'masks.pt')['last'][0]['D'])
    calls.clear()
    find(tmp_path / 'a', *flags)
    assert not calls                                            # found already
    find(tmp_path / 'a', *flags, '--restart')
    assert calls[0] == 30 and calls[-1] == 240                  # nothing is left of the first finding
    calls.clear()
    find(tmp_path / 'b', *flags, '--eb-threshold', '1')
    assert calls == [30, 60, 90, 120, 150]                      # anything is near enough, and five are needed
    calls.clear()
    find(tmp_path / 'c', *flags[:4], '--steps', '100', '--eb-every', '30')
    assert calls == [30, 60, 90, 100] and 'have not settled' in capsys.readouterr().out


def test_an_early_bird_is_what_one_shot_pruning_of_that_length_finds(found, tmp_path):
    find(tmp_path / 'one', '--method', 'oneshot', '--rounds', '2', '--steps', '5')
    assert loop.load(found['early-bird'] / 'masks.pt')['step'] == 5
    assert equal(loop.load(f"{found['early-bird']}.pt")['mask'], loop.load(tmp_path / 'one.pt')['mask'])
    stretches, whole = (loop.load(d / 'round0' / 'last.pt') for d in (found['early-bird'], tmp_path / 'one'))
    assert all(equal(stretches[k], whole[k]) for k in ('G', 'D', 'E', 'opt'))


# ---- resume

def test_a_killed_early_bird_goes_on_bit_for_bit(tmp_path):
    flags = [*TINY, '--method', 'early-bird', '--eb-every', '2', '--eb-threshold', '1', '--steps', '20',
             '--rounds', '2', '--save-every', '1']
    p = process('find_ticket.py', 'sngan', *flags, '--out', tmp_path / 'cut', '--ticket', tmp_path / 'cut.pt')
    wait_for(tmp_path / 'cut' / 'masks.pt', p, 180)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not os.path.exists(tmp_path / 'cut' / 'ticket2.pt')
    for name in ('cut', 'whole'):
        find(tmp_path / name, *flags)
    same_findings(tmp_path)


def test_a_cut_slimming_goes_on_bit_for_bit(tmp_path, monkeypatch):
    flags, calls, plain = [*SLIM, '--steps', '7', '--rounds', '2', '--save-every', '2'], [], gan.g_loss

    def cut(*rest, **more):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return plain(*rest, **more)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(gan, 'g_loss', cut)
        find(tmp_path / 'cut', *flags)
    assert loop.load(tmp_path / 'cut' / 'round0' / 'last.pt')['step'] == 4
    for name in ('cut', 'whole'):
        find(tmp_path / name, *flags)
    same_findings(tmp_path)


def same_findings(path):
    a, b = (loop.load(path / f'{n}.pt') for n in ('cut', 'whole'))
    assert equal(a['mask'], b['mask']) and equal(a['init'], b['init']) and a['data'] == b['data']
    same_runs(path / 'cut' / 'round0', path / 'whole' / 'round0')


def test_tickets_that_are_missing_are_made_without_another_training(tmp_path, found, monkeypatch):
    flags = ['--rounds', '2', '--steps', '2', '--method', 'oneshot']
    save = find_ticket.save

    def cut(file, args, k, *rest):
        if k == 2:
            raise KeyboardInterrupt
        save(file, args, k, *rest)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(find_ticket, 'save', cut)
        find(tmp_path / 'a', *flags)
    monkeypatch.setattr(gan, 'd_loss', None)                    # no step is trained again
    find(tmp_path / 'a', *flags)
    assert equal(loop.load(tmp_path / 'a.pt')['mask'], loop.load(f"{found['oneshot']}.pt")['mask'])
    find(tmp_path / 'a', *flags, '--rounds', '4')               # sparser ones of the same training
    assert loop.load(tmp_path / 'a.pt')['sparsity']['G'] == pytest.approx(1 - .8 ** 4, abs=.001)
    shutil.rmtree(tmp_path / 'a' / 'round0')                    # tickets are complete without their training
    find(tmp_path / 'a', *flags)
    assert equal(loop.load(tmp_path / 'a.pt')['mask'], loop.load(f"{found['oneshot']}.pt")['mask'])


@pytest.mark.parametrize('before, after, word', [
    ([], ['--method', 'oneshot'], "--method was 'imp', is 'oneshot'"), ([], ['--rank', 'raw'], '--rank was'),
    (BIRD, [*BIRD, '--eb-every', '2'], '--eb-every was 1, is 2'), (BIRD, [*BIRD, '--rounds', '3'], '--rounds was 1'),
    (BIRD, [*BIRD, '--eb-threshold', '.5'], '--eb-threshold was 1.0, is 0.5'),
    (SLIM, [*SLIM, '--slim', '.2'], '--slim was 0.1, is 0.2')])
def test_other_settings_of_a_method_are_refused(tmp_path, before, after, word, capsys):
    common = ['--rounds', '1', '--steps', '1', '--out', str(tmp_path / 'a')]
    os.makedirs(tmp_path / 'a' / 'round0')
    args = find_ticket.get_args(['sngan', *TINY, *common, *before])
    loop.write_json(tmp_path / 'a' / 'args.json', {'identity': args.identity})
    (tmp_path / 'a' / 'round0' / 'last.pt').write_text('')
    refused(capsys, lambda: find(tmp_path / 'a', *common, *after), word, '--restart')


def test_other_settings_are_refused_where_nothing_was_trained(found, capsys):
    common = ['--steps', '2', '--method']
    refused(capsys, lambda: find(found['random'], *common, 'random', '--rounds', '2', '--rho', '.4'), '--rho was 0.2')
    other = str(found['imp'] / 'ticket1.pt')
    refused(capsys, lambda: find(found['random-layers'], *common, 'random-layers', '--like', other), '--like-hash was')


def test_two_ranks_find_the_same_early_bird(tmp_path):
    flags = ['sngan', *TINY, *BIRD, '--steps', '2', '--rounds', '2', '--out', tmp_path / 'f',
             '--ticket', tmp_path / 't.pt']
    ranks = process('find_ticket.py', *flags, ranks=2)
    texts = [p.communicate(timeout=180)[0] for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], texts
    assert loop.load(tmp_path / 't.pt')['round'] == 2 and loop.load(tmp_path / 'f' / 'masks.pt')['step'] == 2
    assert sum('of a training saved' in text for text in texts) == 1


# ---- refusals

@pytest.mark.parametrize('flags, words', [
    (['--method', 'slimming'], ['--prune g']), (['--method', 'random-layers'], ['--like TICKET']),
    (['--like', 'x.pt'], ['--like x.pt', 'random-layers']), (['--eb-every', '5'], ['--eb-every 5', 'early-bird']),
    (['--method', 'early-bird', '--eb-every', '0'], ['--eb-every 0']), (['--rho', '0'], ['--rho 0']),
    (['--method', 'early-bird', '--eb-threshold', '-1'], ['--eb-threshold -1']), (['--slim', '0'], ['--slim 0']),
    (['--method', 'random-layers', '--like', 'T', '--rounds', '3'], ['--rounds 3', '--like']),
    (['--method', 'random-layers', '--like', 'T', '--ch-g', '16'], ['does not fit G', 'l1.weight']),
    (['--method', 'random-layers', '--like', 'DENSE'], ['round 0']), (['--reinit'], ['--mask TICKET']),
    (['--small-dense', 'T', '--ch-g', '8'], ['--small-dense', '--ch-g 8'])])
def test_methods_refuse_what_contradicts_them(flags, words, found, capsys):
    names = {'T': f"{found['imp']}.pt", 'DENSE': str(found['imp'] / 'ticket0.pt')}
    plain = [f for i, f in enumerate(TINY) if '--small-dense' not in flags or i not in (4, 5, 6, 7)]
    refused(capsys, lambda: find_ticket.get_args(['sngan', *plain, *(names.get(f, f) for f in flags)]), *words)


def test_slimming_is_refused_for_class_conditional_norms(capsys):
    refused(capsys, lambda: find_ticket.get_args(['biggan', '--data', 'emoji', *SLIM]), '--slim', 'biggan', 'sngan')


def test_magnitudes_are_effective_where_the_model_scales_its_weights(tmp_path, monkeypatch):
    def gains(net):
        return {name: 1e-3 for name in prune.prunable(net) if 'block2.c1' in name}
    monkeypatch.setattr(train_sngan, 'gains', gains, raising=False)
    for rank in ('effective', 'raw'):
        find(tmp_path / rank, '--rounds', '1', '--rho', '.05', '--method', 'init', '--rank', rank)
    a, b = (loop.load(tmp_path / f'{rank}.pt')['mask']['G']['block2.c1.weight'] for rank in ('effective', 'raw'))
    assert prune.sparsity({'': a}) > .3 > .1 > prune.sparsity({'': b})


# ---- other starts from a ticket

def test_reinit_keeps_the_masks_and_draws_other_weights(tmp_path, found, capsys):
    flags = [*TINY, '--mask', f"{found['imp']}.pt"]
    t = loop.load(f"{found['imp']}.pt")
    starts = []
    for seed in ('0', '1'):
        args = train_sngan.get_args([*flags, '--reinit', '--seed', seed])
        G, D, masks, facts = gan.start(args, train_sngan.build)
        assert equal(masks, t['mask']) and facts['mask_hash']
        starts.append(dict(G.state_dict()))
    again = gan.start(train_sngan.get_args([*flags, '--reinit']), train_sngan.build)[0].state_dict()
    assert equal(starts[0], dict(again))
    for a, b in ((starts[0], starts[1]), (starts[0], t['init']['G']), (starts[0], theta_0('--seed', '1')['G'])):
        assert not any(torch.equal(a[n], b[n]) for n in prune.prunable(G))
    train(tmp_path / 'r', '--steps', '1', *flags[len(TINY):], '--reinit')
    saved = loop.load(tmp_path / 'r' / 'last.pt')
    assert all(not saved['G'][n][~m].any() and saved['G'][n][m].all() for n, m in t['mask']['G'].items())
    refused(capsys, lambda: train(tmp_path / 'r', '--steps', '1', *flags[len(TINY):]), '--reinit was True, is None')


@pytest.mark.parametrize('script, rho, flags', [
    (train_sngan, .67, ['--data', 'emoji-faces', '--preset', 'paper', '--ch-g', '96', '--ch-d', '96']),
    (train_sngan, .2, ['--data', 'emoji-faces', '--preset', 'demo', '--ch-g', '64', '--ch-d', '48', '--res', '48']),
    (train_biggan, .67, ['--data', 'emoji', '--preset', 'demo', '--ch-g', '96', '--ch-d', '96'])])
def test_a_small_dense_network_has_the_weights_of_the_ticket_within_two_percent(tmp_path, script, rho, flags, capsys):
    old = script.get_args(flags)
    nets = dict(zip('GD', gan.blank(script.build, old)))
    masks = {name: {n: torch.rand(m.shape) > rho for n, m in prune.ones(net).items()} for name, net in nets.items()}
    goals = [sum(p.numel() for p in net.parameters()) - sum(int((~m).sum()) for m in masks[name].values())
             for name, net in nets.items()]
    ticket = {'model': script.__name__[6:], 'args': vars(old), 'init': {}, 'mask': masks, 'data': None}
    torch.save(ticket, tmp_path / 't.pt')
    args = script.get_args([*flags[:4], '--small-dense', str(tmp_path / 't.pt')])
    out = capsys.readouterr().out
    assert args.res == old.res
    for name, net, goal in zip('GD', gan.blank(script.build, args), goals):
        size = sum(p.numel() for p in net.parameters())
        assert abs(size / goal - 1) < .02 and net.ch < nets[name].ch
        assert f'{name} has {goal:,} weights in the ticket and {size:,}' in out


def test_a_width_of_eight_is_preferred_where_it_comes_near():
    near = lambda ch, top: gan.nearest(lambda ch: ch ** 2, ch ** 2, top)
    assert near(64, 256) == 64 and near(63, 256) == 63 and near(60, 256) == 60 and near(62.2, 256) == 62
    assert near(256, 256) == 256 and near(12, 12) == 12 and near(201, 256) == 200 and near(203, 256) == 204
    assert near(1, 256) == 1 and near(2.6, 3) == 3


def test_a_small_dense_network_trains_resumes_and_is_found_by_its_content(tmp_path, found):
    flags = [*TINY[:4], *TINY[8:], '--small-dense', f"{found['imp']}.pt", '--out', str(tmp_path / 'r')]
    for steps in ('1', '2'):
        G, D = train_sngan.main(train_sngan.get_args([*flags, '--steps', steps]))
    saved = json.load(open(tmp_path / 'r' / 'args.json'))
    assert saved['identity']['ch_d'] == D.ch < 8 and saved['identity']['ch_g'] == G.ch
    assert 'small_dense' not in saved['identity']
    saved = loop.load(tmp_path / 'r' / 'last.pt')
    assert saved['step'] == 2 and saved['masks'] == {'G': {}, 'D': {}}
