"""What a person watches: one line a stage, one bar for what takes long, and nothing of TensorFlow's start-up."""

import os
import sys
import tempfile

import tqdm


def say(text: str) -> None:
    """Prints one line to standard output at once, past any bar that is being drawn."""
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def bar(description: str, *, total: int, unit: str, initial: int = 0) -> tqdm.tqdm:
    """A progress bar on standard error, used as a context manager; call `.update(n)` on it. What was done before
    it is `initial`, and counts for no rate.

    A terminal sees it redrawn and then removed; a log file gets a line about every ten seconds.
    """
    common = {'desc': description, 'total': total, 'unit': f' {unit}', 'initial': initial, 'leave': False}
    if sys.stderr.isatty():
        return tqdm.tqdm(**common, dynamic_ncols=True, mininterval=0.2)
    return tqdm.tqdm(**common, file=_Lines(), ncols=100, ascii=True, mininterval=10, delay=10)


class _Lines:
    """What tqdm writes to where no line can be redrawn: each state on a line of its own."""

    def write(self, text: str) -> None:
        """Writes what is left of `text` without carriage returns and padding."""
        if text.strip():
            sys.stderr.write(text.strip() + '\n')

    def flush(self) -> None:
        """Flushes standard error."""
        sys.stderr.flush()


def import_tensorflow() -> None:
    """Imports TensorFlow without the notes that its libraries write to standard error whatever the log level says.

    Takes about five seconds, so commands call it once their settings are known to be good. What was written is shown
    if the import fails.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf
            tf.config.list_physical_devices()  # the GPU libraries write theirs here
            tf.get_logger().setLevel('ERROR')
        except Exception:  # not Ctrl-C
            notes.seek(0)
            os.write(saved, notes.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
