"""The order of training records: a permutation, pinned for ever, and nearly as good as a uniform shuffle.

Runs that were interrupted rely on the order: if a pinned value below must change, the format of the record set or of
the run must change its version with it. To renew them, print what the test compares and paste it.
"""

import hashlib

import numpy as np
import pytest

from boardrec.data import order


def test_blocks_are_runs_of_one_shards_records():
    cut = order.blocks([5, 0, 4, 1], 2)
    np.testing.assert_array_equal(cut.first, [0, 2, 4, 5, 7, 9])
    np.testing.assert_array_equal(cut.records, [2, 2, 1, 2, 2, 1])
    np.testing.assert_array_equal(cut.shard, [0, 0, 0, 2, 2, 3])
    assert {column.dtype for column in cut} == {np.dtype(np.int64)}


def random_cases(count):
    random = np.random.default_rng(4)
    for _ in range(count):
        yield {'shards': random.integers(0, 40, random.integers(0, 8)).tolist(), 'block': int(random.integers(1, 40)),
               'seed': int(random.integers(0, 2**32)), 'epoch': int(random.integers(0, 1000)),
               'window': int(random.integers(1, 12))}


def test_any_counts_seed_epoch_and_window_give_a_permutation():
    for case in random_cases(300):
        cut = order.blocks(case['shards'], case['block'])
        got = order.sequence(cut, seed=case['seed'], epoch=case['epoch'], window_blocks=case['window'])
        assert got.dtype == np.int64
        np.testing.assert_array_equal(np.sort(got), np.arange(sum(case['shards'])), err_msg=str(case))


def test_the_sequence_takes_each_window_of_whole_blocks_before_the_next():
    for case in random_cases(100):
        cut = order.blocks(case['shards'], case['block'])
        settings = {'seed': case['seed'], 'epoch': case['epoch'], 'window_blocks': case['window']}
        windows, got, start = order.windows(cut, **settings), order.sequence(cut, **settings), 0
        for place, (chosen, permutation) in enumerate(windows):
            last = place == len(windows) - 1
            assert len(chosen) == case['window'] or (last and 0 < len(chosen) < case['window'])
            read = [first + i for first, records in zip(cut.first[chosen], cut.records[chosen], strict=True)
                    for i in range(records)]
            np.testing.assert_array_equal(got[start:start + len(read)], np.array(read)[permutation], err_msg=str(case))
            start += len(read)
        assert start == len(got)
        every = np.concatenate([chosen for chosen, _ in windows]) if windows else []
        np.testing.assert_array_equal(np.sort(every), np.arange(len(cut.first)))


def test_pinned_order_of_a_small_set():
    cut = order.blocks([10, 3, 0, 7], 4)
    got = [order.sequence(cut, seed=1, epoch=epoch, window_blocks=3).tolist() for epoch in (0, 1)]
    assert got == GOLDEN_SMALL


def test_pinned_order_of_a_large_set():
    cut = order.blocks([1000, 999, 1, 312], 32)
    got = hashlib.sha256()
    for seed, epoch, window in [(0, 0, 64), (0, 1, 64), (2**32 - 1, 99, 1)]:
        got.update(order.sequence(cut, seed=seed, epoch=epoch, window_blocks=window).astype('<i8').tobytes())
    assert got.hexdigest() == GOLDEN_LARGE


GOLDEN_SMALL = [
    [12, 6, 7, 5, 13, 4, 15, 16, 11, 10, 14, 1, 19, 3, 8, 0, 18, 2, 17, 9],
    [6, 19, 11, 17, 18, 10, 5, 12, 7, 4, 15, 2, 8, 13, 14, 3, 9, 16, 0, 1],
]
GOLDEN_LARGE = 'e9b575388b9f06000b7ffeb70ca2194167ab1c04d41d3b5a703fb3574f2130d3'


def test_the_mixing_function_is_splitmix64():
    """Published outputs for the seed 1234567: rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert order._mix(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_each_seed_and_epoch_has_an_order_of_its_own():
    cut = order.blocks([40, 40], 8)
    orders = {(seed, epoch): tuple(order.sequence(cut, seed=seed, epoch=epoch, window_blocks=4))
              for seed in range(8) for epoch in range(8)}
    assert len(set(orders.values())) == len(orders)
    assert orders[3, 5] == tuple(order.sequence(cut, seed=3, epoch=5, window_blocks=4)), 'a pure function'


def test_each_window_of_an_epoch_has_a_permutation_of_its_own():
    windows = order.windows(order.blocks([32 * 64], 32), seed=0, epoch=0, window_blocks=4)
    assert len(windows) == 16
    assert len({tuple(permutation) for _, permutation in windows}) == 16


# A set sorted by class, as conversion of a sorted folder without our hash would leave it: 5,000 of one, then 5,000 of
# the other, in shards of 500, blocks of 32 (320 blocks), windows of 64 blocks (2,048 records).
SORTED = order.blocks([500] * 20, 32)
N, BLOCKS, WINDOW = 10_000, len(SORTED.first), 64


def sequences(count):
    return [order.sequence(SORTED, seed=seed, epoch=epoch, window_blocks=WINDOW)
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

    A window holds 64 of 320 blocks, so that its share p of a class has a variance of 1/4 / 64 * (1 - 64/320); expected
    runs are 2 p (1 - p) N, which is smaller by a factor 1 - 4 * that variance = 0.9875. Allowed besides: four standard
    errors over 25 epochs, 40 runs, and so much again for the variance of p itself.
    """
    runs = [1 + np.count_nonzero(np.diff(got >= N // 2)) for got in sequences(25)]
    assert np.mean(runs) == pytest.approx((N / 2 + 1) * (1 - (1 - WINDOW / BLOCKS) / WINDOW), abs=80)
    assert min(runs) > 0.95 * N / 2


def test_every_place_is_as_likely_for_every_record():
    """Over 6,000 epochs of 6 equal blocks of 2, each record is first, second, ... 500 times.

    Chi-squared with 121 degrees of freedom has mean 121 and standard deviation sqrt(242); blocks bind pairs, which can
    double the deviation. Allowed: four of these.
    """
    cut, epochs = order.blocks([12], 2), 6000
    seen = np.zeros((12, 12))
    for epoch in range(epochs):
        seen[np.arange(12), order.sequence(cut, seed=7, epoch=epoch, window_blocks=3)] += 1
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
