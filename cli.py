"""The command line: refusals, ranges, places that can be written, and how a script speaks and ends.

Use:
    import argparse, cli
    args = argparse.Namespace(rho=.2, out='run')
    cli.check_ranges(args, {'rho': '(0, 1)'})                  # else exit 2: use a number in (0, 1)
    cli.check_output('--out', args.out, folder=True)           # else exit 2, and nothing was made
    cli.script(lambda args: cli.say(args.out), lambda: args)   # main and get_args of a script

What the user, the terminal, the disk or a damaged file ends, ends in one sentence on stderr and an exit code:
0 finished, 1 the disk, 2 the command line or a file, 3 numbers that are not finite, 75 --max-hours, and
128 + its number for a signal.  13 stands for a closed output, as in shells.
"""
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import unicodedata

import torch

import files

STOP = []                                     # signals received; a run reads them once a step
CLOSED = 13                                   # the number of SIGPIPE: nobody reads stdout any more
CURRENT = []                                  # the loop.Run of this process: a disk error tells its step

LONGEST_NAME = 240                            # bytes, of 255: room for `.tmp` and the like
LONGEST_PATH = 3000                           # letters, of 4096


def world():
    """(rank, number of ranks), as torchrun says."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


# ---- refusals

def refuse(sentence):
    """Exit with code 2 and one sentence that names the flag, the value and the fix."""
    if world()[0] == 0:
        complain(sentence)
    raise SystemExit(2)


def complain(sentence):
    """Write an error to stderr, if it can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(f'error: {sentence}', file=sys.stderr, flush=True)


def flag(args, name):
    """'--batch-gpu 3': a flag and its value, as the user typed them."""
    return f"--{name.replace('_', '-')} {getattr(args, name)}"


def check_ranges(args, *tables):
    """Refuse a number that does not lie in its interval; NaN lies in none, and inf is the open end of some.

    tables: {flag: interval}, such as {'ema': '[0, 1)'}.  Each number of a list is checked."""
    for table in tables:
        for name, interval in table.items():
            value = getattr(args, name, None)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, (int, float)) and not lies_within(number, interval):
                    refuse(f"--{name.replace('_', '-')} {number} is out of range: use a number in {interval}")


def lies_within(number, interval):
    """Whether a number lies in an interval, such as '[0, 1)' or '(-inf, inf)'."""
    low, high = interval[1:-1].split(',')
    above = number >= float(low) if interval.startswith('[') else number > float(low)
    below = number <= float(high) if interval.endswith(']') else number < float(high)
    return above and below


def check_output(name, path, folder=False):
    """Refuse a path of the flag `name` where a file, or a folder with files, cannot be written.

    A path of None is a flag that was not given."""
    if path is None:
        return
    why = why_unwritable(path, folder)
    if why:
        shown = path if path and path.isprintable() else ascii(path)
        refuse(f'{name} {shown} {why}: name another {"directory" if folder else "file"}')


def why_unwritable(path, folder):
    """The end of a sentence on a path that cannot be written, None where it can.  Nothing is left behind.

    Folders that are missing can be made, and a file that is there can be replaced."""
    if not path:
        return 'is no name'
    if any(unicodedata.category(letter) in ('Cc', 'Cs') for letter in path):
        return 'has letters that cannot be printed'
    longest = max(len(os.fsencode(part)) for part in path.split(os.sep))           # bytes
    if longest > LONGEST_NAME or len(path) > LONGEST_PATH:
        return 'is too long'
    try:
        above, name = os.path.split(path)
        if not folder and (name in ('', '.', '..') or os.path.lexists(path) and not os.path.isfile(path)):
            return 'is a directory, or something else that is no file'
        whole = os.path.join(os.getcwd(), path if folder else above)
        place = whole
        while not os.path.lexists(place):
            place = os.path.dirname(place)            # the first folder above that is there
        if not os.path.isdir(place):
            return 'is a file' if place == whole else f'lies below {place}, which is a file'
        with tempfile.TemporaryFile(dir=place):       # a file without a name
            return None
    except OSError as e:
        return f'cannot be written to disk ({e.strerror})'


# ---- how a command begins, ends and speaks

def script(main, get_args):
    """Run main(get_args()) as a command, and exit where it does not succeed.

    What the user, the terminal, the disk or a damaged file ends, ends in a sentence and not in a traceback:
    2 for a damaged file and for too little memory, 3 for numbers that are not finite, 1 for the disk, 130 for
    Ctrl-C."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.stdout is None:                            # closed by the shell, as with >&-
        sys.stdout = open(os.devnull, 'w')
    sys.stdout.reconfigure(errors='backslashreplace')                  # for names that it cannot print

    code = 0
    try:
        main(get_args())
    except SystemExit as e:
        code = e.code
    except KeyboardInterrupt:
        complain('stopped by Ctrl-C')
        code = 130
    except files.Damaged as e:
        complain(e)
        code = 2
    except files.NotFinite as e:
        complain(f'{e} is not finite, and was not saved')
        code = 3
    except (MemoryError, RuntimeError) as e:
        if not says_memory_is_short(e):
            raise
        complain(memory_error(e))
        code = 2
    except BrokenPipeError:
        code = 128 + CLOSED
    except OSError as e:
        complain(disk_error(e))
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        mute()
        code = code or 128 + CLOSED
    if code:
        sys.exit(code)


def says_memory_is_short(e):
    """Whether an exception is of Python, torch or CUDA, and says that there is no memory left."""
    words = str(e).lower()
    if isinstance(e, (MemoryError, torch.OutOfMemoryError)):
        return True
    return 'out of memory' in words or "can't allocate memory" in words


def memory_error(e):
    """The sentence of such an exception: what to lower."""
    return (f'the memory does not suffice ({files.reason(e)}): lower --batch-gpu or --batch, --ch-g, '
            '--ch-d or --res, or ask for fewer --seeds, --frames or --samples')


def disk_error(e):
    """The sentence of an OSError: the path, what is safe, and how to go on."""
    path = e.filename or 'a file'
    safe = ''
    for run in CURRENT:
        safe = f'The training was at step {run.step}; {run.checkpoints}.  '
    return (f'the disk refuses {path}: {e.strerror or e}.  {safe}Make room or mend the path, and give the '
            f'same command again: {command()}')


def command():
    """What resumes this run, as a line for the shell."""
    words = [word for word in sys.argv if word != '--restart']
    ranks = world()[1]
    launcher = f'torchrun --nproc_per_node {ranks}' if ranks > 1 else 'python'
    return f'{launcher} {shlex.join(words)}'


def say(line, end='\n'):
    """Print on rank 0.  Where stdout is closed or full, a run is told to save and to stop."""
    if world()[0]:
        return
    try:
        print(line, end=end, flush=True)
    except OSError:
        mute()
        STOP.append(CLOSED)


def mute():
    """From now on what is printed goes nowhere, because stdout is closed or its disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
