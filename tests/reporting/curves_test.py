"""Curves show what scikit-learn computes, the thresholds where they are, and epochs as they were."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn import metrics as sk

from boardrec.reporting import chart, curves

HISTORY = [{'epoch': i + 1, 'loss': 1 / (i + 1), 'accuracy': 0.5 + i / 20, 'val_loss': abs(i - 4) + 1.0,
            'val_accuracy': 0.6, 'learning_rate': 2e-4 if i < 5 else 1e-4} for i in range(8)]
TRUTH = np.array([False, True] * 20)
SCORES = np.round(np.clip(np.random.default_rng(0).normal(size=40) * 0.2 + 0.35 + 0.3 * TRUTH, 0, 1), 2)


def places(svg, number=0):
    """The points of a coloured line, in the data's units of a plot from 0 to 1."""
    path = re.findall(rf'class="line c{number}[^"]*" d="([^"]*)"', svg)[0]
    frame = chart.Frame((0, 1), (0, 1), height=330)
    width, height = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    return np.array([((float(x) - frame.left) / width, 1 - (float(y) - frame.top) / height)
                     for x, y in re.findall(r'[ML]([\d.-]+) ([\d.-]+)', path)])


def test_roc_is_scikit_learns():
    drawn = curves.roc_curve({'yes': TRUTH}, {'yes': SCORES}, {'yes': 0.75}, threshold=0.4)
    points = places(drawn.svg)
    expected = np.transpose(sk.roc_curve(TRUTH, SCORES)[:2])
    np.testing.assert_allclose(points, expected, atol=0.001)
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(sk.roc_auc_score(TRUTH, SCORES), abs=0.003)


def test_precision_recall_has_the_area_of_average_precision():
    drawn = curves.precision_recall_curve({'yes': TRUTH}, {'yes': SCORES}, {'yes': 0.75}, threshold=0.4)
    points = places(drawn.svg)
    area = (np.diff(points[:, 0]) * points[1:, 1]).sum() + points[0, 0] * points[0, 1]
    assert points[0, 0] == 0 and points[-1, 0] == pytest.approx(1)
    assert area == pytest.approx(sk.average_precision_score(TRUTH, SCORES), abs=0.005)


def test_the_chosen_threshold_stands_beside_one_half():
    for draw, words in ((curves.roc_curve, 'threshold 0.4: finds {r:.3f}, false alarms {f:.3f}'),
                        (curves.precision_recall_curve, 'threshold 0.4: recall {r:.3f}, precision {p:.3f}')):
        drawn = draw({'yes': TRUTH}, {'yes': SCORES}, {'yes': 0.75}, threshold=0.4)
        taken = SCORES >= np.float32(0.4)
        words = words.format(r=taken[TRUTH].mean(), f=taken[~TRUTH].mean(), p=TRUTH[taken].mean())
        assert ('diamond c1', words) in drawn.key
        assert words in ElementTree.fromstring(drawn.svg).get('aria-label')
        assert [mark for mark, _ in drawn.key] == ['line c0', 'diamond c1', 'ring ink', 'dots soft']
        half = draw({'yes': TRUTH}, {'yes': SCORES}, {'yes': 0.75}, threshold=0.5)
        assert 'ring ink' not in dict(half.key)
    none = curves.precision_recall_curve({'yes': TRUTH}, {'yes': SCORES / 3}, {'yes': 0.75}, threshold=0.9)
    assert ('diamond c1', 'threshold 0.9: takes none') in none.key


def test_several_classes_differ_by_more_than_colour():
    truths = {name: TRUTH for name in 'abcd'}
    drawn = curves.roc_curve(truths, {name: SCORES for name in 'abcd'}, dict.fromkeys('abcd', 0.5))
    assert [mark for mark, _ in drawn.key] == ['line c0', 'dash c1', 'dots c2', 'long c3', 'dots soft']


def test_learning_curves_mark_best_epoch_and_changes_of_the_rate():
    drawn = curves.learning_curve(HISTORY, 'loss')
    assert ('dash ink', 'best epoch, 5') in drawn.key and ('dots soft', 'rate lowered') in drawn.key
    titles = [element.text for element in ElementTree.fromstring(drawn.svg).iter('title')]
    assert 'learning rate times 0.5 from epoch 6' in titles and 'epoch 5: validation loss 1.0000' in titles
    assert curves.rate_changes(HISTORY) == [(6, 0.5)]
    cosine = [{**row, 'learning_rate': 1 / row['epoch']} for row in HISTORY]
    assert curves.rate_changes(cosine) == []
    assert 'dots soft' not in dict(curves.learning_curve(cosine, 'loss').key)


def test_learning_curves_of_several_runs_share_axes_and_differ_by_colour():
    drawn = curves.learning_curves({'A': HISTORY, 'B': HISTORY[:3]}, 'loss')
    assert [mark for mark, _ in drawn.key] == ['dash c0', 'line c0', 'diamond c0', 'dots c1', 'long c1', 'diamond c1']
    assert ('diamond c0', 'A: best epoch, 5') in drawn.key and ('diamond c1', 'B: best epoch, 3') in drawn.key
    lines = [re.search(rf'class="line {mark}" d="M([^L]*)', drawn.svg)[1] for mark in ('c0', 'c1 long')]
    assert lines[0] == lines[1], 'epoch 1 with the same loss is the same place'
    said = ElementTree.fromstring(drawn.svg).get('aria-label')
    assert 'A: 8 epochs, at the best, 5, training 0.2000 and validation 1.0000; B: 3 epochs' in said
    alone = curves.learning_curves({'A': [], 'B': HISTORY[:3]}, 'loss')
    assert alone.key == drawn.key[3:], 'B keeps its colour'


@pytest.mark.parametrize('history', [
    HISTORY[:1], [{'epoch': 1, 'loss': None, 'val_loss': None, 'accuracy': None, 'val_accuracy': None}],
    [{**row, 'val_loss': float('nan')} for row in HISTORY], HISTORY * 40])
def test_odd_histories(history):
    history = [{**row, 'epoch': i + 1} for i, row in enumerate(history)]
    for drawn in (curves.learning_curve(history, 'loss'), curves.learning_curve(history, 'accuracy'),
                  curves.epoch_curve(history, 'learning_rate', 'rate'),
                  curves.learning_curves({'A': history, 'B': HISTORY}, 'accuracy')):
        assert 'nan' not in drawn.svg.partition('aria-label')[2].partition('>')[2]
        ElementTree.fromstring(drawn.svg)
    assert curves.best_epoch(history) in (None, 1, 5)
