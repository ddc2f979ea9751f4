"""Data sets of images as uint8 tensors: named ones, and every folder or zip of images.

The names are CIFAR, Fashion-MNIST, the bundled emoji, few-shot sets, Tiny ImageNet, ImageNet, FFHQ and LSUN.
A large set is converted to one file once, and batches are read out of that file.

Use:
    import images, os, torch                               # in the repository: from data import images
    os.makedirs('photos', exist_ok=True)
    for i in range(10):
        images.save_grid(f'photos/{i}.png', torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8))
    data = images.load('photos', res=32, frac=.5)          # data.images uint8 [5, 3, 32, 32], data.labels [5]
    x = images.batch(data.images, [0, 3])                  # float in [-1, 1], [2, 3, 32, 32]
    large = images.load(images.convert('photos', res=64), res=64)  # its images stay in a file
    for x in images.feed(large.images, [[0, 3], [2, 1, 4]]):       # uint8 [2, 3, 64, 64], then [3, 3, 64, 64]
        print(images.batch(x).shape)

A subset is a prefix of one seeded permutation of the training images. The permutation is stratified by class.
Hence a subset of 10 % lies inside the one of 20 %, and both hold the classes in the proportions of the whole
set. Images of one group, such as the skin tones of one emoji, are never cut apart. What the subset leaves out
is held out.

Sub-folders are classes, unless a dataset.json gives the labels, as it does in the zips of StyleGAN2-ADA
(Karras et al. 2020).

Conversions. The same command continues one that was killed.
    python data/images.py tiny-imagenet --root datasets --res 64    # out of tiny-imagenet-200.zip
    python data/images.py imagenet --root /data/imagenet --res 128  # out of train/ and val/
    python data/images.py ffhq --root datasets --res 256            # out of images1024x1024/
    python data/images.py photos/ --res 256                         # train with --data datasets/photos-256
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of Ctrl-C during the imports

import argparse
import collections
import contextlib
import dataclasses
import datetime
import errno
import glob
import gzip
import hashlib
import io
import json
import os
import re
import stat
import struct
import sys
import threading
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

# The few-shot sets published with DiffAugment (Zhao et al. 2020), and the number of images of each.
SHOTS = {'100-shot-obama': 100, '100-shot-grumpy_cat': 100, '100-shot-panda': 100,
         '100-shot-bridge_of_sighs': 100, '100-shot-medici_fountain': 100, '100-shot-temple_of_heaven': 100,
         '100-shot-wuzhen': 100, 'AnimalFace-cat': 160, 'AnimalFace-dog': 389}
CONVERTED = ('tiny-imagenet', 'imagenet')
NAMES = ('cifar10', 'cifar100', 'fashion-mnist', 'emoji', 'emoji-faces',
         *SHOTS, *CONVERTED, 'ffhq', 'lsun-cat')
CLOTHES = ['t-shirt', 'trouser', 'pullover', 'dress', 'coat',
           'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']

# The resolution of a named set where it is neither 32 nor, as for photographs without classes, 256.
NATIVE_RES = {'emoji-faces': 128, 'tiny-imagenet': 64, 'imagenet': 128}

# Where the named sets come from, and where they are looked for.
TINY_URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
SHOTS_URL = 'https://data-efficient-gans.mit.edu/datasets'
FASHION = '/usr/share/datasets/fashion-mnist'  # of Debian's package dataset-fashion-mnist
FFHQ = ('ffhq/images1024x1024', 'images1024x1024', 'ffhq/thumbnails128x128', 'ffhq', 'thumbnails128x128')

ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.ppm', '.pgm')
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF', 'PPM')  # of PIL; its EPS would start Ghostscript
MAX_BYTES = 2 ** 28  # of an image file
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million, where PIL begins to warn of bombs
HEIC = ('.heic', '.heif', '.avif')  # skipped, with a word on what to do
MAX_RES = 4096  # as in RANGES

# The bytes that a scan takes for images, beside its result. Large files are decoded one at a time.
MAX_DECODED = 2 ** 30  # of one image
ALL_DECODED = 5 * 2 ** 27  # of all images that are decoded at the same time, unless it is one alone
LARGE_FILE = 2 ** 24

# PIL keeps an image in blocks. Those above 32 MB go back to the system when they are freed. With PIL's own
# 16 MB, which the C library keeps for the thread that had them, eight threads came to hold 4 GB.
with contextlib.suppress(AttributeError):
    Image.core.set_block_size(2 ** 26)

CHUNK = 1024  # files that a conversion reads between two records of its progress
SMALL_SET = 2 ** 27  # bytes of a converted set that is verified when it is loaded, in 30 ms

# What reading a zip that is damaged may raise; RuntimeError is of encrypted files.
BROKEN_ZIP = (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, RuntimeError, OverflowError,
              struct.error, zlib.error)

# The errors of a disk, which no other command line would avoid.
DISK_ERRORS = {getattr(errno, name, None) for name in ('ENOSPC', 'EDQUOT', 'EROFS', 'EIO', 'EFBIG')}


# ---- flags and refusals

# What each number may be.  The intervals are checked where the flags are parsed (loop.check_ranges), --frac
# by `share`.
RANGES = {
    'res': '[8, 4096]',
    'data_seed': '[0, 1e18]',
    'holdout': '[1, 1e12]'}


def add_flags(group, experiments=None):
    """Add the flags of the data: the everyday ones to `group`, the others to `experiments`.

    Both are argparse parsers or argument groups. Without `experiments` all go to `group`. Returns `group`.
    """
    experiments = experiments or group
    what = f'a folder or zip of images (sub-folders are classes), a converted set, or {", ".join(NAMES)}'
    group.add_argument('--data', required=True, metavar='NAME|FOLDER|ZIP', help=what)
    group.add_argument('--root', default='datasets', help='folder of downloaded and converted data sets')
    group.add_argument('--frac', default='1.0',
                       help='share of the training images, 0 < F <= 1, or a whole number of images above 1')
    group.add_argument('--res', type=int,
                       help='width and height of the images in pixels (default: by preset or data)')
    group.add_argument('--mirror', action=argparse.BooleanOptionalAction, default=False,
                       help='mirror half of the images, chosen at random')
    group.add_argument('--check-data', action='store_true',
                       help='look through the data, report and exit; with --aug, draw augmented.png, '
                            'into --out or here')

    add = experiments.add_argument
    add('--data-seed', type=int, default=0, help='seed of the random subset')
    add('--subset', choices=['random', 'first'], default='random',
        help='which images --frac takes; first: those that come first in the files, as released')
    add('--holdout', type=int,
        help='number of images kept from training (default: the test split, else what --frac leaves out)')
    add('--ref', choices=['auto', 'train', 'test', 'all'], default='auto',
        help='images that scores compare with; auto: the test split if there is one, else the training set')
    add('--crop', choices=['centre', 'pad'], default='centre', help='how images become square: cut or padded')
    add('--strict', action='store_true', help='stop at the first image that cannot be read')
    return group


def is_first_rank():
    """Whether this process is rank 0 of a job, or runs alone."""
    return int(os.environ.get('RANK', 0)) == 0


def wait_for_all_ranks():
    """Return when every rank of the job is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def refuse(sentence, code=2, alone=False):
    """Exit with a code. Rank 0 prints the sentence, which names the flag, the value and the fix.

    alone: only this rank knows of the error, and so it prints the sentence whatever its number is.
    """
    if is_first_rank() or alone:
        tell(f'error: {printable(sentence)}')
    raise SystemExit(code)


