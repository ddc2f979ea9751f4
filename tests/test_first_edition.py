"""Runs of the first edition live: their names, flags, networks, checkpoints and tickets are today's, too.

tests/first_edition/ holds what the first edition wrote with the commands in its args.json files:
    sngan-...-82cf708e      a finished run with ADA, LeCam and AdvAug, without its pictures;
                            arithmetic.json tells whether layers compute the same bits here
    find-...                a ticket and the flags it was found with
    others                  args.json alone, and names and shapes of the networks' tensors"""
import json
import os
import shlex
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, equal, pruned_weights_are_zero, refused, same_checkpoints, script

import files
import find_ticket
import loop
import train_sngan
import trainer

OLD = os.path.join(ROOT, 'tests/first_edition')
RUN = 'sngan-emoji-faces-1.0-82cf708e'
FINDING = 'find-sngan-emoji-faces-1.0-2922369a'
RUNS = sorted(name for name in os.listdir(OLD) if not name.startswith('find-'))
FACTS = {'model', 'data_fingerprint', 'mask_hash', 'init_hash'}            # of an identity, beside the flags


def read(name, file='args.json'):
    with open(f'{OLD}/{name}/{file}') as f:
        return json.load(f)


def typed(name):
    """The flags of an old command, as they were typed."""
    return shlex.split(read(name)['command'])[2:]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the old run where it would lie without --out: runs/NAME of the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(f'{OLD}/{RUN}', tmp_path / 'runs' / RUN)


def resume(*more):
    train_sngan.main(train_sngan.get_args([*typed(RUN), *more]))


@pytest.mark.parametrize('name', RUNS)
def test_an_old_command_has_the_identity_and_the_directory_that_it_had(name):
    old = read(name)
    args = script(old['identity']['model']).get_args(typed(name))
    facts = {key: value for key, value in old['identity'].items() if key in FACTS}
    assert json.loads(json.dumps(loop.run_identity(args, **facts))) == old['identity']
    assert name.endswith(files.digest(loop.run_identity(args, **facts))[:8])
    assert {**vars(args), **old['args']} == vars(args)         # no flag is gone or has another value


def test_an_old_finding_has_the_identity_and_the_directory_that_it_had():
    args = find_ticket.get_args(typed(FINDING))
    assert args.out == f'runs/{FINDING}' and args.identity == read(FINDING)['identity']


@pytest.mark.parametrize('name', RUNS)
def test_every_flag_is_of_the_first_edition_or_registered(name):
    """A new flag belongs into loop.YOUNGER_FLAGS with its default, or into loop.MAY_CHANGE."""
    old = read(name)['identity']
    flags = {*vars(script(old['model']).get_args(typed(name)))} - {*loop.YOUNGER_FLAGS}
    assert flags == {*old} - FACTS | loop.MAY_CHANGE | loop.COMPARED_BY_CONTENT
    assert not {*loop.YOUNGER_FLAGS} & {*old}


@pytest.mark.parametrize('name', [name for name in RUNS if os.path.exists(f'{OLD}/{name}/shapes.json')])
def test_networks_have_the_names_and_shapes_that_they_had(name):
    recipe = script(read(name)['identity']['model'])
    for part, net in zip('GD', trainer.without_weights(recipe.build, recipe.get_args(typed(name)))):
        shapes = {key: [*value.shape] for key, value in net.state_dict().items()}
        assert shapes == read(name, 'shapes.json')[part]


def arithmetic():
    """A hash of a few layers' outputs and gradients: equal where two machines compute the same bits."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, 16, 16, generator=rng).to(memory_format=torch.channels_last).requires_grad_(True)
    w = torch.randn(4, 4, 3, 3, generator=rng).to(memory_format=torch.channels_last).requires_grad_(True)
    h = F.conv_transpose2d(F.relu(F.conv2d(x, w, padding=1)), w, stride=2, padding=1)
    h = F.batch_norm(h, None, None, training=True).flatten(1)
    v = torch.randn(h.shape[1], 8, generator=rng).requires_grad_(True)
    value = torch.tanh(h @ v).square().mean()
    return files.digest(dict(enumerate([value.detach(), *torch.autograd.grad(value, (x, w, v))])))


def test_an_old_run_resumes_to_what_a_new_one_gives(copied, tmp_path):
    """Bit for bit where layers compute the bits that they did for the old run, within rounding elsewhere."""
    resume('--steps', '3')
    resume('--steps', '3', '--out', str(tmp_path / 'new'))
    resumed, fresh = files.load(copied / 'last.pt'), files.load(tmp_path / 'new/last.pt')
    assert os.listdir(tmp_path / 'runs') == [RUN] and resumed['step'] == 3 and resumed['done']
    assert [line['step'] for line in files.read_jsonl(copied / 'log.jsonl')] == [1, 2, 3]
    if arithmetic() == read(RUN, 'arithmetic.json'):
        same_checkpoints(copied, tmp_path / 'new')
    for name in 'GDE':
        for key, value in fresh[name].items():
            assert torch.allclose(resumed[name][key].float(), value.float(), atol=2e-3), (name, key)
    assert resumed['state']['ada']['p'] == pytest.approx(fresh['state']['ada']['p'])
    assert resumed['state']['ada']['p'] > 0 and resumed['state']['lecam']['anchors'].any()


def test_an_old_run_is_refused_with_other_flags(copied, capsys):
    before = (copied / 'last.pt').read_bytes()
    refused(capsys, lambda: resume('--ada-kimg', '1', '--out', str(copied)), '--ada-kimg was 0.05, is 1.0')
    assert (copied / 'last.pt').read_bytes() == before


def test_an_old_ticket_trains(tmp_path):
    path = f'{OLD}/{FINDING}/ticket.pt'
    args = train_sngan.get_args([*typed(RUN), '--mask', path, '--steps', '1', '--out', str(tmp_path)])
    train_sngan.main(args)
    saved, masks = files.load(tmp_path / 'last.pt'), files.load(path)['mask']
    pruned_weights_are_zero(saved, masks)
    assert equal(saved['masks'], masks)


def test_a_younger_flag_counts_only_where_it_is_not_at_its_default(copied, capsys, monkeypatch):
    """As a new flag --sparkle 0 would be added: to the parser, and to loop.YOUNGER_FLAGS."""
    plain = trainer.add_training_flags

    def add_flags(group, experiments):
        plain(group, experiments)
        experiments.add_argument('--sparkle', type=int, default=0, help='a flag of tomorrow')
    monkeypatch.setattr(trainer, 'add_training_flags', add_flags)
    monkeypatch.setitem(loop.YOUNGER_FLAGS, 'sparkle', 0)
    resume('--steps', '3')
    assert os.listdir('runs') == [RUN] and files.load(copied / 'last.pt')['step'] == 3
    changed = ['--steps', '4', '--sparkle', '1']
    refused(capsys, lambda: resume(*changed, '--out', f'runs/{RUN}'), '--sparkle was 0, is 1')
    old, new = (loop.run_identity(train_sngan.get_args([*typed(RUN), *more])) for more in ([], changed))
    assert files.digest(old) != files.digest(new)

    monkeypatch.setattr(loop, 'YOUNGER_FLAGS', {})             # what happens where the entry is forgotten
    refused(capsys, lambda: resume('--out', f'runs/{RUN}'), '--sparkle')
