"""From a folder of images, or a TFDS data set, to a record set: scan, plan, build shards in parallel, commit.

Where a file goes depends on its own path and on the settings alone: a hash of the path decides its place, so that it
stays where it is as others come and go. Each file found ends as a record or as a row of rejected.csv. What a shard was
made of is kept in the set's journal: so the same command goes on after any interruption, and builds only those shards
anew whose content changes.
This module runs in the converter's parent process, which stays without TensorFlow (560 MiB a process).
"""

from collections import Counter
from collections.abc import Iterator
import concurrent.futures
import contextlib
import os
import pathlib

import tqdm

from boardrec import progress
from boardrec.config import ConvertConfig, UserError
from boardrec.data import (
    beam_runner,
    commit,
    files,
    journal,
    leaks,
    records,
    remote,
    scan,
    shards,
    source_file,
    storage_report,
    tfds_source,
    workers,
)
from boardrec.data.records import Storage

_BYTES_A_PIXEL = {'jpeg': 0.5, 'png': 1.6, 'raw': 3}  # of photographs, about: decides the number of shards
_HASHING_THREADS = 8
_WORKER_BYTES = 8 << 30  # of address space: TensorFlow takes 2 GiB, an image of 100 megapixels some hundred MiB
# Settings that decide what becomes of a file, by flag. Others may change between two runs of a command.
_DECIDING = ('splits', 'group_by', 'encoding', 'image_size', 'resize', 'jpeg_quality', 'max_image_mib',
             'max_megapixels', 'max_side', 'max_side_ratio')


def convert(config: ConvertConfig) -> records.Manifest:
    """Converts config.input_dir or config.tfds into config.output_dir and returns the manifest.

    What is up to date is left alone. Raises UserError for input that cannot be used and for an output folder that
    holds something else.
    """
    with workers.Pool(config.workers or os.cpu_count() or 1, _limits(config), shards.prepare_worker) as pool:
        return _convert(config, pool)


def _convert(config: ConvertConfig, pool: workers.Pool) -> records.Manifest:
    root, output = scan.root_of(config.root), pathlib.Path(config.output_dir)
    _check_folders(config.given, root, output)
    if config.runner == 'beam':
        beam_runner.check(config.beam_options)
    _check_output(output)
    found, rejected = tfds_source.scan_records(config, pool) if config.tfds else scan.scan(config)
    classes = sorted({item.label for item in found})
    scan.check_classes(found, classes, config.given)
    scan.describe(root, found, rejected, classes, unit='records' if config.tfds else 'files')
    with journal.locked(output) as folder:
        earlier = _earlier_plan(config, output, folder, found)
        plans = shards.plan(found, source_bytes_a_shard(config, found), {} if config.reshard else earlier.shards)
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
        storage = storage_of(config)
        _build(config, pool, folder, plans, to_build, classes, {})
        leaked = leaks.find(config, pool, folder, plans, classes)
        to_rebuild = leaks.to_rebuild(folder, plans, leaked.dropped())
        if to_rebuild:
            journal.write_plan(folder, now)
            _build(config, pool, folder, plans, to_rebuild, classes, leaked.dropped())
        manifest, changed = commit.commit(pool, output, folder, plans, rejected, leaked.rows, classes, storage)
        if changed:
            _describe(output, manifest)
            leaks.say(leaked, output)
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


def source_bytes_a_shard(config: ConvertConfig, found: list[scan.Found]) -> int:
    """How many bytes of sources make a shard of about --shard_mib, whatever is made of them."""
    wanted, size = config.shard_mib << 20, config.height_width()
    if size is None:
        return wanted
    stored = len(found) * size[0] * size[1] * _BYTES_A_PIXEL[config.encoding]
    return max(1, round(wanted * sum(item.bytes for item in found) / stored))


def storage_of(config: ConvertConfig) -> Storage:
    """What the records of a conversion hold."""
    size = config.height_width()
    return Storage(config.encoding, size, config.resize if size else None,
                   config.jpeg_quality if config.encoding == 'jpeg' else None)


def _limits(config: ConvertConfig) -> workers.Limits:
    return workers.Limits(config.seconds_an_image, _WORKER_BYTES)


