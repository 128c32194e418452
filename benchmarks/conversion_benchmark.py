"""How fast photographs become records: boardrec, other writers and the decoder's own limit, on the same files.

python benchmarks/conversion_benchmark.py --images=DIR; about 10 minutes on two CPU cores, nothing else running. Each
round of each contestant is a process of its own; they take turns. Peers that are not installed are reported as absent:
pip install simplejpeg webdataset array_record.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from typing import Any

import conversion_peers
from conversion_peers import CONTESTANTS, CORES
from input_benchmark import generate, prepare
from training_benchmark import claim, table

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import files

RESULTS, PLOT = 'conversion_benchmark.json', 'conversion_benchmark.png'
FOLDERS = ('generated', 'images', 'formats', 'logs')
Rounds = dict[str, list[dict[str, Any]]]  # by contestant: what conversion_peers.main says of each round
EXPECTED = [('keep', 'decode', 0.6), ('jpeg', 'parts', 0.8)]  # how many times as fast as which other, at least
COLUMNS = """images/s: median of the rounds, from the command's begin to its end
steady: boardrec's from a quarter of the images on, when all workers have imported TensorFlow, until the last is done,
before leaks are looked for and the set is committed; of limit: of this
CPU ms: of all processes, an image, without imports; it bears a machine that others use, too
parent, worker: peak MiB of the process and of the largest that it starts
boardrec decodes each image, to check it, and syncs what it writes; the other writers do neither"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionBenchmarkConfig:
    """Settings of this script."""

    images: str = setting('folder of {train,val,test}/CLASS/*.jpg or CLASS/*.jpg; without, images are generated', '')
    output: str = setting('folder for all of this; an earlier benchmark is replaced', 'demo/conversion_benchmark')
    contestants: str = setting('what to measure', ','.join(CONTESTANTS))
    count: int = setting('images: a sample of those that there are, or all of them repeatedly', 10_000)
    rounds: int = setting('rounds of each contestant', 3)

    def __post_init__(self):
        if not set(self.contestants.split(',')) <= set(CONTESTANTS):
            raise UserError(f'--contestants={self.contestants}: must be some of {",".join(CONTESTANTS)}.')
        for name, least in (('count', 4), ('rounds', 1)):
            if getattr(self, name) < least:
                raise UserError(f'--{name}={getattr(self, name)}: must be at least {least}.')


def main(config: ConversionBenchmarkConfig) -> None:
    """Measures images/s from files in the page cache to records on disk, beside peers and the decoder's limit."""
    output = pathlib.Path(config.output)
    there = pathlib.Path(config.images).rglob('*') if config.images else ()
    paths = sorted(path for path in there if path.suffix.lower() in ('.jpg', '.jpeg'))
    if config.images and not paths:
        raise UserError(f'--images={config.images}: there are no .jpg or .jpeg files; name another folder.')
    claim(output, RESULTS, FOLDERS)
    (output / 'logs').mkdir()
    if not config.images:
        progress.say('no --images: measuring on generated ones, which decode unlike photographs')
        paths = generate(output / 'generated', min(config.count, 300))
    pixels, size = prepare(paths, output / 'images', config.count)
    about = (f'{config.count} {"" if config.images else "generated "}images, median {pixels / 1e6:.2f} Mpixel and '
             f'{size / 1024:.0f} KiB; {CORES} cores, load {os.getloadavg()[0]:.1f}')
    progress.say(about)
    rounds, reasons = measure(config)
    lines = [*report(rounds, reasons), *expectations(rounds)]
    with files.atomic_write(output / RESULTS) as file:
        file.write(json.dumps({'config': dataclasses.asdict(config), 'about': about, 'rounds': rounds,
                               'absent': reasons, 'report': lines}, indent=1).encode() + b'\n')
    plot(rounds, about, output / PLOT)
    progress.say('\n'.join([*lines, f'results: {output / RESULTS}, {output / PLOT}']))


