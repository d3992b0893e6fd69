"""`python -m benchmarks.paper [STAGE...]`: the paper's experiments, see README.md; stopped, it goes on where it was."""

import argparse
import logging
import shutil
import sys
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks.paper.data.folder import data_folder, require_files
from benchmarks.paper.data.made_up import write_made_up
from benchmarks.paper.plan import plan
from benchmarks.paper.render import render
from benchmarks.paper.sizes import FULL, QUICK
from benchmarks.paper.stages import Runner
from benchmarks.results import RESULTS
from unlearn_serve.errors import UnlearnServeError

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def main() -> None:
    """Parse the command line and run what is outstanding."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("stages", nargs="*", help="names or patterns (tofu/*), with what they need; default: all")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: PAPER_DATA, else ../shared/data)")
    parser.add_argument("--out", type=Path, default=Path("out/paper"), help="checkpoints and adapters")
    parser.add_argument("--results", type=Path, help="folder of the result files (default: benchmarks/results/paper)")
    parser.add_argument("--quick", action="store_true", help="toy size on made-up data; results go to --out")
    parser.add_argument("--fresh", action="store_true", help="run what is done, too")
    parser.add_argument("--list", action="store_true", help="all stages with state and time, and nothing else")
    parser.add_argument("--render", action="store_true", help="tables and plots from the results alone")
    given = parser.parse_args()
    out = given.out.absolute() / ("quick" if given.quick else "full")
    results = given.results or (out / "results" if given.quick else RESULTS / "paper")
    page = out / "results.md" if given.quick else PAGE
    sizes = QUICK if given.quick else FULL
    if given.quick:
        write_made_up(out / "data")
    if given.render:
        print(render(results.absolute(), page, sizes))
        return
    _quieten()
    stages = plan(sizes)
    data = out / "data" if given.quick else data_folder(given.data)
    try:
        require_files(data, (name for stage in stages for name in stage.data))
        runner = Runner(stages, data=data, out=out, results=results.absolute())
        names = _chosen(runner, given.stages)
    except UnlearnServeError as problem:
        sys.exit(f"error: {problem}")
    if given.list:
        Console(width=100).print(_table(runner, names))
        return
    if given.fresh:
        for name in names:
            (runner.results / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(out / "shared", ignore_errors=True)
    failed = _run(runner, names)
    print(render(runner.results, page, sizes))
    if failed:
        sys.exit(f"error: {len(failed)} stages failed: {', '.join(failed)}; call again to try those")


def _chosen(runner: Runner, patterns: Sequence[str]) -> list[str]:
    found = [name for name in runner.stages if not patterns or any(fnmatchcase(name, one) for one in patterns)]
    if not found:
        said = " ".join(patterns)
        raise UnlearnServeError(f"expected names or patterns of stages, got {said}; --list shows them all")
    return found


def _run(runner: Runner, names: Sequence[str]) -> list[str]:
    """Run what is outstanding; a stage that fails takes those that read it with it, not the night. Returns those."""
    failed: list[str] = []
    outstanding = runner.outstanding(names)
    console = Console(stderr=True, highlight=False)
    expected = {name: runner.seconds(name) for name in outstanding}
    with Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    ) as progress:
        task = progress.add_task("", total=len(outstanding), left="")
        spent = planned = 0.0
        for place, name in enumerate(outstanding):
            # What is to come, at the pace of what has been against what was expected of it.
            pace = spent / planned if planned else 1.0
            left = pace * sum(expected[one] for one in outstanding[place:])
            progress.update(task, description=name, completed=place, left=f"about {_clock(left)} left")
            if set(runner.stages[name].inputs) & set(failed):
                failed.append(name)
                continue
            try:
                took = runner.run(name)["seconds"]
            except Exception:  # whatever it was: the stages that need no result of this one go on
                console.print_exception(max_frames=8)
                failed.append(name)
                continue
            spent, planned = spent + took, planned + expected[name]
            console.print(f"{name:<44} {_clock(took)}")
        progress.update(task, description="", completed=len(outstanding), left="")
    return failed


def _table(runner: Runner, names: Sequence[str]) -> Table:
    table = Table("stage", "state", "time", title=None)
    for name in names:
        state, seconds = runner.state(name), runner.seconds(name)
        table.add_row(name, state, ("" if state == "done" else "about ") + _clock(seconds))
    left = sum(runner.seconds(name) for name in runner.outstanding(names))
    table.add_row("", "left", f"about {_clock(left)}")
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _quieten() -> None:
    """Progress is the runner's; the product's warning that a target was missed is in the results."""
    disable_progress_bar()
    get_console().quiet = True
    logging.getLogger("unlearn_serve").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)


if __name__ == "__main__":
    main()
