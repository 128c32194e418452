"""The page at `/` in a real browser: a photograph is dropped, or chosen, and its answer read."""

import base64
import io
import pathlib
import re

import browser
import numpy as np
from PIL import Image
import pytest
import served_models

import boardrec
from boardrec.data import source_decode

_DROP = '''(() => {
  const transfer = new DataTransfer();
  for (const [name, data] of %s) {
    transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, {type: 'image/png'}));
  }
  document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}));
})()'''
_OUTDATED = '''(() => {
  const {fetch} = window;
  let outdated = %d;  // answers that tell of a version that is gone
  window.fetch = async (...args) => {
    const response = await fetch(...args);
    if (args[0] !== 'model.json' || outdated-- <= 0) return response;
    return Response.json({...await response.json(), version: 99});
  };
})()'''
_DONE = "document.querySelectorAll('.answer').length === %d && !document.querySelector('[aria-busy]')"


@pytest.fixture(scope='module')
def page(served):
    browser.require()
    with browser.opened() as page:
        page.call('Emulation.setDeviceMetricsOverride', width=390, height=844, deviceScaleFactor=2, mobile=True)
        yield page


def png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, [8, 8, 3], np.uint8)).save(file, 'png')
    return file.getvalue()


def visit(page, served):
    page.call('Page.navigate', url=f'{served.rest}/')
    page.wait_for("document.readyState === 'complete' && document.getElementById('model').textContent.length > 5")


def drop(page, files):
    page.evaluate(_DROP % [[name, base64.b64encode(data).decode()] for name, data in files])
    page.wait_for(_DONE % len(files))
    return page.evaluate("[...document.querySelectorAll('.answer')].map((one) => one.innerText)")


def test_a_dropped_image_is_answered_with_its_probabilities(served, page):
    visit(page, served)
    assert page.evaluate("document.getElementById('model').textContent") == 'model boardrec, version 1'
    images = [png(0), b'', png(1)]
    answers = drop(page, [('one.png', images[0]), ('empty.png', images[1]), ('two.png', images[2])])
    for answer, image in zip(reversed(answers), images, strict=True):  # the newest stands first
        if not image:
            assert 'Not classified: the file is empty' in answer
            continue
        score = served_models.checksum(image) / served_models.BUCKETS
        lines = answer.split('\n')
        assert served_models.CLASS_NAMES[score >= 0.5] in lines
        assert f'{100 * score:.1f} %' in lines and f'{100 * (1 - score):.1f} %' in lines
    assert page.complaints() == []
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'a phone shows it without scrolling'


def test_each_code_of_the_graph_has_its_sentence():
    page = (pathlib.Path(boardrec.__file__).parent / 'serving' / 'upload_page.html').read_text()
    table = re.search(r'const CODES = \{(.*?)\};', page, re.DOTALL)[1]
    assert tuple(re.findall(r"(\w+): '", table)) == source_decode.CODES[1:]


def test_a_chosen_image_is_answered_too(served, page, tmp_path):
    (tmp_path / 'photograph.png').write_bytes(png(2))
    visit(page, served)
    root = page.call('DOM.getDocument')['root']['nodeId']
    chooser = page.call('DOM.querySelector', nodeId=root, selector='#file')['nodeId']
    page.call('DOM.setFileInputFiles', nodeId=chooser, files=[str(tmp_path / 'photograph.png')])
    page.wait_for(_DONE % 1)
    answer = page.evaluate("document.querySelector('.answer').innerText")
    assert 'photograph.png' in answer and ' %' in answer


def test_what_the_server_refuses_is_shown(served, page):
    visit(page, served)
    answer, = drop(page, [('large.png', bytes(1 << 20))])
    assert 'No answer: the body has more than --max_request_mib=1 MiB' in answer


def test_a_version_that_goes_meanwhile_is_asked_again_as_the_newest_once(served, page):
    for gone, shown in ((1, ' %'), (2, 'No answer: Servable not found for request: Specific(boardrec, 99)')):
        visit(page, served)
        page.evaluate(_OUTDATED % gone)
        answer, = drop(page, [('one.png', png(0))])
        assert shown in answer


def test_light_and_dark_differ(served, page):
    colours = set()
    for scheme in ('light', 'dark'):
        page.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}])
        visit(page, served)
        colours.add(page.evaluate('getComputedStyle(document.body).backgroundColor'))
    assert len(colours) == 2
