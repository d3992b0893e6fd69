"""vLLM engines with sites, started the way a server starts them but without HTTP."""

import os
from pathlib import Path
from typing import Any

import torch

from unlearn_serve.bf16 import engine_dtype

SETTINGS_ENVIRONMENT = {
    "VLLM_PLUGINS": "unlearn_serve",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Engines of two test processes share the cores: one thread each, and waiting threads sleep.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def engine_arguments(model: Path, store: Path, state: Path, **settings: Any) -> dict[str, Any]:
    """Arguments for LLM or AsyncEngineArgs under which `model` follows channel `production` of `store`."""
    from unlearn_serve.serving.models import WORKER_EXTENSION

    return {
        "model": str(model),
        "dtype": engine_dtype(),
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "additional_config": {"unlearn": {"store": str(store), "state_dir": str(state), **settings}},
        "worker_extension_cls": WORKER_EXTENSION,
        "disable_log_stats": True,
    }


def stage_and_flip(llm: Any, release: str) -> None:
    """Make `release` live on an idle offline engine: the swap without pause, for requests that do not run yet."""
    import time

    assert llm.collective_rpc("unlearn_stage", args=(release,)) == [None]
    while (status := llm.collective_rpc("unlearn_status")[0])["staging"] == "busy":
        time.sleep(0.01)
    assert status["staging"] == "ready", status["error"]
    assert llm.collective_rpc("unlearn_flip", args=(release,)) == [None]
    llm.reset_prefix_cache()


def hold_route(llm: Any, release: str, lora_id: int, folder: Path) -> Any:
    """Bring `release` to the workers of an offline engine as `serving/routes.py` does; returns its LoRARequest."""
    import time

    from vllm.lora.request import LoRARequest

    path = str(folder / f"{release}-{lora_id}")
    assert llm.collective_rpc("unlearn_stage_route", args=(release, lora_id, path)) == [None]
    while (state := llm.collective_rpc("unlearn_route_staging", args=(lora_id,))[0])[0] == "busy":
        time.sleep(0.01)
    assert state[0] == "ready", state
    assert llm.collective_rpc("unlearn_adopt_route", args=(lora_id,)) == [None]
    return LoRARequest(lora_name=f"base@{release}", lora_int_id=lora_id, lora_path=path)


def prompt_log_probabilities(llm: Any, prompt: list[int]) -> torch.Tensor:
    """Log-probabilities [len(prompt) - 1, vocabulary] of each next token, as the engine computes them."""
    (found,) = batch_log_probabilities(llm, [prompt], [None])
    return found


def batch_log_probabilities(llm: Any, prompts: list[list[int]], adapters: list[Any]) -> list[torch.Tensor]:
    """The same for several prompts at once, each under its adapter (a LoRARequest, or None)."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, detokenize=False)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    named = {"lora_request": adapters} if any(adapters) else {}
    return [log_probabilities_of(output) for output in llm.generate(inputs, sampling, use_tqdm=False, **named)]


def log_probabilities_of(output: Any) -> torch.Tensor:
    """The same, from one answer of vLLM's to a request with `prompt_logprobs`."""
    rows = []
    for position in output.prompt_logprobs[1:]:
        row = torch.full((max(position) + 1,), float("nan"))
        for token, found in position.items():
            row[token] = found.logprob
        rows.append(row)
    return torch.stack(rows)


def set_environment(monkeypatch: Any, **more: str) -> None:
    """Set what vLLM reads from the environment, for this test or module only."""
    for name, value in {**SETTINGS_ENVIRONMENT, **more}.items():
        monkeypatch.setenv(name, value)
    os.environ.pop("VLLM_API_KEY", None)
