"""The line names what was slowest and a flag that exists."""

import dataclasses
import re

import pytest

from boardrec.config import ConvertConfig, TrainConfig
from boardrec.data import records, stage_rates
from boardrec.data.stage_rates import Rates
from boardrec.training import advice

FLAGS = {field.name for config in (TrainConfig, ConvertConfig) for field in dataclasses.fields(config)}


@pytest.fixture
def record_set(record_set_path):
    return records.open_record_set(record_set_path)


def line(record_set, *, asked='off', seconds=100.0, waiting=0.5, **settings):
    config = TrainConfig(records='r', run_dir='r', **{'feature_cache': 'off', **settings})
    text = advice.line(config, record_set, asked=asked, seconds=seconds, waiting=waiting)
    assert text is None or set(re.findall(r'--(\w+)', text)) <= FLAGS
    return text


@pytest.mark.parametrize(('settings', 'help_text'), [
    ({}, '--feature_cache=auto'), ({'cached_views': 0}, '--cached_views=4'), ({'asked': 'auto'}, '--trainable_layers'),
    ({'feature_cache': 'on', 'asked': 'auto'}, '--trainable_layers')])
def test_an_epoch_that_does_not_wait_is_bound_by_its_steps(record_set, settings, help_text):
    text = line(record_set, waiting=0.04, **settings)
    assert text.startswith('bottleneck: the training step (4% of the time') and help_text in text


@pytest.mark.parametrize(('cache', 'help_text'), [('on', '--feature_cache=memory'), ('memory', '--batch_size')])
def test_cached_features_that_come_late_are_named(record_set, cache, help_text):
    text = line(record_set, feature_cache=cache)
    assert text.startswith('bottleneck: reading cached features (50%') and help_text in text


@pytest.mark.parametrize(('stage', 'name', 'help_text'), [
    ('read', 'storage', '--records'), ('decode', 'decode', '--image_size=224 --resize=squash --encoding=jpeg'),
    ('augment', 'augmentation', '--cached_views'), ('batch', 'batch', '--image_size')])
def test_the_slowest_stage_is_named_with_what_helps(record_set, monkeypatch, stage, name, help_text):
    rates = Rates(4000.0, 3000.0, float('inf') if stage != 'augment' else 2000.0, 5000.0)._replace(**{stage: 1000.0})
    monkeypatch.setattr(stage_rates, 'measure', lambda *args, **settings: rates)
    text = line(record_set)
    assert text.startswith(f'bottleneck: {name} (50% of the time waiting for input; images/s of each stage alone: ')
    assert f'{stage} 1,000' in text and 'inf' not in text
    assert help_text in text.partition('what helps: ')[2]


def test_a_service_that_is_too_slow_is_named_without_measuring(record_set, monkeypatch):
    monkeypatch.setattr(stage_rates, 'measure', None)
    assert line(record_set, data_service='grpc://10.0.0.1:1').startswith('bottleneck: the data service (50%')


@pytest.mark.parametrize(('storage', 'stage', 'helps', 'not_again'), [
    (('jpeg', (224, 224), 'squash', 95), 'decode', '--encoding=raw', '--encoding=jpeg'),
    (('raw', (224, 224), 'squash', None), 'decode', 'more cores', '--encoding'),
    (('jpeg', (224, 224), 'squash', 95), 'read', 'a faster disk', '--encoding')])
def test_what_was_done_already_is_not_advised(record_set, storage, stage, helps, not_again):
    text = advice._for_input(TrainConfig(records='r', run_dir='r'), records.Storage(*storage))[stage]
    assert helps in text and not_again not in text


def test_it_really_measures(record_set):
    assert re.match(r'bottleneck: \w+ \(50%', line(record_set, image_size='32'))


def test_an_epoch_too_short_to_matter_gets_no_advice(record_set):
    assert line(record_set, seconds=3.0) is None
