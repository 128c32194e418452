"""Slices: named by paths or a file, each a table of its own, and told when they are worse."""

from made_predictions import make, random
import numpy as np
import pytest

from boardrec.config import UserError
from boardrec.reporting import metrics, slices, summary


@pytest.mark.parametrize(('pattern', 'names'), [
    ('^[^/]+', ['a', 'b', 'c']), ('([a-z])/cam(.)', ['a/1', 'b/2', '(none)']), ('^(a)?', ['a', '(none)', '(none)'])])
def test_a_regular_expression_names_slices(pattern, names):
    assert slices.names_of(['a/cam1/x.jpg', 'b/cam2/x.jpg', 'c/x.jpg'], pattern) == names


def test_a_column_names_slices(tmp_path):
    path = tmp_path / 'modules.csv'
    path.write_text('\ufeffpath,type\na.jpg,mono\n"b,1.jpg",poly\nc.jpg,\n')
    names = slices.names_of(['b,1.jpg', 'a.jpg', 'c.jpg', 'd.jpg'], f'{path}:type')
    assert names == ['poly', 'mono', '(none)', '(none)']
    for column, sources, message in (('kind', ['a.jpg'], "must name the columns path,kind; it reads 'path,type'"),
                                     ('type', ['z'], "lists none of the records, such as 'z'")):
        with pytest.raises(UserError, match=message):
            slices.names_of(sources, f'{path}:{column}')
    path.write_text('path,type\na,1\na,2\n')
    with pytest.raises(UserError, match="line 3: 'a' has two values, '1' and '2'"):
        slices.names_of(['a'], f'{path}:type')
    with pytest.raises(UserError, match='there is no file gone.csv'):
        slices.names_of(['a'], 'gone.csv:type')
    with pytest.raises(UserError, match="--slice_by=xyz matches none of the records, such as 'a'"):
        slices.names_of(['a'], 'xyz')


def test_each_slice_has_the_metrics_of_its_records():
    predictions = random(90, 2)
    slice_of = ['ab'[i % 3 == 0] for i in range(90)]
    first, second = slices.compute(predictions, slice_of, ['no', 'yes'], 'yes', 0.4)
    assert [first['slice'], second['slice']] == ['a', 'b'] and first['records'] == 60
    alone = metrics.compute(slices.take(predictions, np.arange(90) % 3 == 0), ['no', 'yes'], 'yes', 0.4)
    del alone['confusion_matrix']
    assert {key: second[key] for key in alone} == alone and 'confusion_matrix' not in second
    assert second['difference'] == pytest.approx(second['accuracy'] - first['accuracy'])


def of_accuracy(*counts):
    """Slices a, b, ... of (records, right of them) each."""
    labels = np.concatenate([np.arange(n) < right for n, right in counts]).astype(int)
    predictions = make(labels, np.tile([0.1, 0.9], (len(labels), 1)))  # says 1 of all
    slice_of = np.repeat(list('abc')[:len(counts)], [n for n, _ in counts])
    return slices.compute(predictions, slice_of, ['no', 'yes'], 'yes')


def test_worse_slices_and_those_too_small_are_told_apart():
    rows = of_accuracy((200, 190), (40, 25), (9, 1))
    assert [row['verdict'] for row in rows] == ['ok', 'worse', 'too small']
    first, second = summary.warnings(rows)
    assert "slice 'b' is worse than the others: accuracy 0.6250 on 40 records, -0.288" in first
    assert second == "note: too few records to tell whether these slices are worse: 'c'"
    assert of_accuracy((200, 190), (12, 11))[1]['verdict'] == 'too small'
    assert of_accuracy((200, 190))[0]['difference'] is None
    text = summary.text(metrics.compute(random(30, 2), ['no', 'yes'], 'yes', 0.4), rows)
    assert 'threshold 0.4' in text and 'threshold 0.5' in text and 'worse' in text


def test_the_interval_of_a_difference():
    # 56/70 less 48/80: Newcombe (1998), table II, method 10
    assert slices.difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert slices.difference_interval(10, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=1e-4)


def test_too_many_slices_are_refused():
    with pytest.raises(UserError, match="makes 201 slices, such as '0' and '1': at most 200"):
        slices.compute(random(201, 2), [str(i) for i in range(201)], ['no', 'yes'], 'yes')
