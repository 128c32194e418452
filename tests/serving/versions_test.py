"""Which versions are served as their folder changes, and when they are freed."""

from concurrent.futures import Future
import types

import pytest

pytest.importorskip('grpc')
from boardrec.config import UserError  # noqa: E402
from boardrec.serving import versions  # noqa: E402
from boardrec.serving.failure import Failure  # noqa: E402


@pytest.fixture
def world(tmp_path):
    """A folder; what was loaded, freed and said; which versions are broken; and a function that makes Versions."""
    found = types.SimpleNamespace(folder=tmp_path / 'm', loaded=[], freed=[], said=[], broken=set())
    found.folder.mkdir()

    def load(folder, version):
        found.loaded.append(version)
        if version in found.broken:
            raise ValueError('torn')
        return types.SimpleNamespace(version=version, close=lambda: found.freed.append(version),
                                     content=(folder / 'saved_model.pb').read_bytes())

    def publish(*numbers):
        for number in numbers:
            (found.folder / str(number)).mkdir()
            (found.folder / str(number) / 'saved_model.pb').write_bytes(b'x')

    found.publish = publish
    found.make = lambda **settings: versions.Versions(found.folder, name='m', load=load, say=found.said.append,
                                                      **settings)
    return found


def states(served):
    return {version: status.state for version, status in served.statuses().items()}


def test_the_newest_by_number_is_served_and_the_older_one_freed(world):
    world.publish(9)
    (world.folder / '.tmp-version-10').mkdir()
    (world.folder / 'notes').mkdir()
    served = world.make()
    served.poll()
    assert served.available == [9]
    world.publish(10)
    served.poll()
    served.poll()
    assert (served.available, world.loaded, world.freed) == ([10], [9, 10], [9])
    assert states(served) == {9: versions.END, 10: versions.AVAILABLE}
    with served.use() as one:
        assert one.servable.version == 10
    with pytest.raises(Failure, match=r'^Servable not found for request: Specific\(m, 9\)$'), served.use(9):
        pass
    assert [line.partition(';')[0] for line in world.said] == [
        'm version 9 is served', 'm version 10 is served', 'm version 9 is no longer served']


def test_a_version_stays_until_its_last_request_is_answered(world):
    world.publish(1)
    served = world.make()
    served.poll()
    running = Future()
    with served.use() as one:
        served.hold(one, running)  # whose client may go before it is done
        world.publish(2)
        served.poll()
        assert (served.available, world.freed, states(served)[1]) == ([2], [], versions.UNLOADING)
    assert world.freed == []
    running.set_result(None)
    assert world.freed == [1]
    assert states(served)[1] == versions.END


def test_several_are_kept_and_labels_name_more(world):
    world.publish(1, 2, 3, 4)
    served = world.make(keep=2, labels={'stable': 1, 'next': 9})
    served.poll()
    assert served.available == [1, 3, 4]
    for given, number in (({}, 4), ({'version': 3}, 3), ({'label': 'stable'}, 1)):
        with served.use(**given) as one:
            assert one.servable.version == number
    for label, match in (('next', r'Specific\(m, 9\)'), ('other', 'Unrecognized servable version label: other')):
        with pytest.raises(Failure, match=match), served.use(label=label):
            pass


def test_a_version_that_cannot_be_loaded_is_told_once_and_the_older_one_goes_on(world):
    world.publish(1)
    served = world.make()
    served.poll()
    world.broken.add(2)
    world.publish(2)
    for _ in range(3):
        served.poll()
    assert (served.available, world.loaded, world.freed) == ([1], [1, 2], [])
    assert world.said[1:] == [f'{world.folder}/2 cannot be loaded: ValueError: torn; version 1 goes on']
    assert states(served) == {1: versions.AVAILABLE, 2: versions.END}
    assert served.statuses()[2].failure.message == 'ValueError: torn'
    world.broken.clear()
    (world.folder / '2' / 'saved_model.pb').write_bytes(b'mended')
    served.poll()
    assert served.available == [2]


def test_a_version_that_goes_is_rolled_back_but_the_last_one_stays(world):
    world.publish(1, 2)
    served = world.make()
    served.poll()
    (world.folder / '2').rename(world.folder / 'withdrawn')
    served.poll()
    assert (served.available, world.freed) == ([1], [2])
    (world.folder / '1').rename(world.folder / 'gone')
    served.poll()
    served.poll()
    assert served.available == [1], 'better than none'
    assert world.said[3:] == [f'{world.folder}: no version is left; version 1 goes on from memory']


