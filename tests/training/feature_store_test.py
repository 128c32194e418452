"""A cache of features is whole or said to lack what it lacks; its shards are computed once, by whoever comes first."""

import errno
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.data import files
from boardrec.training import feature_store

ROW_BYTES, RECORDS, ROWS_A_SHARD = 12, 47, 5  # ten shards, the last one of 2 rows
KEY = {'records': 'f00d', 'backbone': 'vgg16', 'weights': 'w', 'cut': [3], 'image_size': [32, 32],
       'precision': 'float32', 'split': 'train', 'view': None}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_store, '_SHARD_BYTES', ROWS_A_SHARD * ROW_BYTES + ROW_BYTES - 1)


@pytest.fixture
def part(tmp_path):
    """A part of ten shards, nothing of which is there."""
    return make_part(tmp_path)


def make_part(folder, **key):
    return feature_store.make_part(folder, KEY | key, records=RECORDS, row_bytes=ROW_BYTES)


def rows_of(part, number):
    """What the trunk would make of a shard's records: each byte tells its row and its place."""
    rows = np.array(part.rows(number))
    return (rows[:, None] * 7 + np.arange(part.row_bytes)).astype(np.uint8)


def complete(part, **settings):
    """Completes a part and returns the lists of shards that were asked for, one after the other."""
    asked = []

    def compute(numbers):
        asked.append(list(numbers))
        for number in numbers:
            yield number, rows_of(part, number)

    damaged = settings.pop('damaged', feature_store.missing(part))
    feature_store.open_or_compute(part, compute, boundary='block5_conv1', damaged=damaged, **settings).lock.close()
    return asked


def read(part):
    """The shards of a complete part, mapped into memory."""
    opened = feature_store.open_or_compute(part, None, boundary='', damaged=[])
    opened.lock.close()
    return opened.shards


def computed(asked):
    return [number for numbers in asked for number in numbers]


def assert_complete(part):
    for number, shard in enumerate(read(part)):
        np.testing.assert_array_equal(shard, rows_of(part, number))
    manifest = json.loads((part.folder / 'manifest.json').read_text())
    assert [shard['sha256'] for shard in manifest['shards']] == [
        hashlib.sha256(rows_of(part, number).tobytes()).hexdigest() for number in range(part.shards)]
    assert feature_store.missing(part) == []
    assert not [path for path in part.folder.iterdir() if path.name.startswith(files.TEMPORARY_PREFIX)]


def test_a_part_has_shards_of_whole_rows(part):
    assert part.shards == 10 and [len(part.rows(number)) for number in range(10)] == [5] * 9 + [2]
    assert [row for number in range(10) for row in part.rows(number)] == list(range(RECORDS))
    assert feature_store.bytes_of(part, [0, 9]) == 7 * ROW_BYTES
    assert part._replace(records=45).shards == 9 and part._replace(records=0).shards == 0
    assert part._replace(row_bytes=10**9).shards == RECORDS  # a row larger than a shard is one


def test_a_cache_has_a_manifest_and_a_sum_of_each_shard(part):
    assert feature_store.missing(part) == list(range(10)) and not part.folder.exists()
    assert computed(complete(part)) == list(range(10))
    assert_complete(part)
    manifest = json.loads((part.folder / 'manifest.json').read_text())
    assert manifest['key'] == KEY and manifest['boundary'] == 'block5_conv1'
    assert (manifest['records'], manifest['row_bytes'], manifest['bytes']) == (RECORDS, ROW_BYTES, RECORDS * ROW_BYTES)
    assert manifest['computed'] == RECORDS and manifest['images_per_second'] > 0
    assert sum(path.stat().st_size for path in part.folder.glob('*.rows')) == RECORDS * ROW_BYTES


def test_a_complete_cache_is_read_and_not_computed(part):
    complete(part)
    before = {path: path.stat().st_ino for path in part.folder.iterdir()}
    assert complete(part) == []
    assert before == {path: path.stat().st_ino for path in part.folder.iterdir()}


def test_rows_in_memory_and_on_disk_are_the_same(part):
    complete(part)
    for one, other in zip(feature_store.read_or_compute(part, None, absent=[]).shards, read(part), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype == np.uint8
        assert not isinstance(one, np.memmap) and isinstance(other, np.memmap) and not other.flags.writeable


def test_opening_is_use(part):
    complete(part)
    os.utime(part.folder / 'manifest.json', (1, 1))
    read(part)
    assert (part.folder / 'manifest.json').stat().st_mtime > 1


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS])
def test_a_complete_cache_of_somebody_else_is_read(part, monkeypatch, number):
    complete(part)
    look = os.open

    def refuse(*_, **__):
        raise OSError(number, 'no')

    monkeypatch.setattr(os, 'utime', refuse)
    monkeypatch.setattr(
        os, 'open', lambda path, flags, *mode: refuse() if flags & os.O_RDWR else look(path, flags, *mode))
    assert complete(part) == []
    assert_complete(part)
    (part.folder / 'manifest.json').unlink()
    monkeypatch.setattr(files, 'atomic_write', refuse)
    assert complete(part) == []  # all is there, and the manifest may be written another time


