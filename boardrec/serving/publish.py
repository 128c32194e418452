"""Versions of a served model: numbered folders that appear whole or not at all.

TF Serving polls the folder and loads any child whose name is an integer, finished or not. A version's metadata.json has
the size and sha256 of each other file in it.
"""

from collections.abc import Callable
import contextlib
import json
import os
import pathlib
import re
from typing import Any

from boardrec.config import UserError
from boardrec.data import files

METADATA = 'metadata.json'
GRAPH = 'saved_model.pb'
_REMOVED = 'removed'  # the temporary folder that versions are removed in


def versions(export_dir: pathlib.Path) -> list[int]:
    """The versions that are there, ascending. A folder 007 is none, though TF Serving would load it as 7."""
    found = export_dir.iterdir() if export_dir.is_dir() else ()
    return sorted(int(path.name) for path in found if re.fullmatch('0|[1-9][0-9]*', path.name) and path.is_dir())


def find(export_dir: pathlib.Path, identity: dict[str, Any]) -> pathlib.Path | None:
    """The whole version whose metadata has all of this, the newest of several; None if there is none."""
    for version in reversed(versions(export_dir)):
        folder = export_dir / str(version)
        try:
            metadata = json.loads((folder / METADATA).read_bytes())
            if all(metadata[name] == value for name, value in identity.items()) and not damage(folder):
                return folder
        except (OSError, ValueError, KeyError, TypeError):
            continue  # somebody else's version
    return None


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What boardrec says of a version; empty if somebody else made it."""
    try:
        return json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError):
        return {}


def damage(folder: pathlib.Path) -> str:
    """What is wrong with the files of a version, by its metadata: '' if nothing is.

    Raises OSError, ValueError, KeyError or TypeError if boardrec's metadata is not there.
    """
    listed = json.loads((folder / METADATA).read_bytes())['files']
    found = _sums(folder)
    changed = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
    return f'{folder / changed[0]} is missing or was changed' if changed else ''


def publish(export_dir: pathlib.Path, identity: dict[str, Any], write: Callable[[pathlib.Path], dict[str, Any]]
            ) -> pathlib.Path:
    """Lets `write` fill a folder, adds the metadata, and makes it the next version; returns its folder.

    The metadata are `identity`, what `write` returns, and `files`. Never replaces a version: of two publishers at once,
    the later takes the number after. Raises UserError if export_dir is a file or holds something else.
    """
    _require_place(export_dir)
    export_dir.mkdir(parents=True, exist_ok=True)
    files.sync(export_dir.parent)
    files.remove_leftovers(export_dir / _REMOVED)
    with files.temporary_folder(export_dir / 'version') as temporary:
        metadata = {**identity, **write(temporary), 'files': _sums(temporary)}
        with files.atomic_write(temporary / METADATA) as file:
            file.write(json.dumps(metadata, indent=1, allow_nan=False).encode() + b'\n')
        while True:
            target = export_dir / str(max(versions(export_dir), default=0) + 1)
            try:
                files.commit_folder(temporary, target)
            except FileExistsError:
                continue  # another publisher was faster
            return target


def prune(export_dir: pathlib.Path, *, keep: int) -> list[int]:
    """Removes all versions but the newest `keep`, at least one; returns those that it removed.

    Each loses its number in one rename, before any of its files goes: a reader finds it whole or not at all.
    """
    removed = []
    with files.temporary_folder(export_dir / _REMOVED) as temporary:
        for version in versions(export_dir)[:-keep]:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.rename(export_dir / str(version), temporary / str(version))
                removed.append(version)
        files.sync(export_dir)
    return removed


def _require_place(export_dir: pathlib.Path) -> None:
    if export_dir.exists() and not export_dir.is_dir():
        raise UserError(f'--export_dir={export_dir} is a file: name a folder.')
    foreign = [path.name for path in export_dir.iterdir()
               if not path.name.startswith(files.TEMPORARY_PREFIX)] if export_dir.is_dir() else []
    if foreign and not versions(export_dir):
        raise UserError(f'--export_dir={export_dir} holds {min(foreign)} and no version of a model: '
                        'name another folder.')
    require_loadable(export_dir, 'export_dir')


def require_loadable(folder: pathlib.Path, flag: str) -> None:
    """Raises UserError if TensorFlow takes the path that a flag names for a pattern."""
    if set(str(folder.absolute())) & set('[]*?'):
        raise UserError(f'--{flag}={folder}: TensorFlow loads no model from a path with one of []*? in it.')


def _sums(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Size and sum of each file but the metadata, by its path in the folder."""
    paths = (path for path in sorted(folder.rglob('*')) if path.is_file() and path != folder / METADATA)
    return {path.relative_to(folder).as_posix(): {'bytes': path.stat().st_size, 'sha256': files.sha256_of(path)}
            for path in paths}
