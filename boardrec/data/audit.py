"""What is damaged in a record set.

Works where open_record_set refuses: whichever of manifest, index and shards can be read is checked against the others.
Each record's own sums decide whether it is intact. Shards are read record by record; of the index, and of what a shard
holds, only the rows are kept.
"""

from collections import Counter
from collections.abc import Iterator
import json
import os
import pathlib
import sys
from typing import NamedTuple

from boardrec import progress
from boardrec.config import SPLITS, UserError
from boardrec.data import files, framing, records, tfrecord
from boardrec.data.framing import Gap
from boardrec.data.records import Manifest, Row, Shard, Storage
from boardrec.data.tfrecord import Example

TWICE = 'the same record is there already'


class Claims(NamedTuple):
    """What a folder says of its records, as far as that can be read."""

    folder: pathlib.Path
    manifest: Manifest | None  # None: missing or damaged
    class_names: list[str] | None
    shards: list[str]  # files, in record_id order, whether they are there or not
    rows: dict[str, list[Row]]  # of each shard, in the index's order
    whole_index: bool  # no line of it is missing
    findings: list[str]  # of what is damaged, a line each


class Seen(NamedTuple):
    """What stays in memory of an intact record."""

    offset: int
    source: str
    sha256: str
    label: int


def verify(folder: str | os.PathLike) -> Iterator[str]:
    """Yields a line for each damage in a record set, naming file, record and source. Raises UserError if it is none."""
    claims = look(pathlib.Path(folder))
    yield from claims.findings
    manifest, record_id = claims.manifest, 0
    total = sum(shard.records for shard in manifest.shards) if manifest else sum(map(len, claims.rows.values()))
    with progress.bar('verifying', total=total, unit='records') as bar:
        for number, file in enumerate(claims.shards):
            shard = manifest.shards[number] if manifest else None
            count = shard.records if shard else len(claims.rows.get(file, ()))
            yield from _verify_shard(claims, file, shard, record_id)
            record_id += count
            bar.update(count)


def look(folder: pathlib.Path) -> Claims:
    """Reads all that a folder says of its records. Raises UserError if there is no record set, damaged or not."""
    findings, manifest = [], None
    if not folder.is_dir():
        raise UserError(f'--records={folder}: there is no such folder of records.')
    try:
        manifest = records.read_manifest(folder)
    except UserError as error:
        missing = not (folder / records.MANIFEST).is_file()
        findings.append(f'{records.MANIFEST}: is missing' if missing else str(error).partition(';')[0])
    rows, whole = _read_index(folder, manifest, findings)
    shards = [shard.file for shard in manifest.shards] if manifest else _shards(folder, rows)
    if not shards:
        raise UserError(f'--records={folder} holds no shard of a record set: name the folder that one was written to.')
    on_disk = {path.name for path in folder.iterdir() if records.is_shard_file(path.name)}
    findings += [f'{file}: is no shard of the manifest' for file in sorted(on_disk - set(shards))]
    findings += [f'{records.INDEX}: record {row.record_id} ({_shown(row.source)}): is said to be in {_shown(file)}, '
                 'which the set does not have' for file in rows if file not in shards for row in rows[file]]
    if manifest:
        findings += _check_metadata(folder, manifest)
    return Claims(folder, manifest, _class_names(folder, manifest), shards, rows, whole, findings)


def _read_index(folder: pathlib.Path, manifest: Manifest | None, findings: list[str]
                ) -> tuple[dict[str, list[Row]], bool]:
    """The index's readable rows by shard, and whether these are all."""
    rows, path = {}, folder / records.INDEX
    if not path.is_file():
        findings.append(f'{records.INDEX}: is missing')
        return rows, False
    if manifest and files.sha256_of(path) != manifest.index_sha256:
        findings.append(f'{records.INDEX}: its sha256 is not the one in {records.MANIFEST}')
    ids, lines = Counter(), 0
    with open(path, 'rb') as file:
        for lines, line in enumerate(file, 1):
            row = _row(line)
            if row is None:
                findings.append(f'{records.INDEX}: line {lines} is damaged')
            else:
                ids[row.record_id] += 1
                shared = {name: sys.intern(getattr(row, name)) for name in ('split', 'label', 'shard')}  # for memory
                rows.setdefault(row.shard, []).append(row._replace(**shared))
    total = sum(shard.records for shard in manifest.shards) if manifest else lines
    missing = [number for number in range(total) if number not in ids]
    findings += [f'{records.INDEX}: has no line that can be read of record {number}' for number in missing]
    findings += [f'{records.INDEX}: has {count} lines of record {number}' for number, count in ids.items() if count > 1]
    findings += [f'{records.INDEX}: has a line of record {number}, where the last is {total - 1}'
                 for number in ids if not 0 <= number < total]
    return rows, not missing and ids.total() == total


