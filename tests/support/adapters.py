"""Adapters with random weights, complete with manifest, for any base checkpoint."""

import json
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_serve.format import (
    AdapterSpec,
    Manifest,
    Provenance,
    describe_adapter_dir,
    fingerprint_base_model,
    tensor_names,
    write_manifest,
)
from unlearn_serve.sites import find_ffn_modules


def write_random_adapter(
    base: Path,
    out: Path,
    *,
    deletion_id: str | tuple[str, ...] = "case-1",
    seed: int = 0,
    rank: int = 8,
    activation: str = "silu",
    blocks: list[int] | None = None,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write an adapter whose deltas are about `scale` times as large as their inputs' spread; 0 is the identity."""
    reference = fingerprint_base_model(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    sites = {block: path for block, (path, _) in find_ffn_modules(model).items() if blocks is None or block in blocks}
    generator = torch.Generator().manual_seed(seed)
    d = reference.hidden_size
    tensors = {}
    for site in sites.values():
        down, up = tensor_names(site)
        tensors[down] = (torch.randn(rank, d, generator=generator) / d**0.5).to(dtype)
        tensors[up] = (torch.randn(d, rank, generator=generator) * scale / rank**0.5).to(dtype)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["unlearn"],
        "bias": "none",
        "unlearn_activation": activation,
    }
    (out / "adapter_config.json").write_text(json.dumps(config))
    files, specs = describe_adapter_dir(out)
    manifest = Manifest(
        base_model=reference,
        adapter=AdapterSpec(
            rank=rank, activation=activation, sites=sites, dtype=str(dtype).removeprefix("torch."), tensors=specs
        ),
        deletion_ids=(deletion_id,) if isinstance(deletion_id, str) else deletion_id,
        parents=(),
        provenance=Provenance(
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            versions={},
            seed=seed,
            command=[],
            objective={"name": "random"},
            data={},
        ),
        evaluation=None,
        files=files,
    )
    write_manifest(out, manifest)
    return out
