"""What encoding images anew has made of them, in one line: how many bytes, how faithful, how fast to decode.

Measured on a sample, in a worker process: the converter's parent process stays without TensorFlow.
"""

from collections.abc import Callable, Sequence
import math
import pathlib
import random
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from boardrec import progress
from boardrec.data import records, scan, source_file, workers
from boardrec.data.records import Storage

_SAMPLE = 64  # images at most
_PREPARATION_SECONDS = 1.0  # after which the sample is large enough; of photographs of many pixels it is smaller
_TIMING_SECONDS = 0.3  # for either way of decoding, at least
_WORTH_IT = 1.2  # times as fast to decode
_TRAINING_SIZE = (224, 224)  # what is decoded to where images keep their size: the default of training


class Measured(NamedTuple):
    """What a sample of a record set's images gave."""

    images: int
    psnr: float  # dB, of what is stored against the resized pixels; infinite if they are equal
    speedup: float  # how many times as fast a stored image is decoded to `decoded_size` as its source


def say(root: pathlib.Path | str, sources: Sequence[scan.Found], manifest: records.Manifest,
        pool: workers.Pool) -> None:
    """Says what became of these sources, which are the records of the manifest."""
    storage, stored = manifest.storage, sum(shard.bytes for shard in manifest.shards)
    sample = random.Random(0).sample(sources, min(_SAMPLE, len(sources)))
    measured = pool.call(measure, str(root), sample, storage)
    told = f'{stored / 2**20:,.1f} MiB of records from {sum(item.bytes for item in sources) / 2**20:,.1f} MiB of images'
    if measured:
        height, width = decoded_size(storage)
        fidelity = 'lossless' if math.isinf(measured.psnr) else f'PSNR {measured.psnr:.1f} dB'
        told += (f'; {fidelity}; decoded to {height}x{width} {measured.speedup:.1f} times as fast '
                 f'({measured.images} images measured)')
    progress.say(f'{storage.encoding}: {told}')
    if measured and stored > sum(item.bytes for item in sources) and measured.speedup < _WORTH_IT:
        progress.say('note: these records are larger than the files and hardly faster to decode: leave out '
                     f'--encoding={storage.encoding}, and the files are kept as they are')


def decoded_size(storage: Storage) -> tuple[int, int]:
    """The size that decoding is timed at."""
    return storage.image_size or _TRAINING_SIZE


def measure(root: str, sources: Sequence[scan.Found], storage: Storage) -> Measured | None:
    """Prepares these sources again, as many as there is time for, and compares; None if none can be read any more."""
    from boardrec.data import images  # imports TensorFlow: workers only
    prepared, errors, start = [], [], time.perf_counter()
    for source in sources:
        try:
            one = images.prepare(source_file.read(root, source, sys.maxsize).data, storage)
        except (OSError, MemoryError, images.Rejected):  # changed since it was converted
            continue
        again = images.decode_stored(one.stored, storage, one.image.height, one.image.width).numpy()
        errors.append(_mean_square(again.astype(np.float32) - np.asarray(one.image)))
        prepared.append(one)
        if time.perf_counter() - start > _PREPARATION_SECONDS:
            break
    if not prepared:
        return None
    size, error = decoded_size(storage), sum(errors) / len(errors)
    of_sources = _seconds(lambda data: images.decode(data, *size), [one.normalised for one in prepared])
    of_stored = _seconds(lambda data: images.decode_stored(data, storage, *size), [one.stored for one in prepared])
    psnr = 10 * math.log10(255**2 / error) if error else math.inf
    return Measured(len(prepared), psnr, of_sources / of_stored)


def _mean_square(difference: Any) -> float:
    return float((difference**2).mean())


def _seconds(decode: Callable[[Any], Any], encoded: list[bytes]) -> float:
    """How long one pass over these takes, decoded by one thread of a tf.data pipeline."""
    import tensorflow as tf
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False  # such as decoding ahead, in a thread
    dataset = tf.data.Dataset.from_tensor_slices(encoded)
    dataset = dataset.map(lambda data: decode(data)[0, 0, 0])  # not the copying of batches
    batches = iter(dataset.batch(len(encoded)).repeat().with_options(options))
    next(batches)  # compiles
    passes, start = 0, time.perf_counter()
    while not passes or time.perf_counter() - start < _TIMING_SECONDS:
        next(batches)
        passes += 1
    return (time.perf_counter() - start) / passes
