"""The plain torch path: tokens grouped by slot, two matrix products a group.

Shapes: T tokens, d hidden size, S slots, R the buffers' rank.
"""

import torch
import torch.nn.functional as F

from unlearn_kernels.activations import ACTIVATIONS, activate


def apply_grouped(
    x_TD: torch.Tensor,
    w_down_SRD: torch.Tensor,
    w_up_SDR: torch.Tensor,
    slot_of_token: torch.Tensor,
    rank_of_slot: torch.Tensor,
    activation_of_slot: torch.Tensor,
    slot_of_route: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y as `unlearn_kernels.apply_unlearning` defines it, in a new contiguous tensor.

    Reads the routing on the host, so on an accelerator it synchronises and cannot be captured in a graph.
    """
    x_TD = x_TD.contiguous()
    routing = slot_of_token[: x_TD.shape[0]]
    if slot_of_route is not None:
        _require_range("slot_of_token", "routes", routing, len(slot_of_route) - 1)
        routing = slot_of_route[routing.long() + 1]
    _require_range("slot_of_token" if slot_of_route is None else "slot_of_route", "slots", routing, len(w_down_SRD))
    if routing.ndim == 1:
        return _add_one_slot_each(x_TD, x_TD, w_down_SRD, w_up_SDR, routing, rank_of_slot, activation_of_slot)
    y_TD = x_TD
    for k in range(routing.shape[1]):
        y_TD = _add_one_slot_each(y_TD, x_TD, w_down_SRD, w_up_SDR, routing[:, k], rank_of_slot, activation_of_slot)
    return y_TD.clone() if y_TD is x_TD else y_TD


def _require_range(name: str, what: str, values: torch.Tensor, count: int) -> None:
    if not values.numel():
        return
    low, high = (int(bound) for bound in values.aminmax())
    if low < -1 or high >= count:
        raise ValueError(f"{name}: expected {what} -1 to {count - 1}, got {low if low < -1 else high}")


def _add_one_slot_each(
    y_TD: torch.Tensor,
    x_TD: torch.Tensor,
    w_down_SRD: torch.Tensor,
    w_up_SDR: torch.Tensor,
    slot_T: torch.Tensor,
    rank_of_slot: torch.Tensor,
    activation_of_slot: torch.Tensor,
) -> torch.Tensor:
    """Return y + delta(x), each token under its one slot; a new tensor unless no token has a slot."""
    slots = torch.unique(slot_T).tolist()
    if len(slots) == 1 and slots[0] >= 0:
        return _add_slot(y_TD, x_TD, w_down_SRD, w_up_SDR, slots[0], rank_of_slot, activation_of_slot)
    out_TD = y_TD.clone()
    for slot in slots:
        if slot < 0:
            continue
        rows = (slot_T == slot).nonzero(as_tuple=True)[0]
        out_TD[rows] = _add_slot(y_TD[rows], x_TD[rows], w_down_SRD, w_up_SDR, slot, rank_of_slot, activation_of_slot)
    return out_TD


def _add_slot(
    y_TD: torch.Tensor,
    x_TD: torch.Tensor,
    w_down_SRD: torch.Tensor,
    w_up_SDR: torch.Tensor,
    slot: int,
    rank_of_slot: torch.Tensor,
    activation_of_slot: torch.Tensor,
) -> torch.Tensor:
    rank, code = int(rank_of_slot[slot]), int(activation_of_slot[slot])
    if not 0 <= rank <= w_down_SRD.shape[1]:
        raise ValueError(f"rank_of_slot: expected 0 to {w_down_SRD.shape[1]}, got {rank} for slot {slot}")
    if rank == 0:
        return y_TD.clone()
    if not 0 <= code < len(ACTIVATIONS):
        raise ValueError(f"activation_of_slot: expected 0 to {len(ACTIVATIONS) - 1}, got {code} for slot {slot}")
    activation = ACTIVATIONS[code]
    hidden_TR = activate(F.linear(x_TD, w_down_SRD[slot, :rank]), activation)
    return torch.addmm(y_TD, hidden_TR, w_up_SDR[slot, :, :rank].t())
