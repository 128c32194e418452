"""The benchmark's arithmetic: what the clock sees, ratios, table; what it refuses and leaves alone."""

from concurrent import futures
import itertools
import pathlib
import sys

from PIL import Image
import pytest

from boardrec.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import input_benchmark as benchmark
from input_benchmark import InputBenchmarkConfig
import input_peers as peers


def rounds(*rates):
    same = {'images': 100, 'cpu_seconds': 0.2, 'peak_rss': 2**20, 'output': ''}
    return [{**same, 'seconds': 100 / rate} for rate in rates]


def test_the_clock_sees_only_whole_batches_after_those_to_skip():
    now = [0.0]

    def stream():
        for seconds in itertools.chain([50, 7], itertools.repeat(2)):
            now[0] += seconds
            yield range(8)

    measured = peers.measure(stream(), skip=9, count=20, clock=lambda: now[0], cpu=lambda: 10 * now[0])
    assert measured == {'images': 24, 'seconds': 6, 'cpu_seconds': 60, 'output': 'decoded only'}


def test_parallel_work_comes_in_order_and_no_further_ahead_than_needed():
    asked = []
    with futures.ThreadPoolExecutor(2) as pool:
        stream = peers.in_parallel(pool, lambda number: -number, (asked.append(n) or n for n in itertools.count()))
        assert [next(stream) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(asked) == 5 + 2 * peers.CORES


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    measured = {'original': rounds(30, 10, 200), 'keras': rounds(10, 5, 100)}  # the machine was free, busy, free
    assert benchmark.ratio(measured, 'original', 'keras') == pytest.approx(2)
    assert benchmark.ratio(measured, 'original', 'limit') is None


def test_the_report_has_what_was_measured_and_why_the_rest_was_not():
    text = '\n'.join(benchmark.report(
        'eval', {'limit': rounds(100, 300, 200), 'keras': rounds(50, 50, 50)}, {'torch': "No module named 'torch'"}))
    assert '200  100-300' in text and '0.25      1.00' in text and '2.00' in text
    assert "absent: torch DataLoader + Pillow: No module named 'torch'" in text


def test_expectations_say_what_is_less_and_what_was_not_measured():
    lines = benchmark.expectations({'eval': {'original': rounds(60), 'keras': rounds(50)}}, large=False)
    assert sum('not measured' in line for line in lines) == 5
    assert any(line.endswith('expected 1.25 or more: 1.20, which is less (1.00 by CPU time)') for line in lines)
    known = [pair for large in (False, True) for pair in benchmark.EXPECTED[large]]
    assert all(mode in peers.CONTESTANTS[name].modes for mode, one, other, _ in known for name in (one, other))


def test_a_sample_is_spread_and_repeats_what_is_too_little():
    assert benchmark.sample(range(10), 4) == [0, 2, 5, 7]
    assert benchmark.sample('abc', 7) == list('abcabca')


def test_images_are_copied_into_their_classes_as_often_as_wanted(tmp_path):
    paths = [tmp_path / 'test/b/y.JPEG', tmp_path / 'train/a/x.jpg']
    for path, width in zip(paths, (30, 10), strict=True):
        path.parent.mkdir(parents=True)
        Image.new('RGB', (width, 10)).save(path)
    assert benchmark.prepare(paths, tmp_path / 'out', 5)[0] == 300
    copies = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.jpg'))
    assert copies == ['a/000001.jpg', 'a/000003.jpg', 'b/000000.jpg', 'b/000002.jpg', 'b/000004.jpg']


def test_generated_images_are_of_the_size_that_photographs_have(tmp_path):
    paths = benchmark.generate(tmp_path, 2)
    assert {path.parent.name for path in paths} == {'class_0', 'class_1'}
    assert all(45_000 < path.stat().st_size < 65_000 for path in paths)


def test_only_its_own_folder_is_cleared(tmp_path):
    (tmp_path / 'images').mkdir()
    with pytest.raises(UserError, match='no benchmark of this kind'):
        benchmark.claim(tmp_path, benchmark.RESULTS, benchmark.FOLDERS)
    (tmp_path / benchmark.RESULTS).touch()
    (tmp_path / 'notes.txt').touch()
    benchmark.claim(tmp_path, benchmark.RESULTS, benchmark.FOLDERS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [benchmark.RESULTS, 'notes.txt']


def test_the_plot_is_a_png(tmp_path):
    benchmark.plot({'eval': {'limit': rounds(1, 2, 3)}, 'train': {}}, 'about', tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('wrong, message', [
    ({'contestants': 'limit,dali'}, '--contestants=limit,dali: must be some of'), ({'modes': 'test'}, '--modes=test'),
    ({'rounds': 0}, '--rounds=0: must be at least 1')])
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        InputBenchmarkConfig(**wrong)


def test_a_folder_without_images_is_refused_and_an_earlier_benchmark_kept(tmp_path):
    output = tmp_path / 'output'
    benchmark.claim(output, benchmark.RESULTS, benchmark.FOLDERS)
    (output / 'logs').mkdir()
    (output / 'logs' / 'kept.txt').touch()
    with pytest.raises(UserError, match='no .jpg or .jpeg files'):
        benchmark.main(InputBenchmarkConfig(images=str(tmp_path / 'none'), output=str(output)))
    assert (output / 'logs' / 'kept.txt').exists()
