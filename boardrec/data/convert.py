"""From a folder of images to a record set: scan, plan, build shards in parallel, commit.

Where a file goes depends on its own path and on the settings alone: a hash of the path decides its place, so that it
stays where it is as others come and go. Each file found ends as a record or as a row of rejected.csv.
This module runs in the converter's parent process, which stays without TensorFlow (560 MiB a process).
"""

from collections import Counter
from collections.abc import Iterator
import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import os
import pathlib
import signal
import threading
from typing import Any, NamedTuple
import warnings

from boardrec import progress
from boardrec.config import ConvertConfig, SPLITS, UserError
from boardrec.data import files, records, scan, storage_report
from boardrec.data.records import Storage

_POLL_SECONDS = 0.2
_BYTES_A_PIXEL = {'jpeg': 0.5, 'png': 1.6, 'raw': 3}  # of photographs, about: decides the number of shards


class ShardPlan(NamedTuple):
    """One shard to build: its name and its files in order."""

    file: str
    split: str
    found: list[scan.Found]


class BuiltShard(NamedTuple):
    """What building a shard gave; `made` and `offsets` have one entry for each record in it."""

    split: str
    shard: records.Shard
    made: list[tuple[scan.Found, str]]  # with the sha256 of the source's bytes
    offsets: list[int]
    rejected: list[scan.Rejection]


def convert(config: ConvertConfig) -> records.Manifest:
    """Converts config.input_dir into config.output_dir and returns the manifest; up-to-date output is left alone.

    Raises UserError for input that cannot be used and for an output folder that holds something else.
    """
    root, output = pathlib.Path(config.input_dir), pathlib.Path(config.output_dir)
    _check_folders(root, output)
    found, rejected = scan.scan(config)
    classes = sorted({item.label for item in found})
    scan.check_classes(found, classes, root)
    scan.describe(root, found, rejected, classes)
    storage = _storage(config)
    plans = plan(found, source_bytes_a_shard(config, found))
    earlier = _existing(config, output)
    other = _difference(earlier.storage, storage) if earlier else ''
    if earlier and not other and _is_up_to_date(output, root, plans, rejected):
        progress.say(f'{output} holds these images already; nothing to do.')
        return earlier
    if earlier and not config.overwrite:
        raise UserError(f'{output} holds records of other images or settings{other}: name another --output_dir, '
                        'or add --overwrite.')
    if storage.resize == 'pad':
        progress.say('note: predict and the export squash what is padded here: see how much that matters with '
                     'boardrec.evaluate --check_sources')
    output.mkdir(parents=True, exist_ok=True)
    _clear(output)
    with _workers(min(config.workers or os.cpu_count() or 1, len(plans))) as (executor, done):
        built = _build_all(config, plans, classes, storage, executor=executor, done=done)
        manifest = _commit(output, built, rejected, classes, storage, executor)
        if storage != records.KEEP:
            sources = [item for shard in built for item, _ in shard.made]
            storage_report.say(root, sources, manifest, executor)
    return manifest


def plan(found: list[scan.Found], shard_bytes: int) -> list[ShardPlan]:
    """Puts each file into a shard: a bucket of a hash of its path, its place within by the same hash."""
    plans = []
    for split in SPLITS:
        own = sorted((scan.path_hash('place', item.source), item) for item in found if item.split == split)
        if not own:
            continue
        count = max(1, round(sum(item.bytes for _, item in own) / shard_bytes))
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


def build_shard(root: str, output: str, shard_plan: ShardPlan, classes: list[str], storage: Storage) -> BuiltShard:
    """Builds one shard, in a worker process."""
    from boardrec.data import images  # imports TensorFlow: workers only
    made, rejected = [], []

    def examples() -> Iterator[records.Example]:
        for item in shard_plan.found:
            digest = ''
            try:
                data = _read(root, item.source)
                digest = hashlib.sha256(data).hexdigest()
                image = images.prepare(data, storage).stored
            except images.Rejected as error:
                rejected.append(scan.Rejection(item.source, str(error), digest))
            except OSError as error:
                rejected.append(scan.Rejection(item.source, f'unreadable: {error.strerror}'))
            else:
                made.append((item, digest))
                yield records.Example(image, classes.index(item.label), item.source, digest)
            _count_one()

    shard, offsets = records.write_shard(pathlib.Path(output, shard_plan.file), examples(), classes)
    return BuiltShard(shard_plan.split, shard, made, offsets, rejected)


