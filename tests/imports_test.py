"""Imports point one way, importing does nothing, and the light modules leave TensorFlow out."""

import ast
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('boardrec/**/*.py'))
TOOLS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('tools/*.py'))

# What each part may import of ours: a name allows what lies below it, '' is boardrec/__init__.py (the version) alone.
BASE = {'architectures', 'config', 'progress'}
ALLOWED = {
    '': set(),
    'architectures': set(),
    'config': {'architectures'},
    'progress': set(),
    'cli': {'config'},
    'data': BASE | {'data'},
    'training': BASE | {'', 'cli', 'data', 'training'},
    'reporting': {'architectures', 'config', 'data', 'reporting'},
    'serving': BASE | {'', 'cli', 'data', 'training', 'serving'},
}
COMMANDS = {'train', 'evaluate', 'predict', 'export', 'serve'}
ALL = BASE | {'', 'cli', 'data', 'training', 'reporting', 'serving'}

HEAVY = ['apache_beam', 'tensorflow', 'keras', 'tensorflow_datasets', 'sklearn', 'matplotlib']
# Without these: a command refuses a mistake at once, and the converter's parent stays small.
LIGHT = ['boardrec.architectures', 'boardrec.cli', 'boardrec.config', 'boardrec.progress', 'boardrec.data.files',
         'boardrec.data.records',
         'boardrec.data.tfrecord', 'boardrec.data.order', 'boardrec.data.scan', 'boardrec.data.journal',
         'boardrec.data.workers',
         'boardrec.data.shards', 'boardrec.data.commit', 'boardrec.data.earlier', 'boardrec.data.convert',
         'boardrec.data.storage_report',
         'boardrec.data.perceptual', 'boardrec.data.duplicates', 'boardrec.data.leaks', 'boardrec.data.framing',
         'boardrec.data.audit', 'boardrec.data.salvage', 'boardrec.data.tfds_source', 'boardrec.data.beam_runner',
         'boardrec.data.remote', 'boardrec.data.transfer', 'boardrec.data.mirror', 'boardrec.data.source_file',
         'boardrec.data.image_paths', 'boardrec.reporting.prediction_file', 'boardrec.serving.saved_model',
         'boardrec.serving.versions', 'boardrec.serving.ports', 'boardrec.serve',
         'boardrec.train', 'boardrec.evaluate', 'boardrec.predict', 'boardrec.export',
         'boardrec.training.feature_store', 'tools/make_records.py', 'tools/inspect_features.py',
         'tools/predict_client.py']


def imported(path):
    """The dotted names that a file imports, wherever in it; of `from a import b`, a.b."""
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative imports hide where they lead'
            assert all(alias.name != '*' for alias in node.names), f'{path}: import names, not everything'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def part(dotted):
    """The part that a dotted name belongs to: 'data' for boardrec.data.files, '' for boardrec's own names."""
    name = dotted.split('.')[1] if '.' in dotted else ''
    return name if name in ALLOWED or name in COMMANDS else ''


def own(path):
    """The parts of boardrec that a file imports."""
    return {part(name) for name in imported(path) if name.split('.')[0] == 'boardrec'}


def part_of_file(path):
    return part(path.removesuffix('.py').removesuffix('/__init__').replace('/', '.'))


@pytest.mark.parametrize('path', MODULES)
def test_imports_point_one_way(path):
    name = part_of_file(path)
    allowed = ALL if name in COMMANDS else ALLOWED[name]
    assert own(path) <= allowed, f'{path} may import {sorted(allowed)} only: see "Architecture" in BUILD.md'


def test_each_module_belongs_to_a_part():
    parts = {path: path.split('/')[1].removesuffix('.py') for path in MODULES if path != 'boardrec/__init__.py'}
    assert {path for path, name in parts.items() if name not in ALLOWED and name not in COMMANDS} == set()


@pytest.mark.parametrize('path', TOOLS)
def test_no_tool_imports_a_command(path):
    assert own(path) <= ALL


def test_the_check_sees_an_import_inside_a_function(tmp_path, monkeypatch):
    (tmp_path / 'a.py').write_text('def f():\n    from boardrec.data import files\n    import boardrec.training.fit\n')
    monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
    assert own('a.py') == {'data', 'training'}


@pytest.mark.parametrize('path', MODULES + TOOLS)
def test_only_cli_imports_absls_flags(path):
    absl = {name for name in imported(path) if name.split('.')[0] == 'absl'}
    assert absl <= ({'absl.flags'} if path == 'boardrec/cli.py' else set())


