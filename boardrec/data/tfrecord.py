"""One record, both ways: the tf.train.Example that it holds and the TFRecord file that it lies in.

An Example holds image (bytes), label (int64), source_id (the path relative to the input root) and sha256 (of the
source's bytes). TensorFlow is imported only where it is needed.
"""

from collections.abc import Iterable, Iterator
import errno
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from boardrec.config import UserError
from boardrec.data import files
from boardrec.data.records import DATASET_NAME, Manifest, RecordSet, Shard, TFDS_FILES

FRAMING_BYTES = 16  # a TFRecord is: uint64 length, uint32 CRC of it, the bytes, uint32 CRC of them


class Example(NamedTuple):
    """What one record holds."""

    image: bytes  # as the set's Storage says
    label: int  # position in class_names
    source_id: str  # path relative to the input root, bytes that are not UTF-8 as surrogates
    sha256: str  # of the source file's bytes


def write_shard(path: pathlib.Path, examples: Iterable[Example], class_names: list[str]) -> tuple[Shard, list[int]]:
    """Writes one shard atomically; returns what the manifest says of it and each record's byte offset.

    Raises OSError if the bytes did not all arrive: TensorFlow's writer reports a full disk once and then closes as if
    all were well.
    """
    import tensorflow as tf
    temporary = files.temporary_name(path)
    counts, offsets, end = dict.fromkeys(class_names, 0), [], 0
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for example in examples:
                data = _encode(example)
                writer.write(data)
                counts[class_names[example.label]] += 1
                offsets.append(end)
                end += len(data) + FRAMING_BYTES
        if temporary.stat().st_size != end:
            raise OSError(errno.EIO, 'not all bytes were written', str(path))
        shard = Shard(path.name, len(offsets), end, files.sha256_of(temporary), counts)
        files.commit_file(temporary, path)
    except tf.errors.OpError as error:
        full = isinstance(error, tf.errors.ResourceExhaustedError)
        code = errno.ENOSPC if full else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return shard, offsets


def read_from(path: Any, offset: Any, buffer_bytes: Any = 256 << 10) -> Any:
    """A Dataset of a shard's serialised Examples (string []), starting at a byte offset; all may be tensors.

    Raises DataLossError where a checksum does not fit.
    """
    import tensorflow as tf
    offsets = tf.reshape(tf.cast(offset, tf.int64), [1])
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.reshape(path, [1]), compression_type='', buffer_size=tf.cast(buffer_bytes, tf.int64),
        byte_offsets=offsets)
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def read_intact(path: str | os.PathLike, offset: int) -> Iterator[bytes]:
    """Yields a shard's serialised Examples from a byte offset on, up to the first whose checksums do not fit.

    Raises OSError where the file cannot be read.
    """
    import tensorflow as tf
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread would hold up the end: see BUILD.md
    dataset = tf.data.Dataset.from_tensors(np.int64(offset)).flat_map(
        lambda offset: read_from(tf.constant(os.fspath(path)), offset))
    try:
        yield from dataset.with_options(options).as_numpy_iterator()
    except tf.errors.DataLossError:
        return
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message, os.fspath(path)) from None


