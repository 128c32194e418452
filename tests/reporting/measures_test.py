"""Weighted measures against scikit-learn: weights of one, and weights that count records several times."""

import tracemalloc
import warnings

from made_predictions import random
import numpy as np
import pytest
from sklearn import metrics as sk

from boardrec.reporting import calibration, measures, metrics


def expected(labels, probabilities, chosen):
    """Of rows, each once, what scikit-learn says of each class; NaN where it warns."""
    found = {'accuracy': sk.accuracy_score(labels, chosen)}
    for c in range(probabilities.shape[1]):
        truth, said, scores = labels == c, chosen == c, probabilities[:, c]
        mixed = 0 < truth.sum() < len(truth)
        nan = {'zero_division': np.nan}
        found |= {
            ('precision', c): sk.precision_score(truth, said, **nan), ('f1', c): sk.f1_score(truth, said, **nan),
            ('recall', c): sk.recall_score(truth, said, **nan),
            ('specificity', c): sk.recall_score(~truth, ~said, **nan),
            ('auc', c): sk.roc_auc_score(truth, scores) if mixed else np.nan,
            ('average_precision', c): sk.average_precision_score(truth, scores) if mixed else np.nan,
            ('brier', c): np.mean((scores - truth) ** 2)}
    return found


@pytest.mark.parametrize('seed', range(12))
def test_counting_a_record_twice_is_having_it_twice(seed):
    random_state = np.random.default_rng(seed)
    classes, records = int(random_state.integers(1, 5)), int(random_state.integers(1, 60))
    predictions = random(records, classes, seed)
    labels, probabilities = predictions.labels, predictions.probabilities
    if seed % 3 == 0:
        probabilities = np.full_like(probabilities, 1 / classes)  # constant
    chosen = metrics.decide(probabilities, None)
    weights = random_state.multinomial(records, np.full(records, 1 / records), size=3).astype(float)
    measured = metrics.measure_of(labels, probabilities, chosen)(weights)
    for row, counts in enumerate(weights.astype(int)):
        copies = np.repeat(np.arange(records), counts)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            wanted = expected(labels[copies], probabilities[copies], chosen[copies])
        found = {key: measured[key][row] if isinstance(key, str) else measured[key[0]][row, key[1]] for key in wanted}
        assert found == pytest.approx(wanted, nan_ok=True, abs=1e-12)
        assert measured['log_loss'][row] == pytest.approx(measures.record_losses(labels, probabilities)[copies].mean())


def test_many_classes_take_about_as_much_memory_as_their_array():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(200), 1000)
    labels = np.arange(1000) % 200
    tracemalloc.start()
    measures.of_probabilities(labels, probabilities)(np.ones((1, 1000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * probabilities.nbytes


def test_the_calibration_error_by_hand():
    said, true = np.array([0.05, 0.06, 0.95, 1.0]), np.array([False, True, True, False])
    # two bins of two: |0.055 - 0.5| and |0.975 - 0.5|
    gap = measures.calibration_error(said, true)(np.ones((1, 4)))
    assert gap[0] == pytest.approx((abs(0.055 - 0.5) + abs(0.975 - 0.5)) / 2)
    assert calibration.bins(np.array([0, 1 / 15, 1])).tolist() == [0, 1, 14]


def test_the_order_of_records_changes_nothing():
    predictions = random(50, 2)
    p = predictions.probabilities[:, 1]
    for order in np.argsort(p), np.argsort(-p), np.random.default_rng(0).permutation(50):
        measured = measures.of_probabilities(predictions.labels[order], predictions.probabilities[order])(
            np.ones((1, 50)))
        assert measured['auc'][0] == pytest.approx([sk.roc_auc_score(predictions.labels, p)] * 2)
