"""What is intact in a damaged record set is saved, byte for byte, and nothing else; the damage is named."""

import csv
import os
import random
import shutil

import pytest
from record_sets import flip, insert, ODD_NAMES, write
import tensorflow as tf
import tensorflow_datasets as tfds

from boardrec.config import UserError
from boardrec.data import audit, journal, records, salvage, tfrecord

CLASSES = ['negative', 'positive']


def serialised(folder):
    """All Examples of a set, by source, as bytes; each source once."""
    result = {}
    for path in sorted(folder.glob('*tfrecord*')):
        for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            source = os.fsdecode(tf.train.Example.FromString(data).features.feature['source_id'].bytes_list.value[0])
            assert source not in result
            result[source] = data
    return result


def lost_ids(out):
    """The record_ids in the list beside a salvaged set."""
    with open(salvage.lost_path(out), newline='', encoding='utf-8', errors='surrogateescape') as file:
        return [int(row['record_id']) if row['record_id'] else None for row in csv.DictReader(file)]


def salvage_all_but(folder, lost, original, rows):
    """Salvages; checks that just these record_ids are lost, and that the new set is whole and holds the others."""
    out = folder.parent / 'out'
    done = salvage.salvage(folder, out)
    assert [one.record_id for one in done.lost] == lost_ids(out) == lost
    wanted = {row.source for row in rows if row.record_id not in set(lost)}
    assert serialised(out) == {source: data for source, data in serialised(original).items() if source in wanted}
    record_set = records.open_record_set(out)
    assert record_set.sources == [row.source for row in rows if row.source in wanted]
    labels = {row.source: CLASSES.index(row.label) for row in rows}
    assert record_set.labels.tolist() == [labels[source] for source in record_set.sources]
    return done


def record_at(rows, shard, offset):
    """The row of the record that a byte of a shard belongs to."""
    return [row for row in rows if row.shard == shard and row.offset <= offset][-1]


def test_a_whole_set_has_no_damage(record_set_path, copy, rows):
    assert list(audit.verify(record_set_path)) == []
    salvage_all_but(copy, [], record_set_path, rows)
    for path in record_set_path.glob('*tfrecord*'):
        assert path.read_bytes() == (copy.parent / 'out' / path.name).read_bytes()
    for name in (records.INDEX, records.MANIFEST, records.REJECTED, records.DUPLICATES, *records.TFDS_FILES):
        assert (record_set_path / name).read_bytes() == (copy.parent / 'out' / name).read_bytes()


@pytest.mark.parametrize('seed', range(2))
def test_flipped_bits_of_shards_cost_their_records_alone(copy, record_set_path, rows, seed):
    rng, hit = random.Random(seed), set()
    for path in sorted(copy.glob('*tfrecord*')):
        for _ in range(rng.randrange(1, 6)):
            offset = rng.randrange(path.stat().st_size)
            if record_at(rows, path.name, offset) not in hit:
                flip(path, offset, rng.randrange(8))
                hit.add(record_at(rows, path.name, offset))
    lines = list(audit.verify(copy))
    for row in hit:
        told = [line for line in lines if line.startswith(f'{row.shard}: record {row.record_id} ({row.source}): ')]
        assert len(told) == 1 and told[0].endswith('damaged') or 'the file ends' in told[0]
    assert len(lines) == len(hit) + len({row.shard for row in hit}) and hit  # and a sha256 for each shard
    salvage_all_but(copy, sorted(row.record_id for row in hit), record_set_path, rows)


def test_a_damaged_index_costs_nothing(copy, record_set_path, rows):
    rng = random.Random(0)
    for _ in range(30):
        flip(copy / records.INDEX, rng.randrange((copy / records.INDEX).stat().st_size), rng.randrange(8))
    assert len(list(audit.verify(copy))) > 15
    salvage.salvage(copy, copy.parent / 'out')
    assert serialised(copy.parent / 'out') == serialised(record_set_path)
    assert (copy.parent / 'out' / records.INDEX).read_bytes() == (record_set_path / records.INDEX).read_bytes()
    assert lost_ids(copy.parent / 'out') == []


