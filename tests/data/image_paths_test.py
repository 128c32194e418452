"""Which paths --images stands for, in which order, and what is told of the others."""

import io
import os
import sys

import pytest

from boardrec.config import UserError
from boardrec.data import image_paths, scan
from boardrec.data.image_paths import Candidate


def touch(folder, *names):
    for name in names:
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, 'wb').close()


def found(images):
    return [(os.fsencode(path), reason) for path, reason in image_paths.find(str(images))]


def test_a_folder_is_walked_as_in_conversion(tmp_path):
    touch(tmp_path, b'b/2.jpg', b'b/1.jpg', b'a-b/x', b'a/caf\xe9 \n.jpg', b'top', b'.DS_Store', b'lost+found/x')
    (tmp_path / 'a' / 'loop').symlink_to(tmp_path)
    (tmp_path / 'a' / 'twice').symlink_to(tmp_path / 'b')
    (tmp_path / 'broken').symlink_to(tmp_path / 'gone')
    os.mkfifo(tmp_path / 'pipe')
    root, again = os.fsencode(tmp_path), 'folder found a second time, through a link'
    assert found(tmp_path) == [(root + path, reason) for path, reason in [
        (b'/lost+found', 'system folder'), (b'/.DS_Store', 'system file'),
        (b'/broken', 'unreadable: No such file or directory'), (b'/pipe', 'not a regular file'), (b'/top', ''),
        (b'/a/caf\xe9 \n.jpg', ''), (b'/a/loop', again), (b'/a/twice/1.jpg', ''), (b'/a/twice/2.jpg', ''),
        (b'/a-b/x', ''), (b'/b', again)]]
    regular, rejected = scan.walk(tmp_path)
    both = [item.source for item in [*regular, *rejected]]
    assert sorted(os.path.join(tmp_path, source) for source in both) == sorted(map(os.fsdecode, dict(found(tmp_path))))


def test_the_files_of_a_folder_come_before_the_next_one_is_listed(tmp_path):
    touch(tmp_path, *(b'%d/x' % i for i in range(5)))
    paths = image_paths.find(str(tmp_path))
    assert next(paths).path.endswith('0/x')
    touch(tmp_path, b'1/y')
    assert next(paths).path.endswith('1/x') and next(paths).path.endswith('1/y')


def test_one_image_and_globs(tmp_path, monkeypatch):
    touch(tmp_path, b'[x].jpg', b'a/1.jpg', b'a/2.png', b'b/3.jpg')
    (tmp_path / 'b' / 'again').symlink_to(tmp_path / 'a')
    root = os.fsencode(tmp_path)
    assert found(tmp_path / '[x].jpg') == [(root + b'/[x].jpg', '')]
    assert found(tmp_path / '*' / '*.jpg') == [(root + b'/a/1.jpg', ''), (root + b'/b/3.jpg', '')]
    assert found(tmp_path / '**' / '*.jpg') == [
        (root + b'/[x].jpg', ''), (root + b'/a/1.jpg', ''), (root + b'/b/3.jpg', ''),
        (root + b'/b/again', 'folder found a second time, through a link')]
    assert found(tmp_path / 'b' / 'again' / '*') == [(root + b'/b/again/1.jpg', ''), (root + b'/b/again/2.png', '')]
    assert found(tmp_path / '*.gif') == found(tmp_path / 'gone') == []
    monkeypatch.chdir(tmp_path)
    assert found('[[]x].*') == [(b'[x].jpg', '')]


@pytest.mark.parametrize(('text', 'paths'), [
    (b'', []), (b'\n\r\n', []), (b'a', [b'a']), (b'b\na\nb\n', [b'b', b'a', b'b']),
    (b'\xef\xbb\xbfa b.jpg\r\n\r\nc,"d\r\n', [b'a b.jpg', b'c,"d']),
    (b'caf\xe9.jpg\n\xf0\x9f\x93\xb7', [b'caf\xe9.jpg', '📷'.encode()]),
    (b'a\nb\0c\r\0\0', [b'a\nb', b'c\r']), (b'a\0b', [b'a', b'b'])])
def test_lists_of_paths(tmp_path, monkeypatch, text, paths):
    (tmp_path / 'list.txt').write_bytes(text)
    assert found(tmp_path / 'list.txt') == [(path, '') for path in paths]
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(text)))
    assert found('-') == [(path, '') for path in paths]


@pytest.mark.parametrize('piece', [1, 2, 7])
def test_a_list_that_comes_in_pieces(piece):
    class Slow(io.BytesIO):
        def read1(self, _):
            return super().read(piece)

    lines = image_paths._listed(Slow(b'abc.jpg\r\nde\n\nfghijklmn'), 'x')
    assert list(lines) == [Candidate('abc.jpg'), Candidate('de'), Candidate('fghijklmn')]


def test_paths_are_given_on_as_they_come():
    reading, writing = os.pipe()
    with open(reading, 'rb') as file:
        os.write(writing, b'a\nb\nc')
        lines = image_paths._listed(file, 'x')
        assert [next(lines).path, next(lines).path] == ['a', 'b']
        os.close(writing)
        assert [one.path for one in lines] == ['c']


def test_what_is_no_list_is_refused_before_it_fills_the_memory(tmp_path):
    (tmp_path / 'image.txt').write_bytes(b'x' * (3 << 20))
    with pytest.raises(UserError, match='image.txt is no list of paths: one of them would have'):
        found(tmp_path / 'image.txt')
