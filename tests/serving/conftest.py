"""Models for a server, and a server that tests share."""

import pytest
import served_models
from servers import is_ready, publish, running, wait_until


@pytest.fixture(scope='session')
def saved_versions(tmp_path_factory):
    """Folders 1 and 2: versions that differ in nothing but the version that they tell."""
    folder = tmp_path_factory.mktemp('saved')
    for version in (1, 2):
        served_models.save(folder, version)
    return folder


@pytest.fixture
def model_dir(saved_versions, tmp_path):
    """A folder `boardrec` with version 1."""
    folder = tmp_path / 'boardrec'
    folder.mkdir()
    publish(saved_versions / '1', folder / '1')
    return folder


@pytest.fixture(scope='session')
def served(saved_versions, tmp_path_factory):
    """A server of version 1 that tests share; they leave it as it is."""
    folder = tmp_path_factory.mktemp('models') / 'boardrec'
    folder.mkdir()
    publish(saved_versions / '1', folder / '1')
    with running(folder, max_request_mib=1, request_seconds=3.0, max_queued=8192) as found:
        wait_until(lambda: is_ready(found))
        yield found
