"""Asks TF Serving or boardrec.serve about images: python tools/predict_client.py --images=FOLDER --output=OUT.csv."""

from collections import deque
from collections.abc import Iterable, Iterator
import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import sys
import time

import numpy as np
from predict_requests import Client, PredictClientConfig, Sent

from boardrec import cli, progress
from boardrec.config import UserError
from boardrec.data.image_paths import Candidate
from boardrec.reporting import prediction_file
from boardrec.reporting.prediction_file import Writer
from boardrec.training import stopping


def main(config: PredictClientConfig) -> None:
    """Writes the file that boardrec.predict writes, by asking a server: a row an image, in the order of the paths.

    What is not classified is a row with its reason: of a file that is not sent, as boardrec.predict tells it; the
    served model's error_code; or the server's refusal. The exit status is 0 then, but 2 where the server has classified
    nothing and refused something, or is away for longer than all retries take. The same command goes on after an
    interruption. The last line has rates, and percentiles of the time an answer takes.
    """
    stdout, kind = sys.stdout, 'csv'
    output = pathlib.Path(config.output) if config.output not in ('', '-') else None
    if config.output:
        kind = prediction_file.format_of(config.output, config.output_format)
    if output:
        prediction_file.require_output(output)
    quiet = contextlib.redirect_stdout(sys.stderr) if config.output == '-' else contextlib.nullcontext()
    with quiet, stopping.listen() as stop:
        candidates, total = prediction_file.candidates_of(config.images, output)
        with contextlib.closing(Client(config)) as client, contextlib.ExitStack() as stack:
            names = client.find_model()
            if output:
                writer = stack.enter_context(prediction_file.opened(output, names, kind, client.identity))
            else:
                file = stdout.buffer if config.output else stack.enter_context(open(os.devnull, 'wb'))
                writer = Writer(file, names, kind)
            candidates = writer.resume(candidates, 1)
            earlier, start = writer.rows, time.perf_counter()
            if earlier:
                progress.say(f'{output}: going on behind {prediction_file.counted(earlier, "row")}')
            sent = _write(config, client, candidates, writer, stop, total)
            _require_answers(config, sent, writer, earlier)
        told = summary(sent, writer.rows - earlier, time.perf_counter() - start)
        where = output or ('standard output' if config.output else config.address)
        progress.say(f'{where}: {writer.summary()}; {told}')


def summary(sent: list[Sent], rows: int, seconds: float) -> str:
    """The end of the last line: rate, and percentiles of the time that answers took."""
    times = [one.milliseconds for one in sent if one.milliseconds is not None]
    text = f'{rows / seconds:,.1f} a second'
    if times:
        quantiles = np.percentile(times, [50, 95, 99])
        text += '; an answer took {:.1f} ms (p50), {:.1f} (p95), {:.1f} (p99)'.format(*quantiles)
    return f'{text}; {prediction_file.counted(sum(one.retries for one in sent), "request")} sent again'


def _write(config: PredictClientConfig, client: Client, candidates: Iterator[Candidate], writer: Writer,
           stop: stopping.Stop, total: int | None) -> list[Sent]:
    """Writes the rows in order, while other requests are under way; returns what became of these, without rows."""
    pending: deque[concurrent.futures.Future] = deque()
    done: list[Sent] = []
    pool = concurrent.futures.ThreadPoolExecutor(config.concurrency)

    def write_first() -> None:
        sent = pending[0].result()
        with stop.deferred():  # or a signal might come between the two
            writer.write(sent.rows)
            pending.popleft()
        bar.update(len(sent.rows))
        done.append(sent._replace(rows=[]))
        if stop.requested:
            raise cli.Interrupted(stop.number)

    with progress.bar('predicting', total=total, unit='images', initial=writer.rows) as bar:
        try:
            for batch in _batched(candidates, config.batch_size):
                pending.append(pool.submit(client.send, batch))
                if len(pending) >= 2 * config.concurrency:
                    write_first()
            while pending:
                write_first()
        except KeyboardInterrupt:
            _write_under_way(client, pool, pending, writer)
            raise
        finally:
            client.give_up()
            pool.shutdown(cancel_futures=True)
    return done


def _write_under_way(client: Client, pool: concurrent.futures.Executor, pending: Iterable[concurrent.futures.Future],
                     writer: Writer) -> None:
    """Waits for the requests that were sent, after a signal, and writes their rows."""
    print('waiting for the requests under way; once more ends it at once', file=sys.stderr)
    client.give_up()
    pool.shutdown(wait=False, cancel_futures=True)
    with contextlib.suppress(concurrent.futures.CancelledError, UserError):
        for future in pending:
            writer.write(future.result().rows)


def _require_answers(config: PredictClientConfig, sent: list[Sent], writer: Writer, earlier: int) -> None:
    """Raises UserError, and takes the rows back, where the server has refused all that it was asked."""
    reason = next((one.refused for one in sent if one.refused), '')
    if reason and not earlier and all(one.milliseconds is None for one in sent):
        writer.discard()
        raise UserError(f'--server={config.address}: every request was refused, the first with {reason}.')


def _batched(candidates: Iterable[Candidate], size: int) -> Iterator[tuple[Candidate, ...]]:
    iterator = iter(candidates)  # itertools.batched needs Python 3.12
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


if __name__ == '__main__':
    cli.run(main, PredictClientConfig, resumes=True)
