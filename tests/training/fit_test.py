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
from boardrec.data import files, input_pipeline, records
from boardrec.training import backbones, checkpoint, features, fit, inference, loop, run_dir
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


@pytest.mark.parametrize(('trained', 'caches'), [(0, ('on', 'off')), (5, ('memory', 'off')), (22, ('auto', 'off'))])
def test_the_cache_changes_no_loss_of_a_backbone_with_branches_and_views(
        train_config, small_backbone, trained, caches):
    runs = [train(train_config(backbone=small_backbone, trainable_layers=trained, precision='float32', dropout=0.0,
                               feature_cache=cache, shuffle_records=64, cached_views=2, learning_rate=0.01,
                               accumulate_steps=2))
            for cache in caches]
    assert len({tuple(row) for row in numbers(runs[0])}) == 2
    np.testing.assert_allclose(*map(numbers, runs), rtol=2e-5)


def assert_whole(run):
    """The finished run takes images and gives the probabilities that its losses were computed of."""
    predictor, record_set = inference.load(run.path), records.open_record_set(run_dir.read_config(run.path).records)
    probabilities, total = inference.probabilities(predictor), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plain = keras.saving.load_model(run.model)
    for batch in input_pipeline.eval_dataset(
            record_set, 'val', image_size=predictor.config.height_width(), batch_size=16):
        columns = probabilities(batch.inputs).numpy()
        np.testing.assert_allclose(plain(batch.inputs, training=False)[:, 0], columns[:, predictor.classes.positive],
                                   rtol=1e-5, atol=1e-6)
        total -= np.log(columns[np.arange(len(columns)), batch.labels]).sum()
    assert total / len(record_set.split_range('val')) == pytest.approx(predictor.facts['best_val_loss'], rel=1e-4)


@pytest.mark.parametrize('cache', ['on', 'off'])
def test_the_finished_model_of_a_backbone_with_branches_is_whole(train_config, small_backbone, cache):
    run = train(train_config(backbone=small_backbone, trainable_layers=9, feature_cache=cache, precision='float32',
                             cached_views=2, learning_rate=0.01))
    assert_whole(run)
    assert f'--feature_cache={cache}' in run.flags.read_text()


@pytest.mark.long
@pytest.mark.parametrize(('backbone', 'trained', 'size'), [
    ('resnet50', 9, '32'), ('inception_v3', 20, '75'), ('xception', 12, '71'), ('vgg19', 4, '32')])
def test_the_finished_model_of_each_backbone_is_whole(train_config, backbone, trained, size):
    assert_whole(train(train_config(backbone=backbone, trainable_layers=trained, image_size=size, precision='float32',
                                    epochs=1, cached_views=2)))


def interrupt_after_the_first_epoch(config, monkeypatch):
    """Trains until the first epoch is saved."""
    commit = checkpoint.commit

    def stopped(*args):
        commit(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, 'commit', stopped)
        train(config)


def test_a_run_from_features_in_memory_goes_on_from_the_disk(train_config, small_backbone, monkeypatch):
    config = train_config(backbone=small_backbone, trainable_layers=5, cached_views=2, feature_cache='memory', epochs=3,
                          dropout=0.4, precision='float32')
    whole = train(config)
    again = dataclasses.replace(config, run_dir=config.run_dir + '-again')

    interrupt_after_the_first_epoch(again, monkeypatch)
    continued = train(dataclasses.replace(again, feature_cache='on'))
    np.testing.assert_allclose(numbers(continued), numbers(whole), rtol=1e-5)


