"""The product's trainer on a task: its recipe, the rows as the files it reads, and its adapter on the original."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.paper.baselines.rows import write_rows
from benchmarks.paper.task import Kind, Task
from unlearn_serve.training import RECIPES, Name, TrainArgs

BOUNDED_OBJECTIVE: Name = "tnpo"
"""The bounded objective of `eul-bounded`, of LoRA and of the sequences: every row is to be forgotten as a whole."""

NEEDED: Mapping[Kind, Mapping[str, bool]] = {
    "decoder": {},
    "seq2seq": {"gold_only": False, "own_answers": False},
    "classes": {"gold_only": False, "own_answers": False, "lm_on_text": False},
}
"""What `TrainArgs` have to be for each kind of model."""


def train_args(task: Task, recipe: Name, folder: Path, settings: Mapping[str, Any]) -> TrainArgs:
    """Write the task's rows into `folder` and return the arguments of a run that writes folder/adapter.

    Args:
        task: the task.
        recipe: which named objective, with the settings that belong to it.
        folder: of the method.
        settings: fields of `TrainArgs` that outweigh the recipe's.
    """
    chosen: dict[str, Any] = {**NEEDED[task.kind], **settings}
    if "frozen_cache" in chosen:
        chosen["frozen_cache"] = folder / chosen["frozen_cache"]
    if task.retain:
        chosen["retain"] = write_rows(folder / "retain.jsonl", task.retain)
    given: dict[str, Any] = {
        "model": task.original,
        "forget": write_rows(folder / "forget.jsonl", task.forget),
        "out": folder / "adapter",
        "deletion_ids": (task.name,),
        "max_length": task.max_length,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[task.precision],
        "seed": task.seed,
        "command": ("benchmarks.paper",),
    }
    return RECIPES[recipe].arguments(**(given | chosen))


def json_settings(args: TrainArgs) -> dict[str, Any]:
    """What shaped the training, for `Unlearned.details`."""
    return {**args.settings(), "rank": args.rank}
