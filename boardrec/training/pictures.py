"""What TensorBoard shows of the images: those of the first batch as they are trained on, and the worst errors."""

from typing import NamedTuple

import numpy as np
from PIL import Image
import tensorflow as tf

from boardrec.config import TrainConfig
from boardrec.data import augment, images, order, sheets, tfrecord
from boardrec.data.augment import AS_IT_IS, Views
from boardrec.data.records import RecordSet
from boardrec.training import feed
from boardrec.training.steps import Rows

_COUNT, _COLUMNS = 16, 4
_SIDE = 160  # pixels at most of what is shown: a sheet of photographs is a PNG of about a megabyte


class Wrong(NamedTuple):
    """A record that is taken for another class than its own."""

    record_id: int
    decision: int
    probability: float  # of its own class


def first_batch(config: TrainConfig, record_set: RecordSet) -> np.ndarray | None:
    """The first images of the first step, in the views that it takes, uint8 [H, W, 3]; None if a service chooses them.

    They are read from the records: cached features have no pixels.
    """
    ids = feed.records_of_step(config, record_set, 0, 0)['record_ids'][:_COUNT]
    if not ids:
        return None
    views = feed.views(config)
    chosen = order.views(np.array(ids), seed=views.seed, epoch=0, count=views.count)
    return _sheet(config, record_set, ids, [_lines(record_set, number) for number in ids], views, chosen)


def worst_errors(rows: Rows, record_set: RecordSet) -> list[Wrong]:
    """The errors with the greatest losses, at most 16, worst first; `rows` are NumPy arrays [N], with padding."""
    ids, losses, decisions = rows
    wrong = np.flatnonzero((ids >= 0) & (decisions != record_set.labels[ids]))
    # Stable, and what is no number first: that is worse than any loss.
    worst = wrong[np.argsort(-np.nan_to_num(losses[wrong], nan=np.inf), kind='stable')][:_COUNT]
    return [Wrong(int(ids[i]), int(decisions[i]), float(np.exp(-losses[i]))) for i in worst]


def of_errors(config: TrainConfig, record_set: RecordSet, errors: list[Wrong]) -> np.ndarray:
    """The errors' images as they are evaluated, uint8 [H, W, 3], each with its class, the model's, and its source."""
    names = record_set.manifest.class_names
    captions = [[*_lines(record_set, wrong.record_id, f': {wrong.probability:.3f}'),
                 f'taken for {sheets.printable(names[wrong.decision])}'] for wrong in errors]
    ids = [wrong.record_id for wrong in errors]
    return _sheet(config, record_set, ids, captions, AS_IT_IS, np.zeros(len(ids), np.int64))


def _lines(record_set: RecordSet, record_id: int, more: str = '') -> list[str]:
    label = record_set.manifest.class_names[record_set.labels[record_id]]
    return [sheets.printable(record_set.sources[record_id]), sheets.printable(label) + more]


def _sheet(config: TrainConfig, record_set: RecordSet, ids: list[int], captions: list[list[str]], views: Views,
           chosen: np.ndarray) -> np.ndarray:
    size, cells = config.height_width(), []
    for (number, stored), view in zip(tfrecord.read_images(record_set, ids), chosen, strict=True):
        which = {'view': tf.constant(view, tf.int64), 'record_id': tf.constant(number, tf.int64)}
        box = augment.crop_box(views, **which)
        pixels = images.decode_stored(tf.constant(stored), record_set.manifest.storage, *size, box)
        cells.append(_small(augment.augment(pixels, views, **which).numpy()))
    return np.asarray(sheets.draw(sheets.in_rows(cells, _COLUMNS), sheets.in_rows(captions, _COLUMNS), shorten=True))


def _small(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))  # keeps what is no larger
    return np.asarray(image)
