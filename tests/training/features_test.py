"""Cached features give what the whole network gives: for each backbone, precision and view, step by step."""

import dataclasses
import functools
import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from boardrec.config import TrainConfig
from boardrec.data import augment, images, input_pipeline, order, records, tfrecord
from boardrec.data.augment import AS_IT_IS, Views
from boardrec.training import cut, distribute, feature_store, features, model, optim, steps
from boardrec.training.feature_store import Opened
from boardrec.training.model import Classes

CLASSES = Classes(['negative', 'positive'], 1)
MIRRORED = Views(count=3, seed=5, flip_horizontal=True, flip_vertical=True, crop_area=0.5, brightness=0.1)
COMMON = {'batch_size': 16, 'pad_multiple': 16}  # full batches: one compilation
SHUFFLE = {'seed': 3, 'shuffle_records': 64}
# Each backbone with a cut in the midst of its branches, at its smallest size.
BRANCHING = [('vgg16', 4, 32), ('vgg19', 6, 32), ('resnet50', 9, 32), ('xception', 12, 71),
             pytest.param('inception_v3', 20, 75, marks=pytest.mark.long)]


@pytest.fixture(scope='module')
def few_records(image_folder, convert_here, tmp_path_factory):
    """A record set of 32 training records: two steps an epoch, and one batch of a trunk, hence one compilation."""
    folder = tmp_path_factory.mktemp('few') / 'records'
    convert_here(image_folder({f'{split}/{name}': count for split, count in (('train', 16), ('val', 2))
                               for name in ('negative', 'positive')}), folder)
    return records.open_record_set(folder)


def build(backbone='vgg16', precision='float32', **settings):
    config = TrainConfig(records='R', run_dir='D', backbone=backbone, **{
        'image_size': '32', 'weights': 'none', 'dropout': 0.0, 'learning_rate': 1e-3, 'optimizer': 'sgd', **settings})
    keras.utils.set_random_seed(0)
    return config, model.build(config, CLASSES, precision)


