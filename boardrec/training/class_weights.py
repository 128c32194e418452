"""What each class's losses are multiplied by in training: by how rare it is, or as a file says."""

import csv
import pathlib

import numpy as np

from boardrec.config import TrainConfig, UserError
from boardrec.data.records import RecordSet

_COLUMNS = ('class', 'weight')
_TOO_LARGE = 2.0**32  # as other settings


def resolve(config: TrainConfig, record_set: RecordSet) -> np.ndarray | None:
    """The weight of each class, float32 [C] in the manifest's order; None if all count alike.

    Raises UserError for a file that gives no weight for each class, or no record to balance a class by.
    """
    if config.class_weight == 'none':
        return None
    names = record_set.manifest.class_names
    if config.class_weight == 'balanced':
        return _balanced(names, record_set.manifest.splits['train'].class_counts)
    return _from_file(pathlib.Path(config.class_weight), names)


def _balanced(names: list[str], counts: dict[str, int]) -> np.ndarray:
    """records / (classes * records of the class), so that all classes weigh alike, as scikit-learn's "balanced"."""
    missing = [name for name in names if not counts.get(name)]
    if missing:
        raise UserError(f'--class_weight=balanced: there is no training record of {missing[0]!r} to balance it by: '
                        'convert more images of it or with other --splits, or give weights in a CSV file.')
    each = np.array([counts[name] for name in names], np.float64)
    return (each.sum() / (len(names) * each)).astype(np.float32)


def _from_file(path: pathlib.Path, names: list[str]) -> np.ndarray:
    weights = {}
    for line, row in _read(path):
        name, text = ((row.get(column) or '') for column in _COLUMNS)
        problem = _problem(name, text, names, weights)
        if problem:
            raise UserError(f'--class_weight={path}, line {line}: {problem}.')
        weights[name] = float(text)
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f'--class_weight={path}: gives no weight for {missing[0]!r}; add a line for it.')
    result = np.array([weights[name] for name in names], np.float32)
    if not result.any():
        raise UserError(f'--class_weight={path}: all its weights are 0, with which nothing is learned.')
    return result


def _problem(name: str, text: str, names: list[str], earlier: dict[str, float]) -> str:
    """What is wrong with a row, or ''."""
    if name not in names:
        return f'class {name!r} is not among those of the records, {", ".join(names)}'
    if name in earlier:
        return f'class {name!r} a second time'
    try:
        good = 0 <= float(text) < _TOO_LARGE
    except ValueError:
        good = False
    return '' if good else f'weight {text!r} of {name!r} must be a number, at least 0 and below 2^32'


def _read(path: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
    """The rows with their line numbers."""
    if not path.is_file():
        raise UserError(f'--class_weight={path}: is neither none nor balanced, and '
                        f'{"is a folder" if path.is_dir() else "there is no such file"}.')
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:  # Excel writes the mark
        reader = csv.DictReader(file)
        try:
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(f'--class_weight={path}: its first line must name the columns class,weight; it reads '
                                f'{",".join(reader.fieldnames or ())!r}.')
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f'--class_weight={path}, line {reader.line_num + 1}: no CSV ({error}).') from None
