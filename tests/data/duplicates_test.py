"""Pairs by digest and by hash: as brute force finds them, each once, and bounded where images are alike in masses."""

import itertools
import time

import numpy as np
import pytest

from boardrec.data import duplicates


def brute_force(hashes, groups, distance):
    """The pairs, compared one by one."""
    differing = np.bitwise_count(hashes[:, np.newaxis] ^ hashes)
    found = np.triu((differing <= distance) & (groups[:, np.newaxis] != groups), 1)
    return {tuple(pair) for pair in np.argwhere(found).tolist()}


def as_set(pairs):
    """The pairs in either order; each must be there once."""
    ordered = {tuple(sorted(pair)) for pair in pairs.tolist()}
    assert len(ordered) == len(pairs)
    return ordered


def clustered(random, count, flips):
    """Hashes around a few centres, so that there are pairs of each distance, and some that are equal."""
    centres = random.integers(0, 2**64, 12, np.uint64)[random.integers(0, 12, count)]
    for _ in range(flips):
        centres ^= np.uint64(1) << random.integers(0, 64, count).astype(np.uint64)
    return centres


@pytest.mark.parametrize('distance', [0, 1, 4, 8])
@pytest.mark.parametrize('flips', [0, 2, 5, 40])
def test_near_pairs_are_those_of_brute_force(distance, flips):
    random = np.random.default_rng(distance)
    hashes, groups = clustered(random, 600, flips), random.integers(0, 4, 600)
    found = duplicates.near_pairs(hashes, groups, distance)
    assert as_set(found.pairs) == brute_force(hashes, groups, distance)
    assert found.cut == 0


@pytest.mark.parametrize('distance', range(10))
def test_a_copy_is_found_up_to_the_distance_whatever_bits_differ(distance):
    random = np.random.default_rng(0)
    one = random.integers(0, 2**64, 300, np.uint64)
    flipped = [sum(1 << int(bit) for bit in random.choice(64, distance, replace=False)) for _ in one]
    hashes = np.concatenate([one, one ^ np.array(flipped, np.uint64)])
    found = duplicates.near_pairs(hashes, np.repeat([0, 1], 300), 8)
    assert as_set(found.pairs) == ({(i, i + 300) for i in range(300)} if distance <= 8 else set())


def test_no_images_and_one_image_make_no_pairs():
    for count in (0, 1):
        zeros = np.zeros(count, np.uint64)
        assert len(duplicates.near_pairs(zeros, np.zeros(count, np.int64), 8).pairs) == 0
        digests = np.zeros((count, 2), np.uint64)
        of = duplicates.entries(zeros, zeros, zeros)
        assert len(duplicates.equal_pairs(of, digests).pairs) == 0
        pairs, origin, cut = duplicates.members(of, np.zeros((0, 2), np.int64))
        assert (pairs.shape, origin.shape, cut) == ((0, 2), (0,), 0)


def test_entries_hold_each_image_once_the_first_ones_first():
    keys = np.array([5, 3, 5, 3, 5]), np.array([1, 0, 1, 1, 0])
    of = duplicates.entries(*keys)
    assert [of.order[start:start + count].tolist() for start, count in zip(of.starts, of.counts, strict=True)] == [
        [1], [3], [4], [0, 2]]
    assert of.firsts.tolist() == [1, 3, 4, 0]


def test_equal_digests_pair_their_groups_and_each_member_stands_beside_the_first_of_the_other():
    digests = np.array([[1, 1], [1, 2], [1, 1], [1, 1], [2, 1], [1, 1]], np.uint64)
    groups = np.array([0, 0, 0, 1, 1, 2])
    of = duplicates.entries(digests[:, 0], digests[:, 1], groups)
    found = duplicates.equal_pairs(of, digests)
    entry_pairs = {tuple(of.firsts[pair].tolist()) for pair in found.pairs}
    assert entry_pairs == {(0, 3), (0, 5), (3, 5)}
    pairs, origin, cut = duplicates.members(of, found.pairs)
    assert as_set(pairs) == {(0, 3), (2, 3), (0, 5), (2, 5), (3, 5)}
    assert [tuple(of.firsts[found.pairs[number]].tolist()) for number in origin] == [
        (0, 3), (0, 3), (0, 5), (0, 5), (3, 5)]
    assert cut == 0


def test_members_of_both_sides_stand_in_pairs():
    of = duplicates.entries(np.array([0, 0, 0, 1, 1]))
    pairs, origin, _ = duplicates.members(of, np.array([[0, 1]]))
    assert as_set(pairs) == {(0, 3), (1, 3), (2, 3), (0, 4)}
    assert origin.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize('flips', [0, 3])
def test_images_that_are_alike_in_masses_are_compared_in_part_only_and_that_is_told(flips):
    """The hashes are equal, or thousands within a few bits of each other."""
    random, count, start = np.random.default_rng(0), 40_000, time.monotonic()
    hashes = np.zeros(count, np.uint64)
    for _ in range(flips):
        hashes ^= np.uint64(1) << random.integers(0, 64, count).astype(np.uint64)
    found = duplicates.near_pairs(hashes, random.integers(0, 6, count), 2)
    assert 0 < len(found.pairs) <= duplicates.MOST_PAIRS
    assert found.cut > 0
    assert time.monotonic() - start < 30, 'all pairs take minutes'


def test_no_more_pairs_are_returned_than_stated(monkeypatch):
    monkeypatch.setattr(duplicates, 'MOST_PAIRS', 100)
    random = np.random.default_rng(0)
    hashes, groups = clustered(random, 600, 1), random.integers(0, 4, 600)
    found = duplicates.near_pairs(hashes, groups, 4)
    assert len(found.pairs) <= 100 and found.cut > 0
    assert as_set(found.pairs) <= brute_force(hashes, groups, 4)
    of = duplicates.entries(np.repeat([0, 1], 80))
    pairs, origin, cut = duplicates.members(of, np.array([[0, 1]] * 2))
    assert (pairs.tolist(), origin.tolist(), cut) == ([[0, 80]] * 2, [0, 1], 316), 'one stands for each'
    of = duplicates.entries(np.repeat([0, 1, 2], [80, 80, 1]))
    pairs, origin, cut = duplicates.members(of, np.array([[0, 1], [0, 2]]))
    assert (np.bincount(origin).tolist(), cut) == ([1, 80], 158), 'a mass of some leaves the others alone'


def test_a_bursts_members_are_all_compared():
    hashes = np.repeat(np.array([7, 7, 6], np.uint64), 50)
    groups = np.repeat([0, 1, 2], 50)
    found = duplicates.near_pairs(hashes, groups, 1)
    assert found.cut == 0
    assert as_set(found.pairs) == {(a, b) for a, b in itertools.combinations(range(150), 2) if a // 50 != b // 50}
