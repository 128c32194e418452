"""What a person reads of an evaluation in a terminal: metrics with their intervals beside 0.5, and slices."""

from collections.abc import Mapping, Sequence

_NAMES = {'accuracy': 'accuracy', 'balanced_accuracy': 'balanced accuracy', 'precision': 'precision',
          'recall': 'recall', 'specificity': 'specificity', 'f1': 'F1', 'auc': 'ROC-AUC',
          'average_precision': 'PR-AUC', 'log_loss': 'log loss', 'brier': 'Brier score', 'ece': 'ECE'}
_OF_SLICES = ('accuracy', 'balanced_accuracy', 'f1', 'auc', 'log_loss')


def text(values: Mapping, slices: Sequence[Mapping] = ()) -> str:
    """Lines of what `metrics.compute` and `slices.compute` gave."""
    half = values.get('at_half')
    if half and half['threshold'] == values['threshold']:
        half = None
    head = ['' if values['threshold'] is None else f'threshold {values["threshold"]:.6g}']
    rows = [[name, _cell(values, key), *([_cell(half, key)] if half else [])] for key, name in _NAMES.items()]
    lines = _table([['', *head, *(['threshold 0.5'] if half else [])], *rows])
    if slices:
        columns = ['slice', 'records', *(_NAMES[key] for key in _OF_SLICES), 'less the others', '']
        lines += ['', *_table([columns, *(_slice(row) for row in slices)])]
    return '\n'.join(lines) + '\n'


def warnings(slices: Sequence[Mapping]) -> list[str]:
    """A sentence for each slice that is worse than the rest, and one for those that are too small to tell."""
    worse = [f'warning: slice {row["slice"]!r} is worse than the others: accuracy {row["accuracy"]:.4f} on '
             f'{row["records"]:,} records, {_signed(row["difference"])} ({_signed(row["difference_interval"][0])} to '
             f'{_signed(row["difference_interval"][1])})' for row in slices if row['verdict'] == 'worse']
    small = [row['slice'] for row in slices if row['verdict'] == 'too small']
    listed = ', '.join(map(repr, small[:5])) + (f' and {len(small) - 5} more' if len(small) > 5 else '')
    return worse + ([f'note: too few records to tell whether these slices are worse: {listed}'] if small else [])


def _slice(row: Mapping) -> list[str]:
    return [ascii(row['slice'])[1:-1] if not row['slice'].isprintable() else row['slice'], f'{row["records"]:,}',
            *(_cell(row, key) for key in _OF_SLICES),
            '-' if row['difference'] is None else _signed(row['difference']),
            '' if row['verdict'] == 'ok' else row['verdict']]


def _cell(values: Mapping, key: str) -> str:
    """A value with its interval; what does not depend on the threshold is not said twice."""
    if values.get(key) is None:
        return '-' if key in values else ''
    interval = values['intervals'][key]
    return f'{values[key]:.4f}' + (f' [{interval[0]:.4f}, {interval[1]:.4f}]' if interval else '')


def _signed(value: float) -> str:
    return f'{value:+.4f}'


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
