"""A campaign of faults against every script: by hand, 45 minutes on one core; Linux, root for full disks.

Use:
    python tests/faults.py                           # all kinds; exit code 1 if anything did not hold
    python tests/faults.py --quick                   # a tenth of each
    python tests/faults.py --kind images lines       # some kinds
    python tests/faults.py --kind kills --seed 3 --keep

Prints a table `kind  tried  held`, and one line per fault that did not hold: the command, what was seen, what
was expected.  The names in capitals in a command are flags, which are printed below the table.

Behaviour is judged from outside alone: the exit code, what was printed, files, programs that were started,
time and memory.  Nothing of the project is imported.  fault_bench.py runs the scripts, fault_inputs.py has
the pictures and files, fault_lines.py the command lines.
"""
import argparse
import contextlib
import functools
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zipfile

import fault_inputs as inputs
from fault_bench import (MEMORY, ROOT, SHORT, Bench, Case, differs, finding_state, leftovers, load,
                         not_finite_files, noted, picked, problems, records, run_state)
from fault_inputs import good_picture, write
from fault_lines import kind_lines

import numpy as np                                             # isort: skip  behind fault_bench, see there
import torch                                                   # isort: skip
from PIL import Image                                          # isort: skip


# ---- kind 1: pictures that are something else, odd, damaged, huge, special, of odd names, or in odd zips

ENDINGS = '.png .jpg .jpeg .webp .bmp .tif .tiff .gif .ppm .pgm'.split()
DOORS = [                                    # the other commands that open the pictures of a folder d
    'train_sngan.py --data d T --steps 1 --out run',
    'data/images.py d --res 32 --out set',
    'metrics.py --gen d --ref @photos --metrics fid EFFNET',
    'metrics.py --gen @photos --ref d --metrics fid EFFNET',
    'generate.py @base/run --seeds 0-3 --nearest d EFFNET --out near.png',
]


def folder_with(bench, entries, good=4):
    """A place with a folder d of good pictures and of {name: bytes}."""
    where = bench.place()
    os.mkdir(f'{where}/d')
    for i in range(good):
        write(f'{where}/d/{i}.png', good_picture(i))
    for name, data in entries.items():
        write(os.fsencode(f'{where}/d/') + os.fsencode(name), data)
    return where


def zip_with(bench, entries, good=4, **how):
    """A place with d.zip of the same."""
    where = bench.place()
    inputs.make_zip(f'{where}/d.zip', entries, good, **how)
    return where


def scan(bench, where, data, note, expected, good=4, odd=1, env=None):
    """The case of one --check-data of good pictures and odd files.

    expected, of the odd files: 'read'; 'named' as unreadable; 'unread': named or passed over; 'either' of
    these; 'counted': named or read, or all refused; 'refused': exit 2."""
    command = f'train_sngan.py --data {data} T --check-data'
    before = set(os.listdir(where))
    r = bench.run(command, where, 20, env=env)
    codes = {'read': [0], 'named': [0], 'refused': [2]}.get(expected, [0, 2])
    found = problems(r, codes, most_mb=bench.idle_peak + MEMORY)

    counts = []
    for pattern in (r'(\d+) images read', r'(\d+) skipped'):
        match = re.search(pattern, r.text)
        counts.append(int(match[1]) if match else 0)
    right = {'read': [[good + odd, 0]], 'named': [[good, odd]], 'unread': [[good, odd], [good, 0]],
             'either': [[good, odd], [good, 0], [good + odd, 0]]}
    if r.code == 0 and not found:
        if expected in right and counts not in right[expected]:
            found.append(f'{counts[0]} read, {counts[1]} named')
        if expected == 'counted' and sum(counts) < good + odd:
            found.append(f'{counts[0]} read, {counts[1]} named, {good + odd - sum(counts)} lost in silence')
    new = set(os.listdir(where)) - before
    return Case(noted(command, note), expected, found + [f'made {name}' for name in sorted(new)])


def through_doors(bench, make, note):
    """Cases of one odd folder, made by make(), at every other door."""
    for command in DOORS:
        where = make()
        r = bench.run(command, where, 20)
        found = problems(r, [0, 2], most_mb=bench.idle_peak + MEMORY)
        if os.path.exists(f'{where}/gs-was-run'):
            found.append('gs was run')
        yield Case(noted(command, note), 'exit 0 or 2, no program, hang, traceback or gigabyte', found)


def kind_images(bench):
    """Pictures that are something else or odd."""
    for ending in ENDINGS:
        for name, data in bench.some(inputs.PROGRAMS.items()):
            if ending in ('.png', '.jpg', '.tif') or name in ('EPS', 'EPS by Pillow', 'PostScript'):
                where = folder_with(bench, {f'x{ending}': data})
                yield scan(bench, where, 'd', f'd/x{ending} is {name}', 'named')
    for name, data in bench.some(inputs.PROGRAMS.items()):
        yield scan(bench, zip_with(bench, {'x.png': data}), 'd.zip', f'its x.png is {name}', 'named')
    for name in bench.some(['EPS', 'EPS in a DOS header', 'PostScript', 'EPS by Pillow']):
        data = inputs.PROGRAMS[name]
        make = functools.partial(folder_with, bench, {'x.png': data, 'y.jpg': data})
        yield from through_doors(bench, make, f'd/x.png is {name}')
    for form, mode in bench.some(inputs.FOREIGN.items()):
        with contextlib.suppress(OSError, KeyError, ValueError):               # this Pillow does not write it
            data = inputs.saved(inputs.picture(mode=mode), form)
            yield scan(bench, folder_with(bench, {'x.png': data}), 'd', f'd/x.png is {form}', 'either')
    for name, data in bench.some(inputs.odd_pictures()):
        expected = 'read' if inputs.readable(data) else 'named'
        yield scan(bench, folder_with(bench, {name: data}), 'd', name, expected)
    for name, data in bench.some(inputs.floats()):
        yield scan(bench, folder_with(bench, {name: data}), 'd', name, 'either')
    yield from huge_cases(bench)
    yield from special_cases(bench)
    yield from name_cases(bench)
    yield from zip_cases(bench)


