"""The on-disk format of a record set, both ways: the only place that knows it, with tfrecord.py for what shards hold.

    RECORDS/
      manifest.json                            what is here; written last, so that its presence means 'complete'
      boardrec-SPLIT.tfrecord-00000-of-00002   shards with TFDS names: TFRecord files of tf.train.Example
      index.jsonl                              one JSON object a record, in record_id order
      rejected.csv                             source,reason,sha256 of each file that became no record
      duplicates.csv                           a line for each two files that are the same photograph, see Duplicate
      dataset_info.json, features.json, ...    so that tfds.builder_from_directory reads the folder

A record_id is the record's position in the set: splits, shards and records in the manifest's order. Without TensorFlow,
because the converter's parent process must stay small.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from boardrec import progress
from boardrec.config import SPLITS, UserError
from boardrec.data import files

FORMAT_VERSION = 2
BLOCK_RECORDS = 32  # consecutive records that are read together: 20,500 records/s from random places, single ones 3,500
DATASET_NAME = 'boardrec'
LABELS = 'label.labels.txt'  # a class a line
TFDS_FILES = ('dataset_info.json', 'features.json', LABELS)
MANIFEST, INDEX, REJECTED, DUPLICATES = 'manifest.json', 'index.jsonl', 'rejected.csv', 'duplicates.csv'
LISTS = (REJECTED, DUPLICATES, *TFDS_FILES)  # of which the manifest holds no sums


class Storage(NamedTuple):
    """How the records of a set hold pixels."""

    encoding: str  # keep (JPEG or 8-bit PNG, as it was found), jpeg, png, or raw: uint8 [H, W, 3], row by row
    image_size: tuple[int, int] | None = None  # height, width that images were resized to; None: not resized
    resize: str | None = None  # shorter (both sides of image_size are what the shorter side became), squash or pad
    quality: int | None = None  # of jpeg


KEEP = Storage('keep')


class Row(NamedTuple):
    """What index.jsonl says of one record, in this order of keys."""

    record_id: int
    source: str
    sha256: str
    split: str
    label: str
    shard: str
    offset: int  # bytes from the shard's start to the record's framing


class Duplicate(NamedTuple):
    """What duplicates.csv says of two files that lie in two splits or under two labels, in this order of columns."""

    source: str
    split: str
    label: str
    other: str
    other_split: str
    other_label: str
    kind: str  # same: equal bytes; near: nearly equal pixels
    distance: str  # perceptual.difference of them, as a decimal number
    action: str  # reported; dropped: source became no record; both dropped


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file."""

    file: str
    records: int
    bytes: int
    sha256: str
    class_counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Split:
    """A split's totals; its shards stand together in the manifest, splits in the order of `Manifest.splits`."""

    records: int
    shards: int
    class_counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    class_names: list[str]
    encoding: str  # this and the next three: see Storage
    image_size: list[int] | None
    resize: str | None
    quality: int | None
    splits: dict[str, Split]
    shards: list[Shard]
    index_sha256: str
    block_records: int = BLOCK_RECORDS
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 over all else that the manifest says, and so, through the shards' sums, over every byte of the set."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def storage(self) -> Storage:
        """How the records hold pixels."""
        size = None if self.image_size is None else tuple(self.image_size)
        return Storage(self.encoding, size, self.resize, self.quality)

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({'fingerprint': self.fingerprint, **dataclasses.asdict(self)}, indent=1) + '\n'


