"""`python -m benchmarks PART...`: run benchmarks, see README.md. Stopped, it goes on where it was when called again."""

import argparse
import shutil
import time
from pathlib import Path

from benchmarks import serving
from benchmarks.load import CELLS
from benchmarks.results import RESULTS

PARTS = ("serving",)


def main() -> None:
    """Parse the command line and run the parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=PARTS, help="default: all of them, in order")
    parser.add_argument("--quick", action="store_true", help="few variants and rounds, results under --out")
    parser.add_argument("--fresh", action="store_true", help="forget the runs of an earlier call")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="runs, logs and inputs")
    parser.add_argument("--results", type=Path, help="folder of the result files; default benchmarks/results")
    parser.add_argument("--rounds", type=int, help="rounds of interleaved runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="serving: these, beside plain")
    given = parser.parse_args()
    began = time.monotonic()

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3}:{seconds:02} {line}", flush=True)

    out = given.out.absolute() / ("quick" if given.quick else "full")
    results = given.results or (given.out if given.quick else RESULTS)
    if given.fresh:
        for runs in out.glob("*-runs.jsonl"):
            runs.unlink()
        shutil.rmtree(out / "logs", ignore_errors=True)
    if "serving" in given.parts:
        serving.run(
            out,
            results / "serving.jsonl",
            rounds=given.rounds or (3 if given.quick else 6),
            only=given.only or (serving.QUICK_VARIANTS if given.quick else ()),
            cells=serving.QUICK_CELLS if given.quick else CELLS,
            say=say,
        )


if __name__ == "__main__":
    main()
