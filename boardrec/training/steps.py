"""The compiled steps: one of training, one of evaluation. Losses are means over a global batch's real records."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from boardrec.data.input_pipeline import Batch
from boardrec.training import distribute, model
from boardrec.training.model import Classes


class Sums(NamedTuple):
    """Sums over a batch's real records, float32 []."""

    loss: tf.Tensor
    right: tf.Tensor
    records: tf.Tensor


Step = Callable[[Batch], Sums]


def make_train_step(network: keras.Model, optimizer: keras.optimizers.Optimizer, classes: Classes, *,
                    strategy: tf.distribute.Strategy | None, accumulate_steps: int) -> Step:
    """Compiles a step that updates `network` (inputs to logits) on one global batch.

    `network` may be the tail that follows cached features. With accumulate_steps > 1 each replica computes its share in
    that many equal parts, one after the other, and applies the sum of their gradients.
    """
    variables = network.trainable_variables

    def gradients(batch: Batch, global_records: tf.Tensor) -> tuple[list[tf.Tensor], Sums]:
        with tf.GradientTape() as tape:
            logits = network(batch.inputs, training=True)
            loss = tf.reduce_sum(model.losses(logits, batch.labels, classes) * batch.weights)
            # Divided by the *global* count, so that the gradients' sum over replicas and parts is the mean's gradient.
            objective = loss / global_records
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                objective = optimizer.scale_loss(objective)
        return tape.gradient(objective, [v.value for v in variables]), _sums(loss, logits, batch, classes)

    def replica_step(batch: Batch) -> Sums:
        global_records = distribute.sum_over_replicas(tf.reduce_sum(batch.weights))
        if accumulate_steps == 1:
            total, sums = gradients(batch, global_records)
        else:
            total, sums = _accumulate(gradients, batch, global_records, parts=accumulate_steps, variables=variables)
        optimizer.apply(total, variables)
        return sums

    return tf.function(lambda batch: distribute.run(strategy, replica_step, batch), reduce_retracing=True)


def make_eval_step(network: keras.Model, classes: Classes, *, strategy: tf.distribute.Strategy | None) -> Step:
    """Compiles a step that only measures `network` (inputs to logits)."""
    def replica_step(batch: Batch) -> Sums:
        logits = network(batch.inputs, training=False)
        loss = tf.reduce_sum(model.losses(logits, batch.labels, classes) * batch.weights)
        return _sums(loss, logits, batch, classes)

    return tf.function(lambda batch: distribute.run(strategy, replica_step, batch), reduce_retracing=True)


def _sums(loss: tf.Tensor, logits: tf.Tensor, batch: Batch, classes: Classes) -> Sums:
    right = tf.cast(model.is_right(logits, batch.labels, classes), tf.float32)
    return Sums(loss, tf.reduce_sum(right * batch.weights), tf.reduce_sum(batch.weights))


def _accumulate(gradients: Callable, batch: Batch, global_records: tf.Tensor, *, parts: int,
                variables: list[keras.Variable]) -> tuple[list[tf.Tensor], Sums]:
    """Sums gradients and Sums over `parts` equal parts; a loop, so that only one part's activations exist at a time."""
    size = tf.shape(batch.labels)[0] // parts

    def body(i: tf.Tensor, total: list[tf.Tensor], sums: Sums) -> tuple:
        part = tf.nest.map_structure(lambda tensor: tensor[i * size:(i + 1) * size], batch)
        more, its_sums = gradients(part, global_records)
        total = [a + tf.convert_to_tensor(b) for a, b in zip(total, more, strict=True)]
        return i + 1, total, Sums(*(a + b for a, b in zip(sums, its_sums, strict=True)))

    zeros = [tf.zeros(v.shape, v.dtype) for v in variables]
    start = (tf.constant(0), zeros, Sums(*(tf.constant(0.0) for _ in Sums._fields)))
    _, total, sums = tf.while_loop(lambda i, *_: i < parts, body, start, parallel_iterations=1)
    return total, sums
