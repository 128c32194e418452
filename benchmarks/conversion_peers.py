"""The contestants of conversion_benchmark.py: each one conversion of a folder of photographs, in a process of its own.

A contestant imports what it needs before the clock starts; what is not there is an ImportError, which the benchmark
reports as absent. Peers write the files' bytes as they are and decode none, which is how they are used.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
from functools import partial
import io
import json
import os
import pathlib
import sys
import threading
import time
from typing import Any, NamedTuple

CORES = len(os.sched_getaffinity(0))
SHARD_MIB = 32
SIDE = 256  # pixels, of the shorter side, where images are resized
QUALITY = 95
_IN_MEMORY = 1000  # images at most, of those that are decoded by themselves
_CHUNK = 32
_LOOK_SECONDS = 2  # a look goes through all processes of the machine


class Job(NamedTuple):
    """What a contestant's process is told."""

    name: str
    images: str  # folder of CLASS/*.jpg
    folder: str  # for what it writes; does not exist


class Done(NamedTuple):
    """What a contestant's clock saw."""

    images: int
    seconds: float  # from beginning to end, without the imports of this process
    steady_images: int  # those after the first quarter, when all workers' imports are over
    steady_seconds: float
    cpu_seconds: float  # of all processes, for an image, without imports


def paths_of(job: Job) -> list[pathlib.Path]:
    """The images, in one order for all."""
    return sorted(pathlib.Path(job.images).rglob('*.jpg'))


def timed(count: int, function: Callable[[], Any]) -> Done:
    """Times all at once: of one that starts no process that imports much."""
    before, start = cpu_seconds(), time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    return Done(count, seconds, count, seconds, (cpu_seconds() - before) / count)


def cpu_seconds() -> float:
    """What this process and those that it has started have used; of those that have ended, nothing."""
    import psutil
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


# The limits: bytes in memory, one process a core, nothing written.

_BYTES = []  # of a process


def alone(job: Job, work: Callable[[int], Any]) -> Done:
    """As many pieces of work as there are images, over a sample of them."""
    import simplejpeg  # noqa: F401 so that its absence is known here
    paths = paths_of(job)
    sample = paths[::-(-len(paths) // _IN_MEMORY)]
    with futures.ProcessPoolExecutor(CORES, initializer=_load, initargs=(sample,)) as pool:
        list(pool.map(work, range(10 * _CHUNK * CORES), chunksize=_CHUNK))  # starts the processes
        return timed(len(paths), lambda: list(pool.map(work, range(len(paths)), chunksize=_CHUNK)))


def _load(paths: list[pathlib.Path]) -> None:
    _BYTES.extend(path.read_bytes() for path in paths)


def decode(number: int) -> None:
    """libjpeg-turbo's decoder by itself."""
    import simplejpeg
    simplejpeg.decode_jpeg(_BYTES[number % len(_BYTES)])


def decode_resize_encode(number: int) -> None:
    """What resizing at conversion takes at least: libjpeg-turbo's decoder, Pillow's resize and encoder."""
    from PIL import Image
    import simplejpeg
    image = Image.fromarray(simplejpeg.decode_jpeg(_BYTES[number % len(_BYTES)]))
    scale = min(1, SIDE / min(image.size))
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    image.save(io.BytesIO(), 'JPEG', quality=QUALITY, subsampling='4:4:4')


# boardrec.

def boardrec(job: Job, **settings: str) -> Done:
    """The converter with as many workers as cores; each file is decoded to check it."""
    from boardrec import progress
    from boardrec.config import ConvertConfig
    from boardrec.data import convert
    config = ConvertConfig(input_dir=job.images, output_dir=job.folder, splits='train:1', shard_mib=SHARD_MIB,
                           **settings)
    seen, bar_of = [], progress.bar

    @contextlib.contextmanager
    def watched(description: str, **known: Any) -> Any:
        with bar_of(description, **known) as bar:
            if description != 'converting' or seen:
                yield bar
                return
            update = bar.update

            def looked(count: int = 1) -> None:
                done = bar.n + count
                if done >= bar.total if seen else done >= bar.total / 4:  # by then all workers have started
                    seen.append((time.perf_counter(), done, cpu_seconds()))
                update(count)

            bar.update = looked
            yield bar

    progress.bar, start = watched, time.perf_counter()
    manifest = convert.convert(config)
    end, count = time.perf_counter(), sum(split.records for split in manifest.splits.values())
    (first, before, cpu), (last, after, cpu_then) = seen[0], seen[-1]
    images = max(1, after - before)
    return Done(count, end - start, images, max(last - first, 1e-9), (cpu_then - cpu) / images)


# The others.

def tfds_builder(job: Job) -> Done:
    """A GeneratorBasedBuilder in one process; more take Apache Beam."""
    import tensorflow_datasets as tfds
    paths, folder = paths_of(job), pathlib.Path(job.images)

    class Photographs(tfds.core.GeneratorBasedBuilder):
        """As the guide 'Writing custom datasets' has it, without a package of its own."""

        VERSION, pkg_dir_path = tfds.core.Version('1.0.0'), folder

        def _info(self) -> tfds.core.DatasetInfo:
            names = sorted({path.parent.name for path in paths})
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(encoding_format='jpeg'), 'label': tfds.features.ClassLabel(names=names)}))

        def _split_generators(self, _: Any) -> dict[str, Any]:
            return {'train': self._generate_examples()}

        def _generate_examples(self) -> Any:
            for path in paths:
                yield path.name, {'image': path, 'label': path.parent.name}

    builder = Photographs(data_dir=job.folder)
    return timed(len(paths), builder.download_and_prepare)


