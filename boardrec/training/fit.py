"""The training recipe: records and settings in, a finished run out. Read it from top to bottom."""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import platform
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from boardrec import cli, progress
from boardrec.config import TrainConfig, UserError
from boardrec.data import files, images, records, remote
from boardrec.training import (
    advice,
    checkpoint,
    class_weights,
    distribute,
    dry_run,
    feed,
    loop,
    model,
    optim,
    parts,
    record_weights,
    run_dir,
    steps,
    stopping,
)
from boardrec.training.board import Board
from boardrec.training.checkpoint import RunState
from boardrec.training.loop import Session
from boardrec.training.model import Classes, Classifier
from boardrec.training.run_dir import RunDir
from boardrec.training.steps import Objective

_MOST_ROLLBACKS = 3


def fit(config: TrainConfig, record_set: records.RecordSet) -> None:
    """Trains until the epochs are done or validation stops improving; continues what RUN has completed.

    `record_set` is config.records, opened, or a copy of it on this machine. With several hosts each of them calls this,
    and host 0 alone writes RUN.
    Raises UserError for records, settings or a run folder that do not fit, and cli.Interrupted after a signal.
    """
    _require_splits(record_set)
    record_set.require_size(config.height_width())
    strategy = distribute.set_up(config)
    keras.utils.set_random_seed(config.seed)
    _require_shares(config, strategy)
    classes = model.resolve_classes(record_set.manifest.class_names, config.positive_class)
    config = _resolve(config, record_set, classes, strategy)
    run, leads = RunDir(pathlib.Path(config.run_dir)), distribute.host_of_hosts(strategy)[0] == 0
    if config.dry_run:
        dry_run.show(config, record_set, classes, strategy)
        return _say_what_is_there(run, config, record_set)
    with (stopping.listen() as stop, distribute.naming_lost_workers(strategy),
          run_dir.locked(run) if leads else contextlib.nullcontext()):
        facts = _facts(record_set, config)
        begun = _agree(strategy, lambda: _begun(run, config, facts))
        if begun['finished']:
            progress.say(f'{run.path}: training is already finished; nothing to do.')
            return
        _require_the_same(facts, begun['facts'])
        session = _open_session(config, run_dir.with_own(begun['flags'], config), run, record_set, classes, strategy,
                                stop, facts, goes_on=begun['goes_on'])
        with stop.deferred(), session.board or contextlib.nullcontext():
            state = _train(session, config.feature_cache)
            if leads:
                _finish(session, state)
            _agree(strategy, dict)  # the others wait for host 0's files


def _say_what_is_there(run: RunDir, config: TrainConfig, record_set: records.RecordSet) -> None:
    """What a dry run says of RUN: whether the training would go on there, or be refused."""
    try:
        if run_dir.find(run, dataclasses.replace(config, dry_run=False), _facts(record_set, config)):
            progress.say(f'\nnote: --run_dir={run.path} has begun; the training would go on where it is')
    except UserError as error:
        progress.say(f'\nnote: the training would be refused: {error}')


