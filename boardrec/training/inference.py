"""A finished run as a function from images to probabilities: the one that evaluate, predict and export share."""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from boardrec import progress
from boardrec.config import TrainConfig
from boardrec.data import images
from boardrec.training import distribute, model, run_dir
from boardrec.training.model import Classes
from boardrec.training.run_dir import RunDir


class Predictor(NamedTuple):
    """A finished run, loaded."""

    run: RunDir
    config: TrainConfig
    facts: dict[str, Any]
    classes: Classes
    model: keras.Model  # rebuilt from our own code; only weights are read from the run


def load(path: str | pathlib.Path) -> Predictor:
    """Loads the run in a folder, in its inference precision. Raises UserError if it is not a finished run."""
    run, config, facts = run_dir.require_finished(path)
    if facts.get('decode_version') != images.DECODE_VERSION:
        progress.say(f'note: {run.path} was trained by a boardrec that decoded images a little otherwise')
    distribute.set_up(config, training=False)
    classes = model.resolve_classes(facts['class_names'], config.positive_class)
    network = model.build(config, classes, config.inference_precision).model
    network.load_weights(run.weights)
    return Predictor(run, config, facts, classes, network)


def file_reader(predictor: Predictor) -> Callable[[bytes], np.ndarray]:
    """The function from an image file's bytes to uint8 [H, W, 3]; it raises images.Rejected."""
    height, width = predictor.config.height_width()

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        with tf.device('CPU:0'):  # as tf.data does; a GPU may round otherwise
            return images.decode(encoded, height, width)

    return lambda data: decode(tf.constant(images.normalise(data))).numpy()


def probabilities(predictor: Predictor) -> Callable[[tf.Tensor], tf.Tensor]:
    """The compiled function uint8 [B, H, W, 3] to float32 [B, C], a column a class."""
    height, width = predictor.config.height_width()

    @tf.function(input_signature=[tf.TensorSpec([None, height, width, 3], tf.uint8)])
    def predict(batch: tf.Tensor) -> tf.Tensor:
        return model.class_probabilities(predictor.model(batch, training=False), predictor.classes)

    return predict
