"""What TensorBoard is given is read back from its files."""

import dataclasses
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from boardrec import cli
from boardrec.data import records
from boardrec.data.input_pipeline import train_dataset
from boardrec.training import board, feed, fit, loop, pictures, run_dir, steps
from boardrec.training.board import Board
from boardrec.training.checkpoint import EpochSums, RunState
from boardrec.training.run_dir import RunDir


@pytest.fixture
def small_config(train_config, small_backbone):
    """A function from settings to a TrainConfig of 6 steps an epoch, each of milliseconds."""
    def make(**settings):
        return train_config(**{'backbone': small_backbone, 'trainable_layers': 9, 'precision': 'float32', 'epochs': 2,
                               'learning_rate': 0.01, 'feature_cache': 'off', 'log_every_steps': 2, **settings})
    return make


def train(config):
    fit.fit(config, records.open_record_set(config.records))
    return RunDir(pathlib.Path(config.run_dir))


def points(folder):
    """{tag: [(step, value), ...]} in the order of writing."""
    result = {}
    for path in sorted(folder.glob('events.*'), key=lambda path: path.stat().st_mtime_ns):  # by name, 10 is before 9
        for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(data)
            for value in event.summary.value:
                result.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return result


def picture(point):
    """The pixels of an image summary: width, height, then PNGs."""
    return tf.io.decode_png(point[1][2]).numpy()


def at_step(monkeypatch, number, action):
    """Does something once, when so many steps were told to the board."""
    told, step = [], Board.step

    def watched(self, *args):
        step(self, *args)
        told.append(None)
        if len(told) == number:
            action()

    monkeypatch.setattr(Board, 'step', watched)


def test_curves_by_step_and_by_epoch_are_those_of_the_history(small_config, record_set):
    run = train(small_config(schedule='cosine', log_every_steps=1))
    drawn, history = points(run.tensorboard), run_dir.read_history(run)
    for name in ('loss', 'val_loss', 'accuracy', 'val_accuracy', 'learning_rate'):
        assert [step for step, _ in drawn[name]] == [1, 2]
        np.testing.assert_allclose([value for _, value in drawn[name]], [row[name] for row in history], rtol=1e-6)
    assert [step for step, _ in drawn['step/loss']] == list(range(1, 13))
    losses = np.array([value for _, value in drawn['step/loss']]).reshape(2, 6)
    total = len(record_set.split_range('train'))
    means = (losses[:, :5].sum(1) * 16 + losses[:, 5] * (total - 80)) / total
    np.testing.assert_allclose(means, [row['loss'] for row in history], rtol=1e-5)
    rates = [value for _, value in drawn['step/learning_rate']]
    assert rates == sorted(rates, reverse=True) and rates[5] == pytest.approx(history[0]['learning_rate'])
    assert (np.array([value for _, value in drawn['step/images_per_second']]) > 0).all()


@pytest.mark.parametrize(('settings', 'expected'), [
    ({'log_every_steps': 5}, [1, 5, 10]),
    pytest.param({'log_every_steps': 4, 'steps_per_call': 3}, [3, 6, 9, 12], marks=pytest.mark.long)])
def test_points_are_so_many_steps_apart(small_config, settings, expected):
    run = train(small_config(**settings))
    assert [step for step, _ in points(run.tensorboard)['step/loss']] == expected


def test_a_point_is_the_mean_since_the_last_one_of_its_epoch(tmp_path, train_config, record_set):
    def state(epoch, step, loss):
        return RunState(epoch=epoch, step=step, sums=EpochSums(loss=loss, records=10.0 * step, seconds=2.0 * step))

    with Board(tmp_path / 'board', train_config(log_every_steps=2), record_set) as it:
        it.begin(state(3, 1, 7.0))  # goes on after one of four steps
        for told in (state(3, 2, 17.0), state(3, 3, 20.0), state(3, 4, 57.0)):
            it.step(told, 4, 0.1)
        it.begin(state(4, 0, 0.0))
        for told in (state(4, 1, 5.0), state(4, 2, 8.0)):
            it.step(told, 4, 0.1)
    drawn = points(tmp_path / 'board')
    assert drawn['step/loss'] == [(14, 1.0), (16, 2.0), (18, np.float32(0.4))]
    assert drawn['step/images_per_second'] == [(16, 5), (18, 5)], 'before that the step is compiled'


