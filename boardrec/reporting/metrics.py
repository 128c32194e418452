"""Predictions, one row a record, and every metric that is computed from them.

In: record ids, sources, labels and probabilities. Out: predictions.csv, which keeps them, and a dict for
metrics.json that `compute` gives again, to the last bit, from what predictions.csv holds. Refused with a ValueError:
no records, shapes or labels that do not fit the classes, ids out of order, probabilities outside [0, 1].
"""

from collections.abc import Callable, Sequence
import csv
import io
import json
import math
import os
from typing import NamedTuple

import numpy as np
from sklearn import metrics as sk

from boardrec.config import UserError
from boardrec.data import files

SMALLEST_PROBABILITY = 1e-7  # one sure mistake costs log_loss 16.1, not infinity
_COLUMNS = ['record_id', 'source', 'label', 'predicted']


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


def decide(probabilities: np.ndarray, positive: int | None) -> np.ndarray:
    """The chosen class of each row of [N, C], int64 [N]: the likeliest, the first of equals.

    Of two classes it is the positive one if its probability is at least 0.5, as a sigmoid decides.
    """
    probabilities = _as_float32(probabilities)
    if positive is None or probabilities.shape[1] != 2:
        return probabilities.argmax(axis=1)
    return np.where(probabilities[:, positive] >= 0.5, positive, 1 - positive)


def compute(predictions: Predictions, class_names: Sequence[str], positive_class: str | None) -> dict:
    """Every metric, ready for JSON: no NaN; None where a metric is undefined.

    records, class_names           as given
    positive_class                 the name; None unless there are two classes
    accuracy                       share of records whose chosen class (see `decide`) is the true one
    balanced_accuracy              mean recall of the classes that have records
    precision, recall, f1          two classes: of the positive one. More: unweighted mean over the classes that have
                                   records or were chosen, an undefined value counting 0 (scikit-learn's macro)
    auc, average_precision         areas under the ROC curve and, as a step function, the precision-recall curve. Two
                                   classes: of the positive one. More: mean over the classes, each against the rest.
                                   Only classes that some records have and others have not
    log_loss                       mean of -ln p(true class), p at least SMALLEST_PROBABILITY
    brier                          two classes: mean of (p(positive) - is positive)^2. More: mean over the records of
                                   the sum of squares over the classes (Brier 1950), which for two is twice as much
    confusion_matrix               counts, rows = true class, columns = chosen class
    per_class                      for each class: class, records, precision (None if never chosen), recall (None
                                   without records), f1 (None if both)
    """
    labels, probabilities = predictions.labels, _as_float32(predictions.probabilities)
    _check(predictions, probabilities, class_names)
    positive = positive_index(class_names, positive_class)
    chosen, classes = decide(probabilities, positive), range(len(class_names))
    ranked = classes if positive is None else [positive]
    # Not scikit-learn's, which warns where there is one class.
    confusion = np.bincount(labels * len(classes) + chosen, minlength=len(classes) ** 2).reshape(len(classes), -1)
    # NaN where 0/0; f1 = 2 hits / (records + chosen), so it is 0 for a class that is there and never chosen
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, chosen, labels=classes, zero_division=np.nan)
    of_label = probabilities[np.arange(len(labels)), labels]
    errors = probabilities - np.eye(len(class_names))[labels]

    def summary(values: np.ndarray) -> float | None:
        if positive is not None:
            return _number(values[positive])
        occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
        return _number(np.nan_to_num(values[occurs]).mean())

    return {
        'records': len(labels),
        'class_names': list(class_names),
        'positive_class': None if positive is None else class_names[positive],
        'accuracy': _number(np.mean(chosen == labels)),
        'balanced_accuracy': _number(np.nanmean(recall)),
        'auc': _one_against_rest(sk.roc_auc_score, labels, probabilities, ranked),
        'average_precision': _one_against_rest(sk.average_precision_score, labels, probabilities, ranked),
        'f1': summary(f1),
        'precision': summary(precision),
        'recall': summary(recall),
        'log_loss': _number(-np.log(np.maximum(of_label, SMALLEST_PROBABILITY)).mean()),
        'brier': _number(np.square(errors[:, ranked]).sum(axis=1).mean()),
        'confusion_matrix': confusion.tolist(),
        'per_class': [
            {'class': name, 'records': int(confusion[i].sum()), 'precision': _number(precision[i]),
             'recall': _number(recall[i]), 'f1': _number(f1[i])} for i, name in enumerate(class_names)],
    }


def classification_report_text(
        predictions: Predictions, class_names: Sequence[str], positive_class: str | None) -> str:
    """scikit-learn's classification_report over all classes; what is undefined shows as 0."""
    chosen = decide(predictions.probabilities, positive_index(class_names, positive_class))
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


def write_predictions(path: os.PathLike | str, predictions: Predictions, class_names: Sequence[str], *,
                      positive_class: str | None) -> None:
    """Writes a CSV file atomically: record_id, source, label, predicted, and p_CLASS for each class.

    Text is quoted (a path may hold a line break); probabilities have nine digits, enough for any float32.
    """
    probabilities = _as_float32(predictions.probabilities)
    _check(predictions, probabilities, class_names)
    chosen = decide(probabilities, positive_index(class_names, positive_class))
    rows = zip(predictions.record_ids.tolist(), predictions.sources, predictions.labels.tolist(), chosen.tolist(),
               probabilities.tolist(), strict=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n', quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(_COLUMNS + [f'p_{name}' for name in class_names])
    for record_id, source, label, choice, row in rows:
        writer.writerow([record_id, source, class_names[label], class_names[choice],
                         *(float(f'{p:.9g}') for p in row)])
    with files.atomic_write(path) as file:
        file.write(text.getvalue().encode('utf-8', 'surrogateescape'))


def read_predictions(path: os.PathLike | str) -> tuple[Predictions, list[str]]:
    """What `write_predictions` was given, and the class names. Raises UserError if the file is not its work."""
    with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
        try:
            header, *rows = csv.reader(file, strict=True)
            class_names = [column.removeprefix('p_') for column in header[len(_COLUMNS):]]
            if header != _COLUMNS + [f'p_{name}' for name in class_names]:
                raise ValueError(f'its columns are {header}')
            index = {name: i for i, name in enumerate(class_names)}
            predictions = Predictions(
                record_ids=np.array([int(row[0]) for row in rows], np.int64),
                sources=[row[1] for row in rows],
                labels=np.array([index[row[2]] for row in rows], np.int32),
                probabilities=_as_float32(np.array([row[4:] for row in rows], np.float64)))
            _check(predictions, predictions.probabilities, class_names)
        except (ValueError, KeyError, IndexError, csv.Error) as error:
            raise UserError(f'{path}: not a whole predictions.csv ({error}); run boardrec.evaluate again.') from None
    return predictions, class_names


def _as_float32(probabilities: np.ndarray) -> np.ndarray:
    """float64 that hold float32's values: what the model computed, and what nine digits in a file give back."""
    return np.asarray(probabilities, np.float32).astype(np.float64)


def _check(predictions: Predictions, probabilities: np.ndarray, class_names: Sequence[str]) -> None:
    ids, sources, labels, _ = predictions
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


def _one_against_rest(score: Callable, labels: np.ndarray, probabilities: np.ndarray,
                      classes: Sequence[int]) -> float | None:
    scores = [score(labels == i, probabilities[:, i]) for i in classes if 0 < (labels == i).sum() < len(labels)]
    return _number(np.mean(scores)) if scores else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
