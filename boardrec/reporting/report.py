"""The report of a run: one HTML file with its pictures inside, which needs no network, no script and no other file.

In: what `metrics.compute` gave, the predictions, the history and facts of the run. Out: index.html. All text from
outside is escaped, and the page's own policy forbids the browser to load anything.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
import html
import io
import os
import string

import numpy as np
from PIL import Image

from boardrec.data import files
from boardrec.reporting import metrics as metrics_lib
from boardrec.reporting import plots
from boardrec.reporting.metrics import Predictions

WORST, LEAST_CERTAIN = 24, 12  # records shown
THUMBNAIL = 160  # pixels, longer side


def write(path: os.PathLike | str, *, split: str, run: Mapping[str, Mapping[str, object]],
          history: Sequence[Mapping[str, float]], metrics: Mapping, predictions: Predictions,
          class_names: Sequence[str], read_image: Callable[[int], bytes]) -> None:
    """Writes the report of one split to `path`, atomically.

    run: facts to list, as {section: {name: value}}. history: a row an epoch with epoch (from 1), loss, accuracy,
    val_loss, val_accuracy, learning_rate, seconds, images_per_second; may be empty. metrics: `metrics.compute` of
    `predictions`. read_image: encoded bytes of a record's image by its record id; where it raises OSError or
    ValueError the record is shown without its picture.
    """
    positive = metrics_lib.positive_index(class_names, metrics['positive_class'])
    threshold = metrics_lib.HALF if positive is None else metrics['threshold']
    chosen = metrics_lib.decide(predictions.probabilities, positive, threshold)
    verdict, comparison = _verdict(metrics, split)

    def cards(rows: np.ndarray) -> str:
        return _cards(rows, predictions, chosen, class_names, read_image)

    sections = [
        ('Training', _training(history)),
        ('Right and wrong', _right_and_wrong(metrics, predictions, positive)),
        ('How sure it is', _certainty(predictions, chosen, class_names, positive)),
        ('Each class', _class_table(metrics['per_class'])),
        ('Worst errors', cards(worst_errors(predictions, chosen)) or '<p>Not one error.</p>'),
        ('Least certain', cards(least_certain(predictions))),
        ('This run', _facts(run)),
    ]
    page = _PAGE.substitute(
        style=_STYLE, eyebrow=_text(f'boardrec · {split} split · {_listed(class_names)}'), verdict=_text(verdict),
        comparison=_text(comparison), tiles=_tiles(metrics),
        sections='\n'.join(f'<section>\n<h2>{title}</h2>\n{body}\n</section>' for title, body in sections))
    with files.atomic_write(path) as file:
        # A byte of a path that is not UTF-8 is a surrogate here; \udce9 tells more than a question mark.
        file.write(page.encode('utf-8', 'backslashreplace'))


def worst_errors(predictions: Predictions, chosen: np.ndarray) -> np.ndarray:
    """Rows of at most WORST wrong records, the surest first. chosen: `metrics.decide`, int64 [N]."""
    wrong = np.flatnonzero(chosen != predictions.labels)
    surest = np.argsort(-predictions.probabilities[wrong, chosen[wrong]], kind='stable')
    return wrong[surest][:WORST]


def least_certain(predictions: Predictions) -> np.ndarray:
    """Rows of at most LEAST_CERTAIN records whose two likeliest classes are closest, the closest first."""
    if predictions.probabilities.shape[1] < 2:
        return np.arange(0)
    ranked = np.sort(predictions.probabilities, axis=1)
    return np.argsort(ranked[:, -1] - ranked[:, -2], kind='stable')[:LEAST_CERTAIN]


def thumbnail(encoded: bytes) -> str:
    """The image as a data URI of a JPEG of at most THUMBNAIL pixels. Raises OSError, ValueError or SyntaxError."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft('RGB', (2 * THUMBNAIL, 2 * THUMBNAIL))  # decodes a large JPEG at a fraction of its size
        small = image.convert('RGB')
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, 'JPEG', quality=82)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode('ascii')


def _verdict(metrics: Mapping, split: str) -> tuple[str, str]:
    confusion = np.array(metrics['confusion_matrix'])
    records, right = metrics['records'], int(np.trace(confusion))
    constant = confusion.sum(axis=1).max() / records
    figures = f'Accuracy {_number(metrics["accuracy"])}'
    if metrics['auc'] is not None:
        figures += f', AUC {_number(metrics["auc"])}'
    comparison = 'always answering the commonest class would give'
    if metrics['accuracy'] <= constant:
        comparison = f'no better than {comparison.replace(" would give", ", which gives")}'
    return (f'{right} of {records} {split} {"image" if records == 1 else "images"} right',
            f'{figures}; {comparison} {_number(constant)}.')


