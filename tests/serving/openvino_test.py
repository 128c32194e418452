"""A second engine: OpenVINO runs the exported network, too, and says the same."""

import numpy as np
import pytest
import tensorflow as tf


@pytest.mark.long
def test_openvino_answers_the_pixel_signature_alike(exported, session):
    openvino = pytest.importorskip('openvino', reason='needs the extra long')
    loaded = tf.saved_model.load(str(exported))  # a signature alone would not keep its variables
    read = openvino.convert_model(loaded.signatures['serving_pixels'])
    # Its CPU plug-in has no strings, which the other outputs are.
    network = openvino.Model([read.output('probabilities')], [one.get_node() for one in read.inputs], 'pixels')
    compiled = openvino.compile_model(network, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    pixels[0] = 0
    expected = session.ask('serving_pixels', {'images': pixels})['probabilities']
    assert np.ptp(expected[:, 1]) > 1e-3, 'answers that are all alike would show nothing'
    np.testing.assert_allclose(compiled(pixels)[0], expected, atol=1e-4)
