"""Shards that an Apache Beam pipeline builds: the bytes of any other conversion, interrupted and refused like one.

Beam itself runs in `make test-long`, which installs it (extra `beam`).
"""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from boardrec.config import ConvertConfig, UserError
from boardrec.data import beam_runner, files, journal, records, scan, shards
from boardrec.data.table import Table

ROOT = pathlib.Path(__file__).parents[2]
HAS_BEAM = importlib.util.find_spec('apache_beam') is not None


def needs_beam(test):
    skip = pytest.mark.skipif(not HAS_BEAM, reason="needs the extra beam: pip install -e '.[beam]'")
    return pytest.mark.long(skip(test))


TWO_WORKERS = '--beam_options=--direct_num_workers=2 --direct_running_mode=multi_processing'


def make_job(images, folder, found, **others):
    plan, = shards.plan(Table(scan.Found, found), 1 << 40)
    values = {'storage': records.KEEP, 'max_bytes': 1 << 30, 'limits': (10**8, 65500, float('inf')),
              'on_bad_image': 'reject', **others}
    return shards.Job(str(images), str(folder), plan, ['a', 'b'], **values)


def tree_sums(folder):
    return {path.name: files.sha256_of(path) for path in folder.iterdir() if path.name != journal.FOLDER}


def make_records(images, out, *args):
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / 'make_records.py'), f'--input_dir={images}', f'--output_dir={out}',
         '--runner=beam', '--splits=train:1', *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(process):
    """(exit status, standard output, standard error)."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def session(process):
    """The processes of a command's session that are alive: {id: (parent's id, command line)}."""
    found = {}
    for entry in pathlib.Path('/proc').iterdir():
        try:
            if entry.name.isdecimal() and os.getsid(int(entry.name)) == process.pid:
                line = (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode()
                parent = (entry / 'stat').read_text().rpartition(')')[2].split()[1]
                if line:  # a zombie has none
                    found[int(entry.name)] = int(parent), line
        except OSError:
            continue
    return found


def builders(process):
    """{process that builds shards: the Beam worker that it belongs to}."""
    own = session(process)
    return {pid: parent for pid, (parent, line) in own.items()
            if 'spawn_main' in line and 'sdk_worker_main' in own.get(parent, (0, ''))[1]}


def wait_until(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_nothing_is_left(process, seconds=20):
    deadline = time.monotonic() + seconds
    while (left := session(process)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == {}


@pytest.fixture(scope='module')
def slow_images(tmp_path_factory, image_folder):
    """24 small images, one that is broken, and three in shards of their own that take half a second each."""
    images = image_folder({'a': 12, 'b': 12}, folder=tmp_path_factory.mktemp('slow') / 'images')
    (images / 'a' / 'bröken\n.png').write_bytes(b'not an image')
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), dtype=np.uint8)
    path = images / 'a' / 'slow0.tiff'
    Image.fromarray(noise).save(path)
    for i in (1, 2):
        (images / ('a' if i % 2 else 'b') / f'slow{i}.tiff').symlink_to(path)
    return images


@pytest.fixture(scope='module')
def expected(slow_images, tmp_path_factory, convert_here):
    """The sums of what a conversion without Beam makes of `slow_images`, in three shards."""
    out = tmp_path_factory.mktemp('expected') / 'out'
    convert_here(slow_images, out, splits='train:1', shard_bytes=9 << 20)
    return tree_sums(out)


# Without Beam


@pytest.mark.parametrize('storage', [records.KEEP, records.Storage('jpeg', (20, 24), 'pad', 80)])
def test_a_job_is_read_as_it_was_written(tmp_path, storage):
    found = [scan.Found('a/\udcff\n図.png', 'train', 'a', 3, 10**18), scan.Found('b/1.png', 'train', 'b', 5)]
    job = make_job(tmp_path / 'images', tmp_path, found, storage=storage)
    beam_runner._write_job(tmp_path, job)
    assert beam_runner.jobs_in(tmp_path) == [job.plan.file]
    read = beam_runner.read_job(tmp_path, job.plan.file)
    assert read == job
    assert [type(value) for value in read] == [type(value) for value in job]


def test_a_worker_that_outlives_its_conversion_has_nothing_to_do_and_leaves_nothing(tmp_path):
    assert beam_runner.read_job(tmp_path / 'gone', 'shard') is None
    beam_runner.write_error(tmp_path / 'gone', UserError('too late'))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('error', [
    UserError('one\nsentence, \udcff.'), OSError(28, 'No space left on device', 'shard'), OSError(5, 'I/O error')])
def test_an_error_of_a_worker_is_raised_by_the_parent(tmp_path, error):
    beam_runner.write_error(tmp_path, error)
    with pytest.raises(type(error)) as caught:
        beam_runner._raise_error(tmp_path)
    assert str(caught.value) == str(error)


def test_a_shard_is_taken_over_with_its_journal_if_they_fit(tmp_path, image_folder):
    images, own = image_folder({'a': 2, 'b': 2}, folder=tmp_path / 'images'), tmp_path / 'journal' / 'beam-1'
    own.mkdir(parents=True)
    found, _ = scan.scan(ConvertConfig(input_dir=str(images), output_dir='unused', splits='train:1'))
    job = make_job(images, own, found)
    watch = type('Watch', (), {'begin': lambda *_: None, 'end': lambda *_: None})()
    shards.build(job, {}, watch)
    os.utime(own / job.plan.file, ns=(1, 1))  # as after a second attempt, or on a file system with times of its own
    built = journal.take_over(own.parent, own, job.plan.file)
    assert built == journal.read(own.parent, job.plan.file) and list(own.iterdir()) == []
    assert journal.place(own.parent, built) == own.parent / job.plan.file
    shards.build(job, {}, watch)
    (own / job.plan.file).write_bytes(b'a second attempt is at it')
    assert journal.take_over(own.parent, own, job.plan.file) is None
    shards.build(job, {}, watch)
    assert journal.take_over(own.parent, own, job.plan.file) is not None


def test_what_a_killed_conversion_left_for_its_workers_is_removed(tmp_path, image_folder, convert_here):
    images, out = image_folder({'a': 2, 'b': 2}, folder=tmp_path / 'images'), tmp_path / 'out'
    left = out / journal.FOLDER / 'beam-0123'
    left.mkdir(parents=True)
    (left / 'shard.job').write_text('{}')
    convert_here(images, out, splits='train:1')
    assert not left.exists()


@pytest.mark.skipif(HAS_BEAM, reason='Apache Beam is installed')
def test_without_beam_the_extra_is_named(tmp_path, image_folder, convert_here):
    images = image_folder({'a': 2, 'b': 2}, folder=tmp_path / 'images')
    with pytest.raises(UserError, match=r"--runner=beam needs .* pip install -e '\.\[beam\]'"):
        convert_here(images, tmp_path / 'out', runner='beam')
    assert not (tmp_path / 'out').exists()


def test_options_of_beam_without_beam_are_refused():
    with pytest.raises(UserError, match='--beam_options=--runner=FlinkRunner.*--runner=beam'):
        ConvertConfig(input_dir='a', output_dir='b', beam_options='--runner=FlinkRunner')


# With Beam's DirectRunner


@needs_beam
def test_two_workers_write_the_bytes_of_any_other_conversion(slow_images, expected, tmp_path):
    process = make_records(slow_images, tmp_path / 'out', '--shard_mib=9', TWO_WORKERS)
    wait_until(lambda: len(set(builders(process).values())) == 2, process)
    libraries = pathlib.Path(f'/proc/{process.pid}/maps').read_text()
    assert 'numpy' in libraries
    assert not re.search('tensorflow|apache_beam', libraries), 'the parent stays small'
    status, out, err = finished(process)
    assert (status, err.count('Traceback')) == (0, 0), err
    assert 'building 3 shards with Apache Beam --direct_num_workers=2' in out
    assert re.search(r'out: 27 records in 3 shards.*\n1 file became no record', out)
    assert tree_sums(tmp_path / 'out') == expected
    assert not list((tmp_path / 'out' / journal.FOLDER).glob('beam-*'))
    assert_nothing_is_left(process)


@needs_beam
def test_after_ctrl_c_the_same_command_without_beam_goes_on(slow_images, expected, tmp_path, convert_here, capsys):
    out = tmp_path / 'out'
    process = make_records(slow_images, out, '--shard_mib=9')
    wait_until(lambda: journal.names(out / journal.FOLDER), process)
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = finished(process)
    assert (status, err.splitlines()[-1:]) == (130, ['Interrupted; the same command goes on from what is complete.'])
    assert 'Traceback' not in err
    assert_nothing_is_left(process)
    assert not list((out / journal.FOLDER).glob('beam-*'))
    convert_here(slow_images, out, splits='train:1', shard_bytes=9 << 20)
    assert re.search('[12] of 3 shards are up to date', capsys.readouterr().out)
    assert tree_sums(out) == expected


@needs_beam
def test_no_worker_outlives_a_parent_that_is_killed(slow_images, tmp_path):
    process = make_records(slow_images, tmp_path / 'out', '--shard_mib=9', TWO_WORKERS)
    wait_until(lambda: builders(process), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_nothing_is_left(process, 3)  # before they would have ended by themselves: TensorFlow's import takes longer
    process.communicate()


@needs_beam
def test_a_file_that_takes_too_long_fails_the_command_in_one_line(slow_images, tmp_path):
    """The limits hold in Beam's workers too, and what a shard raises arrives."""
    for label in 'ab':
        (tmp_path / 'images' / label).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (9000, 9000), dtype=np.uint8)  # takes five seconds
    Image.fromarray(noise).save(tmp_path / 'images' / 'a' / 'slow0.tiff')
    (tmp_path / 'images' / 'b' / 'more.jpg').symlink_to(slow_images / 'b' / 'board000.jpg')
    labels = tmp_path / 'labels.csv'
    labels.write_text('path,label\na/slow0.tiff,a\nb/more.jpg,b\n')
    status, _, err = finished(make_records(
        tmp_path / 'images', tmp_path / 'out', f'--labels_csv={labels}', '--seconds_an_image=1',
        '--on_bad_image=fail'))
    assert status == 2
    assert re.fullmatch(r'error: .*/images/\S+: time limit \(--on_bad_image=fail\)\.', err.splitlines()[-1])
    assert 'Traceback' not in err


@needs_beam
@pytest.mark.parametrize(('options', 'match'), [
    ('--direct_num_workers=two', '--beam_options=--direct_num_workers=two: argument --direct_num_workers: invalid int'),
    ('--runner=NoRunner', '--runner=beam: the pipeline failed: Unexpected pipeline runner: NoRunner'),
    ("'", "--beam_options=': No closing quotation"),
])
def test_options_that_beam_does_not_take_are_told_in_one_line(slow_images, tmp_path, options, match):
    status, _, err = finished(make_records(slow_images, tmp_path / 'out', f'--beam_options={options}'))
    assert status == 2
    assert err.startswith(f'error: {match}') and err.count('\n') == 1
