"""What goes between an object store and a folder, in which order, and what happens if it breaks off."""

import contextlib
import errno
import json

from conversions import tree_sums
from object_stores import add_images, FOLDER, open_it, shards_in, URL
import pytest

from boardrec.config import UserError
from boardrec.data import journal, mirror, records, remote, transfer


def test_a_pull_that_was_interrupted_continues(stored, machine, traffic, monkeypatch):
    machine('second')
    monkeypatch.setattr(transfer, '_THREADS', 1)
    parts, last = remote.parts, stored.shards()[-1]

    def breaking(url, name):
        if name == last:
            raise KeyboardInterrupt
        return parts(url, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), contextlib.ExitStack() as stack:
        patch.setattr(remote, 'parts', breaking)
        stack.enter_context(mirror.opened(URL))
    traffic['fetched'].clear()
    with mirror.opened(URL) as folder:
        assert last in traffic['fetched']
        assert len(shards_in(traffic['fetched'])) < len(stored.shards()) - 1
        assert tree_sums(folder) == stored.set_sums()


@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove'])
def test_what_is_damaged_here_is_mended(stored, machine, traffic, damage):
    machine('second')
    with mirror.opened(URL) as folder:
        path = folder / stored.shards()[1]
    content = path.read_bytes()
    traffic['fetched'].clear()
    path.unlink()
    if damage != 'remove':
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:] if damage == 'flip' else content[:9])
    with mirror.opened(URL) as folder:
        assert path.read_bytes() == content
    assert shards_in(traffic['fetched']) == [path.name]


def test_what_is_no_longer_in_the_store_goes(stored, machine, images, image_folder, convert, traffic):
    machine('second')
    with mirror.opened(URL) as folder:
        before = tree_sums(folder)
    machine('first')
    add_images(images, image_folder)
    convert(images, URL, reshard=True, shard_bytes=100_000)
    machine('second')
    with mirror.opened(URL) as folder:
        assert tree_sums(folder) == stored.set_sums()
        assert set(shards_in(before)) - set(shards_in(tree_sums(folder)))


def test_a_set_that_is_replaced_during_the_pull(stored, images, image_folder, machine, convert, tmp_path, monkeypatch):
    add_images(images, image_folder)
    parts, replaced = remote.parts, []

    def restless(url, name):
        if records.is_shard_file(name) and not replaced:
            replaced.append(name)
            machine('first')
            convert(images, URL)
            machine('second')
        return parts(url, name)

    machine('second')
    monkeypatch.setattr(transfer, '_THREADS', 1)
    monkeypatch.setattr(remote, 'parts', restless)
    with mirror.opened(URL) as folder:
        assert replaced
        assert len(records.open_record_set(folder).sources) == 33
        assert tree_sums(folder) == stored.set_sums()


def test_lists_of_another_set_than_the_manifest_are_noticed(stored, machine, monkeypatch):
    """Only they change, and the manifest: no shard tells."""
    parts, changed = remote.parts, []

    def restless(url, name):
        if name == records.REJECTED and not changed:
            changed.append(name)
            stored.write(records.REJECTED, b'source,reason,sha256\n"x","y","z"\n')
            manifest = json.loads(stored.read(records.MANIFEST))
            stored.write(records.MANIFEST, json.dumps(manifest).encode())
            stored.write(records.LABELS, b'another\n')
        return parts(url, name)

    machine('second')
    monkeypatch.setattr(remote, 'parts', restless)
    with mirror.opened(URL) as folder:
        assert (folder / records.LABELS).read_bytes() == b'another\n'
        assert tree_sums(folder) == stored.set_sums()


def test_a_push_that_breaks_off_leaves_the_old_manifest_and_a_reader_notices(
        stored, images, image_folder, machine, convert, tmp_path, monkeypatch, traffic):
    (images / 'a' / 'board000.jpg').unlink()
    add_images(images, image_folder, 8)
    before, put, fails_at = stored.read(records.MANIFEST), remote.put, []

    def failing(url, name, content):
        if len(shards_in(traffic['put'])) == 2 and records.is_shard_file(name):
            fails_at.append(name)
            raise remote.StoreError(5, 'no network')
        put(url, name, content)

    monkeypatch.setattr(transfer, '_THREADS', 1)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f'{URL}: no network; once that is mended'):
        patch.setattr(remote, 'put', failing)
        convert(images, URL)
    assert fails_at and stored.read(records.MANIFEST) == before
    done = shards_in(traffic['put'])

    machine('second')
    with pytest.raises(UserError, match=f'{URL} is no whole record set now: process .* has not finished'), \
            contextlib.ExitStack() as stack:
        stack.enter_context(mirror.opened(URL))
    with pytest.raises(UserError, match=f'--output_dir={URL}: process .* has not finished .*--overwrite'):
        convert(images, URL)

    machine('first')
    traffic['put'].clear()
    convert(images, URL)
    assert not set(done) & set(traffic['put']), 'what is there is not put again'
    machine('second')
    with mirror.opened(URL) as folder:
        assert len(records.open_record_set(folder).sources) == 39
        assert tree_sums(folder) == stored.set_sums()
    assert transfer.MARK not in stored.names()


def test_the_order_of_a_push(stored, images, convert, traffic):
    (images / 'a' / 'board000.jpg').unlink()
    convert(images, URL)
    names = traffic['put']
    assert names[0] == transfer.MARK and names[-1] == records.MANIFEST
    assert len(shards_in(names)) == 1 and names[1] == shards_in(names)[0]
    assert {records.INDEX, f'{journal.FOLDER}/{names[1]}.json'} < set(names[2:-1])
    assert traffic['removed'] == [records.MANIFEST, transfer.MARK]


