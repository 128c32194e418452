"""One process that serves a model by REST and gRPC, from its ports to its shutdown."""

import asyncio
from collections.abc import Callable, Iterator
import contextlib
import errno
import math
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

import uvicorn

from boardrec import progress
from boardrec.config import ServeConfig
from boardrec.serving import grpc_api, http_protocol, ports, rest, versions
from boardrec.serving.batching import Batcher
from boardrec.serving.metrics import Metrics
from boardrec.serving.servable import Servable
from boardrec.serving.service import Service
from boardrec.serving.warmup import warm_up

_MAX_CONNECTIONS = 4096
_HEALTH_SECONDS = 0.2
_CLOSE_SECONDS = 1.0  # for what runs at the end of --drain_seconds


class Ports(NamedTuple):
    """Where a server is reached."""

    rest: int
    grpc: int


async def run(config: ServeConfig, listener: socket.socket, stop: asyncio.Event,
              started: Callable[[Ports], None] = lambda _: None) -> None:
    """Serves until `stop` is set; then takes no more connections, ends the requests under way, and returns.

    `listener` listens at the REST port. `started` hears of the ports once both answer. Raises UserError if the gRPC
    port is taken.
    """
    measured, told = Metrics(), grpc_api.Health()
    batcher = Batcher(max_batch_size=config.max_batch_size, wait_seconds=config.batch_wait_ms / 1000,
                      in_flight=config.batches_in_flight, max_queued=config.max_queued, metrics=measured)
    served = versions.Versions(versions.require_folder(config.model_dir), name=name_of(config), load=_load,
                               keep=config.keep, labels=config.labels(), say=say)
    measured.watch(lambda: batcher.queued, lambda: served.available)
    service = Service(served, batcher, request_seconds=config.request_seconds, max_held_bytes=config.max_held_mib << 20)
    max_bytes = config.max_request_mib << 20
    rpc = grpc_api.make_server(service, measured, told, max_bytes=max_bytes, max_calls=_MAX_CONNECTIONS)
    grpc_port = _add_port(rpc, config, listener)
    app = http_protocol.reads_to_the_end(rest.app(
        service, measured, rest.Limits(max_bytes, config.request_seconds), ports.names(config, listener)))
    web = _WebServer(uvicorn.Config(
        app, http=http_protocol.PatientProtocol, ws='none', lifespan='off', log_config=None, log_level='critical',
        access_log=False, server_header=False, limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(config.drain_seconds)))
    watcher = threading.Thread(target=served.watch, args=(config.poll_seconds,), daemon=True)
    await rpc.start()
    listening = asyncio.create_task(web.serve(sockets=[listener]))
    stopped = asyncio.create_task(stop.wait())
    health = asyncio.create_task(_tell_health(service, told))
    try:
        while not web.started and not listening.done():
            await asyncio.sleep(0.01)
        started(Ports(listener.getsockname()[1], grpc_port))
        watcher.start()
        await asyncio.wait({stopped, listening}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        service.stopping, end = True, time.monotonic() + config.drain_seconds
        health.cancel()
        stopped.cancel()
        await told.set(False, ended=True)  # else its watchers would hold the server open
        web.should_exit = True
        await asyncio.gather(rpc.stop(config.drain_seconds), listening)
        await asyncio.to_thread(_close, served, watcher, batcher, end)


def say(text: str) -> None:
    """Prints a line, to nobody where the reader has gone (`... | head`) or the disk is full."""
    try:
        progress.say(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it exits
    except OSError:
        pass


def name_of(config: ServeConfig) -> str:
    """The model's name in requests."""
    return config.model_name or os.path.basename(os.path.abspath(config.model_dir))


@contextlib.contextmanager
def listen(stop: asyncio.Event) -> Iterator[list[int]]:
    """Sets `stop` at SIGINT or SIGTERM, whose number joins the list; a second signal ends the process at once."""
    loop, heard = asyncio.get_running_loop(), []

    def hear(number: int) -> None:
        if heard:
            os._exit(128 + number)
        heard.append(number)
        stop.set()
        print('stopping once the requests under way are answered; once more ends it at once', file=sys.stderr)

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, hear, number)
    try:
        yield heard
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class _WebServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `listen`, for REST and gRPC together."""
        yield


def _load(folder: Any, version: int) -> Servable:
    servable = Servable(folder, version)
    try:
        warm_up(servable)
    except Exception:
        servable.close()
        raise
    return servable


def _close(served: versions.Versions, watcher: threading.Thread, batcher: Batcher, end: float) -> None:
    """Frees what is served, but leaves it to the process's end if a batch or a load still runs at the time `end`."""
    end = max(end, time.monotonic() + _CLOSE_SECONDS)
    closing = threading.Thread(target=batcher.close, daemon=True)
    closing.start()
    served.stop()
    for thread in (closing, watcher):
        if thread.ident:  # it was started
            thread.join(max(0.0, end - time.monotonic()))
    if closing.is_alive() or watcher.is_alive():
        print('a batch, or the load of a version, has not ended within --drain_seconds and is given up',
              file=sys.stderr)
    else:
        served.close()


async def _tell_health(service: Service, told: grpc_api.Health) -> None:
    while True:
        await told.set(service.ready)
        await asyncio.sleep(_HEALTH_SECONDS)


def _add_port(rpc: Any, config: ServeConfig, listener: socket.socket) -> int:
    host = listener.getsockname()[0]  # a name may stand for several, of which gRPC is content with one that is free
    host = f'[{host}]' if ':' in host else host
    try:
        return rpc.add_insecure_port(f'{host}:{config.grpc_port}')
    except RuntimeError:
        raise ports.refused(config, 'grpc_port', config.grpc_port, OSError(errno.EADDRINUSE, '')) from None
