"""Evaluates a finished run: python -m boardrec.evaluate --run_dir=RUN --split=test.

Or compares two that are evaluated: python -m boardrec.evaluate --compare=RUN_A,RUN_B --split=test.
"""

from collections.abc import Callable
import json
import pathlib
import time
from typing import Any

from boardrec import cli, progress
from boardrec.config import EvaluateConfig, UserError
from boardrec.data import files, mirror, records, tfrecord
from boardrec.training import run_dir


def main(config: EvaluateConfig) -> None:
    """Writes predictions.csv, metrics.json, summary.txt and classification_report.txt of a split into RUN.

    And the report, and decision.json: threshold and, if asked for, temperature, chosen on the validation records.
    With --compare it writes RUN_B/report/compare-RUN_A.html, which sets two evaluated runs side by side.
    """
    if config.compare:
        return _compare(config)
    _, trained, _ = run_dir.require_finished(config.run_dir)
    if config.input_dir and not pathlib.Path(config.input_dir).is_dir():
        raise UserError(f'--input_dir={config.input_dir}: there is no such folder.')
    with mirror.opened(config.records or trained.records) as folder:
        _evaluate(config, folder)


def _evaluate(config: EvaluateConfig, records_folder: pathlib.Path) -> None:
    progress.import_tensorflow()
    from boardrec.reporting import decisions, facts, metrics, predictions_csv, report, summary
    from boardrec.training import inference, source_check, uncalibrated

    predictor = inference.load(config.run_dir)
    record_set = _open_records(config, predictor, records_folder)
    names, positive = predictor.classes.names, predictor.config.positive_class or None
    ids = record_set.split_range(config.split)
    slice_of = _slices_of(config, record_set.sources[ids.start:ids.stop])
    sample = (source_check.choose(record_set, config.split, config.input_dir, config.check_sources)
              if config.check_sources else [])
    decision = _decision(config, predictor, record_set)
    predictor = inference.with_decision(predictor, decision)
    folder = predictor.run.evaluation(config.split)
    probabilities, speed = _probabilities(config, predictor, record_set, config.split)
    predictions_csv.write(
        folder / 'predictions.csv', _as_predictions(record_set, config.split, probabilities), names, split=config.split,
        positive_class=positive, threshold=predictor.threshold)
    # Computed from the file, so that whoever has the file can compute the same.
    predictions, _ = predictions_csv.read(folder / 'predictions.csv')
    identity = {'split': config.split, **uncalibrated.identity(predictor, record_set.manifest.fingerprint),
                'decision': decision, 'predictions_sha256': files.sha256_of(folder / 'predictions.csv')}
    checked = _earlier_check(folder, identity)
    if sample:
        of_sample = predictions.probabilities[[row.record_id - ids.start for row in sample]]
        checked = source_check.compare(predictor, sample, config.input_dir, of_sample, config.batch_size)
        progress.say(source_check.sentence(checked))
    values = metrics.compute(predictions, names, positive, predictor.threshold)
    sliced = _sliced(predictor, predictions, slice_of)
    texts = {'classification_report.txt': metrics.classification_report_text(
                 predictions, names, positive, predictor.threshold),
             'summary.txt': summary.text(values, sliced)}
    for name, text in texts.items():
        with files.atomic_write(folder / name) as file:
            file.write(text.encode('utf-8', 'backslashreplace'))
    metrics.write_json(folder / 'metrics.json', {
        **values, **identity, 'bootstrap': _bootstrap(predictions), 'images_per_second': speed,
        'source_check': checked, 'slice_by': config.slice_by or None, 'slices': sliced})
    evaluation = report.Evaluation(config.split, values, predictions, names, decision, sliced, checked, speed)
    shown = report.shown(evaluation)
    stored = dict(tfrecord.read_images(record_set, shown))
    predictor.run.report.parent.mkdir(exist_ok=True)
    report.write(
        predictor.run.report, evaluation, facts.gather(record_set, predictor.config, predictor.facts, config),
        run_dir.read_history(predictor.run), read_image=_pictures(record_set, stored),
        heat_maps=_heat_maps(predictor, record_set, stored, shown))
    doubt = decisions.doubt(decision)
    for line in [*(text.rstrip() for text in texts.values()), *summary.warnings(sliced),
                 *([f'warning: {doubt}'] if doubt else [])]:
        progress.say(line)
    auc = '' if values['auc'] is None else f', AUC {values["auc"]:.4f}'
    progress.say(f'{config.split}: accuracy {values["accuracy"]:.4f}{auc} on {values["records"]:,} records; '
                 f'report: {predictor.run.report}')


