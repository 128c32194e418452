"""The compiled steps: one of training, one of evaluation. Losses are means over a global batch's real records."""

from collections.abc import Callable, Iterator
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from boardrec.data.input_pipeline import Batch
from boardrec.training import distribute, model, optim
from boardrec.training.model import Classes


class Sums(NamedTuple):
    """Sums over a batch's real records, float32 []."""

    loss: tf.Tensor
    right: tf.Tensor
    records: tf.Tensor
    bad: tf.Tensor  # replicas whose loss or gradients are not finite; 0 in evaluation


class Rows(NamedTuple):
    """What evaluation says of each record of this host, padding included: [B] each."""

    record_ids: tf.Tensor  # int64, -1 for padding
    losses: tf.Tensor  # float32
    decisions: tf.Tensor  # int32, the class that the record is taken for


class Call(NamedTuple):
    """What several steps came to."""

    sums: Sums  # float32 [steps] each
    waited: tf.Tensor  # float64 [steps], seconds for the batch
    stop: tf.Tensor  # float32 []: how many hosts ask for an end


Step = Callable[[Batch], Sums]
EvalStep = Callable[[Batch], tuple[Sums, Rows]]


class Objective(NamedTuple):
    """What training makes small, beside the classes' own meaning."""

    classes: Classes
    label_smoothing: float = 0.0
    class_weights: np.ndarray | None = None  # float32 [C]
    record_weights: np.ndarray | None = None  # float32 [N] by record_id

    def losses(self, logits: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Of each record: logits [B, 1] or [B, C] to float32 [B]; anything finite for padding."""
        result = model.losses(logits, batch.labels, self.classes, label_smoothing=self.label_smoothing,
                              class_weights=self.class_weights)
        if self.record_weights is None:
            return result
        return result * tf.gather(self.record_weights, tf.maximum(batch.record_ids, 0))  # -1 is padding


def make_train_step(network: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective, *,
                    strategy: tf.distribute.Strategy | None, accumulate_steps: int = 1, clip_norm: float = 0.0,
                    variables: list[keras.Variable] | None = None, average: optim.Average | None = None,
                    xla: bool = False) -> Step:
    """Compiles a step that updates `network` (inputs to logits) on one global batch, or only some `variables` of it.

    `network` may be the tail that follows cached features. With accumulate_steps > 1 each replica computes its share in
    that many equal parts, one after the other, and applies the sum of their gradients. `average` follows the weights.
    """
    variables = network.trainable_variables if variables is None else variables
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def gradients(batch: Batch, global_records: tf.Tensor) -> tuple[list[tf.Tensor], Sums]:
        with tf.GradientTape() as tape:
            logits = network(batch.inputs, training=True)
            loss = tf.reduce_sum(objective.losses(logits, batch) * batch.weights)
            # Divided by the *global* count, so that the gradients' sum over replicas and parts is the mean's gradient.
            scaled = loss / global_records
            if scales:
                scaled = optimizer.scale_loss(scaled)
        return tape.gradient(scaled, [v.value for v in variables]), _sums(loss, logits, batch, objective.classes)

    def replica_step(batch: Batch) -> Sums:
        global_records = distribute.sum_over_replicas(tf.reduce_sum(batch.weights))
        if accumulate_steps == 1:
            total, sums = gradients(batch, global_records)
        else:
            total, sums = _accumulate(gradients, batch, global_records, parts=accumulate_steps, variables=variables)
        if clip_norm or scales:
            total = _equal_parts(total)
        finite = tf.math.is_finite(tf.linalg.global_norm(total) + sums.loss)
        if clip_norm:
            total = _clip(total, optimizer, clip_norm)
        optimizer.apply(total, variables)
        return sums._replace(bad=1 - tf.cast(finite, tf.float32))

    def step(batch: Batch) -> Sums:
        sums = distribute.run(strategy, replica_step, batch)
        if average:
            average.update(tf.cast(tf.equal(sums.bad, 0), tf.float32))
        return sums

    return tf.function(step, reduce_retracing=True, jit_compile=xla or None)


def make_calls(step: Step, optimizer: keras.optimizers.Optimizer, *, strategy: tf.distribute.Strategy | None
               ) -> Callable[..., Call]:
    """Compiles call(iterator, rates, count, stop): `count` training steps on what an iterator of batches gives next.

    `rates` are the learning rates, float32 [count or more]; `stop` is 1.0 where this host asks for an end. The host
    is not needed between two steps.
    """
    def call(iterator: Any, rates: tf.Tensor, count: tf.Tensor, stop: tf.Tensor) -> Call:
        columns = [tf.TensorArray(tf.float32, count) for _ in Sums._fields]
        waits, done = tf.TensorArray(tf.float64, count), tf.constant(0.0)
        for i in tf.range(count):
            # By hand: nothing else would keep the clock from being read at once.
            with tf.control_dependencies([done]):
                asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                waits = waits.write(i, tf.timestamp() - asked)
            optimizer.learning_rate = rates[i]
            sums = step(batch)
            columns = [column.write(i, value) for column, value in zip(columns, sums, strict=True)]
            done = sums.loss
        return Call(Sums(*(column.stack() for column in columns)), waits.stack(), distribute.total(strategy, stop))

    return tf.function(call, reduce_retracing=True)


def one_by_one(step: Step, optimizer: keras.optimizers.Optimizer) -> Callable[..., Call]:
    """The same of make_calls for batches that no tf.data iterator gives: they are asked for in Python."""
    def call(iterator: Iterator[Batch], rates: tf.Tensor, count: tf.Tensor, stop: tf.Tensor) -> Call:
        rows, waits = [], []
        for i in range(int(count)):
            asked = time.perf_counter()
            batch = next(iterator)
            waits.append(time.perf_counter() - asked)
            optimizer.learning_rate = rates[i]
            rows.append(step(batch))
        return Call(Sums(*map(tf.stack, zip(*rows, strict=True))), tf.constant(waits, tf.float64), stop)

    return call


def make_eval_step(network: keras.Model, classes: Classes, *, strategy: tf.distribute.Strategy | None) -> EvalStep:
    """Compiles a step that only measures `network` (inputs to logits)."""
    def replica_step(batch: Batch) -> tuple[Sums, Rows]:
        logits = network(batch.inputs, training=False)
        losses = model.losses(logits, batch.labels, classes)
        rows = Rows(batch.record_ids, losses, model.decisions(logits, classes))
        return _sums(tf.reduce_sum(losses * batch.weights), logits, batch, classes), rows

    def step(batch: Batch) -> tuple[Sums, Rows]:
        results = strategy.run(replica_step, (batch,)) if strategy else replica_step(batch)
        return (distribute.run(strategy, lambda results: results[0], results),
                distribute.gather(strategy, lambda results: results[1], results))

    return tf.function(step, reduce_retracing=True)


def _sums(loss: tf.Tensor, logits: tf.Tensor, batch: Batch, classes: Classes) -> Sums:
    right = tf.cast(model.is_right(logits, batch.labels, classes), tf.float32)
    return Sums(loss, tf.reduce_sum(right * batch.weights), tf.reduce_sum(batch.weights), tf.constant(0.0))


def _equal_parts(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients as the sum over all replicas divided by their number, which the optimizer sums up again.

    So that each sees what all have: Keras's loss scaling asks the first replica alone whether gradients are finite.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    return gradients if replicas == 1 else [
        distribute.sum_over_replicas(tf.convert_to_tensor(gradient)) / replicas for gradient in gradients]


def _clip(gradients: list[tf.Tensor], optimizer: keras.optimizers.Optimizer, norm: float) -> list[tf.Tensor]:
    """Equal parts of gradients whose sum over all replicas has at most this global norm."""
    part = 1 / tf.distribute.get_replica_context().num_replicas_in_sync
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        part = optimizer.scale_loss(part)
    return optim.clip(gradients, norm, loss_scale=part)[0]


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
