"""Data sets as one uint8 tensor: CIFAR, Fashion-MNIST, the bundled emoji, and any folder or zip of images.

Use:
    import numpy, os, images                                  # data.images inside the repository
    from PIL import Image
    os.makedirs('photos', exist_ok=True)
    for i in range(10):
        Image.fromarray(numpy.random.randint(0, 256, (40, 50, 3), 'uint8')).save(f'photos/{i}.png')
    data = images.load('photos', res=32, frac=.5)             # data.images uint8 [5, 3, 32, 32], data.labels [5]
    x = images.batch(data.images, [0, 3])                     # float [-1, 1] [2, 3, 32, 32]

A subset is a prefix of one seeded permutation, stratified by class, so that 10 % lies inside 20 %.  Images of one group
(the variants of one emoji) are never cut apart.  What the subset leaves out is held out.  Sub-folders are classes.
"""
import argparse
import collections
import gzip
import hashlib
import io
import json
import os
import sys
import types
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

HERE = os.path.dirname(os.path.abspath(__file__))
FASHION = '/usr/share/datasets/fashion-mnist'                 # where Debian's package dataset-fashion-mnist puts it
NAMES = ('cifar10', 'cifar100', 'fashion-mnist', 'emoji', 'emoji-faces')
ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.ppm', '.pgm')
HEIC = ('.heic', '.heif', '.avif')


def add_flags(parser):
    """The flags that choose and cut a data set; returns the parser."""
    a = parser.add_argument
    a('--data', required=True, metavar='NAME|FOLDER|ZIP',
      help=f"{', '.join(NAMES)}, or images (sub-folders are classes)")
    a('--root', default='datasets', help='where downloaded data sets lie')
    a('--frac', default='1.0', help='share of the training images, 0 < F <= 1, or a whole number above 1 of images')
    a('--data-seed', type=int, default=0, help='the random subset')
    a('--subset', choices=['random', 'first'], default='random',
      help='first: the first images of the file, as released')
    a('--holdout', type=int, help='images kept from training (default: the test split, else what --frac leaves out)')
    a('--ref', choices=['auto', 'train', 'test', 'all'], default='auto',
      help='reference of the scores; auto: the test split where the set has one, else the training images')
    a('--res', type=int, help='resolution (default: 32)')
    a('--mirror', action=argparse.BooleanOptionalAction, default=False, help='random horizontal flips')
    a('--crop', choices=['centre', 'pad'], default='centre', help='how images become square')
    a('--check-data', action='store_true', help='scan the data, report and exit')
    a('--strict', action='store_true', help='stop at the first image that cannot be read')
    return parser


def refuse(sentence):
    """Exit code 2 with one sentence that names the flag, the value and the fix."""
    if int(os.environ.get('RANK', 0)) == 0:
        print(f'error: {sentence}', file=sys.stderr, flush=True)
    raise SystemExit(2)


def load(data, root='datasets', frac=1., seed=0, subset='random', holdout=None, ref='auto', res=32, crop='centre',
         strict=False, plain=False):
    """A data set as a namespace.

    images uint8 [N, 3, res, res], labels int64 [N], classes (their names), holdout uint8 [M, ...] or None, ref uint8
    [R, ...] with ref_name, index (chosen rows of the whole set), fingerprint (hash), report (sentences), name, total.
    plain: one skin tone per glyph of the emoji set, for class-conditional use. Exits 2 with a sentence on bad input."""
    count = share(frac)
    if res < 8:
        refuse(f'--res {res} is too small: use 8 or more')
    train, test, classes, report = read(data, root, res, crop, strict)
    if plain and train['plain'] is not None:
        train = pick(train, np.flatnonzero(train['plain']))
    n = len(train['images'])
    keep, left = cut(train, count if isinstance(count, int) else int(round(count * n, 6)), seed, subset, holdout)
    if not len(keep):
        refuse(f'--frac {frac} leaves none of the {n} images: use a larger share, or a number of images')
    chosen = pick(train, keep)
    held = pick(train, left)['images'] if holdout else test['images'] if test else pick(train, left)['images']
    few = data == 'emoji-faces'                               # few-shot (the paper's 5.3): scores against the shots
    which = ref if ref != 'auto' else 'test' if test and not few else 'train'
    if which == 'test' and not test:
        refuse(f'--ref test: {data} has no test split; use --ref train or --ref all')
    name = data if data in NAMES else os.path.basename(data.rstrip('/'))
    reference = {'train': chosen, 'test': test, 'all': train}[which]['images']
    content = chosen['images'].numpy().tobytes() + chosen['labels'].numpy().tobytes()
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    report.append(f'{name}: {len(keep)} of {n} training images at {res} px, {len(classes)} classes, '
                  f'{len(held)} held out, scores against {which} ({len(reference)})')
    return types.SimpleNamespace(
        name=name, images=chosen['images'], labels=chosen['labels'], classes=classes,
        holdout=held if len(held) else None, ref=reference, ref_name=f'{name}-{which}',
        index=keep.tolist(), fingerprint=fingerprint, report=report, total=n)


