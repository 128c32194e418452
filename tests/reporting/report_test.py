"""The report holds every piece, escapes what comes from outside, loads nothing and survives odd splits."""

import base64
from html.parser import HTMLParser
import io
import re

import numpy as np
from PIL import Image
import pytest

from boardrec.reporting import metrics, report

HISTORY = [{'epoch': i + 1, 'loss': 0.9 - i / 10, 'accuracy': 0.5, 'val_loss': 0.8 + (i - 1) ** 2 / 10,
            'val_accuracy': 0.625, 'learning_rate': 2e-4, 'seconds': 41.25, 'images_per_second': 63.5}
           for i in range(4)]
RUN = {'Settings': {'backbone': 'vgg16', 'learning_rate': 2e-4}, 'Data': {'fingerprint': 'abc123', 'note': None}}
VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class Page(HTMLParser):
    """Checks that tags balance, and collects what the tests ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.references, self.ids, self.headings, self.images, self.words = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.references += [attrs[key] for key in ('src', 'href', 'xlink:href', 'action') if key in attrs]
        self.ids += [attrs['id']] if 'id' in attrs else []
        self.images += [attrs] if tag == 'img' else []
        self.headings += [int(tag[1])] if re.fullmatch('h[1-6]', tag) else []
        assert tag != 'script' and not any(key.startswith('on') for key in attrs)
        assert tag != 'th' or attrs['scope'] in ('row', 'col')
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def predict(records: int, classes: int, sources: list[str] | None = None) -> metrics.Predictions:
    rng = np.random.default_rng(records + classes)
    labels = rng.integers(0, classes, records).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(classes), records) * 0.7 + 0.3 * np.eye(classes)[labels]
    return metrics.Predictions(np.arange(records) + 100, sources or [f'test/{i:03}.jpg' for i in range(records)],
                               labels, probabilities)


def picture(record_id: int, mode: str = 'RGB', kind: str = 'JPEG') -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (400, 300), record_id % 256).save(buffer, kind)
    return buffer.getvalue()


def write(tmp_path, predictions, class_names, positive, *, history=(), run=RUN, read_image=picture) -> str:
    path = tmp_path / 'index.html'
    report.write(path, split='test', run=run, history=history, predictions=predictions, class_names=class_names,
                 metrics=metrics.compute(predictions, class_names, positive), read_image=read_image)
    assert [entry.name for entry in tmp_path.iterdir()] == ['index.html']
    return path.read_text(encoding='utf-8')


def check(text: str) -> Page:
    page = Page(text)
    assert all(reference.startswith(('data:image/', '#')) for reference in page.references)
    assert not re.search(r'@import|url\((?!#)', text)
    assert len(set(page.ids)) == len(page.ids)
    assert page.headings == [1] + [2] * 7
    assert '<html lang="en">' in text and "default-src 'none'" in text
    assert all(image['alt'] for image in page.images)
    return page


def test_two_classes(tmp_path):
    predictions = predict(150, 2)
    result = metrics.compute(predictions, ['no', 'yes'], 'yes')
    page = check(write(tmp_path, predictions, ['no', 'yes'], 'yes', history=HISTORY))
    words = ' '.join(page.words)
    right = sum(result['confusion_matrix'][i][i] for i in range(2))
    constant = max(map(sum, result['confusion_matrix'])) / 150
    assert f'{right} of 150 test images right' in words
    assert (f'Accuracy {result["accuracy"]:.3f}, AUC {result["auc"]:.3f}; always answering the commonest class would '
            f'give {constant:.3f}.') in words
    for piece in ('Balanced accuracy', 'Log loss', 'Brier score', 'best epoch, 2', 'Learning rate', 'Confusion matrix',
                  'ROC curve', 'Precision and recall', 'Probabilities', 'Reliability', 'Each class', 'Worst errors',
                  'Least certain', 'vgg16', '0.0002', 'abc123', '63.5', '–'):
        assert piece in words, piece
    for key in 'balanced_accuracy', 'average_precision', 'f1', 'precision', 'recall', 'log_loss', 'brier':
        assert f'{result[key]:.3f}' in page.words
    order = [words.index(f' {title} ') for title in ('Training', 'Right and wrong', 'How sure it is', 'Each class',
                                                     'Worst errors', 'Least certain', 'This run')]
    assert order == sorted(order)


def test_the_worst_errors_and_the_least_certain_are_shown(tmp_path):
    predictions = predict(150, 2)
    said = predictions.probabilities.argmax(axis=1)
    wrong = [i for i in range(150) if said[i] != predictions.labels[i]]
    worst = sorted(wrong, key=lambda i: -predictions.probabilities[i].max())[:24]
    unsure = sorted(range(150), key=lambda i: abs(predictions.probabilities[i, 0] - 0.5))[:12]
    asked = []

    def read(record_id: int) -> bytes:
        asked.append(record_id)
        return picture(record_id)

    page = check(write(tmp_path, predictions, ['no', 'yes'], 'yes', read_image=read))
    assert asked == [100 + i for i in worst + unsure]
    assert [image['alt'] for image in page.images] == [
        f'{["no", "yes"][predictions.labels[i]]}: {predictions.sources[i]}' for i in worst + unsure]
    assert f'{predictions.probabilities[worst[0]].max():.3f}' in page.words
    for image in page.images:
        with Image.open(io.BytesIO(base64.b64decode(image['src'].partition(',')[2]))) as thumbnail:
            assert thumbnail.size == (160, 120) and thumbnail.format == 'JPEG'


def test_least_certain_of_many_classes_are_those_whose_first_two_are_close():
    predictions = predict(3, 3)._replace(
        probabilities=np.array([[0.4, 0.2, 0.4], [0.9, 0.05, 0.05], [0.35, 0.33, 0.32]]))
    np.testing.assert_array_equal(report.least_certain(predictions), [0, 2, 1])


def test_more_classes(tmp_path):
    page = check(write(tmp_path, predict(60, 7), list('abcdefg'), None, history=HISTORY))
    assert 'ROC curve' not in ' '.join(page.words) and '7 classes' in ' '.join(page.words)


@pytest.mark.parametrize('records, labels', [(1, 1), (5, 0)])
def test_a_class_that_is_absent(tmp_path, records, labels):
    predictions = predict(records, 2)._replace(labels=np.full(records, labels, np.int32))
    words = ' '.join(check(write(tmp_path, predictions, ['no', 'yes'], 'yes')).words)
    assert 'there is no ROC curve to draw' in words and 'AUC' not in words.partition('Errors')[0]
    assert 'no better than always answering the commonest class, which gives 1.000' in words


@pytest.mark.parametrize('classes', [1, 3])
def test_a_single_record(tmp_path, classes):
    text = write(tmp_path, predict(1, classes), list('abc')[:classes], None, run={})
    assert 'of 1 test image right' in text
    assert 'This run has no history.' in ' '.join(check(text).words)


def test_no_errors_are_told(tmp_path):
    predictions = predict(6, 2)
    predictions = predictions._replace(probabilities=np.eye(2)[predictions.labels])
    assert 'Not one error.' in ' '.join(check(write(tmp_path, predictions, ['no', 'yes'], 'yes')).words)


def test_what_comes_from_outside_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&amp;\'$title $$'
    predictions = predict(4, 2, [evil, f'"><img src=http://example.com/{evil}>', 'test/caf\udce9.jpg', 'zeile\n2.jpg'])
    text = write(tmp_path, predictions, [evil, '"onload="alert(1)'], evil, run={evil: {evil: evil}})
    page = check(text)
    assert '<script' not in text
    words = ' '.join(page.words)
    assert evil in words and '"onload="alert(1)' in words and r'test/caf\udce9.jpg' in words
    assert f'"><img src=http://example.com/{evil}>' in words


def test_a_picture_that_cannot_be_read_leaves_its_path(tmp_path):
    png = picture(1, kind='PNG')
    broken = {100: OSError('gone'), 101: ValueError('no such record'), 102: b'', 103: b'no image',
              104: picture(1)[:700], 105: png[:60],
              106: png[:36] + bytes([png[36] ^ 255]) + png[37:]}  # Pillow: SyntaxError

    def read(record_id: int) -> bytes:
        if isinstance(broken[record_id], Exception):
            raise broken[record_id]
        return broken[record_id]

    page = check(write(tmp_path, predict(7, 2), ['no', 'yes'], 'yes', read_image=read))
    assert not page.images and {f'test/{i:03}.jpg' for i in range(7)} <= set(page.words)
    assert page.words.count('no picture') >= 7


@pytest.mark.parametrize('mode, kind', [('L', 'JPEG'), ('CMYK', 'JPEG'), ('RGBA', 'PNG'), ('LA', 'PNG'), ('P', 'PNG'),
                                        ('1', 'PNG'), ('I;16', 'PNG')])
def test_thumbnails_of_every_mode(mode, kind):
    assert report.thumbnail(picture(0, mode, kind)).startswith('data:image/jpeg;base64,')


def test_a_failure_leaves_the_report_that_was_there(tmp_path):
    def read(record_id: int) -> bytes:
        raise MemoryError

    (tmp_path / 'index.html').write_text('before')
    with pytest.raises(MemoryError):
        write(tmp_path, predict(6, 2), ['no', 'yes'], 'yes', read_image=read)
    assert (tmp_path / 'index.html').read_text() == 'before'
