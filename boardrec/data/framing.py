"""The framing of a shard's records, walked over damage: what is intact is found, what is not is passed over and told.

A TFRecord is a uint64 length, the masked CRC32C of these 8 bytes, the data, the masked CRC32C of the data; all of it
little-endian. TensorFlow's reader checks both sums in C++ and stops at the first that does not fit. Where the next
record begins is then looked for here: at the end that the length names, if its sum fits, else at every byte. The sum of
8 bytes is linear in them, so that NumPy computes it for all places of a block at once.
"""

from collections.abc import Iterator
import functools
import os
from typing import BinaryIO, NamedTuple

import numpy as np

from boardrec.data import tfrecord

_HEADER = 12  # bytes: the length and its sum
_BLOCK = 1 << 20  # bytes that are searched at once
_POLYNOMIAL = 0x82F63B78  # of CRC32C, reflected
_MASK_DELTA = 0xA282EAD8  # what TFRecord adds to a sum, rotated by 15 bits, lest sums of sums go wrong


class Found(NamedTuple):
    """An intact record."""

    offset: int  # bytes from the file's start
    data: bytes  # the serialised Example

    @property
    def data_offset(self) -> int:
        """Where the data begins, in bytes from the file's start."""
        return self.offset + _HEADER


class Gap(NamedTuple):
    """Bytes that hold no intact record."""

    offset: int
    end: int
    reason: str  # of a record that begins there


def walk(path: str | os.PathLike) -> Iterator[Found | Gap]:
    """Yields all of a shard in order, a record at a time. Raises OSError where the file cannot be read."""
    position, size = 0, os.path.getsize(path)
    with open(path, 'rb') as file:
        while position < size:
            for data in tfrecord.read_intact(path, position):
                yield Found(position, data)
                position += len(data) + tfrecord.FRAMING_BYTES
            if position < size:
                gap = _gap(file, position, size)
                yield gap
                position = gap.end


def _gap(file: BinaryIO, position: int, size: int) -> Gap:
    """From a damaged record to where the next may begin."""
    block = _read(file, position, _HEADER)
    if not _starts(block, 0, 2**62).size:
        reason = 'the file ends within it' if len(block) < _HEADER else 'its length is damaged'
    elif not _starts(block, position, size).size:
        reason = 'the file ends within it'
    else:
        reason = 'its bytes are damaged'
        end = position + int(block[:8].view('<u8')[0]) + tfrecord.FRAMING_BYTES
        # Not by the length alone: bytes may have gone, or others come, within the record.
        if end == size or _starts(_read(file, end, _HEADER), end, size).size:
            return Gap(position, end, reason)
    return Gap(position, next(_search(file, position + 1, size), size), reason)


def _search(file: BinaryIO, position: int, size: int) -> Iterator[int]:
    """The offsets from `position` on at which a length with its sum stands."""
    while position + _HEADER <= size:
        block = _read(file, position, _BLOCK)
        if len(block) < _HEADER:  # somebody cuts the file meanwhile
            return
        yield from _starts(block, position, size).tolist()
        position += len(block) - _HEADER + 1


def _starts(block: np.ndarray, offset: int, size: int) -> np.ndarray:
    """The offsets at which a length and its sum stand in a block, uint8 [N], that lies at `offset`: int64 [M].

    Only of records that are not empty and end within `size`.
    """
    count = len(block) - _HEADER + 1
    if count <= 0:
        return np.empty(0, np.int64)
    zeros = [place for place in (7, 6, 5, 4) if size < 256**place]  # what is left after these are few places
    places = np.flatnonzero(np.logical_and.reduce([block[place:place + count] == 0 for place in zeros])
                            if zeros else np.ones(count, bool))
    lengths = sum(block[places + k].astype(np.uint64) << np.uint64(8 * k) for k in range(8))
    room = size - tfrecord.FRAMING_BYTES - offset - places
    places = places[(lengths > 0) & (room > 0) & (lengths <= np.maximum(room, 0).astype(np.uint64))]
    tables, zero = _tables()
    sums = np.full(len(places), zero, np.uint32)
    stored = np.zeros(len(places), np.uint32)
    for k in range(8):
        sums ^= tables[k][block[places + k]]
    for k in range(4):
        stored |= block[places + 8 + k].astype(np.uint32) << np.uint32(8 * k)
    masked = (sums >> np.uint32(15) | sums << np.uint32(17)) + np.uint32(_MASK_DELTA)
    return offset + places[masked == stored]


@functools.cache
def _tables() -> tuple[np.ndarray, int]:
    """What each value of each of 8 bytes changes of their CRC32C, uint32 [8, 256]; and that of 8 zeros."""
    zero = _crc32c(bytes(8))
    tables = [[_crc32c(bytes(k) + bytes([value]) + bytes(7 - k)) ^ zero for value in range(256)] for k in range(8)]
    return np.array(tables, np.uint32), zero


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _read(file: BinaryIO, offset: int, count: int) -> np.ndarray:
    file.seek(offset)
    return np.frombuffer(file.read(count), np.uint8)
