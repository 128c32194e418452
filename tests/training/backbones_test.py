"""Where weights come from: the cache, a file, nothing; and what is said of a file that does not fit."""

import keras
import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.training import backbones


def layers():
    return backbones.connect('vgg16', keras.Input((32, 32, 3), dtype='uint8'))[1]


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
    """Weights of VGG16 in Keras's format; the value of the first kernel."""
    keras.utils.set_random_seed(5)
    network = keras.applications.VGG16(include_top=False, weights=None)
    path = tmp_path_factory.mktemp('weights') / 'vgg16_notop.weights.h5'
    network.save_weights(path)
    return path, network.layers[1].get_weights()[0]


def test_a_file_is_loaded_into_each_layer(weights_file):
    path, kernel = weights_file
    network = layers()
    backbones.load_weights('vgg16', str(path), network)
    np.testing.assert_array_equal(network[0].get_weights()[0], kernel)
    assert [layer.name for layer in network[-4:]] == [
        'block5_conv2', 'block5_conv3', 'block5_pool', 'global_average_pooling2d']


def test_imagenet_comes_from_the_projects_cache(weights_file, monkeypatch):
    path, kernel = weights_file
    monkeypatch.setenv('BOARDREC_CACHE', str(path.parent))
    network = layers()
    backbones.load_weights('vgg16', 'imagenet', network)
    np.testing.assert_array_equal(network[0].get_weights()[0], kernel)


def test_imagenet_from_nowhere_names_the_tool(tmp_path, monkeypatch):
    monkeypatch.setenv('BOARDREC_CACHE', str(tmp_path))
    seen = []

    def no_network(include_top, weights, **_):
        seen.append((include_top, weights))
        raise Exception('URL fetch failure: unreachable')  # what get_file raises

    monkeypatch.setitem(backbones.BACKBONES, 'vgg16', backbones.BACKBONES['vgg16']._replace(build=no_network))
    with pytest.raises(UserError, match='--weights=imagenet: .*tools/fetch_weights.py'):
        backbones.load_weights('vgg16', 'imagenet', [])
    assert seen == [(False, 'imagenet')]


def test_none_leaves_the_weights():
    network = layers()
    before = network[0].get_weights()[0]
    backbones.load_weights('vgg16', 'none', network)
    np.testing.assert_array_equal(network[0].get_weights()[0], before)


def test_a_missing_file():
    with pytest.raises(UserError, match=r'--weights=nowhere\.h5: there is no such file'):
        backbones.load_weights('vgg16', 'nowhere.h5', layers())


@pytest.mark.parametrize('content', [b'', b'not an HDF5 file' * 100])
def test_a_file_that_is_no_weights(tmp_path, content):
    path = tmp_path / 'bad.weights.h5'
    path.write_bytes(content)
    with pytest.raises(UserError, match='not weights of vgg16'):
        backbones.load_weights('vgg16', str(path), layers())


def test_weights_of_another_network(tmp_path):
    other = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / 'other.weights.h5')
    with pytest.raises(UserError, match='not weights of vgg16'):
        backbones.load_weights('vgg16', str(tmp_path / 'other.weights.h5'), layers())


def test_each_layer_of_a_network_with_automatic_names_gets_its_weights(tmp_path, small_backbone):
    build = backbones.BACKBONES[small_backbone].build
    first = build(False, None)
    path = tmp_path / 'small.weights.h5'
    first.save_weights(path)
    network = backbones.connect(small_backbone, keras.Input((32, 32, 3), dtype='uint8'))[1]
    backbones.load_weights(small_backbone, str(path), network)
    expected, got = ([values for layer in layers for values in layer.get_weights()]
                     for layers in (first.layers, network))
    assert len(got) == len(expected) > 20
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [layer.name for layer in network] != [layer.name for layer in first.layers[1:]]
