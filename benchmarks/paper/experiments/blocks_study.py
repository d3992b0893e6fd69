"""Which blocks matter: one author forgotten by layers that sit elsewhere, everything else being equal."""

import dataclasses
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.paper.data.tofu import FILES
from benchmarks.paper.experiments.methods import BOUNDED, method_of
from benchmarks.paper.experiments.models import BASE
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.experiments.tofu import ORIGINAL, tofu_config, unlearn
from benchmarks.paper.measuring import measures
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from benchmarks.paper.task import Baseline

NAME = "tofu/blocks-study"
SHOWN = ("forget.probability", "forget.extraction_strength", "retain.probability", "model_utility")


def blocks_study_stages(sizes: Sizes) -> list[Stage]:
    """The one stage."""
    chosen: Any = method_of(BOUNDED, "tofu", sizes)
    ways = {
        name: dataclasses.replace(chosen, settings={**chosen.settings, "blocks": blocks})
        for name, blocks in sizes.blocks_study.items()
    }
    return [
        Stage(
            name=NAME,
            run=partial(_study, ways),
            config={
                **tofu_config(sizes),
                "precision": sizes.precision,
                "guard_rows": sizes.guard_rows,
                "forget": 1,
                "scored": max(sizes.tofu_forget),
                "seed": sizes.tofu_seeds[0],
                "ways": {name: as_json(method) for name, method in ways.items()},
            },
            inputs=(BASE, ORIGINAL),
            data=FILES,
            minutes=6,
        )
    ]


def _study(ways: Mapping[str, Baseline], ctx: Context) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name, method in ways.items():
        unlearned, scores = unlearn(method, ctx)
        shutil.rmtree(ctx.folder / method.name)
        measured = measures(scores)
        found[name] = {
            "seconds": unlearned.accounting.seconds,
            "reached": unlearned.details["stopped_early"],
            **{one: measured[one]["value"] for one in SHOWN},
        }
    return found
