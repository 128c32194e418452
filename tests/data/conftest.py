"""Record sets to damage and to convert again."""

import pathlib
import shutil

from conversions import touch
import pytest

from boardrec.data import records


@pytest.fixture
def copy(record_set_path, tmp_path):
    """A copy of the shared record set, to damage."""
    return pathlib.Path(shutil.copytree(record_set_path, tmp_path / 'records'))


@pytest.fixture
def rows(record_set_path):
    """The undamaged index."""
    return list(records.read_index(record_set_path))


@pytest.fixture
def converted(tmp_path, image_folder, convert_here):
    """(images, records, run): a converted folder and a function that converts it again."""
    images, out = image_folder({'a': 6, 'b': 6}, folder=tmp_path / 'images'), tmp_path / 'out'
    touch(images, 'a/broken.png', 'loose.txt')

    def run(*, input_dir=images, **others):
        return convert_here(input_dir, out, **{'splits': 'train:0.7,test:0.3', **others})

    run()
    return images, out, run