def _begun(run: RunDir, config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What host 0 finds in the run's folder: the settings to go on with, as lines of a flag file, and more."""
    earlier = run_dir.find(run, config, facts)
    return {'flags': cli.to_flagfile(earlier or config).splitlines(), 'facts': facts, 'goes_on': earlier is not None,
            'finished': earlier is not None and run_dir.read_facts(run.path).get('finished', False)}


def _agree(strategy: Any, of_host_0: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What host 0 says, on every host."""
    leads = distribute.host_of_hosts(strategy)[0] == 0
    return json.loads(distribute.from_host_0(strategy, json.dumps(of_host_0() if leads else {}).encode()))


def _require_the_same(facts: dict[str, Any], of_host_0: dict[str, Any]) -> None:
    for name, value in facts.items():
        if of_host_0.get(name) != value:
            raise UserError(f'this host has other {run_dir.FACT_NAMES[name]} than host 0 of TF_CONFIG: give all hosts '
                            'the same records, weights and packages.')


def _open_session(asked: TrainConfig, config: TrainConfig, run: RunDir, record_set: records.RecordSet, classes: Classes,
                  strategy: Any, stop: stopping.Stop, facts: dict[str, Any], *, goes_on: bool) -> Session:
    """Builds what is trained and opens what it is trained on; from here on the folder is a run."""
    built = parts.build(config, classes, strategy, goes_on=goes_on)
    classifier, optimizer, average = built
    facts = {**facts, 'frozen_sha256': model.frozen_sha256(classifier)}
    leads = distribute.host_of_hosts(strategy)[0] == 0
    if goes_on and leads:
        run_dir.require_equal(run, facts)  # the weights file may have changed
    _require_the_same(facts, _agree(strategy, lambda: facts))
    _describe(config, record_set, classifier, strategy)
    weights = record_weights.resolve(config, record_set)
    if weights:
        progress.say(record_weights.sentence(config, record_set, weights))
    if leads:
        checkpoint.require_space(run.path, classifier.model, built.variables, begun=checkpoint.exists(run.checkpoints))
    decision = _decide(asked, config, run, record_set, classifier, strategy)
    config = dataclasses.replace(config, feature_cache=decision.feature_cache)
    if leads:
        run_dir.create(run, config, facts)  # before what may take hours
    source = feed.open_feed(config, record_set, classifier, strategy, decision)
    objective = Objective(classes, config.label_smoothing, class_weights.resolve(config, record_set),
                          weights and weights.table)
    head = classifier.model.get_layer('logits').trainable_variables
    calls = []
    for trained in (head, source.network.trainable_variables):
        step = steps.make_train_step(
            source.network, optimizer, objective, strategy=strategy, accumulate_steps=config.accumulate_steps,
            clip_norm=config.clip_norm, variables=trained, average=average, xla=config.xla == 'on')
        calls.append(steps.one_by_one(step, optimizer) if config.data_service and not decision.trunk else
                     steps.make_calls(step, optimizer, strategy=strategy))
    return Session(
        config=config, run=run, record_set=record_set, classes=classes, strategy=strategy, source=source,
        optimizer=optimizer, average=average, variables=built.variables, calls=tuple(calls),
        eval_step=steps.make_eval_step(source.network, classes, strategy=strategy), stop=stop,
        saver=checkpoint.Saver(run.checkpoints, classifier.model, built.variables) if leads else None,
        board=Board(run.tensorboard, config, record_set) if leads else None)


def _decide(asked: TrainConfig, config: TrainConfig, run: RunDir, record_set: records.RecordSet, classifier: Classifier,
            strategy: Any) -> feed.Decision:
    """Whether features are cached, which host 0 decides."""
    def decide(feature_cache: str, before: str | None) -> feed.Decision:
        return feed.decide(dataclasses.replace(config, feature_cache=feature_cache), record_set, classifier, strategy,
                           before=before)

    leads = distribute.host_of_hosts(strategy)[0] == 0
    if leads:
        decision = decide(asked.feature_cache, config.feature_cache if checkpoint.exists(run.checkpoints) else None)
    told = _agree(strategy, lambda: {'feature_cache': decision.feature_cache})
    return decision if leads else decide(told['feature_cache'], None)


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


def _require_splits(record_set: records.RecordSet) -> None:
    for split in feed.SPLITS:
        info = record_set.manifest.splits.get(split)
        if not info or not info.records:
            raise UserError(f'--records={record_set.folder}: there is nothing in its {split} split, which training '
                            'needs: convert more images, or convert with other --splits.')


def _require_shares(config: TrainConfig, strategy: Any) -> None:
    devices = distribute.replicas(strategy)
    if config.batch_size % (devices * config.accumulate_steps):
        raise UserError(f'--batch_size={config.batch_size}: must be a multiple of {devices} devices times '
                        f'--accumulate_steps={config.accumulate_steps}.')
    if config.data_service and distribute.host_of_hosts(strategy)[1] > 1:
        raise UserError(f'--data_service={config.data_service}: serves one host, and TF_CONFIG names several, which '
                        'read and decode their own shares: leave it out.')


def _resolve(config: TrainConfig, record_set: records.RecordSet, classes: Classes, strategy: Any) -> TrainConfig:
    """Resolves each `auto` that does not depend on the model, and makes paths independent of the current folder."""
    cache = config.feature_cache_dir or record_set.folder.absolute().parent / 'feature_cache'
    return dataclasses.replace(
        config, precision=distribute.resolve_precision(config.precision),
        strategy=distribute.name(strategy), xla=distribute.resolve_xla(config.xla, strategy),
        positive_class='' if classes.positive is None else classes.names[classes.positive],
        records=config.records if remote.is_url(config.records) else os.path.abspath(config.records),
        run_dir=os.path.abspath(config.run_dir),
        feature_cache_dir=os.path.abspath(cache), image_size='x'.join(map(str, config.height_width())),
        weights=config.weights if config.weights in ('imagenet', 'none') else os.path.abspath(config.weights),
        init_from=config.init_from and os.path.abspath(config.init_from),
        class_weight=os.path.abspath(config.class_weight) if os.path.exists(config.class_weight) and (
            config.class_weight not in ('none', 'balanced')) else config.class_weight,
        record_weights=config.record_weights and os.path.abspath(config.record_weights))


def _facts(record_set: records.RecordSet, config: TrainConfig) -> dict[str, Any]:
    weights, of_records = class_weights.resolve(config, record_set), record_weights.resolve(config, record_set)
    return {
        'records_fingerprint': record_set.manifest.fingerprint,
        'class_names': record_set.manifest.class_names,
        'positive_class': config.positive_class,
        'decode_version': images.DECODE_VERSION,
        'class_weights': None if weights is None else weights.tolist(),
        'record_weights': of_records and of_records.sha256,
        'versions': {'python': platform.python_version(), 'tensorflow': tf.__version__, 'keras': keras.__version__,
                     'numpy': np.__version__},
    }


def _describe(config: TrainConfig, record_set: records.RecordSet, classifier: Classifier, strategy: Any) -> None:
    trained, frozen = model.parameter_counts(classifier.model)
    counts = {split: len(record_set.split_range(split)) for split in feed.SPLITS}
    height, width = config.height_width()
    progress.say(f'{config.backbone} {height}x{width}, {trained:,} parameters trained and {frozen:,} frozen, '
                 f'{config.precision} on {distribute.replicas(strategy)} device(s); '
                 f'{counts["train"]:,} training and {counts["val"]:,} validation records')
    if config.trainable_layers and not any(layer.trainable_variables for layer in classifier.backbone_layers):
        progress.say(f'note: only the classifier is trained: no layer has weights among the last '
                     f'{config.trainable_layers} of {config.backbone}; raise --trainable_layers to train more')
    last = config.epochs * math.ceil(counts['train'] / config.batch_size)
    if config.profile_steps and int(config.profile_steps.split(',')[0]) > last:
        progress.say(f'note: --profile_steps={config.profile_steps} makes no profile: this training has {last:,} steps')


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
