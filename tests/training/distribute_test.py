"""What `auto` means on this machine, and a batch's equal shares."""

import dataclasses
import types

import pytest
import tensorflow as tf

from boardrec.config import UserError
from boardrec.training import distribute


@pytest.mark.parametrize(('flags', 'expected'), [
    ('fpu avx512_bf16 sse', 'bfloat16'), ('fpu amx_bf16', 'bfloat16'), ('fpu avx512f avx2', 'float32')])
def test_precision_on_a_cpu(tmp_path, monkeypatch, flags, expected):
    (tmp_path / 'cpuinfo').write_text(f'processor : 0\nflags : {flags}\n')
    monkeypatch.setattr(distribute, '_CPUINFO', tmp_path / 'cpuinfo')
    assert distribute.resolve_precision('auto') == expected
    assert distribute.resolve_precision('float16') == 'float16'


@pytest.mark.parametrize(('capabilities', 'expected'), [
    ([(8, 0)], 'bfloat16'), ([(9, 0), (7, 5)], 'float16'), ([(6, 1)], 'float32')])
def test_precision_on_gpus(monkeypatch, capabilities, expected):
    # The machine has no GPU: what TensorFlow would tell of them is given; not run on a GPU.
    config = types.SimpleNamespace(
        get_visible_devices=lambda kind: capabilities,
        experimental=types.SimpleNamespace(get_device_details=lambda gpu: {'compute_capability': gpu}))
    monkeypatch.setattr(distribute.tf, 'config', config)
    assert distribute.resolve_precision('auto') == expected


def test_one_device_takes_no_strategy(train_config):
    assert distribute.set_up(train_config()) is None
    assert distribute.set_up(train_config(strategy='one')) is None
    assert distribute.set_up(train_config(strategy='mirrored'), training=False) is None


def test_a_gpu_that_is_not_there(train_config):
    count = len(tf.config.list_physical_devices('GPU'))
    with pytest.raises(UserError, match=f'--gpus={count}: this machine shows {count} GPUs'):
        distribute.set_up(dataclasses.replace(train_config(), gpus=str(count)))
