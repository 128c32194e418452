"""How the client asks a server: TF Serving's Predict, by REST or gRPC.

What goes wrong is one of three: `Again`, a server that is busy or away; `Refused`, for good; or a UserError where the
address is that of something else.
"""

import base64
import http.client
import json
import queue
from typing import Any, Protocol
import urllib.parse

import grpc
import predict_messages

from boardrec.config import UserError

Outputs = dict[str, list[Any]]
CLASSIFY_INPUTS = {'inputs': [predict_messages.EXAMPLE_OF_NOTHING]}  # enough for the names of the classes
_AGAIN_HTTP = {429, 502, 503}
_AGAIN_GRPC = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED,
               grpc.StatusCode.CANCELLED}  # by a server that stops


class Again(Exception):
    """The server is busy or away, and may not be so later."""


class Missing(Again):
    """The server has no such model: it never will, or it has not loaded it yet."""


class Refused(Exception):
    """The server's reason not to answer a request, whenever it is sent."""


class TimedOut(Refused):
    """No answer came in time. The server may be at work on it still, so to send it again would double its work."""


class Transport(Protocol):
    """A way to ask one model of a server; from any thread."""

    def newest(self) -> int:
        """The version that answers if none is named; 0 if the server does not say."""

    def predict(self, signature: str, version: int, inputs: dict[str, list[bytes]]) -> Outputs:
        """The outputs of a signature; version 0 is the newest."""

    def close(self) -> None:
        """Ends the connections."""


class Rest:
    """TF Serving's REST API."""

    def __init__(self, address: str, model_name: str, seconds: float):
        self._address, self._seconds = address, seconds
        self._model = f'/v1/models/{urllib.parse.quote(model_name, safe="")}'
        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()  # kept open

    def newest(self) -> int:
        """See Transport."""
        answer = self._answer('GET', f'{self._model}/metadata')
        try:
            return int(answer['model_spec']['version'])
        except (KeyError, TypeError, ValueError):
            return 0

    def predict(self, signature: str, version: int, inputs: dict[str, list[bytes]]) -> Outputs:
        """See Transport."""
        encoded = {name: [{'b64': base64.b64encode(value).decode()} for value in values]
                   for name, values in inputs.items()}
        of_version = f'/versions/{version}' if version else ''
        answer = self._answer('POST', f'{self._model}{of_version}:predict',
                              json.dumps({'signature_name': signature, 'inputs': encoded}))
        if not isinstance(answer, dict) or 'outputs' not in answer:
            raise Refused('an answer without outputs')
        outputs = answer['outputs']
        return outputs if isinstance(outputs, dict) else {'output': outputs}  # of a signature with one alone

    def close(self) -> None:
        """See Transport."""
        while not self._idle.empty():
            self._idle.get().close()

    def _answer(self, method: str, path: str, body: str | None = None) -> Any:
        status, answer = self._exchange(method, path, body)
        try:
            document = json.loads(answer)
        except ValueError:
            document = None
        if status == 200:
            if document is None:
                raise Refused('an answer that is no JSON')
            return document
        reason = document['error'] if isinstance(document, dict) and 'error' in document else (
            answer[:200].decode('utf-8', 'replace'))
        if status == 404:
            raise Missing(f'404: {reason}')
        if status in _AGAIN_HTTP:
            raise Again(f'{status}: {reason}')
        if status == 413:
            size = f'{len(body or "") / 2**20:.1f} MiB'
            reason += f' (this one has {size}: base64 takes 4/3 of a file, --api=grpc does not)'
        raise Refused(f'{status}: {reason}')

    def _exchange(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        try:
            connection, is_kept = self._idle.get_nowait(), True
        except queue.Empty:
            is_kept, connection = False, http.client.HTTPConnection(self._address, timeout=self._seconds)
        sent = False
        try:
            connection.request(method, path, body, {'Content-Type': 'application/json'} if body else {})
            sent = True
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if is_kept and isinstance(error, ConnectionError):  # servers end what has been idle for some seconds
                return self._exchange(method, path, body)
            raise self._failure(error, sent) from None
        self._idle.put(connection)
        return status, answer

    def _failure(self, error: Exception, sent: bool) -> Exception:
        if isinstance(error, TimeoutError) and sent:
            return TimedOut(f'no answer within --seconds={self._seconds:g}')
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
            return UserError(f'--server={self._address}: what listens there does not speak HTTP/1, which looks like '
                             'the gRPC port: give --api=grpc, or the REST port.')
        return Again(f'no answer ({error})')


class Grpc:
    """TF Serving's gRPC API."""

    def __init__(self, address: str, model_name: str, seconds: float):
        self._address, self._model_name, self._seconds = address, model_name, seconds
        self._channel = grpc.insecure_channel(address, options=[
            ('grpc.max_receive_message_length', -1), ('grpc.max_send_message_length', -1),
            # A server that starts again is found within these; the client's own waits are the longer ones.
            ('grpc.min_reconnect_backoff_ms', 100), ('grpc.initial_reconnect_backoff_ms', 100),
            ('grpc.max_reconnect_backoff_ms', 5000)])
        self._call = self._channel.unary_unary(
            predict_messages.METHOD, request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=predict_messages.message('PredictResponse').FromString)

    def newest(self) -> int:
        """See Transport."""
        return self._answer('classify', 0, CLASSIFY_INPUTS).model_spec.version.value

    def predict(self, signature: str, version: int, inputs: dict[str, list[bytes]]) -> Outputs:
        """See Transport."""
        return predict_messages.outputs(self._answer(signature, version, inputs))

    def close(self) -> None:
        """See Transport."""
        self._channel.close()

    def _answer(self, signature: str, version: int, inputs: dict[str, list[bytes]]) -> Any:
        try:
            return self._call(predict_messages.request(self._model_name, version, signature, inputs),
                              timeout=self._seconds)
        except grpc.RpcError as error:
            raise self._failure(error.code(), error.details()) from None

    def _failure(self, code: grpc.StatusCode, reason: str) -> Exception:
        if 'http1.x server' in reason:  # as gRPC's library words it
            return UserError(f'--server={self._address}: what listens there does not speak gRPC, which looks like the '
                             'REST port: give --api=rest, or the gRPC port.')
        if code == grpc.StatusCode.NOT_FOUND:
            return Missing(f'{code.name}: {reason}')
        if code in _AGAIN_GRPC and 'larger than max' not in reason:
            return Again(f'{code.name}: {reason}')
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimedOut(f'{code.name}: {reason} (--seconds={self._seconds:g})')
        return Refused(f'{code.name}: {reason}')
