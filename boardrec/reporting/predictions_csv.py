"""predictions.csv: one row a record, with all that metrics are computed from.

Columns: record_id, source, split, label, predicted, p_CLASS for each class, loss (-ln p of the true class) and correct
(1 or 0). Text is quoted (a path may hold a line break); probabilities have nine digits, enough for any float32.
"""

import array
import codecs
from collections.abc import Sequence
import csv
import os

import numpy as np

from boardrec.config import UserError
from boardrec.data import files
from boardrec.reporting import measures, metrics
from boardrec.reporting.metrics import Predictions

_FIRST, _LAST = ['record_id', 'source', 'split', 'label', 'predicted'], ['loss', 'correct']


def write(path: os.PathLike | str, predictions: Predictions, class_names: Sequence[str], *, split: str,
          positive_class: str | None, threshold: float = metrics.HALF) -> None:
    """Writes the file atomically; `threshold` decides what is predicted of two classes."""
    metrics.check(predictions, class_names)
    labels, probabilities = predictions.labels, metrics.as_float32(predictions.probabilities)
    chosen = metrics.decide(probabilities, metrics.positive_index(class_names, positive_class), threshold)
    rows = zip(predictions.record_ids.tolist(), predictions.sources, labels.tolist(), chosen.tolist(),
               map(np.ndarray.tolist, probabilities), measures.record_losses(labels, probabilities).tolist(),
               strict=True)
    # A row at a time, here and in `read`: of a thousand classes the text takes ten times what their array does.
    with files.atomic_write(path) as file:
        text = codecs.getwriter('utf-8')(file, 'surrogateescape')
        writer = csv.writer(text, lineterminator='\n', quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(_columns(class_names))
        for record_id, source, label, choice, row, loss in rows:
            writer.writerow([record_id, source, split, class_names[label], class_names[choice],
                             *(float(f'{p:.9g}') for p in row), loss, int(label == choice)])


def read(path: os.PathLike | str) -> tuple[Predictions, list[str]]:
    """What `write` was given, and the class names. Raises UserError if the file is not its work."""
    with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
        try:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            class_names = [column.removeprefix('p_') for column in header[len(_FIRST):-len(_LAST)]]
            if header != _columns(class_names):
                raise ValueError(f'its columns are {header}')
            index = {name: i for i, name in enumerate(class_names)}
            record_ids, sources, labels, probabilities = [], [], [], array.array('f')
            for row in reader:
                if len(row) != len(header):
                    raise ValueError(f'a row of {len(row)} columns in place of {len(header)}')
                record_ids.append(int(row[0]))
                sources.append(row[1])
                labels.append(index[row[3]])
                probabilities.extend(map(float, row[len(_FIRST):-len(_LAST)]))
            predictions = Predictions(
                np.array(record_ids, np.int64), sources, np.array(labels, np.int32),
                metrics.as_float32(np.reshape(probabilities, (len(sources), len(class_names)))))
            metrics.check(predictions, class_names)
        except (ValueError, KeyError, IndexError, csv.Error) as error:
            raise UserError(f'{path}: not a whole predictions.csv ({error}); run boardrec.evaluate again.') from None
    return predictions, class_names


def _columns(class_names: Sequence[str]) -> list[str]:
    return [*_FIRST, *(f'p_{name}' for name in class_names), *_LAST]
