"""Every record once, in the order of order.sequence, with the pixels of images.decode, whatever reads it."""

import dataclasses
import pathlib
import shutil
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import UserError
from boardrec.data import augment, images, input_pipeline, order, records, tfrecord
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


def train(record_set, *, split='train', shuffle_records=20, batch_size=16, **settings):
    return input_pipeline.train_dataset(
        record_set, split, image_size=SIZE, batch_size=batch_size, shuffle_records=shuffle_records, **settings)


def evaluate(record_set, split='train', *, batch_size=16, pad_multiple=1):
    return input_pipeline.eval_dataset(
        record_set, split, image_size=SIZE, batch_size=batch_size, pad_multiple=pad_multiple)


def collected(dataset):
    """Batch of everything, and the sizes of the batches."""
    batches = [input_pipeline.Batch(*batch) for batch in dataset.as_numpy_iterator()]
    return input_pipeline.Batch(*(np.concatenate(column) for column in zip(*batches, strict=True))), [
        len(batch.labels) for batch in batches]


def expected_ids(record_set, *, seed=0, epoch=0, shuffle_records=20, split='train'):
    cut = order.blocks([shard.records for shard in record_set.split_shards(split)], record_set.manifest.block_records)
    return record_set.split_range(split).start + order.sequence(
        cut, seed=seed, epoch=epoch, window_records=shuffle_records)


# Of 94 records, blocks of 5 and 32 make too few for lanes, those of 1 make 94.
@pytest.mark.parametrize(('block_records', 'shuffle_records', 'seed', 'epoch'), [
    (5, 1, 0, 0), (5, 24, 0, 1), (5, 50, 1, 0), (5, 93, 2**32 - 1, 57), (5, 94, 2, 3), (5, 10_000, 2, 3),
    (1, 3, 0, 0), (1, 60, 0, 0), (2, 60, 5, 1), (32, 64, 0, 0), (32, 31, 4, 0)])
def test_training_reads_each_record_once_in_the_order_of_the_sequence(
        opened, source_pixels, block_records, shuffle_records, seed, epoch):
    record_set = with_blocks(opened, block_records)
    got, sizes = collected(train(record_set, seed=seed, epoch=epoch, shuffle_records=shuffle_records))
    expected = expected_ids(record_set, seed=seed, epoch=epoch, shuffle_records=shuffle_records)
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
    expected = expected_ids(opened, seed=3, epoch=2)
    for _ in range(2):
        got, _ = collected(train(opened, seed=3, epoch=2).with_options(options))
        np.testing.assert_array_equal(got.record_ids, expected)
        np.testing.assert_array_equal(got.inputs, source_pixels[expected])


def test_a_disk_that_is_slow_at_times_changes_nothing(opened, source_pixels, monkeypatch):
    """Every other block comes late, so that the next one is there first."""
    read_from = tfrecord.read_from

    def wait(offset):
        time.sleep(0.02 * (offset % 2))
        return True

    def slow(path, offset, buffer_bytes):
        late = tf.data.Dataset.from_tensors(offset).map(lambda offset: tf.numpy_function(wait, [offset], tf.bool))
        return late.flat_map(lambda _: read_from(path, offset, buffer_bytes))

    monkeypatch.setattr(tfrecord, 'read_from', slow)
    got, _ = collected(train(opened, seed=3, epoch=2))
    expected = expected_ids(opened, seed=3, epoch=2)
    np.testing.assert_array_equal(got.record_ids, expected)
    np.testing.assert_array_equal(got.inputs, source_pixels[expected])


@pytest.mark.parametrize('dataset', [train, evaluate])
def test_an_image_that_takes_long_to_decode_keeps_its_place(opened, source_pixels, monkeypatch, dataset):
    decode = images.decode

    def wait(size):
        time.sleep(0.01 * (size % 2))
        return True

    def slow(encoded, height, width, box=None):
        with tf.control_dependencies([tf.numpy_function(wait, [tf.strings.length(encoded)], tf.bool)]):
            return decode(tf.identity(encoded), height, width, box)

    ids = collected(dataset(opened))[0].record_ids
    monkeypatch.setattr(images, 'decode', slow)
    monkeypatch.setattr(input_pipeline, 'THREADS', 8)
    options = tf.data.Options()
    options.experimental_optimization.map_and_batch_fusion = False  # fused, they keep the order whatever they are told
    got, _ = collected(dataset(opened).with_options(options))
    np.testing.assert_array_equal(got.record_ids, ids)
    np.testing.assert_array_equal(got.inputs, source_pixels[ids])


