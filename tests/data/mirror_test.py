"""Record sets in an object store: fsspec's memory, and once the S3 server moto on this machine."""

import contextlib
import errno
import json
import pathlib
import shutil
import subprocess
import sys

from conversions import tree_sums
import fsspec
from object_stores import needs_s3
import pytest

from boardrec import cli
from boardrec.config import TrainConfig, UserError
from boardrec.data import files, journal, mirror, records, remote, source_file, transfer

ROOT = pathlib.Path(__file__).parents[2]
URL = 'memory://bucket/of/records'
FOLDER = '/bucket/of/records'


class Store:
    """What the tests look at in memory://."""

    def __init__(self):
        self.fs = fsspec.filesystem('memory')

    def read(self, name):
        return self.fs.cat_file(f'{FOLDER}/{name}')

    def write(self, name, content):
        self.fs.pipe_file(f'{FOLDER}/{name}', content)

    def names(self):
        return {path.removeprefix(f'{FOLDER}/') for path in self.fs.find(FOLDER)}

    def set_sums(self):
        """As tree_sums of a folder."""
        return {name: remote.sha256_of(URL, name) for name in self.names() if not name.startswith(journal.FOLDER)}

    def shards(self):
        return sorted(filter(records.is_shard_file, self.names()))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes this another machine, one with a cache of its own."""
    def move(name):
        monkeypatch.setenv('BOARDREC_CACHE', str(tmp_path / name))
    move('first')
    return move


@pytest.fixture
def store(machine, monkeypatch):
    monkeypatch.setitem(remote._PACKAGES, 'memory', 'fsspec')
    monkeypatch.setattr(transfer, '_PAUSE_SECONDS', 0.0)
    store = Store()
    yield store
    store.fs.rm('/', recursive=True)


@pytest.fixture
def traffic(monkeypatch):
    """The names that are fetched, put and removed, in order."""
    calls = {'fetched': [], 'put': [], 'removed': []}

    def spy(kind, function):
        def call(url, name, *rest):
            calls[kind].append(name)
            return function(url, name, *rest)
        return call

    for kind, names in {'fetched': ('parts', 'content'), 'put': ('put', 'create'), 'removed': ('remove',)}.items():
        for name in names:
            monkeypatch.setattr(remote, name, spy(kind, getattr(remote, name)))
    return calls


@pytest.fixture
def broken_push(images, image_folder, convert, monkeypatch):
    """A function that adds images and converts them, but fails to put or remove what `breaks` says by its name."""
    def run(breaks, which='put', count=8):
        add_images(images, image_folder, count)
        function = getattr(remote, which)

        def failing(url, name, *rest):
            if breaks(name):
                raise remote.StoreError(5, 'no network')
            return function(url, name, *rest)

        with monkeypatch.context() as patch, pytest.raises(UserError, match='no network; once that is mended'):
            patch.setattr(remote, which, failing)
            convert(images, URL)
    return run


def open_it():
    with mirror.opened(URL) as folder:
        return tree_sums(folder)


@pytest.fixture
def images(tmp_path, image_folder):
    return image_folder({'a': 16, 'b': 16}, folder=tmp_path / 'images')


@pytest.fixture
def convert(convert_here):
    """convert_here with small shards and a val split."""
    def run(input_dir, output_dir, **settings):
        return convert_here(input_dir, output_dir, **{
            'shard_bytes': 9000, 'splits': 'train:0.6,val:0.2,test:0.2', **settings})
    return run


@pytest.fixture
def stored(store, images, convert):
    """The store with a set of several shards in it."""
    convert(images, URL)
    assert len(store.shards()) > 4
    return store


def add_images(images, image_folder, count=1):
    for path in (image_folder({'a': count}, seed=7) / 'a').iterdir():
        shutil.copy(path, images / 'a' / f'new-{path.name}')


def shards_in(names):
    return [name for name in names if records.is_shard_file(name)]


def test_the_store_holds_what_a_folder_would_and_a_reader_gets_it(stored, images, tmp_path, convert, machine):
    convert(images, tmp_path / 'local')
    assert stored.set_sums() == tree_sums(tmp_path / 'local')
    assert transfer.MARK not in stored.names()
    machine('second')
    with mirror.opened(URL) as folder:
        assert tree_sums(folder) == tree_sums(tmp_path / 'local')
        assert len(records.open_record_set(folder).sources) == 32
    assert not {path.name for path in (folder / journal.FOLDER).iterdir()}, 'readers have no use for the journal'


def test_a_folder_is_taken_as_it_is(tmp_path):
    with mirror.opened(str(tmp_path)) as folder:
        assert folder == tmp_path
    with mirror.output(str(tmp_path / 'new'), overwrite=False) as folder:
        assert folder == tmp_path / 'new'


def test_what_is_here_is_not_fetched_again(stored, machine, traffic):
    machine('second')
    with mirror.opened(URL):
        assert sorted(shards_in(traffic['fetched'])) == stored.shards()
    traffic['fetched'].clear()
    with mirror.opened(f'{URL}/'):
        pass
    assert not {records.INDEX, *shards_in(traffic['fetched'])} & set(traffic['fetched'])


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


def test_an_increment_from_another_machine_builds_only_what_it_touches(
        stored, images, tmp_path, convert, machine, traffic, capsys):
    (images / 'a' / 'board002.jpg').unlink()
    machine('second')
    capsys.readouterr()
    convert(images, URL)
    count = len(stored.shards())
    assert f'{count - 1} of {count} shards are up to date' in capsys.readouterr().out
    assert len(shards_in(traffic['put'])) == 1
    machine('third')
    with mirror.opened(URL) as folder:
        assert len(records.open_record_set(folder).sources) == 31
    machine('first')
    traffic['put'].clear()
    convert(images, URL)
    assert shards_in(traffic['put']) == [], 'the first machine takes over what the second has put'


def test_the_same_images_again_put_nothing(stored, images, convert, monkeypatch, traffic, capsys):
    monkeypatch.setattr(source_file, '_SETTLED_NS', 0)
    convert(images, URL)  # learns the times
    for calls in traffic.values():
        calls.clear()
    convert(images, URL)
    assert traffic == {'fetched': [records.MANIFEST] * 2, 'put': [], 'removed': []}
    assert f'{URL}: up to date' in capsys.readouterr().out


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


@pytest.mark.parametrize('interrupted', [False, True])
def test_overwriting_mends_what_was_damaged_in_the_store(
        stored, images, convert, machine, monkeypatch, traffic, interrupted):
    name, last = stored.shards()[0], stored.shards()[-1]
    stored.write(name, bytes(len(stored.read(name))))
    if interrupted:
        monkeypatch.setattr(transfer, '_THREADS', 1)
        put = remote.put
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(remote, 'put', lambda url, name, content: interrupt() if name == last else put(
                url, name, content))
            convert(images, URL, overwrite=True)
        assert name in traffic['put']
        traffic['put'].clear()
    convert(images, URL, overwrite=True)
    assert (name in traffic['put']) != interrupted, 'what was put before Ctrl-C is not put again'
    machine('second')
    assert open_it() == stored.set_sums()


def interrupt():
    raise KeyboardInterrupt


def test_overwriting_takes_nothing_from_a_push_that_did_not(stored, images, convert, machine, broken_push):
    name = stored.shards()[0]
    stored.write(name, bytes(len(stored.read(name))))
    broken_push(lambda name: name == records.INDEX, count=1)
    convert(images, URL, overwrite=True)
    machine('second')
    assert open_it() == stored.set_sums()


@pytest.mark.parametrize('breaks', [1, 2])
def test_what_was_put_before_another_machine_replaced_it_is_put_again(
        stored, images, convert, machine, tmp_path, broken_push, breaks):
    """The other's manifest is the one that was there before, and no size has changed."""
    changed = images / 'a' / 'board000.jpg'
    content = changed.read_bytes()
    changed.write_bytes(content + b'x')
    convert(images, URL)
    before, manifest = shutil.copytree(images, tmp_path / 'before'), stored.read(records.MANIFEST)
    changed.write_bytes(content + b'y')
    broken_push(lambda name: name == records.MANIFEST, 'remove', count=0)
    if breaks == 2:
        broken_push(lambda name: name == transfer.MARK, count=0)
    machine('second')
    convert(before, URL, overwrite=True)
    assert stored.read(records.MANIFEST) == manifest
    machine('first')
    convert(images, URL)
    assert stored.read(records.MANIFEST) != manifest
    machine('third')
    assert open_it() == stored.set_sums()


