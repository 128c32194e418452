"""Trainings in processes of their own, which are forked by a server that has imported TensorFlow: that takes 5 s."""

from collections.abc import Callable
import json
import multiprocessing
import os
import pathlib
import socket
import sys
import tempfile
import time

from boardrec import cli
from boardrec.config import TrainConfig

SERVED = multiprocessing.get_context('forkserver')
SERVED.set_forkserver_preload(['boardrec.training.fit', 'boardrec.train'])


class Training:
    """One process that does what boardrec.train does, with the small backbone as xception; its output is kept."""

    def __init__(self, config: TrainConfig, *, environment: dict[str, str] | None = None,
                 before: Callable[[], None] | None = None):
        self._folder = pathlib.Path(config.run_dir)
        descriptor, name = tempfile.mkstemp('.log', 'training-', self._folder.parent)
        os.close(descriptor)
        self._output = pathlib.Path(name)
        self._process = SERVED.Process(
            target=_train, args=(cli.to_flagfile(config).splitlines(), environment or {}, before, name), daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def wait(self, seconds: float = 120) -> int:
        """The exit status, or minus a signal. Raises TimeoutError, and ends the process, after so many seconds."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f'still running after {seconds} s:\n{self.output}')
        return self._process.exitcode

    def wait_for_states(self, more: int, *, seconds: float = 120) -> None:
        """Returns when so many more states were saved in the run than there are now, while it is still running."""
        until, end = newest_state(self._folder) + more, time.monotonic() + seconds
        while newest_state(self._folder) < until:
            assert self._process.exitcode is None and time.monotonic() < end, self.output
            time.sleep(0.001)

    @property
    def output(self) -> str:
        """What it has printed so far, errors too."""
        return self._output.read_text()


def workers(*configs: TrainConfig, started: int | None = None, before: Callable[[], None] | None = None
            ) -> list[Training]:
    """Workers on free ports of this machine, each with its settings; two with the same ones if these are given once.

    Of all that TF_CONFIG names only some may be `started`; `before` is called in each.
    """
    configs = configs * 2 if len(configs) == 1 else configs
    sockets = [socket.socket() for _ in configs]
    for one in sockets:
        one.bind(('127.0.0.1', 0))
    addresses = [f'127.0.0.1:{one.getsockname()[1]}' for one in sockets]
    for one in sockets:
        one.close()
    return [Training(config, environment={'TF_CONFIG': json.dumps({
        'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}})}, before=before)
            for index, config in enumerate(configs[:started])]


def newest_state(run: pathlib.Path) -> int:
    """The number of a run's last saved state; 0 if there is none."""
    return max((int(path.name.split('-')[1]) for path in (run / 'checkpoints').glob('state-*')), default=0)


def _train(flags: list[str], environment: dict[str, str], before: Callable[[], None] | None, output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import conftest

    from boardrec import train
    from boardrec.training import backbones
    backbones.BACKBONES['xception'] = conftest.SMALL_BACKBONE
    if before:
        before()
    cli.run(train.main, TrainConfig, ['train', *flags], resumes=True)
