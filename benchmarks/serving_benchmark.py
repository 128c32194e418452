"""boardrec.serve against what bounds it: the bare SavedModel in this process, and its network without decoding.

python benchmarks/serving_benchmark.py --model_dir=demo/models/boardrec, after `make demo`; about 15 minutes.
"""

import base64
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import http.client
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import image_paths
from boardrec.serving import publish, versions

REST, GRPC, BARE, FORWARD = 'boardrec.serve, REST', 'boardrec.serve, gRPC', 'bare SavedModel', 'bare forward'
THROUGHPUT, ALONE = 'images/s at saturation, of the bare SavedModel', 'p50 of a lone image, of the bare call'
EXPECTED = {THROUGHPUT: 0.9, ALONE: 1.15}
_METHOD = '/tensorflow.serving.PredictionService/Predict'
_GENERATED = 32  # images, where none are given

Call = Callable[[int], None]  # the number of a request to its answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingBenchmarkConfig:
    """Settings of this script."""

    model_dir: str = setting("the served model's folder", 'demo/models/boardrec')
    images: str = setting('photographs to send, as in predict; by default generated JPEGs of 500x375', '')
    batches: str = setting('images a request', '1,8,32')
    concurrency: str = setting('requests at once', '1,4,16,64')
    seconds: float = setting('seconds for each figure', 3.0)
    rounds: int = setting('rounds, in each of which all is measured', 3)

    def __post_init__(self):
        if self.rounds < 1 or self.seconds <= 0:
            raise UserError(f'--rounds={self.rounds}, --seconds={self.seconds}: must be at least 1, and above 0.')
        for name in ('batches', 'concurrency'):
            if not all(one.isdecimal() and int(one) for one in getattr(self, name).split(',')):
                raise UserError(f'--{name}={getattr(self, name)}: must be numbers like 1,8,32.')


class Figures(NamedTuple):
    """What a kind of call came to."""

    images_a_second: float
    p50: float  # milliseconds, of a request
    p95: float
    p99: float


def main(config: ServingBenchmarkConfig) -> None:
    """Prints images/s and percentiles of each, round by round, and the medians of the ratios."""
    folder = versions.require_folder(config.model_dir)
    encoded = _images(config.images)
    progress.import_tensorflow()
    progress.say(f'{len(encoded)} images of {np.mean([len(one) for one in encoded]) / 1024:,.0f} KiB, '
                 f'{len(os.sched_getaffinity(0))} cores, which clients and server share; {folder}')
    newest = folder / str(publish.versions(folder)[-1])
    rounds = []
    with _server(folder) as (rest, grpc_address), _bare(newest) as (bare, forward):
        for number in range(config.rounds + 1):  # the first warms up
            seconds = config.seconds if number else config.seconds / 4
            found = dict(_measure(config, encoded, seconds, rest, grpc_address, bare, forward))
            if number:
                rounds.append(found)
                for (name, batch, concurrency), figures in found.items():
                    progress.say(f'round {number}: {name}, {batch} a request, {concurrency} at once: '
                                 f'{figures.images_a_second:.1f} images/s, p50 {figures.p50:.1f} ms, p95 '
                                 f'{figures.p95:.1f}, p99 {figures.p99:.1f}')
    for line in summary(rounds):
        progress.say(line)


def summary(rounds: list[dict[tuple[str, int, int], Figures]]) -> list[str]:
    """The medians of the ratios over the rounds, beside what is expected."""
    lines = []
    for name in (REST, GRPC):
        of_rate = statistics.median(_best(found, name) / _best(found, BARE) for found in rounds)
        lines.append(f'{name}: {THROUGHPUT}: {of_rate:.3f}, expected {EXPECTED[THROUGHPUT]} or more')
        alone = [(found[name, 1, 1].p50, found[BARE, 1, 1].p50) for found in rounds if (name, 1, 1) in found]
        if alone:
            of_time = statistics.median(ours / bound for ours, bound in alone)
            lines.append(f'{name}: {ALONE}: {of_time:.3f}, expected {EXPECTED[ALONE]} or less')
    return lines


def measure(call: Call, batch: int, concurrency: int, seconds: float, clock: Callable[[], float] = time.perf_counter,
            ) -> Figures:
    """Calls from several threads until the time is up; what was begun is waited for and counted."""
    start, times, lock = clock(), [], threading.Lock()

    def work(first: int) -> None:
        own, number = [], first
        while (begun := clock()) < start + seconds:
            call(number)
            own.append(clock() - begun)
            number += concurrency
        with lock:
            times.extend(own)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = clock() - start
    p50, p95, p99 = 1000 * np.percentile(times, [50, 95, 99])
    return Figures(len(times) * batch / elapsed, p50, p95, p99)


def _best(found: dict[tuple[str, int, int], Figures], name: str) -> float:
    return max(figures.images_a_second for (one, *_), figures in found.items() if one == name)


