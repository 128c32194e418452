"""Runs that start from another's weights."""

import dataclasses
import pathlib
import shutil

import h5py
import keras
import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.data import files, records
from boardrec.training import backbones, checkpoint, fit, init_from, model, run_dir
from boardrec.training.model import Classes
from boardrec.training.run_dir import RunDir

CLASSES = Classes(['negative', 'positive'], 1)


@pytest.fixture
def small_config(train_config, small_backbone):
    """A function from settings to a TrainConfig of a network that takes milliseconds a step."""
    def make(**settings):
        return train_config(**{'backbone': small_backbone, 'trainable_layers': 9, 'precision': 'float32', 'epochs': 2,
                               'learning_rate': 0.01, **settings})
    return make


def train(config):
    fit.fit(config, records.open_record_set(config.records))
    return RunDir(pathlib.Path(config.run_dir))


@pytest.fixture
def source(small_config):
    """A finished run, and its weights."""
    run = train(small_config(epochs=1, image_size='40'))
    built = model.build(run_dir.read_config(run.path), CLASSES, 'float32')
    built.model.load_weights(run.weights)
    return run, built


def loaded(config, classes):
    classifier = model.build(config, classes, 'float32')
    head = classifier.model.get_layer('logits').get_weights()
    init_from.load_weights(config, classes, classifier)
    return classifier, head


def assert_equal(some, others):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_classes_take_all_at_any_image_size(small_config, source, capsys):
    run, theirs = source
    classifier, _ = loaded(small_config(init_from=str(run.path), image_size='24x32', seed=3), CLASSES)
    assert_equal(classifier.model.get_weights(), theirs.model.get_weights())
    assert f'weights from {run.path}\n' in capsys.readouterr().out


@pytest.mark.parametrize(('classes', 'named'), [
    (Classes(['a', 'b', 'c'], None), 'negative, positive (positive the positive one)'),
    (Classes(['negative', 'positive'], 0), 'negative, positive (positive the positive one)')])
def test_other_classes_take_the_backbone_and_say_so(small_config, source, capsys, classes, named):
    run, theirs = source
    classifier, head = loaded(small_config(init_from=str(run.path), seed=3), classes)
    for layer, other in zip(classifier.backbone_layers, theirs.backbone_layers, strict=True):
        assert_equal(layer.get_weights(), other.get_weights())
    assert_equal(classifier.model.get_layer('logits').get_weights(), head)
    assert f'weights from {run.path}, but for the last layer: its classes are {named}' in capsys.readouterr().out


def test_what_is_refused(small_config, source, tmp_path):
    run, _ = source
    with pytest.raises(UserError, match=r'--init_from=.* is a run with --backbone=xception, not vgg16: give that'):
        train(small_config(init_from=str(run.path), backbone='vgg16'))
    with pytest.raises(UserError, match=r'--init_from=.*nowhere: there is no run in it'):
        train(small_config(init_from=str(tmp_path / 'nowhere')))
    facts = run_dir.read_facts(run.path)
    run_dir.write_facts(run, {**facts, 'finished': False})
    config = small_config(init_from=str(run.path))
    with pytest.raises(UserError, match=r'--init_from=.*: training is not finished'):
        train(config)
    assert not pathlib.Path(config.run_dir).exists(), 'nothing was begun'
    run_dir.write_facts(run, facts)
    run.weights.write_bytes(run.weights.read_bytes()[:-1])
    with pytest.raises(UserError, match='model.weights.h5 is missing or was changed'):
        train(config)


def outcome(run):
    values = []
    with h5py.File(run.weights) as file:
        file.visititems(lambda name, item: values.append((name, item[()].tobytes())) if hasattr(item, 'dtype') else 0)
    return [row['val_loss'] for row in run_dir.read_history(run)], values


@pytest.mark.long
def test_it_is_reproducible_and_goes_on_without_the_other_run(small_config, source, monkeypatch, capsys):
    other, _ = source
    config = small_config(init_from=str(other.path), seed=3)
    whole = outcome(train(config))
    assert outcome(train(dataclasses.replace(config, run_dir=f'{config.run_dir}-twice'))) == whole
    again, commit = dataclasses.replace(config, run_dir=f'{config.run_dir}-again'), checkpoint.commit

    def stopped(*args):
        commit(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, 'commit', stopped)
        train(again)
    best, = RunDir(pathlib.Path(again.run_dir)).checkpoints.glob('best-*')
    good = best.read_bytes()
    best.write_bytes(good[:100])  # then the other run is needed
    shutil.move(other.path, f'{other.path}-moved')
    with pytest.raises(UserError, match='--init_from=.*there is no run in it'):
        train(again)
    best.write_bytes(good)
    assert outcome(train(again)) == whole
    assert 'continuing after epoch 1' in capsys.readouterr().out


def test_killed_before_its_first_state_it_starts_from_the_other_run_again(small_config, source, monkeypatch):
    other, _ = source
    config = small_config(init_from=str(other.path), seed=3)
    whole = outcome(train(config))
    again = dataclasses.replace(config, run_dir=f'{config.run_dir}-again')

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, 'commit', killed)  # the best weights of the first epoch lie there
        train(again)
    assert outcome(train(again)) == whole


def test_a_normalisation_layer_takes_the_others_statistics(small_config, source, monkeypatch):
    def with_normalisation(*args, input_tensor, **named):
        return build(*args, input_tensor=keras.layers.Normalization()(input_tensor), **named)

    build = backbones.BACKBONES['xception'].build
    monkeypatch.setattr(backbones.BACKBONES['xception'], 'build', with_normalisation)
    theirs = model.build(small_config(), CLASSES, 'float32')
    layer = next(layer for layer in theirs.backbone_layers if isinstance(layer, keras.layers.Normalization))
    layer.set_weights([np.full(3, 100.0), np.full(3, 900.0), np.array(1)])
    layer.finalize_state()
    run, _ = source
    checkpoint.save_weights(theirs.model, run.weights)
    run_dir.write_facts(run, {**run_dir.read_facts(run.path), 'weights_sha256': files.sha256_of(run.weights)})
    classifier, _ = loaded(small_config(init_from=str(run.path), seed=3), CLASSES)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    assert_equal(classifier.model.predict_on_batch(images), theirs.model.predict_on_batch(images))
