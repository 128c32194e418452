"""The on-disk format, both ways: what is written is read, and what is missing, changed or damaged is named."""

import csv
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import struct
import subprocess

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from boardrec.config import UserError
from boardrec.data import files, images, records

CLASSES = ['negative', 'positive']
ODD_NAMES = ['a/plain.png', 'a/with space.png', 'a/"quoted", it\'s.png', 'a/[x]*?{y}.png', 'a/two\nlines.png',
             'a/carriage\rreturn.png', 'a/ümläut 図 😀.png', 'a/\\back.png', 'a/not \udcff\udcfe UTF-8.png', 'a/ ',
             'a/,']
FRAMING = 12  # bytes before a record's data: length and its checksum


def make_examples(names):
    return [records.Example(f'image {i}'.encode() * (i + 1), i % 2, name, hashlib.sha256(bytes([i])).hexdigest())
            for i, name in enumerate(names)]


def write_set(folder, names, *, shards=2, split='train'):
    """A record set of one split with these source names, dealt to the shards in turn; returns its examples in order."""
    written, rows, every = [], [], []
    for number in range(shards):
        examples = make_examples(names)[number::shards]
        path = folder / records.shard_file(split, number, shards)
        shard, offsets = records.write_shard(path, examples, CLASSES)
        written.append(shard)
        for example, offset in zip(examples, offsets, strict=True):
            rows.append(records.Row(
                len(rows), example.source_id, example.sha256, split, CLASSES[example.label], shard.file, offset))
        every += examples
    counts = {name: sum(shard.class_counts[name] for shard in written) for name in CLASSES}
    records.write_rejected(folder, [])
    records.write_index(folder, rows)
    manifest = records.Manifest(
        CLASSES, 'keep', None, None, None, {split: records.Split(len(every), shards, counts)}, written,
        records.index_sha256(rows))
    records.write_tfds_metadata(folder, manifest)
    records.write_manifest(folder, manifest)
    return every


def test_the_sums_of_all_shards_are_checked(copy):
    record_set = records.open_record_set(copy)
    records.require_sums(record_set)
    path = copy / record_set.manifest.shards[-1].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    records.require_sums(records.open_record_set(copy)._replace(manifest=dataclasses.replace(
        record_set.manifest, shards=record_set.manifest.shards[:-1])))
    with pytest.raises(UserError, match=f'^{path} is damaged .* --verify says where'):
        records.require_sums(records.open_record_set(copy))


@pytest.fixture
def copy(record_set_path, tmp_path):
    """A copy of the shared record set, to damage."""
    return pathlib.Path(shutil.copytree(record_set_path, tmp_path / 'records'))


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_record_set_is_read_as_it_was_written(tmp_path):
    examples = write_set(tmp_path, ODD_NAMES)
    record_set = records.open_record_set(tmp_path)
    assert record_set.sources == [example.source_id for example in examples]
    assert record_set.labels.tolist() == [example.label for example in examples]
    assert (record_set.labels.dtype, record_set.offsets.dtype) == (np.int32, np.int64)
    for record_id, example in enumerate(examples):
        assert records.read_image(record_set, record_id) == example.image
    serialized = tf.data.TFRecordDataset(record_set.shard_paths('train'))
    for example, data in zip(examples, serialized.as_numpy_iterator(), strict=True):
        feature = tf.train.Example.FromString(data).features.feature
        assert set(feature) == {'image', 'label', 'source_id', 'sha256'}
        assert feature['image'].bytes_list.value == [example.image]
        assert feature['label'].int64_list.value == [example.label]
        assert feature['source_id'].bytes_list.value == [os.fsencode(example.source_id)]
        assert feature['sha256'].bytes_list.value == [example.sha256.encode()]


def test_an_offset_is_where_the_records_length_stands(record_set):
    """TFRecord: uint64 length, uint32 checksum, the data, uint32 checksum; little-endian."""
    contents = {shard.file: (record_set.folder / shard.file).read_bytes() for shard in record_set.manifest.shards}
    rows = list(records.read_index(record_set.folder))
    for row in rows:
        content = contents[row.shard]
        length, = struct.unpack_from('<Q', content, row.offset)
        data = content[row.offset + FRAMING:row.offset + FRAMING + length]
        feature = tf.train.Example.FromString(data).features.feature
        assert feature['source_id'].bytes_list.value == [os.fsencode(row.source)]
        assert feature['sha256'].bytes_list.value == [row.sha256.encode()]
        assert feature['label'].int64_list.value == [CLASSES.index(row.label)]
    assert [row.record_id for row in rows] == list(range(len(rows)))
    assert [row.offset for row in rows] == record_set.offsets.tolist()


