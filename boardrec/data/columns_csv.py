"""CSV files that a flag names, whose first line names at least certain columns; others are passed over."""

from collections.abc import Iterator, Sequence
import csv
import pathlib

from boardrec.config import UserError


def rows(flag: str, path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows with their line numbers; a field that a short row lacks is ''.

    flag: what was given, as messages say it. Raises UserError for what is no CSV or lacks a column.
    """
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:  # Excel writes the mark
        reader = csv.DictReader(file, restval='')
        try:
            if not set(columns) <= set(reader.fieldnames or ()):
                raise UserError(f'{flag}: its first line must name the columns {",".join(columns)}; it reads '
                                f'{",".join(reader.fieldnames or ())!r}.')
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f'{flag}, line {reader.line_num + 1}: no CSV ({error}).') from None
