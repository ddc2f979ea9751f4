"""Puts the repository on the path; one thread, so that sums do not depend on the machine."""
import os
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: left out by `bash run_all.sh test quick`')


@pytest.fixture(scope='session', autouse=True)
def cache_of_its_own(tmp_path_factory):
    """No test reads or writes the user's caches of weights and statistics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_HOME', str(tmp_path_factory.mktemp('torch')))
        yield
