"""One loaded version of a model: its signatures as functions from arrays to arrays, in a TF1 session like TF Serving's.

Any SavedModel with the tag `serve` will do; nothing here knows of images or classes.
"""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from boardrec.serving import publish
from boardrec.serving.failure import Failure

DEFAULT_SIGNATURE = 'serving_default'
CLASSIFY, REGRESS = 'tensorflow/serving/classify', 'tensorflow/serving/regress'
_INTERNAL = '__saved_model'  # signatures of the loader's own

Arrays = Mapping[str, np.ndarray]


class Tensor(NamedTuple):
    """An input or output of a signature."""

    tensor: str  # its name in the graph
    dtype: tf.DType
    shape: tuple[int, ...] | None  # -1 for any size; None for any rank

    @property
    def has_batch(self) -> bool:
        """Whether dimension 0 is free: that of a batch."""
        return bool(self.shape) and self.shape[0] == -1


class Signature(NamedTuple):
    """What a signature takes and gives."""

    name: str
    method: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def batches(self) -> bool:
        """Whether rows of several requests may share a call: every input and output has them as dimension 0."""
        return all(tensor.has_batch for tensor in [*self.inputs.values(), *self.outputs.values()])

    def check(self, inputs: Arrays) -> int:
        """The number of rows in a request (1 for a signature without a batch). Raises Failure if it takes no such."""
        _check_names(self, inputs)
        for name, tensor in self.inputs.items():
            _check_tensor(self.name, name, tensor, inputs[name])
        if not self.batches:
            return 1
        rows = {name: len(array) for name, array in inputs.items()}
        if len(set(rows.values())) > 1:
            raise Failure('INVALID_ARGUMENT', f'inputs of signature {self.name} differ in their number of rows: {rows}')
        return next(iter(rows.values()))


class Servable:
    """A version in memory. `run` may be called by several threads at once; `close` frees it."""

    def __init__(self, folder: pathlib.Path, version: int):
        """Loads and warms up. Raises Failure or one of TensorFlow's errors if the folder holds no sound SavedModel."""
        self.folder, self.version = folder, version
        self.metadata = publish.read_metadata(folder)
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._session = tf.compat.v1.Session(config=_config())
            meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ['serve'], str(folder))
        self.signature_defs = dict(meta_graph.signature_def)
        self.signatures = {name: _signature(name, definition) for name, definition in self.signature_defs.items()
                           if not name.startswith(_INTERNAL)}
        self._functions = {name: self._function(signature) for name, signature in self.signatures.items()}

    def signature(self, name: str) -> Signature:
        """The signature of this name, or serving_default if it is empty. Raises Failure if there is none."""
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise Failure('INVALID_ARGUMENT', f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def run(self, signature: Signature, inputs: Arrays) -> dict[str, np.ndarray]:
        """All outputs for inputs that `signature.check` has passed. Raises TensorFlow's errors."""
        values = self._functions[signature.name](*(inputs[name] for name in signature.inputs))
        return dict(zip(signature.outputs, values, strict=True))

    def close(self) -> None:
        """Frees the memory; nothing may run any more."""
        self._functions.clear()
        self._session.close()
        del self._session, self._graph

    def _function(self, signature: Signature) -> Any:
        # Session.run and make_callable take 0.2 ms more a call, for looking at what is fed and fetched.
        return self._session._make_callable_from_options(config_pb2.CallableOptions(
            feed=[tensor.tensor for tensor in signature.inputs.values()],
            fetch=[tensor.tensor for tensor in signature.outputs.values()]))


def _config() -> tf.compat.v1.ConfigProto:
    config = tf.compat.v1.ConfigProto()
    config.gpu_options.allow_growth = True
    return config


def _signature(name: str, definition: Any) -> Signature:
    return Signature(name, definition.method_name,
                     {key: _tensor(definition.inputs[key]) for key in sorted(definition.inputs)},
                     {key: _tensor(definition.outputs[key]) for key in sorted(definition.outputs)})


def _tensor(info: Any) -> Tensor:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return Tensor(info.name, tf.dtypes.as_dtype(info.dtype), shape)


def _check_names(signature: Signature, inputs: Arrays) -> None:
    given, wanted = set(inputs), set(signature.inputs)
    if given != wanted:
        raise Failure('INVALID_ARGUMENT', 'input size does not match signature: '
                      f'{len(given)}!={len(wanted)} len({{{_list(given)}}}) != len({{{_list(wanted)}}}). '
                      f'Sent extra: {{{_list(given - wanted)}}}. Missing but required: {{{_list(wanted - given)}}}.')


def _list(names: set[str]) -> str:
    return ','.join(sorted(names))[:200]


def _check_tensor(signature: str, name: str, tensor: Tensor, array: np.ndarray) -> None:
    if array.dtype != tensor.dtype.as_numpy_dtype:
        raise Failure('INVALID_ARGUMENT', f'input {name} is {tf.dtypes.as_dtype(array.dtype).name}, but signature '
                      f'{signature} takes {tensor.dtype.name}')
    shape = tensor.shape
    if shape is not None and (len(shape) != array.ndim or any(
            wanted not in (-1, size) for wanted, size in zip(shape, array.shape, strict=True))):
        raise Failure('INVALID_ARGUMENT', f'input {name} has shape {list(array.shape)}, but signature {signature} '
                      f'takes {list(shape)}, where -1 is any size')
