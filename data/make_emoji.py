"""Draw the two bundled image sets, `emoji` (32x32) and `emoji-faces` (128x128), from Noto Color Emoji.

Use:
    apt install fonts-noto-color-emoji unicode-data libfribidi0
    pip install -r requirements.txt
    python data/make_emoji.py
    python data/make_emoji.py --font NotoColorEmoji.ttf --emoji-test emoji-test.txt --out data/emoji

The first line is for Debian. Elsewhere, name the font (the CBDT build, which has bitmaps) and the list with
the two flags. Sequences (flags, skin tones, families) need Pillow's raqm layout. Pillow's wheels carry raqm,
which loads libfribidi.

The files written are emoji.png, emoji-faces.png and emoji.json. One font, one list and one version of Pillow
give the same bytes each time. The artwork is Apache-2.0 and the font OFL-1.1, see data/emoji/LICENSE.md.
"""
import signal

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of Ctrl-C during the imports

import argparse
import io
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))     # the repository

from data.images import as_script, beside, tell  # noqa: E402

STRIKE = 109  # the one pixel size at which a CBDT Noto font has bitmaps, each 136 wide and 128 high
MARGIN = 4  # the bitmaps are 128x128 drawings with this much empty space on the left and on the right

FACE_TRAIN = 100  # as many as in a 100-shot set
FACE_TEST_MIN = 15
FACE_SEED = 0
FACE_NEAR = 24  # root mean square difference (of 255) under which two faces are variants of one drawing
FACE_EXTRA = {'clown face', 'full moon face', 'sun with face'}  # round faces of other subgroups

SKIN_TONE = '[\U0001f3fb-\U0001f3ff]'

# Each gendered glyph to the gender-neutral one, in which the joiner and U+FE0F are left out.
GENDER = str.maketrans({
    '👨': '🧑', '👩': '🧑', '👦': '🧒', '👧': '🧒', '👴': '🧓', '👵': '🧓', '🤴': '🫅', '👸': '🫅',
    '🎅': '🧑🎄', '🤶': '🧑🎄', '🤰': '🫄', '🫃': '🫄', '🕺': '💃', '🤝': '🫱🫲',
    '👫': '🧑🫱🫲🧑', '👬': '🧑🫱🫲🧑', '👭': '🧑🫱🫲🧑', '💏': '🧑❤💋🧑', '💑': '🧑❤🧑', '👪': '🧑🧑🧒',
})


# ---- flags and refusals

def get_args(argv=None):
    """The flags. Exits with code 2 where a file is missing."""
    share = Path('/usr/share')
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--font', type=Path, default=share / 'fonts/truetype/noto/NotoColorEmoji.ttf',
                        help='Noto Color Emoji, the CBDT build')
    parser.add_argument('--emoji-test', type=Path, default=share / 'unicode/emoji/emoji-test.txt',
                        help="Unicode's list of the emoji")
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'emoji', help='folder to write')
    args = parser.parse_args(argv)

    check_file('--font', args.font, 'fonts-noto-color-emoji')
    check_file('--emoji-test', args.emoji_test, 'unicode-data')
    if os.path.lexists(args.out) and not os.path.isdir(args.out):
        fail(f'--out {args.out} is not a folder; name a folder with --out.')
    return args


def check_file(flag, path, package):
    """Exit with code 2 where the file of a flag is missing, which a Debian package holds."""
    if not os.path.isfile(path):  # unlike Path.is_file, of a name of 300 letters, too
        fail(f'{flag} {path} is not a file; '
             f'install the Debian package {package} or name the file with {flag}.')


def fail(sentence, code=2):
    """End the program with one sentence and an exit code."""
    tell(f'make_emoji.py: error: {sentence}')
    raise SystemExit(code)


# ---- the list and the font

class Entry(NamedTuple):
    """One fully-qualified line of emoji-test.txt."""
    group: str
    subgroup: str
    text: str
    name: str


def read_list(path):
    """The version of Unicode's emoji-test.txt, and a list of its Entries in Unicode order."""
    line_of_emoji = re.compile(r'([0-9A-F ]+); fully-qualified +# \S+ E[\d.]+ (.+)')  # codes, status, name
    version = group = subgroup = ''
    entries = []
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        fail(f'--emoji-test {path} is not the list of Unicode ({error}); name another with --emoji-test.')
    for line in text.splitlines():
        match = line_of_emoji.match(line)
        if match:
            codes, name = match.groups()
            emoji = ''.join(chr(int(code, 16)) for code in codes.split())
            entries.append(Entry(group, subgroup, emoji, name))
        elif line.startswith('# Version: '):
            version = line.split()[-1]
        elif line.startswith('# group: '):
            group = line.removeprefix('# group: ')
        elif line.startswith('# subgroup: '):
            subgroup = line.removeprefix('# subgroup: ')
    return version, entries


