"""Unlearning layers on PEFT's LoRA rails: U(h) = h + W_up act(W_down h) behind every feed-forward network."""

from unlearn_serve.layers.adapter import (
    adapter_blocks,
    add_adapter,
    cat_adapters,
    load_adapter,
    reset_adapter,
    save_adapter,
    tensors_of,
)
from unlearn_serve.layers.config import UnlearnConfig
from unlearn_serve.layers.layer import UnlearningLayer
from unlearn_serve.layers.site import UnlearningSite, attach_sites

__all__ = [
    "UnlearnConfig",
    "UnlearningLayer",
    "UnlearningSite",
    "adapter_blocks",
    "add_adapter",
    "attach_sites",
    "cat_adapters",
    "load_adapter",
    "reset_adapter",
    "save_adapter",
    "tensors_of",
]
