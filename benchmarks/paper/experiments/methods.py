"""Every method as the experiments set it: for a task, with what it reads of the rows and the level that it ends at."""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, Literal

from benchmarks.paper.baselines import BASELINES
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.task import Baseline, Fit
from unlearn_serve.data import Example

Rows = tuple[Example, ...]
Data = Literal["tofu", "imdb", "samsum"]

LAYERS = ("eul", "eul-bounded")
"""The product's methods: their adapters are kept for other stages."""

FROZEN = ("lora", *LAYERS)
"""Methods that freeze the model: they hold it in its own precision, and read some of the retained rows only."""

BOUNDED = "eul-bounded"
"""The product's bounded objective: the method with a spread over seeds."""

STOPPING = ("lora", BOUNDED)
"""Methods that end at a level."""


def fit_of(data: Data, sizes: Sizes) -> Fit:
    """How the models of a data set are made."""
    return {"tofu": sizes.tofu_fit, "imdb": sizes.imdb_fit, "samsum": sizes.samsum_fit}[data]


def method_of(name: str, data: Data, sizes: Sizes) -> Baseline:
    """A method as the experiments set it on a data set."""
    method: Any = BASELINES[name]
    match name:
        case "finetune" | "reverse-gradient":
            return dataclasses.replace(method, fit=dataclasses.replace(fit_of(data, sizes), epochs=1))
        case "sisa":
            return dataclasses.replace(method, shards=sizes.shards, slices=1)
        case "lora" | "eul-bounded":
            return dataclasses.replace(method, settings=bounded_settings(sizes))
        case "eul":
            return dataclasses.replace(method, settings=eul_settings(data, sizes))
    return method


def tofu_method(name: str, authors: int, sizes: Sizes) -> tuple[Baseline, int]:
    """A method as it is set when so many of TOFU's authors go, and how many guards it reads if it freezes the model."""
    method: Any = method_of(name, "tofu", sizes)
    if name != BOUNDED or authors > 1:
        return method, sizes.guard_rows
    # Held to the word, so that it needs more guards; what the frozen model makes of them is kept between requests.
    return dataclasses.replace(method, settings={**method.settings, "frozen_cache": "frozen"}), sizes.tofu_guard_rows


def seeds_of(name: str, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds that a method is run with: the first alone where it has no spread."""
    return seeds if name == BOUNDED else seeds[:1]


def bounded_settings(sizes: Sizes) -> dict[str, Any]:
    """`TrainArgs` of the bounded objective: rows hold the model's own words, so it need not be asked for them."""
    return {
        "rank": sizes.rank,
        "blocks": sizes.blocks,
        "max_steps": sizes.steps,
        "learning_rate": sizes.learning_rate,
        "retain_batch": sizes.retain_batch,
        "check_examples": 24,
        "own_answers": False,
        "gold_only": False,
    }


def eul_settings(data: Data, sizes: Sizes) -> dict[str, Any]:
    """`TrainArgs` of the paper's objective, beside its recipe."""
    return {"rank": sizes.rank, "learning_rate": sizes.eul_learning_rates[data]}


def read_by(method: Baseline, forget: Rows, retain: Rows, *, guard_rows: int, seed: int) -> dict[str, Rows]:
    """`Task`'s train, forget and retain: of what stays, methods that freeze the model read `guard_rows` rows."""
    if method.name in FROZEN and guard_rows < len(retain):
        retain = tuple(random.Random(seed).sample(retain, guard_rows))
    return {"train": (*forget, *retain), "forget": forget, "retain": retain}


def at_holdout_level(method: Baseline, original: Mapping[str, Any]) -> Baseline:
    """LoRA and `eul-bounded`, told to land on the original's level on the hold-out rows: known before any request."""
    if method.name not in STOPPING:
        return method
    chosen: Any = method
    level = {name: original["measures"][f"holdout.{name}"]["value"] for name in ("probability", "extraction_strength")}
    targets = {"forget_target": level["probability"], "extraction_target": level["extraction_strength"], "land": True}
    return dataclasses.replace(chosen, settings={**chosen.settings, **targets})
