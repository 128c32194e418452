"""TF Serving's REST API, beside the page, health and metrics, as an ASGI app.

https://www.tensorflow.org/tfx/serving/api_rest. What it does not say: 403 for another host's name, 408 for a body that
takes too long, 413 for one that is too large, 415 for an encoded one, 429 where too much waits, 504 where the answer
takes too long. The body is {"error": ...} in each case. Only uvicorn's own errors are plain text: 400 for what is no
HTTP, 503 beyond the connections that it takes, and 500 for what is cut off at the end of a server's --drain_seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
import contextlib
import functools
import re
import time
import traceback
from typing import Any, NamedTuple
import urllib.parse

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from boardrec.serving import json_tensors, messages, metrics, proto_tensors, upload_page
from boardrec.serving.failure import Failure
from boardrec.serving.metrics import Metrics
from boardrec.serving.servable import Arrays, REGRESS, Signature
from boardrec.serving.service import Service, Spec

# tensorflow/serving, http_rest_api_util.cc
_ASK = re.compile(r'/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)', re.I)
_LOOK = re.compile(r'/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?(?:/(metadata))?', re.I)
_PORT = re.compile(r':\d*$')
_ON_LOOP_BYTES = 128 << 10  # of a body: up to 4 ms for a list of small numbers
_ON_LOOP_VALUES = 32 << 10  # of an answer: up to 4 ms for rows of objects


class Limits(NamedTuple):
    """What a request may take."""

    body_bytes: int
    seconds: float  # for its body to arrive


def app(service: Service, measured: Metrics, limits: Limits, names: frozenset[str] | None = None) -> ASGIApp:
    """The ASGI app. Where there are `names`, requests whose Host is none of them are refused with 403."""
    ask = functools.partial(_counted, measured, functools.partial(_ask_or_look, service, limits))

    async def health(request: Request) -> Response:
        return Response('ok\n', media_type='text/plain')

    async def ready(request: Request) -> Response:
        return Response('ready\n' if service.ready else 'not ready: no version is served, or the server is stopping\n',
                        200 if service.ready else 503, media_type='text/plain')

    async def prometheus(request: Request) -> Response:
        return Response(measured.page(), media_type=metrics.CONTENT_TYPE)

    async def shown(request: Request) -> Response:
        return Response(upload_page.html(), headers=upload_page.headers(), media_type='text/html')

    async def facts(request: Request) -> Response:
        try:
            return _json(json_tensors.dumps(service.facts()))
        except Failure as refused:
            return _error(refused)

    every = Starlette(routes=[
        Route('/', shown), Route('/model.json', facts), Route('/healthz', health), Route('/readyz', ready),
        Route(metrics.PATH, prometheus),
        Route('/{path:path}', ask, methods=['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'HEAD'])])
    return every if names is None else functools.partial(_named, every, names)


async def _named(every: ASGIApp, names: frozenset[str], scope: Scope, receive: Receive, send: Send) -> None:
    for said in Headers(scope=scope).getlist('host'):
        if _PORT.sub('', said).strip('[]').lower() not in names:
            every = _error(Failure('PERMISSION_DENIED', (
                f'Host is {said[:100]!r}, but this server is for this machine alone, where it is called localhost or '
                '127.0.0.1; --host names an address at which it serves others')))
    await every(scope, receive, send)


async def _counted(measured: Metrics, handler: Callable[[Request], Awaitable[bytes]],
                   request: Request) -> Response:
    """Whatever happens as a response, and counted."""
    start, code = time.perf_counter(), 'CANCELLED'  # what is left where the client went away, or the server ends
    method = _method_of(request)
    try:
        response = _json(await handler(request))
        code = 'OK'
        return response
    except Failure as refused:
        code = refused.code.name
        return _error(refused)
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        code = 'INTERNAL'
        traceback.print_exc()
        return _error(Failure('INTERNAL', f'{type(error).__name__} in the server'))
    finally:
        measured.request('rest', method, code, time.perf_counter() - start)


async def _ask_or_look(service: Service, limits: Limits, request: Request) -> bytes:
    path = request.scope['raw_path'].decode('ascii', 'replace')
    if not path.lower().startswith('/v1/'):
        raise Failure('NOT_FOUND', f'Not Found: {path[:200]}')
    if request.method == 'POST' and (match := _ASK.fullmatch(path)):
        return await _ask(service, limits, request, _spec(match), match[4].lower())
    if request.method == 'GET' and (match := _LOOK.fullmatch(path)):
        return _look(service, _spec(match), bool(match[4]))
    raise Failure('INVALID_ARGUMENT', f'Malformed request: {request.method} {path[:200]}')


async def _ask(service: Service, limits: Limits, request: Request, spec: Spec, method: str) -> bytes:
    with contextlib.ExitStack() as held:
        body = await _read(service, limits, request, held)
        large = len(body) > _ON_LOOP_BYTES
        document = await _called(large, json_tensors.loads, body)
        del body
        served = held.enter_context(service.use(spec))
        signature = served.servable.signature(json_tensors.signature_name(document))
        inputs, write = await _called(large, _METHODS[method], document, signature)
        del document
        outputs = await _while_there(request, service.run(served, signature, inputs))
        return await _called(json_tensors.size_of(outputs) > _ON_LOOP_VALUES, write, outputs)


async def _called(large: bool, function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, which runs in a thread if it takes the event loop too long."""
    return await asyncio.to_thread(function, *args) if large else function(*args)


