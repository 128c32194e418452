"""Shards and what TFDS makes of them: what is written is read, what is damaged or did not arrive is named."""

import errno
import os
import subprocess

import numpy as np
import pytest
from record_sets import CLASSES, flip, make_examples, ODD_NAMES, write_set
import tensorflow as tf
import tensorflow_datasets as tfds

from boardrec.data import files, images, records, tfrecord

FRAMING = 12  # bytes before the data of a record: length and its checksum


def test_read_image_gives_each_records_own_bytes(record_set, source_images):
    kept = 0
    for record_id in (0, 1, 30, len(record_set.sources) // 2, len(record_set.sources) - 1):
        data = (source_images / record_set.sources[record_id]).read_bytes()
        assert tfrecord.read_image(record_set, record_id) == images.normalise(data)
        kept += images.normalise(data) == data
    assert kept == 5, 'the generated images need no change'


@pytest.mark.parametrize('record_id', [-1, 120, 10**9])
def test_a_record_that_is_not_there_is_told(record_set, record_id):
    with pytest.raises(ValueError, match=rf'record {record_id}: the record set holds 120'):
        tfrecord.read_image(record_set, record_id)


@pytest.mark.parametrize('place', [0, 9, FRAMING, FRAMING + 500, -1], ids=[
    'length', "length's checksum", 'data', 'later data', "data's checksum"])
def test_a_flipped_bit_is_told_with_the_record_and_the_shard(copy, place):
    """A checksum covers every byte."""
    row, following = list(records.read_index(copy))[30:32]
    assert row.shard == following.shard
    flip(copy / row.shard, (row if place >= 0 else following).offset + place)
    record_set = records.open_record_set(copy)
    with pytest.raises(ValueError, match=rf'record 30 in {row.shard} is damaged'):
        tfrecord.read_image(record_set, 30)
    assert tfrecord.read_image(record_set, 31)


def test_a_shard_that_was_cut_after_opening_is_told(copy):
    record_set = records.open_record_set(copy)
    row = list(records.read_index(copy))[30]
    os.truncate(copy / row.shard, row.offset)
    with pytest.raises(ValueError, match='record 30'):
        tfrecord.read_image(record_set, 30)


def test_a_shard_may_be_empty(tmp_path):
    shard, offsets = tfrecord.write_shard(tmp_path / 'empty', [], CLASSES)
    assert (shard.records, shard.bytes, offsets) == (0, 0, [])
    assert shard.class_counts == {'negative': 0, 'positive': 0}
    examples = write_set(tmp_path, ODD_NAMES[:2], shards=4)
    record_set = records.open_record_set(tmp_path)
    assert [shard.records for shard in record_set.manifest.shards] == [1, 1, 0, 0]
    assert [tfrecord.read_image(record_set, i) for i in range(2)] == [example.image for example in examples]
    assert tfds.builder_from_directory(tmp_path).info.splits['train'].num_examples == 2


def test_parse_example_reads_image_and_label_inside_a_graph(tmp_path):
    examples = write_set(tmp_path, ODD_NAMES, shards=1)
    paths = records.open_record_set(tmp_path).shard_paths('train')
    dataset = tf.data.TFRecordDataset(paths).map(tfrecord.parse_example)
    assert dataset.element_spec == (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32))
    assert list(dataset.as_numpy_iterator()) == [(example.image, example.label) for example in examples]


def test_reading_begins_at_any_records_offset(record_set):
    path = record_set.shard_paths('train')[1]
    rows = [row for row in records.read_index(record_set.folder) if row.shard == os.path.basename(path)]
    whole = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    for i in (0, 1, len(rows) - 1):
        dataset = tf.data.Dataset.from_tensors(rows[i].offset).flat_map(lambda offset: tfrecord.read_from(path, offset))
        assert list(dataset.as_numpy_iterator()) == whole[i:]


