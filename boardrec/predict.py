"""Classifies image files: python -m boardrec.predict --run_dir=RUN --images=FOLDER_OR_GLOB --output=predictions.csv."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
import pathlib
import sys
import time
from typing import Any, NamedTuple
import warnings

from boardrec import cli, progress
from boardrec.config import PredictConfig, UserError
from boardrec.data.image_paths import Candidate
from boardrec.reporting import prediction_file
from boardrec.reporting.prediction_file import Row
from boardrec.serving import saved_model
from boardrec.training import run_dir, stopping

_HELD_BYTES = 256 << 20  # of images that wait for the model, or more if two batches are


class Model(NamedTuple):
    """A run or an export: what it is, what it takes, and what it says."""

    names: list[str]
    identity: dict[str, Any]  # what its answers depend on
    batch_bytes: int  # of a batch of pixels
    content_of: Callable[[bytes], Any]  # of a file, what `classify` takes; raises images.Rejected
    classify: Callable[[list[Any]], list[tuple[str, list[float]]]]  # class ('': not decoded), each one's probability


def main(config: PredictConfig) -> None:
    """Writes a row an image: path, predicted, the probability of each class, and an error where it is no image.

    Files that are no images do not change the exit status, which is 0. The same command goes on after an interruption.
    """
    stdout = sys.stdout
    output = None if config.output == '-' else pathlib.Path(config.output)
    if output:
        prediction_file.require_output(output)
    kind = prediction_file.format_of(config.output, config.output_format)
    with contextlib.nullcontext() if output else contextlib.redirect_stdout(sys.stderr), stopping.listen():
        candidates, total = prediction_file.candidates_of(config.images, output)
        model = _of_saved_model(config) if config.saved_model else _of_run(config)
        identity = {**model.identity, 'limits': [config.max_image_mib, *_limits(config)]}
        with contextlib.ExitStack() as stack:
            if output:
                writer = stack.enter_context(prediction_file.opened(output, model.names, kind, identity))
            else:
                writer = prediction_file.Writer(stdout.buffer, model.names, kind)
            candidates = writer.resume(candidates, config.batch_size)
            earlier, start = writer.rows, time.perf_counter()
            if earlier:
                progress.say(f'{output}: going on behind {prediction_file.counted(earlier, "row")}')
            _write(config, model, candidates, writer, total)
        rate = (writer.rows - earlier) / (time.perf_counter() - start)
        progress.say(f'{output or "standard output"}: {writer.summary()}; {rate:,.1f} a second')


def _of_run(config: PredictConfig) -> Model:
    if saved_model.is_there(config.run_dir):
        raise UserError(f'--run_dir={config.run_dir}: is an export: give --saved_model={config.run_dir}')
    run_dir.require_finished(config.run_dir)
    progress.import_tensorflow()
    import numpy as np

    from boardrec.data import images
    from boardrec.reporting import metrics
    from boardrec.training import inference
    predictor = inference.load(config.run_dir)
    classes, (height, width) = predictor.classes, predictor.config.height_width()
    function = inference.probabilities(predictor)

    def classify(pixels: list[Any]) -> list[tuple[str, list[float]]]:
        probabilities = function(np.stack(pixels)).numpy()
        chosen = metrics.decide(probabilities, classes.positive, predictor.threshold)
        return [(classes.names[choice], row) for choice, row in zip(chosen, probabilities.tolist(), strict=True)]

    # With whatever else a decision depends on, such as the threshold.
    settings = {name: value for name, value in predictor._asdict().items() if isinstance(value, dict | int | float)}
    identity = {**settings, 'run': [height, width, predictor.config.inference_precision,
                                    predictor.config.inference_views, classes.positive, images.DECODE_VERSION]}
    return Model(classes.names, identity, config.batch_size * height * width * 3,
                 images.reader(height, width, _limits(config)), classify)


def _of_saved_model(config: PredictConfig) -> Model:
    folder, metadata = saved_model.find(config.saved_model)
    progress.import_tensorflow()
    from boardrec.data import images
    ask = saved_model.load(folder)

    def classify(encoded: list[bytes]) -> list[tuple[str, list[float]]]:
        answer = ask(encoded)
        return list(zip(answer.labels, answer.probabilities.tolist(), strict=True))

    height, width = metadata['image_size']
    return Model(metadata['class_names'], {'saved_model': metadata}, config.batch_size * height * width * 3,
                 functools.partial(images.normalise, limits=_limits(config)), classify)


def _limits(config: PredictConfig) -> Any:
    from boardrec.data import images
    return images.Limits(round(config.max_megapixels * 1e6), config.max_side, config.max_side_ratio)


def _write(config: PredictConfig, model: Model, candidates: Iterator[Candidate], writer: prediction_file.Writer,
           total: int | None) -> None:
    """Writes the rows, a batch at a time, while the next ones are read."""
    from boardrec.data import read_ahead
    held = max(_HELD_BYTES, 2 * model.batch_bytes)
    load = functools.partial(read_ahead.load, content_of=model.content_of, max_bytes=config.max_image_mib << 20)
    loaded = read_ahead.in_order(candidates, load, ahead=2 * config.batch_size + read_ahead.THREADS, held_bytes=held)
    with contextlib.closing(loaded), warnings.catch_warnings(), progress.bar(
            'predicting', total=total, unit='images', initial=writer.rows) as bar:
        warnings.simplefilter('ignore')  # Pillow's, of odd files: what matters of them is in their rows
        for batch in _batches(loaded, config.batch_size, held):
            writer.write(_rows(batch, model))
            bar.update(len(batch))


def _batches(loaded: Iterable[Any], size: int, held: int) -> Iterator[list[Any]]:
    """What was loaded, in lists of `size`, or in parts of these where one would hold too much.

    What shares a list depends on the paths and files alone: whoever goes on begins where a list of `size` does.
    """
    batch, batch_bytes = [], 0
    for number, one in enumerate(loaded, 1):
        batch.append(one)
        batch_bytes += one.bytes
        if number % size == 0 or batch_bytes >= held:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def _rows(batch: list[Any], model: Model) -> list[Row]:
    good = [one.content for one in batch if not one.error]
    answers, rows = iter(model.classify(good) if good else ()), []
    for one in batch:
        predicted, probabilities = ('', []) if one.error else next(answers)
        if predicted:
            rows.append(Row(one.path, predicted, prediction_file.rounded(probabilities)))
        else:
            rows.append(Row(one.path, error=one.error or 'decoder error: of the exported graph'))
    return rows


if __name__ == '__main__':
    cli.run(main, PredictConfig, resumes=True)
