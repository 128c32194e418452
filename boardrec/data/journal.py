"""What each shard of a record set was made of: so a conversion goes on where it stopped, and knows what has changed.

    RECORDS/.conversion/   the converter's own and no part of the set: without it, everything is built again
      lock, holder         held by the converter that is at work, which holder names
      plan.json            the settings, how many shards each split has, and whether all of it is done
      SHARD                a shard that is built and waits for the others
      SHARD.json           what the shard of that name was made of, whether it waits here or is in its place
      beam-ID/             where the workers of a Beam pipeline put what they build: see beam_runner
      compared.npz         which images were compared with which, for being the same photograph
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
from typing import Any, NamedTuple

from boardrec.config import UserError
from boardrec.data import files, records, scan
from boardrec.data.records import Shard

FOLDER, COMPARED, SUBFOLDER_PREFIX = '.conversion', 'compared.npz', 'beam-'
_LOCK, _HOLDER, _PLAN, _VERSION = 'lock', 'holder', 'plan.json', 1


class Source(NamedTuple):
    """One file that a shard was made of."""

    source: str  # relative to the input root
    label: str
    bytes: int
    changed_ns: int  # 0: not to be trusted
    sha256: str  # of its bytes; '' if they could not be read
    offset: int  # of its record; -1 if it was rejected
    reason: str  # for which it was
    perceptual_hash: str  # of its pixels, 16 hexadecimal digits; '' if they could not be decoded

    @property
    def is_dropped(self) -> bool:
        """Whether it could be a record, and is none because it is the same photograph as another."""
        return self.offset < 0 and self.perceptual_hash != ''


class Built(NamedTuple):
    """One shard, with what it was made of, in the plan's order."""

    split: str
    classes: list[str]
    shard: Shard
    mtime_ns: int  # of the shard's file
    sources: list[Source]
    hash_version: int = 0  # perceptual.VERSION

    def made(self) -> list[Source]:
        """Those that are records."""
        return [source for source in self.sources if source.offset >= 0]

    def rejected(self) -> list[scan.Rejection]:
        """Those that are not."""
        return [scan.Rejection(item.source, item.reason, item.sha256) for item in self.sources if item.offset < 0]

    def dropped(self) -> dict[str, str]:
        """Those of them that could be records, with the reason."""
        return {item.source: item.reason for item in self.sources if item.is_dropped}

    def bad(self) -> list[scan.Rejection]:
        """Those of them that could not."""
        return [row for row, item in zip(self.rejected(), (item for item in self.sources if item.offset < 0),
                                         strict=True) if not item.is_dropped]


class Plan(NamedTuple):
    """plan.json."""

    settings: dict[str, str]  # that decide what is made of a file, by flag
    shards: dict[str, int]  # of each split
    complete: bool
    overwriting: bool = False  # while it is not complete: what was there before is no part of it


