"""The workers of TF_CONFIG wait for one another here, before TensorFlow does.

TensorFlow waits without end and keeps Python's lock: neither a signal handler nor a timer of this process would run.
So the first worker connects to the port of each other one, and when all have answered sends each a byte.
"""

import contextlib
import socket
import time

from boardrec.config import UserError

_AGAIN_SECONDS = 0.1


def meet(workers: list[str], index: int, *, seconds: float) -> None:
    """Returns when all workers, each HOST:PORT, are there, of which this is one; its port is free again then.

    Raises UserError if one has not come within so many seconds, or if this one's port is taken.
    """
    end = time.monotonic() + seconds
    try:
        if index == 0:
            _call(workers[1:], end)
        else:
            _answer(workers[index], end)
    except TimeoutError as error:
        missing = error.args[0] if index == 0 else f'{workers[0]}, the first, or one that it waits for,'
        raise UserError(f'TF_CONFIG: worker {missing} has not come within {seconds:g} s: run the same command on each '
                        'host.') from None


def _call(others: list[str], end: float) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_connect(address, end)) for address in others]
        for connection in connections:
            connection.sendall(b'1')


def _connect(address: str, end: float) -> socket.socket:
    while (left := end - time.monotonic()) > 0:
        try:
            return socket.create_connection(_split(address), timeout=left)
        except OSError:  # not yet there, or not yet known by its name
            time.sleep(_AGAIN_SECONDS)
    raise TimeoutError(address)


def _answer(address: str, end: float) -> None:
    port = _split(address)[1]
    try:
        server = socket.create_server(('', port))
    except OSError as error:
        raise UserError(f'TF_CONFIG: {address}: {error.strerror}: give this worker a free port.') from None
    with server:
        while (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.settimeout(max(0.001, end - time.monotonic()))
                if connection.recv(1):  # else the first worker ended, and may come again
                    return
    raise TimeoutError


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(':')
    return host.strip('[]'), int(port)
