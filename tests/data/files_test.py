"""Nothing takes its name before it is whole and on disk, and whoever is interrupted leaves what was there before."""

import errno
import hashlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from boardrec.data import files


@pytest.fixture
def system_calls(monkeypatch):
    """Records, in order, the path behind each fsync and the target of each rename, and still does them."""
    calls = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def recorded_fsync(descriptor):
        calls.append(('fsync', os.readlink(f'/proc/self/fd/{descriptor}')))
        fsync(descriptor)

    def recorded(name, function):
        def call(source, target):
            calls.append((name, os.fspath(target)))
            function(source, target)
        return call

    monkeypatch.setattr(os, 'fsync', recorded_fsync)
    monkeypatch.setattr(os, 'replace', recorded('rename', replace))
    monkeypatch.setattr(os, 'rename', recorded('rename', rename))
    return calls


def tree(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*'))


def test_atomic_write_replaces_what_was_there(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with files.atomic_write(path) as file:
        file.write(b'new')
        assert path.read_text() == 'old'
        assert file.name == str(files.temporary_name(path)), 'readers pass over this name only'
    assert path.read_text() == 'new'
    assert tree(tmp_path) == ['a.txt']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_content_and_no_temporary_file(tmp_path, error):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(error), files.atomic_write(path) as file:
        file.write(b'new')
        raise error
    assert path.read_text() == 'old'
    assert tree(tmp_path) == ['a.txt']


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / 'a').mkdir()
    with pytest.raises(IsADirectoryError), files.atomic_write(tmp_path / 'a') as file:
        file.write(b'new')
    assert tree(tmp_path) == ['a']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    monkeypatch.setattr(files, 'remove_leftovers', lambda _: None)
    os.symlink('/dev/full', files.temporary_name(path))
    with pytest.raises(OSError) as caught, files.atomic_write(path) as file:
        file.write(b'new')
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert not path.exists()


def test_require_space_raises_the_error_of_a_full_disk(tmp_path):
    files.require_space(tmp_path, needed_bytes=1)
    with pytest.raises(OSError, match='No space left') as caught:
        files.require_space(tmp_path, needed_bytes=2**80)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


proc = pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='needs /proc')


@proc
def test_atomic_write_is_on_disk_before_its_name_and_the_name_after(tmp_path, system_calls):
    path = tmp_path / 'a.txt'
    with files.atomic_write(path) as file:
        file.write(b'new')
    assert system_calls == [
        ('fsync', str(files.temporary_name(path))), ('rename', str(path)), ('fsync', str(tmp_path))]


@proc
def test_commit_file_is_on_disk_before_its_name_and_the_name_after(tmp_path, system_calls):
    temporary, path = tmp_path / 'half', tmp_path / 'whole'
    temporary.write_text('new')
    path.write_text('old')
    files.commit_file(temporary, path)
    assert system_calls == [('fsync', str(temporary)), ('rename', str(path)), ('fsync', str(tmp_path))]
    assert path.read_text() == 'new'


@proc
def test_commit_folder_puts_everything_below_on_disk_first(tmp_path, system_calls):
    temporary, path = tmp_path / 'half', tmp_path / 'whole'
    (temporary / 'sub').mkdir(parents=True)
    (temporary / 'a').write_text('a')
    (temporary / 'sub' / 'b').write_text('b')
    files.commit_folder(temporary, path)
    assert set(system_calls[:-2]) == {
        ('fsync', str(temporary / name)) for name in ('', 'a', 'sub', 'sub/b')}
    assert system_calls[-2:] == [('rename', str(path)), ('fsync', str(tmp_path))]
    assert tree(path) == ['a', 'sub', 'sub/b']


@pytest.mark.parametrize('target', ['empty folder', 'folder', 'file', 'dangling link'])
def test_commit_folder_refuses_an_existing_target(tmp_path, target):
    temporary, path = tmp_path / 'half', tmp_path / 'whole'
    temporary.mkdir()
    if target == 'file':
        path.write_text('old')
    elif target == 'dangling link':
        path.symlink_to('nowhere')
    else:
        path.mkdir()
        if target == 'folder':
            (path / 'a').write_text('old')
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match='whole'):
        files.commit_folder(temporary, path)
    assert tree(tmp_path) == before


def test_temporary_folder_is_removed_unless_renamed(tmp_path):
    with files.temporary_folder(tmp_path / 'x' / 'out') as folder:
        (folder / 'a').write_text('a')
        assert folder == files.temporary_name(tmp_path / 'x' / 'out')
        files.commit_folder(folder, tmp_path / 'x' / 'out')
    with pytest.raises(ValueError, match='stop'), files.temporary_folder(tmp_path / 'x' / 'other') as folder:
        (folder / 'a').write_text('a')
        raise ValueError('stop')
    assert tree(tmp_path / 'x') == ['out', 'out/a']