def test_an_exception_from_the_examples_leaves_no_shard(tmp_path):
    def examples():
        yield from make_examples(ODD_NAMES)
        raise KeyError('a bug')

    with pytest.raises(KeyError):
        tfrecord.write_shard(tmp_path / 'shard', examples(), CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_loses_bytes_without_a_word_is_found_out(tmp_path, monkeypatch):
    class Lossy(tf.io.TFRecordWriter):
        def write(self, record):
            if b'image 3' not in record:
                super().write(record)

    monkeypatch.setattr(tf.io, 'TFRecordWriter', Lossy)
    with pytest.raises(OSError, match='not all bytes were written') as caught:
        tfrecord.write_shard(tmp_path / 'shard', make_examples(ODD_NAMES), CLASSES)
    assert caught.value.filename == str(tmp_path / 'shard')
    assert list(tmp_path.iterdir()) == []


LARGE = [tfrecord.Example(bytes(1 << 20), 0, str(i), '') for i in range(4)]


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_told_with_the_shards_name(tmp_path):
    path = tmp_path / 'shard'
    os.symlink('/dev/full', files.temporary_name(path))
    with pytest.raises(OSError, match='No space left') as caught:
        tfrecord.write_shard(path, LARGE, CLASSES)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / 'small'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip('no mount command')
    if done.returncode:
        pytest.skip(f'may not mount a tmpfs: {done.stderr.strip()}')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


@pytest.mark.parametrize('sizes', [[4 << 20], [1 << 20] * 4, [1000] * 4000, [(2 << 20) - 8192] + [1] * 200],
                         ids=['one', 'a few', 'many', 'at the end'])
def test_a_disk_that_fills_up_leaves_no_shard(small_disk, sizes):
    """Also where only the last buffer does not fit, which TensorFlow's writer tells, if at all, when it is closed."""
    path = small_disk / 'shard'
    with pytest.raises(OSError, match='No space left|not all bytes') as caught:
        tfrecord.write_shard(path, [tfrecord.Example(bytes(size), 0, '', '') for size in sizes], CLASSES)
    assert caught.value.filename == str(path)
    assert list(small_disk.iterdir()) == []


def test_tfds_reads_each_split_with_counts_labels_and_pixels(record_set):
    builder = tfds.builder_from_directory(record_set.folder)
    assert builder.info.features['label'].names == record_set.manifest.class_names
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        name: split.records for name, split in record_set.manifest.splits.items()}
    for split in record_set.manifest.splits:
        ids = record_set.split_range(split)
        config = tfds.ReadConfig(interleave_cycle_length=1)
        dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
        ours = tf.data.TFRecordDataset(record_set.shard_paths(split)).map(tfrecord.parse_example)
        rows = zip(ids, ours.as_numpy_iterator(), dataset.as_numpy_iterator(), strict=True)
        for record_id, (encoded, label), example in rows:
            assert example['source_id'] == os.fsencode(record_set.sources[record_id])
            assert example['label'] == record_set.labels[record_id] == label
            assert example['image'].shape == (40, 48, 3)
            expected = images.decode(tf.constant(encoded), 40, 48).numpy()
            # TFDS leaves the DCT of a JPEG at the fast one.
            difference = np.abs(example['image'].astype(int) - expected)
            assert difference.max() <= (0 if encoded.startswith(images.PNG_MAGIC) else 12)
            assert difference.mean() <= 1.5


@pytest.mark.parametrize('settings', [
    {'encoding': 'jpeg'}, {'encoding': 'png', 'image_size': '24'},
    {'encoding': 'raw', 'image_size': '20x28', 'resize': 'pad'}], ids=str)
def test_tfds_reads_the_pixels_of_every_encoding(image_folder, convert_here, tmp_path, settings):
    convert_here(image_folder({'a': 3, 'b': 3}), tmp_path / 'records', splits='train:1', **settings)
    record_set = records.open_record_set(tmp_path / 'records')
    dataset = tfds.builder_from_directory(record_set.folder).as_dataset(
        split='train', read_config=tfds.ReadConfig(interleave_cycle_length=1))
    examples = list(dataset.as_numpy_iterator())
    assert [os.fsdecode(example['source_id']) for example in examples] == record_set.sources
    for record_id, example in enumerate(examples):
        stored, storage = tfrecord.read_image(record_set, record_id), record_set.manifest.storage
        pixels = example['image']
        assert pixels.shape == {'24': (24, 29, 3), '20x28': (20, 28, 3)}.get(settings.get('image_size'), (40, 48, 3))
        expected = images.decode_stored(tf.constant(stored), storage, *pixels.shape[:2]).numpy()
        # TFDS leaves the DCT of a JPEG at the fast one.
        assert np.abs(pixels.astype(int) - expected).max() <= (12 if settings['encoding'] == 'jpeg' else 0)


def test_tfds_reads_a_part_of_a_split(record_set):
    """It finds the part by the shards' record counts."""
    part = tfds.builder_from_directory(record_set.folder).as_dataset(
        split='train[20:50]', read_config=tfds.ReadConfig(interleave_cycle_length=1),
        decoders={'image': tfds.decode.SkipDecoding()})
    sources = [os.fsdecode(example['source_id']) for example in part.as_numpy_iterator()]
    assert sources == record_set.sources[20:50]


def test_tfds_reads_odd_names(tmp_path):
    folder = tmp_path / 'odd [x] *?'
    folder.mkdir()
    write_set(folder, ODD_NAMES)
    builder = tfds.builder_from_directory(folder)
    dataset = builder.as_dataset(split='train', decoders={'image': tfds.decode.SkipDecoding()})
    assert {example['source_id'] for example in dataset.as_numpy_iterator()} == set(map(os.fsencode, ODD_NAMES))
