"""Which of many images may be the same, by sums of their bytes and by perceptual hashes, in nearly linear time.

In: arrays with a row an image: digests uint64 [N, 2] (the first half of the bytes' sha256), hashes uint64 [N], groups
int32 [N], which number split and label. Out: pairs whose images lie in two groups. Of images that are alike in masses,
such as black ones, a bounded number is compared.
"""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import numpy as np

MOST_PAIRS = 2_000_000  # that a search returns: 32 MB
_MOST_LIKE_IT = 128  # images of one key that an image is compared with
_MOST_MEMBERS = 64  # images of one hash and group that are compared with those of another
_KEPT = 3  # blocks of bits, of distance + 3, that no difference falls into: they make a key of about 17 bits


class Entries(NamedTuple):
    """Images that are the same by some keys."""

    order: np.ndarray  # int64 [N], of the images: those of an entry stand together
    starts: np.ndarray  # int64 [entries], in `order`
    counts: np.ndarray  # int64 [entries]

    @property
    def firsts(self) -> np.ndarray:
        """The first image of each entry."""
        return self.order[self.starts]


class Found(NamedTuple):
    """What a search came to."""

    pairs: np.ndarray  # int64 [P, 2]
    cut: int  # how many comparisons were left out, at least


def entries(*keys: np.ndarray) -> Entries:
    """Puts images with equal keys together, by the first key first, in the order of the images within."""
    order = np.lexsort(keys[::-1])
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.any([key[order[1:]] != key[order[:-1]] for key in keys], axis=0)
    starts = np.flatnonzero(is_first)
    return Entries(order, starts, np.diff(starts, append=len(order)))


def equal_pairs(of: Entries, digests: np.ndarray) -> Found:
    """The pairs of entries whose digests are equal; `of` are entries by digest and group."""
    first = digests[of.firsts]
    changes = np.any(first[1:] != first[:-1], axis=1)
    pairs, cut = _collect(_alike(np.concatenate([[0], np.cumsum(changes)])))
    return Found(pairs, cut)


def near_pairs(hashes: np.ndarray, groups: np.ndarray, distance: int) -> Found:
    """The pairs of two groups whose hashes differ in up to `distance` bits.

    The bits are cut into distance + 3 blocks; whatever bits differ, three blocks at least are equal. So images that
    share three blocks, for each choice of three, are all that need comparing (Norouzi, Punjani and Fleet, 'Fast search
    in Hamming space with multi-index hashing', 2012, with three blocks in place of one, for fewer comparisons).
    """
    of = entries(hashes, groups)
    first, group = hashes[of.firsts], groups[of.firsts]
    found = itertools.chain(_alike(first), _near(first, group, distance))
    pairs, cut = _collect(found)
    members = np.minimum(of.counts, _MOST_MEMBERS)
    cut += int((of.counts[pairs].prod(axis=1) - members[pairs].prod(axis=1)).sum())
    counts = members[pairs]
    fits = _fit(counts.prod(axis=1))
    cut += int((counts[~fits].prod(axis=1) - 1).sum())
    counts[~fits] = 1
    left, right = _products(counts[:, 0], counts[:, 1])
    starts = of.starts[np.repeat(pairs, counts.prod(axis=1), axis=0)]
    return Found(of.order[starts + np.stack([left, right], axis=1)], cut)


