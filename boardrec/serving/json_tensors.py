"""TF Serving's JSON, both ways: requests in row or column format to arrays, and arrays to `predictions` or `outputs`.

https://www.tensorflow.org/tfx/serving/api_rest. Bytes are {"b64": ...}; NaN and Infinity are taken and given as there.
"""

import binascii
from collections.abc import Callable, Mapping
import itertools
import json
import re
import reprlib
from typing import Any

import numpy as np
import orjson
import tensorflow as tf

from boardrec.serving.failure import Failure
from boardrec.serving.servable import Arrays, Signature, Tensor

_MAX_RANK = 32
_QUOTED_CHARACTERS = 100  # of a value in a message
_BYTES_SUFFIX = '_bytes'  # of outputs that are given as b64
_KINDS = {type(None): 'Null', bool: 'Boolean', int: 'Number', float: 'Number', str: 'String', list: 'Array',
          dict: 'Object'}


def loads(body: bytes | bytearray) -> dict[str, Any]:
    """The object that a request's body holds. Raises Failure if it holds none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        document = _loads_with_nan(body, error)
    if not isinstance(document, dict):
        raise Failure('INVALID_ARGUMENT', f'JSON Value: {_quote(document)} Is not object')
    return document


def dumps(document: Any) -> bytes:
    """JSON of a document that may hold arrays, whose float32 take no more digits than they need."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a request names, '' for the default one."""
    name = document.get('signature_name', '')
    if not isinstance(name, str):
        raise Failure('INVALID_ARGUMENT', f'JSON Value: {_quote(document)} not formatted correctly. '
                      "'signature_name' key must be a string value.")
    return name


def inputs_of(document: Mapping[str, Any], signature: Signature) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs of a predict request, and whether it is in row format. Raises Failure if it is in none."""
    if 'instances' in document and 'inputs' in document:
        raise Failure('INVALID_ARGUMENT', f"JSON Value: {_quote(document)} Not formatted correctly expecting only one "
                      "of 'inputs' or 'instances' keys to exist ")
    if 'instances' in document:
        return _of_rows(document['instances'], signature), True
    if 'inputs' in document:
        return _of_columns(document['inputs'], signature), False
    raise Failure('INVALID_ARGUMENT', "Missing 'inputs' or 'instances' key")


def answer(outputs: Arrays, in_rows: bool) -> bytes:
    """The body that answers a predict request. Raises Failure where rows are asked of outputs that have none."""
    values = {name: _jsonable(name, array) for name, array in outputs.items()}
    only = next(iter(values.values())) if len(values) == 1 else None
    if not in_rows:
        return _dumps_finite({'outputs': values if only is None else only}, outputs)
    sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        raise Failure('INVALID_ARGUMENT', f'Outputs differ in their batch size: {sizes}; ask in the column format '
                      "('inputs')")
    rows = list(only) if only is not None else [
        dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return _dumps_finite({'predictions': rows}, outputs)


def size_of(outputs: Arrays) -> int:
    """How much JSON there is to write: a number counts as 1, and so does a byte of text."""
    return sum(sum(map(len, array.flat)) if array.dtype == object else array.size for array in outputs.values())


def array_of(value: Any, tensor: Tensor) -> np.ndarray:
    """A nested list, or a single value, as an array of the tensor's type. Raises Failure if it is ragged or another."""
    leaves, shape = [value], []
    while leaves and isinstance(leaves[0], list):
        sizes = set(map(_length, leaves))
        if len(sizes) > 1:
            raise Failure('INVALID_ARGUMENT', f'Encountered list at unexpected size or level: {_quote(value)}')
        shape.append(sizes.pop())
        if len(shape) > _MAX_RANK:
            raise Failure('INVALID_ARGUMENT', f'JSON Value: {_quote(value)} is nested too deeply')
        leaves = list(itertools.chain.from_iterable(leaves))
    return _array(leaves, tensor.dtype).reshape(shape)


def _loads_with_nan(body: bytes | bytearray, error: Exception) -> Any:
    """With NaN and Infinity, which orjson does not take."""
    if re.search(rb'\b(NaN|Infinity)\b', body):
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            pass
    raise Failure('INVALID_ARGUMENT', f'JSON Parse error: {str(error)[:_QUOTED_CHARACTERS]}') from None


