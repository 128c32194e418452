"""RunState on disk: what training needs to go on as if it had not stopped, in one file, there whole or not at all."""

from collections.abc import Callable, Sequence
import io
import json
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np

from boardrec.config import UserError
from boardrec.data import files
from boardrec.training.optim import Watch

_STATE = 'state.npz'
_MARGIN_BYTES = 8 << 20


class RunState(NamedTuple):
    """Where a run stands, beside its variables."""

    epoch: int = 0  # epochs completed
    watch: Watch = Watch()
    best_weights: str = ''  # file name in checkpoints/
    history: tuple[dict[str, Any], ...] = ()  # one row an epoch


def commit(folder: pathlib.Path, state: RunState, variables: Sequence[keras.Variable]) -> None:
    """Replaces the saved state by this one, atomically; then removes best weights that it no longer names.

    `variables` are those that training changes: frozen ones come back from --weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f'{i:05d}': np.asarray(variable.numpy()) for i, variable in enumerate(variables)}
    text = json.dumps({**state._asdict(), 'watch': state.watch._asdict(), 'kinds': _kinds(variables)})
    with files.atomic_write(folder / _STATE) as file:
        np.savez(file, state=np.frombuffer(text.encode(), np.uint8), **arrays)
    for path in folder.glob('best-*.weights.h5'):
        if path.name != state.best_weights:
            path.unlink()


def restore(folder: pathlib.Path, variables: Sequence[keras.Variable]) -> RunState:
    """Sets the variables to the saved state and returns the rest of it; a fresh RunState if nothing was saved.

    Raises UserError if the file is damaged (each array has a checksum) or of another model.
    """
    path = folder / _STATE
    if not exists(folder):
        return RunState()
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
            values = json.loads(saved['state'].tobytes())
            kinds = values.pop('kinds')
            arrays = [saved[f'{i:05d}'] for i in range(len(kinds))]
    except Exception:  # zipfile, zlib, json and numpy each have errors of their own for damaged bytes
        raise UserError(f'{path} is damaged: remove the run folder and train again.') from None
    if kinds != _kinds(variables):
        raise UserError(f'{path} is the state of another model: name another --run_dir.')
    if values['best_weights'] and not (folder / values['best_weights']).is_file():
        raise UserError(f'{folder / values["best_weights"]} is missing: name another --run_dir and train again.')
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    values['watch'], values['history'] = Watch(**values['watch']), tuple(values['history'])
    return RunState(**values)


def exists(folder: pathlib.Path) -> bool:
    """Whether `restore` would find a state."""
    return (folder / _STATE).is_file()


def require_space(run: pathlib.Path, model: keras.Model) -> None:
    """Raises OSError if a run of this model will not fit where `run` lies: better now than after the first epoch."""
    # The state (with two slots a trained weight, at most three times the model), two best weights, two final files.
    files.require_space(run, needed_bytes=7 * _bytes(model) + _MARGIN_BYTES)


def save_weights(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a Keras weights file (name ending in .weights.h5) atomically."""
    _commit_keras(model, path, model.save_weights)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a whole model (name ending in .keras) atomically."""
    _commit_keras(model, path, model.save)


def _bytes(model: keras.Model) -> int:
    return sum(variable.numpy().nbytes for variable in model.variables)


def _kinds(variables: Sequence[keras.Variable]) -> list[str]:
    """What must be equal for values to fit; names would not do, Keras counts them up within a process."""
    return [f'{variable.dtype}{list(variable.shape)}' for variable in variables]


def _commit_keras(model: keras.Model, path: pathlib.Path, save: Callable[[pathlib.Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # h5py does not survive a full disk, and a .keras file is put together from a second copy of its weights.
    files.require_space(path.parent, needed_bytes=2 * _bytes(model) + _MARGIN_BYTES)
    with files.temporary_folder(path) as folder:  # Keras insists on the name's ending
        save(folder / path.name)
        files.commit_file(folder / path.name, path)
