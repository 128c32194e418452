"""Two runs on the same records, against scipy and counts by hand."""

import json

from made_predictions import make, random
import numpy as np
import pytest
from scipy import stats

from boardrec.config import UserError
from boardrec.reporting import comparison, metrics
from boardrec.reporting.comparison import Run


def worse(predictions, share, seed=1):
    """The predictions with noise in place of some."""
    rng = np.random.default_rng(seed)
    noise = rng.dirichlet(np.ones(predictions.probabilities.shape[1]), len(predictions.labels))
    return predictions._replace(probabilities=metrics.as_float32(
        np.where(rng.random((len(noise), 1)) < share, noise, predictions.probabilities)))


def test_a_run_and_itself():
    run = Run('a', random(50, 2), 0.5)
    result = comparison.compare(run, run, ['no', 'yes'], 'yes')
    assert result['changed'] == [] and result['mcnemar']['p_value'] == 1 and result['identical']
    assert all(row['interval'] == [0, 0] and not row['excludes_0'] for row in result['metrics'].values())


def test_differences_are_paired():
    first = random(300, 2)
    second = worse(first, 0.3)
    result = comparison.compare(Run('a', first, 0.5), Run('b', second, 0.5), ['no', 'yes'], 'yes')
    right = [metrics.decide(run.probabilities, 1) == first.labels for run in (first, second)]
    change = right[1].astype(float) - right[0]
    row = result['metrics']['accuracy']
    assert row['difference'] == pytest.approx(change.mean()) == pytest.approx(row['second'] - row['first'])
    half = 1.96 * change.std() / np.sqrt(300)
    assert row['interval'] == pytest.approx([change.mean() - half, change.mean() + half], abs=0.12 * half)
    assert row['excludes_0'] == (not row['interval'][0] <= 0 <= row['interval'][1])
    for run, name in (first, 'first'), (second, 'second'):
        alone = metrics.compute(run, ['no', 'yes'], 'yes')
        assert {key: row[name] for key, row in result['metrics'].items()} == pytest.approx(
            {key: alone[key] for key in result['metrics']})
    json.dumps(result, allow_nan=False)


def test_mcnemar_by_hand():
    first = np.array([1] * 12 + [0] * 4 + [1] * 30 + [0] * 5, bool)
    second = np.array([0] * 12 + [1] * 4 + [1] * 30 + [0] * 5, bool)
    found = comparison.mcnemar(first, second)
    assert [found[key] for key in ('both_right', 'only_first', 'only_second', 'both_wrong')] == [30, 12, 4, 5]
    assert found['p_value'] == pytest.approx(2 * stats.binom(16, 0.5).cdf(4))


def test_recall_and_specificity_have_mcnemars_test_on_their_records():
    """Of ten positive records only the first run has eight right; of ten negative only the second has three."""
    labels = np.repeat([1, 0], 10)
    right = [np.array([1] * 8 + [0] * 2 + [0] * 3 + [1] * 7), np.array([0] * 8 + [0] * 2 + [1] * 3 + [1] * 7)]
    runs = [Run(name, make(labels, np.eye(2)[np.where(of_run, labels, 1 - labels)]), 0.5)
            for name, of_run in zip('ab', right, strict=True)]
    result = comparison.compare(*runs, ['no', 'yes'], 'yes')
    found = {name: row['p_value'] for name, row in result['metrics'].items() if row['p_value'] is not None}
    assert found == pytest.approx({'accuracy': stats.binomtest(3, 11).pvalue, 'recall': 2 / 2**8,
                                   'specificity': 2 / 2**3})
    three = Run('c', random(20, 3), 0.5)
    rows = comparison.compare(three, three, list('abc'), None)['metrics']
    assert [name for name, row in rows.items() if row['p_value'] is not None] == ['accuracy']


def test_the_changed_are_listed_what_became_wrong_first():
    first = make([0, 1, 1, 0], [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    second = first._replace(probabilities=np.array([[0.9, 0.1], [0.2, 0.8], [0.75, 0.25], [0.7, 0.3]]))
    result = comparison.compare(Run('a', first, 0.5), Run('b', second, 0.3), ['no', 'yes'], 'yes')
    assert [(row['source'], row['label'], row['first']['predicted'], row['second']['predicted'])
            for row in result['changed']] == [
        ('test/2.jpg', 'yes', 'yes', 'no'), ('test/3.jpg', 'no', 'no', 'yes'), ('test/1.jpg', 'yes', 'no', 'yes')]
    assert result['changed'][0]['second']['probability'] == pytest.approx(0.75)


@pytest.mark.parametrize('records', [1, 2])
def test_few_records_and_an_absent_class(records):
    run = Run('a', make([0] * records, [[0.9, 0.1]] * records), 0.5)
    found = comparison.compare(run, run, ['no', 'yes'], 'yes')['metrics']
    assert found['auc'] == {'first': None, 'second': None, 'difference': None, 'interval': None, 'excludes_0': None,
                            'p_value': None}
    assert found['recall']['p_value'] is None and found['specificity']['p_value'] == 1


def test_other_records_are_refused():
    a = Run('a', random(5, 2), 0.5)
    for b in random(6, 2), a.predictions._replace(labels=1 - a.predictions.labels), random(5, 2)._replace(
            sources=['x'] * 5):
        with pytest.raises(UserError, match='a and b were evaluated on other records'):
            comparison.compare(a, Run('b', b, 0.5), ['no', 'yes'], 'yes')
