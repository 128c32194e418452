"""The server as a whole: load with versions that change, bounded queues, broken versions, warm-up, shutdown."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import http.client
import json
import random
import shutil
import threading
import time
import types

import grpc
import numpy as np
import pytest
import served_models
import servers
import tensorflow as tf

from boardrec.config import ServeConfig, UserError

URL = '/v1/models/boardrec'
CLIENTS = 64


def ask(connection, image):
    """Status and document of the answer for one image."""
    body = json.dumps({'inputs': {'image_bytes': [image]}})
    connection.request('POST', f'{URL}:predict', body)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def rest(found):
    return http.client.HTTPConnection('127.0.0.1', found.ports.rest, timeout=60)


def one_answer(found, path=f'{URL}:predict'):
    connection = rest(found)
    connection.request('POST', path, '{"instances": ["x"]}')
    response = connection.getresponse()
    document = json.loads(response.read())
    connection.close()
    return response.status, document


def version_of(found):
    status, document = one_answer(found)
    return document['predictions'][0]['version'] if status == 200 else None


def predict(channel, image):
    """The outputs for one image."""
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    request = predict_pb2.PredictRequest()
    request.model_spec.name = 'boardrec'
    request.inputs['image_bytes'].CopyFrom(tf.make_tensor_proto(np.array([image], object)))
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60).outputs


def one_call(found):
    """The version that answers one call."""
    with grpc.insecure_channel(found.grpc) as channel:
        return predict(channel, b'x')['version'].int64_val[0]


class Client:
    """Asks about images of its own until told to stop; `wrong` are answers that are not its image's."""

    def __init__(self, found, number):
        self.found, self.number = found, number
        self.answers, self.refused, self.wrong, self.versions = 0, 0, [], []

    def run(self, end):
        (self.run_grpc if self.number % 4 == 0 else self.run_rest)(end)
        return self

    def run_rest(self, end):
        connection = rest(self.found)
        while not end.is_set():
            image = f'{self.number}/{self.answers}/{random.random()}'
            status, document = ask(connection, image)
            if status == 429:
                self.refused += 1
                connection.close()
            elif status == 200:
                self.note(image.encode(), document['outputs']['checksum'][0], document['outputs']['version'][0])
            else:
                self.wrong.append((status, document))
        connection.close()

    def run_grpc(self, end):
        with grpc.insecure_channel(self.found.grpc) as channel:
            while not end.is_set():
                image = f'{self.number}/{self.answers}/{random.random()}'.encode()
                try:
                    outputs = predict(channel, image)
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                        self.wrong.append(error.details())
                    self.refused += 1
                    continue
                self.note(image, outputs['checksum'].int64_val[0], outputs['version'].int64_val[0])

    def note(self, image, checksum, version):
        self.answers += 1
        self.versions.append(version)
        if checksum != served_models.checksum(image):
            self.wrong.append((image, checksum))


def load(found, seconds, during=lambda: None):
    """64 clients for some seconds, while `during` runs; the clients."""
    end = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        futures = [pool.submit(Client(found, number).run, end) for number in range(CLIENTS)]
        start = time.monotonic()
        try:
            during()
            time.sleep(max(0.0, seconds - (time.monotonic() - start)))
        finally:
            end.set()
        return [future.result(60) for future in futures]


def test_64_clients_get_their_own_answers_while_versions_change(model_dir, saved_versions):
    def swap():
        for version, source in (('5', 2), ('6', 1), ('7', 2)):
            time.sleep(0.3)
            servers.publish(saved_versions / str(source), model_dir / version)
            servers.wait_until(lambda told=source: version_of(found) == told)

    with servers.running(model_dir, batch_wait_ms=2.0) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        clients = load(found, 1.5, swap)
    assert [client.wrong for client in clients] == [[]] * CLIENTS
    assert min(client.answers for client in clients) > 0
    assert sum(client.refused for client in clients) == 0
    changes = {tuple(version for version, before in zip(client.versions, [0, *client.versions], strict=False)
                     if version != before) for client in clients}
    assert max(map(len, changes)) >= 3, 'the load met several versions'


