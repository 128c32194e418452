"""RunState on disk: what training needs to go on as if it had not stopped. Each file is there whole or not at all.

    checkpoints/state-NNNNNN-HASH.npz              the last two; HASH: the first 16 digits of the file's sha256
    checkpoints/best-epoch-NNN-loss-L.weights.h5   the best epoch's weights that these name
"""

from collections.abc import Callable, Sequence
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import keras
from keras.src.saving import saving_lib
import numpy as np

from boardrec import progress
from boardrec.config import UserError
from boardrec.data import files
from boardrec.training.optim import Watch

_MARGIN_BYTES = 8 << 20
_KEPT = 2
_STATE_NAME = re.compile(r'state-(\d{6,})-([0-9a-f]{16})\.npz')


class EpochSums(NamedTuple):
    """What the steps of an epoch came to so far."""

    loss: float = 0.0
    right: float = 0.0
    records: float = 0.0
    skipped: int = 0  # steps whose gradients the loss scale was too large for
    skipped_in_a_row: int = 0  # up to the last step
    waited: float = 0.0  # seconds for input
    first_batch_seconds: float = 0.0  # of these, until the first batch: every pipeline has to be started
    seconds: float = 0.0


class RunState(NamedTuple):
    """Where a run stands, beside its variables."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps of the next epoch that are done; if all are, validation is to come
    sums: EpochSums = EpochSums()  # of these steps
    watch: Watch = Watch()
    best_weights: str = ''  # file name in checkpoints/
    best_sha256: str = ''
    history: tuple[dict[str, Any], ...] = ()  # one row an epoch
    rollbacks: int = 0  # each has halved the learning rate


class Saver:
    """Saves the states and the best weights of one run. A full disk delays that, and does not end training."""

    def __init__(self, folder: pathlib.Path, model: keras.Model, variables: Sequence[keras.Variable]):
        """`variables` are those that training changes: frozen ones come back from --weights."""
        self._folder, self._model, self._variables = folder, model, variables
        self._unsaved_best: tuple[str, list[np.ndarray]] | None = None
        self._best_sha256, self._failing = {}, False

    def save_best(self, name: str) -> None:
        """Saves the model's weights under a name in the folder; if there is no room, keeps them until there is."""
        if not self._tried(lambda: self._write_best(name)):
            self._unsaved_best = name, self._model.get_weights()

    def save(self, state: RunState) -> RunState:
        """Commits a state, and before it the best weights that it names; returns it with their sum.

        Where there is no room, what was saved before stays as it is.
        """
        self._tried(lambda: self._commit(state))
        return state._replace(best_sha256=self._best_sha256.get(state.best_weights, state.best_sha256))

    def require_saved(self) -> None:
        """Raises the OSError of a full disk if the last attempt to save failed."""
        if self._failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))

    def _commit(self, state: RunState) -> None:
        if self._unsaved_best:
            (name, weights), current = self._unsaved_best, self._model.get_weights()
            if name == state.best_weights:
                self._model.set_weights(weights)
                try:
                    self._write_best(name)
                finally:
                    self._model.set_weights(current)
            self._unsaved_best = None
        commit(self._folder, state._replace(
            best_sha256=self._best_sha256.get(state.best_weights, state.best_sha256)), self._variables)

    def _write_best(self, name: str) -> None:
        save_weights(self._model, self._folder / name)
        self._best_sha256 = {name: files.sha256_of(self._folder / name)}

    def _tried(self, write: Callable[[], None]) -> bool:
        """Writes something of the run; False if there is no room for it now, which is said once."""
        try:
            write()
        except OSError as error:
            if error.errno not in files.DISK_ERRNOS:
                raise
            if not self._failing:
                progress.say(f'warning: {error.filename or self._folder}: {error.strerror}; training goes on, and '
                             'saving is tried again with the next state: make room there')
            self._failing = True
            return False
        if self._failing:
            progress.say(f'{self._folder}: saved again')
        self._failing = False
        return True


def commit(folder: pathlib.Path, state: RunState, variables: Sequence[keras.Variable]) -> None:
    """Saves a state atomically; then removes all but the last two, and best weights that neither of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _saved(folder)
    number = int(_STATE_NAME.fullmatch(before[0].name)[1]) + 1 if before else 1
    with files.temporary_folder(folder / 'state') as temporary:
        path = temporary / 'state.npz'
        with files.naming(folder / 'state.npz'), open(path, 'wb') as file:
            hashed = _Hashing(file)
            _write(hashed, state, variables)
        name = f'state-{number:06d}-{hashed.digest.hexdigest()[:16]}.npz'
        files.commit_file(path, folder / name)
    kept = [folder / name, *before[:_KEPT - 1]]
    for path in before[_KEPT - 1:]:
        path.unlink()
    best = {state.best_weights, *(_best_weights(path) for path in kept[1:])}
    _remove_best(folder, but=best)


def tidy(folder: pathlib.Path) -> None:
    """Leaves of a finished run's folder the last state and its best weights alone."""
    last, *before = _saved(folder)
    for path in before:
        path.unlink()
    _remove_best(folder, but={_best_weights(last)})


