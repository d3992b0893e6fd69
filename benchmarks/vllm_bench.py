"""vLLM's own benchmark client, `vllm bench serve` and `vllm bench latency`, from the benchmark code itself.

vLLM's CPU wheel cannot start the command `vllm` (see `vllm_internals.run_vllm_serve`), so the same parser and the same
function are called here. `serve` runs as a child that stays: importing vLLM takes longer than a measurement, and one
client for all servers treats all alike.

    python -m benchmarks.vllm_bench serve             # one JSON list of arguments a line in, one result a line out
    python -m benchmarks.vllm_bench latency ARGS...   # as `vllm bench latency ARGS...`
"""

import gc
import json
import os
import sys
from typing import Any

RESULT_KEYS = (
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "output_throughput",
    "p50_ttft_ms",
    "p50_itl_ms",
    "p99_itl_ms",
)


def parse_serve(arguments: list[str]) -> Any:
    """Parse what `vllm bench serve` takes."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    return parser.parse_args(arguments)


def bench_serve(arguments: list[str]) -> dict[str, Any]:
    """Do what `vllm bench serve ARGUMENTS` does; returns the figures of `RESULT_KEYS`."""
    from vllm.benchmarks.serve import main

    result = main(parse_serve(arguments))
    # The client freezes the heap for each run; unfrozen, a later run would carry all earlier ones.
    gc.unfreeze()
    errors = [error for error in result.get("errors", []) if error]
    return {**{key: result[key] for key in RESULT_KEYS}, "error": errors[0][-500:] if errors else None}


def bench_latency(arguments: list[str]) -> None:
    """Do what `vllm bench latency ARGUMENTS` does."""
    from vllm.benchmarks.latency import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args(arguments))


def _serve_lines() -> None:
    # The client prints a report to stdout: that goes where stderr goes, and results to the pipe alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = bench_serve(json.loads(line))
        except Exception as problem:  # the caller in the other process raises it, or would wait without end
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve_lines()
    else:
        bench_latency(sys.argv[2:])
