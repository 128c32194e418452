"""What each class's losses are multiplied by in training: by how rare it is, or as a file says."""

import pathlib

import numpy as np

from boardrec.config import TrainConfig, UserError
from boardrec.data.records import RecordSet
from boardrec.training import weights_csv


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
    def problem(name: str) -> str:
        return '' if name in names else f'class {name!r} is not among those of the records, {", ".join(names)}'

    if not path.is_file():
        raise UserError(f'--class_weight={path}: is neither none nor balanced, and '
                        f'{"is a folder" if path.is_dir() else "there is no such file"}.')
    weights = weights_csv.read('class_weight', path, 'class', problem)
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f'--class_weight={path}: gives no weight for {missing[0]!r}; add a line for it.')
    result = np.array([weights[name] for name in names], np.float32)
    if not result.any():
        raise UserError(f'--class_weight={path}: all its weights are 0, with which nothing is learned.')
    return result
