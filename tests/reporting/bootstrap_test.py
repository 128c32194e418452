"""Intervals against scipy's bootstrap and the binomial distribution; draws that are what they say."""

from made_predictions import random
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from boardrec.reporting import bootstrap, metrics


def test_draws_add_up_and_repeat(monkeypatch):
    monkeypatch.setattr(bootstrap, '_CHUNK', 70)
    chunks = list(bootstrap.draw(10, 200))
    weights = np.concatenate(chunks)
    assert len(chunks) == 29 and weights.shape == (200, 10) and (weights.sum(axis=1) == 10).all()
    assert len(np.unique(weights, axis=0)) > 190
    np.testing.assert_array_equal(weights, np.concatenate(list(bootstrap.draw(10, 200))))
    # multinomial: mean 1, variance 1 - 1/10
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.25) and weights.var() == pytest.approx(0.9, abs=0.1)


def test_accuracy_has_the_binomials_interval():
    result = metrics.compute(random(400, 3), list('abc'), None)
    low, high = stats.binom(400, result['accuracy']).ppf([0.025, 0.975]) / 400
    assert result['intervals']['accuracy'] == pytest.approx([low, high], abs=0.006)


@pytest.mark.parametrize('name', ['auc', 'f1', *(
    pytest.param(name, marks=pytest.mark.long) for name in ('average_precision', 'log_loss', 'brier'))])
def test_intervals_agree_with_scipys(name):
    predictions = random(150, 2, seed=3)
    truth, p = predictions.labels, predictions.probabilities[:, 1]
    score = {'auc': sk.roc_auc_score, 'average_precision': sk.average_precision_score, 'log_loss': sk.log_loss,
             'brier': sk.brier_score_loss, 'f1': lambda y, p: sk.f1_score(y, p >= 0.5)}[name]
    reference = stats.bootstrap((truth, p), score, paired=True, vectorized=False, method='percentile',
                                n_resamples=600, rng=np.random.default_rng(1)).confidence_interval
    width = reference.high - reference.low
    found = metrics.compute(predictions, ['a', 'b'], 'b')['intervals'][name]
    assert found == pytest.approx([reference.low, reference.high], abs=0.12 * width)


def test_undefined_resamples_are_left_out_until_they_are_most():
    assert bootstrap.interval(np.array([np.nan, 1, 2, 3])) == pytest.approx([1.05, 2.95])
    assert bootstrap.interval(np.array([np.nan, np.nan, 3])) is None


def test_many_classes_get_fewer_resamples():
    assert [bootstrap.resamples(*size) for size in ((1, 2), (100_000, 2), (10**6, 10), (10**6, 1000))] == [
        2000, 2000, 200, 200]


@pytest.mark.parametrize('classes', [1, 2, 3])
def test_a_single_record_has_no_interval(classes):
    result = metrics.compute(random(1, classes), list('abc')[:classes], 'b' if classes == 2 else None)
    assert set(result['intervals'].values()) == {None}
