"""The trunk is all that stays the same, the tail the rest, and what crosses between them is the least that can."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import TrainConfig
from boardrec.training import cut, model
from boardrec.training.model import Classes, Classifier

TWO = Classes(['negative', 'positive'], 1)
SIZES = {'vgg16': 32, 'vgg19': 32, 'resnet50': 32, 'inception_v3': 75, 'xception': 71}


def build(backbone='vgg16', precision='float32', **settings):
    return model.build(TrainConfig(records='R', run_dir='D', backbone=backbone, **{
        'image_size': str(SIZES[backbone]), 'weights': 'none', **settings}), TWO, precision)


def train_last(classifier, count):
    """Makes the last `count` layers of the backbone those that are trained, as model.build does."""
    layers = classifier.backbone_layers
    for i, layer in enumerate(layers):
        layer.trainable = i >= len(layers) - count


def images_in(size=4):
    images = keras.Input((size, size, 3), dtype='uint8')
    return images, keras.ops.cast(images, 'float32')


def conv(name, filters=16, *, trainable=False):
    return keras.layers.Conv2D(filters, 1, name=name, trainable=trainable, bias_initializer='ones')


def classifier_of(images, tensors):
    pooled = [keras.layers.GlobalAveragePooling2D()(tensor) for tensor in tensors]
    joined = keras.layers.Concatenate()(pooled) if len(pooled) > 1 else pooled[0]
    logits = keras.layers.Dense(1, name='logits')(joined)
    return Classifier(keras.Model(images, logits), logits, [])


def operations_of(classifier):
    """The operations of its graph, each with the numbers of those whose outputs it takes."""
    network = keras.Model(classifier.model.input, classifier.logits)
    operations = network.operations
    number = {id(operation.output): i for i, operation in enumerate(operations)}
    return [(operation, set() if isinstance(operation, keras.layers.InputLayer) else {
        number[id(tensor)] for tensor in keras.tree.flatten(operation.input)}) for operation in operations]


def constant_ones(operations):
    """Numbers of those that no trained weight and nothing random lies before or in."""
    found = set()
    for i, (operation, sources) in enumerate(operations):
        random = isinstance(operation, keras.layers.Dropout | keras.layers.GaussianNoise) and any(
            getattr(operation, name, 0) for name in ('rate', 'stddev'))
        if sources <= found and not random and not getattr(operation, 'trainable_variables', []):
            found.add(i)
    return found


def cheapest_bytes(operations):
    """What one record takes at the best of all cuts, tried one by one."""
    constant = constant_ones(operations)
    fixed = {i for i in constant if getattr(operations[i][0], 'weights', [])}
    free = sorted(constant - fixed)
    sizes = [math.prod(operation.output.shape[1:]) * tf.as_dtype(operation.output.dtype).size
             for operation, _ in operations]
    best = math.inf
    for chosen in itertools.product([False, True], repeat=len(free)):
        trunk = fixed | {i for i, is_in in zip(free, chosen, strict=True) if is_in}
        if all(operations[i][1] <= trunk for i in trunk):
            crossing = {source for i, (_, sources) in enumerate(operations) if i not in trunk
                        for source in sources & trunk}
            best = min(best, sum(sizes[i] for i in crossing))
    return best


def assert_sound(classifier, found):
    """All weights that are constant are in the trunk, all others in the tail, none is lost."""
    operations = operations_of(classifier)
    fixed = {id(weight) for i in constant_ones(operations) for weight in getattr(operations[i][0], 'weights', [])}
    trunk, tail = ({id(weight) for weight in part.weights} for part in (found.trunk, found.tail))
    assert trunk == fixed and not found.trunk.trainable_variables
    assert not trunk & tail and trunk | tail == {id(weight) for weight in classifier.model.weights}
    assert ([id(variable) for variable in found.tail.trainable_variables]
            == [id(variable) for variable in classifier.model.trainable_variables])
    names = [operation.name for operation, _ in operations]
    assert [names[place] for place in found.places] == list(found.boundary) and sorted(found.places) == [*found.places]
    assert [spec.shape for spec in found.features] == [tensor.shape[1:] for tensor in found.trunk.outputs]


def assert_whole(classifier, found, rtol=1e-5):
    """Trunk and tail give what the network gives."""
    images = np.random.default_rng(0).integers(0, 256, (3, *classifier.model.input.shape[1:]), np.uint8)
    expected = keras.Model(classifier.model.input, classifier.logits)(images, training=False)
    np.testing.assert_allclose(found.tail(found.trunk(images), training=False), expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(('trained', 'boundary', 'shape'), [
    (4, 'block5_conv1', (2, 2, 512)), (3, 'block5_conv2', (2, 2, 512)), (2, 'global_average_pooling2d', (512,)),
    (0, 'global_average_pooling2d', (512,)), (9, 'block3_pool', (4, 4, 256)), (18, 'block1_conv1', (32, 32, 64))])
def test_a_chain_is_cut_before_the_first_trained_layer(trained, boundary, shape):
    classifier = build(trainable_layers=trained)
    found = cut.find(classifier)
    assert found.boundary == (boundary,) and [spec.shape for spec in found.features] == [shape]
    assert found.row_bytes == 4 * math.prod(shape)
    assert_sound(classifier, found)
    assert_whole(classifier, found)


@pytest.mark.parametrize(('trained', 'none'), [(19, True), (18, False)])
def test_nothing_frozen_has_no_cut(trained, none):
    assert (cut.find(build(trainable_layers=trained)) is None) == none


def test_layers_without_weights_alone_are_nothing_to_save():
    images, x = images_in()
    x = conv('trained', trainable=True)(keras.layers.MaxPooling2D()(x))
    assert cut.find(classifier_of(images, [x])) is None


# How many are trained: none, some in the midst of branches, all but the stem.
@pytest.mark.parametrize(('backbone', 'counts', 'pooled'), [
    ('resnet50', (0, 9, 100, 170), 2048), ('inception_v3', (0, 20, 150, 305), 2048),
    ('xception', (0, 12, 60, 128), 2048), ('vgg19', (0, 6, 21), 512)])
def test_each_backbone_is_cut_wherever_training_begins(backbone, counts, pooled):
    classifier = build(backbone)
    for count in counts:
        train_last(classifier, count)
        found = cut.find(classifier)
        assert_sound(classifier, found)
        if count == 0:
            assert found.row_bytes == 4 * pooled and found.tail.count_params() == pooled + 1
    train_last(classifier, len(classifier.backbone_layers))
    assert cut.find(classifier) is None


@pytest.mark.long
@pytest.mark.parametrize('backbone', SIZES)
def test_any_number_of_trained_layers(backbone):
    classifier = build(backbone)
    for count in range(len(classifier.backbone_layers) + 1):
        train_last(classifier, count)
        found = cut.find(classifier)
        operations = operations_of(classifier)
        fixed = [i for i in constant_ones(operations) if getattr(operations[i][0], 'weights', [])]
        assert (found is None) == (not fixed), count
        if found:
            assert_sound(classifier, found)
            if count % 40 == 9:
                assert_whole(classifier, found, rtol=1e-4)


def random_network(random):
    """Convolutions, a half of them trained, among sums, joins, activations, poolings and dropout."""
    images, x = images_in()
    tensors = [conv(None)(x)]
    for _ in range(random.integers(3, 9)):
        x, other = (tensors[-random.integers(1, min(len(tensors), 4) + 1)] for _ in range(2))
        kind = random.choice(['conv', 'relu', 'pool', 'two', 'dropout'], p=[0.3, 0.25, 0.15, 0.25, 0.05])
        if kind == 'conv':
            x = conv(None, int(random.choice([16, 32])), trainable=bool(random.random() < 0.5))(x)
        elif kind == 'relu':
            x = keras.layers.Activation('relu')(x)
        elif kind == 'pool':
            x = keras.layers.MaxPooling2D(2, padding='same')(x)
        elif kind == 'dropout':
            x = keras.layers.Dropout(0.5)(x)
        elif x.shape == other.shape:
            x = keras.layers.Add()([x, other])
        elif x.shape[:-1] == other.shape[:-1]:
            x = keras.layers.Concatenate()([x, other])
        tensors.append(x)
    used = {id(source) for tensor in tensors for source in keras.tree.flatten(tensor._keras_history.operation.input)}
    return classifier_of(images, [*{id(tensor): tensor for tensor in tensors if id(tensor) not in used}.values()])


def test_no_cut_is_cheaper_than_the_one_that_is_found():
    random, several = np.random.default_rng(0), 0
    for _ in range(40):
        classifier = random_network(random)
        found, best = cut.find(classifier), cheapest_bytes(operations_of(classifier))
        assert found.row_bytes == best, found.boundary
        assert_sound(classifier, found)
        assert_whole(classifier, found)
        several += len(found.boundary) > 1
    assert 8 < several < 35


def test_a_tensor_and_its_activation_cross_as_one():
    images, x = images_in()
    x = conv('x')(x)
    y = keras.layers.Activation('relu', name='y')(x)
    found = cut.find(classifier_of(images, [conv('a', trainable=True)(x), conv('b', trainable=True)(y)]))
    assert found.boundary == ('x',)


@pytest.mark.parametrize(('layer', 'boundary'), [
    (keras.layers.MaxPooling2D, 'between'), (keras.layers.UpSampling2D, 'x'),
    (lambda **named: keras.layers.Activation('relu', **named), 'between')])  # equal: the later
def test_the_smaller_of_two_equal_amounts_of_work_is_kept(layer, boundary):
    images, x = images_in()
    x = layer(name='between')(conv('x')(x))
    assert cut.find(classifier_of(images, [conv('trained', trainable=True)(x)])).boundary == (boundary,)


def test_a_joint_is_kept_whole_or_in_its_parts_whichever_is_less():
    images, x = images_in()
    a, b = conv('a')(x), conv('b')(x)
    summed = keras.layers.Add(name='sum')([a, b])
    assert cut.find(classifier_of(images, [conv('c', trainable=True)(summed)])).boundary == ('sum',)
    joined = keras.layers.Concatenate(name='joint')([a, b])
    twice = [conv('d', trainable=True)(joined), conv('e', trainable=True)(a)]
    assert cut.find(classifier_of(images, twice)).boundary == ('a', 'b')


def test_what_follows_something_random_is_not_constant():
    images, x = images_in()
    x = keras.layers.GaussianNoise(0.1, name='noise')(conv('first')(x))
    classifier = classifier_of(images, [conv('second')(x)])
    found = cut.find(classifier)
    assert found.boundary == ('first',)
    assert {layer.name for layer in found.tail.layers} >= {'noise', 'second', 'logits'}


@pytest.mark.parametrize(('trainable', 'boundary'), [(False, 'after'), (True, 'first')])
def test_batch_normalisation_is_constant_unless_its_scale_is_trained(trainable, boundary):
    images, x = images_in()
    x = keras.layers.BatchNormalization(name='norm', trainable=trainable)(conv('first')(x))
    x = conv('after')(x)
    classifier = classifier_of(images, [conv('trained', trainable=True)(x)])
    assert cut.find(classifier).boundary == (boundary,)


def test_a_frozen_branch_behind_a_trained_one_stays_in_the_tail():
    images, x = images_in()
    stem = conv('stem')(x)
    late = conv('late')(conv('trained', trainable=True)(stem))
    classifier = classifier_of(images, [keras.layers.Add()([conv('early')(stem), late])])
    found = cut.find(classifier)
    assert found.boundary == ('stem', 'early')
    assert_sound(classifier, found)


def test_an_image_that_crosses_is_kept_too():
    images, x = images_in()
    other = keras.ops.cast(images, 'float32')  # a way of its own from the image to what is trained
    classifier = classifier_of(images, [conv('frozen')(x), conv('trained', trainable=True)(other)])
    found = cut.find(classifier)
    assert_sound(classifier, found)
    assert_whole(classifier, found)


def test_half_precision_costs_half():
    classifier = build(precision='bfloat16', trainable_layers=0)
    found = cut.find(classifier)
    assert found.features == (tf.TensorSpec((512,), tf.bfloat16),) and found.row_bytes == 1024


def test_what_is_kept_is_counted_in_bytes():
    images, x = images_in()
    x = keras.layers.Conv2D(16, 1, name='half', trainable=False, dtype='mixed_bfloat16')(x)
    x = keras.ops.cast(x, 'float32')
    assert cut.find(classifier_of(images, [conv('trained', trainable=True)(x)])).boundary == ('half',)


def test_places_are_the_same_for_a_processs_second_network():
    found = []
    for _ in range(2):
        images, x = images_in()
        x = keras.layers.Conv2D(16, 1, trainable=False)(x)
        found.append(cut.find(classifier_of(images, [keras.layers.Conv2D(16, 1)(x)])))
    assert found[0].places == found[1].places and found[0].boundary != found[1].boundary


def test_the_parts_share_their_weights_with_the_network():
    images, x = images_in()
    classifier = classifier_of(images, [conv('trained', trainable=True)(conv('frozen')(x))])
    found = cut.find(classifier)
    found.tail.get_layer('trained').bias.assign(np.full(16, 7.0))
    found.trunk.get_layer('frozen').bias.assign(np.full(16, 5.0))
    assert_whole(classifier, found)
