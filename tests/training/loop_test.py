"""Trainings left in the middle of an epoch, by a signal, a kill or a number that is none, and entered again."""

import dataclasses
import errno
import json
import os
import pathlib
import signal

import h5py
import keras
import numpy as np
import pytest

from boardrec import cli
from boardrec.config import UserError
from boardrec.data import files, records
from boardrec.training import board, checkpoint, fit, loop, optim, run_dir, steps
from boardrec.training.run_dir import RunDir

NUMBERS = ('loss', 'accuracy', 'val_loss', 'val_accuracy', 'learning_rate', 'skipped_steps')


@pytest.fixture
def small_config(train_config, small_backbone):
    """A function from settings to a TrainConfig of a network that takes milliseconds a step; 6 steps an epoch."""
    def make(**settings):
        return train_config(**{'backbone': small_backbone, 'trainable_layers': 9, 'precision': 'float32', 'epochs': 2,
                               'schedule': 'cosine', 'dropout': 0.4, 'learning_rate': 0.01, **settings})
    return make


def train(config):
    fit.fit(config, records.open_record_set(config.records))
    return RunDir(pathlib.Path(config.run_dir))


def outcome(run):
    """What must be the same to the last bit, however often a run was left."""
    rows = [[row[name] for name in NUMBERS] for row in run_dir.read_history(run)]
    facts = run_dir.read_facts(run.path)
    values = []
    with h5py.File(run.weights) as file:  # whose bytes hold names that Keras counts up within a process
        file.visititems(
            lambda name, item: values.append((name, item[()].tobytes())) if hasattr(item, 'dtype') else None)
    return rows, facts['best_epoch'], values


def again(config):
    return dataclasses.replace(config, run_dir=f'{config.run_dir}-again')


def at_step(monkeypatch, number, action):
    """Does something once, when so many steps were taken."""
    told = []
    step = board.Board.step

    def watched(self, *args):
        step(self, *args)
        told.append(None)
        if len(told) == number:
            action()

    monkeypatch.setattr(board.Board, 'step', watched)


IMAGES = {'feature_cache': 'off', 'cached_views': 0, 'ema_decay': 0.9, 'optimizer': 'sgd'}
TWO_PHASES = {'feature_cache': 'on', 'cached_views': 2, 'head_epochs': 1, 'clip_norm': 0.5, 'label_smoothing': 0.1}
GROUPS = {'feature_cache': 'memory', 'steps_per_call': 4, 'precision': 'bfloat16', 'class_weight': 'balanced'}


@pytest.mark.parametrize(('settings', 'moment'), [
    (TWO_PHASES, 4), pytest.param(IMAGES, 4, marks=pytest.mark.long),
    pytest.param(IMAGES, 9, marks=pytest.mark.long), pytest.param(TWO_PHASES, 9, marks=pytest.mark.long),
    pytest.param(GROUPS, 2, marks=pytest.mark.long), pytest.param(GROUPS, 4, marks=pytest.mark.long)])
def test_left_in_the_middle_of_an_epoch_and_entered_again_it_is_the_same_run(
        small_config, monkeypatch, capsys, settings, moment):
    config = small_config(checkpoint_every_steps=2, **settings)
    whole = outcome(train(config))

    def killed():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, moment, killed)
        train(again(config))
    assert outcome(train(again(config))) == whole
    assert 'continuing after epoch' in capsys.readouterr().out


@pytest.mark.parametrize(('number', 'moment'), [
    (signal.SIGTERM, 8), pytest.param(signal.SIGINT, 3, marks=pytest.mark.long)])
def test_a_signal_saves_the_step_and_the_same_command_goes_on_there(small_config, monkeypatch, number, moment):
    config = small_config()  # saves at no step of its own
    whole = outcome(train(config))
    with monkeypatch.context() as patch, pytest.raises(cli.Interrupted) as left:
        at_step(patch, moment, lambda: os.kill(os.getpid(), number))
        train(again(config))
    assert left.value.number == number
    assert outcome(train(again(config))) == whole


def test_a_signal_during_validation_saves_too(small_config, monkeypatch):
    config = small_config(epochs=1, batch_size=8)
    whole, validate = outcome(train(config)), loop.validate

    def interrupted(session):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(session)

    with monkeypatch.context() as patch, pytest.raises(cli.Interrupted):
        patch.setattr(loop, 'validate', interrupted)
        train(again(config))
    with monkeypatch.context() as patch:
        patch.setattr(steps, 'make_calls', lambda *_, **__: pytest.fail)  # no step is left to take
        assert outcome(train(again(config))) == whole


def test_groups_of_steps_change_no_bit(small_config):
    one = small_config(feature_cache='off')
    many = dataclasses.replace(again(one), steps_per_call=4)
    assert outcome(train(one)) == outcome(train(many))


