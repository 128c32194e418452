"""Columns of a CSV file by name, whatever else is in it."""

import pytest

from boardrec.config import UserError
from boardrec.data import columns_csv


def test_rows_have_lines_and_no_field_is_missing(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes(b'\xef\xbb\xbfpath,more,kind\n"a\nb",x,1\nc\n')  # as Excel writes it, with a break and a short row
    found = [(line, row['path'], row['kind']) for line, row in columns_csv.rows('--f=a.csv', path, ('path', 'kind'))]
    assert found == [(3, 'a\nb', '1'), (4, 'c', '')]
    with pytest.raises(UserError, match=r"^--f=a.csv: its first line must name the columns path,size; it reads 'path,"):
        next(columns_csv.rows('--f=a.csv', path, ('path', 'size')))
