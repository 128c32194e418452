"""Devices: how many, which strategy, and what arithmetic they are good at."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import json
import os
import pathlib
import platform
import re
import signal
from typing import Any

import numpy as np
import tensorflow as tf

from boardrec import progress
from boardrec.config import TrainConfig, UserError
from boardrec.data.input_pipeline import Batch
from boardrec.training import rendezvous

_CPUINFO = pathlib.Path('/proc/cpuinfo')
_START_SECONDS = 600  # for the workers of TF_CONFIG to be started in
_SENT_WORDS = 8 << 20  # 32 MiB at a time: a sum takes eight times its size for a moment
_CPU_BFLOAT16 = {'avx512_bf16', 'amx_bf16'}  # as Linux spells them


def set_up(config: TrainConfig, *, training: bool = True) -> tf.distribute.Strategy | None:
    """Chooses the devices: None for one, MirroredStrategy for more (or when asked for); one for inference.

    Where TF_CONFIG names several workers, this process is one of them, under MultiWorkerMirroredStrategy. One device
    takes no strategy because any strategy switches XLA off in Keras. Must run before anything is put on a device.
    Raises UserError for a GPU that is not there, a TF_CONFIG that does not fit, or a worker that does not come.
    """
    gpus = tf.config.list_physical_devices('GPU')
    if config.gpus and training:  # inference may be on another machine
        numbers = [int(number) for number in config.gpus.split(',')]
        if max(numbers) >= len(gpus):
            raise UserError(f'--gpus={config.gpus}: this machine shows '
                            + (f'{len(gpus)} GPUs, numbered from 0.' if gpus else 'no GPU: leave it out.'))
        gpus = [gpus[number] for number in numbers]
        tf.config.set_visible_devices(gpus, 'GPU')
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not training:
        return None
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    workers = _workers(os.environ.get('TF_CONFIG', ''), needed=config.strategy == 'multi_worker')
    if config.strategy == 'multi_worker' or (config.strategy == 'auto' and len(workers) > 1):
        return _join(workers)
    if config.strategy == 'one' or (config.strategy == 'auto' and len(gpus) < 2):
        return None
    devices = [device.name for device in tf.config.list_logical_devices('GPU' if gpus else 'CPU')]
    return tf.distribute.MirroredStrategy(devices)


def _join(workers: list[str]) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Waits until all workers are there, and no longer than _START_SECONDS. Ctrl-C ends that at once."""
    progress.say(f'waiting for the {len(workers)} workers of TF_CONFIG')
    rendezvous.meet(workers, json.loads(os.environ['TF_CONFIG'])['task']['index'], seconds=_START_SECONDS)
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would hear it only after this
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        signal.signal(signal.SIGINT, handler)


def name(strategy: tf.distribute.Strategy | None) -> str:
    """What --strategy calls it."""
    if strategy is None:
        return 'one'
    return 'multi_worker' if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else 'mirrored'


def replicas(strategy: tf.distribute.Strategy | None) -> int:
    """On how many devices a step runs, of all hosts."""
    return strategy.num_replicas_in_sync if strategy else 1


def host_of_hosts(strategy: tf.distribute.Strategy | None) -> tuple[int, int]:
    """Which host this is, counted from 0, the one that writes; and how many there are."""
    if name(strategy) != 'multi_worker':
        return 0, 1
    resolver = strategy.cluster_resolver
    return resolver.task_id, len(resolver.cluster_spec().as_dict()['worker'])


def of_this_host(strategy: tf.distribute.Strategy | None) -> tf.distribute.Strategy | None:
    """The strategy for what a host computes without the others, such as features."""
    return None if name(strategy) == 'multi_worker' else strategy


def scope(strategy: tf.distribute.Strategy | None) -> Any:
    """The block in which variables are made."""
    return strategy.scope() if strategy else contextlib.nullcontext()