def tell(text, end='\n'):
    """Print a text on stderr. Where stderr is closed or full, nobody reads it."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def printable(text):
    """The text with an escape such as \\n or \\udcff for each character that a terminal cannot show.

    Names of files may hold any: line ends, the codes that colour a terminal, bytes that are no UTF-8.
    """
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def share(frac):
    """The value of --frac: a float in (0, 1] is a share of the images, an int above 1 is a number of images.

    Exits with code 2 on anything else.
    """
    try:
        value = float(frac)
    except ValueError:
        refuse(f'--frac {frac} is not a number: use a share such as 0.1, or a number of images such as 100')
    if 1 < value < float('inf') and value == int(value):
        return int(value)
    if not 0 < value <= 1:
        refuse(f'--frac {frac} is neither a share in (0, 1] nor a whole number of images above 1')
    return value


# ---- load(): a data set, its subset, what is held out, and the reference of the scores

@dataclasses.dataclass
class Split:
    """N images of a data set, such as its training images.

    images    uint8 [N, 3, H, W], a tensor or Rows
    labels    int64 tensor [N], the number of the class of each image (default: 0)
    groups    integer array [N]; a subset takes all images of a group or none (default: a group per image)
    plain     bool array [N], true for one image of each glyph of the emoji; None for other sets
    """
    images: object
    labels: object = None
    groups: object = None
    plain: object = None

    def __post_init__(self):
        n = len(self.images)
        if self.labels is None:
            self.labels = torch.zeros(n, dtype=torch.int64)
        if self.groups is None:
            self.groups = np.arange(n)
        self.labels = torch.as_tensor(self.labels, dtype=torch.int64)
        self.groups = np.asarray(self.groups)

    def part(self, rows):
        """The split of these rows, an integer array."""
        lazy = isinstance(self.images, Rows)
        images = self.images.part(rows) if lazy else self.images[rows]
        return Split(images, self.labels[rows], self.groups[rows])


def load(data, root='datasets', frac=1., seed=0, subset='random', holdout=None, ref='auto', res=32,
         crop='centre', strict=False, plain=False, verify=False):
    """Load a data set and choose its subset, the images held out and the reference of the scores.

    data      a name of NAMES, a folder or zip of images, or the folder of a converted set
    root      the folder where named sets lie
    frac      a share of the training images or their number, see `share`
    seed, subset, holdout   see `choose_rows`
    ref       'auto', 'train', 'test' or 'all', see `reference_name`
    res       width and height in pixels, 8 or more
    crop      'centre' or 'pad', see `square`
    strict    refuse a set with images that cannot be read
    plain     keep one skin tone of each emoji, for networks that are conditioned on the class
    verify    read all images of a converted set; else its rows are verified when they are read first

    Returns a namespace. Its images are tensors, or Rows where the set is a converted one:
        images, labels             the training images, uint8 [N, 3, res, res], and their classes, int64 [N]
        classes                    the names of all classes
        holdout, holdout_labels    images that training never sees, [M, 3, res, res] and [M]; None if M is 0
        ref, ref_name              the images that scores compare with, [R, 3, res, res], and their name
        index, total               the rows chosen, N ints, out of the `total` rows of the set
        fingerprint                16 hexadecimal digits, which depend on images and labels
        name, report               the name of the set, and a list of sentences on what was found

    Exits with code 2 and one sentence where the set is not there, holds no image, or contradicts an argument.
    """
    data = spelt(data)
    amount = share(frac)
    check_res(res)

    # The whole set. Where `plain` leaves images out, they are neither chosen nor held out.
    train, test, classes, report = read_set(data, root, res, crop, strict, verify)
    if plain and train.plain is not None:
        train = train.part(np.flatnonzero(train.plain))
    n = len(train.images)
    if data in SHOTS and n != SHOTS[data]:
        report.append(f'warning: {n} images of {data}, {SHOTS[data]} were published')

    # The subset, and what training never sees: the test split, or the images that the subset leaves.
    chosen_rows, left_rows = choose_rows(train, count_images(amount, n), seed, subset, holdout)
    if len(chosen_rows) == 0:
        refuse(f'--frac {frac} leaves none of the {n} images: use a larger share, or a number of images')
    chosen = train.part(chosen_rows)
    held_out = test
    if test is None or holdout:
        held_out = train.part(left_rows)
    m = len(held_out.labels)

    # The images that generated ones are compared with.
    name = data if data in NAMES else os.path.basename(data.rstrip('/'))
    reference = reference_name(data, ref, test)
    reference_images = {'train': chosen, 'test': test, 'all': train}[reference].images
    report.append(f'{name}: {len(chosen_rows)} of {n} training images at {res} px, {len(classes)} classes, '
                  f'{m} held out, scores against {reference} ({len(reference_images)})')

    return types.SimpleNamespace(
        name=name, total=n, classes=classes, report=[printable(line) for line in report],
        fingerprint=fingerprint_of(chosen), images=chosen.images, labels=chosen.labels,
        index=chosen_rows.tolist(), holdout=held_out.images if m else None,
        holdout_labels=held_out.labels if m else None, ref=reference_images, ref_name=f'{name}-{reference}')


def check_res(res):
    """Exit with code 2 where no image can have this side."""
    if res < 8:
        refuse(f'--res {res} is too small: use 8 or more')
    if res > MAX_RES:
        refuse(f'--res {res} is too large: use {MAX_RES} or less')


def count_images(amount, n):
    """The number of images that a value of `share` asks for, out of n."""
    if isinstance(amount, int):
        return amount
    return int(round(amount * n, 6))  # .29 * 100 is 28.999999999999996


def reference_name(data, ref, test):
    """What --ref means: 'train' (the subset), 'test' (the test split) or 'all' (all training images)."""
    if ref == 'test' and test is None:
        refuse(f'--ref test: {data} has no test split; use --ref train or --ref all')
    if ref != 'auto':
        return ref
    if data == 'emoji-faces':
        return 'train'  # few-shot sets are scored against their shots (paper, section 5.3)
    if test is not None:
        return 'test'
    if unsorted(data):
        return 'all'  # as published: FID of FFHQ and LSUN against the whole set
    return 'train'


def fingerprint_of(split):
    """16 hexadecimal digits, a hash of the images and labels of a split; no image of Rows is read for it."""
    lazy = isinstance(split.images, Rows)
    content = split.images.fingerprint.encode() if lazy else split.images.numpy().tobytes()
    return hashlib.sha256(content + split.labels.numpy().tobytes()).hexdigest()[:16]


# ---- what is known of a data set without its images

def spelt(data):
    """The name of a few-shot set as it was published, in whatever case it is given; else --data as it is."""
    published = {name.lower(): name for name in SHOTS}
    return published.get(data.lower(), data)


def unsorted(data):
    """Whether --data is ffhq or lsun-CATEGORY: many images without classes, which are to be converted."""
    return re.fullmatch('ffhq|lsun-[a-z_]+', data) is not None


def must_be_converted(data):
    """Whether --data is a name whose images are read out of a converted set only."""
    return data in CONVERTED or unsorted(data)


def is_converted(data):
    """Whether --data is read out of a converted set: by its name, or as its folder, finished or not."""
    if must_be_converted(data):
        return True
    return os.path.exists(f'{data}/set.json') or os.path.exists(f'{data}/train.part.json')


def converted_folder(data, root, res):
    """Where the converted set of --data lies, or will lie: ROOT/NAME-RES, or --data itself."""
    if is_converted(data) and not must_be_converted(data):
        return data
    name = os.path.basename(os.path.abspath(data)).removesuffix('.zip')
    return f'{root}/{name}-{res}'


def names(data, root='datasets', res=32):
    """The names of the classes of --data, as many as `load` finds, without reading an image.

    The classes of CIFAR are named by their numbers, as their names are in the archive only. Exits with code 2
    and one sentence where the set is not there.
    """
    data = spelt(data)
    if data in ('cifar10', 'cifar100'):
        count = int(data.removeprefix('cifar'))
        return [str(number) for number in range(count)]
    if data == 'fashion-mnist':
        return CLOTHES
    if data == 'emoji-faces':
        return ['face']
    if data == 'emoji':
        return emoji_info(data)['classes']

    if is_converted(data):
        info = set_info(converted_folder(data, root, res))
        if info:
            return info['classes']
        if data != 'tiny-imagenet':  # which `load` converts when it is asked for
            return read_converted(data, root, res, 'centre', False)[2]
    return source(data, root)[1]


def suggest_res(data, root='datasets', least=32, most=256):
    """A resolution for --data where --res is not given.

    A named or converted set has its own. For a folder or zip it is the largest power of two that is not above
    the median of the shorter sides, within least and most. Only the heads of some files are read. Exits with
    code 2 and one sentence where the set is not there.
    """
    data = spelt(data)
    if data in NATIVE_RES:
        return NATIVE_RES[data]
    if data in SHOTS or unsorted(data):
        return 256
    if data in NAMES:
        return 32
    info = set_info(data)
    if info:
        return info['res']

    splits, _, read_file = source(data, root)
    files, _ = splits['train']
    sides = [min(size) for size in survey_sizes(files, read_file)]
    median = np.median(sides or [least])  # of pixels, 1 or more
    power = 2 ** int(np.log2(median))
    return min(most, max(least, power))


def survey_sizes(files, read_file, most=500):
    """A list of (width, height) of up to `most` images, evenly spread; unreadable ones are left out."""
    step = max(1, -(-len(files) // most))
    sizes = []
    for file in files[::step]:
        with contextlib.suppress(Exception):  # PIL raises exceptions of every type, see `decode`
            head = open_image(read_file(file))
            sizes.append(head.size)
    return sizes


# ---- the data sets as Splits: every read_NAME returns what read_set returns

def read_set(data, root, res, crop, strict, verify=False):
    """The whole set of --data: train, test (or None), the names of the classes, and the report, a list.

    train and test are Splits. verify: see `load`. Exits with code 2 and one sentence where the set is not
    there or is empty.
    """
    if data in ('cifar10', 'cifar100'):
        return read_cifar(data, root, res)
    if data == 'fashion-mnist':
        return read_fashion(root, res)
    if data in ('emoji', 'emoji-faces'):
        return read_emoji(data, res)

    if data == 'tiny-imagenet':
        # The one set that is small enough to be converted on the way. One rank does it, and the others wait.
        done = os.path.exists(f'{converted_folder(data, root, res)}/set.json')
        if is_first_rank() and not done:
            convert(data, root, res, crop, strict=strict)
        wait_for_all_ranks()
    if is_converted(data):
        return read_converted(data, root, res, crop, strict, verify)

    if data in SHOTS:
        if crop == 'pad':
            refuse(f'--crop pad: {data} is resized without a crop, as published; leave it out')
        crop = 'none'
    return read_folder(data, root, res, crop, strict)


def resize_bicubic(x, res):
    """uint8 [N, C, H, W] -> uint8 [N, C, res, res], bicubic and antialiased."""
    if x.shape[2:] == (res, res):
        return x
    resized = []
    for piece in x.split(1024):  # so that the float copy stays small
        piece = F.interpolate(piece.float(), (res, res), mode='bicubic', antialias=True)
        resized.append(piece.round().clamp(0, 255).byte())
    return torch.cat(resized)


def other_files(dataset, root):
    """The files of one of torchvision's CIFAR classes that lie in --root with another checksum than its own."""
    from torchvision.datasets.utils import check_integrity
    parts = [*dataset.train_list, *dataset.test_list, (dataset.meta['filename'], dataset.meta['md5'])]
    checksums = {os.path.join(root, dataset.filename): dataset.tgz_md5}
    for name, md5 in parts:
        checksums[os.path.join(root, dataset.base_folder, name)] = md5
    return [path for path, md5 in checksums.items() if os.path.exists(path) and not check_integrity(path, md5)]


