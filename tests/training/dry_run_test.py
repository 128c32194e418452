"""What is printed before a training fits the training, and nothing is written."""

import dataclasses
import os
import pathlib
import re

import keras
import pytest

from boardrec.config import UserError
from boardrec.data import records
from boardrec.training import dry_run, feed, fit, model, run_dir
from boardrec.training.dry_run import Timing
from boardrec.training.feed import Decision


@pytest.fixture
def small_config(train_config, small_backbone):
    """A function from settings to a TrainConfig of a network that takes milliseconds a step."""
    def make(**settings):
        return train_config(**{'backbone': small_backbone, 'trainable_layers': 9, 'precision': 'float32',
                               'dry_run': True, **settings})
    return make


def printed(config, capsys):
    fit.fit(config, records.open_record_set(config.records))
    return capsys.readouterr().out


def below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize(('settings', 'expected'), [
    ({'feature_cache': 'on', 'cached_views': 2}, r'features, once +0 s  199 images, [\d.,]+ images/s'),
    ({'feature_cache': 'memory', 'accumulate_steps': 2, 'head_epochs': 1, 'ema_decay': 0.9},
     r'cached features +[\d.]+ MiB  memory of the host'),
    ({'feature_cache': 'off', 'clip_norm': 1.0, 'class_weight': 'balanced', 'xla': 'on'},
     r'input pipeline +1,024.0 MiB  at most, of the host')])
def test_it_says_what_would_be_and_writes_nothing(small_config, record_set_path, tmp_path, monkeypatch, capsys,
                                                  settings, expected):
    monkeypatch.chdir(tmp_path)
    config = small_config(**settings)
    folder = pathlib.Path(config.run_dir).parent
    before = below(folder), below(record_set_path.parent)
    text = printed(config, capsys)
    assert (below(folder), below(record_set_path.parent), os.listdir(tmp_path)) == (*before, [])
    titles = ['Settings', 'Model', 'Records', 'Memory', 'Time']
    assert [line.split()[0].rstrip(',:') for line in text.splitlines() if re.match('[A-Z]', line)] == titles
    assert re.search(expected, text) and re.search(r'\n  step +[\d.]+ s  [\d.,]+ images/s\n', text)
    assert re.search(r'\n  epoch .* 6 steps, and 1 of validation\n  run .* 2 epochs', text)
    assert re.search(r'train +94 .*\n  val +11 ', text) and '--feature_cache=' + settings['feature_cache'] in text
    assert all(len(line) <= 100 or str(folder.parent) in line for line in text.splitlines())


def test_it_does_not_touch_a_run(small_config, copied_run, capsys):
    before = below(copied_run)
    text = printed(small_config(run_dir=str(copied_run)), capsys)
    assert f'note: the training would be refused: --run_dir={copied_run} was begun with other settings' in text
    assert below(copied_run) == before


def test_it_says_that_a_training_would_go_on(copied_run, capsys):
    config = dataclasses.replace(run_dir.read_config(copied_run), dry_run=True)
    assert printed(config, capsys).endswith(
        f'note: --run_dir={copied_run} has begun; the training would go on where it is\n')


@pytest.mark.parametrize(('settings', 'message'), [
    ({'trainable_layers': 0, 'cached_views': 0, 'feature_cache': 'on'}, '--feature_cache=on: each epoch takes new'),
    ({'feature_cache': 'off', 'pipeline_ram_mb': 1, 'batch_size': 4096}, '--pipeline_ram_mb=1'),
    ({'init_from': 'nowhere'}, '--init_from=.*nowhere: there is no run in it'),
    ({'trainable_layers': 999}, '--trainable_layers=999')])
def test_it_refuses_what_the_training_would(small_config, capsys, settings, message):
    with pytest.raises(UserError, match=message):
        printed(small_config(**settings), capsys)


