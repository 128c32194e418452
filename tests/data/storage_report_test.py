"""What is told of records that hold other bytes than their sources: counted, compared and timed."""

import math
import time

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from boardrec.data import images, scan, storage_report
from boardrec.data.records import Storage

RAW = Storage('raw', (20, 24), 'squash')
JPEG = Storage('jpeg', (24, 24), 'shorter', 80)


@pytest.fixture(scope='module')
def sources(image_folder):
    """(folder, names in it): ten images."""
    folder = image_folder({'a': 10})
    return folder, sorted(f'a/{path.name}' for path in (folder / 'a').iterdir())


def measure(folder, names, storage):
    return storage_report.measure(str(folder), [scan.Found(name, 'train', 'a', 0) for name in names], storage)


@pytest.fixture
def quick(monkeypatch):
    """Times what is decoded by its bytes."""
    monkeypatch.setattr(storage_report, '_seconds', lambda decode, encoded: sum(map(len, encoded)))


@pytest.mark.parametrize('storage', [RAW, Storage('png', (20, 20), 'shorter'), Storage('png')], ids=str)
def test_what_is_lossless_is_told_so(sources, quick, storage):
    folder, names = sources
    measured = measure(folder, names, storage)
    assert (measured.images, measured.psnr) == (10, math.inf)


def test_the_psnr_is_that_of_the_mean_error_of_what_is_stored_against_the_resized_pixels(sources, quick):
    folder, names = sources
    errors, before, after = [], 0, 0
    for name in names:
        made = images.prepare((folder / name).read_bytes(), JPEG)
        again = tf.io.decode_jpeg(made.stored, channels=3, dct_method='INTEGER_ACCURATE').numpy()
        errors.append(np.mean((again.astype(float) - np.asarray(made.image))**2))
        before, after = before + len(made.normalised), after + len(made.stored)
    measured = measure(folder, names, JPEG)
    assert measured.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(errors)))
    assert measured.speedup == pytest.approx(before / after), 'of the sources over that of the records'


def test_what_changed_since_the_conversion_is_passed_over(image_folder, quick):
    folder = image_folder({'a': 4})
    (folder / 'a' / 'board000.jpg').unlink()
    (folder / 'a' / 'board001.png').write_bytes(b'no image')
    names = [f'a/board00{i}.{"png" if i % 2 else "jpg"}' for i in range(4)]
    assert measure(folder, names, RAW).images == 2
    assert measure(folder, names[:2], RAW) is None


def test_preparing_the_sample_ends_when_its_time_is_up(sources, quick, monkeypatch):
    folder, names = sources
    monkeypatch.setattr(storage_report, '_PREPARATION_SECONDS', 0.0)
    assert measure(folder, names, RAW).images == 1


def test_a_pass_is_timed_without_the_first(monkeypatch):
    monkeypatch.setattr(storage_report, '_TIMING_SECONDS', 0.1)
    calls = []

    def wait(data):
        calls.append(data)
        time.sleep(0.2 if len(calls) <= 3 else 0.01)
        return np.zeros([1, 1, 3], np.uint8)

    def decode(data):
        return tf.ensure_shape(tf.numpy_function(wait, [data], tf.uint8), [1, 1, 3])

    assert 0.03 <= storage_report._seconds(decode, [b'a', b'b', b'c']) <= 0.1
    assert calls == [b'a', b'b', b'c'] * (len(calls) // 3)


def test_pixels_take_less_time_than_a_photograph_that_is_decoded(tmp_path):
    (tmp_path / 'a').mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a' / 'large.png')
    assert measure(tmp_path, ['a/large.png'], RAW).speedup > 5