def calibrate(classifier, record_set):
    """Gives each BatchNorm the statistics of real images: fresh ones would let the signal die on its long way."""
    norms = [layer for layer in classifier.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    trainable = [layer.trainable for layer in norms]
    batch = next(iter(input_pipeline.train_dataset(
        record_set, 'train', image_size=classifier.model.input.shape[1:3], epoch=0, batch_size=8, **SHUFFLE)))
    for layer in norms:
        layer.trainable, layer.momentum = True, 0.0
    classifier.model(batch.inputs, training=True)
    for layer, before in zip(norms, trainable, strict=True):
        layer.trainable = before


def trunk_of(classifier, record_set, *, precision='float32', views=AS_IT_IS):
    return features.compile_trunk(cut.find(classifier), record_set, backbone='any', precision=precision, views=views,
                                  strategy=None, batch_size=features._TRUNK_BATCH)


@pytest.fixture
def small_trunk(small_backbone, record_set):
    """A function from settings to a Trunk of the small backbone, cut in the midst of its branches."""
    def make(*, precision='float32', views=AS_IT_IS, records=record_set, **settings):
        _, classifier = build(small_backbone, precision, **{'trainable_layers': 5, **settings})
        return trunk_of(classifier, records, precision=precision, views=views)

    return make


def computed(trunk, split, folder):
    """Each view's shards, computed in memory."""
    return [feature_store.read_or_compute(part, functools.partial(features.compute, trunk, part),
                                          absent=list(range(part.shards)))
            for part in features.parts(trunk, folder, split)]


def train_losses(config, classifier, network, batches, precision='float32', then=lambda network: None):
    """The loss of each step, from the classifier's fresh weights, which it leaves as they were; calls `then` before."""
    before = [variable.numpy() for variable in classifier.model.variables]
    optimizer = optim.make_optimizer(config, precision)
    optimizer.build(classifier.model.trainable_variables)
    step = steps.make_train_step(model.for_training(network), optimizer, steps.Objective(CLASSES), strategy=None)
    sums = [step(batch) for batch in batches]
    then(network)
    for variable, value in zip(classifier.model.variables, before, strict=True):
        variable.assign(value)
    return np.array([float(one.loss / one.records) for one in sums])


def both(record_set, folder, config, trunk, *, epochs):
    """The batches of some epochs, from images and from cached features: the same records in the same order."""
    cached = computed(trunk, 'train', folder)
    of_images = [batch for epoch in range(epochs) for batch in input_pipeline.train_dataset(
        record_set, 'train', image_size=config.height_width(), epoch=epoch, views=trunk.views, **SHUFFLE, **COMMON)]
    rows = [batch for epoch in range(epochs) for batch in features.train_dataset(
        trunk, cached, 'train', epoch=epoch, **SHUFFLE, **COMMON)]
    for one, other in zip(of_images, rows, strict=True):
        for name in ('record_ids', 'labels', 'weights'):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    return of_images, rows


def assert_same_losses(record_set, folder, config, classifier, *, precision='float32', views=AS_IT_IS, epochs=1):
    trunk = trunk_of(classifier, record_set, precision=precision, views=views)
    of_images, rows = both(record_set, folder, config, trunk, epochs=epochs)
    whole = keras.Model(classifier.model.input, classifier.logits)
    expected = train_losses(config, classifier, whole, of_images, precision)
    assert np.isfinite(expected).all() and np.ptp(expected) > 1e-4  # something is learnt, or at least seen
    np.testing.assert_allclose(
        train_losses(config, classifier, trunk.cut.tail, rows, precision), expected, rtol=1e-5)


@pytest.mark.parametrize(('backbone', 'trained', 'size'), BRANCHING)
def test_the_losses_of_each_step_are_those_without_a_cache(few_records, tmp_path, backbone, trained, size):
    config, classifier = build(backbone, trainable_layers=trained, image_size=str(size))
    calibrate(classifier, few_records)
    assert_same_losses(few_records, tmp_path, config, classifier, epochs=2)


@pytest.mark.parametrize(('trained', 'views'), [(5, MIRRORED), (14, AS_IT_IS)])
def test_the_losses_of_some_epochs_of_views_are_those_without_a_cache(
        record_set, tmp_path, small_backbone, trained, views):
    config, classifier = build(small_backbone, trainable_layers=trained, learning_rate=0.03)
    assert_same_losses(record_set, tmp_path, config, classifier, views=views, epochs=4)


def assert_bfloat16_agrees(record_set, folder, config, classifier, views=AS_IT_IS):
    """Twenty steps with and without a cache have nearly the same losses and end with the same decisions."""
    trunk, decisions = trunk_of(classifier, record_set, precision='bfloat16', views=views), []
    of_images, rows = both(record_set, folder, config, trunk, epochs=4)
    cached, = computed(trunk, 'val', folder)
    val = [input_pipeline.eval_dataset(record_set, 'val', image_size=config.height_width(), batch_size=16),
           features.eval_dataset(trunk, cached, 'val', batch_size=16)]

    def decide(network):
        batches = val[len(decisions)]
        decisions.append(np.concatenate([network(batch.inputs, training=False)[:, 0] >= 0 for batch in batches]))

    whole = keras.Model(classifier.model.input, classifier.logits)
    expected, got = (train_losses(config, classifier, network, batches[:20], 'bfloat16', decide)
                     for network, batches in ((whole, of_images), (trunk.cut.tail, rows)))
    np.testing.assert_allclose(got, expected, rtol=0.01)
    assert len(got) == 20 and np.ptp(expected) > 1e-4
    assert len(decisions[0]) == len(record_set.split_range('val'))
    assert (decisions[0] == decisions[1]).mean() >= 0.99


def test_bfloat16_takes_the_same_decisions(record_set, tmp_path, small_backbone):
    config, classifier = build(small_backbone, 'bfloat16', trainable_layers=5, learning_rate=0.03)
    assert_bfloat16_agrees(record_set, tmp_path, config, classifier, MIRRORED)


@pytest.mark.long
@pytest.mark.parametrize(('backbone', 'trained', 'size'), BRANCHING)
def test_bfloat16_takes_the_same_decisions_with_each_backbone(record_set, tmp_path, backbone, trained, size):
    config, classifier = build(backbone, 'bfloat16', trainable_layers=trained, image_size=str(size))
    calibrate(classifier, record_set)
    assert_bfloat16_agrees(record_set, tmp_path, config, classifier)


@pytest.mark.parametrize(('precision', 'pad_multiple'), [('float32', 5), ('bfloat16', 1), ('float16', 5)])
def test_batches_are_the_trunks_of_the_images(record_set, tmp_path, small_trunk, precision, pad_multiple):
    trunk = small_trunk(precision=precision, views=MIRRORED)
    common = {'batch_size': 15, 'pad_multiple': pad_multiple}
    cached = {split: computed(trunk, split, tmp_path) for split in ('train', 'val')}
    pairs = [(features.train_dataset(trunk, cached['train'], 'train', epoch=1, **SHUFFLE, **common),
              input_pipeline.train_dataset(record_set, 'train', epoch=1, views=MIRRORED, image_size=(32, 32), **SHUFFLE,
                                           **common)),
             (features.eval_dataset(trunk, *cached['val'], 'val', **common),
              input_pipeline.eval_dataset(record_set, 'val', image_size=(32, 32), **common))]
    for of_rows, of_images in pairs:
        assert of_rows.element_spec._replace(inputs=None) == of_images.element_spec._replace(inputs=None)
        for one, other in zip(of_rows, of_images, strict=True):
            for name in ('labels', 'weights', 'record_ids'):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            real, direct = other.weights.numpy() > 0, trunk.cut.trunk(other.inputs, training=False)
            assert len(one.inputs) == len(direct) > 1
            for a, b in zip(one.inputs, direct, strict=True):
                assert a.dtype == b.dtype == precision and a.shape == b.shape
                a, b = (tf.cast(values, tf.float32).numpy() for values in (a, b))
                np.testing.assert_array_equal(a[~real], 0)
                np.testing.assert_allclose(a[real], b[real], rtol=1e-5 if precision == 'float32' else 2e-2, atol=1e-5)


def view_of(record_set, split, view):
    """The images of a split, each as its view number `view` (None: as it is), uint8 [N, H, W, 3]."""
    batches = input_pipeline.eval_dataset(record_set, split, image_size=(32, 32), batch_size=200)
    pixels, ids = next((batch.inputs, batch.record_ids) for batch in batches)
    if view is None:
        return pixels
    shown = []
    for number in ids:
        which = {'view': tf.constant(view, tf.int64), 'record_id': number}
        box = augment.crop_box(MIRRORED, **which)  # of the photograph, before it is resized
        cropped = images.decode(tf.constant(tfrecord.read_image(record_set, int(number))), 32, 32, box)
        shown.append(augment.augment(cropped, MIRRORED, **which))
    return tf.stack(shown)


def test_each_view_of_training_records_is_cached_and_validation_is_as_it_is(record_set, tmp_path, small_trunk):
    trunk = small_trunk(views=MIRRORED)
    for split, views in (('train', [0, 1, 2]), ('val', [None])):
        cached = computed(trunk, split, tmp_path)
        described = [part.key['view'] for part in features.parts(trunk, tmp_path, split)]
        assert [one and one['view'] for one in described] == views
        for view, (shards, _) in zip(views, cached, strict=True):
            direct = trunk.cut.trunk(view_of(record_set, split, view), training=False)
            got = features._split(tf.constant(np.concatenate(shards)), trunk.cut.features)
            for a, b in zip(got, direct, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('split', ['train', 'val'])  # val begins behind train: places are no record ids there
def test_an_epoch_of_features_takes_each_record_in_the_view_whose_turn_it_is(record_set, split):
    ids = record_set.split_range(split)
    # Rows of a byte that tells the view.
    marked = [Opened([np.full((len(ids), 1), view, np.uint8)], None) for view in range(3)]
    byte = keras.Input((1,), dtype='uint8')
    one_byte = cut.Cut((), (), keras.Model(byte, [keras.layers.Identity(dtype='uint8')(byte)]), None)
    trunk, seen = features.Trunk(one_byte, record_set, MIRRORED, {}, None, 32, None), {}
    for epoch in range(6):
        for batch in features.train_dataset(trunk, marked, split, epoch=epoch, batch_size=20, **SHUFFLE):
            chosen = order.views(batch.record_ids.numpy(), seed=MIRRORED.seed, epoch=epoch, count=3)
            np.testing.assert_array_equal(batch.inputs[0][:, 0], chosen)
            for number, view in zip(batch.record_ids.numpy(), chosen, strict=True):
                seen.setdefault(number, []).append(view)
    assert sorted(seen) == list(ids)
    assert all(sorted(views[:3]) == [0, 1, 2] and views[:3] == views[3:] for views in seen.values())


def test_one_view_is_the_image_itself_and_more_views_hold_fewer(small_trunk, tmp_path):
    def names(split='train', **views):
        return [part.folder.name for part in features.parts(small_trunk(views=Views(**views)), tmp_path, split)]

    four = names(count=4, flip_horizontal=True, flip_vertical=True, seed=1)
    assert len(set(four)) == 4 and names(count=2, flip_horizontal=True, flip_vertical=True, seed=1) == four[:2]
    others = [names(count=4, flip_horizontal=True, flip_vertical=True, seed=2),
              names(count=4, flip_horizontal=True, seed=1), names(count=4, flip_vertical=True, seed=1), names()]
    assert len({*four, *(name for other in others for name in other)}) == 4 * 4 + 1
    assert names() == names(count=1, flip_horizontal=True, flip_vertical=True, seed=9)  # whatever it might be mirrored
    assert names('val') == names('val', count=4, flip_horizontal=True, seed=1) and names('val') != names()


def test_the_version_of_the_augmentation_is_in_the_key(small_trunk, tmp_path, monkeypatch):
    before = [features.parts(small_trunk(views=MIRRORED), tmp_path, split) for split in ('train', 'val')]
    monkeypatch.setattr(augment, 'VERSION', augment.VERSION + 1)
    after = [features.parts(small_trunk(views=MIRRORED), tmp_path, split) for split in ('train', 'val')]
    assert before[1] == after[1] and not {part.folder for part in before[0]} & {part.folder for part in after[0]}


def test_the_key_holds_all_that_features_depend_on(record_set, small_trunk, small_backbone, monkeypatch):
    trunk = small_trunk()
    keys = [trunk.key, small_trunk(precision='bfloat16').key, small_trunk(image_size='40').key,
            small_trunk(trainable_layers=9).key,
            small_trunk(records=record_set._replace(manifest=dataclasses.replace(
                record_set.manifest, class_names=['a', 'b']))).key]
    assert keys[0] == small_trunk().key  # in a second network too, whose names are others
    assert keys[0] == small_trunk(dropout=0.0, learning_rate=0.5, seed=0).key
    assert keys[0]['records'] == record_set.manifest.fingerprint
    for where, name, value in ((images, 'DECODE_VERSION', images.DECODE_VERSION + 1), (tf, '__version__', '0.0'),
                               (keras, '__version__', '0.0'), (distribute, 'device_kind', lambda: 'a GPU')):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            keys.append(small_trunk().key)
    assert len({json.dumps(key) for key in keys}) == len(keys)


def test_the_key_sees_the_trunks_weights_alone(record_set, small_backbone):
    _, classifier = build(small_backbone, trainable_layers=5)
    key = trunk_of(classifier, record_set).key
    classifier.model.get_layer('logits').bias.assign([1.0])  # behind the cut: changes nothing
    assert trunk_of(classifier, record_set).key == key
    frozen = cut.find(classifier).trunk.variables
    for variable in frozen:  # the moving statistics of BatchNorm too
        value = variable.numpy()
        changed = value.copy()
        changed.flat[-1] += 1e-3
        variable.assign(changed)
        assert trunk_of(classifier, record_set).key != key, variable.path
        variable.assign(value)
    assert trunk_of(classifier, record_set).key == key


def test_any_shards_are_computed_by_themselves(record_set, small_trunk, tmp_path, monkeypatch):
    trunk = small_trunk(views=MIRRORED)
    whole = [np.concatenate(shards) for shards, _ in computed(trunk, 'train', tmp_path)]
    monkeypatch.setattr(feature_store, '_SHARD_BYTES', 10 * trunk.cut.row_bytes)
    for rows, part in zip(whole, features.parts(trunk, tmp_path, 'train'), strict=True):
        assert part.shards == 10
        for numbers in ([0], [9], [0, 1, 2], [1, 4, 5, 9], [2, 7]):
            progressed = []
            got = list(features.compute(trunk, part, numbers, progress=progressed.append))
            assert [number for number, _ in got] == numbers
            assert sum(progressed) == sum(len(part.rows(number)) for number in numbers)
            for number, shard in got:
                np.testing.assert_allclose(
                    shard.view(np.float32), rows[part.rows(number).start:part.rows(number).stop].view(np.float32),
                    rtol=1e-5, atol=1e-5)


def test_rows_are_found_in_any_number_of_shards(record_set, small_trunk, tmp_path, monkeypatch):
    trunk, batches = small_trunk(), []
    for rows_a_shard in (1000, 10, 1):
        monkeypatch.setattr(feature_store, '_SHARD_BYTES', rows_a_shard * trunk.cut.row_bytes)
        part, = features.parts(trunk, tmp_path / str(rows_a_shard), 'train')
        compute = functools.partial(features.compute, trunk, part)
        opened = feature_store.open_or_compute(part, compute, boundary='b', damaged=[])
        for views in ([opened], [feature_store.read_or_compute(part, None, absent=[])]):
            batches.append([batch.inputs for batch in features.train_dataset(
                trunk, views, 'train', epoch=0, batch_size=50, **SHUFFLE)])
    for other in batches[1:]:
        for one, two in zip(tf.nest.flatten(batches[0]), tf.nest.flatten(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_rows_of_several_types_are_taken_apart_as_they_were():
    random = np.random.default_rng(0)
    tensors = [tf.cast(random.normal(size=(5, *shape)), dtype)
               for shape, dtype in (((2, 3), tf.bfloat16), ((3,), tf.float32), ((1, 1, 5), tf.float16), ((), tf.uint8))]
    rows = np.concatenate([tensor.numpy().reshape(5, -1).view(np.uint8) for tensor in tensors], axis=1)
    specs = tuple(tf.TensorSpec(tensor.shape[1:], tensor.dtype) for tensor in tensors)
    for one, other in zip(features._split(tf.constant(rows), specs), tensors, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(tf.cast(one, tf.float32), tf.cast(other, tf.float32))


def test_the_probe_measures_the_second_call(small_trunk, monkeypatch):
    clock, shapes = iter([0, 196, 200]), []  # what the first one takes goes into compilation
    monkeypatch.setattr(features, 'time', types.SimpleNamespace(perf_counter=lambda: next(clock)))
    trunk = small_trunk()._replace(call=lambda batch: shapes.append(batch.inputs.shape) or (tf.zeros([1]),))
    assert features.seconds_an_image(trunk) == 0.5 and shapes == [(8, 32, 32, 3)] * 2