def why_not(error):
    """The words of an error of a download; those of a connection that failed without urllib's brackets."""
    reason = getattr(error, 'reason', None)
    if isinstance(reason, OSError):
        return f'no connection: {reason.strerror or reason}'
    return str(error)


def read_cifar(name, root, res):
    """CIFAR-10 or CIFAR-100 by torchvision, from --root; rank 0 downloads it if it is not there."""
    import torchvision
    dataset = {'cifar10': torchvision.datasets.CIFAR10, 'cifar100': torchvision.datasets.CIFAR100}[name]
    try:
        if is_first_rank():
            dataset(root, download=True)
        wait_for_all_ranks()
        train = dataset(root, train=True)
        test = dataset(root, train=False)
    except (OSError, RuntimeError) as e:
        other = other_files(dataset, root)
        if other:
            refuse(f'--data {name}: {other[0]} is another file than that of {dataset.url}, by its checksum: '
                   'remove it, and put that one there')
        refuse(f'--data {name} is not in --root {root} and cannot be fetched ({why_not(e)}): put '
               f'{dataset.filename} from {dataset.url} there, or unpack it to {os.path.join(root, dataset.base_folder)}')

    def as_split(part):
        x = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # [N, 3, 32, 32]
        return Split(resize_bicubic(x, res), part.targets)
    return as_split(train), as_split(test), train.classes, []


def read_idx(path):
    """The uint8 array of an idx file, gzipped or not: two zeros, type, number of axes, sizes, content."""
    raw = read_regular(path)
    if path.endswith('.gz'):
        raw = gzip.decompress(raw)
    axes = raw[3]
    shape = np.frombuffer(raw, '>i4', axes, 4)  # big-endian
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def find_fashion(root):
    """The paths of the four files of Fashion-MNIST: images, labels, images and labels of the test split."""
    kinds = ('images-idx3-ubyte', 'labels-idx1-ubyte')
    files = [f'train-{kind}' for kind in kinds] + [f't10k-{kind}' for kind in kinds]
    places = [root, os.path.join(root, 'FashionMNIST', 'raw'), FASHION]
    for place in places:
        paths = [first_existing(f'{place}/{file}', f'{place}/{file}.gz') for file in files]
        if all(paths):
            return paths
    refuse(f'--data fashion-mnist: its four idx files are in none of {", ".join(places)}; get them with '
           "'apt install dataset-fashion-mnist' or from https://github.com/zalandoresearch/fashion-mnist")


def read_fashion(root, res):
    """Fashion-MNIST (Xiao et al. 2017), its 28 px padded with black to 32 and its grey repeated to RGB."""
    arrays = []
    for path in find_fashion(root):
        try:
            arrays.append(torch.from_numpy(read_idx(path).copy()))
        except (OSError, EOFError, ValueError, IndexError, zlib.error) as e:
            refuse(f'--data fashion-mnist: {path} is damaged ({e}): remove it and get it again')
    x, labels, x_test, labels_test = arrays

    def to_rgb_images(x):
        x = F.pad(x, (2, 2, 2, 2))  # [N, 32, 32]
        x = x[:, None].repeat(1, 3, 1, 1)  # [N, 3, 32, 32]
        return resize_bicubic(x, res)
    train = Split(to_rgb_images(x), labels)
    test = Split(to_rgb_images(x_test), labels_test)
    return train, test, CLOTHES, []


def emoji_info(name):
    """What data/emoji/emoji.json says of the bundled sets. Exits with code 2 where a file is missing."""
    for path in (f'{HERE}/emoji/emoji.json', f'{HERE}/emoji/{name}.png'):
        if not os.path.exists(path):
            refuse(f'--data {name}: {path} is missing; make it with python data/make_emoji.py')
    info = read_json(f'{HERE}/emoji/emoji.json')
    if 'sets' not in info:
        refuse(f'--data {name}: {HERE}/emoji/emoji.json is damaged; make it with python data/make_emoji.py')
    return info


def read_emoji(name, res):
    """The bundled sets: `emoji`, all emoji at 32 px in 9 classes; `emoji-faces`, faces at 128 px, split.

    The images of a set lie in one PNG, in reading order. A group is a glyph with all its skin tones.
    """
    info = emoji_info(name)
    about = info['sets'][name]
    sheet = np.asarray(Image.open(f'{HERE}/emoji/{name}.png', formats=['PNG']).convert('RGB'))

    # Cut the sheet into its tiles. The last row of tiles is filled up with white ones.
    size = about['size']
    n = len(about['class'])
    rows, columns = sheet.shape[0] // size, sheet.shape[1] // size
    grid = sheet.reshape(rows, size, columns, size, 3)
    tiles = grid.transpose(0, 2, 4, 1, 3).reshape(-1, 3, size, size)[:n]  # [N, 3, size, size]
    x = resize_bicubic(torch.from_numpy(tiles.copy()), res)
    whole = Split(x, about['class'], about['base'], np.array(about['plain'], bool))
    if name == 'emoji':
        return whole, None, info['classes'], []

    parts = np.array(about['split'])
    train = whole.part(np.flatnonzero(parts == 'train'))
    test = whole.part(np.flatnonzero(parts == 'test'))
    return train, test, ['face'], []


def read_folder(data, root, res, crop, strict):
    """Every readable image of a folder, a zip or a few-shot set.

    Exits with code 2 where no image is readable, or where one is not and `strict` is set.
    """
    splits, classes, read_file = source(data, root)
    files, labels = splits['train']

    def shape(im):
        return square(im, res, crop), im.size

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # threads, as PIL decodes without the GIL
        decoded = list(pool.map(lambda file: decode(file, read_file, shape), files))

    # Files that cannot be read are left out, and the report says which they are.
    good = []
    bad = []
    kinds = collections.Counter()
    for file, label, (image, kind) in zip(files, labels, decoded):
        if image is None:
            bad.append(f'{file} ({kind})')
        else:
            pixels, size = image
            good.append((pixels, size, file, label))
            kinds[kind] += 1

    if bad and strict:
        refuse(f'--strict: {len(bad)} of {len(files)} images in {data} cannot be read: {"; ".join(bad[:5])}')
    if not good:
        refuse(f'--data {data} holds no image that can be read ({", ".join(ENDINGS)}): {"; ".join(bad[:5])}')
    images, sizes, files, labels = zip(*good)
    x = np.stack(images)  # [N, 3, res, res]

    counts = '; '.join(f'{count} x {kind}' for kind, count in kinds.most_common())
    report = [f'{data}: {len(good)} images read: {counts}']
    report += skipped_report(bad)
    report += size_report(sizes, res, crop)
    report += content_report(x, files)
    return Split(torch.from_numpy(x), labels), None, classes, report


# ---- the report: sentences on what was found

def skipped_report(bad):
    """A sentence on the files that could not be read, or none."""
    if not bad:
        return []
    return [f'{len(bad)} skipped, not readable: {"; ".join(bad[:20])}']


def size_report(sizes, res, crop):
    """Sentences on images of these sizes (width, height): how large they are, what --crop and --res do."""
    n = len(sizes)
    shorter = np.array([min(size) for size in sizes])
    ratio = np.array([max(size) for size in sizes]) / shorter
    odd = int((ratio > 1).sum())
    small = int((shorter < res).sum())

    fate = {'centre': 'cut to their centre', 'pad': 'padded with white', 'none': 'squeezed'}[crop]
    form = f'{odd} not square ({ratio.max():.3g} : 1), {fate}' if odd else 'all square'
    sides = f'{shorter.min()} to {shorter.max()} px, median {np.median(shorter):g}'
    report = [f'shorter sides of {n} images: {sides}; {form}']
    if small:
        report.append(f'warning: {small} of these {n} are smaller than --res {res} and were enlarged')
    if n < 10:
        report.append(f'warning: {n} images are few, a GAN learns them by heart')
    return report


def content_report(x, files):
    """Warnings on uint8 images x [N, 3, res, res] of these files: duplicates, and greys only."""
    report = []
    same = collections.defaultdict(list)  # the files of each content
    for file, image in zip(files, x):
        same[hashlib.sha256(image.tobytes()).digest()].append(file)
    if len(same) < len(x):
        twins = [' = '.join(group[:3]) for group in same.values() if len(group) > 1]
        report.append(f'warning: {len(x) - len(same)} duplicates at {x.shape[2]} px: {"; ".join(twins[:10])}')

    if all((image == image[:1]).all() for image in x):
        report.append('warning: all images are grey')
    return report


# ---- the files of the data sets: every NAME_source returns what source returns

def source(data, root):
    """The files of --data, before any image is read, and how to read them.

    Returns {'train': (files, labels), 'val': (files, labels)}, the names of the classes, and the function
    read_file(file) -> bytes. Most sets have no 'val'. Exits with code 2 and one sentence where the set is not
    there.
    """
    if data == 'tiny-imagenet':
        return tiny_imagenet_source(root)
    if data == 'imagenet':
        return imagenet_source(root)

    path = locate(data, root)
    splits, classes, read_file = folder_source(path)
    if path != data:
        # A set by name has no classes. Sub-folders such as 00000/ are there to keep folders small.
        files, _ = splits['train']
        splits = {'train': (files, [0] * len(files))}
        classes = [data]
    return splits, classes, read_file


def first_existing(*paths):
    """The first of the paths that is there, or None."""
    return next((path for path in paths if os.path.exists(path)), None)


