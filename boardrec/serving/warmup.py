"""The requests that an export brings along, answered once before a version takes others: the first call compiles.

They are a TFRecord file of PredictionLogs, as TF Serving reads it; one that fails fails the version, as there.
"""

from typing import Any

from boardrec.serving import proto_tensors
from boardrec.serving.failure import Failure
from boardrec.serving.servable import Servable
from boardrec.serving.warmup_requests import FILE

_MAX_RECORDS = 1000  # TF Serving's
_MAX_BYTES = 1 << 30


def warm_up(servable: Servable) -> int:
    """Runs the requests; returns how many there were. Raises Failure or TensorFlow's errors if one fails."""
    path = servable.folder / FILE
    if not path.is_file():
        return 0
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2
    count = 0
    for count, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
        if count > _MAX_RECORDS:
            raise Failure('INVALID_ARGUMENT', f'{FILE} holds more than {_MAX_RECORDS} requests')
        _answer(servable, prediction_log_pb2.PredictionLog.FromString(record))
    return count


def _answer(servable: Servable, log: Any) -> None:
    kind = log.WhichOneof('log_type')
    if kind == 'predict_log':
        request = log.predict_log.request
        inputs = {name: proto_tensors.array_of(proto, name, _MAX_BYTES) for name, proto in request.inputs.items()}
    elif kind == 'classify_log':
        request = log.classify_log.request
        inputs = {'inputs': proto_tensors.examples_of(request.input)}
    else:
        raise Failure('UNIMPLEMENTED', f'{FILE} holds a {kind}, which boardrec.serve cannot answer')
    signature = servable.signature(request.model_spec.signature_name)
    signature.check(inputs)
    servable.run(signature, inputs)
