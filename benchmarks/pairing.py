"""Paired ratios and spreads. A ratio is taken within one block: one cell, one round, one session; then the median."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
"""One run: `block`, `variant`, `load`, `batch` and its figures."""

METRICS = ("output_tokens_per_s", "input_tokens_per_s", "ttft_ms_p50", "itl_ms_p50", "itl_ms_p99", "peak_memory_mib")


def paired_ratios(records: Iterable[Record], variant: str, baseline: str, metric: str) -> list[float]:
    """Return variant / baseline for each block that has both, in the order of the blocks' first runs.

    Raises:
        ValueError: a block has two runs of one of them, so they cannot be paired.
    """
    blocks: dict[Any, dict[str, float]] = {}
    for record in records:
        block = blocks.setdefault(record["block"], {})
        if record["variant"] in block:
            raise ValueError(f"block {record['block']!r}: expected one run of {record['variant']}, got two")
        block[record["variant"]] = record[metric]
    both = [block for block in blocks.values() if variant in block and baseline in block]
    return [block[variant] / block[baseline] for block in both]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return min, quartiles and max. Of one value, that value."""
    if not values:
        raise ValueError("expected at least one value, got none")
    if len(values) == 1:
        low = middle = high = values[0]
    else:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "q25": low, "median": middle, "q75": high, "max": max(values)}
