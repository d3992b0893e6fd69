"""A sequence of deletion requests, an author each: what is forgotten, what stays and what each step costs.

Every request gets a layer of its own, trained from the original and guarded by rows of whoever has not asked to go by
then, and layers are fused; or one layer is trained on from request to request; or the model is re-trained without the
authors so far. All layers share one frozen W_down, so that their W_up read the same features: RegMean then fuses linear
maps, which it is made for, and `cat` is the sum of the W_up.
"""

import dataclasses
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks.paper.baselines.meter import Meter
from benchmarks.paper.baselines.models import load_tokenizer, weight_bytes
from benchmarks.paper.baselines.product import BOUNDED_OBJECTIVE
from benchmarks.paper.baselines.rows import write_rows
from benchmarks.paper.data.tofu import FILES, Tofu
from benchmarks.paper.experiments.judging import LEVELS, bounds_of, judged, retained_over_original
from benchmarks.paper.experiments.methods import bounded_settings
from benchmarks.paper.experiments.models import BASE, loaded
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.experiments.tofu import ORIGINAL, plain, read_size, retrained
from benchmarks.paper.experiments.train_on import train_on
from benchmarks.paper.measuring import NO_ANSWERS, columns, read_sets, rounded
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from unlearn_serve.data import Example
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion import PUBLISHED, Method, RegMean, fuse_dirs
from unlearn_serve.training import RECIPES, TrainArgs, train

REGMEAN, AS_PUBLISHED = "regmean", "regmean-published"
FUSIONS = (REGMEAN, AS_PUBLISHED, "cat", "mean")
SUMMARY = "tofu/sequence/summary"


def sequence_stages(sizes: Sizes) -> list[Stage]:
    """A layer for each request, the layer that is trained on, and each way to answer for the first N requests."""
    settings, shared = sequence_settings(sizes), sequence_config(sizes)
    steps = sizes.sequence.steps
    numbers = range(1, max(steps) + 1)
    requests = tuple(request(number) for number in numbers)
    return [
        *(
            Stage(
                name=request(number),
                run=partial(_request, settings),
                config={**shared, "request": number},
                inputs=(BASE, ORIGINAL),
                data=FILES,
                minutes=1,
            )
            for number in numbers
        ),
        *(
            Stage(
                name=trained_on(number),
                run=partial(_trained_on, settings),
                config={**shared, "request": number, "measured": number in steps},
                inputs=(BASE, ORIGINAL, request(1) if number == 1 else trained_on(number - 1)),
                data=FILES,
                minutes=1,
            )
            for number in numbers
        ),
        *(
            Stage(
                name=fused(method),
                run=partial(_fused, method, regmean_options(method, sizes), gains(sizes) if method == REGMEAN else {}),
                config={
                    **shared,
                    "steps": list(steps),
                    "method": method,
                    "options": as_json(regmean_options(method, sizes)),
                    "gains": as_json(gains(sizes)) if method == REGMEAN else {},
                },
                inputs=(BASE, ORIGINAL, *requests),
                data=FILES,
                minutes=5,
            )
            for method in FUSIONS
        ),
        Stage(
            name=SUMMARY,
            run=_summary,
            config={"steps": list(steps), "questions": sizes.tofu.questions},
            inputs=(
                ORIGINAL,
                *(name(step) for step in steps for name in (retrained, trained_on)),
                *requests,
                *map(fused, FUSIONS),
            ),
            minutes=0.1,
        ),
    ]


def sequence_config(sizes: Sizes) -> dict[str, Any]:
    """The settings that all layers of a sequence share."""
    return {
        "tofu": as_json(sizes.tofu),
        "precision": sizes.precision,
        "settings": as_json(sequence_settings(sizes)),
        "target": list(sizes.sequence.target),
        "guard_rows": sizes.sequence.guard_rows,
    }


def sequence_settings(sizes: Sizes) -> dict[str, Any]:
    """`TrainArgs` of every layer; the retained rows' tolerance is wide, for the fusion weighs them once more."""
    size = sizes.sequence
    return {
        **bounded_settings(sizes),
        "objective": dataclasses.replace(RECIPES[BOUNDED_OBJECTIVE].objective, tnpo_beta=2.0),
        "blocks": size.blocks,
        "rank": size.rank,
        "activation": "relu",
        "freeze_down": True,
        "learning_rate": size.learning_rate,
        "max_steps": size.max_steps,
        "retain_tolerance": 0.05,
        "land": True,
    }


def regmean_options(method: str, sizes: Sizes) -> RegMean | None:
    """RegMean's parameters, None for other methods."""
    return {REGMEAN: fusing(sizes), AS_PUBLISHED: PUBLISHED}.get(method)


def fusing(sizes: Sizes) -> RegMean:
    """The parameters that layers of a sequence are fused with."""
    return RegMean(off_diagonal=1.0, retained=sizes.sequence.retained)


def gains(sizes: Sizes) -> dict[int, float]:
    """By number of layers, the gain that they are fused with."""
    return {step: step**sizes.sequence.gain for step in sizes.sequence.steps}


def request(number: int) -> str:
    """Name of the stage that trains the layer of one request."""
    return f"tofu/requests/{number}"


def trained_on(number: int) -> str:
    """Name of the stage that trains the one layer on to this request."""
    return f"tofu/trained-on/{number}"


def fused(method: str) -> str:
    """Name of the stage that fuses the layers of the first N requests, for every N."""
    return f"tofu/sequence/{method}"