@pytest.mark.parametrize('moment', [4, pytest.param(11, marks=pytest.mark.long)])
def test_a_run_that_goes_on_neither_repeats_nor_loses_points(small_config, monkeypatch, moment):
    config = small_config(checkpoint_every_steps=3, log_every_steps=1)
    whole = points(train(config).tensorboard)
    again = dataclasses.replace(config, run_dir=f'{config.run_dir}-again')
    folder = RunDir(pathlib.Path(again.run_dir)).tensorboard

    def killed():
        shutil.copytree(folder, f'{folder}-then')  # what has not reached the disk by now is lost
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, moment, killed)
        train(again)
    shutil.rmtree(folder)
    shutil.move(f'{folder}-then', folder)
    with monkeypatch.context() as patch, pytest.raises(cli.Interrupted):  # and by a signal in validation
        patch.setattr(loop, 'validate', lambda session: None)
        train(again)
    drawn = points(train(again).tensorboard)
    for tag in ('step/loss', 'step/accuracy', 'step/learning_rate', 'loss', 'val_loss', 'images/first_batch'):
        assert [step for step, _ in drawn[tag]] == [step for step, _ in whole[tag]], tag
    np.testing.assert_array_equal([value for _, value in drawn['step/loss']][1:],
                                  [value for _, value in whole['step/loss']][1:])


def test_an_epoch_that_was_saved_and_not_drawn_is_drawn_later(tmp_path, train_config, record_set):
    rows = tuple({'epoch': number, 'val_loss': 1 / number} for number in (1, 2, 3))
    for history in (rows[:1], rows):
        with Board(tmp_path / 'board', train_config(), record_set) as it:
            it.epoch(RunState(epoch=len(history), history=history))
    assert points(tmp_path / 'board')['val_loss'] == [(n, np.float32(1 / n)) for n in (1, 2, 3)]


def test_a_torn_file_is_read_up_to_its_end(tmp_path, train_config, record_set):
    row = {'epoch': 1, 'val_loss': 0.5}
    with Board(tmp_path, train_config(), record_set) as it:
        it.epoch(RunState(epoch=1, history=(row,)))
    path, = tmp_path.glob('events.*')
    path.write_bytes(path.read_bytes() + b'\x18\0\0')
    assert board._last_steps(tmp_path) == {'val_loss': 1}


def test_a_folder_that_cannot_be_written_is_said_once(small_config, monkeypatch, capsys):
    config, create = small_config(profile_steps='2,3'), run_dir.create

    def in_the_way(run, *args):
        create(run, *args)
        run.tensorboard.write_text('')

    monkeypatch.setattr(run_dir, 'create', in_the_way)
    run = train(config)
    assert run_dir.read_facts(run.path)['finished']
    assert capsys.readouterr().out.count('warning: TensorBoard does not show all') == 1


@pytest.mark.parametrize('views', [1, 3, 0])
def test_the_first_batch_is_shown_as_it_is_trained_on(small_config, record_set, views):
    config = small_config(cached_views=views, seed=5, **({} if views == 1 else {'rotation': 20.0}))
    its, size = feed.views(config), config.height_width()
    batch = next(iter(train_dataset(record_set, image_size=size, batch_size=16, seed=5, views=its)))
    sheet = pictures.first_batch(config, record_set)
    # Cells of 32 + 4 pixels below two lines of 14.
    cells = [sheet[top + 28:top + 60, left:left + 32] for top in range(0, 240, 64) for left in range(4, 148, 36)]
    differences = [np.abs(a.astype(int) - b).max() for a, b in zip(cells, batch.inputs.numpy(), strict=True)]
    assert max(differences) <= 1, 'an op in a tf.function may round otherwise'


def test_the_first_batch_is_shown_with_cached_features(small_config):
    run = train(small_config(feature_cache='on', epochs=1, cached_views=2))
    (step, value), = points(run.tensorboard)['images/first_batch']
    assert step == 0 and picture((step, value)).shape == (4 * (32 + 28 + 4), 4 * 36 + 4, 3)


