"""What it takes to change what is forgotten under load, three ways: `python -m benchmarks swap`."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from benchmarks.inputs import RANK, Inputs
from benchmarks.machine import describe
from benchmarks.pairing import spread
from benchmarks.processes import BenchmarkError
from benchmarks.results import SwapResult, write_lines
from benchmarks.runs import RunLog
from benchmarks.servers import MODEL, NAME, Server, ServerSpec
from benchmarks.streams import StreamedRequest, Streams, longest_gap
from benchmarks.variants import DEFAULT_SEED, server_specs, unlearn

STREAMS = 8
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 96
CHANNEL = "swap"
_FIRST_SEED = 200

WAYS = {
    "hot-swap": "publish and promote a release; the server follows its channel",
    "load_lora_adapter": "vLLM's /v1/load_lora_adapter (LoRA on down_proj); clients then ask for the new name",
    "restart": "stop the server, start it on a merged checkpoint that is there already (compilation cached)",
}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change under load; times are Unix seconds."""

    asked: float
    """When it was asked for."""
    live: float
    """When the first token could be computed under what is new."""
    stall_ms: float | None
    new: str
    """Model name, or fingerprint, of answers under what is new; empty where nothing old can run on."""


def run(inputs: Inputs, out: Path, results: Path, *, changes: int, restarts: int, say: Say) -> None:
    """Make `changes` hot swaps and LoRA loads, and `restarts` restarts, and write `results`."""
    logs = out / "logs"
    inputs.promote(inputs.release(DEFAULT_SEED), CHANNEL)
    log = RunLog(out / "swap-runs.jsonl")
    makers = {
        "hot-swap": (_hot_swaps, changes),
        "load_lora_adapter": (_lora_loads, changes),
        "restart": (_restarts, restarts),
    }
    for way, (make, count) in makers.items():
        done = sum(run["variant"] == way for run in log.runs)
        if done >= count:
            continue
        say(f"{way}: {count - done} changes under {STREAMS} streams")
        made, requests = make(inputs, logs, count - done, done, say)
        for number, change in enumerate(made):
            figures = figures_of(change, requests, later=made[number + 1 :])
            log.append({"variant": way, "cell": way, "round": done + number, **figures})
            say(f"{way}: {figures}")
    write_lines(results, summary(log))
    say(f"wrote {results}")


def figures_of(
    change: Change, requests: Sequence[StreamedRequest], *, later: Sequence[Change] = ()
) -> dict[str, float | int | None]:
    """Return what one change did to the clients, who saw the `later` ones too; failures count until the next."""
    until = later[0].asked if later else float("inf")
    new = {one.new for one in (change, *later)}
    running = [request for request in requests if request.running_at(change.live)]
    old = [request for request in running if change.new and not new & {request.model, request.fingerprint}]
    return {
        "publish_to_live_ms": 1e3 * (change.live - change.asked),
        "stall_ms": change.stall_ms,
        "gap_ms": 1e3 * longest_gap(requests, change.asked, change.live),
        "tokens_recomputed": sum(len(r.prompt) + r.tokens_by(change.live) for r in running if r not in old)
        if change.stall_ms is not None
        else 0,
        "tokens_under_old": sum(r.tokens_by(float("inf")) - r.tokens_by(change.live) for r in old),
        "failed_requests": sum(
            r.error is not None and r.ended is not None and change.asked <= r.ended < until for r in requests
        ),
    }


def summary(log: RunLog) -> list[SwapResult]:
    """Return a line for each way that has runs."""
    about = {
        **describe(),
        "config": {
            "model": MODEL,
            "rank": RANK,
            "streams": STREAMS,
            "prompt_tokens": PROMPT_TOKENS,
            "output_tokens": OUTPUT_TOKENS,
        },
    }
    lines = []
    for way, what in WAYS.items():
        runs = [run for run in log.runs if run["variant"] == way]
        if not runs:
            continue
        names = ("publish_to_live_ms", "stall_ms", "gap_ms", "tokens_recomputed", "tokens_under_old")
        values = {name: [run[name] for run in runs if run[name] is not None] for name in names}
        spreads = {name: spread(found) for name, found in values.items() if found}
        medians = {name: spreads[name]["median"] if name in spreads else None for name in names}
        lines.append(
            SwapResult.model_validate(
                {
                    "variant": way,
                    "what": what,
                    **medians,
                    "failed_requests": sum(run["failed_requests"] for run in runs),
                    "spread": spreads,
                    "runs": len(runs),
                    **about,
                }
            )
        )
    return lines


