"""Which files are found in a folder, in which split and class, and what is refused."""

import errno
import os
import re
from unittest.mock import ANY

from conversions import touch
import pytest

from boardrec.config import ConvertConfig, UserError
from boardrec.data import scan


def scanned(folder, **others):
    """{source: (split, label)} and {source: reason} of a folder."""
    found, rejected = scan.scan(ConvertConfig(input_dir=str(folder), output_dir='unused', **others))
    return {item.source: (item.split, item.label) for item in found}, {item.source: item.reason for item in rejected}


# Layouts


def test_the_classic_layout_keeps_its_splits(tmp_path):
    touch(tmp_path, 'train/positive/a.png', 'train/negative/b.png', 'val/positive/deep/er/c.png', 'test/negative/d.png',
          'test/e.png', 'f.txt', 'train/g.png')
    found, rejected = scanned(tmp_path)
    assert found == {
        'train/positive/a.png': ('train', 'positive'), 'train/negative/b.png': ('train', 'negative'),
        'val/positive/deep/er/c.png': ('val', 'positive'), 'test/negative/d.png': ('test', 'negative')}
    assert rejected == dict.fromkeys(['test/e.png', 'f.txt', 'train/g.png'], 'not in a class folder')


def test_the_classic_layout_with_a_strange_folder_is_refused(tmp_path):
    touch(tmp_path, 'train/positive/a.png', 'valid/positive/b.png')
    with pytest.raises(UserError, match=r'has train/, so its folders must be among train, val and test.*valid/'):
        scanned(tmp_path)


def test_the_flat_layout_is_split_by_the_hash_of_the_path(tmp_path):
    names = [f'{label}/{i}.png' for label in ('positive', 'negative') for i in range(50)]
    touch(tmp_path, *names, 'README.txt', 'positive/deep/x.png')
    found, rejected = scanned(tmp_path)
    assert set(found) == {*names, 'positive/deep/x.png'}
    assert all(label == source.split('/')[0] for source, (_, label) in found.items())
    assert {split for split, _ in found.values()} == {'train', 'val', 'test'}
    assert rejected == {'README.txt': 'not in a class folder'}
    pinned = {name: found[name][0] for name in ('positive/0.png', 'positive/8.png', 'negative/0.png')}
    assert pinned == {'positive/0.png': 'train', 'positive/8.png': 'val', 'negative/0.png': 'test'}, (
        'a change moves the images of every record set from training to test: never renew these')


def test_a_folder_named_train_that_holds_images_is_a_class(tmp_path):
    touch(tmp_path, 'train/a.png', 'bus/b.png')
    found, _ = scanned(tmp_path, splits='train:1')
    assert found == {'train/a.png': ('train', 'train'), 'bus/b.png': ('train', 'bus')}


def test_a_labels_csv_replaces_the_folders(tmp_path):
    images = tmp_path / 'images'
    touch(images, 'a.png', 'x/b.png', 'x/c, d.png', 'x/e.png')
    labels = images / 'labels.csv'
    labels.write_text('path,label\na.png,good\n./x/b.png,bad\n"x/c, d.png",good\nmissing.png,good\n')
    found, rejected = scanned(images, labels_csv=str(labels), splits='train:1')
    assert found == {'a.png': ('train', 'good'), 'x/b.png': ('train', 'bad'), 'x/c, d.png': ('train', 'good')}
    assert rejected == {'missing.png': 'listed in labels_csv but not a file', 'x/e.png': 'not in labels_csv'}


def test_a_labels_csv_may_name_splits(tmp_path):
    images, labels = tmp_path / 'images', tmp_path / 'labels.csv'
    touch(images, *(f'{i}.png' for i in range(40)), 'z.png')
    labels.write_text('split,path,label\n' + ''.join(f',{i}.png,good\n' for i in range(40)) + 'test,z.png,bad\n')
    found, _ = scanned(images, labels_csv=str(labels))
    assert found['z.png'] == ('test', 'bad')
    assert {split for split, _ in found.values()} == {'train', 'val', 'test'}, 'an empty cell leaves it to the hash'


