"""Optimizers, schedules, early stopping, clipping, and averaged weights: the mathematics of training beside the loop.

Schedules and early stopping are pure functions of settings, step and the losses so far.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import keras
import tensorflow as tf

from boardrec.config import TrainConfig

_PLATEAU_MIN_DELTA = 1e-4  # as keras.callbacks.ReduceLROnPlateau; EarlyStopping's is 0
# Biases, and scales and offsets of normalisation: a decay of these does not regularise (big_vision, timm). Keras
# searches TensorFlow's name of a variable, LAYER/bias:0; of one with copies on several devices, the first's.
_NOT_DECAYED = r'/(bias|gamma|beta):0$'


class Watch(NamedTuple):
    """What the validation losses so far say; part of the run's state."""

    best: float = math.inf
    best_epoch: int = 0  # 1-based; 0 before the first
    stale: int = 0  # epochs since best
    plateau_best: float = math.inf
    plateau_stale: int = 0
    rate_scale: float = 1.0  # what plateaus have made of the learning rate


def observe(watch: Watch, val_loss: float, *, epoch: int, config: TrainConfig) -> Watch:
    """The watch after one more epoch (1-based).

    As Keras's EarlyStopping and ReduceLROnPlateau (cooldown 0, no minimum) count; NaN and infinity are never better.
    Epochs of the head alone may be the best, but use up no patience.
    """
    if val_loss < watch.best:
        watch = watch._replace(best=val_loss, best_epoch=epoch, stale=0)
    else:
        watch = watch._replace(stale=watch.stale + 1)
    if epoch <= config.head_epochs:
        return watch._replace(stale=0)
    if config.schedule != 'plateau':
        return watch
    if val_loss < watch.plateau_best - _PLATEAU_MIN_DELTA:
        return watch._replace(plateau_best=val_loss, plateau_stale=0)
    if watch.plateau_stale + 1 < config.plateau_patience:
        return watch._replace(plateau_stale=watch.plateau_stale + 1)
    return watch._replace(plateau_stale=0, rate_scale=watch.rate_scale * config.plateau_factor)


def should_stop(watch: Watch, config: TrainConfig) -> bool:
    """Whether early stopping ends the run."""
    return 0 < config.early_stopping_patience <= watch.stale


def learning_rate(config: TrainConfig, *, step: int, steps_per_epoch: int, watch: Watch) -> float:
    """The rate of one step of the run (0-based).

    `head_epochs` take `learning_rate` as it is. Then, of w warm-up steps, step s has (s + 1) / w of what the schedule
    says; and cosine falls over the steps that follow, to 0 (Loshchilov and Hutter, 2017).
    """
    step -= config.head_epochs * steps_per_epoch
    if step < 0:
        return config.learning_rate
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * watch.rate_scale * ((step + 1) / warmup)
    if config.schedule == 'cosine':
        steps = (config.epochs - config.head_epochs) * steps_per_epoch - warmup
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / steps))
    return config.learning_rate * watch.rate_scale


def make_optimizer(config: TrainConfig, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer; float16 needs its gradients scaled, bfloat16 has float32's range."""
    if config.optimizer == 'adamw':
        optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=[_NOT_DECAYED])
    elif config.optimizer == 'adam':
        optimizer = keras.optimizers.Adam(config.learning_rate)
    else:
        optimizer = keras.optimizers.SGD(config.learning_rate, momentum=config.momentum)
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == 'float16' else optimizer


def clip(gradients: Sequence[tf.Tensor], norm: float, *, loss_scale: tf.Tensor | float = 1.0
         ) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Scales gradients down to a global norm; returns them and the global norm that they had, float32 [].

    `gradients` are those of the whole batch, not of a replica's share, times `loss_scale`; the norms are without it.
    A norm of 0 leaves them as they are. If one of them is not finite, neither is the norm that is returned.
    """
    before = tf.linalg.global_norm(gradients) / loss_scale
    if not norm:
        return list(gradients), before
    # Exactly 1 up to the norm, so that what is not clipped keeps its bits; tf.clip_by_global_norm rounds.
    factor = tf.minimum(1.0, norm / before)
    return [gradient * factor for gradient in gradients], before


class Average:
    """A moving average of trained weights, as tf.train.ExponentialMovingAverage with its num_updates.

    It starts at the weights. Update t (0-based) has the decay min(decay, (1 + t) / (10 + t)): the first weights of the
    classifier are random, and in a run of some hundred steps a decay of 0.999 would keep most of them.
    Make it inside the strategy's scope; call its methods in cross-replica context, eagerly or in a tf.function.
    """

    def __init__(self, weights: Sequence[keras.Variable], decay: float, strategy: tf.distribute.Strategy | None):
        self._weights, self._decay, self._extended = list(weights), decay, (
            strategy or tf.distribute.get_strategy()).extended
        self._shadows = [keras.Variable(weight.numpy(), trainable=False, dtype='float32', name='average')
                         for weight in self._weights]
        self._updates = keras.Variable(0, trainable=False, dtype='int64', name='updates')

    @property
    def variables(self) -> list[keras.Variable]:
        """What a checkpoint must hold beside the weights."""
        return [*self._shadows, self._updates]

    def update(self, taken: tf.Tensor | float = 1.0) -> None:
        """Takes in the weights after one more step; `taken` is 0 if loss scaling skipped it."""
        # 1 - decay, written so that float32 loses nothing of it.
        share = taken * tf.maximum(1 - self._decay, 9 / (10 + tf.cast(self._updates.value, tf.float32)))
        for shadow, weight in zip(self._shadows, self._weights, strict=True):
            self._on_each_device(lambda e, v, share: e.assign_add(share * (v - e)), shadow, weight.value, share)
        self._on_each_device(lambda updates, one: updates.assign_add(one), self._updates,
                             tf.cast(taken, tf.int64))

    def swap(self) -> None:
        """Exchanges weights and average, bit by bit; done twice, it changes nothing."""
        for shadow, weight in zip(self._shadows, self._weights, strict=True):
            self._on_each_device(_exchange, shadow, weight.value)

    def _on_each_device(self, function: Callable, variable: keras.Variable, *values: tf.Tensor) -> None:
        """Calls function(variable, *values) on each device with its copies, so that nothing crosses devices."""
        self._extended.update(variable.value, function, args=values)


def _exchange(shadow: tf.Variable, weight: tf.Variable) -> None:
    kept = tf.identity(shadow)
    shadow.assign(weight)
    weight.assign(kept)
