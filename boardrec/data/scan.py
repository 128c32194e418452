"""Which files become records: where they are looked for, the split and class of each, what is refused.

In: a folder, local or in an object store, with class folders or a CSV file of labels. Out: each file, as found or as
rejected with its reason. Where nothing else says a file's split, a hash of its path does, so that it stays there as
others come and go.
"""

import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
import hashlib
import os
import pathlib
import re
import stat
import sys
from typing import NamedTuple
import unicodedata

from boardrec import progress
from boardrec.config import ConvertConfig, SPLITS, UserError
from boardrec.data import columns_csv, remote
from boardrec.data.table import Table

_CLASSES_SHOWN = 10
_SYSTEM_FILES = {'.DS_Store', 'Thumbs.db', 'ehthumbs.db', 'desktop.ini'}  # what file managers leave
RECORD_MARK = '__'  # between a file and the number of a record in it, as in TFDS's ids
_NOT_A_FILE = 'listed in labels_csv but not a file'
_OF_THE_DISK = 'lost+found'  # a folder that file systems keep for themselves
_APPLE_DOUBLE = '._'  # begins the names of what macOS keeps beside files on foreign file systems


class File(NamedTuple):
    """A regular file."""

    source: str  # relative to the input root
    bytes: int
    changed_ns: int  # ctime: mtime is what a copy or an archive says, and stays where files are swapped


class Found(NamedTuple):
    """One image that is to become a record: a file, or a range of bytes in one."""

    source: str  # relative to the input root; for a range, the file with RECORD_MARK and the number of the record
    split: str
    label: str
    bytes: int
    changed_ns: int = 0
    offset: int = -1  # of a range; -1: a file
    sha256: str = ''  # of a range

    @property
    def file(self) -> str:
        """Where the bytes lie, relative to the input root."""
        return self.source if self.offset < 0 else self.source.rpartition(RECORD_MARK)[0]


class Rejection(NamedTuple):
    """One file that becomes no record, and why."""

    source: str
    reason: str
    sha256: str = ''  # of the bytes that were refused, if it came to reading them

    @property
    def is_bad(self) -> bool:
        """Whether the scan lacks what was to be there, rather than passing over what is no image."""
        return self.reason.startswith(('unreadable', 'damaged', 'its Example lacks', _NOT_A_FILE))


def scan(config: ConvertConfig) -> tuple[Table[Found], list[Rejection]]:
    """Finds the files below config.input_dir and what split and class each belongs to, sorted by path."""
    root = root_of(config.input_dir)
    regular, rejected = _walk_remote(root) if isinstance(root, str) else walk(root)
    if not regular:
        raise UserError(f'--input_dir={root}: no files in it; images belong into CLASS/ or '
                        '{train,val,test}/CLASS/ there.')
    example = regular[0].source
    if config.labels_csv:
        found, others = _by_labels_csv(config, regular)
    else:
        found, others = _by_folders(config, root, regular)
    if config.group_by and not any(re.search(config.group_by, item.source) for item in found):
        raise UserError(f'--group_by={config.group_by} matches none of the paths, such as {example!r}.')
    if not found:
        raise UserError(f'--input_dir={root}: no file lies in a class folder: images belong into CLASS/ or '
                        '{train,val,test}/CLASS/ there, or name a --labels_csv.')
    told = {item.source for item in rejected}
    return found, sorted(rejected + [item for item in others if item.source not in told])


def root_of(input_dir: str) -> pathlib.Path | str:
    """The input folder: a path, or the URL of one in an object store as it is."""
    return input_dir if remote.is_url(input_dir) else pathlib.Path(input_dir)


def walk(root: pathlib.Path) -> tuple[Table[File], list[Rejection]]:
    """Every regular file below root, sorted by path, through links, each folder once; and all that is not."""
    regular, rejected = Table(File), []
    for item in walked(root):
        (regular if isinstance(item, File) else rejected).append(item)
    return regular.sorted_by('source'), rejected


