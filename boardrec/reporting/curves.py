"""Plots of a training and of what a threshold can reach: learning curves, ROC and precision-recall curves."""

from collections.abc import Mapping, Sequence
import math

import numpy as np
from sklearn import metrics as sk

from boardrec.reporting import chart
from boardrec.reporting.chart import Chart, Frame
from boardrec.reporting.metrics import HALF

MOST_CURVES = 6  # classes of one plot
_MOST_DOTS = 40  # epochs
_UNIT = (0.0, 1.0)


def learning_curve(history: Sequence[Mapping], quantity: str) -> Chart:
    """`quantity` ('loss' or 'accuracy') and its val_ twin over the epochs, with best epoch and changes of the rate.

    history: rows with epoch, QUANTITY, val_QUANTITY, val_loss and learning_rate; a value may be None.
    """
    epochs = column(history, 'epoch')
    series = [(f'val_{quantity}', 'validation', 'c0', ''), (quantity, 'training', 'c1', ' dash')]
    values = {name: column(history, name) for name, *_ in series}
    frame = Frame(_epoch_limits(epochs), _limits(np.concatenate(list(values.values())), top=quantity == 'accuracy'))
    parts, key, best = [chart.axes(frame, 'epoch', quantity, xticks=_epoch_ticks(epochs))], [], best_epoch(history)
    for epoch, factor in rate_changes(history):
        parts.append(_upright(frame, epoch - 0.5, 'soft dots', f'learning rate times {factor:.3g} from epoch {epoch}'))
    if best is not None:
        parts.append(_upright(frame, best, 'ink dash', f'best epoch, {best}'))
    for name, label, colour, style in series:
        parts.append(chart.line(frame, epochs, values[name], colour + style))
        parts += [chart.dot(frame, x, y, colour, f'epoch {x:.0f}: {label} {quantity} {y:.4f}')
                  for x, y in zip(epochs, values[name], strict=True)
                  if len(epochs) <= _MOST_DOTS and math.isfinite(y)]
        key.append((f'{"dash" if style else "line"} {colour}', label))
    key += [('dash ink', f'best epoch, {best}')] if best is not None else []
    key += [('dots soft', 'rate lowered')] if rate_changes(history) else []
    at_best = '' if best is None else f'; at the best epoch, {best}, ' + ' and '.join(
        f'{label} {values[name][epochs == best][0]:.4f}' for name, label, *_ in series)
    return Chart(chart.svg(frame, f'{quantity} over {len(epochs)} epochs{at_best}', parts), key)


def learning_curves(histories: Mapping[str, Sequence[Mapping]], quantity: str) -> Chart:
    """`quantity` and its val_ twin of two runs, by name, in one plot; histories as `learning_curve` takes.

    A run without a history is left out; the other keeps its colour.
    """
    rows = [row for history in histories.values() for row in history]
    epochs = np.unique(column(rows, 'epoch'))
    values = np.concatenate([column(rows, name) for name in (f'val_{quantity}', quantity)])
    frame = Frame(_epoch_limits(epochs), _limits(values, top=quantity == 'accuracy'))
    parts, key, said = [chart.axes(frame, 'epoch', quantity, xticks=_epoch_ticks(epochs))], [], []
    for i, (name, history) in enumerate(histories.items()):
        if not history:
            continue
        xs, best, short = column(history, 'epoch'), best_epoch(history), chart.shorten(name, 24)
        at_best = []
        styles = _STYLES_OF_RUNS[i]
        for column_name, label, style in zip((quantity, f'val_{quantity}'), ('training', 'validation'), styles,
                                             strict=True):
            ys = column(history, column_name)
            parts.append(chart.line(frame, xs, ys, f'c{i}{style}'))
            key.append((f'{style.strip() or "line"} c{i}', f'{short}: {label}'))
            at_best.append(f'{label} {ys[xs == best][0]:.4f}' if best is not None else label)
        if best is None:
            said.append(f'{name}: {len(history)} epochs')
            continue
        y = column(history, f'val_{quantity}')[xs == best][0]
        if math.isfinite(y):
            parts.append(chart.diamond(frame, best, y, f'diamond c{i}', f'{name}: best epoch, {best}: {y:.4f}'))
            key.append((f'diamond c{i}', f'{short}: best epoch, {best}'))
        said.append(f'{name}: {len(history)} epochs, at the best, {best}, {" and ".join(at_best)}')
    return Chart(chart.svg(frame, f'{quantity} over epochs; {"; ".join(said)}', parts), key)


