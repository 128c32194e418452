"""The parts of a report that say where a model comes from: its training, data, speed, settings and versions."""

import collections
from collections.abc import Mapping, Sequence
import math

import numpy as np

from boardrec.data.records import Duplicate
from boardrec.reporting import curves, page
from boardrec.reporting.facts import Data, describe_sizes, Facts

_LISTED = 20  # pairs of duplicates


def training(history: Sequence[Mapping]) -> str:
    """Learning curves and every epoch's row. history: as in history.csv; may be empty."""
    if not history:
        return page.paragraph('This run has no history.')
    best = curves.best_epoch(history)
    chosen = '' if best is None else f'Epoch {best} of {len(history)}, with the lowest validation loss, was kept.'
    columns = list(history[0])
    rows = [[_cell(name, row.get(name)) for name in columns] for row in history]
    return page.grid([
        page.figure('Loss', chosen, curves.learning_curve(history, 'loss')),
        page.figure('Accuracy', 'Share of images that were right.', curves.learning_curve(history, 'accuracy')),
        page.figure('Learning rate', 'Step size of the optimizer, at the end of each epoch.', curves.epoch_curve(
            history, 'learning_rate', 'learning rate'))]) + page.details('Every epoch as a table', page.table(
                [name.replace('_', ' ') for name in columns], rows, 'Every epoch'))


def data(known: Data) -> str:
    """What is in the records and what is not."""
    rows = []
    for split, counts in known.splits.items():
        total = sum(counts.values())
        rows.append([split, total, *(_counted(counts.get(name, 0), total) for name in known.class_names[:12])])
    names = known.class_names[:12]
    more = '' if len(known.class_names) <= 12 else page.paragraph(
        f'The first 12 of {len(known.class_names)} classes; manifest.json has all.')
    tables = {'Images': {'stored as': known.storage, 'sizes': describe_sizes(known.sizes),
                         'images whose size was read': len(known.sizes)},
              'Files that became no record': _rejected(known), 'Leaks and duplicates': _duplicates(known.duplicates)}
    pairs = [(row.source, f'{row.split}, {row.label}', row.other, f'{row.other_split}, {row.other_label}',
              f'{row.kind}, {row.action}') for row in (known.duplicates or ())[:_LISTED]]
    listed = page.details(f'{"Pairs" if len(known.duplicates) <= _LISTED else f"The first {_LISTED} pairs"} of the '
                          'same photograph', page.table(['file', 'is', 'other file', 'is', 'kind'], pairs, 'Duplicates',
                                                        words=[1, 2, 3, 4])) if pairs else ''
    return page.table(['split', 'records', *names], rows, 'Records by split and class') + more + page.facts(tables) + (
        listed)


def speed(history: Sequence[Mapping], images_per_second: float | None) -> str:
    """What training and evaluation cost."""
    found = {'evaluation, images/s': None if images_per_second is None else f'{images_per_second:.1f}'}
    figures = []
    if history:
        seconds, rates = (curves.column(history, name) for name in ('seconds', 'images_per_second'))
        validation, waits = (curves.column(history, name) for name in ('val_seconds', 'input_wait'))
        memory = curves.column(history, 'peak_rss_mib')
        found |= {'training, images/s (median epoch)': _median(rates, '.1f'),
                  'waiting for input (median epoch)': _median(waits, '.1%'),
                  'seconds an epoch (median)': _median(seconds, '.1f'),
                  'first batch of the run after': f'{history[0]["first_batch_seconds"]:.2g} s'
                  if 'first_batch_seconds' in history[0] else None,
                  'training, all epochs': _duration(seconds),
                  'validation, all epochs': _duration(validation),
                  'peak memory of the host': f'{np.nanmax(memory):,.0f} MiB' if np.isfinite(memory).any() else None}
        figures = [page.figure('Training rate', 'Images a second, by epoch.', curves.epoch_curve(
            history, 'images_per_second', 'images/s')) if np.isfinite(rates).any() else '',
            page.figure('Input wait', 'Share of each epoch in which training waited for images.', curves.epoch_curve(
                history, 'input_wait', 'share')) if np.isfinite(waits).any() else '']
    table = page.facts({'Measured': {name: value for name, value in found.items() if value is not None}})
    return page.grid([f'<div>{table}</div>', *figures]) if any(found.values()) else page.paragraph('Not measured.')


def run(facts: Facts, decision: Mapping | None, source_check: Mapping | None) -> str:
    """Settings, versions, fingerprints, and the commands that repeat it."""
    known = facts.run
    outcome = {'epochs': known.get('epochs'), 'best epoch': known.get('best_epoch'),
               'best validation loss': known.get('best_val_loss')}
    chosen = {}
    if decision:
        chosen = {'threshold': decision['threshold'], 'temperature': decision['temperature'],
                  'chosen on': decision['chosen_on']}
        chosen |= {name: value for name, value in decision['criterion'].items() if value not in (0, False)
                   and name != 'threshold'}
    checked = {name.replace('_', ' '): value for name, value in (source_check or {}).items()}
    fingerprints = {'records': facts.data.fingerprint, 'weights': known.get('weights_sha256'),
                    'starting weights': known.get('frozen_sha256')}
    return page.facts({
        'Settings that differ from their defaults': facts.changed or {'none': ''}, 'Outcome': _given(outcome),
        'Decision': chosen, 'Records against their files': checked, 'Versions': known.get('versions', {}),
        'Fingerprints (sha256)': _given(fingerprints),
    }) + page.heading('Again') + page.commands(facts.commands) + page.details(
        'Every other setting', page.facts({'Settings at their defaults, resolved, or places': {
            name: value for name, value in facts.other.items() if value != ''}}))


def _rejected(known: Data) -> dict[str, object]:
    if known.rejected is None:
        return {'rejected.csv': 'missing or damaged'}
    return dict(known.rejected) or {'none': 0}


def _duplicates(rows: list[Duplicate] | None) -> dict[str, object]:
    if rows is None:
        return {'duplicates.csv': 'missing or damaged'}
    kinds = collections.Counter(
        f'{row.kind}, {"within " + row.split if row.split == row.other_split else f"{row.split} and {row.other_split}"}'
        f'{", two labels" if row.label != row.other_label else ""}, {row.action}' for row in rows)
    return dict(kinds.most_common()) or {'none': 0}


def _counted(count: int, total: int) -> page.Markup:
    return page.Markup(f'{count:,}<span class="aside">{count / max(1, total):.1%}</span>')


def _cell(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return '–'
    return f'{value:.0f}' if name in ('epoch', 'skipped_steps') else f'{value:.5g}'


def _median(values: np.ndarray, how: str) -> str | None:
    return format(float(np.nanmedian(values)), how) if np.isfinite(values).any() else None


def _duration(seconds: np.ndarray) -> str | None:
    """The sum of the seconds in words."""
    if not np.isfinite(seconds).any():
        return None
    minutes, rest = divmod(round(float(np.nansum(seconds))), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s' if minutes else f'{rest} s'


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}
