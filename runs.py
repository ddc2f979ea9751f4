"""What trainings leave on the disk: flags, log, scores, cost, tickets; and curves and sample grids of runs.

Use:
    import runs
    for run in runs.collect('runs'):
        print(run['label'], run['state'], run['images'], run['seconds'])
    for name, figure, caption in runs.curves(runs.collect('runs')):
        figure.savefig(name)

Reads args.json, log.jsonl, metrics.jsonl, samples and tickets.  What is missing, cut off or torn is left out;
`damage` names the files that are damaged.

A run is a dict:
    path      its directory
    model     sngan, biggan or stylegan2
    flags     the flags of args.json, resolved
    seed      the flag --seed
    log       the records of log.jsonl
    scores    the records of metrics.jsonl that are complete and of the last record's kind (FID, FD-effnet)
    sparsity  {G, D}: the share of the prunable weights that are zero
    label     what was trained and how, in words
    images    how many images D has seen
    seconds   of all ranks together
    device    what it ran on, or None
    command   the command line that it was started by, '' where none is recorded
    state     what is wrong with it, '' for nothing
A finding is what one command of find_ticket.py makes, a dict:
    out, ticket         its directory, and the path of the last ticket
    method, rounds      how it prunes, and how often
    steps               G updates of one training, 0 for the preset's
    like, init_from     the ticket and the checkpoint that it starts from, or None
"""
import collections
import contextlib
import functools
import glob
import json
import os
import re

import numpy as np
from PIL import Image, ImageDraw

import files

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError:
    matplotlib = None
CAN_DRAW = matplotlib is not None                              # else there are no figures, and pages say so

# What a record of metrics.jsonl has when it is complete.
SCORE_KEYS = {'step', 'score', 'all', 'all_std', 'choose', 'report', 'report_std', 'protocol'}
# Scores with an entry of their own in the protocol.
FURTHER = 'is', 'kid', 'prdc', 'copy'

COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7',         # Okabe and Ito, for all eyes
           '#E69F00', '#56B4E9', '#000000', '#999999']
DASHES = ['-', '--', ':', '-.']
MARKERS = 'osD^vXP'
WINDOW = 9                                                     # log lines in the mean of D's accuracies

if CAN_DRAW:
    matplotlib.rcParams.update({
        'font.size': 9, 'axes.titlesize': 9, 'axes.axisbelow': True, 'hatch.linewidth': .6,
        'axes.spines.top': False, 'axes.spines.right': False})


# ---- files

def read_json(path):
    """The value of a JSON file, None where there is no whole file."""
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path) as f:
        return json.load(f)


def read_records(path):
    """The records of a .jsonl file that are whole and have a step."""
    records = []
    if os.path.isfile(path):
        with open(path, errors='replace') as f:
            for line in f:
                with contextlib.suppress(ValueError, RecursionError):
                    records.append(json.loads(line))
    return [r for r in records if isinstance(r, dict) and files.is_count(r.get('step'))]


def damage(folder):
    """Sentences on the damaged files of runs and findings below a folder.  A torn last line is no damage."""
    found = []
    for path in sorted(glob.glob(f'{glob.escape(folder)}/**/args.json', recursive=True)):
        directory = os.path.dirname(path)
        checks = {
            'args.json': check_args,
            'subset.json': functools.partial(files.read_json, fingerprint=str, index=list),
            'log.jsonl': files.read_jsonl,
            'metrics.jsonl': files.read_jsonl}
        for name, check in checks.items():
            try:
                check(f'{directory}/{name}')
            except FileNotFoundError:
                continue                              # a finding has only args.json
            except files.Damaged as e:
                found.append(str(e))
    return found


def check_args(path):
    """Raise files.Damaged where an args.json is neither that of a run nor that of a finding."""
    saved = files.read_json(path, identity=dict)
    if 'args' in saved and not read_run(os.path.dirname(path)):
        raise files.Damaged(f'{path} is damaged (it lacks flags of a training)')


def ticket_masks(path):
    """{G, D} -> {parameter name: mask} of a ticket file, None where there is no whole file."""
    with contextlib.suppress(OSError, KeyError, files.Damaged):
        return files.load(path)['mask']


# ---- runs

