"""The order of training records: a permutation, pinned for ever, and nearly as good as a uniform shuffle.

Runs that were interrupted rely on the order: if a pinned value below must change, the format of the record set or of
the run must change its version with it. To renew them, print what the test compares and paste it.
"""

from collections import Counter
import hashlib

import numpy as np
import pytest

from boardrec.data import order


def test_blocks_are_runs_of_one_shards_records():
    cut = order.blocks([5, 0, 4, 1], 2)
    np.testing.assert_array_equal(cut.first, [0, 2, 4, 5, 7, 9])
    np.testing.assert_array_equal(cut.records, [2, 2, 1, 2, 2, 1])
    assert {column.dtype for column in cut} == {np.dtype(np.int64)}


def random_cases(count):
    random = np.random.default_rng(4)
    for _ in range(count):
        yield {'shards': random.integers(0, 40, random.integers(0, 8)).tolist(), 'block': int(random.integers(1, 40)),
               'seed': int(random.integers(0, 2**32)), 'epoch': int(random.integers(0, 1000)),
               'window': int(random.integers(1, 400))}


def test_any_counts_seed_epoch_and_window_give_a_permutation():
    for case in random_cases(300):
        cut = order.blocks(case['shards'], case['block'])
        got = order.sequence(cut, seed=case['seed'], epoch=case['epoch'], window_records=case['window'])
        assert got.dtype == np.int64
        np.testing.assert_array_equal(np.sort(got), np.arange(sum(case['shards'])), err_msg=str(case))


def test_any_stretch_between_two_rounds_is_made_of_whole_blocks_and_those_that_lanes_share():
    """A round is a window of each of 24 lanes, as long as 2 blocks: 2 whole ones, or one between two cut ones.

    So 24 * (2 + 1) = 72 runs of consecutive records at most, but that the shorter blocks at the ends of shards may make
    a fourth, and neighbours on disk one run of two. 70 is the most here, and in 2,400 rounds of more seeds; a uniform
    permutation has 1,290.
    """
    def runs(got):
        stretches = [np.sort(got[start:start + length]) for start in range(0, len(got) - length + 1, length)]
        return [1 + np.count_nonzero(np.diff(stretch) != 1) for stretch in stretches]

    cut = order.blocks([600] * 10 + [590] * 6 + [460], 32)
    length, total = order.round_records(cut, 2048), int(cut.records.sum())
    assert (length, total) == (order.LANES * 2 * 32, 10_000)
    for seed in range(5):
        for epoch in range(5):
            assert max(runs(order.sequence(cut, seed=seed, epoch=epoch, window_records=2048))) <= 72, (seed, epoch)
    assert min(runs(np.random.default_rng(0).permutation(total))) > 1000


def test_a_split_that_fits_the_window_is_shuffled_as_a_whole():
    """Each of 5,000 permutations of 5 records is one of 120; chi-squared below its 0.999 quantile for 119 degrees."""
    cut = order.blocks([2, 3], 2)
    seen = Counter(tuple(order.sequence(cut, seed=1, epoch=epoch, window_records=5)) for epoch in range(5000))
    assert len(seen) == 120
    assert sum((count - 5000 / 120) ** 2 for count in seen.values()) / (5000 / 120) < 174


def test_pinned_order_of_a_small_set():
    cut = order.blocks([10, 3, 0, 7], 4)
    got = [order.sequence(cut, seed=1, epoch=epoch, window_records=12).tolist() for epoch in (0, 1)]
    assert got == GOLDEN_SMALL


def test_pinned_order_of_a_large_set():
    cut = order.blocks([1000, 999, 1, 312], 32)
    got = hashlib.sha256()
    for seed, epoch, window in [(0, 0, 2048), (0, 1, 2048), (2**32 - 1, 99, 1)]:
        got.update(order.sequence(cut, seed=seed, epoch=epoch, window_records=window).astype('<i8').tobytes())
    assert got.hexdigest() == GOLDEN_LARGE


