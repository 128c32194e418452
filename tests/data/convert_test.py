"""From a folder of images to a record set: what goes where, what is refused, how records are stored."""

import math
import os
import re
import shutil

from conversions import outcome, stamps, touch, tree_sums
import pytest

from boardrec.config import ConvertConfig, UserError
from boardrec.data import convert, files, records, scan, shards, storage_report, tfrecord
from boardrec.data import images as image_lib
from boardrec.data.table import Table

# What is found


def test_each_file_found_becomes_a_record_or_a_rejection(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 8, 'b': 8}, folder=tmp_path / 'images')
    touch(images, 'a/empty.png', content=b'')
    touch(images, 'b/text.jpg', 'a/.DS_Store', 'a/._board000.jpg', 'loose.png')
    jpeg = (images / 'a' / 'board000.jpg').read_bytes()
    touch(images, 'b/cut.jpg', content=jpeg[:-2])
    os.mkfifo(images / 'a' / 'pipe')
    (images / 'b' / 'dangling.png').symlink_to('nowhere.png')
    (images / 'b' / 'loop.png').symlink_to('loop.png')
    (images / 'b' / 'linked.jpg').symlink_to(images / 'a' / 'board000.jpg')
    (images / 'a' / 'up').symlink_to(images)
    manifest = convert_here(images, tmp_path / 'out', splits='train:1')
    good = {f'{label}/board{i:03d}.{"png" if i % 2 else "jpg"}' for label in 'ab' for i in range(8)} | {'b/linked.jpg'}
    assert outcome(tmp_path / 'out') == {
        **dict.fromkeys(good, 'train'), 'a/empty.png': 'empty', 'b/text.jpg': 'not an image',
        'a/.DS_Store': 'system file', 'a/._board000.jpg': 'system file',
        'loose.png': 'not in a class folder', 'b/cut.jpg': 'truncated',
        'a/pipe': 'not a regular file', 'b/dangling.png': 'unreadable: No such file or directory',
        'b/loop.png': 'unreadable: Too many levels of symbolic links',
        'a/up': 'folder found a second time, through a link'}
    assert manifest.splits['train'].records == 17
    sums = {source: digest for source, _, digest in records.read_rejected(tmp_path / 'out')}
    assert sums['b/cut.jpg'] == files.sha256_of(images / 'b' / 'cut.jpg')
    assert sums['a/pipe'] == ''


def test_a_rejected_file_is_listed_once_also_where_a_labels_csv_names_it(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 4, 'b': 4}, folder=tmp_path / 'images')
    os.mkfifo(images / 'a' / 'pipe')
    labels = tmp_path / 'labels.csv'
    names = [f'{label}/board{i:03d}.{"png" if i % 2 else "jpg"}' for label in 'ab' for i in range(4)]
    labels.write_text('path,label\n' + ''.join(f'{name},{name[0]}\n' for name in [*names, 'a/pipe']))
    for _ in range(2):
        convert_here(images, tmp_path / 'out', labels_csv=str(labels), splits='train:1')
        assert [row[0] for row in records.read_rejected(tmp_path / 'out')] == ['a/pipe']


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path, image_folder, convert_here):
    elsewhere = image_folder({'positive': 6}, folder=tmp_path / 'elsewhere')
    images = image_folder({'negative': 6}, folder=tmp_path / 'images')
    (images / 'positive').symlink_to(elsewhere / 'positive', target_is_directory=True)
    convert_here(images, tmp_path / 'out', splits='train:1')
    sources = outcome(tmp_path / 'out')
    assert len(sources) == 12
    assert 'positive/board000.jpg' in sources, 'named by the link, not by where it leads'


def test_names_that_are_hard_to_write_down_survive(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 2, 'b': 6}, folder=tmp_path / 'images')
    names = ['a/two\nlines.png', 'a/"quotes", commas.png', 'a/[x]*?.png', 'a/\udcff.png', 'a/図.png', 'a/ .png',
             'a/-x.png']
    for name in names:
        shutil.copy(images / 'a' / 'board001.png', images / name)
    touch(images, 'b/\udcfe\n".png')
    out = tmp_path / 'out [x] 図'
    convert_here(images, out, splits='train:1')
    sources = outcome(out)
    assert set(names) <= set(sources)
    assert sources['b/\udcfe\n".png'] == 'not an image'
    before = stamps(out)
    convert_here(images, out, splits='train:1')
    assert stamps(out) == before, 'recognised again'
    assert set(names) <= set(records.open_record_set(out).sources)


@pytest.mark.parametrize('name', ['two\nlines', '\udcff'], ids=ascii)
def test_a_class_name_that_the_records_cannot_hold_is_refused(tmp_path, image_folder, convert_here, name):
    """label.labels.txt, which TFDS reads, is UTF-8 with a line for each class."""
    images = image_folder({'a': 2, name: 2}, folder=tmp_path / 'images')
    with pytest.raises(UserError, match='class'):
        convert_here(images, tmp_path / 'out', splits='train:1')


