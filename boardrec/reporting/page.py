"""What the pages are made of: one HTML file, which needs no network, no script and no other file.

All text from outside is escaped here, except Markup, which this package made; the page's own policy forbids the
browser to load anything.
"""

from collections.abc import Iterable, Mapping, Sequence
import html
import os
import re
import string
from typing import NamedTuple

from boardrec.data import files
from boardrec.reporting import chart
from boardrec.reporting.chart import Chart
from boardrec.reporting.style import CSS


class Markup(NamedTuple):
    """HTML that is taken as it is; everything else is escaped."""

    html: str


class Section(NamedTuple):
    """A part of the page with a heading."""

    title: str
    body: str


class Concern(NamedTuple):
    """A sentence that a reader must not miss."""

    level: str  # bad, note or good
    words: str


def write(path: os.PathLike | str, *, title: str, eyebrow: str, lead: str, concerns: Sequence[Concern],
          sections: Sequence[Section], footer: str) -> None:
    """Writes a page atomically."""
    content = _PAGE.substitute(
        style=CSS, title=text(title), eyebrow=text(eyebrow), lead=text(lead), footer=text(footer),
        concerns=''.join(f'<li>{_ICONS[level]}<span>{_with_flags(words)}</span></li>' for level, words in concerns),
        nav=''.join(f'<li><a href="#{_anchor(section.title)}">{text(section.title)}</a></li>' for section in sections),
        sections='\n'.join(
            f'<section aria-labelledby="{_anchor(section.title)}">\n<h2 id="{_anchor(section.title)}">'
            f'{text(section.title)}</h2>\n{section.body}\n</section>' for section in sections))
    with files.atomic_write(path) as file:
        # A byte of a path that is not UTF-8 is a surrogate here; \udce9 tells more than a question mark.
        file.write(content.encode('utf-8', 'backslashreplace'))


def text(value: object) -> str:
    """Anything as HTML text."""
    if isinstance(value, Markup):
        return value.html
    return html.escape(as_words(value))


def as_words(value: object) -> str:
    """A value as a person reads it."""
    if value is None:
        return '–'
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, int):
        return f'{value:,}'
    return f'{value:.5g}' if isinstance(value, float) else str(value)


def number(value: float | None, digits: int = 3) -> str:
    """A metric."""
    return '–' if value is None else f'{value:.{digits}f}'


def interval(pair: Sequence[float] | None, digits: int = 3) -> str:
    """A 95 % interval."""
    return '' if pair is None else f'{pair[0]:.{digits}f} to {pair[1]:.{digits}f}'


def with_interval(value: float | None, pair: Sequence[float] | None, digits: int = 3) -> Markup:
    """A metric and below it its interval."""
    below = f'<span class="aside">{interval(pair, digits)}</span>' if pair else ''
    return Markup(f'{number(value, digits)}{below}')


def strip(value: float | None, pair: Sequence[float] | None, limits: tuple[float, float] = (0.0, 1.0)) -> str:
    """A bar of all that a metric can be with its value and interval; what it shows is said in figures beside it."""
    if value is None:
        return ''
    low, high = limits

    def place(number: float) -> float:
        return 200 * min(1.0, max(0.0, (number - low) / (high - low)))

    first, last = (place(value), place(value)) if pair is None else map(place, pair)
    middle = min(198.5, max(1.5, place(value)))
    zero = f'<rect class="zero" x="{place(0) - 0.75:.1f}" y="0" width="1.5" height="8"/>' if low < 0 < high else ''
    return ('<svg class="strip" viewBox="0 0 200 8" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect x="0" y="3" width="200" height="2"/>{zero}'
            f'<rect class="span" x="{first:.1f}" y="1" width="{last - first:.1f}" height="6"/>'
            f'<rect class="value" x="{middle - 1.5:.1f}" y="0" width="3" height="8"/></svg>')


def tiles(entries: Iterable[tuple[str, str, str, Sequence[str]]]) -> str:
    """Key figures: (name, figure, strip, notes)."""
    return '<dl class="tiles">' + ''.join(
        f'<div><dt>{text(name)}</dt><dd><b>{text(figure)}</b>{bar}'
        + ''.join(f'<small>{text(note)}</small>' for note in notes if note) + '</dd></div>'
        for name, figure, bar, notes in entries) + '</dl>'


