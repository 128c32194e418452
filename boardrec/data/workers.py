"""Worker processes that may die: a task whose worker died is done again, and what kills workers is found out.

A task is a list of items; while a worker is at it, it says which item it has begun. So the parent knows what a worker
was at when it died (a crash in a decoder, the system short of memory), and what has taken it too long. What kills a
worker twice is left out of the task, with the reason.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import contextlib
import multiprocessing
from multiprocessing import resource_tracker
import multiprocessing.connection
import os
import resource
import signal
import threading
import time
from typing import Any, NamedTuple

from boardrec.config import UserError

_POLL_SECONDS = 0.2
_DEATHS = 2  # after which it is no accident
_NOTHING = -1  # a worker that has begun no item of its task
TIME_LIMIT = 'time limit'
CRASH = 'decoder error: it crashed'
OUT_OF_MEMORY = 'decoder error: out of memory'


class Limits(NamedTuple):
    """What one worker may take."""

    seconds: float = 60  # for one item
    memory_bytes: int = 0  # of address space; 0: any


class Watch:
    """A worker's way to say how far it is: shared memory that the parent looks at."""

    def __init__(self, context: Any):
        self._shared = context.RawArray('q', 2)

    def begin(self, item: int) -> None:
        """Says that an item of the task is begun."""
        self._shared[1] = item

    def end(self) -> None:
        """Says that it is done."""
        self._shared[1] = _NOTHING
        self._shared[0] += 1

    def rest(self) -> None:
        """Says that no item is under way."""
        self._shared[1] = _NOTHING

    @property
    def done(self) -> int:
        """Items done since the worker was started."""
        return self._shared[0]

    @property
    def item(self) -> int | None:
        """The item that is under way."""
        return None if self._shared[1] == _NOTHING else self._shared[1]


# A task's function in a worker: (payload, {item: reason} to leave out, watch) -> result.
Function = Callable[[Any, dict[int, str], Watch], Any]


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, context: Any, limits: Limits, prepare: Callable[[], None] | None):
        self.watch, self.task, self.reason = Watch(context), None, CRASH
        self.watch.rest()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(theirs, self.watch, limits, prepare), daemon=True)
        self.process.start()
        theirs.close()
        self._seen, self._seconds = None, 0.0

    def give(self, number: int, function: Function, payload: Any, skipped: dict[int, str]) -> None:
        self.task = number
        with contextlib.suppress(BrokenPipeError):  # it is dead, which shows soon
            self.connection.send((function, payload, skipped))

    def answer(self) -> tuple[int, Any] | None:
        """(task, result) of the task that has ended, raising what it raised; None if the worker died of it."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        if kind == 'error':
            raise value
        number, self.task = self.task, None
        return number, value

    def age(self, seconds: float, limit: float) -> None:
        """Counts how long the item is under way, in the parent's own time, which stands still as theirs on Ctrl-Z."""
        now = (self.watch.done, self.watch.item)
        self._seconds = self._seconds + seconds if now == self._seen and now[1] is not None else 0.0
        self._seen = now
        if self._seconds > limit:
            self.reason = TIME_LIMIT
            self.process.kill()


class Pool:
    """Up to `count` worker processes, started as they are needed; a context manager that ends them.

    Each calls `prepare` first.
    """

    def __init__(self, count: int, limits: Limits, prepare: Callable[[], None] | None = None):
        self._context = multiprocessing.get_context('spawn')  # a forked TensorFlow deadlocks
        self._count, self._limits, self._prepare, self._workers = count, limits, prepare, []
        self._before, self._looked = 0, time.monotonic()

    def __enter__(self) -> 'Pool':
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # whatever they write has a temporary name until it is whole
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def run(self, function: Function, payloads: Sequence[Any], look: Callable[[int], None] = lambda _: None
            ) -> Iterator[tuple[int, Any]]:
        """Yields (position of the payload, result) as tasks end, in any order; one run at a time.

        `look` is called about five times a second with how many items are done; those of tasks that were begun anew
        count again. An exception in a task is raised here. Raises UserError where workers die at no item in particular.
        """
        waiting, skipped = list(range(len(payloads)))[::-1], [{} for _ in payloads]
        deaths: Counter[tuple[int, int | None]] = Counter()
        before = self._done()
        while waiting or any(worker.task is not None for worker in self._workers):
            for worker in self._idle(len(waiting)):
                number = waiting.pop()
                worker.give(number, function, payloads[number], skipped[number])
            for worker in self._wait():
                answer = worker.answer()
                if answer is not None:
                    yield answer
                    continue
                number, item, reason = worker.task, worker.watch.item, worker.reason
                self._bury(worker)
                deaths[number, item] += 1
                if deaths[number, item] == _DEATHS:
                    if item is None:
                        raise UserError('worker processes die, probably for want of memory: free some, or take fewer '
                                        'with --workers; then run the same command again.')
                    skipped[number][item] = reason
                waiting.append(number)
            look(self._done() - before)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result, from a worker process."""
        (_, result), = self.run(_call, [(function, args)])
        return result

    def _idle(self, wanted: int) -> list[_Worker]:
        """So many workers without a task, if there are; starts what is lacking."""
        idle = [worker for worker in self._workers if worker.task is None]
        lacking = min(wanted - len(idle), self._count - len(self._workers))
        if lacking > 0:
            resource_tracker.ensure_running()  # the first process would start it, which unblocks SIGINT
            with _held_back(signal.SIGINT):  # what is started in it never gets the signal
                for _ in range(lacking):
                    idle.append(_Worker(self._context, self._limits, self._prepare))
                    self._workers.append(idle[-1])
        return idle[:wanted]

    def _wait(self) -> list[_Worker]:
        """The workers that have something to say, or died, within a moment."""
        by_connection = {worker.connection: worker for worker in self._workers if worker.task is not None}
        ready = multiprocessing.connection.wait(by_connection, timeout=_POLL_SECONDS)
        now = time.monotonic()
        # No more than a few polls at once: on Ctrl-Z, workers and parent stand still while the clock goes on.
        seconds, self._looked = min(now - self._looked, 3 * _POLL_SECONDS), now
        for connection in set(by_connection) - set(ready):
            by_connection[connection].age(seconds, self._limits.seconds)
        return [by_connection[connection] for connection in ready]

    def _done(self) -> int:
        """Items done so far, in all runs."""
        return self._before + sum(worker.watch.done for worker in self._workers)

    def _bury(self, worker: _Worker) -> None:
        self._before += worker.watch.done
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)


def _call(payload: tuple[Callable[..., Any], tuple], _: dict[int, str], __: Watch) -> Any:
    function, args = payload
    return function(*args)


def _main(connection: Any, watch: Watch, limits: Limits, prepare: Callable[[], None] | None) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()  # one killed outright closes nothing
    if limits.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a decoder's crash needs no file of gigabytes
    if prepare:
        prepare()
    while True:
        function, payload, skipped = connection.recv()
        try:
            answer = ('done', function(payload, skipped, watch))
        except BaseException as error:
            answer = ('error', error)
        watch.rest()
        try:
            connection.send(answer)
        except Exception as error:  # what cannot be pickled is told in words
            connection.send(('error', RuntimeError(f'{answer[1]!r} ({error})')))


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Delivers a signal after the block only."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
