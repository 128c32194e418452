"""A training that is killed at random moments and started again ends as if it had never been killed."""

import csv
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import trainings

from boardrec import cli
from boardrec.data import files

ROOT = pathlib.Path(__file__).parents[1]
TIMES = ('seconds', 'images_per_second', 'input_wait', 'first_batch_seconds', 'val_seconds', 'peak_rss_mib')


@pytest.fixture
def config(train_config):
    """A run of 12 epochs of 6 steps, 36 saved states, of what starts fast: the last layer of VGG16."""
    return train_config(backbone='vgg16', trainable_layers=0, epochs=12, schedule='cosine', dropout=0.4,
                        cached_views=2, checkpoint_every_steps=2, ema_decay=0.9)


def command(config):
    """Starts the real command."""
    return subprocess.Popen([sys.executable, '-m', 'boardrec.train', *cli.to_flagfile(config).splitlines()], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out


def kill_after(process, run, *, more, pause):
    """Kills a command outright when it has saved so many more states, and so many seconds after that."""
    until = trainings.newest_state(run) + more
    while trainings.newest_state(run) < until:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    time.sleep(pause)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, 'it ended before it was killed'


def history(run):
    """history.csv without what a clock says."""
    with open(run / 'history.csv', newline='') as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def outcome(config):
    """What must be the same however often a run was killed."""
    run = pathlib.Path(config.run_dir)
    facts = json.loads((run / 'run.json').read_text())
    assert facts['finished'] and not list(run.rglob('.tmp-*'))
    return history(run), facts, files.sha256_of(run / 'model.weights.h5'), sorted(os.listdir(run / 'checkpoints'))[0]


def test_killed_three_times_at_random_moments(config):
    again = dataclasses.replace(config, run_dir=f'{config.run_dir}-killed')
    moments, run = random.Random(0), pathlib.Path(again.run_dir)
    for _ in range(2):
        training = trainings.Training(again)
        training.wait_for_states(moments.randint(3, 9))
        time.sleep(moments.uniform(0, 0.05))
        os.kill(training.pid, signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL, 'it ended before it was killed'
    kill_after(command(again), run, more=moments.randint(3, 9), pause=moments.uniform(0, 0.05))
    assert not json.loads((run / 'run.json').read_text()).get('finished')
    for one in (again, config):
        training = trainings.Training(one)
        assert training.wait() == 0, training.output
    assert outcome(again) == outcome(config)


@pytest.mark.long
@pytest.mark.parametrize('seed', [0, 1])
def test_killed_twelve_times_at_random_moments(train_config, seed):
    config = train_config(epochs=40, schedule='cosine', dropout=0.4, trainable_layers=1, cached_views=2,
                          checkpoint_every_steps=2, optimizer='adam')
    again = dataclasses.replace(config, run_dir=f'{config.run_dir}-killed')
    finish(command(config))
    moments, run = random.Random(seed), pathlib.Path(again.run_dir)
    for kill in range(12):
        if kill % 3 == 1:  # at any moment of the start
            process = command(again)
            time.sleep(moments.uniform(0, 12))
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL, 'it ended before it was killed'
        else:
            kill_after(command(again), run, more=moments.randint(1, 9), pause=moments.uniform(0, 0.05))
    finish(command(again))
    assert outcome(again) == outcome(config)


@pytest.mark.long
def test_signals_end_the_command_with_their_status_and_it_goes_on(config):
    again = dataclasses.replace(config, run_dir=f'{config.run_dir}-stopped')
    finish(command(config))
    run = pathlib.Path(again.run_dir)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process, before = command(again), trainings.newest_state(run)
        while trainings.newest_state(run) < before + 3:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == status, out
        assert 'Interrupted; the same command goes on from what is complete.' in out
    finish(command(again))
    assert outcome(again) == outcome(config)


@pytest.mark.long
def test_a_second_signal_ends_a_long_step_at_once(train_config):
    config = train_config(image_size='224', batch_size=80, epochs=1, feature_cache='off', trainable_layers=18,
                          cached_views=0)  # VGG16: tens of seconds a step
    process = command(config)
    while not list(pathlib.Path(config.run_dir).glob('tensorboard')) and process.poll() is None and not (
            pathlib.Path(config.run_dir) / 'run.flags').exists():
        time.sleep(0.01)
    time.sleep(15)  # by now the first step is under way
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None, 'it ends with the step'
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert time.monotonic() - start < 2 and 'stopping after this step; once more ends it at once' in out
