"""The client against boardrec.serve, by REST and gRPC; and where a server is busy, away or refuses; and interrupted."""

import csv
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import predict_client
import predict_messages
import predict_requests
from predict_requests import PredictClientConfig
import pytest

from boardrec import cli, predict
from boardrec.config import PredictConfig, UserError
from boardrec.reporting.prediction_file import Writer

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


def config_of(found, api, images, output='', **settings):
    return PredictClientConfig(images=str(images), server=address(found, api), api=api, output=str(output), **settings)


def test_rest_and_grpc_write_what_predict_writes_in_the_order_of_the_paths(served, photographs, tmp_path, capsys):
    (photographs / 'large.jpg').write_bytes(bytes((1 << 20) + 1))
    for api in ('rest', 'grpc'):
        predict_client.main(config_of(served, api, photographs, tmp_path / f'{api}.csv', batch_size=2, concurrency=3,
                                      max_image_mib=1, version=3))
        assert '.csv: 8 images classified, 2 files could not be; ' in capsys.readouterr().out
    assert (tmp_path / 'rest.csv').read_bytes() == (tmp_path / 'grpc.csv').read_bytes()
    rows = rows_of(tmp_path / 'rest.csv')
    assert list(rows[0]) == ['path', 'predicted', 'p_negative', 'p_positive', 'error']
    assert [row['path'] for row in rows] == [str(path) for path in sorted(photographs.iterdir())]
    for i, row in enumerate(rows[:9]):
        if i == 4:
            assert (row['predicted'], row['error'], row['p_positive']) == ('', 'empty', '')
            continue
        score = np.float32(served_models.checksum(f'image {i}'.encode())) / np.float32(served_models.BUCKETS)
        assert np.float32(row['p_positive']) == score and np.float32(row['p_negative']) == 1 - score
        assert row['predicted'] == served_models.CLASS_NAMES[int(score >= 0.5)]
    assert rows[9]['error'] == f'too large: {(1 << 20) + 1} bytes, at most {1 << 20}'


@pytest.mark.long
def test_the_file_of_an_export_is_that_of_predict(exported, source_images, tmp_path):
    images, said = source_images / 'positive', {}
    predict.main(PredictConfig(saved_model=str(exported), images=str(images), output=str(tmp_path / 'predict.csv')))
    with servers.running(exported.parent) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        for api in ('rest', 'grpc'):
            predict_client.main(config_of(found, api, images, tmp_path / f'{api}.csv', batch_size=32, concurrency=1))
            said[api] = (tmp_path / f'{api}.csv').read_bytes()
    assert said['rest'] == said['grpc']
    columns = rows_of(tmp_path / 'rest.csv'), rows_of(tmp_path / 'predict.csv')
    for ours, theirs in zip(*columns, strict=True):
        assert ours == {**theirs, **{name: ours[name] for name in ('p_negative', 'p_positive')}}
        assert float(ours['p_positive']) == pytest.approx(float(theirs['p_positive']), abs=1e-5)


@pytest.mark.parametrize('api', ['rest', 'grpc'])
def test_what_a_server_refuses(served, photographs, tmp_path, monkeypatch, api):
    monkeypatch.setattr(predict_requests, '_WAIT_SECONDS', 0.001)
    for settings, match in (
            ({'model_name': 'a/b'}, r'^--model_name=a/b: .* does not serve it \(.*found for request: Latest\(a/b\)'),
            ({'version': 7}, r'not found for request: Specific\(boardrec, 7\)'),
            ({'signature': 'embedding'}, '^--signature=embedding: gives (output|embedding), and no label'),
            ({'signature': 'nono'}, '"nono" not found in signature def; this client asks exports of boardrec'),
            ({'images': tmp_path / 'gone'}, f'^--images={tmp_path}/gone: no file there')):
        with pytest.raises(UserError, match=match):
            predict_client.main(config_of(served, api, **{'images': photographs, **settings}))
    other = {'rest': 'grpc', 'grpc': 'rest'}[api]
    with pytest.raises(UserError, match=f'does not speak .* looks like the .* port: give --api={other}'):
        predict_client.main(PredictClientConfig(images=str(photographs), server=address(served, other), api=api))
    (photographs / '0.jpg').write_bytes(bytes(3 << 20))
    output = tmp_path / 'out.jsonl'
    refused = '413: .* base64 takes 4/3' if api == 'rest' else 'RESOURCE_EXHAUSTED: '
    predict_client.main(config_of(served, api, photographs, output, batch_size=9))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert re.match(refused, rows[0]['error'])
    assert [row['error'] for row in rows[1:]] == [None] * 3 + ['empty'] + [None] * 4
    output.unlink()
    with pytest.raises(UserError, match=f'^--server=.*: every request was refused, the first with {refused}'):
        predict_client.main(config_of(served, api, photographs / '0.jpg', output))
    assert list(tmp_path.iterdir()) == [photographs]


