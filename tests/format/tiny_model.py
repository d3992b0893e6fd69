"""A base model's folder with a handful of small weights, in one file or in shards."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 6,
    "num_hidden_layers": 4,
    "rope_parameters": {"rope_theta": 1e5, "dtype": "float32"},
    "transformers_version": "5.19.0",
    "time_step_limit": [0.0, float("inf")],
}


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"model.layers.{i}.mlp.weight": torch.randn(6, 4, generator=generator) for i in range(4)}
    return tensors | {"model.embed": torch.randn(9, 6, generator=generator).to(torch.bfloat16)}


def write_model(directory: Path, *, shards: int = 1, **changes: Any) -> Path:
    """A model's folder; with several shards as transformers cuts them, with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    tensors = list(weights().items())
    if shards == 1:
        save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(tensors[shard::shards])
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
