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
from unlearn_serve.layers.ffn import SITE_NAME, end_forward_in_site, find_ffn_modules, has_two_stacks
from unlearn_serve.layers.layer import UnlearningLayer
from unlearn_serve.layers.site import UnlearningSite, attach_sites

__all__ = [
    "SITE_NAME",
    "UnlearnConfig",
    "UnlearningLayer",
    "UnlearningSite",
    "adapter_blocks",
    "add_adapter",
    "attach_sites",
    "cat_adapters",
    "end_forward_in_site",
    "find_ffn_modules",
    "has_two_stacks",
    "load_adapter",
    "reset_adapter",
    "save_adapter",
    "tensors_of",
]
