"""Draws the two bundled image sets, `emoji` (32x32) and `emoji-faces` (128x128), from Noto Color Emoji.

    apt install fonts-noto-color-emoji unicode-data libfribidi0
    pip install numpy pillow
    python data/make_emoji.py
    python data/make_emoji.py --font NotoColorEmoji.ttf --emoji-test emoji-test.txt --out data/emoji

The first line is for Debian; elsewhere name the font (the CBDT build, with bitmaps) and the list with the flags.
Sequences (flags, skin tones, families) need Pillow's raqm layout; its wheels carry it and load libfribidi when run.
Writes emoji.png, emoji-faces.png and emoji.json; one font, list and Pillow give the same bytes each time.
The artwork is Apache-2.0 and the font OFL-1.1, see data/emoji/LICENSE.md.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

STRIKE = 109  # the one pixel size at which a CBDT Noto font has bitmaps, each 136 wide and 128 high
MARGIN = 4  # the bitmaps are 128x128 drawings with this much empty space on the left and on the right
FACE_TRAIN, FACE_TEST_MIN = 100, 15
FACE_SEED = 0
FACE_NEAR = 24  # root mean square difference (of 255) under which two faces count as variants of one drawing
FACE_EXTRA = {'clown face', 'full moon face', 'sun with face'}  # round faces of other subgroups
GENDER = str.maketrans({  # each gendered glyph to the gender-neutral one, in which ZWJ and U+FE0F are left out
    '👨': '🧑', '👩': '🧑', '👦': '🧒', '👧': '🧒', '👴': '🧓', '👵': '🧓', '🤴': '🫅', '👸': '🫅', '🕺': '💃',
    '🎅': '🧑🎄', '🤶': '🧑🎄', '🤰': '🫄', '🫃': '🫄', '🤝': '🫱🫲', '👫': '🧑🫱🫲🧑', '👬': '🧑🫱🫲🧑',
    '👭': '🧑🫱🫲🧑', '💏': '🧑❤💋🧑', '💑': '🧑❤🧑', '👪': '🧑🧑🧒',
})


class Entry(NamedTuple):
    """One fully-qualified line of emoji-test.txt."""
    group: str
    subgroup: str
    text: str
    name: str


def fail(message):
    """Ends the program with one sentence and exit code 2."""
    print(f'make_emoji.py: error: {message}', file=sys.stderr)
    raise SystemExit(2)


def read_list(path):
    """Reads emoji-test.txt into its Unicode emoji version and a list of entries in Unicode order."""
    version, group, subgroup, entries = '', '', '', []
    for line in path.read_text(encoding='utf-8').splitlines():
        if line.startswith('# Version: '):
            version = line.split()[-1]
        elif line.startswith('# group: '):
            group = line.removeprefix('# group: ')
        elif line.startswith('# subgroup: '):
            subgroup = line.removeprefix('# subgroup: ')
        elif match := re.match(r'([0-9A-F ]+); fully-qualified +# \S+ E[\d.]+ (.+)', line):
            text = ''.join(chr(int(code, 16)) for code in match[1].split())
            entries.append(Entry(group, subgroup, text, match[2]))
    return version, entries


def font_version(path):
    """Finds the version number in the names of a font file, as Pillow tells the family and style only."""
    found = re.search(rb'V\0e\0r\0s\0i\0o\0n\0 \0([0-9.\0]+)', path.read_bytes())
    return found[1].replace(b'\0', b'').decode() if found else 'unknown'


def draw(font, text):
    """Draws one emoji on white, pixel for pixel as the font stores it, or returns None if it is not one glyph."""
    if font.getlength(text) != font.getlength('😀') or not font.getmask(text).getbbox():
        return None
    image = Image.new('RGB', (128, 128), 'white')
    ImageDraw.Draw(image).text((-MARGIN, 0), text, font=font, embedded_color=True)
    return image


def neutral(text):
    """Strips skin tone and gender, so that all variants of one people glyph give the same string."""
    return re.sub('[\U0001f3fb-\U0001f3ff\u200d\ufe0f]|(?<=\u200d)[\u2640\u2642]', '', text).translate(GENDER)


def number_bases(entries, tiles):
    """Numbers the base glyphs by first appearance; identical drawings (some flags) share one, int [N]."""
    number, base = {}, []
    for entry, tile in zip(entries, tiles, strict=True):
        key, pixels = neutral(entry.text), tile.tobytes()
        base.append(number.get(key, number.get(pixels, 1 + max(base, default=-1))))
        number[key] = number[pixels] = base[-1]
    return base


def is_face(entry):
    """Tells the round faces, and the cats that wear the same expressions, from the other emoji."""
    expression = entry.subgroup.startswith('face-') and entry.subgroup != 'face-costume'
    return (expression and 'skull' not in entry.name) or entry.subgroup == 'cat-face' or entry.name in FACE_EXTRA


def number_faces(entries, tiles):
    """Gives faces with one leading code point, or with nearly the same drawing, one number, int [N]."""
    pixels, label = tiles.astype(np.int32), list(range(len(entries)))
    for i, entry in enumerate(entries):
        near = np.mean((pixels[:i] - pixels[i]) ** 2, axis=(1, 2, 3)) < FACE_NEAR ** 2  # bool [i]
        for j in range(i):
            if near[j] or entries[j].text[0] == entry.text[0]:
                label = [label[j] if old == label[i] else old for old in label]
    order = list(dict.fromkeys(label))
    return [order.index(old) for old in label]


def choose_test(base):
    """Holds out whole bases, in a seeded order, until FACE_TRAIN images are left, bool [N]."""
    rng, sizes, test = random.Random(FACE_SEED), Counter(base), set()
    for key in sorted(sizes, key=lambda _: rng.random()):
        if sum(sizes[k] for k in test) + sizes[key] <= len(base) - FACE_TRAIN:
            test.add(key)
    return [key in test for key in base]


def save_atlas(path, tiles, columns):
    """Writes tiles in reading order as one PNG; the last row is filled up with white."""
    size = tiles.shape[1]
    blank = np.full((-len(tiles) % columns, size, size, 3), 255, np.uint8)
    grid = np.concatenate([tiles, blank]).reshape(-1, columns, size, size, 3)  # uint8 [rows, columns, S, S, 3]
    image = grid.swapaxes(1, 2).reshape(-1, columns * size, 3)  # uint8 [rows * S, columns * S, 3]
    Image.fromarray(image).save(path, optimize=True)


def describe(entries, base, classes, **fields):
    """Collects the fields of one set: settings first, then one flat list of N values per field."""
    return {
        **fields,
        'class': [classes.index(entry.group) for entry in entries],
        'base': base,
        'plain': [not re.search('[\U0001f3fb-\U0001f3ff]', entry.text) for entry in entries],
        'codes': ['-'.join(f'{ord(char):x}' for char in entry.text) for entry in entries],
        'names': [entry.name for entry in entries],
    }


def make_emoji(out, entries, images, classes):
    """Writes every emoji at 32x32 and returns the fields of the set."""
    tiles = np.stack([image.resize((32, 32), Image.Resampling.LANCZOS) for image in images])  # uint8 [N, 32, 32, 3]
    save_atlas(out / 'emoji.png', tiles, columns=64)
    return describe(entries, number_bases(entries, tiles), classes, atlas='emoji.png', size=32, columns=64)


def make_faces(out, entries, images, classes):
    """Writes the faces at 128x128, the training images first, and returns the fields of the set."""
    tiles = np.stack(images)  # uint8 [N, 128, 128, 3]
    base = number_faces(entries, tiles)
    test = choose_test(base)
    order = sorted(range(len(entries)), key=lambda i: test[i])
    save_atlas(out / 'emoji-faces.png', tiles[order], columns=10)
    split = ['test' if test[i] else 'train' for i in order]
    return describe([entries[i] for i in order], [base[i] for i in order], classes,
                    atlas='emoji-faces.png', size=128, columns=10, split=split)


def save_json(path, about):
    """Writes compact JSON with one line per list, so that a change shows as a few lines."""
    text = json.dumps(about, ensure_ascii=False, separators=(',', ':'))
    path.write_text(re.sub(r'\{|[]}],(?=")', r'\g<0>\n', text) + '\n', encoding='utf-8')


def print_histogram(classes, fields):
    """Prints the images, plain images and bases of each class of one set."""
    rows = list(zip(fields['class'], fields['plain'], fields['base'], strict=True))
    print(f'{"class":<20}{"images":>8}{"plain":>8}{"bases":>8}')
    for number, name in [*enumerate(classes), (None, 'total')]:
        mine = [row for row in rows if number in (None, row[0])]
        print(f'{name:<20}{len(mine):>8}{sum(row[1] for row in mine):>8}{len({row[2] for row in mine}):>8}')


def parse_flags():
    """Reads the flags and ends the program if a file is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    share = Path('/usr/share')
    parser.add_argument('--font', type=Path, default=share / 'fonts/truetype/noto/NotoColorEmoji.ttf', help='CBDT font')
    parser.add_argument('--emoji-test', type=Path, default=share / 'unicode/emoji/emoji-test.txt', help='Unicode list')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'emoji', help='folder to write')
    flags = parser.parse_args()
    for name, path, package in [('--font', flags.font, 'fonts-noto-color-emoji'),
                                ('--emoji-test', flags.emoji_test, 'unicode-data')]:
        if not path.is_file():
            fail(f'{name} {path} is not a file; install the Debian package {package} or name the file with {name}.')
    if flags.out.exists() and not flags.out.is_dir():
        fail(f'--out {flags.out} is not a folder; name a folder with --out.')
    return flags


