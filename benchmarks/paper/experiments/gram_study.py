"""What RegMean's parameters do: the layers of the first N requests, fused in every way that differs in one of them."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.paper.data.tofu import FILES
from benchmarks.paper.experiments.judging import bounds_of, judged, mean
from benchmarks.paper.experiments.models import BASE, loaded
from benchmarks.paper.experiments.sequence import request, score_request_sets, sequence_config
from benchmarks.paper.experiments.tofu import ORIGINAL, read_size, retrained
from benchmarks.paper.measuring import rounded
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from unlearn_serve.fusion import PUBLISHED, RegMean, fuse_dirs

NAME = "tofu/gram-study"
WAYS: Mapping[str, RegMean] = {
    "default": RegMean(),
    "off-diagonal 1": RegMean(off_diagonal=1.0),
    "off-diagonal 0.5": RegMean(off_diagonal=0.5),
    "off-diagonal 0": RegMean(off_diagonal=0.0),
    "ridge 1e-6": RegMean(ridge=1e-6),
    "ridge 1e-2": RegMean(ridge=1e-2),
    "not scaled": RegMean(scaling="none"),
    "as published": PUBLISHED,
}


def gram_study_stages(sizes: Sizes) -> list[Stage]:
    """The one stage."""
    layers = tuple(request(number) for number in range(1, sizes.study + 1))
    return [
        Stage(
            name=NAME,
            run=_study,
            config={
                **sequence_config(sizes),
                "requests": sizes.study,
                "ways": {name: asdict(options) for name, options in WAYS.items()},
            },
            inputs=(BASE, ORIGINAL, retrained(sizes.study), *layers),
            data=FILES,
            minutes=4,
        )
    ]


def _study(ctx: Context) -> Mapping[str, Any]:
    data, original, count = read_size(ctx), ctx.files(ORIGINAL) / "model", ctx.config["requests"]
    per = ctx.config["tofu"]["questions"]
    adapters = [ctx.files(request(number)) / "adapter" for number in range(1, count + 1)]
    bounds = bounds_of(ctx.result(retrained(count))["rows"]["forget"], count, per)
    known = mean(ctx.result(ORIGINAL)["rows"]["train"]["probability"][count * per :])
    found: dict[str, Any] = {}
    for name, options in WAYS.items():
        folder = ctx.folder / "fused"
        fuse_dirs(adapters, folder, "regmean", options)
        model = loaded(original, ctx.config["precision"], folder)
        rows = score_request_sets(original, data, model, count)["rows"]
        kept = mean(rows["retain"]["probability"]) / known
        found[name] = {**judged(rows, bounds, count, per), "retained_over_original": rounded(kept)}
        shutil.rmtree(folder)
    return {"requests": count, "ways": found}