def newest(folder: pathlib.Path) -> bytes:
    """The last saved state that is whole, with the best weights that it names; b'' if nothing was saved.

    Says in a line which was damaged. Raises UserError if all are.
    """
    for path in _saved(folder):
        data = path.read_bytes()
        reason = ''
        if hashlib.sha256(data).hexdigest()[:16] != _STATE_NAME.fullmatch(path.name)[2]:
            reason = f'{path.name} is damaged'
        else:
            state = _read(data)[0]
            best = folder / state.best_weights
            if state.best_weights and not (best.is_file() and files.sha256_of(best) == state.best_sha256):
                reason = f'{best.name} is damaged or missing'
        if not reason:
            return data
        progress.say(f'{folder}: {reason}: going back to the state saved before')
    if _saved(folder):
        raise UserError(f'{folder}: no saved state is whole: remove the run folder and train again.')
    return b''


def load(data: bytes, variables: Sequence[keras.Variable]) -> RunState:
    """Sets the variables to a saved state and returns the rest of it; for b'' changes nothing and returns a fresh one.

    Raises UserError if it is of another model.
    """
    if not data:
        return RunState()
    state, kinds, arrays = _read(data)
    if kinds != _kinds(variables):
        raise UserError('the saved state is of another model: name another --run_dir.')
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return state


def exists(folder: pathlib.Path) -> bool:
    """Whether a state was saved."""
    return bool(_saved(folder))


def require_space(run: pathlib.Path, model: keras.Model, variables: Sequence[keras.Variable], *, begun: bool) -> None:
    """Raises OSError if a run of this model will not fit where `run` lies: better now than after the first epoch.

    `variables` are those of a state.
    """
    # Three states and best weights, while one of each is written, and two final files; a run that has `begun` has the
    # first of them. A weights file asks for twice its size.
    states, weights = (1, 4) if begun else (3, 6)
    needed = states * _bytes(variables) + weights * _bytes(model.variables)
    files.require_space(run, needed_bytes=needed + _MARGIN_BYTES)


def save_weights(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a Keras weights file (name ending in .weights.h5) atomically."""
    def save(place: pathlib.Path) -> None:
        # Through memory: of a disk that fails h5py makes a RuntimeError, or the end of the process. As Keras's
        # save_weights, which takes no file.
        memory = io.BytesIO()
        store = saving_lib.H5IOStore(memory, mode='w')
        saving_lib._save_state(model, weights_store=store, assets_store=None, inner_path='', visited_saveables=set())
        store.close()
        with files.naming(path), open(place, 'wb') as file:
            file.write(memory.getbuffer())

    _commit_keras(model, path, save)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a whole model (name ending in .keras) atomically."""
    _commit_keras(model, path, model.save)


class _Hashing:
    """A file that hashes what is written. It cannot seek, so that every byte is written once and in order."""

    def __init__(self, file: Any):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def read(self, *_: Any) -> bytes:
        raise io.UnsupportedOperation('read')  # numpy takes what can be read and written for a file


def _saved(folder: pathlib.Path) -> list[pathlib.Path]:
    """States, newest first."""
    if not folder.is_dir():
        return []
    names = [match for match in map(_STATE_NAME.fullmatch, (path.name for path in folder.iterdir())) if match]
    return [folder / match[0] for match in sorted(names, key=lambda match: int(match[1]), reverse=True)]


def _write(file: _Hashing, state: RunState, variables: Sequence[keras.Variable]) -> None:
    arrays = {f'{i:05d}': np.asarray(variable.numpy()) for i, variable in enumerate(variables)}
    values = {**state._asdict(), 'sums': state.sums._asdict(), 'watch': state.watch._asdict(),
              'kinds': _kinds(variables)}
    np.savez(file, state=np.frombuffer(json.dumps(values).encode(), np.uint8), **arrays)


def _read(data: bytes) -> tuple[RunState, list[str], list[np.ndarray]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as saved:
        values = json.loads(saved['state'].tobytes())
        kinds = values.pop('kinds')
        arrays = [saved[f'{i:05d}'] for i in range(len(kinds))]
    try:
        values.update(sums=EpochSums(**values['sums']), watch=Watch(**values['watch']),
                      history=tuple(values['history']))
        return RunState(**values), kinds, arrays
    except TypeError:
        raise UserError('the saved state is of another version of boardrec: go on with that, or name another --run_dir.'
                        ) from None


def _best_weights(path: pathlib.Path) -> str:
    """Which best weights a saved state names; '' if it cannot be read."""
    try:
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as saved:
            return json.loads(saved['state'].tobytes())['best_weights']
    except Exception:  # zipfile, zlib, json and numpy each have errors of their own for damaged bytes
        return ''


def _remove_best(folder: pathlib.Path, *, but: set[str]) -> None:
    for path in folder.glob('best-*.weights.h5'):
        if path.name not in but:
            path.unlink()
    for path in folder.glob(f'{files.TEMPORARY_PREFIX}best-*'):  # of a killed run; nobody else has this one's lock
        shutil.rmtree(path, ignore_errors=True)


def _bytes(variables: Sequence[keras.Variable]) -> int:
    return sum(variable.numpy().nbytes for variable in variables)


def _kinds(variables: Sequence[keras.Variable]) -> list[str]:
    """What must be equal for values to fit; names would not do, Keras counts them up within a process."""
    return [f'{variable.dtype}{list(variable.shape)}' for variable in variables]


def _commit_keras(model: keras.Model, path: pathlib.Path, save: Callable[[pathlib.Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A .keras file is put together from a second copy of its weights.
    files.require_space(path.parent, needed_bytes=2 * _bytes(model.variables) + _MARGIN_BYTES)
    with files.temporary_folder(path) as folder:  # Keras insists on the name's ending
        save(folder / path.name)
        files.commit_file(folder / path.name, path)
