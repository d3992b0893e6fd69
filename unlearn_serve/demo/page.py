"""report.html: one self-contained page, made from the report and the recorded stream."""

from collections.abc import Sequence
from pathlib import Path

from unlearn_serve.demo import plots
from unlearn_serve.demo.report import Report
from unlearn_serve.demo.stream import StreamedRequest
from unlearn_serve.pages import drawn, render

TEMPLATE = Path(__file__).with_name("report.html")


def write_page(out: Path, report: Report, requests: Sequence[StreamedRequest]) -> Path:
    """Write report.html into `out`: it holds its style and plots, and loads nothing."""
    page = render(
        TEMPLATE,
        report=report,
        kinds=sorted({comparison.kind for comparison in report.comparisons}, key=_order),
        set_labels=plots.SET_LABELS,
        scores=drawn(plots.scores_by_phase, report),
        run=drawn(plots.whole_run, requests, report),
        timelines=[drawn(plots.swap_timeline, requests, swap) for swap in report.swaps],
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _order(kind: str) -> tuple[int, str]:
    """What is forgotten comes first."""
    return (0 if kind.startswith("forget") else 1, kind)