@pytest.mark.parametrize('place', [0, 5], ids=['at a record', 'in a header'])
def test_a_cut_shard_costs_what_was_cut_off(copy, record_set_path, rows, place):
    own = [row for row in rows if row.shard == rows[0].shard]
    path = copy / rows[0].shard
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:own[4].offset + place])
    lines = list(audit.verify(copy))
    assert lines[0] == f'{path.name}: has {own[4].offset + place} bytes, not {size}'
    names = [f'record {row.record_id} ({row.source})' for row in own]
    torn, missing = ([f'{path.name}: {names[4]}: the file ends within it'], 5) if place else ([], 4)
    assert len(own) > 6 and lines[1:] == [
        *torn, f'{path.name}: {len(own) - missing} records, {names[missing]} to {names[-1]}: are not there']
    salvage_all_but(copy, [row.record_id for row in own[4:]], record_set_path, rows)


def test_a_single_record_that_was_cut_off_is_named(copy, rows):
    last = [row for row in rows if row.shard == rows[0].shard][-1]
    os.truncate(copy / last.shard, last.offset)
    assert list(audit.verify(copy))[1:] == [f'{last.shard}: record {last.record_id} ({last.source}): is not there']


@pytest.mark.parametrize('on_leak', ['report', 'drop_from_train'])
def test_pairs_of_which_nothing_was_lost_are_taken_over(image_folder, convert_here, tmp_path, on_leak):
    """A file that was dropped is no loss: it is in rejected.csv."""
    images, folder = image_folder({'train/a': 6, 'train/b': 6, 'val/a': 3, 'val/b': 3}), tmp_path / 'records'
    for number in range(3):
        shutil.copy(images / 'val' / 'a' / f'board00{number}.{"png" if number % 2 else "jpg"}',
                    images / 'train' / 'a' / f'copy{number}.jpg')
    convert_here(images, folder, on_leak=on_leak)
    pairs = records.read_duplicates(folder)
    row = next(row for row in records.read_index(folder) if row.source == 'val/a/board001.png')
    assert [(pair.source, pair.other) for pair in pairs][1] == ('train/a/copy1.jpg', row.source) and len(pairs) == 3
    flip(folder / row.shard, row.offset + 40)
    salvage.salvage(folder, tmp_path / 'out')
    assert records.read_duplicates(tmp_path / 'out') == [pairs[0], pairs[2]]
    assert list(audit.verify(tmp_path / 'out')) == []


HEADER = ','.join(records.Duplicate._fields).encode()


@pytest.mark.parametrize('content', [
    None, b'source\n"a"\n', HEADER + b'\n"a","b"\n', HEADER + b'\n' + b'a,' * 9 + b'a\n',
    HEADER + b'\n"' + b'a,' * 100_000], ids=['none', 'header', 'short', 'long', 'unended'])
def test_pairs_that_cannot_be_read_are_left_out(copy, content):
    (copy / records.DUPLICATES).unlink()
    if content:
        (copy / records.DUPLICATES).write_bytes(content)
        assert list(audit.verify(copy)) == ['duplicates.csv: is damaged']
    done = salvage.salvage(copy, copy.parent / 'out')
    assert done.notes == (['duplicates.csv could not be read: the new set has none'] if content else [])
    assert not (copy.parent / 'out' / records.DUPLICATES).exists() and list(audit.verify(copy.parent / 'out')) == []


def test_a_missing_shard_costs_its_records(copy, record_set_path, rows):
    manifest = records.read_manifest(copy)
    gone = [manifest.shards[1], manifest.shards[-1]]
    assert manifest.splits['test'].shards == 1, 'one of them is a whole split, which TFDS cannot read empty'
    for shard in gone:
        (copy / shard.file).unlink()
    own = [[row.record_id for row in rows if row.shard == shard.file] for shard in gone]
    assert list(audit.verify(copy)) == [
        f'{shard.file}: is missing, and records {ids[0]} to {ids[-1]} with it'
        for shard, ids in zip(gone, own, strict=True)]
    done = salvage_all_but(copy, own[0] + own[1], record_set_path, rows)
    assert list(done.manifest.splits) == ['train', 'val']
    assert {one.reason for one in done.lost} == {'its shard is missing'}
    builder = tfds.builder_from_directory(copy.parent / 'out')
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        name: split.records for name, split in done.manifest.splits.items()}


GARBAGE = {'a byte': b'x', 'noise': random.Random(0).randbytes(10_000)}


