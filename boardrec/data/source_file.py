"""The bytes of what a conversion is made from: files, ranges of a TFDS shard, objects in an object store."""

import errno
import hashlib
import os
import pathlib
import time
from typing import NamedTuple

from boardrec.data import files, remote, scan

_SETTLED_NS = 2 * 10**9  # a file that was changed this recently may change again within a tick of its clock


class Read(NamedTuple):
    """A source's bytes and what the journal says of them."""

    data: bytes | None  # None: too many
    bytes: int
    changed_ns: int  # 0: not to be trusted
    sha256: str


def read(root: str, item: scan.Found, max_bytes: int) -> Read:
    """Reads what was found below a root. Raises OSError if it cannot be read, or does not stay as it is."""
    if remote.is_url(root):
        return _read_object(root, item.source, max_bytes)
    path = os.path.join(root, item.file)
    return _read_file(path, max_bytes) if item.offset < 0 else _read_range(path, item, max_bytes)


def sha256_of(root: pathlib.Path | str, item: scan.Found) -> str:
    """The hexadecimal SHA-256 of the bytes of what was found; '' if they cannot be read."""
    try:
        if item.sha256:
            return item.sha256
        return remote.sha256_of(root, item.source) if isinstance(root, str) else files.sha256_of(root / item.source)
    except OSError:
        return ''


def settled(changed_ns: int) -> int:
    """A time of change by which the same file is known again; 0 if it is too recent for that."""
    return changed_ns if time.time_ns() - changed_ns > _SETTLED_NS else 0


def _read_object(url: str, source: str, max_bytes: int) -> Read:
    data, item = remote.read(url, source, max_bytes)
    digest = remote.sha256_of(url, source) if data is None else hashlib.sha256(data).hexdigest()
    return Read(data, item.bytes, settled(item.changed_ns), digest)


def _read_range(path: str, item: scan.Found, max_bytes: int) -> Read:
    if item.bytes > max_bytes:
        return Read(None, item.bytes, settled(item.changed_ns), item.sha256)
    with open(path, 'rb') as file:
        file.seek(item.offset)
        data = file.read(item.bytes)
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise OSError(errno.EBUSY, 'it is no longer what the scan read')
    return Read(data, item.bytes, settled(item.changed_ns), item.sha256)


def _read_file(path: str, max_bytes: int) -> Read:
    for _ in range(2):
        with open(path, 'rb') as file:
            before = os.fstat(file.fileno())
            data = file.read() if before.st_size <= max_bytes else None
            digest = hashlib.file_digest(file, 'sha256') if data is None else hashlib.sha256(data)
            after = os.fstat(file.fileno())
        read_bytes = before.st_size if data is None else len(data)
        if (before.st_size, before.st_ctime_ns) == (read_bytes, after.st_ctime_ns):
            return Read(data, read_bytes, settled(before.st_ctime_ns), digest.hexdigest())
    raise OSError(errno.EBUSY, 'it changes while it is read')
