"""Rows by the million in little memory: a list for each column of texts, an array for each column of whole numbers."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

Row = TypeVar('Row', bound=NamedTuple)


class Table(Sequence[Row]):
    """Rows of one NamedTuple, whose fields are str and int; each is made anew when it is asked for.

    A value takes 8 bytes, beside the texts themselves, which rows may share: 56 for a scan.Found, which takes 184 as a
    tuple in a list.
    """

    def __init__(self, row: type[Row], rows: Iterable[Row] = ()):
        self._row = row
        self._columns: list[Any] = [[] if kind is str else array('q') for kind in row.__annotations__.values()]
        for one in rows:
            self.append(one)

    def append(self, row: Row) -> None:
        """Adds a row at the end."""
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)

    def take(self, positions: Sequence[int]) -> 'Table[Row]':
        """The rows at these positions, in their order; the texts are shared."""
        taken = Table(self._row)
        for new, column in zip(taken._columns, self._columns, strict=True):
            new.extend(map(column.__getitem__, positions))
        return taken

    def sorted_by(self, name: str) -> 'Table[Row]':
        """The rows in the order of a field."""
        return self.take(sorted(range(len(self)), key=self.column(name).__getitem__))

    def column(self, name: str) -> Sequence[Any]:
        """The values of a field."""
        return self._columns[self._row._fields.index(name)]

    def __len__(self) -> int:
        return len(self._columns[0])

    def __iter__(self) -> Iterator[Row]:
        return map(self._row._make, zip(*self._columns, strict=True))

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.take(range(*at.indices(len(self))))
        return self._row._make(column[at] for column in self._columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._columns == other._columns
