"""What of validation records decides for all others: the threshold between two classes, and the temperature."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from boardrec.config import UserError
from boardrec.reporting import bootstrap, calibration, measures, metrics, thresholds
from boardrec.reporting.metrics import HALF, Predictions


class Criterion(NamedTuple):
    """What was asked for, as config.EvaluateConfig says."""

    threshold: str = 'auto'
    min_precision: float = 0.0
    min_recall: float = 0.0
    calibrate: bool = False


def choose(predictions: Predictions, positive: int | None, criterion: Criterion,
           calibrate: Callable[[float], np.ndarray]) -> dict:
    """The decision for decision.json, from validation predictions of temperature 1; `calibrate` gives those of another.

    threshold, temperature  None with other than two classes; 1 unless asked for
    criterion, chosen_on    why, and from what
    validation              records, log_loss and ece, and those before calibration; of two classes precision, recall
                            and f1 at the threshold and at 0.5, called_positive, auc and auc_interval
    Raises UserError where what was asked for cannot be had.
    """
    _require_possible(predictions, positive, criterion)
    temperature = (calibration.fit_temperature(predictions.labels, predictions.probabilities)
                   if criterion.calibrate else 1.0) or 1.0
    scaled = predictions._replace(probabilities=calibrate(temperature))
    threshold = None if positive is None else _threshold(scaled, positive, criterion)
    return {'threshold': threshold, 'temperature': temperature, 'criterion': criterion._asdict(), 'chosen_on': 'val',
            'validation': {'records': len(predictions.labels), **_believed(scaled),
                           'uncalibrated': _believed(predictions),
                           **({} if threshold is None else _decided(scaled, positive, threshold))}}


def sentence(decision: dict) -> str:
    """What was chosen, for a person."""
    values, parts = decision['validation'], []
    if decision['threshold'] is not None:
        parts.append(f'threshold {decision["threshold"]:.6g}, with which F1 on val is {_number(values["f1"])} '
                     f'({_number(values["at_half"]["f1"])} at 0.5)')
    if decision['temperature'] != 1:
        parts.append(f'temperature {decision["temperature"]}, with which the log loss on val is '
                     f'{values["log_loss"]:.4f} ({values["uncalibrated"]["log_loss"]:.4f} without)')
    elif decision['criterion']['calibrate']:
        parts.append('no temperature, because the validation records have no best one')
    return '; '.join(parts) or 'nothing to choose'


def doubt(decision: Mapping | None) -> str:
    """A sentence of why the threshold is of no use on the validation records, or ''."""
    values, found = (decision or {}).get('validation', {}), []
    if 'called_positive' not in values:  # none, other than two classes, or of an earlier boardrec
        return ''
    low = values['auc'] if values['auc_interval'] is None else values['auc_interval'][0]
    if low is not None and low <= 0.5 and decision['criterion']['threshold'] != 'half':
        span = '' if values['auc_interval'] is None else ' (95% interval {:.3f} to {:.3f})'.format(
            *values['auc_interval'])
        found.append(f'it was chosen where ROC-AUC is {values["auc"]:.3f}{span}, not clearly above chance (0.5)')
    if values['called_positive'] in (0, values['records']):
        found.append(f'it calls every validation record {"positive" if values["called_positive"] else "negative"}')
    return f'the threshold {decision["threshold"]:.3g} is of little use: {", and ".join(found)}.' if found else ''


def _require_possible(predictions: Predictions, positive: int | None, criterion: Criterion) -> None:
    asked = [f'--{name}={value}' for name, value in criterion._asdict().items()
             if name != 'calibrate' and value not in ('auto', 'half', 0)]
    if positive is None and asked:
        raise UserError(f'{asked[0]}: there is a threshold between two classes only; leave it out.')
    if positive is not None and asked and not (predictions.labels == positive).any():
        raise UserError(f'{asked[0]}: no validation record is of the positive class; give --threshold=half.')


def _threshold(predictions: Predictions, positive: int, criterion: Criterion) -> float:
    is_positive = predictions.labels == positive
    if criterion.threshold == 'half' or not is_positive.any():
        return HALF
    curve = thresholds.curve(is_positive, metrics.as_float32(predictions.probabilities)[:, positive])
    best = thresholds.best(curve, min_precision=criterion.min_precision, min_recall=criterion.min_recall)
    if best is None:
        enough = curve.recall >= criterion.min_recall
        raise UserError(
            f'--min_precision={criterion.min_precision}: no threshold reaches it on the validation records'
            + (f' with --min_recall={criterion.min_recall}' if criterion.min_recall else '')
            + f'; the highest there is {curve.precision[enough].max():.4f}.')
    return best


def _believed(predictions: Predictions) -> dict[str, float]:
    labels, probabilities = predictions.labels, metrics.as_float32(predictions.probabilities)
    gap = measures.calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    return {'log_loss': float(measures.record_losses(labels, probabilities).mean()),
            'ece': float(gap(np.ones((1, len(labels))))[0])}


def _decided(predictions: Predictions, positive: int, threshold: float) -> dict:
    def at(value: float) -> dict[str, float | None]:
        chosen = metrics.decide(predictions.probabilities, positive, value)
        measured = measures.of_decisions(predictions.labels, chosen, 2)(np.ones((1, len(chosen))))
        return {name: None if np.isnan(measured[name][0, positive]) else float(measured[name][0, positive])
                for name in ('precision', 'recall', 'f1')}

    chosen = metrics.decide(predictions.probabilities, positive, threshold)
    return {**at(threshold), 'at_half': at(HALF), 'called_positive': int((chosen == positive).sum()),
            **_ranked(predictions, positive)}


def _ranked(predictions: Predictions, positive: int) -> dict:
    """The area under the ROC curve and its 95% interval; None where it is undefined."""
    labels, records = predictions.labels, len(predictions.labels)
    if not 0 < (labels == positive).sum() < records:
        return {'auc': None, 'auc_interval': None}
    ranks = measures.ranks(metrics.as_float32(predictions.probabilities)[:, positive], labels == positive)

    def auc(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {'auc': ranks(weights)[0]}

    return {'auc': float(auc(np.ones((1, records)))['auc'][0]),
            'auc_interval': bootstrap.interval(bootstrap.replicates(auc, records)['auc'])}


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'
