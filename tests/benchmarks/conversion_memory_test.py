"""The files that it measures with are as many, and as large, as it says; figures come from a real conversion."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import conversion_memory
from conversion_memory import ConversionMemoryConfig


def test_it_writes_as_many_files_as_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion_memory, '_FOLDER_FILES', 600)
    assert 4500 < conversion_memory.write(tmp_path, 1301) < 5500
    assert len(list(tmp_path.rglob('*.jpg'))) == 1301 and len(list(tmp_path.glob('*/*'))) == 6


@pytest.mark.long
def test_it_says_what_a_conversion_took(tmp_path, capsys):
    conversion_memory.main(ConversionMemoryConfig(count='40', folder=str(tmp_path)))
    line, = [line for line in capsys.readouterr().out.splitlines() if line.startswith('40 files of ')]
    parent, worker = (int(part.split()[-2]) for part in line.split(':')[1].replace(',', ' ,').split(' ,'))
    assert 20 < parent < 300 < worker < 1000
    assert list(tmp_path.iterdir()) == []
