"""Trains a classifier: python -m boardrec.train --flagfile=flags/vgg16.flags --records=RECORDS --run_dir=RUN."""

from boardrec import cli, progress
from boardrec.config import TrainConfig
from boardrec.data import mirror, records


def main(config: TrainConfig) -> None:
    """Trains on RECORDS and leaves the best epoch's model in RUN; the same command continues an interrupted run."""
    with mirror.opened(config.records) as folder:
        _train(config, records.open_record_set(folder))


def _train(config: TrainConfig, record_set: records.RecordSet) -> None:
    if config.verify_records:
        records.require_sums(record_set)
    progress.import_tensorflow()  # five seconds: by now flags and records are known to be good
    from boardrec.data import input_pipeline
    from boardrec.training import fit
    with input_pipeline.naming_damage(record_set):
        fit.fit(config, record_set)


if __name__ == '__main__':
    cli.run(main, TrainConfig, resumes=True)