def huge_cases(bench):
    """Small files that would take gigabytes."""
    for name, data in bench.some(inputs.huge_pictures()):
        yield scan(bench, folder_with(bench, {name: data}), 'd', name, 'either')
        if name in ('huge.png', '13000 px of 1 bit.png'):
            eight = {f'{i} {name}': data for i in range(8)}
            yield scan(bench, folder_with(bench, eight), 'd', f'eight of {name}', 'either', odd=8)
            yield from through_doors(bench, functools.partial(folder_with, bench, eight), f'eight of {name}')
    where = bench.place()
    inputs.make_bomb(f'{where}/d.zip')
    yield scan(bench, where, 'd.zip', 'its x.png: 1.5 GB of zeros', 'named')


def special_cases(bench):
    """What is no regular file."""
    for kind in bench.some(inputs.SPECIAL):
        def make(kind=kind):
            where = folder_with(bench, {})
            inputs.make_special(kind, f'{where}/d/x.png')
            return where
        yield scan(bench, make(), 'd', f'd/x.png is a {kind}', 'unread')
        if kind in inputs.WORST:
            yield from through_doors(bench, make, f'd/x.png is a {kind}')


def name_cases(bench):
    """Odd names, of pictures and of rubbish."""
    for name in bench.some(inputs.ODD_NAMES):
        where = folder_with(bench, {name: good_picture(9)})
        yield scan(bench, where, 'd', f'a picture named {inputs.printable(name)}', 'read')
        for encoding in ('utf-8', 'cp1252', 'ascii'):
            where = folder_with(bench, {name: b'rubbish'})
            note = f'rubbish named {inputs.printable(name)}, PYTHONIOENCODING={encoding}'
            yield scan(bench, where, 'd', note, 'named', env={'PYTHONIOENCODING': encoding})
    make = functools.partial(folder_with, bench, {inputs.UNPRINTABLE: b'rubbish', inputs.NEWLINE: b'rubbish'})
    yield from through_doors(bench, make, 'rubbish of names that cannot be printed')
    for name in bench.some(inputs.PASSED_OVER):
        where = folder_with(bench, {name: b'rubbish'})
        yield scan(bench, where, 'd', f'd/{inputs.printable(name)} is rubbish', 'unread', odd=0)


def zip_cases(bench):
    """Odd zips."""
    p = good_picture(9)
    with open(f'{zip_with(bench, {"x.png": p})}/d.zip', 'rb') as f:
        whole = f.read()
    for note, (data, expected) in bench.some([*inputs.broken_zips(whole).items(),
                                              *inputs.flipped_directories(whole, bench.rng, 20).items()]):
        where = bench.place()
        write(f'{where}/d.zip', data)
        yield scan(bench, where, 'd.zip', note, expected)
    for note, (entries, expected) in bench.some(inputs.odd_members(p, whole).items()):
        yield scan(bench, zip_with(bench, entries), 'd.zip', note, expected)
    for method in bench.some([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED]):
        where = zip_with(bench, {'x.png': p}, compression=method)
        yield scan(bench, where, 'd.zip', f'compression {method}', 'read')
    where = bench.place()
    inputs.make_link_zip(f'{where}/d.zip')
    yield scan(bench, where, 'd.zip', 'a link, and the same name twice', 'either', odd=2)


# ---- kind 2: numbers that are not finite

DIVERGING = '''
train_sngan.py S --lr-g 1e6 --lr-d 1e6 --steps 40 --out out
train_sngan.py S SCORED --eval-every 20 --lr-g 1e6 --lr-d 1e6 --steps 40 --out out
train_sngan.py S WIDER SCORED --eval-every 20 --lr-g 1e6 --lr-d 1e6 --steps 40 --out out
train_sngan.py S SCORED --eval-every 20 --lr-g 1e20 --steps 40 --out out
train_sngan.py S --lr-d 1e30 --steps 20 --out out
train_sngan.py S --lr-g 1e38 --steps 1 --out out
train_sngan.py S --lr-g 1e38 --steps 2 --save-every 1 --out out
train_sngan.py S SCORED --lr-g 1e38 --steps 2 --eval-every 1 --out out
train_sngan.py S --slim 1e38 --steps 5 --out out
train_sngan.py S --lecam 1e38 --lecam-start 1 --steps 5 --out out
train_sngan.py S --advaug gd --adv-step 1e38 --steps 5 --out out
train_sngan.py S --advaug gd --adv-lambda-g 1e38 --steps 5 --out out
train_sngan.py S --adam-eps 0 --steps 5 --out out
find_ticket.py sngan S --lr-g 1e6 --lr-d 1e6 --steps 40 --rounds 1 --out out
find_ticket.py sngan S WIDER --lr-g 1e6 --lr-d 1e6 --steps 40 --rounds 1 --out out
find_ticket.py sngan S --lr-g 1e38 --steps 2 --rounds 2 --out out
find_ticket.py sngan S --lr-g 1e38 --steps 1 --rounds 1 --out out
find_ticket.py sngan S --lr-g 1e38 --steps 1 --rounds 1 --method oneshot --out out
find_ticket.py sngan S --lr-d 1e38 --steps 2 --rounds 1 --rewind 1 --out out
train_stylegan2.py STYLE --ema-kimg nan --steps 2 --out out
train_stylegan2.py STYLE --ema nan --steps 2 --out out
train_stylegan2.py STYLE --lr-g 1e38 --lr-d 1e38 --steps 3 --out out
train_stylegan2.py STYLE --r1 1e38 --r1-every 1 --steps 3 --out out
train_stylegan2.py STYLE --pl 1e38 --pl-every 1 --steps 3 --out out
train_biggan.py BIG --lr-g 1e38 --lr-d 1e38 --steps 3 --out out
'''.strip().split('\n')
WAY_OUT = '--(lr|init-from|restart|adv|slim|lecam|r1|pl)'      # the flags that an exit 3 may name
POISONS = [                                  # where in last.pt: keys, and a pattern of the tensor's name
    (['G'], 'weight'), (['D'], 'weight'), (['E'], 'weight'), (['G'], 'bias'), (['D'], 'bias'),
    (['G'], 'running_var'), (['G'], 'running_mean'), (['E'], 'running_var'), (['D'], r'(^|[._])u\d?$|_u'),
    (['opt', 'G', 'm'], '.'), (['opt', 'D', 'v'], '.'), (['state', 'sums'], ''),
]
RESUME = 'train_sngan.py S OFTEN QUIET --steps 3 --out run'


