"""What plots are drawn with: numbers in, the text of an SVG element out.

A plot takes its colours from the page's style sheet, by class names, so that it fits light and dark pages and paper:
`c0` to `c7` are series, `ink` is text's colour, `soft` a reference's. What a mark stands for is told beside the plot,
by its key, and where the mouse rests on it, by its <title>. The same numbers give the same bytes.
"""

from collections.abc import Callable, Iterable, Sequence
import html
import math
from typing import NamedTuple

import numpy as np

SERIES = 8  # colours that the style sheet has
_MOST_POINTS = 1000  # of a line; more are no longer told apart


class Chart(NamedTuple):
    """A plot and what its marks mean."""

    svg: str
    key: list[tuple[str, str]]  # (line, dash, dots, dot, ring, diamond or bar, with a colour; its meaning)


class Frame(NamedTuple):
    """Where data lie in a plot. Sizes are in CSS pixels of a plot as wide as a phone."""

    x: tuple[float, float]  # the data's limits
    y: tuple[float, float]
    width: float = 360
    height: float = 270
    left: float = 56
    right: float = 12
    top: float = 12
    bottom: float = 42

    def across(self, x: float) -> float:
        """A value's distance from the left."""
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - self.right)

    def down(self, y: float) -> float:
        """A value's distance from the top."""
        return self.height - self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (
            self.height - self.top - self.bottom)


def svg(frame: Frame, description: str, parts: Iterable[str]) -> str:
    """The whole plot; `description` is what somebody is told who cannot see it."""
    return (f'<svg role="img" aria-label="{html.escape(plain(description))}" '
            f'viewBox="0 0 {_px(frame.width)} {_px(frame.height)}">{"".join(parts)}</svg>')


def axes(frame: Frame, xlabel: str, ylabel: str, *, xticks: Sequence[float] | None = None,
         yticks: Sequence[float] | None = None, yformat: Callable[[float], str] | None = None) -> str:
    """Grid, numbers and labels; round numbers where no ticks are given."""
    xs = ticks(*frame.x) if xticks is None else xticks
    ys = ticks(*frame.y) if yticks is None else yticks
    left, right, top, bottom = frame.left, frame.width - frame.right, frame.top, frame.height - frame.bottom
    lines = [f'M{_px(left)} {_px(frame.down(y))}H{_px(right)}' for y in ys]
    lines += [f'M{_px(frame.across(x))} {_px(top)}V{_px(bottom)}' for x in xs]
    say = yformat or number
    return ''.join([
        f'<path class="lines" d="{"".join(lines)}"/>',
        *(text(frame.across(x), bottom + 16, number(x), 'middle') for x in xs),
        *(text(left - 6, frame.down(y) + 4, say(y), 'end') for y in ys),
        text((left + right) / 2, frame.height - 6, shorten(xlabel, 48), 'middle', 'label'),
        text(-(top + bottom) / 2, 12, shorten(ylabel, 36), 'middle', 'label', turn=True)])


def line(frame: Frame, xs: Sequence[float], ys: Sequence[float], mark: str) -> str:
    """A line through the points, broken at NaN."""
    points = [(frame.across(x), frame.down(y)) if math.isfinite(x) and math.isfinite(y) else None
              for x, y in zip(xs, ys, strict=True)]
    path, pen = [], 'M'
    for point in _thinned(points):
        if point is not None:
            path.append(f'{pen}{_px(point[0])} {_px(point[1])}')
        pen = 'M' if point is None else 'L'
    return f'<path class="line {mark}" d="{"".join(path)}"/>'


def stairs(xs: Sequence[float], ys: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The points of a step function that has the value of the next point since the last: (x0, y0), (x0, y1), ..."""
    xs, ys = np.asarray(xs, float), np.asarray(ys, float)
    return np.repeat(xs, 2)[:-1], np.concatenate([ys[:1], np.repeat(ys[1:], 2)])


def dot(frame: Frame, x: float, y: float, mark: str, title: str = '', radius: float = 3) -> str:
    """A round mark."""
    return (f'<circle class="{mark}" cx="{_px(frame.across(x))}" cy="{_px(frame.down(y))}" r="{_px(radius)}">'
            f'{_title(title)}</circle>')


def diamond(frame: Frame, x: float, y: float, mark: str, title: str = '') -> str:
    """A mark that stands out from round ones."""
    across, down, size = frame.across(x), frame.down(y), 6.5
    return (f'<path class="{mark}" d="M{_px(across)} {_px(down - size)}l{size} {size}l-{size} {size}l-{size} -{size}z">'
            f'{_title(title)}</path>')


def box(frame: Frame, xs: tuple[float, float], ys: tuple[float, float], mark: str, title: str = '') -> str:
    """A bar between two values of each axis."""
    left, right = sorted(map(frame.across, xs))
    top, bottom = sorted(map(frame.down, ys))
    return (f'<rect class="{mark}" x="{_px(left)}" y="{_px(top)}" width="{_px(right - left)}" '
            f'height="{_px(bottom - top)}">{_title(title)}</rect>')


def text(x: float, y: float, words: str, anchor: str = 'start', mark: str = '', *, turn: bool = False) -> str:
    """Words at a place of the plot; turned ones read upwards."""
    turned = ' transform="rotate(-90)"' if turn else ''
    named = f' class="{mark}"' if mark else ''
    return f'<text x="{_px(x)}" y="{_px(y)}" text-anchor="{anchor}"{named}{turned}>{html.escape(plain(words))}</text>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough))
    first = math.ceil(low / step - 1e-9)
    return [float(f'{i * step:.10g}') for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as short as it can be said in four digits."""
    return f'{value:,.0f}' if abs(value) >= 1000 and value == round(value) else f'{value:.4g}'


def shorten(words: str, length: int) -> str:
    """Words cut to a length."""
    words = plain(words)
    return words if len(words) <= length else words[:length - 1] + '…'


def plain(words: str) -> str:
    """What any browser shows: no control characters, no surrogates."""
    return ''.join(c if c.isprintable() else '\ufffd' for c in words)


def _thinned(points: list[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """Of many points the first, last, highest and lowest of each half pixel's width; points ascend or descend."""
    if len(points) <= _MOST_POINTS:
        return points
    columns: dict[int, list[int]] = {}
    for i, point in enumerate(points):
        columns.setdefault(-i - 1 if point is None else round(2 * point[0]), []).append(i)
    kept = {i for members in columns.values() for i in (
        members[0], members[-1], *((min(members, key=lambda i: points[i][1]), max(members, key=lambda i: points[i][1]))
                                   if points[members[0]] else ()))}
    return [points[i] for i in sorted(kept)]


def _title(words: str) -> str:
    return f'<title>{html.escape(plain(words))}</title>' if words else ''


def _px(value: float) -> str:
    return f'{value:.1f}'.removesuffix('.0')
