"""find_ticket.py's methods end to end, tiny: exact counts, rewinding, resume, early-bird, slimming, starts.

Algorithm 1 itself, the method imp, is in test_scripts.py."""
import copy
import functools
import json
import os
import shlex
import shutil

import pytest
import torch
from helpers import (TINY, Killed, all_refused, equal, find, killed_at, parsed, refused, same_runs,
                     same_tickets, train, without)

import files
import find_ticket
import gan
import prune
import train_sngan

SLIM = ['--method', 'slimming', '--prune', 'g', '--slim', '.1']
BIRD = ['--method', 'early-bird', '--steps', 7, '--eb-every', 1, '--eb-threshold', 1]

train = functools.partial(train, 'sngan')
find = functools.partial(find, 'sngan')


def theta_0(*flags):
    nets = train_sngan.build(parsed('sngan', *flags))
    return {name: dict(net.state_dict()) for name, net in zip('GD', nets)}


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """Tickets of two rounds by all methods: {method: directory}."""
    out = tmp_path_factory.mktemp('find')
    common = ['--rounds', 2, '--steps', 2]
    for method in ('imp', 'oneshot', 'random', 'init'):
        find(out / method, *common, '--method', method)
    find(out / 'slimming', *common, *SLIM)
    find(out / 'random-layers', '--steps', 2, '--method', 'random-layers', '--like', out / 'imp.pt')
    find(out / 'early-bird', '--rounds', 2, *BIRD)
    return {path.stem: out / path.stem for path in out.glob('*.pt')}


def tickets(found, method):
    """{k: ticket} of what a method found."""
    paths = {k: found[method] / f'ticket{k}.pt' for k in range(4)}
    return {k: files.load(path) for k, path in paths.items() if path.exists()}


# ---- masks

@pytest.mark.parametrize('method, levels, data', [
    ('imp', {0, 1, 2}, True), ('oneshot', {0, 1, 2}, True), ('random', {0, 1, 2}, False),
    ('init', {0, 1, 2}, False), ('random-layers', {0, 2}, False), ('early-bird', {0, 2}, True)])
def test_every_method_leaves_exactly_as_many_weights_as_the_rounds_and_rewinds(found, method, levels, data):
    imp, own, start = tickets(found, 'imp'), tickets(found, method), theta_0()
    assert own.keys() == levels and equal(own[2], files.load(f'{found[method]}.pt'))
    for k in levels:
        assert equal(own[k]['init'], start) and own[k]['method'] == method and own[k]['round'] == k
        for name in 'GD':
            assert prune.alive(own[k]['mask'][name]) == prune.alive(imp[k]['mask'][name])
            assert own[k]['sparsity'][name] == imp[k]['sparsity'][name]
            same = method == 'imp' or k == 0 or (method, k) == ('oneshot', 1)      # round 1 is one training
            assert equal(own[k]['mask'][name], imp[k]['mask'][name]) == same
    assert own[2]['data'] == (imp[2]['data'] if data else None) and imp[2]['data'] and own[0]['data'] is None
    assert os.path.exists(found[method] / 'round0') == data


def test_the_methods_prune_what_they_say(found):
    imp, oneshot, start, random = (tickets(found, method) for method in ('imp', 'oneshot', 'init', 'random'))
    trained, theta = files.load(found['oneshot'] / 'round0/last.pt'), theta_0()
    layers = tickets(found, 'random-layers')[2]['mask']
    for name in 'GD':
        dense = oneshot[0]['mask'][name]
        keep = prune.alive_after(prune.alive(dense), .2, 2)
        assert equal(oneshot[2]['mask'][name], prune.magnitude(trained[name], dense, keep=keep))
        assert equal(start[2]['mask'][name], prune.magnitude(theta[name], dense, keep=keep))
        assert all((random[2]['mask'][name][key] <= random[1]['mask'][name][key]).all() for key in dense)
        chance = keep / prune.alive(dense)
        assert abs(prune.overlap(random[2]['mask'][name], imp[2]['mask'][name]) - chance / (2 - chance)) < .02
        for key, mask in imp[2]['mask'][name].items():
            assert int(layers[name][key].sum()) == int(mask.sum())


