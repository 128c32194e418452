"""The on-disk format, both ways: what is written is read, and what is missing, changed or damaged is named."""

import csv
import dataclasses
import json
import os
import struct

import numpy as np
import pytest
from record_sets import CLASSES, flip, ODD_NAMES, write_set
import tensorflow as tf

from boardrec.config import UserError
from boardrec.data import files, records, tfrecord

FRAMING = 12  # bytes before the data of a record: length and its checksum


def test_a_record_set_is_read_as_it_was_written(tmp_path):
    examples = write_set(tmp_path, ODD_NAMES)
    record_set = records.open_record_set(tmp_path)
    assert record_set.sources == [example.source_id for example in examples]
    assert record_set.labels.tolist() == [example.label for example in examples]
    assert (record_set.labels.dtype, record_set.offsets.dtype) == (np.int32, np.int64)
    for record_id, example in enumerate(examples):
        assert tfrecord.read_image(record_set, record_id) == example.image
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
    with pytest.raises(UserError, match='missing: there is no such folder'):
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
    with pytest.raises(UserError, match=r'boardrec-val\.tfrecord-00000-of-00001 is missing.*makes that shard anew'):
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


def test_rejected_csv_holds_any_name(tmp_path):
    rows = [(name, f'reason with , and " {i}', str(i)) for i, name in enumerate(ODD_NAMES)]
    records.write_rejected(tmp_path, rows)
    assert records.read_rejected(tmp_path) == rows
    with open(tmp_path / records.REJECTED, encoding='utf-8', errors='surrogateescape', newline='') as file:
        assert list(csv.reader(file)) == [['source', 'reason', 'sha256'], *map(list, rows)]
    records.write_rejected(tmp_path, [])
    assert (tmp_path / records.REJECTED).read_bytes() == b'source,reason,sha256\n'
    assert records.read_rejected(tmp_path) == []