def _row(line: bytes) -> Row | None:
    try:
        row = Row(**json.loads(line))
    except (ValueError, TypeError):
        return None
    good = all(type(value) is kind for value, kind in zip(row, Row.__annotations__.values(), strict=True))
    return row if good and line.endswith(b'\n') else None


def _shards(folder: pathlib.Path, rows: dict[str, list[Row]]) -> list[str]:
    """The shards that there must have been: their names tell their number."""
    names = {path.name for path in folder.iterdir()} | set(rows)
    groups = {(records.split_of(name), int(name[-5:])) for name in names if records.is_shard_file(name)}
    ordered = sorted(groups, key=lambda group: (SPLITS.index(group[0]), group[1]))
    expected = [records.shard_file(split, number, count) for split, count in ordered for number in range(count)]
    return expected if len(expected) <= 10 * len(names) else sorted(names & set(expected))  # a name may be damaged too


def _class_names(folder: pathlib.Path, manifest: Manifest | None) -> list[str] | None:
    if manifest:
        return manifest.class_names
    try:
        names = (folder / records.LABELS).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return names if names and all(names) and len(set(names)) == len(names) else None


def _check_metadata(folder: pathlib.Path, manifest: Manifest) -> Iterator[str]:
    """What no sum covers: the files for TFDS, and the list of what became no record."""
    if _class_names(folder, None) != manifest.class_names:
        yield f'{records.LABELS}: does not name the classes of {records.MANIFEST}'
    expected = {name: [shard.records for shard in manifest.shards if records.split_of(shard.file) == name]
                for name in manifest.splits}
    try:
        infos = json.loads((folder / 'dataset_info.json').read_bytes())['splits']
        if {info['name']: [int(count) for count in info['shardLengths']] for info in infos} != expected:
            yield f'dataset_info.json: does not count the records as {records.MANIFEST}'
    except (OSError, ValueError, KeyError, TypeError):
        yield 'dataset_info.json: is missing or damaged'
    try:
        json.loads((folder / 'features.json').read_bytes())['featuresDict']
    except (OSError, ValueError, KeyError, TypeError):
        yield 'features.json: is missing or damaged'
    try:
        records.read_rejected(folder)
    except (OSError, ValueError, KeyError):
        yield f'{records.REJECTED}: is missing or damaged'
    try:
        records.read_duplicates(folder)
    except FileNotFoundError:  # converted before there was such a list, or salvaged without one
        pass
    except (OSError, ValueError, TypeError):
        yield f'{records.DUPLICATES}: is damaged'
    for name, split in manifest.splits.items():
        own = [shard for shard in manifest.shards if records.split_of(shard.file) == name]
        counts = Counter()
        for shard in own:
            counts.update(shard.class_counts)
        if (split.records, split.shards, +Counter(split.class_counts)) != (
                sum(shard.records for shard in own), len(own), +counts):
            yield f'{records.MANIFEST}: the totals of {name} are not the sums of its shards'


def read_shard(claims: Claims, file: str, storage: Storage | None, seen: list[Seen], gaps: list[Gap]
                ) -> Iterator[Example]:
    """Yields a shard's intact records; what there is of them and of the rest joins the lists."""
    if not (claims.folder / file).is_file():
        return
    indexed = Counter((row.source, row.sha256) for row in claims.rows.get(file, []))
    there = Counter()
    for found in framing.walk(claims.folder / file):
        if isinstance(found, Gap):
            gaps.append(found)
            continue
        try:
            example = tfrecord.decode_example(found.data)
            _check_example(example, claims.class_names, storage)
            identity = example.source_id, example.sha256
            if there[identity] >= max(1, indexed[identity]):  # as where a disk wrote a block twice
                raise ValueError(TWICE)
        except ValueError as error:
            gaps.append(Gap(found.offset, found.offset + len(found.data) + tfrecord.FRAMING_BYTES, str(error)))
            continue
        there[identity] += 1
        seen.append(Seen(found.offset, example.source_id, example.sha256, example.label))
        yield example


