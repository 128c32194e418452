"""Whole trainings in seconds: cache or none, one device or two, killed or not, the same numbers come out."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

from boardrec import cli
from boardrec.config import UserError
from boardrec.data import files, records
from boardrec.training import features, fit, model, run_dir
from boardrec.training.run_dir import RunDir

NUMBERS = ('loss', 'accuracy', 'val_loss', 'val_accuracy', 'learning_rate')


def train(config):
    fit.fit(config, records.open_record_set(config.records))
    return RunDir(pathlib.Path(config.run_dir))


def numbers(run):
    return np.array([[row[name] for name in NUMBERS] for row in run_dir.read_history(run)])


def test_a_run_learns_and_leaves_what_it_promises(finished_run):
    run = RunDir(finished_run)
    history = run_dir.read_history(run)
    assert history[-1]['val_accuracy'] >= 0.9 and history[-1]['loss'] < history[0]['loss']
    facts = run_dir.read_facts(finished_run)
    best = min(history, key=lambda row: row['val_loss'])
    assert facts['finished'] and facts['best_epoch'] == best['epoch'] and facts['best_val_loss'] == best['val_loss']
    name, = (path.name for path in run.checkpoints.glob('best-*'))
    assert name == f'best-epoch-{best["epoch"]:03.0f}-loss-{best["val_loss"]:.5f}.weights.h5'
    assert list(run.tensorboard.glob('events.*'))
    assert '=auto' not in run.flags.read_text()


def test_plain_keras_loads_the_model_and_its_parts_agree(finished_run):
    run = RunDir(finished_run)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = keras.saving.load_model(run.model)
    expected = whole(images).numpy()
    rebuilt = keras.models.model_from_json(run.architecture.read_text())
    rebuilt.load_weights(run.weights)
    np.testing.assert_array_equal(rebuilt(images).numpy(), expected)
    assert expected.shape == (3, 1) and ((expected > 0) & (expected < 1)).all()


def test_a_finished_run_is_left_alone(finished_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob('*')}
    train(run_dir.read_config(finished_run))
    assert 'already finished' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.rglob('*')}


def test_the_cache_changes_no_loss(train_config):
    runs = [train(train_config(precision='float32', dropout=0.0, feature_cache=cache, shuffle_records=64))
            for cache in ('on', 'off')]
    assert 'feature_cache=on' in runs[0].flags.read_text() and 'feature_cache=off' in runs[1].flags.read_text()
    np.testing.assert_allclose(numbers(runs[0]), numbers(runs[1]), rtol=1e-5)


def test_interrupted_and_continued_is_the_same_run(train_config, monkeypatch):
    config = train_config(epochs=3, schedule='cosine', optimizer='adam')
    whole, train_epoch = train(config), fit._train_epoch
    again = dataclasses.replace(config, run_dir=config.run_dir + '-again')

    def interrupted(config, state, *rest, **others):
        row = train_epoch(config, state, *rest, **others)
        if state.epoch == 1:
            raise KeyboardInterrupt  # after the second epoch's steps, before they are saved
        return row

    monkeypatch.setattr(fit, '_train_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(again)
    monkeypatch.setattr(fit, '_train_epoch', train_epoch)
    continued = train(again)
    np.testing.assert_array_equal(numbers(continued), numbers(whole))
    assert files.sha256_of(continued.weights) == files.sha256_of(whole.weights)


_TWO_DEVICES = '''
import sys
from boardrec import progress, cli
from boardrec.config import TrainConfig
from boardrec.data import records
progress.import_tensorflow()
import tensorflow as tf
cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from boardrec.training import fit
config = cli.parse(TrainConfig, sys.argv[1:])
fit.fit(config, records.open_record_set(config.records))
'''


def test_two_devices_give_the_losses_of_one(train_config, tmp_path):
    one = train_config(precision='float32', dropout=0.0, optimizer='sgd', learning_rate=0.01, batch_size=20)
    two = dataclasses.replace(one, run_dir=str(tmp_path / 'two'), strategy='mirrored', accumulate_steps=2,
                              feature_cache='off')
    two_flags = cli.to_flagfile(two).splitlines()
    run = subprocess.run([sys.executable, '-c', _TWO_DEVICES, *two_flags], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert 'on 2 device(s)' in run.stdout
    np.testing.assert_allclose(numbers(RunDir(tmp_path / 'two')), numbers(train(one)), rtol=1e-5)


def test_early_stopping_keeps_the_best_epoch(train_config, monkeypatch, capsys):
    script, kernels, validate = [0.5, 0.3, 0.4, 0.3, 0.1], [], fit._validate

    def scripted(feed, *rest):
        kernels.append(feed.network.get_layer('logits').kernel.numpy())
        return {**validate(feed, *rest), 'val_loss': script[len(kernels) - 1]}

    monkeypatch.setattr(fit, '_validate', scripted)
    run = train(train_config(epochs=5, early_stopping_patience=2))
    assert len(kernels) == 4 and run_dir.read_facts(run.path)['best_epoch'] == 2
    assert 'stopped early' in capsys.readouterr().out
    best = keras.models.model_from_json(run.architecture.read_text())
    best.load_weights(run.weights)
    np.testing.assert_array_equal(best.get_layer('logits').kernel.numpy(), kernels[1])


def test_three_classes(image_folder, convert_here, train_config, tmp_path):
    convert_here(image_folder({'a': 30, 'b': 30, 'c': 30}), tmp_path / 'records')
    run = train(train_config(records=str(tmp_path / 'records'), epochs=1, image_size='32x40'))
    assert json.loads(run.architecture.read_text())['config']['layers'][-1]['config']['activation'] == 'softmax'
    assert run_dir.read_config(run.path).positive_class == ''


def test_reasons_against_a_cache(train_config, record_set, monkeypatch):
    config = train_config(trainable_layers=19)
    assert fit._reason_against_cache(config, record_set, None) == 'no layer is frozen with --trainable_layers=19'
    config = train_config()
    cut = features.find_cut(model.build(config, model.Classes(['a', 'b'], 1), 'float32'))
    assert fit._reason_against_cache(config, record_set, cut) is None
    assert fit._reason_against_cache(train_config(feature_cache='off'), record_set, cut) == '--feature_cache=off'
    monkeypatch.setattr(features, 'reason_against', lambda *_: 'no room')
    assert fit._reason_against_cache(config, record_set, cut) == 'no room'
    with pytest.raises(UserError, match='--feature_cache=on: no room'):
        fit._reason_against_cache(train_config(feature_cache='on'), record_set, cut)
    monkeypatch.setattr(features, 'is_complete', lambda *_, **__: True)  # what is there already needs no room
    assert fit._reason_against_cache(config, record_set, cut) is None


def test_a_missing_split_names_the_way_out(image_folder, convert_here, train_config, tmp_path):
    convert_here(image_folder({'train/a': 4, 'train/b': 4}), tmp_path / 'records')
    with pytest.raises(UserError, match='nothing in its val split'):
        train(train_config(records=str(tmp_path / 'records')))


def test_a_batch_that_devices_cannot_share(train_config):
    with pytest.raises(UserError, match='--accumulate_steps=3: must be a divisor of --batch_size=16'):
        train_config(accumulate_steps=3)


def test_a_loss_that_is_not_finite_is_told(train_config):
    config = train_config(optimizer='sgd', learning_rate=1e30, precision='float32')
    with pytest.raises(UserError, match=r'lower --learning_rate=1e\+30'):
        train(config)


def unfinished(path):
    """Marks a run unfinished and returns its settings."""
    run_dir.write_facts(RunDir(path), {**run_dir.read_facts(path), 'finished': False})
    return run_dir.read_config(path)


def test_other_records_are_refused(copied_run, image_folder, convert_here, tmp_path):
    config = run_dir.read_config(copied_run)
    convert_here(image_folder({'negative': 30, 'positive': 30}, seed=9), tmp_path / 'records')
    with pytest.raises(UserError, match='was begun with other records'):
        train(dataclasses.replace(config, records=str(tmp_path / 'records')))


def test_other_starting_weights_are_refused(copied_run, monkeypatch):
    config = unfinished(copied_run)

    def others(name, weights, layers):
        layers[0].set_weights([np.ones_like(values) for values in layers[0].get_weights()])

    monkeypatch.setattr(fit.backbones, 'load_weights', others)  # as if the file at --weights were another now
    with pytest.raises(UserError, match='was begun with other starting weights'):
        train(config)


def test_a_run_killed_before_its_last_lines_is_finished_again(copied_run, finished_run):
    run, config = RunDir(copied_run), unfinished(copied_run)
    for path in (run.weights, run.model, run.architecture, run.history):
        path.unlink()
    train(config)
    assert run_dir.read_facts(run.path) == run_dir.read_facts(finished_run)
    for name in ('weights', 'history'):
        assert files.sha256_of(getattr(run, name)) == files.sha256_of(getattr(RunDir(finished_run), name))