@pytest.mark.parametrize('garbage', [*GARBAGE, 'the beginning of a record'])
def test_garbage_between_records_costs_nothing(copy, record_set_path, rows, garbage):
    path, row = copy / rows[3].shard, rows[3]
    inserted = GARBAGE.get(garbage) or path.read_bytes()[:300]
    insert(path, row.offset, inserted)
    lines = list(audit.verify(copy))
    assert len(lines) == 3 and f'not {records.read_manifest(copy).shards[0].bytes}' in lines[0]
    assert lines[1].startswith(f'{path.name}: record 3 ({row.source}): begins at byte {row.offset + len(inserted)}, ')
    assert lines[2].startswith(f'{path.name}: bytes {row.offset} to {row.offset + len(inserted)} hold no intact record')
    salvage_all_but(copy, [], record_set_path, rows)


def test_bytes_that_came_or_went_within_a_record_cost_it_alone(copy, record_set_path, rows):
    path = copy / rows[0].shard
    content = path.read_bytes()
    path.write_bytes(content[:rows[2].offset + 100] + content[rows[2].offset + 103:])
    insert(path, rows[6].offset + 200, b'more')
    insert(path, rows[9].offset + 1, b'between two records, where the index has none')
    salvage_all_but(copy, [2, 6], record_set_path, rows)


@pytest.mark.parametrize('gone', [None, records.INDEX])
def test_a_record_that_is_there_twice_is_salvaged_once(copy, record_set_path, rows, gone):
    path = copy / rows[0].shard
    insert(path, rows[5].offset, path.read_bytes()[rows[2].offset:rows[4].offset])
    if gone:
        (copy / gone).unlink()
    assert sum('the same record is there already' in line for line in audit.verify(copy)) == 2
    salvage_all_but(copy, [], record_set_path, rows)


def test_records_that_nothing_names_are_counted(copy, rows):
    """Without the index, by the manifest: of a shard that is gone, and of one that was cut where a record begins."""
    own = [row for row in rows if row.shard == rows[0].shard]
    cut, gone, last = copy / rows[0].shard, copy / rows[len(own)].shard, copy / rows[-1].shard
    cut.write_bytes(cut.read_bytes()[:own[-3].offset])
    gone.unlink()
    flip(last, 30)
    (copy / records.INDEX).unlink()
    lost = salvage.salvage(copy, copy.parent / 'out').lost
    count = sum(row.shard == gone.name for row in rows)
    assert [(one.shard, one.reason) for one in lost] == (
        [(cut.name, 'is not there')] * 3 + [(gone.name, 'its shard is missing')] * count
        + [(last.name, 'its bytes are damaged')])


@pytest.mark.parametrize('gone', [
    [records.INDEX], [records.MANIFEST, records.LABELS],
    [records.MANIFEST, records.INDEX, *records.TFDS_FILES[:2], records.REJECTED]], ids=' '.join)
def test_a_set_is_salvaged_without_what_describes_it(copy, record_set_path, rows, gone):
    for name in gone:
        (copy / name).unlink()
    flip(copy / rows[8].shard, rows[8].offset + 99)
    lines = list(audit.verify(copy))
    assert {f'{name}: is missing' for name in gone if name in (records.MANIFEST, records.INDEX)} <= set(lines)
    named = f'{rows[8].shard}: record 8 ({rows[8].source}): its bytes are damaged'
    unnamed = (f'{rows[8].shard}: bytes {rows[8].offset} to {rows[9].offset} hold no intact record: '
               'its bytes are damaged')
    assert (unnamed if records.INDEX in gone else named) in lines
    out = copy.parent / 'out'
    done = salvage.salvage(copy, out)
    assert lost_ids(out) == ([None] if records.INDEX in gone else [8])
    assert (done.lost[0].shard, done.lost[0].offset) == (rows[8].shard, rows[8].offset)
    wanted = serialised(record_set_path)
    del wanted[rows[8].source]
    assert serialised(out) == wanted and records.open_record_set(out).manifest.class_names == CLASSES


def test_classes_that_nothing_names_are_asked_for(copy):
    for name in (records.MANIFEST, records.LABELS, records.INDEX):
        (copy / name).unlink()
    with pytest.raises(UserError, match='names the classes; write label.labels.txt'):
        salvage.salvage(copy, copy.parent / 'out')
    assert sorted(path.name for path in copy.parent.iterdir()) == ['records']


