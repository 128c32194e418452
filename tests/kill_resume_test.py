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

import checkpoint_sweep
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


def kill_after(process, run, *, more, pause, seconds=300):
    """Kills a command outright when it has saved so many more states, and a pause after that, or after the seconds."""
    until, end = trainings.newest_state(run) + more, time.monotonic() + seconds
    while trainings.newest_state(run) < until and time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    time.sleep(pause)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, 'it ended before it was killed'


def kill_forked_after(config, *, more, pause):
    """Starts a training and does the same to it, without the seconds that the command's imports take."""
    training = trainings.Training(config)
    training.wait_for_states(more)
    time.sleep(pause)
    os.kill(training.pid, signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL, 'it ended before it was killed'


def train_forked(config):
    training = trainings.Training(config)
    assert training.wait(300) == 0, training.output


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
        kill_forked_after(again, more=moments.randint(3, 9), pause=moments.uniform(0, 0.05))
    kill_after(command(again), run, more=moments.randint(3, 9), pause=moments.uniform(0, 0.05))
    assert not json.loads((run / 'run.json').read_text()).get('finished')
    train_forked(again)
    train_forked(config)
    assert outcome(again) == outcome(config)


@pytest.mark.long
@pytest.mark.parametrize('seed', [0, 1])
def test_killed_twelve_times_at_random_moments(train_config, seed):
    config = train_config(epochs=40, schedule='cosine', dropout=0.4, trainable_layers=1, cached_views=2,
                          checkpoint_every_steps=2, optimizer='adam')
    again = dataclasses.replace(config, run_dir=f'{config.run_dir}-killed')
    moments, run = random.Random(seed), pathlib.Path(again.run_dir)
    for kill in range(12):
        moment = {'more': moments.randint(1, 9), 'pause': moments.uniform(0, 0.05)}
        if kill % 3 == 1:  # at any moment of the start
            kill_after(command(again), run, seconds=moments.uniform(0, 12), **moment)
        else:
            kill_forked_after(again, **moment)
    finish(command(again))
    train_forked(config)
    assert outcome(again) == outcome(config)


@pytest.mark.long
def test_signals_end_the_command_with_their_status_and_it_goes_on(config):
    again = dataclasses.replace(config, run_dir=f'{config.run_dir}-stopped')
    train_forked(config)
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
    config = train_config(image_size='224', batch_size=40, epochs=1, feature_cache='off', trainable_layers=18,
                          cached_views=0, optimizer='sgd', checkpoint_every_steps=1)  # VGG16: ten seconds a step
    process = command(config)
    while not trainings.newest_state(pathlib.Path(config.run_dir)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(2)  # the second step is under way
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None, 'the step was not under way'
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert time.monotonic() - start < 2 and 'stopping after this step; once more ends it at once' in out


@pytest.mark.long
def test_a_fault_while_a_state_is_saved_damages_neither_it_nor_the_one_before(strace, tmp_path):
    problems = {}
    for number, fault in enumerate(checkpoint_sweep.faults(tmp_path / 'counted')):
        problems[fault] = checkpoint_sweep.disturb(tmp_path / str(number), *fault)
    assert len(problems) > 40 and not any(problems.values()), problems
