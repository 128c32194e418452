"""From a folder of images to a record set: scan, plan, build shards in parallel, commit.

Where a file goes depends on its own path and on the settings alone: a hash of the path decides its split and its
place, so that it stays where it is as others come and go. Each file found ends as a record or as a row of rejected.csv.
This module runs in the converter's parent process, which stays without TensorFlow (560 MiB a process).
"""

from collections import Counter
from collections.abc import Iterator
import concurrent.futures
import contextlib
import csv
import hashlib
import multiprocessing
import os
import pathlib
import signal
import stat
import threading
from typing import Any, NamedTuple
import warnings

from boardrec import progress
from boardrec.config import ConvertConfig, SPLITS, UserError
from boardrec.data import files, records

_POLL_SECONDS = 0.2
_CLASSES_SHOWN = 10


class Found(NamedTuple):
    """One file that is to become a record."""

    source: str  # relative to the input root
    split: str
    label: str
    bytes: int


class Rejection(NamedTuple):
    """One file that becomes no record, and why."""

    source: str
    reason: str
    sha256: str = ''  # of the bytes that were refused, if it came to reading them


class ShardPlan(NamedTuple):
    """One shard to build: its name and its files in order."""

    file: str
    split: str
    found: list[Found]


class BuiltShard(NamedTuple):
    """What building a shard gave; `made` and `offsets` have one entry for each record in it."""

    split: str
    shard: records.Shard
    made: list[tuple[Found, str]]  # with the sha256 of the source's bytes
    offsets: list[int]
    rejected: list[Rejection]


def convert(config: ConvertConfig) -> records.Manifest:
    """Converts config.input_dir into config.output_dir and returns the manifest; up-to-date output is left alone.

    Raises UserError for input that cannot be used and for an output folder that holds something else.
    """
    root, output = pathlib.Path(config.input_dir), pathlib.Path(config.output_dir)
    _check_folders(root, output)
    found, rejected = scan(config)
    classes = sorted({item.label for item in found})
    _check_classes(found, classes, root)
    _describe(root, found, rejected, classes)
    plans = plan(found, config.shard_mib << 20)
    earlier = _existing(config, output)
    if earlier and _is_up_to_date(output, root, plans, rejected):
        progress.say(f'{output} holds these images already; nothing to do.')
        return earlier
    if earlier and not config.overwrite:
        raise UserError(f'{output} holds records of other images or settings: name another --output_dir, '
                        'or add --overwrite.')
    output.mkdir(parents=True, exist_ok=True)
    _clear(output)
    with _workers(min(config.workers or os.cpu_count() or 1, len(plans))) as (executor, done):
        built = _build_all(config, plans, classes, executor=executor, done=done)
        return _commit(output, built, rejected, classes, executor)


def scan(config: ConvertConfig) -> tuple[list[Found], list[Rejection]]:
    """Finds the files below config.input_dir and what split and class each belongs to, sorted by path."""
    root = pathlib.Path(config.input_dir)
    regular, rejected = walk(root)
    if not regular:
        raise UserError(f'--input_dir={root}: no files in it; images belong into CLASS/ or '
                        '{train,val,test}/CLASS/ there.')
    if config.labels_csv:
        found, others = _by_labels_csv(config, regular)
    else:
        found, others = _by_folders(config, root, regular)
    if not found:
        raise UserError(f'--input_dir={root}: no file lies in a class folder: images belong into CLASS/ or '
                        '{train,val,test}/CLASS/ there, or name a --labels_csv.')
    told = {item.source for item in rejected}
    return found, sorted(rejected + [item for item in others if item.source not in told])


def plan(found: list[Found], shard_bytes: int) -> list[ShardPlan]:
    """Puts each file into a shard: a bucket of a hash of its path, its place within by the same hash."""
    plans = []
    for split in SPLITS:
        own = sorted((_hash('place', item.source), item) for item in found if item.split == split)
        if not own:
            continue
        count = max(1, round(sum(item.bytes for _, item in own) / shard_bytes))
        buckets: list[list[Found]] = [[] for _ in range(count)]
        for number, item in own:
            buckets[number * count >> 64].append(item)
        plans += [ShardPlan(records.shard_file(split, i, count), split, bucket) for i, bucket in enumerate(buckets)]
    return plans


