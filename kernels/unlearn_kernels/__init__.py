"""Batched unlearning layers: every token with its own layer, or none.

Public op: `apply_unlearning` and its in-place form `apply_unlearning_`. Ground truth: `apply_unlearning_reference`.
`load_cpu_op` puts a C++ op behind the public one on CPUs that have the instructions for it.
"""

from unlearn_kernels.activations import ACTIVATIONS, activate, activation_code
from unlearn_kernels.cpu_op import CpuPath, load_cpu_op
from unlearn_kernels.op import apply_unlearning, apply_unlearning_
from unlearn_kernels.reference import apply_unlearning_reference

__all__ = [
    "ACTIVATIONS",
    "CpuPath",
    "activate",
    "activation_code",
    "apply_unlearning",
    "apply_unlearning_",
    "apply_unlearning_reference",
    "load_cpu_op",
]
