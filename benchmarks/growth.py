"""What stays the same as deletion requests and releases grow in number: `python -m benchmarks growth`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inputs import RANK, Inputs
from benchmarks.load import Cell, Client
from benchmarks.machine import describe
from benchmarks.pairing import paired_ratios, spread
from benchmarks.results import GrowthResult, write_lines
from benchmarks.runs import RunLog, block_order
from benchmarks.servers import MODEL, NAME, Server, ServerSpec
from benchmarks.variants import FEW_ROUNDS, route_names, unlearn

CELL = Cell(load="decode", batch=8)
SEED = 3
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Something that grows, and the values at which it is measured."""

    name: str
    values: Sequence[int]
    what: str
    rounds: int
    """At most so many."""

    def variant(self, value: int) -> str:
        """Return the variant's name for one value."""
        return f"{self.name}-{value}"


COVERED = Axis(
    name="deletion_requests_covered",
    values=(1, 10, 100, 1000),
    what="default route of one server that swaps between releases; each is one adapter, rank 64, and covers n requests",
    rounds=100,
)
RESIDENT = Axis(
    name="releases_resident",
    values=(1, 4, 16, 64),
    what="n route slots, a release in each; requests ask for the n releases in turn; a server is started for every run",
    rounds=FEW_ROUNDS,
)
AXES = (COVERED, RESIDENT)


def run(inputs: Inputs, out: Path, results: Path, *, rounds: int, say: Say) -> None:
    """Measure `rounds` rounds along both axes and write `results`."""
    logs = out / "logs"
    log = RunLog(out / "growth-runs.jsonl")
    with Client(inputs, logs=logs) as client:
        for axis, measure in ((COVERED, _on_one_server), (RESIDENT, _on_a_server_each)):
            if planned := _planned(axis, log, rounds):
                measure(planned, inputs, log, client, logs=logs, say=say)
    write_lines(results, summary(log, rounds=rounds))
    say(f"wrote {results}")


def summary(log: RunLog, *, rounds: int) -> list[GrowthResult]:
    """Return a line for each value of each axis that has runs."""
    about = {
        **describe(),
        "config": {
            "model": MODEL,
            "rank": RANK,
            "load": CELL.load,
            "batch": CELL.batch,
            "rounds": rounds,
        },
    }
    return [
        line
        for axis in AXES
        for value in axis.values
        if (line := _line(axis, value, [run for run in log.runs if run["cell"] == axis.name], about)) is not None
    ]


def _line(axis: Axis, value: int, runs: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> GrowthResult | None:
    variant, smallest = axis.variant(value), axis.variant(axis.values[0])
    own = [run for run in runs if run["variant"] == variant]
    speed = paired_ratios(runs, variant, smallest, "output_tokens_per_s")
    if not own or not speed:
        return None
    memory = paired_ratios(runs, variant, smallest, "peak_memory_mib")
    return GrowthResult.model_validate(
        {
            "variant": variant,
            "axis": axis.name,
            "value": value,
            "output_tokens_per_s": spread([run["output_tokens_per_s"] for run in own])["median"],
            "peak_memory_mib": spread([run["peak_memory_mib"] for run in own])["median"],
            "ratio_to_smallest": spread(speed)["median"],
            "memory_ratio_to_smallest": spread(memory)["median"],
            "spread": spread(speed),
            "runs": len(own),
            **about,
            "config": {**about["config"], "what": axis.what},
        }
    )


Planned = Sequence[tuple[int, int]]
"""Rounds and values, in the order in which they are to be run."""


def _planned(axis: Axis, log: RunLog, rounds: int) -> Planned:
    smallest = axis.variant(axis.values[0])
    by_variant = {axis.variant(value): value for value in axis.values}
    return [
        (round_, by_variant[variant])
        for round_ in range(min(rounds, axis.rounds))
        for variant in block_order(
            log.missing(by_variant, cell=axis.name, round_=round_, baseline=smallest),
            baseline=smallest,
            seed=f"{axis.name} {log.session} {round_}",
        )
    ]


def _on_one_server(planned: Planned, inputs: Inputs, log: RunLog, client: Client, *, logs: Path, say: Say) -> None:
    releases = {value: inputs.release(SEED, ids=value) for value in COVERED.values}
    inputs.promote(releases[COVERED.values[0]], "growth")
    spec = ServerSpec(name="growth", arguments=lambda: unlearn(inputs, "growth"))
    with Server(spec, logs=logs) as server:
        for turn, (round_, value) in enumerate(planned):
            inputs.promote(releases[value], "growth")
            server.wait_live(releases[value])
            figures = client.run(server, [NAME], CELL, seed=log.session * 1000 + turn)
            _note(COVERED, value, round_, figures, log, say)


def _on_a_server_each(planned: Planned, inputs: Inputs, log: RunLog, client: Client, *, logs: Path, say: Say) -> None:
    inputs.promote(inputs.release(SEED), "growth")
    for turn, (round_, value) in enumerate(planned):
        arguments = unlearn(inputs, "growth", "--routes", str(value))
        models = route_names(inputs, value)
        with Server(ServerSpec(name=f"routes-{value}", arguments=lambda given=arguments: given), logs=logs) as server:
            figures = client.run(server, models, CELL, seed=log.session * 1000 + 500 + turn)
        _note(RESIDENT, value, round_, figures, log, say)


def _note(axis: Axis, value: int, round_: int, figures: Mapping[str, Any], log: RunLog, say: Say) -> None:
    log.append({"variant": axis.variant(value), "cell": axis.name, "round": round_, **figures})
    say(
        f"round {round_ + 1} {axis.variant(value):30} {figures['output_tokens_per_s']:8.1f} tokens/s"
        f" {figures['peak_memory_mib']:7.0f} MiB"
    )
