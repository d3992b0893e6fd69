"""What all tables of docs/results.md are made of: names of methods, means with their spread, Markdown."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

TITLES = {
    "original": "Original",
    "retrain": "Re-train",
    "retrained": "Re-train",
    "finetune": "Fine-tune",
    "sisa": "SISA",
    "reverse-gradient": "Reverse gradient",
    "mend-like": "MEND-like",
    "lora": "LoRA",
    "eul": "EUL",
    "eul-bounded": "EUL-bounded",
    "without-kl": "without KL",
    "without-task": "without TASK",
    "without-lm": "without LM",
    "regmean": "RegMean",
    "regmean-published": "RegMean as published",
    "cat": "`cat`",
    "mean": "mean",
    "trained-on": "one layer trained on",
}


def spread(values: Sequence[float], form: str) -> str:
    """The mean; with least and most where there are several."""
    if not values:
        return ""
    mean = form.format(statistics.fmean(values))
    if len(values) == 1 or form.format(min(values)) == form.format(max(values)):
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
