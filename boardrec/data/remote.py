"""The objects of a store: folders such as s3://BUCKET/PHOTOS and gs://BUCKET/PHOTOS, through fsspec.

fsspec is imported where a URL is given only; the package for its scheme is an extra.
"""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import functools
import hashlib
import importlib
import pathlib
import re
from typing import Any, NamedTuple

from boardrec.config import UserError

_PACKAGES = {'s3': 's3fs', 's3a': 's3fs', 'gs': 'gcsfs', 'gcs': 'gcsfs'}
_EXTRAS = {'s3fs': 's3', 'gcsfs': 'gs'}
_CHANGED = ('LastModified', 'mtime', 'last_modified')  # as s3fs, gcsfs and adlfs call it


class StoreError(OSError):
    """What a store's client raised, with its reason: no such object, no right, no network."""


class Object(NamedTuple):
    """One object of a folder."""

    source: str  # relative to the folder
    bytes: int
    changed_ns: int  # when it was changed; 0 where the store does not say


def is_url(path: object) -> bool:
    """Whether a path is no path of a file system."""
    return re.match(r'[A-Za-z][A-Za-z0-9+.-]+://', str(path)) is not None


def check(url: str, flag: str = 'input_dir') -> None:
    """Raises UserError for a scheme of which nothing is known, or whose package is missing."""
    scheme = url.partition('://')[0]
    package = _PACKAGES.get(scheme)
    if package is None:
        raise UserError(f'--{flag}={url}: no scheme among {", ".join(f"{name}://" for name in _PACKAGES)}.')
    try:
        importlib.import_module(package)
    except ImportError:
        raise UserError(f"--{flag}={url} needs {package}, boardrec's extra {_EXTRAS[package]}, which is not "
                        f"installed: python -m pip install -e '.[{_EXTRAS[package]}]' in the clone.") from None


def listing(url: str, flag: str = 'input_dir') -> list[Object]:
    """Every object below a folder, but those that stand for folders. Raises UserError where it cannot be listed."""
    try:
        fs, folder = _opened(url)
        found = fs.find(folder, detail=True)
    except Exception as error:  # whatever a store's client raises: no such bucket, no right, no network
        raise UserError(f'--{flag}={url} cannot be listed: {_reason(error)}.') from None
    start = len(folder.rstrip('/')) + 1
    objects = sorted(Object(path[start:], info['size'], _changed_ns(info)) for path, info in found.items())
    return [item for item in objects if item.bytes or not (item.source == '' or item.source.endswith('/'))]


def read(url: str, source: str, max_bytes: int) -> tuple[bytes | None, Object]:
    """An object's bytes (None if there are more than `max_bytes`), and what it is. Raises OSError.

    It is asked for twice what it is, so that one that is replaced meanwhile is noticed.
    """
    with _os_errors():
        fs, folder = _opened(url)
        path = f'{folder.rstrip("/")}/{source}'
        for _ in range(2):
            before = _info(fs, path, source)
            data = fs.cat_file(path) if before.bytes <= max_bytes else None
            if _info(fs, path, source) == before and (data is None or len(data) == before.bytes):
                return data, before
    raise OSError(errno.EBUSY, 'it changes while it is read')


def sha256_of(url: str, source: str) -> str:
    """The hexadecimal SHA-256 of an object's bytes. Raises OSError."""
    digest = hashlib.sha256()
    for part in parts(url, source):
        digest.update(part)
    return digest.hexdigest()


def parts(url: str, source: str) -> Iterator[bytes]:
    """An object's bytes, 8 MiB at a time. Raises StoreError; one that is replaced meanwhile may come as a mixture."""
    with _os_errors():
        fs, folder = _opened(url)
        with fs.open(f'{folder.rstrip("/")}/{source}', 'rb') as file:
            yield from iter(functools.partial(file.read, 8 << 20), b'')


def content(url: str, source: str) -> bytes | None:
    """An object's bytes; None if there is none. Raises StoreError."""
    with _os_errors():
        fs, folder = _opened(url)
        try:
            return fs.cat_file(f'{folder.rstrip("/")}/{source}')  # one request: never a mixture of two
        except FileNotFoundError:
            return None


def put(url: str, source: str, content: pathlib.Path | bytes) -> None:
    """Makes an object of a file or of bytes, whole or not at all. Raises StoreError."""
    with _os_errors():
        fs, folder = _opened(url)
        path = f'{folder.rstrip("/")}/{source}'
        if isinstance(content, bytes):
            fs.pipe_file(path, content)
        else:
            fs.put_file(str(content), path)


def create(url: str, source: str, content: bytes) -> bool:
    """Makes an object where there is none; whether it did. Raises StoreError.

    Of several processes one does, but in stores that know no such condition (If-None-Match: *).
    """
    with _os_errors():
        fs, folder = _opened(url)
        path = f'{folder.rstrip("/")}/{source}'
        try:
            fs.pipe_file(path, content, mode='create')
        except FileExistsError:
            return False
        except OSError:  # how a store refuses the condition differs; where it was kept, something is there
            if fs.exists(path):
                return False
            fs.pipe_file(path, content)
    return True


def remove(url: str, source: str) -> None:
    """Removes an object, if it is there. Raises StoreError."""
    with _os_errors(), contextlib.suppress(FileNotFoundError):
        fs, folder = _opened(url)
        fs.rm_file(f'{folder.rstrip("/")}/{source}')


def _opened(url: str) -> tuple[Any, str]:
    """A file system without a memory of listings, and the path in it."""
    import fsspec
    return fsspec.core.url_to_fs(url, use_listings_cache=False)


def _info(fs: Any, path: str, source: str) -> Object:
    info = fs.info(path)
    return Object(source, info['size'], _changed_ns(info))


def _changed_ns(info: dict[str, Any]) -> int:
    changed = next((info[name] for name in _CHANGED if name in info), None)
    return round(changed.timestamp() * 1e9) if isinstance(changed, datetime.datetime) else 0


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Makes what a store's client raises a StoreError with a reason."""
    try:
        yield
    except Exception as error:
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else getattr(error, 'errno', None) or errno.EIO
        raise StoreError(number, _reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'there is no such folder or object'
    return ' '.join((getattr(error, 'strerror', None) or str(error) or repr(error)).split()).rstrip('.')
