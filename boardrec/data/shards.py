"""One shard: which files it is made of, and how a worker process makes it of them."""

from collections.abc import Iterator
import errno
import hashlib
import os
import pathlib
import time
from typing import NamedTuple
import warnings

from boardrec import progress
from boardrec.config import SPLITS, UserError
from boardrec.data import journal, records, scan, workers
from boardrec.data.journal import Built, Source
from boardrec.data.records import Storage

_SETTLED_NS = 2 * 10**9  # a file that was changed this recently may change again within a tick of its clock


class ShardPlan(NamedTuple):
    """One shard to build: its name and its files in order."""

    file: str
    split: str
    found: list[scan.Found]


class Job(NamedTuple):
    """What a worker needs to build a shard."""

    root: str
    folder: str  # where the shard and its journal go
    plan: ShardPlan
    classes: list[str]
    storage: Storage
    max_bytes: int  # of a file
    limits: tuple[int, int, float]  # images.Limits, of which this process knows nothing
    on_bad_image: str


def plan(found: list[scan.Found], shard_bytes: int, counts: dict[str, int] | None = None) -> list[ShardPlan]:
    """Puts each file into a shard: a bucket of a hash of its path, its place within by the same hash.

    A split has as many shards as `counts` says, or as make them about `shard_bytes` long.
    """
    plans = []
    for split in SPLITS:
        own = [item for item in found if item.split == split]
        if not own:
            continue
        count = (counts or {}).get(split) or max(1, round(sum(item.bytes for item in own) / shard_bytes))
        buckets: list[list[scan.Found]] = [[] for _ in range(count)]
        for item in own:
            buckets[_place(item)[0] * count >> 64].append(item)
        for bucket in buckets:
            bucket.sort(key=_place)
        plans += [ShardPlan(records.shard_file(split, i, count), split, bucket) for i, bucket in enumerate(buckets)]
    return plans


def _place(item: scan.Found) -> tuple[int, scan.Found]:
    return scan.path_hash('place', item.source), item


def build(job: Job, skipped: dict[int, str], watch: workers.Watch) -> int:
    """Builds one shard and its journal, in a worker process; returns how many files it rejected."""
    from boardrec.data import images  # imports TensorFlow: workers only
    folder, sources = pathlib.Path(job.folder), []

    def examples() -> Iterator[records.Example]:
        for number, item in enumerate(job.plan.found):
            watch.begin(number)
            read = None
            try:
                read = _read(job.root, item.source, job.max_bytes)
                if number in skipped:
                    raise images.Rejected(skipped[number])
                if read.data is None:
                    raise images.Rejected(f'too large: {read.bytes} bytes, at most {job.max_bytes}')
                image = images.prepare(read.data, job.storage, images.Limits(*job.limits)).stored
            except images.Rejected as error:
                reason = str(error)
            except OSError as error:
                reason = f'unreadable: {error.strerror}'
            else:
                reason = ''
            watch.end()
            stamp = (read.bytes, read.mtime_ns, read.sha256) if read else (item.bytes, item.mtime_ns, '')
            sources.append(Source(item.source, item.label, *stamp, offset=-1, reason=reason))
            if not reason:
                yield records.Example(image, job.classes.index(item.label), item.source, read.sha256)
            elif job.on_bad_image == 'fail':
                raise UserError(f'{os.path.join(job.root, item.source)}: {reason} (--on_bad_image=fail).')

    shard, offsets = records.write_shard(folder / job.plan.file, examples(), job.classes)
    of_record = iter(offsets)
    sources = [item if item.reason else item._replace(offset=next(of_record)) for item in sources]
    mtime_ns = (folder / job.plan.file).stat().st_mtime_ns
    journal.write(folder, Built(job.plan.split, job.classes, shard, mtime_ns, sources))
    return len(sources) - len(offsets)


def prepare_worker() -> None:
    progress.import_tensorflow()
    warnings.simplefilter('ignore')  # Pillow's, of odd files: what matters of them is in rejected.csv


class _Read(NamedTuple):
    """A file's bytes and what the journal says of them."""

    data: bytes | None  # None: too many
    bytes: int
    mtime_ns: int
    sha256: str


def _read(root: str, source: str, max_bytes: int) -> _Read:
    """Reads a file that stays as it is meanwhile. Raises OSError if it does not, twice."""
    for _ in range(2):
        with open(os.path.join(root, source), 'rb') as file:
            before = os.fstat(file.fileno())
            data = file.read() if before.st_size <= max_bytes else None
            digest = hashlib.file_digest(file, 'sha256') if data is None else hashlib.sha256(data)
            after = os.fstat(file.fileno())
        read_bytes = before.st_size if data is None else len(data)
        if (before.st_size, before.st_mtime_ns) == (read_bytes, after.st_mtime_ns):
            return _Read(data, read_bytes, settled(before.st_mtime_ns), digest.hexdigest())
    raise OSError(errno.EBUSY, 'it changes while it is read')


def settled(mtime_ns: int) -> int:
    """A time of change by which the same file is known again; 0 if it is too recent for that."""
    return mtime_ns if time.time_ns() - mtime_ns > _SETTLED_NS else 0
