"""Predictions, one row a record, and every metric that is computed from them.

In: record ids, sources, labels and probabilities, and the threshold that decides between two classes. Out: a dict for
metrics.json that `compute` gives again, to the last bit, from what predictions.csv holds. Refused with a ValueError:
no records, shapes or labels that do not fit the classes, ids out of order, probabilities outside [0, 1].
"""

from collections.abc import Mapping, Sequence
import json
import math
import os
from typing import NamedTuple

import numpy as np
from sklearn import metrics as sk

from boardrec.data import files
from boardrec.reporting import bootstrap, measures

HALF = 0.5  # the threshold where none was chosen
_DECIDED = ('precision', 'recall', 'specificity', 'f1')
_RANKED = ('auc', 'average_precision')
_BELIEVED = ('brier', 'ece')


class Predictions(NamedTuple):
    """One row a record, in the order of record ids. Probabilities count as float32, whatever their dtype."""

    record_ids: np.ndarray  # int64 [N], ascending
    sources: list[str]  # N paths, bytes that are not UTF-8 as surrogates
    labels: np.ndarray  # int32 [N], class index
    probabilities: np.ndarray  # float64 [N, C], one column a class


def positive_index(class_names: Sequence[str], positive_class: str | None) -> int | None:
    """The positive class's column of two classes; None with any other number, where no class is special."""
    if len(class_names) != 2:
        return None
    if positive_class not in class_names:
        raise ValueError(f'positive_class={positive_class!r}: must be one of the two classes {list(class_names)}.')
    return list(class_names).index(positive_class)


def decide(probabilities: np.ndarray, positive: int | None, threshold: float = HALF) -> np.ndarray:
    """The chosen class of each row of [N, C], int64 [N]: the likeliest, the first of equals.

    Of two classes it is the positive one if its probability is at least `threshold`.
    """
    probabilities = as_float32(probabilities)
    if positive is None or probabilities.shape[1] != 2:
        return probabilities.argmax(axis=1)
    return np.where(probabilities[:, positive] >= np.float32(threshold), positive, 1 - positive)


def compute(predictions: Predictions, class_names: Sequence[str], positive_class: str | None,
            threshold: float = HALF) -> dict:
    """Every metric, ready for JSON: no NaN; None where a metric is undefined.

    records, class_names           as given
    positive_class                 the name; None unless there are two classes
    threshold                      as given; None unless there are two classes
    accuracy                       share of records whose chosen class (see `decide`) is the true one
    balanced_accuracy              mean recall of the classes that have records
    precision, recall, specificity, f1, auc, average_precision
                                   two classes: of the positive one; more: as in `macro`
    log_loss                       mean of -ln p(true class), p at least config.SMALLEST_PROBABILITY
    brier                          two classes: mean of (p(positive) - is positive)^2. More: mean over the records of
                                   the sum of squares over the classes (Brier 1950), which for two is twice as much
    ece                            expected calibration error over calibration.BINS bins, of p(positive); with more
                                   classes, of the likeliest class's probability (Guo et al., 2017)
    confusion_matrix               counts, rows = true class, columns = chosen class
    per_class                      for each class, against the rest: class, records, precision (None if never chosen),
                                   recall (None without records), specificity (None without others), f1 (None if
                                   neither there nor chosen), auc, average_precision (areas under the ROC and, as a step
                                   function, the precision-recall curve; None without records of both kinds), brier, ece
    macro                          unweighted means over the classes: of precision, recall and f1 over those that have
                                   records or were chosen, an undefined value counting 0 (scikit-learn's macro); of the
                                   others over those where they are defined
    micro                          of all classes' decisions together; precision, recall and f1 are then the accuracy
    at_half                        two classes: what depends on the threshold, at 0.5

    Beside metrics lie their `intervals`, {metric: [low, high]}: 95 %, see bootstrap. None for a single record.
    """
    labels, probabilities = predictions.labels, as_float32(predictions.probabilities)
    check(predictions, class_names)
    positive = positive_index(class_names, positive_class)
    chosen, classes = decide(probabilities, positive, threshold), len(class_names)
    halved = None if positive is None else decide(probabilities, positive)
    # In the order of a class's probability, since then most of what is sorted is so already: several times as fast.
    order = np.argsort(probabilities[:, 0 if positive is None else positive], kind='stable')
    measure = measure_of(labels[order], probabilities[order], chosen[order],
                         None if halved is None else halved[order])
    drawn = bootstrap.replicates(measure, len(labels), classes=classes) if len(labels) > 1 else None
    value = measure(np.ones((1, len(labels))))
    # Not scikit-learn's, which warns where there is one class.
    confusion = np.bincount(labels * classes + chosen, minlength=classes ** 2).reshape(classes, -1)

    def table(select) -> dict:
        return _with_intervals(select(value), drawn and select(drawn))

    return {
        'records': len(labels),
        'class_names': list(class_names),
        'positive_class': None if positive is None else class_names[positive],
        'threshold': None if positive is None else float(threshold),
        **table(lambda measured: headline(measured, positive)),
        'confusion_matrix': confusion.tolist(),
        'per_class': [
            {'class': name, 'records': int(confusion[i].sum()), **table(lambda measured, i=i: _of_class(measured, i))}
            for i, name in enumerate(class_names)],
        'macro': table(_macro),
        'micro': table(_micro),
        **({} if positive is None else {'at_half': {'threshold': HALF, **table(lambda m: _at_half(m, positive))}}),
    }


