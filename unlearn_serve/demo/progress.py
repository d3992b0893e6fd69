"""One look for every progress bar of the demo: what is done, how far it is, and the time left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(file=sys.stderr, highlight=False)
"""Progress goes to standard error; standard output keeps the results."""


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show progress bars with elapsed and remaining time while the block runs."""
    columns = (
        TextColumn("{task.description:<38}"),
        BarColumn(bar_width=14),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress
