"""TOFU: one original, one model re-trained without each number of authors, and the methods that stand against those."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.paper.baselines.models import load_tokenizer
from benchmarks.paper.data.tofu import FILES, Tofu, TofuSize, read_tofu
from benchmarks.paper.experiments.methods import (
    FROZEN,
    LAYERS,
    at_holdout_level,
    fit_of,
    read_by,
    seeds_of,
    tofu_method,
)
from benchmarks.paper.experiments.models import BASE, base_folder, fitted
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.measuring import columns, measures, read_sets, reference
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from benchmarks.paper.task import Baseline, Budget, Fit, Task, Unlearned
from unlearn_serve.data import Example
from unlearn_serve.evaluation.scores import Scores

ORIGINAL = "tofu/original"


def tofu_stages(sizes: Sizes) -> list[Stage]:
    """The original, the re-trained models, and every method for each number of forgotten authors."""
    shared = tofu_config(sizes)
    counts = sorted({*sizes.tofu_forget, *sizes.sequence.steps})
    stages = [
        Stage(
            name=ORIGINAL,
            run=_original,
            config={**shared, "counts": counts, "scored": max(sizes.tofu_forget)},
            inputs=(BASE,),
            data=FILES,
            minutes=12,
        ),
        *(
            Stage(
                name=retrained(count),
                run=_retrained,
                config={**shared, "forget": count, "scored": max(sizes.tofu_forget)},
                inputs=(BASE,),
                data=FILES,
                minutes=12 * (1 - count / (sizes.tofu.requests + sizes.tofu.guards)),
            )
            for count in counts
        ),
    ]
    for count in sizes.tofu_forget:
        for name in sizes.tofu_methods:
            method, guards = tofu_method(name, count, sizes)
            stages += [
                Stage(
                    name=f"tofu/forget{count}/{name}-seed{seed}",
                    run=partial(_unlearned, method),
                    config={
                        **shared,
                        "precision": sizes.precision if name in FROZEN else sizes.fit_precision,
                        "guard_rows": guards,
                        "forget": count,
                        "scored": max(sizes.tofu_forget),
                        "method": name,
                        "settings": as_json(method),
                        "seed": seed,
                    },
                    inputs=(BASE, ORIGINAL, retrained(count)),
                    data=FILES,
                    minutes=2.5,
                )
                for seed in seeds_of(name, sizes.tofu_seeds if count == 1 else sizes.tofu_seeds[:1])
            ]
    return stages


def tofu_config(sizes: Sizes) -> dict[str, Any]:
    """What all stages on TOFU are set to."""
    return {
        "tofu": as_json(sizes.tofu),
        "fit": as_json(fit_of("tofu", sizes)),
        "precision": sizes.fit_precision,
        "answer_tokens": sizes.answer_tokens,
    }


def retrained(count: int) -> str:
    """Name of the stage whose model never saw the first `count` authors."""
    return f"tofu/retrained{count}"


def score_sets(data: Tofu, count: int, *, scored: int) -> dict[str, Sequence[Example]]:
    """What is asked of every model; wrong answers only about the first `scored` authors to go, to save passes."""
    forget = data.forget(count) if count <= scored else plain(data.forget(count))
    return {"forget": forget, "retain": plain(data.retain(count)), "holdout": data.holdout, "general": data.general}


def plain(rows: Sequence[Example]) -> tuple[Example, ...]:
    """The rows without paraphrased and wrong answers."""
    return tuple(dataclasses.replace(row, paraphrased_answer=None, perturbed_answers=()) for row in rows)


def read_size(ctx: Context) -> Tofu:
    """The rows that the stage's settings name."""
    return read_tofu(ctx.data, TofuSize(**ctx.config["tofu"]))


def _original(ctx: Context) -> Mapping[str, Any]:
    data, fit, scored = read_size(ctx), Fit(**ctx.config["fit"]), ctx.config["scored"]
    model, tokenizer, cost = fitted(ctx, data.train, fit, precision=ctx.config["precision"], seed=0)
    sets = {
        "weighed": data.forget(scored),
        "train": plain(data.train),
        "holdout": data.holdout,
        "general": data.general,
    }
    scores = read_sets(model, tokenizer, sets, max_new_tokens=ctx.config["answer_tokens"])
    by_count: dict[str, Any] = {}
    # What the original knows of what goes and of what stays, for every number of authors: rows are in their order.
    for count in ctx.config["counts"]:
        cut = len(data.forget(count))
        parted = {
            "forget": scores["weighed" if count <= scored else "train"][:cut],
            "retain": scores["train"][cut:],
            **{name: scores[name] for name in ("holdout", "general")},
        }
        by_count[str(count)] = measures(parted)
    rows = {"train": columns(scores["train"]), "weighed": columns(scores["weighed"])}
    return {"accounting": cost, "rows": rows, "measures": by_count}


def _retrained(ctx: Context) -> Mapping[str, Any]:
    data, fit, count = read_size(ctx), Fit(**ctx.config["fit"]), ctx.config["forget"]
    model, tokenizer, cost = fitted(ctx, data.retain(count), fit, precision=ctx.config["precision"], seed=0)
    asked = score_sets(data, count, scored=ctx.config["scored"])
    scores = read_sets(model, tokenizer, asked, max_new_tokens=ctx.config["answer_tokens"])
    rows = {name: columns(scores[name]) for name in ("forget", "retain")}
    return {"accounting": cost, "rows": rows, "measures": measures(scores)}


def _unlearned(method: Baseline, ctx: Context) -> Mapping[str, Any]:
    unlearned, scores = unlearn(method, ctx)
    keep_adapter_only(ctx, method.name)
    against = reference(ctx.result(retrained(ctx.config["forget"])))
    return {
        "accounting": asdict(unlearned.accounting),
        "details": as_json(unlearned.details),
        "rows": {one: columns(scores[one]) for one in ("forget", "retain")},
        "measures": measures(scores, reference=against),
    }


def unlearn(method: Baseline, ctx: Context) -> tuple[Unlearned, dict[str, list[Scores]]]:
    """Make the stage's authors forgotten by a method, and ask what it made of the model."""
    data, count = read_size(ctx), ctx.config["forget"]
    task = Task(
        name=f"tofu-forget{count}",
        kind="decoder",
        base=base_folder(ctx),
        original=ctx.files(ORIGINAL) / "model",
        **read_by(
            method,
            data.forget(count),
            data.retain(count),
            guard_rows=ctx.config["guard_rows"],
            seed=ctx.config["seed"],
        ),
        fit=Fit(**ctx.config["fit"]),
        work=ctx.folder,
        precision=ctx.config["precision"],
        seed=ctx.config["seed"],
    )
    before = {"measures": ctx.result(ORIGINAL)["measures"][str(count)]}
    unlearned = at_holdout_level(method, before).run(task, Budget())
    scores = read_sets(
        unlearned.model,
        load_tokenizer(task.original),
        score_sets(data, count, scored=ctx.config["scored"]),
        max_new_tokens=ctx.config["answer_tokens"],
    )
    return unlearned, scores


def keep_adapter_only(ctx: Context, method: str) -> None:
    """Remove what a method wrote, but for an unlearning adapter, which other stages read."""
    work = ctx.folder / method
    if method not in LAYERS:
        shutil.rmtree(work, ignore_errors=True)
        return
    for file in work.glob("*.jsonl"):  # the rows, in plain text
        file.unlink()
