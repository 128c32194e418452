"""A TFDS data set on disk as the input of a conversion: where in which shard each of its images lies.

In: a folder with dataset_info.json, features.json and TFRecord shards. Out: each image as found, named as TFDS names
the example (`tfds_id`: SHARD__NUMBER) and read in place, as a range of bytes; damaged and unlabelled ones as rejected.
The JSON files are read here, as data: tfds.builder_from_directory imports whatever modules features.json names.
"""

from collections.abc import Iterator
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

from boardrec import progress
from boardrec.config import ConvertConfig, UserError
from boardrec.data import framing, scan, workers
from boardrec.data.table import Table

_INFO, _FEATURES = 'dataset_info.json', 'features.json'
_SPLITS = {'train': 'train', 'val': 'val', 'validation': 'val', 'test': 'test'}  # ours, by TFDS's names
_TYPES = 'tensorflow_datasets.core.features.'
_IMAGE, _LABEL = f'{_TYPES}image_feature.Image', f'{_TYPES}class_label_feature.ClassLabel'
_DICT = f'{_TYPES}features_dict.FeaturesDict'
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'  # TFDS's default, core/naming.py


class Shard(NamedTuple):
    """One file of a TFDS data set."""

    file: str
    split: str  # as we call it
    records: int  # by dataset_info.json
    changed_ns: int


class DataSet(NamedTuple):
    """What a TFDS data set says of itself."""

    shards: list[Shard]
    image: str  # the key of the image in an Example
    label: str
    class_names: list[str]


class Image(NamedTuple):
    """One record's encoded image."""

    offset: int  # bytes from the shard's start
    bytes: int
    label: int
    sha256: str


def scan_records(config: ConvertConfig, pool: workers.Pool) -> tuple[Table[scan.Found], list[scan.Rejection]]:
    """Finds the images in the data set config.tfds, reading all of it once, in the pool's processes.

    Raises UserError for what is no such data set, and for more damage than the settings allow.
    """
    root = pathlib.Path(config.tfds)
    data_set = describe(root)
    fractions, total = _fractions(config, data_set), sum(shard.records for shard in data_set.shards)
    found = [Table(scan.Found) for _ in data_set.shards]
    unlabelled, damaged = [], []
    payloads = [(str(root / shard.file), shard.records, data_set.image, data_set.label) for shard in data_set.shards]
    with progress.bar('reading', total=total, unit='records') as bar:
        for number, told in pool.run(look_through, payloads, lambda done: bar.update(min(done, total) - bar.n)):
            for place, one in enumerate(told):
                item = _item(data_set, data_set.shards[number], place, one, fractions)
                kind = damaged if isinstance(one, str) else unlabelled
                (found[number] if isinstance(item, scan.Found) else kind).append(item)
            _check_damage(config, sorted(damaged), total)
    if not any(found):
        raise UserError(f'--tfds={root}: none of its records holds an image and a label; name another data set.')
    return Table(scan.Found, itertools.chain.from_iterable(found)), sorted(damaged + unlabelled)


def describe(root: pathlib.Path) -> DataSet:
    """Reads what a data set says of itself. Raises UserError where that cannot be converted."""
    info, features = _read_json(root, _INFO), _read_json(root, _FEATURES)
    try:
        shards = _shards(root, info)
        image, label, count = _image_and_label(root, features)
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        raise UserError(f'--tfds={root}: {_INFO} or {_FEATURES} is damaged; make the data set again.') from None
    if not shards:
        raise UserError(f'--tfds={root} has no split train, validation or test that holds records; '
                        'name another data set.')
    return DataSet(shards, '/'.join(image), '/'.join(label), _class_names(root, label, count))