def figure(title: str, words: str, what: Chart | Markup, *, wide: bool = False) -> str:
    """A plot, or a table that stands for one, with its caption and key."""
    body, key = (what.html, []) if isinstance(what, Markup) else (f'<div class="plot">{what.svg}</div>', what.key)
    entries = ''.join(f'<li>{_swatch(mark)}<span>{text(meaning)}</span></li>' for mark, meaning in key)
    return (f'<figure{" class=wide" if wide else ""}><figcaption><b>{text(title)}</b> {text(words)}</figcaption>{body}'
            + (f'<ul class="key">{entries}</ul>' if key else '') + '</figure>')


def grid(figures: Iterable[str]) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="grid">{"".join(figures)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], label: str, *, words: Sequence[int] = ()) -> str:
    """A table that scrolls in its box; the first cell of a row is its heading, columns `words` hold sentences."""
    head = ''.join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = ''.join(_row(row, words) for row in rows)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}"><table><thead><tr>{head}</tr>'
            f'</thead><tbody>{body}</tbody></table></div>')


def facts(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Small tables of names and values, {caption: {name: value}}."""
    return '<div class="facts">' + ''.join(
        f'<table><caption>{text(caption)}</caption><tbody>{"".join(_row(pair, ()) for pair in pairs.items())}</tbody>'
        '</table>' for caption, pairs in tables.items() if pairs) + '</div>'


def details(summary: str, body: str) -> str:
    """What is shown when it is asked for, and on paper."""
    return f'<details><summary>{text(summary)}</summary>{body}</details>'


def paragraph(words: object) -> str:
    """A paragraph."""
    return f'<p>{text(words)}</p>'


def heading(words: str) -> str:
    """A heading inside a section."""
    return f'<h3>{text(words)}</h3>'


def commands(lines: Iterable[str]) -> str:
    """Command lines to copy."""
    return '<pre tabindex="0"><code>' + '\n'.join(text(chart.plain(line)) for line in lines) + '</code></pre>'


def _with_flags(words: str) -> str:
    """Words with what is to be typed kept in one piece."""
    return re.sub(r'--\w+(=\w+)?', r'<code class="flag">\g<0></code>', text(words))


def _row(cells: Sequence[object], words: Sequence[int]) -> str:
    first, *rest = cells
    return f'<tr><th scope="row">{text(first)}</th>' + ''.join(
        f'<td{_class_of(cell, i in words)}>{text(cell)}</td>' for i, cell in enumerate(rest, 1)) + '</tr>'


def _class_of(cell: object, words: bool) -> str:
    # A browser would break 6e-11 after its hyphen.
    is_number = not isinstance(cell, Markup) and re.fullmatch(r'-?[\d.,]+(e[-+]?\d+)?', as_words(cell))
    names = [*(['words'] if words else []), *(['number'] if is_number else [])]
    return f' class="{" ".join(names)}"' if names else ''


def _anchor(title: str) -> str:
    return re.sub('[^a-z]+', '-', title.lower()).strip('-')


def _swatch(mark: str) -> str:
    kind, _, colour = mark.partition(' ')
    shape = {'dot': f'<circle class="{colour}" cx="11" cy="7" r="4"/>',
             'ring': '<circle class="ring ink" cx="11" cy="7" r="4.5"/>',
             'diamond': f'<path class="diamond {colour}" d="M11 0.5l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>',
             'bar': f'<rect class="bar {colour}" x="4" y="1" width="14" height="12"/>'}.get(kind)
    style = '' if kind == 'line' else f' {kind}'
    return ('<svg viewBox="0 0 22 14" aria-hidden="true">'
            + (shape or f'<path class="line {colour}{style}" d="M1 7H21"/>') + '</svg>')


def _icon(level: str, name: str, inside: str) -> str:
    return (f'<svg class="{level}" viewBox="0 0 24 24" role="img" aria-label="{name}" fill="none" '
            f'stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">{inside}</svg>')


_ICONS = {
    'bad': _icon('bad', 'warning', '<path d="M12 3.5L22 20.5H2zM12 10v4.5M12 17.6v0.1"/>'),
    'note': _icon('note', 'note', '<circle cx="12" cy="12" r="9.5"/><path d="M12 11v5.5M12 7.4v0.1"/>'),
    'good': _icon('good', 'good', '<circle cx="12" cy="12" r="9.5"/><path d="M7.5 12.5l3 3l6 -6.5"/>')}

_PAGE = string.Template('''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<p class="eyebrow">$eyebrow</p>
<h1>$title</h1>
<p class="lead">$lead</p>
<ul class="concerns">$concerns</ul>
<nav aria-label="Sections"><ul>$nav</ul></nav>
</header>
<main>
$sections
</main>
<footer>$footer</footer>
</body>
</html>
''')
