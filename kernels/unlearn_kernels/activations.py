"""The bottleneck activations, and the integer codes by which buffers name them."""

import torch
import torch.nn.functional as F

ACTIVATIONS: tuple[str, ...] = ("identity", "relu", "silu", "gelu")
"""Names by code: an activation's code is its index here. Codes are stored in buffers, so never reorder."""


def activation_code(name: str) -> int:
    """Return the code of activation `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS.index(name)


def activate(h: torch.Tensor, name: str) -> torch.Tensor:
    """Return act(h), elementwise, in h's dtype; `gelu` is the exact (erf) form. All four map 0 to 0.

    Raises:
        ValueError: unknown name.
    """
    match name:
        case "identity":
            return h
        case "relu":
            return F.relu(h)
        case "silu":
            return F.silu(h)
        case "gelu":
            return F.gelu(h)
    raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
