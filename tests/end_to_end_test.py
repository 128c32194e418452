"""The contract's command lines, run as a user runs them: on generated images, and on real ones with real weights."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf

from boardrec.data import files

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments, status=0, **settings):
    """Runs `python ARGUMENTS` from the checkout and returns the finished process."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          check=False, **settings)
    assert done.returncode == status, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    return done


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    """A folder with images/, records/, run/ and models/boardrec/1/, made by the commands of flags/smoke.flags."""
    folder = tmp_path_factory.mktemp('job')
    run('tools/generate_images.py', f'--output_dir={folder}/images')
    run('tools/make_records.py', f'--input_dir={folder}/images', f'--output_dir={folder}/records')
    run('-m', 'boardrec.train', '--flagfile=flags/smoke.flags', f'--records={folder}/records',
        f'--run_dir={folder}/run')
    run('-m', 'boardrec.evaluate', f'--run_dir={folder}/run', '--split=test')
    run('-m', 'boardrec.predict', f'--run_dir={folder}/run', f'--images={folder}/images/*/*.png',
        f'--output={folder}/predictions.csv')
    run('-m', 'boardrec.export', f'--run_dir={folder}/run', f'--export_dir={folder}/models/boardrec')
    return folder


def predictions(path, key='source'):
    with open(path, newline='') as file:
        return {row[key]: row for row in csv.DictReader(file)}


def test_everything_is_where_it_was_promised(job):
    names = ['records/manifest.json', 'records/index.jsonl', 'records/rejected.csv', 'records/dataset_info.json',
             'records/features.json', 'run/run.flags', 'run/history.csv', 'run/tensorboard', 'run/checkpoints',
             'run/model.keras', 'run/model.weights.h5', 'run/model.json', 'run/evaluation/test/predictions.csv',
             'run/evaluation/test/metrics.json', 'run/evaluation/test/classification_report.txt',
             'run/report/index.html', 'models/boardrec/1/saved_model.pb']
    assert not [name for name in names if not (job / name).exists()]
    assert not [path for path in job.rglob('*') if path.name.startswith(files.TEMPORARY_PREFIX)]


def test_it_learned(job):
    metrics = json.loads((job / 'run/evaluation/test/metrics.json').read_text())
    assert metrics['accuracy'] >= 0.9
    manifest = json.loads((job / 'records/manifest.json').read_text())
    assert metrics['records'] == manifest['splits']['test']['records']
    lineage = [metrics['records_fingerprint'],
               json.loads((job / 'run/run.json').read_text())['records_fingerprint'],
               json.loads((job / 'models/boardrec/1/metadata.json').read_text())['records_fingerprint']]
    assert lineage == [manifest['fingerprint']] * 3
    assert manifest['fingerprint'] in (job / 'run/report/index.html').read_text()


def test_evaluation_prediction_and_export_agree(job):
    evaluated = predictions(job / 'run/evaluation/test/predictions.csv')
    predicted = predictions(job / 'predictions.csv', 'path')
    signature = tf.saved_model.load(str(job / 'models/boardrec/1')).signatures['serving_default']
    sources = sorted(evaluated)
    images = [(job / 'images' / source).read_bytes() for source in sources]
    answer = signature(image_bytes=tf.constant(images))
    for source, probabilities, label in zip(sources, answer['probabilities'].numpy(), answer['label'].numpy(),
                                            strict=True):
        others = predicted[str(job / 'images' / source)]
        assert float(evaluated[source]['p_positive']) == pytest.approx(probabilities[1], abs=1e-5)
        assert float(others['p_positive']) == pytest.approx(probabilities[1], abs=1e-5)
        assert label.decode() == evaluated[source]['predicted'] == others['predicted']


@pytest.mark.long
def test_run_flags_repeat_the_run_to_the_last_bit(job, tmp_path):
    run('-m', 'boardrec.train', f'--flagfile={job}/run/run.flags', f'--run_dir={tmp_path}/again')
    assert files.sha256_of(tmp_path / 'again/model.weights.h5') == files.sha256_of(job / 'run/model.weights.h5')


def test_a_second_time_there_is_nothing_to_do(job):
    again = run('tools/make_records.py', f'--input_dir={job}/images', f'--output_dir={job}/records')
    assert 'nothing to do' in again.stdout
    again = run('-m', 'boardrec.export', f'--run_dir={job}/run', f'--export_dir={job}/models/boardrec')
    assert 'exported already' in again.stdout and [path.name for path in (job / 'models/boardrec').iterdir()] == ['1']


