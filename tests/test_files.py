"""files.py: whole or not at all, every flipped bit detected, nothing that is not finite, one process per folder."""
import json
import os
import signal
import zipfile

import numpy as np
import pytest
import torch
from helpers import equal, process, wait_for

import files

PAIR = {'G': {'w': torch.ones(2)}, 'D': {}}


def content(path):
    with open(path, 'rb') as f:
        return f.read()


# ---- writing

def test_a_file_is_replaced_whole_or_not_at_all_and_the_error_names_it(tmp_path):
    path = tmp_path / 'x.json'
    files.write_json(path, {'a': 1})

    def broken(tmp):
        with open(tmp, 'w') as f:
            f.write('half')
        raise OSError(28, 'No space left on device')
    with pytest.raises(OSError) as e:
        files.write(path, broken)
    assert (e.value.errno, e.value.filename) == (28, str(path))
    assert path.read_text() == '{\n "a": 1\n}' and [*tmp_path.iterdir()] == [path]


def test_the_content_reaches_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    seen = []
    for name in ('fsync', 'replace'):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words, name=name, plain=plain: seen.append(name) or plain(*words))
    files.save(tmp_path / 'x.pt', {'w': torch.ones(3)})
    assert seen == ['fsync', 'replace', 'fsync']


def test_a_full_disk_is_an_error_of_the_disk_and_not_of_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'open', lambda path, mode: open('/dev/full', mode), raising=False)
    with pytest.raises(OSError, match='No space left on device'):
        files.save(tmp_path / 'x.pt', {'w': torch.ones(1000, 1000)})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('links', [True, False])
def test_a_file_that_is_kept_outlives_its_successor(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, 'link', lambda a, b: (_ for _ in ()).throw(PermissionError()))
    for step in range(4):
        older = tmp_path / 'last-1' if step else None
        files.save(tmp_path / 'last', {'step': step}, older)
    assert [files.load(tmp_path / name)['step'] for name in ('last', 'last-1')] == [3, 2]

    with pytest.raises(files.NotFinite):
        files.save(tmp_path / 'last', {'w': torch.tensor(float('nan'))}, tmp_path / 'last-1')
    assert [files.load(tmp_path / name)['step'] for name in ('last', 'last-1')] == [3, 2]


def test_what_is_not_finite_is_never_saved_and_the_old_file_stays(tmp_path):
    path = tmp_path / 'x.pt'
    files.save(path, {'step': 1})
    for value in (float('nan'), float('inf'), -float('inf')):
        for where in ('G', 'D'):
            nets = {'G': {'w': torch.zeros(3)}, 'D': {'w': torch.zeros(3)}}
            nets[where]['w'][1] = value
            with pytest.raises(files.NotFinite, match=f'init/{where}/w'):
                files.save(path, {'init': nets, 'others': [torch.arange(3), 'text', None]})
    assert files.load(path) == {'step': 1}


# ---- reading

def test_every_flipped_bit_of_a_checkpoint_is_detected_or_changes_nothing(tmp_path):
    saved = {'step': 3, 'G': {'w': torch.randn(40), 'b': torch.zeros(2, dtype=torch.bool)}, 'args': {'a': 'b'}}
    files.save(tmp_path / 'x.pt', saved)
    good = content(tmp_path / 'x.pt')
    with zipfile.ZipFile(tmp_path / 'x.pt') as f:
        directory = 8 * f.start_dir                            # the bits of the names, sizes and attributes
    places = {*np.random.default_rng(0).integers(directory, size=400), *range(directory, 8 * len(good), 3)}
    detected = 0
    for place in sorted(places):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << int(place % 8)
        (tmp_path / 'x.pt').write_bytes(bad)
        try:
            assert equal(files.load(tmp_path / 'x.pt'), saved), place
        except files.Damaged as e:
            detected += 1
            assert str(e).startswith(str(tmp_path / 'x.pt')) and '\n' not in str(e)
    assert detected > .3 * len(places)                         # the others are padding


