"""The networks of keras.applications: their names and input sizes, known before TensorFlow is imported.

The names are read out of the source of the installed Keras, which takes milliseconds. The sizes are those of its
constructors, which say them only by building a network; a test holds them against these.
"""

import ast
import difflib
import functools
import importlib.util
import pathlib
import re

_DEFAULT_SIZE, _MINIMUM_SIZE = 224, 32  # pixels a side, of all networks that are not below
_DEFAULT_SIZES = {
    'xception': 299, 'inception_v3': 299, 'inception_resnet_v2': 299, 'nasnet_large': 331,
    'efficientnet_b1': 240, 'efficientnet_b2': 260, 'efficientnet_b3': 300, 'efficientnet_b4': 380,
    'efficientnet_b5': 456, 'efficientnet_b6': 528, 'efficientnet_b7': 600,
    'efficientnet_v2_b1': 240, 'efficientnet_v2_b2': 260, 'efficientnet_v2_b3': 300,
    'efficientnet_v2_s': 384, 'efficientnet_v2_m': 480, 'efficientnet_v2_l': 480,
}
_MINIMUM_SIZES = {'xception': 71, 'inception_v3': 75, 'inception_resnet_v2': 75}


@functools.cache
def constructors() -> dict[str, str]:
    """{name: its constructor in keras.applications}: efficientnet_v2_b0 to EfficientNetV2B0."""
    root = pathlib.Path(importlib.util.find_spec('keras').origin).parent
    tree = ast.parse((root / 'applications' / '__init__.py').read_bytes())
    names = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return {_snake(name): name for name in names if name[0].isupper()}


def find(text: str) -> str | None:
    """The name that is meant, whatever its capitals, dashes and underscores; None if there is no such network."""
    return {_plain(name): name for name in constructors()}.get(_plain(text))


def like(text: str) -> list[str]:
    """The names that look most like `text`, best first; at most three."""
    plain = {_plain(name): name for name in constructors()}
    return [plain[match] for match in difflib.get_close_matches(_plain(text), plain)]


def default_size(name: str) -> int:
    """Pixels a side that its ImageNet weights were trained for."""
    return _DEFAULT_SIZES.get(name, _DEFAULT_SIZE)


def minimum_size(name: str) -> int:
    """Pixels a side that it needs at least."""
    return _MINIMUM_SIZES.get(name, _MINIMUM_SIZE)


def _snake(constructor: str) -> str:
    """InceptionResNetV2 to inception_resnet_v2: Net and NeXt are no words of their own."""
    joined = re.sub('Ne(t|Xt)', lambda match: match[0].lower(), constructor)
    return re.sub('(?<=[a-z0-9])(?=[A-Z])', '_', joined).lower()


def _plain(name: str) -> str:
    return re.sub('[-_]', '', name).lower()
