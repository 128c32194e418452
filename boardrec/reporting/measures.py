"""Metrics of weighted records: each a function of how often a record counts, so that one formula serves both the
value (every record once) and its bootstrap (every record as often as it was drawn).

Weights are float64 [R, N], a row a resample, a column a record. Of R resamples a metric is [R], or [R, C] with a column
a class; NaN where it is undefined (0/0), without a warning. No row may be without any weight.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from boardrec.reporting import calibration

Measure: TypeAlias = Callable[[np.ndarray], dict[str, np.ndarray]]


def of_decisions(labels: np.ndarray, chosen: np.ndarray, classes: int) -> Measure:
    """Metrics of the chosen classes, int [N] both.

    accuracy, balanced_accuracy (mean recall of the classes that have records) and micro_specificity (true negatives of
    all classes / negatives of all classes) are [R]; precision, recall, specificity and f1, each class against the rest,
    [R, C], with occurs (1 where a class has records or was chosen).
    """
    of_label, of_chosen = _summer(labels, classes), _summer(chosen, classes)
    right = (labels == chosen).astype(np.float64)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        records, truth, said = weights.sum(axis=1), of_label(weights), of_chosen(weights)
        hits = of_label(weights * right)
        recall, negatives = _ratio(hits, truth), records[:, None] - truth
        true_negatives = negatives - said + hits
        return {
            'accuracy': hits.sum(axis=1) / records,
            'balanced_accuracy': mean_of_defined(recall),
            'micro_specificity': _ratio(true_negatives.sum(axis=1), negatives.sum(axis=1)),
            'precision': _ratio(hits, said),
            'recall': recall,
            'specificity': _ratio(true_negatives, negatives),
            'f1': _ratio(2 * hits, truth + said),
            'occurs': (truth + said > 0).astype(np.float64)}

    return measure


def of_probabilities(labels: np.ndarray, probabilities: np.ndarray) -> Measure:
    """Metrics of probabilities, [N, C], of labels, int [N].

    log_loss (mean of `record_losses`) and brier_sum (mean of the sum over the classes of squared errors, Brier 1950)
    are [R]; [R, C], each class against the rest: auc and average_precision (areas under
    the ROC curve and, as a step function, the precision-recall curve), brier (mean squared error) and ece.
    """
    losses = record_losses(labels, probabilities)
    truth = np.eye(probabilities.shape[1], dtype=bool)[labels]
    squares = np.square(probabilities - truth)
    ranked = [_ranks(probabilities[:, i], truth[:, i]) for i in range(truth.shape[1])]
    gaps = [calibration_error(probabilities[:, i], truth[:, i]) for i in range(truth.shape[1])]

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        records = weights.sum(axis=1)
        ranks = [rank(weights) for rank in ranked]
        brier = weights @ squares / records[:, None]
        return {
            'log_loss': weights @ losses / records,
            'brier_sum': brier.sum(axis=1),
            'auc': np.stack([auc for auc, _ in ranks], axis=1),
            'average_precision': np.stack([area for _, area in ranks], axis=1),
            'brier': brier,
            'ece': np.stack([gap(weights) for gap in gaps], axis=1)}

    return measure


def calibration_error(said: np.ndarray, outcomes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The expected calibration error, [R], of probabilities [N] that what is true in `outcomes`, bool [N], is true.

    Over `calibration.BINS` bins of equal width: the mean distance, weighted by records, of the mean probability from
    the share of true outcomes (Naeini, Cooper and Hauskrecht, 2015).
    """
    in_bin, errors = _summer(calibration.bins(said), calibration.BINS), said - outcomes
    return lambda weights: np.abs(in_bin(weights * errors)).sum(axis=1) / weights.sum(axis=1)


def record_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-ln p(true class) of each record, float64 [N]; p at least calibration.SMALLEST_PROBABILITY."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], calibration.SMALLEST_PROBABILITY))


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """The mean of each row of [R, C] over what is not NaN; NaN where there is nothing."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))


def _summer(groups: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function from values [R, N] to their sums over the records of each group, [R, count]."""
    order = np.argsort(groups, kind='stable')
    present, starts = np.unique(groups[order], return_index=True)

    def sums(values: np.ndarray) -> np.ndarray:
        result = np.zeros((len(values), count))
        result[:, present] = np.add.reduceat(values[:, order], starts, axis=1)
        return result

    return sums


def _ranks(scores: np.ndarray, truth: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The function from weights [R, N] to the areas under the ROC and the precision-recall curve, [R] each.

    Sorted once; records of equal score are one step of both curves.
    """
    order = np.argsort(-scores, kind='stable')
    _, starts = np.unique(-scores[order], return_index=True)
    is_true = truth[order].astype(np.float64)

    def areas(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ordered = weights[:, order]
        found = np.add.reduceat(ordered * is_true, starts, axis=1)  # at each threshold, from the highest
        taken = np.cumsum(np.add.reduceat(ordered, starts, axis=1), axis=1)
        hits = np.cumsum(found, axis=1)
        positives, records = hits[:, -1], taken[:, -1]
        alarms = np.diff(taken - hits, axis=1, prepend=0)
        under_roc = np.einsum('rg,rg->r', alarms, hits - found / 2)
        under_pr = np.einsum('rg,rg->r', found, hits / np.maximum(taken, 1))
        mixed = (positives > 0) & (positives < records)
        none = np.where(mixed, 0, np.nan)
        return _ratio(under_roc, positives * (records - positives)) + none, _ratio(under_pr, positives) + none

    return areas


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)