class RecordSet(NamedTuple):
    """An opened record set; arrays are in record_id order."""

    folder: pathlib.Path
    manifest: Manifest
    sources: list[str]  # [N]
    labels: np.ndarray  # int32 [N]
    offsets: np.ndarray  # int64 [N], within the record's shard

    def split_range(self, split: str) -> range:
        """The record_ids of a split. Raises UserError for a split that the set does not have."""
        start, _ = self._before(split)
        return range(start, start + self.manifest.splits[split].records)

    def split_shards(self, split: str) -> list[Shard]:
        """The shards of a split. Raises UserError for a split that the set does not have."""
        _, start = self._before(split)
        return self.manifest.shards[start:start + self.manifest.splits[split].shards]

    def shard_paths(self, split: str) -> list[str]:
        """The absolute paths of a split's shards."""
        return [str(self.folder.absolute() / shard.file) for shard in self.split_shards(split)]

    def require_size(self, image_size: tuple[int, int]) -> None:
        """Raises UserError for an input that stored images would be enlarged to: what they lost does not come back.

        With resize=shorter an image may have the stored side in either direction and more in the other, so that it
        counts for both.
        """
        stored, (height, width) = self.manifest.storage, image_size
        if stored.image_size is None or (height <= stored.image_size[0] and width <= stored.image_size[1]):
            return
        has, needed = 'x'.join(map(str, stored.image_size)), f'{height}x{width} --resize={stored.resize}'
        if stored.resize == 'shorter':
            has, needed = f'a shorter side of {stored.image_size[0]}', str(max(height, width))
        raise UserError(f'--image_size={height}x{width} is more than the images of --records={self.folder} have, which '
                        f'were resized to {has} when they were converted: take less, or convert them again with '
                        f'--image_size={needed} --encoding={stored.encoding} --overwrite.')

    def _before(self, split: str) -> tuple[int, int]:
        """How many records and shards stand before a split's."""
        names = list(self.manifest.splits)
        if split not in names:
            raise UserError(f'{self.folder} has no split {split!r}: it has {", ".join(names)}.')
        earlier = [self.manifest.splits[name] for name in names[:names.index(split)]]
        return sum(info.records for info in earlier), sum(info.shards for info in earlier)


def shard_file(split: str, index: int, count: int) -> str:
    """A shard's name, as TFDS expects it."""
    return f'{DATASET_NAME}-{split}.tfrecord-{index:05d}-of-{count:05d}'


def is_shard_file(name: str) -> bool:
    """Whether a shard of some record set has this name."""
    return re.fullmatch(rf'{DATASET_NAME}-({"|".join(SPLITS)})\.tfrecord-\d{{5}}-of-\d{{5}}', name) is not None


def split_of(shard_name: str) -> str:
    """The split that a shard's name says it belongs to."""
    return shard_name.split('-')[1].removesuffix('.tfrecord')


def open_record_set(folder: str | os.PathLike) -> RecordSet:
    """Opens RECORDS, checking manifest, index and the size of each shard.

    Raises UserError naming what is missing, damaged, or of another format version.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        path = folder / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = 'is missing' if size is None else f'has {size} bytes, not {shard.bytes}'
            raise UserError(f'{path} {found}: the record set is damaged; its make_records command makes that shard '
                            'anew, and tools/inspect_records.py --salvage saves the rest.')
    if not (folder / INDEX).is_file() or files.sha256_of(folder / INDEX) != manifest.index_sha256:
        raise UserError(f'{folder / INDEX} is missing or damaged; convert the images again with --overwrite.')
    numbers = {name: number for number, name in enumerate(manifest.class_names)}
    rows = list(read_index(folder))
    return RecordSet(
        folder, manifest, [row.source for row in rows], np.array([numbers[row.label] for row in rows], np.int32),
        np.array([row.offset for row in rows], np.int64))


def require_sums(record_set: RecordSet) -> None:
    """Reads every byte of a record set. Raises UserError naming the first shard that is not as it was written."""
    paths = [record_set.folder / shard.file for shard in record_set.manifest.shards]
    with progress.bar('verifying', total=len(paths), unit='shards') as bar, ThreadPoolExecutor() as threads:
        for shard, sha256 in zip(record_set.manifest.shards, threads.map(files.sha256_of, paths), strict=True):
            if sha256 != shard.sha256:
                raise UserError(f'{record_set.folder / shard.file} is damaged (its sha256 is another): '
                                'tools/inspect_records.py --verify says where, and --salvage saves the rest.')
            bar.update()


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads RECORDS/manifest.json. Raises UserError if it is missing, damaged, or of another format version."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f'--records={folder}: there is no such folder.')
    if not path.is_file():
        raise UserError(f'{folder} holds no {MANIFEST}: it is no complete record set; make one with '
                        'tools/make_records.py.')
    return parse_manifest(path.read_bytes(), path)


def parse_manifest(content: bytes, path: os.PathLike | str) -> Manifest:
    """What a manifest.json says, which lies at `path`. Raises UserError if it is damaged or of another version."""
    try:
        values = json.loads(content)
        version = values['format_version']
        if version == FORMAT_VERSION:
            fingerprint = values.pop('fingerprint')
            values['splits'] = {name: Split(**split) for name, split in values['splits'].items()}
            values['shards'] = [Shard(**shard) for shard in values['shards']]
            manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{path} is damaged; convert the images again with --overwrite.') from None
    if version != FORMAT_VERSION:
        raise UserError(f'{path} has format_version {version}; this boardrec reads {FORMAT_VERSION}: convert the '
                        'images again with --overwrite.')
    if manifest.fingerprint != fingerprint:
        raise UserError(f'{path} was changed after it was written; convert the images again with --overwrite.')
    return manifest


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes RECORDS/manifest.json, which completes the set."""
    with files.atomic_write(folder / MANIFEST) as file:
        file.write(manifest.to_json().encode())


