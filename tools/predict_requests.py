"""What the client asks, and how often: one model of a server, the files that it reads, the rows that come of them."""

from collections.abc import Callable, Iterable
import dataclasses
import itertools
import os
import pathlib
import random
import re
import stat
import threading
import time
from typing import Any, NamedTuple, TypeVar

import numpy as np
import predict_transport
from predict_transport import Again, Missing, Refused, TimedOut, Transport

from boardrec import progress
from boardrec.config import setting, UserError
from boardrec.data.image_paths import Candidate
from boardrec.reporting import prediction_file
from boardrec.reporting.prediction_file import Row

_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.1, 10.0  # before the second try at most, and before any
_LOADING_RETRIES = 7  # in about ten seconds a server that has just started has loaded its model
_CHOICES = {'api': ('rest', 'grpc'), 'output_format': ('auto', 'csv', 'jsonl')}

Answer = TypeVar('Answer')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictClientConfig:
    """Settings of this tool."""

    images: str = setting('folder of images (searched through), a quoted glob, one image, a .txt file of paths, or - '
                          'for paths on standard input')
    server: str = setting('HOST:PORT; by default that of --api on this machine', '')
    api: str = setting('how to ask', 'rest', _CHOICES['api'])
    model_name: str = setting("the model's name", 'boardrec')
    version: int = setting('the version to ask; 0 takes the newest there is at the start', 0)
    signature: str = setting('signature that takes image_bytes and gives label and probabilities', 'serving_default')
    output: str = setting('file to write, FILE.csv or FILE.jsonl, with the columns of boardrec.predict (path, '
                          'predicted, p_CLASS..., error), or - for standard output; by default none', '')
    output_format: str = setting('csv or jsonl (JSON lines); auto takes what --output ends in, and csv for -', 'auto',
                                 _CHOICES['output_format'])
    batch_size: int = setting('images a request; a request that is refused is sent again in halves', 1)
    concurrency: int = setting('requests at once', 8)
    retries: int = setting('how often a request is sent again where the server is busy or away, after waits that grow '
                           f'to {_MAX_WAIT_SECONDS:g} s; 14 take about a minute', 14)
    seconds: float = setting('seconds to wait for an answer; a request without one is not sent again, because the '
                             'server may be at work on it still', 30.0)
    max_image_mib: int = setting('leave files of more MiB out; 23 is what boardrec.serve --max_request_mib=32 takes by '
                                 'REST, where an image becomes a third larger', 23)

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f'--{name}={getattr(self, name)}: must be one of {", ".join(choices)}.')
        for name, least in (('version', 0), ('batch_size', 1), ('concurrency', 1), ('retries', 0), ('seconds', 0.001),
                            ('max_image_mib', 1)):
            if getattr(self, name) < least:
                raise UserError(f'--{name}={getattr(self, name)}: must be at least {least}.')
        if not re.fullmatch(r'([^\s/:]+|\[[^\s/]+\]):\d{1,5}', self.address):
            raise UserError(f'--server={self.server}: must be HOST:PORT, such as 127.0.0.1:8501, without http:// and '
                            'without a path.')

    @property
    def address(self) -> str:
        """`server`, or else its default."""
        return self.server or ('127.0.0.1:8501' if self.api == 'rest' else '127.0.0.1:8500')


class Sent(NamedTuple):
    """What became of a request."""

    rows: list[Row]
    milliseconds: float | None = None  # of the try that was answered
    retries: int = 0
    refused: str = ''  # the server's reason to answer none of it


