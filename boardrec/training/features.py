"""Cached features: what the trunk makes of each record, computed once for each of its views, and read in any order."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import math
import pathlib
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from boardrec.data import augment, images, input_pipeline, order, records
from boardrec.data.augment import AS_IT_IS, Views
from boardrec.data.input_pipeline import Batch
from boardrec.training import distribute, feature_store
from boardrec.training.cut import Cut
from boardrec.training.feature_store import Opened, Part

VERSION = 1  # raise it with every change of the graph before the cut or of what a row holds
_TRUNK_BATCH = 32  # a replica's, at most; the rate hardly depends on it, larger ones only take memory
_PROBE_BATCH = 8  # a CPU's: as fast as larger ones


class Trunk(NamedTuple):
    """A cut's trunk, compiled, and the records that it is for."""

    cut: Cut
    record_set: records.RecordSet
    views: Views  # of the training records; others are taken as they are
    key: dict[str, Any]  # what its features depend on, but for split and view
    strategy: tf.distribute.Strategy | None
    batch_size: int  # images a call, over all replicas
    call: Callable[[Batch], tuple[tf.Tensor, ...]]  # a placed batch to its features


def compile_trunk(cut: Cut, record_set: records.RecordSet, *, backbone: str, precision: str, views: Views,
                  strategy: tf.distribute.Strategy | None, batch_size: int = _TRUNK_BATCH) -> Trunk:
    """Compiles the trunk of a cut for all replicas; `batch_size` is a replica's in training, whose memory suffices."""
    digest = hashlib.sha256()
    for variable in cut.trunk.variables:
        digest.update(np.ascontiguousarray(variable.numpy()))
    key = {
        'records': record_set.manifest.fingerprint, 'backbone': backbone, 'weights': digest.hexdigest(),
        'cut': list(cut.places), 'image_size': list(cut.trunk.input_shape[1:3]), 'precision': precision,
        'device': distribute.device_kind(), 'decode_version': images.DECODE_VERSION, 'version': VERSION,
        'tensorflow': tf.__version__, 'keras': keras.__version__,
    }

    def replica(batch: Batch) -> tuple[tf.Tensor, ...]:
        return tuple(keras.tree.flatten(cut.trunk(batch.inputs, training=False)))  # of one, Keras makes no list

    call = tf.function(lambda batch: distribute.gather(strategy, replica, batch), reduce_retracing=True)
    batch_size = min(batch_size, _TRUNK_BATCH) * distribute.replicas(strategy)
    return Trunk(cut, record_set, views, key, strategy, batch_size, call)


def parts(trunk: Trunk, folder: pathlib.Path, split: str) -> list[Part]:
    """Where the features of a split lie below a folder of caches: one part a view of the training records."""
    numbers = range(trunk.views.count) if split == 'train' and trunk.views.count > 1 else [None]
    described = [None if view is None else {
        'view': view, **{name: value for name, value in dataclasses.asdict(trunk.views).items() if name != 'count'},
        'version': augment.VERSION} for view in numbers]
    return [feature_store.make_part(folder, {**trunk.key, 'split': split, 'view': view}, row_bytes=trunk.cut.row_bytes,
                                    records=len(trunk.record_set.split_range(split))) for view in described]


