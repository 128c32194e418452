"""The training recipe: records and settings in, a finished run out. Read it from top to bottom."""

import dataclasses
import math
import os
import pathlib
import platform
import resource
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from boardrec import progress
from boardrec.config import TrainConfig, UserError
from boardrec.data import files, images, input_pipeline, records, remote
from boardrec.training import advice, backbones, checkpoint, distribute, feed, model, optim, run_dir, steps
from boardrec.training.feed import Feed
from boardrec.training.model import Classes, Classifier
from boardrec.training.run_dir import RunDir


def fit(config: TrainConfig, record_set: records.RecordSet) -> None:
    """Trains until the epochs are done or validation stops improving; continues what RUN has completed.

    `record_set` is config.records, opened, or a copy of it on this machine.
    Raises UserError for records, settings or a run folder that do not fit.
    """
    _require_splits(record_set)
    record_set.require_size(config.height_width())
    keras.utils.set_random_seed(config.seed)
    strategy = distribute.set_up(config)
    _require_shares(config, strategy)
    classes = model.resolve_classes(record_set.manifest.class_names, config.positive_class)
    config, run = _resolve(config, record_set, classes, strategy), RunDir(pathlib.Path(config.run_dir))
    facts = _facts(record_set, config)
    earlier = run_dir.find(run, config, facts)
    if earlier and run_dir.read_facts(run.path).get('finished'):
        progress.say(f'{run.path}: training is already finished; nothing to do.')
        return
    asked, config = config.feature_cache, earlier or config

    with distribute.scope(strategy):
        classifier = model.build(config, classes, config.precision)
        backbones.load_weights(config.backbone, config.weights, classifier.backbone_layers)
        optimizer = optim.make_optimizer(config, config.precision)
        optimizer.build(classifier.model.trainable_variables)
    facts['frozen_sha256'] = model.frozen_sha256(classifier)
    if earlier:
        run_dir.require_equal(run, facts)  # the weights file may have changed
    _describe(config, record_set, classifier, strategy)
    run_dir.require_writable(run)  # now, and not after the feature pass
    checkpoint.require_space(run.path, classifier.model)
    decision = feed.decide(
        dataclasses.replace(config, feature_cache=asked), record_set, classifier, strategy,
        before=config.feature_cache if checkpoint.exists(run.checkpoints) else None)
    if not decision.trunk:
        input_pipeline.require_memory(record_set, 'train', ram_mb=config.pipeline_ram_mb, batch_size=config.batch_size,
                                      image_size=config.height_width())
    config = dataclasses.replace(config, feature_cache=decision.feature_cache)
    run_dir.create(run, config, facts)  # before what may take hours
    source = feed.open_feed(config, record_set, classifier, strategy, decision)

    train_step = steps.make_train_step(
        source.network, optimizer, classes, strategy=strategy, accumulate_steps=config.accumulate_steps)
    eval_step = steps.make_eval_step(source.network, classes, strategy=strategy)
    variables = [*model.changing_variables(classifier), *optimizer.variables]
    state = checkpoint.restore(run.checkpoints, variables)
    if state.epoch:
        progress.say(f'continuing after epoch {state.epoch}')
        run_dir.write_history(run, list(state.history))  # its last row was lost if the kill came just before it
    writer, first_epoch = tf.summary.create_file_writer(str(run.tensorboard)), state.epoch
    while state.epoch < config.epochs and not optim.should_stop(state.watch, config):
        row = _train_epoch(config, state, source, optimizer, step=train_step, strategy=strategy)
        row |= _validate(source, eval_step, strategy)
        state = _after_epoch(config, run, state, row, classifier)
        checkpoint.commit(run.checkpoints, state, variables)
        run_dir.write_history(run, list(state.history))
        _log(config, state, writer)
        if state.epoch == first_epoch + 1:
            _advise(config, record_set, row, asked=asked)
    _finish(config, run, state, classes)


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


def _resolve(config: TrainConfig, record_set: records.RecordSet, classes: Classes, strategy: Any) -> TrainConfig:
    """Resolves each `auto` that does not depend on the model, and makes paths independent of the current folder."""
    cache = config.feature_cache_dir or record_set.folder.absolute().parent / 'feature_cache'
    return dataclasses.replace(
        config, precision=distribute.resolve_precision(config.precision),
        strategy='mirrored' if strategy else 'one',
        positive_class='' if classes.positive is None else classes.names[classes.positive],
        records=config.records if remote.is_url(config.records) else os.path.abspath(config.records),
        run_dir=os.path.abspath(config.run_dir),
        feature_cache_dir=os.path.abspath(cache), image_size='x'.join(map(str, config.height_width())),
        weights=config.weights if config.weights in ('imagenet', 'none') else os.path.abspath(config.weights))


