"""The report holds every piece, escapes what comes from outside, loads nothing and survives odd splits."""

import base64
import io

import numpy as np
from pages import check, evaluation, HISTORY, picture, predict, write
from PIL import Image
import pytest

from boardrec.reporting import metrics, report

YES = (['no', 'yes'], 'yes')


def test_two_classes(tmp_path):
    predictions = predict(150, 2)
    page = check(write(tmp_path, evaluation(predictions, *YES, threshold=0.4, temperature=1.5,
                                            slice_of=['a', 'b', 'c'] * 50), history=HISTORY, heated=True))
    result = metrics.compute(predictions, *YES, 0.4)
    words = page.visible
    assert f'{result["accuracy"]:.1%} of 150 test images right' in words
    low, high = result['intervals']['accuracy']
    assert f'The 95% interval is {low:.1%} to {high:.1%}; always answering' in words
    assert 'At threshold 0.4, chosen for the best F1 on 90 validation images, it finds' in words
    for key in ('balanced_accuracy', 'average_precision', 'f1', 'precision', 'recall', 'specificity', 'log_loss',
                'brier', 'ece'):
        assert f'{result[key]:.3f}' in page.words
        assert '95%: {:.3f} to {:.3f}'.format(*result['intervals'][key]) in page.words
    assert f'at threshold 0.5: {result["at_half"]["recall"]:.3f}' in page.words
    for piece in ('calibrated with temperature 1.5 (on val: 0.040, without it 0.090)', 'trainable_layers',
                  'best epoch, 2', 'rate lowered', 'Files that became no record', 'truncated', 'near, train and test',
                  '200x300 to 400x300; 75% are 400x300', '123.4', '65.0', 'abc123', 'def456',
                  'python -m boardrec.train --flagfile=RUN/run.flags --run_dir=NEW', 'Grad-CAM', '2.21.0'):
        assert piece in words, piece


def test_sections_come_in_this_order_and_the_verdict_first(tmp_path):
    text = write(tmp_path, evaluation(predict(150, 2), *YES, slice_of=['a', 'b'] * 75), history=HISTORY)
    titles = ['Key figures', 'Right and wrong', 'How sure it is', 'Each class', 'Slices', 'Worst errors',
              'Least certain', 'Training', 'Data', 'Speed', 'This run']
    places = [text.index(f'>{title}</h2>') for title in titles]
    assert places == sorted(places) and text.index('<h1>') < text.index('class="concerns"') < places[0]
    assert check(text).headings.count(2) == len(titles)


def test_the_worst_errors_and_the_least_certain_are_shown(tmp_path):
    predictions = predict(150, 2)
    said = predictions.probabilities.argmax(axis=1)
    wrong = [i for i in range(150) if said[i] != predictions.labels[i]]
    worst = sorted(wrong, key=lambda i: -predictions.probabilities[i].max())[:24]
    unsure = sorted(range(150), key=lambda i: abs(predictions.probabilities[i, 0] - 0.5))[:12]
    asked = []

    def read(record_id: int) -> bytes:
        asked.append(record_id)
        return picture(record_id)

    made = evaluation(predictions, *YES)
    page = check(write(tmp_path, made, read_image=read, heated=True))
    assert asked == [100 + i for i in worst + unsure]
    assert report.shown(made) == {100 + i: said[i] for i in worst + unsure}
    assert [image['alt'] for image in page.images[::2]] == [
        f'{YES[0][predictions.labels[i]]}: {predictions.sources[i]}' for i in worst + unsure]
    assert [image['alt'] for image in page.images[1::2]] == [
        f'Heat map of what looked like {YES[0][said[i]]}' for i in worst + unsure]
    for image in page.images:
        with Image.open(io.BytesIO(base64.b64decode(image['src'].partition(',')[2]))) as thumbnail:
            assert thumbnail.size == (176, 132) and thumbnail.format == 'JPEG'


def test_least_certain_of_many_classes_are_those_whose_first_two_are_close():
    predictions = predict(3, 3)._replace(
        probabilities=np.array([[0.4, 0.2, 0.4], [0.9, 0.05, 0.05], [0.35, 0.33, 0.32]]))
    np.testing.assert_array_equal(report.least_certain(predictions, np.zeros(3)), [0, 2, 1])


