"""data/images.py: flags and refusals; every odd image a user has; subsets; the named sets on disk; conversions."""
import argparse
import contextlib
import ctypes
import errno
import functools
import gzip
import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import zipfile
import zlib
from collections import defaultdict

import numpy as np
import pytest
import torch
import torchvision
from fault_inputs import CENTRAL, DATASET_JSONS, class_folders, damaged_json, good_picture
from helpers import HOSTILE, fake_ghostscript, hostile_file, photos, refused, write_cifar
from PIL import Image

from data import images, make_emoji


def picture(size=(40, 40), colour=(200, 30, 60), mode='RGB'):
    return Image.new('RGB', size, colour).convert(mode)


@pytest.fixture(scope='module', autouse=True)
def bundled():
    """The PNGs of the bundled sets are decoded once for all tests."""
    read = functools.cache(images.read_emoji)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, 'read_emoji', lambda name, res: (*read(name, res)[:3], []))
        yield


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """A folder with every kind of file that has stopped somebody."""
    tmp_path = tmp_path_factory.mktemp('odd')
    picture().save(tmp_path / 'rgb.png')
    picture(mode='L').save(tmp_path / 'l.PNG')
    Image.new('LA', (40, 40), (100, 0)).save(tmp_path / 'la.png')
    picture(mode='P').save(tmp_path / 'p.png')
    Image.new('RGBA', (40, 40), (0, 0, 0, 0)).save(tmp_path / 'rgba.png')
    Image.fromarray(np.full((40, 40), 51400, np.uint16)).save(tmp_path / 'sixteen.png')
    picture(mode='CMYK').save(tmp_path / 'cmyk.jpg', quality=95)
    picture((418, 100)).save(tmp_path / 'wide.webp', lossless=True)
    turned = Image.new('RGB', (40, 20), (255, 255, 255))
    turned.paste((0, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6                                             # turn right to view: the black half comes to the top
    turned.save(tmp_path / 'turned.jpg', exif=exif, quality=95)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(whole, 'JPEG')
    (tmp_path / 'cut.jpg').write_bytes(whole.getvalue()[:2000])
    (tmp_path / '.hidden.png').write_bytes(b'no image')
    (tmp_path / 'phone.heic').write_bytes(b'no image either')
    (tmp_path / 'notes.txt').write_text('not an image')
    return tmp_path


def test_every_odd_image_is_converted_or_named(odd):
    d = images.load(str(odd), res=16)
    assert d.images.shape == (9, 3, 16, 16) and d.images.dtype == torch.uint8
    text = '\n'.join(d.report)
    assert 'cut.jpg' in text and 'phone.heic (HEIC: export' in text and '2 skipped' in text and 'hidden' not in text
    names = sorted(n for n in os.listdir(odd)
                   if not n.startswith('.') and n not in ('cut.jpg', 'phone.heic', 'notes.txt'))
    at = {n: d.images[i].float() for i, n in enumerate(names)}
    assert (at['la.png'] == 255).all() and (at['rgba.png'] == 255).all()          # transparent shows white
    assert (at['sixteen.png'] == 200).all()                                        # 51400 / 257
    for name in ('rgb.png', 'p.png', 'wide.webp', 'cmyk.jpg'):
        assert (at[name].mean((1, 2)) - torch.tensor([200., 30., 60.])).abs().max() < 6, name
    assert at['turned.jpg'][:, :6].mean() < 40 and at['turned.jpg'][:, -6:].mean() > 215
    for word in ('1 x LA with alpha, over white', '1 x RGBA with alpha, over white', 'I;16', 'CMYK',
                 'turned by EXIF', 'not square'):
        assert word in text, word
    assert text.count('over white') == 2                       # of no image without alpha


def test_strict_stops_at_unreadable_images(odd, capsys):
    with pytest.raises(SystemExit) as e:
        images.load(str(odd), res=16, strict=True)
    assert e.value.code == 2 and 'cut.jpg' in capsys.readouterr().err


def test_a_dark_16_bit_image_an_encrypted_zip_and_a_link_to_itself(tmp_path):
    os.makedirs(tmp_path / 'a')
    Image.fromarray(np.full((9, 9), 200, np.uint16)).save(tmp_path / 'a' / 'dark.png')
    os.symlink(tmp_path / 'a', tmp_path / 'a' / 'again')
    d = images.load(str(tmp_path / 'a'), res=8)
    assert len(d.images) == 1 and (d.images == 1).all()          # 200 / 257, not 200
    with zipfile.ZipFile(tmp_path / 'z.zip', 'w') as z:
        for name in ('open.png', 'secret.png'):
            z.write(tmp_path / 'a' / 'dark.png', name)
    raw = bytearray((tmp_path / 'z.zip').read_bytes())
    for sign, at in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):    # set the flag 'encrypted' of the second member
        raw[raw.rindex(sign) + at] |= 1
    (tmp_path / 'z.zip').write_bytes(raw)
    d = images.load(str(tmp_path / 'z.zip'), res=8)
    assert len(d.images) == 1 and 'secret.png' in '\n'.join(d.report)


def test_pad_keeps_the_whole_picture_and_centre_fills_the_frame(tmp_path):
    picture((60, 20), (0, 0, 0)).save(tmp_path / 'a.png')
    pad, centre = (images.load(str(tmp_path), res=12, crop=c).images[0] for c in ('pad', 'centre'))
    assert (pad[:, 0] == 255).all() and (pad[:, 6] == 0).all() and (centre == 0).all()


def test_a_zip_is_the_folder_and_subfolders_are_classes(tmp_path):
    for kind, shade in (('cat', 10), ('dog', 200)):
        os.makedirs(tmp_path / 'set' / kind / 'deep')
        for i in range(3):
            picture(colour=(shade + i,) * 3).save(tmp_path / 'set' / kind / ('deep' if i else '.') / f'{i}.png')
    with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as z:
        for d, _, files in os.walk(tmp_path / 'set'):
            for f in files:
                z.write(os.path.join(d, f), os.path.relpath(os.path.join(d, f), tmp_path))
        z.writestr('__MACOSX/set/cat/._0.png', b'rubbish')
    folder, archive = images.load(str(tmp_path / 'set'), res=8), images.load(str(tmp_path / 'set.zip'), res=8)
    assert folder.classes == archive.classes == ['cat', 'dog'] and folder.labels.tolist() == [0] * 3 + [1] * 3
    assert torch.equal(folder.images, archive.images) and folder.fingerprint == archive.fingerprint


def test_flags_of_experiments_stand_in_a_group_of_their_own():
    p = argparse.ArgumentParser()
    everyday, experiments = p.add_argument_group('data'), p.add_argument_group('experiments')
    assert images.add_flags(everyday, experiments) is everyday
    names = {group.title: [flag for action in group._group_actions for flag in action.option_strings]
             for group in (everyday, experiments)}
    assert names == {'data': ['--data', '--root', '--frac', '--res', '--mirror', '--no-mirror', '--check-data'],
                     'experiments': ['--data-seed', '--subset', '--holdout', '--ref', '--crop', '--strict']}
    alone = images.add_flags(argparse.ArgumentParser())
    argv = '--data emoji --frac 10 --no-mirror --crop pad --holdout 3'.split()
    assert vars(p.parse_args(argv)) == vars(alone.parse_args(argv))


def labelled(n=300, classes=3):
    x = torch.arange(n).view(n, 1, 1, 1).expand(n, 3, 8, 8).to(torch.uint8)
    return images.Split(x, [i % classes if i % 10 else 0 for i in range(n)])


def test_subsets_are_nested_stratified_and_seeded():
    split = labelled()
    share = np.bincount(split.labels) / 300
    last = set()
    for count in (3, 30, 60, 150, 300):
        rows, left = images.choose_rows(split, count, 0, 'random', None)
        assert len(rows) == count and len(rows) + len(left) == 300 and not set(rows) & set(left)
        assert last <= set(rows)                                # 10 % lies inside 20 %
        assert np.abs(np.bincount(split.labels[rows], minlength=3) - count * share).max() <= 1.5
        last = set(rows)
    first, other = (images.choose_rows(split, 30, seed, 'random', None)[0] for seed in (0, 1))
    assert set(first) != set(other)
    assert images.choose_rows(split, 30, 5, 'first', None)[0].tolist() == list(range(30))


def test_groups_are_never_cut_apart_and_holdout_is_never_trained_on():
    split = labelled()
    split.groups = np.arange(300) // 7
    for count in (20, 100, 299):
        rows, left = images.choose_rows(split, count, 0, 'random', None)
        assert 0 < len(rows) <= count and not set(split.groups[rows]) & set(split.groups[left])
    rows, held = images.choose_rows(split, 300, 0, 'random', 50)
    assert 40 <= len(held) <= 56 and len(rows) + len(held) == 300
    assert not set(split.groups[rows]) & set(split.groups[held])
    small, same = images.choose_rows(split, 60, 0, 'random', 50)
    assert set(same) == set(held) and set(small) < set(rows)


def test_emoji_keep_a_glyphs_variants_together():
    d = images.load('emoji', frac=.3)
    base = np.array(images.emoji_info('emoji')['sets']['emoji']['base'])
    inside = np.zeros(len(base), bool)
    inside[d.index] = True
    assert not set(base[inside]) & set(base[~inside]) and abs(len(d.index) / len(base) - .3) < .02
    assert d.images.shape[1:] == (3, 32, 32) and len(d.classes) == 9 and len(d.holdout) == len(base) - len(d.index)
    assert (d.images[:, :, 0, 0] == 255).float().mean() > .9                       # white background


def test_one_tone_per_glyph_for_conditional_use():
    d, plain = images.load('emoji'), images.load('emoji', plain=True)
    assert 3600 < d.total < 3700 and plain.total < .55 * d.total
    people = d.classes.index('People & Body')
    assert (plain.labels == people).float().mean() < .25 < (d.labels == people).float().mean()


def test_emoji_faces_are_a_hundred_shots_with_others_held_out():
    d = images.load('emoji-faces', res=128)
    assert d.images.shape == (100, 3, 128, 128) and len(d.holdout) >= 15
    assert d.ref_name == 'emoji-faces-train' and len(d.ref) == 100
    small = images.load('emoji-faces', res=32)
    difference = small.images.float().mean((2, 3)) - d.images.float().mean((2, 3))
    assert difference.abs().max() < 1.5                          # an average, not a pick of pixels


def test_fashion_mnist_comes_from_its_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (('train', 20), ('t10k', 6)):
        x, y = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)
        with gzip.open(tmp_path / f'{name}-images-idx3-ubyte.gz', 'wb') as f:
            f.write(struct.pack('>4i', 0x803, n, 28, 28) + x.tobytes())
        (tmp_path / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 0x801, n) + y.tobytes())
        if name == 'train':
            first, labels = x, y
    d = images.load('fashion-mnist', root=str(tmp_path))
    assert d.ref_name == 'fashion-mnist-test' and len(d.ref) == 6 and len(d.holdout) == 6
    assert d.images.shape == (20, 3, 32, 32) and not d.images[:, :, :2].any()
    assert (d.images[:, 0, 2:30, 2:30].numpy() == first).all() and (d.images[:, 1] == d.images[:, 0]).all()
    assert d.labels.tolist() == labels.tolist()


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_comes_from_its_python_batches(name, tmp_path, monkeypatch):
    kind = write_cifar(name, tmp_path, monkeypatch)
    d = images.load(name, root=str(tmp_path), frac=1.)
    assert len(d.images) == 3 * len(kind.train_list) and len(d.ref) == len(d.holdout) == 3
    assert d.classes == ['a', 'b', 'c'] and d.labels.tolist() == [0, 1, 2] * len(kind.train_list)
    assert (d.images[0].numpy() == np.arange(3072).reshape(3, 32, 32).astype(np.uint8)).all()