@pytest.mark.parametrize(('text', 'match'), [
    ('', r"must name the columns path,label.*reads ''"),
    ('file,label\na.png,x\n', r"must name the columns path,label.*'file,label'"),
    ('path,label\na.png,\n', 'line 2: no label for a.png'),
    ('path,label\na.png\n', 'line 2: no label for a.png'),
    ('path,label\na.png,x\n./a.png,y\n', 'line 3: a.png a second time'),
    ('path,label,split\na.png,x,dev\n', "line 2: split 'dev', which is not among train, val, test"),
])
def test_a_labels_csv_that_cannot_be_used_is_refused_with_the_line(tmp_path, text, match):
    images, labels = tmp_path / 'images', tmp_path / 'labels.csv'
    touch(images, 'a.png')
    labels.write_text(text)
    with pytest.raises(UserError, match=f'^--labels_csv={re.escape(str(labels))}.*{match}'):
        scanned(images, labels_csv=str(labels))


def test_a_missing_labels_csv_is_refused(tmp_path):
    touch(tmp_path, 'a/a.png')
    with pytest.raises(UserError, match='--labels_csv=nowhere.csv: there is no such file'):
        scanned(tmp_path, labels_csv='nowhere.csv')


def test_a_labels_csv_as_excel_writes_it(image_folder, convert_here, tmp_path):
    source = image_folder({'x': 6})
    names = sorted(path.name for path in (source / 'x').iterdir())
    rows = ''.join(f'x/{name},{"ab"[i % 2]},train\n' for i, name in enumerate(names))
    table = tmp_path / 'labels.csv'
    table.write_bytes(b'\xef\xbb\xbf' + f'path,label,split\n{rows}'.encode())
    assert convert_here(source, tmp_path / 'records', labels_csv=str(table)).class_names == ['a', 'b']
    table.write_text('path,label\n' + rows.replace('x/', 'C:').replace(',train', ''))
    with pytest.raises(UserError, match="none of its paths is a file below .* the first is 'C:board000.jpg'"):
        convert_here(source, tmp_path / 'others', labels_csv=str(table))
    table.write_text('path,label\n' + 'x' * 200_000 + ',a\n')
    with pytest.raises(UserError, match='line 2: no CSV'):
        convert_here(source, tmp_path / 'others', labels_csv=str(table))


# Splits


NAMES = [f'class{i % 2}/img_{i:04d}.jpg' for i in range(2000)]


def splits_of(folder):
    return {source: split for source, (split, _) in scanned(folder)[0].items()}


def test_a_file_keeps_its_split_as_others_come_and_go(tmp_path):
    touch(tmp_path, *NAMES[:300])
    before = splits_of(tmp_path)
    touch(tmp_path, *NAMES[300:500], 'class2/new.jpg')
    for name in NAMES[:150]:
        (tmp_path / name).unlink()
    after = splits_of(tmp_path)
    common = set(before) & set(after)
    assert len(common) == 150
    assert {name: before[name] for name in common} == {name: after[name] for name in common}


def test_fractions_are_near_what_was_asked_for_in_each_class(tmp_path):
    """Binomial: of 1,000 names a class, 0.8 has a standard deviation of 0.0126, 0.1 one of 0.0095; allowed are four."""
    touch(tmp_path, *NAMES)
    splits = splits_of(tmp_path)
    for label in ('class0', 'class1'):
        own = [split for source, split in splits.items() if source.startswith(label)]
        assert own.count('train') / len(own) == pytest.approx(0.8, abs=0.051)
        assert own.count('val') / len(own) == pytest.approx(0.1, abs=0.038)
        assert own.count('test') / len(own) == pytest.approx(0.1, abs=0.038)


def test_other_fractions_move_only_what_lies_between_the_thresholds(tmp_path):
    touch(tmp_path, *NAMES[:500])
    before = splits_of(tmp_path)
    after = {source: split for source, (split, _) in scanned(tmp_path, splits='train:0.9,test:0.1')[0].items()}
    assert {(before[name], after[name]) for name in before} == {('train', 'train'), ('val', 'train'), ('test', 'test')}


# What is refused or noted


@pytest.mark.parametrize('empty', ['c', 'train/c', 'val/c'])
def test_an_empty_class_is_named(tmp_path, convert_here, empty):
    prefix = 'train/' if '/' in empty else ''
    touch(tmp_path / 'images', f'{prefix}a/1.png', f'{prefix}b/1.png')
    (tmp_path / 'images' / empty).mkdir(parents=True)
    with pytest.raises(UserError, match=rf'images/{empty}: a class with no images'):
        convert_here(tmp_path / 'images', tmp_path / 'out')


def test_slips_are_noted(image_folder, convert_here, tmp_path, capsys):
    convert_here(image_folder({'train/good': 4, 'train/bad': 4, 'val/good': 2, 'train/drity': 1}), tmp_path / 'records')
    out = capsys.readouterr().out
    assert '11 files, 11 of them in 3 classes (bad 4, drity 1, good 6)' in out
    assert "note: no image of class 'bad' in the val split" in out


