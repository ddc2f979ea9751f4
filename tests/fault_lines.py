"""For faults.py: wrong command lines of every script: a table, and bad values of every flag of its --help.

Use:
    for case in kind_lines(bench): print(case)                 # fault_bench.Case

Each command runs in a folder that has `file`, `folder` and the fifo `pipe`.  It must end at once in one
sentence, and make nothing.
"""
import glob
import os
import re
import shlex
import sys

from fault_bench import ROOT, Case, noted, problems
from fault_inputs import write

BASES = {                                    # flags of something small; other scripts run without flags
    'train_sngan.py': 'S --steps 1', 'train_stylegan2.py': 'STYLE --steps 1',
    'train_biggan.py': 'BIG --steps 1', 'find_ticket.py': 'sngan S --steps 1 --rounds 1',
    'generate.py': '@style/run --device cpu',
    'metrics.py': '--gen @photos --ref @photos --metrics fid EFFNET', 'images.py': '@photos --res 16',
    'report.py': '@base', 'leak.py': '@base/run --steps 1 --samples 4', 'experiments.py': 'table4',
    'make_emoji.py': '--out made',
}
CONTEXT = {                                  # flags without which a flag does nothing: by its name, or start
    'adv-': '--advaug gd', 'ada-': '--aug ada', 'lecam-': '--lecam 1', 'aug-policy': '--aug diffaug',
    'aug-on': '--aug diffaug', 'truncation-cutoff': '--psi .5', 'mix-layers': '--mix 0 1',
    'frames': '--interpolate 1,2', 'eb-': '--method early-bird',
    'mine-steps': '--transfer minegan --init-from @style/run/last.pt',
    'ema-rampup': '--ema-kimg 1', 'r1-every': '--r1 1', 'pl-every': '--pl 1', 'kid-': '--metrics kid',
    'k': '--metrics prdc', 'k-dc': '--metrics prdc',
}
PATHS = set("""data root mask init-from small-dense out ticket like weights cache json sheet save-stats each
    gen ref nearest rows font emoji-test""".split())
TEXTS = set('aug-policy metrics seeds classes interpolate mix mix-layers names features'.split())
POSITIVE = set("""steps batch batch-gpu g-batch d-steps lr-g lr-d ch-g ch-d ch-max mapping group eval-samples
    eval-repeats eval-every eval-batch log-every save-every sample-every max-hours rounds rho res frac workers
    kid-subsets kid-size k k-dc is-splits adv-pgd adv-step r1-every pl-every ada-kimg ada-interval columns
    frames truncation-cutoff samples mine-steps slim eb-every eb-threshold holdout""".split())
MAY_BE_NEGATIVE = {'adv-cut-g', 'adv-cut-d', 'ada-target', 'psi'}
MAY_BE_HUGE = {'steps', 'rounds', 'frames', 'samples', 'eval-samples', 'eval-repeats', 'd-steps',
               'kid-subsets'}                                      # a long run