def _measure(config: ServingBenchmarkConfig, encoded: list[bytes], seconds: float, rest: str, grpc_address: str,
             bare: Callable, forward: Callable | None) -> Iterator[tuple[tuple[str, int, int], Figures]]:
    """Each kind in turn for each batch size and concurrency, so that all have the same minute of the machine."""
    for batch in map(int, config.batches.split(',')):
        firsts = range(0, 64 * batch, batch)
        requests = [[encoded[(first + i) % len(encoded)] for i in range(batch)] for first in firsts]
        for concurrency in map(int, config.concurrency.split(',')):
            with contextlib.ExitStack() as stack:
                calls = {BARE: _call_bare(bare, requests), FORWARD: forward and _call_forward(forward, batch),
                         REST: _call_rest(rest, requests, stack), GRPC: _call_grpc(grpc_address, requests, stack)}
                for name, call in calls.items():
                    if call:
                        yield (name, batch, concurrency), measure(call, batch, concurrency, seconds)


@contextlib.contextmanager
def _bare(folder: pathlib.Path) -> Iterator[tuple[Callable, Callable | None]]:
    """The signature for bytes, and that for pixels where there is one."""
    import tensorflow as tf
    loaded = tf.saved_model.load(str(folder))
    yield loaded.signatures['serving_default'], loaded.signatures.get('serving_pixels')


def _call_bare(signature: Callable, requests: list[list[bytes]]) -> Call:
    import tensorflow as tf

    def call(number: int) -> None:
        answer = signature(image_bytes=tf.constant(requests[number % len(requests)], tf.string))
        answer['probabilities'].numpy()

    return call


def _call_forward(signature: Any, batch: int) -> Call:
    import tensorflow as tf
    (name, spec), = signature.structured_input_signature[1].items()
    shape = [batch, *(size or 224 for size in spec.shape[1:])]
    pixels = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def call(number: int) -> None:
        signature(**{name: pixels})['probabilities'].numpy()

    return call


def _call_rest(address: str, requests: list[list[bytes]], stack: contextlib.ExitStack) -> Call:
    bodies = [json.dumps({'inputs': [{'b64': base64.b64encode(one).decode()} for one in request]}).encode()
              for request in requests]
    local, opened = threading.local(), []
    stack.callback(lambda: [connection.close() for connection in opened])

    def call(number: int) -> None:
        if not hasattr(local, 'connection'):
            local.connection = http.client.HTTPConnection(address, timeout=120)
            opened.append(local.connection)
        local.connection.request('POST', '/v1/models/benchmark:predict', bodies[number % len(bodies)])
        response = local.connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f'{response.status}: {answer[:200]!r}')

    return call


def _call_grpc(address: str, requests: list[list[bytes]], stack: contextlib.ExitStack) -> Call:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2
    channel = stack.enter_context(grpc.insecure_channel(address, [('grpc.max_send_message_length', -1)]))
    method = channel.unary_unary(_METHOD)  # bytes to bytes
    messages = []
    for request in requests:
        message = predict_pb2.PredictRequest()
        message.model_spec.name = 'benchmark'
        message.inputs['image_bytes'].CopyFrom(tf.make_tensor_proto(np.array(request, object)))
        messages.append(message.SerializeToString())
    return lambda number: method(messages[number % len(messages)], timeout=120)


@contextlib.contextmanager
def _server(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """boardrec.serve in a process of its own; its REST and gRPC addresses."""
    command = [sys.executable, '-m', 'boardrec.serve', f'--model_dir={folder}', '--rest_port=0', '--grpc_port=0',
               '--model_name=benchmark', '--max_request_mib=64']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            words = process.stdout.readline().split()
            rest = next(word for word in words if word.startswith('http://')).removeprefix('http://').rstrip('/,')
            grpc_address = words[words.index('gRPC') + 2].rstrip(';')
            if 'is served' not in process.stdout.readline():
                raise UserError(f'--model_dir={folder}: boardrec.serve loads no version there.')
            yield rest, grpc_address
        finally:
            process.terminate()


def _images(given: str) -> list[bytes]:
    if given:
        found = [pathlib.Path(candidate.path).read_bytes() for candidate in image_paths.find(given)
                 if not candidate.reason][:512]
        if not found:
            raise UserError(f'--images={given}: no image there.')
        return found
    from PIL import Image
    random, encoded = np.random.default_rng(0), []
    for _ in range(_GENERATED):
        coarse = Image.fromarray(random.integers(0, 256, [60, 80, 3], np.uint8)).resize((500, 375), Image.BICUBIC)
        file = io.BytesIO()
        coarse.save(file, 'jpeg', quality=90)
        encoded.append(file.getvalue())
    return encoded


if __name__ == '__main__':
    cli.run(main, ServingBenchmarkConfig)