def test_a_number_that_is_used_again_is_loaded_again(world):
    world.publish(1)
    served = world.make()
    served.poll()
    with served.use() as old:
        (world.folder / '1').rename(world.folder / 'gone')
        world.publish(1)
        (world.folder / '1' / 'saved_model.pb').write_bytes(b'anoth')
        served.poll()
        (world.folder / '1' / 'saved_model.pb').write_bytes(b'another')
        served.poll()
        assert world.loaded == [1], 'somebody is still at work'
        served.poll()
        served.poll()
        with served.use() as new:
            assert (old.servable.content, new.servable.content) == (b'x', b'another')
        assert (world.loaded, world.freed, states(served)) == ([1, 1], [], {1: versions.AVAILABLE})
    assert (world.freed, served.available, states(served)) == ([1], [1], {1: versions.AVAILABLE})
    assert [line.partition(';')[0] for line in world.said] == [
        'm version 1 is served', 'm version 1 is served, with other files than before']


def test_where_the_other_files_cannot_be_loaded_what_was_served_goes_on(world):
    world.publish(1)
    served = world.make()
    served.poll()
    world.broken.add(1)
    (world.folder / '1' / 'variables').mkdir()
    (world.folder / '1' / 'variables' / 'variables.index').write_bytes(b'broken')
    for _ in range(4):
        served.poll()
    assert (world.loaded, world.freed, states(served)) == ([1, 1], [], {1: versions.AVAILABLE})
    assert world.said[1:] == [f'{world.folder}/1 cannot be loaded: ValueError: torn; version 1 goes on']


def test_a_version_that_is_copied_here_slowly_is_told_once(world):
    world.publish(1)
    (world.folder / '1' / 'saved_model.pb').unlink()
    (world.folder / '1' / 'variables').mkdir()
    served = world.make()
    for number in range(3):
        (world.folder / '1' / 'variables' / f'{number}').touch()
        served.poll()
    assert world.said == [f'{world.folder}/1 cannot be loaded: there is no saved_model.pb in it; no version is served']
    (world.folder / '1' / 'saved_model.pb').touch()
    served.poll()
    assert served.available == [1]


def test_a_share_that_is_away_is_told_once(world, monkeypatch):
    served, looks = world.make(), []

    def fails():
        looks.append(0)
        if len(looks) == 3:
            served.stop()
        raise OSError(116, 'Stale file handle')

    monkeypatch.setattr(served, 'poll', fails)
    served.watch(0.001)
    assert world.said == [f'{world.folder}: Stale file handle; it is looked into again']


def test_what_is_wrong_with_a_version_is_named(world):
    world.publish(7, 8)
    (world.folder / '8' / 'saved_model.pb').unlink()
    (world.folder / '7' / 'metadata.json').write_text('{"files": {"variables/variables.index": {}}}')
    world.broken.add(7)
    world.make().poll()
    assert [line.partition(' cannot be loaded: ')[2] for line in world.said] == [
        'there is no saved_model.pb in it; no version is served',
        f'{world.folder}/7/saved_model.pb is missing or was changed; no version is served']


def test_no_version_yet(world):
    served = world.make()
    served.poll()
    served.poll()
    assert world.said == [f'{world.folder}: no version to serve yet; waiting for one']
    with pytest.raises(Failure, match=r'Latest\(m\)') as caught, served.use():
        pass
    assert caught.value.http_status == 404
    world.publish(1)
    served.poll()
    assert served.available == [1]


def test_closing_frees_all(world):
    world.publish(1, 2)
    served = world.make(keep=2)
    served.poll()
    served.close()
    assert (sorted(world.freed), served.available) == ([1, 2], [])


def test_what_can_be_no_folder_of_versions_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'm' / '1').mkdir(parents=True)
    (tmp_path / 'm' / '1' / 'saved_model.pb').touch()
    (tmp_path / 'm[1]').mkdir()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'run.json').touch()
    assert versions.require_folder(str(tmp_path / 'm')) == tmp_path / 'm'
    for name, problem in (('gone', 'there is no such folder; name the folder'), ('file', 'is no folder'),
                          ('m/1', f'is a version itself; name the folder above it, {tmp_path}/m.'),
                          ('m[1]', 'TensorFlow loads no model from a path'),
                          ('run', 'is a training run; export it first: python -m boardrec.export'),
                          ('.', f'holds no version itself; name one folder below it, such as {tmp_path}/m.')):
        with pytest.raises(UserError) as caught:
            versions.require_folder(str(tmp_path / name))
        assert str(caught.value).startswith(f'--model_dir={tmp_path / name}: {problem}')
