"""It measures what it says, in every round, and leaves nothing behind."""

import pathlib
import re
import sys

import pytest

from boardrec.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import features_benchmark as benchmark
from features_benchmark import FeaturesBenchmarkConfig


@pytest.mark.long
def test_each_round_gives_both_ratios(record_set_path, tmp_path, capsys):
    recipe = tmp_path / 'small.flags'
    recipe.write_text('--weights=none\n--image_size=32\n--batch_size=8\n--precision=float32\n')
    before = set(record_set_path.parent.iterdir())
    benchmark.main(FeaturesBenchmarkConfig(records=str(record_set_path), recipe=str(recipe), rounds=2))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in lines] == ['round 1'] * 2 + ['round 2'] * 2 + [*benchmark.EXPECTED]
    for line in lines[:4]:
        ours, bound, ratio = map(float, re.findall(r'\d+\.\d+', line))
        assert ratio == pytest.approx(ours / bound, rel=0.05) and ours > 0
    assert set(record_set_path.parent.iterdir()) == before


def test_no_round_at_all_is_refused():
    with pytest.raises(UserError, match='--rounds=0: must be at least 1'):
        FeaturesBenchmarkConfig(rounds=0)
