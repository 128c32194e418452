"""The same metrics for parts of a split, such as folders, cameras or module types, and which parts are worse.

What a slice is, is said by a regular expression for the source, or by a column of a CSV file that has a column path.
"""

from collections.abc import Sequence
import math
import pathlib
import re

import numpy as np

from boardrec.config import UserError
from boardrec.data import columns_csv
from boardrec.reporting import metrics
from boardrec.reporting.metrics import Predictions

MOST = 200  # slices; each costs a bootstrap, and nobody reads more
FEWEST_RECORDS = 10  # of a slice that anything is said of
MUCH = 0.1  # a loss of accuracy that must not go unseen
NONE = '(none)'


def compute(predictions: Predictions, slice_of: Sequence[str], class_names: Sequence[str], positive_class: str | None,
            threshold: float = metrics.HALF) -> list[dict]:
    """What `metrics.compute` gives for each slice, in the order of names; `slice_of` names each record's.

    But for the confusion matrix: 200 of a thousand classes would make a metrics.json of gigabytes.

    Besides: slice; difference, its accuracy less that of all other records, with interval ([low, high], 95 %); and
    verdict, `worse` (the interval lies below 0), `too small` (fewer than FEWEST_RECORDS, or the interval holds both 0
    and a loss of MUCH) or `ok`. One good slice in forty is called worse by chance.
    """
    names, members = np.unique(np.array(slice_of, object).astype(str), return_inverse=True)
    if len(names) > MOST:
        raise UserError(f'--slice_by makes {len(names):,} slices, such as {str(names[0])!r} and {str(names[1])!r}: at '
                        f'most {MOST}; name a coarser expression or column.')
    positive = metrics.positive_index(class_names, positive_class)
    right = metrics.decide(predictions.probabilities, positive, threshold) == predictions.labels
    result = []
    for i, name in enumerate(names):
        values = metrics.compute(take(predictions, members == i), class_names, positive_class, threshold)
        del values['confusion_matrix']
        result.append({'slice': str(name), **_difference(right[members == i], right[members != i]), **values})
    return result


def take(predictions: Predictions, chosen: np.ndarray) -> Predictions:
    """The records for which `chosen`, bool [N], is true."""
    return Predictions(predictions.record_ids[chosen], [predictions.sources[i] for i in np.flatnonzero(chosen)],
                       predictions.labels[chosen], predictions.probabilities[chosen])


def names_of(sources: Sequence[str], slice_by: str) -> list[str]:
    """The slice of each source: what the groups of a regular expression match (all of it, without groups), or what
    stands in a column of a CSV file, FILE.csv:COLUMN, beside the path. NONE where there is nothing.

    Raises UserError for an expression that matches nothing, and a file that cannot be read or lists none of them.
    """
    file = re.fullmatch(r'(.+\.csv):([^:/\\]+)', slice_by, re.IGNORECASE)
    if file:
        values = _read_column(pathlib.Path(file[1]), file[2], slice_by)
        names = [values.get(source) or NONE for source in sources]
    else:
        pattern = re.compile(slice_by)
        names = [_matched(pattern.search(source)) or NONE for source in sources]
    if set(names) == {NONE}:
        raise UserError(f'--slice_by={slice_by} {"lists" if file else "matches"} none of the records, such as '
                        f'{sources[0]!r}{": paths are relative to the folder that was converted" if file else ""}.')
    return names


def difference_interval(successes: int, trials: int, other_successes: int, other_trials: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two independent shares, the first less the second.

    From the two Wilson intervals: Newcombe (1998), method 10, which holds for few trials and shares of 0 and 1, where
    a bootstrap gives an interval of no width.
    """
    first, second = successes / trials, other_successes / other_trials
    low, high = metrics.wilson_interval(successes, trials)
    other_low, other_high = metrics.wilson_interval(other_successes, other_trials)
    difference = first - second
    return (difference - math.hypot(first - low, other_high - second),
            difference + math.hypot(high - first, second - other_low))


def _difference(right: np.ndarray, others: np.ndarray) -> dict:
    if not len(others):
        return {'difference': None, 'difference_interval': None, 'verdict': 'ok'}
    low, high = difference_interval(int(right.sum()), len(right), int(others.sum()), len(others))
    unclear = len(right) < FEWEST_RECORDS or low <= -MUCH <= 0 <= high
    verdict = 'too small' if unclear else 'worse' if high < 0 else 'ok'
    return {'difference': float(right.mean() - others.mean()), 'difference_interval': [low, high], 'verdict': verdict}


def _matched(match: re.Match | None) -> str:
    if match is None:
        return ''
    return '/'.join(match.groups('')) if match.re.groups else match[0]


def _read_column(path: pathlib.Path, column: str, slice_by: str) -> dict[str, str]:
    """{path: value} of a CSV file."""
    if not path.is_file():
        raise UserError(f'--slice_by={slice_by}: {"is a folder" if path.is_dir() else f"there is no file {path}"}.')
    values = {}
    for line, row in columns_csv.rows(f'--slice_by={slice_by}', path, ('path', column)):
        name, value = row['path'], row[column].strip()
        if values.setdefault(name, value) != value:
            raise UserError(f'--slice_by={slice_by}, line {line}: {name!r} has two values, {values[name]!r} and '
                            f'{value!r}; leave one.')
    return values
