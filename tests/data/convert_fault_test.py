"""A conversion that is killed, or fails, where it replaces a record set: none is torn, and the same command mends it.

A sample of tests/fault_sweep.py, which takes every system call that touches the output.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import fault_sweep
from fault_sweep import Fault, Scenario

from boardrec.data import files, records


@pytest.fixture(scope='module')
def growing(tmp_path_factory, convert_here):
    """A set that is to be replaced by one of more images; both of its shards change."""
    folder = tmp_path_factory.mktemp('growing')
    images, more = fault_sweep.make_image_folders(folder)
    convert_here(images, folder / 'before')
    shutil.copytree(folder / 'before', folder / 'after')
    convert_here(more, folder / 'after')
    return Scenario(more, {}, folder / 'before', folder / 'after')


@pytest.fixture(scope='module')
def strace():
    """Skips where strace is missing or may trace nothing; in CI that is an error."""
    try:
        done = subprocess.run(['strace', '-o', os.devnull, '-e', 'inject=fsync:error=EIO', 'true'], check=False,
                              capture_output=True, text=True)
        reason = done.stderr.strip()
    except FileNotFoundError:
        reason = 'strace is not installed'
    if reason:
        assert not os.environ.get('CI'), reason
        pytest.skip(f'needs strace: {reason}')


# The parent's renames: plan, two shards, rejected.csv, index, manifest, plan; the manifest has gone before the second.
@pytest.mark.parametrize('fault', [
    Fault('parent', 'rename', 3, 'signal=SIGKILL'), Fault('parent', 'rename', 6, 'signal=SIGKILL'),
    Fault('parent', 'fsync', 5, 'error=EIO'), Fault('worker', 'rename', 2, 'error=ENOSPC')],
    ids=lambda fault: '-'.join(map(str, fault)))
def test_a_fault_tears_nothing_and_is_mended(strace, growing, convert_here, tmp_path, fault):
    output = tmp_path / 'records'
    done = fault_sweep.disturb(growing, fault, output)
    assert done.returncode, 'it was not disturbed'
    assert fault_sweep.what_is_wrong(growing, fault, output, done) == ''
    assert (output / records.MANIFEST).exists() == (fault.process == 'worker')
    convert_here(growing.images, output, workers=1)
    assert fault_sweep.sums(output) == fault_sweep.sums(growing.after)
    assert not [path for path in output.rglob('*') if path.name.startswith(files.TEMPORARY_PREFIX)]
