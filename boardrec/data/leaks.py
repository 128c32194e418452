"""Photographs that lie in two splits or under two labels: found once all shards are built; reported, dropped, refused.

In: the journals of the shards, which hold sha256 and perceptual hash of each file that can be decoded, also of those
that were dropped before. So what is to be dropped is a function of the files alone, and a second run comes to the same.
Files whose hashes are close are decoded again, in worker processes, and count if their pixels are close too.
This module runs in the converter's parent process too, which stays without TensorFlow.
"""

from collections.abc import Iterator, Sequence
import hashlib
import pathlib
from typing import Any, NamedTuple

import numpy as np

from boardrec import progress
from boardrec.config import ConvertConfig, SPLITS, UserError
from boardrec.data import duplicates, files, journal, perceptual, records, scan, shards, source_file, workers

DROP = 'drop_from_train'  # of --on_leak
_PAIRS_A_TASK, _PAIRS_A_ROUND = 128, 1 << 16
_UNREADABLE = float('nan')  # the difference of two images one of which cannot be read any more; tried again


class Photographs(NamedTuple):
    """Every file that can be decoded, in the plans' order."""

    plans: list[shards.ShardPlan]
    classes: list[str]
    places: np.ndarray  # int64 [N], among all files of the plans
    digests: np.ndarray  # uint64 [N, 2], the first half of each sha256
    hashes: np.ndarray  # uint64 [N]
    groups: np.ndarray  # int32 [N], split * number of classes + label
    ends: np.ndarray  # int64 [shards], of the shards among the places
    dropped: list[set[str]]  # of each shard: the files that it was built without

    def found(self, number: int) -> scan.Found:
        """A file as it was found."""
        place = self.places[number]
        shard = int(np.searchsorted(self.ends, place, side='right'))
        return self.plans[shard].found[place - self.ends[shard]]  # from the end: the difference is negative

    def source(self, number: int) -> str:
        """The path of a file."""
        return self.found(number).source

    def split_and_label(self, number: int) -> tuple[int, int]:
        """The numbers of its split and class."""
        return divmod(int(self.groups[number]), len(self.classes))


class Leaks(NamedTuple):
    """The pairs of files that are the same photograph and lie in two splits or under two labels, in order."""

    photographs: Photographs
    pairs: np.ndarray  # int64 [P, 2]: the copy in the earlier split, or with the smaller path, is the first
    differences: np.ndarray  # float32 [P]; -1: equal bytes
    drops: bool

    def rows(self) -> Iterator[records.Duplicate]:
        """The rows of duplicates.csv."""
        for (one, other), difference in zip(self.pairs, self.differences, strict=True):
            sides = [(self.photographs.source(number), SPLITS[split], self.photographs.classes[label])
                     for number in (one, other) for split, label in [self.photographs.split_and_label(number)]]
            yield records.Duplicate(*sides[0], *sides[1], 'near' if difference >= 0 else 'same',
                                    f'{max(0, difference):.3f}', self._action(sides[0][1], sides[1][1]))

    def dropped(self) -> dict[str, str]:
        """{source: reason} of what becomes no record."""
        reasons: dict[str, str] = {}
        for row in self.rows() if self.drops else ():
            same = 'the same photograph' if row.kind == 'same' else 'nearly the same photograph'
            if row.action != 'reported':
                reasons.setdefault(row.source, f'leak: {same} as {row.other}, {_where(row.split, *row[4:6])}')
            if row.action == 'both dropped':
                reasons.setdefault(row.other, f'leak: {same} as {row.source}, {_where(row.other_split, *row[1:3])}')
        return reasons

    def to_rebuild(self) -> list[shards.ShardPlan]:
        """The shards that were built with other files left out."""
        dropped = self.dropped()
        return [one for one, without in zip(self.photographs.plans, self.photographs.dropped, strict=True)
                if without != {source for source in one.found.column('source') if source in dropped}]

    def _action(self, split: str, other_split: str) -> str:
        if not self.drops or split != 'train':
            return 'reported'
        return 'both dropped' if other_split == 'train' else 'dropped'


def _where(own_split: str, split: str, label: str) -> str:
    return f'in {split}' if split != own_split else f'labelled {label}'


