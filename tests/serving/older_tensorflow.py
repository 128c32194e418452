"""Run by an older TensorFlow: python older_tensorflow.py VERSION_FOLDER OUTPUT.json.

Sends a version's golden requests to it, in a TF1 session as TF Serving and through tf.saved_model.load, and writes what
each says, with the release that did it. Knows nothing of boardrec but the format of metadata.json.
"""

import base64
import json
import pathlib
import sys

import numpy as np
import tensorflow as tf


def main(folder: str, output: str) -> None:
    """Asks, and writes the answers."""
    golden = json.loads(pathlib.Path(folder, 'metadata.json').read_text())['golden']
    data = np.array([base64.b64decode(one['image_bytes']['b64']) for one in golden], object)
    loaded = tf.saved_model.load(folder)
    answers = {'release': tf.__version__}
    answers['eager'] = _plain({name: value.numpy() for name, value in loaded.signatures['serving_default'](
        image_bytes=tf.constant(data)).items()})
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        definitions = tf.compat.v1.saved_model.loader.load(session, ['serve'], folder).signature_def
        for signature, inputs in (('serving_default', data), ('embedding', data), ('classify', _examples(data))):
            definition = definitions[signature]
            (fed,) = definition.inputs.values()
            answers[signature] = _plain(session.run(
                {name: info.name for name, info in definition.outputs.items()}, {fed.name: inputs}))
    pathlib.Path(output).write_text(json.dumps(answers))


def _examples(data):
    feature = [tf.train.Feature(bytes_list=tf.train.BytesList(value=[one])) for one in data]
    return [tf.train.Example(features=tf.train.Features(feature={'image_bytes': one})).SerializeToString()
            for one in feature]


def _plain(answer):
    return {name: [one.decode() if isinstance(one, bytes) else one for one in value.tolist()]
            for name, value in answer.items() if name != 'classes'}


if __name__ == '__main__':
    main(*sys.argv[1:])
