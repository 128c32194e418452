"""What the tests of conversion share: settings, what became of the files, and commands that run by themselves."""

import os
import pathlib
import time

import numpy as np
from PIL import Image

from boardrec.config import ConvertConfig
from boardrec.data import files, journal, records, scan, shards
from boardrec.data.table import Table


def settings(input_dir, output_dir='unused', **others):
    return ConvertConfig(input_dir=str(input_dir), output_dir=str(output_dir), **others)


def touch(folder, *names, content=b'not an image'):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def set_files(folder):
    """The files of a record set, without the converter's journal."""
    return [path for path in folder.iterdir() if path.name != journal.FOLDER]


def tree_sums(folder):
    return {path.name: files.sha256_of(path) for path in set_files(folder)}


def stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in set_files(folder)}


def outcome(folder):
    """What became of each file: {source: split or reason}."""
    rows = {row.source: row.split for row in records.read_index(folder)}
    rejected = {source: reason for source, reason, _ in records.read_rejected(folder)}
    assert not set(rows) & set(rejected)
    return rows | rejected


def make_job(images, folder, found, **others):
    """A job to build these files into one shard."""
    plan, = shards.plan(Table(scan.Found, found), 1 << 40)
    values = {'storage': records.KEEP, 'max_bytes': 1 << 30, 'limits': (10**8, 65500, float('inf')),
              'on_bad_image': 'reject', **others}
    return shards.Job(str(images), str(folder), plan, ['a', 'b'], **values)


def add_slow(images):
    """Adds three images that take a worker half a second each, one to each shard of 9 MiB; returns the folder."""
    path = images / 'a' / 'slow0.tiff'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), dtype=np.uint8)).save(path)
    for i in (1, 2):
        (images / ('a' if i % 2 else 'b') / f'slow{i}.tiff').symlink_to(path)
    return images


def finished(process):
    """(exit status, standard output, standard error) of a command."""
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


def wait_until(condition, process, seconds=200):
    """Waits for what a command does; it must not end meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_nothing_is_left(process, seconds=20):
    """Of a command's session; a process that was told to end may take a moment."""
    deadline = time.monotonic() + seconds
    while (left := session(process)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == {}
