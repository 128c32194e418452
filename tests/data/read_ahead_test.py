"""Reading ahead: the order is that of the paths, what waits is bounded, and whatever a file is becomes a reason."""

import os
import threading
import time

import numpy as np
import pytest

from boardrec.data import images, read_ahead, workers
from boardrec.data.image_paths import Candidate
from boardrec.data.read_ahead import Loaded

LIMITS = images.Limits(ratio=200.0)


def candidates(count):
    return [Candidate(str(number)) for number in range(count)]


def test_the_order_is_that_of_the_paths():
    waits = np.random.default_rng(0).uniform(0, 0.004, 100)

    def load(candidate):
        time.sleep(waits[int(candidate.path)])
        return Loaded(candidate.path, b'x', '')

    loaded = read_ahead.in_order(candidates(100), load, ahead=9, held_bytes=4, threads=4)
    assert [one.path for one in loaded] == [str(number) for number in range(100)]
    assert list(read_ahead.in_order([], load, ahead=9, held_bytes=4)) == []


def test_files_are_read_while_others_are_consumed_and_no_more_than_may_be_ahead():
    begun = []

    def load(candidate):
        begun.append(candidate.path)
        return Loaded(candidate.path, b'x', '')

    loaded = read_ahead.in_order(iter(candidates(100)), load, ahead=6, held_bytes=1000, threads=2)
    next(loaded)
    deadline = time.monotonic() + 20
    while len(begun) < 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(begun) == 7
    loaded.close()


@pytest.mark.parametrize(('held_bytes', 'threads'), [(1, 1), (1, 4), (250, 4)])
def test_what_waits_is_bounded(held_bytes, threads):
    """Contents of 100 bytes: what is held is at most the limit and one for each thread; the first always comes."""
    lock, held, most = threading.Lock(), 0, 0

    def load(candidate):
        nonlocal held, most
        with lock:
            held += 100
            most = max(most, held)
        return Loaded(candidate.path, b'x' * 100, '')

    loaded = read_ahead.in_order(candidates(60), load, ahead=50, held_bytes=held_bytes, threads=threads)
    for number, one in enumerate(loaded):
        if number % 10 == 0:
            time.sleep(0.01)  # threads would run ahead here
        assert one.path == str(number)
        with lock:
            held -= 100
    assert most <= held_bytes + 100 * (threads + 2)  # one is being handed over, and one may go on as the next


def test_closing_ends_the_threads():
    loaded = read_ahead.in_order(candidates(1000), lambda one: Loaded(one.path, b'x' * 100, ''), ahead=500,
                                 held_bytes=1, threads=3)
    before = threading.active_count()
    next(loaded)
    loaded.close()
    assert threading.active_count() <= before


def test_what_nobody_foresaw_is_raised_in_its_turn():
    def load(candidate):
        if candidate.path == '3':
            raise ZeroDivisionError
        return Loaded(candidate.path, b'', '')

    loaded = read_ahead.in_order(candidates(9), load, ahead=5, held_bytes=10, threads=2)
    assert [next(loaded).path for _ in range(3)] == ['0', '1', '2']
    with pytest.raises(ZeroDivisionError):
        next(loaded)


def test_reasons(tmp_path):
    (tmp_path / 'text').write_text('text')
    os.mkfifo(tmp_path / 'pipe')

    def reason(path, content_of=lambda data: images.normalise(data, LIMITS)):
        loaded = read_ahead.load(Candidate(str(path)), content_of, 3)
        assert loaded.content is None and loaded.bytes == 0
        return loaded.error

    def no_memory(_):
        raise MemoryError

    assert reason(tmp_path / 'text') == 'too large: 4 bytes, at most 3'
    (tmp_path / 'text').write_text('tex')
    assert reason(tmp_path / 'text') == 'not an image'
    assert reason(tmp_path / 'text', no_memory) == workers.OUT_OF_MEMORY
    assert reason(tmp_path / 'gone') == 'unreadable: No such file or directory'
    assert reason(tmp_path / 'pipe') == reason(tmp_path) == reason('/dev/zero') == 'not a regular file'
    assert reason('a\0b').startswith('unreadable: ')
    assert reason(tmp_path / ('x' * 300)) == 'unreadable: File name too long'
    assert read_ahead.load(Candidate('x', 'system file'), no_memory, 3) == Loaded('x', None, 'system file')
