"""The training recipe: records and settings in, a finished run out. Read it from top to bottom."""

from collections.abc import Callable
import contextlib
import dataclasses
import math
import pathlib
from typing import Any

import keras

from boardrec import cli, progress
from boardrec.config import TrainConfig, UserError
from boardrec.data import files, records
from boardrec.training import (
    advice,
    checkpoint,
    distribute,
    dry_run,
    feed,
    loop,
    model,
    opening,
    optim,
    run_dir,
    stopping,
)
from boardrec.training.checkpoint import RunState
from boardrec.training.opening import Session
from boardrec.training.run_dir import RunDir

_MOST_ROLLBACKS = 3


def fit(config: TrainConfig, record_set: records.RecordSet) -> None:
    """Trains until the epochs are done or validation stops improving; continues what RUN has completed.

    `record_set` is config.records, opened, or a copy of it on this machine. With several hosts each of them calls this,
    and host 0 alone writes RUN.
    Raises UserError for records, settings or a run folder that do not fit, and cli.Interrupted after a signal.
    """
    opening.require_splits(record_set)
    record_set.require_size(config.height_width())
    strategy = distribute.set_up(config)
    keras.utils.set_random_seed(config.seed)
    opening.require_shares(config, strategy)
    classes = model.resolve_classes(record_set.manifest.class_names, config.positive_class)
    config = opening.resolve(config, record_set, classes, strategy)
    run, leads = RunDir(pathlib.Path(config.run_dir)), distribute.host_of_hosts(strategy)[0] == 0
    if config.dry_run:
        dry_run.show(config, record_set, classes, strategy)
        return _say_what_is_there(run, config, record_set)
    with (stopping.listen() as stop, distribute.naming_lost_workers(strategy),
          run_dir.locked(run) if leads else contextlib.nullcontext()):
        facts = opening.facts_of(record_set, config)
        begun = distribute.agree(strategy, lambda: _begun(run, config, facts))
        if begun['finished']:
            progress.say(f'{run.path}: training is already finished; nothing to do.')
            return
        opening.require_the_same(facts, begun['facts'])
        session = opening.open_session(config, run_dir.with_own(begun['flags'], config), run, record_set, classes,
                                       strategy, stop, facts, goes_on=begun['goes_on'])
        with stop.deferred(), session.board or contextlib.nullcontext():
            state = _train(session, config.feature_cache)
            if leads:
                _finish(session, state)
            distribute.agree(strategy, dict)  # the others wait for host 0's files


def _say_what_is_there(run: RunDir, config: TrainConfig, record_set: records.RecordSet) -> None:
    """What a dry run says of RUN: whether the training would go on there, or be refused."""
    try:
        if run_dir.find(run, dataclasses.replace(config, dry_run=False), opening.facts_of(record_set, config)):
            progress.say(f'\nnote: --run_dir={run.path} has begun; the training would go on where it is')
    except UserError as error:
        progress.say(f'\nnote: the training would be refused: {error}')


