"""One author forgotten by `EUL-bounded` with one setting changed: where layers sit, how many rows guard the rest."""

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

BLOCKS = "tofu/blocks-study"
GUARDS = "tofu/guards-study"

KEPT_WORDS = "retain.exact_match"
"""What the study of guards shows beside `SHOWN`: the measure that most guards are needed for."""


def blocks_study_stages(sizes: Sizes) -> list[Stage]:
    """A stage for each choice of blocks."""
    return [
        _stage(sizes, f"{BLOCKS}/{name}", {"blocks": blocks}, guards=sizes.guard_rows, answer_tokens=NO_ANSWERS)
        for name, blocks in sizes.blocks_study.items()
    ]


def guards_study_stages(sizes: Sizes) -> list[Stage]:
    """A stage for each number of retained rows that training reads."""
    return [
        _stage(sizes, f"{GUARDS}/{guards}", {}, guards=guards, answer_tokens=sizes.answer_tokens)
        for guards in sizes.guards_study
    ]


def _stage(sizes: Sizes, name: str, changed: Mapping[str, Any], *, guards: int, answer_tokens: int) -> Stage:
    chosen: Any = method_of(BOUNDED, "tofu", sizes)
    method = dataclasses.replace(chosen, settings={**chosen.settings, **changed})
    config = {
        **tofu_config(sizes),
        "answer_tokens": answer_tokens,
        "precision": sizes.precision,
        "guard_rows": guards,
        "forget": 1,
        "scored": 0,
        "seed": sizes.tofu_seeds[0],
        "settings": as_json(method),
    }
    run = partial(_unlearned, method)
    return Stage(name=name, run=run, config=config, inputs=(BASE, ORIGINAL), data=FILES, minutes=4)


def _unlearned(method: Baseline, ctx: Context) -> Mapping[str, Any]:
    unlearned, scores = unlearn(method, ctx)
    shutil.rmtree(ctx.folder / method.name)
    measured = measures(scores)
    shown = SHOWN if ctx.config["answer_tokens"] == NO_ANSWERS else (*SHOWN, KEPT_WORDS)
    return {
        "seconds": unlearned.accounting.seconds,
        "steps": unlearned.accounting.optimizer_steps,
        "reached": unlearned.details["stopped_early"],
        "measures": {name: measured[name] for name in shown},
    }
