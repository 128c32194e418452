"""Cached features on disk: which there are, which are missing, who computes them. The only place that knows the format.

    FEATURE_CACHE/KEY/      one view of one split
      manifest.json         key (all that the features depend on), size, rate, each shard's sum; written last
      00000.rows ...        fixed-size rows, one a record, in the split's order
      lock                  byte 0: locked, shared, by whoever uses the cache; byte n + 1: by who computes shard n

KEY is a hash of the key, so a stale cache is never read. A shard appears whole or not at all; so a computation that was
killed goes on with the shards that are missing, and several processes, on several hosts too, share the work. The
kernel releases the locks of a process however it ends.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import time
from typing import Any, NamedTuple

import numpy as np

from boardrec import progress
from boardrec.data import files
from boardrec.data.files import LockFile

_MANIFEST, _LOCK = 'manifest.json', 'lock'
_NAME = re.compile('[0-9a-f]{16}')  # of a cache's folder
_FILES = re.compile(rf'{_MANIFEST}|{_LOCK}|\d+\.rows|{re.escape(files.TEMPORARY_PREFIX)}.*')
_SHARD_BYTES, _SHARD_ROWS = 64 << 20, 1024  # at most; a process that is killed loses what it has of one or two shards
_POLL_SECONDS = 0.5


class Part(NamedTuple):
    """The features of one view of one split: what they are and where they lie."""

    folder: pathlib.Path
    key: dict[str, Any]
    records: int
    row_bytes: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        view = self.key['view']
        return self.key['split'] if view is None else f'{self.key["split"]} (view {view["view"] + 1})'

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.records // self._rows_a_shard)

    def rows(self, number: int) -> range:
        """The positions in the split that a shard holds."""
        return range(self.records)[number * self._rows_a_shard:(number + 1) * self._rows_a_shard]

    def path(self, number: int) -> pathlib.Path:
        """A shard's file."""
        return self.folder / f'{number:05d}.rows'

    @property
    def _rows_a_shard(self) -> int:
        return max(1, min(_SHARD_ROWS, _SHARD_BYTES // self.row_bytes))


class Entry(NamedTuple):
    """A cache that was found in a folder."""

    folder: pathlib.Path
    manifest: dict[str, Any] | None  # None for one that is not complete
    bytes: int  # on disk now
    used: float  # when it was last computed or opened, seconds since the epoch


class Opened(NamedTuple):
    """A complete cache that can be read."""

    shards: list[np.ndarray]  # uint8 [records, row_bytes] each: memory, or files mapped into it
    lock: LockFile | None  # while it is open, nobody prunes the cache; None for one in memory


def make_part(folder: pathlib.Path, key: dict[str, Any], *, records: int, row_bytes: int) -> Part:
    """The place of the features with this key below a folder of caches; nothing is written."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Part(folder / name, key, records, row_bytes)


def missing(part: Part) -> list[int]:
    """The shards that are not there or no longer have their sum, in order. Reads them all, and changes nothing."""
    absent, manifest = set(_absent(part)), _read_manifest(part)
    if manifest:
        there = [number for number in range(part.shards) if number not in absent]
        with (progress.bar(f'checking the features of {part.name}', total=len(there), unit='shards') as bar,
              concurrent.futures.ThreadPoolExecutor() as pool):  # hashing releases Python's lock
            for number, good in zip(there, pool.map(lambda number: _has_sum(part, number, manifest), there),
                                    strict=True):
                bar.update(1)
                if not good:
                    absent.add(number)
    return sorted(absent)


def bytes_of(part: Part, numbers: list[int]) -> int:
    """The size of some of its shards."""
    return sum(len(part.rows(number)) for number in numbers) * part.row_bytes


def open_or_compute(part: Part, compute: Callable[[list[int]], Iterator[tuple[int, np.ndarray]]], *, boundary: str,
                    damaged: list[int], chunk_seconds: float = 30) -> Opened:
    """Computes what is missing, together with whoever else does, and opens all of it.

    `compute` yields (shard, its rows as uint8 [records, row_bytes]) for a list of shards; it is given about as many
    at a time as it can do in `chunk_seconds`. `damaged` are shards that `missing` told of; those that are there but do
    not have their sum are removed, which is said.
    """
    lock = _use(part)
    try:
        for number in damaged:
            _remove_damaged(part, number, lock)
        if _absent(part):
            (part.folder / _MANIFEST).unlink(missing_ok=True)  # its sums may not be those of the new shards
        sums, seconds = _compute_absent(part, compute, lock, chunk_seconds)
        if sums or not _read_manifest(part):
            with contextlib.nullcontext() if sums else contextlib.suppress(OSError):  # others' folder, all there
                _write_manifest(part, sums, boundary=boundary, seconds=seconds)
        with contextlib.suppress(OSError):
            os.utime(part.folder / _MANIFEST)  # what Entry.used tells
        shapes = [(len(part.rows(number)), part.row_bytes) for number in range(part.shards)]
        return Opened([np.memmap(part.path(number), np.uint8, 'r', shape=shape)
                       for number, shape in enumerate(shapes)], lock)
    except BaseException:
        lock.close()
        raise


def read_or_compute(part: Part, compute: Callable[[list[int]], Iterator[tuple[int, np.ndarray]]], *, absent: list[int]
                    ) -> Opened:
    """All shards in memory: the `absent` ones computed, the others read. Writes nothing."""
    shards = dict(compute(absent)) if absent else {}
    for number in range(part.shards):
        if number not in shards:
            shards[number] = np.fromfile(part.path(number), np.uint8).reshape(-1, part.row_bytes)
    return Opened([shards[number] for number in range(part.shards)], None)


def reason_for(part: Part) -> str:
    """Why features are not there, in half a sentence."""
    if _read_manifest(part):
        return 'some were damaged or removed'
    if len(_absent(part)) < part.shards:
        return 'they were not complete'
    others = [entry.manifest['key'] for entry in entries(part.folder.parent)
              if entry.manifest and entry.manifest['key'].get('split') == part.key['split']]
    if not others:
        return 'there are none yet'
    nearest = min((_differences(key, part.key) for key in others), key=len)
    return f'those in {part.folder.parent} differ in {", ".join(nearest)}'


def entries(folder: pathlib.Path) -> list[Entry]:
    """The caches in a folder, longest unused first; folders that hold anything else are left out."""
    found = []
    for cache in folder.iterdir() if folder.is_dir() else ():
        if not _NAME.fullmatch(cache.name) or not cache.is_dir():
            continue
        stats = []
        for path in (paths := list(cache.iterdir())):
            with contextlib.suppress(FileNotFoundError):  # a temporary name that has become another
                stats.append(path.stat())
        if stats and all(_FILES.fullmatch(path.name) for path in paths):
            found.append(Entry(cache, _read_json(cache / _MANIFEST), sum(stat.st_size for stat in stats),
                               max(stat.st_mtime for stat in stats)))
    return sorted(found, key=lambda entry: entry.used)


def remove(entry: Entry) -> bool:
    """Removes a cache; False if a process computes it or reads it."""
    lock = LockFile(entry.folder / _LOCK)
    try:
        if not lock.acquire(0, 0):
            return False
        paths = [path for path in entry.folder.iterdir() if _FILES.fullmatch(path.name)]
        # The manifest first, so that no half looks complete, and the lock last, so that nobody begins meanwhile.
        for path in sorted(paths, key=lambda path: (path.name == _LOCK, path.name != _MANIFEST)):
            path.unlink(missing_ok=True)
    finally:
        lock.close()
    with contextlib.suppress(OSError):  # not empty: somebody has begun again
        entry.folder.rmdir()
    return True


def _use(part: Part) -> LockFile:
    """Opens the lock file and holds its first byte, shared with other users, so that nobody prunes the cache."""
    while True:
        try:
            part.folder.mkdir(parents=True, exist_ok=True)
            lock = LockFile(part.folder / _LOCK)
        except FileNotFoundError:  # pruned between the two
            continue
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            lock = LockFile(part.folder / _LOCK, os.O_RDONLY)  # others' folder: enough to read what is complete
        try:
            while not lock.acquire(0, 1, shared=True):
                time.sleep(_POLL_SECONDS)  # it is being pruned
            if lock.is_at(part.folder / _LOCK):
                return lock
        except FileNotFoundError:
            pass  # it was pruned
        except BaseException:
            lock.close()
            raise
        lock.close()


def _remove_damaged(part: Part, number: int, lock: LockFile) -> None:
    """Removes a shard that does not have its sum, unless somebody else is computing it or has done so."""
    manifest = _read_manifest(part)
    if not manifest or not _has_size(part, number) or not lock.acquire(number + 1, 1):
        return
    manifest = _read_manifest(part)
    if manifest and not _has_sum(part, number, manifest):
        progress.say(f'{part.path(number)} was damaged: its features are computed again')
        part.path(number).unlink(missing_ok=True)
    lock.release(number + 1, 1)


def _compute_absent(part: Part, compute: Callable, lock: LockFile, chunk_seconds: float
                    ) -> tuple[dict[int, str], float]:
    """Returns when all shards are there, with the sums of those that this process computed and its seconds."""
    sums, writes, seconds, waiting = {}, {}, 0.0, False
    with concurrent.futures.ThreadPoolExecutor(1) as writer:
        while True:
            absent = [number for number in _absent(part) if number not in writes]
            if not absent:
                sums.update((number, write.result()) for number, write in writes.items())
                writes.clear()
                if not _absent(part):  # else one was removed by hand
                    return sums, seconds
                continue
            done = len(sums) + len(writes)
            chunk = max(1, int(done / seconds * chunk_seconds)) if done else 1
            claimed = _claim(part, lock, absent, at_most=chunk)
            if not claimed:
                if not waiting:
                    progress.say(f'features of {part.name}: waiting for another process that computes '
                                 f'{len(absent)} of {part.shards} shards')
                waiting = True
                time.sleep(_POLL_SECONDS)
                continue
            start = time.perf_counter()
            for number, rows in compute(claimed):
                if writes:  # one is written while the next is computed: no more are held in memory
                    next(reversed(writes.values())).result()
                writes[number] = writer.submit(_write, part, number, rows, lock)
            seconds += time.perf_counter() - start


def _claim(part: Part, lock: LockFile, numbers: list[int], *, at_most: int) -> list[int]:
    claimed = []
    for number in numbers:
        if len(claimed) < at_most and lock.acquire(number + 1, 1):
            if _has_size(part, number):  # done by another process since we looked
                lock.release(number + 1, 1)
            else:
                claimed.append(number)
    return claimed


def _write(part: Part, number: int, rows: np.ndarray, lock: LockFile) -> str:
    with files.atomic_write(part.path(number)) as file:
        file.write(rows)
    lock.release(number + 1, 1)
    return hashlib.sha256(rows).hexdigest()


def _write_manifest(part: Part, sums: dict[int, str], *, boundary: str, seconds: float) -> None:
    """`sums` are of the shards that this process wrote, in `seconds`."""
    computed = sum(len(part.rows(number)) for number in sums)
    shards = [{'file': part.path(number).name, 'records': len(part.rows(number)),
               'sha256': sums.get(number) or files.sha256_of(part.path(number))} for number in range(part.shards)]
    values = {'key': part.key, 'boundary': boundary, 'records': part.records, 'row_bytes': part.row_bytes,
              'bytes': part.records * part.row_bytes, 'computed': computed, 'seconds': seconds,
              'images_per_second': computed / seconds if computed else None, 'shards': shards}
    with files.atomic_write(part.folder / _MANIFEST) as file:
        file.write(json.dumps(values, indent=1).encode())


def _read_manifest(part: Part) -> dict[str, Any] | None:
    manifest = _read_json(part.folder / _MANIFEST)
    fits = manifest and manifest['key'] == part.key and len(manifest['shards']) == part.shards
    return manifest if fits else None


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """A manifest; None if there is none, or half of one."""
    try:
        manifest = json.loads(path.read_bytes())
        complete = isinstance(manifest['key'], dict) and all(shard['sha256'] for shard in manifest['shards'])
        return manifest if complete else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _absent(part: Part) -> list[int]:
    return [number for number in range(part.shards) if not _has_size(part, number)]


def _has_size(part: Part, number: int) -> bool:
    try:
        return part.path(number).stat().st_size == len(part.rows(number)) * part.row_bytes
    except OSError:
        return False


def _has_sum(part: Part, number: int, manifest: dict[str, Any]) -> bool:
    try:
        return files.sha256_of(part.path(number)) == manifest['shards'][number]['sha256']
    except OSError:
        return False


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name.replace('_', ' ') for name in other if one.get(name) != other[name]]
