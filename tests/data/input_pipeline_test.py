"""Every record once, in the order of order.sequence, with the pixels of images.decode, whatever reads it."""

import dataclasses
import os
import pathlib
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf

from boardrec.data import augment, images, input_pipeline, order, records
from boardrec.data.augment import Views

SIZE = (24, 20)


@pytest.fixture(scope='module')
def opened(record_set_path):
    """The shared record set, with blocks so short that each shard has several and most shards a shorter last one."""
    return with_blocks(records.open_record_set(record_set_path), 5)


@pytest.fixture(scope='module')
def source_pixels(opened, source_images):
    """What images.decode makes of each record's source file, uint8 [N, H, W, 3] in record_id order."""
    return np.stack([
        images.decode(tf.constant(images.normalise((source_images / source).read_bytes())), *SIZE).numpy()
        for source in opened.sources])


def with_blocks(record_set, block_records):
    return record_set._replace(manifest=dataclasses.replace(record_set.manifest, block_records=block_records))


def train(record_set, *, split='train', seed=0, epoch=0, shuffle_records=20, batch_size=16, pad_multiple=1):
    return input_pipeline.train_dataset(
        record_set, split, image_size=SIZE, batch_size=batch_size, seed=seed, epoch=epoch,
        shuffle_records=shuffle_records, pad_multiple=pad_multiple)


def evaluate(record_set, split='train', *, batch_size=16, pad_multiple=1):
    return input_pipeline.eval_dataset(
        record_set, split, image_size=SIZE, batch_size=batch_size, pad_multiple=pad_multiple)


def collected(dataset):
    """Batch of everything, and the sizes of the batches."""
    batches = [input_pipeline.Batch(*batch) for batch in dataset.as_numpy_iterator()]
    return input_pipeline.Batch(*(np.concatenate(column) for column in zip(*batches, strict=True))), [
        len(batch.labels) for batch in batches]


def expected_ids(record_set, *, seed, epoch, window_blocks, split='train'):
    cut = order.blocks([shard.records for shard in record_set.split_shards(split)], record_set.manifest.block_records)
    return record_set.split_range(split).start + order.sequence(
        cut, seed=seed, epoch=epoch, window_blocks=window_blocks)


# Blocks of 5 make 20 of 94 records; windows of 1, 4, 7 and all of them; a block of 32 is longer than two of the shards.
@pytest.mark.parametrize(('block_records', 'shuffle_records', 'window_blocks', 'seed', 'epoch'), [
    (5, 1, 1, 0, 0), (5, 5, 1, 0, 1), (5, 24, 4, 1, 0), (5, 35, 7, 2**32 - 1, 57), (5, 10_000, 2000, 2, 3),
    (1, 3, 3, 0, 0), (32, 64, 2, 0, 0), (32, 31, 1, 4, 0)])
def test_training_reads_each_record_once_in_the_order_of_the_sequence(
        opened, source_pixels, block_records, shuffle_records, window_blocks, seed, epoch):
    record_set = with_blocks(opened, block_records)
    got, sizes = collected(train(record_set, seed=seed, epoch=epoch, shuffle_records=shuffle_records))
    expected = expected_ids(record_set, seed=seed, epoch=epoch, window_blocks=window_blocks)
    np.testing.assert_array_equal(got.record_ids, expected)
    np.testing.assert_array_equal(np.sort(got.record_ids), record_set.split_range('train'))
    np.testing.assert_array_equal(got.labels, record_set.labels[expected])
    np.testing.assert_array_equal(got.inputs, source_pixels[expected])
    np.testing.assert_array_equal(got.weights, 1)
    assert sizes == [16] * 5 + [14]


@pytest.mark.parametrize('threads', [1, 2, 8])
def test_the_number_of_threads_changes_nothing(opened, source_pixels, threads):
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    expected = expected_ids(opened, seed=3, epoch=2, window_blocks=4)
    for _ in range(2):
        got, _ = collected(train(opened, seed=3, epoch=2).with_options(options))
        np.testing.assert_array_equal(got.record_ids, expected)
        np.testing.assert_array_equal(got.inputs, source_pixels[expected])