def test_random_masks_depend_on_the_seed_alone(tmp_path, found):
    flags = ['--rounds', 2, '--method', 'random']
    a = find(tmp_path / 'a', *flags, '--steps', 3, '--lr-g', '1e-3')
    b = find(tmp_path / 'b', *flags, '--seed', 1)
    first, a, b = (files.load(path)['mask'] for path in (f"{found['random']}.pt", a, b))
    assert equal(first, a) and not equal(first, b)


def test_a_ticket_of_any_method_trains_and_keeps_its_zeros(tmp_path, found):
    for method in ('slimming', 'random-layers'):
        G, _ = train(tmp_path / method, '--mask', f'{found[method]}.pt', '--steps', 2, '--advaug', 'gd')
        for key, keep in files.load(f'{found[method]}.pt')['mask']['G'].items():
            assert not G.get_parameter(key)[~keep].any() and G.get_parameter(key)[keep].all()


def test_magnitudes_are_effective_where_the_model_scales_its_weights(tmp_path, monkeypatch):
    def gains(net):
        return {key: 1e-3 for key in prune.prunable(net) if 'block2.c1' in key}
    monkeypatch.setattr(train_sngan, 'gains', gains, raising=False)
    sparsity = {}
    for rank in ('effective', 'raw'):
        path = find(tmp_path / rank, '--rounds', 1, '--rho', .05, '--method', 'init', '--rank', rank)
        sparsity[rank] = prune.sparsity({'': files.load(path)['mask']['G']['block2.c1.weight']})
    assert sparsity['effective'] > .3 > .1 > sparsity['raw']


def test_finding_augments_only_where_it_is_asked_to():
    """The paper's footnote 1; StyleGAN2's presets have DiffAugment."""
    words = ['stylegan2', *TINY['stylegan2']]
    for more, aug in (([], 'none'), (['--aug', 'diffaug'], 'diffaug'), (['--aug=ada'], 'ada')):
        assert find_ticket.get_args([*words, *more]).flags.aug == aug


# ---- slimming

def test_slimming_prunes_whole_channels_of_G_next_to_the_count_of_the_rounds(found):
    own, start = tickets(found, 'slimming'), theta_0()
    dense = prune.alive(own[0]['mask']['G'])
    scales = files.load(found['slimming'] / 'round0/last.pt')['G']
    norms = train_sngan.build(parsed('sngan'))[0].slimmable()
    for k in (1, 2):
        masks = own[k]['mask']['G']
        assert own[k]['mask']['D'] == {} and equal(own[k]['init'], start)
        assert abs(prune.alive(masks) - prune.alive_after(dense, .2, k)) <= 2 * 8 * 9 / 2  # half a channel

        gone, alone = set(), set()                             # (norm, channel) with nothing behind, in front
        for norm, (front, behind) in norms.items():
            gone |= {(norm, c) for c in range(8) if not masks[behind][:, c].any()}
            if front:
                alone |= {(norm, c) for c in range(8) if not masks[front][c].any()}
        assert alone == {(norm, c) for norm, c in gone if norms[norm][0]} and alone
        left = {(norm, c) for norm in norms for c in range(8)} - gone
        assert max(scales[norm][c].abs() for norm, c in gone) < min(scales[norm][c].abs() for norm, c in left)

        assert sum(mask.numel() for mask in masks.values()) > prune.alive(masks)
        for norm, c in gone:
            masks[norms[norm][1]][:, c] = True
        for norm, c in alone:
            masks[norms[norm][0]][c] = True
        assert all(mask.all() for mask in masks.values())      # nothing else was pruned
    assert files.load(found['slimming'] / 'round0/last.pt')['args']['slim'] == .1


# ---- early-bird

