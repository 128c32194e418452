"""Schedules and stopping rules against Keras's own; clipping and averages against TensorFlow's; closed formulas."""

import json
import math
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import TrainConfig
from boardrec.training import optim
from boardrec.training.optim import Watch

SEQUENCES = 60


def config(**settings):
    return TrainConfig(records='R', run_dir='D', **settings)


def losses(random, count=40):
    """A falling, noisy sequence with plateaus, ties, what is a little better or worse than the best, NaN and infinity.

    In 1024ths, which float32 (in which Keras compares) has exactly; only steps of 1/16384 lie below plateau's
    least difference of 1e-4.
    """
    values = np.round((np.exp(-np.arange(count) / random.integers(2, 40)) + random.normal(0, 0.05, count)) * 1024)
    values += random.choice([0, 0, 1 / 16, -1 / 16, -2 / 16], count)
    for number in np.flatnonzero(random.random(count) < 0.2)[1:]:
        values[number] = values[:number].min() + random.choice([0, 1 / 16, -1 / 16, -2 / 16])
    # Not the first: Keras would hold it the best, NaN for ever.
    values[1:][random.random(count - 1) < 0.03] = math.nan
    values[1:][random.random(count - 1) < 0.02] = math.inf
    return (values / 1024).tolist()


@pytest.fixture(scope='module')
def keras_model():
    """A model for callbacks, which look at its optimizer and say there that training stops."""
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile('sgd', 'mse')
    return model


def begin(callback, model):
    model.stop_training = False
    callback.set_model(model)
    callback.on_train_begin()
    return callback


def test_early_stopping_is_that_of_keras(keras_model):
    random, stops, waits = np.random.default_rng(0), [], []
    for _ in range(SEQUENCES):
        patience, head = int(random.integers(1, 9)), int(random.choice([0, 0, 3]))
        settings = config(early_stopping_patience=patience, head_epochs=head, epochs=50)
        callback = begin(keras.callbacks.EarlyStopping('val_loss', patience=patience), keras_model)
        watch = Watch()
        for epoch, loss in enumerate(losses(random), 1):
            watch = optim.observe(watch, loss, epoch=epoch, config=settings)
            callback.on_epoch_end(epoch - 1, {'val_loss': loss})
            if epoch <= head:
                callback.wait, keras_model.stop_training = 0, False
            assert (watch.best, watch.best_epoch, watch.stale) == (
                callback.best, callback.best_epoch + 1, callback.wait)
            assert optim.should_stop(watch, settings) == keras_model.stop_training
            if keras_model.stop_training:
                break
        stops.append(keras_model.stop_training)
        waits.append(epoch - watch.best_epoch == patience)
    assert 0 < sum(stops) < SEQUENCES and sum(waits) > SEQUENCES / 3


@pytest.mark.parametrize('factor', [0.5, 0.3])
def test_plateau_is_that_of_keras(keras_model, factor):
    random, reductions = np.random.default_rng(0), 0
    for _ in range(SEQUENCES // 2):
        patience = int(random.integers(1, 7))
        settings = config(schedule='plateau', learning_rate=0.125, plateau_factor=factor, plateau_patience=patience)
        keras_model.optimizer.learning_rate = 0.125
        callback = begin(keras.callbacks.ReduceLROnPlateau('val_loss', factor=factor, patience=patience), keras_model)
        watch = Watch()
        for epoch, loss in enumerate(losses(random), 1):
            watch = optim.observe(watch, loss, epoch=epoch, config=settings)
            callback.on_epoch_end(epoch - 1, {'val_loss': loss})
            rate = optim.learning_rate(settings, step=epoch, steps_per_epoch=10, watch=watch)
            # Keras rounds to float32 at each reduction, which matters where the factor is no power of two.
            assert rate == pytest.approx(float(keras_model.optimizer.learning_rate), rel=0 if factor == 0.5 else 1e-5)
            assert (watch.plateau_best, watch.plateau_stale) == (callback.best, callback.wait)
        reductions += watch.rate_scale < 1
    assert reductions > SEQUENCES / 4


def test_patience_zero_never_stops():
    settings, watch = config(early_stopping_patience=0), Watch()
    for epoch in range(1, 50):
        watch = optim.observe(watch, float(epoch), epoch=epoch, config=settings)
    assert watch.stale == 48 and not optim.should_stop(watch, settings)


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_what_is_not_finite_is_never_the_best(loss):
    watch = optim.observe(Watch(), loss, epoch=1, config=config())
    assert watch.best_epoch == 0 and watch.stale == 1
    assert optim.observe(watch, 5.0, epoch=2, config=config()).best_epoch == 2


def test_epochs_of_the_head_may_be_the_best_and_use_up_no_patience():
    settings = config(schedule='plateau', plateau_patience=2, early_stopping_patience=2, head_epochs=3)
    watch = Watch()
    for epoch, loss in enumerate([0.5, 0.6, 0.7, 0.8, 0.9], 1):
        watch = optim.observe(watch, loss, epoch=epoch, config=settings)
        assert optim.should_stop(watch, settings) == (epoch == 5) and watch.best_epoch == 1
    assert watch.plateau_best == 0.8 and watch.plateau_stale == 1 and watch.rate_scale == 1


def rates(settings, *, steps_per_epoch, watch=Watch()):  # noqa: B008  immutable
    return [optim.learning_rate(settings, step=step, steps_per_epoch=steps_per_epoch, watch=watch)
            for step in range(settings.epochs * steps_per_epoch)]


def test_cosine_falls_from_the_rate_to_zero():
    settings = config(schedule='cosine', learning_rate=0.2, epochs=5)
    got = rates(settings, steps_per_epoch=2)
    assert got[0] == 0.2 and got[5] == pytest.approx(0.1)
    assert optim.learning_rate(settings, step=10, steps_per_epoch=2, watch=Watch()) == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(got, got[1:], strict=False))


