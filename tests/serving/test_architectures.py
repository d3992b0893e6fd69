"""Every supported family of decoders: the same adapter gives the same log-probabilities in transformers and in vLLM."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import write_random_adapter
from support.engine import engine_arguments, prompt_log_probabilities, set_environment, stage_and_flip
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_serve.layers import load_adapter
from unlearn_serve.store import Store

pytestmark = pytest.mark.engine

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
MIXTURE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 64, "sliding_window": 256},
    "gemma3_text": {"query_pre_attn_scalar": 64, "sliding_window": 256},
    "phi": {},
    "olmo2": {},  # in vLLM: its transformers backend, which binds a fused forward on each feed-forward module
    "mixtral": {**MIXTURE, "sliding_window": None},
    "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 64},
}
PROMPT = [5, 17, 99, 3, 250, 44, 6, 301, 12, 7, 77, 190]
# Both sides compute in fp32; they differ in the order of sums, in attention and in the tanh of some activations.
# Seen: up to 2.6e-3, where the adapter itself moves log-probabilities by 1 and more.
TOLERANCE = 1e-2


@pytest.fixture(autouse=True)
def _in_process_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    # vLLM looks at each class in a process of its own, to keep CUDA out of this one; that imports all of vLLM again.
    monkeypatch.setattr("vllm.model_executor.models.registry._run_in_subprocess", lambda look: look())


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_agree(family: str, tmp_path: Path) -> None:
    _assert_both_sides_agree(family, tmp_path, enforce_eager=True)


def test_a_compiled_graph_sees_the_flip(tmp_path: Path) -> None:
    """vLLM as it comes compiles the model once, before any release: routing must be read when the graph runs."""
    _assert_both_sides_agree("llama", tmp_path, enforce_eager=False)


def _assert_both_sides_agree(family: str, tmp_path: Path, *, enforce_eager: bool) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    base = tmp_path / "base"
    model.save_pretrained(base)
    adapter = write_random_adapter(base, tmp_path / "adapter", rank=4, scale=3.0)
    expected_plain = _log_probabilities(model)
    expected = _log_probabilities(load_adapter(model, adapter))
    assert (expected - expected_plain).abs().max() > 50 * TOLERANCE, "the adapter must matter, or this shows nothing"
    release = Store.open(str(tmp_path / "store"), create=True).publish(adapter)
    arguments = engine_arguments(base, tmp_path / "store", tmp_path / "state", allow_plain=True)

    plain, unlearned = _vllm_log_probabilities({**arguments, "enforce_eager": enforce_eager}, release=release)

    torch.testing.assert_close(plain, expected_plain, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(unlearned, expected, rtol=0, atol=TOLERANCE)


def _log_probabilities(model: torch.nn.Module) -> torch.Tensor:
    """Log-probabilities [prompt length - 1, vocabulary] of each next token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPT])).logits[0, :-1]
    return logits.float().log_softmax(-1)


def _vllm_log_probabilities(arguments: dict[str, Any], *, release: str) -> tuple[torch.Tensor, torch.Tensor]:
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(**arguments | {"dtype": "float32"}, skip_tokenizer_init=True, max_logprobs=-1)
    try:
        plain = prompt_log_probabilities(llm, PROMPT)
        stage_and_flip(llm, release)
        return plain, prompt_log_probabilities(llm, PROMPT)
    finally:
        del llm
        cleanup_dist_env_and_memory()
