"""What a second run takes of an earlier one: files came, changed or went, settings changed, or it was killed."""

import os
import re
import shutil

from conversions import outcome, stamps, touch, tree_sums
from PIL import Image
import pytest

from boardrec.config import UserError
from boardrec.data import files, journal, records, shards, source_file, tfrecord, workers

# What has changed


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


def test_a_changed_file_is_noticed_where_records_hold_other_bytes_too(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 3, 'b': 3}, folder=tmp_path / 'images')
    settings = {'splits': 'train:1', 'encoding': 'raw', 'image_size': '20', 'resize': 'squash'}
    convert_here(images, tmp_path / 'out', **settings)
    shutil.copy(images / 'b' / 'board001.png', images / 'a' / 'board001.png')
    convert_here(images, tmp_path / 'out', **settings)
    record_set = records.open_record_set(tmp_path / 'out')
    one, other = (tfrecord.read_image(record_set, record_set.sources.index(f'{label}/board001.png')) for label in 'ab')
    assert one == other


def test_a_file_whose_decoder_crashed_is_tried_again(converted, monkeypatch):
    """Its worker may have died of something else, such as a lack of memory."""
    images, out, run = converted
    before, real = tree_sums(out), shards.build
    os.utime(images / 'a' / 'board001.png')
    shutil.copy(images / 'a' / 'board001.png', images / 'a' / 'board003.png')
    monkeypatch.setattr(shards, 'build', lambda job, _, watch: real(job, {0: workers.CRASH}, watch))
    run()
    assert 'decoder error: it crashed' in outcome(out).values()
    crashed = stamps(out)
    run()
    assert stamps(out) == crashed, 'in vain, and the set stays where it is'
    monkeypatch.undo()
    run()
    assert 'decoder error: it crashed' not in outcome(out).values()
    assert set(tree_sums(out)) == set(before)


def test_the_number_of_shards_stays_until_it_is_decided_anew(converted):
    _, out, run = converted
    before = stamps(out)
    run(shard_bytes=4000)
    assert stamps(out) == before
    run(shard_bytes=4000, reshard=True)
    assert len(records.read_manifest(out).shards) > 5


# What is refused


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


def test_a_set_without_its_journal_is_left_alone(converted):
    _, out, run = converted
    shutil.rmtree(out / journal.FOLDER)
    before = stamps(out)
    with pytest.raises(UserError, match='without the journal'):
        run()
    assert stamps(out) == before
    run(overwrite=True)
    assert tree_sums(out)


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


# After an interruption


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
