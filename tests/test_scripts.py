"""train_sngan.py and find_ticket.py end to end, tiny: resume, endings, tickets, scores, refusals, pages.

What two ranks do is in test_ranks.py, runs of the first edition are in test_first_edition.py."""
import functools
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from helpers import (METHOD, ROOT, SCORE, TINY, Killed, all_refused, equal, find, killed_at, parsed,
                     process, pruned_weights_are_zero, refused, same_checkpoints, same_runs, same_tickets,
                     train, wait_for, without)
from PIL import Image

import files
import find_ticket
import gan
import generate
import loop
import prune
import report
import train_sngan

train = functools.partial(train, 'sngan')
find = functools.partial(find, 'sngan')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run of two steps; not to be changed."""
    out = tmp_path_factory.mktemp('run') / 'run'
    train(out, '--steps', 2)
    return out


@pytest.fixture
def copied(run, tmp_path):
    """The same run in a place of its own."""
    return shutil.copytree(run, tmp_path / 'copied')


@pytest.fixture(scope='module')
def ticket(tmp_path_factory):
    """A ticket of two rounds: PATH/find.pt, found in PATH/find."""
    return find(tmp_path_factory.mktemp('find') / 'find', '--rounds', 2, '--steps', 2)


def pictures(folder, count, size=(20, 20), shade=0):
    os.makedirs(folder)
    for i in range(count):
        Image.new('RGB', size, (shade + 40 * i, 0, 99)).save(folder / f'{i}.png')


# ---- resume

def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
        tmp_path, ticket, monkeypatch, settled_on_two_batches):
    """Ticket, DiffAugment, AdvAug and scores; killed in step 5, after the save and the score of step 3."""
    flags = ['--mask', ticket, *METHOD, '--steps', 9, '--save-every', 8, '--log-every', 1,
             *SCORE, '--eval-every', 3, '--eval-repeats', 2]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(gan, 'g_loss', killed_at(5, gan.g_loss))
        train(tmp_path / 'cut', *flags)
    assert files.load(tmp_path / 'cut/last.pt')['step'] == 3
    assert [line['step'] for line in files.read_jsonl(tmp_path / 'cut/log.jsonl')] == [1, 2, 3, 4]
    for name in ('log.jsonl', 'metrics.jsonl'):                # newer than the checkpoint, and torn
        with open(tmp_path / 'cut' / name, 'a') as f:
            f.write('{"step": 8, "score": "FD-effnet", "choose": 0}\n{"step": 3')
    for name in ('cut', 'cut', 'whole'):                       # the call of a finished run changes nothing
        train(tmp_path / name, *flags)
    same_runs(tmp_path / 'cut', tmp_path / 'whole')

    a, b = (files.load(tmp_path / name / 'best.pt') for name in ('cut', 'whole'))
    scores = files.read_jsonl(tmp_path / 'cut/metrics.jsonl')
    assert [score['step'] for score in scores] == [3, 6, 9]
    assert a['score'] == min(scores, key=lambda score: score['choose'])
    assert equal(a['E'], b['E']) and equal(a['masks'], b['masks']) and a['score'] == b['score']
    saved = files.load(tmp_path / 'cut/last.pt')
    assert equal(saved['masks'], files.load(ticket)['mask'])
    pruned_weights_are_zero(saved, saved['masks'])


@pytest.mark.slow
@pytest.mark.parametrize('flags', [
    ['--seed', 1, '--ada-target', -.9, '--lecam', '--lecam-start', 3],
    ['--ada-heuristic', 'rv', '--advaug', 'gd']])
def test_what_adapts_to_D_survives_a_stop_bit_for_bit(tmp_path, flags):
    """ADA's p, r and sums, LeCam's anchors, and the position in the held-out images."""
    flags = ['--aug', 'ada', '--ada-kimg', .2, '--ada-interval', 2, *flags]
    train(tmp_path / 'cut', *flags, '--steps', 5)              # between two adjustments of p
    ada = files.load(tmp_path / 'cut/last.pt')['state']['ada']
    assert ada['sums'].any() and ada['r'] and (ada['p'] or 'rv' in flags)
    train(tmp_path / 'cut', *flags, '--steps', 9)
    train(tmp_path / 'whole', *flags, '--steps', 9)
    same_checkpoints(tmp_path / 'cut', tmp_path / 'whole')

    state = files.load(tmp_path / 'whole/last.pt')['state']
    line = files.read_jsonl(tmp_path / 'whole/log.jsonl')[-1]
    assert 0 <= state['ada']['p'] <= .8 and line['ada_p'] == pytest.approx(state['ada']['p'], rel=1e-5)
    assert line['ada_r'] == pytest.approx(state['ada']['r'], rel=1e-5)
    assert ('lecam' in state) == ('--lecam' in flags)
    if '--lecam' in flags:
        assert state['lecam']['anchors'].all()


@pytest.mark.slow
def test_ticket_finding_that_is_cut_in_round_1_goes_on_bit_for_bit(tmp_path, monkeypatch):
    flags = ['--rounds', 2, '--steps', 6, '--save-every', 2, '--advaug', 'gd']
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(gan, 'g_loss', killed_at(6 + 4, gan.g_loss))
        find(tmp_path / 'cut', *flags)
    assert files.load(tmp_path / 'cut/round1/last.pt')['step'] == 2 and not os.path.exists(tmp_path / 'cut.pt')
    for name in ('cut', 'whole'):
        find(tmp_path / name, *flags)
    same_tickets(tmp_path / 'cut.pt', tmp_path / 'whole.pt')
    same_runs(tmp_path / 'cut/round1', tmp_path / 'whole/round1')


@pytest.mark.slow
def test_a_process_that_is_killed_in_round_1_goes_on_bit_for_bit(tmp_path):
    flags = ['--rounds', 2, '--steps', 20, '--save-every', 3, '--advaug', 'gd']
    place = ['--out', tmp_path / 'cut', '--ticket', tmp_path / 'cut.pt']
    p = process(f'{ROOT}/find_ticket.py', 'sngan', *TINY['sngan'], *flags, *place)
    wait_for(tmp_path / 'cut/round1/last.pt', p, 180)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert not os.path.exists(tmp_path / 'cut.pt') and not files.load(tmp_path / 'cut/round1/last.pt')['done']
    for name in ('cut', 'whole'):
        find(tmp_path / name, *flags)
    same_tickets(tmp_path / 'cut.pt', tmp_path / 'whole.pt')
    same_runs(tmp_path / 'cut/round1', tmp_path / 'whole/round1')


def test_observers_change_nothing(tmp_path, run, settled_on_two_batches):
    often = [word for what in ('log', 'sample', 'save', 'eval') for word in (f'--{what}-every', 1)]
    train(tmp_path / 'often', '--steps', 2, *often, *SCORE)
    same = files.load(run / 'last.pt'), files.load(tmp_path / 'often/last.pt')
    assert all(equal(same[0][key], same[1][key]) for key in ('G', 'D', 'E', 'opt'))
    assert sorted(os.listdir(tmp_path / 'often/samples')) == ['000000.png', '000001.png', '000002.png']


def test_changed_flags_are_refused_by_name_and_restart_takes_them(copied, ticket, capsys):
    before = files.load(copied / 'last.pt')
    all_refused(capsys, lambda flags: train(copied, '--steps', 3, *flags), [
        (['--lr-g', '1e-3'], ['--lr-g was 0.0002, is 0.001', '--restart']),
        (['--frac', '30'], '--frac was 20, is 30'), (['--advaug', 'd'], "--advaug was 'none', is 'd'"),
        (['--mask', ticket], '--mask-hash was None'), (['--seed', '1'], '--seed was 0, is 1'),
        (['--data-seed', '1'], '--data-fingerprint was'), (['--steps', '1'], ['--steps 1', 'at step 2'])])
    assert equal(before, files.load(copied / 'last.pt'))
    train(copied, '--steps', 1, '--restart', '--lr-g', '1e-3', '--mask', ticket)
    assert files.load(copied / 'last.pt')['args']['lr_g'] == 1e-3


def test_the_same_images_under_another_name_resume_and_others_do_not(tmp_path, capsys):
    def call(name, steps):
        train(tmp_path / 'run', '--data', tmp_path / name / 'photos', '--frac', 1., '--steps', steps)
    pictures(tmp_path / 'a/photos', 6)
    pictures(tmp_path / 'b/photos', 6, shade=1)
    call('a', 1)
    os.rename(tmp_path / 'a', tmp_path / 'c')
    call('c', 2)
    assert files.load(tmp_path / 'run/last.pt')['step'] == 2
    refused(capsys, lambda: call('b', 3), '--data-fingerprint')


def test_a_run_that_never_saved_does_not_stand_in_the_way(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(gan, 'd_loss', None)
        train(tmp_path, '--steps', 1, '--lr-g', '1e-3')
    train(tmp_path, '--steps', 1)


def test_restart_removes_what_a_run_wrote_and_nothing_else(tmp_path, copied, ticket):
    found = shutil.copytree(os.path.dirname(ticket), tmp_path / 'tickets')
    mine = [copied / 'samples/holiday.png', copied / 'notes.txt', found / 'find/ticket_concert.pt',
            found / 'find/roundtrip/x.png', tmp_path / 'new/last.pt']
    for path in mine:
        os.makedirs(path.parent, exist_ok=True)
        path.write_text('mine')
    train(copied, '--steps', 1, '--restart', '--seed', 1)
    find(found / 'find', '--steps', 1, '--rounds', 1, '--restart', '--seed', 1)
    loop.clear_run(tmp_path / 'new')                           # no directory of ours
    find_ticket.clear_finding(tmp_path / 'new')
    assert all(path.read_text() == 'mine' for path in mine)
    assert files.load(found / 'find.pt')['args']['seed'] == 1 and not os.path.exists(found / 'find/ticket2.pt')
    assert files.load(copied / 'last.pt')['step'] == 1 and len(files.read_jsonl(copied / 'log.jsonl')) == 1


# ---- endings

@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_with_its_code_and_never_counts_as_finished(
        tmp_path, run, monkeypatch, capsys, number, code):
    plain = gan.g_loss

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), number)
        return plain(*args, **kwargs)
    monkeypatch.setattr('sys.argv', ['train_sngan.py', '--steps', '2', '--restart'])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setattr(gan, 'g_loss', signalled)
        train(tmp_path, '--steps', 2, '--restart')
    assert e.value.code == code
    assert 'resume with: python train_sngan.py --steps 2\n' in capsys.readouterr().out
    saved = files.load(tmp_path / 'last.pt')
    assert saved['step'] == 1 and not saved['done']
    train(tmp_path, '--steps', 2)
    same_checkpoints(tmp_path, run)


def test_what_takes_a_while_is_said_before_it_begins(tmp_path, capsys):
    train(tmp_path / 'scored', '--steps', 1, *SCORE)
    said = capsys.readouterr().out
    places = [said.index(words) for words in (
        'features of 20 reference images', 'training begins; ', 'step 1/1', 'scoring 1 x 12 samples')]
    assert places == sorted(places)


@pytest.mark.slow
def test_a_process_that_is_terminated_saves_and_exits_143(tmp_path):
    out = tmp_path / 'find'
    flags = ['--steps', 200000, '--save-every', 1, '--rounds', 1, '--restart']
    place = ['--out', out, '--ticket', tmp_path / 't.pt']
    p = process(f'{ROOT}/find_ticket.py', 'sngan', *TINY['sngan'], *flags, *place)
    wait_for(out / 'round0/last.pt', p)
    p.send_signal(signal.SIGTERM)
    text = p.communicate(timeout=60)[0]
    assert text.index('stopping after this step') < text.index('stopped at step')
    line = next(line for line in text.splitlines() if 'resume with: python ' in line)
    assert p.returncode == 143
    assert 'find_ticket.py sngan' in line and str(out) in line and '--restart' not in line
    saved = files.load(out / 'round0/last.pt')
    assert not saved['done'] and 1 <= saved['step'] < 200000
    assert not os.path.exists(out / 'ticket1.pt') and not os.path.exists(tmp_path / 't.pt')
    assert not [*tmp_path.rglob('*.tmp')]


def test_time_over_exits_75_and_the_same_command_goes_on(tmp_path, run):
    with pytest.raises(SystemExit) as e:
        train(tmp_path, '--steps', 2, '--max-hours', '1e-9')
    assert e.value.code == 75 and not files.load(tmp_path / 'last.pt')['done']
    train(tmp_path, '--steps', 2)
    same_checkpoints(tmp_path, run)


def test_a_loss_that_is_not_finite_exits_3_with_step_and_tensor_and_keeps_the_last_good_checkpoint(
        tmp_path, capsys, monkeypatch):
    plain, calls = gan.d_loss, []

    def poisoned(D, *args, **kwargs):                          # two D updates a step: the sixth is of step 3
        calls.append(1)
        loss = plain(D, *args, **kwargs)
        return loss + float('nan') * D.block2.c1.bias.sum() if len(calls) == 6 else loss
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setattr(gan, 'd_loss', poisoned)
        train(tmp_path / 'a', '--steps', 50, '--save-every', 2, '--log-every', 50)
    assert e.value.code == 3
    assert 'error: step 3: the gradient of block2.c1.bias in D is not finite' in capsys.readouterr().out
    saved = files.load(tmp_path / 'a/last.pt')
    assert saved['step'] == 2 and not saved['done'] and len(calls) == 8    # found at the save of step 4
    for name in 'ab':
        train(tmp_path / name, '--steps', 4)
    assert equal(*(files.load(tmp_path / name / 'last.pt')['G'] for name in 'ab'))


# ---- scores and pages

def test_a_finished_run_can_be_scored_later_and_a_failed_evaluation_costs_no_step(
        tmp_path, monkeypatch, settled_on_two_batches):
    def broken(*args, **kwargs):
        raise ZeroDivisionError
    train(tmp_path / 'later', '--steps', 1, *SCORE, '--metrics', 'none')
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr('metrics.evaluate', broken)
        train(tmp_path / 'failed', '--steps', 1, *SCORE)
    monkeypatch.setattr(gan, 'd_loss', None)                   # no step is trained again
    for name in ('later', 'failed'):
        for _ in range(2):
            train(tmp_path / name, '--steps', 1, *SCORE)
        assert [score['step'] for score in files.read_jsonl(tmp_path / name / 'metrics.jsonl')] == [1]


@pytest.mark.slow
def test_every_score_is_recorded_with_its_protocol_and_stands_in_the_report(
        tmp_path, capsys, settled_on_two_batches):
    flags = ['--steps', 1, *SCORE, '--eval-repeats', 2, '--eval-batch', 5, '--cache', tmp_path / 'cache']
    every = [*flags, '--metrics', 'fid,kid,prdc,copy']
    train(tmp_path / 'faces', *every)
    record, = files.read_jsonl(tmp_path / 'faces/metrics.jsonl')
    for key in ('all', 'choose', 'report', 'kid', 'precision', 'recall', 'density', 'coverage', 'copy'):
        assert np.isfinite(record[key]) and record[f'{key}_std'] >= 0
    protocol = record['protocol']
    assert protocol['n_ref'] == {'choose': 10, 'report': 10, 'all': 20} and 'copy_train' not in record
    assert not {'kid_choose', 'precision_report'} & record.keys()          # halves: for the distance alone
    assert {'kid', 'prdc', 'copy'} < protocol.keys() and len(os.listdir(tmp_path / 'cache')) == 2

    train(tmp_path / 'held', *every, '--ref', 'test', '--seed', 1)
    record, = files.read_jsonl(tmp_path / 'held/metrics.jsonl')
    assert record['protocol']['n_ref'] == {'choose': 8, 'report': 9, 'all': 17, 'train': 20}
    assert 'copy_train' in record                              # copies are sought among the training images

    train(tmp_path / 'plain', *flags, '--seed', 2)
    report.main(report.get_args([str(tmp_path)]))
    page = (tmp_path / 'report/report.md').read_text()
    assert '| KID x 1000 | precision | recall | density | coverage | copies |' in page
    assert 'cubic kernel' in page and page.count('| KID x 1000 |') == 2
    assert '| – | – | – | – | – | – |' in page                 # a row of the same table
    refused(capsys, lambda: train(tmp_path / 'no', *flags, '--metrics', 'kid'), '--metrics kid', 'fid')


@pytest.mark.slow
def test_the_report_says_what_was_measured(tmp_path, ticket, settled_on_two_batches):
    score = [*SCORE, '--eval-repeats', 2, '--eval-every', 1, '--steps', 2]
    train(tmp_path / 'dense', *score)
    train(tmp_path / 'ticket', *score, '--mask', ticket, *METHOD)
    with open(report.main(report.get_args([str(tmp_path)]))) as f:
        page = f.read()
    assert '| dense | 2 |' in page and 'ticket 35.9' in page and '+ DiffAug + AdvAug' in page
    assert 'FD-effnet' in page and 'FID' not in page
    assert '12 generated' in page and 'emoji-faces-train' in page
    for name in ('grids.png', 'accuracy.png', 'score.png'):
        assert Image.open(tmp_path / 'report' / name).size[0] > 100
    last = files.read_jsonl(tmp_path / 'dense/metrics.jsonl')[-1]
    assert f"{last['all']:.1f} ± {last['all_std']:.1f}" in page
    with pytest.raises(SystemExit):
        report.main(report.get_args([str(tmp_path / 'report')]))


@pytest.mark.slow
def test_a_folder_is_checked_and_trained_on_and_shown(tmp_path, capsys):
    pictures(tmp_path / 'photos', 5, size=(50, 30))
    flags = ['--data', tmp_path / 'photos', '--frac', 1., '--steps', 2, '--mirror']
    assert train(tmp_path / 'run', *flags, '--check-data') is None
    assert '5 images read' in capsys.readouterr().out and not os.path.exists(tmp_path / 'run')
    train(tmp_path / 'run', *flags)                            # five images, batch eight
    assert Image.open(tmp_path / 'run/reals.png').size == (128, 16)

    def make(*words):
        return generate.main(generate.get_args([str(word) for word in words]))
    x = make(tmp_path / 'run', '--seeds', '0-3,7', '--columns', 5, '--out', tmp_path / 'g.png')
    make(tmp_path / 'run/last.pt', '--seeds', 7, '--each', tmp_path / 'e')
    one = np.asarray(Image.open(tmp_path / 'e/000007.png')).transpose(2, 0, 1).astype(int)
    assert x.shape == (5, 3, 16, 16) and Image.open(tmp_path / 'g.png').size == (80, 16)
    assert abs(one - x[4].numpy()).max() <= 1                  # round-off of another batch


# ---- tickets

def test_a_ticket_is_complete_and_rewound_bit_for_bit(tmp_path, ticket):
    found = ticket.removesuffix('.pt')
    t, dense, first = files.load(ticket), files.load(f'{found}/ticket0.pt'), files.load(f'{found}/ticket1.pt')
    trained = files.load(f'{found}/round1/last.pt')
    for name, net in zip('GD', train_sngan.build(parsed('sngan'))):
        assert equal(t['init'][name], dict(net.state_dict())) and equal(t['init'][name], dense['init'][name])
        assert abs(t['sparsity'][name] - .36) < 2 / sum(m.numel() for m in t['mask'][name].values())
        assert prune.sparsity(dense['mask'][name]) == 0
        # ranked: the round's last weights, not their average, and each network among its own
        assert equal(prune.magnitude(trained[name], first['mask'][name], .2), t['mask'][name])
    pruned_weights_are_zero(trained, first['mask'])

    flags = without(TINY['sngan'], '--ch-g', '--ch-d', '--res')                    # the ticket brings them
    args = train_sngan.get_args([*flags, '--mask', ticket, '--steps', '1', '--out', str(tmp_path)])
    G, D = train_sngan.main(args)
    assert (G.ch, D.ch, G.res) == (8, 8, 16)


@pytest.mark.parametrize('flags', [
    [*METHOD, '--precision', 'bf16'], ['--batch-gpu', 4, '--lr-g', '1e-2', '--lr-d', '1e-2']])
def test_pruned_weights_stay_exactly_zero_in_G_D_and_the_average(tmp_path, ticket, flags):
    train(tmp_path, '--mask', ticket, '--steps', 4, *flags)
    saved, masks = files.load(tmp_path / 'last.pt'), files.load(ticket)['mask']
    pruned_weights_are_zero(saved, masks)
    assert equal(saved['masks'], masks)


@pytest.mark.slow
def test_pruning_one_network_leaves_the_other_dense_and_late_rewinding_rewinds_late(tmp_path, run):
    find(tmp_path / 'a', '--rounds', 1, '--steps', 3, '--prune', 'g', '--rewind', 2)
    t, early = files.load(tmp_path / 'a.pt'), files.load(run / 'last.pt')            # two steps
    assert t['mask']['D'] == {} and abs(t['sparsity']['G'] - .2) < .001 and t['rewind'] == 2
    assert equal(t['init']['G'], early['G']) and equal(t['init']['D'], early['D'])


@pytest.mark.slow
def test_rewinding_goes_to_the_given_weights_when_finding_starts_from_a_checkpoint(tmp_path, run, capsys):
    start = files.load(run / 'last.pt')
    find(tmp_path / 'f', '--rounds', 2, '--steps', 1, '--init-from', run / 'last.pt')
    assert equal(files.load(tmp_path / 'f.pt')['init']['G'], start['G'])
    find(tmp_path / 'late', '--rounds', 2, '--steps', 2, '--init-from', run / 'last.pt', '--rewind', 1)
    late = files.load(tmp_path / 'late/ticket0.pt')['init']['G']
    with open(tmp_path / 'late/round1/args.json') as f:
        assert json.load(f)['args']['init_from'] is None and not equal(late, start['G'])
    start['G']['l1.bias'] += 1
    torch.save(start, tmp_path / 'other.pt')
    again = ['--rounds', 2, '--steps', 1, '--init-from', tmp_path / 'other.pt']
    refused(capsys, lambda: find(tmp_path / 'f', *again), '--init-hash')


@pytest.mark.slow
def test_other_settings_for_the_same_tickets_are_refused_and_more_rounds_go_on(tmp_path, capsys, ticket):
    shutil.copytree(ticket.removesuffix('.pt'), tmp_path / 'a')
    all_refused(capsys, lambda flags: find(tmp_path / 'a', '--rounds', 2, *flags), [
        (['--steps', '3'], '--steps was 2, is 3'), (['--steps', '2', '--rho', '.4'], '--rho was 0.2, is 0.4'),
        (['--steps', '2', '--lr-d', '1'], '--lr-d was 0.0002, is 1.0')])
    find(tmp_path / 'a', '--rounds', 3, '--steps', 2)
    same_tickets(tmp_path / 'a/ticket2.pt', ticket)
    assert abs(files.load(tmp_path / 'a.pt')['sparsity']['G'] - (1 - .8 ** 3)) < .001


def test_a_ticket_found_on_other_images_is_said_so(tmp_path, ticket, capsys):
    train(tmp_path, '--mask', ticket, '--steps', 1, '--data-seed', 1)
    assert 'was found on other images' in capsys.readouterr().out


# ---- refusals

def test_files_that_are_something_else_and_tickets_that_do_not_fit_are_refused(tmp_path, run, ticket, capsys):
    torch.save({**files.load(ticket), 'model': 'biggan'}, tmp_path / 'b.pt')
    all_refused(capsys, lambda flags: parsed('sngan', *flags), [
        (['--mask', run / 'last.pt'], 'is a last.pt'), (['--init-from', ticket], 'is a ticket'),
        (['--mask', tmp_path / 'b.pt'], 'train_biggan.py'),
        (['--small-dense', tmp_path / 'b.pt'], '--ch-g 8'),
        (['--mask', ticket, '--ch-g', '16'], ['l1.weight', '(32, 128)', '(64, 128)', 'G']),
        (['--mask', ticket, '--ch-d', '16'], ['block1', 'D']),
        (['--mask', ticket, '--res', '24'], 'l1.weight')])
    refused(capsys, lambda: generate.main(generate.get_args([ticket])), 'is a ticket')


def test_too_few_images_to_score_and_an_out_inside_the_data_are_refused(tmp_path, capsys):
    pictures(tmp_path / 'photos', 3)
    flags = ['--data', tmp_path / 'photos', '--frac', 1., '--steps', 1]
    all_refused(capsys, lambda more: train(*more, *flags), [
        ([tmp_path / 'run', *SCORE], '3 reference images'), ([tmp_path / 'photos/run'], 'lies in --data')])
    assert sorted(os.listdir(tmp_path / 'photos')) == ['0.png', '1.png', '2.png']
    assert not os.path.exists(tmp_path / 'run')


def test_ticket_finding_can_check_the_data(tmp_path, capsys):
    find(tmp_path / 'f', '--check-data')
    assert '20 of 100 training images' in capsys.readouterr().out and not os.path.exists(tmp_path / 'f')
    find(tmp_path / 'f', '--check-data', '--aug', 'diffaug')
    assert os.listdir(tmp_path / 'f') == ['augmented.png']
