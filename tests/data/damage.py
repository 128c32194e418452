"""What the tests of damaged record sets share: how to damage one, and how to write an odd one."""

from boardrec.data import records

ODD_NAMES = ['a/"quoted", it\'s.png', 'a/two\nlines.png', 'a/ümläut 図.png', 'a/not \udcff UTF-8.png']


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
    shard, offsets = records.write_shard(folder / file, examples, classes)
    rows = [records.Row(number, one.source_id, one.sha256, 'train', classes[one.label], file, offset)
            for number, (one, offset) in enumerate(zip(examples, offsets, strict=True))]
    counts = {name: shard.class_counts[name] for name in claimed}
    manifest = records.Manifest(claimed, 'keep', None, None, None, {'train': records.Split(len(rows), 1, counts)},
                                [shard], records.index_sha256(rows))
    records.write_rejected(folder, [])
    records.write_index(folder, rows)
    records.write_tfds_metadata(folder, manifest)
    records.write_manifest(folder, manifest)
