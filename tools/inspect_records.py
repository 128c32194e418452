"""Says what a record set holds, whether it is whole, and shows it: python tools/inspect_records.py --records=RECORDS.

--verify names all damage, --salvage=OUT makes a new set of what is intact, --stats counts and measures, --contact_sheet
and --extract show records. With the flags of a training (--flagfile=RUN/run.flags), --augmented_sheet=OUT.png draws the
views that it takes.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import io
import pathlib
import random
import statistics
import time
from typing import Any, NamedTuple

import numpy as np

from boardrec import cli, progress
from boardrec.config import check_local, setting, SPLITS, TrainConfig, UserError
from boardrec.data import audit, files, mirror, records, salvage, sheets, tfrecord
from boardrec.data.records import RecordSet

_ROWS = 8  # records on a sheet of views, or rows of a contact sheet
_VIEWS = 8  # at most, of each
_COLUMNS = 6  # of a contact sheet
_SAMPLE = 1000  # records of a class in a split whose images are looked into
_ACTIONS = ('verify', 'salvage', 'stats', 'contact_sheet', 'extract', 'augmented_sheet')
# What else of a training's flags counts here: the sheets' size, and the views.
_OF_TRAINING = ('records', 'image_size', 'seed', 'cached_views', 'flip_horizontal', 'flip_vertical', 'quarter_turns',
                'crop_area', 'rotation', 'brightness', 'contrast', 'saturation', 'hue', 'jpeg_quality', 'erasing')
_UNUSED = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in _OF_TRAINING]
_SUFFIXES = {'.jpg': ('.jpg', '.jpeg', '.jpe', '.jfif'), '.png': ('.png',)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectRecordsConfig(TrainConfig):
    """Settings of this tool: a training's, of which the images' size and the views count here."""

    run_dir: str = setting('not used', '')
    verify: bool = setting('check every byte of the set, and manifest, index and shards against each other', False)
    salvage: str = setting('new folder for a record set of all records that are intact; what is lost is listed beside '
                           'it, in FOLDER.lost.csv', '')
    stats: bool = setting('print counts, bytes, formats and sizes for each class of each split', False)
    contact_sheet: str = setting('PNG file to draw: records of a split, spread evenly over it', '')
    extract: int = setting('number of a record to write as an image file, to --output; -1 writes none', -1)
    output: str = setting('file for --extract; by default recordN.jpg or .png in the current folder', '')
    augmented_sheet: str = setting('PNG file to draw: records of a split, each as it is and in the views of a training',
                                   '')
    split: str = setting('split to draw records of', 'train', SPLITS)

    def __post_init__(self):
        super().__post_init__()
        check_local(self, 'salvage', 'contact_sheet', 'augmented_sheet', 'output')
        given = self.given()
        if len(given) > 1:
            raise UserError(f'--{given[0]} and --{given[1]}: give one of them at a time.')
        if self.output and 'extract' not in given:
            raise UserError(f'--output={self.output}: is the file of --extract; name a record with --extract=N.')
        if self.extract < -1:
            raise UserError(f'--extract={self.extract}: must be the number of a record, from 0.')

    def given(self) -> list[str]:
        """What is to be done."""
        return [name for name in _ACTIONS if getattr(self, name) != getattr(type(self), name)]


def main(config: InspectRecordsConfig) -> None:
    """Prints what RECORDS holds; checks, salvages, measures or draws it if asked to.

    The flags of a training that are not listed are taken too, for --flagfile=RUN/run.flags, and change nothing.
    """
    with mirror.opened(config.records) as folder:
        _inspect(dataclasses.replace(config, records=str(folder)))


def _inspect(config: InspectRecordsConfig) -> None:
    if config.verify or (config.verify_records and not config.given()):  # a training's word for it
        verify(config.records)
    elif config.salvage:
        rescue(config.records, config.salvage)
    elif config.extract >= 0:
        extract(records.open_record_set(config.records), config.extract, config.output)
    else:
        _describe(config)


def _describe(config: InspectRecordsConfig) -> None:
    flag = 'contact_sheet' if config.contact_sheet else 'augmented_sheet'
    sheet = getattr(config, flag)
    if sheet:
        _check_sheet(flag, sheet)
    record_set = records.open_record_set(config.records)
    for line in summary(record_set):
        progress.say(line)
    if config.stats:
        progress.import_tensorflow()
        for line in stats(record_set, config.seed):
            progress.say(line)
    if config.augmented_sheet:
        record_set.require_size(config.height_width())
    if config.augmented_sheet and config.cached_views == 1:
        raise UserError('--cached_views=1: a training without augmentation; add --cached_views=4, or 0 for new '
                        'views each epoch.')
    if sheet:
        progress.import_tensorflow()
        picture = draw_contacts(config, record_set) if config.contact_sheet else draw(config, record_set)
        with files.atomic_write(sheet) as file:
            picture.save(file, 'PNG')
        what = 'number, class and source' if config.contact_sheet else 'each row is a record, first as it is'
        progress.say(f'{sheet}: {picture.width}x{picture.height} pixels; {what}')
        if config.augmented_sheet:
            _note(config)


def _note(config: InspectRecordsConfig) -> None:
    """Says where a sheet of views is not what a training sees."""
    if config.cached_views > _VIEWS:
        progress.say(f'note: the first {_VIEWS} of --cached_views={config.cached_views} are shown')
    if config.split != 'train':
        progress.say(f'note: images of {config.split} are never augmented in training: it takes them as they are')


def _check_sheet(flag: str, name: str) -> None:
    sheet = pathlib.Path(name)
    if sheet.suffix.lower() != '.png' or not sheet.absolute().parent.is_dir():
        raise UserError(f'--{flag}={sheet}: must be a .png file in a folder that exists.')


def verify(folder: str) -> None:
    """Prints a line for each damage. Raises UserError that sums them up, if there are any."""
    progress.import_tensorflow()
    count, start = 0, time.perf_counter()
    for line in audit.verify(folder):
        progress.say(line)
        count += 1
    if count:
        raise UserError(f'{folder} is damaged: the {count:,} lines above say where; --salvage=NEW_FOLDER saves what is '
                        'intact, and tools/make_records.py --overwrite makes all of it again.')
    manifest = records.read_manifest(pathlib.Path(folder))
    total, size = sum(split.records for split in manifest.splits.values()), sum(one.bytes for one in manifest.shards)
    progress.say(f'{folder}: all is well: {total:,} records in {len(manifest.shards)} shards, {size / 2**20:,.1f} MiB, '
                 f'checked in {time.perf_counter() - start:.1f} s')


def rescue(folder: str, out: str) -> None:
    """Makes a new record set of what is intact and says what it came to."""
    progress.import_tensorflow()
    done = salvage.salvage(folder, out)
    for note in done.notes:
        progress.say(f'note: {note}')
    total = sum(split.records for split in done.manifest.splits.values())
    progress.say(f'{out}: {total:,} records in {len(done.manifest.shards)} shards; {len(done.lost):,} are lost: '
                 f'{salvage.lost_path(out)}')
    if done.lost:
        progress.say('It is another record set (its fingerprint differs, records are numbered anew): runs and cached '
                     'features of the old one are not continued with it.')


def extract(record_set: RecordSet, record_id: int, output: str) -> None:
    """Writes one record's image as a file. Raises UserError where there is no such record, or such a file already."""
    if record_id >= len(record_set.sources):
        raise UserError(f'--extract={record_id}: {record_set.folder} has records 0 to {len(record_set.sources) - 1}.')
    progress.import_tensorflow()
    from boardrec.data import images
    (_, stored), = tfrecord.read_images(record_set, [record_id])
    data = images.picture(stored, record_set.manifest.storage)
    source = record_set.sources[record_id]
    kind = '.jpg' if data.startswith(images.JPEG_MAGIC) else '.png'
    suffix = pathlib.PurePath(source).suffix
    path = pathlib.Path(output or f'record{record_id}{suffix if suffix.lower() in _SUFFIXES[kind] else kind}')
    if path.exists() or not path.absolute().parent.is_dir():
        raise UserError(f'--output={path}: must be a new file in a folder that exists.')
    if path.suffix.lower() not in _SUFFIXES[kind]:
        raise UserError(f'--output={path}: record {record_id} is a {kind[1:].upper()}: name a {kind} file.')
    with files.atomic_write(path) as file:
        file.write(data)
    progress.say(f'{path}: record {record_id}, {_label(record_set, record_id)}, {sheets.printable(source)}')


