"""What a report tells of a run besides its predictions: data, settings, versions, and the commands that repeat it."""

import collections
from collections.abc import Mapping
import dataclasses
import io
import shlex
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from boardrec import architectures
from boardrec.config import EvaluateConfig, TrainConfig
from boardrec.data import records, tfrecord
from boardrec.data.records import Duplicate, RecordSet

_SAMPLED = 200  # images whose sizes are read
_PLACES = ('records', 'run_dir', 'feature_cache_dir')  # settings that differ from run to run and say nothing


class Data(NamedTuple):
    """What is known of a record set. Lists are None where their file is missing or damaged."""

    class_names: list[str]
    splits: dict[str, dict[str, int]]  # {split: {class: records}}
    rejected: list[tuple[str, int]] | None  # (reason, files), the most frequent first
    duplicates: list[Duplicate] | None
    storage: str  # what the records hold
    sizes: list[tuple[int, int]]  # (width, height) of some images
    fingerprint: str


class Facts(NamedTuple):
    """What is known of a run."""

    run: dict[str, Any]  # run.json
    changed: dict[str, object]  # settings that differ from their defaults
    other: dict[str, object]  # the rest
    data: Data
    commands: list[str]


def gather(record_set: RecordSet, config: TrainConfig, run: Mapping[str, Any], evaluation: EvaluateConfig) -> Facts:
    """Everything; reads the record set's lists and some of its images."""
    changed, other = settings(config)
    return Facts(dict(run), changed, other, read_data(record_set, evaluation.split), commands(config, evaluation))


def read_data(record_set: RecordSet, split: str) -> Data:
    """What the record set's files say; sizes of at most 200 images of a split, evenly spaced."""
    manifest = record_set.manifest
    rejected = _readable(lambda: records.read_rejected(record_set.folder))
    reasons = None if rejected is None else collections.Counter(_kind(reason) for _, reason, _ in rejected)
    return Data(
        class_names=manifest.class_names,
        splits={name: dict(info.class_counts) for name, info in manifest.splits.items()},
        rejected=None if reasons is None else reasons.most_common(),
        duplicates=_readable(lambda: records.read_duplicates(record_set.folder)),
        storage=_storage(manifest.storage), sizes=_sizes(record_set, split), fingerprint=manifest.fingerprint)


def settings(config: TrainConfig) -> tuple[dict[str, object], dict[str, object]]:
    """Settings that differ from their defaults, and the others; what `auto` became is no difference."""
    changed, other = {}, {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        resolved = field.default in ('auto', '') and field.name in ('precision', 'xla', 'strategy', 'positive_class',
                                                                    'feature_cache')
        if field.name == 'image_size':
            default_size = architectures.default_size(config.backbone)
            resolved = config.height_width() == (default_size, default_size)
        same = value == field.default or resolved or field.name in _PLACES
        (other if same else changed)[field.name] = value
    return changed, other


def commands(config: TrainConfig, evaluation: EvaluateConfig) -> list[str]:
    """Command lines that repeat training and evaluation."""
    run = evaluation.run_dir
    asked = [f'--{field.name}={value}' for field in dataclasses.fields(evaluation)
             if (value := getattr(evaluation, field.name)) != field.default and field.name != 'run_dir']
    return [shlex.join(['python', '-m', 'boardrec.train', f'--flagfile={run}/run.flags', '--run_dir=NEW']),
            shlex.join(['python', '-m', 'boardrec.evaluate', f'--run_dir={run}',
                        *(argument.replace('=True', '=true') for argument in asked)])]


def describe_sizes(sizes: list[tuple[int, int]]) -> str:
    """Sizes of images in words."""
    distinct = collections.Counter(sizes)
    if not distinct:
        return 'unknown'
    if len(distinct) == 1:
        return '{}x{}'.format(*sizes[0])
    widths, heights = np.transpose(sizes)
    common, count = distinct.most_common(1)[0]
    return (f'{widths.min()}x{heights.min()} to {widths.max()}x{heights.max()}; {count / len(sizes):.0%} are '
            f'{common[0]}x{common[1]}')


def _kind(reason: str) -> str:
    """A reason without what it says of one file."""
    return reason.partition(':')[0].strip() or 'unknown'


def _storage(storage: records.Storage) -> str:
    if storage.image_size is None:
        return 'files as they were found'
    height, width = storage.image_size
    quality = f', quality {storage.quality}' if storage.quality else ''
    return f'{storage.encoding}{quality}, {storage.resize} to {width}x{height}'


def _sizes(record_set: RecordSet, split: str) -> list[tuple[int, int]]:
    storage, ids = record_set.manifest.storage, record_set.split_range(split)
    if storage.encoding == 'raw':
        height, width = storage.image_size
        return [(width, height)]
    count, sizes = min(_SAMPLED, len(ids)), []
    for _, stored in tfrecord.read_images(record_set, [ids[len(ids) * i // count] for i in range(count)]):
        with Image.open(io.BytesIO(stored)) as image:  # its header
            sizes.append(image.size)
    return sizes


def _readable(read: Any) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError, TypeError):
        return None
