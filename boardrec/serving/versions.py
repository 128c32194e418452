"""The versions that are served: watched in their folder, loaded, swapped without dropping a request, and freed.

Served are the newest `keep` versions of those that can be loaded, and those that a label names. One that cannot be
loaded is told of once and tried again when its files change; meanwhile older ones go on. One whose files are others now
(removed, and its number given to another export) is loaded again, once two looks have found them alike. An old version
goes when the newer one is ready, its last request has its answer, and its memory is freed then.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
import contextlib
import pathlib
import threading
import time
from typing import Any, NamedTuple

from boardrec import progress
from boardrec.config import UserError
from boardrec.serving import failure, publish
from boardrec.serving.failure import Failure
from boardrec.serving.publish import GRAPH

START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50  # tensorflow.serving.ModelVersionStatus.State


class Status(NamedTuple):
    """What is known of a version."""

    state: int
    failure: Failure | None = None  # why it could not be loaded


class Served:
    """A loaded version and how many requests hold it."""

    def __init__(self, servable: Any, state: Any):
        self.servable, self.users, self.retired = servable, 0, False
        self.state = self.seen = state  # of its files when it was loaded, and at the last look


class Versions:
    """The served versions of one model. All methods may be called from any thread, `poll` from one at a time."""

    def __init__(self, folder: pathlib.Path, *, name: str, load: Callable[[pathlib.Path, int], Any], keep: int = 1,
                 labels: Mapping[str, int] | None = None, say: Callable[[str], None] = progress.say):
        self.folder, self.name, self.labels = folder, name, dict(labels or {})
        self._load, self._keep, self._say = load, keep, say
        self._lock = threading.Lock()
        self._served: dict[int, Served] = {}
        self._statuses: dict[int, Status] = {}
        self._failed: dict[int, Any] = {}  # version -> its files' state when it could not be loaded
        self._told: dict[int, str] = {}  # version -> why not
        self._is_empty = False  # the folder, and this was said
        self._stop = threading.Event()

    @property
    def available(self) -> list[int]:
        """The versions that take requests, ascending."""
        with self._lock:
            return sorted(self._served)

    def statuses(self) -> dict[int, Status]:
        """Every version that is known."""
        with self._lock:
            return dict(sorted(self._statuses.items()))

    @contextlib.contextmanager
    def use(self, version: int | None = None, label: str | None = None) -> Iterator[Served]:
        """The loaded version of this number or label, or the newest, which stays in memory for the block.

        Raises Failure with TF Serving's words if it is not served.
        """
        served = self._acquire(version, label)
        try:
            yield served
        finally:
            self._release(served)

    def hold(self, served: Served, future: Future) -> None:
        """Keeps a version that is in use in memory until the future is done, whoever stops waiting for it."""
        with self._lock:
            served.users += 1
        future.add_done_callback(lambda _: self._release(served))

    def watch(self, seconds: float) -> None:
        """Polls at once and then each so many seconds until `stop`; for a thread of its own."""
        told = ''
        while True:
            try:
                self.poll()
                told = ''
            except OSError as error:  # a share that is away for a moment
                if told != (told := error.strerror or str(error)):
                    self._say(f'{self.folder}: {told}; it is looked into again')
            if self._stop.wait(seconds):
                break

    def stop(self) -> None:
        """Ends `watch`, after the load that is under way."""
        self._stop.set()

    def poll(self) -> None:
        """Looks into the folder once: loads what is new, and then retires what is no longer wanted."""
        present = publish.versions(self.folder)
        wanted = self._load_wanted(present)
        if not present and not self._is_empty:
            others = ', '.join(map(str, self.available))
            self._say(f'{self.folder}: ' + (f'no version is left; version {others} goes on from memory' if others else
                                            'no version to serve yet; waiting for one'))
        self._is_empty = not present
        if wanted:  # else what is served is all that there is
            for version in set(self.available) - wanted:
                self._retire(version)
        with self._lock:
            kept = {*present, *self._served}
            self._statuses = {number: status for number, status in self._statuses.items() if number in kept}
            self._failed = {number: state for number, state in self._failed.items() if number in present}
            self._told = {number: reason for number, reason in self._told.items() if number in present}

    def close(self) -> None:
        """Frees every version, each when its last request has its answer; `watch` has ended."""
        for version in self.available:
            self._retire(version)

    def _load_wanted(self, present: list[int]) -> set[int]:
        """Loads the newest `keep` versions that can be, and the labelled ones; returns what is to be served."""
        wanted = {version for version in self.labels.values() if version in present and self._ensure(version)}
        newest = 0
        for version in reversed(present):
            if newest == self._keep:
                break
            if self._ensure(version):
                wanted.add(version)
                newest += 1
        return wanted

    def _ensure(self, version: int) -> bool:
        """Whether a version is served, after loading it if need be."""
        state = _state(self.folder / str(version))
        with self._lock:
            served = self._served.get(version)
        if served and not (served.state != state == served.seen):
            served.seen = state  # somebody may still be at work on them
            return True
        if version not in self._failed or self._failed[version] != state:
            return self._try_load(version, state) or served is not None
        return served is not None

    def _try_load(self, version: int, state: Any) -> bool:
        folder, before = self.folder / str(version), version in self.available
        if not before:
            self._set(version, Status(LOADING))
        start = time.perf_counter()
        try:
            if not (folder / GRAPH).is_file():
                raise Failure('NOT_FOUND', f'there is no {GRAPH} in it')
            servable = self._load(folder, version)
        except Exception as error:
            reason = _reason(folder, error)
            self._failed[version] = state
            if not before:
                self._set(version, Status(END, reason))
            others = ', '.join(map(str, self.available))
            if self._told.get(version) != reason.message:  # while it is copied here its state changes all the time
                self._say(f'{folder} cannot be loaded: {reason.message}; '
                          + (f'version {others} goes on' if others else 'no version is served'))
            self._told[version] = reason.message
            return False
        with self._lock:
            replaced = self._served.get(version)
            self._served[version] = Served(servable, state)
            self._statuses[version] = Status(AVAILABLE)
            self._failed.pop(version, None)
            self._told.pop(version, None)
        self._say(f'{self.name} version {version} is served{", with other files than before" if replaced else ""}; '
                  f'loaded in {time.perf_counter() - start:.1f} s')
        if replaced:
            self._end(replaced)
        return True

    def _retire(self, version: int) -> None:
        with self._lock:
            served = self._served.pop(version)
            self._statuses[version] = Status(UNLOADING)
        self._end(served)

    def _end(self, served: Served) -> None:
        with self._lock:
            served.retired = True
            idle = served.users == 0
        if idle:
            self._free(served)

    def _acquire(self, version: int | None, label: str | None) -> Served:
        if label:
            if label not in self.labels:
                raise Failure('INVALID_ARGUMENT', f'Unrecognized servable version label: {label}')
            version = self.labels[label]
        with self._lock:
            number = max(self._served, default=None) if version is None else version
            served = self._served.get(number)
            if served is None:
                wanted = f'Latest({self.name})' if version is None else f'Specific({self.name}, {version})'
                raise Failure('NOT_FOUND', f'Servable not found for request: {wanted}')
            served.users += 1
            return served

    def _release(self, served: Served) -> None:
        with self._lock:
            served.users -= 1
            idle = served.retired and served.users == 0
        if idle:
            self._free(served)

    def _free(self, served: Served) -> None:
        version = served.servable.version
        served.servable.close()
        with self._lock:
            if version in self._served:
                return  # it was loaded again
            if version in self._statuses:
                self._statuses[version] = Status(END)
        self._say(f'{self.name} version {version} is no longer served')

    def _set(self, version: int, status: Status) -> None:
        with self._lock:
            self._statuses[version] = status


def require_folder(path: str) -> pathlib.Path:
    """The folder of versions that --model_dir names. Raises UserError if it can be none."""
    folder = pathlib.Path(path)
    if not folder.is_dir():
        problem = 'is no folder' if folder.exists() else 'there is no such folder'
        raise UserError(f'--model_dir={path}: {problem}; name the folder that python -m boardrec.export '
                        'was given as --export_dir.')
    if (folder / GRAPH).is_file():
        raise UserError(f'--model_dir={path}: is a version itself; name the folder above it, '
                        f'{folder.resolve().parent}.')
    publish.require_loadable(folder, 'model_dir')
    if not publish.versions(folder):
        _refuse_what_holds_no_versions(path, folder)
    return folder


def _refuse_what_holds_no_versions(path: str, folder: pathlib.Path) -> None:
    """Raises UserError if a folder without a version looks like something else; one may still be to come."""
    if (folder / 'run.json').is_file():
        raise UserError(f'--model_dir={path}: is a training run; export it first: '
                        f'python -m boardrec.export --run_dir={path} --export_dir=MODELS/boardrec')
    models = sorted(child for child in folder.iterdir() if child.is_dir() and publish.versions(child))
    if models:
        raise UserError(f'--model_dir={path}: holds no version itself; name one folder below it, such as {models[0]}.')


def _reason(folder: pathlib.Path, error: Exception) -> Failure:
    """Why a version could not be loaded: a file that is not as it was exported tells more than TensorFlow does."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        damage = publish.damage(folder)
        if damage:
            return Failure('DATA_LOSS', damage)
    return failure.of_exception(error)


def _state(folder: pathlib.Path) -> Any:
    """What changes with a version's files. No inodes: on a share they may be others each time."""
    found = []
    for path in (folder / GRAPH, folder / publish.METADATA, *sorted((folder / 'variables').glob('*'))):
        with contextlib.suppress(OSError):
            info = path.stat()
            found.append((path.name, info.st_mtime_ns, info.st_size))
    return found
