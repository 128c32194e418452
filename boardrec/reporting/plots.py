"""The report's plots: numbers in, the text of an SVG element out.

Each is small, so that a phone shows it at full size, and fits light and dark pages: no background, text and axes in
currentColor, data in two mid-tones that the colour-blind tell apart. Text stays text. The same numbers give the same
bytes, and several plots share a page because each has ids of its own.
"""

from collections.abc import Callable, Mapping, Sequence
import html
import io
import math
import re
import warnings

from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
import numpy as np
from sklearn import metrics as sk

from boardrec.reporting.metrics import wilson_interval

BLUE, ORANGE = '#3a87d0', '#d97a1f'  # at least 3:1 against white and against near-black (WCAG 2.2, 1.4.11)
SMALL_MATRIX = 6  # classes up to which a confusion matrix has the size of the other plots
_SIZE = 5.0, 3.9  # inches of 72 SVG units
_MATRIX_CLASSES = 40  # above, cells are pixels of one image: numbers would be unreadable and the report huge
_LABELLED_CLASSES = 80
_BINS = 10
_INK = '#010203'  # stands for currentColor, which matplotlib cannot say
_STYLE = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'boardrec', 'font.size': 11, 'text.parse_math': False,
    'axes.unicode_minus': False, 'text.color': _INK, 'axes.edgecolor': _INK, 'axes.labelcolor': _INK,
    'xtick.color': _INK, 'ytick.color': _INK,
    'axes.grid': True, 'grid.color': _INK, 'grid.alpha': 0.13, 'grid.linewidth': 0.8, 'axes.axisbelow': True,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': 0.8, 'xtick.major.width': 0.8,
    'ytick.major.width': 0.8, 'legend.frameon': False, 'lines.linewidth': 2, 'lines.solid_capstyle': 'round',
    'figure.facecolor': 'none', 'axes.facecolor': 'none', 'savefig.facecolor': 'none',
}
_SLANTED = {'rotation': 50, 'ha': 'right', 'rotation_mode': 'anchor'}
_REFERENCE = {'color': _INK, 'alpha': 0.75, 'linewidth': 1.3, 'linestyle': (0, (1, 2))}


def learning_curve(history: Sequence[Mapping], quantity: str) -> str:
    """`quantity` ('loss' or 'accuracy') and its val_ twin over the epochs, the best epoch marked.

    history: rows with epoch, QUANTITY, val_QUANTITY and val_loss; a value may be None.
    """
    epochs, best = _column(history, 'epoch'), best_epoch(history)

    def draw(axes: Axes) -> None:
        axes.plot(epochs, _column(history, quantity), '--', color=ORANGE, label='training', **_dots(epochs))
        axes.plot(epochs, _column(history, f'val_{quantity}'), color=BLUE, label='validation', **_dots(epochs))
        if best is not None:
            axes.axvline(best, **_REFERENCE, label=f'best epoch, {best}')
        _epoch_axis(axes, quantity)
        axes.legend()

    return _svg(quantity, f'Training and validation {quantity} over {len(history)} epochs', draw)


def learning_rate_curve(history: Sequence[Mapping]) -> str:
    """The learning rate over the epochs. history: rows with epoch and learning_rate."""
    epochs = _column(history, 'epoch')

    def draw(axes: Axes) -> None:
        axes.plot(epochs, _column(history, 'learning_rate'), color=BLUE, **_dots(epochs))
        axes.set_ylim(bottom=0)
        _epoch_axis(axes, 'learning rate')
        axes.ticklabel_format(axis='y', scilimits=(-2, 3))

    return _svg('rate', f'Learning rate over {len(history)} epochs', draw)


def best_epoch(history: Sequence[Mapping]) -> int | None:
    """The epoch (1-based) with the lowest validation loss, the first of equals; None if there is none."""
    losses = _column(history, 'val_loss')
    return int(history[np.nanargmin(losses)]['epoch']) if np.isfinite(losses).any() else None


