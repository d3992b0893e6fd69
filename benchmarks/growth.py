"""What stays the same as deletion requests and releases grow in number: `python -m benchmarks growth`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.inputs import RANK, Inputs
from benchmarks.load import Cell, Client
from benchmarks.machine import describe
from benchmarks.pairing import paired_ratios, spread
from benchmarks.results import GrowthResult, write_lines
from benchmarks.runs import RunLog, block_order
from benchmarks.servers import NAME, Fleet, ServerSpec
from benchmarks.variants import route_names, unlearn

CELL = Cell(load="decode", batch=8)
SEED = 3
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Something that grows: a server for each of its values, all alive together."""

    name: str
    values: Sequence[int]
    what: str
    arguments: Callable[[Inputs, int], list[str]]
    """Arguments of one value's server."""
    models: Callable[[Inputs, int], Sequence[str]]
    """Whom requests to one value's server ask for, in turn."""

    def variant(self, value: int) -> str:
        """Return the variant's name for one value."""
        return f"{self.name}-{value}"


def _covering(inputs: Inputs, value: int) -> list[str]:
    channel = f"covers-{value}"
    inputs.promote(inputs.release(SEED, ids=value), channel)
    return unlearn(inputs, channel)


def _with_routes(inputs: Inputs, value: int) -> list[str]:
    inputs.promote(inputs.release(SEED), "growth")
    route_names(inputs, value)
    return unlearn(inputs, "growth", "--routes", str(value))


AXES = (
    Axis(
        name="deletion_requests_covered",
        values=(1, 10, 100, 1000),
        what="default route; the release has one adapter, rank 64, and a manifest that covers n deletion requests",
        arguments=_covering,
        models=lambda _, __: [NAME],
    ),
    Axis(
        name="releases_resident",
        values=(1, 4, 16, 64),
        what="n route slots, a release in each; requests ask for the n releases in turn",
        arguments=_with_routes,
        models=route_names,
    ),
)


def run(inputs: Inputs, out: Path, results: Path, *, rounds: int, say: Say) -> None:
    """Measure `rounds` rounds along both axes and write `results`."""
    logs = out / "logs"
    log = RunLog(out / "growth-runs.jsonl")
    for axis in AXES:
        if any(log.missing([axis.variant(v) for v in axis.values], cell=axis.name, round_=r) for r in range(rounds)):
            _measure(axis, inputs, log, rounds=rounds, logs=logs, say=say)
    write_lines(results, summary(log, rounds=rounds))
    say(f"wrote {results}")


def summary(log: RunLog, *, rounds: int) -> list[GrowthResult]:
    """Return a line for each value of each axis that has runs."""
    about = {
        **describe(),
        "config": {
            "model": "SmolLM2-135M-Instruct, bfloat16",
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


def _measure(axis: Axis, inputs: Inputs, log: RunLog, *, rounds: int, logs: Path, say: Say) -> None:
    by_variant = {axis.variant(value): value for value in axis.values}
    specs = [
        ServerSpec(name=variant, arguments=partial(axis.arguments, inputs, value))
        for variant, value in by_variant.items()
    ]
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(specs, logs=logs, say=say))
        if fleet.failed:
            say(f"NOT MEASURED {axis.name}: {next(iter(fleet.failed.values())).splitlines()[0]}")
            return
        client = stack.enter_context(Client(inputs, logs=logs))
        for round_ in range(rounds):
            missing = log.missing(by_variant, cell=axis.name, round_=round_)
            seed = log.session * 1000 + round_
            for variant in block_order(missing, baseline=axis.variant(axis.values[0]), seed=f"{axis.name} {seed}"):
                models = axis.models(inputs, by_variant[variant])
                figures = client.run(fleet.servers[variant], models, CELL, seed=seed)
                log.append({"variant": variant, "cell": axis.name, "round": round_, **figures})
                say(
                    f"round {round_ + 1}/{rounds} {variant:30} {figures['output_tokens_per_s']:8.1f} tokens/s"
                    f" {figures['peak_memory_mib']:7.0f} MiB"
                )
