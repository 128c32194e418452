"""Trainings in processes of their own, which are forked by a server that has imported TensorFlow: that takes 5 s."""

import json
import multiprocessing
import os
import pathlib
import socket
import sys
import tempfile

from boardrec import cli
from boardrec.config import TrainConfig

_SERVED = multiprocessing.get_context('forkserver')
_SERVED.set_forkserver_preload(['boardrec.training.fit', 'boardrec.train', 'tensorflow.python.distribute.collective_all_reduce_strategy'])


class Training:
    """One process that trains the small backbone (as xception) as boardrec.train does; its output is kept."""

    def __init__(self, config: TrainConfig, *, devices: int = 1, environment: dict[str, str] | None = None):
        descriptor, name = tempfile.mkstemp('.log', 'training-', pathlib.Path(config.run_dir).parent)
        os.close(descriptor)
        self._output = pathlib.Path(name)
        self._process = _SERVED.Process(
            target=_train, args=(cli.to_flagfile(config).splitlines(), devices, environment or {}, str(self._output)))
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def wait(self, seconds: float = 120) -> int:
        """The exit status, or minus a signal; -9 for one that takes longer than so many seconds."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f'still running after {seconds} s:\n{self.output}')
        return self._process.exitcode

    @property
    def is_running(self) -> bool:
        return self._process.exitcode is None

    @property
    def output(self) -> str:
        """What it has printed so far, errors too."""
        return self._output.read_text()


def _train(flags: list[str], devices: int, environment: dict[str, str], output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    os.environ.update(environment)
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import conftest
    import tensorflow as tf

    from boardrec import train
    from boardrec.training import backbones
    cpu, = tf.config.list_physical_devices('CPU')
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    backbones.BACKBONES['xception'] = conftest.SMALL_BACKBONE
    cli.run(train.main, TrainConfig, ['train', *flags], resumes=True)
