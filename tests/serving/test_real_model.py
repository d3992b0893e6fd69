"""The real model: vLLM under a release computes what transformers computes under the same adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from support.adapters import write_random_adapter
from support.engine import engine_arguments, prompt_log_probabilities, set_environment, stage_and_flip
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.layers import load_adapter
from unlearn_serve.store import Store

Result = TypeVar("Result")

pytestmark = [pytest.mark.engine, pytest.mark.model]

TEXT = "William Shakespeare wrote Hamlet, Macbeth and Romeo and Juliet, and lived in Stratford-upon-Avon."
# fp32 on both sides: order of sums only, through 30 blocks.
FP32_TOLERANCE = 2e-3
# bf16 keeps 8 bits, so two engines that round in different places differ on the plain model already. That is the
# yardstick: under an adapter, which adds two more roundings a block, they may differ by at most twice as much.
BF16_FACTOR = 2


@pytest.fixture(scope="module")
def base() -> Path:
    return ensure_checkpoint()


@pytest.fixture(scope="module")
def prompt(base: Path) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    return ids


@pytest.fixture(scope="module")
def released(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """A store's folder, the folder of adapter "some", and digests of releases "some" and "zero"."""
    folder = tmp_path_factory.mktemp("released")
    store = Store.open(str(folder / "store"), create=True)
    some = write_random_adapter(base, folder / "some", rank=16, scale=0.2)
    zero = write_random_adapter(base, folder / "zero", rank=16, scale=0.0, seed=1)
    return folder / "store", some, {"some": store.publish(some), "zero": store.publish(zero)}


@pytest.fixture(autouse=True)
def _in_process_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, VLLM_ENABLE_V1_MULTIPROCESSING="0")


def test_fp32_log_probabilities_agree_with_transformers(
    base: Path, prompt: list[int], released: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    store, adapter, digests = released
    expected = _of_transformers(base, adapter, prompt, torch.float32)

    def measure(llm: Any) -> torch.Tensor:
        stage_and_flip(llm, digests["some"])
        return prompt_log_probabilities(llm, prompt)

    got = _on_engine(engine_arguments(base, store, tmp_path, allow_plain=True), "float32", measure)
    torch.testing.assert_close(got, expected, rtol=0, atol=FP32_TOLERANCE)


def test_bf16_agrees_and_untouched_tokens_keep_every_bit(
    base: Path, prompt: list[int], released: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    store, adapter, digests = released
    expected = _of_transformers(base, adapter, prompt, torch.bfloat16)

    def measure(llm: Any) -> list[torch.Tensor]:
        measured = [prompt_log_probabilities(llm, prompt)]
        for name in ("zero", "some"):
            stage_and_flip(llm, digests[name])
            measured.append(prompt_log_probabilities(llm, prompt))
        return measured

    with_sites = engine_arguments(base, store, tmp_path, allow_plain=True)
    slot_minus_one, zero_adapter, some_adapter = _on_engine(with_sites, "bfloat16", measure)
    plain_vllm = {
        name: value
        for name, value in engine_arguments(base, store, tmp_path).items()
        if name not in ("additional_config", "worker_extension_cls")
    }
    with pytest.MonkeyPatch.context() as environment:  # the same process, without our settings: vLLM as it comes
        environment.setenv("VLLM_PLUGINS", "")
        plain = _on_engine(plain_vllm, "bfloat16", lambda llm: prompt_log_probabilities(llm, prompt))

    assert torch.equal(slot_minus_one, plain), "sites without a release must leave vLLM's results as they are"
    assert torch.equal(zero_adapter, plain), "W_up = 0 is the identity"
    engines_differ_by = (plain - _of_transformers(base, None, prompt, torch.bfloat16)).abs().mean()
    assert (expected - plain).abs().mean() > 10 * engines_differ_by, "the adapter must matter, or this shows nothing"
    assert (some_adapter - expected).abs().mean() < BF16_FACTOR * engines_differ_by


def _on_engine(arguments: dict[str, Any], dtype: str, measure: Callable[[Any], Result]) -> Result:
    """Build an engine in this process, measure, and clear it away before the next one is built."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    try:
        return measure(LLM(**arguments | {"dtype": dtype}, max_logprobs=-1))
    finally:
        cleanup_dist_env_and_memory()


def _of_transformers(base: Path, adapter: Path | None, prompt: list[int], dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    if adapter is not None:
        model = load_adapter(model, adapter)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, :-1]
    return logits.float().log_softmax(-1)
