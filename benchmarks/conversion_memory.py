"""Peak memory of the converter's processes over many small files: a worker's should not grow, the parent's little.

python benchmarks/conversion_memory.py; a million JPEGs of 5 KB (links to 500 of them), about 30 minutes on two CPU
cores and 6 GB below --folder.
"""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import conversion_peers
import numpy as np
from PIL import Image

from boardrec import cli, progress
from boardrec.config import setting

_DIFFERENT = 500  # files; others are links to them
_FOLDER_FILES = 10_000
_SIDE = 104  # pixels: noise of so many at quality 50 makes about 5 KB


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionMemoryConfig:
    """Settings of this script."""

    count: str = setting('files to convert; several counts, with commas, one after the other', '1000000')
    folder: str = setting('folder for the files and records, which are removed again; by default the system\'s', '')


def main(config: ConversionMemoryConfig) -> None:
    """Converts so many small files and prints the peak memory of the parent and of the largest worker."""
    for count in map(int, config.count.split(',')):
        with tempfile.TemporaryDirectory(dir=config.folder or None) as folder:
            size = write(pathlib.Path(folder, 'images'), count)
            job = conversion_peers.Job('keep', f'{folder}/images', f'{folder}/records')
            done = subprocess.run([sys.executable, conversion_peers.__file__, json.dumps(job)], check=True,
                                  stdout=subprocess.PIPE)
        found = json.loads(done.stdout)
        progress.say(f'{count:,} files of {size / 1000:.1f} KB in {found["seconds"]:,.0f} s: parent '
                     f'{found["parent_rss"] / 2**20:,.0f} MiB, worker {found["worker_rss"] / 2**20:,.0f} MiB')


def write(folder: pathlib.Path, count: int) -> float:
    """Writes so many JPEGs of two classes; returns their mean bytes."""
    first, sizes = [], []
    for number in range(count):
        path = folder / 'ab'[number % 2] / f'{number // _FOLDER_FILES:04d}' / f'photograph_{number:08d}.jpg'
        if number % _FOLDER_FILES < 2:
            path.parent.mkdir(parents=True)
        if number < _DIFFERENT:
            pixels = np.random.default_rng(number).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, 'JPEG', quality=50)
            path.write_bytes(encoded.getvalue())
            first.append(path)
            sizes.append(len(encoded.getvalue()))
        else:
            os.link(first[number % _DIFFERENT], path)
    return sum(sizes) / len(sizes)


if __name__ == '__main__':
    cli.run(main, ConversionMemoryConfig)
