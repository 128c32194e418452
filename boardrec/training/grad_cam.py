"""Grad-CAM: where in an image lies what speaks for a class (Selvaraju et al., 2017)."""

import keras
import numpy as np
import tensorflow as tf

from boardrec.training.inference import Predictor

_BATCH = 8  # images at a time


def heat_maps(predictor: Predictor, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Heat maps float32 [B, h, w], at least 0, of uint8 images [B, H, W, 3], each for its class, int [B].

    h and w are those of the backbone's last feature maps. Each map weighs as much as the mean gradient, over its
    positions, of the class's logit; of the weighted sum what is above 0 remains. The negative of two classes has the
    one logit with its sign turned. A map may be 0 everywhere: nothing spoke for the class then.
    """
    positive = predictor.classes.positive
    columns = np.zeros(len(classes), np.int32) if positive is not None else np.asarray(classes, np.int32)
    signs = np.ones(len(classes)) if positive is None else np.where(np.asarray(classes) == positive, 1.0, -1.0)
    features, head = _parts(predictor.model)
    # A graph, because the single steps of a backbone take longer; one batch size, so that it is traced once.
    compute = tf.function(lambda batch, column, sign: _maps(features, head, batch, column, sign))
    size = min(_BATCH, max(1, len(images)))
    maps = []
    for first in range(0, len(images), size):
        part = slice(first, first + size)
        pad = size - len(images[part])
        batch = np.concatenate([images[part], np.repeat(images[:1], pad, axis=0)])
        column, sign = (np.pad(values[part], (0, pad)) for values in (columns, signs))
        maps.append(compute(tf.constant(batch), tf.constant(column), tf.constant(sign, tf.float32)).numpy()[
            :size - pad])
    return np.concatenate(maps) if maps else np.zeros((0, 1, 1), np.float32)


def _parts(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Images to the last feature maps, and these to logits [B, 1] or [B, C]."""
    # Not the last operation with an output of rank 4: pooling is what makes the positions' mean the right one.
    pooled = model.get_layer('global_average_pooling2d').input
    return keras.Model(model.input, pooled), keras.Model(pooled, model.get_layer('logits').output)


def _maps(features: keras.Model, head: keras.Model, batch: tf.Tensor, column: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    found = tf.cast(features(batch, training=False), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(found)
        logits = sign * tf.gather(head(found, training=False), column, axis=1, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(logits, found), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * found, axis=3))
