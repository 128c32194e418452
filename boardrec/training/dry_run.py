"""What --dry_run prints: settings, layers, records, memory and time of a training. Nothing is written."""

from collections.abc import Callable, Iterable
import dataclasses
import math
import re
import resource
import statistics
import textwrap
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from boardrec import progress
from boardrec.config import TrainConfig
from boardrec.data import records
from boardrec.data.input_pipeline import Batch
from boardrec.training import (
    class_weights,
    distribute,
    feature_store,
    features,
    feed,
    model,
    parts,
    record_weights,
    steps,
)
from boardrec.training.feed import Decision
from boardrec.training.model import Classes, Classifier

_WIDTH, _COLUMN = 100, 32  # of a line, of a setting
_BLOCK = re.compile(r'(block\d+[a-z]?|(?:conv|stage)\d+)(?=_|$)')  # of a layer's name; not conv2d
_STEPS, _SECONDS = 3, 20.0  # that are timed: so many steps, or fewer after so long


class Timing(NamedTuple):
    """Seconds."""

    first_step: float  # with compiling
    step: float
    val_step: float
    feature: float  # an image through the trunk; 0 if there is none to compute


def show(config: TrainConfig, record_set: records.RecordSet, classes: Classes, strategy: Any) -> None:
    """Prints it all. `config` has its `auto`s resolved; with several hosts each calls this, and host 0 prints.

    Raises UserError for what the training would refuse, but for what is in RUN.
    """
    classifier, optimizer, average = parts.build(config, classes, strategy)
    decision = feed.decide(config, record_set, classifier, strategy, before=None)
    network = model.for_training(decision.trunk.cut.tail if decision.trunk else
                                 keras.Model(classifier.model.input, classifier.logits))
    config = dataclasses.replace(config, feature_cache=decision.feature_cache)
    sizes = memory_table(config, classifier, network, optimizer, average, decision, strategy)
    tables = {
        'Settings that are not the defaults': settings(config),
        f'Model: {config.backbone}, {config.precision}': model_table(classifier),
        f'Records: {record_set.folder}': data_table(record_set),
        'Memory, estimated': sizes}
    if distribute.host_of_hosts(strategy)[0] == 0:
        for title, lines in tables.items():
            _say(title, lines)
    before = _peak_mib()
    timing = _measure(config, record_set, classes, network, optimizer, average, decision, strategy)
    if distribute.host_of_hosts(strategy)[0] == 0:
        _say(f'Time, measured on {distribute.replicas(strategy)} device(s)',
             [*time_table(config, record_set, timing, decision),
              f'{_peak_mib():,.0f} MiB of this host\'s memory were taken at most, {before:,.0f} before the first step'])


def settings(config: TrainConfig) -> list[str]:
    """Those that are not the defaults, a line each, and then the others."""
    given, others = [], []
    for field in dataclasses.fields(config):
        line = f'--{field.name}={_text(getattr(config, field.name))}'
        if getattr(config, field.name) == field.default:
            others.append(line)
        elif field.default is dataclasses.MISSING:
            given.append(line)
        elif field.name != 'dry_run':
            given.append(f'{line:<{_COLUMN}}  (default {_text(field.default) or "empty"})')
    return [*given, *textwrap.wrap(f'the others: {" ".join(others)}', _WIDTH - 2, break_on_hyphens=False,
                                   break_long_words=False)]


def model_table(classifier: Classifier) -> list[str]:
    """A line for each block of layers: how many there are, the last one's output, parameters trained and frozen."""
    rows = [('', 'layers', 'output', 'trained', 'frozen')]
    for name, layers in _blocks(classifier).items():
        trained, frozen = (_count(variable for layer in layers for variable in getattr(layer, which))
                           for which in ('trainable_variables', 'non_trainable_weights'))
        rows.append((name, f'{len(layers)}', _shape(layers[-1].output), _number(trained), _number(frozen)))
    trained, frozen = model.parameter_counts(classifier.model)
    rows.append(('in all', f'{len(classifier.model.layers)}', '', _number(trained), _number(frozen)))
    return _aligned(rows, left=1)