def walked(root: pathlib.Path) -> Iterator[File | Rejection]:
    """As `walk`, one by one: the files of a folder by name, then its subfolders by name. Holds one folder's names."""
    seen = set()

    def relative(path: str) -> str:
        return os.path.relpath(path, root)

    def unreadable(error: OSError) -> None:
        # Nobody knows how many images are in there.
        raise UserError(f'{error.filename}: a folder that cannot be read ({error.strerror}); make it readable, or move '
                        'it away.')

    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in seen:
            yield Rejection(relative(folder), 'folder found a second time, through a link')
            subfolders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        subfolders.sort()
        if _OF_THE_DISK in subfolders:
            subfolders.remove(_OF_THE_DISK)
            yield Rejection(relative(os.path.join(folder, _OF_THE_DISK)), 'system folder')
        inner = '' if folder == os.fspath(root) else relative(folder) + os.sep  # a relpath takes as long as two stats
        for name in sorted(names):
            yield _file(os.path.join(folder, name), inner + name)


def _file(path: str, source: str) -> File | Rejection:
    if _is_system_file(os.path.basename(path)):
        return Rejection(source, 'system file')
    try:
        info = os.stat(path)
    except OSError as error:
        return Rejection(source, f'unreadable: {error.strerror}')
    if not stat.S_ISREG(info.st_mode):
        return Rejection(source, 'not a regular file')
    return File(source, info.st_size, info.st_ctime_ns)


def _walk_remote(url: str) -> tuple[Table[File], list[Rejection]]:
    """As `walk`, in an object store, which has objects only."""
    found = remote.listing(url)
    rejected = [Rejection(item.source, 'system file') for item in found if _is_system_file(item.source.split('/')[-1])]
    system = {item.source for item in rejected}
    return Table(File, (File(*item) for item in found if item.source not in system)), rejected


def _is_system_file(name: str) -> bool:
    return name in _SYSTEM_FILES or name.startswith(_APPLE_DOUBLE)


def path_hash(salt: str, source: str) -> int:
    """A uniform 64-bit number from a path; the salt keeps the choice of split and of place independent."""
    return int.from_bytes(hashlib.sha256(salt.encode() + b'\0' + os.fsencode(source)).digest()[:8], 'big')


def describe(root: pathlib.Path | str, found: Table[Found], rejected: list[Rejection], classes: list[str], *,
             unit: str = 'files') -> None:
    """Says what was found, and what of it looks like a slip."""
    splits, labels = found.column('split'), found.column('label')
    of_class, of_split = Counter(labels), Counter(splits)
    shown = [f'{name} {of_class[name]:,}' for name in classes[:_CLASSES_SHOWN]]
    shown += ['...'] * (len(classes) > _CLASSES_SHOWN)
    progress.say(f'{root}: {len(found) + len(rejected):,} {unit}, {len(found):,} of them in {len(classes)} classes '
                 f'({", ".join(shown)}); ' + ', '.join(f'{split} {of_split[split]:,}' for split in SPLITS))
    there = set(zip(splits, labels, strict=True))
    if not of_split['val']:
        progress.say('note: no image in the val split, without which training does not begin: see --splits')
    for split in SPLITS:
        lacking = [name for name in classes if of_split[split] and (split, name) not in there]
        if lacking:
            progress.say(f'note: no image of class {lacking[0]!r} in the {split} split')


def check_classes(found: Table[Found], classes: list[str], given: str) -> None:
    """Raises UserError unless there are two classes or more, each with a good name and a training image.

    `given` is the flag that named the input, with its value.
    """
    if len(classes) < 2:
        raise UserError(f'{given}: only one class, {classes[0]!r}; a classifier needs at least two.')
    odd = [name for name in classes if not name.isprintable() or name != name.strip()]
    if odd:
        raise UserError(f'{given}: the class {odd[0]!r} has a name with line breaks, outer blanks or bytes '
                        'that are not UTF-8: rename it.')
    missing = set(classes) - {item.label for item in found if item.split == 'train'}
    if missing:
        raise UserError(f'{given}: no training image of class {min(missing)!r}; '
                        'add some, or give the training split more with --splits.')


