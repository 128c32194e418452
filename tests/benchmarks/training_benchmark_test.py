"""The benchmark's arithmetic: operations, extrapolation, table; and what it refuses and leaves alone."""

import pathlib
import sys

import pytest

from boardrec.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import training_benchmark as benchmark
from training_benchmark import BenchmarkConfig, Measured

BENCHMARKS = pathlib.Path(benchmark.__file__).parent
KERAS = Measured('float32', 100, 2, 4.0, 40.0, 2**30, 0, None)
CACHED = Measured('bfloat16', 50, 5, 48.0, 4.0, 2**30, 2**20, {'records': 30, 'bytes': 2**20, 'seconds': 2.0})


def test_a_trained_layer_takes_gradients_but_the_first_none_of_its_input():
    layers = [((3, 3, 8, 8), (None, 14, 14, 8), trained) for trained in (False, True, True)]
    conv, dense = 2 * 3 * 3 * 8 * 8 * 14 * 14, 2 * 8
    assert benchmark.image_flops([*layers, ((8, 1), (None, 1), True)]) == (conv, 2 * conv + 3 * conv + 3 * dense)


def test_a_longer_training_adds_median_epochs():
    assert [KERAS.wall(n) for n in (2, 5, 20)] == [100, 220, 820]
    assert [ratio for _, ratio, _ in benchmark.ratios({'keras': KERAS, 'cached': CACHED})] == [12, 220 / 50, 820 / 110]
    assert benchmark.ratios({'cached': CACHED}) == []


def test_the_report_marks_what_is_extrapolated():
    text = benchmark.report({'keras': KERAS, 'cached': CACHED}, {'bfloat16': 400, 'float32': 200}, (20e9, 5e9))
    rows = [line.split() for line in text.splitlines() if line.startswith(('Keras', 'boardrec, cached, b'))]
    assert [row[-6:-2] for row in (rows[0], rows[2])] == [['220', 's*', '820', 's*'], ['50', 's', '110', 's*']]
    assert rows[1][-6:] == ['once', '15.0', '2.0', '300', '75%', '1'] and '12.0 times better' in text


def test_only_its_own_folder_is_cleared(tmp_path):
    (tmp_path / 'cached').mkdir()
    with pytest.raises(UserError, match='no benchmark of this kind'):
        benchmark.claim(tmp_path, benchmark.RESULTS, benchmark.TITLES)
    (tmp_path / benchmark.RESULTS).touch()
    (tmp_path / 'notes.txt').touch()
    benchmark.claim(tmp_path, benchmark.RESULTS, benchmark.TITLES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['notes.txt', benchmark.RESULTS]


def test_without_the_demo_it_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match='run `make demo` first'):
        benchmark.main(BenchmarkConfig(images=str(tmp_path), recipe=str(BENCHMARKS.parent / 'flags' / 'smoke.flags')))
