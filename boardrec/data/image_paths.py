"""Which files predict is asked about, as a stream of paths: a folder, a glob, one image, a list of paths.

The same order each time, so that a prediction that was interrupted can go on. Held in memory are the names in one
folder, a piece of a list, or all that a glob matches. Paths are as os.fsdecode gives them.
"""

import codecs
from collections.abc import Iterator
import glob
import os
import pathlib
import sys
from typing import BinaryIO, NamedTuple

from boardrec.config import UserError
from boardrec.data import scan

STANDARD_INPUT = '-'
_LIST = '.txt'
_PIECE_BYTES = 1 << 20  # of a list; no path is as long


class Candidate(NamedTuple):
    """A path that an image is to be read from."""

    path: str
    reason: str = ''  # why there is none, where that is known without reading it


def find(images: str) -> Iterator[Candidate]:
    """What `images` means; nothing if there is nothing there.

    A folder is walked as in conversion: through links, each folder once, and what is no image file has its reason; the
    files of a folder come by name, then its subfolders by name. A list's paths come in its order, as often as it names
    them. What a glob matches is sorted. Raises UserError for a folder that cannot be read and for what is no list.
    """
    if images == STANDARD_INPUT:
        yield from _listed(sys.stdin.buffer, 'standard input')
    elif os.path.isdir(images):
        for item in scan.walked(pathlib.Path(images)):
            reason = item.reason if isinstance(item, scan.Rejection) else ''
            yield Candidate(os.path.join(images, item.source), reason)
    elif not os.path.isfile(images):
        yield from _matches(images)
    elif images.endswith(_LIST):
        with open(images, 'rb') as file:
            yield from _listed(file, images)
    else:
        yield Candidate(images)


def _listed(file: BinaryIO, name: str) -> Iterator[Candidate]:
    """The paths that line breaks end (of Windows, too), or NULs if there is one in the first piece; not empty ones."""
    rest = b''
    while not set(b'\n\0') & set(rest) and (piece := _piece(file, rest, name)):
        rest += piece
    rest = rest.removeprefix(codecs.BOM_UTF8)
    separator, line_end = (b'\0', b'') if b'\0' in rest else (b'\n', b'\r')
    while True:
        *whole, rest = rest.split(separator)
        yield from (Candidate(os.fsdecode(path)) for one in whole if (path := one.removesuffix(line_end)))
        piece = _piece(file, rest, name)
        if not piece:
            break
        rest += piece
    if last := rest.removesuffix(line_end):
        yield Candidate(os.fsdecode(last))


def _piece(file: BinaryIO, rest: bytes, name: str) -> bytes:
    """What can be read now: a list on standard input may be long in coming."""
    if len(rest) > _PIECE_BYTES:
        raise UserError(f'--images: {name} is no list of paths: one of them would have {len(rest):,} bytes.')
    return file.read1(_PIECE_BYTES)


def _matches(pattern: str) -> Iterator[Candidate]:
    """The files that a glob matches; ** follows links, and so finds folders again and again."""
    first_name, folders = {}, {}  # of each folder, by device and inode; whether a folder's name is its first
    for path in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(path):
            continue
        folder = os.path.dirname(path)
        if folder not in folders:
            info = os.stat(folder or os.curdir)
            folders[folder] = first_name.setdefault((info.st_dev, info.st_ino), folder) == folder
            if not folders[folder]:
                yield Candidate(folder, 'folder found a second time, through a link')
        if folders[folder]:
            yield Candidate(path)