def in_processes(job: Job, write: Callable[[list[pathlib.Path], str, int], None], processes: int) -> Done:
    """One writer in each process, each with its part of the files."""
    paths = paths_of(job)
    pathlib.Path(job.folder).mkdir(parents=True)
    if processes == 1:
        return timed(len(paths), lambda: write(paths, job.folder, 0))
    with futures.ProcessPoolExecutor(processes) as pool:
        list(pool.map(time.sleep, [0.2] * processes))  # starts them
        return timed(len(paths), lambda: list(pool.map(
            write, [paths[number::processes] for number in range(processes)], [job.folder] * processes,
            range(processes))))


def webdataset(job: Job, processes: int = 1) -> Done:
    """WebDataset's ShardWriter."""
    import webdataset  # noqa: F401 so that its absence is known here
    return in_processes(job, _write_tars, processes)


def _write_tars(paths: list[pathlib.Path], folder: str, number: int) -> None:
    import webdataset as wds
    with wds.ShardWriter(f'{folder}/{number}-%05d.tar', maxsize=SHARD_MIB << 20, verbose=0) as writer:
        for path in paths:
            writer.write({'__key__': path.stem, 'jpg': path.read_bytes(), 'cls': path.parent.name})


def array_record(job: Job, processes: int = 1) -> Done:
    """ArrayRecord's writer, with the options that it has by itself, which compress."""
    from array_record.python import array_record_module  # noqa: F401 as above
    return in_processes(job, _write_array_record, processes)


def _write_array_record(paths: list[pathlib.Path], folder: str, number: int) -> None:
    from array_record.python import array_record_module
    writer = array_record_module.ArrayRecordWriter(f'{folder}/{number}.array_record', 'group_size:1')
    for path in paths:
        writer.write(path.read_bytes())
    writer.close()


class Contestant(NamedTuple):
    """One line of the table."""

    title: str
    convert: Callable[[Job], Done]


CONTESTANTS = {  # in this order in a round: beside each other what is compared
    'decode': Contestant('libjpeg-turbo alone, decoding only', partial(alone, work=decode)),
    'keep': Contestant('boardrec, originals, each decoded', boardrec),
    'parts': Contestant('decode, resize, encode alone', partial(alone, work=decode_resize_encode)),
    'jpeg': Contestant(f'boardrec, JPEG, shorter side {SIDE}',
                       partial(boardrec, image_size=str(SIDE), encoding='jpeg', jpeg_quality=QUALITY)),
    'tfds': Contestant('TFDS GeneratorBasedBuilder', tfds_builder),
    'webdataset': Contestant('WebDataset ShardWriter', webdataset),
    'webdataset_all': Contestant('WebDataset ShardWriter, a process a core', partial(webdataset, processes=CORES)),
    'array_record': Contestant('ArrayRecord writer', array_record),
    'array_record_all': Contestant('ArrayRecord writer, a process a core', partial(array_record, processes=CORES)),
}


def watch_memory(peaks: dict[str, int], over: threading.Event) -> None:
    """Keeps the peak resident bytes of this process and of the largest of those that it started."""
    import psutil
    while not over.wait(_LOOK_SECONDS):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                peaks['worker_rss'] = max(peaks['worker_rss'], peak_rss(process.pid))
    peaks['parent_rss'] = peak_rss(os.getpid())


def peak_rss(pid: int) -> int:
    """The peak resident memory of a process in bytes; 0 once it has ended."""
    return 1024 * int((pathlib.Path(f'/proc/{pid}/status').read_text().partition('VmHWM:')[2].split() or [0])[0])


def main(job: Job) -> None:
    """Converts; prints what the clock and memory say as a line of JSON; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    peaks, over = {'parent_rss': 0, 'worker_rss': 0}, threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(peaks, over))
    watcher.start()
    try:
        done = CONTESTANTS[job.name].convert(job)._asdict()
    except ImportError as error:
        done = {'absent': str(error)}
    finally:
        over.set()
        watcher.join()
    written = sum(path.stat().st_size for path in pathlib.Path(job.folder).rglob('*') if path.is_file())
    answers.write(json.dumps({**done, **peaks, 'written': written}) + '\n')


if __name__ == '__main__':
    main(Job(*json.loads(sys.argv[1])))
