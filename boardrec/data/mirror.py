"""Record sets in an object store: each has a copy on this machine, which is worked with like any other folder.

    CACHE/records/HASH/       the copy; HASH is of the URL
    CACHE/records/HASH.json   what the store held when it and the copy were last the same: see Base
    CACHE/records/HASH.lock   its byte 0 is held by who changes the copy, byte 1 shared by those who read it

How the two are brought to agree is in transfer.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import time
from typing import NamedTuple
import uuid

from boardrec import progress
from boardrec.config import UserError
from boardrec.data import files, journal, records, remote, transfer

_CHANGING, _READING = 0, 1  # bytes of the lock
_BETWEEN = 'between two'


class Base(NamedTuple):
    """What the copy was made of, or what was put there since: all that the copy has more is work of this machine."""

    manifest_sha256: str | None  # None: there was no set; _BETWEEN: what is there belongs to no manifest
    sums: dict[str, str]  # {name: sha256} of objects, of the journal too
    push: str = ''  # the number of a push from here that has not ended
    overwriting: bool = False  # that push takes nothing for granted that it has not put itself


@contextlib.contextmanager
def opened(place: str) -> Iterator[pathlib.Path]:
    """Yields a folder of records: `place` itself, or, if that is a URL, its copy, which nobody changes meanwhile.

    Raises UserError where that cannot be had.
    """
    if not remote.is_url(place):
        yield pathlib.Path(place)
        return
    remote.check(place, 'records')
    with _locked(place) as (lock, folder):
        if not lock.acquire(_CHANGING, 1):
            progress.say(f'waiting for another process of this machine, which is at work on {place}')
            while not lock.acquire(_CHANGING, 1):
                time.sleep(0.2)

        def before_changes(store: transfer.Store) -> None:
            _require_unread(lock, place, folder)
            _require_stored(place, folder, store)
            _base_file(folder).unlink(missing_ok=True)

        transfer.pull(place, folder, before_changes)
        lock.acquire(_READING, 1, shared=True)
        lock.release(_CHANGING, 1)
        yield folder


@contextlib.contextmanager
def output(place: str, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a folder to convert into: `place` itself, or, if that is a URL, its copy, which is put there at the end.

    Raises UserError where another is at work on it, on this machine or, as far as can be seen, on another one.
    """
    if not remote.is_url(place):
        yield pathlib.Path(place)
        return
    remote.check(place, 'output_dir')
    with _locked(place) as (lock, folder):
        if not lock.acquire(_CHANGING, 1):
            raise UserError(f'--output_dir={place}: another process of this machine is at work on it; wait for it.')
        _require_unread(lock, place, folder)
        store, base = transfer.look(place, 'output_dir'), _read_base(folder)
        transfer.require_ours(place, store)
        if store.mark and not _agrees(base, store) and not overwrite:
            raise UserError(f'--output_dir={place}: {store.mark.who} has not finished putting records there: wait for '
                            'it, run the same command there again, or add --overwrite.')
        if not _agrees(base, store) and not overwrite:
            _pull_all(place, folder, store)
        if overwrite and not (base and base.overwriting and store.mark and _agrees(base, store)):
            _base_file(folder).unlink(missing_ok=True)  # what lies there may be damaged: all of it is put
        yield folder
        _push(place, folder, store, overwriting=overwrite)


@contextlib.contextmanager
def _locked(url: str) -> Iterator[tuple[files.LockFile, pathlib.Path]]:
    """The lock of a URL's copy, and its folder; makes mistakes name the URL, but for files in the folder."""
    url = url.rstrip('/')
    folder = (files.cache_dir() / 'records' / hashlib.sha256(url.encode()).hexdigest()[:16]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(files.LockFile(folder.with_suffix('.lock'))) as lock:
            yield lock, folder
    except UserError as error:
        raise UserError(re.sub(rf'{re.escape(str(folder))}(?![\w./])', lambda _: url, str(error))) from None
    except remote.StoreError as error:
        raise UserError(f'{url}: {error.strerror}; once that is mended, the same command goes on.') from None


def _require_unread(lock: files.LockFile, url: str, folder: pathlib.Path) -> None:
    if not lock.acquire(_READING, 1):
        raise UserError(f'{url}: another process of this machine reads the copy of it, {folder}/, which has to '
                        'change: wait for it, or set BOARDREC_CACHE to another folder.')


def _require_stored(url: str, folder: pathlib.Path, store: transfer.Store) -> None:
    """Raises UserError where the copy holds what was converted here, and the store does not hold yet."""
    ahead = store.mark or not transfer.holds(folder / records.MANIFEST, store.manifest)
    if ahead and _agrees(_read_base(folder), store):
        raise UserError(f'{url}: what was converted on this machine is not all there yet: run that make_records '
                        'command again, or, to read what is there, set BOARDREC_CACHE to another folder.')


def _pull_all(url: str, folder: pathlib.Path, store: transfer.Store) -> None:
    """Makes the copy what the store holds, with the journal: nothing, if that is no set."""
    _base_file(folder).unlink(missing_ok=True)
    sums = {}
    if store.manifest is None:
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        shutil.rmtree(folder / journal.FOLDER, ignore_errors=True)
        sums = transfer.pull(url, folder, lambda _: None, with_journal=True)
        journal.restore_times(folder / journal.FOLDER, sums)
    _write_base(folder, Base(sums.get(records.MANIFEST), sums))


def _push(url: str, folder: pathlib.Path, before: transfer.Store, *, overwriting: bool) -> None:
    """Makes the store, which held `before`, hold what the copy is now."""
    store, base = transfer.look(url, 'output_dir'), _read_base(folder)
    transfer.require_ours(url, store)
    if (store.manifest, store.mark) != (before.manifest, before.mark):
        raise UserError(f'--output_dir={url} was changed from elsewhere meanwhile: run the same command again, which '
                        'goes on from what is there now.')
    base, sums = base if _agrees(base, store) else None, transfer.sums_of(folder)
    there = {name: sums[name] for name, size in store.sizes.items() if base and name in sums
             and base.sums.get(name) == sums[name] and size == (folder / name).stat().st_size}
    if there == sums and store.sizes.keys() == sums.keys():
        progress.say(f'{url}: up to date')
        return
    if base and store.mark:
        base = Base(_BETWEEN, there, base.push, overwriting)
    else:
        base = Base(_sha256(store.manifest), there, uuid.uuid4().hex, overwriting)
    mark = transfer.Mark(base.push, f'process {os.getpid()} on {socket.gethostname()}')
    before_push = dict(there)
    _write_base(folder, base)
    try:
        transfer.push(url, folder, store, sums, there, mark)
    finally:  # what was put before Ctrl-C or an error is not put again, unless another has put something since
        _write_base(folder, base if there == before_push else base._replace(manifest_sha256=_BETWEEN))
    ended = Base(sums[records.MANIFEST], sums)
    _write_base(folder, ended._replace(push=mark.push))
    remote.remove(url, transfer.MARK)
    _write_base(folder, ended)


def _agrees(base: Base | None, store: transfer.Store) -> bool:
    """Whether nobody but this machine has changed what lies in the store."""
    if base is None:
        return False
    return store.mark.push == base.push if store.mark else _sha256(store.manifest) == base.manifest_sha256


def _sha256(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _base_file(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_suffix('.json')


def _read_base(folder: pathlib.Path) -> Base | None:
    try:
        return Base(**json.loads(_base_file(folder).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write_base(folder: pathlib.Path, base: Base) -> None:
    with files.atomic_write(_base_file(folder)) as file:
        file.write(json.dumps(base._asdict()).encode())
