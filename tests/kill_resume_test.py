"""A training that is killed at random moments and started again ends as if it had never been killed."""

import csv
import json
import pathlib
import random
import subprocess
import sys
import time

import pytest

from boardrec.data import files

ROOT = pathlib.Path(__file__).parents[1]
TIMES = ('seconds', 'images_per_second', 'input_wait', 'first_batch_seconds', 'val_seconds', 'peak_rss_mib')


def train(record_set_path, run, *, kill_after=None):
    """Runs the training command; kills it outright after so many seconds, and says whether it was still running."""
    command = [sys.executable, '-m', 'boardrec.train', '--flagfile=flags/smoke.flags', f'--records={record_set_path}',
               f'--run_dir={run}', f'--feature_cache_dir={run.parent}/cache-{run.name}', '--epochs=12',
               '--schedule=cosine', '--dropout=0.4']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, err = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    assert process.returncode == 0, err.decode()
    return False


def history(run):
    """history.csv without what a clock says."""
    with open(run / 'history.csv', newline='') as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


@pytest.mark.long
@pytest.mark.parametrize('seed', [0, 1])
def test_killed_at_random_moments(record_set_path, tmp_path, seed):
    start = time.monotonic()
    assert not train(record_set_path, tmp_path / 'whole')
    seconds = time.monotonic() - start
    moments, kills = random.Random(seed), 0
    for _ in range(6):
        if not train(record_set_path, tmp_path / 'killed', kill_after=moments.uniform(0.3, 1) * seconds):
            break
        kills += 1
    while train(record_set_path, tmp_path / 'killed', kill_after=10 * seconds + 60):
        pytest.fail('training hangs after a kill')
    assert kills
    assert history(tmp_path / 'killed') == history(tmp_path / 'whole')
    assert files.sha256_of(tmp_path / 'killed/model.weights.h5') == files.sha256_of(tmp_path / 'whole/model.weights.h5')
    facts = [json.loads((tmp_path / name / 'run.json').read_text()) for name in ('killed', 'whole')]
    assert facts[0] == facts[1]
    assert not [path for path in (tmp_path / 'killed').rglob('.tmp-*')]
