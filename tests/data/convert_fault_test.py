"""A conversion that is killed, or fails, where it replaces a record set: none is torn, and the same command mends it.

A sample of tests/fault_sweep.py, which takes every system call that touches the output.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import fault_sweep
from fault_sweep import Fault, Scenario

from boardrec.data import files, journal, records

TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'make_records.py'


@pytest.fixture(scope='module')
def growing(tmp_path_factory, convert_here):
    """A set that is to be replaced by one of more images; both of its shards change."""
    folder = tmp_path_factory.mktemp('growing')
    images, more = fault_sweep.make_image_folders(folder)
    convert_here(images, folder / 'before')
    shutil.copytree(folder / 'before', folder / 'after')
    convert_here(more, folder / 'after')
    return Scenario(more, {}, folder / 'before', folder / 'after')


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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / 'small'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'none', str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip('needs the right to mount a small file system')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_a_full_disk_is_told_and_the_same_command_goes_on(small_disk, convert_here, tmp_path):
    for number in range(8):  # 2.4 MiB, in two shards
        path = tmp_path / 'images' / ('train', 'val')[number % 2] / 'ab'[number // 2 % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (320, 320, 3), np.uint8)).save(path)
    output = small_disk / 'records'
    done = subprocess.run([sys.executable, str(TOOL), f'--input_dir={tmp_path}/images', f'--output_dir={output}',
                           '--workers=1'], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2 and done.stderr.count('error: ') == 1 and 'Traceback' not in done.stderr
    assert f'{output}/{journal.FOLDER}/boardrec-' in done.stderr and 'make room there and run' in done.stderr
    assert [path.name for path in output.iterdir()] == [journal.FOLDER]
    waiting = [path for path in (output / journal.FOLDER).iterdir() if records.is_shard_file(path.name)]
    assert len(waiting) == 1
    built = waiting[0].stat().st_mtime_ns
    subprocess.run(['mount', '-o', 'remount,size=50m', str(small_disk)], check=True)
    convert_here(tmp_path / 'images', output, shard_bytes=32 << 20, workers=1)
    convert_here(tmp_path / 'images', tmp_path / 'whole', shard_bytes=32 << 20)
    assert fault_sweep.sums(output) == fault_sweep.sums(tmp_path / 'whole')
    assert (output / waiting[0].name).stat().st_mtime_ns == built
