"""Each stage is measured by itself: what slows one down shows in its rate and in no other's."""

import time

import pytest
import tensorflow as tf

from boardrec.data import augment, images, input_pipeline, records, stage_rates
from boardrec.data.augment import AS_IT_IS, Views

VIEWS = Views(flip_horizontal=True, brightness=0.1)


def measure(record_set_path, views=VIEWS):
    return stage_rates.measure(
        records.open_record_set(record_set_path), 'train', image_size=(24, 20), batch_size=16, seed=0, epoch=0,
        shuffle_records=50, views=views, seconds=0.05)


def test_rates_are_positive_and_without_augmentation_it_costs_nothing(record_set_path):
    assert min(measure(record_set_path)) > 0
    assert measure(record_set_path, AS_IT_IS).augment == float('inf')


def slowed(function):
    """The same, 5 ms later: at most 200 images a second and core."""
    def wait(*_):
        time.sleep(0.005)
        return True

    def slow(first, *others, **settings):
        with tf.control_dependencies([tf.numpy_function(wait, [tf.size(first)], tf.bool)]):
            return function(tf.identity(first), *others, **settings)

    return slow


@pytest.mark.parametrize(('module', 'name', 'stage'), [
    (images, 'decode', 'decode'), (augment, 'augment', 'augment')])
def test_the_slow_stage_is_the_slowest(record_set_path, monkeypatch, module, name, stage):
    monkeypatch.setattr(module, name, slowed(getattr(module, name)))
    rates = measure(record_set_path)._asdict()
    assert min(rates, key=rates.get) == stage


def test_slow_storage_is_the_slowest(record_set_path, monkeypatch):
    read_rounds = input_pipeline.read_rounds

    def slow(*args):
        late = slowed(lambda serialized, *numbers: (serialized, *numbers))
        return read_rounds(*args).map(late)

    monkeypatch.setattr(input_pipeline, 'read_rounds', slow)
    rates = measure(record_set_path)._asdict()
    assert min(rates, key=rates.get) == 'read'
