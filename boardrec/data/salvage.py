"""A new record set of all that is intact in a damaged one, and a list of what is not.

Images, labels and sources that are salvaged are the bytes that were written: each record's own sums say so. What the
manifest no longer tells is taken from the index, the converter's journal or the files for TFDS, as far as they can be
read.
"""

from collections import Counter
from collections.abc import Iterator
import json
import os
import pathlib
from typing import NamedTuple

from boardrec import progress
from boardrec.config import SPLITS, UserError
from boardrec.data import audit, files, journal, records, tfrecord
from boardrec.data.framing import Gap
from boardrec.data.records import Manifest, Row, Shard, Split, Storage

_ENCODINGS = ('keep', 'jpeg', 'png', 'raw')


class Lost(NamedTuple):
    """A record that is not intact; what nothing tells of it is None."""

    record_id: int | None
    source: str | None
    label: str | None
    split: str
    shard: str
    offset: int
    reason: str


class Salvaged(NamedTuple):
    """What a salvage came to."""

    manifest: Manifest
    lost: list[Lost]
    notes: list[str]  # of what could not be read and was assumed


def salvage(folder: str | os.PathLike, out: str | os.PathLike) -> Salvaged:
    """Makes a record set in `out` of all intact records of `folder`, and `out`.lost.csv of those that are lost.

    The list lies beside the set, because nothing foreign may lie in one. Records keep their order, splits and shards
    and are numbered anew. rejected.csv is taken over, of duplicates.csv the pairs neither of which was lost. Raises
    UserError where `out` holds anything, no class names are left, or no record is.
    """
    folder, out = pathlib.Path(folder), pathlib.Path(os.path.abspath(out))
    _check_out(folder, out)
    claims = audit.look(folder)
    if claims.class_names is None:
        claims = claims._replace(class_names=_names_by_pairs(claims))
    storage, notes = _storage(claims)
    rejected, duplicates = _rejected(claims, notes), _duplicates(claims, notes)
    with files.temporary_folder(out) as temporary:
        shards, rows, lost = _rescue(claims, storage, temporary)
        manifest = _manifest(claims, storage, shards, rows)
        for shard in shards:
            if shard not in manifest.shards:
                (temporary / shard.file).unlink()
        records.write_rejected(temporary, rejected)
        if duplicates is not None:
            known = {row.source for row in rows} | {source for source, *_ in rejected}
            records.write_duplicates(temporary, [row for row in duplicates if {row.source, row.other} <= known])
        records.write_index(temporary, rows)
        tfrecord.write_tfds_metadata(temporary, manifest)
        records.write_manifest(temporary, manifest)
        _write_lost(lost_path(out), lost)
        if out.is_dir():
            out.rmdir()  # it is empty
        files.commit_folder(temporary, out)
    return Salvaged(manifest, lost, notes)


def lost_path(out: str | os.PathLike) -> pathlib.Path:
    """Where the list of lost records of a salvage to `out` lies."""
    return pathlib.Path(f'{os.path.abspath(out)}.lost.csv')


def _rescue(claims: audit.Claims, storage: Storage, folder: pathlib.Path) -> tuple[list[Shard], list[Row], list[Lost]]:
    """Writes each shard's intact records to a shard of the same name in `folder`."""
    shards, rows, lost = [], [], []
    with progress.bar('salvaging', total=len(claims.shards), unit='shards') as bar:
        for file in claims.shards:
            seen, gaps, split = [], [], records.split_of(file)
            examples = audit.read_shard(claims, file, storage, seen, gaps)
            shard, offsets = tfrecord.write_shard(folder / file, examples, claims.class_names)
            shards.append(shard)
            rows += [Row(len(rows) + number, one.source, one.sha256, split, claims.class_names[one.label], file, offset)
                     for number, (one, offset) in enumerate(zip(seen, offsets, strict=True))]
            lost += _lost(claims, file, seen, gaps)
            bar.update()
    return shards, rows, lost


def _lost(claims: audit.Claims, file: str, seen: list[audit.Seen], gaps: list[Gap]) -> Iterator[Lost]:
    """The records of a shard that are not intact: of each what is known, in the end those of which nothing is."""
    told, split, count = set(), records.split_of(file), 0
    reason = 'is not there' if (claims.folder / file).is_file() else 'its shard is missing'
    rows = claims.rows.get(file, [])
    for row, one in zip(rows, audit.match_rows(rows, seen), strict=True):
        gap = audit.gap_at(gaps, row.offset)
        if one is None:
            told.add(gap)
            count += 1
            yield Lost(row.record_id, row.source, row.label, split, file, row.offset, gap.reason if gap else reason)
    if claims.whole_index:  # all that is lost is told by then; other gaps are of bytes that came from outside
        return
    for gap in gaps:
        if gap not in told and gap.reason != audit.TWICE:
            count += 1
            yield Lost(None, None, None, split, file, gap.offset, gap.reason)
    expected = {shard.file: shard.records for shard in claims.manifest.shards}[file] if claims.manifest else None
    if expected is None and not (seen or gaps or rows):
        yield Lost(None, None, None, split, file, 0, reason)
    for _ in range((expected or 0) - len(seen) - count):
        yield Lost(None, None, None, split, file, 0, reason)


