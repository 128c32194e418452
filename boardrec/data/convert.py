"""From a folder of images to a record set: scan, plan, build shards in parallel, commit.

Where a file goes depends on its own path and on the settings alone: a hash of the path decides its place, so that it
stays where it is as others come and go. Each file found ends as a record or as a row of rejected.csv. What a shard was
made of is kept in the set's journal: so the same command goes on after any interruption, and builds only those shards
anew whose content changes.
This module runs in the converter's parent process, which stays without TensorFlow (560 MiB a process).
"""

from collections import Counter
from collections.abc import Iterator
import concurrent.futures
import errno
import hashlib
import os
import pathlib
import time
from typing import NamedTuple
import warnings

from boardrec import progress
from boardrec.config import ConvertConfig, SPLITS, UserError
from boardrec.data import files, journal, records, scan, storage_report, workers
from boardrec.data.journal import Built, Source
from boardrec.data.records import Storage

_BYTES_A_PIXEL = {'jpeg': 0.5, 'png': 1.6, 'raw': 3}  # of photographs, about: decides the number of shards
_SETTLED_NS = 2 * 10**9  # a file that was changed this recently may change again within a tick of its clock
_HASHING_THREADS = 8
_WORKER_BYTES = 8 << 30  # of address space: TensorFlow takes 2 GiB, an image of 100 megapixels some hundred MiB
# Settings that decide what becomes of a file, by flag. Others may change between two runs of a command.
_DECIDING = ('splits', 'group_by', 'encoding', 'image_size', 'resize', 'jpeg_quality', 'max_image_mib',
             'max_megapixels', 'max_side', 'max_side_ratio')


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


def convert(config: ConvertConfig) -> records.Manifest:
    """Converts config.input_dir into config.output_dir and returns the manifest; what is up to date is left alone.

    Raises UserError for input that cannot be used and for an output folder that holds something else.
    """
    root, output = pathlib.Path(config.input_dir), pathlib.Path(config.output_dir)
    _check_folders(root, output)
    found, rejected = scan.scan(config)
    classes = sorted({item.label for item in found})
    scan.check_classes(found, classes, root)
    scan.describe(root, found, rejected, classes)
    _check_output(output)
    with journal.locked(output) as folder:
        earlier = _earlier_plan(config, output, folder, found)
        plans = plan(found, source_bytes_a_shard(config, found), {} if config.reshard else earlier.shards)
        if storage_of(config).resize == 'pad':
            progress.say('note: predict and the export squash what is padded here: see how much that matters with '
                         'boardrec.evaluate --check_sources')
        journal.forget(folder, but={shard_plan.file for shard_plan in plans})
        current = _current(folder, root, plans, classes)
        to_build = [one for one in plans if one.file not in current]
        now = journal.Plan(_deciding(config), dict(Counter(one.split for one in plans)), complete=False)
        if to_build or now != earlier._replace(complete=False):
            journal.write_plan(folder, now)
        if current and to_build:
            progress.say(f'{len(current):,} of {len(plans):,} shards are up to date')
        bad = sum(len(journal.read(folder, name).rejected()) for name in current)
        storage, limits = storage_of(config), workers.Limits(config.seconds_an_image, _WORKER_BYTES)
        with workers.Pool(config.workers or os.cpu_count() or 1, limits, _prepare_worker) as pool:
            _build(config, pool, folder, to_build, classes, bad=bad, total=len(found))
            manifest, changed = _commit(pool, output, folder, plans, rejected, classes, storage)
            if changed:
                _describe(output, manifest)
            else:
                progress.say(f'{output} holds these images already; nothing to do.')
            if to_build and storage != records.KEEP:
                refused = {source for source, *_ in records.read_rejected(output)}
                storage_report.say(root, [item for item in found if item.source not in refused], manifest, pool)
        journal.write_plan(folder, now._replace(complete=True))
    return manifest


