"""Data sets as one uint8 tensor: CIFAR, Fashion-MNIST, the bundled emoji, the 100-shot sets, and any folder or zip of
images. Large ones (ImageNet, FFHQ, LSUN, any folder) are converted to one file each, out of which batches are read.

Use:
    import numpy, os, images                                  # data.images inside the repository
    from PIL import Image
    os.makedirs('photos', exist_ok=True)
    for i in range(10):
        Image.fromarray(numpy.random.randint(0, 256, (40, 50, 3), 'uint8')).save(f'photos/{i}.png')
    data = images.load('photos', res=32, frac=.5)             # data.images uint8 [5, 3, 32, 32], data.labels [5]
    x = images.batch(data.images, [0, 3])                     # float [-1, 1] [2, 3, 32, 32]
    big = images.load(images.convert('photos', res=64), res=64)                    # the same, read as it is indexed
    for x in images.feed(big.images, [[0, 3], [2, 1, 4]], 'cpu'):                  # uint8 [2, 3, 64, 64], [3, ...]
        print(images.batch(x).shape)
    images.suggest_res('photos')                                                   # 32, from the sizes of the files

A subset is a prefix of one seeded permutation, stratified by class, so that 10 % lies inside 20 %.  Images of one group
(the variants of one emoji) are never cut apart.  What the subset leaves out is held out.  Sub-folders are classes,
or the labels of a dataset.json are, as in the zips of StyleGAN2-ADA.

To convert (killed, the same command continues):
    python data/images.py tiny-imagenet --root datasets --res 64                   # out of tiny-imagenet-200.zip
    python data/images.py imagenet --root /data/imagenet --res 128                 # out of train/ and val/
    python data/images.py ffhq --root datasets --res 256                           # out of images1024x1024/
    python data/images.py photos/ --res 256                                        # then --data datasets/photos-256
"""
import argparse
import collections
import contextlib
import datetime
import glob
import gzip
import hashlib
import io
import json
import os
import re
import sys
import time
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
SHOTS = {f'100-shot-{what}': 100 for what in ('obama', 'grumpy_cat', 'panda', 'bridge_of_sighs', 'medici_fountain',
                                              'temple_of_heaven', 'wuzhen')}
SHOTS |= {'AnimalFace-cat': 160, 'AnimalFace-dog': 389}       # images published with DiffAugment (Zhao et al. 2020)
CONVERTED = ('tiny-imagenet', 'imagenet')
NAMES = ('cifar10', 'cifar100', 'fashion-mnist', 'emoji', 'emoji-faces', *SHOTS, *CONVERTED, 'ffhq', 'lsun-cat')
CLOTHES = ['t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']
TINY = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
SHOT = 'https://data-efficient-gans.mit.edu/datasets'
FFHQ = ('ffhq/images1024x1024', 'images1024x1024', 'ffhq/thumbnails128x128', 'ffhq', 'thumbnails128x128')
CHUNK = 1024                                                  # files of a conversion between two records of it
ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.ppm', '.pgm')
HEIC = ('.heic', '.heif', '.avif')


