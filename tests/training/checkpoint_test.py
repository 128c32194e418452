"""RunState goes to disk and back, whole or not at all."""

import keras
import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.training import checkpoint
from boardrec.training.checkpoint import RunState
from boardrec.training.optim import Watch


def variables(seed=0):
    random = np.random.default_rng(seed)
    return [keras.Variable(random.normal(size=(3, 2)).astype('float32'), name='kernel'),
            keras.Variable(np.array([seed, 7], 'uint32'), dtype='uint32', trainable=False, name='seed'),
            keras.Variable(seed, dtype='int32', name='iteration')]


def test_nothing_saved_is_a_fresh_state(tmp_path):
    assert checkpoint.restore(tmp_path, variables()) == RunState()


def test_round_trip(tmp_path):
    state = RunState(3, Watch(0.5, 2, 1), 'best-epoch-002.weights.h5', ({'epoch': 1, 'loss': 0.1}, {'epoch': 2}))
    saved, others = variables(1), variables(2)
    checkpoint.commit(tmp_path, state, saved)
    with pytest.raises(UserError, match=r'best-epoch-002\.weights\.h5 is missing'):
        checkpoint.restore(tmp_path, others)
    (tmp_path / 'best-epoch-002.weights.h5').touch()
    assert checkpoint.restore(tmp_path, others) == state
    for a, b in zip(saved, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_commit_removes_best_weights_that_are_no_longer_named(tmp_path):
    for name in ('best-epoch-001-loss-0.9.weights.h5', 'best-epoch-002-loss-0.8.weights.h5', 'other.h5'):
        (tmp_path / name).touch()
    checkpoint.commit(tmp_path, RunState(best_weights='best-epoch-002-loss-0.8.weights.h5'), variables())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'best-epoch-002-loss-0.8.weights.h5', 'other.h5', 'state.npz']


def test_a_failing_commit_leaves_the_last(tmp_path, monkeypatch):
    checkpoint.commit(tmp_path, RunState(1), variables(1))

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez', full)
    with pytest.raises(OSError, match='No space left'):
        checkpoint.commit(tmp_path, RunState(2), variables(2))
    assert checkpoint.restore(tmp_path, variables()).epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == ['state.npz']


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty'])
def test_damage_is_noticed(tmp_path, damage):
    saved = variables(1)
    checkpoint.commit(tmp_path, RunState(1), saved)
    path = tmp_path / 'state.npz'
    data = bytearray(path.read_bytes())
    if damage == 'flip':
        place = data.index(saved[0].numpy().tobytes())
        data[place] ^= 1
    path.write_bytes({'flip': data, 'cut': data[:-40], 'empty': b''}[damage])
    with pytest.raises(UserError, match=r'state\.npz is damaged'):
        checkpoint.restore(tmp_path, variables())


def test_a_state_of_another_model(tmp_path):
    checkpoint.commit(tmp_path, RunState(1), variables())
    with pytest.raises(UserError, match='state of another model'):
        checkpoint.restore(tmp_path, variables()[:2])


def test_weights_are_not_begun_on_a_full_disk(tmp_path, monkeypatch):
    # h5py ends in a segmentation fault there, which nothing could catch
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    monkeypatch.setattr('shutil.disk_usage', lambda _: type('Usage', (), {'free': 10}))
    with pytest.raises(OSError, match='No space left'):
        checkpoint.save_weights(model, tmp_path / 'x.weights.h5')
    assert not list(tmp_path.iterdir())