@pytest.mark.long
def test_xla_gives_the_losses_that_are_without_it(small_config):
    plain = small_config(feature_cache='off', dropout=0.0)
    compiled = dataclasses.replace(again(plain), xla='on', steps_per_call=4)
    np.testing.assert_allclose(outcome(train(compiled))[0], outcome(train(plain))[0], rtol=1e-4)


def poisoned(monkeypatch, at, *, times=1):
    """Makes the loss of the record that comes at step `at` (of the whole run) not finite, so many times."""
    left = [times]
    call = loop._call

    def broken(session, state, batches, first, count):
        if left[0] and state.epoch * session.source.steps_per_epoch + first == at:
            left[0] -= 1
            weights = session.source.network.get_layer('logits').kernel
            weights.assign(np.full(weights.shape, np.nan, np.float32))
        return call(session, state, batches, first, count)

    monkeypatch.setattr(loop, '_call', broken)


def test_a_number_that_is_none_stops_training_and_names_step_and_records(small_config, monkeypatch, record_set):
    config = small_config(checkpoint_every_steps=2, feature_cache='off')
    poisoned(monkeypatch, at=9)
    with pytest.raises(UserError, match=r'epoch 2, step 4: the loss or a gradient is not finite.*--learning_rate=0.01.*'
                       r'or go on here with --on_nan=rollback'):
        train(config)
    run = RunDir(pathlib.Path(config.run_dir))
    told = json.loads(run.non_finite.read_text())
    assert (told['epoch'], told['step']) == (2, 4) and len(told['record_ids']) == 16
    assert told['sources'] == [record_set.sources[number] for number in told['record_ids']]
    assert checkpoint.exists(run.checkpoints), 'the last good state is kept'
    assert len(run_dir.read_history(train(dataclasses.replace(config, on_nan='rollback')))) == 2


def test_rollback_goes_back_with_half_the_rate_and_no_more_than_three_times(small_config, monkeypatch, capsys):
    config = small_config(checkpoint_every_steps=2, feature_cache='off', on_nan='rollback', schedule='constant')
    with monkeypatch.context() as patch:
        poisoned(patch, at=9)
        run = train(config)
    assert 'epoch 2, step 4: the loss or a gradient is not finite: back to epoch 2, step 3, with half' in (
        capsys.readouterr().out)
    assert [row['learning_rate'] for row in run_dir.read_history(run)] == [0.01, 0.005]
    with monkeypatch.context() as patch, pytest.raises(UserError, match='epoch 1, step 1: the loss'):
        poisoned(patch, at=0, times=9)
        train(again(config))
    assert capsys.readouterr().out.count('with half the learning rate') == 3


@pytest.fixture
def disk(monkeypatch):
    """A disk that has room for small files alone while `disk['full']`."""
    state = {'full': False}

    def with_room(function):
        def call(*args, **named):
            if state['full']:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **named)
        return call

    monkeypatch.setattr(np, 'savez', with_room(np.savez))
    monkeypatch.setattr(files, 'require_space', with_room(files.require_space))
    return state


def test_a_disk_that_is_full_at_the_end_is_said_though_small_files_still_fit(small_config, monkeypatch, capsys, disk):
    config = small_config()
    whole = outcome(train(config))
    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):  # a sentence of cli.run
        at_step(patch, 9, lambda: disk.update(full=True))
        train(again(config))
    assert 'saved again' not in capsys.readouterr().out
    disk['full'] = False
    assert outcome(train(again(config))) == whole


def test_rollbacks_are_counted_on_a_full_disk(small_config, monkeypatch, capsys, disk):
    at_step(monkeypatch, 7, lambda: disk.update(full=True))
    poisoned(monkeypatch, at=9, times=9)
    with pytest.raises(UserError, match='epoch 2, step 4: the loss'):
        train(small_config(feature_cache='off', on_nan='rollback'))
    assert capsys.readouterr().out.count('with half the learning rate') == 3


def test_a_history_that_found_no_room_is_written_in_the_end(small_config, monkeypatch, capsys):
    write, left = run_dir.write_history, [2]

    def full(run, rows):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.history))
        write(run, rows)

    monkeypatch.setattr(run_dir, 'write_history', full)
    assert len(run_dir.read_history(train(small_config()))) == 2
    assert capsys.readouterr().out.count('history.csv: No space left on device; training goes on') == 2


def test_float16_skips_steps_and_counts_them(small_config, monkeypatch, capsys):
    monkeypatch.setattr(optim, 'make_optimizer', lambda *_: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(), initial_scale=2.0**40))  # beyond float16, so that the first steps fail
    row, = run_dir.read_history(train(small_config(precision='float16', feature_cache='off', epochs=1)))
    assert row['skipped_steps'] > 0 and np.isfinite(row['loss'])
    assert f'{row["skipped_steps"]:.0f} steps skipped by loss scaling' in capsys.readouterr().out
