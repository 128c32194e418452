"""The report of a run on one split: a page that says first how good the model is and what there is to worry about.

In: what `metrics.compute` gave, the predictions, the history and facts of the run. Out: index.html; see `page`.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import NamedTuple

import numpy as np

from boardrec.reporting import background, certainty, confusion, curves, metrics, page, pictures, verdict
from boardrec.reporting.facts import Facts
from boardrec.reporting.metrics import Predictions
from boardrec.reporting.page import Section

WORST, LEAST_CERTAIN = 24, 12  # records shown
_ROWS = 8  # classes up to which each has a histogram of its own
_HEADLINE = [  # key, name, what it is, range
    ('accuracy', 'Accuracy', 'share that is right', (0, 1)),
    ('balanced_accuracy', 'Balanced accuracy', 'mean recall of the classes', (0, 1)),
    ('f1', 'F1', '', (0, 1)), ('precision', 'Precision', '', (0, 1)), ('recall', 'Recall', '', (0, 1)),
    ('specificity', 'Specificity', '', (0, 1)), ('auc', 'ROC AUC', 'chance is 0.5', (0, 1)),
    ('average_precision', 'PR AUC', 'average precision', (0, 1)),
    ('log_loss', 'Log loss', 'natural logarithm; 0 is best', None), ('brier', 'Brier score', '0 is best', None),
    ('ece', 'Calibration error', 'ECE; 0 is best', None)]
_OF_CLASSES = [('precision', 'precision'), ('recall', 'recall'), ('specificity', 'specificity'), ('f1', 'F1'),
               ('auc', 'ROC AUC'), ('average_precision', 'PR AUC')]


class Evaluation(NamedTuple):
    """What is known of a split."""

    split: str
    metrics: Mapping  # metrics.compute of the predictions
    predictions: Predictions
    class_names: Sequence[str]
    decision: Mapping | None = None  # decision.json
    slices: Sequence[Mapping] = ()  # slices.compute
    source_check: Mapping | None = None  # as in metrics.json
    images_per_second: float | None = None

    @property
    def temperature(self) -> float:
        """What the probabilities were calibrated with."""
        return self.decision['temperature'] if self.decision else 1.0

    @property
    def positive(self) -> int | None:
        """The positive class's column, of two."""
        return metrics.positive_index(self.class_names, self.metrics['positive_class'])

    def chosen(self) -> np.ndarray:
        """The chosen classes, int64 [N]."""
        threshold = self.metrics['threshold']
        return metrics.decide(self.predictions.probabilities, self.positive,
                              metrics.HALF if threshold is None else threshold)


def write(path: os.PathLike | str, evaluation: Evaluation, facts: Facts, history: Sequence[Mapping[str, float]], *,
          read_image: Callable[[int], bytes], heat_maps: Mapping[int, np.ndarray] | None = None) -> None:
    """Writes the report of one split to `path`, atomically.

    history: a row an epoch, as in history.csv; may be empty. read_image: encoded bytes of a record's image by its
    record id; where it raises OSError or ValueError the record is shown without its picture. heat_maps: float [h, w]
    for the chosen class, by record id, of `shown`'s records.
    """
    values, split = evaluation.metrics, evaluation.split
    chosen, maps = evaluation.chosen(), heat_maps or {}
    worst, unsure = (select(evaluation.predictions, chosen) for select in (worst_errors, least_certain))

    def cards(rows: np.ndarray) -> str:
        return ''.join(_card(row, evaluation, chosen, read_image, maps) for row in rows)

    sections = [
        Section('Key figures', _key_figures(values)),
        Section('Right and wrong', _right_and_wrong(evaluation)),
        Section('How sure it is', _certainty(evaluation, chosen)),
        Section('Each class', _classes(values)),
        *([Section('Slices', slices_table(evaluation.slices))] if evaluation.slices else []),
        Section('Worst errors', _gallery(cards(worst), 'Wrong, and surest of it first.', maps)
                if len(worst) else page.paragraph('Not one error.')),
        *([Section('Least certain', _gallery(cards(unsure), 'The two likeliest classes are closest here.', maps))]
          if len(unsure) else []),
        Section('Training', background.training(history)),
        Section('Data', background.data(facts.data)),
        Section('Speed', background.speed(history, evaluation.images_per_second)),
        Section('This run', background.run(facts, evaluation.decision, evaluation.source_check))]
    page.write(
        path, title=verdict.headline(values, split), lead=verdict.lead(values, split, evaluation.decision),
        eyebrow=f'boardrec · {split} split · {_listed(evaluation.class_names)}',
        concerns=verdict.concerns(values, split=split, data=facts.data, history=history, slices=evaluation.slices,
                                  source_check=evaluation.source_check, decision=evaluation.decision),
        sections=sections, footer='The figures of the evaluation recompute from predictions.csv. Intervals are 95% '
                                  'bootstrap intervals over the records; those of shares in plots are Wilson '
                                  'intervals.')


