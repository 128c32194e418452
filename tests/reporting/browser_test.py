"""The pages in headless Chromium: on a phone and a wide screen, in light and dark, and on paper.

`PYTHONPATH=.:tests:tests/reporting python tests/reporting/browser_test.py` renews tests/golden/report.png, which README
shows.
"""

import io
import pathlib

import browser
import numpy as np
import pages
from PIL import Image
import pytest

from boardrec.config import TrainConfig
from boardrec.reporting import comparison, comparison_page, facts

PICTURE = pathlib.Path(__file__).parents[1] / 'golden' / 'report.png'

# Each piece of text with its contrast to what lies behind it, where that is too little for its size (WCAG 2.2, 1.4.3).
FAINT = '''(() => {
  const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
  const parse = colour => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1)
    return [...pen.getImageData(0, 0, 1, 1).data] }
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] / 255 + below[i] * (1 - top[3] / 255))
  const light = rgb => rgb.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  const ground = element => element ? over(parse(getComputedStyle(element).backgroundColor),
    ground(element.parentElement)) : [255, 255, 255]
  const found = [], seen = new Set()
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, words = walker.currentNode.textContent.trim()
    if (!words || seen.has(element) || ['TITLE', 'STYLE', 'title'].includes(element.tagName)) continue
    seen.add(element)
    const style = getComputedStyle(element), below = ground(element)
    const own = over(parse(element instanceof SVGElement ? style.fill : style.color), below)
    const [dark, bright] = [light(own), light(below)].sort((a, b) => a - b)
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
    const contrast = (bright + 0.05) / (dark + 0.05)
    if (contrast < (large ? 3 : 4.5)) found.push(`${words.slice(0, 30)}: ${contrast.toFixed(2)}`)
  }
  return [found, seen.size]
})()'''
# What sticks out of the page, except within boxes that scroll by themselves.
WIDE = '''[...document.querySelectorAll('body *')].filter(element => !element.closest('.scroll, pre, svg')
  && element.getBoundingClientRect().right > innerWidth + 0.5).map(element => element.outerHTML.slice(0, 80))'''
UNNAMED = '''[...document.images].filter(image => !image.alt || !image.complete || !image.naturalWidth).length'''


def report_of_two(folder: pathlib.Path) -> pathlib.Path:
    """The report that README shows, too."""
    predictions = pages.predict(300, 2)
    made = pages.evaluation(predictions, ['negative', 'positive'], 'positive', threshold=0.42, temperature=1.5,
                            slice_of=['mono', 'poly', 'a-rather-long-name-of-a-camera'] * 100)
    folder.mkdir()
    pages.write(folder, made, history=pages.HISTORY, heated=True)
    return folder / 'index.html'


def report_of_many(folder: pathlib.Path) -> pathlib.Path:
    """Forty classes with long names, and paths without a blank."""
    names = [f'class number {i} of a rather long name without end' for i in range(40)]
    sources = [f'test/{"long_name_without_blanks" * 5}/{i}.jpg' for i in range(80)]
    folder.mkdir()
    pages.write(folder, pages.evaluation(pages.predict(80, 40, sources), names), heated=True)
    return folder / 'index.html'


def comparison_of_two(folder: pathlib.Path) -> pathlib.Path:
    """Two runs."""
    names, predictions = ['negative', 'positive'], pages.predict(120, 2)
    probabilities = predictions.probabilities.copy()
    probabilities[::7] = probabilities[::7, ::-1]
    settings = facts.settings(TrainConfig(records='R', run_dir='/a/very/long/path/without/any/blank/' * 4))
    sides = []
    longer = [{**row, **{name: row[name] + 0.07 for name in ('loss', 'val_loss', 'accuracy', 'val_accuracy')}}
              for row in [*pages.HISTORY, {**pages.HISTORY[-1], 'epoch': 5, 'loss': 0.45, 'val_loss': 0.6}]]
    for name, of, history in (('first', predictions, pages.HISTORY),
                              ('second', predictions._replace(probabilities=probabilities), longer)):
        values = pages.evaluation(of, names, 'positive').metrics
        sides.append(comparison_page.Side(comparison.Run(name, of, 0.5), {**values, 'images_per_second': 1.0},
                                          {**settings[0], **settings[1], 'backbone': name * 30}, {}, history))
    folder.mkdir()
    result = comparison.compare(*(side.run for side in sides), names, 'positive')
    comparison_page.write(folder / 'c.html', result, sides, 'test', 'positive', read_image=pages.picture)
    return folder / 'c.html'


