"""RegMean with the guards counted once, beside the product's, which counts them with every request.

A layer's Gram holds what it was to forget and what guards it. Fusing N layers then asks N times for the mean of N
layers on the same guards, which are most of every Gram; the more requests, the more the result is that mean everywhere.
Here a layer's Gram holds its forgotten rows alone, and the guards' rows are the Gram of one more parent, the layer that
does nothing:

    W^T = (G_0 + sum_i F_i)^-1 (G_0 W_0^T + sum_i F_i W_i^T)

F_i: Gram of request i's rows under layer i; G_0: of the guards under the initial layer W_0 (for W_up: 0). Tokens count
alike (`RegMean(scaling="none")`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from benchmarks.paper.baselines.models import load_tokenizer
from unlearn_serve.data import Example, encode
from unlearn_serve.format import AdapterTensors, read_adapter_dir
from unlearn_serve.fusion import GRAMS_NAME, Fusible, GramFile, RegMean, SiteGrams, fuse, write_grams
from unlearn_serve.layers import adapter_blocks, add_adapter, load_adapter, tensors_of
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.gram_hooks import record_grams

OPTIONS = RegMean(scaling="none")
FOLDER = "forget-grams"
"""Beside an adapter's folder."""


def write_forget_grams(base: Any, tokenizer_of: Path, adapter: Path, rows: Sequence[Example]) -> None:
    """Write the Grams of `rows` under the adapter beside its folder; `base` gets the adapter."""
    manifest, _ = read_adapter_dir(adapter)
    folder = adapter.parent / FOLDER
    folder.mkdir()
    write_grams(folder, _grams(load_adapter(base, adapter).eval(), tokenizer_of, rows), manifest.adapter.sites)


def nothing(base: Any, tokenizer_of: Path, guards: Sequence[Example], like: Path, *, seed: int) -> Fusible:
    """The layer that does nothing, with the guards' Grams; shaped like the adapter in `like`. `base` gets it."""
    manifest, tensors = read_adapter_dir(like)
    blocks = sorted(manifest.adapter.sites)
    model = add_adapter(base, rank=tensors.rank, activation=tensors.activation, blocks=blocks, seed=seed).eval()
    maps = {block: (down.clone(), up.clone()) for block, (down, up) in tensors_of(model).items()}
    return Fusible(
        name="nothing",
        tensors=dataclasses.replace(
            tensors,
            w_down={block: down for block, (down, _) in maps.items()},
            w_up={block: up for block, (_, up) in maps.items()},
        ),
        grams=_grams(model, tokenizer_of, guards),
    )


def fuse_guards_once(adapters: Sequence[Path], guards: Fusible) -> AdapterTensors:
    """Fuse the adapters, each with its forgotten rows' Grams, and the layer that does nothing."""
    return fuse([guards, *map(_parent, adapters)], "regmean", OPTIONS).tensors


@torch.no_grad()
def put(model: PeftModel, tensors: AdapterTensors) -> None:
    """Overwrite the weights of the adapter on `model`."""
    for block, (down, up) in tensors_of(model).items():
        down.copy_(tensors.w_down[block])
        up.copy_(tensors.w_up[block])


def _parent(adapter: Path) -> Fusible:
    manifest, tensors = read_adapter_dir(adapter)
    path = adapter.parent / FOLDER / GRAMS_NAME
    size = manifest.base_model.hidden_size
    grams = GramFile(path, manifest.adapter.sites, rank=tensors.rank, hidden_size=size)
    return Fusible(name=str(adapter), tensors=tensors, grams=grams)


def _grams(model: PeftModel, tokenizer_of: Path, rows: Sequence[Example]) -> Mapping[int, SiteGrams]:
    tokenizer = load_tokenizer(tokenizer_of)
    encoded = [encode(row, tokenizer, 512) for row in rows]
    outputs = FrozenOutputs(
        model,
        encoded,
        with_logits=(),
        first_block=min(adapter_blocks(model)),
        row_tokens=2048,
        cache_bytes=0,
    )
    return record_grams(model, model, outputs, range(len(encoded)))
