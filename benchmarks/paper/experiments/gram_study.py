"""What RegMean's parameters do: the layers of the first N requests, fused in every way that differs in one of them."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.paper.data.tofu import FILES
from benchmarks.paper.experiments.judging import bounds_of, judged, retained_over_original
from benchmarks.paper.experiments.models import BASE, loaded
from benchmarks.paper.experiments.sequence import fusing, gains, request, score_request_sets, sequence_config
from benchmarks.paper.experiments.tofu import ORIGINAL, read_size, retrained
from benchmarks.paper.measuring import rounded
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from unlearn_serve.fusion import PUBLISHED, RegMean, fuse_dirs

NAME = "tofu/gram-study"


def ways(sizes: Sizes) -> dict[str, tuple[RegMean, float]]:
    """Options and gain to fuse with: the sequences' own, and one parameter changed at a time."""
    own, gain = fusing(sizes), gains(sizes)[sizes.sequence.study]
    changed = {
        **{f"retained {weight:g}": dataclasses.replace(own, retained=weight) for weight in (0.0, 0.1, 1.0)},
        **{f"off-diagonal {factor:g}": dataclasses.replace(own, off_diagonal=factor) for factor in (0.9, 0.5, 0.0)},
        **{f"ridge {ridge:g}": dataclasses.replace(own, ridge=ridge) for ridge in (1e-6, 1e-2)},
        "not scaled": dataclasses.replace(own, scaling="none"),
    }
    return {
        "as in the sequence": (own, gain),
        "gain 1": (own, 1.0),
        **{name: (options, gain) for name, options in changed.items() if options != own},
        "as published": (PUBLISHED, 1.0),
    }


def gram_study_stages(sizes: Sizes) -> list[Stage]:
    """The one stage."""
    count, chosen = sizes.sequence.study, ways(sizes)
    layers = tuple(request(number) for number in range(1, count + 1))
    return [
        Stage(
            name=NAME,
            run=partial(_study, chosen),
            config={
                **sequence_config(sizes),
                "requests": count,
                "ways": {name: {**asdict(options), "gain": gain} for name, (options, gain) in chosen.items()},
            },
            inputs=(BASE, ORIGINAL, retrained(count), *layers),
            data=FILES,
            minutes=4,
        )
    ]


def _study(chosen: Mapping[str, tuple[RegMean, float]], ctx: Context) -> Mapping[str, Any]:
    data, original, count = read_size(ctx), ctx.files(ORIGINAL) / "model", ctx.config["requests"]
    per = ctx.config["tofu"]["questions"]
    adapters = [ctx.files(request(number)) / "adapter" for number in range(1, count + 1)]
    bounds = bounds_of(ctx.result(retrained(count))["rows"]["forget"], count, per)
    before = ctx.result(ORIGINAL)["rows"]["train"]["probability"]
    found: dict[str, Any] = {}
    for name, (options, gain) in chosen.items():
        folder = ctx.folder / "fused"
        fuse_dirs(adapters, folder, "regmean", options, gain=gain)
        model = loaded(original, ctx.config["precision"], folder)
        rows = score_request_sets(original, data, model, count)["rows"]
        kept = retained_over_original(rows, before, count, per)
        found[name] = {**judged(rows, bounds, count, per), "retained_over_original": rounded(kept)}
        shutil.rmtree(folder)
    return {"requests": count, "ways": found}