def find(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, plans: list[shards.ShardPlan],
         classes: list[str]) -> Leaks:
    """Finds the leaks among the files of the shards, which are built.

    Raises UserError with on_leak=fail if there are any; their list is in the journal's folder then.
    """
    photographs = read(folder, plans, classes)
    pairs, differences, gaps = _find(config, pool, folder, photographs)
    pairs, differences = _in_order(photographs, pairs, differences)
    leaks = Leaks(photographs, pairs, differences, config.on_leak == DROP)
    for gap in gaps:
        progress.say(f'note: {gap}: {records.DUPLICATES} may lack some pairs')
    if config.on_leak == 'fail' and gaps and not len(pairs):
        raise UserError(f'--on_leak=fail: {gaps[0]}, so that nobody knows whether there is a leak; see to that, or '
                        'take --on_leak=report.')
    if config.on_leak == 'fail' and len(pairs):
        records.write_duplicates(folder, leaks.rows())
        raise UserError(f'--on_leak=fail: {_told(leaks)}: see {folder / records.DUPLICATES}; remove copies, or take '
                        '--on_leak=report or --on_leak=drop_from_train.')
    return leaks


def say(leaks: Leaks, output: pathlib.Path) -> None:
    """Says in one sentence what was found, if anything was."""
    if len(leaks.pairs):
        progress.say(f'{_told(leaks)}: {output / records.DUPLICATES}')


def read(folder: pathlib.Path, plans: list[shards.ShardPlan], classes: list[str]) -> Photographs:
    """What the journals know of every file that can be decoded."""
    numbers = {name: number for number, name in enumerate(classes)}
    total, count, end, ends, dropped = sum(len(one.found) for one in plans), 0, 0, [], []
    # Filled in place: parts that are joined in the end take twice the memory.
    places, hashes, groups = np.empty(total, np.int64), np.empty(total, np.uint64), np.empty(total, np.int32)
    digests = np.empty((total, 2), np.uint64)
    for one in plans:
        built = journal.load(folder, one.file)
        dropped.append(set(built.dropped()))
        known = [(place, item) for place, item in enumerate(built.sources) if item.perceptual_hash]
        own = slice(count, count + len(known))
        places[own] = [end + place for place, _ in known]
        digests[own].flat = np.frombuffer(bytes.fromhex(''.join(item.sha256[:32] for _, item in known)), '>u8')
        hashes[own] = np.frombuffer(bytes.fromhex(''.join(item.perceptual_hash for _, item in known)), '>u8')
        groups[own] = [SPLITS.index(one.split) * len(classes) + numbers[item.label] for _, item in known]
        count += len(known)
        end += len(built.sources)
        ends.append(end)
    return Photographs(plans, classes, places[:count], digests[:count], hashes[:count], groups[:count], np.array(ends),
                       dropped)


def _find(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, photographs: Photographs
          ) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pairs int64 [P, 2], their differences float32 [P], and in words what could not be looked at."""
    digests, groups = photographs.digests, photographs.groups
    of = duplicates.entries(digests[:, 0], digests[:, 1], groups)
    same = duplicates.equal_pairs(of, digests)
    near, differences, unread = _near(config, pool, folder, photographs, of.firsts)
    pairs, origin, cut = duplicates.members(of, np.concatenate([same.pairs, near.pairs]))
    differences = np.concatenate([np.full(len(same.pairs), -1, np.float32), differences])[origin]
    cut += same.cut + near.cut
    gaps = [f'so many images are alike that {cut:,} comparisons were left out'] if cut else []
    return pairs, differences, gaps + ([f'{unread:,} comparisons failed, as files cannot be read any more'] if unread
                                       else [])


def _near(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, photographs: Photographs,
          firsts: np.ndarray) -> tuple[duplicates.Found, np.ndarray, int]:
    """The pairs of these files, as positions among them, whose bytes differ and whose pixels hardly do.

    With their differences, and how many others could not be compared.
    """
    sum_of_all = hashlib.sha256()
    for values in photographs[3:6]:
        sum_of_all.update(values[firsts])
    key, digests = sum_of_all.hexdigest(), photographs.digests
    earlier = _read_compared(folder)
    if earlier.get('key') == key:
        found = duplicates.Found(earlier['pairs'], int(earlier['cut']))
    else:
        # In a worker, which has room for it: of a million images it takes 230 MiB.
        found = pool.call(duplicates.near_pairs, photographs.hashes[firsts], photographs.groups[firsts],
                          perceptual.MOST_BITS)
    pairs = found.pairs[np.any(np.diff(digests[firsts[found.pairs]], axis=1), axis=(1, 2))]
    marks = _marks(*digests[firsts[pairs.T]])
    differences = _known(earlier, marks)
    unknown = np.flatnonzero(np.isnan(differences))
    if len(unknown):
        differences[unknown] = _compare(config, pool, photographs, firsts[pairs[unknown]])
    if earlier.get('key') != key or len(unknown):
        _write_compared(folder, key=key, pairs=pairs, cut=found.cut, marks=marks, differences=differences)
    close = differences <= perceptual.SAME
    return duplicates.Found(pairs[close], found.cut), differences[close], int(np.isnan(differences).sum())


def _compare(config: ConvertConfig, pool: workers.Pool, photographs: Photographs, pairs: np.ndarray) -> np.ndarray:
    """The differences of these pairs of files, float32 [P], measured in the pool's processes."""
    limits = shards.limits_of(config)
    differences = np.full(len(pairs), _UNREADABLE, np.float32)
    with progress.bar('comparing', total=len(pairs), unit='pairs') as bar:
        for start in range(0, len(pairs), _PAIRS_A_ROUND):
            stop = min(len(pairs), start + _PAIRS_A_ROUND)
            begins = range(start, stop, _PAIRS_A_TASK)
            tasks = [(config.root, limits, [tuple(map(photographs.found, pair))
                                            for pair in pairs[begin:min(stop, begin + _PAIRS_A_TASK)]])
                     for begin in begins]
            for task, result in pool.run(compare, tasks):
                differences[begins[task]:begins[task] + len(result)] = result
                bar.update(len(result))
    return differences


