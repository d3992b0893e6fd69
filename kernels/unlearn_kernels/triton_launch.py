"""The Triton path: one fused launch, from the token's hidden state to its sum with the deltas.

Importing this module imports triton. Shapes: T tokens, d hidden size, S slots, R the buffers' rank, K slots a token.

Why one kernel serves decode and prefill. A program takes a tile of tokens and walks over the tile's groups: tokens
with equal slots. It keeps act(W_down x) of a group in registers, [B, J] in fp32, and goes straight on to W_up, so the
bottleneck never reaches global memory, and a group's weights are read once a tile. No sort and no histogram of slots
comes before it: the tokens of a prefill batch lie request by request, so a tile holds one or two groups as it is, and
any other order is merely slower. In decode, where every token may have its own slot, the groups of a tile are dealt
out over programs; the program of a group is found by every program for itself, in a few reductions over the tile.

What limits decode is how fast one multiprocessor can read 2 r d weights. `parts` programs share the rows of W_up, but
each needs all of W_down; only a thread-block cluster (`ctas`, sm_90 and later) shares both, its blocks handing each
other their rows of the bottleneck through distributed shared memory. Which of them pays is up to the launch table.

Grids depend on shapes alone and nothing is read on the host or allocated, so calls can be captured in a CUDA graph; a
replay reads the routing anew. Exceptions: sets of slots whose ranks, each padded to a power of two, pass 256 together
take several launches and round to x's dtype between them, and in place they first copy x.
"""

from contextlib import nullcontext
from functools import lru_cache

import torch
import triton
from torch import Tensor

from unlearn_kernels._triton_body import apply_kernel
from unlearn_kernels.launch_plan import LaunchConfig, Shapes, plan

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter stands in for a GPU: TRITON_INTERPRET=1 was set before triton was imported."""


def launch(
    x: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    slot_of_token: Tensor,
    rank_of_slot: Tensor,
    activation_of_slot: Tensor,
    slot_of_route: Tensor | None,
    out: Tensor,
    *,
    config: LaunchConfig | None = None,
) -> None:
    """Write `unlearn_kernels.apply_unlearning` of the other arguments into `out`, which may be x itself.

    Args:
        x: [T, d], d a multiple of 8; columns contiguous, rows at any stride. Else as `apply_unlearning`, which has
            checked shapes and dtypes.
        w_down: [S, R, d], contiguous.
        w_up: [S, d, R], contiguous.
        slot_of_token: int32 or int64, [>= T] or [>= T, K].
        rank_of_slot: int32 [S].
        activation_of_slot: int32 [S].
        slot_of_route: int32 [N + 1], or None.
        out: [T, d] in x's dtype, columns contiguous: x, or memory that does not overlap x.
        config: launch parameters in place of the launch table's: for the tuner and for tests.

    Mutates `out` only.

    Raises:
        ValueError: a memory layout that the kernel does not take, or sizes the launch table has no row for.
    """
    _check_layout(x, w_down, w_up, rank_of_slot, activation_of_slot, slot_of_route, out)
    tokens, d = x.shape
    slots = slot_of_token.shape[1] if slot_of_token.ndim == 2 else 1
    if tokens == 0 or slots == 0 or w_down.shape[0] == 0:
        if out is not x:
            out.copy_(x)
        return

    def planned(source: Tensor, *, in_place: bool) -> Shapes:
        return Shapes(
            tokens=tokens,
            d=d,
            rank=w_down.shape[1],
            slots=slots,
            element_size=x.element_size(),
            arch=arch_of(x.device),
            x_stride=source.stride(0),
            out_stride=out.stride(0),
            slot_strides=(slot_of_token.stride(0), slot_of_token.stride(1) if slot_of_token.ndim == 2 else 0),
            routed=slot_of_route is not None,
            in_place=in_place,
        )

    in_place = out.data_ptr() == x.data_ptr()
    launches = plan(planned(x, in_place=in_place), config)
    if in_place and len(launches) > 1:
        x = x.clone()
        launches = plan(planned(x, in_place=False), config)
    routes = rank_of_slot if slot_of_route is None else slot_of_route  # never read where there are none
    upcast = INTERPRETED and x.dtype is torch.bfloat16
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        residual = x
        for step in launches:
            apply_kernel[step.grid](
                x, residual, out, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, routes, tokens,
                UPCAST=upcast, **step.constants, **step.options,
            )  # fmt: skip
            residual = out


@lru_cache
def arch_of(device: torch.device) -> str:
    """Return the launch table's name for `device`'s architecture; what the interpreter plays is sm_90."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" if (major, minor) in ((9, 0), (10, 0)) else "sm_80"


def _check_layout(
    x: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    rank_of_slot: Tensor,
    activation_of_slot: Tensor,
    slot_of_route: Tensor | None,
    out: Tensor,
) -> None:
    buffers = {
        "w_down": w_down,
        "w_up": w_up,
        "rank_of_slot": rank_of_slot,
        "activation_of_slot": activation_of_slot,
        "slot_of_route": slot_of_route,
    }
    for name, buffer in buffers.items():
        if buffer is not None and not buffer.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {buffer.stride()}")
    for name, rows in {"x": x, "out": out}.items():
        if rows.numel() and rows.stride(1) != 1:
            raise ValueError(f"{name}: expected contiguous columns, got strides {rows.stride()}: call .contiguous()")
    if x.shape[1] % 8:
        raise ValueError(f"x: expected a hidden size that is a multiple of 8, got {x.shape[1]}")
    if w_down.shape[1] > 256:
        raise ValueError(f"w_down: expected a rank of at most 256, got {w_down.shape[1]}")
