"""The bars of the experiments, held against summary.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """One bar: the least that will do and what was aimed at, what was found, whether it holds.

    `holds` is None where nothing was measured, or where there is an aim alone.
    """

    what: str
    asked: str
    aim: str
    found: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """For the table."""
        if self.holds is None:
            return "not measured" if self.found == "-" else "measured"
        return "holds" if self.holds else "**missed**"


def bars(summary: Mapping[str, Any]) -> list[Bar]:
    """All bars."""
    one = summary["tofu_forget1"]
    fused = summary["sequence"].get("regmean", {})
    ten, twenty = fused.get("10"), fused.get("20")
    kept = {
        "retained probability": "retained_over_original",
        "retained exact match": "retained_exact_match_over_original",
        "utility": "utility_over_original",
    }
    return [
        *(_level(one, level) for level in ("extraction_strength", "probability")),
        *(_least(f"TOFU, 1 author: {what} over original", 0.97, one and one[key], aim=1) for what, key in kept.items()),
        _forgotten("10 requests fused by RegMean: forgotten", ten, least=10),
        _least("10 requests fused by RegMean: retained over original", 0.95, _kept(ten), aim=0.98),
        _forgotten("20 requests fused by RegMean: forgotten", twenty, least=None),
        _least("20 requests fused by RegMean: retained over original", None, _kept(twenty), aim=0.95),
        _least("re-training over unlearning 1 author, seconds", 10, summary["speedup_over_retrain"], aim=30),
        _least("the same as a model's first request", None, summary["speedup_of_first_request"], aim=30),
        _least("naive training step over ours, seconds", 1.5, summary["step_speedup"], aim=3),
    ]


def _level(one: Mapping[str, Any] | None, level: str) -> Bar:
    what = f"TOFU, 1 author: {level.replace('_', ' ')} of what was forgotten"
    if one is None:
        return Bar(what, "inside the re-trained model's interval", "", "-", None)
    low, high = one["retrained_ci"][level]
    asked = f"{low:.3f} to {high:.3f}, the re-trained model's"
    return Bar(what, asked, "", f"{one[level]:.3f}", low <= one[level] <= high)


def _forgotten(what: str, step: Mapping[str, Any] | None, *, least: int | None) -> Bar:
    """At most the re-trained model's upper end; and how many lie within its ends."""
    asked = "no bar" if least is None else f"all {least}"
    if step is None:
        return Bar(what, asked, "", "-", None)
    found = f"{step['forgotten']} ({step['within_interval']} within the interval, the others below)"
    return Bar(what, asked, "", found, None if least is None else step["forgotten"] >= least)


def _least(what: str, least: float | None, found: float | None, *, aim: float) -> Bar:
    asked = "no bar" if least is None else f"at least {least:g}"
    shown = "-" if found is None else f"{found:.3g}"
    return Bar(what, asked, f"{aim:g}", shown, None if found is None or least is None else found >= least)


def _kept(step: Mapping[str, Any] | None) -> float | None:
    return None if step is None else step["retained_over_original"]
