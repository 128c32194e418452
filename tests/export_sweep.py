"""Kills, or fails, the publishing of a version at each system call that touches the models' folder.

python tests/export_sweep.py [--every=N]. A process publishes a third version beside two and removes all but the
newest two; strace makes the k-th write, rename, fsync, unlink, mkdir or rmdir of that fail with ENOSPC or EIO or kills
it there.
Meanwhile a reader reads whatever number appears, as a server would: each must be whole. Afterwards all that are there
must be whole, too, and a process that is not disturbed must publish the next number and leave nothing else.
What TensorFlow writes goes into the temporary folder; here files of the same names stand for it, so that a process
starts in a tenth of a second.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

from boardrec.serving import publish

CALLS = ('write', 'pwrite64', 'rename', 'fsync', 'unlink', 'unlinkat', 'mkdir', 'rmdir')
FAULTS = ('signal=SIGKILL', 'error=ENOSPC', 'error=EIO')
KEEP = 2
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    """Sweeps; prints a line for each fault and ends with status 1 if any was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--every', type=int, default=1, help='take every n-th fault only')
    parser.add_argument('--publish', help='what each process does: publishes into this folder')
    arguments, counts = parser.parse_args(), Counter()
    if arguments.publish:
        publish_one(pathlib.Path(arguments.publish))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(faults(pathlib.Path(folder, 'counted'), arguments.every)):
            problem = disturb(pathlib.Path(folder, str(number)), *fault)
            counts[bool(problem)] += 1
            print(f'{fault[2]} at {fault[0]} {fault[1]}: {problem or "survived"}', flush=True)
    print(f'{counts.total()} faults; {counts[True]} not survived')
    sys.exit(bool(counts[True]))


def faults(folder: pathlib.Path, every: int = 1) -> Iterator[tuple[str, int, str]]:
    """(call, k, effect) of all that touches the folder while the third version is published."""
    log = folder.with_suffix('.strace')
    _begin(folder)
    assert _publish(folder, ['-y', '-o', str(log), '-e', f'trace={",".join(CALLS)}']) == 0
    seen, touching = Counter(), []
    for line in log.read_text(errors='replace').splitlines():
        call = re.match(r'(\w+)\(', line)
        if call:
            seen[call[1]] += 1
            if str(folder) in line:
                touching.append((call[1], seen[call[1]]))
    yield from [(call, k, effect) for call, k in touching for effect in FAULTS][::every]


def disturb(folder: pathlib.Path, call: str, k: int, effect: str) -> str:
    """What is wrong after a fault in the publishing of the third version; '' if nothing is."""
    _begin(folder)
    with reader(folder) as problems:
        status = _publish(folder, ['-o', '/dev/null', '-e', f'trace={call}', '-e', f'inject={call}:{effect}:when={k}'])
    if 'SIGKILL' in effect and status != -9:
        return f'was not killed, but ended with {status}'
    newest = max(publish.versions(folder))
    if newest not in (2, 3):
        return f'the newest version is {newest}'
    problems += [_damage(folder / str(version)) for version in publish.versions(folder)]
    if _publish(folder, []):
        return 'the next version is not published'
    if [path.name for path in sorted(folder.iterdir())] != [str(newest), str(newest + 1)]:
        problems.append(f'left {[path.name for path in folder.iterdir()]}')
    shutil.rmtree(folder)
    return '; '.join(filter(None, problems))


@contextlib.contextmanager
def reader(folder: pathlib.Path) -> Iterator[list[str]]:
    """Looks for numbers all the time, and checks each that it has not seen; yields what was wrong with one."""
    problems, seen, done = [], set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            for version in set(publish.versions(folder)) - seen:
                seen.add(version)
                problems.append(_damage(folder / str(version)))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield problems
    finally:
        done.set()
        thread.join()


def publish_one(folder: pathlib.Path, keep: int = KEEP) -> None:
    """Publishes the next version and removes old ones."""
    def write(temporary: pathlib.Path) -> dict[str, str]:
        for name in ('saved_model.pb', 'variables/variables.index', 'assets.extra/tf_serving_warmup_requests'):
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(os.urandom(5000))
        return {}

    publish.publish(folder, {'weights_sha256': 'abc'}, write)
    publish.prune(folder, keep=keep)


def _damage(version: pathlib.Path) -> str:
    try:
        return publish.damage(version)
    except (OSError, ValueError, KeyError) as error:
        return f'{version} could not be read: {error!r}'


def _begin(folder: pathlib.Path) -> None:
    for _ in range(2):
        publish_one(folder)


def _publish(folder: pathlib.Path, strace: list[str]) -> int:
    """The exit status of a process that publishes one version, or minus a signal."""
    command = [sys.executable, '-B', __file__, f'--publish={folder}']
    environment = {**os.environ, 'PYTHONPATH': str(_ROOT)}
    done = subprocess.run([*(['strace', '-qq', *strace] if strace else []), *command], check=False, env=environment,
                          stderr=subprocess.DEVNULL, timeout=60)
    return done.returncode


if __name__ == '__main__':
    main()
