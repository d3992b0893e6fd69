"""`python -m benchmarks PART...`: run benchmarks, see README.md. Stopped, it goes on where it was when called again."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from benchmarks import bars, growth, latency, plots, serving, swap
from benchmarks.clock import clocked
from benchmarks.inputs import Inputs
from benchmarks.load import CELLS
from benchmarks.results import RESULTS

PARTS = ("serving", "swap", "growth", "latency", "plots", "bars")
QUICK_PARTS = ("serving", "plots", "bars")


def main() -> None:
    """Parse the command line and run the parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all, in this order")
    parser.add_argument("--quick", action="store_true", help="few variants and rounds; results go to --out")
    parser.add_argument("--fresh", action="store_true", help="forget the runs of earlier calls")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="inputs, runs and logs")
    parser.add_argument("--results", type=Path, help="folder of the result files (default: benchmarks/results)")
    parser.add_argument("--rounds", type=int, help="rounds of interleaved runs (default: 5; quick: 3)")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="serving: these, beside plain")
    given = parser.parse_args()
    out = given.out.absolute() / ("quick" if given.quick else "full")
    results = given.results or (given.out if given.quick else RESULTS)
    if given.fresh:
        for runs in out.glob("*-runs.jsonl"):
            runs.unlink()
        shutil.rmtree(out / "logs", ignore_errors=True)
    disable_progress_bar()
    say = clocked()
    for part in given.parts or (QUICK_PARTS if given.quick else PARTS):
        _run(part, given, out, results, say)


def _run(part: str, given: argparse.Namespace, out: Path, results: Path, say: Callable[[str], None]) -> None:
    rounds = given.rounds or (3 if given.quick else 5)
    inputs = Inputs(given.out.absolute() / "inputs")
    if part == "serving":
        serving.run(
            inputs,
            out,
            results / "serving.jsonl",
            rounds=rounds,
            only=given.only or (serving.QUICK_VARIANTS if given.quick else ()),
            cells=serving.QUICK_CELLS if given.quick else CELLS,
            slow=not given.quick,
            say=say,
        )
    elif part == "swap":
        swap.run(inputs, out, results / "swap.jsonl", changes=rounds, restarts=min(rounds, 2), say=say)
    elif part == "growth":
        growth.run(inputs, out, results / "growth.jsonl", rounds=rounds, say=say)
    elif part == "latency":
        latency.run(inputs, out, results / "latency.jsonl", rounds=min(rounds, 2), say=say)
    elif part == "plots":
        say(f"drew {', '.join(map(str, plots.draw(results)))}")
    else:
        print(bars.report(results))


if __name__ == "__main__":
    main()