def confusion_matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Counts [C, C] (rows = true class) with the share of their row in per cent; deeper blue is a larger share."""
    counts = np.asarray(counts)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    small = classes <= SMALL_MATRIX
    side = 0.42 * classes + 1.6 if classes <= _MATRIX_CLASSES else 13
    size = 13 if small else 9 if counts.max() < 10_000 else 7

    def draw(axes: Axes) -> None:
        if classes > _MATRIX_CLASSES:
            pixels = np.tile(to_rgba(BLUE), (classes, classes, 1))
            pixels[..., 3] = 0.8 * np.sqrt(shares)  # the root, so that one pixel of a few per cent still shows
            axes.imshow(pixels, extent=(0, classes, classes, 0), interpolation='nearest')
        for row, column in np.argwhere((counts > 0) | small) if classes <= _MATRIX_CLASSES else ():
            axes.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], color=BLUE,
                      alpha=0.04 + 0.5 * shares[row, column], linewidth=0)
            axes.text(column + 0.5, row + 0.5, f'{counts[row, column]}', size=size, weight='bold', ha='center',
                      va='bottom')
            axes.text(column + 0.5, row + 0.54, f'{shares[row, column]:.0%}', size=size - 2, ha='center', va='top')
        axes.set(xlim=(0, classes), ylim=(classes, 0), xlabel='predicted', ylabel='true')
        axes.tick_params(length=0, labelsize=11 if classes <= _MATRIX_CLASSES else 7)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        names = [_label(name, 14 if small else 24) for name in class_names] if classes <= _LABELLED_CLASSES else []
        places = np.arange(len(names)) + 0.5
        level = small and max(map(len, names)) * classes < 40
        axes.set_xticks(places, names, **{} if level else _SLANTED)
        axes.set_yticks(places, names)

    size_inches = _SIZE if small else (side + 0.8, side)
    return _svg('confusion', f'Confusion matrix of {classes} classes', draw, size_inches)


def roc_curve(is_positive: np.ndarray, probabilities: np.ndarray) -> str:
    """True against false positive rate over all thresholds. Both [N]; needs records of both kinds."""
    false_rate, true_rate, _ = sk.roc_curve(is_positive, probabilities)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_REFERENCE, label='chance')
        axes.plot(false_rate, true_rate, color=BLUE, label=f'AUC {sk.auc(false_rate, true_rate):.3f}')
        chosen = probabilities >= 0.5
        axes.plot(chosen[~is_positive].mean(), chosen[is_positive].mean(), 'o', color=ORANGE, label='threshold 0.5')
        _unit_axes(axes, 'false positive rate', 'true positive rate')
        axes.legend(loc='lower right')

    return _svg('roc', 'ROC curve: true positive rate against false positive rate', draw)


def precision_recall_curve(is_positive: np.ndarray, probabilities: np.ndarray) -> str:
    """Precision against recall over all thresholds. Both [N]; needs records of both kinds."""
    precision, recall, _ = sk.precision_recall_curve(is_positive, probabilities, drop_intermediate=True)

    def draw(axes: Axes) -> None:
        axes.axhline(is_positive.mean(), **_REFERENCE, label='chance')
        axes.plot(recall, precision, color=BLUE, drawstyle='steps-post',
                  label=f'average precision {sk.average_precision_score(is_positive, probabilities):.3f}')
        chosen = probabilities >= 0.5
        if chosen.any():
            axes.plot(chosen[is_positive].mean(), is_positive[chosen].mean(), 'o', color=ORANGE, label='threshold 0.5')
        _unit_axes(axes, 'recall', 'precision')
        axes.legend(loc='lower left')

    return _svg('pr', 'Precision against recall', draw)


def probability_histogram(groups: Mapping[str, np.ndarray], xlabel: str) -> str:
    """Records in 20 equal bins of probability, for each of two groups {legend: probabilities [n]}."""
    def draw(axes: Axes) -> None:
        steps = [axes.hist(values, bins=np.linspace(0, 1, 21), histtype='stepfilled', facecolor=(colour, 0.3),
                           edgecolor=colour, linewidth=1.6, linestyle=line)[2][0]
                 for values, colour, line in zip(groups.values(), (BLUE, ORANGE), ('-', '--'), strict=True)]
        axes.set(xlim=(0, 1), xlabel=_label(xlabel, 40), ylabel='records')
        axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=6))
        axes.margins(y=0.22)  # the legend's room
        # Given, not found by matplotlib, which leaves out labels that begin with an underscore.
        axes.legend(steps, [f'{_label(name, 24)} ({len(values)})' for name, values in groups.items()],
                    loc='upper center', ncols=2)

    return _svg('histogram', f'Histogram of {xlabel}', draw)


def reliability_diagram(probabilities: np.ndarray, outcomes: np.ndarray, xlabel: str, ylabel: str) -> str:
    """How often what was said with probability p came true: `outcomes` bool [N] averaged over ten bins of p [N].

    Bars are the shares' 95 % intervals, since a bin may hold few records.
    """
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    filled = np.unique(bins)
    said = [probabilities[bins == i].mean() for i in filled]
    true = np.array([outcomes[bins == i].mean() for i in filled])
    low, high = np.transpose([wilson_interval(outcomes[bins == i].sum(), (bins == i).sum()) for i in filled])

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_REFERENCE, label='perfectly calibrated')
        axes.errorbar(said, true, yerr=np.abs([true - low, high - true]), color=BLUE, marker='o', elinewidth=1.2,
                      capsize=3, label='this model, 95 % interval')
        _unit_axes(axes, _label(xlabel, 40), _label(ylabel, 30))
        axes.legend()

    return _svg('reliability', f'Reliability diagram: {ylabel} against {xlabel}', draw)


def _svg(name: str, description: str, draw: Callable[[Axes], None], size: tuple[float, float] = _SIZE) -> str:
    with warnings.catch_warnings(), style.context(['default', _STYLE]):
        # The browser has a font for what matplotlib's own lacks.
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')
        figure = Figure(figsize=size, layout='constrained')
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format='svg', metadata=dict.fromkeys(['Creator', 'Date', 'Format', 'Type']))
    svg = buffer.getvalue()
    # Inside a tag no attribute has a bare '<' or '>'; text, such as a class's name, stays as it is.
    svg = re.sub('<[^>]*>', lambda tag: _portable(tag[0], name), svg[svg.index('<svg'):])
    svg = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg, count=2)  # so that a font size is in CSS pixels
    return svg.replace('<svg', f'<svg role="img" aria-label="{html.escape(_plain(description))}"', 1)


def _portable(tag: str, name: str) -> str:
    """One tag with ids of this plot's own and the page's colour for ink."""
    if tag.startswith('<!--'):
        return ''
    return re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', tag).replace(_INK, 'currentColor')


def _column(history: Sequence[Mapping], key: str) -> np.ndarray:
    return np.array([math.nan if row.get(key) is None else row[key] for row in history], float)


def _dots(epochs: np.ndarray) -> dict:
    """Dots while they do not run together; without one a single epoch would be invisible."""
    return {'marker': 'o', 'markersize': 4} if len(epochs) <= 30 else {}


def _epoch_axis(axes: Axes, ylabel: str) -> None:
    axes.set(xlabel='epoch', ylabel=ylabel)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))


def _unit_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), xlabel=xlabel, ylabel=ylabel)


def _plain(text: str) -> str:
    """`text` that every font engine and XML reader takes: no control characters, no surrogates."""
    return ''.join(c if c.isprintable() else '\ufffd' for c in text)


def _label(text: str, length: int) -> str:
    text = _plain(text)
    return text if len(text) <= length else text[:length - 1] + '…'