class Client:
    """One model of a server, asked from several threads; whoever closes it ends what waits to try again."""

    def __init__(self, config: PredictClientConfig):
        self._config, self._closed = config, threading.Event()
        make = predict_transport.Rest if config.api == 'rest' else predict_transport.Grpc
        self._transport: Transport = make(config.address, config.model_name, config.seconds)
        self._version, self._found = config.version, False

    @property
    def identity(self) -> dict[str, Any]:
        """What the answers depend on."""
        return {'client': [self._config.address, self._config.model_name, self._version, self._config.signature,
                           self._config.max_image_mib]}

    def find_model(self) -> list[str]:
        """The class names of the model, once it answers. Raises UserError if it cannot be asked.

        Of all signatures only `classify` gives names.
        """
        address, signature = self._config.address, self._config.signature
        try:
            self._version = self._version or self._until_answered(self._transport.newest)[0]
            classes = self._until_answered(lambda: self._predict('classify', predict_transport.CLASSIFY_INPUTS))[0]
            names = classes['classes'][0]
            outputs = self._until_answered(lambda: self._predict(signature, {'image_bytes': [b'']}))[0]
        except Missing as missing:
            version = f' --version={self._config.version}' if self._config.version else ''
            raise UserError(f'--model_name={self._config.model_name}{version}: {address} does not serve it ({missing}).'
                            ) from None
        except TimedOut as late:
            raise UserError(f'--server={address}: {late}.') from None
        except Refused as refused:
            raise UserError(f'--server={address}: {refused}; this client asks exports of boardrec, whose '
                            f'signatures are classify and --signature={signature}.') from None
        except (KeyError, IndexError, TypeError):
            raise UserError(f'--server={address}: signature classify does not name the classes, as it does in exports '
                            'of boardrec.') from None
        for output in ('label', 'probabilities'):
            if output not in outputs:
                raise UserError(f'--signature={signature}: gives {", ".join(sorted(outputs))}, and no {output}.')
        self._found = True
        return names

    def send(self, candidates: Iterable[Candidate]) -> Sent:
        """Reads the files and asks about them. Raises UserError if the server is away for longer than all retries."""
        read = [(candidate.path, *_read(candidate, self._config.max_image_mib << 20)) for candidate in candidates]
        images = [data for _, data, error in read if not error]
        answered = self._ask(images) if images else Sent([])
        rows = iter(answered.rows)
        return answered._replace(rows=[Row(path, error=error) if error else next(rows)._replace(path=path)
                                       for path, _, error in read])

    def close(self) -> None:
        """Ends the connections; requests under way fail."""
        self.give_up()
        self._transport.close()

    def give_up(self) -> None:
        """Has no request sent again."""
        self._closed.set()

    def _ask(self, images: list[bytes]) -> Sent:
        """A row an image, without paths. One that the server refuses, or that makes a request too large, costs no
        other its answer.
        """
        try:
            (outputs, milliseconds), tries = self._until_answered(lambda: self._timed(images))
            return Sent(_rows(outputs, len(images)), milliseconds, tries - 1)
        except Refused as refused:
            if len(images) == 1 or isinstance(refused, TimedOut):
                return Sent([Row('', error=str(refused))] * len(images), refused=str(refused))
        half = len(images) // 2
        first, second = self._ask(images[:half]), self._ask(images[half:])
        return Sent(first.rows + second.rows, second.milliseconds or first.milliseconds,
                    first.retries + second.retries, first.refused and second.refused)

    def _timed(self, images: list[bytes]) -> tuple[predict_transport.Outputs, float]:
        start = time.perf_counter()
        outputs = self._predict(self._config.signature, {'image_bytes': images})
        return outputs, 1000 * (time.perf_counter() - start)

    def _predict(self, signature: str, inputs: dict[str, list[bytes]]) -> predict_transport.Outputs:
        return self._transport.predict(signature, self._version, inputs)

    def _until_answered(self, ask: Callable[[], Answer]) -> tuple[Answer, int]:
        """What `ask` returns, and after how many tries.

        Raises Missing where the model is not there after fewer of them, unless it was: then it is loaded again.
        """
        address, retries = self._config.address, self._config.retries
        for tries in itertools.count(1):
            try:
                return ask(), tries
            except Again as error:
                again = error
            if isinstance(again, Missing) and not self._found:
                retries = min(retries, _LOADING_RETRIES)
                if tries > retries:
                    raise again
            if tries == 1 <= retries and not self._found:
                progress.say(f'{address}: {again}; asking again up to {prediction_file.counted(retries, "time")}')
            if tries > retries or self._closed.wait(wait_seconds(tries - 1)):
                raise UserError(f'--server={address}: {again}, after {prediction_file.counted(tries, "attempt")}; see '
                                f'that a server runs there, or wait longer with more than --retries={retries}.')
        raise AssertionError


def wait_seconds(number: int) -> float:
    """How long to wait after try `number`, from 0: at random, so that clients do not come back together."""
    return random.uniform(0.5, 1) * min(_MAX_WAIT_SECONDS, _WAIT_SECONDS * 2**number)


def _read(candidate: Candidate, max_bytes: int) -> tuple[bytes, str]:
    """A file's bytes, or the reason why there are none, in the words of boardrec.predict."""
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


def _rows(outputs: predict_transport.Outputs, count: int) -> list[Row]:
    """A row an image, without its path. Raises Refused if there are not as many answers as images."""
    labels, probabilities = outputs.get('label', []), outputs.get('probabilities', [])
    valid, codes = outputs.get('valid', [True] * count), outputs.get('error_code', [''] * count)
    for name, values in (('label', labels), ('probabilities', probabilities), ('valid', valid), ('error_code', codes)):
        if len(values) != count:
            raise Refused(f'an answer of {len(values)} rows of {name} to {count} images')
    as_float32 = np.asarray(probabilities, np.float32).tolist()  # JSON has more digits, or fewer
    return [Row('', labels[i], prediction_file.rounded(as_float32[i])) if valid[i] else
            Row('', error=codes[i] or 'not decoded') for i in range(count)]
