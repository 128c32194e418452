"""Metrics against formulas written out here and against scikit-learn."""

import json

from made_predictions import make, random
import numpy as np
import pytest
from sklearn import metrics as sk

from boardrec.reporting import metrics, predictions_csv


@pytest.mark.parametrize('positive, expected', [(0, [0, 0, 1]), (1, [0, 1, 1]), (None, [0, 0, 1])])
def test_a_tie_goes_to_the_positive_class(positive, expected):
    chosen = metrics.decide(np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]), positive)
    np.testing.assert_array_equal(chosen, expected)


def test_of_more_classes_the_first_of_the_likeliest_is_chosen():
    np.testing.assert_array_equal(metrics.decide(np.array([[0.2, 0.4, 0.4], [0.5, 0.2, 0.3]]), None), [1, 0])


@pytest.mark.parametrize('positive', [0, 1])
def test_two_classes_agree_with_the_formulas(positive):
    predictions = random(97, 2)
    result = metrics.compute(predictions, ['cat', 'dog'], ['cat', 'dog'][positive])
    y, p = predictions.labels == positive, predictions.probabilities[:, positive]
    said = p >= 0.5
    hits, false_alarms, missed = (y & said).sum(), (~y & said).sum(), (y & ~said).sum()
    differences = p[y][:, None] - p[~y][None]  # AUC = P(a positive outranks a negative), ties half
    steps = [((y[p >= t]).mean(), (y[p >= t]).sum() / y.sum()) for t in sorted(set(p), reverse=True)]
    recalls = np.diff([0, *(recall for _, recall in steps)])
    expected = {
        'accuracy': (y == said).mean(),
        'balanced_accuracy': (said[y].mean() + (~said)[~y].mean()) / 2,
        'auc': ((differences > 0) + 0.5 * (differences == 0)).mean(),
        'average_precision': sum(precision * step for (precision, _), step in zip(steps, recalls, strict=True)),
        'precision': hits / (hits + false_alarms),
        'recall': hits / (hits + missed),
        'f1': 2 * hits / (2 * hits + missed + false_alarms),
        'log_loss': -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)),
        'brier': np.mean((p - y) ** 2),
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert (result['records'], result['class_names']) == (97, ['cat', 'dog'])
    assert result['positive_class'] == ['cat', 'dog'][positive]
    assert result['confusion_matrix'][positive][positive] == hits
    assert result['confusion_matrix'][1 - positive][positive] == false_alarms
    assert result['confusion_matrix'][positive][1 - positive] == missed


def test_more_classes_agree_with_scikit_learn():
    predictions = random(120, 4)
    result = metrics.compute(predictions, list('abcd'), None)
    y, p = predictions.labels, predictions.probabilities
    chosen, truth = p.argmax(axis=1), np.eye(4)[predictions.labels]
    assert result['positive_class'] is None
    assert result['accuracy'] == pytest.approx(sk.accuracy_score(y, chosen))
    assert result['balanced_accuracy'] == pytest.approx(sk.balanced_accuracy_score(y, chosen))
    assert result['auc'] == pytest.approx(sk.roc_auc_score(y, p, multi_class='ovr', average='macro'))
    assert result['average_precision'] == pytest.approx(sk.average_precision_score(truth, p, average='macro'))
    for name, score in ('f1', sk.f1_score), ('precision', sk.precision_score), ('recall', sk.recall_score):
        assert result[name] == pytest.approx(score(y, chosen, average='macro'))
        assert [row[name] for row in result['per_class']] == pytest.approx(score(y, chosen, average=None))
    assert result['log_loss'] == pytest.approx(-np.log(np.maximum(p[np.arange(120), y], 1e-7)).mean())
    assert result['brier'] == pytest.approx(((p - truth) ** 2).sum(axis=1).mean())
    assert result['confusion_matrix'] == sk.confusion_matrix(y, chosen).tolist()
    assert [row['records'] for row in result['per_class']] == np.bincount(y).tolist()


def test_a_sure_mistake_costs_the_clipped_log_loss():
    assert metrics.compute(make([1], [[1, 0]]), ['a', 'b'], 'b')['log_loss'] == pytest.approx(7 * np.log(10))


