"""Shards built by an Apache Beam pipeline: the launcher's and the workers' side. Needs the extra `beam`.

A pipeline passes names of shards only: jobs and results lie in a folder that the parent and all workers see.
"""

from collections.abc import Iterator
import contextlib
import io
import json
import os
import pathlib
import shlex
import signal
import socket
import sys
import threading
import traceback

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, TypeOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from boardrec.config import UserError
from boardrec.data import beam_runner, remote, shards, workers


class BuildShard(beam.DoFn):
    """Builds the shard of a name, in a child process that may die, as without Beam: with the same limits."""

    def __init__(self, folder: str, limits: workers.Limits):
        self._folder, self._limits, self._pool = folder, limits, None

    def process(self, name: str) -> Iterator[str]:
        """Yields the name once the shard is in the folder, or was there."""
        folder = pathlib.Path(self._folder)
        job = beam_runner.read_job(folder, name)
        if job is None:
            return
        try:
            if not remote.is_url(job.root) and not os.path.isdir(job.root):
                raise UserError(f'--runner=beam: --input_dir={job.root} is no folder on {socket.gethostname()}: all '
                                'workers must see it under the same path.')
            self._build(job)
        except (UserError, OSError) as error:  # no matter of another attempt
            beam_runner.write_error(folder, error)
            return
        yield name

    def teardown(self) -> None:
        """Ends the child."""
        if self._pool is not None:
            self._pool.__exit__()
            self._pool = None

    def _build(self, job: shards.Job) -> None:
        self._pool = self._pool or workers.Pool(1, self._limits, shards.prepare_worker)
        try:
            for _ in self._pool.run(shards.build, [job]):
                pass
        except BaseException:
            self.teardown()  # its child is still at the task
            raise


def main() -> None:
    """The launcher, given the folder, Beam's options and the limits as JSON; an error is left in the folder."""
    given = json.loads(sys.argv[1])
    folder = pathlib.Path(given['folder'])
    try:
        _run(folder, _options(given['options']), workers.Limits(*given['limits']))
    except UserError as error:
        beam_runner.write_error(folder, error)
    except Exception as error:
        traceback.print_exc()
        beam_runner.write_error(folder, UserError(f'--runner=beam: the pipeline failed: {_last_line(error)}; more is '
                                                  f'in {given["log"]}.'))


def _run(folder: pathlib.Path, options: PipelineOptions, limits: workers.Limits) -> None:
    """Runs the pipeline to its end. Raises what Beam does."""
    pipeline = beam.Pipeline(options=options)
    (pipeline | beam.Create(beam_runner.jobs_in(folder))
     | beam.Reshuffle()  # else one worker may get them all
     | beam.ParDo(BuildShard(str(folder), limits)))
    results = []
    threading.Thread(target=_stop_with_parent, args=(results,), daemon=True).start()
    results.append(pipeline.run())
    state = results[0].wait_until_finish()
    if state != PipelineState.DONE:
        raise RuntimeError(f'it ended as {state}')


def _options(text: str) -> PipelineOptions:
    """Beam's options. Raises UserError for what Beam cannot parse."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(shlex.split(text))
            options.get_all_options()
    except SystemExit:  # argparse's
        raise UserError(f'--beam_options={text}: {_last_line(said.getvalue()).removeprefix("-c: error: ")}.') from None
    # No trigger is in this pipeline; but without this the DirectRunner first tries to fetch another engine, Prism, a
    # program of 40 MB, from GitHub.
    options.view_as(TypeOptions).allow_unsafe_triggers = True
    return options


def _stop_with_parent(results: list[PipelineResult]) -> None:
    """Cancels the pipeline once the parent has closed its end, or died, and ends this group of processes."""
    os.read(sys.stdin.fileno(), 1)  # no lock is held, which would crash Python where it exits
    for result in results:
        with contextlib.suppress(Exception):  # the DirectRunner has no cancel(); the group's end is its end
            result.cancel()
    os.killpg(0, signal.SIGKILL)


def _last_line(error: object) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[-1].strip().rstrip('.')