def test_a_reader_keeps_what_is_not_put_yet(stored, images, convert, machine, broken_push, traffic):
    broken_push(lambda name: name == stored.shards()[-1])
    with pytest.raises(UserError, match=f'{URL}: what was converted on this machine is not all there yet: run that'):
        open_it()
    traffic['put'].clear()
    convert(images, URL)
    assert stored.shards()[-1] in traffic['put']
    assert open_it() == stored.set_sums()


def test_a_reader_keeps_what_was_converted_while_the_store_was_out_of_reach(stored, broken_push):
    broken_push(lambda name: name == transfer.MARK, 'create')
    with pytest.raises(UserError, match=f'{URL}: what was converted on this machine is not all there yet'):
        open_it()


def test_a_mark_that_could_not_be_removed_goes_with_the_next_run(stored, images, convert, broken_push):
    broken_push(lambda name: name == transfer.MARK, 'remove')
    assert transfer.MARK in stored.names()
    convert(images, URL)
    assert transfer.MARK not in stored.names()
    assert open_it() == stored.set_sums()


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


def test_what_another_machine_changes_meanwhile_is_not_replaced(stored, images, image_folder, convert, monkeypatch):
    add_images(images, image_folder)
    look, looks = transfer.look, []

    def meanwhile(url, flag):
        looks.append(url)
        if len(looks) == 2:
            stored.write(records.MANIFEST, stored.read(records.MANIFEST) + b'\n')
        return look(url, flag)

    before = stored.set_sums()
    monkeypatch.setattr(transfer, 'look', meanwhile)
    with pytest.raises(UserError, match=f'--output_dir={URL} was changed from elsewhere meanwhile'):
        convert(images, URL)
    del before[records.MANIFEST]
    assert before.items() < stored.set_sums().items()


