"""Grad-CAM against answers that are known: networks of which it is plain where their logit comes from."""

import types

import keras
import numpy as np
import pytest

from boardrec.training import grad_cam, model
from boardrec.training.model import Classes


def network(channels, kernel, units=1):
    """Channel means of blocks of 4x4 pixels, `channels` [3, F] of them, ReLU, mean of all, `kernel` [F, units]."""
    layers = keras.layers
    images = keras.Input((16, 16, 3), dtype='uint8')
    x = layers.AveragePooling2D(4)(keras.ops.cast(images, 'float32') / 255)
    convolution = layers.Conv2D(len(channels[0]), 1, use_bias=False, activation='relu')
    x = layers.GlobalAveragePooling2D(name='global_average_pooling2d')(convolution(x))
    logits = layers.Dense(units, name='logits')
    built = keras.Model(images, layers.Activation('sigmoid' if units == 1 else 'softmax')(logits(x)))
    convolution.set_weights([np.array(channels, np.float32)[None, None]])
    logits.set_weights([np.array(kernel, np.float32).reshape(-1, units), np.zeros(units, np.float32)])
    return built


def predictor(built, classes):
    return types.SimpleNamespace(model=built, classes=classes)


RED_GREEN = [[1, 0], [0, 1], [0, 0]]


@pytest.fixture
def image():
    """Red at the top left, green at the bottom right."""
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    pixels[0, :8, :8, 0] = pixels[0, 8:, 8:, 1] = 255
    return pixels


def test_a_logit_of_one_quadrant(image):
    """The mean gradient of the logit by the red feature is w / 16 a position, and the map w / 16 where it is red."""
    two = predictor(network(RED_GREEN, [[32], [-16]]), Classes(['no', 'yes'], 1))
    yes, no = grad_cam.heat_maps(two, np.repeat(image, 2, axis=0), np.array([1, 0]))
    assert yes.shape == (4, 4) and yes.dtype == np.float32
    red, green = np.zeros((4, 4)), np.zeros((4, 4))
    red[:2, :2], green[2:, 2:] = 32 / 16, 16 / 16
    np.testing.assert_allclose(yes, red, atol=1e-6)
    np.testing.assert_allclose(no, green, atol=1e-6)


def test_which_of_two_classes_is_positive(image):
    first = predictor(network(RED_GREEN, [[32], [-16]]), Classes(['yes', 'no'], 0))
    assert grad_cam.heat_maps(first, image, np.array([0]))[0, 0, 0] == pytest.approx(2)


def test_more_classes_and_more_images_than_a_batch(image):
    three = predictor(network(RED_GREEN, [[16, 0, -16], [0, 32, -16]], 3), Classes(list('abc'), None))
    classes = np.arange(19) % 3
    maps = grad_cam.heat_maps(three, np.repeat(image, 19, axis=0), classes)
    for found, number in zip(maps, classes, strict=True):
        assert [found[0, 0], found[3, 3]] == pytest.approx([[1, 0], [0, 2], [0, 0]][number])
    assert grad_cam.heat_maps(three, image[:0], classes[:0]).shape[0] == 0


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_maps_of_our_classifier(train_config, small_backbone, precision):
    """Of linear pooling and one layer, the maps' mean is that of the logit where nothing is cut off by the ReLU."""
    config = train_config(backbone=small_backbone, dropout=0.0)
    classes = Classes(list('abc'), None)
    built = model.build(config, classes, precision)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features, head = grad_cam._parts(built.model)
    found = keras.ops.convert_to_numpy(features(images)).astype(np.float32)
    assert found.ndim == 4
    kernel = built.model.get_layer('logits').get_weights()[0]
    maps = grad_cam.heat_maps(predictor(built.model, classes), images, np.array([0, 1, 2]))
    positions = found.shape[1] * found.shape[2]
    expected = np.maximum(np.einsum('bhwf,fb->bhw', found, kernel) / positions, 0)
    np.testing.assert_allclose(maps, expected, rtol=0.02 if precision == 'bfloat16' else 1e-4,
                               atol=0.01 * expected.max() if precision == 'bfloat16' else 1e-6)
