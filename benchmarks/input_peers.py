"""The contestants of input_benchmark.py: each an endless stream of batches, in a process of its own.

A contestant imports what it needs when it starts; what is not there is an ImportError, which the benchmark reports as
absent. It yields what a training step would take, images [B, 224, 224, 3] or [B, 3, 224, 224], and may write a copy
of the images in its own format into the job's folder. What it does not do is copy to a device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from functools import partial
import io
import itertools
import json
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

SIZE = 224
CORES = len(os.sched_getaffinity(0))
CROP_AREA = (0.08, 1.0)  # of the image, in a random-resized crop; aspect ratio 3:4 to 4:3. torchvision's defaults


class Job(NamedTuple):
    """What a contestant's process is told."""

    name: str
    train: bool  # random-resized crop and mirroring, shuffled; else every image once, resized to 224x224
    images: str  # folder of CLASS/*.jpg
    records: str  # the same images, as tools/make_records.py wrote them
    folder: str  # for other formats
    batch_size: int
    skip: int  # images before the clock starts, in each round
    count: int  # images that are timed, in each round


def measure(stream: Iterator[Any], *, skip: int, count: int, clock: Callable[[], float] = time.perf_counter,
            cpu: Callable[[], float] = time.process_time) -> dict[str, Any]:
    """Takes batches of at least `skip` images, then of at least `count`: images, seconds, CPU seconds of these."""
    for least in (skip, count):
        images, cpu_start, start = 0, cpu(), clock()
        while images < least:
            batch = next(stream)
            images += len(batch)
    dtype = getattr(batch, 'dtype', None)
    output = f'{getattr(dtype, "name", dtype)} {list(batch.shape[1:])}' if dtype else 'decoded only'
    return {'seconds': clock() - start, 'cpu_seconds': cpu() - cpu_start, 'images': images, 'output': output}


def in_parallel(pool: futures.Executor, function: Callable, tasks: Iterable[Any]) -> Iterator[Any]:
    """Like map, but lazy, with two tasks a core under way."""
    pending = deque()
    for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) > 2 * CORES:
            yield pending.popleft().result()


# libjpeg-turbo by itself: bytes in memory, pixels into one buffer that is used again and again.

_BYTES, _BUFFER = [], bytearray()  # of a decoding process


def libjpeg_turbo(job: Job, *, scaled: bool = False) -> Iterator[range]:
    """Decodes only: as many processes as cores, through simplejpeg; `scaled` in the DCT, to at least 224x224."""
    import simplejpeg  # noqa: F401 so that its absence is known here
    pool = futures.ProcessPoolExecutor(CORES, initializer=_load, initargs=(job.images,))
    total = sum(1 for _ in pathlib.Path(job.images).rglob('*.jpg'))
    batches = [range(start, min(start + job.batch_size, total)) for start in range(0, total, job.batch_size)]
    return in_parallel(pool, partial(_decode, scaled=scaled), itertools.cycle(batches))


def _load(images: str) -> None:
    import simplejpeg
    _BYTES.extend(path.read_bytes() for path in sorted(pathlib.Path(images).rglob('*.jpg')))
    headers = [simplejpeg.decode_jpeg_header(data)[:2] for data in _BYTES]
    _BUFFER.extend(bytes(3 * max(height * width for height, width in headers)))


def _decode(batch: range, scaled: bool) -> range:
    import simplejpeg
    least = {'min_height': SIZE, 'min_width': SIZE} if scaled else {}
    for index in batch:
        simplejpeg.decode_jpeg(_BYTES[index], buffer=_BUFFER, **least)
    return batch


# TensorFlow and Keras.