def _check_example(example: Example, class_names: list[str] | None, storage: Storage | None) -> None:
    """Raises ValueError for what no converter writes."""
    if example.label < 0 or (class_names and example.label >= len(class_names)):
        raise ValueError(f'its label {example.label} is none of the classes')
    if storage and storage.encoding == 'raw':
        (height, width), size = storage.image_size, len(example.image)
        if size != height * width * 3:
            raise ValueError(f'its {size} bytes are no image of {height}x{width} pixels')


def _verify_shard(claims: Claims, file: str, shard: Shard | None, first: int) -> Iterator[str]:
    """A line for each damage in a shard, whose first record has number `first`."""
    path, seen, gaps, counts = claims.folder / file, [], [], Counter()
    if not path.is_file():
        yield f'{file}: is missing' + (f', and records {first} to {first + shard.records - 1} with it'
                                       if shard and shard.records else '')
        return
    size = path.stat().st_size
    if shard and size != shard.bytes:
        yield f'{file}: has {size} bytes, not {shard.bytes}'
    elif shard and files.sha256_of(path) != shard.sha256:
        yield f'{file}: its sha256 is not the one in {records.MANIFEST}'
    storage = claims.manifest.storage if claims.manifest else None
    for example in read_shard(claims, file, storage, seen, gaps):
        counts[example.label] += 1
    yield from _compare(claims, file, seen, gaps)
    if shard and size == shard.bytes and not gaps:
        named = {name: counts[number] for number, name in enumerate(claims.class_names)}
        if (len(seen), +Counter(named)) != (shard.records, +Counter(shard.class_counts)):
            yield f'{file}: holds {len(seen)} records ({named}), not {shard.records} ({shard.class_counts})'


def _compare(claims: Claims, file: str, seen: list[Seen], gaps: list[Gap]) -> Iterator[str]:
    """What differs between a shard's rows in the index and its records, in the rows' order; then what has no row."""
    rows = claims.rows.get(file, [])
    matches = match_rows(rows, seen)
    told, shift, missing = set(), 0, []
    for row, one in zip(rows, matches, strict=True):
        name = f'{file}: {_named(row)}'
        if one is None:
            gap = gap_at(gaps, row.offset)
            told.add(gap)
            if gap:
                yield f'{name}: {gap.reason}'
            else:
                missing.append(row)
            continue
        if one.offset - row.offset != shift:  # said once for all that are shifted alike
            shift = one.offset - row.offset
            yield f'{name}: begins at byte {one.offset}, not at {row.offset} as the index says' + (
                '; so do those that follow it, as far apart' if row is not rows[-1] and shift else '')
        yield from (f'{name}: {difference}' for difference in _differences(row, one, file, claims.class_names))
    if len(missing) > 1:  # said once for all of them: of a shard that was cut, they may be thousands
        yield f'{file}: {len(missing):,} records, {_named(missing[0])} to {_named(missing[-1])}: are not there'
    elif missing:
        yield f'{file}: {_named(missing[0])}: is not there'
    for gap in gaps:
        if gap not in told:
            yield f'{file}: bytes {gap.offset} to {gap.end} hold no intact record: {gap.reason}'
    if rows:
        known = set(filter(None, matches))
        yield from (f'{file}: the record at byte {one.offset} ({_shown(one.source)}): is not in the index'
                    for one in seen if one not in known)


def _named(row: Row) -> str:
    return f'record {row.record_id} ({_shown(row.source)})'


def _differences(row: Row, one: Seen, file: str, class_names: list[str] | None) -> Iterator[str]:
    label = class_names[one.label] if class_names else row.label
    said = {'source': row.source, 'sha256': row.sha256, 'label': row.label, 'split': row.split}
    held = {'source': one.source, 'sha256': one.sha256, 'label': label, 'split': records.split_of(file)}
    for key, value in said.items():
        if value != held[key]:
            yield f'{key} is {_shown(held[key])} in the record and {_shown(value)} in the index'


def match_rows(rows: list[Row], seen: list[Seen]) -> list[Seen | None]:
    """The record of each row: the one at its offset, if source or sum are the same, else the one of its source."""
    at = {one.offset: one for one in seen}
    of_source = {one.source: one for one in seen}

    def match(row: Row) -> Seen | None:
        one = at.get(row.offset)
        return one if one and (one.source == row.source or one.sha256 == row.sha256) else of_source.get(row.source)

    return [match(row) for row in rows]


def gap_at(gaps: list[Gap], offset: int) -> Gap | None:
    return next((gap for gap in gaps if gap.offset <= offset < gap.end), None)


def _shown(text: str) -> str:
    """A name as one line can show it."""
    return text if text.isprintable() else ascii(text)
