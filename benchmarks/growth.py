"""What stays the same as deletion requests and releases grow in number: `python -m benchmarks growth`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inputs import RANK, Inputs
from benchmarks.load import Cell, Client
from benchmarks.machine import describe
from benchmarks.processes import BenchmarkError
from benchmarks.results import GrowthResult, write_lines
from benchmarks.runs import RunLog, block_order
from benchmarks.servers import NAME, Fleet, ServerSpec
from benchmarks.statistics import paired_ratios, spread
from benchmarks.variants import route_names, unlearn

COVERED = (1, 10, 100, 1000)
RESIDENT = (1, 4, 16, 64)
CELL = Cell(load="decode", batch=8)
CHANNEL = "growth"
SEED = 3
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Something that grows, and what each of its values is called in the runs."""

    name: str
    values: Sequence[int]
    what: str

    def variant(self, value: int) -> str:
        """Return the variant's name for one value."""
        return f"{self.name}-{value}"


AXES = (
    Axis(
        name="deletion_requests_covered",
        values=COVERED,
        what="one server; the default route's release has one adapter, rank 64, and a manifest that covers n requests",
    ),
    Axis(
        name="releases_resident",
        values=RESIDENT,
        what="a server each with n route slots, all in use; requests ask for the n releases in turn",
    ),
)


def run(out: Path, results: Path, *, rounds: int, say: Say) -> None:
    """Measure `rounds` rounds along both axes and write `results`."""
    inputs, logs = Inputs(out / "inputs"), out / "logs"
    log = RunLog(out / "growth-runs.jsonl")
    for axis, measure in zip(AXES, (_covered, _resident), strict=True):
        if any(log.missing([axis.variant(v) for v in axis.values], cell=axis.name, round_=r) for r in range(rounds)):
            measure(axis, inputs, log, rounds, logs, say)
    write_lines(results, summary(log, rounds=rounds))
    say(f"wrote {results}")


def summary(log: RunLog, *, rounds: int) -> list[GrowthResult]:
    """Return a line for each value of each axis that has runs."""
    about = {
        **describe(),
        "config": {
            "model": "SmolLM2-135M-Instruct, bfloat16",
            "rank": RANK,
            "load": "decode",
            "batch": 8,
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


def _covered(axis: Axis, inputs: Inputs, log: RunLog, rounds: int, logs: Path, say: Say) -> None:
    releases = {value: inputs.release(SEED, ids=value) for value in axis.values}
    inputs.promote(releases[axis.values[0]], CHANNEL)
    spec = ServerSpec(name="covered", arguments=lambda: unlearn(inputs, CHANNEL))
    with Fleet([spec], logs=logs, say=say) as fleet, Client(inputs, logs=logs) as client:
        _require(fleet)
        server = fleet.servers["covered"]

        def measure(value: int, seed: int) -> dict[str, Any]:
            inputs.promote(releases[value], CHANNEL)
            server.wait_live(releases[value])
            return client.run(server, [NAME], CELL, seed=seed)

        _rounds(axis, log, rounds, measure, say)


def _resident(axis: Axis, inputs: Inputs, log: RunLog, rounds: int, logs: Path, say: Say) -> None:
    names = route_names(inputs, axis.values[-1])
    inputs.promote(inputs.release(SEED), CHANNEL)
    specs = [
        ServerSpec(
            name=axis.variant(value),
            arguments=lambda value=value: unlearn(inputs, CHANNEL, "--routes", str(value)),  # type: ignore[misc]
        )
        for value in axis.values
    ]
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(specs, logs=logs, say=say))
        if fleet.failed:
            say(f"NOT MEASURED {axis.name}: {next(iter(fleet.failed.values())).splitlines()[0]}")
            return
        client = stack.enter_context(Client(inputs, logs=logs))
        _rounds(
            axis,
            log,
            rounds,
            lambda value, seed: client.run(fleet.servers[axis.variant(value)], names[:value], CELL, seed=seed),
            say,
        )


def _rounds(axis: Axis, log: RunLog, rounds: int, measure: Callable[[int, int], dict[str, Any]], say: Say) -> None:
    by_variant = {axis.variant(value): value for value in axis.values}
    for round_ in range(rounds):
        missing = log.missing(by_variant, cell=axis.name, round_=round_)
        order = block_order(missing, baseline=axis.variant(axis.values[0]), seed=f"{log.session} {axis.name} {round_}")
        for turn, variant in enumerate(order):
            # Values share a server along one axis: every run has prompts that are new to it.
            figures = measure(by_variant[variant], log.session * 1000 + round_ * 10 + turn)
            log.append({"variant": variant, "cell": axis.name, "round": round_, "turn": turn, **figures})
            say(
                f"round {round_ + 1}/{rounds} {variant:30} {figures['output_tokens_per_s']:8.1f} tokens/s"
                f" {figures['peak_memory_mib']:7.0f} MiB"
            )


def _require(fleet: Fleet) -> None:
    for problem in fleet.failed.values():
        raise BenchmarkError(problem)
