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
def evaluated(small_run, tmp_path_factory):
    """A copy of a small finished run, evaluated on test and val."""
    run = tmp_path_factory.mktemp('evaluated') / 'run'
    shutil.copytree(small_run, run)
    for split in ('val', 'test'):
        evaluate.main(EvaluateConfig(run_dir=str(run), split=split, batch_size=5))
    return run


@pytest.fixture(autouse=True)
def without_heat_maps(monkeypatch):
    """Only `evaluated`, made before, has heat maps in its report: each evaluation traces the network for them."""
    monkeypatch.setattr(evaluate, '_heat_maps', lambda *_: {})


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
    assert ' test images right' in page and 'data:image/jpeg;base64' in page and 'Heat map of what looked' in page
    assert 'first batch of the run' in page and '<td>xception</td>' in page and '48x40' in page
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


@pytest.mark.long
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


def again(run, **settings):
    """Evaluates once more; (metrics.json, decision.json)."""
    evaluate.main(EvaluateConfig(run_dir=str(run), **settings))
    split = settings.get('split', 'test')
    return (json.loads((run / 'evaluation' / split / 'metrics.json').read_text()),
            json.loads((run / 'decision.json').read_text()))


@pytest.fixture
def unsure(evaluated):
    """The evaluated run, of which the network is made to say less sure things, with mistakes, on val and test."""
    run = evaluated.parent / 'unsure'
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(evaluated, run)
    for split in ('val', 'test'):
        path = run / 'evaluation' / split / 'uncalibrated.npz'
        with np.load(path) as kept:
            arrays = dict(kept)
        truth = np.array([row['label'] == 'positive' for row in rows(run, split)])
        random = np.random.default_rng(len(split))
        score = np.clip(0.15 + 0.2 * truth + random.normal(0, 0.1, len(truth)), 0.001, 0.4).astype(np.float32)
        arrays['probabilities'] = np.stack([1 - score, score], axis=1)
        np.savez(path, **arrays)
    (run / 'decision.json').unlink()
    return run


def test_the_threshold_comes_from_validation_and_stays(unsure, monkeypatch):
    monkeypatch.setattr(evaluate, '_predict', lambda *_: pytest.fail('the network was asked'))
    metrics, decision = again(unsure)
    assert 0 < decision['threshold'] < 0.4 and decision['chosen_on'] == 'val'
    assert decision['validation']['f1'] > 0 == decision['validation']['at_half']['f1']
    assert metrics['threshold'] == decision['threshold'] and metrics['decision'] == decision
    assert metrics['at_half']['recall'] == 0 < metrics['recall']
    table = rows(unsure)
    assert [row['predicted'] == 'positive' for row in table] == [
        float(row['p_positive']) >= decision['threshold'] for row in table]
    # What test holds has no part in it.
    (unsure / 'decision.json').unlink()
    assert again(unsure, split='val')[1] == decision
    _, other = again(unsure, min_recall=1.0)
    assert other['validation']['recall'] == 1 and other['criterion']['min_recall'] == 1
    assert again(unsure)[1] == other, 'kept'


def test_a_threshold_of_no_use_is_told_in_terminal_and_report(unsure, capsys):
    path = unsure / 'evaluation' / 'val' / 'uncalibrated.npz'
    with np.load(path) as kept:
        arrays = dict(kept)
    arrays['probabilities'] = np.full_like(arrays['probabilities'], 0.5)
    np.savez(path, **arrays)
    again(unsure)
    words = 'is of little use: it was chosen where ROC-AUC is 0.500'
    assert f'warning: the threshold 0.5 {words}' in capsys.readouterr().out
    assert f'The threshold 0.5 {words}' in (unsure / 'report' / 'index.html').read_text()


def test_run_export_and_evaluation_decide_alike(unsure, source_images):
    """With a threshold and a temperature: the loaded run, the served graph and predictions.csv."""
    from boardrec.serving import signatures
    metrics, decision = again(unsure, threshold='f1', calibrate=True)
    assert decision['temperature'] != 1
    assert decision['validation']['log_loss'] < decision['validation']['uncalibrated']['log_loss']
    predictor = inference.load(unsure)
    assert (predictor.threshold, predictor.temperature) == (decision['threshold'], decision['temperature'])
    with np.load(unsure / 'evaluation' / 'test' / 'uncalibrated.npz') as kept:
        scaled = inference.calibrate(kept['probabilities'], predictor.temperature)
    table = rows(unsure)
    np.testing.assert_allclose(scaled[:, 1], [float(row['p_positive']) for row in table], rtol=1e-6)
    assert [predictor.classes.names[i] for i in inference.decide(predictor, scaled).numpy()] == [
        row['predicted'] for row in table]
    # A threshold that splits what the real network says of these images.
    data = [(source_images / row['source']).read_bytes() for row in table[:6]]
    read = images.reader(*predictor.config.height_width())
    probabilities = inference.probabilities(predictor)(np.stack([read(item) for item in data])).numpy()
    middle = float(np.float32(np.median(probabilities[:, 1]) + 1e-4))
    predictor = predictor._replace(threshold=middle)
    served = signatures.Servable(predictor).serving_default(np.array(data, object))
    np.testing.assert_allclose(served['probabilities'], probabilities, atol=1e-5)
    assert [label.decode() for label in served['label'].numpy()] == [
        predictor.classes.names[int(p >= middle)] for p in probabilities[:, 1]]


def test_a_damaged_decision_and_one_of_other_weights(unsure):
    again(unsure)
    decision = json.loads((unsure / 'decision.json').read_text())
    (unsure / 'decision.json').write_text(json.dumps({**decision, 'weights_sha256': 'other'}))
    assert inference.load(unsure).threshold == 0.5
    for text in '{', '{"threshold": 2, "temperature": 1}', '[]':
        (unsure / 'decision.json').write_text(text)
        with pytest.raises(UserError, match='decision.json is damaged: delete it'):
            evaluate.main(EvaluateConfig(run_dir=str(unsure)))


