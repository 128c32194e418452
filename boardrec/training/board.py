"""What TensorBoard shows of a run: curves by step and by epoch, images, and a profile of some steps."""

from collections.abc import Callable, Iterator
import contextlib
import pathlib

import numpy as np
import tensorflow as tf

from boardrec import progress
from boardrec.config import TrainConfig, UserError
from boardrec.data.records import RecordSet
from boardrec.training import pictures
from boardrec.training.checkpoint import EpochSums, RunState
from boardrec.training.steps import Rows

_FIRST_BATCH, _WORST_ERRORS = 'images/first_batch', 'images/worst_validation_errors'
_BY_STEP, _BY_EPOCH = 'step/learning_rate', 'val_loss'  # there is one of these for each point


class Board:
    """Writes a run's curves and images. They are not worth a run: what cannot be written is said once, and no more.

    A run that goes on writes what its files lack: steps that are taken again have been drawn before.
    """

    def __init__(self, folder: pathlib.Path, config: TrainConfig, record_set: RecordSet):
        self._folder, self._config, self._record_set = folder, config, record_set
        self._writer, self._failed, self._profiling = None, False, False
        self._window = [int(number) for number in config.profile_steps.split(',') if number]
        self._latest = 0  # step that was begun
        self._drawn = _last_steps(folder)
        self._logged: RunState | None = None  # the state at the last point
        self._timed = False  # before the first point the step is compiled
        self._errors: list[pictures.Wrong] = []

    def begin(self, state: RunState) -> None:
        """Told of the state with which an epoch is entered, or entered again."""
        is_new = not state.epoch and not state.step
        self._logged = None if is_new else state
        if is_new and _FIRST_BATCH not in self._drawn:
            self._drawn[_FIRST_BATCH] = 0
            self._write_image(_FIRST_BATCH, 0, lambda: pictures.first_batch(self._config, self._record_set))

    def step(self, state: RunState, steps_per_epoch: int, rate: float) -> None:
        """Told after each call of the state and the learning rate of its last step."""
        def number(state: RunState) -> int:
            return state.epoch * steps_per_epoch + state.step

        if self._profiling and number(state) >= self._window[1]:
            self._stop_profile()
        then, every = self._logged, self._config.log_every_steps
        if then and number(state) // every == number(then) // every:
            return
        self._logged = state
        if number(state) > self._drawn.get(_BY_STEP, -1):
            before = then.sums if then else EpochSums()  # of the same epoch, which `begin` was told of
            self._write_scalars(number(state), {_BY_STEP: rate, **_means(before, state.sums, timed=self._timed)})
            self._timed = True

    def validated(self, rows: Rows) -> None:
        """Told what validation says of the records of this host, as NumPy arrays."""
        self._errors = pictures.worst_errors(rows, self._record_set)

    def epoch(self, state: RunState) -> None:
        """Draws the rows of the epochs that have ended, and the errors of one that is the best so far."""
        for row in state.history:
            if row['epoch'] > self._drawn.get(_BY_EPOCH, 0):
                self._drawn[_BY_EPOCH] = row['epoch']
                self._write_scalars(row['epoch'], {name: value for name, value in row.items() if name != 'epoch'})
        if self._errors and state.watch.best_epoch == state.epoch:
            self._write_image(_WORST_ERRORS, state.epoch,
                              lambda: pictures.of_errors(self._config, self._record_set, self._errors))

    @contextlib.contextmanager
    def profiled(self, first: int, last: int) -> Iterator[None]:
        """A block that starts some steps of the run, counted from 1; a profile begins and ends with such calls."""
        if self._profiling and first > self._window[1]:
            tf.test.experimental.sync_devices()  # the steps before may still be under way
            self._stop_profile()
        elif not self._profiling and self._window and first <= self._window[1] and last >= self._window[0]:
            self._profiling = self._tried(lambda: tf.profiler.experimental.start(str(self._folder)))
        self._latest = last
        with tf.profiler.experimental.Trace('train', step_num=first, _r=1) if self._profiling else (
                contextlib.nullcontext()):
            yield

    def __enter__(self) -> 'Board':
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiling:
            self._stop_profile()
        if self._writer:
            self._tried(self._writer.close)

    def _write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        def write() -> None:
            with self._open().as_default(step=step):  # which flushes when it ends
                for name, value in scalars.items():
                    tf.summary.scalar(name, value)

        self._tried(write)

    def _write_image(self, tag: str, step: int, draw: Callable[[], np.ndarray | None]) -> None:
        def write() -> None:
            image = draw()
            if image is not None:
                with self._open().as_default(step=step):
                    tf.summary.image(tag, image[np.newaxis])

        self._tried(write)

    def _open(self) -> tf.summary.SummaryWriter:
        self._writer = self._writer or tf.summary.create_file_writer(str(self._folder))
        return self._writer

    def _stop_profile(self) -> None:
        self._profiling, (first, last), self._window = False, self._window, []
        last = min(last, self._latest)
        if self._tried(tf.profiler.experimental.stop):
            progress.say(f'profile of steps {first} to {last}: tensorboard --logdir={self._folder}')

    def _tried(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except (OSError, tf.errors.OpError, UserError) as error:  # the last: an image's record is damaged
            if not self._failed:
                progress.say(f'warning: TensorBoard does not show all, training goes on ({self._folder}: {error})')
            self._failed = True
            return False
        return True


def _means(before: EpochSums, now: EpochSums, *, timed: bool) -> dict[str, float]:
    """What the steps between two sums of an epoch came to."""
    count, seconds = now.records - before.records, now.seconds - before.seconds
    if not count:
        return {}
    rate = {'step/images_per_second': count / seconds} if timed and seconds > 0 else {}
    return {'step/loss': (now.loss - before.loss) / count, 'step/accuracy': (now.right - before.right) / count, **rate}


def _last_steps(folder: pathlib.Path) -> dict[str, int]:
    """The last step of each tag in a folder's files, whose ends may be torn."""
    last: dict[str, int] = {}
    for path in sorted(folder.glob('events.out.tfevents.*')):
        with contextlib.suppress(tf.errors.OpError):
            for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(data)
                for value in event.summary.value:
                    last[value.tag] = max(last.get(value.tag, -1), event.step)
    return last
