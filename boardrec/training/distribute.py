"""Devices: how many, which strategy, and what arithmetic they are good at."""

import contextlib
import os
import pathlib
import platform
import re
from typing import Any

import tensorflow as tf

from boardrec.config import TrainConfig, UserError
from boardrec.data.input_pipeline import Batch

_CPUINFO = pathlib.Path('/proc/cpuinfo')
_CPU_BFLOAT16 = {'avx512_bf16', 'amx_bf16'}  # as Linux spells them


def set_up(config: TrainConfig, *, training: bool = True) -> tf.distribute.Strategy | None:
    """Chooses the devices: None for one, MirroredStrategy for more (or when asked for); one for inference.

    One device takes no strategy because any strategy switches XLA off in Keras. Must run before anything is put on a
    device.
    Raises UserError for a GPU that is not there.
    """
    gpus = tf.config.list_physical_devices('GPU')
    if config.gpus and training:  # inference may be on another machine
        numbers = [int(number) for number in config.gpus.split(',')]
        if max(numbers) >= len(gpus):
            raise UserError(f'--gpus={config.gpus}: this machine shows {len(gpus)} GPUs, numbered from 0.')
        gpus = [gpus[number] for number in numbers]
        tf.config.set_visible_devices(gpus, 'GPU')
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not training or config.strategy == 'one' or (config.strategy == 'auto' and len(gpus) < 2):
        return None
    devices = [device.name for device in tf.config.list_logical_devices('GPU' if gpus else 'CPU')]
    return tf.distribute.MirroredStrategy(devices)


def replicas(strategy: tf.distribute.Strategy | None) -> int:
    """On how many devices a step runs."""
    return strategy.num_replicas_in_sync if strategy else 1


def scope(strategy: tf.distribute.Strategy | None) -> Any:
    """The block in which variables are made."""
    return strategy.scope() if strategy else contextlib.nullcontext()


def resolve_precision(precision: str) -> str:
    """What `auto` means here: bfloat16 where the hardware multiplies it, float16 on older GPUs, else float32."""
    if precision != 'auto':
        return precision
    gpus = tf.config.get_visible_devices('GPU')
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        capability = min(of_gpu.get('compute_capability', (0, 0)) for of_gpu in details)
        return 'bfloat16' if capability >= (8, 0) else 'float16' if capability >= (7, 0) else 'float32'
    flags = set(_CPUINFO.read_text().split()) if _CPUINFO.is_file() else set()
    return 'bfloat16' if flags & _CPU_BFLOAT16 else 'float32'


def device_kind() -> str:
    """What computes: the results of another kind of device differ in their last bits."""
    gpus = tf.config.get_visible_devices('GPU')
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'GPU')
    names = re.findall(r'^model name\s*: (.*)', _CPUINFO.read_text(), re.M) if _CPUINFO.is_file() else []
    kernels = os.environ.get('TF_ENABLE_ONEDNN_OPTS', 'as built')
    return f'{names[0] if names else platform.processor()}, oneDNN {kernels}'


def run(strategy: tf.distribute.Strategy | None, function: Any, batch: Batch) -> Any:
    """Calls function(batch) on each replica's part of a batch, inside a tf.function; returns sums of the results."""
    if strategy is None:
        return function(batch)
    results = strategy.run(function, (batch,))
    return tf.nest.map_structure(lambda value: strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None), results)


def gather(strategy: tf.distribute.Strategy | None, function: Any, batch: Batch) -> Any:
    """Calls function(batch) on each replica's part of a batch, inside a tf.function; returns the results' rows."""
    if strategy is None:
        return function(batch)
    results = strategy.run(function, (batch,))
    return tf.nest.map_structure(lambda value: tf.concat(strategy.experimental_local_results(value), axis=0), results)


def place(strategy: tf.distribute.Strategy | None, batch: Batch) -> Any:
    """Puts each replica's equal share of a batch, whose size is a multiple of the replicas, on its device."""
    if strategy is None:
        return batch
    share = batch.labels.shape[0] // replicas(strategy)

    def part(context: tf.distribute.InputContext | Any) -> Batch:
        start = context.replica_id_in_sync_group * share
        return tf.nest.map_structure(lambda tensor: tensor[start:start + share], batch)

    return strategy.experimental_distribute_values_from_function(part)


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The global sum of a tensor, seen from within a replica."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value) if context.num_replicas_in_sync > 1 else value
