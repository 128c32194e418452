"""A record set between an object store and a folder: what differs is fetched, or put.

A store has no locks and no renames; it puts objects one by one, each whole. So whoever puts a set first creates a mark
(.conversion/unfinished), which fails where there is one, puts shards, takes the old manifest away before the lists, of
which a manifest holds no sums, and puts the new one last. Whoever fetches checks each shard by its sum, and that the
manifest has stayed.
"""

from collections.abc import Callable
import concurrent.futures
import errno
import hashlib
import json
import pathlib
import time
from typing import Any, NamedTuple

from boardrec import progress
from boardrec.config import UserError
from boardrec.data import files, journal, records, remote
from boardrec.data.records import Manifest

MARK = f'{journal.FOLDER}/unfinished'
_THREADS = 8
_TRIES, _PAUSE_SECONDS = 5, 2.0


class Mark(NamedTuple):
    """Of a push that has not ended."""

    push: str  # its number
    who: str


class Store(NamedTuple):
    """What lies at a URL."""

    manifest: bytes | None
    mark: Mark | None
    sizes: dict[str, int]  # of each object, in bytes


class _Changed(Exception):
    """The store does not hold what the manifest says."""


def look(url: str, flag: str) -> Store:
    """What lies at a URL, which `flag` has named. Raises UserError or StoreError where that cannot be seen."""
    sizes = {item.source: item.bytes for item in remote.listing(url, flag)}
    manifest = remote.content(url, records.MANIFEST) if records.MANIFEST in sizes else None
    return Store(manifest, _read_mark(url) if MARK in sizes else None, sizes)


def require_ours(url: str, store: Store) -> None:
    """Raises UserError where a store holds anything that is not a record set's."""
    foreign = sorted(name for name in store.sizes if not (
        name.startswith(f'{journal.FOLDER}/') or ('/' not in name and journal.is_ours(name))))
    if foreign:
        raise UserError(f'--output_dir={url} holds {foreign[0]}, which is no part of a record set: '
                        'name another folder.')


def pull(url: str, folder: pathlib.Path, before_changes: Callable[[Store], None], *, with_journal: bool = False
         ) -> dict[str, str]:
    """Makes a folder what a store holds and returns {name: sha256}; calls `before_changes` if the records differ.

    Goes on with what an earlier call fetched. Raises UserError where there is no whole set, also after a while.
    """
    for number in range(_TRIES):
        time.sleep(_PAUSE_SECONDS if number else 0)
        store = look(url, 'records')
        if store.manifest is None:
            if any(name == MARK or records.is_shard_file(name) for name in store.sizes):
                continue  # a push may have taken it away, or have ended, since the store was listed
            break
        manifest = records.parse_manifest(store.manifest, f'{url}/{records.MANIFEST}')
        try:
            sums = _pull(url, folder, store, manifest, before_changes, with_journal)
        except _Changed:
            continue
        if remote.content(url, records.MANIFEST) == store.manifest:
            with files.atomic_write(folder / records.MANIFEST) as file:
                file.write(store.manifest)
            return sums | {records.MANIFEST: hashlib.sha256(store.manifest).hexdigest()}
    if store.mark:
        raise UserError(f'{url} is no whole record set now: {store.mark.who} has not finished putting it there; wait '
                        'for it, or run its command there again.')
    if store.manifest is None:
        raise UserError(f'{url} holds no {records.MANIFEST}: it is no complete record set; make one with '
                        'tools/make_records.py.')
    raise UserError(f'{url} does not hold what its {records.MANIFEST} says: it is damaged, or being replaced; wait, or '
                    'convert the images again with --overwrite.')


def _pull(url: str, folder: pathlib.Path, store: Store, manifest: Manifest, before_changes: Callable[[Store], None],
          with_journal: bool) -> dict[str, str]:
    """Fetches what is not here with its sum, and all that has none; but for the manifest, which goes if it is old."""
    sums = {shard.file: shard.sha256 for shard in manifest.shards}
    if not all(map(records.is_shard_file, sums)):
        raise UserError(f'{url}/{records.MANIFEST} names a file that is no shard: it is damaged.')
    sums[records.INDEX] = manifest.index_sha256
    if not sums.keys() <= store.sizes.keys():
        raise _Changed
    paths = {name: folder / name for name in sums}
    same_size = {name: store.sizes[name] for name, path in paths.items()
                 if path.is_file() and path.stat().st_size == store.sizes[name]}
    found = _each('checking', same_size, lambda name: files.sha256_of(paths[name]))
    lacking = {name: store.sizes[name] for name in sums if found.get(name) != sums[name]}
    if lacking or not holds(folder / records.MANIFEST, store.manifest):
        before_changes(store)
        (folder / records.MANIFEST).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.name not in sums and path.name != journal.FOLDER:
                path.unlink()
    lists = {name: store.sizes[name] for name in store.sizes if name in records.LISTS or (
        with_journal and _is_journal(name))}
    (folder / journal.FOLDER).mkdir(exist_ok=True)
    fetched = _each('fetching', lacking | lists, lambda name: _fetch(url, folder, name, sums.get(name)))
    size = sum(lacking.values()) / 2**20
    what = f'{len(lacking):,} of {len(sums):,} files fetched, {size:,.1f} MiB' if lacking else 'up to date'
    progress.say(f'{url}: {what}; its copy is {folder}/')
    return sums | fetched


