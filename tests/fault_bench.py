"""For faults.py: scripts as processes, what is wrong with how they ended, and two runs compared bit for bit.

Use:
    bench = Bench(seed=0)
    where = bench.place()                                      # a new folder
    r = bench.run('train_sngan.py S --steps 1 --out run', where)
    print(r.code, r.seconds, r.peak, problems(r, codes=[0]))   # problems: [] where nothing is wrong
    bench.close()

A command is a line of text.  In it S, STYLE, ... stand for the flags of SHORT, and @base/run for a file of
Bench.base.
"""
import atexit
import contextlib
import functools
import json
import os
import re
import resource
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import NamedTuple

os.environ['OMP_NUM_THREADS'] = '1'          # before torch: the sums have one order, and a fork is safe

import matplotlib.pyplot                                       # noqa: E402, F401  for the forks, see Child
import numpy as np                                             # noqa: E402
import scipy.special                                           # noqa: E402, F401
import torch                                                   # noqa: E402
import torchvision                                             # noqa: E402, F401
from PIL import Image                                          # noqa: E402

from fault_inputs import good_picture, write                   # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHORT = {                                    # flags that commands share; a value may hold other names
    'T': '--ch-g 4 --ch-d 4 --batch 4 --g-batch 4 --d-steps 1 --metrics none --device cpu --precision fp32 '
         '--preset paper',
    'S': '--data emoji-faces T',
    'WIDER': '--ch-g 8 --ch-d 8 --batch 8 --g-batch 8',
    'OFTEN': '--save-every 1 --log-every 1',
    'SCORED': '--metrics fid --features effnet --eval-samples 10 --eval-repeats 1 --eval-every 2',
    'QUIET': 'SCORED --metrics none',        # the same run, which is not scored any more
    'STYLE': '--data emoji-faces --preset demo --res 16 --batch 4 --metrics none --device cpu '
             '--precision fp32',
    'B': '--preset demo --ch-g 8 --ch-d 8 --batch 16 --metrics none --device cpu --precision fp32',
    'BIG': '--data emoji B',
    'EFFNET': '--features effnet --device cpu',
}
MEMORY = 1000                                # MB that a scan may take beside the libraries
HARMLESS_PROGRAMS = {'git', 'ffmpeg', 'lscpu', 'uname'}
MORE_MEMORY = 4 * 2 ** 30                    # bytes that a child may map beside what this process has


# ---- processes

class Result:
    """How a process ended: code (negative: by a signal), out, err, text (both), seconds, peak in MB, hung.

    programs: the names of those that it started."""

    def __init__(self, code, texts, seconds, peak, hung):
        self.code, self.seconds, self.peak, self.hung = code, seconds, peak, hung
        self.out, self.err, programs = texts
        self.text = self.out + self.err
        self.programs = programs.split()

    def last_line(self):
        """The last line that was printed."""
        return self.text.strip().split('\n')[-1][:150]


