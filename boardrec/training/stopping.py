"""SIGTERM and SIGINT: after the first the step under way ends and the state is saved; the second ends it all at once.

Python hears a signal only between two calls, and one into TensorFlow may last minutes; so a thread listens as well.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

from boardrec import cli

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has asked for an end."""

    def __init__(self):
        self.number = 0  # of the first signal
        self._deferred = False

    @property
    def requested(self) -> bool:
        """Whether to save and leave."""
        return self.number != 0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that asks `requested` now and then; outside of one a signal raises cli.Interrupted at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _heard_by_thread(self, number: int) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        if self._deferred:
            os.write(sys.stderr.fileno(), b'\nstopping after this step; once more ends it at once\n')

    def _heard_by_python(self, number: int, frame: object) -> None:
        del frame
        if not self._deferred:
            raise cli.Interrupted(number)


@contextlib.contextmanager
def listen() -> Iterator[Stop]:
    """Listens in a block, which belongs to the main thread."""
    stop = Stop()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def heard() -> None:
        while (number := os.read(reader, 1)[0]) in _SIGNALS:
            stop._heard_by_thread(number)

    thread = threading.Thread(target=heard, daemon=True)
    thread.start()
    before = {number: signal.signal(number, stop._heard_by_python) for number in _SIGNALS}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writer, b'\0')
        thread.join()
        os.close(reader)
        os.close(writer)
