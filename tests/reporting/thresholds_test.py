"""The threshold against every one that could be tried, and what it may not be chosen from."""

from made_predictions import make, random
import numpy as np
import pytest
from sklearn import metrics as sk

from boardrec.config import UserError
from boardrec.reporting import decisions, thresholds
from boardrec.reporting.decisions import Criterion


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize(('least_precision', 'least_recall'), [(0, 0), (0.7, 0), (0, 0.9), (0.55, 0.6)])
def test_no_other_threshold_is_better(seed, least_precision, least_recall):
    predictions = random(60, 2, seed)
    truth, p = predictions.labels == 1, predictions.probabilities[:, 1]
    tried = []
    for value in np.unique(p):
        hits, taken = (truth & (p >= value)).sum(), (p >= value).sum()
        if hits / taken >= least_precision and hits / truth.sum() >= least_recall:
            tried.append(2 * hits / (taken + truth.sum()))
    best = thresholds.best(thresholds.curve(truth, p), min_precision=least_precision, min_recall=least_recall)
    if best is None:
        assert not tried
        return
    said = p >= best
    assert sk.f1_score(truth, said) == pytest.approx(max(tried))
    assert sk.precision_score(truth, said) >= least_precision and sk.recall_score(truth, said) >= least_recall


def test_half_stays_where_it_is_best_and_else_no_score_is_near():
    def best(scores, truth):
        return thresholds.best(thresholds.curve(np.array(truth, bool), np.float32(scores).astype(float)))

    assert best([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1]) == 0.5
    assert best([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]) == pytest.approx(0.25)
    assert best([0.7, 0.8, 0.8, 0.9], [0, 1, 1, 1]) == pytest.approx(0.75)
    assert best([0.3, 0.3], [1, 1]) == pytest.approx(0.15)
    below = np.nextafter(np.float32(0.25), np.float32(0))
    assert best([below, 0.25], [0, 1]) == 0.25, 'no float32 between them'
    assert best([0, 0], [1, 1]) == 0


def chosen(predictions, positive=1, **criterion):
    return decisions.choose(predictions, positive, Criterion(**criterion), lambda _: predictions.probabilities)


def test_a_decision_says_why_and_what_it_came_to():
    predictions = make([0, 0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    decision = chosen(predictions)
    assert decision['threshold'] == pytest.approx(0.25) and decision['temperature'] == 1
    assert (decision['validation']['f1'], decision['validation']['at_half']['f1']) == (1, 0)
    assert decisions.sentence(decision) == 'threshold 0.25, with which F1 on val is 1.0000 (0.0000 at 0.5)'
    assert chosen(predictions, threshold='half')['threshold'] == 0.5
    assert chosen(random(9, 3), None)['threshold'] is None


def test_what_cannot_be_had_is_refused():
    hard = make([0, 1], [[0.1, 0.9], [0.6, 0.4]])
    with pytest.raises(UserError, match=r'--min_precision=0.9: no threshold reaches it .*; the highest there is 0.5'):
        chosen(hard, min_precision=0.9)
    with pytest.raises(UserError, match='--min_recall=0.5: there is a threshold between two classes only'):
        chosen(random(9, 3), None, min_recall=0.5)
    negatives = make([0, 0], [[0.9, 0.1], [0.6, 0.4]])
    with pytest.raises(UserError, match='--threshold=f1: no validation record is of the positive class'):
        chosen(negatives, threshold='f1')
    assert chosen(negatives)['threshold'] == 0.5
