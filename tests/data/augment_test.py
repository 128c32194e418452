"""A view depends on (seed, view, record id) alone, and each op does what it says, within its range.

Where a test needs to know what was drawn, it puts its own numbers in the draws' place.
"""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from boardrec.data import augment
from boardrec.data.augment import AS_IT_IS, Views

RANDOM = np.random.default_rng(30)
SQUARE = RANDOM.integers(0, 256, (24, 24, 3), dtype=np.uint8)
WIDE = RANDOM.integers(0, 256, (20, 28, 3), dtype=np.uint8)
MILD = RANDOM.integers(90, 150, (20, 28, 3), dtype=np.uint8)  # no op below drives it out of 0..255
LAST = 1 - 2**-24  # the largest number below 1 in float32; draws end at 1 - 2^-23

OPS = {
    'flip_horizontal': True, 'flip_vertical': True, 'quarter_turns': True, 'rotation': 10.0, 'brightness': 0.2,
    'contrast': 0.2, 'saturation': 0.3, 'hue': 0.1, 'jpeg_quality': 60, 'erasing': 0.3,
}


def one_view(image, views, view=0, record_id=0):
    return augment.augment(tf.constant(image), views, view=tf.constant(view, tf.int64),
                           record_id=tf.constant(record_id, tf.int64)).numpy()


def many(function, count, *, records=None, **options):
    """`function(view, record_id)` in a tf.data map for `count` records in turn, or for these; view = record % 7."""
    ids = np.arange(count) if records is None else np.asarray(records)
    dataset = tf.data.Dataset.from_tensor_slices(ids.astype(np.int64))
    dataset = dataset.map(lambda i: function(view=i % 7, record_id=i), **options)
    return np.stack(list(dataset.as_numpy_iterator()))


def many_views(image, views, count, **options):
    image = tf.constant(image)
    return many(lambda view, record_id: augment.augment(image, views, view=view, record_id=record_id), count, **options)


def boxes(views, count, **options):
    return many(lambda view, record_id: augment.crop_box(views, view=view, record_id=record_id), count, **options)


def draw(monkeypatch, *numbers):
    """Every draw is these numbers from now on."""
    monkeypatch.setattr(augment, '_uniform', lambda count, *_: tf.constant(numbers[:count], tf.float32))


# What a view depends on.


@pytest.mark.parametrize('views', [AS_IT_IS, Views(count=1, **OPS, crop_area=0.5, seed=3)], ids=['plain', 'all ops on'])
def test_one_view_is_the_image_itself(views):
    image, number = tf.constant(WIDE), tf.constant(0, tf.int64)
    assert augment.augment(image, views, view=number, record_id=number) is image
    assert augment.crop_box(views, view=number, record_id=number) is None


def test_ops_that_are_off_leave_nothing_in_the_graph():
    number = tf.TensorSpec([], tf.int64)

    def ops(**on):
        def both(image, view, record_id):
            views = Views(count=0, **on)
            return (augment.augment(image, views, view=view, record_id=record_id),
                    augment.crop_box(views, view=view, record_id=record_id))

        graph = tf.function(both).get_concrete_function(tf.TensorSpec([24, 24, 3], tf.uint8), number, number).graph
        return {op.type for op in graph.get_operations()} - {'Placeholder', 'Identity', 'Const', 'NoOp'}

    flips, colours = {'StatelessIf'}, {'Round', 'Mul', 'Sum', 'MatMul'}
    others = {'ImageProjectiveTransformV3', 'DecodeJpeg', 'TensorStridedSliceUpdate', 'Exp'}
    assert ops() == set()
    assert ops(**OPS, crop_area=0.5) >= flips | colours | others
    assert not ops(brightness=0.1) & (flips | others | {'Sum', 'MatMul'})
    assert not ops(flip_vertical=True) & (others | {'Round', 'Sum', 'MatMul'})


