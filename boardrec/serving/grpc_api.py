"""TF Serving's gRPC API: PredictionService (Predict, Classify, GetModelMetadata), ModelService, gRPC's health service.

The rest of it answers UNIMPLEMENTED.
"""

import asyncio
from collections.abc import Awaitable, Callable
import time
import traceback
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import classification_pb2, model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from boardrec.serving import messages, proto_tensors
from boardrec.serving.failure import Failure
from boardrec.serving.metrics import Metrics
from boardrec.serving.servable import Signature
from boardrec.serving.service import Service, Spec

PREDICTION_SERVICE = 'tensorflow.serving.PredictionService'
_ENVELOPE_BYTES = 1 << 20  # of a message, beside what it carries
_READ_BYTES = 8 << 30
_FEWEST_CALLS = 64


class Health(health_pb2_grpc.HealthServicer):
    """gRPC's health service, for the server ('') and PredictionService; unlike grpcio's, it lets a server stop."""

    def __init__(self):
        self._serving = self._ended = False
        self._changed = asyncio.Condition()

    async def set(self, serving: bool, *, ended: bool = False) -> None:
        """Tells whether requests should be sent; watchers hear of a change, and are let go where it has `ended`."""
        if (serving, ended) == (self._serving, self._ended):
            return
        async with self._changed:
            self._serving, self._ended = serving, ended
            self._changed.notify_all()

    async def Check(self, request: Any, context: Any) -> Any:
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f'unknown service: {request.service[:100]}')
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:
        told = None
        while True:
            async with self._changed:
                while not self._ended and self._status(request.service) == told:
                    await self._changed.wait()
            status = self._status(request.service)
            if status == told:
                return
            await context.write(health_pb2.HealthCheckResponse(status=status))
            told = status

    def _status(self, service: str) -> int:
        response = health_pb2.HealthCheckResponse
        if service not in ('', PREDICTION_SERVICE):
            return response.SERVICE_UNKNOWN
        return response.SERVING if self._serving else response.NOT_SERVING


def make_server(service: Service, measured: Metrics, told: Health, *, max_bytes: int,
                max_calls: int) -> grpc.aio.Server:
    """A server without a port yet. Larger messages and more calls at once are refused with RESOURCE_EXHAUSTED."""
    server = grpc.aio.server(maximum_concurrent_rpcs=calls_at_once(max_bytes, max_calls), options=[
        ('grpc.max_receive_message_length', max_bytes + _ENVELOPE_BYTES), ('grpc.max_send_message_length', -1),
        ('grpc.so_reuseport', 0)])  # else two servers share a port in silence
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _Prediction(service, measured, max_bytes), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(service, measured), server)
    health_pb2_grpc.add_HealthServicer_to_server(told, server)
    return server


def calls_at_once(max_bytes: int, max_calls: int) -> int:
    """So many, at most max_calls, that the messages which gRPC reads at once fit _READ_BYTES, but _FEWEST_CALLS.

    gRPC reads a message whole before any code of ours can count it.
    """
    return min(max_calls, max(_FEWEST_CALLS, _READ_BYTES // (max_bytes + _ENVELOPE_BYTES)))


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: Service, measured: Metrics, max_bytes: int):
        self._service, self._measured, self._max_bytes = service, measured, max_bytes

    async def Predict(self, request: Any, context: Any) -> Any:
        return await _answered(self._measured, 'predict', context, self._predict, request)

    async def Classify(self, request: Any, context: Any) -> Any:
        return await _answered(self._measured, 'classify', context, self._classify, request)

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return await _answered(self._measured, 'metadata', context, self._metadata, request)

    async def Regress(self, request: Any, context: Any) -> None:
        await _unimplemented(context, 'Regress')

    async def MultiInference(self, request: Any, context: Any) -> None:
        await _unimplemented(context, 'MultiInference')

    async def _predict(self, request: Any) -> Any:
        spec = _spec(request)
        with self._service.hold(request.ByteSize()), self._service.use(spec) as served:
            signature = served.servable.signature(request.model_spec.signature_name)
            wanted = _filter(signature, request.output_filter)
            inputs = {name: proto_tensors.array_of(proto, name, self._max_bytes)
                      for name, proto in request.inputs.items()}
            outputs = await self._service.run(served, signature, inputs)
            response = predict_pb2.PredictResponse()
            for name in wanted:
                proto_tensors.fill(response.outputs[name], outputs[name])
            _tell(response.model_spec, spec, served.servable.version, signature)
            return response

    async def _classify(self, request: Any) -> Any:
        spec = _spec(request)
        with self._service.hold(request.ByteSize()), self._service.use(spec) as served:
            signature = served.servable.signature(request.model_spec.signature_name)
            name = proto_tensors.check_classifies(signature)
            examples = proto_tensors.examples_of(request.input)
            outputs = await self._service.run(served, signature, {name: examples})
            response = classification_pb2.ClassificationResponse(result=proto_tensors.classification_of(outputs))
            _tell(response.model_spec, spec, served.servable.version, signature)
            return response

    async def _metadata(self, request: Any) -> Any:
        spec = _spec(request)
        with self._service.use(spec) as served:
            return messages.model_metadata(spec.name, served.servable, list(request.metadata_field))


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: Service, measured: Metrics):
        self._service, self._measured = service, measured

    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        return await _answered(self._measured, 'status', context, self._status, request)

    async def HandleReloadConfigRequest(self, request: Any, context: Any) -> None:
        await _unimplemented(context, 'HandleReloadConfigRequest')

    async def _status(self, request: Any) -> Any:
        return messages.model_status(self._service.statuses(_spec(request)))


async def _answered(measured: Metrics, method: str, context: Any, handler: Callable[[Any], Awaitable[Any]],
                    request: Any) -> Any:
    """What the handler returns, or its failure as gRPC's status; and counted."""
    start, code = time.perf_counter(), 'CANCELLED'  # what is left where the client went away
    try:
        response = await handler(request)
        code = 'OK'
        return response
    except Failure as failed:
        refused = failed
        code = refused.code.name
    except Exception as error:
        traceback.print_exc()
        refused = Failure('INTERNAL', f'{type(error).__name__} in the server')
        code = 'INTERNAL'
    finally:
        measured.request('grpc', method, code, time.perf_counter() - start)
    await context.abort(refused.code, refused.message)


async def _unimplemented(context: Any, name: str) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f'boardrec.serve has no {name}; TF Serving does')


def _spec(request: Any) -> Spec:
    if not request.HasField('model_spec'):
        raise Failure('INVALID_ARGUMENT', 'Missing ModelSpec')
    spec = request.model_spec
    # OpenVINO's client asks for version 0 where it means the newest; TF Serving would look for a version 0.
    return Spec(spec.name, spec.version.value or None, spec.version_label or None)


def _filter(signature: Signature, wanted: Any) -> list[str]:
    for name in wanted:
        if name not in signature.outputs:
            raise Failure('INVALID_ARGUMENT', f'output tensor alias not found in signature: {name} Outputs expected to '
                          f'be in the set {{{",".join(signature.outputs)}}}.')
    if len(set(wanted)) != len(wanted):
        raise Failure('INVALID_ARGUMENT', 'duplicate output tensor alias: '
                      f'{next(name for name in wanted if list(wanted).count(name) > 1)}')
    return list(wanted) or list(signature.outputs)


def _tell(model_spec: Any, spec: Spec, version: int, signature: Signature) -> None:
    model_spec.name, model_spec.signature_name = spec.name, signature.name
    model_spec.version.value = version