def _manifest(claims: audit.Claims, storage: Storage, shards: list[Shard], rows: list[Row]) -> Manifest:
    """The manifest of what was salvaged; TFDS reads no empty split, so these go."""
    splits = {}
    for name in SPLITS:
        own = [shard for shard in shards if records.split_of(shard.file) == name]
        counts = {label: sum(shard.class_counts[label] for shard in own) for label in claims.class_names}
        if sum(counts.values()):
            splits[name] = Split(sum(counts.values()), len(own), counts)
    if not splits:
        raise UserError(f'--salvage: no record in {claims.folder} is intact; convert the images again.')
    size = None if storage.image_size is None else list(storage.image_size)
    kept = [shard for shard in shards if records.split_of(shard.file) in splits]
    return Manifest(claims.class_names, storage.encoding, size, storage.resize, storage.quality, splits, kept,
                    records.index_sha256(rows))


def _names_by_pairs(claims: audit.Claims) -> list[str]:
    """The classes' names from the index: those that most records of each number have in it."""
    pairs: Counter[tuple[int, str]] = Counter()
    for file in claims.shards:
        seen, rows = [], claims.rows.get(file, [])
        for _ in audit.read_shard(claims, file, None, seen, []) if rows else ():
            pass
        pairs.update((one.label, row.label) for row, one in zip(rows, audit.match_rows(rows, seen), strict=True) if one)
    names = {}
    for (number, name), _ in pairs.most_common():
        names.setdefault(number, name)
    if not names or sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names):
        raise UserError(f'--salvage: neither {records.MANIFEST} nor {records.LABELS} nor {records.INDEX} in '
                        f'{claims.folder} names the classes; write {records.LABELS}, a class a line, in sorted order.')
    return [names[number] for number in range(len(names))]


def _storage(claims: audit.Claims) -> tuple[Storage, list[str]]:
    """How records hold pixels: from the manifest, the converter's journal, or what TFDS is told."""
    if claims.manifest:
        return claims.manifest.storage, []
    plan = journal.read_plan(claims.folder / journal.FOLDER)
    if plan and plan.complete and plan.settings.get('encoding') in _ENCODINGS:
        settings = plan.settings
        size = tuple(int(side) for side in settings['image_size'].split('x')) if settings.get('image_size') else None
        size = size * 2 if size and len(size) == 1 else size
        return Storage(settings['encoding'], size, settings['resize'] if size else None,
                       int(settings['jpeg_quality']) if settings['encoding'] == 'jpeg' else None), []
    shape = _raw_shape(claims.folder)
    if shape:
        return Storage('raw', shape, 'squash'), ['how images were resized is not known: taken for --resize=squash']
    return records.KEEP, ['how images were stored is not known: taken for --encoding=keep']


def _raw_shape(folder: pathlib.Path) -> tuple[int, int] | None:
    """The height and width of raw images, by features.json; None if images are not raw, or it cannot be read."""
    try:
        shape = json.loads((folder / 'features.json').read_bytes())['featuresDict']['features']['image']['tensor']
        height, width, _ = map(int, shape['shape']['dimensions'])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return height, width


def _rejected(claims: audit.Claims, notes: list[str]) -> list[tuple[str, str, str]]:
    try:
        return records.read_rejected(claims.folder)
    except (OSError, ValueError, KeyError):
        notes.append(f'{records.REJECTED} could not be read: the new one is empty')
        return []


def _duplicates(claims: audit.Claims, notes: list[str]) -> list[records.Duplicate] | None:
    """None where the set has no list that can be read: the new one has none either, for nobody knows the pairs."""
    try:
        return records.read_duplicates(claims.folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError):
        notes.append(f'{records.DUPLICATES} could not be read: the new set has none')
    return None


def _write_lost(path: pathlib.Path, lost: list[Lost]) -> None:
    with files.atomic_write(path) as file:
        file.write(records.csv_line(*Lost._fields))
        file.writelines(records.csv_line(*('' if value is None else str(value) for value in one)) for one in lost)


def _check_out(folder: pathlib.Path, out: pathlib.Path) -> None:
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f'--salvage={out} lies within --records={folder}: name a folder outside of it.')
    if out.exists() and not out.is_dir():
        raise UserError(f'--salvage={out} is a file: name a new folder.')
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f'--salvage={out} holds something already: name a new folder.')
    if any('\udc80' <= letter <= '\udcff' for letter in str(out)):
        raise UserError(f'--salvage={str(out)!r}: TensorFlow takes no path that is not UTF-8; name another.')
