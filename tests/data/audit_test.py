"""Any damage to a record set is named: what is damaged and saved, salvage_test shows."""

import json
import random

import pytest
from record_sets import flip

from boardrec.config import UserError
from boardrec.data import audit, records

CLASSES = ['negative', 'positive']


@pytest.mark.parametrize('seed', range(8))
def test_a_flipped_bit_of_the_index_is_found(copy, seed):
    rng = random.Random(seed)
    flip(copy / records.INDEX, rng.randrange((copy / records.INDEX).stat().st_size), rng.randrange(8))
    claims = audit.look(copy)
    assert claims.findings[0] == 'index.jsonl: its sha256 is not the one in manifest.json'


@pytest.mark.parametrize(('old', 'new', 'told'), [
    ('"source": "', '"source": "x', 'source is {0.source} in the record and x{0.source} in the index'),
    ('"label": "negative"', '"label": "positive"', 'label is negative in the record and positive in the index'),
    ('"split": "train"', '"split": "val"', 'split is train in the record and val in the index'),
    ('"sha256": "', '"sha256": "0', 'sha256 is {0.sha256} in the record and 0{0.sha256} in the index'),
    ('"offset": ', '"offset": 9', 'begins at byte {0.offset}, not at 9{0.offset} as the index says')])
def test_what_the_index_says_otherwise_is_named(copy, rows, old, new, told):
    """Also with no manifest that would tell that the index was changed."""
    (copy / records.MANIFEST).unlink()
    row = next(row for row in rows if row.label == 'negative' and row.split == 'train')
    lines = (copy / records.INDEX).read_text().splitlines(keepends=True)
    lines[row.record_id] = lines[row.record_id].replace(old, new, 1)
    (copy / records.INDEX).write_text(''.join(lines))
    found = list(audit.verify(copy))
    assert found[0] == 'manifest.json: is missing'
    assert f'{row.shard}: record {row.record_id} (' in found[1] and told.format(row) in found[1]
    rest = found[2:]  # an offset: the next one is where it should be again
    assert all('begins at byte' in line and 'offset' in old for line in rest) and len(rest) <= 1


def test_a_line_that_is_gone_from_the_index_is_named(copy, rows):
    lines = (copy / records.INDEX).read_bytes().splitlines(keepends=True)
    (copy / records.INDEX).write_bytes(b''.join(lines[:7] + lines[8:]))
    found = list(audit.verify(copy))
    assert found[1:] == ['index.jsonl: has no line that can be read of record 7',
                         f'{rows[7].shard}: the record at byte {rows[7].offset} ({rows[7].source}): is not in the '
                         'index']


@pytest.mark.parametrize('seed', range(8))
def test_a_flipped_bit_of_the_manifest_is_found(copy, seed):
    rng = random.Random(seed)
    flip(copy / records.MANIFEST, rng.randrange((copy / records.MANIFEST).stat().st_size), rng.randrange(8))
    claims = audit.look(copy)
    assert claims.manifest is None and claims.class_names == CLASSES and 'manifest.json' in claims.findings[0]
    assert len(claims.findings) == 1


@pytest.mark.parametrize(('name', 'content', 'told'), [
    ('label.labels.txt', 'positive\nnegative\n', 'label.labels.txt: does not name the classes of manifest.json'),
    ('dataset_info.json', '{', 'dataset_info.json: is missing or damaged'),
    ('dataset_info.json', '{"splits": []}', 'dataset_info.json: does not count the records as manifest.json'),
    ('features.json', '[]', 'features.json: is missing or damaged'),
    ('rejected.csv', 'a,b\n1,2\n', 'rejected.csv: is missing or damaged'),
    ('duplicates.csv', 'a,b\n1,2\n', 'duplicates.csv: is damaged'),
    ('boardrec-train.tfrecord-00000-of-00099', '', 'boardrec-train.tfrecord-00000-of-00099: is no shard of the '
                                                   'manifest')])
def test_what_no_sum_covers_is_checked(copy, name, content, told):
    (copy / name).write_text(content)
    assert audit.look(copy).findings == [told]


def test_what_is_no_record_set_is_refused(tmp_path):
    with pytest.raises(UserError, match='there is no such folder'):
        list(audit.verify(tmp_path / 'none'))
    (tmp_path / 'photograph.jpg').touch()
    with pytest.raises(UserError, match='holds no shard of a record set'):
        list(audit.verify(tmp_path))


def test_a_manifest_whose_totals_do_not_add_up_is_told(copy):
    values = json.loads((copy / records.MANIFEST).read_bytes())
    manifest = records.read_manifest(copy)
    values['splits']['val']['class_counts']['positive'] += 1
    split = records.Split(**values['splits']['val'])
    manifest.splits['val'] = split
    records.write_manifest(copy, manifest)
    assert audit.look(copy).findings == ['manifest.json: the totals of val are not the sums of its shards']
