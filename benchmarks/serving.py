"""Throughput and latency of every variant, in turn within each round: `python -m benchmarks serving`."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import RANK, Inputs
from benchmarks.load import CELLS, LOADS, Cell, Client
from benchmarks.machine import describe
from benchmarks.peers import Peer
from benchmarks.processes import ENVIRONMENT, BenchmarkError
from benchmarks.results import ResultLine, summarise, write_lines
from benchmarks.runs import RunLog
from benchmarks.servers import COMMON_FLAGS, MODEL, Server
from benchmarks.variants import CHANNEL, DEFAULT_SEED, PLAIN, ROUTE_SLOTS, Variant, server_specs, variants

PEERS = ("peft", "adapters-lib")
QUICK_VARIANTS = (PLAIN, "default", "routes4", "lora-down")
QUICK_CELLS = (Cell(load="decode", batch=8), Cell(load="prefill", batch=8))
RATIO_TO = ("lora-down", "default")


def run(
    inputs: Inputs,
    out: Path,
    results: Path,
    *,
    rounds: int,
    only: Sequence[str] = (),
    cells: Sequence[Cell] = CELLS,
    slow: bool = True,
    say: Callable[[str], None],
) -> None:
    """Measure `rounds` rounds of `cells` and write `results`; goes on where an earlier call with `out` was stopped."""
    inputs.promote(inputs.release(DEFAULT_SEED), CHANNEL)
    chosen = [
        replace(variant, cells=tuple(cell for cell in variant.cells if cell in cells))
        for variant in variants(inputs)
        if (not only or variant.name in only or variant.name == PLAIN) and (slow or not variant.slow)
    ]
    log = RunLog(out / "serving-runs.jsonl")
    failed = _measure(chosen, inputs, log, rounds=rounds, logs=out / "logs", say=say)
    write_lines(results, summary(chosen, log, rounds=rounds))
    for name, why in failed.items():
        say(f"NOT MEASURED {name}: {why.splitlines()[0]}")
    say(f"wrote {results}")


def summary(chosen: Sequence[Variant], log: RunLog, *, rounds: int) -> list[ResultLine]:
    """Return a line for each variant and cell that has runs."""
    about = {
        **describe(),
        "config": {
            "model": MODEL,
            "rank": RANK,
            "route_slots": ROUTE_SLOTS,
            "rounds": rounds,
            "server_flags": " ".join(COMMON_FLAGS),
            "environment": ENVIRONMENT,
            "loads": {name: asdict(load) for name, load in LOADS.items()},
        },
    }
    lines = [
        summarise(
            log.runs,
            variant=variant.name,
            what=variant.what,
            load=cell.load,
            batch=cell.batch,
            others=[name for name in RATIO_TO if name != variant.name],
            about=about,
        )
        for cell in CELLS
        for variant in chosen
        if cell in variant.cells
    ]
    return [line for line in lines if line is not None]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A server's turn in a round: it starts, runs all that is measured on it, and ends before the next one starts."""

    round: int
    server: str
    runs: Sequence[tuple[Variant, Cell]]


def turns(chosen: Sequence[Variant], log: RunLog, rounds: int) -> list[Turn]:
    """Return what is missing, the servers of a round in a random order of its own, plain among them."""
    found = []
    for round_ in range(rounds):
        todo: dict[str, list[tuple[Variant, Cell]]] = {}
        for cell in sorted({cell for variant in chosen for cell in variant.cells}):
            here = [v for v in chosen if cell in v.cells and round_ < v.rounds(cell, rounds)]
            missing = log.missing([v.name for v in here], cell=_key(cell), round_=round_, baseline=PLAIN)
            for variant in here:
                # A plain run of its own for each cell: what another session measured is not paired with.
                if variant.name in missing or (missing and variant.name == PLAIN):
                    todo.setdefault(variant.server, []).append((variant, cell))
        servers = list(todo)
        random.Random(f"{log.session} {round_}").shuffle(servers)
        found += [Turn(round=round_, server=server, runs=todo[server]) for server in servers]
    return found


def _measure(
    chosen: Sequence[Variant],
    inputs: Inputs,
    log: RunLog,
    *,
    rounds: int,
    logs: Path,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Make every run that is missing; returns what could not be measured, and why."""
    planned = turns(chosen, log, rounds)
    total, done = sum(len(turn.runs) for turn in planned), 0
    failed: dict[str, str] = {}
    with Client(inputs, logs=logs) as client:
        for turn in planned:
            runs = [(variant, cell) for variant, cell in turn.runs if variant.name not in failed]
            if not runs:
                continue
            try:
                with _alone(turn.server, inputs, client, logs=logs) as run_one:
                    for variant, cell in runs:
                        # No server may have seen a prompt before: those who share one have seeds of their own.
                        sharing = list(dict.fromkeys(other.name for other, _ in turn.runs)).index(variant.name)
                        figures = run_one(variant, cell, log.session * 1000 + turn.round * 10 + sharing)
                        here = {"load": cell.load, "batch": cell.batch, "cell": _key(cell), "round": turn.round}
                        log.append({"variant": variant.name, **here, **figures})
                        done += 1
                        say(
                            f"[{done}/{total}] round {turn.round + 1}/{rounds} {_key(cell):12} {variant.name:18}"
                            f" {figures['output_tokens_per_s']:8.1f} tokens/s"
                        )
            except BenchmarkError as problem:
                if turn.server == PLAIN:
                    raise
                say(f"FAILED {turn.server}: {problem}")
                failed |= {variant.name: str(problem) for variant, _ in runs}
    return failed


@contextmanager
def _alone(
    name: str, inputs: Inputs, client: Client, *, logs: Path
) -> Iterator[Callable[[Variant, Cell, int], dict[str, Any]]]:
    """Start a server or an offline peer, give a call that makes one run on it, and end it."""
    if name in PEERS:
        peer = Peer(name, inputs, logs=logs)
        try:
            yield lambda _, cell, seed: peer.run(cell, seed=seed)
        finally:
            peer.stop()
        return
    with Server(server_specs(inputs)[name], logs=logs) as server:
        yield lambda variant, cell, seed: client.run(server, variant.models, cell, seed=seed)


def _key(cell: Cell) -> str:
    return f"{cell.load}-{cell.batch}"
