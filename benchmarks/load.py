"""Loads, and the client that sends them: vLLM's own, one for all servers."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from benchmarks.inputs import Inputs
from benchmarks.processes import BenchmarkError, Measured, clean_environment
from benchmarks.servers import NAME, Server

LoadName = Literal["decode", "prefill"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests of one shape. All are sent at once; at most `batch` run at a time."""

    input_tokens: int
    output_tokens: int
    requests: dict[int, int]
    """Batch -> requests of one run: some seconds' worth on two cores."""


LOADS: dict[LoadName, Load] = {
    "decode": Load(input_tokens=32, output_tokens=96, requests={1: 2, 8: 16, 16: 16}),
    "prefill": Load(input_tokens=512, output_tokens=4, requests={1: 4, 8: 16, 16: 16}),
}
BATCHES = (1, 8, 16)
WARM_TOKENS = 4


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """What one run measures: a load at a batch size."""

    load: LoadName
    batch: int


CELLS = tuple(Cell(load=load, batch=batch) for load in LOADS for batch in BATCHES)


class Client:
    """`vllm bench serve` as a child that stays; see `vllm_bench`. Use as a context manager."""

    def __init__(self, inputs: Inputs, *, logs: Path) -> None:
        self._inputs = inputs
        self._measured = Measured(
            "client",
            [sys.executable, "-m", "benchmarks.vllm_bench", "serve"],
            log=logs / "client.log",
            environment=clean_environment(OMP_NUM_THREADS="1", VLLM_PLUGINS=""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._measured.stop()

    def run(self, server: Server, models: Sequence[str], cell: Cell, *, seed: int) -> dict[str, Any]:
        """Send one cell's requests to `server`, warmed up before, and return the client's figures.

        Args:
            server: must be ready.
            models: names to ask for, in turn: the served model, routes or LoRA adapters.
            cell: which load.
            seed: picks the prompts; a seed that the server has seen would be answered from its prefix cache.

        Raises:
            BenchmarkError: a request failed, or answered another number of tokens than asked for.
        """
        load = LOADS[cell.load]
        count = load.requests[cell.batch]
        arguments = [
            *("--backend", "openai", "--base-url", server.url, "--endpoint", "/v1/completions"),
            *("--model", NAME, "--tokenizer", str(self._inputs.model), "--temperature", "0", "--ignore-eos"),
            *("--dataset-name", "sharegpt", "--disable-shuffle", "--disable-tqdm", "--no-oversample"),
            *("--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99"),
            *("--max-concurrency", str(cell.batch)),
        ]
        if list(models) != [NAME]:
            arguments += ["--lora-modules", *models, "--lora-assignment", "round-robin"]
        # Every model is asked for once before: loading an adapter or a route is not what is measured.
        warm = max(cell.batch, len(models))
        prompts = self._inputs.prompts(f"warm-{warm}", tokens=16, count=warm, seed=seed)
        self._ask([*arguments, *_requests(prompts, warm, WARM_TOKENS)])
        prompts = self._inputs.prompts(f"{cell.load}-{cell.batch}", tokens=load.input_tokens, count=count, seed=seed)
        server.reset_peak()
        result = self._ask([*arguments, *_requests(prompts, count, load.output_tokens)])
        expected = (count, count * load.input_tokens, count * load.output_tokens)
        got = (result["completed"], result["total_input_tokens"], result["total_output_tokens"])
        if got != expected:
            raise BenchmarkError(f"{server.name}: expected (requests, tokens in, tokens out) {expected}, got {got}")
        return {
            "output_tokens_per_s": result["output_throughput"],
            "input_tokens_per_s": result["total_input_tokens"] / result["duration"],
            "ttft_ms_p50": result["p50_ttft_ms"],
            "itl_ms_p50": result["p50_itl_ms"],
            "itl_ms_p99": result["p99_itl_ms"],
            "peak_memory_mib": server.peak_mib(),
        }

    def _ask(self, arguments: list[str]) -> dict[str, Any]:
        pipes = self._measured.process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        pipes.stdin.write(json.dumps(arguments).encode() + b"\n")
        pipes.stdin.flush()
        line = pipes.stdout.readline()
        if not line:
            self._measured.require_alive()
            raise BenchmarkError(f"the client answered nothing; see {self._measured.log}")
        answer: dict[str, Any] = json.loads(line)
        if answer["error"]:
            raise BenchmarkError(f"vllm bench serve: {answer['error']}; see {self._measured.log}")
        return answer


def _requests(prompts: Path, count: int, output_tokens: int) -> list[str]:
    return [
        *("--dataset-path", str(prompts), "--num-prompts", str(count)),
        *("--sharegpt-output-len", str(output_tokens)),
    ]