def _describe(output: pathlib.Path, manifest: records.Manifest) -> None:
    """Says what a conversion came to."""
    progress.say(f'{output}: {sum(split.records for split in manifest.splits.values()):,} records in '
                 f'{len(manifest.shards)} shards, {sum(shard.bytes for shard in manifest.shards) / 2**20:,.1f} MiB')
    rejected = records.read_rejected(output)
    if rejected:
        progress.say(f'{len(rejected):,} files became no record, the first {rejected[0][0]} ({rejected[0][1]}): '
                     f'{output / records.REJECTED}')


def plan(found: list[scan.Found], shard_bytes: int, counts: dict[str, int] | None = None) -> list[ShardPlan]:
    """Puts each file into a shard: a bucket of a hash of its path, its place within by the same hash.

    A split has as many shards as `counts` says, or as make them about `shard_bytes` long.
    """
    plans = []
    for split in SPLITS:
        own = sorted((scan.path_hash('place', item.source), item) for item in found if item.split == split)
        if not own:
            continue
        count = (counts or {}).get(split) or max(1, round(sum(item.bytes for _, item in own) / shard_bytes))
        buckets: list[list[scan.Found]] = [[] for _ in range(count)]
        for number, item in own:
            buckets[number * count >> 64].append(item)
        plans += [ShardPlan(records.shard_file(split, i, count), split, bucket) for i, bucket in enumerate(buckets)]
    return plans


def source_bytes_a_shard(config: ConvertConfig, found: list[scan.Found]) -> int:
    """How many bytes of sources make a shard of about --shard_mib, whatever is made of them."""
    wanted, size = config.shard_mib << 20, config.height_width()
    if size is None:
        return wanted
    stored = len(found) * size[0] * size[1] * _BYTES_A_PIXEL[config.encoding]
    return max(1, round(wanted * sum(item.bytes for item in found) / stored))


def build_shard(job: Job, skipped: dict[int, str], watch: workers.Watch) -> int:
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


def _prepare_worker() -> None:
    progress.import_tensorflow()
    warnings.simplefilter('ignore')  # Pillow's, of odd files: what matters of them is in rejected.csv


def storage_of(config: ConvertConfig) -> Storage:
    """What the records of a conversion hold."""
    size = config.height_width()
    return Storage(config.encoding, size, config.resize if size else None,
                   config.jpeg_quality if config.encoding == 'jpeg' else None)


def _check_folders(root: pathlib.Path, output: pathlib.Path) -> None:
    if not root.is_dir():
        raise UserError(f'--input_dir={root}: {"is no folder" if root.exists() else "there is no such folder"}.')
    if root.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f'--output_dir={output} lies within --input_dir={root}: name a folder outside of it.')
    if any('\udc80' <= letter <= '\udcff' for letter in str(output)):
        raise UserError(f'--output_dir={str(output)!r}: TensorFlow takes no path that is not UTF-8; name another.')
    if output.exists() and not output.is_dir():
        raise UserError(f'--output_dir={output} is a file: name a folder.')


def _check_output(output: pathlib.Path) -> None:
    """Raises UserError if the folder holds anything that is not a record set's."""
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    foreign = sorted(name for name in names if not _is_ours(name))
    if foreign:
        raise UserError(f'--output_dir={output} holds {foreign[0]}, which is no part of a record set: '
                        'name another folder.')


def _is_ours(name: str) -> bool:
    known = (records.MANIFEST, records.INDEX, records.REJECTED, *records.TFDS_FILES, journal.FOLDER)
    return name in known or records.is_shard_file(name) or name.startswith(files.TEMPORARY_PREFIX)


def _deciding(config: ConvertConfig) -> dict[str, str]:
    return {name: str(getattr(config, name)) for name in _DECIDING}


