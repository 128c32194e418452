"""The classifier: uint8 images in, probabilities out, and what is trained of it."""

from collections.abc import Iterator
import contextlib
import hashlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from boardrec.config import TrainConfig, UserError
from boardrec.training import backbones

_POLICIES = {'float32': 'float32', 'bfloat16': 'mixed_bfloat16', 'float16': 'mixed_float16'}


class Classes(NamedTuple):
    """What the outputs mean."""

    names: list[str]
    positive: int | None  # of two classes, the one that the sigmoid unit stands for; None for more than two

    @property
    def units(self) -> int:
        """Units of the last layer."""
        return 1 if self.positive is not None else len(self.names)


class Classifier(NamedTuple):
    """A Keras model and its parts."""

    model: keras.Model  # images uint8 [B, H, W, 3] to float32 [B, 1] (sigmoid) or [B, C] (softmax)
    logits: keras.KerasTensor  # float32 [B, 1] or [B, C]
    backbone_layers: list[keras.Layer]


def resolve_classes(names: list[str], positive_class: str) -> Classes:
    """Decides which of two classes is positive. Raises UserError for a name that is not among them."""
    if positive_class and (len(names) != 2 or positive_class not in names):
        raise UserError(f'--positive_class={positive_class}: must be one of exactly two classes; '
                        f'the records have {", ".join(names)}.')
    if len(names) != 2:
        return Classes(names, None)
    return Classes(names, names.index(positive_class or ('positive' if 'positive' in names else names[-1])))


def build(config: TrainConfig, classes: Classes, precision: str) -> Classifier:
    """Builds the classifier with fresh weights, its backbone frozen but for the last `trainable_layers` layers.

    The normalisation is part of the graph, and nothing random is left in what is frozen. The last layer and what
    follows are float32 in every precision.
    Raises UserError for settings that do not fit the backbone.
    """
    height, width = config.height_width()
    with _policy(_POLICIES[precision]):
        images = keras.Input((height, width, 3), dtype='uint8', name='images')
        features, layers = backbones.connect(config.backbone, images)
        if config.trainable_layers > len(layers):
            raise UserError(f'--trainable_layers={config.trainable_layers}: {config.backbone} has only {len(layers)}.')
        for layer in layers[:len(layers) - config.trainable_layers]:
            layer.trainable = False
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0  # EfficientNet's stochastic depth: as BatchNorm's, its inference mode
        features = keras.layers.Dropout(config.dropout, seed=config.seed, name='dropout')(features)
        logits = keras.layers.Dense(
            classes.units, dtype='float32', name='logits',
            kernel_initializer=keras.initializers.GlorotUniform(config.seed))(features)
        activation = 'sigmoid' if classes.units == 1 else 'softmax'
        outputs = keras.layers.Activation(activation, dtype='float32', name='probabilities')(logits)
        model = keras.Model(images, outputs, name=f'boardrec_{config.backbone}')
    return Classifier(model, logits, layers)


def for_training(network: keras.Model) -> keras.Model:
    """The same network and weights, with BatchNorm in inference mode whatever it is called with.

    Batch statistics would depend on a replica's share of the batch and on padding. Scale and offset can be trained.
    """
    def call(layer: keras.Layer, *inputs, **named):
        return _InferenceMode(layer)(*inputs) if isinstance(layer, keras.layers.BatchNormalization) else (
            layer(*inputs, **named))

    if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in network.layers):
        return network
    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)


class _InferenceMode(keras.layers.Layer):
    """A layer that is never told that it is being trained."""

    def __init__(self, layer: keras.Layer):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The layer's output with its moving statistics."""
        return self.layer(inputs, training=False)


def class_probabilities(outputs: tf.Tensor, classes: Classes) -> tf.Tensor:
    """The model's outputs as one column a class: float32 [B, 1] or [B, C] to [B, C]."""
    if classes.positive is None:
        return outputs
    columns = [1 - outputs, outputs] if classes.positive == 1 else [outputs, 1 - outputs]
    return tf.concat(columns, axis=1)


def losses(logits: tf.Tensor, labels: tf.Tensor, classes: Classes, *, label_smoothing: float = 0.0,
           class_weights: np.ndarray | None = None) -> tf.Tensor:
    """Cross-entropy of each record, natural logarithm: logits [B, 1] or [B, C], labels int32 [B] to float32 [B].

    label_smoothing as Keras's BinaryCrossentropy or CategoricalCrossentropy; class_weights float32 [C] multiply the
    losses of their classes, as Keras's class_weight. Both are for training alone.
    """
    result = _cross_entropy(logits, labels, classes, label_smoothing)
    return result if class_weights is None else result * tf.gather(class_weights, labels)


def is_right(logits: tf.Tensor, labels: tf.Tensor, classes: Classes) -> tf.Tensor:
    """Whether each record's decision is its label: bool [B]."""
    return tf.equal(decisions(logits, classes), labels)


def decisions(logits: tf.Tensor, classes: Classes) -> tf.Tensor:
    """The class that each record is taken for: int32 [B]; of two, 0.5 decides for the positive."""
    if classes.positive is None:
        return tf.argmax(logits, axis=1, output_type=tf.int32)
    return tf.where(logits[:, 0] >= 0, classes.positive, 1 - classes.positive)


def changing_variables(classifier: Classifier) -> list[keras.Variable]:
    """The variables that training changes: trained weights and the state of what is random."""
    frozen = {id(variable) for variable in _frozen(classifier)}
    return [variable for variable in classifier.model.variables if id(variable) not in frozen]


def frozen_sha256(classifier: Classifier) -> str:
    """The sum of the weights that training does not change."""
    digest = hashlib.sha256()
    for variable in _frozen(classifier):
        digest.update(np.ascontiguousarray(variable.numpy()))
    return digest.hexdigest()


def parameter_counts(model: keras.Model) -> tuple[int, int]:
    """(trainable, frozen) parameters."""
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return trainable, model.count_params() - trainable


def _cross_entropy(logits: tf.Tensor, labels: tf.Tensor, classes: Classes, smoothing: float) -> tf.Tensor:
    if classes.positive is None and not smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    count = len(classes.names)
    if classes.positive is None:
        on, off = 1 - smoothing + smoothing / count, smoothing / count
        return tf.nn.softmax_cross_entropy_with_logits(tf.one_hot(labels, count, on, off), logits)
    targets = tf.cast(tf.equal(labels, classes.positive), tf.float32)
    targets = targets * (1 - smoothing) + smoothing / 2 if smoothing else targets
    return tf.nn.sigmoid_cross_entropy_with_logits(targets, logits[:, 0])


def _frozen(classifier: Classifier) -> list[keras.Variable]:
    return [variable for layer in classifier.backbone_layers for variable in layer.non_trainable_weights]


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    """Sets Keras's global dtype policy for a block: the applications' constructors take none."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
