"""Each plot is well-formed, fits light and dark pages, repeats to the byte and shares a page with the others."""

import functools
import importlib
import re
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from boardrec.reporting import plots

HISTORY = [{'epoch': i + 1, 'loss': 1 / (i + 1), 'accuracy': 0.5 + i / 20, 'val_loss': abs(i - 4) + 1.0,
            'val_accuracy': 0.6, 'learning_rate': 2e-4 / 2 ** i} for i in range(8)]
TRUTH = np.array([False, True] * 20)
P = np.clip(np.random.default_rng(0).normal(size=40) * 0.2 + 0.35 + 0.3 * TRUTH, 0, 1)
PLOTS = {
    'loss': lambda: plots.learning_curve(HISTORY, 'loss'),
    'accuracy': lambda: plots.learning_curve(HISTORY, 'accuracy'),
    'rate': lambda: plots.learning_rate_curve(HISTORY),
    'confusion': lambda: plots.confusion_matrix([[1234, 3], [0, 77]], ['no', 'yes']),
    'roc': lambda: plots.roc_curve(TRUTH, P),
    'pr': lambda: plots.precision_recall_curve(TRUTH, P),
    'histogram': lambda: plots.probability_histogram({'no': P[~TRUTH], 'yes': P[TRUTH]}, 'probability of yes'),
    'reliability': lambda: plots.reliability_diagram(P, TRUTH, 'probability of yes', 'share yes'),
}


@functools.cache
def drawn(name: str) -> str:
    return PLOTS[name]()


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter('{http://www.w3.org/2000/svg}text')]


def ids(svg: str) -> list[str]:
    return re.findall(r'\bid="([^"]*)"', svg)


@pytest.mark.parametrize('name', PLOTS)
def test_a_plot_fits_any_page(name):
    svg = drawn(name)
    root = ElementTree.fromstring(svg)
    assert root.get('role') == 'img' and root.get('aria-label')
    assert texts(svg)
    colours = set(re.findall('#[0-9a-f]{6}', svg))
    assert colours <= {plots.BLUE, plots.ORANGE} and 'currentColor' in svg  # no black, white or stand-in
    assert not re.search('fill: (black|white)', svg)
    assert not re.search(r'(href="|url\()(?!#)', svg) and '<script' not in svg and '<metadata' not in svg
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) <= set(ids(svg))
    assert svg == PLOTS[name]()


def test_plots_share_a_page_and_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    names = [name for plot in PLOTS for name in ids(drawn(plot))]
    PLOTS['roc']()
    assert len(set(names)) == len(names) > 50
    assert dict(matplotlib.rcParams) == before


def test_the_users_own_matplotlib_style_changes_nothing():
    svg = drawn('roc')
    with matplotlib.rc_context({'lines.color': 'red', 'font.family': 'serif', 'axes.facecolor': 'pink'}):
        assert PLOTS['roc']() == svg


def test_pyplot_with_its_global_figures_is_never_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)  # makes an import fail
    monkeypatch.delitem(sys.modules, 'boardrec.reporting.plots')
    assert importlib.import_module('boardrec.reporting.plots').roc_curve(TRUTH, P) == drawn('roc')


@pytest.mark.parametrize('colour', [plots.BLUE, plots.ORANGE])
@pytest.mark.parametrize('page', ['#ffffff', '#14171b'])
def test_colours_stand_out_on_both_pages(colour, page):
    def luminance(code: str) -> float:  # WCAG 2.2, relative luminance
        rgb = np.array([int(code[i:i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    dark, light = sorted([luminance(colour), luminance(page)])
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_the_best_epoch_has_the_lowest_validation_loss():
    assert plots.best_epoch(HISTORY) == 5
    assert 'best epoch, 5' in texts(drawn('accuracy'))
    assert plots.best_epoch([{'epoch': 3, 'val_loss': 1.0}, {'epoch': 4, 'val_loss': 1.0}]) == 3
    assert plots.best_epoch([{'epoch': 1, 'val_loss': None}]) is None


@pytest.mark.parametrize('history', [HISTORY[:1], [{**row, 'val_loss': None, 'val_accuracy': None} for row in HISTORY],
                                     [{**row, 'val_loss': float('nan')} for row in HISTORY]])
def test_short_histories_and_gaps_are_drawn(history):
    for svg in plots.learning_curve(history, 'loss'), plots.learning_rate_curve(history):
        ElementTree.fromstring(svg)


def test_the_confusion_matrix_shows_counts_and_shares_of_the_row():
    assert {'1234', '3', '77', '100%', '0%', 'no', 'yes', 'true', 'predicted'} <= set(texts(drawn('confusion')))
    assert {'25%', '75%'} <= set(texts(plots.confusion_matrix([[1, 3], [0, 0]], ['no', 'yes'])))


@pytest.mark.parametrize('classes', [1, 7, 40, 41, 81])
def test_confusion_matrices_of_any_size(classes):
    counts = np.diag(np.arange(classes) + 900)
    shown = texts(plots.confusion_matrix(counts, [f'class {i}' for i in range(classes)]))
    assert ('900' in shown) == (classes <= 40)
    assert (f'class {classes - 1}' in shown) == (classes <= 80)


def test_odd_class_names_are_shown_as_text():
    names = ['$x^2$', '_hidden', '<b>&"', '日本語', 'caf\udce9\n', 'x' * 99, '#010203', ' id="a"']
    shown = texts(plots.confusion_matrix(np.eye(8, dtype=int), names))
    assert {'$x^2$', '_hidden', '<b>&"', '日本語', 'caf\ufffd\ufffd', '#010203', 'id="a"'} <= {t.strip() for t in shown}
    assert 'x' * 99 not in shown
    legend = texts(plots.probability_histogram({'_a': P, '$b$': P}, 'p'))
    assert {'_a (40)', '$b$ (40)'} <= set(legend)


def test_sure_predictions_belong_to_the_last_bin():
    sure = plots.reliability_diagram(np.array([0.9375, 1]), np.array([False, True]), 'said', 'true')
    assert sure == plots.reliability_diagram(np.full(2, 0.96875), np.array([False, True]), 'said', 'true')


def test_extreme_probabilities_are_drawn():
    truth, p = np.array([False, True, True]), np.array([0.0, 1.0, 0.0])
    assert 'AUC 0.750' in texts(plots.roc_curve(truth, p))
    assert 'threshold 0.5' not in texts(plots.precision_recall_curve(truth, np.zeros(3)))
    ElementTree.fromstring(plots.reliability_diagram(p[:1], truth[:1], 'said', 'true'))
    ElementTree.fromstring(plots.probability_histogram({'right': p, 'wrong': p[:0]}, 'p'))
