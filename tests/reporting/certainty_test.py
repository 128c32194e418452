"""Reliability and histograms count what they say."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from boardrec.reporting import certainty

SAID = np.array([0.03, 0.05, 0.5, 0.52, 0.53, 0.97, 1.0])
TRUE = np.array([0, 0, 1, 0, 1, 1, 1], bool)


def titles(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter('title')]


def test_bins_of_the_reliability_diagram():
    drawn = certainty.reliability_diagram(SAID, TRUE, 'probability', 'share')
    assert [title.partition(' [')[0] for title in titles(drawn.svg) if title.startswith('said')] == [
        'said 0.040, true 0.000', 'said 0.517, true 0.667', 'said 0.985, true 1.000']
    assert [title for title in titles(drawn.svg) if title.endswith('records') and ' to ' in title[:9]] == [
        '0.00 to 0.07: 2 records', '0.47 to 0.53: 3 records', '0.93 to 1.00: 2 records']
    both = certainty.reliability_diagram(SAID, TRUE, 'probability', 'share', before=SAID / 2)
    assert ('ring ink', 'without temperature') in both.key and 'ring ink' not in dict(drawn.key)
    assert both.svg.count('<circle class="ring ink"') == 3


def test_histograms_count_by_group():
    drawn = certainty.histograms({'no': SAID[~TRUE], '<yes>': SAID[TRUE], 'none': SAID[:0]}, 'probability',
                                 threshold=0.4)
    assert [title for title in titles(drawn.svg)] == [
        'no, 0.00 to 0.05: 1 records', 'no, 0.05 to 0.10: 1 records', 'no, 0.50 to 0.55: 1 records',
        '<yes>, 0.50 to 0.55: 2 records', '<yes>, 0.95 to 1.00: 2 records']
    assert drawn.key == [('dash ink', 'threshold 0.4'), ('dots ink', 'threshold 0.5')]
    assert certainty.histograms({'a': SAID}, 'probability').key == []
    assert certainty.histograms({'a': SAID}, 'p', threshold=0.5).key == [('dash ink', 'threshold 0.5')]


def test_heights_are_square_roots_to_a_scale_of_each_row():
    drawn = certainty.histograms({'a': np.array([0.1, 0.1, 0.1, 0.1, 0.9]), 'b': np.array([0.9])}, 'probability')
    four, one, own = (float(height) for height in re.findall(r'height="([\d.]+)"', drawn.svg))
    assert four / one == pytest.approx(2, abs=0.01) and own == four


@pytest.mark.parametrize('temperature', [0.5, 2.0])
def test_the_temperature_is_taken_back(temperature):
    before = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    scaled = before ** (1 / temperature)
    scaled /= scaled.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(certainty.without_temperature(scaled, temperature), before, atol=1e-5)
