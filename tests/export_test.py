"""The command: what a version holds, the same again, other settings, half-size weights, removal of old versions."""

import base64
import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from boardrec import cli, evaluate, export
from boardrec.config import EvaluateConfig, ExportConfig, UserError
from boardrec.data import files
from boardrec.serving import publish, self_test, warmup_requests
from boardrec.training import inference, run_dir


def metadata(folder):
    return json.loads((folder / 'metadata.json').read_text())


def test_what_a_version_holds(exported, predictor):
    found = {path.relative_to(exported).as_posix() for path in exported.rglob('*') if path.is_file()}
    assert found == {'metadata.json', 'saved_model.pb', 'fingerprint.pb', 'batching_params.pbtxt', 'assets/labels.txt',
                     'assets.extra/tf_serving_warmup_requests', 'variables/variables.index',
                     'variables/variables.data-00000-of-00001'}
    assert (exported / 'assets/labels.txt').read_text() == 'negative\npositive\n'
    facts = metadata(exported)
    assert set(facts['files']) == found - {'metadata.json'}
    for name, entry in facts['files'].items():
        assert entry == {'bytes': (exported / name).stat().st_size, 'sha256': files.sha256_of(exported / name)}
    assert publish.damage(exported) == ''
    assert facts['class_names'] == ['negative', 'positive'] and facts['threshold'] == 0.5
    assert facts['input_limits'] == {'max_bytes': 512 << 20, 'max_pixels': 100_000_000, 'max_side': 65500,
                                     'max_side_ratio': 200.0}
    assert facts['settings']['image_size'] == '32x32' and facts['metrics'] == {}
    assert facts['weights_sha256'] == predictor.facts['weights_sha256']
    names = [name for name, _ in tf.train.list_variables(str(exported / 'variables' / 'variables'))]
    weights = [name for name in names if name != '_CHECKPOINTABLE_OBJECT_GRAPH']
    assert len(weights) == len(predictor.model.variables), 'each variable once, and no optimizer'


def test_golden_requests_have_the_answers_of_the_run(exported, session):
    golden = metadata(exported)['golden']
    answer = session.images([base64.b64decode(one['image_bytes']['b64']) for one in golden])
    assert [one['error_code'] for one in golden] == ['', 'empty', 'not_an_image', '', '', '', 'truncated']
    np.testing.assert_allclose(answer['probabilities'], [one['probabilities'] for one in golden], atol=1e-6)
    assert [label.decode() for label in answer['label']] == [one['label'] for one in golden]


def test_warm_up_requests_for_each_signature_and_batch_size(exported):
    requests = [(name, *(len(values) for values in inputs.values())) for name, inputs in warmup_requests.read(exported)]
    assert requests == [(name, size) for name in ('serving_default', 'serving_pixels', 'classify', 'embedding')
                        for size in self_test.BATCH_SIZES]
    assert (exported / warmup_requests.FILE).stat().st_size < 1 << 20
    batching = (exported / 'batching_params.pbtxt').read_text()
    assert f'max_batch_size {{ value: {self_test.BATCH_SIZES[-1]} }}' in batching


