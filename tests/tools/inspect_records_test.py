"""The summary counts what is there; the sheet shows the pixels that training takes."""

import inspect_records
from inspect_records import InspectRecordsConfig
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from boardrec.config import UserError
from boardrec.data import augment, images, records
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
def test_the_sheet_shows_records_and_their_views(record_set_path, tmp_path, cached_views, columns):
    config = InspectRecordsConfig(records=str(record_set_path), augmented_sheet=str(tmp_path / 'sheet.png'),
                                  split='val', image_size='24x30', cached_views=cached_views, rotation=10.0, seed=3)
    inspect_records.main(config)
    with Image.open(config.augmented_sheet) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (8 * (24 + 14 + 4), (1 + columns) * (30 + 4) + 4, 3)
    record_set, views = records.open_record_set(record_set_path), feed.views(config)
    ids = record_set.split_range('val')
    for row in (0, 7):
        number = ids[len(ids) * row // 8]
        data = tf.constant(records.read_image(record_set, number))
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
    ({'augmented_sheet': 'nowhere/sheet.png'}, 'in a folder that exists'),
    ({'augmented_sheet': 'sheet.png'}, '--cached_views=1: a training without augmentation')])
def test_what_cannot_be_drawn_is_refused(record_set_path, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        inspect_records.main(InspectRecordsConfig(records=str(record_set_path), **settings))
    assert list(tmp_path.iterdir()) == []
