"""boardrec's training against a plain Keras `fit` of the same model, on the same images and weights, in one run.

python benchmarks/training_benchmark.py, after `make demo`; about 25 minutes on two CPU cores.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
import timeit
from typing import NamedTuple

import keras_fit

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import files
from boardrec.training import run_dir

TITLES = {'keras': 'Keras fit', 'uncached': 'boardrec, no cache', 'cached': 'boardrec, cached'}
RESULTS = 'training_benchmark.json'
CACHED_EPOCHS = 5  # really run
# Cached against Keras, on two cores with avx512_bf16: times the images/s, times shorter by a training's epochs.
EXPECTED_RATE, EXPECTED_SHORTER = 10, {5: 6, 20: 9}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Settings of this script."""

    images: str = setting('folder of images in train/ and val/, of two classes', 'demo/images')
    records: str = setting('folder of the same images as records', 'demo/records')
    output: str = setting('folder for all of this; an earlier benchmark is replaced', 'demo/training_benchmark')
    recipe: str = setting('flag file of boardrec.train', 'flags/vgg16.flags')
    variants: str = setting('what to measure', ','.join(TITLES))
    epochs_measured: int = setting('epochs of keras and uncached; a longer training is extrapolated', 2)

    def __post_init__(self):
        if not set(self.variants.split(',')) <= set(TITLES):
            raise UserError(f'--variants={self.variants}: must be some of {",".join(TITLES)}.')
        if self.epochs_measured < 2:
            raise UserError(f'--epochs_measured={self.epochs_measured}: must be at least 2: the first compiles.')


class Measured(NamedTuple):
    """What one training showed."""

    precision: str
    seconds: float  # of the whole process
    epochs: int
    images_per_second: float  # of an epoch's training; the median of the epochs after the first
    epoch_seconds: float  # from one epoch's end to the next: training, validation, saving; the median
    peak_rss: int  # bytes
    disk: int  # bytes of all that it wrote
    trunk: dict[str, float] | None  # records, bytes and seconds of the trunk pass

    def wall(self, epochs: int) -> float:
        """Seconds of a training of so many epochs: what was measured, and the median for each further one."""
        return self.seconds + (epochs - self.epochs) * self.epoch_seconds


def main(config: BenchmarkConfig) -> None:
    """Measures a plain Keras fit and boardrec without and with cached features: rates, wall time, memory, disk."""
    recipe, output = keras_fit.read_recipe(config.recipe), pathlib.Path(config.output)
    keras_fit.require_images(pathlib.Path(config.images))
    if not (pathlib.Path(config.records) / 'manifest.json').is_file():
        raise UserError(f'--records={config.records}: holds no records; run `make demo` first, or name another folder.')
    claim(output, RESULTS, TITLES)
    measured, peaks = {}, {'bfloat16': 0.0, 'float32': 0.0}
    for name in (name for name in TITLES if name in config.variants.split(',')):
        measured[name] = _measure(name, config, output / name)
        with multiprocessing.get_context('spawn').Pool(1) as pool:  # a child's peak memory starts at its parent's
            for precision in {*peaks, measured[name].precision}:  # each time, for what else runs here changes
                peaks[precision] = max(peaks.get(precision, 0), pool.apply(_peak, (precision,)))
    progress.import_tensorflow()
    layers = [part for layer in keras_fit.build(recipe).layers for part in getattr(layer, 'layers', [layer])]
    flops = image_flops([(part.kernel.shape, part.output.shape, bool(part.trainable_variables))
                         for part in layers if hasattr(part, 'kernel')])
    results = {'config': dataclasses.asdict(config), 'cores': os.cpu_count(), 'peak_gflops': peaks,
               'frozen_and_trained_gflop_an_image': [part / 1e9 for part in flops],
               'measured': {name: one._asdict() for name, one in measured.items()}, 'ratios': ratios(measured)}
    with files.atomic_write(output / RESULTS) as file:
        file.write(json.dumps(results, indent=1).encode() + b'\n')
    progress.say(f'{report(measured, peaks, flops)}\nresults: {output / RESULTS}')


def claim(output: pathlib.Path, results: str, folders: Iterable[str]) -> None:
    """Clears an earlier benchmark's folders away. Raises UserError for a folder that does not hold its results."""
    if output.exists() and not (output / results).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f'--output={output}: holds something that is no benchmark of this kind; name another folder.')
    output.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(output / results) as file:  # marks the folder as ours, also if this run is interrupted
        file.write(b'{}\n')
    for path in filter(pathlib.Path.exists, (output / name for name in folders)):
        shutil.rmtree(path)


def _measure(name: str, config: BenchmarkConfig, folder: pathlib.Path) -> Measured:
    run, cache = folder / 'run', folder / 'feature_cache'
    epochs = CACHED_EPOCHS if name == 'cached' else config.epochs_measured
    if name == 'keras':
        command = [keras_fit.__file__, f'--images={config.images}', f'--recipe={config.recipe}']
    else:
        command = ['-m', 'boardrec.train', f'--flagfile={config.recipe}', f'--records={config.records}',
                   f'--feature_cache={"on" if name == "cached" else "off"}', f'--feature_cache_dir={cache}',
                   '--early_stopping_patience=0', '--cached_views=1']  # one view, as Keras's fit
    seconds, peak_rss, ends = _run([*command, f'--run_dir={run}', f'--epochs={epochs}'], TITLES[name])
    history = run_dir.read_history(run_dir.RunDir(run))
    manifests = [json.loads(path.read_bytes()) for path in cache.glob('*/manifest.json')]
    return Measured(
        'float32' if name == 'keras' else run_dir.read_config(run).precision, seconds, epochs,
        statistics.median(row['images_per_second'] for row in history[1:]),
        statistics.median(end - before for before, end in zip(ends, ends[1:], strict=False)), peak_rss,
        sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()),
        {key: sum(manifest[key] for manifest in manifests) for key in ('records', 'bytes', 'seconds')}
        if name == 'cached' else None)


