"""Whether features are cached, where, and why; and that what is damaged or missing is computed, and nothing else."""

import dataclasses
import pathlib
import shutil
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import UserError
from boardrec.training import feature_store, features, feed, model

CLASSES = model.Classes(['negative', 'positive'], 1)
SECONDS = 0.5  # an image takes this long in the trunk, as far as the plan knows
MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def settings(train_config, small_backbone):
    """A function from settings to a TrainConfig of a run with the small backbone, cut in the midst of its branches."""
    def make(**others):
        return train_config(**{'backbone': small_backbone, 'trainable_layers': 5, 'precision': 'float32',
                               'dropout': 0.0, 'epochs': 10, **others})

    return make


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """What the plan is told: a rate, a disk with `free` bytes, memory of `available` bytes, no container."""
    told = types.SimpleNamespace(free=100 * GIB, available=100 * GIB, seconds=SECONDS, probes=0)

    def probe(trunk):
        told.probes += 1
        return told.seconds

    monkeypatch.setattr(features, 'seconds_an_image', probe)
    monkeypatch.setattr(feed, 'shutil', types.SimpleNamespace(
        disk_usage=lambda path: shutil.disk_usage(path)._replace(free=told.free)))
    monkeypatch.setattr(feed.psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=told.available))
    monkeypatch.setattr(feed, '_CGROUP', tmp_path / 'no cgroup')
    return told


def planned(config, record_set):
    keras.utils.set_random_seed(0)
    classifier = model.build(config, CLASSES, config.precision)
    return classifier, feed.decide(config, record_set, classifier, None, before=None)


def opened(config, record_set):
    classifier, plan = planned(config, record_set)
    return feed.open_feed(config, record_set, classifier, None, plan)


def said(capsys):
    return capsys.readouterr().out.splitlines()


def bytes_needed(plan):
    return sum(part.records * part.row_bytes for part in plan.parts)


def batches(source, epochs=2):
    return [tf.nest.map_structure(np.array, batch) for epoch in range(epochs) for batch in source.train(epoch, 0)] + [
        tf.nest.map_structure(np.array, batch) for batch in source.val]


def assert_equal(one, other):
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def computed(monkeypatch):
    """The (part, shard) that were computed since it was last cleared; shards have ten records."""
    pairs, compute = [], features.compute

    def counted(trunk, part, shards, **others):
        for number, rows in compute(trunk, part, shards, **others):
            pairs.append((part.name, number))
            yield number, rows

    monkeypatch.setattr(features, 'compute', counted)
    monkeypatch.setattr(feature_store, '_SHARD_BYTES', 10 * 1024)  # rows have 1,024 bytes
    return pairs


def every_shard(plan):
    return [(part.name, number) for part in plan.parts for number in range(part.shards)]


def test_off_is_off(settings, record_set, capsys, machine):
    config = settings(feature_cache='off')
    source = opened(config, record_set)
    assert said(capsys) == ['features are not cached: --feature_cache=off']
    assert source.val.element_spec.inputs == tf.TensorSpec([None, 32, 32, 3], tf.uint8) and machine.probes == 0
    assert not pathlib.Path(config.feature_cache_dir).exists()


@pytest.mark.parametrize('asked', ['auto', 'on', 'memory'])
def test_nothing_frozen_is_said(settings, record_set, capsys, asked):
    config = settings(feature_cache=asked, trainable_layers=22)
    if asked == 'auto':
        assert planned(config, record_set)[1] == feed.Decision('off')
        assert said(capsys) == ['features are not cached: no layer is frozen with --trainable_layers=22']
    else:
        with pytest.raises(UserError, match=f'--feature_cache={asked}: no layer is frozen with --trainable_layers=22; '
                                            'take --feature_cache=auto or off.$'):
            planned(config, record_set)


@pytest.mark.parametrize('asked', ['on', 'memory'])
def test_what_is_asked_for_is_done_whatever_it_saves(settings, record_set, capsys, machine, asked):
    machine.seconds = 0.0
    config = settings(feature_cache=asked)
    _, plan = planned(config, record_set)
    assert plan.feature_cache == asked and machine.probes == 0
    line, = said(capsys)
    boundary = ' and '.join(plan.trunk.cut.boundary)
    where = {'on': config.feature_cache_dir, 'memory': 'memory'}[asked]
    assert ' and ' in boundary and line == f'features of {boundary} (0 MiB): kept in {where}'
    assert [part.key['split'] for part in plan.parts] == ['train', 'val']
    assert plan.absent == ([0], [0]) and not pathlib.Path(config.feature_cache_dir).exists()


def test_auto_takes_the_disk_if_that_saves_time(settings, record_set, capsys):
    config = settings(feature_cache='auto')
    assert planned(config, record_set)[1].feature_cache == 'on'
    line, = said(capsys)
    # 105 records in 10 epochs are 1,050 images, 105 are computed: 9 epochs of 52.5 s are saved.
    assert line.endswith(f', to save about 8 min in 10 epochs: kept in {config.feature_cache_dir}')