def add_flags(parser, experiments=None):
    """The flags that choose and cut a data set; returns the parser."""
    a = parser.add_argument
    a('--data', required=True, metavar='NAME|FOLDER|ZIP',
      help=f"{', '.join(NAMES)}, images (sub-folders are classes), or the folder of a converted set")
    a('--root', default='datasets', help='where downloaded and converted data sets lie')
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

    images uint8 [N, 3, res, res], labels int64 [N], classes (their names), holdout uint8 [M, ...] and holdout_labels
    [M] or None, ref uint8 [R, ...] with ref_name, index (chosen rows of the whole set), fingerprint (hash), report
    (sentences), name, total. Images are tensors, or Rows of a converted set. plain: one skin tone per glyph of the
    emoji set, for class-conditional use. Exits 2 with a sentence on bad input."""
    data, count = spelt(data), share(frac)
    if res < 8:
        refuse(f'--res {res} is too small: use 8 or more')
    train, test, classes, report = read(data, root, res, crop, strict)
    if plain and train['plain'] is not None:
        train = pick(train, np.flatnonzero(train['plain']))
    n = len(train['images'])
    if n != SHOTS.get(data, n):
        report.append(f'warning: {n} images of {data}, {SHOTS[data]} were published')
    keep, left = cut(train, count if isinstance(count, int) else int(round(count * n, 6)), seed, subset, holdout)
    if not len(keep):
        refuse(f'--frac {frac} leaves none of the {n} images: use a larger share, or a number of images')
    chosen = pick(train, keep)
    held = test if test and not holdout else pick(train, left)
    few = data == 'emoji-faces'                               # few-shot (the paper's 5.3): scores against the shots
    which = ref if ref != 'auto' else 'test' if test and not few else 'all' if unsorted(data) else 'train'
    if which == 'test' and not test:
        refuse(f'--ref test: {data} has no test split; use --ref train or --ref all')
    name = data if data in NAMES else os.path.basename(data.rstrip('/'))
    reference = {'train': chosen, 'test': test, 'all': train}[which]['images']
    x, y = chosen['images'], chosen['labels']
    content = x.fingerprint.encode() if isinstance(x, Rows) else x.numpy().tobytes()
    fingerprint = hashlib.sha256(content + y.numpy().tobytes()).hexdigest()[:16]
    report.append(f'{name}: {len(keep)} of {n} training images at {res} px, {len(classes)} classes, '
                  f'{len(held["labels"])} held out, scores against {which} ({len(reference)})')
    return types.SimpleNamespace(
        name=name, images=x, labels=y, classes=classes, holdout=held['images'] if len(held['labels']) else None,
        holdout_labels=held['labels'] if len(held['labels']) else None, ref=reference, ref_name=f'{name}-{which}',
        index=keep.tolist(), fingerprint=fingerprint, report=report, total=n)


def names(data, root='datasets', res=32):
    """The class names of --data without its images, as many as `load` has (cifar: numbers, its names are not here).

    Exits 2 with a sentence when the set is not there."""
    data = spelt(data)
    if data in ('cifar10', 'cifar100'):
        return [str(i) for i in range(int(data[5:]))]
    if data in ('fashion-mnist', 'emoji-faces'):
        return CLOTHES if data == 'fashion-mnist' else ['face']
    if data == 'emoji':
        return read_json(f'{HERE}/emoji/emoji.json').get('classes') or emoji(data, res)[2]
    known = read_json(f'{place(data, root, res)}/set.json').get('classes')
    if known or data != 'tiny-imagenet' and is_set(data):
        return known or converted(data, root, res, 'centre', False)[2]
    return source(data, root)[1]


def suggest_res(data, root='datasets', least=32, most=256):
    """The resolution of --data where --res is not given: that of a named or converted set; of a folder or zip the
    largest power of two up to the median shorter side, within least and most.

    Reads the heads of some files. Exits 2 with a sentence when the set is not there."""
    data = spelt(data)
    if data in NAMES or unsorted(data):
        small = {'emoji-faces': 128, 'tiny-imagenet': 64, 'imagenet': 128}
        return small.get(data, 256 if data in SHOTS or unsorted(data) else 32)
    if known := read_json(f'{data}/set.json').get('res'):
        return known
    splits, _, opener = source(data, root)
    sides = [min(size) for size in survey(splits['train'][0], opener)]
    return min(most, max(least, 2 ** int(np.log2(np.median(sides or [least])))))


def survey(names, opener, most=500):
    """(width, height) of up to `most` of the images, evenly spread, from their heads; unreadable ones are left out."""
    sizes = []
    for name in names[::-(-len(names) // most)]:
        with contextlib.suppress(Exception):                  # of every kind, see decode
            sizes.append(Image.open(io.BytesIO(opener(name))).size)
    return sizes


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
    kind = labels[first][order]
    count = np.unique(kind, return_counts=True)[1]
    rank = np.arange(len(ids)) - np.repeat(np.cumsum(count) - count, count)        # within each class
    key = np.empty(len(ids))
    key[np.argsort(kind, kind='stable')] = (rank + .5) / np.repeat(count, count)
    return ids[order[np.argsort(key, kind='stable')]]


def cut(train, count, seed, subset, holdout):
    """Rows to train on and rows left out: whole groups of the permutation while they fit into `count` images."""
    groups, labels = train['groups'], train['labels'].numpy()
    order = np.unique(groups) if subset == 'first' else permutation(labels, groups, seed)
    ids, size = np.unique(groups, return_counts=True)
    total = np.cumsum(size[np.searchsorted(ids, order)])
    if holdout is not None and not 0 < holdout < len(groups):
        refuse(f'--holdout {holdout} is not between 1 and {len(groups) - 1}: choose fewer than the images of the set')
    free = total[-1] - (holdout or 0)                         # held-out groups come from the end of the permutation
    k = np.searchsorted(total, min(count, free), side='right')
    k = max(k, 1) if count and free >= total[0] else k

    k2 = np.searchsorted(total, free, side='right') if holdout else k
    return tuple(np.flatnonzero(np.isin(groups, chosen)) for chosen in (order[:k], order[k2:]))


def part(images, labels=None, groups=None, plain=None):
    """One split: images uint8 [N, 3, H, W], labels int64 [N], groups [N], plain bool [N] or None."""
    n = len(images)
    labels = torch.zeros(n, dtype=torch.int64) if labels is None else torch.as_tensor(labels, dtype=torch.int64)
    groups = np.arange(n) if groups is None else np.asarray(groups)
    return {'images': images, 'labels': labels, 'groups': groups, 'plain': plain}


def pick(split, rows):
    x = split['images']
    return {'images': x.part(rows) if isinstance(x, Rows) else x[rows],
            'labels': split['labels'][rows], 'groups': split['groups'][rows], 'plain': None}


def read(data, root, res, crop, strict):
    """train, test or None, class names, report of a data set by name or path."""
    if data in ('cifar10', 'cifar100'):
        return cifar(data, root, res)
    if data == 'fashion-mnist':
        return fashion(root, res)
    if data in ('emoji', 'emoji-faces'):
        return emoji(data, res)
    if data == 'tiny-imagenet':
        if not int(os.environ.get('RANK', 0)) and not os.path.exists(f'{place(data, root, res)}/set.json'):
            convert(data, root, res, crop, strict=strict)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    if is_set(data):
        return converted(data, root, res, crop, strict)
    if data in SHOTS and crop == 'pad':
        refuse(f'--crop pad: {data} is resized without a crop, as published; leave it out')
    return folder(data, root, res, 'none' if data in SHOTS else crop, strict)


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
    return part(image(x), y.long()), part(image(x_test), y_test.long()), CLOTHES, []


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
    """An RGB PIL image as uint8 [3, res, res], cropped to its centre, padded with white or squeezed, antialiased."""
    if crop == 'centre':
        im = ImageOps.fit(im, (res, res), Image.LANCZOS)
    elif crop == 'none':
        im = im.resize((res, res), Image.LANCZOS)
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
            below = '' if d == path else os.path.relpath(d, path)
            names += [os.path.join(below, f) for f in files]
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


def pictures(path):
    """As `source`, of a folder or zip: the first folder below the common one is the class, readable or not, unless a
    dataset.json says what is."""
    if not os.path.exists(path):
        refuse(f"--data {path} is neither a folder or zip of images nor one of {', '.join(NAMES)}")
    files, opener = listing(path)
    names = [n for n in files if n.lower().endswith(ENDINGS + HEIC)]
    if not names:
        refuse_lmdb(path, files)
        refuse(f'--data {path} holds no image ({", ".join(ENDINGS)})')
    kinds = numbers(path, names, opener) if 'dataset.json' in files else None
    if kinds is None:
        folders = [os.path.dirname(n.lstrip('/')) for n in names]
        every = set(folders)
        common = os.path.commonpath(every) if all(every) else ''
        kind = {d: os.path.relpath(d or '.', common or '.').split(os.sep)[0] for d in every}
        kinds = [kind[d] for d in folders]
    classes = sorted(set(kinds))
    number = {k: i for i, k in enumerate(classes)}
    return {'train': (names, [number[k] for k in kinds])}, [str(k) for k in classes], opener


def numbers(path, names, opener):
    """The classes of images by NVIDIA's dataset.json, {"labels": [[name, number], ...]}, of none where that is null;
    None for a file of another form."""
    try:
        known = json.loads(opener('dataset.json'))['labels']
    except (ValueError, KeyError, TypeError):
        return None
    try:
        known = dict(known or dict.fromkeys(names, 0))
        return [int(known[n.replace(os.sep, '/')]) for n in names]
    except (ValueError, KeyError, TypeError) as e:
        refuse(f'--data {path}: its dataset.json does not give every image the number of a class ({type(e).__name__}: '
               f'{e}); mend it, or remove it to have folders as classes')


def refuse_lmdb(path, files):
    """Exit code 2 if the images are in an LMDB, with the command that writes them out into a folder of it."""
    inside = next((os.path.dirname(n) for n in files if os.path.basename(n) == 'data.mdb'), None)
    if inside is not None and not os.path.isdir(path):
        refuse(f'--data {path} is a packed LMDB: unpack it to {os.path.splitext(path)[0]}, then the same command again')
    if inside is not None:                                    # 200,000 images of LSUN, as Karras et al. 2020
        command = (f"import lmdb, os; os.mkdir('{path}/images'); [open(f'{path}/images/{{k.hex()}}.webp', 'wb')"
                   f".write(x) for _, (k, x) in zip(range(200000), lmdb.open('{os.path.join(path, inside)}', "
                   "readonly=True, lock=False).begin().cursor())]")
        refuse(f'--data {path} holds an LMDB: pip install lmdb, write its images out with python -c "{command}", then '
               'the same command again')


def decode(name, opener, shape):
    """(uint8 [3, res, res] of an image file, what it was), or (None, why not); shape: of a PIL image, as `square`."""
    if name.lower().endswith(HEIC):
        return None, 'HEIC: export it as JPEG or PNG first'
    try:
        im, kind = rgb(Image.open(io.BytesIO(opener(name))))
        return shape(im), f'{kind}{"" if im.width == im.height else ", not square"}'
    except Exception as e:                                    # PIL raises of every kind on rubbish, struct.error too
        return None, (str(e) or type(e).__name__).split(' <')[0]                   # without the address of a BytesIO


def folder(data, root, res, crop, strict):
    """Every readable image of a folder or zip, or of a few-shot set."""
    splits, classes, opener = source(data, root)
    names, labels = splits['train']
    shape = lambda im: (square(im, res, crop), im.size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:                  # PIL decodes outside the GIL
        decoded = list(pool.map(lambda name: decode(name, opener, shape), names))
    good = [(*x, n, y) for n, y, (x, _) in zip(names, labels, decoded) if x is not None]
    bad = [f'{n} ({why})' for n, (x, why) in zip(names, decoded) if x is None]
    if bad and strict:
        refuse(f'--strict: {len(bad)} of {len(names)} images in {data} cannot be read: {"; ".join(bad[:5])}')
    if not good:
        refuse(f'--data {data} holds no image that can be read ({", ".join(ENDINGS)}): {"; ".join(bad[:5])}')
    kinds = collections.Counter(why for x, why in decoded if x is not None)
    report = [f'{data}: {len(good)} images read: ' + '; '.join(f'{n} x {k}' for k, n in kinds.most_common())]
    x, sizes, names, labels = zip(*good)
    x = np.stack(x)                                           # [N, 3, res, res]
    report += skipped(bad) + measured(sizes, res, crop) + remarks(x, names)
    return part(torch.from_numpy(x), labels), None, classes, report


def measured(sizes, res, crop):
    """Sentences on images by their sizes, (width, height) each: how large, what --crop and --res do to them."""
    short = np.array([min(size) for size in sizes])
    ratio = np.array([max(size) for size in sizes]) / short
    odd, small = int((ratio > 1).sum()), int((short < res).sum())
    fate = {'centre': 'cut to their centre', 'pad': 'padded with white', 'none': 'squeezed'}[crop]
    lines = [f'shorter sides of {len(sizes)} images: {short.min()} to {short.max()} px, median {np.median(short):g}; '
             + (f'{odd} not square ({ratio.max():.3g} : 1), {fate}' if odd else 'all square')]
    if small:
        lines.append(f'warning: {small} of these {len(sizes)} are smaller than --res {res} and were enlarged')
    if len(sizes) < 10:
        lines.append(f'warning: {len(sizes)} images are few, a GAN learns them by heart')
    return lines


def remarks(x, names):
    """Sentences on uint8 images x [N, 3, res, res]: which are the same, and whether all are grey."""
    same, lines = collections.defaultdict(list), []
    for name, row in zip(names, x):
        same[hashlib.sha256(row.tobytes()).digest()].append(name)
    if len(same) < len(x):
        twins = [' = '.join(group[:3]) for group in same.values() if len(group) > 1]
        lines.append(f'warning: {len(x) - len(same)} duplicates at {x.shape[2]} px: {"; ".join(twins[:10])}')
    if all((row == row[:1]).all() for row in x):
        lines.append('warning: all images are grey')
    return lines


def skipped(bad):
    return [f'{len(bad)} skipped, not readable: ' + '; '.join(bad[:20])] if bad else []


def tiny(root):
    """As `source`, of the archive of Tiny ImageNet, zipped or not."""
    path = next((p for p in (f'{root}/tiny-imagenet-200.zip', f'{root}/tiny-imagenet-200') if os.path.exists(p)), None)
    if path is None:
        refuse(f'--data tiny-imagenet is not in --root {root}: get {TINY} and put it at {root}/tiny-imagenet-200.zip')
    names, opener = listing(path)
    try:
        top = next(n for n in names if os.path.basename(n) == 'wnids.txt')[:-len('wnids.txt')]
        classes = sorted(opener(f'{top}wnids.txt').decode().split())
        number = {k: i for i, k in enumerate(classes)}
        names = [n[len(top):] for n in names if n.lower().endswith('.jpeg')]
        lines = [line.split('\t') for line in opener(f'{top}val/val_annotations.txt').decode().splitlines()]
        kind = {'train': {n: n.split('/')[1] for n in names if n.startswith('train/')},
                'val': {f'val/images/{line[0]}': line[1] for line in lines}}
        splits = {k: tuple(zip(*((n, number[of[n]]) for n in names if n in of))) for k, of in kind.items()}
        if not all(splits.values()):
            raise ValueError('a split without images')
    except (StopIteration, KeyError, IndexError, ValueError, OSError, zipfile.BadZipFile, zlib.error) as e:
        refuse(f'--data tiny-imagenet: {path} is not the whole archive ({type(e).__name__}: {e}): get {TINY} again')
    return splits, classes, lambda name: opener(top + name)


def imagenet(root):
    """As `source`, of the class folders of ImageNet."""
    path = next((p for p in (root, f'{root}/imagenet') if os.path.isdir(f'{p}/train')), root)
    names = {split: [f'{split}/{n}' for n in listing(f'{path}/{split}')[0] if n.lower().endswith(ENDINGS + HEIC)]
             for split in ('train', 'val') if os.path.isdir(f'{path}/{split}')}
    kind = {n: n.split('/')[1] if n.count('/') > 1 else None for split in names.values() for n in split}
    classes = sorted({kind[n] for n in names.get('train', ()) if kind[n]})
    number = {k: i for i, k in enumerate(classes)}
    odd = [n for n, k in kind.items() if k not in number]
    if odd or not classes:
        why = f'{odd[0]} is in no class folder of train' if odd else 'there is no train with class folders'
        refuse(f'--data imagenet: in {path} {why}; --root should hold train/n01440764/*.JPEG and '
               'val/n01440764/*.JPEG, of the same classes')
    return ({split: (found, [number[kind[n]] for n in found]) for split, found in names.items() if found}, classes,
            lambda name: open(f'{path}/{name}', 'rb').read())


def source(data, root):
    """What there is to convert: {split: (names, labels)}, class names, opener(name)."""
    if data in CONVERTED:
        return {'tiny-imagenet': tiny, 'imagenet': imagenet}[data](root)
    path = locate(data, root)
    splits, classes, opener = pictures(path)
    if path == data:
        return splits, classes, opener
    return {'train': (splits['train'][0], [0] * len(splits['train'][0]))}, [data], opener    # 00000/ is no class


def spelt(data):
    """The name of a few-shot set as it was published, whatever its case; another --data as it is."""
    return {name.lower(): name for name in SHOTS}.get(data.lower(), data)


def unsorted(data):
    """Whether --data is ffhq or lsun-CATEGORY: many images, of no classes, to be converted."""
    return bool(re.fullmatch('ffhq|lsun-[a-z_]+', data))


def large(data):
    """Whether --data names a set that is read as it was converted."""
    return data in CONVERTED or unsorted(data)


def locate(data, root):
    """The folder or zip of --data: for a few-shot set, ffhq and lsun-* in --root, else itself. Exits 2 without one."""
    if data not in SHOTS and not unsorted(data):
        return data
    paths = [f'{root}/{top}{zipped}' for top in (FFHQ if data == 'ffhq' else [data]) for zipped in ('', '.zip')]
    path = next((p for p in paths if os.path.exists(p)), None)
    if path is None:
        where = (f'{SHOT}/{data}.zip' if data in SHOTS else 'images1024x1024 of https://github.com/NVlabs/ffhq-dataset'
                 if data == 'ffhq' else f'{data[5:]} with https://github.com/fyu/lsun')
        refuse(f'--data {data} is not in --root {root}: get {where} and put it at {root}/{data}.zip, or unpacked at '
               f'{root}/{data}/')
    return path


def is_set(data):
    """Whether --data is to be read from a converted set, be it finished or not."""
    return large(data) or any(os.path.exists(f'{data}/{file}') for file in ('set.json', 'train.part.json'))


def place(data, root, res):
    """Where the converted set of --data lies, or will lie."""
    if is_set(data) and not large(data):
        return data
    return f"{root}/{os.path.basename(os.path.abspath(data)).removesuffix('.zip')}-{res}"


def central(im, res):
    """The central square of an RGB PIL image as uint8 [3, res, res], as torchvision's CenterCrop and Resize."""
    s = min(im.size)
    x, y = (int(round((d - s) / 2)) for d in im.size)
    return np.asarray(im.crop((x, y, x + s, y + s)).resize((res, res), Image.BILINEAR)).transpose(2, 0, 1)


