"""The path, one thread (sums do not depend on the machine), caches of its own, and nothing is left behind."""
import functools
import os
import subprocess
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: left out by `bash run_all.sh test quick`')
    config.addinivalue_line('markers', 'job(name): a test of what two ranks make of it, see test_ranks.py')


@pytest.fixture(scope='session', autouse=True)
def cache_of_its_own(tmp_path_factory):
    """No test reads or writes the user's caches of weights and statistics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_HOME', str(tmp_path_factory.mktemp('torch')))
        yield


@pytest.fixture
def settled_on_two_batches(monkeypatch):
    """BN statistics of grids and scores are settled on two batches, not on up to 64: seconds less each."""
    import loop
    settling = loop.settling

    @functools.wraps(settling)
    def short(dim, device, batches=64, classes=0):
        return settling(dim, device, min(batches, 2), classes)
    monkeypatch.setattr(loop, 'settling', short)


# ---- a session that leaves something in the repository fails, and says when it came

CACHES = {'__pycache__', '.pytest_cache', '.ruff_cache', '.git', '.venv'}
START = pytest.StashKey()                    # {entry} when the session began
LEFT = pytest.StashKey()                     # {entry: the test during which it came}


def entries():
    """What lies in the repository and in its runs/, but for caches."""
    found = {name for name in os.listdir(ROOT) if name not in CACHES}
    if 'runs' in found:
        found |= {f'runs/{name}' for name in os.listdir(f'{ROOT}/runs')}
    return found


def tracked(entry):
    """Whether git knows a path: the sources may change while tests run."""
    done = subprocess.run(['git', 'ls-files', '--error-unmatch', entry], cwd=ROOT, capture_output=True)
    return done.returncode == 0


def pytest_sessionstart(session):
    session.config.stash[START] = entries()
    session.config.stash[LEFT] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    result = yield
    stash = item.config.stash
    for entry in entries() - stash[START]:
        stash[LEFT].setdefault(entry, item.nodeid)
    return result


def left_behind(config):
    """{entry: test} of what came during the session and is still there.

    Another process may make and remove something meanwhile; what it leaves fails both."""
    now = entries()
    return {entry: test for entry, test in config.stash[LEFT].items() if entry in now and not tracked(entry)}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if left_behind(session.config) and session.exitstatus in (0, 5):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    for entry, test in sorted(left_behind(config).items()):
        terminalreporter.write_line(f'LEFT BEHIND: {entry} came during {test}', red=True)
