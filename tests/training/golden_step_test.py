"""One training step of each of the Keras script's backbones gives the losses and changes that it gave before.

Weights and images come from NumPy's generator, so that only the network, its normalisation, the loss and the step
decide. Where a change is meant, write the figures anew and look at the difference:

    PYTHONPATH=. python tests/training/golden_step_test.py
"""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import TrainConfig
from boardrec.data.input_pipeline import Batch
from boardrec.training import model, optim, steps
from boardrec.training.model import Classes

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'one_step.json'
CLASSES = Classes(['negative', 'positive'], 1)
RATE = 0.001
# How many layers are trained, into the midst of branches; pixels a side.
BACKBONES = {'vgg16': (4, 32), 'vgg19': (6, 32), 'resnet50': (9, 32), 'inception_v3': (20, 75), 'xception': (12, 71)}


def set_weights(classifier, images):
    """Sets every weight from its place and shape, and BatchNorm's statistics from what comes to it."""
    for place, weight in enumerate(classifier.model.weights):
        random, shape = np.random.default_rng(place), tuple(weight.shape)
        if 'kernel' in weight.name:
            bound = np.sqrt(3 / np.prod(shape[:2] if weight.name == 'depthwise_kernel' else shape[:-1]))
            weight.assign(random.uniform(-bound, bound, shape))
        elif weight.name in ('gamma', 'beta', 'bias'):
            weight.assign(random.uniform(-0.1, 0.1, shape) + (weight.name == 'gamma'))
    norms = [layer for layer in classifier.backbone_layers if isinstance(layer, keras.layers.BatchNormalization)]
    trained = [layer.trainable for layer in norms]
    for layer in norms:
        layer.momentum, layer.trainable = 0.0, True
    classifier.model(images, training=True)
    for layer, trainable in zip(norms, trained, strict=True):
        layer.trainable = trainable


def one_step(backbone):
    """What a step of SGD does: losses, and the sum of magnitudes of all, the first and the last gradient."""
    trained, size = BACKBONES[backbone]
    config = TrainConfig(records='R', run_dir='D', weights='none', backbone=backbone, trainable_layers=trained,
                         image_size=str(size), dropout=0.0, optimizer='sgd', momentum=0.9, learning_rate=RATE)
    classifier = model.build(config, CLASSES, 'float32')
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    set_weights(classifier, images)
    batch = Batch(tf.constant(images), tf.constant([0, 1, 1, 0, 1, 0, 1, 1]), tf.constant([1.0] * 7 + [0.0]),
                  tf.range(8, dtype=tf.int64))
    optimizer = optim.make_optimizer(config, 'float32')
    optimizer.build(classifier.model.trainable_variables)
    network = model.for_training(keras.Model(classifier.model.input, classifier.logits))
    step = steps.make_train_step(network, optimizer, steps.Objective(CLASSES), strategy=None)
    before = float(step(batch).loss)
    gradients = [np.abs(momentum.numpy() / -RATE) for momentum in optimizer.momentums]  # exact, unlike the changes
    after = float(step(batch).loss)
    return {'loss_before': before, 'loss_after': after, 'gradients': float(sum(map(np.sum, gradients))),
            'first_gradient': float(gradients[0].sum()), 'last_gradient': float(gradients[-1].sum())}


@pytest.mark.parametrize('backbone', [
    'vgg16', 'vgg19', 'resnet50',
    *(pytest.param(name, marks=pytest.mark.long) for name in ('inception_v3', 'xception'))])
def test_a_step_gives_what_it_gave(backbone):
    expected, got = json.loads(GOLDEN.read_bytes())[backbone], one_step(backbone)
    assert list(got) == list(expected)
    for figure, value in expected.items():
        assert got[figure] == pytest.approx(value, rel=1e-3), figure


if __name__ == '__main__':
    GOLDEN.write_text(json.dumps({name: one_step(name) for name in BACKBONES}, indent=1) + '\n')
