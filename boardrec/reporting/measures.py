"""Metrics of weighted records: each a function of how often a record counts, so that one formula serves both the
value (every record once) and its bootstrap (every record as often as it was drawn).

Weights are float64 [R, N], a row a resample, a column a record. Of R resamples a metric is [R], or [R, C] with a column
a class; NaN where it is undefined (0/0), without a warning. No row may be without any weight.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from boardrec.config import SMALLEST_PROBABILITY
from boardrec.reporting import calibration

_BLOCK = 64  # classes whose squared errors exist at a time; of 50,000 records 24 MiB
Measure: TypeAlias = Callable[[np.ndarray], dict[str, np.ndarray]]


def of_decisions(labels: np.ndarray, chosen: np.ndarray, classes: int) -> Measure:
    """Metrics of the chosen classes, int [N] both.

    accuracy, balanced_accuracy (mean recall of the classes that have records) and micro_specificity (true negatives of
    all classes / negatives of all classes) are [R]; precision, recall, specificity and f1, each class against the rest,
    [R, C], with occurs (1 where a class has records or was chosen).
    """
    cells, cell = np.unique(labels.astype(np.int64) * classes + chosen, return_inverse=True)
    in_cell = _summer(cell, len(cells))  # the one sum over records
    of_label, of_chosen = _summer(cells // classes, classes), _summer(cells % classes, classes)
    right = cells // classes == cells % classes

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        counts = in_cell(weights)
        records, truth, said = counts.sum(axis=1), of_label(counts), of_chosen(counts)
        hits = of_label(counts * right)
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
    blocks = [slice(first, first + _BLOCK) for first in range(0, truth.shape[1], _BLOCK)]
    ranked = [ranks(probabilities[:, i], truth[:, i]) for i in range(truth.shape[1])]
    gaps = [calibration_error(probabilities[:, i], truth[:, i]) for i in range(truth.shape[1])]

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        areas = [of_class(weights) for of_class in ranked]
        total = weights.sum(axis=1)
        brier = np.concatenate([weights @ np.square(probabilities[:, block] - truth[:, block])
                                for block in blocks], axis=1) / total[:, None]
        return {
            'log_loss': weights @ losses / total,
            'brier_sum': brier.sum(axis=1),
            'auc': np.stack([auc for auc, _ in areas], axis=1),
            'average_precision': np.stack([area for _, area in areas], axis=1),
            'brier': brier,
            'ece': np.stack([gap(weights) for gap in gaps], axis=1)}

    return measure


def calibration_error(said: np.ndarray, outcomes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The expected calibration error, [R], of probabilities [N] that what is true in `outcomes`, bool [N], is true.

    Over `calibration.BINS` bins of equal width: the mean distance, weighted by records, of the mean probability from
    the share of true outcomes (Naeini, Cooper and Hauskrecht, 2015).
    """
    in_bin = _summer(calibration.bins(said), calibration.BINS)
    # Errors are computed anew each time: kept for each of a thousand classes they take as much as the probabilities.
    return lambda weights: np.abs(in_bin(weights * (said - outcomes))).sum(axis=1) / weights.sum(axis=1)


def record_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-ln p(true class) of each record, float64 [N]; p at least SMALLEST_PROBABILITY."""
    own = np.maximum(probabilities[np.arange(len(labels)), labels], SMALLEST_PROBABILITY)
    return 0 - np.log(own)  # not -0.0 where p is 1


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """The mean of each row of [R, C] over what is not NaN; NaN where there is nothing."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))


def _summer(groups: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function from values [R, N] to their sums over the records of each group, [R, count]."""
    arrange = _arranger(_ascending(groups))
    present, starts = np.unique(np.sort(groups), return_index=True)

    def sums(values: np.ndarray) -> np.ndarray:
        result = np.zeros((len(values), count))
        result[:, present] = np.add.reduceat(arrange(values), starts, axis=1)
        return result

    return sums


def ranks(scores: np.ndarray, truth: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The function from weights [R, N] to the areas under the ROC and the precision-recall curve, [R] each.

    Sorted once; records of equal score are one step of both curves.
    """
    order = _ascending(-scores)
    arrange, is_true = _arranger(order), truth[order]
    starts = np.unique(-scores[order], return_index=True)[1].astype(np.int32)
    if len(starts) == len(order):
        starts = None  # no ties

    def areas(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ordered = arrange(weights)
        found = ordered * is_true
        if starts is not None:
            ordered, found = (np.add.reduceat(values, starts, axis=1) for values in (ordered, found))
        taken, hits = np.cumsum(ordered, axis=1), np.cumsum(found, axis=1)  # at each threshold, from the highest
        positives, records = hits[:, -1].copy(), taken[:, -1].copy()
        under_roc = np.einsum('rg,rg->r', ordered - found, hits) - np.einsum('rg,rg->r', ordered - found, found) / 2
        under_pr = np.einsum('rg,rg->r', found, np.divide(hits, np.maximum(taken, 1, out=taken), out=hits))
        none = np.where((positives > 0) & (positives < records), 0, np.nan)
        return _ratio(under_roc, positives * (records - positives)) + none, _ratio(under_pr, positives) + none

    return areas


def _ascending(values: np.ndarray) -> np.ndarray:
    """The order in which values [N] ascend: as they are or backwards if that is one, see `_arranger`."""
    places, steps = np.arange(len(values)), np.diff(values)
    if (steps >= 0).all():
        return places
    return places[::-1] if (steps <= 0).all() else np.argsort(values, kind='stable')


def _arranger(order: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function from values [R, N] to values[:, order]; free where the order is theirs already, or its reverse."""
    places, order = np.arange(len(order)), order.astype(np.int32)  # half as much to keep for each class
    if np.array_equal(order, places):
        return lambda values: values
    if np.array_equal(order, places[::-1]):
        return lambda values: values[:, ::-1]
    return lambda values: np.take(values, order, axis=1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)
