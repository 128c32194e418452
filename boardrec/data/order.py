"""The order of training records: a pure function of (seed, epoch, the record counts of the shards).

Blocks of consecutive records are shuffled, and then the records within windows of consecutive shuffled blocks. So a
reader touches the disk in blocks, holds one window of encoded records in memory, and can start anywhere. Images and
cached features follow the same order, on any number of threads, devices or hosts.
"""

from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """Runs of consecutive records of one shard, in the split's order; each array is int64 [number of blocks]."""

    first: np.ndarray  # position in the split of the block's first record
    records: np.ndarray  # how many records it holds
    shard: np.ndarray  # index among the split's shards


def blocks(shard_records: list[int], block_records: int) -> Blocks:
    """Cuts shards with these record counts into blocks; the last block of a shard may be shorter."""
    first, records, shard, start = [], [], [], 0
    for index, count in enumerate(shard_records):
        for offset in range(0, count, block_records):
            first.append(start + offset)
            records.append(min(block_records, count - offset))
            shard.append(index)
        start += count
    return Blocks(*(np.array(column, np.int64) for column in (first, records, shard)))


def windows(cut: Blocks, *, seed: int, epoch: int, window_blocks: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The epoch's windows as (block indices in reading order [k], permutation of their records [n]).

    Reading the blocks one after the other and taking the records at the permutation's positions gives the epoch's
    order.
    """
    shuffled = _shuffle(np.arange(len(cut.first)), seed, epoch, stream=0)
    result = []
    for start in range(0, len(shuffled), window_blocks):
        chosen = shuffled[start:start + window_blocks]
        positions = np.arange(cut.records[chosen].sum())
        # The stream depends on the window's place, so that equal windows of two epochs or places differ.
        result.append((chosen, _shuffle(positions, seed, epoch, stream=1 + start)))
    return result


def sequence(cut: Blocks, *, seed: int, epoch: int, window_blocks: int) -> np.ndarray:
    """The epoch's order: int64 [records], positions in the split, each once."""
    parts = []
    for chosen, permutation in windows(cut, seed=seed, epoch=epoch, window_blocks=window_blocks):
        read = np.concatenate([np.arange(cut.first[b], cut.first[b] + cut.records[b]) for b in chosen])
        parts.append(read[permutation])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def views(record_ids: np.ndarray, *, seed: int, epoch: int, count: int) -> np.ndarray:
    """Which of `count` views of each record an epoch takes: int64 [records]; each view once in `count` epochs."""
    key = _mix(np.full(1, seed, np.uint64))
    first = _mix(key + record_ids.astype(np.uint64) * _GOLDEN) % np.uint64(count)
    return (first.astype(np.int64) + epoch) % count


def _shuffle(items: np.ndarray, seed: int, epoch: int, *, stream: int) -> np.ndarray:
    """`items` sorted by a hash of (seed, epoch, stream, position): unlike NumPy's generators, fixed for all time."""
    key = np.zeros(1, np.uint64)
    for number in (seed, epoch, stream):
        key = _mix(key ^ np.uint64(number))
    keys = _mix(key + np.arange(len(items), dtype=np.uint64) * _GOLDEN)
    return items[np.argsort(keys, kind='stable')]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's step and output function (Steele, Lea and Flood, OOPSLA 2014), uint64 [n], modulo 2^64."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
