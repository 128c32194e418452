"""Record sets to damage and to convert again; an object store in memory, and an S3 server."""

import pathlib
import shutil
import socket
import subprocess
import sys
import time

from conversions import touch
from object_stores import Store, URL
import pytest

from boardrec.data import records, remote, transfer


@pytest.fixture
def copy(record_set_path, tmp_path):
    """A copy of the shared record set, to damage."""
    return pathlib.Path(shutil.copytree(record_set_path, tmp_path / 'records'))


@pytest.fixture
def rows(record_set_path):
    """The undamaged index."""
    return list(records.read_index(record_set_path))


@pytest.fixture(scope='module')
def server():
    """The address of an S3 server, which the environment names to its clients, with a bucket `photos`."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}', 'AWS_ACCESS_KEY_ID': 'a',
                            'AWS_SECRET_ACCESS_KEY': 'b', 'AWS_DEFAULT_REGION': 'us-east-1'}.items():
            patch.setenv(name, value)
        import s3fs
        s3fs.S3FileSystem.clear_instance_cache()  # clients of another module's server
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(('127.0.0.1', port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield
    process.kill()
    process.wait()


@pytest.fixture
def bucket(server):
    """A client of the server, and an empty bucket `photos`."""
    import s3fs
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    if fs.exists('photos'):
        fs.rm('photos', recursive=True)
    fs.mkdir('photos')
    return fs


@pytest.fixture
def converted(tmp_path, image_folder, convert_here):
    """(images, records, run): a converted folder and a function that converts it again."""
    images, out = image_folder({'a': 6, 'b': 6}, folder=tmp_path / 'images'), tmp_path / 'out'
    touch(images, 'a/broken.png', 'loose.txt')

    def run(*, input_dir=images, **others):
        return convert_here(input_dir, out, **{'splits': 'train:0.7,test:0.3', **others})

    run()
    return images, out, run


@pytest.fixture
def images(tmp_path, image_folder):
    return image_folder({'a': 16, 'b': 16}, folder=tmp_path / 'images')


@pytest.fixture
def convert(convert_here):
    """convert_here with small shards and a val split."""
    def run(input_dir, output_dir, **settings):
        return convert_here(input_dir, output_dir, **{
            'shard_bytes': 9000, 'splits': 'train:0.6,val:0.2,test:0.2', **settings})
    return run


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes this another machine, one with a cache of its own."""
    def move(name):
        monkeypatch.setenv('BOARDREC_CACHE', str(tmp_path / name))
    move('first')
    return move


@pytest.fixture
def store(machine, monkeypatch):
    monkeypatch.setitem(remote._PACKAGES, 'memory', 'fsspec')
    monkeypatch.setattr(transfer, '_PAUSE_SECONDS', 0.0)
    store = Store()
    yield store
    store.fs.rm('/', recursive=True)


@pytest.fixture
def stored(store, images, convert):
    """The store with a set of several shards in it."""
    convert(images, URL)
    assert len(store.shards()) > 4
    return store


@pytest.fixture
def traffic(monkeypatch):
    """The names that are fetched, put and removed, in order."""
    calls = {'fetched': [], 'put': [], 'removed': []}

    def spy(kind, function):
        def call(url, name, *rest):
            calls[kind].append(name)
            return function(url, name, *rest)
        return call

    for kind, names in {'fetched': ('parts', 'content'), 'put': ('put', 'create'), 'removed': ('remove',)}.items():
        for name in names:
            monkeypatch.setattr(remote, name, spy(kind, getattr(remote, name)))
    return calls