def _streams(inputs: Inputs, url: str, model: str, seed: int) -> Streams:
    prompts = inputs.prompts("swap", tokens=PROMPT_TOKENS, count=512, seed=seed)
    return Streams(url, model, inputs.token_ids(prompts), count=STREAMS, output_tokens=OUTPUT_TOKENS)


def _hot_swaps(
    inputs: Inputs, logs: Path, count: int, first: int, say: Say
) -> tuple[list[Change], list[StreamedRequest]]:
    newest = max((int(path.name.split("-")[1]) for path in (inputs.root / "adapters").glob("silu-*-1")), default=0)
    seeds = range(max(_FIRST_SEED, newest + 1), max(_FIRST_SEED, newest + 1) + count)  # none was published before
    adapters = [inputs.adapter(seed) for seed in seeds]
    spec = ServerSpec(name="hot-swap", arguments=lambda: unlearn(inputs, CHANNEL))
    server = Server(spec, logs=logs)
    changes = []
    try:
        say(f"hot-swap is ready after {server.wait_ready():.0f} s")
        with _streams(inputs, server.url, NAME, first) as streams:
            for adapter in adapters:
                _wait(5.0)
                asked = time.time()
                digest = inputs.store.publish(adapter)
                entry = inputs.store.promote(digest, CHANNEL, actor="benchmarks")
                _wait(2.0)  # asking whether it is live already would disturb what is measured
                server.wait_live(digest)
                (record,) = [
                    event
                    for event in server.admin("history")["events"]
                    if event["event"] == "swap" and event["release"] == digest
                ]
                live = entry.at.timestamp() + record["publish_to_live_ms"] / 1e3
                fingerprint = server.admin("status")["live"]["fingerprint"]
                changes.append(Change(asked=asked, live=live, stall_ms=record["stall_ms"], new=fingerprint))
            _wait(5.0)
        return changes, streams.requests
    finally:
        server.stop()


def _lora_loads(
    inputs: Inputs, logs: Path, count: int, first: int, say: Say
) -> tuple[list[Change], list[StreamedRequest]]:
    paths = inputs.loras("down")
    spec = server_specs(inputs)["lora-down"]
    allowed = {**spec.environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    server = Server(replace(spec, name="load-lora", environment=allowed), logs=logs)
    changes = []
    try:
        say(f"load_lora_adapter is ready after {server.wait_ready():.0f} s")
        with _streams(inputs, server.url, paths[0].name, first) as streams:
            for number in range(count):
                _wait(10.0)
                name, path = f"new{number}", paths[(number + 1) % len(paths)]
                asked = time.time()
                answer = httpx.post(
                    f"{server.url}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)}, timeout=60
                )
                live = time.time()
                if answer.status_code != 200:
                    raise BenchmarkError(f"load_lora_adapter: status {answer.status_code}: {answer.text[:200]}")
                streams.model = name
                changes.append(Change(asked=asked, live=live, stall_ms=None, new=name))
            _wait(10.0)
        return changes, streams.requests
    finally:
        server.stop()


def _restarts(
    inputs: Inputs, logs: Path, count: int, first: int, say: Say
) -> tuple[list[Change], list[StreamedRequest]]:
    spec = replace(server_specs(inputs)["merged"], name="restart")
    server = Server(spec, logs=logs)
    changes = []
    try:
        say(f"restart is ready after {server.wait_ready():.0f} s")
        with _streams(inputs, server.url, NAME, first) as streams:
            for _ in range(count):
                _wait(5.0)
                asked = time.time()
                server.stop()
                stopped = time.time()  # until now the old server may have answered
                server = Server(spec, logs=logs, port=server.port)
                server.wait_ready()
                changes.append(Change(asked=asked, live=_first_token(streams, stopped), stall_ms=None, new=""))
            _wait(5.0)
        return changes, streams.requests
    finally:
        server.stop()


def _first_token(streams: Streams, after: float) -> float:
    """Wait for the first token of a request that was sent later than `after`; returns when it came."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if times := [at for request in streams.requests if request.started > after for at, _ in request.tokens]:
            return min(times)
        time.sleep(0.1)
    raise BenchmarkError("no client got a token in the minute after the restart")


def _wait(seconds: float) -> None:
    # Never in step with the clients: a change may meet any moment of theirs.
    time.sleep(seconds + random.random())
