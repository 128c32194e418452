"""Arrays of every type to JSON and back."""

import numpy as np
import pytest
import tensorflow as tf

from boardrec.serving import json_tensors
from boardrec.serving.failure import Failure
from boardrec.serving.servable import Tensor

FLOATS = [tf.float16, tf.bfloat16, tf.float32, tf.float64]
INTEGERS = [tf.int8, tf.uint8, tf.int16, tf.uint16, tf.int32, tf.uint32, tf.int64, tf.uint64]


def back(array, dtype, name='x'):
    body = json_tensors.answer({name: array}, in_rows=False)
    return json_tensors.array_of(json_tensors.loads(body)['outputs'], Tensor('x:0', dtype, array.shape))


@pytest.mark.parametrize('dtype', FLOATS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize('shape', [(), (0,), (7,), (3, 2, 5)])
def test_floats_keep_their_last_digit(dtype, shape):
    array = np.random.default_rng(0).normal(0, 50, shape).astype(dtype.as_numpy_dtype)
    given = back(array, dtype)
    assert given.dtype == array.dtype
    np.testing.assert_array_equal(given, array)


@pytest.mark.parametrize('dtype', FLOATS, ids=lambda dtype: dtype.name)
def test_what_is_not_finite_is_no_null(dtype):
    array = np.array([np.nan, np.inf, -np.inf, 0.5], dtype.as_numpy_dtype)
    # As float32: numpy does not know bfloat16's NaN for one.
    np.testing.assert_array_equal(back(array, dtype).astype(np.float32), array.astype(np.float32))


@pytest.mark.parametrize('dtype', INTEGERS, ids=lambda dtype: dtype.name)
def test_integers_up_to_their_limits(dtype):
    array = np.array([[dtype.min, 0], [1, dtype.max]], dtype.as_numpy_dtype)
    given = back(array, dtype)
    assert given.dtype == array.dtype
    np.testing.assert_array_equal(given, array)
    for beyond in (dtype.min - 1, dtype.max + 1):
        with pytest.raises(Failure, match=f'JSON Value: {beyond} Type: Number is not of expected type: {dtype.name}'):
            json_tensors.array_of([0, beyond], Tensor('x:0', dtype, (-1,)))


def test_booleans():
    array = np.array([[True, False]])
    np.testing.assert_array_equal(back(array, tf.bool), array)


@pytest.mark.parametrize(('name', 'values'), [
    ('label', ['', 'good', 'gr\u00fcn \U0001f34f', '"\\\n']), ('image_bytes', [b'', bytes(range(256)), b'\xff'])])
def test_text_as_text_and_bytes_as_base64(name, values):
    array = np.array([v.encode() if isinstance(v, str) else v for v in values], object).reshape(1, -1)
    assert back(array, tf.string, name).tolist() == array.tolist()


def test_a_row_for_each_of_the_batch():
    outputs = {'p': np.array([[0.25, 0.75], [1, 0]], np.float32), 'label': np.array([b'a', b'b'], object)}
    assert json_tensors.loads(json_tensors.answer(outputs, in_rows=True)) == {
        'predictions': [{'p': [0.25, 0.75], 'label': 'a'}, {'p': [1, 0], 'label': 'b'}]}
    with pytest.raises(Failure, match='differ in their batch size'):
        json_tensors.answer({**outputs, 'n': np.float32(3)}, in_rows=True)
