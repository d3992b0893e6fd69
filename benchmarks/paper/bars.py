"""The bars of the experiments, held against summary.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """One bar: what was asked for, what was found, whether it holds (None: not measured)."""

    what: str
    asked: str
    found: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """For the table."""
        return {True: "holds", False: "**missed**", None: "not measured"}[self.holds]


def bars(summary: Mapping[str, Any]) -> list[Bar]:
    """All bars."""
    one = summary["tofu_forget1"]
    ten = summary["sequence"].get("regmean", {}).get("10")
    return [
        *(_level(one, level) for level in ("extraction_strength", "probability")),
        _least("TOFU, 1 author: retained over original", 0.97, one and one["retained_over_original"]),
        _least("10 requests fused by RegMean: forgotten", 10, ten and ten["forgotten"]),
        _least("10 requests fused by RegMean: retained over original", 0.95, ten and ten["retained_over_original"]),
        _least("re-training over unlearning 1 author, seconds", 10, summary["speedup_over_retrain"]),
        _least("naive training step over ours, seconds", 1.5, summary["step_speedup"]),
    ]


def _level(one: Mapping[str, Any] | None, level: str) -> Bar:
    what = f"TOFU, 1 author: {level.replace('_', ' ')} of what was forgotten"
    if one is None:
        return Bar(what, "inside the re-trained model's interval", "-", None)
    low, high = one["retrained_ci"][level]
    return Bar(what, f"{low:.3f} to {high:.3f}, the re-trained model's", f"{one[level]:.3f}", low <= one[level] <= high)


def _least(what: str, least: float, found: float | None) -> Bar:
    return Bar(
        what, f"at least {least:g}", "-" if found is None else f"{found:.3g}", None if found is None else found >= least
    )