@pytest.fixture
def in_short_rounds(opened, monkeypatch):
    """A function from a number of records to the record set in blocks of so many; 1 and 3 make 24 lanes of it.

    No more than one of the order's rounds is read together, or all 94 records would be.
    """
    monkeypatch.setattr(input_pipeline, '_ROUND_RECORDS', 1)
    return lambda block_records: with_blocks(opened, block_records)


@pytest.mark.parametrize('block_records', [5, 1])
@pytest.mark.parametrize('batch_size', [16, 94])
@pytest.mark.parametrize('first_step', [0, 1, 2, 5, 6])
def test_an_epoch_can_begin_at_any_step(in_short_rounds, first_step, batch_size, block_records):
    """94 records are 6 batches of 16."""
    record_set = in_short_rounds(block_records)
    settings = {'seed': 2, 'epoch': 1, 'batch_size': batch_size, 'pad_multiple': 4}
    whole = list(train(record_set, **settings).as_numpy_iterator())
    rest = list(train(record_set, first_step=first_step, **settings).as_numpy_iterator())
    assert len(rest) == max(0, len(whole) - first_step)
    for one, other in zip(whole[first_step:], rest, strict=True):
        for column, its in zip(one, other, strict=True):
            np.testing.assert_array_equal(column, its)


def with_nothing_but(record_set, ids, folder):
    """A copy of a record set whose train shards hold zeros where the records are that are not in `ids`."""
    folder = pathlib.Path(shutil.copytree(record_set.folder, folder))
    rows = list(records.read_index(folder))
    for shard in record_set.split_shards('train'):
        content = (folder / shard.file).read_bytes()
        kept = bytearray(len(content))
        own = [row for row in rows if row.shard == shard.file]
        for row, end in zip(own, [*(row.offset for row in own[1:]), len(content)], strict=True):
            if row.record_id in ids:
                kept[row.offset:end] = content[row.offset:end]
        (folder / shard.file).write_bytes(kept)
    return record_set._replace(folder=folder)


@pytest.mark.parametrize('block_records', [5, 1])
def test_steps_that_are_left_out_are_not_read(in_short_rounds, tmp_path, block_records):
    """Of the shards, only the parts that hold the rest of the records need to exist."""
    record_set = in_short_rounds(block_records)
    ids = expected_ids(record_set)[4 * 16:]
    rest = with_nothing_but(record_set, ids, tmp_path / 'records')
    got, _ = collected(train(rest, first_step=4))
    np.testing.assert_array_equal(got.record_ids, ids)
    with pytest.raises(tf.errors.DataLossError):
        collected(train(rest))


# 94 records in batches of 8 leave 6 for the last, of which two of 8 hosts have none.
@pytest.mark.parametrize(('hosts', 'batch_size', 'shuffle_records', 'block_records'), [
    (1, 24, 20, 5), (2, 24, 20, 5), (3, 24, 50, 5), (8, 8, 200, 5), (2, 24, 20, 1), (3, 24, 50, 1), (8, 8, 80, 3)])
