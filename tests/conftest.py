"""Generated images and record sets that the tests share; and TensorFlow, imported once and quietly."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import subprocess
import types

import numpy as np
from PIL import Image
import pytest

from boardrec import cli, progress
from boardrec.config import ConvertConfig, ExportConfig, TrainConfig
from boardrec.data import convert, records, shards, storage_report, workers

progress.import_tensorflow()

IMAGE_SIZE = (40, 48)  # height, width in pixels
COLOURS = ((60, 90, 170), (190, 120, 50), (70, 160, 80), (150, 60, 150))  # of the classes, in sorted order


def photograph(random, number):
    """One image of class `number`, uint8 [H, W, 3]: its colour, a darker rectangle somewhere, noise."""
    height, width = IMAGE_SIZE
    pixels = np.broadcast_to(np.array(COLOURS[number], np.float32), (height, width, 3)).copy()
    top, left = random.integers(0, height // 2), random.integers(0, width // 2)
    pixels[top:top + height // 3, left:left + width // 3] *= 0.5
    return np.clip(pixels + random.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope='session')
def made_once(tmp_path_factory):
    """A function from (name, make) to a folder that make(folder) fills, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base) / 'shared'
    shared.mkdir(exist_ok=True)

    def get(name, make):
        folder, done = shared / name, shared / f'{name}.done'
        with open(shared / f'{name}.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
    """A function from {class folder: how many images} to a new folder of them, every other one a JPEG, the rest PNG.

    A class folder may be a path, such as train/positive: its last part is the class.
    """
    def make(counts, *, seed=0, folder=None):
        folder = folder or tmp_path_factory.mktemp('images')
        random = np.random.default_rng(seed)
        classes = sorted({pathlib.PurePath(place).name for place in counts})
        for place, count in counts.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = Image.fromarray(photograph(random, classes.index(pathlib.PurePath(place).name)))
                path = folder / place / f'board{i:03d}.{"png" if i % 2 else "jpg"}'
                image.save(path, **({} if i % 2 else {'quality': 90}))
        return folder

    return make


class InProcess(workers.Pool):
    """Stands in for worker processes, each of which would import TensorFlow for five seconds."""

    def run(self, function, payloads, look=lambda _: None):
        """Calls the function at once."""
        for number, payload in enumerate(payloads):
            yield number, function(payload, {}, workers.Watch(self._context))


@pytest.fixture(scope='session')
def convert_here():
    """A function that does convert.convert(ConvertConfig(...)) in this process, with shards of `shard_bytes`."""
    plan = shards.plan

    def run(input_dir, output_dir, *, shard_bytes=64 << 10, **settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, 'Pool', InProcess)
            patch.setattr(storage_report, '_TIMING_SECONDS', 0.0)
            patch.setattr(shards, 'plan', lambda found, _, counts: plan(found, shard_bytes, counts))
            return convert.convert(ConvertConfig(
                input_dir=str(input_dir), output_dir=str(output_dir), **{'max_bad_fraction': 1.0, **settings}))

    return run


@pytest.fixture(scope='session')
def source_images(image_folder, made_once):
    """The folder that `record_set_path` was converted from: 120 images of two classes."""
    return made_once('images', lambda folder: image_folder({'negative': 60, 'positive': 60}, folder=folder))


@pytest.fixture(scope='session')
def record_set_path(source_images, convert_here, made_once):
    """A record set of 120 images, split by hash, several shards in train. Shared: never change it, copy it."""
    return made_once('records', lambda folder: convert_here(source_images, folder))


@pytest.fixture
def record_set(record_set_path):
    """`record_set_path`, opened."""
    return records.open_record_set(record_set_path)


@pytest.fixture(scope='session')
def train_config(record_set_path, tmp_path_factory):
    """A function from settings to a TrainConfig for a run of seconds on `record_set_path`."""
    def make(**settings):
        folder = tmp_path_factory.mktemp('run')
        defaults = {'records': str(record_set_path), 'run_dir': str(folder / 'run'), 'weights': 'none',
                    'image_size': '32', 'epochs': 2, 'learning_rate': 2e-4, 'batch_size': 16,
                    'schedule': 'constant', 'dropout': 0.1, 'feature_cache': 'on',
                    'feature_cache_dir': str(folder / 'feature_cache')}
        return TrainConfig(**{**defaults, **settings})

    return make


@pytest.fixture(scope='session')
def strace():
    """Skips where strace is missing or may trace nothing; in CI that is an error."""
    try:
        done = subprocess.run(['strace', '-o', os.devnull, '-e', 'inject=fsync:error=EIO', 'true'], check=False,
                              capture_output=True, text=True)
        reason = done.stderr.strip()
    except FileNotFoundError:
        reason = 'strace is not installed'
    if reason:
        assert not os.environ.get('CI'), reason
        pytest.skip(f'needs strace: {reason}')


def _small_network(include_top, weights, input_tensor=None, input_shape=None):
    """A network of branches, with BatchNorm whose statistics are no identity, and with automatic names."""
    import keras
    layers = keras.layers
    source = layers.Input((None, None, 3)) if input_tensor is None else input_tensor

    def conv(filters, x, **named):
        x = layers.Conv2D(filters, 3, padding='same', use_bias=False, **named)(x)
        return layers.BatchNormalization(
            moving_mean_initializer=keras.initializers.RandomNormal(0, 0.3),
            moving_variance_initializer=keras.initializers.RandomUniform(0.5, 2))(x)

    x = layers.Activation('relu')(conv(8, layers.Rescaling(1 / 64, -2)(source), strides=4))
    y = layers.Activation('relu')(conv(12, x))
    x = layers.Add()([conv(12, x), conv(12, y)])
    y = layers.MaxPooling2D(2)(layers.Activation('relu')(x))
    x = layers.Concatenate()([conv(8, y), conv(8, layers.Activation('tanh')(y))])
    network = keras.Model(keras.utils.get_source_inputs(source)[0], layers.Activation('relu')(x))
    if weights:
        network.load_weights(weights)
    return network


# As a Backbone: its constructor, its normalisation and its sizes.
SMALL_BACKBONE = types.SimpleNamespace(
    build=_small_network, preprocess=lambda images: images, default_size=32, minimum_size=8)


@pytest.fixture
def small_backbone(monkeypatch):
    """The name of a backbone with branches and BatchNorm that takes milliseconds; only in this process and test."""
    from boardrec.training import backbones
    monkeypatch.setitem(backbones.BACKBONES, 'xception', SMALL_BACKBONE)
    return 'xception'


@pytest.fixture(scope='session')
def finished_run(train_config, record_set_path, made_once):
    """The folder of a finished run on `record_set_path`. Shared: never change it, copy it."""
    from boardrec.training import fit

    def make(folder):
        config = train_config(run_dir=str(folder), epochs=5, precision='float32')
        fit.fit(config, records.open_record_set(record_set_path))

    return made_once('finished_run', make)


@pytest.fixture(scope='session')
def small_run_path(train_config, record_set_path, made_once):
    """The folder of a finished run of the small backbone, which takes a tenth of `finished_run`."""
    from boardrec.training import fit

    def make(folder):
        config = train_config(run_dir=str(folder), backbone='xception', trainable_layers=9, learning_rate=0.01,
                              precision='float32', feature_cache='off')
        with _small_backbone_known():
            fit.fit(config, records.open_record_set(record_set_path))

    return made_once('small_run', make)


@pytest.fixture(scope='module')
def small_run(small_run_path):
    """That folder, in a module whose tests know its backbone. Shared: never change it, copy it."""
    with _small_backbone_known():
        yield small_run_path


@contextlib.contextmanager
def _small_backbone_known():
    """Xception stands for the small backbone, in this process."""
    from boardrec.training import backbones
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, 'xception', SMALL_BACKBONE)
        yield


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A copy of the finished run that a test may change."""
    from boardrec.training import run_dir
    path = tmp_path / 'run'
    shutil.copytree(finished_run, path)
    config = dataclasses.replace(run_dir.read_config(path), run_dir=str(path))
    (path / 'run.flags').write_text(cli.to_flagfile(config))
    return path


@pytest.fixture(scope='session')
def predictor(small_run_path):
    """The run of the small backbone, loaded."""
    from boardrec.training import inference
    with _small_backbone_known():
        return inference.load(small_run_path)


@pytest.fixture(scope='session')
def exported(small_run_path, made_once):
    """A version, exported from that run. Shared: never change it, copy it."""
    from boardrec import export

    def make(folder):
        with _small_backbone_known():
            export.main(ExportConfig(run_dir=str(small_run_path), export_dir=str(folder / 'boardrec')))

    return made_once('models', make) / 'boardrec' / '1'


@pytest.fixture(scope='session')
def session(exported):
    """The version in one TF1 session, as TF Serving runs it: ask(signature, {input: values}) and images(bytes)."""
    from boardrec.serving import self_test
    from boardrec.serving.servable import Servable
    loaded = Servable(exported, 1)
    ask = self_test.asker(loaded)
    yield types.SimpleNamespace(ask=ask, images=lambda data: ask('serving_default', {'image_bytes': data}))
    loaded.close()


@pytest.fixture
def data_service():
    """The address of a tf.data service: a dispatcher and two workers."""
    import tensorflow as tf
    server = tf.data.experimental.service
    dispatcher = server.DispatchServer()
    address = dispatcher.target.removeprefix('grpc://')
    workers = [server.WorkerServer(server.WorkerConfig(dispatcher_address=address)) for _ in range(2)]
    yield dispatcher.target
    del workers
