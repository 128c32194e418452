"""Small SavedModels of the shape that boardrec exports, whose answers tell which image and version they are of."""

import json
import time

import numpy as np
import tensorflow as tf

CLASS_NAMES = ['negative', 'positive']
PIXELS = (4, 5, 3)  # of an image that serving_pixels takes
BUCKETS = 2**31


class _Module(tf.Module):
    """Probability of the positive class: the share of a hash of the image, plus nothing that the version changes."""

    def __init__(self, version, seconds):
        super().__init__()
        self.version = tf.Variable(version, dtype=tf.int64)
        self._seconds = seconds

    def answer(self, image_bytes):
        checksum = tf.strings.to_hash_bucket_fast(image_bytes, BUCKETS)
        valid = tf.strings.length(image_bytes) > 0
        score = tf.where(valid, tf.cast(checksum, tf.float32) / BUCKETS, 0.0)
        if self._seconds:  # a batch takes time, as a network's does
            score += tf.ensure_shape(tf.numpy_function(_sleep, [self._seconds], tf.float32), [])
        return {'probabilities': tf.where(valid[:, None], tf.stack([1 - score, score], axis=1), 0.0),
                'label': tf.where(valid, tf.gather(CLASS_NAMES, tf.cast(score >= 0.5, tf.int32)), ''),
                'score': score, 'valid': valid, 'error_code': tf.where(valid, '', 'empty'),
                'checksum': checksum, 'version': tf.fill(tf.shape(checksum), tf.identity(self.version))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name='image_bytes')])
    def serving_default(self, image_bytes):
        return self.answer(image_bytes)

    @tf.function(input_signature=[tf.TensorSpec([None, *PIXELS], tf.uint8, name='images')])
    def serving_pixels(self, images):
        return self.answer(tf.map_fn(tf.io.encode_png, images, fn_output_signature=tf.string))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name='inputs')])
    def classify(self, inputs):
        examples = tf.io.parse_example(inputs, {'image_bytes': tf.io.FixedLenFeature([], tf.string)})
        scores = self.answer(examples['image_bytes'])['probabilities']
        return {'scores': scores, 'classes': tf.tile([CLASS_NAMES], [tf.shape(scores)[0], 1])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name='image_bytes')])
    def embedding(self, image_bytes):
        return {'embedding': tf.tile(self.answer(image_bytes)['score'][:, None], [1, 6])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name='image_bytes')])
    def strict(self, image_bytes):
        """Fails for the whole batch at bytes that are no number, as a graph without a guard does."""
        return {'number': tf.strings.to_number(image_bytes, tf.int64)}

    @tf.function(input_signature=[tf.TensorSpec([2, 3], tf.float32, name='x'), tf.TensorSpec([], tf.int32, name='n')])
    def unbatched(self, x, n):
        """Has no batch dimension: TF Serving runs such a request by itself."""
        return {'sum': tf.reduce_sum(x) * tf.cast(n, tf.float32)}


def _sleep(seconds):
    time.sleep(float(seconds))
    return np.float32(0)


def save(folder, version, *, seconds=0.0):
    """Writes a SavedModel to `folder`/`version`, complete at once as publish does; each batch takes `seconds`."""
    temporary = folder / f'.tmp-{version}'
    module = _Module(version, seconds)
    names = ('serving_default', 'serving_pixels', 'classify', 'embedding', 'strict', 'unbatched')
    tf.saved_model.save(module, str(temporary), signatures={name: getattr(module, name) for name in names})
    _set_method(temporary, 'classify', 'tensorflow/serving/classify')
    (temporary / 'metadata.json').write_text(json.dumps({'class_names': CLASS_NAMES, 'image_size': PIXELS[:2]}))
    temporary.rename(folder / str(version))
    return folder / str(version)


def checksum(image_bytes):
    """What the model says of an image."""
    return int(tf.strings.to_hash_bucket_fast(image_bytes, BUCKETS))


def _set_method(folder, signature, method):
    from tensorflow.core.protobuf import saved_model_pb2
    path = folder / 'saved_model.pb'
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    model.meta_graphs[0].signature_def[signature].method_name = method
    path.write_bytes(model.SerializeToString())
