"""What predict and its client write: a row a path, as CSV or JSON lines, in a file that survives a kill.

While it grows it is OUTPUT.partial-KEY, in the same folder, where KEY stands for model, settings and format; OUTPUT
itself appears whole, by rename. Whoever goes on keeps the complete rows. Paths are the file system's bytes in CSV;
JSON, which has no bytes, holds those that are not UTF-8 as lone surrogates, as Python reads and writes them.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import pathlib
import time
from typing import Any, BinaryIO, NamedTuple

from boardrec.config import UserError
from boardrec.data import files, image_paths
from boardrec.data.image_paths import Candidate

FORMATS = ('csv', 'jsonl')
_SYNC_SECONDS = 5.0
_BEGINNINGS = (b'"path","predicted",', b'{"path": ', b'source,predicted,')  # the last: earlier versions' CSV


class Row(NamedTuple):
    """One path. Either a class and the probability of each, or an error."""

    path: str
    predicted: str = ''
    probabilities: tuple[float, ...] = ()  # of float32 values, nine digits, which are enough
    error: str = ''


def rounded(probabilities: Iterable[float]) -> tuple[float, ...]:
    """float32 values as a Row has them."""
    return tuple(float(f'{value:.9g}') for value in probabilities)


def counted(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


def header(names: Sequence[str], kind: str) -> bytes:
    """What stands before the rows."""
    return _csv_text([['path', 'predicted', *(f'p_{name}' for name in names), 'error']]) if kind == 'csv' else b''


def encode(rows: Iterable[Row], names: Sequence[str], kind: str) -> bytes:
    """Rows as the file holds them."""
    if kind == 'csv':
        return _csv_text([one.path, one.predicted, *(one.probabilities or [''] * len(names)), one.error]
                         for one in rows)
    return b''.join(json.dumps({
        'path': one.path, 'predicted': one.predicted or None,
        'probabilities': dict(zip(names, one.probabilities, strict=True)) if one.probabilities else None,
        'error': one.error or None}).encode() + b'\n' for one in rows)


def decode(file: BinaryIO, names: Sequence[str], kind: str) -> Iterator[tuple[Row, int]]:
    """The complete rows of what may be torn, each with the offset of its end: up to the first that `encode` never made.

    The file stands behind the header, and its offsets count from there.
    """
    read = _read_csv if kind == 'csv' else _read_json_lines
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, csv.Error):
        for row, end in read(file, names):
            if row.error == '' and (row.predicted not in names or len(row.probabilities) != len(names)):
                return
            yield row, end


def format_of(output: str, output_format: str) -> str:
    """The format of an output, which may be - for standard output. Raises UserError if nothing says it."""
    ending = 'csv' if output == '-' else pathlib.Path(output).suffix[1:].lower()
    kind = ending if output_format == 'auto' else output_format
    if kind not in FORMATS:
        raise UserError(f'--output={output}: must end in .csv or .jsonl, or give --output_format.')
    return kind


def candidates_of(images: str, output: pathlib.Path | None) -> tuple[Iterator[Candidate], int | None]:
    """What --images means without the output's own files, and how many that is: they are counted beforehand, but for
    those on standard input.

    Raises UserError if there are none.
    """
    def found() -> Iterator[Candidate]:
        return (one for one in image_paths.find(images) if not (output and is_own(one.path, output)))

    if images != image_paths.STANDARD_INPUT:
        total = sum(1 for _ in found())
        if not total:
            raise UserError(f'--images={images}: no file there; name a folder, an image, a list of paths that '
                            'ends in .txt, or a quoted glob.')
        return found(), total
    candidates = found()
    first = next(candidates, None)
    if first is None:
        raise UserError('--images=-: no path on standard input; end each by a line break, or by a NUL.')
    return itertools.chain([first], candidates), None


def require_output(output: pathlib.Path) -> None:
    """Raises UserError for an output that would replace anything but earlier predictions: a photograph, say."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UserError(f'--output={output}: must be a file in a folder that exists.')
    if not output.exists():
        return
    with open(output, 'rb') as file:
        ours = file.read(max(map(len, _BEGINNINGS))).startswith(_BEGINNINGS)
    if not ours:
        raise UserError(f'--output={output} is there and holds something else than predictions: name another file.')


def is_own(path: str, output: pathlib.Path) -> bool:
    """Whether a path is the output or a part of it, which may lie among the images."""
    if not os.path.basename(path).startswith(output.name):  # as good as always, and it need be fast
        return False
    path, own = _place(path), _place(output)
    return path == own or path.startswith(_partial_prefix(own))