def test_early_bird_stops_when_five_masks_agree_and_not_before(tmp_path, monkeypatch, capsys):
    """Scripted trainings: D's weights settle at once, G's only after the third stretch."""
    nets = dict(zip('GD', train_sngan.build(parsed('sngan'))))
    calls = []

    def scripted(args, ticket, name, steps, metrics):
        calls.append(steps)
        G = copy.deepcopy(nets['G'])
        if len(calls) <= 3:
            torch.manual_seed(len(calls))
            for p in G.parameters():
                p.data = torch.randn_like(p)
        return {'G': G, 'D': nets['D']}

    def stretches(name, *flags):
        calls.clear()
        find(tmp_path / name, '--method', 'early-bird', '--rounds', 3, '--eb-every', 30, *flags)
        return calls
    monkeypatch.setattr(find_ticket, 'train', scripted)
    assert stretches('a', '--steps', 1000) == [30 * i for i in range(1, 9)]        # 3 move, then 5 alike
    assert 'step 240 of 1000, 76.0% of a training saved' in capsys.readouterr().out
    t = files.load(tmp_path / 'a.pt')
    assert t['round'] == 3 and equal(t['mask']['D'], files.load(tmp_path / 'a/masks.pt')['last'][0]['D'])
    assert not stretches('a', '--steps', 1000)                 # found already
    calls = stretches('a', '--steps', 1000, '--restart')
    assert calls[0] == 30 and calls[-1] == 240                 # nothing is left of the first finding
    assert stretches('b', '--steps', 1000, '--eb-threshold', 1) == [30, 60, 90, 120, 150]  # five are needed
    assert stretches('c', '--steps', 100) == [30, 60, 90, 100]
    assert 'have not settled' in capsys.readouterr().out


def test_an_early_bird_is_what_one_shot_pruning_of_that_length_finds(found, tmp_path):
    find(tmp_path / 'one', '--method', 'oneshot', '--rounds', 2, '--steps', 5)
    assert files.load(found['early-bird'] / 'masks.pt')['step'] == 5
    assert equal(files.load(f"{found['early-bird']}.pt")['mask'], files.load(tmp_path / 'one.pt')['mask'])
    stretches, whole = (files.load(out / 'round0/last.pt') for out in (found['early-bird'], tmp_path / 'one'))
    assert all(equal(stretches[key], whole[key]) for key in ('G', 'D', 'E', 'opt'))


# ---- resume

