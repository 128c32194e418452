"""The page of two runs says what comparison says, and what cannot be compared is refused."""

import dataclasses
import json

import numpy as np
from pages import check, HISTORY, picture, predict
import pytest

from boardrec.config import TrainConfig, UserError
from boardrec.data import files
from boardrec.reporting import comparison, comparison_page, metrics, predictions_csv
from boardrec.reporting.comparison_page import Side

NAMES = ['no', 'yes']
CONFIG = TrainConfig(records='R', run_dir='A')


def side(name, predictions, names=NAMES, positive='yes', threshold=0.5, config=CONFIG):
    from boardrec.reporting import facts
    values = {**metrics.compute(predictions, names, positive, threshold), 'images_per_second': 12.5}
    changed, other = facts.settings(config)
    return Side(comparison.Run(name, predictions, threshold), values, {**changed, **other},
                {'versions': {'numpy': '2'}, 'epochs': 3})


def worse(predictions, rows):
    """The predictions with some turned round."""
    probabilities = predictions.probabilities.copy()
    probabilities[rows] = probabilities[rows, ::-1]
    return predictions._replace(probabilities=probabilities)


def write(tmp_path, first, second, positive='yes', read_image=picture):
    result = comparison.compare(first.run, second.run, first.values['class_names'], positive)
    comparison_page.write(tmp_path / 'c.html', result, [first, second], 'test', positive, read_image=read_image)
    return check((tmp_path / 'c.html').read_text()), result


def test_two_runs(tmp_path):
    predictions = predict(200, 2)
    right = np.flatnonzero(predictions.probabilities.argmax(axis=1) == predictions.labels)
    second = side('runs/b', worse(predictions, right[:30]), config=dataclasses.replace(CONFIG, epochs=99))
    page, result = write(tmp_path, side('runs/a', predictions), second)
    words = page.visible
    assert 'B is worse than A by 15.0%' in words and 'A is a, B is b' in words
    assert 'Only A is right on 30 images and only B on 0' in words
    assert 'The difference in accuracy is not by chance: its interval lies below 0.' in words
    assert 'B is worse' in page.words and 'B is better' not in page.words
    assert 'Became wrong: 30' in words and 'Became right' not in words
    for row in result['metrics'].values():
        assert f'{row["first"]:.3f}' in page.words and f'{row["difference"]:+.3f}' in page.words
    assert {'epochs', '99'} <= set(page.words) and 'backbone' not in page.words
    assert len(page.images) == 30 == len(comparison_page.shown(result['changed']))
    assert result['changed'][0]['source'] in page.words
    assert comparison_page.sentence(result).endswith('McNemar p = less than 0.0001')


def test_runs_that_decide_alike(tmp_path):
    one = side('a', predict(50, 2))
    page, _ = write(tmp_path, one, one)
    assert 'A and B give the same probabilities' in page.visible and 'Not one.' in page.visible
    assert 'they decide each of them alike. ' not in page.visible and 'are they copies of one?' in page.visible
    assert page.words.count('the same') == 11 and 'may be chance' not in page.words and 'McNemar).' not in page.visible
    nearly = one.run.predictions._replace(probabilities=one.run.predictions.probabilities * 0.5 + 0.25)
    page, result = write(tmp_path, one, side('b', nearly, config=dataclasses.replace(CONFIG, run_dir='B')))
    assert 'A and B decide alike' in page.visible and 'what is right on no records: too few' in page.visible
    assert 'run_dir' not in page.words and not result['identical']


def test_runs_that_are_as_good_on_other_images(tmp_path):
    predictions = predict(50, 2)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    turned = worse(predictions, [np.flatnonzero(right)[0], np.flatnonzero(~right)[0]])
    page, _ = write(tmp_path, side('a', predictions), side('b', turned))
    assert f'Of 50 images both have {right.mean():.1%} right. Only A is right on 1 image and only B on 1, as uneven' \
        in page.visible


