"""Built shards take their places: no reader sees half of two sets, what is there already stays, damage is mended."""

import os
import shutil

from conversions import outcome, stamps, touch, tree_sums
import pytest

from boardrec.config import UserError
from boardrec.data import journal, leaks, records, shards, tfrecord


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


def test_overwrite_builds_everything_again_and_replaces_nothing_by_the_same_bytes(converted, monkeypatch, capsys):
    _, out, run = converted
    before, names = stamps(out), {name for name in tree_sums(out) if records.is_shard_file(name)}
    real, built = shards.build, []
    monkeypatch.setattr(shards, 'build', lambda job, *args: built.append(job.plan.file) or real(job, *args))
    run(overwrite=True)
    assert names == set(built) and stamps(out) == before
    assert 'holds these images already; nothing has changed.' in capsys.readouterr().out
    run()
    assert len(names) == len(built), 'the journal knows them where they are'


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


def test_a_damaged_list_of_rejected_files_is_written_again(converted):
    _, out, run = converted
    before = tree_sums(out)
    flip = bytearray((out / records.REJECTED).read_bytes())
    flip[0] ^= 1
    (out / records.REJECTED).write_bytes(flip)
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


def test_what_a_killed_worker_left_is_no_part_of_the_set(converted, monkeypatch):
    images, out, run = converted
    real = shards.build

    def leaving(job, *args):
        (out / journal.FOLDER / f'.tmp-{job.plan.file}-host-1').write_bytes(b'half')
        return real(job, *args)

    monkeypatch.setattr(shards, 'build', leaving)
    run(overwrite=True)
    assert not list((out / journal.FOLDER).glob('.tmp-*'))


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


def test_a_shard_that_was_changed_meanwhile_is_told_and_built_again(converted, monkeypatch):
    images, out, run = converted
    shutil.copy(images / 'a' / 'board001.png', images / 'b' / 'more.png')
    find = leaks.find

    def find_and_cut(config, pool, folder, *args):
        found = find(config, pool, folder, *args)
        os.truncate(next(path for path in folder.iterdir() if records.is_shard_file(path.name)), 10)
        return found

    monkeypatch.setattr(leaks, 'find', find_and_cut)
    with pytest.raises(UserError, match='was changed or removed meanwhile: run the same command again'):
        run()
    assert not (out / records.MANIFEST).exists()
    monkeypatch.undo()
    run()
    assert 'b/more.png' in outcome(out)


def test_a_disk_that_is_full_where_nothing_has_changed_loses_no_shard(converted, monkeypatch):
    _, out, run = converted
    before, write, full = tree_sums(out), journal.write, []

    def fills_up(folder, built):
        if full:
            raise OSError(28, 'No space left on device', 'journal')
        write(folder, built)

    find = leaks.find
    monkeypatch.setattr(journal, 'write', fills_up)
    monkeypatch.setattr(leaks, 'find', lambda *args: full.append(True) or find(*args))
    run(overwrite=True)
    monkeypatch.undo()
    assert tree_sums(out) == before and records.open_record_set(out)
    run()
    assert tree_sums(out) == before


def test_a_split_of_rejected_files_only_is_left_out(image_folder, convert_here, tmp_path):
    source = image_folder({'train/a': 4, 'train/b': 4, 'val/a': 2, 'val/b': 2})
    for path in source.glob('val/*/*'):
        path.write_bytes(b'')
    manifest = convert_here(source, tmp_path / 'records')
    assert list(manifest.splits) == ['train'] and len(records.read_rejected(tmp_path / 'records')) == 4
    assert not list((tmp_path / 'records').glob('*-val.*'))
    assert convert_here(source, tmp_path / 'records') == manifest  # nothing to do


def test_a_class_with_only_rejected_images_is_refused_with_its_rejections(tmp_path, image_folder, convert_here):
    images = image_folder({'good': 4}, folder=tmp_path / 'images')
    touch(images, 'bad/1.png', 'bad/2.png')
    with pytest.raises(UserError, match="every training image of class 'bad' was rejected"):
        convert_here(images, tmp_path / 'out', splits='train:1')
    assert [row[:2] for row in records.read_rejected(tmp_path / 'out' / journal.FOLDER)] == [
        ('bad/1.png', 'not an image'), ('bad/2.png', 'not an image')]
    assert not (tmp_path / 'out' / records.MANIFEST).exists()


def test_a_new_class_gives_all_records_new_numbers(converted, image_folder):
    images, out, run = converted
    image_folder({'0': 4}, folder=images)
    run()
    record_set = records.open_record_set(out)
    assert record_set.manifest.class_names == ['0', 'a', 'b']
    assert [record_set.manifest.class_names[label] for label in record_set.labels] == [
        source[0] for source in record_set.sources]


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
