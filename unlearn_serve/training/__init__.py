"""Training unlearning layers: two JSONL files in, an adapter directory out."""

from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.objectives import EUL, NPO, Objective
from unlearn_serve.training.run import train

__all__ = ["EUL", "NPO", "Objective", "TrainArgs", "train"]
