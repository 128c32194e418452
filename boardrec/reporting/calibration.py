"""How far probabilities may be believed: bins to compare them with outcomes in, and a temperature that mends them."""

import numpy as np

from boardrec.config import SMALLEST_PROBABILITY

BINS = 15  # of equal width over [0, 1]; Guo et al. (2017)
COLDEST, HOTTEST = 0.05, 20.0  # of temperatures; on data that are told apart without a mistake the best would be 0


def bins(probabilities: np.ndarray) -> np.ndarray:
    """The bin of each probability, int64 of the same shape, from 0 to BINS - 1; 1 belongs to the last."""
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """The temperature T, to four decimals, for which softmax(ln(p) / T) has the smallest log loss.

    labels: int [N]; probabilities: [N, C], of temperature 1. The log loss is convex in 1/T, so its slope is bisected
    (temperature scaling: Guo et al., 2017). None where the best is not between COLDEST and HOTTEST: all records are
    told apart, or the probabilities tell nothing.
    """
    logits = np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1))
    own = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        """The derivative of the log loss by 1/T: the mean logit that is expected, less that of the true class."""
        scaled = np.exp(inverse * (logits - logits.max(axis=1, keepdims=True)))
        return float(((scaled * logits).sum(axis=1) / scaled.sum(axis=1) - own).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return round(float(1 / np.sqrt(low * high)), 4)