async def _while_there(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns. Cancels it, and raises ClientDisconnect, if the client leaves before."""
    tasks = working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)  # what was cancelled gives back what it holds


async def _left(request: Request) -> None:
    while (await request.receive())['type'] != 'http.disconnect':
        pass


def _predict(document: dict[str, Any], signature: Signature) -> tuple[Arrays, Callable[[Arrays], bytes]]:
    inputs, in_rows = json_tensors.inputs_of(document, signature)
    return inputs, functools.partial(json_tensors.answer, in_rows=in_rows)


def _regress(document: dict[str, Any], signature: Signature) -> None:
    if signature.method != REGRESS:
        raise Failure('INVALID_ARGUMENT', f'Expected regression signature method_name to be {REGRESS}. '
                      f'Was: {signature.method}')
    raise Failure('UNIMPLEMENTED', 'boardrec.serve does not regress; TF Serving does')


def _classify(document: dict[str, Any], signature: Signature) -> tuple[Arrays, Callable[[Arrays], bytes]]:
    name = proto_tensors.check_classifies(signature)
    examples = proto_tensors.examples_of(proto_tensors.input_of_json(document))
    return {name: examples}, proto_tensors.classification_json


_METHODS = {'predict': _predict, 'regress': _regress, 'classify': _classify}  # a request's inputs, and how to answer


def _look(service: Service, spec: Spec, metadata: bool) -> bytes:
    if not spec.name:
        raise Failure('INVALID_ARGUMENT', 'Missing model name in request.')
    if not metadata:
        return json_tensors.dumps(messages.as_document(messages.model_status(service.statuses(spec))))
    with service.use(spec) as served:
        return json_tensors.dumps(messages.model_metadata_json(spec.name, served.servable))


def _spec(match: re.Match) -> Spec:
    if match[2] and int(match[2]) >= 2**63:
        raise Failure('INVALID_ARGUMENT', f'Failed to convert version: {match[2][:100]} to numeric.')
    return Spec(urllib.parse.unquote(match[1] or ''), int(match[2]) if match[2] else None,
                urllib.parse.unquote(match[3]) if match[3] else None)


async def _read(service: Service, limits: Limits, request: Request, held: contextlib.ExitStack) -> bytearray:
    """The body, its bytes held until `held` is closed."""
    if request.headers.get('content-encoding', 'identity') != 'identity':
        raise Failure('INVALID_ARGUMENT', 'Content-Encoding is not taken: send the body as it is', 415)
    too_large = Failure('RESOURCE_EXHAUSTED',
                        f'the body has more than --max_request_mib={limits.body_bytes >> 20} MiB', 413)
    declared = request.headers.get('content-length', '0')
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise too_large
    body, hold = bytearray(), held.enter_context(service.hold())
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.body_bytes:
                    raise too_large
                hold(len(chunk))
                body += chunk
    except TimeoutError:
        raise Failure('DEADLINE_EXCEEDED', f'the body did not arrive within {limits.seconds:g} s', 408) from None
    return body


def _method_of(request: Request) -> str:
    """For the counters: few names, whatever is asked."""
    match = _ASK.fullmatch(request.scope['path'])
    if match:
        return match[4].lower()
    match = _LOOK.fullmatch(request.scope['path'])
    return 'other' if not match else 'metadata' if match[4] else 'status'


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type='application/json')


def _error(refused: Failure) -> Response:
    return _json(json_tensors.dumps({'error': refused.message}), refused.http_status)