def keras_directory(job: Job) -> Iterator[Any]:
    """image_dataset_from_directory with prefetch; in training, crops of the resized batch, in the cheapest way."""
    import keras
    import tensorflow as tf
    dataset = keras.utils.image_dataset_from_directory(
        job.images, batch_size=job.batch_size, image_size=(SIZE, SIZE), shuffle=job.train, verbose=False)
    if job.train:
        def augment(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            count = tf.shape(images)[0]
            sides = tf.random.uniform((count, 2), CROP_AREA[0]**0.5, 1)
            corners = tf.random.uniform((count, 2)) * (1 - sides)
            boxes = tf.concat([corners, corners + sides], 1)
            images = tf.image.crop_and_resize(images, boxes, tf.range(count), (SIZE, SIZE))
            return tf.image.random_flip_left_right(images), labels

        dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return (images for images, _ in dataset.prefetch(tf.data.AUTOTUNE).repeat())


def keras_generator(job: Job) -> Iterator[Any]:
    """ImageDataGenerator in as many threads as cores, as fit(workers=N) ran it; zooms and mirrors in training."""
    import tensorflow as tf
    changes = {'horizontal_flip': True, 'zoom_range': (CROP_AREA[0]**.5, 1)} if job.train else {}
    try:
        make = tf.keras.preprocessing.image.ImageDataGenerator(**changes)
    except AttributeError:
        raise ImportError('this Keras has no ImageDataGenerator') from None
    batches = make.flow_from_directory(
        job.images, (SIZE, SIZE), batch_size=job.batch_size, shuffle=job.train, interpolation='bilinear')
    pool = futures.ThreadPoolExecutor(CORES)
    stream = in_parallel(pool, batches.__getitem__, itertools.cycle(range(len(batches))))
    return (images for images, _ in stream)


def tf_data(job: Job) -> Iterator[Any]:
    """TFRecords, decode_jpeg, resize; in training the ImageNet recipe with decode_and_crop_jpeg."""
    import tensorflow as tf
    features = {'image': tf.io.FixedLenFeature([], tf.string), 'label': tf.io.FixedLenFeature([], tf.int64)}

    def decode(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(serialized, features)
        if not job.train:
            return tf.image.resize(tf.io.decode_jpeg(example['image'], channels=3), (SIZE, SIZE)), example['label']
        corner, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(example['image']), tf.zeros([1, 0, 4]), area_range=CROP_AREA,
            aspect_ratio_range=(3 / 4, 4 / 3), min_object_covered=0, use_image_if_no_bounding_boxes=True)
        image = tf.io.decode_and_crop_jpeg(example['image'], tf.concat([corner[:2], size[:2]], 0), channels=3)
        return tf.image.random_flip_left_right(tf.image.resize(image, (SIZE, SIZE))), example['label']

    paths = sorted(map(str, pathlib.Path(job.records).glob('*.tfrecord-*')))
    dataset = tf.data.TFRecordDataset(paths, num_parallel_reads=tf.data.AUTOTUNE)
    if job.train:
        dataset = dataset.shuffle(2048)
    dataset = dataset.repeat().map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return (images for images, _ in dataset.batch(job.batch_size).prefetch(tf.data.AUTOTUNE))


def boardrec(job: Job, *, augmented: bool = True) -> Iterator[Any]:
    """boardrec.data.input_pipeline as the commands use it; the next epoch begins when the last one is used up."""
    from boardrec.config import TrainConfig
    from boardrec.data import input_pipeline, records
    from boardrec.data.augment import AS_IT_IS, Views
    record_set = records.open_record_set(job.records)
    settings = {'image_size': (SIZE, SIZE), 'batch_size': job.batch_size}
    if job.train:
        views = Views(count=0, flip_horizontal=True, crop_area=CROP_AREA[0]) if augmented else AS_IT_IS
        dataset = input_pipeline.train_dataset(
            record_set, 'train', shuffle_records=TrainConfig.shuffle_records, views=views, **settings)
    else:
        dataset = input_pipeline.eval_dataset(record_set, 'train', **settings)
    return (batch.inputs for batch in dataset.repeat())


# Pillow behind PyTorch, WebDataset and Grain.

def torch_loader(job: Job, *, draft: bool = False) -> Iterator[Any]:
    """torchvision's ImageFolder and transforms in a DataLoader of as many workers as cores."""
    import torch.utils.data
    import torchvision
    folder = torchvision.datasets.ImageFolder(
        job.images, _transform(job), loader=partial(_open_image, draft=draft))
    loader = torch.utils.data.DataLoader(
        folder, job.batch_size, shuffle=job.train, num_workers=CORES, persistent_workers=True)
    return (images for _ in itertools.count() for images, _ in loader)


def webdataset(job: Job) -> Iterator[Any]:
    """Tar files through WebDataset and its WebLoader, decoded by Pillow, with torchvision's transforms."""
    import webdataset as wds
    folder = pathlib.Path(job.folder)
    if not folder.exists():
        folder.mkdir(parents=True)
        paths = sorted(pathlib.Path(job.images).rglob('*.jpg'))
        with wds.ShardWriter(f'{folder}/%05d.tar', maxcount=-(-len(paths) // (4 * CORES)), verbose=0) as writer:
            for path in paths:
                writer.write({'__key__': path.stem, 'jpg': path.read_bytes(), 'cls': path.parent.name})
    dataset = wds.WebDataset(sorted(map(str, folder.glob('*.tar'))), shardshuffle=100 if job.train else False)
    if job.train:
        dataset = dataset.shuffle(1000)
    dataset = dataset.decode('pil', only='jpg').to_tuple('jpg', 'cls').map_tuple(_transform(job), bytes)
    dataset = dataset.batched(job.batch_size).repeat()
    return (images for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=CORES))


def grain_array_record(job: Job) -> Iterator[Any]:
    """ArrayRecord through Grain with as many processes as cores, decoded by Pillow, with torchvision's transforms."""
    from array_record.python import array_record_module
    import grain
    file = pathlib.Path(job.folder) / 'images.array_record'
    if not file.exists():
        file.parent.mkdir(parents=True)
        writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
        for path in sorted(pathlib.Path(job.images).rglob('*.jpg')):
            writer.write(path.read_bytes())
        writer.close()
    transform = _transform(job)
    dataset = grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(file)])).seed(0)
    if job.train:
        dataset = dataset.shuffle()
    dataset = dataset.repeat().map(lambda data: transform(_open_image(io.BytesIO(data))).numpy())
    # Batched after the threads that read ahead, which would each make a batch: gigabytes, and bursts of 16 batches.
    dataset = dataset.to_iter_dataset().batch(job.batch_size)
    return iter(dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=CORES)))


