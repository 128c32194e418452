"""The order of training records: a pure function of (seed, epoch, window, the record counts of the shards).

Blocks of consecutive records are shuffled and laid end to end; the row is cut into LANES equal parts; records are
shuffled within windows of each lane; and the lanes take turns, a record each. So a stretch of the order that is a
window of each lane consists of blocks that are whole but at the lanes' and windows' ends, which a reader takes from the
disk together; it can start anywhere; and a host that takes every n-th record needs only the blocks of its own lanes,
while the order is the same for any number of hosts. Images and cached features follow the same order.
"""

from typing import NamedTuple

import numpy as np

LANES = 24  # where this is no multiple of the hosts' number, or a split has one lane, they read of each other's blocks


class Blocks(NamedTuple):
    """Runs of consecutive records of one shard, in the split's order; each array is int64 [number of blocks]."""

    first: np.ndarray  # position in the split of the block's first record
    records: np.ndarray  # how many records it holds


def blocks(shard_records: list[int], block_records: int) -> Blocks:
    """Cuts shards with these record counts into blocks; the last block of a shard may be shorter."""
    first, records, start = [], [], 0
    for count in shard_records:
        for offset in range(0, count, block_records):
            first.append(start + offset)
            records.append(min(block_records, count - offset))
        start += count
    return Blocks(np.array(first, np.int64), np.array(records, np.int64))


def sequence(cut: Blocks, *, seed: int, epoch: int, window_records: int) -> np.ndarray:
    """The epoch's order: int64 [records], positions in the split, each once."""
    shuffled = np.argsort(_keys(len(cut.first), seed, epoch, stream=0), kind='stable')
    counts = cut.records[shuffled]
    ends = np.cumsum(counts)
    within_block = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
    read = np.repeat(cut.first[shuffled], counts) + within_block

    lanes, window = _lanes_and_window(cut, window_records)
    sizes = np.full(lanes, len(read) // lanes) + (np.arange(lanes) < len(read) % lanes)
    lane = np.repeat(np.arange(lanes), sizes)
    within_lane = np.arange(len(read)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    mixed = read[np.lexsort((_keys(len(read), seed, epoch, stream=1), within_lane // window, lane))]
    return mixed[np.lexsort((lane, within_lane))]


def round_records(cut: Blocks, window_records: int) -> int:
    """How many records make a round: whatever multiple of it the order is cut at, windows stay whole."""
    lanes, window = _lanes_and_window(cut, window_records)
    return lanes * window


def views(record_ids: np.ndarray, *, seed: int, epoch: int, count: int) -> np.ndarray:
    """Which of `count` views of each record an epoch takes: int64 [records]; each view once in `count` epochs.

    A count of 0 stands for views without end, a new one each epoch.
    """
    if not count:
        return np.full(len(record_ids), epoch, np.int64)
    key = _mix(np.full(1, seed, np.uint64))
    first = _mix(key + record_ids.astype(np.uint64) * _GOLDEN) % np.uint64(count)
    return (first.astype(np.int64) + epoch) % count


def _lanes_and_window(cut: Blocks, window_records: int) -> tuple[int, int]:
    """The number of lanes, and the records of a lane's window: whole blocks, if `window_records` over all permit it."""
    total, block = int(cut.records.sum()), int(cut.records.max(initial=1))
    if total <= window_records:
        return 1, max(1, total)  # a uniform shuffle
    lanes = LANES if total >= LANES * block else 1  # shorter lanes would be ever the same parts of blocks
    window = max(1, window_records // lanes)
    return lanes, max(window // block * block, min(window, block))


def _keys(count: int, seed: int, epoch: int, *, stream: int) -> np.ndarray:
    """Random numbers to sort by, uint64 [count]: unlike those of NumPy's generators, fixed for all time."""
    key = np.zeros(1, np.uint64)
    for number in (seed, epoch, stream):
        key = _mix(key ^ np.uint64(number))
    return _mix(key + np.arange(count, dtype=np.uint64) * _GOLDEN)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's step and output function (Steele, Lea and Flood, OOPSLA 2014), uint64 [n], modulo 2^64."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