def open_font(path):
    """Opens the bitmap strike with the layout engine that joins sequences into one glyph."""
    if not features.check('raqm'):
        fail('Pillow has no raqm layout here; install libfribidi0 (Debian) or fribidi and a pip wheel of Pillow.')
    try:
        return ImageFont.truetype(path, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        fail(f'--font {path} has no bitmaps of size {STRIKE} ({error}); name the CBDT NotoColorEmoji.ttf with --font.')


def main():
    """Draws both sets, writes their description and prints the class histogram."""
    flags = parse_flags()
    font = open_font(flags.font)
    version, listed = read_list(flags.emoji_test)
    drawn = {entry: image for entry in listed if (image := draw(font, entry.text))}
    faces = {entry: image for entry, image in drawn.items() if is_face(entry)}
    if len(faces) < FACE_TRAIN + FACE_TEST_MIN:
        fail(f'--emoji-test {flags.emoji_test} and --font {flags.font} share {len(faces)} faces of the '
             f'{FACE_TRAIN + FACE_TEST_MIN} needed; take the list and font of Unicode 15 or newer.')
    flags.out.mkdir(parents=True, exist_ok=True)
    classes = list(dict.fromkeys(entry.group for entry in drawn))
    about = {'font': font.getname()[0], 'font_version': font_version(flags.font), 'unicode': version}
    sets = {'emoji': make_emoji(flags.out, list(drawn), list(drawn.values()), classes),
            'emoji-faces': make_faces(flags.out, list(faces), list(faces.values()), classes)}
    save_json(flags.out / 'emoji.json', {**about, 'classes': classes, 'sets': sets})
    print_histogram(classes, sets['emoji'])
    print(f'left out, not one glyph of the font: {len(listed) - len(drawn)}')
    print('emoji-faces:', dict(Counter(sets['emoji-faces']['split'])))


if __name__ == '__main__':
    main()