def test_the_manifest_says_what_the_shards_hold(record_set):
    manifest = record_set.manifest
    rows = list(records.read_index(record_set.folder))
    for shard in manifest.shards:
        path = record_set.folder / shard.file
        own = [row for row in rows if row.shard == shard.file]
        assert (shard.records, shard.bytes, shard.sha256) == (len(own), path.stat().st_size, files.sha256_of(path))
        assert shard.class_counts == {name: sum(row.label == name for row in own) for name in CLASSES}
    for name, split in manifest.splits.items():
        own = [row for row in rows if row.split == name]
        shards = record_set.split_shards(name)
        assert [row.record_id for row in own] == list(record_set.split_range(name))
        assert (split.records, split.shards) == (len(own), len(shards))
        assert split.class_counts == {label: sum(row.label == label for row in own) for label in CLASSES}
        count = len(shards)
        assert [shard.file for shard in shards] == [records.shard_file(name, i, count) for i in range(count)]
        assert record_set.shard_paths(name) == [str(record_set.folder / shard.file) for shard in shards]
    assert list(manifest.splits) == ['train', 'val', 'test']
    assert manifest.splits['train'].shards >= 3, 'the tests that share this set rely on several'


def test_a_record_ids_places_cover_the_set(record_set):
    ids = [i for split in record_set.manifest.splits for i in record_set.split_range(split)]
    assert ids == list(range(len(record_set.sources)))
    with pytest.raises(UserError, match="has no split 'dev': it has train, val, test"):
        record_set.split_range('dev')
    with pytest.raises(UserError, match="has no split 'dev'"):
        record_set.shard_paths('dev')


def test_the_manifests_json_is_what_the_readme_promises(record_set_path):
    values = json.loads((record_set_path / records.MANIFEST).read_bytes())
    assert {'format_version', 'fingerprint', 'class_names', 'encoding', 'image_size', 'resize', 'quality',
            'block_records', 'splits', 'shards'} <= set(values)
    assert {'file', 'records', 'bytes', 'sha256', 'class_counts'} == set(values['shards'][0])
    assert (values['format_version'], values['block_records']) == (2, 32)
    lines = (record_set_path / records.INDEX).read_text().splitlines()
    assert len(lines) == 120
    assert list(json.loads(lines[0])) == ['record_id', 'source', 'sha256', 'split', 'label', 'shard', 'offset']


def test_the_fingerprint_depends_on_every_field():
    shard = records.Shard('a', 1, 2, 'b', {'x': 1})
    manifest = records.Manifest(
        ['x', 'y'], 'keep', None, None, None, {'train': records.Split(1, 1, {'x': 1})}, [shard], 'c')
    others = {'class_names': ['y', 'x'], 'encoding': 'jpeg', 'image_size': [1, 2], 'resize': 'pad', 'quality': 90,
              'splits': {}, 'shards': [dataclasses.replace(shard, sha256='d')], 'index_sha256': 'd', 'block_records': 8,
              'format_version': 3}
    assert set(others) == {field.name for field in dataclasses.fields(manifest)}
    fingerprints = {dataclasses.replace(manifest, **{name: value}).fingerprint for name, value in others.items()}
    assert len(fingerprints | {manifest.fingerprint}) == len(others) + 1


def test_a_folder_without_a_manifest_is_refused(copy):
    (copy / records.MANIFEST).unlink()
    with pytest.raises(UserError, match=r'records holds no manifest\.json: it is no complete record set'):
        records.open_record_set(copy)
    with pytest.raises(UserError, match='missing: there is no such folder of records'):
        records.open_record_set(copy / 'missing')


@pytest.mark.parametrize('content', [
    b'', b'{', b'[]', b'null', b'{}', b'"text"', b'\xff\xfe', b'{"format_version": 2}',
    b'{"format_version": 2, "fingerprint": "", "splits": {"train": {}}, "shards": []}',
    b'{"format_version": 2, "fingerprint": "", "splits": {}, "shards": [1]}'], ids=repr)
def test_a_manifest_that_is_damaged_is_named(copy, content):
    (copy / records.MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=r'manifest\.json is damaged; convert the images again with --overwrite'):
        records.open_record_set(copy)


