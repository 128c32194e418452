"""Optimizers, learning-rate schedules and early stopping, as pure functions of settings, step and the losses so far."""

import math
from typing import NamedTuple

import keras

from boardrec.config import TrainConfig

_PLATEAU_MIN_DELTA = 1e-4  # as keras.callbacks.ReduceLROnPlateau; EarlyStopping's is 0


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

    As Keras's EarlyStopping and ReduceLROnPlateau (cooldown 0, no minimum) count; a NaN is never better.
    """
    if val_loss < watch.best:
        watch = watch._replace(best=val_loss, best_epoch=epoch, stale=0)
    else:
        watch = watch._replace(stale=watch.stale + 1)
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


def learning_rate(config: TrainConfig, *, step: int, total_steps: int, watch: Watch) -> float:
    """The rate of one step (0-based); cosine falls from `learning_rate` to 0 (Loshchilov and Hutter, 2017)."""
    if config.schedule == 'cosine':
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return config.learning_rate * watch.rate_scale


def make_optimizer(config: TrainConfig, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer; float16 needs its gradients scaled, bfloat16 has float32's range."""
    if config.optimizer == 'adamw':
        optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
    elif config.optimizer == 'adam':
        optimizer = keras.optimizers.Adam(config.learning_rate)
    else:
        optimizer = keras.optimizers.SGD(config.learning_rate, momentum=config.momentum)
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == 'float16' else optimizer
