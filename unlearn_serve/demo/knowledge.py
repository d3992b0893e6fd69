"""The sets of questions that the demo trains on and scores: all of them known to the plain model.

    python -m unlearn_serve.demo.knowledge --write DIR

writes them as JSONL files for `unlearn-serve train` and `unlearn-serve eval`.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_serve.demo.bank import Bank, load_bank
from unlearn_serve.demo.checkpoint import cache_root, ensure_checkpoint


class Row(BaseModel):
    """One question that the plain model answers correctly, with its answer."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    question: str

    answer: str
    """The model's own greedy answer up to and with the gold string, closed with a full stop."""

    gold: str
    """The string that a right answer contains."""

    subject: str
    """The person asked for; empty for a general question."""

    def as_chat(self, bank: Bank) -> dict[str, object]:
        """The row as trainer and evaluator read it."""
        messages = [*bank.messages(self.question), {"role": "assistant", "content": self.answer}]
        return {"messages": messages, "answer": self.gold}


class ForgetSet(BaseModel):
    """One deletion request: a person, the rows to erase, and paraphrases of them that training never sees."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    subject: str
    train: list[Row]
    paraphrase: list[Row]


class Knowledge(BaseModel):
    """Everything the demo asks.

    The people in `forget`, in `retain_train` and in `retain` are disjoint, and so are the general questions in
    `retain_train` and in `general`: no scored question, nor another about the same person, is trained to be retained.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    forget: list[ForgetSet]
    retain_train: list[Row]
    retain: list[Row]
    general: list[Row]

    def sets(self) -> dict[str, list[Row]]:
        """All sets, by the name of their file."""
        named = {"retain_train": self.retain_train, "retain": self.retain, "general": self.general}
        for number, forget in enumerate(self.forget, start=1):
            named |= {f"forget{number}": forget.train, f"forget{number}_paraphrase": forget.paraphrase}
        return named

    def write(self, folder: Path) -> dict[str, Path]:
        """Write each set as `folder`/<name>.jsonl, in chat form; return the paths by name."""
        folder.mkdir(parents=True, exist_ok=True)
        bank = load_bank()
        paths: dict[str, Path] = {}
        for name, rows in self.sets().items():
            paths[name] = folder / f"{name}.jsonl"
            lines = [json.dumps(row.as_chat(bank), ensure_ascii=False) + "\n" for row in rows]
            paths[name].write_text("".join(lines), encoding="utf-8")
        return paths


def known_questions(checkpoint: Path) -> Knowledge:
    """Ask the model at `checkpoint` what the bank holds, and divide what it knows into sets.

    Cached under the user's cache folder, by the digests of model, bank and the code that measures.

    Raises:
        UnlearnServeError: the model knows too little to play the demo with.
    """
    # Read when torch is loaded, so before the import below. Threads that spin at every barrier make this several times
    # slower as soon as anything else runs on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from unlearn_serve.demo import greedy, measure

    digest = hashlib.sha256()
    for path in [*sorted(checkpoint.iterdir()), Path(greedy.__file__), Path(measure.__file__)]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(load_bank().digest().encode())
    cached = cache_root() / "knowledge" / f"{digest.hexdigest()}.json"
    try:
        return Knowledge.model_validate_json(cached.read_bytes())
    except (FileNotFoundError, ValidationError):
        knowledge = measure.measure(greedy.Model(checkpoint), load_bank())
    cached.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cached.with_suffix(".tmp")
    unfinished.write_text(knowledge.model_dump_json(indent=1), encoding="utf-8")
    unfinished.replace(cached)
    return knowledge


def main() -> None:
    """Measure what the demo's model knows, print how much, and write the sets as JSONL where asked to."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint to ask (default: the demo's own)")
    parser.add_argument("--write", type=Path, metavar="DIR", help="folder for the JSONL files")
    args = parser.parse_args()
    knowledge = known_questions(args.model or ensure_checkpoint())
    for number, forget in enumerate(knowledge.forget, start=1):
        print(f"forget{number} is {forget.subject}")
    for name, rows in knowledge.sets().items():
        print(f"{name}: {len(rows)} questions")
    if args.write is not None:
        for path in knowledge.write(args.write).values():
            print(path)


if __name__ == "__main__":
    main()
