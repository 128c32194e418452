"""Asks TF Serving or boardrec.serve about images: python tools/predict_client.py --images=FOLDER --output=OUT.csv."""

import base64
from collections import deque
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import http.client
import io
import itertools
import json
import os
import pathlib
import queue
import random
import stat
import sys
import time
from typing import Any, NamedTuple, TextIO

import grpc
import numpy as np
import predict_messages

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import image_paths
from boardrec.data.image_paths import Candidate

_COLUMNS = ('path', 'label', 'score', 'probabilities', 'error', 'milliseconds')
_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.1, 10.0  # before the second try at most, and before any
_AGAIN_HTTP = {429, 502, 503}
_AGAIN_GRPC = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictClientConfig:
    """Settings of this tool."""

    images: str = setting('folder of images, a quoted glob, one image, a .txt file of paths, or - for standard input')
    server: str = setting('HOST:PORT; by default that of --api on this machine', '')
    api: str = setting('how to ask', 'rest', ('rest', 'grpc'))
    model_name: str = setting("the model's name", 'boardrec')
    version: int = setting('the version to ask; 0 takes the newest', 0)
    signature: str = setting('signature that takes image_bytes and gives a label', 'serving_default')
    output: str = setting('file to write, FILE.csv or FILE.jsonl, or - for CSV on standard output; by default none', '')
    batch_size: int = setting('images a request', 1)
    concurrency: int = setting('requests at once', 8)
    retries: int = setting('how often a request is sent again, after longer and longer waits, where the server is '
                           'busy or away', 5)
    seconds: float = setting('seconds to wait for an answer', 30.0)
    max_image_mib: int = setting('leave files of more MiB out', 32)

    def __post_init__(self):
        if self.api not in ('rest', 'grpc'):
            raise UserError(f'--api={self.api}: must be one of rest, grpc.')
        for name, least in (('version', 0), ('batch_size', 1), ('concurrency', 1), ('retries', 0), ('seconds', 0.001),
                            ('max_image_mib', 1)):
            if getattr(self, name) < least:
                raise UserError(f'--{name}={getattr(self, name)}: must be at least {least}.')
        if self.output not in ('', '-') and pathlib.Path(self.output).suffix.lower() not in ('.csv', '.jsonl'):
            raise UserError(f'--output={self.output}: must end in .csv or .jsonl, or be -.')
        host, _, port = self.address.rpartition(':')
        if not host or not port.isdecimal():
            raise UserError(f'--server={self.server}: must be like HOST:PORT.')

    @property
    def address(self) -> str:
        """`server`, or else its default."""
        return self.server or ('127.0.0.1:8501' if self.api == 'rest' else '127.0.0.1:8500')


class Again(Exception):
    """The server is busy or away, and may not be so later."""


class Refused(Exception):
    """The server's reason not to answer a request, whenever it is sent."""


class Answer(NamedTuple):
    """What became of one path."""

    path: str
    label: str = ''
    score: float | None = None
    probabilities: tuple[float, ...] = ()
    error: str = ''
    milliseconds: float | None = None  # of its request's last try


class Sent(NamedTuple):
    """What became of a request."""

    answers: list[Answer]
    milliseconds: float | None  # of the try that was answered
    retries: int


Ask = Callable[[list[bytes]], dict[str, list[Any]]]  # encoded images to outputs; raises Again or Refused


