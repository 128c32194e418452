"""The messages of TF Serving's Predict call, by their field numbers: the packages that have them import TensorFlow.

From tensorflow_serving/apis/{predict,model}.proto and tensorflow/core/framework/{tensor,tensor_shape}.proto; a test
compares them with tensorflow-serving-api. Fields that no image classifier answers with are left out.
"""

import functools
import math
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import numpy as np

METHOD = '/tensorflow.serving.PredictionService/Predict'
# A tf.Example (tensorflow/core/example/feature.proto) whose one feature, image_bytes, is [b''].
EXAMPLE_OF_NOTHING = b'\n\x15\n\x13\n\x0bimage_bytes\x12\x04\n\x02\n\0'
_PACKAGE = 'boardrec_client'
_FIELD = descriptor_pb2.FieldDescriptorProto
_FLOAT, _BOOL, _STRING, _BYTES, _INT32, _INT64 = (
    _FIELD.TYPE_FLOAT, _FIELD.TYPE_BOOL, _FIELD.TYPE_STRING, _FIELD.TYPE_BYTES, _FIELD.TYPE_INT32, _FIELD.TYPE_INT64)
DT_STRING = 7
_NUMPY = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_}  # by tensorflow.DataType
_VALUES = {1: 'float_val', 2: 'double_val', 3: 'int_val', DT_STRING: 'string_val', 9: 'int64_val', 10: 'bool_val'}

# {message: [(field, number, type or message, repeated)]}; '{}X' is a map from strings to X.
MESSAGES = {
    'Dim': [('size', 1, _INT64, False)],
    'TensorShapeProto': [('dim', 2, 'Dim', True), ('unknown_rank', 3, _BOOL, False)],
    'TensorProto': [
        ('dtype', 1, _INT32, False), ('tensor_shape', 2, 'TensorShapeProto', False),
        ('tensor_content', 4, _BYTES, False), ('float_val', 5, _FLOAT, True),
        ('double_val', 6, _FIELD.TYPE_DOUBLE, True), ('int_val', 7, _INT32, True), ('string_val', 8, _BYTES, True),
        ('int64_val', 10, _INT64, True), ('bool_val', 11, _BOOL, True)],
    'Int64Value': [('value', 1, _INT64, False)],
    'ModelSpec': [('name', 1, _STRING, False), ('version', 2, 'Int64Value', False),
                  ('signature_name', 3, _STRING, False)],
    'PredictRequest': [('model_spec', 1, 'ModelSpec', False), ('inputs', 2, '{}TensorProto', True)],
    'PredictResponse': [('outputs', 1, '{}TensorProto', True), ('model_spec', 2, 'ModelSpec', False)],
}


@functools.cache
def message(name: str) -> Any:
    """The class of a message."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'{_PACKAGE}.{name}'))


def request(name: str, version: int, signature: str, inputs: dict[str, list[bytes]]) -> Any:
    """A PredictRequest for inputs of strings; version 0 asks for the newest."""
    made = message('PredictRequest')()
    made.model_spec.name, made.model_spec.signature_name = name, signature
    if version:
        made.model_spec.version.value = version
    for alias, values in inputs.items():
        tensor = made.inputs[alias]
        tensor.dtype = DT_STRING
        tensor.tensor_shape.dim.add().size = len(values)
        tensor.string_val.extend(values)
    return made


def outputs(response: Any) -> dict[str, list[Any]]:
    """The outputs of a PredictResponse as nested lists, text decoded; those of other types are left out."""
    return {name: _nested(tensor) for name, tensor in response.outputs.items() if tensor.dtype in _VALUES}


def _nested(tensor: Any) -> list[Any]:
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype == DT_STRING:
        values = [value.decode('utf-8', 'replace') for value in tensor.string_val]
        return np.array(values, object).reshape(shape).tolist()
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, _NUMPY[tensor.dtype]).reshape(shape).tolist()
    values = np.array(getattr(tensor, _VALUES[tensor.dtype]), _NUMPY[tensor.dtype])
    if len(values) == 1:  # stands for all that are equal
        values = np.repeat(values, math.prod(shape))
    return values.reshape(shape).tolist()


def _file() -> descriptor_pb2.FileDescriptorProto:
    made = descriptor_pb2.FileDescriptorProto(name='boardrec_client.proto', package=_PACKAGE, syntax='proto3')
    for name, fields in MESSAGES.items():
        described = made.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            _add_field(described, name, field, number, kind, repeated)
    return made


def _add_field(described: Any, name: str, field: str, number: int, kind: Any, repeated: bool) -> None:
    label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    if not isinstance(kind, str):
        described.field.add(name=field, number=number, type=kind, label=label)
        return
    target = kind
    if kind.startswith('{}'):
        entry = f'{field.capitalize()}Entry'
        pair = described.nested_type.add(name=entry)
        pair.options.map_entry = True
        pair.field.add(name='key', number=1, type=_STRING, label=_FIELD.LABEL_OPTIONAL)
        pair.field.add(name='value', number=2, type=_FIELD.TYPE_MESSAGE, label=_FIELD.LABEL_OPTIONAL,
                       type_name=f'.{_PACKAGE}.{kind[2:]}')
        target = f'{name}.{entry}'
    described.field.add(name=field, number=number, type=_FIELD.TYPE_MESSAGE, label=label,
                        type_name=f'.{_PACKAGE}.{target}')
