"""A page's parts: what is escaped, what is named, what a bar shows."""

import re

from pages import check
import pytest

from boardrec.reporting import page
from boardrec.reporting.page import Concern, Markup, Section


def test_a_whole_page(tmp_path):
    page.write(tmp_path / 'a.html', title='T<', eyebrow='E&', lead='L"', footer='F', sections=[
        Section('One & two', page.paragraph('1 < 2')), Section('Three', page.table(['a', 'b'], [('x<', 1234)], 'T'))],
        concerns=[Concern('bad', 'see --on_leak=fail now'), Concern('good', 'fine')])
    text = (tmp_path / 'a.html').read_text()
    seen = check(text)
    assert seen.headings == [1, 2, 2] and seen.ids == ['one-two', 'three']
    assert 'see <code class="flag">--on_leak=fail</code> now' in text
    assert re.findall('aria-label="(warning|note|good)"', text) == ['warning', 'good']
    assert {'T<', 'E&', 'L"', '1 < 2', 'x<', '1,234'} <= set(seen.words)


def test_numbers_are_not_broken_and_words_are():
    made = page.facts({'Outcome': {'loss': 5.98e-11, 'epochs': 3, 'name': 'a-b'}})
    assert '<td class="number">5.98e-11</td>' in made and '<td class="number">3</td>' in made
    assert '<td>a-b</td>' in made
    assert '<td class="words number">-2.5</td>' in page.table(['', 'A'], [('rate', -2.5)], 'T', words=[1])


@pytest.mark.parametrize(('value', 'words'), [
    (None, '–'), (True, 'true'), (12345, '12,345'), (0.123456789, '0.12346'), ('<a>', '&lt;a&gt;'),
    (Markup('<b>'), '<b>')])
def test_values_as_words(value, words):
    assert page.text(value) == words


def test_a_strip_shows_value_and_interval():
    rects = re.findall(r'x="([\d.]+)" y="\d" width="([\d.]+)"', page.strip(0.5, (0.4, 0.8)))
    assert rects == [('0', '200'), ('80.0', '80.0'), ('98.5', '3')]
    cut = re.findall(r'x="([\d.]+)"', page.strip(7.0, (-9, 9), (-1, 1)))
    assert cut == ['0', '99.2', '0.0', '197.0'], 'the place of 0 is marked, and nothing lies outside'
    assert page.strip(None, None) == '' and 'width="0.0"' in page.strip(0.2, None)


def test_a_page_appears_whole(tmp_path):
    (tmp_path / 'a.html').write_text('before')
    with pytest.raises(AttributeError):
        page.write(tmp_path / 'a.html', title='', eyebrow='', lead='', footer='', concerns=(), sections=[None])
    assert (tmp_path / 'a.html').read_text() == 'before' and len(list(tmp_path.iterdir())) == 1
