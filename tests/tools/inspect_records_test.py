"""What there is, is counted, measured, checked and shown: the sheets have the pixels that training takes."""

import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys

import inspect_records
from inspect_records import InspectRecordsConfig
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from boardrec import cli
from boardrec.config import UserError
from boardrec.data import audit, augment, images, records, tfrecord
from boardrec.training import feed


def test_the_summary_counts_records_classes_and_bytes(record_set_path, capsys):
    inspect_records.main(InspectRecordsConfig(records=str(record_set_path)))
    lines = capsys.readouterr().out.splitlines()
    manifest = records.read_manifest(record_set_path)
    size = sum(path.stat().st_size for path in record_set_path.glob('*tfrecord*')) / 2**20
    assert f'120 records in {len(manifest.shards)} shards, {size:,.1f} MiB' in lines[0]
    for line, (name, split) in zip(lines[1:], manifest.splits.items(), strict=True):
        assert line.startswith(f'{name}: {split.records} records of ')
        assert all(f'{label} {count}' in line for label, count in split.class_counts.items())


@pytest.mark.parametrize(('cached_views', 'columns'), [(3, 3), (0, 8), (20, 8)])
def test_the_sheet_shows_records_and_their_views(record_set_path, tmp_path, capsys, cached_views, columns):
    config = InspectRecordsConfig(records=str(record_set_path), augmented_sheet=str(tmp_path / 'sheet.png'),
                                  split='val', image_size='24x30', cached_views=cached_views, rotation=10.0, seed=3)
    inspect_records.main(config)
    said = capsys.readouterr().out
    assert ('note: the first 8 of --cached_views=20 are shown' in said) == (cached_views == 20)
    assert 'note: images of val are never augmented in training' in said
    with Image.open(config.augmented_sheet) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (8 * (24 + 14 + 4), (1 + columns) * (30 + 4) + 4, 3)
    record_set, views = records.open_record_set(record_set_path), feed.views(config)
    ids = record_set.split_range('val')
    for row in (0, 7):
        number = ids[len(ids) * row // 8]
        data = tf.constant(tfrecord.read_image(record_set, number))
        for column in range(1 + columns):
            pixels = images.decode(data, 24, 30)
            if column:
                which = {'view': tf.constant(column - 1, tf.int64), 'record_id': tf.constant(number, tf.int64)}
                pixels = images.decode(data, 24, 30, augment.crop_box(views, **which))
                pixels = augment.augment(pixels, views, **which)
            top, left = row * 42 + 14, 4 + column * 34
            np.testing.assert_array_equal(sheet[top:top + 24, left:left + 30], pixels)


@pytest.mark.parametrize(('settings', 'message'), [
    ({'augmented_sheet': 'sheet.jpg'}, '--augmented_sheet=sheet.jpg: must be a .png file'),
    ({'contact_sheet': 'sheet.jpg'}, '--contact_sheet=sheet.jpg: must be a .png file'),
    ({'verify': True, 'salvage': 'out'}, '--verify and --salvage: give one of them at a time'),
    ({'contact_sheet': 'a.png', 'augmented_sheet': 'b.png'}, '--contact_sheet and --augmented_sheet: give one'),
    ({'stats': True, 'extract': 0}, '--stats and --extract: give one of them at a time'),
    ({'salvage': 'gs://bucket/out'}, '--salvage=gs://bucket/out: must be on a file system of this machine; name'),
    ({'contact_sheet': 's3://b/a.png'}, '--contact_sheet=s3://b/a.png: must be on a file system of this machine'),
    ({'augmented_sheet': 's3://b/a.png'}, '--augmented_sheet=s3://b/a.png: must be on a file system'),
    ({'extract': 0, 'output': 's3://b/a.png'}, '--output=s3://b/a.png: must be on a file system of this machine'),
    ({'output': 'a.jpg'}, '--output=a.jpg: is the file of --extract; name a record'),
    ({'extract': -2}, '--extract=-2: must be the number of a record, from 0'),
    ({'extract': 120}, '--extract=120: .* has records 0 to 119'),
    ({'extract': 0, 'output': 'none/a.jpg'}, '--output=none/a.jpg: must be a new file in a folder that exists'),
    ({'extract': 0, 'output': 'a.bmp'}, '--output=a.bmp: record 0 is a (JPG|PNG): name a .(jpg|png) file'),
    ({'augmented_sheet': 'nowhere/sheet.png'}, 'in a folder that exists'),
    ({'augmented_sheet': 'sheet.png'}, '--cached_views=1: a training without augmentation')])
def test_what_cannot_be_drawn_is_refused(record_set_path, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        inspect_records.main(InspectRecordsConfig(records=str(record_set_path), **settings))
    assert list(tmp_path.iterdir()) == []


def test_help_lists_what_the_tool_takes_and_a_training_s_flags_are_taken(record_set_path):
    tool = [sys.executable, inspect_records.__file__]
    helped = subprocess.run([*tool, '--help'], capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r'^  --(\w+)', helped, re.MULTILINE))
    views = {field.name for field in dataclasses.fields(augment.Views)} - {'count'}
    assert {'records', 'verify', 'salvage', 'split', 'image_size', 'cached_views', *views} <= flags
    assert not flags & {'run_dir', 'learning_rate', 'epochs', 'backbone'}
    done = subprocess.run([*tool, f'--records={record_set_path}', '--run_dir=run', '--epochs=3'], capture_output=True,
                          text=True, check=True)
    assert '120 records' in done.stdout


def run(capsys, record_set_path, **settings):
    """The lines that the tool prints."""
    inspect_records.main(InspectRecordsConfig(records=str(record_set_path), **settings))
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def damaged(record_set_path, tmp_path):
    """A copy of the shared set whose record 3 is damaged."""
    folder = pathlib.Path(shutil.copytree(record_set_path, tmp_path / 'records'))
    row = list(records.read_index(folder))[3]
    with open(folder / row.shard, 'r+b') as file:
        file.seek(row.offset + 40)
        file.write(b'damage')
    return folder


def test_a_whole_set_is_told_in_a_line(record_set_path, capsys):
    line, = run(capsys, record_set_path, verify=True)
    assert line.startswith(f'{record_set_path}: all is well: 120 records in 6 shards, ')


@pytest.mark.parametrize('flag', ['--verify', '--verify_records'])
def test_damage_is_named_and_ends_with_status_2(damaged, capsys, flag):
    with pytest.raises(SystemExit) as exited:
        cli.run(inspect_records.main, InspectRecordsConfig, ['tool', f'--records={damaged}', flag])
    said = capsys.readouterr()
    assert exited.value.code == 2 and 'record 3 (' in said.out.splitlines()[1]
    assert said.err.startswith(f'error: {damaged} is damaged: the 2 lines above say where; --salvage=NEW_FOLDER')


def test_what_is_intact_is_salvaged(damaged, tmp_path, capsys):
    lines = run(capsys, damaged, salvage=str(tmp_path / 'out'))
    assert lines[0] == f'{tmp_path}/out: 119 records in 6 shards; 1 are lost: {tmp_path}/out.lost.csv'
    assert 'its fingerprint differs' in lines[1]
    assert list(audit.verify(tmp_path / 'out')) == [] and len((tmp_path / 'out.lost.csv').read_text().split()) > 1


@pytest.mark.parametrize('settings', [{'stats': True}, {'contact_sheet': 'sheet.png'}, {'extract': 3}])
def test_a_damaged_record_is_told_where_it_is_shown(damaged, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='record 3 of .* is damaged: tools/inspect_records.py --verify'):
        inspect_records.main(InspectRecordsConfig(records=str(damaged), **settings))
    assert [path.name for path in tmp_path.iterdir()] == ['records']


def test_statistics_are_those_of_the_files(record_set_path, source_images, capsys):
    lines = run(capsys, record_set_path, stats=True)[4:]
    rows, sizes = list(records.read_index(record_set_path)), {}
    for shard in records.read_manifest(record_set_path).shards:
        own = [row for row in rows if row.shard == shard.file]
        ends = [*(row.offset for row in own[1:]), shard.bytes]
        sizes.update({row.source: end - row.offset for row, end in zip(own, ends, strict=True)})
    for line in lines[1:-1]:
        split, label, *cells = line.split()
        own = [row.source for row in rows if (row.split, row.label) == (split, label)]
        spread = sorted(sizes[source] for source in own)
        middle = round((spread[(len(own) - 1) // 2] + spread[len(own) // 2]) / 2)
        jpeg = sum(source.endswith('.jpg') for source in own)
        assert cells == [str(len(own)), *(f'{size:,}' for size in (spread[0], middle, spread[-1])), str(len(own)),
                         str(jpeg), str(len(own) - jpeg), '0', *['40'] * 3, *['48'] * 3]
    assert len(lines) == 1 + 2 * 3 + 1 and len({len(line) for line in lines[:-1]}) == 1


def test_large_classes_are_looked_into_by_a_seeded_sample(record_set_path, capsys, monkeypatch):
    monkeypatch.setattr(inspect_records, '_SAMPLE', 5)
    seen = []
    looks = inspect_records._looks
    monkeypatch.setattr(inspect_records, '_looks', lambda one, ids: seen.append(ids) or looks(one, ids))
    first, again, other = (run(capsys, record_set_path, stats=True, seed=seed) for seed in (1, 1, 2))
    assert first == again and all(len(ids) <= 5 for ids in seen)
    assert seen[:6] == seen[6:12] != seen[12:] and len(first) == len(other)


def test_a_contact_sheet_shows_records_spread_over_a_split(record_set_path, tmp_path, capsys):
    lines = run(capsys, record_set_path, contact_sheet=str(tmp_path / 'sheet.png'), image_size='24x30')
    with Image.open(tmp_path / 'sheet.png') as image:
        sheet = np.asarray(image)
    assert sheet.shape == (8 * (24 + 2 * 14 + 4), 6 * (30 + 4) + 4, 3) and '208x448 pixels' in lines[-1]
    record_set = records.open_record_set(record_set_path)
    ids = record_set.split_range('train')
    for place in (0, 1, 6, 47):
        data = tf.constant(tfrecord.read_image(record_set, ids[len(ids) * place // 48]))
        top, left = place // 6 * 56 + 28, 4 + place % 6 * 34
        np.testing.assert_array_equal(sheet[top:top + 24, left:left + 30], images.decode(data, 24, 30))
        assert (sheet[top - 28:top, left:left + 30] < 128).any()  # its caption
    for left in range(0, 208, 34):
        assert (sheet[:28, left:left + 4] == 255).all()  # which reaches into no other


def test_a_split_of_few_records_makes_a_small_sheet(image_folder, convert_here, tmp_path, capsys):
    convert_here(image_folder({'train/a': 3, 'train/b': 5}), tmp_path / 'records')
    run(capsys, tmp_path / 'records', contact_sheet=str(tmp_path / 'sheet.png'), image_size='24')
    with Image.open(tmp_path / 'sheet.png') as image:
        assert image.size == (6 * 28 + 4, 2 * 56)


def test_a_record_becomes_the_file_that_it_was(record_set_path, source_images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = list(records.read_index(record_set_path))
    for kind in ('.jpg', '.png'):
        row = next(row for row in rows if row.source.endswith(kind))
        line, = run(capsys, record_set_path, extract=row.record_id)
        assert line == f'record{row.record_id}{kind}: record {row.record_id}, {row.label}, {row.source}'
        run(capsys, record_set_path, extract=row.record_id, output=f'other{kind}')
        for name in (f'record{row.record_id}{kind}', f'other{kind}'):
            assert (tmp_path / name).read_bytes() == (source_images / row.source).read_bytes()
        with pytest.raises(UserError, match='must be a new file'):
            run(capsys, record_set_path, extract=row.record_id)


def test_raw_pixels_are_extracted_and_measured(image_folder, convert_here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'records'
    convert_here(image_folder({'train/a': 2, 'train/b': 2}), folder, encoding='raw', image_size='20x24',
                 resize='squash')
    lines = run(capsys, folder, stats=True)
    assert [line.split()[6:] for line in lines[-3:-1]] == [['2', '0', '0', '2', *['20'] * 3, *['24'] * 3]] * 2
    run(capsys, folder, extract=3)
    with Image.open(tmp_path / 'record3.png') as image:
        assert image.tobytes() == tfrecord.read_image(records.open_record_set(folder), 3) and image.size == (24, 20)