def _tiles(metrics: Mapping) -> str:
    positive = metrics['positive_class']
    right = int(np.trace(metrics['confusion_matrix']))
    low, high = metrics_lib.wilson_interval(right, metrics['records'])
    whose = 'mean over the classes' if positive is None else f'of {positive}'
    tiles = [
        ('Errors', str(metrics['records'] - right), f'out of {metrics["records"]}'),
        ('Accuracy', _number(metrics['accuracy']), f'95 %: {low:.3f} to {high:.3f}'),
        ('Balanced accuracy', _number(metrics['balanced_accuracy']), 'mean recall of the classes'),
        ('ROC AUC', _number(metrics['auc']), f'{whose}; chance is 0.5'),
        ('Average precision', _number(metrics['average_precision']), whose),
        ('F1', _number(metrics['f1']), whose),
        ('Precision', _number(metrics['precision']), whose),
        ('Recall', _number(metrics['recall']), whose),
        ('Log loss', _number(metrics['log_loss']), 'natural log; 0 is best'),
        ('Brier score', _number(metrics['brier']), 'squared error; 0 is best'),
    ]
    return '\n'.join(f'<div><dt>{label}</dt><dd>{value}<small>{_text(note)}</small></dd></div>'
                     for label, value, note in tiles)


def _training(history: Sequence[Mapping]) -> str:
    if not history:
        return '<p>This run has no history.</p>'
    best = plots.best_epoch(history)
    chosen = '' if best is None else f'Lowest validation loss in epoch {best} of {len(history)}.'
    columns = list(history[0])
    rows = ''.join(_row([row.get(column) for column in columns]) for row in history)
    return (
        _grid([_plot('Loss', chosen, plots.learning_curve(history, 'loss')),
               _plot('Accuracy', 'Share of images that were right.', plots.learning_curve(history, 'accuracy')),
               _plot('Learning rate', 'Step size of the optimizer.', plots.learning_rate_curve(history))])
        + f'<details><summary>Every epoch as a table</summary>{_table(columns, rows)}</details>')


def _right_and_wrong(metrics: Mapping, predictions: Predictions, positive: int | None) -> str:
    names = metrics['class_names']
    matrix = _plot('Confusion matrix', 'Each row is a true class.',
                   plots.confusion_matrix(metrics['confusion_matrix'], names), wide=len(names) > plots.SMALL_MATRIX)
    if positive is None:
        return _grid([matrix])
    if metrics['auc'] is None:
        return _grid([matrix]) + '<p>All these images are of one class: there is no ROC curve to draw.</p>'
    truth, probabilities = predictions.labels == positive, predictions.probabilities[:, positive]
    return _grid([
        matrix,
        _plot('ROC curve', f'{names[positive]} found, against false alarms.', plots.roc_curve(truth, probabilities)),
        _plot('Precision and recall', f'For {names[positive]}.', plots.precision_recall_curve(truth, probabilities))])


def _certainty(predictions: Predictions, chosen: np.ndarray, class_names: Sequence[str], positive: int | None) -> str:
    if positive is None:
        probabilities, truth = predictions.probabilities.max(axis=1), chosen == predictions.labels
        groups = {'right': probabilities[truth], 'wrong': probabilities[~truth]}
        what, outcome = 'probability of the chosen class', 'share right'
    else:
        probabilities, truth = predictions.probabilities[:, positive], predictions.labels == positive
        groups = {name: probabilities[predictions.labels == i] for i, name in enumerate(class_names)}
        what, outcome = f'probability of {class_names[positive]}', f'share {class_names[positive]}'
    return _grid([
        _plot('Probabilities', 'Two separate heaps are best.', plots.probability_histogram(groups, what)),
        _plot('Reliability', 'Honest where it follows the diagonal.',
              plots.reliability_diagram(probabilities, truth, what, outcome))])


def _class_table(per_class: Sequence[Mapping]) -> str:
    rows = (_row([row['class'], row['records'], *(_number(row[key]) for key in ('precision', 'recall', 'f1'))])
            for row in per_class)
    return _table(['class', 'records', 'precision', 'recall', 'F1'], ''.join(rows))


def _facts(run: Mapping[str, Mapping[str, object]]) -> str:
    return '<div class="facts">' + '\n'.join(
        f'<table><caption>{_text(section)}</caption>{"".join(_row(pair) for pair in facts.items())}</table>'
        for section, facts in run.items()) + '</div>'


def _cards(rows: Iterable[int], predictions: Predictions, chosen: np.ndarray, class_names: Sequence[str],
           read_image: Callable[[int], bytes]) -> str:
    cards = []
    for row in rows:
        source, true, said = predictions.sources[row], class_names[predictions.labels[row]], class_names[chosen[row]]
        picture = _picture(int(predictions.record_ids[row]), f'{true}: {source}', read_image)
        cards.append(
            f'<li>{picture}<p>said <b class="{"right" if true == said else "wrong"}">{_text(said)}</b> '
            f'<span class="number">{predictions.probabilities[row, chosen[row]]:.3f}</span></p>'
            f'<p>is <b>{_text(true)}</b></p><p><code>{_text(source)}</code></p></li>')
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ''