def poison(path, keys, pattern, value):
    """Put a value into the first float tensor below file[keys...] of such a name; False if there is none."""
    file = load(path)
    part = file
    for key in keys:
        part = part.get(key, {})
    for name, tensor in (part.items() if isinstance(part, dict) else [('', part)]):
        floats = torch.is_tensor(tensor) and tensor.is_floating_point() and tensor.numel()
        if floats and re.search(pattern, name):
            tensor.view(-1)[0] = value
            torch.save(file, path)
            return True
    return False


def kind_finite(bench):
    """Trainings that diverge, and files with NaN or infinity."""
    for command in bench.some(DIVERGING):
        where = bench.place()
        r = bench.run(command, where, 120)
        found = problems(r, [0, 2, 3], ['--'] if r.code else [])
        found += not_finite_files(where)
        yield Case(command, 'exit 2 or 3 and a flag to change, or all is finite', found)
        if r.code == 3:
            r = bench.run(command, where, 120)
            found = problems(r, [2, 3], [WAY_OUT]) + not_finite_files(where)
            yield Case(noted(command, 'again'), 'exit 2 or 3, and a way out', found)
    for keys, pattern in bench.some(POISONS):
        for value in (float('nan'), float('inf')):
            yield from poisoned_run(bench, keys, pattern, value)
    for value in bench.some([float('nan'), float('inf'), float('-inf')]):
        for pattern in ('weight', 'running_var', 'bias'):
            yield from poisoned_file(bench, pattern, value)
    for what in bench.some(['mu', 'sigma']):
        where = bench.place()
        stats = {'mu': np.zeros(1280), 'sigma': np.eye(1280)}
        stats[what].flat[0] = np.nan
        np.savez(f'{where}/bad.npz', **stats)
        for command in ('metrics.py --gen bad.npz --ref bad.npz --metrics fid',
                        'metrics.py --gen @photos --ref bad.npz --metrics fid EFFNET'):
            yield Case(noted(command, f'{what} has NaN'), 'exit 2', problems(bench.run(command, where), [2]))


def poisoned_run(bench, keys, pattern, value):
    """A last.pt with one value that is not finite: go on, generate, score, start others from it."""
    commands = [RESUME]
    if keys[0] == 'E':
        commands += ['generate.py run --seeds 0-3 --device cpu',
                     'train_sngan.py S OFTEN SCORED --steps 2 --out run']
    if keys[0] in 'GD':
        commands += ['train_sngan.py S --init-from run/last.pt --steps 1 --out other',
                     'find_ticket.py sngan S --init-from run/last.pt --rounds 1 --steps 1 --out f']
    for command in commands:
        where = bench.place(bench.prepared.base)
        if not poison(f'{where}/run/last.pt', keys, pattern, value):
            return
        os.remove(f'{where}/run/metrics.jsonl')                # so that a score falls due
        r = bench.run(command, where, 120)
        made = ['run/grid.png', 'ticket.pt', 'f/ticket1.pt', 'run/metrics.jsonl']
        if '--out run' in command and r.code == 0:             # the checkpoint before was used
            found = problems(r, [0], [r'last-1\.pt'])
            made.remove('run/metrics.jsonl')
            if command == RESUME:
                right = bench.prepared.third['last.pt']
                found += differs(functools.partial(picked, f'{where}/run/last.pt'), right)
        else:
            found = problems(r, [2, 3])
        for file in made:
            if os.path.exists(f'{where}/{file}') and os.path.getsize(f'{where}/{file}'):
                found.append(f'{file} was made')
        note = f'last.pt {"/".join(keys)} {pattern} has {value}'
        yield Case(noted(command, note), 'exit 2 or 3, or the checkpoint before, and says so', found)


def poisoned_file(bench, pattern, value):
    """A best.pt or a ticket with one value that is not finite."""
    where = bench.place(bench.prepared.base)
    if poison(f'{where}/run/best.pt', ['E'], pattern, value):
        command = 'generate.py run/best.pt --seeds 0-3 --device cpu'
        found = problems(bench.run(command, where), [2, 3])
        if os.path.exists(f'{where}/run/grid.png'):
            found.append('grid.png was made')
        yield Case(noted(command, f'best.pt E {pattern} has {value}'), 'exit 2 or 3, no picture', found)
    for name in 'GD':
        where = bench.place(bench.prepared.finding)
        if poison(f'{where}/t.pt', ['init', name], pattern, value):
            command = 'train_sngan.py S --mask t.pt --steps 1 --out out'
            found = problems(bench.run(command, where), [2, 3])
            yield Case(noted(command, f't.pt init/{name} {pattern} has {value}'), 'exit 2 or 3', found)


# ---- kind 3: damage: flipped bits, and files that are torn or hold something else

TRAIN_SET = 'train_sngan.py --data set T --steps 2 --batch 8 --out out'
FLIPS = [                                    # folder, file, command, its result, number of flips
    ('finding', 't.pt', 'train_sngan.py S --mask t.pt --steps 1 --out out', 'out/last.pt', 40),
    ('base', 'run/best.pt', 'generate.py run/best.pt --seeds 0-3 --device cpu', 'run/grid.png', 40),
    ('converted', 'set/train.npy', TRAIN_SET, 'out/last.pt', 20),
    ('converted', 'set/train-labels.npy', TRAIN_SET, 'out/last.pt', 5),
    ('converted', 'set/set.json', TRAIN_SET, 'out/last.pt', 15),
]
AGAIN = 'find_ticket.py sngan S OFTEN --steps 2 --rounds 2 --out f --ticket t.pt'
EARLY = ('find_ticket.py sngan S OFTEN --steps 4 --rounds 1 --method early-bird --eb-every 1 '
         '--eb-threshold 1e-9 --out f --ticket u.pt')