def test_a_signal_between_a_write_and_the_next_costs_and_doubles_no_row(served, photographs, tmp_path, monkeypatch):
    output, write = tmp_path / 'out.csv', Writer.write

    def interrupted(writer, rows):
        write(writer, rows)
        if writer.rows == 1:
            os.kill(os.getpid(), signal.SIGINT)

    predict_client.main(config_of(served, 'rest', photographs, tmp_path / 'whole.csv'))
    monkeypatch.setattr(Writer, 'write', interrupted)
    with pytest.raises(cli.Interrupted):
        predict_client.main(config_of(served, 'rest', photographs, output, concurrency=1))
    predict_client.main(config_of(served, 'rest', photographs, output))
    assert output.read_bytes() == (tmp_path / 'whole.csv').read_bytes()


class Typed:
    """Standard input: some paths, and then Ctrl-C once they are asked about, or the end."""

    def __init__(self, paths, interrupt):
        self.buffer, self._interrupt = self, interrupt
        self._pieces = [b''.join(os.fsencode(path) + b'\n' for path in paths)]

    def read1(self, _):
        """What was typed."""
        if self._pieces:
            return self._pieces.pop()
        if self._interrupt:
            servers.wait_until(self._interrupt)
            os.kill(os.getpid(), signal.SIGINT)
        return b''


def test_what_is_answered_is_kept_and_the_same_command_goes_on(served, photographs, tmp_path, monkeypatch, capsys):
    paths, output = sorted(photographs.iterdir()), tmp_path / 'out.csv'
    settings, asked, ask = {'concurrency': 2, 'batch_size': 2}, [], predict_requests.Client._ask
    monkeypatch.setattr(predict_requests.Client, '_ask',
                        lambda client, images: asked.extend(images) or ask(client, images))

    def run(count, interrupt=None, **others):
        monkeypatch.setattr(sys, 'stdin', Typed(paths[:count], interrupt))
        predict_client.main(config_of(served, 'rest', '-', output, **{**settings, **others}))

    run(9)
    whole = output.read_bytes()
    with pytest.raises(cli.Interrupted) as caught:
        run(6, lambda: len(asked) == 9 + 6)
    assert caught.value.number == signal.SIGINT
    assert caught.value.__notes__ == [f'6 rows of {output} are written, and the same command goes on behind them']
    assert 'waiting for the requests under way' in capsys.readouterr().err
    part, = tmp_path.glob('out.csv.partial-*')
    assert part.read_bytes() == b''.join(whole.splitlines(keepends=True)[:7]) and output.read_bytes() == whole
    with pytest.raises(UserError, match='interrupted of predictions by another model, with other settings'):
        run(9, max_image_mib=2)
    asked.clear()
    run(9, batch_size=1)
    assert output.read_bytes() == whole and len(asked) == 3
    assert 'going on behind 6 rows' in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [output, photographs]
    (tmp_path / 'photo.csv').write_bytes(b'precious')
    with pytest.raises(UserError, match='holds something else than predictions'):
        predict_client.main(config_of(served, 'rest', photographs, tmp_path / 'photo.csv'))


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
        assert '8 images classified, 1 file could not be' in done.stderr


