"""Confidence intervals by bootstrap over the rows of the sets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unlearn_serve.evaluation.readings import Floats

RESAMPLES = 1000
CONFIDENCE = 0.95


def interval(statistic: Callable[..., Floats], rows: Sequence[int], *, seed: int) -> tuple[float, float] | None:
    """Percentile interval of a statistic over one or several sets, each resampled with replacement.

    Args:
        statistic: takes one integer array of row indices [..., n] for each set and returns [...].
        rows: how many rows each set has.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        Lower and upper bound, or None where a set has a single row and says nothing about its spread.
    """
    if min(rows) < 2:
        return None

    def of_indices(*indices: Any, axis: int) -> Floats:
        del axis  # scipy wants it; it is the last one
        return statistic(*(np.asarray(index).astype(np.int64) for index in indices))

    with np.errstate(invalid="ignore"):
        found = stats.bootstrap(
            [np.arange(n) for n in rows],
            of_indices,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=True,
            axis=-1,
            rng=np.random.default_rng(seed),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
