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
from benchmarks.paper.measuring import NO_ANSWERS, SHOWN, measures
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from benchmarks.paper.task import Baseline

FOLDER = "tofu/blocks-study"


def blocks_study_stages(sizes: Sizes) -> list[Stage]:
    """A stage for each choice of blocks."""
    chosen: Any = method_of(BOUNDED, "tofu", sizes)
    stages = []
    for name, blocks in sizes.blocks_study.items():
        method = dataclasses.replace(chosen, settings={**chosen.settings, "blocks": blocks})
        config = {
            **tofu_config(sizes),
            "answer_tokens": NO_ANSWERS,
            "precision": sizes.precision,
            "guard_rows": sizes.guard_rows,
            "forget": 1,
            "scored": 0,
            "seed": sizes.tofu_seeds[0],
            "settings": as_json(method),
        }
        stages.append(
            Stage(
                name=f"{FOLDER}/{name}",
                run=partial(_unlearned, method),
                config=config,
                inputs=(BASE, ORIGINAL),
                data=FILES,
                minutes=2,
            )
        )
    return stages


def _unlearned(method: Baseline, ctx: Context) -> Mapping[str, Any]:
    unlearned, scores = unlearn(method, ctx)
    shutil.rmtree(ctx.folder / method.name)
    measured = measures(scores)
    return {
        "seconds": unlearned.accounting.seconds,
        "steps": unlearned.accounting.optimizer_steps,
        "reached": unlearned.details["stopped_early"],
        "measures": {name: measured[name] for name in SHOWN},
    }