def test_a_large_computation_is_cut_into_chunks(part):
    asked = complete(part, chunk_seconds=0)
    assert asked == [[number] for number in range(10)]


def test_how_much_is_claimed_follows_the_rate(part, monkeypatch):
    clock = iter([0, 2, 2, 6, 6, 24, *range(24, 100)])  # 2 s a shard, then 6 s
    monkeypatch.setattr(feature_store, 'time', types.SimpleNamespace(perf_counter=lambda: next(clock)))
    assert complete(part, chunk_seconds=4.5) == [[0], [1, 2], [3, 4], [5], [6], [7], [8], [9]]


def test_a_shard_has_its_name_only_once_it_is_on_the_disk(part, monkeypatch):
    commit, committed = files.commit_file, []

    def watched(temporary, path):
        size = pathlib.Path(temporary).stat().st_size
        committed.append((pathlib.Path(path).name, pathlib.Path(path).exists(), size))
        commit(temporary, path)

    monkeypatch.setattr(files, 'commit_file', watched)
    complete(part)
    assert committed[:-1] == [(f'{number:05d}.rows', False, len(part.rows(number)) * ROW_BYTES) for number in range(10)]
    assert committed[-1][:2] == ('manifest.json', False)


def interrupted_after(part, count):
    """Computes until `count` shards are handed over, then is stopped."""
    def compute(numbers):
        nonlocal count
        for number in numbers:
            if not count:
                raise KeyboardInterrupt
            count -= 1
            yield number, rows_of(part, number)

    with pytest.raises(KeyboardInterrupt):
        feature_store.open_or_compute(part, compute, boundary='b', damaged=[])


@pytest.mark.parametrize('count', [0, 1, 4, 9])
def test_a_computation_that_was_stopped_goes_on_with_what_is_missing(part, count):
    interrupted_after(part, count)
    assert not (part.folder / 'manifest.json').exists()
    assert feature_store.missing(part) == list(range(count, 10))
    assert computed(complete(part)) == list(range(count, 10))
    assert_complete(part)


def test_shards_that_are_computed_anew_may_differ_in_their_last_bits(part):
    complete(part)
    for number in (3, 4):
        part.path(number).unlink()

    def compute(numbers):  # as another version of the hardware's library, which is stopped on the way
        yield 3, rows_of(part, 3) ^ 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_store.open_or_compute(part, compute, boundary='b', damaged=[3, 4])
    assert feature_store.missing(part) == [4]  # what was computed is not measured by the sums of what is gone


def test_the_shards_between_are_computed_too(part):
    complete(part)
    (part.folder / 'manifest.json').unlink()
    for number in (0, 4, 9):
        part.path(number).unlink()
    assert feature_store.missing(part) == [0, 4, 9]
    assert computed(complete(part)) == [0, 4, 9]
    assert_complete(part)


def damage(part, how):
    path, manifest = part.path(3), part.folder / 'manifest.json'
    if how == 'flipped bit':
        content = bytearray(path.read_bytes())
        content[17] ^= 4
        path.write_bytes(content)
    elif how == 'cut short':
        path.write_bytes(path.read_bytes()[:-1])
    elif how == 'too long':
        path.write_bytes(path.read_bytes() + b'x')
    elif how == 'empty':
        path.write_bytes(b'')
    elif how == 'deleted':
        path.unlink()
    elif how == 'no manifest':
        manifest.unlink()
    elif how == 'half a manifest':
        manifest.write_bytes(manifest.read_bytes()[:200])
    else:
        manifest.write_text(how)


@pytest.mark.parametrize(('how', 'missing'), [
    ('flipped bit', [3]), ('cut short', [3]), ('too long', [3]), ('empty', [3]), ('deleted', [3]), ('no manifest', []),
    ('half a manifest', []), ('', []), ('null', []), ('[]', []), ('{"key": {}}', []), ('{"key": 1, "shards": 2}', [])])