def open_font(path):
    """The bitmap strike, with the layout engine that joins sequences into one glyph."""
    if not features.check('raqm'):
        fail('Pillow has no raqm layout here; '
             'install libfribidi0 (Debian) or fribidi and a pip wheel of Pillow.')
    try:
        return ImageFont.truetype(path, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        fail(f'--font {path} has no bitmaps of size {STRIKE} ({error}); name the CBDT build with --font.')


def font_version(path):
    """The version number in the names of a font file, which Pillow does not tell."""
    found = re.search(rb'V\0e\0r\0s\0i\0o\0n\0 \0([0-9.\0]+)', path.read_bytes())  # in UTF-16
    if found is None:
        return 'unknown'
    return found[1].replace(b'\0', b'').decode()


def draw_glyph(font, text):
    """One emoji on white, 128x128, pixel for pixel as the font stores it; None if it is not one glyph."""
    # A sequence without a glyph of its own is as wide as its parts. An unknown character is empty.
    one_glyph = font.getlength(text) == font.getlength('😀')
    if not one_glyph or not font.getmask(text).getbbox():
        return None
    image = Image.new('RGB', (128, 128), 'white')
    ImageDraw.Draw(image).text((-MARGIN, 0), text, font=font, embedded_color=True)
    return image


# ---- bases: the variants of one glyph

def neutral(text):
    """The text without skin tone and gender: all variants of one people glyph give the same string."""
    # Skin tones, joiners and U+FE0F go, and so does a female or male sign that a joiner precedes.
    text = re.sub(SKIN_TONE + '|[\u200d\ufe0f]|(?<=\u200d)[\u2640\u2642]', '', text)
    return text.translate(GENDER)


def number_bases(entries, tiles):
    """The number of the base glyph of each emoji, a list of N ints, in the order of first appearance.

    Variants of one glyph share a base, and so do identical drawings, as of some flags.
    tiles is uint8 [N, S, S, 3].
    """
    number = {}  # of a neutral text or of the bytes of a drawing
    base = []
    for entry, tile in zip(entries, tiles, strict=True):
        key = neutral(entry.text)
        pixels = tile.tobytes()
        if key in number:
            mine = number[key]
        elif pixels in number:
            mine = number[pixels]
        else:
            mine = 1 + max(base, default=-1)
        number[key] = mine
        number[pixels] = mine
        base.append(mine)
    return base


def is_face(entry):
    """Whether an emoji is a round face, or a cat that wears one of their expressions."""
    if entry.subgroup == 'cat-face' or entry.name in FACE_EXTRA:
        return True
    if entry.subgroup == 'face-costume' or 'skull' in entry.name:
        return False
    return entry.subgroup.startswith('face-')


def number_faces(entries, tiles):
    """The number of the base of each face, a list of N ints, in the order of first appearance.

    Faces share a base if their first code point is the same, or if their drawings are nearly the same, or if
    both share it with a third. tiles is uint8 [N, S, S, 3].
    """
    pixels = tiles.astype(np.int32)
    label = list(range(len(entries)))
    for i, entry in enumerate(entries):
        distance = np.mean((pixels[:i] - pixels[i]) ** 2, axis=(1, 2, 3))  # mean square, [i]
        near = distance < FACE_NEAR ** 2
        for j in range(i):
            if near[j] or entries[j].text[0] == entry.text[0]:
                mine = label[i]
                label = [label[j] if old == mine else old for old in label]
    order = list(dict.fromkeys(label))
    return [order.index(old) for old in label]


def choose_test(base):
    """Which faces are held out, N bools: whole bases, in a seeded order, until FACE_TRAIN are left."""
    rng = random.Random(FACE_SEED)
    sizes = Counter(base)
    spare = len(base) - FACE_TRAIN
    test = set()
    for key in sorted(sizes, key=lambda _: rng.random()):
        if sizes[key] <= spare:
            test.add(key)
            spare -= sizes[key]
    return [key in test for key in base]


# ---- the files

def make_emoji(out, drawn, classes):
    """Write the emoji {Entry: image} at 32x32, and return the fields of the set."""
    entries = list(drawn)
    small = [image.resize((32, 32), Image.Resampling.LANCZOS) for image in drawn.values()]
    tiles = np.stack(small)  # uint8 [N, 32, 32, 3]
    save_atlas(out / 'emoji.png', tiles, columns=64)
    return describe(entries, number_bases(entries, tiles), classes, atlas='emoji.png', size=32, columns=64)


def make_faces(out, drawn, classes):
    """Write the faces {Entry: image} at 128x128, training images first, and return the fields of the set."""
    entries = list(drawn)
    tiles = np.stack(list(drawn.values()))  # uint8 [N, 128, 128, 3]
    base = number_faces(entries, tiles)
    test = choose_test(base)

    order = sorted(range(len(entries)), key=lambda i: test[i])  # stable
    save_atlas(out / 'emoji-faces.png', tiles[order], columns=10)
    split = ['test' if test[i] else 'train' for i in order]
    entries = [entries[i] for i in order]
    base = [base[i] for i in order]
    return describe(entries, base, classes, atlas='emoji-faces.png', size=128, columns=10, split=split)


def save_atlas(path, tiles, columns):
    """Write tiles uint8 [N, S, S, 3] in reading order as one PNG, whose last row is filled up with white."""
    size = tiles.shape[1]
    blank = np.full((-len(tiles) % columns, size, size, 3), 255, np.uint8)
    grid = np.concatenate([tiles, blank]).reshape(-1, columns, size, size, 3)
    grid = grid.swapaxes(1, 2)  # [rows, S, columns, S, 3]
    content = io.BytesIO()
    Image.fromarray(grid.reshape(-1, columns * size, 3)).save(content, 'PNG', optimize=True)
    write_file(path, content.getvalue())


def describe(entries, base, classes, **settings):
    """The fields of one set: the settings first, then one list of N values for each field."""
    fields = {**settings, 'class': [], 'base': base, 'plain': [], 'codes': [], 'names': []}
    for entry in entries:
        codes = [f'{ord(char):x}' for char in entry.text]
        fields['class'].append(classes.index(entry.group))
        fields['plain'].append(not re.search(SKIN_TONE, entry.text))
        fields['codes'].append('-'.join(codes))
        fields['names'].append(entry.name)
    return fields


def save_json(path, about):
    """Write compact JSON with one line for each list, so that a change shows as a few lines."""
    text = json.dumps(about, ensure_ascii=False, separators=(',', ':'))
    text = re.sub(r'\{|[]}],(?=")', r'\g<0>\n', text)
    write_file(path, (text + '\n').encode())


def write_file(path, content):
    """Write a file beside its place, then rename it. Exits with code 1 where the disk fails."""
    try:
        with beside(path) as file:
            file.write(content)
    except OSError as error:
        fail(f'{path} cannot be written ({error.strerror}); make room on that disk, or name a folder '
             'on another one with --out.', code=1)


def print_histogram(classes, fields):
    """Print the number of images, plain images and bases of each class of one set."""
    rows = list(zip(fields['class'], fields['plain'], fields['base'], strict=True))
    print(f'{"class":<20}{"images":>8}{"plain":>8}{"bases":>8}')
    for number, name in [*enumerate(classes), (None, 'total')]:
        mine = [row for row in rows if number in (None, row[0])]
        plain = sum(row[1] for row in mine)
        bases = len({row[2] for row in mine})
        print(f'{name:<20}{len(mine):>8}{plain:>8}{bases:>8}')


def main(argv=None):
    """Draw both sets, write their description and print the histogram of the classes."""
    args = get_args(argv)
    font = open_font(args.font)
    version, listed = read_list(args.emoji_test)

    # Draw what the font has. The list may be newer than the font.
    drawn = {}
    for entry in listed:
        image = draw_glyph(font, entry.text)
        if image is not None:
            drawn[entry] = image
    faces = {entry: image for entry, image in drawn.items() if is_face(entry)}
    if len(faces) < FACE_TRAIN + FACE_TEST_MIN:
        fail(f'--emoji-test {args.emoji_test} and --font {args.font} share {len(faces)} faces of the '
             f'{FACE_TRAIN + FACE_TEST_MIN} needed; take the list and font of Unicode 15 or newer.')

    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f'--out {args.out} cannot be made ({error.strerror}); name another folder with --out.')
    classes = list(dict.fromkeys(entry.group for entry in drawn))  # in Unicode order
    about = {'font': font.getname()[0], 'font_version': font_version(args.font), 'unicode': version}
    sets = {'emoji': make_emoji(args.out, drawn, classes),
            'emoji-faces': make_faces(args.out, faces, classes)}
    save_json(args.out / 'emoji.json', {**about, 'classes': classes, 'sets': sets})

    print_histogram(classes, sets['emoji'])
    print(f'left out, not one glyph of the font: {len(listed) - len(drawn)}')
    print('emoji-faces:', dict(Counter(sets['emoji-faces']['split'])))


if __name__ == '__main__':
    as_script(main)
