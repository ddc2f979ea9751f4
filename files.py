"""Files that outlive kills, full disks and flipped bits: written whole or not at all, and checked when read.

Use:
    import torch, files
    files.save('x.pt', {'w': torch.ones(3)})           # raises NotFinite where a number is NaN or infinite
    w = files.load('x.pt')['w']                        # raises Damaged where one bit of the file has changed
    files.write_json('x.json', {'a': 1})
    a = files.read_json('x.json', a=int)['a']          # raises Damaged where `a` is missing or no integer
    files.hold('run')                                  # from now on no other process writes into run/

A file is written beside its place, synced to the disk, and renamed.  A reader therefore sees the old file or
the new one, also after a power cut.  Files hold tensors and plain values, and nothing in them is executed.
"""
import contextlib
import hashlib
import json
import os
import shutil
import socket
import zipfile

import torch

try:
    import fcntl
except ImportError:                           # Windows has no such locks: there `hold` does nothing
    fcntl = None


class Damaged(ValueError):
    """A file that is not what it should be.  The text is a sentence that begins with the path."""


class NotFinite(ArithmeticError):
    """A value that must not be saved, because it holds NaN or infinity.  The text is the name of a tensor."""


class Taken(RuntimeError):
    """A folder that another process holds.  The text says which process."""


# ---- writing

def write(path, make, older=None):
    """Write a file beside its place and rename it: make(tmp) either completes, or the old file stays.

    older: a second name, under which the old file is kept.  Raises OSError with the path where the disk
    fails."""
    tmp = f'{path}.tmp'
    try:
        make(tmp)
        sync(tmp)
        if older:
            keep(path, older)
        os.replace(tmp, path)
        sync(os.path.dirname(path) or '.')
    except OSError as e:
        raise OSError(e.errno, e.strerror or str(e), os.fspath(path)) from e
    finally:
        with contextlib.suppress(OSError):
            os.remove(tmp)


def sync(path):
    """Wait until the content of a file, or the names in a folder, have reached the disk."""
    if os.path.isdir(path) and os.name == 'nt':
        return                                        # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path, value, older=None):
    """torch.save by `write`.  Raises NotFinite, and leaves the old file, where a tensor is not finite."""
    name = first_not_finite(value)
    if name:
        raise NotFinite(name)

    def make(tmp):
        with open(tmp, 'wb') as f:
            try:
                torch.save(value, f)
            except RuntimeError as e:                 # torch hides the error of the disk behind its own
                if isinstance(e.__context__, OSError):
                    raise e.__context__
                raise
    write(path, make, older)


def keep(path, older):
    """Keep a file under a second name, too: `older` is replaced.  The file itself is there at all times."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(older)
    try:
        os.link(path, older)
    except OSError:                                   # a file system without hard links
        shutil.copyfile(path, older)


def write_json(path, value):
    """Write a value as indented JSON."""
    def make(tmp):
        with open(tmp, 'w') as f:
            json.dump(value, f, indent=1)
    write(path, make)


def append_jsonl(path, record):
    """Append a record to a .jsonl file."""
    with open(path, 'a') as f:
        f.write(json.dumps(record) + '\n')


def write_jsonl(path, records):
    """Write the records of a .jsonl file anew."""
    def make(tmp):
        with open(tmp, 'w') as f:
            for record in records:
                f.write(json.dumps(record) + '\n')
    write(path, make)


# ---- reading

def read_json(path, **types):
    """The dict of a JSON file, whose values under the names in `types` are of these types.

    Raises Damaged where it is anything else."""
    try:
        with open(path, encoding='utf-8') as f:
            value = json.load(f)
    except (ValueError, RecursionError) as e:
        raise Damaged(f'{path} is damaged ({reason(e)})') from e
    if not isinstance(value, dict):
        raise Damaged(f'{path} is damaged (it holds no dict)')
    for name, kind in types.items():
        if not isinstance(value.get(name), kind):
            raise Damaged(f'{path} is damaged (its {name!r} is missing or of another type)')
    return value


def read_jsonl(path):
    """The records of a .jsonl file without a torn last one; [] if there is no file.

    Raises Damaged where another line is no record with a step."""
    if not os.path.exists(path):
        return []
    records = []
    with open(path, 'rb') as f:
        for number, line in enumerate(f, 1):
            torn = not line.endswith(b'\n') and (line.startswith(b'{') or not line.strip(b'\0'))
            if torn:
                break                                 # the process was killed, or the power cut, at this line
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise Damaged(f'{path} is damaged in line {number} ({reason(e)})') from e
            if not isinstance(record, dict) or not is_count(record.get('step')):
                raise Damaged(f'{path} is damaged in line {number} (no record with a step)')
            records.append(record)
    return records


def load(path):
    """A file of `save`: tensors and plain values.  Nothing in the file is executed.

    Raises Damaged where a bit has changed (by the checksums of the zip format, which torch.load does not look
    at), where the file is another program's, where a tensor is not finite, and where a part has not the form
    that FORMS says."""
    try:
        with zipfile.ZipFile(path) as f:
            changed = f.testzip() or first_folder(f)
        value = None if changed else torch.load(path, map_location='cpu', weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except zipfile.BadZipFile as e:
        raise Damaged(f'{path} is not a file of torch.save, or not a whole one ({reason(e)})') from e
    except Exception as e:                            # a damaged zip or pickle raises errors of every kind
        raise Damaged(f'{path} is damaged, or holds more than tensors and plain values ({reason(e)})') from e
    if changed:
        raise Damaged(f'{path} is damaged (its part {changed} has changed)')

    if isinstance(value, dict):
        for key, has_form in FORMS.items():
            if key in value and not has_form(value[key]):
                raise Damaged(f'{path} is damaged (its {key!r} is of another form)')
    name = first_not_finite(value)
    if name:
        raise Damaged(f'{path} is damaged ({name} is not finite)')
    return value


def first_folder(archive):
    """The name of the first entry of a zip that is marked as a folder, or None.

    torch.save writes none, and torch.load returns arbitrary memory for a tensor that is marked so."""
    for entry in archive.infolist():
        if entry.is_dir() or entry.external_attr & 0x10:
            return entry.filename
    return None


def reason(error):
    """The first line of what an exception says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def first_not_finite(value, name=''):
    """The name of the first tensor in nested dicts and lists that holds NaN or infinity, such as G/l1.weight.

    None where all of them are finite."""
    if torch.is_tensor(value):
        finite = not value.is_floating_point() or torch.isfinite(value).all()
        return None if finite else name or 'a tensor'
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, part in value.items():
            found = first_not_finite(part, f'{name}/{key}' if name else str(key))
            if found:
                return found
    return None


