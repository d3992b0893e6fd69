"""Weights and signs of the objectives, and the settings that their names stand for."""

import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from unlearn_serve.errors import TrainingError
from unlearn_serve.training import EUL, NAMES, NPO, RECIPES, Objective, TrainArgs
from unlearn_serve.training.objectives import objective_loss

FORGETTING = [item.name for item in fields(Objective) if item.name.startswith("forget_")]
PATHS = {"model": Path("m"), "forget": Path("f"), "retain": Path("r"), "out": Path("o"), "deletion_ids": ("x",)}


def test_the_papers_objective_has_the_papers_weights_and_signs() -> None:
    terms = {name: torch.tensor(v) for name, v in {"retain_kl": 2.0, "forget_kl": 3.0, "retain_task": 5.0}.items()}
    terms["forget_lm"] = torch.tensor(7.0)
    assert objective_loss(terms, EUL).item() == pytest.approx(0.8 * 2 - 1.0 * 3 + 1.0 * 5 - 0.2 * 7)


@pytest.mark.parametrize("name", FORGETTING)
def test_each_term_can_be_switched_off(name: str) -> None:
    terms = {one: torch.tensor(1.0) for one in (*FORGETTING, "retain_kl", "retain_task", "retain_rmu")}
    sign = -1 if name in ("forget_kl", "forget_lm") else 1
    assert objective_loss(terms, Objective(**{name: 3.0})).item() == pytest.approx(sign * 3.0)


def test_the_default_is_bounded_below() -> None:
    assert NPO.forget_npo > 0
    assert NPO.forget_kl == NPO.forget_lm == 0


def test_eul_names_the_papers_settings() -> None:
    args = RECIPES["eul"].arguments(**PATHS)
    weights = (args.objective.retain_kl, args.objective.retain_task, args.objective.forget_lm, args.objective.forget_kl)
    assert weights == (0.8, 1.0, 0.2, 1.0)
    assert (args.learning_rate, args.warmup, args.schedule, args.epochs) == (5e-5, 0.06, "alternate", 5)
    assert args.forget_target is None, "the paper never stops early"
    assert (args.gold_only, args.own_answers, args.depth) == (False, False, (0.0, 1.0))


def test_the_default_recipe_is_the_default() -> None:
    assert RECIPES["npo"].arguments(**PATHS, command=()) == TrainArgs(**PATHS, command=())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_given_outweighs_the_recipe(name: str) -> None:
    needed = {"reference": Path("b")} if name == "bad-teacher" else {}
    args = RECIPES[name].arguments(**PATHS, **needed, learning_rate=0.5, forget_target=0.25)
    assert (args.learning_rate, args.forget_target) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"retain_kl": 1.0}, "got none"),
        ({"forget_npo": 1.0, "npo_beta": 0.0}, "npo_beta: expected a number > 0"),
        ({"forget_rmu": 1.0, "rmu_strength": 0.0}, "rmu_strength: expected a number > 0"),
        ({"forget_npo": -1.0}, "forget_npo: expected a number >= 0, got -1.0"),
        ({"forget_lm": math.nan}, "forget_lm: expected a number >= 0, got nan"),
    ],
)
def test_refuses_senseless_weights(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1 or none, got 0"),
        ({"holdout": Path("h"), "retrained": Path("t")}, "holdout and retrained: expected one of them, got both"),
        ({"forget_target": None, "extraction_target": 0.1}, "extraction_target: expected forget_target beside it"),
        ({"objective": Objective(forget_reference=1.0)}, "reference: expected a model where, .*, got none"),
        ({"reference": Path("b")}, "reference: expected a model where, .*, got one that nothing reads"),
        ({"objective": Objective(forget_idk=1.0)}, "gold_only: a refusal takes the place of a whole answer"),
    ],
)
def test_refuses_settings_that_contradict_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainArgs(**PATHS, **options)