GOLDEN_SMALL = [
    [12, 6, 7, 5, 13, 4, 15, 16, 11, 10, 8, 14, 18, 19, 3, 9, 2, 0, 1, 17],
    [6, 19, 11, 8, 17, 18, 10, 9, 5, 12, 7, 4, 3, 2, 14, 13, 0, 15, 1, 16],
]
GOLDEN_LARGE = '045686928bf12e5af91d749261974f4fc4e7c40eda2d63907075cfcf690b8b5a'


def test_the_mixing_function_is_splitmix64():
    """Published outputs for the seed 1234567: rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert order._mix(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_each_seed_and_epoch_has_an_order_of_its_own():
    cut = order.blocks([40, 40], 8)
    orders = {(seed, epoch): tuple(order.sequence(cut, seed=seed, epoch=epoch, window_records=32))
              for seed in range(8) for epoch in range(8)}
    assert len(set(orders.values())) == len(orders)
    assert orders[3, 5] == tuple(order.sequence(cut, seed=3, epoch=5, window_records=32)), 'a pure function'


# A set sorted by class, as conversion of a sorted folder without our hash would leave it: 5,000 of one, then 5,000 of
# the other, in shards of 500, blocks of 32 (320 blocks), windows of 2,048 records (64 for each of 24 lanes).
SORTED = order.blocks([500] * 20, 32)
N, WINDOW = 10_000, 2048


def sequences(count):
    return [order.sequence(SORTED, seed=seed, epoch=epoch, window_records=WINDOW)
            for seed in range(count // 5) for epoch in range(5)]


def test_records_move_as_far_as_in_a_uniform_shuffle():
    """Uniform: the mean of |new - old| is (N^2 - 1) / 3N, or N/3.

    Blocks move together, so that one epoch's mean is that of 320 independent ones: a place's displacement has a
    standard deviation of N / sqrt(18), the mean's is N / sqrt(18 * 320) = 0.013 N, and over 25 epochs 0.0026 N.
    Allowed: four of these, 0.011 N.
    """
    moved = [np.abs(got - np.arange(N)).mean() / N for got in sequences(25)]
    assert np.mean(moved) == pytest.approx(1 / 3, abs=0.011)
    assert 0.003 < np.std(moved) < 0.04, 'epochs differ, none is far off'


def test_classes_alternate_as_in_a_uniform_shuffle():
    """Uniform: N/2 + 1 runs of equal class, standard deviation sqrt(N) / 2 = 50.

    The mean is as near (5,027 over 200 epochs). A lane stays in the same two or three blocks for 64 turns, so that
    neighbouring lanes have a pattern for as long, and single epochs differ more: a deviation of 187. Allowed: four
    standard errors over 25 epochs, 150 runs; four deviations for each.
    """
    runs = [1 + np.count_nonzero(np.diff(got >= N // 2)) for got in sequences(25)]
    assert np.mean(runs) == pytest.approx(N / 2 + 1, abs=150)
    assert np.max(np.abs(np.array(runs) - N / 2)) < 4 * 187


def test_batches_hold_the_classes_nearly_as_in_a_uniform_shuffle():
    """Uniform: a class's share of a batch of 64 has a variance of 1/4 / 64; here 1.55 times that over 200 epochs.

    One epoch's figure has a deviation of 0.6, that of 25 epochs 0.12. Allowed: four of these. Windows of 64 blocks, no
    lanes, give 1 + 63 * 31 / 2047 = 1.95: two records of a batch are of one block in 31 of 2,047 cases.
    """
    shares = [(got[:N // 64 * 64] >= N // 2).reshape(-1, 64).mean(axis=1) for got in sequences(25)]
    assert np.mean((np.array(shares) - 0.5) ** 2) / (0.25 / 64) == pytest.approx(1.55, abs=0.48)


def test_neighbours_on_disk_are_parted():
    """They stay in one round, because they are read together, but rarely in one batch of 64."""
    places = np.argsort(sequences(5)[0])
    apart = np.abs(np.diff(places))
    assert np.median(apart) > 300
    assert np.mean(apart < 64) < 0.09  # 2 * 64 / 1,536 is what chance gives in a round


def test_every_place_is_as_likely_for_every_record():
    """Over 6,000 epochs of 6 equal blocks of 2, each record is first, second, ... 500 times.

    Chi-squared with 121 degrees of freedom has mean 121 and standard deviation sqrt(242); blocks bind pairs, which can
    double the deviation. Allowed: four of these.
    """
    cut, epochs = order.blocks([12], 2), 6000
    seen = np.zeros((12, 12))
    for epoch in range(epochs):
        seen[np.arange(12), order.sequence(cut, seed=7, epoch=epoch, window_records=6)] += 1
    statistic = ((seen - epochs / 12) ** 2 / (epochs / 12)).sum()
    assert abs(statistic - 121) < 4 * 2 * np.sqrt(242)


def test_one_epochs_order_says_nothing_about_the_next():
    """Ranks of 320 independent blocks: two epochs' correlation has a standard deviation of 1 / sqrt(319) = 0.056."""
    places = [np.argsort(got) for got in sequences(10)]
    correlations = [np.corrcoef(places[i], places[i + 1])[0, 1] for i in range(len(places) - 1)]
    assert np.max(np.abs(correlations)) < 4 * 0.056


