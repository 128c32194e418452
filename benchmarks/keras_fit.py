"""A plain Keras 3 `fit` of the model that boardrec trains, as the script that it replaces does it: the peer to beat.

python benchmarks/keras_fit.py --images=IMAGES --run_dir=RUN
"""

import dataclasses
import pathlib
import time
from typing import Any

from boardrec import cli, progress
from boardrec.config import setting, TrainConfig, UserError
from boardrec.training import run_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasFitConfig:
    """Settings of this script."""

    images: str = setting('folder of train/ and val/, each with a folder for each of two classes')
    run_dir: str = setting('folder for history.csv')
    recipe: str = setting('flag file of boardrec.train; not its schedule and precision', 'flags/vgg16.flags')
    epochs: int = setting('passes over the training images', 2)


def main(config: KerasFitConfig) -> None:
    """Trains VGG16's last layers in float32 with Model.fit, from image files; writes RUN/history.csv."""
    recipe, images, run = read_recipe(config.recipe), pathlib.Path(config.images), pathlib.Path(config.run_dir)
    require_images(images)
    run.mkdir(parents=True, exist_ok=True)
    progress.import_tensorflow()
    import keras
    import tensorflow as tf
    keras.utils.set_random_seed(recipe.seed)
    train, val = (keras.utils.image_dataset_from_directory(
        images / split, label_mode='binary', batch_size=recipe.batch_size, image_size=recipe.height_width(),
        verbose=False) for split in ('train', 'val'))
    count, begun, rows = len(train.file_paths), {}, []

    def end_epoch(epoch: int, logs: dict[str, float]) -> None:
        rate = count / (begun['validation'] - begun['epoch'])
        rows.append({'epoch': epoch + 1, **logs, 'images_per_second': rate})
        progress.say(f'epoch {epoch + 1}/{config.epochs}: loss {logs["loss"]:.4f}; {rate:.1f} images/s')

    clock = keras.callbacks.LambdaCallback(  # Keras's own history has no times
        on_epoch_begin=lambda *_: begun.update(epoch=time.perf_counter()),
        on_test_begin=lambda *_: begun.update(validation=time.perf_counter()), on_epoch_end=end_epoch)
    build(recipe).fit(
        train.prefetch(tf.data.AUTOTUNE), validation_data=val.prefetch(tf.data.AUTOTUNE), epochs=config.epochs,
        callbacks=[clock], shuffle=False, verbose=0)  # the dataset shuffles
    run_dir.write_history(run_dir.RunDir(run), rows)


def build(recipe: TrainConfig) -> Any:
    """The compiled keras.Model, as Keras's guide to transfer learning has it."""
    import keras

    from boardrec.training import backbones, optim
    shape = (*recipe.height_width(), 3)
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=shape, pooling='avg')
    backbones.load_weights('vgg16', recipe.weights, base.layers)
    for layer in base.layers[:len(base.layers) - recipe.trainable_layers]:
        layer.trainable = False
    images = keras.Input(shape)
    features = keras.layers.Dropout(recipe.dropout)(base(keras.applications.vgg16.preprocess_input(images)))
    model = keras.Model(images, keras.layers.Dense(1, activation='sigmoid')(features))
    model.compile(optim.make_optimizer(recipe, 'float32'), loss='binary_crossentropy', metrics=['accuracy'])
    return model


def read_recipe(path: str) -> TrainConfig:
    """The settings in a flag file. Raises UserError unless they are for VGG16."""
    recipe = cli.parse(TrainConfig, [f'--flagfile={path}', '--records=.', '--run_dir=.'])
    if recipe.backbone != 'vgg16':
        raise UserError(f'--recipe={path}: has --backbone={recipe.backbone}, and only vgg16 is measured.')
    return recipe


def require_images(images: pathlib.Path) -> None:
    """Raises UserError unless there are training and validation images of two classes."""
    for split in ('train', 'val'):
        if len([path for path in (images / split).glob('*') if path.is_dir()]) != 2:
            raise UserError(f'--images={images}: {split}/ holds no two class folders; run `make demo` first.')


if __name__ == '__main__':
    cli.run(main, KerasFitConfig)