def build_shard(root: str, output: str, shard_plan: ShardPlan, classes: list[str]) -> BuiltShard:
    """Builds one shard, in a worker process."""
    from boardrec.data import images  # imports TensorFlow: workers only
    made, rejected = [], []

    def examples() -> Iterator[records.Example]:
        for item in shard_plan.found:
            digest = ''
            try:
                data = _read(root, item.source)
                digest = hashlib.sha256(data).hexdigest()
                image = images.normalise(data)
            except images.Rejected as error:
                rejected.append(Rejection(item.source, str(error), digest))
            except OSError as error:
                rejected.append(Rejection(item.source, f'unreadable: {error.strerror}'))
            else:
                made.append((item, digest))
                yield records.Example(image, classes.index(item.label), item.source, digest)
            _count_one()

    shard, offsets = records.write_shard(pathlib.Path(output, shard_plan.file), examples(), classes)
    return BuiltShard(shard_plan.split, shard, made, offsets, rejected)


def _hash(salt: str, source: str) -> int:
    """A uniform 64-bit number from a path; the salt keeps the choice of split and of place independent."""
    return int.from_bytes(hashlib.sha256(salt.encode() + b'\0' + os.fsencode(source)).digest()[:8], 'big')


def _check_folders(root: pathlib.Path, output: pathlib.Path) -> None:
    if not root.is_dir():
        raise UserError(f'--input_dir={root}: {"is no folder" if root.exists() else "there is no such folder"}.')
    if root.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f'--output_dir={output} lies within --input_dir={root}: name a folder outside of it.')
    if any('\udc80' <= letter <= '\udcff' for letter in str(output)):
        raise UserError(f'--output_dir={str(output)!r}: TensorFlow takes no path that is not UTF-8; name another.')
    if output.exists() and not output.is_dir():
        raise UserError(f'--output_dir={output} is a file: name a folder.')


def walk(root: pathlib.Path) -> tuple[list[tuple[str, int]], list[Rejection]]:
    """Every regular file below root as (relative path, bytes), through links, each folder once; and all that is not."""
    regular, rejected, seen = [], [], set()

    def relative(path: str) -> str:
        return os.path.relpath(path, root)

    def unreadable(error: OSError) -> None:
        rejected.append(Rejection(relative(error.filename), f'unreadable folder: {error.strerror}'))

    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in seen:
            rejected.append(Rejection(relative(folder), 'folder found a second time, through a link'))
            subfolders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        subfolders.sort()
        for name in names:
            path = os.path.join(folder, name)
            try:
                info = os.stat(path)
            except OSError as error:
                rejected.append(Rejection(relative(path), f'unreadable: {error.strerror}'))
                continue
            if stat.S_ISREG(info.st_mode):
                regular.append((relative(path), info.st_size))
            else:
                rejected.append(Rejection(relative(path), 'not a regular file'))
    return sorted(regular), rejected


def _by_folders(config: ConvertConfig, root: pathlib.Path, regular: list[tuple[str, int]]
                ) -> tuple[list[Found], list[Rejection]]:
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    train = root / 'train'
    has_splits = train.is_dir() and any(entry.is_dir() for entry in train.iterdir())
    if has_splits and not set(folders) <= set(SPLITS):
        other = min(set(folders) - set(SPLITS))
        raise UserError(f'--input_dir={root} has train/, so its folders must be among train, val and test: '
                        f'rename or move away {other}/.')
    depth = 2 if has_splits else 1
    tops = [(split, root / split) for split in folders] if has_splits else [(None, root)]
    for _, top in tops:
        _refuse_empty_classes(top, depth, regular, root)
    found, rejected = [], []
    for source, size in regular:
        parts = pathlib.PurePath(source).parts
        if len(parts) <= depth:
            rejected.append(Rejection(source, 'not in a class folder'))
            continue
        split = parts[0] if has_splits else _split_of(source, config)
        found.append(Found(source, split, parts[depth - 1], size))
    return found, rejected


def _refuse_empty_classes(top: pathlib.Path, depth: int, regular: list[tuple[str, int]], root: pathlib.Path) -> None:
    filled = {pathlib.PurePath(source).parts[:depth] for source, _ in regular}
    for entry in sorted(top.iterdir()):
        if entry.is_dir() and entry.relative_to(root).parts not in filled:
            raise UserError(f'{entry}: a class with no images; put some there or remove the folder.')


def _split_of(source: str, config: ConvertConfig) -> str:
    """The split whose stretch of [0, 1) the path's hash falls into; the same thresholds for each class."""
    place, end = _hash('split', source) / 2**64, 0.0
    for split, fraction in config.split_fractions().items():
        end += fraction
        if place < end:
            return split
    return split


