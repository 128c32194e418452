"""Thumbnails of every kind of image, and heat maps that lie where the heat is."""

import re

import numpy as np
from pages import picture
from PIL import Image
import pytest

from boardrec.reporting import pictures


@pytest.mark.parametrize(('mode', 'kind'), [('L', 'JPEG'), ('CMYK', 'JPEG'), ('RGBA', 'PNG'), ('LA', 'PNG'),
                                            ('P', 'PNG'), ('1', 'PNG'), ('I;16', 'PNG')])
def test_thumbnails_of_every_mode(mode, kind):
    small = pictures.small(picture(0, mode, kind))
    assert small.mode == 'RGB' and small.size == (176, 132)
    assert pictures.data_uri(small).startswith('data:image/jpeg;base64,')


def test_heat_lies_where_it_was():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 2.0
    drawn = np.asarray(pictures.overlay(Image.new('RGB', (80, 40), (90, 90, 90)), heat), int)
    assert drawn.shape == (40, 80, 3)
    assert drawn[4, 74].sum() > drawn[20, 20].sum() + 200, 'bright where it is hot'
    assert np.ptp(drawn[25:, :40].reshape(-1, 3), axis=0).max() < 12, 'and even where it is not'


def test_no_heat_is_no_division():
    drawn = np.asarray(pictures.overlay(Image.new('RGB', (8, 8), (90, 90, 90)), np.zeros((2, 2), np.float32)))
    assert np.ptp(drawn.reshape(-1, 3), axis=0).max() == 0


def test_lightness_rises_with_heat():
    colours = pictures._colours(np.linspace(0, 1, 50)[None])[0]
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all() and pictures.GRADIENT.count('rgb(') == 7


def test_a_picture_that_cannot_be_read_is_left_out():
    png = picture(1, 'L', 'PNG')
    broken = [OSError('gone'), ValueError('no such record'), b'', b'no image', picture(1)[:700], png[:60],
              png[:36] + bytes([png[36] ^ 255]) + png[37:]]  # the last: SyntaxError

    def read(number: int) -> bytes:
        if isinstance(broken[number], Exception):
            raise broken[number]
        return broken[number]

    for number in range(len(broken)):
        html = pictures.shown(number, 'a', read, np.ones((2, 2), np.float32), 'b')
        assert 'no picture' in html and '<img' not in html
    both = pictures.shown(3, 'a<', picture, np.ones((2, 2), np.float32), 'b"')
    assert re.findall('alt="([^"]*)"', both) == ['a&lt;', 'b&quot;']
    assert 'single' in pictures.shown(3, 'a', picture)
