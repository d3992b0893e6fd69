"""TOFU: authors who do not exist, twenty questions about each; a deletion request takes one author out.

Only a subset is learnt: the authors whose questions also come with paraphrases and wrong answers (the last ones of the
data set, any of whom may be asked to go) and some of the first (the guards, who always stay).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.data.folder import read_jsonl
from unlearn_serve.data import Example
from unlearn_serve.data.rows import parse_row

FULL = "tofu/full.jsonl"
PERTURBED = "tofu/forget10_perturbed.jsonl"
HOLDOUT = "tofu/holdout10.jsonl"
GENERAL = "tofu/world_facts_perturbed.jsonl"
FILES = (FULL, PERTURBED, HOLDOUT, GENERAL)

PER_AUTHOR = 20
"""Rows that the files have of each author, one after the other."""


@dataclass(frozen=True, kw_only=True)
class TofuSize:
    """How much of the data set is used."""

    requests: int
    """Authors who may be asked to go, in the order of their requests."""

    guards: int
    """Authors who always stay, and whose rows guard the rest while something is unlearned."""

    questions: int
    """Of each author, at most `PER_AUTHOR`."""

    holdout: int
    """Rows about authors whom no model has seen."""

    general: int
    """Questions about the world."""

    def as_json(self) -> dict[str, Any]:
        """For a stage's settings."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Tofu:
    """The subset."""

    requested: tuple[tuple[Example, ...], ...]
    """By request, the author's rows, with paraphrased and wrong answers."""

    rephrased: tuple[tuple[Example, ...], ...]
    """The same rows with each question in other words, which no training sees."""

    guards: tuple[Example, ...]
    holdout: tuple[Example, ...]
    general: tuple[Example, ...]

    @property
    def train(self) -> tuple[Example, ...]:
        """All that the original learns."""
        return (*(row for author in self.requested for row in author), *self.guards)

    def forget(self, requests: int) -> tuple[Example, ...]:
        """The rows of the first so many requests."""
        return tuple(row for author in self.requested[:requests] for row in author)

    def retain(self, requests: int) -> tuple[Example, ...]:
        """What stays after them."""
        return (*(row for author in self.requested[requests:] for row in author), *self.guards)


def read_tofu(folder: Path, size: TofuSize) -> Tofu:
    """Read the subset out of the data folder."""
    full, perturbed = read_jsonl(folder / FULL), read_jsonl(folder / PERTURBED)

    def authors(rows: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
        begins = range(0, count * PER_AUTHOR, PER_AUTHOR)
        return [rows[begin : begin + PER_AUTHOR][: size.questions] for begin in begins]

    requested, unseen = authors(perturbed, size.requests), _spread(read_jsonl(folder / HOLDOUT), size)
    return Tofu(
        requested=tuple(
            tuple(_example(row, f"author {n}.{i}") for i, row in enumerate(rows)) for n, rows in enumerate(requested)
        ),
        rephrased=tuple(
            tuple(
                _example({**row, "question": row["paraphrased_question"]}, f"rephrased {n}.{i}")
                for i, row in enumerate(rows)
            )
            for n, rows in enumerate(requested)
        ),
        guards=tuple(
            _example({"question": row["question"], "answer": row["answer"]}, f"guard {n}.{i}")
            for n, rows in enumerate(authors(full, size.guards))
            for i, row in enumerate(rows)
        ),
        holdout=tuple(_example(row, f"holdout {i}") for i, row in enumerate(unseen)),
        general=tuple(
            _example(row, f"general {i}") for i, row in enumerate(read_jsonl(folder / GENERAL)[: size.general])
        ),
    )


def _spread(rows: list[dict[str, Any]], size: TofuSize) -> list[dict[str, Any]]:
    """Rows over all authors and over the questions that are asked of the others too: levels differ by both."""
    like = [row for i, row in enumerate(rows) if i % PER_AUTHOR < size.questions]
    count = min(size.holdout, len(like))
    return [like[i * len(like) // count] for i in range(count)]


def _example(row: dict[str, Any], name: str) -> Example:
    right = {row["answer"].strip(), row.get("paraphrased_answer", row["answer"]).strip()}
    wrong = [answer for answer in row.get("perturbed_answer", ()) if answer.strip() not in right]
    found: dict[str, Any] = {
        "id": name,
        "prompt": f"Question: {row['question']}\nAnswer:",
        "completion": f" {row['answer'].strip()}",
    }
    if "paraphrased_answer" in row:
        found["paraphrased_answer"] = f" {row['paraphrased_answer'].strip()}"
    if wrong:
        found["perturbed_answer"] = [f" {answer.strip()}" for answer in wrong]
    return parse_row(found, source=f"TOFU {name}", line=1)