@pytest.mark.parametrize(('arguments', 'words'), [
    (['tools/make_records.py', '--input_dir=nowhere', '--output_dir=X'], 'nowhere: there is no such folder'),
    (['tools/make_records.py', '--output_dir=X'], '--input_dir is missing'),
    (['-m', 'boardrec.train', '--flagfile=flags/vgg16.flags', '--records=nowhere', '--run_dir=X'],
     'nowhere: there is no such folder'),
    (['-m', 'boardrec.train', '--flagfile=flags/none.flags', '--records=R', '--run_dir=X'], 'flags/none.flags'),
    (['-m', 'boardrec.train', '--batchsize=8', '--run_dir=X'], "flag 'batchsize'. Did you mean: batch_size?"),
    (['-m', 'boardrec.train', '--records=R', '--run_dir=X', '--epochs=many'], '--epochs=many'),
    (['-m', 'boardrec.evaluate', '--run_dir=nowhere'], '--run_dir=nowhere: there is no run in it'),
    (['-m', 'boardrec.evaluate', '--run_dir=R', '--split=all'], '--split=all: must be one of train, val, test'),
    (['-m', 'boardrec.predict', '--run_dir=R', '--images=nowhere', '--output=o.csv'], '--images=nowhere'),
    (['-m', 'boardrec.export', '--run_dir=nowhere', '--export_dir=X'], '--run_dir=nowhere: there is no run in it'),
], ids=lambda value: ' '.join(value)[:40] if isinstance(value, list) else None)
def test_a_mistake_is_told_in_one_sentence(arguments, words):
    done = run(*arguments, status=2)
    assert words in done.stderr and done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1 and done.stdout == ''


@pytest.mark.long
def test_a_full_disk_is_told_and_the_same_command_goes_on(job, tmp_path):
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=30m', 'none', tmp_path]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip('needs the right to mount a small file system')
    try:
        train = ['-m', 'boardrec.train', '--flagfile=flags/smoke.flags', f'--records={job}/records',
                 f'--run_dir={tmp_path}/run', f'--feature_cache_dir={job}/feature_cache', '--epochs=1']
        done = run(*train, status=2)
        assert 'No space left on device' in done.stderr and done.stderr.count('\n') == 1
        subprocess.run(['mount', '-o', 'remount,size=700m', tmp_path], check=True)
        assert 'validation loss' in run(*train).stdout
    finally:
        subprocess.run(['umount', tmp_path], check=True)


@pytest.fixture(scope='module')
def demo_images(tmp_path_factory):
    """190 of the demo's photographs, in its splits; fetched if they are not in the cache."""
    folder = tmp_path_factory.mktemp('demo')
    for tool in (['tools/fetch_demo_data.py', f'--output_dir={folder}/all'], ['tools/fetch_weights.py']):
        done = subprocess.run([sys.executable, *tool], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            assert not os.environ.get('CI'), done.stderr
            pytest.skip(f'needs the demo images and weights: {done.stderr.strip()}')
    for split, count in (('train', 60), ('val', 15), ('test', 20)):
        for label in ('negative', 'positive'):
            (folder / 'some' / split / label).mkdir(parents=True)
            for path in sorted((folder / 'all' / split / label).iterdir())[:count]:
                shutil.copy(path, folder / 'some' / split / label)
    return folder / 'some'


def test_real_photographs_with_real_weights(demo_images, tmp_path):
    run('tools/make_records.py', f'--input_dir={demo_images}', f'--output_dir={tmp_path}/records')
    train = run('-m', 'boardrec.train', '--flagfile=flags/vgg16.flags', f'--records={tmp_path}/records',
                f'--run_dir={tmp_path}/run', '--epochs=4', '--batch_size=16', '--image_size=224', '--cached_views=1',
                '--inference_views=2')
    assert '120 training and 30 validation records' in train.stdout
    run('-m', 'boardrec.evaluate', f'--run_dir={tmp_path}/run')
    metrics = json.loads((tmp_path / 'run/evaluation/test/metrics.json').read_text())
    assert metrics['records'] == 40 and metrics['accuracy'] >= 0.65 and metrics['auc'] >= 0.7
