"""Class weights: balanced as scikit-learn's, from a file, and what is refused."""

import types

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from boardrec.config import TrainConfig, UserError
from boardrec.data import records
from boardrec.training import class_weights


def resolve(value, names, counts):
    """The weights for records of these classes, so many of each in train."""
    split = records.Split(sum(counts), 1, dict(zip(names, counts, strict=True)))
    record_set = types.SimpleNamespace(manifest=types.SimpleNamespace(class_names=names, splits={'train': split}))
    return class_weights.resolve(TrainConfig(records='R', run_dir='D', class_weight=str(value)), record_set)


def test_none_is_none(record_set):
    assert class_weights.resolve(TrainConfig(records='R', run_dir='D'), record_set) is None


def test_balanced_is_scikit_learns():
    random = np.random.default_rng(0)
    for _ in range(30):
        names = [f'class{i}' for i in range(random.integers(2, 9))]
        counts = random.integers(1, 1000, len(names)).tolist()
        got = resolve('balanced', names, counts)
        labels = np.repeat(range(len(names)), counts)
        expected = compute_class_weight('balanced', classes=np.arange(len(names)), y=labels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        assert np.dot(got, counts) == pytest.approx(sum(counts)), 'the mean weight of a record is 1'


def test_balanced_counts_the_training_split_of_a_record_set(record_set):
    got = class_weights.resolve(TrainConfig(records='R', run_dir='D', class_weight='balanced'), record_set)
    labels = record_set.labels[list(record_set.split_range('train'))]
    np.testing.assert_allclose(got, compute_class_weight('balanced', classes=np.array([0, 1]), y=labels), rtol=1e-6)


@pytest.mark.parametrize('counts', [{'a': 5, 'b': 0}, {'a': 5}])
def test_a_class_without_training_records_cannot_be_balanced(counts):
    split = records.Split(5, 1, counts)
    record_set = types.SimpleNamespace(manifest=types.SimpleNamespace(class_names=['a', 'b'], splits={'train': split}))
    with pytest.raises(UserError, match="^--class_weight=balanced: there is no training record of 'b' to"):
        class_weights.resolve(TrainConfig(records='R', run_dir='D', class_weight='balanced'), record_set)


@pytest.mark.parametrize('text', [
    'class,weight\na,1\nb,0\n"c, d",2.5\n', '\ufeffclass,weight\r\n"c, d",2.5\r\nb,0.0\r\na,1e0\r\n',
    'note,weight,class\nx,2.5,"c, d"\n,0,b\n\n,1,a'])
def test_a_file_gives_each_class_its_weight(tmp_path, text):
    path = tmp_path / 'weights.csv'
    path.write_text(text, encoding='utf-8', newline='')
    got = resolve(path, ['a', 'b', 'c, d'], [3, 0, 5])
    assert got.dtype == np.float32 and got.tolist() == [1, 0, 2.5]


@pytest.mark.parametrize(('text', 'message'), [
    ('', ": its first line must name the columns class,weight; it reads ''."),
    ('a,1\nb,2\n', ": its first line must name the columns class,weight; it reads 'a,1'."),
    ('class,weight\na,1\n', ": gives no weight for 'b'; add a line for it."),
    ('class,weight\na,1\nb,2\nc,3\n', ", line 4: class 'c' is not among those of the records, a, b."),
    ('class,weight\na,1\nb,2\na,1\n', ", line 4: class 'a' a second time."),
    ('class,weight\na,1\nb,-1\n', ", line 3: weight '-1' of 'b' must be a number, at least 0 and below 2^32."),
    ('class,weight\na,1\nb,nan\n', ", line 3: weight 'nan' of 'b' must be a number, at least 0 and below 2^32."),
    ('class,weight\na,inf\nb,1\n', ", line 2: weight 'inf' of 'a' must be a number, at least 0 and below 2^32."),
    ('class,weight\na,1e10\nb,1\n', ", line 2: weight '1e10' of 'a' must be a number, at least 0 and below 2^32."),
    ('class,weight\na\nb,1\n', ", line 2: weight '' of 'a' must be a number, at least 0 and below 2^32."),
    ('class,weight\na,"1,5"\nb,1\n', ", line 2: weight '1,5' of 'a' must be a number, at least 0 and below 2^32."),
    ('class,weight\na,1e-99\nb,0\n', ': all its weights are 0, with which nothing is learned.'),
    ('class,weight\na,0\nb,0\n', ': all its weights are 0, with which nothing is learned.'),
    ('class,weight\na,' + '1' * 200_000 + '\n', ', line 2: no CSV (field larger than field limit (131072)).'),
])
def test_a_bad_file_is_refused_in_a_sentence(tmp_path, text, message):
    path = tmp_path / 'weights.csv'
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        resolve(path, ['a', 'b'], [3, 5])
    assert str(caught.value) == f'--class_weight={path}{message}'


def test_a_file_that_is_not_there(tmp_path):
    for path, problem in ((tmp_path / 'none.csv', 'there is no such file'), (tmp_path, 'is a folder')):
        with pytest.raises(UserError, match=f'^--class_weight={path}: is neither none nor balanced, and {problem}.$'):
            resolve(path, ['a', 'b'], [3, 5])