def test_cosine_with_warm_up_is_that_of_keras():
    random = np.random.default_rng(0)
    for _ in range(SEQUENCES):
        steps_per_epoch, epochs = int(random.integers(1, 40)), int(random.integers(1, 8))
        rate = 10**random.uniform(-5, 0)
        warmup_epochs = float(random.choice([0.0, 0.5, 1.0, random.random()])) * (epochs - 1e-6)
        settings = config(schedule='cosine', learning_rate=rate, epochs=epochs, warmup_epochs=warmup_epochs)
        got, warmup = rates(settings, steps_per_epoch=steps_per_epoch), round(warmup_epochs * steps_per_epoch)
        falling = max(1, epochs * steps_per_epoch - warmup)
        schedule = keras.optimizers.schedules.CosineDecay(0.0, falling, warmup_target=rate, warmup_steps=warmup)
        steps = np.arange(len(got)) if len(got) < 20 else random.integers(0, len(got), 20)
        for step in {*steps.tolist(), *range(max(0, warmup - 1), min(warmup + 2, len(got)))}:
            # Keras's first step has the rate 0, which trains nothing; ours is one step on until the rate is reached.
            expected = float(schedule(step + 1 if step < warmup else step))
            assert got[step] == pytest.approx(expected, rel=1e-4, abs=rate * 1e-6)


@pytest.mark.parametrize(('schedule', 'scale'), [('constant', 1.0), ('plateau', 0.25)])
def test_warm_up_rises_in_equal_steps(schedule, scale):
    settings = config(schedule=schedule, learning_rate=0.5, epochs=4, warmup_epochs=1.5)
    got = rates(settings, steps_per_epoch=6, watch=Watch(rate_scale=scale))
    np.testing.assert_allclose(got[:9], scale * 0.5 * np.arange(1, 10) / 9, rtol=1e-12)
    assert got[9:] == [0.5 * scale] * 15


def test_the_head_takes_the_rate_as_it_is_and_the_schedule_follows():
    common = {'schedule': 'cosine', 'learning_rate': 0.5, 'warmup_epochs': 0.5}
    got = rates(config(**common, epochs=5, head_epochs=2), steps_per_epoch=4)
    assert got == [0.5] * 8 + rates(config(**common, epochs=3), steps_per_epoch=4)


@pytest.mark.parametrize('warmup_epochs', [0.0, 0.04])
def test_a_part_of_a_step_is_no_warm_up(warmup_epochs):
    got = rates(config(schedule='constant', learning_rate=0.2, warmup_epochs=warmup_epochs), steps_per_epoch=10)
    assert set(got) == {0.2}


def test_each_optimizer_takes_its_settings():
    adamw = optim.make_optimizer(config(optimizer='adamw', learning_rate=0.25, weight_decay=0.5), 'bfloat16')
    assert float(adamw.learning_rate) == 0.25 and adamw.weight_decay == 0.5
    assert optim.make_optimizer(config(optimizer='adam'), 'float32').weight_decay is None
    assert optim.make_optimizer(config(optimizer='sgd', momentum=0.75), 'float32').momentum == 0.75


def test_momentum_adds_up_the_gradients():
    weight = keras.Variable(0.0)
    optimizer = optim.make_optimizer(config(optimizer='sgd', momentum=0.5, learning_rate=1.0), 'float32')
    for expected in (-1.0, -2.5, -4.25):
        optimizer.apply([tf.constant(1.0)], [weight])
        assert float(weight) == expected


