"""The same photograph in two splits or under two labels: what is found, told, dropped, and what a second run does."""

import errno
import json
import shutil
import types

from conversions import tree_sums
import numpy as np
from PIL import Image, ImageEnhance
import pytest

from boardrec.config import UserError
from boardrec.data import journal, leaks, records, shards

SHARD_BYTES = 4000


def shard_stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()
            if records.is_shard_file(path.name)}


def reasons(folder):
    return {source: reason for source, reason, _ in records.read_rejected(folder)}


def sources(folder):
    return {row.source for row in records.read_index(folder)}


def paint(path, seed):
    """A picture of some large shapes, as a PNG of 90x120; one of another seed is another photograph."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def photographs(tmp_path):
    """A folder of 16 photographs of two classes in three splits, no two of them the same."""
    folder, seed = tmp_path / 'images', 0
    for split, count in (('train', 6), ('val', 1), ('test', 1)):
        for label in 'ab':
            for i in range(count):
                paint(folder / split / label / f'{i}.png', seed)
                seed += 1
    return folder


@pytest.fixture
def converting(photographs, tmp_path, convert_here):
    """(images, records, run): run converts with the settings that it is given."""
    def run(output=tmp_path / 'out', **settings):
        return convert_here(photographs, output, **{'shard_bytes': SHARD_BYTES, **settings})

    return photographs, tmp_path / 'out', run


def copied(images, source, target):
    """The same bytes once more."""
    shutil.copy(images / source, images / target)


def changed(images, source, target, *, scale=1.0, brightness=1.0, **options):
    """The same photograph, scaled and encoded anew."""
    image = Image.open(images / source)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    ImageEnhance.Brightness(image).enhance(brightness).save(images / target, **options)


def row(source, other, *, kind='same', distance='0.000', action='reported'):
    return records.Duplicate(source, *source.split('/')[:2], other, *other.split('/')[:2], kind, distance, action)


def test_different_photographs_are_no_leak(converting, capsys):
    _, out, run = converting
    run()
    assert (out / records.DUPLICATES).read_bytes() == (
        b'source,split,label,other,other_split,other_label,kind,distance,action\n')
    assert 'same photograph' not in capsys.readouterr().out
    assert len(sources(out)) == 16


def test_the_same_file_in_two_splits_or_under_two_labels_is_reported(converting, capsys):
    images, out, run = converting
    copied(images, 'train/a/0.png', 'test/a/copy.png')
    copied(images, 'train/a/1.png', 'train/b/other label.png')
    copied(images, 'val/a/0.png', 'test/b/both.png')
    copied(images, 'train/a/2.png', 'train/a/same class.png')
    run()
    assert records.read_duplicates(out) == [
        row('train/a/0.png', 'test/a/copy.png'), row('train/a/1.png', 'train/b/other label.png'),
        row('val/a/0.png', 'test/b/both.png')]
    assert len(sources(out)) == 20 and not reasons(out)
    assert ('3 leaks (the same photograph in two splits or under two labels), the first train/a/0.png and '
            f'test/a/copy.png: {out / records.DUPLICATES}') in capsys.readouterr().out


@pytest.mark.parametrize(('name', 'settings'), [
    ('copy.jpg', {'quality': 50}), ('copy.jpg', {'quality': 95}), ('copy.webp', {'quality': 80}),
    ('copy.png', {'scale': 0.5}), ('copy.jpg', {'scale': 2, 'quality': 90}), ('copy.bmp', {'brightness': 0.96}),
], ids=str)
def test_a_photograph_that_was_encoded_anew_is_found(converting, name, settings):
    images, out, run = converting
    changed(images, 'train/b/3.png', f'val/b/{name}', **settings)
    run()
    (found,) = records.read_duplicates(out)
    assert found == row('train/b/3.png', f'val/b/{name}', kind='near', distance=found.distance)
    assert 0 <= float(found.distance) < 0.13


def test_a_scratch_on_one_of_two_alike_parts_makes_two_photographs(converting):
    images, out, run = converting
    pixels = np.array(Image.open(images / 'train/a/0.png'))
    pixels[20:60, 50:53] = 0
    Image.fromarray(pixels).save(images / 'val/a/scratched.png')
    run()
    assert records.read_duplicates(out) == []


def test_the_training_copy_is_dropped_and_both_where_labels_contradict(converting):
    images, out, run = converting
    copied(images, 'train/a/0.png', 'test/a/copy.png')
    changed(images, 'train/b/0.png', 'val/a/wrong.jpg', quality=90)
    copied(images, 'train/a/1.png', 'train/b/other label.png')
    copied(images, 'val/a/0.png', 'test/b/both.png')
    run(on_leak='drop_from_train')
    assert [(found.source, found.action) for found in records.read_duplicates(out)] == [
        ('train/a/0.png', 'dropped'), ('train/a/1.png', 'both dropped'), ('train/b/0.png', 'dropped'),
        ('val/a/0.png', 'reported')]
    assert reasons(out) == {
        'train/a/0.png': 'leak: the same photograph as test/a/copy.png, in test',
        'train/a/1.png': 'leak: the same photograph as train/b/other label.png, labelled b',
        'train/b/other label.png': 'leak: the same photograph as train/a/1.png, labelled a',
        'train/b/0.png': 'leak: nearly the same photograph as val/a/wrong.jpg, in val'}
    assert len(sources(out)) == 16 and not sources(out) & set(reasons(out))
    assert all(digest for _, _, digest in records.read_rejected(out))


def test_what_is_dropped_is_no_bad_file(converting):
    images, out, run = converting
    for i in range(3):
        copied(images, f'train/a/{i}.png', f'test/a/copy{i}.png')
    run(on_leak='drop_from_train', max_bad_fraction=0, on_bad_image='fail')
    assert len(reasons(out)) == 3
    copied(images, 'train/a/3.png', 'test/a/copy3.png')
    run(on_leak='drop_from_train', max_bad_fraction=0, on_bad_image='fail')
    assert len(reasons(out)) == 4


def test_every_copy_of_a_file_is_dropped(converting):
    images, out, run = converting
    for i in range(4):
        copied(images, 'train/a/0.png', f'train/a/again{i}.png')
    changed(images, 'train/a/0.png', 'test/a/copy.jpg', quality=90)
    run(on_leak='drop_from_train')
    assert set(reasons(out)) == {'train/a/0.png', *(f'train/a/again{i}.png' for i in range(4))}


def test_fail_names_the_first_pair_and_leaves_the_set_as_it_was(converting):
    images, out, run = converting
    run()
    before = tree_sums(out)
    copied(images, 'train/a/0.png', 'test/a/copy.png')
    changed(images, 'train/a/1.png', 'train/b/other.jpg', quality=90)
    listed = out / journal.FOLDER / records.DUPLICATES
    told = r'^--on_leak=fail: 2 leaks \(.*\), the first train/a/0.png and test/a/copy.png'
    with pytest.raises(UserError, match=told) as error:
        run(on_leak='fail')
    assert str(listed) in str(error.value)
    assert [found.other for found in records.read_duplicates(listed.parent)] == ['test/a/copy.png', 'train/b/other.jpg']
    assert tree_sums(out) == before
    run(on_leak='report')
    assert len(records.read_duplicates(out)) == 2
    assert not listed.exists()
    assert len(sources(out)) == 18


def test_fail_passes_what_has_no_leak(converting):
    _, out, run = converting
    run(on_leak='fail')
    assert len(sources(out)) == 16


def test_a_class_that_loses_all_its_training_images_is_named(converting):
    images, out, run = converting
    for i in range(6):
        copied(images, f'train/b/{i}.png', f'test/b/copy{i}.png')
    with pytest.raises(UserError, match="every training image of class 'b' was rejected or, by "
                                        '--on_leak=drop_from_train, dropped: see'):
        run(on_leak='drop_from_train')
    assert not (out / records.MANIFEST).exists()
    run()
    assert len(sources(out)) == 22


def test_a_change_of_on_leak_builds_only_the_shards_that_it_touches(converting, tmp_path):
    images, out, run = converting
    copied(images, 'train/a/0.png', 'test/a/copy.png')
    run()
    reported, stamps = tree_sums(out), shard_stamps(out)
    run(on_leak='drop_from_train')
    dropped = tree_sums(out)
    changed_shards = [name for name, stamp in shard_stamps(out).items() if stamps[name] != stamp]
    assert len(stamps) > 4 and len(changed_shards) == 1
    run(tmp_path / 'fresh', on_leak='drop_from_train')
    assert tree_sums(tmp_path / 'fresh') == dropped
    run()
    assert tree_sums(out) == reported


def test_a_search_that_could_not_look_at_all_is_no_pass(converting, monkeypatch, capsys):
    images, out, run = converting
    changed(images, 'train/a/0.png', 'test/a/copy.jpg', quality=90)
    real = leaks.source_file.read

    def unreadable(root, item, max_bytes):
        if failing and item.source == 'test/a/copy.jpg':
            raise OSError(errno.EIO, 'Input/output error')
        return real(root, item, max_bytes)

    monkeypatch.setattr(leaks, 'source_file', types.SimpleNamespace(read=unreadable))
    failing = True
    with pytest.raises(UserError, match='^--on_leak=fail: 1 comparisons failed.* nobody knows whether there is a leak'):
        run(on_leak='fail')
    run()
    assert 'note: 1 comparisons failed' in capsys.readouterr().out
    failing = False
    with pytest.raises(UserError, match='1 leak '):
        run(on_leak='fail')


@pytest.mark.parametrize('on_leak', ['report', 'drop_from_train'])
def test_a_second_run_builds_and_compares_nothing(converting, monkeypatch, capsys, on_leak):
    images, out, run = converting
    changed(images, 'train/a/0.png', 'test/a/copy.jpg', quality=90)
    manifest = run(on_leak=on_leak)
    before = tree_sums(out)
    monkeypatch.setattr(shards, 'build', None)
    monkeypatch.setattr(leaks, 'compare', None)
    monkeypatch.setattr(leaks.duplicates, 'near_pairs', None)
    capsys.readouterr()
    assert run(on_leak=on_leak) == manifest
    assert tree_sums(out) == before
    assert 'nothing to do' in capsys.readouterr().out


def test_a_leak_that_is_added_later_is_dropped_and_comes_back_with_the_copy_gone(converting, monkeypatch):
    images, out, run = converting
    changed(images, 'train/a/1.png', 'val/a/earlier.jpg', quality=90)
    run(on_leak='drop_from_train')
    before = tree_sums(out)
    changed(images, 'train/a/0.png', 'test/a/later.jpg', quality=90)
    compared, real = [], leaks.compare
    monkeypatch.setattr(
        leaks, 'compare', lambda task, *args: compared.extend(
            sorted(item.source for item in pair) for pair in task[2]) or real(task, *args))
    run(on_leak='drop_from_train')
    assert set(reasons(out)) == {'train/a/0.png', 'train/a/1.png'}
    assert compared == [['test/a/later.jpg', 'train/a/0.png']], 'the earlier pair is known'
    (images / 'test/a/later.jpg').unlink()
    run(on_leak='drop_from_train')
    assert tree_sums(out) == before


def test_a_conversion_that_was_killed_while_dropping_goes_on(converting, tmp_path, monkeypatch):
    images, out, run = converting
    for i in range(4):
        copied(images, f'train/a/{i}.png', f'test/a/copy{i}.png')
    run(tmp_path / 'whole', on_leak='drop_from_train')
    run()
    before, real, built = records.read_manifest(out), shards.build, []

    def interrupted(job, *args):
        if built:
            raise KeyboardInterrupt
        built.append(job.plan.file)
        return real(job, *args)

    monkeypatch.setattr(shards, 'build', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(on_leak='drop_from_train')
    assert records.open_record_set(out).manifest == before, 'the set that was there is there still'
    again = []
    monkeypatch.setattr(shards, 'build', lambda job, *args: again.append(job.plan.file) or real(job, *args))
    run(on_leak='drop_from_train')
    assert again and not set(again) & set(built)
    assert tree_sums(out) == tree_sums(tmp_path / 'whole')


@pytest.mark.parametrize('damage', ['missing', 'cut', 'another line'])
def test_a_damaged_duplicates_csv_is_mended(converting, damage):
    images, out, run = converting
    copied(images, 'train/a/0.png', 'test/a/copy.png')
    run()
    before, path = tree_sums(out), out / records.DUPLICATES
    if damage == 'missing':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == 'cut' else path.read_bytes() + b'"a"\n')
    run()
    assert tree_sums(out) == before


def test_a_damaged_list_of_comparisons_is_made_again(converting):
    images, out, run = converting
    changed(images, 'train/a/0.png', 'test/a/copy.jpg', quality=90)
    run()
    before, path = tree_sums(out), out / journal.FOLDER / journal.COMPARED
    for content in (b'', b'no list', path.read_bytes()[:-30], path.read_bytes()[:50]):
        path.write_bytes(content)
        run()
        assert tree_sums(out) == before


def test_a_journal_without_perceptual_hashes_is_built_again(converting):
    """An earlier boardrec's."""
    images, out, run = converting
    copied(images, 'train/a/0.png', 'test/a/copy.png')
    run()
    before, stamps = tree_sums(out), shard_stamps(out)
    for name in journal.names(out / journal.FOLDER):
        path = out / journal.FOLDER / f'{name}.json'
        values = json.loads(path.read_bytes())
        path.write_text(json.dumps({**values, 'sources': [source[:7] for source in values['sources']]}))
    (out / records.DUPLICATES).unlink()
    run()
    assert tree_sums(out) == before
    filled = {shard.file for shard in records.read_manifest(out).shards if shard.records}
    assert {name for name, stamp in shard_stamps(out).items() if stamps[name] != stamp} == filled


