"""Inputs, a correctness gate and a clock for the kernel on a GPU; shared by `kernel_gpu` and `kernel_tune`."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn_kernels import activation_code, apply_unlearning_reference

ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Arguments of one call, on the GPU."""

    x: Tensor
    w_down: Tensor
    w_up: Tensor
    slot_of_token: Tensor
    rank_of_slot: Tensor
    activation_of_slot: Tensor

    @property
    def bytes_at_limit(self) -> int:
        """Weights of the slots in use, x and out, once each."""
        used = len(self.slot_of_token.unique())
        weights = 2 * used * self.w_down[0].numel() * self.x.element_size()
        return weights + 2 * self.x.numel() * self.x.element_size()


def make_inputs(tokens: int, d: int, rank: int, slots: int, *, activation: str = "silu", seed: int = 0) -> Inputs:
    """Draw bf16 inputs with `slots` slots of full rank; tokens come in runs of one slot, as in prefill."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, device="cuda") * scale
        return drawn.to(torch.bfloat16)

    ints = {"dtype": torch.int32, "device": "cuda"}
    return Inputs(
        x=draw(tokens, d),
        w_down=draw(slots, rank, d, scale=d**-0.5),
        w_up=draw(slots, d, rank, scale=rank**-0.5),
        slot_of_token=(torch.arange(tokens, device="cuda") * slots // tokens).to(torch.int32),
        rank_of_slot=torch.full((slots,), rank, **ints),
        activation_of_slot=torch.full((slots,), activation_code(activation), **ints),
    )


def largest_error(call: Callable[[Inputs], Tensor], inputs: Inputs) -> float:
    """Return the largest error against the fp32 reference, over at most 64 tokens spread over the batch."""
    got = call(inputs)
    rows = torch.linspace(0, len(inputs.x) - 1, min(64, len(inputs.x))).long().unique()
    cpu = [tensor.cpu() for tensor in (inputs.x[rows.cuda()], inputs.w_down, inputs.w_up)]
    routing = inputs.slot_of_token.cpu()[rows]
    expected = apply_unlearning_reference(*cpu, routing, inputs.rank_of_slot.cpu(), inputs.activation_of_slot.cpu())
    error = (got.cpu()[rows].float() - expected.float()).abs().max()
    return float("inf") if torch.isnan(error) else float(error)


def microseconds(call: Callable[[Inputs], object], inputs: Callable[[int], Inputs]) -> tuple[float, float]:
    """Return the median and the interquartile range of one call's time, from CUDA-graph replays with a cold L2.

    The graph holds calls on different tensors, so many that each finds the L2 full of the others'.
    """
    first = inputs(0)
    cache = torch.cuda.get_device_properties("cuda").L2_cache_size
    copies = min(400, max(8, 4 * cache // first.bytes_at_limit + 1))
    sets = [first, *(inputs(seed) for seed in range(1, copies))]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for one in sets[:3]:
            call(one)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in sets:
            call(one)
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / copies)
    low, median, high = statistics.quantiles(times, n=4)
    return median, high - low


def copy_bandwidth() -> float:
    """Return the measured bytes a second of a device-to-device copy, read and write counted."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * source.numel() / best
