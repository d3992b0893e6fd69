"""One training step of the product over one as it would be written down first, on the same rows and layers.

The naive step pads a batch, runs the whole frozen model and then the whole model with its layers on it, each with
logits at every position. The product's keeps the frozen model's outputs, starts at the first block with a layer, packs
rows and computes logits at answers only; what it keeps is computed once, which is stated beside.
"""

import itertools
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.pairing import spread
from benchmarks.paper.baselines.models import load_tokenizer
from benchmarks.paper.baselines.product import BOUNDED_OBJECTIVE
from benchmarks.paper.baselines.rows import write_rows
from benchmarks.paper.data.tofu import FILES
from benchmarks.paper.experiments.methods import bounded_settings
from benchmarks.paper.experiments.models import BASE, loaded
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.experiments.tofu import ORIGINAL, plain, read_size
from benchmarks.paper.measuring import rounded
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from unlearn_serve.data import IGNORED, Encoded, collate_left, encode
from unlearn_serve.layers import add_adapter
from unlearn_serve.sites import find_ffn_modules
from unlearn_serve.training import RECIPES, TNPO, TrainArgs, train

NAME = "step"


def step_stages(sizes: Sizes) -> list[Stage]:
    """The one stage."""
    config = {
        "tofu": as_json(sizes.tofu),
        "precision": sizes.precision,
        "settings": as_json(bounded_settings(sizes)),
        "rounds": sizes.step_rounds[0],
        "steps": sizes.step_rounds[1],  # one more before them warms up
    }
    run = partial(_step, bounded_settings(sizes))
    return [Stage(name=NAME, run=run, config=config, inputs=(BASE, ORIGINAL), data=FILES, minutes=6, alone=True)]


def _step(settings: Mapping[str, Any], ctx: Context) -> Mapping[str, Any]:
    data = read_size(ctx)
    forget, retain = plain(data.requested[0]), data.guards
    args = RECIPES[BOUNDED_OBJECTIVE].arguments(
        **{
            "model": ctx.files(ORIGINAL) / "model",
            "forget": write_rows(ctx.folder / "forget.jsonl", forget),
            "retain": write_rows(ctx.folder / "retain.jsonl", retain),
            "out": ctx.folder / "adapter",
            "deletion_ids": ("step",),
            "dtype": {"fp32": "float32", "bf16": "bfloat16"}[ctx.config["precision"]],
            "command": ("benchmarks.paper",),
            **settings,
            "forget_target": None,
            "max_steps": ctx.config["steps"] + 1,
        }
    )
    tokenizer = load_tokenizer(args.model)
    encoded = [[encode(row, tokenizer, args.max_length) for row in rows] for rows in (forget, retain)]
    ratios, ours, naive, once = [], [], [], []
    for _ in range(ctx.config["rounds"]):  # in turn, so that what else the machine does meets both
        one, before = _product(args)
        other = _naive(ctx, args, *encoded)
        ours.append(statistics.median(one))
        naive.append(statistics.median(other))
        ratios.append(naive[-1] / ours[-1])
        once.append(before)
    shutil.rmtree(ctx.folder)
    ctx.folder.mkdir()
    return rounded(
        {
            "step_speedup": spread(ratios),
            "product_seconds": statistics.median(ours),
            "naive_seconds": statistics.median(naive),
            "once_seconds": statistics.median(once),
        }
    )


def _product(args: TrainArgs) -> tuple[list[float], float]:
    """Seconds of each step after the first; and until the first has ended: what is kept, and one step."""
    shutil.rmtree(args.out, ignore_errors=True)
    train(args)
    lines = [json.loads(line) for line in (args.out / "training_log.jsonl").read_text().splitlines()]
    ended = [line["seconds"] for line in lines if "loss" in line]
    return [later - earlier for earlier, later in itertools.pairwise(ended)], ended[0]


def _naive(ctx: Context, args: TrainArgs, forget: Sequence[Encoded], retain: Sequence[Encoded]) -> list[float]:
    """Seconds of each step after the first: two whole passes, padded, all logits; the same loss."""
    base = loaded(args.model, ctx.config["precision"])
    count = len(find_ffn_modules(base))
    blocks = args.blocks or tuple(range(round(args.depth[0] * count), round(args.depth[1] * count)))
    model = add_adapter(base, rank=args.rank, activation=args.activation, blocks=blocks, seed=args.seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    found = []
    for step in range(ctx.config["steps"] + 1):
        began = time.perf_counter()
        parts = [_batch(rows, size, step) for rows, size in ((forget, args.forget_batch), (retain, args.retain_batch))]
        batch = collate_left([one for part in parts for one in part], 0)
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad(), model.disable_adapter():
            teacher = model(**batch).logits[:, :-1].float().log_softmax(-1)
        student = model(**batch).logits[:, :-1].float().log_softmax(-1)
        answer = labels != IGNORED
        counts = answer.sum(-1)
        taken = labels.clamp_min(0)[..., None]

        def mean(values: torch.Tensor, answer: torch.Tensor = answer, counts: torch.Tensor = counts) -> torch.Tensor:
            return (values * answer).sum(-1) / counts

        ratio = (student.gather(-1, taken) - teacher.gather(-1, taken)).squeeze(-1)
        beta = TNPO.tnpo_beta
        forgetting = mean(2 / beta * torch.nn.functional.softplus(beta * ratio))[: len(parts[0])].mean()
        kept = mean((teacher.exp() * (teacher - student)).sum(-1))[len(parts[0]) :].mean()
        (forgetting + TNPO.retain_kl * kept).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step:
            found.append(time.perf_counter() - began)
    return found


def _batch(rows: Sequence[Encoded], size: int, step: int) -> list[Encoded]:
    size = min(size, len(rows))
    return [rows[(step * size + i) % len(rows)] for i in range(size)]
