"""data/images.py: subsets, splits and groups; every odd image a user has; the on-disk formats of the named sets."""
import gzip
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from data import images


def picture(size=(40, 40), colour=(200, 30, 60), mode='RGB'):
    return Image.new('RGB', size, colour).convert(mode)


@pytest.fixture
def odd(tmp_path):
    """A folder with every kind of file that has stopped somebody."""
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
    for word in ('LA', 'RGBA', 'I;16', 'CMYK', 'turned by EXIF', 'not square'):
        assert word in text, word


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


@pytest.mark.parametrize('call, words', [
    (dict(data='nowhere'), ['--data nowhere', 'cifar10']), (dict(data='EMPTY'), ['no image']),
    (dict(data='FILE'), ['zip']), (dict(data='FULL', frac='0'), ['--frac 0']),
    (dict(data='FULL', frac='2.5'), ['--frac 2.5']), (dict(data='FULL', frac='x'), ['--frac x']),
    (dict(data='FULL', frac='0.01'), ['--frac 0.01', 'none of the 4']), (dict(data='FULL', holdout=4), ['--holdout 4']),
    (dict(data='FULL', ref='test'), ['--ref test']), (dict(data='FULL', res=4), ['--res 4']),
    (dict(data='cifar10', root='ROOT'), ['--root', 'cifar-10-python.tar.gz', 'http']),
    (dict(data='fashion-mnist', root='ROOT'), ['idx', 'dataset-fashion-mnist'])])
def test_bad_input_ends_with_one_sentence_and_code_2(call, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(images, 'FASHION', str(tmp_path / 'no'))
    for name in ('EMPTY', 'FULL', 'ROOT'):
        os.makedirs(tmp_path / name)
    for i in range(4):
        picture().save(tmp_path / 'FULL' / f'{i}.png')
    (tmp_path / 'FILE').write_text('x')

    def place(v):
        return str(tmp_path / v) if isinstance(v, str) and v.isupper() else v
    with pytest.raises(SystemExit) as e:
        images.load(**{k: place(v) for k, v in call.items()})
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.startswith('error: ') and error.count('\n') == 1
    for word in words:
        assert word in error, (word, error)


def labelled(n=300, classes=3):
    x = torch.arange(n).view(n, 1, 1, 1).expand(n, 3, 8, 8).to(torch.uint8)
    return images.part(x, [i % classes if i % 10 else 0 for i in range(n)])


def test_subsets_are_nested_stratified_and_seeded():
    split = labelled()
    share = np.bincount(split['labels']) / 300
    last = set()
    for count in (3, 30, 60, 150, 300):
        rows, left = images.cut(split, count, 0, 'random', None)
        assert len(rows) == count and len(rows) + len(left) == 300 and not set(rows) & set(left)
        assert last <= set(rows)                                # 10 % lies inside 20 %
        assert np.abs(np.bincount(split['labels'][rows], minlength=3) - count * share).max() <= 1.5
        last = set(rows)
    assert set(images.cut(split, 30, 1, 'random', None)[0]) != set(images.cut(split, 30, 0, 'random', None)[0])
    assert images.cut(split, 30, 5, 'first', None)[0].tolist() == list(range(30))


def test_groups_are_never_cut_apart_and_holdout_is_never_trained_on():
    split = labelled()
    split['groups'] = np.arange(300) // 7
    for count in (20, 100, 299):
        rows, left = images.cut(split, count, 0, 'random', None)
        assert 0 < len(rows) <= count and not set(split['groups'][rows]) & set(split['groups'][left])
    rows, held = images.cut(split, 300, 0, 'random', 50)
    assert 40 <= len(held) <= 56 and len(rows) + len(held) == 300
    assert not set(split['groups'][rows]) & set(split['groups'][held])
    small, same = images.cut(split, 60, 0, 'random', 50)
    assert set(same) == set(held) and set(small) < set(rows)


def test_emoji_keep_a_glyphs_variants_together():
    d = images.load('emoji', frac=.3)
    info = __import__('json').load(open(os.path.join(images.HERE, 'emoji', 'emoji.json')))['sets']['emoji']
    base = np.array(info['base'])
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


def write_cifar(name, root, monkeypatch):
    """CIFAR as its archive unpacks, 3 images a file; returns torchvision's class, which then checks no sums."""
    import torchvision
    kind = {'cifar10': torchvision.datasets.CIFAR10, 'cifar100': torchvision.datasets.CIFAR100}[name]
    os.makedirs(root / kind.base_folder)
    key = 'labels' if name == 'cifar10' else 'fine_labels'
    for file, _ in kind.train_list + kind.test_list:
        x = np.arange(3 * 3072).reshape(3, 3072).astype(np.uint8)
        with open(root / kind.base_folder / file, 'wb') as f:
            pickle.dump({'data': x, key: [0, 1, 2]}, f)
    with open(root / kind.base_folder / kind.meta['filename'], 'wb') as f:
        pickle.dump({kind.meta['key']: ['a', 'b', 'c']}, f)
    monkeypatch.setattr(kind, '_check_integrity', lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *a: True)
    return kind


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_comes_from_its_python_batches(name, tmp_path, monkeypatch):
    kind = write_cifar(name, tmp_path, monkeypatch)
    d = images.load(name, root=str(tmp_path), frac=1.)
    assert len(d.images) == 3 * len(kind.train_list) and len(d.ref) == len(d.holdout) == 3
    assert d.classes == ['a', 'b', 'c']
    assert (d.images[0].numpy() == np.arange(3072).reshape(3, 32, 32).astype(np.uint8)).all()


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
