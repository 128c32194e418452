"""Built shards become a record set: they take their places, index and TFDS files follow, the manifest comes last."""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import hashlib
import os
import pathlib

from boardrec.config import SPLITS, UserError
from boardrec.data import files, journal, leaks, records, scan, tfrecord, workers
from boardrec.data.records import Storage
from boardrec.data.shards import ShardPlan


def commit(pool: workers.Pool, output: pathlib.Path, folder: pathlib.Path, plans: list[ShardPlan],
           rejected: list[scan.Rejection], leaked: leaks.Leaks, classes: list[str], storage: Storage
           ) -> tuple[records.Manifest, bool]:
    """Makes the built shards a record set, the manifest last; whether there was anything to do for that."""
    journal.sweep(folder)
    shards, counts, rejected, dropped = {}, {}, list(rejected), leaked.dropped()
    lost = Counter()  # what was dropped of each class
    kept, index, records_so_far = [], hashlib.sha256(), 0
    for one in plans:
        built = journal.load(folder, one.file)
        kept.append(built._replace(sources=[]))  # to read a million files' journals takes five seconds
        for line in records.index_lines(_rows_of(built, records_so_far)):
            index.update(line)
        records_so_far += built.shard.records
        # In the order of the classes that there are now; they may be more than there were.
        of_class = {name: built.shard.class_counts.get(name, 0) for name in classes}
        shards[one.file] = dataclasses.replace(built.shard, class_counts=of_class)
        counts.setdefault(one.split, Counter()).update(of_class)
        rejected += (row._replace(reason=dropped.get(row.source, row.reason)) for row in built.rejected())
        lost.update(item.label for item in built.sources if item.is_dropped)
    rejected.sort()
    trained = counts.get('train', {})
    lacking = [name for name in classes if not trained.get(name)]
    if lacking:
        records.write_rejected(folder, rejected)
        why = ' or, by --on_leak=drop_from_train, dropped' if lost[lacking[0]] else ''
        raise UserError(f'every training image of class {lacking[0]!r} was rejected{why}: see '
                        f'{folder / records.REJECTED}.')
    plans = [one for one in plans if counts[one.split].total()]  # TFDS reads no empty split
    splits = {split: records.Split(counts[split].total(), sum(one.split == split for one in plans), dict(counts[split]))
              for split in SPLITS if split in counts and counts[split].total()}
    size = None if storage.image_size is None else list(storage.image_size)
    manifest = records.Manifest(
        class_names=classes, encoding=storage.encoding, image_size=size, resize=storage.resize, quality=storage.quality,
        splits=splits, shards=[shards[one.file] for one in plans],
        index_sha256=index.hexdigest())
    kept = [built for built in kept if counts[built.split].total()]
    if _is_there(output, folder, kept, manifest, rejected, leaked):
        return manifest, False
    # From here to the end there is no manifest: a reader finds no set rather than half of two.
    (output / records.MANIFEST).unlink(missing_ok=True)
    files.sync(output)  # also after a power cut
    keep = {one.file for one in plans} | {
        records.INDEX, records.REJECTED, records.DUPLICATES, *records.TFDS_FILES, journal.FOLDER}
    for path in output.iterdir():
        if path.name not in keep:
            path.unlink()
    for one in kept:
        built, final = journal.load(folder, one.shard.file), output / one.shard.file  # again: it may have been settled
        place = journal.place(folder, built)
        if place is None:
            raise UserError(f'{final} was changed or removed meanwhile: run the same command again.')
        if place.parent == folder:
            os.replace(place, final)
    records.write_rejected(output, rejected)
    records.write_duplicates(output, leaked.rows())
    records.write_index(output, _rows(folder, plans))
    pool.call(tfrecord.write_tfds_metadata, output, manifest)  # a worker, because TFDS imports TensorFlow
    records.write_manifest(output, manifest)
    return manifest, True


def _is_there(output: pathlib.Path, folder: pathlib.Path, shards: list[journal.Built], manifest: records.Manifest,
              rejected: list[scan.Rejection], leaked: leaks.Leaks) -> bool:
    """Whether all of the set is in its place already."""
    try:
        return (records.read_manifest(output) == manifest
                and files.sha256_of(output / records.INDEX) == manifest.index_sha256
                and files.sha256_of(output / records.REJECTED) == records.rejected_sha256(rejected)
                and files.sha256_of(output / records.DUPLICATES) == records.duplicates_sha256(leaked.rows())
                and all((output / name).is_file() for name in records.TFDS_FILES)
                and all(journal.settle(folder, built.shard.file) for built in shards))
    except (UserError, OSError):
        return False


def _rows(folder: pathlib.Path, plans: list[ShardPlan]) -> Iterator[records.Row]:
    record_id = 0
    for one in plans:
        built = journal.load(folder, one.file)
        yield from _rows_of(built, record_id)
        record_id += built.shard.records


def _rows_of(built: journal.Built, first: int) -> Iterator[records.Row]:
    """The rows of a shard whose first record has the id `first`."""
    for record_id, item in enumerate(built.made(), first):
        yield records.Row(record_id, item.source, item.sha256, built.split, item.label, built.shard.file, item.offset)
