"""Tiny random models of the supported architectures, and a hand-computed unlearning layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers as tf
from torch import nn

from unlearn_kernels import activate
from unlearn_serve.sites import find_ffn_modules

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

CONFIGS = {
    "llama": tf.LlamaConfig(**COMMON),
    "qwen2": tf.Qwen2Config(**COMMON),
    "qwen3": tf.Qwen3Config(**COMMON, head_dim=16),
    "mistral": tf.MistralConfig(**COMMON, sliding_window=64),
    "gemma2": tf.Gemma2Config(**COMMON, head_dim=16, sliding_window=64),
    "gemma3": tf.Gemma3TextConfig(**COMMON, head_dim=16, sliding_window=64),
    "phi": tf.PhiConfig(**{**COMMON, "num_key_value_heads": 4}),
    "phi3": tf.Phi3Config(**COMMON),
    "olmo": tf.OlmoConfig(**COMMON),
    "olmo2": tf.Olmo2Config(**COMMON),
    "mixtral": tf.MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": tf.Qwen2MoeConfig(**COMMON, **MOE, shared_expert_intermediate_size=32, decoder_sparse_step=1),
}


def tiny(name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, blocks: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    config = CONFIGS[name].__class__.from_dict({**CONFIGS[name].to_dict(), "num_hidden_layers": blocks})
    return tf.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def some_tokens(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: nn.Module, tokens: torch.Tensor, **kwargs: object) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False, **kwargs).logits


@torch.no_grad()
def randomise(tensors: dict[int, tuple[torch.Tensor, torch.Tensor]], seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, w_up in tensors.values():
        w_up.copy_(0.3 * torch.randn(w_up.shape, generator=generator))


@contextmanager
def hand_computed(
    model: nn.Module, tensors: dict[int, tuple[torch.Tensor, torch.Tensor]], activation: str
) -> Iterator[None]:
    """U(h) as plain hooks on the feed-forward networks: no site, no PEFT."""

    def layer(w_down: torch.Tensor, w_up: torch.Tensor):
        def hook(_: nn.Module, __: object, out: object) -> object:
            h = out[0] if isinstance(out, tuple) else out
            wide = h.float()
            new = (wide + activate(wide @ w_down.T, activation) @ w_up.T).to(h.dtype)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return hook

    ffns = find_ffn_modules(model)
    handles = [ffns[block][1].register_forward_hook(layer(*maps)) for block, maps in tensors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