def main(config: PredictClientConfig) -> None:
    """Writes a row an image, in the order of the paths, and prints rates and percentiles of the time an answer takes.

    An image that is not classified has its reason in `error`. The command ends where the server cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        out = _opened(config, stack)
        ask = _over_grpc(config, stack) if config.api == 'grpc' else _over_rest(config, stack)
        with contextlib.redirect_stdout(sys.stderr) if config.output == '-' else contextlib.nullcontext():
            start, sent = time.perf_counter(), []
            for one in _send_all(config, ask):
                _write(out, config.output, one.answers)
                sent.append(one._replace(answers=[answer._replace(probabilities=()) for answer in one.answers]))
            progress.say(summary(sent, time.perf_counter() - start))


def summary(sent: list[Sent], seconds: float) -> str:
    """The last line: counts, rate, and percentiles of the time that answers took."""
    answers = [answer for one in sent for answer in one.answers]
    if not answers:
        return 'no image there'
    failed = sum(bool(answer.error) for answer in answers)
    times = [one.milliseconds for one in sent if one.milliseconds is not None]
    text = f'{len(answers) - failed:,} images classified, {failed:,} not; {len(answers) / seconds:,.1f} a second'
    if times:
        quantiles = np.percentile(times, [50, 95, 99])
        text += '; an answer took {:.1f} ms (p50), {:.1f} (p95), {:.1f} (p99)'.format(*quantiles)
    return f'{text}; {sum(one.retries for one in sent):,} requests sent again'


def _send_all(config: PredictClientConfig, ask: Ask) -> Iterator[Sent]:
    """Each request's fate, in order, while others are under way."""
    pending: deque[concurrent.futures.Future] = deque()
    pool = concurrent.futures.ThreadPoolExecutor(config.concurrency)
    try:
        with progress.bar('predicting', total=None, unit='images') as bar:
            for batch in _batched(image_paths.find(config.images), config.batch_size):
                pending.append(pool.submit(_send, config, ask, batch))
                if len(pending) >= 2 * config.concurrency:
                    yield _shown(pending.popleft().result(), bar)
            while pending:
                yield _shown(pending.popleft().result(), bar)
    finally:
        pool.shutdown(cancel_futures=True)


def _batched(candidates: Iterable[Candidate], size: int) -> Iterator[tuple[Candidate, ...]]:
    iterator = iter(candidates)  # itertools.batched needs Python 3.12
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _shown(sent: Sent, bar: Any) -> Sent:
    bar.update(len(sent.answers))
    return sent


def _send(config: PredictClientConfig, ask: Ask, candidates: Iterable[Candidate]) -> Sent:
    """Reads the files and asks about them. Raises UserError if the server is away for longer than all retries."""
    read = [(candidate.path, *_read(candidate, config.max_image_mib << 20)) for candidate in candidates]
    images = [data for _, data, error in read if not error]
    if not images:
        return Sent([Answer(path, error=error) for path, _, error in read], None, 0)
    tries = itertools.count()
    while True:
        number, start = next(tries), time.perf_counter()
        try:
            rows = _rows(ask(images))
            break
        except Refused as refused:
            rows = [Answer('', error=str(refused))] * len(images)
            break
        except Again as again:
            if number >= config.retries:
                raise UserError(f'--server={config.address}: {again}, after {number + 1} tries.') from None
            time.sleep(wait_seconds(number))
    milliseconds, answered = 1000 * (time.perf_counter() - start), iter(rows)
    answers = [Answer(path, error=error) if error else
               next(answered)._replace(path=path, milliseconds=round(milliseconds, 3)) for path, _, error in read]
    return Sent(answers, milliseconds, number)


def wait_seconds(number: int) -> float:
    """How long to wait after try `number`, from 0: at random, so that clients do not come back together."""
    return random.uniform(0, min(_MAX_WAIT_SECONDS, _WAIT_SECONDS * 2**number))


def _read(candidate: Candidate, max_bytes: int) -> tuple[bytes, str]:
    """A file's bytes, or the reason why there are none."""
    path, reason = candidate
    try:
        if reason:
            return b'', reason
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            return b'', 'not a regular file'
        if info.st_size > max_bytes:
            return b'', f'too large: {info.st_size} bytes, at most {max_bytes}'
        return pathlib.Path(path).read_bytes(), ''
    except OSError as error:
        return b'', f'unreadable: {error.strerror}'
    except ValueError as error:  # a path with a NUL in it
        return b'', f'unreadable: {error}'


def _rows(outputs: dict[str, list[Any]]) -> list[Answer]:
    """An answer an image, without its path. Raises UserError if the signature is for something else."""
    if 'label' not in outputs:
        raise UserError(f'--signature: it gives {", ".join(sorted(outputs))}, and no label.')
    count = len(outputs['label'])
    valid = outputs.get('valid', [True] * count)
    codes = outputs.get('error_code', ['not decoded'] * count)
    scores, probabilities = outputs.get('score', [None] * count), outputs.get('probabilities', [[]] * count)
    return [Answer('', outputs['label'][i], scores[i], tuple(probabilities[i])) if valid[i] else
            Answer('', error=codes[i] or 'not decoded') for i in range(count)]


