"""Plots' parts: where things lie, round numbers, escaped words, and not more points than can be seen."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from boardrec.reporting import chart
from boardrec.reporting.chart import Frame

FRAME = Frame((0, 10), (0, 2), width=110, height=60, left=10, right=0, top=10, bottom=10)


def points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r'[ML]([\d.-]+) ([\d.-]+)', path)]


def test_places():
    assert (FRAME.across(0), FRAME.across(5), FRAME.across(10)) == (10, 60, 110)
    assert (FRAME.down(0), FRAME.down(1), FRAME.down(2)) == (50, 30, 10)
    assert 'cx="60" cy="30" r="3"' in chart.dot(FRAME, 5, 1, 'c0')
    assert 'x="10" y="30" width="50" height="20"' in chart.box(FRAME, (5, 0), (0, 1), 'c0')


@pytest.mark.parametrize(('low', 'high', 'wanted'), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.13, 0.51, [0.2, 0.3, 0.4, 0.5]), (1, 10, [2, 4, 6, 8, 10]), (3, 3, [3]),
    (0, 1234, [0, 250, 500, 750, 1000]), (0, 9.7e-5, [0, 2e-5, 4e-5, 6e-5, 8e-5])])
def test_round_numbers(low, high, wanted):
    assert chart.ticks(low, high) == pytest.approx(wanted)


def test_a_line_breaks_where_there_is_nothing():
    line = chart.line(FRAME, [0, 1, 2, 3], [0, 1, np.nan, 2], 'c1 dash')
    assert line == '<path class="line c1 dash" d="M10 50L20 30M40 10"/>'


def test_many_points_keep_their_extremes():
    random = np.random.default_rng(0)
    xs, ys = np.sort(random.random(50_000)) * 10, random.random(50_000)
    ys[777], ys[40_000] = 2, 0
    drawn = points(chart.line(FRAME, xs, ys, 'c0'))
    assert len(drawn) < 1000
    assert min(y for _, y in drawn) == 10 and max(y for _, y in drawn) == 50
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)


def test_stairs_have_the_value_of_the_next_point():
    xs, ys = chart.stairs([0, 1, 3], [9, 5, 2])
    assert list(zip(xs, ys, strict=True)) == [(0, 9), (0, 5), (1, 5), (1, 2), (3, 2)]


def test_words_are_escaped_and_whole_plots_well_formed():
    evil = '<script>"&\'\udce9\x00'
    svg = chart.svg(FRAME, evil, [chart.axes(FRAME, evil, evil), chart.text(1, 2, evil),
                                  chart.dot(FRAME, 1, 1, 'c0', evil), chart.diamond(FRAME, 1, 1, 'c0', evil)])
    root = ElementTree.fromstring(svg)
    assert root.get('role') == 'img' and root.get('aria-label') == '<script>"&\'\ufffd\ufffd'
    assert '<script' not in svg
    assert chart.shorten('a' * 30, 10) == 'a' * 9 + '…'
