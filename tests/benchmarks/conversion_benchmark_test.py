"""The benchmark's arithmetic: what the clock sees, ratios, table; what it refuses; contestants on few images."""

import pathlib
import sys

from PIL import Image
import pytest

from boardrec.config import UserError
from boardrec.data import records

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import conversion_benchmark as benchmark
from conversion_benchmark import ConversionBenchmarkConfig
import conversion_peers as peers


def rounds(*rates, start=0.0):
    """Rounds of 100 images, of which 80 came after `start` seconds."""
    return [{'images': 100, 'seconds': start + 100 / rate, 'steady_images': 80, 'steady_seconds': 80 / rate,
             'cpu_seconds': 1 / rate, 'parent_rss': 2**20, 'worker_rss': 2**21, 'written': 2**22} for rate in rates]


@pytest.fixture
def images(tmp_path, image_folder):
    """Forty images, all JPEG."""
    folder = image_folder({'a': 40, 'b': 40}, folder=tmp_path / 'images')
    for path in folder.rglob('*.png'):
        path.unlink()
    return folder


def test_a_ratio_is_the_median_of_the_rounds_steady_ratios():
    measured = {'keep': rounds(30, 10, 200, start=5), 'decode': rounds(10, 5, 100)}  # the machine was free, busy, free
    assert benchmark.ratio(measured, 'keep', 'decode') == pytest.approx(2)
    assert benchmark.ratio(measured, 'keep', 'tfds') is None


def test_the_report_has_what_was_measured_and_why_the_rest_was_not():
    text = '\n'.join(benchmark.report({'decode': rounds(100, 300, 200), 'keep': rounds(50, 50, 50, start=2)},
                                      {'webdataset': "No module named 'webdataset'"}))
    assert '200  100-300     200      1.00    5.00            4       1       2' in text
    assert '25    25-25      50      0.25   20.00' in text
    assert "absent: WebDataset ShardWriter: No module named 'webdataset'" in text


def test_expectations_say_what_is_less_and_what_was_not_measured():
    lines = benchmark.expectations({'keep': rounds(50), 'decode': rounds(100)})
    assert lines[1].endswith('expected 0.6 or more: 0.50, which is less (0.50 by CPU time)')
    assert lines[2].endswith('expected 0.8 or more: not measured')
    assert all({name, other} <= set(peers.CONTESTANTS) for name, other, _ in benchmark.EXPECTED)


def test_the_converters_start_is_no_part_of_its_steady_rate(images, tmp_path, monkeypatch):
    from boardrec import progress
    from boardrec.config import ConvertConfig
    from boardrec.data import convert
    now = iter([100.0, 108.0, 109.0, 110.0])  # begin; 10 and 40 images done; end
    monkeypatch.setattr(peers.time, 'perf_counter', lambda: next(now))
    monkeypatch.setattr(peers, 'cpu_seconds', iter([7.0, 8.5]).__next__)

    def converted(config: ConvertConfig) -> records.Manifest:
        with progress.bar('converting', total=40, unit='images') as bar:
            for count in (0, 10, 5, 25):
                bar.update(count)
        return records.Manifest(['a'], 'keep', None, None, None, {'train': records.Split(40, 1, {'a': 40})}, [], '')

    monkeypatch.setattr(convert, 'convert', converted)
    monkeypatch.setattr(progress, 'bar', progress.bar)  # is put back after the test
    done = peers.boardrec(peers.Job('keep', str(images), str(tmp_path / 'out')))
    assert done == peers.Done(images=40, seconds=10.0, steady_images=30, steady_seconds=1.0, cpu_seconds=0.05)


@pytest.mark.parametrize('name', ['webdataset_all', 'array_record', 'decode', 'parts'])
def test_a_contestant_converts_every_image_or_is_absent(images, tmp_path, name):
    (tmp_path / 'logs').mkdir()
    answer = benchmark._round(name, tmp_path)
    assert answer.get('absent', '').startswith('No module named') or answer['images'] == 40


def test_the_plot_is_a_png_and_bad_settings_are_refused(tmp_path):
    benchmark.plot({'keep': rounds(1, 2, 3), 'tfds': rounds(2)}, 'about', tmp_path / 'plot.png')
    with Image.open(tmp_path / 'plot.png') as image:
        assert image.format == 'PNG'
    for wrong, message in (({'contestants': 'keep,dali'}, '--contestants=keep,dali: must be some of'),
                           ({'count': 3}, '--count=3: must be at least'), ({'rounds': 0}, '--rounds=0')):
        with pytest.raises(UserError, match=message):
            ConversionBenchmarkConfig(**wrong)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match='no .jpg or .jpeg files'):
        benchmark.main(ConversionBenchmarkConfig(images=str(tmp_path / 'none'), output=str(tmp_path / 'out')))
    assert not (tmp_path / 'out').exists()
