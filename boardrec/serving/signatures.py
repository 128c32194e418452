"""The served functions: images in, one row an image out. A row never depends on the others in its batch."""

from collections.abc import Callable
import functools
import pathlib
from typing import NamedTuple

import tensorflow as tf

from boardrec.config import ExportConfig
from boardrec.data import files, source_decode
from boardrec.data.images import Limits
from boardrec.serving import servable, weights
from boardrec.training import inference, model
from boardrec.training.inference import Predictor

NAMES = ('serving_default', 'serving_pixels', 'classify', 'embedding')
_GRAPH_BYTES = 16 << 20  # more than the rest of a SavedModel takes


class InputLimits(NamedTuple):
    """What an image that is sent may have; more is refused without being decoded."""

    max_bytes: int = ExportConfig.max_image_mib << 20
    max_pixels: int = round(ExportConfig.max_megapixels * 1e6)
    max_side: int = ExportConfig.max_side
    max_side_ratio: float = ExportConfig.max_side_ratio

    @property
    def by_header(self) -> Limits:
        """Those on width and height."""
        return Limits(self.max_pixels, self.max_side, self.max_side_ratio)


class Servable(tf.Module):
    """A finished run as a SavedModel's module.

    It tracks the raw variables, each once: a Keras model or layer in the module would store every weight twice
    (keras#23553) or lose them in the TF1 session that TF Serving runs.

    Every output has the batch as dimension 0, so that a server can batch requests, and none is ever NaN.
    """

    def __init__(self, predictor: Predictor, limits: InputLimits = InputLimits(),  # noqa: B008 (immutable)
                 weights_dtype: str = 'float32'):
        super().__init__(name='boardrec')
        height, width = predictor.config.height_width()
        classes = predictor.classes
        encoded = tf.TensorSpec([None], tf.string, name='image_bytes')
        pixels = tf.TensorSpec([None, height, width, 3], tf.uint8, name='images')
        self._weights, network = weights.stored(predictor, weights_dtype)
        # Functions that the signatures share, so that their graphs are made and stored once.
        network = _compiled(network, pixels)
        decoded = _compiled(functools.partial(decode_batch, height=height, width=width, limits=limits), encoded)

        def rows(pixels: tf.Tensor, codes: tf.Tensor) -> dict[str, tf.Tensor]:
            valid, (probabilities, _) = codes == 0, network(pixels)
            probabilities = tf.where(valid[:, None], probabilities, 0.0)
            chosen = inference.decide(predictor, probabilities)
            return {
                'probabilities': probabilities,  # float32 [N, C], in the order of class_names; 0 where not valid
                'label': tf.where(valid, tf.gather(tf.constant(classes.names), chosen), ''),  # string [N]
                'score': _score(probabilities, classes),  # float32 [N]: of the positive class, or the highest of more
                **_verdict(codes),
            }

        def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            return rows(*decoded(image_bytes))

        def serving_pixels(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return rows(images, tf.zeros_like(images[:, 0, 0, 0], tf.int32))

        def embedding(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels, codes = decoded(image_bytes)
            features = network(pixels)[1]
            return {'embedding': tf.where((codes == 0)[:, None], features, 0.0), **_verdict(codes)}  # float32 [N, D]

        def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            # TF Serving's classification has no other outputs than these two. Scores of 0 say that an image is invalid.
            feature = tf.io.FixedLenFeature([], tf.string, default_value='')
            scores = rows(*decoded(tf.io.parse_example(inputs, {'image_bytes': feature})['image_bytes']))[
                'probabilities']
            names = tf.repeat(tf.constant([classes.names]), tf.shape(scores)[0], axis=0)
            return {'classes': names, 'scores': scores}

        self.serving_default = _compiled(serving_default, encoded)
        self.serving_pixels = _compiled(serving_pixels, pixels)
        self.classify = _compiled(classify, tf.TensorSpec([None], tf.string, name='inputs'))
        self.embedding = _compiled(embedding, encoded)


def save(predictor: Predictor, folder: pathlib.Path, limits: InputLimits = InputLimits(),  # noqa: B008 (immutable)
         weights_dtype: str = 'float32') -> None:
    """Writes the SavedModel with its signatures and labels. Raises OSError if the disk has no room for it."""
    # TensorFlow tells of a full disk in several ways, none of which names it.
    parameters = sum(variable.numpy().nbytes for variable in predictor.model.variables)
    files.require_space(folder, needed_bytes=parameters + _GRAPH_BYTES)
    module = Servable(predictor, limits, weights_dtype)
    tf.saved_model.save(module, str(folder), signatures={name: getattr(module, name) for name in NAMES})
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    # What TF Serving's Classify asks for; Predict takes it as well.
    updater.replace_method_name(signature_key='classify', method_name=servable.CLASSIFY, tags='serve')
    updater.save()
    (folder / 'assets').mkdir(exist_ok=True)
    names = (name.replace('\n', ' ') for name in predictor.classes.names)
    (folder / 'assets' / 'labels.txt').write_bytes(''.join(f'{name}\n' for name in names).encode(errors='replace'))


def decode_batch(image_bytes: tf.Tensor, height: int, width: int,
                 limits: InputLimits = InputLimits()) -> tuple[tf.Tensor, tf.Tensor]:  # noqa: B008 (immutable)
    """Decodes string [N] to uint8 [N, height, width, 3] and codes int32 [N], indices of source_decode.CODES.

    Black where the code is not 0. A failing op would fail the whole batch, other clients' images included. Only a
    Dataset drops single failures; it yields (index, image, code); the sentinel at index N keeps it from being empty.
    """
    count = tf.size(image_bytes, tf.int64)
    codes, decoders, heads = source_decode.inspect(image_bytes, limits.by_header, limits.max_bytes)

    @tf.autograph.experimental.do_not_convert
    def decode(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return i, *source_decode.decode(image_bytes[i], decoders[i], heads[i], limits.by_header, height, width)

    decoded = tf.data.Dataset.range(count).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    decoded = decoded.ignore_errors()
    sentinel = tf.data.Dataset.from_tensors((count, tf.zeros([height, width, 3], tf.uint8), 0))
    indices, pixels, found = decoded.concatenate(sentinel).batch(count + 1).get_single_element()
    pixels = tf.scatter_nd(indices[:, None], pixels, tf.stack([count + 1, height, width, 3]))[:-1]
    found = tf.scatter_nd(indices[:, None], found + 1, [count + 1])[:-1] - 1  # -1 of those that were dropped
    found = tf.where(found < 0, source_decode.failure(image_bytes), found)
    return tf.ensure_shape(pixels, [None, height, width, 3]), tf.where(codes > 0, codes, found)


def _compiled(function: Callable, *specs: tf.TensorSpec) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(function, input_signature=specs, autograph=False)


def _verdict(codes: tf.Tensor) -> dict[str, tf.Tensor]:
    # bool [N]; string [N], '' where valid
    return {'valid': codes == 0, 'error_code': tf.gather(tf.constant(source_decode.CODES), codes)}


def _score(probabilities: tf.Tensor, classes: model.Classes) -> tf.Tensor:
    return tf.reduce_max(probabilities, axis=1) if classes.positive is None else probabilities[:, classes.positive]
