"""The plots of the README, drawn from the result files alone: `python -m benchmarks plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import read_lines
from unlearn_serve.pages.svg import STYLE, new_figure

OURS, THEIRS, REFERENCE = "#1f618d", "#b2babb", "#5d6d7e"
COLOURS = {"plain": REFERENCE, "plain-again": REFERENCE, "merged": REFERENCE}
OUR_VARIANTS = ("default", "routes4", "routes8", "routes-over-slots", "hot-swap")
BATCH = 8
Lines = Sequence[Mapping[str, Any]]


def draw(results: Path) -> list[Path]:
    """Draw every plot whose result file is in the folder; returns the files written there."""
    drawn = []
    for name, figure_of in {"serving": _serving, "swap": _swap, "growth": _growth}.items():
        lines = read_lines(results / f"{name}.jsonl")
        if not lines:
            continue
        with mpl.rc_context(STYLE):
            figure = figure_of(lines)
            out = results / f"{name}.svg"
            figure.savefig(out, format="svg", metadata={"Date": None})
        # Matplotlib ends lines of path data with a space, which linters of whitespace refuse.
        out.write_text("\n".join(line.rstrip() for line in out.read_text().splitlines()) + "\n")
        drawn.append(out)
    return drawn


def _colour(variant: str) -> str:
    return OURS if variant in OUR_VARIANTS else COLOURS.get(variant, THEIRS)


def _serving(lines: Lines) -> Figure:
    """Output tokens/s over plain at batch 8: bars are medians of paired ratios, whiskers all runs."""
    figure = new_figure(9.0, 3.4)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(line["variant"] for line in lines if line["batch"] == BATCH))
    for axes, load in zip(panels, ("decode", "prefill"), strict=True):
        here = {line["variant"]: line for line in lines if line["batch"] == BATCH and line["load"] == load}
        for place, name in enumerate(names):
            if name in here:
                _bar(axes, place, here[name]["ratio_to_plain"], here[name]["spread"], _colour(name), "{:.3f}")
        axes.set_yticks(range(len(names)), names)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title(f"{load}, batch {BATCH}")
        axes.set_xlabel("output tokens/s over plain vLLM's; whiskers: all runs")
    panels[0].invert_yaxis()
    return figure


def _swap(lines: Lines) -> Figure:
    """What a change of what is forgotten costs; log scale."""
    figure = new_figure(9.0, 2.2)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"publish_to_live_ms": "from publishing to live, ms", "gap_ms": "longest pause a client saw, ms"}
    for axes, (field, title) in zip(panels, titles.items(), strict=True):
        for place, line in enumerate(lines):
            _bar(axes, place, line[field], line["spread"][field], _colour(line["variant"]), "{:.0f}")
        failed = [f"{line['variant']}\n({line['failed_requests']} requests failed)" for line in lines]
        axes.set_yticks(range(len(lines)), failed)
        axes.set_xscale("log")
        axes.set_xlim(left=10)
        axes.set_title(title)
    panels[0].invert_yaxis()
    return figure


def _growth(lines: Lines) -> Figure:
    """Throughput and memory along each axis, over the smallest value's."""
    figure = new_figure(9.0, 2.6)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"deletion_requests_covered": "deletion requests covered", "releases_resident": "releases resident"}
    for axes, (axis, title) in zip(panels, titles.items(), strict=True):
        here = [line for line in lines if line["axis"] == axis]
        values = [line["value"] for line in here]
        ratios = [line["ratio_to_smallest"] for line in here]
        if here:
            low = [line["ratio_to_smallest"] - line["spread"]["min"] for line in here]
            high = [line["spread"]["max"] - line["ratio_to_smallest"] for line in here]
            axes.errorbar(values, ratios, yerr=(low, high), marker="o", capsize=3, color=OURS, label="tokens/s")
            memory = [line["memory_ratio_to_smallest"] for line in here]
            axes.plot(values, memory, marker="s", color=THEIRS, label="peak memory")
            axes.set_xscale("log", base=10 if max(values) > 100 else 2)
            axes.set_xticks(values, [str(value) for value in values])
            axes.minorticks_off()
        axes.set_ylim(0, 1.5)
        axes.set_title(title)
        axes.set_ylabel("over the smallest")
        axes.legend(frameon=False, loc="lower left")
    return figure


def _bar(axes: Axes, place: int, value: float, spread: Mapping[str, float], colour: str, label: str) -> None:
    whiskers = ([max(0.0, value - spread["min"])], [max(0.0, spread["max"] - value)])
    axes.barh(place, value, color=colour, height=0.7)
    axes.errorbar(value, place, xerr=whiskers, color="black", linewidth=0.8, capsize=2)
    axes.annotate(label.format(value), (spread["max"], place), xytext=(4, 0), textcoords="offset points", va="center")
