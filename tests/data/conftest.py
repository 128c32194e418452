"""A record set to damage."""

import pathlib
import shutil

import pytest

from boardrec.data import records


@pytest.fixture
def copy(record_set_path, tmp_path):
    """A copy of the shared record set, to damage."""
    return pathlib.Path(shutil.copytree(record_set_path, tmp_path / 'records'))


@pytest.fixture
def rows(record_set_path):
    """The undamaged index."""
    return list(records.read_index(record_set_path))
