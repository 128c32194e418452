"""95 % intervals by the bootstrap: records drawn with replacement, as many as there are, again and again.

Percentile intervals (Efron, 1979), seeded, in bounded memory: resamples are drawn in chunks, as counts of how often
each record was drawn (multinomial), and no record is copied.
"""

from collections.abc import Iterator

import numpy as np

from boardrec.reporting.measures import Measure

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
_CHUNK = 1 << 18  # counts at a time, 2 MiB, which stay in a core's cache
_WORK = 2 * 10**9  # counts times classes, about a minute; more classes and records get fewer resamples
_FEWEST = 200  # below which the ends of an interval are noise; then it takes longer


def replicates(measure: Measure, records: int, *, classes: int = 2) -> dict[str, np.ndarray]:
    """What `measure` gives on each of `resamples(...)` resamples of so many records: {metric: [R] or [R, C]}."""
    chunks = [measure(weights) for weights in draw(records, resamples(records, classes))]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def resamples(records: int, classes: int) -> int:
    """How many resamples are made: RESAMPLES, fewer where that would take minutes."""
    return int(np.clip(_WORK // (records * classes), _FEWEST, RESAMPLES))


def draw(records: int, count: int) -> Iterator[np.ndarray]:
    """Yields `count` rows in all of float64 [R, records]: how often each record is drawn, adding up to `records`."""
    random, chunk = np.random.default_rng(SEED), max(1, _CHUNK // records)
    for first in range(0, count, chunk):
        drawn = random.integers(0, records, (min(chunk, count - first), records), dtype=np.int32)
        weights = np.empty(drawn.shape)
        for row, places in zip(weights, drawn, strict=True):
            row[:] = np.bincount(places, minlength=records)
        yield weights


def interval(values: np.ndarray) -> list[float] | None:
    """[low, high] of replicates [R] of a metric; None where it was undefined in more than half of them.

    Resamples in which it is undefined, such as those without a record of the class, are left out.
    """
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return None
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)]
