"""From a folder of images, or a TFDS data set, to a record set: scan, plan, build shards in parallel, commit.

Where a file goes depends on its own path and on the settings alone: a hash of the path decides its place, so that it
stays where it is as others come and go. Each file found ends as a record or as a row of rejected.csv. What a shard was
made of is kept in the set's journal: so the same command goes on after any interruption, and builds only those shards
anew whose content changes.
This module runs in the converter's parent process, which stays without TensorFlow (560 MiB a process).
"""

from collections import Counter
from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib

import tqdm

from boardrec import progress
from boardrec.config import ConvertConfig, UserError
from boardrec.data import (
    beam_runner,
    commit,
    earlier,
    journal,
    leaks,
    mirror,
    records,
    remote,
    scan,
    shards,
    storage_report,
    tfds_source,
    workers,
)
from boardrec.data.records import Storage
from boardrec.data.table import Table

_BYTES_A_PIXEL = {'jpeg': 0.5, 'png': 1.6, 'raw': 3}  # of photographs, about: decides the number of shards
_WORKER_BYTES = 8 << 30  # of address space: TensorFlow takes 2 GiB, an image of 100 megapixels some hundred MiB


def convert(config: ConvertConfig) -> records.Manifest:
    """Converts config.input_dir or config.tfds into config.output_dir and returns the manifest.

    What is up to date is left alone. Where output_dir is a URL, its copy on this machine is converted into, then put
    there. Raises UserError for input that cannot be used and for an output folder that holds something else.
    """
    with mirror.output(config.output_dir, overwrite=config.overwrite) as folder, \
            workers.Pool(config.workers or os.cpu_count() or 1, _limits(config), shards.prepare_worker) as pool:
        return _convert(dataclasses.replace(config, output_dir=str(folder)), pool)


def _convert(config: ConvertConfig, pool: workers.Pool) -> records.Manifest:
    root, output = scan.root_of(config.root), pathlib.Path(config.output_dir)
    _check_folders(config.given, root, output)
    if config.runner == 'beam':
        beam_runner.check(config.beam_options)
    _check_output(output)
    journal.check_free(output)  # before what may take long
    found, rejected = tfds_source.scan_records(config, pool) if config.tfds else scan.scan(config)
    classes = sorted(set(found.column('label')))
    scan.check_classes(found, classes, config.given)
    scan.describe(root, found, rejected, classes, unit='records' if config.tfds else 'files')
    with journal.locked(output) as folder:
        lacking = [row for row in rejected if row.is_bad]
        total = len(found) + len(lacking)
        _check_bad(config, folder, lacking, total)
        before = earlier.plan(config, output, folder, found)
        plans = shards.plan(found, source_bytes_a_shard(config, found), {} if config.reshard else before.shards)
        del found  # of a million files 60 MB, and the plans hold them too
        storage = storage_of(config)
        if storage.resize == 'pad':
            progress.say('note: predict and the export squash what is padded here: see how much that matters with '
                         'boardrec.evaluate --check_sources')
        journal.forget(folder, but={shard_plan.file for shard_plan in plans})
        known = earlier.known(folder, root, plans, classes)
        to_build = [one for one in plans if one.file not in known.current]
        now = before._replace(shards=dict(Counter(one.split for one in plans)), complete=False)
        if to_build or now != before._replace(complete=False):
            journal.write_plan(folder, now)
        if known.current and to_build:
            progress.say(f'{len(known.current):,} of {len(plans):,} shards are up to date')
        bad = _build(config, pool, folder, to_build, classes, total, lacking + known.bad,
                     known.dropped if config.on_leak == leaks.DROP else {})
        leaked = leaks.find(config, pool, folder, plans, classes)
        to_rebuild = leaked.to_rebuild()
        if to_rebuild:
            journal.write_plan(folder, now)
            _build(config, pool, folder, to_rebuild, classes, total, bad, leaked.dropped())
        manifest, changed = commit.commit(pool, output, folder, plans, rejected, leaked, classes, storage)
        journal.write_plan(folder, now._replace(complete=True, overwriting=False))
        if changed:
            _describe(output, manifest)
        else:
            progress.say(f'{output} holds these images already; nothing {"has changed" if to_build else "to do"}.')
        _describe_rejected(output)
        leaks.say(leaked, output)
        if to_build and storage != records.KEEP:
            refused = {source for source, *_ in records.read_rejected(output)}
            kept = Table(scan.Found, (item for one in plans for item in one.found if item.source not in refused))
            storage_report.say(root, kept, manifest, pool)
    return manifest