def test_every_setting_is_shown_once_and_those_that_differ_come_first(train_config):
    config = train_config(cached_views=4, flip_horizontal=False, dry_run=True)
    first, _, others = '\n'.join(dry_run.settings(config)).partition('the others: ')
    shown = re.findall(r'--(\w+)=(\S*)', first + others)
    expected = {field.name: str(getattr(config, field.name)) for field in dataclasses.fields(config)}
    expected = {name: value.lower() if value in ('True', 'False') else value for name, value in expected.items()}
    assert dict(shown) == {name: value for name, value in expected.items() if name != 'dry_run'}
    assert len(shown) == len(dict(shown))
    assert re.search(r'--cached_views=4 +\(default 1\)\n', first) and '--flip_horizontal=false' in first
    assert f'--records={config.records}\n' in first and '--optimizer=adamw' in others


def column(lines, place):
    return [int(cells[place].replace(',', '').replace('-', '0')) for cells in (line.split() for line in lines[1:])]


@pytest.mark.parametrize(('backbone', 'names'), [
    ('vgg16', ['input', 'block1', 'block2', 'block3', 'block4', 'block5', 'classifier', 'in all']), ('small', None)])
def test_the_model_table_adds_up(train_config, small_backbone, backbone, names):
    config = train_config(backbone=small_backbone if backbone == 'small' else backbone, trainable_layers=9)
    classifier = model.build(config, model.Classes(['a', 'b', 'c'], None), 'float32')
    lines = [line.replace('in all', 'in_all').replace(' ...', '') for line in dry_run.model_table(classifier)]
    if names:
        assert [line.split()[0].replace('_', ' ') for line in lines[1:]] == names
        assert lines[2].split() == ['block1', '3', '16x16x64', '-', '38,720']
    else:
        assert [line.split()[2] for line in lines[2:-1]] == ['32x32x3', '8x8x12', '4x4x16', '3'], 'a row for each size'
    for place, total in ((1, len(classifier.model.layers)), (-2, model.parameter_counts(classifier.model)[0]),
                         (-1, model.parameter_counts(classifier.model)[1])):
        numbers = column(lines, place)
        assert numbers[-1] == total == sum(numbers[:-1])


def test_activations_are_what_gradients_need():
    inputs = keras.Input((10, 10, 3))  # 1,200 bytes
    frozen = keras.layers.Conv2D(8, 1, name='frozen')
    frozen.trainable = False
    x = keras.layers.ReLU()(frozen(inputs))  # two of 3,200
    y = keras.layers.Conv2D(2, 1)(x)  # 800; needs x
    z = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([y, keras.layers.Conv2D(2, 1)(x)]))
    outputs = keras.layers.Dense(1)(z)  # needs z
    kept = 3200 + 800 + 800 + 800 + 8
    assert dry_run.activation_bytes(keras.Model(inputs, outputs)) == kept + 2 * 3200


def test_times_are_those_of_all_steps(train_config, record_set):
    config = train_config(epochs=50, batch_size=10)
    lines = dry_run.time_table(config, record_set, Timing(3.0, 0.5, 2.5, 0.0), Decision('off'))
    assert [line.split()[:3] for line in lines[:4]] == [
        ['first', 'step', '3.00'], ['step', '0.500', 's'], ['epoch', '10', 's'], ['run', '8', 'min']]
    assert '20.0 images/s' in lines[1] and '10 steps, and 2 of validation' in lines[2]


def test_features_to_come_are_counted(small_config, record_set, capsys, monkeypatch):
    decided, decide = [], feed.decide
    monkeypatch.setattr(feed, 'decide', lambda *args, **named: decided.append(decide(*args, **named)) or decided[-1])
    config = small_config(feature_cache='on')
    printed(config, capsys)
    lines = dry_run.time_table(config, record_set, Timing(1.0, 0.0001, 0.0001, 2.0), decided[0])
    assert re.fullmatch(r'features, once +4 min  105 images, 0.5 images/s', lines[2])
    fit.fit(dataclasses.replace(config, dry_run=False), record_set)
    assert 'features, once' not in printed(config, capsys), 'they are there'