def _over_rest(config: PredictClientConfig, stack: contextlib.ExitStack) -> Ask:
    version = f'/versions/{config.version}' if config.version else ''
    path = f'/v1/models/{config.model_name}{version}:predict'
    idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()  # kept open
    stack.callback(_close_all, idle)

    def ask(images: list[bytes]) -> dict[str, list[Any]]:
        encoded = [{'b64': base64.b64encode(data).decode()} for data in images]
        body = json.dumps({'signature_name': config.signature, 'inputs': {'image_bytes': encoded}})
        try:
            connection = idle.get_nowait()
        except queue.Empty:
            connection = http.client.HTTPConnection(config.address, timeout=config.seconds)
        try:
            connection.request('POST', path, body, {'Content-Type': 'application/json'})
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Again(f'no answer ({error})') from None
        idle.put(connection)
        if status == 200:
            return _named(json.loads(answer)['outputs'])
        _refuse_http(config, status, answer)

    return ask


def _close_all(idle: queue.SimpleQueue) -> None:
    while not idle.empty():
        idle.get().close()


def _refuse_http(config: PredictClientConfig, status: int, answer: bytes) -> None:
    try:
        reason = json.loads(answer)['error']
    except (ValueError, KeyError, TypeError):
        reason = answer[:200].decode('utf-8', 'replace')
    if status in _AGAIN_HTTP:
        raise Again(f'{status}: {reason}')
    if status == 404:
        raise UserError(f'--model_name={config.model_name}: {reason}.')
    raise Refused(f'{status}: {reason}')


def _named(outputs: Any) -> dict[str, list[Any]]:
    return outputs if isinstance(outputs, dict) else {'output': outputs}


def _over_grpc(config: PredictClientConfig, stack: contextlib.ExitStack) -> Ask:
    channel = stack.enter_context(grpc.insecure_channel(config.address, options=[
        ('grpc.max_receive_message_length', -1), ('grpc.max_send_message_length', -1)]))
    call = channel.unary_unary(predict_messages.METHOD, request_serializer=lambda request: request.SerializeToString(),
                               response_deserializer=predict_messages.message('PredictResponse').FromString)
    make = functools.partial(predict_messages.request, config.model_name, config.version, config.signature)

    def ask(images: list[bytes]) -> dict[str, list[Any]]:
        try:
            return predict_messages.outputs(call(make(images), timeout=config.seconds))
        except grpc.RpcError as error:
            _refuse_grpc(config, error.code(), error.details())

    return ask


def _refuse_grpc(config: PredictClientConfig, code: grpc.StatusCode, reason: str) -> None:
    if code in _AGAIN_GRPC and 'larger than max' not in reason:
        raise Again(f'{code.name}: {reason}')
    if code == grpc.StatusCode.NOT_FOUND:
        raise UserError(f'--model_name={config.model_name}: {reason}.')
    raise Refused(f'{code.name}: {reason}')


def _opened(config: PredictClientConfig, stack: contextlib.ExitStack) -> TextIO | None:
    if not config.output:
        return None
    out = sys.stdout if config.output == '-' else stack.enter_context(
        open(config.output, 'w', encoding='utf-8', errors='surrogateescape', newline=''))
    if not config.output.lower().endswith('.jsonl'):
        csv.writer(out, lineterminator='\n').writerow(_COLUMNS)
    return out


def _write(out: TextIO | None, output: str, answers: list[Answer]) -> None:
    if out is None:
        return
    text = io.StringIO()
    if output.lower().endswith('.jsonl'):
        for answer in answers:
            text.write(json.dumps(answer._asdict(), ensure_ascii=True) + '\n')
    else:
        rows = csv.writer(text, lineterminator='\n')
        rows.writerows(answer._replace(probabilities=' '.join(f'{p:.9g}' for p in answer.probabilities))
                       for answer in answers)
    out.write(text.getvalue())
    out.flush()


if __name__ == '__main__':
    cli.run(main, PredictClientConfig)
