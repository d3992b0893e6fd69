from pathlib import Path

import pytest
import torch
from data.tiny_tokenizer import byte_tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random three-block Llama with a byte tokenizer; its defaults for generation are traps."""
    path = tmp_path_factory.mktemp("base")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        eos_token_id=2,
        initializer_range=0.3,  # so that answers differ from question to question
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=40, repetition_penalty=2.0, eos_token_id=2
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