def measure(config: ConversionBenchmarkConfig) -> tuple[Rounds, dict[str, str]]:
    """Runs the contestants in turn; returns each one's rounds, and why others have none."""
    names = [name for name in CONTESTANTS if name in config.contestants.split(',')]
    rounds, reasons = {name: [] for name in names}, {}
    for number in range(1, config.rounds + 1):
        for name in (name for name in names if name not in reasons):
            answer = _round(name, pathlib.Path(config.output))
            if 'absent' in answer:
                reasons[name] = answer['absent']
            else:
                rounds[name].append(answer)
            shown = reasons.get(name) or f'{rates([answer])[0]:,.0f} images/s'
            progress.say(f'round {number}, {CONTESTANTS[name].title}: {shown}')
    return {name: rounds[name] for name in names if name not in reasons}, reasons


def _round(name: str, output: pathlib.Path) -> dict[str, Any]:
    folder = output / 'formats' / name
    job = conversion_peers.Job(name, str(output / 'images'), str(folder))
    with open(output / 'logs' / f'{name}.txt', 'ab') as log:
        done = subprocess.run([sys.executable, conversion_peers.__file__, json.dumps(job)], stdout=subprocess.PIPE,
                              stderr=log, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    return json.loads(done.stdout) if done.stdout else {'absent': 'failed; what it printed is in the folder logs'}


def rates(measured: Sequence[dict[str, Any]], kind: str = '') -> list[float]:
    """Images/s of each round; `kind` is '' or 'steady_'."""
    return [one[f'{kind}images'] / one[f'{kind}seconds'] for one in measured]


def ratio(rounds: Rounds, name: str, other: str) -> float | None:
    """How many times as fast as another: the median over rounds, each against the other's same round."""
    if name not in rounds or other not in rounds:
        return None
    pairs = zip(rates(rounds[name], 'steady_'), rates(rounds[other], 'steady_'), strict=True)
    return statistics.median(one / two for one, two in pairs)


def cpu_ratio(rounds: Rounds, name: str, other: str) -> float:
    """The same by CPU time."""
    pairs = zip(rounds[name], rounds[other], strict=True)
    return statistics.median(two['cpu_seconds'] / one['cpu_seconds'] for one, two in pairs)


def report(rounds: Rounds, reasons: dict[str, str]) -> list[str]:
    """The table, and who is not in it."""
    rows = [['', 'images/s', 'min-max', 'steady', 'of limit', 'CPU ms', 'MiB written', 'parent', 'worker']]
    for name, measured in rounds.items():
        whole, part = rates(measured), ratio(rounds, name, 'decode')
        peaks = (max(one[f'{process}_rss'] for one in measured) for process in ('parent', 'worker'))
        rows.append([
            CONTESTANTS[name].title, f'{statistics.median(whole):,.0f}', f'{min(whole):,.0f}-{max(whole):,.0f}',
            f'{statistics.median(rates(measured, "steady_")):,.0f}', '' if part is None else f'{part:.2f}',
            f'{1000 * statistics.median(one["cpu_seconds"] for one in measured):.2f}',
            f'{measured[-1]["written"] / 2**20:,.0f}', *(f'{peak / 2**20:,.0f}' for peak in peaks)])
    absent = [f'absent: {CONTESTANTS[name].title}: {reason}' for name, reason in reasons.items()]
    return ['', *table(rows), COLUMNS, *absent]


def expectations(rounds: Rounds) -> list[str]:
    """A line for each ratio that is expected."""
    lines = ['']
    for name, other, least in EXPECTED:
        found = ratio(rounds, name, other)
        shown = 'not measured' if found is None else (
            f'{found:.2f}{"" if found >= least else ", which is less"} '
            f'({cpu_ratio(rounds, name, other):.2f} by CPU time)')
        lines.append(f'{CONTESTANTS[name].title}, of {CONTESTANTS[other].title}: expected {least} or more: {shown}')
    return lines


def plot(rounds: Rounds, about: str, path: pathlib.Path) -> None:
    """Draws a bar for each contestant's median, with a line from its slowest round to its fastest, as PNG."""
    from matplotlib.figure import Figure
    figure = Figure((9, 1 + 0.3 * len(rounds)), layout='constrained')
    axes = figure.subplots()
    axes.set_title(f'conversion, images/s without the start of workers; {about}', fontsize=8)
    for name, measured in rounds.items():
        found, color = rates(measured, 'steady_'), 'tab:orange' if name in ('keep', 'jpeg') else 'tab:gray'
        median = statistics.median(found)
        axes.barh(CONTESTANTS[name].title, median, xerr=[[median - min(found)], [max(found) - median]], color=color)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    cli.run(main, ConversionBenchmarkConfig)
