"""Record weights: a table by record id from a file of paths, what of the file is said, and what is refused."""

import csv

import numpy as np
import pytest

from boardrec.config import TrainConfig, UserError
from boardrec.training import record_weights


@pytest.fixture
def config(tmp_path):
    """A function from a file's text to the settings that name it."""
    def make(text):
        path = tmp_path / 'weights.csv'
        path.write_bytes(text.encode('utf-8', 'surrogateescape'))
        return TrainConfig(records='R', run_dir='D', record_weights=str(path))

    return make


def lines(weights):
    return '\n'.join(['path,weight', *(f'{path},{weight}' for path, weight in weights.items())])


def test_none_are_none(record_set):
    assert record_weights.resolve(TrainConfig(records='R', run_dir='D'), record_set) is None


def test_a_file_gives_training_records_their_weights_and_the_rest_is_counted(config, record_set):
    train, val = record_set.split_range('train'), record_set.split_range('val')
    assert len(train) < len(record_set.sources)
    first, last, other = (record_set.sources[i] for i in (train[0], train[-1], val[0]))
    settings = config(lines({last: 0.25, 'no/such.png': 3, other: 5, first: 0, 'nor/this.png': 3}))
    weights = record_weights.resolve(settings, record_set)
    expected = np.ones(len(record_set.sources), np.float32)
    expected[[train[0], train[-1]]] = 0, 0.25
    np.testing.assert_array_equal(weights.table, expected)
    assert weights.table.dtype == np.float32
    assert weights[1:] == (2, 1, ['no/such.png', 'nor/this.png'])
    said = record_weights.sentence(settings, record_set, weights)
    assert said == (f'--record_weights: 2 of {len(train)} training records have a weight in {settings.record_weights}, '
                    f'the mean of all is {expected[train.start:train.stop].mean():.3f}; 1 of its paths are in other '
                    "splits, where all count alike; 2 are no record, such as 'no/such.png'")


def test_the_sum_is_that_of_the_weights_and_not_of_the_file(config, record_set):
    a, b = record_set.sources[:2]
    sums = [record_weights.resolve(config(text), record_set).sha256 for text in (
        lines({a: 0.5, b: 2}), lines({b: '2.0', a: '5e-1'}), f'\ufeffnote,weight,path\r\n,0.5,{a}\r\n\r\nx,2,"{b}"\r\n',
        lines({a: 0.5, b: 2.5}))]
    assert sums[0] == sums[1] == sums[2] != sums[3]


def test_names_that_are_not_utf_8_or_need_quotes(config, record_set):
    names = ['a, "b".png', 'caf\udce9.png']
    record_set = record_set._replace(sources=[*names, *record_set.sources[2:]])
    quoted = [name.replace('"', '""') for name in names]
    settings = config('path,weight\n' + ''.join(f'"{name}",0.5\n' for name in quoted))
    weights = record_weights.resolve(settings, record_set)
    assert weights.table[:3].tolist() == [0.5, 0.5, 1] and weights.unknown == []


@pytest.mark.parametrize(('text', 'message'), [
    ('', ": its first line must name the columns path,weight; it reads ''."),
    ('path,label\nA,x\n', ": its first line must name the columns path,weight; it reads 'path,label'."),
    ('path,weight\nA,1\nA,2\n', ", line 3: path 'A' a second time."),
    ('path,weight\nA,-1\n', ", line 2: weight '-1' of 'A' must be a number, at least 0 and below 2^32."),
    ('path,weight\nA,nan\n', ", line 2: weight 'nan' of 'A' must be a number, at least 0 and below 2^32."),
    ('path,weight\nA,inf\n', ", line 2: weight 'inf' of 'A' must be a number, at least 0 and below 2^32."),
    ('path,weight\nA\n', ", line 2: weight '' of 'A' must be a number, at least 0 and below 2^32."),
    ('path,weight\nA,1\n', ': names no training record of {records}, whose paths are like {first!r}.'),
    ('path,weight\n', ': names no training record of {records}, whose paths are like {first!r}.')])
def test_a_bad_file_is_refused_in_a_sentence(config, record_set, text, message):
    settings = config(text)
    with pytest.raises(UserError) as caught:
        record_weights.resolve(settings, record_set)
    expected = message.format(records=record_set.folder, first=record_set.sources[record_set.split_range('train')[0]])
    assert str(caught.value) == f'--record_weights={settings.record_weights}{expected}'


def test_all_zero_is_refused(config, record_set):
    train = record_set.split_range('train')
    zeros = {record_set.sources[i]: 0 for i in train}
    with pytest.raises(UserError, match='all its weights are 0, with which nothing is learned.$'):
        record_weights.resolve(config(lines(zeros)), record_set)
    zeros.popitem()
    assert record_weights.resolve(config(lines(zeros)), record_set).table[train.start:train.stop].sum() == 1


def test_a_file_that_is_not_there(record_set, tmp_path):
    for path, problem in ((tmp_path / 'none.csv', 'there is no such file'), (tmp_path, 'is a folder')):
        settings = TrainConfig(records='R', run_dir='D', record_weights=str(path))
        with pytest.raises(UserError, match=f'^--record_weights={path}: {problem}.$'):
            record_weights.resolve(settings, record_set)


def test_the_csv_module_writes_what_is_read(config, record_set, tmp_path):
    with open(tmp_path / 'weights.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('path', 'weight'), *((source, 1 / 3) for source in record_set.sources)])
    settings = TrainConfig(records='R', run_dir='D', record_weights=str(tmp_path / 'weights.csv'))
    weights, train = record_weights.resolve(settings, record_set), record_set.split_range('train')
    assert set(weights.table[train.start:train.stop]) == {np.float32(1 / 3)} and weights.table.max() == 1