def locate(data, root):
    """The folder or zip of --data: of a few-shot set, ffhq and lsun-* in --root, else --data itself.

    Exits with code 2 and the place to get it from where it is not there.
    """
    if data in SHOTS:
        origin = f'{SHOTS_URL}/{data}.zip'
    elif data == 'ffhq':
        origin = 'images1024x1024 of https://github.com/NVlabs/ffhq-dataset'
    elif unsorted(data):
        origin = f'{data.removeprefix("lsun-")} with https://github.com/fyu/lsun'
    else:
        return data

    folders = FFHQ if data == 'ffhq' else [data]
    candidates = []
    for folder in folders:
        candidates += [f'{root}/{folder}', f'{root}/{folder}.zip']
    path = first_existing(*candidates)
    if path is None:
        refuse(f'--data {data} is not in --root {root}: get {origin} and put it at {root}/{data}.zip, '
               f'or unpacked at {root}/{data}/')
    return path


def list_files(path):
    """The sorted names of the files in a folder or zip, and read_file, which is a FolderFiles or ZipFiles.

    Hidden files are left out, those in hidden folders and in the __MACOSX of a zip, too. Exits with code 2 on
    anything else, such as a pipe, and on a zip that is damaged.
    """
    if os.path.isdir(path):
        read_file = FolderFiles(path)
        found = files_below(path)
    else:
        if path.lower().endswith(ENDINGS):
            refuse(f'--data {path} is one image: name the folder that holds it')
        if not os.path.isfile(path):
            refuse(f'--data {path} is neither a folder nor a regular file: name a folder or zip of images')
        try:
            read_file = ZipFiles(path)
        except BROKEN_ZIP as e:
            refuse(f'--data {path} is neither a folder nor a readable zip ({e}): name a folder, '
                   'or make the zip again')
        found = read_file.members
    return sorted(name for name in found if not is_hidden(name)), read_file


def files_below(folder):
    """The names of all files below a folder. Links are followed, but not to a folder that was visited."""
    found = []
    visited = set()
    for current, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        below = '' if current == folder else os.path.relpath(current, folder)
        found += [os.path.join(below, file) for file in files]
    return found


class FolderFiles:
    """Reads the files of a folder: files(name) -> bytes. Raises OSError on what cannot be an image file."""
    top = ''  # what comes before the names

    def __init__(self, folder):
        self.folder = folder

    def size(self, name):
        """The bytes of a file, before it is read."""
        return os.path.getsize(os.path.join(self.folder, self.top + name))

    def __call__(self, name):
        return read_regular(os.path.join(self.folder, self.top + name))


class ZipFiles:
    """Reads the files of a zip: files(name) -> bytes. Backslashes in their names are separators.

    Raises BadZipFile, or another of BROKEN_ZIP, on a zip whose directory is damaged, so that no file is lost
    in silence; and OSError on a file that is too large for an image.
    """
    top = ''  # what comes before the names

    def __init__(self, path):
        self.archive = zipfile.ZipFile(path)
        entries = self.archive.infolist()
        with open(path, 'rb') as f:
            check_zip_directory(f, entries)
        self.members = {}
        for entry in entries:
            name = entry.filename.replace('\\', '/')
            if name in self.members and not is_hidden(name):
                raise zipfile.BadZipFile(f'it holds {name} twice')
            if not name.endswith('/'):
                self.members[name] = entry

    def size(self, name):
        """The bytes of a file, before it is read."""
        return self.members[self.top + name].file_size

    def __call__(self, name):
        check_size(self.size(name))
        return self.archive.read(self.members[self.top + name])


def check_zip_directory(f, entries):
    """Raise BadZipFile where the directory of the open zip f has lost a file, though it can be read.

    One flipped bit in the name of an image makes it look like no image, and one in a length skips an entry.
    What looks like an image is compared with its own header when it is read, and what does not, here.
    """
    # The end of the directory counts its entries: in 16 bits, and not at all in large zips.
    f.seek(0, os.SEEK_END)
    size = f.tell()
    f.seek(max(0, size - 2 ** 16 - 22))
    tail = f.read()
    at = tail.rfind(b'PK\5\6')
    count, = struct.unpack_from('<H', tail, at + 10)
    if count != 2 ** 16 - 1 and (count - len(entries)) % 2 ** 16:
        raise zipfile.BadZipFile(f'its directory lists {len(entries)} of {count} files')

    for entry in entries:
        if is_image(entry.filename) and not is_hidden(entry.filename):
            continue
        f.seek(entry.header_offset)
        head = f.read(30)
        length, = struct.unpack_from('<H', head, 26)
        encoding = 'utf-8' if entry.flag_bits & 2 ** 11 else 'cp437'
        if head[:4] != b'PK\3\4' or f.read(length).decode(encoding) != entry.orig_filename:
            raise zipfile.BadZipFile(f'its directory is damaged at {entry.filename}')


def read_regular(path):
    """The bytes of a file. Raises OSError where it is no regular file, or too large for an image.

    A pipe would block, and a device has no end; some devices do something when they are opened.
    """
    check_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    with open(descriptor, 'rb') as f:
        about = os.fstat(descriptor)
        check_regular(about)  # once more, as it may have changed
        check_size(about.st_size)
        return f.read(MAX_BYTES)


def check_regular(about):
    """Raise OSError where what os.stat says is not of a regular file."""
    if not stat.S_ISREG(about.st_mode):
        raise OSError('not a regular file')


def check_size(size):
    """Raise OSError on a file of more bytes than an image has."""
    if size > MAX_BYTES:
        raise OSError(f'{size / 2 ** 20:,.0f} MB are too many for an image, the limit is {MAX_BYTES >> 20} MB')


def is_hidden(name):
    parts = name.replace('\\', '/').split('/')
    return any(part.startswith('.') or part == '__MACOSX' for part in parts)


def is_image(name):
    return name.lower().endswith(ENDINGS + HEIC)


def folder_source(path):
    """`source` of any folder or zip of images: one split, classes by its dataset.json or its sub-folders."""
    if not os.path.exists(path):
        refuse(f'--data {path} is neither a folder or zip of images nor one of {", ".join(NAMES)}')
    found, read_file = list_files(path)
    files = [name for name in found if is_image(name)]
    if not files:
        refuse_lmdb(path, found)
        refuse(f'--data {path} holds no image ({", ".join(ENDINGS)})')

    # Images that cannot be read keep their class, so that the classes are known before an image is read.
    listed = [name for name in found if name.split('/')[-1] == 'dataset.json']
    if len(listed) > 1:
        refuse(f'--data {path} holds {len(listed)} dataset.json ({", ".join(listed[:5])}): keep one that '
               'lists all images, or remove all to have folders as classes')
    if listed:
        kinds = read_dataset_json(path, listed[0], files, read_file)
    else:
        kinds = class_folders(files)
    classes = sorted(set(kinds))
    number = {kind: i for i, kind in enumerate(classes)}
    labels = [number[kind] for kind in kinds]
    return {'train': (files, labels)}, [str(kind) for kind in classes], read_file


def class_folders(files):
    """The class of each file: its first folder below the one that all files share, or '.'."""
    folders = [os.path.dirname(file.lstrip('/')) for file in files]
    distinct = set(folders)
    # Where a file lies at the top, '' is what the folders share.
    common = os.path.commonpath(distinct) if all(distinct) else ''
    kinds = {}
    for folder in distinct:
        below = os.path.relpath(folder or '.', common or '.')
        kinds[folder] = below.split(os.sep)[0]
    return [kinds[folder] for folder in folders]


def read_dataset_json(path, name, files, read_file):
    """The class of each file by the dataset.json of StyleGAN2-ADA, {"labels": [["a.png", number], ...]}.

    The names are those below the folder of dataset.json, as file managers zip a set with its folder. Where
    labels is null all files are of class 0. Exits with code 2 on anything else, and where a file has no
    number.
    """
    folder = name.removesuffix('dataset.json')
    try:
        number = listed_labels(json.loads(read_file(name)), folder)
        if number is None:
            return [0] * len(files)
        missing = [file for file in files if file.replace('\\', '/') not in number]
        if missing:
            raise ValueError(f'{len(missing)} of {len(files)} images are not listed, such as {missing[0]}')
    except (*BROKEN_ZIP, RecursionError) as e:
        refuse(f'--data {path}: its {name} does not give every image the number of a class ({e}); mend it, '
               'or remove it to have folders as classes')
    return [number[file.replace('\\', '/')] for file in files]


def listed_labels(about, folder):
    """{name: class} of what a dataset.json holds, None for null. Raises ValueError on another form."""
    if not isinstance(about, dict) or 'labels' not in about:
        raise ValueError('it is no object with "labels"')
    pairs = about['labels']
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        raise ValueError('"labels" is no list')
    number = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f'{json.dumps(pair)[:80]} is no pair of a name and a number')
        file, label = pair
        is_number = isinstance(label, (int, float)) and not isinstance(label, bool)
        if not (is_number and 0 <= label < 2 ** 31 and label == int(label)):
            raise ValueError(f'the label of {file} is {json.dumps(label)[:80]}, not 0, 1, 2, ...')
        file = folder + file.replace('\\', '/')
        if file in number:
            raise ValueError(f'{file} is listed twice')
        number[file] = int(label)
    return number


def refuse_lmdb(path, found):
    """Exit with code 2 if the images are in an LMDB, as LSUN's are, with the command that extracts them."""
    inside = [os.path.dirname(name) for name in found if os.path.basename(name) == 'data.mdb']
    if not inside:
        return
    if not os.path.isdir(path):
        refuse(f'--data {path} is a packed LMDB: unpack it to {os.path.splitext(path)[0]}, '
               'then the same command again')
    # The first 200,000 images are what Karras et al. 2020 use of LSUN Cat.
    command = (f"import lmdb, os; os.mkdir('{path}/images'); [open(f'{path}/images/{{k.hex()}}.webp', 'wb')"
               f".write(x) for _, (k, x) in zip(range(200000), lmdb.open('{os.path.join(path, inside[0])}', "
               "readonly=True, lock=False).begin().cursor())]")
    refuse(f'--data {path} holds an LMDB: pip install lmdb, write its images out with python -c "{command}", '
           'then the same command again')