def test_an_output_folder_that_tensorflow_cannot_name_is_refused(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 2, 'b': 2}, folder=tmp_path / 'images')
    with pytest.raises(UserError, match='--output_dir'):
        convert_here(images, tmp_path / '\udcff', splits='train:1')


# What is refused


@pytest.mark.parametrize(('names', 'others', 'match'), [
    ([], {}, r'--input_dir=.*: no files in it; images belong into CLASS/'),
    (['a.png', 'b.png'], {}, 'no file lies in a class folder'),
    (['a/a.png', 'a/b.png'], {}, "only one class, 'a'; a classifier needs at least two"),
    (['train/a/1.png', 'train/b/2.png', 'val/c/3.png'], {}, "no training image of class 'c'"),
    (['a/a.png', 'b/b.png'], {'splits': 'val:1'}, "no training image of class 'a'.*--splits"),
    (['train/a/1.png', 'train/b/2.png'], {}, "every training image of class 'a' was rejected: see .*rejected.csv"),
    (['train/a/1.png', 'train/b/2.png'], {'max_bad_fraction': 0.05}, '2 of 2 files can become no record, which is more '
     'than --max_bad_fraction=0.05: see .*rejected.csv'),
    (['train/a/1.png', 'train/b/2.png'], {'on_bad_image': 'fail'}, 'train/[ab]/[12].png: not an image'),
])
def test_input_that_makes_no_training_set_is_refused(tmp_path, convert_here, names, others, match):
    images = tmp_path / 'images'
    images.mkdir()
    touch(images, *names)
    with pytest.raises(UserError, match=match):
        convert_here(images, tmp_path / 'out', **others)
    assert not (tmp_path / 'out' / records.MANIFEST).exists()


def test_folders_that_cannot_be_used_are_refused(tmp_path, convert_here, image_folder):
    images = image_folder({'a': 2, 'b': 2}, folder=tmp_path / 'images')
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to(images)
    with pytest.raises(UserError, match=r'--input_dir=.*nowhere: there is no such folder'):
        convert_here(tmp_path / 'nowhere', tmp_path / 'out')
    with pytest.raises(UserError, match='--input_dir=.*file: is no folder'):
        convert_here(tmp_path / 'file', tmp_path / 'out')
    with pytest.raises(UserError, match=r'--output_dir=.*file is a file'):
        convert_here(images, tmp_path / 'file')
    for output in (images, images / 'records', images / 'a' / 'deep' / 'er', tmp_path / 'link' / 'records',
                   images / 'a' / '..' / 'records'):
        with pytest.raises(UserError, match=r'--output_dir=.* lies within --input_dir'):
            convert_here(images, output)
    assert sorted(path.name for path in images.iterdir()) == ['a', 'b']


@pytest.mark.parametrize('name', ['thesis.docx', 'boardrec-notes.txt', 'manifest.json.bak', 'train'])
@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path, image_folder, convert_here, name, overwrite):
    images, out = image_folder({'a': 2, 'b': 2}, folder=tmp_path / 'images'), tmp_path / 'out'
    out.mkdir()
    (out / name).write_text('mine')
    with pytest.raises(UserError, match=rf'--output_dir=.* holds {re.escape(name)}, which is no part of a record set'):
        convert_here(images, out, overwrite=overwrite, splits='train:1')
    assert (out / name).read_text() == 'mine'
    assert len(list(out.iterdir())) == 1


# A second run


def test_a_second_run_does_nothing(converted, capsys):
    _, out, run = converted
    before, manifest = stamps(out), records.read_manifest(out)
    assert run() == manifest
    assert stamps(out) == before
    assert 'holds these images already; nothing to do' in capsys.readouterr().out


def test_the_listing_order_changes_nothing(converted, tmp_path, convert_here, monkeypatch):
    images, out, _ = converted
    walk = os.walk

    def reversed_walk(*args, **kwargs):
        for folder, subfolders, names in walk(*args, **kwargs):
            subfolders.sort(reverse=True)
            yield folder, subfolders, sorted(names, reverse=True)

    monkeypatch.setattr(os, 'walk', reversed_walk)
    convert_here(images, tmp_path / 'other', splits='train:0.7,test:0.3')
    assert tree_sums(tmp_path / 'other') == tree_sums(out)


def bad(images, count):
    for i in range(count):
        touch(images, f'a/bad{i}.jpg')


@pytest.mark.parametrize('settings', [{'max_bad_fraction': 0.1}, {'on_bad_image': 'fail'}], ids=str)
def test_what_ends_a_conversion_ends_the_same_command_again(converted, settings):
    """Also where all shards are built by then, by a run that was allowed more."""
    images, out, run = converted
    bad(images, 5)
    before = tree_sums(out)
    for _ in range(2):
        with pytest.raises(UserError, match='max_bad_fraction=0.1|on_bad_image=fail'):
            run(**settings)
        assert tree_sums(out) == before
    run()
    for _ in range(2):
        with pytest.raises(UserError, match='max_bad_fraction=0.1|on_bad_image=fail'):
            run(**settings)


