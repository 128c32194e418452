"""python -m boardrec.serve as a command: what it refuses, what it says, and how it ends."""

import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import pytest

from boardrec import cli, serve
from boardrec.config import ServeConfig, UserError
from boardrec.serving import ports

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tests' / 'serving'))
import served_models  # noqa: E402
import servers  # noqa: E402
from servers import require_serving  # noqa: E402


def run(*args):
    cli.run(serve.main, ServeConfig, ['serve', *args])


@pytest.fixture
def taken():
    """A port at which another program listens."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        yield server.getsockname()[1]


def refused(capsys, *args):
    """The sentence that a mistake ends with."""
    with pytest.raises(SystemExit) as end:
        run(*args)
    assert end.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith('error: ') and sentence.count('\n') == 1
    return sentence.removeprefix('error: ').strip()


def test_mistakes_are_told_before_tensorflow_is_imported(tmp_path, taken, capsys):
    require_serving()
    assert refused(capsys).startswith('--model_dir is missing')
    assert refused(capsys, f'--model_dir={tmp_path}/gone').startswith(f'--model_dir={tmp_path}/gone: there is no such')
    folder = f'--model_dir={tmp_path}'
    for flag, other in (('rest_port', 'grpc_port'), ('grpc_port', 'rest_port')):
        assert refused(capsys, folder, f'--{flag}={taken}', f'--{other}=0') == (
            f'--{flag}={taken}: another program listens there already; name another port, or 0 for a free one.')
    assert refused(capsys, folder, '--host=192.0.2.7', '--rest_port=0', '--grpc_port=0').startswith(
        '--host=192.0.2.7: cannot be listened at (')
    assert refused(capsys, folder, '--host=no.such.host.invalid').startswith('--host=no.such.host.invalid: is no addr')


def test_packages_that_are_missing_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(serve._PACKAGES, 'no_such_module', 'no-such-package')
    sentence = refused(capsys, f'--model_dir={tmp_path}')
    assert 'no-such-package: run python -m pip install "boardrec[serving]".' in sentence


@pytest.mark.parametrize(('values', 'match'), [
    ({'host': ''}, '--host=: must be an address; 0.0.0.0 stands for all'),
    ({'rest_port': 70000}, '--rest_port=70000: must be from 0 to 65535'),
    ({'grpc_port': 8501}, '--grpc_port=8501: must be another port than --rest_port=8501'),
    ({'keep': 0}, '--keep=0: must be at least 1'), ({'batches_in_flight': 0}, '--batches_in_flight=0'),
    ({'max_held_mib': 8}, '--max_held_mib=8: must be at least --max_request_mib=32'),
    ({'model_name': 'a/b'}, '--model_name=a/b: must be without slashes'),
    ({'version_labels': 'stable'}, '--version_labels=stable: must be like stable:3,canary:4'),
    ({'model_dir': 's3://bucket/m'}, '--model_dir=s3://bucket/m: must be on a file system'),
])
def test_settings_that_cannot_be(values, match):
    with pytest.raises(UserError, match=match):
        ServeConfig(**{'model_dir': 'm', **values})


def test_labels():
    assert ServeConfig(model_dir='m', version_labels='stable:3, canary:4').labels() == {'stable': 3, 'canary': 4}
    assert ServeConfig(model_dir='m').labels() == {}


def test_a_port_is_taken_before_tensorflow_is_imported(tmp_path):
    with ports.bound(ServeConfig(model_dir=str(tmp_path), rest_port=0, grpc_port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f'--rest_port={port}: another program listens there already'):
            with ports.bound(ServeConfig(model_dir=str(tmp_path), rest_port=port, grpc_port=0)):
                pass


def test_only_at_a_loopback_address_a_server_has_names():
    ours = {'localhost', '127.0.0.1', '::1'}
    for host, address, names in (('127.0.0.1', '127.0.0.1', ours), ('Box', '127.0.0.9', {*ours, 'box', '127.0.0.9'}),
                                 ('::1', '::1', ours), ('0.0.0.0', '0.0.0.0', None), ('::', '::', None),
                                 ('box', '192.0.2.7', None)):
        listener = types.SimpleNamespace(getsockname=lambda address=address: (address, 8501))
        assert ports.names(ServeConfig(model_dir='m', host=host), listener) == names


def test_answers_do_not_wait_for_acknowledgements(tmp_path):
    """asyncio switches Nagle's algorithm off for sockets that say their protocol alone: 40 ms an answer."""
    with ports.bound(ServeConfig(model_dir=str(tmp_path), rest_port=0, grpc_port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(('number', 'status'), [
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)])
def test_a_signal_ends_it_once_the_request_under_way_is_answered(tmp_path, number, status):
    require_serving()
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    if number == signal.SIGTERM:
        served_models.save(folder, 1)
    command = [sys.executable, '-m', 'boardrec.serve', f'--model_dir={folder}', '--rest_port=0', '--grpc_port=0']
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, 'PYTHONPATH': str(ROOT)})
    try:
        address = server.stdout.readline()
        assert address.startswith('REST and a page to try it at http://127.0.0.1:')
        said = server.stdout.readline()
        if number == signal.SIGTERM:
            assert said.startswith('boardrec version 1 is served; loaded in ')
            server.stdout.close()  # as `| head` does
            served_models.save(folder, 2)
            port = int(address.split(':')[2].split('/')[0])
            servers.wait_until(lambda: is_served(port, 2))
            assert ask_slowly(port, server, number) == 200
        else:
            assert said == f'{folder}: no version to serve yet; waiting for one\n'
            server.send_signal(number)
        _, errors = server.communicate(timeout=30)
    finally:
        server.kill()
        server.communicate()
    assert server.returncode == status
    assert errors == 'stopping once the requests under way are answered; once more ends it at once\nInterrupted.\n'


def is_served(port, version):
    """Whether the server answers that a version is available."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    connection.request('GET', '/v1/models/boardrec')
    answer = connection.getresponse().read()
    connection.close()
    return (str(version), 'AVAILABLE') in [
        (one['version'], one['state']) for one in json.loads(answer)['model_version_status']]


def ask_slowly(port, server, number):
    """Status of a request of which the server has one half when the signal comes."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    body = json.dumps({'instances': ['x']}).encode()
    connection.putrequest('POST', '/v1/models/boardrec:predict')
    connection.putheader('Content-Length', str(len(body)))
    connection.endheaders(body[:5])
    time.sleep(0.3)
    server.send_signal(number)
    time.sleep(0.3)
    connection.send(body[5:])
    return connection.getresponse().status
