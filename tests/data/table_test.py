"""Rows kept by columns are the rows that were given, in any selection and order."""

import pickle
import tracemalloc
from typing import NamedTuple

import pytest

from boardrec.data.table import Table


class Pair(NamedTuple):
    """A row."""

    name: str
    number: int = -1


ROWS = [Pair('c', 3), Pair('a\udcff\n図'), Pair('b', -2**63), Pair('', 2**63 - 1)]


def test_a_table_holds_the_rows_that_were_given():
    table = Table(Pair, ROWS)
    assert list(table) == ROWS and len(table) == 4 and table
    assert table[1] == ROWS[1] and type(table[1]) is Pair and table[-1] == ROWS[-1]
    assert list(table.column('number')) == [row.number for row in ROWS]
    with pytest.raises(IndexError):
        table[4]
    assert not Table(Pair) and list(Table(Pair)) == []


def test_rows_are_taken_in_any_order():
    table = Table(Pair, ROWS)
    assert list(table.take([2, 0, 2])) == [ROWS[2], ROWS[0], ROWS[2]]
    assert list(table[::-1]) == ROWS[::-1] and list(table[1:3]) == ROWS[1:3]
    assert list(table.sorted_by('name')) == sorted(ROWS)
    assert [row.number for row in table.sorted_by('number')] == sorted(row.number for row in ROWS)


def test_tables_are_equal_by_their_rows_and_travel_to_other_processes():
    table = Table(Pair, ROWS)
    assert pickle.loads(pickle.dumps(table)) == table == Table(Pair, ROWS)
    assert table != Table(Pair, ROWS[:3]) and table != Table(Pair, ROWS[::-1])


def test_a_row_of_another_kind_is_refused():
    table = Table(Pair)
    with pytest.raises(TypeError):
        table.append(Pair('a', 'no number'))


def test_a_row_takes_eight_bytes_a_field_beside_its_texts():
    names = [f'name {number}' for number in range(10_000)]
    tracemalloc.start()
    try:
        table = Table(Pair, (Pair(name, 10**18 + number) for number, name in enumerate(names)))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 16 <= used / len(table) < 20, 'a million files are held so: as tuples in a list they take 130 MB more'
