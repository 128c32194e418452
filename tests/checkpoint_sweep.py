"""Kills, or fails, the saving of a state at each system call that touches the run; what is left must be one of the two.

python tests/checkpoint_sweep.py [--every=N]. A process saves a state of a tiny model, and its best weights, where
one was saved before; strace makes the k-th write, rename, fsync, unlink or mkdir of that fail with ENOSPC or EIO or
kills it there. Then the newest state must be the first or the second, whole and with its best weights, and a process
that is not disturbed must go on to the same third state and leave no temporary file.
Each is forked by a server that has imported TensorFlow and puts itself under strace, without its threads.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import trainings

from boardrec.data import files

CALLS = ('write', 'pwrite64', 'rename', 'fsync', 'unlink', 'unlinkat', 'mkdir', 'rmdir')
FAULTS = ('signal=SIGKILL', 'error=ENOSPC', 'error=EIO')


def main() -> None:
    """Sweeps; prints a line for each fault and ends with status 1 if any was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--every', type=int, default=1, help='take every n-th fault only')
    every, counts = parser.parse_args().every, Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, (call, k, effect) in enumerate(faults(pathlib.Path(folder, 'counted'), every)):
            problem = disturb(pathlib.Path(folder, str(number)), call, k, effect)
            counts[effect, bool(problem)] += 1
            print(f'{effect} at {call} {k}: {problem or "survived"}', flush=True)
    print(f'{counts.total()} faults; {sum(count for (_, bad), count in counts.items() if bad)} not survived')
    sys.exit(any(bad for _, bad in counts))


def faults(folder: pathlib.Path, every: int = 1) -> Iterator[tuple[str, int, str]]:
    """(call, k, effect) of all that touches the folder while the second state is saved."""
    log = folder.with_suffix('.strace')
    assert save(folder, 1) == 0
    assert save(folder, 2, ['-y', '-o', str(log), '-e', f'trace={",".join(CALLS)}']) == 0
    seen, touching = Counter(), []
    for line in log.read_text(errors='replace').splitlines():
        call = re.match(r'(\w+)\(', line)
        if call:
            seen[call[1]] += 1
            if str(folder) in line:
                touching.append((call[1], seen[call[1]]))
    yield from [(call, k, effect) for call, k in touching for effect in FAULTS][::every]


def disturb(folder: pathlib.Path, call: str, k: int, effect: str) -> str:
    """What is wrong after a fault in the saving of the second state; '' if nothing is."""
    assert save(folder, 1) == 0
    status = save(folder, 2, ['-o', '/dev/null', '-e', f'trace={call}', '-e', f'inject={call}:{effect}:when={k}'])
    if 'SIGKILL' in effect and status != -9:
        return f'was not killed, but ended with {status}'
    if status not in (0, -9):
        return f'ended with {status}'
    if save(folder, 0):
        return 'neither state is whole'
    if save(folder, 3):
        return 'the third state is not saved, or another than without a fault'
    left = [path.name for path in folder.iterdir() if path.name.startswith(files.TEMPORARY_PREFIX)]
    shutil.rmtree(folder)
    return f'left {left}' if left else ''


def save(folder: pathlib.Path, epoch: int, strace: list[str] | None = None) -> int:
    """The exit status of a process that saves the state after an epoch; epoch 0: that looks at what is there."""
    process = trainings.SERVED.Process(target=_save if epoch else _look, args=(str(folder), epoch, strace), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode is not None, 'it hangs'
    return process.exitcode


def _save(folder: str, epoch: int, strace: list[str] | None) -> None:
    from boardrec.training.checkpoint import load, newest, RunState, Saver
    folder, model = pathlib.Path(folder), _model()
    before = load(newest(folder), model.variables)
    assert before.epoch == epoch - 1 or (epoch == 3 and before.epoch == 1)
    model.set_weights([weights * 0 + epoch for weights in model.get_weights()])
    saver, name = Saver(folder, model, model.variables), f'best-epoch-{epoch:03d}.weights.h5'
    if strace:
        _trace(strace)
    saver.save_best(name)
    saver.save(RunState(epoch, best_weights=name))
    if epoch == 3:
        _look(folder, 3, None)


def _look(folder: str, epoch: int, _: object) -> None:
    from boardrec.training.checkpoint import load, newest
    folder, model = pathlib.Path(folder), _model()
    state = load(newest(folder), model.variables)
    assert state.epoch in ((epoch,) if epoch else (1, 2)), state
    for read in (lambda: None, lambda: model.load_weights(folder / state.best_weights)):
        read()
        assert all((weights == state.epoch).all() for weights in model.get_weights())


def _model():
    import keras
    return keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(8, name='dense')])


def _trace(strace: list[str]) -> None:
    """Puts this thread under strace."""
    import ctypes
    ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: a child process may trace this one
    tracer = subprocess.Popen(['strace', '-qq', *strace, '-p', str(os.getpid())])
    while 'TracerPid:\t0\n' in pathlib.Path('/proc/self/status').read_text():
        assert tracer.poll() is None, 'strace may not trace'
        time.sleep(0.01)


if __name__ == '__main__':
    main()