def read_run(directory):
    """The run in a directory, None where there is no whole args.json of a training."""
    try:
        saved = files.read_json(f'{directory}/args.json', identity=dict, args=dict)
        return described(directory, saved)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):         # Damaged is a ValueError
        return None


def described(directory, saved):
    """The run in a directory; saved: what args.json holds."""
    flags = saved['args']
    versions = saved.get('versions', {})
    log = read_records(f'{directory}/log.jsonl')
    last_line = log[-1] if log else {}
    sparsity = {net: round(last_line.get(f'sparsity_{net}', 0.), 4) for net in 'GD'}

    # A resumed process counts its seconds from 0 again, and its lines have another start.
    ends = {line.get('start'): line.get('time', 0.) for line in log}
    seconds = sum(ends.values()) * versions.get('ranks', 1)

    # Where a resumed training has changed the kind of its score, the last kind counts.
    scores = [s for s in read_records(f'{directory}/metrics.jsonl') if SCORE_KEYS <= s.keys()]
    scores = [s for s in scores if s['score'] == scores[-1]['score']]

    device = versions.get('device')
    run = {
        'path': directory,
        'model': saved['identity']['model'],
        'flags': flags,
        'seed': flags.get('seed', 0),
        'log': log,
        'scores': scores,
        'sparsity': sparsity,
        'label': run_label(flags, sparsity),
        'images': last_line.get('kimg', 0.) * 1000,
        'seconds': seconds,
        'device': 'CPU' if device == 'cpu' else device,
        'command': str(saved.get('command', ''))}
    run['state'] = run_state(run)
    return run


def run_state(run):
    """What is wrong with a run: 'unfinished at step 20 of 50', '' for nothing."""
    steps = run['flags']['steps']
    step = run['log'][-1]['step'] if run['log'] else 0
    if step < steps:
        return f'unfinished at step {step} of {steps}'
    if not os.path.exists(f"{run['path']}/last.pt"):
        return 'failed: no last.pt'
    if not run['scores']:
        return 'no score'
    scored = run['scores'][-1]['step']
    return '' if scored >= steps else f'scored at step {scored} of {steps}'


SPARSE = {'static': 'random masks', 'set': 'SET', 'rigl': 'RigL'}      # labels of --dst


def run_label(flags, sparsity):
    """What a run trained and how: 'ticket 36.00% + DiffAug + AdvAug, seed 1'."""
    pruned = max(sparsity.values())
    words = [f'ticket {pruned:.2%}' if pruned else 'dense']
    if flags.get('dst'):
        words = [f"{SPARSE[flags['dst']]} {pruned:.2%}"]
    for key, word in (('reinit', 'other weights'), ('small_dense', 'narrow'), ('slim', 'slimming')):
        if flags.get(key):
            words.append(word)

    if flags['aug'] != 'none':
        words.append(augmentation_label(flags))
    if flags.get('lecam'):
        words.append('R_LC')
    if flags.get('margin', 1) != 1:
        words.append(f"margin {flags['margin']:g}")
    if flags.get('transfer'):
        words.append(flags['transfer'])
    if flags['advaug'] != 'none':
        kind = 'noise' if flags['adv_noise'] else 'AdvAug'
        words.append(kind if flags['advaug'] == 'gd' else f"{kind} {flags['advaug'].upper()}")

    label = ' + '.join(words)
    return f"{label}, seed {flags['seed']}" if flags['seed'] else label


def augmentation_label(flags):
    """'ADA p 0.5', 'DiffAug on reals only'."""
    label = {'diffaug': 'DiffAug', 'ada': 'ADA', 'apa': 'APA'}[flags['aug']]
    if flags.get('ada_p') is not None:
        label += f" p {flags['ada_p']:g}"
    places = {'real': ' on reals only', 'd': " in D's updates only"}
    return label + places.get(flags.get('aug_on'), '')


def tell_apart(runs):
    """Add the directory to each label that several of the runs have: 'dense, in find/round0'."""
    counts = collections.Counter(run['label'] for run in runs)
    common = os.path.commonpath([run['path'] for run in runs])
    for run in runs:
        if counts[run['label']] > 1:
            run['label'] += f", in {os.path.relpath(run['path'], common)}"


def pick_run(directories):
    """The run of directories that hold the same training: the first whole one, else the first, else None."""
    found = [run for run in map(read_run, directories) if run]
    whole = [run for run in found if not run['state']]
    return next(iter(whole + found), None)


