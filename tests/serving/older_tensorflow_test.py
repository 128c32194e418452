"""The newest released TF Serving is built on TensorFlow 2.20: an export must load and answer the same there."""

import base64
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

RELEASE = '2.20'


@pytest.fixture(scope='module')
def older_python(tmp_path_factory):
    """The Python of a new environment with that TensorFlow, or $BOARDREC_OLDER_PYTHON."""
    given = os.environ.get('BOARDREC_OLDER_PYTHON')
    if given:
        return given
    folder = tmp_path_factory.mktemp('older')
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    done = subprocess.run([folder / 'bin/python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
                           f'tensorflow-cpu=={RELEASE}.*'], check=False, capture_output=True, text=True)
    if done.returncode:
        assert not os.environ.get('CI'), done.stderr
        pytest.skip(f'needs tensorflow-cpu {RELEASE} from a package index: {done.stderr.strip()[-300:]}')
    return folder / 'bin/python'


@pytest.mark.long
def test_an_older_tensorflow_answers_the_same(exported, session, older_python, tmp_path):
    script = pathlib.Path(__file__).with_name('older_tensorflow.py')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    subprocess.run([older_python, script, exported, tmp_path / 'answers.json'], check=True, env=environment)
    answers = json.loads((tmp_path / 'answers.json').read_text())
    assert answers['release'].startswith(f'{RELEASE}.')
    golden = json.loads((exported / 'metadata.json').read_text())['golden']
    data = [base64.b64decode(one['image_bytes']['b64']) for one in golden]
    for way in ('eager', 'serving_default'):
        assert answers[way]['error_code'] == [one['error_code'] for one in golden]
        assert answers[way]['label'] == [one['label'] for one in golden]
        np.testing.assert_allclose(answers[way]['probabilities'], [one['probabilities'] for one in golden], atol=1e-5)
    np.testing.assert_allclose(answers['classify']['scores'], answers['eager']['probabilities'], atol=1e-5)
    described = session.ask('embedding', {'image_bytes': np.array(data, object)})['embedding']
    np.testing.assert_allclose(answers['embedding']['embedding'], described, atol=1e-5)
