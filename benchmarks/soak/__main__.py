"""`python -m benchmarks.soak run` and `kills`: see benchmarks/README.md. Exits with 1 where a bar is missed."""

import argparse
import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from benchmarks.clock import clocked
from benchmarks.soak import kills, run
from benchmarks.soak.defects import DEFECTS
from benchmarks.soak.report import shown
from benchmarks.soak.setting import Setting


def main() -> None:
    """Parse the command line, soak, and print the bars."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("what", choices=["run", "kills"])
    parser.add_argument("--minutes", type=float, default=30.0, help="run: how long (default: 30)")
    parser.add_argument("--runs", type=int, default=30, help="kills: how many (default: 30)")
    parser.add_argument("--afresh", type=int, default=400, help="answers to compute afresh (default: 400)")
    parser.add_argument("--eager", action="store_true", help="servers that do not compile, so that they start sooner")
    parser.add_argument("--step-tokens", type=int, default=256, help="each size of step is warmed up (default: 256)")
    parser.add_argument("--defect", choices=sorted(DEFECTS), help="run: seed a fault that must be seen")
    parser.add_argument("--seed", type=int, default=0, help="of the order of what happens")
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="report, plot, logs, releases")
    given = parser.parse_args()
    disable_progress_bar()
    flags = ("--enforce-eager",) if given.eager else ()
    setting = Setting(out=given.out.absolute(), flags=flags, defect=given.defect, step_tokens=given.step_tokens)
    say = clocked()
    if given.what == "run":
        bars = run.run(setting, minutes=given.minutes, afresh=given.afresh, seed=given.seed, say=say).bars()
    else:
        bars = kills.run(setting, runs=given.runs, afresh=given.afresh, seed=given.seed, say=say).bars()
    print(shown(bars))
    sys.exit(any(bar.verdict != "ok" for bar in bars))


if __name__ == "__main__":
    main()
