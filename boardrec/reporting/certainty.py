"""Plots of how sure a model is, and whether it may be: reliability diagram and histograms of probability."""

from collections.abc import Mapping, Sequence
import math

import numpy as np

from boardrec.reporting import calibration, chart
from boardrec.reporting.chart import Chart, Frame
from boardrec.reporting.metrics import HALF, wilson_interval

_BARS = 20
_HEIGHT = 250.0  # of all rows, in CSS pixels, where there is room
_LEAST = 48.0  # of a row


def reliability_diagram(said: np.ndarray, outcomes: np.ndarray, xlabel: str, ylabel: str, *,
                        before: np.ndarray | None = None) -> Chart:
    """How often what was said with probability p came true: `outcomes` bool [N] averaged over bins of p [N].

    The bins are those of the calibration error. Bars are the shares' 95 % intervals, since a bin may hold few records;
    below, how many each holds. `before`: the probabilities without the temperature, drawn beside.
    """
    frame = Frame((0.0, 1.0), (0.0, 1.0), height=350, bottom=82)
    parts = [chart.axes(frame._replace(bottom=82), '', ylabel), chart.line(frame, (0, 1), (0, 1), 'soft dots')]
    rows = _binned(said, outcomes)
    if before is not None:
        parts += [chart.dot(frame, p, share, 'ring ink', f'without temperature: said {p:.2f}, true {share:.2f}', 4)
                  for p, share, _ in _binned(before, outcomes)]
    parts.append(chart.line(frame, [p for p, *_ in rows], [share for _, share, _ in rows], 'c0'))
    for p, share, count in rows:
        low, high = wilson_interval(round(share * count), count)
        parts.append(chart.line(frame, (p, p), (low, high), 'c0 thin'))
        parts.append(chart.dot(frame, p, share, 'c0', f'said {p:.3f}, true {share:.3f} [{low:.3f}, {high:.3f}], '
                               f'{count:,} records', 3.5))
    parts += _counts_below(frame, said)
    parts.append(chart.text(frame.width / 2, frame.height - 6, chart.shorten(xlabel, 48), 'middle', 'label'))
    key = [('dot c0', 'this model, with 95 % intervals'), *([('ring ink', 'without temperature')]
                                                             if before is not None else []),
           ('dots soft', 'as said'), ('bar c0', 'records')]
    words = '; '.join(f'said {p:.2f}, true {share:.2f}' for p, share, _ in rows)
    return Chart(chart.svg(frame, f'Reliability diagram: {words}', parts), key)


def histograms(groups: Mapping[str, np.ndarray], xlabel: str, *, threshold: float | None = None) -> Chart:
    """Records in 20 equal bins of probability: a row a group {name: probabilities [n]}, each to its own scale.

    Heights are square roots of counts, because the few records in the middle are those to look at.
    """
    top, tall = 12.0, max(_LEAST, _HEIGHT / max(2, len(groups)))
    height = top + tall * len(groups) + 42
    whole = Frame((0.0, 1.0), (0.0, 1.0), height=height, left=12, top=top)
    parts = [chart.axes(whole, xlabel, '', yticks=())]
    for i, (name, values) in enumerate(groups.items()):
        counts = np.bincount(np.minimum((values * _BARS).astype(int), _BARS - 1), minlength=_BARS)
        frame = whole._replace(y=(0.0, math.sqrt(max(1, counts.max())) * tall / (tall - 20)), top=top + tall * i,
                               bottom=height - top - tall * (i + 1))
        parts.append(chart.line(frame, (0, 1), (0, 0), 'soft thin'))
        parts += [chart.box(frame, (b / _BARS, (b + 1) / _BARS), (0, math.sqrt(counts[b])), f'c{i % chart.SERIES} bar',
                            f'{name}, {b / _BARS:.2f} to {(b + 1) / _BARS:.2f}: {counts[b]:,} records')
                  for b in np.flatnonzero(counts)]
        parts.append(chart.text(whole.left + 4, top + tall * i + 13, f'{chart.shorten(name, 30)} ({len(values):,})'))
        parts.append(chart.text(whole.width - whole.right - 4, top + tall * i + 13, f'at most {counts.max():,}', 'end',
                                'small'))
    key = []
    for value, mark in [(threshold, 'dash ink'), *([(HALF, 'dots ink')] if threshold != HALF else [])]:
        if threshold is not None:
            parts.append(chart.line(whole, (value, value), (0, 1), mark))
            key.append((mark, f'threshold {value:.3g}'))
    words = '; '.join(f'{name}: {len(values):,} records' + (f', median {np.median(values):.2f}' if len(values) else '')
                      for name, values in groups.items())
    return Chart(chart.svg(whole, f'Histograms of the {xlabel}. {words}', parts), key)


def without_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """What [N, C] were before softmax(ln(p) / temperature)."""
    raised = probabilities ** temperature
    return raised / raised.sum(axis=1, keepdims=True)


def _binned(said: np.ndarray, outcomes: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean probability, share that is true, records) of each bin that is not empty."""
    bins = calibration.bins(said)
    return [(float(said[bins == i].mean()), float(outcomes[bins == i].mean()), int((bins == i).sum()))
            for i in np.unique(bins)]


def _counts_below(frame: Frame, said: np.ndarray) -> Sequence[str]:
    counts = np.bincount(calibration.bins(said), minlength=calibration.BINS)
    strip = frame._replace(y=(0.0, float(counts.max())), top=frame.height - 58, bottom=24)
    edges = np.linspace(0, 1, calibration.BINS + 1)
    return [chart.box(strip, (edges[i], edges[i + 1]), (0, counts[i]), 'c0 bar',
                      f'{edges[i]:.2f} to {edges[i + 1]:.2f}: {counts[i]:,} records') for i in np.flatnonzero(counts)]
