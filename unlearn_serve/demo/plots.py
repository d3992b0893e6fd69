"""The report's plots."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unlearn_serve.demo.report import Report, Swap
from unlearn_serve.demo.stream import StreamedRequest
from unlearn_serve.pages import new_figure

SET_COLOURS = {"forget": "#c0392b", "forget_paraphrase": "#e59866", "retain": "#1f618d", "general": "#229954"}
SET_LABELS = {"forget": "forget", "forget_paraphrase": "forget, paraphrased", "retain": "retain", "general": "general"}
WINDOW_SECONDS = (3.0, 4.0)
"""How much of the time before and after a swap its timeline shows."""

LATENCY_MS = (1.0, 3000.0)
"""Scale of a timeline; tokens that arrive together, in one chunk's time, are drawn at its lower end."""


def swap_timeline(requests: Sequence[StreamedRequest], swap: Swap) -> Figure:
    """Inter-token latency of each stream around one swap, whose stall is shaded.

    A token's latency is the time since the token before it in the same response; a response's first token has none.
    """
    before, after = WINDOW_SECONDS
    figure = new_figure(9.0, 2.9)
    axes = figure.subplots()
    for stream in sorted({request.stream for request in requests}):
        points = [
            (now - swap.at, max(LATENCY_MS[0], (now - last) * 1e3))
            for request in requests
            if request.stream == stream
            for last, now in zip(request.token_times, request.token_times[1:], strict=False)
            if -before <= now - swap.at <= after
        ]
        axes.plot(*_columns(points), ".", markersize=4, label=f"stream {stream + 1}", alpha=0.8)
    axes.axvspan(-swap.stall_ms / 1e3, 0.0, color="#c0392b", alpha=0.25, linewidth=0, label="generation paused")
    axes.axvline(0.0, color="#c0392b", linewidth=1)
    axes.set_xlim(-before, after)
    axes.set_yscale("log")
    # The same scale for every swap; without it an empty window has none.
    axes.set_ylim(*LATENCY_MS)
    axes.set_xlabel("seconds after the swap")
    axes.set_ylabel("ms since the token before")
    axes.set_title(f"generation {swap.generation} ({swap.action}), release {swap.release[:12]}")
    axes.legend(loc="upper right", fontsize=8, ncols=3, frameon=False)
    return figure


def scores_by_phase(report: Report) -> Figure:
    """Accuracy and probability of each set, phase by phase."""
    figure = new_figure(9.0, 3.0)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, measure in ((left, "accuracy"), (right, "probability")):
        _bars(axes, report, measure)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def whole_run(requests: Sequence[StreamedRequest], report: Report) -> Figure:
    """Tokens a second that the stream received over the whole run, with the swaps and the longer steps marked."""
    first = report.started
    seconds = int(report.seconds) + 1
    tokens = [0] * seconds
    for request in requests:
        for at in request.token_times:
            tokens[min(seconds - 1, max(0, int(at - first)))] += 1
    figure = new_figure(9.0, 2.6)
    axes = figure.subplots()
    axes.fill_between(range(seconds), tokens, step="post", color="#5d6d7e", linewidth=0, alpha=0.7)
    for step in report.steps:
        if step.name.startswith("training"):
            begin = step.started - first
            axes.axvspan(begin, begin + step.seconds, color="#f7dc6f", alpha=0.4, linewidth=0)
            axes.annotate("training", (begin, 1.0), xycoords=("data", "axes fraction"), va="bottom", fontsize=8)
    for swap in report.swaps:
        axes.axvline(swap.at - first, color="#c0392b", linewidth=1)
    axes.set_xlim(0, seconds)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the start; red lines are swaps")
    axes.set_ylabel("streamed tokens per second")
    return figure


def _bars(axes: Axes, report: Report, measure: str) -> None:
    width = 0.8 / len(SET_COLOURS)
    for offset, (kind, colour) in enumerate(SET_COLOURS.items()):
        values = [getattr(scores[kind], measure) for scores in report.phases.values()]
        places = [index - 0.4 + (offset + 0.5) * width for index in range(len(values))]
        axes.bar(places, values, width, color=colour, label=SET_LABELS[kind])
    axes.set_xticks(range(len(report.phases)), [name.replace(" ", "\n", 1) for name in report.phases])
    axes.set_ylim(0, 1.05)
    axes.set_title(measure)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