def test_a_cifar_file_of_another_checksum_is_named_and_not_called_missing(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        kind = write_cifar('cifar10', tmp_path, patch)         # its sums are not those of the real files

    def no_connection(self):
        raise OSError('no connection')
    monkeypatch.setattr(kind, 'download', no_connection)
    refused(capsys, lambda: images.load('cifar10', root=str(tmp_path)), 'data_batch_1', 'checksum')
    for file in (tmp_path / kind.base_folder).iterdir():
        file.unlink()
    refused(capsys, lambda: images.load('cifar10', root=str(tmp_path)), 'cannot be fetched (no connection)')


def test_a_failed_connection_is_said_without_brackets(tmp_path, monkeypatch, capsys):
    def no_connection(self):
        raise urllib.error.URLError(OSError(-2, 'Name or service not known'))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'download', no_connection)
    refused(capsys, lambda: images.load('cifar10', root=str(tmp_path)),
            'cannot be fetched (no connection: Name or service not known): put cifar-10-python.tar.gz from')


def test_batches_are_in_range_flipped_where_asked_and_come_back_as_they_were():
    from metrics import to_uint8
    x = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    y = images.batch(x, [1, 0, 1], [False, True, False])
    assert y.min() == -1 and y.max() == 1 and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_uint8(y[0]), x[0]) and torch.equal(to_uint8(y[1]), x[0].flip(2))


