"""Exports a finished run for TF Serving: python -m boardrec.export --run_dir=RUN --export_dir=MODELS/boardrec."""

import pathlib

import boardrec
from boardrec import cli, progress
from boardrec.config import ExportConfig
from boardrec.training import run_dir


def main(config: ExportConfig) -> None:
    """Writes the next version below --export_dir, checked in a TF1 session as TF Serving runs it."""
    run_dir.require_finished(config.run_dir)
    progress.import_tensorflow()
    from boardrec.serving import publish, signatures
    from boardrec.training import inference
    predictor = inference.load(config.run_dir)
    export_dir = pathlib.Path(config.export_dir)
    metadata = {
        'boardrec': boardrec.__version__, 'versions': predictor.facts['versions'],
        'class_names': predictor.classes.names, 'positive_class': predictor.config.positive_class,
        'image_size': list(predictor.config.height_width()), 'backbone': predictor.config.backbone,
        'inference_precision': predictor.config.inference_precision,
        'inference_views': predictor.config.inference_views,
        'threshold': predictor.threshold, 'temperature': predictor.temperature,
        'weights_sha256': predictor.facts['weights_sha256'],
        'records_fingerprint': predictor.facts['records_fingerprint'],
    }
    published = publish.find(export_dir, metadata)
    if published:
        progress.say(f'{published}: this run is exported already; nothing to do.')
        return

    def write(folder: pathlib.Path) -> None:
        signatures.save(predictor, folder)
        signatures.self_test(predictor, folder)

    published = publish.publish(export_dir, metadata, write)
    size = sum(path.stat().st_size for path in published.rglob('*') if path.is_file())
    progress.say(f'{published}: {size / 2**20:,.1f} MiB, signature serving_default(image_bytes), '
                 'tested in a TF1 session')


if __name__ == '__main__':
    cli.run(main, ExportConfig)