TEXT_FILES = [                               # folder, file, command
    ('base', 'run/args.json', RESUME), ('base', 'run/args.json', 'report.py .'),
    ('base', 'run/args.json', 'generate.py run/best.pt --seeds 0-3 --nearest run EFFNET'),
    ('base', 'run/subset.json', RESUME), ('base', 'run/subset.json', 'report.py .'),
    ('base', 'run/log.jsonl', RESUME), ('base', 'run/log.jsonl', 'report.py .'),
    ('base', 'run/metrics.jsonl', RESUME), ('base', 'run/metrics.jsonl', 'report.py .'),
    ('big', 'run/subset.json', 'generate.py run --seeds 0 --device cpu'),
    ('finding', 'f/args.json', AGAIN), ('finding', 'f/args.json', 'report.py .'),
    ('finding', 'f/round0/subset.json', AGAIN), ('finding', 'f/round0/args.json', AGAIN),
    ('converted', 'set/set.json', 'train_sngan.py --data set T --check-data'),
]
SAVED_FILES = [
    ('base', 'run/last.pt', RESUME), ('base', 'run/last.pt', 'generate.py run --device cpu'),
    ('base', 'run/best.pt', 'generate.py run/best.pt --device cpu'),
    ('base', 'run/last.pt', 'train_sngan.py S --init-from run/last.pt --steps 1 --out out'),
    ('finding', 't.pt', 'train_sngan.py S --mask t.pt --steps 1 --out out'),
    ('finding', 'f/ticket0.pt', AGAIN), ('finding', 'f/ticket1.pt', AGAIN), ('early', 'f/masks.pt', EARLY),
]


def kind_damage(bench):
    """Flipped bits, and files that are torn or hold something else."""
    for _ in bench.some(range(80)):
        where = bench.place(bench.prepared.base)
        yield resumed(bench, where, flip(f'{where}/run/last.pt', bench.rng))
    for source, file, command, result, count in FLIPS:
        yield from flipped_files(bench, getattr(bench.prepared, source), file, command, result, count)
    for source, file, command in TEXT_FILES:
        yield from torn_texts(bench, getattr(bench.prepared, source), file, command)
    for source, file, command in SAVED_FILES:
        yield from wrong_saves(bench, getattr(bench.prepared, source), file, command)


def flip(path, rng):
    """Flip one bit of a file; returns a note."""
    with open(path, 'rb') as f:
        data = bytearray(f.read())
    at, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[at] ^= 1 << bit
    write(path, data)
    return f'bit {bit} of byte {at} of {os.path.basename(path)} flipped'


def resumed(bench, where, note, may_differ=()):
    """The case of a run whose files were damaged and that goes on one step: the same result, or refused.

    Where it goes on from the checkpoint before, and says so, the score of step 2 may be gone."""
    r = bench.run(RESUME, where)
    found = problems(r, [0, 2])
    if r.code == 0 and not found:
        if 'resumed at step 2' not in r.text:
            may_differ = {*may_differ, 'metrics.jsonl', 'best.pt'}
            if not re.search(r'last\S*\.pt', r.text):
                found = ['not resumed at step 2, in silence']

        def compared(state):
            return {name: part for name, part in state.items() if name not in may_differ}
        found += differs(lambda: compared(run_state(f'{where}/run')), compared(bench.prepared.third))
    return Case(noted(RESUME, note), 'exit 2, or the same result', found + leftovers(where))


def content(path):
    """What must be equal: the pixels of a picture, or the networks of a checkpoint."""
    return Image.open(path).tobytes() if path.endswith('.png') else picked(path)


def flipped_files(bench, source, file, command, result, count):
    """Flipped bits of a file that a command reads."""
    where = bench.place(source)
    bench.run(command, where)
    right = content(f'{where}/{result}')
    for _ in bench.some(range(count)):
        where = bench.place(source)
        note = flip(f'{where}/{file}', bench.rng)
        r = bench.run(command, where)
        found = problems(r, [0, 2])
        if r.code == 0 and not found:
            found = differs(lambda path=f'{where}/{result}': content(path), right)
        yield Case(noted(command, note), 'exit 2, or the same result', found)
        in_rows = int(re.search(r'byte (\d+)', note)[1]) >= 128
        if file == 'set/train.npy' and in_rows:
            check = 'train_sngan.py --data set T --check-data'
            yield Case(noted(check, note), 'exit 2', problems(bench.run(check, where), [2]))


def torn_texts(bench, source, file, command):
    """Damaged JSON files."""
    name = os.path.basename(file)
    with open(f'{source}/{file}', 'rb') as f:
        data = f.read()
    damages = inputs.damaged_lines if name.endswith('.jsonl') else inputs.damaged_json
    for how, bad in bench.some(damages(data).items()):
        where = bench.place(source)
        write(f'{where}/{file}', bad)
        note = f'{file}: {how}'
        if command == RESUME:
            yield resumed(bench, where, note, may_differ=[name])
            continue
        r = bench.run(command, where)
        found = problems(r, [0, 2])
        usual = 'at the end' in how or how == 'empty' and name.endswith('.jsonl')     # of a run that was cut
        if command == 'report.py .' and not found and not usual:
            said = r.text
            with contextlib.suppress(FileNotFoundError), open(f'{where}/report/report.md') as f:
                said += f.read()
            if name not in said:
                found = [f'{name} is not named']
        yield Case(noted(command, note), 'exit 2; the report names the file', found)


