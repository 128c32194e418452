"""A finished run as a function from images to probabilities and decisions: the one that evaluate, predict and export
share. The only place that applies the run's temperature and threshold to what its network says.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from boardrec import progress
from boardrec.config import SMALLEST_PROBABILITY, TrainConfig
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
    threshold: float = 0.5  # of two classes: the positive one's least probability, as a float32; evaluate chooses it
    temperature: float = 1.0  # that probabilities are calibrated with, see `calibrate`


def load(path: str | pathlib.Path) -> Predictor:
    """Loads the run in a folder, in its inference precision. Raises UserError if it is not a finished run."""
    run, config, facts = run_dir.require_finished(path)
    if facts.get('decode_version') != images.DECODE_VERSION:
        progress.say(f'note: {run.path} was trained by a boardrec that decoded images a little otherwise')
    distribute.set_up(config, training=False)
    classes = model.resolve_classes(facts['class_names'], config.positive_class)
    network = model.build(config, classes, config.inference_precision).model
    network.load_weights(run.weights)
    return with_decision(Predictor(run, config, facts, classes, network), run_dir.read_decision(run, facts))


def in_precision(predictor: Predictor, precision: str) -> Predictor:
    """A copy that computes in another precision, with weights of its own."""
    network = model.build(predictor.config, predictor.classes, precision).model
    network.set_weights(predictor.model.get_weights())
    return predictor._replace(
        model=network, config=dataclasses.replace(predictor.config, inference_precision=precision))


def with_decision(predictor: Predictor, decision: dict[str, Any] | None) -> Predictor:
    """The predictor with the threshold and the temperature of a decision.json; None leaves 0.5 and 1."""
    if decision is None:
        return predictor
    threshold = decision['threshold']
    return predictor._replace(threshold=0.5 if threshold is None else threshold, temperature=decision['temperature'])


def probabilities(predictor: Predictor) -> Callable[[tf.Tensor], tf.Tensor]:
    """The compiled function uint8 [B, H, W, 3] to float32 [B, C], a column a class."""
    height, width = predictor.config.height_width()

    @tf.function(input_signature=[tf.TensorSpec([None, height, width, 3], tf.uint8)])
    def predict(batch: tf.Tensor) -> tf.Tensor:
        return forward(predictor, batch)

    return predict


def forward(predictor: Predictor, batch: tf.Tensor) -> tf.Tensor:
    """The graph of it: uint8 [B, H, W, 3] to calibrated float32 [B, C], the mean over the run's --inference_views.

    Of probabilities and not of logits: a view in which the network is wrong and very sure outweighs no other.
    """
    return _mean_of_views(predictor, lambda pixels: [predictor.model(pixels, training=False)], batch)[0]


def forward_with_features(predictor: Predictor, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The same, and what the last layer sees, float32 [B, D], the mean over the views too: it describes the images."""
    network = predictor.model
    both = keras.Model(network.inputs, [network.outputs[0], network.get_layer('logits').input])
    return tuple(_mean_of_views(predictor, lambda pixels: both(pixels, training=False), batch))


def _mean_of_views(predictor: Predictor, network: Callable[[tf.Tensor], list[tf.Tensor]], batch: tf.Tensor
                   ) -> list[tf.Tensor]:
    """Calibrated probabilities, and the network's other outputs in float32."""
    axes, totals = view_axes(predictor.config), []
    for view in axes:
        # One after the other, or TensorFlow would hold the activations of all at once.
        with tf.control_dependencies(totals):
            outputs, *others = network(tf.reverse(batch, view) if view else batch)
        outputs = [model.class_probabilities(outputs, predictor.classes), *(tf.cast(one, tf.float32) for one in others)]
        totals = [total + one for total, one in zip(totals, outputs, strict=True)] if totals else outputs
    probabilities, *others = [total / len(axes) for total in totals] if len(axes) > 1 else totals
    return [calibrate(probabilities, predictor.temperature), *others]


def view_axes(config: TrainConfig) -> list[list[int]]:
    """The axes of [B, H, W, 3] that each view of --inference_views is mirrored along; of the first, none."""
    one = [2] if config.flip_horizontal else [1]
    return [[], one, [1], [1, 2]][:config.inference_views]


def calibrate(probabilities: tf.Tensor, temperature: float) -> tf.Tensor:
    """softmax(ln(p) / temperature) of float32 [B, C], p at least SMALLEST_PROBABILITY; temperature 1 leaves it."""
    if temperature == 1:
        return tf.convert_to_tensor(probabilities)
    return tf.nn.softmax(tf.math.log(tf.clip_by_value(probabilities, SMALLEST_PROBABILITY, 1)) / temperature)


def decide(predictor: Predictor, probabilities: tf.Tensor) -> tf.Tensor:
    """The chosen classes of float32 [B, C], int64 [B], as metrics.decide chooses them with the run's threshold."""
    positive = predictor.classes.positive
    if positive is None:
        return tf.argmax(probabilities, axis=1)
    is_positive = probabilities[:, positive] >= predictor.threshold
    return tf.where(is_positive, tf.constant(positive, tf.int64), 1 - positive)
