"""Classifies image files with a finished run.

python -m boardrec.predict --run_dir=RUN --images=FOLDER_OR_GLOB --output=predictions.csv
"""

from collections.abc import Iterator
import concurrent.futures
import csv
import glob
import io
import os
import pathlib
from typing import Any

from boardrec import cli, progress
from boardrec.config import PredictConfig, UserError
from boardrec.data import files, scan
from boardrec.training import run_dir

_FIRST_COLUMNS = b'source,predicted,'


def main(config: PredictConfig) -> None:
    """Writes a CSV file with a row an image: source, predicted, p_CLASS for each class, error (if it is no image)."""
    sources, refused = find_images(config.images)
    output = pathlib.Path(config.output)
    _check_output(output)
    sources = [source for source in sources if os.path.abspath(source) != os.path.abspath(output)]
    if not sources:
        raise UserError(f'--images={config.images}: nothing there but --output={output}; name a folder of images.')
    run_dir.require_finished(config.run_dir)
    progress.import_tensorflow()
    from boardrec.training import inference
    predictor = inference.load(config.run_dir)
    failed = 0
    with files.atomic_write(output) as binary:
        text = io.TextIOWrapper(binary, 'utf-8', errors='surrogateescape', newline='')
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(['source', 'predicted', *(f'p_{name}' for name in predictor.classes.names), 'error'])
        with progress.bar('predicting', total=len(sources), unit='images') as bar:
            for row in _rows(sources, refused, predictor, config.batch_size):
                writer.writerow(row)
                failed += bool(row[-1])
                bar.update(1)
        text.detach()  # flushes, and leaves the file to atomic_write
    progress.say(f'{output}: {len(sources) - failed:,} images classified, {failed:,} files could not be')


def _check_output(output: pathlib.Path) -> None:
    """Raises UserError for an output that would replace anything but earlier predictions: a photograph, say."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UserError(f'--output={output}: must be a file in a folder that exists.')
    if not output.exists():
        return
    with open(output, 'rb') as file:
        ours = file.read(len(_FIRST_COLUMNS)) == _FIRST_COLUMNS
    if not ours:
        raise UserError(f'--output={output} is there and holds something else than predictions: name another file.')


def find_images(images: str) -> tuple[list[str], dict[str, str]]:
    """The paths that --images means, sorted, and of those that are no files why; links are followed, as in conversion.

    Raises UserError if there are none.
    """
    if os.path.isdir(images):
        regular, rejected = scan.walk(pathlib.Path(images))
        found = [os.path.join(images, source) for source, *_ in regular]
        refused = {os.path.join(images, item.source): item.reason for item in rejected}
    else:
        found, refused = [images] if os.path.isfile(images) else glob.glob(images, recursive=True), {}
        found = [path for path in found if os.path.isfile(path)]
    if not found:
        raise UserError(f'--images={images}: no file there; name a folder, an image or a quoted glob.')
    return sorted([*found, *refused]), refused


def _rows(sources: list[str], refused: dict[str, str], predictor: Any, batch_size: int) -> Iterator[list[str]]:
    """The rows of the output, in order; the next batch is read while one is computed."""
    import numpy as np

    from boardrec.data import images
    from boardrec.reporting import metrics
    from boardrec.training import inference
    names = predictor.classes.names
    function, read = inference.probabilities(predictor), inference.file_reader(predictor)

    def load(source: str) -> tuple[str, Any, str]:
        """(source, pixels or None, error)."""
        if source in refused:
            return source, None, refused[source]
        try:
            return source, read(pathlib.Path(source).read_bytes()), ''
        except images.Rejected as error:
            return source, None, str(error)
        except OSError as error:
            return source, None, f'unreadable: {error.strerror}'

    with concurrent.futures.ThreadPoolExecutor() as pool:
        batches = [sources[i:i + batch_size] for i in range(0, len(sources), batch_size)]
        coming = [pool.submit(load, source) for source in batches[0]]
        for following in [*batches[1:], []]:
            loaded = [future.result() for future in coming]
            coming = [pool.submit(load, source) for source in following]
            good = [pixels for _, pixels, _ in loaded if pixels is not None]
            result = iter(function(np.stack(good)).numpy() if good else ())
            for source, pixels, error in loaded:
                if pixels is None:
                    yield [source, '', *('' for _ in names), error]
                    continue
                values = next(result)
                chosen = names[metrics.decide(values[None], predictor.classes.positive)[0]]
                yield [source, chosen, *(f'{value:.9g}' for value in values), '']


if __name__ == '__main__':
    cli.run(main, PredictConfig)
