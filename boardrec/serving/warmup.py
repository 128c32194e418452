"""Requests that an export brings along, answered before a version takes others: a signature's first call compiles.

They are a TFRecord file of PredictionLogs, as TF Serving reads it; one that fails fails the version, as there. The
first of each signature is enough: other numbers of rows compile nothing, and 16 of a large network take half a minute.
"""

from typing import Any

from boardrec.serving import proto_tensors
from boardrec.serving.failure import Failure
from boardrec.serving.servable import Servable, Signature
from boardrec.serving.warmup_requests import FILE

_MAX_RECORDS = 1000  # TF Serving's
_MAX_BYTES = 1 << 30


def warm_up(servable: Servable) -> int:
    """Runs the first request of each signature; returns how many. Raises Failure or one of TensorFlow's errors."""
    path = servable.folder / FILE
    if not path.is_file():
        return 0
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2
    seen = set()
    for count, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
        if count > _MAX_RECORDS:
            raise Failure('INVALID_ARGUMENT', f'{FILE} holds more than {_MAX_RECORDS} requests')
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof('log_type')
        if kind not in ('predict_log', 'classify_log'):
            raise Failure('UNIMPLEMENTED', f'{FILE} holds a {kind}, which boardrec.serve cannot answer')
        request = getattr(log, kind).request
        name = request.model_spec.signature_name
        if name not in seen:
            seen.add(name)
            _answer(servable, servable.signature(name), request)
    return len(seen)


def _answer(servable: Servable, signature: Signature, request: Any) -> None:
    if hasattr(request, 'input'):  # of a ClassificationRequest
        inputs = {'inputs': proto_tensors.examples_of(request.input)}
    else:
        inputs = {name: proto_tensors.array_of(proto, name, _MAX_BYTES) for name, proto in request.inputs.items()}
    signature.check(inputs)
    servable.run(signature, inputs)
