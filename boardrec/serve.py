"""Serves exports on this machine as TF Serving does: python -m boardrec.serve --model_dir=MODELS/boardrec."""

import asyncio
import importlib.util
import socket

from boardrec import cli, progress
from boardrec.config import ServeConfig, UserError
from boardrec.serving import ports, versions

_PACKAGES = {'tensorflow_serving': 'tensorflow-serving-api', 'grpc_health': 'grpcio-health-checking',
             'starlette': 'starlette', 'uvicorn': 'uvicorn', 'httptools': 'httptools', 'orjson': 'orjson',
             'prometheus_client': 'prometheus_client'}


def main(config: ServeConfig) -> None:
    """Serves the newest version in --model_dir by REST and gRPC, with a page to try it, until Ctrl-C or SIGTERM.

    It then ends the requests under way and exits with 130 or 143. New versions are taken up as they appear.
    """
    versions.require_folder(config.model_dir)
    _require_packages()
    with ports.bound(config) as listener:
        progress.import_tensorflow()
        raise cli.Interrupted(asyncio.run(_serve(config, listener)))


async def _serve(config: ServeConfig, listener: socket.socket) -> int:
    from boardrec.serving import server
    stop = asyncio.Event()
    with server.listen(stop) as heard:
        await server.run(config, listener, stop, lambda reached: server.say(_where(config, *reached)))
    return heard[0]


def _where(config: ServeConfig, rest_port: int, grpc_port: int) -> str:
    host = f'[{config.host}]' if ':' in config.host else config.host
    return f'REST and a page to try it at http://{host}:{rest_port}/, gRPC at {host}:{grpc_port}; Ctrl-C ends it'


def _require_packages() -> None:
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f'serving needs {", ".join(missing)}: run python -m pip install "boardrec[serving]".')


if __name__ == '__main__':
    cli.run(main, ServeConfig)
