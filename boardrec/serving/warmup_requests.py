"""Warm-up requests: what TF Serving replays before it calls a version available, so that no client waits for it.

The file is TFRecords of tensorflow.serving.PredictionLog. Of that message only the fields that are needed are declared
here, with the numbers of tensorflow_serving/apis/*.proto, which protobuf's rules keep: tensorflow-serving-api would pin
TensorFlow and protobuf for the sake of these few.
"""

from collections.abc import Iterable, Iterator
import functools
import pathlib
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import numpy as np
import tensorflow as tf

FILE = 'assets.extra/tf_serving_warmup_requests'
_PACKAGE = 'boardrec.warmup'
_FIELD = descriptor_pb2.FieldDescriptorProto


def write(folder: pathlib.Path, requests: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Writes requests, (signature, {input: values}), into a version's folder; `classify` is given Examples."""
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(_log(signature, inputs).SerializeToString(deterministic=True))


def read(folder: pathlib.Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The requests of a version's folder, as `write` was given them."""
    for record in tf.data.TFRecordDataset(str(folder / FILE)).as_numpy_iterator():
        log = _messages()['PredictionLog'].FromString(record)
        if log.HasField('classify_log'):
            request = log.classify_log.request
            examples = [one.SerializeToString() for one in request.input.example_list.examples]
            yield request.model_spec.signature_name, {'inputs': np.array(examples, object)}
        else:
            request = log.predict_log.request
            yield request.model_spec.signature_name, {
                name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}


def example(image: bytes) -> bytes:
    """An image as `classify` takes it."""
    return tf.train.Example(features=tf.train.Features(feature={
        'image_bytes': tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))})).SerializeToString()


def _log(signature: str, inputs: dict[str, Any]) -> Any:
    log = _messages()['PredictionLog']()
    if signature == 'classify':
        request = log.classify_log.request
        for one in inputs['inputs']:
            request.input.example_list.examples.add().ParseFromString(one)
    else:
        request = log.predict_log.request
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(_tensor(np.asarray(values)))
    request.model_spec.signature_name = signature
    return log


def _tensor(values: np.ndarray) -> Any:
    """As a TensorProto; numbers that are all the same take one number, which stands for the rest."""
    if values.dtype == np.uint8 and (values == values.flat[0]).all():
        shape = tf.TensorShape(values.shape).as_proto()
        proto = tf.make_tensor_proto(np.uint8(values.flat[0]))
        proto.tensor_shape.CopyFrom(shape)
        return proto
    return tf.make_tensor_proto(values)


@functools.cache
def _messages() -> dict[str, Any]:
    """The messages' classes, by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name='boardrec/warmup.proto', package=_PACKAGE, syntax='proto3',
        dependency=['tensorflow/core/framework/tensor.proto', 'tensorflow/core/example/example.proto'])

    def message(name: str, *fields: tuple[str, int, str], repeated: bool = False) -> Any:
        added = file.message_type.add(name=name)
        for field, number, kind in fields:
            text = kind == 'string'
            added.field.add(
                name=field, number=number, label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL,
                type=_FIELD.TYPE_STRING if text else _FIELD.TYPE_MESSAGE,
                type_name=None if text else kind if kind[0] == '.' else f'.{_PACKAGE}.{kind}')
        return added

    message('ModelSpec', ('signature_name', 3, 'string'))
    request = message('PredictRequest', ('model_spec', 1, 'ModelSpec'))
    request.field.add(name='inputs', number=2, label=_FIELD.LABEL_REPEATED, type=_FIELD.TYPE_MESSAGE,
                      type_name=f'.{_PACKAGE}.PredictRequest.InputsEntry')
    entry = request.nested_type.add(name='InputsEntry')  # what protobuf makes of a map
    entry.options.map_entry = True
    entry.field.add(name='key', number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
    entry.field.add(name='value', number=2, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_MESSAGE,
                    type_name='.tensorflow.TensorProto')
    message('PredictLog', ('request', 1, 'PredictRequest'))
    message('ExampleList', ('examples', 1, '.tensorflow.Example'), repeated=True)
    message('Input', ('example_list', 1, 'ExampleList'))
    message('ClassificationRequest', ('model_spec', 1, 'ModelSpec'), ('input', 2, 'Input'))
    message('ClassifyLog', ('request', 1, 'ClassificationRequest'))
    message('PredictionLog', ('classify_log', 2, 'ClassifyLog'), ('predict_log', 6, 'PredictLog'))
    pool = descriptor_pool.Default()  # it has TensorFlow's
    pool.Add(file)
    return {one.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f'{_PACKAGE}.{one.name}'))
            for one in file.message_type}
