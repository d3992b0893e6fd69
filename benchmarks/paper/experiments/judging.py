"""When a request counts as forgotten: against the model that was re-trained without it, request by request."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.paper.measuring import rounded
from unlearn_serve.evaluation.bootstrap import interval

LEVELS = ("probability", "extraction_strength")
"""What "forgotten" is judged by."""


def bounds_of(forget: Mapping[str, list[float]], step: int, per: int) -> dict[str, list[tuple[float, float]]]:
    """By level and request, the 95 % interval of the model that never saw any of the authors."""
    return {level: [mean_interval(forget[level][n * per : (n + 1) * per]) for n in range(step)] for level in LEVELS}


def judged(
    rows: Mapping[str, Mapping[str, list[float]]],
    bounds: Mapping[str, Sequence[tuple[float, float]]],
    step: int,
    per: int,
) -> dict[str, Any]:
    """How many requests are forgotten: every level at most the interval's upper end; and how many lie inside it."""
    means = {level: [mean(rows["forget"][level][n * per : (n + 1) * per]) for n in range(step)] for level in LEVELS}
    gone = [all(means[level][n] <= bounds[level][n][1] for level in LEVELS) for n in range(step)]
    inside = [
        all(bounds[level][n][0] <= means[level][n] <= bounds[level][n][1] for level in LEVELS) for n in range(step)
    ]
    return {
        "forgotten": sum(gone),
        "within_interval": sum(inside),
        **{f"forget_{level}": rounded(mean(rows["forget"][level])) for level in LEVELS},
    }


def retained_over_original(
    rows: Mapping[str, Mapping[str, list[float]]], original: Sequence[float], step: int, per: int
) -> float:
    """Mean probability of the rows that stay, over that of the same rows in the original (all its training rows)."""
    return mean(rows["retain"]["probability"]) / mean(original[step * per :])


def mean_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean; the mean itself where there is but one value."""
    array = np.array(values)
    found = interval(lambda index: array[index].mean(-1), [len(values)], seed=seed)
    return (float(array.mean()),) * 2 if found is None else found


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
