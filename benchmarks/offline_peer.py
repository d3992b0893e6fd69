"""Per-sample adapters without a server: transformers + PEFT, or the `adapters` library. Run by `peers.py`.

Needs torch, transformers and the one library only: the `adapters` library lives in an environment of its own.

    python offline_peer.py peft|adapters-lib MODEL RANK COUNT [LORA_FOLDER...]

Says {} when ready; then each line in is {"prompts": [[token, ...], ...], "batch": n, "output_tokens": n}, each line out
its figures. Prompts run in batches; row i of a batch is served by adapter i mod COUNT. All cores are used.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation import StoppingCriteria, StoppingCriteriaList

Generate = Callable[..., torch.Tensor]


class Clock(StoppingCriteria):  # type: ignore[misc]  # transformers is not followed by mypy
    """Notes when each step of a generation ended; stops none."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def load_base(path: Path) -> Any:
    """Load the checkpoint in bfloat16; transformers before 5 reads the rotary base from another key than ours has."""
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    if transformers.__version__ < "5":
        config.rope_theta = json.loads((path / "config.json").read_text())["rope_parameters"]["rope_theta"]
    return AutoModelForCausalLM.from_pretrained(path, config=config, torch_dtype=torch.bfloat16, local_files_only=True)


def with_peft(model: Any, folders: list[str]) -> Generate:
    """LoRA adapters from disk; a batch names one a row."""
    from peft import PeftModel

    names = [f"a{index}" for index in range(len(folders))]
    model = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    model = model.to(torch.bfloat16).eval()

    def generate(batch: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = model.generate(
            adapter_names=[names[row % len(names)] for row in range(len(batch))], **kwargs
        )
        return out

    return generate


def with_adapters(model: Any, rank: int, count: int) -> Generate:
    """Bottleneck adapters behind each feed-forward network, that library's own kind; a batch is split among them."""
    import adapters  # type: ignore[import-not-found]  # lives in an environment of its own
    from adapters import SeqBnConfig
    from adapters.composition import BatchSplit  # type: ignore[import-not-found]  # as above

    adapters.init(model)
    names = [f"a{index}" for index in range(count)]
    for name in names:
        model.add_adapter(name, config=SeqBnConfig(reduction_factor=model.config.hidden_size / rank))
    model = model.to(torch.bfloat16).eval()

    def generate(batch: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        # That library splits a batch into runs of rows: as many of each adapter as the other peer has.
        sizes = [len(range(first, len(batch), count)) for first in range(min(count, len(batch)))]
        used = names[: len(sizes)]
        model.set_active_adapters(BatchSplit(*used, batch_sizes=sizes) if len(used) > 1 else used[0])
        out: torch.Tensor = model.generate(**kwargs)
        return out

    return generate


@torch.inference_mode()
def measure(generate: Generate, request: dict[str, Any]) -> dict[str, float]:
    """Generate every prompt's answer, batch by batch."""
    rows, batch, wanted = request["prompts"], request["batch"], request["output_tokens"]
    first: list[float] = []
    between: list[float] = []
    produced = 0
    began = time.perf_counter()
    for at in range(0, len(rows), batch):
        ids = torch.tensor(rows[at : at + batch])
        clock = Clock()
        sent = time.perf_counter()
        out = generate(
            ids,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=wanted,
            max_new_tokens=wanted,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        assert out.shape == (len(ids), ids.shape[1] + wanted), out.shape
        produced += out.numel() - ids.numel()
        first.append(clock.times[0] - sent)
        between += [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    seconds = time.perf_counter() - began
    between.sort()
    return {
        "output_tokens_per_s": produced / seconds,
        "input_tokens_per_s": sum(map(len, rows)) / seconds,
        "ttft_ms_p50": 1e3 * statistics.median(first),
        "itl_ms_p50": 1e3 * statistics.median(between),
        "itl_ms_p99": 1e3 * between[min(len(between) - 1, int(0.99 * len(between)))],
    }


def main() -> None:
    """Load the library, then answer lines."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    library, path, rank, count, *folders = sys.argv[1:]
    model = load_base(Path(path))
    generate = with_peft(model, folders) if library == "peft" else with_adapters(model, int(rank), int(count))
    answers.write("{}\n")
    for line in sys.stdin:
        answers.write(json.dumps(measure(generate, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
