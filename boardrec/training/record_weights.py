"""What single records' losses are multiplied by in training: as a CSV file says, for labels that are less sure."""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from boardrec.config import TrainConfig, UserError
from boardrec.data.records import RecordSet
from boardrec.training import weights_csv


class RecordWeights(NamedTuple):
    """The weights of a record set, and what the file that gave them does and does not speak of."""

    table: np.ndarray  # float32 [N] by record_id; 1 where the file says nothing and outside of train
    named: int  # training records that the file names
    elsewhere: int  # paths of records in other splits
    unknown: list[str]  # paths of no record

    @property
    def sha256(self) -> str:
        """The sum of the weights, however the file spells and orders them."""
        return hashlib.sha256(self.table.tobytes()).hexdigest()


def resolve(config: TrainConfig, record_set: RecordSet) -> RecordWeights | None:
    """The weights of --record_weights; None if all records count alike.

    Raises UserError for a file that names no training record, or gives all of them the weight 0.
    """
    if not config.record_weights:
        return None
    path, train = pathlib.Path(config.record_weights), record_set.split_range('train')
    if not path.is_file():
        raise UserError(f'--record_weights={path}: {"is a folder" if path.is_dir() else "there is no such file"}.')
    left = weights_csv.read('record_weights', path, 'path')
    table, count = np.ones(len(record_set.sources), np.float32), len(left)
    for record_id in train:
        table[record_id] = left.pop(record_set.sources[record_id], 1)
    named = count - len(left)
    others = {*record_set.sources[:train.start], *record_set.sources[train.stop:]}
    unknown = [name for name in left if name not in others]
    if not named:
        raise UserError(f'--record_weights={path}: names no training record of {record_set.folder}, whose paths are '
                        f'like {record_set.sources[train.start]!r}.')
    if not table[train.start:train.stop].any():
        raise UserError(f'--record_weights={path}: all its weights are 0, with which nothing is learned.')
    return RecordWeights(table, named, len(left) - len(unknown), unknown)


def sentence(config: TrainConfig, record_set: RecordSet, weights: RecordWeights) -> str:
    """What a person should know of them."""
    train = record_set.split_range('train')
    mean = weights.table[train.start:train.stop].mean()
    text = (f'--record_weights: {weights.named:,} of {len(train):,} training records have a weight in '
            f'{config.record_weights}, the mean of all is {mean:.3f}')
    if weights.elsewhere:
        text += f'; {weights.elsewhere:,} of its paths are in other splits, where all count alike'
    if weights.unknown:
        text += f'; {len(weights.unknown):,} are no record, such as {weights.unknown[0]!r}'
    return text