def sums_of(folder: pathlib.Path) -> dict[str, str]:
    """{name: sha256} of all that a store is to hold of a folder; of shards, what the manifest says of them."""
    manifest = records.read_manifest(folder)
    names = [records.MANIFEST, records.INDEX, *(name for name in records.LISTS if (folder / name).is_file())]
    names += [f'{journal.FOLDER}/{path.name}' for path in (folder / journal.FOLDER).iterdir()
              if journal.is_lasting(path.name)]
    return {name: files.sha256_of(folder / name) for name in names} | {
        shard.file: shard.sha256 for shard in manifest.shards}


def push(url: str, folder: pathlib.Path, store: Store, sums: dict[str, str], there: dict[str, str], mark: Mark
         ) -> None:
    """Puts what is not `there` yet, {name: sha256}, which it adds to; removes what is no more. The mark stays.

    Raises UserError where another has put its mark there meanwhile, and for a shard that was damaged here.
    """
    lacking = {name: (folder / name).stat().st_size for name in sums if name not in there}
    shards = {name: size for name, size in lacking.items() if records.is_shard_file(name)}
    lists = {name: size for name, size in lacking.items() if name not in shards and name != records.MANIFEST}

    def put(name: str) -> None:
        if name in shards and files.sha256_of(folder / name) != sums[name]:
            (folder / name).unlink()
            raise UserError(f'{folder / name} was damaged after it was written: run the same command again, which '
                            'makes it anew.')
        remote.put(url, name, folder / name)
        there[name] = sums[name]

    _put_mark(url, store, mark)
    _each('storing', shards, put)
    _require_mark(url, mark)
    if shards or not all(map(_is_journal, lists)):
        remote.remove(url, records.MANIFEST)
        there.pop(records.MANIFEST, None)
    _each('storing', lists, put)
    _require_mark(url, mark)
    if records.MANIFEST not in there:
        put(records.MANIFEST)
    stale = sorted(store.sizes.keys() - sums.keys() - {MARK})
    for name in stale:
        remote.remove(url, name)
    size = sum(lacking.values()) / 2**20
    progress.say(f'{url}: {len(lacking):,} of {len(sums):,} files stored, {size:,.1f} MiB; {len(stale):,} removed')


def _put_mark(url: str, store: Store, mark: Mark) -> None:
    content = json.dumps(mark).encode()
    if store.mark and store.mark.push == mark.push:
        remote.put(url, MARK, content)
        return
    if store.mark:  # --overwrite passes over it
        remote.remove(url, MARK)
    if not remote.create(url, MARK, content):
        _require_mark(url, mark)  # a client may have tried twice, and found its own


def _require_mark(url: str, mark: Mark) -> None:
    """Raises UserError where another has begun to put a set there."""
    now = _read_mark(url)
    if now != mark:
        raise UserError(f'--output_dir={url}: {now.who if now else "another process"} puts records there too: wait for '
                        'it, then run the same command again; with --overwrite, if what is there is damaged then.')


def _read_mark(url: str) -> Mark | None:
    content = remote.content(url, MARK)
    try:
        return None if content is None else Mark(*json.loads(content))
    except (ValueError, TypeError):
        return Mark('unknown', 'another process')


def _fetch(url: str, folder: pathlib.Path, name: str, sha256: str | None) -> str:
    """Fetches a file and returns its sum. Raises _Changed if it is gone or replaced, or has not the sum given."""
    digest = hashlib.sha256()
    try:
        with files.atomic_write(folder / name) as file:
            for part in remote.parts(url, name):
                digest.update(part)
                file.write(part)
            if sha256 not in (None, digest.hexdigest()):
                raise _Changed
    except remote.StoreError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY):  # the latter from s3fs, for one that is replaced
            raise
        raise _Changed from None
    return digest.hexdigest()


def _each(description: str, sizes: dict[str, int], function: Callable[[str], Any]) -> dict[str, Any]:
    """{name: function(name)}, by threads, under a bar of MiB."""
    results, done = {}, 0
    with progress.bar(description, total=sum(sizes.values()) >> 20, unit='MiB') as bar, \
            concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        for name, result in zip(sizes, threads.map(function, sizes), strict=True):
            results[name] = result
            done += sizes[name]
            bar.update((done >> 20) - bar.n)
    return results


def _is_journal(name: str) -> bool:
    folder, _, file = name.rpartition('/')
    return folder == journal.FOLDER and journal.is_lasting(file)


def holds(path: pathlib.Path, content: bytes | None) -> bool:
    """Whether a file holds just this."""
    return path.is_file() and path.read_bytes() == content
