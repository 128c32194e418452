"""Peak memory of the input pipeline over an epoch of many small records: it should not grow.

python benchmarks/pipeline_memory.py; a million records of 100 bytes, about 2 minutes on two CPU cores.
"""

import dataclasses
import io
import pathlib
import tempfile

import numpy as np
from PIL import Image
import psutil

from boardrec import cli, progress
from boardrec.config import setting
from boardrec.data import records, tfrecord

_SHARD_RECORDS = 50_000
_PARTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineMemoryConfig:
    """Settings of this script."""

    count: int = setting('records', 1_000_000)
    pipeline_ram_mb: int = setting('MiB that the pipeline may buffer', 1024)


def main(config: PipelineMemoryConfig) -> None:
    """Writes tiny images as records, reads one epoch of training batches, and prints the resident memory by tenths."""
    progress.import_tensorflow()
    from boardrec.data import input_pipeline
    with tempfile.TemporaryDirectory() as folder:
        record_set = write(pathlib.Path(folder), config.count)
        before = resident()
        batches = input_pipeline.train_dataset(
            record_set, image_size=(8, 8), batch_size=1000, ram_mb=config.pipeline_ram_mb)
        progress.say(f'{config.count:,} records; before the pipeline {before:,.0f} MiB')
        steps, seen = -(-config.count // 1000), 0
        for number, batch in enumerate(batches, 1):
            seen += len(batch.labels)
            if number % -(-steps // _PARTS) == 0 or number == steps:
                progress.say(f'after {seen:,} records: {resident() - before:,.0f} MiB more')


def write(folder: pathlib.Path, count: int) -> records.RecordSet:
    """A record set of `count` equal images of 8x8 pixels, in one split; its index is not written."""
    encoded = io.BytesIO()
    Image.new('RGB', (8, 8), 'red').save(encoded, 'PNG')
    shards, offsets, total = [], [], -(-count // _SHARD_RECORDS)
    with progress.bar('writing', total=count, unit='records') as bar:
        for index in range(total):
            size = min(_SHARD_RECORDS, count - index * _SHARD_RECORDS)
            shard, its_offsets = tfrecord.write_shard(
                folder / records.shard_file('train', index, total),
                (tfrecord.Example(encoded.getvalue(), 0, '', '') for _ in range(size)), ['a', 'b'])
            shards.append(shard)
            offsets += its_offsets
            bar.update(size)
    manifest = records.Manifest(
        class_names=['a', 'b'], encoding='keep', image_size=None, resize=None, quality=None, shards=shards,
        splits={'train': records.Split(count, total, {'a': count, 'b': 0})}, index_sha256='')
    return records.RecordSet(folder, manifest, [''] * count, np.zeros(count, np.int32), np.array(offsets, np.int64))


def resident() -> float:
    """MiB of this process."""
    return psutil.Process().memory_info().rss / 2**20


if __name__ == '__main__':
    cli.run(main, PipelineMemoryConfig)
