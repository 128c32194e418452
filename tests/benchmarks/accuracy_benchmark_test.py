"""The benchmark's arithmetic and table, what it refuses, and that a finished split is not trained again."""

import json
import pathlib
import statistics
import sys

import pytest

from boardrec.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import accuracy_benchmark as benchmark
from accuracy_benchmark import AccuracyBenchmarkConfig

ACCURACIES = {0: 0.9, 1: 0.875, 4: 0.925}


def test_the_table_has_each_split_and_their_mean_and_deviation():
    results = {seed: {'accuracy': value, 'auc': 0.95, 'log_loss': 0.3, 'minutes': 12 + seed}
               for seed, value in ACCURACIES.items()}
    lines = benchmark.report(results).splitlines()[1:]
    assert [line.split() for line in lines[:-1]] == [
        ['split', 'accuracy', 'auc', 'log_loss', 'minutes'], ['0', '0.9000', '0.9500', '0.3000', '12.0'],
        ['1', '0.8750', '0.9500', '0.3000', '13.0'], ['4', '0.9250', '0.9500', '0.3000', '16.0'],
        ['mean', '0.9000', '0.9500', '0.3000', '13.7'], ['deviation', '0.0250', '0.0000', '0.0000', '2.1']]
    assert statistics.stdev(ACCURACIES.values()) == pytest.approx(0.025)
    assert 'published' in lines[-1] and '0.8842' in lines[-1]
    assert 'deviation' not in benchmark.report({0: results[0]})


def test_accuracy_is_that_at_one_half():
    metrics = {'accuracy': 0.8, 'at_half': {'accuracy': 0.9}, 'auc': 0.95, 'log_loss': 0.3}
    assert benchmark.figures(metrics, 90.0) == {'accuracy': 0.9, 'auc': 0.95, 'log_loss': 0.3, 'minutes': 1.5}


@pytest.mark.parametrize('seeds', ['', 'a', '0,', '-1', '0,1,0', '0 1'])
def test_seeds_that_are_none_are_refused(seeds):
    with pytest.raises(UserError, match=f'^--seeds={seeds}: must be different whole numbers like 0,1,2.$'):
        AccuracyBenchmarkConfig(seeds=seeds)


def test_each_split_is_fetched_converted_trained_and_evaluated_once(tmp_path, monkeypatch, capsys):
    commands = []

    def command(*arguments):
        commands.append(arguments)
        if 'boardrec.train' in arguments:
            cache = next(a.partition('=')[2] for a in arguments if a.startswith('--feature_cache_dir='))
            pathlib.Path(cache).mkdir()
        if 'boardrec.evaluate' in arguments:
            run = pathlib.Path(arguments[2].partition('=')[2])
            (run / 'evaluation' / 'test').mkdir(parents=True, exist_ok=True)
            values = {'accuracy': 0.5, 'at_half': {'accuracy': ACCURACIES[int(run.parent.name[4:])]}, 'auc': 0.9}
            (run / 'evaluation' / 'test' / 'metrics.json').write_text(json.dumps({**values, 'log_loss': 0.3}))
        return 60.0 * len(commands)

    monkeypatch.setattr(benchmark, '_command', command)
    config = AccuracyBenchmarkConfig(output=str(tmp_path), seeds='0,4', recipe='flags/vgg16.flags')
    benchmark.main(config)
    table = capsys.readouterr().out
    assert [' '.join(c[:2]) if c[0] == '-m' else c[0] for c in commands] == 2 * [
        'tools/fetch_demo_data.py', 'tools/make_records.py', '-m boardrec.train', '-m boardrec.evaluate']
    seed4 = tmp_path / 'seed4'
    assert commands[4] == ('tools/fetch_demo_data.py', f'--output_dir={seed4}/images', '--seed=4')
    assert commands[6] == ('-m', 'boardrec.train', '--flagfile=flags/vgg16.flags', f'--records={seed4}/records',
                           f'--run_dir={seed4}/run', f'--feature_cache_dir={seed4}/feature_cache',
                           '--inference_precision=bfloat16')
    assert not list(tmp_path.glob('*/feature_cache')) and 'mean         0.9125' in table
    benchmark.main(config)
    assert capsys.readouterr().out == table, 'the minutes are those of the training, not of looking at it again'
    benchmark.main(AccuracyBenchmarkConfig(output=str(tmp_path), seeds='0', record_weights=True))
    assert commands[-2][-1] == f'--record_weights={tmp_path}/seed0/images.csv'