def _describe(output: pathlib.Path, manifest: records.Manifest) -> None:
    """Says what a conversion came to."""
    progress.say(f'{output}: {sum(split.records for split in manifest.splits.values()):,} records in '
                 f'{len(manifest.shards)} shards, {sum(shard.bytes for shard in manifest.shards) / 2**20:,.1f} MiB')


def _describe_rejected(output: pathlib.Path) -> None:
    rejected = records.read_rejected(output)
    if rejected:
        # What a file manager left is told last.
        source, reason, _ = min(rejected, key=lambda row: (row[1].startswith('system'), row))
        count = f'{len(rejected):,} file{"s" * (len(rejected) > 1)}'
        progress.say(f'{count} became no record, such as {source} ({reason}): {output / records.REJECTED}')


def source_bytes_a_shard(config: ConvertConfig, found: Table[scan.Found]) -> int:
    """How many bytes of sources make a shard of about --shard_mib, whatever is made of them."""
    wanted, size = config.shard_mib << 20, config.height_width()
    if size is None:
        return wanted
    stored = len(found) * size[0] * size[1] * _BYTES_A_PIXEL[config.encoding]
    return max(1, round(wanted * sum(found.column('bytes')) / stored))


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
    foreign = sorted(name for name in names if not journal.is_ours(name))
    if foreign:
        raise UserError(f'--output_dir={output} holds {foreign[0]}, which is no part of a record set: '
                        'name another folder.')


def _build(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, plans: list[shards.ShardPlan],
           classes: list[str], total: int, bad: list[scan.Rejection], dropped: dict[str, str]
           ) -> list[scan.Rejection]:
    """Builds shards; `dropped` files become no records, for these reasons.

    Of `total` files `bad` are known to become no records; returns all such that are known then.
    """
    max_bytes, *limits = shards.limits_of(config)
    jobs = [shards.Job(config.root, str(folder), one, classes, storage_of(config), max_bytes, tuple(limits),
                       config.on_bad_image, {source: dropped[source] for source in one.found.column('source')
                                             if source in dropped}) for one in plans]
    known = {row.source for row in bad}
    rebuilt = {source for one in plans for source in one.found.column('source') if source in known}
    bad = [row for row in bad if row.source not in rebuilt]
    _check_bad(config, folder, bad, total)
    with progress.bar('converting', total=sum(len(one.found) for one in plans), unit='images') as bar, \
            contextlib.closing(_built(config, pool, folder, jobs, bar)) as rejections:
        for rows in rejections:
            bad += rows
            _check_bad(config, folder, bad, total)
    return bad


def _check_bad(config: ConvertConfig, folder: pathlib.Path, bad: list[scan.Rejection], total: int) -> None:
    """Raises UserError where more of `total` files can become no record than may."""
    if bad and config.on_bad_image == 'fail':
        first = min(bad)
        raise UserError(f'{os.path.join(config.root, first.source)}: {first.reason} (--on_bad_image=fail).')
    if len(bad) > config.max_bad_fraction * total:
        records.write_rejected(folder, sorted(bad))
        raise UserError(
            f'{len(bad)} of {total} files can become no record, which is more than --max_bad_fraction='
            f'{config.max_bad_fraction}: see {folder / records.REJECTED}; mend or remove them, or allow more.')


def _built(config: ConvertConfig, pool: workers.Pool, folder: pathlib.Path, jobs: list[shards.Job], bar: tqdm.tqdm
           ) -> Iterator[list[scan.Rejection]]:
    """What each shard could not take, as shards are built."""
    def look(done: int) -> None:
        bar.update(min(done, bar.total) - bar.n)

    if config.runner == 'local':
        yield from (rejected for _, rejected in pool.run(shards.build, jobs, look))
    elif jobs:
        progress.say(f'building {len(jobs):,} shards with Apache Beam {config.beam_options}'.rstrip())
        yield from beam_runner.build(folder, jobs, config.beam_options, _limits(config), look)
