"""Evaluation: each record once, and metrics.json is what predictions.csv says."""

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from boardrec import cli, evaluate
from boardrec.config import EvaluateConfig, UserError
from boardrec.data import images, records, tfrecord
from boardrec.training import inference, run_dir


@pytest.fixture(scope='module')
def evaluated(finished_run, tmp_path_factory):
    """A copy of the finished run, evaluated on test and val."""
    run = tmp_path_factory.mktemp('evaluated') / 'run'
    shutil.copytree(finished_run, run)
    for split in ('val', 'test'):
        evaluate.main(EvaluateConfig(run_dir=str(run), split=split, batch_size=5))
    return run


def rows(run, split='test'):
    with open(run / 'evaluation' / split / 'predictions.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('split', ['val', 'test'])
def test_each_record_once_in_order(evaluated, record_set, split):
    ids = record_set.split_range(split)
    table = rows(evaluated, split)
    assert [int(row['record_id']) for row in table] == list(ids)
    assert [row['source'] for row in table] == record_set.sources[ids.start:ids.stop]
    assert list(table[0]) == ['record_id', 'source', 'split', 'label', 'predicted', 'p_negative', 'p_positive', 'loss',
                              'correct']
    assert {row['split'] for row in table} == {split}


def test_metrics_recompute_from_the_file(evaluated):
    metrics = json.loads((evaluated / 'evaluation' / 'test' / 'metrics.json').read_text())
    table = rows(evaluated)
    truth = np.array([row['label'] == 'positive' for row in table])
    score = np.array([float(row['p_positive']) for row in table])
    decided = score >= metrics['threshold']
    assert [row['predicted'] == 'positive' for row in table] == decided.tolist()
    assert metrics['records'] == len(table) and metrics['accuracy'] == (truth == decided).mean()
    assert metrics['confusion_matrix'] == [[((truth == t) & (decided == d)).sum() for d in (0, 1)] for t in (0, 1)]
    pairs = score[truth][:, None] - score[~truth][None]
    assert metrics['auc'] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    hits = (truth & decided).sum()
    assert metrics['f1'] == pytest.approx(2 * hits / (truth.sum() + decided.sum()))
    assert metrics['class_names'] == ['negative', 'positive'] and metrics['inference_precision'] == 'float32'


def test_probabilities_are_the_models_on_the_source_images(evaluated, source_images):
    predictor = inference.load(evaluated)
    function = inference.probabilities(predictor)
    for row in rows(evaluated)[:4]:
        pixels = images.decode((source_images / row['source']).read_bytes(), 32, 32)
        expected = function(pixels[None]).numpy()[0]
        np.testing.assert_allclose([float(row['p_negative']), float(row['p_positive'])], expected, atol=1e-5)


def test_the_report_stands_by_itself(evaluated):
    page = (evaluated / 'report' / 'index.html').read_text()
    assert 'test images right' in page and 'data:image/jpeg;base64' in page
    text = (evaluated / 'evaluation' / 'test' / 'classification_report.txt').read_text()
    assert 'precision' in text and 'positive' in text


def test_again_computes_nothing_anew(evaluated, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, '_predict', lambda *_: pytest.fail('predicted again'))
    before = (evaluated / 'evaluation' / 'test' / 'metrics.json').read_bytes()
    evaluate.main(EvaluateConfig(run_dir=str(evaluated)))
    assert 'predictions are there already' in capsys.readouterr().out
    assert (evaluated / 'evaluation' / 'test' / 'metrics.json').read_bytes() == before


@pytest.mark.parametrize('cut', [
    lambda text: text[:text.rindex('\n', 0, -1) + 1], lambda text: text[:-9], lambda _: ''],
    ids=['row', 'digits', 'all'])
def test_a_damaged_file_of_predictions_is_written_anew(evaluated, tmp_path, cut):
    shutil.copytree(evaluated, tmp_path / 'run')
    path = tmp_path / 'run' / 'evaluation' / 'test' / 'predictions.csv'
    before = path.read_text()
    path.write_text(cut(before))
    evaluate.main(EvaluateConfig(run_dir=str(tmp_path / 'run'), batch_size=5))
    assert path.read_text() == before


def test_moved_records_are_named(evaluated, record_set_path, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(evaluated, run)
    config = dataclasses.replace(run_dir.read_config(run), records=str(tmp_path / 'gone'))
    (run / 'run.flags').write_text(cli.to_flagfile(config))
    with pytest.raises(UserError, match='gone: the records that the run was trained on are not there.*--records'):
        evaluate.main(EvaluateConfig(run_dir=str(run)))
    evaluate.main(EvaluateConfig(run_dir=str(run), records=str(record_set_path)))


def test_other_records_and_empty_splits_are_refused(evaluated, image_folder, convert_here, tmp_path):
    convert_here(image_folder({'train/negative': 9, 'train/positive': 9}), tmp_path / 'records')
    with pytest.raises(UserError, match='was trained on other records'):
        evaluate.main(EvaluateConfig(run_dir=str(evaluated), records=str(tmp_path / 'records')))
    with pytest.raises(UserError, match="has no split 'test'"):
        records.open_record_set(tmp_path / 'records').split_range('test')
    with pytest.raises(UserError, match='--split=dev: must be one of train, val, test'):
        EvaluateConfig(run_dir='R', split='dev')


def checked(run, source_images, **settings):
    """What metrics.json holds of a check of sources."""
    evaluate.main(EvaluateConfig(run_dir=str(run), input_dir=str(source_images), **settings))
    return json.loads((run / 'evaluation' / settings.get('split', 'test') / 'metrics.json').read_text())['source_check']


def test_kept_records_are_what_prediction_makes_of_their_sources(evaluated, source_images, record_set, capsys):
    check = checked(evaluated, source_images, check_sources=5, batch_size=2)
    assert (check['records'], check['decisions_differ']) == (5, 0)
    assert 0 <= check['mean_difference'] <= check['max_difference'] < 1e-5
    out = capsys.readouterr().out
    assert '5 records and their source files: probabilities differ by at most' in out
    assert '0 of 5 decisions differ' in out
    evaluate.main(EvaluateConfig(run_dir=str(evaluated)))
    metrics = json.loads((evaluated / 'evaluation' / 'test' / 'metrics.json').read_text())
    assert metrics['source_check'] == check, 'not lost by evaluating again'
    assert checked(evaluated, source_images, check_sources=1000)['records'] == len(record_set.split_range('test'))


def test_the_records_that_are_checked_are_spread_over_the_split(evaluated, source_images, record_set, tmp_path):
    ids = record_set.split_range('val')
    for place in (0, len(ids) // 3, 2 * len(ids) // 3):
        source = record_set.sources[ids[place]]
        (tmp_path / source).parent.mkdir(exist_ok=True)
        shutil.copy(source_images / source, tmp_path / source)
    assert checked(evaluated, tmp_path, check_sources=3, split='val')['records'] == 3
    with pytest.raises(UserError, match='is missing: name the folder that the records were converted from'):
        checked(evaluated, tmp_path, check_sources=4, split='val')


def test_a_source_that_changed_is_named(evaluated, source_images, record_set, tmp_path):
    shutil.copytree(source_images, tmp_path / 'images')
    path = tmp_path / 'images' / record_set.sources[record_set.split_range('test')[0]]
    path.write_bytes(path.read_bytes() + b'a byte more')  # the same picture
    with pytest.raises(UserError, match=f'^{path} has changed since its record was made from it.*--input_dir'):
        checked(evaluated, tmp_path / 'images', check_sources=1)


def test_records_that_were_resized_are_compared_with_what_prediction_sees(
        source_images, convert_here, train_config, small_backbone, tmp_path):
    """A run on raw records, its report and its check, all by the pixels that are stored."""
    from boardrec.training import fit
    convert_here(source_images, tmp_path / 'records', encoding='raw', image_size='32', resize='pad')
    config = train_config(records=str(tmp_path / 'records'), backbone=small_backbone, trainable_layers=5, epochs=1,
                          precision='float32', learning_rate=0.01)
    fit.fit(config, records.open_record_set(config.records))
    run = pathlib.Path(config.run_dir)
    check = checked(run, source_images, check_sources=4)
    predictor, record_set = inference.load(run), records.open_record_set(config.records)
    function, ids = inference.probabilities(predictor), record_set.split_range('test')
    differences = []
    for record_id in [ids[len(ids) * i // 4] for i in range(4)]:
        raw = np.frombuffer(tfrecord.read_image(record_set, record_id), np.uint8).reshape(32, 32, 3)
        seen = images.decode((source_images / record_set.sources[record_id]).read_bytes(), 32, 32)
        differences.append(function(raw[None]).numpy() - function(seen[None]).numpy())
    assert check['max_difference'] == pytest.approx(np.abs(differences).max(), abs=1e-6)
    assert check['mean_difference'] == pytest.approx(np.abs(differences).mean(), abs=1e-6)
    assert check['max_difference'] > 1e-4, 'padded and squashed are not the same'
    page = (run / 'report' / 'index.html').read_text()
    assert 'data:image/jpeg;base64' in page and 'no picture' not in page