def collect(folder):
    """Every run below a folder that has a log line, in the order of `collect_begun`."""
    return [run for run in collect_begun(folder) if run['log']]


def collect_begun(folder):
    """Every run below a folder, also without a log line: by data set, by sparsity, the augmented ones last."""
    paths = sorted(glob.glob(f'{glob.escape(folder)}/**/args.json', recursive=True))
    found = [read_run(os.path.dirname(path)) for path in paths]

    def order(run):
        flags = run['flags']
        pruned = max(run['sparsity'].values())
        augmented = flags['aug'] != 'none'
        adversarial = flags['advaug'] != 'none'
        return flags['data'], pruned, augmented, adversarial, flags['seed'], flags['steps']
    return sorted((run for run in found if run), key=order)


# ---- findings, and what a ticket has cost

def flag_value(words, flag, default=None):
    """The word after a flag in the words of a command."""
    return words[words.index(flag) + 1] if flag in words else default


def parse_finding(words, directory=None):
    """The finding that a find_ticket command makes, from its words; `directory`: where it lies by default."""
    like = flag_value(words, '--like')
    rounds = flag_value(words, '--rounds')
    if rounds is None:
        # A ticket that is like ticketK.pt has the sparsity of K rounds.
        same = re.search(r'ticket(\d+)\.pt$', like or '')
        rounds = same[1] if same else 5
    return {
        'out': os.path.normpath(flag_value(words, '--out') or directory),
        'ticket': os.path.normpath(flag_value(words, '--ticket', 'ticket.pt')),
        'method': flag_value(words, '--method', 'imp'),
        'rounds': int(rounds),
        'steps': int(flag_value(words, '--steps', 0)),
        'like': like,
        'init_from': flag_value(words, '--init-from')}


def collect_findings(folder):
    """{directory: finding, ticket: finding} of all findings below a folder, by their commands."""
    findings = {}
    for path in sorted(glob.glob(f'{glob.escape(folder)}/**/args.json', recursive=True)):
        saved = read_json(path)
        if not isinstance(saved, dict) or not isinstance(saved.get('command'), str):
            continue                                  # `damage` names it
        if 'args' not in saved and 'find_ticket' in saved['command']:
            finding = parse_finding(saved['command'].split(), os.path.dirname(path))
            findings[finding['out']] = finding
            findings[finding['ticket']] = finding
    return findings


def training_count(method, rounds):
    """How many trainings a ticket of so many rounds takes."""
    if method == 'imp':
        return rounds
    return 1 if method in ('oneshot', 'slimming', 'early-bird') else 0


def ticket_origin(mask, findings):
    """(finding, round) of the ticket `mask`.

    (None, 0) stands for no ticket and a dense one, (None, None) for a ticket that no finding has made."""
    if not mask:
        return None, 0
    folder, name = os.path.split(os.path.normpath(mask))
    of_round = re.fullmatch(r'ticket(\d+)\.pt', name)
    if of_round and (folder in findings or of_round[1] == '0'):
        return findings.get(folder), int(of_round[1])
    finding = findings.get(os.path.join(folder, name))
    return finding, finding['rounds'] if finding else None


def trainings_before(flags, findings):
    """The directories of all trainings that a run needed before its own: those of its ticket, of the ticket
    that its ticket is like, and of --init-from. None stands for a training that is not known."""
    finding, k = ticket_origin(flags.get('mask'), findings)
    paths = []
    if k is None:
        paths.append(None)
    if k and finding:
        # With --rewind, the training up to the step that weights are rewound to.
        early = f"{finding['out']}/early"
        if os.path.isdir(early):
            paths.append(early)
        count = training_count(finding['method'], k)
        paths += [f"{finding['out']}/round{i}" for i in range(count)]
        if finding['like']:
            paths += trainings_before({'mask': finding['like']}, findings)

    # The trained weights that the run, or its finding, starts from.
    start = flags.get('init_from')
    if finding and not start:
        start = finding['init_from']
    if start:
        run = read_run(os.path.dirname(start))
        paths += [run['path'], *trainings_before(run['flags'], findings)] if run else [None]
    return list(dict.fromkeys(paths))


