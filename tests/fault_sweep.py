"""Kills, or fails, a small conversion at each system call that touches its output; the same command then mends it.

python tests/fault_sweep.py; more than an hour on two CPU cores. For each scenario, each system call and each k, strace
makes the k-th one of the parent, or of its first worker, fail with ENOSPC or EIO or kills the process there. What the
folder then holds must be the old record set, the new one or none: as that is looked at between any two calls, it is
what a reader can see at any time. Then the command runs undisturbed and must leave the bytes of a run that was never
disturbed. A worker that is killed is no reason for the command to fail at all.
Workers are forked by a server that has imported TensorFlow, for each would take five seconds for that.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
import contextlib
import ctypes
import functools
import hashlib
import io
import json
import multiprocessing
from multiprocessing import forkserver
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from PIL import Image
import psutil

from boardrec import cli
from boardrec.config import ConvertConfig, UserError
from boardrec.data import convert, files, journal, records, shards, storage_report, workers

CALLS = ('write', 'rename', 'fsync', 'unlink', 'mkdir', 'openat')
FAULTS = ('signal=SIGKILL', 'error=ENOSPC', 'error=EIO')
PROCESSES = ('parent', 'worker')
TIMEOUT_SECONDS = 300
_COMMAND = 'convert'  # begins the arguments of a process that this script starts
_PR_SET_PTRACER = 0x59616d61  # lets a child process trace this one


class Scenario(NamedTuple):
    """A conversion to disturb."""

    images: pathlib.Path
    settings: dict[str, str | int | bool]
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
    parser.add_argument('--scenarios', default='new,more,overwrite,leaks,reshard,encoding,again')
    parser.add_argument('--processes', default=','.join(PROCESSES))
    parser.add_argument('--calls', default=','.join(CALLS))
    parser.add_argument('--faults', default=','.join(FAULTS))
    parser.add_argument('--every', type=int, default=1, help='take every n-th k only')
    args = parser.parse_args()
    start, counts = time.monotonic(), Counter()
    limits = workers.Limits()
    with tempfile.TemporaryDirectory() as folder, workers.Pool(1, limits, prepare_worker) as pool:
        known, number = scenarios(pathlib.Path(folder), pool), 0
        for name in args.scenarios.split(','):
            for fault in faults_of(known[name], pathlib.Path(folder, 'counted'), args):
                output, number = pathlib.Path(folder, 'disturbed', str(number)), number + 1
                done = disturb(known[name], fault, output)
                problem = what_is_wrong(known[name], fault, output, done) or mend(known[name], output, pool)
                counts[name, fault.process, fault.effect, 'not mended' if problem else 'mended'] += 1
                print(f'{name}: {fault.effect} at {fault.call} {fault.k} of the {fault.process}: '
                      f'ended with {done.returncode}; {problem or "mended"}', flush=True)
                shutil.rmtree(output)
    for key, count in counts.items():
        print(f'{count:4} {" ".join(key)}')
    print(f'{counts.total()} faults, {time.monotonic() - start:.0f} s')
    sys.exit(any('not mended' in key for key in counts))


def faults_of(scenario: Scenario, output: pathlib.Path, args: argparse.Namespace) -> Iterator[Fault]:
    """The faults to try."""
    for process in args.processes.split(','):
        found = touching(scenario, output, process)
        for call in args.calls.split(','):
            yield from (Fault(process, call, k, effect) for k in found.get(call, [])[::args.every]
                        for effect in args.faults.split(','))


def scenarios(folder: pathlib.Path, pool: workers.Pool) -> dict[str, Scenario]:
    """What is disturbed, by name, with what comes of it undisturbed.

    new: a set of two shards. more: it grows, where both of them change. overwrite: it is made anew of smaller images.
    leaks: it grows by copies, without which its train shard is built a second time. reshard: a set of two shards is
    divided into three. encoding: two shards of original files are replaced by three of JPEG, of fewer files. again:
    all is built a second time, to the same bytes.
    """
    images, more = make_image_folders(folder)
    leaky, before = make_leaks(folder, images), folder / 'set'
    # Images of 32 pixels stay as large as they are, but count as half a MiB each where shards are counted.
    jpeg = {'encoding': 'jpeg', 'image_size': '1024'}
    found = {
        'new': Scenario(images, {}, None, before),
        'more': Scenario(more, {}, before, folder / 'set_of_more'),
        'overwrite': Scenario(images, {'overwrite': True, 'encoding': 'png', 'image_size': '16'}, before,
                              folder / 'overwritten_set'),
        'leaks': Scenario(leaky, {'on_leak': 'drop_from_train'}, before, folder / 'set_without_leaks'),
        'whole': Scenario(images, jpeg, None, folder / 'whole_set'),
        'reshard': Scenario(images, {**jpeg, 'reshard': True, 'shard_mib': 1}, folder / 'whole_set',
                            folder / 'resharded_set'),
        'encoding': Scenario(images, {**jpeg, 'overwrite': True, 'shard_mib': 1}, folder / 'set_of_more',
                             folder / 'jpeg_set'),
        'again': Scenario(images, {'overwrite': True}, before, folder / 'set_again')}
    for scenario in found.values():
        if scenario.before:
            shutil.copytree(scenario.before, scenario.after)
        convert_with(pool, scenario, scenario.after)
    return found


def make_image_folders(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Six small images of two classes, in two splits, hence in two shards; and these with one changed and one added."""
    for name in ('images', 'more'):
        for number in range(6):
            split, label = ('train', 'val')[number > 3], 'ab'[number % 2]
            make_image(folder / name / split / label / f'{number}.png', seed=number)
    make_image(folder / 'more' / 'train' / 'a' / '0.png', seed=10)
    make_image(folder / 'more' / 'val' / 'b' / '9.png', seed=11)
    return folder / 'images', folder / 'more'


