"""How a training is opened: settings checked and resolved, the network built, the records and their features found."""

from collections.abc import Callable
import dataclasses
import math
import os
import platform
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from boardrec import progress
from boardrec.config import TrainConfig, UserError
from boardrec.data import images, records, remote
from boardrec.training import (
    checkpoint,
    class_weights,
    distribute,
    feed,
    model,
    optim,
    parts,
    record_weights,
    run_dir,
    steps,
)
from boardrec.training.board import Board
from boardrec.training.checkpoint import RunState, Saver
from boardrec.training.feed import Feed
from boardrec.training.model import Classes, Classifier
from boardrec.training.run_dir import RunDir
from boardrec.training.steps import Objective
from boardrec.training.stopping import Stop


class Session(NamedTuple):
    """What training works with from its first step to its last."""

    config: TrainConfig
    run: RunDir
    record_set: records.RecordSet
    classes: Classes
    strategy: tf.distribute.Strategy | None
    source: Feed
    optimizer: keras.optimizers.Optimizer
    average: optim.Average | None
    variables: list[keras.Variable]  # that training changes
    calls: tuple[Callable[..., steps.Call], ...]  # of the last layer alone, and of all that is trained
    eval_step: steps.EvalStep
    stop: Stop
    saver: Saver | None  # of host 0, which writes
    board: Board | None

    def save(self, state: RunState) -> RunState:
        """Saves the state, if this host does."""
        return self.saver.save(state) if self.saver else state

    @property
    def is_shared(self) -> bool:
        """Whether other hosts take part, which must all stop at the same step."""
        return distribute.host_of_hosts(self.strategy)[1] > 1


def resolve(config: TrainConfig, record_set: records.RecordSet, classes: Classes, strategy: Any) -> TrainConfig:
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


def facts_of(record_set: records.RecordSet, config: TrainConfig) -> dict[str, Any]:
    """What a run depends on beside its settings; run_dir.FACT_NAMES says what each is."""
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


def open_session(asked: TrainConfig, config: TrainConfig, run: RunDir, record_set: records.RecordSet, classes: Classes,
                 strategy: Any, stop: Stop, facts: dict[str, Any], *, goes_on: bool) -> Session:
    """Builds what is trained and opens what it is trained on; from here on the folder is a run."""
    built = parts.build(config, classes, strategy, goes_on=goes_on)
    classifier, optimizer, average = built
    facts = {**facts, 'frozen_sha256': model.frozen_sha256(classifier)}
    leads = distribute.host_of_hosts(strategy)[0] == 0
    if goes_on and leads:
        run_dir.require_equal(run, facts)  # the weights file may have changed
    require_the_same(facts, distribute.agree(strategy, lambda: facts))
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
        saver=Saver(run.checkpoints, classifier.model, built.variables) if leads else None,
        board=Board(run.tensorboard, config, record_set) if leads else None)


def require_the_same(facts: dict[str, Any], of_host_0: dict[str, Any]) -> None:
    """Raises UserError if this host trains on other data than host 0."""
    for name, value in facts.items():
        if of_host_0.get(name) != value:
            raise UserError(f'this host has other {run_dir.FACT_NAMES[name]} than host 0 of TF_CONFIG: give all hosts '
                            'the same records, weights and packages.')


def _decide(asked: TrainConfig, config: TrainConfig, run: RunDir, record_set: records.RecordSet, classifier: Classifier,
            strategy: Any) -> feed.Decision:
    """Whether features are cached, which host 0 decides."""
    def decide(feature_cache: str, before: str | None) -> feed.Decision:
        return feed.decide(dataclasses.replace(config, feature_cache=feature_cache), record_set, classifier, strategy,
                           before=before)

    leads = distribute.host_of_hosts(strategy)[0] == 0
    if leads:
        decision = decide(asked.feature_cache, config.feature_cache if checkpoint.exists(run.checkpoints) else None)
    told = distribute.agree(strategy, lambda: {'feature_cache': decision.feature_cache})
    return decision if leads else decide(told['feature_cache'], None)


def require_splits(record_set: records.RecordSet) -> None:
    """Raises UserError unless there are records to train on and to validate with."""
    for split in feed.SPLITS:
        info = record_set.manifest.splits.get(split)
        if not info or not info.records:
            raise UserError(f'--records={record_set.folder}: there is nothing in its {split} split, which training '
                            'needs: convert more images, or convert with other --splits.')


def require_shares(config: TrainConfig, strategy: Any) -> None:
    """Raises UserError for a batch that the devices cannot share evenly, or a service that cannot serve them."""
    devices = distribute.replicas(strategy)
    if config.batch_size % (devices * config.accumulate_steps):
        raise UserError(f'--batch_size={config.batch_size}: must be a multiple of {devices} devices times '
                        f'--accumulate_steps={config.accumulate_steps}.')
    if config.data_service and distribute.host_of_hosts(strategy)[1] > 1:
        raise UserError(f'--data_service={config.data_service}: serves one host, and TF_CONFIG names several, which '
                        'read and decode their own shares: leave it out.')


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
