"""The exported signature, called as TF Serving calls it: in a TF1 session, good and bad images in one batch."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from boardrec import cli
from boardrec.data import images
from boardrec.serving import signatures
from boardrec.training import inference, run_dir


@pytest.fixture(scope='module')
def predictor(finished_run):
    """The finished run, loaded."""
    return inference.load(finished_run)


@pytest.fixture(scope='module')
def saved(predictor, tmp_path_factory):
    """Its SavedModel."""
    folder = tmp_path_factory.mktemp('saved')
    signatures.save(predictor, folder)
    return folder


@pytest.fixture(scope='module')
def ask(saved):
    """A function from a list of bytes to the signature's outputs, in one TF1 session."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        signature = tf.compat.v1.saved_model.loader.load(session, ['serve'], str(saved)).signature_def[
            'serving_default']
    names = {key: info.name for key, info in signature.outputs.items()}
    yield lambda data: session.run(names, {signature.inputs['image_bytes'].name: np.array(data, object)})
    session.close()


@pytest.fixture(scope='module')
def good(source_images):
    """A JPEG and two PNG images."""
    paths = sorted((source_images / 'positive').iterdir())[:1] + sorted((source_images / 'negative').iterdir())[1:4:2]
    return [path.read_bytes() for path in paths]


def test_probabilities_are_evaluations(ask, good, predictor):
    pixels = np.stack([images.decode(data, 32, 32).numpy() for data in good])
    expected = inference.probabilities(predictor)(pixels).numpy()
    answer = ask(good)
    np.testing.assert_allclose(answer['probabilities'], expected, atol=1e-5)
    assert answer['valid'].all()
    assert [label.decode() for label in answer['label']] == [
        predictor.classes.names[int(row[1] >= 0.5)] for row in expected]
    np.testing.assert_array_equal(answer['score'], answer['probabilities'][:, 1])


@pytest.mark.parametrize(('height', 'width', 'scale'), [(64, 64, 2), (101, 70, 2), (130, 200, 4), (256, 300, 8)])
def test_a_large_jpeg_is_decoded_at_the_scale_of_training(ask, predictor, height, width, scale):
    """Noise, of which another scale would make other pixels, and another probability."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    data = tf.io.encode_jpeg(noise, quality=95).numpy()
    pixels = images.decode(tf.constant(data), 32, 32)
    halved = tf.io.decode_jpeg(data, channels=3, ratio=scale, dct_method='INTEGER_ACCURATE')
    np.testing.assert_array_equal(pixels, images._bilinear(halved, 32, 32))
    whole = images._bilinear(tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE'), 32, 32)
    expected, other = inference.probabilities(predictor)(np.stack([pixels, whole])).numpy()
    assert np.abs(expected - other).max() > 1e-3
    np.testing.assert_allclose(ask([data])['probabilities'][0], expected, atol=1e-5)
    decoded, valid = signatures.decode_batch(tf.constant([data]), 32, 32)
    np.testing.assert_array_equal(decoded[0], pixels)
    assert valid.numpy().tolist() == [True]


BAD = {'empty': b'', 'text': b'no image at all', 'gif': b'GIF89a' + bytes(40), 'webp': b'RIFF\0\0\0\0WEBPVP8 ',
       'bmp': b'BM' + bytes(60), 'jpeg header': images.JPEG_MAGIC + bytes(30),
       'png header': images.PNG_MAGIC + bytes(9)}


@pytest.mark.parametrize('bad', list(BAD.values()), ids=list(BAD))
@pytest.mark.parametrize('place', [0, 1, 3])
def test_a_bad_image_disturbs_no_other(ask, good, bad, place):
    batch = [*good[:place], bad, *good[place:]]
    alone, answer = ask(good), ask(batch)
    assert answer['valid'].tolist() == [data is not bad for data in batch]
    np.testing.assert_allclose(np.delete(answer['probabilities'], place, 0), alone['probabilities'], atol=1e-6)
    assert answer['label'][place] == b'' and answer['score'][place] == 0
    assert np.isfinite(answer['probabilities']).all()


def test_a_truncated_image_is_bad(ask, good):
    answer = ask([data[:-len(data) // 2] for data in good] + good)
    assert answer['valid'].tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize('batch', [[], [b''], [b'', b'x']])
def test_nothing_good(ask, batch):
    answer = ask(batch)
    assert {len(value) for value in answer.values()} == {len(batch)} and not answer['valid'].any()


def test_the_order_holds_in_a_large_batch(ask, good):
    answer, alone = ask([good[i % 3] for i in range(100)]), ask(good)
    np.testing.assert_allclose(answer['probabilities'], alone['probabilities'][np.arange(100) % 3], atol=1e-5)


def test_weights_are_stored_once(saved, predictor):
    parameters = sum(v.numpy().nbytes for v in predictor.model.variables)
    stored = sum(path.stat().st_size for path in (saved / 'variables').iterdir())
    assert parameters < stored < 1.02 * parameters


def test_the_self_test_passes_and_can_fail(saved, predictor):
    signatures.self_test(predictor, saved)
    kernel = predictor.model.get_layer('logits').kernel
    before = kernel.numpy()
    kernel.assign(before + 1)
    try:
        with pytest.raises(RuntimeError, match='differs from the run'):
            signatures.self_test(predictor, saved)
    finally:
        kernel.assign(before)


def test_bfloat16_runs_export_too(copied_run, tmp_path):
    config = dataclasses.replace(run_dir.read_config(copied_run), inference_precision='bfloat16')
    (copied_run / 'run.flags').write_text(cli.to_flagfile(config))
    predictor = inference.load(copied_run)
    (tmp_path / 'saved').mkdir()
    signatures.save(predictor, tmp_path / 'saved')
    signatures.self_test(predictor, tmp_path / 'saved')


@pytest.mark.parametrize(('views', 'settings'), [(4, {}), (2, {}), (2, {'flip_horizontal': False})])
def test_mirrored_views_export_too(copied_run, tmp_path, good, views, settings):
    config = dataclasses.replace(run_dir.read_config(copied_run), inference_views=views, **settings)
    (copied_run / 'run.flags').write_text(cli.to_flagfile(config))
    predictor = inference.load(copied_run)
    (tmp_path / 'saved').mkdir()
    signatures.save(predictor, tmp_path / 'saved')
    signatures.self_test(predictor, tmp_path / 'saved')
    pixels = np.stack([images.decode(data, 32, 32).numpy() for data in good])
    served = tf.saved_model.load(str(tmp_path / 'saved')).signatures['serving_default'](image_bytes=tf.constant(good))
    np.testing.assert_allclose(served['probabilities'], inference.probabilities(predictor)(pixels), atol=1e-5)
    plain = inference.probabilities(predictor._replace(config=dataclasses.replace(config, inference_views=1)))(pixels)
    assert np.abs(served['probabilities'] - plain).max() > 1e-4
    with pytest.raises(RuntimeError, match='differs from the run'):
        signatures.self_test(predictor._replace(config=dataclasses.replace(config, inference_views=1)),
                             tmp_path / 'saved')


def test_outputs_have_the_batch_first_and_names_that_rest_can_carry(saved):
    signature = tf.saved_model.load(str(saved)).signatures['serving_default']
    assert all(spec.shape[0] is None for spec in signature.structured_outputs.values())
    assert not any(name.endswith('_bytes') for name in signature.structured_outputs)  # base64 in TF Serving's REST
