"""What is taken for what: the confusion matrix as a table, and the pairs of classes that are confused most."""

from collections.abc import Sequence

import numpy as np

from boardrec.reporting import chart, page
from boardrec.reporting.page import Markup

READABLE = 50  # classes of a matrix; more are listed by pairs alone
SMALL = 8  # classes up to which cells hold shares too
_MOST_PAIRS = 20


def matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> Markup:
    """Counts [C, C] (rows = true class), with the share of their row where there is room; deeper is a larger share."""
    shares = _shares(counts)
    small = len(counts) <= SMALL
    head = ''.join(f'<th scope="col">{page.text(_name(name, small))}</th>' for name in class_names)
    rows = ''.join(
        f'<tr><th scope="row">{page.text(_name(name, small))}</th>'
        + ''.join(_cell(count, share, i == j, small, f'{name} taken for {class_names[j]}')
                  for j, (count, share) in enumerate(zip(row, shares[i], strict=True)))
        + '</tr>' for i, (name, row) in enumerate(zip(class_names, counts, strict=True)))
    return Markup('<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
                  f'<table class="matrix{"" if small else " many"}"><thead><tr><th scope="col">true \\ predicted</th>'
                  f'{head}</tr></thead><tbody>{rows}</tbody></table></div>')


def pairs(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """A table of the errors that are made most, the most frequent first; empty if there is none."""
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind='stable')[:min(_MOST_PAIRS, np.count_nonzero(wrong))]
    shares = _shares(counts)
    rows = [(class_names[i], class_names[j], int(wrong[i, j]), f'{shares[i, j]:.1%}')
            for i, j in zip(*np.unravel_index(places, wrong.shape), strict=True)]
    return page.table(['true', 'taken for', 'records', 'of its class'], rows, 'Most confused classes',
                      words=[1]) if rows else ''


def _cell(count: int, share: float, right: bool, small: bool, title: str) -> str:
    opened = f'<td{" class=right" if right else ""} style="--s:{share:.3f}" title="{page.text(chart.plain(title))}">'
    if small:
        return f'{opened}<b>{count:,}</b>{share:.1%}</td>'
    return f'{opened}{count if count else ""}</td>'


def _shares(counts: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.asarray(counts)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _name(name: str, small: bool) -> str:
    return chart.shorten(name, 24 if small else 18)
