"""Names and sizes of networks are what Keras's own constructors say, which are never called to learn them."""

import inspect

import keras
import pytest

from boardrec import architectures

CONSTRUCTORS = {name: value for name, value in vars(keras.applications).items() if inspect.isfunction(value)}


def test_all_networks_of_keras_are_known_and_no_others():
    assert sorted(architectures.constructors().values()) == sorted(CONSTRUCTORS)
    assert len(architectures.constructors()) == len(CONSTRUCTORS) >= 40


@pytest.mark.parametrize(('constructor', 'name'), [
    ('VGG16', 'vgg16'), ('ResNet50', 'resnet50'), ('ResNet50V2', 'resnet50_v2'), ('Xception', 'xception'),
    ('InceptionResNetV2', 'inception_resnet_v2'), ('EfficientNetB4', 'efficientnet_b4'),
    ('EfficientNetV2S', 'efficientnet_v2_s'), ('MobileNetV3Small', 'mobilenet_v3_small'), ('MobileNet', 'mobilenet'),
    ('ConvNeXtXLarge', 'convnext_xlarge'), ('NASNetMobile', 'nasnet_mobile'), ('DenseNet121', 'densenet121')])
def test_a_name_is_the_constructors_in_lower_case_and_underscores(constructor, name):
    assert architectures.constructors()[name] == constructor
    for text in (name, constructor, name.replace('_', '-'), name.replace('_', '').upper()):
        assert architectures.find(text) == name


@pytest.mark.parametrize(('text', 'like'), [
    ('vgg61', 'vgg16'), ('efficentnet_b3', 'efficientnet_b3'), ('inceptionv4', 'inception_v3'),
    ('ResNet-51', 'resnet50')])
def test_an_unknown_name_has_names_like_it(text, like):
    assert architectures.find(text) is None
    assert like in architectures.like(text)


def test_sizes_are_those_that_keras_takes(monkeypatch):
    asked = {}

    class Asked(Exception):
        pass

    def obtain_input_shape(input_shape, default_size, min_size, **_):
        asked[name] = default_size, min_size
        raise Asked

    for name, constructor in architectures.constructors().items():
        build = CONSTRUCTORS[constructor]
        if hasattr(inspect.getmodule(build), 'imagenet_utils'):
            monkeypatch.setattr(inspect.getmodule(build).imagenet_utils, 'obtain_input_shape', obtain_input_shape)
        if not name.startswith('mobilenet_v3'):  # the one family that does not ask: its text says 224
            with pytest.raises(Asked):
                build(weights=None)
    assert len(asked) == len(CONSTRUCTORS) - 2
    assert asked == {name: (architectures.default_size(name), architectures.minimum_size(name)) for name in asked}