def look_through(payload: tuple[str, int, str, str], _: dict[int, str], watch: workers.Watch) -> list[Image | str]:
    """In a worker process: each record of a shard in order, as its image or the reason why it has none."""
    path, records, image_key, label_key = payload
    told: list[Image | str] = []
    after_damage = None
    for piece in framing.walk(path):
        if isinstance(piece, framing.Gap):
            told.append(f'damaged record: {piece.reason}')
            after_damage = len(told)
        else:
            told.append(_image_in(piece, image_key, label_key))
        watch.end()
    lost = max(0, records - len(told))  # a gap counts as one record so far
    if after_damage is None:
        return told + ['damaged shard: it ends before this record'] * lost
    told[after_damage:after_damage] = [told[after_damage - 1]] * lost
    return told


def _image_in(record: framing.Found, image_key: str, label_key: str) -> Image | str:
    from google.protobuf.message import DecodeError
    import tensorflow as tf
    try:
        feature = tf.train.Example.FromString(record.data).features.feature
    except DecodeError:
        return 'damaged record: its bytes are no Example'
    images, labels = feature[image_key].bytes_list.value, feature[label_key].int64_list.value
    if len(images) != 1 or len(labels) != 1:
        return f'its Example lacks {image_key if len(images) != 1 else label_key}'
    # An Example holds bytes as they are; wherever the same bytes are found first does as well.
    offset = record.data_offset + record.data.find(images[0])
    return Image(offset, len(images[0]), labels[0], hashlib.sha256(images[0]).hexdigest())


def _item(data_set: DataSet, shard: Shard, place: int, one: Image | str, fractions: dict[str, float]
          ) -> scan.Found | scan.Rejection:
    """What the scan says of the record at a place of a shard."""
    source = f'{shard.file}{scan.RECORD_MARK}{place}'
    if isinstance(one, str):
        return scan.Rejection(source, one)
    if not 0 <= one.label < len(data_set.class_names):
        return scan.Rejection(source, f'no label: class number {one.label}', one.sha256)
    split = scan.split_of(source, fractions) if fractions and shard.split == 'train' else shard.split
    label = data_set.class_names[one.label]
    return scan.Found(source, split, label, one.bytes, shard.changed_ns, one.offset, one.sha256)


def _check_damage(config: ConvertConfig, damaged: list[scan.Rejection], total: int) -> None:
    if damaged and config.on_bad_image == 'fail':
        raise UserError(f'{os.path.join(config.tfds, damaged[0].source)}: {damaged[0].reason} (--on_bad_image=fail).')
    if len(damaged) > config.max_bad_fraction * total:
        raise UserError(
            f'--tfds={config.tfds}: {len(damaged)} of {total} records can be read no more, which is more than '
            f'--max_bad_fraction={config.max_bad_fraction}, the first {damaged[0].source} ({damaged[0].reason}); make '
            'the data set again, or allow more.')


def _fractions(config: ConvertConfig, data_set: DataSet) -> dict[str, float]:
    """Where the training images of a set without a validation split go by hash: to it, and to test if that lacks too.

    The fractions add up to 1. Empty: they stay where they are.
    """
    there = {shard.split for shard in data_set.shards}
    if 'val' in there:
        return {}
    fractions = {split: part for split, part in config.split_fractions().items()
                 if split == 'train' or split not in there}
    return {split: part / sum(fractions.values()) for split, part in fractions.items()}


def _read_json(root: pathlib.Path, name: str) -> Any:
    try:
        return json.loads((root / name).read_bytes())
    except FileNotFoundError:
        versions = [path.parent for pattern in ('*', '*/*', '*/*/*') for path in sorted(root.glob(f'{pattern}/{name}'))]
        such = f', such as {versions[-1]}' if versions else ', in which TFDS wrote one version'
        raise UserError(f'--tfds={root} holds no {name}: name the folder of a data set{such}.') from None
    except ValueError:
        raise UserError(f'--tfds={root}: {name} is damaged; make the data set again.') from None