def wrong_first(predictions):
    """The predictions, the first of which is a mistake."""
    probabilities = predictions.probabilities.copy()
    probabilities[0] = np.roll(np.eye(probabilities.shape[1])[predictions.labels[0]], 1)
    return predictions._replace(probabilities=probabilities)


@pytest.mark.parametrize('classes', [3, 7, 60])
def test_more_classes(tmp_path, classes):
    names = [f'class{i}' for i in range(classes)]
    page = check(write(tmp_path, evaluation(wrong_first(predict(4 * classes, classes)), names), history=HISTORY))
    assert 'ROC curve' in page.visible and (f'{classes} classes' in page.visible) == (classes > 4)
    assert ('Confusion matrix' in page.visible) == (classes <= 50)
    assert ('with the smallest area' in page.visible) == (classes > 6)
    assert 'Most confused' in page.visible and 'threshold' not in page.visible.partition('Worst errors')[0]


@pytest.mark.parametrize(('records', 'label'), [(1, 1), (5, 0)])
def test_a_class_that_is_absent(tmp_path, records, label):
    predictions = predict(records, 2)._replace(labels=np.full(records, label, np.int32))
    words = check(write(tmp_path, evaluation(predictions, *YES))).visible
    assert 'there is no ROC curve to draw' in words
    assert f'There is no image of {YES[0][1 - label]}: how well it is found is unknown.' in words


@pytest.mark.parametrize('classes', [1, 3])
def test_a_single_record(tmp_path, classes):
    words = check(write(tmp_path, evaluation(predict(1, classes), list('abc')[:classes]), sizes=[])).visible
    assert 'of 1 test image right' in words and 'This run has no history.' in words
    assert '1 record cannot tell how good it is' in words


def test_what_is_unknown_is_said(tmp_path):
    words = check(write(tmp_path, evaluation(predict(150, 2), *YES)._replace(decision=None, images_per_second=None),
                        rejected=None, duplicates=None)).visible
    assert 'rejected.csv is missing or damaged' in words and 'Leaks are unknown' in words and 'Not measured.' in words


def test_more_classes_of_which_one_is_present(tmp_path):
    predictions = predict(9, 3)._replace(labels=np.zeros(9, np.int32))
    words = check(write(tmp_path, evaluation(predictions, list('abc')))).visible
    assert 'there is no ROC curve to draw' in words and 'Most confused' in words


def test_the_threshold_stands_beside_the_probability_of_a_mistake(tmp_path):
    predictions = predict(2, 2)._replace(labels=np.array([0, 1], np.int32), probabilities=np.array([[0.5, 0.5],
                                                                                                   [0.75, 0.25]]))
    words = ' '.join(check(write(tmp_path, evaluation(predictions, *YES, threshold=0.4))).visible.split())
    assert 'said yes 0.500 (threshold 0.4), is no' in words, 'the positive class from 0.4'
    assert 'said no 0.750 (threshold 0.6), is yes' in words, 'the other one above 0.6'


def test_no_errors_are_told(tmp_path):
    predictions = predict(6, 2)
    predictions = predictions._replace(probabilities=np.eye(2)[predictions.labels])
    assert 'Not one error.' in check(write(tmp_path, evaluation(predictions, *YES))).visible


def test_what_comes_from_outside_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&amp;\'$title $$'
    predictions = predict(4, 2, [evil, f'"><img src=http://example.com/{evil}>', 'test/caf\udce9.jpg', 'zeile\n2.jpg'])
    names = [evil, '"onload="alert(1)']
    made = evaluation(predictions, names, evil, slice_of=[evil] * 4)
    text = write(tmp_path, made, rejected=[(evil, 1)], storage=evil)
    page = check(text)
    assert '<script' not in text
    words = ' '.join(page.words)
    assert evil in words and '"onload="alert(1)' in words and r'test/caf\udce9.jpg' in words
    assert f'"><img src=http://example.com/{evil}>' in words


def test_a_failure_leaves_the_report_that_was_there(tmp_path):
    def read(record_id: int) -> bytes:
        raise MemoryError

    (tmp_path / 'index.html').write_text('before')
    with pytest.raises(MemoryError):
        write(tmp_path, evaluation(predict(6, 2), *YES), read_image=read)
    assert (tmp_path / 'index.html').read_text() == 'before'
