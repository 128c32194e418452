"""Exports a finished run for TF Serving: python -m boardrec.export --run_dir=RUN --export_dir=MODELS/boardrec."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import boardrec
from boardrec import cli, progress
from boardrec.config import ExportConfig, UserError
from boardrec.data import records
from boardrec.training import run_dir

BATCHING = 'batching_params.pbtxt'
_LARGEST_DIFFERENCE, _LEAST_AGREEMENT = 0.02, 0.995


def main(config: ExportConfig) -> None:
    """Writes the next version below --export_dir, checked in a TF1 session as TF Serving runs it."""
    run_dir.require_finished(config.run_dir)
    progress.import_tensorflow()
    from boardrec.reporting import decisions
    from boardrec.serving import publish, self_test, signatures
    from boardrec.training import inference
    predictor = inference.load(config.run_dir)
    if doubt := decisions.doubt(run_dir.read_decision(predictor.run, predictor.facts)):
        progress.say(f'warning: {doubt}')
    export_dir = pathlib.Path(config.export_dir)
    limits = signatures.InputLimits(config.max_image_mib << 20, round(config.max_megapixels * 1e6), config.max_side,
                                    config.max_side_ratio)
    identity = _identity(config, predictor, limits._asdict())
    published = publish.find(export_dir, identity)
    if published:
        progress.say(f'{published}: this run is exported already; nothing to do.')
        return

    def write(folder: pathlib.Path) -> dict[str, Any]:
        served, comparison = _narrowed(config, predictor)
        signatures.save(served, folder, limits, config.weights_dtype)
        self_test.write_warmup(served, folder)
        (folder / BATCHING).write_text(_batching(self_test.BATCH_SIZES[-1]))
        golden = self_test.run(served, folder)
        return {**_facts(predictor), 'compared_with_run': comparison, 'golden': golden,
                'warmup_batch_sizes': list(self_test.BATCH_SIZES)}

    published = publish.publish(export_dir, identity, write)
    size = sum(path.stat().st_size for path in published.rglob('*') if path.is_file())
    progress.say(f'{published}: {size / 2**20:,.1f} MiB, signatures {", ".join(signatures.NAMES)}, '
                 'tested in a TF1 session')
    removed = publish.prune(export_dir, keep=config.keep) if config.keep else []
    if removed:
        progress.say(f'--keep={config.keep}: removed {", ".join(map(str, removed))}')


def _identity(config: ExportConfig, predictor: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """What makes two exports the same, as JSON has it."""
    from boardrec.data import images
    return {
        'boardrec': boardrec.__version__, 'versions': predictor.facts['versions'],
        'class_names': predictor.classes.names, 'positive_class': predictor.config.positive_class,
        'image_size': list(predictor.config.height_width()), 'backbone': predictor.config.backbone,
        'inference_precision': _precision(config, predictor),
        'inference_views': predictor.config.inference_views, 'decode_version': images.DECODE_VERSION,
        'threshold': predictor.threshold, 'temperature': predictor.temperature,
        'weights_sha256': predictor.facts['weights_sha256'], 'weights_dtype': config.weights_dtype,
        'records_fingerprint': predictor.facts['records_fingerprint'], 'input_limits': limits,
    }


def _facts(predictor: Any) -> dict[str, Any]:
    """What an export is told with: it makes no other export of it."""
    from boardrec.data import source_decode
    metrics = {}
    for split in ('val', 'test'):
        path = predictor.run.evaluation(split) / 'metrics.json'
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(path.read_bytes())
            if found['weights_sha256'] == predictor.facts['weights_sha256']:
                metrics[split] = found
    return {'settings': dataclasses.asdict(predictor.config), 'metrics': metrics,
            'error_codes': list(source_decode.CODES)}


def _batching(largest: int) -> str:
    """What TF Serving reads with --enable_batching --enable_per_model_batching_parameters; threads are the server's."""
    return (f'max_batch_size {{ value: {largest} }}\n'
            'batch_timeout_micros { value: 2000 }  # what a request waits for others, at most\n'
            'max_enqueued_batches { value: 64 }  # more are refused at once: UNAVAILABLE\n')


def _narrowed(config: ExportConfig, predictor: Any) -> tuple[Any, dict[str, Any] | None]:
    """The predictor as it is served, and what that changes on records of the run; None where it changes nothing.

    None, too, where the records are not there. Raises UserError if it changes too much.
    """
    from boardrec.serving import weights
    from boardrec.training import inference
    precision, halved = _precision(config, predictor), config.weights_dtype == 'bfloat16'
    if not halved and precision == predictor.config.inference_precision:
        return predictor, None
    asked = ' '.join([*(['--weights_dtype=bfloat16'] if halved else []),
                      *([f'--serving_precision={precision}'] if config.serving_precision != 'run' else [])])
    served = inference.in_precision(predictor, precision)
    if halved:
        weights.round_to_bfloat16(served)
    split, record_set = _records(predictor)
    if record_set is None:
        progress.say(f'note: {predictor.config.records}: the records that the run was trained on are not there, so '
                     f'{asked} is not compared with the run')
        return served, None
    exact = _probabilities(predictor, record_set, split, may_be_kept=True)
    narrow = _probabilities(served, record_set, split, may_be_kept=False)
    comparison = {'split': split, **weights.compare(predictor, exact, narrow)}
    agreement = 1 - comparison['decisions_differ'] / len(exact)
    found = (f'{asked}: on {len(exact):,} records of {split} probabilities differ from the run by at most '
             f'{comparison["max_difference"]:.2g}, and {agreement:.2%} of the decisions are the same')
    progress.say(found)
    if comparison['max_difference'] > _LARGEST_DIFFERENCE or agreement < _LEAST_AGREEMENT:
        raise UserError(f'{found} (at most {_LARGEST_DIFFERENCE} and at least {_LEAST_AGREEMENT:.1%} are allowed): '
                        'leave it out.')
    return served, comparison


def _precision(config: ExportConfig, predictor: Any) -> str:
    return predictor.config.inference_precision if config.serving_precision == 'run' else config.serving_precision


def _records(predictor: Any) -> tuple[str, records.RecordSet | None]:
    """The run's records and the split to compare on, if they are on this machine as they were."""
    try:
        record_set = records.open_record_set(predictor.config.records)
    except (UserError, OSError):
        return '', None
    if record_set.manifest.fingerprint != predictor.facts['records_fingerprint']:
        return '', None
    split = next((split for split in ('test', 'val') if record_set.split_range(split)), '')
    return split, record_set if split else None


def _probabilities(predictor: Any, record_set: records.RecordSet, split: str, *, may_be_kept: bool) -> Any:
    """Calibrated probabilities float32 [N, C] of a split's records; those that evaluate has kept cost nothing."""
    import numpy as np

    from boardrec.data import input_pipeline
    from boardrec.training import inference, uncalibrated
    ids = record_set.split_range(split)
    kept, _ = uncalibrated.read(predictor, split, record_set.manifest.fingerprint, len(ids))
    if may_be_kept and kept is not None:
        return inference.calibrate(kept, predictor.temperature).numpy()
    function = inference.probabilities(predictor)
    dataset = input_pipeline.view_dataset(
        record_set, split, [ids], image_size=predictor.config.height_width(), batch_size=32)
    with progress.bar(f'comparing weights on {split}', total=len(ids), unit='images') as bar:
        rows = []
        with input_pipeline.naming_damage(record_set):
            for batch in dataset:
                rows.append(function(batch.inputs).numpy())
                bar.update(len(rows[-1]))
    return np.concatenate(rows)


if __name__ == '__main__':
    cli.run(main, ExportConfig)
