"""`python -m benchmarks.paper [STAGE...]`: the paper's experiments, see README.md; stopped, it goes on where it was."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.paper.data.folder import data_folder, require_files
from benchmarks.paper.data.made_up import write_made_up
from benchmarks.paper.page.render import render
from benchmarks.paper.running import CORES, Where, clock, run_outstanding
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
    parser.add_argument("--jobs", type=int, default=CORES, help="stages side by side (default: one for each core)")
    parser.add_argument("--render", action="store_true", help="tables and plots from the results alone")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {given.jobs}")
    out = given.out.absolute() / ("quick" if given.quick else "full")
    results = given.results or (out / "results" if given.quick else RESULTS / "paper")
    page = out / "results.md" if given.quick else PAGE
    sizes = QUICK if given.quick else FULL
    if given.quick:
        write_made_up(out / "data")
    if given.render:
        print(render(results.absolute(), page, sizes))
        return
    data = out / "data" if given.quick else data_folder(given.data)
    where = Where(quick=given.quick, data=data, out=out, results=results.absolute(), jobs=given.jobs)
    try:
        runner = where.runner()
        require_files(data, (name for stage in runner.stages.values() for name in stage.data))
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
    failed = run_outstanding(where, names)
    print(render(runner.results, page, sizes))
    if failed:
        sys.exit(f"error: {len(failed)} stages failed: {', '.join(failed)}; call again to try those")


def _chosen(runner: Runner, patterns: Sequence[str]) -> list[str]:
    found = [name for name in runner.stages if not patterns or any(fnmatchcase(name, one) for one in patterns)]
    if not found:
        said = " ".join(patterns)
        raise UnlearnServeError(f"expected names or patterns of stages, got {said}; --list shows them all")
    return found


def _table(runner: Runner, names: Sequence[str]) -> Table:
    table = Table("stage", "state", "time", title=None)
    for name in names:
        state, seconds = runner.state(name), runner.seconds(name)
        table.add_row(name, state, ("" if state == "done" else "about ") + clock(seconds))
    left = sum(runner.seconds(name) for name in runner.outstanding(names))
    table.add_row("", "left", f"about {clock(left)}")
    return table


if __name__ == "__main__":
    main()
