"""The loop: an epoch's steps, saved on the way, and its validation. It can be left and entered anywhere."""

import collections
from collections.abc import Iterable, Iterator
import contextlib
import resource
import signal
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from boardrec import cli, progress
from boardrec.config import TrainConfig
from boardrec.training import optim, steps
from boardrec.training.checkpoint import EpochSums, RunState
from boardrec.training.opening import Session

_MOST_SKIPPED = 100  # steps in a row: of a loss scale that has been halved so often nothing is left
_STEPS_A_CALL_ON_GPUS = 16


class NonFinite(Exception):  # noqa: N818 (an outcome, which the recipe handles)
    """A step whose loss or gradients are not finite."""

    def __init__(self, epoch: int, step: int, loss: float):
        super().__init__(epoch, step, loss)
        self.epoch, self.step, self.loss = epoch, step, loss  # counted from 0


def train_epoch(session: Session, state: RunState) -> RunState:
    """Takes the steps that are left of an epoch, saving every so many; returns the state after the last.

    Raises NonFinite; and cli.Interrupted after a signal, with the state saved.
    """
    config, source, every = session.config, session.source, session.config.checkpoint_every_steps
    total = source.steps_per_epoch
    if state.step == total:
        return state
    if session.board:
        session.board.begin(state)
    batches = iter(source.train(state.epoch, state.step))
    with progress.bar(f'epoch {state.epoch + 1}/{config.epochs}', total=source.train_records, unit='images',
                      initial=state.step * config.batch_size) as bar:
        _show(bar, session, state)
        while state.step < total:
            since_start = state.epoch * total + state.step
            until = min(total, state.step + every - since_start % every)
            state, asked = _take_steps(session, state, batches, until, bar)
            if asked:
                leave(session, state)
            if until < total:
                state = session.save(state)
    return state


def leave(session: Session, state: RunState) -> None:
    """Saves the state and raises cli.Interrupted."""
    session.save(state)
    raise cli.Interrupted(session.stop.number or signal.SIGTERM)  # else it was another host's


def validate(session: Session) -> dict[str, float] | None:
    """Measures the validation records; None if a signal came."""
    start, batches, sums, rows = time.perf_counter(), iter(session.source.val), [], []
    with progress.bar('validation', total=session.source.val_steps, unit='batches') as bar:
        for _ in range(session.source.val_steps):
            if session.stop.requested and not session.is_shared:
                return None
            its_sums, its_rows = session.eval_step(next(batches))
            sums.append(its_sums)
            rows.append(its_rows)
            bar.update()
    if session.board:
        session.board.validated(steps.Rows(*(np.concatenate(column) for column in zip(*rows, strict=True))))
    loss, right, count = (float(tf.add_n(column)) for column in list(zip(*sums, strict=True))[:3])
    return {'val_loss': loss / count, 'val_accuracy': right / count, 'val_seconds': time.perf_counter() - start}


@contextlib.contextmanager
def averaged(average: optim.Average | None) -> Iterator[None]:
    """A block in which the network has the averaged weights, if there are any."""
    if average:
        average.swap()
    try:
        yield
    finally:
        if average:
            average.swap()


def row(state: RunState, rate: float) -> dict[str, float]:
    """What an epoch's steps came to, as a row of the history without validation."""
    sums = state.sums
    return {'epoch': state.epoch + 1, 'loss': sums.loss / max(1.0, sums.records),
            'accuracy': sums.right / max(1.0, sums.records), 'learning_rate': rate, 'skipped_steps': sums.skipped,
            'seconds': sums.seconds, 'images_per_second': sums.records / sums.seconds,
            'input_wait': sums.waited / sums.seconds, 'first_batch_seconds': sums.first_batch_seconds,
            'peak_rss_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def learning_rate(config: TrainConfig, state: RunState, step: int, steps_per_epoch: int) -> float:
    """The rate of one step of the state's epoch (0-based)."""
    return 0.5**state.rollbacks * optim.learning_rate(
        config, step=state.epoch * steps_per_epoch + step, steps_per_epoch=steps_per_epoch, watch=state.watch)


def steps_per_call(config: TrainConfig) -> int:
    """How many steps a call takes: on a CPU the host costs nothing beside a step."""
    if config.steps_per_call:
        return config.steps_per_call
    return _STEPS_A_CALL_ON_GPUS if tf.config.get_visible_devices('GPU') else 1


def _take_steps(session: Session, state: RunState, batches: Iterable[Any], until: int, bar: tqdm.tqdm
                ) -> tuple[RunState, bool]:
    """Steps up to number `until` of the epoch, or fewer after a signal; and whether there was one.

    The host looks at a call's sums while the device computes the next.
    """
    called, pending, asked = state.step, collections.deque(), False
    started, before = time.perf_counter(), state.sums.seconds
    while True:
        asked = asked or (session.stop.requested and not session.is_shared)
        if called < until and not asked:
            count = min(until - called, steps_per_call(session.config))
            pending.append(_call(session, state, batches, called, count))
            called += count
            if len(pending) == 1:
                continue
        elif not pending:
            return state, asked
        rates, result = pending.popleft()
        state = _account(session, state, result)
        state = state._replace(sums=state.sums._replace(seconds=before + time.perf_counter() - started))
        asked = asked or (session.is_shared and float(result.stop) > 0)
        _show(bar, session, state)
        if session.board:
            session.board.step(state, session.source.steps_per_epoch, rates[-1])


def _call(session: Session, state: RunState, batches: Iterable[Any], first: int, count: int
          ) -> tuple[list[float], steps.Call]:
    """The learning rates of some steps, and what these are going to come to."""
    config = session.config
    rates = [learning_rate(config, state, first + i, session.source.steps_per_epoch) for i in range(count)]
    padded = np.zeros(max(count, steps_per_call(config)), np.float32)  # of one length: others would be traced anew
    padded[:count] = rates
    call = session.calls[state.epoch >= config.head_epochs]
    since_start = state.epoch * session.source.steps_per_epoch + first
    with session.board.profiled(since_start + 1, since_start + count) if session.board else contextlib.nullcontext():
        return rates, call(batches, tf.constant(padded), tf.constant(count), tf.constant(float(session.stop.requested)))


def _account(session: Session, state: RunState, result: steps.Call) -> RunState:
    """The state after the steps of a call. Added up one by one: however they are grouped, the sum has the same bits."""
    scales = isinstance(session.optimizer, keras.optimizers.LossScaleOptimizer)  # and has left the step out
    for loss, right, count, bad, waited in zip(
            *(column.numpy().tolist() for column in (*result.sums, result.waited)), strict=True):
        sums = state.sums
        first = sums.first_batch_seconds or waited
        if not bad:
            sums = EpochSums(sums.loss + loss, sums.right + right, sums.records + count, sums.skipped, 0,
                             sums.waited + waited, first, sums.seconds)
        elif scales and sums.skipped_in_a_row < _MOST_SKIPPED:
            sums = sums._replace(skipped=sums.skipped + 1, skipped_in_a_row=sums.skipped_in_a_row + 1,
                                 waited=sums.waited + waited, first_batch_seconds=first)
        else:
            raise NonFinite(state.epoch, state.step, loss)
        state = state._replace(step=state.step + 1, sums=sums)
    return state


def _show(bar: tqdm.tqdm, session: Session, state: RunState) -> None:
    sums = state.sums
    if sums.records and sums.seconds:
        bar.set_postfix_str(f'loss {sums.loss / sums.records:.4f}, input wait {sums.waited / sums.seconds:.0%}',
                            refresh=False)
    bar.update(min(state.step * session.config.batch_size, session.source.train_records) - bar.n)
