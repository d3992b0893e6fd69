"""How long `evaluate` takes on what the demo evaluates: 96 questions, before and after an adapter.

    make demo
    python -m benchmarks.evaluation --model CHECKPOINT --demo out/demo --json benchmarks/results/evaluation.json

Run it in another checkout to compare two versions.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.machine import describe
from unlearn_serve.evaluation import evaluate

NEW_TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the demo's checkpoint")
    parser.add_argument("--demo", type=Path, default=Path("out/demo"), help="folder that `make demo` wrote")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="this version", help="what to call this run in the result file")
    parser.add_argument("--json", type=Path, help="result file; runs of other names in it are kept")
    chosen = parser.parse_args()
    files = {"forget": "forget1", "retain": "retain", "holdout": "general"}
    sets = {name: chosen.demo / "data" / f"{file}.jsonl" for name, file in files.items()}
    wall, cpu = [], []
    for _ in range(chosen.rounds):
        began, used = time.perf_counter(), time.process_time()
        found = evaluate(chosen.model, chosen.demo / "adapter-1", sets, max_new_tokens=NEW_TOKENS, record=False)
        wall.append(round(time.perf_counter() - began, 2))
        cpu.append(round(time.process_time() - used, 2))
    run = {
        "rows": sum(score.samples for score in found.before.values()),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "cpu_seconds_median": statistics.median(cpu),
        "scores": {
            phase: {name: [score.accuracy, round(score.probability, 4)] for name, score in scores.items()}
            for phase, scores in (("before", found.before), ("after", found.after))
        },
        "threads": torch.get_num_threads(),
        **describe(),
    }
    print(json.dumps(run, indent=1))
    if chosen.json is not None:
        runs = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(runs | {chosen.name: run}, indent=1) + "\n")


if __name__ == "__main__":
    main()