def _arguments(ctx: Context, data: Tofu, settings: Mapping[str, Any]) -> TrainArgs:
    """The bounded objective on one author, guarded by rows of those who have not asked to go by then."""
    number, (probability, extraction) = ctx.config["request"], ctx.config["target"]
    stays = plain(data.retain(number))
    guards = random.Random(number).sample(stays, min(ctx.config["guard_rows"], len(stays)))
    first = next(iter(ctx.result(ORIGINAL)["measures"].values()))
    return RECIPES[BOUNDED_OBJECTIVE].arguments(
        **{
            "model": ctx.files(ORIGINAL) / "model",
            "forget": write_rows(ctx.folder / "forget.jsonl", plain(_rows(ctx, data))),
            "retain": write_rows(ctx.folder / "retain.jsonl", guards),
            "forget_target": probability * first["holdout.probability"]["value"],
            "extraction_target": extraction * first["holdout.extraction_strength"]["value"],
            "out": ctx.folder / "adapter",
            "deletion_ids": (f"author-{ctx.config['request']}",),
            "dtype": {"fp32": "float32", "bf16": "bfloat16"}[ctx.config["precision"]],
            "command": ("benchmarks.paper",),
            **settings,
        }
    )


def _rows(ctx: Context, data: Tofu) -> tuple[Example, ...]:
    return data.requested[ctx.config["request"] - 1]


def _request(settings: Mapping[str, Any], ctx: Context) -> Mapping[str, Any]:
    args = _arguments(ctx, read_size(ctx), settings)
    with Meter() as meter:
        adapter = train(args)
    _remove_rows(ctx.folder)
    outcome = read_adapter_dir(adapter)[0].provenance.objective
    size = weight_bytes(adapter)
    kept = ("reached_", "steps", "stopped", "forget_target", "extraction_target")
    return {
        "accounting": asdict(meter.accounting(stored_bytes=size, served_bytes=size)),
        "outcome": {name: value for name, value in outcome.items() if name.startswith(kept)},
    }


def _trained_on(settings: Mapping[str, Any], ctx: Context) -> Mapping[str, Any]:
    data, number = read_size(ctx), ctx.config["request"]
    original, adapter = ctx.files(ORIGINAL) / "model", ctx.folder / "adapter"
    if number == 1:  # is the first request's own layer
        shutil.copytree(ctx.files(request(1)) / "adapter", adapter)
        result: dict[str, Any] = {"accounting": ctx.result(request(1))["accounting"]}
    else:
        before = ctx.files(trained_on(number - 1)) / "adapter"
        # Scaled down, it would know again what it forgot before.
        args = dataclasses.replace(_arguments(ctx, data, settings), land=False)
        with Meter() as meter:
            how = train_on(loaded(original, ctx.config["precision"]), before, args)
        size = weight_bytes(adapter)
        result = {"accounting": asdict(meter.accounting(stored_bytes=size, served_bytes=size)), "outcome": dict(how)}
    _remove_rows(ctx.folder)
    if not ctx.config["measured"]:
        return result
    return {**result, **score_request_sets(original, data, loaded(original, ctx.config["precision"], adapter), number)}


def _fused(method: str, options: RegMean | None, gains: Mapping[int, float], ctx: Context) -> Mapping[str, Any]:
    data, original, precision = read_size(ctx), ctx.files(ORIGINAL) / "model", ctx.config["precision"]
    adapters = [ctx.files(request(number)) / "adapter" for number in range(1, max(ctx.config["steps"]) + 1)]
    found: dict[str, Any] = {}
    for step in ctx.config["steps"]:
        folder, began = ctx.folder / str(step), time.perf_counter()
        if step == 1:
            folder = adapters[0]
        else:
            kind = cast(Method, "regmean" if options else method)
            fuse_dirs(adapters[:step], folder, kind, options, gain=gains.get(step, 1.0))
        seconds = time.perf_counter() - began
        found[str(step)] = {
            "seconds": rounded(seconds),
            "served_bytes": (folder / "adapter_model.safetensors").stat().st_size,
            **score_request_sets(original, data, loaded(original, precision, folder), step),
        }
        shutil.rmtree(ctx.folder / str(step), ignore_errors=True)
    return {"steps": found}


def score_request_sets(original: Path, data: Tofu, model: Any, step: int) -> dict[str, Any]:
    """What a model knows of the first `step` requests' rows and of all others."""
    sets: dict[str, Sequence[Example]] = {"forget": plain(data.forget(step)), "retain": plain(data.retain(step))}
    tokenizer = load_tokenizer(original)
    scores = read_sets(model, tokenizer, sets, max_new_tokens=NO_ANSWERS)
    return {"rows": {name: {one: columns(rows)[one] for one in LEVELS} for name, rows in scores.items()}}


def _summary(ctx: Context) -> Mapping[str, Any]:
    """By method and step: how many requests are forgotten, what stays, and seconds of the step."""
    original = ctx.result(ORIGINAL)["rows"]["train"]["probability"]
    per = ctx.config["questions"]
    found: dict[str, Any] = {}
    for step in ctx.config["steps"]:
        again, on = ctx.result(retrained(step)), ctx.result(trained_on(step))
        bounds = bounds_of(again["rows"]["forget"], step, per)
        answers = {
            "retrained": (again, again["accounting"]["seconds"]),
            "trained-on": (on, on["accounting"]["seconds"]),
        }
        new = ctx.result(request(step))["accounting"]["seconds"]
        for method in FUSIONS:
            one = ctx.result(fused(method))["steps"][str(step)]
            answers[method] = one, new + one["seconds"]  # the new request's layer, and the fusion
        for name, (record, seconds) in answers.items():
            found.setdefault(name, {})[str(step)] = {
                **judged(record["rows"], bounds, step, per),
                "retained_over_original": rounded(retained_over_original(record["rows"], original, step, per)),
                "seconds": rounded(seconds),
            }
    return found


def _remove_rows(folder: Path) -> None:
    for name in ("forget", "retain"):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