GOOD = {'label': ['a'], 'probabilities': [[0.25, 0.75]]}


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers as TF Serving does; about images as `script` says, from how many of them were asked about."""

    protocol_version = 'HTTP/1.1'
    script, asked = None, 0

    def do_GET(self):
        """Answers for metadata."""
        self._answer(200, {'model_spec': {'version': '1'}})

    def do_POST(self):
        """Answers a request."""
        request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        images = request['inputs'].get('image_bytes')
        if request['signature_name'] == 'classify':
            self._answer(200, {'outputs': {'classes': [['a', 'b']], 'scores': [[0, 0]]}})
        elif images == [{'b64': ''}]:
            self._answer(200, {'outputs': GOOD})
        else:
            Scripted.asked += 1
            self._answer(*Scripted.script(Scripted.asked))

    def log_message(self, *args):
        """Says nothing."""

    def _answer(self, status, document):
        if not status:
            self.close_connection = True
            return
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def scripted(photographs, monkeypatch):
    (photographs / '4.jpg').write_bytes(b'image 4')
    monkeypatch.setattr(predict_requests, '_WAIT_SECONDS', 0.001)
    monkeypatch.setattr(Scripted, 'asked', 0)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f'127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_a_server_that_is_busy_or_loads_its_model_again_is_asked_again(scripted, photographs, tmp_path, capsys,
                                                                       monkeypatch):
    output, answers = tmp_path / 'out.csv', [(200, {'outputs': GOOD}), (429, {'error': 'busy'}), (0, None),
                                             (404, {'error': 'not yet'})]
    monkeypatch.setattr(Scripted, 'script', lambda number: answers[number % 4])
    settings = {'images': str(photographs), 'server': scripted, 'output': str(output), 'concurrency': 1}
    predict_client.main(PredictClientConfig(**settings, retries=3))
    assert [row['predicted'] for row in rows_of(output)] == ['a'] * 9
    assert '9 images classified, 0 files could not be;' in (said := capsys.readouterr().out)
    assert '18 requests sent again' in said, 'a connection that was kept and has gone is no try'


def test_where_the_server_stays_away_the_same_command_goes_on_later(scripted, photographs, tmp_path, monkeypatch):
    output = tmp_path / 'out.csv'
    settings = {'images': str(photographs), 'server': scripted, 'output': str(output), 'concurrency': 1}
    monkeypatch.setattr(Scripted, 'script', lambda n: (200, {'outputs': GOOD}) if n <= 4 else (503, {'error': 'away'}))
    with pytest.raises(UserError, match=r'^--server=.*: 503: away, after 3 attempts; .* --retries=2\.') as caught:
        predict_client.main(PredictClientConfig(**settings, retries=2))
    assert caught.value.__notes__ == [f'4 rows of {output} are written, and the same command goes on behind them']
    monkeypatch.setattr(Scripted, 'asked', 0)
    monkeypatch.setattr(Scripted, 'script', lambda _: (200, {'outputs': GOOD}))
    predict_client.main(PredictClientConfig(**settings))
    assert (Scripted.asked, len(rows_of(output))) == (5, 9)


def test_what_had_no_answer_in_time_is_not_sent_again(scripted, photographs, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(Scripted, 'script', lambda _: (0, None) if release.wait() else None)
    try:
        with pytest.raises(UserError, match='every request was refused, the first with no answer within --seconds=0.5'):
            predict_client.main(PredictClientConfig(images=str(photographs / '0.jpg'), server=scripted, seconds=0.5))
    finally:
        release.set()
    assert Scripted.asked == 1


def test_an_answer_of_other_rows_than_asked_is_an_error_of_its_images(scripted, photographs, tmp_path, monkeypatch):
    output, answers = tmp_path / 'out.csv', {1: {'outputs': GOOD}, 2: {'outputs': GOOD}, 3: {'no': 'outputs'}}
    monkeypatch.setattr(Scripted, 'script', lambda n: (200, answers[n]))
    (tmp_path / 'list.txt').write_text(f'{photographs}/0.jpg\n{photographs}/1.jpg\n')
    predict_client.main(PredictClientConfig(images=str(tmp_path / 'list.txt'), server=scripted, output=str(output),
                                            batch_size=2))
    rows = [(row['predicted'], row['error']) for row in rows_of(output)]
    assert rows == [('a', ''), ('', 'an answer without outputs')]


def test_a_server_that_has_just_started_is_given_time_to_load_its_model(scripted, photographs, monkeypatch, capsys):
    replies = iter([(404, {'error': 'not yet'})] * 3)
    answer = Scripted._answer
    monkeypatch.setattr(Scripted, '_answer', lambda self, *good: answer(self, *next(replies, good)))
    monkeypatch.setattr(Scripted, 'script', lambda _: (200, {'outputs': GOOD}))
    predict_client.main(PredictClientConfig(images=str(photographs), server=scripted))
    said = capsys.readouterr().out
    assert '404: not yet; asking again up to 7 times\n' in said and '9 images classified, 0 files could not be' in said


@pytest.mark.parametrize('api', ['rest', 'grpc'])
def test_a_server_that_is_away(photographs, monkeypatch, capsys, api):
    monkeypatch.setattr(predict_requests, '_WAIT_SECONDS', 0.001)
    with pytest.raises(UserError, match=r'^--server=127\.0\.0\.1:1: .*refused.*, after 2 attempts; see that a server'):
        predict_client.main(PredictClientConfig(images=str(photographs), server='127.0.0.1:1', api=api, retries=1))
    assert capsys.readouterr().out.count('asking again up to 1 time\n') == 1


def test_waits_grow_differ_and_take_a_minute_in_all():
    waits = [[predict_requests.wait_seconds(number) for _ in range(200)] for number in (0, 3, 50)]
    assert 0.05 <= min(waits[0]) <= max(waits[0]) <= 0.1 < min(waits[1]) <= max(waits[1]) <= 0.8 < 5 <= min(waits[2])
    assert max(waits[2]) <= 10 and len(set(waits[0])) > 100
    retries = PredictClientConfig(images='i').retries
    assert 40 <= sum(map(predict_requests.wait_seconds, range(retries))) <= 85


def test_the_summary():
    sent = [predict_requests.Sent([], float(i)) for i in range(101)] + [predict_requests.Sent([], None, 2, 'no')]
    assert predict_client.summary(sent, 102, seconds=51.0) == (
        '2.0 a second; an answer took 50.0 ms (p50), 95.0 (p95), 99.0 (p99); 2 requests sent again')


def test_the_messages_are_those_of_tf_serving():
    servers.require_serving()
    from tensorflow.core.example import example_pb2
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
    from tensorflow_serving.apis import model_pb2, predict_pb2
    theirs = {'TensorProto': tensor_pb2.TensorProto, 'TensorShapeProto': tensor_shape_pb2.TensorShapeProto,
              'Dim': tensor_shape_pb2.TensorShapeProto.Dim, 'ModelSpec': model_pb2.ModelSpec,
              'PredictRequest': predict_pb2.PredictRequest, 'PredictResponse': predict_pb2.PredictResponse}
    for name, fields in predict_messages.MESSAGES.items():
        if name in theirs:
            numbers = {field.name: field.number for field in theirs[name].DESCRIPTOR.fields}
            assert {field: number for field, number, *_ in fields}.items() <= numbers.items()
    ours = predict_messages.request('m', 3, 's', {'image_bytes': [b'\x00a', b'']})
    read = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    example = example_pb2.Example.FromString(predict_messages.EXAMPLE_OF_NOTHING)
    assert example.features.feature['image_bytes'].bytes_list.value == [b'']
    assert (read.model_spec.version.value, list(read.inputs['image_bytes'].string_val)) == (3, [b'\x00a', b''])


@pytest.mark.parametrize(('values', 'match'), [
    ({'server': 'host'}, '--server=host: must be HOST:PORT'), ({'concurrency': 0}, '--concurrency=0'),
    ({'server': 'http://host:8501'}, '--server=http://host:8501: must be HOST:PORT, .* without http://'),
    ({'api': 'soap'}, '--api=soap: must be one of rest, grpc')])
def test_settings_that_cannot_be(values, match):
    with pytest.raises(UserError, match=match):
        PredictClientConfig(images='i', **values)
