"""RunState goes to disk and back, whole or not at all."""

import errno
import hashlib
import os
import types

import keras
import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.data import files
from boardrec.training import checkpoint
from boardrec.training.checkpoint import EpochSums, RunState
from boardrec.training.optim import Watch


def variables(seed=0):
    random = np.random.default_rng(seed)
    return [keras.Variable(random.normal(size=(3, 2)).astype('float32'), name='kernel'),
            keras.Variable(np.array([seed, 7], 'uint32'), dtype='uint32', trainable=False, name='seed'),
            keras.Variable(seed, dtype='int32', name='iteration')]


def restored(folder, seed=2):
    into = variables(seed)
    return checkpoint.load(checkpoint.newest(folder), into), into


def commit(folder, *, epoch, seed=1, best=''):
    """Commits a state whose best weights are a file of its name."""
    if best:
        (folder / best).write_text(best)
    sha256 = hashlib.sha256(best.encode()).hexdigest() if best else ''
    state = RunState(epoch, best_weights=best, best_sha256=sha256)
    checkpoint.commit(folder, state, variables(seed))
    return state


def states(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith('state-'))


def test_nothing_saved_is_a_fresh_state(tmp_path):
    assert restored(tmp_path / 'none')[0] == RunState() and not checkpoint.exists(tmp_path / 'none')


def test_round_trip(tmp_path):
    state = RunState(3, 7, EpochSums(0.1, 3.0, 16.0, 1, 1, 0.5), Watch(0.5, 2, 1), history=(
        {'epoch': 1, 'loss': 0.1 + 0.2}, {'epoch': 2}), rollbacks=1)
    saved = variables(1)
    checkpoint.commit(tmp_path, state, saved)
    found, others = restored(tmp_path)
    assert found == state
    for a, b in zip(saved, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_states_name_says_its_sum(tmp_path):
    commit(tmp_path, epoch=1)
    name, = states(tmp_path)
    assert name == f'state-000001-{files.sha256_of(tmp_path / name)[:16]}.npz'


def test_the_last_two_states_are_kept_with_their_best_weights(tmp_path):
    (tmp_path / 'other.h5').touch()
    for epoch in range(1, 5):
        commit(tmp_path, epoch=epoch, best=f'best-epoch-00{epoch}.weights.h5')
    assert [name[:12] for name in states(tmp_path)] == ['state-000003', 'state-000004']
    assert sorted(path.name for path in tmp_path.glob('*.h5')) == [
        'best-epoch-003.weights.h5', 'best-epoch-004.weights.h5', 'other.h5']
    checkpoint.tidy(tmp_path)
    assert [name[:12] for name in states(tmp_path)] == ['state-000004']
    assert sorted(path.name for path in tmp_path.glob('*.h5')) == ['best-epoch-004.weights.h5', 'other.h5']


def test_a_failing_commit_leaves_the_last(tmp_path, monkeypatch):
    commit(tmp_path, epoch=1)

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(np, 'savez', full)
        commit(tmp_path, epoch=2)
    assert restored(tmp_path)[0].epoch == 1
    assert [path.name[:12] for path in tmp_path.iterdir()] == ['state-000001']


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'best flipped', 'best gone'])
def test_of_a_damaged_state_the_one_before_is_taken_and_this_is_said(tmp_path, capsys, damage):
    commit(tmp_path, epoch=1, seed=1, best='best-epoch-001.weights.h5')
    commit(tmp_path, epoch=2, seed=5, best='best-epoch-002.weights.h5')
    path = tmp_path / states(tmp_path)[-1]
    if damage == 'flip':
        data = bytearray(path.read_bytes())
        data[data.index(variables(5)[0].numpy().tobytes())] ^= 1
        path.write_bytes(data)
    elif damage == 'cut':
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == 'empty':
        path.write_bytes(b'')
    elif damage == 'best flipped':
        path = tmp_path / 'best-epoch-002.weights.h5'
        path.write_text('other')
    else:
        path = tmp_path / 'best-epoch-002.weights.h5'
        path.unlink()
    state, into = restored(tmp_path)
    assert state.epoch == 1
    np.testing.assert_array_equal(into[0].numpy(), variables(1)[0].numpy())
    line, = capsys.readouterr().out.splitlines()
    assert path.name in line and 'is damaged' in line and 'going back to the state saved before' in line
    commit(tmp_path, epoch=2, seed=5, best='best-epoch-002.weights.h5')
    assert restored(tmp_path)[0].epoch == 2


