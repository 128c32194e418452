"""Tools are scripts that import each other by name, from their own folder; and their tests never reach a network."""

import os
import pathlib
import sys

import pytest

TOOLS = pathlib.Path(__file__).parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'data'))  # conversions


@pytest.fixture
def tool_path():
    """A function from a tool's name to its path."""
    return lambda name: TOOLS / name


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The project's cache, empty, for this test and its subprocesses; pip finds packages in `tmp_path`/index alone."""
    index = tmp_path / 'index'
    index.mkdir()
    for name, value in {'BOARDREC_CACHE': tmp_path / 'cache', 'KERAS_HOME': tmp_path / 'keras', 'PIP_NO_INDEX': 1,
                        'PIP_FIND_LINKS': index, 'PIP_CONFIG_FILE': os.devnull}.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / 'cache'