def test_a_disk_that_is_slow_at_times_changes_nothing(opened, source_pixels, monkeypatch):
    """Every other block comes late, so that the next one is there first."""
    read_from = records.read_from

    def wait(offset):
        time.sleep(0.02 * (offset % 2))
        return True

    def slow(path, offset):
        late = tf.data.Dataset.from_tensors(offset).map(lambda offset: tf.numpy_function(wait, [offset], tf.bool))
        return late.flat_map(lambda _: read_from(path, offset))

    monkeypatch.setattr(records, 'read_from', slow)
    got, _ = collected(train(opened, seed=3, epoch=2))
    expected = expected_ids(opened, seed=3, epoch=2, window_blocks=4)
    np.testing.assert_array_equal(got.record_ids, expected)
    np.testing.assert_array_equal(got.inputs, source_pixels[expected])


@pytest.mark.parametrize('dataset', [train, evaluate])
def test_an_image_that_takes_long_to_decode_keeps_its_place(opened, source_pixels, monkeypatch, dataset):
    decode = images.decode

    def wait(size):
        time.sleep(0.01 * (size % 2))
        return True

    def slow(encoded, height, width):
        with tf.control_dependencies([tf.numpy_function(wait, [tf.strings.length(encoded)], tf.bool)]):
            return decode(tf.identity(encoded), height, width)

    ids = collected(dataset(opened))[0].record_ids
    monkeypatch.setattr(images, 'decode', slow)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(4))
    options = tf.data.Options()
    options.experimental_optimization.map_and_batch_fusion = False  # fused, they keep the order whatever they are told
    got, _ = collected(dataset(opened).with_options(options))
    np.testing.assert_array_equal(got.record_ids, ids)
    np.testing.assert_array_equal(got.inputs, source_pixels[ids])


@pytest.mark.parametrize('split', ['val', 'test'])
def test_any_split_can_be_trained_on(opened, source_pixels, split):
    expected = expected_ids(opened, seed=0, epoch=0, window_blocks=4, split=split)
    got, _ = collected(train(opened, split=split))
    np.testing.assert_array_equal(got.record_ids, expected)
    np.testing.assert_array_equal(got.inputs, source_pixels[expected])
    np.testing.assert_array_equal(got.labels, opened.labels[expected])


def test_the_same_dataset_gives_the_same_epoch_again(opened):
    dataset = train(opened, seed=1, epoch=1)
    first, second = collected(dataset)[0], collected(dataset)[0]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_waits_for_the_tuner_when_an_epoch_ends(opened):
    """See input_pipeline.prefetch."""
    for dataset in (train(opened), evaluate(opened)):
        assert dataset.options().autotune.enabled is False


def test_a_batch_has_the_types_that_a_step_takes(opened):
    for dataset in (train(opened), evaluate(opened)):
        assert dataset.element_spec == input_pipeline.Batch(
            tf.TensorSpec([None, *SIZE, 3], tf.uint8), tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int64))
        assert isinstance(next(iter(dataset)), input_pipeline.Batch)


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_evaluation_reads_each_record_once_in_the_order_of_record_ids(opened, source_pixels, split):
    got, sizes = collected(evaluate(opened, split, batch_size=7))
    ids = np.array(opened.split_range(split))
    np.testing.assert_array_equal(got.record_ids, ids)
    np.testing.assert_array_equal(got.labels, opened.labels[ids])
    np.testing.assert_array_equal(got.inputs, source_pixels[ids])
    np.testing.assert_array_equal(got.weights, 1)
    assert sizes[:-1] == [7] * (len(sizes) - 1)


