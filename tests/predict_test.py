"""Prediction on files: equal to evaluation, from run and export alike; bad files are rows; kills change no byte."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
from PIL import Image
import pytest

from boardrec import cli, evaluate, export, predict
from boardrec.config import EvaluateConfig, ExportConfig, PredictConfig, UserError
from boardrec.data import read_ahead


def run(finished_run, images, output, **settings):
    predict.main(PredictConfig(run_dir=str(finished_run), images=str(images), output=str(output), **settings))
    return table(output)


def table(output):
    with open(output, encoding='utf-8', newline='', errors='surrogateescape') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def odd(tmp_path_factory, source_images):
    """A folder of what conversion normalises, of names that are hard to write down, and of what is no image."""
    folder = tmp_path_factory.mktemp('odd')
    (folder / 'sub').mkdir()
    good = min((source_images / 'positive').iterdir())
    with Image.open(good) as image:
        image.load()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / 'turned.jpg', exif=exif)
    image.convert('CMYK').save(folder / 'cmyk.jpg')
    image.quantize(16).save(folder / 'palette.gif')
    image.convert('RGBA').save(folder / 'transparent.png')
    image.save(folder / 'large.webp', lossless=True)
    Image.fromarray(np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 34).save(folder / 'grey16.png')
    for name in (b'a, "b"\nc\rd.jpg', b'caf\xe9.jpg', 'süß, 写真.jpg'.encode(), b'-', b' .jpg '):
        shutil.copy(good, os.fsencode(folder / 'sub') + b'/' + name)
    (folder / 'empty.jpg').touch()
    (folder / 'note.txt').write_text('hello')
    (folder / 'cut.tif').write_bytes(b'II*\0\x08\0\0\0\0\0')  # Pillow warns of it
    (folder / 'cut.jpg').write_bytes(good.read_bytes()[:-300])
    (folder / 'broken').symlink_to(folder / 'gone')
    (folder / 'sub' / 'loop').symlink_to(folder)
    os.mkfifo(folder / 'pipe')
    return folder


@pytest.fixture(scope='module')
def models(finished_run, tmp_path_factory):
    """A folder with one exported version."""
    folder = tmp_path_factory.mktemp('models') / 'boardrec'
    export.main(ExportConfig(run_dir=str(finished_run), export_dir=str(folder)))
    return folder


def test_the_same_probabilities_as_evaluation(finished_run, source_images, tmp_path):
    shutil.copytree(finished_run, tmp_path / 'run')
    evaluate.main(EvaluateConfig(run_dir=str(tmp_path / 'run')))
    with open(tmp_path / 'run' / 'evaluation' / 'test' / 'predictions.csv', newline='') as file:
        evaluated = {row['source']: row for row in csv.DictReader(file)}
    rows = run(finished_run, source_images, tmp_path / 'out.csv', batch_size=7)
    assert len(rows) == 120 and list(rows[0]) == ['path', 'predicted', 'p_negative', 'p_positive', 'error']
    assert [row['path'] for row in rows] == sorted(str(path) for path in source_images.glob('*/*'))
    found = {row['path'].removeprefix(f'{source_images}/'): row for row in rows}
    for source, row in evaluated.items():
        assert found[source]['predicted'] == row['predicted']
        for column in ('p_negative', 'p_positive'):
            assert float(found[source][column]) == pytest.approx(float(row[column]), abs=1e-5)


def test_run_and_export_say_the_same_of_odd_files_too(finished_run, models, odd, tmp_path, capsys):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        rows = run(finished_run, odd, tmp_path / 'run.csv', batch_size=5)
    assert not [one for one in said if 'PIL' in one.filename]
    assert capsys.readouterr().out.splitlines()[-1].startswith(
        f'{tmp_path}/run.csv: 11 images classified, 7 files could not be; ')
    errors = {row['path'].removeprefix(f'{odd}/'): row['error'] for row in rows if row['error']}
    assert errors == {'cut.jpg': 'truncated', 'cut.tif': 'not an image', 'empty.jpg': 'empty',
                      'note.txt': 'not an image', 'broken': 'unreadable: No such file or directory',
                      'pipe': 'not a regular file', 'sub/loop': 'folder found a second time, through a link'}
    assert all(row['predicted'] == row['p_positive'] == '' for row in rows if row['error'])
    paths = {os.fsencode(row['path']) for row in rows}
    assert {os.fsencode(path) for path in odd.rglob('*') if path.name != 'sub'} == paths
    for saved_model in (models, models / '1'):
        output = tmp_path / 'saved.csv'
        predict.main(PredictConfig(saved_model=str(saved_model), images=str(odd), output=str(output), batch_size=5))
        for one, other in zip(rows, table(output), strict=True):
            assert [one[name] for name in ('path', 'predicted', 'error')] == [
                other[name] for name in ('path', 'predicted', 'error')]
            assert one['error'] or float(one['p_positive']) == pytest.approx(float(other['p_positive']), abs=1e-5)


def test_json_lines_on_standard_output_of_paths_on_standard_input(finished_run, odd, capfdbinary, monkeypatch):
    paths = [path for path in sorted(os.fsencode(path) for path in odd.rglob('*')) if b'loop' not in path]
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'\0'.join(paths))))
    predict.main(PredictConfig(run_dir=str(finished_run), images='-', output='-', output_format='jsonl'))
    out, err = capfdbinary.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [os.fsencode(row['path']) for row in rows] == paths
    assert b'standard output: 11 images classified, 7 files could not be' in err
    good = [row for row in rows if row['error'] is None]
    assert all(set(row['probabilities']) == {'negative', 'positive'} and row['predicted'] for row in good)
    assert all(sum(row['probabilities'].values()) == pytest.approx(1, abs=1e-6) for row in good)
    assert {row['error'] for row in rows if row['predicted'] is None} >= {'truncated', 'not a regular file'}


def test_limits_are_those_of_conversion(finished_run, source_images, tmp_path):
    assert {row['error'] for row in run(finished_run, source_images, tmp_path / 'a.csv', max_side=47)} == {
        'too large: 48x40 pixels, at most 47 a side'}
    Image.new('RGB', (2000, 5)).save(tmp_path / 'narrow.png')
    assert [row['error'] for row in run(finished_run, tmp_path / 'narrow.png', tmp_path / 'b.csv')] == [
        'too narrow: 2000x5 pixels, sides of at most 1:200']
    with open(tmp_path / 'big.jpg', 'wb') as file:
        file.truncate(2**20 + 1)
    assert [row['error'] for row in run(finished_run, tmp_path / 'big.jpg', tmp_path / 'c.csv', max_image_mib=1)] == [
        f'too large: {2**20 + 1} bytes, at most {2**20}']


@pytest.fixture(scope='module')
def whole(finished_run, source_images, tmp_path_factory):
    """A list of 120 paths, and what is predicted of them without an interruption, four at a time."""
    folder = tmp_path_factory.mktemp('whole')
    paths = sorted(str(path) for path in source_images.glob('*/*'))
    paths[7] = str(folder / 'gone')
    (folder / 'list.txt').write_text('\n'.join(paths))
    run(finished_run, folder / 'list.txt', folder / 'out.csv', batch_size=4)
    return folder / 'list.txt', (folder / 'out.csv').read_bytes()


def rows_in(folder):
    return sum(path.read_bytes().count(b'\n') - 1 for path in folder.glob('out.csv.partial-*'))


def test_killed_in_the_middle_and_given_again(finished_run, whole, tmp_path):
    """Half of the list comes, and when there are rows of it, the process is killed; then all of the list comes."""
    paths, expected = whole
    command = [sys.executable, '-m', 'boardrec.predict', f'--run_dir={finished_run}', '--images=-', '--batch_size=4',
               f'--output={tmp_path}/out.csv']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(b'\n'.join(paths.read_bytes().split(b'\n')[:60]) + b'\n')
        process.stdin.flush()
        deadline = time.monotonic() + 120
        while rows_in(tmp_path) < 8 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    kept = rows_in(tmp_path)
    assert 8 <= kept <= 60 and not (tmp_path / 'out.csv').exists()
    run(finished_run, paths, tmp_path / 'out.csv', batch_size=4)
    assert (tmp_path / 'out.csv').read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ['out.csv']


def test_a_signal_ends_it_and_what_is_complete_is_not_computed_again(finished_run, whole, tmp_path, monkeypatch,
                                                                      capsys):
    paths, expected = whole
    reading, writing = os.pipe()

    def list_half_of_it():
        os.write(writing, b'\n'.join(paths.read_bytes().split(b'\n')[:60]) + b'\n')
        while rows_in(tmp_path) < 8:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=list_half_of_it)
    with open(reading) as file, monkeypatch.context() as patch, pytest.raises(cli.Interrupted) as caught:
        patch.setattr(sys, 'stdin', file)
        thread.start()
        run(finished_run, '-', tmp_path / 'out.csv', batch_size=4)
    thread.join()
    os.close(writing)
    assert caught.value.__notes__ == [
        f'{rows_in(tmp_path)} rows of {tmp_path}/out.csv are written, and the same command goes on behind them']
    kept = rows_in(tmp_path) // 4 * 4
    assert kept >= 8
    read, load = [], read_ahead.load
    monkeypatch.setattr(read_ahead, 'load', lambda candidate, **others: read.append(candidate) or load(
        candidate, **others))
    run(finished_run, paths, tmp_path / 'out.csv', batch_size=4)
    assert (tmp_path / 'out.csv').read_bytes() == expected
    assert len(read) == 120 - kept
    assert f'going on behind {kept} rows' in capsys.readouterr().out


def test_another_input_and_another_model_are_refused(finished_run, models, whole, tmp_path, monkeypatch):
    paths, _ = whole
    lines = paths.read_text().split('\n')
    (tmp_path / 'list.txt').write_text('\n'.join(lines[:5] + ['other.jpg'] + lines[6:]))

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict.prediction_file.os, 'replace', fail)
        run(finished_run, paths, tmp_path / 'out.csv', batch_size=4)
    part, = tmp_path.glob('out.csv.partial-*')
    before = part.read_bytes()
    with pytest.raises(UserError, match=r"row 6 of .*out.csv.partial-.* --images has 'other.jpg' now: remove that"):
        run(finished_run, tmp_path / 'list.txt', tmp_path / 'out.csv', batch_size=4)
    with pytest.raises(UserError, match='another model, with other settings or in another format: finish or remove it'):
        predict.main(PredictConfig(saved_model=str(models), images=str(paths), output=str(tmp_path / 'out.csv')))
    with pytest.raises(UserError, match='another model, with other settings'):
        run(finished_run, paths, tmp_path / 'out.csv', batch_size=4, max_side=47)
    assert part.read_bytes() == before


def test_its_own_files_are_no_images(finished_run, source_images, tmp_path):
    shutil.copy(min((source_images / 'negative').iterdir()), tmp_path / 'a.png')
    (tmp_path / 'link').symlink_to(tmp_path)
    for output in (tmp_path / 'out.csv', tmp_path / 'link' / 'out.csv'):
        assert f'{tmp_path}/out.csv' not in [row['path'] for row in run(finished_run, tmp_path, output)]


def test_what_cannot_be_used_is_refused_before_tensorflow_loads(tmp_path, monkeypatch):
    for images in (tmp_path / 'nowhere', tmp_path / '*.jpg', tmp_path):
        with pytest.raises(UserError, match='no file there; name a folder, an image, a list of paths'):
            predict.main(PredictConfig(run_dir='R', images=str(images), output=str(tmp_path / 'out.csv')))
    (tmp_path / 'a.jpg').touch()
    for output in (tmp_path, tmp_path / 'no' / 'out.csv'):
        with pytest.raises(UserError, match='must be a file in a folder that exists'):
            predict.main(PredictConfig(run_dir='R', images=str(tmp_path), output=str(output)))
    with pytest.raises(UserError, match='must end in .csv or .jsonl, or give --output_format'):
        predict.main(PredictConfig(run_dir='R', images=str(tmp_path), output=str(tmp_path / 'out.txt')))
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'\n\r\n')))
    with pytest.raises(UserError, match='no path on standard input'):
        predict.main(PredictConfig(run_dir='R', images='-', output=str(tmp_path / 'out.csv')))
    with pytest.raises(UserError, match='--saved_model=M: there is no export in it'):
        predict.main(PredictConfig(saved_model='M', images=str(tmp_path), output=str(tmp_path / 'out.csv')))
    monkeypatch.setattr(predict.saved_model, 'is_there', lambda _: True)
    with pytest.raises(UserError, match='--run_dir=R: is an export: give --saved_model=R'):
        predict.main(PredictConfig(run_dir='R', images=str(tmp_path), output=str(tmp_path / 'out.csv')))


def test_nothing_but_predictions_is_overwritten(tmp_path):
    photo, other = tmp_path / 'a.jpg', tmp_path / 'model.keras'
    for path in (photo, other):
        path.write_bytes(b'precious')
        with pytest.raises(UserError, match='holds something else than predictions: name another file'):
            predict.main(PredictConfig(run_dir='R', images=str(photo), output=str(path)))
        assert path.read_bytes() == b'precious'
    for old in (b'source,predicted,p_a,p_b,error', b'"path","predicted","p_a"', b'{"path": "a"}'):
        (tmp_path / 'old.csv').write_bytes(old)
        with pytest.raises(UserError, match='--run_dir=R: there is no run in it'):  # the next thing that is checked
            predict.main(PredictConfig(run_dir='R', images=str(photo), output=str(tmp_path / 'old.csv')))