def test_auto_takes_memory_if_the_disk_is_full(settings, record_set, capsys, machine):
    machine.free = GIB
    config = settings(feature_cache='auto')
    assert planned(config, record_set)[1].feature_cache == 'memory'
    line, = said(capsys)
    assert f'kept in memory, because {config.feature_cache_dir} lacks 0 MiB: the features need 0 MiB, and ' in line


def test_auto_takes_none_if_there_is_no_room_at_all(settings, record_set, capsys, machine):
    machine.free = machine.available = 0
    assert planned(settings(feature_cache='auto'), record_set)[1] == feed.Decision('off')
    line, = said(capsys)
    assert line.startswith('features are not cached: ') and ' lacks 1,024 MiB: the features need 0 MiB' in line
    assert line.endswith(', and 0 MiB are more than half of the memory available (0 MiB)')


@pytest.mark.parametrize(('epochs', 'views', 'decision'), [
    (1, 1, 'off'), (2, 1, 'on'), (3, 4, 'off'), (4, 4, 'on')])  # of four views, val is computed once: 4 epochs save
def test_auto_counts_what_the_computation_costs(settings, record_set, capsys, epochs, views, decision):
    config = settings(feature_cache='auto', epochs=epochs, cached_views=views)
    assert planned(config, record_set)[1].feature_cache == decision
    line, = said(capsys)
    assert ('would take longer than they save' in line) == (decision == 'off')


def test_auto_counts_the_disk_that_is_read_each_epoch(settings, record_set, machine):
    config = settings(feature_cache='auto')
    plan = planned(config, record_set)[1]
    read = plan.trunk.cut.row_bytes / feed._DISK_BYTES_PER_SECOND
    machine.seconds = 1.01 * read
    assert planned(config, record_set)[1].feature_cache == 'on'  # what fits the page cache is read for nothing
    machine.available = int(2 * bytes_needed(plan)) - 2
    assert planned(config, record_set)[1].feature_cache == 'off'
    machine.available += 2
    assert planned(config, record_set)[1].feature_cache == 'on'
    machine.available, machine.seconds = 0, 1.2 * read
    assert planned(config, record_set)[1].feature_cache == 'on'


@pytest.mark.parametrize(('before', 'free', 'available', 'expected'), [
    ('off', 100, 100, 'off'), ('on', 100, 100, 'on'), ('memory', 100, 100, 'on'), ('on', 0, 100, 'memory'),
    ('on', 0, 0, 'off')])
def test_a_run_that_goes_on_keeps_to_its_decision_if_it_can(
        settings, record_set, machine, capsys, before, free, available, expected):
    machine.free, machine.available, machine.seconds = free * GIB, available * GIB, 0.0
    config = settings(feature_cache='auto')
    classifier = model.build(config, CLASSES, 'float32')
    decision = feed.decide(config, record_set, classifier, None, before=before)
    assert decision.feature_cache == expected and machine.probes == 0
    line, = said(capsys)
    assert (line == 'features are not cached: as before') == (before == 'off')
    other = dataclasses.replace(config, feature_cache='off' if before == 'on' else 'memory')
    if machine.available:
        assert feed.decide(other, record_set, classifier, None, before=before).feature_cache == other.feature_cache


def test_what_is_there_already_counts_as_computed(settings, record_set, capsys, machine, computed):
    config = settings()
    opened(config, record_set)
    config = dataclasses.replace(config, feature_cache='auto', epochs=1)
    machine.free = 0
    said(capsys)
    assert planned(config, record_set)[1].feature_cache == 'on'
    line, = said(capsys)
    assert line.endswith(f': taken from {config.feature_cache_dir}') and machine.probes == 0
    plan = planned(config, record_set)[1]
    plan.parts[0].path(2).unlink()
    machine.free = GIB + 10 * 1024  # one shard
    plan = planned(config, record_set)[1]
    assert plan.feature_cache == 'on' and plan.absent == ([2], [])
    machine.free -= 1
    assert planned(config, record_set)[1].feature_cache == 'memory'


@pytest.mark.parametrize(('lacking', 'fits'), [(1, False), (0, True)])
def test_the_disk_has_room_for_the_features_and_a_gibibyte(settings, record_set, machine, lacking, fits):
    config = settings()
    plan = planned(config, record_set)[1]
    machine.free = GIB + bytes_needed(plan) - lacking
    if fits:
        assert planned(config, record_set)[1].feature_cache == 'on'
    else:
        with pytest.raises(UserError, match=r'on: .* lacks 0 MiB: the features need 0 MiB, and 1 GiB is left'):
            planned(config, record_set)