class Looks(NamedTuple):
    """What the images of a class in a split look like."""

    formats: Counter[str]  # JPEG, PNG or raw: how many
    heights: list[int]  # pixels
    widths: list[int]


def stats(record_set: RecordSet, seed: int) -> list[str]:
    """A table: for each class of each split counts, bytes of records, formats and sizes of images.

    Formats and sizes are of _SAMPLE records at most, drawn with this seed.
    """
    sizes = _record_bytes(record_set)
    table = [('split', 'class', 'records', 'bytes a record', 'looked into', 'JPEG', 'PNG', 'raw', 'height', 'width')]
    for split in record_set.manifest.splits:
        ids = np.array(record_set.split_range(split))
        for number, name in enumerate(record_set.manifest.class_names):
            own = ids[record_set.labels[ids] == number].tolist()
            looks = _looks(record_set, sorted(random.Random(seed).sample(own, min(_SAMPLE, len(own)))))
            table.append((split, sheets.printable(name), f'{len(own):,}', _spread(sizes[own].tolist()),
                          f'{len(looks.heights):,}', *(f'{looks.formats[kind]:,}' for kind in ('JPEG', 'PNG', 'raw')),
                          _spread(looks.heights), _spread(looks.widths)))
    return [*_aligned(table), 'bytes, heights and widths (in pixels): least, median, greatest']