def test_damage_is_mended_by_computing_what_it_touched(part, how, missing, capsys):
    complete(part)
    damage(part, how)
    assert feature_store.missing(part) == missing
    assert not capsys.readouterr().out
    assert computed(complete(part)) == missing
    assert ('00003.rows was damaged' in capsys.readouterr().out) == (how == 'flipped bit')
    assert_complete(part)


def test_the_first_and_the_last_bit_of_each_shard_count(part):
    complete(part)
    for number in range(part.shards):
        for place in (0, -1):
            content = part.path(number).read_bytes()
            changed = bytearray(content)
            changed[place] ^= 0x80
            part.path(number).write_bytes(changed)
            assert feature_store.missing(part) == [number] and part.path(number).read_bytes() == bytes(changed)
            part.path(number).write_bytes(content)


def test_a_manifest_of_other_features_is_not_believed(part):
    complete(part)
    manifest = json.loads((part.folder / 'manifest.json').read_text())
    others = {**manifest, 'shards': [{**shard, 'sha256': '0'} for shard in manifest['shards']]}
    for values in ({**others, 'key': KEY | {'weights': 'others'}}, {**others, 'shards': others['shards'][:-1]}):
        (part.folder / 'manifest.json').write_text(json.dumps(values))
        assert feature_store.missing(part) == []  # as if there were none


def test_a_manifest_of_other_features_is_written_anew(part):
    complete(part)
    (part.folder / 'manifest.json').write_text('{"key": {}, "shards": []}')
    complete(part)
    assert_complete(part)
    damage(part, 'flipped bit')
    assert feature_store.missing(part) == [3]


def test_a_shard_that_another_process_removes_while_it_is_checked(part, monkeypatch):
    complete(part)
    sha256_of = files.sha256_of

    def gone(path):
        path.unlink(missing_ok=path == part.path(2))
        return sha256_of(path)

    monkeypatch.setattr(files, 'sha256_of', lambda path: gone(path) if path == part.path(2) else sha256_of(path))
    assert feature_store.missing(part) == [2]


@pytest.mark.parametrize(('name', 'value'), [
    ('records', 'beef'), ('weights', 'v'), ('cut', [4]), ('image_size', [32, 40]), ('precision', 'bfloat16'),
    ('split', 'val'), ('view', {'view': 0, 'seed': 1}), ('view', {'view': 1, 'seed': 0}), ('backbone', 'vgg19')])
def test_each_thing_that_features_depend_on_has_a_folder_of_its_own(part, tmp_path, name, value):
    complete(part)
    other = make_part(tmp_path, **{name: value})
    assert other.folder != part.folder and feature_store.missing(other) == list(range(10))
    assert computed(complete(other)) == list(range(10))


def test_why_features_are_computed(part, tmp_path):
    assert feature_store.reason_for(part) == 'there are none yet'
    complete(make_part(tmp_path, split='val', weights='others'))
    assert feature_store.reason_for(part) == 'there are none yet'  # of this split
    complete(make_part(tmp_path, precision='bfloat16', weights='others', image_size=[64, 64]))
    assert feature_store.reason_for(part) == (
        f'those in {tmp_path} differ in weights, image size, precision')
    complete(make_part(tmp_path, weights='others'))
    assert feature_store.reason_for(part) == f'those in {tmp_path} differ in weights'
    interrupted_after(part, 2)
    assert feature_store.reason_for(part) == 'they were not complete'


def test_why_the_only_shard_is_computed_again(tmp_path):
    part = feature_store.make_part(tmp_path, KEY, records=3, row_bytes=ROW_BYTES)
    complete(part)
    part.path(0).unlink()
    assert feature_store.reason_for(part) == 'some were damaged or removed'


def test_entries_are_the_caches_longest_unused_first(part, tmp_path):
    other = make_part(tmp_path, weights='others')
    complete(part)
    interrupted_after(other, 2)
    for path in other.folder.iterdir():
        os.utime(path, (1000, 1000))
    (tmp_path / 'notes.txt').touch()
    (tmp_path / '0123456789abcdef').mkdir()  # as yet empty
    first, second = feature_store.entries(tmp_path)
    assert (first.folder, first.manifest, first.used) == (other.folder, None, 1000)
    assert first.bytes == 10 * ROW_BYTES
    assert (second.folder, second.manifest['key']) == (part.folder, KEY) and second.used > 1000
    assert second.bytes == sum(path.stat().st_size for path in part.folder.iterdir())
    assert feature_store.entries(tmp_path / 'nowhere') == []


def test_entries_while_a_process_renames_what_it_wrote(part, tmp_path):
    complete(part)
    (part.folder / '.tmp-00003.rows-host-1').symlink_to('gone')  # as a file that is listed and gone when looked at
    assert [entry.folder for entry in feature_store.entries(tmp_path)] == [part.folder]


