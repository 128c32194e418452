"""Says what a record set holds and shows what a training sees of it: python tools/inspect_records.py --records=RECORDS.

With the flags of a training (--flagfile=RUN/run.flags), --augmented_sheet=OUT.png draws the views that it takes.
"""

import dataclasses
import pathlib
from typing import Any

from boardrec import cli, progress
from boardrec.config import setting, SPLITS, TrainConfig, UserError
from boardrec.data import files, records
from boardrec.data.records import RecordSet

_ROWS = 8  # records on a sheet
_VIEWS = 8  # at most, of each
_GAP = 4  # pixels between images
_CAPTION = 14  # pixels of a line of text


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectRecordsConfig(TrainConfig):
    """Settings of this tool: a training's, of which the images' size and the views count here."""

    run_dir: str = setting('not used', '')
    augmented_sheet: str = setting('PNG file to draw: records of a split, each as it is and in the views of a training',
                                   '')
    split: str = setting('split to draw records of', 'train', SPLITS)


def main(config: InspectRecordsConfig) -> None:
    """Prints what RECORDS holds; draws a sheet of augmented views if asked to."""
    sheet = pathlib.Path(config.augmented_sheet)
    if config.augmented_sheet and (sheet.suffix.lower() != '.png' or not sheet.absolute().parent.is_dir()):
        raise UserError(f'--augmented_sheet={sheet}: must be a .png file in a folder that exists.')
    record_set = records.open_record_set(config.records)
    for line in summary(record_set):
        progress.say(line)
    if config.augmented_sheet:
        if config.cached_views == 1:
            raise UserError('--cached_views=1: a training without augmentation; add --cached_views=4, or 0 for new '
                            'views each epoch.')
        progress.import_tensorflow()
        picture = draw(config, record_set)
        with files.atomic_write(sheet) as file:
            picture.save(file, 'PNG')
        progress.say(f'{sheet}: {picture.width}x{picture.height} pixels; each row is a record, first as it is')


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
    from PIL import Image, ImageDraw
    import tensorflow as tf

    from boardrec.data import augment, images
    from boardrec.training import feed
    ids = record_set.split_range(config.split)
    chosen = sorted({ids[len(ids) * row // _ROWS] for row in range(_ROWS)})
    views, size, storage = feed.views(config), config.height_width(), record_set.manifest.storage

    @tf.function
    def view_of(encoded: tf.Tensor, record_id: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        box = augment.crop_box(views, view=view, record_id=record_id)
        image = images.decode_stored(encoded, storage, *size, box)
        return augment.augment(image, views, view=view, record_id=record_id)

    columns = [[], *([] for _ in range(min(config.cached_views or _VIEWS, _VIEWS)))]
    for number in chosen:
        encoded = tf.constant(records.read_image(record_set, number))
        columns[0].append(images.decode_stored(encoded, storage, *size).numpy())
        for view, column in enumerate(columns[1:]):
            column.append(view_of(encoded, tf.constant(number, tf.int64), tf.constant(view, tf.int64)).numpy())
    height, width = size
    sheet = Image.new('RGB', (len(columns) * (width + _GAP) + _GAP, len(chosen) * (height + _CAPTION + _GAP)), 'white')
    pen = ImageDraw.Draw(sheet)
    for row, number in enumerate(chosen):
        top = row * (height + _CAPTION + _GAP)
        source = record_set.sources[number].encode(errors='replace').decode()
        pen.text((_GAP, top + 1), f'{number}  {source}', fill='black')
        for place, pixels in enumerate(columns):
            sheet.paste(Image.fromarray(pixels[row]), (_GAP + place * (width + _GAP), top + _CAPTION))
    return sheet


if __name__ == '__main__':
    cli.run(main, InspectRecordsConfig)