def test_what_waits_is_bounded_and_the_rest_refused(saved_versions, tmp_path):
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    served_models.save(folder, 1, seconds=0.05)
    with servers.running(folder, max_batch_size=4, max_queued=8, batches_in_flight=1) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        clients = load(found, 1.0)
        assert version_of(found) == 1
    assert [client.wrong for client in clients] == [[]] * CLIENTS
    assert sum(client.refused for client in clients if client.number % 4) > 0
    assert sum(client.refused for client in clients if client.number % 4 == 0) > 0
    assert sum(client.answers for client in clients) > 0


def test_a_batch_of_many_clients_and_its_measure(saved_versions, tmp_path):
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    served_models.save(folder, 1, seconds=0.1)
    with servers.running(folder) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(lambda _: one_answer(found)[0], range(16)))
        assert batches(found) < 10, '16 requests at once share batches'
    assert statuses == [200] * 16


def metrics(found):
    connection = rest(found)
    connection.request('GET', '/monitoring/prometheus/metrics')
    page = connection.getresponse().read().decode()
    connection.close()
    return page


def batches(found):
    """How many have run."""
    return float(metrics(found).partition('boardrec_batch_rows_count{signature="serving_default"} ')[2].split('\n')[0])


def test_what_a_client_that_has_gone_asked_for_does_not_run(tmp_path):
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    served_models.save(folder, 1, seconds=0.1)
    with servers.running(folder, max_batch_size=1, batches_in_flight=1) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        connection = rest(found)
        connection.request('POST', f'{URL}:predict', json.dumps({'instances': ['x'] * 100}))
        servers.wait_until(lambda: 'boardrec_queued_rows 0.0' not in metrics(found))
        connection.close()
        servers.wait_until(lambda: 'api="rest",code="CANCELLED",method="predict"' in metrics(found))
        assert version_of(found) == 1
        assert batches(found) < 50


def test_a_request_that_takes_too_long_is_given_up(tmp_path):
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    served_models.save(folder, 1, seconds=0.6)
    with servers.running(folder, request_seconds=0.2) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        assert one_answer(found) == (504, {'error': 'no answer within --request_seconds=0.2'})


def test_versions_come_break_and_go(model_dir, saved_versions):
    shutil.rmtree(model_dir / '1')
    with servers.running(model_dir) as found:
        assert not servers.is_ready(found)
        assert one_answer(found) == (404, {'error': 'Servable not found for request: Latest(boardrec)'})
        servers.publish(saved_versions / '1', model_dir / '1')
        servers.wait_until(lambda: version_of(found) == 1)
        assert servers.is_ready(found)
        torn = model_dir / '.tmp-torn'
        shutil.copytree(saved_versions / '2', torn)
        (torn / 'saved_model.pb').write_bytes((torn / 'saved_model.pb').read_bytes()[:5000])
        torn.rename(model_dir / '2')
        servers.wait_until(lambda: 'END' in status(found))
        assert status(found)['END']['version'] == '2'
        assert status(found)['END']['status']['error_code'] != 'OK'
        assert version_of(found) == 1
        servers.publish(saved_versions / '2', model_dir / '3')
        servers.wait_until(lambda: version_of(found) == 2)
        assert one_answer(found, f'{URL}/versions/1:predict')[0] == 404


def status(found):
    connection = rest(found)
    connection.request('GET', URL)
    document = json.loads(connection.getresponse().read())
    connection.close()
    return {one['state']: one for one in document.get('model_version_status', ())}


def test_a_grpc_port_that_another_server_took_meanwhile(served, tmp_path):
    from boardrec.serving import ports, server
    taken = served.ports.grpc
    config = ServeConfig(model_dir=str(tmp_path), rest_port=0, grpc_port=0)
    with ports.bound(config) as listener, pytest.raises(UserError, match=f'--grpc_port={taken}: another program'):
        asyncio.run(server.run(dataclasses.replace(config, grpc_port=taken), listener, asyncio.Event()))


