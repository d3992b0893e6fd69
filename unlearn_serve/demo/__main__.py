"""`python -m unlearn_serve.demo --out out/demo`: play the story, write the report, exit 0 where every promise held."""

import argparse
import signal
import sys
import types
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unlearn_serve.demo.page import write_page
from unlearn_serve.demo.plots import SET_LABELS
from unlearn_serve.demo.progress import console
from unlearn_serve.demo.report import Report
from unlearn_serve.demo.story import Story
from unlearn_serve.errors import UnlearnServeError


def main() -> int:
    """Play the demo's story; 0 where every assertion held."""
    parser = argparse.ArgumentParser(prog="python -m unlearn_serve.demo", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the report (default: out/demo)")
    out: Path = parser.parse_args().out.resolve()
    # A polite kill must still stop the server: turned into an exception, it unwinds the story.
    signal.signal(signal.SIGTERM, _unwind)
    try:
        report, requests = Story(out=out).play()
    except UnlearnServeError as error:
        console.print(f"[bold red]the demo could not be played to its end[/]: {error}", markup=True, soft_wrap=True)
        return 1
    report.write(out, requests)
    page = write_page(out, report, requests)
    show(report, Console())
    console.print(f"\n{out / 'report.json'}\n{page}", soft_wrap=True)
    for check in report.checks:
        if not check.ok:
            console.print(f"[bold red]failed[/]: {check.name}: {check.detail}", soft_wrap=True)
    return 0 if report.ok else 1


def show(report: Report, terminal: Console) -> None:
    """Print the scores by phase, the swaps and the assertions."""
    scores = Table("phase", *SET_LABELS.values(), title="accuracy / probability", title_justify="left")
    for phase, sets in report.phases.items():
        cells = [f"{sets[kind].accuracy:.3f} / {sets[kind].probability:.3f}" for kind in SET_LABELS]
        scores.add_row(phase, *cells)
    terminal.print(scores)
    swaps = Table(
        "generation", "release", "covers", "staged", "paused", "live after", title="swaps", title_justify="left"
    )
    for swap in report.swaps:
        swaps.add_row(
            f"{swap.generation} ({swap.action})",
            swap.release[:8],
            ", ".join(swap.deletion_ids),
            *(f"{value:.0f} ms" for value in (swap.stage_ms, swap.stall_ms, swap.publish_to_live_ms)),
        )
    terminal.print(swaps)
    for check in report.checks:
        terminal.print(
            "[green]held  [/]" if check.ok else "[bold red]FAILED[/]", f"{check.name}: {check.detail}", soft_wrap=True
        )


def _unwind(signum: int, frame: types.FrameType | None) -> None:
    del frame
    sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