def _earlier_plan(config: ConvertConfig, output: pathlib.Path, folder: pathlib.Path, found: list[scan.Found]
                  ) -> journal.Plan:
    """The plan that a conversion goes on with: an earlier one's, or one that knows nothing.

    Raises UserError where what is there was made otherwise, or of other images, and may not be replaced.
    """
    deciding, earlier = _deciding(config), journal.read_plan(folder)
    there = (output / records.MANIFEST).exists()
    nothing = journal.Plan(deciding, {}, complete=False)
    interrupted = earlier is not None and not earlier.complete and earlier.settings == deciding
    if config.overwrite and not interrupted:
        journal.forget(folder, but=set())
        return nothing
    if earlier is None:
        if there:
            raise UserError(f'{output} holds records without the journal ({journal.FOLDER}/) of how they were made: '
                            'name another --output_dir, or add --overwrite.')
        return nothing
    changed = [name for name in _DECIDING if earlier.settings.get(name) != deciding[name]]
    if changed:
        raise UserError(f'{output} was converted with --{changed[0]}={earlier.settings.get(changed[0], "")}, not '
                        f'{deciding[changed[0]]}: name another --output_dir, or add --overwrite.')
    if there and not config.overwrite:
        sources = {item.source for item in found}
        known = list(_sources(folder))  # none: an earlier --reshard was interrupted at its first shard
        if known and sources.isdisjoint(known):
            raise UserError(f'{output} holds records of other images, none of which is in --input_dir='
                            f'{config.input_dir}: name another --output_dir, or add --overwrite.')
    return earlier


def _sources(folder: pathlib.Path) -> Iterator[str]:
    """What the shards that the journal knows were made of."""
    for name in journal.names(folder):
        built = journal.read(folder, name)
        yield from (item.source for item in built.sources) if built else ()


def _current(folder: pathlib.Path, root: pathlib.Path, plans: list[ShardPlan], classes: list[str]) -> set[str]:
    """The shards that are built, and all of whose files are as they were then."""
    with concurrent.futures.ThreadPoolExecutor(_HASHING_THREADS) as threads:
        return {one.file for one in plans if _is_current(folder, root, one, classes, threads)}


def _is_current(folder: pathlib.Path, root: pathlib.Path, shard_plan: ShardPlan, classes: list[str],
                threads: concurrent.futures.Executor) -> bool:
    built = journal.read(folder, shard_plan.file)
    if built is None or built.classes != classes or journal.place(folder, built) is None:
        return False
    if any(item.reason in (workers.CRASH, workers.TIME_LIMIT) for item in built.sources):
        return False  # it may have been the machine's fault, not the file's
    pairs = list(zip(shard_plan.found, built.sources, strict=False))
    if len(shard_plan.found) != len(built.sources) or any(
            (now.source, now.label, now.bytes) != (then.source, then.label, then.bytes) for now, then in pairs):
        return False
    touched = [now for now, then in pairs if now.mtime_ns != then.mtime_ns or not then.sha256]
    sums = dict(zip((now.source for now in touched), threads.map(_sum, (root / now.source for now in touched)),
                    strict=True))
    if any(sums.get(then.source, then.sha256) != then.sha256 for _, then in pairs):
        return False
    if touched:
        sources = [then._replace(mtime_ns=_settled(now.mtime_ns)) for now, then in pairs]
        journal.write(folder, built._replace(sources=sources))
    return True


def _sum(path: pathlib.Path) -> str:
    try:
        return files.sha256_of(path)
    except OSError:
        return ''


def _build(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, plans: list[ShardPlan],
           classes: list[str], *, bad: int, total: int) -> None:
    """Builds these shards in the pool's processes; `bad` files of `total` were rejected before."""
    limits = (round(config.max_megapixels * 1e6), config.max_side, config.max_side_ratio)
    jobs = [Job(config.input_dir, str(folder), one, classes, storage_of(config), config.max_image_mib << 20, limits,
                config.on_bad_image) for one in plans]
    with progress.bar('converting', total=sum(len(one.found) for one in plans), unit='images') as bar:
        for _, rejected in pool.run(build_shard, jobs, lambda done: bar.update(min(done, bar.total) - bar.n)):
            bad += rejected
            if bad > config.max_bad_fraction * total:
                raise UserError(
                    f'{bad} of {total} files can become no record, which is more than --max_bad_fraction='
                    f'{config.max_bad_fraction}: see {_list_bad(folder)}; mend or remove them, or allow more.')


