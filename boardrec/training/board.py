"""What TensorBoard shows of a run: curves by step and by epoch, and a profile of some steps."""

import pathlib
import time

import tensorflow as tf

from boardrec import progress
from boardrec.config import TrainConfig
from boardrec.training.checkpoint import EpochSums, RunState


class Board:
    """Writes a run's curves. They are not worth a run: where they cannot be written, this is said, and no more."""

    def __init__(self, folder: pathlib.Path, config: TrainConfig):
        self._folder, self._every, self._failed, self._writer = folder, config.log_every_steps, False, None
        self._profiled = [int(number) for number in config.profile_steps.split(',') if number]
        self._profiling = False
        self._logged: tuple[int, EpochSums, float] | None = None  # step, sums and time of the last point

    def step(self, state: RunState, steps_per_epoch: int, rate: float) -> None:
        """Told after each call of the state and the learning rate of its last step."""
        step = state.epoch * steps_per_epoch + state.step
        self._profile(step)
        then, sums, at = self._logged or (0, EpochSums(), 0.0)
        if step // self._every == then // self._every and self._logged:
            return
        now = time.perf_counter()
        # Of another epoch the sums begin at 0.
        sums = sums if self._logged and state.sums.records > sums.records else EpochSums()
        count = state.sums.records - sums.records
        scalars = {'step/learning_rate': rate}
        if count:
            scalars |= {'step/loss': (state.sums.loss - sums.loss) / count,
                        'step/accuracy': (state.sums.right - sums.right) / count}
            if at:
                scalars |= {'step/images_per_second': count / (now - at)}
        self._write(step, scalars)
        self._logged = step, state.sums, now

    def epoch(self, state: RunState) -> None:
        """Writes the row of the epoch that has ended."""
        self._write(state.epoch, {name: value for name, value in state.history[-1].items() if name != 'epoch'})
        self._tried(lambda: self._writer.flush())

    def __enter__(self) -> 'Board':
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiling:
            self._tried(tf.profiler.experimental.stop)
        if self._writer:
            self._tried(self._writer.close)

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        def write() -> None:
            self._writer = self._writer or tf.summary.create_file_writer(str(self._folder))
            with self._writer.as_default(step=step):
                for name, value in scalars.items():
                    tf.summary.scalar(name, value)

        self._tried(write)

    def _profile(self, step: int) -> None:
        if not self._profiled:
            return
        first, last = self._profiled
        if not self._profiling and first <= step < last:
            self._profiling = self._tried(lambda: tf.profiler.experimental.start(str(self._folder)))
        elif self._profiling and step >= last:
            self._profiling = False
            if self._tried(tf.profiler.experimental.stop):
                progress.say(f'profile of steps up to {step}: tensorboard --logdir={self._folder}')

    def _tried(self, write) -> bool:
        try:
            write()
        except (OSError, tf.errors.OpError) as error:
            if not self._failed:
                progress.say(f'warning: {self._folder} cannot be written ({error}); training goes on without')
            self._failed = True
            return False
        return True