def wrong_saves(bench, source, file, command):
    """.pt files that are something else, or lack or have other values."""
    with open(f'{source}/{file}', 'rb') as f:
        data = f.read()
    right = load(f'{source}/{file}')
    values = {'a list': [], 'an empty dict': {}, 'a tensor': torch.ones(3), 'None': None}
    for key in right:
        values[f'without {key}'] = {k: v for k, v in right.items() if k != key}
        values[f'{key} is a number'] = {**right, key: -3}
        values[f'{key} is a list'] = {**right, key: [1]}
    files = {'empty': b'', 'text': b'hello', 'zeros': bytes(9999), 'half': data[:len(data) // 2]}
    for how, value in values.items():
        f = io.BytesIO()
        torch.save(value, f)
        files[how] = f.getvalue()
    for how, bad in bench.some(files.items()):
        where = bench.place(source)
        write(f'{where}/{file}', bad)
        note = f'{file}: {how}'
        if command == RESUME:
            yield resumed(bench, where, note)
        else:
            found = problems(bench.run(command, where), [0, 2])
            yield Case(noted(command, note), 'exit 2, or not needed', found)


# ---- kind 4: killed at any time, and at each operation on files

TRAINING = 'train_sngan.py S OFTEN SCORED --eval-every 3 --steps 4 --out run'
FINDING = 'find_ticket.py sngan S OFTEN --steps 2 --rounds 2 --out f --ticket t.pt'


def state_after(command, where):
    """What a command has left in a place, see run_state and finding_state."""
    if command.startswith('find_ticket'):
        return finding_state(f'{where}/f', f'{where}/t.pt')
    return run_state(f'{where}/{"f/round0" if "--out f/round0" in command else "run"}')


def undisturbed(bench, command):
    """(state, seconds) of a command that nobody disturbs."""
    where = bench.place()
    r = bench.run(command, where, 200)
    if r.code:
        raise RuntimeError(f'{command}: exit {r.code}: {r.text[-300:]}')
    return state_after(command, where), r.seconds


def ends_the_same(bench, command, where, right):
    """Run the same command again: what is wrong with its result, as a list of texts."""
    r = bench.run(command, where, 200)
    return problems(r, [0]) or differs(lambda: state_after(command, where), right) + leftovers(where)


def kind_kills(bench):
    """SIGKILL at random times."""
    for command in (TRAINING, FINDING):
        right, seconds = undisturbed(bench, command)
        for _ in bench.some(range(25)):
            where, moment = bench.place(), float(bench.rng.uniform(.1, seconds))
            child = bench.start(command, where)
            time.sleep(moment)
            child.signal(signal.SIGKILL)
            child.wait()
            found = ends_the_same(bench, command, where, right)
            yield Case(noted(command, f'SIGKILL after {moment:.2f} s, and again'), 'the same bits', found)


def crash_at(n, where):
    """A function for Child: the process ends at its nth operation on files below a folder, as if killed.

    Operations are: to open for writing, rename, remove, make a folder, fsync, and torch.save, whose file is
    half there.  The number of operations so far stands in WHERE.count."""
    renaming = 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate', 'os.link', 'os.symlink'
    count = 0

    def step(path, half=None):
        nonlocal count
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(where):
            return
        count += 1
        os.pwrite(21, b'%09d' % count, 0)
        if count >= n:
            if half:
                half()
            os._exit(9)

    def hook(event, args):
        if event == 'open':
            path, mode, flags = args
            if set(mode or '') & set('wax+') or mode is None and flags & (os.O_WRONLY | os.O_RDWR):
                step(path)
        elif event in renaming:
            step(args[0])

    def install():
        os.dup2(os.open(f'{where}.count', os.O_RDWR | os.O_CREAT), 21)
        sys.addaudithook(hook)
        plain_fsync, plain_save = os.fsync, torch.save

        def fsync(f):
            number = f if isinstance(f, int) else f.fileno()
            step(os.readlink(f'/proc/self/fd/{number}'))
            plain_fsync(f)

        def save(value, f, *args, **how):
            path = f if isinstance(f, (str, os.PathLike)) else getattr(f, 'name', 0)

            def half():
                plain_save(value, f, *args, **how)
                os.truncate(path, os.path.getsize(path) // 2)
            step(path, half)
            plain_save(value, f, *args, **how)
        os.fsync, torch.save = fsync, save
    return install


def kind_crashes(bench):
    """The end of the process at each operation on files."""
    for command, most in ((TRAINING, 40), (FINDING, 40)):
        right, _ = undisturbed(bench, command)
        where = bench.place()
        bench.run(command, where, 200, before=crash_at(10 ** 9, where))
        with open(f'{where}.count') as f:
            total = int(f.read())
        points = sorted({round(x) for x in np.linspace(1, total, min(most, total))})
        for n in bench.some(points):
            where = bench.place()
            r = bench.run(command, where, 200, before=crash_at(n, where))
            found = ends_the_same(bench, command, where, right)
            if r.code != 9:
                found.append(f'the crash ended in exit {r.code}')
            note = f'ended at file operation {n} of {total}, and again'
            yield Case(noted(command, note), 'the same bits', found)


# ---- kind 5: two processes on one directory

TRAIN = 'train_sngan.py S OFTEN --steps 12 --out run'
FIND = 'find_ticket.py sngan S OFTEN --steps 6 --rounds 1 --out f --ticket t.pt'
ROUND = 'train_sngan.py S OFTEN --steps 12 --out f/round0'
PAIRS = [                                    # the first, the second, and its exit code; link is a link to run
    (TRAIN, TRAIN, 2), (TRAIN, f'{TRAIN} --seed 1', 2), (TRAIN, f'{TRAIN} --restart', 2),
    (TRAIN, f'{TRAIN} --steps 20', 2), (TRAIN, f'{TRAIN} --out ./run/', 2), (TRAIN, f'{TRAIN} --out link', 2),
    (TRAIN, f'{TRAIN} --seed 1 --restart', 2),
    (TRAIN, 'train_stylegan2.py STYLE --steps 2 --out run', 2),
    (FIND, FIND, 2), (FIND, f'{FIND} --restart', 2), (FIND, f'{FIND} --rho .4', 2),
    (FIND, f'{FIND} --ticket u.pt', 2), (FIND, 'train_sngan.py S --steps 2 --out f/round0', 2),
    (FIND, 'train_sngan.py S --steps 2 --out f/round0 --restart', 2),
    (ROUND, FIND, 2), (ROUND, f'{FIND} --restart', 2),
    (TRAIN, 'report.py .', 0), (TRAIN, 'generate.py run --seeds 0-3 --device cpu', 0),
    (TRAIN, f'{TRAIN} --check-data', 0), (TRAIN, 'train_sngan.py S --steps 1 --out run2', 0),
]


def kind_pairs(bench):
    """Two processes on one directory: the first is halted while the second tries."""
    right = {}
    for first, second, code in bench.some(PAIRS):
        if first not in right:
            right[first], _ = undisturbed(bench, first)
        where = bench.place()
        os.symlink('run', f'{where}/link')
        child = started(bench, first, where)
        child.signal(signal.SIGSTOP)
        r = bench.run(second, where)
        child.signal(signal.SIGCONT)
        own = problems(child.wait(), [0]) or differs(lambda: state_after(first, where), right[first])
        directory = 'run|link' if first == TRAIN else r'\bf\b'
        found = problems(r, [code], [directory, str(child.pid)] if code else [])
        found += [f'the first: {text}' for text in own]
        expected = 'exit 2 naming directory and process' if code else 'exit 0'
        yield Case(noted(second, f'beside {first}'), f'{expected}; the first undisturbed', found)

    for first in bench.some([TRAIN, FIND]):
        where = bench.place()
        child = started(bench, first, where)
        child.signal(signal.SIGKILL)
        child.wait()
        right_state = right.get(first) or undisturbed(bench, first)[0]
        found = ends_the_same(bench, first, where, right_state)
        yield Case(noted(first, 'after SIGKILL of the first'), 'the directory is free', found)
    if not bench.quick:
        yield torchrun_killed(bench)


def started(bench, command, where):
    """A Child that has saved a checkpoint."""
    child = bench.start(command, where)
    child.wait_for('run/last.pt' if command == TRAIN else 'f/round0/last.pt')
    return child


def torchrun_killed(bench):
    """The case of two ranks that live on when their torchrun was killed."""
    where = bench.place()
    command = 'train_sngan.py S OFTEN --steps 100000 --out run'
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    script, *flags = bench.words(command)
    child = bench.start([*launcher, f'{ROOT}/{script}', *flags], where, real=True)
    child.wait_for('run/last.pt')
    child.signal(signal.SIGKILL)
    time.sleep(.3)
    ranks = [int(pid) for pid in os.listdir('/proc') if pid.isdigit() and works_in(pid, where)]
    r = bench.run(command, where, 20)
    found = problems(r, [2], ['run']) if any(works_in(pid, where) for pid in ranks) else []
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()
    return Case(noted(command, 'beside two ranks whose torchrun was killed'), 'exit 2', found)


def works_in(pid, where):
    """Whether a process is there, and in that folder."""
    with contextlib.suppress(OSError):
        return os.readlink(f'/proc/{pid}/cwd') == where
    return False


# ---- kind 6: signals and pipes

STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
STARTUP = {                                  # seconds after the start of the process
    signal.SIGINT: (.3, .8, 1.5, 2.2, 3, 3.6, 4.2), signal.SIGTERM: (.8, 3), signal.SIGHUP: (.8, 3)}
EVALUATING = f'{TRAINING} --eval-samples 100'
LONG = 'train_sngan.py S OFTEN --steps 150 --out run'
PIPED = [TRAINING, FINDING, 'generate.py @base/run --seeds 0-3 --device cpu --out a.png',
         'report.py @base --out page', 'data/images.py @photos --res 32 --out set', 'train_sngan.py S --check-data',
         'metrics.py --gen @photos --ref @photos --metrics fid EFFNET']
SINKS = '| head -1', '| head -3', '| true', '>/dev/full', '>&-', '2>/dev/full'


def kind_pipes(bench):
    """Signals at any time, and outputs that are closed or full."""
    right = {command: undisturbed(bench, command)[0] for command in (TRAINING, FINDING, EVALUATING, LONG)}
    for number in bench.some(STOPS):
        for moment in STARTUP[number]:
            where = bench.place()
            child = bench.start(TRAINING, where, real=True)
            time.sleep(moment)
            child.signal(number)
            found = problems(child.wait(), [128 + number, -number, 0])         # 0: it had ended before
            found += ends_the_same(bench, TRAINING, where, right[TRAINING])
            note = f'{number.name} {moment} s after its start'
            yield Case(noted(TRAINING, note), 'no traceback, resumable', found)
    for number in bench.some(STOPS):
        for command in (LONG, EVALUATING):
            where = bench.place()
            child = bench.start(command, where)

            def in_second_step(where=where):
                return len(records(f'{where}/run/log.jsonl')) > 1
            child.wait_for('run/log.jsonl', in_second_step)
            time.sleep(.5 if command == EVALUATING else .02)
            child.signal(number)
            found = problems(child.wait(), [128 + number], ['resume'])
            found += ends_the_same(bench, command, where, right[command])
            when = 'in an evaluation' if command == EVALUATING else 'between steps'
            expected = f'exit {128 + number}, saved, resumable'
            yield Case(noted(command, f'{number.name} {when}'), expected, found)
    yield nohup(bench, right[TRAINING])
    for command in bench.some(PIPED):
        for sink in SINKS:
            where = bench.place()
            line = f'"$@" {sink}; exit ${{PIPESTATUS[0]}}'
            script, *flags = bench.words(command)
            words = ['bash', '-c', line, 'sh', sys.executable, f'{ROOT}/{script}', *flags]
            r = bench.run(words, where, real=True)
            found = problems(r, range(256))
            if command in right:
                found += ends_the_same(bench, command, where, right[command])
            yield Case(f'{command} {sink}', 'no traceback, resumable', found)


def nohup(bench, right):
    """The case of a SIGHUP that the process was started to ignore."""
    where = bench.place()
    script, *flags = bench.words(TRAINING)
    child = bench.start(['nohup', sys.executable, f'{ROOT}/{script}', *flags], where, real=True)
    child.wait_for('run/last.pt')
    child.signal(signal.SIGHUP)
    found = problems(child.wait(), [0]) or differs(lambda: state_after(TRAINING, where), right)
    return Case(f'nohup {TRAINING}   # SIGHUP', 'goes on', found)


# ---- kind 7: disks

LEVELS = 0, 8, 40, 100, 200, 300, 420, 520, 640                # kB that are free
OUTPUTS = [
    'train_sngan.py S --steps 1 --out disk/run',
    'train_sngan.py S SCORED --steps 2 --out run --cache disk/cache',
    'find_ticket.py sngan S --steps 1 --rounds 1 --out disk/f',
    'find_ticket.py sngan S --steps 1 --rounds 1 --out f --ticket disk/t.pt',
    'generate.py @base/run --seeds 0-63 --device cpu --out disk/grid.png',
    'generate.py @base/run --seeds 0-63 --device cpu --each disk/each',
    'generate.py @base/run --interpolate 1,2 --device cpu --out disk/loop.gif',
    'report.py @base --out disk/page',
    'metrics.py --gen @photos --ref @photos --metrics fid EFFNET --json disk/x.json',
    'metrics.py --gen @photos --ref @photos --metrics fid EFFNET --sheet disk/x.png',
    'metrics.py --ref @photos --metrics fid EFFNET --save-stats disk/x.npz',
    'data/images.py @photos --res 128 --out disk/set',
]


@contextlib.contextmanager
def disk(where, kilobytes=None, size='4m'):
    """A small disk at where/disk, for root; yields its path.  kilobytes: that are free, beside `filler`."""
    path = f'{where}/disk'
    os.makedirs(path)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'faults', path], check=True)
    try:
        if kilobytes is not None:
            usage = os.statvfs(path)
            write(f'{path}/filler', bytes(max(0, usage.f_bavail * usage.f_bsize - kilobytes * 1024)))
        yield path
    finally:
        subprocess.run(['umount', '-l', path], check=True)


def kind_disks(bench):
    """Full disks, read-only disks, and a run directory that goes away."""
    right, _ = undisturbed(bench, TRAINING)
    root = os.geteuid() == 0
    for free in bench.some(LEVELS):
        where = bench.place()
        with disk(where, free) if root else contextlib.nullcontext(where) as path:
            def limit(size=max(free, 1) * 1024):               # without a disk of its own: of each file
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            r = bench.run(TRAINING, path, before=None if root else limit)
            words = ['space|disk|large|full', 'run', 'resume|same command|again|room']
            found = problems(r, range(1, 128), words)
            found += leftovers(path)
            with contextlib.suppress(FileNotFoundError):
                os.remove(f'{path}/filler')
            found += [f'then: {text}' for text in ends_the_same(bench, TRAINING, path, right)]
        expected = 'a sentence; with room again, the same bits'
        yield Case(noted(TRAINING, f'{free} kB are free'), expected, found)
    for command in bench.some(OUTPUTS if root else []):
        for what, kilobytes in (('full', 0), ('full but for 6 kB', 6), ('read-only', None)):
            where = bench.place()
            with disk(where, kilobytes, '1m') as path:
                if kilobytes is None:
                    subprocess.run(['mount', '-o', 'remount,ro', path], check=True)
                r = bench.run(command, where, 90)
                may_succeed = kilobytes == 6 or '--cache' in command
                codes = [0, 1, 2] if may_succeed else [1, 2]
                found = problems(r, codes, ['disk'] if r.code else []) + leftovers(path)
            yield Case(noted(command, f'disk is {what}'), 'a sentence with the path, nothing half-way', found)
    for how in bench.some(['removed', 'renamed', 'a file instead']):
        yield directory_gone(bench, how)


def directory_gone(bench, how):
    """The case of a run directory that goes away under a training."""
    where = bench.place()
    child = bench.start(LONG, where)
    child.wait_for('run/last.pt')
    child.signal(signal.SIGSTOP)
    os.rename(f'{where}/run', f'{where}/moved')
    if how != 'renamed':
        shutil.rmtree(f'{where}/moved')
    if how == 'a file instead':
        write(f'{where}/run', b'a file')
    child.signal(signal.SIGCONT)
    r = child.wait()
    complete = r.code == 0 and os.path.exists(f'{where}/run/last.pt')
    found = [] if complete else problems(r, [1, 2], ['run', r'step \d'])
    return Case(noted(LONG, f'run is {how} meanwhile'), 'a sentence with the path', found)


# ---- kind 9: data as people have it

SOURCES = {                                  # of a folder or zip without a good picture
    'nothing': {}, 'texts': {'notes.txt': b'x'}, 'a zip': {'x.zip': b'PK'}, 'rubbish': {'x.png': b'x'},
    'HEIC': {'x.heic': b'x'}, 'a hidden picture': {'.x.png': good_picture()},
}
MISTAKEN = [                                 # command, a word of its sentence; d has the folders cats, dogs
    ('train_sngan.py --data d/cats/a.png T --check-data', 'folder'),
    ('metrics.py --gen d/cats/a.png --ref d EFFNET', 'folder'),
    ('metrics.py --gen d --ref d/cats/a.png EFFNET', 'folder'),
    ('data/images.py d/cats/a.png --res 32', 'folder'),
    ('generate.py @base/run --nearest d/cats/a.png EFFNET', 'folder'),
    ('generate.py d/cats/a.png', 'd/cats/a.png'), ('generate.py d', 'd'),
    ('train_biggan.py --data d B --steps 1 --init-from @big/run/last.pt', 'class'),
]


def classes_case(bench, where, data, note, right):
    """The case of a --check-data of four pictures and so many classes; None in `right`: or refused."""
    command = f'train_sngan.py --data {data} T --check-data'
    r = bench.run(command, where, 20)
    found = problems(r, [2 if number is None else 0 for number in right])
    if r.code == 0 and not found:
        classes, read = re.search(r'(\d+) classes', r.text), re.search(r'(\d+) images read', r.text)
        if not classes or int(classes[1]) not in right:
            found = [f'{classes[1] if classes else "no"} classes']
        elif int(read[1]) != 4:
            found = [f'{read[1]} images read']
    expected = ' or '.join('refused' if number is None else f'{number} classes' for number in right)
    return Case(noted(command, note), expected, found)


def kind_data(bench):
    """Data as people have it."""
    p = [good_picture(i) for i in range(4)]
    for note, (text, right) in bench.some(inputs.DATASET_JSONS.items()):
        for top in ('', 'set/'):
            entries = {f'{top}00000/img{i}.png': p[i] for i in range(4)} | {f'{top}dataset.json': text}
            where = zip_with(bench, entries, good=0)
            yield classes_case(bench, where, 'd.zip', f'{top}dataset.json: {note}', right)
            where = folder_with(bench, entries, good=0)
            yield classes_case(bench, where, 'd', f'd/{top}dataset.json: {note}', right)

    for note, (entries, number) in bench.some(inputs.class_folders().items()):
        yield classes_case(bench, zip_with(bench, entries, good=0), 'd.zip', note, [number])
        if '\\' not in ''.join(entries):
            yield classes_case(bench, folder_with(bench, entries, good=0), 'd', note, [number])
        where = zip_with(bench, {**entries, 'cats/bad \u20ac \u72d7.png': b'rubbish'}, good=0)
        command = 'train_sngan.py --data d.zip T --check-data'
        r = bench.run(command, where, env={'PYTHONIOENCODING': 'cp1252'})
        yield Case(noted(command, f'{note}, and rubbish of a name that stdout cannot print'), 'exit 0, named',
                   problems(r, [0], ['1 skipped']))

    for note, entries in bench.some(SOURCES.items()):
        yield scan(bench, folder_with(bench, entries, good=0), 'd', f'a folder of {note}', 'refused')
        yield scan(bench, zip_with(bench, entries, good=0), 'd.zip', f'a zip of {note}', 'refused')
    two = {'cats/a.png': p[0], 'cats/b.png': p[1], 'dogs/c.png': p[2], 'dogs/d.png': p[3]}
    for command, word in bench.some(MISTAKEN):
        r = bench.run(command, folder_with(bench, two, good=0))
        found = problems(r, [2], [word])
        if 'None' in r.text:
            found.append(f'speaks of None: {r.last_line()}')
        yield Case(command, f'exit 2, speaks of {word}', found)
    for name in bench.some(['birds/x.png', 'birds/x.heic']):
        command = 'train_biggan.py --data d B --steps 1 --out run'
        r = bench.run(command, folder_with(bench, {**two, name: b'rubbish'}, good=0))
        note = f'class birds has {name} alone, of rubbish'
        yield Case(noted(command, note), 'exit 2, speaks of birds', problems(r, [2], ['birds']))
    for encoding in bench.some(['cp1252', 'ascii']):
        command = 'train_biggan.py --data d B --check-data'
        where = folder_with(bench, {'кот/a.png': p[0], 'caf\xe9/b.png': p[1]}, good=0)
        r = bench.run(command, where, env={'PYTHONIOENCODING': encoding})
        yield Case(noted(command, f'classes кот and caf\xe9, stdout {encoding}'), 'exit 0', problems(r, [0]))


# ---- the campaign

KINDS = {'images': kind_images, 'finite': kind_finite, 'damage': kind_damage, 'kills': kind_kills,
         'crashes': kind_crashes, 'pairs': kind_pairs, 'pipes': kind_pipes, 'disks': kind_disks,
         'lines': kind_lines, 'data': kind_data}
FOLDERS_KEPT = 30                            # a case may still use the folder of the one before


def get_args(argv=None):
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a('--kind', nargs='+', choices=KINDS, default=list(KINDS), help='kinds of faults (default: all)')
    a('--seed', type=int, default=0, help='flipped bits, moments of kills, choice of command lines')
    a('--quick', action='store_true', help='a tenth of each kind')
    a('--keep', action='store_true', help='keep the folders of faults that did not hold')
    return p.parse_args(argv)


def try_kind(bench, kind, keep):
    """Run one kind; returns (number tried, lines of what did not hold)."""
    count, bad, kept = 0, [], set()
    try:
        for case in KINDS[kind](bench):
            count += 1
            if case.found:
                place = f' [{bench.count:05d}]' if keep else ''
                seen = '; '.join(case.found)
                line = f'{kind}: {case.command} | seen: {seen} | expected: {case.expected}{place}'
                bad.append(line.encode('utf-8', 'backslashreplace').decode())
                print(f'\r\033[K{bad[-1]}', file=sys.stderr)
                kept |= {bench.count} if keep else set()
            old = bench.count - FOLDERS_KEPT
            for number in range(old - FOLDERS_KEPT, old):
                if number not in kept:
                    shutil.rmtree(f'{bench.home}/{number:05d}', ignore_errors=True)
            line = f'\r\033[K{kind}: {count} tried, {count - len(bad)} held'
            print(line, end='', file=sys.stderr, flush=True)
    except Exception:                                          # of the campaign, or where nothing works
        count += 1
        bad.append(f'{kind}: the campaign itself failed: {traceback.format_exc()}')
    print(file=sys.stderr)
    return count, bad


def main(args):
    """Print the table and what did not hold; returns the exit code."""
    bench = Bench(args.seed, args.quick)
    rows, bad = [], []
    try:
        for kind in args.kind:
            start = time.time()
            count, lines = try_kind(bench, kind, args.keep)
            rows.append((kind, count, count - len(lines), time.time() - start))
            bad += lines
    finally:
        if args.keep:
            print(f'kept: {bench.home}', file=sys.stderr)
        else:
            bench.close()

    rows.append(('all', *(sum(column) for column in list(zip(*rows))[1:])))
    print(f'{"kind":8} {"tried":>6} {"held":>6} {"seconds":>8}')
    for kind, count, held, seconds in rows:
        print(f'{kind:8} {count:6} {held:6} {seconds:8.0f}')
    if bad:
        print('', *(f'{name} = {flags}' for name, flags in SHORT.items()), '', sep='\n')
    print(*bad, sep='\n')
    return int(bool(bad))


if __name__ == '__main__':
    sys.exit(main(get_args()))
