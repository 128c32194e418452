"""Kills, or fails, a small conversion at each system call that touches its output; the same command then mends it.

python tests/fault_sweep.py; about half an hour on two CPU cores. For each scenario, each system call and each k, strace
makes the k-th one of the parent, or of its first worker, fail with ENOSPC or EIO or kills the process there. What the
folder then holds must be the old record set, the new one or none: as that is looked at between any two calls, it is
what a reader can see at any time. Then the command runs undisturbed and must leave the bytes of a run that was never
disturbed. A worker that is killed is no reason for the command to fail at all.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
import concurrent.futures
import contextlib
import hashlib
import io
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from boardrec.config import ConvertConfig, UserError
from boardrec.data import convert, files, journal, records, shards, workers

TOOL = pathlib.Path(__file__).parents[1] / 'tools' / 'make_records.py'
CALLS = ('write', 'rename', 'fsync', 'unlink', 'openat', 'mkdir')
FAULTS = ('signal=SIGKILL', 'error=ENOSPC', 'error=EIO')
PROCESSES = ('parent', 'worker')
TIMEOUT_SECONDS = 300
_IN_WORKER = """
import sys
from multiprocessing import spawn
from boardrec import cli
from boardrec.config import ConvertConfig
from boardrec.data import convert
spawn.set_executable(sys.argv.pop(1))
cli.run(convert.convert, ConvertConfig)
"""


class Scenario(NamedTuple):
    """A conversion to disturb."""

    images: pathlib.Path
    settings: dict[str, str | bool]
    before: pathlib.Path | None  # the record set that it replaces
    after: pathlib.Path  # what it makes of that when nothing disturbs it


class Fault(NamedTuple):
    """What goes wrong."""

    process: str  # parent, or worker: the first one
    call: str
    k: int  # the k-th such call of the process's main thread
    effect: str


def main() -> None:
    """Sweeps; prints a line for each fault and ends with status 1 if any was not mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scenarios', default='new,more,overwrite')
    parser.add_argument('--processes', default=','.join(PROCESSES))
    parser.add_argument('--calls', default=','.join(CALLS))
    parser.add_argument('--faults', default=','.join(FAULTS))
    parser.add_argument('--every', type=int, default=1, help='take every n-th k only')
    parser.add_argument('--jobs', type=int, default=2, help='conversions at once')
    args = parser.parse_args()
    start, counts = time.monotonic(), Counter()
    limits = workers.Limits()
    with tempfile.TemporaryDirectory() as folder, workers.Pool(1, limits, shards.prepare_worker) as pool:
        for name, scenario in scenarios(pathlib.Path(folder), pool).items():
            if name not in args.scenarios.split(','):
                continue
            faults = [Fault(process, call, k, effect) for process in args.processes.split(',')
                      for found in [touching(scenario, pathlib.Path(folder, 'counted'), process)]
                      for call in args.calls.split(',') for k in found.get(call, [])[::args.every]
                      for effect in args.faults.split(',')]
            outputs = [pathlib.Path(folder, f'{name}_disturbed', '-'.join(map(str, fault)).replace('=', '-'))
                       for fault in faults]
            with concurrent.futures.ThreadPoolExecutor(args.jobs) as threads:
                disturbed = threads.map(disturb, [scenario] * len(faults), faults, outputs)
                for fault, output, done in zip(faults, outputs, disturbed, strict=True):
                    problem = what_is_wrong(scenario, fault, output, done) or mend(scenario, output, pool)
                    counts[name, fault.process, fault.effect, 'not mended' if problem else 'mended'] += 1
                    print(f'{name}: {fault.effect} at {fault.call} {fault.k} of the {fault.process}: '
                          f'{problem or "mended"}', flush=True)
                    shutil.rmtree(output)
    for key, count in counts.items():
        print(f'{count:4} {" ".join(key)}')
    print(f'{counts.total()} faults, {time.monotonic() - start:.0f} s')
    sys.exit(any('not mended' in key for key in counts))


def scenarios(folder: pathlib.Path, pool: workers.Pool) -> dict[str, Scenario]:
    """A new set; one that grows, where both of its shards change; and one that is made anew with other settings."""
    images, more = make_images(folder / 'images'), make_images(folder / 'more')
    make_image(more / 'train' / 'a' / '0.png', seed=10)
    make_image(more / 'val' / 'b' / '9.png', seed=11)
    found = {'new': Scenario(images, {}, None, folder / 'set')}
    found['more'] = Scenario(more, {}, folder / 'set', folder / 'set_of_more')
    found['overwrite'] = Scenario(images, {'overwrite': True, 'encoding': 'png', 'image_size': '16'}, folder / 'set',
                                  folder / 'overwritten_set')
    for scenario in found.values():
        if scenario.before:
            shutil.copytree(scenario.before, scenario.after)
        convert_with(pool, scenario, scenario.after)
    return found


def make_images(folder: pathlib.Path) -> pathlib.Path:
    """Six small images of two classes, in two splits, hence in two shards."""
    for number in range(6):
        make_image(folder / ('train', 'val')[number > 3] / 'ab'[number % 2] / f'{number}.png', seed=number)
    return folder