def _picture(record_id: int, alt: str, read_image: Callable[[int], bytes]) -> str:
    try:
        return f'<img src="{thumbnail(read_image(record_id))}" alt="{_text(alt)}">'
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's answers to broken files
        return '<div class="missing">no picture</div>'


def _plot(title: str, text: str, svg: str, wide: bool = False) -> str:
    return (f'<figure{" class=wide" if wide else ""}><figcaption><b>{title}</b> {_text(text)}</figcaption>'
            f'<div class="plot">{svg}</div></figure>')


def _grid(figures: Iterable[str]) -> str:
    return '<div class="grid">' + '\n'.join(figures) + '</div>'


def _table(columns: Iterable[str], rows: str) -> str:
    head = ''.join(f'<th scope="col">{_text(column.replace("_", " "))}</th>' for column in columns)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(values: Iterable[object]) -> str:
    first, *rest = values
    cells = ''.join(f'<td>{_text(_value(value))}</td>' for value in rest)
    return f'<tr><th scope="row">{_text(_value(first))}</th>{cells}</tr>'


def _value(value: object) -> str:
    if value is None:
        return '–'
    return f'{value:.5g}' if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'


def _listed(class_names: Sequence[str]) -> str:
    return ' / '.join(class_names) if len(class_names) <= 4 else f'{len(class_names)} classes'


def _text(value: str) -> str:
    return html.escape(value)


_STYLE = '''
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #5a6472; --line: #dfe3e8; --panel: #f6f7f9;
  --right: #1f5f9e; --wrong: #a34a00; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e7eaee; --soft: #a3adb9; --line: #30363d; --panel: #1c2026;
    --right: #7fb8ee; --wrong: #f0a35e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: clamp(1rem, 4vw, 3rem); max-width: 76rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: clamp(1.8rem, 5vw, 3rem); font-weight: 650; line-height: 1.1; letter-spacing: -0.02em;
  text-wrap: balance; }
h2 { margin: 2.8rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.3rem; }
header p { margin: 0.6rem 0; font-size: 1.15rem; }
header p.eyebrow, small, figcaption, summary { color: var(--soft); font-size: 0.875rem; }
b { color: var(--ink); }
dl { display: grid; gap: 0.75rem; margin: 2rem 0;
     grid-template-columns: repeat(auto-fill, minmax(min(12rem, 45%), 1fr)); }
dl div { padding: 0.8rem 1rem; border-radius: 8px; background: var(--panel); }
dt { color: var(--soft); font-size: 0.875rem; }
dd { margin: 0; font-size: 1.6rem; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: 0.8rem; line-height: 1.3; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 2rem; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
.plot, .scroll { overflow-x: auto; }
.plot svg { display: block; height: auto; }
figure:not(.wide) svg { width: 100%; max-width: 32rem; }
.plot text { font-family: system-ui, sans-serif !important; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 1.2rem 0.3rem 0; border-bottom: 1px solid var(--line); text-align: right;
         vertical-align: top; }
th { font-weight: 500; color: var(--soft); }
thead th { white-space: nowrap; }
th:first-child, caption { text-align: left; }
tbody th { color: var(--ink); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 2rem;
  align-items: start; }
.facts th { color: var(--soft); }
.facts td { padding-right: 0; text-align: left; overflow-wrap: anywhere; }
caption { padding-bottom: 0.3rem; font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(9.5rem, 45%), 1fr)); gap: 1.2rem; margin: 0;
  padding: 0; list-style: none; }
.cards img, .missing { display: block; width: 100%; aspect-ratio: 1; border-radius: 6px; background: var(--panel);
  object-fit: contain; }
.missing { display: grid; place-items: center; color: var(--soft); font-size: 0.875rem; }
.cards p { margin: 0.2rem 0 0; line-height: 1.3; font-size: 0.9rem; overflow-wrap: anywhere; }
.cards code { color: var(--soft); font-size: 0.75rem; unicode-bidi: isolate; }
.number { font-variant-numeric: tabular-nums; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.875rem; }
@media print { :root { font-size: 10px; } body { max-width: none; padding: 0; }
  figure, tr, .cards li, dl div { break-inside: avoid; } svg { max-width: 100%; } h2 { break-after: avoid; } }
'''

_PAGE = string.Template('''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$verdict</title>
<style>$style</style>
</head>
<body>
<header>
<p class="eyebrow">$eyebrow</p>
<h1>$verdict</h1>
<p>$comparison</p>
</header>
<main>
<dl>
$tiles
</dl>
$sections
</main>
<footer>The metrics of this page recompute exactly from predictions.csv.</footer>
</body>
</html>
''')
