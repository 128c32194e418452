"""The pretrained networks: their constructors, their own normalisation, and where their weights come from."""

import inspect
import pathlib
import re
from typing import Any, NamedTuple
import warnings

import keras
import numpy as np

from boardrec import architectures, progress
from boardrec.config import UserError
from boardrec.data import files


class Backbone(NamedTuple):
    """One network of keras.applications."""

    build: Any  # its constructor
    preprocess: Any  # its preprocess_input, which changes nothing where the network itself begins with that
    default_size: int  # pixels a side
    minimum_size: int


def _efficientnet_input(images: keras.KerasTensor) -> keras.KerasTensor:
    """What EfficientNet (not V2) is to be given for its ImageNet weights to see what they were trained on.

    The network begins with (x / 255 - mean) / sqrt(deviation), and only where it is built with weights='imagenet' does
    it divide by sqrt(deviation) once more (tensorflow#49930). That is done here, ahead of it.
    """
    mean, deviation = 255 * np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (images - mean.astype('float32')) / np.sqrt(deviation).astype('float32') + mean.astype('float32')


def _backbone(name: str, constructor: str) -> Backbone:
    build = getattr(keras.applications, constructor)
    preprocess = inspect.getmodule(build).preprocess_input
    if re.fullmatch(r'efficientnet_b\d', name):
        preprocess = _efficientnet_input
    return Backbone(build, preprocess, architectures.default_size(name), architectures.minimum_size(name))


BACKBONES = {name: _backbone(name, constructor) for name, constructor in architectures.constructors().items()}


def connect(name: str, images: keras.KerasTensor) -> tuple[keras.KerasTensor, list[keras.Layer]]:
    """Connects a backbone without its top to symbolic uint8 images [B, H, W, 3].

    Returns its pooled features [B, F] and its layers, first to last. Raises UserError for an image size that is too
    small.
    """
    backbone = BACKBONES[name]
    height, width = images.shape[1:3]
    if min(height, width) < backbone.minimum_size:
        raise UserError(f'--image_size={height}x{width}: {name} needs at least {backbone.minimum_size} pixels a side.')
    normalised = backbone.preprocess(keras.ops.cast(images, 'float32'))
    network = backbone.build(include_top=False, weights=None, input_tensor=normalised)
    # As pooling='avg', whose layer has another name in a process's second model; names are part of what is kept.
    pooling = keras.layers.GlobalAveragePooling2D(name='global_average_pooling2d')
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    return pooling(network.output), [*layers, pooling]


def load_weights(name: str, weights: str, layers: list[keras.Layer]) -> None:
    """Sets the layers' variables from --weights: imagenet, none (left as they are) or a Keras weights file.

    Raises UserError for a file that is missing or does not fit.
    """
    if weights == 'none':
        return
    source = _imagenet_file(name) if weights == 'imagenet' else weights
    if weights != 'imagenet' and not pathlib.Path(source).is_file():
        raise UserError(f'--weights={weights}: there is no such file; give imagenet, none or a Keras weights file.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)  # Keras only warns of layers that it leaves as they were
            size = BACKBONES[name].default_size
            network = BACKBONES[name].build(include_top=False, weights=source, input_shape=(size, size, 3))
    except Exception as error:  # get_file raises a bare one, zipfile and h5py their own
        if weights == 'imagenet' and source == 'imagenet':
            raise UserError(f'--weights=imagenet: Keras could not download the {name} weights: run '
                            f'tools/fetch_weights.py --backbone={name}, or name a file, or start from --weights=none.'
                            ) from None
        reason = (str(error).splitlines() or [''])[0]
        raise UserError(f'--weights={source}: not weights of {name} without its top ({reason}).') from None
    copy_weights(network.layers, layers)


def copy_weights(source: list[keras.Layer], layers: list[keras.Layer]) -> None:
    """Sets the layers' variables to those of another network's layers, of the same kinds in the same order."""
    # By place: InceptionV3's layers have automatic names, which differ in a process's second network.
    for layer, other in zip(_with_weights(layers), _with_weights(source), strict=True):
        layer.set_weights(other.get_weights())
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it goes on with what its weights were before, else


def _with_weights(layers: list[keras.Layer]) -> list[keras.Layer]:
    return [layer for layer in layers if layer.weights]


def _imagenet_file(name: str) -> str:
    """The file in the project's own cache, else 'imagenet', which lets Keras download."""
    cached = files.cache_dir() / f'{name}_notop.weights.h5'
    if cached.is_file():
        return str(cached)
    progress.say(f'{cached} is not there (tools/fetch_weights.py --backbone={name} makes it): asking Keras for the '
                 'weights.')
    return 'imagenet'