def make_leaks(folder: pathlib.Path, images: pathlib.Path) -> pathlib.Path:
    """These images with copies in train of two of val: the bytes of one, nearly the pixels of the other."""
    leaky = pathlib.Path(shutil.copytree(images, folder / 'leaky'))
    shutil.copy(leaky / 'val' / 'a' / '4.png', leaky / 'train' / 'a' / '4.png')
    pixels = np.array(Image.open(leaky / 'val' / 'b' / '5.png'))
    Image.fromarray(np.maximum(pixels, 8)).save(leaky / 'train' / 'b' / '5.png')
    return leaky


def make_image(path: pathlib.Path, seed: int) -> None:
    """Writes an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def touching(scenario: Scenario, output: pathlib.Path, process: str) -> dict[str, list[int]]:
    """For each call, which ones of a process touch the output folder: the first is 1."""
    log, numbers, counts = output.with_suffix('.strace'), {}, Counter()
    shutil.rmtree(f'{output}.traced', ignore_errors=True)  # of the scenario before
    done = run(scenario, output, process, ['-y', '-o', str(log), '-e', f'trace={",".join(CALLS)}'])
    assert done.returncode == 0, done.stderr
    lines = [(line if process == 'parent' else line.partition(' ')[2]).lstrip()
             for line in log.read_text(errors='replace').splitlines()
             if process == 'parent' or line.startswith(main_thread(log, output))]
    for line in lines:
        call = re.match(r'(\w+)\(', line)
        if call:
            counts[call[1]] += 1
            if str(output) in line:
                numbers.setdefault(call[1], []).append(counts[call[1]])
    shutil.rmtree(output)
    return numbers


def main_thread(log: pathlib.Path, output: pathlib.Path) -> str:
    """The number, with a blank, of the one thread of a worker that writes."""
    first, = {line.split()[0] for line in log.read_text(errors='replace').splitlines() if str(output) in line}
    return f'{first} '


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
    server = forkserver._forkserver
    forkserver.set_forkserver_preload(['tensorflow_datasets', 'boardrec.data.images'])
    server.ensure_running()
    strace = ['strace', '-qq', *strace]
    command = [*(strace if process == 'parent' else ()), sys.executable, __file__, _COMMAND, server._forkserver_address,
               f'{output}.traced', json.dumps([] if process == 'parent' else strace), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    while psutil.Process(server._forkserver_pid).children():  # a worker that has yet to notice that the parent is dead
        time.sleep(0.01)
    return done


def disturbed_command(address: str, first: str, strace: str, *flags: str) -> None:
    """tools/make_records.py with workers that the server forks, of which the first puts itself under strace."""
    server = forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd = address, os.pipe()[1]
    server.ensure_running = lambda: None
    context, pool = multiprocessing.get_context('forkserver'), workers.Pool
    multiprocessing.get_context = lambda _: context
    prepare = functools.partial(prepare_traced, json.loads(strace), first) if json.loads(strace) else prepare_worker
    workers.Pool = lambda count, limits, _: pool(count, limits, prepare)
    cli.run(convert.convert, ConvertConfig, ['make_records', *flags])


def prepare_worker() -> None:
    """Prepares a worker that measures in no time what encoding has made of images."""
    shards.prepare_worker()
    storage_report._TIMING_SECONDS = 0.0


def prepare_traced(strace: list[str], first: str) -> None:
    """Prepares a worker and, if there is no folder `first` yet, puts it under strace."""
    prepare_worker()
    with contextlib.suppress(FileExistsError):
        os.mkdir(first)
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1))
        tracer = subprocess.Popen([*strace, '-f', '-p', str(os.getpid())])
        while 'TracerPid:\t0\n' in pathlib.Path('/proc/self/status').read_text():
            assert tracer.poll() is None, 'strace may not trace'
            time.sleep(0.01)


def settings(scenario: Scenario, output: pathlib.Path) -> dict[str, str | int | bool]:
    """The settings of a scenario's conversion into a folder, by flag."""
    return {'input_dir': str(scenario.images), 'output_dir': str(output), 'workers': 1, **scenario.settings}


def what_is_wrong(scenario: Scenario, fault: Fault, output: pathlib.Path, done: subprocess.CompletedProcess) -> str:
    """What a fault has led to that it may not lead to; '' if nothing has."""
    killed = 'SIGKILL' in fault.effect
    if killed and fault.process == 'parent':
        if done.returncode not in (-9, 137, 0):  # 0: a line that tells the progress came between, and it got through
            return f'was not killed, but ended with {done.returncode}: {done.stderr.strip()}'
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
    if sys.argv[1:2] == [_COMMAND]:
        disturbed_command(*sys.argv[2:])
    else:
        main()
