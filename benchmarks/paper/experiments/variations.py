"""Two variations of the IMDB table: the paper's objective without one of its terms, and rows with the wrong label."""

import dataclasses
from typing import Any

from benchmarks.paper.baselines import BASELINES
from benchmarks.paper.experiments.methods import eul_settings, method_of, seeds_of
from benchmarks.paper.experiments.tables import method_stage, original_stage, shared_config
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Stage
from unlearn_serve.training import EUL, Objective

ABLATIONS: dict[str, Objective] = {
    "without-kl": dataclasses.replace(EUL, forget_kl=0.0, retain_kl=0.0),
    "without-task": dataclasses.replace(EUL, retain_task=0.0),
    "without-lm": dataclasses.replace(EUL, forget_lm=0.0),
}
MISLABELLED = ("retrain", "eul", "eul-bounded")
WRONG = 0.1
"""Share of the training rows with the wrong label: those are to be forgotten."""


def variation_stages(sizes: Sizes) -> list[Stage]:
    """The ablation at the largest share, whose rows are enough to tell, and the experiment on mislabelled rows."""
    shared = shared_config("imdb", sizes)
    wrong = {**shared, "mislabelled": WRONG}
    original = "imdb/mislabelled/original"
    return [
        *(
            method_stage(
                f"imdb/ablation/{name}-seed{seed}",
                _with_objective(objective, sizes),
                {**shared, "share": max(sizes.shares), "seed": seed},
                original="imdb/original",
                sizes=sizes,
                minutes=1.5,
            )
            for name, objective in ABLATIONS.items()
            for seed in seeds_of("eul", sizes.seeds)
        ),
        original_stage(original, {**wrong, "shares": [WRONG]}),
        *(
            method_stage(
                f"imdb/mislabelled/{name}-seed{seed}",
                method_of(name, "imdb", sizes),
                {**wrong, "share": WRONG, "seed": seed},
                original=original,
                sizes=sizes,
                minutes=5 if name == "retrain" else 1.5,
            )
            for name in MISLABELLED
            for seed in seeds_of(name, sizes.seeds)
        ),
    ]


def _with_objective(objective: Objective, sizes: Sizes) -> Any:
    eul: Any = BASELINES["eul"]
    return dataclasses.replace(eul, settings={**eul_settings("imdb", sizes), "objective": objective})
