"""Where files go, and what a worker makes of them."""

import os

from conversions import settings
import numpy as np
import pytest

from boardrec.data import files, journal, records, scan, shards, workers
from boardrec.data import images as image_lib
from boardrec.data.table import Table


class Silent:
    """A worker's watch that nobody looks at."""

    def begin(self, item):
        pass

    def end(self):
        pass


def build(images, folder, shard_plan, *, skipped=None, max_bytes=1 << 30, on_bad_image='reject'):
    """Builds a shard in this process; what its journal says."""
    job = shards.Job(str(images), str(folder), shard_plan, ['a', 'b'], records.KEEP, max_bytes, image_lib.Limits(),
                      on_bad_image)
    rejected = shards.build(job, skipped or {}, Silent())
    built = journal.read(folder, shard_plan.file)
    assert rejected == built.rejected()
    return built


# Places


NAMES = [f'class{i % 2}/img_{i:04d}.jpg' for i in range(2000)]


def found_items(count, size=1000):
    return Table(scan.Found, (scan.Found(name, 'train', name[:6], size) for name in NAMES[:count]))


def test_a_plan_holds_each_file_once_in_shards_of_about_the_size_asked_for():
    plans = shards.plan(found_items(2000), 100_000)
    assert [shard.file for shard in plans] == [records.shard_file('train', i, 20) for i in range(20)]
    assert sorted(item.source for shard in plans for item in shard.found) == sorted(NAMES)
    counts = [len(shard.found) for shard in plans]
    assert 100 - 4 * 10 < min(counts) and max(counts) < 100 + 4 * 10  # binomial, standard deviation 10


def test_a_files_place_depends_on_its_path_alone():
    places = [[item.source for item in shard.found] for shard in shards.plan(found_items(6), 3000)]
    assert places == PLACES, 'a change gives every record set other bytes: never renew these'


PLACES = [
    ['class0/img_0004.jpg', 'class0/img_0000.jpg', 'class1/img_0003.jpg'],
    ['class1/img_0005.jpg', 'class1/img_0001.jpg', 'class0/img_0002.jpg'],
]


def test_a_plan_mixes_the_classes_and_does_not_depend_on_the_order_of_the_files():
    found = found_items(400)
    plans = shards.plan(found, 100_000)
    assert shards.plan(found[::-1], 100_000) == plans
    for shard in plans:
        labels = [item.label for item in shard.found]
        runs = 1 + sum(a != b for a, b in zip(labels, labels[1:], strict=False))
        assert runs == pytest.approx(len(labels) / 2 + 1, abs=4 * np.sqrt(len(labels)) / 2), 'as in a uniform shuffle'


def test_a_split_has_at_least_one_shard_and_splits_stand_in_their_order():
    found = Table(scan.Found, (scan.Found(f'a/{split}', split, 'a', 10) for split in ('test', 'val', 'train')))
    assert [(shard.file, shard.split) for shard in shards.plan(found, 1 << 30)] == [
        (records.shard_file(split, 0, 1), split) for split in ('train', 'val', 'test')]


# What a worker makes of files


def test_a_file_that_vanishes_during_the_conversion_is_rejected(tmp_path, image_folder):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    (images / 'a' / 'board001.png').unlink()
    built = build(images, tmp_path, shard_plan)
    assert built.rejected() == [scan.Rejection('a/board001.png', 'unreadable: No such file or directory')]
    assert (built.shard.records, len(built.made())) == (3, 3)


def test_a_file_whose_decoder_crashed_is_rejected_by_name(tmp_path, image_folder):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    built = build(images, tmp_path, shard_plan, skipped={2: workers.CRASH})
    bad = shard_plan.found[2].source
    assert built.rejected() == [scan.Rejection(bad, 'decoder error: it crashed', files.sha256_of(images / bad))]


def test_a_file_of_too_many_bytes_is_rejected_unread(tmp_path, image_folder):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    large = images / 'a' / 'large.jpg'
    with open(large, 'wb') as file:
        file.truncate(10_001)
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    built = build(images, tmp_path, shard_plan, max_bytes=10_000)
    assert built.rejected() == [
        scan.Rejection('a/large.jpg', 'too large: 10001 bytes, at most 10000', files.sha256_of(large))]


def test_a_file_that_changes_while_it_is_read_is_rejected(tmp_path, image_folder, monkeypatch):
    images = image_folder({'a': 3, 'b': 1}, folder=tmp_path / 'images')
    found, _ = scan.scan(settings(images, splits='train:1'))
    shard_plan, = shards.plan(found, 1 << 20)
    fstat, ticks = os.fstat, iter(range(10**6))

    def restless(descriptor):
        path = os.readlink(f'/proc/self/fd/{descriptor}')
        if path.endswith('board001.png'):
            os.utime(path, ns=(10**18, 10**18 + next(ticks)))
        return fstat(descriptor)

    monkeypatch.setattr(os, 'fstat', restless)
    built = build(images, tmp_path, shard_plan)
    assert [row[:2] for row in built.rejected()] == [('a/board001.png', 'unreadable: it changes while it is read')]