def network():
    """Layers of every kind of weight, one with a name that is a weight's."""
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.SeparableConv2D(4, 3, name='beta')(inputs)
    x = keras.layers.LayerNormalization()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(2, name='bias_gamma')(keras.layers.Flatten()(x)))


@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_only_kernels_decay(precision):
    model = network()
    optimizer = optim.make_optimizer(config(optimizer='adamw', learning_rate=0.5, weight_decay=0.5), precision)
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(tf.ones_like(variable))
    optimizer.build(variables)
    optimizer.apply([tf.zeros_like(variable) for variable in variables], variables)
    decayed = {variable.path for variable in variables if float(tf.reduce_max(variable)) == 0.75}
    kept = {variable.path for variable in variables if np.all(variable.numpy() == 1)}
    assert decayed == {'beta/depthwise_kernel', 'beta/pointwise_kernel', 'bias_gamma/kernel'}
    assert decayed | kept == {variable.path for variable in variables}


def test_only_float16_scales_its_loss():
    kinds = {precision: type(optim.make_optimizer(config(), precision)) for precision in ('float32', 'bfloat16')}
    assert set(kinds.values()) == {keras.optimizers.AdamW}
    scaled = optim.make_optimizer(config(), 'float16')
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)


def test_watch_survives_json():
    watch = optim.observe(Watch(), 0.5, epoch=1, config=config(schedule='plateau'))
    assert Watch(**json.loads(json.dumps(watch._asdict()))) == watch
    assert types.SimpleNamespace(**json.loads(json.dumps(Watch()._asdict()))).best == math.inf


def gradients(random):
    return [tf.constant(random.normal(0, 10**random.uniform(-3, 3), shape), tf.float32) for shape in ((3, 4), (5,), ())]


def test_clipping_is_that_of_tensorflow_and_leaves_the_bits_of_what_is_small():
    random, clip, clipped = np.random.default_rng(0), tf.function(optim.clip), 0
    for _ in range(SEQUENCES):
        given, norm = gradients(random), tf.constant(10**random.uniform(-3, 3), tf.float32)
        got, before = optim.clip(given, float(norm))
        expected, expected_norm = tf.clip_by_global_norm(given, norm)
        assert float(before) == pytest.approx(float(expected_norm), rel=1e-6)
        for a, b, c in zip(got, expected, given, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
            assert before > norm or np.array_equal(a, c)
        clipped += bool(before > norm)
    assert 0 < clipped < SEQUENCES
    for a, b in zip(clip(given, float(norm))[0], got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_clipping_gradients_of_a_scaled_loss_clips_those_of_the_loss():
    given = gradients(np.random.default_rng(1))
    got, before = optim.clip(given, 0.5)
    scaled, scaled_before = optim.clip([gradient * 1024 for gradient in given], 0.5, loss_scale=tf.constant(1024.0))
    assert float(scaled_before) == float(before) > 0.5
    for a, b in zip(scaled, got, strict=True):
        np.testing.assert_array_equal(a, b * 1024)


def test_norm_zero_measures_only_and_gradients_of_zero_stay():
    given = gradients(np.random.default_rng(2))
    got, before = optim.clip(given, 0.0)
    assert all(a is b for a, b in zip(got, given, strict=True)) and float(before) > 0
    zeros, before = optim.clip([tf.zeros([3])], 1.0)
    assert float(before) == 0 and zeros[0].numpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('norm', [0.0, 1.0])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad, norm):
    for clip in (optim.clip, tf.function(optim.clip)):
        _, before = clip([tf.constant([1.0, bad]), tf.constant([2.0])], norm)
        assert not math.isfinite(before)


def test_the_average_is_that_of_tensorflow():
    random, decay = np.random.default_rng(0), 0.6
    weights = [keras.Variable(random.normal(size=shape).astype(np.float32)) for shape in ((3, 2), (4,))]
    theirs = [tf.Variable(weight.numpy()) for weight in weights]
    average, reference = optim.Average(weights, decay, None), tf.train.ExponentialMovingAverage(decay, tf.Variable(0))
    reference.apply(theirs)  # makes its variables, equal to the weights
    update = tf.function(average.update)
    for number in range(30):  # the decay is reached at update 13
        for mine, other in zip(weights, theirs, strict=True):
            mine.assign(random.normal(size=mine.shape))
            other.assign(mine.value)
        reference._num_updates.assign(number)
        reference.apply(theirs)
        update()
        for mine, other in zip(average.variables, theirs, strict=False):
            np.testing.assert_allclose(mine, reference.average(other), rtol=1e-4, atol=1e-6)
    assert int(average.variables[-1]) == 30


def test_a_high_decay_loses_nothing_to_float32():
    weight = keras.Variable(0.0)
    average = optim.Average([weight], 0.99999, None)
    average.variables[-1].assign(10**9)
    weight.assign(1.0)
    average.update()
    assert float(average.variables[0]) == pytest.approx(1e-5, rel=1e-6)


def test_a_skipped_step_does_not_count():
    weight = keras.Variable(0.0)
    average = optim.Average([weight], 0.9, None)
    weight.assign(1.0)
    average.update(tf.constant(0.0))
    assert [float(variable) for variable in average.variables] == [0, 0]


def test_an_average_continues_from_its_variables():
    random = np.random.default_rng(0)
    series = random.normal(size=(8, 5)).astype(np.float32)

    def run(values, weight, average):
        for value in values:
            weight.assign(value)
            average.update()

    weight = keras.Variable(np.ones(5, np.float32))
    whole = optim.Average([weight], 0.9, None)
    run(series[:4], weight, whole)
    later = keras.Variable(weight.numpy())
    continued = optim.Average([later], 0.9, None)
    for mine, saved in zip(continued.variables, [variable.numpy() for variable in whole.variables], strict=True):
        mine.assign(saved)
    run(series[4:], weight, whole)
    run(series[4:], later, continued)
    np.testing.assert_array_equal(continued.variables[0], whole.variables[0])


def test_swapping_shows_the_average_and_swapping_again_the_weights_bit_by_bit():
    model = network()
    average = optim.Average(model.trainable_variables, 0.9, None)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape) for weight in model.get_weights()])
    average.update()
    before = [variable.numpy() for variable in [*model.variables, *average.variables]]
    swap = tf.function(average.swap)
    swap()
    for shown, shadow in zip(model.trainable_variables, before[len(model.variables):], strict=False):
        np.testing.assert_array_equal(shown, shadow)
    assert not np.array_equal(model.get_weights()[0], before[0])
    swap()
    for variable, old in zip([*model.variables, *average.variables], before, strict=True):
        np.testing.assert_array_equal(variable, old)


