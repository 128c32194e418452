"""What the tests of conversion share: settings, and what became of the files."""

from boardrec.config import ConvertConfig
from boardrec.data import files, journal, records


def settings(input_dir, output_dir='unused', **others):
    return ConvertConfig(input_dir=str(input_dir), output_dir=str(output_dir), **others)


def touch(folder, *names, content=b'not an image'):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def set_files(folder):
    """The files of a record set, without the converter's journal."""
    return [path for path in folder.iterdir() if path.name != journal.FOLDER]


def tree_sums(folder):
    return {path.name: files.sha256_of(path) for path in set_files(folder)}


def stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in set_files(folder)}


def outcome(folder):
    """What became of each file: {source: split or reason}."""
    rows = {row.source: row.split for row in records.read_index(folder)}
    rejected = {source: reason for source, reason, _ in records.read_rejected(folder)}
    assert not set(rows) & set(rejected)
    return rows | rejected
