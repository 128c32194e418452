"""Records become batches: two pipelines, each a list of steps with the reason of its order.

Both yield Batch. Only encoded bytes are shuffled and buffered; pixels exist for a few batches at a time and stay uint8,
because the backbone's normalisation lives in the model.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator
import contextlib
import itertools
import math
import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from boardrec.config import UserError
from boardrec.data import augment, data_service, images, order, records, tfrecord
from boardrec.data.augment import AS_IT_IS, Views
from boardrec.data.records import RecordSet, Storage

_READ_AHEAD = 4  # pieces read at a time: hides a disk's latency, costs 4 buffers
_ROUND_RECORDS = 1536  # read together, about: of 3 KB records, 64 at a time are read at a seventh of the rate
_COPIES_OF_A_ROUND = 4  # one consumed, one waiting, one being read and then put together
_BATCHES = 5  # one or two being made, two waiting, one in use
THREADS = 2 * len(os.sched_getaffinity(0))  # while some wait for their turn, others decode
_BUFFER_BYTES, _LONG_BYTES = 256 << 10, 64 << 10  # of reading; of records that are read without a buffer


class Batch(NamedTuple):
    """What a step takes; B is the batch size, or less for a last batch that needs no padding."""

    inputs: tf.Tensor | tuple[tf.Tensor, ...]  # uint8 [B, H, W, 3], or the cached features [B, ...]
    labels: tf.Tensor  # int32 [B]
    weights: tf.Tensor  # float32 [B]; 0 marks padding
    record_ids: tf.Tensor  # int64 [B]; -1 in padding

    def for_keras(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(inputs, labels, sample weights): a dataset that was mapped by this is one that Keras's `fit` takes."""
        return self.inputs, self.labels, self.weights