def test_images_of_one_subject_go_into_one_split(tmp_path, image_folder):
    images = image_folder({'a': 2, 'b': 2})
    for label in 'ab':
        for board in range(30):
            for shot in range(3):
                (images / label / f'board{board}_{shot}.jpg').write_bytes(b'x')
    given = {'input_dir': str(images), 'output_dir': 'unused', 'splits': 'train:0.5,val:0.5'}
    alone, _ = scan.scan(ConvertConfig(**given))
    grouped, _ = scan.scan(ConvertConfig(**given, group_by=r'(.*)_\d\.jpg$'))
    for found, expected in ((alone, False), (grouped, True)):
        splits = {}
        for item in found:
            splits.setdefault(item.source.rpartition('_')[0], set()).add(item.split)
        splits.pop('')
        assert all(len(names) == 1 for names in splits.values()) == expected
    assert {item.split for item in grouped} == {'train', 'val'}
    with pytest.raises(UserError, match=r"^--group_by=\(camera\) matches none of the paths, such as 'a/board"):
        scan.scan(ConvertConfig(**given, group_by='(camera)'))
    with pytest.raises(UserError, match=r'--group_by=\(: must be a regular expression'):
        ConvertConfig(**given, group_by='(')


@pytest.mark.parametrize(('group_by', 'expected'), [
    ('', 'a/7_x_2.jpg'), (r'\d+', '7'), (r'/(\d+)_', '7'), (r'(\d+)_(.)_', '7\0x'), ('nowhere', 'a/7_x_2.jpg')])
def test_a_subject_is_what_the_groups_match(group_by, expected):
    assert scan.subject('a/7_x_2.jpg', group_by) == expected


def test_a_labels_csv_that_writes_a_name_in_both_ways_is_refused(tmp_path):
    touch(tmp_path, 'images/a/caf\u00e9.png', 'images/b/1.png')
    (tmp_path / 'labels.csv').write_text('path,label\na/cafe\u0301.png,a\na/caf\u00e9.png,b\n', encoding='utf-8')
    with pytest.raises(UserError, match='line 3: a/caf\u00e9.png a second time'):
        scanned(tmp_path / 'images', labels_csv=str(tmp_path / 'labels.csv'))


def test_subjects_cannot_be_kept_together_where_folders_say_the_split(tmp_path):
    touch(tmp_path, 'train/a/1.png', 'test/a/1_2.png', 'train/b/2.png')
    with pytest.raises(UserError, match='^--group_by=x: --input_dir=.* has split folders, which say where files go'):
        scanned(tmp_path, group_by='x')


def test_a_missing_validation_split_is_noted(tmp_path, capsys):
    touch(tmp_path, 'train/a/1.png', 'train/b/2.png')
    found, rejected = scan.scan(ConvertConfig(input_dir=str(tmp_path), output_dir='unused'))
    scan.describe(tmp_path, found, rejected, ['a', 'b'])
    assert 'note: no image in the val split, without which training does not begin' in capsys.readouterr().out


def test_a_folder_that_cannot_be_read_ends_the_command(tmp_path, monkeypatch):
    """Else its images would leave the set without a word."""
    touch(tmp_path, 'images/a/1.png', 'images/a/2024/2.png', 'images/b/3.png', 'images/lost+found/x')
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) in denied:
            raise PermissionError(errno.EACCES, 'Permission denied', os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    denied = ['lost+found']  # which every disk has
    assert scanned(tmp_path / 'images') == (
        {'a/1.png': ANY, 'a/2024/2.png': ANY, 'b/3.png': ANY}, {'lost+found': 'system folder'})
    denied = ['2024']
    with pytest.raises(UserError, match=f'^{tmp_path}/images/a/2024: a folder that cannot be read .Permission denied'):
        scan.walk(tmp_path / 'images')


def test_a_labels_csv_may_write_accents_in_the_other_way(tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    for name in ('cafe\u0301.jpg', 'na\u00efve.jpg'):
        (images / name).write_bytes(b'x')
    labels = tmp_path / 'labels.csv'
    labels.write_text('path,label\ncaf\u00e9.jpg,a\nnai\u0308ve.jpg,b\n')
    found, rejected = scan.scan(ConvertConfig(input_dir=str(images), output_dir='unused', labels_csv=str(labels)))
    assert [(item.source, item.label) for item in found] == [('cafe\u0301.jpg', 'a'), ('na\u00efve.jpg', 'b')]
    assert rejected == []