def test_a_shard_that_is_damaged_here_is_not_put(stored, images, convert, monkeypatch):
    (images / 'a' / 'board000.jpg').unlink()
    push = transfer.push

    def damage(url, folder, *rest):
        for path in folder.glob('*.tfrecord-*'):
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes(len(content) > 0))
        push(url, folder, *rest)

    before = stored.set_sums()
    with monkeypatch.context() as patch, pytest.raises(UserError, match='was damaged after it was written'):
        patch.setattr(transfer, 'push', damage)
        convert(images, URL)
    assert stored.set_sums() == before
    convert(images, URL)
    with mirror.opened(URL) as folder:
        assert len(records.open_record_set(folder).sources) == 31


def test_foreign_objects_are_refused(store, images, convert):
    store.write('notes.txt', b'mine')
    with pytest.raises(UserError, match=f'--output_dir={URL} holds notes.txt, which is no part of a record set'):
        convert(images, URL)
    assert store.names() == {'notes.txt'}


HOLD = '''
import sys
from boardrec.data import files
lock = files.LockFile(sys.argv[1])
assert lock.acquire(int(sys.argv[2]), 1, shared=bool(int(sys.argv[2])))
print(flush=True)
sys.stdin.read()
'''


@contextlib.contextmanager
def held(folder, byte):
    """Another process that changes (0) or reads (1) the copy."""
    with subprocess.Popen([sys.executable, '-c', HOLD, str(folder.with_suffix('.lock')), str(byte)],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.stdin.close()


def test_processes_of_one_machine_do_not_harm_each_other(stored, images, convert, monkeypatch, capsys):
    with mirror.opened(URL) as folder:
        pass
    with held(folder, mirror._CHANGING) as process:
        with pytest.raises(UserError, match=f'--output_dir={URL}: another process of this machine is at work on it'):
            convert(images, URL)
        monkeypatch.setattr(mirror.time, 'sleep', lambda _: process.stdin.close())
        with mirror.opened(URL):
            assert f'waiting for another process of this machine, which is at work on {URL}' in capsys.readouterr().out
    monkeypatch.undo()


def test_a_reader_keeps_others_from_changing_the_copy_and_nothing_else(stored):
    ask = ('import sys; from boardrec.data import files; lock = files.LockFile(sys.argv[1]); '
           'print(lock.acquire(0, 1), lock.acquire(1, 1))')
    with mirror.opened(URL) as folder:
        done = subprocess.run([sys.executable, '-c', ask, str(folder.with_suffix('.lock'))], capture_output=True,
                              text=True, check=True)
        assert done.stdout == 'True False\n'


def test_a_conversion_after_a_reader_has_mended_the_copy(stored, images, convert, capsys, monkeypatch):
    monkeypatch.setattr(source_file, '_SETTLED_NS', 0)
    with mirror.opened(URL) as folder:
        shard = folder / stored.shards()[1]
    shard.write_bytes(b'x')
    with mirror.opened(URL):
        assert shard.stat().st_size > 1
    capsys.readouterr()
    convert(images, URL)
    assert 'nothing to do' in capsys.readouterr().out, 'it knows the shard again, by the journal from the store'


def test_a_copy_that_is_read_stays(stored, images, image_folder, convert, machine):
    machine('second')
    with mirror.opened(URL) as folder:
        pass
    machine('first')
    add_images(images, image_folder)
    with held(folder, mirror._READING):
        machine('second')
        with mirror.opened(URL):  # several may read it
            pass
        with pytest.raises(UserError, match=f'{URL}: another process of this machine reads the copy of it, {folder}/'):
            convert(images, URL)
        machine('first')
        convert(images, URL)
        machine('second')
        sums = tree_sums(folder)
        with pytest.raises(UserError, match='reads the copy of it'), contextlib.ExitStack() as stack:
            stack.enter_context(mirror.opened(URL))
        assert tree_sums(folder) == sums


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


def test_mistakes_name_the_url_but_files_of_the_copy_by_their_paths(stored):
    with pytest.raises(UserError) as error:
        with mirror.opened(URL) as folder:
            raise UserError(f'--records={folder}: see {folder}/rejected.csv in {folder}.')
    assert str(error.value) == f'--records={URL}: see {folder}/rejected.csv in {folder}.'


def test_a_run_keeps_the_url(stored, train_config, small_backbone):
    from boardrec import train
    from boardrec.training import run_dir
    config = train_config(records=URL, epochs=1, backbone=small_backbone, feature_cache='off', feature_cache_dir='')
    train.main(config)
    assert run_dir.read_config(config.run_dir).records == URL
    train.main(config)
    folder = files.cache_dir() / 'records' / 'feature_cache'
    assert run_dir.read_config(config.run_dir).feature_cache_dir == str(folder)


S3 = 's3://photos/of/records'


@needs_s3
def test_a_set_in_s3(bucket, images, tmp_path, convert, machine, monkeypatch):
    convert(images, tmp_path / 'local')
    convert(images, S3)
    there = {path.removeprefix('photos/of/records/') for path in bucket.find('photos/of/records')}
    assert {name for name in there if not name.startswith(journal.FOLDER)} == set(tree_sums(tmp_path / 'local'))
    machine('second')
    (images / 'a' / 'board000.jpg').unlink()
    convert(images, tmp_path / 'local')
    convert(images, S3)
    machine('third')
    with mirror.opened(S3) as folder:
        assert tree_sums(folder) == tree_sums(tmp_path / 'local')
    tool = [sys.executable, str(ROOT / 'tools' / 'inspect_records.py'), f'--records={S3}', '--verify']
    done = subprocess.run(tool, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'all is well: 31 records' in done.stdout
    bucket.pipe_file(f'photos/of/records/{sorted(there)[-3]}', b'damaged')
    assert cli.to_flagfile(TrainConfig(records=S3, run_dir='run'))