def test_a_manifest_cut_anywhere_is_damaged(copy):
    content = (copy / records.MANIFEST).read_bytes()
    for end in range(1, len(content) - 2, 97):
        (copy / records.MANIFEST).write_bytes(content[:end])
        with pytest.raises(UserError, match=r'manifest\.json is damaged'):
            records.open_record_set(copy)


def edit(path, change):
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize('change', [
    lambda values: values['class_names'].reverse(),
    lambda values: values['splits']['train'].update(records=1),
    lambda values: values['shards'][0]['class_counts'].update(negative=1),
    lambda values: values.update(block_records=8),
    lambda values: values.update(encoding='png'),
    lambda values: values.update(fingerprint='0' * 64),
])
def test_a_manifest_that_was_edited_is_refused(copy, change):
    edit(copy / records.MANIFEST, change)
    with pytest.raises(UserError, match=r'manifest\.json was changed after it was written'):
        records.open_record_set(copy)


@pytest.mark.parametrize('version', [0, 1, 3, '2', None])
def test_another_format_version_is_refused_by_its_number(copy, version):
    edit(copy / records.MANIFEST, lambda values: values.update(format_version=version, shards='of another form'))
    with pytest.raises(UserError, match=rf'format_version {version}; this boardrec reads 2: .*--overwrite'):
        records.open_record_set(copy)


def test_a_missing_shard_is_named(copy):
    (copy / records.shard_file('val', 0, 1)).unlink()
    with pytest.raises(UserError, match=r'boardrec-val\.tfrecord-00000-of-00001 is missing.*--overwrite'):
        records.open_record_set(copy)


@pytest.mark.parametrize('where', ['at a record', 'in a header', 'in a record', 'to nothing', 'one byte more'])
def test_a_shard_of_another_size_is_named(copy, where):
    """TensorFlow reads the first, second and fourth of these without any error."""
    rows = [row for row in records.read_index(copy) if row.split == 'val']
    path = copy / rows[0].shard
    size = path.stat().st_size
    end = {'at a record': rows[-1].offset, 'in a header': rows[-1].offset + 7, 'in a record': size - 9, 'to nothing': 0,
           'one byte more': size + 1}[where]
    os.truncate(path, end)
    with pytest.raises(UserError, match=rf'{path.name} has {end} bytes, not {size}: the record set is damaged'):
        records.open_record_set(copy)


@pytest.mark.parametrize('damage', ['missing', 'flipped', 'cut at a line', 'empty'])
def test_a_damaged_index_is_named(copy, damage):
    path = copy / records.INDEX
    if damage == 'missing':
        path.unlink()
    elif damage == 'flipped':
        flip(path, 100)
    else:
        lines = path.read_bytes().splitlines(keepends=True)[:-1] if damage == 'cut at a line' else []
        path.write_bytes(b''.join(lines))
    with pytest.raises(UserError, match=r'index\.jsonl is missing or damaged; convert the images again'):
        records.open_record_set(copy)


def test_read_image_gives_each_records_own_bytes(record_set, source_images):
    kept = 0
    for record_id in (0, 1, 30, len(record_set.sources) // 2, len(record_set.sources) - 1):
        data = (source_images / record_set.sources[record_id]).read_bytes()
        assert records.read_image(record_set, record_id) == images.normalise(data)
        kept += images.normalise(data) == data
    assert kept == 5, 'the generated images need no change'


@pytest.mark.parametrize('record_id', [-1, 120, 10**9])
def test_a_record_that_is_not_there_is_told(record_set, record_id):
    with pytest.raises(ValueError, match=rf'record {record_id}: the record set holds 120'):
        records.read_image(record_set, record_id)


@pytest.mark.parametrize('place', [0, 9, FRAMING, FRAMING + 500, -1], ids=[
    'length', "length's checksum", 'data', 'later data', "data's checksum"])
def test_a_flipped_bit_is_told_with_the_record_and_the_shard(copy, place):
    """A checksum covers every byte."""
    row, following = list(records.read_index(copy))[30:32]
    assert row.shard == following.shard
    flip(copy / row.shard, (row if place >= 0 else following).offset + place)
    record_set = records.open_record_set(copy)
    with pytest.raises(ValueError, match=rf'record 30 in {row.shard} is damaged'):
        records.read_image(record_set, 30)
    assert records.read_image(record_set, 31)


def test_a_shard_that_was_cut_after_opening_is_told(copy):
    record_set = records.open_record_set(copy)
    row = list(records.read_index(copy))[30]
    os.truncate(copy / row.shard, row.offset)
    with pytest.raises(ValueError, match='record 30'):
        records.read_image(record_set, 30)


def test_a_shard_may_be_empty(tmp_path):
    shard, offsets = records.write_shard(tmp_path / 'empty', [], CLASSES)
    assert (shard.records, shard.bytes, offsets) == (0, 0, [])
    assert shard.class_counts == {'negative': 0, 'positive': 0}
    examples = write_set(tmp_path, ODD_NAMES[:2], shards=4)
    record_set = records.open_record_set(tmp_path)
    assert [shard.records for shard in record_set.manifest.shards] == [1, 1, 0, 0]
    assert [records.read_image(record_set, i) for i in range(2)] == [example.image for example in examples]
    assert tfds.builder_from_directory(tmp_path).info.splits['train'].num_examples == 2


def test_parse_example_reads_image_and_label_inside_a_graph(tmp_path):
    examples = write_set(tmp_path, ODD_NAMES, shards=1)
    dataset = tf.data.TFRecordDataset(records.open_record_set(tmp_path).shard_paths('train')).map(records.parse_example)
    assert dataset.element_spec == (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32))
    assert list(dataset.as_numpy_iterator()) == [(example.image, example.label) for example in examples]


