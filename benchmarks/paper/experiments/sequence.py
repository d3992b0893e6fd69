"""A sequence of deletion requests, an author each: what is forgotten, what stays and what each step costs.

Every request gets a layer of its own, trained from the original beside the others with the same guards; or one layer is
trained on from request to request; or the model is re-trained without the authors so far.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from benchmarks.paper.baselines.meter import Meter
from benchmarks.paper.baselines.models import load_tokenizer, weight_bytes
from benchmarks.paper.baselines.rows import write_rows
from benchmarks.paper.data.tofu import FILES, Tofu
from benchmarks.paper.experiments.models import BASE, loaded
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.experiments.tofu import ORIGINAL, bounded_settings, plain, read_size, retrained
from benchmarks.paper.experiments.train_on import train_on
from benchmarks.paper.measuring import NO_ANSWERS, columns, read_sets, rounded
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from unlearn_serve.data import Example
from unlearn_serve.evaluation.bootstrap import interval
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion import METHODS as FUSIONS
from unlearn_serve.fusion import Method, fuse_dirs
from unlearn_serve.training import RECIPES, TrainArgs, train

LEVELS = ("probability", "extraction_strength")
"""What "forgotten" is judged by."""


def sequence_stages(sizes: Sizes) -> list[Stage]:
    """A layer for each request, the layer that is trained on, and each way to answer for the first N requests."""
    shared = {
        "tofu": as_json(sizes.tofu),
        "precision": sizes.precision,
        "settings": as_json(bounded_settings(sizes)),
    }
    last = max(sizes.sequence)
    stages = [
        Stage(
            name=request(number),
            run=partial(_request, bounded_settings(sizes)),
            config={**shared, "request": number},
            inputs=(BASE, ORIGINAL),
            data=FILES,
            minutes=1.2,
        )
        for number in range(1, last + 1)
    ]
    stages += [
        Stage(
            name=trained_on(number),
            run=partial(_trained_on, bounded_settings(sizes)),
            config={**shared, "request": number, "measured": number in sizes.sequence},
            inputs=(BASE, ORIGINAL, request(number), *_before(number)),
            data=FILES,
            minutes=1.5,
        )
        for number in range(1, last + 1)
    ]
    stages += [
        Stage(
            name=f"tofu/sequence/{method}",
            run=partial(_fused, method),
            config={**shared, "steps": list(sizes.sequence), "method": method},
            inputs=(BASE, ORIGINAL, *(request(number) for number in range(1, last + 1))),
            data=FILES,
            minutes=5,
        )
        for method in FUSIONS
    ]
    levels = {"steps": list(sizes.sequence), "questions": sizes.tofu.questions}
    stages.append(
        Stage(
            name="tofu/sequence/summary",
            run=_summary,
            config=levels,
            inputs=(
                ORIGINAL,
                *(retrained(step) for step in sizes.sequence),
                *(trained_on(step) for step in sizes.sequence),
                *(request(number) for number in range(1, last + 1)),
                *(f"tofu/sequence/{method}" for method in FUSIONS),
            ),
            minutes=0.1,
        )
    )
    return stages


def request(number: int) -> str:
    """Name of the stage that trains the layer of one request."""
    return f"tofu/requests/{number}"


def trained_on(number: int) -> str:
    """Name of the stage that trains the one layer on to this request."""
    return f"tofu/trained-on/{number}"


def _before(number: int) -> tuple[str, ...]:
    return (trained_on(number - 1),) if number > 1 else ()


def _arguments(ctx: Context, data: Tofu, settings: Mapping[str, Any], **given: Any) -> TrainArgs:
    """The bounded objective on one author, guarded by those who always stay."""
    rows = data.requested[ctx.config["request"] - 1]
    return RECIPES["npo"].arguments(
        **{
            "model": ctx.files(ORIGINAL) / "model",
            "forget": write_rows(ctx.folder / "forget.jsonl", plain(rows)),
            "retain": write_rows(ctx.folder / "retain.jsonl", data.guards),
            "out": ctx.folder / "adapter",
            "deletion_ids": (f"author-{ctx.config['request']}",),
            "dtype": {"fp32": "float32", "bf16": "bfloat16"}[ctx.config["precision"]],
            "command": ("benchmarks.paper",),
            **settings,
            **given,
        }
    )


def _request(settings: Mapping[str, Any], ctx: Context) -> Mapping[str, Any]:
    data = read_size(ctx)
    holdout = write_rows(ctx.folder / "holdout.jsonl", data.holdout)
    with Meter() as meter:
        adapter = train(_arguments(ctx, data, settings, holdout=holdout))
    outcome = read_adapter_dir(adapter)[0].provenance.objective
    _remove_rows(ctx.folder)
    size = weight_bytes(adapter)
    return {
        "accounting": asdict(meter.accounting(stored_bytes=size, served_bytes=size)),
        "outcome": {
            name: value
            for name, value in outcome.items()
            if name.startswith(("reached_", "steps", "stopped", "forget_target"))
        },
    }


def _trained_on(settings: Mapping[str, Any], ctx: Context) -> Mapping[str, Any]:
    data, number = read_size(ctx), ctx.config["request"]
    original, adapter = ctx.files(ORIGINAL) / "model", ctx.folder / "adapter"
    if number == 1:  # is the first request's own layer
        shutil.copytree(ctx.files(request(1)) / "adapter", adapter)
        result: dict[str, Any] = {"accounting": ctx.result(request(1))["accounting"]}
    else:
        before = ctx.files(trained_on(number - 1)) / "adapter"
        target = ctx.result(request(number))["outcome"]["forget_target"]
        args = _arguments(ctx, data, settings, forget_target=target)
        with Meter() as meter:
            how = train_on(loaded(original, ctx.config["precision"]), before, args)
        size = weight_bytes(adapter)
        result = {"accounting": asdict(meter.accounting(stored_bytes=size, served_bytes=size)), "outcome": dict(how)}
    _remove_rows(ctx.folder)
    model = loaded(original, ctx.config["precision"], adapter)
    return {**result, **(_scored(ctx, data, model, number) if ctx.config["measured"] else {})}


def _fused(method: Method, ctx: Context) -> Mapping[str, Any]:
    """Fuse the layers of the first N requests, for every N."""
    data = read_size(ctx)
    adapters = [ctx.files(request(number)) / "adapter" for number in range(1, max(ctx.config["steps"]) + 1)]
    found: dict[str, Any] = {}
    for step in ctx.config["steps"]:
        folder, began = adapters[0], time.perf_counter()
        if step > 1:
            folder = fuse_dirs(adapters[:step], ctx.folder / str(step), method)
        seconds = time.perf_counter() - began
        model = loaded(ctx.files(ORIGINAL) / "model", ctx.config["precision"], folder)
        served = (folder / "adapter_model.safetensors").stat().st_size
        found[str(step)] = {"seconds": rounded(seconds), "served_bytes": served, **_scored(ctx, data, model, step)}
        if step > 1:
            shutil.rmtree(folder)
    return found


def _scored(ctx: Context, data: Tofu, model: PeftModel | Any, step: int) -> dict[str, Any]:
    sets: dict[str, Sequence[Example]] = {"forget": plain(data.forget(step)), "retain": plain(data.retain(step))}
    tokenizer = load_tokenizer(ctx.files(ORIGINAL) / "model")
    scores = read_sets(model, tokenizer, sets, max_new_tokens=NO_ANSWERS)
    return {"rows": {name: {one: columns(rows)[one] for one in LEVELS} for name, rows in scores.items()}}


def _summary(ctx: Context) -> Mapping[str, Any]:
    """By method and step: how many requests are forgotten, what stays, and seconds of the step."""
    original = ctx.result(ORIGINAL)["rows"]["train"]
    per = ctx.config["questions"]
    requests = [ctx.result(request(n))["accounting"]["seconds"] for n in range(1, max(ctx.config["steps"]) + 1)]
    found: dict[str, Any] = {}
    for step in ctx.config["steps"]:
        bounds = _bounds(ctx.result(retrained(step))["rows"]["forget"], step, per)
        kept = original["probability"][step * per :]
        candidates = {
            "retrained": (ctx.result(retrained(step)), ctx.result(retrained(step))["accounting"]["seconds"]),
            "trained-on": (ctx.result(trained_on(step)), ctx.result(trained_on(step))["accounting"]["seconds"]),
            **{
                # A step of fusion: the new request's layer, and the fusion.
                method: (one := ctx.result(f"tofu/sequence/{method}")[str(step)], requests[step - 1] + one["seconds"])
                for method in FUSIONS
            },
        }
        for name, (record, seconds) in candidates.items():
            found.setdefault(name, {})[str(step)] = {
                **judged(record["rows"], bounds, step, per),
                "retained_over_original": rounded(_mean(record["rows"]["retain"]["probability"]) / _mean(kept)),
                "seconds": rounded(seconds),
            }
    return found


def _bounds(forget: Mapping[str, list[float]], step: int, per: int) -> dict[str, list[tuple[float, float]]]:
    """By level and request, the 95 % interval of the model that never saw any of the authors."""
    return {level: [mean_interval(forget[level][n * per : (n + 1) * per]) for n in range(step)] for level in LEVELS}


def judged(
    rows: Mapping[str, Mapping[str, list[float]]],
    bounds: Mapping[str, Sequence[tuple[float, float]]],
    step: int,
    per: int,
) -> dict[str, Any]:
    """How many requests are forgotten: every level at most the interval's upper end; and how many lie inside it."""
    means = {level: [_mean(rows["forget"][level][n * per : (n + 1) * per]) for n in range(step)] for level in LEVELS}
    gone = [all(means[level][n] <= bounds[level][n][1] for level in LEVELS) for n in range(step)]
    inside = [
        all(bounds[level][n][0] <= means[level][n] <= bounds[level][n][1] for level in LEVELS) for n in range(step)
    ]
    return {
        "forgotten": sum(gone),
        "within_interval": sum(inside),
        **{f"forget_{level}": rounded(_mean(rows["forget"][level])) for level in LEVELS},
    }


def mean_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean; the mean itself where there is but one value."""
    import numpy as np

    array = np.array(values)
    found = interval(lambda index: array[index].mean(-1), [len(values)], seed=seed)
    return (float(array.mean()),) * 2 if found is None else found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _remove_rows(folder: Path) -> None:
    for name in ("forget", "retain", "holdout"):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
