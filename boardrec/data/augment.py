"""Augmented views of an image: a function of (seed, view, record id), the same whenever and wherever it is computed.

`crop_box` says which part of the photograph a view shows, for the caller to cut out before it resizes; `augment` does
the rest to the resized pixels. Every op has its own draws, so that none changes when another is switched on or off, and
an op that is off costs nothing.
"""

import dataclasses
import itertools
import math

import numpy as np
import tensorflow as tf

VERSION = 2  # raise it with every change of what `crop_box` or `augment` returns: cached features depend on it

# What a draw is for. A number in use keeps its meaning; a new op takes the next one.
_POSE, _CROP, _ROTATION, _COLOUR, _JPEG, _ERASING = range(6)

_CROP_STRETCH = 4 / 3  # Szegedy et al., Going deeper with convolutions, 2015, section 6: 3/4 to 4/3
_ERASING_STRETCH = 1 / 0.3  # Zhong et al., Random erasing data augmentation, 2020: 0.3 to 1/0.3
_ERASED = (124, 117, 104)  # ImageNet's mean colour: about 0 behind each backbone's normalisation

# YUV as in tf.image.rgb_to_yuv (SMPTE 170M): luma Y, U = 0.492111 (B - Y), V = 0.877283 (R - Y). YIQ has other axes in
# the same plane of chroma, so that turning hues has one matrix in both. All act on [R, G, B] as columns and keep greys.
_LUMA = np.array([0.299, 0.587, 0.114])
_YUV = np.stack([_LUMA, 0.492111 * ([0, 0, 1] - _LUMA), 0.877283 * ([1, 0, 0] - _LUMA)])
_TO_GREY = np.tile(_LUMA, (3, 1))
_TO_CHROMA = np.eye(3) - _TO_GREY
_TO_TURNED_CHROMA = np.linalg.inv(_YUV) @ [[0, 0, 0], [0, 0, -1], [0, 1, 0]] @ _YUV  # by 90 degrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """The views that training takes of each record; each op is off by default. `config` refuses bad values."""

    count: int = 0  # views of each record; 1: the image as it is, 0: a new one each epoch
    seed: int = 0  # below 2^32
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False  # where the image is not square, half turns
    crop_area: float = 1.0  # smallest share of the image's area that a crop keeps
    rotation: float = 0.0  # degrees, either way
    brightness: float = 0.0  # factor from 1 - x to 1 + x, as are the next two
    contrast: float = 0.0  # distance from the image's mean
    saturation: float = 0.0  # distance from grey
    hue: float = 0.0  # share of the colour circle, either way
    jpeg_quality: int = 100  # lowest quality; 100: not compressed
    erasing: float = 0.0  # largest share of the area that is painted over


AS_IT_IS = Views(count=1)


def crop_box(views: Views, *, view: tf.Tensor, record_id: tf.Tensor) -> tf.Tensor | None:
    """What part of a photograph a view shows: top, left, height, width as shares of its sides, float32 [4]; None: all.

    The area is uniform from `crop_area` to 1. The proportions are the photograph's own, stretched log-uniformly by up
    to 4/3, and no further than the photograph goes. Not 3/4 to 4/3 in pixels: evaluation squeezes whole photographs of
    any proportions into one size, so that a view is distorted by at most 4/3 against what evaluation sees.
    """
    if views.count == 1 or views.crop_area == 1:
        return None
    draws = _uniform(4, _CROP, views, view, record_id)
    return _box(1 - draws[0] * (1 - views.crop_area), draws, _CROP_STRETCH)


