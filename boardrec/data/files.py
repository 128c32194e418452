"""Files that are there whole or not at all, their sums and locks, and the project's cache folder.

What is written lies under a temporary name (`.tmp-NAME-HOST-PID`, in the same folder, hence on the same file system)
until it is on disk, and takes its name in one rename; so a reader never sees a half, also after a power cut. Whoever
lists a folder passes over names that begin with '.tmp-': they are left by a process that was killed.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import socket
import time
from typing import BinaryIO, NamedTuple

from boardrec.config import UserError

TEMPORARY_PREFIX = '.tmp-'
_LOOK_HOLDS = 50  # times as long as it took to list a folder, what was seen there counts
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def cache_dir() -> pathlib.Path:
    """Folder for what was fetched once, such as weights: $BOARDREC_CACHE, else ~/.cache/boardrec. It may not exist."""
    given = os.environ.get('BOARDREC_CACHE')
    return pathlib.Path(given).expanduser() if given else pathlib.Path.home() / '.cache' / 'boardrec'


def temporary_name(path: os.PathLike | str) -> pathlib.Path:
    """The name in the same folder that this process writes `path` under; one writer of a path in a process."""
    path = pathlib.Path(os.path.abspath(path))
    return path.with_name(f'{TEMPORARY_PREFIX}{path.name}-{socket.gethostname()}-{os.getpid()}')


@contextlib.contextmanager
def atomic_write(path: os.PathLike | str) -> Iterator[BinaryIO]:
    """Yields a binary file that becomes `path` when the block ends; after an exception `path` is as it was."""
    remove_leftovers(path)
    temporary = temporary_name(path)
    try:
        with naming(path), open(temporary, 'wb') as file:
            yield file
            file.flush()
        commit_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def temporary_folder(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields an empty folder under the temporary name of `path`, and removes it at the end unless it was renamed.

    For a folder that becomes `path`, and for writers that choose the names in it. What killed writers left goes too.
    """
    remove_leftovers(path)
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: os.PathLike | str) -> None:
    """Puts a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_file(temporary: os.PathLike | str, path: os.PathLike | str) -> None:
    """Gives a finished file its name, replacing what was there. For writers that never fsync, such as TensorFlow's."""
    sync(temporary)
    os.replace(temporary, path)
    sync(_parent(path))


def commit_folder(temporary: os.PathLike | str, path: os.PathLike | str) -> None:
    """Gives a finished folder its name. Raises FileExistsError if there is anything at `path`."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)
    if os.path.lexists(path):  # rename would replace an empty folder without a word
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
    try:
        os.rename(temporary, path)
    except OSError as error:  # somebody was faster, between the look and the rename
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)) from None
        raise
    sync(_parent(path))


def remove_leftovers(path: os.PathLike | str) -> None:
    """Removes what killed writers of `path` left; the temporaries of other processes that are alive here stay.

    Those of a writer that was killed a moment ago may stay too: see _temporaries.
    """
    path = pathlib.Path(os.path.abspath(path))
    own = temporary_name(path)  # left by another process that had this one's number
    for entry in {*([own] if os.path.lexists(own) else ()), *_temporaries(path.parent).get(path.name, ())}:
        if _is_other_process(int(entry.name.rpartition('-')[2])):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


class _Look(NamedTuple):
    """What a folder held when this process looked."""

    temporaries: dict[str, list[pathlib.Path]]  # of this host's processes, by the name that they were to take
    holds_until: float  # seconds of time.monotonic()


_looks: dict[pathlib.Path, _Look] = {}


def _temporaries(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The temporaries in a folder, by the name that they were to take, as they were when this process last looked.

    It looks again once that is longer ago than 50 times what the look took: to list the folder of 40,000 shards and
    their journals takes 80 ms or more, which would else be paid for each of them.
    """
    start = time.monotonic()
    if folder not in _looks or start > _looks[folder].holds_until:
        pattern = re.compile(rf'{re.escape(TEMPORARY_PREFIX)}(.+)-{re.escape(socket.gethostname())}-[0-9]+', re.DOTALL)
        found: dict[str, list[pathlib.Path]] = {}
        for match in filter(None, map(pattern.fullmatch, os.listdir(folder) if folder.is_dir() else ())):
            found.setdefault(match[1], []).append(folder / match[0])
        now = time.monotonic()
        _looks[folder] = _Look(found, now + _LOOK_HOLDS * (now - start))
    return _looks[folder].temporaries


class LockFile:
    """A file to hold locks through, on ranges of its bytes, which need not exist.

    Locks are between processes, on several hosts too, and go with the process however it ends. Closing any LockFile of
    the same file releases all that this process holds on it; one is closed at the latest when nothing refers to it.
    """

    def __init__(self, path: os.PathLike | str, flags: int = os.O_RDWR | os.O_CREAT):
        self._descriptor, self._path = None, path
        self._descriptor = os.open(path, flags, 0o666)

    def acquire(self, start: int, length: int, *, shared: bool = False) -> bool:
        """Locks bytes (length 0: to the end); False if another process holds them.

        Raises UserError where the file system has no locks.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self._descriptor, kind | fcntl.LOCK_NB, length, start)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                raise UserError(f'{self._path}: the file system has no locks; name a folder on another.') from None
            raise
        return True

    def release(self, start: int, length: int) -> None:
        """Gives bytes free."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, length, start)

    def is_at(self, path: os.PathLike | str) -> bool:
        """Whether this is the file at a path, and not one that was removed. Raises FileNotFoundError if none is."""
        return os.path.samestat(os.fstat(self._descriptor), os.stat(path))

    def close(self) -> None:
        """Releases every lock that this process has on the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close


@contextlib.contextmanager
def naming(path: os.PathLike | str) -> Iterator[None]:
    """Puts the name `path` on a disk error inside: those of write and fsync carry none, others a temporary one."""
    try:
        yield
    except OSError as error:
        temporary = os.path.basename(os.fsdecode(error.filename or '')).startswith(TEMPORARY_PREFIX)
        if temporary or (error.filename is None and error.errno in DISK_ERRNOS):
            error.filename = os.fspath(path)
        raise


def require_space(folder: os.PathLike | str, *, needed_bytes: int) -> None:
    """Raises the OSError of a full disk beforehand, for writers that cannot bear one: h5py crashes the process.

    A quota is not seen, and others may write meanwhile.
    """
    if shutil.disk_usage(folder).free < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))


def sha256_of(path: os.PathLike | str) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _parent(path: os.PathLike | str) -> str:
    return os.path.dirname(os.path.abspath(path))


def _is_other_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or no number of a process here
        return True
    return pid != os.getpid()
