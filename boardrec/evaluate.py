"""Evaluates a finished run: python -m boardrec.evaluate --run_dir=RUN --split=test."""

import dataclasses
import json
import pathlib
import time
from typing import Any

import boardrec
from boardrec import cli, progress
from boardrec.config import EvaluateConfig, UserError
from boardrec.data import files, mirror, records, tfrecord
from boardrec.training import run_dir


def main(config: EvaluateConfig) -> None:
    """Writes predictions.csv, metrics.json and classification_report.txt of a split into RUN, and the report."""
    _, trained, _ = run_dir.require_finished(config.run_dir)
    if config.input_dir and not pathlib.Path(config.input_dir).is_dir():
        raise UserError(f'--input_dir={config.input_dir}: there is no such folder.')
    with mirror.opened(config.records or trained.records) as folder:
        _evaluate(config, folder)


def _evaluate(config: EvaluateConfig, records_folder: pathlib.Path) -> None:
    progress.import_tensorflow()
    from boardrec.data import images
    from boardrec.reporting import metrics, report
    from boardrec.training import inference

    predictor = inference.load(config.run_dir)
    record_set = _open_records(config, predictor, records_folder)
    folder = predictor.run.evaluation(config.split)
    identity = {
        'split': config.split, 'inference_precision': predictor.config.inference_precision,
        'weights_sha256': predictor.facts['weights_sha256'], 'records_fingerprint': record_set.manifest.fingerprint,
        'decode_version': images.DECODE_VERSION, 'boardrec': boardrec.__version__}
    names, positive = predictor.classes.names, predictor.config.positive_class or None
    sample = _sources(config, record_set) if config.check_sources else []
    speed, source_check = _earlier(folder, identity)
    if speed is None:
        predictions, speed = _predict(config, predictor, record_set)
        folder.mkdir(parents=True, exist_ok=True)
        metrics.write_predictions(folder / 'predictions.csv', predictions, names, positive_class=positive)
    else:
        progress.say(f'{folder}: predictions are there already')
    # Computed from the file, so that whoever has the file can compute the same.
    predictions, _ = metrics.read_predictions(folder / 'predictions.csv')
    if sample:
        source_check = _check_sources(config, predictor, sample, predictions)
    values = metrics.compute(predictions, names, positive)
    text = metrics.classification_report_text(predictions, names, positive)
    with files.atomic_write(folder / 'classification_report.txt') as file:
        file.write(text.encode())
    metrics.write_json(folder / 'metrics.json', {
        **values, **identity, 'predictions_sha256': files.sha256_of(folder / 'predictions.csv'),
        'images_per_second': speed, 'source_check': source_check})
    predictor.run.report.parent.mkdir(exist_ok=True)
    report.write(
        predictor.run.report, split=config.split, run=_facts(predictor, record_set, speed),
        history=run_dir.read_history(predictor.run), metrics=values, predictions=predictions, class_names=names,
        read_image=lambda record_id: images.picture(
            tfrecord.read_image(record_set, record_id), record_set.manifest.storage))
    progress.say(text.rstrip())
    auc = '' if values['auc'] is None else f', AUC {values["auc"]:.4f}'
    progress.say(f'{config.split}: accuracy {values["accuracy"]:.4f}{auc} on {values["records"]:,} records; '
                 f'report: {predictor.run.report}')


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


def _earlier(folder: pathlib.Path, identity: dict[str, Any]) -> tuple[float | None, dict[str, Any] | None]:
    """The images/s of an earlier evaluation of exactly this, if there is a whole one, and its check of sources."""
    try:
        earlier = json.loads((folder / 'metrics.json').read_bytes())
        done = {**identity, 'predictions_sha256': files.sha256_of(folder / 'predictions.csv')}
        same = all(earlier[name] == value for name, value in done.items())
        return (earlier['images_per_second'], earlier['source_check']) if same else (None, None)
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _predict(config: EvaluateConfig, predictor: Any, record_set: records.RecordSet) -> tuple[Any, float]:
    """Predictions of each record once, in record_id order, and images/s."""
    import numpy as np

    from boardrec.data import input_pipeline
    from boardrec.reporting import metrics
    from boardrec.training import inference
    function, ids = inference.probabilities(predictor), record_set.split_range(config.split)
    dataset = input_pipeline.eval_dataset(
        record_set, config.split, image_size=predictor.config.height_width(), batch_size=config.batch_size)
    rows, start = [], time.perf_counter()
    with progress.bar(f'evaluating {config.split}', total=len(ids), unit='images') as bar:
        with input_pipeline.naming_damage(record_set):
            for batch in dataset:
                rows.append(function(batch.inputs).numpy())
                bar.update(len(rows[-1]))
    seconds = time.perf_counter() - start
    return metrics.Predictions(
        np.array(ids, np.int64), record_set.sources[ids.start:ids.stop], record_set.labels[ids.start:ids.stop],
        np.concatenate(rows)), len(ids) / seconds


