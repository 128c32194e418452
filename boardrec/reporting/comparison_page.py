"""The page that sets two runs' evaluations side by side: what differs, whether by chance, and on which records.

In: what `comparison.compare` gave, and each run's side. Out: one HTML file; see `page`.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from boardrec.config import TrainConfig, UserError
from boardrec.data import files
from boardrec.reporting import bootstrap, confusion, curves, facts, metrics, page, pictures, predictions_csv
from boardrec.reporting.comparison import Run
from boardrec.reporting.page import Concern, Section

MOST_SHOWN = 48  # changed records with a picture; more are listed
_MOST_LISTED = 1000
_FEW_APART = 10  # records that only one run has right
_NAMES = {'accuracy': 'accuracy', 'balanced_accuracy': 'balanced accuracy', 'f1': 'F1', 'precision': 'precision',
          'recall': 'recall', 'specificity': 'specificity', 'auc': 'ROC AUC', 'average_precision': 'PR AUC',
          'log_loss': 'log loss', 'brier': 'Brier score', 'ece': 'ECE'}
_LESS_IS_BETTER = ('log_loss', 'brier', 'ece')


class Side(NamedTuple):
    """One run."""

    run: Run
    values: Mapping[str, Any]  # metrics.json
    settings: dict[str, object]
    facts: Mapping[str, Any]  # run.json
    history: Sequence[Mapping] = ()  # a row an epoch, as in history.csv


def read_side(path: pathlib.Path, split: str, config: TrainConfig, known: Mapping[str, Any],
              history: Sequence[Mapping] = ()) -> Side:
    """A run's evaluation of a split. Raises UserError if there is none by its weights, or it is not whole."""
    folder = path / 'evaluation' / split
    again = f'evaluate it first with python -m boardrec.evaluate --run_dir={path} --split={split}'
    try:
        values = json.loads((folder / 'metrics.json').read_bytes())
        same = (values['weights_sha256'] == known['weights_sha256']
                and values['predictions_sha256'] == files.sha256_of(folder / 'predictions.csv'))
        threshold = values['threshold']
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'--compare: {path} has no evaluation of {split}: {again}') from None
    if not same:
        raise UserError(f'--compare: the evaluation of {split} in {path} is not of its weights or was changed: {again}')
    predictions, _ = predictions_csv.read(folder / 'predictions.csv')
    changed, other = facts.settings(config)
    return Side(Run(str(path), predictions, metrics.HALF if threshold is None else threshold), values,
                {**changed, **other}, known, history)


def sentence(result: Mapping) -> str:
    """The difference of the accuracies and whether it is by chance."""
    row, p_value = result['metrics']['accuracy'], result['mcnemar']['p_value']
    span = '' if row['interval'] is None else f', 95% interval {row["interval"][0]:+.4f} to {row["interval"][1]:+.4f}'
    if result['identical']:
        return f'accuracy {row["first"]:.4f} in both runs, which give the same probabilities'
    return (f'accuracy {row["first"]:.4f} and {row["second"]:.4f}: {row["difference"]:+.4f}{span}; '
            f'McNemar p = {_p(p_value)}')


def shown(changed: Sequence[Mapping]) -> list[int]:
    """The record ids of the changed records whose pictures `write` asks for."""
    return [row['record_id'] for _, group, count in _groups(changed) for row in group[:count]]


def write(path: os.PathLike | str, result: Mapping, sides: Sequence[Side], split: str, positive_class: str | None, *,
          read_image: Callable[[int], bytes]) -> None:
    """Writes the page to `path`, atomically."""
    letters, names = _letters(result['runs']), sides[0].values['class_names']
    sections = [
        Section('Side by side', _figures(result)),
        Section('Records that only one has right', _mcnemar(result['mcnemar'])),
        Section('Curves', _curves(sides, positive_class)),
        Section('Confusion', page.grid(
            page.figure(f'Run {letter}', name, confusion.matrix(side.values['confusion_matrix'], names))
            for letter, name, side in zip('AB', letters, sides, strict=True))
            if len(names) <= confusion.READABLE else page.paragraph('Too many classes to show.')),
        Section('Training', _training(sides, letters)),
        Section('Changed decisions', _changed(result['changed'], read_image)),
        Section('Settings that differ', _settings(sides, letters))]
    page.write(path, title=_title(result), eyebrow=f'boardrec · {split} split · A is {letters[0]}, B is {letters[1]}',
               lead=_lead(result), concerns=_concerns(result, split), sections=sections,
               footer='Differences are B less A. Intervals are 95% intervals of a paired bootstrap: both runs count '
                      'the same draws of records.')


def _title(result: Mapping) -> str:
    row = result['metrics']['accuracy']
    if not result['changed']:
        return 'A and B give the same probabilities' if result['identical'] else 'A and B decide alike'
    if not _is_clear(row):
        return 'No clear difference between A and B'
    return f'B is {"better" if row["difference"] > 0 else "worse"} than A by {abs(row["difference"]):.1%}'