@pytest.mark.parametrize('count', [1, 2, 3, 4, 7])
def test_each_view_is_taken_once_in_as_many_epochs(count):
    ids = np.arange(1000, 1500)
    for start in (0, 5, 90):
        taken = np.stack([order.views(ids, seed=3, epoch=epoch, count=count) for epoch in range(start, start + count)])
        assert taken.dtype == np.int64
        np.testing.assert_array_equal(np.sort(taken, axis=0), np.arange(count)[:, None] + np.zeros((1, 500)))


def test_a_view_is_a_function_of_seed_epoch_and_record_id_alone():
    ids = np.random.default_rng(0).permutation(5000)
    whole = order.views(np.arange(5000), seed=2**32 - 1, epoch=6, count=3)
    np.testing.assert_array_equal(order.views(ids, seed=2**32 - 1, epoch=6, count=3), whole[ids])
    for number in (0, 17, 4999):
        assert order.views(np.array([number]), seed=2**32 - 1, epoch=6, count=3) == [whole[number]]
    assert order.views(np.zeros(0, np.int64), seed=0, epoch=0, count=3).shape == (0,)


def test_an_epoch_takes_each_view_equally_often():
    """Of N records each of 4 views takes N / 4; chi-squared below its 0.999 quantile for 3 degrees of freedom."""
    for seed in range(5):
        counts = np.bincount(order.views(np.arange(N), seed=seed, epoch=seed, count=4))
        assert ((counts - N / 4) ** 2 / (N / 4)).sum() < 16.3


def test_seeds_and_neighbours_have_views_of_their_own():
    """Two records, or two seeds, have the same view in a quarter of the cases: 0.25 +- 4 * sqrt(3 / 16 / N)."""
    views = [order.views(np.arange(N), seed=seed, epoch=0, count=4) for seed in (0, 1, 2)]
    allowed = 4 * np.sqrt(3 / 16 / N)
    for one, other in ((views[0], views[1]), (views[1], views[2]), (views[0][1:], views[0][:-1])):
        assert (one == other).mean() == pytest.approx(0.25, abs=allowed)


def test_pinned_views():
    got = [order.views(np.arange(12), seed=1, epoch=epoch, count=4).tolist() for epoch in (0, 1)]
    assert got == GOLDEN_VIEWS


GOLDEN_VIEWS = [
    [2, 2, 0, 1, 1, 0, 3, 3, 3, 3, 0, 1],
    [3, 3, 1, 2, 2, 1, 0, 0, 0, 0, 1, 2],
]
