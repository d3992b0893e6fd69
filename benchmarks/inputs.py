"""Everything the benchmarks serve, made once under one folder: releases, merged checkpoint, LoRA adapters, prompts.

Weights are random: speed does not depend on what a layer has learnt. They are small, so that the model still writes
text; shapes, dtypes and files are those of real ones.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.format import (
    Activation,
    AdapterSpec,
    Manifest,
    Provenance,
    deletion_ids,
    describe_adapter_dir,
    fingerprint_base_model,
    tensor_names,
    write_manifest,
)
from unlearn_serve.fusion import merge_dirs
from unlearn_serve.sites import find_ffn_modules
from unlearn_serve.store import Store

RANK = 64
UP_SCALE = 0.02
"""How large a layer's delta is beside its input."""

LORAS = 4
"""LoRA adapters of each kind; as many as routes4 has releases."""

LINEARS = {
    "down": ["down_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
ACTOR = "benchmarks"

Layer = tuple[torch.Tensor, torch.Tensor]
"""W_down [RANK, d] and W_up [d, RANK] of one block."""


@dataclass(frozen=True)
class Inputs:
    """The inputs under `root`; what is not there yet is made when it is first asked for."""

    root: Path

    @cached_property
    def model(self) -> Path:
        """The base model's checkpoint: SmolLM2-135M-Instruct, bfloat16."""
        return ensure_checkpoint()

    @cached_property
    def store(self) -> Store:
        """The release store that servers follow."""
        return Store.open(str(self.root / "store"), create=True)

    def adapter(self, seed: int, *, activation: Activation = "silu", ids: int = 1) -> Path:
        """Return an adapter folder, rank 64 in all blocks, that covers the first `ids` deletion requests.

        So no release with as many leaves out what another covers: each may follow another, or be a route beside it.
        """
        out = self.root / "adapters" / f"{activation}-{seed}-{ids}"
        if not (out / "manifest.json").exists():
            write_adapter(self.model, out, seed=seed, activation=activation, ids=ids)
        return out

    def release(self, seed: int, *, ids: int = 1) -> str:
        """Return the digest of a release, published when it is first asked for."""
        if (seed, ids) not in self._published:
            self._published[seed, ids] = self.store.publish(self.adapter(seed, ids=ids))
        return self._published[seed, ids]

    def promote(self, digest: str, channel: str) -> None:
        """Make a release live on a channel, whatever the one before it covers."""
        self.store.promote(digest, channel, actor=ACTOR, allow_uncover=True, reason="benchmark")

    @cached_property
    def _published(self) -> dict[tuple[int, int], str]:
        return {}

    @cached_property
    def merged(self) -> Path:
        """The base model with an identity adapter folded into it."""
        out = self.root / "merged"
        return out if out.exists() else merge_dirs(self.model, self.adapter(0, activation="identity"), out)

    def loras(self, kind: str) -> list[Path]:
        """Return PEFT LoRA adapters of rank 64 on `LINEARS[kind]`."""
        folder = self.root / "lora" / kind
        paths = [folder / f"a{index}" for index in range(LORAS)]
        if not all((path / "adapter_config.json").exists() for path in paths):
            _write_loras(self.model, folder, LINEARS[kind], [path.name for path in paths])
        return paths

    def prompts(self, name: str, *, tokens: int, count: int, seed: int) -> Path:
        """Return a file of `count` prompts of exactly `tokens` tokens, in the format of vLLM's sharegpt dataset.

        Every seed gives other prompts, so that no run finds another's in the prefix cache.
        """
        out = self.root / "prompts" / f"{name}-{seed}.json"
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            texts = self._texts(tokens, count, random.Random(f"{name} {seed}"))
            turns = [[{"from": "human", "value": text}, {"from": "gpt", "value": "unused"}] for text in texts]
            out.write_text(json.dumps([{"conversations": turn} for turn in turns]))
        return out

    def token_ids(self, prompts: Path) -> list[list[int]]:
        """Return the prompts of a file of `prompts` as token ids, for peers that are no servers."""
        entries = json.loads(prompts.read_text())
        return [self._tokenizer(entry["conversations"][0]["value"])["input_ids"] for entry in entries]

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.model, local_files_only=True)

    @cached_property
    def _words(self) -> list[str]:
        # A space and letters that are one token: the tokenizer never joins two such words, so n of them are n tokens.
        vocabulary = sorted(self._tokenizer.get_vocab())
        words = [f" {word[1:]}" for word in vocabulary if word[0] == "Ġ" and word[1:].isascii() and word[1:].isalpha()]
        encoded = self._tokenizer(words)["input_ids"]
        return [word for word, ids in zip(words, encoded, strict=True) if len(ids) == 1]

    def _texts(self, tokens: int, count: int, chance: random.Random) -> list[str]:
        texts = ["".join(chance.choices(self._words, k=tokens)) for _ in range(count)]
        for text in texts:
            if (got := len(self._tokenizer(text)["input_ids"])) != tokens:
                raise ValueError(f"expected a prompt of {tokens} tokens, got {got}: {text[:80]!r}")
        return texts


def write_adapter(base: Path, out: Path, *, seed: int, activation: Activation, ids: int) -> None:
    """Write a random bfloat16 adapter of rank 64 with a layer in every block of `base`, manifest and all."""
    generator = torch.Generator().manual_seed(seed)
    config = AutoConfig.from_pretrained(base)
    layers = [random_layer(config.hidden_size, generator, scale=UP_SCALE) for _ in range(config.num_hidden_layers)]
    write_layers(base, out, layers, seed=seed, activation=activation, ids=ids)


def random_layer(d: int, generator: torch.Generator, *, scale: float) -> Layer:
    """Return W_down [RANK, d] and W_up [d, RANK] whose delta is about `scale` times as large as its input."""
    down = (torch.randn(RANK, d, generator=generator) / d**0.5).bfloat16()
    return down, (scale * torch.randn(d, RANK, generator=generator) / RANK**0.5).bfloat16()


def write_layers(
    base: Path, out: Path, layers: Sequence[Layer], *, seed: int, activation: Activation, ids: int
) -> None:
    """Write an adapter of these layers, one for each block of `base`, manifest and all."""
    reference = fingerprint_base_model(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    sites = {block: path for block, (path, _) in find_ffn_modules(model).items()}
    tensors = {}
    for block, site in sites.items():
        tensors.update(zip(tensor_names(site), layers[block], strict=True))
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["unlearn"],
        "bias": "none",
        "unlearn_activation": activation,
    }
    (out / "adapter_config.json").write_text(json.dumps(config))
    files, specs = describe_adapter_dir(out)
    write_manifest(
        out,
        Manifest(
            base_model=reference,
            adapter=AdapterSpec(rank=RANK, activation=activation, sites=sites, dtype="bfloat16", tensors=specs),
            deletion_ids=deletion_ids([f"request-{index}" for index in range(ids)]),
            parents=(),
            provenance=Provenance(
                created_at=datetime(2026, 1, 1, tzinfo=UTC),  # fixed: the same input has the same digest
                versions={},
                seed=seed,
                command=[],
                objective={"name": "random weights of a benchmark"},
                data={},
            ),
            evaluation=None,
            files=files,
        ),
    )


@torch.no_grad()
def _write_loras(base: Path, folder: Path, linears: list[str], names: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linears, task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        peft_model.add_adapter(name, config)
    torch.manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if ".lora_B." in name:
            parameter.copy_(UP_SCALE * torch.randn(parameter.shape) / RANK**0.5)
    peft_model.save_pretrained(str(folder), selected_adapters=names, save_embedding_layers=False)
