"""The ports that a server listens at, taken before TensorFlow's five seconds of import."""

from collections.abc import Iterator
import contextlib
import errno
import ipaddress
import socket

from boardrec.config import ServeConfig, UserError


@contextlib.contextmanager
def bound(config: ServeConfig) -> Iterator[socket.socket]:
    """The REST port, listened at for a block. Raises UserError if it or the gRPC port cannot be had."""
    with _socket(config, 'grpc_port', config.grpc_port):
        pass  # gRPC listens there itself, later
    with _socket(config, 'rest_port', config.rest_port) as listener:
        yield listener


def names(config: ServeConfig, listener: socket.socket) -> frozenset[str] | None:
    """What a request's Host may say where only this machine reaches the server, in lower case; None if others do.

    A page from elsewhere may let its own name point to this machine (DNS rebinding); a browser then says that name.
    """
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address.partition('%')[0]).is_loopback:
        return None
    return frozenset({'localhost', '127.0.0.1', '::1', address, config.host.lower()})


def refused(config: ServeConfig, flag: str, port: int, error: OSError) -> UserError:
    """What to tell of a port that cannot be listened at."""
    if error.errno == errno.EADDRINUSE:
        return UserError(f'--{flag}={port}: another program listens there already; name another port, or 0 for a free '
                         'one.')
    if error.errno == errno.EACCES:
        return UserError(f'--{flag}={port}: ports below 1024 are not for every user; name another one.')
    return UserError(f'--host={config.host}: cannot be listened at ({error.strerror}).')


def _socket(config: ServeConfig, flag: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, port, type=socket.SOCK_STREAM)[0]
        # With 0 for the protocol asyncio would leave Nagle's algorithm on, and answers would take 40 ms more.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise UserError(f'--host={config.host}: is no address of this machine ({error.strerror}).') from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # at once: two sockets with SO_REUSEADDR may be bound to a port, but only one listens
    except OSError as error:
        made.close()
        raise refused(config, flag, port, error) from None
    return made
