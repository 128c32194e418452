"""Other people's clients against boardrec.serve: curl, ovmsclient, Node's grpc-js; and memory over many mistakes."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import venv

import numpy as np
import psutil
import pytest
import served_models
import servers

IMAGE = b'an image \x00\xff'
NODE_CLIENT = '''
const grpc = require('@grpc/grpc-js'), loader = require('@grpc/proto-loader');
const [address, proto, image] = process.argv.slice(2);
const root = grpc.loadPackageDefinition(loader.loadSync(proto, {longs: Number, keepCase: true}));
const client = new root.tensorflow.serving.PredictionService(address, grpc.credentials.createInsecure());
const request = {model_spec: {name: 'boardrec'}, inputs: {image_bytes: {
  dtype: 7, tensor_shape: {dim: [{size: 1}]}, string_val: [Buffer.from(image, 'base64')]}}};
client.Predict(request, (error, answer) => {
  if (error) throw error;
  console.log(JSON.stringify({checksum: answer.outputs.checksum.int64_val, score: answer.outputs.score.float_val,
                              label: answer.outputs.label.string_val.map((one) => one.toString())}));
  client.close();
});
'''
# What the call needs of tensorflow_serving/apis/{predict,model,prediction_service}.proto and tensor.proto.
PROTO = '''
syntax = "proto3";
package tensorflow.serving;
message Dim { int64 size = 1; }
message Shape { repeated Dim dim = 2; }
message TensorProto {
  int32 dtype = 1; Shape tensor_shape = 2; repeated float float_val = 5; repeated bytes string_val = 8;
  repeated int64 int64_val = 10; }
message ModelSpec { string name = 1; string signature_name = 3; }
message PredictRequest { ModelSpec model_spec = 1; map<string, TensorProto> inputs = 2; }
message PredictResponse { map<string, TensorProto> outputs = 1; }
service PredictionService { rpc Predict(PredictRequest) returns (PredictResponse); }
'''


def run(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def require_program(name):
    if not shutil.which(name):
        assert not os.environ.get('CI'), f'{name} is not installed'
        pytest.skip(f'needs {name}')


@pytest.mark.long
def test_curl(served, tmp_path):
    require_program('curl')
    body = tmp_path / 'body.json'
    body.write_text('{"instances": [{"b64": "YQ=="}]}')
    answer = json.loads(run('curl', '--silent', '--noproxy', '*', '--fail', '--data', f'@{body}',
                            f'{served.rest}/v1/models/boardrec:predict'))
    assert answer['predictions'][0]['checksum'] == served_models.checksum(b'a')
    body.write_bytes(b'x' * (3 << 20))
    said = run('curl', '--silent', '--noproxy', '*', '--data-binary', f'@{body}', '--write-out', '%{http_code}',
               f'{served.rest}/v1/models/boardrec:predict')
    assert said.endswith('413')


@pytest.mark.long
def test_ovmsclient(served, tmp_path):
    """In an environment of its own: it wants an older protobuf."""
    venv.create(tmp_path / 'env', with_pip=True)
    python = str(tmp_path / 'env' / 'bin' / 'python')
    run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', 'ovmsclient', 'setuptools<80')
    code = f'''if True:
        import ovmsclient
        client = ovmsclient.make_grpc_client({served.grpc!r})
        status = client.get_model_status(model_name='boardrec')
        assert status[1]['state'] == 'AVAILABLE', status
        metadata = client.get_model_metadata(model_name='boardrec')
        assert metadata['inputs']['image_bytes']['dtype'] == 'DT_STRING', metadata
        answer = client.predict(inputs={{'image_bytes': [{IMAGE!r}]}}, model_name='boardrec')
        print(int(answer['checksum'][0]))
        try:
            client.predict(inputs={{'image_bytes': [b'a']}}, model_name='other')
        except ovmsclient.tfs_compat.base.errors.ModelNotFoundError:
            print('refused')
    '''
    environment = {**os.environ, 'PYTHONPATH': '', 'PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION': 'python'}
    assert run(python, '-c', code, env=environment).split() == [str(served_models.checksum(IMAGE)), 'refused']


@pytest.mark.long
def test_nodes_grpc_js(served, tmp_path):
    import base64
    require_program('npm')
    run('npm', 'install', '--silent', '--no-audit', '--no-fund', '--prefix', str(tmp_path), '@grpc/grpc-js@1',
        '@grpc/proto-loader@0')
    (tmp_path / 'client.js').write_text(NODE_CLIENT)
    (tmp_path / 'service.proto').write_text(PROTO)
    environment = {name: value for name, value in os.environ.items() if 'proxy' not in name.lower()}
    answer = json.loads(run('node', str(tmp_path / 'client.js'), served.grpc, str(tmp_path / 'service.proto'),
                            base64.b64encode(IMAGE).decode(), env=environment))
    score = served_models.checksum(IMAGE) / served_models.BUCKETS
    assert answer['checksum'] == [served_models.checksum(IMAGE)]
    assert answer['score'] == [pytest.approx(score)]
    assert answer['label'] == [served_models.CLASS_NAMES[score >= 0.5]]


@pytest.mark.long
def test_memory_stays_flat_over_mistakes_and_versions(tmp_path, saved_versions):
    """In a process of its own, whose memory is its own."""
    servers.require_serving()
    import http.client
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    servers.publish(saved_versions / '1', folder / '1')
    command = [sys.executable, '-m', 'boardrec.serve', f'--model_dir={folder}', '--rest_port=0', '--grpc_port=0',
               '--max_request_mib=4', '--poll_seconds=0.05']
    root = str(pathlib.Path(__file__).parents[2])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': root}) as server:
        try:
            port = int(server.stdout.readline().split(':')[2].split('/')[0])
            server.stdout.readline()
            connection, sizes, seeded = http.client.HTTPConnection('127.0.0.1', port), [], random.Random(0)
            for number in range(6000):
                connection.request('POST', '/v1/models/boardrec:predict', mistake(seeded))
                response = connection.getresponse()
                response.read()
                assert response.status in (200, 400, 413)
                if number % 1000 == 0:
                    version = 2 + number // 1000
                    servers.publish(saved_versions / '2', folder / str(version))
                    assert server.stdout.readline().startswith(f'boardrec version {version} is served')
                    assert server.stdout.readline().startswith(f'boardrec version {version - 1} is no longer')
                if number % 1000 == 999:
                    sizes.append(psutil.Process(server.pid).memory_info().rss / 2**20)
            connection.close()
        finally:
            server.terminate()
    assert sizes[-1] - sizes[1] < 40, sizes


def mistake(seeded):
    """A body that is wrong in one of several ways, or none."""
    good = json.dumps({'instances': [{'b64': 'YQ=='}] * seeded.randrange(1, 20)}).encode()
    cut = good[:seeded.randrange(len(good))]
    flipped = bytearray(good)
    flipped[seeded.randrange(len(good))] ^= 1 << seeded.randrange(8)
    noise = np.random.default_rng(seeded.randrange(1000)).bytes(seeded.randrange(1, 100_000))
    return seeded.choice([good, cut, bytes(flipped), noise, b'[' * 5000, b'x' * (5 << 20) if seeded.random() < 0.05
                          else b'{}', json.dumps({'inputs': [[1] * 1000]}).encode()])
