"""A run's probabilities are the mean over the views that its settings ask for."""

import dataclasses

import keras
import numpy as np
import pytest

from boardrec.training import inference

BOTH, VERTICAL = {}, {'flip_horizontal': False}
MIRRORS = {'image': lambda x: x, 'left-right': lambda x: x[:, :, ::-1], 'top-bottom': lambda x: x[:, ::-1],
           'both': lambda x: x[:, ::-1, ::-1]}


@pytest.fixture(scope='module')
def predictor(finished_run):
    """The finished run, loaded."""
    return inference.load(finished_run)


@pytest.fixture(scope='module')
def pixels():
    """Three noisy images that are darker to one corner, uint8 [3, 32, 32, 3]."""
    slope = np.linspace(0, 90, 32)
    noise = np.random.default_rng(0).integers(0, 60, (3, 32, 32, 3))
    return (noise + slope[:, None, None] + slope[None, :, None]).astype(np.uint8)


def with_views(predictor, views, **settings):
    config = dataclasses.replace(predictor.config, inference_views=views, **settings)
    return inference.probabilities(predictor._replace(config=config))


@pytest.mark.parametrize(('views', 'settings', 'mirrors'), [
    (1, BOTH, ['image']), (2, BOTH, ['image', 'left-right']), (2, VERTICAL, ['image', 'top-bottom']),
    (2, {'flip_vertical': False}, ['image', 'left-right']), (4, BOTH, list(MIRRORS))])
def test_it_is_the_mean_of_the_plain_run_over_mirrored_images(predictor, pixels, views, settings, mirrors):
    plain = inference.probabilities(predictor)
    each = np.stack([plain(MIRRORS[name](pixels)).numpy() for name in mirrors])
    got = with_views(predictor, views, **settings)(pixels).numpy()
    np.testing.assert_allclose(got, each.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)
    assert views == 1 or np.abs(got - each[0]).max() > 1e-4


def test_the_mean_is_calibrated_and_not_its_parts(predictor, pixels):
    mean = with_views(predictor, 4)(pixels)
    warm = with_views(predictor._replace(temperature=2.5), 4)(pixels)
    np.testing.assert_allclose(warm, inference.calibrate(mean, 2.5), rtol=1e-5)


def test_a_network_that_mirroring_does_not_change_gives_the_same(predictor, pixels):
    images = keras.Input((32, 32, 3), dtype='uint8')
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    symmetric = predictor._replace(model=keras.Model(images, keras.layers.Dense(1, 'sigmoid')(mean)))
    expected = with_views(symmetric, 1)(pixels)
    for views in (2, 4):
        np.testing.assert_allclose(with_views(symmetric, views)(pixels), expected, rtol=1e-5)
