"""What is checked before a version is published can fail, in each of its parts."""

import numpy as np
import pytest

from boardrec.serving import self_test, warmup_requests


def test_the_golden_requests_are_the_same_each_time():
    assert self_test.golden_images(32, 40) == self_test.golden_images(32, 40)
    assert sum(map(len, self_test.golden_images(224, 224))) < 100_000


def test_other_weights_are_noticed(predictor, exported, session):
    kernel = predictor.model.get_layer('logits').kernel
    before = kernel.numpy()
    kernel.assign(before + 1)
    try:
        with pytest.raises(RuntimeError, match='serving_default differs from the run by'):
            self_test.check(predictor, session.ask, exported)
    finally:
        kernel.assign(before)


@pytest.mark.parametrize('threshold', [0.0, 1.0])
def test_another_decision_is_noticed(predictor, exported, session, threshold):
    other = predictor._replace(threshold=threshold)
    if [row['label'] for row in self_test.check(predictor, session.ask, exported) if row['valid']] == [
            predictor.classes.names[int(threshold == 0)]] * 4:
        pytest.skip('all images are of this class anyway')
    with pytest.raises(RuntimeError, match='serving_default decides otherwise'):
        self_test.check(other, session.ask, exported)


@pytest.mark.parametrize(('signature', 'output', 'change', 'problem'), [
    ('classify', 'classes', lambda names: names[:, ::-1], 'classify names other classes'),
    ('classify', 'scores', lambda scores: scores * np.nan, 'classify differs from the run by nan'),
    ('embedding', 'valid', np.ones_like, 'embedding answers'),
    ('serving_pixels', 'probabilities', lambda rows: rows[::-1], 'serving_pixels differs'),
    ('serving_default', 'score', lambda rows: np.append(rows, 0), 'does not take an empty batch')])
def test_every_output_is_looked_at(predictor, exported, session, signature, output, change, problem):
    def ask(name, inputs):
        answer = session.ask(name, inputs)
        return {**answer, output: change(answer[output])} if name == signature else answer

    with pytest.raises(RuntimeError, match=problem):
        self_test.check(predictor, ask, exported)


def test_a_warm_up_request_that_fails_is_noticed(predictor, session, tmp_path):
    warmup_requests.write(tmp_path, [('serving_default', {'image_bytes': [b'no image']})])
    with pytest.raises(RuntimeError, match='serving_default does not answer its warm-up request of 1'):
        self_test.check(predictor, session.ask, tmp_path)
