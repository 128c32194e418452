"""The command with real worker processes: mistakes, Ctrl-C, a killed parent."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from conversions import add_slow, assert_nothing_is_left, finished, session, set_files, touch, tree_sums, wait_until
import pytest

from boardrec.data import journal

ROOT = pathlib.Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'make_records.py'


def command(*args, **options):
    return subprocess.Popen([sys.executable, str(TOOL), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True, **options)


@pytest.fixture(scope='module')
def mistakes(tmp_path_factory):
    """A folder with some images, an output folder that holds something else, and nothing named `nowhere`."""
    folder = tmp_path_factory.mktemp('mistakes')
    touch(folder, 'images/a/1.png', 'images/b/2.png', 'other/thesis.docx', 'one_class/a/1.png', 'empty_class/a/1.png',
          'empty_class/b/1.png')
    (folder / 'empty_class' / 'c').mkdir()
    (folder / 'empty').mkdir()
    return folder


@pytest.mark.parametrize(('args', 'match'), [
    (['--input_dir=nowhere', '--output_dir=out'], '--input_dir=nowhere: there is no such folder'),
    (['--input_dir=images'], '--output_dir is missing'),
    (['--input_dir=images', '--output_dir=out', '--worker=2'], "Unknown command line flag 'worker'"),
    (['--input_dir=images', '--output_dir=out', 'images'], "'images' is not a flag"),
    (['--input_dir=images', '--output_dir=out', '--shard_mib=0'], '--shard_mib=0: must be at least 1'),
    (['--input_dir=images', '--splits=train:1', '--output_dir=other'], 'holds thesis.docx'),
    (['--input_dir=images', '--output_dir=images/records'], 'lies within --input_dir'),
    (['--input_dir=empty', '--output_dir=out'], 'no files in it'),
    (['--input_dir=one_class', '--output_dir=out'], 'only one class'),
    (['--input_dir=empty_class', '--output_dir=out'], 'a class with no images'),
], ids=lambda value: value[-1] if isinstance(value, list) else '')
def test_a_mistake_ends_with_status_2_and_one_line(mistakes, args, match):
    status, _, err = finished(command(*args, cwd=mistakes))
    assert status == 2
    assert err.startswith('error: ')
    assert match in err
    assert err.count('\n') == 1
    assert not (mistakes / 'out').exists()


@pytest.fixture(scope='module')
def slow_images(tmp_path_factory, image_folder):
    """27 images; three, one in each shard of 9 MiB, take a worker half a second."""
    images = image_folder({'a': 12, 'b': 12}, folder=tmp_path_factory.mktemp('slow') / 'images')
    return add_slow(images)


proc = pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs /proc')


@proc
def test_ctrl_c_stops_every_process_and_the_same_command_completes_with_the_bytes_of_any_other(
        slow_images, tmp_path, convert_here):
    """Two workers and no worker write the same files; the next test adds one worker."""
    out = tmp_path / 'out'
    args = [f'--input_dir={slow_images}', f'--output_dir={out}', '--splits=train:1', '--shard_mib=9', '--workers=2']
    process = command(*args)
    wait_until(lambda: list((out / journal.FOLDER).glob('.tmp-boardrec-*')), process)
    assert len(session(process)) >= 3
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    status, _, err = finished(process)
    assert status == 130
    assert err.endswith('Interrupted; the same command goes on from what is complete.\n')
    assert 'Traceback' not in err
    assert_nothing_is_left(process, 5)
    assert set_files(out) == []

    status, text, err = finished(command(*args))
    assert (status, 'Traceback' in err) == (0, False), err
    assert re.search('out: 27 records in 3 shards', text)
    convert_here(slow_images, tmp_path / 'here', shard_bytes=9 << 20, splits='train:1')
    assert tree_sums(out) == tree_sums(tmp_path / 'here')


def worker_pids(process):
    return [pid for pid, (_, line) in session(process).items() if 'spawn_main' in line]


@proc
def test_ctrl_c_while_the_workers_start_is_told_in_one_line_too(slow_images, tmp_path):
    process = command(f'--input_dir={slow_images}', f'--output_dir={tmp_path / "out"}', '--workers=1')
    wait_until(lambda: worker_pids(process), process)
    time.sleep(0.1)  # Python runs, its modules are being imported
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = finished(process)
    assert (status, err) == (130, 'Interrupted; the same command goes on from what is complete.\n')
    assert_nothing_is_left(process, 5)


@proc
def test_workers_do_not_outlive_a_parent_that_is_killed(slow_images, tmp_path):
    process = command(f'--input_dir={slow_images}', f'--output_dir={tmp_path / "out"}', '--workers=1')
    wait_until(lambda: worker_pids(process), process)
    time.sleep(0.5)  # the worker is busy with TensorFlow
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_nothing_is_left(process, 20)
    process.communicate()


def test_one_worker_writes_the_same_bytes_and_the_parent_stays_without_tensorflow(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 6, 'b': 6}, folder=tmp_path / 'images')
    touch(images, 'a/broken.png')
    code = ('import json, sys\nfrom boardrec.config import ConvertConfig\nfrom boardrec.data import convert\n'
            'convert.convert(ConvertConfig(**json.loads(sys.argv[1])))\n'
            'print(json.dumps([name for name in ("tensorflow", "keras") if name in sys.modules]))')
    settings = {'encoding': 'jpeg', 'image_size': '16', 'resize': 'squash', 'max_bad_fraction': 0.1}
    given = json.dumps({'input_dir': str(images), 'output_dir': str(tmp_path / 'out'), 'workers': 1, **settings})
    done = subprocess.run([sys.executable, '-c', code, given], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert all(line.startswith('converting: ') for line in done.stderr.splitlines()), 'the bar of a slow machine'
    assert re.search(r'^jpeg: .* \(12 images measured\)$', done.stdout, re.MULTILINE)
    convert_here(images, tmp_path / 'here', shard_bytes=32 << 20, **settings)
    assert tree_sums(tmp_path / 'out') == tree_sums(tmp_path / 'here')