@pytest.mark.parametrize(('lacking', 'fits'), [(2, False), (0, True)])
def test_memory_takes_no_more_than_a_half(settings, record_set, machine, lacking, fits):
    config = settings(feature_cache='memory', cached_views=3)
    plan = planned(config, record_set)[1]
    assert len(plan.parts) == 4
    machine.available = 2 * bytes_needed(plan) - lacking
    if fits:
        assert planned(config, record_set)[1].feature_cache == 'memory'
    else:
        with pytest.raises(UserError, match='--feature_cache=memory: 0 MiB are more than half of the memory available'):
            planned(config, record_set)


@pytest.mark.parametrize(('limit', 'current', 'expected'), [
    ('max\n', '5\n', 1000), ('300\n', '100\n', 207), ('5000\n', '100\n', 1000), ('300\n', '400\n', 0)])
def test_a_containers_limit_counts(tmp_path, machine, monkeypatch, limit, current, expected):
    machine.available = 1000
    assert feed._available_memory() == 1000
    monkeypatch.setattr(feed, '_CGROUP', tmp_path)
    (tmp_path / 'memory.max').write_text(limit)
    assert feed._available_memory() == 1000  # as a kernel without memory.current
    (tmp_path / 'memory.current').write_text(current)
    (tmp_path / 'memory.stat').write_text('anon 90\ninactive_file 7\nactive_file 2\n')
    assert feed._available_memory() == expected


def test_this_machines_memory_is_known(monkeypatch):
    monkeypatch.undo()
    assert MIB < feed._available_memory() < 1 << 50


@pytest.mark.parametrize('name', ['file', 'file/below'])
def test_a_folder_that_is_a_file(settings, record_set, tmp_path, capsys, name):
    (tmp_path / 'file').touch()
    config = settings(feature_cache_dir=str(tmp_path / name), feature_cache='auto')
    assert planned(config, record_set)[1].feature_cache == 'memory'
    assert f'because {tmp_path / name} is no folder that can be written' in said(capsys)[0]
    with pytest.raises(UserError, match=f'--feature_cache=on: {tmp_path / name} is no folder that can be written'):
        planned(dataclasses.replace(config, feature_cache='on'), record_set)


def test_a_folder_that_cannot_be_written(settings, record_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feed.os, 'access', lambda *_: False)
    with pytest.raises(UserError, match=f'{tmp_path} is no folder that can be written; take .*, or another'):
        planned(settings(feature_cache_dir=str(tmp_path)), record_set)
    config = settings(feature_cache_dir=str(tmp_path), feature_cache='auto')
    assert planned(config, record_set)[1].feature_cache == 'memory'
    assert said(capsys)[0].endswith(f'kept in memory, because {tmp_path} is no folder that can be written')


def test_a_cache_of_somebody_else_that_lacks_something(settings, record_set, monkeypatch):
    config = settings()
    plan = planned(config, record_set)[1]
    plan.parts[1].folder.mkdir(parents=True)
    monkeypatch.setattr(feed.os, 'access', lambda path, _: path != plan.parts[1].folder)
    with pytest.raises(UserError, match=f'--feature_cache=on: {plan.parts[1].folder} is no folder that can be written'):
        planned(config, record_set)


def test_the_trunk_takes_no_more_images_at_once_than_a_step(settings, record_set):
    sizes = [planned(settings(batch_size=size, accumulate_steps=parts), record_set)[1].trunk.batch_size
             for size, parts in ((64, 1), (16, 1), (16, 4))]
    assert sizes == [32, 16, 4]


