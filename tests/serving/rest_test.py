"""TF Serving's REST API as its documentation has it, each kind of request that is wrong, and slow clients."""

import base64
import gzip
import http.client
import json
import socket
import threading
import time

import pytest
import served_models

URL = '/v1/models/boardrec'
IMAGE = b'any bytes \x00\xff'
SCORE = served_models.checksum(IMAGE) / served_models.BUCKETS


def request(served, method, path, body=None, headers=()):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', served.ports.rest, timeout=20)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def post(served, path, document):
    """Status and JSON of an answer; a document that is bytes is sent as it is."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    status, headers, answer = request(served, 'POST', path, body)
    assert headers['Content-Type'] == 'application/json'
    return status, json.loads(answer)


def get(served, path):
    status, _, answer = request(served, 'GET', path)
    return status, json.loads(answer)


def b64(data):
    return {'b64': base64.b64encode(data).decode()}


def test_rows(served):
    status, answer = post(served, f'{URL}:predict', {'instances': [{'image_bytes': b64(IMAGE)}, {'image_bytes': ''}]})
    assert status == 200
    first, second = answer['predictions']
    assert first == {'label': first['label'], 'score': pytest.approx(SCORE), 'valid': True, 'error_code': '',
                     'probabilities': pytest.approx([1 - SCORE, SCORE]), 'version': 1,
                     'checksum': served_models.checksum(IMAGE)}
    assert first['label'] == served_models.CLASS_NAMES[SCORE >= 0.5]
    assert (second['valid'], second['error_code'], second['probabilities']) == (False, 'empty', [0, 0])


@pytest.mark.parametrize('instances', [[b64(IMAGE), 'text'], [{'image_bytes': b64(IMAGE)}, {'image_bytes': 'text'}]])
def test_a_single_input_needs_no_name(served, instances):
    status, answer = post(served, f'{URL}:predict', {'instances': instances})
    assert status == 200
    assert [row['checksum'] for row in answer['predictions']] == list(map(served_models.checksum, (IMAGE, b'text')))


@pytest.mark.parametrize('inputs', [[b64(IMAGE)], {'image_bytes': [b64(IMAGE)]}])
def test_columns(served, inputs):
    status, answer = post(served, f'{URL}:predict', {'inputs': inputs, 'signature_name': 'serving_default'})
    assert status == 200
    assert answer['outputs']['checksum'] == [served_models.checksum(IMAGE)]
    assert answer['outputs'].keys() == {'label', 'score', 'valid', 'error_code', 'probabilities', 'version', 'checksum'}


def test_a_single_output_has_no_name_and_no_more_digits_than_float32(served):
    for key, answer_key in (('instances', 'predictions'), ('inputs', 'outputs')):
        body = json.dumps({key: [b64(IMAGE)], 'signature_name': 'embedding'})
        _, _, answer = request(served, 'POST', f'{URL}:predict', body)
        row, = json.loads(answer)[answer_key]
        assert row == pytest.approx([SCORE] * 6)
        assert max(map(len, answer.split(b','))) < 12 + len('{"predictions":[[')


def test_no_rows_in_columns(served):
    status, answer = post(served, f'{URL}:predict', {'inputs': {'image_bytes': []}})
    assert (status, answer['outputs']['probabilities'], answer['outputs']['label']) == (200, [], [])


def test_pixels(served):
    height, width, channels = served_models.PIXELS
    image = [[[10 * y + x] * channels for x in range(width)] for y in range(height)]
    status, answer = post(served, f'{URL}:predict', {'instances': [image] * 2, 'signature_name': 'serving_pixels'})
    assert status == 200
    assert answer['predictions'][0] == answer['predictions'][1]
    assert answer['predictions'][0]['valid'] is True


def test_more_rows_than_a_batch_come_back_in_their_order(served):
    images = [bytes([i]) for i in range(100)]
    status, answer = post(served, f'{URL}:predict', {'instances': [b64(image) for image in images]})
    assert status == 200
    assert [row['checksum'] for row in answer['predictions']] == list(map(served_models.checksum, images))


def test_a_signature_without_a_batch_dimension(served):
    inputs = {'x': [[1, 2, 3], [4, 5.5, 6]], 'n': 2}
    status, answer = post(served, f'{URL}:predict', {'inputs': inputs, 'signature_name': 'unbatched'})
    assert (status, answer) == (200, {'outputs': 43.0})


def test_not_a_number_is_taken_and_given_as_in_tf_serving(served):
    body = b'{"inputs": {"x": [[NaN, 0, 0], [0, 0, 0]], "n": 1}, "signature_name": "unbatched"}'
    assert request(served, 'POST', f'{URL}:predict', body)[2] == b'{"outputs": NaN}'


@pytest.mark.parametrize(('context', 'first'), [
    ({}, {'image_bytes': b64(IMAGE)}), ({'context': {'camera': 3}}, {'image_bytes': b64(IMAGE)}),
    ({'context': {'image_bytes': b64(IMAGE)}}, {})])
def test_classify(served, context, first):
    document = {'examples': [first, {'image_bytes': 'text', 'size': [1, 2]}],
                'signature_name': 'classify', **context}
    status, answer = post(served, f'{URL}:classify', document)
    assert status == 200
    assert answer['results'][0] == [['negative', pytest.approx(1 - SCORE)], ['positive', pytest.approx(SCORE)]]
    assert len(answer['results']) == 2


def test_status_and_metadata(served):
    available = {'version': '1', 'state': 'AVAILABLE', 'status': {'error_code': 'OK', 'error_message': ''}}
    assert get(served, URL) == get(served, f'{URL}/versions/1') == (200, {'model_version_status': [available]})
    for path in (f'{URL}/metadata', f'{URL}/versions/1/metadata'):
        status, answer = get(served, path)
        assert status == 200
        assert answer['model_spec'] == {'name': 'boardrec', 'signature_name': '', 'version': '1'}
        signature = answer['metadata']['signature_def']['signature_def']['serving_default']
        assert signature['inputs']['image_bytes']['dtype'] == 'DT_STRING'
        assert signature['method_name'] == 'tensorflow/serving/predict'


def test_the_version_may_be_named(served):
    status, answer = post(served, f'{URL}/versions/1:predict', {'instances': ['a']})
    assert (status, answer['predictions'][0]['version']) == (200, 1)


PREDICT = f'{URL}:predict'
ROW = {'instances': ['a']}


@pytest.mark.parametrize(('path', 'document', 'status', 'error'), [
    ('/v1/models/other:predict', ROW, 404, 'Servable not found for request: Latest(other)'),
    ('/v1/models/other/versions/3:predict', ROW, 404, 'Servable not found for request: Specific(other, 3)'),
    (f'{URL}/versions/7:predict', ROW, 404, 'Servable not found for request: Specific(boardrec, 7)'),
    (f'{URL}/versions/{2**63}:predict', ROW, 400, f'Failed to convert version: {2**63} to numeric.'),
    (f'{URL}/labels/canary:predict', ROW, 400, 'Unrecognized servable version label: canary'),
    (f'{URL}/versions/x:predict', ROW, 400, 'Malformed request: POST /v1/models/boardrec/versions/x:predict'),
    (f'{URL}:explain', ROW, 400, 'Malformed request: POST'),
    ('/v2/models/boardrec/infer', ROW, 404, 'Not Found: /v2/'),
    (PREDICT, {**ROW, 'signature_name': 'no'}, 400, 'Serving signature name: "no" not found in signature def'),
    (PREDICT, {**ROW, 'signature_name': 3}, 400, "'signature_name' key must be a string value."),
    (PREDICT, b'', 400, 'JSON Parse error: '),
    (PREDICT, b'{"instances": [', 400, 'JSON Parse error: '),
    (PREDICT, b'{"instances": ["\xff\xfe"]}', 400, 'JSON Parse error: '),
    (PREDICT, b'[' * 100_000, 400, 'JSON Parse error: '),
    (PREDICT, b'[' * 100_000 + b'NaN', 400, 'JSON Parse error: '),
    (PREDICT, [], 400, 'JSON Value: [] Is not object'),
    (PREDICT, {}, 400, "Missing 'inputs' or 'instances' key"),
    (PREDICT, {'instances': ['a'], 'inputs': ['a']}, 400, "only one of 'inputs' or 'instances'"),
    (PREDICT, {'instances': 'a'}, 400, "Excepting 'instances' to be an list/array"),
    (PREDICT, {'instances': []}, 400, "No values in 'instances' array"),
    (PREDICT, {'instances': [1]}, 400, 'JSON Value: 1 Type: Number is not of expected type: string'),
    (PREDICT, {'instances': [None]}, 400, 'Type: Null is not of expected type: string'),
    (PREDICT, {'instances': [['a'], ['b', 'c']]}, 400, 'Encountered list at unexpected size or level'),
    (PREDICT, {'instances': ['a', ['b']]}, 400, 'is not of expected type: string'),
    (PREDICT, {'instances': [['a'], ['b']]}, 400, 'input image_bytes has shape [2, 1], but signature serving_default '
                                                   'takes [-1]'),
    (PREDICT, {'instances': [{'b64': '***'}]}, 400, 'Unable to base64 decode'),
    (PREDICT, {'instances': [{'image_bytes': {'b64': 3}}]}, 400, 'not formatted correctly for base64 data'),
    (PREDICT, {'instances': [{'image': 'a'}]}, 400, "element: 0 of 'instances' list. JSON object: {'image': 'a'} keys "
                                                    'must be equal to: image_bytes'),
    (PREDICT, {'instances': [{'image_bytes': 'a'}, 'b']}, 400, "element: 1 of 'instances' list"),
    (PREDICT, {'inputs': {'image': ['a']}}, 400, "Missing named input: image_bytes in 'inputs' object."),
    (PREDICT, {'inputs': 'a'}, 400, 'input image_bytes has shape [], but signature'),
    (PREDICT, {'instances': [[[[256] * 3] * 5] * 4], 'signature_name': 'serving_pixels'}, 400,
     'JSON Value: 256 Type: Number is not of expected type: uint8'),
    (PREDICT, {'instances': [[[[1.5] * 3] * 5] * 4], 'signature_name': 'serving_pixels'}, 400,
     'JSON Value: 1.5 Type: Number is not of expected type: uint8'),
    (PREDICT, {'instances': [[[[True, 1, 1]] * 5] * 4], 'signature_name': 'serving_pixels'}, 400,
     'JSON Value: True Type: Boolean is not of expected type: uint8'),
    (PREDICT, {'instances': [[[[1] * 3] * 5] * 3], 'signature_name': 'serving_pixels'}, 400,
     'input images has shape [1, 3, 5, 3], but signature serving_pixels takes [-1, 4, 5, 3]'),
    (PREDICT, {'inputs': {'x': [[1e300] * 3] * 2, 'n': 1}, 'signature_name': 'unbatched'}, 400,
     'is not of expected type: float32'),
    (PREDICT, {'inputs': [1, 2], 'signature_name': 'unbatched'}, 400, 'inputs is a plain value/list, but expecting'),
    (PREDICT, {'instances': [1, 2], 'signature_name': 'unbatched'}, 400, 'instances is a plain list, but expecting'),
    (PREDICT, {'instances': ['1', 'no'], 'signature_name': 'strict'}, 400, 'StringToNumberOp could not correctly'),
    (f'{URL}:classify', {'examples': [{'image_bytes': 'a'}]}, 400,
     'Expected classification signature method_name to be tensorflow/serving/classify. Was: '),
    (f'{URL}:classify', {'signature_name': 'classify'}, 400, "key 'examples' is expected"),
    (f'{URL}:classify', {'signature_name': 'classify', 'examples': [3]}, 400, 'Example must be JSON object'),
    (f'{URL}:classify', {'signature_name': 'classify', 'examples': [{'a': [1, 'b']}]}, 400, 'Feature: a has element'),
    (f'{URL}:classify', {'signature_name': 'classify', 'examples': [{'a': 1}]}, 400, 'Feature: image_bytes'),
    (f'{URL}:regress', {'examples': [{'a': 1}]}, 400, 'Expected regression signature method_name to be'),
], ids=lambda value: value[:60] if isinstance(value, str) else '')
def test_a_request_that_is_wrong_is_refused_with_its_reason(served, path, document, status, error):
    answered, answer = post(served, path, document)
    assert answered == status
    assert list(answer) == ['error']
    assert error in answer['error']
    assert len(answer['error']) < 700
    assert post(served, PREDICT, ROW)[0] == 200, 'the server goes on'


@pytest.mark.parametrize(('method', 'path', 'status'), [
    ('GET', '/v1/models', 400), ('GET', PREDICT, 400), ('PUT', PREDICT, 400), ('GET', f'{URL}/versions/9', 404),
    ('GET', '/v1/models/other', 404), ('GET', f'{URL}/labels/x', 400), ('GET', f'{URL}/versions/9/metadata', 404),
    ('GET', '/favicon.ico', 404)])
def test_what_is_not_there(served, method, path, status):
    answered, _, body = request(served, method, path)
    assert answered == status
    assert json.loads(body)['error']


@pytest.mark.parametrize('host', ['attacker.example', 'attacker.example:8501', '127.0.0.1.attacker.example', '', '::2'])
def test_who_calls_the_loopback_by_another_name_is_refused(served, host):
    for method, path in (('GET', '/'), ('GET', '/model.json'), ('POST', PREDICT)):
        status, _, body = request(served, method, path, json.dumps(ROW), [('Host', host)])
        assert status == 403
        assert json.loads(body)['error'].startswith(f'Host is {host!r}, but this server is for this machine alone')


def test_names_of_the_loopback(served):
    for host in ('localhost', f'LOCALHOST:{served.ports.rest}', '127.0.0.1', '[::1]', f'[::1]:{served.ports.rest}'):
        assert request(served, 'POST', PREDICT, json.dumps(ROW), [('Host', host)])[0] == 200
    with connected(served, 'GET /healthz HTTP/1.0\r\n\r\n') as connection:
        assert connection.recv(100).startswith(b'HTTP/1.1 200 ')  # who says none is no browser


def test_only_what_is_small_is_parsed_and_written_on_the_event_loop(served, monkeypatch):
    from boardrec.serving import json_tensors, proto_tensors
    threads = []

    def noted(function):
        def call(*args, **kwargs):
            threads.append(threading.current_thread())
            return function(*args, **kwargs)
        return call

    for module, name in ((json_tensors, 'loads'), (json_tensors, 'inputs_of'), (json_tensors, 'answer'),
                         (proto_tensors, 'input_of_json'), (proto_tensors, 'classification_json')):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    small = ({'instances': ['a']}, {'examples': [{'image_bytes': 'a'}], 'signature_name': 'classify'})
    large = ({'instances': ['a' * 2000] * 100}, {**small[1], 'examples': [{'image_bytes': 'a' * 200}] * 900},
             {'instances': [''] * 6000, 'signature_name': 'embedding'})
    for document, method in zip(small, ('predict', 'classify'), strict=True):
        assert post(served, f'{URL}:{method}', document)[0] == 200
    loop, = set(threads)
    threads.clear()
    for document, method in zip(large, ('predict', 'classify', 'predict'), strict=True):
        assert post(served, f'{URL}:{method}', document)[0] == 200
    assert [thread is loop for thread in threads] == [False, False, True, False, False, True, True, True, False]


def test_an_encoded_body_is_refused(served):
    status, _, body = request(served, 'POST', PREDICT, gzip.compress(b'{}'), [('Content-Encoding', 'gzip')])
    assert status == 415
    assert 'Content-Encoding' in json.loads(body)['error']


def test_a_body_that_is_too_large_is_refused_with_or_without_its_length(served):
    large = b'x' * (16 << 20)  # more than the kernel holds, so that the client is still sending
    status, _, body = request(served, 'POST', PREDICT, large)
    assert (status, json.loads(body)) == (413, {'error': 'the body has more than --max_request_mib=1 MiB'})
    status, _, _ = request(served, 'POST', PREDICT, iter([large[:4 << 20]] * 4))  # in chunks
    assert status == 413
    head = f'POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n'
    with connected(served, head) as connection:
        answer = b''.join(iter(lambda: connection.recv(1000), b''))  # without being asked for the body
    assert answer.startswith(b'HTTP/1.1 413 ') and b'\r\nconnection: close\r\n' in answer
    head = f'POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n'
    with connected(served, head) as connection:
        assert connection.recv(100) == b'HTTP/1.1 100 Continue\r\n\r\n'
        connection.sendall(b'%x\r\n%b\r\n0\r\n\r\n' % (len(large), large))
        assert connection.recv(100).startswith(b'HTTP/1.1 413 ')
    assert post(served, PREDICT, ROW)[0] == 200


@pytest.mark.parametrize(('path', 'headers', 'status'), [
    ('/v1/models/boardrec:explain', {}, 400), ('/elsewhere', {}, 404), ('/healthz', {}, 404), (PREDICT, {}, 413),
    (PREDICT, {'Content-Encoding': 'gzip'}, 415)])
def test_an_answer_arrives_though_its_request_is_not_wanted_and_the_connection_goes_on(served, path, headers, status):
    connection = http.client.HTTPConnection('127.0.0.1', served.ports.rest, timeout=20)
    connection.connect()
    taken = connection.sock
    connection.request('POST', path, bytes(16 << 20), headers)
    response = connection.getresponse()
    assert (response.status, response.headers['Connection']) == (status, None)
    response.read()
    connection.request('POST', PREDICT, json.dumps(ROW))
    assert connection.getresponse().status == 200
    assert connection.sock is taken
    connection.close()


def connected(served, text=''):
    connection = socket.create_connection(('127.0.0.1', served.ports.rest), timeout=20)
    connection.sendall(text.encode())
    return connection


def test_slow_clients_are_given_up_and_others_are_served_meanwhile(served, monkeypatch):
    from boardrec.serving import http_protocol
    monkeypatch.setattr(http_protocol, 'HEADER_SECONDS', 0.5)
    head = f'POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\n'
    half = f'{head}Content-Length: 10\r\n\r\n{{'
    with connected(served) as nothing, connected(served, head) as no_headers, connected(served, half) as no_body:
        assert post(served, PREDICT, ROW)[0] == 200
        assert nothing.recv(100) == no_headers.recv(100) == b''
        start = time.monotonic()
        answer = b''.join(iter(lambda: no_body.recv(1000), b''))
    assert answer.startswith(b'HTTP/1.1 408 ')
    assert b'the body did not arrive within 3 s' in answer
    assert time.monotonic() - start < 10


def test_endless_headers_and_no_http_at_all(served):
    with connected(served, 'GET / HTTP/1.1\r\n') as connection, pytest.raises(OSError):
        for _ in range(2000):
            connection.sendall(b'X-Endless: ' + b'x' * 1000 + b'\r\n')
            time.sleep(0.0005)
    with connected(served, '\x16\x03\x01\x02\x00 hello\r\n\r\n') as connection:
        assert connection.recv(100).startswith(b'HTTP/1.1 400 ')
    with connected(served, f'POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{'):
        pass  # gone before the body is there
    assert post(served, PREDICT, ROW)[0] == 200


def test_health_readiness_and_metrics(served):
    post(served, PREDICT, ROW)
    assert request(served, 'GET', '/healthz')[0] == request(served, 'GET', '/readyz')[0] == 200
    status, headers, body = request(served, 'GET', '/monitoring/prometheus/metrics')
    assert status == 200
    assert headers['Content-Type'].startswith('text/plain')
    for line in ('boardrec_requests_total{api="rest",code="OK",method="predict"} ', 'boardrec_queued_rows 0.0\n',
                 'boardrec_served_version{version="1"} 1.0\n', 'boardrec_batch_rows_count{signature="serving_default"}',
                 'boardrec_request_seconds_bucket{api="rest",le="0.005",method="predict"}'):
        assert line in body.decode()