def _compare(config: EvaluateConfig) -> None:
    """The page of two runs' evaluations, and the same as JSON beside it."""
    paths = [pathlib.Path(path) for path in config.compared()]
    (first, trained, facts_a), (_, other, facts_b) = (
        run_dir.require_finished(path, flag='compare') for path in paths)
    if facts_a['records_fingerprint'] != facts_b['records_fingerprint']:
        raise UserError(f'--compare={config.compare}: the runs were trained on other records: compare runs of the same '
                        'record set.')
    if facts_a['positive_class'] != facts_b['positive_class']:
        raise UserError(f'--compare={config.compare}: the positive class is {facts_a["positive_class"]} in one run and '
                        f'{facts_b["positive_class"]} in the other, and so are their thresholds and figures: train '
                        'both with one --positive_class.')
    with mirror.opened(config.records or trained.records) as folder:
        progress.import_tensorflow()  # which reads the changed records' images
        from boardrec.reporting import comparison, comparison_page, metrics
        record_set = records.open_record_set(folder)
        if record_set.manifest.fingerprint != facts_a['records_fingerprint']:
            raise UserError(f'--compare={config.compare}: the runs were trained on other records than {folder} holds '
                            'now: name their own with --records.')
        sides = [comparison_page.read_side(path, config.split, trained, facts, run_dir.read_history(
            run_dir.RunDir(path))) for path, trained, facts in (
                (paths[0], trained, facts_a), (paths[1], other, facts_b))]
        result = comparison.compare(*(side.run for side in sides), facts_a['class_names'],
                                    facts_a['positive_class'] or None)
        stored = dict(tfrecord.read_images(record_set, comparison_page.shown(result['changed'])))
        page = run_dir.RunDir(paths[1]).comparison(first.path.absolute().name)
        page.parent.mkdir(exist_ok=True)
        metrics.write_json(page.with_suffix('.json'), {'split': config.split, **result})
        comparison_page.write(page, result, sides, config.split, facts_a['positive_class'] or None,
                              read_image=_pictures(record_set, stored))
    progress.say(comparison_page.sentence(result))
    progress.say(f'{config.split}: {len(result["changed"]):,} of {result["records"]:,} records are decided otherwise; '
                 f'page: {page}')


def _pictures(record_set: records.RecordSet, stored: dict[int, bytes]) -> Callable[[int], bytes]:
    """The function from a record id to bytes that a viewer shows."""
    from boardrec.data import images
    return lambda record_id: images.picture(stored[record_id], record_set.manifest.storage)


def _heat_maps(predictor: Any, record_set: records.RecordSet, stored: dict[int, bytes], classes: dict[int, int]
               ) -> dict[int, Any]:
    """For each stored image of {record id: class} a heat map of what spoke for the class."""
    import numpy as np

    from boardrec.data import images
    from boardrec.training import grad_cam
    if not stored:
        return {}
    size, storage = predictor.config.height_width(), record_set.manifest.storage
    pixels = np.stack([images.decode_stored(data, storage, *size).numpy() for data in stored.values()])
    maps = grad_cam.heat_maps(predictor, pixels, np.array([classes[number] for number in stored]))
    return dict(zip(stored, maps, strict=True))


def _decision(config: EvaluateConfig, predictor: Any, record_set: records.RecordSet) -> dict[str, Any]:
    """The run's threshold and temperature: those that it has, or chosen on the validation records and written there."""
    from boardrec.reporting import decisions
    from boardrec.training import inference
    kept = run_dir.read_decision(predictor.run, predictor.facts)
    criterion = decisions.Criterion(config.threshold, config.min_precision, config.min_recall, config.calibrate)
    if kept and criterion == decisions.Criterion():
        return kept
    raw, _ = _probabilities(config, predictor._replace(temperature=1.0), record_set, 'val')
    decision = decisions.choose(
        _as_predictions(record_set, 'val', raw), predictor.classes.positive, criterion,
        lambda temperature: inference.calibrate(raw, temperature).numpy())
    decision |= {'weights_sha256': predictor.facts['weights_sha256'],
                 'records_fingerprint': record_set.manifest.fingerprint}
    if decision != kept:
        run_dir.write_decision(predictor.run, decision)
        progress.say(f'{predictor.run.decision}: {decisions.sentence(decision)}')
    return decision


