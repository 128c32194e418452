"""Cached features: what the frozen layers make of each record, computed once and kept on disk.

    FEATURE_CACHE/KEY/
      manifest.json      key (what the features depend on), shape, dtype, splits; written last
      SPLIT.bin          one fixed-size row a record, in the split's order

KEY is a hash of all that the features depend on, so a stale cache is never read.
"""

from collections.abc import Callable
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from boardrec import progress
from boardrec.data import files, images, input_pipeline, order, records
from boardrec.data.input_pipeline import Batch
from boardrec.training.model import Classifier

_MANIFEST = 'manifest.json'
_HEADROOM_BYTES = 1 << 30  # left free for checkpoints and the rest of the run
_TRUNK_BATCH = 32  # the trunk's rate hardly depends on it; larger ones only take memory
# What TensorFlow's bfloat16 rows are on disk: NumPy has no such type of its own.
_STORED_AS = {tf.bfloat16: np.uint16, tf.float16: np.float16, tf.float32: np.float32}


class Cut(NamedTuple):
    """The classifier in two parts that share its weights."""

    boundary: str  # name of the last frozen layer
    trunk: keras.Model  # images to features; nothing trainable, nothing random
    tail: keras.Model  # features to logits


class Cache(NamedTuple):
    """A complete cache, opened."""

    folder: pathlib.Path
    shape: tuple[int, ...]  # of one record's features
    dtype: tf.DType


def find_cut(classifier: Classifier) -> Cut | None:
    """Cuts before the first layer that is trained or random; None if the backbone's first layers are trained.

    Takes a chain of layers, such as VGG16's.
    """
    network = keras.Model(classifier.model.input, classifier.logits)
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    first = next(i for i, layer in enumerate(layers)
                 if layer.trainable_variables or isinstance(layer, keras.layers.Dropout))
    if not any(layer.weights for layer in layers[:first]):
        return None  # pooling alone would save no work
    boundary = layers[first - 1]
    return Cut(boundary.name, keras.Model(classifier.model.input, boundary.output),
               keras.Model(boundary.output, classifier.logits))


def cache_key(record_set: records.RecordSet, cut: Cut, *, precision: str) -> dict[str, object]:
    """All that the features depend on."""
    digest = hashlib.sha256()
    for variable in cut.trunk.variables:
        digest.update(np.ascontiguousarray(variable.numpy()))
    return {
        'records': record_set.manifest.fingerprint, 'weights': digest.hexdigest(), 'boundary': cut.boundary,
        'image_size': list(cut.trunk.input_shape[1:3]), 'precision': precision, 'device': _device_kind(),
        'decode_version': images.DECODE_VERSION,
        'tensorflow': tf.__version__, 'keras': keras.__version__,
    }


def bytes_needed(cut: Cut, record_set: records.RecordSet, splits: tuple[str, ...]) -> int:
    """The size of the cache on disk."""
    row = math.prod(cut.trunk.output_shape[1:]) * tf.as_dtype(cut.trunk.output.dtype).size
    return row * sum(len(record_set.split_range(split)) for split in splits)