def augment(image: tf.Tensor, views: Views, *, view: tf.Tensor, record_id: tf.Tensor) -> tf.Tensor:
    """One view of a resized image: uint8 [H, W, 3], static, to the same; view (at least 0) and record_id are int64 [].

    A view does not depend on how many there are. Raises ValueError where the shape is not static.
    """
    if views.count == 1:
        return image
    image.shape.assert_is_fully_defined()
    image = _pose(image, views, view, record_id)
    colours = views.brightness or views.contrast or views.saturation or views.hue
    if views.rotation or colours:
        pixels = tf.cast(image, tf.float32)
        mean = _mean(pixels) if views.contrast else 0.0
        if views.rotation:
            pixels = _rotate(pixels, views, _uniform(1, _ROTATION, views, view, record_id))
        if colours:
            pixels = _colour(pixels, mean, views, _uniform(4, _COLOUR, views, view, record_id))
        image = tf.saturate_cast(tf.round(pixels), tf.uint8)
    if views.jpeg_quality < 100:
        draw = _uniform(1, _JPEG, views, view, record_id)[0]
        quality = views.jpeg_quality + tf.cast(draw * (101 - views.jpeg_quality), tf.int32)
        # The DCT is named, as in images.decode: the default is the fast, lossier one.
        image = tf.ensure_shape(tf.image.adjust_jpeg_quality(image, quality, 'INTEGER_ACCURATE'), image.shape)
    if views.erasing:
        image = _erase(image, views, _uniform(4, _ERASING, views, view, record_id))
    return image


def _uniform(count: int, purpose: int, views: Views, view: tf.Tensor | int, record_id: tf.Tensor) -> tf.Tensor:
    """float32 [count] in [0, 1), for one purpose of one view of one record.

    The four numbers fill 128 bits without overlap (views below 2^23, ids below 2^40), of which TensorFlow's stateless
    ops make a key and a counter by a round of Philox; so neighbours are as independent as any two.
    """
    seed = tf.stack([tf.constant(views.seed + (purpose << 32), tf.int64), record_id + view * 2**40])
    return tf.random.stateless_uniform([count], seed)


def _box(share: tf.Tensor, draws: tf.Tensor, stretch: float) -> tf.Tensor:
    """A box with this share (above 0) of the area, anywhere inside; draws [4], the first is the caller's.

    float32 [4]: top, left, height, width in shares of the sides.
    """
    ratio = tf.exp((draws[1] * 2 - 1) * math.log(stretch))
    height = tf.clip_by_value(tf.sqrt(share * ratio), share, 1.0)  # so that neither side exceeds 1
    width = share / height
    return tf.stack([draws[2] * (1 - height), draws[3] * (1 - width), height, width])


def _poses(views: Views, *, square: bool) -> list[tuple[int, int, int]]:
    """The ways to mirror and turn an image, no two of them equal, as (transpose, then flip rows, then flip columns)."""
    flips = views.flip_horizontal or views.flip_vertical
    if not views.quarter_turns:
        return list(itertools.product((0,), range(1 + views.flip_vertical), range(1 + views.flip_horizontal)))
    # Each of the three is a reflection, and an even number of reflections is a turn.
    return [pose for pose in itertools.product(range(1 + square), (0, 1), (0, 1)) if flips or sum(pose) % 2 == 0]