def read_json(path):
    """What a JSON file holds, {} if it is not there or torn."""
    with contextlib.suppress(OSError, ValueError), open(path) as f:
        return json.load(f)
    return {}


def write_json(path, x):
    with open(f'{path}.tmp', 'w') as f:
        json.dump(x, f, indent=1)
        f.flush(), os.fsync(f.fileno())
    os.replace(f'{path}.tmp', path)


def convert(data, root='datasets', res=32, crop='centre', out=None, strict=False, workers=None):
    """Writes the images of a name, folder or zip as a converted set to `out` (default: ROOT/NAME-RES); returns that.

    There: set.json, and for train and val SPLIT.npy uint8 [N, 3, res, res] and SPLIT-labels.npy int64 [N]. Killed, it
    continues where it was, to the same bytes in the end. Exits 2 with a sentence on bad input."""
    named, out = large(data), out or place(data, root, res)
    if not named and (data in NAMES or is_set(data)):
        refuse(f'{data} needs no conversion: train with --data {data} as it is')
    if named and crop == 'pad':
        refuse(f'--crop pad: {data} is cropped to its centre, as published; leave it out')
    if res < 8 or workers is not None and workers < 1:
        refuse(f'--res {res} or --workers {workers} is too small: use 8 or more px, 1 or more threads')
    if os.path.realpath(out) == os.path.realpath(data):
        refuse(f'--out {out} is the folder of the images: name another place')
    splits, classes, opener = source(data, root)
    bilinear = data in CONVERTED
    shape = (lambda im: central(im, res)) if bilinear else lambda im: square(im, res, crop)
    name = os.path.basename(place(data, root, res))
    info = {'name': name, 'res': res, 'source': f"{name}: {crop}, {'bilinear' if bilinear else 'Lanczos'}"}
    info['plan'] = hashlib.sha256(json.dumps([CHUNK, info, classes, splits]).encode()).hexdigest()
    jobs = dict(load=lambda name: decode(name, opener, shape), workers=workers or os.cpu_count() or 1, strict=strict)
    try:
        os.makedirs(out, exist_ok=True)
        with open(f'{out}/lock', 'w') as lock:
            with contextlib.suppress(ImportError, OSError):    # of Windows, and of file systems without locks
                import fcntl
                fcntl.flock(lock, fcntl.LOCK_EX)              # a second run waits, then finds the set
            if read_json(f'{out}/set.json').get('plan') != info['plan']:
                sizes = survey(splits['train'][0], opener)
                info['notes'] = measured(sizes, res, crop) if sizes else []
                write(out, info, classes, splits, jobs)
            for path in glob.glob(f'{glob.escape(out)}/*.part.json'):
                os.remove(path)
    except OSError as e:
        refuse(f'--out {out} cannot be written ({e}): make room, and the same command continues, or name another place')
    return out


