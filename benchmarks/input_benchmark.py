"""How fast images become batches: boardrec, other loaders and libjpeg-turbo's own limit, on the same files, in one run.

python benchmarks/input_benchmark.py --images=DIR; about 20 minutes on two CPU cores. Each contestant is a process that
stands still while another's round runs, so that all meet the same machine. Peers that are not installed are reported
as absent: pip install simplejpeg torch torchvision webdataset grain array_record.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
from typing import Any

import input_peers
from input_peers import CONTESTANTS, CORES
import numpy as np
from PIL import Image
from training_benchmark import claim, table

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import files

RESULTS, PLOT = 'input_benchmark.json', 'input_benchmark.png'
FOLDERS = ('generated', 'images', 'records', 'formats', 'logs')
Rounds = dict[str, list[dict[str, Any]]]  # by contestant: what input_peers.measure says of each round
MODES = {'eval': 'evaluation: in order, resized', 'train': 'training: shuffled, random-resized crop, mirrored'}
COLUMNS = """images/s: median of the rounds; a core: by all there are; of limit, of keras: median of each round's ratio
cores: CPU time by time, of the median round; less than there are: starved or not parallel
RSS: peak, all processes of the contestant added, so what they share counts for each"""
LARGE = 2_000_000  # pixels: from here on, photographs of several megapixels
# (mode, contestant, against which other, at least how many times as fast), on images below LARGE and from there on.
EXPECTED = {
    False: [('eval', 'original', 'limit', 0.6), ('eval', 'original', 'keras', 1.25),
            ('train', 'original', 'keras', 1.35), ('eval', 'jpeg256', 'keras', 2.5), ('eval', 'jpeg224', 'keras', 4.5),
            ('eval', 'raw224', 'keras', 9)],
    True: [('eval', 'original', 'limit_scaled', 1.0), ('eval', 'original', 'keras', 1.35),
           ('eval', 'original', 'torch_draft', 1.1)]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputBenchmarkConfig:
    """Settings of this script."""

    images: str = setting('folder of {train,val,test}/CLASS/*.jpg or CLASS/*.jpg; without, images are generated', '')
    output: str = setting('folder for all of this; an earlier benchmark is replaced', 'demo/input_benchmark')
    contestants: str = setting('what to measure', ','.join(CONTESTANTS))
    modes: str = setting('how to measure', ','.join(MODES))
    batch_size: int = setting('images a batch', 64)
    count: int = setting('images a round: a sample of those that there are, or all of them repeatedly', 3000)
    rounds: int = setting('rounds of each contestant, after one that is not counted', 5)

    def __post_init__(self):
        for name, known in (('contestants', CONTESTANTS), ('modes', MODES)):
            if not set(getattr(self, name).split(',')) <= set(known):
                raise UserError(f'--{name}={getattr(self, name)}: must be some of {",".join(known)}.')
        for name in ('batch_size', 'count', 'rounds'):
            if getattr(self, name) < 1:
                raise UserError(f'--{name}={getattr(self, name)}: must be at least 1.')


def main(config: InputBenchmarkConfig) -> None:
    """Measures images/s from files in the page cache to batches of 224x224, beside peers and the decoder's limit."""
    output, names = pathlib.Path(config.output), config.contestants.split(',')
    files_there = pathlib.Path(config.images).rglob('*') if config.images else ()
    paths = sorted(path for path in files_there if path.suffix.lower() in ('.jpg', '.jpeg'))
    if config.images and not paths:
        raise UserError(f'--images={config.images}: there are no .jpg or .jpeg files; name another folder.')
    claim(output, RESULTS, FOLDERS)
    (output / 'logs').mkdir()
    if not config.images:
        progress.say('no --images: measuring on generated ones, which decode unlike photographs')
        paths = generate(output / 'generated', min(config.count, 300))
    pixels, size = prepare(paths, output / 'images', config.count)
    about = (f'{config.count} {"" if config.images else "generated "}images a round, median {pixels / 1e6:.2f} Mpixel '
             f'and {size / 1024:.0f} KiB; batches of {config.batch_size}; {CORES} cores, load {os.getloadavg()[0]:.1f}')
    progress.say(about)
    wanted = dict.fromkeys(CONTESTANTS[name].records for name in names)
    refused = {flags: convert(output, flags) for flags in wanted if flags is not None}
    rounds, reasons = {}, {}
    for mode in config.modes.split(','):
        rounds[mode], reasons[mode] = measure(mode, config, refused)
    lines = [line for mode in rounds for line in report(mode, rounds[mode], reasons[mode])]
    lines += expectations(rounds, large=pixels >= LARGE)
    with files.atomic_write(output / RESULTS) as file:
        file.write(json.dumps({'config': dataclasses.asdict(config), 'about': about, 'rounds': rounds,
                               'absent': reasons, 'report': lines}, indent=1).encode() + b'\n')
    plot(rounds, about, output / PLOT)
    progress.say('\n'.join([*lines, f'results: {output / RESULTS}, {output / PLOT}']))