# Train has 94 records, val 11.
@pytest.mark.parametrize(('dataset', 'split', 'batch_size', 'pad_multiple', 'sizes'), [
    (train, 'train', 16, 16, [16] * 6),
    (train, 'train', 16, 4, [16] * 6),
    (train, 'train', 40, 4, [40, 40, 16]),
    (train, 'train', 94, 2, [94]),
    (train, 'train', 200, 200, [200]),
    (evaluate, 'val', 4, 4, [4, 4, 4]),
    (evaluate, 'val', 4, 2, [4, 4, 4]),
    (evaluate, 'val', 8, 8, [8, 8]),
    (evaluate, 'val', 10, 4, [12, 4]),
    (evaluate, 'val', 11, 11, [11]),
    (evaluate, 'val', 4, 1, [4, 4, 3]),
])
def test_padding_has_weight_0_and_no_id_and_fills_a_multiple(
        opened, source_pixels, dataset, split, batch_size, pad_multiple, sizes):
    got, got_sizes = collected(dataset(opened, batch_size=batch_size, pad_multiple=pad_multiple,
                                       **({} if dataset is train else {'split': split})))
    assert got_sizes == sizes
    real = got.record_ids >= 0
    np.testing.assert_array_equal(got.weights, real.astype(np.float32))
    np.testing.assert_array_equal(got.record_ids[~real], -1)
    np.testing.assert_array_equal(got.inputs[~real], 0)
    np.testing.assert_array_equal(got.labels[~real], 0)
    np.testing.assert_array_equal(np.sort(got.record_ids[real]), opened.split_range(split))
    np.testing.assert_array_equal(got.inputs[real], source_pixels[got.record_ids[real]])
    np.testing.assert_array_equal(got.labels[real], opened.labels[got.record_ids[real]])


def test_pad_takes_a_batch_of_features_of_any_rank_and_type():
    batch = input_pipeline.Batch(
        tf.ones([3, 2, 2, 5], tf.bfloat16), tf.ones([3], tf.int32), tf.ones([3]), tf.range(3, dtype=tf.int64))
    padded = input_pipeline.pad(batch, 4)
    assert (padded.inputs.shape, padded.inputs.dtype) == ((4, 2, 2, 5), tf.bfloat16)
    assert padded.record_ids.numpy().tolist() == [0, 1, 2, -1]
    assert padded.weights.numpy().tolist() == [1, 1, 1, 0]
    assert not np.any(padded.inputs[3].numpy())
    same = input_pipeline.pad(batch, 3)
    assert same.record_ids.numpy().tolist() == [0, 1, 2]


def test_an_empty_split_gives_no_batch(opened, tmp_path):
    manifest = opened.manifest
    shard, _ = records.write_shard(tmp_path / records.shard_file('val', 0, 1), [], manifest.class_names)
    empty = opened._replace(folder=tmp_path, manifest=dataclasses.replace(
        manifest, splits={'val': records.Split(0, 1, shard.class_counts)}, shards=[shard]))
    assert list(evaluate(empty, 'val')) == []


@pytest.mark.parametrize('dataset', [train, evaluate])
@pytest.mark.parametrize('place', [0, 12 + 200, -1], ids=['length', 'data', 'checksum'])
def test_a_damaged_record_raises_and_is_never_skipped(record_set_path, tmp_path, dataset, place):
    folder = pathlib.Path(shutil.copytree(record_set_path, tmp_path / 'records'))
    rows = list(records.read_index(folder))
    row = rows[30] if place >= 0 else rows[31]
    assert rows[30].shard == rows[31].shard
    content = bytearray((folder / row.shard).read_bytes())
    content[row.offset + place] ^= 1
    (folder / row.shard).write_bytes(content)
    record_set = with_blocks(records.open_record_set(folder), 5)
    with pytest.raises(tf.errors.DataLossError):
        collected(dataset(record_set))