def write(out, info, classes, splits, jobs):
    """The files of a conversion: all rows first, set.json last, whose presence says that the others are whole."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(f'{out}/set.json')
    done = {split: append(f'{out}/{split}', names, info, **jobs) for split, (names, _) in splits.items()}
    if not done['train']['rows']:
        refuse(f'{info["name"]} holds no image that can be read: {done["train"]["skipped"][:5]}')
    info['splits'] = {}
    for split, state in done.items():
        lost, path = {name for name, _ in state['skipped']}, f'{out}/{split}'
        np.save(f'{path}-labels.npy', np.array([y for n, y in zip(*splits[split]) if n not in lost], np.int64))
        with open(f'{path}.part', 'r+b') as f:
            header(f, state['rows'], info['res'])
            f.flush(), os.fsync(f.fileno())
        os.replace(f'{path}.part', f'{path}.npy')
        info['splits'][split] = {'n': state['rows'], 'labels': f'{split}-labels.npy',
                                 'digest': hashlib.sha256(''.join(state['chunks']).encode()).hexdigest(),
                                 'skipped': [f'{name} ({why})' for name, why in state['skipped']]}
    write_json(f'{out}/set.json', {**info, 'classes': classes})


def append(path, names, info, load, workers, strict):
    """Writes the images of files to path.part, on from the last whole CHUNK of files; returns the record of it."""
    part, size, head = f'{path}.part', 3 * info['res'] ** 2, header(io.BytesIO(), 0, info['res'])
    state = read_json(f'{part}.json')
    whole = state.get('plan') == info['plan']
    if whole and not os.path.exists(part) and os.path.exists(f'{path}.npy'):
        os.replace(f'{path}.npy', part)                       # this split was finished, the set was not
    if not whole or not os.path.exists(part) or os.path.getsize(part) < head + state['rows'] * size:
        state = {'plan': info['plan'], 'files': 0, 'rows': 0, 'skipped': [], 'chunks': []}
        write_json(f'{part}.json', state)                     # first: an old record is not to meet new rows
    first, chunk = state['files'], hashlib.sha256()
    say = meter(path, first, len(names))
    with open(part, 'ab') as f, ThreadPoolExecutor(workers) as pool:
        f.truncate(head + state['rows'] * size)               # what came after the record; the head is written last
        for i, (x, why) in enumerate(ahead(pool, load, names[first:], 4 * workers), first + 1):
            if x is None:
                state['skipped'].append([names[i - 1], why])
                if strict:
                    break
            else:
                state['rows'] += 1
                raw = x.tobytes()
                f.write(raw), chunk.update(raw)
            if i % CHUNK == 0 or i == len(names):
                f.flush(), os.fsync(f.fileno())
                state['files'], state['chunks'] = i, state['chunks'] + [chunk.hexdigest()]
                write_json(f'{part}.json', state)
                chunk = hashlib.sha256()
            say(i)
    if strict and state['skipped']:
        refuse('--strict: {} cannot be read ({})'.format(*state['skipped'][0]))
    return state


def header(f, rows, res):
    """Writes the head of a .npy file, which numpy pads to one length for any number of rows; returns that length."""
    f.seek(0)
    np.lib.format.write_array_header_1_0(f, {'descr': '|u1', 'fortran_order': False, 'shape': (rows, 3, res, res)})
    return f.tell()


def ahead(pool, function, items, n):
    """Yields function(item) for each item, in order, n of them under way."""
    jobs = collections.deque()
    for item in items:
        jobs.append(pool.submit(function, item))
        if len(jobs) == n:
            yield jobs.popleft().result()
    while jobs:
        yield jobs.popleft().result()


def meter(what, first, total):
    """say(i): how far it is, on stderr: a bar if that is a terminal, else a line every ten seconds."""
    live, begun = sys.stderr.isatty(), time.monotonic()
    said = begun

    def say(i):
        nonlocal said
        now = time.monotonic()
        if i == total or now - said > (.2 if live else 10):
            said, rate = now, (i - first) / (now - begun + 1e-9)
            bar = f"\r[{'#' * (20 * i // total):<20}] " if live else ''
            left = datetime.timedelta(seconds=int((total - i) / rate))
            print(f'{bar}{what} {i}/{total}, {rate:.0f} images/s, {left} left ', file=sys.stderr, flush=True,
                  end='' if live and i < total else '\n')
    return say


def converted(data, root, res, crop, strict):
    """As `read`, of a converted set by name or folder: of its images nothing is read."""
    path = place(data, root, res)
    info = read_json(f'{path}/set.json')
    if not info:
        locate(data, root)
        fix = f'run python data/images.py {data} --root {root} --res {res}'
        refuse(f'--data {data} is not converted to --res {res} in --root {root}: {fix}' if large(data) else
               f'--data {data} is a conversion that was cut off: the command that began it continues')
    if info['res'] != res:
        refuse(f'--res {res}: {data} holds images of {info["res"]} px; use --res {info["res"]}, or convert it anew')
    if crop == 'pad':
        refuse(f'--crop pad: {data} is converted and square already; leave it out')
    splits, report = {}, []
    for split, entry in info['splits'].items():
        if strict and entry['skipped']:
            refuse(f'--strict: {len(entry["skipped"])} images of {path} could not be read: {entry["skipped"][0]}')
        try:
            x, y = np.load(f'{path}/{split}.npy', mmap_mode='r'), np.load(f'{path}/{entry["labels"]}')
        except (OSError, ValueError, EOFError) as e:
            refuse(f'--data {data}: {path} is damaged ({e}): remove it and convert it again')
        splits[split] = part(Rows(np.asarray(x), np.arange(len(x)), entry['digest']), y)
        report += skipped(entry['skipped'])
    return splits['train'], splits.get('val'), info['classes'], report + info.get('notes', [])


class Rows:
    """Rows `index` of a memory-mapped uint8 array `base` [N, 3, H, W], read when they are indexed.

    digest: a hash of all content. The map is read-only: the processes of a machine share one copy, the page cache."""
    device, dtype = torch.device('cpu'), torch.uint8

    def __init__(self, base, index, digest):
        self.base, self.index, self.digest = base, index, digest
        self.shape = torch.Size((len(index), *base.shape[1:]))
        self.nbytes = self.shape.numel()

    def __len__(self):
        return len(self.index)

    def __getitem__(self, rows):
        return self.read(rows)

    def at(self, rows):
        return self.index[rows.numpy() if torch.is_tensor(rows) else rows]         # numpy takes tensor([1]) for a 1

    def read(self, rows, pinned=False):
        """A tensor [n, 3, H, W] of the rows: numbers (array, list or tensor), a slice or a mask."""
        index = self.at(rows)
        x = torch.empty((*index.shape, *self.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        np.take(self.base, index, 0, x.numpy(), 'clip')       # 'raise', the default, would buffer all of x
        return x

    def part(self, rows):
        """Rows of these rows."""
        return Rows(self.base, self.at(rows), self.digest)

    @property
    def fingerprint(self):
        """A hash of the content and choice of rows, which reads none of them."""
        return hashlib.sha256(self.digest.encode() + self.index.tobytes()).hexdigest()

    def to(self, device):
        """Itself for the CPU, else a tensor there."""
        if torch.device(device).type == 'cpu':
            return self
        x = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), 4096):
            x[start:start + 4096] = self[start:start + 4096].to(device)
        return x


def fits(images, device):
    """Whether images may live on the device: all but large Rows, which it would fill, and Rows on the CPU."""
    if not isinstance(images, Rows):
        return True
    return device.type == 'cuda' and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2


def feed(images, orders, device='cpu'):
    """Yields uint8 [n, 3, H, W] on the device for each row numbers [n] that `orders` yields, which may have no end.

    What fits is moved there once; of other Rows a thread reads two batches ahead, and ends with the generator."""
    device = torch.device(device)
    if fits(images, device):
        images = images.to(device)
        for index in orders:
            yield images[torch.as_tensor(index, device=images.device)]
        return
    pinned = device.type == 'cuda'
    with ThreadPoolExecutor(1) as pool:
        for x in ahead(pool, lambda index: images.read(index, pinned), orders, 3):
            yield x.to(device, non_blocking=pinned)


def batch(images, index=None, flip=None):
    """Rows [n] (default: all) of uint8 images, on their device, as float [-1, 1] [n, 3, H, W] channels_last.

    flip [n]: mirrored where true."""
    x = images[:] if index is None else images[torch.as_tensor(index, device=images.device)]
    if flip is not None:
        flip = torch.as_tensor(flip, device=x.device)[:, None, None, None]
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


def main(argv=None):
    """Converts a large set, and says what is in it."""
    p = argparse.ArgumentParser(description='Convert images to be read by rows; see the top of this file.')
    a = p.add_argument
    a('data', metavar='NAME|FOLDER|ZIP', help=f"{', '.join(CONVERTED)}, ffhq, lsun-..., or images (folders: classes)")
    a('--root', default='datasets', help='where named sets lie, and where the converted one goes, as ROOT/NAME-RES')
    a('--res', type=int, required=True, help='resolution')
    a('--out', metavar='DIR', help='another place for the converted set')
    a('--crop', choices=['centre', 'pad'], default='centre', help='how images become square')
    a('--strict', action='store_true', help='stop at the first image that cannot be read')
    a('--workers', type=int, help='threads (default: one a core)')
    out = convert(**vars(p.parse_args(argv)))
    info = read_json(f'{out}/set.json')
    for split, entry in info['splits'].items():
        print(f"{out}: {entry['n']} images in {split}", *skipped(entry['skipped']), sep='\n')
    print(*info.get('notes', []), sep='\n')


if __name__ == '__main__':
    main()
