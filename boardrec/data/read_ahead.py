"""Image files read, checked and decoded by threads, ahead of the model that consumes them, in the order of their paths.

Python threads, because what takes long (reading, Pillow, TensorFlow's decoders) leaves the interpreter to others.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import os
import stat
import threading
from typing import NamedTuple

import numpy as np

from boardrec.data import images, scan, source_file, workers
from boardrec.data.image_paths import Candidate

THREADS = 2 * len(os.sched_getaffinity(0))  # while some wait for the interpreter, others decode


class Loaded(NamedTuple):
    """What became of a path: its content, or the reason why there is none, in the words of rejected.csv."""

    path: str
    content: np.ndarray | bytes | None
    error: str

    @property
    def bytes(self) -> int:
        """The content's size in memory."""
        return self.content.nbytes if isinstance(self.content, np.ndarray) else len(self.content or b'')


def load(candidate: Candidate, content_of: Callable[[bytes], np.ndarray | bytes], max_bytes: int) -> Loaded:
    """Reads one file, which may be anything."""
    path, reason = candidate
    if reason:
        return Loaded(path, None, reason)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for its writer
            return Loaded(path, None, 'not a regular file')
        read = source_file.read('', scan.Found(path, '', '', 0), max_bytes)
        if read.data is None:
            return Loaded(path, None, f'too large: {read.bytes} bytes, at most {max_bytes}')
        return Loaded(path, content_of(read.data), '')
    except images.Rejected as error:
        return Loaded(path, None, str(error))
    except OSError as error:
        return Loaded(path, None, f'unreadable: {error.strerror}')
    except MemoryError:
        return Loaded(path, None, workers.OUT_OF_MEMORY)
    except ValueError as error:  # a path with a NUL in it
        return Loaded(path, None, f'unreadable: {error}')


def in_order(candidates: Iterable[Candidate], load_one: Callable[[Candidate], Loaded], *, ahead: int, held_bytes: int,
             threads: int = THREADS) -> Iterator[Loaded]:
    """What `load_one` returns of each, up to `ahead` of them before they are asked for.

    No file is begun while contents of `held_bytes` wait, so that they, and one for each thread, are what is held. Close
    it to end the threads.
    """
    gate, waiting = _Gate(held_bytes), collections.deque()

    def work(number: int, candidate: Candidate) -> Loaded:
        gate.wait(number)
        loaded = load_one(candidate)
        gate.hold(loaded.bytes)
        return loaded

    def next_one() -> Loaded:
        loaded = waiting.popleft().result()
        gate.release(loaded.bytes)
        return loaded

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for number, candidate in enumerate(candidates):
                waiting.append(pool.submit(work, number, candidate))
                if len(waiting) > ahead:
                    yield next_one()
            while waiting:
                yield next_one()
        finally:
            gate.release(float('inf'))
            pool.shutdown(wait=False, cancel_futures=True)


class _Gate:
    """Makes threads wait while too much is held, but never for the one that is consumed next."""

    def __init__(self, limit_bytes: int):
        self._changed, self._limit = threading.Condition(), limit_bytes
        self._held, self._next = 0, 0  # bytes; a number, counted from 0

    def wait(self, number: int) -> None:
        """Waits until the content of this number may be loaded."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._limit or number <= self._next)

    def hold(self, size: int) -> None:
        """Counts a content of so many bytes."""
        with self._changed:
            self._held += size

    def release(self, size: float) -> None:
        """Counts it no more: it is consumed, and the next number's turn has come."""
        with self._changed:
            self._held -= size
            self._next += 1
            self._changed.notify_all()
