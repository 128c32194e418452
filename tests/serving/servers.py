"""Servers in this process, on free ports of the loopback."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import socket
import threading
import time
import types

import pytest

from boardrec.config import ServeConfig


def require_serving():
    """Skips where the extra `serving` is not installed; in CI that is an error."""
    if importlib.util.find_spec('tensorflow_serving') is None:
        assert not os.environ.get('CI'), 'the extra `serving` is not installed'
        pytest.skip('needs the extra `serving`')


def publish(source, target):
    """Copies a version and gives it its name at once, as boardrec.export does."""
    temporary = target.with_name(f'.tmp-{target.name}')
    shutil.copytree(source, temporary)
    temporary.rename(target)


@contextlib.contextmanager
def running(model_dir, **settings):
    """A server for a block; gives its ports, its address and a function that stops it."""
    require_serving()
    from boardrec.serving import ports, server
    config = ServeConfig(**{'model_dir': str(model_dir), 'rest_port': 0, 'grpc_port': 0, 'poll_seconds': 0.05,
                            'drain_seconds': 10.0, **settings})
    found, begun, errors = types.SimpleNamespace(), threading.Event(), []

    async def serve(listener):
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        found.stop = lambda: loop.call_soon_threadsafe(stop.set)

        def started(reached):
            found.ports, found.rest = reached, f'http://127.0.0.1:{reached.rest}'
            found.grpc = f'127.0.0.1:{reached.grpc}'
            begun.set()

        await server.run(config, listener, stop, started)

    def work():
        try:
            with ports.bound(config) as listener:
                asyncio.run(serve(listener))
        except BaseException as error:
            errors.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    found.join = thread.join
    try:
        if not errors:
            yield found
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended already
            found.stop()
        thread.join(30)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def is_ready(found):
    """Whether /readyz says so."""
    with socket.create_connection(('127.0.0.1', found.ports.rest)) as connection:
        connection.sendall(b'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
        return b' 200 ' in connection.recv(100)


def wait_until(condition, seconds=20.0):
    """Waits for a condition; fails if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not come'
        time.sleep(0.01)
