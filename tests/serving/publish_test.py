"""Versions appear whole, in order, and are never replaced."""

import json
import os

import pytest

from boardrec.config import UserError
from boardrec.serving import publish

METADATA = {'weights_sha256': 'abc'}


def write(folder):
    (folder / 'saved_model.pb').write_bytes(b'model')
    (folder / 'variables').mkdir()


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
        write(folder)
        assert publish.versions(tmp_path) == [] and not folder.name.isdecimal()

    published = publish.publish(tmp_path, METADATA, looks)
    assert json.loads((published / 'metadata.json').read_text()) == METADATA


def test_of_two_at_once_each_gets_a_version(tmp_path):
    def while_another_publishes(folder):
        write(folder)
        (tmp_path / '1').mkdir()
        (tmp_path / '1' / 'theirs').touch()

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