def from_host_0(strategy: tf.distribute.Strategy | None, data: bytes) -> bytes:
    """Bytes that host 0 has, on every host; each waits here for the others."""
    if name(strategy) != 'multi_worker':
        return data
    host, _ = host_of_hosts(strategy)
    length = int(_sum_over_hosts(strategy, np.array([len(data) if host == 0 else 0], np.int64))[0])
    if not length:
        return b''  # TensorFlow crashes at a sum of nothing
    words = np.zeros(-(-length // 4), np.int32)
    if host == 0:
        words.view(np.uint8)[:length] = np.frombuffer(data, np.uint8)
    parts = [_sum_over_hosts(strategy, words[i:i + _SENT_WORDS]).tobytes() for i in range(0, len(words), _SENT_WORDS)]
    return b''.join(parts)[:length]


def agree(strategy: Any, of_host_0: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What host 0 says, on every host; JSON must hold it."""
    leads = host_of_hosts(strategy)[0] == 0
    return json.loads(from_host_0(strategy, json.dumps(of_host_0() if leads else {}).encode()))


def _sum_over_hosts(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    def on_replica(values: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        # Of a host's replicas the first brings its values.
        mine = tf.identity(values) if context.replica_id_in_sync_group == first else tf.zeros_like(values)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

    host, hosts = host_of_hosts(strategy)
    first = host * (replicas(strategy) // hosts)
    with tf.device('CPU:0'):
        values = tf.constant(values)
    results = tf.function(lambda: strategy.run(on_replica, (values,)))()
    return strategy.experimental_local_results(results)[0].numpy()


def _workers(tf_config: str, *, needed: bool) -> list[str]:
    """HOST:PORT of each worker that TF_CONFIG names. Raises UserError for one that cannot be used."""
    example = '{"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]}, "task": {"type": "worker", "index": 0}}'
    if not tf_config:
        if needed:
            raise UserError(f'--strategy=multi_worker: TF_CONFIG is not set; set it on each host, like {example}, '
                            'with the index of the host.')
        return []
    try:
        given = json.loads(tf_config)
        workers, task = given.get('cluster', {}).get('worker', []), given.get('task', {})
        others = set(given.get('cluster', {})) - {'worker'}
        good = not others and (not workers or (task.get('type') == 'worker' and 0 <= task.get('index') < len(workers)))
    except (ValueError, AttributeError, TypeError):
        good, workers = False, []
    if not good or (needed and not workers):
        raise UserError(f'TF_CONFIG={tf_config}: must be like {example}.')
    return workers


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


def resolve_xla(xla: str, strategy: tf.distribute.Strategy | None) -> str:
    """What `auto` means here: on for one GPU; oneDNN's convolutions on a CPU are faster than XLA's.

    Raises UserError for several devices, which hang or crash with it (keras#17187, #21366, #20763).
    """
    if strategy is not None:
        if xla == 'on':
            raise UserError('--xla=on: takes one device; leave it out, or give --strategy=one.')
        return 'off'
    return xla if xla != 'auto' else 'on' if tf.config.get_visible_devices('GPU') else 'off'


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy | None) -> Iterator[None]:
    """Makes what TensorFlow raises when another worker is gone a UserError."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError, tf.errors.CancelledError,
            tf.errors.DeadlineExceededError) as error:
        if host_of_hosts(strategy)[1] == 1:
            raise
        raise UserError(f'another worker of TF_CONFIG has gone ({_reason(error)}): run the same command again on every '
                        'host; it goes on from the last saved state.') from None


def _reason(error: tf.errors.OpError) -> str:
    """The line of TensorFlow's words that says something."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    telling = [line for line in lines if 'aborted by' in line] or lines or [type(error).__name__]
    return re.sub(r'^\W*{{.*?}} *|\.$', '', telling[0])[:200]


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


def batches(strategy: tf.distribute.Strategy | None, dataset: tf.data.Dataset) -> Iterable[Any]:
    """The host's batches as each replica's equal shares of them, on their way to the devices ahead of time.

    Their sizes are multiples of the host's replicas. Iterators may be used within a tf.function.
    """
    if strategy is None:
        gpus = tf.config.list_logical_devices('GPU')
        return dataset.apply(tf.data.experimental.prefetch_to_device(gpus[0].name)) if gpus else dataset
    shares = replicas(strategy) // host_of_hosts(strategy)[1]

    def split(tensor: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tensor, tf.concat([[shares, tf.shape(tensor)[0] // shares], tf.shape(tensor)[1:]], axis=0))

    if shares > 1:
        dataset = dataset.map(lambda batch: tf.nest.map_structure(split, batch)).unbatch().prefetch(shares)
    return strategy.distribute_datasets_from_function(lambda _: dataset)


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


def total(strategy: tf.distribute.Strategy | None, value: tf.Tensor) -> tf.Tensor:
    """The sum over hosts of a float32 [], inside a tf.function."""
    if strategy is None:
        return value
    shares = replicas(strategy) // host_of_hosts(strategy)[1]
    of_replicas = strategy.run(tf.identity, (value,))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, of_replicas, axis=None) / shares
