"""The bytes of a source and what the journal may trust of them, of files and of ranges of a file."""

import hashlib
import os

import pytest

from boardrec.data import scan, source_file

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LONG_AGO = 10**18  # nanoseconds


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / '1.png').write_bytes(CONTENT)
    return tmp_path


def found(root, name='1.png', **others):
    info = os.stat(root / 'a' / name)
    return scan.Found(f'a/{name}', 'train', 'a', info.st_size, info.st_ctime_ns)._replace(**others)


def test_a_file_is_read_with_its_sum_and_is_not_trusted_yet(root):
    """Within a tick of its clock it may change again."""
    assert source_file.read(str(root), found(root), 1 << 20) == (CONTENT, len(CONTENT), 0, DIGEST)


def test_a_file_that_was_changed_long_ago_is_known_by_its_time(root, monkeypatch):
    monkeypatch.setattr(source_file, '_SETTLED_NS', 0)
    assert source_file.read(str(root), found(root), 1 << 20).changed_ns == os.stat(root / 'a' / '1.png').st_ctime_ns


def test_a_file_of_too_many_bytes_has_a_sum_but_is_not_held_in_memory(root):
    assert source_file.read(str(root), found(root), len(CONTENT) - 1) == (None, len(CONTENT), 0, DIGEST)
    assert source_file.read(str(root), found(root), len(CONTENT)).data == CONTENT


@pytest.fixture
def restless(root, monkeypatch):
    """A function that makes the file grow so many times while it is read."""
    def grow(times):
        fstat, changes = os.fstat, iter(range(times))

        def fstat_and_grow(descriptor):
            info = fstat(descriptor)
            if os.readlink(f'/proc/self/fd/{descriptor}').endswith('1.png') and next(changes, None) is not None:
                with open(root / 'a' / '1.png', 'ab') as file:
                    file.write(b'more')
            return info

        monkeypatch.setattr(os, 'fstat', fstat_and_grow)

    return grow


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='needs /proc')
def test_a_file_that_changes_while_it_is_read_is_read_once_more(root, restless):
    item = found(root)
    restless(1)
    read = source_file.read(str(root), item, 1 << 20)
    assert (read.data, read.sha256) == (CONTENT + b'more', hashlib.sha256(CONTENT + b'more').hexdigest())
    restless(10)
    with pytest.raises(OSError, match='it changes while it is read'):
        source_file.read(str(root), item, 1 << 20)


def test_a_range_is_read_where_it_lies_and_must_be_what_the_scan_saw(root):
    item = found(root, source=f'a/1.png{scan.RECORD_MARK}7', offset=100, bytes=50, changed_ns=LONG_AGO,
                 sha256=hashlib.sha256(CONTENT[100:150]).hexdigest())
    assert source_file.read(str(root), item, 1 << 20) == (CONTENT[100:150], 50, LONG_AGO, item.sha256)
    assert source_file.read(str(root), item, 49) == (None, 50, LONG_AGO, item.sha256)
    (root / 'a' / '1.png').write_bytes(CONTENT[::-1])
    with pytest.raises(OSError, match='it is no longer what the scan read'):
        source_file.read(str(root), item, 1 << 20)


def test_the_sum_of_a_file_that_cannot_be_read_is_empty(root):
    item = found(root)
    assert source_file.sha256_of(root, item) == DIGEST
    assert source_file.sha256_of(root, item._replace(sha256='known')) == 'known'
    (root / 'a' / '1.png').unlink()
    assert source_file.sha256_of(root, item) == ''
