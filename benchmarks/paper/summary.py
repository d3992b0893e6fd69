"""summary.json: the figures that the bars are held against, out of the stages' results."""

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.paper.measuring import rounded
from benchmarks.paper.stages import read_result
from unlearn_serve.format.atomic import write_atomically

NAME = "summary.json"
LEVELS = ("extraction_strength", "probability")
KEPT = {
    "retained_over_original": "retain.probability",
    "retained_exact_match_over_original": "retain.exact_match",
    "utility_over_original": "model_utility",
}
"""How well a model knows what stays, by the name of its ratio to the original's."""


def write_summary(results: Path) -> dict[str, Any]:
    """Write and return it; what no stage has found yet is null."""
    summary = {
        "tofu_forget1": tofu(results, 1),
        "tofu": {str(count): found for count in (1, 2, 4) if (found := tofu(results, count))},
        "sequence": result(results, "tofu/sequence/summary") or {},
        "speedup_over_retrain": speedup(results, "tofu", 1),
        "speedup_of_first_request": speedup(results, "tofu", 1, first=True),
        "speedups": {
            where.partition("/")[0] + where.partition("/forget")[2]: found
            for where in _requests(results)
            if (found := speedup(results, *_parts(where))) is not None
        },
        "step_speedup": None if (step := result(results, "step")) is None else step["step_speedup"]["median"],
    }
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / NAME, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def tofu(results: Path, count: int) -> dict[str, Any] | None:
    """Ours (`eul-bounded`, the mean over seeds) against the re-trained model, after `count` authors."""
    original, retrained = result(results, "tofu/original"), result(results, f"tofu/retrained{count}")
    ours = seeds(results, f"tofu/forget{count}", "eul-bounded")
    if original is None or retrained is None or not ours:
        return None
    before = original["measures"][str(count)]

    def mean(name: str) -> float:
        return statistics.fmean(one["measures"][name]["value"] for one in ours)

    return rounded(
        {
            **{level: mean(f"forget.{level}") for level in LEVELS},
            "by_seed": {level: [one["measures"][f"forget.{level}"]["value"] for one in ours] for level in LEVELS},
            "retrained": {level: retrained["measures"][f"forget.{level}"]["value"] for level in LEVELS},
            "retrained_ci": {
                level: [retrained["measures"][f"forget.{level}"][end] for end in ("low", "high")] for level in LEVELS
            },
            "original": {level: before[f"forget.{level}"]["value"] for level in LEVELS},
            **{name: _over(mean(measure), before[measure]["value"]) for name, measure in KEPT.items()},
            "retrained_over_original": {
                name: _over(retrained["measures"][measure]["value"], before[measure]["value"])
                for name, measure in KEPT.items()
            },
        }
    )


def _over(value: float, original: float) -> float | None:
    """Their ratio; None where the original itself has nothing of it, as a toy model may."""
    return value / original if original else None


def speedup(results: Path, task: str, forget: str | int, *, first: bool = False) -> float | None:
    """Seconds of re-training over those of `eul-bounded`, the median over seeds; None where machines differ.

    `first`: as the model's first request, when nothing of the frozen model is kept yet; None where that was not timed.
    """
    ours = _records(results, f"{task}/forget{forget}", "eul-bounded")
    retrained = (
        read_result(results, f"tofu/retrained{forget}")
        if task == "tofu"
        else next(iter(_records(results, f"{task}/forget{forget}", "retrain")), None)
    )
    if retrained is None or not ours or len({machine_of(one) for one in (retrained, *ours)}) > 1:
        return None
    spent = [
        one["result"]["details"].get("first_request_seconds") if first else one["result"]["accounting"]["seconds"]
        for one in ours
    ]
    if None in spent:
        return None
    return rounded(retrained["result"]["accounting"]["seconds"] / statistics.median(spent))


def machine_of(record: Mapping[str, Any]) -> str:
    """What it is called; and of CPUs without AVX-512, for which one name stands too, that they are: they are slower."""
    found = record["machine"]
    instructions = found.get("instructions")
    slow = instructions is not None and "avx512f" not in instructions
    return f"{found['cpu']}{' without AVX-512' if slow else ''}"


def seeds(results: Path, folder: str, method: str) -> list[dict[str, Any]]:
    """The results of a method on one request, a seed each."""
    return [one["result"] for one in _records(results, folder, method)]


def _records(results: Path, folder: str, method: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((results / folder).glob(f"{method}-seed*.json"))]


def result(results: Path, name: str) -> dict[str, Any] | None:
    """A stage's result, or None."""
    found: Mapping[str, Any] | None = read_result(results, name)
    return None if found is None else found["result"]


def _requests(results: Path) -> list[str]:
    folders = (path for task in ("tofu", "imdb", "samsum") for path in (results / task).glob("forget*"))
    return sorted(str(path.relative_to(results)) for path in folders)


def _parts(where: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\w+)/forget([\d.]+)", where)
    assert found is not None, where
    return found[1], found[2]
