"""Converts images into a record set: python tools/make_records.py --input_dir=IMAGES --output_dir=RECORDS."""

from boardrec import cli
from boardrec.config import ConvertConfig
from boardrec.data import convert


def main(config: ConvertConfig) -> None:
    """Converts a folder of images, or a TFDS data set, into sharded TFRecords with a manifest."""
    convert.convert(config)


if __name__ == '__main__':
    cli.run(main, ConvertConfig, resumes=True)
