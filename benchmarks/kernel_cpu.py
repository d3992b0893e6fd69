"""Microseconds per call of the op on this CPU: `python -m benchmarks.kernel_cpu`.

Writes benchmarks/results/kernel_cpu.json: the C++ op, the plain torch path and two `F.linear` of one slot (what a model
with the layer built in would run) over numbers of tokens and slots, in turn within each round, median and extremes.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.machine import describe
from unlearn_kernels import activation_code, apply_unlearning, apply_unlearning_reference, load_cpu_op
from unlearn_kernels.grouped import apply_grouped

RESULT = Path(__file__).parent / "results" / "kernel_cpu.json"
RANK, SLOTS, SITES = 64, 8, 30
SHAPES = ((1, 1), (4, 1), (8, 1), (8, 4), (8, 8), (16, 1), (32, 1), (64, 1), (128, 1), (512, 1), (512, 4))
"""(tokens, distinct slots)."""
WIDTHS = (576, 2304)
ROUNDS, CALLS = 15, 30


def main() -> None:
    path = load_cpu_op()
    if not path.loaded:
        raise SystemExit(f"expected the C++ op, got {path.description}")
    lines = [measure(d, tokens, slots) for d in WIDTHS for tokens, slots in SHAPES]
    RESULT.parent.mkdir(exist_ok=True)
    config = {"rank": RANK, "dtype": "bfloat16", "activation": "silu", "threads": torch.get_num_threads()}
    RESULT.write_text(
        json.dumps({**describe(), "op": path.description, "config": config, "lines": lines}, indent=1) + "\n"
    )
    print(f"wrote {RESULT}")


def measure(d: int, tokens: int, slots: int) -> dict[str, object]:
    """Time every variant at one shape; the weights of `SITES` sites take turns, as they do in a model."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / 8).bfloat16()

    downs, ups = [make(SLOTS, RANK, d) for _ in range(SITES)], [make(SLOTS, d, RANK) for _ in range(SITES)]
    x = make(tokens, d)
    routing = (torch.arange(tokens) * slots // tokens).to(torch.int32)
    ranks = torch.full((SLOTS,), RANK, dtype=torch.int32)
    codes = torch.full((SLOTS,), activation_code("silu"), dtype=torch.int32)
    variants: dict[str, Callable[[int], torch.Tensor]] = {
        "c++": lambda site: apply_unlearning(x, downs[site], ups[site], routing, ranks, codes),
        "torch": lambda site: apply_grouped(x, downs[site], ups[site], routing, ranks, codes),
        "two linears": lambda site: x + F.linear(F.silu(F.linear(x, downs[site][0])), ups[site][0]),
    }
    few = slice(None, min(tokens, 16))
    expected = apply_unlearning_reference(x[few], downs[0], ups[0], routing[few], ranks, codes)
    error = float((variants["c++"](0)[few].float() - expected.float()).abs().max() / expected.float().abs().max())
    if not error < 8e-3:
        raise SystemExit(f"d {d}, {tokens} tokens, {slots} slots: relative error {error:.1e}; nothing is timed")
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS + 1):
        for name, call in variants.items():
            began = time.perf_counter()
            for turn in range(CALLS):
                call(turn % SITES)
            times[name].append((time.perf_counter() - began) / CALLS * 1e6)
    microseconds = {
        name: {key: round(of(found[1:]), 1) for key, of in (("median", statistics.median), ("min", min), ("max", max))}
        for name, found in times.items()
    }
    line = {"d": d, "tokens": tokens, "slots": slots, "relative_error": round(error, 5), "microseconds": microseconds}
    print(d, tokens, slots, {name: found["median"] for name, found in microseconds.items()}, flush=True)
    return line


if __name__ == "__main__":
    main()
