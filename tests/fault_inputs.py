"""For faults.py: the odd pictures, special files, zips and JSON files that the scripts are given.

Use:
    for name, data in odd_pictures():                          # bytes of files that people have
        print(name, readable(data))
    make_special('fifo', 'folder/x.png')                       # what is no regular file
    for note, (data, expected) in broken_zips(whole).items(): ...
"""
import contextlib
import io
import json
import os
import re
import socket
import stat
import struct
import warnings
import zipfile
import zlib

import numpy as np
from PIL import Image

FORMATS = 'PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF', 'PPM'   # what the endings of images promise
MEGABYTE = 2 ** 20


def write(path, data):
    """Write bytes to a path, with its folders; returns the path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
        f.write(data)
    return path


def picture(size=(40, 40), mode='RGB', seed=0):
    """A picture of noise."""
    x = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(x).convert(mode)


def saved(image, form, **how):
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def good_picture(seed=0):
    """A picture as the bytes of a PNG."""
    return saved(picture(seed=seed), 'PNG')


def readable(data):
    """Whether Pillow decodes these bytes by the formats that the endings promise."""
    try:
        Image.open(io.BytesIO(data), formats=FORMATS).convert('RGB')
    except Exception:                                          # of every kind
        return False
    return True


# ---- what a renderer would run

EPS = (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n'
       b'(/tmp/faults-executed) (w) file closefile\n{} loop\nshowpage\n')
IMAGE_DATA = b'%ImageData: 8 8 8 3 0 1 1 "beginimage"\n%%EndComments'
PREVIEW = b'%%BeginPreview: 8 8 1 1\n%FF\n%%EndPreview\n%%EndComments'
PROGRAMS = {
    'EPS': EPS,
    'EPS in a DOS header': struct.pack('<IIIIIIIH', 0xC6D3D0C5, 30, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS,
    'EPS with a preview': EPS.replace(b'%%EndComments', PREVIEW),
    'EPS with ImageData': EPS.replace(b'%%EndComments', IMAGE_DATA),
    'EPS by Pillow': saved(picture(), 'EPS'),
    'PostScript': b'%!PS-Adobe-2.0\n%%BoundingBox: 0 0 9 9\n{} loop\n',
    'PostScript, bare': b'%!PS\n{} loop\n',
    'PDF': saved(picture(), 'PDF'),
    'SVG': b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    'MVG': b"push graphic-context\nimage over 0,0 0,0 'https://x/|touch /tmp/faults-executed'\n",
    'a shell script': b'#!/bin/sh\ntouch /tmp/faults-executed\n',
    'a pickle': b"cos\nsystem\n(S'touch /tmp/faults-executed'\ntR.",
}
FOREIGN = {                                  # formats that Pillow reads and no ending promises: their modes
    'ICO': 'RGB', 'ICNS': 'RGB', 'IM': 'RGB', 'PCX': 'RGB', 'SGI': 'RGB', 'TGA': 'RGB', 'DDS': 'RGB',
    'JPEG2000': 'RGB', 'MSP': '1', 'XBM': '1', 'SPIDER': 'F', 'AVIF': 'RGB', 'QOI': 'RGB', 'BLP': 'P',
}


# ---- odd pictures, huge pictures

def png_chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, bits=8, colour=2, data=bytes(99), more=b''):
    """A PNG with this head, whatever the data."""
    head = png_chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0))
    body = png_chunk(b'IDAT', zlib.compress(data)) + png_chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + head + more + body


def odd_pictures():
    """Yield (name, bytes) of pictures that may be read or not: `readable` says what is expected."""
    p, frames = picture(), [picture(seed=i) for i in range(3)]
    for form in FORMATS:
        data, ending = saved(p, form), form.lower()
        for share in (0, .001, .05, .3, .6, .9, .9999):
            yield f'{form} cut at {share}.{ending}', data[:int(share * len(data))]
        yield f'{form} with rubbish behind.{ending}', data + bytes(5000)
        other = FORMATS[FORMATS.index(form) - 1]
        yield f'{other} under the name of {form}.{ending}', saved(p, other)

    for mode in ('1', 'L', 'LA', 'P', 'RGBA'):
        yield f'PNG of {mode}.png', saved(p.convert(mode), 'PNG')
    for mode in ('1', 'L', 'P', 'RGBA', 'CMYK', 'YCbCr'):
        yield f'TIFF of {mode}.tif', saved(p.convert(mode), 'TIFF')
    for mode in ('LAB', 'I;16', 'F'):
        yield f'TIFF of {mode}.tif', saved(Image.new(mode, (40, 40)), 'TIFF')
    for mode in ('L', 'CMYK', 'YCbCr'):
        yield f'JPEG of {mode}.jpg', saved(p.convert(mode), 'JPEG')
    for form in ('GIF', 'WEBP', 'PNG', 'TIFF'):
        yield f'{form}, animated.{form.lower()}', saved(p, form, save_all=True, append_images=frames)

    for turn in range(10):
        exif = Image.Exif()
        exif[0x0112] = turn
        yield f'JPEG, EXIF {turn}.jpg', saved(p, 'JPEG', exif=exif)
    yield 'JPEG, EXIF of rubbish.jpg', saved(p, 'JPEG', exif=b'Exif\0\0' + bytes(range(200)))
    yield 'JPEG, torn EXIF.jpg', saved(p, 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + b'\x01\x12' * 99)
    yield 'JPEG, progressive.jpg', saved(p, 'JPEG', progressive=True)
    yield 'JPEG, ICC of rubbish.jpg', saved(p, 'JPEG', icc_profile=b'rubbish' * 99)
    yield 'PNG of 16 bits.png', saved(Image.fromarray(np.full((40, 40), 999, np.uint16)), 'PNG')
    yield 'PNG of 16 bits RGB.png', png(9, 9, 16, 2, bytes(9 * (1 + 54)))
    yield 'PNG, wrong CRC.png', good_picture()[:-20] + bytes(20)
    text = b'a\0\0' + zlib.compress(bytes(256 * MEGABYTE))
    yield 'PNG, text bomb.png', png(9, 9, 8, 0, bytes(90), png_chunk(b'zTXt', text))
    for width, height in ((1, 1), (1, 3000), (3000, 1), (7, 5)):
        yield f'PNG of {width} x {height}.png', saved(picture((width, height)), 'PNG')
    yield 'PNG of 0 x 0.png', png(0, 0)


def floats():
    """Yield (name, bytes) of TIFFs of floats that are no grey values."""
    for value in (np.nan, np.inf, -1e30):
        yield f'TIFF of {value}.tif', saved(Image.fromarray(np.full((40, 40), value, np.float32)), 'TIFF')


def larger(form):
    """A small file whose head promises a huge picture."""
    if form == 'PNG':
        return png(60000, 60000)
    if form == 'PPM':
        return b'P6 60000 60000 255\n' + bytes(999)
    data = bytearray(saved(picture(), form))
    if form == 'BMP':
        data[18:26] = struct.pack('<ii', 60000, 60000)
    elif form == 'GIF':
        at = data.index(b'\x2c', 13 + 3 * 256)                 # the image descriptor, behind the palette
        data[6:10] = data[at + 5:at + 9] = struct.pack('<HH', 65535, 65535)
    elif form == 'JPEG':
        at = data.index(b'\xff\xc0')                           # SOF0
        data[at + 5:at + 9] = struct.pack('>HH', 65500, 65500)
    elif form == 'WEBP':
        at = data.index(b'\x9d\x01\x2a')                       # the head of a key frame
        data[at + 3:at + 7] = struct.pack('<HH', 16383, 16383)
    elif form == 'TIFF':
        for tag in (256, 257):                                 # width and height
            at = data.find(struct.pack('<HHI', tag, 4, 1))
            if at < 0:
                at = data.find(struct.pack('<HHI', tag, 3, 1))
            data[at + 2:at + 12] = struct.pack('<HII', 4, 1, 60000)
    return bytes(data)


def huge_pictures():
    """Yield (name, bytes) of small files that would take much memory."""
    for form in FORMATS:
        yield f'huge.{form.lower()}', larger(form)
    side = 13000
    yield f'{side} px of 1 bit.png', png(side, side, 1, 0, bytes(side * (1 + side // 8)))
    yield f'{side} px of 24 bits.png', png(side, side, 8, 2, bytes(side * (1 + 3 * side)))


# ---- files that are no regular files, and names

LINKS = {
    'link to /dev/zero': '/dev/zero', 'link to /dev/full': '/dev/full', 'link to a terminal': '/dev/ptmx',
    'link to /proc/kmsg': '/proc/kmsg', 'link to /proc/self/mem': '/proc/self/mem',
    'link to nothing': 'nothing', 'link to itself': 'x.png', 'link to its folder': '.',
}
SPECIAL = ['fifo', 'socket', 'directory', '3 GB without content', *LINKS]
WORST = ['fifo', '3 GB without content', 'link to /dev/zero', 'link to /proc/kmsg', 'link to nothing']


def make_special(kind, path):
    """Make a file of SPECIAL at path, whose name is x.png."""
    if kind in LINKS:
        os.symlink(LINKS[kind], path)
    elif kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'socket':
        with socket.socket(socket.AF_UNIX) as s, contextlib.chdir(os.path.dirname(path)):
            s.bind(os.path.basename(path))                     # a whole path may be too long
    elif kind == 'directory':
        os.mkdir(path)
    else:
        with open(path, 'wb') as f:
            f.truncate(3 * 2 ** 30)


UNPRINTABLE = b'\xff\xfe.png'
NEWLINE = b'new\nline.png'
ODD_NAMES = [
    NEWLINE, UNPRINTABLE, b'tab\t.png', b'\x1b[31mred.png', b'-rf.png', b'quote\'".png', b'%s%n{}.png',
    b'caf\xe9.png', 'é.png'.encode(), 'e\u0301.png'.encode(), '\u202egnp.exe.png'.encode(), '😀.png'.encode(),
    b'back\\slash.png', b' .png', b'x. .png', b'n' * 251 + b'.png', b'UPPER.PNG', b'a.b.c.JpEg',
    '\u00a0\u2028.png'.encode(),
]
PASSED_OVER = [b'._x.png', b'.hidden.png', b'Thumbs.db', b'.DS_Store', b'desktop.ini', b'__MACOSX/x.png',
               b'.git/x.png', b'x.png.crdownload', b'x.png~', b'notes.txt']


# ---- zips

LOCAL, CENTRAL, END = b'PK\x03\x04', b'PK\x01\x02', b'PK\x05\x06'


def make_zip(path, entries, good=0, **how):
    """Write a zip of so many good pictures and of {name: bytes}; returns its path."""
    with zipfile.ZipFile(path, 'w', **how) as z:
        for i in range(good):
            z.writestr(f'{i}.png', good_picture(i))
        for member, data in entries.items():
            z.writestr(member, data)
    return path


def patched(data, sign, offset, form, *values):
    """Bytes with values packed in at `offset` behind the last place of a signature."""
    out = bytearray(data)
    struct.pack_into(form, out, data.rindex(sign) + offset, *values)
    return bytes(out)


def broken_zips(whole):
    """{what: (bytes, expected)} of a zip of five pictures, of which the last may be lost, but not in silence.

    expected: 'counted' or 'refused', see faults.scan."""
    encrypted = patched(patched(whole, LOCAL, 6, '<H', 1), CENTRAL, 8, '<H', 1)
    method = patched(patched(whole, LOCAL, 8, '<H', 99), CENTRAL, 10, '<H', 99)
    counted = {
        'an encrypted member': encrypted,
        'method 99': method,
        'a wrong CRC': patched(whole, CENTRAL, 16, '<I', 1),
        'size 4 GB in the directory': patched(whole, CENTRAL, 24, '<I', 0xFFFFFFFE),
        'packed size 4 GB': patched(whole, CENTRAL, 20, '<I', 0xFFFFFFFE),
        'size 0 in the directory': patched(whole, CENTRAL, 24, '<I', 0),
        'zip64 without its record': patched(whole, CENTRAL, 20, '<II', 0xFFFFFFFF, 0xFFFFFFFF),
        'an offset beyond the end': patched(whole, CENTRAL, 42, '<I', 0x7FFFFFFF),
        'the offset of another member': patched(whole, CENTRAL, 42, '<I', 0),
        'a name of 65535 bytes': patched(whole, CENTRAL, 28, '<H', 65535),
        'a directory of 65535 entries': patched(whole, END, 8, '<HH', 65535, 65535),
        'a directory of one entry': patched(whole, END, 8, '<HH', 1, 1),
        'a directory at 0': patched(whole, END, 16, '<I', 0),
        'a comment of 65535 bytes': patched(whole, END, 20, '<H', 65535),
        'no last byte': whole[:-1],
        'rubbish before it': bytes(999) + whole,
        'rubbish behind it': whole + bytes(99),
        'itself once more behind it': whole + whole,
    }
    refused = {
        'half of it': whole[:len(whole) // 2], 'one byte': b'P', 'no byte': b'', 'an end alone': whole[-22:],
        'a tar': b'x.png' + bytes(1019), 'a gzip': b'\x1f\x8b\x08' + bytes(99),
        'a rar': b'Rar!\x1a\x07\x00' + bytes(99),
    }
    found = {what: (data, 'counted') for what, data in counted.items()}
    return found | {what: (data, 'refused') for what, data in refused.items()}


def flipped_directories(whole, rng, count):
    """{what: (bytes, expected)} of a zip with a flipped bit in its central directory."""
    found = {}
    for _ in range(count):
        out = bytearray(whole)
        at, bit = int(rng.integers(whole.index(CENTRAL), len(whole))), int(rng.integers(8))
        out[at] ^= 1 << bit
        found[f'bit {bit} of byte {at} flipped, in the directory'] = bytes(out), 'counted'
    return found


def odd_members(p, whole):
    """{what: ({member: bytes}, expected)} beside four good pictures 0.png ... 3.png.

    p: a picture.  whole: a zip."""
    return {
        'backslashes': ({'a\\x.png': p}, 'read'), 'an absolute path': ({'/etc/x.png': p}, 'either'),
        'a path upwards': ({'../../x.png': p}, 'either'), 'a drive': ({'C:\\x.png': p}, 'either'),
        'a deep path': ({'d/' * 500 + 'x.png': p}, 'read'),
        'a folder named x.png/': ({'x.png/': b''}, 'unread'),
        'a name in cp437': ({'caf\x82.png': p}, 'read'), 'a newline in the name': ({'a\nb.png': p}, 'read'),
        '__MACOSX': ({'__MACOSX/._x.png': b'rubbish'}, 'unread'),
        '._x.png': ({'._x.png': b'rubbish'}, 'unread'),
        'Thumbs.db': ({'Thumbs.db': b'rubbish'}, 'unread'), '0.PNG beside 0.png': ({'0.PNG': p}, 'read'),
        'a zip inside': ({'x.zip': whole}, 'unread'), 'rubbish': ({'x.png': b'rubbish'}, 'named'),
        'an empty member': ({'x.png': b''}, 'named'),
    }


def make_bomb(path):
    """Write a zip of four good pictures and of a member of 1.5 GB of zeros, in 7 MB."""
    make_zip(path, {}, good=4)
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        with z.open('x.png', 'w', force_zip64=True) as f:
            for _ in range(96):
                f.write(bytes(16 * MEGABYTE))


def make_link_zip(path):
    """Write a zip of four good pictures, of a link, and of another member of the same name."""
    make_zip(path, {}, good=4)
    with zipfile.ZipFile(path, 'a') as z, warnings.catch_warnings(action='ignore'):
        link = zipfile.ZipInfo('x.png')
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(link, '/etc/passwd')
        z.writestr('x.png', b'rubbish')


# ---- JSON files that are torn or hold something else

DEEP = b'[' * 100000


def damaged_json(data):
    """{how: bytes} of a file that should hold an object."""
    text, keys = data.decode(), json.loads(data)
    found = {'empty': b'', 'binary': bytes(range(256)), 'a list': b'[]\n', 'null': b'null\n',
             'a number': b'3\n', 'a string': b'"x"\n', 'without keys': b'{}\n', 'nested 100,000 deep': DEEP,
             'UTF-16': text.encode('utf-16'), 'half': data[:len(data) // 2]}
    for how, value in (('numbers', 3), ('null', None), ('lists', [1]), ('texts', 'x')):
        found[f'values are {how}'] = json.dumps(dict.fromkeys(keys, value)).encode()
    return found


def damaged_lines(data):
    """{how: bytes} of a .jsonl file."""
    found = {'empty': b'', 'binary': bytes(range(256)), 'a list': b'[]\n', 'null': b'null\n',
             'nested 100,000 deep': DEEP, 'UTF-16': data.decode().encode('utf-16')}
    first, *rest = data.decode().splitlines()
    wrong = {'half a line': first[:20], 'a list': '[1, 2]', 'a record without step': '{"a": 1}',
             'text': 'hello', 'a step of text': '{"step": "x"}', 'a step of null': '{"step": null}',
             'a step of NaN': '{"step": NaN}'}
    for how, line in wrong.items():
        found[f'{how} in the middle'] = '\n'.join([first, line, *rest, '']).encode()
    found['half a line at the end'] = data + first[:20].encode()
    return found


# ---- dataset.json, as in the zips of StyleGAN2-ADA

LABELS = [('00000/img0.png', 0), ('00000/img1.png', 1), ('00000/img2.png', 2), ('00000/img3.png', 0)]


def labels(*pairs):
    """The bytes of a dataset.json of (name, label)."""
    return json.dumps({'labels': [list(pair) for pair in pairs]}).encode()


def last_label(value):
    """The bytes of a dataset.json whose last label is this."""
    return labels(*LABELS[:3], ('00000/img3.png', value))


DATASET_JSONS = {                            # the bytes, and the right numbers of classes; None: refused
    'good': (labels(*LABELS), [3]),
    'labels null': (b'{"labels": null}', [1]),
    'with BOM': (b'\xef\xbb\xbf' + labels(*LABELS), [3, None]),
    'UTF-16': (labels(*LABELS).decode().encode('utf-16'), [3, None]),
    'of an image more': (labels(*LABELS, ('x.png', 1)), [3, None]),
    'trailing comma': (labels(*LABELS).replace(b']]', b'],]'), [None]),
    'empty': (b'', [None]), 'half': (labels(*LABELS)[:30], [None]), 'binary': (bytes(range(256)), [None]),
    'nested deep': (DEEP, [None]),
    'labels nested deep': (b'{"labels": ' + DEEP + b']' * 100000 + b'}', [None]),
    'an image twice': (labels(*LABELS, ('00000/img0.png', 2)), [None]),
    'an image missing': (labels(*LABELS[:3]), [None]),
    'labels 0.2 and 1.9': (labels(*LABELS[:2], ('00000/img2.png', .2), ('00000/img3.png', 1.9)), [None]),
    'label NaN': (last_label(float('nan')), [None]), 'label 1e30': (last_label(1e30), [None]),
    'label -1': (last_label(-1), [None]), 'label true': (last_label(True), [None]),
    'label text': (last_label('cat'), [None]), 'label list': (last_label([1]), [None]),
    'label null': (last_label(None), [None]), 'labels a number': (b'{"labels": 3}', [None]),
    'labels a text': (b'{"labels": "abc"}', [None]), 'a list': (b'[]', [None]),
    'triples': (b'{"labels": [["00000/img0.png", 1, 2]]}', [None]),
}


def class_folders():
    """{what: ({name: bytes}, number of classes)} of four pictures each."""
    p = [good_picture(i) for i in range(4)]
    jpeg, tiff = saved(picture(), 'JPEG'), saved(picture(), 'TIFF')
    two = {'cats/a.png': p[0], 'cats/b.png': p[1], 'dogs/c.png': p[2], 'dogs/d.png': p[3]}
    mac = {name: b'x' for name in ('__MACOSX/cats/._a.png', '__MACOSX/._cats', 'cats/._b.png', '.DS_Store')}
    back = {name.replace('/', '\\'): data for name, data in two.items()}
    return {
        'two folders': (two, 2),
        'a folder of two': ({f'set/{name}': data for name, data in two.items()}, 2),
        'nested twice': ({f'set/images/{name}': data for name, data in two.items()}, 2),
        'backslashes': (back, 2),
        'a folder with backslashes': ({f'set\\{name}': data for name, data in back.items()}, 2),
        'Mac': (two | mac, 2), 'Windows': (two | {'cats/Thumbs.db': b'x', 'desktop.ini': b'x'}, 2),
        'a.png beside A.PNG': (dict(zip(('a.png', 'A.PNG', 'a.PNG', 'A.png'), p)), 1),
        'classes of odd names': (dict(zip(('кот/a.png', '狗/b.png', 'caf\xe9/c.png', 'a\nb/d.png'), p)), 4),
        'classes by case': (dict(zip(('Cat/a.png', 'cat/b.png', 'CAT/c.png', 'dog/d.png'), p)), 4),
        'endings': ({'a.JPG': jpeg, 'b.jpeg': jpeg, 'c.PnG': p[2], 'd.tiff': tiff}, 1),
        'folders without images beside': (two | {'birds/notes.txt': b'x', 'set.txt': b'x'}, 2),
    }


def printable(name):
    """A name of bytes as a note shows it."""
    return re.sub(r"^b'|'$", '', repr(name))[:60]
