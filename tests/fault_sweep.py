"""Kills, or fails, a small conversion at each system call that changes the disk; the same command then mends it.

python tests/fault_sweep.py; about an hour on two CPU cores. For each system call and each k, strace makes the k-th one
of a process fail with SIGKILL, ENOSPC or EIO while a reader opens the set over and over. Then the command runs
undisturbed and must leave the bytes of a run that was never disturbed.
"""

import argparse
import contextlib
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from boardrec.config import UserError
from boardrec.data import journal, records

TOOL = pathlib.Path(__file__).parents[1] / 'tools' / 'make_records.py'
CALLS = ('write', 'rename', 'fsync', 'unlink', 'openat', 'mkdir')
FAULTS = ('signal=SIGKILL', 'error=ENOSPC', 'error=EIO')


def main() -> None:
    """Sweeps; prints a line for each fault and ends with status 1 if any was not mended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--calls', default=','.join(CALLS))
    parser.add_argument('--faults', default=','.join(FAULTS))
    parser.add_argument('--every', type=int, default=1, help='take every n-th k only')
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        images, whole = make_images(pathlib.Path(folder, 'images')), pathlib.Path(folder, 'whole')
        assert run(images, whole).returncode == 0
        for call in args.calls.split(','):
            most = calls_of_a_process(images, pathlib.Path(folder), call)
            for fault in args.faults.split(','):
                for k in range(1, most + 1, args.every):
                    problem = disturb(images, pathlib.Path(folder, f'{call}_{fault}_{k}'), whole, f'{call}:{fault}', k)
                    print(f'{call}:{fault}, the {k}. of {most}: {problem or "mended"}', flush=True)
                    failed += bool(problem)
    sys.exit(failed > 0)


def make_images(folder: pathlib.Path) -> pathlib.Path:
    """Six small images, in shards of their own."""
    for number in range(6):
        path = folder / 'ab'[number % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return folder


def run(images: pathlib.Path, output: pathlib.Path, *prefix: str) -> subprocess.CompletedProcess:
    """One conversion."""
    return subprocess.run(
        [*prefix, sys.executable, TOOL, f'--input_dir={images}', f'--output_dir={output}', '--splits=train:1',
         '--workers=1'], capture_output=True, text=True, check=False, timeout=300)


def calls_of_a_process(images: pathlib.Path, folder: pathlib.Path, call: str) -> int:
    """How often the process that makes the call most often makes it."""
    log = folder / f'{call}.strace'
    run(images, folder / f'{call}_counted', 'strace', '-f', '-qq', '--seccomp-bpf', f'-e{call}', '-o', str(log))
    pids = re.findall(rf'^(\d+) +{call}\(', log.read_text(), re.M)
    return max(map(pids.count, set(pids)), default=0)


def disturb(images: pathlib.Path, output: pathlib.Path, whole: pathlib.Path, fault: str, k: int) -> str:
    """Runs with the fault, then without; what is wrong after that, if anything."""
    done, torn = threading.Event(), []
    reader = threading.Thread(target=read_on, args=(output, done, torn))
    reader.start()
    call, effect = fault.split(':')
    faulty = run(images, output, 'strace', '-f', '-qq', '--seccomp-bpf', '-o', '/dev/null', f'-e{call}',
                 f'-einject={call}:{effect}:when={k}')
    mending = run(images, output)
    done.set()
    reader.join()
    if torn:
        return f'a reader saw a torn set: {torn[0]}'
    if 'signal' not in effect and 'Traceback' in faulty.stderr:
        return f'a traceback: {faulty.stderr.strip().splitlines()[-1]}'
    if mending.returncode:
        return f'the same command fails: {mending.stderr.strip()}'
    return '' if sums(output) == sums(whole) else 'other bytes than those of a run that was not disturbed'


def read_on(folder: pathlib.Path, done: threading.Event, torn: list[str]) -> None:
    """Opens the set over and over; where it has a manifest, it must be whole."""
    while not done.is_set():
        with contextlib.suppress(FileNotFoundError, UserError):
            before = records.read_manifest(folder)
            try:
                opened = records.open_record_set(folder)
                wrong = [shard.file for shard in opened.manifest.shards
                         if hashlib.sha256((folder / shard.file).read_bytes()).hexdigest() != shard.sha256]
            except (UserError, FileNotFoundError) as error:
                wrong = [str(error)]
            with contextlib.suppress(UserError):
                if wrong and records.read_manifest(folder) == before:  # else it was taken away meanwhile
                    torn += wrong
        time.sleep(0.05)


def sums(folder: pathlib.Path) -> dict[str, str]:
    """The sha256 of each file of a set."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.iterdir() if path.name != journal.FOLDER}


if __name__ == '__main__':
    main()
