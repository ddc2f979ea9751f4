"""The runs as one page for a browser, index.html: curves, a table that sorts, and the images of each run.

Use:
    import runs, webpage
    webpage.write('page', 'My runs', runs.collect_begun('runs'))     # page/index.html opens by a double click
Reads what runs.py describes, and webpage.html, which holds the looks and the script.

Nothing is fetched, and no image is copied: the page shows the files of the run directories by relative paths,
and a browser loads them when they come into view.  It shows RUN/nearest.png, too, where `generate.py RUN
--nearest` has made it.
"""
import glob
import json
import math
import os
import re
import time
from html import escape
from urllib.parse import quote

import files
from runs import log_series, protocol_key, protocol_words, read_json, running_mean

POINTS = 300                                                   # of one curve, at most
KINDS = 'running', 'failed', 'stopped', 'finished'
CURVES = {
    'acc_train': "D's accuracy on training images",
    'acc_held': "D's accuracy on held-out images",
    'acc_gen': "D's accuracy on generated images",
    'ada_p': "ADA's p"}


def write(out, title, runs, lines=(), watch=False):
    """Write index.html into the folder `out`, and return its path.

    lines: markdown as report.py makes it, which comes first.
    watch: whether the page loads itself anew every minute."""
    protocols = list(dict.fromkeys(protocol_key(run) for run in runs if run['scores']))
    names = [f"{run['label']}, {os.path.basename(run['path'])}" for run in runs]
    data = {'names': names, 'panels': panels(runs, protocols), 'watch': watch}
    parts = {
        'title': escape(title),
        'summary': summary(runs),
        'article': '\n'.join(html_blocks(lines)),
        'table': table_of(runs, protocols),
        'cards': '\n'.join(card(i, run, out) for i, run in enumerate(runs)),
        'data': json.dumps(data).replace('<', '\\u003c')}      # so that no name ends the <script>

    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'webpage.html'), encoding='utf-8') as f:
        page = re.sub(r'<!--(\w+)-->', lambda mark: parts[mark[1]], f.read())

    def save(tmp):
        with open(tmp, 'w', encoding='utf-8', errors='xmlcharrefreplace') as f:
            f.write(page)
    files.write(f'{out}/index.html', save)
    return f'{out}/index.html'


# ---- what is said of a run

def status(run):
    """'running', 'finished', 'finished, no score', 'stopped at step 20 of 50', 'failed at step 20: ...'."""
    failure = read_json(f"{run['path']}/failed.json")
    state = run['state'].replace('unfinished', 'stopped')
    if state and files.is_held(run['path']):
        return 'running'
    if isinstance(failure, dict):
        return f"failed at step {failure.get('step')}: {failure.get('what')}"
    if state.startswith(('stopped', 'failed')):
        return state
    return f'finished, {state}' if state else 'finished'


def kind_of(run):
    """The word of KINDS that a run's status begins with."""
    return re.match(r'\w+', status(run))[0]


def summary(runs):
    """'3 runs: 1 running, 2 finished; written 2026-11-27 16:00'."""
    kinds = [kind_of(run) for run in runs]
    counts = [f'{kinds.count(kind)} {kind}' for kind in KINDS if kind in kinds]
    noun = 'run' if len(runs) == 1 else 'runs'
    return f"{len(runs)} {noun}: {', '.join(counts)}; written {time.strftime('%Y-%m-%d %H:%M')}"


def badges(run):
    """HTML of a run's kind, and of how often it was resumed."""
    kind = kind_of(run)
    resumed = len({line.get('start') for line in run['log']}) - 1
    again = f' <span class="badge">resumed {resumed}×</span>' if resumed > 0 else ''
    return f'<span class="badge {kind}">{kind}</span>{again}'


def name_of(i, run):
    """HTML of a run's line in the curves, and its name."""
    return (f'<svg class="swatch"><path class="line dash{i % 3}" d="M1 6H23"/></svg>'
            f'<a href="#run{i}">{escape(run["label"])}</a>')


def own(i):
    """The attributes of everything that belongs to the i-th run: its number and its colour."""
    return f'data-run="{i}" style="--hue:{i * 137.5 % 360}"'   # the golden angle: neighbours differ


# ---- the table

def differing_flags(runs):
    """The flags that differ between runs.  One that an old run lacks does not differ there."""
    values = {}
    for run in runs:
        for name, value in run['flags'].items():
            values.setdefault(name, set()).add(json.dumps(value))
    return [name for name, found in values.items() if len(found) > 1 and name != 'out']


def table_of(runs, protocols):
    """HTML of a row for each run, and below them of the protocols of their scores."""
    flags = differing_flags(runs)
    rows = [cells_of(run, flags, protocols) for run in runs]
    titles = dict.fromkeys(title for row in rows for title in row)
    titles = sorted(titles, key=lambda title: title.startswith('--'))                  # the flags come last

    html = ''.join(f'<th><button>{escape(title)}</button></th>' for title in ['run', 'state', *titles])
    html = f'<table><thead><tr>{html}</tr></thead><tbody>'
    for i, run in enumerate(runs):
        name = f"{name_of(i, run)}<small>{escape(run['path'])}</small>"
        html += f'\n<tr {own(i)}><th>{name}</th><td>{badges(run)}</td>'
        for text in (rows[i].get(title, '–') for title in titles):
            kind = ' class="number"' if re.match('[-+]?[0-9]', text) else ''
            html += f'<td{kind}>{escape(text)}</td>'
        html += '</tr>'
    html += '</tbody></table>'
    for n, key in enumerate(protocols, 1):
        words = protocol_words([run for run in runs if protocol_key(run) == key])
        html += f'<p class="note">Protocol {n}: {inline(words)}.</p>'
    return html


