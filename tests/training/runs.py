"""Training runs on the toy model, and what came of them."""

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_serve.data import read_examples
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import TrainArgs
from unlearn_serve.training.answers import own_answers

FAST = {"rank": 8, "learning_rate": 1e-2, "forget_batch": 3, "retain_batch": 4, "max_steps": 60}


def on_files(folder: Path, out: Path, **options: object) -> TrainArgs:
    """A run on the model and the data sets in `folder`."""
    return TrainArgs(
        **{
            "model": folder / "model",
            "forget": folder / "forget.jsonl",
            "retain": folder / "retain.jsonl",
            "out": out,
            "deletion_ids": ("case-17",),
            **options,
        }
    )


def arguments(toy: Path, out: Path, **options: object) -> TrainArgs:
    return on_files(toy, out, **{"command": ("unlearn-serve", "train"), **FAST, **options})


def answers(toy: Path, name: str, adapter: Path | None) -> list[bool]:
    """Whether each greedy answer holds the gold string."""
    model = AutoModelForCausalLM.from_pretrained(toy / "model")
    model = load_adapter(model, adapter) if adapter else model
    examples = read_examples(toy / f"{name}.jsonl")
    said = own_answers(model, AutoTokenizer.from_pretrained(toy / "model"), examples, max_new_tokens=16)
    by_prompt = {one.prompt: one.completion for one in said}
    return [one.answer in by_prompt.get(one.prompt, "") for one in examples]


def log_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