def test_files_that_are_torn_or_something_else_are_damaged(tmp_path):
    files.save(tmp_path / 'good.pt', {'step': 3, 'G': {'w': torch.zeros(99)}})
    good = content(tmp_path / 'good.pt')
    for bad in (b'', b'hello', bytes(9999), good[:-1], good[:len(good) // 2], good[50:]):
        (tmp_path / 'x.pt').write_bytes(bad)
        with pytest.raises(files.Damaged, match='x.pt'):
            files.load(tmp_path / 'x.pt')


@pytest.mark.parametrize('key, values', {
    'step': [-3, 1.5, None, True, 'x', [1]], 'round': [-1, '1'], 'model': [3, None], 'args': [[], 3],
    'G': [3, [1], {'w': 3}], 'E': [None, {'w': [1.]}], 'opt': [[]], 'state': [-3],
    'init': [{}, {'G': {}}, {'G': {}, 'D': 3}, [1]], 'mask': [-3, {'G': {'w': 1}, 'D': {}}], 'masks': [[1]],
    'w': [torch.tensor([1., float('nan')]), [{'x': torch.tensor(float('inf'))}]]}.items())
def test_a_part_of_another_form_is_damage(tmp_path, key, values):
    torch.save({'step': 1, 'init': PAIR, 'G': {}}, tmp_path / 'x.pt')
    files.load(tmp_path / 'x.pt')
    for value in values:
        torch.save({'step': 1, 'init': PAIR, 'G': {}, key: value}, tmp_path / 'x.pt')
        with pytest.raises(files.Damaged, match=f'x.pt is damaged .*{key}'):
            files.load(tmp_path / 'x.pt')


def test_nothing_in_a_file_is_executed(tmp_path):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)
    torch.save({'step': 1, 'x': Program()}, tmp_path / 'x.pt')
    with pytest.raises(files.Damaged, match='more than tensors'):
        files.load(tmp_path / 'x.pt')
    assert not os.path.exists(tmp_path / 'made')


def test_json_is_of_the_form_that_is_asked_for_or_damaged(tmp_path):
    path = tmp_path / 'x.json'
    path.write_text('{"a": {"b": 1}, "c": 2}')
    assert files.read_json(path, a=dict, c=int) == {'a': {'b': 1}, 'c': 2}
    for bad in (b'', b'{', b'{"a": {},', b'\xff\xfe{', bytes(range(256)), b'[' * 100000, b'[]', b'null', b'3',
                b'"x"', b'{}', b'{"a": null}', b'{"a": [1]}'):
        path.write_bytes(bad)
        with pytest.raises(files.Damaged, match='x.json is damaged'):
            files.read_json(path, a=dict)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / 'none.json')


def test_a_torn_last_line_is_no_record_and_any_other_line_is_damage(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_text('{"step": 1}\n{"step": 2, "x": NaN}\n{"st')
    assert [record['step'] for record in files.read_jsonl(path)] == [1, 2]
    assert files.read_jsonl(tmp_path / 'none.jsonl') == []
    for bad in ('hello', '[1, 2]', '{"a": 1}', '{"step": "1"}', '{"step": null}', '{"step": NaN}', '{"step": -1}',
                '{"step', '[' * 100000, '\0' * 9, ''):
        path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
        with pytest.raises(files.Damaged, match='x.jsonl is damaged in line 2'):
            files.read_jsonl(path)
    for bad in ('{"step": 1}\n'.encode('utf-16'), b'[' * 100000, b'hello', b'PK\3\4' + bytes(99)):
        path.write_bytes(bad)
        with pytest.raises(files.Damaged, match='line 1'):
            files.read_jsonl(path)
    path.write_bytes(b'{"step": 1}\n' + bytes(4096))           # as a power cut leaves it
    assert files.read_jsonl(path) == [{'step': 1}]


# ---- one process per folder

HOLDER = ("import files, sys, time; files.hold(sys.argv[1]); open(sys.argv[2], 'w').close(); time.sleep(60)")


def test_a_folder_is_held_until_its_process_ends_however_it_ends(tmp_path):
    os.symlink('run', tmp_path / 'link')
    p = process('-c', HOLDER, tmp_path / 'run', tmp_path / 'ready')
    wait_for(tmp_path / 'ready', p)
    for other_name in ('run', 'run/', '../x/run', 'link'):
        (tmp_path.parent / 'x').unlink(missing_ok=True)
        os.symlink(tmp_path, tmp_path.parent / 'x')
        with pytest.raises(files.Taken, match=f'process {p.pid} on '):
            files.hold(f'{tmp_path}/{other_name}')
    (tmp_path / 'run/x.pt.tmp').write_text('half')             # of a write that the kill cuts off
    p.send_signal(signal.SIGKILL)
    p.communicate()
    files.hold(f'{tmp_path}/run')
    files.hold(f'{tmp_path}/link')                             # this process has it already
    assert str(os.getpid()) in (tmp_path / 'run/.lock').read_text()
    assert not os.path.exists(tmp_path / 'run/x.pt.tmp')
    files.free(f'{tmp_path}/run')
    files.free(f'{tmp_path}/run')
    assert os.path.realpath(tmp_path / 'run') not in files.HELD


def test_json_lines_are_appended(tmp_path):
    for step in range(3):
        files.append_jsonl(tmp_path / 'x.jsonl', {'step': step})
    assert files.read_jsonl(tmp_path / 'x.jsonl') == [{'step': 0}, {'step': 1}, {'step': 2}]
    files.write_jsonl(tmp_path / 'x.jsonl', [{'step': 7}])
    assert json.loads((tmp_path / 'x.jsonl').read_text()) == {'step': 7}
