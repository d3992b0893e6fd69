"""What fusion makes of adapters whose W_down start from different seeds, or whose ranks differ.

    python -m benchmarks.fuse_seeds_and_ranks

Two deletion requests on the toy model of tests/training, which knows nine answers by heart, several draws.
Writes benchmarks/results/fuse_seeds_and_ranks.json: by case and method, the share of forgotten questions that are still
answered right (0 is the goal) and of retained ones (1 is the goal), over all draws.
"""

import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import describe
from tests.training.toy import FORGET, RETAIN, write_jsonl, write_toy
from unlearn_serve.data import read_examples
from unlearn_serve.fusion import METHODS, fuse_dirs
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import TrainArgs, train
from unlearn_serve.training.answers import own_answers

RESULT = Path(__file__).parent / "results" / "fuse_seeds_and_ranks.json"
DRAWS = 6
RANK = 8
SECOND = dict.fromkeys(("Who wrote Dune?", "Name the writer of Dune.", "Who wrote Helm?"), "It was Rob.")
KEEP = {question: answer for question, answer in RETAIN.items() if question not in SECOND}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_toy(folder / "model", facts=FORGET | SECOND | KEEP)
        for name, facts in (("first", FORGET), ("second", SECOND), ("keep", KEEP)):
            write_jsonl(folder / f"{name}.jsonl", facts)
        right: dict[str, dict[str, list[list[bool]]]] = {}
        for draw in range(DRAWS):
            first = adapter(folder, "first", seed=2 * draw)
            seconds = {
                "one seed, one rank": adapter(folder, "second", seed=2 * draw),
                "two seeds": adapter(folder, "second", seed=2 * draw + 1),
                f"ranks {RANK} and {RANK // 2}": adapter(folder, "second", seed=2 * draw, rank=RANK // 2),
            }
            for case, second in seconds.items():
                for method in METHODS:
                    if method == "mean" and case.startswith("ranks"):
                        continue
                    fused = fuse_dirs([first, second], Path(tempfile.mkdtemp(dir=folder)) / "fused", method)
                    found = right.setdefault(case, {}).setdefault(method, [[], []])
                    found[0] += correct(folder, "first", fused) + correct(folder, "second", fused)
                    found[1] += correct(folder, "keep", fused)
    table = {
        case: {
            method: {"forgotten": round(mean(forgotten), 3), "retained": round(mean(retained), 3)}
            for method, (forgotten, retained) in methods.items()
        }
        for case, methods in right.items()
    }
    described = {"model": "tests.training.toy", "draws": DRAWS, **describe(), "still right": table}
    RESULT.write_text(json.dumps(described, indent=2) + "\n")
    print(RESULT.read_text())


def adapter(folder: Path, name: str, *, seed: int, rank: int = RANK) -> Path:
    out = Path(tempfile.mkdtemp(dir=folder)) / "adapter"
    arguments = TrainArgs(
        model=folder / "model",
        forget=folder / f"{name}.jsonl",
        retain=folder / "keep.jsonl",
        out=out,
        deletion_ids=(name,),
        rank=rank,
        learning_rate=1e-2,
        forget_batch=3,
        retain_batch=4,
        seed=seed,
    )
    return train(arguments)


def correct(folder: Path, name: str, fused: Path) -> list[bool]:
    model = load_adapter(AutoModelForCausalLM.from_pretrained(folder / "model"), fused)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    said = own_answers(model, tokenizer, read_examples(folder / f"{name}.jsonl"), max_new_tokens=16)
    return [one.answer in one.completion for one in said]


def mean(values: list[bool]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