def _record_bytes(record_set: RecordSet) -> np.ndarray:
    """How many bytes each record takes, framing included: int64 [N]."""
    ends, start = record_set.offsets.copy(), 0
    for shard in record_set.manifest.shards:
        if shard.records:
            own = slice(start, start + shard.records)
            ends[own] = [*record_set.offsets[own][1:], shard.bytes]
        start += shard.records
    return ends - record_set.offsets


def _looks(record_set: RecordSet, record_ids: Sequence[int]) -> Looks:
    """By the headers alone."""
    from PIL import Image
    storage, looks = record_set.manifest.storage, Looks(Counter(), [], [])
    for _, stored in tfrecord.read_images(record_set, record_ids) if record_ids else ():
        kind, (height, width) = 'raw', storage.image_size or (0, 0)
        if storage.encoding != 'raw':
            with Image.open(io.BytesIO(stored), formats=('JPEG', 'PNG')) as image:
                kind, height, width = image.format, image.height, image.width
        looks.formats[kind] += 1
        looks.heights.append(height)
        looks.widths.append(width)
    return looks


def _spread(values: list[int]) -> str:
    if not values:
        return '-'
    return f'{min(values):,} {round(statistics.median(values)):,} {max(values):,}'


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    """Lines with columns as wide as they need to be, the first two flush left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ['  '.join(cell.ljust(width) if place < 2 else cell.rjust(width)
                      for place, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in table]


def summary(record_set: RecordSet) -> list[str]:
    """What there is, a line for each split."""
    manifest = record_set.manifest
    lines = [f'{record_set.folder}: {len(record_set.labels):,} records in {len(manifest.shards)} shards, '
             f'{sum(shard.bytes for shard in manifest.shards) / 2**20:,.1f} MiB, '
             f'encoding {manifest.encoding}, fingerprint {manifest.fingerprint[:12]}']
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in record_set.split_shards(name))
        counts = ', '.join(f'{label} {count:,}' for label, count in split.class_counts.items())
        lines.append(f'{name}: {split.records:,} records of {size / max(1, split.records) / 1024:,.0f} KiB ({counts})')
    return lines


def draw(config: InspectRecordsConfig, record_set: RecordSet) -> Any:
    """A PIL.Image of evenly spread records, one a row: as it is, then its first views."""
    import tensorflow as tf

    from boardrec.data import augment, images
    from boardrec.training import feed
    views, size, storage = feed.views(config), config.height_width(), record_set.manifest.storage

    @tf.function
    def view_of(encoded: tf.Tensor, record_id: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        box = augment.crop_box(views, view=view, record_id=record_id)
        image = images.decode_stored(encoded, storage, *size, box)
        return augment.augment(image, views, view=view, record_id=record_id)

    rows, captions = [], []
    for number, stored in tfrecord.read_images(record_set, _spread_ids(record_set, config.split, _ROWS)):
        encoded, record_id = tf.constant(stored), tf.constant(number, tf.int64)
        shown = [view_of(encoded, record_id, tf.constant(view, tf.int64)).numpy()
                 for view in range(min(config.cached_views or _VIEWS, _VIEWS))]
        rows.append([images.decode_stored(encoded, storage, *size).numpy(), *shown])
        captions.append([[f'{number}  {record_set.sources[number].encode(errors="replace").decode()}']])
    return sheets.draw(rows, captions)


def draw_contacts(config: InspectRecordsConfig, record_set: RecordSet) -> Any:
    """A PIL.Image of evenly spread records, row by row, each with its number, class and source."""
    import tensorflow as tf

    from boardrec.data import images
    size, storage, cells, captions = config.height_width(), record_set.manifest.storage, [], []
    for number, stored in tfrecord.read_images(record_set, _spread_ids(record_set, config.split, _ROWS * _COLUMNS)):
        cells.append(images.decode_stored(tf.constant(stored), storage, *size).numpy())
        captions.append([f'{number}  {_label(record_set, number)}', sheets.printable(record_set.sources[number])])
    return sheets.draw(sheets.in_rows(cells, _COLUMNS), sheets.in_rows(captions, _COLUMNS), shorten=True)


def _spread_ids(record_set: RecordSet, split: str, count: int) -> list[int]:
    ids = record_set.split_range(split)
    return sorted({ids[len(ids) * place // count] for place in range(count)})


def _label(record_set: RecordSet, record_id: int) -> str:
    return record_set.manifest.class_names[record_set.labels[record_id]]


if __name__ == '__main__':
    cli.run(main, InspectRecordsConfig, hidden=_UNUSED)