def _begun(run: RunDir, config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What host 0 finds in the run's folder: the settings to go on with, as lines of a flag file, and more."""
    earlier = run_dir.find(run, config, facts)
    return {'flags': cli.to_flagfile(earlier or config).splitlines(), 'facts': facts, 'goes_on': earlier is not None,
            'finished': earlier is not None and run_dir.read_facts(run.path).get('finished', False)}


def _train(session: Session, asked: str) -> RunState:
    """Takes the epochs that are left; `asked` is the --feature_cache of the command."""
    config, run, optimizer = session.config, session.run, session.optimizer
    fresh = [variable.numpy() for variable in optimizer.variables]
    state = _restore(session) or RunState()
    if state.epoch or state.step:
        progress.say(f'continuing after epoch {state.epoch}' + (f' and {state.step} steps' if state.step else ''))
        if session.saver and state.history:  # its last row was lost if the kill came just before it
            run_dir.write_history(run, list(state.history))
    elif config.on_nan == 'rollback':
        state = session.save(state)  # to go back to
    first_epoch = state.epoch
    while state.epoch < config.epochs and not optim.should_stop(state.watch, config):
        if state.step == 0 and state.epoch == config.head_epochs > 0:
            for variable, value in zip(optimizer.variables, fresh, strict=True):  # moments are of the last layer alone
                variable.assign(value)
        try:
            state = loop.train_epoch(session, state)
        except loop.NonFinite as error:
            state = _after_non_finite(session, state, error)
            continue
        state = _end_epoch(session, state)
        if state.epoch == first_epoch + 1 and session.saver:
            _advise(config, session.record_set, state.history[-1], asked=asked)
    return state


def _restore(session: Session) -> RunState | None:
    """Sets variables and state to what was saved last, on every host to what host 0 has; None if nothing was."""
    data = checkpoint.newest(session.run.checkpoints) if session.saver else b''
    data = distribute.from_host_0(session.strategy, data)
    return checkpoint.load(data, session.variables) if data else None


def _end_epoch(session: Session, state: RunState) -> RunState:
    """Validates, and saves the state after an epoch, and the weights if they are the best so far."""
    config, source = session.config, session.source
    with loop.averaged(session.average):
        validation = loop.validate(session)
        if validation is not None:
            rate = loop.learning_rate(config, state, source.steps_per_epoch - 1, source.steps_per_epoch)
            row, epoch = loop.row(state, rate) | validation, state.epoch + 1
            watch = optim.observe(state.watch, row['val_loss'], epoch=epoch, config=config)
            best_weights = state.best_weights
            if watch.best_epoch == epoch:
                best_weights = f'best-epoch-{epoch:03d}-loss-{row["val_loss"]:.5f}.weights.h5'
                if session.saver:
                    session.saver.save_best(best_weights)
    if validation is None:
        loop.leave(session, state)
    state = session.save(RunState(epoch=epoch, watch=watch, best_weights=best_weights, best_sha256=state.best_sha256,
                                  history=(*state.history, row), rollbacks=state.rollbacks))
    if session.saver:
        _written(lambda: run_dir.write_history(session.run, list(state.history)))
        session.board.epoch(state)
        _say_epoch(config, state)
    return state


def _after_non_finite(session: Session, failed: RunState, error: loop.NonFinite) -> RunState:
    """Goes back to the last saved state with half the rate, or raises UserError. `failed` began what went wrong."""
    config, run = session.config, session.run
    step = {'epoch': error.epoch + 1, 'step': error.step + 1, 'loss': error.loss if math.isfinite(error.loss) else None,
            **feed.records_of_step(config, session.record_set, error.epoch, error.step)}
    told = not session.saver or _written(lambda: run_dir.write_non_finite(run, step))
    where = f'epoch {error.epoch + 1}, step {error.step + 1}: the loss or a gradient is not finite'
    # Counted from `failed`: on a full disk the saved state does not know of the last rollbacks.
    if config.on_nan == 'rollback' and failed.rollbacks < _MOST_ROLLBACKS:
        state = _restore(session)
        if state:
            state = state._replace(rollbacks=failed.rollbacks + 1)
            progress.say(f'{where}: back to epoch {state.epoch + 1}, step {state.step + 1}, with half the learning '
                         f'rate ({0.5**state.rollbacks * config.learning_rate:g})')
            return session.save(state)
    records_in = f'its records are in {run.non_finite}, and ' if told else ''
    tried = f', after {failed.rollbacks} rollbacks' if failed.rollbacks else ''
    other = '' if config.on_nan == 'rollback' else '; or go on here with --on_nan=rollback'
    raise UserError(f'{where}{tried}; {records_in}the last saved state is kept: lower '
                    f'--learning_rate={config.learning_rate} in another --run_dir, or look at these records{other}.')


def _written(write: Callable[[], None]) -> bool:
    """Writes a small file for people; False, which is said, if the disk is full: training needs none of them."""
    try:
        write()
    except OSError as error:
        if error.errno not in files.DISK_ERRNOS:
            raise
        progress.say(f'warning: {error.filename}: {error.strerror}; training goes on')
        return False
    return True


def _say_epoch(config: TrainConfig, state: RunState) -> None:
    row = state.history[-1]
    best = ', best so far' if state.watch.best_epoch == state.epoch else ''
    skipped = f', {row["skipped_steps"]:.0f} steps skipped by loss scaling' if row['skipped_steps'] else ''
    progress.say(f'epoch {state.epoch}/{config.epochs}: loss {row["loss"]:.4f}, accuracy {row["accuracy"]:.4f}; '
                 f'validation loss {row["val_loss"]:.4f}, accuracy {row["val_accuracy"]:.4f}{best}; '
                 f'{row["seconds"]:.0f} s, {row["images_per_second"]:.1f} images/s, '
                 f'{row["input_wait"]:.0%} waiting for input{skipped}, '
                 f'{row["peak_rss_mib"]:,.0f} MiB of memory at most')


def _advise(config: TrainConfig, record_set: records.RecordSet, row: dict[str, float], *, asked: str) -> None:
    # Without the first batch, for which every pipeline has to be started.
    seconds = row['seconds'] - row['first_batch_seconds']
    waited = row['input_wait'] * row['seconds'] - row['first_batch_seconds']
    text = advice.line(config, record_set, asked=asked, seconds=seconds, waiting=max(0.0, waited / seconds))
    if text:
        progress.say(text)


def _finish(session: Session, state: RunState) -> None:
    """Leaves the best epoch's model, in the precision of inference, and marks the run finished."""
    config, run, watch = session.config, session.run, state.watch
    session.saver.require_saved()
    if not state.best_weights:
        raise UserError(f'no epoch had a finite validation loss: lower --learning_rate={config.learning_rate} and take '
                        'another --run_dir.')
    run_dir.write_history(run, list(state.history))  # the disk may have been full
    if optim.should_stop(watch, config):
        progress.say(f'stopped early: {watch.stale} epoch(s) without a better validation loss')
    best = model.build(config, session.classes, config.inference_precision).model
    best.load_weights(run.checkpoints / state.best_weights)
    checkpoint.save_model(best, run.model)
    checkpoint.save_weights(best, run.weights)
    with files.atomic_write(run.architecture) as file:
        file.write(best.to_json(indent=1).encode())
    facts = run_dir.read_facts(run.path)
    run_dir.write_facts(run, {**facts, 'finished': True, 'epochs': state.epoch, 'best_epoch': watch.best_epoch,
                              'best_val_loss': watch.best, 'weights_sha256': files.sha256_of(run.weights)})
    checkpoint.tidy(run.checkpoints)
    progress.say(f'{run.path}: the model of epoch {watch.best_epoch}, validation loss {watch.best:.4f}')
