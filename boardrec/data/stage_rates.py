"""How fast each stage of the input pipeline is by itself, which tells the one that holds training up."""

import itertools
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from boardrec.data import augment, images, input_pipeline, order, tfrecord
from boardrec.data.augment import Views
from boardrec.data.records import RecordSet

_SAMPLE = 128  # records held in memory; more do not change the rates


class Rates(NamedTuple):
    """Images a second of each stage by itself, on all cores."""

    read: float  # in the order of training; from the page cache, if the records are there
    decode: float  # crop and resize included
    augment: float  # infinite without augmentation
    batch: float


def measure(record_set: RecordSet, split: str, *, image_size: tuple[int, int], batch_size: int, seed: int, epoch: int,
            shuffle_records: int, views: Views, ram_mb: int = 1024, seconds: float = 0.5) -> Rates:
    """Measures the stages on the records of an epoch, each for about `seconds`."""
    ids, cut = record_set.split_range(split), input_pipeline.split_blocks(record_set, split)
    ordered = ids.start + order.sequence(cut, seed=seed, epoch=epoch, window_records=shuffle_records)
    budget = input_pipeline.require_memory(record_set, split, ram_mb=ram_mb, image_size=image_size,
                                           batch_size=batch_size)
    possible = input_pipeline.records_that_fit(
        input_pipeline.record_bytes(record_set, split)[ordered - ids.start], budget)
    # As in training, so that whole blocks are read.
    length = input_pipeline.round_length(cut, shuffle_records, at_most=possible)
    stops = [*range(0, len(ordered), length), len(ordered)]
    chosen = order.views(ordered, seed=views.seed, epoch=epoch, count=views.count)
    reading = input_pipeline.read_rounds(
        record_set, split, [(ordered[start:stop], chosen[start:stop]) for start, stop in itertools.pairwise(stops)])

    def own(serialized: tf.Tensor, record_id: tf.Tensor, view: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return input_pipeline.own_example(serialized, place), record_id, view

    def decode(serialized: tf.Tensor, record_id: tf.Tensor, view: tf.Tensor) -> tuple[tf.Tensor, ...]:
        box = augment.crop_box(views, view=view, record_id=record_id)
        stored, _ = tfrecord.parse_example(serialized)
        return images.decode_stored(stored, record_set.manifest.storage, *image_size, box), record_id, view

    def change(image: tf.Tensor, record_id: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        return augment.augment(image, views, view=view, record_id=record_id)

    threads = input_pipeline.THREADS
    encoded = _in_memory(reading.map(own))
    decoding = encoded.repeat().map(decode, num_parallel_calls=threads)
    decoded = _in_memory(decoding).repeat()
    return Rates(
        _rate(reading.repeat(), seconds), _rate(decoding, seconds),
        _rate(decoded.map(change, num_parallel_calls=threads), seconds) if views.count != 1 else float('inf'),
        _rate(decoded.batch(batch_size), seconds, images=batch_size))


def _in_memory(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The first elements, or all of them if there are fewer."""
    return tf.data.Dataset.from_tensor_slices(next(iter(dataset.batch(_SAMPLE))))


def _rate(dataset: tf.data.Dataset, seconds: float, *, images: int = 1) -> float:
    """Images a second of an endless data set whose elements are so many images, once it is under way."""
    together = max(1, 32 // images)  # counted in TensorFlow: Python takes 20,000 elements a second
    options = tf.data.Options()
    options.autotune.enabled = False  # see input_pipeline.finish
    options.threading.max_intra_op_parallelism = 1
    elements = iter(dataset.map(lambda *_: np.int8(0)).batch(together).with_options(options))
    next(elements)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(elements))
    return count * images / (time.perf_counter() - start)