def epoch_curve(history: Sequence[Mapping], name: str, label: str) -> Chart:
    """One column of the history over the epochs, from 0."""
    epochs, values = column(history, 'epoch'), column(history, name)
    top = float(np.nanmax(values, initial=0)) or 1.0
    frame = Frame(_epoch_limits(epochs), (0.0, 1.08 * top))
    parts = [chart.axes(frame, 'epoch', label, xticks=_epoch_ticks(epochs),
                        yformat=_small if top < 0.01 else None),
             chart.line(frame, epochs, values, 'c0')]
    parts += [chart.dot(frame, x, y, 'c0', f'epoch {x:.0f}: {y:.4g}') for x, y in zip(epochs, values, strict=True)
              if len(epochs) <= _MOST_DOTS and math.isfinite(y)]
    said = f' from {np.nanmin(values):.4g} to {np.nanmax(values):.4g}' if np.isfinite(values).any() else ''
    return Chart(chart.svg(frame, f'{label} over {len(epochs)} epochs{said}', parts), [])


def best_epoch(history: Sequence[Mapping]) -> int | None:
    """The epoch (1-based) with the lowest validation loss, the first of equals; None if there is none."""
    losses = column(history, 'val_loss')
    return int(history[np.nanargmin(losses)]['epoch']) if np.isfinite(losses).any() else None


def rate_changes(history: Sequence[Mapping]) -> list[tuple[int, float]]:
    """(epoch, factor) where the learning rate fell in a step; empty if it changes in most epochs, as cosine's does."""
    rates = column(history, 'learning_rate')
    with np.errstate(divide='ignore', invalid='ignore'):
        factors = rates[1:] / rates[:-1]
    steps = [(int(history[i + 1]['epoch']), float(factor)) for i, factor in enumerate(factors) if factor < 0.95]
    return steps if 3 * len(steps) <= len(rates) else []


def roc_curve(truths: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray], areas: Mapping[str, float], *,
              threshold: float | None = None) -> Chart:
    """True against false positive rate over all thresholds, for each class against the rest.

    truths bool [N] and scores [N], by the class's name; each needs records of both kinds. A threshold is marked, and
    0.5 beside it, on a single class's curve. areas: what the key says.
    """
    frame = _unit_frame()
    parts = [chart.axes(frame, 'false positive rate', 'true positive rate'),
             chart.line(frame, _UNIT, _UNIT, 'soft dots')]
    key = []
    for i, (name, truth) in enumerate(truths.items()):
        false_rate, true_rate, _ = sk.roc_curve(truth, scores[name])
        parts.append(chart.line(frame, false_rate, true_rate, f'c{i}{_STYLES[i]}'))
        key.append((f'{_STYLES[i].strip() or "line"} c{i}', f'{chart.shorten(name, 24)}: area {areas[name]:.3f}'))
    said = f'ROC curve, area {", ".join(f"{areas[name]:.3f} for {name}" for name in truths)}'
    if threshold is not None:
        (name, truth), = truths.items()
        for value, mark, draw in _thresholds(threshold):
            taken = scores[name] >= np.float32(value)
            x, y = taken[~truth].mean(), taken[truth].mean()
            words = f'threshold {value:.3g}: finds {y:.3f}, false alarms {x:.3f}'
            parts.append(draw(frame, x, y, mark, words))
            key.append((mark, words))
            said += f'; {words}'
    return Chart(chart.svg(frame, said, parts), [*key, ('dots soft', 'chance')])


