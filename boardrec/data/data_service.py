"""A tf.data service from its client's side: whether it can serve, and batches of it that do not wait for ever.

tf.data itself waits without a word, deaf to Ctrl-C, for a dispatcher that has gone or for workers that never come.
"""

from collections.abc import Iterator
import queue
import socket
import threading
from typing import Any

import grpc
import tensorflow as tf

from boardrec.config import UserError

_ANSWER_SECONDS = 10.0
_QUIET_SECONDS = 5.0  # without a batch before the service is looked at again
_START = 'start a dispatcher and workers of tf.data.experimental.service, or leave the flag out.'


def require(service: str) -> None:
    """Raises UserError if no dispatcher answers at grpc://HOST:PORT, it has no workers, or one of them is gone."""
    try:
        addresses = _workers(service.removeprefix('grpc://'))
    except grpc.RpcError as error:
        raise UserError(f'--data_service={service}: no dispatcher of a tf.data service answers there '
                        f'({error.code().name.lower()}); {_START}') from None
    if not addresses:
        raise UserError(f'--data_service={service}: its dispatcher has no workers; {_START}')
    lost = [address for address in addresses if not _answers(address)]
    if lost:  # its share of the records would be waited for
        raise UserError(f'--data_service={service}: its worker at {lost[0]} does not answer; start it again at the '
                        'same address, or dispatcher and workers anew, and run the same command again.')


def batches(dataset: tf.data.Dataset, service: str) -> Iterator[Any]:
    """Yields the elements of a dataset that comes from a service.

    Raises UserError once the service is lost, or has lost records with a worker that died.
    """
    ready: queue.Queue = queue.Queue(maxsize=1)

    def pull() -> None:
        try:
            for element in dataset:
                ready.put((element, None))
            ready.put((None, None))
        except Exception as error:  # for the thread that waits
            ready.put((None, error))

    # tf.data waits here, so that the caller's thread hears Ctrl-C. The thread dies with the process.
    threading.Thread(target=pull, daemon=True).start()
    while True:
        try:
            element, error = ready.get(timeout=_QUIET_SECONDS)
        except queue.Empty:
            require(service)
            continue
        if error is not None:
            raise _lost(service, error) from error
        if element is None:
            return
        yield element


def _lost(service: str, error: Exception) -> Exception:
    if not isinstance(error, tf.errors.OpError):
        return error
    return UserError(f'--data_service={service}: it did not give each record once, as it does when a worker dies '
                     f'({error.message.splitlines()[0][:200]}); see to it and run the same command again.')


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _workers(target: str) -> list[str]:
    """HOST:PORT of each worker that has ever come to a dispatcher.

    Asked as TensorFlow's own clients do (tensorflow/core/data/service/dispatcher.proto: GetWorkers, whose answer is
    repeated WorkerInfo = 1, of which address = 1). Python has no messages of that file; a BytesList has the same wire
    format.
    """
    with grpc.insecure_channel(target) as channel:
        answer = channel.unary_unary('/tensorflow.data.DispatcherService/GetWorkers')(b'', timeout=_ANSWER_SECONDS)
    infos = tf.train.BytesList.FromString(answer).value
    return [tf.train.BytesList.FromString(info).value[0].decode() for info in infos]
