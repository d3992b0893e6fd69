"""The JIT body of the Triton path; `triton_launch` says how it is launched and why it has this shape.

Shapes: T tokens, D hidden size, R the buffers' rank, K slots a token, B tokens a tile, C a chunk of the hidden size,
J the bottleneck of all K slots together: K blocks of BLOCK_RANK rows, padded to powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def _live_slot(slot_of_token, slot_of_route, rank_of_slot, offset, mask, ROUTED: tl.constexpr):
    """Slot at `offset` of slot_of_token; -1 where there is none, where masked out, and where its rank is 0."""
    slot = tl.load(slot_of_token + offset, mask=mask, other=-1).to(tl.int64)
    if ROUTED:
        slot = tl.load(slot_of_route + 1 + slot, mask=mask, other=-1).to(tl.int64)
    rank = tl.load(rank_of_slot + slot, mask=mask & (slot >= 0), other=0)
    return tl.where(rank > 0, slot, -1)


@triton.jit
def _gelu(h):
    return 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))


@triton.jit
def _silu(h):
    return h / (1.0 + tl.exp(-h))


@triton.jit
def _activate(h, code, ONE: tl.constexpr):
    """act(h) by code, the index in `unlearn_kernels.ACTIVATIONS`: ONE code for all of h, else one a column [1, J]."""
    if ONE:  # a branch, so that only the one that is needed is computed
        if code == 1:
            h = tl.maximum(h, 0.0)
        elif code == 2:
            h = _silu(h)
        elif code == 3:
            h = _gelu(h)
        return h
    return tl.where(code == 1, tl.maximum(h, 0.0), tl.where(code == 2, _silu(h), tl.where(code == 3, _gelu(h), h)))


@triton.jit
def _dot(a, b, acc, UPCAST: tl.constexpr):
    if UPCAST:  # Triton's interpreter would multiply the bits of bf16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _add_up_projection(
    residual_B1, out_B1, member_B1, h_BJ, w_up_J, valid_J, first, last,
    D: tl.constexpr, R: tl.constexpr, C: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[:, first:last] = residual[:, first:last] + h W_up^T in the rows of one group."""
    offset_C = tl.arange(0, C)
    for start in tl.range(first, last, C, num_stages=STAGES):
        column_1C = (start + offset_C)[None, :]
        inside_1C = column_1C < D
        w_JC = tl.load(w_up_J[:, None] + column_1C.to(tl.int64) * R, mask=valid_J[:, None] & inside_1C, other=0.0)
        residual_BC = tl.load(residual_B1 + column_1C, mask=member_B1 & inside_1C, other=0.0)
        y_BC = _dot(h_BJ, w_JC, residual_BC.to(tl.float32), UPCAST)
        tl.store(out_B1 + column_1C, y_BC.to(out_B1.dtype.element_ty), mask=member_B1 & inside_1C)