def _of_rows(instances: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise Failure('INVALID_ARGUMENT', f"JSON Value: {_quote(instances)} Excepting 'instances' to be an list/array")
    if not instances:
        raise Failure('INVALID_ARGUMENT', "No values in 'instances' array")
    if not _is_named(instances[0]):
        if len(signature.inputs) > 1:
            raise Failure('INVALID_ARGUMENT', 'instances is a plain list, but expecting list of objects as multiple '
                          'input tensors required as per tensorinfo_map')
        (name, tensor), = signature.inputs.items()
        return {name: array_of(instances, tensor)}
    names = signature.inputs.keys()
    for number, row in enumerate(instances):
        if not isinstance(row, dict) or row.keys() != names:
            raise Failure('INVALID_ARGUMENT', f"Failed to process element: {number} of 'instances' list. JSON object: "
                          f'{_quote(row)} keys must be equal to: {",".join(sorted(names))}')
    return {name: array_of([row[name] for row in instances], tensor) for name, tensor in signature.inputs.items()}


def _of_columns(inputs: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not _is_named(inputs):
        if len(signature.inputs) > 1:
            raise Failure('INVALID_ARGUMENT', 'inputs is a plain value/list, but expecting an object as multiple '
                          'input tensors required as per tensorinfo_map')
        (name, tensor), = signature.inputs.items()
        return {name: array_of(inputs, tensor)}
    missing = signature.inputs.keys() - inputs.keys()
    if missing:
        raise Failure('INVALID_ARGUMENT', f"Missing named input: {min(missing)} in 'inputs' object.")
    return {name: array_of(inputs[name], tensor) for name, tensor in signature.inputs.items()}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_b64(value)


def _is_b64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get('b64'), str)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else -1


def _array(leaves: list[Any], dtype: tf.DType) -> np.ndarray:
    if dtype == tf.string:
        array = np.empty(len(leaves), object)
        array[:] = [bytes_of(leaf) for leaf in leaves]
        return array
    allowed = {bool} if dtype == tf.bool else {int, float} if dtype.is_floating else {int}
    if not allowed >= set(map(type, leaves)):
        _refuse(next(leaf for leaf in leaves if type(leaf) not in allowed), dtype)
    try:
        with np.errstate(over='raise'):
            return np.array(leaves, dtype.as_numpy_dtype)
    except (OverflowError, FloatingPointError):
        low, high = (int(dtype.min), int(dtype.max)) if dtype.is_integer else (-float(dtype.max), float(dtype.max))
        _refuse(next(leaf for leaf in leaves if not low <= leaf <= high), dtype)


def _refuse(value: Any, dtype: tf.DType) -> None:
    raise Failure('INVALID_ARGUMENT', f'JSON Value: {_quote(value)} Type: {_KINDS[type(value)]} is not of expected '
                  f'type: {dtype.name}')


def bytes_of(leaf: Any) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode('utf-8', 'surrogatepass')
    if not isinstance(leaf, dict):
        _refuse(leaf, tf.string)
    if not _is_b64(leaf):
        raise Failure('INVALID_ARGUMENT', f'JSON Value: {_quote(leaf)} not formatted correctly for base64 data')
    return b64_decoded(leaf['b64'])


def b64_decoded(text: str) -> bytes:
    """The bytes that base64 stands for, with or without its padding and white space. Raises Failure."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        pass
    try:
        bare = ''.join(text.split()).rstrip('=')
        return binascii.a2b_base64(bare + '=' * (-len(bare) % 4), strict_mode=True)
    except ValueError:
        raise Failure('INVALID_ARGUMENT', 'Unable to base64 decode') from None


def _jsonable(name: str, array: np.ndarray) -> Any:
    """What orjson writes as the JSON of an array."""
    if array.dtype != object:
        return np.ascontiguousarray(array) if array.ndim else array[()]
    encode = _b64 if name.endswith(_BYTES_SUFFIX) else _text
    return _mapped(encode, array.tolist())


def _mapped(encode: Callable[[bytes], Any], value: Any) -> Any:
    return [_mapped(encode, one) for one in value] if isinstance(value, list) else encode(value)


def _b64(value: bytes) -> dict[str, str]:
    return {'b64': binascii.b2a_base64(value, newline=False).decode()}


def _text(value: bytes) -> str:
    return value.decode('utf-8', 'replace')


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):  # types that orjson does not know: float16, bfloat16
        return value.astype(np.float32) if value.dtype.kind in 'Vf' else value.tolist()
    raise TypeError(type(value).__name__)


def _dumps_finite(document: dict[str, Any], outputs: Arrays) -> bytes:
    """JSON; with NaN and Infinity, which orjson writes as null, where an output has one."""
    floats = [array for array in outputs.values() if array.dtype.kind in 'Vf']  # V: bfloat16
    if all(np.isfinite(array).all() for array in floats):
        return dumps(document)
    return json.dumps(document, default=lambda value: value.tolist()).encode()


def _quote(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= _QUOTED_CHARACTERS else f'{text[:_QUOTED_CHARACTERS]}...'
