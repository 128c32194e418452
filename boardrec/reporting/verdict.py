"""What a report says first: how good the model is, in a sentence or two, and what there is to worry about."""

from collections.abc import Mapping, Sequence

import numpy as np

from boardrec.reporting import curves, decisions, metrics
from boardrec.reporting.facts import Data
from boardrec.reporting.page import Concern

FEW = 30  # records of a class that figures of it are not to be trusted with
_WIDE = 0.05  # half an interval's width
_OVERFIT = 0.05  # by which more of the training than of the validation images are right
_UNBELIEVABLE = 0.05  # calibration error
_NAMED = 4  # classes or slices that a sentence names


def headline(values: Mapping, split: str) -> str:
    """How many are right, as `metrics.compute` says."""
    count, right = values['records'], int(np.trace(values['confusion_matrix']))
    if count < 50:
        return f'{right} of {count} {split} {"image" if count == 1 else "images"} right'
    return f'{values["accuracy"]:.1%} of {count:,} {split} images right'


def lead(values: Mapping, split: str, decision: Mapping | None) -> str:
    """The interval, the commonest class beside it, and what the threshold makes of the positive class."""
    names, positive = values['class_names'], values['positive_class']
    totals = np.sum(values['confusion_matrix'], axis=1)
    tied = (totals == totals.max()).sum() > 1
    commonest = f'{names[int(totals.argmax())]}, {"as common as any other" if tied else "the commonest"} class'
    pair = values['intervals']['accuracy']
    if pair is None or pair[0] == pair[1]:  # where all are right a bootstrap knows of nothing else
        pair = metrics.wilson_interval(int(np.trace(values['confusion_matrix'])), values['records'])
    words = (f'The 95% interval is {pair[0]:.1%} to {pair[1]:.1%}; always answering {commonest}, would be right for '
             f'{totals.max() / values["records"]:.1%}.')
    if positive is None:
        return f'{words} On average over the classes, {_share(values["balanced_accuracy"])} of the images are right.'
    return f'{words} {_threshold(values, decision)}'


def concerns(values: Mapping, *, split: str, data: Data, history: Sequence[Mapping], slices: Sequence[Mapping] = (),
             source_check: Mapping | None = None, decision: Mapping | None = None) -> list[Concern]:
    """What to worry about, the worst first; a single good word if there is nothing."""
    found = [*_chance(values), *_of_split(split), *_absent(values), *_leaks(data, split), *_slices(slices),
             *_classes(values), *_few(values), *_training(history),
             *_believed(values, decision['temperature'] if decision else 1.0), *_rejected(data),
             *_sources(source_check), *_undecided(decision)]
    found.sort(key=lambda concern: concern.level != 'bad')
    return found or [Concern('good', 'Nothing stands out: enough records, no leaks, no class or slice far behind, no '
                                     'overfitting to speak of.')]


def _threshold(values: Mapping, decision: Mapping | None) -> str:
    chosen = ''
    if decision and decision.get('validation', {}).get('f1') is not None and decision['criterion'][
            'threshold'] != 'half':
        chosen = (f', chosen for the best F1 on {decision["validation"]["records"]:,} '
                  'validation images')
        floors = [f'{name.removeprefix("min_")} of at least {decision["criterion"][name]:g}'
                  for name in ('min_precision', 'min_recall') if decision['criterion'][name]]
        chosen += f' with {" and ".join(floors)}' if floors else ''
    return (f'At threshold {values["threshold"]:.3g}{chosen}, it finds {_share(values["recall"])} of the '
            f'{values["positive_class"]} images, and {_share(values["precision"])} of those that it calls '
            f'{values["positive_class"]} are.')


def _chance(values: Mapping) -> list[Concern]:
    totals = np.sum(values['confusion_matrix'], axis=1)
    constant = totals.max() / values['records']
    answer = 'the commonest class' if (totals == totals.max()).sum() == 1 else 'one and the same class'
    pair = values['intervals']['accuracy']
    if constant == 1:
        return []
    if values['accuracy'] <= constant:
        return [Concern('bad', f'It is no better than always answering {answer}.')]
    if pair and pair[0] <= constant:
        return [Concern('bad', f'It may be no better than always answering {answer}: that share lies inside the '
                               'interval.')]
    return []


def _of_split(split: str) -> list[Concern]:
    said = {'train': 'These are the images that it was trained on: new ones will do worse. Evaluate --split=test.',
            'val': 'Epoch and threshold were chosen on these images, so the figures flatter: evaluate --split=test.'}
    return [Concern('bad' if split == 'train' else 'note', said[split])] if split in said else []


def _absent(values: Mapping) -> list[Concern]:
    absent = [row['class'] for row in values['per_class'] if not row['records']]
    return [Concern('bad', f'There is no image of {_listed(absent)}: how well it is found is unknown.')] if (
        absent) else []