def test_if_no_state_is_whole_nothing_is_begun_anew(tmp_path):
    commit(tmp_path, epoch=1)
    (tmp_path / states(tmp_path)[0]).write_bytes(b'')
    with pytest.raises(UserError, match='no saved state is whole'):
        restored(tmp_path)


def test_a_state_of_another_model(tmp_path):
    commit(tmp_path, epoch=1)
    with pytest.raises(UserError, match='state is of another model'):
        checkpoint.load(checkpoint.newest(tmp_path), variables()[:2])


def test_a_state_of_another_version(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Watch, '_asdict', lambda _: {'patience': 3})
        commit(tmp_path, epoch=1)
    with pytest.raises(UserError, match='state is of another version of boardrec'):
        restored(tmp_path)


@pytest.fixture
def disk(monkeypatch):
    """A disk whose `free` bytes the code sees, and which np.savez finds full at 0."""
    usage, savez = types.SimpleNamespace(free=1 << 40), np.savez

    def write(*args, **arrays):
        if not usage.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        savez(*args, **arrays)

    monkeypatch.setattr('shutil.disk_usage', lambda _: usage)
    monkeypatch.setattr(np, 'savez', write)
    return usage


def test_a_full_disk_delays_saving_and_loses_nothing(tmp_path, disk, capsys):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    saver = checkpoint.Saver(tmp_path, model, model.variables)

    def save(epoch, value):
        """An epoch that is the best, with weights of this value."""
        model.set_weights([np.full_like(weights, value) for weights in model.get_weights()])
        name = f'best-epoch-00{epoch}.weights.h5'
        saver.save_best(name)
        return saver.save(RunState(epoch, best_weights=name))

    save(1, 0.1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    disk.free = 0
    state = save(2, 0.2)
    model.set_weights([np.full_like(weights, 0.3) for weights in model.get_weights()])
    saver.save(state._replace(step=1))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said = capsys.readouterr().out
    assert said.count('warning') == 1 and 'training goes on' in said
    with pytest.raises(OSError, match='No space left'):
        saver.require_saved()
    disk.free = 1 << 40
    saver.save(state._replace(step=2))  # the best is epoch 2's, though the weights have moved on
    saver.require_saved()
    assert 'saved again' in capsys.readouterr().out
    np.testing.assert_array_equal(model.get_weights()[0], np.float32(0.3))
    found = checkpoint.load(checkpoint.newest(tmp_path), model.variables)
    assert (found.epoch, found.step, found.best_weights) == (2, 2, 'best-epoch-002.weights.h5')
    np.testing.assert_array_equal(model.get_weights()[0], np.float32(0.3))
    model.load_weights(tmp_path / found.best_weights)
    np.testing.assert_array_equal(model.get_weights()[0], np.float32(0.2))


def test_what_is_no_full_disk_is_raised(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(np, 'savez', denied)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(PermissionError):
        checkpoint.Saver(tmp_path, model, model.variables).save(RunState(1))


def test_weights_are_not_begun_on_a_full_disk(tmp_path, monkeypatch):
    # h5py ends in a segmentation fault there, which nothing could catch
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    monkeypatch.setattr('shutil.disk_usage', lambda _: type('Usage', (), {'free': 10}))
    with pytest.raises(OSError, match='No space left'):
        checkpoint.save_weights(model, tmp_path / 'x.weights.h5')
    assert not list(tmp_path.iterdir())