def test_files_that_a_labels_csv_lists_in_vain_count_as_bad(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 4, 'b': 4}, folder=tmp_path / 'images')
    names = [f'{label}/board{i:03d}.{"png" if i % 2 else "jpg"}' for label in 'ab' for i in range(8)]
    labels = tmp_path / 'labels.csv'
    labels.write_text('path,label\n' + ''.join(f'{name},{name[0]}\n' for name in names))
    settings = {'labels_csv': str(labels), 'splits': 'train:1'}
    with pytest.raises(UserError, match='^8 of 16 files can become no record, .* --max_bad_fraction=0.4: see'):
        convert_here(images, tmp_path / 'out', max_bad_fraction=0.4, **settings)
    with pytest.raises(UserError, match='a/board004.jpg: listed in labels_csv but not a file .--on_bad_image=fail'):
        convert_here(images, tmp_path / 'out', on_bad_image='fail', **settings)
    convert_here(images, tmp_path / 'out', max_bad_fraction=0.5, **settings)


def test_overwrite_builds_all_again_also_after_a_run_that_failed(converted):
    images, out, run = converted
    bad(images, 5)
    with pytest.raises(UserError, match='max_bad_fraction'):
        run(max_bad_fraction=0.1)
    path = out / records.read_manifest(out).shards[0].file
    stamp = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    run(overwrite=True)
    records.require_sums(records.open_record_set(out))


# Resized and encoded anew


@pytest.mark.parametrize(('settings', 'facts'), [
    ({}, ('keep', None, None, None)),
    ({'encoding': 'png'}, ('png', None, None, None)),
    ({'encoding': 'jpeg', 'image_size': '24'}, ('jpeg', [24, 24], 'shorter', 95)),
    ({'encoding': 'jpeg', 'image_size': '20x24', 'resize': 'pad', 'jpeg_quality': 80}, ('jpeg', [20, 24], 'pad', 80)),
    ({'encoding': 'raw', 'image_size': '20', 'resize': 'squash'}, ('raw', [20, 20], 'squash', None)),
], ids=str)
def test_records_hold_what_the_manifest_says_and_a_second_run_does_nothing(
        tmp_path, image_folder, convert_here, capsys, settings, facts):
    images, out = image_folder({'a': 3, 'b': 3}, folder=tmp_path / 'images'), tmp_path / 'out'
    manifest = convert_here(images, out, splits='train:1', **settings)
    assert (manifest.encoding, manifest.image_size, manifest.resize, manifest.quality) == facts
    record_set = records.open_record_set(out)
    for record_id, source in enumerate(record_set.sources):
        made = image_lib.prepare((images / source).read_bytes(), manifest.storage)
        assert tfrecord.read_image(record_set, record_id) == made.stored
    assert {row.sha256 for row in records.read_index(out)} == {files.sha256_of(images / name)
                                                               for name in record_set.sources}
    before = stamps(out)
    capsys.readouterr()
    assert convert_here(images, out, splits='train:1', **settings) == manifest
    assert stamps(out) == before
    assert 'nothing to do' in capsys.readouterr().out


def test_what_became_of_the_images_is_told_where_they_changed(tmp_path, image_folder, convert_here, capsys):
    images = image_folder({'a': 3, 'b': 3}, folder=tmp_path / 'images')
    convert_here(images, tmp_path / 'kept', splits='train:1')
    assert 'times as fast' not in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_report, 'measure', lambda *_: storage_report.Measured(6, math.inf, 1.1))
        convert_here(images, tmp_path / 'png', splits='train:1', encoding='png')
    assert 'hardly faster to decode: leave out --encoding=png' in capsys.readouterr().out
    convert_here(images, tmp_path / 'raw', splits='train:1', encoding='raw', image_size='20', resize='squash')
    out = capsys.readouterr().out
    assert re.search(r'^raw: 0\.0 MiB of records from 0\.0 MiB of images; lossless; decoded to 20x20 \d+\.\d times as '
                     r'fast \(6 images measured\)$', out, re.MULTILINE)
    assert 'squash what is padded' not in out
    convert_here(images, tmp_path / 'pad', splits='train:1', encoding='png', image_size='20', resize='pad')
    assert 'note: predict and the export squash what is padded here' in capsys.readouterr().out


@pytest.mark.parametrize(('settings', 'expected'), [
    ({}, 150), ({'encoding': 'jpeg'}, 150),
    ({'encoding': 'raw', 'image_size': '256', 'resize': 'pad'}, 6),  # 1,000 times 192 KiB
    ({'encoding': 'jpeg', 'image_size': '256'}, 1),
    ({'encoding': 'raw', 'image_size': '2000x3000', 'resize': 'squash'}, 536),
], ids=str)
def test_shards_are_as_large_as_asked_for_by_what_they_will_hold(settings, expected):
    found = Table(scan.Found, (scan.Found(f'a/{i:04d}.jpg', 'train', 'a', 32 * 150 * 1049) for i in range(1000)))
    config = ConvertConfig(input_dir='unused', output_dir='unused', **settings)
    assert len(shards.plan(found, convert.source_bytes_a_shard(config, found))) == expected
