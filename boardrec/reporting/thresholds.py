"""The threshold that decides between two classes, chosen on validation records."""

from typing import NamedTuple

import numpy as np

from boardrec.reporting.metrics import HALF


class Curve(NamedTuple):
    """What thresholds make of records. Those in (lower, upper] decide alike; from the highest to the lowest."""

    lower: np.ndarray  # float64 [T], the next lower score, 0 at the end
    upper: np.ndarray  # float64 [T], a record's score
    precision: np.ndarray  # float64 [T]
    recall: np.ndarray  # float64 [T]
    f1: np.ndarray  # float64 [T]


def curve(is_positive: np.ndarray, scores: np.ndarray) -> Curve:
    """All thresholds that decide differently, and take at least one record. Both [N]; needs a positive record."""
    ascending = np.sort(scores)
    upper = np.unique(scores)[::-1]
    taken = len(scores) - np.searchsorted(ascending, upper, side='left')
    positives = np.sort(scores[is_positive])
    hits = len(positives) - np.searchsorted(positives, upper, side='left')
    return Curve(np.append(upper[1:], 0.0), upper, hits / taken, hits / len(positives),
                 2 * hits / (taken + len(positives)))


def best(curve: Curve, *, min_precision: float = 0.0, min_recall: float = 0.0) -> float | None:
    """The threshold with the best F1 among those with at least this precision and recall; None if there is none.

    Of thresholds that do equally well the one nearest to 0.5, but halfway between two scores where 0.5 is not between
    them: so rounding does not move a record over it. It is a float32's value, as the scores are.
    """
    good = (curve.precision >= min_precision) & (curve.recall >= min_recall)
    if not good.any():
        return None
    f1 = np.where(good, curve.f1, -1)
    equal = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return min((_between(curve.lower[i], curve.upper[i]) for i in equal), key=lambda value: abs(value - HALF))


def _between(lower: float, upper: float) -> float:
    if lower < HALF <= upper:
        return HALF
    middle = float(np.float32((lower + upper) / 2))
    return middle if lower < middle <= upper else float(upper)
