"""The client against boardrec.serve, by REST and gRPC; and what it does where a server is busy, away or refuses."""

import csv
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import predict_client
from predict_client import PredictClientConfig
import predict_messages
import pytest

from boardrec.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'serving'))
import served_models  # noqa: E402
import servers  # noqa: E402


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models') / 'boardrec'
    folder.mkdir()
    served_models.save(folder, 3)
    with servers.running(folder, max_request_mib=1) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        yield found


@pytest.fixture
def photographs(tmp_path):
    """A folder of files that the model takes for images, one of them empty."""
    folder = tmp_path / 'photographs'
    folder.mkdir()
    for i in range(9):
        (folder / f'{i}.jpg').write_bytes(b'' if i == 4 else f'image {i}'.encode())
    return folder


def address(found, api):
    return found.rest.removeprefix('http://') if api == 'rest' else found.grpc


def rows_of(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('api', ['rest', 'grpc'])
def test_each_image_gets_its_own_answer_in_the_order_of_the_paths(served, photographs, tmp_path, capsys, api):
    (photographs / 'large.jpg').write_bytes(bytes((1 << 20) + 1))
    output = tmp_path / 'out.csv'
    predict_client.main(PredictClientConfig(
        images=str(photographs), server=address(served, api), api=api, output=str(output), batch_size=2, concurrency=3,
        max_image_mib=1, version=3))
    rows = rows_of(output)
    assert [row['path'] for row in rows] == [str(path) for path in sorted(photographs.iterdir())]
    for i, row in enumerate(rows[:9]):
        if i == 4:
            assert (row['label'], row['error'], row['probabilities']) == ('', 'empty', '')
            continue
        score = served_models.checksum(f'image {i}'.encode()) / served_models.BUCKETS
        assert float(row['score']) == pytest.approx(score)
        assert list(map(float, row['probabilities'].split())) == pytest.approx([1 - score, score])
        assert row['label'] == served_models.CLASS_NAMES[score >= 0.5]
        assert float(row['milliseconds']) > 0
    assert rows[9]['error'].startswith('too large')
    assert '8 images classified, 2 not; ' in capsys.readouterr().out


@pytest.mark.parametrize('api', ['rest', 'grpc'])
def test_what_a_server_refuses(served, photographs, tmp_path, api):
    settings = {'images': str(photographs), 'server': address(served, api), 'api': api}
    with pytest.raises(UserError, match=r'^--model_name=other: Servable not found for request: Latest\(other\)'):
        predict_client.main(PredictClientConfig(**settings, model_name='other'))
    with pytest.raises(UserError, match='^--signature: it gives .*, and no label'):
        predict_client.main(PredictClientConfig(**settings, signature='embedding'))
    (photographs / '0.jpg').write_bytes(bytes(3 << 20))
    output = tmp_path / 'out.jsonl'
    predict_client.main(PredictClientConfig(**settings, output=str(output)))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[0]['error'].startswith('413: ' if api == 'rest' else 'RESOURCE_EXHAUSTED: ')
    assert rows[1]['error'] == ''


def test_the_client_starts_without_tensorflow(served, photographs, tool_path):
    code = ('import sys; sys.argv = sys.argv[1:]; import runpy\n'
            'try:\n    runpy.run_path(sys.argv[0], run_name="__main__")\n'
            'finally:\n    assert "tensorflow" not in sys.modules')
    for api in ('rest', 'grpc'):
        done = subprocess.run([sys.executable, '-c', code, str(tool_path('predict_client.py')), '--output=-',
                               f'--images={photographs}', f'--api={api}', f'--server={address(served, api)}'],
                              capture_output=True, text=True, check=False,
                              env={'PYTHONPATH': f'{tool_path("")}:{pathlib.Path(__file__).parents[2]}'})
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 10
        assert 'images classified' in done.stderr


class Flaky(http.server.BaseHTTPRequestHandler):
    """Answers 429, then cuts the connection, then answers; and so on."""

    count = 0

    def do_POST(self):
        """Answers a request."""
        self.rfile.read(int(self.headers['Content-Length']))
        Flaky.count += 1
        if Flaky.count % 3 == 2:
            self.close_connection = True
            return
        busy = Flaky.count % 3 == 1
        body = b'{"error": "busy"}' if busy else b'{"outputs": {"label": ["a"], "score": [0.5]}}'
        self.send_response(429 if busy else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def flaky(monkeypatch):
    monkeypatch.setattr(predict_client, '_WAIT_SECONDS', 0.001)
    Flaky.count = 0
    with http.server.HTTPServer(('127.0.0.1', 0), Flaky) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f'127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_a_busy_server_is_asked_again(flaky, photographs, tmp_path, capsys):
    output = tmp_path / 'out.csv'
    predict_client.main(PredictClientConfig(images=str(photographs), server=flaky, output=str(output), concurrency=1,
                                            retries=2))
    assert [row['label'] for row in rows_of(output)] == ['a'] * 9
    assert '9 images classified, 0 not;' in (said := capsys.readouterr().out)
    assert '18 requests sent again' in said
    with pytest.raises(UserError, match=rf'^--server={flaky}: .*, after 2 tries\.$'):
        predict_client.main(PredictClientConfig(images=str(photographs), server=flaky, concurrency=1, retries=1))


@pytest.mark.parametrize('api', ['rest', 'grpc'])
def test_a_server_that_is_away(photographs, monkeypatch, api):
    monkeypatch.setattr(predict_client, '_WAIT_SECONDS', 0.001)
    with pytest.raises(UserError, match=r'^--server=127\.0\.0\.1:1: .*refused.*, after 2 tries'):
        predict_client.main(PredictClientConfig(images=str(photographs), server='127.0.0.1:1', api=api, retries=1))


def test_waits_grow_differ_and_end():
    waits = [[predict_client.wait_seconds(number) for _ in range(200)] for number in (0, 3, 50)]
    assert max(waits[0]) <= 0.1 < max(waits[1]) <= 0.8 < max(waits[2]) <= 10
    assert len(set(waits[0])) > 100


def test_the_summary():
    def sent(milliseconds, retries=0, error=''):
        return predict_client.Sent([predict_client.Answer('a', error=error)], milliseconds, retries)

    text = predict_client.summary([sent(float(i)) for i in range(101)] + [sent(None, 2, 'no')], seconds=51.0)
    assert text == ('101 images classified, 1 not; 2.0 a second; an answer took 50.0 ms (p50), 95.0 (p95), 99.0 (p99); '
                    '2 requests sent again')
    assert predict_client.summary([], 1.0) == 'no image there'


def test_the_messages_are_those_of_tf_serving():
    servers.require_serving()
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
    from tensorflow_serving.apis import model_pb2, predict_pb2
    theirs = {'TensorProto': tensor_pb2.TensorProto, 'TensorShapeProto': tensor_shape_pb2.TensorShapeProto,
              'Dim': tensor_shape_pb2.TensorShapeProto.Dim, 'ModelSpec': model_pb2.ModelSpec,
              'PredictRequest': predict_pb2.PredictRequest, 'PredictResponse': predict_pb2.PredictResponse}
    for name, fields in predict_messages.MESSAGES.items():
        if name in theirs:
            numbers = {field.name: field.number for field in theirs[name].DESCRIPTOR.fields}
            assert {field: number for field, number, *_ in fields}.items() <= numbers.items()
    ours = predict_messages.request('m', 3, 's', [b'\x00a', b''])
    read = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert (read.model_spec.version.value, list(read.inputs['image_bytes'].string_val)) == (3, [b'\x00a', b''])


@pytest.mark.parametrize(('values', 'match'), [
    ({'server': 'host'}, '--server=host: must be like HOST:PORT'), ({'concurrency': 0}, '--concurrency=0'),
    ({'output': 'a.txt'}, '--output=a.txt: must end in'), ({'api': 'soap'}, '--api=soap: must be one of rest, grpc')])
def test_settings_that_cannot_be(values, match):
    with pytest.raises(UserError, match=match):
        PredictClientConfig(images='i', **values)
