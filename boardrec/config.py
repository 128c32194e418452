"""Every setting of every command, as frozen dataclasses that refuse bad values. Standard library only.

A field's help text is what `--help` prints. Counts name their unit. Facts about the data (classes, records, steps an
epoch) are not settings: they come from the record set's manifest.
"""

import dataclasses
import os.path
import re

from boardrec import architectures

SPLITS = ('train', 'val', 'test')
# About what float32 leaves of 1 - p; one sure mistake costs a log loss of 16.1. Temperatures are
# fitted and applied with it.
SMALLEST_PROBABILITY = 1e-7
_MAX_PIXELS = 100_000_000  # of an image's size; 300 MB
_LIMIT = 2**32  # Keras's and NumPy's seeds have 32 bits, and no count of ours is larger


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that names the thing, what was received and the way out.

    The commands print it without a traceback and exit with status 2.
    """


def setting(help_text: str, default=dataclasses.MISSING, choices: tuple[str, ...] | None = None):
    """A dataclass field with its help text and, for a string, the values that it may take."""
    return dataclasses.field(default=default, metadata={'help': help_text, 'choices': choices})


def _check(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f'--{name}={value}: must be {wanted}.')


def _check_choices(config) -> None:
    for field in dataclasses.fields(config):
        choices, value = field.metadata['choices'], getattr(config, field.name)
        _check(not choices or value in choices, field.name, value, f'one of {", ".join(choices or ())}')


def check_local(config, *names: str) -> None:
    """Raises UserError where one of these settings of a command is a URL."""
    for name in names:
        value = getattr(config, name)
        if re.match(r'[A-Za-z][A-Za-z0-9+.-]+://', value):
            raise UserError(f'--{name}={value}: must be on a file system of this machine; name a path there, and copy '
                            'it from or to the object store with gcloud storage rsync or aws s3 sync.')


def _check_at_least(config, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value >= minimum, name, value, f'at least {minimum}')
        _check(value < _LIMIT, name, value, f'below {_LIMIT}')


def _height_width(image_size: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', image_size)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    _check(min(height, width) >= 8, 'image_size', image_size, 'S or HEIGHTxWIDTH, each at least 8 pixels')
    _check(height * width <= _MAX_PIXELS, 'image_size', image_size, f'of at most {_MAX_PIXELS // 10**6} megapixels')
    return height, width


def _backbone(text: str) -> str:
    name, like = architectures.find(text), architectures.like(text) or ['vgg16', 'resnet50', 'efficientnet_v2_b0']
    _check(name is not None, 'backbone', text, f'a network of keras.applications, such as {", ".join(like)}')
    return name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of tools/make_records.py."""

    input_dir: str = setting(
        'folder of images: {train,val,test}/CLASS/... or CLASS/...; also s3://... (extra `s3`) or gs://... (`gs`)', '')
    tfds: str = setting(
        'folder of a TFDS data set (dataset_info.json, features.json, tfrecord shards) with one Image and one '
        'ClassLabel, in place of --input_dir', '')
    output_dir: str = setting('folder for the records; made if it does not exist; also s3://... or gs://...')
    splits: str = setting(
        'fractions for images that are not in split folders; a hash of its path decides where a file goes, or a '
        'training record of a TFDS data set without a validation split',
        'train:0.8,val:0.1,test:0.1')
    group_by: str = setting(
        'regular expression for paths: what its groups match (or all of it, without groups) names a subject, whose '
        'images go into one split', '')
    labels_csv: str = setting(
        'CSV file with columns path,label[,split] (paths relative to --input_dir) that replaces the folder names', '')
    image_size: str = setting(
        'resize images when they are converted, in pixels: S, or HEIGHTxWIDTH; by default they keep their size', '')
    resize: str = setting(
        'shorter makes the shorter side S, keeps the proportions and enlarges nothing; squash makes exactly the size '
        'that is asked for; pad fits images into it, keeps their proportions and leaves the rest black, which predict '
        'and the export do not', 'shorter', ('shorter', 'squash', 'pad'))
    encoding: str = setting(
        'what records hold: the bytes of the files themselves (keep), jpeg, lossless png, or raw pixels, which need no '
        'decoding (and one size: squash or pad)', 'keep', ('keep', 'jpeg', 'png', 'raw'))
    jpeg_quality: int = setting('quality of --encoding=jpeg', 95)
    shard_mib: int = setting('aim for shards of this many MiB; how many there are then stays', 32)
    reshard: bool = setting('decide anew how many shards there are', False)
    max_bad_fraction: float = setting('give up once more than this share of the files can become no record', 0.05)
    on_bad_image: str = setting('what a file that can become no record does: it is rejected, or the command fails',
                                'reject', ('reject', 'fail'))
    on_leak: str = setting(
        'what becomes of a photograph that lies in two splits or under two labels: it is listed (report), left out of '
        'training, from either label if both copies are there (drop_from_train), or the command fails (fail)',
        'report', ('report', 'drop_from_train', 'fail'))
    max_image_mib: int = setting('reject files of more MiB', 512)
    max_megapixels: float = setting('reject images of more megapixels, by their headers', 100.0)
    max_side: int = setting('reject images of more pixels a side', 65500)
    max_side_ratio: float = setting('reject images whose longer side is more times the shorter', 200.0)
    seconds_an_image: float = setting('give up on a file that takes longer to decode and encode', 60.0)
    workers: int = setting('worker processes; 0 takes one for each CPU core', 0)
    runner: str = setting(
        'what builds the shards: processes on this machine, or an Apache Beam pipeline (extra `beam`), all of whose '
        'workers see --input_dir and --output_dir under the same paths', 'local', ('local', 'beam'))
    beam_options: str = setting(
        'options of --runner=beam in one string, such as --beam_options="--runner=FlinkRunner '
        '--flink_master=HOST:8081"; by default Beam runs on this machine', '')
    overwrite: bool = setting('replace the records that --output_dir holds already', False)

    def __post_init__(self):
        self._check_input()
        _check_choices(self)
        check_local(self, 'tfds', 'labels_csv')
        _check_at_least(self, 1, 'shard_mib', 'max_image_mib', 'max_side', 'max_side_ratio')
        _check(self.max_megapixels > 0, 'max_megapixels', self.max_megapixels, 'above 0')
        try:
            re.compile(self.group_by)
        except re.error as error:
            _check(False, 'group_by', self.group_by, f'a regular expression ({error})')
        _check_at_least(self, 0, 'workers')
        _check(0 <= self.max_bad_fraction <= 1, 'max_bad_fraction', self.max_bad_fraction, 'from 0 to 1')
        _check(self.seconds_an_image >= 1, 'seconds_an_image', self.seconds_an_image, 'at least 1')
        _check(self.runner == 'beam' or not self.beam_options, 'beam_options', self.beam_options,
               'given with --runner=beam')
        self.split_fractions()
        self._check_storage()

    def height_width(self) -> tuple[int, int] | None:
        """`image_size` as (height, width) in pixels; None if images keep their size."""
        return _height_width(self.image_size) if self.image_size else None

    @property
    def root(self) -> str:
        """The folder of the input."""
        return self.tfds or self.input_dir

    @property
    def given(self) -> str:
        """The flag that names the input, with its value."""
        return f'--tfds={self.tfds}' if self.tfds else f'--input_dir={self.input_dir}'

    def _check_input(self) -> None:
        """Refuses no input, two, and settings that a TFDS data set has no use for."""
        if not self.input_dir and not self.tfds:
            raise UserError('--input_dir is missing: name a folder of images, or a TFDS data set with --tfds (--help '
                            'lists the flags).')
        _check(not self.tfds or not self.input_dir, 'tfds', self.tfds,
               f'given without --input_dir={self.input_dir}: convert them into two folders')
        inside = self.input_dir and f'{self.output_dir}/'.startswith(f'{self.input_dir.rstrip("/")}/')
        _check(not inside or '://' not in self.output_dir, 'output_dir', self.output_dir,
               f'outside of --input_dir={self.input_dir}')
        for name in ('labels_csv', 'group_by'):
            _check(not self.tfds or not getattr(self, name), name, getattr(self, name),
                   'left out with --tfds, whose records have labels of their own and no paths')

    def _check_storage(self) -> None:
        """Refuses settings of what records hold that contradict each other or would have no effect."""
        size = self.height_width()
        _check(self.encoding != 'keep' or size is None, 'encoding', self.encoding,
               f'jpeg (small), png (lossless) or raw (fastest) with --image_size={self.image_size}, because bytes that '
               'are kept have the size that they have')
        _check(self.resize == 'shorter' or size is not None, 'resize', self.resize, 'given with --image_size')
        _check(self.resize != 'shorter' or size is None or size[0] == size[1], 'image_size', self.image_size,
               'S with --resize=shorter; give --resize=squash or --resize=pad for HEIGHTxWIDTH')
        _check(self.encoding != 'raw' or (size is not None and self.resize != 'shorter'), 'encoding', self.encoding,
               'given with --image_size and --resize=squash or --resize=pad, because raw images all have one size')
        _check(1 <= self.jpeg_quality <= 100, 'jpeg_quality', self.jpeg_quality, 'from 1 to 100')
        _check(self.encoding == 'jpeg' or self.jpeg_quality == type(self).jpeg_quality, 'jpeg_quality',
               self.jpeg_quality, f'left out with --encoding={self.encoding}')

    def split_fractions(self) -> dict[str, float]:
        """`splits` as {split: fraction}, in the order train, val, test; fractions add up to 1."""
        pairs = [part.partition(':') for part in self.splits.split(',')]
        try:
            fractions = {name.strip(): float(number) for name, _, number in pairs}
        except ValueError:
            fractions = {}
        good = (fractions and len(fractions) == len(pairs) and set(fractions) <= set(SPLITS)
                and min(fractions.values()) > 0 and abs(sum(fractions.values()) - 1) < 1e-6)
        _check(good, 'splits', self.splits,
               'like train:0.8,val:0.1,test:0.1, with positive fractions that add up to 1')
        return {name: fractions[name] for name in SPLITS if name in fractions}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `python -m boardrec.train`; RUN/run.flags holds them with every `auto` resolved."""

    records: str = setting('folder that tools/make_records.py wrote; also s3://... or gs://...')
    run_dir: str = setting('folder for this run; the same command continues a run that was interrupted')
    verify_records: bool = setting(
        'check the sha256 of every shard first; sizes, counts and the index are checked in any case', False)

    backbone: str = setting(
        'pretrained network: any of keras.applications, such as vgg16, vgg19, resnet50, inception_v3, xception or '
        'efficientnet_v2_b0', 'vgg16')
    weights: str = setting('starting weights of the backbone: imagenet, none, or a Keras weights file', 'imagenet')
    image_size: str = setting(
        "input size in pixels: S for a square, or HEIGHTxWIDTH; by default the backbone's own, such as 224", '')
    trainable_layers: int = setting(
        'how many of the last layers of the backbone are trained; pooling, activations and the like count too', 4)
    dropout: float = setting('fraction of the features dropped before the last layer in training', 0.4)
    positive_class: str = setting(
        'of two classes, the one whose probability is trained; by default `positive`, else the last of the two', '')

    batch_size: int = setting('records a step, over all devices', 64)
    accumulate_steps: int = setting('parts that a batch is computed in, one after the other, to save memory', 1)
    epochs: int = setting('passes over the training records', 10)
    head_epochs: int = setting(
        'how many of the epochs train the classifier alone, at --learning_rate, before schedule and warm-up begin', 0)
    optimizer: str = setting('update rule', 'adamw', ('adam', 'adamw', 'sgd'))
    learning_rate: float = setting('learning rate at the start, or after the warm-up', 1e-4)
    weight_decay: float = setting('decoupled weight decay (adamw), of kernels only', 0.004)
    momentum: float = setting('momentum (sgd)', 0.9)
    schedule: str = setting('learning rate over the run', 'cosine', ('constant', 'cosine', 'plateau'))
    warmup_epochs: float = setting('epochs, or a part of one, in which the rate rises linearly from 0', 0.0)
    plateau_factor: float = setting('what schedule=plateau multiplies the rate by', 0.5)
    plateau_patience: int = setting('epochs without a better validation loss before schedule=plateau acts', 5)
    early_stopping_patience: int = setting(
        'stop after this many epochs without a better validation loss; 0 never stops early', 10)
    clip_norm: float = setting('gradients whose global norm is larger are scaled down to it; 0 does not', 0.0)
    ema_decay: float = setting(
        'validate and keep a moving average of the weights with this decay, such as 0.999; 0 takes the weights', 0.0)
    label_smoothing: float = setting('share of each training label that is spread evenly over all classes', 0.0)
    class_weight: str = setting(
        'what training losses are multiplied by: none; balanced, by how rare a class is in train; or a CSV file with '
        'columns class,weight', 'none')
    record_weights: str = setting(
        'CSV file with columns path,weight: what training losses of single records are multiplied by (1 where it says '
        'nothing), a path being that below the converted folder; the mean is still over the number of records', '')
    shuffle_records: int = setting('about how many records are shuffled together, after their blocks were', 2048)
    seed: int = setting('seed of weights, order and dropout', 0)

    precision: str = setting(
        'arithmetic in training; auto takes bfloat16 where the hardware has it, float16 on older GPUs, else float32',
        'auto', ('auto', 'float32', 'bfloat16', 'float16'))
    inference_precision: str = setting(
        'arithmetic of evaluate, predict and export', 'float32', ('float32', 'bfloat16', 'float16'))
    inference_views: int = setting(
        'evaluate, predict and export average the probabilities of so many views, at as many times the cost: 1, the '
        'image; 2, also mirrored left to right (or top to bottom, if only that is allowed); 4, both ways and either. '
        'Validation in training takes the image alone', 1)
    feature_cache: str = setting(
        'compute the outputs of the frozen layers once and keep them, on disk (on) or in memory, so that an epoch '
        'costs what is trained; auto decides by the time saved and the room there is',
        'auto', ('auto', 'on', 'off', 'memory'))
    feature_cache_dir: str = setting('folder for cached features; by default feature_cache/ beside the records', '')
    cached_views: int = setting(
        'augmented views of each training image, one of which an epoch takes, each in its turn; 1 is the image itself, '
        '0 stands for a new view each epoch, which cannot be cached', 1)
    flip_horizontal: bool = setting('views are mirrored left to right', True)
    flip_vertical: bool = setting('views are mirrored top to bottom', True)
    quarter_turns: bool = setting('views are turned by quarter turns; by half turns if the input is no square', False)
    crop_area: float = setting('views are crops of this share of the area, or more', 0.9)
    rotation: float = setting('views are turned by up to this many degrees', 0.0)
    brightness: float = setting('views are brighter or darker by up to this share', 0.1)
    contrast: float = setting('views have contrast more or less by up to this share', 0.1)
    saturation: float = setting('views have saturation more or less by up to this share', 0.0)
    hue: float = setting('views have hues turned by up to this share of the colour circle', 0.0)
    jpeg_quality: int = setting('views are compressed as JPEG of this quality or more; 100 does not', 100)
    erasing: float = setting('views have a rectangle of up to this share of the area painted over', 0.0)
    pipeline_ram_mb: int = setting('MiB that the input pipeline may buffer; the order does not depend on it', 1024)
    data_service: str = setting(
        'grpc://HOST:PORT of a tf.data service whose workers read and decode in place of this host; the order of the '
        'records is then not promised', '')
    strategy: str = setting(
        'devices: auto takes every visible GPU, and the workers that TF_CONFIG names', 'auto',
        ('auto', 'one', 'mirrored', 'multi_worker'))
    gpus: str = setting('GPUs to use, like 0,1; by default all', '')
    xla: str = setting(
        'compile the step with XLA; auto does so on one GPU. Several devices hang with it', 'auto',
        ('auto', 'on', 'off'))
    steps_per_call: int = setting('steps that a device takes without the host; 0 chooses: 16 on GPUs, 1 on CPUs', 0)
    deterministic: bool = setting(
        'take only kernels on GPUs that give the same bits each time, some of which are slower; CPUs do anyway', False)
    checkpoint_every_steps: int = setting('steps after which the state is saved, beside each end of an epoch', 500)
    on_nan: str = setting(
        'what a loss or gradient that is not finite does: stop, or go back to the last saved state and halve the '
        'learning rate, at most three times', 'stop', ('stop', 'rollback'))
    init_from: str = setting(
        'folder of a finished run whose weights this one starts from; its last layer too if the classes are the same',
        '')
    log_every_steps: int = setting('steps between two points of the curves in TensorBoard', 50)
    profile_steps: str = setting('first and last step, like 100,110, of a profile for TensorBoard; by default none', '')
    dry_run: bool = setting(
        'print settings, layers, records and memory, time a step and end there; writes nothing', False)

    def __post_init__(self):
        _check_choices(self)
        object.__setattr__(self, 'backbone', _backbone(self.backbone))  # of its spellings, one
        check_local(self, 'run_dir', 'feature_cache_dir', 'init_from', 'class_weight', 'record_weights')
        _check_at_least(self, 1, 'batch_size', 'accumulate_steps', 'epochs', 'plateau_patience', 'shuffle_records',
                        'pipeline_ram_mb')
        _check_at_least(self, 0, 'trainable_layers', 'weight_decay', 'early_stopping_patience', 'seed', 'cached_views',
                        'clip_norm')
        for name in ('dropout', 'momentum', 'ema_decay', 'label_smoothing'):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), 'at least 0 and below 1')
        _check(0 < self.learning_rate < _LIMIT, 'learning_rate', self.learning_rate, f'above 0 and below {_LIMIT}')
        _check(0 <= self.head_epochs < self.epochs, 'head_epochs', self.head_epochs,
               f'at least 0 and below --epochs={self.epochs}')
        rest = self.epochs - self.head_epochs
        _check(0 <= self.warmup_epochs < rest, 'warmup_epochs', self.warmup_epochs, f'at least 0 and below {rest}, the '
               f'epochs that --epochs={self.epochs} and --head_epochs={self.head_epochs} leave')
        _check(self.class_weight != '', 'class_weight', self.class_weight, 'none, balanced or a CSV file')
        _check(0 < self.plateau_factor < 1, 'plateau_factor', self.plateau_factor, 'between 0 and 1')
        _check(self.batch_size % self.accumulate_steps == 0, 'accumulate_steps', self.accumulate_steps,
               f'a divisor of --batch_size={self.batch_size}')
        _check(0 < self.crop_area <= 1, 'crop_area', self.crop_area, 'above 0 and at most 1')
        for name in ('brightness', 'contrast', 'saturation', 'erasing'):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), 'at least 0 and below 1')
        _check(0 <= self.hue <= 0.5, 'hue', self.hue, 'from 0 to 0.5')
        _check(0 <= self.rotation <= 180, 'rotation', self.rotation, 'from 0 to 180')
        _check(1 <= self.jpeg_quality <= 100, 'jpeg_quality', self.jpeg_quality, 'from 1 to 100')
        _check(self.cached_views < 2**16, 'cached_views', self.cached_views, f'below {2**16}')
        self._check_views()
        allowed = 2**(self.flip_horizontal + self.flip_vertical)
        _check(self.inference_views in (1, 2, 4) and self.inference_views <= allowed, 'inference_views',
               self.inference_views, f'1, 2 or 4, and with --flip_horizontal={str(self.flip_horizontal).lower()} and '
               f'--flip_vertical={str(self.flip_vertical).lower()} at most {allowed}')
        _check(re.fullmatch(r'(grpc://[^/:]+:\d+)?', self.data_service) is not None, 'data_service', self.data_service,
               'like grpc://HOST:PORT')
        _check(re.fullmatch(r'(\d+(,\d+)*)?', self.gpus) is not None, 'gpus', self.gpus, 'numbers like 0,1')
        _check_at_least(self, 0, 'steps_per_call')
        _check(not self.data_service or self.steps_per_call <= 1, 'steps_per_call', self.steps_per_call,
               f'left out with --data_service={self.data_service}, whose batches are taken one at a time')
        _check_at_least(self, 1, 'checkpoint_every_steps', 'log_every_steps')
        _check(self.xla != 'on' or self.strategy in ('auto', 'one'), 'xla', self.xla, 'auto or off on several devices')
        match = re.fullmatch(r'(\d+),(\d+)', self.profile_steps)
        _check(not self.profile_steps or (match is not None and 1 <= int(match[1]) <= int(match[2])), 'profile_steps',
               self.profile_steps, 'the first and last step, counted from 1, like 100,110')
        self._check_effects()
        self.height_width()

    def _check_effects(self) -> None:
        """Refuses what would have no effect; 0 and the default of what is not used say nothing untrue."""
        for name, of, needed in (
                ('weight_decay', 'optimizer', 'adamw'), ('momentum', 'optimizer', 'sgd'),
                ('plateau_factor', 'schedule', 'plateau'), ('plateau_patience', 'schedule', 'plateau')):
            value = getattr(self, name)
            _check(getattr(self, of) == needed or value in (0, getattr(type(self), name)), name, value,
                   f'left out with --{of}={getattr(self, of)}, or given with --{of}={needed}')
        _check(self.strategy != 'one' or ',' not in self.gpus, 'gpus', self.gpus, 'a single GPU with --strategy=one')
        _check(not self.init_from or self.weights in ('imagenet', 'none'), 'weights', self.weights,
               f'left out with --init_from={self.init_from}, whose weights are taken')

    def _check_views(self) -> None:
        """Refuses ops without views, and more views than there are ways to mirror and turn, if nothing else differs."""
        for name in ('quarter_turns', 'rotation', 'saturation', 'hue', 'jpeg_quality', 'erasing'):
            value = getattr(self, name)
            _check(self.cached_views != 1 or value == getattr(type(self), name), name, value,
                   'given with --cached_views=4, for example, or 0, because one view is the image as it is')
        flips, (height, width) = self.flip_horizontal + self.flip_vertical, self.height_width()
        poses = (8 if height == width else 4) // (1 if flips else 2) if self.quarter_turns else 2**flips
        other = (self.rotation, self.brightness, self.contrast, self.saturation, self.hue, self.erasing,
                 1 - self.crop_area, 100 - self.jpeg_quality)
        _check(self.cached_views <= poses or any(other), 'cached_views', self.cached_views,
               f'at most {poses}, or views would be the same: see --flip_horizontal and the flags that follow it')

    def height_width(self) -> tuple[int, int]:
        """`image_size`, or else the backbone's own, as (height, width) in pixels."""
        return _height_width(self.image_size or str(architectures.default_size(self.backbone)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `python -m boardrec.evaluate`."""

    run_dir: str = setting('folder of a finished run', '')
    compare: str = setting(
        'in place of --run_dir, RUN_A,RUN_B: two runs on the same records, evaluated on the split, set side by side in '
        'RUN_B/report/compare-RUN_A.html', '')
    split: str = setting('records to evaluate', 'test', SPLITS)
    records: str = setting('folder of the same records, if they have moved since training', '')
    batch_size: int = setting('images a step', 32)
    threshold: str = setting(
        'of two classes, the least probability with which the positive one is chosen: f1, the best on the validation '
        'records, half, 0.5, or auto, what the run has already, else f1; kept in the run for predict and export',
        'auto', ('auto', 'f1', 'half'))
    min_precision: float = setting(
        'choose among thresholds with at least this precision on the validation records', 0.0)
    min_recall: float = setting('choose among thresholds with at least this recall on the validation records', 0.0)
    calibrate: bool = setting(
        'scale the probabilities by a temperature fitted on the validation records; kept in the run likewise', False)
    slice_by: str = setting(
        'metrics of parts of the split too: a regular expression for paths, whose groups name the part, or '
        'FILE.csv:COLUMN, a CSV file with a column path', '')
    check_sources: int = setting(
        'how many records to compare with the files that they were made from, which lie in --input_dir: how far their '
        'probabilities differ', 0)
    input_dir: str = setting('folder that the records were converted from, for --check_sources', '')

    def __post_init__(self):
        _check_choices(self)
        check_local(self, 'run_dir', 'compare', 'input_dir', 'slice_by')
        self._check_runs()
        _check_at_least(self, 1, 'batch_size')
        _check_at_least(self, 0, 'check_sources')
        for name in ('min_precision', 'min_recall'):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), 'from 0 to 1')
            _check(self.threshold != 'half' or not getattr(self, name), name, getattr(self, name),
                   'left out with --threshold=half')
        try:
            re.compile(self.slice_by)
        except re.error as error:
            _check('.csv:' in self.slice_by.lower(), 'slice_by', self.slice_by, f'a regular expression ({error}) or '
                   'FILE.csv:COLUMN')
        _check(not self.check_sources or self.input_dir != '', 'check_sources', self.check_sources,
               'given with --input_dir, the folder that the records were converted from')
        _check(self.check_sources > 0 or self.input_dir == '', 'input_dir', self.input_dir,
               'given with --check_sources, the number of records to compare')

    def compared(self) -> tuple[str, str]:
        """The two runs of `compare`."""
        first, _, second = self.compare.partition(',')
        return first.strip(), second.strip()

    def _check_runs(self) -> None:
        """Refuses no run, a run and a comparison, and settings of an evaluation in a comparison."""
        if not self.run_dir and not self.compare:
            raise UserError('--run_dir is missing: name a finished run, or two of them with --compare (--help lists '
                            'the flags).')
        if not self.compare:
            return
        first, second = self.compared()
        good = first and second and ',' not in second and os.path.abspath(first) != os.path.abspath(second)
        _check(bool(good), 'compare', self.compare, 'RUN_A,RUN_B, two different folders of runs, with no comma in '
               'their names')
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check(field.name in ('compare', 'split', 'records') or value == field.default, field.name, value,
                   'left out with --compare, which takes the evaluations that the runs have')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of `python -m boardrec.predict`."""

    run_dir: str = setting('folder of a finished run', '')
    saved_model: str = setting(
        'in place of --run_dir, an export: the folder of a version, or of versions, of which the newest is taken', '')
    images: str = setting(
        'folder of images (searched through), a quoted glob such as "photos/*.jpg", one image, a .txt file of paths, '
        'or - for paths on standard input; paths are ended by line breaks, or by NULs as find -print0 does')
    output: str = setting('file to write, FILE.csv or FILE.jsonl, or - for standard output')
    output_format: str = setting('csv or jsonl (JSON lines); auto takes what --output ends in, and csv for -', 'auto',
                                 ('auto', 'csv', 'jsonl'))
    batch_size: int = setting('images a step', 32)
    max_image_mib: int = setting('refuse files of more MiB', ConvertConfig.max_image_mib)
    max_megapixels: float = setting('refuse images of more megapixels, by their headers', ConvertConfig.max_megapixels)
    max_side: int = setting('refuse images of more pixels a side', ConvertConfig.max_side)
    max_side_ratio: float = setting('refuse images whose longer side is more times the shorter',
                                    ConvertConfig.max_side_ratio)

    def __post_init__(self):
        _check_choices(self)
        check_local(self, 'run_dir', 'saved_model', 'images', 'output')
        if not self.run_dir and not self.saved_model:
            raise UserError('--run_dir is missing: name a finished run, or an export with --saved_model (--help lists '
                            'the flags).')
        _check(not self.run_dir or not self.saved_model, 'saved_model', self.saved_model,
               f'given without --run_dir={self.run_dir}')
        _check_at_least(self, 1, 'batch_size', 'max_image_mib', 'max_side', 'max_side_ratio')
        _check(self.max_megapixels > 0, 'max_megapixels', self.max_megapixels, 'above 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of `python -m boardrec.export`."""

    run_dir: str = setting('folder of a finished run')
    export_dir: str = setting("the served model's folder; the export becomes its next numbered version")
    weights_dtype: str = setting(
        'how kernels are stored: bfloat16 halves the size, and is compared with float32 on records of the run',
        'float32', ('float32', 'bfloat16'))
    serving_precision: str = setting(
        "the served network's arithmetic: that of the run's --inference_precision, or bfloat16, which is several times "
        'faster on CPUs and GPUs that have it and slow on others; it is compared with the run on its records',
        'run', ('run', 'float32', 'bfloat16'))
    keep: int = setting('once the new version is there, remove all but the newest so many; 0 keeps all', 0)
    max_image_mib: int = setting('the served graph refuses images of more MiB', ConvertConfig.max_image_mib)
    max_megapixels: float = setting(
        'the served graph refuses images of more megapixels, by their headers', ConvertConfig.max_megapixels)
    max_side: int = setting('the served graph refuses images of more pixels a side', ConvertConfig.max_side)
    max_side_ratio: float = setting('the served graph refuses images whose longer side is more times the shorter',
                                    ConvertConfig.max_side_ratio)

    def __post_init__(self):
        _check_choices(self)
        check_local(self, 'run_dir', 'export_dir')
        _check_at_least(self, 0, 'keep')
        _check_at_least(self, 1, 'max_image_mib', 'max_side', 'max_side_ratio')
        # The graph counts an image's bytes in 32 bits.
        _check(self.max_image_mib < 2048, 'max_image_mib', self.max_image_mib, 'below 2048')
        _check(self.max_megapixels > 0, 'max_megapixels', self.max_megapixels, 'above 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of `python -m boardrec.serve`."""

    model_dir: str = setting("the served model's folder, the --export_dir of exports; its newest version is served")
    model_name: str = setting("the model's name in requests; by default that of the folder", '')
    host: str = setting('address to listen at; by default only programs on this machine reach it, 0.0.0.0 lets all in',
                        '127.0.0.1')
    rest_port: int = setting('port of REST, the page, health and metrics; 0 takes a free one and says which', 8501)
    grpc_port: int = setting('port of gRPC; 0 takes a free one and says which', 8500)
    keep: int = setting('how many of the newest versions are served; requests get the newest unless they name one', 1)
    version_labels: str = setting(
        'names for versions, like stable:3,canary:4, which are then served too and asked for by .../labels/canary', '')
    poll_seconds: float = setting('seconds between two looks into the folder for new versions', 1.0)
    max_batch_size: int = setting('rows, of one request or of several, that the model takes at once', 32)
    batch_wait_ms: float = setting(
        'milliseconds that rows wait for others while a batch runs; what comes while none does runs at once', 5.0)
    batches_in_flight: int = setting('batches that run at once, so that one is decoded while the network has another',
                                     2)
    max_queued: int = setting('rows that may wait; more are refused with 429 or RESOURCE_EXHAUSTED', 1024)
    max_request_mib: int = setting('refuse requests of more MiB, with 413 or RESOURCE_EXHAUSTED', 32)
    max_held_mib: int = setting('MiB of all requests at once; more are refused with 429 or RESOURCE_EXHAUSTED', 512)
    request_seconds: float = setting('seconds for a request to arrive, and for its answer', 60.0)
    drain_seconds: float = setting('seconds that requests under way have to end after SIGTERM or Ctrl-C', 30.0)

    def __post_init__(self):
        check_local(self, 'model_dir')
        _check(bool(self.host.strip()), 'host', self.host, 'an address; 0.0.0.0 stands for all of this machine')
        for name in ('rest_port', 'grpc_port'):
            _check(0 <= getattr(self, name) < 2**16, name, getattr(self, name), 'from 0 to 65535')
        _check(self.rest_port != self.grpc_port or not self.rest_port, 'grpc_port', self.grpc_port,
               f'another port than --rest_port={self.rest_port}')
        _check_at_least(self, 1, 'keep', 'max_batch_size', 'batches_in_flight', 'max_queued', 'max_request_mib')
        _check_at_least(self, 0.05, 'poll_seconds', 'request_seconds')
        _check_at_least(self, 0, 'batch_wait_ms', 'drain_seconds')
        _check(self.max_request_mib <= 2047, 'max_request_mib', self.max_request_mib, 'at most 2047')
        _check(self.max_held_mib >= self.max_request_mib, 'max_held_mib', self.max_held_mib,
               f'at least --max_request_mib={self.max_request_mib}')
        _check(re.search(r'[/:%\s]', self.model_name) is None, 'model_name', self.model_name,
               'without slashes, colons, percent signs and blanks, because it is a part of URLs')
        self.labels()

    def labels(self) -> dict[str, int]:
        """`version_labels` as {label: version}."""
        pairs = [part.strip().partition(':') for part in self.version_labels.split(',') if part.strip()]
        good = all(re.fullmatch(r'[\w.-]+:\d{1,18}', ''.join(pair)) for pair in pairs)
        _check(good, 'version_labels', self.version_labels, 'like stable:3,canary:4')
        return {label: int(version) for label, _, version in pairs}
