"""Trains a classifier: python -m boardrec.train --flagfile=flags/vgg16.flags --records=RECORDS --run_dir=RUN."""

from boardrec import cli, progress
from boardrec.config import TrainConfig


def main(config: TrainConfig) -> None:
    """Trains on RECORDS and leaves the best epoch's model in RUN; the same command continues an interrupted run."""
    progress.import_tensorflow()
    from boardrec.training import fit  # it loads TensorFlow: by now the flags are known to be good
    fit.fit(config)


if __name__ == '__main__':
    cli.run(main, TrainConfig)
