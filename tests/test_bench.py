"""bench.py: a peer's modules beside ours of the same names, what a training is measured by, the plot of costs."""
import sys

import bench
import metrics
from helpers import TINY


def test_modules_of_a_peer_may_have_the_names_of_ours(tmp_path):
    """The peer's package imports its own metrics; ours is there again behind it."""
    (tmp_path / 'metrics').mkdir()
    (tmp_path / 'metrics' / '__init__.py').write_text('of_peer = True\n')
    (tmp_path / 'their_networks.py').write_text('import metrics\nassert metrics.of_peer\n')
    path = [*sys.path]
    for _ in range(2):
        with bench.imports_of([str(tmp_path)]):
            import their_networks
        assert their_networks.metrics.of_peer and sys.modules['metrics'] is metrics and sys.path == path


def test_a_training_is_followed_by_its_images_and_memory():
    words = [*TINY['sngan'], '--steps', '4']
    found = bench.follow('sngan', words, 2, 1)
    assert len(found['images_per_s']) == len(found['mb']) == 2 and found['precision'] == 'fp32'
    assert 0 < found['mb'][-1] <= found['peak_mb'] * 1.01 and min(found['images_per_s']) > 0


def test_the_plot_of_costs_takes_what_was_measured(tmp_path):
    args = bench.get_args(['--device', 'cpu', '--repeats', '1'])
    seconds = bench.iteration(args, 'sngan', 2, '--res', '16')
    steps = {'every': 100, 'images_per_s': [8., 9.], 'mb': [700, 700]}
    place = tmp_path / 'cost.png'
    bench.draw_cost({'steps': {'sngan': steps},
                     'batch': {'sngan': {'2': seconds}}, 'pixels': {'sngan': {'16': seconds}}}, place)
    assert seconds > 0 and place.stat().st_size > 1000
