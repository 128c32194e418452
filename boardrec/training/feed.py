"""What is trained and the batches that it takes: the whole network on images, or its tail on cached features."""

from collections.abc import Callable, Iterable, Sequence
import functools
import itertools
import math
import os
import pathlib
import re
import shutil
import time
from typing import Any, NamedTuple

import keras
import psutil

from boardrec import progress
from boardrec.config import TrainConfig, UserError
from boardrec.data import data_service, input_pipeline, order, records
from boardrec.data.augment import Views
from boardrec.training import cut, distribute, feature_store, features, model
from boardrec.training.feature_store import Opened, Part
from boardrec.training.features import Trunk
from boardrec.training.model import Classifier

SPLITS = ('train', 'val')
_HEADROOM_BYTES = 1 << 30  # left free on the disk for checkpoints and the rest of the run
_MEMORY_SHARE = 0.5  # of what is available: for features in memory, or as the page cache of those on disk
_DISK_BYTES_PER_SECOND = 200e6  # of features that do not fit the page cache; a plain SATA disk's
_CGROUP = pathlib.Path('/sys/fs/cgroup')


class Feed(NamedTuple):
    """What is trained and the batches that it takes."""

    network: keras.Model  # inputs to logits
    train: Callable[[int, int], Iterable[Any]]  # epoch and first step (0-based) to its batches, of each replica
    val: Iterable[Any]
    train_records: int
    steps_per_epoch: int
    val_steps: int


class Decision(NamedTuple):
    """What becomes of the features."""

    feature_cache: str  # on, memory or off; without what follows if off
    trunk: Trunk | None = None
    parts: tuple[Part, ...] = ()  # each view of train, then val
    absent: tuple[list[int], ...] = ()  # the shards of each part that are not on the disk, or damaged