# ---- protocols

def protocol_key(run):
    """What must be equal for the last scores of two runs to be compared, as text; None without scores.

    That is the model, the resolution, and the protocol, but not its sparsity, seed and further scores."""
    if not run['scores']:
        return None
    protocol = dict(run['scores'][-1]['protocol'])
    for key in ('sparsity', 'seed', *FURTHER):
        protocol.pop(key, None)

    # The number of training images matters to the share of copies alone.
    protocol['n_ref'] = {split: n for split, n in protocol['n_ref'].items() if split != 'train'}
    protocol['model'] = run['model']
    protocol['res'] = run['flags']['res']
    return json.dumps(protocol, sort_keys=True)


def protocol_words(runs):
    """The protocol of scored runs in words; where they differ, all values with slashes between them."""
    facts = []
    for run in runs:
        for score in run['scores'][-1:]:
            protocol = score['protocol']
            facts.append({
                **protocol, **protocol['n_ref'], 'weights': protocol['weights'][:8], 'name': score['score'],
                'model': run['model'], 'res': run['flags']['res']})

    words = {}
    for key in set().union(*facts):
        values = dict.fromkeys(str(fact.get(key, '–')) for fact in facts)
        words[key] = ' / '.join(values)
    text = ('**{name}** of {model} at {res} px, lower is better: {n_gen} generated images, '
            '{repeats} sets of z, against {ref} (last: all {all}, best: chosen on {choose}, reported on the '
            'other {report}); {features}, resize {resize}, weights {weights}; {quantise}; {generator}; '
            'share of data {frac}')
    if 'classes' in words:
        text += '; classes {classes}'
    return text.format(**words)


# ---- curves over training

def new_figure(width, height, *grid, **layout):
    """A figure of so many inches and its axes, outside pyplot: it need not be closed."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(*grid, **layout)


def line_style(i):
    """Colour and dashes of the i-th line of a figure."""
    dashes = DASHES[(i + i // len(COLOURS)) % len(DASHES)]
    return {'color': COLOURS[i % len(COLOURS)], 'linestyle': dashes}


def marker(i):
    """The marker of the i-th line of a figure."""
    return MARKERS[i % len(MARKERS)]


def legend_beside(figure, ax):
    """The legend of a panel to the right of all panels, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, fontsize=8, loc='center left', bbox_to_anchor=(1, .5), frameon=False)


def curves(runs):
    """[(file name, figure, caption)] of scores, D's accuracies and ADA's p. Empty without matplotlib."""
    runs = [run for run in runs if run['log']]
    if not runs or not CAN_DRAW:
        return []
    figures = [
        score_curves(runs, 'all', 'score.png'),
        score_curves(runs, 'is', 'is.png', 'Inception Score'),
        score_curves(runs, 'copy', 'copy.png', 'share of copies'),
        accuracy_curves(runs),
        ada_curves(runs)]
    return [figure for figure in figures if figure]


def score_curves(runs, key, name, title=None):
    """One score of the runs that have it more than once, in the style that each run has in all figures."""
    series = {i: [s for s in run['scores'] if key in s] for i, run in enumerate(runs)}
    series = {i: scores for i, scores in series.items() if len(scores) > 1}
    if not series:
        return None

    fig, ax = new_figure(7, 4)
    values = []
    for i, scores in series.items():
        steps = [s['step'] for s in scores]
        means = [s[key] for s in scores]
        spreads = [s[f'{key}_std'] for s in scores]
        ax.errorbar(steps, means, spreads, label=runs[i]['label'], marker=marker(i), markersize=4, capsize=3,
                    **line_style(i))
        values += means

    if title is None:                                          # FID, FD-effnet, ...
        first = next(iter(series))
        title = runs[first]['scores'][0]['score']
    wide = max(values) > 10 * min(values) > 0
    ax.set(xlabel='G updates', ylabel=title, yscale='log' if wide else 'linear')
    ax.grid(alpha=.25)
    legend_beside(fig, ax)
    return name, fig, f'{title} over training; ± over sets of z; protocol as in the table.'


def log_series(run, key):
    """Steps and values of the log lines that have the key."""
    lines = [line for line in run['log'] if line.get(key) is not None]
    return np.array([line['step'] for line in lines]), np.array([line[key] for line in lines])


