"""Batched unlearning layers: every token with its own layer, or none.

Public op: `apply_unlearning` and its in-place form `apply_unlearning_`. Ground truth: `apply_unlearning_reference`.
"""

from unlearn_kernels.activations import ACTIVATIONS, activate, activation_code
from unlearn_kernels.op import apply_unlearning, apply_unlearning_
from unlearn_kernels.reference import apply_unlearning_reference

__all__ = [
    "ACTIVATIONS",
    "activate",
    "activation_code",
    "apply_unlearning",
    "apply_unlearning_",
    "apply_unlearning_reference",
]