def test_only_images_and_tfrecord_know_the_formats():
    """images.py, and for files as they are source_decode.py, know how an image becomes a tensor, tfrecord.py what lies
    in a shard, warmup_requests.py what TF Serving reads.
    """
    decoders = {'decode_jpeg', 'decode_png', 'decode_image', 'decode_and_crop_jpeg', 'decode_bmp', 'decode_gif'}
    formats = {'TFRecordWriter', 'parse_single_example', 'parse_example', 'TFRecordDatasetV2', 'Example'}
    for path in MODULES:
        tree = ast.parse((ROOT / path).read_bytes())
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if path not in ('boardrec/data/images.py', 'boardrec/data/source_decode.py'):
            assert not attributes & decoders, path
        if path not in ('boardrec/data/tfrecord.py', 'boardrec/data/shards.py', 'boardrec/data/tfds_source.py',
                        'boardrec/serving/warmup_requests.py'):
            assert not attributes & (formats - {'parse_example'}), path


RUNS_FOREIGN_CODE = {'load_model', 'model_from_json', 'model_from_config', 'Lambda', 'enable_unsafe_deserialization',
                     'pickle', 'cloudpickle', 'dill', 'joblib', 'eval', 'exec', 'marshal', 'shelve'}


def names_used(path):
    """The names, attributes and imports in a file, and allow_pickle where it is not False."""
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.keyword) and node.arg == 'allow_pickle' and ast.unparse(node.value) != 'False':
            yield 'allow_pickle'
    yield from (part for dotted in imported(path) for part in dotted.split('.'))


@pytest.mark.parametrize('path', MODULES + TOOLS)
def test_nobody_elses_code_runs(path):
    assert not set(names_used(path)) & (RUNS_FOREIGN_CODE | {'allow_pickle'})


def run(code, *args, cwd=None):
    """Runs code with `args` (as JSON in `given`) in a fresh Python; returns what it prints, read as JSON."""
    code = f'import json, sys; given = json.loads(sys.argv[1])\n{code}'
    done = subprocess.run([sys.executable, '-c', code, json.dumps(args)], capture_output=True, text=True, cwd=cwd,
                          check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOAD = '''
import importlib, importlib.util, os
sys.path.insert(0, given[0] + '/tools')

def load(name):
    if not name.endswith('.py'):
        return importlib.import_module(name)
    name = os.path.basename(name)[:-3]
    return importlib.import_module(name)
'''


def test_the_light_modules_leave_tensorflow_out():
    heavy = run(LOAD + '''
result = {}
for name in given[1]:
    load(name)
    result[name] = [heavy for heavy in given[2] if heavy in sys.modules]
print(json.dumps(result))''', str(ROOT), LIGHT, HEAVY)
    assert heavy == {name: [] for name in LIGHT}


def test_importing_has_no_side_effects(tmp_path):
    """No flag is defined; environment, signals, threads, filters of warnings, seeds and folder stay as they are."""
    names = [path.removesuffix('.py').removesuffix('/__init__').replace('/', '.') for path in MODULES
             if path != 'boardrec/data/beam_pipeline.py']  # needs an extra
    if importlib.util.find_spec('tensorflow_serving') is None:
        names = [name for name in names if not name.startswith('boardrec.serving.')]  # of which most need an extra
    seen = run(LOAD + '''
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
import random, signal, threading, warnings
import keras, matplotlib.pyplot, numpy, PIL.Image, sklearn.metrics, tensorflow, tqdm
from absl import flags

def state():
    return {
        'environment': dict(os.environ),
        'flags': {module: len(defined) for module, defined in flags.FLAGS.flags_by_module_dict().items()},
        'signals': [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        'threads': [thread.name for thread in threading.enumerate()],
        'warnings': [str(rule) for rule in warnings.filters],
        'seeds': [random.getstate()[1][:3], [int(n) for n in numpy.random.get_state()[1][:3]]],
        'policy': keras.config.dtype_policy().name, 'pixels': PIL.Image.MAX_IMAGE_PIXELS,
        'backend': matplotlib.get_backend(), 'contexts': tensorflow.executing_eagerly(),
        'folder': os.getcwd(), 'files': os.listdir(), 'path': sys.path[1:],
    }

before = state()
for name in given[1]:
    load(name)
after = state()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
''', str(ROOT), [*names, *(path for path in TOOLS)], cwd=tmp_path)
    assert seen == {}
