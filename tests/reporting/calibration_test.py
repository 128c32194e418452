"""Temperatures: found again, none where there is no best one, and applied as inference applies them."""

import numpy as np
import pytest
from scipy import optimize

from boardrec.reporting import calibration
from boardrec.training import inference


def overconfident(classes, records=4000, factor=2.5):
    """Labels drawn from the true probabilities, and probabilities whose logits are `factor` times theirs."""
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(records, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((records, 1)) > true.cumsum(axis=1)).sum(axis=1)
    said = np.exp(factor * logits)
    return labels, said / said.sum(axis=1, keepdims=True)


def log_loss(temperature, labels, probabilities):
    scaled = inference.calibrate(probabilities, float(temperature)).numpy()
    return -np.log(scaled[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize('classes', [2, 5])
def test_the_temperature_that_made_them_is_found(classes):
    labels, probabilities = overconfident(classes)
    temperature = calibration.fit_temperature(labels, probabilities)
    assert temperature == pytest.approx(2.5, rel=0.1)
    best = optimize.minimize_scalar(log_loss, (1, 4), args=(labels, probabilities)).x
    assert temperature == pytest.approx(best, rel=1e-3)


def test_no_temperature_where_all_are_told_apart_or_nothing_is_said():
    assert calibration.fit_temperature(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]])) is None
    assert calibration.fit_temperature(np.array([0, 1]), np.full((2, 2), 0.5)) is None
    assert calibration.fit_temperature(np.array([0, 1]), np.array([[0.1, 0.9], [0.8, 0.2]])) is None


def test_extreme_probabilities_stay_finite():
    scaled = inference.calibrate(np.array([[0, 1], [1, 0], [0.25, 0.75]], np.float32), 2.0).numpy()
    assert np.isfinite(scaled).all() and scaled.sum(axis=1) == pytest.approx(1)
    assert scaled[2, 1] == pytest.approx(1 / (1 + 3 ** -0.5))  # odds 3 become their square root