def test_what_is_undefined_is_none():
    result = metrics.compute(make([0, 0], [[0.9, 0.1], [0.6, 0.4]]), ['a', 'b'], 'b')
    assert [result[key] for key in ('auc', 'average_precision', 'precision', 'recall', 'f1')] == [None] * 5
    assert (result['accuracy'], result['balanced_accuracy']) == (1, 1)
    absent = result['per_class'][1]
    assert [absent[key] for key in ('records', 'precision', 'recall', 'f1', 'auc')] == [0, None, None, None, None]
    assert (absent['specificity'], absent['intervals']['recall']) == (1, None)
    json.dumps(result, allow_nan=False)


def test_a_class_that_is_there_and_never_chosen_has_f1_0_and_no_precision():
    result = metrics.compute(make([0, 1], [[0.9, 0.1], [0.6, 0.4]]), ['a', 'b'], 'b')
    assert (result['precision'], result['recall'], result['f1']) == (None, 0, 0)


def test_classes_that_do_not_occur_do_not_count_in_means():
    # c is chosen but has no records, d neither: means go over a, b and c; balanced accuracy over a and b.
    result = metrics.compute(
        make([0, 0, 1], [[0.8, 0.1, 0.1, 0], [0.1, 0, 0.9, 0], [0.2, 0.7, 0.1, 0]]), list('abcd'), None)
    assert result['recall'] == pytest.approx((0.5 + 1 + 0) / 3)
    assert result['precision'] == pytest.approx((1 + 1 + 0) / 3)
    assert result['f1'] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result['balanced_accuracy'] == pytest.approx(0.75)
    assert result['auc'] == pytest.approx((0.5 + 1) / 2)
    assert [row['recall'] for row in result['per_class']] == [0.5, 1, None, None]


def test_one_class_is_possible():
    assert metrics.compute(make([0], [[1]]), ['only'], None)['accuracy'] == 1


@pytest.mark.parametrize('change, message', [
    ({'record_ids': np.zeros(0, np.int64), 'sources': [], 'labels': np.zeros(0, np.int32),
      'probabilities': np.zeros((0, 2))}, 'no records'),
    ({'labels': np.array([0, 2], np.int32)}, 'labels from 0 to 2: must be from 0 to 1'),
    ({'labels': np.array([0], np.int32)}, r'labels \(1,\)'),
    ({'probabilities': np.full((2, 3), 0.3)}, r'2 classes, but .* probabilities \(2, 3\)'),
    ({'probabilities': np.array([[np.nan, 1], [0, 1]])}, 'probabilities from nan'),
    ({'probabilities': np.array([[2.0, -1], [0, 1]])}, 'probabilities from -1.0 to 2.0'),
    ({'record_ids': np.array([4, 4])}, 'must ascend'),
])
def test_bad_predictions_are_refused(tmp_path, change, message):
    predictions = make([0, 1], [[0.9, 0.1], [0.4, 0.6]])._replace(**change)
    with pytest.raises(ValueError, match=message):
        metrics.compute(predictions, ['a', 'b'], 'b')
    with pytest.raises(ValueError, match=message):
        predictions_csv.write(tmp_path / 'p.csv', predictions, ['a', 'b'], split='test', positive_class='b')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('positive', [None, 'c'])
def test_two_classes_need_a_positive_one(positive):
    with pytest.raises(ValueError, match=r"one of the two classes \['a', 'b'\]"):
        metrics.compute(make([0], [[0.5, 0.5]]), ['a', 'b'], positive)


def test_json_keeps_its_order_and_refuses_nan(tmp_path):
    path = tmp_path / 'metrics.json'
    result = metrics.compute(random(9, 2), ['b', 'caf\udce9'], 'b')
    metrics.write_json(path, result)
    assert list(json.loads(path.read_bytes()).items()) == list(result.items())
    with pytest.raises(ValueError, match='not JSON compliant'):
        metrics.write_json(path, {'auc': float('nan')})
    assert json.loads(path.read_bytes()) == result


def test_the_text_report_lists_every_class():
    text = metrics.classification_report_text(make([0], [[0.9, 0.1]]), ['cat', 'dog'], 'dog')
    assert [line.split() for line in text.splitlines()[2:4]] == [
        ['cat', '1.000', '1.000', '1.000', '1'], ['dog', '0.000', '0.000', '0.000', '0']]


def test_the_wilson_interval():
    # 8 of 10: Brown, Cai and DasGupta (2001), formula (4)
    assert metrics.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    # of 0 of 4 the upper end is z^2 / (n + z^2)
    assert metrics.wilson_interval(0, 4) == pytest.approx((0, 0.48989), abs=1e-5)
    assert metrics.wilson_interval(4, 4) == pytest.approx((0.51011, 1), abs=1e-5)
