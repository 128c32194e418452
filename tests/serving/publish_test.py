"""Versions appear whole, in order, and are never replaced."""

import json
import os
import shutil

import pytest

from boardrec.config import UserError
from boardrec.data import files
from boardrec.serving import publish

METADATA = {'weights_sha256': 'abc'}


def write(folder):
    (folder / 'saved_model.pb').write_bytes(b'model')
    (folder / 'variables').mkdir()
    (folder / 'variables' / 'variables.index').touch()
    return {'metrics': None}


def test_versions_count_up(tmp_path):
    folder = tmp_path / 'models' / 'boardrec'
    assert publish.versions(folder) == []
    assert [publish.publish(folder, {'n': n}, write).name for n in range(11)] == [str(n) for n in range(1, 12)]
    assert publish.versions(folder) == list(range(1, 12))  # as numbers: 11 after 9
    assert sorted(path.name for path in (folder / '11').iterdir()) == ['metadata.json', 'saved_model.pb', 'variables']


def test_the_same_run_is_found(tmp_path):
    first = publish.publish(tmp_path, METADATA, write)
    publish.publish(tmp_path, {'weights_sha256': 'other'}, write)
    assert publish.find(tmp_path, METADATA) == first
    assert publish.find(tmp_path, {'weights_sha256': 'third'}) is None
    (first / 'metadata.json').unlink()
    assert publish.find(tmp_path, METADATA) is None
    assert publish.find(tmp_path / 'nowhere', METADATA) is None


def test_a_failing_export_publishes_nothing(tmp_path):
    def fails(folder):
        write(folder)
        raise RuntimeError('self-test')

    with pytest.raises(RuntimeError, match='self-test'):
        publish.publish(tmp_path, METADATA, fails)
    assert not list(tmp_path.iterdir())


def test_no_integer_is_seen_before_it_is_whole(tmp_path):
    def looks(folder):
        assert publish.versions(tmp_path) == [] and not folder.name.isdecimal()
        return write(folder)

    published = publish.publish(tmp_path, METADATA, looks)
    metadata = json.loads((published / 'metadata.json').read_text())
    assert {**metadata, 'files': sorted(metadata['files'])} == {
        **METADATA, 'metrics': None, 'files': ['saved_model.pb', 'variables/variables.index']}


def test_of_two_at_once_each_gets_a_version(tmp_path):
    def while_another_publishes(folder):
        (tmp_path / '1').mkdir()
        (tmp_path / '1' / 'theirs').touch()
        return write(folder)

    assert publish.publish(tmp_path, METADATA, while_another_publishes).name == '2'
    assert [path.name for path in (tmp_path / '1').iterdir()] == ['theirs']


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'x').touch()
    with pytest.raises(UserError, match='--export_dir=.* is a file'):
        publish.publish(tmp_path / 'x', METADATA, write)


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / 'photos').mkdir()
    with pytest.raises(UserError, match='holds photos and no version of a model'):
        publish.publish(tmp_path, METADATA, write)
    with pytest.raises(UserError, match='loads no model from a path with one of'):
        publish.publish(tmp_path / 'a[1]', METADATA, write)


def test_a_version_that_appears_at_the_last_moment_stays(tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        monkeypatch.setattr(os, 'rename', rename)
        target.mkdir()
        (target / 'theirs').touch()
        rename(source, target)

    monkeypatch.setattr(os, 'rename', late)
    assert publish.publish(tmp_path, METADATA, write).name == '2'
    assert [path.name for path in (tmp_path / '1').iterdir()] == ['theirs']


def test_the_same_run_is_not_found_where_its_files_were_changed(tmp_path):
    first = publish.publish(tmp_path, METADATA, write)
    second = publish.publish(tmp_path, METADATA, write)
    assert publish.find(tmp_path, METADATA) == second
    (second / 'saved_model.pb').write_bytes(b'mode1')
    assert publish.find(tmp_path, METADATA) == first
    assert publish.damage(second) == f'{second}/saved_model.pb is missing or was changed'
    (first / 'more').touch()
    assert publish.find(tmp_path, METADATA) is None


def test_old_versions_go_whole_and_the_newest_stay(tmp_path, monkeypatch):
    for _ in range(4):
        publish.publish(tmp_path, METADATA, write)
    rmtree = shutil.rmtree

    def looks(path, **options):
        assert publish.versions(tmp_path) == [3, 4] and all(not publish.damage(tmp_path / n) for n in '34')
        rmtree(path, **options)

    monkeypatch.setattr(shutil, 'rmtree', looks)
    assert publish.prune(tmp_path, keep=2) == [1, 2]
    assert publish.prune(tmp_path, keep=2) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ['3', '4']
    monkeypatch.setattr(shutil, 'rmtree', rmtree)
    assert publish.publish(tmp_path, METADATA, write).name == '5', 'numbers are not given again'


def test_what_a_killed_removal_left_goes_with_the_next_publication(tmp_path):
    publish.publish(tmp_path, METADATA, write)
    left = files.temporary_name(tmp_path / 'removed')
    shutil.copytree(tmp_path / '1', left / '1')
    publish.publish(tmp_path, METADATA, write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']
