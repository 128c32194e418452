"""Records become batches: two pipelines, each a list of steps with the reason of its order.

Both yield Batch. Only encoded bytes are shuffled and buffered; pixels exist for a few batches at a time and stay uint8,
because the backbone's normalisation lives in the model.
"""

from collections.abc import Iterable
import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from boardrec.data import augment, images, order, records
from boardrec.data.augment import AS_IT_IS, Views

_READ_AHEAD = 4  # blocks read at a time: hides a disk's latency, costs 4 buffers


class Batch(NamedTuple):
    """What a step takes; B is the batch size, or less for a last batch that needs no padding."""

    inputs: tf.Tensor | tuple[tf.Tensor, ...]  # uint8 [B, H, W, 3], or the cached features [B, ...]
    labels: tf.Tensor  # int32 [B]
    weights: tf.Tensor  # float32 [B]; 0 marks padding
    record_ids: tf.Tensor  # int64 [B]; -1 in padding


def train_dataset(record_set: records.RecordSet, split: str, *, image_size: tuple[int, int], batch_size: int, seed: int,
                  epoch: int, shuffle_records: int, views: Views = AS_IT_IS, pad_multiple: int = 1) -> tf.data.Dataset:
    """One epoch of `split` in the order of order.sequence(seed, epoch); yields Batch.

    Of each record it takes the one of its `views` whose turn it is. A last batch of fewer records is padded to a
    multiple of `pad_multiple`. About `shuffle_records` encoded records are held in memory, and as many are being read.
    """
    ids = record_set.split_range(split)
    cut = split_blocks(record_set, split)
    window = window_blocks(record_set, shuffle_records)
    windows = order.windows(cut, seed=seed, epoch=epoch, window_blocks=window)
    order_of_ids = ids.start + order.sequence(cut, seed=seed, epoch=epoch, window_blocks=window)
    places = np.stack([cut.shard, record_set.offsets[ids.start + cut.first], cut.records], axis=1)
    paths = tf.constant(record_set.shard_paths(split))

    def read_block(place: tf.Tensor) -> tf.data.Dataset:
        shard, offset, count = place[0], place[1], place[2]
        return records.read_from(paths[shard], offset).take(count)

    def read_window(places: tf.Tensor, permutation: tf.Tensor) -> tf.Tensor:
        encoded = tf.data.Dataset.from_tensor_slices(places)
        # Whole blocks one after the other (block_length), while the next ones are being opened and read.
        encoded = encoded.interleave(
            read_block, cycle_length=_READ_AHEAD, block_length=record_set.manifest.block_records,
            num_parallel_calls=_READ_AHEAD, deterministic=True)
        encoded = encoded.batch(tf.size(permutation, tf.int64)).get_single_element()
        return tf.gather(encoded, permutation)

    dataset = tf.data.Dataset.from_tensor_slices((
        _ragged([places[chosen] for chosen, _ in windows]), _ragged([permutation for _, permutation in windows])))
    dataset = dataset.map(read_window)
    dataset = dataset.prefetch(1)  # the next window is read while this one is consumed
    dataset = dataset.unbatch()
    chosen = order.views(order_of_ids, seed=views.seed, epoch=epoch, count=views.count)
    dataset = tf.data.Dataset.zip(dataset, tf.data.Dataset.from_tensor_slices((order_of_ids, chosen)))
    dataset = dataset.map(lambda serialized, numbers: (serialized, *numbers))
    return _decode_and_batch(
        dataset, image_size=image_size, batch_size=batch_size, views=views, pad_multiple=pad_multiple)


def eval_dataset(record_set: records.RecordSet, split: str, *, image_size: tuple[int, int], batch_size: int,
                 pad_multiple: int = 1) -> tf.data.Dataset:
    """Every record of `split` once, in record_id order; yields Batch, the last one padded as in train_dataset."""
    return view_dataset(record_set, split, [record_set.split_range(split)], image_size=image_size,
                        batch_size=batch_size, pad_multiple=pad_multiple)


