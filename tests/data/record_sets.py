"""Record sets that tests write, and damage."""

import hashlib

from boardrec.data import records, tfrecord

CLASSES = ['negative', 'positive']
ODD_NAMES = ['a/plain.png', 'a/with space.png', 'a/"quoted", it\'s.png', 'a/[x]*?{y}.png', 'a/two\nlines.png',
             'a/carriage\rreturn.png', 'a/ümläut 図 😀.png', 'a/\\back.png', 'a/not \udcff\udcfe UTF-8.png', 'a/ ',
             'a/,']


def flip(path, offset, bit=0):
    """Flips a bit of a byte of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def insert(path, offset, garbage):
    """Inserts bytes into a file."""
    content = path.read_bytes()
    path.write_bytes(content[:offset] + garbage + content[offset:])


def write(folder, examples, classes, claimed):
    """A set of one shard of these examples, whose manifest claims to have been written of `claimed`."""
    folder.mkdir()
    file = records.shard_file('train', 0, 1)
    shard, offsets = tfrecord.write_shard(folder / file, examples, classes)
    rows = [records.Row(number, one.source_id, one.sha256, 'train', classes[one.label], file, offset)
            for number, (one, offset) in enumerate(zip(examples, offsets, strict=True))]
    counts = {name: shard.class_counts[name] for name in claimed}
    manifest = records.Manifest(claimed, 'keep', None, None, None, {'train': records.Split(len(rows), 1, counts)},
                                [shard], records.index_sha256(rows))
    records.write_rejected(folder, [])
    records.write_index(folder, rows)
    tfrecord.write_tfds_metadata(folder, manifest)
    records.write_manifest(folder, manifest)


def make_examples(names):
    return [tfrecord.Example(f'image {i}'.encode() * (i + 1), i % 2, name, hashlib.sha256(bytes([i])).hexdigest())
            for i, name in enumerate(names)]


def write_set(folder, names, *, shards=2, split='train'):
    """A record set of one split with these source names, dealt to the shards in turn; returns its examples in order."""
    written, rows, every = [], [], []
    for number in range(shards):
        examples = make_examples(names)[number::shards]
        path = folder / records.shard_file(split, number, shards)
        shard, offsets = tfrecord.write_shard(path, examples, CLASSES)
        written.append(shard)
        for example, offset in zip(examples, offsets, strict=True):
            rows.append(records.Row(
                len(rows), example.source_id, example.sha256, split, CLASSES[example.label], shard.file, offset))
        every += examples
    counts = {name: sum(shard.class_counts[name] for shard in written) for name in CLASSES}
    records.write_rejected(folder, [])
    records.write_index(folder, rows)
    manifest = records.Manifest(
        CLASSES, 'keep', None, None, None, {split: records.Split(len(every), shards, counts)}, written,
        records.index_sha256(rows))
    tfrecord.write_tfds_metadata(folder, manifest)
    records.write_manifest(folder, manifest)
    return every