def test_a_grid_is_read_from_left_to_right(tmp_path):
    x = torch.arange(5).to(torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    images.save_grid(tmp_path / 'g.png', x, 3)
    sheet = np.asarray(Image.open(tmp_path / 'g.png'))[::2, ::2, 0]
    assert sheet.tolist() == [[0, 1, 2], [3, 4, 255]]


def noise(path, size=(64, 64), mode='RGB', seed=0, kind='JPEG'):
    """A file of random blocks, which JPEG and a resize both change."""
    x = np.random.default_rng(seed).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(x).resize(size, Image.NEAREST).convert(mode).save(path, kind)


def write_tiny(root, n=3):
    """Tiny ImageNet as its archive and as it unpacks: two classes, n images each in train, 4 in val."""
    top, wnids = root / 'tiny-imagenet-200', ['n02', 'n01']
    for k, wnid in enumerate(wnids):
        for i in range(n):
            noise(top / 'train' / wnid / 'images' / f'{wnid}_{i}.JPEG', seed=10 * k + i, mode='L' if i == 1 else 'RGB')
        (top / 'train' / wnid / f'{wnid}_boxes.txt').write_text(f'{wnid}_0.JPEG\t0\t0\t9\t9\n')
    for i in range(4):
        noise(top / 'val' / 'images' / f'val_{i}.JPEG', seed=50 + i)
        noise(top / 'test' / 'images' / f'test_{i}.JPEG', seed=70 + i)
    (top / 'wnids.txt').write_text('\n'.join(wnids) + '\n')
    (top / 'words.txt').write_text('n01\ttench\nn02\tgoldfish\n')
    (top / 'val' / 'val_annotations.txt').write_text(
        ''.join(f'val_{i}.JPEG\t{wnids[i % 3 == 0]}\t0\t0\t62\t62\n' for i in range(4)))
    with zipfile.ZipFile(root / 'tiny-imagenet-200.zip', 'w') as z:
        for d, _, files in os.walk(top):
            for f in files:
                z.write(os.path.join(d, f), os.path.relpath(os.path.join(d, f), root))
    return top


def contents(folder):
    return {f: (folder / f).read_bytes() for f in sorted(os.listdir(folder))}


def decoded(path, mode='RGB'):
    return torch.from_numpy(np.asarray(Image.open(path).convert(mode)).transpose(2, 0, 1).copy())


def test_tiny_imagenet_comes_from_its_zip_or_its_folder(tmp_path, monkeypatch):
    top = write_tiny(tmp_path)
    assert images.names('tiny-imagenet', str(tmp_path), 64) == ['n01', 'n02'] and not list(tmp_path.glob('*-64'))
    monkeypatch.setenv('RANK', '1')                              # which leaves the conversion to rank 0
    with pytest.raises(SystemExit):
        images.load('tiny-imagenet', str(tmp_path), res=64)
    monkeypatch.setenv('RANK', '0')
    d = images.load('tiny-imagenet', str(tmp_path), res=64)
    assert d.classes == ['n01', 'n02'] == images.names('tiny-imagenet', str(tmp_path), 64)
    assert d.labels.tolist() == [0] * 3 + [1] * 3 and d.holdout_labels.tolist() == [0, 1, 1, 0]
    assert d.ref_name == 'tiny-imagenet-test' and len(d.ref) == len(d.holdout) == 4 and d.total == 6
    for i, name in enumerate(f'{wnid}_{i}' for wnid in ('n01', 'n02') for i in range(3)):
        assert torch.equal(d.images[i], decoded(top / 'train' / name[:3] / 'images' / f'{name}.JPEG')), name
    assert torch.equal(d.ref[3], decoded(top / 'val' / 'images' / 'val_3.JPEG'))
    zipped = contents(tmp_path / 'tiny-imagenet-64')
    os.remove(tmp_path / 'tiny-imagenet-200.zip')
    images.convert('tiny-imagenet', str(tmp_path), 64, out=str(tmp_path / 'b'))
    assert contents(tmp_path / 'b') == zipped and set(zipped) == {
        'lock', 'set.json', *(f'{split}{end}.npy' for split in ('train', 'val') for end in ('', '-labels', '-sums'))}
    small = images.load('tiny-imagenet', str(tmp_path), res=32)
    one = Image.open(top / 'train' / 'n01' / 'images' / 'n01_0.JPEG').resize((32, 32), Image.BILINEAR)
    assert (small.images[0].numpy() == np.asarray(one).transpose(2, 0, 1)).all()


def write_imagenet(root):
    for k, wnid in enumerate(('n03', 'n01', 'n02')):
        for i, (size, mode) in enumerate((((50, 37), 'RGB'), ((41, 64), 'L'), ((70, 33), 'CMYK'), ((31, 90), 'RGB'))):
            noise(root / 'train' / wnid / f'{wnid}_{i}.JPEG', size, mode, 10 * k + i)
    for k, wnid in enumerate(('n02', 'n01')):
        noise(root / 'val' / wnid / f'ILSVRC2012_val_0000000{k}.JPEG', seed=90 + k)


def test_imagenet_is_cropped_and_resized_as_by_torchvision(tmp_path):
    from torchvision.transforms import functional as T
    write_imagenet(tmp_path / 'imagenet')
    images.convert('imagenet', str(tmp_path), 32)
    d = images.load('imagenet', str(tmp_path), res=32)
    assert d.classes == ['n01', 'n02', 'n03'] and d.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert d.holdout_labels.tolist() == [0, 1] and d.ref_name == 'imagenet-test'
    for i, name in enumerate(f'{wnid}/{wnid}_{i}' for wnid in d.classes for i in range(4)):
        im = Image.open(tmp_path / 'imagenet' / 'train' / f'{name}.JPEG').convert('RGB')
        im = T.resize(T.center_crop(im, min(im.size)), 32)
        assert (d.images[i].numpy() == np.asarray(im).transpose(2, 0, 1)).all(), name
    out = images.convert('imagenet', str(tmp_path / 'imagenet'), 32)                # a root that is imagenet itself
    names = ['set.json', 'train.npy', 'train-labels.npy', 'val.npy', 'val-labels.npy']
    assert all((tmp_path / 'imagenet-32' / n).read_bytes() == open(f'{out}/{n}', 'rb').read() for n in names)


def convert_in_a_fork(source, out, seconds, log):
    """A process that converts, `seconds` an image, whose stderr is the file `log`."""
    def run():
        decode = images.decode

        def slow(*args):
            time.sleep(seconds)
            return decode(*args)
        images.decode = slow
        with open(log, 'w') as sys.stderr:
            images.main([str(source), '--res', '16', '--out', str(out), '--workers', '2'])
    job = multiprocessing.get_context('fork').Process(target=run)
    job.start()
    return job


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_killed_conversion_continues_to_the_same_bytes(tmp_path, monkeypatch, capsys):
    source = tmp_path / 'photos'
    for i in range(150):
        noise(source / 'ab'[i % 2] / f'{i} (1).png', (20, 17), seed=i, kind='PNG')
    for i in (3, 40, 41, 149):
        (source / 'ab'[i % 2] / f'{i} (1).png').write_bytes(b'text')
    monkeypatch.setattr(images, 'CHUNK', 16)
    images.convert(str(source), res=16, out=str(tmp_path / 'whole'))
    whole, out = contents(tmp_path / 'whole'), tmp_path / 'out'

    log = tmp_path / 'stderr'
    files = [0]
    for kill in range(2):
        job = convert_in_a_fork(source, out, .01, log)
        while (now := images.read_json(out / 'train.part.json').get('files', 0)) <= files[-1]:
            assert job.is_alive()
            time.sleep(.002)
        os.kill(job.pid, signal.SIGKILL)
        job.join()
        files.append(now)
        assert 0 < now < 150 and not (out / 'set.json').exists()
        if kill:
            with open(out / 'train.part', 'ab') as f:
                f.write(b'torn' * 99)
    with monkeypatch.context() as m:                             # killed once more, between the last row and set.json
        m.setattr(images, 'write_json', lambda path, x, write=images.write_json: (
            write(path, x) if 'part' in str(path) else interrupt()))
        with pytest.raises(KeyboardInterrupt):
            images.convert(str(source), res=16, out=str(out))
    assert (out / 'train.npy').exists() and not (out / 'set.json').exists()
    job = convert_in_a_fork(source, out, 0, log)                 # as its own command, with nothing left but the names
    job.join()
    assert job.exitcode == 0 and log.read_text() == ''
    assert contents(out) == whole
    d = images.load(str(out), res=16)
    assert len(d.images) == 146 and d.labels.sum() == 72 and '3 (1).png' in d.report[0]


def test_a_finished_conversion_stays_and_a_changed_one_starts_over(tmp_path, monkeypatch):
    monkeypatch.setattr(images, 'CHUNK', 4)
    source, out = tmp_path / 'p', tmp_path / 'out'
    for i in range(10):
        noise(source / f'{i}.png', seed=i, kind='PNG')
    run = lambda **k: images.convert(str(source), res=16, out=str(out), **k)
    run()
    before = (out / 'train.npy').stat().st_ino, contents(out)
    run()
    assert before == ((out / 'train.npy').stat().st_ino, contents(out))
    (source / '5.png').write_bytes(b''), os.remove(source / '7.png')
    with pytest.raises(SystemExit):
        run(strict=True)                                         # stops in the second chunk, and is no set any more
    assert images.read_json(out / 'train.part.json')['files'] == 4 and not (out / 'set.json').exists()
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(images, 'decode', interrupt)
        run(crop='pad')
    assert not images.read_json(out / 'train.part.json').get('files')              # no record of rows that are gone
    noise(source / '55.png', kind='PNG')
    run()
    again = images.convert(str(source), res=16, out=str(tmp_path / 'again'))
    assert contents(out) == contents(tmp_path / 'again') and len(images.load(again, res=16).images) == 9
    run(crop='pad')
    assert contents(out) != contents(tmp_path / 'again')


def test_a_hundred_odd_files_are_named_and_skipped(tmp_path, capsys):
    noise(tmp_path / 'p' / 'good' / 'a.JPEG')
    whole = (tmp_path / 'p' / 'good' / 'a.JPEG').read_bytes()
    os.makedirs(tmp_path / 'p' / 'bad')
    rng, tiff = np.random.default_rng(0), b'II*\0\x08\0\0\0\xff\xff'
    for i in range(100):
        kind = ['cut.JPEG', 'none.JPEG', 'text.JPEG', 'phone.heic', 'rubbish.webp', 'ifd.tif', 'rubbish.gif'][i % 7]
        data = {'cut': whole[:len(whole) // (2 + i)], 'none': b'', 'text': b'not an image', 'phone': whole, 'ifd': tiff,
                'rubbish': b'GIF89a' + rng.bytes(40)}[kind.split('.')[0]]
        (tmp_path / 'p' / 'bad' / f'{i}{kind}').write_bytes(data)
    images.main([str(tmp_path / 'p'), '--res', '16', '--out', str(tmp_path / 'out'), '--workers', '2'])
    listed = images.read_json(tmp_path / 'out' / 'set.json')['splits']['train']['skipped']
    assert {line.split(' (')[0] for line in listed} == {f'bad/{f}' for f in os.listdir(tmp_path / 'p' / 'bad')}
    out = capsys.readouterr().out
    assert '1 images in train' in out and '100 skipped' in out and '0cut.JPEG (' in out
    assert images.load(str(tmp_path / 'out'), res=16).labels.tolist() == [1]
    with pytest.raises(SystemExit):
        images.main([str(tmp_path / 'p'), '--res', '16', '--out', str(tmp_path / 'o2'), '--strict'])
    error = capsys.readouterr().err
    assert '--strict: bad/' in error and not (tmp_path / 'o2' / 'set.json').exists()


def write_set(path, n, res, classes=2, sparse=False):
    """A converted set as convert leaves it, of random rows or of none at all; returns its folder."""
    os.makedirs(path)
    with open(path / 'train.npy', 'wb') as f:
        start = images.write_header(f, n, res)
        if sparse:
            f.truncate(start + n * 3 * res * res)
        else:
            f.write(np.random.default_rng(0).bytes(n * 3 * res * res))
    np.save(path / 'train-labels.npy', np.arange(n) % classes)
    entry = {'n': n, 'labels': 'train-labels.npy', 'digest': 'd', 'skipped': []}
    images.write_json(path / 'set.json', {'name': 'x', 'res': res, 'classes': [str(i) for i in range(classes)],
                                          'splits': {'train': entry}})
    return str(path)


def memory(pid='self', file=None):
    """Sums of /proc/PID/smaps in bytes, of one file's maps or of all."""
    total, inside = defaultdict(int), False
    with open(f'/proc/{pid}/smaps') as f:
        for line in f:
            if re.match('[0-9a-f]+-[0-9a-f]+ ', line):
                inside = file is None or line.rstrip().endswith(str(file))
            elif inside and line.endswith('kB\n'):
                total[line.split(':')[0]] += 1024 * int(line.split()[1])
    return total


def keep_no_pools():
    """Every large allocation of this process gets pages of its own, which go back when it is freed."""
    with contextlib.suppress(AttributeError):                    # of a C library other than glibc
        ctypes.CDLL(None).mallopt(-3, 2 ** 16)                   # M_MMAP_THRESHOLD


def read_all(path, res, ready, free, pipe):
    keep_no_pools()
    before = memory()['Anonymous']
    x = images.load(path, res=res).images
    orders = np.array_split(np.arange(len(x)), len(x) // 64)
    total = sum(int(b.sum(dtype=torch.int64)) for b in images.feed(x, orders))
    ready.wait()
    found = memory(file=f'{path}/train.npy')
    pipe.put((total, found['Pss'], found['Private_Dirty'], found['Anonymous'], memory()['Anonymous'] - before))
    free.wait()


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps'), reason='needs /proc')
def test_four_processes_hold_a_converted_set_once(tmp_path):
    n, size = 2500, 2500 * 3 * 64 * 64                           # 31 MB
    path, context = write_set(tmp_path / 's', n, 64), multiprocessing.get_context('fork')
    ready, free, pipe = context.Barrier(4), context.Barrier(4), context.Queue()
    jobs = [context.Process(target=read_all, args=(path, 64, ready, free, pipe)) for _ in range(4)]
    for job in jobs:
        job.start()
    found = [pipe.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    assert len({total for total, *_ in found}) == 1
    assert .9 * size < sum(pss for _, pss, *_ in found) < 1.2 * size                # not 4 of them
    assert all(dirty == copied == 0 and grown < size / 4 for _, _, dirty, copied, grown in found)


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps'), reason='needs /proc')
def test_a_large_set_is_not_read_to_be_loaded(tmp_path):
    n = 5 * 10 ** 9 // (3 * 128 ** 2)
    path = write_set(tmp_path / 's', n, 128, classes=1000, sparse=True)
    before, start = memory()['Rss'], time.process_time()
    d = images.load(path, res=128, frac=.001)
    assert len(d.images) == int(n * .001) and len(d.holdout) == n - len(d.images)
    assert next(images.feed(d.images, itertools.repeat([0, 5]))).shape == (2, 3, 128, 128)
    assert time.process_time() - start < 2 and memory()['Rss'] - before < 2 ** 28


def test_rows_are_the_rows_of_the_file(tmp_path):
    path = write_set(tmp_path / 's', 40, 8)
    d, whole = images.load(path, res=8, frac=20), torch.from_numpy(np.load(f'{path}/train.npy'))
    x = whole[d.index]
    assert d.images.shape == x.shape and len(d.images) == 20 and d.images.nbytes == x.nbytes
    mask = np.arange(20) % 3 == 0
    for rows in ([3, 0, -1], np.array([5, 5]), torch.tensor([1, 2]), torch.tensor([1]), slice(2, 9, 3), mask,
                 torch.from_numpy(mask), 4, []):
        assert torch.equal(d.images[rows], x[rows])
        assert isinstance(rows, int) or torch.equal(d.images.part(rows)[:], x[rows])
    assert torch.equal(d.images.part(slice(2, 18)).part([1, 3])[:], x[[3, 5]]) and d.images.to('cpu') is d.images
    assert torch.equal(images.batch(d.images, [1, 2], [True, False]), images.batch(x, [1, 2], [True, False]))
    assert torch.equal(images.batch(d.images), images.batch(x)) and d.images.to('meta').shape == x.shape


def test_fingerprints_follow_the_rows_and_not_the_path(tmp_path):
    import metrics
    path = write_set(tmp_path / 's', 40, 8)
    d, half = images.load(path, res=8), images.load(path, res=8, frac=.5)
    os.rename(path, tmp_path / 't')
    again = images.load(str(tmp_path / 't'), res=8)
    assert again.fingerprint == d.fingerprint != half.fingerprint
    assert metrics.fingerprint(again.images) == metrics.fingerprint(d.images) != metrics.fingerprint(half.images)
    assert d.images.part(half.index).fingerprint == half.images.fingerprint
    assert d.images.part(slice(4, 30)).part([3, 5]).fingerprint == d.images.part([7, 9]).fingerprint
    info = images.read_json(tmp_path / 't' / 'set.json')
    info['splits']['train']['digest'] = 'e'
    images.write_json(tmp_path / 't' / 'set.json', info)
    assert images.load(str(tmp_path / 't'), res=8).fingerprint != d.fingerprint


def test_the_statistics_of_rows_are_those_of_their_tensor(tmp_path):
    import metrics
    d = images.load(write_set(tmp_path / 's', 40, 8), res=8)
    net = lambda x: (x.flatten(1)[:, :5].float(), None)
    vars(net).update(dim=5, classes=0, device='cpu', protocol={}, name='net')
    parts = {'a': np.arange(0, 40, 2), 'b': np.arange(1, 40, 2)}
    lazy, whole = (metrics.references(x, net, parts, cache=str(tmp_path / 'c')) for x in (d.images, d.images[:]))
    for name in ('all', 'a', 'b'):
        assert torch.equal(lazy[name].mu, whole[name].mu) and torch.equal(lazy[name].sigma, whole[name].sigma)
    assert len(os.listdir(tmp_path / 'c')) == 4                  # two parts each, under names of their own


def test_feed_gives_the_same_bytes_either_way(tmp_path, monkeypatch):
    rows = images.load(write_set(tmp_path / 's', 40, 8), res=8, frac=30).images
    rng = np.random.default_rng(0)
    orders = [rng.integers(0, 30, n) for n in (4, 1, 7, 4)]
    expected = [rows[o] for o in orders]
    held = list(images.feed(rows[:], orders))
    threaded = list(images.feed(rows, (o.tolist() for o in orders), 'cpu'))
    monkeypatch.setattr(images, 'fits', lambda *a: True)
    moved = list(images.feed(rows, orders))
    for got in (held, threaded, moved):
        assert len(got) == 4 and all(torch.equal(a, b) for a, b in zip(got, expected))
    assert list(images.feed(rows, [])) == []


def test_feed_takes_what_fits_to_the_gpu(tmp_path, monkeypatch):
    rows, gpu = images.load(write_set(tmp_path / 's', 40, 8), res=8).images, torch.device('cuda')
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (2 * rows.nbytes + spare, 10 ** 12))
    for spare in (1, 0):
        assert images.fits(rows, gpu) == bool(spare) and images.fits(rows[:], gpu) == bool(spare) and not images.fits(
            rows, torch.device('cpu'))


def test_feed_reads_two_batches_ahead_and_ends_with_its_consumer(tmp_path):
    rows = images.load(write_set(tmp_path / 's', 40, 8), res=8).images
    taken, before = [], threading.active_count()
    stream = images.feed(rows, ([taken.append(i) or i % 40] for i in itertools.count()))
    assert torch.equal(next(stream), rows[[0]]) and torch.equal(next(stream), rows[[1]])
    assert len(taken) == 4 and threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
    for broken, error in (([[0], [99]], IndexError), (iter(lambda: [1 / 0], 0), ZeroDivisionError)):
        stream = images.feed(rows, broken)
        with pytest.raises(error):
            list(stream)
        assert threading.active_count() == before


def slow_permutation(labels, groups, seed):
    """Class after class: what subsets of earlier runs were drawn with."""
    rng = np.random.default_rng([seed, 1])
    ids, first = np.unique(groups, return_index=True)
    order = rng.permutation(len(ids))
    key = np.empty(len(ids))
    for c in np.unique(labels[first]):
        members = order[labels[first][order] == c]
        key[members] = (np.arange(len(members)) + .5) / len(members)
    return ids[order[np.argsort(key[order], kind='stable')]]


def slow_cut(train, count, seed, subset, holdout):
    groups, labels = train.groups, train.labels.numpy()
    order = np.unique(groups) if subset == 'first' else slow_permutation(labels, groups, seed)
    members = defaultdict(list)
    for row, g in enumerate(groups):
        members[g].append(row)
    total = np.cumsum([len(members[g]) for g in order])
    free = total[-1] - (holdout or 0)
    k = np.searchsorted(total, min(count, free), side='right')
    k = max(k, 1) if count and free >= total[0] else k
    k2 = np.searchsorted(total, free, side='right') if holdout else k
    return [sorted(row for g in ids for row in members[g]) for ids in (order[:k], order[k2:])]


def test_subsets_stay_what_they_were():
    rng, emoji = np.random.default_rng(0), images.read_emoji('emoji', 32)[0]
    splits = [labelled(), emoji, images.Split(torch.zeros(500, 1), np.sort(rng.integers(0, 40, 500))),
              images.Split(torch.zeros(500, 1), rng.integers(0, 40, 500), rng.permutation(500) // 3 * 7 - 50)]
    for split, seed, subset in itertools.product(splits, (0, 3), ('random', 'first')):
        n, labels = len(split.groups), split.labels.numpy()
        assert (images.stratified_permutation(labels, split.groups, seed) == slow_permutation(
            labels, split.groups, seed)).all()
        for count, holdout in ((0, None), (1, None), (n // 10, None), (n, None), (n // 3, 20), (n, n - 1)):
            new, old = (f(split, count, seed, subset, holdout) for f in (images.choose_rows, slow_cut))
            assert [rows.tolist() for rows in new] == old and all(rows.dtype.kind == 'i' for rows in new)


def test_subsets_of_a_quarter_of_imagenet_are_drawn_in_a_second():
    n = 1281167 // 4
    rows = images.Rows(np.empty((0, 3, 128, 128), np.uint8), np.arange(n), 'd')
    train = images.Split(rows, np.sort(np.random.default_rng(0).integers(0, 1000, n)))
    start = time.process_time()
    keep, left = images.choose_rows(train, n // 10, 0, 'random', None)
    chosen, held = train.part(keep), train.part(left)
    assert len(chosen.images) == n // 10 and len(held.images) == n - n // 10
    assert np.bincount(chosen.labels).min() > 20 and time.process_time() - start < 1.5


def test_names_are_as_many_as_classes(tmp_path, monkeypatch):
    root = str(tmp_path)
    for name in ('train', 't10k'):
        (tmp_path / f'{name}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 0x803, 1, 28, 28) + bytes(784))
        (tmp_path / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 0x801, 1) + bytes(1))
    for kind in ('cat/a', 'dog/b', 'eel/a'):
        noise(tmp_path / 'p' / 'set' / f'{kind}.png', kind='PNG')
    (tmp_path / 'p' / 'set' / 'dog' / 'b.png').write_bytes(b'')
    with zipfile.ZipFile(tmp_path / 'p.zip', 'w') as z:
        for kind in ('cat/a', 'dog/b', 'eel/a'):
            z.write(tmp_path / 'p' / 'set' / f'{kind}.png', f'{kind}.png')
    write_tiny(tmp_path), write_imagenet(tmp_path / 'imagenet')
    images.convert('imagenet', root, 16)
    out = images.convert(str(tmp_path / 'p'), root, 16)
    sets = {'fashion-mnist': 10, 'emoji': 9, 'emoji-faces': 1, 'tiny-imagenet': 2, 'imagenet': 3, out: 3,
            str(tmp_path / 'p'): 3, str(tmp_path / 'p.zip'): 3}
    for data, count in sets.items():
        found = images.names(data, root, 16)
        assert found == images.load(data, root, res=16).classes and len(found) == count
    assert images.load(str(tmp_path / 'p'), res=16).labels.tolist() == [0, 2]
    assert len(images.names('cifar10')) == 10 and len(images.names('cifar100')) == 100


def pack(folder, path, top=''):
    """The files of a folder as an uncompressed zip."""
    with zipfile.ZipFile(path, 'w') as z:
        for d, _, files in os.walk(folder):
            for f in sorted(files):
                z.write(os.path.join(d, f), os.path.join(top, os.path.relpath(os.path.join(d, f), folder)))


@pytest.mark.parametrize('name, n, form', [
    ('100-shot-obama', 100, 'zip'), ('100-shot-grumpy_cat', 99, 'folder'), ('100-shot-panda', 100, 'img'),
    ('animalface-dog', 389, 'zip'), ('AnimalFace-cat', 160, 'zipped folder')])
def test_few_shot_sets_come_from_their_zip_or_folder_and_are_scored_against_themselves(name, n, form, tmp_path):
    published = name.replace('animalface', 'AnimalFace')
    at = tmp_path / published / ('img' if form == 'img' else '.')
    for i in range(4):
        noise(at / f'{i}.jpg', (20, 12), seed=i)
    for i in range(4, n):                                        # as published, JPEG by number; but not square
        os.link(at / f'{i % 4}.jpg', at / f'{i}.jpg')
    if 'zip' in form:
        pack(tmp_path / published, tmp_path / f'{published}.zip', published if 'folder' in form else '')
        one = decoded(at / '0.jpg')
        os.rename(tmp_path / published, tmp_path / 'elsewhere')
    else:
        one = decoded(at / '0.jpg')
    assert images.suggest_res(name, str(tmp_path)) == 256 and images.names(name, str(tmp_path)) == [published]
    d = images.load(name, str(tmp_path), res=8)
    assert d.name == published and d.classes == [published] and not d.labels.any() and d.holdout is None
    assert d.ref_name == f'{published}-train' and len(d.images) == d.total == n and torch.equal(d.ref, d.images)
    whole = Image.fromarray(one.permute(1, 2, 0).numpy()).resize((8, 8), Image.LANCZOS)
    assert (d.images[0].permute(1, 2, 0).numpy() == np.asarray(whole)).all()       # squeezed, nothing cut off
    text = '\n'.join(d.report)
    assert ('99 images of 100-shot-grumpy_cat, 100 were published' in text) == (n == 99) and 'squeezed' in text
    half = images.load(name, str(tmp_path), res=8, frac=10)
    assert len(half.ref) == 10 and len(half.holdout) == n - 10


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """A root of data sets, each of which something is wrong with; their names are those in REFUSED."""
    root = tmp_path_factory.mktemp('places')
    for name in ('EMPTY', 'ROOT', 'NONE', 'CUT'):
        os.makedirs(root / name)
    for i in range(4):
        noise(root / 'FULL' / f'{i}.png', (9, 9), kind='PNG')
    (root / 'FILE').write_text('x')

    for name in ('FLAT', 'OTHER'):
        write_imagenet(root / name)
    noise(root / 'FLAT' / 'val' / 'a.JPEG')
    noise(root / 'OTHER' / 'val' / 'n09' / 'a.JPEG')
    write_tiny(root / 'HALF')
    os.remove(root / 'HALF' / 'tiny-imagenet-200.zip')
    os.remove(root / 'HALF' / 'tiny-imagenet-200' / 'val' / 'val_annotations.txt')
    os.makedirs(root / 'TEXT')
    (root / 'TEXT' / 'tiny-imagenet-200.zip').write_text('<html>')

    noise(root / 'F' / 'a.png', kind='PNG')
    (root / 'F' / 'bad.png').write_bytes(b'')
    for name in ('SET', 'TORN'):
        images.convert(str(root / 'F'), res=16, out=str(root / name))
    (root / 'TORN' / 'train.npy').write_bytes((root / 'TORN' / 'train.npy').read_bytes()[:200])
    (root / 'CUT' / 'train.part.json').write_text('{}')

    for name in ('PART', 'VECTOR', 'ffhq', '100-shot-panda'):
        noise(root / name / 'a.png', kind='PNG')
        noise(root / name / 'b.png', kind='PNG')
    (root / 'PART' / 'dataset.json').write_text('{"labels": [["a.png", 3]]}')
    (root / 'VECTOR' / 'dataset.json').write_text('{"labels": [["a.png", [0, 1]], ["b.png", [1, 0]]]}')
    os.makedirs(root / 'LMDB' / 'cat')
    (root / 'LMDB' / 'cat' / 'data.mdb').write_bytes(b'')
    pack(root / 'LMDB', root / 'lsun-cat.zip')
    return root


LOAD = images.load
NAMES = images.names
CONVERT = images.convert
TINY = ['tiny-imagenet-200', images.TINY_URL]
REFUSED = [
    (LOAD, dict(data='nowhere'), ['--data nowhere', 'cifar10']),
    (LOAD, dict(data='EMPTY'), ['no image']),
    (LOAD, dict(data='FILE'), ['zip']),
    (LOAD, dict(data='FULL', frac='0'), ['--frac 0']),
    (LOAD, dict(data='FULL', frac='2.5'), ['--frac 2.5']),
    (LOAD, dict(data='FULL', frac='x'), ['--frac x']),
    (LOAD, dict(data='FULL', frac='0.01'), ['--frac 0.01', 'none of the 4']),
    (LOAD, dict(data='FULL', holdout=4), ['--holdout 4']),
    (LOAD, dict(data='FULL', ref='test'), ['--ref test']),
    (LOAD, dict(data='FULL', res=4), ['--res 4']),
    (LOAD, dict(data='cifar10', root='ROOT'), ['--root', 'cifar-10-python.tar.gz', 'http']),
    (LOAD, dict(data='fashion-mnist', root='ROOT'), ['idx', 'dataset-fashion-mnist']),

    (LOAD, dict(data='tiny-imagenet', root='NONE', res=64), TINY),
    (NAMES, dict(data='tiny-imagenet', root='NONE', res=64), TINY),
    (LOAD, dict(data='tiny-imagenet', root='TEXT', res=64), ['tiny-imagenet-200']),
    (NAMES, dict(data='tiny-imagenet', root='TEXT', res=64), ['tiny-imagenet-200']),
    (LOAD, dict(data='tiny-imagenet', root='HALF', res=64), TINY),
    (NAMES, dict(data='tiny-imagenet', root='HALF', res=64), TINY),
    (LOAD, dict(data='tiny-imagenet', res=64, crop='pad'), ['--crop pad']),
    (LOAD, dict(data='imagenet', res=48), ['python data/images.py imagenet --root', '--res 48']),
    (CONVERT, dict(data='imagenet', root='FLAT'), ['val/a.JPEG', 'class folder']),
    (CONVERT, dict(data='imagenet', root='OTHER'), ['val/n09/a.JPEG', 'same classes']),
    (CONVERT, dict(data='imagenet', root='NONE'), ['--root', 'train/n01440764']),

    (LOAD, dict(data='SET', res=32), ['--res 32', '--res 16']),
    (LOAD, dict(data='SET', res=16, crop='pad'), ['--crop pad']),
    (LOAD, dict(data='SET', res=16, strict=True), ['bad.png']),
    (LOAD, dict(data='CUT', res=16), ['cut off']),
    (LOAD, dict(data='TORN', res=16), ['TORN', 'damaged', 'again']),
    (CONVERT, dict(data='SET', out='SET'), ['no conversion']),
    (CONVERT, dict(data='emoji'), ['--data emoji']),
    (CONVERT, dict(data='F', out='F'), ['--out']),
    (CONVERT, dict(data='F', workers=0), ['--workers 0']),

    (LOAD, dict(data='100-shot-wuzhen'),
     ['https://data-efficient-gans.mit.edu/datasets/100-shot-wuzhen.zip', '--root']),
    (LOAD, dict(data='animalface-cat'), ['AnimalFace-cat.zip', '--root']),
    (LOAD, dict(data='100-shot-panda', crop='pad'), ['--crop pad', 'leave it out']),
    (LOAD, dict(data='ffhq', root='NONE'), ['https://github.com/NVlabs/ffhq-dataset', 'NONE/ffhq.zip']),
    (LOAD, dict(data='ffhq'), ['run python data/images.py ffhq']),
    (CONVERT, dict(data='ffhq', crop='pad', out='x'), ['--crop pad']),
    (LOAD, dict(data='lsun-church_outdoor'), ['https://github.com/fyu/lsun', 'lsun-church_outdoor/']),
    (LOAD, dict(data='lsun-1'), ['neither a folder', 'lsun-cat']),
    (CONVERT, dict(data='lsun-cat', out='x'), ['lsun-cat.zip is a packed LMDB', 'unpack it']),
    (LOAD, dict(data='LMDB'), ['pip install lmdb', "lmdb.open('"]),
    (LOAD, dict(data='PART'), ['dataset.json', 'b.png']),
    (LOAD, dict(data='VECTOR'), ['dataset.json'])]


@pytest.mark.parametrize('function, call, words', REFUSED)
def test_what_cannot_be_is_refused_with_one_sentence_and_code_2(function, call, words, places, capsys, monkeypatch):
    import torchvision
    monkeypatch.setattr(images, 'FASHION', str(places / 'no'))
    monkeypatch.setattr(torchvision.datasets.cifar, 'download_and_extract_archive', offline)
    call = {'root': str(places), **call}
    call = {k: str(places / v) if str(v).isupper() else v for k, v in call.items()}
    with pytest.raises(SystemExit) as e:
        function(**call)
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.startswith('error: ') and error.count('\n') == 1
    for word in words:
        assert word in error, (word, error)


def offline(*args, **kwargs):
    raise OSError('no network')


def test_the_command_that_empties_an_lmdb_works_as_printed(tmp_path, capsys):
    folder = tmp_path / 'lsun-cat'
    os.makedirs(folder / 'cat')
    (folder / 'cat' / 'data.mdb').write_bytes(b'')
    for i in range(3):
        noise(tmp_path / f'{i}.jpg', seed=i)
    (tmp_path / 'lmdb.py').write_text(                           # what the command needs of the real one
        'import types\ndef open(path, readonly, lock):\n'
        f'    assert path == {str(folder / "cat")!r} and readonly and not lock\n'
        "    read = lambda i: __import__('io').open(f'{__file__[:-7]}{i}.jpg', 'rb').read()\n"
        '    txn = types.SimpleNamespace(cursor=lambda: iter([(bytes([i]), read(i)) for i in range(3)]))\n'
        '    return types.SimpleNamespace(begin=lambda: txn)\n')
    with pytest.raises(SystemExit):
        images.convert('lsun-cat', str(tmp_path), 32)
    command = re.search('python -c "(.*)", then', capsys.readouterr().err).group(1)
    subprocess.run([sys.executable, '-c', command], cwd=tmp_path, check=True)
    images.convert('lsun-cat', str(tmp_path), 32)
    d = images.load('lsun-cat', str(tmp_path), res=32)
    assert len(d.images) == 3 and d.classes == ['lsun-cat'] and isinstance(d.images, images.Rows)
    one = Image.open(tmp_path / '1.jpg').resize((32, 32), Image.LANCZOS)
    assert (d.images[1].permute(1, 2, 0).numpy() == np.asarray(one)).all()


@pytest.mark.parametrize('place', ['ffhq', 'ffhq/images1024x1024', 'images1024x1024', 'thumbnails128x128', 'ffhq.zip',
                                   'ffhq256x256.zip as ffhq.zip'])
def test_ffhq_is_found_as_it_is_published_and_converted_without_classes(place, tmp_path):
    at = tmp_path / ('raw' if 'zip' in place else place)
    for i in range(6):
        noise(at / f'{i // 2 * 1000:05d}' / f'{i:05d}.png', (32, 32), seed=i, kind='PNG')
    if 'images' in place:                                        # beside them lie others, which are not meant
        noise(at.parent / 'thumbnails128x128' / '00000' / '00000.png', seed=9, kind='PNG')
        noise(at.parent / 'in-the-wild-images' / '00000' / '00000.png', seed=9, kind='PNG')
    if 'as' in place:
        (at / 'dataset.json').write_text('{"labels": null}')
    if 'zip' in place:
        pack(at, tmp_path / 'ffhq.zip')
    root = str(tmp_path)
    assert images.suggest_res('ffhq', root) == 256 and images.convert('ffhq', root, 64) == f'{root}/ffhq-64'
    d = images.load('ffhq', root, res=64, frac=2)
    assert d.classes == images.names('ffhq', root, 64) == ['ffhq'] and d.total == 6 and not d.labels.any()
    assert len(d.images) == 2 and len(d.holdout) == 4 and len(d.ref) == 6 and d.ref_name == 'ffhq-all'
    assert 'warning: 6 of these 6 are smaller than --res 64 and were enlarged' in d.report
    images.convert('ffhq', root, 32)
    d = images.load('ffhq', root, res=32)
    x = d.images
    assert not any('enlarged' in line for line in d.report) and len(x) == 6
    assert torch.equal(x[5], decoded(at / '02000' / '00005.png'))


@pytest.mark.parametrize('sides, res', [((63, 64, 65), 64), ((63, 63, 900), 32), ((12, 13, 14), 32), ((500,) * 3, 256),
                                        ((200, 256, 256, 300), 256), ((127, 128), 64)])
def test_the_suggested_resolution_is_the_power_of_two_below_the_median_shorter_side(sides, res, tmp_path):
    for i, side in enumerate(sides):
        Image.new('RGB', (side, side + 40 * i)).save(tmp_path / f'{i}.png')
    (tmp_path / 'broken.png').write_bytes(b'no image')
    assert images.suggest_res(str(tmp_path)) == res
    pack(tmp_path, tmp_path / 'all.zip')
    assert images.suggest_res(str(tmp_path / 'all.zip')) == res


def test_the_suggested_resolution_of_named_and_converted_sets_is_their_own(tmp_path):
    known = dict(cifar10=32, emoji=32, imagenet=128, ffhq=256) | {'emoji-faces': 128, 'tiny-imagenet': 64,
                                                                  'lsun-bedroom': 256, 'AnimalFace-cat': 256}
    assert {name: images.suggest_res(name, str(tmp_path)) for name in known} == known
    assert images.suggest_res(write_set(tmp_path / 's', 4, 48)) == 48
    (tmp_path / 'broken.png').write_bytes(b'no image')
    assert images.suggest_res(str(tmp_path)) == 32               # which load then refuses


def test_a_survey_reads_heads_of_some_files_evenly_spread():
    def head(i):                                                 # a PNG without a single pixel
        chunk = b'IHDR' + struct.pack('>2I5B', 10 + i, 500, 8, 2, 0, 0, 0)
        return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + struct.pack('>2I', zlib.crc32(chunk), 9) + b'IDAT'
    read = []
    found = images.survey_sizes(list(range(1999)), lambda i: read.append(i) or head(i))
    assert read == list(range(0, 1999, 4)) and found == [(10 + i, 500) for i in read]
    assert len(images.survey_sizes(list(range(500)), head)) == 500


def test_the_report_says_sizes_duplicates_and_what_may_spoil_a_training(tmp_path):
    for i in range(10):
        noise(tmp_path / 'good' / f'{i}.png', (40 + 4 * i, 40), seed=i, kind='PNG')
    lines = images.load(str(tmp_path / 'good'), res=32).report
    assert 'shorter sides of 10 images: 40 to 40 px, median 40; 9 not square (1.9 : 1), cut to their centre' in lines
    assert not any('warning' in line for line in lines)
    assert any('padded with white' in line for line in images.load(str(tmp_path / 'good'), res=32, crop='pad').report)
    for i, (side, seed) in enumerate([(16, 1), (16, 2), (31, 3), (64, 3), (16, 2)]):
        noise(tmp_path / 'bad' / f'{i}.png', (side, side), mode='L', seed=seed, kind='PNG')
    Image.open(tmp_path / 'bad' / '0.png').convert('RGBA').save(tmp_path / 'bad' / 'again.png')
    lines = images.load(str(tmp_path / 'bad'), res=32).report
    assert 'shorter sides of 6 images: 16 to 64 px, median 16; all square' in lines
    assert 'warning: 5 of these 6 are smaller than --res 32 and were enlarged' in lines
    assert 'warning: 2 duplicates at 32 px: 0.png = again.png; 1.png = 4.png' in lines
    assert 'warning: 6 images are few, a GAN learns them by heart' in lines and 'warning: all images are grey' in lines
    noise(tmp_path / 'bad' / 'colour.png', kind='PNG')
    assert not any('grey' in line for line in images.load(str(tmp_path / 'bad'), res=32).report)


@pytest.mark.parametrize('zipped', [True, False])
def test_the_labels_of_a_dataset_json_are_the_classes(zipped, tmp_path):
    folder = tmp_path / 'set'
    files = [f'{i // 4:05d}/img{i:08d}.png' for i in range(8)]
    for i, f in enumerate(files):
        noise(folder / f, (16, 16), seed=i, kind='PNG')

    def load(text):
        (folder / 'dataset.json').write_text(text)
        pack(folder, tmp_path / 'set.zip')
        path = str(tmp_path / 'set.zip' if zipped else folder)
        d = images.load(path, res=16)
        assert d.classes == images.names(path) and torch.equal(d.images[7], decoded(folder / files[7]))
        return d
    of = dict(zip(files, (10, 2, 2, 10, 0, 0, 2, 10)))
    d = load(json.dumps({'labels': sorted(of.items(), key=lambda pair: pair[1])}))
    assert d.classes == ['0', '2', '10'] and d.labels.tolist() == [2, 1, 1, 2, 0, 0, 1, 2]
    assert load('{"labels": null}').classes == ['0']             # its folders are numbers, not classes


def test_images_start_no_program_and_special_files_are_named(tmp_path, monkeypatch):
    mark = fake_ghostscript(tmp_path / 'bin', monkeypatch)
    folder = photos(tmp_path / 'photos')
    for name in HOSTILE:
        hostile_file(folder, name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    d = images.load(str(folder), res=16)
    text = '\n'.join(d.report)
    assert len(d.images) == 10 and not os.path.exists(mark)
    assert all(f'{name} ({why}' in text for name, why in HOSTILE.items()), text
    assert images.suggest_res(str(folder), 'datasets') == 64
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024        # kB


def test_a_large_member_of_a_zip_is_named_and_not_read(tmp_path):
    folder = photos(tmp_path / 'photos', 4)
    with zipfile.ZipFile(tmp_path / 'z.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in os.listdir(folder):
            archive.write(folder / name, name)
        archive.writestr('bomb.png', bytes(images.MAX_BYTES + 2 ** 20))
    d = images.load(str(tmp_path / 'z.zip'), res=16)
    assert len(d.images) == 4 and 'bomb.png (257 MB are too many' in '\n'.join(d.report)


# ---- data as people have it

def write_files(folder, entries):
    """Write a folder of {name: bytes}, and the same as a zip beside it; returns both paths."""
    for name, data in entries.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as f:
            f.write(data)
    with zipfile.ZipFile(f'{folder}.zip', 'w') as z:
        for name, data in entries.items():
            z.writestr(name, data)
    return str(folder), f'{folder}.zip'


def test_a_dataset_json_at_any_depth_gives_its_classes_or_is_refused(tmp_path, capsys):
    pictures = {f'00000/img{i}.png': good_picture(i) for i in range(4)}
    more = {'without labels': (b'{"name": "mine"}', [None]), 'no json': (b'no json', [None]),
            'backslashes': (DATASET_JSONS['good'][0].replace(b'00000/', b'00000\\\\'), [3]),
            'labels []': (b'{"labels": []}', [None]),
            'labels 1.0': (DATASET_JSONS['good'][0].replace(b'1]', b'1.0]'), [3])}
    for i, (note, (text, right)) in enumerate({**DATASET_JSONS, **more}.items()):
        for top in ('', 'set/', 'a/b/'):
            entries = {f'{top}{name}': data for name, data in {**pictures, 'dataset.json': text}.items()}
            for path in write_files(tmp_path / f'{i}-{top.count("/")}', entries):
                try:
                    found = len(images.load(path, res=8).classes)
                except SystemExit as e:
                    found = e.code
                    error = capsys.readouterr().err
                    assert 'dataset.json' in error and error.count('\n') == 1, (note, error)
                assert found in ([2] if right == [None] else right), (note, path, found)
                if found == 3:
                    assert images.load(path, res=8).labels.tolist() == [0, 1, 2, 0]
    two = {f'{top}dataset.json': DATASET_JSONS['good'][0] for top in ('', 'set/')}
    for path in write_files(tmp_path / 'two', {**pictures, **two}):
        refused(capsys, lambda: images.load(path, res=8), 'dataset.json, set/dataset.json', 'keep one')


def test_classes_are_the_folders_of_a_zip_whoever_packed_it(tmp_path, capsys):
    for i, (note, (entries, number)) in enumerate(class_folders().items()):
        with zipfile.ZipFile(tmp_path / f'{i}.zip', 'w') as z:
            for name, data in entries.items():
                z.writestr(name, data)
        d = images.load(str(tmp_path / f'{i}.zip'), res=8)
        assert (len(d.classes), len(d.images)) == (number, 4), note
    for names in (['a/x.png', 'a/x.png'], ['a/x.png', 'a\\x.png']):
        with pytest.warns() if names[0] == names[1] else contextlib.nullcontext():
            with zipfile.ZipFile(tmp_path / 'twice.zip', 'w') as z:
                for i, name in enumerate(names):
                    z.writestr(name, good_picture(i))
        refused(capsys, lambda: images.load(str(tmp_path / 'twice.zip'), res=8), 'a/x.png twice')


def test_a_damaged_directory_of_a_zip_loses_no_image_in_silence(tmp_path, capsys):
    entries = {f'{name}.png': good_picture(i) for i, name in enumerate(('n', 'a' * 13, 'b' * 13, 'c'))}
    _, path = write_files(tmp_path / 'z', entries)                # entries of 64 bytes, which a length can skip
    with open(path, 'rb') as f:
        whole = f.read()
    start = whole.index(CENTRAL)
    places = np.random.default_rng(0).permutation(8 * (len(whole) - start))[:250].tolist()
    n, skipped = 8 * (start + 46), 8 * (start + 51 + 32)          # the letter n; the length of the 2nd comment
    for place in [n + 6, skipped + 6, *(8 * start + place for place in places)]:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        with open(path, 'wb') as f:
            f.write(flipped)
        try:
            report = '\n'.join(images.load(path, res=8).report)
        except SystemExit as e:
            assert e.code == 2 and capsys.readouterr().err.count('\n') == 1
            continue
        counts = [int(x) for x in re.findall(r'(\d+) (?:images read|skipped)', report)]
        assert sum(counts) == 4, (place // 8 - start, place % 8, counts)


def test_names_are_shown_in_one_line_that_a_terminal_can_print(tmp_path):
    names = [b'new\nline.png', b'\xff\xfe.png', b'\x1b[31mred.png']
    names += ['\u202egnp.png'.encode(), 'caf\xe9.png'.encode()]
    good = photos(tmp_path / 'd', 2)
    for name in names:
        with open(os.path.join(os.fsencode(good), name), 'wb') as f:
            f.write(b'rubbish')
    report = images.load(str(good), res=8).report
    assert all(line.isprintable() and line.encode() for line in report)
    text = '\n'.join(report)
    assert '5 skipped' in text and 'new\\nline.png' in text and '\\udcff' in text and 'caf\xe9.png' in text


@contextlib.contextmanager
def at_once(seconds=10):
    """What hangs is ended."""
    def stop(*_):
        raise TimeoutError
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_what_is_no_folder_or_zip_is_refused_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo('fifo')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind('socket')
    (tmp_path / 'a.png').write_bytes(good_picture())
    (tmp_path / 'set').mkdir()
    os.mkfifo('set/set.json')
    before = sorted(os.listdir())
    for path, word in [('fifo', 'regular'), ('socket', 'regular'), ('/dev/zero', 'regular'),
                       ('/dev/ptmx', 'regular'), ('x' * 300, 'neither'), ('a.png', 'folder'), ('set', 'set.json')]:
        calls = [lambda: images.load(path, res=8), lambda: images.names(path), lambda: images.suggest_res(path)]
        if path != 'set':
            calls.append(lambda: images.convert(path, res=8))
        for call in calls:
            with at_once():
                refused(capsys, call, path, word)
    assert sorted(os.listdir()) == before


def test_threads_share_the_memory_of_a_scan():
    room, most, held = images.Room(100), [], []

    def use(amount):
        with room.take(amount):
            held.append(min(amount, 100))
            most.append(sum(held))
            time.sleep(.002)
            held.remove(min(amount, 100))
    threads = [threading.Thread(target=use, args=[amount]) for amount in (30, 90, 0, 500, 60, 100, 40, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 100 and room.left == 100 and len(most) == 8


def test_an_image_is_converted_in_bands_as_in_one_piece(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 30, 4), np.uint8)
    coloured = Image.fromarray(x).convert('RGB').quantize(7)
    coloured.info['transparency'] = bytes(range(0, 210, 30))
    marked = Image.fromarray(x).convert('RGB')
    marked.info['transparency'] = marked.getpixel((3, 3))
    greys = [Image.fromarray((x[..., 0] * float(scale)).astype(kind)) for scale, kind in (
        (257, np.uint16), (1, np.uint16), (70000, np.int32), (1, np.int32), (.7, np.float32), (100, np.float32))]
    modes = [Image.fromarray(x).convert(mode) for mode in ('RGBA', 'LA', 'RGBa', 'RGB', 'CMYK', '1')]
    for im in [coloured, marked, *greys, *modes]:
        whole, kind = images.to_rgb(im)
        with monkeypatch.context() as patch:
            patch.setattr(images, 'bands', lambda im: [(0, y, im.width, min(y + 7, 40)) for y in range(0, 40, 7)])
            banded, _ = images.to_rgb(im)
        alpha = 'A' in im.mode or 'a' in im.mode or 'transparency' in im.info
        assert kind == im.mode + ' with alpha, over white' * alpha
        assert whole.mode == 'RGB' and whole.tobytes() == banded.tobytes(), im.mode
        if im in greys:
            grey = np.asarray(im).astype(np.float64)
            grey = grey / 257 if kind == 'I;16' or grey.max() > 255 else grey
            assert (np.asarray(whole) == grey.round().clip(0, 255)[..., None]).all()
        elif kind == 'RGBA':
            white = Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im).convert('RGB')
            assert whole.tobytes() == white.tobytes()


# ---- damage of converted sets, and conversions that fail

@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """A set of five rows, of six files of which one is rubbish."""
    place = tmp_path_factory.mktemp('converted')
    entries = {f'{"cd"[i % 2]}/{i}.png': good_picture(i) for i in range(5)}
    folder, _ = write_files(place / 'photos', {**entries, 'c/bad.png': b'rubbish'})
    return images.convert(folder, res=16, out=str(place / 'set'))


def test_damage_of_a_converted_set_is_seen(converted, tmp_path, capsys):
    right = images.load(converted, res=16)
    rng = np.random.default_rng(0)
    for name in sorted(set(os.listdir(converted)) - {'lock'}):
        with open(f'{converted}/{name}', 'rb') as f:
            whole = f.read()
        wrong = [whole[:len(whole) // 2], whole + bytes(768), b'']
        if name == 'set.json':
            wrong = damaged_json(whole).values()
        for at in [*range(0, 128, 9), *rng.integers(len(whole), size=30).tolist()]:
            flipped = bytearray(whole)
            flipped[at % len(whole)] ^= 1 << int(rng.integers(8))
            wrong = [*wrong, bytes(flipped)]
        for i, data in enumerate(wrong):
            path = shutil.copytree(converted, tmp_path / f'{name}-{i}')
            (path / name).write_bytes(data)
            try:
                d = images.load(str(path), res=16)
            except SystemExit as e:
                error = capsys.readouterr().err
                assert e.code == 2 and error.count('\n') == 1 and f'{path}/{name} is damaged' in error, error
                assert 'convert it again' in error
            else:                                                 # blanks between the values of set.json
                assert name == 'set.json' and d.classes == right.classes
                assert torch.equal(d.images[:], right.images[:])


def test_a_large_set_is_verified_when_it_is_read_and_an_older_one_where_it_can_be(
        converted, tmp_path, capsys, monkeypatch):
    right = images.load(converted, res=16)
    path = str(shutil.copytree(converted, tmp_path / 'set'))
    with open(f'{path}/train.npy', 'r+b') as f:
        f.seek(128 + 3 * 768 + 5)
        f.write(b'\0\1\2')
    monkeypatch.setattr(images, 'SMALL_SET', -1)
    d = images.load(path, res=16)
    assert torch.equal(d.images[[0, 4]], right.images[[0, 4]])
    refused(capsys, lambda: d.images[[0, 3]], 'train.npy is damaged', 'row 3', 'convert it again')
    refused(capsys, lambda: list(images.feed(d.images, [[0], [1], [3]])), 'row 3')
    refused(capsys, lambda: images.load(path, res=16, verify=True), 'row 3')
    assert any('5 images are as they were written' in line
               for line in images.load(converted, res=16, verify=True).report)

    # Sets of an earlier version have no sums. Where no file was skipped, the digest of the chunks is there.
    for skipped, words in (([], 'not what was written'), (['a.png (rubbish)'], None)):
        info = images.read_json(f'{converted}/set.json')
        for key in ('sums', 'sha256'):
            del info['splits']['train'][key]
        del info['seal']
        info['splits']['train']['skipped'] = skipped
        images.write_json(f'{path}/set.json', info)
        old = images.load(path, res=16)
        assert old.fingerprint == right.fingerprint and len(old.images) == 5
        if words:
            refused(capsys, lambda: images.load(path, res=16, verify=True), words)
        else:
            assert any('cannot be verified' in line for line in images.load(path, res=16, verify=True).report)
    shutil.copy(f'{converted}/train.npy', path)
    info['splits']['train']['skipped'] = []
    images.write_json(f'{path}/set.json', info)
    assert torch.equal(images.load(path, res=16, verify=True).images[:], right.images[:])


def test_a_conversion_that_fails_leaves_nothing_half_way(tmp_path, capsys, monkeypatch):
    folder = str(photos(tmp_path / 'photos', 9))
    monkeypatch.chdir(tmp_path)

    def failing(number):
        def sync(f):
            raise OSError(number, os.strerror(number))
        return sync
    (tmp_path / 'file').write_text('x')
    before = sorted(os.listdir())
    for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
            patch.setattr(images, 'sync', failing(number))
            images.convert(folder, 'new/root', 16)
        error = capsys.readouterr().err
        assert e.value.code == 1 and error.count('error:') == 1
        assert 'new/root/photos-16' in error and 'disk' in error
        assert sorted(os.listdir()) == before
    for how in ({'decode': interrupt}, {'finish_split': interrupt}):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            for name, function in how.items():
                patch.setattr(images, name, function)
            images.convert(folder, 'root', 16)
        kept = sorted(os.listdir('root/photos-16')) if os.path.exists('root') else []
        assert kept == (['lock', 'train.part', 'train.part.json'] if 'finish_split' in how else [])
    shutil.rmtree('root')
    for call in (dict(out='file'), dict(out='file/x'), dict(out='a/b/' + 'x' * 300), dict(res=10 ** 6), dict(res=7),
                 dict(root='file')):
        refused(capsys, lambda: images.convert(folder, **{'res': 16, **call}), '--')
    (tmp_path / 'rubbish').mkdir()
    (tmp_path / 'rubbish' / 'x.png').write_text('rubbish')
    with pytest.raises(SystemExit):
        images.convert('rubbish', 'root', 16)
    assert sorted(os.listdir()) == sorted([*before, 'rubbish'])


def test_a_conversion_does_not_build_on_rows_that_were_damaged(tmp_path, capsys, monkeypatch):
    folder = str(photos(tmp_path / 'photos', 9))
    monkeypatch.setattr(images, 'CHUNK', 4)
    whole = contents(tmp_path / os.path.basename(images.convert(folder, res=16, out=str(tmp_path / 'whole'))))
    decode = images.decode

    def interrupted(file, *rest):
        return interrupt() if file == '8.jpg' else decode(file, *rest)
    for damage in ('none', 'rows', 'record', 'short'):
        out = tmp_path / damage
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(images, 'decode', interrupted)
            images.convert(folder, res=16, out=str(out), workers=1)
        assert images.read_json(out / 'train.part.json')['files'] == 8
        with open(out / ('train.part.json' if damage == 'record' else 'train.part'), 'r+b') as f:
            if damage == 'rows':
                f.seek(3000)
                f.write(b'\0\1\2')
            elif damage == 'short':
                f.truncate(3000)
            elif damage == 'record':
                f.write(b'{"files": 4, ')
        capsys.readouterr()
        images.convert(folder, res=16, out=str(out))
        assert contents(out) == whole, damage
        assert ('written anew' in capsys.readouterr().err) == (damage in ('rows', 'short')), damage


# ---- how scripts end

def ended(module, main, stdout, encoding='utf-8'):
    """The exit code and stderr of as_script(main) in a fork, whose stdout is this open file or None."""
    stderr = os.memfd_create('stderr')
    pid = os.fork()
    if not pid:
        code = 99
        try:
            sys.stdout = stdout and open(stdout.fileno(), 'w', encoding=encoding, closefd=False)
            sys.stderr = open(stderr, 'w', encoding=encoding, errors='backslashreplace', buffering=1)
            module.as_script(main)
        except SystemExit as e:
            code = e.code
        finally:
            sys.stdout.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(stderr, 'rb') as f:
        f.seek(0)
        return status, f.read().decode()


def test_scripts_end_without_a_traceback_whatever_comes_from_outside(tmp_path):
    import metrics

    def killed(number):
        return lambda: os.kill(os.getpid(), number)

    def full():
        raise OSError(errno.ENOSPC, 'No space left on device', '/a/b')
    reader, writer = os.pipe()
    os.close(reader)
    nobody, disk = open(writer, 'w'), open('/dev/full', 'w')
    for module in (images, metrics):                           # make_emoji.py calls that of images
        with open(tmp_path / 'x', 'w') as file:
            assert ended(module, lambda: print('\u72d7 \udcff'), file, 'cp1252') == (0, '')
            assert ended(module, lambda: print('x'), None) == (0, '')
            assert ended(module, lambda: print('x'), nobody) == (141, '')
            code, error = ended(module, lambda: print('x'), disk)
            assert code == 1 and error.startswith('error: stdout') and error.count('\n') == 1
            code, error = ended(module, full, file)
            assert code == 1 and '/a/b' in error and 'disk' in error and error.count('\n') == 1
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                assert ended(module, killed(number), file) == (128 + number, '')
            assert ended(module, lambda: sys.exit(2), nobody)[0] == 2
        assert open(tmp_path / 'x', encoding='cp1252').read() == '\\u72d7 \\udcff\n'
    nobody.close()
    disk.close()


def test_the_script_of_the_emoji_ends_in_one_sentence(tmp_path):
    script = make_emoji.__file__
    (tmp_path / 'font').write_bytes(b'no font')
    (tmp_path / 'list').write_bytes(b'\xff\xfe')
    for line, code, words in [(f'--font {"x" * 300}', 2, ['--font', 'xxx', 'install']),
                              ('--font font --emoji-test list', 2, ['--font']), (f'--out {"x" * 300}', 2, ['--']),
                              ('--font x 2>/dev/full', 2, []), ('--help | true', 0, [])]:
        done = subprocess.run(['bash', '-c', f'"$0" "$1" {line}', sys.executable, script], cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == code and all(word in done.stderr for word in words), (line, done.stderr)
        assert 'Traceback' not in done.stderr and 'ignored' not in done.stderr, done.stderr
    assert sorted(os.listdir(tmp_path)) == ['font', 'list']


def test_ctrl_c_during_the_imports_ends_a_script_without_a_traceback(tmp_path):
    import metrics
    (tmp_path / 'numpy.py').write_text('import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n')
    for script in (images.__file__, metrics.__file__, make_emoji.__file__):
        done = subprocess.run([sys.executable, script], env={**os.environ, 'PYTHONPATH': str(tmp_path)},
                              capture_output=True)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, b'')