def measure_of(labels: np.ndarray, probabilities: np.ndarray, chosen: np.ndarray,
               halved: np.ndarray | None = None) -> measures.Measure:
    """All measures of these predictions as one, with half_NAME of the decisions `halved` beside those of `chosen`."""
    classes = probabilities.shape[1]
    parts = [measures.of_decisions(labels, chosen, classes), measures.of_probabilities(labels, probabilities)]
    top = measures.calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    half = None if halved is None else measures.of_decisions(labels, halved, classes)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        at_half = {f'half_{name}': values for name, values in half(weights).items()} if half else {}
        return {**parts[0](weights), **parts[1](weights), 'top_ece': top(weights), **at_half}

    return measure


def headline(measured: Mapping[str, np.ndarray], positive: int | None) -> dict[str, np.ndarray]:
    """The metrics, [R] each, that stand for the whole (see `compute`), from what `measure_of` gives."""
    macro = _macro(measured)

    def of(name: str) -> np.ndarray:
        return macro[name] if positive is None else measured[name][:, positive]

    return {
        'accuracy': measured['accuracy'],
        'balanced_accuracy': measured['balanced_accuracy'],
        'auc': of('auc'),
        'average_precision': of('average_precision'),
        'f1': of('f1'),
        'precision': of('precision'),
        'recall': of('recall'),
        'specificity': of('specificity'),
        'log_loss': measured['log_loss'],
        'brier': measured['brier_sum'] if positive is None else of('brier'),
        'ece': measured['top_ece'] if positive is None else of('ece')}


def classification_report_text(predictions: Predictions, class_names: Sequence[str], positive_class: str | None,
                               threshold: float = HALF) -> str:
    """scikit-learn's classification_report over all classes; what is undefined shows as 0."""
    chosen = decide(predictions.probabilities, positive_index(class_names, positive_class), threshold)
    return sk.classification_report(predictions.labels, chosen, labels=range(len(class_names)),
                                    target_names=list(class_names), digits=3, zero_division=0)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson, 1927); trials at least 1."""
    z, share = 1.959964, successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def write_json(path: os.PathLike | str, metrics: dict) -> None:
    """Writes `metrics` atomically, in its own order, indented by 2; refuses NaN with a ValueError."""
    text = json.dumps(metrics, indent=2, allow_nan=False) + '\n'
    with files.atomic_write(path) as file:
        file.write(text.encode('ascii'))


def as_float32(probabilities: np.ndarray) -> np.ndarray:
    """float64 that hold float32's values: what the model computed, and what nine digits in a file give back."""
    return np.asarray(probabilities, np.float32).astype(np.float64)


def check(predictions: Predictions, class_names: Sequence[str]) -> None:
    """Raises ValueError for predictions that no metric can be computed of."""
    ids, sources, labels, probabilities = predictions
    records, classes = len(sources), len(class_names)
    if not records:
        raise ValueError('no records: a metric needs at least one.')
    if ids.shape != (records,) or labels.shape != (records,) or probabilities.shape != (records, classes):
        raise ValueError(f'{records} sources and {classes} classes, but record_ids {ids.shape}, labels '
                         f'{labels.shape} and probabilities {probabilities.shape}.')
    if not (np.diff(ids) > 0).all():
        raise ValueError('record_ids must ascend, each once: sort the rows and leave out padding.')
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f'labels from {labels.min()} to {labels.max()}: must be from 0 to {classes - 1}.')
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN fails, too
        raise ValueError(f'probabilities from {probabilities.min()} to {probabilities.max()}: must be in [0, 1].')


def _of_class(measured: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {name: measured[name][:, i] for name in _DECIDED + _RANKED + _BELIEVED}


def _macro(measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    occurs = measured['occurs'] > 0
    counted = {name: np.where(occurs, np.nan_to_num(measured[name]), np.nan) for name in ('precision', 'recall', 'f1')}
    counted['specificity'] = np.where(occurs, measured['specificity'], np.nan)
    values = {**measured, **counted}
    return {name: measures.mean_of_defined(values[name]) for name in _DECIDED + _RANKED + _BELIEVED}


def _micro(measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    accuracy = measured['accuracy']
    return {'precision': accuracy, 'recall': accuracy, 'f1': accuracy, 'specificity': measured['micro_specificity']}


def _at_half(measured: Mapping[str, np.ndarray], positive: int) -> dict[str, np.ndarray]:
    return {'accuracy': measured['half_accuracy'], 'balanced_accuracy': measured['half_balanced_accuracy'],
            **{name: measured[f'half_{name}'][:, positive] for name in ('f1', 'precision', 'recall', 'specificity')}}


def _with_intervals(values: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray] | None) -> dict:
    """{metric: number or None, ..., 'intervals': {metric: [low, high] or None}} of values [1] and replicates [R]."""
    numbers = {name: None if math.isnan(value[0]) else float(value[0]) for name, value in values.items()}
    return {**numbers, 'intervals': {
        name: None if number is None or drawn is None else bootstrap.interval(drawn[name])
        for name, number in numbers.items()}}