def test_interrupted_and_continued_is_the_same_run(train_config, monkeypatch):
    config = train_config(epochs=3, schedule='cosine', optimizer='adam')
    whole, train_epoch = train(config), loop.train_epoch
    again = dataclasses.replace(config, run_dir=config.run_dir + '-again')

    def interrupted(session, state):
        after = train_epoch(session, state)
        if state.epoch == 1:
            raise KeyboardInterrupt  # after the second epoch's steps, before they are saved
        return after

    monkeypatch.setattr(loop, 'train_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(again)
    monkeypatch.setattr(loop, 'train_epoch', train_epoch)
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
sys.path.insert(0, sys.argv[1])
import conftest
from boardrec.training import backbones, fit
backbones.BACKBONES['xception'] = conftest.SMALL_BACKBONE
config = cli.parse(TrainConfig, sys.argv[2:])
fit.fit(config, records.open_record_set(config.records))
'''


_TWO_REPLICAS = '''
from boardrec import progress
progress.import_tensorflow()
import tensorflow as tf
cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
from boardrec.data.input_pipeline import Batch
from boardrec.training import distribute, steps
from boardrec.training.model import Classes

def after_a_step(strategy, bad, clip_norm, float16):
    keras.utils.set_random_seed(0)
    with distribute.scope(strategy):
        inputs = keras.Input((5,))
        network = keras.Model(inputs, keras.layers.Dense(3)(inputs))
        optimizer = keras.optimizers.SGD(0.5)
        if float16:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(network.trainable_variables)
    values = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    values[bad] = np.nan
    batch = Batch(tf.constant(values), tf.constant([0, 1, 2, 0, 1, 2, 0, 1]), tf.ones([8]), tf.range(8, dtype=tf.int64))
    step = steps.make_train_step(network, optimizer, steps.Objective(Classes(['a', 'b', 'c'], None)), strategy=strategy,
                                 clip_norm=clip_norm)
    before = network.get_weights()
    sums = step(distribute.place(strategy, batch))
    return before, network.get_weights(), float(sums.bad)

two = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
for bad in ([0], [7]):  # of the first replica's share, and of the second's
    before, after, count = after_a_step(two, bad, 0.0, True)
    assert count > 0 and all((a == b).all() for a, b in zip(before, after)), (bad, count)
for float16 in (False, True):
    one, both = (after_a_step(strategy, [], 0.05, float16) for strategy in (None, two))
    for a, b, c in zip(one[1], both[1], one[0]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert (a != c).any()
print('steps of two replicas are right')
'''

def write_record_weights(path, record_set, seed=0):
    """A file that gives each record a weight."""
    weights = np.random.default_rng(seed).uniform(0, 2, len(record_set.sources))
    rows = (f'{source},{weight}\n' for source, weight in zip(record_set.sources, weights, strict=True))
    path.write_text('path,weight\n' + ''.join(rows))
    return str(path)


def test_two_devices_give_the_losses_of_one(train_config, small_backbone, record_set, tmp_path):
    common = {'precision': 'float32', 'dropout': 0.0, 'optimizer': 'sgd', 'learning_rate': 0.01, 'batch_size': 20}
    branching = {'backbone': small_backbone, 'trainable_layers': 5, 'cached_views': 3, 'epochs': 3,
                 'record_weights': write_record_weights(tmp_path / 'weights.csv', record_set)}
    started = []
    for one, cache in ((train_config(**common), 'off'), (train_config(**common, **branching), 'on')):
        two = dataclasses.replace(one, run_dir=one.run_dir + '-two', strategy='mirrored', accumulate_steps=2,
                                  feature_cache=cache, feature_cache_dir=one.feature_cache_dir + '-two')
        started.append((one, two, subprocess.Popen(
            [sys.executable, '-c', _TWO_DEVICES,
             pathlib.Path(__file__).parents[1], *cli.to_flagfile(two).splitlines()],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)))
    for one, two, process in started:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert 'on 2 device(s)' in out and ('computing the features' in out) == (two.feature_cache == 'on')
        np.testing.assert_allclose(numbers(RunDir(pathlib.Path(two.run_dir))), numbers(train(one)), rtol=1e-5)


def test_two_replicas_skip_a_bad_step_together_and_clip_as_one():
    # Not within _TWO_DEVICES: the collective operations of a process's second MirroredStrategy fail.
    done = subprocess.run([sys.executable, '-c', _TWO_REPLICAS], capture_output=True, text=True, check=False)
    assert 'steps of two replicas are right' in done.stdout, done.stderr


def test_early_stopping_keeps_the_best_epoch(train_config, monkeypatch, capsys):
    script, kernels, validate = [0.5, 0.3, 0.4, 0.3, 0.1], [], loop.validate

    def scripted(session):
        kernels.append(session.source.network.get_layer('logits').kernel.numpy())
        return {**validate(session), 'val_loss': script[len(kernels) - 1]}

    monkeypatch.setattr(loop, 'validate', scripted)
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


def test_a_missing_split_names_the_way_out(image_folder, convert_here, train_config, tmp_path):
    convert_here(image_folder({'train/a': 4, 'train/b': 4}), tmp_path / 'records')
    with pytest.raises(UserError, match='nothing in its val split'):
        train(train_config(records=str(tmp_path / 'records')))


def test_a_batch_that_devices_cannot_share(train_config):
    with pytest.raises(UserError, match='--accumulate_steps=3: must be a divisor of --batch_size=16'):
        train_config(accumulate_steps=3)


def test_a_loss_that_is_not_finite_is_told(train_config):
    config = train_config(optimizer='sgd', learning_rate=4e9, precision='float32')
    with pytest.raises(UserError, match=r'lower --learning_rate=4000000000\.0'):
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


def test_record_weights_change_the_run_and_only_their_values_make_it_another(
        train_config, small_backbone, record_set, tmp_path, capsys):
    common = {'backbone': small_backbone, 'trainable_layers': 9, 'precision': 'float32', 'learning_rate': 0.01}
    path = tmp_path / 'weights.csv'
    weighted = train_config(record_weights=write_record_weights(path, record_set), **common)
    losses = [numbers(train(config))[:, 0] for config in (weighted, train_config(**common))]
    assert np.abs(losses[0] / losses[1] - 1).min() > 0.01
    out = capsys.readouterr().out
    assert f'--record_weights: {len(record_set.split_range("train"))} of' in out and 'are in other splits' in out
    unfinished(pathlib.Path(weighted.run_dir))
    moved = path.rename(tmp_path / 'moved.csv')
    train(dataclasses.replace(weighted, record_weights=str(moved)))
    write_record_weights(moved, record_set, seed=1)
    for other in (str(moved), ''):
        with pytest.raises(UserError, match='was begun with other record weights: name another folder.'):
            train(dataclasses.replace(weighted, record_weights=other))


def test_other_starting_weights_are_refused(copied_run, monkeypatch):
    config = unfinished(copied_run)

    def others(name, weights, layers):
        layers[0].set_weights([np.ones_like(values) for values in layers[0].get_weights()])

    monkeypatch.setattr(backbones, 'load_weights', others)  # as if the file at --weights were another now
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


def test_a_decision_is_written_before_anything_is_computed_and_kept_after_an_epoch(train_config, monkeypatch, capsys):
    config = train_config(feature_cache='auto', epochs=2)
    seconds, compute = [1.0], features.compute
    monkeypatch.setattr(features, 'seconds_an_image', lambda trunk: seconds[0])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(features, 'compute', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert 'feature_cache=on' in pathlib.Path(config.run_dir, 'run.flags').read_text()
    seconds[0] = 0.0  # another time it looks otherwise; no epoch is complete, so it may
    train_epoch = loop.train_epoch

    def once(session, state):
        if state.epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(session, state)

    monkeypatch.setattr(loop, 'train_epoch', once)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert 'feature_cache=off' in pathlib.Path(config.run_dir, 'run.flags').read_text()
    seconds[0] = 1.0
    monkeypatch.setattr(features, 'compute', compute)
    monkeypatch.setattr(loop, 'train_epoch', train_epoch)
    capsys.readouterr()
    run = train(config)
    assert 'features are not cached: as before' in capsys.readouterr().out
    assert 'feature_cache=off' in run.flags.read_text() and run_dir.read_facts(run.path)['finished']


def test_a_batch_that_two_devices_cannot_share(train_config, monkeypatch, record_set):
    monkeypatch.setattr(fit.distribute, 'replicas', lambda _: 2)
    with pytest.raises(UserError, match='--batch_size=15: must be a multiple of 2 devices times --accumulate_steps=5'):
        fit.fit(train_config(batch_size=15, accumulate_steps=5), record_set)


def test_a_data_service_for_several_hosts_is_refused(train_config, monkeypatch, record_set):
    monkeypatch.setattr(fit.distribute, 'host_of_hosts', lambda _: (0, 2))
    with pytest.raises(UserError, match='--data_service=grpc://h:1: serves one host, and TF_CONFIG names several'):
        fit.fit(train_config(data_service='grpc://h:1'), record_set)


def test_a_run_is_fed_by_a_data_service_and_says_what_that_costs(train_config, data_service, capsys):
    run = train(train_config(data_service=data_service, cached_views=0, epochs=2, feature_cache='auto'))
    said = capsys.readouterr().out
    assert f'training images come from {data_service}: their order is not promised, and a run that is inter' in said
    assert 'features are not cached: each epoch takes new views (--cached_views=0)' in said
    history = run_dir.read_history(run)
    assert len(history) == 2 and history[1]['loss'] < history[0]['loss']


def test_memory_is_in_the_log_and_the_history(train_config, capsys):
    run = train(train_config(epochs=1))
    row, = run_dir.read_history(run)
    assert 100 < row['peak_rss_mib'] < 64_000
    assert f'{row["peak_rss_mib"]:,.0f} MiB of memory at most' in capsys.readouterr().out


@pytest.mark.parametrize(('converted', 'image_size', 'message'), [
    ({'image_size': '32x24', 'resize': 'squash'}, '32', 'were resized to 32x24 when .* again with --image_size=32x32'),
    ({'image_size': '32x40', 'resize': 'pad'}, '33x40', 'were resized to 32x40 when .* again with --image_size=33x40'),
    ({'image_size': '24', 'resize': 'shorter'}, '24x32',
     'were resized to a shorter side of 24 when .* again with --image_size=32')])
def test_images_that_were_stored_smaller_are_refused_before_anything_is_made(
        source_images, convert_here, train_config, tmp_path, converted, image_size, message):
    convert_here(source_images, tmp_path / 'records', encoding='jpeg', **converted)
    config = train_config(records=str(tmp_path / 'records'), image_size=image_size)
    asked = 'x'.join(map(str, config.height_width()))
    with pytest.raises(UserError, match=f'^--image_size={asked} is more than .*{message}'):
        train(config)
    assert not pathlib.Path(config.run_dir).exists()


def test_images_that_were_stored_in_the_size_of_training_are_trained_on(
        source_images, convert_here, train_config, small_backbone, tmp_path):
    convert_here(source_images, tmp_path / 'records', encoding='raw', image_size='32x40', resize='squash')
    assert_whole(train(train_config(records=str(tmp_path / 'records'), image_size='32x40', backbone=small_backbone,
                                    trainable_layers=5, epochs=1, precision='float32')))


@pytest.mark.long
def test_a_run_goes_on_with_another_memory_for_the_pipeline(train_config, monkeypatch):
    config = train_config(feature_cache='off', pipeline_ram_mb=64)
    whole = train(config)
    again = dataclasses.replace(config, run_dir=config.run_dir + '-again')

    interrupt_after_the_first_epoch(again, monkeypatch)
    continued = train(dataclasses.replace(again, pipeline_ram_mb=8))
    assert '--pipeline_ram_mb=8\n' in continued.flags.read_text()
    np.testing.assert_array_equal(numbers(continued), numbers(whole))


def test_too_little_memory_for_the_pipeline_is_refused_before_anything_is_made(train_config):
    config = train_config(pipeline_ram_mb=1, batch_size=200, feature_cache='off')
    with pytest.raises(UserError, match='^--pipeline_ram_mb=1: 5 batches of 200 images of 32x32 pixels .* need 3 MiB'):
        train(config)
    assert not pathlib.Path(config.run_dir).exists()


def test_cached_features_need_no_memory_for_the_pipeline(train_config):
    train(train_config(pipeline_ram_mb=1, batch_size=200, feature_cache='memory', epochs=1))