@pytest.mark.slow
def test_an_early_bird_that_is_killed_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Killed in the third stretch of two steps, after two masks, one step after its last checkpoint."""
    flags = ['--method', 'early-bird', '--eb-every', 2, '--eb-threshold', .01, '--steps', 8, '--rounds', 2]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(gan, 'g_loss', killed_at(6, gan.g_loss))
        find(tmp_path / 'cut', *flags)
    masks = files.load(tmp_path / 'cut/masks.pt')
    assert masks['step'] == 4 and len(masks['last']) == 2 and not os.path.exists(tmp_path / 'cut/ticket2.pt')
    for name in ('cut', 'whole'):
        find(tmp_path / name, *flags)
    same_tickets(tmp_path / 'cut.pt', tmp_path / 'whole.pt')
    same_runs(tmp_path / 'cut/round0', tmp_path / 'whole/round0')
    assert equal(*(files.load(tmp_path / name / 'masks.pt') for name in ('cut', 'whole')))


def test_tickets_that_are_missing_are_made_without_another_training(tmp_path, found, monkeypatch):
    flags = ['--rounds', 2, '--steps', 2, '--method', 'oneshot']
    save = find_ticket.save_ticket

    def cut(file, args, k, *rest):
        if k == 2:
            raise Killed
        save(file, args, k, *rest)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(find_ticket, 'save_ticket', cut)
        find(tmp_path / 'a', *flags)
    monkeypatch.setattr(gan, 'd_loss', None)                   # no step is trained again
    find(tmp_path / 'a', *flags)
    same_tickets(tmp_path / 'a.pt', f"{found['oneshot']}.pt")
    find(tmp_path / 'a', *flags, '--rounds', 4)                # sparser ones of the same training
    assert files.load(tmp_path / 'a.pt')['sparsity']['G'] == pytest.approx(1 - .8 ** 4, abs=.001)
    shutil.rmtree(tmp_path / 'a/round0')                       # tickets are complete without their training
    find(tmp_path / 'a', *flags)
    same_tickets(tmp_path / 'a.pt', f"{found['oneshot']}.pt")


def test_other_settings_of_a_method_are_refused(tmp_path, found, capsys):
    """In a directory in which something was trained with the flags `before`."""
    common = ['--rounds', 1, '--steps', 1]
    imp = [(['--method', 'oneshot'], "--method was 'imp', is 'oneshot'"), (['--rank', 'raw'], '--rank was')]
    slimming = [([*SLIM, '--slim', .2], '--slim was 0.1, is 0.2')]
    bird = [([*BIRD, '--eb-every', 2], '--eb-every was 1, is 2'), ([*BIRD, '--rounds', 3], '--rounds was 1'),
            ([*BIRD, '--eb-threshold', .5], '--eb-threshold was 1.0, is 0.5')]
    for name, before, table in (('imp', [], imp), ('slimming', SLIM, slimming), ('bird', BIRD, bird)):
        out = tmp_path / name
        os.makedirs(out / 'round0')
        args = find_ticket.get_args([str(word) for word in ('sngan', *TINY['sngan'], *common, *before)])
        files.write_json(out / 'args.json', {'identity': args.identity})
        (out / 'round0/last.pt').write_text('')
        all_refused(capsys, lambda flags, out=out: find(out, *common, *flags), table)

    random = ['--method', 'random', '--rounds', 2, '--rho', .4]            # and where nothing was trained
    layers = ['--method', 'random-layers', '--like', found['imp'] / 'ticket1.pt']
    refused(capsys, lambda: find(found['random'], '--steps', 2, *random), '--rho was 0.2')
    refused(capsys, lambda: find(found['random-layers'], '--steps', 2, *layers), '--like-hash was')


# ---- refusals

def test_what_finds_nothing_or_contradicts_the_method_is_refused(found, capsys):
    like, dense = f"{found['imp']}.pt", found['imp'] / 'ticket0.pt'
    layers = ['--method', 'random-layers', '--like', like]
    table = [
        (['--rounds', 0], '--rounds 0'), (['--rho', 1], '--rho 1'), (['--rho', 0], '--rho 0'),
        (['--rewind', 60000], '--rewind 60000'), (['--mask', like], '--mask'), (['--bird'], '--bird'),
        (['--method', 'slimming'], '--prune g'), (['--slim', 0], '--slim 0'), (['--reinit'], '--mask TICKET'),
        (['--method', 'random-layers'], '--like TICKET'),
        (['--like', 'x.pt'], ['--like x.pt', 'random-layers']),
        ([*layers, '--rounds', 3], ['--rounds 3', '--like']),
        ([*layers, '--ch-g', 16], ['does not fit G', 'l1.weight']),
        (['--method', 'random-layers', '--like', dense], 'round 0'),
        (['--eb-every', 5], ['--eb-every 5', 'early-bird']),
        (['--method', 'early-bird', '--eb-every', 0], '--eb-every 0'),
        (['--method', 'early-bird', '--eb-threshold', -1], '--eb-threshold -1'),
        (['--small-dense', like], ['--small-dense', '--ch-g 8']),
        (['--rho', 1e-300], ['--rho 1e-300', 'round 1 would prune not one']), (['--rho', 'nan'], '--rho nan'),
        (['--rho', .999999], ['--rho 0.999999', 'would leave']), (['--rounds', 99], '--rounds 99'),
        (['--method', 'early-bird', '--eb-threshold', 'inf'], '--eb-threshold inf')]
    all_refused(capsys, lambda flags: find_ticket.get_args(['sngan', *TINY['sngan'], *flags]), table)
    biggan = ['biggan', '--data', 'emoji', *SLIM]
    all_refused(capsys, find_ticket.get_args, [
        (biggan, ['--slim', 'biggan', 'sngan']), (['vgg', '--data', 'emoji'], 'vgg')])


def test_unusable_data_and_scores_are_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.makedirs('photos/empty')

    def call(flags):
        words = ['sngan', *TINY['sngan'], '--rounds', '1', '--steps', '1', *flags]
        find_ticket.main(find_ticket.get_args(words))
    all_refused(capsys, call, [
        (['--data', 'missing'], 'missing'), (['--data', 'photos'], 'photos'),
        (['--data', 'n' * 300], 'nnn'), (['--metrics', 'fid', '--features', 'inception'], 'inception'),
        (['--metrics', 'fid', '--features', 'effnet', '--data', 'photos'], 'photos'),
        (['--method', 'oneshot', '--is-splits', '0'], '--is-splits 0'),
        (['--method', 'init', '--metrics', 'x'], 'x'),
        (['--method', 'init', '--rewind', '1', '--steps', '2', '--data', 'missing'], 'missing')])
    assert os.listdir() == ['photos'] and os.listdir('photos') == ['empty']


# ---- other starts from a ticket

def test_reinit_keeps_the_masks_and_is_compared_on_resume(tmp_path, found, capsys):
    flags = ['--mask', f"{found['imp']}.pt", '--steps', 1]
    train(tmp_path / 'r', *flags, '--reinit')
    saved, masks = files.load(tmp_path / 'r/last.pt'), files.load(f"{found['imp']}.pt")['mask']
    for key, keep in masks['G'].items():
        assert not saved['G'][key][~keep].any() and saved['G'][key][keep].all()
    refused(capsys, lambda: train(tmp_path / 'r', *flags), '--reinit was True, is None')


def test_a_small_dense_network_trains_resumes_and_is_found_by_its_content(tmp_path, found):
    flags = [*without(TINY['sngan'], '--ch-g', '--ch-d'), '--small-dense', f"{found['imp']}.pt"]
    flags += ['--out', str(tmp_path / 'r')]
    for steps in ('1', '2'):
        G, D = train_sngan.main(train_sngan.get_args([*flags, '--steps', steps]))
    with open(tmp_path / 'r/args.json') as f:
        identity = json.load(f)['identity']
    assert identity['ch_d'] == D.ch < 8 and identity['ch_g'] == G.ch and 'small_dense' not in identity
    saved = files.load(tmp_path / 'r/last.pt')
    assert saved['step'] == 2 and saved['masks'] == {'G': {}, 'D': {}}


def test_a_finding_replaces_its_own_ticket_and_never_that_of_another(tmp_path, capsys):
    def call(out, *flags):
        find(tmp_path / out, '--method', 'random', '--steps', 1, '--ticket', tmp_path / 't.pt', *flags)
    call('a', '--rounds', 1)
    call('a', '--rounds', 2)                                   # it goes on
    call('a', '--rounds', 2, '--restart', '--seed', 1)         # it begins anew
    before = (tmp_path / 't.pt').read_bytes()
    refused(capsys, lambda: call('b', '--rounds', 1), 't.pt is the ticket of another finding', 'sngan', 'round 2')
    assert (tmp_path / 't.pt').read_bytes() == before and not os.path.exists(tmp_path / 'b')


def test_the_last_line_of_a_finding_is_a_command_that_trains_its_ticket(tmp_path, capsys):
    ticket = str(tmp_path / 'a ticket.pt')
    find(tmp_path / 'a', '--method', 'random', '--steps', 1, '--rounds', 1, '--ticket', ticket)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split('Next: ')[1])
    assert command[:2] == ['python', 'train_sngan.py']
    args = train_sngan.get_args(command[2:])
    found = torch.load(ticket, weights_only=True)['args']
    assert (args.mask, args.advaug) == (ticket, 'gd')
    assert [args.data, args.frac, args.data_seed] == [found['data'], found['frac'], found['data_seed']]


def test_a_finding_says_how_many_trainings_it_takes(tmp_path, capsys):
    args = find_ticket.get_args(['sngan', '--data', 'emoji-faces', '--steps', '7', '--out', str(tmp_path)])
    for method, rounds, there, count in (('imp', 5, 0, 5), ('imp', 5, 3, 2), ('oneshot', 5, 0, 1), ('random', 5, 0, 0),
                                         ('early-bird', 3, 0, 1), ('oneshot', 2, 2, 0)):
        args.method, args.rounds = method, rounds
        for k in range(1, 6):
            (tmp_path / f'ticket{k}.pt').unlink(missing_ok=True)
            if k <= there:
                (tmp_path / f'ticket{k}.pt').touch()
        find_ticket.say_length(args)
        assert f': {count} trainings of 7 steps' in capsys.readouterr().out
