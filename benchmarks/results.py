"""Result lines: what a figure is, how it was made, and how far it moved from run to run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.pairing import METRICS, Record, paired_ratios, spread

RESULTS = Path(__file__).parent / "results"


class ResultLine(BaseModel):
    """What every line of every result file has."""

    model_config = ConfigDict(extra="forbid", strict=True)

    variant: str
    runs: int = Field(ge=1)
    machine: dict[str, Any]
    versions: dict[str, str]
    config: dict[str, Any]
    commit: str
    date: str


class ServingResult(ResultLine):
    """One variant under one load at one batch: medians over runs, ratios paired within blocks."""

    what: str
    load: Literal["decode", "prefill"]
    batch: int = Field(ge=1)
    output_tokens_per_s: float = Field(gt=0)
    input_tokens_per_s: float = Field(gt=0)
    ttft_ms_p50: float = Field(gt=0)
    itl_ms_p50: float = Field(gt=0)
    itl_ms_p99: float = Field(gt=0)
    peak_memory_mib: float = Field(gt=0)
    ratio_to_plain: float = Field(gt=0)
    """Output tokens/s over the plain server's: median of the ratios within each block."""
    ratios: dict[str, dict[str, float]]
    """Metric -> min, quartiles, max of its ratio to plain."""
    ratio_to: dict[str, float]
    """Output tokens/s over other variants': median, as `ratio_to_plain`."""
    spread: dict[str, float]
    """Min, quartiles, max of `ratio_to_plain` over blocks."""


class GrowthResult(ResultLine):
    """Throughput and memory as something grows, each as a ratio to the smallest."""

    axis: Literal["deletion_requests_covered", "releases_resident"]
    value: int = Field(ge=1)
    output_tokens_per_s: float = Field(gt=0)
    peak_memory_mib: float = Field(gt=0)
    ratio_to_smallest: float = Field(gt=0)
    memory_ratio_to_smallest: float = Field(gt=0)
    spread: dict[str, float]


class SwapResult(ResultLine):
    """What changing what is forgotten costs, one way of doing it; milliseconds, medians over swaps."""

    what: str
    publish_to_live_ms: float = Field(gt=0)
    """From the call that publishes until the first token could be computed under the new release."""
    stall_ms: float | None
    """What the server says that generation stood still, without what is then recomputed."""
    gap_ms: float = Field(gt=0)
    """Longest time between two tokens of a running stream around a change: the worst stream, median over changes."""
    tokens_recomputed: float | None
    tokens_under_old: float | None
    """Tokens that running requests still got under the old layer after the new one was live."""
    failed_requests: int = Field(ge=0)
    spread: dict[str, dict[str, float]]


class LatencyResult(ResultLine):
    """`vllm bench latency`: how long one batch takes on the engine alone; milliseconds, medians over engine starts."""

    batch_latency_ms: float = Field(gt=0)
    ratio_to_plain: float = Field(gt=0)
    spread: dict[str, float]


def summarise(
    runs: Iterable[Record],
    *,
    variant: str,
    what: str,
    load: str,
    batch: int,
    others: Sequence[str],
    about: Mapping[str, Any],
) -> ServingResult | None:
    """Return the line of one variant and cell; None where it was never measured."""
    here = [run for run in runs if run["load"] == load and run["batch"] == batch]
    own = [run for run in here if run["variant"] == variant]
    ratios = {metric: paired_ratios(here, variant, "plain", metric) for metric in METRICS}
    if not own or not ratios["output_tokens_per_s"]:
        return None
    spreads = {metric: spread(values) for metric, values in ratios.items()}
    to_others = {other: paired_ratios(here, variant, other, "output_tokens_per_s") for other in others}
    medians: dict[str, Any] = {metric: spread([run[metric] for run in own])["median"] for metric in METRICS}
    return ServingResult(
        variant=variant,
        what=what,
        load=load,  # type: ignore[arg-type]  # pydantic refuses any other string
        batch=batch,
        **medians,
        ratio_to_plain=spreads["output_tokens_per_s"]["median"],
        ratios=spreads,
        ratio_to={other: spread(values)["median"] for other, values in to_others.items() if values},
        spread=spreads["output_tokens_per_s"],
        runs=len(own),
        **about,
    )


def write_lines(path: Path, lines: Sequence[ResultLine]) -> None:
    """Write result lines as JSONL, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line.model_dump_json() + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read result lines; none where the file is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