def reason_against(folder: pathlib.Path, needed: int) -> str | None:
    """Why a cache of so many bytes cannot be built below `folder`, or None if it can."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        return f'{folder} cannot be written'
    lacking = needed + _HEADROOM_BYTES - shutil.disk_usage(existing).free
    if lacking > 0:
        return f'{folder} lacks {lacking / 2**20:,.0f} MiB of the {needed / 2**20:,.0f} MiB needed and 1 GiB to spare'
    return None


def is_complete(folder: pathlib.Path, record_set: records.RecordSet, cut: Cut, *, key: dict[str, object],
                splits: tuple[str, ...]) -> bool:
    """Whether the cache for `key` is below `folder`, each file with its size and sum."""
    cache = _locate(folder, cut, key)
    try:
        manifest = json.loads((cache.folder / _MANIFEST).read_bytes())
        sums = manifest['splits']
        return manifest['key'] == key and all(
            sums[split]['records'] == len(record_set.split_range(split))
            and sums[split]['bytes'] == os.path.getsize(cache.folder / f'{split}.bin')
            and sums[split]['sha256'] == files.sha256_of(cache.folder / f'{split}.bin') for split in splits)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_or_build(folder: pathlib.Path, record_set: records.RecordSet, cut: Cut, *, key: dict[str, object],
                  splits: tuple[str, ...], run: Callable[[Batch], tf.Tensor]) -> Cache:
    """Opens the cache for `key` below `folder`, or builds it with `run`, which is the compiled trunk."""
    cache = _locate(folder, cut, key)
    place = cache.folder
    if is_complete(folder, record_set, cut, key=key, splits=splits):
        progress.say(f'features of {cut.boundary}: taken from {place}')
        return cache
    place.mkdir(parents=True, exist_ok=True)
    total = sum(len(record_set.split_range(split)) for split in splits)
    sums = {}
    with progress.bar(f'features of {cut.boundary}', total=total, unit='images') as bar:
        for split in splits:
            sums[split] = _build_split(cache, record_set, cut, split=split, run=run, bar=bar)
        seconds = bar.format_dict['elapsed']
    rate = total / seconds
    _write_manifest(cache, key=key, sums=sums, rate=rate)
    progress.say(f'features of {cut.boundary}: {total:,} images in {seconds:,.0f} s ({rate:,.1f} images/s), '
                 f'{bytes_needed(cut, record_set, splits) / 2**20:,.0f} MiB in {place}')
    return cache


def train_dataset(cache: Cache, record_set: records.RecordSet, split: str, *, batch_size: int, seed: int, epoch: int,
                  shuffle_records: int, pad_multiple: int = 1) -> tf.data.Dataset:
    """One epoch of cached features, in the order and batches of input_pipeline.train_dataset; yields Batch."""
    positions = order.sequence(
        input_pipeline.split_blocks(record_set, split), seed=seed, epoch=epoch,
        window_blocks=input_pipeline.window_blocks(record_set, shuffle_records))
    return _dataset(cache, record_set, split, positions, batch_size=batch_size, pad_multiple=pad_multiple)


def eval_dataset(cache: Cache, record_set: records.RecordSet, split: str, *, batch_size: int, pad_multiple: int = 1
                 ) -> tf.data.Dataset:
    """Every record's cached features once, in record_id order; yields Batch."""
    positions = np.arange(len(record_set.split_range(split)))
    return _dataset(cache, record_set, split, positions, batch_size=batch_size, pad_multiple=pad_multiple)


def _dataset(cache: Cache, record_set: records.RecordSet, split: str, positions: np.ndarray, *, batch_size: int,
             pad_multiple: int) -> tf.data.Dataset:
    start = record_set.split_range(split).start
    labels = tf.constant(record_set.labels[start:start + len(positions)])
    shape = (len(positions), *cache.shape)
    stored = np.memmap(cache.folder / f'{split}.bin', _STORED_AS[cache.dtype], 'r', shape=shape)

    def read(places: tf.Tensor) -> Batch:
        rows = tf.ensure_shape(tf.numpy_function(lambda i: stored[i], [places], stored.dtype), [None, *cache.shape])
        return Batch(tf.bitcast(rows, cache.dtype), tf.gather(labels, places), tf.ones_like(places, tf.float32),
                     start + places)

    dataset = tf.data.Dataset.from_tensor_slices(tf.constant(positions, tf.int64)).batch(batch_size)
    dataset = dataset.map(read, num_parallel_calls=2, deterministic=True)
    if pad_multiple > 1:
        dataset = dataset.map(lambda batch: input_pipeline.pad(batch, pad_multiple))
    return dataset.prefetch(2)


def _build_split(cache: Cache, record_set: records.RecordSet, cut: Cut, *, split: str, run: Callable, bar: Any
                 ) -> dict[str, object]:
    """Writes SPLIT.bin and returns what the manifest says of it."""
    dataset = input_pipeline.eval_dataset(
        record_set, split, image_size=cut.trunk.input_shape[1:3], batch_size=_TRUNK_BATCH)
    path, digest, count = cache.folder / f'{split}.bin', hashlib.sha256(), 0
    with files.atomic_write(path) as file:
        for batch in dataset:
            rows = run(batch).numpy().tobytes()
            file.write(rows)
            digest.update(rows)
            count += batch.labels.shape[0]
            bar.update(batch.labels.shape[0])
    return {'records': count, 'bytes': path.stat().st_size, 'sha256': digest.hexdigest()}


def _write_manifest(cache: Cache, *, key: dict[str, object], sums: dict[str, object], rate: float) -> None:
    text = json.dumps({'key': key, 'shape': cache.shape, 'dtype': cache.dtype.name, 'splits': sums,
                       'images_per_second': rate}, indent=1)
    with files.atomic_write(cache.folder / _MANIFEST) as file:
        file.write(text.encode())


def _locate(folder: pathlib.Path, cut: Cut, key: dict[str, object]) -> Cache:
    place = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Cache(place, tuple(cut.trunk.output_shape[1:]), tf.as_dtype(cut.trunk.output.dtype))


def _device_kind() -> str:
    """What computes: features of another kind of device differ in their last bits."""
    gpus = tf.config.get_visible_devices('GPU')
    return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU') if gpus else 'CPU'