def _list_bad(folder: pathlib.Path) -> pathlib.Path:
    """Writes what the shards that are built could not take to a file of the journal."""
    built = filter(None, (journal.read(folder, name) for name in journal.names(folder)))
    records.write_rejected(folder, (row for one in built for row in one.rejected()))
    return folder / records.REJECTED


def _commit(pool: workers.Pool, output: pathlib.Path, folder: pathlib.Path, plans: list[ShardPlan],
            rejected: list[scan.Rejection], classes: list[str], storage: Storage) -> tuple[records.Manifest, bool]:
    """Makes the built shards a record set, the manifest last; whether there was anything to do for that."""
    shards, counts, rejected = {}, {}, list(rejected)
    for one in plans:
        built = journal.read(folder, one.file)
        shards[one.file] = built.shard
        counts.setdefault(one.split, Counter()).update(built.shard.class_counts)
        rejected += built.rejected()
    rejected.sort()
    trained = counts.get('train', {})
    lacking = [name for name in classes if not trained.get(name)]
    if lacking:
        records.write_rejected(folder, rejected)
        raise UserError(f'every training image of class {lacking[0]!r} was rejected: see '
                        f'{folder / records.REJECTED}.')
    plans = [one for one in plans if counts[one.split].total()]  # TFDS reads no empty split
    splits = {split: records.Split(counts[split].total(), sum(one.split == split for one in plans), dict(counts[split]))
              for split in SPLITS if split in counts and counts[split].total()}
    size = None if storage.image_size is None else list(storage.image_size)
    manifest = records.Manifest(
        class_names=classes, encoding=storage.encoding, image_size=size, resize=storage.resize, quality=storage.quality,
        splits=splits, shards=[shards[one.file] for one in plans],
        index_sha256=records.index_sha256(_rows(folder, plans)))
    if _is_there(output, folder, manifest, rejected):
        return manifest, False
    # From here to the end there is no manifest: a reader finds no set rather than half of two.
    (output / records.MANIFEST).unlink(missing_ok=True)
    keep = {one.file for one in plans} | {records.INDEX, records.REJECTED, *records.TFDS_FILES, journal.FOLDER}
    for path in output.iterdir():
        if path.name not in keep:
            path.unlink()
    for one in plans:
        place = journal.place(folder, journal.read(folder, one.file))
        if place.parent == folder:
            os.replace(place, output / one.file)
    records.write_rejected(output, rejected)
    records.write_index(output, _rows(folder, plans))
    pool.call(records.write_tfds_metadata, output, manifest)  # a worker, because TFDS imports TensorFlow
    records.write_manifest(output, manifest)
    return manifest, True


def _is_there(output: pathlib.Path, folder: pathlib.Path, manifest: records.Manifest,
              rejected: list[scan.Rejection]) -> bool:
    """Whether all of the set is in its place already."""
    try:
        return (records.read_manifest(output) == manifest
                and files.sha256_of(output / records.INDEX) == manifest.index_sha256
                and records.read_rejected(output) == [tuple(row) for row in rejected]
                and all((output / name).is_file() for name in records.TFDS_FILES)
                and all(journal.place(folder, journal.read(folder, shard.file)) == output / shard.file
                        for shard in manifest.shards))
    except (UserError, OSError):
        return False


def _rows(folder: pathlib.Path, plans: list[ShardPlan]) -> Iterator[records.Row]:
    record_id = 0
    for one in plans:
        for item in journal.read(folder, one.file).made():
            yield records.Row(record_id, item.source, item.sha256, one.split, item.label, one.file, item.offset)
            record_id += 1


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
            return _Read(data, read_bytes, _settled(before.st_mtime_ns), digest.hexdigest())
    raise OSError(errno.EBUSY, 'it changes while it is read')


def _settled(mtime_ns: int) -> int:
    """A time of change by which the same file is known again; 0 if it is too recent for that."""
    return mtime_ns if time.time_ns() - mtime_ns > _SETTLED_NS else 0
