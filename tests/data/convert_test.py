"""From a folder of images to a record set: what goes where, what is refused, what a second or a killed run does."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from boardrec.config import ConvertConfig, UserError
from boardrec.data import convert, files, journal, records, scan, shards, tfrecord, workers
from boardrec.data import images as image_lib

ROOT = pathlib.Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'make_records.py'


def settings(input_dir, output_dir='unused', **others):
    return ConvertConfig(input_dir=str(input_dir), output_dir=str(output_dir), **others)


def touch(folder, *names, content=b'not an image'):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def set_files(folder):
    """The files of a record set, without the converter's journal."""
    return [path for path in folder.iterdir() if path.name != journal.FOLDER]


def tree_sums(folder):
    return {path.name: files.sha256_of(path) for path in set_files(folder)}


def stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in set_files(folder)}


def outcome(folder):
    """What became of each file: {source: split or reason}."""
    rows = {row.source: row.split for row in records.read_index(folder)}
    rejected = {source: reason for source, reason, _ in records.read_rejected(folder)}
    assert not set(rows) & set(rejected)
    return rows | rejected


class Silent:
    """A worker's watch that nobody looks at."""

    def begin(self, item):
        pass

    def end(self):
        pass


def build(images, folder, shard_plan, *, skipped=None, max_bytes=1 << 30, on_bad_image='reject'):
    """Builds a shard in this process; what its journal says."""
    job = shards.Job(str(images), str(folder), shard_plan, ['a', 'b'], records.KEEP, max_bytes, image_lib.Limits(),
                      on_bad_image)
    rejected = shards.build(job, skipped or {}, Silent())
    built = journal.read(folder, shard_plan.file)
    assert rejected == len(built.rejected())
    return built


# Places


NAMES = [f'class{i % 2}/img_{i:04d}.jpg' for i in range(2000)]


def found_items(count, size=1000):
    return [scan.Found(name, 'train', name[:6], size) for name in NAMES[:count]]


def test_a_plan_holds_each_file_once_in_shards_of_about_the_size_asked_for():
    plans = shards.plan(found_items(2000), 100_000)
    assert [shard.file for shard in plans] == [records.shard_file('train', i, 20) for i in range(20)]
    assert sorted(item.source for shard in plans for item in shard.found) == sorted(NAMES)
    counts = [len(shard.found) for shard in plans]
    assert 100 - 4 * 10 < min(counts) and max(counts) < 100 + 4 * 10  # binomial, standard deviation 10


def test_a_files_place_depends_on_its_path_alone():
    places = [[item.source for item in shard.found] for shard in shards.plan(found_items(6), 3000)]
    assert places == PLACES, 'a change gives every record set other bytes: never renew these'


PLACES = [
    ['class0/img_0004.jpg', 'class0/img_0000.jpg', 'class1/img_0003.jpg'],
    ['class1/img_0005.jpg', 'class1/img_0001.jpg', 'class0/img_0002.jpg'],
]


def test_a_plan_mixes_the_classes_and_does_not_depend_on_the_order_of_the_files():
    found = found_items(400)
    plans = shards.plan(found, 100_000)
    assert shards.plan(found[::-1], 100_000) == plans
    for shard in plans:
        labels = [item.label for item in shard.found]
        runs = 1 + sum(a != b for a, b in zip(labels, labels[1:], strict=False))
        assert runs == pytest.approx(len(labels) / 2 + 1, abs=4 * np.sqrt(len(labels)) / 2), 'as in a uniform shuffle'


def test_a_split_has_at_least_one_shard_and_splits_stand_in_their_order():
    found = [scan.Found(f'a/{split}', split, 'a', 10) for split in ('test', 'val', 'train')]
    assert [(shard.file, shard.split) for shard in shards.plan(found, 1 << 30)] == [
        (records.shard_file(split, 0, 1), split) for split in ('train', 'val', 'test')]


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