def _run(arguments: list[str], title: str) -> tuple[float, int, list[float]]:
    """Runs Python: its seconds, its peak memory in bytes, and when each line on a finished epoch came."""
    progress.say(f'\n== {title}\n   python {" ".join(arguments)}')
    start, ends = time.perf_counter(), []
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if re.match(r'epoch \d+/', line):
                ends.append(time.perf_counter())
            progress.say(line.rstrip('\n'))
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, usage.ru_maxrss * 1024, ends


def _peak(precision: str) -> float:
    """GFLOP/s of square matrix products: the better of two sizes, each the median of the three fastest of nine."""
    progress.import_tensorflow()
    import tensorflow as tf
    product, rates = tf.function(lambda matrix: tf.matmul(matrix, matrix)[0, 0]), []
    for side in (2048, 4096):
        matrix = tf.cast(tf.random.normal([side, side]), precision)
        seconds = timeit.repeat(lambda matrix=matrix: product(matrix).numpy(), number=1, repeat=10)
        rates.append(2 * side**3 / 1e9 / sorted(seconds[1:])[1])  # the first one compiles
    return max(rates)


def image_flops(layers: Sequence[tuple[Sequence[int], Sequence[int | None], bool]]) -> tuple[int, int]:
    """Operations, two a multiply-add, that one image costs: before the first trained layer, and from there on.

    `layers` has the kernel's shape, the output's and whether it is trained, of each Conv2D and Dense. A trained one
    takes its weights' gradients too and, but for the first, its input's.
    """
    forward = [2 * math.prod(kernel) * math.prod(output[1:-1]) for kernel, output, _ in layers]
    learnt = [flops for flops, (*_, trained) in zip(forward, layers, strict=True) if trained]
    first = [trained for *_, trained in layers].index(True)
    return sum(forward[:first]), sum(forward[first:]) + 2 * sum(learnt) - learnt[0]


def ratios(measured: dict[str, Measured]) -> list[tuple[str, float, float]]:
    """How many times better cached features are than Keras, and are expected to be; empty unless both were run."""
    keras, cached = measured.get('keras'), measured.get('cached')
    return [] if not keras or not cached else [
        ('images/s of later epochs', cached.images_per_second / keras.images_per_second, EXPECTED_RATE),
        *((f'wall time of {n} epochs{"" if n == keras.epochs == cached.epochs else ", extrapolated"}',
           keras.wall(n) / cached.wall(n), times) for n, times in EXPECTED_SHORTER.items())]


def report(measured: dict[str, Measured], peaks: dict[str, float], flops: tuple[int, int]) -> str:
    """The table, what its columns mean, and the ratios beside the expected ones."""
    walls = [f'{n} epochs' for n in EXPECTED_SHORTER]
    rows = [['', 'images/s', 's/epoch', 'GFLOP/s', 'of peak', *walls, 'peak RSS MiB', 'disk MiB']]
    for name, one in measured.items():
        title, peak, cost = f'{TITLES[name]}, {one.precision}', peaks[one.precision], sum(flops)
        if one.trunk:
            cost, trunk = flops[1], one.trunk
            rows.append([f'{title}: trunk pass, once', *_speed(trunk['records'] / trunk['seconds'], flops[0], peak,
                         trunk['seconds']), *('' for _ in walls), '', f'{trunk["bytes"] / 2**20:,.0f}'])
        rows.append([
            f'{title}: median of {one.epochs - 1}', *_speed(one.images_per_second, cost, peak, one.epoch_seconds),
            *(f'{one.wall(n):,.0f} s{" " if n == one.epochs else "*"}' for n in EXPECTED_SHORTER),
            f'{one.peak_rss / 2**20:,.0f}', f'{one.disk / 2**20:,.0f}'])
    shown = ', '.join(f'{name} {peak:,.0f} GFLOP/s' for name, peak in peaks.items())
    return '\n'.join([
        '', *table(rows), '* extrapolated: the epochs that were run, and their median for each further one',
        'images/s: training alone; s/epoch: with validation and saving; without the first epoch, which compiles',
        f'peak: matrix products, the best of those after each training: {shown}',
        *(f'cached against Keras fit: {title}: {ratio:.1f} times better; expected on two cores with avx512_bf16: at '
          f'least {expected}' for title, ratio, expected in ratios(measured))])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _speed(rate: float, cost: int, peak: float, seconds: float) -> list[str]:
    return [f'{rate:.1f}', f'{seconds:.1f}', f'{rate * cost / 1e9:,.0f}', f'{rate * cost / 1e9 / peak:.0%}']


if __name__ == '__main__':
    cli.run(main, BenchmarkConfig)
