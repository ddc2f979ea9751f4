"""The runs as one page for a browser, index.html: curves, a table that sorts, and the images of each run.

Use:
    import runs, webpage
    webpage.write('page', 'My runs', runs.collect_begun('runs'))     # page/index.html opens by a double click
Reads what runs.py describes, and webpage.html, which holds the looks and the script.

Nothing is fetched, and no image is copied: the page shows the files of the run directories by relative paths,
and a browser loads them when they come into view.  It shows RUN/nearest.png, too, where `generate.py RUN
--nearest --out RUN/nearest.png` has made it.
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
    flags = differing_flags(runs)
    protocols = list(dict.fromkeys(protocol_key(run) for run in runs if run['scores']))
    names = [f"{run['label']}, {run['path']}" for run in runs]
    data = {'names': names, 'panels': panels(runs, protocols), 'watch': watch}
    parts = {
        'title': escape(title),
        'summary': summary(runs),
        'article': '\n'.join(html_lines(lines)),
        'table': '\n'.join(table_lines(runs, flags, protocols)),
        'cards': '\n'.join(card(i, run, out) for i, run in enumerate(runs)),
        'data': json.dumps(data).replace('<', '\\u003c')}      # so that no label ends the <script>

    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'webpage.html')) as f:
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
    return f"{len(runs)} runs: {', '.join(counts)}; written {time.strftime('%Y-%m-%d %H:%M')}"


def name_html(i, run):
    """HTML of a run's line in the curves, and its name."""
    return (f'<svg class="swatch"><path class="line dash{i % 4}" d="M1 6H23"/></svg>'
            f'<a href="#run{i}">{escape(run["label"])}</a>')


def badges(run):
    """HTML of a run's kind, and of how often it was resumed."""
    kind = kind_of(run)
    html = f'<span class="badge {kind}">{kind}</span>'
    resumed = len({line.get('start') for line in run['log']}) - 1
    if resumed > 0:
        html += f' <span class="badge">resumed{f" {resumed} times" * (resumed > 1)}</span>'
    return html


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


def table_lines(runs, flags, protocols):
    """HTML of a row for each run, and below them of the protocols of their scores."""
    cells = [cells_of(run, flags, protocols) for run in runs]
    titles = dict.fromkeys(title for row in cells for title in row)
    titles = sorted(titles, key=lambda title: title.startswith('--'))                  # the flags come last

    lines = ['<table><thead><tr>']
    lines += [f'<th><button>{escape(title)}</button></th>' for title in ['run', 'state', *titles]]
    lines.append('</tr></thead><tbody>')
    for i, run in enumerate(runs):
        lines.append(f"<tr {own(i)}><th>{name_html(i, run)}<small>{escape(run['path'])}</small></th>")
        lines.append(f'<td>{badges(run)}</td>')
        for text in (cells[i].get(title, '–') for title in titles):
            lines.append(f'<td{" class=number" * bool(re.match("[+-]?[0-9]", text))}>{escape(text)}</td>')
        lines.append('</tr>')
    lines.append('</tbody></table>')
    for n, key in enumerate(protocols, 1):
        words = protocol_words([run for run in runs if protocol_key(run) == key])
        lines.append(f"<p class=\"note\">{f'Protocol {n}: ' * (len(protocols) > 1)}{inline(words)}.</p>")
    return lines


def cells_of(run, flags, protocols):
    """{title: text} of a run; the titles of flags begin with dashes."""
    step = run['log'][-1]['step'] if run['log'] else 0
    cells = {'step': f"{step:,} / {run['flags']['steps']:,}"}
    if run['scores']:
        last = run['scores'][-1]
        best = min(run['scores'], key=lambda score: score['choose'])
        cells[f"last {last['score']}"] = f"{last['all']:.1f} ± {last['all_std']:.1f}"
        cells['best half'] = f"{best['report']:.1f} ± {best['report_std']:.1f}"
        if len(protocols) > 1:
            cells['protocol'] = str(protocols.index(protocol_key(run)) + 1)
    cells['pruned'] = f"{max(run['sparsity'].values()):.2%}"
    cells['1,000 images'] = f"{run['images'] / 1000:,.1f}"
    cells['minutes'] = f"{run['seconds'] / 60:,.1f}"
    for name in flags:
        cells[f"--{name.replace('_', '-')}"] = str(run['flags'].get(name, '–'))
    return cells