def decide(config: TrainConfig, record_set: records.RecordSet, classifier: Classifier, strategy: Any, *,
           before: str | None) -> Decision:
    """Decides whether features are cached, and says so in a line; computes none yet.

    `before` is the decision by which a run that goes on has completed epochs: auto does not change whether there are
    cached features, if it can be helped. Raises UserError if what was asked for cannot be, or if the images that are
    read instead do not fit into --pipeline_ram_mb.
    """
    decision = _decide(config, record_set, classifier, strategy, before)
    if not decision.trunk:
        input_pipeline.require_memory(
            record_set, 'train', ram_mb=config.pipeline_ram_mb, image_size=config.height_width(),
            batch_size=config.batch_size // distribute.host_of_hosts(strategy)[1])
    return decision


def open_feed(config: TrainConfig, record_set: records.RecordSet, classifier: Classifier, strategy: Any,
              decision: Decision) -> Feed:
    """Carries a decision out: computes the features that are missing, which may take long. Says what it did."""
    # Several replicas need equal shares of each batch, and full ones keep shapes fixed, which XLA compiles for; one
    # device needs equal parts.
    host, hosts = distribute.host_of_hosts(strategy)
    common = {'batch_size': config.batch_size, 'host': host, 'hosts': hosts,
              'pad_multiple': config.batch_size if strategy or config.xla == 'on' else config.accumulate_steps}
    shuffle = {'seed': config.seed, 'shuffle_records': config.shuffle_records, **common}
    counts = {split: len(record_set.split_range(split)) for split in SPLITS}
    _, val_steps = input_pipeline.part_of_host(
        range(counts['val']), batch_size=config.batch_size, host=host, hosts=hosts)
    lengths = {'train_records': counts['train'], 'steps_per_epoch': math.ceil(counts['train'] / config.batch_size),
               'val_steps': val_steps}
    if decision.trunk:
        if config.data_service:
            progress.say('--data_service is not used: cached features need no preprocessing')
        *of_train, of_val = _compute_and_open(decision)
        return Feed(
            model.for_training(decision.trunk.cut.tail),
            lambda epoch, first_step: distribute.batches(strategy, features.train_dataset(
                decision.trunk, of_train, 'train', epoch=epoch, first_step=first_step, **shuffle)),
            distribute.batches(strategy, features.eval_dataset(decision.trunk, of_val, 'val', **common)), **lengths)
    if config.data_service:
        progress.say(f'training images come from {config.data_service}: their order is not promised, and a run that is '
                     'interrupted does not go on to exactly the same result')
    size = config.height_width()

    def train(epoch: int, first_step: int) -> Iterable[Any]:
        dataset = functools.partial(
            input_pipeline.train_dataset, record_set, 'train', epoch=epoch, image_size=size, views=views(config),
            ram_mb=config.pipeline_ram_mb, **shuffle)
        if not config.data_service:
            return distribute.batches(strategy, dataset(first_step=first_step))
        # A service knows no order, so that what was taken before an interruption is not known either.
        batches = data_service.batches(dataset(service=config.data_service), config.data_service)
        return (distribute.place(strategy, batch) for batch in itertools.islice(batches, first_step, None))

    return Feed(
        model.for_training(keras.Model(classifier.model.input, classifier.logits)), train,
        distribute.batches(strategy, input_pipeline.eval_dataset(record_set, 'val', image_size=size, **common)),
        **lengths)


def records_of_step(config: TrainConfig, record_set: records.RecordSet, epoch: int, step: int) -> dict[str, list]:
    """The ids and sources of a step's records; none where a service chose them."""
    if config.data_service:
        return {'record_ids': [], 'sources': []}
    ids = record_set.split_range('train').start + order.sequence(
        input_pipeline.split_blocks(record_set, 'train'), seed=config.seed, epoch=epoch,
        window_records=config.shuffle_records)[step * config.batch_size:][:config.batch_size]
    return {'record_ids': ids.tolist(), 'sources': [record_set.sources[number] for number in ids]}


def _decide(config: TrainConfig, record_set: records.RecordSet, classifier: Classifier, strategy: Any,
            before: str | None) -> Decision:
    asked = config.feature_cache
    if 'off' in (asked, before if asked == 'auto' else ''):
        progress.say(f'features are not cached: {"--feature_cache=off" if asked == "off" else "as before"}')
        return Decision('off')
    if config.cached_views == 0:
        return _without(asked, 'each epoch takes new views (--cached_views=0)')
    found = cut.find(classifier)
    if found is None:
        return _without(asked, f'no layer is frozen with --trainable_layers={config.trainable_layers}')
    folder = pathlib.Path(config.feature_cache_dir)
    trunk = features.compile_trunk(
        found, record_set, backbone=config.backbone, precision=config.precision, views=views(config),
        strategy=distribute.of_this_host(strategy),
        batch_size=config.batch_size // (distribute.replicas(strategy) * config.accumulate_steps))
    parts = tuple(part for split in SPLITS for part in features.parts(trunk, folder, split))
    absent = tuple(feature_store.missing(part) for part in parts)
    total = sum(part.records * part.row_bytes for part in parts)
    needed = sum(feature_store.bytes_of(part, numbers) for part, numbers in zip(parts, absent, strict=True))
    what = f'features of {" and ".join(found.boundary)} ({total / 2**20:,.0f} MiB)'
    if not needed and asked != 'memory':
        progress.say(f'{what}: taken from {folder}')
        return Decision('on', trunk, parts, absent)
    if asked == 'auto' and before is None:
        saved = _seconds_saved(config, trunk, needed=needed, total=total)
        if saved <= 0:
            return _without(asked, f'computing the {what} would take longer than they save in {config.epochs} epoch(s)')
        what += f', to save about {duration(saved)} in {config.epochs} epochs'
    reasons = {'on': _reason_against_disk(folder, parts, needed), 'memory': _reason_against_memory(total)}
    wanted = ['on', 'memory'] if asked == 'auto' else [asked]
    possible = [name for name in wanted if not reasons[name]]
    if not possible:
        return _without(asked, ', and '.join(reasons[name] for name in wanted),
                        otherwise=', or another --feature_cache_dir' if asked == 'on' else '')
    where = folder if possible[0] == 'on' else 'memory' + (f', because {reasons["on"]}' if asked == 'auto' else '')
    progress.say(f'{what}: {"to be kept" if config.dry_run else "kept"} in {where}')
    return Decision(possible[0], trunk, parts, absent)


def views(config: TrainConfig) -> Views:
    """The views that the settings describe."""
    return Views(
        count=config.cached_views, seed=config.seed, flip_horizontal=config.flip_horizontal,
        flip_vertical=config.flip_vertical, quarter_turns=config.quarter_turns, crop_area=config.crop_area,
        rotation=config.rotation, brightness=config.brightness, contrast=config.contrast, saturation=config.saturation,
        hue=config.hue, jpeg_quality=config.jpeg_quality, erasing=config.erasing)


def _without(asked: str, reason: str, *, otherwise: str = '') -> Decision:
    if asked != 'auto':
        raise UserError(f'--feature_cache={asked}: {reason}; take --feature_cache=auto or off{otherwise}.')
    progress.say(f'features are not cached: {reason}')
    return Decision('off')


def _seconds_saved(config: TrainConfig, trunk: Trunk, *, needed: int, total: int) -> float:
    """What the whole run would be shorter by, by the trunk's measured rate and a plain disk's."""
    row_bytes, seconds = trunk.cut.row_bytes, features.seconds_an_image(trunk)
    read_seconds = row_bytes / _DISK_BYTES_PER_SECOND
    images = config.epochs * sum(len(trunk.record_set.split_range(split)) for split in SPLITS)
    cached = total <= _MEMORY_SHARE * _available_memory()
    return images * (seconds - (0 if cached else read_seconds)) - needed / row_bytes * max(seconds, read_seconds)


def _reason_against_disk(folder: pathlib.Path, parts: Sequence[Part], needed: int) -> str | None:
    """Why so many bytes cannot be kept in a folder, which may not exist yet; None if they can."""
    for place in (folder, *(part.folder for part in parts)):
        existing = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
        if not os.access(existing, os.W_OK) or not existing.is_dir():
            return f'{place} is no folder that can be written'
    lacking = needed + _HEADROOM_BYTES - shutil.disk_usage(existing).free
    if lacking > 0:
        return (f'{folder} lacks {lacking / 2**20:,.0f} MiB: the features need {needed / 2**20:,.0f} MiB, and 1 GiB is '
                'left free')
    return None


def _reason_against_memory(total: int) -> str | None:
    budget = int(_MEMORY_SHARE * _available_memory())
    if total > budget:
        return f'{total / 2**20:,.0f} MiB are more than half of the memory available ({budget / 2**20:,.0f} MiB)'
    return None


def _available_memory() -> int:
    """Bytes that this process may still take: the machine's, or its container's if that is less."""
    available = psutil.virtual_memory().available
    try:
        limit, used, stat = ((_CGROUP / f'memory.{name}').read_text() for name in ('max', 'current', 'stat'))
    except OSError:
        return available
    reclaimable = int(re.search(r'^inactive_file (\d+)', stat, re.M)[1])  # files that were read
    return available if limit.strip() == 'max' else min(available, max(0, int(limit) - int(used) + reclaimable))


def _compute_and_open(decision: Decision) -> list[Opened]:
    """Each part; computes what is missing of it."""
    trunk, boundary, opened = decision.trunk, ' and '.join(decision.trunk.cut.boundary), []
    work = list(zip(decision.parts, decision.absent, strict=True))
    images = sum(len(part.rows(number)) for part, absent in work for number in absent)
    for part, absent in work:
        if absent and decision.feature_cache == 'on':
            progress.say(f'computing the features of {part.name}: {feature_store.reason_for(part)}')
    start = time.perf_counter()
    with progress.bar(f'features of {boundary}', total=images, unit='images') as bar:
        for part, absent in work:
            compute = functools.partial(features.compute, trunk, part, progress=bar.update)
            opened.append(
                feature_store.read_or_compute(part, compute, absent=absent) if decision.feature_cache == 'memory' else
                feature_store.open_or_compute(part, compute, boundary=boundary, damaged=absent))
    if bar.n:  # else another process has done it all
        seconds = time.perf_counter() - start
        progress.say(f'features of {boundary}: {bar.n:,} images in {seconds:,.0f} s ({bar.n / seconds:,.1f} images/s)')
    return opened


def duration(seconds: float) -> str:
    """A time as a person says it."""
    for unit, length in (('h', 3600), ('min', 60)):
        if seconds >= 2 * length:
            return f'{seconds / length:,.0f} {unit}'
    return f'{seconds:,.0f} s'