def _place(path: os.PathLike | str) -> str:
    """A path whose folder is named without links."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


class Writer:
    """Rows on their way into an open file, on disk every few seconds."""

    def __init__(self, file: BinaryIO, names: Sequence[str], kind: str, *, output: pathlib.Path | None = None):
        self._file, self._names, self._kind, self._output = file, names, kind, output
        self._synced = time.monotonic()
        self.rows, self.failed = 0, 0  # in the file; those of them that are errors

    def resume(self, candidates: Iterator[Candidate], multiple: int) -> Iterator[Candidate]:
        """Keeps the complete rows of an earlier process, as many as are a multiple; returns the candidates without
        theirs.

        Raises UserError if the rows are of other paths than the candidates.
        """
        if self._output is None:
            self._file.write(header(self._names, self._kind))
            return candidates
        begin = header(self._names, self._kind)
        self._file.seek(0)
        end, again = 0, deque()  # of what is kept; candidates whose rows are complete and not kept
        kept = kept_errors = 0
        if self._file.read(len(begin)) == begin:
            end, errors = len(begin), 0
            for number, (row, offset) in enumerate(decode(self._file, self._names, self._kind), 1):
                again.append(self._same(row, next(candidates, None), number))
                errors += row.error != ''
                if number % multiple == 0:
                    end, kept, kept_errors = len(begin) + offset, number, errors
                    again.clear()
        self.rows, self.failed = kept, kept_errors
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._file.write(begin)
        return itertools.chain(again, candidates)

    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows."""
        self._file.write(encode(rows, self._names, self._kind))
        self._file.flush()
        self.rows += len(rows)
        self.failed += sum(row.error != '' for row in rows)
        if self._output is not None and time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def discard(self) -> None:
        """Takes back all rows of a file."""
        if self._output is not None:
            self._file.truncate(self._file.seek(len(header(self._names, self._kind))))
        self.rows = self.failed = 0

    def summary(self) -> str:
        """How many images were classified, and how many files not."""
        return f'{counted(self.rows - self.failed, "image")} classified, {counted(self.failed, "file")} could not be'

    def _same(self, row: Row, candidate: Candidate | None, number: int) -> Candidate:
        if candidate is None or candidate.path != row.path:
            now = 'nothing' if candidate is None else f'{candidate.path!r}'
            raise UserError(f'--output={self._output}: row {number:,} of {self._file.name}, which was interrupted, is '
                            f'of {row.path!r}, where --images has {now} now: remove that file to begin anew, or name '
                            'another output.')
        return candidate


@contextlib.contextmanager
def opened(output: pathlib.Path, names: Sequence[str], kind: str, identity: dict[str, Any]) -> Iterator[Writer]:
    """A Writer whose file becomes `output` when the block ends, and stays a part of it after an exception, which gets a
    note that says so.

    `identity` is what makes the rows those of one model and one set of settings. Raises UserError if there is a part by
    others or in another format, or another process is at work.
    """
    partial = _partial(output, {**identity, 'class_names': list(names), 'format': kind})
    lock = files.LockFile(partial)
    try:
        if not lock.acquire(0, 1) or not lock.is_at(partial):
            raise UserError(f'--output={output}: another process is writing it: wait for it, or name another output.')
        # Closing a file would release the lock that another of this process has on it.
        with files.naming(output), open(partial, 'r+b') as file:
            writer = Writer(file, names, kind, output=output)
            try:
                yield writer
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, output)
            except BaseException as error:
                file.flush()
                os.fsync(file.fileno())
                if os.fstat(file.fileno()).st_size <= len(header(names, kind)):
                    partial.unlink()
                elif writer.rows:
                    error.add_note(f'{counted(writer.rows, "row")} of {output} {"is" if writer.rows == 1 else "are"} '
                                   'written, and the same command goes on behind them')
                raise
            files.sync(output.absolute().parent)
    finally:
        lock.close()


def _partial(output: pathlib.Path, identity: dict[str, Any]) -> pathlib.Path:
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]
    own = pathlib.Path(_partial_prefix(output) + key)
    others = [name for name in os.listdir(output.absolute().parent)
              if name.startswith(os.path.basename(_partial_prefix(output))) and name != own.name]
    if others:
        raise UserError(f'--output={output}: {output.absolute().parent / min(others)} is what was interrupted of '
                        'predictions by another model, with other settings or in another format: finish or remove it, '
                        'or name another output.')
    return own


def _partial_prefix(output: os.PathLike | str) -> str:
    return f'{os.fspath(output)}.partial-'


def _csv_text(rows: Iterable[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n', quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    return text.getvalue().encode('utf-8', 'surrogateescape')


def _read_csv(file: BinaryIO, names: Sequence[str]) -> Iterator[tuple[Row, int]]:
    end, last = 0, b'\n'

    def lines() -> Iterator[str]:
        nonlocal end, last
        for last in file:
            end += len(last)
            yield last.decode('utf-8', 'surrogateescape')

    for path, predicted, *probabilities, error in csv.reader(lines(), strict=True):
        if not last.endswith(b'\n') or len(probabilities) != len(names):
            return
        yield Row(path, predicted, () if error else tuple(map(float, probabilities)), error), end


def _read_json_lines(file: BinaryIO, names: Sequence[str]) -> Iterator[tuple[Row, int]]:
    end = 0
    for line in file:
        end += len(line)
        if not line.endswith(b'\n'):
            return
        one = json.loads(line)
        probabilities = () if one['error'] else tuple(one['probabilities'][name] for name in names)
        yield Row(one['path'], one['predicted'] or '', probabilities, one['error'] or ''), end