def _facts(record_set: records.RecordSet, config: TrainConfig) -> dict[str, Any]:
    return {
        'records_fingerprint': record_set.manifest.fingerprint,
        'class_names': record_set.manifest.class_names,
        'positive_class': config.positive_class,
        'decode_version': images.DECODE_VERSION,
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
        progress.say(f'note: only the classifier is trained: none of the last {config.trainable_layers} layers of '
                     f'{config.backbone} has weights; raise --trainable_layers to train more')


def _train_epoch(config: TrainConfig, state: checkpoint.RunState, source: Feed, optimizer: Any, *, step: steps.Step,
                 strategy: Any) -> dict[str, float]:
    """One epoch; returns its row of the history, without validation."""
    total_steps, sums, waited, first = config.epochs * source.steps_per_epoch, [], 0.0, 0.0
    start = time.perf_counter()
    batches = iter(source.train(state.epoch))
    with progress.bar(f'epoch {state.epoch + 1}/{config.epochs}', total=source.train_records, unit='images') as bar:
        for number in range(source.steps_per_epoch):
            rate = optim.learning_rate(
                config, step=state.epoch * source.steps_per_epoch + number, total_steps=total_steps, watch=state.watch)
            optimizer.learning_rate = rate
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            first = first or waited
            sums.append(step(distribute.place(strategy, batch)))
            bar.update(min(config.batch_size, source.train_records - number * config.batch_size))
    loss, right, count = (float(tf.add_n(column)) for column in zip(*sums, strict=True))
    if not math.isfinite(loss):
        raise UserError(f'the loss of epoch {state.epoch + 1} is {loss}: lower --learning_rate={config.learning_rate}; '
                        'the last good state is kept.')
    seconds = time.perf_counter() - start
    return {'epoch': state.epoch + 1, 'loss': loss / count, 'accuracy': right / count, 'learning_rate': rate,
            'seconds': seconds, 'images_per_second': count / seconds, 'input_wait': waited / seconds,
            'first_batch_seconds': first,
            'peak_rss_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _validate(source: Feed, step: steps.Step, strategy: Any) -> dict[str, float]:
    start = time.perf_counter()
    sums = [step(distribute.place(strategy, batch)) for batch in source.val]
    loss, right, count = (float(tf.add_n(column)) for column in zip(*sums, strict=True))
    return {'val_loss': loss / count, 'val_accuracy': right / count, 'val_seconds': time.perf_counter() - start}


def _after_epoch(config: TrainConfig, run: RunDir, state: checkpoint.RunState, row: dict[str, float],
                 classifier: Classifier) -> checkpoint.RunState:
    """The state after an epoch with this row; saves the weights if they are the best so far."""
    epoch = state.epoch + 1
    watch = optim.observe(state.watch, row['val_loss'], epoch=epoch, config=config)
    best_weights = state.best_weights
    if watch.best_epoch == epoch:
        best_weights = f'best-epoch-{epoch:03d}-loss-{row["val_loss"]:.5f}.weights.h5'
        checkpoint.save_weights(classifier.model, run.checkpoints / best_weights)
    return checkpoint.RunState(epoch, watch, best_weights, (*state.history, row))


def _log(config: TrainConfig, state: checkpoint.RunState, writer: tf.summary.SummaryWriter) -> None:
    row = state.history[-1]
    with writer.as_default(step=state.epoch):
        for name, value in row.items():
            if name != 'epoch':
                tf.summary.scalar(name, value)
    writer.flush()
    best = ', best so far' if state.watch.best_epoch == state.epoch else ''
    progress.say(f'epoch {state.epoch}/{config.epochs}: loss {row["loss"]:.4f}, accuracy {row["accuracy"]:.4f}; '
                 f'validation loss {row["val_loss"]:.4f}, accuracy {row["val_accuracy"]:.4f}{best}; '
                 f'{row["seconds"]:.0f} s, {row["images_per_second"]:.1f} images/s, '
                 f'{row["input_wait"]:.0%} waiting for input, {row["peak_rss_mib"]:,.0f} MiB of memory at most')


def _advise(config: TrainConfig, record_set: records.RecordSet, row: dict[str, float], *, asked: str) -> None:
    # Without the first batch, for which every pipeline has to be started.
    seconds = row['seconds'] - row['first_batch_seconds']
    waited = row['input_wait'] * row['seconds'] - row['first_batch_seconds']
    text = advice.line(config, record_set, asked=asked, seconds=seconds, waiting=max(0.0, waited / seconds))
    if text:
        progress.say(text)


def _finish(config: TrainConfig, run: RunDir, state: checkpoint.RunState, classes: Classes) -> None:
    """Leaves the best epoch's model, in the precision of inference, and marks the run finished."""
    watch = state.watch
    if not state.best_weights:
        raise UserError(f'no epoch had a finite validation loss: lower --learning_rate={config.learning_rate} and take '
                        'another --run_dir.')
    if optim.should_stop(watch, config):
        progress.say(f'stopped early: {watch.stale} epochs without a better validation loss')
    best = model.build(config, classes, config.inference_precision).model
    best.load_weights(run.checkpoints / state.best_weights)
    checkpoint.save_model(best, run.model)
    checkpoint.save_weights(best, run.weights)
    with files.atomic_write(run.architecture) as file:
        file.write(best.to_json(indent=1).encode())
    facts = run_dir.read_facts(run.path)
    run_dir.write_facts(run, {**facts, 'finished': True, 'epochs': state.epoch, 'best_epoch': watch.best_epoch,
                              'best_val_loss': watch.best, 'weights_sha256': files.sha256_of(run.weights)})
    progress.say(f'{run.path}: the model of epoch {watch.best_epoch}, validation loss {watch.best:.4f}')