def tiny_imagenet_source(root):
    """`source` of Tiny ImageNet, from its zip or unpacked."""
    path = first_existing(f'{root}/tiny-imagenet-200.zip', f'{root}/tiny-imagenet-200')
    if path is None:
        refuse(f'--data tiny-imagenet is not in --root {root}: get {TINY_URL} and put it at '
               f'{root}/tiny-imagenet-200.zip')
    found, read_file = list_files(path)
    try:
        top, splits, classes = index_tiny_imagenet(found, read_file)
    except (*BROKEN_ZIP, IndexError) as e:
        refuse(f'--data tiny-imagenet: {path} is not the whole archive ({type(e).__name__}: {e}): '
               f'get {TINY_URL} again')
    read_file.top = top
    return splits, classes, read_file


def index_tiny_imagenet(found, read_file):
    """The folder that holds wnids.txt, the splits below that folder, and the names of the classes.

    wnids.txt lists the classes. train/WNID/ holds the images of one. val/val_annotations.txt gives the class
    of each image in val/images/. Raises ValueError, KeyError or IndexError where the archive is not whole.
    """
    lists = [name for name in found if os.path.basename(name) == 'wnids.txt']
    if not lists:
        raise ValueError('it holds no wnids.txt')
    top = lists[0].removesuffix('wnids.txt')
    classes = sorted(read_file(f'{top}wnids.txt').decode().split())
    number = {wnid: i for i, wnid in enumerate(classes)}
    files = [name[len(top):] for name in found if name.lower().endswith('.jpeg')]

    wnids = {'train': {}, 'val': {}}  # split -> file -> wnid
    for file in files:
        if file.startswith('train/'):
            wnids['train'][file] = file.split('/')[1]
    for line in read_file(f'{top}val/val_annotations.txt').decode().splitlines():
        fields = line.split('\t')
        wnids['val'][f'val/images/{fields[0]}'] = fields[1]

    splits = {}
    for split, wnid in wnids.items():
        members = [file for file in files if file in wnid]
        if not members:
            raise ValueError('a split without images')
        splits[split] = (members, [number[wnid[file]] for file in members])
    return top, splits, classes


def imagenet_source(root):
    """`source` of ImageNet (ILSVRC 2012): train/WNID/*.JPEG and val/WNID/*.JPEG, in --root or below."""
    path = root
    if not os.path.isdir(f'{root}/train') and os.path.isdir(f'{root}/imagenet/train'):
        path = f'{root}/imagenet'
    files = {}
    for split in ('train', 'val'):
        if os.path.isdir(f'{path}/{split}'):
            found, _ = list_files(f'{path}/{split}')
            files[split] = [f'{split}/{name}' for name in found if is_image(name)]

    def wnid(file):
        parts = file.split('/')  # train, wnid, name
        return parts[1] if len(parts) > 2 else None

    classes = sorted({wnid(file) for file in files.get('train', [])} - {None})
    number = {kind: i for i, kind in enumerate(classes)}
    if not classes:
        refuse_imagenet(path, 'there is no train with class folders')

    splits = {}
    for split, members in files.items():
        for file in members:
            if wnid(file) not in number:
                refuse_imagenet(path, f'{file} is in no class folder of train')
        if members:
            splits[split] = (members, [number[wnid(file)] for file in members])
    return splits, classes, FolderFiles(path)


def refuse_imagenet(path, why):
    refuse(f'--data imagenet: in {path} {why}; --root should hold train/n01440764/*.JPEG and '
           'val/n01440764/*.JPEG, of the same classes')


# ---- decoding and cropping

class Room:
    """A number of bytes that threads share: who wants more than are left waits for others."""

    def __init__(self, total):
        self.total = total
        self.left = total
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount):
        """Hold so many bytes, or all where that is more than there are."""
        amount = min(amount, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.left >= amount)
            self.left -= amount
        try:
            yield
        finally:
            with self.changed:
                self.left += amount
                self.changed.notify_all()


ROOM = Room(ALL_DECODED)


def decode(file, read_file, shape):
    """Decode one image file.

    Returns (shape(im), what the file held), where im is an RGB PIL image; or (None, why it cannot be read).
    Threads that decode wait for one another where their images would take too much memory.
    """
    if file.lower().endswith(HEIC):
        return None, 'HEIC: export it as JPEG or PNG first'
    try:
        # Nobody waits with a large file in memory: who has read one holds all the room already.
        large = read_file.size(file) > LARGE_FILE
        with ROOM.take(ROOM.total if large else 0):
            im = open_image(read_file(file))
            with ROOM.take(0 if large else decoded_bytes(im)):
                im, kind = to_rgb(im)
                if im.width != im.height:
                    kind += ', not square'
                shaped = shape(im)
                del im  # before its room is given to others
        return shaped, kind
    except Exception as e:  # on rubbish, PIL raises exceptions of every type, struct.error too
        why = str(e) or type(e).__name__
        return None, why.split(' <')[0]  # without the address of a BytesIO


def open_image(data):
    """The PIL image in these bytes, not decoded yet. Raises ValueError on too many pixels, or none."""
    im = Image.open(io.BytesIO(data), formats=FORMATS)
    most = min(MAX_PIXELS, MAX_DECODED // bytes_per_pixel(im))
    n = im.width * im.height
    if not 0 < n <= most:
        count = 'many' if n else 'few'
        raise ValueError(f'{im.width} x {im.height} pixels are too {count}, the limit is {most:,}')
    return im


def decoded_bytes(im):
    """The bytes that it takes to decode an image and to make it RGB, about."""
    return im.width * im.height * bytes_per_pixel(im)


def bytes_per_pixel(im):
    """The bytes per pixel that `to_rgb` takes, at its peak. PIL keeps 4 of RGB, CMYK and floats."""
    if im.format == 'WEBP':
        return 16  # its decoder keeps two canvases and the file's bytes
    if im.format == 'JPEG' and 'progressive' in im.info:
        return 12  # all coefficients, too
    if im.mode == 'RGB' and 'exif' not in im.info and 'transparency' not in im.info:
        return 4
    return 8  # before and after a conversion or a turn


def to_rgb(im):
    """Any PIL image as an upright RGB one over white, and what it was: its mode, turned, with alpha."""
    kind = im.mode
    sixteen_bit = im.mode.startswith('I;16')
    turned = im.getexif().get(0x0112, 1) != 1  # the orientation
    im.load()
    if turned:
        kind += ', turned by EXIF'
        im = ImageOps.exif_transpose(im)

    if im.mode.startswith('I') or im.mode == 'F':
        im = to_8_bits(im, sixteen_bit)

    # Transparent pixels show white. Without this step they would show whatever colour lies under them.
    if im.mode in ('LA', 'PA', 'RGBA', 'La', 'RGBa') or 'transparency' in im.info:
        kind += ' with alpha, over white'
        im = over_white(im)
    if im.mode != 'RGB':
        im = im.convert('RGB')
    return im, kind


def bands(im):
    """Boxes of a million pixels that cover an image from top to bottom: copies of one are small."""
    height = max(1, 2 ** 20 // im.width)
    return [(0, top, im.width, min(top + height, im.height)) for top in range(0, im.height, height)]


def to_8_bits(im, sixteen_bit):
    """A PIL image of more than 8 bits or of floats as one of 8 bits; PIL's own conversion clips it to 255.

    Raises ValueError where floats are not finite.
    """
    def values(box):
        return np.asarray(im.crop(box)).astype(np.float64)  # [rows, W]

    most = np.array([values(box).max() for box in bands(im)]).max()
    if not np.isfinite(most):
        raise ValueError('it holds values that are not finite')
    grey = Image.new('L', im.size)
    for box in bands(im):
        x = values(box)
        if sixteen_bit or most > 255:
            x = x / 257
        grey.paste(Image.fromarray(x.round().clip(0, 255).astype(np.uint8)), box)
    return grey


def over_white(im):
    """An image with transparency as an RGB one over white."""
    rgb = Image.new('RGB', im.size)
    for box in bands(im):
        part = im.crop(box).convert('RGBA')
        white = Image.new('RGBA', part.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, part).convert('RGB'), box)
    return rgb


def square(im, res, crop):
    """An RGB PIL image as uint8 [3, res, res], resized by Lanczos.

    crop: 'centre' cuts the image to its central square, 'pad' adds white, 'none' squeezes the image.
    """
    if crop == 'centre':
        im = ImageOps.fit(im, (res, res), Image.LANCZOS)
    elif crop == 'pad':
        im = ImageOps.pad(im, (res, res), Image.LANCZOS, color=(255, 255, 255))
    else:
        im = im.resize((res, res), Image.LANCZOS)
    return np.asarray(im).transpose(2, 0, 1)


def torchvision_square(im, res):
    """The central square of an RGB PIL image as uint8 [3, res, res], as torchvision crops and resizes."""
    side = min(im.size)
    left = int(round((im.width - side) / 2))
    top = int(round((im.height - side) / 2))
    im = im.crop((left, top, left + side, top + side))
    im = im.resize((res, res), Image.BILINEAR)
    return np.asarray(im).transpose(2, 0, 1)


# ---- subsets

def stratified_permutation(labels, groups, seed):
    """The numbers of all groups in a seeded random order, in every prefix of which classes keep their shares.

    labels, groups: arrays [N] of the images. The class of a group is that of its first image. Returns an
    array with one entry for each group.
    """
    rng = np.random.default_rng([seed, 1])
    ids, first = np.unique(groups, return_index=True)
    order = rng.permutation(len(ids))
    kind = labels[first][order]  # the class of each group in that order

    # The group at place r of the c groups of its class gets the key (r + 1/2) / c, by which all are sorted.
    by_class = np.argsort(kind, kind='stable')
    count = np.unique(kind, return_counts=True)[1]
    start = np.cumsum(count) - count
    place = np.arange(len(ids)) - np.repeat(start, count)
    key = np.empty(len(ids))
    key[by_class] = (place + .5) / np.repeat(count, count)
    return ids[order[np.argsort(key, kind='stable')]]


def choose_rows(train, count, seed, subset, holdout):
    """The rows of the subset, and the rows that are held out: two sorted integer arrays.

    count     the largest number of images of the subset; it has one group at least, unless count is 0
    subset    'random': whole groups in the order of the permutation; 'first': in the order of their numbers
    holdout   the number of images to hold out, or None for all that the subset leaves

    Exits with code 2 where the holdout leaves nothing to train on.
    """
    groups = train.groups
    labels = train.labels.numpy()
    if holdout is not None and not 0 < holdout < len(groups):
        refuse(f'--holdout {holdout} is not between 1 and {len(groups) - 1}: '
               'choose fewer than the images of the set')
    if subset == 'first':
        order = np.unique(groups)
    else:
        order = stratified_permutation(labels, groups, seed)

    # total[k]: the number of images in the first k + 1 groups.
    ids, sizes = np.unique(groups, return_counts=True)
    total = np.cumsum(sizes[np.searchsorted(ids, order)])

    # Groups are held out from the end of the order. Hence they are the same ones for every --frac.
    free = total[-1] - (holdout or 0)
    end = np.searchsorted(total, min(count, free), side='right')
    if count and free >= total[0]:
        end = max(end, 1)
    start = np.searchsorted(total, free, side='right') if holdout else end
    chosen = np.flatnonzero(np.isin(groups, order[:end]))
    left = np.flatnonzero(np.isin(groups, order[start:]))
    return chosen, left


# ---- converted sets: reading

class Rows:
    """Rows of a uint8 array [., 3, H, W] that lies in a file, read when they are indexed.

    base      the memory-mapped array; all processes of a machine share one copy of it, as it is read-only
    index     integer array [N], the rows of the file that are meant
    digest    a hash of the whole file
    sums      RowSums of the file, which verify a row when it is read first; None of sets that have none
    """
    device = torch.device('cpu')
    dtype = torch.uint8

    def __init__(self, base, index, digest, sums=None):
        self.base = base
        self.index = index
        self.digest = digest
        self.sums = sums
        self.shape = torch.Size((len(index), *base.shape[1:]))
        self.nbytes = self.shape.numel()

    def __len__(self):
        return len(self.index)

    def base_rows(self, rows):
        """The rows of the file for these rows."""
        if torch.is_tensor(rows):
            rows = rows.numpy()  # as numpy takes a tensor([1]) for the number 1
        return self.index[rows]

    def __getitem__(self, rows):
        """A tensor uint8 [n, 3, H, W]. rows: numbers (an array, list or tensor), a slice or a mask."""
        index = self.base_rows(rows)
        x = torch.empty((*index.shape, *self.shape[1:]), dtype=torch.uint8)
        np.take(self.base, index, 0, x.numpy(), 'clip')  # the mode 'raise' would make a second copy
        if self.sums is not None:
            self.sums.verify(x.numpy(), index)
        return x

    def part(self, rows):
        """Rows for these rows; nothing is read."""
        return Rows(self.base, self.base_rows(rows), self.digest, self.sums)

    @property
    def fingerprint(self):
        """A hash of the content and of the choice of rows; nothing is read."""
        return hashlib.sha256(self.digest.encode() + self.index.tobytes()).hexdigest()

    def to(self, device):
        """A tensor of all rows on the device, or these Rows themselves where the device is the CPU."""
        if torch.device(device).type == 'cpu':
            return self
        # In pieces, so that the CPU never holds all of it.
        x = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), 4096):
            x[start:start + 4096] = self[start:start + 4096].to(device)
        return x