def _storage(config: ConvertConfig) -> Storage:
    size = config.height_width()
    return Storage(config.encoding, size, config.resize if size else None,
                   config.jpeg_quality if config.encoding == 'jpeg' else None)


def _difference(there: Storage, asked: Storage) -> str:
    """What of a storage is not as it was asked for, in brackets; '' if all is."""
    def shown(value: Any) -> str:
        return 'x'.join(map(str, value)) if isinstance(value, tuple) else str(value)

    changed = [f'{name} {shown(before)}, not {shown(now)}'
               for name, before, now in zip(Storage._fields, there, asked, strict=True) if before != now]
    return f' ({"; ".join(changed)})' if changed else ''


def _check_folders(root: pathlib.Path, output: pathlib.Path) -> None:
    if not root.is_dir():
        raise UserError(f'--input_dir={root}: {"is no folder" if root.exists() else "there is no such folder"}.')
    if root.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f'--output_dir={output} lies within --input_dir={root}: name a folder outside of it.')
    if any('\udc80' <= letter <= '\udcff' for letter in str(output)):
        raise UserError(f'--output_dir={str(output)!r}: TensorFlow takes no path that is not UTF-8; name another.')
    if output.exists() and not output.is_dir():
        raise UserError(f'--output_dir={output} is a file: name a folder.')


def _existing(config: ConvertConfig, output: pathlib.Path) -> records.Manifest | None:
    """The manifest that is there already. Raises UserError if the folder holds anything that is not a record set's."""
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    foreign = sorted(name for name in names if not _is_ours(name))
    if foreign:
        raise UserError(f'--output_dir={output} holds {foreign[0]}, which is no part of a record set: '
                        'name another folder.')
    if records.MANIFEST not in names:
        return None
    try:
        return records.read_manifest(output)
    except UserError:
        if config.overwrite:
            return None
        raise


def _is_ours(name: str) -> bool:
    known = (records.MANIFEST, records.INDEX, records.REJECTED, *records.TFDS_FILES)
    return name in known or records.is_shard_file(name) or name.startswith(files.TEMPORARY_PREFIX)


def _clear(output: pathlib.Path) -> None:
    """Removes an earlier set, its manifest first, so that no reader takes what follows for complete."""
    (output / records.MANIFEST).unlink(missing_ok=True)
    for path in output.iterdir():
        path.unlink()


def _is_up_to_date(output: pathlib.Path, root: pathlib.Path, plans: list[ShardPlan], rejected: list[scan.Rejection]
                   ) -> bool:
    """Whether the same files, with the same bytes and the same places, are records or rejections there already."""
    try:
        shards = records.open_record_set(output).manifest.shards
        made = {row.source: (row.shard, row.label, row.sha256) for row in records.read_index(output)}
        refused = {source: (reason, digest) for source, reason, digest in records.read_rejected(output)}
    except (UserError, OSError):
        return False
    if any(files.sha256_of(output / shard.file) != shard.sha256 for shard in shards):
        return False
    planned = [(shard_plan.file, item) for shard_plan in plans for item in shard_plan.found]
    if set(made) | set(refused) != {item.source for _, item in planned} | {item.source for item in rejected}:
        return False
    if any(refused.get(item.source, ('',))[0] != item.reason for item in rejected):
        return False
    for file, item in planned:
        try:
            digest = files.sha256_of(root / item.source)
        except OSError:
            digest = ''
        as_record = made.get(item.source) == (file, item.label, digest)
        as_rejection = item.source in refused and refused[item.source][1] == digest
        if not as_record and not as_rejection:
            return False
    return True


