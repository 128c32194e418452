"""Which rows run together, when, and what is refused."""

import time

import numpy as np
import pytest

pytest.importorskip('grpc')
from slow_model import METRICS, Model, wait_for_calls  # noqa: E402

from boardrec.serving.batching import Batcher  # noqa: E402
from boardrec.serving.failure import Failure  # noqa: E402


@pytest.fixture
def make():
    """A function that makes a Batcher, closed in the end."""
    made, models = [], []

    def batcher(model, **settings):
        made.append(Batcher(**{'max_batch_size': 4, 'wait_seconds': 60.0, 'in_flight': 2, 'max_queued': 100,
                               'metrics': METRICS, **settings}))
        models.append(model)
        return made[-1]

    yield batcher
    for model in models:
        model.may_run.release(1000)
    for one in made:
        one.close()


def submit(batcher, model, *numbers):
    x = np.array(numbers)
    return batcher.submit(model, model.signature, {'x': x}, len(x))


def result(futures):
    return np.concatenate([future.result(20)['y'] for future in futures]).tolist()


def test_a_lone_request_waits_for_nobody(make):
    model = Model()
    batcher = make(model)
    model.may_run.release(2)
    assert result(submit(batcher, model, 1)) == [2]
    assert result(submit(batcher, model, 2, 3)) == [4, 6]
    assert model.calls == [[1], [2, 3]]


def test_rows_gather_while_a_batch_runs_and_go_when_it_is_full(make):
    model = Model()
    batcher = make(model)
    first = submit(batcher, model, 1)
    wait_for_calls(model, 1)
    others = [submit(batcher, model, *numbers) for numbers in ((2,), (3, 4))]
    time.sleep(0.05)
    assert len(model.calls) == 1, 'three rows of four wait'
    others.append(submit(batcher, model, 5, 6))
    wait_for_calls(model, 2)
    assert model.calls[1] == [2, 3, 4], 'requests are not torn: [5, 6] comes next'
    model.may_run.release(3)
    assert [result(futures) for futures in [first, *others]] == [[2], [4], [6, 8], [10, 12]]


def test_rows_wait_no_longer_than_they_should(make):
    model = Model()
    batcher = make(model, wait_seconds=0.1)
    submit(batcher, model, 1)
    wait_for_calls(model, 1)
    start = time.monotonic()
    submit(batcher, model, 2)
    wait_for_calls(model, 2)
    assert 0.09 < time.monotonic() - start < 5


def test_no_more_batches_run_at_once_than_should(make):
    model = Model()
    batcher = make(model, wait_seconds=0.0)
    futures = [submit(batcher, model, number) for number in range(5)]
    wait_for_calls(model, 2)
    time.sleep(0.05)
    assert len(model.calls) == 2
    model.may_run.release(10)
    assert [result(future) for future in futures] == [[0], [2], [4], [6], [8]]


def test_a_large_request_runs_in_parts(make):
    model = Model()
    batcher = make(model)
    model.may_run.release(10)
    assert result(submit(batcher, model, *range(10))) == list(range(0, 20, 2))
    assert sorted(map(len, model.calls)) == [2, 4, 4]


def test_a_request_without_rows_runs(make):
    model = Model()
    model.may_run.release()
    assert result(submit(make(model), model)) == []


def test_only_rows_of_one_shape_and_model_share_a_batch(make):
    model, other = Model(), Model()
    batcher = make(model, wait_seconds=0.0, in_flight=1)
    submit(batcher, model, 1)
    wait_for_calls(model, 1)
    wide = batcher.submit(model, model.signature, {'x': np.ones([1, 2])}, 1)
    narrow, foreign = submit(batcher, model, 2), submit(batcher, other, 3)
    other.may_run.release()
    model.may_run.release(3)
    assert [result(futures) for futures in (wide, narrow, foreign)] == [[[2, 2]], [4], [6]]


def test_a_signature_without_rows_runs_alone(make):
    model = Model(batches=False)
    batcher = make(model, wait_seconds=0.0, in_flight=1)
    futures = [batcher.submit(model, model.signature, {'x': np.array([number] * 9)}, 1) for number in (1, 2)]
    model.may_run.release(2)
    assert [result(future) for future in futures] == [[2] * 9, [4] * 9]
    assert len(model.calls) == 2


def test_one_requests_fault_is_not_the_others(make):
    model = Model()
    batcher = make(model, in_flight=1)
    submit(batcher, model, 1)
    wait_for_calls(model, 1)
    good, bad, last = (submit(batcher, model, number) for number in (2, -3, 4))
    model.may_run.release(10)
    assert (result(good), result(last)) == ([4], [8])
    with pytest.raises(Failure, match=r'ValueError: negative: \[-3\]') as caught:
        result(bad)
    assert caught.value.code.name == 'INTERNAL'
    assert model.calls[1:] == [[2, -3, 4], [2], [-3], [4]]


def test_a_model_that_answers_other_rows_than_it_was_asked(make):
    model = Model(answer=lambda x: x[:1])
    model.may_run.release(10)
    with pytest.raises(Failure, match='signature double answered 2 rows with shapes'):
        result(submit(make(model), model, 1, 2))


def test_the_queue_is_bounded(make):
    model = Model()
    batcher = make(model, in_flight=1, max_queued=5)
    first = submit(batcher, model, 0)
    wait_for_calls(model, 1)
    waiting = [submit(batcher, model, 1, 2), submit(batcher, model, 3, 4)]
    assert batcher.queued == 4
    with pytest.raises(Failure, match='4 rows wait already and 2 more would exceed --max_queued=5') as caught:
        submit(batcher, model, 5, 6)
    assert (caught.value.code.name, caught.value.http_status, batcher.queued) == ('RESOURCE_EXHAUSTED', 429, 4)
    waiting.append(submit(batcher, model, 5))
    model.may_run.release(10)
    assert [result(futures) for futures in [first, *waiting]] == [[0], [2, 4], [6, 8], [10]]
    assert batcher.queued == 0
    with pytest.raises(Failure, match='^the request has 6 rows, more than --max_queued=5: send it in parts$') as caught:
        submit(batcher, model, *range(6))
    assert caught.value.http_status == 400, 'it would be refused again'


def test_what_its_client_gave_up_does_not_run(make):
    model = Model()
    batcher = make(model, in_flight=1)
    first = submit(batcher, model, 1)
    wait_for_calls(model, 1)
    gone, last = submit(batcher, model, 2), submit(batcher, model, 3)
    assert gone[0].cancel()
    model.may_run.release(10)
    assert (result(first), result(last)) == ([2], [6])
    assert model.calls == [[1], [3]]
    assert batcher.queued == 0


def test_closing_ends_what_waits_and_refuses_what_comes(make):
    model = Model()
    batcher = make(model, in_flight=1)
    futures = [submit(batcher, model, number) for number in (1, 2)]
    model.may_run.release(10)
    batcher.close()
    assert [result(future) for future in futures] == [[2], [4]]
    with pytest.raises(Failure, match='shutting down') as caught:
        submit(batcher, model, 3)
    assert caught.value.http_status == 503
