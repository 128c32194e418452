"""Arrays of every type to TensorProto and back, and as TensorFlow itself writes and reads them."""

import numpy as np
import pytest
import tensorflow as tf

from boardrec.serving import proto_tensors
from boardrec.serving.failure import Failure

DTYPES = [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int8, tf.uint8, tf.int16, tf.uint16, tf.int32, tf.uint32,
          tf.int64, tf.uint64, tf.bool, tf.string]


def values(dtype, shape):
    numbers = np.random.default_rng(0).integers(0, 2 if dtype == tf.bool else 100, shape)
    if dtype == tf.string:
        texts = np.empty(shape, object)
        texts.ravel()[:] = [bytes([number]) * (number % 3) for number in numbers.ravel()]
        return texts
    return numbers.astype(dtype.as_numpy_dtype)


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize('shape', [(), (0, 3), (5,), (3, 2, 4)])
def test_there_and_back(dtype, shape):
    array = values(dtype, shape)
    proto = tf.make_tensor_proto(0).__class__()
    proto_tensors.fill(proto, array)
    for given in (tf.make_ndarray(proto), proto_tensors.array_of(proto, 'x', 10_000),
                  proto_tensors.array_of(tf.make_tensor_proto(array, dtype, shape), 'x', 10_000)):
        assert given.shape == shape and given.dtype == array.dtype
        np.testing.assert_array_equal(given, array)


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: dtype.name)
def test_the_limit_is_of_what_the_array_would_take(dtype):
    """A single value may stand for any number of them."""
    array = values(dtype, (1,))
    proto = tf.make_tensor_proto(array, dtype)
    proto.tensor_shape.dim[0].size = 1000
    limit = 1000 * (8 + len(array[0]) if dtype == tf.string else dtype.size)
    with pytest.raises(Failure, match=rf'input x is no valid tensor: shape \[1000\] takes more than {limit - 1} bytes'):
        proto_tensors.array_of(proto, 'x', limit - 1)
    if dtype not in (tf.string, tf.bool) and not proto.tensor_content:
        assert proto_tensors.array_of(proto, 'x', limit).tolist() == array.tolist() * 1000
