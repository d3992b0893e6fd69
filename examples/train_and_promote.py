"""From a deletion request to a release on a channel, through the Python API.

    .venv/bin/python examples/train_and_promote.py --model CHECKPOINT --work out/example

A server that follows channel `production` of out/example/store swaps to the release within a second.
"""

import argparse
from pathlib import Path

from unlearn_serve.evaluation import evaluate
from unlearn_serve.store import Store
from unlearn_serve.training import TrainArgs, train

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model's checkpoint")
    parser.add_argument("--work", type=Path, required=True, help="folder for the adapter and the store")
    parser.add_argument("--max-steps", type=int, default=60)
    chosen = parser.parse_args()
    forget, retain = HERE / "forget.jsonl", HERE / "retain.jsonl"

    adapter = train(
        TrainArgs(
            model=chosen.model,
            forget=forget,
            retain=retain,
            out=chosen.work / "adapter",
            deletion_ids=("case-17",),
            max_steps=chosen.max_steps,
        )
    )
    scores = evaluate(chosen.model, adapter, {"forget": forget, "retain": retain})
    print("forget:", scores.before["forget"].accuracy, "->", scores.after["forget"].accuracy)
    print("retain:", scores.before["retain"].accuracy, "->", scores.after["retain"].accuracy)

    store = Store.open(str(chosen.work / "store"), create=True)
    entry = store.promote(store.publish(adapter), "production", actor="example", reason="case-17")
    print(f"{entry.channel} generation {entry.generation} -> {entry.release}")


if __name__ == "__main__":
    main()