def _leaks(data: Data, split: str) -> list[Concern]:
    if data.duplicates is None:
        return [Concern('note', 'Leaks are unknown: duplicates.csv is missing or damaged.')]
    kept = [row for row in data.duplicates if row.action == 'reported']
    apart = [row for row in kept if row.split != row.other_split]  # a photograph may have many copies, each a row
    across = len({name for row in apart for name, side in ((row.source, row.split), (row.other, row.other_split))
                  if side == split})
    labels = sum(row.label != row.other_label for row in kept)
    found = []
    if across:
        found.append(Concern('bad', f'{_count(across, "photograph")} of this split {"is" if across == 1 else "are"} '
                                    'nearly or exactly the same as one of another split: convert with '
                                    '--on_leak=drop_from_train.'))
    if labels:
        found.append(Concern('bad', f'{_count(labels, "pair")} of one photograph {"has" if labels == 1 else "have"} '
                                    'two labels: see the data below.'))
    return found


def _slices(slices: Sequence[Mapping]) -> list[Concern]:
    worse = sorted((row for row in slices if row['verdict'] == 'worse'), key=lambda row: row['difference'])
    small = [row['slice'] for row in slices if row['verdict'] == 'too small']
    found = []
    if worse:
        named = [f'slice {row["slice"]} ({row["accuracy"]:.1%} of {row["records"]:,} right)' for row in worse]
        found.append(Concern('bad', f'Worse than the rest: {_listed(named)}.'))
    if small:
        found.append(Concern('note', f'Too few records to tell whether slice{"" if len(small) == 1 else "s"} '
                                     f'{_listed(small)} {"is" if len(small) == 1 else "are"} worse than the rest.'))
    return found


def _classes(values: Mapping) -> list[Concern]:
    missed = [f'{row["class"]} ({row["recall"]:.0%} of {row["records"]:,})' for row in values['per_class']
              if row['records'] and row['recall'] < 0.5]
    return [Concern('bad', f'It finds less than half of {_listed(missed)}.')] if missed else []


def _few(values: Mapping) -> list[Concern]:
    pair = values['intervals']['accuracy']
    few = [f'{row["class"]} ({row["records"]})' for row in values['per_class'] if 0 < row['records'] < FEW]
    if values['records'] < FEW:
        return [Concern('bad', f'{_count(values["records"], "record")} cannot tell how good it is: collect some '
                               'hundreds.')]
    found = [Concern('note', f'Few records of {_listed(few)}: its figures say little.')] if few else []
    if pair and pair[1] - pair[0] > 2 * _WIDE:
        found.append(Concern('note', f'{_count(values["records"], "record")} leave the accuracy uncertain by '
                                     f'{(pair[1] - pair[0]) / 2:.0%} either way; four times as many would halve that.'))
    return found


def _training(history: Sequence[Mapping]) -> list[Concern]:
    best = curves.best_epoch(history) if history else None
    if best is None:
        return []
    row = next(row for row in history if row['epoch'] == best)
    pair, found = (row.get('accuracy'), row.get('val_accuracy')), []
    if None not in pair and pair[0] - pair[1] > _OVERFIT:
        found.append(Concern('note', f'Overfitting: at its best epoch {row["accuracy"]:.1%} of the training and '
                                     f'{row["val_accuracy"]:.1%} of the validation images are right; more images, '
                                     'more augmentation or fewer --trainable_layers help.'))
    if best == history[-1]['epoch'] and len(history) > 1:
        found.append(Concern('note', f'The last epoch, {best}, is the best: more --epochs may do better.'))
    return found


def _believed(values: Mapping, temperature: float) -> list[Concern]:
    if values['ece'] is None or values['ece'] <= _UNBELIEVABLE or values['records'] < 100:
        return []
    way_out = '; evaluate --calibrate may mend that' if temperature == 1 else ', calibration notwithstanding'
    return [Concern('note', f'Its probabilities are off by {values["ece"]:.2f} on average{way_out}.')]


def _rejected(data: Data) -> list[Concern]:
    if data.rejected is None:
        return [Concern('note', 'Rejected files are unknown: rejected.csv is missing or damaged.')]
    count = sum(files for _, files in data.rejected)
    total = count + sum(sum(counts.values()) for counts in data.splits.values())
    if not count:
        return []
    return [Concern('bad' if count > 0.01 * total else 'note',
                    f'{_count(count, "file")} of {total:,} became no record: see the data below.')]


def _sources(check: Mapping | None) -> list[Concern]:
    if not check or not check['decisions_differ']:
        return []
    return [Concern('bad', f'Of {check["records"]} records {check["decisions_differ"]} are decided otherwise than the '
                           'files that they were made from, which predict and the export see.')]


def _undecided(decision: Mapping | None) -> list[Concern]:
    words = decisions.doubt(decision)
    return [Concern('bad', words[0].upper() + words[1:])] if words else []


def _share(value: float | None) -> str:
    return 'an unknown share' if value is None else f'{value:.1%}'


def _count(count: int, noun: str) -> str:
    return f'{count:,} {noun}{"" if count == 1 else "s"}'


def _listed(names: Sequence[str]) -> str:
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(names[:_NAMED]) + more
