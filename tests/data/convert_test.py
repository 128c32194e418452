"""From a folder of images to a record set: what goes where, what is refused, what a second or a killed run does."""

import math
import os
import re
import shutil
import subprocess
import sys

from conversions import outcome, stamps, touch, tree_sums
from PIL import Image
import pytest

from boardrec.config import ConvertConfig, UserError
from boardrec.data import convert, files, journal, records, scan, shards, source_file, storage_report, tfrecord, workers
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
    monkeypatch.setattr(source_file, '_SETTLED_NS', 0)
    for path in images.rglob('*.*'):
        os.utime(path)
    run()
    read = []
    sha256_of = files.sha256_of
    monkeypatch.setattr(files, 'sha256_of', lambda path: read.append(path) or sha256_of(path))
    run()
    assert [path for path in read if images in path.parents] == []


def test_files_that_were_swapped_are_noticed_though_sizes_and_times_stay(tmp_path, image_folder, convert_here):
    """As archives and copies leave them: all of one mtime."""
    images = image_folder({'a': 4, 'b': 4}, folder=tmp_path / 'images')
    for path in images.rglob('*.png'):
        Image.open(path).save(path, 'PNG', compress_level=0)
        os.utime(path, ns=(10**18, 10**18))
    convert_here(images, tmp_path / 'out', splits='train:1')
    one, other, free = (images / name for name in ('a/board001.png', 'b/board001.png', 'free'))
    assert one.stat().st_size == other.stat().st_size
    for source, target in ((one, free), (other, one), (free, other)):
        source.rename(target)
    convert_here(images, tmp_path / 'out', splits='train:1')
    sums = {row.source: row.sha256 for row in records.read_index(tmp_path / 'out')}
    assert sums['a/board001.png'] == files.sha256_of(one) != sums['b/board001.png']


def test_a_folder_that_lacks_most_of_the_files_is_refused(converted, capsys):
    """It may not be mounted, or be another with the same names."""
    images, out, run = converted
    (images / 'a' / 'board000.jpg').unlink()
    touch(images, 'b/more.png')
    capsys.readouterr()
    run()
    assert 'since the last conversion 1 files have come and 1 have gone' in capsys.readouterr().out
    for path in (images / 'b').iterdir():
        path.write_bytes(path.read_bytes() + b'.')
    before = tree_sums(out)
    with pytest.raises(UserError, match='was made of 13 files, of which 7 are not in --input_dir=.*add --overwrite'):
        run()
    assert tree_sums(out) == before


def test_other_images_are_refused(converted, tmp_path, image_folder):
    _, out, run = converted
    before = stamps(out)
    others = image_folder({'x': 4, 'y': 4}, folder=tmp_path / 'others')
    with pytest.raises(UserError, match='was made of 13 files, of which 13 are not in --input_dir='):
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
    for path in images.rglob('board*.png'):
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


def test_a_split_of_rejected_files_only_is_left_out(image_folder, convert_here, tmp_path):
    source = image_folder({'train/a': 4, 'train/b': 4, 'val/a': 2, 'val/b': 2})
    for path in source.glob('val/*/*'):
        path.write_bytes(b'')
    manifest = convert_here(source, tmp_path / 'records')
    assert list(manifest.splits) == ['train'] and len(records.read_rejected(tmp_path / 'records')) == 4
    assert not list((tmp_path / 'records').glob('*-val.*'))
    assert convert_here(source, tmp_path / 'records') == manifest  # nothing to do


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


def test_a_set_that_was_being_replaced_is_no_increment(converted, tmp_path, image_folder, monkeypatch):
    _, out, run = converted
    run(shard_bytes=4000, reshard=True)
    before = tree_sums(out)
    others = image_folder({'x': 4, 'y': 4}, folder=tmp_path / 'others')

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, 'build', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(input_dir=others, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(UserError, match='was being replaced when its last conversion ended: add --overwrite'):
        run()
    assert tree_sums(out) == before
    run(input_dir=others, overwrite=True)
    assert all(source[0] in 'xy' for source in outcome(out))


def test_overwrite_that_was_killed_before_it_had_forgotten_uses_nothing_of_what_was_there(converted, monkeypatch):
    _, out, run = converted
    other = {'encoding': 'raw', 'image_size': '16', 'resize': 'squash', 'overwrite': True}

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, 'forget', killed)
    with pytest.raises(KeyboardInterrupt):
        run(**other)
    monkeypatch.undo()
    run(**other)
    assert len(tfrecord.read_image(records.open_record_set(out), 0)) == 16 * 16 * 3


def test_overwrite_that_is_refused_forgets_nothing(converted):
    images, out, run = converted
    (images / 'a' / 'gone.png').symlink_to('nowhere')
    with pytest.raises(UserError, match='on_bad_image=fail'):
        run(overwrite=True, on_bad_image='fail')
    run()
    assert outcome(out)['a/gone.png'].startswith('unreadable')


def test_shards_of_a_conversion_that_nobody_knows_are_not_used(converted):
    """Its settings went with plan.json."""
    _, out, run = converted
    (out / records.MANIFEST).unlink()
    (out / journal.FOLDER / 'plan.json').unlink()
    run(encoding='raw', image_size='16', resize='squash')
    record_set = records.open_record_set(out)
    assert len(tfrecord.read_image(record_set, 0)) == 16 * 16 * 3


def test_a_class_that_sorts_last_leaves_the_shards_of_others_alone(converted, image_folder, tmp_path, convert_here):
    images, out, run = converted
    run(shard_bytes=4000, reshard=True)
    before = stamps(out)
    image_folder({'z': 3}, folder=images)
    run()
    names = [name for name in before if records.is_shard_file(name)]
    assert len(names) > 5 and sum(stamps(out)[name] != before[name] for name in names) <= 3
    manifest = records.read_manifest(out)
    assert manifest.class_names == ['a', 'b', 'z']
    assert all(list(shard.class_counts) == ['a', 'b', 'z'] for shard in manifest.shards)


def test_what_a_killed_worker_left_is_no_part_of_the_set(converted, monkeypatch):
    images, out, run = converted
    real = shards.build

    def leaving(job, *args):
        (out / journal.FOLDER / f'.tmp-{job.plan.file}-host-1').write_bytes(b'half')
        return real(job, *args)

    monkeypatch.setattr(shards, 'build', leaving)
    run(overwrite=True)
    assert not list((out / journal.FOLDER).glob('.tmp-*'))


def test_a_damaged_list_of_rejected_files_is_written_again(converted):
    _, out, run = converted
    before = tree_sums(out)
    flip = bytearray((out / records.REJECTED).read_bytes())
    flip[0] ^= 1
    (out / records.REJECTED).write_bytes(flip)
    run()
    assert tree_sums(out) == before


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
