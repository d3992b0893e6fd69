"""Ground truth: one token at a time, in fp32. Every other path is tested against this one.

Shapes: T tokens, d hidden size, S slots, R the buffers' rank, K slots a token (1 where slot_of_token is 1-D).
"""

import torch

from unlearn_kernels.activations import ACTIVATIONS, activate


def apply_unlearning_reference(
    x_TD: torch.Tensor,
    w_down_SRD: torch.Tensor,
    w_up_SDR: torch.Tensor,
    slot_of_token: torch.Tensor,
    rank_of_slot: torch.Tensor,
    activation_of_slot: torch.Tensor,
    slot_of_route: torch.Tensor | None = None,
) -> torch.Tensor:
    """Semantics: y[t] = x[t] + sum over s in slot_of_token[t], s >= 0, of W_up[s] act_s(W_down[s] x[t]).

    Arguments as `unlearn_kernels.apply_unlearning`. Computes in fp32 and rounds once to x's dtype; a token with no
    slot, or only slots of rank 0, is returned bit for bit. Mutates nothing.
    """
    y_TD = x_TD.clone()
    for t in range(x_TD.shape[0]):
        x = x_TD[t].float()
        delta = torch.zeros_like(x)
        touched = False
        for slot in slot_of_token[t].reshape(-1).tolist():
            if slot_of_route is not None:
                slot = int(slot_of_route[slot + 1])
            if slot < 0:
                continue
            rank = int(rank_of_slot[slot])
            if rank == 0:
                continue
            activation = ACTIVATIONS[int(activation_of_slot[slot])]
            w_down = w_down_SRD[slot, :rank].float()
            w_up = w_up_SDR[slot, :, :rank].float()
            delta += w_up @ activate(w_down @ x, activation)
            touched = True
        if touched:
            y_TD[t] = (x + delta).to(x_TD.dtype)
    return y_TD