# ---- the form of what our files hold

def is_count(x):
    """Whether x is an integer from 0 on."""
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def is_state(x):
    """Whether x is a state dict, {name: tensor}."""
    return isinstance(x, dict) and all(torch.is_tensor(value) for value in x.values())


def is_pair(x):
    """Whether x is {G, D} of {name: tensor}: initial weights, or masks."""
    return isinstance(x, dict) and all(is_state(x.get(name)) for name in 'GD')


def is_dict(x):
    """Whether x is a dict."""
    return isinstance(x, dict)


def is_text(x):
    """Whether x is a text."""
    return isinstance(x, str)


# {a key of a .pt file: the test of its value}
FORMS = {
    'model': is_text, 'args': is_dict,
    'step': is_count, 'round': is_count,
    'state': is_dict, 'opt': is_dict,
    'G': is_state, 'D': is_state, 'E': is_state,
    'init': is_pair, 'mask': is_pair, 'masks': is_pair}


# ---- contents

def to_cpu(x):
    """A copy of nested dicts of tensors, each with its own storage, so that a file holds nothing else."""
    if isinstance(x, dict):
        return {key: to_cpu(value) for key, value in x.items()}
    if torch.is_tensor(x):
        return x.detach().cpu().clone(memory_format=torch.contiguous_format)
    return x


def digest(x):
    """A hash of nested dicts of tensors and plain values, which does not depend on the order of keys."""
    h = hashlib.sha256()

    def feed(x):
        if isinstance(x, dict):
            for key in sorted(x):
                h.update(str(key).encode())
                feed(x[key])
        elif torch.is_tensor(x):
            h.update(x.detach().cpu().contiguous().numpy().tobytes())
        else:
            h.update(repr(x).encode())

    feed(x)
    return h.hexdigest()[:16]


# ---- folders: one process at a time

HELD = {}                                     # {real path of a folder: the open file of its lock}


def hold(folder):
    """Make a folder, and claim it: until this process ends, however it ends, no other process can claim it.

    Raises Taken where another process holds the folder."""
    os.makedirs(folder, exist_ok=True)
    place = os.path.realpath(folder)
    if fcntl is None or place in HELD:
        return
    file = open(f'{folder}/.lock', 'a+')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or 'another process'
        file.close()
        raise Taken(owner) from None
    except OSError:                           # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    HELD[place] = file
    for name in os.listdir(folder):           # of a process that was killed while it wrote
        if name.endswith('.tmp'):
            os.remove(f'{folder}/{name}')


def is_held(folder):
    """Whether a process holds a folder now: another one, or this one."""
    try:
        with open(f'{folder}/.lock') as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):         # no lock, or a system without locks
        pass
    return False


def free(folder):
    """Give up a folder that `hold` has claimed."""
    file = HELD.pop(os.path.realpath(folder), None)
    if file:
        file.close()