def precision_recall_curve(truths: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray],
                           areas: Mapping[str, float], *, threshold: float | None = None) -> Chart:
    """Precision against recall over all thresholds; takes what `roc_curve` takes."""
    frame, key = _unit_frame(), []
    parts = [chart.axes(frame, 'recall', 'precision')]
    for i, (name, truth) in enumerate(truths.items()):
        precision, recall, _ = sk.precision_recall_curve(truth, scores[name], drop_intermediate=True)
        # From the highest threshold: each step has the precision at its end, as the area counts it.
        xs, ys = chart.stairs(recall[::-1], precision[::-1])
        parts.append(chart.line(frame, xs[1:], ys[1:], f'c{i}{_STYLES[i]}'))
        key.append((f'{_STYLES[i].strip() or "line"} c{i}', f'{chart.shorten(name, 24)}: area {areas[name]:.3f}'))
    said = f'Precision against recall, area {", ".join(f"{areas[name]:.3f} for {name}" for name in truths)}'
    if threshold is not None:
        (name, truth), = truths.items()
        parts.insert(1, chart.line(frame, _UNIT, (truth.mean(),) * 2, 'soft dots'))
        for value, mark, draw in _thresholds(threshold):
            taken = scores[name] >= np.float32(value)
            if not taken.any():
                key.append((mark, f'threshold {value:.3g}: takes none'))
                continue
            x, y = taken[truth].mean(), truth[taken].mean()
            words = f'threshold {value:.3g}: recall {x:.3f}, precision {y:.3f}'
            parts.append(draw(frame, x, y, mark, words))
            key.append((mark, words))
            said += f'; {words}'
        key.append(('dots soft', 'chance'))
    return Chart(chart.svg(frame, said, parts), key)


def column(history: Sequence[Mapping], key: str) -> np.ndarray:
    """A column of the history, NaN where there is nothing."""
    return np.array([math.nan if row.get(key) is None else row[key] for row in history], float)


_STYLES_OF_RUNS = [(' dash', ''), (' dots', ' long')]  # of training and validation
_STYLES = ['', ' dash', ' dots', ' long', '', ' dash']  # of lines, for whoever does not see their colours


def _thresholds(threshold: float) -> list:
    marks = [(threshold, 'diamond c1', lambda *args: chart.diamond(*args))]
    if threshold != HALF:
        marks.append((HALF, 'ring ink', lambda *args: chart.dot(*args, radius=4.5)))
    return marks


def _upright(frame: Frame, x: float, mark: str, title: str) -> str:
    across = frame.across(x)
    return (f'<path class="line {mark}" d="M{across:.1f} {frame.top:g}V{frame.height - frame.bottom:g}">'
            f'<title>{title}</title></path>')


def _small(value: float) -> str:
    return f'{value:.2g}'.replace('e-0', 'e-') if value else '0'


def _unit_frame() -> Frame:
    return Frame(_UNIT, _UNIT, height=330)


def _epoch_limits(epochs: np.ndarray) -> tuple[float, float]:
    low, high = float(epochs.min()), float(epochs.max())
    return low - 0.5, high + 0.5


def _epoch_ticks(epochs: np.ndarray) -> list[float]:
    found = [tick for tick in chart.ticks(float(epochs.min()), float(epochs.max()), 6) if tick == round(tick)]
    return found if len(found) > 1 or len(epochs) == 1 else [float(epochs.min()), float(epochs.max())]


def _limits(values: np.ndarray, *, top: bool) -> tuple[float, float]:
    """Limits with some room; of accuracies never above 1."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return (max(0.0, low - room) if low >= 0 else low - room), (min(1.0, high + room) if top else high + room)
