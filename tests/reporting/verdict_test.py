"""Each reason to worry is told, and only where there is one."""

import numpy as np
from pages import facts_of, HISTORY, predict
import pytest

from boardrec.data.records import Duplicate
from boardrec.reporting import metrics, slices, verdict

NAMES = ['no', 'yes']
CLEAN = facts_of(NAMES, rejected=[], duplicates=[]).data
CALM = [{**row, 'accuracy': 0.6} for row in HISTORY]


def made(records=2000, wrong=0.1, seed=0, positives=0.5):
    """Predictions of which this share is wrong, whose probabilities are honest."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(records) < positives).astype(np.int32)
    said = np.where(rng.random(records) < wrong, 1 - labels, labels)
    probabilities = np.full((records, 2), wrong)
    probabilities[np.arange(records), said] = 1 - wrong
    return metrics.Predictions(np.arange(records), [f'{i}.jpg' for i in range(records)], labels, probabilities)


def told(predictions=None, **settings):
    values = metrics.compute(made() if predictions is None else predictions, NAMES, 'yes')
    defaults = {'split': 'test', 'data': CLEAN, 'history': CALM}
    return verdict.concerns(values, **{**defaults, **settings})


def test_nothing_to_worry_about():
    (only,) = told()
    assert only.level == 'good' and only.words.startswith('Nothing stands out')


def test_headline_and_lead():
    values = metrics.compute(made(), NAMES, 'yes')
    assert verdict.headline(values, 'test') == f'{values["accuracy"]:.1%} of 2,000 test images right'
    decision = {'criterion': {'threshold': 'auto', 'min_precision': 0.9, 'min_recall': 0.0}, 'chosen_on': 'val',
                'validation': {'records': 90, 'f1': 0.9}}
    lead = verdict.lead(values, 'test', decision)
    assert 'At threshold 0.5, chosen for the best F1 on 90 validation images with precision of at least 0.9' in lead
    assert 'chosen' not in verdict.lead(values, 'test', None)
    few = metrics.compute(predict(3, 3), list('abc'), None)
    assert verdict.headline(few, 'val') == f'{int(few["accuracy"] * 3 + 0.5)} of 3 val images right'
    assert 'On average over the classes' in verdict.lead(few, 'val', None)


@pytest.mark.parametrize(('settings', 'level', 'words'), [
    ({'predictions': made(wrong=0.5, positives=0.9)}, 'bad', 'no better than always answering the commonest class.'),
    ({'predictions': made(200, wrong=0.09, positives=0.12)}, 'bad', 'may be no better than always'),
    ({'split': 'train'}, 'bad', 'images that it was trained on'),
    ({'split': 'val'}, 'note', 'were chosen on these images'),
    ({'predictions': made(positives=0)}, 'bad', 'no image of yes'),
    ({'predictions': made(20, wrong=0)}, 'bad', '20 records cannot tell'),
    ({'predictions': made(100, wrong=0.3)}, 'note', 'leave the accuracy uncertain by'),
    ({'predictions': made(positives=0.01)}, 'note', 'Few records of yes'),
    ({'history': HISTORY[:1] + [{**HISTORY[1], 'accuracy': 0.9}] + HISTORY[2:]}, 'note',
     'Overfitting: at its best epoch 90.0% of the training and 62.5% of the validation images'),
    ({'history': [{**row, 'accuracy': 0.5, 'val_accuracy': 0.0} for row in CALM]}, 'note', 'Overfitting: at its best'),
    ({'history': [{**row, 'val_loss': -row['epoch']} for row in CALM]}, 'note', 'The last epoch, 4, is the best'),
    ({'data': CLEAN._replace(rejected=[('truncated', 1)])}, 'note', '1 file of 301 became no record'),
    ({'data': CLEAN._replace(rejected=[('truncated', 30)])}, 'bad', '30 files of 330 became no record'),
    ({'data': CLEAN._replace(rejected=None)}, 'note', 'Rejected files are unknown'),
    ({'source_check': {'records': 9, 'decisions_differ': 2}}, 'bad', 'Of 9 records 2 are decided otherwise'),
])
def test_each_reason_is_told(settings, level, words):
    assert [concern.level for concern in told(**settings) if words in concern.words] == [level]


def test_a_tie_of_label_counts_has_no_commonest_class():
    predictions = made(200, wrong=0.5)._replace(labels=(np.arange(200) % 2).astype(np.int32))
    values = metrics.compute(predictions, NAMES, 'yes')
    assert 'always answering no, as common as any other class, would be right for 50.0%' in verdict.lead(
        values, 'test', None)
    assert any('always answering one and the same class' in concern.words for concern in told(predictions))
    assert 'the commonest class, would be' in verdict.lead(metrics.compute(made(), NAMES, 'yes'), 'test', None)


def test_a_threshold_of_no_use_is_told():
    values = {'called_positive': 90, 'records': 90, 'auc': None, 'auc_interval': None}
    found = told(decision={'temperature': 1, 'threshold': 0.1, 'validation': values})
    assert [(concern.level, concern.words) for concern in found] == [
        ('bad', 'The threshold 0.1 is of little use: it calls every validation record positive.')]


def leak(split, other, label='yes', action='reported'):
    return Duplicate('a', split, 'no', 'b', other, label, 'near', '0.1', action)


def test_leaks_of_the_split_that_were_kept():
    data = CLEAN._replace(duplicates=[leak('train', 'test', 'no'), leak('train', 'val', 'no'),
                                      leak('train', 'test', 'no', 'dropped'), leak('test', 'test')])
    words = [concern.words for concern in told(data=data)]
    assert len(words) == 2
    assert words[0].startswith('1 photograph of this split is nearly') and words[1].startswith('1 pair of one')


def test_a_photograph_with_many_copies_leaks_once():
    copies = [leak('train', 'test', 'no')._replace(source=name) for name in 'cde']
    assert told(data=CLEAN._replace(duplicates=copies))[0].words.startswith('1 photograph of this split is nearly')


def test_slices_that_are_worse_or_small():
    predictions = made()
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    # The first has all errors in it.
    slice_of = np.where(right & (np.arange(2000) % 3 > 0), 'good', 'bad')
    slice_of[:5] = 'tiny'
    sliced = slices.compute(predictions, slice_of.tolist(), NAMES, 'yes')
    words = [concern.words for concern in told(predictions, slices=sliced)]
    assert words[0].startswith('Worse than the rest: slice bad (') and 'slice tiny is worse' in words[1]


def test_an_ece_that_cannot_be_believed():
    predictions = made()
    sure = predictions._replace(probabilities=np.clip(predictions.probabilities * 9 - 4, 0, 1))
    assert 'evaluate --calibrate may mend that' in told(sure)[0].words
    assert 'calibration notwithstanding' in told(sure, decision={'temperature': 1.2, 'validation': {}})[0].words


def test_a_class_that_is_missed():
    predictions = made(positives=0.2)
    missed = predictions._replace(probabilities=np.where(
        (predictions.labels == 1)[:, None] & (np.arange(2000) % 3 > 0)[:, None], [[0.9, 0.1]],
        predictions.probabilities))
    assert any(concern.words.startswith('It finds less than half of yes (') for concern in told(missed))