@pytest.mark.parametrize(('on', 'image'), [
    *(pytest.param([name], SQUARE, id=name) for name in OPS),
    pytest.param(list(OPS), SQUARE, id='all'), pytest.param(list(OPS), WIDE, id='all, wide'),
])
def test_eager_graph_and_pipeline_give_the_same_bits(on, image):
    views, count = Views(count=0, seed=5, **{name: OPS[name] for name in on}), 8
    piped = many_views(image, views, count, num_parallel_calls=4, deterministic=True)
    graph = tf.function(lambda image, i: augment.augment(image, views, view=i % 7, record_id=i))
    assert piped.dtype == np.uint8 and piped.shape == (count, *image.shape)
    assert (piped != image).any()
    for i in range(count):
        np.testing.assert_array_equal(one_view(image, views, i % 7, i), piped[i])
        np.testing.assert_array_equal(graph(tf.constant(image), tf.constant(i, tf.int64)), piped[i])


def test_eager_graph_and_pipeline_crop_alike():
    views, numbers = Views(count=0, crop_area=0.3), [tf.constant(i, tf.int64) for i in range(30)]
    eager = [augment.crop_box(views, view=i % 7, record_id=i) for i in numbers]
    graph = tf.function(lambda i: augment.crop_box(views, view=i % 7, record_id=i))
    np.testing.assert_array_equal(boxes(views, 30, num_parallel_calls=4), eager)
    np.testing.assert_array_equal([graph(i) for i in numbers], eager)


def test_the_order_of_records_changes_nothing():
    views, order = Views(count=0, **OPS), RANDOM.permutation(20)
    np.testing.assert_array_equal(many_views(SQUARE, views, 0, records=order), many_views(SQUARE, views, 20)[order])


def test_a_view_does_not_depend_on_how_many_there_are():
    for count in (2, 5):
        np.testing.assert_array_equal(
            one_view(SQUARE, Views(count=count, **OPS), 1, 9), one_view(SQUARE, Views(**OPS), 1, 9))


def test_every_record_view_and_seed_differs():
    seen = {one_view(SQUARE, Views(seed=seed, **OPS), view, record).tobytes()
            for seed, view, record in itertools.product((0, 1, 2**32 - 1), (0, 1, 10_000), (0, 1, 2, 2**39))}
    assert len(seen) == 3 * 3 * 4