def members(of: Entries, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Pairs of entries as pairs of images, so that each image of either stands beside the first of the other.

    Returns them, int64 [P, 2], the position in `pairs` that each comes from, and how many were left out.
    """
    counts = of.counts[pairs]
    totals = counts.sum(axis=1) - 1
    fits = _fit(totals)
    cut = int((totals[~fits] - 1).sum())
    counts[~fits], totals[~fits] = 1, 1
    origin = np.repeat(np.arange(len(pairs)), totals)
    number = np.arange(len(origin)) - np.repeat(np.cumsum(totals) - totals, totals)
    left = np.where(number < counts[origin, 0], number, 0)
    right = np.where(number < counts[origin, 0], 0, number - counts[origin, 0] + 1)
    return of.order[of.starts[pairs[origin]] + np.stack([left, right], axis=1)], origin, cut


def _alike(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields (left, right, left out): positions of equal keys, int64 [P] each; `keys` is sorted."""
    ends = np.flatnonzero(np.concatenate([keys[1:] != keys[:-1], [True]])) if len(keys) else np.zeros(0, np.int64)
    rest = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(keys))  # how many follow of the same key
    left = np.arange(len(keys))
    for lag in range(1, _MOST_LIKE_IT + 1):
        left = left[rest[left] >= lag]
        if not left.size:
            return
        yield left, left + lag, 0
    yield left[:0], left[:0], int((rest[left] - _MOST_LIKE_IT).sum())


def _near(hashes: np.ndarray, groups: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields (left, right, left out) of hashes that are not equal, each pair once."""
    edges = np.linspace(0, 64, distance + _KEPT + 1).round().astype(int)
    blocks = np.array([(1 << int(end)) - (1 << int(start)) for start, end in itertools.pairwise(edges)], np.uint64)
    places, numbers = np.uint64(32), np.arange(len(hashes), dtype=np.uint64)
    for kept in itertools.combinations(range(len(blocks)), _KEPT):
        keys = np.zeros(len(hashes), np.uint64)
        for block in kept:
            keys = (keys << np.uint64(edges[block + 1] - edges[block])) | (
                (hashes & blocks[block]) >> np.uint64(edges[block]))
        keys = np.sort((keys << places) | numbers)  # much faster than an argsort, and as good
        at = (keys & np.uint64(2**32 - 1)).astype(np.int64)
        of_place = hashes[at]
        for left, right, cut in _alike(keys >> places):
            close = np.flatnonzero(np.bitwise_count(of_place[left] ^ of_place[right]) <= distance)
            left, right = at[left[close]], at[right[close]]
            wanted = (groups[left] != groups[right]) & (hashes[left] != hashes[right])
            left, right = left[wanted], right[wanted]
            differing = hashes[left] ^ hashes[right]
            # A pair that shares more than three blocks is found at the first three.
            equal = (differing[:, np.newaxis] & blocks) == 0
            first = (equal & (np.cumsum(equal, axis=1) <= _KEPT))[:, kept].all(axis=1)
            yield left[first], right[first], cut


def _collect(found: Iterator[tuple[np.ndarray, np.ndarray, int]]) -> Found:
    """Puts what is found together, up to MOST_PAIRS, in order."""
    parts, count, cut = [np.zeros((0, 2), np.int64)], 0, 0
    for left, right, left_out in found:
        cut += left_out + max(0, len(left) - (MOST_PAIRS - count))
        parts.append(np.stack([np.minimum(left, right), np.maximum(left, right)], axis=1)[:MOST_PAIRS - count])
        count += len(parts[-1])
        if count == MOST_PAIRS:
            cut += 1  # at least: the search ends here
            break
    pairs = np.concatenate(parts)
    return Found(pairs[np.lexsort(pairs.T[::-1])], cut)


def _fit(totals: np.ndarray) -> np.ndarray:
    """Which of these may be had in full, so that all come to MOST_PAIRS with one of each other: the smaller ones."""
    order, fits = np.argsort(totals, kind='stable'), np.ones(len(totals), bool)
    fits[order] = np.cumsum(totals[order] - 1) <= MOST_PAIRS - len(totals)
    return fits


def _products(lefts: np.ndarray, rights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every (i, j) with i < left and j < right, for one pair of counts after the other: int64 [P] each."""
    totals = lefts * rights
    number = np.arange(totals.sum()) - np.repeat(np.cumsum(totals) - totals, totals)
    wide = np.repeat(rights, totals)
    return number // wide, number % wide
