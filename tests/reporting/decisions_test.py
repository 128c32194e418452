"""What validation records decide, what they may not be asked for, and when the threshold is of no use."""

from made_predictions import make, random
import numpy as np
import pytest
from sklearn import metrics as sk

from boardrec.config import UserError
from boardrec.reporting import decisions
from boardrec.reporting.decisions import Criterion


def chosen(predictions, positive=1, **criterion):
    return decisions.choose(predictions, positive, Criterion(**criterion), lambda _: predictions.probabilities)


def test_a_decision_says_why_and_what_it_came_to():
    predictions = make([0, 0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    decision = chosen(predictions)
    assert decision['threshold'] == pytest.approx(0.25) and decision['temperature'] == 1
    assert (decision['validation']['f1'], decision['validation']['at_half']['f1']) == (1, 0)
    assert decisions.sentence(decision) == 'threshold 0.25, with which F1 on val is 1.0000 (0.0000 at 0.5)'
    assert chosen(predictions, threshold='half')['threshold'] == 0.5
    assert chosen(random(9, 3), None)['threshold'] is None


def test_what_cannot_be_had_is_refused():
    hard = make([0, 1], [[0.1, 0.9], [0.6, 0.4]])
    with pytest.raises(UserError, match=r'--min_precision=0.9: no threshold reaches it .*; the highest there is 0.5'):
        chosen(hard, min_precision=0.9)
    with pytest.raises(UserError, match='--min_recall=0.5: there is a threshold between two classes only'):
        chosen(random(9, 3), None, min_recall=0.5)
    negatives = make([0, 0], [[0.9, 0.1], [0.6, 0.4]])
    with pytest.raises(UserError, match='--threshold=f1: no validation record is of the positive class'):
        chosen(negatives, threshold='f1')
    assert chosen(negatives)['threshold'] == 0.5


def scored(labels, scores):
    return make(labels, np.stack([1 - np.array(scores), scores], axis=1))


def test_a_threshold_that_chance_chose():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    decision = chosen(scored(labels, rng.random(60)))
    values = decision['validation']
    assert values['auc_interval'][0] < 0.5
    assert decisions.doubt(decision).startswith(f'the threshold {decision["threshold"]:.3g} is of little use: it was '
                                                f'chosen where ROC-AUC is {values["auc"]:.3f} (95% interval ')
    backwards = chosen(scored(labels, 0.8 - 0.6 * labels))
    assert 'ROC-AUC is 0.000 (95% interval 0.000 to 0.000), not clearly above chance (0.5), and it calls every ' \
           'validation record positive.' in decisions.doubt(backwards)
    good = scored(labels, np.clip(0.3 * labels + rng.random(60), 0, 1))
    found = chosen(good)
    assert decisions.doubt(found) == '' and found['validation']['auc'] == pytest.approx(
        sk.roc_auc_score(labels, good.probabilities[:, 1]))


@pytest.mark.parametrize(('scores', 'word'), [([0.1, 0.2, 0.3, 0.4], 'negative'), ([0.6, 0.7, 0.8, 0.9], 'positive')])
def test_a_threshold_that_decides_nothing(scores, word):
    decision = chosen(scored([0, 0, 1, 1], scores), threshold='half')
    assert decisions.doubt(decision) == (
        f'the threshold 0.5 is of little use: it calls every validation record {word}.')
    one_class = chosen(scored([0, 0, 0, 0], scores))
    assert one_class['validation']['auc'] is None and word in decisions.doubt(one_class)


def test_nothing_is_said_of_more_classes_or_of_an_earlier_decision():
    assert decisions.doubt(None) == decisions.doubt(chosen(random(9, 3), None)) == ''
    old = chosen(scored([0, 1], [0.1, 0.2]))
    del old['validation']['called_positive']
    assert decisions.doubt(old) == ''