def _lead(result: Mapping) -> str:
    row, found = result['metrics']['accuracy'], result['mcnemar']
    of = f'Of {result["records"]:,} {"image" if result["records"] == 1 else "images"}'
    if not result['changed']:
        return f'{of} both have {row["first"]:.1%} right, and they decide each of them alike.'
    apart = (f'Only A is right on {_images(found["only_first"])} and only B on {found["only_second"]:,}, as uneven as '
             f'that by chance alone with p = {_p(found["p_value"])} (McNemar).')
    if found['only_first'] == found['only_second'] == 0:
        apart = f'They have the same images right, and {_images(len(result["changed"]))} wrong in another way.'
    if row['difference'] == 0:
        return f'{of} both have {row["first"]:.1%} right. {apart}'
    span = '' if row['interval'] is None else (
        f' (95% interval {100 * row["interval"][0]:+.1f} to {100 * row["interval"][1]:+.1f})')
    return (f'{of} A has {row["first"]:.1%} right and B {row["second"]:.1%}, a difference '
            f'of {100 * row["difference"]:+.1f} points{span}. {apart}')


def _concerns(result: Mapping, split: str) -> list[Concern]:
    apart = result['mcnemar']['only_first'] + result['mcnemar']['only_second']
    found = []
    row = result['metrics']['accuracy']
    if _is_clear(row):
        found.append(Concern('good' if row['difference'] > 0 else 'bad',
                             f'The difference in accuracy is not by chance: its interval lies '
                             f'{"above" if row["difference"] > 0 else "below"} 0.'))
    if result['identical']:
        found.append(Concern('note', 'Nothing tells the runs apart here: are they copies of one?'))
    elif apart < _FEW_APART:
        found.append(Concern('note', f'The runs differ in what is right on {apart or "no"} '
                                     f'record{"" if apart == 1 else "s"}{" only" if apart else ""}: too few to tell '
                                     'them apart by.'))
    if result['metrics']['auc']['difference'] is None:
        found.append(Concern('note', 'All these images are of one class: what the runs make of others is unknown.'))
    if split == 'test':
        found.append(Concern('note', 'Whoever chooses among many runs by this split makes it a validation split: '
                                     'choose on --split=val, and look here once.'))
    return found


def _is_clear(row: Mapping) -> bool:
    """Whether chance does not explain a metric's difference, by its interval and, where it has one, its exact test.

    A bootstrap cannot draw records on which the runs would differ the other way: of four records that only one has
    right its interval leaves 0 out, with p = 0.125.
    """
    return bool(row['excludes_0']) and (row['p_value'] is None or row['p_value'] < 1 - bootstrap.LEVEL)


def _images(count: int) -> str:
    return f'{count:,} image{"" if count == 1 else "s"}'


def _figures(result: Mapping) -> str:
    rows, widest = [], max((abs(end) for row in result['metrics'].values() for end in row['interval'] or ()), default=1)
    for key, name in _NAMES.items():
        row = result['metrics'][key]
        if row['difference'] is None:
            rows.append((name, page.number(row['first']), page.number(row['second']), '–', ''))
            continue
        better = (row['difference'] > 0) != (key in _LESS_IS_BETTER)
        said = 'the same' if row['difference'] == 0 else 'may be chance'
        if _is_clear(row):
            said = f'<b class="{"good" if better else "bad"}">{"B is better" if better else "B is worse"}</b>'
        test = '' if row['p_value'] is None else f'<span class="aside">p = {_p(row["p_value"])}</span>'
        rows.append((name, page.number(row['first']), page.number(row['second']), _span(row, widest or 1),
                     page.Markup(said + test)))
    return page.table(['metric', 'A', 'B', 'B less A', 'verdict'], rows, 'Metrics of both runs') + page.paragraph(
        'A verdict goes by the interval of the paired bootstrap. Where p stands below it, McNemar\'s exact test (of '
        'recall on the positive records alone, of specificity on the negative) must find p below 0.05 too.')


def _span(row: Mapping, widest: float) -> page.Markup:
    interval = row['interval']
    below = '' if interval is None else f'<span class="aside">{interval[0]:+.3f} to {interval[1]:+.3f}</span>'
    return page.Markup(f'{row["difference"]:+.3f}{below}' + (
        page.strip(row['difference'], interval, (-widest, widest)) if interval else ''))


def _mcnemar(found: Mapping) -> str:
    rows = [('A is right', found['both_right'], found['only_first']),
            ('A is wrong', found['only_second'], found['both_wrong'])]
    return page.table(['', 'B is right', 'B is wrong'], rows, 'Who is right') + page.paragraph(
        f'McNemar\'s exact test of whether only A right ({found["only_first"]:,}) and only B right '
        f'({found["only_second"]:,}) are equally likely: p = {_p(found["p_value"])}.')