def _pose(image: tf.Tensor, views: Views, view: tf.Tensor, record_id: tf.Tensor) -> tf.Tensor:
    """Mirrors and turns: a record's views take the poses in turn, from one that its id decides.

    So no two views are equal before all poses were taken, and each is as frequent as the others.
    """
    poses = _poses(views, square=image.shape[0] == image.shape[1])
    if len(poses) == 1:
        return image
    first = tf.cast(_uniform(1, _POSE, views, 0, record_id)[0] * len(poses), tf.int64)
    transpose, flip_rows, flip_columns = tf.unstack(tf.gather(np.array(poses, bool), (first + view) % len(poses)))
    some_transpose, some_flip_rows, some_flip_columns = np.any(poses, axis=0)
    if some_transpose:
        image = tf.cond(transpose, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    if some_flip_rows:
        image = tf.cond(flip_rows, lambda: tf.reverse(image, [0]), lambda: image)
    if some_flip_columns:
        image = tf.cond(flip_columns, lambda: tf.reverse(image, [1]), lambda: image)
    return image


def _mean(pixels: tf.Tensor) -> tf.Tensor:
    """The mean of all of float32 [H, W, 3], whole numbers below 256, in whatever order threads add them: float32 [].

    A row's sum is exact in float32 up to a width of 21,930 (2^24 / 255 / 3); the rows' sums are added as integers.
    """
    rows = tf.reduce_sum(tf.reshape(pixels, [pixels.shape[0], -1]), axis=1)
    return tf.cast(tf.reduce_sum(tf.cast(rows, tf.int64)), tf.float32) / pixels.shape.num_elements()


def _rotate(pixels: tf.Tensor, views: Views, draws: tf.Tensor) -> tf.Tensor:
    """Turns float32 [H, W, 3] about its centre, bilinearly.

    The corners are filled by reflection: evaluation never sees corners of one colour, and repeated edge pixels are
    lines like scratches.
    """
    angle = (draws[0] * 2 - 1) * math.radians(views.rotation)
    turn = tf.reshape(tf.stack([tf.cos(angle), -tf.sin(angle), tf.sin(angle), tf.cos(angle)]), [2, 2])
    centre = (np.array(pixels.shape[1::-1]) - 1) / 2  # x, y
    # Where an output pixel comes from: turn [x, y] + shift. As a sum over an axis: terms of a scalar sum that share a
    # factor are regrouped in a tf.function and not eagerly, which changes the last bit.
    shift = centre - tf.reduce_sum(turn * centre, axis=1)
    rows = tf.concat([turn, shift[:, None]], axis=1)
    # On float32, because the kernel cuts off what it interpolates between integers.
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[None], transforms=tf.concat([tf.reshape(rows, [1, 6]), tf.zeros([1, 2])], axis=1),
        output_shape=pixels.shape[:2], fill_value=0.0, interpolation='BILINEAR', fill_mode='REFLECT')[0]


def _colour(pixels: tf.Tensor, mean: tf.Tensor | float, views: Views, draws: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast about `mean`, saturation, hue: float32 [H, W, 3] to the same, not yet clipped to 0..255.

    All four are linear, so together they are one matrix and one offset (Haeberli, Matrix operations for image
    processing, 1993); the offset is grey, which saturation and hue leave alone.
    """
    ranges = [views.brightness, views.contrast, views.saturation, views.hue * 2 * math.pi]
    brightness, contrast, saturation, angle = tf.unstack((draws * 2 - 1) * ranges + [1.0, 1.0, 1.0, 0.0])
    gain = brightness * contrast
    offset = (brightness - gain) * mean
    if not views.saturation and not views.hue:
        return pixels * gain + offset
    matrix = _TO_GREY + saturation * (tf.cos(angle) * _TO_CHROMA + tf.sin(angle) * _TO_TURNED_CHROMA)
    product = tf.matmul(tf.reshape(pixels, [-1, 3]), gain * matrix, transpose_b=True)
    return tf.reshape(product, pixels.shape) + offset


def _erase(image: tf.Tensor, views: Views, draws: tf.Tensor) -> tf.Tensor:
    """Paints a rectangle of uint8 [H, W, 3] over; its share of the area is uniform from 0 to `erasing`."""
    height, width, _ = image.shape
    box = _box((1 - draws[0]) * views.erasing, draws, _ERASING_STRETCH)  # not draws[0], which may be 0
    begin_size = tf.reshape(tf.cast(box * [height, width, height, width], tf.int32), [2, 2])
    begin, size = begin_size[0], begin_size[1]
    paint = tf.broadcast_to(tf.constant(_ERASED, tf.uint8), tf.concat([size, [3]], 0))
    # A few times as fast as tf.where with a mask.
    return tf.raw_ops.TensorStridedSliceUpdate(input=image, begin=begin, end=begin + size, strides=[1, 1], value=paint)
