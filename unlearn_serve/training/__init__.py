"""Training unlearning layers: two JSONL files in, an adapter directory out."""

from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.objectives import (
    BAD_TEACHER,
    EUL,
    GRAD_DIFF,
    IDK,
    NPO,
    RMU,
    SIMNPO,
    TNPO,
    Objective,
)
from unlearn_serve.training.recipes import NAMES, RECIPES, Name, Recipe
from unlearn_serve.training.run import train

__all__ = [
    "BAD_TEACHER",
    "EUL",
    "GRAD_DIFF",
    "IDK",
    "NAMES",
    "NPO",
    "RECIPES",
    "RMU",
    "SIMNPO",
    "TNPO",
    "Name",
    "Objective",
    "Recipe",
    "TrainArgs",
    "train",
]