def test_a_cache_is_removed_with_all_that_is_in_it(part, tmp_path):
    complete(part)
    other = make_part(tmp_path, weights='others')
    complete(other)
    mapped = read(part)
    entry = next(entry for entry in feature_store.entries(tmp_path) if entry.folder == part.folder)
    assert feature_store.remove(entry)
    assert [path.name for path in tmp_path.iterdir()] == [other.folder.name]
    np.testing.assert_array_equal(mapped[4], rows_of(part, 4))  # who reads it keeps it
    assert_complete(other)


# Another process, which knows the part by its folder's name and computes what rows_of gives.
CHILD = '''
import json, os, pathlib, sys, time
import numpy as np
from boardrec.training import feature_store
folder, key, records, row_bytes, shard_bytes, mode = json.loads(sys.argv[1])
feature_store._SHARD_BYTES, feature_store._POLL_SECONDS = shard_bytes, 0.01
part = feature_store.make_part(pathlib.Path(folder), key, records=records, row_bytes=row_bytes)

def compute(numbers):
    for number in numbers:
        print('computes', number, flush=True)
        if mode == 'hang' or (mode == 'hang at 2' and number == 2):
            time.sleep(600)
        if mode == 'wait':
            sys.stdin.readline()
        time.sleep(0.01)
        yield number, (np.array(part.rows(number))[:, None] * 7 + np.arange(row_bytes)).astype(np.uint8)

print('ready', flush=True)
if mode == 'share':
    sys.stdin.readline()
opened = feature_store.open_or_compute(part, compute, boundary='child', damaged=[], chunk_seconds=0)
if mode == 'read':
    print('reads', flush=True)
    time.sleep(600)
'''


@pytest.fixture
def child(part):
    """A function that starts another process which completes the part, in one of CHILD's ways."""
    started = []

    def start(mode):
        given = json.dumps([str(part.folder.parent), KEY, RECORDS, ROW_BYTES, feature_store._SHARD_BYTES, mode])
        process = subprocess.Popen([sys.executable, '-c', CHILD, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   text=True, bufsize=1)
        started.append(process)
        assert process.stdout.readline() == 'ready\n'
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def its_shards(text):
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith('computes')]


def test_two_processes_share_the_work_and_none_does_anothers(part, child):
    processes = [child('share') for _ in range(2)]
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    shares = [its_shards(output) for output in outputs]
    assert sorted(shares[0] + shares[1]) == list(range(10)) and all(shares)
    assert_complete(part)


def test_what_another_process_computes_is_waited_for(part, child, monkeypatch, capsys):
    process = child('wait')
    assert process.stdout.readline() == 'computes 0\n'
    slept = []

    def let_it_go_on(_):
        slept.append(None)
        if len(slept) == 3:
            process.stdin.write('go\n')
            process.stdin.flush()
            assert process.wait() == 0

    monkeypatch.setattr(feature_store.time, 'sleep', let_it_go_on)
    assert computed(complete(part)) == list(range(1, 10))
    assert capsys.readouterr().out == (
        'features of train: waiting for another process that computes 1 of 10 shards\n')
    assert len(slept) == 3
    assert_complete(part)


def test_a_process_that_is_killed_blocks_nobody(part, child, monkeypatch):
    process = child('hang at 2')
    while process.stdout.readline() != 'computes 2\n':
        pass

    def kill(_):
        process.kill()
        process.wait()

    monkeypatch.setattr(feature_store.time, 'sleep', kill)
    assert computed(complete(part)) == [*range(3, 10), 2]
    assert_complete(part)


def test_a_cache_that_a_process_computes_is_not_removed(part, child, tmp_path):
    process = child('hang')
    assert process.stdout.readline() == 'computes 0\n'
    entry, = feature_store.entries(tmp_path)
    assert not feature_store.remove(entry) and part.folder.is_dir()
    process.kill()
    process.wait()
    assert feature_store.remove(entry) and not part.folder.exists()


