"""What pages say of generated runs, word for word, is tests/golden/PAGE.txt.

Where a change of the words or figures is meant, look at the difference after
`PYTHONPATH=.:tests:tests/reporting python tests/reporting/golden_pages_test.py`, which renews them.
"""

import pathlib
import re
import tempfile

import browser_test
import pages
import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def report_of_three(folder: pathlib.Path) -> pathlib.Path:
    """Three classes, few records, no history."""
    folder.mkdir()
    pages.write(folder, pages.evaluation(pages.predict(25, 3), ['board', 'panel', 'scan'], split='val'))
    return folder / 'index.html'


PAGES = {'report_two': browser_test.report_of_two, 'report_three': report_of_three,
         'comparison': browser_test.comparison_of_two}


def said(make) -> str:
    """The page's words, a line each, with what only somebody who does not see it is told."""
    with tempfile.TemporaryDirectory() as folder:
        text = make(pathlib.Path(folder, 'page')).read_text()
    described = re.findall(r'<svg role="img" aria-label="([^"]*)"', text)
    return '\n'.join([pages.check(text).visible, '', 'Descriptions of plots:', *described, ''])


@pytest.mark.parametrize('name', PAGES)
def test_a_page_says_what_it_said(name):
    assert said(PAGES[name]) == (GOLDEN / f'{name}.txt').read_text()


if __name__ == '__main__':
    for name, make in PAGES.items():
        (GOLDEN / f'{name}.txt').write_text(said(make))
