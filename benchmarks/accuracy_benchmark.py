"""Test accuracy of a recipe on five splits of the demo's solar cells, beside the published figure.

python benchmarks/accuracy_benchmark.py; about 20 minutes a split on two CPU cores with avx512_bf16. The same command
goes on where it was interrupted, and trains no split again that it has finished with the same recipe.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import files

ROOT = pathlib.Path(__file__).resolve().parents[1]
PUBLISHED_ACCURACY = 0.8842  # VGG-19 on a 75/25 split of these images: Deitsch et al., Solar Energy 185 (2019), 455-468
EXPECTED = 0.9
FIGURES = ('accuracy', 'auc', 'log_loss', 'minutes')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccuracyBenchmarkConfig:
    """Settings of this script."""

    output: str = setting('folder for images, records and runs; what is there already is reused',
                          'demo/accuracy_benchmark')
    recipe: str = setting('flag file of boardrec.train', 'flags/vgg16.flags')
    seeds: str = setting('splits to train on: seeds of tools/fetch_demo_data.py', '0,1,2,3,4')
    inference_precision: str = setting('in which the test images are evaluated: bfloat16 takes a quarter of the time',
                                       'bfloat16', choices=('float32', 'bfloat16'))
    record_weights: bool = setting('weigh the labels that the experts were not sure of, with 1/3 and 2/3', False)

    def __post_init__(self):
        try:
            good = bool(self.numbers()) and min(self.numbers()) >= 0
        except ValueError:
            good = False
        if not good or len(set(self.numbers())) < len(self.numbers()):
            raise UserError(f'--seeds={self.seeds}: must be different whole numbers like 0,1,2.')

    def numbers(self) -> list[int]:
        """`seeds` as numbers."""
        return [int(seed) for seed in self.seeds.split(',')]


def main(config: AccuracyBenchmarkConfig) -> None:
    """Trains and evaluates a recipe on each split; prints test accuracy, its mean and its standard deviation."""
    results = {}
    for seed in config.numbers():
        results[seed] = _split(config, pathlib.Path(config.output).absolute() / f'seed{seed}', seed)
        progress.say(f'\nsplit {seed}: test accuracy {results[seed]["accuracy"]:.4f}')
    progress.say(report(results))


def _split(config: AccuracyBenchmarkConfig, folder: pathlib.Path, seed: int) -> dict[str, float]:
    """The figures of one split; each command leaves alone what it finds done, and refuses another recipe."""
    images, records, run = folder / 'images', folder / 'records', folder / 'run'
    cache = folder / 'feature_cache'
    folder.mkdir(parents=True, exist_ok=True)
    _command('tools/fetch_demo_data.py', f'--output_dir={images}', f'--seed={seed}')
    _command('tools/make_records.py', f'--input_dir={images}', f'--output_dir={records}')
    weights = [f'--record_weights={images}.csv'] if config.record_weights else []
    seconds = _command('-m', 'boardrec.train', f'--flagfile={config.recipe}', f'--records={records}',
                       f'--run_dir={run}', f'--feature_cache_dir={cache}',
                       f'--inference_precision={config.inference_precision}', *weights)
    timing = folder / 'training_seconds.json'
    if not timing.is_file():  # of a training that was interrupted, only the last part
        with files.atomic_write(timing) as file:
            file.write(json.dumps(seconds).encode())
    if cache.exists():
        shutil.rmtree(cache)  # more than a gigabyte, and each split has its own
    _command('-m', 'boardrec.evaluate', f'--run_dir={run}', '--split=test')
    return figures(json.loads((run / 'evaluation' / 'test' / 'metrics.json').read_bytes()),
                   json.loads(timing.read_bytes()))


def figures(metrics: Mapping, seconds: float) -> dict[str, float]:
    """What is shown of a split's metrics.json: accuracy is that at a probability of 0.5, as the published one."""
    at_half = metrics.get('at_half') or metrics
    return {'accuracy': at_half['accuracy'], 'auc': metrics['auc'], 'log_loss': metrics['log_loss'],
            'minutes': seconds / 60}


def report(results: Mapping[int, Mapping[str, float]]) -> str:
    """The table: a row a split, then mean and standard deviation (of a sample; none of one split)."""
    rows = [['split', *FIGURES]]
    rows += [[str(seed), *(_shown(name, one[name]) for name in FIGURES)] for seed, one in results.items()]
    columns = {name: [one[name] for one in results.values()] for name in FIGURES}
    rows.append(['mean', *(_shown(name, statistics.mean(values)) for name, values in columns.items())])
    if len(results) > 1:
        rows.append(['deviation', *(_shown(name, statistics.stdev(values)) for name, values in columns.items())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return '\n'.join(['', *lines, f'published, VGG-19 on one such split: accuracy {PUBLISHED_ACCURACY}; expected here: '
                                  f'a mean of at least {EXPECTED}'])


def _shown(name: str, value: float) -> str:
    return f'{value:.1f}' if name == 'minutes' else f'{value:.4f}'


def _command(*arguments: str) -> float:
    """Runs Python in the checkout and returns its seconds; ends with the command's status if it fails."""
    progress.say(f'\n== python {" ".join(arguments)}')
    start = time.perf_counter()
    status = subprocess.run([sys.executable, *arguments], check=False, cwd=ROOT).returncode
    if status:
        sys.exit(status)
    return time.perf_counter() - start


if __name__ == '__main__':
    cli.run(main, AccuracyBenchmarkConfig, resumes=True)