def test_damaged_probabilities_are_computed_anew(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / 'run')
    path = tmp_path / 'run' / 'evaluation' / 'test' / 'uncalibrated.npz'
    content, before = bytearray(path.read_bytes()), rows(evaluated)
    with np.load(path) as kept:
        place = content.index(kept['probabilities'].tobytes()[:16])
    content[place + 5] ^= 1
    for damaged in bytes(content), bytes(content[:200]):
        path.write_bytes(damaged)
        evaluate.main(EvaluateConfig(run_dir=str(tmp_path / 'run'), batch_size=14))  # the last batch has one record
        for row, other in zip(rows(tmp_path / 'run'), before, strict=True):
            assert float(row['p_positive']) == pytest.approx(float(other['p_positive']), abs=1e-6)


def test_slices_are_in_metrics_and_text(evaluated, tmp_path, capsys):
    shutil.copytree(evaluated, tmp_path / 'run')
    metrics, _ = again(tmp_path / 'run', slice_by=r'\.(\w+)$')
    assert [row['slice'] for row in metrics['slices']] == ['jpg', 'png'] and metrics['slice_by'] == r'\.(\w+)$'
    assert sum(row['records'] for row in metrics['slices']) == metrics['records']
    assert 'too few records to tell' in capsys.readouterr().out
    text = (tmp_path / 'run' / 'evaluation' / 'test' / 'summary.txt').read_text()
    assert 'ROC-AUC' in text and 'jpg' in text
    assert again(tmp_path / 'run')[0]['slices'] == []
    with pytest.raises(UserError, match='--slice_by=xyz matches none'):
        again(tmp_path / 'run', slice_by='xyz')


def test_every_metric_recomputes_from_the_csv_alone(unsure):
    """With nothing of ours but the file and the names in it."""
    metrics, _ = again(unsure, calibrate=True)
    table = rows(unsure)
    y, p = (np.array([float(row[key] == 'positive') if key == 'label' else float(row[key]) for row in table])
            for key in ('label', 'p_positive'))
    said = np.array([row['predicted'] == 'positive' for row in table])
    loss, correct = (np.array([float(row[key]) for row in table]) for key in ('loss', 'correct'))
    tp, fp, fn, tn = ((y == a) & (said == b) for a, b in ((1, 1), (0, 1), (1, 0), (0, 0)))
    tp, fp, fn, tn = (count.sum() for count in (tp, fp, fn, tn))
    bins = np.minimum(p * 15, 14).astype(int)
    gaps = [abs((p - y)[bins == i].sum()) for i in range(15)]
    wanted = {'accuracy': correct.mean(), 'precision': tp / (tp + fp), 'recall': tp / (tp + fn),
              'log_loss': loss.mean(), 'specificity': tn / (tn + fp), 'f1': 2 * tp / (2 * tp + fp + fn),
              'brier': ((p - y) ** 2).mean(), 'ece': sum(gaps) / len(p),
              'balanced_accuracy': (tp / (tp + fn) + tn / (tn + fp)) / 2}
    assert {key: metrics[key] for key in wanted} == pytest.approx(wanted, rel=1e-7)
    assert loss == pytest.approx(-np.log(np.where(y, p, 1 - p)), rel=1e-5)


def test_two_runs_side_by_side(unsure, evaluated, monkeypatch, capsys):
    again(unsure)
    capsys.readouterr()
    monkeypatch.setattr(evaluate, '_predict', lambda *_: pytest.fail('the network was asked'))
    evaluate.main(EvaluateConfig(compare=f'{evaluated},{unsure}'))
    out = capsys.readouterr().out
    page = unsure / 'report' / 'compare-run.html'
    assert str(page) in out and 'McNemar p = ' in out
    result = json.loads(page.with_suffix('.json').read_text())
    first, second = rows(evaluated), rows(unsure)
    assert {row['record_id'] for row in result['changed']} == {
        int(a['record_id']) for a, b in zip(first, second, strict=True) if a['predicted'] != b['predicted']}
    accuracy = [np.mean([int(row['correct']) for row in table]) for table in (first, second)]
    row = result['metrics']['accuracy']
    assert [row['first'], row['second']] == pytest.approx(accuracy) and result['split'] == 'test'
    assert page.read_text().count('<img') == min(48, len(result['changed'])) and 'no picture' not in page.read_text()


def test_what_cannot_be_set_side_by_side(evaluated, small_run, tmp_path):
    with pytest.raises(UserError, match='has no evaluation of test: evaluate it first with python -m boardrec'):
        evaluate.main(EvaluateConfig(compare=f'{evaluated},{small_run}'))
    shutil.copytree(evaluated, tmp_path / 'other')
    facts = json.loads((tmp_path / 'other' / 'run.json').read_text())
    (tmp_path / 'other' / 'run.json').write_text(json.dumps({**facts, 'records_fingerprint': 'x'}))
    with pytest.raises(UserError, match='were trained on other records: compare runs of the same'):
        evaluate.main(EvaluateConfig(compare=f'{evaluated},{tmp_path / "other"}'))
    (tmp_path / 'other' / 'run.json').write_text(json.dumps({**facts, 'positive_class': 'negative'}))
    with pytest.raises(UserError, match='positive class is positive in one run and negative in the other'):
        evaluate.main(EvaluateConfig(compare=f'{evaluated},{tmp_path / "other"}'))
    with pytest.raises(UserError, match='--compare=.*nowhere: there is no run in it'):
        evaluate.main(EvaluateConfig(compare=f'{evaluated},{tmp_path / "nowhere"}'))