def test_labels_serve_two_versions(model_dir, saved_versions):
    servers.publish(saved_versions / '2', model_dir / '2')
    with servers.running(model_dir, version_labels='stable:1,canary:2', model_name='boards') as found:
        servers.wait_until(lambda: one_answer(found, '/v1/models/boards/labels/canary:predict')[0] == 200)
        for label, version in (('stable', 1), ('canary', 2)):
            document = one_answer(found, f'/v1/models/boards/labels/{label}:predict')[1]
            assert document['predictions'][0]['version'] == version


@pytest.mark.parametrize('good', [True, False])
def test_warm_up_requests_run_before_a_version_is_served(model_dir, saved_versions, good, capsys):
    servers.require_serving()
    from tensorflow_serving.apis import prediction_log_pb2
    predict, classify = prediction_log_pb2.PredictionLog(), prediction_log_pb2.PredictionLog()
    request = predict.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = 'boardrec', 'serving_default'
    images = np.array([b'a'], object) if good else np.array([1.0])
    request.inputs['image_bytes'].CopyFrom(tf.make_tensor_proto(images))
    request = classify.classify_log.request
    request.model_spec.signature_name = 'classify'
    example = request.input.example_list.examples.add()
    example.features.feature['image_bytes'].bytes_list.value.append(b'a')
    shutil.copytree(saved_versions / '2', model_dir / '.tmp-2')
    (model_dir / '.tmp-2' / 'assets.extra').mkdir()
    with tf.io.TFRecordWriter(str(model_dir / '.tmp-2' / 'assets.extra' / 'tf_serving_warmup_requests')) as writer:
        writer.write(predict.SerializeToString())
        predict.predict_log.request.inputs['image_bytes'].CopyFrom(tf.make_tensor_proto([[1]]))
        writer.write(predict.SerializeToString())  # of a signature that has answered: it is not asked
        writer.write(classify.SerializeToString())
    (model_dir / '.tmp-2').rename(model_dir / '2')
    with servers.running(model_dir) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        assert version_of(found) == (2 if good else 1)
    assert ('input image_bytes is float64' in capsys.readouterr().out) is not good


def test_watchers_of_health_hear_of_the_end_and_do_not_hold_it_up(model_dir):
    servers.require_serving()
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    with servers.running(model_dir, drain_seconds=3600) as found, grpc.insecure_channel(found.grpc) as channel:
        servers.wait_until(lambda: servers.is_ready(found))
        watch, unknown = (health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
                          for service in ('', 'other'))
        status = health_pb2.HealthCheckResponse
        assert next(one.status for one in watch if one.status != status.NOT_SERVING) == status.SERVING
        assert next(unknown).status == status.SERVICE_UNKNOWN
        found.stop()
        assert [one.status for one in watch] == [status.NOT_SERVING]
        assert list(unknown) == []


def test_a_batch_that_does_not_end_is_given_up(monkeypatch, capsys):
    servers.require_serving()
    from boardrec.serving import server
    monkeypatch.setattr(server, '_CLOSE_SECONDS', 0.0)
    done, calls = threading.Event(), []
    served = types.SimpleNamespace(stop=lambda: calls.append('stop'), close=lambda: calls.append('close'))
    server._close(served, threading.Thread(), types.SimpleNamespace(close=done.wait), end=0.0)
    done.set()
    assert calls == ['stop'], 'what runs still needs its version'
    assert 'has not ended within --drain_seconds' in capsys.readouterr().err
    server._close(served, threading.Thread(), types.SimpleNamespace(close=done.wait), end=time.monotonic() + 20)
    assert calls == ['stop', 'stop', 'close']


def test_shutdown_answers_what_is_under_way_and_takes_no_more(tmp_path):
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    served_models.save(folder, 1, seconds=0.5)
    with servers.running(folder) as found:
        servers.wait_until(lambda: servers.is_ready(found))
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(one_answer, found) for _ in range(4)]
            calls = [pool.submit(one_call, found) for _ in range(4)]
            time.sleep(0.25)
            found.stop()
            assert [answer.result(30)[0] for answer in answers] == [200] * 4
            assert [call.result(30) for call in calls] == [1] * 4
        found.join(20)
        with pytest.raises(OSError):
            one_answer(found)
