"""The threshold against every one that could be tried."""

from made_predictions import random
import numpy as np
import pytest
from sklearn import metrics as sk

from boardrec.reporting import thresholds


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
