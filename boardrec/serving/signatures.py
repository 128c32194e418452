"""The served function: encoded images in, one row an image out, and a check of it the way TF Serving calls it."""

import pathlib

import numpy as np
import tensorflow as tf

from boardrec.data import files, images
from boardrec.training import inference, model
from boardrec.training.inference import Predictor

_GRAPH_BYTES = 16 << 20  # more than the rest of a SavedModel takes


class Servable(tf.Module):
    """A finished run as a SavedModel's module.

    It tracks the raw variables, each once: a Keras model or layer in the module would store every weight twice
    (keras#23553) or lose them in the TF1 session that TF Serving runs.
    """

    def __init__(self, predictor: Predictor):
        super().__init__(name='boardrec')
        self._weights = [variable.value for variable in predictor.model.variables]
        self.serving_default = _serving_default(predictor)


def save(predictor: Predictor, folder: pathlib.Path) -> None:
    """Writes the SavedModel with its signature serving_default. Raises OSError if the disk has no room for it."""
    # TensorFlow tells of a full disk in several ways, none of which names it.
    parameters = sum(variable.numpy().nbytes for variable in predictor.model.variables)
    files.require_space(folder, needed_bytes=parameters + _GRAPH_BYTES)
    servable = Servable(predictor)
    tf.saved_model.save(servable, str(folder), signatures={'serving_default': servable.serving_default})


def decode_batch(image_bytes: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes string [N] to (uint8 [N, height, width, 3], valid bool [N]); what does not decode is black and not valid.

    A failing op would fail the whole batch, other clients' images included. Only a Dataset drops single failures; it
    yields (index, image), and the sentinel at index N keeps it from being empty.
    """
    count = tf.size(image_bytes, tf.int64)

    def decode(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        known = tf.debugging.Assert(images.is_decodable_type(image_bytes[i]), ['not a JPEG or PNG'])
        with tf.control_dependencies([known]):
            return i, images.decode(image_bytes[i], height, width)

    decoded = tf.data.Dataset.range(count).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    decoded = decoded.ignore_errors()
    sentinel = tf.data.Dataset.from_tensors((count, tf.zeros([height, width, 3], tf.uint8)))
    indices, pixels = decoded.concatenate(sentinel).batch(count + 1).get_single_element()
    shape = tf.stack([count + 1, height, width, 3])
    scattered = tf.scatter_nd(indices[:, None], pixels, shape)
    valid = tf.scatter_nd(indices[:, None], tf.ones_like(indices, tf.int32), [count + 1]) > 0
    return tf.ensure_shape(scattered[:-1], [None, height, width, 3]), valid[:-1]


def self_test(predictor: Predictor, folder: pathlib.Path) -> None:
    """Runs the saved signature in a TF1 session, as TF Serving does, on good and bad bytes.

    Raises RuntimeError if a probability is further than 1e-5 from the run's own, or a bad image is not told from a good
    one.
    """
    height, width = predictor.config.height_width()
    good = _golden_images(height, width)
    with tf.device('CPU:0'):  # as tf.data does; a GPU may round otherwise
        pixels = np.stack([images.decode(tf.constant(data), height, width).numpy() for data in good])
    expected = inference.probabilities(predictor)(pixels).numpy()  # compiled: eager bfloat16 rounds elsewhere
    requests = [good[0], b'', b'not an image', *good[1:], good[0][:60]]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ['serve'], str(folder))
        signature = loaded.signature_def['serving_default']
        names = {key: info.name for key, info in signature.outputs.items()}
        image_bytes = signature.inputs['image_bytes'].name
        answer = session.run(names, {image_bytes: requests})
        empty = session.run(names, {image_bytes: np.zeros([0], object)})
    difference = np.abs(answer['probabilities'][answer['valid']] - expected).max()
    if answer['valid'].tolist() != [True, False, False, *[True] * (len(good) - 1), False] or not difference <= 1e-5:
        raise RuntimeError(f'the exported signature differs from the run by {difference}; valid: {answer["valid"]}')
    if any(len(value) for value in empty.values()):
        raise RuntimeError('the exported signature does not take an empty batch')


def _serving_default(predictor: Predictor) -> tf.types.experimental.PolymorphicFunction:
    height, width = predictor.config.height_width()
    classes = predictor.classes

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name='image_bytes')])
    def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, valid = decode_batch(image_bytes, height, width)
        count = tf.shape(valid)[0]
        # TensorFlow's fused convolutions fail on an empty batch ('input depth must be evenly divisible').
        at_least_one = tf.pad(pixels, [[0, tf.cast(tf.equal(count, 0), tf.int32)], [0, 0], [0, 0], [0, 0]])
        probabilities = inference.forward(predictor, at_least_one)[:count]
        probabilities = tf.where(valid[:, None], probabilities, 0.0)
        chosen = inference.decide(predictor, probabilities)
        return {
            'probabilities': probabilities,  # float32 [N, C], in the order of class_names; 0 where not valid
            'label': tf.where(valid, tf.gather(tf.constant(classes.names), chosen), ''),
            'score': _score(probabilities, classes),  # float32 [N]: of the positive class, or the highest of more
            'valid': valid,  # bool [N]
        }

    return serving_default


def _score(probabilities: tf.Tensor, classes: model.Classes) -> tf.Tensor:
    return tf.reduce_max(probabilities, axis=1) if classes.positive is None else probabilities[:, classes.positive]


def _golden_images(height: int, width: int) -> list[bytes]:
    """Three generated images, seeded: a PNG of another size than the model's, a JPEG to scale, a PNG of its own."""
    random = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return random.integers(0, 256, shape, np.uint8)

    return [tf.io.encode_png(pixels(height + 9, width + 30, 3)).numpy(),
            tf.io.encode_jpeg(pixels(2 * height, 3 * width, 3)).numpy(),
            tf.io.encode_png(pixels(height, width, 3)).numpy()]