def _by_folders(config: ConvertConfig, root: pathlib.Path | str, regular: Table[File]
                ) -> tuple[Table[Found], list[Rejection]]:
    folders = _subfolders(root, regular)
    has_splits = 'train' in folders and bool(_subfolders(root, regular, 'train'))
    if has_splits and not set(folders) <= set(SPLITS):
        other = min(set(folders) - set(SPLITS))
        raise UserError(f'--input_dir={root} has train/, so its folders must be among train, val and test: '
                        f'rename or move away {other}/.')
    if has_splits and config.group_by:
        raise UserError(f'--group_by={config.group_by}: --input_dir={root} has split folders, which say where files '
                        'go; leave it out, or name a folder of CLASS/ folders.')
    depth = 2 if has_splits else 1
    filled = {tuple(source.split(os.sep)[:depth]) for source, *_ in regular}
    for place in [(split,) for split in folders] if has_splits else [()]:
        for name in _subfolders(root, regular, *place):
            if (*place, name) not in filled:
                raise UserError(f'{pathlib.Path(root, *place, name)}: a class with no images; put some there or remove '
                                'the folder.')
    found, rejected, fractions = Table(Found), [], config.split_fractions()
    for source, size, changed_ns in regular:
        parts = source.split(os.sep)
        if len(parts) <= depth:
            rejected.append(Rejection(source, 'not in a class folder'))
            continue
        split = parts[0] if has_splits else split_of(source, fractions, config.group_by)
        found.append(Found(source, sys.intern(split), sys.intern(parts[depth - 1]), size, changed_ns))
    return found, rejected


def _subfolders(root: pathlib.Path | str, regular: Table[File], *place: str) -> list[str]:
    """The folders in a folder of the root, by name. In an object store none is empty."""
    if not isinstance(root, str):
        return sorted(entry.name for entry in root.joinpath(*place).iterdir()
                      if entry.is_dir() and entry.name != _OF_THE_DISK)
    paths, depth = (tuple(source.split(os.sep)) for source, *_ in regular), len(place)
    return sorted({parts[depth] for parts in paths if parts[:depth] == place and len(parts) > depth + 1})


def split_of(source: str, fractions: dict[str, float], group_by: str = '') -> str:
    """The split whose stretch of [0, 1) the hash of the path or of its subject falls into, the same in each class."""
    place, end = path_hash('split', subject(source, group_by)) / 2**64, 0.0
    for split, fraction in fractions.items():
        end += fraction
        if place < end:
            return split
    return split


def subject(source: str, group_by: str) -> str:
    """What of a path names its subject: what the groups of `group_by` match, or the whole path if it does not."""
    match = re.search(group_by, source) if group_by else None
    if match is None:
        return source
    return '\0'.join(match.groups('')) if match.re.groups else match[0]


def _by_labels_csv(config: ConvertConfig, regular: Table[File]) -> tuple[Table[Found], list[Rejection]]:
    path = pathlib.Path(config.labels_csv)
    fractions, first = config.split_fractions(), None
    there, found, rejected, listed = regular.column('source'), Table(Found), [], set()
    # File systems and spreadsheets differ in how they write accents: composed or with combining characters.
    composed = {unicodedata.normalize('NFC', source): source for source in there}
    if not path.is_file():
        raise UserError(f'--labels_csv={path}: {"is a folder" if path.is_dir() else "there is no such file"}.')
    for number, row in columns_csv.rows(f'--labels_csv={path}', path, ('path', 'label')):
        source, label, split = (row.get(key, '') for key in ('path', 'label', 'split'))
        first, source = source if first is None else first, os.path.normpath(source)
        at = _position(there, source)
        if at is None:
            source = composed.get(unicodedata.normalize('NFC', source), source)
            at = _position(there, source)
        if not label or split not in ('', *SPLITS) or source in listed:
            problem = (f'{source} a second time' if source in listed else f'no label for {source}' if not label
                       else f'split {split!r}, which is not among {", ".join(SPLITS)}')
            raise UserError(f'--labels_csv={path}, line {number}: {problem}.')
        listed.add(source)
        if at is not None:
            split = sys.intern(split or split_of(source, fractions, config.group_by))
            found.append(Found(there[at], split, sys.intern(label), *regular[at][1:]))
        else:
            rejected.append(Rejection(source, _NOT_A_FILE))
    if not found:
        raise UserError(f'--labels_csv={path}: none of its paths is a file below --input_dir={config.input_dir}; '
                        f'they must be relative to it, and '
                        + ('it lists none.' if first is None else f'the first is {first!r}.'))
    own = os.path.relpath(path.resolve(), pathlib.Path(config.input_dir).resolve())
    rejected += [Rejection(source, 'not in labels_csv') for source in there if source not in listed and source != own]
    return found.sorted_by('source'), rejected


def _position(of: Sequence[str], source: str) -> int | None:
    """Where a path stands among sorted ones; a dict of a million takes 74 MB."""
    at = bisect.bisect_left(of, source)
    return at if at < len(of) and of[at] == source else None