def compare(task: tuple[str, tuple, Sequence[tuple[scan.Found, scan.Found]]], skipped: dict[int, str],
            watch: workers.Watch) -> np.ndarray:
    """How much the files of each pair differ, float32 [P]; NaN where one cannot be read. In a worker process."""
    from boardrec.data import images  # imports TensorFlow: workers only
    root, (max_bytes, *limits), pairs = task
    thumbnails: dict[str, np.ndarray | None] = {}

    def thumbnail(item: scan.Found) -> np.ndarray | None:
        if item.source not in thumbnails:
            try:
                data = source_file.read(root, item, max_bytes).data
                thumbnails[item.source] = images.thumbnail(data or b'', images.Limits(*limits))
            except (OSError, MemoryError, images.Rejected):  # changed since its shard was built
                thumbnails[item.source] = None
        return thumbnails[item.source]

    differences = []
    for number, pair in enumerate(pairs):
        watch.begin(number)
        both = [None] if number in skipped else [thumbnail(item) for item in pair]
        differences.append(_UNREADABLE if any(one is None for one in both) else perceptual.difference(*both))
        watch.end()
    return np.array(differences, np.float32)


def _in_order(photographs: Photographs, pairs: np.ndarray, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns each pair so that the copy in the earlier split, or with the smaller path, is the first; sorts by paths."""
    named = np.zeros(len(photographs.places), bool)
    named[pairs] = True
    numbers = np.flatnonzero(named)
    names = [photographs.source(number) for number in numbers]
    ranks = np.zeros(len(named), np.int64)  # by path
    splits = photographs.groups // len(photographs.classes)
    ranks[numbers[sorted(range(len(names)), key=names.__getitem__)]] = np.arange(len(names))
    turned = np.diff((splits.astype(np.int64) * len(names) + ranks)[pairs], axis=1)[:, 0] < 0
    pairs[turned] = pairs[turned, ::-1]
    by_path = np.lexsort(ranks[pairs.T[::-1]])
    return pairs[by_path], differences[by_path]


def _told(leaks: Leaks) -> str:
    first = next(leaks.rows())
    count, dropped = len(leaks.pairs), '; training copies are dropped' if leaks.drops else ''
    return (f'{count:,} leak{"s" * (count > 1)} (the same photograph in two splits or under two labels), the first '
            f'{first.source} and {first.other}{dropped}')


def _marks(digests: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A number for each two images that is the same in either order, uint64 [P]."""
    return (digests[:, 0] ^ others[:, 0]) * np.uint64(0x9e3779b97f4a7c15) + (digests[:, 1] + others[:, 1])


def _known(earlier: dict[str, Any], marks: np.ndarray) -> np.ndarray:
    """The differences that were measured before, float32 [P]; NaN for all others."""
    differences = np.full(len(marks), np.nan, np.float32)
    if earlier:
        order = np.argsort(earlier['marks'])
        sorted_marks = earlier['marks'][order]
        at = np.searchsorted(sorted_marks, marks)
        known = at < len(order)
        known[known] = sorted_marks[at[known]] == marks[known]
        differences[known] = earlier['differences'][order[at[known]]]
    return differences


def _read_compared(folder: pathlib.Path) -> dict[str, Any]:
    """What an earlier conversion compared; nothing if it did not, or by another measure."""
    try:
        with open(folder / journal.COMPARED, 'rb') as file, np.load(file) as values:
            compared = dict(values)
    except Exception:  # zipfile and numpy raise all sorts for what is damaged
        return {}
    return compared if compared.get('version') == perceptual.VERSION else {}


def _write_compared(folder: pathlib.Path, **values: Any) -> None:
    with files.atomic_write(folder / journal.COMPARED) as file:
        np.savez(file, version=perceptual.VERSION, **values)
