"""Throughput and latency of every variant, interleaved: `python -m benchmarks serving`."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import RANK, Inputs
from benchmarks.load import CELLS, LOADS, Cell, Client
from benchmarks.machine import describe
from benchmarks.peers import Peer
from benchmarks.processes import BenchmarkError
from benchmarks.results import ResultLine, summarise, write_lines
from benchmarks.runs import RunLog, block_order
from benchmarks.servers import COMMON_FLAGS, Fleet
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
    failed: dict[str, str] = {}
    for session in (False, True):
        # Two sessions, since the servers and libraries of all variants together do not fit into this memory.
        log = RunLog(out / "serving-runs.jsonl")
        together = [variant for variant in chosen if variant.slow == session or variant.name == PLAIN]
        alone = len(together) == 1 < len(chosen)
        if not alone and _blocks(together, log, rounds):
            failed |= _measure(together, inputs, log, rounds=rounds, logs=out / "logs", say=say)
    write_lines(results, summary(chosen, log, rounds=rounds))
    for name, why in failed.items():
        say(f"NOT MEASURED {name}: {why.splitlines()[0]}")
    say(f"wrote {results}")


def summary(chosen: Sequence[Variant], log: RunLog, *, rounds: int) -> list[ResultLine]:
    """Return a line for each variant and cell that has runs."""
    about = {
        **describe(),
        "config": {
            "model": "SmolLM2-135M-Instruct, bfloat16",
            "rank": RANK,
            "route_slots": ROUTE_SLOTS,
            "rounds": rounds,
            "server_flags": " ".join(COMMON_FLAGS),
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


def _blocks(chosen: Sequence[Variant], log: RunLog, rounds: int) -> list[tuple[int, Cell, list[str]]]:
    """Return what is to be run: round, cell, and the variants in the order in which they take their turns."""
    blocks = []
    for round_ in range(rounds):
        for cell in sorted({cell for variant in chosen for cell in variant.cells}):
            here = [v.name for v in chosen if cell in v.cells and round_ < v.rounds(rounds)]
            missing = log.missing(here, cell=_key(cell), round_=round_)
            if order := block_order(missing, baseline=PLAIN, seed=f"{log.session} {round_} {cell}"):
                blocks.append((round_, cell, order))
    return blocks


def _measure(
    chosen: Sequence[Variant],
    inputs: Inputs,
    log: RunLog,
    *,
    rounds: int,
    logs: Path,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Make every run that is missing; returns what could not be started, and why."""
    specs = server_specs(inputs)
    names = list(dict.fromkeys(variant.server for variant in chosen))
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet([spec for name, spec in specs.items() if name in names], logs=logs, say=say))
        if PLAIN not in fleet.servers:
            raise BenchmarkError(f"without the plain server there is nothing to compare with: {fleet.failed[PLAIN]}")
        client = stack.enter_context(Client(inputs, logs=logs))
        peers, failed = _start_peers([name for name in names if name in PEERS], inputs, stack, logs=logs, say=say)
        failed |= fleet.failed
        live = {variant.name: variant for variant in chosen if variant.server not in failed}
        blocks = _blocks(list(live.values()), log, rounds)
        total, done = sum(len(order) for _, _, order in blocks), 0
        for round_, cell, order in blocks:
            for turn, name in enumerate(order):
                if name not in live:
                    continue
                # No server may have seen a prompt before: the session, the round and who shares the server count.
                seed = log.session * 1000 + round_ * 10 + _among_those_on_its_server(live[name], live)
                try:
                    figures = _run_one(live[name], fleet, peers, client, cell, seed=seed)
                except BenchmarkError as problem:
                    if name == PLAIN:
                        raise
                    say(f"FAILED {name}: {problem}")
                    failed[name] = str(problem)
                    del live[name]
                    continue
                run = {"variant": name, "load": cell.load, "batch": cell.batch, "cell": _key(cell), "round": round_}
                log.append({**run, "turn": turn, **figures})
                done += 1
                say(
                    f"[{done}/{total}] round {round_ + 1}/{rounds} {_key(cell):12} {name:18}"
                    f" {figures['output_tokens_per_s']:8.1f} tokens/s"
                )
    return failed


def _among_those_on_its_server(variant: Variant, live: dict[str, Variant]) -> int:
    return [other.name for other in live.values() if other.server == variant.server].index(variant.name)


def _run_one(
    variant: Variant, fleet: Fleet, peers: dict[str, Peer], client: Client, cell: Cell, *, seed: int
) -> dict[str, Any]:
    if variant.server in peers:
        return peers[variant.server].run(cell, seed=seed)
    return client.run(fleet.servers[variant.server], variant.models, cell, seed=seed)


def _start_peers(
    names: Sequence[str], inputs: Inputs, stack: ExitStack, *, logs: Path, say: Callable[[str], None]
) -> tuple[dict[str, Peer], dict[str, str]]:
    peers: dict[str, Peer] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            peers[name] = Peer(name, inputs, logs=logs)
            stack.callback(peers[name].stop)
            say(f"{name} is ready")
        except BenchmarkError as problem:
            failed[name] = str(problem)
            say(f"FAILED {problem}")
    return peers, failed


def _key(cell: Cell) -> str:
    return f"{cell.load}-{cell.batch}"