def _slices_of(config: EvaluateConfig, sources: list[str]) -> list[str]:
    from boardrec.reporting import slices
    return slices.names_of(sources, config.slice_by) if config.slice_by else []


def _sliced(predictor: Any, predictions: Any, slice_of: list[str]) -> list[dict[str, Any]]:
    from boardrec.reporting import slices
    if not slice_of:
        return []
    return slices.compute(predictions, slice_of, predictor.classes.names, predictor.config.positive_class or None,
                          predictor.threshold)


def _bootstrap(predictions: Any) -> dict[str, Any]:
    from boardrec.reporting import bootstrap
    return {'level': bootstrap.LEVEL, 'seed': bootstrap.SEED,
            'resamples': bootstrap.resamples(*predictions.probabilities.shape)}


def _open_records(config: EvaluateConfig, predictor: Any, folder: pathlib.Path) -> records.RecordSet:
    if not folder.is_dir():
        raise UserError(f'{folder}: the records that the run was trained on are not there; name them with --records.')
    record_set = records.open_record_set(folder)
    if record_set.manifest.fingerprint != predictor.facts['records_fingerprint']:
        raise UserError(f'--run_dir={config.run_dir} was trained on other records than {folder} holds now: '
                        'name its own with --records.')
    if not record_set.split_range(config.split):
        raise UserError(f'--split={config.split}: {folder} has no record in it.')
    return record_set


def _earlier_check(folder: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The check of sources of an earlier evaluation of exactly this, if there was one."""
    try:
        earlier = json.loads((folder / 'metrics.json').read_bytes())
        same = all(earlier[name] == value for name, value in identity.items())
        return earlier['source_check'] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _probabilities(config: EvaluateConfig, predictor: Any, record_set: records.RecordSet,
                   split: str) -> tuple[Any, float]:
    """Calibrated probabilities float32 [N, C] of each record once, in record_id order, and images/s.

    The network is asked once: what it says is kept, so that another threshold or temperature costs nothing.
    """
    from boardrec.training import inference, uncalibrated
    fingerprint = record_set.manifest.fingerprint
    raw, speed = uncalibrated.read(predictor, split, fingerprint, len(record_set.split_range(split)))
    if raw is None:
        raw, speed = _predict(config, predictor._replace(temperature=1.0), record_set, split)
        uncalibrated.write(predictor, split, fingerprint, raw, speed)
    else:
        progress.say(f'{predictor.run.evaluation(split)}: predictions are there already')
    return inference.calibrate(raw, predictor.temperature).numpy(), speed


def _predict(config: EvaluateConfig, predictor: Any, record_set: records.RecordSet, split: str) -> tuple[Any, float]:
    """What the run says of each record once, float32 [N, C] in record_id order, and images/s."""
    import numpy as np

    from boardrec.data import input_pipeline
    from boardrec.training import inference
    function, count = inference.probabilities(predictor), len(record_set.split_range(split))
    dataset = input_pipeline.eval_dataset(
        record_set, split, image_size=predictor.config.height_width(), batch_size=config.batch_size)
    rows, start = [], time.perf_counter()
    with progress.bar(f'evaluating {split}', total=count, unit='images') as bar:
        with input_pipeline.naming_damage(record_set):
            for batch in dataset:
                rows.append(function(batch.inputs).numpy())
                bar.update(len(rows[-1]))
    return np.concatenate(rows), count / (time.perf_counter() - start)


def _as_predictions(record_set: records.RecordSet, split: str, probabilities: Any) -> Any:
    import numpy as np

    from boardrec.reporting import metrics
    ids = record_set.split_range(split)
    return metrics.Predictions(np.array(ids, np.int64), record_set.sources[ids.start:ids.stop],
                               record_set.labels[ids.start:ids.stop], probabilities)


if __name__ == '__main__':
    cli.run(main, EvaluateConfig)
