"""The matrix holds counts and shares where they belong; pairs come by count."""

import re

import numpy as np

from boardrec.reporting import confusion


def test_two_classes():
    table = confusion.matrix([[9, 1], [0, 0]], ['no', '<b>']).html
    assert re.findall(r'<td[^>]*><b>(\d+)</b>([\d.%]+)', table) == [
        ('9', '90.0%'), ('1', '10.0%'), ('0', '0.0%'), ('0', '0.0%')]
    assert re.findall(r'<td( class=right)? style="--s:([\d.]+)"', table) == [
        (' class=right', '0.900'), ('', '0.100'), ('', '0.000'), (' class=right', '0.000')]
    assert 'title="no taken for &lt;b&gt;"' in table and '<b>no' not in table
    assert table.count('scope="col"') == 3 and table.count('scope="row"') == 2


def test_many_classes_hold_counts_alone():
    counts = np.diag(np.arange(40) + 1)
    table = confusion.matrix(counts.tolist(), [f'class number {i}' for i in range(40)]).html
    assert 'matrix many' in table and '%' not in table and table.count('<td') == 1600
    assert confusion.pairs(counts.tolist(), [str(i) for i in range(40)]) == ''


def test_most_confused_pairs():
    counts = np.full((30, 30), 5)
    counts[3, 7], counts[7, 3], counts[2, 2] = 99, 50, 10_000
    cells = re.findall(r'<th scope="row">(\w+)</th><td class="words">(\w+)</td><td class="number">([\d,]+)',
                       confusion.pairs(counts.tolist(), [f'c{i}' for i in range(30)]))
    assert cells[:3] == [('c3', 'c7', '99'), ('c7', 'c3', '50'), ('c0', 'c1', '5')] and len(cells) == 20
