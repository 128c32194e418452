"""Predictions that tests make."""

import numpy as np

from boardrec.reporting import metrics


def make(labels, probabilities, sources=None) -> metrics.Predictions:
    labels = np.array(labels, np.int32)
    return metrics.Predictions(
        record_ids=np.arange(len(labels), dtype=np.int64) * 3 + 5,
        sources=sources or [f'test/{i}.jpg' for i in range(len(labels))],
        labels=labels, probabilities=np.array(probabilities, np.float32).astype(np.float64))


def random(records: int, classes: int, seed: int = 0) -> metrics.Predictions:
    """Better than chance, with ties: probabilities are multiples of 1/64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, records)
    votes = np.stack([rng.multinomial(64, np.full(classes, 0.95 / classes) + 0.05 * (np.arange(classes) == label))
                      for label in labels])
    return make(labels, votes / 64)