def test_a_file_that_cannot_be_compared_any_more_is_no_pair(converting, monkeypatch):
    images, out, run = converting
    changed(images, 'train/a/0.png', 'test/a/copy.jpg', quality=90)
    real = leaks.compare
    monkeypatch.setattr(leaks, 'compare', lambda task, _, watch: real(task, {0: 'time limit'}, watch))
    run()
    assert records.read_duplicates(out) == []
    monkeypatch.undo()
    run()
    assert len(records.read_duplicates(out)) == 1, 'tried again'


def test_names_that_are_hard_to_write_down_survive(converting):
    images, out, run = converting
    name = 'train/a/\udcff\n", .png'
    copied(images, 'test/b/0.png', name)
    run(on_leak='drop_from_train')
    assert records.read_duplicates(out) == [
        records.Duplicate(name, 'train', 'a', 'test/b/0.png', 'test', 'b', 'same', '0.000', 'dropped')]
    assert name in reasons(out)


def test_photographs_know_their_sources_across_shards_and_rejected_files(converting):
    images, out, run = converting
    (images / 'train/a/00 broken.png').write_bytes(b'no image')
    run()
    manifest = records.read_manifest(out)
    plans = [shards.ShardPlan(shard.file, records.split_of(shard.file), journal.read(
        out / journal.FOLDER, shard.file).sources) for shard in manifest.shards]
    photographs = leaks.read(out / journal.FOLDER, plans, ['a', 'b'])
    known = [photographs.source(number) for number in range(len(photographs.places))]
    assert sorted(known) == sorted(sources(out))
    for number, source in enumerate(known):
        split, label = photographs.split_and_label(number)
        assert source.split('/')[:2] == [('train', 'val', 'test')[split], 'ab'[label]]