def shown(evaluation: Evaluation) -> dict[int, int]:
    """The chosen class of each record whose picture is shown, by record id."""
    chosen, ids = evaluation.chosen(), evaluation.predictions.record_ids
    rows = [*worst_errors(evaluation.predictions, chosen), *least_certain(evaluation.predictions, chosen)]
    return {int(ids[row]): int(chosen[row]) for row in rows}


def worst_errors(predictions: Predictions, chosen: np.ndarray) -> np.ndarray:
    """Rows of at most WORST wrong records, the surest first. chosen: `metrics.decide`, int64 [N]."""
    wrong = np.flatnonzero(chosen != predictions.labels)
    surest = np.argsort(-predictions.probabilities[wrong, chosen[wrong]], kind='stable')
    return wrong[surest][:WORST]


def least_certain(predictions: Predictions, chosen: np.ndarray) -> np.ndarray:
    """Rows of at most LEAST_CERTAIN records whose two likeliest classes are closest, the closest first."""
    del chosen  # whatever was chosen
    if predictions.probabilities.shape[1] < 2:
        return np.arange(0)
    ranked = np.sort(predictions.probabilities, axis=1)
    return np.argsort(ranked[:, -1] - ranked[:, -2], kind='stable')[:LEAST_CERTAIN]


def slices_table(slices: Sequence[Mapping]) -> str:
    """The metrics of each slice, those that are worse than the rest first."""
    order = {'worse': 0, 'too small': 1, 'ok': 2}
    rows = [(row['slice'], row['records'], _barred(row, 'accuracy'), _difference(row), row['verdict'],
             *(page.with_interval(row[key], row['intervals'][key]) for key in ('balanced_accuracy', 'f1', 'auc',
                                                                               'log_loss')))
            for row in sorted(slices, key=lambda row: (order[row['verdict']], row['difference'] or 0))]
    return page.table(['slice', 'records', 'accuracy', 'less all others', 'verdict', 'balanced accuracy', 'F1',
                       'ROC AUC', 'log loss'], rows, 'Slices')


def _key_figures(values: Mapping) -> str:
    whose = 'mean over the classes' if values['positive_class'] is None else f'of {values["positive_class"]}'
    half = values.get('at_half') or {}
    if half.get('threshold') == values['threshold']:
        half = {}
    entries = []
    for key, name, note, limits in _HEADLINE:
        pair = values['intervals'][key]
        entries.append((
            name, page.number(values[key]), page.strip(values[key], pair, limits) if limits else '',
            [f'95%: {page.interval(pair)}' if pair else '', note or whose,
             f'at threshold 0.5: {page.number(half[key])}' if key in half else '']))
    return page.tiles(entries)


def _right_and_wrong(evaluation: Evaluation) -> str:
    values, names, figures = evaluation.metrics, evaluation.class_names, []
    counts = values['confusion_matrix']
    if len(names) <= confusion.READABLE:
        figures.append(page.figure('Confusion matrix', 'Rows are true classes; shares are of their row.',
                                   confusion.matrix(counts, names), wide=len(names) > 4))
    curves_of = [row['class'] for row in sorted(
        (row for row in values['per_class'] if row['auc'] is not None), key=lambda row: row['auc'])]
    if evaluation.positive is not None:
        curves_of = [name for name in curves_of if name == values['positive_class']]
    if not curves_of:
        missing = page.paragraph('All these images are of one class: there is no ROC curve to draw.')
    else:
        missing = ''
        figures += _curves(evaluation, curves_of[:curves.MOST_CURVES], more=len(curves_of) > curves.MOST_CURVES)
    confused = confusion.pairs(counts, names) if len(names) > 2 else ''
    return page.grid(figures) + missing + (page.heading('Most confused') + confused if confused else '')


def _curves(evaluation: Evaluation, names: Sequence[str], *, more: bool) -> list[str]:
    values, predictions = evaluation.metrics, evaluation.predictions
    places = {name: list(evaluation.class_names).index(name) for name in names}
    truths = {name: predictions.labels == i for name, i in places.items()}
    scores = {name: metrics.as_float32(predictions.probabilities)[:, i] for name, i in places.items()}
    rows = {row['class']: row for row in values['per_class']}
    lowest = f' The {len(names)} classes with the smallest area.' if more else ''
    against = 'Each class against the rest.' + lowest if evaluation.positive is None else ''
    return [
        page.figure('ROC curve', against or f'{names[0]} found, against false alarms.', curves.roc_curve(
            truths, scores, {name: rows[name]['auc'] for name in names}, threshold=values['threshold'])),
        page.figure('Precision and recall', against or f'For {names[0]}.', curves.precision_recall_curve(
            truths, scores, {name: rows[name]['average_precision'] for name in names},
            threshold=values['threshold']))]