def test_the_folder_may_be_named_from_here(settings, record_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert planned(settings(feature_cache_dir='not/there'), record_set)[1].feature_cache == 'on'


@pytest.mark.parametrize(('seconds', 'words'), [
    (0.4, '0 s'), (119, '119 s'), (120, '2 min'), (7199, '120 min'), (7200, '2 h'), (36e5, '1,000 h')])
def test_a_time_as_a_person_says_it(seconds, words):
    assert feed.duration(seconds) == words


@pytest.mark.parametrize('views', [1, 3])
def test_disk_and_memory_give_the_same_batches(settings, record_set, capsys, views):
    on, memory = settings(cached_views=views), settings(cached_views=views, feature_cache='memory')
    of_disk, of_memory = opened(on, record_set), opened(memory, record_set)
    assert_equal(batches(of_disk, 3), batches(of_memory, 3))
    assert not pathlib.Path(memory.feature_cache_dir).exists()
    assert of_disk[3:] == of_memory[3:] == (94, 6, 1)
    again = opened(dataclasses.replace(on, feature_cache='memory'), record_set)  # read from the disk
    assert_equal(batches(of_disk, 3), batches(again, 3))


def test_the_image_pipeline_has_the_same_records_and_views(settings, record_set):
    common = {'cached_views': 3, 'accumulate_steps': 4}
    cached = opened(settings(**common), record_set)
    plain = opened(settings(feature_cache='off', **common), record_set)
    assert plain[3:] == cached[3:]
    one, other = batches(cached, 3), batches(plain, 3)
    assert [len(batch.labels) for batch in one] == [16] * 18 + [12]  # 94 records for training, 11 for validation
    network = keras.Model(plain.network.input, plain.network.output)
    for a, b in zip(one, other, strict=True):
        assert_equal(a._replace(inputs=0), b._replace(inputs=0))
        real = a.weights > 0
        np.testing.assert_allclose(cached.network(a.inputs)[real], network(b.inputs)[real], rtol=1e-4, atol=1e-5)


def test_a_complete_cache_is_not_computed_again(settings, record_set, computed, capsys):
    config = settings(cached_views=2)
    plan = planned(config, record_set)[1]
    first = batches(opened(config, record_set))
    assert computed == every_shard(plan)
    lines = said(capsys)
    assert 'computing the features of train (view 1): there are none yet' in lines
    boundary = ' and '.join(plan.trunk.cut.boundary)
    assert lines[-1].startswith(f'features of {boundary.split("conv2d")[0]}') and ': 199 images in ' in lines[-1]
    computed.clear()
    assert_equal(first, batches(opened(config, record_set)))
    assert not computed and len(said(capsys)) == 1


@pytest.mark.parametrize(('which', 'damage'), [
    ('train (view 2)', 'flipped bit'), ('val', 'cut short'), ('train (view 1)', 'deleted'), ('val', 'no manifest'),
    ('train (view 2)', 'half a manifest')])
def test_damage_costs_what_it_touched(settings, record_set, computed, capsys, damage, which):
    config = settings(cached_views=2)
    first = batches(opened(config, record_set))
    part = next(part for part in planned(config, record_set)[1].parts if part.name == which)
    path, manifest = part.path(1), part.folder / 'manifest.json'
    content = path.read_bytes()
    if damage == 'flipped bit':
        path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    elif damage == 'cut short':
        path.write_bytes(content[:-4])
    elif damage == 'deleted':
        path.unlink()
    elif damage == 'no manifest':
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:300])
    computed.clear()
    said(capsys)
    assert_equal(first, batches(opened(config, record_set)))
    lines = '\n'.join(said(capsys))
    if 'manifest' in damage:
        assert not computed
    else:
        assert computed == [(which, 1)]
        assert f'computing the features of {which}: some were damaged or removed' in lines
        assert ('was damaged' in lines) == (damage == 'flipped bit')
    plan = planned(config, record_set)[1]
    assert not any(plan.absent) and len(said(capsys)) == 1
    assert feature_store._read_manifest(part)['key'] == part.key


def test_other_weights_are_other_features_and_that_is_said(settings, record_set, computed, capsys):
    config = settings()
    opened(config, record_set)
    said(capsys)
    computed.clear()
    keras.utils.set_random_seed(1)
    classifier = model.build(config, CLASSES, 'float32')
    plan = feed.decide(config, record_set, classifier, None, before=None)
    feed.open_feed(config, record_set, classifier, None, plan)
    assert computed == every_shard(plan)
    assert f'computing the features of train: those in {config.feature_cache_dir} differ in weights' in said(capsys)


def test_more_views_take_those_that_are_there(settings, record_set, computed):
    config = settings(cached_views=2)
    opened(config, record_set)
    computed.clear()
    opened(dataclasses.replace(config, cached_views=3), record_set)
    assert {name for name, _ in computed} == {'train (view 3)'}


def test_memory_takes_what_is_on_the_disk_and_computes_the_rest(settings, record_set, computed, capsys):
    config = settings()
    first = batches(opened(config, record_set))
    plan = planned(config, record_set)[1]
    plan.parts[0].path(1).unlink()
    before = sorted(path.name for path in plan.parts[0].folder.iterdir())
    computed.clear()
    said(capsys)
    assert_equal(first, batches(opened(dataclasses.replace(config, feature_cache='memory'), record_set)))
    assert computed == [('train', 1)]
    assert before == sorted(path.name for path in plan.parts[0].folder.iterdir())
    assert 'kept in memory' in said(capsys)[0]


def test_an_interrupted_computation_goes_on(settings, record_set, computed, monkeypatch):
    config = settings()
    plan = planned(config, record_set)[1]
    counted = features.compute

    def interrupted(trunk, part, shards, **others):
        for number, rows in counted(trunk, part, shards, **others):
            if len(computed) == 4:
                raise KeyboardInterrupt
            yield number, rows

    monkeypatch.setattr(features, 'compute', interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(config, record_set)
    monkeypatch.setattr(features, 'compute', counted)
    computed.clear()
    opened(config, record_set)
    assert computed == every_shard(plan)[3:]
