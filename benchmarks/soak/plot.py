"""The plot of a soak: what the clients got, how long swaps stalled them, and resident memory, over time."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.plots import OURS, REFERENCE, THEIRS
from benchmarks.soak.eras import Era
from benchmarks.soak.memory import Sample, after_warm_up
from benchmarks.soak.report import Report
from benchmarks.streams import StreamedRequest
from unlearn_serve.pages.svg import STYLE, new_figure

FAULT = "#c0392b"


def draw(
    out: Path, report: Report, requests: Sequence[StreamedRequest], samples: Sequence[Sample], eras: Sequence[Era]
) -> None:
    """Write the plot as SVG."""
    with mpl.rc_context(STYLE):
        _figure(report, requests, samples, eras).savefig(out, format="svg", metadata={"Date": None})


def _figure(
    report: Report, requests: Sequence[StreamedRequest], samples: Sequence[Sample], eras: Sequence[Era]
) -> Figure:
    figure = new_figure(9.0, 5.4)
    load, stall, memory = figure.subplots(3, 1, sharex=True)
    first = min((request.started for request in requests), default=0.0)

    seconds = 1 + int(max((at - first for request in requests for at, _ in request.tokens), default=0.0))
    received = [0] * seconds
    for request in requests:
        had = 0
        for at, count in request.tokens:
            received[min(seconds - 1, max(0, int(at - first)))] += count - had
            had = count
    load.fill_between(
        [second / 60 for second in range(seconds)], received, step="post", color=REFERENCE, linewidth=0, alpha=0.7
    )
    load.set_ylabel("tokens per second")
    load.set_title(
        f"{report.requests} requests, {report.failed_requests} failed; {report.tokens} tokens, {report.stale_tokens} "
        f"stale; {report.swaps} swaps, {sum(report.faults.values())} faults (red)"
    )
    for fault in report.fault_log:
        begin = (fault.at - first) / 60
        load.axvspan(begin, begin + fault.seconds / 60, color=FAULT, alpha=0.25, linewidth=0)

    # An era ends when generation resumes under the next one, which begins when it pauses.
    stalls = [(later.begins - first, earlier.ends - later.begins) for earlier, later in pairwise(eras)]
    stall.plot([at / 60 for at, _ in stalls], [1e3 * took for _, took in stalls], ".", color=OURS, markersize=4)
    stall.set_ylabel("stall of a swap, ms")
    stall.set_ylim(bottom=0)

    memory.plot([(sample.at - first) / 60 for sample in samples], [sample.mib for sample in samples], color=THEIRS)
    settled = after_warm_up(samples)
    memory.plot([(sample.at - first) / 60 for sample in settled], [sample.mib for sample in settled], color=OURS)
    memory.set_ylabel("resident, MiB")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("minutes")
    if report.rss_growth is not None:
        memory.set_title(f"growth after the warm-up: {100 * report.rss_growth:.2f} %")
    return figure
