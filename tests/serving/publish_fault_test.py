"""Publishing is killed or fails at system calls: whatever number appears is a whole version, and the next follows."""

import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

import export_sweep
import pytest

from boardrec.serving import publish

ROOT = pathlib.Path(__file__).resolve().parents[2]
EFFECTS = {'signal=SIGKILL', 'error=ENOSPC', 'error=EIO'}


def survived(folder, every):
    faults = list(export_sweep.faults(folder / 'counted', every))
    problems = {fault: export_sweep.disturb(folder / str(number), *fault) for number, fault in enumerate(faults)}
    assert {effect for _, _, effect in faults} == EFFECTS
    assert not {fault: problem for fault, problem in problems.items() if problem}
    return len(faults)


def test_a_few_faults_leave_no_half_of_a_version(strace, tmp_path):
    assert survived(tmp_path, 16) >= 5


@pytest.mark.long
def test_no_fault_leaves_half_of_a_version(strace, tmp_path):
    assert survived(tmp_path, 1) > 80


@pytest.mark.long
def test_an_export_that_is_killed_at_any_moment_publishes_nothing_or_a_whole_version(small_run, tmp_path):
    """The command itself, with TensorFlow at work in it: at ten moments that are spread over it."""
    code = ('import sys; sys.path.insert(0, "tests"); import conftest; from boardrec.training import backbones; '
            'backbones.BACKBONES["xception"] = conftest.SMALL_BACKBONE; from boardrec import export; '
            'from boardrec.config import ExportConfig; export.main(ExportConfig(run_dir=sys.argv[1], '
            'export_dir=sys.argv[2], max_side=int(sys.argv[3])))')

    def begin(number):
        command = [sys.executable, '-c', code, small_run, tmp_path / 'models', str(1000 + number)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                                env={**os.environ, 'PYTHONPATH': str(ROOT)})

    start = time.monotonic()
    assert begin(0).wait(300) == 0
    seconds = time.monotonic() - start
    for number in range(1, 11):
        process = begin(number)
        with export_sweep.reader(tmp_path / 'models') as problems:
            time.sleep(seconds * number / 10.5)
            process.kill()
            process.wait()
        assert not any(problems)
        assert not any(publish.damage(tmp_path / 'models' / str(n)) for n in publish.versions(tmp_path / 'models'))
    before = publish.versions(tmp_path / 'models')[-1]
    assert begin(99).wait(300) == 0
    assert publish.versions(tmp_path / 'models')[-1] == before + 1
    assert not [path.name for path in (tmp_path / 'models').iterdir() if not path.name.isdecimal()]


def test_each_of_several_at_once_gets_a_version(tmp_path):
    context = multiprocessing.get_context('spawn')
    processes = [context.Process(target=export_sweep.publish_one, args=(tmp_path / 'models', 8)) for _ in range(4)]
    with export_sweep.reader(tmp_path / 'models') as problems:
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert not any(problems) and sorted(path.name for path in (tmp_path / 'models').iterdir()) == list('1234')
