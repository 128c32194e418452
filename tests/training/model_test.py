"""The classifier's parts: what is trained, what the outputs mean, and the normalisation in the graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import TrainConfig, UserError
from boardrec.data.input_pipeline import Batch
from boardrec.training import model, steps
from boardrec.training.model import Classes

BINARY, THREE = Classes(['good', 'scratched'], 1), Classes(['a', 'b', 'c'], None)


def config(**settings):
    return TrainConfig(records='R', run_dir='D', **{'image_size': '32', 'weights': 'none', **settings})


@pytest.mark.parametrize(('names', 'given', 'positive'), [
    (['negative', 'positive'], '', 1), (['negative', 'positive'], 'negative', 0), (['positive', 'zebra'], '', 0),
    (['good', 'scratched'], '', 1), (['a', 'b', 'c'], '', None)])
def test_positive_class(names, given, positive):
    assert model.resolve_classes(names, given).positive == positive


@pytest.mark.parametrize(('names', 'given'), [(['a', 'b'], 'c'), (['a', 'b', 'c'], 'a')])
def test_a_positive_class_that_is_none_is_refused(names, given):
    with pytest.raises(UserError, match=f'--positive_class={given}: must be one of exactly two classes'):
        model.resolve_classes(names, given)


@pytest.mark.parametrize(('trained', 'expected'), [
    (0, ['logits']), (2, ['logits']), (4, ['block5_conv2', 'block5_conv3', 'logits']),
    (5, ['block5_conv1', 'block5_conv2', 'block5_conv3', 'logits'])])
def test_the_last_layers_are_trained(trained, expected):
    network = model.build(config(trainable_layers=trained), BINARY, 'float32').model
    assert [layer.name for layer in network.layers if layer.trainable_variables] == expected


def test_more_layers_than_there_are():
    with pytest.raises(UserError, match='--trainable_layers=20: vgg16 has only 19'):
        model.build(config(trainable_layers=20), BINARY, 'float32')


def test_an_image_that_is_too_small():
    with pytest.raises(UserError, match='--image_size=31x40: vgg16 needs at least 32'):
        model.build(config(image_size='31x40'), BINARY, 'float32')


def test_the_normalisation_is_vgg16s_own():
    classifier = model.build(config(image_size='32x40'), BINARY, 'float32')
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)
    first = classifier.model.get_layer('block1_conv1')
    inside = keras.Model(classifier.model.input, first.output)(images).numpy()
    outside = first(keras.applications.vgg16.preprocess_input(images.astype(np.float32))).numpy()
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-4)
    bgr = images[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    np.testing.assert_allclose(first(bgr).numpy(), inside, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('classes', [BINARY, THREE])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
def test_the_output_is_float32_in_every_precision(classes, precision):
    classifier = model.build(config(), classes, precision)
    outputs = classifier.model(np.zeros((2, 32, 32, 3), np.uint8))
    assert outputs.dtype == tf.float32 and outputs.shape == (2, classes.units)
    assert classifier.model.get_layer('block3_conv1').compute_dtype == precision
    assert classifier.model.get_layer('block3_conv1').variable_dtype == 'float32'
    assert keras.config.dtype_policy().name == 'float32'


def test_columns_of_two_classes():
    outputs = tf.constant([[0.25], [1.0]])
    np.testing.assert_array_equal(model.class_probabilities(outputs, BINARY), [[0.75, 0.25], [0.0, 1.0]])
    first = BINARY._replace(positive=0)
    np.testing.assert_array_equal(model.class_probabilities(outputs, first), [[0.25, 0.75], [1.0, 0.0]])


def test_losses_are_minus_the_log_of_the_true_class():
    random = np.random.default_rng(0)
    for classes in (BINARY, BINARY._replace(positive=0), THREE):
        logits = random.normal(0, 2, (8, classes.units)).astype(np.float32)
        labels = random.integers(0, len(classes.names), 8).astype(np.int32)
        outputs = tf.sigmoid(logits) if classes.units == 1 else tf.nn.softmax(logits)
        probabilities = model.class_probabilities(outputs, classes).numpy()
        expected = -np.log(probabilities[np.arange(8), labels])
        np.testing.assert_allclose(model.losses(tf.constant(logits), tf.constant(labels), classes), expected, rtol=1e-4)
        right = model.is_right(tf.constant(logits), tf.constant(labels), classes)
        np.testing.assert_array_equal(right, probabilities.argmax(1) == labels)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.75])
@pytest.mark.parametrize('classes', [BINARY, BINARY._replace(positive=0), THREE, Classes(['a', 'b'], None)], ids=str)
def test_smoothed_and_weighted_losses_are_those_of_keras(classes, smoothing):
    random, count = np.random.default_rng(0), len(classes.names)
    logits = random.normal(0, 4, (200, classes.units)).astype(np.float32)
    labels, weights = random.integers(0, count, 200).astype(np.int32), random.uniform(0, 3, count).astype(np.float32)
    common = {'from_logits': True, 'label_smoothing': smoothing, 'reduction': None}
    if classes.positive is None:
        loss, targets = keras.losses.CategoricalCrossentropy(**common), keras.utils.to_categorical(labels, count)
    else:
        loss, targets = keras.losses.BinaryCrossentropy(**common), (labels == classes.positive)[:, None]
    for given, sample_weight in ((None, None), (weights, weights[labels])):
        expected = loss(targets, logits, sample_weight=sample_weight)
        for function in (model.losses, tf.function(model.losses)):
            got = function(tf.constant(logits), tf.constant(labels), classes, label_smoothing=smoothing,
                           class_weights=given)
            assert got.dtype == tf.float32
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_at_one_half_the_positive_class_wins():
    for positive in (0, 1):
        classes = BINARY._replace(positive=positive)
        right = model.is_right(tf.zeros([2, 1]), tf.constant([positive, 1 - positive]), classes)
        assert right.numpy().tolist() == [True, False]


def test_changing_and_frozen_variables_are_all_of_them():
    classifier = model.build(config(), BINARY, 'float32')
    changing = model.changing_variables(classifier)
    names = {variable.path for variable in changing}
    assert any('seed_generator' in name for name in names)  # dropout's state: an exact resume needs it
    assert {name for name in names if 'kernel' in name} == {
        'block5_conv2/kernel', 'block5_conv3/kernel', 'logits/kernel'}
    trained, frozen = model.parameter_counts(classifier.model)
    assert (trained, frozen) == (2 * (9 * 512 * 512 + 512) + 513, 14_714_688 - 2 * (9 * 512 * 512 + 512))
    assert len(changing) == 7 and len(classifier.model.variables) == 7 + 2 * 11


def test_frozen_sum_sees_frozen_weights_only():
    keras.utils.set_random_seed(0)
    classifier = model.build(config(), BINARY, 'float32')
    before = model.frozen_sha256(classifier)
    classifier.model.get_layer('block5_conv3').bias.assign(np.ones(512))
    assert model.frozen_sha256(classifier) == before
    classifier.model.get_layer('block1_conv1').bias.assign(np.ones(64))
    assert model.frozen_sha256(classifier) != before


def normalised(dropout=0.5):
    """A network of two BatchNorms, the first frozen, whose statistics are no identity."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(6)(inputs)
    for name, can_train in (('frozen', False), ('norm', True)):
        layer = keras.layers.BatchNormalization(name=name, trainable=can_train)
        x = keras.layers.Add()([layer(x), x])
        layer.moving_mean.assign(np.linspace(-1, 1, 6))
        layer.moving_variance.assign(np.linspace(0.5, 3, 6))
    x = keras.layers.Dropout(dropout, seed=1)(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def test_in_training_batch_normalisation_takes_its_moving_statistics():
    network, inputs = normalised(dropout=0), np.random.default_rng(0).normal(3, 2, (8, 6)).astype(np.float32)
    expected = network(inputs, training=False)
    for training in (True, False, None):
        got = model.for_training(network)(inputs, training=training)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(model.for_training(network)(inputs[:3], training=True), expected[:3], rtol=1e-5)
    random = model.for_training(normalised())
    assert not np.array_equal(*(random(inputs, training=True) for _ in range(2))), 'dropout is still random'


def test_a_step_trains_scale_and_offset_and_no_statistics():
    network = normalised()
    for_training = model.for_training(network)
    assert {id(variable) for variable in for_training.variables} == {id(variable) for variable in network.variables}
    assert {id(variable) for variable in for_training.trainable_variables} == {
        id(variable) for variable in network.trainable_variables}
    before = {variable.path: variable.numpy() for variable in network.variables}
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(network.trainable_variables)
    step = steps.make_train_step(for_training, optimizer, steps.Objective(BINARY), strategy=None)
    inputs = np.random.default_rng(0).normal(3, 2, (8, 6)).astype(np.float32)
    step(Batch(tf.constant(inputs), tf.constant([0, 1] * 4), tf.ones([8]), tf.range(8, dtype=tf.int64)))
    changed = {variable.path for variable in network.variables
               if not np.array_equal(before[variable.path], variable.numpy())}
    assert {path for path in changed if 'norm' in path or 'frozen' in path} == {'norm/gamma', 'norm/beta'}


def test_a_network_without_batch_normalisation_is_left_as_it_is():
    network = model.build(config(), BINARY, 'float32').model
    assert model.for_training(network) is network


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_backbone_of_branches_trains_in_inference_mode(small_backbone, precision):
    classifier = model.build(config(backbone=small_backbone, trainable_layers=22, dropout=0.0), BINARY, precision)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    network = model.for_training(classifier.model)
    np.testing.assert_allclose(network(images, training=True), classifier.model(images, training=False), rtol=1e-6)
    assert np.abs(classifier.model(images, training=True) - network(images, training=True)).max() > 1e-4
