"""The exported signatures, called as TF Serving calls them: in a TF1 session, good and bad images in one batch."""

import dataclasses
import io
import pathlib
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from boardrec.config import TrainConfig
from boardrec.data import images, source_decode
from boardrec.serving import signatures, warmup_requests
from boardrec.training import inference, model

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'data'))
import images_test as made  # noqa: E402


@pytest.fixture(scope='module')
def good(source_images):
    """A JPEG and two PNG images."""
    paths = sorted((source_images / 'positive').iterdir())[:1] + sorted((source_images / 'negative').iterdir())[1:4:2]
    return [path.read_bytes() for path in paths]


def expected(predictor, data):
    """What evaluation says of the records that are made of these files."""
    pixels = np.stack([images.decode(tf.constant(images.normalise(one)), 32, 32).numpy() for one in data])
    return pixels, inference.probabilities(predictor)(pixels).numpy()


def test_every_signature_says_what_evaluation_says(session, good, predictor):
    pixels, probabilities = expected(predictor, good)
    for answer in session.images(good), session.ask('serving_pixels', {'images': pixels}):
        np.testing.assert_allclose(answer['probabilities'], probabilities, atol=1e-5)
        assert answer['valid'].all() and answer['error_code'].tolist() == [b''] * 3
        assert [label.decode() for label in answer['label']] == [
            predictor.classes.names[int(row[1] >= 0.5)] for row in probabilities]
        np.testing.assert_array_equal(answer['score'], answer['probabilities'][:, 1])
    classified = session.ask('classify', {'inputs': [warmup_requests.example(data) for data in good]})
    np.testing.assert_allclose(classified['scores'], probabilities, atol=1e-5)
    assert classified['classes'].tolist() == [[b'negative', b'positive']] * 3
    described = session.ask('embedding', {'image_bytes': good})['embedding']
    layer = predictor.model.get_layer('logits')
    logits = described @ layer.kernel.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 0])), probabilities[:, 1], atol=1e-5)


REFUSED = ('TIFF', 'GIF', 'WebP with alpha', 'animated WebP', 'palette BMP', '1-bit BMP')


def test_every_odd_kind_is_answered_as_its_record_or_refused_by_a_code(session, predictor):
    """In one batch, with every orientation."""
    turned = {f'turned {n}': made.encoded(Image.fromarray(made.NOISE), 'JPEG', exif=made.exif(n)) for n in made.UPRIGHT}
    files = {**made.KEPT, **turned, **{kind: data for kind, (data, _, _) in made.REMADE.items()}}
    _, probabilities = expected(predictor, files.values())
    answer = session.images(list(files.values()))
    for kind, valid, code, got, wanted in zip(
            files, answer['valid'], answer['error_code'], answer['probabilities'], probabilities, strict=True):
        is_refused = any(name in kind for name in REFUSED)
        assert valid == (not is_refused) and code.startswith(b'unsupported_' if is_refused else b''), kind
        np.testing.assert_allclose(got, 0 if is_refused else wanted, atol=1e-5, err_msg=kind)
    assert len({round(float(answer['score'][list(files).index(f'turned {n}')]), 5) for n in made.UPRIGHT}) > 4


BAD = {'empty': (b'', 'empty'), 'text': (b'no image at all', 'not_an_image'),
       'gif': (b'GIF89a' + bytes(40), 'unsupported_gif'), 'jpeg header': (images.JPEG_MAGIC + bytes(30), 'truncated'),
       'webp': (b'RIFF\0\0\0\0WEBPVP8 ' + bytes(40), 'damaged'), 'png': (images.PNG_MAGIC + bytes(9), 'damaged'),
       'huge': (made.HUGE, 'too_large'), 'cut': (made.JPEG[:-300], 'truncated')}


def test_bad_images_disturb_no_other(session, good):
    for place in range(4):
        batch = [*good[:place], *(data for data, _ in BAD.values()), *good[place:]]
        alone, answer = session.images(good), session.images(batch)
        bad = slice(place, place + len(BAD))
        assert answer['error_code'][bad].tolist() == [code.encode() for _, code in BAD.values()]
        assert answer['valid'].tolist() == [code == b'' for code in answer['error_code']]
        np.testing.assert_allclose(np.delete(answer['probabilities'], bad, 0), alone['probabilities'], atol=1e-6)
        assert not answer['score'][bad].any() and not answer['label'][bad].astype(bool).any()
        described = session.ask('embedding', {'image_bytes': np.array(batch, object)})
        assert described['error_code'].tolist() == answer['error_code'].tolist()
        assert np.isfinite(answer['probabilities']).all() and not described['embedding'][bad].any()
    given = [warmup_requests.example(b'x'), warmup_requests.example(good[0]), b'']
    classified = session.ask('classify', {'inputs': given})
    assert classified['scores'].sum(axis=1).round(4).tolist() == [0, 1, 0]