def write_index(folder: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes RECORDS/index.jsonl."""
    with files.atomic_write(folder / INDEX) as file:
        file.writelines(index_lines(rows))


def index_sha256(rows: Iterable[Row]) -> str:
    """The sha256 of an index.jsonl of these rows."""
    return _sha256_of(index_lines(rows))


def _sha256_of(lines: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def index_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """Yields the lines of an index.jsonl of these rows."""
    for row in rows:
        yield json.dumps(row._asdict()).encode() + b'\n'  # ASCII: names that are not UTF-8 survive


def read_index(folder: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of RECORDS/index.jsonl."""
    with open(folder / INDEX, 'rb') as file:
        for line in file:
            yield Row(**json.loads(line))


def write_rejected(folder: pathlib.Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Writes RECORDS/rejected.csv from (source, reason, sha256 of the bytes if they were read)."""
    with files.atomic_write(folder / REJECTED) as file:
        file.writelines(_rejected_lines(rows))


def rejected_sha256(rows: Iterable[tuple[str, str, str]]) -> str:
    """The sha256 of a rejected.csv of these rows."""
    return _sha256_of(_rejected_lines(rows))


def _rejected_lines(rows: Iterable[tuple[str, str, str]]) -> Iterator[bytes]:
    yield b'source,reason,sha256\n'
    yield from (csv_line(*row) for row in rows)


def read_rejected(folder: pathlib.Path) -> list[tuple[str, str, str]]:
    """The rows of RECORDS/rejected.csv. Raises OSError, ValueError or KeyError if it is missing or damaged."""
    return [(row['source'], row['reason'], row['sha256']) for row in _read_csv(folder / REJECTED)]


def write_duplicates(folder: pathlib.Path, rows: Iterable[Duplicate]) -> None:
    """Writes RECORDS/duplicates.csv."""
    with files.atomic_write(folder / DUPLICATES) as file:
        file.writelines(_duplicates_lines(rows))


def duplicates_sha256(rows: Iterable[Duplicate]) -> str:
    """The sha256 of a duplicates.csv of these rows."""
    return _sha256_of(_duplicates_lines(rows))


def _duplicates_lines(rows: Iterable[Duplicate]) -> Iterator[bytes]:
    yield ','.join(Duplicate._fields).encode() + b'\n'
    yield from (csv_line(*row) for row in rows)


def read_duplicates(folder: pathlib.Path) -> list[Duplicate]:
    """The rows of RECORDS/duplicates.csv. Raises OSError, ValueError or TypeError if it is missing or damaged."""
    return [Duplicate(**row) for row in _read_csv(folder / DUPLICATES)]


def _read_csv(path: pathlib.Path) -> Iterator[dict[str, str]]:
    """Yields rows by the names of their columns. Raises UserError where a row has more or fewer, or is no CSV."""
    with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
        try:
            for row in csv.DictReader(file):
                if None in row or None in row.values():
                    raise csv.Error('a row has not the columns of the first line')
                yield row
        except csv.Error as error:
            raise UserError(f'{path} is damaged ({error}): run make_records again, which writes it anew.') from None


def csv_line(*values: str) -> bytes:
    """A line of CSV; names that are not UTF-8 become the bytes that they were."""
    quoted = ('"' + value.replace('"', '""') + '"' for value in values)
    return (','.join(quoted) + '\n').encode('utf-8', 'surrogateescape')


