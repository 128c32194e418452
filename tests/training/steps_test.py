"""A step's loss and gradients are means over the real records, however the batch is padded or cut into parts."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.data import input_pipeline
from boardrec.data.input_pipeline import Batch
from boardrec.training import steps
from boardrec.training.model import Classes

CLASSES = Classes(['a', 'b', 'c'], None)


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.layers.Dense(3, kernel_initializer='glorot_uniform')(inputs))


def batch(count):
    random = np.random.default_rng(count)
    inputs, labels = random.normal(size=(count, 5)), random.integers(0, 3, count)
    return Batch(tf.constant(inputs, tf.float32), tf.constant(labels, tf.int32), tf.ones([count]),
                 tf.range(count, dtype=tf.int64))


def after_a_step(data, accumulate_steps=1, make=network, **objective):
    model = make()
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(model.trainable_variables)
    step = steps.make_train_step(model, optimizer, steps.Objective(CLASSES, **objective), strategy=None,
                                 accumulate_steps=accumulate_steps)
    sums = step(data)
    return model.get_weights(), [float(value) for value in sums]


def test_the_step_is_gradient_descent_on_the_mean_loss():
    data, model = batch(6), network()
    kernel, bias = model.get_weights()
    x, y = data.inputs.numpy(), np.eye(3)[data.labels.numpy()]
    scores = np.exp(x @ kernel + bias)
    error = scores / scores.sum(1, keepdims=True) - y
    (new_kernel, new_bias), (loss, right, records, bad) = after_a_step(data)
    np.testing.assert_allclose(new_kernel, kernel - 0.5 * x.T @ error / 6, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias - 0.5 * error.mean(0), rtol=1e-5, atol=1e-6)
    assert loss == pytest.approx(-np.log((scores / scores.sum(1, keepdims=True))[y > 0]).sum(), rel=1e-5)
    assert (right, records) == ((scores.argmax(1) == data.labels.numpy()).sum(), 6)


def test_padding_changes_nothing():
    plain, sums = after_a_step(batch(5))
    padded, padded_sums = after_a_step(input_pipeline.pad(batch(5), 8))
    for a, b in zip(plain, padded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert padded_sums == pytest.approx(sums)


@pytest.mark.parametrize('parts', [2, 3, 6])
def test_parts_change_nothing(parts):
    whole, sums = after_a_step(batch(12))
    in_parts, part_sums = after_a_step(batch(12), accumulate_steps=parts)
    for a, b in zip(whole, in_parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert part_sums == pytest.approx(sums)


def test_a_part_of_padding_alone_is_no_nan():
    weights, sums = after_a_step(input_pipeline.pad(batch(2), 8), accumulate_steps=4)
    expected, _ = after_a_step(batch(2))
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert np.isfinite(sums).all()


@pytest.mark.parametrize(('padded', 'parts'), [(6, 1), (8, 1), (8, 4)])
def test_record_weights_are_the_sample_weights_of_keras(padded, parts):
    table = np.array([9, 9, 0, 0.25, 3, 1, 1 / 3, 2], np.float32)  # of the records 2 to 7, and two others
    data = batch(6)._replace(record_ids=tf.range(2, 8, dtype=tf.int64))
    expected = network()
    expected.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loss = expected.train_on_batch(data.inputs, data.labels, sample_weight=table[2:])
    weights, sums = after_a_step(input_pipeline.pad(data, padded), parts, record_weights=table)
    assert sums[0] / 6 == pytest.approx(loss, rel=1e-5) and sums[2] == 6
    for a, b in zip(weights, expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_evaluation_measures_and_changes_nothing():
    model = network()
    before = model.get_weights()
    sums, rows = steps.make_eval_step(model, CLASSES, strategy=None)(input_pipeline.pad(batch(5), 4))
    _, expected = after_a_step(batch(5))
    assert [float(value) for value in sums] == pytest.approx(expected)
    assert rows.record_ids.numpy().tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert float(tf.reduce_sum(rows.losses[:5])) == pytest.approx(expected[0])
    assert float(tf.reduce_sum(tf.cast(rows.decisions[:5] == batch(5).labels, tf.int32))) == expected[1]
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float16_scales_and_unscales():
    model = network()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5))
    optimizer.build(model.trainable_variables)
    steps.make_train_step(model, optimizer, steps.Objective(CLASSES), strategy=None, accumulate_steps=1)(batch(6))
    for a, b in zip(model.get_weights(), after_a_step(batch(6))[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def network_of_two():
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((5,)), keras.Input((2, 3))]
    joined = keras.layers.Concatenate()([inputs[0], keras.layers.Flatten()(inputs[1])])
    return keras.Model(inputs, keras.layers.Dense(3)(joined))


def batch_of_two(count):
    """The inputs of `batch` with a second tensor, as features of a cut through branches."""
    data = batch(count)
    other = np.random.default_rng(count + 1).normal(size=(count, 2, 3))
    return data._replace(inputs=(data.inputs, tf.constant(other, tf.float32)))


@pytest.mark.parametrize(('padded', 'parts'), [(12, 3), (16, 4), (16, 1)])
def test_several_inputs_are_padded_and_cut_into_parts_together(padded, parts):
    whole, sums = after_a_step(batch_of_two(12), make=network_of_two)
    in_parts, part_sums = after_a_step(
        input_pipeline.pad(batch_of_two(12), padded), accumulate_steps=parts, make=network_of_two)
    for a, b in zip(whole, in_parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert part_sums == pytest.approx(sums)