HUGE = '1' + '0' * 30
NUMBERS = 'nan', 'inf', '-inf', '-1', '0', '1e400', '', 'abc', HUGE
BAD_PATHS = '', 'file', 'file/x', 'folder', 'pipe', 'n' * 300, '/proc/none/x', 'missing/deep/x', 'a\nb'
BAD_TEXTS = '', 'abc', ',', 'nan', '-1', '9' * 30, '3-1', '\udcff'
REFUSED = """
train_sngan.py S --steps 1 --seed -1
train_sngan.py S --steps 1 --res 1000000
train_sngan.py S --steps 1 --ch-g 10000000
train_sngan.py S --steps 1 --advaug gd --adv-pgd 1000000000
train_sngan.py S --steps 1 --adam-eps nan
train_sngan.py S --steps 1 --betas nan .9
train_sngan.py S --steps 1 --betas 0 1
train_sngan.py S --steps 1 --lecam -1
train_sngan.py S --steps 1 --margin -1
train_sngan.py S --steps 1 --margin nan
train_sngan.py S --steps 1 --advaug gd --adv-noise nan
train_sngan.py S --steps 1 --advaug gd --adv-step nan
train_sngan.py S --steps 1 --unknown 1
train_sngan.py S --step 1
train_sngan.py S stray
train_sngan.py
train_sngan.py --data ''
train_sngan.py S --steps 1 --out file/x
train_sngan.py S --steps 1 --init-from @style/run/last.pt
train_stylegan2.py STYLE --steps 1 --init-from @base/run/last.pt
train_stylegan2.py STYLE --steps 1 --mask @finding/t.pt
train_stylegan2.py STYLE --steps 1 --ch-max 0
train_stylegan2.py STYLE --steps 1 --group 0
train_stylegan2.py STYLE --steps 1 --mapping 0
train_stylegan2.py STYLE --steps 1 --res 1048576
train_stylegan2.py STYLE --steps 1 --r1 nan
train_stylegan2.py STYLE --steps 1 --pl inf
train_biggan.py BIG --steps 1 --init-from @base/run/last.pt
train_biggan.py BIG --steps 1 --mask @finding/t.pt
find_ticket.py
find_ticket.py sngan
find_ticket.py nogan S
find_ticket.py sngan S --steps 1 --rho 1e-300
find_ticket.py sngan S --steps 1 --rho .999999
find_ticket.py sngan S --steps 1 --rounds 1 --ticket file/x
find_ticket.py sngan S --steps 1 --rounds 1 --ticket folder
find_ticket.py sngan S --steps 1 --rounds 1 --out file
generate.py
generate.py @base/run --psi nan
generate.py @style/run --psi nan --device cpu
generate.py @style/run --psi inf --device cpu
generate.py @base/run --seeds 0-999999999999 --device cpu
generate.py @base/run --each file --device cpu
generate.py @base/run --each file/x --device cpu
generate.py @base/run --each /proc/none --device cpu
generate.py @base/run --out /proc/none.png --device cpu
generate.py @base/run --out folder --device cpu
metrics.py
metrics.py --gen @photos
metrics.py --gen @photos --ref @photos EFFNET --json folder
metrics.py --gen @photos --ref @photos EFFNET --json file/x
metrics.py --gen @photos --ref @photos EFFNET --json /proc/none/x
data/images.py
data/images.py @photos --res 1000000
data/images.py @photos --res 16 --out file
data/images.py @photos --res 16 --out file/x
report.py missing
report.py file
report.py @base --out file
report.py @base --out file/x
report.py @base --out /proc/none
""".strip().split('\n')
WITHOUT_CUDA = ['generate.py @base/run --device cuda', 'train_sngan.py S --device cuda',
                'metrics.py --gen @photos --ref @photos --device cuda']
LEAK = ['@base/run --samples 0', '@base/run --samples -1', '@base/run --steps 0', '@base/run --out file/x',
        'missing']
SHELL = 'STEPS=0 STEPS=-1 STEPS=abc GPUS=0 GPUS=abc SEEDS=abc SEEDS=-1 JOBS=0 SCALE=abc'.split()
FLAG = re.compile(r'^  --([a-z0-9-]+)(?:, --[a-z0-9-]+)*(?: (\S.*?))?(?:\s{2,}.*)?$', re.M)
MOST_LINES = 400                             # of those that are made of --help


def scripts():
    """Every script of the repository: paths from its top."""
    found = []
    for path in glob.glob(f'{ROOT}/**/*.py', recursive=True):
        name = os.path.relpath(path, ROOT)
        with open(path) as f:
            if "__name__ == '__main__'" in f.read() and not name.startswith('tests/'):
                found.append(name)
    return sorted(found)


