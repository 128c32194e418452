"""One shard: which files it is made of, and how a worker process makes it of them."""

from collections.abc import Iterator
import os
import pathlib
from typing import NamedTuple
import warnings

import numpy as np

from boardrec import progress
from boardrec.config import ConvertConfig, SPLITS, UserError
from boardrec.data import journal, perceptual, records, scan, source_file, tfrecord, workers
from boardrec.data.journal import Built, Source
from boardrec.data.records import Storage
from boardrec.data.table import Table


class ShardPlan(NamedTuple):
    """One shard to build: its name and its files in order."""

    file: str
    split: str
    found: Table[scan.Found]


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
    dropped: dict[str, str] = {}  # noqa: RUF012 (never changed) sources that are to become no record, with the reason


def limits_of(config: ConvertConfig) -> tuple[int, int, int, float]:
    """What an image may have: bytes, then as images.Limits says."""
    return config.max_image_mib << 20, round(config.max_megapixels * 1e6), config.max_side, config.max_side_ratio


def plan(found: Table[scan.Found], shard_bytes: int, counts: dict[str, int] | None = None) -> list[ShardPlan]:
    """Puts each file into a shard: a bucket of a hash of its path, its place within by the same hash.

    A split has as many shards as `counts` says, or as make them about `shard_bytes` long.
    """
    plans = []
    places = np.fromiter((scan.path_hash('place', source) for source in found.column('source')), np.uint64, len(found))
    splits = np.fromiter(map(SPLITS.index, found.column('split')), np.int8, len(found))
    sizes = np.array(found.column('bytes'))
    order = np.argsort(places, kind='stable')
    for number, split in enumerate(SPLITS):
        own = order[splits[order] == number]
        if len(own):
            count = (counts or {}).get(split) or max(1, round(int(sizes[own].sum()) / shard_bytes))
            starts = [-(-(bucket << 64) // count) for bucket in range(1, count)]
            buckets = np.split(own, np.searchsorted(places[own], np.array(starts, np.uint64)))
            plans += [ShardPlan(records.shard_file(split, i, count), split, found.take(bucket.tolist()))
                      for i, bucket in enumerate(buckets)]
    return plans


def build(job: Job, skipped: dict[int, str], watch: workers.Watch) -> list[scan.Rejection]:
    """Builds one shard and its journal, in a worker process; returns which files can be no record."""
    from boardrec.data import images  # imports TensorFlow: workers only
    folder, sources = pathlib.Path(job.folder), []

    def examples() -> Iterator[tfrecord.Example]:
        for number, item in enumerate(job.plan.found):
            watch.begin(number)
            read, perceptual_hash = None, ''
            try:
                read = source_file.read(job.root, item, job.max_bytes)
                if number in skipped:
                    raise images.Rejected(skipped[number])
                if read.data is None:
                    raise images.Rejected(f'too large: {read.bytes} bytes, at most {job.max_bytes}')
                image = images.prepare(read.data, job.storage, images.Limits(*job.limits))
            except images.Rejected as error:
                reason = str(error)
            except OSError as error:
                reason = f'unreadable: {error.strerror}'
            except MemoryError:
                reason = workers.OUT_OF_MEMORY
            else:
                reason, perceptual_hash = job.dropped.get(item.source, ''), f'{image.perceptual_hash:016x}'
            watch.end()
            stamp = (read.bytes, read.changed_ns, read.sha256) if read else (item.bytes, item.changed_ns, '')
            sources.append(Source(item.source, item.label, *stamp, -1, reason, perceptual_hash))
            if not reason:
                yield tfrecord.Example(image.stored, job.classes.index(item.label), item.source, read.sha256)
            elif job.on_bad_image == 'fail' and not perceptual_hash:
                raise UserError(f'{os.path.join(job.root, item.source)}: {reason} (--on_bad_image=fail).')

    shard, offsets = tfrecord.write_shard(folder / job.plan.file, examples(), job.classes)
    of_record = iter(offsets)
    sources = [item if item.reason else item._replace(offset=next(of_record)) for item in sources]
    try:
        mtime_ns = (folder / job.plan.file).stat().st_mtime_ns
    except FileNotFoundError:  # another attempt of a Beam pipeline, whose parent has taken it
        mtime_ns = 0
    built = Built(job.plan.split, job.classes, shard, mtime_ns, sources, perceptual.VERSION)
    journal.write(folder, built)
    return built.bad()


def prepare_worker() -> None:
    """What a worker process does first."""
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # images are decoded on the CPU; a GPU's context takes its memory
    progress.import_tensorflow()
    warnings.simplefilter('ignore')  # Pillow's, of odd files: what matters of them is in rejected.csv
