"""What the journal remembers of shards, what it takes for damaged, and who may write it."""

import dataclasses
import os
import subprocess
import sys

from conversions import make_job
import pytest

from boardrec.config import ConvertConfig, UserError
from boardrec.data import files, journal, records, scan, shards

NAME = records.shard_file('train', 0, 1)


@pytest.fixture
def folder(tmp_path):
    """The journal's folder of a record set."""
    path = tmp_path / 'out' / journal.FOLDER
    path.mkdir(parents=True)
    return path


def put(folder, path, content=b'records'):
    """Writes a shard to a path and, to a folder, its journal; returns that."""
    path.write_bytes(content)
    sources = [journal.Source('a/\udcff\n1.png', 'a', 5, 10**18, '12', 0, '', '0123456789abcdef'),
               journal.Source('a/2.png', 'a', 6, 0, '34', -1, 'truncated', ''),
               journal.Source('b/3.png', 'b', 7, 0, '56', -1, 'leak: the same photograph', '0123456789abcdef')]
    shard = records.Shard(NAME, 1, len(content), files.sha256_of(path), {'a': 1, 'b': 0})
    built = journal.Built('train', ['a', 'b'], shard, path.stat().st_mtime_ns, sources, 2)
    journal.write(folder, built)
    return built


def test_a_shard_is_remembered_with_all_that_became_of_its_files(folder):
    built = put(folder, folder / NAME)
    assert journal.load(folder, NAME) == journal.read(folder, NAME) == built
    assert journal.names(folder) == [NAME]
    assert [item.source for item in built.made()] == ['a/\udcff\n1.png']
    assert built.bad() == [scan.Rejection('a/2.png', 'truncated', '34')]
    assert built.dropped() == {'b/3.png': 'leak: the same photograph'}
    assert [row.source for row in built.rejected()] == ['a/2.png', 'b/3.png']


@pytest.mark.parametrize('content', [None, b'', b'{"split": "tr', b'[]', b'{"split": "train"}', b'\xff\xfe'])
def test_what_cannot_be_read_is_nothing_or_an_error(folder, content):
    put(folder, folder / NAME)
    path = folder / f'{NAME}.json'
    path.unlink() if content is None else path.write_bytes(content)
    assert journal.read(folder, NAME) is None
    with pytest.raises(FileNotFoundError if content is None else UserError, match=f'{NAME}.json'):
        journal.load(folder, NAME)


def test_a_plan_is_remembered_and_one_that_cannot_be_read_is_none(folder):
    assert journal.read_plan(folder) is None
    plan = journal.Plan({'splits': 'train:1'}, {'train': 3}, complete=False, overwriting=True)
    journal.write_plan(folder, plan)
    assert journal.read_plan(folder) == plan
    written = (folder / 'plan.json').read_bytes()
    for content in (written[:-9], written.replace(b'"version": 1', b'"version": 2'), b'[1]', b'\xff',
                    b'{"version": 1}'):
        (folder / 'plan.json').write_bytes(content)
        assert journal.read_plan(folder) is None


def test_a_shard_waits_or_is_in_its_place_or_is_another(folder):
    waiting, there = folder / NAME, folder.parent / NAME
    built = put(folder, waiting)
    assert journal.place(folder, built) == waiting
    waiting.rename(there)
    assert journal.place(folder, built) == there
    os.utime(there, ns=(1, 1))
    assert journal.place(folder, built) is None
    assert journal.place(folder, built._replace(mtime_ns=1)) == there
    shorter = built._replace(mtime_ns=1, shard=dataclasses.replace(built.shard, bytes=3))
    assert journal.place(folder, shorter) is None


def test_a_shard_that_waits_is_given_up_where_its_bytes_are_in_place(folder):
    waiting, there = folder / NAME, folder.parent / NAME
    there.write_bytes(b'records')
    os.utime(there, ns=(10**18, 10**18))
    put(folder, waiting)
    assert journal.settle(folder, NAME) and not waiting.exists()
    assert journal.load(folder, NAME).mtime_ns == 10**18 and journal.settle(folder, NAME)
    waiting.write_bytes(b'of a run that was killed here')
    assert journal.settle(folder, NAME) and not waiting.exists()
    put(folder, waiting, b'another')
    assert not journal.settle(folder, NAME) and waiting.exists() and there.read_bytes() == b'records'


def test_what_is_no_part_of_the_plan_is_forgotten(folder):
    built, other = put(folder, folder / NAME), records.shard_file('train', 0, 9)
    journal.write(folder, built._replace(shard=dataclasses.replace(built.shard, file=other)))
    (folder / other).write_bytes(b'')
    (folder / journal.COMPARED).write_bytes(b'')
    (folder / 'beam-1').mkdir()
    journal.write_plan(folder, journal.Plan({}, {}, complete=True))
    journal.forget(folder, but={NAME})
    assert {path.name for path in folder.iterdir()} == {NAME, f'{NAME}.json', journal.COMPARED, 'plan.json'}
    journal.forget(folder, but=set())
    assert [path.name for path in folder.iterdir()] == ['plan.json']


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


def test_a_second_converter_on_one_folder_is_refused(converted):
    images, out, run = converted
    code = ('import sys, pathlib\nfrom boardrec.data import journal\n'
            'with journal.locked(pathlib.Path(sys.argv[1])):\n    print("held", flush=True)\n    sys.stdin.read()')
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen([sys.executable, '-c', code, str(out)], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=rf'another make_records \(process {other.pid} on .*\) is at work there'):
            run()
        other.stdin.close()
    run()