class Child:
    """A process in a session and folder of its own, all of whose output is kept.

    argv: the script and its flags.  The process is a fork of this one, which has imported torch: as
    `python SCRIPT`, without the three seconds.  real: an ordinary process, where argv[0] is any program.
    before(): called in the fork first."""

    def __init__(self, argv, where, env, real=False, before=None):
        self.argv, self.where, self.env = argv, where, env
        self.files = [tempfile.TemporaryFile() for _ in range(3)]              # stdout, stderr, programs
        self.begun = time.time()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self.become(real, before)

    def become(self, real, before):
        """Never returns: this fork is the script from now on."""
        code = 1
        try:
            os.setsid()
            out, err, programs = (file.fileno() for file in self.files)
            os.dup2(programs, 20)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.closerange(3, 20)
            os.closerange(21, 1024)
            os.chdir(self.where)
            with open('/proc/self/statm') as f:
                most = int(f.read().split()[0]) * resource.getpagesize() + MORE_MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.clear()
            os.environ.update(self.env)
            if real:
                os.execvpe(self.argv[0], self.argv, self.env)
            code = self.interpret(before)
        except BaseException:                                  # a mistake of this file
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)

    def interpret(self, before):
        """Run the script as Python would, and end as Python ends; returns the exit code."""
        encoding = self.env.get('PYTHONIOENCODING', 'utf-8')
        sys.stdout = open(1, 'w', encoding=encoding, closefd=False)
        sys.stderr = open(2, 'w', encoding=encoding, errors='backslashreplace', closefd=False, buffering=1)
        sys.argv = [f'{ROOT}/{self.argv[0]}', *self.argv[1:]]
        sys.path[0] = os.path.dirname(sys.argv[0])
        atexit._clear()
        sys.addaudithook(note_programs)

        code = 0
        try:
            if before:
                before()
            runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as e:
            code = e.code
            if code is None or isinstance(code, str):
                print(code or '', end='', file=sys.stderr)
                code = int(code is not None)
        except BaseException as e:
            traceback.print_exc()
            code = 130 if isinstance(e, KeyboardInterrupt) else 1
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        return int(code)

    def wait(self, seconds=60):
        """The Result.  What still runs after so many seconds is killed, and counts as hung."""
        hung = False
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if not hung and time.time() - self.begun > seconds:
                hung = True
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            time.sleep(.003)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)                # what it has left behind

        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors='replace'))
            file.close()
        code = os.waitstatus_to_exitcode(status)
        return Result(code, texts, time.time() - self.begun, usage.ru_maxrss // 1024, hung)

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def running(self):
        """Whether it has not ended yet."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait_for(self, file, more=lambda: True, seconds=60):
        """Wait until a file is there and more() is true, or the process has ended."""
        while self.running() and time.time() - self.begun < seconds:
            if os.path.exists(f'{self.where}/{file}') and more():
                return
            time.sleep(.002)


def note_programs(event, args):
    """An audit hook, which writes the name of every program that is started to descriptor 20."""
    if event not in ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn'):
        return
    command = args[1] if event == 'subprocess.Popen' else args[0]
    first = command if isinstance(command, (str, bytes)) else command[0]
    os.write(20, os.path.basename(os.fsencode(first).split()[0]) + b'\n')


# ---- the bench: places and commands, and what many faults start from

class Bench:
    """A temporary folder, in which place() makes a new folder for each fault, and the commands that run there."""

    def __init__(self, seed=0, quick=False):
        self.home = tempfile.mkdtemp(prefix='faults-')
        self.rng = np.random.default_rng(seed)
        self.quick, self.count = quick, 0
        self.prepared = Prepared(self)
        fake = '#!/bin/sh\n[ "$1" = --version ] && exec echo 10.0\necho "$@" >>gs-was-run\n'
        os.chmod(write(f'{self.home}/bin/gs', fake.encode()), 0o755)
        nowhere = {f'{name}_proxy': 'http://127.0.0.1:9' for name in ('http', 'https', 'HTTP', 'HTTPS')}
        own = {'PATH': f"{self.home}/bin:{os.environ['PATH']}", 'HOME': self.home, 'MPLBACKEND': 'Agg',
               'TORCH_HOME': f'{self.home}/torch', 'XDG_CACHE_HOME': f'{self.home}/cache',
               'PYTHONDONTWRITEBYTECODE': '1'}
        self.env = {**os.environ, **nowhere, **own}
        for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'PYTHONIOENCODING', 'PYTHONUNBUFFERED'):
            self.env.pop(name, None)
        sys.dont_write_bytecode = True
        Image.init()
        self.idle_peak = self.run('train_sngan.py S --check-data', self.place()).peak

    def close(self):
        shutil.rmtree(self.home, ignore_errors=True)

    def place(self, copy_of=None):
        """A new folder, empty or a copy of another."""
        self.count += 1
        path = f'{self.home}/{self.count:05d}'
        if copy_of:
            shutil.copytree(copy_of, path, symlinks=True)
        else:
            os.makedirs(path)
        return path

    def some(self, cases):
        """All cases, or a tenth of them."""
        cases = list(cases)
        if self.quick:
            return cases[int(self.rng.integers(10)) % len(cases)::10]
        return cases

    def words(self, command):
        """The words of a command, with SHORT and @... in full."""
        found = []
        for word in shlex.split(command):
            if word in SHORT:
                found += self.words(SHORT[word])
            elif word.startswith('@'):
                name, slash, rest = word[1:].partition('/')
                found.append(getattr(self.prepared, name) + slash + rest)
            else:
                found.append(word)
        return found

    def start(self, command, where, env=None, real=False, before=None):
        """A Child.  real: an ordinary `python SCRIPT`."""
        argv = self.words(command) if isinstance(command, str) else command
        if real and argv[0].endswith('.py'):
            argv = [sys.executable, f'{ROOT}/{argv[0]}', *argv[1:]]
        return Child(argv, where, {**self.env, **(env or {})}, real, before)

    def run(self, command, where, seconds=60, **how):
        """The Result of a command."""
        return self.start(command, where, **how).wait(seconds)


class Prepared:
    """What many faults start from: folders, each made once, when a fault first asks for it."""

    def __init__(self, bench):
        self.bench = bench

    def made(self, name, command):
        """The folder `name`, in which a command has run that must succeed."""
        where = f'{self.bench.home}/{name}'
        os.makedirs(where)
        r = self.bench.run(command, where, 200)
        if r.code:
            raise RuntimeError(f'{command}: exit {r.code}: {r.text[-300:]}')
        return where

    @functools.cached_property
    def base(self):
        """Holds run/: two steps of SNGAN, scored, with a best.pt."""
        return self.made('base', 'train_sngan.py S OFTEN SCORED --steps 2 --out run')

    @functools.cached_property
    def third(self):
        """The state of that run one step later."""
        where = self.bench.place(self.base)
        r = self.bench.run('train_sngan.py S OFTEN QUIET --steps 3 --out run', where)
        if r.code:
            raise RuntimeError(f'the run of Prepared.base does not go on: exit {r.code}: {r.text[-300:]}')
        return run_state(f'{where}/run')

    @functools.cached_property
    def finding(self):
        """Holds f/ and t.pt: a finding of one round."""
        return self.made('finding', 'find_ticket.py sngan S OFTEN --steps 2 --rounds 1 --out f --ticket t.pt')

    @functools.cached_property
    def early(self):
        """Holds f/ with its masks.pt: a finding by early-bird."""
        return self.made('early', 'find_ticket.py sngan S OFTEN --steps 4 --rounds 1 --method early-bird '
                                  '--eb-every 1 --eb-threshold 1e-9 --out f --ticket t.pt')

    @functools.cached_property
    def style(self):
        """Holds run/: a StyleGAN2."""
        return self.made('style', 'train_stylegan2.py STYLE --steps 1 --out run')

    @functools.cached_property
    def big(self):
        """Holds run/: a BigGAN of nine classes."""
        return self.made('big', 'train_biggan.py BIG --steps 1 --out run')

    @functools.cached_property
    def photos(self):
        """Eight good pictures."""
        for i in range(8):
            write(f'{self.bench.home}/photos/{i}.png', good_picture(i))
        return f'{self.bench.home}/photos'

    @functools.cached_property
    def converted(self):
        """Holds set/: the same pictures, converted to 32 px."""
        return self.made('converted', 'data/images.py @photos --res 32 --out set')


# ---- judging

class Case(NamedTuple):
    """One fault: the command, what is expected, and what was wrong as a list of texts ([] where it held)."""
    command: str
    expected: str
    found: list


def noted(command, note):
    """A command with a remark on its input."""
    return f'{command}   # {note}'


def problems(r, codes=(0, 2), words=(), most_mb=None):
    """What is wrong with a Result, as a list of texts; [] where nothing is.

    codes: the right exit codes; 2 and 3 come with a sentence.  words: patterns of what is to be said.
    most_mb: the most memory."""
    found = []
    if r.hung:
        found.append(f'still running after {r.seconds:.0f} s')
    elif r.code not in codes:
        found.append(f'exit {r.code}')

    if 'Traceback' in r.text or 'Exception ignored' in r.text:
        found.append(f'traceback: {r.last_line()}')
    elif r.code in (2, 3) and 'error:' not in r.text:
        found.append('no sentence')
    elif found and r.last_line():
        found.append(f'says: {r.last_line()}')
    if not found:
        for word in words:
            if not re.search(word, r.text, re.I):
                found.append(f'says nothing of {word!r} but: {r.last_line()}')

    odd = sorted(set(r.programs) - HARMLESS_PROGRAMS)
    if odd:
        found.append(f'started {", ".join(odd)}')
    if most_mb and r.peak > most_mb:
        found.append(f'took {r.peak} MB')
    return found


def leftovers(folder):
    """The first file that a write has left half-way, as a list of texts."""
    for _, _, names in os.walk(folder):
        for name in names:
            if re.search(r'\.(tmp|part)\b', name) and not name.endswith('.part.json'):
                return [f'{name} is left']
    return []


# ---- comparing

RUN_KEYS = 'model', 'step', 'done', 'state', 'G', 'D', 'E', 'masks', 'opt'
BEST_KEYS = 'model', 'step', 'score', 'E', 'masks'
TICKET_KEYS = 'model', 'method', 'round', 'rewind', 'data', 'sparsity', 'init', 'mask'
CLOCK = 'start', 'time', 'images_per_s', 'peak_mb'             # of a log line


def load(path):
    """A .pt file."""
    return torch.load(path, map_location='cpu', weights_only=True)


def picked(path, keys=RUN_KEYS):
    """Those keys of a .pt file; None where there is no file."""
    if not os.path.exists(path):
        return None
    file = load(path)
    return {key: file.get(key) for key in keys}


def records(path):
    """The records of a .jsonl file without what depends on the clock; [] where there is no file."""
    if not os.path.exists(path):
        return []
    with open(path) as f:
        found = [json.loads(line) for line in f]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in found]


def run_state(out):
    """All of a run that must be the same after a fault: weights, average, moments, log, scores, best."""
    return {'last.pt': picked(f'{out}/last.pt'), 'best.pt': picked(f'{out}/best.pt', BEST_KEYS),
            'log.jsonl': records(f'{out}/log.jsonl'), 'metrics.jsonl': records(f'{out}/metrics.jsonl')}


def finding_state(out, ticket):
    """The same of a finding: its tickets and its rounds."""
    found = {'--ticket': picked(ticket, TICKET_KEYS)}
    for name in sorted(os.listdir(out)):
        if re.fullmatch(r'ticket\d+\.pt', name):
            found[name] = picked(f'{out}/{name}', TICKET_KEYS)
        if re.fullmatch(r'round\d+', name):
            found[name] = run_state(f'{out}/{name}')
    return found


def difference(a, b, where=''):
    """Where two nested values differ first, '' if nowhere; tensors are compared bit for bit."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        return '' if same else where or 'a tensor'
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f'{where} has other keys: {sorted(map(str, a.keys() ^ b.keys()))[:3]}'
        for key in a:
            found = difference(a[key], b[key], f'{where}/{key}')
            if found:
                return found
        return ''
    both_nan = a != a and b != b
    return '' if both_nan or a == b else f'{where}: {str(a)[:40]} is not {str(b)[:40]}'


def differs(state, expected):
    """The difference between state() and what is expected, as a list of at most one text."""
    try:
        found = difference(state(), expected)
    except Exception as e:                                     # of every kind, on files that are damaged
        return [f'cannot be compared: {type(e).__name__}: {str(e)[:80]}']
    return [f'other values: {found}'] if found else []


def finite(value):
    """Whether all tensors and numbers of a nested value are finite."""
    if torch.is_tensor(value):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or bool(np.isfinite(value))


def not_finite_files(where):
    """The checkpoints, tickets and scores below a folder that are not finite, as a list of texts."""
    found = []
    for folder, _, names in os.walk(where):
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith('.pt') and not finite(load(path)):
                found.append(f'{os.path.relpath(path, where)} is not finite')
            if name == 'metrics.jsonl' and not finite(records(path)):
                found.append(f'{os.path.relpath(path, where)} has a score that is not finite')
    return found