def _sources(config: EvaluateConfig, record_set: records.RecordSet) -> list[records.Row]:
    """Records of the split, evenly spaced, as many as there are or as are to be checked.

    Raises UserError if the source of one is missing or has other bytes than it was converted from.
    """
    ids = record_set.split_range(config.split)
    count = min(config.check_sources, len(ids))
    chosen = {ids[number * len(ids) // count] for number in range(count)}
    rows = [row for row in records.read_index(record_set.folder) if row.record_id in chosen]
    for row in rows:
        path = pathlib.Path(config.input_dir, row.source)
        if not path.is_file():
            raise UserError(f'{path} is missing: name the folder that the records were converted from with '
                            '--input_dir.')
        if files.sha256_of(path) != row.sha256:
            raise UserError(f'{path} has changed since its record was made from it: name a folder with the files as '
                            'they were with --input_dir, or convert the images again.')
    return rows


def _check_sources(config: EvaluateConfig, predictor: Any, rows: list[records.Row], predictions: Any) -> dict[str, Any]:
    """How far the probabilities of these records lie from those of their sources, which predict and the export see."""
    import numpy as np

    from boardrec.reporting import metrics
    from boardrec.training import inference
    function, read = inference.probabilities(predictor), inference.file_reader(predictor)
    batches = [rows[i:i + config.batch_size] for i in range(0, len(rows), config.batch_size)]
    of_sources = np.concatenate([
        function(np.stack([read(pathlib.Path(config.input_dir, row.source).read_bytes()) for row in batch])).numpy()
        for batch in batches])
    of_records = predictions.probabilities[[row.record_id - predictions.record_ids[0] for row in rows]]
    difference, positive = np.abs(of_records - of_sources), predictor.classes.positive
    decisions = metrics.decide(of_records, positive) != metrics.decide(of_sources, positive)
    check = {'records': len(rows), 'max_difference': float(difference.max()),
             'mean_difference': float(difference.mean()), 'decisions_differ': int(decisions.sum())}
    progress.say(f'{check["records"]} records and their source files: probabilities differ by at most '
                 f'{check["max_difference"]:.2g}, on average by {check["mean_difference"]:.2g}; '
                 f'{check["decisions_differ"]} of {check["records"]} decisions differ')
    return check


def _facts(predictor: Any, record_set: records.RecordSet, speed: float) -> dict[str, dict[str, object]]:
    """What the report lists in its tables."""
    manifest, facts = record_set.manifest, predictor.facts
    data = {f'{split} records': ', '.join(f'{name} {count:,}' for name, count in info.class_counts.items())
            for split, info in manifest.splits.items()}
    data['rejected files'] = len(records.read_rejected(record_set.folder))
    return {
        'Outcome': {'epochs': facts['epochs'], 'best epoch': facts['best_epoch'],
                    'best validation loss': f'{facts["best_val_loss"]:.4f}', 'evaluation, images/s': f'{speed:.1f}'},
        'Data': data,
        'Settings': {field.name: getattr(predictor.config, field.name) for field in dataclasses.fields(predictor.config)
                     if getattr(predictor.config, field.name) != ''},
        'Versions and fingerprints': {'boardrec': boardrec.__version__, **facts['versions'],
                                      'records': manifest.fingerprint, 'weights': facts['weights_sha256']},
    }


if __name__ == '__main__':
    cli.run(main, EvaluateConfig)