@contextlib.contextmanager
def locked(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the journal's folder of a record set, made if need be, which no other converter uses meanwhile.

    Raises UserError that names the other.
    """
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = files.LockFile(folder / _LOCK), folder / _HOLDER  # two files: closing one releases its locks
    try:
        if not lock.acquire(0, 0):
            who = holder.read_text() if holder.exists() else 'just starting'
            raise UserError(f'--output_dir={output}: another make_records ({who}) is at work there; wait for it, or '
                            'name another folder.')
        holder.write_text(f'process {os.getpid()} on {socket.gethostname()}')
        yield folder
    finally:
        lock.close()


def check_free(output: pathlib.Path) -> None:
    """Raises UserError if another converter is at work on a record set at this moment."""
    if (output / FOLDER / _LOCK).exists():
        with locked(output):
            pass


def read_plan(folder: pathlib.Path) -> Plan | None:
    """The plan of an earlier conversion; None if there is none that can be read."""
    try:
        values = json.loads((folder / _PLAN).read_bytes())
        if values.pop('version') == _VERSION:
            return Plan(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def write_plan(folder: pathlib.Path, plan: Plan) -> None:
    """Writes plan.json."""
    with files.atomic_write(folder / _PLAN) as file:
        file.write(json.dumps({'version': _VERSION, **plan._asdict()}, indent=1).encode() + b'\n')


def names(folder: pathlib.Path) -> list[str]:
    """The shards of which something is known."""
    known = (path.name.removesuffix('.json') for path in folder.glob('*.json'))
    return sorted(filter(records.is_shard_file, known))


def read(folder: pathlib.Path, name: str) -> Built | None:
    """What is known of a shard; None if that is nothing."""
    try:
        return load(folder, name)
    except (OSError, UserError):
        return None


def load(folder: pathlib.Path, name: str) -> Built:
    """What a shard that is built was made of. Raises OSError or UserError if that cannot be read."""
    path = folder / f'{name}.json'
    with files.naming(path):
        content = path.read_bytes()
    try:
        values = json.loads(content)
        values['shard'] = Shard(**values['shard'])
        values['sources'] = [Source(*source) for source in values['sources']]
        return Built(**values)
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} is damaged: run the same command again, which makes that shard anew.') from None


def write(folder: pathlib.Path, built: Built) -> None:
    """Writes what a shard was made of."""
    values: dict[str, Any] = {**built._asdict(), 'shard': dataclasses.asdict(built.shard)}
    with files.atomic_write(folder / f'{built.shard.file}.json') as file:
        file.write(json.dumps(values).encode() + b'\n')


def take_over(folder: pathlib.Path, other: pathlib.Path, name: str) -> Built | None:
    """Moves a shard and its journal here from another folder of the file system; None if they are not there, or yet.

    A second attempt at the same shard may replace either at any time.
    """
    built = read(other, name)
    if built is None or not (other / name).exists():
        return None
    files.commit_file(other / name, folder / name)
    if files.sha256_of(folder / name) != built.shard.sha256:
        (folder / name).unlink()
        (other / f'{name}.json').unlink(missing_ok=True)  # that attempt writes its own
        return None
    built = built._replace(mtime_ns=(folder / name).stat().st_mtime_ns)
    write(folder, built)
    (other / f'{name}.json').unlink(missing_ok=True)
    return built


def is_ours(name: str) -> bool:
    """Whether a name in RECORDS is one of a record set, of this journal, or a temporary one."""
    known = (records.MANIFEST, records.INDEX, *records.LISTS, FOLDER)
    return name in known or records.is_shard_file(name) or name.startswith(files.TEMPORARY_PREFIX)


def is_lasting(name: str) -> bool:
    """Whether a file of the journal's folder tells something once a conversion is done, on another machine too."""
    shard, _, ending = name.rpartition('.')
    return name in (_PLAN, COMPARED) or (ending == 'json' and records.is_shard_file(shard))


def restore_times(folder: pathlib.Path, sums: dict[str, str]) -> None:
    """Gives shards that were copied here, and have these sums, the times by which the journal knows them."""
    for name in names(folder):
        built = read(folder, name)
        if built and built.shard.sha256 == sums.get(name):
            os.utime(folder.parent / name, ns=(built.mtime_ns, built.mtime_ns))


def sweep(folder: pathlib.Path) -> None:
    """Removes what workers left that were killed."""
    for path in folder.glob(f'{files.TEMPORARY_PREFIX}*'):
        path.unlink()


def place(folder: pathlib.Path, built: Built) -> pathlib.Path | None:
    """Where the shard of this journal lies, waiting or in its place; None if it was changed or is gone."""
    for path in (folder / built.shard.file, folder.parent / built.shard.file):
        try:
            info = path.stat()
        except OSError:
            continue
        if (info.st_size, info.st_mtime_ns) == (built.shard.bytes, built.mtime_ns):
            return path
    return None


def settle(folder: pathlib.Path, name: str) -> bool:
    """Whether a shard that is built lies in its place; one that waits with the same bytes is given up for that."""
    built, there = load(folder, name), folder.parent / name
    found = place(folder, built)
    if found == folder / name and files.sha256_of(there) == built.shard.sha256:
        write(folder, built._replace(mtime_ns=there.stat().st_mtime_ns))  # first: else a full disk would lose the shard
        found = there
    if found == there:
        (folder / name).unlink(missing_ok=True)
    return found == there


def forget(folder: pathlib.Path, *, but: set[str]) -> None:
    """Removes what is known of shards, and shards that wait, other than those of these names; and what Beam left."""
    for path in folder.iterdir():
        name = path.name.removesuffix('.json')
        if path.name.startswith(SUBFOLDER_PREFIX):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name == COMPARED and but:
            continue
        elif path.name not in (_LOCK, _HOLDER, _PLAN) and not (records.is_shard_file(name) and name in but):
            path.unlink()