def view_dataset(record_set: records.RecordSet, split: str, ranges: Iterable[range], *,
                 image_size: tuple[int, int], batch_size: int, views: Views = AS_IT_IS, view: int = 0,
                 pad_multiple: int = 1) -> tf.data.Dataset:
    """One view of the records of `split` whose ids are in `ranges`, in that order; yields Batch, as eval_dataset."""
    paths = tf.constant(record_set.shard_paths(split))

    def read(place: tf.Tensor) -> tf.data.Dataset:
        shard, offset, first, count = place[0], place[1], place[2], place[3]  # tf.unstack crashes TensorFlow 2.21 here
        serialized = records.read_from(paths[shard], offset).take(count)
        # A file that was cut between two records since the set was opened ends without an error.
        serialized = serialized.apply(tf.data.experimental.assert_cardinality(count))
        return tf.data.Dataset.zip(serialized, tf.data.Dataset.range(first, first + count))

    places = np.concatenate([_places(record_set, split, ids) for ids in ranges])
    dataset = tf.data.Dataset.from_tensor_slices(places).flat_map(read)
    dataset = dataset.map(lambda serialized, record_id: (serialized, record_id, tf.constant(view, tf.int64)))
    return _decode_and_batch(
        dataset, image_size=image_size, batch_size=batch_size, views=views, pad_multiple=pad_multiple)


def split_blocks(record_set: records.RecordSet, split: str) -> order.Blocks:
    """The blocks that a split is read in."""
    return order.blocks([shard.records for shard in record_set.split_shards(split)], record_set.manifest.block_records)


def window_blocks(record_set: records.RecordSet, shuffle_records: int) -> int:
    """How many blocks make a shuffle window."""
    return max(1, shuffle_records // record_set.manifest.block_records)


def pad(batch: Batch, multiple: int) -> Batch:
    """Pads the batch dimension to a multiple with zeros: weight 0, record_id -1."""
    extra = -tf.shape(batch.labels)[0] % multiple

    def padded(tensor: tf.Tensor, value: int = 0) -> tf.Tensor:
        widths = [[0, extra]] + [[0, 0]] * (tensor.shape.rank - 1)
        return tf.pad(tensor, widths, constant_values=tf.cast(value, tensor.dtype))

    return Batch(tf.nest.map_structure(padded, batch.inputs), padded(batch.labels), padded(batch.weights),
                 padded(batch.record_ids, -1))


def prefetch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The last step of a pipeline: one batch on its way while another is used.

    Without tf.data's tuner: it sleeps for up to as long as an iterator has lived, and the iterator's end waits for it,
    so that epochs of 24 s took 41 s. Nor is there anything to tune: threads and buffers are given.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def _ragged(rows: list[np.ndarray]) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_lengths(np.concatenate(rows), [len(row) for row in rows])


def _places(record_set: records.RecordSet, split: str, ids: range) -> np.ndarray:
    """Where records lie: int64 [pieces, 4], a row for each shard: its index, byte offset, first record_id, count."""
    starts = record_set.split_range(split).start + np.cumsum(
        [0, *(shard.records for shard in record_set.split_shards(split))])
    rows = []
    for shard, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        first, last = max(start, ids.start), min(stop, ids.stop)
        if first < last:
            rows.append((shard, record_set.offsets[first], first, last - first))
    return np.array(rows, np.int64).reshape(-1, 4)


def _decode_and_batch(dataset: tf.data.Dataset, *, image_size: tuple[int, int], batch_size: int, views: Views,
                      pad_multiple: int) -> tf.data.Dataset:
    """From (serialised Example, record_id, view) to Batch."""
    def decode(serialized: tf.Tensor, record_id: tf.Tensor, view: tf.Tensor) -> Batch:
        encoded, label = records.parse_example(serialized)
        image = augment.augment(images.decode(encoded, *image_size), views, view=view, record_id=record_id)
        return Batch(image, label, tf.ones([], tf.float32), record_id)

    dataset = dataset.map(decode, num_parallel_calls=len(os.sched_getaffinity(0)), deterministic=True)
    dataset = dataset.batch(batch_size)
    if pad_multiple > 1:
        dataset = dataset.map(lambda batch: pad(batch, pad_multiple))
    return prefetch(dataset)
