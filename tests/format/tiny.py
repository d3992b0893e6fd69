"""Adapters small enough to build by hand, and the means to break them one rule at a time."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from unlearn_serve.format import (
    AdapterSpec,
    BaseModelRef,
    DataRef,
    Evaluation,
    FileRef,
    Manifest,
    Provenance,
    Score,
    describe_adapter_dir,
    read_adapter,
    tensor_names,
    write_manifest,
)

HIDDEN, BLOCKS, RANK = 6, 4, 2
SITES = {1: "model.layers.1.mlp", 3: "model.layers.3.mlp"}


def base_model(**changes: Any) -> BaseModelRef:
    fields = {
        "name": "tiny",
        "architecture": "LlamaForCausalLM",
        "num_blocks": BLOCKS,
        "hidden_size": HIDDEN,
        "config_sha256": "c" * 64,
        "weights_sha256": "a" * 64,
    }
    return BaseModelRef(**(fields | changes))


def provenance() -> Provenance:
    return Provenance(
        created_at=datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC),
        versions={"torch": "2.13.0"},
        seed=7,
        command=["unlearn-serve", "train", "--note", "zwei\nZeilen, ümläut"],
        objective={"name": "npo", "beta": 0.1, "steps": 30, "early_stop": True},
        data={"forget": DataRef(sha256="f" * 64, rows=6)},
    )


def evaluation() -> Evaluation:
    before = Score(accuracy=1.0, probability=0.75, samples=6)
    return Evaluation(before={"forget": before}, after={"forget": Score(accuracy=0.0, probability=0.001, samples=6)})


def random_tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for site in SITES.values():
        down, up = tensor_names(site)
        tensors[down] = torch.randn(RANK, HIDDEN, generator=generator).to(dtype)
        tensors[up] = torch.randn(HIDDEN, RANK, generator=generator).to(dtype)
    return tensors


def peft_config(**changes: Any) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 writes it, with our key."""
    config = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "somewhere/tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": RANK,
        "rank_pattern": {},
        "target_modules": ["unlearn"],
        "task_type": "CAUSAL_LM",
        "unlearn_activation": "silu",
        "use_dora": False,
        "use_rslora": False,
    }
    return config | changes


def write_adapter(
    directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, deletion_ids: tuple[str, ...] = ("case-17",)
) -> Manifest:
    """Write a sound adapter directory; another seed makes another release."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(peft_config(), indent=2))
    (directory / "adapter_model.safetensors").write_bytes(save(random_tensors(seed, dtype), metadata={"format": "pt"}))
    files, tensors = describe_adapter_dir(directory)
    manifest = Manifest(
        base_model=base_model(),
        adapter=AdapterSpec(
            rank=RANK, activation="silu", sites=SITES, dtype=str(dtype).removeprefix("torch."), tensors=tensors
        ),
        deletion_ids=deletion_ids,
        parents=(),
        provenance=provenance(),
        evaluation=evaluation(),
        files=files,
    )
    write_manifest(directory, manifest)
    return manifest


def refile(manifest: Manifest, **contents: bytes) -> Manifest:
    """`manifest` with the digests of other contents, so that checks beyond the digest are reached."""
    refs = {
        {"config": "adapter_config.json", "tensors": "adapter_model.safetensors"}[key]: FileRef(
            sha256=hashlib.sha256(data).hexdigest(), size=len(data)
        )
        for key, data in contents.items()
    }
    return manifest.model_copy(update={"files": {**manifest.files, **refs}})


def canonical(value: Any) -> bytes:
    """Canonical JSON by the text of rule J6, written apart from the package's own."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def edited(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Canonical JSON `data` after `edit` changed the parsed object in place."""
    value = json.loads(data)
    edit(value)
    return canonical(value)


def safetensors_file(header: dict[str, Any] | bytes, body: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file by hand: `length` is what the first 8 bytes say, by default the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def load_with(adapter: Path, **contents: bytes) -> None:
    """Read the adapter with other contents, whose digests the manifest is made to name."""
    manifest = refile(Manifest.from_bytes((adapter / "manifest.json").read_bytes()), **contents)
    files = {
        "config": (adapter / "adapter_config.json").read_bytes(),
        "tensors": (adapter / "adapter_model.safetensors").read_bytes(),
    }
    read_adapter(manifest, **(files | contents))