def read_images(record_set: RecordSet, record_ids: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yields (record_id, image as it is stored) in this order, with one Dataset, because each takes a while to make.

    Raises UserError at one that is damaged.
    """
    import tensorflow as tf
    ids, shards = np.array(list(record_ids), np.int64), record_set.manifest.shards
    shard_of = np.repeat(np.arange(len(shards)), [shard.records for shard in shards])
    paths = tf.constant([str(record_set.folder / shard.file) for shard in shards])
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices((shard_of[ids], record_set.offsets[ids])).flat_map(
        lambda shard, offset: read_from(paths[shard], offset).take(1))
    count = 0
    try:
        for data in dataset.map(lambda data: parse_example(data)[0]).with_options(options).as_numpy_iterator():
            yield int(ids[count]), data
            count += 1
    except tf.errors.OpError:
        pass
    if count < len(ids):
        raise UserError(f'record {ids[count]} of {record_set.folder} is damaged: tools/inspect_records.py --verify '
                        'says what else is, and --salvage saves the rest.')


def read_image(record_set: RecordSet, record_id: int) -> bytes:
    """The image of one record as it is stored, read at its offset. Raises ValueError if the bytes there are damaged."""
    import tensorflow as tf
    if not 0 <= record_id < len(record_set.sources):
        raise ValueError(f'record {record_id}: the record set holds {len(record_set.sources)}.')
    start = 0
    for shard in record_set.manifest.shards:
        if record_id < start + shard.records:
            break
        start += shard.records
    try:
        # Nested, because a TFRecordDatasetV2 with offsets cannot be iterated eagerly by itself.
        path, offset = str(record_set.folder / shard.file), record_set.offsets[record_id]
        dataset = tf.data.Dataset.from_tensors(offset).flat_map(lambda offset: read_from(tf.constant(path), offset))
        return parse_example(next(iter(dataset)))[0].numpy()
    except StopIteration:  # what TensorFlow makes of a file that ends between two records
        raise ValueError(f'record {record_id} in {shard.file} is damaged: the file ends before it') from None
    except tf.errors.DataLossError as error:
        raise ValueError(f'record {record_id} in {shard.file} is damaged: {error.message}') from None


def parse_example(serialized: Any) -> tuple[Any, Any]:
    """Parses serialised Examples inside a graph: string [] or [N] to (image: string, label: int32), shaped alike."""
    import tensorflow as tf
    parse = tf.io.parse_single_example if serialized.shape.rank == 0 else tf.io.parse_example
    parsed = parse(serialized, {
        'image': tf.io.FixedLenFeature([], tf.string), 'label': tf.io.FixedLenFeature([], tf.int64)})
    return parsed['image'], tf.cast(parsed['label'], tf.int32)


def decode_example(serialized: bytes) -> Example:
    """What a serialised Example holds. Raises ValueError if it is none of ours."""
    from google.protobuf.message import DecodeError
    import tensorflow as tf
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
        image, source_id, sha256 = (_only(feature[name].bytes_list) for name in ('image', 'source_id', 'sha256'))
        return Example(image, _only(feature['label'].int64_list), os.fsdecode(source_id), sha256.decode())
    except (DecodeError, UnicodeDecodeError):
        raise ValueError('its bytes are no Example') from None


def write_tfds_metadata(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes dataset_info.json and features.json, with which tfds.builder_from_directory reads the folder.

    Source: the TFDS guide 'Load datasets from other formats' (write_metadata with explicit SplitInfos).
    """
    import tensorflow_datasets as tfds
    image = tfds.features.Image(shape=(None, None, 3))
    if manifest.encoding == 'raw':
        image = tfds.features.Tensor(shape=(*manifest.image_size, 3), dtype=np.uint8, encoding='bytes')
    features = tfds.features.FeaturesDict({
        'image': image,
        'label': tfds.features.ClassLabel(names=manifest.class_names),
        'source_id': tfds.features.Text(),
        'sha256': tfds.features.Text(),
    })
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}', dataset_name=DATASET_NAME,
        filetype_suffix='tfrecord')
    shards, infos = iter(manifest.shards), []
    for name, split in manifest.splits.items():
        own = [next(shards) for _ in range(split.shards)]
        infos.append(tfds.core.SplitInfo(
            name=name, shard_lengths=[shard.records for shard in own], num_bytes=sum(shard.bytes for shard in own),
            filename_template=template.replace(split=name)))
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, filename_template=template, check_data=False)
    for name in TFDS_FILES:
        files.sync(folder / name)


def _only(values: Any) -> Any:
    if len(values.value) != 1:
        raise ValueError('its Example lacks what a record holds')
    return values.value[0]


def _encode(example: Example) -> bytes:
    import tensorflow as tf
    message = tf.train.Example()
    feature = message.features.feature
    # Filled in place: constructors copy the image three times, which takes a tenth of what decoding it does.
    feature['image'].bytes_list.value.append(example.image)
    feature['label'].int64_list.value.append(example.label)
    feature['source_id'].bytes_list.value.append(os.fsencode(example.source_id))
    feature['sha256'].bytes_list.value.append(example.sha256.encode())
    return message.SerializeToString(deterministic=True)