class RowSums:
    """The CRC-32 of each row of a file of images, with which a row is compared when it is read first.

    path      the file, for the sentence that names it
    values    uint32 [N]
    """

    def __init__(self, path, values):
        self.path = path
        self.values = values
        self.is_verified = np.zeros(len(values), bool)

    def verify(self, x, index):
        """Exit with code 2 where a row of x, uint8 [n, 3, H, W], is not as it was written; index: n rows."""
        index = np.atleast_1d(index)
        pixels = x.reshape(len(index), -1)
        for i in np.flatnonzero(~self.is_verified[index]):
            if zlib.crc32(pixels[i]) != self.values[index[i]]:
                refuse_damaged(self.path, f'its row {index[i]} is not what was written', alone=True)
        self.is_verified[index] = True


# What set.json must hold, of the set and of each of its splits.
SET_FORM = {'res': int, 'classes': list, 'splits': dict}
SPLIT_FORM = {'n': int, 'labels': str, 'digest': str, 'skipped': list}


def set_info(folder):
    """What set.json says of a converted set, {} where it is not there. Exits with code 2 on a damaged one."""
    path = f'{folder}/set.json'
    if not os.path.lexists(path):
        return {}
    info = read_json(path)
    why = what_is_wrong(info)
    if why:
        refuse_damaged(path, why)
    return info


def what_is_wrong(info):
    """Why this cannot be what set.json holds, or None."""
    if not info:
        return 'it is no JSON object'
    if info.get('seal', seal_of(info)) != seal_of(info):
        return 'it is not what was written'
    for key, kind in SET_FORM.items():
        if type(info.get(key)) is not kind:
            return f'its {key} is missing or of a wrong type'
    for split in info['splits'].values():
        for key, kind in SPLIT_FORM.items():
            if not isinstance(split, dict) or type(split.get(key)) is not kind:
                return f'its {key} is missing or of a wrong type'

    texts = [info['classes'], info.get('notes', [])]
    texts += [split['skipped'] for split in info['splits'].values()]
    if any(not isinstance(lines, list) for lines in texts):
        return 'its notes are no list'
    if any(not isinstance(line, str) for line in sum(texts, [])):
        return 'its lists hold something else than texts'
    if 'train' not in info['splits'] or not info['classes']:
        return 'it has no training images or no classes'
    return None


def seal_of(info):
    """A hash of all that set.json holds but for itself."""
    rest = {key: value for key, value in info.items() if key != 'seal'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def refuse_damaged(path, why, alone=False):
    """Exit with code 2: a file of a converted set is not as it was written."""
    refuse(f'{path} is damaged ({why}): remove {os.path.dirname(path)} and convert it again', alone=alone)


def read_converted(data, root, res, crop, strict, verify=False):
    """`read_set` of a converted set, by its name or folder: its labels are read, of its images nothing.

    The images of a small set are read to verify them, and with `verify` those of every set. Exits with code 2
    where the set is not there, is damaged, or contradicts an argument.
    """
    path = converted_folder(data, root, res)
    info = set_info(path)
    if not info:
        refuse_unfinished(data, root, res)
    if info['res'] != res:
        refuse(f'--res {res}: {data} holds images of {info["res"]} px; use --res {info["res"]}, '
               'or convert it anew')
    if crop == 'pad':
        refuse(f'--crop pad: {data} is converted and square already; leave it out')

    splits = {}
    report = []
    for split, about in info['splits'].items():
        skipped = about['skipped']
        if strict and skipped:
            refuse(f'--strict: {len(skipped)} images of {path} could not be read: {skipped[0]}')
        splits[split] = open_split(f'{path}/{split}.npy', about, info)
        is_small = splits[split].images.nbytes <= SMALL_SET and 'sums' in about
        if verify or is_small:
            found = verify_split(f'{path}/{split}.npy', about, splits[split].images)
            report += found if verify else []
        report += skipped_report(skipped)
    report += info.get('notes', [])
    return splits['train'], splits.get('val'), info['classes'], report


def open_split(path, about, info):
    """The Split in the file PATH.npy of a converted set, of which set.json says `about`.

    Exits with code 2 where a file is missing or not as it was written; rows are verified later.
    """
    folder = os.path.dirname(path)
    n = about['n']
    try:
        check_regular(os.stat(path))
        base = np.load(path, mmap_mode='r')
        whole = base.offset + base.nbytes == os.path.getsize(path)
        shape = (n, 3, info['res'], info['res'])
        if base.shape != shape or base.dtype != np.uint8 or not base.flags.c_contiguous or not whole:
            raise ValueError(f'it does not hold {n} images of {info["res"]} px')

        path = f'{folder}/{about["labels"]}'
        labels = load_sealed(path, about)
        inside = (labels >= 0) & (labels < len(info['classes']))
        if labels.shape != (n,) or labels.dtype != np.int64 or not inside.all():
            raise ValueError(f'it does not hold the classes of {n} images')

        sums = None
        if 'sums' in about:
            path = f'{folder}/{about["sums"]}'
            values = load_sealed(path, about)
            if values.shape != (n,) or values.dtype != np.uint32:
                raise ValueError(f'it does not hold the sums of {n} images')
            sums = RowSums(f'{folder}/{os.path.basename(base.filename)}', values)
    except Exception as e:  # on a damaged header, numpy raises exceptions of every type
        refuse_damaged(path, e)
    return Split(Rows(np.asarray(base), np.arange(n), about['digest'], sums), labels)


def load_sealed(path, about):
    """The array in a small file of a converted set. Raises OSError or ValueError where it is damaged."""
    data = read_regular(path)
    expected = about.get('sha256', {}).get(os.path.basename(path))
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise ValueError('it is not what was written')
    return np.load(io.BytesIO(data))


def verify_split(path, about, rows):
    """Read all rows of a split, and return a sentence for the report. Exits with code 2 on damage.

    A set of an earlier version has no sums, but the digest of all chunks. Where images were skipped, the
    lengths of its chunks are not known.
    """
    if rows.sums is None and about['skipped']:
        return [f'{path} cannot be verified: an earlier version converted it, and skipped some files']
    digests = []
    for start in range(0, len(rows), CHUNK):
        x = rows[start:start + CHUNK]
        if rows.sums is None:
            digests.append(hashlib.sha256(x.numpy()).hexdigest())
    if digests and joint_digest(digests) != about['digest']:
        refuse_damaged(path, 'its images are not what was written')
    return [f'{path}: {len(rows)} images are as they were written']


def joint_digest(digests):
    """The digest of a file whose chunks have these."""
    return hashlib.sha256(''.join(digests).encode()).hexdigest()


def refuse_unfinished(data, root, res):
    """Exit with code 2 and the command that converts --data, or what to get before."""
    if not must_be_converted(data):
        refuse(f'--data {data} is a conversion that was cut off: the command that began it continues')
    locate(data, root)
    refuse(f'--data {data} is not converted to --res {res} in --root {root}: '
           f'run python data/images.py {data} --root {root} --res {res}')


# ---- converted sets: writing

def read_json(path):
    """The object that a JSON file holds, {} if the file is not there, torn, or holds something else."""
    try:
        value = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path, value):
    """Write a JSON file: a killed process leaves an old or a new one."""
    with beside(path) as f:
        f.write(json.dumps(value, indent=1).encode())


