"""An export as a function from encoded images to probabilities, for whoever has MODELS/ and not the run."""

from collections.abc import Callable, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from boardrec.config import UserError
from boardrec.serving import publish

_GRAPH = 'saved_model.pb'


class Answer(NamedTuple):
    """What the signature says of N images."""

    probabilities: np.ndarray  # float32 [N, C], in the order of class_names; 0 where not valid
    labels: list[str]  # N names; '' where not valid


def find(path: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """The folder of the version that a path names, or of the newest in it, and its metadata. Without TensorFlow.

    Raises UserError if boardrec has exported none there.
    """
    given = pathlib.Path(path)
    versions = publish.versions(given)
    folder = given / str(versions[-1]) if versions and not (given / _GRAPH).is_file() else given
    try:
        metadata = json.loads((folder / publish.METADATA).read_bytes())
        if not (folder / _GRAPH).is_file() or not all(isinstance(name, str) for name in metadata['class_names']):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'--saved_model={path}: there is no export in it ({_GRAPH} and {publish.METADATA}); make one '
                        'with python -m boardrec.export.') from None
    if set(str(folder.absolute())) & set('[]*?'):
        raise UserError(f'--saved_model={path}: TensorFlow loads no model from a path with one of []*? in it.')
    return folder, metadata


def load(folder: pathlib.Path) -> Callable[[Sequence[bytes]], Answer]:
    """The signature serving_default of a version; at least one image a call."""
    import tensorflow as tf
    for gpu in tf.config.list_physical_devices('GPU'):
        tf.config.experimental.set_memory_growth(gpu, True)
    loaded = tf.saved_model.load(str(folder))  # the signature alone would not keep its variables

    def ask(encoded: Sequence[bytes]) -> Answer:
        answer = loaded.signatures['serving_default'](image_bytes=tf.constant(encoded, tf.string))
        labels = [label.decode() for label in answer['label'].numpy().tolist()]
        return Answer(answer['probabilities'].numpy(), labels)

    return ask
