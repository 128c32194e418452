"""Augmented views of an image: a function of (seed, view, record id), the same whenever and wherever it is computed."""

from typing import NamedTuple

import tensorflow as tf

VERSION = 1  # raise it with every change of what `augment` returns: cached features depend on it


class Views(NamedTuple):
    """The views that training takes of each record. One view is the image as it is."""

    count: int = 1
    flip_horizontal: bool = False
    flip_vertical: bool = False
    seed: int = 0

    @property
    def mirrorings(self) -> int:
        """How many ways there are to mirror an image, none included."""
        return 2 ** (self.flip_horizontal + self.flip_vertical)


AS_IT_IS = Views()


def augment(image: tf.Tensor, views: Views, *, view: tf.Tensor, record_id: tf.Tensor) -> tf.Tensor:
    """One view, 0 <= view < views.count: uint8 [H, W, 3] to the same shape; view and record_id are int64 [].

    A record's views take the mirrorings in turn, from one that its id decides; so no two are equal before all were
    taken, and each is as frequent as the others.
    """
    if views.count == 1:
        return image
    first = tf.random.stateless_uniform([], [views.seed, record_id], maxval=views.mirrorings, dtype=tf.int64)
    mirroring = (first + view) % views.mirrorings
    if views.flip_horizontal:
        image = tf.cond(mirroring % 2 == 1, lambda: tf.reverse(image, [1]), lambda: image)
        mirroring //= 2
    if views.flip_vertical:
        image = tf.cond(mirroring % 2 == 1, lambda: tf.reverse(image, [0]), lambda: image)
    return image
