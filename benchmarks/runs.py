"""Runs as they are made: appended to a file, so that a benchmark that was stopped goes on where it was."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]


class RunLog:
    """An append-only JSONL file of runs; each has `variant`, `round`, `cell` and `block`, and its figures.

    A block is what is compared: runs of one cell in one round and one session. A session that goes on with a round that
    another began starts new blocks, each with a run of the baseline of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.runs: list[Run] = []
        if path.exists():
            self.runs = [json.loads(line) for line in path.read_text().splitlines()]
        self.session = 1 + max((run["session"] for run in self.runs), default=0)

    def append(self, run: Mapping[str, Any]) -> None:
        """Add one run, on disk when this returns."""
        done = {**run, "session": self.session, "block": f"{self.session}:{run['cell']}:{run['round']}"}
        with self.path.open("a") as file:
            file.write(json.dumps(done) + "\n")
        self.runs.append(done)

    def missing(self, variants: Iterable[str], *, cell: str, round_: int, baseline: str) -> list[str]:
        """Return the variants that have no run of this cell in this round, or none beside a run of the baseline."""
        here = [run for run in self.runs if run["cell"] == cell and run["round"] == round_]
        paired = {run["block"] for run in here if run["variant"] == baseline}
        done = {run["variant"] for run in here if run["block"] in paired}
        return [variant for variant in variants if variant not in done]


def block_order(missing: Sequence[str], *, baseline: str, seed: str) -> list[str]:
    """Return the variants of one block in a random order of its own, the baseline among them; none where none miss."""
    if not missing:
        return []
    order = list(dict.fromkeys([baseline, *missing]))
    random.Random(seed).shuffle(order)
    return order
