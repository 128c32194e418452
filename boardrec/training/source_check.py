"""How far what a run says of its records lies from what it says of the files that they were made from."""

from collections.abc import Sequence
import pathlib
import sys
from typing import Any

import numpy as np

from boardrec.config import UserError
from boardrec.data import files, images, records
from boardrec.training import inference
from boardrec.training.inference import Predictor

_ANY_SIZE = images.Limits(sys.maxsize, sys.maxsize)  # each became a record once, perhaps with other limits


def choose(record_set: records.RecordSet, split: str, folder: str, count: int) -> list[records.Row]:
    """At most `count` records of the split, evenly spaced.

    Raises UserError if the source of one is missing in `folder` or has other bytes than it was converted from.
    """
    ids = record_set.split_range(split)
    count = min(count, len(ids))
    chosen = {ids[number * len(ids) // count] for number in range(count)}
    rows = [row for row in records.read_index(record_set.folder) if row.record_id in chosen]
    for row in rows:
        path = pathlib.Path(folder, row.source)
        if not path.is_file():
            raise UserError(f'{path} is missing: name the folder that the records were converted from with '
                            '--input_dir.')
        if files.sha256_of(path) != row.sha256:
            raise UserError(f'{path} has changed since its record was made from it: name a folder with the files as '
                            'they were with --input_dir, or convert the images again.')
    return rows


def compare(predictor: Predictor, rows: Sequence[records.Row], folder: str, of_records: np.ndarray,
            batch_size: int) -> dict[str, Any]:
    """How far the probabilities of these records, [N, C], lie from those of their sources, which predict sees."""
    function, read = inference.probabilities(predictor), images.reader(*predictor.config.height_width(), _ANY_SIZE)
    batches = [rows[i:i + batch_size] for i in range(0, len(rows), batch_size)]
    of_sources = np.concatenate([
        function(np.stack([read(pathlib.Path(folder, row.source).read_bytes()) for row in batch])).numpy()
        for batch in batches])
    difference = np.abs(of_records - of_sources)
    chosen = [inference.decide(predictor, values.astype(np.float32)).numpy() for values in (of_records, of_sources)]
    return {'records': len(rows), 'max_difference': float(difference.max()),
            'mean_difference': float(difference.mean()), 'decisions_differ': int((chosen[0] != chosen[1]).sum())}


def sentence(check: dict[str, Any]) -> str:
    """What `compare` found, for a person."""
    return (f'{check["records"]} records and their source files: probabilities differ by at most '
            f'{check["max_difference"]:.2g}, on average by {check["mean_difference"]:.2g}; '
            f'{check["decisions_differ"]} of {check["records"]} decisions differ')