def _by_labels_csv(config: ConvertConfig, regular: list[tuple[str, int]]) -> tuple[list[Found], list[Rejection]]:
    path = pathlib.Path(config.labels_csv)
    rows = _read_labels_csv(path)
    sizes, found, rejected, listed = dict(regular), [], [], set()
    for number, row in rows:
        source, label, split = (row.get(key) or '' for key in ('path', 'label', 'split'))
        source = os.path.normpath(source)
        if not label or split not in ('', *SPLITS) or source in listed:
            problem = (f'{source} a second time' if source in listed else f'no label for {source}' if not label
                       else f'split {split!r}, which is not among {", ".join(SPLITS)}')
            raise UserError(f'--labels_csv={path}, line {number}: {problem}.')
        listed.add(source)
        if source in sizes:
            found.append(Found(source, split or _split_of(source, config), label, sizes[source]))
        else:
            rejected.append(Rejection(source, 'listed in labels_csv but not a file'))
    if not found:
        raise UserError(f'--labels_csv={path}: none of its paths is a file below --input_dir={config.input_dir}; '
                        f'they must be relative to it, and the first is {rows[0][1]["path"] if rows else "missing"!r}.')
    own = os.path.relpath(path.resolve(), pathlib.Path(config.input_dir).resolve())
    rejected += [Rejection(source, 'not in labels_csv') for source in sizes if source not in listed and source != own]
    return sorted(found), rejected


def _read_labels_csv(path: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
    """The rows with their line numbers."""
    if not path.is_file():
        raise UserError(f'--labels_csv={path}: {"is a folder" if path.is_dir() else "there is no such file"}.')
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:  # Excel writes the mark
        reader = csv.DictReader(file)
        try:
            if not {'path', 'label'} <= set(reader.fieldnames or ()):
                raise UserError(f'--labels_csv={path}: its first line must name the columns path,label[,split]; '
                                f'it reads {",".join(reader.fieldnames or ())!r}.')
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f'--labels_csv={path}, line {reader.line_num + 1}: no CSV ({error}).') from None


def _describe(root: pathlib.Path, found: list[Found], rejected: list[Rejection], classes: list[str]) -> None:
    """Says what was found, and what of it looks like a slip."""
    of_class, of_split = Counter(item.label for item in found), Counter(item.split for item in found)
    shown = [f'{name} {of_class[name]:,}' for name in classes[:_CLASSES_SHOWN]]
    shown += ['...'] * (len(classes) > _CLASSES_SHOWN)
    progress.say(f'{root}: {len(found) + len(rejected):,} files, {len(found):,} of them in {len(classes)} classes '
                 f'({", ".join(shown)}); ' + ', '.join(f'{split} {of_split[split]:,}' for split in SPLITS))
    there = {(item.split, item.label) for item in found}
    for split in SPLITS:
        lacking = [name for name in classes if of_split[split] and (split, name) not in there]
        if lacking:
            progress.say(f'note: no image of class {lacking[0]!r} in the {split} split')


def _check_classes(found: list[Found], classes: list[str], root: pathlib.Path) -> None:
    if len(classes) < 2:
        raise UserError(f'--input_dir={root}: only one class, {classes[0]!r}; a classifier needs at least two.')
    odd = [name for name in classes if not name.isprintable() or name != name.strip()]
    if odd:
        raise UserError(f'--input_dir={root}: the class {odd[0]!r} has a name with line breaks, outer blanks or bytes '
                        'that are not UTF-8: rename it.')
    missing = set(classes) - {item.label for item in found if item.split == 'train'}
    if missing:
        raise UserError(f'--input_dir={root}: no training image of class {min(missing)!r}; '
                        'add some, or give the training split more with --splits.')


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


def _is_up_to_date(output: pathlib.Path, root: pathlib.Path, plans: list[ShardPlan], rejected: list[Rejection]) -> bool:
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


def _build_all(config: ConvertConfig, plans: list[ShardPlan], classes: list[str], *,
               executor: concurrent.futures.Executor, done: Any) -> list[BuiltShard]:
    """Builds the shards in the executor's processes; the result is in the plan's order."""
    total = sum(len(shard_plan.found) for shard_plan in plans)
    with progress.bar('converting', total=total, unit='images') as bar:
        with _held_back(signal.SIGINT):  # workers are started here
            futures = [executor.submit(build_shard, config.input_dir, config.output_dir, shard_plan, classes)
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


def _commit(output: pathlib.Path, built: list[BuiltShard], rejected: list[Rejection], classes: list[str],
            executor: concurrent.futures.Executor) -> records.Manifest:
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
    manifest = records.Manifest(classes, 'keep', None, splits, [item.shard for item in built], index_sha256)
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