def _shards(root: pathlib.Path, info: dict[str, Any]) -> list[Shard]:
    """The files of the splits that we know. Raises UserError for one that is missing, and for another format."""
    file_format = info.get('fileFormat', 'tfrecord')
    if file_format != 'tfrecord':
        raise UserError(f'--tfds={root} is in the format {file_format}: write it again with TFDS as tfrecord.')
    shards = []
    for split in info.get('splits', ()):
        lengths = [int(length) for length in split.get('shardLengths', ())]
        if split['name'] not in _SPLITS:
            progress.say(f'note: the split {split["name"]!r} of {sum(lengths):,} records is left out: it is none of '
                         f'{", ".join(_SPLITS)}')
            continue
        for file, length in zip(_file_names(root, info, split, len(lengths)), lengths, strict=True):
            shards.append(Shard(file, _SPLITS[split['name']], length, (root / file).stat().st_ctime_ns))
    return shards


def _file_names(root: pathlib.Path, info: dict[str, Any], split: dict[str, Any], count: int) -> Iterator[str]:
    digits = max(5, len(str(count)))
    for i in range(count):
        index, of = f'{i:0{digits}d}', f'{count:0{digits}d}'
        file = (split.get('filepathTemplate') or _TEMPLATE).format(
            DATASET=info['name'], SPLIT=split['name'], FILEFORMAT='tfrecord', SHARD_INDEX=index, NUM_SHARDS=of,
            SHARD_X_OF_Y=f'{index}-of-{of}')
        if '..' in pathlib.PurePath(file).parts or os.path.isabs(file):
            raise UserError(f'--tfds={root}: its shard {file!r} lies outside of the folder; move it there.')
        if not (root / file).is_file():
            raise UserError(f'--tfds={root}: its shard {file} is missing; make the data set again.')
        yield file


def _image_and_label(root: pathlib.Path, features: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """The names that lead to the image and to the label, and how many classes there are."""
    leaves = dict(_leaves(features))
    image, label = _only(root, leaves, _IMAGE), _only(root, leaves, _LABEL)
    if _attribute(leaves[image], 'image', 'dtype') == 'float32':
        raise UserError(f'--tfds={root}: its image {"/".join(image)!r} holds floats, which are no photographs; save '
                        'its images as files and give --input_dir.')
    return image, label, int(_attribute(leaves[label], 'classLabel', 'numClasses', 'num_classes') or 0)


def _leaves(feature: dict[str, Any], names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """What a feature consists of, by the names that lead there; what repeats (a Sequence) counts as one."""
    if _type(feature) != _DICT:
        yield names, feature
        return
    inner = feature['featuresDict'] if 'featuresDict' in feature else feature['content']
    for name, child in (inner['features'] if 'featuresDict' in feature or feature.get('proto_cls') else inner).items():
        yield from _leaves(child, (*names, name))


def _type(feature: dict[str, Any]) -> str:
    return feature.get('pythonClassName') or feature['type']  # the latter before TFDS 4.5 or so


def _attribute(feature: dict[str, Any], kind: str, *keys: str) -> Any:
    values = feature.get(kind) or feature.get('content') or {}
    return next((values[key] for key in keys if key in values), None)


def _only(root: pathlib.Path, leaves: dict[tuple[str, ...], dict[str, Any]], wanted: str) -> tuple[str, ...]:
    """The names that lead to the one feature of this type. Raises UserError if there is none, or several."""
    names = [name for name, feature in leaves.items() if _type(feature) == wanted]
    if len(names) != 1:
        there = ', '.join(f'{"/".join(name)} ({_type(feature).rpartition(".")[2]})' for name, feature in leaves.items())
        raise UserError(f'--tfds={root}: {len(names) or "no"} features are {wanted.rpartition(".")[2]}, which must be '
                        f'exactly one, among {there}; save its images as files and give --input_dir.')
    return names[0]


def _class_names(root: pathlib.Path, label: tuple[str, ...], count: int) -> list[str]:
    """The names beside the label's numbers, or the numbers."""
    path = root / f'{"-".join(name.replace("/", ".") for name in label)}.labels.txt'
    if not path.is_file():
        return [str(number) for number in range(count)]
    return [line.strip() for line in path.read_text('utf-8', 'surrogateescape').split('\n') if line.strip()]
