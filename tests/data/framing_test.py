"""Intact records are found among damaged ones, by TensorFlow's own sums."""

import pathlib
import shutil

import numpy as np
import pytest
from record_sets import flip
import tensorflow as tf

from boardrec.data import framing


@pytest.mark.parametrize('bit', [0, 3, 7, 8, 17, 24, 31, 32, 47, 62, 63, 64, 95])
def test_any_flipped_bit_of_a_length_or_its_sum_costs_one_record(record_set_path, tmp_path, rows, bit):
    row = rows[5]
    path = pathlib.Path(shutil.copy(record_set_path / row.shard, tmp_path))
    flip(path, row.offset + bit // 8, bit % 8)
    gaps = [found for found in framing.walk(path) if isinstance(found, framing.Gap)]
    assert [(gap.offset, gap.end, gap.reason) for gap in gaps] == [
        (row.offset, rows[6].offset, 'its length is damaged')]


@pytest.mark.parametrize('block', [20, 1000, 4096, 1 << 20])
def test_a_search_finds_all_records_once_across_its_blocks(record_set_path, tmp_path, rows, monkeypatch, block):
    """Also where much else is zeros, which look like short lengths."""
    own = [row for row in rows if row.shard == rows[0].shard][:5]
    content = (record_set_path / rows[0].shard).read_bytes()[:own[4].offset]
    (tmp_path / 'shard').write_bytes(bytes(1000) + content[:own[2].offset] + bytes(5000) + content[own[2].offset:])
    wanted = [row.offset + 1000 + (5000 if row.record_id >= 2 else 0) for row in own[:4]]
    monkeypatch.setattr(framing, '_BLOCK', block)
    with open(tmp_path / 'shard', 'rb') as file:
        assert list(framing._search(file, 0, (tmp_path / 'shard').stat().st_size)) == wanted
    found = [one.offset for one in framing.walk(tmp_path / 'shard') if isinstance(one, framing.Found)]
    assert found == wanted


def test_the_checksum_is_tensorflows(tmp_path):
    """The published check value of CRC-32C, and a length as the writer frames it."""
    assert framing._crc32c(b'123456789') == 0xE3069283
    for length in (1, 255, 70_000):
        path = tmp_path / str(length)
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(bytes(length))
        block = np.frombuffer(path.read_bytes(), np.uint8)
        assert framing._starts(block, 0, len(block)).tolist() == [0]
        assert framing._starts(block, 0, len(block) - 1).size == 0  # it would not fit