@pytest.mark.parametrize('batch', [[], [b''], [b'', b'x']])
def test_nothing_good(session, batch):
    answer = session.images(batch)
    assert {len(value) for value in answer.values()} == {len(batch)} and not answer['valid'].any()
    pixels = session.ask('serving_pixels', {'images': np.zeros([0, 32, 32, 3], np.uint8)})
    assert {len(value) for value in pixels.values()} == {0}


def test_the_order_holds_in_a_large_batch(session, good):
    answer, alone = session.images([good[i % 3] for i in range(100)]), session.images(good)
    np.testing.assert_allclose(answer['probabilities'], alone['probabilities'][np.arange(100) % 3], atol=1e-5)


@pytest.mark.parametrize(('views', 'settings'), [(4, {}), (2, {'flip_horizontal': False})])
def test_mirrored_views_are_averaged_in_the_graph_too(predictor, good, views, settings):
    averaging = predictor._replace(config=dataclasses.replace(predictor.config, inference_views=views, **settings))
    pixels, probabilities = expected(averaging, good)
    answer = signatures.Servable(averaging).serving_pixels(tf.constant(pixels))
    np.testing.assert_allclose(answer['probabilities'], probabilities, atol=1e-5)
    assert np.abs(probabilities - inference.probabilities(predictor)(pixels)).max() > 1e-4


def test_limits_are_those_that_were_asked_for(good):
    limits = signatures.InputLimits(max_bytes=len(good[0]), max_pixels=40 * 48, max_side=48, max_side_ratio=2)
    narrow, large = io.BytesIO(), io.BytesIO()
    Image.new('RGB', (10, 21)).save(narrow, 'PNG')
    Image.new('RGB', (49, 25)).save(large, 'PNG')
    data = [good[0], good[0] + b'x', narrow.getvalue(), large.getvalue()]
    codes = signatures.decode_batch(tf.constant(data), 32, 32, limits)[1]
    assert [source_decode.CODES[code] for code in codes] == ['', 'too_large', 'too_narrow', 'too_large']


def test_outputs_have_the_batch_first_and_names_that_rest_can_carry(exported):
    graph = tf.compat.v1.saved_model.loader.load
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        definitions = graph(session, ['serve'], str(exported)).signature_def
    assert definitions['classify'].method_name == 'tensorflow/serving/classify'
    for name in signatures.NAMES:
        for output, info in definitions[name].outputs.items():
            assert info.tensor_shape.dim[0].size == -1, (name, output)
            assert not output.endswith('_bytes'), 'base64 in TF Serving\'s REST'
    assert definitions['embedding'].outputs['embedding'].tensor_shape.dim[1].size == 16


@pytest.mark.parametrize(('dtype', 'share'), [('float32', 1.02), ('bfloat16', 0.51)])
def test_weights_are_stored_once(tmp_path, dtype, share):
    config = TrainConfig(records='RECORDS', run_dir='RUN', weights='none', image_size='32')
    classes = model.Classes(['a', 'b', 'c'], None)
    network = model.build(config, classes, 'float32').model
    signatures.save(inference.Predictor(None, config, {}, classes, network), tmp_path, weights_dtype=dtype)
    parameters = sum(variable.numpy().nbytes for variable in network.variables)
    stored = sum(path.stat().st_size for path in (tmp_path / 'variables').iterdir())
    assert (share - 0.02) * parameters < stored < share * parameters


def test_bfloat16_runs_export_too(predictor, small_backbone):
    network = model.build(predictor.config, predictor.classes, 'bfloat16').model
    network.set_weights(predictor.model.get_weights())
    half = predictor._replace(model=network)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    answer = signatures.Servable(half).serving_pixels(tf.constant(pixels))
    np.testing.assert_allclose(answer['probabilities'], inference.probabilities(half)(pixels), atol=1e-5)