def data_table(record_set: records.RecordSet) -> list[str]:
    """How images are stored, and a line for each split: records, and those of each class."""
    manifest = record_set.manifest
    stored = manifest.storage
    size = 'x'.join(map(str, stored.image_size)) if stored.image_size else ''
    kept = (f'{"JPEG or PNG" if stored.encoding == "keep" else stored.encoding}, '
            f'{f"{size} (--resize={stored.resize})" if size else "as large as the source"}')
    names = manifest.class_names if len(manifest.class_names) <= 6 else []
    rows = [('split', 'records', 'MiB', *names)]
    for split, info in manifest.splits.items():
        size = sum(shard.bytes for shard in record_set.split_shards(split)) / 2**20
        rows.append((split, f'{info.records:,}', f'{size:,.1f}', *(_number(info.class_counts.get(name, 0))
                                                                   for name in names)))
    lines = [f'{kept}; fingerprint {manifest.fingerprint[:16]}', *_aligned(rows, left=1)]
    if not names:
        counts = list(manifest.splits['train'].class_counts.values())
        lines.append(f'{len(manifest.class_names):,} classes, of which train has {min(counts, default=0):,} to '
                     f'{max(counts, default=0):,} records each')
    return lines


def memory_table(config: TrainConfig, classifier: Classifier, network: keras.Model, optimizer: Any, average: Any,
                 decision: Decision, strategy: Any) -> list[str]:
    """A line for each thing that takes memory, and where. `network` is what a step trains."""
    images = config.batch_size // (distribute.replicas(strategy) * config.accumulate_steps)
    weights, trained = _bytes(classifier.model.variables), _bytes(classifier.model.trainable_variables)
    of_device = [
        ('weights', weights, ''),
        ('gradients', trained * (1 if config.accumulate_steps == 1 else 2), ''),
        (f'state of {config.optimizer}', _bytes(optimizer.variables), ''),
        ('averaged weights', _bytes(average.variables) if average else 0, ''),
        ('activations', images * activation_bytes(network), f'of {images} images, from the shapes of the outputs that '
                                                            'gradients need')]
    rows = [(name, f'{size / 2**20:,.1f} MiB', note) for name, size, note in of_device if size]
    rows.append(('a device in all', f'{sum(size for _, size, _ in of_device) / 2**20:,.1f} MiB',
                 'without TensorFlow itself and its working memory'))
    if decision.trunk:
        total = sum(part.records * part.row_bytes for part in decision.parts)
        needed = sum(feature_store.bytes_of(part, absent) for part, absent in zip(
            decision.parts, decision.absent, strict=True))
        where = 'memory of the host' if decision.feature_cache == 'memory' else config.feature_cache_dir
        rows.append(('cached features', f'{total / 2**20:,.1f} MiB', f'{where}; {needed / 2**20:,.1f} MiB to compute'))
    else:
        rows.append(('input pipeline', f'{config.pipeline_ram_mb:,.1f} MiB',
                     'at most, of the host (--pipeline_ram_mb)'))
    return _aligned(rows, left=1, last_left=True)


def activation_bytes(network: keras.Model) -> int:
    """What a step keeps of one image until the gradients: the inputs of each operation behind the first trained weight.

    And twice the largest output, for the others while they run. An estimate: compilers fuse, and kernels take room too.
    """
    behind, kept, largest = set(), {}, 0
    for operation in network.operations:
        inputs = [] if isinstance(operation, keras.layers.InputLayer) else keras.tree.flatten(operation.input)
        if getattr(operation, 'trainable_variables', None) or any(id(tensor) in behind for tensor in inputs):
            behind |= {id(tensor) for tensor in keras.tree.flatten(operation.output)}
            kept |= {id(tensor): _tensor_bytes(tensor) for tensor in inputs}
        largest = max(largest, *map(_tensor_bytes, keras.tree.flatten(operation.output)))
    return sum(kept.values()) + 2 * largest


def time_table(config: TrainConfig, record_set: records.RecordSet, timing: Timing, decision: Decision) -> list[str]:
    """A line for a step, the features, an epoch and the run."""
    train, val = (len(record_set.split_range(split)) for split in feed.SPLITS)
    per_epoch, of_val = math.ceil(train / config.batch_size), math.ceil(val / config.batch_size)
    absent = sum(len(part.rows(number)) for part, numbers in zip(decision.parts, decision.absent, strict=True)
                 for number in numbers)  # images
    epoch, once = per_epoch * timing.step + of_val * timing.val_step, absent * timing.feature
    rows = [('first step', f'{timing.first_step:,.2f} s', 'with compiling'),
            ('step', f'{timing.step:,.3f} s', f'{config.batch_size / timing.step:,.1f} images/s')]
    if absent:
        rows.append(('features, once', feed.duration(once), f'{absent:,} images, {1 / timing.feature:,.1f} images/s'))
    rows += [('epoch', feed.duration(epoch), f'{per_epoch:,} steps, and {of_val:,} of validation'),
             ('run', feed.duration(once + config.epochs * epoch), f'{config.epochs} epochs, if none is saved by early '
                                                                  'stopping')]
    return [*_aligned(rows, left=1, last_left=True),
            'Waiting for input is not counted: benchmarks/profile_input.py measures the pipeline.']