def _open_image(file: Any, draft: bool = False) -> Any:
    from PIL import Image
    with Image.open(file) as image:
        if draft:
            image.draft('RGB', (SIZE, SIZE))  # scales in the DCT, to no less than this
        return image.convert('RGB')


def _transform(job: Job) -> Callable:
    from torchvision import transforms
    crop = [transforms.RandomResizedCrop(SIZE, CROP_AREA), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*(crop if job.train else [transforms.Resize((SIZE, SIZE))]), transforms.PILToTensor()])


class Contestant(NamedTuple):
    """One line of the table."""

    title: str
    stream: Callable[[Job], Iterator[Any]]
    modes: tuple[str, ...] = ('eval', 'train')
    records: tuple[str, ...] | None = None  # flags of tools/make_records.py, if it reads records


_EVAL, _TRAIN = ('eval',), ('train',)
_JPEG256 = ('--image_size=256', '--resize=shorter', '--encoding=jpeg')
_JPEG224 = ('--image_size=224', '--resize=squash', '--encoding=jpeg')
_RAW224 = ('--image_size=224', '--resize=squash', '--encoding=raw')
CONTESTANTS = {  # in this order in a round: beside each other what is compared
    'limit': Contestant('libjpeg-turbo alone', libjpeg_turbo),
    'limit_scaled': Contestant('libjpeg-turbo alone, DCT-scaled', partial(libjpeg_turbo, scaled=True), _EVAL),
    'original': Contestant('boardrec, originals', boardrec, records=()),
    'keras': Contestant('keras image_dataset_from_directory', keras_directory),
    'shuffled': Contestant('boardrec, originals, only shuffled', partial(boardrec, augmented=False), _TRAIN, ()),
    'jpeg256': Contestant('boardrec, JPEG, shorter side 256', boardrec, records=_JPEG256),
    'jpeg224': Contestant('boardrec, JPEG 224', boardrec, records=_JPEG224),
    'raw224': Contestant('boardrec, raw 224', boardrec, records=_RAW224),
    'tf_data': Contestant('plain TFRecord + tf.data', tf_data, records=()),
    'torch': Contestant('torch DataLoader + Pillow', torch_loader),
    'torch_draft': Contestant('torch DataLoader + Pillow, draft', partial(torch_loader, draft=True), _EVAL),
    'webdataset': Contestant('WebDataset + Pillow', webdataset),
    'grain': Contestant('Grain + ArrayRecord + Pillow', grain_array_record),
    'keras_generator': Contestant('keras ImageDataGenerator', keras_generator),
}


def main(job: Job) -> None:
    """Answers each line of standard input with a round's figures as a line of JSON; what is printed goes to stderr."""
    import psutil
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)

    def family() -> list[psutil.Process]:
        return [psutil.Process(), *psutil.Process().children(recursive=True)]

    def cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in family())

    try:
        stream = CONTESTANTS[job.name].stream(job)
        for _ in sys.stdin:
            figures = measure(stream, skip=job.skip, count=job.count, cpu=cpu)
            states = [pathlib.Path(f'/proc/{process.pid}/status').read_text() for process in family()]
            figures['peak_rss'] = 1024 * sum(int(state.partition('VmHWM:')[2].split()[0]) for state in states)
            answers.write(json.dumps(figures) + '\n')
    except ImportError as error:
        answers.write(json.dumps({'absent': str(error)}) + '\n')
    os._exit(0)  # threads and workers of endless streams would be waited for


if __name__ == '__main__':
    main(Job(*json.loads(sys.argv[1])))
