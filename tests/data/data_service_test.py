import socket

import pytest
import tensorflow as tf

from boardrec.config import UserError
from boardrec.data import data_service

server = tf.data.experimental.service


def worker(dispatcher):
    address = dispatcher.target.removeprefix('grpc://')
    return server.WorkerServer(server.WorkerConfig(dispatcher_address=address, heartbeat_interval_ms=50))


def numbers(dispatcher, count):
    return tf.data.Dataset.range(count).apply(server.distribute(
        processing_mode=server.ShardingPolicy.DYNAMIC, service=dispatcher.target))


def test_a_dispatcher_and_its_workers_are_enough():
    dispatcher = server.DispatchServer()
    workers = [worker(dispatcher) for _ in range(2)]
    data_service.require(dispatcher.target)
    elements = data_service.batches(numbers(dispatcher, 50), dispatcher.target)
    assert sorted(int(element) for element in elements) == list(range(50))
    del workers


def test_a_dispatcher_without_workers_is_refused():
    dispatcher = server.DispatchServer()
    with pytest.raises(UserError, match=f'^--data_service={dispatcher.target}: its dispatcher has no workers; start'):
        data_service.require(dispatcher.target)


def test_an_address_where_nothing_answers_is_refused():
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'grpc://localhost:{free.getsockname()[1]}'
    for target in (address, 'grpc://localhost:99999', 'grpc://no.such.host.invalid:1'):
        with pytest.raises(UserError, match=f'^--data_service={target}: no dispatcher .* answers there'):
            data_service.require(target)


def test_what_is_no_dispatcher_is_refused(monkeypatch):
    monkeypatch.setattr(data_service, '_ANSWER_SECONDS', 0.5)
    with socket.create_server(('localhost', 0)) as other:
        target = f'grpc://localhost:{other.getsockname()[1]}'
        with pytest.raises(UserError, match=f'^--data_service={target}: no dispatcher .* answers there'):
            data_service.require(target)


def test_a_worker_that_is_lost_on_the_way_is_told(monkeypatch):
    """tf.data would wait for its share of the elements for ever."""
    monkeypatch.setattr(data_service, '_QUIET_SECONDS', 0.2)
    dispatcher = server.DispatchServer()
    workers = [worker(dispatcher) for _ in range(2)]
    elements = data_service.batches(numbers(dispatcher, 3000), dispatcher.target)
    next(elements)
    address = workers[0]._address
    workers[0]._stop()
    with pytest.raises(UserError, match=f'^--data_service={dispatcher.target}: its worker at {address} does not ans'):
        for _ in elements:
            pass
