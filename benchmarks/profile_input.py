"""Where an input pipeline's time goes: images/s of each of its stages alone, and of the training step.

python benchmarks/profile_input.py --flagfile=flags/vgg16.flags --records=RECORDS; about 30 seconds on two CPU cores.
"""

import dataclasses
import statistics
import time

from training_benchmark import table

from boardrec import cli, progress
from boardrec.config import setting, TrainConfig, UserError
from boardrec.data import records

STAGES = {
    'read': 'from storage or the page cache, in the order of training', 'decode': 'with crop and resize',
    'augment': 'mirroring, colours and the like', 'batch': 'copying images together',
    'pipeline': 'all of these, at once', 'step': 'the whole network on images in memory, without cached features'}
_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileInputConfig(TrainConfig):
    """Settings of this script: a training's."""

    run_dir: str = setting('not used', '')
    seconds: float = setting('seconds for each stage', 2.0)

    def __post_init__(self):
        super().__post_init__()
        if self.seconds <= 0:
            raise UserError(f'--seconds={self.seconds}: must be above 0.')
        if self.data_service:
            raise UserError(f'--data_service={self.data_service}: the stages of this host are measured; leave it out.')


def main(config: ProfileInputConfig) -> None:
    """Prints the rate of each stage of reading, decoding, augmenting and batching, and of the step that they feed."""
    record_set = records.open_record_set(config.records)
    progress.import_tensorflow()
    rates = measure(config, record_set)
    progress.say('\n'.join(report(rates)))


def measure(config: ProfileInputConfig, record_set: records.RecordSet) -> dict[str, float]:
    """Images/s by stage; those without work are left out."""
    from boardrec.data import stage_rates
    from boardrec.training import feed
    common = {'image_size': config.height_width(), 'batch_size': config.batch_size, 'seed': config.seed, 'epoch': 0,
              'shuffle_records': config.shuffle_records, 'views': feed.views(config)}
    rates = stage_rates.measure(record_set, 'train', ram_mb=config.pipeline_ram_mb,
                                seconds=config.seconds, **common)._asdict()
    rates |= {'pipeline': pipeline_rate(config, record_set, **common), 'step': step_rate(config, record_set)}
    return {name: rate for name, rate in rates.items() if rate != float('inf')}


def pipeline_rate(config: ProfileInputConfig, record_set: records.RecordSet, **settings) -> float:
    """Of training batches that nothing is done with."""
    from boardrec.data import input_pipeline
    batches = iter(input_pipeline.train_dataset(
        record_set, 'train', ram_mb=config.pipeline_ram_mb, **settings).repeat())
    next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < 2 * config.seconds:
        images += len(next(batches).labels)
    return images / (time.perf_counter() - start)


def step_rate(config: ProfileInputConfig, record_set: records.RecordSet) -> float:
    """Of training steps on one batch, the whole network, after a first that compiles."""
    import keras
    import tensorflow as tf

    from boardrec.data.input_pipeline import Batch
    from boardrec.training import distribute, model, optim, steps
    strategy = distribute.set_up(config)
    config = dataclasses.replace(config, precision=distribute.resolve_precision(config.precision))
    classes = model.resolve_classes(record_set.manifest.class_names, config.positive_class)
    with distribute.scope(strategy):
        classifier = model.build(config, classes, config.precision)
        optimizer = optim.make_optimizer(config, config.precision)
        optimizer.build(classifier.model.trainable_variables)
    step = steps.make_train_step(
        model.for_training(keras.Model(classifier.model.input, classifier.logits)), optimizer, steps.Objective(classes),
        strategy=strategy, accumulate_steps=config.accumulate_steps)
    size = config.batch_size
    batch = Batch(tf.zeros([size, *config.height_width(), 3], tf.uint8), tf.zeros([size], tf.int32), tf.ones([size]),
                  tf.range(size, dtype=tf.int64))
    taken = []
    for _ in range(_STEPS + 1):
        start = time.perf_counter()
        float(step(distribute.place(strategy, batch))[0])
        taken.append(time.perf_counter() - start)
    return size / statistics.median(taken[1:])


def report(rates: dict[str, float]) -> list[str]:
    """The table, and what is slowest."""
    rows = [['', 'images/s', 'ms an image']]
    rows += [[f'{name}: {STAGES[name]}', f'{rate:,.0f}', f'{1000 / rate:.3f}'] for name, rate in rates.items()]
    stages = {name: rate for name, rate in rates.items() if name not in ('pipeline', 'step')}
    slowest = 'step' if rates['step'] < rates['pipeline'] else min(stages, key=stages.get)
    return [*table(rows), f'bottleneck: {slowest}']


if __name__ == '__main__':
    cli.run(main, ProfileInputConfig)
