"""The table names each stage and the slowest; a small run measures all of them."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import profile_input
from profile_input import ProfileInputConfig

from boardrec.config import UserError

RATES = {'read': 40_000.0, 'decode': 2_000.0, 'augment': 9_000.0, 'batch': 30_000.0, 'pipeline': 1_700.0, 'step': 14.0}


@pytest.mark.parametrize(('changed', 'slowest'), [
    ({}, 'step'), ({'step': 5_000.0}, 'decode'), ({'step': 5_000.0, 'augment': 1_800.0}, 'augment')])
def test_the_slowest_is_the_step_or_else_a_stage(changed, slowest):
    lines = profile_input.report(RATES | changed)
    assert lines[-1] == f'bottleneck: {slowest}'
    assert all(any(line.startswith(f'{name}: ') for line in lines) for name in RATES)
    assert any(line.startswith('read: ') and line.endswith('40,000        0.025') for line in lines)


def test_all_stages_are_measured(record_set_path, capsys):
    profile_input.main(ProfileInputConfig(
        records=str(record_set_path), weights='none', image_size='32', batch_size=8, precision='float32', seconds=0.1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in lines[1:-1]] == ['read', 'decode', 'batch', 'pipeline', 'step']


@pytest.mark.parametrize('given', [
    {'seconds': 0.0}, {'seconds': -1.0}, {'data_service': 'grpc://127.0.0.1:9'}], ids=str)
def test_what_cannot_be_measured_is_refused(given):
    name, = given
    with pytest.raises(UserError, match=f'^--{name}='):
        ProfileInputConfig(records='unused', **given)