def test_overwriting_needs_nothing_of_what_is_there(stored, images, tmp_path, convert, machine, traffic):
    machine('second')
    with pytest.raises(UserError, match=f'{URL} was converted with --max_side=65500, not with --max_side=60000'):
        convert(images, URL, max_side=60000)
    machine('third')
    traffic['fetched'].clear()
    convert(images, URL, max_side=60000, overwrite=True)
    assert shards_in(traffic['fetched']) == []
    convert(images, tmp_path / 'local', max_side=60000)
    assert stored.set_sums() == tree_sums(tmp_path / 'local')


def test_a_push_that_ends_while_a_reader_looks(stored, machine, monkeypatch):
    listing, manifest = remote.listing, stored.read(records.MANIFEST)

    def ending(url, flag):
        found = listing(url, flag)
        stored.write(records.MANIFEST, manifest)
        if transfer.MARK in stored.names():
            remote.remove(URL, transfer.MARK)
        return found

    remote.create(URL, transfer.MARK, b'["1", "process 1 on another"]')
    remote.remove(URL, records.MANIFEST)
    machine('second')
    monkeypatch.setattr(remote, 'listing', ending)
    assert open_it() == stored.set_sums()


def test_of_two_pushes_at_once_one_is_refused(stored, images, image_folder, convert, monkeypatch):
    create, before = remote.create, stored.set_sums()

    def slower(url, name, content):
        stored.write(transfer.MARK, b'["1", "process 1 on another"]')
        return create(url, name, content)

    add_images(images, image_folder)
    monkeypatch.setattr(remote, 'create', slower)
    with pytest.raises(UserError, match=f'--output_dir={URL}: process 1 on another puts records there too: wait'):
        convert(images, URL)
    assert stored.set_sums() == before
    assert stored.read(transfer.MARK) == b'["1", "process 1 on another"]'


def test_a_push_that_another_overwrites_ends_before_the_manifest(stored, images, image_folder, convert, monkeypatch):
    put, before = remote.put, stored.read(records.MANIFEST)

    def overtaken(url, name, content):
        put(url, name, content)
        stored.write(transfer.MARK, b'["1", "process 1 on another"]')

    add_images(images, image_folder)
    monkeypatch.setattr(remote, 'put', overtaken)
    with pytest.raises(UserError, match='process 1 on another puts records there too'):
        convert(images, URL)
    assert stored.read(records.MANIFEST) == before


@pytest.mark.parametrize('content', [b'', b'{}', b'["1"]'])
def test_a_mark_that_says_nothing_is_another_s(stored, images, convert, machine, content):
    stored.write(transfer.MARK, content)
    machine('second')
    assert open_it(), 'what is there is whole'
    with pytest.raises(UserError, match='another process has not finished .*--overwrite'):
        convert(images, URL)
    convert(images, URL, overwrite=True)
    assert transfer.MARK not in stored.names()


def test_an_object_that_is_replaced_while_it_is_read_is_read_again(stored, machine, monkeypatch):
    parts, tried = remote.parts, []

    def replaced(url, name):
        if records.is_shard_file(name) and not tried:
            tried.append(name)
            raise remote.StoreError(errno.EBUSY, 'as s3fs says')
        return parts(url, name)

    machine('second')
    monkeypatch.setattr(remote, 'parts', replaced)
    assert open_it() == stored.set_sums()


def test_foreign_objects_are_refused(store, images, convert):
    store.write('notes.txt', b'mine')
    with pytest.raises(UserError, match=f'--output_dir={URL} holds notes.txt, which is no part of a record set'):
        convert(images, URL)
    assert store.names() == {'notes.txt'}


@pytest.mark.parametrize(('damage', 'match'), [
    (lambda store: store.fs.rm_file(f'{FOLDER}/{records.MANIFEST}'), 'holds no manifest.json: it is no complete'),
    (lambda store: store.write(records.MANIFEST, b'{}'), 'manifest.json is damaged'),
    (lambda store: store.fs.rm_file(f'{FOLDER}/{store.shards()[0]}'), 'does not hold what its manifest.json says'),
    (lambda store: store.write(store.shards()[0], b'x'), 'does not hold what its manifest.json says'),
    (lambda store: store.write(records.INDEX, b'x'), 'does not hold what its manifest.json says'),
], ids=['no manifest', 'manifest', 'no shard', 'shard', 'index'])
def test_a_store_that_holds_no_whole_set(stored, machine, damage, match):
    machine('second')
    damage(stored)
    with pytest.raises(UserError, match=f'{URL}.*{match}'), contextlib.ExitStack() as stack:
        stack.enter_context(mirror.opened(URL))


@pytest.mark.parametrize('name', ['../evil', '.tmp-/../../evil', '.conversion', 'manifest.json'])
def test_a_manifest_names_shards_only(stored, machine, name):
    machine('second')
    manifest = records.parse_manifest(stored.read(records.MANIFEST), 'x')
    evil = manifest.shards[0].__class__(name, 1, 1, 'x', {})
    stored.write(records.MANIFEST, manifest.__class__(**{**vars(manifest), 'shards': [evil]}).to_json().encode())
    with pytest.raises(UserError, match='names a file that is no shard'), contextlib.ExitStack() as stack:
        stack.enter_context(mirror.opened(URL))