def make_image(path: pathlib.Path, seed: int) -> None:
    """Writes an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def touching(scenario: Scenario, output: pathlib.Path, process: str) -> dict[str, list[int]]:
    """For each call, which ones of a process touch the output folder: the first is 1."""
    log, numbers, counts = output.with_suffix('.strace'), {}, Counter()
    done = run(scenario, output, process, ['-y', '-o', str(log), '-e', f'trace={",".join(CALLS)}'])
    assert done.returncode == 0, done.stderr
    main_thread = re.match(r'(\d+ +)?', log.read_text())[0]  # with -f, lines begin with the thread's number
    for line in log.read_text(errors='replace').splitlines():
        call = re.match(rf'{main_thread}(\w+)\(', line)
        if call:
            counts[call[1]] += 1
            if str(output) in line:
                numbers.setdefault(call[1], []).append(counts[call[1]])
    shutil.rmtree(output)
    return numbers


def disturb(scenario: Scenario, fault: Fault, output: pathlib.Path) -> subprocess.CompletedProcess:
    """One conversion with a fault."""
    inject = f'inject={fault.call}:{fault.effect}:when={fault.k}'
    return run(scenario, output, fault.process, ['-o', '/dev/null', '-e', f'trace={fault.call}', '-e', inject])


def run(scenario: Scenario, output: pathlib.Path, process: str, strace: list[str]) -> subprocess.CompletedProcess:
    """One conversion, one process of which runs under strace; what had to be there before is put there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if scenario.before:
        shutil.copytree(scenario.before, output)
    flags = [f'--{name}={value}' for name, value in settings(scenario, output).items()]
    strace = ['strace', '-qq', *strace]
    if process == 'parent':
        return _run([*strace, sys.executable, str(TOOL), *flags])
    # Started in place of Python: the first worker is traced, by a process that is no parent of it.
    script, python = output.with_suffix('.sh'), shlex.quote(sys.executable)
    script.write_text(
        '#!/bin/sh\n'
        f'case "$*" in *spawn_main*) mkdir {shlex.quote(str(output))}.traced 2>/dev/null && '
        f'exec {shlex.join([*strace, "-D", "-f", "--seccomp-bpf"])} {python} "$@";; esac\nexec {python} "$@"\n')
    script.chmod(0o755)
    done = _run([sys.executable, '-c', _IN_WORKER, str(script), *flags])
    pathlib.Path(f'{output}.traced').rmdir()
    return done


def settings(scenario: Scenario, output: pathlib.Path) -> dict[str, str | int | bool]:
    """The settings of a scenario's conversion into a folder, by flag."""
    return {'input_dir': str(scenario.images), 'output_dir': str(output), 'workers': 1, **scenario.settings}


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)


def what_is_wrong(scenario: Scenario, fault: Fault, output: pathlib.Path, done: subprocess.CompletedProcess) -> str:
    """What a fault has led to that it may not lead to; '' if nothing has."""
    killed = 'SIGKILL' in fault.effect
    if killed and fault.process == 'parent':
        if done.returncode not in (-9, 137):
            return f'was not killed, but ended with {done.returncode}'
    elif done.returncode and (killed or done.returncode != 2 or not re.search('^error: .+\n\\Z', done.stderr, re.M)):
        return f'ended with {done.returncode}: {done.stderr.strip()}'
    wanted = [sums(scenario.after)] + ([sums(scenario.before)] if scenario.before else [])
    if done.returncode == 0 and sums(output) != wanted[0]:
        return 'ended with 0, but the set is another'
    if (output / records.MANIFEST).exists():
        if sums(output) not in wanted:
            return 'left a manifest and a set that is neither the old one nor the new'
        records.open_record_set(output)
        return ''
    with contextlib.suppress(UserError):
        records.open_record_set(output)
        return 'a set without a manifest was opened'
    return ''


def mend(scenario: Scenario, output: pathlib.Path, pool: workers.Pool) -> str:
    """Runs undisturbed; what is wrong after that, if anything."""
    try:
        convert_with(pool, scenario, output)
    except (UserError, OSError) as error:
        return f'the same command fails: {error}'
    if any(path.name.startswith(files.TEMPORARY_PREFIX) for path in output.rglob('*')):
        return 'a temporary file stays'
    return '' if sums(output) == sums(scenario.after) else 'other bytes than those of a run that was not disturbed'


def convert_with(pool: workers.Pool, scenario: Scenario, output: pathlib.Path) -> None:
    """One conversion with workers that have started already, for the sake of the seconds that each takes for that."""
    original = workers.Pool
    workers.Pool = lambda *_: contextlib.nullcontext(pool)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            convert.convert(ConvertConfig(**settings(scenario, output)))
    finally:
        workers.Pool = original


def sums(folder: pathlib.Path) -> dict[str, str]:
    """The sha256 of each file of a set."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _set_files(folder)}


def _set_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in folder.iterdir()
            if path.name != journal.FOLDER and not path.name.startswith(files.TEMPORARY_PREFIX))


if __name__ == '__main__':
    main()