def wrong_values(name, metavar):
    """Yield (words, right exit codes; None: may run for long) of bad values of a flag, as --help shows it."""
    if not metavar:                                            # a boolean
        yield '=1', [2]
    elif '{' in metavar:
        for value in ('abc', '', 'nan'):
            yield f' {shlex.quote(value)}', [2]
    elif name in PATHS | TEXTS:
        for value in BAD_PATHS if name in PATHS else BAD_TEXTS:
            yield f' {shlex.quote(value)}' * arity(metavar), [0, 2]
    else:
        for value in NUMBERS:
            codes = [2]
            sensible = value == '0' and name not in POSITIVE or value == '-1' and name in MAY_BE_NEGATIVE
            if sensible or value == HUGE:
                codes = [0, 2, 3]
            if value == HUGE and name in MAY_BE_HUGE:
                codes.append(None)
            yield f' {shlex.quote(value)}' * arity(metavar), codes


def arity(metavar):
    """How many values a flag needs: 2 for 'B B', 1 for '[X]' and 'X [X ...]'."""
    return max(1, len(metavar.split('[')[0].split()))


def wrong_lines(bench, script):
    """{flag: [(command, exit codes), ...]} of bad values for every flag in the --help of a script."""
    text = bench.run(f'{script} --help', bench.place()).text
    if script == 'find_ticket.py':                             # the flags of the training pass through
        text += bench.run('train_sngan.py --help', bench.place()).text
    found = {}
    for name, metavar in FLAG.findall(text):
        context = ''
        for start, flags in CONTEXT.items():
            fits = name.startswith(start) if start.endswith('-') else name == start
            if fits and flags.split()[0] in text:
                context = flags
        base = ' '.join([script, BASES.get(os.path.basename(script), ''), context])
        base = re.sub(' +', ' ', base).strip()
        if name != 'help':
            found[script, name] = [(f'{base} --{name}{words}', codes)
                                   for words, codes in wrong_values(name, metavar)]
    return found


def line_case(bench, command, codes):
    """The case of one command line: refused at once, and nothing is made."""
    where = bench.place()
    write(f'{where}/file', b'a file')
    os.mkdir(f'{where}/folder')
    os.mkfifo(f'{where}/pipe')
    before = set(os.listdir(where))
    r = bench.run(command, where, 20)
    found = problems(r, codes)
    if r.hung and None in codes:
        found = []
    new = sorted(set(os.listdir(where)) - before)
    if r.code == 2 and new and not found:
        found = [f'made {new[0]!r} before it refused']
    return Case(command, 'exit ' + ' or '.join(str(code) for code in codes if code is not None), found)


def kind_lines(bench):
    """Wrong command lines."""
    commands = list(REFUSED)
    commands += [f'{script} {flags}' for script in scripts() if script.endswith('leak.py') for flags in LEAK]
    for command in bench.some(commands):
        yield line_case(bench, command, [2])
    has_cuda = [sys.executable, '-c', 'import sys, torch; sys.exit(torch.cuda.is_available())']
    if not bench.run(has_cuda, bench.place(), real=True).code:                     # not asked before a fork
        for command in bench.some(WITHOUT_CUDA):
            found = problems(bench.run(command, bench.place(), real=True), [2])
            yield Case(command, 'exit 2', found)
    where, command = bench.place(bench.prepared.base), 'train_sngan.py S OFTEN SCORED --steps 1 --out run'
    yield Case(noted(command, 'run is at step 2'), 'exit 2', problems(bench.run(command, where), [2]))

    by_flag = {}
    for script in scripts():
        by_flag |= wrong_lines(bench, script)
    flags, chosen = list(by_flag), []
    flags = [flags[i] for i in bench.rng.permutation(len(flags))]
    while flags and len(chosen) < MOST_LINES:                  # one value of every flag, then a second, ...
        for flag in flags:
            rest = by_flag[flag]
            chosen.append(rest.pop(int(bench.rng.integers(len(rest)))))
        flags = [flag for flag in flags if by_flag[flag]]
    for command, codes in bench.some(chosen[:MOST_LINES]):
        yield line_case(bench, command, codes)

    for setting in bench.some(SHELL):
        name, value = setting.split('=')
        words = ['bash', f'{ROOT}/run_all.sh', '--dry-run', 'table4']
        r = bench.run(words, bench.place(), 40, real=True, env={name: value, 'PYTHON': sys.executable})
        yield Case(f'{setting} bash run_all.sh --dry-run table4', 'exit 2', problems(r, [2]))