def share(frac):
    """--frac as a float in (0, 1] or a whole number of images."""
    try:
        value = float(frac)
    except ValueError:
        refuse(f'--frac {frac} is not a number: use a share such as 0.1, or a number of images such as 100')
    if 1 < value < float('inf') and value == int(value):
        return int(value)
    if not 0 < value <= 1:
        refuse(f'--frac {frac} is neither a share in (0, 1] nor a whole number of images above 1')
    return value


def permutation(labels, groups, seed):
    """Group numbers in seeded random order, stratified: every prefix holds each class in proportion."""
    rng = np.random.default_rng([seed, 1])
    ids, first = np.unique(groups, return_index=True)
    order = rng.permutation(len(ids))
    key = np.empty(len(ids))
    for c in np.unique(labels[first]):
        members = order[labels[first][order] == c]
        key[members] = (np.arange(len(members)) + .5) / len(members)
    return ids[order[np.argsort(key[order], kind='stable')]]


def cut(train, count, seed, subset, holdout):
    """Rows to train on and rows left out: whole groups of the permutation while they fit into `count` images."""
    groups, labels = train['groups'], train['labels'].numpy()
    order = np.unique(groups) if subset == 'first' else permutation(labels, groups, seed)
    members = collections.defaultdict(list)
    for row, g in enumerate(groups):
        members[g].append(row)
    total = np.cumsum([len(members[g]) for g in order])
    if holdout is not None and not 0 < holdout < len(groups):
        refuse(f'--holdout {holdout} is not between 1 and {len(groups) - 1}: choose fewer than the images of the set')
    free = total[-1] - (holdout or 0)                         # held-out groups come from the end of the permutation
    k = np.searchsorted(total, min(count, free), side='right')
    k = max(k, 1) if count and free >= total[0] else k

    def rows(ids):
        found = [members[g] for g in ids]
        return np.sort(np.concatenate(found)).astype(int) if found else np.zeros(0, int)
    if holdout:
        k2 = np.searchsorted(total, free, side='right')
        return rows(order[:k]), rows(order[k2:])
    return rows(order[:k]), rows(order[k:])


def part(images, labels=None, groups=None, plain=None):
    """One split: images uint8 [N, 3, H, W], labels int64 [N], groups [N], plain bool [N] or None."""
    n = len(images)
    labels = torch.zeros(n, dtype=torch.int64) if labels is None else torch.as_tensor(labels, dtype=torch.int64)
    groups = np.arange(n) if groups is None else np.asarray(groups)
    return {'images': images, 'labels': labels, 'groups': groups, 'plain': plain}


def pick(split, rows):
    return {**{k: split[k][rows] for k in ('images', 'labels', 'groups')}, 'plain': None}


def read(data, root, res, crop, strict):
    """train, test or None, class names, report of a data set by name or path."""
    if data in ('cifar10', 'cifar100'):
        return cifar(data, root, res)
    if data == 'fashion-mnist':
        return fashion(root, res)
    if data in ('emoji', 'emoji-faces'):
        return emoji(data, res)
    if not os.path.exists(data):
        refuse(f"--data {data} is neither a folder or zip of images nor one of {', '.join(NAMES)}")
    return folder(data, res, crop, strict)


def resize(x, res):
    """uint8 [N, C, H, W] -> uint8 [N, C, res, res], antialiased."""
    if x.shape[2:] == (res, res):
        return x
    return torch.cat([F.interpolate(b.float(), (res, res), mode='bicubic', antialias=True).round().clamp(0, 255).byte()
                      for b in x.split(1024)])