def generate(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Writes JPEGs of 500x375, about 55 KB each: noise that is weaker at higher frequencies, as in photographs."""
    paths = [folder / f'class_{index % 2}' / f'{index}.jpg' for index in range(count)]
    for index, path in enumerate(paths):
        rng, pixels = np.random.default_rng(index), np.full((375, 500, 3), 127.5)
        for step in (1, 2, 4, 8, 16, 32, 64, 128):
            noise = Image.fromarray(rng.integers(0, 256, (375 // step + 1, 500 // step + 1, 3), np.uint8))
            pixels += 0.04 * step**0.6 * (np.asarray(noise.resize((500, 375), Image.BICUBIC), float) - 127.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=92)
    return paths


def prepare(paths: Sequence[pathlib.Path], folder: pathlib.Path, count: int) -> tuple[float, float]:
    """Copies `count` of the files, or copies of them, to FOLDER/CLASS/; returns the median pixels and bytes."""
    copies, sizes = {}, []
    for index, path in enumerate(sample(paths, count)):
        copy = folder / path.parent.name / f'{index:06d}.jpg'
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path in copies:
            os.link(copies[path], copy)
        else:
            copies[path] = shutil.copyfile(path, copy)
        with Image.open(copy) as image:
            sizes.append((image.width * image.height, copy.stat().st_size))
    return tuple(map(statistics.median, zip(*sizes, strict=True)))


def sample(items: Sequence[Any], count: int) -> list[Any]:
    """So many of the items, evenly spread; all of them again and again if there are fewer."""
    every = max(1, len(items) / count)
    return [items[int(index * every) % len(items)] for index in range(count)]


def _records(output: pathlib.Path, flags: Sequence[str]) -> pathlib.Path:
    return output / 'records' / ('original' if not flags else ','.join(flags).replace('--', ''))


def convert(output: pathlib.Path, flags: Sequence[str]) -> str:
    """Makes records of the images with these flags of tools/make_records.py; returns why not, if it refuses them."""
    tool = pathlib.Path(__file__).parents[1] / 'tools' / 'make_records.py'
    done = subprocess.run(
        [sys.executable, tool, f'--input_dir={output / "images"}', f'--output_dir={_records(output, flags)}',
         '--splits=train:1', *flags], capture_output=True, text=True, check=False)
    if done.returncode not in (0, cli.USER_ERROR):
        raise RuntimeError(f'make_records failed:\n{done.stderr}')
    return done.stderr.strip().removeprefix('error: ') if done.returncode else ''


def measure(mode: str, config: InputBenchmarkConfig, refused: dict[Sequence[str] | None, str],
            ) -> tuple[Rounds, dict[str, str]]:
    """Runs the contestants' rounds in turn; returns each one's rounds without the first, and why others have none."""
    names = [name for name in CONTESTANTS if name in config.contestants.split(',') and mode in CONTESTANTS[name].modes]
    reasons = {name: f'make_records: {reason}' for name in names if (reason := refused.get(CONTESTANTS[name].records))}
    rounds, processes = {name: [] for name in names}, {}
    try:
        for number in range(config.rounds + 1):
            for name in (name for name in names if name not in reasons):
                if name not in processes:
                    processes[name] = _start(name, mode, config)
                answer = _round(processes[name])
                if 'absent' in answer:
                    reasons[name] = answer['absent']
                elif number:  # the first round compiles, fills caches, converts
                    rounds[name].append(answer)
                shown = reasons.get(name) or f'{_rates([answer])[0]:,.0f} images/s'
                progress.say(f'{mode}, round {number or "0 (not counted)"}, {CONTESTANTS[name].title}: {shown}')
    finally:
        for process in processes.values():
            _signal(process, signal.SIGKILL)
            process.communicate()
    return {name: rounds[name] for name in names if name not in reasons}, reasons


def _start(name: str, mode: str, config: InputBenchmarkConfig) -> subprocess.Popen:
    contestant, output = CONTESTANTS[name], pathlib.Path(config.output)
    job = input_peers.Job(
        name, mode == 'train', str(output / 'images'), str(_records(output, contestant.records or ())),
        str(output / 'formats' / name), config.batch_size, skip=max(2 * config.batch_size, config.count // 8),
        count=config.count)
    with open(output / 'logs' / f'{mode}_{name}.txt', 'wb') as log:
        return subprocess.Popen(
            [sys.executable, input_peers.__file__, json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, start_new_session=True)


def _round(process: subprocess.Popen) -> dict[str, Any]:
    """One round; before and after it the contestant and its workers stand still, buffers as full as they are."""
    _signal(process, signal.SIGCONT)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b'\n')
        process.stdin.flush()
    answer = process.stdout.readline()
    _signal(process, signal.SIGSTOP)
    return json.loads(answer) if answer else {'absent': 'failed; what it printed is in the folder logs'}


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # its own session: all that it started, and nothing else


def _rates(rounds: Sequence[dict[str, Any]], time: str = 'seconds') -> list[float]:
    return [one['images'] / one[time] for one in rounds]


def ratio(rounds: Rounds, name: str, other: str, time: str = 'seconds') -> float | None:
    """How many times as fast as another: the median over rounds, each against the other's same round."""
    if name not in rounds or other not in rounds:
        return None
    pairs = zip(_rates(rounds[name], time), _rates(rounds[other], time), strict=True)
    return statistics.median(one / two for one, two in pairs)


def report(mode: str, rounds: Rounds, reasons: dict[str, str]) -> list[str]:
    """The table of one mode, and who is not in it."""
    rows = [['', 'images/s', 'min-max', 'a core', 'of limit', 'of keras', 'CPU ms/image', 'cores', 'RSS MiB', 'images']]
    for name, measured in rounds.items():
        rates, parts = _rates(measured), [ratio(rounds, name, other) for other in ('limit', 'keras')]
        median, cpu = statistics.median(rates), 1 / statistics.median(_rates(measured, 'cpu_seconds'))
        rows.append([
            CONTESTANTS[name].title, f'{median:,.0f}', f'{min(rates):,.0f}-{max(rates):,.0f}', f'{median / CORES:,.0f}',
            *('' if part is None else f'{part:.2f}' for part in parts), f'{1000 * cpu:.2f}', f'{median * cpu:.1f}',
            f'{max(one["peak_rss"] for one in measured) / 2**20:,.0f}', measured[-1]['output']])
    absent = [f'absent: {CONTESTANTS[name].title}: {reason}' for name, reason in reasons.items()]
    return ['', f'== {MODES[mode]}', *table(rows), COLUMNS, *absent]


def expectations(rounds: dict[str, Rounds], *, large: bool) -> list[str]:
    """A line for each ratio that is expected on such images."""
    lines = ['']
    for mode, name, other, least in EXPECTED[large]:
        found, by_cpu = (ratio(rounds.get(mode, {}), name, other, time) for time in ('seconds', 'cpu_seconds'))
        shown = 'not measured' if found is None else (
            f'{found:.2f}{"" if found >= least else ", which is less"} ({by_cpu:.2f} by CPU time)')
        titles = f'{CONTESTANTS[name].title}, of {CONTESTANTS[other].title}'
        lines.append(f'{mode}: {titles}: expected {least} or more: {shown}')
    return lines


def plot(rounds: dict[str, Rounds], about: str, path: pathlib.Path) -> None:
    """Draws a bar for each contestant's median, with a line from its slowest round to its fastest, as PNG."""
    from matplotlib.figure import Figure
    figure = Figure((9, 1 + 0.3 * sum(map(len, rounds.values()))), layout='constrained')
    figure.suptitle(about, fontsize=8)
    heights = [max(1, len(measured)) for measured in rounds.values()]
    all_axes = figure.subplots(len(rounds), height_ratios=heights, squeeze=False)[:, 0]
    for axes, (mode, measured) in zip(all_axes, rounds.items(), strict=True):
        axes.set_title(f'{MODES[mode]}: images/s', fontsize=9)
        for name, one in measured.items():
            rates, color = _rates(one), 'tab:orange' if CONTESTANTS[name].title.startswith('boardrec') else 'tab:gray'
            median = statistics.median(rates)
            spread = [[median - min(rates)], [max(rates) - median]]
            axes.barh(CONTESTANTS[name].title, median, xerr=spread, color=color)
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    cli.run(main, InputBenchmarkConfig)
