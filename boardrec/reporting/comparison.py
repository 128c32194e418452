"""Two runs on the same records: how their metrics differ, whether by chance, and on which records.

In: the predictions of both. Out: a dict for JSON. Refused with a UserError: other records, labels or classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from boardrec.config import UserError
from boardrec.reporting import bootstrap, metrics
from boardrec.reporting.metrics import Predictions


class Run(NamedTuple):
    """What one run says of a split."""

    name: str
    predictions: Predictions
    threshold: float  # of two classes; anything with more


def compare(first: Run, second: Run, class_names: Sequence[str], positive_class: str | None) -> dict:
    """How the second run differs from the first.

    records        how many
    runs           the two names
    identical      whether all probabilities are the same
    metrics        {metric: {first, second, difference (second less first), interval, excludes_0, p_value}}, metrics as
                   at the top of `metrics.compute`; the interval is a paired bootstrap's: both count the same draws.
                   p_value: McNemar's, of accuracy and, of two classes, of recall and specificity (on the records of
                   the positive and of the negative class); None of others, which have no such exact test
    mcnemar        both_right, only_first, only_second, both_wrong, and p_value of the exact test (McNemar, 1947) that
                   only_first and only_second are equally likely; 1 where they never differ
    changed        records on which they decide differently: record_id, source, label, first, second, with the
                   probabilities of what each says; those that became wrong first, then those that became right
    """
    _require_same(first, second)
    positive = metrics.positive_index(class_names, positive_class)
    labels = first.predictions.labels
    chosen = [metrics.decide(run.predictions.probabilities, positive, run.threshold) for run in (first, second)]
    right = [said == labels for said in chosen]
    differences = _differences([first, second], chosen, positive)
    subsets = {'accuracy': np.full(len(labels), True)}
    if positive is not None:
        subsets |= {'recall': labels == positive, 'specificity': labels != positive}
    for name, row in differences.items():
        subset = subsets.get(name)
        row['p_value'] = None if subset is None or not subset.any() else mcnemar(
            *(of_run[subset] for of_run in right))['p_value']
    return {'records': len(labels), 'runs': [first.name, second.name],
            'identical': np.array_equal(first.predictions.probabilities, second.predictions.probabilities),
            'metrics': differences,
            'mcnemar': mcnemar(*right), 'changed': _changed(first, second, chosen, class_names)}


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict:
    """The four counts of two bool [N], and the exact two-sided p-value."""
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    apart = only_first + only_second
    return {'both_right': int((first_right & second_right).sum()), 'only_first': only_first,
            'only_second': only_second, 'both_wrong': int((~first_right & ~second_right).sum()),
            'p_value': float(stats.binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0}


def _differences(runs: Sequence[Run], chosen: Sequence[np.ndarray], positive: int | None) -> dict[str, dict]:
    records, classes = runs[0].predictions.probabilities.shape
    measured = [metrics.measure_of(run.predictions.labels, metrics.as_float32(run.predictions.probabilities), said)
                for run, said in zip(runs, chosen, strict=True)]

    def both(weights: np.ndarray) -> dict[str, np.ndarray]:
        a, b = (metrics.headline(measure(weights), positive) for measure in measured)
        return {name: np.stack([a[name], b[name]], axis=1) for name in a}

    values = both(np.ones((1, records)))
    drawn = bootstrap.replicates(both, records, classes=2 * classes) if records > 1 else None
    return {name: _difference(pair[0], drawn and drawn[name]) for name, pair in values.items()}


def _difference(pair: np.ndarray, drawn: np.ndarray | None) -> dict:
    first, second = (None if np.isnan(value) else float(value) for value in pair)
    if first is None or second is None:
        return {'first': first, 'second': second, 'difference': None, 'interval': None, 'excludes_0': None}
    interval = None if drawn is None else bootstrap.interval(drawn[:, 1] - drawn[:, 0])
    return {'first': first, 'second': second, 'difference': second - first, 'interval': interval,
            'excludes_0': None if interval is None else not interval[0] <= 0 <= interval[1]}


def _changed(first: Run, second: Run, chosen: Sequence[np.ndarray], class_names: Sequence[str]) -> list[dict]:
    labels = first.predictions.labels
    kind = np.where(chosen[0] == labels, 0, np.where(chosen[1] == labels, 1, 2))
    rows = np.flatnonzero(chosen[0] != chosen[1])
    return [{'record_id': int(first.predictions.record_ids[row]), 'source': first.predictions.sources[row],
             'label': class_names[labels[row]],
             **{name: {'predicted': class_names[said[row]],
                       'probability': float(run.predictions.probabilities[row, said[row]])}
                for name, run, said in zip(('first', 'second'), (first, second), chosen, strict=True)}}
            for row in rows[np.argsort(kind[rows], kind='stable')]]


def _require_same(first: Run, second: Run) -> None:
    a, b = first.predictions, second.predictions
    same = (np.array_equal(a.record_ids, b.record_ids) and a.sources == b.sources
            and np.array_equal(a.labels, b.labels) and a.probabilities.shape == b.probabilities.shape)
    if not same:
        raise UserError(f'{first.name} and {second.name} were evaluated on other records or classes: compare runs on '
                        'the same split of the same record set.')
