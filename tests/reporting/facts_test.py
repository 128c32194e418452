"""Facts are those of the record set and the run; what auto became is no difference."""

import dataclasses
import shlex

import pytest

from boardrec import cli
from boardrec.config import EvaluateConfig, TrainConfig
from boardrec.data import records
from boardrec.reporting import background, facts

CONFIG = TrainConfig(records='R', run_dir='RUN', epochs=7, precision='bfloat16', image_size='224x224', xla='off',
                     feature_cache='on', strategy='one', positive_class='yes', feature_cache_dir='/somewhere')


def test_settings_that_differ():
    changed, other = facts.settings(CONFIG)
    assert changed == {'epochs': 7}
    assert set(changed) | set(other) == {field.name for field in dataclasses.fields(CONFIG)}
    assert facts.settings(dataclasses.replace(CONFIG, image_size='96'))[0] == {'epochs': 7, 'image_size': '96'}


def test_commands_can_be_typed():
    run = EvaluateConfig(run_dir='my run', slice_by=r'cell(\d)', calibrate=True, split='val')
    train, evaluate = (shlex.split(line) for line in facts.commands(CONFIG, run))
    assert train == ['python', '-m', 'boardrec.train', '--flagfile=my run/run.flags', '--run_dir=NEW']
    assert cli.parse(EvaluateConfig, evaluate[3:]) == run


def test_what_the_record_set_says(record_set_path, tmp_path):
    record_set = records.open_record_set(record_set_path)
    found = facts.read_data(record_set, 'val')
    assert found.splits == {name: info.class_counts for name, info in record_set.manifest.splits.items()}
    assert found.rejected == [] and found.storage == 'files as they were found'
    assert set(found.sizes) == {(48, 40)} and len(found.sizes) == len(record_set.split_range('val'))
    assert found.fingerprint == record_set.manifest.fingerprint


def test_lists_that_are_gone_or_damaged(record_set_path, tmp_path):
    import shutil
    shutil.copytree(record_set_path, tmp_path / 'records')
    (tmp_path / 'records' / 'rejected.csv').unlink()
    (tmp_path / 'records' / 'duplicates.csv').write_text('a,b\n1,2\n')
    found = facts.read_data(records.open_record_set(tmp_path / 'records'), 'test')
    assert found.rejected is None and found.duplicates is None
    records.write_rejected(tmp_path / 'records', [('a', 'too large: 9 bytes, at most 8', ''), ('b', 'empty', ''),
                                                  ('c', 'too large: 99 bytes, at most 8', '')])
    assert facts.read_data(records.open_record_set(tmp_path / 'records'), 'test').rejected == [
        ('too large', 2), ('empty', 1)]


@pytest.mark.parametrize(('sizes', 'words'), [
    ([], 'unknown'), ([(4, 3)] * 3, '4x3'), ([(4, 3), (4, 3), (2, 9)], '2x3 to 4x9; 67% are 4x3')])
def test_sizes_in_words(sizes, words):
    assert facts.describe_sizes(sizes) == words


def test_a_history_of_an_earlier_version():
    """It lacked columns, and NaN stands where a run went on with a later one."""
    history = [{'epoch': 1, 'loss': 1.0, 'val_loss': 1.0, 'accuracy': 0.5, 'val_accuracy': 0.5, 'learning_rate': 0.1,
                'seconds': 3700.0, 'images_per_second': float('nan')}]
    assert '1 h 1 min' in background.speed(history, 5.0)
    assert 'Input wait' not in background.speed(history, 5.0) and 'validation' not in background.speed(history, 5.0)
    assert '–' in background.training(history)
