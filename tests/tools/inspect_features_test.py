"""Caches are listed and removed; whatever is no cache stays, and so does one that a process computes."""

import os
import shutil
import subprocess
import sys
import time

import inspect_features
from inspect_features import InspectFeaturesConfig
import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.training import feature_store

KEY = {'records': 'f00dcafe1234', 'backbone': 'vgg16', 'weights': 'w', 'cut': [3], 'image_size': [32, 40],
       'precision': 'bfloat16', 'split': 'train', 'view': None}


@pytest.fixture
def folder(tmp_path):
    """A folder with three caches: of train, not used for 40 days; of val; and an incomplete one."""
    folder = tmp_path / 'feature_cache'
    for days, key, shards in ((40, {}, 1), (2, {'split': 'val', 'view': {'view': 1}}, 1), (0, {'weights': 'v'}, 0)):
        part = feature_store.make_part(folder, KEY | key, records=1500, row_bytes=1024)
        feature_store.open_or_compute(
            part, lambda numbers, part=part: ((n, np.zeros((len(part.rows(n)), 1024), np.uint8)) for n in numbers),
            boundary='block5_conv1', damaged=[]).lock.close()
        if not shards:
            (part.folder / 'manifest.json').unlink()
        for path in part.folder.iterdir():
            os.utime(path, (time.time() - days * 86400 - 60,) * 2)
    return folder


def inspect(folder, capsys, **settings):
    """What the tool prints, line by line, and the weights and splits of what is left."""
    inspect_features.main(InspectFeaturesConfig(feature_cache_dir=str(folder), **settings))
    left = [entry.manifest and entry.manifest['key']['split'] for entry in feature_store.entries(folder)]
    return capsys.readouterr().out.splitlines(), left


def test_a_line_tells_of_each_cache(folder, capsys):
    lines, left = inspect(folder, capsys)
    assert left == ['train', 'val', None] and len(lines) == 4
    assert ('1.5 MiB  train, 1,500 records, vgg16 up to block5_conv1, 32x40, bfloat16, records f00dcafe, used 20'
            in lines[0])
    assert 'val view 2, 1,500 records' in lines[1] and 'incomplete, used ' in lines[2]
    assert lines[3].startswith(f'{folder}: 3 caches, 4.4 MiB') and 'removed' not in lines[3]


@pytest.mark.parametrize(('settings', 'expected'), [
    ({'prune': 'nothing'}, ['train', 'val', None]), ({'prune': 'unused'}, ['val', None]),
    ({'prune': 'unused', 'unused_days': 41}, ['train', 'val', None]), ({'prune': 'unused', 'unused_days': 1}, [None]),
    ({'prune': 'unused', 'unused_days': 0}, []), ({'prune': 'incomplete'}, ['train', 'val']), ({'prune': 'all'}, [])])
def test_what_is_named_is_removed(folder, capsys, settings, expected):
    before = [path.name for path in folder.iterdir()]
    lines, left = inspect(folder, capsys, **settings)
    assert left == expected and len(list(folder.iterdir())) == len(expected)
    if settings['prune'] != 'nothing':
        assert [line.split()[-1] for line in lines[:-1]].count('removed') == 3 - len(expected)
        assert lines[-1].endswith(f'{(3 - len(expected)) * 1500 / 1024:,.1f} MiB removed') and len(before) == 3


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_records_are_no_cache(record_set_path, tmp_path, capsys):
    folder = shutil.copytree(record_set_path, tmp_path / 'records')
    before = everything(folder)
    lines, _ = inspect(folder, capsys, prune='all')
    assert lines == [f'{folder}: 0 caches, 0.0 MiB; 0.0 MiB removed'] and everything(folder) == before
    inspect(tmp_path, capsys, prune='all')  # nor is a folder of records
    assert everything(folder) == before


def test_other_things_beside_caches_stay(folder, capsys):
    names = ['run/run.flags', 'run/lock', '0123456789abcdef/photograph.jpg', 'fedcba98765432/lock', 'notes.txt',
             'manifest.json', 'lock', '0123456789ABCDEF/lock', 'deeper/0123456789abcdef/lock']
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('x')
    inspect(folder, capsys, prune='all')
    assert {path.relative_to(folder).as_posix() for path in everything(folder)} == set(names)


def test_a_folder_of_something_else_with_a_lock_stays(tmp_path, capsys):
    other = tmp_path / '0123456789abcdef'
    other.mkdir()
    (other / 'lock').touch()
    (other / 'photograph.jpg').write_bytes(b'x')
    lines, _ = inspect(tmp_path, capsys, prune='all')
    assert sorted(path.name for path in other.iterdir()) == ['lock', 'photograph.jpg']
    assert lines == [f'{tmp_path}: 0 caches, 0.0 MiB; 0.0 MiB removed']


HOLDS_A_LOCK = '''
import fcntl, sys, time
file = open(sys.argv[1], 'ab')
fcntl.lockf(file, fcntl.LOCK_EX, 1, 7)
print('locked', flush=True)
time.sleep(600)
'''


def test_what_a_process_computes_stays(folder, capsys):
    lock = feature_store.entries(folder)[2].folder / 'lock'
    process = subprocess.Popen([sys.executable, '-c', HOLDS_A_LOCK, lock], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'locked\n'
        lines, left = inspect(folder, capsys, prune='all')
        assert left == [None] and lines[2].endswith('kept: a process uses it')
        assert lines[3] == f'{folder}: 3 caches, 1.5 MiB; 2.9 MiB removed'
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(('settings', 'message'), [
    ({'prune': 'some'}, '--prune=some: must be one of nothing, unused, incomplete, all'),
    ({'unused_days': -1.0}, '--unused_days=-1.0: must be at least 0')])
def test_a_bad_value_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        InspectFeaturesConfig(feature_cache_dir='C', **settings)


def test_a_missing_folder_is_told(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=f'--feature_cache_dir={tmp_path}/file: is no folder'):
        inspect_features.main(InspectFeaturesConfig(feature_cache_dir=str(tmp_path / 'file')))
    with pytest.raises(UserError, match=f'--feature_cache_dir={tmp_path}/none: there is no such folder'):
        inspect_features.main(InspectFeaturesConfig(feature_cache_dir=f'{tmp_path}/none'))


def test_a_damaged_manifest_is_an_incomplete_cache(folder, capsys):
    manifest = feature_store.entries(folder)[0].folder / 'manifest.json'
    manifest.write_text(manifest.read_text()[:100])
    lines, left = inspect(folder, capsys)
    assert sum('incomplete' in line for line in lines) == 2 and sorted(map(str, left)) == ['None', 'None', 'val']


def test_the_tool_runs(folder, tool_path):
    done = subprocess.run(
        [sys.executable, tool_path('inspect_features.py'), f'--feature_cache_dir={folder}', '--prune=all'],
        capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert '3 caches' in done.stdout and not list(folder.iterdir())