def _curves(sides: Sequence[Side], positive_class: str | None) -> str:
    values = sides[0].values
    if positive_class is None or values['auc'] is None:
        return page.paragraph('Curves are drawn for two classes that both have records.')
    place = list(values['class_names']).index(positive_class)
    names = [f'{letter}, threshold {side.run.threshold:.3g}' for letter, side in zip('AB', sides, strict=True)]
    truths = {name: side.run.predictions.labels == place for name, side in zip(names, sides, strict=True)}
    scores = {name: metrics.as_float32(side.run.predictions.probabilities)[:, place]
              for name, side in zip(names, sides, strict=True)}

    def areas(key: str) -> dict[str, float]:
        return {name: side.values[key] for name, side in zip(names, sides, strict=True)}

    return page.grid([
        page.figure('ROC curve', f'{positive_class} found, against false alarms.',
                    curves.roc_curve(truths, scores, areas('auc'))),
        page.figure('Precision and recall', f'For {positive_class}.',
                    curves.precision_recall_curve(truths, scores, areas('average_precision')))])


def _training(sides: Sequence[Side], letters: Sequence[str]) -> str:
    histories = {f'{letter}, {name}': side.history for letter, name, side in zip('AB', letters, sides, strict=True)}
    left_out = ''.join(page.paragraph(f'{name}: this run has no history, so its learning curves are left out.')
                       for name, history in histories.items() if not history)
    if not any(histories.values()):
        return left_out
    return page.grid([
        page.figure('Loss', 'Of training and validation images.', curves.learning_curves(histories, 'loss')),
        page.figure('Accuracy', 'Share of images that were right.', curves.learning_curves(histories, 'accuracy'))
    ]) + left_out


def _changed(rows: Sequence[Mapping], read_image: Callable[[int], bytes]) -> str:
    if not rows:
        return page.paragraph('Not one.')
    parts = []
    for title, group, count in _groups(rows):
        if group:
            more = f', of which {count} are shown' if count < len(group) else ''
            parts += [page.heading(f'{title}: {len(group):,}{more}'),
                      f'<ul class="cards small">{"".join(_card(row, read_image) for row in group[:count])}</ul>']
    listed = [(row['source'], row['label'], _said(row['first']), _said(row['second'])) for row in rows[:_MOST_LISTED]]
    return ''.join(parts) + page.details(
        'All as a table' if len(rows) <= _MOST_LISTED else f'The first {_MOST_LISTED:,} as a table',
        page.table(['file', 'is', 'A said', 'B said'], listed, 'Changed decisions', words=[1, 2, 3]))


def _groups(rows: Sequence[Mapping]) -> list[tuple[str, list[Mapping], int]]:
    """(title, rows, how many are shown) of each kind of change."""
    groups = {'Became wrong': [], 'Became right': [], 'Wrong in another way': []}
    for row in rows:
        groups['Became wrong' if row['first']['predicted'] == row['label'] else
               'Became right' if row['second']['predicted'] == row['label'] else 'Wrong in another way'].append(row)
    shown = _fair([len(group) for group in groups.values()])
    return [(title, group, count) for (title, group), count in zip(groups.items(), shown, strict=True)]


def _fair(counts: Sequence[int]) -> list[int]:
    """How many of each group are shown: as equally many as there are, MOST_SHOWN in all."""
    left, shown = MOST_SHOWN, [0] * len(counts)
    for place, i in enumerate(np.argsort(counts, kind='stable')):
        shown[i] = min(counts[i], left // (len(counts) - place))
        left -= shown[i]
    return shown


def _card(row: Mapping, read_image: Callable[[int], bytes]) -> str:
    picture = pictures.shown(row['record_id'], f'{row["label"]}: {row["source"]}', read_image)
    said = ''.join(f'<p>{letter} said <b class="{"good" if row[run]["predicted"] == row["label"] else "bad"}">'
                   f'{page.text(row[run]["predicted"])}</b> {row[run]["probability"]:.3f}</p>'
                   for letter, run in (('A', 'first'), ('B', 'second')))
    return (f'<li>{picture}<p>is <b>{page.text(row["label"])}</b></p>{said}'
            f'<p><code>{page.text(row["source"])}</code></p></li>')


def _said(run: Mapping) -> str:
    return f'{run["predicted"]} {run["probability"]:.3f}'


def _settings(sides: Sequence[Side], letters: Sequence[str]) -> str:
    a, b = sides
    rows = [(name, value, b.settings[name]) for name, value in a.settings.items()
            if value != b.settings[name] and name != 'run_dir']
    rows += [(f'version of {name}', value, b.facts['versions'].get(name)) for name, value in
             a.facts.get('versions', {}).items() if value != b.facts.get('versions', {}).get(name)]
    rows += [(name.replace('_', ' '), a.facts.get(name), b.facts.get(name)) for name in ('epochs', 'best_epoch',
                                                                                        'best_val_loss')]
    rows += [('threshold', a.values['threshold'], b.values['threshold']),
             ('images/s in evaluation', a.values['images_per_second'], b.values['images_per_second'])]
    return page.table(['setting', f'A: {letters[0]}', f'B: {letters[1]}'], rows, 'Settings that differ', words=[1, 2])


def _letters(names: Sequence[str]) -> list[str]:
    """The runs' names, as short as they can be told apart."""
    short = [pathlib.Path(name).absolute().name for name in names]
    return short if short[0] != short[1] else list(names)


def _p(value: float) -> str:
    return f'{value:.2g}' if value >= 0.0001 else 'less than 0.0001'