def test_hosts_share_every_batch_of_one_order(
        in_short_rounds, source_pixels, hosts, batch_size, shuffle_records, block_records):
    opened = in_short_rounds(block_records)
    settings = {'seed': 4, 'epoch': 2, 'batch_size': batch_size, 'shuffle_records': shuffle_records,
                'pad_multiple': batch_size}
    whole = [batch.record_ids for batch in train(opened, **settings).as_numpy_iterator()]
    shares = [list(train(opened, host=host, hosts=hosts, **settings).as_numpy_iterator()) for host in range(hosts)]
    for parts, ids in zip(zip(*shares, strict=True), whole, strict=True):
        assert {part.inputs.shape for part in parts} == {(batch_size // hosts, *SIZE, 3)}
        np.testing.assert_array_equal(np.sort(np.concatenate([part.record_ids for part in parts])), np.sort(ids))
        for part in parts:
            real = part.record_ids >= 0
            np.testing.assert_array_equal(part.weights, real)
            np.testing.assert_array_equal(part.inputs[real], source_pixels[part.record_ids[real]])
            assert not np.any(part.inputs[~real])


@pytest.mark.parametrize('hosts', [2, 3, 8])
def test_a_host_reads_blocks_of_its_own(hosts):
    """As many blocks as there are, and one more a host and lane, where the lanes' borders cut one."""
    cut = order.blocks([1000, 999, 1, 312, 5000], 32)
    got = order.sequence(cut, seed=0, epoch=0, window_records=2048)
    block = np.searchsorted(cut.first, got, side='right') - 1
    touched = [set(block[host::hosts]) for host in range(hosts)]
    assert sum(map(len, touched)) <= len(cut.first) + order.LANES


@pytest.mark.parametrize('hosts', [2, 3])
def test_the_records_of_other_hosts_are_not_read(in_short_rounds, tmp_path, hosts):
    """Of the shards, a host needs only the parts that hold its own records."""
    record_set = in_short_rounds(3)
    ids = expected_ids(record_set, shuffle_records=80)[::hosts]
    assert np.mean(np.diff(np.sort(ids)) == 1) > 0.5, 'blocks of its own'
    own = with_nothing_but(record_set, ids, tmp_path / 'records')
    settings = {'hosts': hosts, 'batch_size': 24, 'shuffle_records': 80}
    got, _ = collected(train(own, host=0, **settings))
    np.testing.assert_array_equal(got.record_ids[got.record_ids >= 0], ids)
    for host in range(1, hosts):
        with pytest.raises(tf.errors.DataLossError):
            collected(train(own, host=host, **settings))


@pytest.mark.parametrize(('settings', 'message'), [
    ({'hosts': 3}, 'batch_size=16 a multiple of hosts'),
    ({'hosts': 2, 'host': 2}, 'host=2 must be one of hosts=2'),
    ({'host': -1}, 'host=-1 must be one of hosts=1'),
    ({'hosts': 0}, 'must be one of hosts=0'),
    ({'first_step': -1}, 'first_step=-1 and epoch=0 must be at least 0'),
    ({'epoch': -1}, 'first_step=0 and epoch=-1 must be at least 0'),
    ({'hosts': 2, 'service': 'grpc://localhost:1'}, "service='grpc://localhost:1' serves one host, from step 0"),
    ({'first_step': 1, 'service': 'grpc://localhost:1'}, "service='grpc://localhost:1' serves one host, from step 0"),
])
def test_settings_that_no_host_could_follow_are_refused(opened, settings, message):
    with pytest.raises(ValueError, match=message):
        train(opened, **settings)


@pytest.mark.parametrize(('block_records', 'shuffle_records'), [(5, 200), (1, 50)])
@pytest.mark.parametrize('ram_mb', [1, 2, 64])
def test_the_order_does_not_depend_on_the_memory(
        opened, source_pixels, monkeypatch, ram_mb, block_records, shuffle_records):
    lengths = []
    read_rounds = input_pipeline.read_rounds
    monkeypatch.setattr(input_pipeline, 'read_rounds', lambda record_set, split, rounds: lengths.extend(
        len(ids) for ids, _ in rounds) or read_rounds(record_set, split, rounds))
    monkeypatch.setattr(input_pipeline, 'record_bytes', lambda record_set, split: np.full(94, 20_000))
    record_set = with_blocks(opened, block_records)
    expected = expected_ids(record_set, seed=3, shuffle_records=shuffle_records)
    for hosts in (1, 2):
        lengths.clear()
        given = {'seed': 3, 'shuffle_records': shuffle_records, 'ram_mb': ram_mb, 'hosts': hosts}
        got, _ = collected(train(record_set, **given))
        own = got.record_ids[got.record_ids >= 0]
        np.testing.assert_array_equal(own, expected[::hosts])
        np.testing.assert_array_equal(got.inputs[:len(own)], source_pixels[own])
        of_batches = 5 * 16 // hosts * SIZE[0] * SIZE[1] * 3
        assert max(lengths) == min(94 // hosts, (ram_mb * 2**20 - of_batches) // 4 // 20_000)
        assert sum(lengths) == 94 // hosts


def test_the_length_of_each_record_is_known(opened):
    for split in opened.manifest.splits:
        lengths, paths = input_pipeline.record_bytes(opened, split), opened.shard_paths(split)
        serialized = [len(one) for path in paths for one in tf.data.TFRecordDataset(path).as_numpy_iterator()]
        np.testing.assert_array_equal(lengths, np.array(serialized) + 16)


@pytest.mark.parametrize(('sizes', 'budget', 'expected'), [
    ([5, 5, 5, 5], 5, 1), ([5, 5, 5, 5], 14, 2), ([5, 5, 5, 5], 15, 3), ([5, 5, 5, 5], 100, 4),
    ([1, 1, 9, 1, 1], 10, 2), ([1, 1, 9, 1, 1], 11, 3), ([9, 1, 1, 1], 11, 3),
    ([1, 1, 1, 9], 9, 1), ([7], 7, 1), ([], 7, 1)], ids=str)
def test_as_many_records_are_read_together_as_fit_wherever_they_begin(sizes, budget, expected):
    assert input_pipeline.records_that_fit(np.array(sizes, np.int64), budget) == expected


@pytest.mark.parametrize('mean_bytes', [1, 1 << 30])
def test_records_are_read_alike_with_a_buffer_and_without(opened, source_pixels, monkeypatch, mean_bytes):
    monkeypatch.setattr(input_pipeline, '_LONG_BYTES', mean_bytes)
    got, _ = collected(train(opened, seed=3))
    np.testing.assert_array_equal(got.record_ids, expected_ids(opened, seed=3))
    np.testing.assert_array_equal(got.inputs, source_pixels[got.record_ids])
    got, _ = collected(evaluate(opened))
    np.testing.assert_array_equal(got.inputs, source_pixels[got.record_ids])


def test_too_little_memory_for_the_batches_is_refused(opened):
    with pytest.raises(UserError, match=r'^--pipeline_ram_mb=1: 5 batches of 200 images of 24x20 pixels .* need 2 MiB'):
        train(opened, batch_size=200, ram_mb=1)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_any_split_can_be_trained_on(opened, source_pixels, split):
    expected = expected_ids(opened, seed=0, epoch=0, split=split)
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
    """See input_pipeline.finish."""
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
    shard, _ = tfrecord.write_shard(tmp_path / records.shard_file('val', 0, 1), [], manifest.class_names)
    empty = opened._replace(folder=tmp_path, manifest=dataclasses.replace(
        manifest, splits={'val': records.Split(0, 1, shard.class_counts)}, shards=[shard]))
    assert list(evaluate(empty, 'val')) == []
    assert list(train(empty, split='val')) == []


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
    encoded = [images.PNG_MAGIC if i == 3 else tfrecord.read_image(opened, i) for i in range(6)]
    shard, offsets = tfrecord.write_shard(
        tmp_path / records.shard_file('train', 0, 1), [tfrecord.Example(data, 0, '', '') for data in encoded],
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


MIRRORED = Views(count=3, seed=5, flip_horizontal=True, flip_vertical=True)


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
        np.testing.assert_array_equal(got.record_ids, expected_ids(opened, seed=2, epoch=epoch))
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


FRESH = Views(seed=9, flip_horizontal=True, crop_area=0.5, brightness=0.2)


def test_views_without_end_are_cropped_from_the_photograph_and_new_each_epoch(opened):
    seen = []
    for epoch in (0, 1):
        got, _ = collected(train(opened, epoch=epoch, views=FRESH))
        for pixels, record_id in zip(got.inputs[:10], got.record_ids[:10], strict=True):
            which = {'view': tf.constant(epoch, tf.int64), 'record_id': tf.constant(record_id)}
            box = augment.crop_box(FRESH, **which)
            cropped = images.decode(tf.constant(tfrecord.read_image(opened, record_id)), *SIZE, box)
            np.testing.assert_array_equal(pixels, augment.augment(cropped, FRESH, **which))
        seen.append(got.inputs[np.argsort(got.record_ids)])
    assert np.mean(np.any(seen[0] != seen[1], axis=(1, 2, 3))) > 0.9


def test_a_service_gives_each_record_once_an_epoch(opened, source_pixels, data_service):
    for epoch in (0, 1):
        got, sizes = collected(train(opened, epoch=epoch, service=data_service))
        np.testing.assert_array_equal(np.sort(got.record_ids), opened.split_range('train'))
        np.testing.assert_array_equal(got.inputs, source_pixels[got.record_ids])
        np.testing.assert_array_equal(got.labels, opened.labels[got.record_ids])
        assert sizes == [16] * 5 + [14]


def test_a_model_of_keras_is_fitted_on_a_folder_of_records(record_set_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.GlobalAveragePooling2D(),
                              keras.layers.Dense(2, activation='softmax')])
    model.compile('adam', 'sparse_categorical_crossentropy', weighted_metrics=['accuracy'])
    batches = [make(record_set_path, split, image_size=SIZE).map(input_pipeline.Batch.for_keras) for make, split in (
        (input_pipeline.train_dataset, 'train'), (input_pipeline.eval_dataset, 'val'))]
    history = model.fit(batches[0], validation_data=batches[1], epochs=2, shuffle=False, verbose=0).history
    assert history['val_loss'][1] < history['val_loss'][0]


@pytest.fixture(scope='module')
def raw_set(source_images, convert_here, tmp_path_factory):
    """The shared images as raw pixels of SIZE."""
    folder = tmp_path_factory.mktemp('raw') / 'records'
    convert_here(source_images, folder, encoding='raw', image_size='x'.join(map(str, SIZE)), resize='squash')
    return with_blocks(records.open_record_set(folder), 5)


@pytest.mark.parametrize('dataset', [train, evaluate])
def test_raw_records_are_read_as_the_pixels_that_were_stored(raw_set, source_images, dataset):
    got, _ = collected(dataset(raw_set))
    np.testing.assert_array_equal(np.sort(got.record_ids), raw_set.split_range('train'))
    for pixels, record_id in zip(got.inputs, got.record_ids, strict=True):
        data = (source_images / raw_set.sources[record_id]).read_bytes()
        np.testing.assert_array_equal(pixels, images.prepare(data, raw_set.manifest.storage).image)
    np.testing.assert_array_equal(got.labels, raw_set.labels[got.record_ids])


def test_raw_records_take_the_order_and_views_of_any_others(raw_set, opened):
    views = Views(count=0, flip_horizontal=True, crop_area=0.5)
    settings = {'image_size': (16, 18), 'batch_size': 16, 'shuffle_records': 20, 'seed': 1, 'views': views}
    raw, _ = collected(input_pipeline.train_dataset(raw_set, 'train', **settings))
    kept, _ = collected(input_pipeline.train_dataset(opened, 'train', **settings))
    np.testing.assert_array_equal(raw.record_ids, kept.record_ids)
    difference = np.abs(raw.inputs.astype(int) - kept.inputs).mean((1, 2, 3))
    others = np.abs(raw.inputs.astype(int) - kept.inputs[::-1]).mean((1, 2, 3))
    assert difference.mean() < 0.5 * others.mean()


@pytest.mark.parametrize('make', [input_pipeline.train_dataset, input_pipeline.eval_dataset])
def test_stored_images_are_not_enlarged(raw_set, make):
    with pytest.raises(UserError, match='were resized to 24x20 .* --image_size=48x40 --resize=squash --encoding=raw'):
        make(raw_set, 'train', image_size=(48, 40))
