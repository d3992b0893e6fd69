"""Time the kernel on a GPU against its limit, two cuBLAS calls, and vLLM's LoRA. Not yet run: no GPU was at hand.

    python -m benchmarks.kernel_gpu --out kernel_gpu.json

Every variant passes a correctness gate before its time is taken; one that fails is reported without a time, and the
command fails. Times are medians of CUDA-graph replays with a cold L2; the limit is the bytes that must move, over the
copy bandwidth measured in the same run. LoRA has no activation, so all variants run with the identity.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from benchmarks.kernel_timing import Inputs, copy_bandwidth, largest_error, make_inputs, microseconds
from unlearn_kernels import apply_unlearning, apply_unlearning_

TOLERANCE = 6e-2
"""Two roundings to bf16 of values of about 4."""
SIZES = [(1536, 16), (2304, 32), (4096, 64), (4096, 256), (8192, 64)]
BATCHES = [(1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (256, 1), (256, 16), (2048, 4), (8192, 1), (8192, 16)]
"""(tokens, slots in use)."""


def fused(inputs: Inputs) -> Tensor:
    return apply_unlearning(**vars(inputs))


def in_place(inputs: Inputs) -> Tensor:
    return apply_unlearning_(**vars(inputs))


def two_cublas_calls(inputs: Inputs) -> Tensor:
    return torch.addmm(inputs.x, F.linear(inputs.x, inputs.w_down[0]), inputs.w_up[0].t())


def vllm_lora(inputs: Inputs) -> Callable[[Inputs], Tensor]:
    """Return vLLM's shrink and expand, in place, with the metadata prepared as its runner prepares it once a step."""
    from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink

    tokens = len(inputs.x)
    meta = LoRAKernelMeta.make(len(inputs.w_down), tokens, "cuda")
    meta.prepare_tensors(inputs.slot_of_token)
    hidden = torch.empty(1, tokens, inputs.w_down.shape[1], dtype=torch.float32, device="cuda")

    def call(one: Inputs) -> Tensor:
        lora_shrink(one.x, [one.w_down], hidden, *meta.meta_args(tokens, False), 1.0)
        lora_expand(hidden, [one.w_up], one.x, *meta.meta_args(tokens, False), offset_start=0, add_inputs=True)
        return one.x

    return call


def measure(tokens: int, slots: int, d: int, rank: int, bandwidth: float) -> list[dict[str, object]]:
    """Gate and time every variant at one point."""

    def inputs(seed: int) -> Inputs:
        return make_inputs(tokens, d, rank, slots, activation="identity", seed=seed)

    first = inputs(0)
    variants: dict[str, Callable[[Inputs], Tensor]] = {"fused": fused, "vllm_lora": vllm_lora(first)}
    if slots == 1:
        variants["two_cublas_calls"] = two_cublas_calls
    variants["in_place"] = in_place
    records: list[dict[str, object]] = []
    for name, call in variants.items():
        record: dict[str, object] = {"variant": name, "tokens": tokens, "slots": slots, "d": d, "rank": rank}
        error = largest_error(call, inputs(0))
        record["largest_error"] = error
        record["limit_us"] = first.bytes_at_limit / bandwidth * 1e6
        if error <= TOLERANCE:
            record["median_us"], record["interquartile_us"] = microseconds(call, inputs)
        records.append(record)
        print(json.dumps(record), flush=True)
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a GPU, got none: this benchmark measures one")
    bandwidth = copy_bandwidth()
    records = [
        record
        for d, rank in SIZES
        for tokens, slots in BATCHES
        for record in measure(tokens, slots, d, rank, bandwidth)
    ]
    result = {
        "device": torch.cuda.get_device_name(),
        "driver_host": platform.platform(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_bytes_per_second": bandwidth,
        "records": records,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [record for record in records if "median_us" not in record]
    for record in wrong:
        print(f"wrong result, not timed: {record}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
