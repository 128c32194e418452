"""It reads every record and says how memory went."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import pipeline_memory
from pipeline_memory import PipelineMemoryConfig


def test_it_reads_all_and_prints_tenths(capsys, monkeypatch):
    monkeypatch.setattr(pipeline_memory, '_SHARD_RECORDS', 1500)
    pipeline_memory.main(PipelineMemoryConfig(count=4000))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ['1,000', '2,000', '3,000', '4,000']