# T is not specialised: a new number of tokens must never compile under load.
@triton.jit(do_not_specialize=["T"])
def apply_kernel(
    x, residual, out, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, slot_of_route, T,
    D: tl.constexpr, R: tl.constexpr, FIRST_K: tl.constexpr, K: tl.constexpr, BLOCK_RANK: tl.constexpr,
    J: tl.constexpr, X_STRIDE: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr, SLOT_STRIDE_K: tl.constexpr, ROUTED: tl.constexpr, COPY: tl.constexpr,
    UPCAST: tl.constexpr, B: tl.constexpr, C_DOWN: tl.constexpr, C_UP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[t] = residual[t] + sum over s of W_up[s] act_s(W_down[s] x[t]); s: slots FIRST_K to FIRST_K + K - 1 of t.

    Program (i, g, p) of (tiles, G, P) does, for tile i of B tokens, groups g, g + G, ... and the p-th of P parts of
    the columns. A group is the tokens of a tile that have the same slots, so it reads their weights once. Rows with
    no slot are copied bit for bit if COPY, else left alone.
    """
    own_group, num_groups = tl.program_id(1), tl.num_programs(1)
    part = tl.cdiv(tl.cdiv(D, C_UP), tl.num_programs(2)) * C_UP
    first = tl.program_id(2) * part
    last = tl.minimum(first + part, D)

    index_B = tl.arange(0, B)
    first_token = tl.program_id(0).to(tl.int64) * B
    token_B = first_token + index_B
    live_B = token_B < T
    slots_B = slot_of_token + token_B * SLOT_STRIDE + FIRST_K * SLOT_STRIDE_K
    waiting_B = tl.zeros([B], tl.int32)
    for k in tl.static_range(K):
        slot_B = _live_slot(slots_B, slot_of_route, rank_of_slot, k * SLOT_STRIDE_K, live_B, ROUTED)
        waiting_B |= (slot_B >= 0).to(tl.int32)

    x_B1 = x + (token_B * X_STRIDE)[:, None]
    residual_B1 = residual + (token_B * RESIDUAL_STRIDE)[:, None]
    out_B1 = out + (token_B * OUT_STRIDE)[:, None]

    if COPY:
        plain_B = live_B & (waiting_B == 0)
        if (own_group == 0) & (tl.sum(plain_B.to(tl.int32)) > 0):
            for start in range(first, last, C_UP):
                column_1C = (start + tl.arange(0, C_UP))[None, :]
                inside_BC = plain_B[:, None] & (column_1C < D)
                tl.store(out_B1 + column_1C, tl.load(residual_B1 + column_1C, mask=inside_BC), mask=inside_BC)

    row_J = tl.arange(0, J) % BLOCK_RANK
    k_J = tl.arange(0, J) // BLOCK_RANK
    group = 0
    leader = tl.min(tl.where(waiting_B > 0, index_B, B))
    while leader < B:
        leader_slots = slot_of_token + (first_token + leader) * SLOT_STRIDE + FIRST_K * SLOT_STRIDE_K
        member_B = live_B
        for k in tl.static_range(K):
            offset = k * SLOT_STRIDE_K
            slot_B = _live_slot(slots_B, slot_of_route, rank_of_slot, offset, live_B, ROUTED)
            member_B &= slot_B == _live_slot(leader_slots, slot_of_route, rank_of_slot, offset, True, ROUTED)
        waiting_B = tl.where(member_B, 0, waiting_B)
        leader = tl.min(tl.where(waiting_B > 0, index_B, B))

        if group % num_groups == own_group:
            if K == 1:
                slot = _live_slot(leader_slots, slot_of_route, rank_of_slot, 0, True, ROUTED)
                rank = tl.load(rank_of_slot + slot)
                code = tl.load(activation_of_slot + slot)
                in_eights = rank % 8 == 0
            else:
                slot = _live_slot(leader_slots, slot_of_route, rank_of_slot, k_J * SLOT_STRIDE_K, k_J < K, ROUTED)
                rank = tl.load(rank_of_slot + slot, mask=slot >= 0, other=0)
                code = tl.load(activation_of_slot + slot, mask=slot >= 0, other=0)[None, :]
                in_eights = tl.max(rank % 8) == 0
                slot = tl.maximum(slot, 0)
            valid_J = row_J < rank
            member_B1 = member_B[:, None]

            w_down_J = w_down + slot * (R * D) + row_J.to(tl.int64) * D
            h_BJ = tl.zeros([B, J], tl.float32)
            for start in tl.range(0, D, C_DOWN, num_stages=STAGES):
                column_C = start + tl.arange(0, C_DOWN)
                inside_C = column_C < D
                x_BC = tl.load(x_B1 + column_C[None, :], mask=member_B1 & inside_C[None, :], other=0.0)
                w_CJ = tl.load(
                    w_down_J[None, :] + column_C[:, None], mask=valid_J[None, :] & inside_C[:, None], other=0.0
                )
                h_BJ = _dot(x_BC, w_CJ, h_BJ, UPCAST)
            h_BJ = _activate(h_BJ, code, K == 1)
            # Past the rank stands 0 already, unless x held an infinity.
            h_BJ = tl.where(valid_J[None, :], h_BJ, 0.0).to(x.dtype.element_ty)

            # W_up's rows are contiguous along the rank: only a bound that is provably a multiple of 8 keeps their
            # loads 16 bytes wide. No hint (tl.multiple_of): it would hold for the other branch as well.
            w_up_J = w_up + slot * (R * D) + row_J
            if (R % 8 == 0) and in_eights:
                _add_up_projection(
                    residual_B1, out_B1, member_B1, h_BJ, w_up_J, row_J < rank // 8 * 8, first, last,
                    D, R, C_UP, UPCAST, STAGES,
                )  # fmt: skip
            else:
                _add_up_projection(
                    residual_B1, out_B1, member_B1, h_BJ, w_up_J, valid_J, first, last,
                    D, R, C_UP, UPCAST, STAGES,
                )  # fmt: skip
        group += 1