def test_learning_curves_of_both_runs_and_of_one_without_history(tmp_path):
    first, second = side('x/old', predict(50, 2))._replace(history=HISTORY), side('x/new', predict(50, 2, seed=1))
    second = second._replace(run=second.run._replace(predictions=predict(50, 2)))
    page, _ = write(tmp_path, first, second._replace(history=HISTORY[:3]))
    for words in ('A, old: validation', 'B, new: training', 'A, old: best epoch, 2', 'B, new: best epoch, 2'):
        assert words in page.words
    assert 'left out' not in page.visible
    page, _ = write(tmp_path, first, second)
    assert 'B, new: this run has no history, so its learning curves are left out.' in page.visible
    assert 'A, old: validation' in page.words and 'B, new: validation' not in page.words
    page, _ = write(tmp_path, second, second)
    assert page.visible.count('its learning curves are left out') == 2


def test_more_classes_and_another_mistake(tmp_path):
    names = list('abc')
    predictions = predict(40, 3)
    turned = predictions._replace(probabilities=np.roll(predictions.probabilities, 1, axis=1))
    page, _ = write(tmp_path, side('x/run', predictions, names, None), side('y/run', turned, names, None), None)
    assert 'Wrong in another way' in page.visible and 'A is x/run, B is y/run' in page.visible
    assert 'Curves are drawn for two classes' in page.visible


def test_one_record_of_one_class(tmp_path):
    one = predict(1, 2)
    page, _ = write(tmp_path, side('a', one), side('b', worse(one, [0])))
    assert 'No clear difference between A and B' in page.visible and 'Of 1 image A has' in page.visible
    assert 'what is right on 1 record only: too few' in page.visible
    assert 'All these images are of one class: what the runs make of others is unknown.' in page.visible


@pytest.mark.parametrize('apart, clear', [(4, False), (5, False), (6, True)])
def test_few_records_apart_are_no_clear_difference(tmp_path, apart, clear):
    predictions = predict(200, 2)
    right = np.flatnonzero(predictions.probabilities.argmax(axis=1) == predictions.labels)
    page, result = write(tmp_path, side('a', predictions), side('b', worse(predictions, right[:apart])))
    row = result['metrics']['accuracy']
    assert row['excludes_0'] and (result['mcnemar']['p_value'] < 0.05) == clear
    assert ('No clear difference between A and B' in page.visible) != clear
    assert ('is not by chance' in page.visible) == clear


def test_groups_share_the_pictures():
    assert comparison_page._fair([100, 100, 100]) == [16, 16, 16]
    assert comparison_page._fair([3, 100, 0]) == [3, 45, 0] and comparison_page._fair([2, 3, 4]) == [2, 3, 4]


def test_what_cannot_be_compared(tmp_path):
    run, known = tmp_path / 'run', {'weights_sha256': 'w'}
    with pytest.raises(UserError, match=r'has no evaluation of val: evaluate it first with python -m '
                                        r'boardrec.evaluate --run_dir=.*run --split=val'):
        comparison_page.read_side(run, 'val', CONFIG, known)
    folder = run / 'evaluation' / 'val'
    folder.mkdir(parents=True)
    predictions = predict(9, 2)
    predictions_csv.write(folder / 'predictions.csv', predictions, NAMES, split='val', positive_class='yes')
    values = {'weights_sha256': 'w', 'predictions_sha256': files.sha256_of(folder / 'predictions.csv'),
              'threshold': None}
    (folder / 'metrics.json').write_text(json.dumps(values))
    read = comparison_page.read_side(run, 'val', CONFIG, known)
    assert read.run.threshold == 0.5 and read.run.predictions.sources == predictions.sources
    for change in {'weights_sha256': 'other'}, {'predictions_sha256': 'other'}:
        (folder / 'metrics.json').write_text(json.dumps({**values, **change}))
        with pytest.raises(UserError, match='is not of its weights or was changed: evaluate it first'):
            comparison_page.read_side(run, 'val', CONFIG, known)