def test_a_damaged_index_still_tells_the_classes(copy):
    """By what most records have: one that was changed makes no third class, and does not rename one."""
    for name in (records.MANIFEST, records.LABELS):
        (copy / name).unlink()
    text = (copy / records.INDEX).read_text().replace('"label": "negative"', '"label": "aegative"', 1)
    (copy / records.INDEX).write_text(text)
    assert salvage.salvage(copy, copy.parent / 'out').manifest.class_names == CLASSES


@pytest.mark.parametrize('there', ['manifest', 'journal', 'features.json', 'nothing'])
def test_how_images_are_stored_is_found_out(image_folder, convert_here, tmp_path, there):
    folder = tmp_path / 'records'
    convert_here(image_folder({'a': 12, 'b': 12}), folder, encoding='raw', image_size='20x24', resize='pad')
    storage = records.read_manifest(folder).storage
    if there != 'manifest':
        (folder / records.MANIFEST).unlink()
    if there not in ('manifest', 'journal'):
        shutil.rmtree(folder / journal.FOLDER)
    if there == 'nothing':
        (folder / 'features.json').write_text('{')
    done = salvage.salvage(folder, tmp_path / 'out')
    assert done.manifest.storage == {
        'features.json': storage._replace(resize='squash'), 'nothing': records.KEEP}.get(there, storage)
    assert len(done.notes) == (there in ('features.json', 'nothing'))


def test_what_no_converter_writes_is_damage(tmp_path):
    examples = [tfrecord.Example(b'image', number % 3, name, 'ab') for number, name in enumerate(ODD_NAMES[:4])]
    write(tmp_path / 'records', examples, ['a', 'b', 'c'], ['a', 'b'])
    lines = list(audit.verify(tmp_path / 'records'))
    assert [line for line in lines if 'its label 2 is none of the classes' in line and 'record 2 (' in line]
    assert [one.record_id for one in salvage.salvage(tmp_path / 'records', tmp_path / 'out').lost] == [2]


def test_odd_names_are_told_in_one_line_and_listed(tmp_path):
    write(tmp_path / 'records', [tfrecord.Example(b'image', 0, name, 'ab') for name in ODD_NAMES], ['a'], ['a'])
    for row in list(records.read_index(tmp_path / 'records')):
        flip(tmp_path / 'records' / row.shard, row.offset + 20)
    lines = list(audit.verify(tmp_path / 'records'))
    assert len(lines) == 1 + len(ODD_NAMES) and all(line.isprintable() for line in lines)
    with pytest.raises(UserError, match='no record in .* is intact'):
        salvage.salvage(tmp_path / 'records', tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['records']


def test_the_list_of_the_lost_holds_any_name(tmp_path):
    examples = [tfrecord.Example(b'image', 0, name, 'ab') for name in [*ODD_NAMES, 'last']]
    write(tmp_path / 'records', examples, ['a'], ['a'])
    rows = list(records.read_index(tmp_path / 'records'))
    path = tmp_path / 'records' / rows[0].shard
    for row in rows[:-1]:
        flip(path, row.offset + 20)
    salvage.salvage(tmp_path / 'records', tmp_path / 'out')
    with open(f'{tmp_path}/out.lost.csv', newline='', encoding='utf-8', errors='surrogateescape') as file:
        listed = list(csv.DictReader(file))
    assert [row['source'] for row in listed] == ODD_NAMES
    assert listed[1] == {'record_id': '1', 'source': ODD_NAMES[1], 'label': 'a', 'split': 'train', 'shard': path.name,
                         'offset': str(rows[1].offset), 'reason': 'its bytes are damaged'}
    assert records.open_record_set(tmp_path / 'out').sources == ['last']


def test_salvage_changes_neither_the_set_nor_a_folder_in_use(copy, rows):
    flip(copy / rows[0].shard, 50)
    before = {path: path.read_bytes() for path in copy.rglob('*') if path.is_file()}
    for name, told in (('records/out', 'lies within'), ('used', 'holds something already'), ('file', 'is a file')):
        (copy.parent / 'used').mkdir(exist_ok=True)
        (copy.parent / 'used' / 'mine').touch()
        (copy.parent / 'file').touch()
        with pytest.raises(UserError, match=told):
            salvage.salvage(copy, copy.parent / name)
    (copy.parent / 'empty').mkdir()
    salvage.salvage(copy, copy.parent / 'empty')
    assert len(records.open_record_set(copy.parent / 'empty').sources) == len(rows) - 1
    assert {path: path.read_bytes() for path in copy.rglob('*') if path.is_file()} == before