# ---- curves

def panels(runs, protocols):
    """[{title, range or None, lines}]: a panel for each protocol of scores, and those of CURVES."""
    found = []
    for n, key in enumerate(protocols, 1):
        lines = []
        for i, run in enumerate(runs):
            if protocol_key(run) == key:
                name = run['scores'][-1]['score']
                scores = [s for s in run['scores'] if math.isfinite(s['all'] + s['all_std'])]
                values = [[s[part] for s in scores] for part in ('step', 'all', 'all_std')]
                lines.append(curve(i, *values))
        title = f'{name}, protocol {n}' if len(protocols) > 1 else name
        found.append({'title': title, 'range': None, 'lines': lines})

    for key, title in CURVES.items():
        lines = []
        for i, run in enumerate(runs):
            steps, values = running_mean(*log_series(run, key))
            every = max(1, len(steps) // POINTS)
            steps, values = steps[::every].tolist(), values[::every].round(4).tolist()
            lines.append(curve(i, steps, values, [0] * len(steps)))
        found.append({'title': title, 'range': [0, 1], 'lines': lines})
    return [panel for panel in found if any(line['x'] for line in panel['lines'])]


def curve(i, steps, values, spreads):
    """The line of the i-th run in a panel."""
    return {'run': i, 'x': steps, 'y': values, 'spread': spreads}


# ---- images and settings

def card(i, run, out):
    """HTML of one run: training images, grids of samples, nearest neighbours, command and settings."""
    place = glob.escape(run['path'])
    settings = [f"--{name.replace('_', '-')} {value}" for name, value in run['flags'].items()]
    return '\n'.join([
        f'<article {own(i)} id="run{i}"><h3>{name_html(i, run)} {badges(run)}</h3>',
        f'<p class="note">{escape(run["path"])}: {escape(status(run))}</p>',
        '<div class="pictures">',
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
    caption = caption.format(step=f'<output>{step}</output>')
    end = len(frames) - 1
    slider = f'<input type="range" max="{end}" value="{end}" aria-label="step">' if end else ''
    return (f'<figure data-frames="{escape(json.dumps(frames))}"><a href="{place}"><img src="{place}" '
            f'loading="lazy" alt=""></a><figcaption>{caption}{slider}</figcaption></figure>')


# ---- markdown

def inline(text):
    """HTML of one line of markdown: bold words, code and links."""
    text = re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', escape(text))
    return re.sub(r'`([^`]+)`', r'<code>\1</code>', text)


def html_lines(lines):
    """HTML of markdown: headings, tables, pictures, lists and paragraphs, each on lines of their own."""
    made, head = [], True                                      # head: the next row of a table is its first
    for line in '\n'.join([*lines, '', '']).splitlines():
        title, image = re.fullmatch('#+ (.*)', line), re.fullmatch(r'!\[(.*)\]\((.*)\)', line)
        if line.startswith('|---'):
            head = False
        elif line.startswith('|'):
            cell = 'th' if head else 'td'
            made.append('<div class="scroll"><table>' * head + '<tr>')
            made += [f'<{cell}>{inline(text)}</{cell}>' for text in line.strip('|').split('|')]
            made.append('</tr>')
        elif title:
            made.append(f'<h3>{inline(title[1])}</h3>')
        elif image:
            made.append(f'<p><img src="{quote(image[2])}" alt="{escape(image[1])}" loading="lazy"></p>')
        elif line:
            made.append(f'<p>{inline(line)}</p>')
        elif not head:
            made.append('</table></div>')
            head = True
    return made
