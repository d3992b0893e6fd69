"""Checkpoints of a few kilobytes with random weights, for whatever does not depend on what a model says."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# vLLM's OPT keeps fc1 and fc2 as children of the block itself: it has no feed-forward module to hang a site on.
WITHOUT_FFN_MODULE = ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 64})


def write_tiny_model(
    out: Path,
    *,
    family: str = "llama",
    vocab_size: int = 320,
    seed: int = 0,
    tokenizer: Path | None = None,
    **options: int,
) -> Path:
    """Write a bf16 checkpoint of 2 blocks, d = 64; with `tokenizer`, a checkpoint's folder, it can chat."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, "vocab_size": vocab_size, **options})
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(out)
    if tokenizer is not None:
        for file in [*tokenizer.glob("tokenizer*"), *tokenizer.glob("chat_template*")]:
            shutil.copy(file, out)
    return out