def test_reading_begins_at_any_records_offset(record_set):
    path = record_set.shard_paths('train')[1]
    rows = [row for row in records.read_index(record_set.folder) if row.shard == os.path.basename(path)]
    whole = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    for i in (0, 1, len(rows) - 1):
        dataset = tf.data.Dataset.from_tensors(rows[i].offset).flat_map(lambda offset: records.read_from(path, offset))
        assert list(dataset.as_numpy_iterator()) == whole[i:]


def test_an_exception_from_the_examples_leaves_no_shard(tmp_path):
    def examples():
        yield from make_examples(ODD_NAMES)
        raise KeyError('a bug')

    with pytest.raises(KeyError):
        records.write_shard(tmp_path / 'shard', examples(), CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_loses_bytes_without_a_word_is_found_out(tmp_path, monkeypatch):
    class Lossy(tf.io.TFRecordWriter):
        def write(self, record):
            if b'image 3' not in record:
                super().write(record)

    monkeypatch.setattr(tf.io, 'TFRecordWriter', Lossy)
    with pytest.raises(OSError, match='not all bytes were written') as caught:
        records.write_shard(tmp_path / 'shard', make_examples(ODD_NAMES), CLASSES)
    assert caught.value.filename == str(tmp_path / 'shard')
    assert list(tmp_path.iterdir()) == []


LARGE = [records.Example(bytes(1 << 20), 0, str(i), '') for i in range(4)]


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_told_with_the_shards_name(tmp_path):
    path = tmp_path / 'shard'
    os.symlink('/dev/full', files.temporary_name(path))
    with pytest.raises(OSError, match='No space left') as caught:
        records.write_shard(path, LARGE, CLASSES)
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
        records.write_shard(path, [records.Example(bytes(size), 0, '', '') for size in sizes], CLASSES)
    assert caught.value.filename == str(path)
    assert list(small_disk.iterdir()) == []


def test_rejected_csv_holds_any_name(tmp_path):
    rows = [(name, f'reason with , and " {i}', str(i)) for i, name in enumerate(ODD_NAMES)]
    records.write_rejected(tmp_path, rows)
    assert records.read_rejected(tmp_path) == rows
    with open(tmp_path / records.REJECTED, encoding='utf-8', errors='surrogateescape', newline='') as file:
        assert list(csv.reader(file)) == [['source', 'reason', 'sha256'], *map(list, rows)]
    records.write_rejected(tmp_path, [])
    assert (tmp_path / records.REJECTED).read_bytes() == b'source,reason,sha256\n'
    assert records.read_rejected(tmp_path) == []


def test_tfds_reads_each_split_with_counts_labels_and_pixels(record_set):
    builder = tfds.builder_from_directory(record_set.folder)
    assert builder.info.features['label'].names == record_set.manifest.class_names
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        name: split.records for name, split in record_set.manifest.splits.items()}
    for split in record_set.manifest.splits:
        ids = record_set.split_range(split)
        config = tfds.ReadConfig(interleave_cycle_length=1)
        dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
        ours = tf.data.TFRecordDataset(record_set.shard_paths(split)).map(records.parse_example)
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
        stored, storage = records.read_image(record_set, record_id), record_set.manifest.storage
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