@contextlib.contextmanager
def beside(path):
    """A binary file to write, which gets the name `path` at the end, and is removed where the body fails.

    Nobody sees a half of it, not even after a power cut. A device, such as /dev/null, is not replaced.
    """
    in_dev = os.path.dirname(path) == '/dev'  # where /dev/stdout is a link to a file
    if in_dev or os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode):
        with open(path, 'wb') as f:
            yield f
        return
    try:
        with open(f'{path}.tmp', 'wb') as f:
            yield f
            sync(f)
        os.replace(f'{path}.tmp', path)
    except BaseException:
        remove(f'{path}.tmp')
        raise


def remove(*paths):
    """Remove files that may be there."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.remove(path)


def sync(f):
    """Return when the file is on the disk."""
    f.flush()
    os.fsync(f.fileno())


@contextlib.contextmanager
def made_folder(path):
    """Make a folder and those above it. Where the body fails, the new ones go again, if they are empty."""
    missing = []
    place = os.path.abspath(path)
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    try:
        os.makedirs(path, exist_ok=True)
        yield
    except BaseException:
        if missing and os.path.isdir(path) and os.listdir(path) == ['lock']:
            remove(f'{path}/lock')
        for folder in missing:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


def convert(data, root='datasets', res=32, crop='centre', out=None, strict=False, workers=None):
    """Write the images of a name, folder or zip as a converted set, and return its folder.

    The set lies in `out` (default: ROOT/NAME-RES):
        set.json           what the set is, written last
        SPLIT.npy          uint8 [N, 3, res, res], for the splits train and val
        SPLIT-labels.npy   int64 [N]
        SPLIT-sums.npy     uint32 [N], the CRC-32 of each image, by which damage is seen
        lock               held by the process that writes

    workers is the number of threads that decode (default: one for each core). A conversion that was killed
    continues where it was, and its files are the same bytes in the end; one that was interrupted before it
    had done a CHUNK of files leaves nothing. Exits with one sentence, and code 2 on bad input and where `out`
    is no place to write to, or code 1 where the disk fails.
    """
    out = out or converted_folder(data, root, res)
    check_conversion(data, res, crop, out, workers)
    splits, classes, read_file = source(data, root)

    def shape(im):
        if data in CONVERTED:
            return torchvision_square(im, res)
        return square(im, res, crop)

    def load_image(file):
        return decode(file, read_file, shape)

    # The plan changes with whatever changes the bytes. A set or a record of another plan is written anew.
    resampling = 'bilinear' if data in CONVERTED else 'Lanczos'
    name = os.path.basename(converted_folder(data, root, res))
    info = {'name': name, 'res': res, 'source': f'{name}: {crop}, {resampling}'}
    plan = json.dumps([CHUNK, info, classes, splits])
    info['plan'] = hashlib.sha256(plan.encode()).hexdigest()

    try:
        with made_folder(out), lock_of(out):
            if read_json(f'{out}/set.json').get('plan') != info['plan']:
                files, _ = splits['train']
                sizes = survey_sizes(files, read_file)
                info['notes'] = size_report(sizes, res, crop) if sizes else []
                write_set(out, info, classes, splits, load_image, workers or os.cpu_count() or 1, strict)
            for record in glob.glob(f'{glob.escape(out)}/*.part.json'):
                os.remove(record)
    except OSError as e:
        if e.errno in DISK_ERRORS:
            refuse(f'--out {out} cannot be written, its disk is full or read-only ({e.strerror}): make room, '
                   'and the same command continues, or name another place', code=1)
        refuse(f'--out {out} cannot be written ({e}): name another place')
    return out


def check_conversion(data, res, crop, out, workers):
    """Exit with code 2 on arguments of `convert` that contradict each other."""
    by_name = must_be_converted(data)
    if not by_name and (data in NAMES or is_converted(data)):
        refuse(f'{data} needs no conversion: train with --data {data} as it is')
    if by_name and crop == 'pad':
        refuse(f'--crop pad: {data} is cropped to its centre, as published; leave it out')
    check_res(res)
    if workers is not None and workers < 1:
        refuse(f'--workers {workers} is too small: use 1 or more threads')
    if os.path.realpath(out) == os.path.realpath(data):
        refuse(f'--out {out} is the folder of the images: name another place')


@contextlib.contextmanager
def lock_of(folder):
    """Hold the lock of a folder. A second process waits for it, and then finds the finished set."""
    with open(f'{folder}/lock', 'w') as lock:
        # Windows has no fcntl, and some file systems have no locks.
        with contextlib.suppress(ImportError, OSError):
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_set(out, info, classes, splits, load_image, workers, strict):
    """Write all files of a converted set. set.json comes last: where it is, the others are whole."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(f'{out}/set.json')  # that of another plan

    records = {}
    sums = {}
    for split, (files, _) in splits.items():
        path = f'{out}/{split}'
        records[split], sums[split] = append_images(path, files, info, load_image, workers, strict)
    if not records['train']['rows']:
        for split in splits:
            remove(f'{out}/{split}.part', f'{out}/{split}.part.json')
        refuse(f'{info["name"]} holds no image that can be read: {records["train"]["skipped"][:5]}')

    info['splits'] = {}
    for split, (files, labels) in splits.items():
        path = f'{out}/{split}'
        info['splits'][split] = finish_split(path, files, labels, records[split], sums[split], info['res'])
    info = {**info, 'classes': classes}
    write_json(f'{out}/set.json', {**info, 'seal': seal_of(info)})


def finish_split(path, files, labels, record, sums, res):
    """Finish the files of one split, and return what set.json says of it.

    Writes the labels and sums of the rows and the header of PATH.part, which is then renamed to PATH.npy.
    """
    skipped = {file for file, _ in record['skipped']}
    kept = [label for file, label in zip(files, labels) if file not in skipped]
    name = os.path.basename(path)
    arrays = {f'{name}-labels.npy': np.array(kept, np.int64), f'{name}-sums.npy': np.array(sums, np.uint32)}
    hashes = {}
    for file, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array)
        hashes[file] = hashlib.sha256(content.getvalue()).hexdigest()
        with beside(os.path.join(os.path.dirname(path), file)) as f:
            f.write(content.getvalue())

    with open(f'{path}.part', 'r+b') as f:
        write_header(f, record['rows'], res)
        sync(f)
    os.replace(f'{path}.part', f'{path}.npy')
    return {'n': record['rows'], 'labels': f'{name}-labels.npy', 'sums': f'{name}-sums.npy', 'sha256': hashes,
            'digest': joint_digest(record['chunks']),
            'skipped': [f'{file} ({why})' for file, why in record['skipped']]}


def write_header(f, rows, res):
    """Write the header of a .npy file uint8 [rows, 3, res, res], and return the header's length."""
    f.seek(0)
    about = {'descr': '|u1', 'fortran_order': False, 'shape': (rows, 3, res, res)}
    np.lib.format.write_array_header_1_0(f, about)
    return f.tell()


def append_images(path, files, info, load_image, workers, strict):
    """Write the pixels of the files to PATH.part, after what an earlier process left.

    Returns the CRC-32 of each row, a list, and before it the record, which is written to PATH.part.json after
    every CHUNK of files, and holds
        files     the number of files that are done, readable or not
        rows      the number of images written
        skipped   [file, why] for each file that could not be read
        chunks    a hash of the pixels of each chunk
    """
    part = f'{path}.part'
    head = write_header(io.BytesIO(), 0, info['res'])  # bytes, for any number of rows
    row_bytes = 3 * info['res'] ** 2
    record, sums = resume_record(path, info['plan'], files, head, row_bytes)
    first = record['files']
    chunk = hashlib.sha256()
    progress = Progress(path, first, len(files))

    try:
        with open(part, 'ab') as f, ThreadPoolExecutor(workers) as pool:
            # Cut off what came after the record. The header stays empty until finish_split writes it.
            f.truncate(head + record['rows'] * row_bytes)
            loaded = map_ahead(pool, load_image, files[first:], 4 * workers)
            for done, (image, why) in enumerate(loaded, first + 1):
                if image is None:
                    record['skipped'].append([files[done - 1], why])
                    if strict:
                        break
                else:
                    record['rows'] += 1
                    pixels = image.tobytes()
                    f.write(pixels)
                    chunk.update(pixels)
                    sums.append(zlib.crc32(pixels))

                if done % CHUNK == 0 or done == len(files):
                    sync(f)  # before the record, which must not promise rows that are not there
                    record['files'] = done
                    record['chunks'].append(chunk.hexdigest())
                    write_json(f'{part}.json', record)
                    chunk = hashlib.sha256()
                progress.show(done)

        if strict and record['skipped']:
            file, why = record['skipped'][0]
            refuse(f'--strict: {file} cannot be read ({why})')
    except BaseException:
        if not read_json(f'{part}.json').get('files'):
            remove(part, f'{part}.json')  # there is nothing to continue from
        raise
    return record, sums


