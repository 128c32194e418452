"""Exports as predict takes them: which one is meant, and what is none. What they answer: see predict_test."""

import json

import pytest

from boardrec.config import UserError
from boardrec.serving import saved_model


def export(folder, **metadata):
    folder.mkdir(parents=True)
    (folder / 'saved_model.pb').touch()
    (folder / 'metadata.json').write_text(json.dumps({'class_names': ['a', 'b'], **metadata}))
    return folder


def test_the_newest_version_by_number_or_the_one_that_is_named(tmp_path):
    for version in ('9', '10', '1'):
        export(tmp_path / version, version=version)
    (tmp_path / '.tmp-version-host-1').mkdir()
    assert saved_model.find(str(tmp_path)) == (tmp_path / '10', {'class_names': ['a', 'b'], 'version': '10'})
    assert saved_model.find(str(tmp_path / '9'))[0] == tmp_path / '9'


def test_what_is_no_export_among_versions_is_passed_over_and_told(tmp_path, capsys):
    export(tmp_path / '1')
    export(tmp_path / '2')
    assert saved_model.find(str(tmp_path))[0] == tmp_path / '2'
    assert capsys.readouterr().out == ''
    (tmp_path / '9').mkdir()
    (tmp_path / '2' / 'saved_model.pb').unlink()
    assert saved_model.find(str(tmp_path))[0] == tmp_path / '1'
    assert capsys.readouterr().out == (f'{tmp_path}/9 is no export (saved_model.pb or metadata.json is missing or '
                                       f'damaged): {tmp_path}/1 is taken\n')


def test_what_is_no_export_is_refused(tmp_path):
    (tmp_path / 'other' / '1').mkdir(parents=True)
    export(tmp_path / 'foreign', class_names=None)
    (export(tmp_path / 'half') / 'saved_model.pb').unlink()
    (export(tmp_path / 'text') / 'metadata.json').write_text('{')
    for name in ('gone', 'other', 'foreign', 'half', 'text'):
        with pytest.raises(UserError, match=f'--saved_model={tmp_path}/{name}: there is no export in it .*; make one'):
            saved_model.find(str(tmp_path / name))
    (tmp_path / 'other' / 'run.flags').touch()
    with pytest.raises(UserError, match=f'no export in it .*; it is a run: give --run_dir={tmp_path}/other'):
        saved_model.find(str(tmp_path / 'other'))
    assert not saved_model.is_there(str(tmp_path / 'other')) and saved_model.is_there(str(export(tmp_path / 'm' / '1')))
    with pytest.raises(UserError, match='TensorFlow loads no model from a path with one of'):
        saved_model.find(str(export(tmp_path / '[1]')))
    with pytest.raises(UserError, match=f'--saved_model={tmp_path}/m/1: cannot be loaded .*; name another version'):
        saved_model.load(tmp_path / 'm' / '1')
