"""Worker processes that crash, hang or raise: what is done again, what is left out, what is told."""

import os
import signal
import time

import pytest

from boardrec.config import UserError
from boardrec.data import workers
from boardrec.data.workers import Limits


def spell(payload, skipped, watch):
    """What becomes of a list of words, some of which are commands."""
    result = []
    for number, word in enumerate(payload):
        watch.begin(number)
        if number in skipped:
            result.append(skipped[number])
        elif word == 'crash':
            os.kill(os.getpid(), signal.SIGSEGV)
        elif word == 'hang':
            time.sleep(60)
        elif word == 'raise':
            raise OSError(28, 'No space left on device', 'shard')
        elif word.startswith('once:'):
            path = word.removeprefix('once:')
            if not os.path.exists(path):
                open(path, 'w').close()
                os._exit(7)
            result.append('twice')
        else:
            result.append(word.upper())
        watch.end()
    return result


def die(payload, skipped, watch):
    """Dies before it has begun anything."""
    os._exit(1)


def spelled(payloads, *, count=2, seconds=60):
    """The results in the payloads' order, and how many items were done."""
    seen = []
    with workers.Pool(count, Limits(seconds)) as pool:
        results = dict(pool.run(spell, payloads, seen.append))
        assert len(pool._workers) <= count
    return [results[number] for number in range(len(payloads))], seen[-1]


def test_each_task_is_done_once_by_as_many_workers_as_there_are():
    payloads = [[f'word{i}', f'other{i}'] for i in range(7)]
    results, done = spelled(payloads, count=3)
    assert results == [[word.upper() for word in words] for words in payloads]
    assert done == 14


def test_what_is_done_counts_from_each_runs_start():
    with workers.Pool(2, Limits()) as pool:
        for _ in range(2):
            seen = []
            list(pool.run(spell, [['a', 'b'], ['c']], seen.append))
            assert seen[-1] == 3


def test_a_worker_that_dies_once_changes_nothing(tmp_path):
    payloads = [['a', f'once:{tmp_path / "mark"}', 'b'], ['c']]
    results, _ = spelled(payloads)
    assert results == [['A', 'twice', 'B'], ['C']]


def test_what_kills_a_worker_twice_is_left_out_and_nothing_else_is():
    results, _ = spelled([['a', 'crash', 'b', 'crash'], ['c']])
    assert results == [['A', workers.CRASH, 'B', workers.CRASH], ['C']]


def test_what_takes_too_long_is_left_out():
    results, _ = spelled([['a', 'hang', 'b']], count=1, seconds=0.5)
    assert results == [['A', workers.TIME_LIMIT, 'B']]


def test_an_exception_is_raised_as_it_was_and_the_workers_end():
    with pytest.raises(OSError, match='No space left') as raised, workers.Pool(2, Limits()) as pool:
        list(pool.run(spell, [['a'], ['raise'], ['hang']]))
    assert (raised.value.errno, raised.value.filename) == (28, 'shard')
    assert not any(worker.process.is_alive() for worker in pool._workers)


def test_workers_that_die_of_nothing_in_particular_are_told():
    with pytest.raises(UserError, match='--workers'), workers.Pool(1, Limits()) as pool:
        list(pool.run(die, [[]]))


def test_a_function_is_called_in_a_worker():
    with workers.Pool(1, Limits()) as pool:
        assert pool.call(divmod, 7, 2) == (3, 1)
        assert pool.call(os.getpid) != os.getpid()
