"""The base model, and models made of it: fine-tuned, loaded, with an adapter on."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from benchmarks.paper.baselines.fitting import fit_checkpoint
from benchmarks.paper.baselines.models import load_model, load_tokenizer
from benchmarks.paper.stages import Context, Stage
from benchmarks.paper.task import Fit, Precision
from unlearn_serve.data import Example
from unlearn_serve.demo.checkpoint import MODEL_NAME, ensure_checkpoint
from unlearn_serve.layers import load_adapter

Base = Literal["SmolLM2-135M-Instruct", "tiny"]
BASE = "base"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
"""Random weights, the real tokenizer: what a quick run can train in seconds."""


def base_stage(base: Base) -> Stage:
    """The stage whose files are the base checkpoint."""
    return Stage(name=BASE, run=_base, config={"model": base}, minutes=0.5)


def base_folder(ctx: Context) -> Path:
    """The base checkpoint."""
    return ctx.files(BASE)


def _base(ctx: Context) -> Mapping[str, Any]:
    real = ensure_checkpoint()
    if ctx.config["model"] == MODEL_NAME:
        shutil.copytree(real, ctx.folder, dirs_exist_ok=True)
    else:
        torch.manual_seed(0)
        tokenizer = load_tokenizer(real)
        own = AutoConfig.from_pretrained(real)
        ends = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model("llama", vocab_size=own.vocab_size, **TINY, **ends)
        AutoModelForCausalLM.from_config(config).save_pretrained(ctx.folder)
        tokenizer.save_pretrained(ctx.folder)
    with (ctx.folder / "model.safetensors").open("rb") as file:
        return {"model": ctx.config["model"], "weights": hashlib.file_digest(file, "sha256").hexdigest()}


def fitted(
    ctx: Context, rows: Sequence[Example], fit: Fit, *, precision: Precision, seed: int
) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
    """Fine-tune the base on rows into the stage's folder "model"; the model, its tokenizer and what it cost."""
    base = base_folder(ctx)
    model, cost = fit_checkpoint(base, ctx.folder / "model", rows, fit, kind="decoder", seed=seed, precision=precision)
    return model, load_tokenizer(base), asdict(cost)


def loaded(checkpoint: Path, precision: Precision, adapter: Path | None = None) -> Any:
    """A checkpoint, frozen and ready to be asked, with an adapter on where one is given."""
    model = load_model(checkpoint, "decoder", frozen=True, bf16=precision == "bf16")
    return model if adapter is None else load_adapter(model, adapter).eval()
