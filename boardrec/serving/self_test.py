"""Checks a version before it is published, the way TF Serving runs it: each signature in a TF1 session."""

import base64
from collections.abc import Callable
import contextlib
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image
import tensorflow as tf

from boardrec.data import images
from boardrec.serving import signatures, warmup_requests
from boardrec.serving.servable import Servable
from boardrec.training import inference
from boardrec.training.inference import Predictor

BATCH_SIZES = (1, 4, 16)  # of warm-up requests; the last is the largest batch in batching_params.pbtxt
_TOLERANCE = 1e-5
_BAD = ((b'', 'empty'), (b'not an image', 'not_an_image'))
Answer = dict[str, np.ndarray]
Session = Callable[[str, dict[str, Any]], Answer]


def run(predictor: Predictor, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Runs every signature on golden images and on bad bytes, and each warm-up request; returns the golden requests.

    These are files, and what `serving_default` answers, as JSON: image_bytes ({b64}), valid, error_code, label, score,
    probabilities.
    Raises RuntimeError if a probability is further than 1e-5 from the run's own, or anything else is not as it should.
    """
    with contextlib.closing(Servable(folder, 0)) as loaded:
        return check(predictor, asker(loaded), folder)


def check(predictor: Predictor, ask: Session, folder: pathlib.Path) -> list[dict[str, Any]]:
    """As `run`, of a version that is loaded already."""
    good = golden_images(*predictor.config.height_width())
    pixels, expected, features = _expected(predictor, good)
    requests = [good[0], *(data for data, _ in _BAD), *good[1:], good[0][:60]]
    codes = ['', *(code for _, code in _BAD), *[''] * (len(good) - 1), 'truncated']
    rows = [number for number, code in enumerate(codes) if not code]
    answer = ask('serving_default', {'image_bytes': requests})
    _check_rows('serving_default', answer, codes)
    described = ask('embedding', {'image_bytes': requests})
    _check_rows('embedding', described, codes)
    classified = ask('classify', {'inputs': [warmup_requests.example(data) for data in requests]})
    for name, got, wanted in (
            ('serving_default', answer['probabilities'][rows], expected),
            ('serving_pixels', ask('serving_pixels', {'images': pixels})['probabilities'], expected),
            ('classify', classified['scores'][rows], expected),
            ('embedding', described['embedding'][rows], features)):
        _check_close(name, got, wanted)
    names = predictor.classes.names
    _check(classified['classes'].tolist() == [[name.encode() for name in names]] * len(codes),
           'classify names other classes')
    decided = [names[choice] for choice in inference.decide(predictor, expected).numpy()]
    _check([answer['label'][row].decode() for row in rows] == decided, 'serving_default decides otherwise')
    for name, inputs in _empty(pixels.shape[1:]).items():
        _check(not any(map(len, ask(name, inputs).values())), f'{name} does not take an empty batch')
    for name, inputs in warmup_requests.read(folder):
        _check_warm(name, inputs, ask(name, inputs))
    return [_golden(data, answer, number) for number, data in enumerate(requests)]


def write_warmup(predictor: Predictor, folder: pathlib.Path) -> None:
    """Writes requests for each signature and each of BATCH_SIZES into a version's folder."""
    height, width = predictor.config.height_width()
    image = golden_images(height, width)[1]
    inputs = {'serving_default': ('image_bytes', image), 'embedding': ('image_bytes', image),
              'classify': ('inputs', warmup_requests.example(image))}

    def request(signature: str, size: int) -> dict[str, Any]:
        if signature == 'serving_pixels':
            return {'images': np.full([size, height, width, 3], 128, np.uint8)}
        name, value = inputs[signature]
        return {name: np.array([value] * size, object)}

    warmup_requests.write(folder, [(name, request(name, size)) for name in signatures.NAMES for size in BATCH_SIZES])


def golden_images(height: int, width: int) -> list[bytes]:
    """Four generated images, seeded and small: a PNG of another size than the model's, a JPEG that is decoded at a DCT
    scale, one that EXIF turns, a PNG with alpha.
    """
    random = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6

    def picture(rows: int, columns: int, channels: int = 3) -> Image.Image:
        coarse = Image.fromarray(random.integers(0, 256, (9, 7, channels), np.uint8))
        return coarse.resize((columns, rows), Image.Resampling.NEAREST)

    def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
        output = io.BytesIO()
        image.save(output, file_format, **options)
        return output.getvalue()

    return [encoded(picture(height + 9, width + 30), 'PNG'), encoded(picture(2 * height, 3 * width), 'JPEG'),
            encoded(picture(height + 20, width + 5), 'JPEG', exif=turned.tobytes()),
            encoded(picture(height, width, 4), 'PNG')]


def _expected(predictor: Predictor, good: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What evaluation makes of images: pixels, probabilities, features."""
    read = images.reader(*predictor.config.height_width())
    pixels = np.stack([read(data) for data in good])
    describe = tf.function(lambda batch: inference.forward_with_features(predictor, batch)[1], autograph=False)
    # Compiled: eager bfloat16 rounds elsewhere.
    return pixels, inference.probabilities(predictor)(pixels).numpy(), describe(tf.constant(pixels)).numpy()


def asker(loaded: Servable) -> Session:
    """The function ask(signature, {input: values}) of a version that is loaded."""
    def ask(name: str, inputs: dict[str, Any]) -> Answer:
        signature = loaded.signature(name)
        return loaded.run(signature, {key: np.array(values, signature.inputs[key].dtype.as_numpy_dtype)
                                      for key, values in inputs.items()})

    return ask


def _empty(shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    nothing = np.zeros([0], object)
    # TensorFlow's parser takes no empty batch in some versions, and TF Serving refuses it before.
    return {'serving_default': {'image_bytes': nothing}, 'embedding': {'image_bytes': nothing},
            'serving_pixels': {'images': np.zeros([0, *shape], np.uint8)}}


def _check_rows(name: str, answer: Answer, codes: list[str]) -> None:
    said = [code.decode() for code in answer['error_code']]
    _check(said == codes and answer['valid'].tolist() == [not code for code in codes],
           f'{name} answers {said} in place of {codes}')


def _check_close(name: str, got: np.ndarray, wanted: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(wanted).max()))  # features are no probabilities
    difference = float(np.abs(got - wanted).max())
    _check(difference <= _TOLERANCE * scale, f'{name} differs from the run by {difference}')  # not so if it is NaN


def _check_warm(name: str, inputs: dict[str, Any], answer: Answer) -> None:
    count = len(next(iter(inputs.values())))
    good = all(len(value) == count for value in answer.values()) and answer.get('valid', np.ones(1)).all()
    _check(bool(good), f'{name} does not answer its warm-up request of {count}')


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise RuntimeError(f'the export does not work: {problem}')


def _golden(data: bytes, answer: Answer, row: int) -> dict[str, Any]:
    return {'image_bytes': {'b64': base64.b64encode(data).decode()}, 'valid': bool(answer['valid'][row]),
            'error_code': answer['error_code'][row].decode(), 'label': answer['label'][row].decode(),
            'score': float(answer['score'][row]), 'probabilities': answer['probabilities'][row].tolist()}