def test_tensorflow_servings_own_messages_read_them(exported):
    log = pytest.importorskip('tensorflow_serving.apis.prediction_log_pb2')
    path = str(exported / warmup_requests.FILE)
    logs = [log.PredictionLog.FromString(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
    sizes = len(self_test.BATCH_SIZES)
    assert [one.WhichOneof('log_type') for one in logs] == (
        ['predict_log'] * 2 * sizes + ['classify_log'] * sizes + ['predict_log'] * sizes)
    pixels = logs[sizes + 1].predict_log.request
    assert pixels.model_spec.signature_name == 'serving_pixels'
    assert tf.make_ndarray(pixels.inputs['images']).shape == (self_test.BATCH_SIZES[1], 32, 32, 3)
    classified = logs[2 * sizes].classify_log.request
    assert 'image_bytes' in classified.input.example_list.examples[0].features.feature
    for one in logs:
        size = one.ByteSize()
        one.DiscardUnknownFields()
        assert one.ByteSize() == size


def test_the_same_again_is_no_other_version(exported, small_run, capsys):
    export.main(ExportConfig(run_dir=str(small_run), export_dir=str(exported.parent)))
    assert f'{exported}: this run is exported already' in capsys.readouterr().out
    assert publish.versions(exported.parent) == [1]


@pytest.fixture(scope='module')
def halved(small_run, exported, tmp_path_factory):
    """A copy of the run, evaluated, exported with bfloat16 weights in place of an earlier version: (run, version)."""
    folder = tmp_path_factory.mktemp('halved')
    shutil.copytree(small_run, folder / 'run')
    config = dataclasses.replace(run_dir.read_config(folder / 'run'), run_dir=str(folder / 'run'))
    (folder / 'run' / 'run.flags').write_text(cli.to_flagfile(config))
    evaluate.main(EvaluateConfig(run_dir=str(folder / 'run')))
    shutil.copytree(exported.parent, folder / 'models')
    export.main(ExportConfig(run_dir=str(folder / 'run'), export_dir=str(folder / 'models'), weights_dtype='bfloat16',
                             keep=1))
    return folder / 'run', folder / 'models' / '2'


def test_bfloat16_weights_take_half_and_decide_alike(halved, exported, session, source_images):
    run, version = halved
    assert publish.versions(version.parent) == [2] and publish.damage(version) == ''
    facts = metadata(version)
    assert facts['weights_dtype'] == 'bfloat16' and facts['compared_with_run']['split'] == 'test'
    assert 0 < facts['compared_with_run']['max_difference'] < 0.02
    assert list(facts['metrics']) == ['test'] and facts['metrics']['test']['records'] > 0
    variables = dict(tf.train.list_variables(str(version / 'variables' / 'variables')))
    before = dict(tf.train.list_variables(str(exported / 'variables' / 'variables')))
    assert sorted(map(tuple, variables.values())) == sorted(map(tuple, before.values()))
    reader = tf.train.load_checkpoint(str(version / 'variables' / 'variables'))
    types = {name: reader.get_variable_to_dtype_map()[name] for name, shape in variables.items() if len(shape) >= 2}
    assert set(types.values()) == {tf.bfloat16}
    data = [path.read_bytes() for path in sorted(source_images.glob('*/*'))[::10]]
    loaded = tf.saved_model.load(str(version))
    rounded = loaded.signatures['serving_default'](image_bytes=tf.constant(data))
    difference = np.abs(session.images(data)['probabilities'] - rounded['probabilities']).max()
    assert 0 < difference < 0.02


def test_bfloat16_weights_that_change_too_much_are_refused(halved, tmp_path, monkeypatch):
    monkeypatch.setattr(export, '_LARGEST_DIFFERENCE', 1e-9)
    with pytest.raises(UserError, match='--weights_dtype=bfloat16: on .* leave it out'):
        export.main(ExportConfig(run_dir=str(halved[0]), export_dir=str(tmp_path), weights_dtype='bfloat16'))
    assert not list(tmp_path.iterdir())


def test_without_the_records_bfloat16_weights_are_not_compared(halved, tmp_path, monkeypatch, capsys):
    predictor = inference.load(halved[0])
    config = dataclasses.replace(predictor.config, records=str(tmp_path / 'gone'))
    wanted = ExportConfig(run_dir='RUN', export_dir='MODELS', weights_dtype='bfloat16', serving_precision='bfloat16')
    served, comparison = export._narrowed(wanted, predictor._replace(config=config))
    assert comparison is None and served.model.compute_dtype != predictor.model.compute_dtype
    said = capsys.readouterr().out
    assert 'not there, so --weights_dtype=bfloat16 --serving_precision=bfloat16 is not compared with the run' in said


def test_bfloat16_arithmetic_is_served_in_the_graph(halved, tmp_path, monkeypatch):
    monkeypatch.setattr(export, '_LARGEST_DIFFERENCE', 0.1)  # of a network that is hardly trained
    export.main(ExportConfig(run_dir=str(halved[0]), export_dir=str(tmp_path), serving_precision='bfloat16'))
    facts = metadata(tmp_path / '1')
    assert facts['inference_precision'] == 'bfloat16' and facts['weights_dtype'] == 'float32'
    assert facts['compared_with_run']['max_difference'] > 0
    graph = tf.saved_model.load(str(tmp_path / '1')).signatures['serving_pixels'].graph
    functions = [graph, *(graph._get_function(name).graph for name in graph._functions)]
    kinds = {op.get_attr('T') for one in functions for op in one.get_operations() if op.type == 'Conv2D'}
    assert kinds == {tf.bfloat16}
