"""Cached features give what the whole network gives, and a stale or damaged cache is never read."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import TrainConfig
from boardrec.data import input_pipeline
from boardrec.training import features, model
from boardrec.training.model import Classes

SIZE = (32, 32)


def build(precision='float32', **settings):
    config = TrainConfig(records='R', run_dir='D', image_size='32', weights='none', **settings)
    tf.keras.utils.set_random_seed(0)
    return model.build(config, Classes(['negative', 'positive'], 1), precision)


def open_cache(folder, record_set, cut, precision='float32', calls=None):
    def run(batch):
        if calls is not None:
            calls.append(len(batch.labels))
        return cut.trunk(batch.inputs, training=False)

    key = features.cache_key(record_set, cut, precision=precision)
    return features.open_or_build(folder, record_set, cut, key=key, splits=('train', 'val'), run=run)


@pytest.mark.parametrize(('trained', 'boundary', 'shape'), [
    (4, 'block5_conv1', (2, 2, 512)), (3, 'block5_conv2', (2, 2, 512)), (2, 'global_average_pooling2d', (512,)),
    (0, 'global_average_pooling2d', (512,)), (9, 'block3_pool', (4, 4, 256)), (18, 'block1_conv1', (32, 32, 64))])
def test_the_cut_stands_before_the_first_trained_layer(trained, boundary, shape):
    cut = features.find_cut(build(trainable_layers=trained))
    assert cut.boundary == boundary and cut.trunk.output_shape[1:] == shape
    assert not cut.trunk.trainable_variables and cut.tail.trainable_variables


def test_nothing_frozen_has_no_cut():
    assert features.find_cut(build(trainable_layers=19)) is None


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
def test_batches_are_those_of_the_images(record_set, tmp_path, precision):
    classifier = build(precision)
    cut = features.find_cut(classifier)
    cache = open_cache(tmp_path, record_set, cut, precision)
    common = {'batch_size': 16, 'pad_multiple': 5}
    shuffle = {'seed': 3, 'epoch': 1, 'shuffle_records': 64}
    pairs = [(features.train_dataset(cache, record_set, 'train', **shuffle, **common),
              input_pipeline.train_dataset(record_set, 'train', image_size=SIZE, **shuffle, **common)),
             (features.eval_dataset(cache, record_set, 'val', **common),
              input_pipeline.eval_dataset(record_set, 'val', image_size=SIZE, **common))]
    for cached, images in pairs:
        cached, images = list(cached), list(images)
        assert len(cached) == len(images)
        for a, b in zip(cached, images, strict=True):
            for name in ('labels', 'weights', 'record_ids'):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            real = b.weights.numpy() > 0
            direct = cut.trunk(b.inputs, training=False)
            assert a.inputs.dtype == direct.dtype == tf.as_dtype(precision)
            np.testing.assert_allclose(tf.cast(a.inputs, tf.float32)[real], tf.cast(direct, tf.float32)[real],
                                       rtol=1e-5 if precision == 'float32' else 2e-2, atol=1e-3)


def test_a_complete_cache_is_read_and_not_computed(record_set, tmp_path):
    cut, calls = features.find_cut(build()), []
    open_cache(tmp_path, record_set, cut, calls=calls)
    assert sum(calls) == len(record_set.split_range('train')) + len(record_set.split_range('val'))
    calls.clear()
    open_cache(tmp_path, record_set, cut, calls=calls)
    assert not calls


@pytest.mark.parametrize('damage', ['cut file', 'flipped bit', 'no file', 'no manifest', 'half a manifest'])
def test_a_damaged_cache_is_computed_again(record_set, tmp_path, damage):
    cut, calls = features.find_cut(build()), []
    cache = open_cache(tmp_path, record_set, cut)
    file = cache.folder / 'train.bin'
    if damage == 'cut file':
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == 'flipped bit':
        data = bytearray(file.read_bytes())
        data[1000] ^= 1
        file.write_bytes(data)
    elif damage == 'no file':
        file.unlink()
    elif damage == 'no manifest':
        (cache.folder / 'manifest.json').unlink()
    else:
        (cache.folder / 'manifest.json').write_text('{"key": ')
    open_cache(tmp_path, record_set, cut, calls=calls)
    assert calls


def test_the_key_holds_all_that_features_depend_on(record_set):
    classifier = build()
    cut = features.find_cut(classifier)
    keys = [features.cache_key(record_set, cut, precision='float32'),
            features.cache_key(record_set, cut, precision='bfloat16'),
            features.cache_key(record_set, features.find_cut(build(trainable_layers=5)), precision='float32')]
    classifier.model.get_layer('logits').bias.assign([1.0])  # behind the cut: changes nothing
    assert features.cache_key(record_set, cut, precision='float32') == keys[0]
    classifier.model.get_layer('block1_conv1').bias.assign(np.ones(64))
    keys.append(features.cache_key(record_set, cut, precision='float32'))
    assert len({json.dumps(key) for key in keys}) == 4
    assert keys[0]['records'] == record_set.manifest.fingerprint


def test_size_and_free_space(record_set, tmp_path, monkeypatch):
    cut = features.find_cut(build())
    needed = features.bytes_needed(cut, record_set, ('train', 'val'))
    assert needed == 2 * 2 * 512 * 4 * (len(record_set.split_range('train')) + len(record_set.split_range('val')))
    cache = open_cache(tmp_path, record_set, cut)
    assert sum(path.stat().st_size for path in cache.folder.glob('*.bin')) == needed
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage._replace(free=needed - (5 << 20) + (1 << 30)))
    assert ' lacks 5 MiB of the ' in features.reason_against(tmp_path / 'not' / 'there', needed)
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage._replace(free=needed + (1 << 30)))
    assert features.reason_against(tmp_path, needed) is None
    monkeypatch.setattr('os.access', lambda *_: False)
    assert 'cannot be written' in features.reason_against(tmp_path, needed)
