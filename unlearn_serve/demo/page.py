"""report.html: one self-contained page, made from the report and the recorded stream."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from unlearn_serve.demo import plots
from unlearn_serve.demo.report import Report
from unlearn_serve.demo.stream import StreamedRequest

TEMPLATE = Path(__file__).with_name("report.html")


def write_page(out: Path, report: Report, requests: Sequence[StreamedRequest]) -> Path:
    """Write report.html into `out`: it holds its style and plots, and loads nothing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["mark"] = mark
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        kinds=sorted({comparison.kind for comparison in report.comparisons}, key=_order),
        set_labels=plots.SET_LABELS,
        # matplotlib escapes what it draws.
        scores=Markup(plots.scores_by_phase(report)),
        run=Markup(plots.whole_run(requests, report)),
        timelines=[Markup(plots.swap_timeline(requests, swap)) for swap in report.swaps],
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def mark(text: str, gold: str) -> Markup:
    """Escape `text` for HTML and mark the first place where `gold` occurs in it, whatever its case."""
    begin = text.casefold().find(gold.casefold())
    if begin < 0:
        return Markup.escape(text)
    end = begin + len(gold)
    return Markup("{}<mark>{}</mark>{}").format(text[:begin], text[begin:end], text[end:])


def _order(kind: str) -> tuple[int, str]:
    """What is forgotten comes first."""
    return (0 if kind.startswith("forget") else 1, kind)
