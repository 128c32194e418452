"""Rows of several requests share a call of the model; how many may wait is bounded.

What comes while nothing runs is run at once, so a lone client never waits. While a batch runs, rows gather for the
next one, which starts beside it (its images are decoded while the first is in the network) when it is full or its
first row has waited long enough, and otherwise as soon as the first is done.
"""

from collections import deque
from concurrent.futures import Future
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from boardrec.serving import failure
from boardrec.serving.failure import Failure
from boardrec.serving.servable import Arrays, Servable, Signature


class _Part(NamedTuple):
    """Rows of one request that run together."""

    inputs: Arrays
    rows: int
    future: Future  # of its outputs
    arrived: float


class _Key(NamedTuple):
    """What the parts of one batch have in common."""

    servable: Servable
    signature: str
    row_shapes: tuple[tuple[int, ...], ...]


class Batcher:
    """Threads that run batches. `submit` may be called from any thread."""

    def __init__(self, *, max_batch_size: int, wait_seconds: float, in_flight: int, max_queued: int, metrics: Any):
        self._max_batch_size, self._wait_seconds, self._max_queued = max_batch_size, wait_seconds, max_queued
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queues: dict[_Key, deque[_Part]] = {}  # none of them empty
        self._queued = self._running = 0  # rows, batches
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f'batch {i}', daemon=True) for i in range(in_flight)]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return self._queued

    def submit(self, servable: Servable, signature: Signature, inputs: Arrays, rows: int) -> list[Future]:
        """Queues a request, in parts of at most max_batch_size rows; each future gives the outputs of its part.

        `inputs` and `rows` are what `signature.check` has passed. Raises Failure, with nothing queued, if too many rows
        wait already.
        """
        parts = _parts(inputs, rows, self._max_batch_size if signature.batches else rows)
        shapes = tuple(array.shape[1:] if signature.batches else array.shape for array in inputs.values())
        key = _Key(servable, signature.name, shapes)
        with self._changed:
            if self._closed:
                raise Failure('UNAVAILABLE', 'the server is shutting down')
            if rows > self._max_queued:
                raise Failure('INVALID_ARGUMENT', f'the request has {rows} rows, more than --max_queued='
                              f'{self._max_queued}: send it in parts')
            if self._queued + _cost(rows) > self._max_queued:
                raise Failure('RESOURCE_EXHAUSTED', f'{self._queued} rows wait already and {rows} more would exceed '
                              f'--max_queued={self._max_queued}; try again later')
            self._queues.setdefault(key, deque()).extend(parts)
            self._queued += sum(_cost(part.rows) for part in parts)
            self._changed.notify_all()
        return [part.future for part in parts]

    def close(self) -> None:
        """Ends the threads once all that is queued has run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            key, parts = batch
            signature = key.servable.signatures[key.signature]
            try:
                self._run(key.servable, signature, parts)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
                del batch, key, parts, signature  # or they would be kept until the next one comes

    def _next_batch(self) -> tuple[_Key, list[_Part]] | None:
        """Waits for parts that may run together; None at the end."""
        with self._changed:
            while True:
                key, seconds = self._ready()
                if key is not None:
                    self._running += 1
                    return key, self._take(key)
                if self._closed and not self._queues:
                    return None
                self._changed.wait(seconds)

    def _ready(self) -> tuple[_Key | None, float | None]:
        """The queue to run next, of those that are ready the one whose head came first; or the time until one is."""
        now, oldest, seconds = time.monotonic(), None, None
        for key, queue in self._queues.items():
            age = now - queue[0].arrived
            if self._running == 0 or age >= self._wait_seconds or self._is_full(key, queue):
                if oldest is None or queue[0].arrived < self._queues[oldest][0].arrived:
                    oldest = key
            else:
                seconds = min(seconds or self._wait_seconds, self._wait_seconds - age)
        return oldest, seconds

    def _is_full(self, key: _Key, queue: deque[_Part]) -> bool:
        if not key.servable.signatures[key.signature].batches:
            return True
        rows = 0
        for part in queue:
            rows += part.rows
            if rows >= self._max_batch_size:
                return True
        return False

    def _take(self, key: _Key) -> list[_Part]:
        queue, taken, rows = self._queues[key], [], 0
        batches = key.servable.signatures[key.signature].batches
        while queue and (not taken or batches and rows + queue[0].rows <= self._max_batch_size):
            part = queue.popleft()
            self._queued -= _cost(part.rows)
            if part.future.set_running_or_notify_cancel():  # else its client has gone
                taken.append(part)
                rows += part.rows
        if not queue:
            del self._queues[key]
        return taken

    def _run(self, servable: Servable, signature: Signature, parts: list[_Part]) -> None:
        if not parts:
            return
        start = time.perf_counter()
        try:
            outputs = _run_together(servable, signature, parts)
        except Exception as error:
            if len(parts) == 1:
                parts[0].future.set_exception(failure.of_exception(error))
            else:  # one request's fault is not the others'
                for part in parts:
                    self._run(servable, signature, [part])
            return
        rows = sum(part.rows for part in parts)
        self._metrics.batch(signature.name, rows, time.perf_counter() - start)
        for part, answer in zip(parts, outputs, strict=True):
            part.future.set_result(answer)


def _parts(inputs: Arrays, rows: int, size: int) -> list[_Part]:
    now = time.monotonic()
    if rows <= size:
        return [_Part(inputs, rows, Future(), now)]
    slices = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    return [_Part({name: array[one] for name, array in inputs.items()}, one.stop - one.start, Future(), now)
            for one in slices]


def _cost(rows: int) -> int:
    return max(rows, 1)  # a request of no rows takes a place too


def _run_together(servable: Servable, signature: Signature, parts: list[_Part]) -> list[dict[str, np.ndarray]]:
    """The outputs of each part. Raises what the graph raises, and ValueError if it does not answer row by row."""
    if len(parts) == 1:
        outputs = servable.run(signature, parts[0].inputs)
        _check_rows(signature, outputs, parts[0].rows)
        return [outputs]
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in signature.inputs}
    outputs = servable.run(signature, inputs)
    ends = np.cumsum([part.rows for part in parts]).tolist()
    _check_rows(signature, outputs, ends[-1])
    return [{name: array[end - part.rows:end] for name, array in outputs.items()}
            for part, end in zip(parts, ends, strict=True)]


def _check_rows(signature: Signature, outputs: Arrays, rows: int) -> None:
    if signature.batches and any(len(array) != rows for array in outputs.values()):
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        raise ValueError(f'signature {signature.name} answered {rows} rows with shapes {shapes}')