def test_a_file_that_vanishes_during_the_conversion_is_rejected(tmp_path, image_folder):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    (images / 'a' / 'board001.png').unlink()
    built = build(images, tmp_path, shard_plan)
    assert built.rejected() == [scan.Rejection('a/board001.png', 'unreadable: No such file or directory')]
    assert (built.shard.records, len(built.made())) == (3, 3)


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


def test_a_class_with_only_rejected_images_is_refused_with_its_rejections(tmp_path, image_folder, convert_here):
    images = image_folder({'good': 4}, folder=tmp_path / 'images')
    touch(images, 'bad/1.png', 'bad/2.png')
    with pytest.raises(UserError, match="every training image of class 'bad' was rejected"):
        convert_here(images, tmp_path / 'out', splits='train:1')
    assert [row[:2] for row in records.read_rejected(tmp_path / 'out' / journal.FOLDER)] == [
        ('bad/1.png', 'not an image'), ('bad/2.png', 'not an image')]
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


@pytest.fixture
def converted(tmp_path, image_folder, convert_here):
    """(images, records, run): a converted folder and a function that converts it again."""
    images, out = image_folder({'a': 6, 'b': 6}, folder=tmp_path / 'images'), tmp_path / 'out'
    touch(images, 'a/broken.png', 'loose.txt')

    def run(*, input_dir=images, **others):
        return convert_here(input_dir, out, **{'splits': 'train:0.7,test:0.3', **others})

    run()
    return images, out, run


def test_a_second_run_does_nothing(converted, capsys):
    _, out, run = converted
    before, manifest = stamps(out), records.read_manifest(out)
    assert run() == manifest
    assert stamps(out) == before
    assert 'holds these images already; nothing to do' in capsys.readouterr().out


def test_overwrite_builds_everything_again_to_the_same_bytes(converted):
    _, out, run = converted
    before, stamps_before = tree_sums(out), stamps(out)
    run(overwrite=True)
    assert tree_sums(out) == before
    names = [name for name in before if records.is_shard_file(name)]
    assert names and all(stamps(out)[name] != stamps_before[name] for name in names)


