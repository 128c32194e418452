"""Evaluations and facts that tests make pages of."""

from html.parser import HTMLParser
import io
import re

import numpy as np
from PIL import Image

from boardrec.config import EvaluateConfig, TrainConfig
from boardrec.data.records import Duplicate
from boardrec.reporting import facts, metrics, report, slices
from boardrec.reporting.facts import Data, Facts

HISTORY = [{'epoch': i + 1, 'loss': 0.9 - i / 10, 'accuracy': 0.5 + i / 10, 'learning_rate': 2e-4 if i < 2 else 1e-4,
            'skipped_steps': 0.0, 'seconds': 41.25, 'images_per_second': 63.5 + i, 'input_wait': 0.01 * i,
            'first_batch_seconds': 0.25, 'peak_rss_mib': 2000.0, 'val_loss': 0.8 + (i - 1) ** 2 / 10,
            'val_accuracy': 0.625, 'val_seconds': 2.0} for i in range(4)]
VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class Page(HTMLParser):
    """Checks that tags balance, and collects what the tests ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.references, self.ids, self.headings, self.images, self.words = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    @property
    def visible(self) -> str:
        """The words of the body, a line for each element that has some."""
        return '\n'.join(' '.join(word.split()) for word in self.words if word.strip())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.references += [attrs[key] for key in ('src', 'href', 'xlink:href', 'action') if key in attrs]
        self.ids += [attrs['id']] if 'id' in attrs else []
        self.images += [attrs] if tag == 'img' else []
        self.headings += [int(tag[1])] if re.fullmatch('h[1-6]', tag) else []
        assert tag != 'script' and not any(key.startswith('on') for key in attrs)
        assert tag != 'th' or attrs['scope'] in ('row', 'col')
        assert tag != 'svg' or 'aria-hidden' in attrs or attrs['role'] == 'img' and attrs['aria-label']
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if not {'style', 'title'} & set(self.open):
            self.words.append(data)


def check(text: str) -> Page:
    """The page, which loads nothing, is escaped and has headings, names and alt texts in order."""
    page = Page(text)
    assert all(reference.startswith(('data:image/', '#')) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith('#')} <= set(page.ids)
    assert not re.search(r'@import|url\((?!#)', text)
    assert len(set(page.ids)) == len(page.ids)
    assert page.headings[0] == 1 and page.headings.count(1) == 1 and set(page.headings) <= {1, 2, 3}
    assert '<html lang="en">' in text and "default-src 'none'" in text
    assert all(image['alt'] for image in page.images)
    return page


def predict(records: int, classes: int, sources: list[str] | None = None, seed: int = 0) -> metrics.Predictions:
    """Predictions that are better than chance."""
    rng = np.random.default_rng(records + classes + seed)
    labels = rng.integers(0, classes, records).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(classes), records) * 0.7 + 0.3 * np.eye(classes)[labels]
    return metrics.Predictions(np.arange(records) + 100, sources or [f'test/{i:03}.jpg' for i in range(records)],
                               labels, metrics.as_float32(probabilities))


def picture(record_id: int, mode: str = 'RGB', kind: str = 'JPEG') -> bytes:
    """A photograph."""
    buffer = io.BytesIO()
    if mode == 'RGB':
        row = np.linspace(0, 255, 400, dtype=np.uint8)
        pixels = np.stack([np.tile(row, (300, 1)), np.full((300, 400), 7 * record_id % 256, np.uint8),
                           np.tile(row[::-1], (300, 1))], axis=-1)
        Image.fromarray(pixels).save(buffer, kind)
    else:
        Image.new(mode, (400, 300), record_id % 256).save(buffer, kind)
    return buffer.getvalue()


def heat(number: int) -> np.ndarray:
    """A heat map with one hot place."""
    values = np.zeros((7, 7), np.float32)
    values[number % 7, number // 7 % 7] = 1
    return values


def facts_of(class_names, **changes) -> Facts:
    """Facts of a run, and `changes` of its data."""
    config = TrainConfig(records='RECORDS', run_dir='RUN', trainable_layers=8, precision='bfloat16')
    counts = {name: 50 for name in class_names}
    known = Data(class_names=list(class_names), splits={'train': counts, 'val': counts, 'test': counts},
                 rejected=[('truncated', 2), ('not an image', 1)], sizes=[(400, 300)] * 3 + [(200, 300)],
                 duplicates=[Duplicate('train/a.jpg', 'train', 'no', 'test/b.jpg', 'test', 'no', 'near', '0.1',
                                       'reported')],
                 storage='files as they were found', fingerprint='abc123')
    changed, other = facts.settings(config)
    return Facts({'epochs': 4, 'best_epoch': 2, 'best_val_loss': 0.8, 'weights_sha256': 'def456',
                  'versions': {'tensorflow': '2.21.0'}}, changed, other, known._replace(**changes),
                 facts.commands(config, EvaluateConfig(run_dir='RUN')))


def decision(threshold, temperature=1.0):
    """A decision.json."""
    measured = {'log_loss': 0.5, 'ece': 0.04, 'uncalibrated': {'log_loss': 0.6, 'ece': 0.09}}
    two = {'f1': 0.8, 'precision': 0.8, 'recall': 0.8, 'at_half': {'f1': 0.7, 'precision': 0.9, 'recall': 0.6}}
    return {'threshold': threshold, 'temperature': temperature, 'chosen_on': 'val', 'weights_sha256': 'def456',
            'criterion': {'threshold': 'auto', 'min_precision': 0.0, 'min_recall': 0.0,
                          'calibrate': temperature != 1},
            'validation': {'records': 90, **measured, **(two if threshold is not None else {})}}


def evaluation(predictions, class_names, positive=None, *, threshold=0.5, temperature=1.0, slice_of=(), split='test',
               source_check=None) -> report.Evaluation:
    """What a report is made of."""
    sliced = slices.compute(predictions, slice_of, class_names, positive, threshold) if len(slice_of) else []
    return report.Evaluation(
        split, metrics.compute(predictions, class_names, positive, threshold), predictions, class_names,
        decision(threshold if positive else None, temperature), sliced, source_check, 123.4)


def write(tmp_path, made: report.Evaluation, *, history=(), read_image=picture, heated=False, **changes) -> str:
    """The text of its report."""
    path = tmp_path / 'index.html'
    maps = {number: heat(number) for number in report.shown(made)} if heated else None
    report.write(path, made, facts_of(made.class_names, **changes), history, read_image=read_image, heat_maps=maps)
    assert [entry.name for entry in tmp_path.iterdir()] == ['index.html']
    return path.read_text(encoding='utf-8')