PAGES = {'two': report_of_two, 'many': report_of_many, 'comparison': comparison_of_two}


@pytest.fixture(scope='module')
def chromium():
    """A browser; skips where none is installed, which in CI is an error."""
    browser.require()
    with browser.opened() as opened:
        yield opened


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The pages' paths."""
    return {name: make(tmp_path_factory.mktemp('pages') / name) for name, make in PAGES.items()}


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [360, 1280])
@pytest.mark.parametrize('name', PAGES)
def test_a_page_on_a_screen(chromium, made, name, width, dark):
    chromium.open(made[name], width=width, dark=dark)
    assert chromium.evaluate('document.documentElement.scrollWidth') <= width and chromium.evaluate(WIDE) == []
    assert chromium.evaluate(UNNAMED) == 0 and chromium.evaluate('document.images.length') > 10
    faint, pieces = chromium.evaluate(FAINT)
    assert faint == [] and pieces > 100
    pixels = np.asarray(Image.open(io.BytesIO(chromium.screenshot(whole=False))).convert('L'))
    assert pixels.shape == (900, width) and (np.median(pixels) < 60) == dark
    assert pixels.std() > 10 and (np.abs(pixels.astype(int) - int(np.median(pixels))) > 60).mean() > 0.01, 'not blank'
    noise = [event for event in chromium.events if event['method'] in (
        'Log.entryAdded', 'Runtime.consoleAPICalled', 'Runtime.exceptionThrown', 'Security.securityStateChanged')]
    assert noise == []
    asked = {event['params']['request']['url'].partition(':')[0] for event in chromium.events
             if event['method'] == 'Network.requestWillBeSent'}
    assert asked <= {'file', 'data'}


def test_the_check_of_contrast_and_width_can_fail(chromium, tmp_path):
    (tmp_path / 'a.html').write_text('<!DOCTYPE html><body style="background:#fff"><p style="color:#999">faint</p>'
                                     '<p style="color:#444">clear</p><div style="width:2000px">wide</div><img src="x">')
    chromium.open(tmp_path / 'a.html', width=360)
    assert chromium.evaluate(FAINT) == [['faint: 2.85'], 3] and chromium.evaluate(UNNAMED) == 1
    assert len(chromium.evaluate(WIDE)) == 1 and any(event['method'] == 'Log.entryAdded' for event in chromium.events)


@pytest.mark.parametrize('name', ['two', 'comparison'])
def test_a_page_on_paper(chromium, made, name):
    chromium.open(made[name], width=720, dark=True, media='print')
    assert chromium.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)', 'no dark ink'
    assert chromium.evaluate('''[...document.querySelectorAll('details')].every(element =>
        element.getBoundingClientRect().height >= element.lastElementChild.getBoundingClientRect().height &&
        element.lastElementChild.getBoundingClientRect().height > 20)'''), 'nothing stays folded'
    assert chromium.pdf().startswith(b'%PDF')


if __name__ == '__main__':
    import tempfile
    with tempfile.TemporaryDirectory() as folder, browser.opened() as opened:
        opened.open(report_of_two(pathlib.Path(folder, 'page')), width=1100)
        shot = Image.open(io.BytesIO(opened.screenshot(whole=False, height=1500)))
        shot.convert('RGB').quantize(256).save(PICTURE, optimize=True)
