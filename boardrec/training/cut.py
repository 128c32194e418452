"""Where a classifier is cut in two: the trunk, the same function of an image for ever, and the tail, which is trained.

A layer is constant if no weight that is trained lies before it or in it, and nothing random. All constant layers that
have weights are in the trunk; those without (activations, padding, pooling, concatenation) cost next to nothing and
are put on the side that makes what crosses the cut smallest: a minimum cut of the graph of operations.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import scipy.sparse
from scipy.sparse import csgraph
import tensorflow as tf

from boardrec.training.model import Classifier

_FOREVER = 2**30  # an edge that may not be cut; SciPy's capacities have 32 bits
_UNIT_BYTES = 64  # of a capacity, so that boundaries up to 64 GB an image can be compared


class Cut(NamedTuple):
    """The classifier in two parts that share its weights."""

    boundary: tuple[str, ...]  # names of the operations whose outputs cross
    places: tuple[int, ...]  # theirs among all operations; unlike automatic names, the same in any process
    trunk: keras.Model  # images uint8 [B, H, W, 3] to a list of features; nothing trained, nothing random
    tail: keras.Model  # that list to logits float32 [B, 1] or [B, C]

    @property
    def features(self) -> tuple[tf.TensorSpec, ...]:
        """Shape and dtype of one record's features."""
        return tuple(tf.TensorSpec(tensor.shape[1:], tensor.dtype) for tensor in self.trunk.outputs)

    @property
    def row_bytes(self) -> int:
        """Bytes of one record's features."""
        return sum(math.prod(spec.shape) * spec.dtype.size for spec in self.features)


def find(classifier: Classifier) -> Cut | None:
    """The cheapest cut behind all constant layers with weights; None if there are none, hence nothing to save.

    Takes any graph in which each layer is called once.
    """
    images = classifier.model.input
    network = keras.Model(images, classifier.logits)
    operations = network.operations  # the first one gives the images, which may cross the cut too
    constant = _constant(operations)
    if not any(getattr(operation, 'weights', None) for operation in constant):
        return None
    crossing = _crossing(operations, constant)
    places = tuple(operations.index(operation) for operation in crossing)
    return Cut(tuple(operation.name for operation in crossing), places,
               keras.Model(images, [operation.output for operation in crossing]),
               keras.Model([operation.output for operation in crossing], classifier.logits))


def _constant(operations: list[Any]) -> list[Any]:
    """Those whose output depends on the image alone, as long as the run lasts."""
    known, constant = set(), []
    for operation in operations:
        if _is_deterministic(operation) and known.issuperset(id(tensor) for tensor in _inputs(operation)):
            known.add(id(operation.output))
            constant.append(operation)
    return constant


def _is_deterministic(operation: Any) -> bool:
    """Whether it holds nothing trained and no random state, which Keras counts as a variable but not as a weight."""
    if not isinstance(operation, keras.Layer) or (isinstance(operation, keras.layers.Dropout) and not operation.rate):
        return True
    return not operation.trainable_variables and len(operation.variables) == len(operation.weights)


def _crossing(operations: list[Any], constant: list[Any]) -> list[Any]:
    """The operations whose outputs cross the cheapest cut, first to last."""
    number = {id(operation.output): i for i, operation in enumerate(operations)}
    count = len(operations)
    source, sink, fixed = 2 * count, 2 * count + 1, {id(operation) for operation in constant}
    edges = {}
    # Nodes: i is operation i, count + i its output, which is paid for once however many consumers are in the tail.
    for i, operation in enumerate(operations):
        edges[i, count + i] = _capacity(operation.output)
        if id(operation) not in fixed:
            edges[i, sink] = _FOREVER
        elif getattr(operation, 'weights', None):
            edges[source, i] = _FOREVER
        for tensor in _inputs(operation):
            producer = number[id(tensor)]
            edges[count + producer, i] = _FOREVER
            edges[i, producer] = _FOREVER  # what the trunk consumes, the trunk produces
    tail = _sink_side(edges, source, sink)
    return [operation for i, operation in enumerate(operations) if i not in tail and count + i in tail]


def _sink_side(edges: dict[tuple[int, int], int], source: int, sink: int) -> set[int]:
    """The nodes behind a minimum cut; of several, the one with the fewest behind it."""
    rows, columns = np.array(list(edges)).T
    graph = scipy.sparse.csr_array((np.array(list(edges.values()), np.int32), (rows, columns)), (sink + 1, sink + 1))
    residual = graph - csgraph.maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    return set(csgraph.breadth_first_order(residual.T.tocsr(), sink, return_predecessors=False).tolist())


def _inputs(operation: Any) -> list[keras.KerasTensor]:
    return [] if isinstance(operation, keras.layers.InputLayer) else keras.tree.flatten(operation.input)


def _capacity(tensor: keras.KerasTensor) -> int:
    return -(-math.prod(tensor.shape[1:]) * tf.as_dtype(tensor.dtype).size // _UNIT_BYTES)