@pytest.mark.parametrize('dataset', [train, evaluate])
def test_a_record_whose_image_does_not_decode_raises(tmp_path, dataset, opened):
    encoded = [images.PNG_MAGIC if i == 3 else records.read_image(opened, i) for i in range(6)]
    shard, offsets = records.write_shard(
        tmp_path / records.shard_file('train', 0, 1), [records.Example(data, 0, '', '') for data in encoded],
        opened.manifest.class_names)
    damaged = opened._replace(
        folder=tmp_path, offsets=np.array(offsets, np.int64), manifest=dataclasses.replace(
            opened.manifest, splits={'train': records.Split(6, 1, shard.class_counts)}, shards=[shard]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        collected(dataset(damaged))


@pytest.mark.parametrize('dataset', [train, evaluate])
def test_a_shard_cut_after_opening_raises(record_set_path, tmp_path, dataset):
    """TensorFlow ends a file that was cut between two records without a word."""
    folder = pathlib.Path(shutil.copytree(record_set_path, tmp_path / 'records'))
    record_set = with_blocks(records.open_record_set(folder), 5)
    rows = [row for row in records.read_index(folder) if row.split == 'train']
    path = folder / rows[-1].shard
    with open(path, 'r+b') as file:
        file.truncate(rows[-1].offset)
    with pytest.raises(tf.errors.OpError):
        collected(dataset(record_set))


MIRRORED = Views(3, True, True, 5)


def view_of(pixels, record_id, view):
    return augment.augment(tf.constant(pixels), MIRRORED, view=tf.constant(view, tf.int64),
                           record_id=tf.constant(record_id, tf.int64)).numpy()


# Train has 94 records in several shards: pieces of one shard, over their borders, all, and in another order.
@pytest.mark.parametrize(('split', 'pieces'), [
    ('train', [(0, 94)]), ('train', [(3, 4)]), ('train', [(5, 60)]), ('train', [(90, 94), (0, 2)]),
    ('train', [(0, 10), (10, 20), (40, 41)]), ('val', [(0, 11)]), ('test', [(2, 9)])])
def test_some_records_are_read_in_the_order_that_is_asked_for(opened, source_pixels, split, pieces):
    start = opened.split_range(split).start
    ranges = [range(start + first, start + last) for first, last in pieces]
    got, sizes = collected(input_pipeline.view_dataset(opened, split, ranges, image_size=SIZE, batch_size=7))
    ids = np.concatenate(ranges)
    np.testing.assert_array_equal(got.record_ids, ids)
    np.testing.assert_array_equal(got.inputs, source_pixels[ids])
    np.testing.assert_array_equal(got.labels, opened.labels[ids])
    assert sizes[:-1] == [7] * (len(sizes) - 1)


@pytest.mark.parametrize('view', [0, 1, 2])
def test_one_view_of_each_record(opened, source_pixels, view):
    ids = opened.split_range('train')[20:50]
    got, _ = collected(input_pipeline.view_dataset(
        opened, 'train', [ids], image_size=SIZE, batch_size=16, views=MIRRORED, view=view, pad_multiple=16))
    np.testing.assert_array_equal(got.record_ids, [*ids, -1, -1])
    for pixels, number in zip(got.inputs, ids, strict=False):
        np.testing.assert_array_equal(pixels, view_of(source_pixels[number], number, view))


def test_an_epoch_takes_of_each_record_the_view_whose_turn_it_is(opened, source_pixels):
    for epoch in (0, 4):
        got, _ = collected(input_pipeline.train_dataset(
            opened, 'train', image_size=SIZE, batch_size=16, seed=2, epoch=epoch, shuffle_records=20, views=MIRRORED))
        np.testing.assert_array_equal(got.record_ids, expected_ids(opened, seed=2, epoch=epoch, window_blocks=4))
        chosen = order.views(got.record_ids, seed=MIRRORED.seed, epoch=epoch, count=3)
        assert len(set(chosen)) == 3
        for pixels, number, view in zip(got.inputs, got.record_ids, chosen, strict=True):
            np.testing.assert_array_equal(pixels, view_of(source_pixels[number], number, view))


def test_pad_takes_several_inputs():
    batch = input_pipeline.Batch((tf.ones([3, 2], tf.bfloat16), tf.ones([3, 1, 4])), tf.ones([3], tf.int32),
                                 tf.ones([3]), tf.range(3, dtype=tf.int64))
    padded = input_pipeline.pad(batch, 2)
    assert [(one.shape, one.dtype) for one in padded.inputs] == [((4, 2), tf.bfloat16), ((4, 1, 4), tf.float32)]
    assert not np.any(padded.inputs[1][3]) and padded.record_ids.numpy().tolist() == [0, 1, 2, -1]
