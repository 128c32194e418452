"""Two worker processes on this machine train as one device does, are stopped and killed, and go on."""

import dataclasses
import os
import pathlib
import signal
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import trainings

from boardrec.data import files, records
from boardrec.training import distribute, fit, run_dir
from boardrec.training.run_dir import RunDir

NUMBERS = ('loss', 'accuracy', 'val_loss', 'val_accuracy', 'learning_rate')


@pytest.fixture(scope='module')
def odd_records(image_folder, convert_here, tmp_path_factory):
    """41 train and 11 val records: the second worker has none of the last batch of 10, the first none of val's."""
    folder = tmp_path_factory.mktemp('odd') / 'records'
    convert_here(image_folder({'train/a': 21, 'train/b': 20, 'val/a': 6, 'val/b': 5}), folder)
    return folder


@pytest.fixture
def config(train_config, small_backbone, odd_records):
    """A run of 5 steps an epoch that takes a second or two."""
    return train_config(
        records=str(odd_records), backbone=small_backbone, trainable_layers=9, precision='float32', dropout=0.0,
        optimizer='sgd', momentum=0.9, learning_rate=0.01, batch_size=10, epochs=12, schedule='cosine',
        feature_cache='off', cached_views=2, checkpoint_every_steps=2)


def numbers(config):
    rows = run_dir.read_history(RunDir(pathlib.Path(config.run_dir)))
    return np.array([[row[name] for name in NUMBERS] for row in rows])


def statuses(started, **settings):
    return [one.wait(**settings) for one in started]


def elsewhere(config, name, **settings):
    return dataclasses.replace(config, run_dir=f'{config.run_dir}-{name}', **settings)


def assert_trained_as_one(config):
    one = elsewhere(config, 'one', strategy='one')
    fit.fit(one, records.open_record_set(one.records))
    np.testing.assert_allclose(numbers(config), numbers(one), rtol=1e-6)
    assert len(numbers(config)) == config.epochs


def test_two_workers_of_which_one_is_killed_give_the_losses_of_one_device(config):
    config = dataclasses.replace(config, epochs=6)
    killed = trainings.workers(config)
    killed[0].wait_for_states(4)
    os.kill(killed[1].pid, signal.SIGKILL)
    start = time.monotonic()
    assert statuses(killed) == [2, -9], killed[0].output
    assert time.monotonic() - start < 30
    assert killed[0].output.splitlines()[-1].startswith('error: another worker of TF_CONFIG has gone (Collective ops')
    last = trainings.workers(config)
    assert statuses(last) == [0, 0], last[0].output
    assert 'continuing after epoch' in last[0].output and 'validation loss' not in last[1].output
    assert_trained_as_one(config)


@pytest.mark.long
@pytest.mark.parametrize('settings', [{'feature_cache': 'on'}, {'feature_cache': 'memory', 'batch_size': 16},
                                      {'batch_size': 6, 'steps_per_call': 3, 'ema_decay': 0.9, 'clip_norm': 0.5}])
def test_two_workers_give_the_losses_of_one_device(config, settings):
    config = dataclasses.replace(config, trainable_layers=5, epochs=2, **settings)
    assert statuses(trainings.workers(config)) == [0, 0]
    assert_trained_as_one(config)


@pytest.mark.long
@pytest.mark.parametrize('victim', [0, 1])
def test_killed_and_entered_again_two_workers_end_with_the_same_bits(config, victim):
    whole, config = config, elsewhere(config, 'killed', dropout=0.4)
    whole = dataclasses.replace(whole, dropout=0.4)
    assert statuses(trainings.workers(whole)) == [0, 0]
    killed = trainings.workers(config)
    killed[0].wait_for_states(5)
    os.kill(killed[victim].pid, signal.SIGKILL)
    assert statuses(killed) == ([-9, 2] if victim == 0 else [2, -9])
    assert statuses(trainings.workers(config)) == [0, 0]
    np.testing.assert_array_equal(numbers(config), numbers(whole))
    sums = {files.sha256_of(RunDir(pathlib.Path(one.run_dir)).weights) for one in (config, whole)}
    assert len(sums) == 1


@pytest.mark.long
@pytest.mark.parametrize('asked', [0, 1])
def test_a_signal_to_one_worker_stops_both_and_one_device_goes_on(config, asked):
    stopped = trainings.workers(config)
    stopped[0].wait_for_states(4)
    os.kill(stopped[asked].pid, signal.SIGTERM)
    assert statuses(stopped) == [143, 143], stopped[0].output
    fit.fit(dataclasses.replace(config, strategy='one'), records.open_record_set(config.records))
    assert_trained_as_one(config)


@pytest.mark.long
def test_a_worker_that_does_not_answer_is_given_up(config):
    started = trainings.workers(dataclasses.replace(config, epochs=100))
    started[0].wait_for_states(2)
    os.kill(started[1].pid, signal.SIGSTOP)
    try:
        assert started[0].wait(seconds=60) == 2
    finally:
        os.kill(started[1].pid, signal.SIGKILL)
    assert 'another worker of TF_CONFIG has gone' in started[0].output


@pytest.mark.long
def test_other_records_on_one_worker_are_refused_there_and_end_the_other(config, record_set_path):
    first, second = (dataclasses.replace(config, records=str(path)) for path in (config.records, record_set_path))
    second = elsewhere(second, 'second')
    started = trainings.workers(first, second)
    assert statuses(started, seconds=60) == [2, 2]
    assert 'error: this host has other records than host 0' in started[1].output
    assert 'another worker of TF_CONFIG has gone' in started[0].output
    assert not os.path.exists(second.run_dir)


@pytest.mark.long
def test_what_is_refused_by_the_first_worker_ends_the_other(config):
    pathlib.Path(config.run_dir).mkdir()
    pathlib.Path(config.run_dir, 'other').touch()
    started = trainings.workers(config)
    assert statuses(started, seconds=60) == [2, 2]
    assert 'holds something that is no run' in started[0].output
    assert 'another worker of TF_CONFIG has gone' in started[1].output


def test_a_large_state_is_sent_in_parts(monkeypatch):
    monkeypatch.setattr(distribute, '_SENT_WORDS', 2)
    monkeypatch.setattr(distribute, 'name', lambda _: 'multi_worker')
    monkeypatch.setattr(distribute, 'host_of_hosts', lambda _: (0, 2))
    monkeypatch.setattr(distribute, '_sum_over_hosts', lambda _, values: values.copy())
    for length in (0, 1, 8, 9, 19):
        assert distribute.from_host_0(None, bytes(range(length))) == bytes(range(length))


def few_seconds():
    distribute._START_SECONDS = 5


@pytest.mark.long
def test_a_worker_that_never_comes_is_not_waited_for_without_end(config):
    first, = trainings.workers(config, before=few_seconds, started=1)
    assert first.wait(seconds=60) == 2
    assert first.output.splitlines()[-1].endswith('has not come within 5 s: run the same command on each host.')
    assert not os.path.exists(config.run_dir)
