"""The bars that the results are held against, printed beside what was measured: `python -m benchmarks bars`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import read_lines

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure and the interval it should lie in."""

    what: str
    low: float
    high: float = float("inf")
    got: float | None

    @property
    def verdict(self) -> str:
        """`ok`, `MISSED`, or `not measured`."""
        if self.got is None:
            return "not measured"
        return "ok" if self.low <= self.got <= self.high else "MISSED"


def bars(results: Path) -> list[Bar]:
    """Return all bars, held against the result files of a folder."""
    serving = read_lines(results / "serving.jsonl")
    growth = read_lines(results / "growth.jsonl")
    swap = read_lines(results / "swap.jsonl")

    def ratio(variant: str, load: str, batch: int) -> float | None:
        got: float | None = _one(serving, "ratio_to_plain", variant=variant, load=load, batch=batch)
        return got

    routes4 = _one(serving, "ratio_to", variant="routes4", load="decode", batch=8)
    return [
        *(
            Bar(what=f"{variant} over plain, {load}, batch 8", low=0.98, high=1.02, got=ratio(variant, load, 8))
            for variant in ("plain-again", "merged")
            for load in ("decode", "prefill")
        ),
        Bar(what="default over plain, decode, batch 8", low=0.96, got=ratio("default", "decode", 8)),
        Bar(what="default over plain, decode, batch 1", low=0.97, got=ratio("default", "decode", 1)),
        Bar(what="default over plain, prefill, batch 8", low=0.97, got=ratio("default", "prefill", 8)),
        Bar(what="routes4 over plain, decode, batch 8", low=0.95, got=ratio("routes4", "decode", 8)),
        Bar(what="routes8 over plain, decode, batch 8", low=0.94, got=ratio("routes8", "decode", 8)),
        Bar(what="routes4 over lora-down, decode, batch 8", low=3.0, got=(routes4 or {}).get("lora-down")),
        Bar(
            what="1000 covered deletion requests over 1",
            low=0.98,
            got=_one(growth, "ratio_to_smallest", axis="deletion_requests_covered", value=1000),
        ),
        Bar(what="stall of a hot swap, ms", low=0.0, high=40.0, got=_one(swap, "stall_ms", variant="hot-swap")),
        Bar(
            what="requests that hot swaps failed", low=0, high=0, got=_one(swap, "failed_requests", variant="hot-swap")
        ),
    ]


def report(results: Path) -> str:
    """Return the bars as a table."""
    rows = [
        f"{bar.what:44} {bar.low:6.2f} {'' if bar.high == float('inf') else f'{bar.high:6.2f}':>6} "
        f"{'-' if bar.got is None else f'{bar.got:8.3f}':>8}  {bar.verdict}"
        for bar in bars(results)
    ]
    return "\n".join([f"{'':44} {'least':>6} {'most':>6} {'got':>8}", *rows])


def _one(lines: Iterable[Line], field: str, **where: object) -> Any:
    found = [line for line in lines if all(line[key] == value for key, value in where.items())]
    return found[0][field] if found else None
