"""A run's folder is that run and no other."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from boardrec import cli
from boardrec.config import TrainConfig, UserError
from boardrec.training import run_dir
from boardrec.training.run_dir import RunDir

FACTS = {'records_fingerprint': 'r1', 'class_names': ['a', 'b'], 'positive_class': 'b', 'versions': {'keras': '3'}}


@pytest.fixture
def begun(tmp_path):
    """A run that has begun, and its settings."""
    config = TrainConfig(records='R', run_dir=str(tmp_path / 'run'), precision='float32', epochs=3)
    run = RunDir(tmp_path / 'run')
    assert run_dir.find(run, config, FACTS) is None
    run_dir.create(run, config, FACTS)
    return run, config


def test_the_same_settings_continue(begun):
    run, config = begun
    assert run_dir.find(run, config, {**FACTS, 'versions': {'keras': '4'}}) == config


def test_run_flags_repeat_the_run(begun):
    run, config = begun
    assert run_dir.read_config(run.path) == config
    assert run.flags.read_text().startswith('# Every setting')


def test_places_may_change(begun):
    run, config = begun
    moved = dataclasses.replace(config, records='elsewhere', feature_cache='off', gpus='1', deterministic=True)
    assert run_dir.find(run, moved, FACTS) == moved


def test_other_settings_are_refused_by_name(begun):
    run, config = begun
    other = dataclasses.replace(config, epochs=4, learning_rate=0.5)
    with pytest.raises(UserError, match=r'--epochs=4 \(there: 3\); --learning_rate=0.5 \(there: 0.0001\)'):
        run_dir.find(run, other, FACTS)


@pytest.mark.parametrize(('fact', 'words'), [
    ('records_fingerprint', 'other records'), ('class_names', 'other classes'), ('positive_class', 'positive class')])
def test_other_data_is_refused(begun, fact, words):
    run, config = begun
    with pytest.raises(UserError, match=words):
        run_dir.find(run, config, {**FACTS, fact: 'other'})


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / 'thesis.doc').touch()
    config = TrainConfig(records='R', run_dir=str(tmp_path))
    with pytest.raises(UserError, match='holds something that is no run'):
        run_dir.find(RunDir(tmp_path), config, FACTS)
    with pytest.raises(UserError, match='holds something that is no run'):
        run_dir.find(RunDir(tmp_path / 'thesis.doc'), config, FACTS)
    with pytest.raises(UserError, match='holds something that is no run'), run_dir.locked(RunDir(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.doc']


def test_a_start_that_was_killed_may_begin_again(tmp_path):
    (tmp_path / 'run.json').write_text('{')
    (tmp_path / '.tmp-run.flags-1').touch()
    assert run_dir.find(RunDir(tmp_path), TrainConfig(records='R', run_dir=str(tmp_path)), FACTS) is None


_LOCKED = '''
import pathlib, sys
from boardrec import cli
from boardrec.config import UserError
from boardrec.training import run_dir
try:
    with run_dir.locked(run_dir.RunDir(pathlib.Path(sys.argv[1]))):
        print('got it')
except UserError as error:
    print(error)
'''


def test_a_second_training_in_a_run_is_refused(tmp_path):
    def second():
        return subprocess.run([sys.executable, '-c', _LOCKED, tmp_path / 'run'], capture_output=True, text=True).stdout

    with run_dir.locked(RunDir(tmp_path / 'run')):
        assert 'another training is at work in it' in second()
        (tmp_path / 'run' / 'run.flags').touch()
    assert second() == 'got it\n'


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match='refused'), run_dir.locked(RunDir(tmp_path / 'a' / 'run')):
        raise UserError('refused')
    assert not (tmp_path / 'a' / 'run').exists()
    (tmp_path / 'mine').mkdir()
    with pytest.raises(UserError, match='refused'), run_dir.locked(RunDir(tmp_path / 'mine')):
        raise UserError('refused')
    assert (tmp_path / 'mine').is_dir(), 'it was there before'


def test_another_host_keeps_its_own_places(begun):
    _, config = begun
    own = dataclasses.replace(config, records='mine', feature_cache_dir='fast_disk')
    lines = cli.to_flagfile(dataclasses.replace(config, seed=3)).splitlines()
    assert run_dir.with_own(lines, own) == dataclasses.replace(own, seed=3)


def test_no_run_and_unfinished_run_and_changed_weights(begun, tmp_path):
    run, _ = begun
    with pytest.raises(UserError, match='there is no run in it'):
        run_dir.require_finished(tmp_path / 'nowhere')
    with pytest.raises(UserError, match=r'not finished; continue it with .*--flagfile=.*run\.flags'):
        run_dir.require_finished(run.path)
    run.weights.write_bytes(b'weights')
    run_dir.write_facts(run, {**FACTS, 'finished': True, 'weights_sha256': 'other'})
    with pytest.raises(UserError, match=r'model\.weights\.h5 is missing or was changed'):
        run_dir.require_finished(run.path)
    run.facts.write_text('{"finished"')
    with pytest.raises(UserError, match=r'run\.json is missing or damaged'):
        run_dir.require_finished(run.path)


def test_history_goes_to_disk_and_back(begun):
    run, _ = begun
    assert run_dir.read_history(run) == []
    rows = [{'epoch': 1, 'loss': 0.1 + 0.2}, {'epoch': 2, 'loss': 1e-9}]
    run_dir.write_history(run, rows)
    assert run_dir.read_history(run) == rows


def test_a_history_that_an_earlier_version_began(tmp_path):
    run = RunDir(tmp_path)
    run_dir.write_history(run, [{'epoch': 1, 'loss': 0.5}, {'epoch': 2, 'loss': 0.4, 'val_seconds': 3.0}])
    first, second = run_dir.read_history(run)
    assert np.isnan(first['val_seconds']) and second == {'epoch': 2, 'loss': 0.4, 'val_seconds': 3.0}
