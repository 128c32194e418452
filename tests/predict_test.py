"""Prediction on files: equal to evaluation, and a bad file is a row."""

import csv
import os
import shutil

import pytest

from boardrec import evaluate, predict
from boardrec.config import EvaluateConfig, PredictConfig, UserError


def run(finished_run, images, output, **settings):
    predict.main(PredictConfig(run_dir=str(finished_run), images=str(images), output=str(output), **settings))
    with open(output, newline='', errors='surrogateescape') as file:
        return list(csv.DictReader(file))


def test_the_same_probabilities_as_evaluation(finished_run, source_images, tmp_path):
    shutil.copytree(finished_run, tmp_path / 'run')
    evaluate.main(EvaluateConfig(run_dir=str(tmp_path / 'run')))
    with open(tmp_path / 'run' / 'evaluation' / 'test' / 'predictions.csv', newline='') as file:
        evaluated = {row['source']: row for row in csv.DictReader(file)}
    table = run(finished_run, source_images, tmp_path / 'out.csv', batch_size=7)
    assert len(table) == 120 and list(table[0]) == ['source', 'predicted', 'p_negative', 'p_positive', 'error']
    found = {row['source'].removeprefix(f'{source_images}/'): row for row in table}
    for source, row in evaluated.items():
        assert found[source]['predicted'] == row['predicted']
        for column in ('p_negative', 'p_positive'):
            assert float(found[source][column]) == pytest.approx(float(row[column]), abs=1e-5)


def test_a_bad_file_is_a_row_with_its_reason(finished_run, source_images, tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'sub').mkdir(parents=True)
    good = min((source_images / 'positive').iterdir())
    shutil.copy(good, folder / 'sub' / 'a, "b"\nc.jpg')
    (folder / 'empty.jpg').touch()
    (folder / 'note.txt').write_text('hello')
    (folder / 'cut.jpg').write_bytes(good.read_bytes()[:-300])
    table = run(finished_run, folder, tmp_path / 'out.csv')
    assert [row['error'] for row in table] == ['truncated', 'empty', 'not an image', '']
    assert all(row['predicted'] == '' and row['p_positive'] == '' for row in table[:3])
    assert table[3]['source'].endswith('a, "b"\nc.jpg') and table[3]['predicted'] in ('negative', 'positive')


def test_only_bad_files(finished_run, tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'x').write_text('x')
    assert [row['error'] for row in run(finished_run, tmp_path / 'photos', tmp_path / 'out.csv')] == ['not an image']


def test_glob_and_single_file(source_images, tmp_path):
    assert len(predict.find_images(str(source_images / 'negative' / '*.png'))[0]) == 30
    assert len(predict.find_images(str(source_images / '**' / '*.jpg'))[0]) == 60
    one = str(min((source_images / 'negative').iterdir()))
    assert predict.find_images(one) == ([one], {})
    odd = tmp_path / '[x].jpg'
    odd.touch()
    assert predict.find_images(str(odd)) == ([str(odd)], {})


def test_links_are_followed_and_what_is_no_file_is_a_row(source_images, tmp_path):
    (tmp_path / 'linked').symlink_to(source_images / 'negative')
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'broken').symlink_to(tmp_path / 'gone')
    found, refused = predict.find_images(str(tmp_path))
    assert len(found) == 60 + 2
    assert refused[str(tmp_path / 'pipe')] == 'not a regular file' and str(tmp_path / 'broken') in refused


def test_what_cannot_be_used_is_refused_before_tensorflow_loads(tmp_path):
    for images in (tmp_path / 'nowhere', tmp_path / '*.jpg', tmp_path):
        with pytest.raises(UserError, match='no file there; name a folder, an image or a quoted glob'):
            predict.main(PredictConfig(run_dir='R', images=str(images), output=str(tmp_path / 'out.csv')))
    (tmp_path / 'a.jpg').touch()
    for output in (tmp_path, tmp_path / 'no' / 'out.csv'):
        with pytest.raises(UserError, match='must be a file in a folder that exists'):
            predict.main(PredictConfig(run_dir='R', images=str(tmp_path), output=str(output)))


def test_nothing_but_predictions_is_overwritten(tmp_path):
    photo, other = tmp_path / 'a.jpg', tmp_path / 'model.keras'
    for path in (photo, other):
        path.write_bytes(b'precious')
        with pytest.raises(UserError, match='holds something else than predictions: name another file'):
            predict.main(PredictConfig(run_dir='R', images=str(photo), output=str(path)))
        assert path.read_bytes() == b'precious'
    (tmp_path / 'old.csv').write_bytes(b'source,predicted,p_a,p_b,error')
    with pytest.raises(UserError, match='--run_dir=R: there is no run in it'):  # the next thing that is checked
        predict.main(PredictConfig(run_dir='R', images=str(photo), output=str(tmp_path / 'old.csv')))


def test_a_folder_that_holds_only_earlier_predictions(tmp_path):
    (tmp_path / 'out.csv').write_bytes(b'source,predicted,p_a,p_b,error')
    with pytest.raises(UserError, match='nothing there but --output='):
        predict.main(PredictConfig(run_dir='R', images=str(tmp_path), output=str(tmp_path / 'out.csv')))
