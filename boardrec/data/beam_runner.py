"""Shards built by an Apache Beam pipeline, on as many machines as its runner has: the parent's side, without Beam.

A process of its own launches the pipeline. Each conversion has a folder in the journal's, beam-ID, with a job for each
shard; a worker leaves the shard there with its journal, or an error. The parent, which holds the lock, moves what is
whole into the journal. So a worker that outlives its conversion finds its folder gone, and changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time

from boardrec.config import UserError
from boardrec.data import files, journal, records, remote, scan, shards, workers
from boardrec.data.table import Table

_JOB, _ERROR, _LOG = '.job', 'error', 'beam.log'
_POLL_SECONDS = 0.2
_CANCEL_SECONDS = 30  # a cluster may take a while to answer
_LAUNCH = 'from boardrec.data import beam_pipeline; beam_pipeline.main()'  # not -m: workers import it by its name


def check(options: str) -> None:
    """Raises UserError where Beam is not installed, or its options cannot be read."""
    if importlib.util.find_spec('apache_beam') is None:
        raise UserError("--runner=beam needs Apache Beam, boardrec's extra beam, which is not installed: "
                        "python -m pip install -e '.[beam]' in the clone, or leave --runner out.")
    try:
        shlex.split(options)
    except ValueError as error:
        raise UserError(f'--beam_options={options}: {error}; quote it as in a shell.') from None


def build(folder: pathlib.Path, jobs: Sequence[shards.Job], options: str, limits: workers.Limits,
          look: Callable[[int], None] = lambda _: None) -> Iterator[list[scan.Rejection]]:
    """Builds shards into a journal's folder; yields which files of each can be no record.

    Closing it ends the pipeline. `look` is called with the number of images that are done. What a worker raised is
    raised here. Raises UserError if the pipeline fails. What Beam says is in the journal's beam.log.
    """
    own = folder / f'{journal.SUBFOLDER_PREFIX}{secrets.token_hex(8)}'
    try:
        own.mkdir()
        for job in jobs:
            _write_job(own, job)
        with _launched(own, folder / _LOG, options, limits) as launcher:
            waiting, done = {job.plan.file: len(job.plan.found) for job in jobs}, 0
            while waiting:
                has_ended = launcher.poll() is not None  # looked at first, so that its last shards are seen below
                _raise_error(own)
                for name in [name for name in waiting if (own / f'{name}.json').exists()]:
                    built = journal.take_over(folder, own, name)
                    if built is not None:
                        (own / f'{name}{_JOB}').unlink(missing_ok=True)  # a second attempt has nothing to do
                        done += waiting.pop(name)
                        look(done)
                        yield built.bad()
                if has_ended and waiting:
                    raise _lacking(folder, len(waiting), launcher.returncode)
                time.sleep(_POLL_SECONDS)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def jobs_in(folder: pathlib.Path) -> list[str]:
    """The shards to build, by name."""
    return sorted(path.name.removesuffix(_JOB) for path in folder.glob(f'*{_JOB}'))


def read_job(folder: pathlib.Path, name: str) -> shards.Job | None:
    """The job of a shard; None if there is nothing to do: it is built, or the conversion is over."""
    try:
        values = json.loads((folder / f'{name}{_JOB}').read_bytes())
    except FileNotFoundError:
        return None
    job = shards.Job(**values)
    file, split, found = job.plan
    encoding, size, *rest = job.storage
    return job._replace(
        folder=str(folder), limits=tuple(job.limits),
        plan=shards.ShardPlan(file, split, Table(scan.Found, itertools.starmap(scan.Found, found))),
        storage=records.Storage(encoding, None if size is None else tuple(size), *rest))


def write_error(folder: pathlib.Path, error: UserError | OSError) -> None:
    """Leaves an error for the parent to raise, unless the conversion is over."""
    is_os = isinstance(error, OSError)
    filename = None if not is_os or error.filename is None else os.fspath(error.filename)
    values = [error.errno, error.strerror, filename] if is_os else [str(error)]
    if folder.is_dir():
        with files.atomic_write(folder / _ERROR) as file:
            file.write(json.dumps(values).encode())


def _write_job(folder: pathlib.Path, job: shards.Job) -> None:
    root = job.root if remote.is_url(job.root) else os.path.abspath(job.root)
    with open(folder / f'{job.plan.file}{_JOB}', 'w', encoding='ascii') as file:  # surrogates become escapes
        json.dump(job._replace(root=root, plan=job.plan._replace(found=list(job.plan.found)))._asdict(), file)


def _raise_error(folder: pathlib.Path) -> None:
    """Raises what a worker or the launcher left."""
    if (folder / _ERROR).exists():
        values = json.loads((folder / _ERROR).read_bytes())
        raise UserError(*values) if len(values) == 1 else OSError(*values)


def _lacking(folder: pathlib.Path, count: int, status: int) -> UserError:
    if status:
        return UserError(f'--runner=beam: the process that launches the pipeline ended with status {status}: see '
                         f'{folder / _LOG}.')
    return UserError(f'--runner=beam: the pipeline ended without {count} of its shards: --output_dir must be on a file '
                     f'system that all workers see under the same path, {folder.parent.absolute()}.')


@contextlib.contextmanager
def _launched(own: pathlib.Path, log: pathlib.Path, options: str, limits: workers.Limits
              ) -> Iterator[subprocess.Popen]:
    """A process that runs the pipeline, in a group of its own, as Ctrl-C is for the parent to decide.

    It cancels the pipeline once its standard input is closed, also by the parent's death.
    """
    given = json.dumps({'folder': str(own.absolute()), 'log': str(log), 'options': options, 'limits': limits})
    with open(log, 'wb') as output:
        process = subprocess.Popen([sys.executable, '-c', _LAUNCH, given], stdin=subprocess.PIPE, stdout=output,
                                   stderr=output, process_group=0)
    try:
        yield process
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_CANCEL_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