def running_mean(steps, values):
    """Means over WINDOW log lines, of a short log over fewer; what is not finite is left out.

    A hinge D moves up and down as a whole: the mean takes that out."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if not len(steps):
        return steps, values
    n = min(WINDOW, -(-len(steps) // 3))                       # rounded up
    window = np.full(n, 1 / n)
    return np.convolve(steps, window, 'valid'), np.convolve(values, window, 'valid')


def accuracy_curves(runs):
    """D's accuracies on training, held-out and generated images (the paper's Figure 2)."""
    panels = {'acc_train': 'training images', 'acc_held': 'held-out images', 'acc_gen': 'generated images'}
    if not any('acc_held' in line for run in runs for line in run['log']):
        del panels['acc_held']                                 # no run has held images out

    fig, axes = new_figure(4 * len(panels), 3.6, 1, len(panels), sharey=True)
    for ax, (key, title) in zip(axes, panels.items()):
        for i, run in enumerate(runs):
            steps, values = running_mean(*log_series(run, key))
            if not len(steps):
                continue
            dots = marker(i) if len(steps) < 3 else None
            ax.plot(steps, values, label=run['label'], linewidth=1.2, marker=dots, **line_style(i))
        ax.set(title=title, xlabel='G updates', ylim=(-.03, 1.03))
        ax.grid(alpha=.25)
    axes[0].set_ylabel("D's accuracy")
    legend_beside(fig, axes[0])
    caption = ("D's accuracy on up to 128 images each, in eval mode, not augmented (the paper's Figure 2); "
               f'running mean over up to {WINDOW} log lines.')
    return 'accuracy.png', fig, caption


def ada_curves(runs):
    """ADA's p and the sign of overfitting r, None where no run has them."""
    if not any('ada_p' in line for run in runs for line in run['log']):
        return None
    fig, axes = new_figure(9, 3.6, 1, 2)
    for i, run in enumerate(runs):
        for ax, key in zip(axes, ('ada_p', 'ada_r')):
            steps, values = log_series(run, key)
            if len(steps):
                ax.plot(steps, values, label=run['label'], **line_style(i))
    axes[0].set(title="ADA's p", xlabel='G updates', ylim=(-.02, 1.02))
    axes[1].set(title='r, which p follows', xlabel='G updates')
    legend_beside(fig, axes[0])
    return 'ada.png', fig, "ADA's p over training, and D's overfitting r that it follows."


# ---- samples

def sample_grid(runs):
    """(image, caption): training images and the last samples of every run, or (None, '') without any."""
    panels = []
    if runs:
        panels.append(('training images', f"{runs[0]['path']}/reals.png"))
    for run in runs:
        files = sorted(glob.glob(f"{glob.escape(run['path'])}/samples/*.png"))
        if files:
            panels.append((run['label'], files[-1]))

    # The sheet of a conditional run has a row for each class and is shown whole, others show 4 of 8 rows.
    conditional = bool(runs) and runs[0]['flags'].get('classes')
    sheets = []
    for title, path in panels:
        try:
            with Image.open(path, formats=['PNG']) as image:
                image = image.convert('RGB')
        except OSError:                                        # not there, or torn
            continue
        if not conditional:
            image = image.crop((0, 0, image.width, min(image.height, image.width // 2)))
        sheets.append(titled(image, title))
    if not sheets:
        return None, ''

    what = 'seeds 0-7 (columns) of its classes (rows)' if conditional else 'seeds 0-31'
    return tiled(sheets), f'Training images, and {what} of every run at its last grid, uncurated.'


def titled(image, title):
    """An image below a line of text."""
    sheet = Image.new('RGB', (image.width, image.height + 14), 'white')
    ImageDraw.Draw(sheet).text((2, 1), title, fill='black')
    sheet.paste(image, (0, 14))
    return sheet


def tiled(sheets, columns=3, gap=6):
    """Images in rows of three, on white."""
    height = max(sheet.height for sheet in sheets) + gap
    width = max(sheet.width for sheet in sheets) + gap
    rows = -(-len(sheets) // columns)                          # rounded up
    page = Image.new('RGB', (columns * width, rows * height), 'white')
    for i, sheet in enumerate(sheets):
        page.paste(sheet, (i % columns * width, i // columns * height))
    return page
