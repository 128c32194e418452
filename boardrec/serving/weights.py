"""A run's weights as an export stores them: each once, in float32, or kernels in bfloat16 at half the size."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from boardrec.training import inference
from boardrec.training.inference import Predictor

Network = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def stored(predictor: Predictor, dtype: str) -> tuple[list[tf.Variable], Network]:
    """The variables of an export, each once, and the network on them, which is to be called in a graph.

    The network takes uint8 [N, H, W, 3], N may be 0, to calibrated probabilities float32 [N, C] and features float32
    [N, D]. What is stored in bfloat16 is cast back in each call: 2 % of VGG16's time for one image, on two cores.
    """
    variables = predictor.model.variables
    halved = [variable for variable in variables if dtype == 'bfloat16' and _is_halved(variable)]
    narrow = [tf.Variable(tf.cast(variable.value, tf.bfloat16), trainable=False) for variable in halved]
    names = {id(variable) for variable in halved}
    kept = [variable.value for variable in variables if id(variable) not in names]

    def network(pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(pixels)[0]
        # TensorFlow's fused convolutions fail on an empty batch ('input depth must be evenly divisible').
        at_least_one = tf.pad(pixels, [[0, tf.cast(tf.equal(count, 0), tf.int32)], [0, 0], [0, 0], [0, 0]])
        wide = [(variable, tf.cast(one, tf.float32)) for variable, one in zip(halved, narrow, strict=True)]
        with keras.StatelessScope(state_mapping=wide):
            probabilities, features = inference.forward_with_features(predictor, at_least_one)
        return probabilities[:count], features[:count]

    return kept + narrow, network


def round_to_bfloat16(predictor: Predictor) -> None:
    """Rounds the weights that an export stores in bfloat16, in place: what the run says then, the export will say."""
    for variable in filter(_is_halved, predictor.model.variables):
        variable.assign(tf.cast(tf.cast(variable.value, tf.bfloat16), tf.float32))


def compare(predictor: Predictor, exact: np.ndarray, rounded: np.ndarray) -> dict[str, Any]:
    """How far calibrated probabilities of the same records, float32 [N, C], lie apart, and how often decisions do."""
    decisions = [inference.decide(predictor, tf.constant(one)).numpy() for one in (exact, rounded)]
    return {'records': len(exact), 'max_difference': float(np.abs(exact - rounded).max()),
            'decisions_differ': int((decisions[0] != decisions[1]).sum())}


def _is_halved(variable: keras.Variable) -> bool:
    """Kernels: biases and BatchNorm's statistics are a thousandth of the bytes and matter more."""
    return len(variable.shape) >= 2 and variable.dtype == 'float32'
