"""Images in an object store: the records of the same images in a folder. The S3 server, moto, is on this machine."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

from conversions import tree_sums
from object_stores import needs_s3
import pytest

from boardrec import config as config_module
from boardrec.config import ConvertConfig, UserError
from boardrec.data import records, remote, scan, source_file

ROOT = pathlib.Path(__file__).parents[2]
URL = 's3://photos/of/boards'




def upload(fs, folder):
    for path in folder.rglob('*'):
        if path.is_file():
            fs.pipe_file(f'photos/of/boards/{path.relative_to(folder)}', path.read_bytes())


@pytest.fixture
def images(tmp_path, image_folder):
    folder = image_folder({'a': 6, 'b': 6}, folder=tmp_path / 'images')
    (folder / 'a' / 'broken.png').write_bytes(b'not an image')
    (folder / 'b' / '図 [x]*?.png').write_bytes((folder / 'b' / 'board001.png').read_bytes())
    (folder / 'b' / 'Thumbs.db').write_bytes(b'')
    (folder / 'loose.png').write_bytes(b'')
    return folder


@needs_s3
@pytest.mark.parametrize('settings', [
    {}, {'encoding': 'jpeg', 'image_size': '24', 'resize': 'squash'}, {'max_image_mib': 1}], ids=str)
def test_records_are_those_of_the_same_images_in_a_folder(bucket, images, tmp_path, convert_here, settings):
    (images / 'a' / 'large.png').write_bytes(b'x' * (2 << 20))
    upload(bucket, images)
    convert_here(images, tmp_path / 'local', **settings)
    convert_here(URL, tmp_path / 'remote', **settings)
    assert tree_sums(tmp_path / 'remote') == tree_sums(tmp_path / 'local')
    reasons = {source: reason for source, reason, _ in records.read_rejected(tmp_path / 'remote')}
    assert reasons['b/Thumbs.db'] == 'system file'
    assert set(reasons) == {'a/broken.png', 'a/large.png', 'b/Thumbs.db', 'loose.png'}


@needs_s3
def test_split_folders_and_markers_of_folders(bucket, tmp_path, image_folder, convert_here):
    images = image_folder({f'{split}/{label}': 3 for split in ('train', 'val') for label in 'ab'})
    upload(bucket, images)
    for marker in ('', 'train/', 'train/c/'):  # as consoles leave
        bucket.call_s3('put_object', Bucket='photos', Key=f'of/boards/{marker}', Body=b'')
    convert_here(images, tmp_path / 'local')
    convert_here(f'{URL}/', tmp_path / 'remote')
    assert tree_sums(tmp_path / 'remote') == tree_sums(tmp_path / 'local')
    bucket.pipe_file('photos/of/boards/extra/a/1.png', b'')
    with pytest.raises(UserError, match=r'has train/, so its folders must be among .*extra/'):
        convert_here(URL, tmp_path / 'more')


@needs_s3
def test_after_a_change_only_the_shards_that_it_touches_are_built_again(
        bucket, images, tmp_path, convert_here, monkeypatch, capsys):
    monkeypatch.setattr(source_file, '_SETTLED_NS', 0)
    upload(bucket, images)
    convert_here(URL, tmp_path / 'out', shard_bytes=4000)
    read = []
    monkeypatch.setattr(remote, 'sha256_of', lambda url, source: read.append(source))
    capsys.readouterr()
    convert_here(URL, tmp_path / 'out', shard_bytes=4000)
    assert 'nothing to do' in capsys.readouterr().out
    assert read == [], 'known by their times'
    monkeypatch.undo()
    shutil.copy(images / 'b' / 'board003.png', images / 'a' / 'board001.png')
    bucket.pipe_file('photos/of/boards/a/board001.png', (images / 'a' / 'board001.png').read_bytes())
    convert_here(URL, tmp_path / 'out', shard_bytes=4000)
    assert 'shards are up to date' in capsys.readouterr().out
    convert_here(images, tmp_path / 'local', shard_bytes=4000)
    sums = [{row.source: row.sha256 for row in records.read_index(tmp_path / name)} for name in ('out', 'local')]
    assert sums[0] == sums[1]


@needs_s3
def test_an_object_that_is_replaced_or_removed_while_it_is_read_is_noticed(bucket, monkeypatch):
    bucket.pipe_file('photos/of/boards/a/1.png', b'before')
    assert remote.read(URL, 'a/1.png', 100)[0] == b'before'
    fs, sizes = remote._opened(URL)[0], iter(range(10, 20))
    cat = fs.cat_file

    def restless(path):
        data = cat(path)
        bucket.pipe_file(path, b'x' * next(sizes))
        return data

    monkeypatch.setattr(fs, 'cat_file', restless)
    with pytest.raises(OSError, match='it changes while it is read'):
        remote.read(URL, 'a/1.png', 100)
    bucket.rm('photos/of/boards/a/1.png')
    with pytest.raises(OSError, match='there is no such folder or object'):
        remote.read(URL, 'a/1.png', 100)


@needs_s3
def test_workers_read_from_the_store_too(bucket, images, tmp_path, convert_here):
    upload(bucket, images)
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'make_records.py'), f'--input_dir={URL}', f'--output_dir={tmp_path}/out',
         '--max_bad_fraction=1', '--workers=1'],
        capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'error' not in done.stderr.lower()
    convert_here(images, tmp_path / 'local')
    assert tree_sums(tmp_path / 'out') == tree_sums(tmp_path / 'local')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['images', 'local', 'out'], 'no folder s3:'


@needs_s3
@pytest.mark.parametrize(('url', 'match'), [
    ('s3://nowhere/of', 'cannot be listed'),
    ('s3://photos/empty', 'no files in it'),
])
def test_a_folder_that_cannot_be_used_is_refused(bucket, tmp_path, convert_here, url, match):
    with pytest.raises(UserError, match=f'--input_dir={url}.*{match}'):
        convert_here(url, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('url', 'match'), [
    ('http://photos/of', 'no scheme among s3://'),
    *[(f'{scheme}://photos', rf"needs {package}.*pip install -e '\.\[{extra}\]'")
      for scheme, package, extra in [('s3', 's3fs', 's3'), ('gs', 'gcsfs', 'gs')]
      if importlib.util.find_spec(package) is None],
])
def test_a_scheme_that_cannot_be_read_is_refused(tmp_path, convert_here, url, match):
    with pytest.raises(UserError, match=f'--input_dir={url}.*{match}'):
        convert_here(url, tmp_path / 'out')


@pytest.mark.parametrize(('path', 'expected'), [
    ('s3://bucket/folder', True), ('gs://bucket', True), ('/s3://x', False), ('s3:/x', False), ('a/b', False),
    ('C:/x', False)])
def test_what_is_a_url(path, expected):
    assert remote.is_url(path) == expected
    assert isinstance(scan.root_of(path), str) == expected


@pytest.mark.parametrize(('name', 'given'), [
    ('ConvertConfig', {'input_dir': 'images', 'output_dir': 'records', 'labels_csv': 'gs://bucket/labels.csv'}),
    ('TrainConfig', {'records': 's3://bucket/records', 'run_dir': 's3://bucket/run'}),
    ('EvaluateConfig', {'run_dir': 'gs://bucket/run'}),
    ('PredictConfig', {'run_dir': 'run', 'images': 'images', 'output': 's3://bucket/predictions.csv'}),
    ('ExportConfig', {'run_dir': 'run', 'export_dir': 'gs://bucket/models'}),
])
def test_what_has_no_copy_must_be_local(name, given):
    flag, value = [(flag, value) for flag, value in given.items() if '://' in value][-1]
    with pytest.raises(UserError, match=f'--{flag}={value}: must be on a file system of this machine.*gcloud storage'):
        getattr(config_module, name)(**given)
    assert ConvertConfig(input_dir='gs://bucket/images', output_dir='records')


@pytest.mark.parametrize('output', ['s3://bucket/images', 's3://bucket/images/records/'])
def test_records_do_not_go_between_the_images(output):
    with pytest.raises(UserError, match=f'--output_dir={output}: must be outside of --input_dir=s3://bucket/images/'):
        ConvertConfig(input_dir='s3://bucket/images/', output_dir=output)
    assert ConvertConfig(input_dir='s3://bucket/images', output_dir='s3://bucket/images2')
