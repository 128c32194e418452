"""Views are mirrorings, pixel for pixel, the same wherever they are computed; each is as frequent as the others."""

import numpy as np
import pytest
import tensorflow as tf

from boardrec.data import augment
from boardrec.data.augment import Views

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
MIRRORINGS = {'none': IMAGE, 'horizontal': IMAGE[:, ::-1], 'vertical': IMAGE[::-1], 'both': IMAGE[::-1, ::-1]}
ALLOWED = [((True, True), ['none', 'horizontal', 'vertical', 'both']), ((True, False), ['none', 'horizontal']),
           ((False, True), ['none', 'vertical'])]


def mirrorings(views, record_ids, numbers):
    """Which mirroring each of these views of each record is: names [record][view], by comparing every pixel."""
    numbers = tf.constant([(i, view) for i in record_ids for view in numbers], tf.int64)
    dataset = tf.data.Dataset.from_tensor_slices(numbers).map(
        lambda pair: augment.augment(tf.constant(IMAGE), views, view=pair[1], record_id=pair[0]))
    made = next(dataset.batch(len(numbers)).as_numpy_iterator())
    names = []
    for one in made:
        equal = [name for name, pixels in MIRRORINGS.items() if np.array_equal(one, pixels)]
        assert len(equal) == 1
        names += equal
    return np.array(names).reshape(len(record_ids), -1)


def test_one_view_is_the_image_as_it_is():
    image = tf.constant(IMAGE)
    assert augment.augment(image, Views(1, True, True, 3), view=0, record_id=7) is image
    assert augment.augment(image, augment.AS_IT_IS, view=0, record_id=7) is image


@pytest.mark.parametrize(('flips', 'allowed'), ALLOWED)
def test_views_take_every_mirroring_in_turn(flips, allowed):
    count = len(allowed)
    names = mirrorings(Views(2 * count, *flips, seed=2), range(100), range(2 * count))
    for row in names:
        assert sorted(row[:count]) == sorted(allowed) and list(row[:count]) == list(row[count:])


@pytest.mark.parametrize(('flips', 'allowed'), ALLOWED)
@pytest.mark.parametrize('view', [0, 1])
def test_a_view_has_each_mirroring_equally_often(flips, allowed, view):
    """Of 1,000 records each of n mirrorings takes 1,000 / n; chi-squared below its 0.999 quantile for 3 degrees."""
    names = mirrorings(Views(2, *flips, seed=11), range(1000), [view])
    counts = np.array([(names == name).sum() for name in allowed])
    expected = len(names) / len(allowed)
    assert counts.sum() == len(names) and ((counts - expected) ** 2 / expected).sum() < 16.3


def test_each_seed_has_views_of_its_own_and_keeps_them():
    seeds = [0, 1, 2, 2**32 - 1]
    rows = [tuple(mirrorings(Views(2, True, True, seed), range(40), [0, 1]).flat) for seed in seeds]
    assert len(set(rows)) == len(seeds)
    assert rows == [tuple(mirrorings(Views(2, True, True, seed), range(40), [0, 1]).flat) for seed in seeds]


def test_how_many_views_there_are_changes_none_of_them():
    names = [mirrorings(Views(count, True, True, 5), range(30), [0, 1]) for count in (2, 3, 8)]
    np.testing.assert_array_equal(names[0], names[1])
    np.testing.assert_array_equal(names[0], names[2])


def test_inside_a_data_set_on_any_number_of_threads_and_eagerly_the_same():
    views, ids = Views(4, True, True, 2**31 + 5), np.arange(2**40, 2**40 + 60)
    dataset = tf.data.Dataset.from_tensor_slices(ids)
    for threads in (1, tf.data.AUTOTUNE):
        mapped = dataset.map(lambda number: augment.augment(
            tf.constant(IMAGE), views, view=number % 4, record_id=number), num_parallel_calls=threads)
        for number, inside in zip(ids, mapped, strict=True):
            eager = augment.augment(
                tf.constant(IMAGE), views, view=tf.constant(number % 4), record_id=tf.constant(number))
            np.testing.assert_array_equal(inside, eager)
            assert eager.dtype == tf.uint8 and inside.shape == IMAGE.shape


def test_the_views_of_a_version_are_pinned():
    """If these change, augment.VERSION must: features of earlier views would be taken for the new ones."""
    assert augment.VERSION == 1
    letters = {'none': '-', 'horizontal': 'h', 'vertical': 'v', 'both': 'b'}
    names = mirrorings(Views(4, True, True, 1), range(12), [0])
    assert ''.join(letters[name] for name in names[:, 0]) == PINNED


PINNED = 'h--b-b-v--vb'