def cells_of(run, flags, protocols):
    """{title: text} of a run; the titles of flags begin with dashes."""
    step = run['log'][-1]['step'] if run['log'] else 0
    cells = {'step': f"{step:,} / {run['flags']['steps']:,}"}
    if run['scores']:
        last = run['scores'][-1]
        best = min(run['scores'], key=lambda score: score['choose'])
        cells[f"last {last['score']}"] = f"{last['all']:.1f} ± {last['all_std']:.1f}"
        cells['best half'] = f"{best['report']:.1f} ± {best['report_std']:.1f}"
        cells['protocol'] = str(protocols.index(protocol_key(run)) + 1)
    cells['pruned'] = f"{max(run['sparsity'].values()):.2%}"
    cells['1,000 images'] = f"{run['images'] / 1000:,.1f}"
    cells['minutes'] = f"{run['seconds'] / 60:,.1f}"
    for name in flags:
        value = run['flags'].get(name)
        cells[f"--{name.replace('_', '-')}"] = '–' if value is None else str(value)
    return cells


# ---- curves

def panels(runs, protocols):
    """[{title, range or None, lines}]: a panel for each protocol of scores, and those of CURVES."""
    found = []
    for n, key in enumerate(protocols, 1):
        here = {i: run['scores'] for i, run in enumerate(runs) if protocol_key(run) == key}
        name = next(iter(here.values()))[-1]['score']
        lines = [score_line(i, scores) for i, scores in here.items()]
        found.append({'title': f'{name}, protocol {n}', 'range': None, 'lines': lines})
    for key, title in CURVES.items():
        lines = [log_line(i, run, key) for i, run in enumerate(runs)]
        found.append({'title': title, 'range': [0, 1], 'lines': lines})
    return [panel for panel in found if any(line['x'] for line in panel['lines'])]


def score_line(i, scores):
    """The i-th run's scores over steps, with their spreads; what is not finite is left out."""
    scores = [score for score in scores if math.isfinite(score['all'] + score['all_std'])]
    columns = {'x': 'step', 'y': 'all', 'spread': 'all_std'}
    return {'run': i, **{axis: [score[key] for score in scores] for axis, key in columns.items()}}


def log_line(i, run, key):
    """The running mean of a number in the i-th run's log."""
    steps, values = running_mean(*log_series(run, key))
    every = max(1, len(steps) // POINTS)
    steps, values = steps[::every].tolist(), values[::every].round(4).tolist()
    return {'run': i, 'x': steps, 'y': values, 'spread': [0] * len(steps)}


# ---- images and settings

def card(i, run, out):
    """HTML of one run: training images, grids of samples, nearest neighbours, command and settings."""
    place = glob.escape(run['path'])
    settings = [f"--{name.replace('_', '-')} {value}" for name, value in run['flags'].items()]
    return '\n'.join([
        f'<article {own(i)} id="run{i}"><h3>{name_of(i, run)} {badges(run)}</h3>',
        f'<p class="note">{escape(run["path"])}: {escape(status(run))}</p><div class="pictures">',
        film(out, f'{place}/reals.png', 'training images'),
        film(out, f'{place}/samples/*.png', 'samples, step {step}'),
        film(out, f'{place}/nearest.png', 'samples beside the nearest training images'),
        f'</div><details><summary>command and settings</summary><pre>{escape(run["command"])}</pre>',
        '<pre class="settings">', escape('\n'.join(settings)), '</pre></details></article>'])


def film(out, pattern, caption):
    """HTML of the images of a pattern: one, or several with a slider, or '' where there is none."""
    frames = []                                                # [step, relative address]
    for path in sorted(glob.glob(pattern)):
        step = os.path.basename(path).removesuffix('.png').lstrip('0') or '0'
        frames.append((step, quote(os.path.relpath(path, out).replace(os.sep, '/'))))
    if not frames:
        return ''
    step, place = frames[-1]
    end = len(frames) - 1
    caption = caption.format(step=f'<output>{step}</output>')
    slider = f'<input type="range" max="{end}" value="{end}" aria-label="step">' if end else ''
    return (f'<figure data-frames="{escape(json.dumps(frames))}"><a href="{place}"><img src="{place}" '
            f'loading="lazy" alt=""></a><figcaption>{caption}{slider}</figcaption></figure>')


# ---- markdown

def inline(text):
    """HTML of one line of markdown: bold words and code."""
    text = re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', escape(text))
    return re.sub(r'`([^`]+)`', r'<code>\1</code>', text)


def html_blocks(lines):
    """HTML of markdown whose headings, tables, pictures and paragraphs stand between empty lines."""
    made = []
    for block in re.split('\n\n+', '\n'.join(lines).strip()):
        picture = re.fullmatch(r'!\[(.*)\]\((.*)\)', block)
        if block.startswith('|'):
            rows = [line.strip('|').split('|') for line in block.split('\n') if not line.startswith('|---')]
            cells = [''.join(f'<td>{inline(text)}</td>' for text in row) for row in rows]
            made.append(f'<div class="scroll"><table><tr>{"</tr><tr>".join(cells)}</tr></table></div>')
        elif picture:
            made.append(f'<p><img src="{quote(picture[2])}" alt="{escape(picture[1])}" loading="lazy"></p>')
        elif block.startswith('#'):
            made.append(f"<h3>{inline(block.lstrip('# '))}</h3>")
        else:
            made += [f'<p>{inline(line)}</p>' for line in block.split('\n')]
    return made
