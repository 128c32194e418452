"""Schedules and stopping rules against Keras's own callbacks and closed formulas."""

import math
import types

import keras
import numpy as np
import pytest

from boardrec.config import TrainConfig
from boardrec.training import optim
from boardrec.training.optim import Watch


def config(**settings):
    return TrainConfig(records='R', run_dir='D', **settings)


def losses(seed):
    """A falling, noisy sequence with plateaus, ties and a few NaN."""
    random = np.random.default_rng(seed)
    values = np.round(np.exp(-np.arange(60) / 20) + random.normal(0, 0.05, 60), 2)
    values[10:][random.random(50) < 0.05] = math.nan  # not the first: Keras would hold it the best for ever
    return values.tolist()


def model_for_callbacks():
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile('sgd', 'mse')
    return model


@pytest.mark.parametrize('seed', range(5))
def test_early_stopping_is_that_of_keras(seed):
    settings = config(early_stopping_patience=4)
    callback = keras.callbacks.EarlyStopping('val_loss', patience=4)
    model = model_for_callbacks()
    callback.set_model(model)
    callback.on_train_begin()
    watch, stopped = Watch(), None
    for epoch, loss in enumerate(losses(seed), 1):
        watch = optim.observe(watch, loss, epoch=epoch, config=settings)
        callback.on_epoch_end(epoch - 1, {'val_loss': loss})
        assert optim.should_stop(watch, settings) == model.stop_training
        if model.stop_training:
            stopped = epoch
            break
    assert stopped and watch.best_epoch == callback.best_epoch + 1


@pytest.mark.parametrize('seed', range(5))
def test_plateau_is_that_of_keras(seed):
    settings = config(schedule='plateau', learning_rate=0.125, plateau_factor=0.5, plateau_patience=3)
    callback = keras.callbacks.ReduceLROnPlateau('val_loss', factor=0.5, patience=3)
    model = model_for_callbacks()
    model.optimizer.learning_rate = 0.125
    callback.set_model(model)
    callback.on_train_begin()
    watch, rates = Watch(), []
    for epoch, loss in enumerate(losses(seed), 1):
        watch = optim.observe(watch, loss, epoch=epoch, config=settings)
        callback.on_epoch_end(epoch - 1, {'val_loss': loss})
        rates.append(optim.learning_rate(settings, step=epoch, total_steps=100, watch=watch))
        assert rates[-1] == float(model.optimizer.learning_rate)
    assert rates[-1] < 0.125


def test_patience_zero_never_stops():
    settings, watch = config(early_stopping_patience=0), Watch()
    for epoch in range(1, 50):
        watch = optim.observe(watch, float(epoch), epoch=epoch, config=settings)
    assert watch.stale == 48 and not optim.should_stop(watch, settings)


def test_nan_is_never_the_best():
    watch = optim.observe(Watch(), math.nan, epoch=1, config=config())
    assert watch.best_epoch == 0 and watch.stale == 1


def test_cosine_falls_from_the_rate_to_zero():
    settings = config(schedule='cosine', learning_rate=0.2)
    rates = [optim.learning_rate(settings, step=step, total_steps=10, watch=Watch()) for step in range(11)]
    assert rates[0] == 0.2 and rates[5] == pytest.approx(0.1) and rates[10] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))
    schedule = keras.optimizers.schedules.CosineDecay(0.2, 10)
    np.testing.assert_allclose(rates, [float(schedule(step)) for step in range(11)], atol=1e-7)


def test_constant_stays():
    settings = config(schedule='constant', learning_rate=0.2)
    assert optim.learning_rate(settings, step=7, total_steps=10, watch=Watch(rate_scale=1.0)) == 0.2


def test_each_optimizer_takes_its_settings():
    adamw = optim.make_optimizer(config(optimizer='adamw', learning_rate=0.25, weight_decay=0.5), 'bfloat16')
    assert float(adamw.learning_rate) == 0.25 and adamw.weight_decay == 0.5
    assert optim.make_optimizer(config(optimizer='adam'), 'float32').weight_decay is None
    assert optim.make_optimizer(config(optimizer='sgd', momentum=0.75), 'float32').momentum == 0.75


def test_only_float16_scales_its_loss():
    kinds = {precision: type(optim.make_optimizer(config(), precision)) for precision in ('float32', 'bfloat16')}
    assert set(kinds.values()) == {keras.optimizers.AdamW}
    scaled = optim.make_optimizer(config(), 'float16')
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)


def test_watch_survives_json():
    import json
    watch = optim.observe(Watch(), 0.5, epoch=1, config=config(schedule='plateau'))
    assert Watch(**json.loads(json.dumps(watch._asdict()))) == watch
    assert types.SimpleNamespace(**json.loads(json.dumps(Watch()._asdict()))).best == math.inf