def test_leftovers_of_the_dead_go_and_temporaries_of_the_living_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    host = socket.gethostname()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f'.tmp-out-{host}-{pid}').mkdir()
    (tmp_path / f'.tmp-out-{host}-{dead.pid}' / 'a').write_text('a')
    kept = {f'.tmp-out-{host}-{os.getppid()}', f'.tmp-other-{host}-{dead.pid}', f'.tmp-out-2-{host}-{dead.pid}', 'out',
            f'.tmp-out-{host}-x', f'.tmp-out-elsewhere-{dead.pid}'}
    for name in kept:
        (tmp_path / name).write_text('a')
    files.remove_leftovers(tmp_path / 'out')
    assert set(tree(tmp_path)) == kept
    files.remove_leftovers(tmp_path / 'missing' / 'out')


def test_a_folder_is_listed_for_few_of_many_files(tmp_path, monkeypatch):
    for number in range(2000):
        (tmp_path / str(number)).touch()
    looks, listdir = [], os.listdir
    monkeypatch.setattr(os, 'listdir', lambda folder: looks.append(folder) or listdir(folder))
    for number in range(50):
        files.remove_leftovers(tmp_path / str(number))
    assert len(looks) < 25
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    for pid in (dead.pid, os.getpid()):  # of a writer that was killed after the first look
        (tmp_path / f'.tmp-0-{socket.gethostname()}-{pid}').touch()
    deadline = time.monotonic() + 20
    while list(tmp_path.glob('.tmp-*')) and time.monotonic() < deadline:
        files.remove_leftovers(tmp_path / '0')
    assert not list(tmp_path.glob('.tmp-*'))


def test_a_temporary_name_lies_beside_the_path_and_tells_it_and_the_process(tmp_path, monkeypatch):
    assert files.temporary_name(tmp_path / 'out') == tmp_path / f'.tmp-out-{socket.gethostname()}-{os.getpid()}'
    monkeypatch.chdir(tmp_path)
    assert files.temporary_name('.') == tmp_path.parent / f'.tmp-{tmp_path.name}-{socket.gethostname()}-{os.getpid()}'


def test_sha256_of_a_file(tmp_path):
    content = bytes(range(256)) * 4096
    (tmp_path / 'a').write_bytes(content)
    assert files.sha256_of(tmp_path / 'a') == hashlib.sha256(content).hexdigest()


def test_cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    monkeypatch.setenv('BOARDREC_CACHE', '~/here')
    assert files.cache_dir() == pathlib.Path('/home/someone/here')
    monkeypatch.setenv('BOARDREC_CACHE', '')
    assert files.cache_dir() == pathlib.Path('/home/someone/.cache/boardrec')


def test_a_writer_that_is_killed_leaves_the_old_content(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    code = ('import os, sys; from boardrec.data import files\n'
            'with files.atomic_write(sys.argv[1]) as file:\n'
            '    file.write(b"n" * 10**6); file.flush(); os.kill(os.getpid(), 9)\n')
    assert subprocess.run([sys.executable, '-c', code, str(path)], check=False).returncode == -9
    assert path.read_text() == 'old'
    assert len(tree(tmp_path)) == 2
    files.remove_leftovers(path)
    assert tree(tmp_path) == ['a.txt']


HOLDS = '''
import sys
from boardrec.data.files import LockFile
lock = LockFile(sys.argv[1])
print(lock.acquire(3, 1), lock.acquire(9, 1, shared=True), flush=True)
sys.stdin.readline()
'''


def test_locks_are_between_processes_and_end_with_them(tmp_path):
    lock = files.LockFile(tmp_path / 'lock')
    process = subprocess.Popen([sys.executable, '-c', HOLDS, tmp_path / 'lock'], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'True True\n'
        assert not lock.acquire(3, 1) and not lock.acquire(3, 1, shared=True) and not lock.acquire(0, 0)
        assert lock.acquire(2, 1) and lock.acquire(4, 5) and lock.acquire(9, 1, shared=True)
        assert not lock.acquire(9, 1)
        lock.release(2, 1)
    finally:
        process.kill()
        process.communicate()
    assert lock.acquire(0, 0)


def test_a_lock_file_knows_its_place(tmp_path):
    path = tmp_path / 'lock'
    with pytest.raises(FileNotFoundError):
        files.LockFile(tmp_path / 'none' / 'lock')
    lock = files.LockFile(path)
    assert lock.is_at(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        lock.is_at(path)
    path.touch()
    assert not lock.is_at(path)
    lock.close()
    lock.close()  # twice does no harm