def compute(trunk: Trunk, part: Part, shards: list[int], *, progress: Callable[[int], Any] = lambda images: None
            ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (shard, its rows as uint8 [records, row_bytes]) for some shards of a part, in that order."""
    split, view = part.key['split'], part.key['view']
    start = trunk.record_set.split_range(split).start
    dataset = input_pipeline.view_dataset(
        trunk.record_set, split, [range(start + part.rows(n).start, start + part.rows(n).stop) for n in shards],
        image_size=trunk.cut.trunk.input_shape[1:3], batch_size=trunk.batch_size,
        views=trunk.views if view else AS_IT_IS, view=view['view'] if view else 0,
        pad_multiple=trunk.batch_size if trunk.strategy else 1)
    arriving = _rows(trunk, dataset)
    rest = np.empty((0, part.row_bytes), np.uint8)
    for number in shards:
        rows, filled = np.empty((len(part.rows(number)), part.row_bytes), np.uint8), 0
        while filled < len(rows):
            if not len(rest):
                rest = next(arriving)
                progress(len(rest))
            taken = min(len(rest), len(rows) - filled)
            rows[filled:filled + taken], rest = rest[:taken], rest[taken:]
            filled += taken
        yield number, rows


def seconds_an_image(trunk: Trunk) -> float:
    """Measures the trunk on black images, after a first call that compiles it."""
    on_gpus = bool(tf.config.get_visible_devices('GPU'))  # where a small batch would only measure its launch
    count = trunk.batch_size if on_gpus else min(trunk.batch_size, _PROBE_BATCH * distribute.replicas(trunk.strategy))
    batch = Batch(tf.zeros([count, *trunk.cut.trunk.input_shape[1:]], tf.uint8), tf.zeros([count], tf.int32),
                  tf.ones([count]), tf.range(count, dtype=tf.int64))
    for _ in range(2):
        start = time.perf_counter()
        for tensor in trunk.call(distribute.place(trunk.strategy, batch)):
            tensor.numpy()  # a GPU's work is done only now
    return (time.perf_counter() - start) / count


def train_dataset(trunk: Trunk, views: Sequence[Opened], split: str, *, batch_size: int, seed: int,
                  epoch: int, shuffle_records: int, pad_multiple: int = 1, first_step: int = 0, host: int = 0,
                  hosts: int = 1) -> tf.data.Dataset:
    """One epoch of cached features, in the order, views and batches of input_pipeline.train_dataset; yields Batch."""
    record_set, share = trunk.record_set, batch_size // hosts
    positions = order.sequence(input_pipeline.split_blocks(record_set, split), seed=seed, epoch=epoch,
                               window_records=shuffle_records)[first_step * batch_size:]
    own = positions[host::hosts]
    chosen = order.views(record_set.split_range(split).start + own, seed=trunk.views.seed, epoch=epoch,
                         count=len(views))
    return input_pipeline.finish(
        _dataset(trunk, views, split, own, chosen, batch_size=share),
        pad_multiple=share if hosts > 1 else pad_multiple, batches=-(-len(positions) // batch_size),
        padding=0 < len(positions) % batch_size <= host)


def eval_dataset(trunk: Trunk, opened: Opened, split: str, *, batch_size: int, pad_multiple: int = 1, host: int = 0,
                 hosts: int = 1) -> tf.data.Dataset:
    """Every record's cached features once, in record_id order; yields Batch. Hosts: as input_pipeline.eval_dataset."""
    part, batches = input_pipeline.part_of_host(
        range(len(trunk.record_set.split_range(split))), batch_size=batch_size, host=host, hosts=hosts)
    positions, share = np.asarray(part, np.int64), batch_size // hosts
    return input_pipeline.finish(
        _dataset(trunk, [opened], split, positions, np.zeros_like(positions), batch_size=share),
        pad_multiple=share if hosts > 1 else pad_multiple, batches=batches, padding=batches > -(-len(part) // share))


def _rows(trunk: Trunk, dataset: tf.data.Dataset) -> Iterator[np.ndarray]:
    """The rows of each batch, uint8 [records, row_bytes], without padding.

    One batch behind, so that a GPU computes the next while this one is copied.
    """
    def rows(features: tuple[tf.Tensor, ...], weights: tf.Tensor) -> np.ndarray:
        count = int(np.count_nonzero(weights))
        return np.concatenate([tensor.numpy()[:count].reshape(count, -1).view(np.uint8) for tensor in features], axis=1)

    before = None
    for batch in dataset:
        now = trunk.call(distribute.place(trunk.strategy, batch)), batch.weights
        if before:
            yield rows(*before)
        before = now
    if before:
        yield rows(*before)


def _dataset(trunk: Trunk, views: Sequence[Opened], split: str, positions: np.ndarray, chosen: np.ndarray, *,
             batch_size: int) -> tf.data.Dataset:
    ids = trunk.record_set.split_range(split)
    labels = tf.constant(trunk.record_set.labels[ids.start:ids.stop])
    rows_a_shard, row_bytes = views[0].shards[0].shape

    def gather(places: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        rows = np.empty((len(places), row_bytes), np.uint8)
        for row, place, view in zip(rows, places, chosen, strict=True):
            row[:] = views[view].shards[place // rows_a_shard][place % rows_a_shard]
        return rows

    def read(places: tf.Tensor, chosen: tf.Tensor) -> Batch:
        rows = tf.ensure_shape(tf.numpy_function(gather, [places, chosen], tf.uint8), [None, row_bytes])
        return Batch(_split(rows, trunk.cut.features), tf.gather(labels, places), tf.ones_like(places, tf.float32),
                     ids.start + places)

    dataset = tf.data.Dataset.from_tensor_slices((positions, chosen)).batch(batch_size)
    return dataset.map(read, num_parallel_calls=2, deterministic=True)


def _split(rows: tf.Tensor, features: tuple[tf.TensorSpec, ...]) -> tuple[tf.Tensor, ...]:
    """Rows of bytes to features: uint8 [B, row_bytes] to a tensor [B, ...] each."""
    result, start = [], 0
    for spec in features:
        count = math.prod(spec.shape)
        its_bytes = rows[:, start:start + count * spec.dtype.size]
        values = tf.bitcast(tf.reshape(its_bytes, [-1, count, spec.dtype.size]), spec.dtype)
        result.append(tf.reshape(values, [-1, *spec.shape]))
        start += count * spec.dtype.size
    return tuple(result)
