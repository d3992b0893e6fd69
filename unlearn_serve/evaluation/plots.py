"""The report's plots."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearn_serve.errors import DataError
from unlearn_serve.evaluation.measures import Reference
from unlearn_serve.evaluation.record import Results
from unlearn_serve.pages import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING_LOG = "training_log.jsonl"
"""Name of the log that training leaves in the adapter's folder."""

PHASE_COLOURS = {"before": "#5d6d7e", "after": "#c0392b", "live": "#c0392b"}
CURVES = {"forget_probability": "#c0392b", "retain_probability": "#1f618d"}


def read_training_log(adapter_dir: Path) -> list[dict[str, Any]]:
    """The lines of an adapter's training log that report probabilities, in order; empty where there is no log.

    Raises:
        DataError: a line is not what training writes.
    """
    path = adapter_dir / TRAINING_LOG
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            step = json.loads(line)
            found.append({"step": int(step["step"]), **step.get("check", step), "whole_sets": "check" in step})
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise DataError(f"{path}:{number}: expected a line of training's log, got: {problem}") from None
    return [step for step in found if any(isinstance(step.get(name), int | float) for name in CURVES)]


def forget_retain_curves(log: Sequence[Mapping[str, Any]]) -> "Figure":
    """How probable forgotten and retained answers were at each step, and one against the other.

    Dots are the step's own examples, rings whole sets.
    """
    figure = new_figure(9.0, 3.0)
    over_time, plane = figure.subplots(1, 2)
    for name, colour in CURVES.items():
        for whole, style in ((False, {"marker": ".", "linewidth": 1}), (True, {"marker": "o", "linewidth": 0})):
            points = [(step["step"], step[name]) for step in log if step["whole_sets"] is whole and _has(step, name)]
            if points:
                steps, values = zip(*points, strict=True)
                label = f"{name.split('_')[0]}, whole set" if whole else name.split("_")[0]
                over_time.plot(steps, values, color=colour, label=label, fillstyle="none" if whole else "full", **style)
    over_time.set_xlabel("step")
    over_time.set_ylabel("probability of the answer")
    over_time.set_ylim(0, 1.02)
    over_time.legend(frameon=False, fontsize=8)
    both = [step for step in log if not step["whole_sets"] and all(_has(step, name) for name in CURVES)]
    if both:
        forget, retain = ([step[name] for step in both] for name in CURVES)
        plane.plot(forget, retain, ".-", color="#5d6d7e", linewidth=0.8)
        plane.annotate("start", (forget[0], retain[0]), fontsize=8)
        plane.annotate("end", (forget[-1], retain[-1]), fontsize=8)
    plane.set_xlabel("forget probability")
    plane.set_ylabel("retain probability")
    plane.set_xlim(-0.02, 1.02)
    plane.set_ylim(0, 1.02)
    return figure


def truth_ratio_sets(results: Results) -> list[str]:
    """The sets of which rows have truth ratios."""
    return [
        name
        for name, found in results.sets.items()
        if any(row.truth_ratio is not None for rows in found.scores.values() for row in rows)
    ]


def truth_ratios(results: Results, names: Sequence[str], reference: Reference | None) -> "Figure":
    """Cumulative distribution of the truth ratios of each set, phase by phase; the reference's of the forget set."""
    figure = new_figure(9.0, 2.8)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        curves = {
            phase: [row.truth_ratio for row in rows if row.truth_ratio is not None]
            for phase, rows in results.sets[name].scores.items()
        }
        for phase, ratios in curves.items():
            _cumulative(axes, ratios, label=phase, color=PHASE_COLOURS[phase])
        if name == "forget" and reference is not None and reference.truth_ratios:
            _cumulative(axes, reference.truth_ratios, label="never saw it", color="#229954", linestyle="--")
        axes.axvline(1.0, color="#d5d8dc", linewidth=1)
        axes.set_xscale("log")
        axes.set_title(name)
        axes.set_xlabel("truth ratio p(wrong) / p(right)")
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("share of the rows")
    return figure


def _cumulative(axes: Any, values: Sequence[float], **style: Any) -> None:
    axes.ecdf(np.maximum(values, 1e-12), **style)  # a logarithmic axis has no 0


def _has(step: Mapping[str, Any], name: str) -> bool:
    return isinstance(step.get(name), int | float)
