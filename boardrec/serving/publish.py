"""Versions of a served model: numbered folders that appear whole or not at all.

TF Serving polls the folder and loads any child whose name is an integer, finished or not.
"""

from collections.abc import Callable
import json
import pathlib
from typing import Any

from boardrec.config import UserError
from boardrec.data import files

METADATA = 'metadata.json'


def versions(export_dir: pathlib.Path) -> list[int]:
    """The versions that are there, ascending."""
    found = export_dir.iterdir() if export_dir.is_dir() else ()
    return sorted(int(path.name) for path in found if path.is_dir() and path.name.isdecimal())


def find(export_dir: pathlib.Path, metadata: dict[str, Any]) -> pathlib.Path | None:
    """The version that has exactly this metadata, the newest of several; None if there is none."""
    for version in reversed(versions(export_dir)):
        folder = export_dir / str(version)
        try:
            if json.loads((folder / METADATA).read_bytes()) == metadata:
                return folder
        except (OSError, ValueError):
            continue  # somebody else's version
    return None


def publish(export_dir: pathlib.Path, metadata: dict[str, Any], write: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Lets `write` fill a folder, adds the metadata, and makes it the next version; returns its folder.

    Never replaces a version: of two publishers at once, the later takes the number after. Raises UserError if
    export_dir is a file or holds something else.
    """
    if export_dir.exists() and not export_dir.is_dir():
        raise UserError(f'--export_dir={export_dir} is a file: name a folder.')
    foreign = [path.name for path in export_dir.iterdir()
               if not path.name.startswith(files.TEMPORARY_PREFIX)] if export_dir.is_dir() else []
    if foreign and not versions(export_dir):
        raise UserError(f'--export_dir={export_dir} holds {min(foreign)} and no version of a model: '
                        'name another folder.')
    if set(str(export_dir.absolute())) & set('[]*?'):
        raise UserError(f'--export_dir={export_dir}: TensorFlow loads no model from a path with one of []*? in it.')
    export_dir.mkdir(parents=True, exist_ok=True)
    with files.temporary_folder(export_dir / 'version') as temporary:
        write(temporary)
        with files.atomic_write(temporary / METADATA) as file:
            file.write(json.dumps(metadata, indent=1).encode() + b'\n')
        while True:
            target = export_dir / str(max(versions(export_dir), default=0) + 1)
            try:
                files.commit_folder(temporary, target)
            except FileExistsError:
                continue  # another publisher was faster
            return target