def cifar(name, root, res):
    """torchvision's CIFAR-10 / 100, in --root or downloaded there by rank 0."""
    import torchvision
    kind = {'cifar10': torchvision.datasets.CIFAR10, 'cifar100': torchvision.datasets.CIFAR100}[name]
    first = int(os.environ.get('RANK', 0)) == 0
    try:
        if first:
            kind(root, download=True)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        splits = [kind(root, train=train) for train in (True, False)]
    except (OSError, RuntimeError) as e:
        refuse(f'--data {name} is not in --root {root} and cannot be fetched ({e}): put {kind.filename} '
               f'from {kind.url} there, or unpack it to {os.path.join(root, kind.base_folder)}')
    train, test = (part(resize(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), res), s.targets)
                   for s in splits)
    return train, test, splits[0].classes, []


def idx(path):
    """An array of an idx file, gzipped or not."""
    with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as f:
        raw = f.read()
    shape = np.frombuffer(raw, '>i4', raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def fashion(root, res):
    """Fashion-MNIST, 28 px padded to 32 and repeated to RGB, from --root or Debian's package."""
    names = [f'{s}-{kind}' for s in ('train', 't10k') for kind in ('images-idx3-ubyte', 'labels-idx1-ubyte')]
    places = [root, os.path.join(root, 'FashionMNIST', 'raw'), FASHION]
    for place in places:
        paths = [next((p for p in (f'{place}/{n}', f'{place}/{n}.gz') if os.path.exists(p)), None) for n in names]
        if all(paths):
            break
    else:
        refuse(f'--data fashion-mnist: its four idx files are in none of {", ".join(places)}; get them with '
               "'apt install dataset-fashion-mnist' or from https://github.com/zalandoresearch/fashion-mnist")
    x, y, x_test, y_test = (torch.from_numpy(idx(p).copy()) for p in paths)

    def image(x):
        return resize(F.pad(x, (2, 2, 2, 2))[:, None].repeat(1, 3, 1, 1), res)
    classes = ['t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']
    return part(image(x), y.long()), part(image(x_test), y_test.long()), classes, []


def emoji(name, res):
    """The bundled atlases of data/emoji: all emoji at 32 px in 9 Unicode groups, or 100 faces at 128 px."""
    try:
        with open(f'{HERE}/emoji/emoji.json') as f:
            info = json.load(f)
        sheet = np.asarray(Image.open(f'{HERE}/emoji/{name}.png').convert('RGB'))
    except FileNotFoundError as e:
        refuse(f'--data {name}: {e.filename} is missing; make it with python data/make_emoji.py')
    s = info['sets'][name]
    t, n = s['size'], len(s['class'])
    grid = sheet.reshape(sheet.shape[0] // t, t, sheet.shape[1] // t, t, 3)        # [rows, t, columns, t, 3]
    tiles = grid.transpose(0, 2, 4, 1, 3).reshape(-1, 3, t, t)[:n]
    whole = part(resize(torch.from_numpy(tiles.copy()), res), s['class'], s['base'], np.array(s['plain'], bool))
    if 'split' not in s:
        return whole, None, info['classes'], []
    train, test = (pick(whole, np.flatnonzero(np.array(s['split']) == which)) for which in ('train', 'test'))
    return train, test, ['face'], []


def square(im, res, crop):
    """An RGB PIL image as uint8 [3, res, res], cropped to its centre or padded with white, antialiased."""
    if crop == 'centre':
        im = ImageOps.fit(im, (res, res), Image.LANCZOS)
    else:
        im = ImageOps.pad(im, (res, res), Image.LANCZOS, color=(255, 255, 255))
    return np.asarray(im).transpose(2, 0, 1)


def rgb(im):
    """Any PIL image as RGB, upright, transparency over white, 16-bit scaled; and a word for what was converted."""
    kind = im.mode
    turned = im.getexif().get(0x0112, 1) != 1
    im = ImageOps.exif_transpose(im)
    if im.mode.startswith('I') or im.mode == 'F':             # 16-bit and float greys: PIL's convert would clip them
        x = np.asarray(im).astype(np.float64)
        x = x / 257 if kind.startswith('I;16') or x.max() > 255 else x
        im = Image.fromarray(x.round().clip(0, 255).astype(np.uint8))
    if im.mode in ('LA', 'PA', 'RGBA', 'La', 'RGBa') or 'transparency' in im.info:
        im = im.convert('RGBA')
        white = Image.new('RGBA', im.size, (255, 255, 255, 255))
        im = Image.alpha_composite(white, im)
    return im.convert('RGB'), kind + (', turned by EXIF' if turned else '')


def listing(path):
    """(name inside, opener) of every file in a folder or zip, sorted; hidden files and folders are passed over."""
    if os.path.isdir(path):
        names, seen = [], set()
        for d, folders, files in os.walk(path, followlinks=True):
            if os.path.realpath(d) in seen:                    # a link back to where we have been
                folders.clear()
                continue
            seen.add(os.path.realpath(d))
            names += [os.path.relpath(os.path.join(d, f), path) for f in files]
        opener = lambda name: open(os.path.join(path, name), 'rb').read()
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as e:
            refuse(f'--data {path} is neither a folder nor a readable zip ({e})')
        names, opener = [n for n in archive.namelist() if not n.endswith('/')], archive.read
    visible = [n for n in names
               if not any(p.startswith('.') or p == '__MACOSX' for p in n.replace('\\', '/').split('/'))]
    return sorted(visible), opener


def folder(path, res, crop, strict):
    """Every readable image of a folder or zip; the first folder below the common one is the class."""
    names, opener = listing(path)
    names = [n for n in names if n.lower().endswith(ENDINGS + HEIC)]

    def decode(name):
        if name.lower().endswith(HEIC):
            return None, 'HEIC: export it as JPEG or PNG first'
        try:
            im, kind = rgb(Image.open(io.BytesIO(opener(name))))
            return square(im, res, crop), f'{kind}{"" if im.width == im.height else ", not square"}'
        except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile,
                Image.DecompressionBombError) as e:            # RuntimeError: an encrypted member of a zip
            return None, str(e) or type(e).__name__
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:                  # PIL decodes outside the GIL
        decoded = list(pool.map(decode, names))
    good = [(n, x) for n, (x, _) in zip(names, decoded) if x is not None]
    bad = [f'{n} ({why})' for n, (x, why) in zip(names, decoded) if x is None]
    if bad and strict:
        refuse(f'--strict: {len(bad)} of {len(names)} images in {path} cannot be read: {"; ".join(bad[:5])}')
    if not good:
        refuse(f'--data {path} holds no image that can be read ({", ".join(ENDINGS)})'
               f'{": " if bad else ""}{"; ".join(bad[:5])}')
    kinds = collections.Counter(why for x, why in decoded if x is not None)
    report = [f'{path}: {len(good)} images read: ' + '; '.join(f'{n} x {k}' for k, n in kinds.most_common())]
    report += [f'{len(bad)} skipped, not readable: ' + '; '.join(bad[:20])] if bad else []
    directories = [os.path.dirname(n.lstrip('/')) for n, _ in good]
    common = os.path.commonpath(directories) if all(directories) else ''
    kind = [os.path.relpath(d or '.', common or '.').split(os.sep)[0] for d in directories]
    classes = sorted(set(kind))
    whole = part(torch.from_numpy(np.stack([x for _, x in good])), [classes.index(k) for k in kind])
    return whole, None, classes, report


def batch(images, index=None, flip=None):
    """Rows [n] (default: all) of uint8 images on their device as float [-1, 1] [n, 3, H, W] channels_last.

    flip [n]: mirrored where true."""
    x = images if index is None else images[torch.as_tensor(index, device=images.device)]
    if flip is not None:
        flip = torch.as_tensor(flip, device=images.device)[:, None, None, None]
        x = torch.where(flip, x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last).float() / 127.5 - 1


def save_grid(path, images, columns=8):
    """Write uint8 images [N, 3, H, W] as one PNG, left to right, top to bottom, beside its place and then renamed."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * columns, h, w, c), 255, np.uint8)
    sheet[:n] = images.cpu().permute(0, 2, 3, 1).numpy()
    sheet = sheet.reshape(rows, columns, h, w, c).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)
    Image.fromarray(sheet).save(f'{path}.tmp', 'PNG')
    os.replace(f'{path}.tmp', path)