@contextlib.contextmanager
def _workers(count: int) -> Iterator[tuple[concurrent.futures.Executor, Any]]:
    """Yields an executor of worker processes and their count of images dealt with; they stop when the block ends."""
    context = multiprocessing.get_context('spawn')  # a forked TensorFlow deadlocks
    done, stop = context.Value('q', 0), context.Event()
    executor = concurrent.futures.ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(done, stop))
    try:
        yield executor, done
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError('a worker process died, probably for want of memory: free some, or take fewer with --workers; '
                        'then run the same command again.') from None
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _build_all(config: ConvertConfig, plans: list[ShardPlan], classes: list[str], storage: Storage, *,
               executor: concurrent.futures.Executor, done: Any) -> list[BuiltShard]:
    """Builds the shards in the executor's processes; the result is in the plan's order."""
    total = sum(len(shard_plan.found) for shard_plan in plans)
    with progress.bar('converting', total=total, unit='images') as bar:
        with _held_back(signal.SIGINT):  # workers are started here
            futures = [executor.submit(build_shard, config.input_dir, config.output_dir, shard_plan, classes, storage)
                       for shard_plan in plans]
        waiting: set[concurrent.futures.Future] = set(futures)
        while waiting:
            finished, waiting = concurrent.futures.wait(waiting, timeout=_POLL_SECONDS, return_when='FIRST_EXCEPTION')
            bar.update(done.value - bar.n)
            for future in finished:
                future.result()
    return [future.result() for future in futures]


@contextlib.contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Delivers a signal after the block only; processes that are started in it never get it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker(NamedTuple):
    """What a worker shares with the parent."""

    done: Any  # multiprocessing.Value: images dealt with, over all workers
    stop: Any  # multiprocessing.Event: set when the parent wants no more


_worker: _Worker | None = None


def _start_worker(done: Any, stop: Any) -> None:
    global _worker
    _worker = _Worker(done, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides, and sets `stop`
    # A parent killed outright sets nothing, and the executor's workers would wait for it for ever.
    threading.Thread(target=_die_with_parent, daemon=True).start()
    progress.import_tensorflow()
    warnings.simplefilter('ignore')  # Pillow's, of odd files: what matters of them is in rejected.csv


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _count_one() -> None:
    """Tells the parent that one more image is dealt with."""
    if _worker is None:  # called in-process, by a test or another engine
        return
    if _worker.stop.is_set():
        raise InterruptedError('the converter was stopped')
    with _worker.done.get_lock():
        _worker.done.value += 1


def _commit(output: pathlib.Path, built: list[BuiltShard], rejected: list[scan.Rejection], classes: list[str],
            storage: Storage, executor: concurrent.futures.Executor) -> records.Manifest:
    """Writes what stands beside the shards, the manifest last."""
    splits = {}
    for split in SPLITS:
        shards = [item.shard for item in built if item.split == split]
        if any(shard.records for shard in shards):
            counts = Counter()
            for shard in shards:
                counts.update(shard.class_counts)
            splits[split] = records.Split(sum(shard.records for shard in shards), len(shards), dict(counts))
    trained = splits['train'].class_counts if 'train' in splits else {}
    lacking = [name for name in classes if not trained.get(name)]
    rejected = sorted(rejected + [row for item in built for row in item.rejected])
    records.write_rejected(output, rejected)
    if lacking:
        raise UserError(f'every training image of class {lacking[0]!r} was rejected: see {output / records.REJECTED}.')
    for item in built:
        if item.split not in splits:  # all of it was rejected; TFDS reads no empty split
            (output / item.shard.file).unlink()
    built = [item for item in built if item.split in splits]
    index_sha256 = records.write_index(output, _rows(built))
    size = None if storage.image_size is None else list(storage.image_size)
    manifest = records.Manifest(
        class_names=classes, encoding=storage.encoding, image_size=size, resize=storage.resize, quality=storage.quality,
        splits=splits, shards=[item.shard for item in built], index_sha256=index_sha256)
    executor.submit(records.write_tfds_metadata, output, manifest).result()  # a worker, because TFDS imports TensorFlow
    records.write_manifest(output, manifest)
    made = sum(split.records for split in splits.values())
    progress.say(f'{output}: {made:,} records in {len(built)} shards, '
                 f'{sum(item.shard.bytes for item in built) / 2**20:,.1f} MiB')
    if rejected:
        progress.say(f'{len(rejected):,} files became no record, the first {rejected[0].source} '
                     f'({rejected[0].reason}): {output / records.REJECTED}')
    return manifest


def _rows(built: list[BuiltShard]) -> Iterator[records.Row]:
    record_id = 0
    for item in built:
        for (found, digest), offset in zip(item.made, item.offsets, strict=True):
            yield records.Row(record_id, found.source, digest, found.split, found.label, item.shard.file, offset)
            record_id += 1


def _read(root: str, source: str) -> bytes:
    with open(os.path.join(root, source), 'rb') as file:
        return file.read()
