"""CSV files that give weights to classes or records: a column of names and a column weight, others are passed over."""

from collections.abc import Callable
import pathlib

from boardrec.config import UserError
from boardrec.data import columns_csv

_TOO_LARGE = 2.0**32  # as other settings


def read(flag: str, path: pathlib.Path, column: str, problem: Callable[[str], str] = lambda name: ''
         ) -> dict[str, float]:
    """The weight of each name in `column` of a file that a flag names.

    Raises UserError for what is no such file, a weight that is no number from 0 to 2^32, a name that comes twice or
    has a `problem`.
    """
    weights = {}
    for line, row in columns_csv.rows(f'--{flag}={path}', path, (column, 'weight')):
        name, text = row[column], row['weight']
        found = problem(name) or _problem(column, name, text, weights)
        if found:
            raise UserError(f'--{flag}={path}, line {line}: {found}.')
        weights[name] = float(text)
    return weights


def _problem(column: str, name: str, text: str, earlier: dict[str, float]) -> str:
    """What is wrong with a row, or ''."""
    if name in earlier:
        return f'{column} {name!r} a second time'
    try:
        good = 0 <= float(text) < _TOO_LARGE
    except ValueError:
        good = False
    return '' if good else f'weight {text!r} of {name!r} must be a number, at least 0 and below 2^32'
