"""webpage.py: the runs as one page for a browser. Its HTML, broken runs in it, and its script in Chromium."""
import html.parser
import json
import os
import re
import shutil
import subprocess
import time
from urllib.parse import unquote

import pytest
from PIL import Image

import files
import report
import webpage
from made_runs import here, lines_of, make_all, make_run, read_jsonl, unrendered, write_jsonl  # noqa: F401
from paper import page as paper_page

VOID = {'meta', 'img', 'input', 'path'}
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


class Parsed(html.parser.HTMLParser):
    """The elements of a page: [(tag, attributes)], its images, its data, and the texts of its table's cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.rows, self.data = [], [], [], ''
        self.feed(text)
        self.close()
        assert not self.open
        self.data = json.loads(self.data, parse_constant=pytest.fail)              # NaN is no JSON

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.elements and self.elements[-1] == ('script', {'type': 'application/json'}) and not self.data:
            self.data += text
        if {'td', 'th'} & {*self.open}:
            self.rows[-1][-1] += text.strip()

    def images(self):
        """The addresses of all images, those of the sliders too."""
        found = [attributes['src'] for tag, attributes in self.elements if tag == 'img']
        for _, attributes in self.elements:
            found += [place for _, place in json.loads(attributes.get('data-frames', '[]'))]
        return found


def parsed(folder='runs/report'):
    with open(f'{folder}/index.html') as f:
        return Parsed(f.read())


def written():
    """The page of the runs below runs/."""
    report.write_index(report.get_args(['runs']))
    return parsed()


@pytest.fixture
def place(here):
    os.makedirs('runs/report')


def with_films(path):
    """Give a run three grids of samples and a sheet of neighbours."""
    os.makedirs(f'{path}/samples', exist_ok=True)
    for name in ('reals', 'nearest', 'samples/000000', 'samples/000004', 'samples/000008'):
        Image.new('RGB', (64, 64)).save(f'{path}/{name}.png')


# ---- the page as it is written

NAME = 'a "b" <i>&\'50%\' é#?;</script>'


def test_every_image_is_there_under_a_relative_address_whatever_a_run_is_called(place):
    path = f'runs/{NAME}'.replace('/script', 'script')
    make_run(path, 0., 70., transfer=NAME)                     # the label holds it
    with_films(path)
    page = written()
    found = page.images()
    assert len(found) == 3 + 5                                 # three are shown, all five are frames
    for address in found:
        assert not re.match('/|[a-z]+:', address)
        assert os.path.isfile(os.path.join('runs/report', unquote(address)))
    assert page.rows[1][0] == f'dense + {NAME}{path}' and page.data['names'] == [f'dense + {NAME}, {path[5:]}']
    assert all(attributes.get('loading') == 'lazy' for tag, attributes in page.elements if tag == 'img')
    assert len([tag for tag, _ in page.elements if tag in ('i', 'script')]) == 2   # no name became an element


def test_settings_that_differ_are_columns_and_others_are_not(place):
    make_run('runs/a', 0., 70.)
    make_run('runs/b', .36, 60., aug='ada', lr_d=.5)
    args = files.read_json('runs/b/args.json')
    del args['args']['lecam']                                  # as an older version writes it
    files.write_json('runs/b/args.json', args)
    titles, a, b = written().rows
    assert titles[:5] == ['run', 'state', 'step', 'last FD-effnet', 'best half']
    assert titles[-2:] == ['--lr-d', '--aug']
    assert dict(zip(titles, a))['--aug'] == 'none' and dict(zip(titles, b))['--lr-d'] == '0.5'
    row = dict(zip(titles, b))
    assert row['last FD-effnet'] == '60.0 ± 2.0' and row['best half'] == '59.5 ± 2.5'
    assert row['pruned'] == '36.00%'


def test_scores_of_two_protocols_have_a_panel_each_and_say_which(place):
    make_run('runs/a', 0., 70.)
    make_run('runs/b', 0., 60., protocol={'n_gen': 900})
    page = written()
    assert [dict(zip(page.rows[0], row))['protocol'] for row in page.rows[1:]] == ['1', '2']
    titles = [panel['title'] for panel in page.data['panels']]
    assert titles[:2] == ['FD-effnet, protocol 1', 'FD-effnet, protocol 2']
    first, = page.data['panels'][0]['lines']
    assert first == {'run': 0, 'x': [4, 8], 'y': [80., 70.], 'spread': [2., 2.]}
    assert len(titles) == 5                                    # no panel of ADA's p without ADA


def test_running_resumed_stopped_and_failed_runs_are_marked(place):
    kinds = {'finished': 'finished', 'stopped': 'stopped', 'running': 'running', 'failed': 'failed',
             'resumed': 'finishedresumed 1×', 'begun': 'stopped', 'lost': 'failed'}
    for name in kinds:
        make_run(f'runs/{name}', 0., 70., seconds=(1., 2.) if name == 'resumed' else (4., 8.))
    for name in ('stopped', 'running', 'failed'):
        write_jsonl(f'runs/{name}/log.jsonl', read_jsonl(f'runs/{name}/log.jsonl')[:2])
    files.write_json('runs/failed/failed.json', {'step': 5, 'what': 'the gradient of x is not finite'})
    os.remove('runs/begun/log.jsonl')
    os.remove('runs/lost/last.pt')
    for name in ('running', 'finished'):
        files.hold(f'runs/{name}')
    try:
        page = written()
    finally:
        for name in ('running', 'finished'):
            files.free(f'runs/{name}')
    marked = {row[0].split('/')[-1]: row[1] for row in page.rows[1:]}
    assert marked == kinds
    with open('runs/report/index.html') as f:
        text = f.read()
    assert 'failed at step 5: the gradient of x is not finite' in text
    assert '7 runs: 1 running, 2 failed, 2 stopped, 2 finished; written' in text


def test_torn_and_cut_runs_never_break_the_page(place, unrendered):
    for name in 'abcdefgh':
        make_run(f'runs/{name}', 0., 70., grids=True)
    scores = read_jsonl('runs/a/metrics.jsonl')
    write_jsonl('runs/a/metrics.jsonl', [{**s, 'all': float('nan'), 'choose': float('nan')} for s in scores])
    log = read_jsonl('runs/b/log.jsonl')
    write_jsonl('runs/b/log.jsonl', [{**line, 'acc_train': float('inf'), 'acc_held': None} for line in log])
    with open('runs/c/log.jsonl', 'a') as f:
        f.write('{"step": 12, "acc_tr')                        # the process was killed while it wrote
    with open('runs/d/metrics.jsonl', 'w') as f:
        f.write('\0\0{"step"')
    os.remove('runs/e/args.json')
    shutil.rmtree('runs/f/samples')
    os.remove('runs/f/reals.png')
    files.write_json('runs/g/failed.json', ['no', 'dict'])
    with open('runs/h/args.json', 'w') as f:
        f.write('{"identity": {}, "args": {"st')
    os.makedirs('runs/empty')
    report.main(report.get_args(['runs']))
    page = parsed()
    assert [row[0][-1] for row in page.rows[1:]] == ['a', 'b', 'c', 'd', 'f', 'g']
    assert dict(zip(*page.rows[:2]))['last FD-effnet'] == 'nan ± 2.0'
    with open('runs/report/index.html') as f:
        assert 'Damaged, and left out: runs/h/args.json' in f.read()


def test_a_folder_without_runs_has_a_page(place):
    assert webpage.write('runs/report', 'none', []) == 'runs/report/index.html'
    assert parsed().data['panels'] == []


def test_a_long_log_is_thinned_and_keeps_its_course(place):
    make_run('runs/a', 0., 70.)
    line = read_jsonl('runs/a/log.jsonl')[0]
    write_jsonl('runs/a/log.jsonl', [{**line, 'step': i, 'acc_train': i / 5000} for i in range(1, 5001)])
    panel = next(p for p in written().data['panels'] if 'training' in p['title'])
    curve = panel['lines'][0]
    assert 300 <= len(curve['x']) <= 330
    assert all(abs(x / 5000 - y) < 1e-3 for x, y in zip(curve['x'], curve['y']))


# ---- the commands that write it

def test_watch_renews_the_page_alone_every_minute(here, unrendered, monkeypatch, capsys):
    make_run('runs/a', 0., 70.)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        assert len(parsed().rows) == 2
        os.remove('runs/report/report.md')
        make_run('runs/b', .2, 60.)
    monkeypatch.setattr(time, 'sleep', sleep)
    with pytest.raises(KeyboardInterrupt):
        report.main(report.get_args(['runs', '--watch']))
    assert slept == [60, 60] and len(parsed().rows) == 3 and parsed().data['watch'] is True
    assert 'report.md' not in os.listdir('runs/report')
    assert 'runs/report/index.html' in capsys.readouterr().out


def test_a_page_of_the_paper_comes_in_the_same_form_with_its_text(here, unrendered):
    lines = lines_of('fig2')
    make_all(lines, grids=True)
    with open('rows', 'w') as f:
        f.write('\n'.join(lines))
    paper_page.main(paper_page.get_args(['fig2', '--rows', 'rows', '--out', 'page']))
    made = parsed('page')
    shown = [attributes['src'] for tag, attributes in made.elements if tag == 'img']
    assert 'fig2-score-sngan-fashion-mnist-0.1.png' in shown
    assert any(address.startswith('../runs/') for address in shown)
    assert ['run', 'steps', 'last FD-effnet'] == made.rows[0][:3]


# ---- in a browser

DRIVER = """<script>
const said = {}, names = () => all('#runs tbody tr').map(row => row.cells[0].textContent.slice(-1)).join('')
const click = title => titles.find(t => t.textContent == title).querySelector('button').click()
said.rows = names()
click('last FD-effnet'); said.up = names()
click('last FD-effnet'); said.down = names()
click('run'); said.words = names()
const slider = all('#run0 [type=range]')[0]
slider.value = 1; slider.dispatchEvent(new Event('input'))
said.film = [all('#run0 img')[1].getAttribute('src'), all('#run0 output')[0].textContent]
said.lines = all('#curves figure').map(figure => all('g', figure).length)
all('#runs tbody tr')[1].dispatchEvent(new Event('pointerover', {bubbles: true}))
said.on = all('.on').map(part => part.tagName + part.dataset.run)
drawAll(); said.still = all('.on').length
filter.value = 'TICKET 3'; filter.oninput()
said.filtered = all('#runs tbody tr').filter(row => !row.hidden).length
said.cards = all('article').filter(card => !card.hidden).length
said.thin = all('#curves figure').map(figure => all('g', figure).length)
said.sizes = all('#curves path.line').every(path => !path.getAttribute('d').includes('NaN'))
said.wide = document.documentElement.scrollWidth <= innerWidth
dispatchEvent(new Event('pagehide')); said.left = sessionStorage[location.pathname]
document.title = 'said' + JSON.stringify(said)
</script>"""


@pytest.mark.skipif(not CHROMIUM, reason='no chromium is installed: the script of the page is not tested')
def test_the_script_sorts_turns_films_lights_up_and_filters(place):
    for name, pruned, value in (('a', 0., 70.), ('b', .2, 1200.), ('c', .36, 9.)):
        make_run(f'runs/{name}', pruned, value)
        with_films(f'runs/{name}')
    make_run('runs/d', 0., 70., seed=9)
    os.remove('runs/d/metrics.jsonl')                          # without a score: last in both directions
    written()
    with open('runs/report/index.html', 'a') as f:
        f.write(DRIVER)
    command = [CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=600,900',
               f'--user-data-dir={os.getcwd()}/profile', '--virtual-time-budget=3000', '--dump-dom',
               f'file://{os.getcwd()}/runs/report/index.html']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = re.search('<title>said(.*?)</title>', done.stdout)
    assert said, done.stderr
    said = json.loads(html.unescape(said[1]))
    assert said['rows'] == 'adbc' and said['words'] == 'dabc'
    assert said['up'] == 'cabd' and said['down'] == 'bacd'
    assert json.loads(said['left']) == {'order': [0, 1], 'words': 'TICKET 3'}
    assert said['film'] == ['../a/samples/000004.png', '4'] and said['lines'] == [3, 4, 4, 4]
    assert sorted(said['on']) == ['ARTICLE0', 'TR0', *['g0'] * 4] and said['still'] == 6
    assert said['filtered'] == said['cards'] == 1 and said['thin'] == [1, 1, 1, 1]
    assert said['sizes'] and said['wide']
