"""The file of predictions: every name comes back, and one that was torn anywhere goes on to the same bytes."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.data.image_paths import Candidate
from boardrec.reporting import prediction_file
from boardrec.reporting.prediction_file import Row

NAMES = ['no, "never"', 'yes']
ODD = [b'a.jpg', b'caf\xe9.jpg', b'a,b.jpg', b'"q"', b'line\nend\r\n', b'\r', b'', b' x ', '写真 📷\u2028'.encode(),
       b'nan', b'1', b"'", b'\\', b'=1+1', b'\x1b[0m', b'\x85\xc2\x85', b'p"\n"']


def rows(count=None):
    random = np.random.default_rng(0)
    for number, path in enumerate(ODD[:count]):
        if number % 3 == 1:
            yield Row(os.fsdecode(path), error='too large: 1x1 "pixels",\nat most 0')
            continue
        values = np.array([1e-30, 1, 0.1][number % 3:][:1] or [0]).astype(np.float32) * random.random()
        probabilities = tuple(float(f'{value:.9g}') for value in (values[0], 1 - values[0]))
        yield Row(os.fsdecode(path), NAMES[number % 2], probabilities)


def write(output, kind, *, stop=None, multiple=1, items=None, identity=None):
    """Writes the rows that are not there yet; after `stop` of them it is interrupted. Returns how many it wrote."""
    items, written = list(rows()) if items is None else items, 0
    of_path = {row.path: row for row in items}
    with prediction_file.opened(output, NAMES, kind, identity or {'weights': 'a'}) as writer:
        for candidate in writer.resume(iter([Candidate(row.path) for row in items]), multiple):
            if written == stop:
                raise KeyboardInterrupt
            writer.write([of_path[candidate.path]])
            written += 1
        assert (writer.rows, writer.failed) == (len(items), sum(row.error != '' for row in items))
    return written


def part_of(output):
    part, = output.parent.glob(f'{output.name}.partial-*')
    return part


@pytest.mark.parametrize('kind', prediction_file.FORMATS)
def test_every_name_comes_back(tmp_path, kind):
    path = tmp_path / f'out.{kind}'
    assert write(path, kind) == len(ODD)
    assert list(tmp_path.iterdir()) == [path]
    if kind == 'csv':
        with open(path, encoding='utf-8', errors='surrogateescape', newline='') as file:
            table = list(csv.DictReader(file))
        assert list(table[0]) == ['path', 'predicted', 'p_no, "never"', 'p_yes', 'error']
        paths, values = [row['path'] for row in table], [row['p_yes'] for row in table]
    else:
        table = [json.loads(line) for line in path.read_bytes().split(b'\n')[:-1]]
        paths = [row['path'] for row in table]
        values = [(row['probabilities'] or {'yes': ''})['yes'] for row in table]
    assert [os.fsencode(name) for name in paths] == ODD
    assert [() if value == '' else float(value) for value in values] == [
        row.probabilities[1] if row.probabilities else () for row in rows()]


@pytest.mark.parametrize('kind', prediction_file.FORMATS)
def test_torn_anywhere_it_goes_on_to_the_same_bytes(tmp_path, kind):
    path = tmp_path / 'out'
    write(path, kind)
    whole = path.read_bytes()
    ends = [len(prediction_file.header(NAMES, kind) + prediction_file.encode(rows(count), NAMES, kind))
            for count in range(len(ODD) + 1)]
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, stop=1)
    part = part_of(path)
    around_ends = {end + step for end in ends for step in (-1, 0, 1) if 0 <= end + step <= len(whole)}
    for cut in sorted({*range(0, len(whole), 9), *around_ends}):
        for torn in (whole[:cut], whole[:cut] + bytes(40)):  # a file system may leave zeros after a power cut
            part.write_bytes(torn)
            complete = sum(end <= cut for end in ends[1:])
            assert write(path, kind, multiple=3) == len(ODD) - complete // 3 * 3
            assert path.read_bytes() == whole


def test_an_interruption_keeps_what_was_written(tmp_path):
    path = tmp_path / 'out.csv'
    path.write_bytes(b'"path","predicted","p_')
    with pytest.raises(KeyboardInterrupt):
        write(path, 'csv', stop=0)
    assert list(tmp_path.iterdir()) == [path]  # a part without a row is none
    with pytest.raises(KeyboardInterrupt):
        write(path, 'csv', stop=5)
    assert path.read_bytes() == b'"path","predicted","p_'  # what was there before stays until the end
    assert prediction_file.is_own(str(part_of(path)), path) and prediction_file.is_own(str(path), path)
    assert not prediction_file.is_own(f'{path}.jpg', path)
    assert write(path, 'csv') == len(ODD) - 5


def test_rows_of_other_paths_are_refused_and_kept(tmp_path):
    path, items = tmp_path / 'out.csv', list(rows())
    with pytest.raises(KeyboardInterrupt):
        write(path, 'csv', stop=5)
    before = part_of(path).read_bytes()
    for changed, now in ((items[:2] + items[3:], "'\"q\"'"), (items[:2], 'nothing')):
        with pytest.raises(UserError) as caught:
            write(path, 'csv', items=changed)
        assert f"row 3 of {part_of(path)}, which was interrupted, is of 'a,b.jpg', where --images has {now} now" in str(
            caught.value)
        assert part_of(path).read_bytes() == before
    assert write(path, 'csv', items=[*items, Row('z', error='x')]) == len(ODD) + 1 - 5  # more may have come


def test_another_model_or_format_is_refused(tmp_path):
    path = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        write(path, 'csv', stop=5)
    for kind, identity in (('csv', {'weights': 'b'}), ('jsonl', None)):
        with pytest.raises(UserError, match='with other settings or in another format: finish or remove it, or name'):
            write(path, kind, identity=identity)
    assert write(path, 'csv') == len(ODD) - 5


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / 'out.csv'
    code = (f'import pathlib; from boardrec.reporting import prediction_file\n'
            f'with prediction_file.opened(pathlib.Path({str(path)!r}), {NAMES!r}, "csv", {{"weights": "a"}}): pass')
    with prediction_file.opened(path, NAMES, 'csv', {'weights': 'a'}) as writer:
        list(writer.resume(iter(()), 1))
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                              cwd=pathlib.Path(prediction_file.__file__).parents[2], check=False)
        assert 'another process is writing it: wait for it, or name another output' in done.stderr


@pytest.mark.parametrize('kind', prediction_file.FORMATS)
def test_a_row_that_was_never_written_ends_what_is_kept(tmp_path, kind):
    path = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, stop=5)
    part = part_of(path)
    torn = part.read_bytes().replace(b'"yes",', b'"\0\0\0",') if kind == 'csv' else part.read_bytes().replace(
        b'"predicted": "yes"', b'"predicted": "\\u0000"')
    part.write_bytes(torn)
    assert write(path, kind) == len(ODD) - 3  # the fourth row is the first with this class