def test_what_was_done_between_looking_and_claiming_is_not_done_again(part, monkeypatch):
    acquire, done = files.LockFile.acquire, []

    def late(file, start, length, **kind):
        if start == 5 and not done:  # another process wrote it and let its lock go
            done.append(part.path(4).write_bytes(rows_of(part, 4).tobytes()))
        return acquire(file, start, length, **kind)

    monkeypatch.setattr(files.LockFile, 'acquire', late)
    assert computed(complete(part)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert_complete(part)


@pytest.mark.parametrize(('number', 'error', 'message'), [
    (errno.ENOLCK, UserError, 'lock: the file system has no locks; name a folder on another'),
    (errno.EIO, OSError, 'as the disk says')])
def test_a_lock_that_cannot_be_had_for_another_reason_is_told(part, monkeypatch, number, error, message):
    def fail(*_):
        raise OSError(number, 'as the disk says')

    monkeypatch.setattr(files.fcntl, 'lockf', fail)
    with pytest.raises(error, match=message):
        complete(part)


def test_small_rows_make_shards_that_are_soon_computed(tmp_path):
    part = feature_store.make_part(tmp_path, KEY, records=5000, row_bytes=4)
    feature_store._SHARD_BYTES = 64 << 20  # put back by small_shards
    assert [len(part.rows(number)) for number in range(part.shards)] == [1024] * 4 + [904]


def test_a_shard_that_vanishes_meanwhile_is_computed_again(part):
    asked = []

    def compute(numbers):
        asked.extend(numbers)
        for number in numbers:
            if asked == list(range(10)):
                part.path(2).unlink()  # by hand: nobody who keeps to the locks does so
            yield number, rows_of(part, number)

    feature_store.open_or_compute(part, compute, boundary='b', damaged=[], chunk_seconds=0).lock.close()
    assert asked == [*range(10), 2]
    assert_complete(part)


def test_what_appears_in_a_cache_while_it_is_removed_stays(part, tmp_path):
    complete(part)
    entry, = feature_store.entries(tmp_path)
    (part.folder / 'notes.txt').write_text('x')
    assert feature_store.remove(entry)
    assert [path.name for path in part.folder.iterdir()] == ['notes.txt']


def test_a_cache_that_was_pruned_on_the_way_is_begun_anew(part, tmp_path, monkeypatch):
    complete(part)
    acquire, pruned = files.LockFile.acquire, []

    def late(file, start, length, **kind):
        if not pruned:  # between the lock file's opening and its locking
            pruned.append(True)
            entry, = feature_store.entries(tmp_path)
            assert feature_store.remove(entry) and not part.folder.exists()
        return acquire(file, start, length, **kind)

    monkeypatch.setattr(files.LockFile, 'acquire', late)
    assert computed(complete(part, damaged=[])) == list(range(10))
    assert_complete(part)


def test_a_damaged_shard_that_somebody_is_mending_is_left_to_him(part, child, monkeypatch):
    complete(part)
    damage(part, 'flipped bit')
    damaged, before = feature_store.missing(part), json.loads((part.folder / 'manifest.json').read_text())
    (part.folder / 'manifest.json').unlink()
    part.path(3).unlink()
    process = child('wait')  # computes shard 3
    assert process.stdout.readline() == 'computes 3\n'
    (part.folder / 'manifest.json').write_text(json.dumps(before))  # as one who read it before it went
    part.path(3).write_bytes(rows_of(part, 0).tobytes())

    def let_it_go_on(_):
        process.stdin.write('go\n')
        process.stdin.flush()
        process.wait()

    monkeypatch.setattr(feature_store.time, 'sleep', let_it_go_on)
    lock = feature_store._use(part)
    feature_store._remove_damaged(part, 3, lock)
    assert part.path(3).is_file()
    let_it_go_on(None)
    feature_store._remove_damaged(part, 3, lock)  # it is mended
    lock.close()
    assert damaged == [3] and computed(complete(part, damaged=damaged)) == []
    assert_complete(part)


def test_a_cache_that_a_process_reads_is_not_removed(part, child, tmp_path):
    complete(part)
    process = child('read')
    assert process.stdout.readline() == 'reads\n'
    entry, = feature_store.entries(tmp_path)
    assert not feature_store.remove(entry)
    assert_complete(part)
    process.kill()
    process.wait()
    assert feature_store.remove(entry) and not part.folder.exists()


def test_a_full_disk_ends_the_computation_with_what_was_written(part, monkeypatch):
    write, numbers = feature_store._write, []

    def full(part, number, rows, lock):
        numbers.append(number)
        if number == 5:
            raise OSError(28, 'No space left on device', str(part.path(number)))
        return write(part, number, rows, lock)

    monkeypatch.setattr(feature_store, '_write', full)
    with pytest.raises(OSError, match='No space left'):
        complete(part)
    monkeypatch.setattr(feature_store, '_write', write)
    there = [number for number in range(10) if number not in feature_store.missing(part)]
    assert set(range(5)) <= set(there) and len(numbers) <= 7  # it ends soon
    assert pathlib.Path(part.folder / 'lock').exists() and not (part.folder / 'manifest.json').exists()
    complete(part)
    assert_complete(part)
