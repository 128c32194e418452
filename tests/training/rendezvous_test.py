import socket
import threading

import pytest

from boardrec.config import UserError
from boardrec.training import rendezvous


@pytest.fixture
def addresses():
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return [f'127.0.0.1:{port}' for port in ports]


def test_workers_that_come_one_after_the_other_meet(addresses):
    met = []
    threads = [threading.Thread(target=lambda i=i: (rendezvous.meet(addresses, i, seconds=20), met.append(i)))
               for i in (1, 0, 2)]
    for thread in threads:
        assert not met, 'they have not waited for the last'
        thread.start()
        thread.join(0.3)
    for thread in threads:
        thread.join(20)
    assert sorted(met) == [0, 1, 2]
    socket.create_server(('', int(addresses[1].split(':')[1]))).close()  # TensorFlow takes it next


@pytest.mark.parametrize('index, named', [(0, 1), (1, 0)])
def test_one_that_never_comes_is_named(addresses, index, named):
    with pytest.raises(UserError, match=f'worker {addresses[named]}.* has not come within 0.3 s: run the same command'):
        rendezvous.meet(addresses, index, seconds=0.3)


def test_a_taken_port_is_named(addresses):
    with (socket.create_server(('', int(addresses[1].split(':')[1]))),
          pytest.raises(UserError, match=f'{addresses[1]}: Address already in use.*: give this worker a free port')):
        rendezvous.meet(addresses, 1, seconds=5)