def resume_record(path, plan, files, head, row_bytes):
    """Where a conversion resumes: the record of an earlier process, and the CRC-32 of each of its rows.

    Where PATH.part is not what that record says, a new record.
    """
    part = f'{path}.part'
    record = read_json(f'{part}.json')
    if record.get('plan') == plan:
        if not os.path.exists(part) and os.path.exists(f'{path}.npy'):
            os.replace(f'{path}.npy', part)  # this split was finished, but the set was not
        try:
            return record, recorded_sums(part, record, files, head, row_bytes)
        except (OSError, ValueError, KeyError, TypeError) as e:
            tell(f'{part} is written anew, as it is not what {part}.json says ({type(e).__name__}: {e})')

    record = {'plan': plan, 'files': 0, 'rows': 0, 'skipped': [], 'chunks': []}
    try:
        write_json(f'{part}.json', record)  # before the first row, so that an old record never meets new rows
    except BaseException:
        remove(f'{part}.json')
        raise
    return record, []


def recorded_sums(part, record, files, head, row_bytes):
    """The CRC-32 of each row that the record of a conversion promises.

    Raises OSError, ValueError, KeyError or TypeError where the rows are not those that were written.
    """
    skipped = {file for file, _ in record['skipped']}
    done = min(len(record['chunks']) * CHUNK, len(files))
    if record['files'] != done:
        raise ValueError(f'it records {record["files"]} files of {done}')
    sums = []
    with open(part, 'rb') as f:
        f.seek(head)
        for number, digest in enumerate(record['chunks']):
            chunk = hashlib.sha256()
            for file in files[number * CHUNK:(number + 1) * CHUNK]:
                if file not in skipped:
                    pixels = f.read(row_bytes)
                    chunk.update(pixels)
                    sums.append(zlib.crc32(pixels))
            if chunk.hexdigest() != digest:
                raise ValueError(f'chunk {number} differs')
    if len(sums) != record['rows']:
        raise ValueError(f'it holds {len(sums)} rows')
    return sums


def map_ahead(pool, function, items, n):
    """Yield function(item) for each item, in order, while up to n of them are under way in the pool."""
    jobs = collections.deque()
    for item in items:
        jobs.append(pool.submit(function, item))
        if len(jobs) == n:
            yield jobs.popleft().result()
    while jobs:
        yield jobs.popleft().result()


class Progress:
    """How far a long work is, on stderr: a moving bar on a terminal, else a line every ten seconds."""

    def __init__(self, what, first, total):
        self.what = what
        self.first = first
        self.total = total
        self.is_terminal = sys.stderr.isatty()
        self.pause = .2 if self.is_terminal else 10  # seconds
        self.start = time.monotonic()
        self.shown = self.start

    def show(self, done):
        """Say that `done` of the items are done, if the last time is long ago or all are."""
        now = time.monotonic()
        if done < self.total and now - self.shown <= self.pause:
            return
        self.shown = now
        rate = (done - self.first) / (now - self.start + 1e-9)
        left = datetime.timedelta(seconds=int((self.total - done) / rate))

        bar = ''
        end = '\n'
        if self.is_terminal:
            bar = f"\r[{'#' * (20 * done // self.total):<20}] "
            end = '\n' if done == self.total else ''
        text = f'{self.what} {done}/{self.total}, {rate:.0f} images/s, {left} left '
        tell(bar + text, end)


# ---- batches, feeding and grids

def batch(images, index=None, flip=None):
    """A float batch of uint8 images, in [-1, 1], on their device, channels_last.

    images    uint8 [N, 3, H, W], a tensor or Rows
    index     n row numbers, or None for all rows
    flip      n booleans, true where an image is mirrored, or None

    Returns float32 [n, 3, H, W].
    """
    if index is None:
        x = images[:]
    else:
        x = images[torch.as_tensor(index, device=images.device)]
    if flip is not None:
        flip = torch.as_tensor(flip, device=x.device)[:, None, None, None]  # [n, 1, 1, 1]
        x = torch.where(flip, x.flip(3), x)
    x = x.contiguous(memory_format=torch.channels_last)
    return x.float() / 127.5 - 1


def fits(images, device):
    """Whether the images may live on the device: on a GPU whose free memory is more than twice their size.

    A tensor may stay where it is, and Rows stay in their file where the device is the CPU.
    """
    if device.type != 'cuda':
        return not isinstance(images, Rows)
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < free / 2


def feed(images, orders, device='cpu'):
    """An iterator over uint8 [n, 3, H, W] on the device, one for each list of n row numbers in `orders`.

    orders may be endless. What fits is moved to the device at once. Of other images a thread, which ends with
    the iterator, reads two batches ahead. Neither way waits for the device.
    """
    device = torch.device(device)
    if fits(images, device):
        return picked(images.to(device), orders)
    return read_ahead(images, orders, device)


def picked(images, orders):
    """Yield the rows of images on their device."""
    for index in orders:
        index = torch.as_tensor(index)
        if images.device.type != 'cpu':
            index = index.pin_memory().to(images.device, non_blocking=True)
        yield images[index]


def read_ahead(images, orders, device):
    """Yield rows of images of the CPU on the device. A thread reads them two batches ahead."""
    on_gpu = device.type != 'cpu'  # pinned memory is copied to the GPU while the GPU computes

    def read(index):
        x = images[index]
        return x.pin_memory() if on_gpu else x

    with ThreadPoolExecutor(1) as pool:
        # Three are under way: the one that is waited for, and two ahead.
        for x in map_ahead(pool, read, orders, 3):
            yield x.to(device, non_blocking=on_gpu)


def save_grid(path, images, columns=8):
    """Write uint8 images [N, 3, H, W] as one PNG, in reading order, filled up with white."""
    n, c, h, w = images.shape
    rows = -(-n // columns)  # rounded up
    sheet = np.full((rows * columns, h, w, c), 255, np.uint8)
    sheet[:n] = images.cpu().permute(0, 2, 3, 1).numpy()
    sheet = sheet.reshape(rows, columns, h, w, c)
    sheet = sheet.transpose(0, 2, 1, 3, 4)  # [rows, h, columns, w, c]
    sheet = sheet.reshape(rows * h, columns * w, c)
    with beside(path) as f:
        Image.fromarray(sheet).save(f, 'PNG')


# ---- python data/images.py: a conversion

def main(argv=None):
    """Convert a data set, and say what is in it."""
    parser = argparse.ArgumentParser(description='Convert a data set to one file that training reads.')
    parser.add_argument('data', metavar='NAME|FOLDER|ZIP',
                        help=f"{', '.join(CONVERTED)}, ffhq, lsun-..., or images (sub-folders are classes)")
    parser.add_argument('--root', default='datasets',
                        help='where named sets lie, and where the converted one goes, as ROOT/NAME-RES')
    parser.add_argument('--res', type=int, required=True, help='width and height of the images in pixels')
    parser.add_argument('--out', metavar='DIR', help='another place for the converted set')
    parser.add_argument('--crop', choices=['centre', 'pad'], default='centre', help='how images get square')
    parser.add_argument('--strict', action='store_true', help='stop at the first image that cannot be read')
    parser.add_argument('--workers', type=int, help='threads (default: one for each core)')
    args = parser.parse_args(argv)

    out = convert(args.data, args.root, args.res, args.crop, args.out, args.strict, args.workers)
    info = set_info(out)
    for split, about in info['splits'].items():
        print(f'{printable(out)}: {about["n"]} images in {split}')
        for line in skipped_report(about['skipped']):
            print(printable(line))
    for line in info.get('notes', []):
        print(printable(line))


def as_script(main):
    """Call the main function of a script, and exit: what comes from outside ends in one sentence or in none.

    The exit code is that of main; 129, 130 or 143 after a hang-up, Ctrl-C or kill; 141 where nobody reads
    stdout any more; 1 where a disk fails.
    """
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, 'w'))
        getattr(sys, name).reconfigure(errors='backslashreplace')  # for names that it cannot print

    def stop(number, frame):
        raise SystemExit(128 + number)

    signals = [getattr(signal, name, None) for name in ('SIGHUP', 'SIGINT', 'SIGTERM')]  # Windows lacks some
    signals = [number for number in signals if number and signal.getsignal(number) != signal.SIG_IGN]
    for number in signals:
        signal.signal(number, stop)
    code = 0
    try:
        try:
            main()
        except SystemExit as e:
            code = e.code
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 141
    except OSError as e:
        code = code or 1
        path = printable(str(e.filename or 'stdout'))
        tell(f'error: {path} cannot be read or written ({e.strerror or e}): is the disk full?')

    for number in signals:
        signal.signal(number, signal.SIG_DFL)  # no traceback of Ctrl-C while Python ends
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try once more, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


if __name__ == '__main__':
    as_script(main)
