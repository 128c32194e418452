"""What tests of object stores share."""

import importlib.util
import shutil

from conversions import tree_sums
import fsspec
import pytest

from boardrec.data import journal, mirror, records, remote

HAS_S3 = all(importlib.util.find_spec(name) for name in ('s3fs', 'moto', 'flask'))
URL = 'memory://bucket/of/records'
FOLDER = '/bucket/of/records'


def needs_s3(test):
    skip = pytest.mark.skipif(not HAS_S3, reason="needs s3fs and moto: pip install -e '.[s3,long]'")
    return pytest.mark.long(skip(test))


class Store:
    """What the tests look at in memory://."""

    def __init__(self):
        self.fs = fsspec.filesystem('memory')

    def read(self, name):
        return self.fs.cat_file(f'{FOLDER}/{name}')

    def write(self, name, content):
        self.fs.pipe_file(f'{FOLDER}/{name}', content)

    def names(self):
        return {path.removeprefix(f'{FOLDER}/') for path in self.fs.find(FOLDER)}

    def set_sums(self):
        """As tree_sums of a folder."""
        return {name: remote.sha256_of(URL, name) for name in self.names() if not name.startswith(journal.FOLDER)}

    def shards(self):
        return sorted(filter(records.is_shard_file, self.names()))


def open_it():
    with mirror.opened(URL) as folder:
        return tree_sums(folder)


def add_images(images, image_folder, count=1):
    for path in (image_folder({'a': count}, seed=7) / 'a').iterdir():
        shutil.copy(path, images / 'a' / f'new-{path.name}')


def shards_in(names):
    return [name for name in names if records.is_shard_file(name)]
