"""What `auto` means on this machine, and a batch's equal shares."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import UserError
from boardrec.data.input_pipeline import Batch
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
    with pytest.raises(UserError, match=f'--gpus={count}: this machine shows {f"{count} GPUs" if count else "no GPU"}'):
        distribute.set_up(dataclasses.replace(train_config(), gpus=str(count)))


class TwoReplicas:
    """Stands in for a MirroredStrategy; fit_test runs a real one, which needs a process of its own."""

    num_replicas_in_sync = 2

    def experimental_distribute_values_from_function(self, function):
        return [function(types.SimpleNamespace(replica_id_in_sync_group=number)) for number in range(2)]

    def run(self, function, args):
        made = [function(part) for part in args[0]]
        return tf.nest.map_structure(lambda *values: Values(values), *made)

    def experimental_local_results(self, value):
        return value.values

    def reduce(self, operation, value, axis):
        assert operation == tf.distribute.ReduceOp.SUM and axis is None
        return tf.add_n(value.values)


class Values:
    """A value of each replica; tf.nest takes it for one."""

    def __init__(self, values):
        self.values = values


BATCH = Batch((tf.range(12.0), tf.reshape(tf.range(24), [12, 2])), tf.range(12), tf.ones([12]),
              tf.range(12, dtype=tf.int64))


@pytest.mark.parametrize('strategy', [None, TwoReplicas()])
def test_a_batch_is_shared_and_its_rows_come_back_in_order(strategy):
    sizes = []

    def function(batch):
        sizes.append(len(batch.labels))
        return batch.inputs[1] * 2, batch.inputs[0] + 1

    doubled, more = distribute.gather(strategy, function, distribute.place(strategy, BATCH))
    np.testing.assert_array_equal(doubled, BATCH.inputs[1] * 2)
    np.testing.assert_array_equal(more, BATCH.inputs[0] + 1)
    assert sizes == ([6, 6] if strategy else [12])


@pytest.mark.parametrize('strategy', [None, TwoReplicas()])
def test_sums_are_those_of_the_whole_batch(strategy):
    placed = distribute.place(strategy, BATCH)
    total = distribute.run(
        strategy, lambda batch: (tf.reduce_sum(batch.inputs[0]), tf.reduce_sum(batch.record_ids)), placed)
    assert [float(value) for value in total] == [66, 66]


def test_the_kind_of_device_names_the_gpu_or_the_cpu(tmp_path, monkeypatch):
    (tmp_path / 'cpuinfo').write_text('vendor_id : A\nmodel name\t: EPYC 9\nmodel name\t: EPYC 9\n')
    monkeypatch.setattr(distribute, '_CPUINFO', tmp_path / 'cpuinfo')
    monkeypatch.delenv('TF_ENABLE_ONEDNN_OPTS', raising=False)
    details = types.SimpleNamespace(get_device_details=lambda gpu: gpu)
    for gpus, expected in (([{'device_name': 'NVIDIA L4'}], 'NVIDIA L4'), ([{}, {}], 'GPU'),
                           ([], 'EPYC 9, oneDNN as built')):
        monkeypatch.setattr(distribute.tf, 'config', types.SimpleNamespace(
            get_visible_devices=lambda kind, gpus=gpus: gpus, experimental=details))
        assert distribute.device_kind() == expected
