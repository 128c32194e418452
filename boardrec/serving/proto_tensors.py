"""TF Serving's messages, both ways: TensorProto and Input to arrays, arrays to TensorProto and ClassificationResult."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, input_pb2

from boardrec.serving import json_tensors
from boardrec.serving.failure import Failure
from boardrec.serving.servable import Arrays, CLASSIFY, Signature

_MAX_RANK = 32
_MAX_CONTEXT_BYTES = 64 << 20  # of its copies, one an example
# Where TF Serving puts values, for clients that look nowhere else; other types go into tensor_content.
_FIELDS = {tf.float32: 'float_val', tf.float64: 'double_val', tf.int32: 'int_val', tf.int16: 'int_val',
           tf.int8: 'int_val', tf.uint8: 'int_val', tf.int64: 'int64_val', tf.bool: 'bool_val',
           tf.uint32: 'uint32_val', tf.uint64: 'uint64_val', tf.string: 'string_val'}


def array_of(proto: Any, name: str, max_bytes: int) -> np.ndarray:
    """The array that a TensorProto holds. Raises Failure if it holds none, or one of more than max_bytes.

    A TensorProto of a few bytes may stand for any size: its last value fills up the shape.
    """
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        sizes = [dim.size for dim in proto.tensor_shape.dim]
        if proto.tensor_shape.unknown_rank or len(sizes) > _MAX_RANK or min(sizes, default=0) < 0:
            raise ValueError('its shape is not known')
        if _bytes_of(proto, dtype, math.prod(sizes)) > max_bytes:
            raise ValueError(f'shape {sizes} takes more than {max_bytes} bytes')
        return tf.make_ndarray(proto)
    except (TypeError, ValueError, KeyError) as error:
        raise Failure('INVALID_ARGUMENT', f'input {name} is no valid tensor: {str(error)[:200]}') from None


def _bytes_of(proto: Any, dtype: tf.DType, count: int) -> int:
    """What `count` elements take in memory."""
    if dtype != tf.string:
        return count * max(dtype.size or 1, 1)
    given = proto.string_val
    return 8 * count + sum(map(len, given)) + max(count - len(given), 0) * (len(given[-1]) if given else 0)


def fill(proto: Any, array: np.ndarray) -> None:
    """Writes an array into an empty TensorProto."""
    dtype = tf.dtypes.as_dtype(array.dtype)
    proto.dtype = dtype.as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if dtype in _FIELDS:
        getattr(proto, _FIELDS[dtype]).extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.tobytes()


def examples_of(given: Any) -> np.ndarray:
    """The serialised Examples of an Input, each with those features of the context that it has not itself.

    Raises Failure if there are none.
    """
    kind = given.WhichOneof('kind')
    examples = getattr(given, kind).examples if kind else []
    if not examples:
        raise Failure('INVALID_ARGUMENT', 'Input is empty.')
    # Of two features of a name the later one counts: TF Serving puts these behind each other too (servables/util.cc).
    context = given.example_list_with_context.context.SerializeToString() if kind != 'example_list' else b''
    if len(context) * len(examples) > _MAX_CONTEXT_BYTES:
        raise Failure('INVALID_ARGUMENT', f'a context of {len(context)} bytes for each of {len(examples)} examples '
                      f'takes more than {_MAX_CONTEXT_BYTES} bytes')
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def input_of_json(document: Mapping[str, Any]) -> Any:
    """The Input of a classify request in JSON. Raises Failure where it is not as TF Serving's documentation has it."""
    given = input_pb2.Input()
    examples = document.get('examples')
    if not isinstance(examples, list) or not examples:
        raise Failure('INVALID_ARGUMENT', "When method is classify, key 'examples' is expected and must be a list of "
                      'at least one Example')
    if 'context' in document:
        _fill_example(given.example_list_with_context.context, document['context'])
        target = given.example_list_with_context
    else:
        target = given.example_list
    for example in examples:
        _fill_example(target.examples.add(), example)
    return given


def check_classifies(signature: Signature) -> str:
    """The one input of a signature for classify. Raises Failure if it is for something else."""
    if signature.method != CLASSIFY:
        raise Failure('INVALID_ARGUMENT', f'Expected classification signature method_name to be {CLASSIFY}. '
                      f'Was: {signature.method}')
    if list(signature.inputs) != ['inputs'] or not {'classes', 'scores'} & signature.outputs.keys():
        raise Failure('FAILED_PRECONDITION', f'signature {signature.name} has no input `inputs`, or neither classes '
                      'nor scores')
    return 'inputs'


def classification_of(outputs: Arrays) -> Any:
    """The ClassificationResult of the outputs classes (string [N, C]) and scores (float32 [N, C]), or one of them."""
    classes, scores = outputs.get('classes'), outputs.get('scores')
    if any(array is not None and array.ndim != 2 for array in (classes, scores)):
        raise Failure('INVALID_ARGUMENT', 'Expected Tensor shape: [batch_size num_classes]')
    result = classification_pb2.ClassificationResult()
    count, width = (classes if classes is not None else scores).shape
    labels = classes.tolist() if classes is not None else [[b''] * width] * count
    scores_of = scores.tolist() if scores is not None else [[0.0] * width] * count
    for row_labels, row_scores in zip(labels, scores_of, strict=True):
        row = result.classifications.add()
        for label, score in zip(row_labels, row_scores, strict=True):
            row.classes.add(label=label.decode('utf-8', 'replace'), score=score)
    return result


def classification_json(outputs: Arrays) -> bytes:
    """The body that answers a classify request."""
    result = classification_of(outputs)
    return json_tensors.dumps({'results': [[[one.label, np.float32(one.score)] for one in row.classes]
                                           for row in result.classifications]})


def _fill_example(example: Any, document: Any) -> None:
    if not isinstance(document, dict):
        raise Failure('INVALID_ARGUMENT', f'Example must be JSON object but got JSON {type(document).__name__}')
    for name, content in document.items():
        _fill_feature(example.features.feature[name], name, content if isinstance(content, list) else [content])


def _fill_feature(feature: Any, name: str, values: list[Any]) -> None:
    kinds = set(map(type, values))
    if kinds <= {str, dict}:
        feature.bytes_list.value.extend(map(json_tensors.bytes_of, values))
    elif kinds <= {int, bool}:
        if not all(-2**63 <= value < 2**63 for value in values):
            raise Failure('INVALID_ARGUMENT', f'Feature: {name} has uint64 element. Only int64 is supported.')
        feature.int64_list.value.extend(map(int, values))
    elif kinds == {float}:
        feature.float_list.value.extend(values)
    else:
        raise Failure('INVALID_ARGUMENT', f'Feature: {name} has element with unexpected JSON type, or of several: '
                      f'{", ".join(sorted(kind.__name__ for kind in kinds))}')