def train_dataset(record_set: RecordSet | str | os.PathLike, split: str = 'train', *,
                  image_size: tuple[int, int] = (224, 224), batch_size: int = 64, seed: int = 0, epoch: int = 0,
                  shuffle_records: int = 2048, views: Views = AS_IT_IS, pad_multiple: int = 1, first_step: int = 0,
                  host: int = 0, hosts: int = 1, ram_mb: int = 1024, service: str = '') -> tf.data.Dataset:
    """One epoch of `split`, of a record set or its folder, in the order of order.sequence(seed, epoch); yields Batch.

    Of each record it takes the one of its `views` whose turn it is. A last batch of fewer records is padded to a
    multiple of `pad_multiple`. The first `first_step` batches are left out, unread.

    Each of `hosts` hosts has an equal share of every batch of `batch_size`, and as many batches as the others, all of
    them padded to the full share. `ram_mb` MiB bound what is buffered; less of it makes for shorter reads, and changes
    nothing else.

    The workers of a tf.data `service` (grpc://HOST:PORT) read and decode in place of this process, from the same
    paths; each record comes once, but in an order of their own.

    Raises UserError if `ram_mb` is too little, the service does not answer, or stored images are smaller than
    `image_size`.
    """
    if hosts < 1 or batch_size % hosts or not 0 <= host < hosts:
        raise ValueError(f'{host=} must be one of {hosts=}, counted from 0, and {batch_size=} a multiple of hosts.')
    if min(first_step, epoch) < 0 or batch_size < 1:
        raise ValueError(f'{first_step=} and {epoch=} must be at least 0, {batch_size=} at least 1.')
    if service:
        if hosts > 1 or first_step:
            raise ValueError(f'{service=} serves one host, from step 0.')
        data_service.require(service)
    record_set = opened(record_set)
    record_set.require_size(image_size)
    ids, cut = record_set.split_range(split), split_blocks(record_set, split)
    share = batch_size // hosts
    ordered = ids.start + order.sequence(cut, seed=seed, epoch=epoch, window_records=shuffle_records)
    ordered = ordered[first_step * batch_size:]
    chosen = order.views(ordered, seed=views.seed, epoch=epoch, count=views.count)
    budget = require_memory(record_set, split, ram_mb=ram_mb, image_size=image_size, batch_size=share)
    possible = records_that_fit(record_bytes(record_set, split)[ordered[host::hosts] - ids.start], budget)
    # A service hands whole rounds to its workers, and promises no order anyway.
    length = batch_size if service else round_length(cut, shuffle_records, at_most=hosts * possible)
    stops = [0, *range(length - first_step * batch_size % length, len(ordered), length), len(ordered)]
    rounds = [slice(start + (host - start) % hosts, stop, hosts) for start, stop in itertools.pairwise(stops)]
    dataset = read_rounds(record_set, split, [(ordered[one], chosen[one]) for one in rounds])
    dataset = _decode(dataset, record_set.manifest.storage, image_size=image_size, batch_size=share, views=views,
                      threads=tf.data.AUTOTUNE if service else THREADS)  # of the workers, or of this host
    if service:
        dataset = dataset.apply(tf.data.experimental.service.distribute(
            processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC, service=service))
        dataset = dataset.rebatch(batch_size)  # each worker's last batch may be short
    return finish(dataset, pad_multiple=share if hosts > 1 else pad_multiple, batches=-(-len(ordered) // batch_size),
                  padding=0 < len(ordered) % batch_size <= host)  # none of the last batch's records is this host's


def eval_dataset(record_set: RecordSet | str | os.PathLike, split: str, *, image_size: tuple[int, int] = (224, 224),
                 batch_size: int = 64, pad_multiple: int = 1, host: int = 0, hosts: int = 1) -> tf.data.Dataset:
    """Every record of `split` once, in record_id order; yields Batch, the last one padded as in train_dataset.

    Each of `hosts` hosts has its part of the records, and as many batches as the others: see part_of_host.
    """
    record_set = opened(record_set)
    ids, batches = part_of_host(record_set.split_range(split), batch_size=batch_size, host=host, hosts=hosts)
    share = batch_size // hosts
    return view_dataset(record_set, split, [ids], image_size=image_size, batch_size=share,
                        pad_multiple=share if hosts > 1 else pad_multiple, batches=batches)


def part_of_host(ids: range, *, batch_size: int, host: int, hosts: int) -> tuple[range, int]:
    """A host's consecutive part of records, and how many batches of its share of `batch_size` each host has."""
    count = len(ids)
    part = ids[count * host // hosts:count * (host + 1) // hosts]
    return part, math.ceil(math.ceil(count / hosts) / (batch_size // hosts))


def view_dataset(record_set: RecordSet, split: str, ranges: Iterable[range], *,
                 image_size: tuple[int, int], batch_size: int, views: Views = AS_IT_IS, view: int = 0,
                 pad_multiple: int = 1, batches: int = 0) -> tf.data.Dataset:
    """One view of the records of `split` whose ids are in `ranges`, in that order; yields Batch, as eval_dataset.

    Of `batches`, one more than the records make, the last is padding.
    """
    record_set.require_size(image_size)
    ids = np.concatenate([np.asarray(ids, np.int64) for ids in ranges])
    dataset = tf.data.Dataset.from_tensor_slices(_pieces(record_set, _shard_ends(record_set, split), ids))
    dataset = dataset.flat_map(_piece_reader(record_set, split))
    dataset = _decode(dataset, record_set.manifest.storage, image_size=image_size, batch_size=batch_size, views=views,
                      view=view, threads=THREADS)
    own = -(-len(ids) // batch_size)
    return finish(dataset, pad_multiple=pad_multiple, batches=max(batches, own), padding=batches > own)


@contextlib.contextmanager
def naming_damage(record_set: RecordSet) -> Iterator[None]:
    """Makes what TensorFlow raises at a damaged record a UserError."""
    try:
        yield
    except tf.errors.DataLossError:
        raise UserError(f'--records={record_set.folder}: a record is damaged: tools/inspect_records.py --verify says '
                        'which, and --salvage saves the rest.') from None


def opened(record_set: RecordSet | str | os.PathLike) -> RecordSet:
    """A record set, which may be named by its folder."""
    return record_set if isinstance(record_set, RecordSet) else records.open_record_set(record_set)


def split_blocks(record_set: RecordSet, split: str) -> order.Blocks:
    """The blocks that a split is read in."""
    return order.blocks([shard.records for shard in record_set.split_shards(split)], record_set.manifest.block_records)


def pad(batch: Batch, multiple: int) -> Batch:
    """Pads the batch dimension to a multiple with zeros: weight 0, record_id -1."""
    extra = -tf.shape(batch.labels)[0] % multiple

    def padded(tensor: tf.Tensor, value: int = 0) -> tf.Tensor:
        widths = [[0, extra]] + [[0, 0]] * (tensor.shape.rank - 1)
        return tf.pad(tensor, widths, constant_values=tf.cast(value, tensor.dtype))

    return Batch(tf.nest.map_structure(padded, batch.inputs), padded(batch.labels), padded(batch.weights),
                 padded(batch.record_ids, -1))


def finish(dataset: tf.data.Dataset, *, pad_multiple: int, batches: int, padding: bool = False) -> tf.data.Dataset:
    """The last steps of a pipeline of so many batches: pads them to a multiple; one is under way while another is used.

    The last of the batches may be nothing but `padding`, of `pad_multiple` rows.

    Without tf.data's tuner: it sleeps for up to as long as an iterator has lived, and the iterator's end waits for it,
    so that epochs of 24 s took 41 s. Nor is there anything to tune: threads and buffers are given.
    """
    if pad_multiple > 1:
        dataset = dataset.map(lambda batch: pad(batch, pad_multiple))
    if padding:
        nothing = tf.nest.map_structure(
            lambda spec: tf.zeros([pad_multiple, *spec.shape[1:]], spec.dtype), dataset.element_spec)
        dataset = dataset.concatenate(tf.data.Dataset.from_tensors(
            nothing._replace(record_ids=tf.fill([pad_multiple], tf.constant(-1, tf.int64)))))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches))
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1  # the threads have an image each
    return dataset.prefetch(2).with_options(options)


def require_memory(record_set: RecordSet, split: str, *, ram_mb: int, image_size: tuple[int, int], batch_size: int
                   ) -> int:
    """How many bytes of a split's records may be read together, for all buffers to stay within `ram_mb` MiB.

    The images that are being decoded come on top. Raises UserError if the largest record does not fit.
    """
    largest = int(record_bytes(record_set, split).max(initial=1))
    of_batches = _BATCHES * batch_size * image_size[0] * image_size[1] * 3
    budget = (ram_mb * 2**20 - of_batches) // _COPIES_OF_A_ROUND
    if budget < largest:
        needed = -(-(of_batches + _COPIES_OF_A_ROUND * largest) // 2**20)
        raise UserError(f'--pipeline_ram_mb={ram_mb}: {_BATCHES} batches of {batch_size} images of {image_size[0]}x'
                        f'{image_size[1]} pixels and a few records need {needed} MiB; give as much, or lower '
                        '--batch_size.')
    return budget


def record_bytes(record_set: RecordSet, split: str) -> np.ndarray:
    """How long each record of a split is in its file: int64 [records]."""
    ids, shards = record_set.split_range(split), [one for one in record_set.split_shards(split) if one.records]
    offsets = record_set.offsets[ids.start:ids.stop]
    last = np.cumsum([shard.records for shard in shards], dtype=np.int64) - 1
    ends = np.append(offsets[1:], 0)
    ends[last] = [shard.bytes for shard in shards]
    return ends - offsets


def records_that_fit(sizes: np.ndarray, budget: int) -> int:
    """How many of records with these bytes, int [n] in their order, fit a budget wherever one begins; at least 1."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    # Of n more, the largest stretch has more bytes: so the first n too many is found by halving.
    return bisect.bisect_right(range(2, len(ends)), budget, key=lambda n: (ends[n:] - ends[:-n]).max()) + 1


def round_length(cut: order.Blocks, shuffle_records: int, *, at_most: int) -> int:
    """How many records to read together: some of the order's own rounds, if there is room, to keep blocks whole."""
    whole = order.round_records(cut, shuffle_records)
    return min(whole * max(1, _ROUND_RECORDS // whole), at_most)


def read_rounds(record_set: RecordSet, split: str, rounds: list[tuple[np.ndarray, np.ndarray]]) -> tf.data.Dataset:
    """From the record_ids [n] and views [n] of rounds to (Examples of the round, record_id, view, place), in order.

    The place is that of the record's own among the serialised Examples [n], which are not copied: `own_example` takes
    it, in whatever thread needs it.
    """
    read_piece, ends = _piece_reader(record_set, split), _shard_ends(record_set, split)
    by_place = [np.argsort(ids) for ids, _ in rounds]
    pieces = [_pieces(record_set, ends, ids[places]) for (ids, _), places in zip(rounds, by_place, strict=True)]
    longest = max(piece[:, 3].max(initial=1) for piece in pieces)

    def read_round(pieces: tf.Tensor, places: tf.Tensor, views: tf.Tensor) -> tuple[tf.Tensor, ...]:
        read = tf.data.Dataset.from_tensor_slices(pieces)
        # Whole pieces one after the other (block_length), while the next ones are being opened and read.
        read = read.interleave(read_piece, cycle_length=_READ_AHEAD, block_length=longest,
                               num_parallel_calls=_READ_AHEAD, deterministic=True)
        serialized, ids = read.batch(tf.size(places, tf.int64)).get_single_element()
        return serialized, tf.gather(ids, places), views, places

    def in_order(serialized: tf.Tensor, *ordered: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(ordered).map(lambda *one: (serialized, *one))

    # One source of everything, of which a service gives each worker some.
    dataset = tf.data.Dataset.from_tensor_slices((
        _ragged(pieces), _ragged([np.argsort(places) for places in by_place]), _ragged([views for _, views in rounds])))
    dataset = dataset.filter(lambda pieces, *_: tf.size(pieces) > 0)  # hosts may outnumber a last round's records
    dataset = dataset.map(read_round)
    return dataset.prefetch(1).flat_map(in_order)  # the next round is read while this one is consumed


def own_example(serialized: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """A record's own serialised Example, string [], of those that were read together."""
    return serialized[place]


def _piece_reader(record_set: RecordSet, split: str) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """From a row of _pieces to a dataset of (serialised Example, record_id)."""
    paths, lengths = tf.constant(record_set.shard_paths(split)), record_bytes(record_set, split)
    mean_bytes = int(lengths.mean()) if len(lengths) else 0

    def read_piece(piece: tf.Tensor) -> tf.data.Dataset:
        shard, offset, first, count = (piece[i] for i in range(4))  # tf.unstack crashes TensorFlow 2.21 here
        # Of long records a buffer is only one copy more; of a short piece it would read much that nobody wants.
        buffer_bytes = 0 if mean_bytes >= _LONG_BYTES else tf.minimum(count * mean_bytes, _BUFFER_BYTES)
        serialized = tfrecord.read_from(paths[shard], offset, buffer_bytes).take(count)
        # A file that was cut between two records since the set was opened ends without an error.
        serialized = serialized.apply(tf.data.experimental.assert_cardinality(count))
        return tf.data.Dataset.zip(serialized, tf.data.Dataset.range(first, first + count))

    return read_piece


def _shard_ends(record_set: RecordSet, split: str) -> np.ndarray:
    """The record_id after the last of each shard of a split: int64 [shards]."""
    return record_set.split_range(split).start + np.cumsum([shard.records for shard in record_set.split_shards(split)])


def _pieces(record_set: RecordSet, shard_ends: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where records lie: int64 [pieces, 4], a row for each run in a shard: its index, byte offset, first id, count."""
    shards = np.searchsorted(shard_ends, ids, side='right')
    starts = np.flatnonzero((np.diff(ids, prepend=-2) != 1) | (np.diff(shards, prepend=-1) != 0))
    return np.stack([shards[starts], record_set.offsets[ids[starts]], ids[starts], np.diff(starts, append=len(ids))],
                    axis=1)


def _ragged(rows: list[np.ndarray]) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_lengths(np.concatenate(rows), [len(row) for row in rows])


def _decode(dataset: tf.data.Dataset, storage: Storage, *, image_size: tuple[int, int], batch_size: int, views: Views,
            threads: int, view: int = 0) -> tf.data.Dataset:
    """From (serialised Example, record_id), of which `view` is taken, or from what read_rounds gives, to Batch."""
    def decode(serialized: tf.Tensor, record_id: tf.Tensor, view: tf.Tensor | int = view,
               place: tf.Tensor | None = None) -> Batch:
        if place is not None:
            serialized = own_example(serialized, place)
        stored, label = tfrecord.parse_example(serialized)
        box = augment.crop_box(views, view=view, record_id=record_id)
        image = images.decode_stored(stored, storage, *image_size, box)
        image = augment.augment(image, views, view=view, record_id=record_id)
        return Batch(image, label, tf.ones([], tf.float32), record_id)

    return dataset.map(decode, num_parallel_calls=threads, deterministic=True).batch(batch_size)
