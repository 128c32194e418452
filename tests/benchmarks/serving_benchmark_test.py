"""Its arithmetic by a fake clock, its ratios, and that it runs."""

import pathlib
import sys
import threading
import time

import pytest

from boardrec.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'serving'))
import serving_benchmark as benchmark
from serving_benchmark import BARE, Figures, GRPC, REST, ServingBenchmarkConfig


def test_rates_and_percentiles_by_a_fake_clock():
    now = [0.0]

    def call(number):
        calls.append(number)
        now[0] += 0.1 if number % 10 else 0.3  # each tenth call is slow

    calls = []
    figures = benchmark.measure(call, batch=8, concurrency=1, seconds=5.95, clock=lambda: now[0])
    assert calls == list(range(50)), 'the call that ends behind the time counts too'
    assert figures.images_a_second == pytest.approx(50 * 8 / 6.0)
    assert (figures.p50, figures.p95, figures.p99) == pytest.approx((100, 300, 300))


def test_each_thread_sends_requests_of_its_own():
    seen, lock = set(), threading.Lock()

    def call(number):
        with lock:
            assert number not in seen
            seen.add(number)
        time.sleep(0.01)

    benchmark.measure(call, batch=1, concurrency=4, seconds=0.5)
    assert {0, 1, 2, 3} <= seen


def test_ratios_are_medians_over_rounds_of_the_best_rates():
    def found(ours, bound, milliseconds):
        return {(BARE, 1, 1): Figures(bound / 2, 10.0, 0, 0), (BARE, 8, 4): Figures(bound, 50.0, 0, 0),
                (REST, 1, 1): Figures(1.0, milliseconds, 0, 0), (REST, 8, 4): Figures(ours, 99.0, 0, 0),
                (GRPC, 1, 1): Figures(ours, 9.0, 0, 0), (GRPC, 8, 4): Figures(1.0, 99.0, 0, 0)}

    lines = benchmark.summary([found(90, 100, 11), found(70, 100, 20), found(99, 90, 10)])
    assert [line.rpartition(': ')[2] for line in lines] == [
        '0.900, expected 0.9 or more', '1.100, expected 1.15 or less',
        '0.900, expected 0.9 or more', '0.900, expected 1.15 or less']


@pytest.mark.parametrize('values', [{'rounds': 0}, {'seconds': 0.0}, {'batches': '1,x'}, {'concurrency': '0'}])
def test_settings_that_cannot_be(values):
    with pytest.raises(UserError, match='--'):
        ServingBenchmarkConfig(**values)


@pytest.mark.long
def test_it_runs(tmp_path, capsys):
    import served_models
    import servers
    servers.require_serving()
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    served_models.save(folder, 1)
    benchmark.main(ServingBenchmarkConfig(model_dir=str(folder), batches='1', concurrency='1,2', seconds=0.1, rounds=1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 * 2 + 4
    assert 'bare forward, 1 a request, 2 at once: ' in lines[6]
