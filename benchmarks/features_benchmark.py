"""Cached features against what bounds them: the trunk's pass and its bare forward, the tail's epoch and its bare step.

python benchmarks/features_benchmark.py --records=demo/records, after `make demo`; about 6 minutes on two CPU cores.
"""

import dataclasses
import functools
import math
import pathlib
import statistics
import tempfile
import time

from boardrec import cli, progress
from boardrec.config import setting, UserError
from boardrec.data import records

PASS, EPOCH = 'trunk pass, of its bare forward', 'tail epoch, of steps on data in memory'
EXPECTED = {PASS: 0.95, EPOCH: 0.9}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesBenchmarkConfig:
    """Settings of this script."""

    records: str = setting('folder of records', 'demo/records')
    recipe: str = setting('flag file of boardrec.train', 'flags/vgg16.flags')
    split: str = setting('split to compute and read', 'val')
    rounds: int = setting('rounds, in each of which all is measured', 5)

    def __post_init__(self):
        if self.rounds < 1:
            raise UserError(f'--rounds={self.rounds}: must be at least 1.')


def main(config: FeaturesBenchmarkConfig) -> None:
    """Prints images/s of each, round by round, and the medians of the ratios."""
    record_set = records.open_record_set(config.records)
    progress.import_tensorflow()
    ratios = {name: [] for name in EXPECTED}
    for number, rates in enumerate(measure(config, record_set), 1):
        for name, (bound, ours) in rates.items():
            ratios[name].append(ours / bound)
            progress.say(f'round {number}: {name}: {ours:.1f} of {bound:.1f} images/s, {ours / bound:.3f}')
    for name, expected in EXPECTED.items():
        progress.say(f'{name}: median {statistics.median(ratios[name]):.3f}, expected {expected} or more')


def measure(config: FeaturesBenchmarkConfig, record_set: records.RecordSet):
    """Yields for each round (the bound's images/s, ours) by name."""
    from boardrec.config import TrainConfig
    from boardrec.data.augment import AS_IT_IS
    from boardrec.training import backbones, cut, distribute, feature_store, features, model, optim, steps
    train = cli.parse(TrainConfig, [f'--flagfile={config.recipe}', f'--records={config.records}', '--run_dir=none'])
    precision = distribute.resolve_precision(train.precision)
    classes = model.resolve_classes(record_set.manifest.class_names, train.positive_class)
    classifier = model.build(train, classes, precision)
    backbones.load_weights(train.backbone, train.weights, classifier.backbone_layers)
    trunk = features.compile_trunk(cut.find(classifier), record_set, backbone=train.backbone, precision=precision,
                                   views=AS_IT_IS, strategy=None)
    optimizer = optim.make_optimizer(train, precision)
    optimizer.build(classifier.model.trainable_variables)
    step = steps.make_train_step(model.for_training(trunk.cut.tail), optimizer, steps.Objective(classes), strategy=None,
                                 accumulate_steps=1)
    count = len(record_set.split_range(config.split))
    with tempfile.TemporaryDirectory(dir=pathlib.Path(config.records).parent) as folder:
        for number in range(config.rounds + 1):  # the first compiles
            forward = _forward_rate(trunk, calls=max(1, count // trunk.batch_size))
            part, = features.parts(trunk, pathlib.Path(folder, str(number)), config.split)
            start = time.perf_counter()
            opened = feature_store.open_or_compute(
                part, functools.partial(features.compute, trunk, part), boundary='', damaged=[])
            whole_pass = count / (time.perf_counter() - start)
            epoch = functools.partial(features.eval_dataset, trunk, opened, config.split, batch_size=train.batch_size,
                                      pad_multiple=train.batch_size)
            in_memory = list(epoch())
            repeats = math.ceil(20 / len(in_memory))
            rates = [len(in_memory) * repeats * train.batch_size / seconds for seconds in (
                _seconds(step, (batch for _ in range(repeats) for batch in in_memory)),
                _seconds(step, epoch().repeat(repeats)))]
            opened.lock.close()
            if number:
                yield {PASS: (forward, whole_pass), EPOCH: tuple(rates)}


def _forward_rate(trunk, *, calls: int) -> float:
    """Images/s of the trunk on one batch in memory; what it gives is not even looked at."""
    import tensorflow as tf

    from boardrec.data.input_pipeline import Batch
    size = trunk.batch_size
    pixels = tf.cast(tf.random.uniform([size, *trunk.cut.trunk.input_shape[1:]], maxval=256, dtype=tf.int32), tf.uint8)
    batch = Batch(pixels, tf.zeros([size], tf.int32), tf.ones([size]), tf.range(size, dtype=tf.int64))
    start = time.perf_counter()
    for _ in range(calls):
        trunk.call(batch)
    return calls * size / (time.perf_counter() - start)


def _seconds(step, batches) -> float:
    start = time.perf_counter()
    for batch in batches:
        sums = step(batch)
    float(sums.loss)
    return time.perf_counter() - start


if __name__ == '__main__':
    cli.run(main, FeaturesBenchmarkConfig)