def _check_folders(given: str, root: pathlib.Path | str, output: pathlib.Path) -> None:
    if isinstance(root, str):
        remote.check(root)
    elif not root.is_dir():
        raise UserError(f'{given}: {"is no folder" if root.exists() else "there is no such folder"}.')
    elif root.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f'--output_dir={output} lies within {given}: name a folder outside of it.')
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
    known = (records.MANIFEST, records.INDEX, records.REJECTED, records.DUPLICATES, *records.TFDS_FILES, journal.FOLDER)
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
        raise UserError(f'{output} was converted with --{changed[0]}={earlier.settings.get(changed[0], "")}, not with '
                        f'--{changed[0]}={deciding[changed[0]]}: name another --output_dir, or add --overwrite.')
    if there and not config.overwrite:
        sources = {item.source for item in found}
        known = list(_sources(folder))  # none: an earlier --reshard was interrupted at its first shard
        if known and sources.isdisjoint(known):
            raise UserError(f'{output} holds records of other images, none of which is in {config.given}: '
                            'name another --output_dir, or add --overwrite.')
    return earlier


def _sources(folder: pathlib.Path) -> Iterator[str]:
    """What the shards that the journal knows were made of."""
    for name in journal.names(folder):
        built = journal.read(folder, name)
        yield from (item.source for item in built.sources) if built else ()


def _current(folder: pathlib.Path, root: pathlib.Path | str, plans: list[shards.ShardPlan], classes: list[str]
             ) -> set[str]:
    """The shards that are built, and all of whose files are as they were then."""
    with concurrent.futures.ThreadPoolExecutor(_HASHING_THREADS) as threads:
        return {one.file for one in plans if _is_current(folder, root, one, classes, threads)}


def _is_current(folder: pathlib.Path, root: pathlib.Path | str, shard_plan: shards.ShardPlan, classes: list[str],
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
    digests = threads.map(lambda now: source_file.sha256_of(root, now), touched)
    sums = dict(zip((now.source for now in touched), digests, strict=True))
    if any(sums.get(then.source, then.sha256) != then.sha256 for _, then in pairs):
        return False
    if touched:
        sources = [then._replace(mtime_ns=source_file.settled(now.mtime_ns)) for now, then in pairs]
        journal.write(folder, built._replace(sources=sources))
    return True


def _build(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, plans: list[shards.ShardPlan],
           to_build: list[shards.ShardPlan], classes: list[str], dropped: dict[str, str]) -> None:
    """Builds some of the plan's shards; `dropped` files become no records, for these reasons."""
    total, built = sum(len(one.found) for one in plans), {one.file for one in plans} - {one.file for one in to_build}
    bad = sum(journal.load(folder, name).bad() for name in built)
    max_bytes, *limits = shards.limits_of(config)
    jobs = [shards.Job(config.root, str(folder), one, classes, storage_of(config), max_bytes, tuple(limits),
                       config.on_bad_image, {item.source: dropped[item.source] for item in one.found
                                             if item.source in dropped}) for one in to_build]
    with progress.bar('converting', total=sum(len(one.found) for one in to_build), unit='images') as bar, \
            contextlib.closing(_built(config, pool, folder, jobs, bar)) as rejections:
        for rejected in rejections:
            bad += rejected
            if bad > config.max_bad_fraction * total:
                raise UserError(
                    f'{bad} of {total} files can become no record, which is more than --max_bad_fraction='
                    f'{config.max_bad_fraction}: see {_list_bad(folder)}; mend or remove them, or allow more.')


def _built(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, jobs: list[shards.Job], bar: tqdm.tqdm
           ) -> Iterator[int]:
    """How many files each shard rejected, as shards are built."""
    def look(done: int) -> None:
        bar.update(min(done, bar.total) - bar.n)

    if config.runner == 'local':
        yield from (rejected for _, rejected in pool.run(shards.build, jobs, look))
    elif jobs:
        progress.say(f'building {len(jobs):,} shards with Apache Beam {config.beam_options}'.rstrip())
        yield from beam_runner.build(folder, jobs, config.beam_options, _limits(config), look)


def _list_bad(folder: pathlib.Path) -> pathlib.Path:
    """Writes what the shards that are built could not take to a file of the journal."""
    built = filter(None, (journal.read(folder, name) for name in journal.names(folder)))
    records.write_rejected(folder, (row for one in built for row in one.rejected()))
    return folder / records.REJECTED
