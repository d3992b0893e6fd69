"""Training unlearning layers: two JSONL files in, an adapter directory out."""

from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.objectives import EUL, GRAD_DIFF, IDK, NPO, RMU, SIMNPO, Objective
from unlearn_serve.training.recipes import NAMES, RECIPES, Name, Recipe
from unlearn_serve.training.run import train

__all__ = [
    "EUL",
    "GRAD_DIFF",
    "IDK",
    "NAMES",
    "NPO",
    "RECIPES",
    "RMU",
    "SIMNPO",
    "Name",
    "Objective",
    "Recipe",
    "TrainArgs",
    "train",
]