_ON_TWO_DEVICES = '''
from boardrec import progress
progress.import_tensorflow()
import keras
import numpy as np
import tensorflow as tf
from boardrec.config import TrainConfig
from boardrec.training import optim
cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
two = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])


def after(strategy):
    """Weights and average of each device after steps of an optimizer, before and after swaps."""
    settings = TrainConfig(records='R', run_dir='D', optimizer='adamw', learning_rate=0.1, weight_decay=0.5)
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else tf.device('CPU:0'):
        layers = [keras.layers.Dense(3, name='dense'), keras.layers.BatchNormalization(name='norm')]
        for layer in layers:
            layer.build((None, 3))
        weights = [weight for layer in layers for weight in layer.trainable_variables]
        optimizer = optim.make_optimizer(settings, 'float32')
        optimizer.build(weights)
        average = optim.Average(weights, 0.7, strategy)

    def replica_step(number):
        # Two replicas give half of the gradient each; none at all for the last, which leaves the decay.
        share = (0.5 if strategy else 1.0) * float(number)
        optimizer.apply([share * tf.ones_like(weight.value) for weight in weights], weights)

    @tf.function
    def steps(numbers):
        for number in numbers:
            strategy.run(replica_step, (number,)) if strategy else replica_step(number)
            average.update()

    def values():
        local = strategy.experimental_local_results if strategy else lambda value: [value]
        copies = [[part.numpy() for part in local(variable.value)] for variable in [*weights, *average.variables]]
        for parts in copies:
            assert len(parts) == (2 if strategy else 1)
            for part in parts:
                np.testing.assert_array_equal(part, parts[0])
        return [parts[0] for parts in copies]

    steps(tf.constant([1.0, 2.0, -4.0, 0.5]))
    before = values()
    swap = tf.function(average.swap)
    swap()
    swapped = values()
    for i in range(len(weights)):
        np.testing.assert_array_equal(swapped[i], before[len(weights) + i])
        np.testing.assert_array_equal(swapped[len(weights) + i], before[i])
        assert np.any(swapped[i] != before[i])
    swap()
    for a, b in zip(values(), before):
        np.testing.assert_array_equal(a, b)
    return before


for a, b in zip(after(two), after(None), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
print('equal')
'''


def test_two_devices_average_and_decay_as_one(tmp_path):
    script = tmp_path / 'two_devices.py'  # a file, because a loop in a tf.function needs its source
    script.write_text(_ON_TWO_DEVICES)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('equal\n'), done.stderr
