"""The public op, registered with torch so that torch.compile sees one opaque node.

Opaque matters twice: routing is read when the graph runs, not when it is traced; and the engine's compiled graph
stays the same whatever is live.
"""

import torch
from torch import Tensor

from unlearn_kernels.grouped import apply_grouped

_LIBRARY = torch.library.Library("unlearn_kernels", "DEF")
_ARGUMENTS = (
    "Tensor w_down, Tensor w_up, Tensor slot_of_token, Tensor rank_of_slot, Tensor activation_of_slot, "
    "Tensor? slot_of_route=None"
)
_LIBRARY.define(f"apply_unlearning(Tensor x, {_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"apply_unlearning_(Tensor(a!) x, {_ARGUMENTS}) -> ()")


def apply_unlearning(
    x: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    slot_of_token: Tensor,
    rank_of_slot: Tensor,
    activation_of_slot: Tensor,
    slot_of_route: Tensor | None = None,
) -> Tensor:
    """Apply to each token the unlearning layers of its slots.

    Semantics: y[t] = x[t] + sum over s in slot_of_token[t], s >= 0, of W_up[s] act_s(W_down[s] x[t]).

    Args:
        x: [T, d], bf16, fp16 or fp32; d a multiple of 8; T may be 0.
        w_down: [S, R, d], x's dtype; rows from rank_of_slot[s] on are never read.
        w_up: [S, d, R], x's dtype; columns from rank_of_slot[s] on are never read.
        slot_of_token: int32 or int64, [>= T] with one slot a token, or [>= T, K] with a set of up to K, whose deltas
            of the same x add up; a slot listed twice counts twice. Values -1 (no layer) to S - 1. Rows past T are
            ignored, so a preallocated buffer fits every batch.
        rank_of_slot: int32 [S], 0 to R; rank 0 acts as -1.
        activation_of_slot: int32 [S], codes of `unlearn_kernels.ACTIVATIONS`.
        slot_of_route: int32 [N + 1], or None. Where given, slot_of_token is 1-D and holds routes, -1 (none) to N - 1,
            and token t takes slot slot_of_route[slot_of_token[t] + 1]: entry 0 is the default's. One write to this
            small buffer moves every request of a route; it is read when the graph runs.

    Returns:
        [T, d] in x's dtype, a new contiguous tensor. Tokens without a layer are returned bit for bit.

    Mutates nothing. Source: Chen & Yang, "Unlearn What You Want to Forget", EMNLP 2023, section 3.

    Raises:
        ValueError: shapes or dtypes that do not fit each other; on the CPU also values out of range.
    """
    return torch.ops.unlearn_kernels.apply_unlearning(  # type: ignore[no-any-return]  # torch.ops has no types
        x, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, slot_of_route
    )


def apply_unlearning_(
    x: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    slot_of_token: Tensor,
    rank_of_slot: Tensor,
    activation_of_slot: Tensor,
    slot_of_route: Tensor | None = None,
) -> Tensor:
    """`apply_unlearning`, written into x, which is also returned. Mutates x only."""
    torch.ops.unlearn_kernels.apply_unlearning_(
        x, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, slot_of_route
    )
    return x


def _check(
    x: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    slot_of_token: Tensor,
    rank_of_slot: Tensor,
    activation_of_slot: Tensor,
    slot_of_route: Tensor | None,
) -> None:
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (tokens, d), got {tuple(x.shape)}")
    if w_down.ndim != 3 or w_down.shape[2] != x.shape[1]:
        raise ValueError(f"w_down: expected last dimension {x.shape[1]} as x, got shape {tuple(w_down.shape)}")
    slots, rank, d = w_down.shape
    if tuple(w_up.shape) != (slots, d, rank):
        raise ValueError(f"w_up: expected shape {(slots, d, rank)}, got {tuple(w_up.shape)}")
    if d % 8:
        raise ValueError(f"x: expected d to be a multiple of 8, got {d}")
    if not x.dtype == w_down.dtype == w_up.dtype:
        raise ValueError(f"expected one dtype, got x {x.dtype}, w_down {w_down.dtype}, w_up {w_up.dtype}")
    if slot_of_token.ndim not in (1, 2) or slot_of_token.shape[0] < x.shape[0]:
        raise ValueError(f"slot_of_token: expected at least {x.shape[0]} rows, got shape {tuple(slot_of_token.shape)}")
    if slot_of_token.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"slot_of_token: expected int32 or int64, got {slot_of_token.dtype}")
    for name, buffer in (("rank_of_slot", rank_of_slot), ("activation_of_slot", activation_of_slot)):
        if tuple(buffer.shape) != (slots,) or buffer.dtype != torch.int32:
            raise ValueError(f"{name}: expected int32 of shape ({slots},), got {buffer.dtype} {tuple(buffer.shape)}")
    if slot_of_route is None:
        return
    if slot_of_route.ndim != 1 or not len(slot_of_route) or slot_of_route.dtype != torch.int32:
        got = f"{slot_of_route.dtype} {tuple(slot_of_route.shape)}"
        raise ValueError(f"slot_of_route: expected int32 of shape (routes + 1,), got {got}")
    if slot_of_token.ndim != 1:
        raise ValueError(f"slot_of_token: expected one route a token, got shape {tuple(slot_of_token.shape)}")


def _apply(
    x: Tensor, w_down: Tensor, w_up: Tensor, slot: Tensor, rank: Tensor, code: Tensor, route: Tensor | None = None
) -> Tensor:
    # Checked here and not in the public wrapper: there the comparisons would become guards of the compiled graph.
    _check(x, w_down, w_up, slot, rank, code, route)
    return apply_grouped(x, w_down, w_up, slot, rank, code, route)


def _apply_(
    x: Tensor, w_down: Tensor, w_up: Tensor, slot: Tensor, rank: Tensor, code: Tensor, route: Tensor | None = None
) -> None:
    x.copy_(_apply(x, w_down, w_up, slot, rank, code, route))


def _triton(
    x: Tensor, w_down: Tensor, w_up: Tensor, slot: Tensor, rank: Tensor, code: Tensor, route: Tensor | None = None
) -> Tensor:
    out = x.new_empty(x.shape)
    _launch(x, w_down, w_up, slot, rank, code, route, out)
    return out


def _triton_(
    x: Tensor, w_down: Tensor, w_up: Tensor, slot: Tensor, rank: Tensor, code: Tensor, route: Tensor | None = None
) -> None:
    _launch(x, w_down, w_up, slot, rank, code, route, x)


def _launch(
    x: Tensor, w_down: Tensor, w_up: Tensor, slot: Tensor, rank: Tensor, code: Tensor, route: Tensor | None, out: Tensor
) -> None:
    # Imported here, because machines without a GPU often have no usable Triton.
    from unlearn_kernels.triton_launch import launch

    _check(x, w_down, w_up, slot, rank, code, route)
    launch(x, w_down, w_up, slot, rank, code, route, out)


def _fake(x: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _fake_(*_: Tensor | None) -> None:
    return None


_LIBRARY.impl("apply_unlearning", _apply, "CompositeExplicitAutograd")
_LIBRARY.impl("apply_unlearning_", _apply_, "CompositeExplicitAutograd")
_LIBRARY.impl("apply_unlearning", _triton, "CUDA")
_LIBRARY.impl("apply_unlearning_", _triton_, "CUDA")
torch.library.register_fake("unlearn_kernels::apply_unlearning", _fake, lib=_LIBRARY)
torch.library.register_fake("unlearn_kernels::apply_unlearning_", _fake_, lib=_LIBRARY)
