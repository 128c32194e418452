"""What an earlier conversion into the same folder left: what of it may be used, and what is refused."""

from collections.abc import Sequence
import concurrent.futures
import pathlib
from typing import NamedTuple

import numpy as np

from boardrec import progress
from boardrec.config import ConvertConfig, UserError
from boardrec.data import journal, perceptual, records, scan, shards, source_file, workers

_HASHING_THREADS = 8
# Settings that decide what becomes of a file, by flag. Others may change between two runs of a command.
_DECIDING = ('splits', 'group_by', 'encoding', 'image_size', 'resize', 'jpeg_quality', 'max_image_mib',
             'max_megapixels', 'max_side', 'max_side_ratio')
# Reasons that may have been the machine's fault, not the file's: such files are tried again.
_TRANSIENT = (workers.CRASH, workers.TIME_LIMIT, workers.OUT_OF_MEMORY)


class Known(NamedTuple):
    """What the journal says of a plan's shards."""

    current: set[str]  # those that are built, and all of whose files are as they were then
    bad: list[scan.Rejection]  # what these could not take
    dropped: dict[str, str]  # {source: reason} of leaks, of all shards


def plan(config: ConvertConfig, output: pathlib.Path, folder: pathlib.Path, found: Sequence[scan.Found]
         ) -> journal.Plan:
    """The plan that a conversion goes on with: an earlier one's, or one that knows nothing.

    Raises UserError where what is there was made otherwise, or of other images, and may not be replaced.
    """
    deciding, before = _deciding(config), journal.read_plan(folder)
    there = (output / records.MANIFEST).exists()
    replacing = before is not None and before.overwriting and not before.complete
    if config.overwrite and not (replacing and before.settings == deciding):
        nothing = journal.Plan(deciding, {}, complete=False, overwriting=True)
        journal.write_plan(folder, nothing)  # first: from here on nobody takes what is left for an increment
        journal.forget(folder, but=set())
        return nothing
    if before is None:
        if there:
            raise UserError(f'{output} holds records without the journal ({journal.FOLDER}/) of how they were made: '
                            'name another --output_dir, or add --overwrite.')
        journal.forget(folder, but=set())
        return journal.Plan(deciding, {}, complete=False)
    if replacing and there and not config.overwrite:
        raise UserError(f'{output} was being replaced when its last conversion ended: add --overwrite to go on with '
                        'that, or name another --output_dir.')
    changed = [name for name in _DECIDING if before.settings.get(name) != deciding[name]]
    if changed:
        raise UserError(f'{output} was converted with --{changed[0]}={before.settings.get(changed[0], "")}, not with '
                        f'--{changed[0]}={deciding[changed[0]]}: name another --output_dir, or add --overwrite.')
    if there and not config.overwrite:
        _compare(config, output, folder, found, complete=before.complete)
    if not before.shards:  # it was killed before it had forgotten what was there
        journal.forget(folder, but=set())
    return before


def known(folder: pathlib.Path, root: pathlib.Path | str, plans: list[shards.ShardPlan], classes: list[str]) -> Known:
    """Compares the plan with what is built."""
    result = Known(set(), [], {})
    with concurrent.futures.ThreadPoolExecutor(_HASHING_THREADS) as threads:
        for one in plans:
            built = journal.read(folder, one.file)
            if built is None:
                continue
            result.dropped.update(built.dropped())
            if _is_current(folder, root, one, classes, built, threads):
                result.current.add(one.file)
                result.bad.extend(built.bad())
    return result


def _deciding(config: ConvertConfig) -> dict[str, str]:
    return {name: str(getattr(config, name)) for name in _DECIDING}


def _compare(config: ConvertConfig, output: pathlib.Path, folder: pathlib.Path, found: Sequence[scan.Found], *,
             complete: bool) -> None:
    """Says how many files have come and gone. Raises UserError where more than half have: is it the right folder?"""
    there = np.sort(_hashes(found))  # a set of a million takes 66 MB
    total = kept = 0
    for name in journal.names(folder):
        built = journal.read(folder, name)
        if built and built.sources:
            hashes = _hashes(built.sources)
            total += len(hashes)
            kept += int((there[np.searchsorted(there, hashes) % len(there)] == hashes).sum())
    if kept < total / 2:
        raise UserError(f'{output} was made of {total:,} files, of which {total - kept:,} are not in {config.given} or '
                        'have other sizes: if that is meant, add --overwrite, else name another --output_dir.')
    if complete and not kept == total == len(found):
        progress.say(f'since the last conversion {len(found) - kept:,} files have come and {total - kept:,} have gone '
                     '(one that has another size counts as both)')


def _hashes(items: Sequence[scan.Found | journal.Source]) -> np.ndarray:
    """A number for each path and size, int64 [N], the same within this process."""
    return np.fromiter((hash((item.source, item.bytes)) for item in items), np.int64, len(items))


def _is_current(folder: pathlib.Path, root: pathlib.Path | str, shard_plan: shards.ShardPlan, classes: list[str],
                built: journal.Built, threads: concurrent.futures.Executor) -> bool:
    if built.hash_version != perceptual.VERSION or journal.place(folder, built) is None:
        return False
    if any(item.reason in _TRANSIENT for item in built.sources):
        return False
    pairs = list(zip(shard_plan.found, built.sources, strict=False))
    if len(shard_plan.found) != len(built.sources) or any(
            (now.source, now.label, now.bytes) != (then.source, then.label, then.bytes) for now, then in pairs):
        return False
    if any(built.classes.index(label) != classes.index(label) for label in {item.label for item in built.sources}):
        return False  # records hold numbers
    touched = [now for now, then in pairs
               if not then.changed_ns or now.changed_ns != then.changed_ns or not then.sha256]
    digests = threads.map(lambda now: source_file.sha256_of(root, now), touched)
    sums = dict(zip((now.source for now in touched), digests, strict=True))
    if any(sums.get(then.source, then.sha256) != then.sha256 for _, then in pairs):
        return False
    if touched:
        sources = [then._replace(changed_ns=source_file.settled(now.changed_ns)) for now, then in pairs]
        journal.write(folder, built._replace(sources=sources))
    return True