def _measure(config: TrainConfig, record_set: records.RecordSet, classes: Classes, network: keras.Model,
             optimizer: Any, average: Any, decision: Decision, strategy: Any) -> Timing:
    """Times steps on a batch of noise."""
    weights = record_weights.resolve(config, record_set)
    objective = steps.Objective(classes, config.label_smoothing, class_weights.resolve(config, record_set),
                                weights and weights.table)
    train_step = steps.make_train_step(
        network, optimizer, objective, strategy=strategy, accumulate_steps=config.accumulate_steps,
        clip_norm=config.clip_norm, average=average, xla=config.xla == 'on')
    eval_step = steps.make_eval_step(network, classes, strategy=strategy)
    batch = distribute.place(strategy, _noise(config, classes, decision))
    with progress.bar('timing', total=4, unit='measurements') as bar:
        times = []
        for step in (lambda: train_step(batch).loss, lambda: eval_step(batch)[0].loss):
            times += [_seconds(step), _typical_seconds(step)]
            bar.update(2)
    return Timing(times[0], times[1], times[3], features.seconds_an_image(decision.trunk) if any(
        decision.absent) else 0.0)


def _noise(config: TrainConfig, classes: Classes, decision: Decision) -> Batch:
    random, count = np.random.default_rng(config.seed), config.batch_size
    if decision.trunk:
        specs = decision.trunk.cut.features
        inputs = tuple(tf.cast(random.random((count, *spec.shape), np.float32), spec.dtype) for spec in specs)
    else:
        inputs = tf.constant(random.integers(0, 256, (count, *config.height_width(), 3), np.uint8))
    labels = tf.constant(random.integers(0, len(classes.names), count), tf.int32)
    return Batch(inputs, labels, tf.ones([count]), tf.zeros([count], tf.int64))


def _seconds(step: Callable[[], tf.Tensor]) -> float:
    start = time.perf_counter()
    step().numpy()  # a GPU's work is done only now
    return time.perf_counter() - start


def _typical_seconds(step: Callable[[], tf.Tensor]) -> float:
    times = [_seconds(step)]
    while len(times) < _STEPS and sum(times) < _SECONDS:
        times.append(_seconds(step))
    return statistics.median(times)


def _blocks(classifier: Classifier) -> dict[str, list[keras.Layer]]:
    """The layers by the block that their names begin with; where there are none, by the size of what they give."""
    of_backbone = {id(layer) for layer in classifier.backbone_layers}
    has_names = any(_BLOCK.match(layer.name) for layer in classifier.backbone_layers)
    blocks, current, smallest = {}, 'input', math.inf
    for layer in classifier.model.layers:
        shape, match = layer.output.shape, _BLOCK.match(layer.name)
        pixels = math.prod(shape[1:3]) if len(shape) == 4 else 0
        if id(layer) in of_backbone and len(shape) == 4:
            if has_names:
                current = match[1] if match else current
            elif 1 < pixels < smallest:  # of 1 are the gates within a block
                current, smallest = f'{layer.name} ...', pixels
        elif current != 'input':
            current = 'classifier'
        blocks.setdefault(current, []).append(layer)
    return blocks


def _say(title: str, lines: Iterable[str]) -> None:
    progress.say('\n'.join(['', title, *(f'  {line}'.rstrip() for line in lines)]))


def _aligned(rows: list[tuple[str, ...]], *, left: int, last_left: bool = False) -> list[str]:
    """Lines with columns as wide as they need to be, the first few flush left, and the last if it is a note."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1 if last_left else len(widths)
    return ['  '.join(cell.ljust(width) if place < left or place == last else cell.rjust(width)
                      for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(count: int) -> str:
    return f'{count:,}' if count else '-'


def _shape(tensor: keras.KerasTensor) -> str:
    return 'x'.join(map(str, tensor.shape[1:]))


def _count(variables: Iterable[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _bytes(variables: Iterable[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)


def _tensor_bytes(tensor: keras.KerasTensor) -> int:
    return math.prod(tensor.shape[1:]) * tf.as_dtype(tensor.dtype).size


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