def _certainty(evaluation: Evaluation, chosen: np.ndarray) -> str:
    predictions, names, positive = evaluation.predictions, evaluation.class_names, evaluation.positive
    probabilities, labels = metrics.as_float32(predictions.probabilities), predictions.labels
    before = (certainty.without_temperature(probabilities, evaluation.temperature)
              if evaluation.temperature != 1 else None)
    if positive is not None:
        said, was, truth = probabilities[:, positive], before, labels == positive
        was = None if before is None else before[:, positive]
        what, outcome = f'probability of {names[positive]}', f'share of {names[positive]}'
        groups = {name: said[labels == i] for i, name in enumerate(names)}
    else:
        likeliest = probabilities.argmax(axis=1)
        said, truth = probabilities.max(axis=1), likeliest == labels
        was = None if before is None else before[np.arange(len(labels)), likeliest]
        what, outcome = 'probability of the likeliest class', 'share that is right'
        groups = {name: probabilities[labels == i, i] for i, name in enumerate(names)}
        if len(names) > _ROWS:
            groups = {'right': said[truth], 'wrong': said[~truth]}
    by_class = positive is not None or len(names) <= _ROWS
    own = 'probability of the true class' if positive is None and by_class else what
    return page.grid([
        page.figure('Probabilities', f'{"By true class; heights" if by_class else "Heights"} are roots of counts.',
                    certainty.histograms(groups, own, threshold=evaluation.metrics['threshold'])),
        page.figure('Reliability', _believed(evaluation), certainty.reliability_diagram(
            said, truth, what, outcome, before=was))])


def _believed(evaluation: Evaluation) -> str:
    values, decision = evaluation.metrics, evaluation.decision
    words = f'Honest where it follows the diagonal. Calibration error (ECE) {page.number(values["ece"])}'
    if evaluation.temperature != 1:
        on = decision['validation']
        words += (f', calibrated with temperature {evaluation.temperature:g} (on {decision["chosen_on"]}: '
                  f'{page.number(on["ece"])}, without it {page.number(on["uncalibrated"]["ece"])})')
    return f'{words}.'


def _classes(values: Mapping) -> str:
    rows = [(row['class'], row['records'], *(page.with_interval(row[key], row['intervals'][key])
                                            for key, _ in _OF_CLASSES)) for row in values['per_class']]
    for name in ('macro', 'micro'):
        rows.append((f'{name} average', values['records'], *(
            page.with_interval(values[name][key], values[name]['intervals'][key]) if key in values[name] else ''
            for key, _ in _OF_CLASSES)))
    return page.table(['class', 'records', *(name for _, name in _OF_CLASSES)], rows, 'Metrics of each class')


def _gallery(cards: str, words: str, maps: Mapping[int, np.ndarray]) -> str:
    legend = ''
    if maps:
        legend = (' Beside each image, what spoke for the class that it was taken for (Grad-CAM, each to its own '
                  f'scale): little <span class="heat" style="background:{pictures.GRADIENT}"></span> much.')
    return f'<p>{page.text(words)}{legend}</p><ul class="cards">{cards}</ul>'


def _card(row: int, evaluation: Evaluation, chosen: np.ndarray, read_image: Callable[[int], bytes],
          maps: Mapping[int, np.ndarray]) -> str:
    predictions, names = evaluation.predictions, evaluation.class_names
    source, true, said = predictions.sources[row], names[predictions.labels[row]], names[chosen[row]]
    record_id, right = int(predictions.record_ids[row]), true == said
    threshold = ''
    if evaluation.positive is not None:
        value = evaluation.metrics['threshold']
        threshold = f' (threshold {value if chosen[row] == evaluation.positive else 1 - value:.3g})'
    picture = pictures.shown(record_id, f'{true}: {source}', read_image, maps.get(record_id),
                             f'Heat map of what looked like {said}')
    return (f'<li>{picture}<p>said <b class="{"good" if right else "bad"}">{page.text(said)}</b> '
            f'{predictions.probabilities[row, chosen[row]]:.3f}{threshold}, is <b>{page.text(true)}</b></p>'
            f'<p><code>{page.text(source)}</code></p></li>')


def _barred(row: Mapping, key: str) -> page.Markup:
    pair = row['intervals'][key]
    return page.Markup(page.with_interval(row[key], pair).html + page.strip(row[key], pair))


def _difference(row: Mapping) -> page.Markup:
    if row['difference'] is None:
        return page.Markup('–')
    low, high = row['difference_interval']
    return page.Markup(f'{row["difference"]:+.3f}<span class="aside">{low:+.3f} to {high:+.3f}</span>')


def _listed(class_names: Sequence[str]) -> str:
    return ' / '.join(class_names) if len(class_names) <= 4 else f'{len(class_names)} classes'