def test_draws_of_neighbours_are_uncorrelated_and_even():
    purposes, count = (augment._POSE, augment._CROP, augment._ERASING), 2000

    def drawn(view, record_id):
        return tf.stack([augment._uniform(2, purpose, Views(seed=seed), view + later, record_id)
                         for seed, later, purpose in itertools.product((0, 1), (0, 1), purposes)])

    draws = many(drawn, count).reshape(count, -1).astype(np.float64)
    assert draws.min() >= 0 and draws.max() < 1
    neighbours = np.concatenate([draws[:-1], draws[1:]], axis=1)  # and of the record before
    correlations = np.corrcoef(neighbours, rowvar=False) - np.eye(neighbours.shape[1])
    assert np.abs(correlations).max() < 5 / math.sqrt(count)  # five standard deviations
    assert len(np.unique(draws)) > draws.size - 250  # of 2^23 numbers, about 140 pairs meet by chance
    for column in draws.T:
        np.testing.assert_allclose(np.quantile(column, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.06)


def test_switching_an_op_changes_no_other_ops_draws(monkeypatch):
    draws, original = {}, augment._uniform

    def spy(count, purpose, *args):
        draws[purpose] = original(count, purpose, *args).numpy().tolist()
        return original(count, purpose, *args)

    monkeypatch.setattr(augment, '_uniform', spy)
    one_view(SQUARE, Views(**OPS), 4, 6)
    together = dict(draws)
    assert len(together) == 5
    for name, value in OPS.items():
        draws.clear()
        one_view(SQUARE, Views(**{name: value}), 4, 6)
        assert len(draws) == 1 and draws.items() <= together.items()


def test_the_colours_factors_do_not_depend_on_each_other():
    grey = np.full((4, 4, 3), 100, np.uint8)  # contrast, saturation and hue leave it
    alone, together = (many_views(grey, Views(brightness=0.4, **other), 20)
                       for other in ({}, {'contrast': 0.5, 'saturation': 0.5, 'hue': 0.2}))
    np.testing.assert_array_equal(alone, together)
    assert len(np.unique(alone)) > 10


def test_a_shape_that_is_not_known_is_refused():
    spec, number = tf.TensorSpec([None, None, 3], tf.uint8), tf.constant(0, tf.int64)
    with pytest.raises(ValueError, match='not fully defined'):
        tf.function(lambda x: augment.augment(x, Views(**OPS), view=number, record_id=number)
                    ).get_concrete_function(spec)


# Mirrorings and turns.

EAST, SOUTH = np.fliplr(SQUARE), np.flipud(SQUARE)
TURNS = [np.rot90(SQUARE, k) for k in range(4)]


@pytest.mark.parametrize(('horizontal', 'vertical', 'quarter', 'expected'), [
    (True, False, False, [SQUARE, EAST]),
    (False, True, False, [SQUARE, SOUTH]),
    (True, True, False, [SQUARE, EAST, SOUTH, TURNS[2]]),
    (False, False, True, TURNS),
    (True, False, True, [*TURNS, *(np.fliplr(turned) for turned in TURNS)]),
    (False, True, True, [*TURNS, *(np.fliplr(turned) for turned in TURNS)]),
    (True, True, True, [*TURNS, *(np.fliplr(turned) for turned in TURNS)]),
])
def test_a_records_views_take_each_pose_once_before_any_again(horizontal, vertical, quarter, expected):
    views = Views(count=0, flip_horizontal=horizontal, flip_vertical=vertical, quarter_turns=quarter)
    wanted = sorted(image.tobytes() for image in expected)
    for record in range(5):
        got = [one_view(SQUARE, views, view, record).tobytes() for view in range(2 * len(wanted))]
        assert sorted(got[:len(wanted)]) == wanted
        assert got[len(wanted):] == got[:len(wanted)]


@pytest.mark.parametrize(('flip', 'expected'), [
    (False, [WIDE, WIDE[::-1, ::-1]]), (True, [WIDE, WIDE[::-1, ::-1], WIDE[::-1], WIDE[:, ::-1]]),
])
def test_what_is_not_square_is_turned_by_halves(flip, expected):
    views = Views(count=0, flip_horizontal=flip, quarter_turns=True)
    got = {one_view(WIDE, views, view).tobytes() for view in range(8)}
    assert got == {image.tobytes() for image in expected}


def test_each_pose_is_as_frequent():
    views, count = Views(flip_horizontal=True, quarter_turns=True), 2000
    _, counts = np.unique(many_views(SQUARE[:3, :3], views, count).reshape(count, -1), axis=0, return_counts=True)
    assert len(counts) == 8
    assert np.abs(counts - count / 8).max() < 5 * math.sqrt(count / 8)


# Crops.


def test_crops_have_the_area_and_proportions_that_were_asked_for():
    top, left, height, width = boxes(Views(count=0, crop_area=0.25), 2000).T.astype(np.float64)
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1
    area, ratio = height * width, height / width
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.25, 0.4375, 0.625, 0.8125, 1], atol=0.05)
    assert 0.25 - 1e-6 <= area.min() and area.max() <= 1 + 1e-6
    assert 3 / 4 - 1e-6 <= ratio.min() and ratio.max() <= 4 / 3 + 1e-6
    small = area < 0.5  # where the image's sides do not limit the proportions
    log_ratio = np.log(ratio[small]) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(log_ratio, [0, 0.25, 0.5, 0.75, 1]), [-1, -0.5, 0, 0.5, 1], atol=0.1)
    for start, size in ((top, height), (left, width)):
        place = start[small] / (1 - size[small])
        np.testing.assert_allclose(np.quantile(place, [0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1], atol=0.07)


@pytest.mark.parametrize('crop_area', [0.01, 0.5, 0.999])
def test_no_draw_leads_out_of_the_image(monkeypatch, crop_area):
    for numbers in itertools.product([0, 0.5, LAST], repeat=4):
        draw(monkeypatch, *numbers)
        top, left, height, width = augment.crop_box(Views(crop_area=crop_area), view=0, record_id=0).numpy()
        assert min(top, left) >= 0 and min(height, width) > 0
        assert max(top + height, left + width) <= 1


def test_no_crop_is_the_whole_image():
    number = tf.constant(0, tf.int64)
    assert augment.crop_box(Views(count=0, **OPS), view=number, record_id=number) is None


# Rotation.


def rotated(image, degrees):
    """Rotation about the centre, bilinear, edges reflected."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    padded = np.pad(image.astype(np.float64), ((height, height), (width, width), (0, 0)), 'symmetric')
    y, x = sin * x + cos * y + (height - 1) / 2 + height, cos * x - sin * y + (width - 1) / 2 + width
    low_y, low_x = np.floor(y).astype(int), np.floor(x).astype(int)
    share_y, share_x = (y - low_y)[..., None], (x - low_x)[..., None]
    rows = [padded[low_y + i, low_x] * (1 - share_x) + padded[low_y + i, low_x + 1] * share_x for i in (0, 1)]
    return rows[0] * (1 - share_y) + rows[1] * share_y


@pytest.mark.parametrize('number', [0, 0.2, 0.5, 0.9, LAST])
@pytest.mark.parametrize('image', [SQUARE, WIDE], ids=['square', 'wide'])
def test_rotation_is_bilinear_and_reflects_the_edges(monkeypatch, image, number):
    draw(monkeypatch, number)
    got = one_view(image, Views(rotation=15.0))
    np.testing.assert_allclose(got, rotated(image, 15 * (2 * number - 1)), atol=0.51)  # rounded, and float32


def test_rotation_of_one_colour_is_that_colour():
    plain = np.full((20, 28, 3), 201, np.uint8)
    assert (many_views(plain, Views(rotation=45.0), 20) == plain).all()


# Colours.


def chroma(pixels):
    """I + iQ of [..., 3], after TensorFlow's matrix, and the luma."""
    y, i, q = np.moveaxis(tf.image.rgb_to_yiq(tf.cast(pixels, tf.float64)).numpy(), -1, 0)
    return i + 1j * q, y


def spread(values, low, high):
    """Whether 200 values cover [low, high] and do not leave it."""
    margin = (high - low) * 0.03
    return low - 1e-2 <= values.min() < low + margin and high - margin < values.max() <= high + 1e-2


def test_brightness_multiplies():
    got = many_views(MILD, Views(brightness=0.4), 200) / MILD.mean()
    factors = got.mean(axis=(1, 2, 3))
    assert spread(factors, 0.6, 1.4)
    np.testing.assert_allclose(got, factors[:, None, None, None] * MILD / MILD.mean(), atol=1.1 / MILD.mean())


def test_contrast_stretches_about_the_mean():
    got = many_views(MILD, Views(contrast=0.5), 200) - MILD.mean()
    flat = (MILD - MILD.mean()).ravel()
    factors = got.reshape(200, -1) @ flat / (flat @ flat)
    assert spread(factors, 0.5, 1.5)
    np.testing.assert_allclose(got.reshape(200, -1), factors[:, None] * flat, atol=1)


def test_saturation_stretches_about_grey():
    before, luma = chroma(MILD)
    after, luma_after = chroma(many_views(MILD, Views(saturation=0.5), 200))
    factors = (after * before.conj()).real.sum((1, 2)) / (np.abs(before) ** 2).sum()
    assert spread(factors, 0.5, 1.5)
    np.testing.assert_allclose(after, factors[:, None, None] * before, atol=1)
    np.testing.assert_allclose(luma_after, np.broadcast_to(luma, luma_after.shape), atol=0.6)


def test_hue_turns_the_chroma_and_keeps_luma():
    before, luma = chroma(MILD)
    after, luma_after = chroma(many_views(MILD, Views(hue=0.25), 200))
    factors = (after * before.conj()).sum((1, 2)) / (np.abs(before) ** 2).sum()
    assert spread(np.angle(factors) / (2 * math.pi), -0.25, 0.25)
    np.testing.assert_allclose(np.abs(factors), 1, atol=0.02)
    np.testing.assert_allclose(after, factors[:, None, None] * before, atol=1.5)
    np.testing.assert_allclose(luma_after, np.broadcast_to(luma, luma_after.shape), atol=0.6)


def test_the_colour_ops_follow_each_other(monkeypatch):
    """Brightness 1.1, contrast 0.8, saturation 1.3, hue by 1/20, one after the other in float64."""
    draw(monkeypatch, 0.75, 0, LAST, LAST)
    got = one_view(MILD, Views(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.05))
    expected = MILD * 1.1
    expected = expected.mean() + 0.8 * (expected - expected.mean())
    grey = (expected @ [0.299, 0.587, 0.114])[..., None]
    i_q, luma = chroma(grey + 1.3 * (expected - grey))
    i_q *= np.exp(-2j * math.pi / 20)  # from U to V is from Q to I
    expected = tf.image.yiq_to_rgb(np.stack([luma, i_q.real, i_q.imag], -1)).numpy()
    np.testing.assert_allclose(got, expected, atol=0.6)


def test_factors_of_one_change_nothing(monkeypatch):
    draw(monkeypatch, 0.5, 0.5, 0.5, 0.5)
    colours = {name: OPS[name] for name in ('brightness', 'contrast', 'saturation', 'hue')}
    np.testing.assert_array_equal(one_view(WIDE, Views(**colours)), WIDE)


def test_colours_end_at_black_and_white(monkeypatch):
    draw(monkeypatch, LAST, LAST, LAST, LAST)
    black_and_white = np.array([[[0] * 3, [255] * 3]], np.uint8)
    np.testing.assert_array_equal(one_view(black_and_white, Views(brightness=0.5, contrast=0.5)), black_and_white)


def test_the_mean_is_exact_for_large_images():
    pixels = np.full((300, 9000, 3), 255, np.uint8)
    pixels[0, 0] = 0
    assert augment._mean(tf.cast(pixels, tf.float32)).numpy() == np.float32(pixels.mean())


# JPEG and erasing.


def test_jpeg_qualities_are_those_of_the_range():
    made = {}
    for quality in range(80, 101):
        data = tf.io.encode_jpeg(WIDE, quality=quality)
        made[tf.io.decode_jpeg(data, dct_method='INTEGER_ACCURATE').numpy().tobytes()] = quality
    qualities = {made[image.tobytes()] for image in many_views(WIDE, Views(jpeg_quality=90), 200)}
    assert qualities == set(range(90, 101))


def test_erasing_paints_a_rectangle():
    image = np.full((40, 60, 3), 7, np.uint8)
    shares, ratios, middles = [], [], []
    for got in many_views(image, Views(erasing=0.3), 400):  # some are of no pixel
        changed = (got != image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        shares.append(changed.mean())
        if len(rows) and len(columns):
            assert changed[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()
            assert set(map(tuple, got[changed])) == {augment._ERASED}
            ratios.append(len(rows) / 40 / (len(columns) / 60))
            middles.append((rows.mean() / 40, columns.mean() / 60))
    assert max(shares) <= 0.3
    np.testing.assert_allclose(np.quantile(shares, [0.1, 0.5, 0.9]), [0.03, 0.15, 0.27], atol=0.03)
    assert 1 < np.quantile(ratios, 0.95) < 4.5 and 0.2 < np.quantile(ratios, 0.05) < 1
    np.testing.assert_allclose(np.mean(middles, axis=0), 0.5, atol=0.06)


def test_erasing_leaves_the_callers_image_and_the_rest():
    image = tf.constant(SQUARE)
    number = tf.constant(3, tf.int64)
    got = augment.augment(image, Views(erasing=0.3), view=number, record_id=number).numpy()
    np.testing.assert_array_equal(image, SQUARE)
    assert ((got == SQUARE) | (got == augment._ERASED)).all()


@pytest.mark.parametrize('erasing', [0.001, 1.0])
def test_no_draw_paints_outside(monkeypatch, erasing):
    for numbers in itertools.product([0, LAST], repeat=4):
        draw(monkeypatch, *numbers)
        got = one_view(WIDE, Views(erasing=erasing))
        assert got.shape == WIDE.shape
        assert (got != WIDE).any(axis=2).mean() <= erasing
