"""The plots of docs/results.md, drawn from the result files alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.paper.summary import result, seeds
from benchmarks.plots import OURS, REFERENCE, THEIRS
from unlearn_serve.pages.svg import STYLE, new_figure

STYLES = {
    "retrained": (REFERENCE, "o", "re-trained"),
    "trained-on": (THEIRS, "v", "one layer trained on"),
    "regmean": (OURS, "s", "RegMean"),
    "regmean-published": ("#7d3c98", "P", "RegMean as published"),
    "cat": ("#48a9a6", "D", "cat"),
    "mean": ("#d4b483", "^", "mean"),
}


def draw(results: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Draw what there are results for; returns the files, beside the results."""
    drawn = []
    with mpl.rc_context(STYLE):
        figures = {"tofu": _tofu(results), "sequence": _sequence(summary), "robustness": _robustness(results)}
        for name, figure in figures.items():
            if figure is None:
                continue
            out = results / f"{name}.svg"
            figure.savefig(out, format="svg", metadata={"Date": None})
            # Matplotlib ends lines of path data with a space, which linters of whitespace refuse.
            out.write_text("\n".join(line.rstrip() for line in out.read_text().splitlines()) + "\n")
            drawn.append(out)
    return drawn


def _tofu(results: Path) -> Figure | None:
    """Forgotten against retained probability, a panel a number of authors; the band is the re-trained model's."""
    original = result(results, "tofu/original")
    counts = sorted(int(path.name.removeprefix("forget")) for path in (results / "tofu").glob("forget*"))
    if original is None or not counts:
        return None
    figure = new_figure(9.0, 3.0)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, counts, strict=True):
        retrained = result(results, f"tofu/retrained{count}")
        before = original["measures"][str(count)]
        points = {"original": before, **({"re-trained": retrained["measures"]} if retrained else {})}
        for name in ("finetune", "reverse-gradient", "mend-like", "lora", "eul", "eul-bounded"):
            for one in seeds(results, f"tofu/forget{count}", name)[:1]:
                points[name] = one["measures"]
        if retrained:
            level = retrained["measures"]["forget.probability"]
            if level["low"] is not None:
                axes.axvspan(level["low"], level["high"], color=REFERENCE, alpha=0.15, linewidth=0)
        for name, found in points.items():
            x, y = found["forget.probability"]["value"], found["retain.probability"]["value"]
            colour = OURS if name == "eul-bounded" else REFERENCE if name in ("original", "re-trained") else THEIRS
            axes.plot(x, y, "o", color=colour)
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7)
        axes.set_title(f"{count} author{'s' if count > 1 else ''}")
        axes.set_xlim(-0.05, 1.15)
        axes.set_ylim(0, 1.08)
        axes.set_xlabel("probability of what was to be forgotten")
    panels[0].set_ylabel("probability of what stays")
    return figure


def _sequence(summary: Mapping[str, Any]) -> Figure | None:
    found = summary["sequence"]
    if not found:
        return None
    figure = new_figure(9.0, 2.8)
    panels = figure.subplots(1, 3)
    shown = {
        "forget_probability": "probability of what was to be forgotten",
        "retained_over_original": "retained over original",
        "seconds": "seconds of the step",
    }
    for axes, (field, title) in zip(panels, shown.items(), strict=True):
        for name, by_step in found.items():
            colour, marker, label = STYLES[name]
            steps = [int(step) for step in by_step]
            axes.plot(steps, [one[field] for one in by_step.values()], marker=marker, color=colour, label=label)
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.set_xlabel("requests")
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def _robustness(results: Path) -> Figure | None:
    """Probability of what was forgotten in each case, a bar for each model."""
    cases = {name: result(results, f"tofu/robustness/{name}") for name in ("paraphrased", "quantised", "relearned")}
    present = {name: found for name, found in cases.items() if found is not None}
    if not present:
        return None
    figure = new_figure(9.0, 2.6)
    panels = figure.subplots(1, len(present), sharey=True, squeeze=False)[0]
    colours = {"original": THEIRS, "retrained": REFERENCE, "eul": "#d4b483", "eul-bounded": OURS}
    for axes, (title, found) in zip(panels, present.items(), strict=True):
        names = list(next(iter(found.values())))
        for place, (model, by_case) in enumerate(found.items()):
            heights = [by_case[case]["forget.probability"]["value"] for case in names]
            at = [index + 0.2 * (place - (len(found) - 1) / 2) for index in range(len(names))]
            axes.bar(at, heights, width=0.18, color=colours[model], label=model)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(title)
    panels[0].set_ylabel("probability of what was forgotten")
    panels[0].legend(frameon=False, fontsize=7)
    return figure
