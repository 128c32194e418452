"""predictions.csv there and back."""

import csv
import tracemalloc

from made_predictions import make, random
import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.reporting import metrics, predictions_csv

ODD = ['test/a,b.jpg', 'test/say "cheese".jpg', 'test/two\nlines.jpg', 'test/return\r.jpg', 'test/caf\udce9.jpg',
       'test/日本.jpg', " 'spaced' ", '=1+1']


@pytest.mark.parametrize('class_names, positive', [(['no', 'y,"e"\ns\udcff'], 'no'), (['p_a', '1', ' c'], None)])
def test_predictions_come_back_as_they_were_written(tmp_path, class_names, positive):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(len(ODD), len(class_names)), scale=6).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = make(rng.integers(0, len(class_names), len(ODD)), probabilities, ODD)
    predictions_csv.write(tmp_path / 'p.csv', predictions, class_names, split='test', positive_class=positive)
    read, names = predictions_csv.read(tmp_path / 'p.csv')
    assert (names, read.sources) == (class_names, ODD)
    for field in 'record_ids', 'labels', 'probabilities':
        assert getattr(read, field).dtype == getattr(predictions, field).dtype
        np.testing.assert_array_equal(getattr(read, field), getattr(predictions, field))
    assert [path.name for path in tmp_path.iterdir()] == ['p.csv']


@pytest.mark.parametrize('classes', [2, 5])
def test_metrics_recompute_from_the_file_to_the_last_bit(tmp_path, classes):
    # float64 noise that float32 does not hold, and values a hair from the decision at 0.5
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet(np.ones(classes), 300)
    probabilities[:20, :2] = 0.5 + np.array([1, -1]) * rng.normal(size=(20, 1), scale=1e-8)
    predictions = random(300, classes)._replace(probabilities=probabilities)
    class_names = [f'class {i}' for i in range(classes)]
    positive = class_names[1] if classes == 2 else None
    predictions_csv.write(tmp_path / 'p.csv', predictions, class_names, split='test', positive_class=positive)
    assert metrics.compute(*predictions_csv.read(tmp_path / 'p.csv'), positive) == metrics.compute(
        predictions, class_names, positive)


def test_the_file_is_a_plain_csv_file(tmp_path):
    predictions = make([0, 1], [[0.5, 0.5], [0.1, 0.9]])
    predictions_csv.write(tmp_path / 'p.csv', predictions, ['no', 'yes'], split='test', positive_class='yes')
    with open(tmp_path / 'p.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {'record_id': '5', 'source': 'test/0.jpg', 'split': 'test', 'label': 'no', 'predicted': 'yes', 'p_no': '0.5',
         'p_yes': '0.5', 'loss': str(-np.log(0.5)), 'correct': '0'},
        {'record_id': '8', 'source': 'test/1.jpg', 'split': 'test', 'label': 'yes', 'predicted': 'yes',
         'p_no': '0.100000001', 'p_yes': '0.899999976', 'loss': str(-np.log(float(np.float32(0.9)))),
         'correct': '1'}]


def test_a_record_without_loss_has_the_loss_0(tmp_path):
    predictions_csv.write(tmp_path / 'p.csv', make([1], [[0, 1]]), ['no', 'yes'], split='test', positive_class='yes')
    assert (tmp_path / 'p.csv').read_text().endswith(',0.0,1.0,0.0,1\n')


def test_many_classes_take_little_more_memory_than_their_array(tmp_path):
    classes = [f'class {i}' for i in range(1000)]
    predictions = make(np.arange(100), np.random.default_rng(5).dirichlet(np.ones(1000), 100))
    tracemalloc.start()
    predictions_csv.write(tmp_path / 'p.csv', predictions, classes, split='test', positive_class=None)
    predictions_csv.read(tmp_path / 'p.csv')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * predictions.probabilities.nbytes


HEAD = 'record_id,source,split,label,predicted,p_a,loss,correct\n'


@pytest.mark.parametrize('content', [
    '', 'a,b\n', HEAD, HEAD + '1,x,test,b,a,1,0,1\n', HEAD + '1,x,test,a,a\n', HEAD + '1,x,test,a,a,nan,0,1\n',
    HEAD + '1,"x'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / 'p.csv'
    path.write_text(content)
    with pytest.raises(UserError, match='p.csv: not a whole predictions.csv .*; run boardrec.evaluate again'):
        predictions_csv.read(path)