CHANGES = {
    'a file more': lambda images: shutil.copy(images / 'a' / 'board000.jpg', images / 'b' / 'more.jpg'),
    'a file less': lambda images: (images / 'a' / 'board000.jpg').unlink(),
    'other bytes': lambda images: shutil.copy(images / 'b' / 'board003.png', images / 'a' / 'board001.png'),
    'a file in another class': lambda images: (images / 'a' / 'board001.png').rename(images / 'b' / 'board009.png'),
    'other bytes of a rejected file': lambda images: touch(images, 'a/broken.png', content=b'something else'),
    'a rejected file is whole': lambda images: shutil.copy(images / 'a' / 'board001.png', images / 'a' / 'broken.png'),
    'a record is broken now': lambda images: touch(images, 'a/board001.png'),
    'a stray file more': lambda images: touch(images, 'stray.txt'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_after_a_change_only_the_shards_that_it_touches_are_built_again(converted, tmp_path, convert_here, change):
    images, out, run = converted
    run(shard_bytes=4000, reshard=True)
    before, sums_before = stamps(out), tree_sums(out)
    CHANGES[change](images)
    run()
    convert_here(images, tmp_path / 'fresh', splits='train:0.7,test:0.3', shard_bytes=4000)
    counts = [len({name for name in tree_sums(folder) if records.is_shard_file(name)})
              for folder in (out, tmp_path / 'fresh')]
    if counts[0] == counts[1]:
        assert tree_sums(out) == tree_sums(tmp_path / 'fresh')
    assert outcome(out) == outcome(tmp_path / 'fresh')
    names = [name for name in before if records.is_shard_file(name)]
    assert len(names) > 5
    touched = [name for name in names if stamps(out)[name] != before[name]]
    assert len(touched) <= 2, 'a file that moves leaves one shard for another'
    assert all(tree_sums(out)[name] == sums_before[name] for name in set(names) - set(touched))


def test_ten_more_images_touch_ten_shards_at_most(tmp_path, image_folder, convert_here):
    images, out = image_folder({'a': 60, 'b': 60}, folder=tmp_path / 'images'), tmp_path / 'out'
    convert_here(images, out, splits='train:1', shard_bytes=8000)
    before = stamps(out)
    for i in range(10):
        shutil.copy(images / 'a' / f'board{i:03d}.{"png" if i % 2 else "jpg"}', images / 'b' / f'more{i}.jpg')
    convert_here(images, out, splits='train:1', shard_bytes=8000)
    names = [name for name in before if records.is_shard_file(name)]
    assert len(names) > 20
    assert 1 <= sum(stamps(out)[name] != before[name] for name in names) <= 10
    assert records.read_manifest(out).splits['train'].records == 130


def test_a_new_class_gives_all_records_new_numbers(converted, image_folder):
    images, out, run = converted
    image_folder({'0': 4}, folder=images)
    run()
    record_set = records.open_record_set(out)
    assert record_set.manifest.class_names == ['0', 'a', 'b']
    assert [record_set.manifest.class_names[label] for label in record_set.labels] == [
        source[0] for source in record_set.sources]


def test_a_file_that_was_touched_is_read_and_found_to_be_the_same(converted, capsys):
    images, out, run = converted
    before = stamps(out)
    for path in images.rglob('*'):
        os.utime(path)
    run()
    assert stamps(out) == before
    assert 'nothing to do' in capsys.readouterr().out


def test_files_that_are_known_by_their_time_are_not_read_again(converted, monkeypatch):
    images, out, run = converted
    for path in images.rglob('*.*'):
        os.utime(path, ns=(10**18, 10**18))
    run()
    read = []
    sha256_of = files.sha256_of
    monkeypatch.setattr(files, 'sha256_of', lambda path: read.append(path) or sha256_of(path))
    run()
    assert [path for path in read if images in path.parents] == []


def test_other_images_are_refused(converted, tmp_path, image_folder):
    _, out, run = converted
    before = stamps(out)
    others = image_folder({'x': 4, 'y': 4}, folder=tmp_path / 'others')
    with pytest.raises(UserError, match='holds records of other images, none of which is in --input_dir='):
        run(input_dir=others)
    assert stamps(out) == before
    run(input_dir=others, overwrite=True)
    assert set(outcome(out)) == {f'{label}/board{i:03d}.{"png" if i % 2 else "jpg"}' for label in 'xy'
                                 for i in range(4)}


@pytest.mark.parametrize(('others', 'named'), [
    ({'splits': 'train:1'}, '--splits=train:0.7,test:0.3, not with --splits=train:1'),
    ({'encoding': 'png'}, '--encoding=keep, not with --encoding=png'),
    ({'encoding': 'raw', 'image_size': '8x9', 'resize': 'pad'}, '--encoding=keep, not with --encoding=raw')])
def test_changed_settings_are_named_and_refused_without_overwrite(converted, others, named):
    _, out, run = converted
    before = stamps(out)
    with pytest.raises(UserError, match=re.escape(f'was converted with {named}: name another')):
        run(**others)
    assert stamps(out) == before
    run(overwrite=True, **others)
    assert stamps(out) != before


def test_the_number_of_shards_stays_until_it_is_decided_anew(converted):
    _, out, run = converted
    before = stamps(out)
    run(shard_bytes=4000)
    assert stamps(out) == before
    run(shard_bytes=4000, reshard=True)
    assert len(records.read_manifest(out).shards) > 5


def test_a_set_without_its_journal_is_left_alone(converted):
    _, out, run = converted
    shutil.rmtree(out / journal.FOLDER)
    before = stamps(out)
    with pytest.raises(UserError, match='without the journal'):
        run()
    assert stamps(out) == before
    run(overwrite=True)
    assert tree_sums(out)


def damaged_shard(out):
    shard = records.read_manifest(out).shards[0]
    content = bytearray((out / shard.file).read_bytes())
    content[100] ^= 1
    (out / shard.file).write_bytes(content)


DAMAGES = {
    'a shard is missing': lambda out: (out / records.read_manifest(out).shards[0].file).unlink(),
    'a bit of a shard is flipped': damaged_shard,
    'the index is cut': lambda out: os.truncate(out / records.INDEX, 100),
    'the manifest is cut': lambda out: os.truncate(out / records.MANIFEST, 100),
    'rejected.csv is missing': lambda out: (out / records.REJECTED).unlink(),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_set_is_mended(converted, damage):
    _, out, run = converted
    before = tree_sums(out)
    DAMAGES[damage](out)
    run()
    assert tree_sums(out) == before


def test_a_run_that_was_killed_halfway_goes_on(converted):
    """What belongs to no set is removed; shards that are built are not built again."""
    _, out, run = converted
    before, shards = tree_sums(out), {name: stamp for name, stamp in stamps(out).items()
                                      if records.is_shard_file(name)}
    (out / records.MANIFEST).unlink()
    (out / records.INDEX).unlink()
    (out / records.shard_file('train', 7, 9)).write_bytes(b'of another plan')
    (out / '.tmp-boardrec-train.tfrecord-00000-of-00001-12345').write_bytes(b'half')
    (out / journal.FOLDER / '.tmp-boardrec-train.tfrecord-00000-of-00001-12345').write_bytes(b'half')
    run()
    assert tree_sums(out) == before
    assert {name: stamp for name, stamp in stamps(out).items() if name in shards} == shards
    assert not list((out / journal.FOLDER).glob('.tmp-*'))


@pytest.mark.parametrize('overwrite', [False, True])
def test_what_an_interrupted_conversion_has_built_is_used(converted, monkeypatch, overwrite):
    images, out, run = converted
    run(shard_bytes=4000, reshard=True)
    for path in images.rglob('*.png'):
        shutil.copy(images / 'a' / 'board000.jpg', path)
    real, built = shards.build, []

    def interrupted(job, *args):
        if len(built) == 3:
            raise KeyboardInterrupt
        built.append(job.plan.file)
        return real(job, *args)

    monkeypatch.setattr(shards, 'build', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(overwrite=overwrite, shard_bytes=4000)
    assert records.open_record_set(out), 'the set that was there is there still'
    again = []
    monkeypatch.setattr(shards, 'build', lambda job, *args: again.append(job.plan.file) or real(job, *args))
    run(overwrite=overwrite, shard_bytes=4000)
    assert again and not set(again) & set(built)


def test_a_reshard_that_was_interrupted_at_its_first_shard_goes_on(converted, monkeypatch):
    _, out, run = converted

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, 'build', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(shard_bytes=4000, reshard=True)
    monkeypatch.undo()
    run(shard_bytes=4000, reshard=True)
    assert len(records.open_record_set(out).manifest.shards) > 5


def test_a_reader_never_takes_a_set_that_is_being_replaced_for_complete(converted, monkeypatch):
    """The old set is there until all shards of the new one are built; then there is none until that is."""
    images, out, run = converted
    before, seen = records.read_manifest(out), []
    build, write_index, write_metadata = shards.build, records.write_index, tfrecord.write_tfds_metadata

    def looking(function, expected):
        def call(*args):
            seen.append(expected)
            if expected:
                assert records.open_record_set(out).manifest == before
            else:
                assert not (out / records.MANIFEST).exists()
            return function(*args)
        return call

    monkeypatch.setattr(shards, 'build', looking(build, True))
    monkeypatch.setattr(records, 'write_index', looking(write_index, False))
    monkeypatch.setattr(tfrecord, 'write_tfds_metadata', looking(write_metadata, False))
    shutil.copy(images / 'a' / 'board001.png', images / 'b' / 'more.png')
    run(overwrite=True)
    assert True in seen and seen.count(False) == 2


def test_a_second_converter_on_one_folder_is_refused(converted):
    images, out, run = converted
    code = ('import sys, pathlib\nfrom boardrec.data import journal\n'
            'with journal.locked(pathlib.Path(sys.argv[1])):\n    print("held", flush=True)\n    sys.stdin.read()')
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen([sys.executable, '-c', code, str(out)], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=rf'another make_records \(process {other.pid} on .*\) is at work there'):
            run()
        other.stdin.close()
    run()


def test_a_file_whose_decoder_crashed_is_rejected_by_name(tmp_path, image_folder):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    built = build(images, tmp_path, shard_plan, skipped={2: workers.CRASH})
    bad = shard_plan.found[2].source
    assert built.rejected() == [scan.Rejection(bad, 'decoder error: it crashed', files.sha256_of(images / bad))]


def test_a_file_whose_decoder_crashed_is_tried_again(converted, monkeypatch):
    """Its worker may have died of something else, such as a lack of memory."""
    images, out, run = converted
    before, real = tree_sums(out), shards.build
    os.utime(images / 'a' / 'board001.png')
    shutil.copy(images / 'a' / 'board001.png', images / 'a' / 'board003.png')
    monkeypatch.setattr(shards, 'build', lambda job, _, watch: real(job, {0: workers.CRASH}, watch))
    run()
    assert 'decoder error: it crashed' in outcome(out).values()
    monkeypatch.undo()
    run()
    assert 'decoder error: it crashed' not in outcome(out).values()
    assert set(tree_sums(out)) == set(before)


def test_a_file_of_too_many_bytes_is_rejected_unread(tmp_path, image_folder):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    large = images / 'a' / 'large.jpg'
    with open(large, 'wb') as file:
        file.truncate(10_001)
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    built = build(images, tmp_path, shard_plan, max_bytes=10_000)
    assert built.rejected() == [
        scan.Rejection('a/large.jpg', 'too large: 10001 bytes, at most 10000', files.sha256_of(large))]


def test_a_file_that_changes_while_it_is_read_is_rejected(tmp_path, image_folder, monkeypatch):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    fstat, ticks = os.fstat, iter(range(10**6))

    def restless(descriptor):
        path = os.readlink(f'/proc/self/fd/{descriptor}')
        if path.endswith('board001.png'):
            os.utime(path, ns=(10**18, 10**18 + next(ticks)))
        return fstat(descriptor)

    monkeypatch.setattr(os, 'fstat', restless)
    built = build(images, tmp_path, shard_plan)
    assert [row[:2] for row in built.rejected()] == [('a/board001.png', 'unreadable: it changes while it is read')]


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


def test_an_error_at_the_end_leaves_no_manifest_and_the_same_command_goes_on(converted, monkeypatch):
    images, out, run = converted
    shutil.copy(images / 'a' / 'board001.png', images / 'b' / 'more.png')

    def full(*args):
        raise OSError(28, 'No space left on device', 'shard')

    monkeypatch.setattr(records, 'write_index', full)
    with pytest.raises(OSError, match='No space left'):
        run()
    assert not (out / records.MANIFEST).exists()
    monkeypatch.undo()
    monkeypatch.setattr(shards, 'build', None)
    run()
    assert 'b/more.png' in outcome(out)


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


def test_a_changed_file_is_noticed_where_records_hold_other_bytes_too(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 3, 'b': 3}, folder=tmp_path / 'images')
    settings = {'splits': 'train:1', 'encoding': 'raw', 'image_size': '20', 'resize': 'squash'}
    convert_here(images, tmp_path / 'out', **settings)
    shutil.copy(images / 'b' / 'board001.png', images / 'a' / 'board001.png')
    convert_here(images, tmp_path / 'out', **settings)
    record_set = records.open_record_set(tmp_path / 'out')
    one, other = (tfrecord.read_image(record_set, record_set.sources.index(f'{label}/board001.png')) for label in 'ab')
    assert one == other


def test_what_became_of_the_images_is_told_where_they_changed(tmp_path, image_folder, convert_here, capsys):
    images = image_folder({'a': 3, 'b': 3}, folder=tmp_path / 'images')
    convert_here(images, tmp_path / 'kept', splits='train:1')
    assert 'times as fast' not in capsys.readouterr().out
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
    found = found_items(1000, size=32 * 150 * 1049)
    config = ConvertConfig(input_dir='unused', output_dir='unused', **settings)
    assert len(shards.plan(found, convert.source_bytes_a_shard(config, found))) == expected


# As a command, with real worker processes


def command(*args, **options):
    return subprocess.Popen([sys.executable, str(TOOL), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True, **options)


def finished(process):
    """(exit status, standard output, standard error)."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope='module')
def mistakes(tmp_path_factory):
    """A folder with some images, an output folder that holds something else, and nothing named `nowhere`."""
    folder = tmp_path_factory.mktemp('mistakes')
    touch(folder, 'images/a/1.png', 'images/b/2.png', 'other/thesis.docx', 'one_class/a/1.png', 'empty_class/a/1.png',
          'empty_class/b/1.png')
    (folder / 'empty_class' / 'c').mkdir()
    (folder / 'empty').mkdir()
    return folder


@pytest.mark.parametrize(('args', 'match'), [
    (['--input_dir=nowhere', '--output_dir=out'], '--input_dir=nowhere: there is no such folder'),
    (['--input_dir=images'], '--output_dir is missing'),
    (['--input_dir=images', '--output_dir=out', '--worker=2'], "Unknown command line flag 'worker'"),
    (['--input_dir=images', '--output_dir=out', 'images'], "'images' is not a flag"),
    (['--input_dir=images', '--output_dir=out', '--shard_mib=0'], '--shard_mib=0: must be at least 1'),
    (['--input_dir=images', '--splits=train:1', '--output_dir=other'], 'holds thesis.docx'),
    (['--input_dir=images', '--output_dir=images/records'], 'lies within --input_dir'),
    (['--input_dir=empty', '--output_dir=out'], 'no files in it'),
    (['--input_dir=one_class', '--output_dir=out'], 'only one class'),
    (['--input_dir=empty_class', '--output_dir=out'], 'a class with no images'),
], ids=lambda value: value[-1] if isinstance(value, list) else '')
def test_a_mistake_ends_with_status_2_and_one_line(mistakes, args, match):
    status, _, err = finished(command(*args, cwd=mistakes))
    assert status == 2
    assert err.startswith('error: ')
    assert match in err
    assert err.count('\n') == 1
    assert not (mistakes / 'out').exists()


def group(process):
    """The processes of a command's session that are alive, by their command lines."""
    found = {}
    for entry in pathlib.Path('/proc').iterdir():
        try:
            if entry.name.isdecimal() and os.getsid(int(entry.name)) == process.pid:
                line = (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode()
                if line:  # a zombie has none
                    found[int(entry.name)] = line
        except (OSError, ProcessLookupError):
            continue
    return found


def wait_until(condition, process, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_nothing_is_left(process, seconds):
    """A process that was told to end may take a moment."""
    deadline = time.monotonic() + seconds
    while (left := group(process)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == {}


@pytest.fixture(scope='module')
def slow_images(tmp_path_factory, image_folder):
    """27 images; three, one in each shard of 9 MiB, take a worker half a second."""
    images = image_folder({'a': 12, 'b': 12}, folder=tmp_path_factory.mktemp('slow') / 'images')
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), dtype=np.uint8)
    path = images / 'a' / 'slow0.tiff'
    Image.fromarray(noise).save(path)
    for i in (1, 2):
        (images / ('a' if i % 2 else 'b') / f'slow{i}.tiff').symlink_to(path)
    return images


proc = pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs /proc')


@proc
def test_ctrl_c_stops_every_process_and_the_same_command_completes_with_the_bytes_of_any_other(
        slow_images, tmp_path, convert_here):
    """Two workers and no worker write the same files; the next test adds one worker."""
    out = tmp_path / 'out'
    args = [f'--input_dir={slow_images}', f'--output_dir={out}', '--splits=train:1', '--shard_mib=9', '--workers=2']
    process = command(*args)
    wait_until(lambda: list((out / journal.FOLDER).glob('.tmp-boardrec-*')), process)
    assert len(group(process)) >= 3
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    status, _, err = finished(process)
    assert status == 130
    assert err.endswith('Interrupted; the same command goes on from what is complete.\n')
    assert 'Traceback' not in err
    assert_nothing_is_left(process, 5)
    assert set_files(out) == []

    status, text, err = finished(command(*args))
    assert (status, 'Traceback' in err) == (0, False), err
    assert re.search('out: 27 records in 3 shards', text)
    convert_here(slow_images, tmp_path / 'here', shard_bytes=9 << 20, splits='train:1')
    assert tree_sums(out) == tree_sums(tmp_path / 'here')


def worker_pids(process):
    return [pid for pid, line in group(process).items() if 'spawn_main' in line]


@proc
def test_ctrl_c_while_the_workers_start_is_told_in_one_line_too(slow_images, tmp_path):
    process = command(f'--input_dir={slow_images}', f'--output_dir={tmp_path / "out"}', '--workers=1')
    wait_until(lambda: worker_pids(process), process)
    time.sleep(0.1)  # Python runs, its modules are being imported
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = finished(process)
    assert (status, err) == (130, 'Interrupted; the same command goes on from what is complete.\n')
    assert_nothing_is_left(process, 5)


@proc
def test_workers_do_not_outlive_a_parent_that_is_killed(slow_images, tmp_path):
    process = command(f'--input_dir={slow_images}', f'--output_dir={tmp_path / "out"}', '--workers=1')
    wait_until(lambda: worker_pids(process), process)
    time.sleep(0.5)  # the worker is busy with TensorFlow
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_nothing_is_left(process, 20)
    process.communicate()


def test_one_worker_writes_the_same_bytes_and_the_parent_stays_without_tensorflow(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 6, 'b': 6}, folder=tmp_path / 'images')
    touch(images, 'a/broken.png')
    code = ('import json, sys\nfrom boardrec.config import ConvertConfig\nfrom boardrec.data import convert\n'
            'convert.convert(ConvertConfig(**json.loads(sys.argv[1])))\n'
            'print(json.dumps([name for name in ("tensorflow", "keras") if name in sys.modules]))')
    settings = {'encoding': 'jpeg', 'image_size': '16', 'resize': 'squash', 'max_bad_fraction': 0.1}
    given = json.dumps({'input_dir': str(images), 'output_dir': str(tmp_path / 'out'), 'workers': 1, **settings})
    done = subprocess.run([sys.executable, '-c', code, given], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert done.stderr == ''
    assert re.search(r'^jpeg: .* \(12 images measured\)$', done.stdout, re.MULTILINE)
    convert_here(images, tmp_path / 'here', shard_bytes=32 << 20, **settings)
    assert tree_sums(tmp_path / 'out') == tree_sums(tmp_path / 'here')


def test_a_split_of_rejected_files_only_is_left_out(image_folder, convert_here, tmp_path):
    source = image_folder({'train/a': 4, 'train/b': 4, 'val/a': 2, 'val/b': 2})
    for path in source.glob('val/*/*'):
        path.write_bytes(b'')
    manifest = convert_here(source, tmp_path / 'records')
    assert list(manifest.splits) == ['train'] and len(records.read_rejected(tmp_path / 'records')) == 4
    assert not list((tmp_path / 'records').glob('*-val.*'))
    assert convert_here(source, tmp_path / 'records') == manifest  # nothing to do
