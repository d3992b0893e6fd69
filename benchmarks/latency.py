"""`vllm bench latency`: one batch on the engine alone, without HTTP or client: `python -m benchmarks latency`.

It starts an engine a run, so runs of the variants alternate but do not interleave finely, and it knows no LoRA and no
routes: plain and default are what it fits.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.inputs import RANK, Inputs
from benchmarks.machine import describe
from benchmarks.pairing import paired_ratios, spread
from benchmarks.processes import BenchmarkError, Measured, clean_environment
from benchmarks.results import LatencyResult, write_lines
from benchmarks.runs import RunLog, block_order
from benchmarks.servers import DTYPE, MODEL
from benchmarks.variants import CHANNEL, DEFAULT_SEED, PLAIN
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.launch import vllm_command, vllm_environment

BATCH, INPUT_TOKENS, OUTPUT_TOKENS = 8, 32, 64
ITERATIONS, WARM_UPS = 5, 2
VARIANTS = (PLAIN, "default")
_RUN_SECONDS = 600


def run(inputs: Inputs, out: Path, results: Path, *, rounds: int, say: Callable[[str], None]) -> None:
    """Measure `rounds` rounds and write `results`."""
    inputs.promote(inputs.release(DEFAULT_SEED), CHANNEL)
    log = RunLog(out / "latency-runs.jsonl")
    for round_ in range(rounds):
        missing = log.missing(VARIANTS, cell="latency", round_=round_, baseline=PLAIN)
        for variant in block_order(missing, baseline=PLAIN, seed=f"{log.session} {round_}"):
            seconds = _median_latency(variant, inputs, out)
            say(f"round {round_ + 1}/{rounds} latency {variant:10} {seconds * 1e3:8.1f} ms")
            log.append({"variant": variant, "cell": "latency", "round": round_, "batch_latency_ms": seconds * 1e3})
    about = {
        **describe(),
        "config": {
            "model": MODEL,
            "rank": RANK,
            "batch": BATCH,
            "input_tokens": INPUT_TOKENS,
            "output_tokens": OUTPUT_TOKENS,
            "iterations": ITERATIONS,
        },
    }
    lines = []
    for variant in VARIANTS:
        ratios = paired_ratios(log.runs, variant, PLAIN, "batch_latency_ms")
        if not ratios:
            continue
        own = [run["batch_latency_ms"] for run in log.runs if run["variant"] == variant]
        lines.append(
            LatencyResult.model_validate(
                {
                    "variant": variant,
                    "batch_latency_ms": spread(own)["median"],
                    "ratio_to_plain": spread(ratios)["median"],
                    "spread": spread(ratios),
                    "runs": len(own),
                    **about,
                }
            )
        )
    write_lines(results, lines)
    say(f"wrote {results}")


def _median_latency(variant: str, inputs: Inputs, out: Path) -> float:
    answer = out / f"latency-{variant}.json"
    answer.unlink(missing_ok=True)
    environment = clean_environment(VLLM_CPU_KVCACHE_SPACE="1", VLLM_PLUGINS="")
    ours: list[str] = []
    if variant == "default":
        state = str(inputs.root / "state" / CHANNEL)
        config = ServingConfig(store=inputs.store.url, channel=CHANNEL, max_rank=RANK, state_dir=state)
        ours = vllm_command(str(inputs.model), config, [])[4:]  # without interpreter, -m, module and model
        environment = vllm_environment(environment)
    run = Measured(
        f"latency-{variant}",
        [
            *(sys.executable, "-m", "benchmarks.vllm_bench", "latency", "--model", str(inputs.model), *ours),
            *("--dtype", DTYPE, "--max-model-len", "1024", "--max-num-seqs", "16"),
            *("--batch-size", str(BATCH), "--input-len", str(INPUT_TOKENS), "--output-len", str(OUTPUT_TOKENS)),
            *("--num-iters", str(ITERATIONS), "--num-iters-warmup", str(WARM_UPS), "--output-json", str(answer)),
        ],
        log=out / "logs" / f"latency-{variant}.log",
        environment=environment,
    )
    try:
        run.process.wait(_RUN_SECONDS)
        if not answer.exists():
            run.require_alive()
            raise BenchmarkError(f"latency-{variant}: no result; see {run.log}")
    finally:
        run.stop()
    latency: float = json.loads(answer.read_text())["percentiles"]["50"]
    return latency
