"""What a request holds, and for how long: its version, its bytes, its place in the queue."""

import asyncio
import types

import numpy as np
import pytest

pytest.importorskip('grpc')
from slow_model import METRICS, Model, wait_for_calls  # noqa: E402

from boardrec.serving.batching import Batcher  # noqa: E402
from boardrec.serving.failure import Failure  # noqa: E402
from boardrec.serving.service import Service, Spec  # noqa: E402
from boardrec.serving.versions import Versions  # noqa: E402


@pytest.fixture
def world(tmp_path):
    """A service of one version, whose model waits until it may run; and what was freed."""
    (tmp_path / '1').mkdir()
    (tmp_path / '1' / 'saved_model.pb').touch()
    model, freed = Model(), []
    model.version, model.close = 1, lambda: freed.append(1)
    model.signature.check = lambda inputs: len(inputs['x'])
    batcher = Batcher(max_batch_size=4, wait_seconds=0.0, in_flight=1, max_queued=100, metrics=METRICS)
    versions = Versions(tmp_path, name='m', load=lambda *_: model, say=lambda _: None)
    versions.poll()
    yield types.SimpleNamespace(model=model, freed=freed, versions=versions, batcher=batcher, service=Service(
        versions, batcher, request_seconds=60.0, max_held_bytes=100))
    model.may_run.release(100)
    batcher.close()


async def ask(world, *numbers):
    with world.service.use(Spec('m')) as served:
        return (await world.service.run(served, world.model.signature, {'x': np.array(numbers)}))['y'].tolist()


def test_a_version_is_held_until_its_rows_are_done_though_their_client_has_gone(world):
    async def leave():
        task = asyncio.create_task(ask(world, 1))
        await asyncio.to_thread(wait_for_calls, world.model, 1)
        waiting = asyncio.create_task(ask(world, 2))
        await asyncio.sleep(0.05)
        for one in (task, waiting):
            one.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
        world.versions.close()

    asyncio.run(leave())
    assert world.freed == [], 'it still runs'
    world.model.may_run.release(10)
    world.batcher.close()
    assert world.freed == [1]
    assert world.model.calls == [[1]], 'what had not begun did not run'


def test_parts_of_a_request_are_put_together_in_order(world):
    world.model.may_run.release(10)
    assert asyncio.run(ask(world, *range(10))) == list(range(0, 20, 2))


def test_the_bytes_of_all_requests_are_bounded(world):
    with world.service.hold(60), world.service.hold(40):
        with pytest.raises(Failure, match='requests of 100 bytes are here already and 1 more') as caught:
            world.service.hold(1).__enter__()
        assert caught.value.http_status == 429
    with world.service.hold(200) as add:
        add(200)  # alone, or it could never be taken
    with world.service.hold(60), world.service.hold(20) as add:
        with pytest.raises(Failure, match='requests of 80 bytes are here already and 21 more'):
            add(21)
        add(20)
    with world.service.hold(100):
        pass  # all of it was given back
