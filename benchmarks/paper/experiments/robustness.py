"""Does it stay forgotten: asked in other words, over a quantised base, after training on a few forgotten rows again?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.paper.baselines.models import load_tokenizer
from benchmarks.paper.data.tofu import FILES, Tofu
from benchmarks.paper.experiments.models import BASE, loaded
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.experiments.tofu import ORIGINAL, plain, read_size, retrained
from benchmarks.paper.measuring import NO_ANSWERS, SHOWN, read_sets, rounded
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from unlearn_serve.data import Example, encode
from unlearn_serve.evaluation.measures import measure
from unlearn_serve.training.rows import pack_row

BITS = (8, 4)
GROUP = 64
"""Weights that share a scale, along the input."""


def robustness_stages(sizes: Sizes) -> list[Stage]:
    """Three attacks on one request of the tables: on the original, the re-trained model and the layers."""
    count = sizes.robustness_forget
    layers = {name: f"tofu/forget{count}/{name}-seed{sizes.tofu_seeds[0]}" for name in ("eul", "eul-bounded")}
    shared = {
        "tofu": as_json(sizes.tofu),
        "precision": sizes.precision,
        "forget": count,
        "layers": layers,
        "relearn_rows": list(sizes.relearn_rows),
        "relearn_steps": sizes.relearn_steps,
        "relearn_rate": 1e-4 if sizes.base != "tiny" else 1e-3,
    }
    inputs = (BASE, ORIGINAL, retrained(count), *layers.values())
    attacks = {"paraphrased": _paraphrased, "quantised": _quantised, "relearned": _relearned}
    return [
        Stage(name=f"tofu/robustness/{name}", run=run, config=shared, inputs=inputs, data=FILES, minutes=6)
        for name, run in attacks.items()
    ]


def _models(ctx: Context) -> dict[str, Any]:
    """By name, a function that loads a model afresh."""
    original = ctx.files(ORIGINAL) / "model"
    precision = ctx.config["precision"]
    found = {
        "original": lambda: loaded(original, precision),
        "retrained": lambda: loaded(ctx.files(retrained(ctx.config["forget"])) / "model", precision),
    }
    for name, stage in ctx.config["layers"].items():
        adapter = ctx.files(stage) / name / "adapter"
        found[name] = lambda adapter=adapter: loaded(original, precision, adapter)
    return found


def _asked(ctx: Context, model: Any, forget: Sequence[Example], retain: Sequence[Example]) -> dict[str, Any]:
    tokenizer = load_tokenizer(ctx.files(ORIGINAL) / "model")
    sets = {"forget": plain(forget), "retain": plain(retain)}
    found = measure(read_sets(model, tokenizer, sets, max_new_tokens=NO_ANSWERS), seed=0)
    return {name: rounded(found[name].model_dump(mode="json")) for name in SHOWN}


def _paraphrased(ctx: Context) -> Mapping[str, Any]:
    """The forgotten questions in other words, which no training saw."""
    data, count = read_size(ctx), ctx.config["forget"]
    rephrased = [row for author in data.rephrased[:count] for row in author]
    return {
        name: {
            "as trained": _asked(ctx, model := load(), data.forget(count), data.guards),
            "rephrased": _asked(ctx, model, rephrased, data.guards),
        }
        for name, load in _models(ctx).items()
    }


def _quantised(ctx: Context) -> Mapping[str, Any]:
    """The base's linear maps rounded to int8 and int4; the layers on top stay as they are."""
    data, count = read_size(ctx), ctx.config["forget"]
    found: dict[str, Any] = {}
    for name, load in _models(ctx).items():
        found[name] = {"as trained": _asked(ctx, load(), data.forget(count), data.guards)}
        for bits in BITS:
            model = load()
            quantise(model, bits)
            found[name][f"int{bits}"] = _asked(ctx, model, data.forget(count), data.guards)
    return found


def _relearned(ctx: Context) -> Mapping[str, Any]:
    """All weights trained on a few forgotten rows; what comes back of the others."""
    data, count, rate = read_size(ctx), ctx.config["forget"], ctx.config["relearn_rate"]
    tokenizer = load_tokenizer(ctx.files(ORIGINAL) / "model")
    found: dict[str, Any] = {}
    for name, load in _models(ctx).items():
        if name == "original":
            continue
        for few in ctx.config["relearn_rows"]:
            shown, others = parted(data, count, few)
            model = load()
            if not found.get(name):
                found[name] = {"0": _asked(ctx, model, others, data.guards)}
            relearn(model, tokenizer, shown, learning_rate=rate, steps=ctx.config["relearn_steps"])
            found[name][str(few)] = _asked(ctx, model, others, data.guards)
    return found


def parted(data: Tofu, count: int, few: int) -> tuple[list[Example], list[Example]]:
    """The rows to relearn from, of the authors in turn, and those that no relearning sees, whatever `few`."""
    half = len(data.requested[0]) // 2
    shown = [author[i] for i in range(half) for author in data.requested[:count]]
    if few > len(shown):
        raise ValueError(f"relearning: expected at most {len(shown)} rows, half of each author's, got {few}")
    return shown[:few], [row for author in data.requested[:count] for row in author[half:]]


def relearn(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], *, learning_rate: float, steps: int
) -> None:
    """Train all weights of `model`, layers included, on rows: AdamW, all of them in each step. Mutates it."""
    row = pack_row([encode(one, tokenizer, 512) for one in rows], range(len(rows)), 0)
    model.float().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        logits = model(
            input_ids=row.input_ids,
            attention_mask=row.attention_mask(torch.float32),
            position_ids=row.position_ids,
            use_cache=False,
            logits_to_keep=row.predictors,
        ).logits[0]
        torch.nn.functional.cross_entropy(logits, row.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)


@torch.no_grad()
def quantise(model: nn.Module, bits: int, group: int = GROUP) -> None:
    """Round every linear map of the base to `bits` bits and back: symmetric, to nearest, a scale for `group` weights.

    Semantics: w' = s clamp(round(w / s), -2^(b-1), 2^(b-1) - 1), s = max |w| / (2^(b-1) - 1) over the group. The output
    layer and the unlearning layers stay. Mutates the weights; nothing is stored in fewer bits.
    """
    top = 2 ** (bits - 1) - 1
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.endswith("lm_head") or "unlearn" in name:
            continue
        weight = module.weight
        size = group if weight.shape[1] % group == 0 else weight.shape[1]
        parts = weight.float().view(weight.shape[0], -1, size)
        scale = (parts.abs().amax(-1, keepdim=True) / top).clamp_min(1e-12)
        weight.copy_((parts / scale).round().clamp(-top - 1, top).mul(scale).view_as(weight))
