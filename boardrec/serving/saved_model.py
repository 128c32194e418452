"""An export as a function from encoded images to probabilities, for whoever has MODELS/ and not the run."""

from collections.abc import Callable, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from boardrec import progress
from boardrec.config import UserError
from boardrec.serving import publish
from boardrec.serving.publish import GRAPH
from boardrec.training.run_dir import RunDir


class Answer(NamedTuple):
    """What the signature says of N images."""

    probabilities: np.ndarray  # float32 [N, C], in the order of class_names; 0 where not valid
    labels: list[str]  # N names; '' where not valid


def find(path: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """The folder of the version that a path names, or of the newest in it, and its metadata. Without TensorFlow.

    A newer folder that is no export is told of and passed over, as a server does. Raises UserError if there is none.
    """
    given = pathlib.Path(path)
    folders = _folders(given)
    found = [(folder, metadata) for folder in folders if (metadata := _metadata(folder))]
    if not found:
        is_run = RunDir(given).flags.is_file()
        way_out = f'it is a run: give --run_dir={path}' if is_run else 'make one with python -m boardrec.export'
        raise UserError(f'--saved_model={path}: there is no export in it ({GRAPH} and {publish.METADATA}); {way_out}.')
    folder, metadata = found[0]
    if folder != folders[0]:
        progress.say(f'{folders[0]} is no export ({GRAPH} or {publish.METADATA} is missing or damaged): {folder} is '
                     'taken')
    publish.require_loadable(folder, 'saved_model')
    return folder, metadata


def is_there(path: str) -> bool:
    """Whether a path names an export, or a folder of some."""
    return any(map(_metadata, _folders(pathlib.Path(path))))


def _folders(given: pathlib.Path) -> list[pathlib.Path]:
    """A version itself, or the versions in a folder, the newest first."""
    if (given / GRAPH).is_file():
        return [given]
    return [given / str(version) for version in reversed(publish.versions(given))]


def _metadata(folder: pathlib.Path) -> dict[str, Any] | None:
    """What an export says of itself; None of what is none."""
    try:
        metadata = json.loads((folder / publish.METADATA).read_bytes())
        good = (folder / GRAPH).is_file() and all(isinstance(name, str) for name in metadata['class_names'])
        return metadata if good else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(folder: pathlib.Path) -> Callable[[Sequence[bytes]], Answer]:
    """The signature serving_default of a version; at least one image a call. Raises UserError for a damaged one."""
    import tensorflow as tf
    for gpu in tf.config.list_physical_devices('GPU'):
        tf.config.experimental.set_memory_growth(gpu, True)
    try:
        loaded = tf.saved_model.load(str(folder))  # the signature alone would not keep its variables
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [''])[0]
        raise UserError(f'--saved_model={folder}: cannot be loaded ({reason}); name another version, or export it '
                        'again.') from None

    def ask(encoded: Sequence[bytes]) -> Answer:
        answer = loaded.signatures['serving_default'](image_bytes=tf.constant(encoded, tf.string))
        labels = [label.decode() for label in answer['label'].numpy().tolist()]
        return Answer(answer['probabilities'].numpy(), labels)

    return ask