def errors_of(run, record_set, config):
    """The validation errors by a pass of its own: (record_id, decision, probability of its class), worst first."""
    from boardrec.data.input_pipeline import eval_dataset
    from boardrec.training import inference
    predictor = inference.load(run.path)
    probabilities, found = inference.probabilities(predictor), []
    for batch in eval_dataset(record_set, 'val', image_size=config.height_width(), batch_size=16):
        for number, columns, label in zip(batch.record_ids.numpy(), probabilities(batch.inputs).numpy(),
                                          batch.labels.numpy(), strict=True):
            if columns.argmax() != label:
                found.append((number, columns.argmax(), columns[label]))
    return sorted(found, key=lambda one: one[2])


@pytest.mark.parametrize('settings', [
    {'feature_cache': 'off'}, pytest.param({'feature_cache': 'on'}, marks=pytest.mark.long),
    pytest.param({'strategy': 'mirrored'}, marks=pytest.mark.long)])
def test_the_worst_errors_of_each_best_epoch_are_shown(small_config, record_set, monkeypatch, settings):
    config, shown, draw = small_config(learning_rate=1e-4, **settings), [], pictures.of_errors
    monkeypatch.setattr(pictures, 'of_errors', lambda *args: shown.append(args[2]) or draw(*args))
    run = train(config)
    history, best, expected = run_dir.read_history(run), [], np.inf
    for row in history:
        if row['val_loss'] < expected:
            best.append(row['epoch'])
            expected = row['val_loss']
    images = points(run.tensorboard)['images/worst_validation_errors']
    assert [step for step, _ in images] == best
    expected = errors_of(run, record_set, config)
    assert len(expected) == 3 and [wrong.record_id for wrong in shown[-1]] == [one[0] for one in expected[:16]]
    assert [wrong.decision for wrong in shown[-1]] == [one[1] for one in expected[:16]]
    np.testing.assert_allclose([wrong.probability for wrong in shown[-1]], [one[2] for one in expected[:16]], rtol=1e-4)


def test_errors_are_ordered_by_loss_and_padding_is_none(record_set):
    labels = record_set.labels
    ids = np.array([5, 3, -1, 100, 7])
    rows = steps.Rows(ids, np.array([1.0, 2.0, 9.0, np.nan, 3.0], np.float32),
                      np.array([1 - labels[5], labels[3], 1 - labels[-1], 1 - labels[100], 1 - labels[7]]))
    found = pictures.worst_errors(rows, record_set)
    assert [wrong.record_id for wrong in found] == [100, 7, 5]
    assert found[1].probability == pytest.approx(np.exp(-3)) and found[1].decision == 1 - labels[7]


def test_large_images_are_shown_small(small_config, record_set):
    config = small_config(image_size='320x640')
    sheet = pictures.of_errors(config, record_set, [pictures.Wrong(0, 1, 0.25)])
    assert sheet.shape == (80 + 3 * 14 + 4, 160 + 2 * 4, 3) and Image.fromarray(sheet)


def profiled_steps(run):
    """The steps that the traces name, and how many traces there are."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2
    numbers, traces = [], list(run.tensorboard.rglob('*.xplane.pb'))
    for path in traces:
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
        for plane in space.planes:
            for line in plane.lines:
                for event in line.events:
                    if plane.event_metadata[event.metadata_id].name == 'train':
                        numbers += [stat.int64_value for stat in event.stats
                                    if plane.stat_metadata[stat.metadata_id].name == 'step_num']
    return sorted(numbers), len(traces)


@pytest.mark.parametrize(('settings', 'expected'), [
    ({'profile_steps': '5,8', 'steps_per_call': 3}, [4, 7]),
    pytest.param({'profile_steps': '5,8'}, [5, 6, 7, 8], marks=pytest.mark.long),
    pytest.param({'profile_steps': '12,40'}, [12], marks=pytest.mark.long)])
def test_a_profile_has_the_steps_that_were_asked_for(small_config, capsys, settings, expected):
    run = train(small_config(**settings))
    assert profiled_steps(run) == (expected, 1)
    first, last = map(int, settings['profile_steps'].split(','))
    assert (f'profile of steps {first} to {min(last, 12)}: tensorboard --logdir={run.tensorboard}'
            in capsys.readouterr().out)


def test_without_such_steps_there_is_no_profile_and_this_is_said(small_config, capsys):
    assert profiled_steps(train(small_config(profile_steps='13,20'))) == ([], 0)
    assert '--profile_steps=13,20 makes no profile: this training has 12 steps\n' in capsys.readouterr().out
